"""Every metric beside AUC against scikit-learn or a plain loop over users."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from sllmr.models import features
from sllmr.models.probability_error import logit_shift
from sllmr.pipeline.ablation.arms import ARMS
from sllmr.pipeline.ablation.cells import CellScores, RankingScores, Scores, fingerprint, fuse
from sllmr.pipeline.ablation.domain import SLICES, Domain, filled
from sllmr.pipeline.ablation.further_metrics import FURTHER_METRICS, FurtherMetrics, rank_candidates
from sllmr.pipeline.ablation.further_tables import HEADINGS
from sllmr.pipeline.ablation.ranking_candidates import ALL_ITEMS, NO_CANDIDATE, SAMPLED, Ranking
from tests.pipeline.ablation.test_cells import domain as rows_alone

USERS, CANDIDATES, ITEMS = 40, 21, 60
SOURCE = np.random.default_rng(5)


def ranking(name: str = "hash of the candidates", scored: bool = True) -> Ranking:
    """Of USERS users; user 3 has ten candidates alone, so that it always hits."""
    source = np.random.default_rng(7)
    candidates = np.stack([source.permutation(ITEMS)[:CANDIDATES] for _ in range(USERS)]).astype(np.int32)
    candidates[3, 10:] = NO_CANDIDATE
    llm_scores = source.normal(size=candidates.shape).astype(np.float32)
    llm_scores[0, 0] = np.nan
    return Ranking(
        users={
            features.LABEL: tf.ones(USERS, tf.int32),
            features.IS_COLD: tf.constant(np.arange(USERS) % 2, tf.int32),
            features.IS_TAIL: tf.zeros(USERS, tf.int32),
        },
        items={features.ITEM_TRAIN_COUNT: tf.constant(source.integers(0, 6, ITEMS), tf.int32)},
        candidates=candidates,
        llm_scores=llm_scores if scored else None,
        hash=name,
    )


def domain(**rankings: Ranking) -> Domain:
    """400 rows of 100 users, and rankings."""
    made = rows_alone()
    test = made.test | {features.USER_HASH: np.arange(400) // 4}
    return dataclasses.replace(made, test=test, rankings=rankings)


def scores(**rankings: Ranking) -> Scores:
    """Random logits that know something of the label; some tie."""
    label = np.asarray(rows_alone().test[features.LABEL])
    logits = np.round(label + SOURCE.normal(size=400), 1).astype(np.float32)
    of_rankings = {}
    for name, made in rankings.items():
        ranked = np.round(SOURCE.normal(size=made.candidates.shape), 1).astype(np.float32)
        ranked[:, 0] += 1
        of_rankings[name] = RankingScores(
            logits=np.where(made.candidates == NO_CANDIDATE, np.nan, ranked), hash=made.hash
        )
    return Scores(valid=logits, test=logits, rankings=of_rankings)


def of_users(made: Domain, name: str, logits: np.ndarray):
    """Labels and logits of each user's rows in a slice."""
    rows = {n: np.asarray(values) for n, values in made.test.items()}
    inside = np.ones(400, bool) if name == "overall" else rows[f"is_{name}"] == 1
    for user in np.unique(rows[features.USER_HASH]):
        mine = inside & (rows[features.USER_HASH] == user)
        if mine.any():
            yield rows[features.LABEL][mine], logits[mine]


@pytest.mark.parametrize("name", ["overall", "cold"])
def test_the_metrics_of_rows_are_scikit_learns(name):
    made, own = domain(), scores()
    further = FurtherMetrics(made)
    further.add("none", own)
    found = further.measure("none")

    users = list(of_users(made, name, own.test))
    labels, logits = (np.concatenate(parts) for parts in zip(*users, strict=True))
    aucs = [roc_auc_score(y, s) for y, s in users if 0 < y.sum() < len(y)]
    assert found["per_user_auc"][name].value == pytest.approx(np.mean(aucs))
    assert found["per_user_auc"][name].users == len(aucs)
    assert found["log_loss"][name].value == pytest.approx(log_loss(labels, expit(logits.astype(float))))
    assert found["log_loss"][name].users == len(users)
    assert found["log_loss"][name].baselines == {}
    assert 0 < found["calibration_error"][name].value < 0.5
    assert found["per_user_auc"]["tail"] is None  # it holds one class only


