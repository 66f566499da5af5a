"""The verdict on an LLM, and the choice between the two models, from their scores on the same rows."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from sllmr.models.clustered_auc import AucComparison, compare_auc

OVERALL = "overall"
FILE_NAME = "comparison.json"
"""In the comparison artifact: a Comparison."""

_LARGEST_FACTOR = 1000
"""A difference that would need more than this many times the users is called zero."""

Answer = Literal["helps", "hurts", "not_distinguishable"]


class ScoredRows(NamedTuple):
    """Rows of one split with the logits of both models.

    Attributes:
        users: string [rows].
        labels: int [rows], 0 or 1.
        with_llm: float [rows], logits of the model trained with pairs.
        without_llm: float [rows], logits of the same model trained without pairs.
        slices: bool [rows] by slice name; holds OVERALL.
    """

    users: npt.NDArray
    labels: npt.NDArray
    with_llm: npt.NDArray
    without_llm: npt.NDArray
    slices: Mapping[str, npt.NDArray]


class SliceVerdict(BaseModel):
    """One slice: both models on the same test rows.

    Attributes:
        difference: AUC with the LLM minus AUC without; None if the slice does not hold both labels.
        lower, upper: 95% interval of the difference, paired and clustered by user; None if fewer than two users have a
            positive or a negative.
        with_llm, without_llm: exact AUC of each model; None as `difference`.
        users: distinct users of the slice's rows.
        examples: rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    difference: float | None
    lower: float | None
    upper: float | None
    with_llm: float | None
    without_llm: float | None
    users: int
    examples: int


class Choice(BaseModel):
    """Which of the two models the Evaluator gets, chosen by the validation rows alone.

    Attributes:
        with_llm: whether it is the one trained with pairs.
        difference: validation AUC with the LLM minus without.
        standard_error: of the difference, paired and clustered by user; None if the rows have too few users.
        reason: one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    with_llm: bool
    difference: float
    standard_error: float | None
    reason: str


class Effect(BaseModel):
    """The effect of the preference pairs of one scorer on the ranking model.

    Attributes:
        answer: from the overall slice: `helps` if its interval is above 0, `hurts` if below, else
            `not_distinguishable`.
        users_needed: number of test users at which the interval of the observed overall difference would exclude 0;
            None unless the answer is `not_distinguishable` and the difference is not practically 0.
        slices: by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: Answer
    users_needed: int | None
    slices: dict[str, SliceVerdict]


class Comparison(Effect):
    """What LlmComparison found: the effect, and the choice that follows from the validation rows.

    Attributes:
        schema_version: of this layout.
        choice: which model is pushed if the Evaluator blesses it.
    """

    schema_version: Literal[1] = 1
    choice: Choice


class Verdict(Comparison):
    """The comparison, and what the LLM cost.

    Attributes:
        cost_usd: of all responses behind the score table, earlier runs included; None if no price is known.
        seconds: wall time of scoring and of the training with pairs.
    """

    cost_usd: float | None
    seconds: float

    def sentence(self) -> str:
        """The answer with the difference, its interval, the cost and the choice, in one paragraph."""
        answer = _sentence(self, "the LLM", "the LLM's effect", self.cost_usd, self.seconds)
        return f"{answer} {_capitalized(self.choice.reason)}."


class VectorsVerdict(Effect):
    """The effect of pairs that are scored by item vectors; the model trained with them is not pushed.

    Attributes:
        seconds: wall time of scoring and of the training with these pairs.
    """

    seconds: float

    def sentence(self) -> str:
        """The answer with the difference and its interval, in one paragraph."""
        scorer = "scoring by item vectors"
        answer = _sentence(self, scorer, f"the effect of {scorer}", 0.0, self.seconds)
        return f"{answer} That model is not pushed; with llm.strategy: embedding it is the one that is compared."


def _sentence(found: Effect, scorer: str, effect: str, cost_usd: float | None, seconds: float) -> str:
    overall = found.slices[OVERALL]
    counts = f"{overall.users:,} test users, {overall.examples:,} rows"
    cost = "an unknown price" if cost_usd is None else f"${cost_usd:.4f}"
    price = f"It cost {cost} and {seconds / 60:.1f} minutes."
    if overall.difference is None or overall.lower is None or overall.upper is None:
        return f"Whether {scorer} helps is not measurable on {counts}. {price}"
    if found.answer == "not_distinguishable":
        need = f" (would need about {found.users_needed:,} users)" if found.users_needed is not None else ""
        lead = f"{_capitalized(effect)} is not distinguishable on this much test data{need}"
    else:
        lead = f"{_capitalized(scorer)} {found.answer}"
    return (
        f"{lead}: AUC {overall.with_llm:.4f} with it and {overall.without_llm:.4f} without, difference "
        f"{overall.difference:+.4f} (95% interval {overall.lower:+.4f} to {overall.upper:+.4f}; {counts}). {price}"
    )


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def compare(valid: ScoredRows, test: ScoredRows) -> Comparison:
    """Chooses a model by the validation rows and reports both on the test rows; the choice never sees test rows."""
    slices = {name: _slice_verdict(test, inside) for name, inside in test.slices.items()}
    overall = slices[OVERALL]
    answer = _answer(overall)
    return Comparison(
        answer=answer,
        users_needed=_users_needed(overall) if answer == "not_distinguishable" else None,
        slices=slices,
        choice=choose(valid),
    )


def choose(valid: ScoredRows) -> Choice:
    """The model with the LLM if it is better by more than one paired standard error on the validation rows.

    Raises:
        ValueError: the validation rows hold one label only.
    """
    found = _compared(valid, valid.slices[OVERALL])
    if found.difference is None:
        raise ValueError("the choice needs validation rows of both labels, got one; check the split of the data")
    # Without a standard error nothing shows a gain, so the model without the LLM is taken.
    is_better = found.standard_error is not None and found.difference > found.standard_error
    error = "not known" if found.standard_error is None else f"{found.standard_error:.4f}"
    return Choice(
        with_llm=is_better,
        difference=found.difference,
        standard_error=found.standard_error,
        reason=f"the model {'with' if is_better else 'without'} the LLM is taken: validation AUC differs by "
        f"{found.difference:+.4f}, paired standard error {error}, and the LLM must gain more than one",
    )


def _compared(rows: ScoredRows, inside: npt.NDArray) -> AucComparison:
    return compare_auc(rows.users[inside], rows.labels[inside], rows.with_llm[inside], rows.without_llm[inside])


def _slice_verdict(rows: ScoredRows, inside: npt.NDArray) -> SliceVerdict:
    found = _compared(rows, inside)
    return SliceVerdict(
        difference=found.difference,
        lower=found.lower,
        upper=found.upper,
        with_llm=found.auc_a,
        without_llm=found.auc_b,
        users=found.users,
        examples=found.examples,
    )


def _answer(overall: SliceVerdict) -> Answer:
    if overall.lower is not None and overall.lower > 0:
        return "helps"
    if overall.upper is not None and overall.upper < 0:
        return "hurts"
    return "not_distinguishable"


def _users_needed(overall: SliceVerdict) -> int | None:
    """Users at which the interval would exclude 0 at the same difference: its width falls with their square root."""
    if overall.difference is None or overall.upper is None or not overall.difference:
        return None
    half_width = overall.upper - overall.difference
    factor = (half_width / abs(overall.difference)) ** 2
    return math.ceil(overall.users * factor) if np.isfinite(factor) and factor <= _LARGEST_FACTOR else None
