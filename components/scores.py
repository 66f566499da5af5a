"""The score table as an artifact: written by LlmScorer, read by PairBuilder and the report.

Files in the artifact's folder:

    scores-*.tfrecord.gz     one tf.Example for each context, layout below
    failures-*.jsonl.gz      one line for each (context, item) without a score: context_id, item_id, reason, detail
    ledger.json              requests, tokens, money, counters that add up

Layout of a score record, one for each context (a user at a point in time):

    context_id          bytes    hash of user, position and seed; the user id itself is not stored
    history_item_ids    bytes*   the history as the model sees it, latest first, unpadded
    history_length      int64    number of earlier positives, not cut
    item_ids            bytes*   candidates with a valid score
    llm_scores          float*   one for each, in [0, 1]; of an audited context the mean over both orders
    raw_scores          float*   one for each, in the strategy's own unit
    roles               bytes*   one for each: why the candidate was selected, one of ROLES
    first_llm_scores, second_llm_scores
                        float*   audited contexts: one for each, by each of the two orders; empty elsewhere
    target_item_id      bytes    target item of a calibration context; empty in the others
    user_id             bytes    empty unless llm.store_user_ids
    user_key            bytes    hash of user and seed: tells whose contexts belong together, not whose they are
    user_positives      int64    the user's positive train rows when the context was last planned
    last_position       int64    the position of the last of them among all positives of the user; 0 in a table of an
                                 earlier version
    model, strategy, prompt_version   bytes
    fingerprint         bytes    hash of what was queried: equal if a new query would send the same requests
    scored_at           int64    Unix seconds

Hashes hide ids only as far as ids cannot be guessed: whoever knows the seed can try ids one by one.
"""

import dataclasses
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from sllmr.models import artifact_files
from sllmr.models.tf_examples import Example, read_tfrecords

TARGET = "target"
NEGATIVE = "negative"
POPULAR = "popular"
DIVERSE = "diverse"
TAIL = "tail"
SIMILAR = "similar"
REPLAYED = "replayed"
ROLES = (TARGET, NEGATIVE, POPULAR, DIVERSE, TAIL, SIMILAR, REPLAYED)
"""Why a candidate was selected: the target item, a sampled negative beside it, the popularity pool, the synthetic
cold-start set (diverse items), the synthetic long-tail set, items of the history's categories, items that a replayed
table has scores for."""

SCORES_PREFIX = "scores"
FAILURES_PREFIX = "failures"
LEDGER_FILE = "ledger.json"

PUBLISHED_LINK = ".table"
"""In an output folder of `sllmr score`: a symbolic link to the folder of the current table. See publish."""

_TABLES = ".tables"

_FLOATS = ("llm_scores", "raw_scores", "first_llm_scores", "second_llm_scores")
_INTEGERS = ("history_length", "user_positives", "last_position", "scored_at")
_LISTS = ("history_item_ids", "item_ids", "roles", *_FLOATS)

_FORMER_NAMES = {"target_item_id": "chosen_item_id", "fingerprint": "content_digest"}
_FORMER_ROLES = {"chosen": TARGET}
"""How earlier versions named fields and roles; their tables were paid for and stay readable."""


