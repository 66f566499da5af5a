"""What was submitted to the Batch API, kept beside the response cache: no request is submitted twice.

A batch is a file of requests and the endpoint's work on it. The one step that costs money, its creation at the
endpoint, is recorded before and after: a process that dies in between leaves CREATING, and the next one looks for the
batch at the endpoint by its name. Neither API keys nor user ids occur here; a request is a hash of its content.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from sllmr.components.llm_scorer.messages import Usage
from sllmr.components.llm_scorer.store.interface import Content, Statements
from sllmr.components.llm_scorer.store.opening import open_database

FILE_NAME = "batches.sqlite"
_BATCHES = Content(
    file_name=FILE_NAME,
    name="record of batches",
    if_damaged="fetch what is in flight from the endpoint's dashboard, then move the file away",
    if_unusable="batches in flight stay at the endpoint",
    is_receipt=True,
)

CREATING = "creating"
CREATED = "created"
DONE = "done"
REFUSED = "refused"
DROPPED = "dropped"
UNDER_WAY = (CREATING, CREATED)
"""Steps of a batch that may hold requests in flight: its creation was begun (CREATING), or it was created (CREATED).
Later its responses are in the cache (DONE), the endpoint refused it as a whole (REFUSED), or it was never created or is
given up (DROPPED)."""

ANSWERED = "answered"

_LINE = "key, batch, outcome, lost_prompt, lost_cached_prompt, lost_completion"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch.

    Attributes:
        name: ours, told to the endpoint as metadata.
        base_url: of the endpoint.
        kind: of its requests, messages.CHAT or EMBEDDING.
        requests: number of them.
        tokens: of their prompts, as estimated.
        creation_begun_at: Unix seconds of the last attempt.
        batch_id: the endpoint's name for it; empty before it is known.
        step: one of those above.
    """

    name: str
    base_url: str
    kind: str
    requests: int
    tokens: int
    creation_begun_at: float
    batch_id: str = ""
    step: str = CREATING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Handing:
    """What became of one request so far.

    Attributes:
        batch: the name of the batch that it is in flight in; empty if it is in none.
        attempts: batches that took it to the end without an answer.
        reason: why the last of them had none.
        lost: tokens that were billed for answers that cannot be used.
    """

    batch: str = ""
    attempts: int = 0
    reason: str = ""
    lost: Usage = dataclasses.field(default_factory=Usage)


