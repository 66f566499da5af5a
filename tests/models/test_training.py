import json
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from sllmr.models import features, ranking
from sllmr.models.base_model import held_out, turned_round
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.errors import UserError
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.inputs import training_batches
from sllmr.models.reliability import GateCollapse
from sllmr.models.training import recipe
from sllmr.models.training.calibration import with_soft_labels
from sllmr.models.training.gate_report import gate_cells, judge, pair_alpha
from sllmr.models.training.loop import predict
from sllmr.models.training.report import TrainingReport
from tests.models.test_embeddings import VOCABULARY

pytestmark = pytest.mark.slow

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
        features.USER_HASH: np.arange(number) + 100_000 * seed,
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
        made[prefix + features.TEXT_WORDS] = np.full(number, 9, np.int32)
        made[prefix + features.LLM_DISAGREEMENT] = np.zeros(number, np.float32)
    made[features.HISTORY_LENGTH] = source.integers(1, 8, number).astype(np.int32)
    made[PREFERRED + features.LLM_SCORE] = source.uniform(0.6, 1.0, number).astype(np.float32)
    made[OTHER + features.LLM_SCORE] = source.uniform(0.0, 0.6, number).astype(np.float32)
    made[features.CALIBRATION_LABEL] = (source.uniform(size=number) < agreement).astype(np.int32)
    return {name: tf.constant(values) for name, values in made.items()}


def train(**changes):
    arguments = {
        "vocabulary": VOCABULARY,
        "model_config": MODEL,
        "gate_config": GateConfig(),
        "loss_config": LossConfig(llm_weight=0.0),
        "train_config": TRAIN,
        "rows": lambda: dataset(640, 1),
        "valid": dataset(320, 2),
        "pairs": None,
    }
    return recipe.train(**(arguments | changes))


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
    labels, logits = predict(ranking.scorer(model), dataset(320, 2))

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
    logits = [predict(ranking.scorer(model), dataset(64, 5))[1] for model in (trained[0], again, other)]

    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert not np.allclose(logits[0], logits[2], atol=1e-2)


def test_the_gate_learns_how_often_the_llm_is_right_and_the_report_says_so():
    gate = GateConfig(learning_rate=0.1)

    _, report = train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1), pairs=pairs(agreement=0.8))

    everywhere = report.gate[0]
    assert everywhere.pairs == everywhere.calibration_pairs == 200
    assert everywhere.llm_accuracy == pytest.approx(0.8, abs=0.08)
    assert everywhere.mean_alpha == pytest.approx(everywhere.llm_accuracy, abs=0.1)
    assert report.alpha_collapse is None
    assert set(report.gate_weights) == {"short_history", "long_tail", "entropy", "bias"}


def test_a_collapsed_paper_gate_is_named_in_log_and_report(caplog):
    gate = GateConfig(mode="paper", initial_bias=-4.0)

    _, report = train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1), pairs=pairs(agreement=0.8))

    assert report.alpha_collapse == "closed"
    assert "The gate has collapsed: alpha is below .05" in caplog.text


def test_a_collapsed_gate_fails_where_that_is_wished():
    gate = GateConfig(mode="paper", initial_bias=-4.0, on_collapse="fail")

    with pytest.raises(GateCollapse, match=r"alpha is below .05 on 95% of the pairs \(mode paper\).*; set gate.mode"):
        train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1), pairs=pairs(agreement=0.8))


def test_a_closed_gate_is_sound_where_the_llm_is_no_better_than_a_coin(caplog):
    gate = GateConfig(mode="paper", initial_bias=-4.0, on_collapse="fail")

    _, report = train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1), pairs=pairs(agreement=0.5))

    assert report.alpha_collapse is None
    assert "collapsed" not in caplog.text


def test_a_frozen_gate_at_one_is_no_collapse(caplog):
    _, report = train(gate_config=GateConfig(mode="frozen"), loss_config=LossConfig(llm_weight=0.1), pairs=pairs())

    assert report.alpha_collapse is None
    assert report.gate[0].mean_alpha == 1.0
    assert "collapsed" not in caplog.text


def test_pair_alpha_is_the_gates_on_the_models_own_logits():
    model = ranking.RankingModel(VOCABULARY, MODEL, GateConfig(mode="paper"), LossConfig())
    made = pairs(6)
    model.gate.w.assign([0.0, 0.0, 3.0])
    expected = []
    for prefix in (PREFERRED, OTHER):
        p = 1 / (1 + np.exp(-model(ranking.pair_side(made, prefix)).numpy().astype(np.float64)))
        bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
        expected.append(1 / (1 + np.exp(-3.0 * bits)))

    alpha, _ = pair_alpha(judge(model, model.gate), made)
    np.testing.assert_allclose(alpha, np.mean(expected, axis=0), rtol=1e-4)


