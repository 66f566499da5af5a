"""The arithmetic of preference pairs against the pairs that PairBuilder makes."""

import math

import pytest

from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_builder.pairs import select_pairs
from sllmr.components.pair_yield import PairYield
from sllmr.components.scores import NEGATIVE, POPULAR, TARGET, ScoreRecord

SHAPES = [
    pytest.param(10, 0.35, 2, 8, "cover", id="the default"),
    pytest.param(10, 0.5, 3, 8, "widest", id="the paper's"),
    pytest.param(9, 0.4, 3, 2, "cover", id="a cap below what covers"),
    pytest.param(4, 1.0, 3, 100, "widest", id="no pair beyond the labeled ones but few"),
    pytest.param(2, 0.0, 1, 1, "cover", id="one pair a context"),
    pytest.param(4, 1.0, 3, 5, "cover", id="labeled pairs alone"),
]


def contexts(count: int, size: int, calibration_fraction: float, negatives: int) -> list[ScoreRecord]:
    records = []
    for n in range(count):
        calibration = n < round(calibration_fraction * count)
        roles = [TARGET, *[NEGATIVE] * negatives] if calibration else []
        values = tuple((7 * (item + n) % 101) / 101 for item in range(size))
        records.append(
            ScoreRecord(
                context_id=f"c{n}",
                history_item_ids=("h",),
                history_length=1,
                item_ids=tuple(f"i{item}" for item in range(size)),
                llm_scores=values,
                raw_scores=values,
                roles=(*roles, *[POPULAR] * (size - len(roles))),
                target_item_id="i0" if calibration else "",
                model="m",
                strategy="s",
                prompt_version="p",
                scored_at=0,
            )
        )
    return records


@pytest.mark.parametrize(("per_context", "fraction", "negatives", "cap", "selection"), SHAPES)
def test_contexts_make_as_many_pairs_as_a_plain_count_finds(per_context, fraction, negatives, cap, selection):
    config = PairConfig(max_per_context=cap, selection=selection)
    shape = PairYield(
        per_context=per_context,
        calibration_fraction=fraction,
        negatives_per_target=negatives,
        max_per_context=cap,
        selection=selection,
    )

    def counted(count: int) -> int:
        return sum(
            len(select_pairs(record, config).pairs) for record in contexts(count, per_context, fraction, negatives)
        )

    assert [shape.preference_pairs(count) for count in range(12)] == [counted(count) for count in range(12)]
    for positives in (1, 10, 11, 237):
        fewest = next(count for count in range(1000) if counted(count) >= positives / 10)
        assert shape.contexts_for(math.ceil(positives / 10)) == fewest
        assert shape.enough_pairs(positives) == per_context * fewest
