"""Scores of one context -> ordered pairs. Pure Python."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from sllmr.components.catalog import ItemFeatures
from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.scores import NEGATIVE, ScoreRecord
from sllmr.models import features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """The LLM puts `preferred_item_id` above `other_item_id`, scores in [0, 1].

    In a pair of the target item and a sampled negative, `calibration_label` is 1 if the target item is the preferred
    one, else 0. In all other pairs it is features.NOT_CALIBRATION.
    """

    preferred_item_id: str
    other_item_id: str
    preferred_llm_score: float
    other_llm_score: float
    calibration_label: int
    preferred_llm_disagreement: float = 0.0
    other_llm_disagreement: float = 0.0

    @property
    def llm_margin(self) -> float:
        """In (0, 1]."""
        return self.preferred_llm_score - self.other_llm_score


CANDIDATE_PAIRS = "candidate_pairs"
PAIRS = "pairs"
CALIBRATION_PAIRS = "calibration_pairs"
TIED = "tied"
INCONSISTENT = "inconsistent"
NARROW = "narrow"
BEYOND_CAP = "beyond_cap"
DROPPED = (TIED, INCONSISTENT, NARROW, BEYOND_CAP)
"""Why two candidates make no pair: their scores are equal; the two responses of an audited context order them
differently, and pairs.drop_inconsistent is set; their gap is below min_margin; they are not among the max_per_context
pairs that pairs.selection takes. CANDIDATE_PAIRS = PAIRS + these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The pairs of one context, and how many candidate pairs had which outcome, by the names above."""

    pairs: list[Pair]
    counts: Counter[str]


def select_pairs(record: ScoreRecord, config: PairConfig) -> Selection:
    """The pairs of one context, widest gap first.

    Only items with a valid score take part. Pairs of the target item and a sampled negative are kept without a limit:
    the gate is fitted on their labels, and selecting them by gap would bias the fit. Of the other pairs at most
    `max_per_context` are kept. With `selection` widest, these are the pairs with the largest gap. With cover, each item
    that is in no labeled pair makes one pair: the best item with the first one of the lower half, and so on. Ties and
    gaps below `min_margin` never make a pair; if every gap is below it, the widest one is kept ("at least one if
    possible").

    Source: arXiv 2512.21526, pair construction (K~ pairs with the largest score gap within one user), for widest.
    """
    counts: Counter[str] = Counter()
    pairs = []
    for a, b in itertools.combinations(range(len(record.item_ids)), 2):
        counts[CANDIDATE_PAIRS] += 1
        if record.llm_scores[a] == record.llm_scores[b]:
            counts[TIED] += 1
        elif config.drop_inconsistent and _is_inconsistent(record, a, b):
            counts[INCONSISTENT] += 1
        else:
            pairs.append(_pair(record, *((a, b) if record.llm_scores[a] > record.llm_scores[b] else (b, a))))
    pairs.sort(key=lambda pair: (-pair.llm_margin, pair.preferred_item_id, pair.other_item_id))
    wide = [pair for pair in pairs if pair.llm_margin >= config.min_margin] or pairs[:1]
    unlabeled = [pair for pair in wide if pair.calibration_label == features.NOT_CALIBRATION]
    if config.selection == "cover":
        labeled = (pair for pair in wide if pair.calibration_label != features.NOT_CALIBRATION)
        unlabeled = _covering(record, unlabeled, {i for p in labeled for i in (p.preferred_item_id, p.other_item_id)})
    kept = set(unlabeled[: config.max_per_context])
    selected = [pair for pair in wide if pair in kept or pair.calibration_label != features.NOT_CALIBRATION]
    counts[NARROW] = len(pairs) - len(wide)
    counts[BEYOND_CAP] = len(wide) - len(selected)
    counts[PAIRS] = len(selected)
    counts[CALIBRATION_PAIRS] = len(selected) - len(kept)
    return Selection(pairs=selected, counts=counts)


def _covering(record: ScoreRecord, pairs: list[Pair], without: Collection[str]) -> list[Pair]:
    """Those of `pairs` that hold each item not in `without` once: the n-th best with the n-th of the lower half."""
    scores = dict(zip(record.item_ids, record.llm_scores, strict=True))
    items = sorted(scores.keys() - without, key=lambda item_id: (-scores[item_id], item_id))
    half = (len(items) + 1) // 2
    matched = set(zip(items, items[half:], strict=False))
    return [pair for pair in pairs if (pair.preferred_item_id, pair.other_item_id) in matched]


def _is_inconsistent(record: ScoreRecord, a: int, b: int) -> bool:
    """Whether the two responses of an audited context put the candidates in opposite order, without a tie."""
    if not record.is_audited:
        return False
    first = record.first_llm_scores[a] - record.first_llm_scores[b]
    second = record.second_llm_scores[a] - record.second_llm_scores[b]
    return (first > 0 > second) or (first < 0 < second)


def _pair(record: ScoreRecord, preferred: int, other: int) -> Pair:
    chosen = record.target_item_id
    label = features.NOT_CALIBRATION
    # The other candidates were selected because they are popular, rare or similar. A label of their pairs with the
    # target item would say more about that selection than about the LLM.
    if record.item_ids[preferred] == chosen and record.roles[other] == NEGATIVE:
        label = 1
    elif record.item_ids[other] == chosen and record.roles[preferred] == NEGATIVE:
        label = 0
    return Pair(
        preferred_item_id=record.item_ids[preferred],
        other_item_id=record.item_ids[other],
        preferred_llm_score=record.llm_scores[preferred],
        other_llm_score=record.llm_scores[other],
        calibration_label=label,
        preferred_llm_disagreement=_disagreement(record, preferred),
        other_llm_disagreement=_disagreement(record, other),
    )


def _disagreement(record: ScoreRecord, item: int) -> float:
    """How far the two responses of an audited context lie apart, in [0, 1]; 0 without an audit."""
    return abs(record.first_llm_scores[item] - record.second_llm_scores[item]) if record.is_audited else 0.0


def pair_values(
    record: ScoreRecord, pair: Pair, catalog: ItemFeatures, context: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The values of `models.features.pair_features` for one pair.

    Args:
        record: with the user's id.
        pair: of its candidates.
        catalog: all items, as they were at the time of the row.
        context: see transforms.context_values; may be left out without declared features.

    Raises:
        KeyError: the record names an item that the catalog does not hold.
    """
    context = context or {}
    at = context.get(features.TIMESTAMP)
    values = {
        **context,
        features.USER_ID: record.user_id,
        features.HISTORY_LENGTH: record.history_length,
        features.CALIBRATION_LABEL: pair.calibration_label,
        **catalog.history(record.history_item_ids, at),
    }
    for prefix, item_id, llm_score, disagreement in (
        (features.PREFERRED, pair.preferred_item_id, pair.preferred_llm_score, pair.preferred_llm_disagreement),
        (features.OTHER, pair.other_item_id, pair.other_llm_score, pair.other_llm_disagreement),
    ):
        side = {
            **catalog.item(item_id, at),
            features.LLM_SCORE: llm_score,
            features.LLM_DISAGREEMENT: disagreement,
            features.TEXT_WORDS: catalog.words(item_id),
        }
        values |= {prefix + name: value for name, value in side.items()}
    return values
