import dataclasses
import json
import math
import pathlib

import pytest
import tensorflow as tf
from tfx.types import artifact_utils, channel_utils, standard_artifacts

from sllmr.components import examples
from sllmr.components.artifacts import ItemCatalog, LlmScores
from sllmr.components.catalog import Item, write_catalog
from sllmr.components.examples import TRAIN_UNTIL
from sllmr.components.llm_scorer import executor
from sllmr.components.llm_scorer.component import LlmScorer
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.executor import EXAMPLES_ID, Executor
from sllmr.components.pair_yield import PairYield
from sllmr.components.scores import read_scores
from tests.components.llm_scorer.market import PAIR_YIELD, market_items, market_rows, row

LEAK = "LEAKED TITLE"


def component(**values) -> LlmScorer:
    return LlmScorer(
        examples=channel_utils.as_channel([standard_artifacts.Examples()]),
        catalog=channel_utils.as_channel([ItemCatalog()]),
        config=LlmConfig.model_validate(values),
        pair_yield=PAIR_YIELD,
        cache_directory="/somewhere",
        code_fingerprint="fingerprint",
    )


def test_the_component_hands_its_configuration_on_as_json():
    scorer = component(budget={"pairs": 7})
    assert LlmConfig.model_validate_json(scorer.exec_properties["config"]).budget.pairs == 7
    assert scorer.outputs["scores"].type is LlmScores


def test_how_many_pairs_a_context_makes_is_an_input_only_if_the_number_of_pairs_follows_from_the_data():
    assert component(budget={"pairs": 7}).exec_properties["pair_yield"] == ""
    assert PairYield(**json.loads(component().exec_properties["pair_yield"])) == PAIR_YIELD


def test_an_edited_prompt_changes_what_tfx_caches_by(tmp_path):
    edited = tmp_path / "mine.v1.txt"
    edited.write_text("[with_history]\n$history\n[without_history]\nAnd\n")
    changed = component(prompt_file=str(edited)).exec_properties["prompt_version"]
    assert changed != component().exec_properties["prompt_version"]


def write_split(artifact, split: str, rows: list[bytes]) -> None:
    directory = pathlib.Path(artifact_utils.get_split_uri([artifact], split))
    directory.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(directory / "examples-00000-of-00001.tfrecord.gz"), "GZIP") as writer:
        for serialized in rows:
            writer.write(serialized)


@pytest.mark.slow
def test_rows_of_valid_and_test_reach_no_prompt(stub, tmp_path):
    """Every row outside the train split holds a planted item, in its history and as what was chosen."""
    planted = Item(item_id="planted", title=LEAK, train_count=0)
    rows = standard_artifacts.Examples()
    rows.uri = str(tmp_path / "rows")
    examples.prepare(rows, ["train", "valid", "test"])
    write_split(rows, "train", market_rows())
    # Many of them, with long histories: read along with the train rows, most contexts would be of these.
    history = ["i1", "planted", "i2", "i3", "i4"]
    leaks = [row(f"user-{u}", p, history, "planted") for u in range(12) for p in range(7, 20)]
    write_split(rows, "valid", leaks)
    write_split(rows, "test", leaks)
    catalog = ItemCatalog()
    catalog.uri = str(tmp_path / "catalog")
    write_catalog(catalog.uri, [*market_items().values(), planted])
    scores = LlmScores()
    scores.uri = str(tmp_path / "scores")
    pathlib.Path(scores.uri).mkdir()
    config = LlmConfig.model_validate(
        {
            "model": "m",
            "base_url": stub.base_url,
            "strategy": "listwise",
            "api_key_env": "NO_SUCH_KEY",
            "candidates": {
                "per_context": 5,
                "negatives_per_target": 1,
                "popularity_pool": 10,
                "short_history_fraction": 0,
                "tail_target_fraction": 0,
            },
        }
    )
    pair_yield = dataclasses.replace(PAIR_YIELD, per_context=5, negatives_per_target=1)
    Executor(Executor.Context(tmp_dir=str(tmp_path / "tmp"), unique_id="1")).Do(
        {"examples": [rows], "catalog": [catalog]},
        {"scores": [scores]},
        {
            "config": config.model_dump_json(),
            "pair_yield": json.dumps(dataclasses.asdict(pair_yield)),
            "cache_directory": str(tmp_path / "cache"),
            "store_url": "",
        },
    )
    wanted = math.ceil(sum(item.train_count for item in market_items().values()) / 10)
    assert len(stub.received) == pair_yield.contexts_for(wanted)
    # As a candidate it is an item of the catalogue like any other; in a history it would be a leak.
    histories = [json.dumps(body["messages"]).split("Score each")[0] for body in stub.received]
    assert not any(LEAK in history for history in histories)
    records = list(read_scores(scores.uri))
    assert not any("planted" in (*r.history_item_ids, r.target_item_id) for r in records)


