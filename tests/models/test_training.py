import json

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from models import features, ranking, training
from models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from models.features import NOT_A_PROBE, OTHER, PREFERRED
from tests.models.test_embeddings import VOCABULARY

MODEL = ModelConfig(embedding_dim=4, embedding_l2=0.0, mlp=(8,), dropout=0.0)
TRAIN = TrainConfig(batch_size=64, pairs_per_batch=32, epochs=3, patience=1, learning_rate=0.01, seed=3)


def market(number: int, seed: int) -> dict[str, np.ndarray]:
    """Rows with L = 4, C = 2: an item is chosen if and only if its index is even, with 10% noise."""
    source = np.random.default_rng(seed)
    item = source.integers(1, 10, number)
    noise = source.uniform(size=number) < 0.1
    made = {
        features.ITEM_INDEX: item,
        features.ITEM_CATEGORY_INDICES: source.integers(1, 6, (number, 2)),
        features.ITEM_BRAND_INDEX: source.integers(0, 5, number),
        features.HISTORY_ITEM_INDICES: source.integers(0, 10, (number, 4)),
        features.HISTORY_CATEGORY_INDICES: source.integers(0, 6, (number, 4, 2)),
        features.HISTORY_BRAND_INDICES: source.integers(0, 5, (number, 4)),
        features.LABEL: (item % 2 == 0) ^ noise,
    }
    return {name: values.astype(np.int32) for name, values in made.items()}


def dataset(number: int, seed: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(market(number, seed)).batch(64)


def pairs(number: int = 200, agreement: float = 0.5) -> dict[str, tf.Tensor]:
    source = np.random.default_rng(9)
    first, second = market(number, 7), market(number, 8)
    made = {n: v for n, v in first.items() if not n.startswith("item") and n != features.LABEL}
    for prefix, side in ((PREFERRED, first), (OTHER, second)):
        made |= {prefix + name: values for name, values in side.items() if name.startswith("item")}
        made[prefix + features.IS_TAIL] = source.integers(0, 2, number).astype(np.int32)
        made[prefix + features.ITEM_TRAIN_COUNT] = np.full(number, 5, np.int32)
    made[features.HISTORY_LENGTH] = source.integers(1, 8, number).astype(np.int32)
    made[PREFERRED + features.LLM_SCORE] = source.uniform(0.6, 1.0, number).astype(np.float32)
    made[OTHER + features.LLM_SCORE] = source.uniform(0.0, 0.6, number).astype(np.float32)
    made[features.PROBE_LABEL] = (source.uniform(size=number) < agreement).astype(np.int32)
    return {name: tf.constant(values) for name, values in made.items()}


def train(**changes):
    arguments = {
        "vocabulary": VOCABULARY,
        "model_config": MODEL,
        "gate_config": GateConfig(),
        "loss_config": LossConfig(llm_weight=0.0),
        "train_config": TRAIN,
        "rows": dataset(640, 1),
        "valid": dataset(320, 2),
        "pairs": None,
    }
    return training.train(**(arguments | changes))


def auc_by_counting(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of (positive, negative) combinations in the right order; ties count half."""
    wins = 0.0
    positives, negatives = scores[labels == 1], scores[labels == 0]
    for positive in positives:
        wins += np.sum(positive > negatives) + 0.5 * np.sum(positive == negatives)
    return wins / (len(positives) * len(negatives))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Model, report and TensorBoard folder of a training without pairs."""
    log_dir = tmp_path_factory.mktemp("logs")
    return *train(log_dir=str(log_dir)), log_dir


def test_training_learns_reports_and_returns_the_weights_of_the_best_epoch(trained):
    model, report, _ = trained
    labels, logits = training.predict(model, dataset(320, 2))

    aucs = [epoch.valid_auc for epoch in report.epochs]
    assert report.best_valid_auc == max(aucs) > 0.85
    assert report.best_epoch == 1 + int(np.argmax(aucs))
    assert auc_by_counting(labels, logits) == pytest.approx(report.best_valid_auc, abs=1e-6)
    assert report.train_rows == 640
    assert report.gate == []


def test_training_stops_after_patience_epochs_without_a_better_auc():
    train_config = TRAIN.model_copy(update={"epochs": 30, "learning_rate": 1e-12, "patience": 2})

    _, report = train(train_config=train_config)

    assert len(report.epochs) == report.best_epoch + 2 < 30


def test_the_same_seed_gives_the_same_model_and_another_seed_another(trained):
    again, _ = train()
    other, _ = train(train_config=TRAIN.model_copy(update={"seed": 4, "epochs": 1}))
    logits = [training.predict(model, dataset(64, 5))[1] for model in (trained[0], again, other)]

    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert not np.allclose(logits[0], logits[2], atol=1e-2)


def test_the_gate_learns_how_often_the_llm_is_right_and_the_report_says_so():
    gate = GateConfig(learning_rate=0.1)

    _, report = train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1), pairs=pairs(agreement=0.8))

    everywhere = report.gate[0]
    assert everywhere.pairs == everywhere.probes == 200
    assert everywhere.llm_accuracy == pytest.approx(0.8, abs=0.08)
    assert everywhere.mean_alpha == pytest.approx(everywhere.llm_accuracy, abs=0.1)
    assert report.alpha_collapse is None
    assert set(report.gate_weights) == {"short_history", "long_tail", "entropy", "bias"}


def test_a_collapsed_paper_gate_is_named_in_log_and_report(caplog):
    gate = GateConfig(mode="paper", initial_bias=-4.0)

    _, report = train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1), pairs=pairs())

    assert report.alpha_collapse == "closed"
    assert "The gate has collapsed: alpha is below 0.05" in caplog.text


