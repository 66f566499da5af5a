"""The errors that end a scoring job."""

from sllmr.models.errors import UserError


class LlmError(UserError):
    """The scoring job cannot start or must stop; the message says why and how to continue. Never holds a secret."""


class NothingToReplay(LlmError):
    """No context of a replayed score table is in the train rows."""
