"""What the arms rank: drawn alike in every process, never of the user's own items, scored as rows of the test are."""

import collections
import csv
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from sllmr.components.catalog import Item, Version
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.llm_scorer.messages import CandidateResult
from sllmr.models import features
from sllmr.models.declared_features import DeclaredFeature
from sllmr.models.features import FeatureSizes
from sllmr.models.tf_examples import to_example
from sllmr.pipeline.ablation.ranking_candidates import (
    ALL_ITEMS,
    NO_CANDIDATE,
    SAMPLED,
    ItemTable,
    Ranking,
    items_of_users,
    make_rankings,
    ranked_users,
    sample_items,
)
from sllmr.pipeline.ablation.ranking_config import RankingConfig

SIZES = FeatureSizes(history=3, categories=1)
ITEMS = [f"i{n:02d}" for n in range(30)]
OWN = {f"u{n}": [ITEMS[n], ITEMS[n + 1], ITEMS[n + 5], ITEMS[n + 9]] for n in range(8)}
"""By user in the order of time; the last one of the interactions file is no positive."""


def test_items_are_uniform_over_those_that_the_user_does_not_have():
    counts = collections.Counter(
        item for n in range(3000) for item in sample_items(ITEMS[:12], {"i03", "i07"}, 4, 0, f"user-{n}")
    )
    assert set(counts) == set(ITEMS[:12]) - {"i03", "i07"}
    # 3000 draws of 4 out of 10: each item 1200 times, with a standard deviation of 27.
    assert all(abs(count - 1200) < 5 * 27 for count in counts.values())


def test_no_item_is_sampled_twice_and_few_items_are_all_taken():
    assert all(len(set(sample_items(ITEMS, {"i01"}, 20, 0, f"u{n}"))) == 20 for n in range(50))
    assert sorted(sample_items(ITEMS[:5], {"i01"}, 20, 0, "u")) == ["i00", "i02", "i03", "i04"]


def test_a_draw_depends_on_seed_and_user_alone_and_a_longer_one_begins_with_a_shorter():
    def draw(number: int = 10, seed: int = 0, user: str = "u") -> list[str]:
        return sample_items(ITEMS, set(), number, seed, user)

    assert draw() == draw() == draw(15)[:10]
    assert draw() != draw(seed=1)
    assert draw() != draw(user="v")


def transform(raw):
    """As a transform graph: what cannot be computed from the columns at hand is left out."""
    number = tf.strings.to_number(tf.strings.substr(raw[features.ITEM_ID], 1, 2), tf.int64) + 1
    categories = tf.strings.to_hash_bucket_fast(raw[features.ITEM_CATEGORIES], 1000)
    made = {
        features.ITEM_INDEX: number,
        features.ITEM_CATEGORY_INDICES: categories,
        features.ITEM_BRAND_INDEX: number * 2,
        features.ITEM_TRAIN_COUNT: raw[features.ITEM_TRAIN_COUNT],
        features.IS_TAIL: raw[features.IS_TAIL],
    }
    if "price" in raw:
        is_missing = tf.math.is_nan(raw["price"])
        made |= {"price_index": tf.cast(tf.where(is_missing, -1.0, raw["price"]), tf.int64)}
    return made


class Vectors:
    """An LLM scorer without requests; it cannot score every seventh item."""

    prompt_version = ""

    def results(self, context, answers):
        numbers = [int(candidate.item_id[1:]) for candidate in context.candidates]
        scores = [None if n % 7 == 0 else n + len(context.history_item_ids) / 10 for n in numbers]
        ids = [candidate.item_id for candidate in context.candidates]
        return [CandidateResult(item_id=i, raw_score=s) for i, s in zip(ids, scores, strict=True)]

    def requests(self, context, catalog):
        return ()

    def failure(self, request, response):
        return None


