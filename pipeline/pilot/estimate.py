"""From the scores of a pilot to a predicted gain and a recommendation: pure functions of arrays.

The rows are the target items (positives) and sampled negatives of calibration contexts of users that the base model has
not seen. models/stacking.py fits two stacks, one with the LLM scores and one without. Both are cross-fitted: the rows
of each fifth of the users are scored by a stack that was fitted on the other users. The difference of their AUCs is
what the LLM adds. Compared with the base model alone, a useless LLM would also be credited with what the signals add.

How much of it a served model keeps is measured on the reference domains (KEPT, KEPT_BY_USERS_REACHED).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sllmr.models.clustered_auc import AucComparison, compare_auc
from sllmr.models.clustered_mean import mean_by_user
from sllmr.models.stacking import fit_calibrated_blend, interactions
from sllmr.pipeline.pilot.result import Advice, Gain, Prediction, SliceReliability

FOLDS = 5
_FOLD_SEED = 20261129
_SLICES = 4
_LEAST_USERS_OF_A_SLICE = 10

KEPT, KEPT_LEAST, KEPT_MOST = 0.60, 0.34, 1.03
"""AUC of `stacked_text` minus `text_features` as a fraction of `late_fusion` minus `none`: over all backbones, domains
and seeds of benchmarks/results/amazon.jsonl, and the least and most of one backbone on one domain. `sllmr ablate
--report --results benchmarks/results/amazon.jsonl --output DIR` shows the AUCs."""

KEPT_BY_USERS_REACHED = ((0.0, 0.0), (0.1, 0.47), (0.5, 1.0), (1.0, 1.0))
"""(fraction of users scored, what it brings as a fraction of the gain with all users): from `stacked_tenth` and
`stacked_half` in the same file, one seed of one backbone on each of two domains; half of the users brought as much as
all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PilotRows:
    """Target items and sampled negatives, in any order.

    Attributes:
        context: int [rows], numbers of contexts; each has one positive.
        user: int [rows].
        positive: int [rows], 1 for the target item.
        base_logit: float [rows], of the base model.
        llm_score: float [rows] in [0, 1].
        signals: float [rows, signals] in [0, 1], those of the gate.
        short_history: bool [rows], of the context.
        tail: bool [rows], of the context's target item.
    """

    context: npt.NDArray
    user: npt.NDArray
    positive: npt.NDArray
    base_logit: npt.NDArray
    llm_score: npt.NDArray
    signals: npt.NDArray
    short_history: npt.NDArray
    tail: npt.NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacked:
    """Logits that say which rows are positive, each from weights that were fitted on the other folds.

    Attributes:
        with_llm: float [rows], of the base model's logits, the signals, and the LLM scores.
        without_llm: float [rows], of the same without the LLM scores.
    """

    with_llm: npt.NDArray
    without_llm: npt.NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanPart:
    """A part of the configured plan; the fields are those of Prediction."""

    coverage: float
    users_reached: float
    cost_usd: float | None
    seconds: float


def stack(rows: PilotRows) -> Stacked:
    """Both stacks, each row scored by a fit without its user. Needs at least two users."""
    users, user = np.unique(rows.user, return_inverse=True)
    folds = min(FOLDS, len(users))
    fold = (np.random.default_rng(_FOLD_SEED).permutation(len(users)) % folds)[user]
    with_llm, without_llm = np.zeros(len(user)), np.zeros(len(user))
    for n in range(folds):
        inside = fold == n
        for scores, result in ((rows.llm_score, with_llm), (np.zeros(len(user)), without_llm)):
            s, y = (_standardized(values, ~inside) for values in (rows.base_logit, scores))
            blend = fit_calibrated_blend(
                rows.signals[~inside], s[~inside], y[~inside], rows.positive[~inside], rows.user[~inside]
            )
            result[inside] = blend.logit(interactions(rows.signals[inside]), s[inside], y[inside])
    return Stacked(with_llm=with_llm, without_llm=without_llm)


def _standardized(values: npt.NDArray, inside: npt.NDArray) -> npt.NDArray:
    """All values on a scale on which those inside have mean 0 and standard deviation 1."""
    return (values - values[inside].mean()) / max(values[inside].std(), 1e-6)


def gain(rows: PilotRows, stacked: Stacked) -> Gain:
    """What the LLM adds, over all rows."""
    everything = np.ones(len(rows.user), bool)
    found = _compared(rows, stacked, everything)
    base = compare_auc(rows.user, rows.positive, rows.base_logit, stacked.without_llm)
    return Gain(
        difference=found.difference,
        lower=found.lower,
        upper=found.upper,
        base_model=base.auc_a,
        without_llm=found.auc_b,
        with_llm=found.auc_a,
    )


def _compared(rows: PilotRows, stacked: Stacked, inside: npt.NDArray, level: float = 0.95) -> AucComparison:
    return compare_auc(
        rows.user[inside], rows.positive[inside], stacked.with_llm[inside], stacked.without_llm[inside], level
    )


