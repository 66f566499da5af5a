import os
import shutil
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tf_keras as keras
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2

from sllmr.models import features, inputs, preprocessing, signatures
from sllmr.models.config import GateConfig, LossConfig, ModelConfig
from sllmr.models.optimizers import LazyAdam
from sllmr.models.ranking import PAIRS, RankingModel
from sllmr.models.ranking import ROWS as ROW_BATCH
from sllmr.models.serving.catalog_swap import swap_catalog
from sllmr.models.serving.index_lookup import IndexLookup
from sllmr.models.serving.item_lookup import ItemLookup
from sllmr.models.serving.rank import Ranker
from tests.models import market
from tests.models.exporting import (
    CANDIDATES,
    COLUMNS,
    HISTORIES,
    ROWS,
    catalog,
    export,
    export_model,
    rank_request,
    raw_request,
    serialized,
    short_request,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(transform_output, tmp_path_factory):
    """A model's logits and the folder of its SavedModel."""
    directory = str(tmp_path_factory.mktemp("export") / "model")
    return export_model("dcnv2", transform_output, directory), directory


def test_the_raw_signature_names_each_served_column_with_its_shape(exported):
    _, directory = exported
    _, columns = tf.saved_model.load(directory).signatures[signatures.RAW].structured_input_signature

    assert {name: spec.shape.as_list() for name, spec in columns.items()} == {
        features.HISTORY_ITEM_IDS: [None, 4],
        features.HISTORY_CATEGORIES: [None, 4, 2],
        features.HISTORY_BRANDS: [None, 4],
        features.ITEM_ID: [None],
        features.ITEM_CATEGORIES: [None, 2],
        features.ITEM_BRAND: [None],
    }


def test_rank_reads_a_history_that_is_padded_in_front_like_one_that_is_padded_behind(exported):
    rank = tf.saved_model.load(exported[1]).signatures[signatures.RANK]
    behind = rank_request([["item2", "item4", "item6"] + [""] * 5], [["item8", "item1"]])
    front = rank_request([[""] * 5 + ["item2", "item4", "item6"]], [["item8", "item1"]])

    np.testing.assert_allclose(rank(**behind)[signatures.SCORES], rank(**front)[signatures.SCORES], atol=1e-6)


@pytest.mark.parametrize(("users", "candidates"), [(0, 3), (2, 0), (0, 0)])
def test_rank_of_nothing_is_nothing(exported, users, candidates):
    rank = tf.saved_model.load(exported[1]).signatures[signatures.RANK]
    request = {
        features.HISTORY_ITEM_IDS: tf.fill([users, 2], "item1"),
        signatures.CANDIDATE_ITEM_IDS: tf.fill([users, candidates], "item2"),
    }
    assert rank(**request)[signatures.ORDER].shape == (users, candidates)


def served(directory: str, signature: str, request: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Runs a signature as TF Serving does: values are fed to a session, which compares no shape with the signature."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], directory)
        definition = meta_graph.signature_def[signature]
        fetches = [definition.outputs[name].name for name in sorted(definition.outputs)]
        options = config_pb2.CallableOptions(feed=[definition.inputs[n].name for n in request], fetch=fetches)
        return session._make_callable_from_options(options)(*request.values())


@pytest.mark.parametrize(
    ("signature", "column", "shape"),
    [
        (signatures.RAW, features.HISTORY_CATEGORIES, (1, 2, 4)),
        (signatures.RAW, features.HISTORY_ITEM_IDS, (1, 3)),
        (signatures.RAW, features.ITEM_CATEGORIES, (1, 4)),
        (signatures.RAW, features.ITEM_BRAND, (2,)),
        (signatures.RANK, features.HISTORY_ITEM_IDS, (1,)),
        (signatures.RANK, features.HISTORY_ITEM_IDS, (2, 3)),
        (signatures.RANK, signatures.CANDIDATE_ITEM_IDS, (1, 3, 1)),
    ],
)
def test_a_wrong_shape_is_refused_with_the_name_of_the_column(exported, signature, column, shape):
    if signature == signatures.RAW:
        right = raw_request([["item1"]], [["item2"]])
    else:
        right = rank_request([["item1"]], [["item2", "item3"]])
    request = {name: values.numpy() for name, values in right.items()}
    served(exported[1], signature, request)

    with pytest.raises(tf.errors.InvalidArgumentError, match=column):
        served(exported[1], signature, request | {column: np.full(shape, b"item1", object)})


def test_an_example_with_the_served_features_alone_is_enough(exported):
    logits, directory = exported
    served = features.served_features(COLUMNS, use_user_id=False)
    loaded = tf.saved_model.load(directory)

    output = loaded.signatures["serving_default"](examples=tf.constant(market.serialize(ROWS, served)))

    np.testing.assert_allclose(output[signatures.LOGITS], logits, atol=1e-6)


def test_an_example_without_a_served_feature_is_refused_by_name(exported):
    _, directory = exported
    columns = tuple(f for f in COLUMNS if f.name != features.ITEM_BRAND)
    loaded = tf.saved_model.load(directory)

    with pytest.raises(tf.errors.InvalidArgumentError, match="item_brand"):
        loaded.signatures["serving_default"](examples=tf.constant(market.serialize(ROWS, columns)))


def test_examples_need_no_padding(exported):
    loaded = tf.saved_model.load(exported[1]).signatures
    histories = [["item2", "item4"], [], ["item1", "item0", "item3", "item5", "item7", "item9"]]
    requests = [serialized(short_request(history, "item4")) for history in histories]
    without_history = {name: v for name, v in short_request([], "item4").items() if not name.startswith("history")}

    logits = loaded[signatures.SERVING_DEFAULT](examples=tf.constant([*requests, serialized(without_history)]))

    raw = loaded[signatures.RAW](**raw_request([*histories, []], [["item4"]] * 4))
    np.testing.assert_allclose(logits[signatures.LOGITS], raw[signatures.LOGITS], atol=1e-6)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (features.HISTORY_CATEGORIES, ["parity0"] * 8),
        (features.HISTORY_CATEGORIES, ["parity0"]),
        (features.HISTORY_BRANDS, ["brand1"]),
        (features.ITEM_CATEGORIES, ["parity0"] * 3),
        (features.ITEM_BRAND, []),
        (features.ITEM_ID, ["item1", "item2"]),
    ],
)
def test_an_example_with_a_list_of_a_wrong_length_is_refused_with_the_name_of_the_column(exported, column, values):
    request = short_request(["item2", "item4"], "item1")
    right, wrong = (np.array([serialized(r)], object) for r in (request, request | {column: values}))
    served(exported[1], signatures.SERVING_DEFAULT, {"examples": right})

    with pytest.raises(tf.errors.InvalidArgumentError, match=column):
        served(exported[1], signatures.SERVING_DEFAULT, {"examples": wrong})


