"""The one table of features: names, types, shapes, and who may see them.

The curated schema (models/schema.py), the parsing specs (models/parsing.py), the tf.Examples (models/tf_examples.py),
the serving signatures and Transform are derived from it; no feature's name is written as a string anywhere else.

Shapes are without the batch dimension. L is `FeatureSizes.history`, C is `FeatureSizes.categories`.
Strings are UTF-8; the empty string pads.
"""

import enum
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sllmr.models.declared_features import ITEM, DeclaredFeature, DeclaredSize

USER_ID = "user_id"
ITEM_ID = "item_id"
ITEM_CATEGORIES = "item_categories"
ITEM_BRAND = "item_brand"
HISTORY_ITEM_IDS = "history_item_ids"
HISTORY_CATEGORIES = "history_categories"
HISTORY_BRANDS = "history_brands"
HISTORY_LENGTH = "history_length"
ITEM_TRAIN_COUNT = "item_train_count"
USER_TRAIN_COUNT = "user_train_count"
POSITION = "position"
IS_COLD = "is_cold"
IS_TAIL = "is_tail"
LABEL = "label"
EXAMPLE_WEIGHT = "example_weight"
TIMESTAMP = "timestamp"
"""Unix milliseconds; rows have it only if features are declared, because their values depend on the time."""

LLM_SCORE = "llm_score"
LLM_DISAGREEMENT = "llm_disagreement"
TEXT_WORDS = "text_words"
CALIBRATION_LABEL = "calibration_label"

BASE_LOGIT = "base_logit"
DROPOUT_VARIANCE = "dropout_variance"
SOFT_LABEL = "soft_label"
LLM_GAP = "llm_gap"
LOGIT = "logit"
"""Columns of each item of a pair, in memory alone: ranking.pair_input adds LLM_GAP and LOGIT, models/base_model.py the
others. SOFT_LABEL, the probability that the item is the target item, is also set by training/calibration.py."""

PREFERRED = "preferred_"
OTHER = "other_"
"""Prefixes of the two items' features in a pair: the LLM puts `preferred_` above `other_`."""

NOT_CALIBRATION = -1
"""Value of CALIBRATION_LABEL where the right order of the two items is not known."""

USER_HASH = "user_hash"
USER_HASHES = 2**31 - 1
"""A number in [0, USER_HASHES) for each user, in transformed rows and in pairs: training uses it to find the rows and
pairs of one user. It is never an input of a model."""

PADDING = 0
USER_INDEX = "user_index"
ITEM_INDEX = "item_index"
ITEM_CATEGORY_INDICES = "item_category_indices"
ITEM_BRAND_INDEX = "item_brand_index"
HISTORY_ITEM_INDICES = "history_item_indices"
HISTORY_CATEGORY_INDICES = "history_category_indices"
HISTORY_BRAND_INDICES = "history_brand_indices"

ITEMS = "items"
CATEGORIES = "categories"
BRANDS = "brands"
USERS = "users"

INDEXED = {
    ITEMS: {ITEM_ID: ITEM_INDEX, HISTORY_ITEM_IDS: HISTORY_ITEM_INDICES},
    CATEGORIES: {ITEM_CATEGORIES: ITEM_CATEGORY_INDICES, HISTORY_CATEGORIES: HISTORY_CATEGORY_INDICES},
    BRANDS: {ITEM_BRAND: ITEM_BRAND_INDEX, HISTORY_BRANDS: HISTORY_BRAND_INDICES},
    USERS: {USER_ID: USER_INDEX},
}
"""By vocabulary: raw feature -> the transformed feature that holds its index. A group shares one vocabulary.

Index 0 pads (the empty string), 1..V are known values, V + 1 is any value that the train split does not hold.
"""


OF_ITEMS = {vocabulary: tuple(group) for vocabulary, group in INDEXED.items() if len(group) == 2}
"""By vocabulary of items: the feature of the candidate, and that of the history."""

_OF_HISTORY = tuple(history for _, history in OF_ITEMS.values())

RESERVED = frozenset(
    (
        *(name for group in INDEXED.values() for pair in group.items() for name in pair),
        *INDEXED,
        *(
            HISTORY_LENGTH,
            ITEM_TRAIN_COUNT,
            USER_TRAIN_COUNT,
            POSITION,
            IS_COLD,
            IS_TAIL,
            LABEL,
            EXAMPLE_WEIGHT,
            TIMESTAMP,
            USER_HASH,
        ),
        *(LLM_SCORE, LLM_DISAGREEMENT, TEXT_WORDS, CALIBRATION_LABEL, BASE_LOGIT, DROPOUT_VARIANCE, SOFT_LABEL),
        *(LLM_GAP, LOGIT, "item_vector_row", "history_vector_rows", "catalog_item_ids", "candidate_item_ids"),
        *("examples", "scores", "logits", "order", "overall", "cold", "warm", "tail", "head", "unseen", "x"),
    )
)
"""Names that a declared feature cannot have: of columns, of inputs and files of a served model, and of slices."""