def reliability(rows: PilotRows, stacked: Stacked) -> list[SliceReliability]:
    """The four slices of short history x tail."""
    positive, negative = _pairs(rows)
    llm, model = (_right(scores, positive, negative) for scores in (rows.llm_score, rows.base_logit))
    result = []
    for short, tail in itertools.product((True, False), repeat=2):
        of_slice = (rows.short_history == short) & (rows.tail == tail)
        inside = of_slice[positive]
        users, user = np.unique(rows.user[positive][inside], return_inverse=True)
        right, pairs = (np.bincount(user, w).astype(np.float64) for w in (llm[inside], np.ones(len(user))))
        by_llm = mean_by_user(right, pairs)
        found = None
        if len(users) >= _LEAST_USERS_OF_A_SLICE:
            found = _compared(rows, stacked, of_slice, level=1 - 0.05 / _SLICES)
        result.append(
            SliceReliability(
                short_history=short,
                tail=tail,
                pairs=int(inside.sum()),
                llm_right=by_llm.mean,
                lower=None if by_llm.lower is None else max(by_llm.lower, 0.0),
                upper=None if by_llm.upper is None else min(by_llm.upper, 1.0),
                model_right=float(model[inside].mean()) if inside.any() else None,
                gain=found.difference if found else None,
                gain_lower=found.lower if found else None,
                gain_upper=found.upper if found else None,
            )
        )
    return result


def number_of_pairs(rows: PilotRows) -> int:
    """Calibration pairs: of the target item and a negative of one context."""
    return len(_pairs(rows)[0])


def _pairs(rows: PilotRows) -> tuple[npt.NDArray, npt.NDArray]:
    """Row numbers of the two items of each calibration pair, int [pairs] each."""
    targets = {int(rows.context[n]): int(n) for n in np.flatnonzero(rows.positive == 1)}
    negative = np.flatnonzero(rows.positive == 0)
    return np.array([targets[int(rows.context[n])] for n in negative], int), negative


def _right(scores: npt.NDArray, positive: npt.NDArray, negative: npt.NDArray) -> npt.NDArray:
    """1 where the positive has the higher score, 1/2 where both have the same; float [pairs]."""
    return (np.sign(scores[positive] - scores[negative]) + 1) / 2


def predict(found: Gain, parts: Sequence[PlanPart], *, users: int, test_users: int) -> list[Prediction]:
    """For each part of the plan, the gain that a run whose model learns from it would measure on its test rows.

    difference = gain of the stack x KEPT x the fraction of it that so many users bring (KEPT_BY_USERS_REACHED).
    Each side of the interval is the root of the sum of two squared errors: that of the prediction, from the gain's own
    interval and the least or the most that was kept, whichever is wider; and that of the measurement, half of the
    gain's interval x KEPT x sqrt(users / test_users).

    Args:
        found: the gain of the stack.
        parts: of the plan.
        users: number of users whose rows gave the gain.
        test_users: number of users in the run's test rows.

    Raises:
        ValueError: the gain has no interval.
    """
    if found.difference is None or found.lower is None or found.upper is None:
        raise ValueError("a prediction needs a gain with an interval, got none; take rows of more users")
    measurement = KEPT * (found.upper - found.lower) / 2 * math.sqrt(users / test_users)
    predictions = []
    for part in parts:
        brought = float(np.interp(part.users_reached, *np.transpose(KEPT_BY_USERS_REACHED)))
        difference = brought * KEPT * found.difference
        least = brought * min(KEPT_LEAST * found.lower, KEPT_MOST * found.lower)
        most = brought * max(KEPT_LEAST * found.upper, KEPT_MOST * found.upper)
        predictions.append(
            Prediction(
                coverage=part.coverage,
                users_reached=part.users_reached,
                difference=difference,
                lower=difference - math.hypot(difference - least, measurement),
                upper=difference + math.hypot(most - difference, measurement),
                cost_usd=part.cost_usd,
                seconds=part.seconds,
            )
        )
    return predictions


def advise(found: Gain, cells: Sequence[SliceReliability]) -> Advice:
    """Recommends full, partial or no spending.

    A gain counts if its interval lies above 0. Full: there is an overall gain, and every slice either has a gain or may
    bring as much as the whole. Partial: there is an overall gain, but some slice fails this; or a slice has a gain and
    the whole has none. Otherwise do not spend, even if there is a gain that so few users do not show.
    """
    by_gain = sorted((c for c in cells if c.gain is not None and c.gain > 0), key=lambda c: -(c.gain or 0.0))
    certain = [c for c in by_gain if c.gain_lower is not None and c.gain_lower > 0]
    if found.lower is None or found.difference is None or found.lower <= 0:
        if certain:
            return Advice(
                recommendation="partial",
                slices_first=[c.name for c in certain],
                reason="the LLM adds to the base model in some slices, and over all rows no gain is distinguishable",
            )
        return Advice(
            recommendation="do_not_spend",
            slices_first=[],
            reason="on the sampled users the LLM adds nothing distinguishable to the base model; a larger pilot "
            "can detect smaller gains",
        )
    idle = [c.name for c in cells if not _brings_its_part(c, found.difference)]
    if idle:
        return Advice(
            recommendation="partial",
            slices_first=[c.name for c in certain or by_gain if c.name not in idle],
            reason=f"the LLM adds to the base model, but not distinguishably in {' and '.join(idle)}",
        )
    return Advice(
        recommendation="full",
        slices_first=[c.name for c in by_gain],
        reason="the LLM adds to the base model, and no slice brings distinguishably less than the whole",
    )


def _brings_its_part(cell: SliceReliability, overall: float) -> bool:
    """False for a slice whose gain may be 0 and is below the overall gain; True if there are too few users to tell."""
    if cell.gain_lower is None or cell.gain_upper is None:
        return True
    return cell.gain_lower > 0 or cell.gain_upper >= overall
