"""Scores of an earlier table, or of somebody else's model, in place of an LLM's."""

import csv
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

COLUMNS = ("context_id", "item_id", "score")

Entry = tuple[float, float, int]
"""llm_score, raw_score, Unix seconds."""


class Replay:
    """Looks every (context, candidate) up in a table; what it does not hold fails.

    The table is one of
        an LlmScores folder (components/scores.py), as a run or `sllmr score` left it;
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
        path = str(config.replay_table)
        files = _files(path)
        status = tuple((file, os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files)
        self._table, digest = _read_table(path, status)
        self.prompt_version = f"replay-{digest}"

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        return ()

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        entries = self._table.get(context.context_id, {})
        return [_result(c.item_id, entries.get(c.item_id)) for c in context.candidates]


def _result(item_id: str, entry: Entry | None) -> CandidateResult:
    if entry is None:
        detail = "llm.replay_table has no score for this context and item"
        return CandidateResult(item_id=item_id, reason=exchange.NOT_IN_TABLE, detail=detail)
    llm_score, raw_score, scored_at = entry
    return CandidateResult(item_id=item_id, llm_score=llm_score, raw_score=raw_score, scored_at=scored_at)


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
def _read_table(path: str, status: tuple[tuple[str, int, int], ...]) -> tuple[dict[str, dict[str, Entry]], str]:
    """Entries by context and item, and a hash of the files; once in a process while they are unchanged."""
    digest = hashlib.sha256()
    for name, _, _ in status:
        with open(name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    table: dict[str, dict[str, Entry]] = {}
    if os.path.isdir(path):
        for record in scores.read_scores(path):
            values = zip(record.item_ids, record.llm_scores, record.raw_scores, strict=True)
            table[record.context_id] = {item: (score, raw, record.scored_at) for item, score, raw in values}
    else:
        _read_csv(path, status[0][1] // 1_000_000_000, table)
    return table, digest.hexdigest()[:8]


def _read_csv(path: str, written_at: int, table: dict[str, dict[str, Entry]]) -> None:
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
                entries[row["item_id"]] = (score, score, written_at)
        except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise LlmError(f"{path} must be a CSV file in UTF-8, plain or .gz, and is not: {error}") from None


def _score(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1 else None
