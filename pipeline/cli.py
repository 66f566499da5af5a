"""The command line. Imports nothing heavy until a command needs it, so that --help answers at once."""

import argparse
import contextlib
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sllmr.pipeline.datasets.registry import DATASETS

if TYPE_CHECKING:
    from rich.console import Console

    from sllmr.pipeline.config import Config


def _check_configuration(file: str, *, reads_tables: bool) -> None:
    """Refuses a wrong key, value or table's header before TensorFlow and TFX are imported, which takes seconds."""
    from sllmr.pipeline.start import diverted_stderr

    with diverted_stderr(pathlib.Path(os.devnull)):
        from sllmr.pipeline.config import load_config

        config = load_config(file)
        if reads_tables and config.fetch is None:
            from sllmr.components.interactions_example_gen.columns import check_tables

            check_tables(config.data)


def _run(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import start

    config = pathlib.Path(arguments.config)
    output = pathlib.Path(arguments.output) if arguments.output else pathlib.Path("runs") / config.stem
    return 0 if start(config, output) else 1


def _plan(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import diverted_stderr

    contexts = pathlib.Path(arguments.contexts).expanduser().resolve() if arguments.contexts else None
    with tempfile.TemporaryDirectory(prefix="sllmr-log-") as directory:
        log_file = pathlib.Path(directory) / "plan.log"
        with diverted_stderr(log_file):
            from sllmr.pipeline import scoring

            scoring.plan(pathlib.Path(arguments.config), contexts, log_file)
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    with command_log("score", arguments.config, output) as log_file:
        from sllmr.pipeline import scoring

        scoring.score(pathlib.Path(arguments.config), output, log_file, retry_failed=arguments.retry_failed)
    return 0


def _pilot(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    with command_log("pilot", arguments.config, output) as log_file:
        from sllmr.pipeline.pilot import command

        config = pathlib.Path(arguments.config)
        command.pilot(config, output, log_file, usd=arguments.usd, contexts=arguments.contexts)
    return 0


def _backtest(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    with command_log("backtest", arguments.config, output) as log_file:
        from sllmr.pipeline.backtest import command

        command.backtest(pathlib.Path(arguments.config), output, log_file, windows=arguments.windows)
    return 0


def _batch(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    with command_log("batch", arguments.config, output) as log_file:
        from sllmr.pipeline import scoring

        config = pathlib.Path(arguments.config)
        scoring.batch(config, output, log_file, wait=not arguments.no_wait, cancel=arguments.cancel)
    return 0


def _rescore(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import command_log

    output = pathlib.Path(arguments.output).expanduser().resolve()
    table = pathlib.Path(arguments.scores).expanduser().resolve()
    with command_log("rescore", f"{arguments.config}, {table}", output) as log_file:
        from sllmr.pipeline import scoring

        scoring.rescore(
            pathlib.Path(arguments.config),
            table,
            output,
            arguments.max_age_days,
            log_file,
            retry_failed=arguments.retry_failed,
        )
    return 0


def _reservations(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.reservations import reservations

    reservations(pathlib.Path(arguments.config), release=arguments.release)
    return 0


def _ablate(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import command_log

    config = pathlib.Path(arguments.config) if arguments.config else None
    output = pathlib.Path(arguments.output or f"runs/{config.stem if config else 'ablation'}").expanduser().resolve()
    results = pathlib.Path(arguments.results).expanduser().resolve() if arguments.results else output / "results.jsonl"
    if arguments.report:
        from sllmr.pipeline.ablation import report

        commands = [f"sllmr ablate --report --results {os.path.relpath(results)}"]
        if config is not None:
            commands.insert(0, f"sllmr ablate --config {os.path.relpath(config)} --results {os.path.relpath(results)}")
        directory = output if arguments.output else results.parent
        for file in report.render(results, directory, commands=commands):
            print(file)
        return 0
    assert config is not None
    with command_log("ablate", str(config), output):
        if arguments.tune:
            from sllmr.pipeline.ablation import tuning

            tuning.tune(config, output, pathlib.Path(arguments.tune))
        else:
            from sllmr.pipeline.ablation import matrix

            part = matrix.Part(
                domains=arguments.domains,
                backbones=arguments.backbones,
                arms=arguments.arms,
                seeds=arguments.seeds,
            )
            matrix.run_matrix(config, output, results, part)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    with _quiet_console() as console:
        from sllmr.pipeline import offline

        config = _configuration_if_given(arguments.config)
        offline.evaluate(_path(arguments.model), _path(arguments.rows), arguments.rows_from, console, config)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    with _quiet_console() as console:
        from sllmr.pipeline import offline

        models = [_path(arguments.a), _path(arguments.b)]
        config = _configuration_if_given(arguments.config)
        offline.compare(models, _path(arguments.rows), arguments.rows_from, console, config)
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    with _quiet_console() as console:
        from sllmr.pipeline import recommend

        recommend.predict(
            _path(arguments.config),
            _path(arguments.model),
            _path(arguments.output),
            users=_path(arguments.users) if arguments.users else None,
            candidates=_path(arguments.candidates) if arguments.candidates else None,
            n=arguments.n,
            console=console,
            request=dict(arguments.request),
        )
    return 0


def _top(arguments: argparse.Namespace) -> int:
    with _quiet_console() as console:
        from sllmr.pipeline import recommend

        model, request = _path(arguments.model), dict(arguments.request)
        recommend.top(_path(arguments.config), model, arguments.user, arguments.n, console, request)
    return 0


def _configuration_if_given(file: str | None) -> "Config | None":
    from sllmr.pipeline.config import load_config

    return load_config(file) if file else None


def _path(text: str) -> pathlib.Path:
    return pathlib.Path(text).expanduser()


@contextlib.contextmanager
def _quiet_console() -> Iterator["Console"]:
    """Yields a console; until the context ends, what libraries write to file descriptor 2 is dropped."""
    from rich.console import Console

    from sllmr.pipeline.start import diverted_stderr

    with diverted_stderr(pathlib.Path(os.devnull)):
        yield Console(highlight=False)


def _prune(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.served_versions import loaded_versions, prune

    loaded = loaded_versions(arguments.server) if arguments.server else ()
    for path in prune(pathlib.Path(arguments.model), keep=arguments.keep, loaded=loaded):
        print(f"removed {path}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.start import diverted_stderr

    with diverted_stderr(pathlib.Path(os.devnull)):
        from sllmr.pipeline.catalog_export import export_with_catalog
        from sllmr.pipeline.config import load_config

        config = load_config(arguments.config)
        catalog = str(pathlib.Path(arguments.catalog).expanduser().resolve())
        made = export_with_catalog(config, catalog, pathlib.Path(arguments.model))
    print(f"{made.version}: {made.items:,} items, {made.swapped.unseen:,} of them not in the training")
    if (embedding := made.embedding) is not None:
        cost = "" if embedding.cost_usd is None else f" for ${embedding.cost_usd:.4f}"
        print(
            f"{made.swapped.with_vector:,} of these have vectors by {embedding.model}; "
            f"{embedding.texts_embedded:,} texts embedded{cost}, {embedding.texts_cached:,} from the cache"
        )
    return 0


def _data(arguments: argparse.Namespace) -> int:
    data_set = DATASETS[arguments.source]
    tables = data_set.prepare(arguments)
    for what, count in tables.counts.items():
        print(f"{what.replace('_', ' ')}: {count:,}")
    print(f"data:\n  interactions: {tables.interactions}\n  items: {tables.items}")
    if tables.users is not None:
        print(f"  # users: {tables.users}")
    print(data_set.reading)
    return 0


def _ranking_lists(arguments: argparse.Namespace) -> int:
    from sllmr.pipeline.datasets.ranking_lists import convert_ranking_lists

    output = pathlib.Path(arguments.output).expanduser()
    counts = convert_ranking_lists(
        pathlib.Path(arguments.lists).expanduser(),
        output,
        user_name=arguments.user_column,
        items_name=arguments.items_column,
        separator=arguments.separator,
    )
    for what, count in counts.items():
        print(f"{what.replace('_', ' ')}: {count:,}")
    print(f"llm: {{strategy: replay, replay_table: {output}}}")
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
        description="Runs the pipeline. A rerun repeats only the steps whose inputs, configuration, or code changed.",
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
        help="print what scoring would cost, how long it would take, and what it would reach; sends no request",
        description="Chooses users and candidates as a run would, and prints requests, tokens, cost, time at the "
        "configured limits, coverage by slice, and coverage against cost.",
    )
    plan.add_argument("--contexts", metavar="FILE", help="write the planned users and candidates, JSON lines")
    plan.set_defaults(execute=_plan)

    score = commands.add_parser(
        "score",
        help="query the LLM alone, without the rest of the pipeline",
        description="Writes the score table, the failures, and ledger.json. Stop it at any time: every response is "
        "kept, and the same command resumes. A run with the same configuration reads the responses from the cache.",
    )
    score.add_argument("--output", required=True, metavar="DIR", help="where the table is written")
    score.set_defaults(execute=_score)

    pilot = commands.add_parser(
        "pilot",
        help="score a small sample and predict whether scoring the whole plan pays",
        description="Scores a sample of the calibration contexts, trains a base model without their users, and "
        "predicts gain, cost and time at a tenth, half and all of the plan. Writes pilot.json and pilot.html. The "
        "responses are cached and count towards the full run.",
    )
    pilot.add_argument("--output", required=True, metavar="DIR", help="where pilot.json and pilot.html are written")
    pilot.add_argument(
        "--usd", type=_dollars, default=2.0, metavar="USD", help="what the sample may cost at most (default: 2)"
    )
    pilot.add_argument(
        "--contexts",
        type=_count,
        default=200,
        metavar="N",
        help="contexts of the sample if requests cost nothing or an unknown price (default: 200)",
    )
    pilot.set_defaults(execute=_pilot)

    backtest = commands.add_parser(
        "backtest",
        help="run a configuration on past windows, and say whether querying the LLM again in each of them pays",
        description="Runs the configuration, which needs data.window, on successive windows that end at the newest "
        "interaction: once with scores that are brought up to date in each window, once with those of the first "
        "window. Writes backtest.json and backtest.html. Stop it at any time: the same command resumes with the first "
        "window that is missing.",
    )
    backtest.add_argument("--output", required=True, metavar="DIR", help="where the runs and both files are written")
    backtest.add_argument(
        "--windows", type=_count_of_windows, default=6, metavar="N", help="number of windows, at least 2 (default: 6)"
    )
    backtest.set_defaults(execute=_backtest)

    batch = commands.add_parser(
        "batch",
        help="query the LLM by the Batch API: within a day, at a discount",
        description="Submits the requests of score, waits, and fetches the responses into the cache, where score finds "
        "them. Stop it at any time: the same command resumes and submits nothing twice.",
    )
    batch.add_argument("--output", required=True, metavar="DIR", help="where batch.json, the report, is written")
    how = batch.add_mutually_exclusive_group()
    how.add_argument("--no-wait", action="store_true", help="submit, fetch what is ready, and return")
    how.add_argument("--cancel", action="store_true", help="cancel the batches in flight and fetch their responses")
    batch.set_defaults(execute=_batch)

    rescore = commands.add_parser(
        "rescore",
        help="bring a score table up to date: query the LLM only about users whose history changed",
        description="Keeps scoring contexts whose prompt would be the same, and queries the LLM about users whose "
        "history changed and, within the budget, about new users. Writes a complete new table and reports how far the "
        "scores moved. Needs the old table, but not its cache. To train on the result, set llm.strategy: replay.",
    )
    rescore.add_argument("--scores", required=True, metavar="DIR", help="the table: an output of score or rescore")
    rescore.add_argument("--output", required=True, metavar="DIR", help="where the new table is written")
    rescore.add_argument(
        "--max-age-days", type=float, metavar="DAYS", help="score older contexts again (default: llm.max_age_days)"
    )
    rescore.set_defaults(execute=_rescore)

    for command in (score, rescore):
        command.add_argument(
            "--retry-failed",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="query requests again whose earlier responses gave no score, and say first what that costs (default); "
            "--no-retry-failed spends nothing on them",
        )

    reservations = commands.add_parser(
        "reservations",
        help="say what requests of killed runs may have cost, and release it",
        description="A request that was in flight when its run was killed, or that ended without a response, may be on "
        "the endpoint's bill; later runs count its highest possible cost as spent. Compare it with the bill.",
    )
    reservations.add_argument(
        "--release", action="store_true", help="no longer count what runs that have ended reserved"
    )
    reservations.set_defaults(execute=_reservations)

    for command in (plan, score, pilot, backtest, batch, rescore, reservations):
        command.add_argument("--config", required=True, metavar="FILE", help="YAML, as for run")

    ablate = commands.add_parser(
        "ablate",
        help="compare backbones and arms over domains and seeds; the paper's tables",
        description="Trains every cell of the matrix that the results file does not hold yet and appends a JSON line "
        "each. Stop it at any time: the same command resumes. --report needs only the results.",
    )
    ablate.add_argument("--config", metavar="FILE", help="YAML: domains, backbones, arms, seeds")
    ablate.add_argument(
        "--output",
        metavar="DIR",
        help="prepared domains (default: runs/<name of FILE>); with --report the tables (default: beside the results)",
    )
    ablate.add_argument("--results", metavar="FILE", help="JSON lines (default: results.jsonl in the output folder)")
    for names in ("domains", "backbones", "arms"):
        ablate.add_argument(
            f"--{names}", nargs="+", metavar="NAME", help=f"run these {names} of the configuration alone"
        )
    ablate.add_argument("--seeds", nargs="+", type=int, metavar="N", help="run these seeds of the configuration alone")
    what = ablate.add_mutually_exclusive_group()
    what.add_argument("--tune", metavar="FILE", help="search each arm's hyper-parameters by validation AUC into FILE")
    what.add_argument("--report", action="store_true", help="write the tables beside the results, Markdown and HTML")
    ablate.set_defaults(execute=_ablate)

    evaluate = commands.add_parser(
        "evaluate",
        help="every metric of an exported model on rows that it was not trained on",
        description="Prints AUC, per-user AUC, NDCG, hit rate, log loss and calibration error by slice, with 95% "
        "intervals by user. Refuses rows that begin within the model's training period.",
    )
    evaluate.add_argument("--model", required=True, metavar="DIR", help="folder of a pushed version")
    evaluate.set_defaults(execute=_evaluate)

    compare = commands.add_parser(
        "compare",
        help="two exported models on the same rows",
        description="Prints every metric of both models and the paired difference by slice. Refuses rows that begin "
        "within the training period of either model.",
    )
    compare.add_argument("a", metavar="A", help="folder of a pushed version")
    compare.add_argument("b", metavar="B", help="folder of another")
    compare.set_defaults(execute=_compare)

    for command in (evaluate, compare):
        command.add_argument(
            "--rows",
            required=True,
            metavar="PATH",
            help="a table of interactions, CSV or Parquet, with --config; or gzip TFRecords of tf.Examples, a file or "
            "a folder: artifacts/InteractionsExampleGen/examples/N/Split-test of a run",
        )
        command.add_argument(
            "--config",
            metavar="FILE",
            help="YAML of the run that trained the model; needed for a table of interactions",
        )
        command.add_argument(
            "--rows-from",
            metavar="DATE",
            help="time of the first row, for rows that are not in a run's folder (default for a table: the end of the "
            "training)",
        )

    predict = commands.add_parser(
        "predict",
        help="score candidates for users offline, into a CSV file",
        description="Writes user_id, item_id, rank and score of the best items of each user that are not in the user's "
        "history.",
    )
    predict.add_argument("--output", required=True, metavar="FILE", help="the CSV file")
    predict.add_argument("--users", metavar="FILE", help="user ids, one a line (default: all of data.interactions)")
    predict.add_argument("--candidates", metavar="FILE", help="item ids, one a line (default: all of data.items)")
    predict.set_defaults(execute=_predict)

    top = commands.add_parser(
        "top",
        help="a user's history and best items, with titles",
        description="Prints what a user had, latest first, and the best items that the user did not have.",
    )
    top.add_argument("--user", required=True, metavar="ID", help="a user of data.interactions")
    top.set_defaults(execute=_top)

    for command in (predict, top):
        command.add_argument("--config", required=True, metavar="FILE", help="YAML, as for run")
        command.add_argument("--model", required=True, metavar="DIR", help="folder of a pushed version")
        command.add_argument("-n", type=_count, default=10, metavar="N", help="items of a user (default: 10)")
        command.add_argument(
            "--request",
            type=_name_and_value,
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a declared feature of interactions, such as device=phone; once for each (default: missing)",
        )
    prune = commands.add_parser(
        "prune",
        help="remove old versions of a pushed model",
        description="Removes all but the newest versions, with their model cards, never one that a server has loaded.",
    )
    prune.add_argument("--model", required=True, metavar="DIR", help="the run's serving/<model> folder")
    prune.add_argument("--keep", required=True, type=int, metavar="N", help="newest versions to keep, at least 2")
    prune.add_argument(
        "--server", metavar="URL", help="also keep what this server has loaded: http://localhost:8501/v1/models/ranker"
    )
    prune.set_defaults(execute=_prune)

    export = commands.add_parser(
        "export",
        help="put another catalog into a pushed model, without training",
        description="Writes the newest version of a pushed model with other items as its next version.",
    )
    export.add_argument("--config", required=True, metavar="FILE", help="YAML of the run that trained the model")
    export.add_argument("--catalog", required=True, metavar="FILE", help="the table of items, as data.items")
    export.add_argument("--model", required=True, metavar="DIR", help="the run's serving/<model> folder")
    export.set_defaults(execute=_export)

    data = commands.add_parser(
        "data",
        help="prepare a public data set as the tables that a run reads, or ranking lists as a table of scores",
        description="Writes interactions.csv.gz, items.csv.gz, and users.csv.gz if the data set "
        "describes its users. Your own data needs no "
        "preparation: name its two tables in the configuration.",
    )
    sources = data.add_subparsers(dest="source", required=True, metavar="SOURCE")

    prepared = []
    for name, data_set in DATASETS.items():
        source = sources.add_parser(name, help=data_set.help)
        for option, settings in data_set.options.items():
            source.add_argument(option, **settings)
        source.add_argument("--output", required=True, metavar="DIR", help="where the tables are written")
        source.set_defaults(execute=_data)
        prepared.append(source)

    ranking_lists = sources.add_parser(
        "ranking-lists",
        help="ranking lists (a user and items, best first) as a table of scores for llm.replay_table",
        description="Writes user_id, item_id and score, evenly spaced from 1 for the first item of a list to 0 for the "
        "last.",
    )
    ranking_lists.add_argument(
        "--lists",
        required=True,
        metavar="FILE",
        help="CSV or JSON Lines, plain or .gz: user_id and items, a JSON list or text with commas, |, ; or blanks",
    )
    ranking_lists.add_argument("--output", required=True, metavar="FILE", help="the table, .csv or .csv.gz")
    ranking_lists.add_argument("--user-column", metavar="NAME", help="column or key of the user (default: user_id)")
    ranking_lists.add_argument("--items-column", metavar="NAME", help="column or key of the items (default: items)")
    ranking_lists.add_argument("--separator", metavar="TEXT", help="between items (default: found from the file)")
    ranking_lists.set_defaults(execute=_ranking_lists)

    of_models = (evaluate, compare, predict, top, prune, export)
    of_data = (*prepared, ranking_lists)
    for command in (run, plan, score, pilot, backtest, batch, rescore, reservations, ablate, *of_models, *of_data):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def _count_of_windows(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be a number of at least 2, got {text!r}")
    return int(text)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value


def _dollars(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be an amount of US dollars above 0, got {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sllmr`. Returns the exit status: 0 done, 1 failed (the last lines say why), 130 interrupted, 143
    terminated (SIGTERM, which ends a command as Ctrl-C does).
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "data" and getattr(arguments, "download", "") is None:
        given = arguments.reviews is not None and arguments.meta is not None
        if not given:
            parser.error(f"data {arguments.source} needs --reviews FILE and --meta FILE, or --download CATEGORY")
    if arguments.command == "ablate" and not arguments.config and not (arguments.report and arguments.results):
        parser.error("ablate needs --config FILE, or --report with --results FILE")
    execute: Callable[[argparse.Namespace], int] = arguments.execute
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        if arguments.command in (
            "run",
            "plan",
            "score",
            "pilot",
            "backtest",
            "batch",
            "rescore",
            "reservations",
            "predict",
            "top",
            "export",
        ):
            reads_tables = arguments.command in ("run", "score", "pilot", "backtest", "batch")
            _check_configuration(arguments.config, reads_tables=reads_tables)
        return execute(arguments)
    except (KeyboardInterrupt, Exception) as error:
        if arguments.debug:
            raise
        return _report(error)


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread."""


def _terminate(number: int, frame: object) -> None:
    # A second SIGTERM must not cut off what ends the run.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _report(error: BaseException) -> int:
    """Prints one block about an exception that ended a command; returns the exit status."""
    from sllmr.pipeline.start import UnexpectedError, traceback_in
    from sllmr.pipeline.stopped import chain, is_interruption, user_error

    if any(isinstance(link, Terminated) for link in chain(error)):
        print("sllmr: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    if is_interruption(error):
        print("sllmr: interrupted", file=sys.stderr)
        return 130
    fixable = user_error(error)
    if fixable is None and not isinstance(error, UnexpectedError):
        descriptor, log_file = tempfile.mkstemp(prefix="sllmr-", suffix=".log")
        os.close(descriptor)
        try:
            with traceback_in(pathlib.Path(log_file)):
                raise error
        except UnexpectedError as unexpected:
            error = unexpected
    # Beam adds the step to the message of an exception.
    print("sllmr: " + re.sub(r"\s*\[while running [^\]]*\]\s*$", "", str(fixable or error)), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
