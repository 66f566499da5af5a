"""What an exception that ends a command means to the user: a fix, an interruption, and what is kept."""

import pathlib
from collections.abc import Iterator

from sllmr.components.llm_scorer.requests.cache import FILE_NAME
from sllmr.components.llm_scorer.store.interface import CacheError, is_shared
from sllmr.models.errors import UserError, file_error


def user_error(error: BaseException | None) -> UserError | None:
    """The error that a user can fix, in an exception or its causes, since Beam wraps what a step raises; else None.

    A file that the operating system refuses (disk full, read-only, no locks) is such an error.
    """
    found = next((e for e in chain(error) if isinstance(e, UserError)), None)
    refused = (file_error(e) for e in chain(error) if isinstance(e, OSError))
    return found or next((e for e in refused if e is not None), None)


def what_is_kept(error: BaseException, store: str, again: str) -> str:
    """One line on how a stopped command resumes and which responses are kept. After an unforeseen error it does not
    promise that all are, since a response may not have reached the disk.

    Args:
        error: the exception.
        store: of the responses.
        again: the command that resumes.
    """
    if not is_shared(store) and not pathlib.Path(store, FILE_NAME).exists():
        return f"Stopped. To resume: {again}"
    # Beam reports what ends a step as another error.
    links = list(chain(error))
    foreseen = any(isinstance(link, UserError | KeyboardInterrupt) for link in links)
    if foreseen and not any(isinstance(link, CacheError | OSError) for link in links):
        return f"Stopped. Every response so far is kept in {store}; to resume: {again}"
    return f"Stopped. Responses that are in {store} are not queried again; to resume: {again}"


def is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C ended the program; Beam reports one within a step as an error of that step."""
    return any(isinstance(e, KeyboardInterrupt) for e in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