class Role(enum.Enum):
    """What a feature describes; decides where it occurs."""

    CONTEXT = "context"  # the user before the row: one value for both items of a pair
    ITEM = "item"  # the candidate: one value for each item of a pair
    ROW = "row"  # the row itself: label, slices; never in a pair


class RowLengths(BaseModel):
    """Lengths of the lists in a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history: int = Field(default=20, ge=1, le=500, description="L: latest items of the history that a row carries")
    categories: int = Field(default=4, ge=1, le=32, description="C: most specific categories kept of an item")


class FeatureSizes(RowLengths):
    """What fixes every column and its shape: the two lengths, and the features that a configuration declares.

    Raises:
        ValueError: a declared feature has the name of another column.
    """

    declared: tuple[DeclaredFeature, ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        if not self.declared:  # so that a model, and a step, without declared features keeps its fingerprint
            del values["declared"]
        return values

    @model_validator(mode="after")
    def _names_differ(self) -> "FeatureSizes":
        taken = set(RESERVED)
        for f in self.declared:
            for name in (f.name, f.index, f.value, f.numbers, f.history_name, f.history_index):
                if name in taken or name.startswith((PREFERRED, OTHER)):
                    raise ValueError(
                        f"features.{f.table}.{f.name} must have a name of its own, got one that makes the column "
                        f"{name}, which is taken; write {f.table}_{f.name}: {{kind: {f.kind}, column: {f.source}}}"
                    )
                taken.add(name)
        return self

    def of_tables(self, *tables: str) -> tuple[DeclaredFeature, ...]:
        """The declared features of some tables: user, item, interaction."""
        return tuple(f for f in self.declared if f.table in tables)

    @property
    def in_history(self) -> tuple[DeclaredFeature, ...]:
        """The declared features that the items of the history carry."""
        return tuple(f for f in self.declared if f.table == ITEM and f.history)


class Feature(BaseModel):
    """One column of a row.

    Attributes:
        name: the key in tf.Example.
        dtype: `string`, `int64` or `float32`.
        shape: without the batch dimension.
        role: see Role.
        served: whether a serving request carries it. A feature that is not served never enters the logit.
        meaning: one line for documents and errors.
        of_history: whether the first dimension runs over the items of the history.
        declared: the declared feature that the column holds; None for a built-in feature.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role
    served: bool
    meaning: str
    of_history: bool = False
    declared: DeclaredFeature | None = None


def row_features(sizes: FeatureSizes, *, has_weights: bool = False) -> tuple[Feature, ...]:
    """Every feature of a row as InteractionsExampleGen writes it; EXAMPLE_WEIGHT among them only with has_weights."""
    length, categories = sizes.history, sizes.categories
    context, item, row = Role.CONTEXT, Role.ITEM, Role.ROW

    def feature(
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        role: Role,
        served: bool,
        meaning: str,
        declared: DeclaredFeature | None = None,
    ) -> Feature:
        of_history = name in _OF_HISTORY or (declared is not None and name == declared.history_name)
        return Feature(
            name=name,
            dtype=dtype,
            shape=shape,
            role=role,
            served=served,
            meaning=meaning,
            of_history=of_history,
            declared=declared,
        )

    weights = (feature(EXAMPLE_WEIGHT, "float32", (), row, False, "of the row in the loss; 1 unless it trains"),)
    declared = [
        feature(f.name, f.dtype, f.shape, item if f.table == ITEM else context, True, f"{f.kind} of the {f.table}", f)
        for f in sizes.declared
    ]
    declared += [
        feature(f.history_name, f.dtype, (length, *f.shape), context, True, f"{f.name} of each of them", f)
        for f in sizes.in_history
    ]
    if declared:
        declared.append(feature(TIMESTAMP, "int64", (), row, False, "of the interaction, Unix milliseconds"))
    return (
        feature(USER_ID, "string", (), context, True, "the user; an input only with model.use_user_id"),
        feature(HISTORY_ITEM_IDS, "string", (length,), context, True, "earlier positives, latest first"),
        feature(HISTORY_CATEGORIES, "string", (length, categories), context, True, "categories of each of them"),
        feature(HISTORY_BRANDS, "string", (length,), context, True, "brand of each of them"),
        feature(HISTORY_LENGTH, "int64", (), context, False, "number of earlier positives, not cut at L"),
        feature(ITEM_ID, "string", (), item, True, "the candidate"),
        feature(ITEM_CATEGORIES, "string", (categories,), item, True, "its categories, most specific first"),
        feature(ITEM_BRAND, "string", (), item, True, "its brand"),
        feature(ITEM_TRAIN_COUNT, "int64", (), item, False, "its positives among the train rows"),
        feature(IS_TAIL, "int64", (), item, False, "1 where the candidate is a long-tail item"),
        feature(USER_TRAIN_COUNT, "int64", (), row, False, "the user's positives among the train rows"),
        feature(POSITION, "int64", (), row, False, "1-based position in the user's time order"),
        feature(IS_COLD, "int64", (), row, False, "1 where the row belongs to the cold-start slice"),
        feature(LABEL, "int64", (), row, False, "1 the user chose the item, 0 a negative"),
        *(weights if has_weights else ()),
        *declared,
    )


