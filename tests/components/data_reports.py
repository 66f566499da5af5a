"""A DataReport for tests that need its dates alone."""

from sllmr.components.interactions_example_gen.data_report import DataReport

TABLE = {"read": 9, "kept": 9, "dropped": {}, "examples": {}}
SLICE = {"definition": "few", "train_rows": 0, "valid_rows": 0, "test_rows": 0}


def data_report(train: tuple[str, str], valid: tuple[str, str], test: tuple[str, str]) -> DataReport:
    """First and last time of each split, ISO 8601."""
    counts = dict.fromkeys(
        (
            "rows",
            "positives",
            "users",
            "tail_rows",
            "positives_not_in_train",
            "negatives_not_in_train",
            "repeated_positives",
        ),
        9,
    )
    spans = {"train": train, "valid": valid, "test": test}
    return DataReport.model_validate(
        {
            "problems": {},
            "unread_columns": {},
            "positives_are": "all interactions",
            "notices": [],
            "users": 5,
            "user_ids": {"as_floats": 0, "as_integers": 0},
            "items": 12,
            "interactions_table": TABLE | {"left_out": {}},
            "items_table": TABLE | {"empty_titles": 0},
            "split": {"strategy": "global_date"},
            "splits": {name: counts | {"first": first, "last": last} for name, (first, last) in spans.items()},
            "negatives": {
                "kind": "sampled",
                "seed": 1,
                "positives_without_negative": 0,
                "evaluation_hash": "0" * 64,
            },
            "cold": SLICE | {"by": "history", "below": 3, "test_users": 0},
            "tail": SLICE | {"items": 3, "items_without_train_positive": 0, "max_train_count": 2},
            "paper": {"train_rows": 9, "train_rows_with_history_of_at_most_3": 0, "long_tail_items": 3},
        }
    )
