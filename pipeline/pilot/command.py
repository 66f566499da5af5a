"""`sllmr pilot`: scores a sample of the plan, trains a base model without the sample's users, and predicts the gain."""

import contextlib
import dataclasses
import functools
import glob
import os
import pathlib
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from rich.console import Console

from sllmr.components.catalog import Item, read_catalog
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.cost.estimate import Estimator, expected_seconds
from sllmr.components.llm_scorer.cost.forecast import Forecast
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.plan import planned_contexts
from sllmr.components.llm_scorer.jobs.scoring import score_contexts
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.needs import check_needs
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.pair_builder.transforms import user_of_context
from sllmr.components.scores import read_scores
from sllmr.models import features, inputs, preprocessing
from sllmr.models.item_vectors import VECTORS_FILE, read_item_vectors
from sllmr.models.ranking import RankingModel
from sllmr.models.replicas import distribution
from sllmr.models.tf_examples import read_tfrecords
from sllmr.models.training.recipe import Setup, fit_base_model
from sllmr.pipeline import run_folder
from sllmr.pipeline.beam_config import check_runner
from sllmr.pipeline.config import Config, ConfigError, load_config
from sllmr.pipeline.console import run_log
from sllmr.pipeline.dag_runner import DagRunner
from sllmr.pipeline.datasets.fetch import fetch_missing
from sllmr.pipeline.folder_lock import folder_lock, without_wildcards
from sllmr.pipeline.graph import build_rows_pipeline
from sllmr.pipeline.inputs import check_inputs
from sllmr.pipeline.pilot import estimate, page
from sllmr.pipeline.pilot.estimate import PilotRows, PlanPart
from sllmr.pipeline.pilot.result import COVERAGES, FILE_NAME, PilotReport
from sllmr.pipeline.pilot.rows import CalibrationPairs, calibration_pairs, pilot_rows
from sllmr.pipeline.pilot.sample import in_proportion, within
from sllmr.pipeline.stopped import what_is_kept
from sllmr.pipeline.summary import read_steps

WORK_DIRECTORY = "work"
_VALID_BATCH = 4096

