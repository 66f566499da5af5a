"""`sllmr backtest`: runs a configuration window after window, once rescored and once with the first window's scores.

rescored       window 1 -- window 2 -- window 3 ...   one folder: warm start, llm.rescore
                  |  its record and its score table
scored_once       +------- window 2 -- window 3 ...   one folder: warm start, llm.strategy replay
"""

import glob
import os
import pathlib
import shlex
import shutil
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from tfx.utils import path_utils

from sllmr.components.evaluator.slices import slice_rule
from sllmr.components.llm_comparison.scoring import score_rows
from sllmr.components.llm_scorer.errors import NothingToReplay
from sllmr.components.llm_scorer.needs import check_needs
from sllmr.pipeline import runner
from sllmr.pipeline.backtest import gains, page, progress, series
from sllmr.pipeline.backtest.result import (
    RESCORED,
    SCORED_ONCE,
    SLICES,
    BacktestReport,
    MeanDifference,
    Period,
    RescoringGain,
    Series,
    SeriesName,
    WindowDifference,
    WindowResult,
)
from sllmr.pipeline.backtest.windows import plan_windows, read_times
from sllmr.pipeline.beam_config import check_runner
from sllmr.pipeline.config import Config, load_config
from sllmr.pipeline.datasets.fetch import fetch_missing
from sllmr.pipeline.folder_lock import folder_lock, without_wildcards
from sllmr.pipeline.inputs import check_inputs
from sllmr.pipeline.run_folder import METADATA_FILE
from sllmr.pipeline.run_summary import RunSummary
from sllmr.pipeline.stopped import user_error
from sllmr.pipeline.summary import Step, read_steps

PARTS_DIRECTORY = "windows"
"""Summary and user parts of each window and series."""

FIRST_SCORES = "scores-of-window-1"


class _Place(NamedTuple):
    """Where a backtest writes and shows what it does.

    Attributes:
        output: of the command.
        log_file: gets every log record.
        console: gets progress and results.
        again: the command that resumes.
    """

    output: pathlib.Path
    log_file: pathlib.Path
    console: Console
    again: str

    def series(self, name: SeriesName) -> pathlib.Path:
        """The folder of the runs of a series."""
        return self.output / name

    def first_scores(self) -> pathlib.Path:
        """The score table of window 1, which the other series replays."""
        return without_wildcards(self.output) / FIRST_SCORES


def backtest(
    config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path, *, windows: int
) -> BacktestReport:
    """Runs both series over all windows that the folder does not hold yet; writes backtest.json and backtest.html.

    Args:
        config_file: YAML with data.window, see pipeline.config.
        output: an absolute folder.
        log_file: gets every log record; the terminal gets progress and results.
        windows: how many, at least 2.

    Raises:
        ConfigError, DataError: no such backtest can be made; nothing was run.
        FolderError: the folder holds another backtest.
        LlmError: as `sllmr run`.
    """
    console = Console(highlight=False)
    config = load_config(config_file)
    series.check(config)
    fetch_missing(config, console)
    check_inputs(config)
    check_runner(config.beam)
    check_needs(config.llm)
    periods = plan_windows(config.data, read_times(config.data), windows)
    again = ["sllmr", "backtest", "--config", str(config_file), "--output", str(output), "--windows", str(windows)]
    place = _Place(output, log_file, console, shlex.join(again))
    with folder_lock(output, console):
        (output / PARTS_DIRECTORY).mkdir(exist_ok=True)
        report = progress.begin(config, periods, output)
        progress.write(report, output)  # from now on, no other configuration continues in this folder
        _announce(report, console)
        for period in periods:
            for name in (RESCORED, SCORED_ONCE):
                report = _with_window(report, name, period, place)
        page.write(report, output / page.FILE_NAME)
    page.show(report, console)
    console.print(f"Backtest   {output / page.FILE_NAME}", soft_wrap=True)
    return report


def _announce(report: BacktestReport, console: Console) -> None:
    count = len(report.periods)
    done = sum(len(one.windows) for one in report.series.values())
    console.print(
        f"{count} windows, test days from {report.periods[0].test_from} to {report.periods[-1].until}; {2 * count - 1} "
        "runs, because both series have the first one in common. Each run that queries the LLM says what it will cost "
        "before its first request; llm.budget holds for each window",
        soft_wrap=True,
    )
    if done:
        console.print(f"{done} of {2 * count} windows of the two series are there already", soft_wrap=True)


def _with_window(report: BacktestReport, name: SeriesName, period: Period, place: _Place) -> BacktestReport:
    """The report with one more window of a series, unless it is there or the series has ended."""
    before = report.series[name]
    if before.ended_because is not None or len(before.windows) >= period.number:
        return report
    if name == SCORED_ONCE and period.number == 1:
        after = _first_window_in_common(report.series[RESCORED], place)
    else:
        place.console.print(
            f"\n[bold]Window {period.number} of {len(report.periods)}, {name}[/bold]: tests {period.test_from} to "
            f"{period.until}",
            soft_wrap=True,
        )
        try:
            window = _run(report.config, name, period, place)
            after = Series(windows=(*before.windows, window))
        except Exception as error:
            if not (name == SCORED_ONCE and isinstance(user_error(error), NothingToReplay)):
                raise
            reason = (
                f"no scoring context of window 1 is in the train rows of window {period.number}; raise data.window.days"
            )
            place.console.print(f"scored_once ends: {reason}", style="yellow", soft_wrap=True)
            after = before.model_copy(update={"ended_because": reason})
    after = after.model_copy(update={"mean": _means(name, after, place.output)})
    both: dict[SeriesName, Series] = {**report.series, name: after}
    report = report.model_copy(update={"series": both, "rescoring": _rescoring(both, place.output)})
    progress.write(report, place.output)
    page.write(report, place.output / page.FILE_NAME)
    return report


