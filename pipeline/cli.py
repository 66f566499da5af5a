"""The command line. Imports nothing heavy until a command needs it, so that --help answers at once."""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.datasets.tables import PreparedTables


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.start import start

    config = pathlib.Path(arguments.config)
    output = pathlib.Path(arguments.output) if arguments.output else pathlib.Path("runs") / config.stem
    return 0 if start(config, output) else 1


def _plan(arguments: argparse.Namespace) -> int:
    from pipeline.start import diverted_stderr

    contexts = pathlib.Path(arguments.contexts).expanduser().resolve() if arguments.contexts else None
    with tempfile.TemporaryDirectory(prefix="sllmr-log-") as directory:
        log_file = pathlib.Path(directory) / "plan.log"
        with diverted_stderr(log_file):
            from pipeline import scoring

            scoring.plan(pathlib.Path(arguments.config), contexts, log_file)
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    with command_log("score", arguments.config, output) as log_file:
        from pipeline import scoring

        scoring.score(pathlib.Path(arguments.config), output, log_file)
    return 0


def _batch(arguments: argparse.Namespace) -> int:
    from pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    with command_log("batch", arguments.config, output) as log_file:
        from pipeline import scoring

        config = pathlib.Path(arguments.config)
        scoring.batch(config, output, log_file, wait=not arguments.no_wait, cancel=arguments.cancel)
    return 0


def _rescore(arguments: argparse.Namespace) -> int:
    from pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    table = pathlib.Path(arguments.scores).expanduser().resolve()
    with command_log("rescore", f"{arguments.config}, {table}", output) as log_file:
        from pipeline import scoring

        scoring.rescore(pathlib.Path(arguments.config), table, output, arguments.max_age_days, log_file)
    return 0


def _ablate(arguments: argparse.Namespace) -> int:
    from pipeline.start import command_log

    config = pathlib.Path(arguments.config) if arguments.config else None
    output = pathlib.Path(arguments.output or f"runs/{config.stem if config else 'ablation'}").expanduser().resolve()
    results = pathlib.Path(arguments.results).expanduser().resolve() if arguments.results else output / "results.jsonl"
    if arguments.report:
        from pipeline.ablation import report

        commands = [f"sllmr ablate --report --results {os.path.relpath(results)}"]
        if config is not None:
            commands.insert(0, f"sllmr ablate --config {os.path.relpath(config)} --results {os.path.relpath(results)}")
        for file in report.render(results, results.parent, commands=commands):
            print(file)
        return 0
    assert config is not None
    with command_log("ablate", str(config), output):
        if arguments.tune:
            from pipeline.ablation import tuning

            tuning.tune(config, output, pathlib.Path(arguments.tune))
        else:
            from pipeline.ablation import matrix

            matrix.run_matrix(config, output, results, arguments.domains)
    return 0


def _movielens(arguments: argparse.Namespace) -> int:
    from pipeline.datasets import movielens

    return _say_prepared(movielens.prepare_movielens_100k(arguments.output, arguments.cache_dir))


def _amazon_2014(arguments: argparse.Namespace) -> int:
    from pipeline.datasets import amazon

    if arguments.download:
        arguments.reviews, arguments.meta = amazon.download_amazon_2014(arguments.download, arguments.output)
    return _say_prepared(amazon.prepare_amazon_2014(arguments.reviews, arguments.meta, arguments.output))


def _amazon_2023(arguments: argparse.Namespace) -> int:
    from pipeline.datasets import amazon

    return _say_prepared(amazon.prepare_amazon_2023(arguments.reviews, arguments.meta, arguments.output))


