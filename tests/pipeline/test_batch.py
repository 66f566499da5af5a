"""`sllmr batch`: the whole command on two small tables, the Batch API a stub."""

import json
from collections.abc import Iterator

import pytest
import yaml

from sllmr.components.llm_scorer.results import BatchReport, read_ledger
from sllmr.components.scores import read_scores
from sllmr.pipeline.cli import main
from tests.components.llm_scorer.stub_batch_server import StubBatchServer, failed_with, running_batch_stub
from tests.pipeline.test_scoring import CONTEXTS, config_file, squeezed  # noqa: F401  config_file is a fixture


@pytest.fixture
def stub() -> Iterator[StubBatchServer]:
    with running_batch_stub() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(config_file):  # noqa: F811
    settings = yaml.safe_load(config_file.read_text())
    settings["llm"]["batch"] = {"poll_s": 0.01}
    config_file.write_text(yaml.safe_dump(settings))


@pytest.mark.slow
def test_a_batch_is_handed_over_fetched_later_and_scored_without_a_call(config_file, stub, capsys, tmp_path):  # noqa: F811
    options = ["--config", str(config_file), "--output", str(tmp_path / "scores")]
    stub.looks = 3
    assert main(["batch", *options, "--no-wait"]) == 0
    said = squeezed(capsys.readouterr().out)
    assert f"│ in flight │ {CONTEXTS} in 1 batches │" in said
    assert f"To fetch what is in flight: sllmr batch {' '.join(options)}" in said

    # Neither a plan nor a run spends money on them meanwhile.
    assert main(["plan", "--config", str(config_file)]) == 0
    said = squeezed(capsys.readouterr().out)
    assert f"│ with the Batch API now │ {CONTEXTS} (sllmr batch fetches them) │" in said
    assert "│ cost by the Batch API (sllmr batch) │ $0.0000 │" in said
    assert main(["score", *options]) == 1
    assert f"{CONTEXTS} of {CONTEXTS} requests are with the Batch API" in capsys.readouterr().err

    assert main(["batch", *options]) == 0
    said = squeezed(capsys.readouterr().out)
    assert f"batch: batch-0 completed: {CONTEXTS} answered" in said
    assert said.endswith(f"For the table: sllmr score {' '.join(options)}")
    report = BatchReport.model_validate_json((tmp_path / "scores" / "batch.json").read_bytes())
    assert (report.answered_by_batch, report.in_flight) == (CONTEXTS, 0)

    assert main(["score", *options]) == 0
    assert stub.live == []
    book = read_ledger(tmp_path / "scores")
    assert (book.scored, book.requests.sent) == (6 * CONTEXTS, 0)
    assert book.cost_of_cached_responses_usd == pytest.approx(report.cost_usd)
    assert report.cost_usd is not None
    assert report.cost_usd > 0
    assert len(list(read_scores(str(tmp_path / "scores")))) == CONTEXTS
    lines = [json.dumps(line) for batch in stub.batches for line in batch.lines]
    assert not [line for line in lines if "user-" in line]


@pytest.mark.slow
def test_what_no_batch_answered_is_told_before_it_is_asked_live(config_file, stub, capsys, tmp_path):  # noqa: F811
    options = ["--config", str(config_file), "--output", str(tmp_path / "scores")]
    stub.outcome = lambda line, attempt: failed_with(400)(line)
    assert main(["batch", *options]) == 0
    said = squeezed(capsys.readouterr().out)
    assert f"│ not retried: bad_request │ {CONTEXTS} │" in said
    assert f"sllmr score sends the {CONTEXTS} missing requests live, at the price that sllmr plan prints" in said
    assert main(["score", *options]) == 0
    assert len(stub.live) == CONTEXTS


@pytest.mark.slow
def test_a_refused_file_ends_with_its_reason(config_file, stub, capsys, tmp_path):  # noqa: F811
    stub.end_status = lambda number: "failed"
    stub.failed_errors = [{"code": "model_not_found", "line": 1, "message": "no such model"}]
    assert main(["batch", "--config", str(config_file), "--output", str(tmp_path / "scores")]) == 1
    said = capsys.readouterr()
    assert "model_not_found in line 1: no such model; mend the cause and run again" in said.err
    assert "Traceback" not in said.err
    assert (tmp_path / "scores" / "batch.json").exists()