def test_a_frozen_gate_at_one_is_no_collapse(caplog):
    _, report = train(gate_config=GateConfig(mode="frozen"), loss_config=LossConfig(llm_weight=0.1), pairs=pairs())

    assert report.alpha_collapse is None
    assert report.gate[0].mean_alpha == 1.0
    assert "collapsed" not in caplog.text


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [([0.01] * 99 + [0.9], "closed"), ([0.99] * 99 + [0.1], "open"), ([0.01] * 50 + [0.99] * 50, None)],
)
def test_collapse_is_what_95_percent_of_the_pairs_say(alpha, expected):
    assert training.alpha_collapse(np.array(alpha)) == expected


def test_cells_count_pairs_probes_and_agreement_as_a_plain_loop_does():
    made = {
        features.HISTORY_LENGTH: tf.constant([1, 3, 4, 9, 2]),
        PREFERRED + features.IS_TAIL: tf.constant([1, 0, 0, 0, 0]),
        OTHER + features.IS_TAIL: tf.constant([0, 0, 1, 0, 1]),
        features.PROBE_LABEL: tf.constant([1, NOT_A_PROBE, 0, 1, 0]),
    }
    cells = training.gate_cells(np.array([0.2, 0.4, 0.6, 0.8, 1.0]), made, cold_max_history=3)

    summary = [(c.cold, c.tail, c.pairs, c.mean_alpha, c.probes, c.llm_accuracy) for c in cells]
    assert summary == [
        (None, None, 5, pytest.approx(0.6), 4, 0.5),
        (True, True, 2, pytest.approx(0.6), 2, 0.5),
        (True, False, 1, pytest.approx(0.4), 0, None),
        (False, True, 1, pytest.approx(0.6), 1, 0.0),
        (False, False, 1, pytest.approx(0.8), 1, 1.0),
    ]


def test_the_report_survives_json_and_tensorboard_gets_the_auc(trained):
    _, report, log_dir = trained

    assert training.TrainingReport.model_validate(json.loads(report.model_dump_json())) == report
    logged = b"".join(file.read_bytes() for file in log_dir.rglob("events.*"))
    assert b"valid_auc" in logged


def test_soft_labels_are_the_most_likely_logistic_curve_through_the_probes():
    made = pairs(agreement=0.7)
    made[features.PROBE_LABEL] = tf.where(tf.range(200) % 4 == 0, NOT_A_PROBE, made[features.PROBE_LABEL])
    scores, chosen = [], []
    for preferred, other, label in zip(
        *(made[n].numpy() for n in (PREFERRED + features.LLM_SCORE, OTHER + features.LLM_SCORE, features.PROBE_LABEL)),
        strict=True,
    ):
        if label != NOT_A_PROBE:
            scores += [preferred, other]
            chosen += [label, 1 - label]
    x, y = np.array(scores, float), np.array(chosen, float)

    def negative_log_likelihood(ab: np.ndarray) -> float:
        return float(np.sum(np.logaddexp(0, ab[0] * x + ab[1]) - y * (ab[0] * x + ab[1])))

    a, b = scipy.optimize.minimize(negative_log_likelihood, [0.0, 0.0]).x

    soft = training.with_soft_labels(made)

    for prefix in (PREFERRED, OTHER):
        raw = made[prefix + features.LLM_SCORE].numpy().astype(float)
        np.testing.assert_allclose(soft[prefix + features.LLM_SCORE], 1 / (1 + np.exp(-(a * raw + b))), atol=1e-3)


def test_soft_labels_need_probes():
    made = pairs() | {features.PROBE_LABEL: tf.fill([200], NOT_A_PROBE)}
    with pytest.raises(ValueError, match=r"distillation needs labelled probes .* raise llm.candidates.probe_fraction"):
        training.with_soft_labels(made)


def test_distillation_moves_the_model_towards_the_teacher():
    made = pairs(agreement=0.9)
    alone, _ = train()
    taught, report = train(loss_config=LossConfig(llm_weight=10.0, form="distillation"), pairs=made)
    soft = training.with_soft_labels(made)

    def distance(model) -> float:
        sides = [ranking.pair_side(soft, prefix) for prefix in (PREFERRED, OTHER)]
        return float(np.mean([np.abs(tf.sigmoid(model(side)) - side[features.LLM_SCORE]) for side in sides]))

    assert distance(taught) < 0.9 * distance(alone)
    assert report.gate == []
    assert report.alpha_quantiles == {}


def test_alpha_quantiles_are_those_of_all_pairs():
    _, report = train(gate_config=GateConfig(mode="frozen"), loss_config=LossConfig(llm_weight=0.1), pairs=pairs())

    assert report.alpha_quantiles == {"0.05": 1.0, "0.25": 1.0, "0.5": 1.0, "0.75": 1.0, "0.95": 1.0}


@pytest.mark.parametrize(("llm_weight", "given"), [(0.1, None), (0.0, {})])
def test_pairs_must_go_with_the_weight(llm_weight, given):
    with pytest.raises(ValueError, match=r"pairs must be given exactly when llm_weight is above 0"):
        train(loss_config=LossConfig(llm_weight=llm_weight), pairs=given)


def test_validation_rows_of_one_label_are_refused():
    one = dataset(64, 1).map(lambda r: r | {features.LABEL: tf.ones_like(r[features.LABEL])})
    with pytest.raises(ValueError, match=r"validation AUC needs rows of both labels"):
        train(valid=one)
