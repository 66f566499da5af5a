"""Scores candidates for users offline, and shows one user's history and best items with titles."""

import csv
import pathlib
import time
import types
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from rich.console import Console

from sllmr.components.catalog import Item, Version, values_at
from sllmr.components.interactions_example_gen.cells import RowError
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.feature_cells import parse_feature
from sllmr.components.interactions_example_gen.rows import Event, without_duplicates, without_repeats
from sllmr.components.interactions_example_gen.tables import (
    POSITIVE,
    BadRow,
    DataError,
    UserRow,
    check_tables,
    read_interactions,
    read_items,
    read_users,
    table_paths,
)
from sllmr.components.model_info import read_model_info
from sllmr.models import features, signatures
from sllmr.models.declared_features import INTERACTION, USER, DeclaredFeature, Value
from sllmr.models.errors import UserError
from sllmr.pipeline.config import load_config

_CANDIDATES_AT_ONCE = 10_000
_NO_REQUEST: Mapping[str, str] = types.MappingProxyType({})


def read_histories(data: DataConfig, known: Mapping[str, Item], users: frozenset[str] | None) -> dict[str, list[str]]:
    """Each user's positives, latest first, of items that the catalog knows.

    Args:
        data: names the interactions; malformed rows are left out, as a run leaves them out.
        known: the catalog.
        users: whose; None means every user.

    Raises:
        DataError: no row of the interactions can be used.
    """
    bad: BadRow | None = None
    usable = False
    events: dict[str, list[Event]] = {}
    for path in table_paths(data.interactions, "data.interactions"):
        for row in read_interactions(path, data):
            if isinstance(row, BadRow):
                bad = bad or row
                continue
            usable = True
            if row.kind != POSITIVE or row.item_id not in known:
                continue
            if users is None or row.user_id in users:
                events.setdefault(row.user_id, []).append(Event(*row[1:]))
    if bad is not None and not usable:
        raise DataError(f"no row of data.interactions can be used; the first: {bad.file} row {bad.row}: {bad.problem}")
    kept = {user: without_repeats(without_duplicates(of)[0], data) for user, of in events.items()}
    return {user: [event.item_id for event in of][::-1] for user, of in kept.items()}


