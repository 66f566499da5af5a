"""What the end of a run says in the terminal."""

import pytest
from rich.console import Console

from sllmr.pipeline import runner
from sllmr.pipeline.run_summary import StepTime
from tests.pipeline.test_report import summary


@pytest.mark.parametrize(
    ("cached", "read", "is_advised"), [(False, 300_000, True), (False, 10, False), (True, 300_000, False)]
)
def test_a_large_run_in_one_process_ends_with_how_to_use_several(tmp_path, monkeypatch, cached, read, is_advised):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    made = summary()
    table = made.data.interactions_table.model_copy(update={"read": read})
    names = ("InteractionsExampleGen", "StrictExampleValidator")
    data = made.data.model_copy(update={"interactions_table": table})
    made = made.model_copy(
        update={"data": data, "steps": {name: StepTime(seconds=1.0, cached=cached) for name in names}}
    )
    console = Console(record=True, width=200)
    runner._print_end(console, made, tmp_path)
    assert ("--direct_num_workers=4" in console.export_text()) == is_advised
