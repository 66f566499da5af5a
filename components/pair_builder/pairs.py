"""Scores of one context -> ordered pairs. Pure Python."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

from components.catalog import ItemFeatures
from components.pair_builder.config import PairConfig
from components.scores import ScoreRecord
from models import features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """The LLM puts `preferred_item_id` above `other_item_id`, scores in [0, 1].

    `probe_label` is 1 or 0 where the user chose the preferred or the other item, else features.NOT_A_PROBE.
    """

    preferred_item_id: str
    other_item_id: str
    preferred_llm_score: float
    other_llm_score: float
    probe_label: int

    @property
    def llm_margin(self) -> float:
        """In (0, 1]."""
        return self.preferred_llm_score - self.other_llm_score


CANDIDATE_PAIRS = "candidate_pairs"
PAIRS = "pairs"
LABELLED = "labelled_pairs"
TIED = "tied"
INCONSISTENT = "inconsistent"
NARROW = "narrow"
BEYOND_CAP = "beyond_cap"
DROPPED = (TIED, INCONSISTENT, NARROW, BEYOND_CAP)
"""Why two candidates make no pair: equal scores; ordered differently by the two answers of an audited context, where
pairs.drop_inconsistent; a gap below min_margin; max_per_context wider ones. CANDIDATE_PAIRS = PAIRS + these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The pairs of one context, and what became of each two candidates, by the names above."""

    pairs: list[Pair]
    counts: Counter[str]


def select_pairs(record: ScoreRecord, config: PairConfig) -> Selection:
    """The pairs of one context, widest gap first.

    Only items with a valid score take part. All pairs with the item that the user chose are kept: they are the
    labels that the gate is fitted on, and a choice among them by gap would bias those. Of the others, the
    `max_per_context` with the largest gap. Ties and gaps below `min_margin` never make a pair; where every gap is
    below it, the widest one is kept ("at least one if possible").

    Source: arXiv 2512.21526, pair construction (K~ pairs with the largest score gap within one user).
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
    unlabelled = [pair for pair in wide if pair.probe_label == features.NOT_A_PROBE]
    kept = set(unlabelled[: config.max_per_context])
    selected = [pair for pair in wide if pair in kept or pair.probe_label != features.NOT_A_PROBE]
    counts[NARROW] = len(pairs) - len(wide)
    counts[BEYOND_CAP] = len(wide) - len(selected)
    counts[PAIRS] = len(selected)
    counts[LABELLED] = len(selected) - len(kept)
    return Selection(pairs=selected, counts=counts)


def _is_inconsistent(record: ScoreRecord, a: int, b: int) -> bool:
    """Whether the two answers of an audited context order the candidates strictly and differently."""
    if not record.is_audited:
        return False
    first = record.first_llm_scores[a] - record.first_llm_scores[b]
    second = record.second_llm_scores[a] - record.second_llm_scores[b]
    return (first > 0 > second) or (first < 0 < second)


def _pair(record: ScoreRecord, preferred: int, other: int) -> Pair:
    chosen = record.chosen_item_id
    label = features.NOT_A_PROBE
    if chosen in (record.item_ids[preferred], record.item_ids[other]):
        label = int(record.item_ids[preferred] == chosen)
    return Pair(
        preferred_item_id=record.item_ids[preferred],
        other_item_id=record.item_ids[other],
        preferred_llm_score=record.llm_scores[preferred],
        other_llm_score=record.llm_scores[other],
        probe_label=label,
    )


def pair_values(record: ScoreRecord, pair: Pair, catalog: ItemFeatures) -> dict[str, Any]:
    """The values of `models.features.pair_features` for one pair.

    Raises:
        KeyError: the record names an item that the catalogue does not hold.
    """
    values = {
        features.USER_ID: record.user_id,
        features.HISTORY_LENGTH: record.history_length,
        features.PROBE_LABEL: pair.probe_label,
        **catalog.history(record.history_item_ids),
    }
    for prefix, item_id, llm_score in (
        (features.PREFERRED, pair.preferred_item_id, pair.preferred_llm_score),
        (features.OTHER, pair.other_item_id, pair.other_llm_score),
    ):
        side = {**catalog.item(item_id), features.LLM_SCORE: llm_score}
        values |= {prefix + name: value for name, value in side.items()}
    return values