def _run(config: Config, name: SeriesName, period: Period, place: _Place) -> WindowResult:
    folder = place.series(name)
    folder.mkdir(exist_ok=True)
    if name == RESCORED:
        of_window = series.rescored(config, period.until)
    else:
        of_window = series.scored_once(config, period.until, str(place.first_scores()))
    summary = runner.run_config(of_window, folder, place.log_file, place.console, place.again)
    assert summary is not None  # None is for TFX's command line alone
    steps = read_steps(without_wildcards(folder))
    gains.save(_parts(steps), _parts_file(place.output, name, period.number))
    shutil.copy2(folder / runner.SUMMARY_FILE, place.output / PARTS_DIRECTORY / f"{name}-{period.number}.json")
    return _result(period.number, summary)


def _first_window_in_common(rescored: Series, place: _Place) -> Series:
    """Starts the series that scores once from the first window of the other one, so that it is not run twice.

    The copied record names the artifacts where they are, in the folder of the other series: warm start and drift of the
    second window find them there.
    """
    place.series(SCORED_ONCE).mkdir(exist_ok=True)
    steps = read_steps(without_wildcards(place.series(RESCORED)))
    shutil.rmtree(place.first_scores(), ignore_errors=True)
    shutil.copytree(steps["LlmScorer"].outputs["scores"], place.first_scores())
    shutil.copy2(_parts_file(place.output, RESCORED, 1), _parts_file(place.output, SCORED_ONCE, 1))
    shutil.copy2(place.series(RESCORED) / METADATA_FILE, place.series(SCORED_ONCE) / METADATA_FILE)
    return Series(windows=rescored.windows[:1])


def _parts(steps: Mapping[str, Step]) -> dict[str, gains.UserParts]:
    """The user parts of a run's test rows, scored by the models with and without pairs as LlmComparison does."""
    with_pairs, without_pairs = (
        path_utils.serving_model_path(steps[step].outputs["model"]) for step in ("Trainer", "TrainerWithoutPairs")
    )
    files = glob.glob(os.path.join(glob.escape(steps["InteractionsExampleGen"].outputs["examples"]), "Split-test", "*"))
    rows = score_rows(with_pairs, without_pairs, files, {name: slice_rule(name) for name in SLICES})
    return gains.parts_of(rows.users, rows.labels, rows.with_llm, rows.without_llm, rows.slices)


def _result(number: int, summary: RunSummary) -> WindowResult:
    assert summary.verdict is not None
    assert summary.llm is not None
    start = summary.training.warm_start
    return WindowResult(
        number=number,
        slices={name: summary.verdict.slices[name] for name in SLICES},
        popularity=summary.popularity_baseline["overall"].auc,
        took_pairs=summary.verdict.choice.with_llm,
        blessed=summary.blessed,
        contexts=summary.llm.contexts,
        pairs=summary.llm.pairs.pairs,
        requests=summary.llm.requests,
        cost_usd=summary.verdict.cost_usd,
        rescore=summary.llm.rescore,
        cold_because=None if start is None else start.cold_because,
        drift=tuple(distance for distance in summary.drift.distances if distance.against == "last_run"),
        code=summary.run.code,
        seconds=summary.seconds,
    )


def _means(name: SeriesName, one: Series, output: pathlib.Path) -> dict[str, MeanDifference]:
    parts = [(window, gains.load(_parts_file(output, name, window.number))) for window in one.windows]
    means = {}
    for part in SLICES:
        measured = [(found[part], window.slices[part].examples) for window, found in parts if part in found]
        if measured:
            means[part] = gains.mean_gain(*zip(*measured, strict=True))
    return means


def _rescoring(both: Mapping[SeriesName, Series], output: pathlib.Path) -> RescoringGain | None:
    """Compares the windows from the second one on that both series have."""
    compared, windows, rows = [], [], []
    for window in both[RESCORED].windows[1 : len(both[SCORED_ONCE].windows)]:
        first, second = (gains.load(_parts_file(output, name, window.number)) for name in (RESCORED, SCORED_ONCE))
        if "overall" not in first:
            continue
        parts = gains.against(first["overall"], second["overall"])
        found = gains.compare_parts(parts)
        compared.append(parts)
        rows.append(window.slices["overall"].examples)
        windows.append(
            WindowDifference(number=window.number, difference=found.difference, lower=found.lower, upper=found.upper)
        )
    if not windows:
        return None
    rescored = [window for window in both[RESCORED].windows if window.number in {w.number for w in windows}]
    costs = [window.cost_usd for window in rescored]
    return RescoringGain(
        windows=tuple(windows),
        mean=gains.mean_gain(compared, rows),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        requests=sum(window.requests.planned for window in rescored),
    )


def _parts_file(output: pathlib.Path, name: SeriesName, number: int) -> pathlib.Path:
    return output / PARTS_DIRECTORY / f"{name}-{number}.npz"
