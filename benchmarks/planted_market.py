"""Whether the gate finds where an LLM is right, in made-up markets where that is known.

    python -m benchmarks.planted_market [--seeds 1 2 3 ...] [--plants useless ...] [--train N] [--valid N] [--test N]

The market is training_market.py's: users choose by taste and popularity. The LLM reads the history, and knows the
taste vector of every item. For some items of some contexts, its score is how near the item is to those of the history;
for the others, the score is random with the same distribution:

    right_in_short_history_and_tail  knows it where the history is short or the item is a long-tail item
    right_elsewhere                  knows it where neither is so
    useless                          never
    right_everywhere                 always

One cell is one plant of one seed: market, users, initial weights and LLM are drawn anew. results/planted_market.jsonl
gets a line for each; cells that it already has are skipped. A line holds for each arm:

    auc             area under the ROC curve, on test rows of other users
    alarm           models.reliability.collapse
    alpha           mean over the pairs of a region, and `planted` the fraction of items there that the LLM knows
    llm_right       fraction of the calibration pairs of the region where the LLM is right
    order_matches   whether, of any two regions whose planted fractions differ by more than .5, the one with the larger
                    fraction has the higher alpha; a pair with one long-tail item is in the long-tail region, so a
                    fraction may lie between 0 and 1

The last lines printed give, by plant, number of train users and arm, the paired difference in AUC from the arm none
with its 95% interval over the seeds, and how often the order matched and the alarm rang.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Mapping
from typing import Any

import sllmr.models  # noqa: F401  its import sets TF_USE_LEGACY_KERAS

import numpy as np  # isort: skip
import scipy.stats
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from benchmarks import training_market
from benchmarks.measurement import Results, versions
from benchmarks.training_market import Columns, Contexts, Market
from sllmr.models import features, inputs
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, SignalName, TrainConfig
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.ranking import scorer
from sllmr.models.training.loop import predict
from sllmr.models.training.recipe import train

PLANTS = ("right_in_short_history_and_tail", "right_elsewhere", "useless", "right_everywhere")
SIGNALS: tuple[SignalName, ...] = ("short_history", "long_tail")
ARMS: Mapping[str, tuple[GateConfig, LossConfig]] = {
    "none": (GateConfig(), LossConfig(llm_weight=0.0)),
    "paper": (GateConfig(mode="paper", signals=(*SIGNALS, "entropy")), LossConfig(llm_weight=0.1)),
    "supervised": (GateConfig(mode="supervised", signals=SIGNALS), LossConfig(llm_weight=0.1)),
    "stacked": (GateConfig(mode="stacked", signals=SIGNALS), LossConfig(llm_weight=1.0, form="distillation")),
}
SHORT_HISTORY_MAX = GateConfig().short_history_max
TAIL_MAX_COUNT = 1
SHARPNESS = 2.0
CALIBRATION_FRACTION = 0.35
MODEL = ModelConfig(embedding_dim=8, mlp=(32,), dropout=0.0)
TRAIN = TrainConfig(batch_size=256, pairs_per_batch=64, epochs=12, patience=2, learning_rate=2e-3)
RESULTS = pathlib.Path(__file__).parent / "results" / "planted_market.jsonl"

_TRAIN_ROWS, _VALID_ROWS, _TEST_ROWS, _LLM = range(1, 5)  # seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How many users, each with one context of two rows."""

    train: int = 12_000
    valid: int = 4_000
    test: int = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted:
    """A market, its rows, and an LLM's pairs of the train users.

    Attributes:
        vocabulary: of the market.
        train, valid, test: transformed rows of different users, [rows] + shape by name.
        pairs: as models.inputs.load_pairs gives them.
        knows: bool [pairs, 2], whether the LLM's score follows the history, of the preferred and of the other item.
    """

    vocabulary: features.VocabularySizes
    train: Columns
    valid: Columns
    test: Columns
    pairs: dict[str, tf.Tensor]
    knows: np.ndarray


def make_planted(plant: str, seed: int, size: Size) -> Planted:
    """A market of one of PLANTS."""
    market = training_market.make_market(seed)
    seeds = [100 * seed + part for part in (_TRAIN_ROWS, _VALID_ROWS, _TEST_ROWS)]
    users = training_market.make_contexts(market, size.train, seeds[0])
    counts = np.bincount(users.candidates[:, 0], minlength=len(market.popularity)).astype(np.int32)
    by_count = {features.ITEM_TRAIN_COUNT: counts, features.IS_TAIL: (counts <= TAIL_MAX_COUNT).astype(np.int32)}
    market = dataclasses.replace(market, item_columns={**market.item_columns, **by_count})
    numbers = (size.train, size.valid, size.test)
    train, valid, test = (_rows(market, *of) for of in zip(numbers, seeds, strict=True))
    pairs, knows = _make_pairs(market, users, plant, np.random.default_rng([seed, _LLM]))
    return Planted(vocabulary=market.vocabulary(), train=train, valid=valid, test=test, pairs=pairs, knows=knows)


