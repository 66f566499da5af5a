"""Scores of one context -> ordered pairs. Pure Python."""

import dataclasses
import itertools
from typing import Any

from components.catalog import ItemFeatures
from components.pair_builder.config import PairConfig
from components.scores import ScoreRecord
from models import features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """The LLM puts `preferred_item_id` above `other_item_id`, by `llm_margin` in (0, 1].

    `probe_label` is 1 or 0 where the user chose the preferred or the other item, else features.NOT_A_PROBE.
    """

    preferred_item_id: str
    other_item_id: str
    llm_margin: float
    probe_label: int


def select_pairs(record: ScoreRecord, config: PairConfig) -> list[Pair]:
    """The pairs of one context, widest gap first.

    Only items with a valid score take part. All pairs with the item that the user chose are kept: they are the
    labels that the gate is fitted on, and a choice among them by gap would bias those. Of the others, the
    `max_per_context` with the largest gap. Ties and gaps below `min_margin` never make a pair; where every gap is
    below it, the widest one is kept ("at least one if possible").

    Source: arXiv 2512.21526, pair construction (K~ pairs with the largest score gap within one user).
    """
    pairs = []
    for (first, first_score), (second, second_score) in itertools.combinations(
        zip(record.item_ids, record.llm_scores, strict=True), 2
    ):
        if first == second or first_score == second_score:
            continue
        preferred, other = (first, second) if first_score > second_score else (second, first)
        label = features.NOT_A_PROBE
        if record.chosen_item_id in (preferred, other):
            label = int(preferred == record.chosen_item_id)
        pairs.append(
            Pair(
                preferred_item_id=preferred,
                other_item_id=other,
                llm_margin=abs(first_score - second_score),
                probe_label=label,
            )
        )
    pairs.sort(key=lambda pair: (-pair.llm_margin, pair.preferred_item_id, pair.other_item_id))
    wide = [pair for pair in pairs if pair.llm_margin >= config.min_margin] or pairs[:1]
    unlabelled = [pair for pair in wide if pair.probe_label == features.NOT_A_PROBE]
    kept = set(unlabelled[: config.max_per_context])
    return [pair for pair in wide if pair in kept or pair.probe_label != features.NOT_A_PROBE]


def pair_values(record: ScoreRecord, pair: Pair, catalog: ItemFeatures) -> dict[str, Any]:
    """The values of `models.features.pair_features` for one pair.

    Raises:
        KeyError: the record names an item that the catalogue does not hold.
    """
    values = {
        features.USER_ID: record.user_id,
        features.HISTORY_LENGTH: record.history_length,
        features.LLM_MARGIN: pair.llm_margin,
        features.PROBE_LABEL: pair.probe_label,
        **catalog.history(record.history_item_ids),
    }
    for prefix, item_id in (
        (features.PREFERRED, pair.preferred_item_id),
        (features.OTHER, pair.other_item_id),
    ):
        values |= {prefix + name: value for name, value in catalog.item(item_id).items()}
    return values
