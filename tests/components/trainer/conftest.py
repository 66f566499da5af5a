from tests.models.conftest import transform_output  # noqa: F401  a fixture
