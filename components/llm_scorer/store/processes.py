"""A name for this process, by which another one on the same machine can tell that it has ended."""

import functools
import os

_ENDED = "ZX"
"""States of a process that runs no more, as /proc tells them."""


@functools.cache
def _name_of(pid: int) -> str:
    return f"{_machine()} {pid} {_state(pid)[1]}"


def process_name() -> str:
    """Of this process, unlike that of any other on any machine."""
    return _name_of(os.getpid())


def has_ended(name: str) -> bool:
    """Whether the process of that name has ended for sure: False also if this one cannot see it."""
    machine, pid, started = name.rsplit(" ", 2)
    if machine != _machine():
        return False
    try:
        os.kill(int(pid), 0)
        state, now = _state(int(pid))
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return now != started or state in _ENDED


@functools.cache
def _machine() -> str:
    """This boot of this machine, and the namespace in which its process ids count, as containers have their own."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"


def _state(pid: int) -> tuple[str, str]:
    """State, and start in clock ticks since the boot."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name in parentheses may hold anything.
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        raise PermissionError(f"/proc/{pid} is hidden") from None
    return fields[0], fields[19]
