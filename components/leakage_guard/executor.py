"""Executor of LeakageGuard."""

import logging
from typing import Any

import apache_beam as beam
import tensorflow_transform as tft
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact, artifact_utils

from sllmr.components import examples, scores
from sllmr.components.leakage_guard.report import LeakageReport, read_leakage_report
from sllmr.components.leakage_guard.transforms import PAIRS, SCORES, FindLeaks, WriteLeakageReport
from sllmr.models import preprocessing
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes

_log = logging.getLogger(__name__)


class LeakageError(UserError):
    """A validation or test interaction reached what training reads."""


class Executor(base_beam_executor.BaseBeamExecutor):
    """See component.LeakageGuard."""

    def Do(
        self,
        input_dict: dict[str, list[artifact.Artifact]],
        output_dict: dict[str, list[artifact.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        rows = artifact_utils.get_single_instance(input_dict["examples"])
        transform_graph = tft.TFTransformOutput(artifact_utils.get_single_uri(input_dict["transform_graph"]))
        sizes = FeatureSizes.model_validate_json(exec_properties["sizes"])
        find = FindLeaks(
            artifact_utils.get_single_uri(input_dict["catalog"]),
            preprocessing.vocabularies(transform_graph, use_user_id=bool(exec_properties["use_user_id"]), sizes=sizes),
            sizes,
            exec_properties["seed"],
        )
        uri = artifact_utils.get_single_uri(output_dict["report"])
        with self._make_beam_pipeline() as pipeline:
            read = {
                split: pipeline | f"Read_{split}" >> examples.read_split(rows, split)
                for split in artifact_utils.decode_split_names(rows.split_names)
            }
            if input_dict.get(PAIRS):
                pairs = artifact_utils.get_single_instance(input_dict[PAIRS])
                read[PAIRS] = pipeline | "ReadPairs" >> examples.read_split(pairs, "train")
            if input_dict.get(SCORES):
                pattern = scores.scores_pattern(artifact_utils.get_single_uri(input_dict[SCORES]))
                read[SCORES] = pipeline | "ReadScores" >> beam.io.ReadFromTFRecord(pattern)
            _ = read | "FindLeaks" >> find | "Write" >> beam.ParDo(WriteLeakageReport(uri))
        report = read_leakage_report(uri)
        refuse_leaks(report)
        _log.info("leakage: %s", report.sentence())


def refuse_leaks(report: LeakageReport) -> None:
    """Fails a run whose report holds leaks.

    Raises:
        LeakageError: the report holds leaks; the message names the first of each kind.
    """
    if not report.leaks:
        return
    lines = []
    for kind, found in report.leaks.items():
        lines.append(f"  {kind}: {found.count:,}")
        lines += [f"    {text}" for text in found.named]
    raise LeakageError(
        "no validation or test interaction may reach what training reads, but some did; nothing was trained. The rows, "
        "counts, vocabularies, scores and pairs of a run never hold one: correct the step that wrote these, or remove "
        "its folder below artifacts/ and run again:\n" + "\n".join(lines)
    )
