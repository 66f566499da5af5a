"""The pipeline's own TFX components, one folder each, and the record formats that they share."""

import models as _models  # noqa: F401  sets TF_USE_LEGACY_KERAS before anything imports TensorFlow
