"""The one error that ends a scoring job."""

from sllmr.models.errors import UserError


class LlmError(UserError):
    """The scoring job cannot start or must stop; the message says why and how to continue. Never holds a secret."""