def _rows(market: Market, users: int, seed: int) -> Columns:
    """Rows of the target item and one negative per user: so positives have the same odds as in calibration pairs."""
    rows = training_market.make_rows(market, users * training_market.ROWS_A_CONTEXT, seed)
    kept = np.arange(len(rows[features.LABEL])) % training_market.ROWS_A_CONTEXT < 2
    return {name: values[kept] for name, values in rows.items()}


def _make_pairs(
    market: Market, users: Contexts, plant: str, rng: np.random.Generator
) -> tuple[dict[str, tf.Tensor], Any]:
    """Two pairs of each user, each of a random item and another one: in calibration pairs the target item; otherwise an
    item like the latest of the history in the first pair, and a popular item in the second."""
    number = len(users.length)
    has_target = rng.random(number) < CALIBRATION_FRACTION
    others = rng.integers(1, training_market.ITEMS + 1, size=(number, 2))
    first = np.stack([_similar(market, users, rng), rng.choice(len(market.popularity), number, p=market.popularity)], 1)
    first = np.where(has_target[:, np.newaxis], users.candidates[:, :1], first)
    items = np.stack([first.ravel(), others.ravel()], axis=1)
    context = np.repeat(np.arange(number), 2)

    read = market.vectors[users.history].sum(axis=1)
    read *= SHARPNESS / np.linalg.norm(read, axis=1, keepdims=True)
    affinity = np.einsum("pik,pk->pi", market.vectors[items], read[context])
    is_short = (users.length[context] <= SHORT_HISTORY_MAX)[:, np.newaxis]
    is_tail = market.item_columns[features.IS_TAIL][items] == 1
    knows = {
        "right_in_short_history_and_tail": is_short | is_tail,
        "right_elsewhere": ~(is_short | is_tail),
        "useless": np.zeros(items.shape, bool),
        "right_everywhere": np.ones(items.shape, bool),
    }[plant]
    scores = 1 / (1 + np.exp(-np.where(knows, affinity, rng.permutation(affinity.ravel()).reshape(items.shape))))

    order = np.argsort(-scores, axis=1)
    items, scores, knows = (np.take_along_axis(values, order, axis=1) for values in (items, scores, knows))
    columns = {n: v[context] for n, v in training_market.context_columns(market, users).items()}
    for side, prefix in enumerate((PREFERRED, OTHER)):
        columns |= {prefix + name: values[items[:, side]] for name, values in market.item_columns.items()}
        columns[prefix + features.LLM_SCORE] = scores[:, side].astype(np.float32)
        columns[prefix + features.LLM_DISAGREEMENT] = np.zeros(len(items), np.float32)
        columns[prefix + features.TEXT_WORDS] = np.ones(len(items), np.int32)
    label = np.where(has_target[context], order[:, 0] == 0, NOT_CALIBRATION)
    columns[features.CALIBRATION_LABEL] = label.astype(np.int32)
    kept = items[:, 0] != items[:, 1]
    return {name: tf.constant(values[kept]) for name, values in columns.items()}, knows[kept]


def _similar(market: Market, users: Contexts, rng: np.random.Generator) -> np.ndarray:
    """For each user, an item of the same leaf category as the latest item of the history."""
    leaf = market.item_columns[features.ITEM_CATEGORY_INDICES][:, 0]
    by_leaf = np.argsort(leaf[1:], kind="stable") + 1
    wanted = leaf[users.history[:, 0]]
    starts, ends = np.searchsorted(leaf[by_leaf], wanted), np.searchsorted(leaf[by_leaf], wanted, side="right")
    return by_leaf[rng.integers(starts, ends)]


