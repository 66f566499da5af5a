"""Checks every file that a configuration names before the first step, so that no run is paid for that must fail."""

import os

from sllmr.components.interactions_example_gen.cells import canonical_id, id_difference
from sllmr.components.interactions_example_gen.tables import BadRow, check_tables, read_items, table_paths
from sllmr.components.item_embedder.config import MIN_ITEMS_WITH_VECTOR
from sllmr.models.errors import UserError
from sllmr.models.item_vectors import read_item_vectors
from sllmr.pipeline.config import Config, ConfigError


def check_inputs(config: Config) -> None:
    """Checks the two tables' headers, that every other named file can be read, and that item vectors fit the items.

    Args:
        config: with absolute paths; tables that `fetch` prepares must be there already.

    Raises:
        ConfigError: a file is missing or cannot be used.
        DataError: a table is missing or lacks a column.
    """
    files = {
        "llm.prompt_file": config.llm.prompt_file,
        "item_vectors.file": config.item_vectors.file,
        "gate.weights_from": config.gate.weights_from,
    }
    for key, path in files.items():
        if path is not None:
            _check_file(key, path)
    if config.llm.replay_table is not None and not os.path.exists(config.llm.replay_table):
        raise ConfigError(
            f"llm.replay_table must be a folder or a file, got {config.llm.replay_table}, which does not exist; correct"
            " the path"
        )
    reference = config.evaluation.reference
    if reference is not None and not os.path.exists(os.path.join(reference, "saved_model.pb")):
        raise ConfigError(
            f"evaluation.reference must name the folder of a SavedModel, got {reference}, which has no saved_model.pb; "
            "name a version that was pushed, as runs/shop/serving/shop/1"
        )
    if config.serving.infra_validation_tag is not None:
        _check_docker()
    check_tables(config.data)
    if config.item_vectors.file is not None:
        _check_vectors("item_vectors.file", config.item_vectors.file, _item_ids(config))


def _check_docker() -> None:
    import docker  # a second to import

    try:
        docker.from_env().ping()
    except docker.errors.DockerException as error:
        raise ConfigError(
            f"serving.infra_validation_tag needs a Docker daemon, which does not answer: {error}; start it or remove"
            " the key"
        ) from None


def _check_file(key: str, path: str) -> None:
    problem = None
    if os.path.isdir(path):
        problem = "which is a folder"
    elif not os.path.isfile(path):
        problem = "which does not exist"
    elif not os.access(path, os.R_OK):
        problem = "which cannot be read"
    elif not os.path.getsize(path):
        problem = "which is empty"
    if problem:
        raise ConfigError(f"{key} must name a file, got {path}, {problem}; correct the path or remove the key")


def _item_ids(config: Config) -> frozenset[str]:
    rows = read_items(table_paths(config.data.items, "data.items"), config.data)
    return frozenset(row.item_id for row in rows if not isinstance(row, BadRow))


def _check_vectors(key: str, path: str, ids: frozenset[str]) -> None:
    try:
        known = read_item_vectors(path).row
    except UserError as error:
        raise ConfigError(f"{key}: {error}") from None
    found = sum(item_id in known for item_id in ids)
    if not ids or found >= MIN_ITEMS_WITH_VECTOR * len(ids):
        return
    by_canonical = {canonical_id(item_id): item_id for item_id in known}
    hint = "write one vector for each item_id of data.items"
    for item_id in sorted(ids - known.keys()):
        other = by_canonical.get(canonical_id(item_id))
        if other is not None:
            hint = f"data.items has {item_id!r} and the file {other!r}: {id_difference(other, item_id)}"
            break
    else:
        if known and ids:
            hint += f"; the file's ids look like {next(iter(known))!r}, those of data.items like {min(ids)!r}"
    raise ConfigError(
        f"{key} must have a vector for at least {MIN_ITEMS_WITH_VECTOR:.0%} of the items, got {found} of {len(ids)}"
        f" ({len(known)} vectors) in {path}; {hint}"
    )
