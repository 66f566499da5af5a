"""Scores of an earlier table, or of somebody else's model, in place of an LLM's."""

import csv
import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import math
import os
from collections.abc import Mapping, Sequence

from components import scores
from components.catalog import Item
from components.llm_scorer import exchange
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import Answer, CandidateResult, Context, LlmRequest
from components.scores import ScoreRecord

COLUMNS = ("context_id", "item_id", "score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What a table holds.

    Attributes:
        records: of an LlmScores folder, by context; None of a CSV file.
        results: of a CSV file, by context and item.
        digest: hash of the files.
    """

    records: dict[str, ScoreRecord] | None
    results: dict[str, dict[str, CandidateResult]]
    digest: str

    def of(self, context_id: str) -> Mapping[str, CandidateResult]:
        """The scores of one context by item; none where the table does not hold it."""
        if self.records is None:
            return self.results.get(context_id, {})
        record = self.records.get(context_id)
        return {} if record is None else _results(record)


class Replay:
    """Looks every (context, candidate) up in a table; what it does not hold fails.

    The table is one of
        an LlmScores folder (components/scores.py), as a run, `sllmr score` or `sllmr rescore` left it. Contexts and
        candidates are then those of the table, as far as the train rows still hold them and the budget allows;
        a CSV file, plain or .gz, with the columns context_id, item_id and score, the score in [0, 1]. `sllmr plan
        --contexts FILE` writes the contexts to be scored, so no user id is needed.

    Contexts are named by a hash of user, position and llm.seed: a table fits as long as those and the rows stay.
    llm_score is the table's; raw_score too, in a CSV the score.
    """

    def __init__(self, config: LlmConfig):
        """
        Raises:
            LlmError: the table is missing or not as described.
        """
        self._table = read_table(str(config.replay_table))
        self.prompt_version = f"replay-{self._table.digest}"

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        return ()

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        known = self._table.of(context.context_id)
        return [known.get(c.item_id) or _missing(c.item_id) for c in context.candidates]


def records_to_replay(config: LlmConfig) -> dict[str, ScoreRecord] | None:
    """The records of a folder that is replayed, by context; None where contexts are chosen afresh."""
    return read_table(config.replay_table).records if config.replay_table is not None else None


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
    return CandidateResult(item_id=item_id, reason=exchange.NOT_IN_TABLE, detail=detail)


def _files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    files = sorted(glob.glob(scores.scores_pattern(path)))
    if not files:
        raise LlmError(
            f"llm.replay_table must be a CSV file or a folder with {scores.SCORES_PREFIX}-*.tfrecord.gz, got {path}"
        )
    return files


@functools.lru_cache(maxsize=1)
def _read_table(path: str, status: tuple[tuple[str, int, int], ...]) -> Table:
    digest = hashlib.sha256()
    for name, _, _ in status:
        with open(name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    short = digest.hexdigest()[:8]
    if os.path.isdir(path):
        records = {record.context_id: record for record in scores.read_scores(path)}
        return Table(records=records, results={}, digest=short)
    return Table(records=None, results=_read_csv(path, status[0][1] // 1_000_000_000), digest=short)


def _read_csv(path: str, written_at: int) -> dict[str, dict[str, CandidateResult]]:
    table: dict[str, dict[str, CandidateResult]] = {}
    with open(path, "rb") as binary:
        is_gzip = binary.read(2) == b"\x1f\x8b"
        binary.seek(0)
        source = gzip.GzipFile(fileobj=binary) if is_gzip else binary
        reader = csv.DictReader(io.TextIOWrapper(source, encoding="utf-8-sig", newline=""))
        try:
            if missing := set(COLUMNS) - set(reader.fieldnames or ()):
                raise LlmError(
                    f"{path} must have the columns {', '.join(COLUMNS)}; missing: {', '.join(sorted(missing))}"
                )
            for row in reader:
                score = _score(row["score"])
                if score is None or not row["context_id"] or not row["item_id"]:
                    raise LlmError(
                        f"{path}:{reader.line_num}: context_id and item_id must be there and score a number in "
                        f"[0, 1], got {[row[c] for c in COLUMNS]}; mend the row or leave it out"
                    )
                entries = table.setdefault(row["context_id"], {})
                if row["item_id"] in entries:
                    raise LlmError(
                        f"{path}:{reader.line_num}: a context and item must not repeat, got {row['context_id']} "
                        f"{row['item_id']} again; remove one"
                    )
                entries[row["item_id"]] = CandidateResult(
                    item_id=row["item_id"], llm_score=score, raw_score=score, scored_at=written_at
                )
        except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise LlmError(f"{path} must be a CSV file in UTF-8, plain or .gz, and is not: {error}") from None
    return table


def _score(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1 else None