class BatchState:
    """The batches of one store; every method is one transaction that reaches the disk."""

    def __init__(self, store: str):
        """
        Raises:
            CacheError: the store is damaged, or cannot be used.
        """
        self._database = open_database(store, _BATCHES)
        self._database.create(
            "batches",
            [
                "CREATE TABLE IF NOT EXISTS batches (name TEXT PRIMARY KEY, base_url TEXT, kind TEXT, requests "
                "INTEGER, tokens INTEGER, creation_begun_at REAL, batch_id TEXT, step TEXT)",
                "CREATE TABLE IF NOT EXISTS lines (key TEXT, batch TEXT, outcome TEXT DEFAULT '', "
                "lost_prompt INTEGER DEFAULT 0, lost_cached_prompt INTEGER DEFAULT 0, lost_completion INTEGER "
                "DEFAULT 0, PRIMARY KEY (key, batch)) WITHOUT ROWID",
            ],
        )

    def add(self, batch: Batch, keys: Iterable[str]) -> None:
        """Records a batch that is about to be created."""
        row = dataclasses.asdict(batch)
        lines = [(key, batch.name) for key in keys]

        def add(statements: Statements) -> None:
            statements.execute(f"INSERT INTO batches ({', '.join(row)}) VALUES ({_marks(row)})", [*row.values()])
            statements.executemany("INSERT INTO lines (key, batch) VALUES (?, ?)", lines)

        self._database.transact(add)

    def update(self, batch: Batch) -> None:
        """Records a step of a batch."""
        self._database.execute(
            "UPDATE batches SET creation_begun_at = ?, batch_id = ?, step = ? WHERE name = ?",
            (batch.creation_begun_at, batch.batch_id, batch.step, batch.name),
        )

    def finish(self, batch: Batch, outcomes: Mapping[str, str], lost: Mapping[str, Usage]) -> None:
        """Records a batch as DONE.

        Args:
            outcomes: for each of its requests ANSWERED, or why it has no answer.
            lost: tokens of answers that were billed and cannot be used.
        """
        rows = [
            (outcome, *dataclasses.astuple(lost.get(key, Usage())), key, batch.name)
            for key, outcome in outcomes.items()
        ]

        def finish(statements: Statements) -> None:
            statements.executemany(
                "UPDATE lines SET outcome = ?, lost_prompt = ?, lost_cached_prompt = ?, lost_completion = ? "
                "WHERE key = ? AND batch = ?",
                rows,
            )
            statements.execute("UPDATE batches SET step = ? WHERE name = ?", (DONE, batch.name))

        self._database.transact(finish)

    def batches(self, steps: Iterable[str]) -> list[Batch]:
        """Those at one of the steps, in the order in which they were added."""
        steps = tuple(steps)
        names = [field.name for field in dataclasses.fields(Batch)]
        query = f"SELECT {', '.join(names)} FROM batches WHERE step IN ({_marks(steps)}) ORDER BY rowid"
        return [Batch(**dict(zip(names, row, strict=True))) for row in self._database.execute(query, steps)]

    def keys(self, batch: Batch) -> set[str]:
        """The requests of a batch."""
        return {key for (key,) in self._database.execute("SELECT key FROM lines WHERE batch = ?", (batch.name,))}

    def handing(self, key: str) -> Handing:
        """What became of a request in all its batches."""
        found = Handing()
        rows = self._database.execute(
            "SELECT batches.name, step, outcome, lost_prompt, lost_cached_prompt, lost_completion FROM lines "
            "JOIN batches ON lines.batch = batches.name WHERE key = ? ORDER BY batches.rowid",
            (key,),
        )
        for name, step, outcome, *lost in rows:
            if step in UNDER_WAY:
                found = dataclasses.replace(found, batch=name)
            elif step == DONE and outcome != ANSWERED:
                prompt, cached_prompt, completion = lost
                found = Handing(
                    batch=found.batch,
                    attempts=found.attempts + 1,
                    reason=outcome,
                    lost=found.lost + Usage(prompt=prompt, cached_prompt=cached_prompt, completion=completion),
                )
        return found

    def keys_in_flight(self) -> set[str]:
        """All requests in batches whose answers are not fetched yet."""
        rows = self._database.execute(
            f"SELECT key FROM lines JOIN batches ON lines.batch = batches.name WHERE step IN ({_marks(UNDER_WAY)})",
            UNDER_WAY,
        )
        return {key for (key,) in rows}

    def copy_to(self, other: "BatchState") -> None:
        """Copies the batches that have ended, and what became of their requests, into another store."""
        ended = (DONE, REFUSED, DROPPED)
        batches = [dataclasses.asdict(batch) for batch in self.batches(ended)]
        lines = self._database.execute(
            f"SELECT {_LINE} FROM lines WHERE batch IN (SELECT name FROM batches WHERE step IN ({_marks(ended)})) "
            "ORDER BY key, batch",
            ended,
        )

        def copy(statements: Statements) -> None:
            for row in batches:
                statements.execute(
                    f"INSERT INTO batches ({', '.join(row)}) VALUES ({_marks(row)}) ON CONFLICT DO NOTHING",
                    [*row.values()],
                )
            marks = _marks(_LINE.split(", "))
            statements.executemany(f"INSERT INTO lines ({_LINE}) VALUES ({marks}) ON CONFLICT DO NOTHING", lines)

        other._database.transact(copy)

    def close(self) -> None:
        self._database.close()


def _marks(values: Collection[str]) -> str:
    return ", ".join("?" * len(values))
