"""What seven days of `sllmr run` on a schedule cost, and what a warm start is worth.

    python -m benchmarks.schedule [--days 7]

A shop of teas and coffees is made up from a seed: users keep to two kinds each, about half of them buy something on a
day, and every day brings a new item. Each day the same configuration runs in the same folder, on a window of 14 days
with train.warm_start and llm.rescore. The LLM is a stub on this machine that scores by the kinds in the history and
counts requests. Each day a second model is trained on the same rows and pairs from a cold start.
results/schedule.jsonl gets a line for each day.

    requests, repeated    requests that reached the endpoint on that day, and how many of them it had seen before
    cost_usd              of these requests, at the prices in the configuration
    contexts              by what became of them: kept, scored again, new, gone
    auc, cold_auc         on the day's test rows: of the Trainer's model, and of the cold start
    epochs, cold_epochs   until the best one
    start                 how the training started
    drift                 distances from the last run's train rows that exceed their thresholds
"""

import argparse
import csv
import datetime
import json
import pathlib
import random
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import yaml

from benchmarks.measurement import Results, versions

RESULTS = pathlib.Path(__file__).parent / "results" / "schedule.jsonl"
FIRST_DAY = datetime.date(2026, 3, 1)
"""The first day of the schedule; the shop's interactions begin HISTORY days earlier."""

HISTORY, USERS, ITEMS = 14, 150, 60
KINDS = ("Black tea", "Green tea", "Herbal tea", "Espresso", "Filter coffee")
_KIND = re.compile(r"(" + "|".join(KINDS) + r") No\.")
_CANDIDATE = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)


