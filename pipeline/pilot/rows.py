"""Turns scores of calibration contexts, and of a base model that has not seen their users, into estimator rows."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sllmr.components.catalog import Item, ItemFeatures
from sllmr.components.pair_builder.pairs import Pair, pair_values
from sllmr.components.scores import NEGATIVE, ScoreRecord
from sllmr.models import features, inputs
from sllmr.models.base_model import with_base_model, without_own_choice
from sllmr.models.config import GateConfig
from sllmr.models.errors import UserError
from sllmr.models.features import PREFERRED, FeatureSizes
from sllmr.models.parsing import parsing_spec
from sllmr.models.ranking import RankingModel, pair_input
from sllmr.models.signals import SIGNALS
from sllmr.models.tf_examples import to_example
from sllmr.pipeline.pilot.estimate import PilotRows
from sllmr.pipeline.pilot.sample import LEAST_USERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationPairs:
    """Every scored target item with every scored sampled negative of its context, ties included.

    Attributes:
        columns: as of models.inputs.load_pairs; `preferred` is the target item.
        context: int [pairs], numbers of contexts.
    """

    columns: Mapping[str, tf.Tensor]
    context: npt.NDArray


def calibration_pairs(
    records: Iterable[ScoreRecord],
    contexts: Mapping[str, tuple[str, Mapping[str, Any]]],
    catalog: Mapping[str, Item],
    sizes: FeatureSizes,
    transform: inputs.Transform,
) -> CalibrationPairs:
    """The pairs of score records.

    Args:
        records: of calibration contexts; one without a score for the target item or any negative is left out.
        contexts: by context id, the user id and what pair_builder.transforms.context_values says of the row.
        catalog: of the items.
        sizes: L, C and the declared features.
        transform: the transform graph.

    Raises:
        UserError: the pairs are of fewer than LEAST_USERS users.
    """
    items = ItemFeatures(catalog.values(), sizes)
    columns = features.pair_features(sizes)
    serialized, context = [], []
    users = set()
    for number, record in enumerate(sorted(records, key=lambda record: record.context_id)):
        user_id, values = contexts[record.context_id]
        known = dataclasses.replace(record, user_id=user_id)
        for pair in _pairs(known):
            serialized.append(to_example(pair_values(known, pair, items, values), columns).SerializeToString())
            context.append(number)
            users.add(known.user_id)
    if len(users) < LEAST_USERS:
        of = len({user_id for user_id, _ in contexts.values()})
        raise UserError(
            f"a pilot needs scores of a target item and a sampled negative of at least {LEAST_USERS} users, got "
            f"{len(users)} of {of}; the log says why the others failed; correct it and run "
            "the same command: what was scored is kept"
        )
    parsed = tf.io.parse_example(tf.constant(serialized), parsing_spec(columns))
    return CalibrationPairs(
        columns=inputs.narrow(inputs.transform_pairs(parsed, sizes, transform)), context=np.array(context)
    )


def _pairs(record: ScoreRecord) -> list[Pair]:
    scores = dict(zip(record.item_ids, record.llm_scores, strict=True))
    if record.target_item_id not in scores:
        return []
    return [
        Pair(
            preferred_item_id=record.target_item_id,
            other_item_id=item_id,
            preferred_llm_score=scores[record.target_item_id],
            other_llm_score=scores[item_id],
            calibration_label=1,
        )
        for item_id, role in zip(record.item_ids, record.roles, strict=True)
        if role == NEGATIVE
    ]


def pilot_rows(pairs: CalibrationPairs, model: RankingModel, gate: GateConfig, short_history_max: int) -> PilotRows:
    """One row for each target item, then one for each negative.

    Popularity is counted without the target interaction, as for the gate (models/base_model.py).

    Args:
        pairs: of users of whom the model has seen no row.
        model: the base model.
        gate: whose signals the stack has.
        short_history_max: llm.candidates.short_history_max.
    """
    samples = gate.dropout_samples if "dropout_variance" in gate.signals else None
    columns = without_own_choice(with_base_model(pairs.columns, model, dropout_samples=samples))
    sides = pair_input(columns)
    _, first, of_context = np.unique(pairs.context, return_index=True, return_inverse=True)

    def both(values: list[npt.NDArray]) -> npt.NDArray:
        return np.concatenate([values[0][first], values[1]])

    signals = [np.stack([SIGNALS[name](side, gate).numpy() for name in gate.signals], axis=1) for side in sides]
    tail = np.asarray(columns[PREFERRED + features.IS_TAIL])[first] == 1
    short = np.asarray(columns[features.HISTORY_LENGTH])[first] <= short_history_max
    user = np.asarray(columns[features.USER_HASH])[first]
    context = np.concatenate([np.arange(len(first)), of_context])
    return PilotRows(
        context=context,
        user=user[context],
        positive=np.repeat([1, 0], [len(first), len(of_context)]),
        base_logit=both([np.asarray(side[features.LOGIT], np.float64) for side in sides]),
        llm_score=both([np.asarray(side[features.LLM_SCORE], np.float64) for side in sides]),
        signals=both([part.astype(np.float64) for part in signals]),
        short_history=short[context],
        tail=tail[context],
    )
