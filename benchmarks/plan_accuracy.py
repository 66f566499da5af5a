"""How near a plan comes to the bill: the real local LLM, each strategy, from an empty cache.

    python -m benchmarks.plan_accuracy [--config FILE] [--pairs 120] [--strategies yes_no ...]

For each strategy it scores with a fresh cache and compares the estimate made before the first call, which is what
`sllmr plan` prints, with the tokens that the server then counted. Costs are at the prices of gpt-4o-mini, since the
local model itself costs nothing. results/plan_accuracy.jsonl gets a line for each cell; cells that it already has are
skipped.
"""

import argparse
import os
import pathlib
import tempfile
from typing import Any

import yaml

from benchmarks.measurement import Results, versions

FOLDER = pathlib.Path(__file__).parent
CONFIG = FOLDER.parent / "configs" / "quickstart.yaml"
RESULTS = FOLDER / "results" / "plan_accuracy.jsonl"
STRATEGIES = ("listwise", "yes_no", "title_likelihood")
PRICE = {"prompt": 0.15, "cached_prompt": 0.075, "completion": 0.60}


def measure(config_file: pathlib.Path, strategy: str, pairs: int, cache: pathlib.Path) -> dict[str, Any]:
    """Scores by one strategy from an empty cache of answers; only the model weights come from `cache`."""
    from sllmr.pipeline import scoring

    settings = yaml.safe_load(config_file.read_text())
    with tempfile.TemporaryDirectory(prefix="plan-accuracy-") as directory:
        work = pathlib.Path(directory)
        (work / "cache").mkdir()
        (cache / "models").mkdir(parents=True, exist_ok=True)
        os.symlink(cache / "models", work / "cache" / "models")
        settings["cache_dir"] = str(work / "cache")
        for table in ("interactions", "items"):
            settings["data"][table] = str(config_file.resolve().parent / settings["data"][table])
        settings["llm"] = {
            "strategy": strategy,
            "budget": {"pairs": pairs},
            "price_per_million_tokens": PRICE,
            # The bundled model's listwise answers are all cut off; only their cost matters here.
            "max_failure_rate": 1,
            # Long enough for a busy machine: a retry would be billed twice.
            "timeout_s": 3600,
        }
        (work / "config.yaml").write_text(yaml.safe_dump(settings))
        book = scoring.score(work / "config.yaml", work / "scores", work / "score.log")
    assert book.cost_usd is not None  # the settings name a price
    assert book.estimated_cost_usd is not None
    billed, estimated = book.tokens.model_dump(), book.estimated_tokens.model_dump()
    return {
        "requests": book.requests.sent,
        "billed": {**billed, "cost_usd": book.cost_usd},
        "estimated": {**estimated, "cost_usd": book.estimated_cost_usd},
        "estimated_by_billed": {
            **{name: round(estimated[name] / billed[name], 3) for name in billed if billed[name]},
            "cost_usd": round(book.estimated_cost_usd / book.cost_usd, 3),
        },
        "versions": versions("xllamacpp"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=pathlib.Path, default=CONFIG, help="names the data")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--cache-dir", type=pathlib.Path, default=pathlib.Path("~/.cache/sllmr"))
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    results = Results(arguments.results)
    for strategy in arguments.strategies:
        cell = {"data": arguments.config.stem, "strategy": strategy, "pairs": arguments.pairs}
        if not results.holds(cell):
            cache = arguments.cache_dir.expanduser().resolve()
            results.append(cell, measure(arguments.config, strategy, arguments.pairs, cache))


if __name__ == "__main__":
    main()
