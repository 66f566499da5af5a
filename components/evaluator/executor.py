"""Executor of the Evaluator: TFMA scores the models on the test rows, components.evaluator.decision blesses."""

import os
from typing import Any

import tensorflow as tf
import tensorflow_model_analysis as tfma
from tfx.components.evaluator import constants
from tfx.components.util import tfxio_utils
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.dsl.io import fileio
from tfx.types import artifact, artifact_utils, standard_component_specs
from tfx.types.standard_component_specs import EXAMPLES_KEY
from tfx.utils import io_utils, path_utils

from sllmr.components.evaluator.config import EvaluationConfig
from sllmr.components.evaluator.decision import FILE_NAME, SliceMetrics, decide
from sllmr.components.evaluator.metric import (
    CANDIDATE,
    LAST_BLESSED,
    REFERENCE,
    eval_config,
    read_slices,
    slice_metrics,
)
from sllmr.components.own_slices import CROSSED, own_slices, raw_features, slice_features
from sllmr.components.saved_model_scores import score_files
from sllmr.models import artifact_files, features
from sllmr.models.serving.declared_asset import read_declared

CONFIG = "config"
"""Execution property: JSON of an EvaluationConfig."""

REFERENCE_MODEL = "reference_model"
"""Input: the first blessed model."""

SPLIT = "test"

Artifacts = dict[str, list[artifact.Artifact]]


class Executor(BaseBeamExecutor):
    """See component.Evaluator. TFX's own executor takes two models at most."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: dict[str, Any]) -> None:
        config = EvaluationConfig.model_validate_json(exec_properties[CONFIG])
        model = artifact_utils.get_single_instance(input_dict[standard_component_specs.MODEL_KEY])
        baseline = _only(input_dict, standard_component_specs.BASELINE_MODEL_KEY)
        reference = _only(input_dict, REFERENCE_MODEL)
        folders = {CANDIDATE: path_utils.serving_model_path(model.uri)}
        if baseline is not None:
            folders[LAST_BLESSED] = path_utils.serving_model_path(baseline.uri)
        reference_uri = config.reference or (reference.uri if reference else None)
        if reference_uri is not None:
            folders[REFERENCE] = config.reference or path_utils.serving_model_path(reference_uri)
        uri = artifact_utils.get_single_uri(output_dict[standard_component_specs.EVALUATION_KEY])
        found = self._evaluate(folders, input_dict, uri, config.positive_rate)
        own = _own_slices(folders, input_dict, config) if config.slices else {}
        result = decide(
            config,
            found | {name: metrics for name, (_, metrics) in own.items()},
            baseline.uri if baseline else None,
            reference_uri,
            {name: text for name, (text, _) in own.items()},
        )
        with artifact_files.open(os.path.join(uri, FILE_NAME), "w") as file:
            file.write(result.model_dump_json(indent=1) + "\n")
        blessing = artifact_utils.get_single_instance(output_dict[standard_component_specs.BLESSING_KEY])
        bless(blessing, model, baseline, blessed=result.decision.blessed)

    def _evaluate(
        self, folders: dict[str, str], input_dict: Artifacts, uri: str, positive_rate: float | None
    ) -> dict[str, SliceMetrics]:
        """Runs TFMA on the test rows and returns what it found by slice.

        Args:
            folders: of SavedModels, by name of eval_config's models.
            input_dict: holds examples and schema.
            uri: where TFMA writes.
            positive_rate: see eval_config.
        """
        is_last_blessed = REFERENCE in folders and folders.get(REFERENCE) == folders.get(LAST_BLESSED)
        scored = {name: folder for name, folder in folders.items() if name != REFERENCE or not is_last_blessed}
        config = eval_config(list(scored), positive_rate)
        models = [
            tfma.default_eval_shared_model(eval_saved_model_path=folder, model_name=spec.name, eval_config=config)
            for spec, folder in zip(config.model_specs, scored.values(), strict=True)
        ]
        examples = input_dict[standard_component_specs.EXAMPLES_KEY]
        schema_uri = artifact_utils.get_single_uri(input_dict[standard_component_specs.SCHEMA_KEY])
        tfxio = tfxio_utils.get_tfxio_factory_from_artifact(
            examples=examples,
            telemetry_descriptors=["Evaluator"],
            schema=io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(schema_uri)),
            raw_record_column_name=tfma.constants.ARROW_INPUT_COLUMN,
        )([io_utils.all_files_pattern(split) for split in artifact_utils.get_split_uris(examples, SPLIT)])
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Read" >> tfxio.BeamSource()
                | "Evaluate"
                >> tfma.ExtractEvaluateAndWriteResults(
                    eval_shared_model=models[0] if len(models) == 1 else models,
                    eval_config=config,
                    output_path=uri,
                )
            )
        found = read_slices(uri)
        if is_last_blessed:
            found = {name: _with_reference(m) for name, m in found.items()}
        return found


def _own_slices(
    folders: dict[str, str], input_dict: Artifacts, config: EvaluationConfig
) -> dict[str, tuple[str, SliceMetrics]]:
    """Measures the slices of config.slices: name -> the text that the slice comes from, and its metrics.

    TFMA cannot: it slices by columns of the rows, and only the model knows the buckets of a numeric feature.
    """
    asset = read_declared(folders[CANDIDATE])
    files = fileio.glob(os.path.join(artifact_utils.get_split_uri(input_dict[EXAMPLES_KEY], SPLIT), "*"))
    columns = {features.USER_ID: tf.string, features.LABEL: tf.int64, features.ITEM_TRAIN_COUNT: tf.int64}
    columns |= {column: tf.int64 for column, _ in CROSSED.values()}
    by = raw_features(slice_features(config.slices, asset.declared))
    rows, logits = score_files(folders, files, columns, by)
    found = {}
    for name, own in own_slices(config.slices, rows, asset.declared, asset.numbers, config.min_slice_users).items():
        users, labels, popularity = (
            rows[column][own.inside] for column in (features.USER_ID, features.LABEL, features.ITEM_TRAIN_COUNT)
        )
        part = {model: values[own.inside] for model, values in logits.items()}
        found[name] = own.text, slice_metrics(users, labels, popularity, part, config.positive_rate)
    return found


def _only(input_dict: Artifacts, key: str) -> artifact.Artifact | None:
    found = input_dict.get(key) or []
    return found[0] if found else None


def _with_reference(m: SliceMetrics) -> SliceMetrics:
    """Copies the measurements of the last blessed model to the reference, which is the same model, measured once."""
    metrics = {name: found.model_copy(update={"reference": found.last_blessed}) for name, found in m.metrics.items()}
    return m.model_copy(update={"metrics": metrics})


def bless(
    blessing: artifact.Artifact, model: artifact.Artifact, baseline: artifact.Artifact | None, *, blessed: bool
) -> None:
    """Writes a ModelBlessing as TFX's Evaluator does, in the form that Resolver and Pusher read."""
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
    if baseline is not None:
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.uri)
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, baseline.id)
    blessing.set_int_custom_property(
        constants.ARTIFACT_PROPERTY_BLESSED_KEY, constants.BLESSED_VALUE if blessed else constants.NOT_BLESSED_VALUE
    )
    name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
    artifact_files.make_folder(blessing.uri)
    with artifact_files.open(os.path.join(blessing.uri, name), "w"):
        pass
