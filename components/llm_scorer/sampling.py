"""Randomness that depends on names alone, never on process, order or bundle."""

import hashlib


def seeded_fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone, not on process, order or bundle."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56
