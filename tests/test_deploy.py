"""The example request fits the signature that is served."""

import importlib.util
import pathlib

import numpy as np

from models.features import FeatureSizes, row_features, served_features

REQUEST = pathlib.Path(__file__).resolve().parents[1] / "deploy" / "request.py"


def test_the_example_request_holds_every_served_column_in_its_shape():
    spec = importlib.util.spec_from_file_location("request", REQUEST)
    request = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(request)
    item = {"id": "1", "categories": ["a", "b"], "brand": ""}
    instance = request.row(item, [item, item])
    served = served_features(row_features(FeatureSizes()), use_user_id=False)
    assert {name: np.shape(value) for name, value in instance.items()} == {f.name: f.shape for f in served}
    assert instance["history_item_ids"][:3] == ["1", "1", ""]
