"""Texts -> unit vectors by all-MiniLM-L6-v2: a BERT of 6 layers, the mean over a text's tokens, length 1.

TensorFlow and not NumPy: twice as fast on the same cores, and a run has loaded it anyway.

Source: Wang et al. 2020, MiniLM, arXiv 2002.10957; Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084.
"""

import functools
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from sllmr.components.item_embedder.weights import TOKENIZER, WEIGHTS

DIMENSIONS = 384
_LAYERS = 6
_HEADS = 12
_EPSILON = 1e-12
_TOKENS_AT_ONCE = 2048
"""Tokens of one forward pass: enough to keep the cores busy, few enough to need little memory."""


class TextEncoder:
    """The model in memory, 90 MB."""

    def __init__(self, folder: str):
        """
        Args:
            folder: holds WEIGHTS and TOKENIZER, see weights.fetch_embedding_model.
        """
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(os.path.join(folder, TOKENIZER))
        self._tokenizer.no_padding()  # the file pads and cuts to 128 tokens; cutting stays on
        # The tensors stay outside the graph: as constants in it, the graph optimizer would copy them several times.
        weights = {name: tf.constant(array) for name, array in read_safetensors(os.path.join(folder, WEIGHTS)).items()}
        self._forward = tf.function(
            functools.partial(_forward, weights),
            input_signature=[tf.TensorSpec([None, None], tf.int32)],
        )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, 384] of length 1, in order; a text's first 128 tokens count.

        Texts of the same number of tokens go through the model together, so nothing is padded.
        """
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        for rows in _of_one_length([len(tokens) for tokens in ids]):
            vectors[rows] = self._forward(np.array([ids[row] for row in rows], np.int32)).numpy()
        return vectors


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """The float32 tensors of a file in the safetensors format, by name.

    The format: 8 bytes with the header's length, a JSON header of dtype, shape and offsets, the bytes.
    """
    with open(path, "rb") as file:
        content = file.read()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    return {
        name: np.frombuffer(content[8 + size :][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry.get("dtype") == "F32"
    }


def _of_one_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields batches of rows of equal length, each with at most _TOKENS_AT_ONCE tokens."""
    rows_of: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows_of.setdefault(length, []).append(row)
    for length, rows in sorted(rows_of.items()):
        step = max(1, _TOKENS_AT_ONCE // length)
        for first in range(0, len(rows), step):
            yield rows[first : first + step]


def _forward(weights: Mapping[str, tf.Tensor], ids: tf.Tensor) -> tf.Tensor:
    """Token ids, int32 [texts, tokens], all texts of the same length -> float32 [texts, 384]."""
    texts, tokens = tf.unstack(tf.shape(ids))

    def dense(x: tf.Tensor, name: str) -> tf.Tensor:
        return tf.nn.bias_add(tf.matmul(x, weights[f"{name}.weight"], transpose_b=True), weights[f"{name}.bias"])

    def layer_norm(x: tf.Tensor, name: str) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + _EPSILON) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def by_head(x: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(x, [texts, tokens, _HEADS, DIMENSIONS // _HEADS]), [0, 2, 1, 3])

    def attention(x: tf.Tensor, name: str) -> tf.Tensor:
        query, key, value = (by_head(dense(x, f"{name}.self.{part}")) for part in ("query", "key", "value"))
        shares = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) * (DIMENSIONS // _HEADS) ** -0.5)
        joined = tf.reshape(tf.transpose(tf.matmul(shares, value), [0, 2, 1, 3]), [-1, DIMENSIONS])
        return layer_norm(dense(joined, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    x = tf.gather(weights["embeddings.word_embeddings.weight"], ids)
    x += tf.gather(weights["embeddings.position_embeddings.weight"], tf.range(tokens))
    x += weights["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(tf.reshape(x, [-1, DIMENSIONS]), "embeddings.LayerNorm")
    for number in range(_LAYERS):
        layer = f"encoder.layer.{number}"
        x = attention(x, f"{layer}.attention")
        inner = tf.nn.gelu(dense(x, f"{layer}.intermediate.dense"), approximate=False)
        x = layer_norm(dense(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    return tf.math.l2_normalize(tf.reduce_mean(tf.reshape(x, [texts, tokens, DIMENSIONS]), axis=1), axis=-1)
