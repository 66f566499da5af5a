"""Export: a SavedModel that needs TensorFlow alone and holds nothing of the LLM or the gate."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sllmr.models import features
from sllmr.models.declared_features import TrainNumbers
from sllmr.models.embeddings import HISTORY_VECTOR_ROWS, ITEM_VECTOR_ROW
from sllmr.models.features import Feature, FeatureSizes, Role
from sllmr.models.ranking import RankingModel
from sllmr.models.serving.canonical import canonicalize
from sllmr.models.serving.declared_asset import write_declared
from sllmr.models.serving.examples import parse_requests
from sllmr.models.serving.index_lookup import IndexLookup, Vocabularies
from sllmr.models.serving.item_lookup import ItemColumns, ItemLookup, with_new_vectors
from sllmr.models.serving.rank import Ranker
from sllmr.models.serving.warmup import rows_and_candidates, write_warmup
from sllmr.models.tf_examples import to_example

SCORES = "scores"
LOGITS = "logits"
"""Outputs of SERVING_DEFAULT and RAW, float32 [batch] each: the probability that the user interacts with the candidate,
and its logit, both at the rate of positives to which export's `logit_shift` leads. TFMA reads an output named `scores`
without further configuration."""

ORDER = "order"
"""Output of RANK, int32 [users, N]: the candidates' positions in the request, best first. SCORES is [users, N], too."""

CANDIDATE_ITEM_IDS = "candidate_item_ids"
"""Input of RANK, string [users, N]."""

SERVING_DEFAULT = "serving_default"
RAW = "raw"
RANK = "rank"
"""Names of the signatures. Their inputs: serialized tf.Examples as `examples`; one tensor for each served column; a
user's history and candidates as item ids."""

_EXAMPLES = "examples"


def export(
    model: RankingModel,
    vocabularies: Vocabularies,
    sizes: FeatureSizes,
    directory: str,
    *,
    use_user_id: bool,
    catalog: ItemColumns,
    catalog_vectors: Mapping[bytes, np.ndarray] | None = None,
    logit_shift: float = 0.0,
    numbers: Mapping[str, TrainNumbers] | None = None,
) -> None:
    """Saves the lookup of indices, embedding and backbone, and one warm-up request for each signature.

    SERVING_DEFAULT and RAW take raw values of the served features of models.features.row_features, the user id only
    with `use_user_id`. The model ignores other features of a tf.Example.

    SERVING_DEFAULT: `examples`, string [batch]; shorter lists need no padding, see serving.examples.parse_requests.
    RAW: by feature name, [batch] + shape; the client pads shorter histories and category lists with "".
    RANK: HISTORY_ITEM_IDS, string [users, any], latest first, of which the model reads the first L that are not "";
        CANDIDATE_ITEM_IDS, string [users, N]; with `use_user_id` also USER_ID, string [users]; the declared features of
        users and interactions by name, [users] + shape. "" pads both; a candidate that pads has score 0 and comes last.
        Categories, brands and declared features of items are those of `catalog`.

    Args:
        model: trained.
        vocabularies: of the transform graph.
        sizes: L, C and the declared features.
        directory: of the SavedModel.
        use_user_id: as in ModelConfig.
        catalog: the items that RANK knows.
        catalog_vectors: for a model with item vectors: by item id of the catalog, float32 [dimensions] of length 1.
            Read only for items outside the vocabulary: the model does not know their id, but their vector.
        logit_shift: added to every logit, so that the scores are probabilities at another rate of positives than that
            of the train rows; see models.probability_error.logit_shift. No order changes.
        numbers: statistics of the numeric declared features, by name.

    Raises:
        UserError: see serving.item_lookup.check_item_ids.
    """
    served = features.served_features(features.row_features(sizes), use_user_id=use_user_id)
    with tempfile.TemporaryDirectory() as scratch:
        indices = IndexLookup(vocabularies, scratch, sizes, numbers)
        table = model.embedding.item_vector_table
        rows = (
            None if table is None else _add_vectors(table, vocabularies[features.ITEMS], catalog, catalog_vectors or {})
        )
        lookup = ItemLookup(catalog, sizes, indices, scratch, rows)
        ranker = Ranker(model, lookup, sizes, use_user_id=use_user_id)
        # Only what the functions read is attached: the optimizer, the gate and the metrics stay behind.
        module = tf.Module()
        variables = (*model.embedding.variables, *model.backbone.variables)
        module.scoring_variables = [variable for variable in variables if variable is not table]
        if table is not None:
            module.item_vectors = table  # the name by which catalog_swap replaces it
        module.index_lookup = indices
        module.item_lookup, module.item_halves = ranker.lookup, ranker.halves
        module.item_half = ranker.item_half  # catalog_swap calls it for another catalog
        signatures = {
            **_row_signatures(model, indices, ranker.lookup, served, logit_shift),
            RANK: _rank_signature(ranker, indices, [f for f in served if _is_of_the_user(f)], logit_shift),
        }
        if sizes.declared:
            module.declared_features = tf.saved_model.Asset(write_declared(scratch, sizes.declared, numbers or {}))
        tf.saved_model.save(module, directory, signatures=signatures)
    canonicalize(directory)
    row, history, candidates = rows_and_candidates(catalog, sizes)
    user = {f.name: [row[f.name]] for f in served if _is_of_the_user(f)}
    write_warmup(
        directory,
        [
            (SERVING_DEFAULT, {_EXAMPLES: [to_example(row, served).SerializeToString()]}),
            (RAW, {f.name: [row[f.name]] for f in served}),
            (RANK, {features.HISTORY_ITEM_IDS: [history], CANDIDATE_ITEM_IDS: [candidates], **user}),
        ],
    )