def test_the_warm_up_requests_run_each_signature(exported):
    records = tf.data.TFRecordDataset(os.path.join(exported[1], "assets.extra", "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]

    requests = [log.predict_log.request for log in logs]

    assert [request.model_spec.signature_name for request in requests] == ["serving_default", "raw", "rank"]
    for request in requests:
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        for output in served(exported[1], request.model_spec.signature_name, inputs):
            assert np.isfinite(output).all()
            assert output.size


def test_nothing_of_the_gate_or_the_llm_is_in_the_export(exported):
    _, directory = exported
    with open(f"{directory}/saved_model.pb", "rb") as file:
        graph = file.read().lower()
    variables = {name for name, _ in tf.train.list_variables(f"{directory}/variables/variables")}

    for word in (b"llm_", b"_llm", b"gate/", b"gate_", b"alpha", b"preferred", b"calibration pair", b"adam", b"margin"):
        assert word not in graph, word
    assert sum(name.startswith("scoring_variables") for name in variables) == 3 + 3 * 2 + 2 * 2 + 2


def trained(transform_output: tft.TFTransformOutput, gate: GateConfig, loss: LossConfig) -> RankingModel:
    """A model after one training step, with pairs unless the LLM has no weight."""
    sizes = preprocessing.vocabulary_sizes(transform_output, use_user_id=False)
    layer = transform_output.transform_features_layer()
    batch = {ROW_BATCH: inputs.narrow(layer(market.parse(ROWS, COLUMNS)))}
    if loss.llm_weight:
        columns = features.pair_features(market.SIZES)
        raw = market.parse(market.pairs(6), columns)
        batch[PAIRS] = inputs.narrow(inputs.transform_pairs(raw, market.SIZES, layer))
    model = RankingModel(sizes, ModelConfig(embedding_dim=8), gate, loss)
    model.compile(optimizer=LazyAdam(0.001), gate_optimizer=keras.optimizers.Adam(0.1) if model.gate else None)
    model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    return model


def test_a_model_with_pairs_and_one_without_differ_in_nothing_but_the_weights(transform_output, tmp_path):
    graph = shutil.copytree(os.path.dirname(transform_output.transform_savedmodel_dir), tmp_path / "elsewhere")
    elsewhere = tft.TFTransformOutput(str(graph))
    export(trained(elsewhere, GateConfig(), LossConfig(llm_weight=0)), elsewhere, str(tmp_path / "without"))
    export(trained(transform_output, GateConfig(), LossConfig()), transform_output, str(tmp_path / "with"))

    def files(directory: str) -> dict[str, bytes]:
        paths = sorted(path for path in (tmp_path / directory).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / directory)): path.read_bytes() for path in paths}

    with_pairs, without = files("with"), files("without")
    of_the_weights = {"fingerprint.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"}
    assert with_pairs.keys() == without.keys()
    assert {name for name in without if with_pairs[name] != without[name]} == of_the_weights
    folders = [str(tmp_path), transform_output.transform_savedmodel_dir, tempfile.gettempdir(), os.getcwd()]
    for name, content in without.items():
        assert not [folder for folder in folders if folder.encode() in content], name