def test_popularity_and_the_llm_scorer_stand_beside_the_metrics_of_order():
    made = domain()
    further = FurtherMetrics(made)
    further.add("none", scores())
    baselines = further.measure("none")["per_user_auc"]["overall"].baselines

    for name, values in (
        ("popularity", np.asarray(made.test[features.ITEM_TRAIN_COUNT])),
        ("llm_scorer", made.llm_scorer["test"]),
    ):
        aucs = [roc_auc_score(y, s) for y, s in of_users(made, "overall", values) if 0 < y.sum() < len(y)]
        assert baselines[name] == pytest.approx(np.mean(aucs))


def loop_ndcg(made: Ranking, logits: np.ndarray) -> np.ndarray:
    found = []
    for number, candidates in enumerate(made.candidates):
        known = logits[number][candidates != NO_CANDIDATE].astype(float)
        found.append(ndcg_score([[1] + [0] * (len(known) - 1)], [known], k=10))
    return np.array(found)


def loop_hit(made: Ranking, logits: np.ndarray) -> np.ndarray:
    """Where a tie goes across the tenth place, the fraction of its orders that hit."""
    found = []
    for number, candidates in enumerate(made.candidates):
        own, *others = logits[number][candidates != NO_CANDIDATE]
        above, tied = sum(other > own for other in others), sum(other == own for other in others)
        if len(others) >= 10:
            found.append(np.clip((10 - above) / (tied + 1), 0, 1))
    return np.array(found)


@pytest.mark.parametrize("rows_at_once", [10**6, 50])
def test_ndcg_and_hit_rate_are_those_of_a_loop_over_users(monkeypatch, rows_at_once):
    monkeypatch.setattr("sllmr.pipeline.ablation.further_metrics._ROWS_AT_ONCE", rows_at_once)
    made = ranking()
    own = scores(sampled=made)
    further = FurtherMetrics(domain(sampled=made))
    further.add("none", own)
    found = further.measure("none")

    logits = own.rankings[SAMPLED].logits
    ndcg, hit = loop_ndcg(made, logits), loop_hit(made, logits)
    assert found["sampled_ndcg_at_10"]["overall"].value == pytest.approx(ndcg.mean())
    assert found["sampled_ndcg_at_10"]["overall"].users == USERS
    assert found["sampled_ndcg_at_10"]["cold"].value == pytest.approx(ndcg[1::2].mean())
    assert found["sampled_ndcg_at_10"]["tail"] is None  # without users
    assert found["sampled_hit_rate_at_10"]["overall"].value == pytest.approx(hit.mean())
    assert found["sampled_hit_rate_at_10"]["overall"].users == USERS - 1
    baselines = found["sampled_ndcg_at_10"]["overall"].baselines
    assert baselines["popularity"] == pytest.approx(loop_ndcg(made, made.popularity).mean())
    scorer = filled(made.llm_scores, like=rows_alone().llm_scorer["valid"])
    assert baselines["llm_scorer"] == pytest.approx(loop_ndcg(made, scorer).mean())
    np.testing.assert_allclose(rank_candidates(made, logits).ndcg, ndcg)


def test_differences_are_paired_by_user():
    made = ranking()
    sampled, every = made, dataclasses.replace(made, hash="all")
    further = FurtherMetrics(domain(sampled=sampled, all_items=every))
    arms = {name: scores(sampled=sampled, all_items=every) for name in ("none", "global", "distill")}
    for name, own in arms.items():
        further.add(name, own)
    found = further.measure("distill")
    by_arm = {name: further.measure(name) for name in arms}

    assert set(found) == set(FURTHER_METRICS) == set(HEADINGS)
    for metric, slices in found.items():
        assert slices.keys() == set(SLICES)
        own = slices["overall"]
        assert list(own.versus) == ["none", "global"]
        for other, difference in own.versus.items():
            expected = own.value - by_arm[other][metric]["overall"].value
            assert difference.difference == pytest.approx(expected, abs=1e-12)
    of_users = [loop_ndcg(made, arms[name].rankings[SAMPLED].logits) for name in ("distill", "none")]
    error = np.std(of_users[0] - of_users[1], ddof=1) / USERS**0.5
    assert found["sampled_ndcg_at_10"]["overall"].versus["none"].standard_error == pytest.approx(error)
    assert by_arm["none"]["log_loss"]["overall"].versus == {}


