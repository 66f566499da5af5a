"""Artifacts at an address: every step reads and writes them through a filesystem that has no local paths."""

import glob
import gzip
import json
import os
import shutil

import numpy as np
import pytest
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from sllmr.components.llm_scorer.contexts.rescoring import copy_failures
from sllmr.components.llm_scorer.jobs.accounting import count_failures
from sllmr.models import artifact_files
from sllmr.models.item_vectors import read_item_vectors
from sllmr.pipeline import summary
from sllmr.pipeline.config import load_config
from sllmr.pipeline.graph import Cluster, build_pipeline
from tests.golden.fields import Fields, differences, of_json
from tests.golden.run import GOLDEN, HERE, INPUTS, TOLERANCE, patterns
from tests.pipeline.memory_filesystem import MODIFIED, files_below, memory_filesystem

__all__ = ["memory_filesystem"]

ROOT = "ram://bucket/artifacts"


def _compared(fields: Fields) -> Fields:
    """Without the configuration, and without the steps: on a cluster there are fewer Resolvers."""
    return {path: value for path, value in fields.items() if not path.startswith(("config.", "steps."))}


@pytest.mark.slow
@pytest.mark.usefixtures("memory_filesystem")
def test_a_whole_run_with_its_artifacts_at_an_address_gives_the_results_of_a_local_one(tmp_path, monkeypatch):
    for name in INPUTS:
        shutil.copy(HERE / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    config, output = load_config(tmp_path / "golden.yaml"), tmp_path / "out"
    output.mkdir()
    LocalDagRunner().run(build_pipeline(config, output, Cluster(ROOT)))
    text = summary.collect(config, output, seconds=1).model_dump_json().replace(str(tmp_path), "DIRECTORY")
    expected = json.loads(GOLDEN["summary.json"].read_text(encoding="utf-8"))
    found = differences(_compared(expected), _compared(of_json(json.loads(text))), TOLERANCE, patterns("summary.json"))
    assert not found, "\n".join(found)
    # What takes an address for a local path makes a folder `ram:`.
    assert {path.name for path in tmp_path.iterdir()} == {*INPUTS, "cache", "out"}
    assert {path.name for path in output.iterdir()} == {"metadata.sqlite", "serving"}
    steps = {name.partition("/")[0] for name in files_below(ROOT)}
    assert steps >= {"InteractionsExampleGen", "ItemEmbedder", "LlmScorer", "PairBuilder", "Trainer", "Evaluator"}


@pytest.mark.slow  # TensorFlow and Beam are loaded
@pytest.mark.usefixtures("memory_filesystem")
@pytest.mark.parametrize("folder", ["ram://bucket/of one test", "local"])
def test_files_at_an_address_are_as_local_ones(folder, tmp_path):
    folder = folder if artifact_files.is_address(folder) else str(tmp_path / folder)
    text, packed, vectors = (os.path.join(folder, name) for name in ("a.json", "b-1.jsonl.gz", "c.npz"))
    artifact_files.make_folder(folder)
    for content in ("longer, and replaced", "{ä}\n"):
        with artifact_files.open(text, "w") as file:
            file.write(content)
    with artifact_files.open(text) as file:
        assert file.read() == "{ä}\n"
    with artifact_files.gzip(packed, "wt") as file:
        file.writelines(["ö\n", "2\n"])
    with artifact_files.gzip(packed, "rt") as file:
        assert list(file) == ["ö\n", "2\n"]
    with artifact_files.open(packed, "rb") as file:  # as stored
        assert gzip.decompress(file.read()).decode() == "ö\n2\n"
    with artifact_files.whole(vectors) as file:
        np.savez(file, item_id=np.array(["i"]), vector=np.ones([1, 2], np.float32))
    assert read_item_vectors(vectors).row == {"i": 0}
    assert artifact_files.matches(os.path.join(glob.escape(folder), "*")) == [text, packed, vectors]
    assert artifact_files.matches(os.path.join(glob.escape(folder), "b-*.gz")) == [packed]
    assert artifact_files.state(text).size == 5
    modified = MODIFIED if artifact_files.is_address(folder) else os.path.getmtime(text)
    assert artifact_files.state(text).modified == modified
    assert artifact_files.exists(text)
    assert not artifact_files.exists(text + ".no")
    for missing in (artifact_files.state, artifact_files.open):
        with pytest.raises(OSError, match=r"a\.json\.no"):
            missing(text + ".no")


@pytest.mark.slow
@pytest.mark.usefixtures("memory_filesystem")
def test_the_failures_of_a_table_at_an_address_are_taken_over():
    table, output = "ram://bucket/table", "ram://bucket/rescored"
    failures = [{"context_id": "kept", "reason": "no_vector"}, {"context_id": "gone", "reason": "no_vector"}]
    with artifact_files.gzip(f"{table}/failures-1.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(failure) + "\n" for failure in failures)
    copy_failures(table, output, {"kept"})
    assert count_failures(output) == {"no_vector": 1}
