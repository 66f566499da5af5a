from pathlib import Path

import pytest
import tensorflow_transform as tft

from tests.models import market


@pytest.fixture(scope="session")
def transform_output(tmp_path_factory: pytest.TempPathFactory) -> tft.TFTransformOutput:
    directory: Path = tmp_path_factory.mktemp("transform")
    return market.write_transform(directory, market.rows(64), use_user_id=False)
