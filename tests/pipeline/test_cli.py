"""The command line's manners."""

import subprocess
import sys

import pytest

from pipeline.cli import main

HEAVY = ("tensorflow", "tfx", "apache_beam", "pydantic", "numpy", "openai", "matplotlib")


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nfrom pipeline.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "run" in result.stdout
    assert "loaded: []" in result.stdout


def test_a_wrong_configuration_is_one_message_without_a_traceback(tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text("data: {interactions: a.csv}")
    assert main(["run", "--config", str(file)]) == 1
    said = capsys.readouterr().err
    assert "data.items: missing" in said
    assert "Traceback" not in said


def test_data_from_files_asks_for_both_files(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "amazon-2014", "--reviews", "r.json.gz", "--output", "out"])
    assert "needs --reviews FILE and --meta FILE" in capsys.readouterr().err
