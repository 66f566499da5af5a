"""The pipeline's own TFX components, one folder each, and the record formats that they share."""

import sllmr.models as _models  # noqa: F401  sets TF_USE_LEGACY_KERAS before anything imports TensorFlow
from sllmr.components.compatibility import provide_sql_util

provide_sql_util()
