import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft

from models import features, signatures
from models.config import GateConfig, LossConfig, ModelConfig
from models.preprocessing import vocabulary_sizes
from models.ranking import RankingModel
from tests.models import market

COLUMNS = features.row_features(market.SIZES)
ROWS = market.rows(9, seed=6)


def export_model(backbone: str, transform_output: tft.TFTransformOutput, directory: str) -> np.ndarray:
    """Exports a model with a gate and large weights; returns its own logits for ROWS."""
    layer = transform_output.transform_features_layer()
    sizes = vocabulary_sizes(transform_output, use_user_id=False)
    config = ModelConfig(backbone=backbone, embedding_dim=8)
    model = RankingModel(sizes, config, GateConfig(), LossConfig())
    transformed = layer(market.parse(ROWS, COLUMNS))
    model(transformed)
    for variable in (*model.embedding.variables, *model.backbone.variables):
        variable.assign_add(tf.random.stateless_normal(variable.shape, seed=(1, 2), stddev=0.2))
    signatures.export(model, layer, market.SIZES, directory, use_user_id=False)
    return model(transformed).numpy()


@pytest.fixture(scope="module")
def exported(transform_output, tmp_path_factory):
    """A model's logits and the folder of its SavedModel."""
    directory = str(tmp_path_factory.mktemp("export") / "model")
    return export_model("dcnv2", transform_output, directory), directory


def served_columns() -> dict[str, tf.Tensor]:
    raw = market.parse(ROWS, COLUMNS)
    return {f.name: raw[f.name] for f in features.served_features(COLUMNS, use_user_id=False)}


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


def test_nothing_of_the_gate_or_the_llm_is_in_the_export(exported):
    _, directory = exported
    with open(f"{directory}/saved_model.pb", "rb") as file:
        graph = file.read().lower()
    variables = {name for name, _ in tf.train.list_variables(f"{directory}/variables/variables")}

    for word in (b"llm_", b"_llm", b"gate/", b"gate_", b"alpha", b"preferred", b"probe", b"adam", b"margin"):
        assert word not in graph, word
    assert sum(name.startswith("scoring_variables") for name in variables) == 3 + 3 * 2 + 2 * 2 + 2


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