def pair_features(sizes: FeatureSizes) -> tuple[Feature, ...]:
    """Every feature of a preference pair as PairBuilder writes it: one context, two items, the LLM's verdict.

    `llm_score` of each item is in [0, 1], the preferred one's above the other's; `llm_disagreement` is the distance of
    the LLM's two scores with the candidates in both orders (llm.audit), else 0. `calibration_label` is 1 if the target
    item is `preferred` and `other` is a sampled negative, 0 where it is the other way round, NOT_CALIBRATION elsewhere.
    """
    features = [f for f in row_features(sizes) if f.role is Role.CONTEXT]
    items = [f for f in row_features(sizes) if f.role is Role.ITEM]
    for name, dtype, meaning in (
        (LLM_SCORE, "float32", "by the LLM"),
        (LLM_DISAGREEMENT, "float32", "between the LLM's two answers"),
        (TEXT_WORDS, "int64", "words that a prompt can tell of the item"),
    ):
        items.append(Feature(name=name, dtype=dtype, shape=(), role=Role.ITEM, served=False, meaning=meaning))
    for prefix in (PREFERRED, OTHER):
        features += [f.model_copy(update={"name": prefix + f.name}) for f in items]
    label = Feature(
        name=CALIBRATION_LABEL, dtype="int64", shape=(), role=Role.ROW, served=False, meaning="LLM is right"
    )
    return (*features, label)


class VocabularySizes(BaseModel):
    """V of each vocabulary: known values, without padding and the unknown value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(ge=1, description="items of the train split, as candidate or in a history")
    categories: int = Field(ge=1, description="categories of the train split")
    brands: int = Field(ge=1, description="brands of the train split")
    users: int | None = Field(default=None, ge=1, description="users of the train split; None: not an input")
    declared: tuple[DeclaredSize, ...] = Field(default=(), description="the declared features with their numbers")


def transformed_features(sizes: FeatureSizes, *, use_user_id: bool, has_weights: bool = False) -> tuple[Feature, ...]:
    """Every feature that Transform writes: the model's inputs (`served`), then what training uses."""
    raw = {f.name: f for f in row_features(sizes, has_weights=True)}
    features = []
    for vocabulary, group in INDEXED.items():
        if vocabulary == USERS and not use_user_id:
            continue
        features += [raw[n].model_copy(update={"name": index, "dtype": "int64"}) for n, index in group.items()]
    for f in sizes.declared:
        changes: dict[str, dict[str, Any]] = {f.index: {"dtype": "int64"}}
        if f.is_standardized:
            changes[f.value] = {}
        features += [raw[f.name].model_copy(update={"name": name, **change}) for name, change in changes.items()]
    features += [
        raw[f.history_name].model_copy(update={"name": f.history_index, "dtype": "int64"}) for f in sizes.in_history
    ]
    user_hash = Feature(
        name=USER_HASH, dtype="int64", shape=(), role=Role.CONTEXT, served=False, meaning="one number for each user"
    )
    weights = (EXAMPLE_WEIGHT,) if has_weights else ()
    used = tuple(raw[n] for n in (HISTORY_LENGTH, ITEM_TRAIN_COUNT, IS_TAIL, IS_COLD, LABEL, *weights))
    return (*features, user_hash, *used)


def served_features(features: Iterable[Feature], *, use_user_id: bool) -> tuple[Feature, ...]:
    """Of `features`, those that enter the logit: what a serving request carries."""
    return tuple(f for f in features if f.served and (use_user_id or f.name not in (USER_ID, USER_INDEX)))
