"""The metrics of a cell beside AUC: user-level AUC, log loss, calibration error, and NDCG and hit rate of rankings."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sllmr.models import features
from sllmr.models.clustered_mean import MeanEstimate, mean_by_user
from sllmr.models.metric_names import LESS_IS_BETTER, MeanMetric
from sllmr.models.metrics import Rows
from sllmr.models.probability_error import logit_shift
from sllmr.models.user_ranking import UserRanking, rank_by_user
from sllmr.pipeline.ablation.cells import Scores
from sllmr.pipeline.ablation.domain import SLICES, Domain, filled
from sllmr.pipeline.ablation.ranking_candidates import ALL_ITEMS, NO_CANDIDATE, SAMPLED, Ranking
from sllmr.pipeline.ablation.results import Measure, Measures, MetricDifference
from sllmr.pipeline.baseline import in_slice

ROW_METRICS: tuple[MeanMetric, ...] = ("per_user_auc", "log_loss", "calibration_error")
"""Measured on the test rows, as the Evaluator measures them."""

_OF_RANKING = {"ndcg_at_10": "ndcg", "hit_rate_at_10": "hit"}

FURTHER_METRICS: tuple[str, ...] = (
    *ROW_METRICS,
    *(f"{ranking}_{metric}" for ranking in (SAMPLED, ALL_ITEMS) for metric in _OF_RANKING),
)
"""In the order of the tables."""

POPULARITY, LLM_SCORER = "popularity", "llm_scorer"
"""Names of the baselines."""

_BASELINE = "baseline "
_ROWS_AT_ONCE = 1_000_000


class FurtherMetrics:
    """Measures the cells of a domain that have the same backbone and seed, each against those before it.

    Args:
        domain: of the cells.
        positive_rate: evaluation.positive_rate: what log loss and calibration error are measured at.
    """

    def __init__(self, domain: Domain, positive_rate: float | None = None):
        self._domain = domain
        self._positive_rate = positive_rate
        self._logits: dict[str, np.ndarray] = {}
        self._by_user: dict[str, dict[str, UserRanking]] = {name: {} for name in domain.rankings}
        self._baselines = _baselines_of_rows(domain)
        for name, ranking in domain.rankings.items():
            for baseline, scores in _baselines_of_ranking(domain, ranking).items():
                self._by_user[name][_BASELINE + baseline] = rank_candidates(ranking, scores)

    def add(self, arm: str, scores: Scores, *, fitted_on_validation: bool = False) -> None:
        """Takes in an arm's scores; those of a ranking with other candidates are left out.

        Args:
            arm: its name.
            scores: of it.
            fitted_on_validation: whether the logits give probabilities at the rate of positives in the validation
                rows, as late fusion's do, instead of in the train rows.
        """
        self._logits[arm] = scores.test.astype(np.float64) + self._shift(fitted_on_validation)
        for name, ranking in self._domain.rankings.items():
            scored = scores.rankings.get(name)
            if scored is not None and scored.hash == ranking.hash:
                self._by_user[name][arm] = rank_candidates(ranking, scored.logits)

    def measure(self, arm: str) -> Measures:
        """Every metric of an arm that was added, with its paired differences to the arms that were added before it."""
        others = list(self._logits)[: list(self._logits).index(arm)]
        measures: Measures = {metric: {} for metric in ROW_METRICS}
        for name in SLICES:
            inside = in_slice(self._domain.test, name)
            users, labels = (
                np.asarray(self._domain.test[column])[inside] for column in (features.USER_HASH, features.LABEL)
            )
            scores = {other: self._logits[other][inside] for other in (*others, arm)}
            baselines = {_BASELINE + baseline: values[inside] for baseline, values in self._baselines.items()}
            rows = Rows(users, labels, {**scores, **baselines}, self._positive_rate)
            for metric in ROW_METRICS:
                measures[metric][name] = _measure(
                    rows.mean(metric, arm),
                    {other: rows.mean_difference(metric, arm, other) for other in others},
                    {}
                    if metric in LESS_IS_BETTER
                    else {b.removeprefix(_BASELINE): rows.mean(metric, b) for b in baselines},
                )
        for ranking_name, ranking in self._domain.rankings.items():
            by_user = self._by_user[ranking_name]
            for of_users, field in _OF_RANKING.items():
                measures[f"{ranking_name}_{of_users}"] = {
                    name: _of_ranking(by_user, field, in_slice(ranking.users, name), arm, others) for name in SLICES
                }
        return measures

    def _shift(self, fitted_on_validation: bool) -> float:
        """What the export would add to the logits."""
        if self._positive_rate is None:
            return 0.0
        rows = self._domain.valid if fitted_on_validation else self._domain.train
        labels = np.asarray(rows[features.LABEL])
        weights = np.asarray(rows.get(features.EXAMPLE_WEIGHT, np.ones(len(labels))), np.float64)
        return logit_shift(float(weights[labels == 1].sum() / weights.sum()), self._positive_rate)


def rank_candidates(ranking: Ranking, scores: npt.ArrayLike) -> UserRanking:
    """Each user's NDCG and hit rate, float64 [users] in the order of the ranking.

    Args:
        ranking: of the users.
        scores: [users, candidates], on any scale, higher is better; ignored where there is no candidate.
    """
    scores = np.asarray(scores)
    at_once = max(1, _ROWS_AT_ONCE // scores.shape[1])
    parts = []
    for start in range(0, len(scores), at_once):
        user, place = np.nonzero(ranking.candidates[start : start + at_once] != NO_CANDIDATE)
        parts.append(rank_by_user(user, place == 0, scores[start : start + at_once][user, place]))
    return UserRanking(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _of_ranking(
    by_user: Mapping[str, UserRanking], field: str, inside: np.ndarray, arm: str, others: list[str]
) -> Measure | None:
    def values(scorer: str) -> np.ndarray:
        return getattr(by_user[scorer], field)[inside]

    def mean(of_users: np.ndarray) -> MeanEstimate:
        known = of_users[~np.isnan(of_users)]  # the same users for every scorer, as their candidates are the same
        return mean_by_user(known, np.ones(len(known)))

    if arm not in by_user:
        return None
    return _measure(
        mean(values(arm)),
        {other: mean(values(arm) - values(other)) for other in others if other in by_user},
        {name.removeprefix(_BASELINE): mean(values(name)) for name in by_user if name.startswith(_BASELINE)},
    )


def _measure(
    own: MeanEstimate, differences: Mapping[str, MeanEstimate], baselines: Mapping[str, MeanEstimate]
) -> Measure | None:
    if own.mean is None:
        return None
    return Measure(
        value=own.mean,
        users=own.users,
        versus={
            other: MetricDifference(difference=found.mean, standard_error=found.standard_error)
            for other, found in differences.items()
            if found.mean is not None and found.standard_error is not None
        },
        baselines={name: found.mean for name, found in baselines.items() if found.mean is not None},
    )


def _baselines_of_rows(domain: Domain) -> dict[str, np.ndarray]:
    baselines = {POPULARITY: np.asarray(domain.test[features.ITEM_TRAIN_COUNT], np.float64)}
    if domain.llm_scorer is not None:
        baselines[LLM_SCORER] = filled(domain.llm_scorer["test"], like=domain.llm_scorer["valid"])
    return baselines


def _baselines_of_ranking(domain: Domain, ranking: Ranking) -> dict[str, np.ndarray]:
    baselines = {POPULARITY: ranking.popularity}
    if ranking.llm_scores is not None:
        assert domain.llm_scorer is not None
        baselines[LLM_SCORER] = filled(ranking.llm_scores, like=domain.llm_scorer["valid"])
    return baselines
