"""Seven simulated days of a schedule, by the steps that spend money and train, without an orchestrator.

`python -m benchmarks.schedule` runs the same days as a user does, with every step.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
import tensorflow as tf
from tfx.types import standard_artifacts

from benchmarks.schedule import configuration, scores_of, write_tables
from sllmr.components import examples
from sllmr.components.artifacts import ItemCatalog, LlmScores
from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX, read_catalog
from sllmr.components.interactions_example_gen import rows
from sllmr.components.interactions_example_gen.config import iso_to_milliseconds
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.interactions_example_gen.transforms import (
    PrepareInteractions,
    WriteCatalog,
    WriteItemsOfUsers,
    WriteReport,
)
from sllmr.components.llm_scorer.executor import LAST_SCORES, Executor
from sllmr.components.llm_scorer.results import ScoringLedger, read_ledger
from sllmr.components.scores import read_scores
from sllmr.models import features, signatures
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.features import FeatureSizes, VocabularySizes
from sllmr.models.parsing import parsing_spec
from sllmr.models.ranking import RankingModel, scorer
from sllmr.models.serving.index_lookup import IndexLookup
from sllmr.models.training.loop import predict
from sllmr.models.training.recipe import train
from sllmr.models.warm_start import read_earlier_model, start_from
from sllmr.pipeline.config import Config
from sllmr.pipeline.last_scores import EXAMPLES, LAST, LastScoresStrategy
from tests.components.llm_scorer.stub_server import StubHandler, StubServer, chat_response, running_stub
from tests.models.test_training import auc_by_counting

pytestmark = pytest.mark.slow

DAYS = 7
SIZES = FeatureSizes()
COLUMNS = features.row_features(SIZES)
PRICE_OF_A_REQUEST = (800 * 1.0 + 200 * 0.5 + 100 * 4.0) / 1e6
"""USD, by the tokens that the stub reports and the prices of the configuration."""


class Day(NamedTuple):
    """What one day left, and the bodies of its requests."""

    rows: standard_artifacts.Examples
    catalog: ItemCatalog
    scores: LlmScores
    book: ScoringLedger
    sent: list[str]


def prepare(directory: pathlib.Path, config: Config, number: int) -> tuple[standard_artifacts.Examples, ItemCatalog]:
    made, catalog = standard_artifacts.Examples(), ItemCatalog()
    made.id, made.uri, catalog.uri = number, str(directory / "rows"), str(directory / "catalog")
    examples.prepare(made, rows.SPLITS)
    with beam.Pipeline() as pipeline:
        output = pipeline | PrepareInteractions(config.data)
        for split in rows.SPLITS:
            output[split] | f"Write_{split}" >> examples.write_split(made, split)
        output["catalog"] | beam.ParDo(WriteCatalog(catalog.uri))
        output["earlier_positives"] | WriteItemsOfUsers(catalog.uri, EARLIER_POSITIVES_PREFIX)
        output["report"] | beam.ParDo(WriteReport(catalog.uri))
    last = read_report(catalog.uri).splits[rows.TRAIN].last
    assert last is not None
    made.set_int_custom_property(examples.TRAIN_UNTIL, iso_to_milliseconds(last))
    return made, catalog


def run_day(root: pathlib.Path, day: int, stub: StubServer, tables: list[LlmScores]) -> Day:
    directory = root / f"day-{day}"
    (directory / "scores").mkdir(parents=True)
    write_tables(root, day)
    config = Config.model_validate(configuration(stub.base_url, day))
    data = {name: str(root / f"{name}.csv") for name in ("interactions", "items")}
    config = config.model_copy(update={"data": config.data.model_copy(update=data)})
    made, catalog = prepare(directory, config, number=100 + day)
    scores = LlmScores()
    scores.id, scores.uri = 200 + day, str(directory / "scores")
    found = LastScoresStrategy().resolve_artifacts(None, {EXAMPLES: [made], LAST: tables})
    stub.received.clear()
    Executor(Executor.Context(tmp_dir=str(directory / "tmp"), unique_id="1")).Do(
        {"examples": [made], "catalog": [catalog], LAST_SCORES: found[LAST]},
        {"scores": [scores]},
        {
            "config": config.llm.model_dump_json(),
            "pair_yield": "",
            "cache_directory": str(root / "cache"),
            "store_url": "",
        },
    )
    sent = [json.dumps(body, sort_keys=True) for body in stub.received]
    return Day(made, catalog, scores, read_ledger(scores.uri), sent)


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    def answer(handler: StubHandler, body: dict[str, Any]) -> None:
        handler.send_json(200, chat_response(scores_of(body["messages"][-1]["content"])))

    with running_stub() as server:
        server.always = answer
        yield server


@pytest.fixture(scope="module")
def days(stub, tmp_path_factory) -> list[Day]:
    root = tmp_path_factory.mktemp("shop")
    found: list[Day] = []
    for day in range(DAYS):
        found.append(run_day(root, day, stub, [earlier.scores for earlier in found]))
    return found


def test_every_day_after_the_first_costs_less_and_nothing_is_paid_twice(days):
    requests = [len(day.sent) for day in days]
    assert requests[0] == 80  # 800 pairs, 10 a context
    assert 0 < min(requests[1:]) <= max(requests[1:]) < 0.75 * requests[0]
    (count,) = {collections.Counter(body for day in days for body in day.sent).most_common(1)[0][1]}
    assert count == 1
    for day in days:
        assert day.book.cost_usd == pytest.approx(len(day.sent) * PRICE_OF_A_REQUEST)
        assert day.book.failed == 0


def test_each_days_table_is_whole_and_keeps_the_scores_of_contexts_that_stand(days):
    for before, after in itertools.pairwise(days):
        report = after.book.rescore
        assert report.kept + sum(report.scored_again.values()) + report.gone == before.book.contexts
        assert report.kept + len(after.sent) == after.book.contexts == before.book.contexts == 80
        old = {record.context_id: record for record in read_scores(before.scores.uri)}
        kept = [record for record in read_scores(after.scores.uri) if record.context_id in old]
        assert len(kept) >= report.kept > 0
        same = [
            r
            for r in kept
            if r.llm_scores == old[r.context_id].llm_scores and r.scored_at == old[r.context_id].scored_at
        ]
        assert len(same) >= report.kept


class Prepared(NamedTuple):
    """The rows of a day as a model reads them."""

    vocabularies: dict[str, list[bytes]]
    splits: dict[str, dict[str, tf.Tensor]]


def indexed(day: Day, scratch: pathlib.Path) -> Prepared:
    """As Transform makes them: vocabularies of the train rows, by falling frequency."""
    raw = {}
    for split in rows.SPLITS:
        files = tf.io.gfile.glob(f"{day.rows.uri}/Split-{split}/*")
        records = list(tf.data.TFRecordDataset(sorted(files), "GZIP").as_numpy_iterator())
        raw[split] = tf.io.parse_example(records, parsing_spec(COLUMNS))
    vocabularies = {}
    for name in (features.ITEMS, features.CATEGORIES, features.BRANDS):
        values = [v for column in features.INDEXED[name] for v in raw["train"][column].numpy().ravel().tolist() if v]
        known = [value for value, _ in collections.Counter(values).most_common()]
        vocabularies[name] = known or [b"none"]  # as Transform writes one for the brands, which this shop has not
    lookup = IndexLookup(vocabularies, str(scratch))
    labels = {split: columns[features.LABEL] for split, columns in raw.items()}
    return Prepared(vocabularies, {s: {**lookup(c), features.LABEL: labels[s]} for s, c in raw.items()})


def trained(day: Prepared, earlier: str | None, epochs: int) -> tuple[RankingModel, float]:
    """A model and its AUC on the test rows."""

    def batches(split: str) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(day.splits[split]).batch(64)

    def initialize(model: RankingModel) -> None:
        start_from(model, day.vocabularies, (), read_earlier_model(earlier))

    model, _ = train(
        vocabulary=VocabularySizes(**{name: len(values) for name, values in day.vocabularies.items()}),
        model_config=ModelConfig(embedding_dim=8, mlp=(16,), dropout=0.0, embedding_l2=0.0),
        gate_config=GateConfig(),
        loss_config=LossConfig(llm_weight=0.0),
        train_config=TrainConfig(epochs=epochs, patience=epochs, learning_rate=0.02),
        rows=lambda: batches("train"),
        valid=batches("valid"),
        pairs=None,
        initialize=None if earlier is None else initialize,
    )
    labels, logits = predict(scorer(model), batches("test"))
    return model, auc_by_counting(labels, logits)


def test_a_warm_start_is_ahead_of_a_cold_one_after_the_same_epoch(days, tmp_path):
    first, last = (indexed(day, tmp_path) for day in (days[0], days[-1]))
    assert set(last.vocabularies[features.ITEMS]) - set(first.vocabularies[features.ITEMS])  # the vocabulary has grown
    model, _ = trained(first, None, epochs=16)
    catalog = read_catalog(days[0].catalog.uri).values()
    signatures.export(
        model,
        first.vocabularies,
        SIZES,
        str(tmp_path / "model"),
        use_user_id=False,
        catalog={
            features.ITEM_ID: [item.item_id.encode() for item in catalog],
            features.ITEM_CATEGORIES: [
                [c.encode() for c in (*item.categories, "", "", "", "")[:4]] for item in catalog
            ],
            features.ITEM_BRAND: [item.brand.encode() for item in catalog],
        },
    )

    _, warm = trained(last, str(tmp_path / "model"), epochs=1)
    _, cold = trained(last, None, epochs=1)

    assert warm > cold + 0.05
    assert warm > 0.6