def context_id(user_id: str, position: int, seed: int) -> str:
    """Id of the scoring context of a user's train row; it does not reveal the user id."""
    return hashlib.sha256(f"context\x1f{seed}\x1f{user_id}\x1f{position}".encode()).hexdigest()[:24]


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
    target_item_id: str = ""
    user_id: str = ""
    user_key: str = ""
    user_positives: int = 0
    last_position: int = 0
    model: str
    strategy: str
    prompt_version: str
    fingerprint: str = ""
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
        """Whether it was queried in two orders, and both responses scored every candidate."""
        return bool(self.second_llm_scores)

    def is_outdated(self, *, last_position: int, user_positives: int) -> bool:
        """Whether the user has a newer positive train row than when the context was planned.

        With data.window the number of rows cannot show this, because rows leave the window as others enter it. A
        position can: it counts all positives of the user. A record of an earlier version has no position. It is
        outdated only if the number of rows has grown, so that nothing is paid for again just because the window moved.

        Args:
            last_position: today's position of the user's last positive train row.
            user_positives: today's number of positive train rows of the user.
        """
        if self.last_position:
            return last_position > self.last_position
        return 0 < self.user_positives < user_positives

    def serialize(self) -> bytes:
        """The record as a serialized tf.Example."""
        example = Example()
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
        """The inverse of serialize, also of a record that an earlier version wrote.

        Former names of fields and roles are read as today's; a field that the record lacks has its default.
        """
        features = Example.FromString(serialized).features.feature
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            former = _FORMER_NAMES.get(field.name, field.name)
            name = field.name if field.name in features else former
            if name not in features and field.default is not dataclasses.MISSING:
                continue
            source = features[name]
            value: tuple
            if field.name in _FLOATS:
                value = tuple(source.float_list.value)
            elif field.name in _INTEGERS:
                value = tuple(source.int64_list.value)
            else:
                value = tuple(v.decode() for v in source.bytes_list.value)
            values[field.name] = value if field.name in _LISTS else value[0]
        values["roles"] = tuple(_FORMER_ROLES.get(role, role) for role in values["roles"])
        return cls(**values)


def table_directory(directory: str) -> str:
    """The folder that holds a table's files: `directory`, or the target of its link if `sllmr score` wrote it.

    A reader that uses only the link sees one whole table, even while another one takes its place.
    """
    if artifact_files.is_address(directory):  # a run's artifact, never published
        return directory
    published = os.path.join(directory, PUBLISHED_LINK)
    return os.path.realpath(published) if os.path.isdir(published) else directory


def scores_pattern(directory: str) -> str:
    """Glob of the score files of an LlmScores artifact, or of a published table."""
    return os.path.join(glob.escape(table_directory(directory)), SCORES_PREFIX + "-*.tfrecord.gz")


def publish(table: str, output: str) -> None:
    """Makes a complete table the one of `output`; a crash at any point leaves the earlier or the new table, whole.

    The table is renamed to output/.tables/<id>, then the link output/.table, which all readers here follow, is replaced
    by a rename. The names at the top of `output` are links through it, so that other programs find the files there.

    Args:
        table: a folder on the file system of `output`; it no longer exists afterwards.
        output: at its top lie the table's files as an earlier version left them, links to such files, or neither.
    """
    names = sorted(os.listdir(table))
    tables = os.path.join(output, _TABLES)
    os.makedirs(tables, exist_ok=True)
    identity = uuid.uuid4().hex[:12]
    target = os.path.join(tables, identity)
    os.rename(table, target)
    link = os.path.join(output, PUBLISHED_LINK)
    if os.path.isdir(link) and not os.path.islink(link):
        # A copied output folder: copying has replaced the links by the files that they point to.
        os.rename(link, os.path.join(tables, f"{identity}-earlier"))
    _replace_by_link(os.path.join(_TABLES, identity), link)
    for name in names:
        _replace_by_link(os.path.join(PUBLISHED_LINK, name), os.path.join(output, name))
    for pattern in (f"{SCORES_PREFIX}-*.gz", f"{FAILURES_PREFIX}-*.gz"):
        for path in glob.glob(os.path.join(glob.escape(output), pattern)):
            if os.path.basename(path) not in names:
                os.unlink(path)
    for name in os.listdir(tables):
        if name != identity:
            shutil.rmtree(os.path.join(tables, name), ignore_errors=True)


def _replace_by_link(target: str, path: str) -> None:
    """Puts a relative link in the place of whatever file or link `path` names, in one step."""
    new = f"{path}.new"
    if os.path.lexists(new):
        os.unlink(new)
    os.symlink(target, new)
    os.replace(new, path)


def read_scores(directory: str) -> Iterator[ScoreRecord]:
    """All records, file by file.

    Raises:
        ValueError: a file is cut short, or holds something else.
    """
    for file in artifact_files.matches(scores_pattern(directory)):
        for serialized in read_tfrecords(file):
            yield ScoreRecord.parse(serialized)
