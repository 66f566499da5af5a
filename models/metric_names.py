"""The names of the metrics that a model is evaluated by; models.metrics computes them."""

from typing import Literal, get_args

MetricName = Literal["auc", "per_user_auc", "ndcg_at_10", "hit_rate_at_10", "log_loss", "calibration_error"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)

MeanMetric = Literal["per_user_auc", "ndcg_at_10", "hit_rate_at_10", "log_loss", "calibration_error"]
"""Those that are means over users or rows."""

RankingMetric = Literal["auc", "per_user_auc", "ndcg_at_10", "hit_rate_at_10"]
RANKING_METRICS: tuple[RankingMetric, ...] = get_args(RankingMetric)
"""Those that look at the order alone, so that any score has them."""

LESS_IS_BETTER: tuple[MetricName, ...] = ("log_loss", "calibration_error")