def test_cells_count_pairs_calibration_pairs_and_agreement_as_a_plain_loop_does():
    made = {
        features.HISTORY_LENGTH: tf.constant([1, 3, 4, 9, 2]),
        PREFERRED + features.IS_TAIL: tf.constant([1, 0, 0, 0, 0]),
        OTHER + features.IS_TAIL: tf.constant([0, 0, 1, 0, 1]),
        features.CALIBRATION_LABEL: tf.constant([1, NOT_CALIBRATION, 0, 1, 0]),
    }
    cells = gate_cells(np.array([0.2, 0.4, 0.6, 0.8, 1.0]), made, short_history_max=3)

    summary = [(c.short_history, c.tail, c.pairs, c.mean_alpha, c.calibration_pairs, c.llm_accuracy) for c in cells]
    assert summary == [
        (None, None, 5, pytest.approx(0.6), 4, 0.5),
        (True, True, 2, pytest.approx(0.6), 2, 0.5),
        (True, False, 1, pytest.approx(0.4), 0, None),
        (False, True, 1, pytest.approx(0.6), 1, 0.0),
        (False, False, 1, pytest.approx(0.8), 1, 1.0),
    ]


def test_the_report_survives_json_and_tensorboard_gets_the_auc(trained):
    _, report, log_dir = trained

    assert TrainingReport.model_validate(json.loads(report.model_dump_json())) == report
    logged = b"".join(file.read_bytes() for file in log_dir.rglob("events.*"))
    assert b"valid_auc" in logged


def test_soft_labels_are_the_most_likely_logistic_curve_through_the_calibration_pairs():
    made = pairs(agreement=0.7)
    made[features.CALIBRATION_LABEL] = tf.where(
        tf.range(200) % 4 == 0, NOT_CALIBRATION, made[features.CALIBRATION_LABEL]
    )
    scores, chosen = [], []
    for preferred, other, label in zip(
        *(
            made[n].numpy()
            for n in (PREFERRED + features.LLM_SCORE, OTHER + features.LLM_SCORE, features.CALIBRATION_LABEL)
        ),
        strict=True,
    ):
        if label != NOT_CALIBRATION:
            scores += [preferred, other]
            chosen += [label, 1 - label]
    x, y = np.array(scores, float), np.array(chosen, float)

    def negative_log_likelihood(ab: np.ndarray) -> float:
        return float(np.sum(np.logaddexp(0, ab[0] * x + ab[1]) - y * (ab[0] * x + ab[1])))

    a, b = scipy.optimize.minimize(negative_log_likelihood, [0.0, 0.0]).x

    soft = with_soft_labels(made)

    for prefix in (PREFERRED, OTHER):
        raw = made[prefix + features.LLM_SCORE].numpy().astype(float)
        np.testing.assert_allclose(soft[prefix + features.SOFT_LABEL], 1 / (1 + np.exp(-(a * raw + b))), atol=1e-3)


def test_soft_labels_need_calibration_pairs():
    made = pairs() | {features.CALIBRATION_LABEL: tf.fill([200], NOT_CALIBRATION)}
    with pytest.raises(
        UserError, match=r"distillation needs calibration pairs .* raise llm.candidates.calibration_fraction"
    ):
        with_soft_labels(made)


def test_distillation_moves_the_model_towards_the_teacher(trained):
    made = pairs(agreement=0.9)
    alone = trained[0]
    taught, report = train(loss_config=LossConfig(llm_weight=10.0, form="distillation"), pairs=made)
    soft = with_soft_labels(made)

    def distance(model) -> float:
        sides = [ranking.pair_side(soft, prefix) for prefix in (PREFERRED, OTHER)]
        return float(np.mean([np.abs(tf.sigmoid(model(side)) - side[features.SOFT_LABEL]) for side in sides]))

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
    with pytest.raises(UserError, match=r"validation AUC needs rows of both labels"):
        train(valid=one)


