"""The tiny market with a declared feature of each kind and table, and with missing values."""

import math
from pathlib import Path

import apache_beam as beam
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata

from sllmr.models import features
from sllmr.models.declared_features import DeclaredFeature
from sllmr.models.features import OTHER, PREFERRED, FeatureSizes
from sllmr.models.preprocessing import SIZES as SIZES_KEY
from sllmr.models.preprocessing import USE_USER_ID, preprocessing_fn
from sllmr.models.schema import schema
from tests.models import market

NAN = math.nan

DECLARED = tuple(
    DeclaredFeature(name=name, table=table, **keys)
    for name, table, keys in (
        ("age_band", "user", {"kind": "categorical"}),
        ("days", "user", {"kind": "numeric", "scaling": "standard"}),
        ("price", "item", {"kind": "numeric", "buckets": 4, "history": True}),
        ("weight", "item", {"kind": "numeric", "scaling": "standard"}),
        ("color", "item", {"kind": "categorical", "hashing_buckets": 5}),
        ("tags", "item", {"kind": "list", "max_values": 3, "history": True}),
        ("device", "interaction", {"kind": "categorical"}),
        ("hour", "interaction", {"kind": "numeric", "buckets": 3}),
        ("places", "interaction", {"kind": "list", "max_values": 2, "hashing_buckets": 4}),
    )
)
SIZES = FeatureSizes(history=4, categories=2, declared=DECLARED)
COLUMNS = features.row_features(SIZES)


def item_values(item: str) -> dict:
    """Every third item has no price, every fourth no color and no tags."""
    number = int(item.removeprefix("item"))
    return {
        "price": NAN if number % 3 == 2 else 1.5 * number,
        "weight": NAN if number % 5 == 4 else 10.0 - number,
        "color": "" if number % 4 == 3 else f"color{number % 2}",
        "tags": ["", "", ""] if number % 4 == 3 else ["all", f"tag{number % 3}", ""],
    }


def row_of(row: dict, number: int) -> dict:
    """A row of market.rows with the values of the declared features."""
    history = [item for item in row[features.HISTORY_ITEM_IDS] if item]
    padding = SIZES.history - len(history)
    items = [item_values(item) for item in history]
    return (
        row
        | item_values(row[features.ITEM_ID])
        | {
            "age_band": ["", "young", "old"][number % 3],
            "days": NAN if number % 4 == 0 else float(number % 7),
            "history_price": [item["price"] for item in items] + [NAN] * padding,
            "history_tags": [item["tags"] for item in items] + [["", "", ""]] * padding,
            "device": ["phone", "desk", ""][number % 3],
            "hour": NAN if number % 5 == 0 else float(number % 24),
            "places": [["home", "work"], ["home", ""], ["", ""]][number % 3],
            features.TIMESTAMP: 1000 * number,
        }
    )


def rows(number: int, seed: int = 0) -> list[dict]:
    """market.rows with the declared features."""
    return [row_of(row, n) for n, row in enumerate(market.rows(number, seed))]


def pairs(number: int, seed: int = 0) -> list[dict]:
    """market.pairs with the declared features."""
    made = []
    for n, pair in enumerate(market.pairs(number, seed)):
        row = row_of(pair | {features.ITEM_ID: "item0"}, n)
        for prefix in (PREFERRED, OTHER):
            row |= {prefix + name: value for name, value in item_values(pair[prefix + features.ITEM_ID]).items()}
        made.append(row)
    return made


def write_transform(directory: Path, values: list[dict]) -> tft.TFTransformOutput:
    """Analyses rows as TFX's Transform does and writes the transform graph."""
    metadata = dataset_metadata.DatasetMetadata(schema(COLUMNS))
    raw = [{f.name: v[f.name] for f in COLUMNS} for v in values]
    config = {USE_USER_ID: False, SIZES_KEY: SIZES.model_dump_json()}

    def preprocess(inputs: dict) -> dict:
        return preprocessing_fn(inputs, config)

    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(directory / "temp")):
        transform_fn = (pipeline | beam.Create(raw), metadata) | tft_beam.AnalyzeDataset(preprocess)
        _ = transform_fn | tft_beam.WriteTransformFn(str(directory / "graph"))
    return tft.TFTransformOutput(str(directory / "graph"))


def catalog() -> dict[str, list]:
    """The market's items as the export takes them."""
    built_in = (features.ITEM_ID, features.ITEM_CATEGORIES, features.ITEM_BRAND)
    items = [market.item_values(item) | item_values(item) for item in market.ITEMS]

    def encoded(value: object) -> object:
        if isinstance(value, list):
            return [encoded(part) for part in value]
        return value.encode() if isinstance(value, str) else value

    names = (*built_in, *(f.name for f in SIZES.of_tables("item")))
    return {name: [encoded(item[name]) for item in items] for name in names}
