"""Makes the pinned versions of TFX's libraries work together."""

import sys
import types

_SQL_UTIL = "tfx_bsl.arrow.sql_util"


class RecordBatchSQLSliceQuery:
    """Stands for the class of this name that tfx-bsl dropped; only TFDV's slicing by SQL used it.

    Raises:
        NotImplementedError: always.
    """

    def __init__(self, sql: str, arrow_schema: object):
        raise NotImplementedError("TFDV's SQL slicing needs tfx-bsl<1.18; slice by feature values instead")


def provide_sql_util() -> None:
    """Makes `tfx_bsl.arrow.sql_util` importable, which TFDV 1.16 imports and tfx-bsl 1.21 no longer holds.

    TFDV 1.16 is the newest that installs on Python 3.11 with a glibc below 2.39; newer versions do not import it.
    Beam's workers call this too, as `--beam_plugins` names this package (pipeline.config.BeamConfig).
    """
    if sys.version_info < (3, 12) and _SQL_UTIL not in sys.modules:
        module = types.ModuleType(_SQL_UTIL)
        module.RecordBatchSQLSliceQuery = RecordBatchSQLSliceQuery  # type: ignore[attr-defined]
        sys.modules[_SQL_UTIL] = module
