"""Executor of InteractionsExampleGen."""

import logging
from typing import Any

import apache_beam as beam
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from sllmr.components import examples
from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX, NON_POSITIVES_PREFIX
from sllmr.components.interactions_example_gen import report, rows, transforms
from sllmr.components.interactions_example_gen.config import DataConfig, iso_to_milliseconds
from sllmr.components.interactions_example_gen.data_report import read_report

CONFIG = "config"
INPUT_FINGERPRINT = "input_fingerprint"
CODE_FINGERPRINT = "code_fingerprint"
EXAMPLES, CATALOG, REPORT = "examples", "catalog", "report"


_log = logging.getLogger(__name__)


class Executor(base_beam_executor.BaseBeamExecutor):
    """Reads the tables, writes the splits, the catalog and the report."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See base class.

        Raises:
            DataError: the tables break a rule.
        """
        config = DataConfig.model_validate_json(exec_properties[CONFIG])
        examples_artifact = artifact_utils.get_single_instance(output_dict[EXAMPLES])
        report_uri = artifact_utils.get_single_uri(output_dict[REPORT])
        examples.prepare(examples_artifact, rows.SPLITS)
        with self._make_beam_pipeline() as pipeline:
            output = pipeline | "PrepareInteractions" >> transforms.PrepareInteractions(config)
            for split in rows.SPLITS:
                output[split] | f"Write_{split}" >> examples.write_split(examples_artifact, split)
            catalog_uri = artifact_utils.get_single_uri(output_dict[CATALOG])
            output["catalog"] | "WriteCatalog" >> beam.ParDo(transforms.WriteCatalog(catalog_uri))
            output["non_positives"] | "WriteNonPositives" >> transforms.WriteItemsOfUsers(
                catalog_uri, NON_POSITIVES_PREFIX
            )
            output["earlier_positives"] | "WriteEarlierPositives" >> transforms.WriteItemsOfUsers(
                catalog_uri, EARLIER_POSITIVES_PREFIX
            )
            output["report"] | "WriteReport" >> beam.ParDo(transforms.WriteReport(report_uri))
        content = read_report(report_uri)
        report.check_report(content, config)
        if (last := content.splits[rows.TRAIN].last) is not None:
            examples_artifact.set_int_custom_property(examples.TRAIN_UNTIL, iso_to_milliseconds(last))
        for line in content.lines():
            _log.info("data: %s", line)
        for notice in content.notices:
            _log.warning("data: %s", notice)
