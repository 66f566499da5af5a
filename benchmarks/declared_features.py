"""AUC on MovieLens-100K with age, gender, occupation and hour as declared features, against the model without them.

Both arms have the same rows, seeds and settings; they differ only in the columns that the model reads. No LLM.
"""

import argparse
import csv
import gzip
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console

from benchmarks.measurement import Results, versions
from sllmr.models import features, inputs
from sllmr.models.clustered_auc import compare_auc
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.features import VocabularySizes
from sllmr.models.ranking import scorer
from sllmr.models.training.recipe import train
from sllmr.pipeline.ablation.domain import Domain, prepare_domain
from sllmr.pipeline.ablation.statistics import paired_interval
from sllmr.pipeline.baseline import auc_by_slice, in_slice
from sllmr.pipeline.config import Config
from sllmr.pipeline.datasets.movielens import prepare_movielens_100k

RESULTS = pathlib.Path(__file__).parent / "results" / "declared_features.jsonl"
WORK = pathlib.Path("runs") / "benchmarks" / "declared_features"
SLICES = ("overall", "cold", "warm", "tail")
ARMS = ("with_features", "without_features")
_ROWS_AT_ONCE = 4096

FEATURES = {
    "user": {
        "age": {"kind": "numeric", "buckets": 10},
        "gender": {"kind": "categorical"},
        "occupation": {"kind": "categorical"},
    },
    "interaction": {"hour": {"kind": "numeric", "buckets": 24}},
}


def prepare(work: pathlib.Path) -> Config:
    """Downloads the data set, adds the hour (UTC) of each rating, and configures its rows."""
    tables = prepare_movielens_100k(work / "tables", work / "downloads")
    with gzip.open(tables.interactions, "rt") as source, gzip.open(work / "interactions.csv.gz", "wt") as target:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(target, [*(reader.fieldnames or []), "hour"])
        writer.writeheader()
        writer.writerows({**row, "hour": int(float(row["timestamp"])) // 3600 % 24} for row in reader)
    return Config.model_validate(
        {
            "name": "declared_features",
            "cache_dir": str(work / "cache"),
            "data": {
                "interactions": str(work / "interactions.csv.gz"),
                "items": str(work / "tables" / "items.csv.gz"),
                "users": str(work / "tables" / "users.csv.gz"),
                "min_rating": 4,
                "split": {"strategy": "global_date"},
                "features": FEATURES,
            },
            "item_vectors": {"source": "none"},
            "model": {"item_vectors": False, "text_match": False},
            "loss": {"llm_weight": 0},
        }
    )


def run_arm(domain: Domain, arm: str, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Trains one model; returns its logits on the test rows, and the figures of its training."""
    vocabulary = domain.vocabulary if arm == ARMS[0] else _without_declared(domain.vocabulary)
    config = TrainConfig(seed=seed)
    started = time.process_time()
    model, report = train(
        vocabulary=vocabulary,
        model_config=ModelConfig(),
        gate_config=GateConfig(),
        loss_config=LossConfig(llm_weight=0),
        train_config=config,
        rows=lambda: inputs.row_batches(
            domain.train, batch_size=config.batch_size, seed=seed, shuffle_buffer=config.shuffle_buffer
        ),
        valid=inputs.row_batches(domain.valid, batch_size=_ROWS_AT_ONCE),
        pairs=None,
    )
    cpu_s = time.process_time() - started
    score = scorer(model)
    number = len(domain.test[features.LABEL])
    batches = [
        {name: values[n : n + _ROWS_AT_ONCE] for name, values in domain.test.items()}
        for n in range(0, number, _ROWS_AT_ONCE)
    ]
    logits = tf.concat([score(batch) for batch in batches], axis=0).numpy()
    rows = report.train_rows * len(report.epochs)
    return logits, {
        "valid_auc": round(report.best_valid_auc, 5),
        "epochs": len(report.epochs),
        "train_rows_per_cpu_s": round(rows / cpu_s),
    }


def _without_declared(vocabulary: VocabularySizes) -> VocabularySizes:
    return vocabulary.model_copy(update={"declared": ()})


def compared(domain: Domain, logits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """AUC of both arms by slice, and the difference with its standard error, paired and clustered by user."""
    users, labels = (np.asarray(domain.test[name]) for name in (features.USER_HASH, features.LABEL))
    result = {}
    for name in SLICES:
        inside = in_slice(domain.test, name)
        found = compare_auc(users[inside], labels[inside], *(logits[arm][inside] for arm in ARMS))
        result[name] = {
            "with_features": found.auc_a,
            "without_features": found.auc_b,
            "difference": found.difference,
            "standard_error": found.standard_error,
            "users": found.users,
            "rows": found.examples,
        }
    return result


def summary(file: pathlib.Path) -> list[str]:
    """A line per slice: both AUCs, popularity's, and their difference with its 95% interval by user and seed."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    runs = [line for line in found if "slices" in line]
    popularity = next(line["popularity"] for line in found if "popularity" in line)
    lines = []
    for name in SLICES:
        parts = [run["slices"][name] for run in runs]
        interval = paired_interval([part["difference"] for part in parts], [part["standard_error"] for part in parts])
        means = [np.mean([part[arm] for part in parts]) for arm in ARMS]
        lines.append(
            f"{name}: AUC {means[0]:.4f} with, {means[1]:.4f} without, {popularity[name]['auc']:.4f} popularity, "
            f"difference {interval.mean:+.4f} ({interval.lower:+.4f} to {interval.upper:+.4f}), "
            f"{parts[0]['users']} users, {parts[0]['rows']} rows, {interval.seeds} seeds"
        )
    return lines


def main() -> None:
    """Trains the seeds that the results lack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--work", type=pathlib.Path, default=WORK)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = Results(RESULTS)
    domain = prepare_domain("movielens-100k", prepare(work), work / "run", Console())
    data = {"data": "movielens-100k", "rows": domain.hashes["test_rows"]}
    if not results.holds(data):
        results.append(data, {"popularity": auc_by_slice(domain.test, domain.test[features.ITEM_TRAIN_COUNT], SLICES)})
    for seed in arguments.seeds:
        cell = {**data, "features": FEATURES, "seed": seed}
        if results.holds(cell):
            continue
        trained = {arm: run_arm(domain, arm, seed) for arm in ARMS}
        results.append(
            cell,
            {
                "slices": compared(domain, {arm: logits for arm, (logits, _) in trained.items()}),
                "training": {arm: took for arm, (_, took) in trained.items()},
                "versions": versions("tensorflow"),
            },
        )
    for line in summary(RESULTS):
        print(line)


if __name__ == "__main__":
    main()
