"""Scores of an earlier table, or of somebody else's model, in place of an LLM's."""

import dataclasses
import functools
import glob
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sllmr.components import scores
from sllmr.components.catalog import Item
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Answer, CandidateResult, Context, Failure, LlmRequest
from sllmr.components.llm_scorer.strategies.user_scores import (
    SUFFIXES,
    USER_COLUMNS,
    UserScores,
    header_of,
    read_user_scores,
    text_rows,
)
from sllmr.components.scores import ScoreRecord

COLUMNS = ("context_id", "item_id", "score")
_BOTH_FORMS = (
    "a table of scores has the columns user_id, item_id and score, or context_id, item_id and score (`sllmr plan "
    "--contexts FILE` writes each context_id)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What a table holds: one of three forms.

    Attributes:
        records: of an LlmScores folder, by context; None of other forms.
        results: of a table with context_id, by context and item.
        user_scores: of a table with user_id; None of other forms.
        digest: hash of the files.
    """

    records: dict[str, ScoreRecord] | None = None
    results: dict[str, dict[str, CandidateResult]] = dataclasses.field(default_factory=dict)
    user_scores: UserScores | None = None
    digest: str

    def of(self, context: Context, seed: int) -> Mapping[str, CandidateResult]:
        """The scores of one context by item; none if the table does not hold it."""
        if self.user_scores is not None:
            return self.user_scores.results_of(context.user_key, seed)
        if self.records is None:
            return self.results.get(context.context_id, {})
        record = self.records.get(context.context_id)
        return {} if record is None else _results(record)


class Replay:
    """Looks every (context, candidate) up in a table; what it does not hold fails.

    The table is one of
        an LlmScores folder (components/scores.py), as a run, `sllmr score` or `sllmr rescore` left it. Contexts and
        candidates are then those of the table, as far as the train rows still hold them and the budget allows;
        a CSV or Parquet file, plain or .gz, or a folder of such parts, with user_id, item_id, score and optionally
        scored_at. Contexts are then built around train rows of its users: see contexts/scored_users.py. Scores outside
        [0, 1] are scaled: see user_scores.py;
        such a file with context_id, item_id and score in [0, 1]. `sllmr plan --contexts FILE` writes the contexts to be
        scored, so no user id is needed.

    A context's id is a hash of user, position and llm.seed: a table with context ids fits as long as these and the rows
    stay the same. llm_score and raw_score are the table's; for a CSV or Parquet file raw_score is the score as written.
    """

    def __init__(self, config: LlmConfig):
        """
        Raises:
            LlmError: the table is missing or not as described.
        """
        self._table = read_table(str(config.replay_table))
        self._seed = config.seed
        self.prompt_version = f"replay-{self._table.digest}"

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        return ()

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        return None

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        known = self._table.of(context, self._seed)
        return [known.get(c.item_id) or _missing(c.item_id) for c in context.candidates]


def records_to_replay(config: LlmConfig) -> dict[str, ScoreRecord] | None:
    """The records of a folder that is replayed, by context; None where contexts are chosen afresh."""
    return read_table(config.replay_table).records if config.replay_table is not None else None


def contexts_to_replay(config: LlmConfig) -> int:
    """How many contexts the table that is replayed names."""
    table = read_table(str(config.replay_table))
    return len(table.results if table.records is None else table.records)


def user_scores_to_replay(config: LlmConfig) -> UserScores | None:
    """The table that is replayed if it names users; None otherwise."""
    return read_table(config.replay_table).user_scores if config.replay_table is not None else None


def read_table(path: str) -> Table:
    """Reads a table, once in a process while its files are unchanged.

    Raises:
        LlmError: it is missing or not as Replay describes it.
    """
    files = _files(path)
    return _read_table(path, tuple((file, os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files))


def _results(record: ScoreRecord) -> dict[str, CandidateResult]:
    orders: list[tuple[float, float] | None] = [*zip(record.first_llm_scores, record.second_llm_scores, strict=True)]
    orders = orders or [None] * len(record.item_ids)
    values = zip(record.item_ids, record.llm_scores, record.raw_scores, orders, strict=True)
    return {
        item_id: CandidateResult(
            item_id=item_id,
            llm_score=llm_score,
            raw_score=raw_score,
            order_llm_scores=order,
            scored_at=record.scored_at,
        )
        for item_id, llm_score, raw_score, order in values
    }


def _missing(item_id: str) -> CandidateResult:
    detail = "llm.replay_table has no score for this context and item"
    return CandidateResult(item_id=item_id, reason=messages.NOT_IN_TABLE, detail=detail)


def _files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    files = sorted(glob.glob(scores.scores_pattern(path)))
    if not files and os.path.isdir(path):
        # Programs that write tables in parts add files of their own, whose names start like this.
        names = (name for name in sorted(os.listdir(path)) if not name.startswith(("_", ".")))
        files = [os.path.join(path, name) for name in names if name.lower().endswith(SUFFIXES)]
    if not files:
        raise LlmError(
            f"llm.replay_table must be a CSV or Parquet file, a folder of them, or a folder with "
            f"{scores.SCORES_PREFIX}-*.tfrecord.gz, got {path}; {_BOTH_FORMS}"
        )
    return files


@functools.lru_cache(maxsize=1)
def _read_table(path: str, status: tuple[tuple[str, int, int], ...]) -> Table:
    digest = hashlib.sha256()
    for name, _, _ in status:
        with open(name, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    short = digest.hexdigest()[:8]
    files = [file for file, _, _ in status]
    if files[0].endswith(".tfrecord.gz"):
        return Table(records={record.context_id: record for record in scores.read_scores(path)}, digest=short)
    headers = {file: header_of(file) for file in files}
    for columns in (COLUMNS, USER_COLUMNS):
        if columns[0] not in headers[files[0]]:
            continue
        for file, header in headers.items():
            if missing := [name for name in columns if name not in header]:
                raise LlmError(f"{file} must have the columns {', '.join(columns)}; missing: {', '.join(missing)}")
        if columns is COLUMNS:
            return Table(results=_read_by_context(files), digest=short)
        return Table(user_scores=read_user_scores(files), digest=short)
    found = ", ".join(headers[files[0]][:20])
    raise LlmError(f"{files[0]} must have a column user_id or context_id, got {found}; {_BOTH_FORMS}")


def _read_by_context(files: Sequence[str]) -> dict[str, dict[str, CandidateResult]]:
    table: dict[str, dict[str, CandidateResult]] = {}
    for file in files:
        written_at = int(os.stat(file).st_mtime)
        for number, row in text_rows(file, COLUMNS):
            score = _score(row[2])
            if score is None or not row[0] or not row[1]:
                raise LlmError(
                    f"{file}:{number}: context_id and item_id must be there and score a number in [0, 1], got "
                    f"{list(row)}; correct the row or remove it"
                )
            entries = table.setdefault(row[0], {})
            if row[1] in entries:
                raise LlmError(
                    f"{file}:{number}: a context and item must not repeat, got {row[0]} {row[1]} again; remove one"
                )
            entries[row[1]] = CandidateResult(item_id=row[1], llm_score=score, raw_score=score, scored_at=written_at)
    return table


def _score(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1 else None