def test_another_catalog_is_ranked_without_training(exported, tmp_path):
    items = catalog()
    new = {
        features.ITEM_ID: [*items[features.ITEM_ID][2:], b"new one"],
        features.ITEM_CATEGORIES: [*items[features.ITEM_CATEGORIES][2:], [b"parity1", b""]],
        features.ITEM_BRAND: [*items[features.ITEM_BRAND][2:], b"brand1"],
    }

    assert swap_catalog(exported[1], str(tmp_path / "swapped"), new).unseen == 1

    before, after = (tf.saved_model.load(d).signatures for d in (exported[1], str(tmp_path / "swapped")))
    request = rank_request([["item2", "item4"]], [["new one", "item5", "item1"]])
    scores = after[signatures.RANK](**request)[signatures.SCORES].numpy()[0]
    raw = raw_request([["item2", "item4"]], [["item0", "item5", "item1"]])
    raw |= {
        features.ITEM_ID: tf.constant(["new one", "item5", "item1"]),
        features.ITEM_CATEGORIES: tf.constant([["parity1", ""], ["parity1", "all"], ["", ""]]),
        features.ITEM_BRAND: tf.constant(["brand1", "brand2", ""]),
    }
    expected = before[signatures.RAW](**raw)[signatures.SCORES].numpy()
    np.testing.assert_allclose(scores[:2], expected[:2], atol=1e-6)
    # item1 is in no catalog any more: ranked as any unknown item.
    unknown = after[signatures.RANK](**rank_request([["item2", "item4"]], [["nowhere", "item1"]]))
    np.testing.assert_allclose(scores[2], unknown[signatures.SCORES][0, 0], atol=1e-6)
    old = before[signatures.RANK](**rank_request([["item2"]], [["item1", "nowhere"]]))[signatures.SCORES].numpy()[0]
    assert old[0] != old[1]
    served(str(tmp_path / "swapped"), signatures.RANK, {name: values.numpy() for name, values in request.items()})


def test_a_catalog_whose_halves_would_take_too_much_memory_ranks_alike(transform_output, tmp_path):
    model = trained(transform_output, GateConfig(), LossConfig(llm_weight=0))
    indices = IndexLookup(preprocessing.vocabularies(transform_output, use_user_id=False), str(tmp_path))
    lookup = ItemLookup(catalog(), market.SIZES, indices, str(tmp_path))
    rankers = [
        Ranker(model, lookup, market.SIZES, use_user_id=False, most_precomputed_bytes=most) for most in (2**20, 0)
    ]
    request = rank_request(HISTORIES, CANDIDATES)

    logits = [ranker.logits(*request.values(), {}) for ranker in rankers]

    assert [bool(ranker.halves) for ranker in rankers] == [True, False]
    np.testing.assert_allclose(*logits, atol=1e-6)


def test_the_export_scores_where_only_tensorflow_can_be_imported(exported, tmp_path):
    logits, directory = exported
    np.save(tmp_path / "examples.npy", np.array(market.serialize(ROWS, COLUMNS), dtype=object))
    script = textwrap.dedent(
        """
        import sys

        FORBIDDEN = ("tfx", "tfx_bsl", "tensorflow_transform", "tensorflow_recommenders", "tf_keras",
                     "models", "components", "pydantic", "apache_beam")

        class Hide:
            def __init__(self, finder):
                self.finder = finder

            def find_spec(self, name, path=None, target=None):
                hidden = name.split(".")[0] in FORBIDDEN
                return None if hidden else self.finder.find_spec(name, path, target)

        sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
        import numpy as np
        import tensorflow as tf

        examples = tf.constant(np.load(sys.argv[2], allow_pickle=True).tolist())
        output = tf.saved_model.load(sys.argv[1]).signatures["serving_default"](examples=examples)
        assert not set(FORBIDDEN) & set(sys.modules)
        print("LOGITS", *output["logits"].numpy().tolist())
        """
    )
    (tmp_path / "score.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "score.py"), directory, str(tmp_path / "examples.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"},
    )

    assert done.returncode == 0, done.stderr
    printed = next(line for line in done.stdout.splitlines() if line.startswith("LOGITS"))
    np.testing.assert_allclose([float(v) for v in printed.split()[1:]], logits, atol=1e-6)