def _add_vectors(
    table: tf.Variable, vocabulary: Sequence[bytes], catalog: ItemColumns, vectors: Mapping[bytes, np.ndarray]
) -> dict[bytes, int]:
    """Adds the vectors of the catalog's items outside the vocabulary to the table; returns their rows by id."""
    known = set(vocabulary)
    new = {i: vectors[i] for i in catalog[features.ITEM_ID] if i in vectors and i not in known}
    values, rows = with_new_vectors(table.numpy()[: len(vocabulary) + 2], new)
    table.assign(values)
    return rows


def _row_signatures(
    model: RankingModel, indices: IndexLookup, lookup: ItemLookup, served: Sequence[Feature], logit_shift: float
) -> dict[str, Any]:
    def score(raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = indices(raw)
        if model.embedding.item_vector_table is not None:
            of_candidate, of_history = features.INDEXED[features.ITEMS].items()
            for (ids, index), rows in ((of_candidate, ITEM_VECTOR_ROW), (of_history, HISTORY_VECTOR_ROWS)):
                inputs[rows] = lookup.vector_rows(raw[ids], inputs[index])
        logits = _shifted(model.backbone(model.embedding(inputs)), logit_shift)
        return {SCORES: tf.sigmoid(logits), LOGITS: logits}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=_EXAMPLES)], autograph=False)
    def score_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return score(parse_requests(examples, served))

    columns_spec = {f.name: tf.TensorSpec([None, *f.shape], tf.dtypes.as_dtype(f.dtype), name=f.name) for f in served}

    @tf.function(input_signature=[columns_spec], autograph=False)
    def score_columns(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return score(_checked(columns, columns_spec))

    return {SERVING_DEFAULT: score_examples, RAW: score_columns}


def _shifted(logits: tf.Tensor, shift: float) -> tf.Tensor:
    return logits + shift if shift else logits


def _is_of_the_user(f: Feature) -> bool:
    """Whether a served column has one value for all candidates of a request, apart from the history."""
    return f.role is Role.CONTEXT and not f.of_history


def _rank_signature(ranker: Ranker, indices: IndexLookup, of_the_user: Sequence[Feature], logit_shift: float) -> Any:
    spec = {
        name: tf.TensorSpec([None, None], tf.string, name=name)
        for name in (features.HISTORY_ITEM_IDS, CANDIDATE_ITEM_IDS)
    }
    spec |= {f.name: tf.TensorSpec([None, *f.shape], tf.dtypes.as_dtype(f.dtype), name=f.name) for f in of_the_user}

    @tf.function(input_signature=[spec], autograph=False)
    def rank(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        columns = _checked(columns, spec)
        user = indices({f.name: columns[f.name] for f in of_the_user})
        logits = ranker.logits(columns[features.HISTORY_ITEM_IDS], columns[CANDIDATE_ITEM_IDS], user)
        scores = tf.sigmoid(_shifted(logits, logit_shift))
        return {SCORES: scores, ORDER: tf.argsort(logits, direction="DESCENDING", stable=True)}

    return rank


def _checked(columns: Mapping[str, tf.Tensor], spec: Mapping[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
    """The columns, after a check that each has the shape of its spec and that all have the same number of rows.

    TF Serving does not compare a request with the signature, so the graph does, and names the column that differs.
    """
    checked = {name: tf.ensure_shape(columns[name], spec[name].shape) for name in spec}
    first = next(iter(checked))
    rows = tf.stack([tf.shape(values)[0] for values in checked.values()])
    differs = tf.not_equal(rows, rows[0])
    one = tf.gather(list(checked), tf.argmax(tf.cast(differs, tf.int32)))
    message = tf.strings.join([one, f" must have as many rows as {first}"])
    with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(differs), [message])]):
        return {name: tf.identity(values) for name, values in checked.items()}
