"""Configuration, the order of the steps, the evaluation's rules, the runners and the command line."""

import os

import sllmr.components as _components  # noqa: F401  prepares the import of TensorFlow and TFX

# TensorFlow's C++ side writes to the terminal past every Python logger; the switch works only before its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
