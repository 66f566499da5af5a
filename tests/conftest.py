"""Loaded before any test module: they may import TensorFlow in any order."""

import pipeline  # noqa: F401  its import sets TF_USE_LEGACY_KERAS