def rows_and_pairs(number: int = 400) -> tuple[Callable[[], tf.data.Dataset], dict[str, tf.Tensor]]:
    """Rows that hold the chosen item of each pair's context with the label 1, as a train split does, and the pairs.

    Items are chosen at random: only who has seen the row knows.
    """
    source = np.random.default_rng(3)
    made, history = pairs(number), source.integers(0, 10, (number, 4)).astype(np.int32)
    made[features.HISTORY_ITEM_INDICES] = tf.constant(history)
    rows = []
    for side, prefix in enumerate((PREFERRED, OTHER)):
        columns = ranking.pair_side(made, prefix)
        chosen = made[features.CALIBRATION_LABEL] == 1 - side
        rows.append({name: columns[name] for name in market(1, 0) if name != features.LABEL})
        rows[-1][features.LABEL] = tf.cast(chosen, tf.int32)
    joint = {name: tf.concat([part[name] for part in rows], axis=0) for name in rows[0]}
    return lambda: tf.data.Dataset.from_tensor_slices(joint).shuffle(2 * number, seed=1).batch(32), made


def users(batches: tf.data.Dataset) -> set[int]:
    return {user for batch in batches for user in batch[features.USER_HASH].numpy().tolist()}


FORMS = [("advantage", "pairwise"), ("stacked", "pairwise"), ("stacked", "distillation")]


def pairs_of_a_teacher(parity: int) -> dict[str, tf.Tensor]:
    """Pairs and calibration pairs of an LLM that likes items of this parity; the market's users like the even ones."""
    made = pairs(2000)
    first, second = (made[prefix + features.ITEM_INDEX].numpy() % 2 == parity for prefix in (PREFERRED, OTHER))
    for prefix, liked in ((PREFERRED, first), (OTHER, second)):
        made[prefix + features.LLM_SCORE] = tf.constant(np.where(liked, 0.9, 0.1), tf.float32)
    made[features.CALIBRATION_LABEL] = tf.constant(np.where(first != second, first, NOT_CALIBRATION).astype(np.int32))
    return turned_round(made, tf.constant(second & ~first))


TAUGHT = {
    "gate_config": GateConfig(mode="stacked", signals=("short_history",), held_out_fraction=1.0),
    "loss_config": LossConfig(llm_weight=10.0, form="distillation"),
}