def test_the_standard_error_of_log_loss_counts_users_and_not_rows():
    further = FurtherMetrics(domain())
    own, other = scores(), scores()
    further.add("none", own)
    further.add("global", other)
    found = further.measure("global")["log_loss"]["overall"].versus["none"]

    label = np.asarray(rows_alone().test[features.LABEL])
    losses = [np.logaddexp(0, np.where(label == 1, -s.test, s.test).astype(float)) for s in (other, own)]
    by_user = (losses[0] - losses[1]).reshape(100, 4).mean(axis=1)
    assert found.standard_error == pytest.approx(np.std(by_user, ddof=1) / 10)


def test_an_arm_without_scores_of_the_candidates_has_none_and_takes_part_elsewhere():
    made = ranking()
    further = FurtherMetrics(domain(sampled=made))
    further.add("none", scores())
    further.add("global", scores(sampled=dataclasses.replace(made, hash="other candidates")))
    further.add("distill", scores(sampled=made))

    assert further.measure("none")["sampled_ndcg_at_10"] == dict.fromkeys(SLICES)
    assert further.measure("global")["sampled_ndcg_at_10"] == dict.fromkeys(SLICES)
    found = further.measure("distill")
    assert found["sampled_ndcg_at_10"]["overall"].versus == {}
    assert list(found["per_user_auc"]["overall"].versus) == ["none", "global"]


def test_without_rankings_there_is_no_such_metric():
    further = FurtherMetrics(domain())
    further.add("none", scores())
    assert set(further.measure("none")) == {"per_user_auc", "log_loss", "calibration_error"}


def test_log_loss_is_measured_at_the_rate_of_positives_that_the_evaluator_has():
    label = np.array([1] * 100 + [0] * 300)
    made = dataclasses.replace(domain(), train={features.LABEL: label}, valid={features.LABEL: label[50:]})
    own = scores()
    further = FurtherMetrics(made, positive_rate=0.1)
    further.add("none", own)
    further.add("late_fusion", own, fitted_on_validation=True)

    labels = np.asarray(made.test[features.LABEL])
    weights = np.where(labels == 1, 0.1 / labels.mean(), 0.9 / (1 - labels.mean()))
    for arm, rate in (("none", 0.25), ("late_fusion", 50 / 350)):
        probabilities = expit(own.test.astype(float) + logit_shift(rate, 0.1))
        expected = log_loss(labels, probabilities, sample_weight=weights)
        assert further.measure(arm)["log_loss"]["overall"].value == pytest.approx(expected)


def test_late_fusion_ranks_by_both_scores_if_both_know_the_candidates():
    known, unscored = ranking(), ranking(name="all", scored=False)
    made = domain(sampled=known, all_items=unscored)
    none = scores(sampled=known, all_items=unscored)
    fused = fuse(made, none)

    weights = fused.training["fusion"]
    expected = weights["logit"] * none.rankings[SAMPLED].logits + weights["bias"]
    expected += weights["llm_scorer"] * filled(known.llm_scores, like=made.llm_scorer["valid"])
    np.testing.assert_allclose(fused.scores.rankings[SAMPLED].logits, expected, rtol=1e-5, atol=1e-6)
    assert fused.scores.rankings[SAMPLED].hash == known.hash
    assert ALL_ITEMS not in fused.scores.rankings
    assert fuse(made, dataclasses.replace(none, rankings={})).scores.rankings == {}
    elsewhere = dataclasses.replace(known, hash="other candidates")
    assert fuse(domain(sampled=elsewhere), none).scores.rankings == {}


def test_scores_of_candidates_survive_beside_those_of_rows_and_earlier_files_have_none(tmp_path):
    made = ranking()
    store, own = CellScores(tmp_path), scores(sampled=made, all_items=made)
    store.save("none", "abc", own)
    np.savez(tmp_path / "none-old.npz", valid=own.valid, test=own.test)

    again = store.load("none", "abc")
    assert again.rankings.keys() == own.rankings.keys()
    for name, found in again.rankings.items():
        np.testing.assert_array_equal(found.logits, own.rankings[name].logits)
        assert found.logits.dtype == np.float32
        assert found.hash == made.hash
    np.testing.assert_array_equal(again.test, own.test)
    assert store.load("none", "old").rankings == {}


def test_rankings_take_no_part_in_a_fingerprint():
    made, own = ranking(), scores(sampled=ranking())
    without = dataclasses.replace(own, rankings={})
    hyperparameters = {"loss": {}}
    assert fingerprint(domain(), hyperparameters, ARMS["late_fusion"], adds_to=without) == fingerprint(
        domain(sampled=made), hyperparameters, ARMS["late_fusion"], adds_to=own
    )