class Ranker:
    """The `rank` signature of an exported model.

    The declared features of users are those that hold now.

    Args:
        model: folder of the SavedModel.
        data: of the run that trained it.
        request: by name, values of the declared features of interactions, which only a request has, written as in a
            table. Features that are not named are missing.

    Raises:
        UserError: see components.model_info.read_model_info, or the model has other features of users than `data`, or
            `request` names a feature that the model does not read, or holds an invalid value.
        DataError: a row of data.users breaks a rule.
    """

    def __init__(self, model: pathlib.Path, data: DataConfig, request: Mapping[str, str] = _NO_REQUEST):
        info = read_model_info(model)
        self._use_user_id = info.use_user_id
        self._of_users, self._of_requests = (info.sizes.of_tables(table) for table in (USER, INTERACTION))
        if self._of_users != data.feature_sizes.of_tables(USER):
            raise UserError(
                f"data.features.user must be that of the training, got {list(data.features.user)} where {model} has "
                f"{[f.name for f in self._of_users]}; give the configuration of the run that trained it"
            )
        self._request = _values_of_request(request, self._of_requests)
        self._values = _values_of_users(data) if self._of_users else {}
        self._model = tf.saved_model.load(str(model))
        self._rank = self._model.signatures[signatures.RANK]

    def scores(self, user: str, history: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """float32 [candidates], higher is better."""
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(candidates), _CANDIDATES_AT_ONCE):
            request = {
                features.HISTORY_ITEM_IDS: tf.constant([list(history)], tf.string, shape=(1, len(history))),
                signatures.CANDIDATE_ITEM_IDS: tf.constant([candidates[start : start + _CANDIDATES_AT_ONCE]]),
            }
            if self._use_user_id:
                request[features.USER_ID] = tf.constant([user])
            values = self._values.get(user, {})
            request |= {f.name: tf.constant([f.encoded(values.get(f.name))]) for f in self._of_users}
            request |= {f.name: tf.constant([f.encoded(self._request.get(f.name))]) for f in self._of_requests}
            parts.append(self._rank(**request)[signatures.SCORES].numpy()[0])
        return np.concatenate(parts)

    def top(self, user: str, history: Sequence[str], candidates: Sequence[str], n: int) -> list[tuple[str, float]]:
        """The n best candidates that are not in the history, with scores, best first."""
        seen = set(history)
        new = [item for item in candidates if item not in seen]
        scores = self.scores(user, history, new)
        return [(new[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:n]]


def _values_of_request(request: Mapping[str, str], known: Sequence[DeclaredFeature]) -> dict[str, Value]:
    by_name = {f.name: f for f in known}
    if unknown := sorted(request.keys() - by_name):
        names = ", ".join(by_name) or "it has none"
        raise UserError(
            f"--request must name a feature of interactions that the model reads ({names}), got {unknown[0]}; remove it"
        )
    values = {}
    for name, text in request.items():
        try:
            value = parse_feature(text, by_name[name])
        except RowError as error:
            raise UserError(f"--request {name}: {error}") from None
        if value is not None:
            values[name] = value
    return values


def _values_of_users(data: DataConfig) -> dict[str, Mapping[str, Value]]:
    """By user, the declared features that hold now."""
    versions: dict[str, list[Version]] = {}
    for path in table_paths(data.users or "", "data.users"):
        for row in read_users(path, data):
            if isinstance(row, UserRow):
                versions.setdefault(row.user_id, []).append(row.version)
            elif data.on_bad_row == "fail":
                raise DataError(str(row))
    now = round(1000 * time.time())
    by_time = {user: sorted(of, key=lambda version: version.valid_from) for user, of in versions.items()}
    return {user: values_at(of, now) for user, of in by_time.items()}


def predict(
    config_file: pathlib.Path,
    model: pathlib.Path,
    output: pathlib.Path,
    *,
    users: pathlib.Path | None,
    candidates: pathlib.Path | None,
    n: int,
    console: Console,
    request: Mapping[str, str] = _NO_REQUEST,
) -> None:
    """Writes user_id, item_id, rank and score of each user's n best candidates, as CSV; if it fails, an earlier file
    stays as it is.

    Args:
        config_file: YAML of a run, whose tables hold histories and items.
        model: folder of an exported model.
        output: the CSV file.
        users: a file of user ids, one a line; None means every user of the interactions.
        candidates: a file of item ids, one a line; None means every item. Items of the history are left out.
        n: how many per user.
        console: gets a line with the numbers of users and items.
        request: see Ranker; the same for every user.

    Raises:
        UserError: an id is unknown, or the model cannot be read.
        DataError: a table cannot be read.
    """
    data = load_config(config_file).data
    catalog = _catalog(data)
    wanted = None if users is None else _ids(users)
    items = list(catalog) if candidates is None else _ids(candidates)
    unknown = [item for item in items if item not in catalog]
    if unknown:
        raise UserError(
            f"--candidates must hold items of data.items, got {unknown[0]!r} and {len(unknown) - 1} more that are "
            "none; remove them"
        )
    histories = read_histories(data, catalog, None if wanted is None else frozenset(wanted))
    ranker = Ranker(model, data, request)
    unfinished = output.with_name(f"{output.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("user_id", "item_id", "rank", "score"))
        for user in sorted(histories) if wanted is None else wanted:  # a user without a history has an empty one
            best = ranker.top(user, histories.get(user, []), items, n)
            writer.writerows((user, item, rank, f"{score:.6g}") for rank, (item, score) in enumerate(best, start=1))
    unfinished.replace(output)
    count = len(histories) if wanted is None else len(wanted)
    console.print(f"{count:,} users, at most {n} of {len(items):,} items each: {output}", soft_wrap=True)


def top(
    config_file: pathlib.Path,
    model: pathlib.Path,
    user: str,
    n: int,
    console: Console,
    request: Mapping[str, str] = _NO_REQUEST,
) -> None:
    """Prints the latest n items of a user's history and the n best others, with titles; for `request` see Ranker.

    Raises:
        UserError: the user has no positive in data.interactions, or the model cannot be read.
        DataError: a table cannot be read.
    """
    data = load_config(config_file).data
    catalog = _catalog(data)
    history = read_histories(data, catalog, frozenset([user])).get(user)
    if history is None:
        raise UserError(
            f"--user must have a positive in data.interactions, got {user!r}, who has none; check the spelling, "
            "capitals and leading zeros count"
        )
    console.print(f"History of {user}, latest first ({len(history)} items)", style="bold", markup=False)
    for item in history[:n]:
        console.print(f"  {_title(catalog[item])}", markup=False, soft_wrap=True)
    console.print(f"Top {n}", style="bold")
    for rank, (item, score) in enumerate(Ranker(model, data, request).top(user, history, list(catalog), n), start=1):
        console.print(f"  {rank:3d}  {score:.4f}  {_title(catalog[item])}", markup=False, soft_wrap=True)


def _catalog(data: DataConfig) -> dict[str, Item]:
    check_tables(data)
    rows = read_items(table_paths(data.items, "data.items"), data)
    return {row.item_id: row for row in rows if not isinstance(row, BadRow)}


def _title(item: Item) -> str:
    categories = f" ({', '.join(item.categories)})" if item.categories else ""
    return f"{item.title or 'without a title'}{categories} [{item.item_id}]"


def _ids(file: pathlib.Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} must hold one id a line, but it cannot be read: {error}; correct the path") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
