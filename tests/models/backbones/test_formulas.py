"""Each backbone against plain loops over its paper's formula, with the layer's own weights."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models.backbones import BACKBONES
from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import EmbeddedFeatures

CONFIG = ModelConfig(
    embedding_dim=2,
    mlp=(3, 2),
    dropout=0.5,
    cross_layers=2,
    cin_widths=(4, 3, 2),
    attention_layers=2,
    attention_heads=2,
    attention_head_dim=3,
    activation_unit=(4, 3),
)
Weights = Iterator[np.ndarray]


def embedded_rows() -> EmbeddedFeatures:
    """Four rows with a user; histories of three positions: full, partly padded, with a gap and empty."""
    source = np.random.default_rng(0)
    fields = source.normal(size=(4, 7, 2)).astype(np.float32)
    mask = [[True, True, True], [True, False, False], [True, False, True], [False, False, False]]
    return EmbeddedFeatures(
        fields=tf.constant(fields),
        candidate=tf.constant(fields[:, :3]),
        history=tf.constant(source.normal(size=(4, 3, 3, 2)).astype(np.float32)),
        history_mask=tf.constant(mask),
        first_order=tf.constant(source.normal(size=4).astype(np.float32)),
    )


def affine(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.array([sum(x[j] * kernel[j, i] for j in range(len(x))) + bias[i] for i in range(len(bias))])


def relu(x: np.ndarray) -> np.ndarray:
    return np.array([max(0.0, v) for v in x])


def prelu(x: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    return np.array([v if v > 0 else slope * v for v, slope in zip(x, slopes.ravel(), strict=True)])


def hidden(x: np.ndarray, w: Weights) -> np.ndarray:
    for _ in CONFIG.mlp:
        x = relu(affine(x, next(w), next(w)))
    return x


def deepfm(row: SimpleNamespace, w: Weights) -> float:
    total = row.first_order
    for i in range(7):
        for j in range(i + 1, 7):
            total += sum(row.fields[i, d] * row.fields[j, d] for d in range(2))
    return total + affine(hidden(row.fields.ravel(), w), next(w), next(w))[0]


def xdeepfm(row: SimpleNamespace, w: Weights) -> float:
    previous, pooled = row.fields, []
    for width in row.config.cin_widths:
        kernel = next(w).reshape(len(previous), 7, width)
        x = np.zeros((width, 2))
        for h in range(width):
            for i in range(len(previous)):
                for j in range(7):
                    for d in range(2):
                        x[h, d] += kernel[i, j, h] * previous[i, d] * row.fields[j, d]
        pooled += [x[h, 0] + x[h, 1] for h in range(width)]
        previous = x
    deep = hidden(row.fields.ravel(), w)
    return row.first_order + affine(np.array([*pooled, *deep]), next(w), next(w))[0]


def autoint(row: SimpleNamespace, w: Weights) -> float:
    e = row.fields
    for _ in range(2):
        query, key, value, residual = (next(w) for _ in range(4))
        made = []
        for m in range(7):
            heads = []
            for head in (slice(0, 3), slice(3, 6)):
                scores = [np.exp((e[m] @ query[:, head]) @ (e[k] @ key[:, head])) for k in range(7)]
                heads += list(sum(s / sum(scores) * (e[k] @ value[:, head]) for k, s in enumerate(scores)))
            made.append(relu(np.array(heads) + e[m] @ residual))
        e = np.array(made)
    return affine(e.ravel(), next(w), next(w))[0]


def dcn(row: SimpleNamespace, w: Weights) -> float:
    x0 = row.fields.ravel()
    x = x0
    for _ in range(2):
        weight, bias = next(w), next(w)
        product = sum(x[j] * weight[j, 0] for j in range(14))
        x = np.array([x0[i] * product + bias[i] + x[i] for i in range(14)])
    return affine(np.array([*x, *hidden(x0, w)]), next(w), next(w))[0]


def dcnv2(row: SimpleNamespace, w: Weights) -> float:
    x0 = row.fields.ravel()
    x = x0
    for _ in range(2):
        product = affine(x, next(w), next(w))
        x = np.array([x0[i] * product[i] + x[i] for i in range(14)])
    return affine(np.array([*x, *hidden(x0, w)]), next(w), next(w))[0]


def din(row: SimpleNamespace, w: Weights) -> float:
    from_position, bias, from_candidate, slopes, kernel_2, bias_2, slopes_2, kernel_3, bias_3 = (
        next(w) for _ in range(9)
    )
    kernel = np.concatenate([from_position, from_candidate])
    v = row.candidate.ravel()
    interest = np.zeros(6)
    for position, is_there in zip(row.history, row.history_mask, strict=True):
        e = position.ravel()
        x = np.array([*e, *(e[i] * v[i] for i in range(6)), *v])
        x = prelu(affine(x, kernel, bias), slopes)
        x = prelu(affine(x, kernel_2, bias_2), slopes_2)
        if is_there:
            interest += affine(x, kernel_3, bias_3)[0] * e
    x = np.array([*v, *interest, *row.fields[6]])
    for _ in CONFIG.mlp:
        x = prelu(affine(x, next(w), next(w)), next(w))
    return affine(x, next(w), next(w))[0]


FORMULAS = {"deepfm": deepfm, "xdeepfm": xdeepfm, "autoint": autoint, "dcn": dcn, "dcnv2": dcnv2, "din": din}


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, {}) for name in FORMULAS]
    + [("xdeepfm", {"cin_widths": widths}) for widths in ((3,), (3, 2), (2, 4, 3, 2))],
)
def test_it_is_the_papers_formula_computed_with_plain_loops(name, changes):
    config = CONFIG.model_copy(update=changes)
    embedded = embedded_rows()
    backbone = BACKBONES[name](config)
    backbone(embedded)
    source = np.random.default_rng(1)
    for variable in backbone.variables:
        variable.assign(source.normal(scale=0.6, size=variable.shape))

    expected = []
    for number in range(4):
        row = {
            key: value[number].numpy().astype(np.float64)
            for key, value in embedded._asdict().items()
            if value is not None
        }
        weights = iter([v.numpy().astype(np.float64) for v in backbone.variables])
        expected.append(FORMULAS[name](SimpleNamespace(**row, config=config), weights))
        assert next(weights, None) is None

    np.testing.assert_allclose(backbone(embedded), expected, rtol=1e-4)
    assert np.ptp(expected) > 0.1