Artifacts = Mapping[str, Mapping[str, str]]
"""Folders by step and output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """The sample and its scores.

    Attributes:
        pairs: of the sample.
        curve: forecasts of the whole plan, after the sample.
        cost_usd: of all responses of the sample; None if no price is known.
    """

    pairs: CalibrationPairs
    curve: list[Forecast]
    cost_usd: float | None


def pilot(
    config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path, *, usd: float, contexts: int
) -> PilotReport:
    """Predicts whether scoring the configured plan pays; writes pilot.json and pilot.html.

    Args:
        config_file: YAML, see pipeline.config.
        output: an absolute folder.
        log_file: gets every log record; the terminal gets progress and the advice.
        usd: what the responses of the sample may cost together, earlier ones included.
        contexts: largest size of the sample if requests cost nothing or their price is unknown.

    Raises:
        ConfigError, DataError, LlmError: as `sllmr score`, or the plan holds too few calibration contexts.
    """
    started = time.monotonic()
    console = Console(highlight=False)
    config = load_config(config_file)
    check(config)
    fetch_missing(config, console)
    check_inputs(config)
    check_runner(config.beam)
    again = ["sllmr", "pilot", "--config", str(config_file), "--output", str(output)]
    again += ["--usd", f"{usd:g}", "--contexts", str(contexts)]
    folder = without_wildcards(output)
    pipeline = build_rows_pipeline(config, folder)
    with folder_lock(output, console):
        run_folder.prepare(output, pipeline.pipeline_info.pipeline_name, console)
        with run_log(log_file, console, steps=len(pipeline.components)), _work(folder) as work:
            DagRunner(config.beam).run(pipeline)
            artifacts = {step: made.outputs for step, made in read_steps(folder).items()}
            try:
                scored = _score(config, artifacts, work, usd=usd, contexts=contexts)
            except BaseException as error:
                kept = what_is_kept(error, config.store or config.cache_dir, shlex.join(again))
                console.print(kept, style="yellow", markup=False, soft_wrap=True)
                raise
            console.print("Training the base model without the sample's users", style="dim")
            model = _base_model(config, artifacts, scored.pairs)
        rows = pilot_rows(scored.pairs, model, config.gate, config.llm.candidates.short_history_max)
        data = read_report(artifacts["InteractionsExampleGen"]["report"])
        report = _report(config, rows, scored, data.splits["test"].users, time.monotonic() - started)
        (output / FILE_NAME).write_text(report.model_dump_json(indent=2), encoding="utf-8")
        page.write(report, output / page.FILE_NAME)
    page.show(report, console)
    console.print(f"Pilot      {output / page.FILE_NAME}", soft_wrap=True)
    return report


def check(config: Config) -> None:
    """Refuses a configuration of which no pilot can be made, before anything is read.

    Raises:
        ConfigError: the configuration has no LLM or no calibration pairs.
        LlmError: see check_needs.
    """
    if config.loss.llm_weight == 0:
        raise ConfigError(
            "a pilot predicts what the LLM's pairs bring, and with loss.llm_weight 0 there are none; set "
            "loss.llm_weight above 0 or remove the key"
        )
    if config.llm.candidates.calibration_fraction == 0:
        raise ConfigError(
            "a pilot needs calibration pairs, and llm.candidates.calibration_fraction is 0; set it above 0 or remove "
            "the key"
        )
    check_needs(config.llm)


@contextlib.contextmanager
def _work(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder for scores and for plans, which hold user ids. It is removed at the end; the cache keeps responses."""
    work = folder / WORK_DIRECTORY
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _score(config: Config, artifacts: Artifacts, work: pathlib.Path, *, usd: float, contexts: int) -> Scored:
    examples = artifacts["InteractionsExampleGen"]["examples"]
    catalog_directory = artifacts["InteractionsExampleGen"]["catalog"]
    whole = _workspace(config, artifacts, work / "plan")
    users = forecast_job(whole, _train_rows(examples))[-1].reached["users"].of
    catalog = read_catalog(catalog_directory)
    planned = list(planned_contexts(whole))
    llm = config.llm.with_item_vectors(whole.item_vectors_file).resolve()
    ordered = in_proportion(planned, catalog, llm.candidates.short_history_max)
    with contextlib.closing(ResponseCache(config.store or config.cache_dir)) as cache:
        new_estimator = functools.partial(Estimator, catalog, create_strategy(llm), llm, cache)
        sample = within(ordered, users=users, usd=usd, contexts=contexts, estimator=new_estimator)
    ids = {context.context_id for context in sample}
    of_rows = (
        found
        for path in sorted(glob.glob(_files(examples, "train")))
        for row in read_tfrecords(path)
        for found in user_of_context(row, llm.seed, config.data.feature_sizes)
    )
    of_contexts = {context: values for context, values in of_rows if context in ids}
    part = dataclasses.replace(
        _workspace(config, artifacts, work / "sample"), config=_within_budget(config.llm, usd, llm.price is not None)
    )
    book = score_contexts(part, [dataclasses.replace(context, user_id="") for context in sample])
    pairs = _calibration_pairs(config, artifacts, part.output_directory, of_contexts, catalog)
    costs = [book.cost_usd, book.cost_of_cached_responses_usd]
    cost = None if None in costs else sum(usd for usd in costs if usd is not None)
    again = dataclasses.replace(whole, held_out_rows=_held_out_rows(examples))
    return Scored(pairs=pairs, curve=forecast_job(again, _train_rows(examples)), cost_usd=cost)


def _within_budget(config: LlmConfig, usd: float, has_price: bool) -> LlmConfig:
    """The configuration with `usd` as the cap, or its own if that is lower; unchanged without a known price."""
    if not has_price:
        return config
    cap = min(usd, config.budget.max_cost_usd or usd)
    return config.model_copy(update={"budget": config.budget.model_copy(update={"max_cost_usd": cap})})


def _workspace(config: Config, artifacts: Artifacts, work: pathlib.Path) -> Workspace:
    output = work / "scores"
    output.mkdir(parents=True)
    examples = artifacts["InteractionsExampleGen"]["examples"]
    vectors = None
    if config.scorer_reads_item_vectors:
        vectors = os.path.join(artifacts["ItemEmbedder"]["item_vectors"], VECTORS_FILE)
    return Workspace(
        config=config.llm,
        catalog_directory=artifacts["InteractionsExampleGen"]["catalog"],
        cache_directory=config.cache_dir,
        store_url=config.store,
        work_directory=str(work),
        output_directory=str(output),
        make_pipeline=functools.partial(beam.Pipeline, argv=list(config.beam.pipeline_args)),
        item_vectors_file=vectors,
        pair_yield=config.pair_yield,
        held_out_rows=_held_out_rows(examples),
    )