@pytest.mark.slow
def test_the_executor_leaves_items_of_valid_and_test_rows_out_of_a_table_of_scores_by_user(tmp_path):
    rows = standard_artifacts.Examples()
    rows.uri = str(tmp_path / "rows")
    examples.prepare(rows, ["train", "valid", "test"])
    write_split(rows, "train", market_rows(users=1))
    history = ["i0", "i5", "i10", "i15", "i20", "i25"]
    write_split(rows, "valid", [row("user-0", 7, history, "i40"), row("user-0", 7, history, "i41", label=0)])
    write_split(rows, "test", [row("user-0", 8, [*history, "i40"], "i42")])
    catalog, scores = ItemCatalog(), LlmScores()
    catalog.uri, scores.uri = str(tmp_path / "catalog"), str(tmp_path / "scores")
    write_catalog(catalog.uri, market_items().values())
    pathlib.Path(scores.uri).mkdir()
    table = tmp_path / "t.csv"
    table.write_text("user_id,item_id,score\n" + "".join(f"user-0,i{n},{n / 60}\n" for n in range(60)))
    config = LlmConfig.model_validate({"strategy": "replay", "replay_table": str(table)})
    Executor(Executor.Context(beam_pipeline_args=[], tmp_dir=str(tmp_path), unique_id="1")).Do(
        {"examples": [rows], "catalog": [catalog]},
        {"scores": [scores]},
        {
            "config": config.model_dump_json(),
            "pair_yield": "",
            "cache_directory": str(tmp_path / "cache"),
            "store_url": "",
        },
    )
    records = list(read_scores(scores.uri))
    expected = {f"i{n}" for n in range(60)} - {"i40", "i41", "i42", *history}
    assert {i for r in records for i in r.item_ids if i != r.target_item_id} == expected
    assert {r.target_item_id for r in records} == set(history[1:])


@pytest.mark.parametrize(
    ("values", "marked"),
    [
        ({"strategy": "listwise"}, True),
        ({"strategy": "embedding", "rescore": True}, True),
        ({"strategy": "embedding"}, False),  # of train.compare_vectors, beside the LLM's table
    ],
)
def test_a_table_that_a_later_run_may_bring_up_to_date_names_its_rows_and_the_end_of_its_train_rows(
    tmp_path, monkeypatch, values, marked
):
    monkeypatch.setattr(executor, "score", lambda workspace, rows: None)
    rows, catalog, scores = standard_artifacts.Examples(), ItemCatalog(), LlmScores()
    rows.uri, catalog.uri, scores.uri = (str(tmp_path / name) for name in ("rows", "catalog", "scores"))
    rows.id = 7
    rows.set_int_custom_property(TRAIN_UNTIL, 1_709_892_000_000)
    examples.prepare(rows, ["train", "valid", "test"])
    for split in ("train", "valid", "test"):
        write_split(rows, split, [])
    Executor(Executor.Context(beam_pipeline_args=[], tmp_dir=str(tmp_path), unique_id="1")).Do(
        {"examples": [rows], "catalog": [catalog]},
        {"scores": [scores]},
        {
            "config": LlmConfig.model_validate(values).model_dump_json(),
            "pair_yield": "",
            "cache_directory": str(tmp_path / "cache"),
            "store_url": "",
        },
    )
    assert scores.has_custom_property(EXAMPLES_ID) == marked
    assert not marked or scores.get_int_custom_property(EXAMPLES_ID) == 7
    assert scores.has_custom_property(TRAIN_UNTIL) == marked
    assert not marked or scores.get_int_custom_property(TRAIN_UNTIL) == 1_709_892_000_000
