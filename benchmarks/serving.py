"""What a request costs on one core, for each backbone: `rank` beside other ways to serve the same model.

    uv run --frozen --group bench python -m benchmarks.serving

A model with random weights, a run's default widths, item vectors, text match and a catalog of its own is exported and
served through the SavedModel's Session, as TF Serving does, with one thread. Arms take turns, A B C A B C:

    rank        the signature: item ids, attributes looked up inside the model, the user's part computed once
    raw         the signature: one row for each candidate, with its attributes and the user's history
    keras       the rows of raw for the same network behind Keras's StringLookup layers, saved by Keras
    dense       the network behind the embeddings alone, fed with embedded rows, by TensorFlow
    onnx_dense  the same by ONNX Runtime

A line of the results holds, for a backbone and a number of candidates, the median of the CPU milliseconds and the wall
percentiles of one request by arm, beside the size on disk, the seconds and memory of loading the SavedModel, and the
machine's load: on a busy machine two processes share a core, and CPU times are longer, too.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measurement import Results, versions

BACKBONES = ("dcnv2", "deepfm", "dcn", "xdeepfm", "autoint", "din")
CANDIDATES = (100, 1_000, 10_000)
ARMS = ("rank", "raw", "keras", "dense", "onnx_dense")
RESULTS = pathlib.Path(__file__).parent / "results" / "serving.jsonl"
_VECTOR_DIMENSIONS = 384
"""The width of the bundled embedding model's vectors."""
_ROWS_IN_ALL, _FEWEST_REQUESTS = 400_000, 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES)
    parser.add_argument("--candidates", nargs="+", type=int, default=CANDIDATES)
    parser.add_argument("--items", type=int, default=20_000, help="of the catalog")
    parser.add_argument(
        "--requests", type=int, default=200, help="of each arm; fewer, down to 20, where they are large"
    )
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, help="JSON lines")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.cell:
        for line in measure(json.loads(arguments.cell)):
            print(json.dumps(line), flush=True)
        return
    packages = ["tensorflow", "tf-keras", *(["onnxruntime", "tf2onnx"] if "onnx_dense" in arguments.arms else [])]
    results = Results(arguments.output)
    for backbone in arguments.backbones:
        cells = [
            {
                "backbone": backbone,
                "candidates": number,
                "items": arguments.items,
                "requests": max(_FEWEST_REQUESTS, min(arguments.requests, _ROWS_IN_ALL // number)),
                "arms": list(arguments.arms),
                "versions": versions(*packages),
            }
            for number in arguments.candidates
        ]
        missing = [cell for cell in cells if not results.holds(cell)]
        if not missing:
            continue
        # A process for each backbone, so that memory is its own.
        own = [sys.executable, "-m", "benchmarks.serving", "--cell", json.dumps(missing)]
        done = subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True)
        for cell, measured in zip(missing, done.stdout.splitlines(), strict=True):
            results.append(cell, json.loads(measured))


def measure(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measures cells that differ only in candidates and requests; returns the figures of each."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    items, names = cells[0]["items"], cells[0]["arms"]
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        network = Network(cells[0]["backbone"], items)
        network.export(folder / "ours")
        if "keras" in names:
            network.export_keras(folder / "keras")
        if "onnx_dense" in names:
            network.export_onnx(folder / "dense.onnx")
        disk_mb = sum(p.stat().st_size for p in (folder / "ours").rglob("*") if p.is_file()) / 2**20
        before, start = _rss_mb(), time.monotonic()
        run = _session(folder / "ours", ("rank", "raw"))
        load = {"load_s": time.monotonic() - start, "load_mb": _rss_mb() - before, "disk_mb": disk_mb}
        run |= _session(folder / "keras", ("serving_default",)) if "keras" in names else {}
        source = np.random.default_rng(1)
        lines = []
        for cell in cells:
            arms = {
                name: call for name, call in _arms(network, run, folder, source, cell["candidates"]) if name in names
            }
            scores = {arm: call() for arm, call in arms.items()}
            times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
            for _ in range(cell["requests"]):
                for arm, call in arms.items():
                    cpu, wall = time.process_time(), time.perf_counter()
                    call()
                    times[arm].append((time.process_time() - cpu, time.perf_counter() - wall))
            measured = {}
            for arm, values in times.items():
                cpu_ms, wall_ms = (np.array(part) * 1e3 for part in zip(*values, strict=True))
                measured[arm] = {
                    "cpu_ms": round(float(np.median(cpu_ms)), 3),
                    "p50_ms": round(float(np.quantile(wall_ms, 0.5)), 3),
                    "p99_ms": round(float(np.quantile(wall_ms, 0.99)), 3),
                    "largest_difference_from_rank": float(np.abs(scores[arm] - scores["rank"]).max()),
                }
            busy = {"load_average": round(os.getloadavg()[0], 2)}
            lines.append({"by_arm": measured, **busy, **{name: round(value, 2) for name, value in load.items()}})
        return lines


def _item(number: int) -> dict[str, Any]:
    categories = [b"category%d" % (number % 300), b"department%d" % (number % 20), b"", b""]
    return {"item_id": b"item%d" % number, "item_categories": categories, "item_brand": b"brand%d" % (number % 900)}


class Network:
    """A ranking model with random weights, and the files that it is served from."""

    def __init__(self, backbone: str, items: int):
        import numpy as np
        import tensorflow as tf

        from sllmr.models import features
        from sllmr.models.config import GateConfig, LossConfig, ModelConfig
        from sllmr.models.features import FeatureSizes, VocabularySizes
        from sllmr.models.item_vectors import unit
        from sllmr.models.ranking import RankingModel, input_names
        from sllmr.pipeline.defaults import OF_MODEL

        self.items = items
        self.sizes = FeatureSizes()
        self.vocabularies = {
            features.ITEMS: [b"item%d" % n for n in range(items)],
            features.CATEGORIES: [b"category%d" % n for n in range(300)] + [b"department%d" % n for n in range(20)],
            features.BRANDS: [b"brand%d" % n for n in range(900)],
        }
        vectors = unit(np.random.default_rng(7).normal(size=(items + 2, _VECTOR_DIMENSIONS)).astype(np.float32))
        vectors[[0, -1]] = 0.0  # padding, and the unknown item
        self.model = RankingModel(
            VocabularySizes.model_validate({name: len(values) for name, values in self.vocabularies.items()}),
            ModelConfig.model_validate(
                {"backbone": backbone, "item_vectors": True, "text_match": True, **OF_MODEL["model"]}
            ),
            GateConfig(),
            LossConfig(llm_weight=0),
            vectors,
        )
        shapes = {f.name: f.shape for f in features.transformed_features(self.sizes, use_user_id=False)}
        self.model({name: tf.ones([1, *shapes[name]], tf.int32) for name in input_names(use_user_id=False)})
        parts = self.model.embedding, self.model.backbone
        for number, variable in enumerate((*parts[0].trainable_variables, *parts[1].variables)):
            variable.assign_add(tf.random.stateless_normal(variable.shape, seed=(7, number), stddev=0.03))

    def export(self, directory: pathlib.Path) -> None:
        from sllmr.models import signatures

        values = [_item(number) for number in range(self.items)]
        catalog = {name: [item[name] for item in values] for name in values[0]}
        signatures.export(self.model, self.vocabularies, self.sizes, str(directory), use_user_id=False, catalog=catalog)

    def export_keras(self, directory: pathlib.Path) -> None:
        """Saves the same network behind StringLookup layers, by Keras."""
        import tensorflow as tf
        import tf_keras as keras

        from sllmr.models import features

        served = features.served_features(features.row_features(self.sizes), use_user_id=False)
        columns = {f.name: keras.Input(f.shape, dtype=tf.string, name=f.name) for f in served}
        indices = {}
        for vocabulary, group in features.INDEXED.items():
            if vocabulary not in self.vocabularies:
                continue
            known = len(self.vocabularies[vocabulary])
            lookup = keras.layers.StringLookup(vocabulary=self.vocabularies[vocabulary], mask_token="")
            for name, index in group.items():
                # Keras puts the unknown value in front of the known ones, this project behind them.
                found = lookup(columns[name])
                unknown = tf.constant(known + 1, tf.int64)
                indices[index] = tf.maximum(tf.where(found == 1, unknown, found - 1), tf.constant(0, tf.int64))
        logits = self.model.backbone(self.model.embedding(indices))
        scores = keras.layers.Activation("sigmoid", name="scores")(logits)
        keras.Model(columns, scores).save(directory, save_format="tf")

    def dense(self) -> Any:
        """The backbone as a function of what it reads of the embedded rows."""
        import tensorflow as tf

        embedded = self.embedded(
            {name: values[:1] for name, values in _rows(*_request(_source(), self.items, 1)).items()}
        )
        number = embedded.candidate.shape[1]
        # Eagerly this tensor has a value. If the function below captured it, the value would be unknown in tracing.
        of_history = None if embedded.history_fields is None else int(embedded.history_fields)
        given = _fed(embedded)
        signature = [
            {name: tf.TensorSpec([None, *part.shape[1:]], part.dtype, name=name) for name, part in given.items()}
        ]

        @tf.function(input_signature=signature)
        def dense(parts: dict[str, tf.Tensor]) -> tf.Tensor:
            row = type(embedded)(candidate=parts["fields"][:, :number], history_fields=of_history, **parts)
            return tf.sigmoid(self.model.backbone(row))

        return dense

    def embedded(self, rows: Mapping[str, Any]) -> Any:
        """The embedded rows of `raw`'s columns."""
        import tensorflow as tf

        from sllmr.models.serving.index_lookup import IndexLookup

        if not hasattr(self, "_lookup"):
            self._scratch = tempfile.TemporaryDirectory()
            self._lookup = IndexLookup(self.vocabularies, self._scratch.name)
        return self.model.embedding(self._lookup({name: tf.constant(values) for name, values in rows.items()}))

    def export_onnx(self, file: pathlib.Path) -> None:
        import tf2onnx

        dense = self.dense()
        tf2onnx.convert.from_function(dense, dense.input_signature, opset=18, output_path=str(file))


def _fed(embedded: Any) -> dict[str, Any]:
    """The inputs of the dense part: the tensors of an EmbeddedFeatures that are not part of another one."""
    not_fed = ("candidate", "history_fields")
    return {name: part for name, part in embedded._asdict().items() if part is not None and name not in not_fed}


def _session(directory: pathlib.Path, signatures: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """By signature: its inputs by name -> its scores."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        definitions = tf.compat.v1.saved_model.load(session, ["serve"], str(directory)).signature_def

    def runner(name: str) -> Callable[..., Any]:
        columns = sorted(definitions[name].inputs)
        feed = [definitions[name].inputs[column].name for column in columns]
        options = config_pb2.CallableOptions(feed=feed, fetch=[definitions[name].outputs["scores"].name])
        call = session._make_callable_from_options(options)
        return lambda values: call(*(values[column] for column in columns))[0].ravel()

    return {name: runner(name) for name in signatures}


def _source() -> Any:
    import numpy as np

    return np.random.default_rng(1)


def _request(source: Any, items: int, number: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A user's history, and candidates."""
    return [_item(n) for n in source.integers(0, items, 20)], [_item(n) for n in source.integers(0, items, number)]


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    import numpy as np

    return np.array([row[name] for row in rows], object)


def _rows(history: Sequence[Mapping[str, Any]], candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of `raw`."""
    import numpy as np

    raw = {name: _column(candidates, name) for name in ("item_id", "item_categories", "item_brand")}
    for name, of_item in (
        ("history_item_ids", "item_id"),
        ("history_categories", "item_categories"),
        ("history_brands", "item_brand"),
    ):
        raw[name] = np.repeat(_column(history, of_item)[np.newaxis], len(candidates), axis=0)
    return raw


def _arms(
    network: Network, run: Mapping[str, Callable[..., Any]], folder: pathlib.Path, source: Any, number: int
) -> list[tuple[str, Callable[[], Any]]]:
    """The arms as calls, with the same user and candidates in each; encoding the request is not part of a call."""
    import numpy as np

    history, candidates = _request(source, network.items, number)
    rank = {
        "history_item_ids": _column(history, "item_id")[np.newaxis],
        "candidate_item_ids": _column(candidates, "item_id")[np.newaxis],
    }
    raw = _rows(history, candidates)
    arms: list[tuple[str, Callable[[], Any]]] = [("rank", lambda: run["rank"](rank)), ("raw", lambda: run["raw"](raw))]
    if "serving_default" in run:
        arms.append(("keras", lambda: run["serving_default"](raw)))
    dense, embedded = network.dense(), network.embedded(raw)
    parts = _fed(embedded)
    arms.append(("dense", lambda: dense(parts).numpy()))
    if (folder / "dense.onnx").exists():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "dense.onnx", options, providers=["CPUExecutionProvider"])
        arrays = {name: part.numpy() for name, part in parts.items()}
        fed = {given.name: arrays[given.name.removeprefix("parts_").split(":")[0]] for given in session.get_inputs()}
        arms.append(("onnx_dense", lambda: session.run(None, fed)[0].ravel()))
    return arms


def _rss_mb() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
