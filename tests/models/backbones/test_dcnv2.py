import numpy as np
import tensorflow as tf

from models.backbones.dcnv2 import DCNv2
from models.config import ModelConfig
from models.embeddings import EmbeddedFeatures


def test_dcnv2_is_the_papers_formula_computed_with_plain_loops():
    source = np.random.default_rng(0)
    fields = source.normal(size=(3, 2, 2)).astype(np.float32)
    backbone = DCNv2(ModelConfig(embedding_dim=2, cross_layers=2, mlp=(3, 2), dropout=0.5))
    embedded = EmbeddedFeatures(fields=tf.constant(fields), candidate=tf.constant(fields))
    backbone(embedded)
    for variable in backbone.variables:
        variable.assign(source.normal(size=variable.shape))
    weights = [v.numpy().astype(np.float64) for v in backbone.variables]
    cross, deep, output = weights[:4], weights[4:8], weights[8:]

    expected = []
    for row in fields:
        x0 = row.ravel().astype(np.float64)
        x = x0.copy()
        for kernel, bias in zip(cross[::2], cross[1::2], strict=True):
            wx = [sum(kernel[j, i] * x[j] for j in range(4)) + bias[i] for i in range(4)]
            x = np.array([x0[i] * wx[i] + x[i] for i in range(4)])
        hidden = x0
        for kernel, bias in zip(deep[::2], deep[1::2], strict=True):
            hidden = np.array([max(0.0, hidden @ kernel[:, i] + bias[i]) for i in range(kernel.shape[1])])
        joined = [*x, *hidden]
        expected.append(sum(w * v for w, v in zip(output[0][:, 0], joined, strict=True)) + output[1][0])

    np.testing.assert_allclose(backbone(embedded), expected, rtol=1e-4)
