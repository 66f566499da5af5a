"""The score table as an artifact: written by LlmScorer, read by PairBuilder and the report.

Files in the artifact's folder:

    scores-*.tfrecord.gz     tf.Example, one a context, layout below
    failures-*.jsonl.gz      one a (context, item) that got no score: context_id, item_id, reason, detail
    ledger.json              requests, tokens, money, counters that add up

Layout of a score record, one for each context (a user at one moment):

    context_id          bytes    hash of user, position and seed; the user id itself is not stored
    history_item_ids    bytes*   the history as the model sees it, latest first, unpadded
    history_length      int64    number of earlier positives, not cut
    item_ids            bytes*   candidates with a valid score
    llm_scores          float*   one for each, in [0, 1]; of an audited context the mean over both orders
    raw_scores          float*   one for each, in the strategy's own unit
    roles               bytes*   one for each: why the candidate was asked about, a name of ROLES
    first_llm_scores, second_llm_scores
                        float*   audited contexts: one for each, by each of the two orders; empty elsewhere
    chosen_item_id      bytes    labelled probes: the item the user chose next; empty elsewhere
    user_id             bytes    empty unless llm.store_user_ids
    user_key            bytes    hash of user and seed: tells whose contexts belong together, not whose they are
    user_positives      int64    the user's positives in the train split when the context was last planned
    model, strategy, prompt_version   bytes
    content_digest      bytes    hash of what was asked: equal where asking again would send the same
    scored_at           int64    Unix seconds

Hashes hide ids only as far as ids cannot be guessed: who knows the seed can try ids one by one.
"""

import dataclasses
import glob
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

CHOSEN = "chosen"
NEGATIVE = "negative"
POPULAR = "popular"
DIVERSE = "diverse"
TAIL = "tail"
SIMILAR = "similar"
ROLES = (CHOSEN, NEGATIVE, POPULAR, DIVERSE, TAIL, SIMILAR)
"""Why a candidate was asked about: the user's choice in a labelled probe, a sampled negative beside it, the
popularity pool, the synthetic cold-start set (diverse items), the synthetic long-tail set, items of the history's
categories."""

SCORES_PREFIX = "scores"
FAILURES_PREFIX = "failures"
LEDGER_FILE = "ledger.json"

_FLOATS = ("llm_scores", "raw_scores", "first_llm_scores", "second_llm_scores")
_INTEGERS = ("history_length", "user_positives", "scored_at")
_LISTS = ("history_item_ids", "item_ids", "roles", *_FLOATS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """One context with its scored candidates; the fields are those of the layout above."""

    context_id: str
    history_item_ids: tuple[str, ...]
    history_length: int
    item_ids: tuple[str, ...]
    llm_scores: tuple[float, ...]
    raw_scores: tuple[float, ...]
    roles: tuple[str, ...]
    first_llm_scores: tuple[float, ...] = ()
    second_llm_scores: tuple[float, ...] = ()
    chosen_item_id: str = ""
    user_id: str = ""
    user_key: str = ""
    user_positives: int = 0
    model: str
    strategy: str
    prompt_version: str
    content_digest: str = ""
    scored_at: int

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.llm_scores), len(self.raw_scores), len(self.roles)}
        if len(lengths) != 1:
            raise ValueError(f"item_ids, llm_scores, raw_scores and roles must be equally long, got {lengths}")
        orders = {len(self.first_llm_scores), len(self.second_llm_scores)}
        if orders not in ({0}, lengths):
            raise ValueError(
                f"first_llm_scores and second_llm_scores must both be empty or as long as item_ids, {lengths}, "
                f"got {orders}"
            )
        for score in (*self.llm_scores, *self.first_llm_scores, *self.second_llm_scores):
            if not 0.0 <= score <= 1.0:
                raise ValueError(f"llm_scores must be in [0, 1], got {score}")

    @property
    def is_audited(self) -> bool:
        """Whether it was asked in two orders, and both answers scored every candidate."""
        return bool(self.second_llm_scores)

    def serialize(self) -> bytes:
        """The record as a serialized tf.Example."""
        example = tf.train.Example()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values = value if isinstance(value, tuple) else (value,)
            target = example.features.feature[field.name]
            if field.name in _FLOATS:
                target.float_list.value.extend(values)
            elif field.name in _INTEGERS:
                target.int64_list.value.extend(values)
            else:
                target.bytes_list.value.extend(v.encode() for v in values)
        return example.SerializeToString(deterministic=True)

    @classmethod
    def parse(cls, serialized: bytes) -> "ScoreRecord":
        """The inverse of serialize; a field that an earlier version did not write has its default."""
        features = tf.train.Example.FromString(serialized).features.feature
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in features and field.default is not dataclasses.MISSING:
                continue
            source = features[field.name]
            value: tuple
            if field.name in _FLOATS:
                value = tuple(source.float_list.value)
            elif field.name in _INTEGERS:
                value = tuple(source.int64_list.value)
            else:
                value = tuple(v.decode() for v in source.bytes_list.value)
            values[field.name] = value if field.name in _LISTS else value[0]
        return cls(**values)


def scores_pattern(directory: str) -> str:
    """Glob of the score files of an LlmScores artifact."""
    return os.path.join(directory, SCORES_PREFIX + "-*.tfrecord.gz")


def read_scores(directory: str) -> Iterator[ScoreRecord]:
    """All records, file by file."""
    files = sorted(glob.glob(scores_pattern(directory)))
    for serialized in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        yield ScoreRecord.parse(serialized)