def write_tables(directory: pathlib.Path, day: int) -> None:
    """Writes interactions.csv and items.csv as the shop exports them the night before day `day`, counted from 0."""
    draw = random.Random(5)
    rows = []
    for age in range(HISTORY + day):
        date = FIRST_DAY + datetime.timedelta(days=age - HISTORY)
        items = ITEMS + max(0, age - HISTORY)
        for user in range(USERS):
            liked = [n for n in range(items) if n % len(KINDS) in (user % len(KINDS), user // len(KINDS) % len(KINDS))]
            among = liked if draw.random() < 0.85 else range(items)
            item = among[int(len(among) * draw.random() ** 1.5)]
            second = draw.randrange(86_400)
            if draw.random() < 0.5:
                time = datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp() + second
                rows.append((f"u{user:03}", f"i{item:03}", int(time)))
    _write(directory / "interactions.csv", ("user_id", "item_id", "timestamp"), rows)
    _write(
        directory / "items.csv",
        ("item_id", "title", "categories"),
        [(f"i{n:03}", f"{KINDS[n % len(KINDS)]} No. {n}", f"Drinks > {n % 7}") for n in range(ITEMS + day)],
    )


def _write(file: pathlib.Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def scores_of(prompt: str) -> list[dict[str, Any]]:
    """The stub's answer to a listwise prompt: a high score for candidates of a kind that the history names."""
    history, _, candidates = prompt.partition("Score each")
    liked = set(_KIND.findall(history))
    found = ((int(number), _KIND.search(text)) for number, text in _CANDIDATE.findall(candidates))
    return [{"item": n, "score": 0.8 if kind and kind[1] in liked else 0.2} for n, kind in found]


def configuration(base_url: str, day: int) -> dict[str, Any]:
    """The configuration of one day; only the end of the window changes, as with `until: today`."""
    return {
        "cache_dir": "cache",
        "data": {
            "interactions": "interactions.csv",
            "items": "items.csv",
            "split": {"strategy": "global_date"},
            "window": {"days": HISTORY, "until": (FIRST_DAY + datetime.timedelta(days=day)).isoformat()},
        },
        "item_vectors": {"source": "none"},
        "llm": {
            "model": "stub",
            "base_url": base_url,
            "strategy": "listwise",
            "rescore": True,
            "budget": {"pairs": 800},
            "price_per_million_tokens": {"prompt": 1.0, "cached_prompt": 0.5, "completion": 4.0},
        },
        "model": {"embedding_dim": 8, "mlp": [16]},
        "train": {"batch_size": 128, "epochs": 12, "warm_start": True},
        "evaluation": {"min_auc": {"overall": 0.5}, "max_drop": {}, "max_drift": {}, "beat_popularity": []},
    }


def run_days(directory: pathlib.Path, days: int) -> Iterator[dict[str, Any]]:
    """Runs the schedule in an empty folder; yields the figures of each day."""
    from sllmr.pipeline.start import start
    from sllmr.pipeline.summary import read_steps
    from tests.components.llm_scorer.stub_server import StubHandler, chat_response, running_stub

    with running_stub() as server:

        def answer(handler: StubHandler, body: dict[str, Any]) -> None:
            handler.send_json(200, chat_response(scores_of(body["messages"][-1]["content"])))

        server.always = answer
        seen: set[str] = set()
        for day in range(days):
            write_tables(directory, day)
            (directory / "shop.yaml").write_text(yaml.safe_dump(configuration(server.base_url, day)))
            server.received.clear()
            summary = start(directory / "shop.yaml", directory / "out")
            assert summary is not None
            assert summary.llm is not None
            assert summary.training.warm_start is not None
            sent = [json.dumps(body, sort_keys=True) for body in server.received]
            rescored = summary.llm.rescore
            auc, cold = _warm_and_cold(directory, day, read_steps(directory / "out"))
            yield {
                "requests": len(sent),
                "repeated": sum(body in seen for body in sent) + len(sent) - len(set(sent)),
                "cost_usd": summary.llm.cost_usd,
                "contexts": None if rescored is None else rescored.model_dump(mode="json", exclude={"drift"}),
                "auc": auc["warm"],
                "cold_auc": auc["cold"],
                "epochs": summary.training.best_epoch,
                "cold_epochs": cold,
                "start": summary.training.warm_start.model_dump(mode="json", exclude={"model"}),
                "blessed": summary.blessed,
                "drift": [distance.sentence for distance in summary.drift.exceeding],
                "seconds": summary.seconds,
            }
            seen.update(sent)


def _warm_and_cold(directory: pathlib.Path, day: int, steps: dict[str, Any]) -> tuple[dict[str, float], int]:
    """Test AUC of the Trainer's model and of a cold start on the same rows and pairs; the cold start's best epoch."""
    import tensorflow as tf
    from sklearn.metrics import roc_auc_score
    from tfx.components.trainer.fn_args_utils import FnArgs

    from sllmr.components.saved_model_scores import score_files
    from sllmr.components.trainer import executor
    from sllmr.components.trainer.config import TrainerConfig
    from sllmr.components.trainer.run_fn import REPORT_FILE, run_fn
    from sllmr.models import features
    from sllmr.models.training.report import TrainingReport
    from sllmr.pipeline.config import load_config

    config = load_config(directory / "shop.yaml")
    cold = directory / f"cold-{day}"
    cold.mkdir()
    rows = steps["Transform"].outputs["transformed_examples"]
    run_fn(
        FnArgs(
            train_files=[f"{rows}/Split-train/*"],
            eval_files=[f"{rows}/Split-valid/*"],
            transform_output=steps["Transform"].outputs["transform_graph"],
            serving_model_dir=str(cold / "model"),
            model_run_dir=str(cold / "run"),
            custom_config={
                executor.CONFIG: TrainerConfig(
                    sizes=config.data.feature_sizes,
                    model=config.model,
                    gate=config.gate,
                    loss=config.loss,
                    train=config.train.model_copy(update={"warm_start": False}),
                ).model_dump_json(),
                executor.CATALOG_DIRECTORY: steps["InteractionsExampleGen"].outputs["catalog"],
                executor.PAIRS_PATTERNS: [f"{steps['PairBuilder'].outputs['pairs']}/Split-train/*"],
            },
        )
    )
    files = list(pathlib.Path(steps["InteractionsExampleGen"].outputs["examples"], "Split-test").glob("*"))
    models = {"warm": f"{steps['Trainer'].outputs['model']}/Format-Serving", "cold": str(cold / "model")}
    found, logits = score_files(models, [str(file) for file in files], {features.LABEL: tf.int64})
    report = TrainingReport.model_validate_json((cold / "run" / REPORT_FILE).read_text())
    auc = {name: float(roc_auc_score(found[features.LABEL], values)) for name, values in logits.items()}
    return auc, report.best_epoch


def main() -> None:
    """Measures the days that the results lack; if any is missing, all days run, since each needs those before it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=7)
    days = parser.parse_args().days
    results = Results(RESULTS)
    cells = [{"day": day + 1, "versions": versions("tensorflow", "tfx")} for day in range(days)]
    if all(results.holds(cell) for cell in cells):
        return
    with tempfile.TemporaryDirectory(prefix="sllmr-schedule-") as directory:
        for cell, measured in zip(cells, run_days(pathlib.Path(directory).resolve(), days), strict=True):
            if not results.holds(cell):
                results.append(cell, measured)


if __name__ == "__main__":
    main()
