"""Trains on one device and on two virtual CPU devices and writes both results as JSON to the file named in argv[1].

A process of its own: TensorFlow's devices are set once, before anything else is done with it.
"""

import json
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from sllmr.models import features, ranking
from sllmr.models.config import GateConfig, LossConfig
from sllmr.models.training.loop import predict
from tests.models import test_training as market

ROWS = 449
"""Seven batches of 64 and one of a single row, so that one replica has a step without rows."""

CASES = {
    "supervised": ("supervised", "pairwise", 1),
    "advantage": ("advantage", "pairwise", 1),
    "stacked": ("stacked", "distillation", 1),
}
"""Name -> mode of the gate, form of the loss, epochs."""


def rows() -> tf.data.Dataset:
    weights = np.random.default_rng(5).uniform(0.0, 1.0, ROWS).astype(np.float32)
    made = market.market(ROWS, 1) | {features.EXAMPLE_WEIGHT: weights}
    return tf.data.Dataset.from_tensor_slices(made).shuffle(ROWS, seed=2).batch(64)


def trained(case: str, strategy: str | None) -> dict[str, Any]:
    mode, form, epochs = CASES[case]
    model, report = market.train(
        model_config=market.MODEL.model_copy(update={"embedding_l2": 0.05}),
        gate_config=GateConfig.model_validate({"mode": mode, "signals": ["short_history", "entropy"]}),
        loss_config=LossConfig.model_validate({"llm_weight": 0.5, "form": form}),
        train_config=market.TRAIN.model_copy(
            update={"strategy": strategy, "item_dropout": 0.0, "pairs_per_batch": 33, "epochs": epochs}
        ),
        rows=rows,
        pairs=market.pairs(number=230, agreement=0.8),
        choose_better=False,
    )
    return {
        "devices": sorted({variable.device for variable in model.trainable_variables}),
        "weights": [variable.numpy().tolist() for variable in model.trainable_variables],
        "logits": predict(ranking.scorer(model), market.dataset(320, 2))[1].tolist(),
        "auc": report.best_valid_auc,
        "losses": [epoch.losses for epoch in report.epochs],
        "rows": report.train_rows,
        "gate_weights": report.gate_weights,
    }


def main() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    results = {case: [trained(case, strategy) for strategy in (None, "mirrored")] for case in CASES}
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
