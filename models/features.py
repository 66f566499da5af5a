"""The one table of features: names, types, shapes, and who may see them.

The curated schema, the parsing specs, the serving signatures, Transform and the writers are derived from it;
no feature's name is written as a string anywhere else.

Shapes are without the batch dimension. L is `FeatureSizes.history`, C is `FeatureSizes.categories`.
Strings are UTF-8; the empty string pads.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field
from tensorflow_metadata.proto.v0 import schema_pb2

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

LLM_SCORE = "llm_score"
LLM_DISAGREEMENT = "llm_disagreement"
TEXT_WORDS = "text_words"
PROBE_LABEL = "probe_label"

FIRST_STAGE_LOGIT = "first_stage_logit"
DROPOUT_VARIANCE = "dropout_variance"
SOFT_LABEL = "soft_label"
"""Of each item of a pair, in memory alone: what models/first_stage.py adds; SOFT_LABEL, a probability that the user
chooses the item, is also what plain distillation learns from."""

PREFERRED = "preferred_"
OTHER = "other_"
"""Prefixes of the two items' features in a pair: the LLM puts `preferred_` above `other_`."""

NOT_A_PROBE = -1
"""Value of PROBE_LABEL where the user's own choice between the two items is not known."""

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
"""By vocabulary: raw feature -> its index as Transform writes it. One vocabulary serves all of its group.

Index 0 pads (the empty string), 1..V are known values, V + 1 is any value that the train split does not hold.
"""


class Role(enum.Enum):
    """What a feature describes; decides where it occurs."""

    CONTEXT = "context"  # the user before the row: one value for both items of a pair
    ITEM = "item"  # the candidate: one value for each item of a pair
    ROW = "row"  # the row itself: label, slices; never in a pair


class FeatureSizes(BaseModel):
    """The two lengths that fix every shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history: int = Field(default=20, ge=1, le=500, description="L: latest items of the history that a row carries")
    categories: int = Field(default=4, ge=1, le=32, description="C: most specific categories kept of an item")


class Feature(BaseModel):
    """One column of a row.

    Attributes:
        name: the key in tf.Example.
        dtype: `string`, `int64` or `float32`.
        shape: without the batch dimension.
        role: see Role.
        served: whether a serving request carries it. What is not served never enters the logit.
        meaning: one line for documents and errors.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role
    served: bool
    meaning: str


def row_features(sizes: FeatureSizes) -> tuple[Feature, ...]:
    """Every feature of a row as InteractionsExampleGen writes it."""
    length, categories = sizes.history, sizes.categories
    context, item, row = Role.CONTEXT, Role.ITEM, Role.ROW

    def feature(name: str, dtype: str, shape: tuple[int, ...], role: Role, served: bool, meaning: str) -> Feature:
        return Feature(name=name, dtype=dtype, shape=shape, role=role, served=served, meaning=meaning)

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
    )


def pair_features(sizes: FeatureSizes) -> tuple[Feature, ...]:
    """Every feature of a preference pair as PairBuilder writes it: one context, two items, the LLM's verdict.

    `llm_score` of each item is in [0, 1], the preferred one's above the other's; `llm_disagreement` is the distance of
    the LLM's two answers where it was asked twice (llm.audit), else 0. `probe_label` is 1 where the user chose
    `preferred` and `other` is a sampled negative, 0 where it is the other way round, NOT_A_PROBE elsewhere.
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
    label = Feature(name=PROBE_LABEL, dtype="int64", shape=(), role=Role.ROW, served=False, meaning="LLM is right")
    return (*features, label)


class VocabularySizes(BaseModel):
    """V of each vocabulary: known values, without padding and the unknown value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(ge=1, description="items of the train split, as candidate or in a history")
    categories: int = Field(ge=1, description="categories of the train split")
    brands: int = Field(ge=1, description="brands of the train split")
    users: int | None = Field(default=None, ge=1, description="users of the train split; None: not an input")


def transformed_features(sizes: FeatureSizes, *, use_user_id: bool) -> tuple[Feature, ...]:
    """Every feature that Transform writes: the model's inputs (`served`), then what training uses."""
    raw = {f.name: f for f in row_features(sizes)}
    features = []
    for vocabulary, group in INDEXED.items():
        if vocabulary == USERS and not use_user_id:
            continue
        features += [raw[n].model_copy(update={"name": index, "dtype": "int64"}) for n, index in group.items()]
    return tuple(features) + tuple(raw[n] for n in (HISTORY_LENGTH, ITEM_TRAIN_COUNT, IS_TAIL, IS_COLD, LABEL))


def served_features(features: Iterable[Feature], *, use_user_id: bool) -> tuple[Feature, ...]:
    """Of `features`, those that enter the logit: what a serving request carries."""
    return tuple(f for f in features if f.served and (use_user_id or f.name not in (USER_ID, USER_INDEX)))


def parsing_spec(features: Iterable[Feature]) -> dict[str, tf.io.FixedLenFeature]:
    """Spec for `tf.io.parse_example`; every feature is dense and required."""
    return {f.name: tf.io.FixedLenFeature(f.shape, tf.dtypes.as_dtype(f.dtype)) for f in features}


_SCHEMA_TYPES = {"string": schema_pb2.BYTES, "int64": schema_pb2.INT, "float32": schema_pb2.FLOAT}


def schema(features: Iterable[Feature]) -> schema_pb2.Schema:
    """The curated TFMD schema: type, shape and presence of every feature; ExampleValidator checks by it."""
    result = schema_pb2.Schema()
    for f in features:
        column = result.feature.add(name=f.name, type=_SCHEMA_TYPES[f.dtype])
        column.presence.min_fraction = 1.0
        column.presence.min_count = 1
        column.shape.SetInParent()
        for size in f.shape:
            column.shape.dim.add(size=size)
        if f.name in (LABEL, IS_COLD, IS_TAIL):
            column.int_domain.min, column.int_domain.max = 0, 1
        elif f.dtype == "int64" and f.name != PROBE_LABEL:
            column.int_domain.min = 0
    return result


def to_example(values: Mapping[str, Any], features: Sequence[Feature]) -> tf.train.Example:
    """Encodes one row.

    Args:
        values: by feature name; a scalar, or a flat or nested sequence with as many elements as the shape.
        features: what to write.

    Raises:
        KeyError: a feature has no value.
        ValueError: a value's number of elements is not its shape's.
    """
    example = tf.train.Example()
    for f in features:
        flat = _flatten(values[f.name])
        expected = 1
        for size in f.shape:
            expected *= size
        if len(flat) != expected:
            raise ValueError(f"{f.name} must have {expected} elements (shape {f.shape}), got {len(flat)}")
        target = example.features.feature[f.name]
        if f.dtype == "string":
            target.bytes_list.value.extend([v if type(v) is bytes else v.encode() for v in flat])
        elif f.dtype == "int64":
            target.int64_list.value.extend(flat)
        else:
            target.float_list.value.extend(flat)
    return example


def _flatten(value: Any) -> list:
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (list, tuple)):
            return [element for part in value for element in _flatten(part)]
        return list(value)
    return [value]
