"""Calibration pairs of score records: what is left out, and when too few users are left."""

import dataclasses

import pytest

from sllmr.components.catalog import Item
from sllmr.components.scores import NEGATIVE, TARGET, ScoreRecord
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes
from sllmr.pipeline.pilot.rows import calibration_pairs

CATALOG = {name: Item(item_id=name, title=name) for name in "abc"}


def record(user: int, roles: tuple[str, ...] = (TARGET, NEGATIVE)) -> ScoreRecord:
    return ScoreRecord(
        context_id=f"c{user}",
        history_item_ids=("c",),
        history_length=1,
        item_ids=("a", "b")[: len(roles)],
        llm_scores=(0.9, 0.2)[: len(roles)],
        raw_scores=(0.9, 0.2)[: len(roles)],
        roles=roles,
        target_item_id="a",
        model="m",
        strategy="listwise",
        prompt_version="v2",
        scored_at=0,
    )


def made_of(records: list[ScoreRecord]):
    users = {r.context_id: (r.context_id, {}) for r in records}
    return calibration_pairs(records, users, CATALOG, FeatureSizes(history=2, categories=1), lambda columns: columns)


def test_a_pilot_of_which_nearly_all_requests_failed_says_so():
    records = [record(user) for user in range(29)]
    # Neither a target item alone nor one without a score makes a pair.
    records += [record(29, roles=(TARGET,)), dataclasses.replace(record(30), target_item_id="c")]
    users = {one.context_id: (one.context_id, {}) for one in records}
    with pytest.raises(UserError, match=r"of at least 30 users, got 29 of 31; .* what was scored is kept"):
        calibration_pairs(records, users, CATALOG, FeatureSizes(history=2, categories=1), lambda columns: columns)
