"""Mixed precision: hidden layers compute in 16 bits, variables and the rest of the model stay in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import tf_keras as keras

from sllmr.models.config import MixedPrecision


@contextmanager
def layers_in(precision: MixedPrecision | None) -> Iterator[None]:
    """Layers created inside this block compute in `precision`, with float32 variables; None: in float32."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32" if precision is None else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
