"""Parameters that an endpoint refused, known to all threads and worker processes of a run."""

from sllmr.components.llm_scorer.requests.ledger import RunLedger

_REFUSED = "refused_parameters"


class RefusedInRun:
    """See capabilities.Refused."""

    def __init__(self, run: RunLedger):
        self._run = run
        self._names: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """What any worker has met, as of at most ledger.SIGNAL_AGE_S ago."""
        if self._run.signal(_REFUSED) != len(self._names):
            self._names = self._run.listed(_REFUSED)
        return self._names

    def add(self, name: str) -> bool:
        """Keeps a name; the first worker that met it gets True."""
        return self._run.list_once(_REFUSED, name)
