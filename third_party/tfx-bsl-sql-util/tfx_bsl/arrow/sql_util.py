"""Stands in for a module that tfx-bsl dropped and TFDV 1.16.1 still imports.

Only TFDV's slicing by SQL used it; nothing in this project does.
"""


class RecordBatchSQLSliceQuery:
    """Raises at construction: slicing by SQL is not available with this dependency set."""

    def __init__(self, sql, arrow_schema):
        raise NotImplementedError("TFDV's SQL slicing needs tfx-bsl<1.18; slice by feature values instead.")
