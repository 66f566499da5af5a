"""Configuration, the order of the steps, the evaluation's rules, the runners and the command line."""

import os

import models as _models  # noqa: F401  sets TF_USE_LEGACY_KERAS before anything imports TensorFlow

# TensorFlow's C++ side writes to the terminal past every Python logger; the switch works only before its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
