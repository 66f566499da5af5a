"""Calibration of LLM scores on calibration pairs."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from sllmr.models import features
from sllmr.models.errors import UserError
from sllmr.models.features import OTHER, PREFERRED
from sllmr.models.reliability import labeled


def with_soft_labels(pairs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The pairs with SOFT_LABEL, float32 [pairs] per item: the probability sigmoid(a y + b), y the item's LLM score.

    a and b are fitted by maximum likelihood on the calibration pairs: the target item is 1, the other item 0.

    Raises:
        UserError: no pair is a calibration pair.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    labels = np.asarray(pairs[features.CALIBRATION_LABEL])
    names = [prefix + features.LLM_SCORE for prefix in (PREFERRED, OTHER)]
    preferred, other = (np.asarray(pairs[name]) for name in names)
    calibration_pairs = labeled(pairs)
    if not calibration_pairs.any():
        raise UserError(
            "distillation needs calibration pairs to turn scores into probabilities, got none; raise "
            "llm.candidates.calibration_fraction"
        )
    scores = np.concatenate([preferred[calibration_pairs], other[calibration_pairs]])
    chosen = np.concatenate([labels[calibration_pairs], 1 - labels[calibration_pairs]])
    fit = LogisticRegression(C=np.inf).fit(scores[:, np.newaxis], chosen)
    soft = {}
    for prefix, name in zip((PREFERRED, OTHER), names, strict=True):
        probability = fit.predict_proba(np.asarray(pairs[name])[:, np.newaxis])[:, 1]
        soft[prefix + features.SOFT_LABEL] = tf.constant(probability, tf.float32)
    return {**pairs, **soft}
