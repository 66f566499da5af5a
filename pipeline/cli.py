"""The command line. Imports nothing heavy until a command needs it, so that --help answers at once."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

_DATA_HELP = """\
sources:
  movielens-100k   downloads MovieLens-100K (2 MB, pinned hash)
  amazon-2014      5-core reviews and metadata as published in 2014: reviews_X_5.json.gz, meta_X.json.gz
  amazon-2023      reviews and metadata as JSON Lines, 2023
"""


def _run(arguments: argparse.Namespace) -> None:
    from pipeline import runner

    config = pathlib.Path(arguments.config)
    runner.run(config, pathlib.Path(arguments.output or pathlib.Path("runs") / config.stem))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sllmr", description="Train a ranking model with an LLM's offline advice where it can be trusted; serve it without."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the whole pipeline on one configuration")
    run.add_argument("--config", required=True, metavar="FILE", help="YAML; only data.interactions and data.items have no default")
    run.add_argument("--output", metavar="DIR", help="the run's folder; runs/<the file's name> where not given")
    run.set_defaults(execute=_run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sllmr`. Returns the exit status: 0, 1 failed, 2 wrong usage or configuration."""
    arguments = _parser().parse_args(argv)
    execute: Callable[[argparse.Namespace], None] = arguments.execute
    execute(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
