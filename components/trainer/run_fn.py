"""What the Trainer runs: reads, trains, exports, reports."""

import logging
import os

import tensorflow as tf
import tensorflow_transform as tft
from tfx.components.trainer.fn_args_utils import FnArgs

from components.trainer.config import TrainerConfig
from components.trainer.executor import CONFIG, PAIRS_PATTERNS
from models import features, inputs, preprocessing, signatures, training
from models.item_vectors import read_item_vectors

REPORT_FILE = "training.json"
"""In the model_run artifact: a models.training.TrainingReport."""


def run_fn(fn_args: FnArgs) -> None:
    """Trains on `train_files`, stops by `eval_files`, exports to `serving_model_dir`.

    Raises:
        ValueError: see models.training.train and models.inputs.load_pairs.
    """
    config = TrainerConfig.model_validate_json(fn_args.custom_config[CONFIG])
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    transform = transform_output.transform_features_layer()
    columns = features.transformed_features(config.sizes, use_user_id=config.model.use_user_id)

    pairs = None
    if config.loss.llm_weight > 0:
        pairs = inputs.load_pairs(fn_args.custom_config[PAIRS_PATTERNS], config.sizes, transform)
    item_ids = [i.decode() for i in transform_output.vocabulary_by_name(features.ITEMS)]
    item_vectors = None
    if config.model.item_vectors_file is not None:
        item_vectors = read_item_vectors(config.model.item_vectors_file).by_index(item_ids)
    model, report = training.train(
        vocabulary=preprocessing.vocabulary_sizes(transform_output, use_user_id=config.model.use_user_id),
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
        item_ids=item_ids,
        gate_weights=_gate_weights(config.gate.weights_from),
        log_dir=fn_args.model_run_dir,
    )
    signatures.export(model, transform, config.sizes, fn_args.serving_model_dir, use_user_id=config.model.use_user_id)
    with tf.io.gfile.GFile(os.path.join(fn_args.model_run_dir, REPORT_FILE), "w") as file:
        file.write(report.model_dump_json(indent=2))
    logging.getLogger(__name__).info("best validation AUC %.4f", report.best_valid_auc)


def _gate_weights(training_file: str | None) -> dict[str, float] | None:
    if training_file is None:
        return None
    try:
        with tf.io.gfile.GFile(training_file) as file:
            weights = training.TrainingReport.model_validate_json(file.read()).gate_weights
    except (tf.errors.OpError, ValueError) as error:
        raise ValueError(
            f"gate.weights_from must name the {REPORT_FILE} of another run, got {training_file}, which cannot be read "
            f"as one: {error}; find it in that run's model_run artifact"
        ) from None
    return weights


_VALID_BATCH = 4096