def _train_rows(examples: str) -> beam.PTransform:
    """A fresh one for each plan: Beam ties it to the first pipeline."""
    return beam.io.ReadFromTFRecord(_files(examples, "train"))


def _held_out_rows(examples: str) -> beam.PTransform:
    """The validation and test rows, also fresh for each plan."""
    patterns = beam.Create([_files(examples, split) for split in ("valid", "test")])
    return patterns | beam.io.ReadAllFromTFRecord()


def _files(examples: str, split: str) -> str:
    return os.path.join(examples, f"Split-{split}", "*")


def _calibration_pairs(
    config: Config,
    artifacts: Artifacts,
    scores: str,
    contexts: Mapping[str, tuple[str, Mapping[str, Any]]],
    catalog: Mapping[str, Item],
) -> CalibrationPairs:
    transform = tft.TFTransformOutput(artifacts["Transform"]["transform_graph"]).transform_features_layer()
    return calibration_pairs(read_scores(scores), contexts, catalog, config.data.feature_sizes, transform)


def _base_model(config: Config, artifacts: Artifacts, pairs: CalibrationPairs) -> RankingModel:
    """Trained as the Trainer would, without the users of the pairs."""
    transform_output = tft.TFTransformOutput(artifacts["Transform"]["transform_graph"])
    item_ids = [i.decode() for i in transform_output.vocabulary_by_name(features.ITEMS)]
    catalog = read_catalog(artifacts["InteractionsExampleGen"]["catalog"])
    vectors = None
    if config.model.item_vectors:
        file = os.path.join(artifacts["ItemEmbedder"]["item_vectors"], VECTORS_FILE)
        vectors = read_item_vectors(file).by_index(item_ids)
    sizes = config.data.feature_sizes
    columns = preprocessing.transformed_columns(transform_output, sizes, use_user_id=config.model.use_user_id)

    def rows(split: str, batch_size: int, shuffle_buffer: int | None) -> tf.data.Dataset:
        pattern = os.path.join(artifacts["Transform"]["transformed_examples"], f"Split-{split}", "*")
        return inputs.read_rows(
            [pattern], columns, batch_size=batch_size, shuffle_buffer=shuffle_buffer, seed=config.train.seed
        )

    setup = Setup(
        vocabulary=preprocessing.vocabulary_sizes(transform_output, use_user_id=config.model.use_user_id, sizes=sizes),
        model=config.model,
        gate=config.gate,
        loss=config.loss,
        train=config.train,
        rows=functools.partial(rows, "train", config.train.batch_size, config.train.shuffle_buffer),
        valid=rows("valid", _VALID_BATCH, None),
        item_vectors=vectors,
        new_items=np.array([False, *(catalog[item_id].train_count == 0 for item_id in item_ids), False]),
        strategy=distribution(config.train),
    )
    return fit_base_model(setup, pairs.columns, np.ones(len(pairs.context), bool)).model


def _report(config: Config, rows: PilotRows, scored: Scored, test_users: int, seconds: float) -> PilotReport:
    users = len(np.unique(rows.user))
    stacked = estimate.stack(rows)
    found = estimate.gain(rows, stacked)
    cells = estimate.reliability(rows, stacked)
    llm = config.llm.resolve()
    advice = estimate.advise(found, cells)
    return PilotReport(
        **advice.model_dump(),
        name=config.name,
        model=llm.model,
        strategy=llm.strategy or "",
        predicted=estimate.predict(found, plan_parts(scored.curve, llm), users=users, test_users=test_users),
        gain=found,
        reliability=cells,
        contexts=len(np.unique(rows.context)),
        pairs=estimate.number_of_pairs(rows),
        users=users,
        distillation_kept=estimate.KEPT,
        distillation_kept_range=(estimate.KEPT_LEAST, estimate.KEPT_MOST),
        cost_usd=scored.cost_usd,
        seconds=round(seconds, 1),
    )


def plan_parts(curve: Sequence[Forecast], config: LlmConfig) -> list[PlanPart]:
    """The forecasts at COVERAGES; `config` is resolved."""
    parts = []
    for coverage in COVERAGES:
        at = min(curve, key=lambda step: abs(step.fraction - coverage))
        cost = at.size.cost_nano_usd
        parts.append(
            PlanPart(
                coverage=coverage,
                users_reached=at.reached["users"].fraction,
                cost_usd=None if cost is None else cost / 1e9,
                seconds=expected_seconds(at.size, config)[0],
            )
        )
    return parts
