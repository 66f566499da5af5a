"""Unpacks the artifacts, applies BuildPairs, writes."""

from typing import Any

import apache_beam as beam
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact, artifact_utils
from tfx.utils import io_utils

from sllmr.components import examples, scores
from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_builder.transforms import COUNTS, ROWS, SCORES, BuildPairs, JoinUsers, WriteCounts
from sllmr.models.features import FeatureSizes


class Executor(base_beam_executor.BaseBeamExecutor):
    """See component.PairBuilder."""

    def Do(
        self,
        input_dict: dict[str, list[artifact.Artifact]],
        output_dict: dict[str, list[artifact.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        self._log_startup(input_dict, output_dict, exec_properties)
        pairs = artifact_utils.get_single_instance(output_dict["pairs"])
        examples.prepare(pairs, ["train"])
        sizes = FeatureSizes.model_validate_json(exec_properties["sizes"])
        build = BuildPairs(
            PairConfig.model_validate_json(exec_properties["config"]),
            sizes,
            artifact_utils.get_single_uri(input_dict["catalog"]),
        )
        pattern = scores.scores_pattern(artifact_utils.get_single_uri(input_dict["scores"]))
        (rows,) = artifact_utils.get_split_uris(input_dict["examples"], "train")
        with self._make_beam_pipeline() as pipeline:
            read = {
                SCORES: pipeline | "ReadScores" >> beam.io.ReadFromTFRecord(pattern),
                ROWS: pipeline | "ReadRows" >> beam.io.ReadFromTFRecord(io_utils.all_files_pattern(rows)),
            }
            built = (
                read
                | "JoinUsers" >> JoinUsers(exec_properties["seed"], sizes)
                | "BuildPairs" >> beam.ParDo(build).with_outputs(COUNTS, main="pairs")
            )
            _ = built["pairs"] | "WritePairs" >> examples.write_split(pairs, "train")
            _ = built[COUNTS] | "WriteCounts" >> WriteCounts(pairs.uri)