def run_arm(planted: Planted, arm: str, seed: int) -> dict[str, Any]:
    """Trains one of ARMS; returns the figures that the module's docstring lists."""
    gate_config, loss_config = ARMS[arm]
    train_config = TRAIN.model_copy(update={"seed": seed})
    started = time.monotonic()
    model, report = train(
        vocabulary=planted.vocabulary,
        model_config=MODEL,
        gate_config=gate_config,
        loss_config=loss_config,
        train_config=train_config,
        rows=lambda: inputs.row_batches(planted.train, batch_size=TRAIN.batch_size, seed=seed),
        valid=inputs.row_batches(planted.valid, batch_size=4096),
        pairs=planted.pairs if loss_config.llm_weight else None,
    )
    labels, logits = predict(scorer(model), inputs.row_batches(planted.test, batch_size=4096))
    measured: dict[str, Any] = {"auc": float(roc_auc_score(labels, logits)), "epochs": len(report.epochs)}
    if report.gate:
        regions = _regions(planted)
        cells = {
            f"{'short' if c.short_history else 'long'}_history_{'tail' if c.tail else 'head'}": c
            for c in report.gate[1:]
        }
        alpha = {name: cell.mean_alpha for name, cell in cells.items() if cell.mean_alpha is not None}
        measured |= {
            "alarm": report.alpha_collapse,
            "alpha": alpha,
            "planted": regions,
            "llm_right": {name: cell.llm_accuracy for name, cell in cells.items()},
            "order_matches": order_matches(alpha, regions),
            "gate_weights": report.gate_weights,
            "calibration_error": report.calibration_error,
        }
    return measured | {"seconds": round(time.monotonic() - started, 1)}


def _regions(planted: Planted) -> dict[str, float]:
    """Fraction of the items that the LLM knows, by the regions of models.training.gate_report.gate_cells."""
    pairs = planted.pairs
    is_short = np.asarray(pairs[features.HISTORY_LENGTH]) <= SHORT_HISTORY_MAX
    is_tail = (np.asarray(pairs[PREFERRED + features.IS_TAIL]) + np.asarray(pairs[OTHER + features.IS_TAIL])) > 0
    return {
        f"{history}_{popularity}": float(planted.knows[(is_short == short) & (is_tail == tail)].mean())
        for history, short in (("short_history", True), ("long_history", False))
        for popularity, tail in (("tail", True), ("head", False))
    }


def order_matches(alpha: Mapping[str, float], planted: Mapping[str, float]) -> bool:
    """Whether alpha is higher wherever the planted fraction is higher by more than half."""
    return all(alpha[a] > alpha[b] for a in alpha for b in alpha if planted[a] - planted[b] > 0.5)


def paired_difference(of: list[float], base: list[float]) -> tuple[float, float]:
    """Mean of `of` - `base`, seed by seed, and half the width of its 95% interval (Student's t)."""
    differences = [a - b for a, b in zip(of, base, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences), float(scipy.stats.t.ppf(0.975, len(differences) - 1)) * error


def main() -> None:
    """Measures the cells that the results lack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--plants", nargs="+", choices=PLANTS, default=list(PLANTS))
    for field in dataclasses.fields(Size):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, metavar="N", help="users")
    arguments = parser.parse_args()
    results = Results(RESULTS)
    size = Size(train=arguments.train, valid=arguments.valid, test=arguments.test)
    for seed in arguments.seeds:
        none: dict[str, Any] | None = None  # the same in every plant
        for plant in arguments.plants:
            cell = {"plant": plant, "seed": seed, "size": dataclasses.asdict(size)}
            if not results.holds(cell):
                planted = make_planted(plant, seed, size)
                none = none or run_arm(planted, "none", seed)
                arms = {"none": none} | {arm: run_arm(planted, arm, seed) for arm in ARMS if arm != "none"}
                results.append(cell, {"arms": arms, "versions": versions("tensorflow", "scikit-learn")})
    for line in summary(RESULTS):
        print(line)


def summary(file: pathlib.Path) -> list[str]:
    """Of each plant, number of train users and arm in a file of results: seeds, difference in AUC from the arm none,
    matches and alarms."""
    markets: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines():
        result = json.loads(line)
        cell = result["cell"]
        markets.setdefault((cell["plant"], cell["size"]["train"]), []).append(result["arms"])
    lines = []
    for (plant, users), runs in markets.items():
        none = [run["none"]["auc"] for run in runs]
        for arm in [arm for arm in ARMS if arm != "none"]:
            of_arm = [run[arm] for run in runs]
            matches = sum(run["order_matches"] for run in of_arm)
            alarms = sum(run["alarm"] is not None for run in of_arm)
            line = f"{plant}, {users} users, {arm}: order matches in {matches} of {len(runs)}, {alarms} alarms"
            if len(runs) > 1:
                mean, half = paired_difference([run["auc"] for run in of_arm], none)
                line += f", AUC {mean:+.4f} +- {half:.4f}"
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
