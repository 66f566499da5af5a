"""Export: a SavedModel that needs TensorFlow alone and holds nothing of the LLM or the gate."""

import tensorflow as tf

from models import features
from models.features import FeatureSizes
from models.inputs import Transform
from models.ranking import RankingModel

SCORES = "scores"
LOGITS = "logits"
"""Outputs of both signatures, float32 [batch] each: the probability that the user chooses the candidate, and
its logit. TFMA reads an output of the name `scores` without further configuration."""

SERVING_DEFAULT = "serving_default"
RAW = "raw"
"""Names of the signatures: serialized tf.Examples under `examples`, and one tensor for each served column."""

_EXAMPLES = "examples"


def export(
    model: RankingModel, transform: Transform, sizes: FeatureSizes, directory: str, *, use_user_id: bool
) -> None:
    """Saves embedding and backbone behind the transform graph.

    Both signatures take raw values of the served features of models.features.row_features; all are required,
    the user id only with `use_user_id`. A tf.Example may hold further features; they are not read.

    SERVING_DEFAULT: `examples`, string [batch].
    RAW: by feature name, [batch] + shape; the client pads shorter histories and category lists with "".

    Args:
        model: trained.
        transform: the transform graph, as a layer, so that its vocabularies are saved too.
        sizes: L and C.
        directory: of the SavedModel.
        use_user_id: as in ModelConfig.
    """
    served = features.served_features(features.row_features(sizes), use_user_id=use_user_id)
    spec = features.parsing_spec(served)

    def score(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logits = model.backbone(model.embedding(transform(raw)))
        return {SCORES: tf.sigmoid(logits), LOGITS: logits}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=_EXAMPLES)])
    def score_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return score(tf.io.parse_example(examples, spec))

    @tf.function(
        input_signature=[
            {f.name: tf.TensorSpec([None, *f.shape], tf.dtypes.as_dtype(f.dtype), name=f.name) for f in served}
        ]
    )
    def score_columns(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return score(columns)

    # Only what the functions read is attached: the optimiser, the gate and the metrics stay behind.
    module = tf.Module()
    module.scoring_variables = [*model.embedding.variables, *model.backbone.variables]
    module.transform = transform
    tf.saved_model.save(module, directory, signatures={SERVING_DEFAULT: score_examples, RAW: score_columns})
