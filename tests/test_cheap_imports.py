"""Modules that handle no tensors load neither TensorFlow nor what takes as long to load."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

CHEAP = (
    "sllmr.models.artifact_files",
    "sllmr.models.config",
    "sllmr.models.features",
    "sllmr.models.item_vectors",
    "sllmr.models.reliability",
    "sllmr.models.schema",
    "sllmr.models.fractions",
    "sllmr.models.tf_examples",
    "sllmr.models.training.report",
    "sllmr.components.catalog",
    "sllmr.components.item_embedder.config",
    "sllmr.components.item_embedder.weights",
    "sllmr.components.scores",
    "sllmr.components.pair_builder.config",
    "sllmr.components.pair_builder.pairs",
    "sllmr.components.trainer.config",
)
HEAVY = {"tensorflow", "tf_keras", "tensorflow_transform", "apache_beam", "tfx", "pandas", "sklearn", "scipy"}

PROGRAM = """
import importlib, json, sys
loaded = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    loaded[name] = sorted(set(json.loads(sys.argv[2])) & sys.modules.keys())
print(json.dumps(loaded))
"""


def heavy_modules_loaded_by(names: tuple[str, ...]) -> dict[str, list[str]]:
    """By module, what is loaded of HEAVY once it and those before it are imported, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(names), json.dumps(sorted(HEAVY))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_modules_without_tensors_load_nothing_heavy():
    assert heavy_modules_loaded_by(CHEAP) == {name: [] for name in CHEAP}


def test_a_heavy_import_would_be_seen():
    assert heavy_modules_loaded_by(("scipy",)) == {"scipy": ["scipy"]}
