"""Loaded before any test module: they may import TensorFlow in any order."""

import pipeline  # noqa: F401  its import sets TF_USE_LEGACY_KERAS

from apache_beam.options.pipeline_options import StandardOptions  # isort: skip

# As the pipeline itself does (BeamConfig.pipeline_args): Beam's own default would download another runner.
StandardOptions.DEFAULT_RUNNER = "FnApiRunner"
