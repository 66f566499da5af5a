"""What `sllmr pilot` predicts against what the run then gains, by domain, LLM scorer and seed.

    python -m benchmarks.pilot_accuracy [--domains movielens] [--scorers vectors permuted] [--seeds 1 2 3 4 5]

Every configuration key not set here has its default. Domains: MovieLens-100K as in the quickstart, and the Amazon
domains of configs/amazon.yaml. LLM scorers:

    vectors      llm.strategy embedding: the best cosine of a candidate's text vector to those of the last items
    permuted     the same scores, permuted among all candidates, as a table of user_id, item_id, score
    bundled_llm  the bundled LLM, with as many pairs as two cores score in ten minutes

results/pilot_accuracy.jsonl gets a line for each domain, scorer and seed; those that it already has are skipped. `gain`
is what the pilot measured before distillation. From it, the printed table predicts the gain of the whole plan with the
pilot's current code. `realized` is the difference on test rows between the model trained with pairs and the one
without, paired and clustered by user. `users_reached` is the fraction of the users that the plan scores; a line without
it has a plan that scores all. The seeds of a domain and scorer share a folder, so data and scores are made once.
"""

import argparse
import csv
import glob
import json
import pathlib
import sys
from typing import Any

import numpy as np
import yaml

from benchmarks.measurement import Results, measure, versions
from sllmr.components.scores import ScoreRecord, read_scores
from sllmr.pipeline.pilot.estimate import PlanPart, predict
from sllmr.pipeline.pilot.result import Gain, PilotReport

RESULTS = pathlib.Path(__file__).parent / "results" / "pilot_accuracy.jsonl"
ROOT = pathlib.Path(__file__).parent.parent
VECTORS, PERMUTED, BUNDLED_LLM = "vectors", "permuted", "bundled_llm"
_SEED = 20261130
_LLM_PAIRS = 3000

DOMAINS: dict[str, dict[str, Any]] = {
    "movielens": {
        "fetch": "movielens-100k",
        "data": {
            "interactions": str(ROOT / "data/movielens-100k/interactions.csv.gz"),
            "items": str(ROOT / "data/movielens-100k/items.csv.gz"),
            "min_rating": 4,
            "split": {"strategy": "global_date"},
        },
    },
    **{
        name: {
            "data": {
                "interactions": str(ROOT / f"data/amazon/{name}/interactions.csv.gz"),
                "items": str(ROOT / f"data/amazon/{name}/items.csv.gz"),
                "columns": {"rating": ""},
            },
            "item_vectors": {"source": "file", "file": str(ROOT / f"data/amazon/{name}/item_embeddings.npz")},
        }
        for name in ("beauty", "toys")
    },
}
PAIRS = {"movielens": 28_290, "beauty": 670_890, "toys": 582_360}
"""Ten candidates for each of the last three scoring contexts of every user."""


def config(domain: str, scorer: str, seed: int, table: pathlib.Path) -> dict[str, Any]:
    """A run's configuration; `table` holds the permuted scores."""
    llm: dict[str, Any] = {"budget": {"pairs": _LLM_PAIRS if scorer == BUNDLED_LLM else PAIRS[domain]}}
    if scorer == VECTORS:
        llm.update(strategy="embedding", store_user_ids=True)
    elif scorer == PERMUTED:
        llm.update(strategy="replay", replay_table=str(table))
    return {**DOMAINS[domain], "name": domain, "llm": llm, "train": {"seed": seed}}


def write_permuted(scores: pathlib.Path, table: pathlib.Path) -> None:
    """A table of user_id, item_id and score with the scores of a run permuted among all its candidates.

    Args:
        scores: an artifact of LlmScorer that holds user ids.
        table: CSV.
    """
    records: list[ScoreRecord] = sorted(read_scores(str(scores)), key=lambda record: record.context_id)
    scored = {
        (record.user_id, item_id): score
        for record in records
        for item_id, score in zip(record.item_ids, record.llm_scores, strict=True)
    }
    permuted = np.random.default_rng(_SEED).permutation(list(scored.values()))
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "score"])
        writer.writerows((*pair, f"{score:.6f}") for pair, score in zip(scored, permuted, strict=True))