def test_pairs_that_do_harm_leave_the_model_that_there_would_be_without_them(trained, caplog):
    alone, without, _ = trained
    harmed, report = train(pairs=pairs_of_a_teacher(parity=1), **TAUGHT)

    assert report.valid_auc_without_pairs == report.best_valid_auc == pytest.approx(without.best_valid_auc, abs=1e-4)
    assert max(epoch.valid_auc for epoch in report.epochs) < without.best_valid_auc
    assert "The pairs do not help: validation AUC" in caplog.text
    for a, b in zip(harmed.embedding.weights, alone.embedding.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert report.gate[0].pairs == 2000


def test_pairs_that_help_are_kept(caplog):
    few = dataset(64, 1)
    _, report = train(rows=lambda: few, pairs=pairs_of_a_teacher(parity=0), **TAUGHT)

    assert report.best_valid_auc == max(epoch.valid_auc for epoch in report.epochs) > report.valid_auc_without_pairs
    assert "do not help" not in caplog.text


@pytest.mark.parametrize(("number", "weight"), [(400, 10.0), (40, 10.0), (10, 2.5)])
def test_pairs_that_an_epoch_would_repeat_weigh_less(number, weight):
    config = TRAIN.model_copy(update={"batch_size": 100, "pairs_per_batch": 20})  # 1,000 rows: 10 steps, 200 pairs

    lowered = recipe.with_weight_for(LossConfig(llm_weight=10.0), pairs(number), 1000, config)

    assert lowered == LossConfig(llm_weight=weight)


def test_the_order_of_the_rows_does_not_depend_on_a_base_model():
    source = {name: tf.concat([batch[name] for batch in dataset(640, 1)], 0) for name in market(1, 0)}
    shuffled = lambda: tf.data.Dataset.from_tensor_slices(source).shuffle(640, seed=5).batch(64)  # noqa: E731
    gate = GateConfig(mode="stacked", signals=("short_history",), held_out_fraction=0.5)
    _, alone = train(rows=shuffled)
    _, beside = train(
        rows=shuffled, pairs=pairs(), gate_config=gate, loss_config=LossConfig(llm_weight=1.0, form="distillation")
    )

    assert beside.valid_auc_without_pairs == pytest.approx(alone.best_valid_auc, abs=1e-4)


@pytest.mark.parametrize(("mode", "form"), FORMS)
def test_the_base_model_does_not_see_the_held_out_users_and_the_second_sees_all(mode, form, monkeypatch):
    rows, made = rows_and_pairs()
    seen = []

    def spy(of_rows, of_pairs):
        seen.append(users(of_rows))
        return training_batches(of_rows, of_pairs)

    monkeypatch.setattr(recipe, "training_batches", spy)
    gate = GateConfig(mode=mode, signals=("short_history", "long_tail"), held_out_fraction=0.4)
    _, report = train(
        gate_config=gate,
        loss_config=LossConfig(llm_weight=0.1, form=form),
        train_config=TRAIN.model_copy(update={"epochs": 1}),
        rows=rows,
        pairs=made,
    )

    chosen = held_out(made, 0.4)
    held = set(made[features.USER_HASH].numpy()[chosen].tolist())
    assert 100 < len(held) < 220
    assert seen == [users(rows()) - held, users(rows()), users(rows())]
    assert len(report.base_model) == 1
    assert report.base_model_valid_auc == report.base_model[0].valid_auc
    assert sum(cell.calibration_pairs for cell in report.reliability) == chosen.sum()
    assert sum(cell.pairs for cell in report.reliability) == 400


def a_row_later(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The rows of the same users after the next one: other histories, and a choice that tells the earlier one."""
    history = row[features.HISTORY_ITEM_INDICES]
    newest = tf.ones_like(history[:, :1])
    return row | {features.HISTORY_ITEM_INDICES: tf.concat([newest, history[:, :-1]], axis=1)}


def right_on_held_out(gate: GateConfig, rows, made) -> float:
    _, report = train(
        model_config=MODEL.model_copy(update={"embedding_dim": 8, "mlp": (64,)}),
        gate_config=gate,
        loss_config=LossConfig(llm_weight=0.1, form="distillation"),
        train_config=TRAIN.model_copy(update={"epochs": 8, "patience": 8, "learning_rate": 0.05}),
        rows=rows,
        valid=rows().take(5),  # keeps the epoch that fits the rows best
        pairs=made,
    )
    return sum(
        cell.model_right.fraction * cell.calibration_pairs for cell in report.reliability if cell.model_right
    ) / sum(cell.calibration_pairs for cell in report.reliability)


def test_a_base_model_that_saw_a_later_row_of_a_held_out_user_would_look_better_than_it_is(monkeypatch):
    rows, made = rows_and_pairs(150)
    gate = GateConfig(mode="stacked", signals=("short_history",), held_out_fraction=0.5)
    later = lambda: rows().map(a_row_later)  # noqa: E731
    honest = right_on_held_out(gate, later, made)
    monkeypatch.setattr(recipe, "without_users", lambda of, _: of)
    leaky = right_on_held_out(gate, later, made)

    assert honest < 0.68  # the choices are random
    assert leaky > honest + 0.15


def test_a_gate_that_is_fitted_beforehand_and_an_llm_that_knows_make_a_sound_report():
    made = pairs(1200)
    right = made[PREFERRED + features.ITEM_INDEX].numpy() % 2 == 0  # the market's rule
    wrong = made[OTHER + features.ITEM_INDEX].numpy() % 2 == 0
    made[features.CALIBRATION_LABEL] = tf.constant(np.where(right != wrong, right, NOT_CALIBRATION).astype(np.int32))
    gate = GateConfig(mode="stacked", signals=("short_history",), held_out_fraction=1.0)
    _, report = train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1, form="distillation"), pairs=made)

    assert report.alpha_collapse is None
    assert report.alpha_by_epoch == []
    assert report.gate[0].llm_accuracy == pytest.approx(0.5, abs=0.07)
    model_right = [cell.model_right.fraction for cell in report.reliability if cell.calibration_pairs > 50]
    assert min(model_right) > 0.8
    assert report.gate[0].mean_alpha < 0.1  # the model knows, the LLM does not
    assert report.calibration_error < 0.1
    assert TrainingReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(("mode", "form"), FORMS)
def test_gates_that_are_fitted_beforehand_need_calibration_pairs(mode, form):
    made = pairs() | {features.CALIBRATION_LABEL: tf.fill([200], NOT_CALIBRATION)}
    gate = GateConfig(mode=mode, signals=("long_tail",))
    with pytest.raises(UserError, match=r"need calibration pairs, got none among 200 pairs"):
        train(gate_config=gate, loss_config=LossConfig(llm_weight=0.1, form=form), pairs=made)


def test_dropout_variance_is_a_signal_of_the_base_model():
    gate = GateConfig(mode="stacked", signals=("dropout_variance",), dropout_samples=3)
    _, report = train(
        model_config=MODEL.model_copy(update={"dropout": 0.4}),
        gate_config=gate,
        loss_config=LossConfig(llm_weight=0.1, form="distillation"),
        train_config=TRAIN.model_copy(update={"epochs": 1}),
        pairs=pairs(),
    )

    assert report.gate_weights["base:dropout_variance"] != 0.0


def test_alpha_by_epoch_shows_the_paper_gate_closing():
    gate = GateConfig(mode="paper")
    train_config = TRAIN.model_copy(update={"patience": 3, "learning_rate": 0.02})
    _, report = train(gate_config=gate, loss_config=LossConfig(), train_config=train_config, pairs=pairs())

    medians = [quantiles["0.5"] for quantiles in report.alpha_by_epoch]
    assert len(medians) == len(report.epochs) == 3
    assert np.all(np.diff(medians) < 0)


def rows_by_category(number: int, seed: int) -> dict[str, np.ndarray]:
    """Items 1 to 4 have category 1 and are liked by 80%, items 5 to 8 category 2 and by 20%; item 9 has category 1, and
    its rows are negatives."""
    source = np.random.default_rng(seed)
    made = market(number, seed)
    item = source.integers(1, 10, number)
    category = np.where((item < 5) | (item == 9), 1, 2)
    liked = source.uniform(size=number) < np.where(category == 1, 0.8, 0.2)
    changes = {
        features.ITEM_INDEX: item,
        features.ITEM_CATEGORY_INDICES: np.stack([category, np.zeros(number)], axis=1),
        features.LABEL: liked & (item != 9),
    }
    return made | {name: values.astype(np.int32) for name, values in changes.items()}


def test_a_new_item_ranks_by_its_category_and_one_with_negatives_alone_counts_as_new():
    def batches(number: int, seed: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(rows_by_category(number, seed)).batch(64)

    new_items = np.arange(VOCABULARY.items + 2) == 9
    config = TRAIN.model_copy(update={"item_dropout": 0.3, "epochs": 8, "patience": 8})
    model, _ = train(rows=lambda: batches(1280, 1), valid=batches(640, 2), train_config=config, new_items=new_items)

    rows = market(64, 5)

    def score(item: int, category: int) -> float:
        candidate = {
            features.ITEM_INDEX: np.full(64, item, np.int32),
            features.ITEM_CATEGORY_INDICES: np.full((64, 2), [category, 0], np.int32),
        }
        return float(tf.reduce_mean(model(rows | candidate)))

    known = {
        category: [score(item, category) for item in items] for category, items in ((1, range(1, 5)), (2, range(5, 9)))
    }
    new = {category: score(VOCABULARY.items + 1, category) for category in (1, 2)}
    assert max(known[2]) < new[1] < max(known[1])
    assert new[2] < min(known[1])
    assert score(9, 1) == pytest.approx(new[1], abs=1e-6)


def test_a_new_item_that_a_pair_prefers_keeps_its_id():
    made = pairs(8)
    made[PREFERRED + features.ITEM_INDEX] = tf.fill([8], 9)
    new_items = np.isin(np.arange(VOCABULARY.items + 2), (7, 9))
    few = dataset(64, 1)

    model, _ = train(
        rows=lambda: few,
        pairs=made,
        new_items=new_items,
        loss_config=LossConfig(),
        train_config=TRAIN.model_copy(update={"epochs": 1}),
    )

    (mask,) = [variable for variable in model.embedding.variables if "new_items" in variable.name]
    assert np.flatnonzero(mask.numpy()).tolist() == [7]


def test_a_warm_start_is_that_of_the_models_that_are_compared_and_never_of_the_base_model(monkeypatch):
    """Each model is marked where it is initialized; what is fitted, and with which mark, is noted."""
    fitted = []
    original = recipe.fit

    def noting(model, *arguments, **keywords):
        fitted.append((model.llm_weight > 0, getattr(model, "is_warm", False)))
        return original(model, *arguments, **keywords)

    monkeypatch.setattr(recipe, "fit", noting)
    train(
        train_config=TRAIN.model_copy(update={"epochs": 1}),
        pairs=pairs_of_a_teacher(parity=0),
        initialize=lambda model: setattr(model, "is_warm", True),
        **TAUGHT,
    )

    base_model, with_pairs, without = (False, False), (True, True), (False, True)
    assert fitted == [base_model, with_pairs, without]


@pytest.mark.parametrize("mode", ["supervised", "stacked"])
def test_each_model_is_traced_once(mode, monkeypatch):
    """TensorFlow traces a step that makes variables twice."""
    traced = []
    step = ranking.RankingModel.train_step

    def counted(self, inputs):
        traced.append(self)
        return step(self, inputs)

    monkeypatch.setattr(ranking.RankingModel, "train_step", counted)
    train(gate_config=GateConfig(mode=mode), loss_config=LossConfig(llm_weight=0.5), pairs=pairs(agreement=0.8))
    assert len(traced) == len({id(model) for model in traced}) > 0
