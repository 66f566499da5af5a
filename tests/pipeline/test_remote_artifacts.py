"""Artifacts at an address: every step reads and writes them through a filesystem that has no local paths."""

import json
import shutil

import pytest
import tensorflow as tf
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from sllmr.components.catalog import read_catalog
from sllmr.components.llm_scorer.results import read_ledger
from sllmr.components.pair_builder.counts import read_counts
from sllmr.pipeline.config import load_config
from sllmr.pipeline.graph import Cluster, build_pipeline
from tests.golden.run import GOLDEN, HERE, INPUTS
from tests.pipeline.memory_filesystem import MemoryFileSystem, files_below

ROOT = "ram://bucket/artifacts"


def output_of(step: str, name: str) -> str:
    """The address of the one artifact that a step wrote."""
    (found,) = tf.io.gfile.glob(f"{ROOT}/{step}/{name}/*")
    return found


@pytest.mark.slow
def test_a_whole_run_keeps_its_artifacts_at_an_address(tmp_path, monkeypatch):
    assert MemoryFileSystem.scheme() == "ram"
    for name in INPUTS:
        shutil.copy(HERE / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    output.mkdir()
    LocalDagRunner().run(build_pipeline(load_config(tmp_path / "golden.yaml"), output, Cluster(ROOT)))
    expected = json.loads(GOLDEN["summary.json"].read_text(encoding="utf-8"))
    print("\n".join(files_below(ROOT)))
    print(json.dumps(expected)[:6000])
    print(len(read_catalog(output_of("InteractionsExampleGen", "catalog"))))
    print(read_ledger(output_of("LlmScorer", "scores")), read_counts(output_of("PairBuilder", "pairs")))
    print(list(tmp_path.iterdir()), list(output.iterdir()))
