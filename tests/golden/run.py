"""The golden run: the pipeline on the tables of this folder, and its results as the committed files hold them.

The tests make it from the wheel, see tests/packaging.

`python -m tests.golden.run` runs it and writes these files anew; read what `git diff` says before you commit them.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from tests.golden.fields import Fields, masked, of_json, of_page

HERE = pathlib.Path(__file__).parent
INPUTS = ("golden.yaml", "interactions.csv", "items.csv", "scores.csv", "vectors.npz")
GOLDEN = {"summary.json": HERE / "summary.fields.json", "report.html": HERE / "report.fields.json"}
"""Result -> the file of its expected fields."""

NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
"""Nothing answers there."""

VOLATILE = {
    "summary.json": (
        r".*\bseconds",
        r".*\brows_per_second",
        r"pushed_path",  # ends with the time
        r"run\.(date|code|versions\..*)",
        r"llm\.(oldest|median|newest)_score",  # of a table without times, when it was read
        r"llm\.age\.(oldest|median|newest)_days",
    ),
    "report.html": (r"p\[1\]", r"code\[1\]"),  # the verdict, whose numbers are those of the summary; pushed_path
}
"""By result, patterns of the fields whose values differ from run to run."""

VOLATILE_WORDS = re.compile(r"Run of .*? UTC, \d+ s|; code \w+; .*?(?=\. train )|[\d.]+ minutes")
"""In the report's sentences: date and wall time, code and versions, minutes of the LLM."""

CONFIGURATION = {"summary.json": r"config\..*", "report.html": r"pre\[2\]"}
"""By result, the fields that repeat every key and default, which docs/reference/configuration.md holds: left out."""

TOLERANCE = 0.006
"""Absolute, of every number with a fraction.

CPUs add floats in different orders. Other BLAS kernels, NumPy without vector instructions, TensorFlow without oneDNN
and with a single thread moved no number by more than .0001; but two rows that change places move the AUC of the
smallest slice, 12 positives and 16 negatives, by .0052.
"""

DIGITS = 4
"""Decimals that the golden files keep."""


def patterns(result: str) -> list[re.Pattern[str]]:
    """VOLATILE, compiled."""
    return [re.compile(pattern) for pattern in VOLATILE[result]]


def run(
    directory: pathlib.Path,
    *,
    sllmr: Sequence[str] = (sys.executable, "-m", "sllmr.pipeline.cli"),
    environment: Mapping[str, str] = os.environ,
    beam_args: Sequence[str] = (),
) -> dict[str, Fields]:
    """Runs the pipeline in an empty folder, where no download can succeed.

    Args:
        directory: gets the tables, and the results in `out`.
        sllmr: the command; of the project's environment by default.
        environment: variables of the command.
        beam_args: of the configuration's `beam.args`, for a runner other than the default one.

    Returns:
        The fields by result; the folder's own name in them is DIRECTORY.

    Raises:
        RuntimeError: the run failed.
    """
    for name in INPUTS:
        shutil.copy(HERE / name, directory)
    if beam_args:
        with open(directory / "golden.yaml", "a", encoding="utf-8") as file:
            file.write(f"beam: {{args: {json.dumps(list(beam_args))}}}\n")
    done = subprocess.run(
        [*sllmr, "run", "--config", "golden.yaml", "--output", "out"],
        cwd=directory,
        env={**environment, **NO_NETWORK, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    texts = {
        result: (directory / "out" / result).read_text(encoding="utf-8").replace(str(directory), "DIRECTORY")
        for result in GOLDEN
    }
    page = {path: VOLATILE_WORDS.sub("VARIES", text) for path, text in of_page(texts["report.html"]).items()}
    fields = {"summary.json": of_json(json.loads(texts["summary.json"])), "report.html": page}
    return {
        result: {path: value for path, value in found.items() if not re.fullmatch(CONFIGURATION[result], path)}
        for result, found in fields.items()
    }


def renew() -> None:
    """Writes the golden files anew from a run of the code as it is."""
    with tempfile.TemporaryDirectory() as directory:
        for result, fields in run(pathlib.Path(directory).resolve()).items():
            kept = masked(fields, patterns(result), DIGITS)
            GOLDEN[result].write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{GOLDEN[result]}: {len(kept)} fields")


if __name__ == "__main__":
    renew()