def measured(configuration: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Runs the pilot and then the whole pipeline; returns what the pilot predicted and what the run measured."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "shop.yaml"
    file.write_text(yaml.safe_dump(configuration))
    for command, output in (("pilot", folder / "pilot"), ("run", folder / "run")):
        line = [sys.executable, "-m", "sllmr.pipeline.cli", command, "--config", str(file), "--output", str(output)]
        measure(line, environment={}, log=folder / f"{command}.log")
    pilot = PilotReport.model_validate_json((folder / "pilot" / "pilot.json").read_text())
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return {
        "users_reached": pilot.predicted[-1].users_reached,
        "gain": pilot.gain.model_dump(mode="json"),
        "recommendation": pilot.recommendation,
        "sample": {"contexts": pilot.contexts, "users": pilot.users},
        "realized": summary["verdict"]["slices"],
        "answer": summary["verdict"]["answer"],
        "with_llm_taken": summary["verdict"]["choice"]["with_llm"],
        "choice": summary["verdict"]["choice"]["difference"],
    }


def summary(file: pathlib.Path) -> list[str]:
    """A line per cell; last, how often the realized gain is in the predicted interval, and not of the opposite sign."""
    lines, inside, signs = [], 0, 0
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    for run in runs:
        cell, realized = run["cell"], run["realized"]["overall"]
        plan = PlanPart(coverage=1.0, users_reached=run.get("users_reached", 1.0), cost_usd=None, seconds=0.0)
        (predicted,) = predict(Gain(**run["gain"]), [plan], users=run["sample"]["users"], test_users=realized["users"])
        held = predicted.lower <= realized["difference"] <= predicted.upper
        inside += held
        # A gain whose interval holds 0 has no sign that could be wrong.
        signs += not (
            (predicted.lower > 0 and realized["upper"] < 0) or (predicted.upper < 0 and realized["lower"] > 0)
        )
        lines.append(
            f"{cell['domain']}, {cell['scorer']}, seed {cell['seed']}: predicted {predicted.difference:+.4f} "
            f"({predicted.lower:+.4f} to {predicted.upper:+.4f}), {run['recommendation']}; realized "
            f"{realized['difference']:+.4f} ({realized['lower']:+.4f} to {realized['upper']:+.4f}), "
            f"{'in' if held else 'out of'} the predicted interval, {'taken' if run['with_llm_taken'] else 'not taken'}"
        )
    return [*lines, f"in the interval: {inside} of {len(runs)}; no opposite sign: {signs} of {len(runs)}"]


def main() -> None:
    """Measures the cells that the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", default=["movielens"], choices=DOMAINS)
    parser.add_argument("--scorers", nargs="+", default=[VECTORS, PERMUTED], choices=[VECTORS, PERMUTED, BUNDLED_LLM])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/benchmarks/pilot_accuracy"))
    arguments = parser.parse_args()
    results = Results(RESULTS)
    for domain in arguments.domains:
        for scorer in arguments.scorers:
            folder = arguments.work.resolve() / domain / scorer
            table = folder / "permuted.csv"
            for seed in arguments.seeds:
                cell = {"domain": domain, "scorer": scorer, "seed": seed, "versions": versions("tensorflow", "tfx")}
                if results.holds(cell):
                    continue
                if scorer == PERMUTED and not table.exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    write_permuted(_scores(folder.parent / VECTORS / "run"), table)
                results.append(cell, measured(config(domain, scorer, seed, table), folder))
    for line in summary(RESULTS):
        print(line)


def _scores(output: pathlib.Path) -> pathlib.Path:
    found = sorted(
        glob.glob(str(output / "artifacts" / "LlmScorer" / "scores" / "*")), key=lambda f: int(pathlib.Path(f).name)
    )
    if not found:
        raise FileNotFoundError(f"{output} must hold a run scored by {VECTORS}; measure that scorer first")
    return pathlib.Path(found[-1])


if __name__ == "__main__":
    main()
