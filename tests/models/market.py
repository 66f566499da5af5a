"""A tiny market for the tests: raw rows, raw pairs and their transform graph, all made here."""

import random
from pathlib import Path

import apache_beam as beam
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata

from sllmr.models import features
from sllmr.models.features import OTHER, PREFERRED, FeatureSizes, Role
from sllmr.models.parsing import parsing_spec
from sllmr.models.preprocessing import USE_USER_ID, preprocessing_fn
from sllmr.models.schema import schema
from sllmr.models.tf_examples import to_example

SIZES = FeatureSizes(history=4, categories=2)
ITEMS = [f"item{n}" for n in range(12)]


def item_values(item: str) -> dict:
    """An item's features; items of one parity share a category, every third has no brand."""
    number = int(item.removeprefix("item"))
    return {
        features.ITEM_ID: item,
        features.ITEM_CATEGORIES: [f"parity{number % 2}", "all" if number % 4 else ""],
        features.ITEM_BRAND: f"brand{number % 3}" if number % 3 else "",
        features.ITEM_TRAIN_COUNT: number,
        features.IS_TAIL: int(number < 3),
    }


def context_values(user: str, history: list[str]) -> dict:
    """The user's features; `history` is latest first and at most SIZES.history long."""
    padding = SIZES.history - len(history)
    items = [item_values(item) for item in history]
    return {
        features.USER_ID: user,
        features.HISTORY_ITEM_IDS: history + [""] * padding,
        features.HISTORY_CATEGORIES: [i[features.ITEM_CATEGORIES] for i in items] + [[""] * SIZES.categories] * padding,
        features.HISTORY_BRANDS: [i[features.ITEM_BRAND] for i in items] + [""] * padding,
        features.HISTORY_LENGTH: len(history),
    }


def row_values(user: str, history: list[str], item: str, label: int) -> dict:
    """One row of models.features.row_features."""
    rest = {
        features.USER_TRAIN_COUNT: 3,
        features.POSITION: len(history) + 1,
        features.IS_COLD: int(len(history) < 2),
        features.LABEL: label,
    }
    return context_values(user, history) | item_values(item) | rest


def rows(number: int, seed: int = 0) -> list[dict]:
    """Rows where a user takes the candidate if and only if it has the parity of the whole history."""
    source = random.Random(seed)
    made = []
    for n in range(number):
        parity = source.randrange(2)
        history = source.sample(ITEMS[parity::2], source.randint(1, SIZES.history))
        item = source.choice([item for item in ITEMS if item not in history])
        made.append(row_values(f"user{n % 5}", history, item, int(int(item[4:]) % 2 == parity)))
    return made


def pairs(number: int, seed: int = 0) -> list[dict]:
    """Pairs where the LLM prefers the item of the history's parity; every other one is a calibration pair."""
    made = []
    for n, row in enumerate(rows(number, seed)):
        parity = int(row[features.HISTORY_ITEM_IDS][0][4:]) % 2
        pair = {f.name: row[f.name] for f in features.row_features(SIZES) if f.role is Role.CONTEXT}
        for prefix, item in ((PREFERRED, ITEMS[parity]), (OTHER, ITEMS[1 - parity])):
            pair |= {prefix + name: value for name, value in item_values(item).items()}
        made.append(
            pair
            | {
                PREFERRED + features.LLM_SCORE: 0.9,
                OTHER + features.LLM_SCORE: 0.4,
                **{p + features.LLM_DISAGREEMENT: 0.1 for p in (PREFERRED, OTHER)},
                **{p + features.TEXT_WORDS: 5 for p in (PREFERRED, OTHER)},
                features.CALIBRATION_LABEL: 1 if n % 2 else -1,
            }
        )
    return made


def serialize(values: list[dict], columns: tuple[features.Feature, ...]) -> list[bytes]:
    """As tf.Examples."""
    return [to_example(v, columns).SerializeToString() for v in values]


def parse(values: list[dict], columns: tuple[features.Feature, ...]) -> dict[str, tf.Tensor]:
    """As a batch of raw columns."""
    return tf.io.parse_example(serialize(values, columns), parsing_spec(columns))


def write_records(path: Path, records: list[bytes]) -> None:
    """As a gzipped TFRecord file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for record in records:
            writer.write(record)


def write_transform(
    directory: Path, values: list[dict], *, use_user_id: bool, has_weights: bool = False
) -> tft.TFTransformOutput:
    """Analyses rows as TFX's Transform does and writes the transform graph."""
    columns = features.row_features(SIZES, has_weights=has_weights)
    metadata = dataset_metadata.DatasetMetadata(schema(columns))
    raw = [{f.name: v[f.name] for f in columns} for v in values]

    def preprocess(inputs: dict) -> dict:
        return preprocessing_fn(inputs, {USE_USER_ID: use_user_id})

    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(directory / "temp")):
        transform_fn = (pipeline | beam.Create(raw), metadata) | tft_beam.AnalyzeDataset(preprocess)
        _ = transform_fn | tft_beam.WriteTransformFn(str(directory / "graph"))
    return tft.TFTransformOutput(str(directory / "graph"))
