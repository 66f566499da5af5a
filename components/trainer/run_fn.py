"""What the Trainer runs: reads, trains, exports, reports."""

import logging
import os
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tfx.components.trainer.fn_args_utils import FnArgs

from sllmr.components.catalog import read_catalog, values_of_items
from sllmr.components.model_info import read_model_info
from sllmr.components.trainer.config import TrainerConfig
from sllmr.components.trainer.executor import (
    CATALOG_DIRECTORY,
    CONFIG,
    ITEM_VECTORS_FILE,
    PAIRS_PATTERNS,
)
from sllmr.models import features, inputs, preprocessing, signatures
from sllmr.models.errors import UserError
from sllmr.models.item_vectors import read_item_vectors
from sllmr.models.probability_error import logit_shift
from sllmr.models.ranking import RankingModel
from sllmr.models.serving.index_lookup import Vocabularies
from sllmr.models.serving.item_lookup import check_item_ids
from sllmr.models.training.recipe import train
from sllmr.models.training.report import TrainingReport, WarmStart
from sllmr.models.warm_start import EarlierModel, Mismatch, read_earlier_model, start_from

_log = logging.getLogger(__name__)

REPORT_FILE = "training.json"
"""In the model_run artifact: a models.training.report.TrainingReport."""


def run_fn(fn_args: FnArgs) -> None:
    """Trains on `train_files`, stops early by the AUC on `eval_files`, exports to `serving_model_dir`.

    Raises:
        ValueError: see models.training.recipe.train and models.inputs.load_pairs.
        UserError: see models.serving.item_lookup.check_item_ids.
    """
    config = TrainerConfig.model_validate_json(fn_args.custom_config[CONFIG])
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    transform = transform_output.transform_features_layer()
    columns = preprocessing.transformed_columns(transform_output, config.sizes, use_user_id=config.model.use_user_id)

    items = read_catalog(fn_args.custom_config[CATALOG_DIRECTORY])
    # The attributes that hold now: an earlier version may be outdated, and a later one is not valid yet.
    catalog = values_of_items(items.values(), config.sizes, at=round(1000 * time.time()))
    check_item_ids(catalog[features.ITEM_ID])  # before training, so that none is wasted
    pairs = None
    if config.loss.llm_weight > 0:
        pairs = inputs.load_pairs(fn_args.custom_config[PAIRS_PATTERNS], config.sizes, transform)
    item_ids = [i.decode() for i in transform_output.vocabulary_by_name(features.ITEMS)]
    item_vectors, catalog_vectors = None, {}
    if config.model.item_vectors:
        vectors = read_item_vectors(fn_args.custom_config[ITEM_VECTORS_FILE])
        item_vectors = vectors.by_index(item_ids)
        catalog_vectors = vectors.by_id(items.keys() - set(item_ids))
    vocabularies = preprocessing.vocabularies(
        transform_output, use_user_id=config.model.use_user_id, sizes=config.sizes
    )
    starts: list[WarmStart] = []
    earlier = read_earlier_model(fn_args.base_model) if fn_args.base_model else None

    def initialize(model: RankingModel) -> None:
        starts.append(_start(model, vocabularies, config, earlier))
        cold = starts[-1].cold_because is not None
        _log.log(logging.WARNING if cold else logging.INFO, "train: %s", starts[-1].sentence())

    model, report = train(
        vocabulary=preprocessing.vocabulary_sizes(
            transform_output, use_user_id=config.model.use_user_id, sizes=config.sizes
        ),
        model_config=config.model,
        gate_config=config.gate,
        loss_config=config.loss,
        train_config=config.train,
        rows=lambda: inputs.read_rows(
            fn_args.train_files,
            columns,
            batch_size=config.train.batch_size,
            shuffle_buffer=config.train.shuffle_buffer,
            seed=config.train.seed,
        ),
        valid=inputs.read_rows(fn_args.eval_files, columns, batch_size=_VALID_BATCH),
        pairs=pairs,
        item_vectors=item_vectors,
        new_items=np.array([False, *(items[item_id].train_count == 0 for item_id in item_ids), False]),
        item_ids=item_ids,
        gate_weights=_gate_weights(config.gate.weights_from),
        initialize=initialize if config.train.warm_start else None,
        log_dir=fn_args.model_run_dir,
        choose_better=False,
    )
    signatures.export(
        model,
        vocabularies,
        config.sizes,
        fn_args.serving_model_dir,
        use_user_id=config.model.use_user_id,
        catalog=catalog,
        catalog_vectors=catalog_vectors,
        logit_shift=_logit_shift(config.positive_rate, fn_args.train_files, columns),
        numbers=preprocessing.train_numbers(transform_output, config.sizes),
    )
    report = report.model_copy(update={"warm_start": starts[0] if starts else None})
    with tf.io.gfile.GFile(os.path.join(fn_args.model_run_dir, REPORT_FILE), "w") as file:
        file.write(report.model_dump_json(indent=2))
    _log.info("best validation AUC %.4f", report.best_valid_auc)


def _start(
    model: RankingModel, vocabularies: Vocabularies, config: TrainerConfig, earlier: EarlierModel | None
) -> WarmStart:
    if earlier is None:
        return WarmStart(
            cold_because="no earlier blessed run has a model of each arm that was trained on rows from before the "
            "validation rows alone"
        )
    if (info := read_model_info(earlier.directory)).backbone != config.model.backbone:
        return WarmStart(cold_because=f"the earlier model has the backbone {info.backbone}")
    try:
        return start_from(model, vocabularies, config.sizes.declared, earlier)
    except Mismatch as mismatch:
        return WarmStart(cold_because=str(mismatch))


def _logit_shift(positive_rate: float | None, train_files: Sequence[str], columns: Sequence[features.Feature]) -> float:
    """The shift from the positive rate of the train rows, weighted as the loss, to `positive_rate`; 0 if it is None."""
    if positive_rate is None:
        return 0.0
    positives = total = 0.0
    for batch in inputs.read_rows(train_files, columns, batch_size=_VALID_BATCH):
        labels = batch[features.LABEL].numpy()
        weights = batch[features.EXAMPLE_WEIGHT].numpy() if features.EXAMPLE_WEIGHT in batch else np.ones(len(labels))
        positives += float(weights[labels == 1].sum())
        total += float(weights.sum())
    return logit_shift(positives / total, positive_rate)


def _gate_weights(training_file: str | None) -> dict[str, float] | None:
    if training_file is None:
        return None
    try:
        with tf.io.gfile.GFile(training_file) as file:
            weights = TrainingReport.model_validate_json(file.read()).gate_weights
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(
            f"gate.weights_from must name the {REPORT_FILE} of another run, got {training_file}, which cannot be read "
            f"as one: {error}; find it in that run's model_run artifact"
        ) from None
    return weights


_VALID_BATCH = 4096