def _say_prepared(tables: "PreparedTables") -> int:
    for what, count in tables.counts.items():
        print(f"{what.replace('_', ' ')}: {count:,}")
    print(f"data:\n  interactions: {tables.interactions}\n  items: {tables.items}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sllmr",
        description="Train a ranking model with an LLM's offline advice where it can be trusted; serve it without one.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run the whole pipeline on one configuration",
        description="Runs the pipeline. A second run repeats only what its inputs, configuration or code changed.",
    )
    run.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="YAML; only data.interactions and data.items have no default",
    )
    run.add_argument("--output", metavar="DIR", help="the run's folder (default: runs/<name of FILE>)")
    run.set_defaults(execute=_run)

    plan = commands.add_parser(
        "plan",
        help="say what asking the LLM would cost, take and reach, without one call",
        description="Chooses users and candidates as a run would, and prints requests, tokens, cost, time at the "
        "configured limits, coverage by slice, and coverage against cost.",
    )
    plan.add_argument("--contexts", metavar="FILE", help="write the planned users and candidates, JSON lines")
    plan.set_defaults(execute=_plan)

    score = commands.add_parser(
        "score",
        help="ask the LLM alone, without the rest of the pipeline",
        description="Writes the score table, the failures and ledger.json. Stop it at any time: every answer is kept, "
        "and the same command goes on. A run with the same configuration asks nothing again.",
    )
    score.add_argument("--output", required=True, metavar="DIR", help="where the table is written")
    score.set_defaults(execute=_score)

    batch = commands.add_parser(
        "batch",
        help="ask the LLM by the Batch API: within a day, at a discount",
        description="Hands over what score would ask, waits, and fetches the answers into the cache, where score finds "
        "them. Stop it at any time: the same command goes on, and hands nothing over twice.",
    )
    batch.add_argument("--output", required=True, metavar="DIR", help="where batch.json, the report, is written")
    how = batch.add_mutually_exclusive_group()
    how.add_argument("--no-wait", action="store_true", help="hand over, fetch what is ready, and return")
    how.add_argument("--cancel", action="store_true", help="stop the batches under way and fetch what they answered")
    batch.set_defaults(execute=_batch)

    rescore = commands.add_parser(
        "rescore",
        help="bring a score table up to date: ask again only about users who chose more since",
        description="Keeps what would be asked in the same words, asks about users whose history has changed and, "
        "where the budget leaves room, about new ones, writes a whole new table, and says how far preferences moved. "
        "Needs the table alone, not the cache that it was scored with. To train with it: llm.strategy replay.",
    )
    rescore.add_argument("--scores", required=True, metavar="DIR", help="the table: an output of score or rescore")
    rescore.add_argument("--output", required=True, metavar="DIR", help="where the new table is written")
    rescore.add_argument(
        "--max-age-days", type=float, metavar="DAYS", help="ask older scores again (default: llm.max_age_days)"
    )
    rescore.set_defaults(execute=_rescore)

    for command in (plan, score, batch, rescore):
        command.add_argument("--config", required=True, metavar="FILE", help="YAML, as for run")

    ablate = commands.add_parser(
        "ablate",
        help="compare backbones and arms over domains and seeds; the paper's tables",
        description="Trains every cell of the matrix that the results file does not hold yet and appends a JSON line "
        "each. Stop it at any time: the same command goes on. --report needs the results alone.",
    )
    ablate.add_argument("--config", metavar="FILE", help="YAML: domains, backbones, arms, seeds")
    ablate.add_argument("--output", metavar="DIR", help="prepared domains (default: runs/<name of FILE>)")
    ablate.add_argument("--results", metavar="FILE", help="JSON lines (default: results.jsonl in the output folder)")
    ablate.add_argument("--domains", nargs="+", metavar="NAME", help="run these of the configuration alone")
    what = ablate.add_mutually_exclusive_group()
    what.add_argument("--tune", metavar="FILE", help="search each arm's hyper-parameters by validation AUC into FILE")
    what.add_argument("--report", action="store_true", help="write the tables beside the results, Markdown and HTML")
    ablate.set_defaults(execute=_ablate)

    data = commands.add_parser(
        "data",
        help="prepare a public data set as the two tables that a run reads",
        description="Writes interactions.csv.gz and items.csv.gz. Your own data needs no preparation: name its two "
        "tables in the configuration.",
    )
    sources = data.add_subparsers(dest="source", required=True, metavar="SOURCE")

    movielens = sources.add_parser("movielens-100k", help="downloads MovieLens-100K (2 MB, pinned hash)")
    movielens.add_argument("--cache-dir", default="~/.cache/sllmr", metavar="DIR", help="where the download is kept")
    movielens.set_defaults(execute=_movielens)

    amazon_2014 = sources.add_parser(
        "amazon-2014",
        help="reviews_X_5.json.gz and meta_X.json.gz as published in 2014, from files or downloaded",
    )
    amazon_2014.add_argument("--download", metavar="CATEGORY", help="fetch that category first, e.g. Beauty")
    amazon_2014.set_defaults(execute=_amazon_2014)

    amazon_2023 = sources.add_parser("amazon-2023", help="reviews and metadata as JSON Lines, 2023, from files")
    amazon_2023.set_defaults(execute=_amazon_2023)

    for source in (amazon_2014, amazon_2023):
        source.add_argument("--reviews", metavar="FILE", help="the reviews as published, plain or .gz")
        source.add_argument("--meta", metavar="FILE", help="the items' metadata as published, plain or .gz")
    for source in (movielens, amazon_2014, amazon_2023):
        source.add_argument("--output", required=True, metavar="DIR", help="where the two tables are written")
    return parser


def _is_interruption(error: BaseException | None) -> bool:
    # Beam reports a Ctrl-C within a step as an error of that step.
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sllmr`. Returns the exit status: 0 done, 1 failed (the reason stands on the last lines)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "data" and arguments.source != "movielens-100k":
        given = bool(arguments.reviews) and bool(arguments.meta)
        if not given and not getattr(arguments, "download", None):
            parser.error(f"data {arguments.source} needs --reviews FILE and --meta FILE")
    if arguments.command == "ablate" and not arguments.config and not (arguments.report and arguments.results):
        parser.error("ablate needs --config FILE, or --report with --results FILE")
    execute: Callable[[argparse.Namespace], int] = arguments.execute
    try:
        return execute(arguments)
    except (KeyboardInterrupt, Exception) as error:
        if _is_interruption(error):
            print("sllmr: interrupted", file=sys.stderr)
            return 130
        # The traceback is in the run's log; here a person needs the rule, the value and the fix.
        print(f"sllmr: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
