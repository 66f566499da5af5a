"""The command line's manners."""

import pathlib
import re
import subprocess
import sys

import pytest

from sllmr.models.errors import UserError
from sllmr.pipeline.cli import main

HEAVY = ("tensorflow", "tfx", "apache_beam", "pydantic", "numpy", "openai", "matplotlib")


def shop(folder: pathlib.Path, interactions: str) -> pathlib.Path:
    """A configuration of two tables."""
    (folder / "a.csv").write_text(interactions)
    (folder / "b.csv").write_text("item_id,title\ni,Soap\n")
    (folder / "shop.yaml").write_text("data: {interactions: a.csv, items: b.csv}")
    return folder / "shop.yaml"


@pytest.mark.parametrize(("command", "says"), [([], "run"), (["pilot"], "--usd"), (["backtest"], "--windows")])
def test_help_imports_nothing_heavy(command, says):
    program = (
        "import sys\nfrom sllmr.pipeline.cli import main\n"
        f"try:\n    main({[*command, '--help']})\n"
        "except SystemExit:\n    pass\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert says in result.stdout
    assert "loaded: []" in result.stdout


def test_a_wrong_configuration_is_one_message_without_a_traceback(tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text("data: {interactions: a.csv}")
    assert main(["run", "--config", str(file)]) == 1
    said = capsys.readouterr().err
    assert "data.items: missing" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("interactions", "message"),
    [("user,item_id,timestamp\nu,i,1\n", "a.csv.*user_id"), (None, "b.csv")],
)
def test_a_wrong_table_is_refused_before_anything_heavy_is_imported(tmp_path, interactions, message):
    config = shop(tmp_path, interactions or "user_id,item_id,timestamp\nu,i,1\n")
    if interactions is None:
        (tmp_path / "b.csv").unlink()
    program = (
        f"import sys\nfrom sllmr.pipeline.cli import main\nstatus = main(['run', '--config', {str(config)!r}])\n"
        "print(status, 'loaded:', [m for m in ('tensorflow', 'tfx', 'apache_beam') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout == "1 loaded: []\n"
    assert re.search(message, result.stderr)
    assert not (tmp_path / "runs").exists()


def test_data_from_files_asks_for_both_files(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "amazon-2014", "--reviews", "r.json.gz", "--output", "out"])
    assert "needs --reviews FILE and --meta FILE" in capsys.readouterr().err


def test_a_defect_leaves_its_traceback_in_the_log_and_says_where(tmp_path, capsys, monkeypatch):
    config = shop(tmp_path, "user_id,item_id,timestamp\nu,i,1\n")
    monkeypatch.setattr("sllmr.pipeline.runner.run", lambda *_: {}["alpha_quantiles"])
    assert main(["run", "--config", str(config), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "unexpected KeyError: 'alpha_quantiles'" in said
    (log,) = (tmp_path / "out" / "logs").glob("run-*.log")
    assert str(log) in said
    assert "Traceback" not in said
    assert '["alpha_quantiles"]' in log.read_text()


def test_debug_raises_a_defect(tmp_path, monkeypatch):
    monkeypatch.setattr("sllmr.pipeline.datasets.movielens.prepare_movielens_100k", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["data", "movielens-100k", "--output", str(tmp_path), "--debug"])


def test_a_defect_of_a_command_without_a_folder_names_a_log_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sllmr.pipeline.datasets.movielens.prepare_movielens_100k", lambda *_: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["data", "movielens-100k", "--output", str(tmp_path)]) == 1
    (log,) = tmp_path.glob("sllmr-*.log")
    assert str(log) in capsys.readouterr().err
    assert "ZeroDivisionError" in log.read_text()


def test_an_error_that_beam_wrapped_is_printed_without_the_step(capsys, monkeypatch, tmp_path):
    def fail(*_):
        try:
            raise UserError("items.csv, row 3: no title; add one [while running 'Read/ParDo(Parse)']")
        except UserError as error:
            raise RuntimeError("wrapped by the runner") from error

    monkeypatch.setattr("sllmr.pipeline.datasets.movielens.prepare_movielens_100k", fail)
    assert main(["data", "movielens-100k", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "sllmr: items.csv, row 3: no title; add one\n"