def write_rows(directory: pathlib.Path) -> tuple[str, list[dict]]:
    """Two positives and their negatives of each user, later ones first, and a user without a positive."""
    rows = []
    for user, own in OWN.items():
        for position in (3, 2):
            for item, label in ((own[position - 1], 1), (ITEMS[-1], 0)):
                history = list(reversed(own[: position - 1]))
                rows.append({"user": user, "item": item, "label": label, "position": position, "history": history})
    rows.append({"user": "nobody", "item": ITEMS[0], "label": 0, "position": 2, "history": [ITEMS[1]]})
    columns = features.row_features(SIZES)
    with tf.io.TFRecordWriter(str(directory / "rows.gz"), "GZIP") as writer:
        for row in rows:
            padding = [""] * (SIZES.history - len(row["history"]))
            values = {f.name: 0 if f.dtype == "int64" else [""] * int(np.prod(f.shape, dtype=int)) for f in columns}
            values |= {f.name: "" for f in columns if f.dtype == "string" and not f.shape}
            values |= {
                features.USER_ID: row["user"],
                features.ITEM_ID: row["item"],
                features.LABEL: row["label"],
                features.POSITION: row["position"],
                features.HISTORY_ITEM_IDS: row["history"] + padding,
            }
            writer.write(to_example(values, columns).SerializeToString())
    return str(directory / "*.gz"), rows


def data_config(directory: pathlib.Path) -> DataConfig:
    tables = {"interactions": str(directory / "interactions.csv"), "items": "items.csv"}
    return DataConfig.model_validate(tables | {"min_rating": 4, "sizes": {"history": 3, "categories": 1}})


@pytest.fixture
def made(tmp_path):
    """A function of the settings: rankings of the users, and the rows."""
    files, rows = write_rows(tmp_path)
    with open(tmp_path / "interactions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp", "rating"])
        for user, own in OWN.items():
            ratings = [5] * (len(own) - 1) + [1]
            for n, (item, rating) in enumerate(zip(own, ratings, strict=True)):
                writer.writerow([user, item, 1_000_000_000 + n, rating])
    data = data_config(tmp_path)
    catalog = {i: Item(item_id=i, categories=(f"c{n % 3}",), train_count=n) for n, i in enumerate(ITEMS)}
    test = {
        features.LABEL: tf.constant([row["label"] for row in rows]),
        features.USER_HASH: tf.constant([int(row["user"][1:]) if row["user"] != "nobody" else 99 for row in rows]),
        features.ITEM_INDEX: tf.constant([ITEMS.index(row["item"]) + 1 for row in rows]),
        features.HISTORY_LENGTH: tf.constant([len(row["history"]) for row in rows]),
    }

    def make(strategy=None, **settings) -> tuple[dict[str, Ranking], list[dict]]:
        rankings = make_rankings(
            RankingConfig.model_validate(settings),
            data=data,
            catalog=catalog,
            test=test,
            test_files=files,
            transform=transform,
            strategy=strategy,
        )
        return rankings, rows

    return make


def candidates_of(ranking: Ranking) -> dict[int, list[str]]:
    """By user, the item ids in order."""
    index = np.asarray(ranking.items[features.ITEM_INDEX])
    users = np.asarray(ranking.users[features.USER_HASH]).tolist()
    return {
        user: [ITEMS[index[row] - 1] for row in rows if row != NO_CANDIDATE]
        for user, rows in zip(users, ranking.candidates, strict=True)
    }


def test_the_first_test_positive_of_a_user_stands_before_items_that_the_user_never_had(made):
    rankings, _ = made(candidates=12, all_items_users=3)
    sampled, every = candidates_of(rankings[SAMPLED]), candidates_of(rankings[ALL_ITEMS])

    assert sampled.keys() == set(range(8))
    for user, (positive, *negatives) in sampled.items():
        own = OWN[f"u{user}"]
        assert positive == own[1]
        assert len(set(negatives)) == 12
        assert not set(negatives) & set(own)  # also not the later positive and the item of a low rating
    assert len(every) == 3
    for user, (positive, *negatives) in every.items():
        assert positive == OWN[f"u{user}"][1]
        assert sorted([*negatives, *OWN[f"u{user}"]]) == ITEMS
    np.testing.assert_array_equal(np.asarray(rankings[SAMPLED].users[features.HISTORY_LENGTH]), 1)


def test_a_user_with_fewer_candidates_is_padded(made):
    (ranking,) = made(candidates=29)[0].values()
    assert ranking.candidates.shape == (8, 27)  # 30 items without 4, and the positive
    assert (ranking.candidates != NO_CANDIDATE).all()
    scores = Ranking(
        users=ranking.users,
        items=ranking.items,
        candidates=np.array([[3, 4, NO_CANDIDATE]] * 8, np.int32),
        llm_scores=None,
        hash="",
    ).scores(lambda batch: tf.cast(batch[features.ITEM_INDEX], tf.float32))
    np.testing.assert_array_equal(scores, [[4.0, 5.0, np.nan]] * 8)


def test_the_draw_is_the_same_again_and_fewer_users_and_candidates_are_part_of_more(made):
    first, again = (made(candidates=15)[0][SAMPLED] for _ in range(2))
    assert first.hash == again.hash
    np.testing.assert_array_equal(first.candidates, again.candidates)

    fewer = made(users=3, candidates=10)[0][SAMPLED]
    assert fewer.hash != first.hash
    more = candidates_of(first)
    assert {user: items[:11] for user, items in more.items() if user in candidates_of(fewer)} == candidates_of(fewer)
    assert made(candidates=15, seed=1)[0][SAMPLED].hash != first.hash
    assert made(users=0)[0] == {}


def test_a_candidate_is_scored_as_the_row_of_its_user_with_its_own_columns(made):
    ranking = made(candidates=12)[0][SAMPLED]

    def score(batch):
        item, user = batch[features.ITEM_INDEX], batch[features.USER_HASH]
        return tf.cast(100 * item + 10 * user + batch[features.HISTORY_LENGTH], tf.float32)

    scores = ranking.scores(score)
    assert scores.dtype == np.float32
    for number, (user, items) in enumerate(candidates_of(ranking).items()):
        expected = [100 * (ITEMS.index(item) + 1) + 10 * user + 1 for item in items]
        np.testing.assert_array_equal(scores[number], expected)
    popularity = [[ITEMS.index(item) for item in items] for items in candidates_of(ranking).values()]
    np.testing.assert_array_equal(ranking.popularity, popularity)


def test_the_llm_scorer_scores_the_candidates_if_it_needs_no_request(made):
    ranking = made(Vectors(), candidates=12)[0][SAMPLED]
    assert made(candidates=12)[0][SAMPLED].llm_scores is None
    for scores, items in zip(ranking.llm_scores, candidates_of(ranking).values(), strict=True):
        numbers = [int(item[1:]) for item in items]
        np.testing.assert_allclose(scores, [np.nan if n % 7 == 0 else n + 0.1 for n in numbers], rtol=1e-6)


def test_the_test_rows_of_the_ranked_users_are_their_first_positives(tmp_path):
    files, rows = write_rows(tmp_path)
    users = ranked_users(files, SIZES, seed=0)
    assert {user.user_id for user in users} == OWN.keys()
    assert [user.user_id for user in users] != sorted(OWN)
    for user in users:
        row = rows[user.row]
        assert (row["user"], row["position"], row["label"]) == (user.user_id, 2, 1)
        assert (user.item_id, list(user.history)) == (row["item"], row["history"])


def test_items_of_a_user_are_all_that_the_table_has(made, tmp_path):
    assert items_of_users(data_config(tmp_path), {"u1", "u3"}) == {"u1": set(OWN["u1"]), "u3": set(OWN["u3"])}


def test_a_candidate_has_the_declared_features_of_the_time():
    price = DeclaredFeature(name="price", table="item", kind="numeric")
    sizes = FeatureSizes(history=3, categories=1, declared=(price,))
    versions = (Version(100, {"price": 5.0}), Version(200, {"price": 7.0}))
    items = [Item(item_id="i00", versions=(Version(0, {"price": 3.0}),)), Item(item_id="i01", versions=versions)]
    table = ItemTable(items, sizes, transform)

    def prices(at: int) -> list[int]:
        return np.asarray(table.columns["price_index"])[table.rows(["i01", "i00"], at)].tolist()

    assert [prices(at)[0] for at in (100, 199, 200, 10**12)] == [5, 5, 7, 7]
    assert prices(150)[1] == 3
    assert prices(99) == [-1, 3]
