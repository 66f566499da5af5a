"""How fast the ranking models train: beside plain Keras and two libraries, with and without pairs, by number of rows.

    python -m benchmarks.training [--only speed fields input memory linear] [--backbones deepfm ...]
    python -m benchmarks.training --only linear --linear-rows 10000000

Rows are made up from a seed (training_market.py). One cell is one part of one backbone; results/training.jsonl gets a
line for each, and cells that it already has are skipped. The libraries (training_peers.py) run in an environment of
their own, which the script makes under the work folder. A pass is one epoch.

speed, one cell for each backbone. All arms are built, then train pass by pass in turn, A B C A B C; the first pass
warms up, the others are measured. Rows, features, widths and batch are the same; no dropout, no penalty. For each arm:

    step_ms             time of a pass over its steps, with the arm's own input pipeline, median over the passes
    rows_per_s          labeled rows over that time
    relative_speed      sllmr's time over the arm's of the same round, median over the passes: the arm is faster above 1
    auc_by_pass         on the same held-out rows, after each pass

    and gated_over_extra_rows, the time of a step with pairs over that of a step with as many more rows instead.

fields, one cell for each backbone: as speed, with EXTRA_FIELDS declared features of the interaction; only sllmr and the
libraries.

input, one cell for each source of rows: iterating the batches alone (`iterate_s`), training from them (`train_s`), and
training as many steps on a few batches kept in memory (`train_kept_batches_s`); `waiting_fraction` is the fraction of
`train_s` that the last one saves. `top_ops` are the longest kinds of ops by the profiler, as fractions of the time of
all ops.

memory: resident memory after each pass of models.training.recipe.train with pairs and validation. Each pass starts
threads that read ahead, and glibc may give each an arena of its own to allocate from: these arenas, up to eight for
each core, are what grows. MALLOC_ARENA_MAX=1 in the environment limits them to one; the setting is part of the cell.

linear, one cell for each number of rows: seconds of a pass over TFRecords, as the Trainer reads them, with pairs.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import sllmr.models  # noqa: F401  its import sets TF_USE_LEGACY_KERAS

import numpy as np  # isort: skip
import tensorflow as tf
import tf_keras as keras
from sklearn.metrics import roc_auc_score

from benchmarks import training_market as market
from benchmarks.measurement import Results, tree_sample, versions
from sllmr.models import features, inputs
from sllmr.models.backbones import BACKBONES
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.embeddings import EmbeddedFeatures
from sllmr.models.optimizers import LazyAdam
from sllmr.models.ranking import RankingModel, scorer
from sllmr.models.training.loop import predict
from sllmr.models.training.recipe import train

PEERS = ("torch==2.13.0", "deepctr-torch==0.3.0", "fuxictr==2.3.10")
LIBRARIES = {"deepctr": "deepctr-torch", "fuxictr": "fuxictr"}
PARTS = ("speed", "fields", "input", "memory", "linear")
BATCH = 512
PAIRS_A_BATCH = BATCH // 4
EXTRA_ROWS = 2 * PAIRS_A_BATCH  # each pair is two forward rows
EXTRA_FIELDS = 10
EMBEDDING_DIM = 32
PAIRS_IN_MEMORY = 20_000
CHEAPEST = "dcn"  # the backbone whose steps leave the input pipeline the least time
TOP_OPS = 12
FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results" / "training.jsonl"

_TRAIN, _HELD_OUT, _PAIRS = 1, 2, 3  # seeds
_ROWS_AT_ONCE = 4096
_KEPT_BATCHES = 16


class Contender(Protocol):
    """One arm of the comparison."""

    def one_pass(self) -> float:
        """Trains one pass over the rows; returns its seconds."""

    def auc(self) -> float:
        """On the held-out rows."""


class Sllmr:
    """This project's model, optimizer and input pipeline, as models.training.recipe.train puts them together."""

    def __init__(
        self,
        config: ModelConfig,
        rows: Mapping[str, tf.Tensor] | tf.data.Dataset,
        *,
        pairs: Mapping[str, tf.Tensor] | None = None,
        batch: int = BATCH,
        fields: int = 0,
        held_out: Mapping[str, tf.Tensor] = MappingProxyType({}),
    ):
        keras.utils.set_random_seed(0)
        loss = LossConfig(llm_weight=0.0 if pairs is None else 0.1)
        self.model = RankingModel(market.make_market().vocabulary(fields), config, GateConfig(), loss)
        gate_optimizer = None if pairs is None else keras.optimizers.Adam(GateConfig().learning_rate)
        self.model.compile(LazyAdam(TrainConfig().learning_rate), gate_optimizer)
        if not isinstance(rows, tf.data.Dataset):
            rows = inputs.row_batches(rows, batch_size=batch, seed=0)
        endless = None if pairs is None else inputs.pair_batches(pairs, pairs_per_batch=PAIRS_A_BATCH, seed=0)
        self.batches = inputs.training_batches(rows, endless)
        self._held_out = held_out
        self._score = scorer(self.model)

    def one_pass(self, batches: tf.data.Dataset | None = None) -> float:
        start = time.perf_counter()
        self.model.fit(self.batches if batches is None else batches, epochs=1, verbose=0)
        return time.perf_counter() - start

    def auc(self) -> float:
        batches = inputs.row_batches(self._held_out, batch_size=_ROWS_AT_ONCE)
        labels, logits = predict(self._score, batches)
        return float(roc_auc_score(labels, logits))


class PlainKeras(keras.Model):
    """The same backbone, with the rest in plain Keras: Embedding layers and masked means."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        kind = BACKBONES[config.backbone]
        sizes = market.make_market().vocabulary().model_dump(include={"items", "categories", "brands"})

        def tables(dim: int) -> dict[str, keras.layers.Embedding]:
            def start() -> keras.initializers.Initializer:
                return keras.initializers.RandomNormal(stddev=0.01)

            return {n: keras.layers.Embedding(size + 2, dim, start()) for n, size in sizes.items()}

        self._tables = tables(config.embedding_dim)
        self._weights_by_value = tables(1) if kind.uses_first_order else None
        self._uses_history = kind.uses_history
        self.backbone = kind(config)

    def call(self, columns: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        by_table = {table: tuple(features.INDEXED[table].values()) for table in self._tables}

        def means(tables: Mapping[str, keras.layers.Embedding], side: int) -> list[tf.Tensor]:
            ids = {t: columns[by_table[t][side]] for t in tables}
            return [_masked_mean(tables[t], tf.reshape(i, [-1, int(np.prod(i.shape[1:]))])) for t, i in ids.items()]

        candidate, history = means(self._tables, 0), means(self._tables, 1)
        positions, mask, first_order = None, None, None
        if self._uses_history:
            ids = {t: columns[by_table[t][1]] for t in self._tables}
            by_position = [
                _masked_mean(self._tables[t], i if i.shape.rank == 3 else i[..., tf.newaxis]) for t, i in ids.items()
            ]
            positions, mask = tf.stack(by_position, axis=2), tf.not_equal(columns[features.HISTORY_ITEM_INDICES], 0)
        if self._weights_by_value is not None:
            first_order = tf.add_n([t[:, 0] for side in (0, 1) for t in means(self._weights_by_value, side)])
        fields = tf.stack(candidate + history, axis=1)
        embedded = EmbeddedFeatures(fields, tf.stack(candidate, axis=1), positions, mask, first_order)
        return self.backbone(embedded, training=training)


def _masked_mean(table: keras.layers.Embedding, ids: tf.Tensor) -> tf.Tensor:
    """[..., values] -> [..., dim]."""
    mask = tf.cast(tf.not_equal(ids, features.PADDING), tf.float32)[..., tf.newaxis]
    return tf.math.divide_no_nan(tf.reduce_sum(table(ids) * mask, axis=-2), tf.reduce_sum(mask, axis=-2))


class Keras:
    """PlainKeras with Keras's own Adam, `fit` over arrays."""

    def __init__(self, config: ModelConfig, rows: market.Columns, held_out: market.Columns):
        keras.utils.set_random_seed(0)
        names = [f.name for f in features.transformed_features(market.SIZES, use_user_id=False) if f.served]
        self._rows = {name: rows[name] for name in names}, rows[features.LABEL]
        self._held_out = {name: held_out[name] for name in names}, held_out[features.LABEL]
        self._model = PlainKeras(config)
        self._model.compile(keras.optimizers.Adam(0.001), keras.losses.BinaryCrossentropy(from_logits=True))

    def one_pass(self) -> float:
        start = time.perf_counter()
        self._model.fit(*self._rows, batch_size=BATCH, epochs=1, verbose=0)
        return time.perf_counter() - start

    def auc(self) -> float:
        columns, labels = self._held_out
        return float(roc_auc_score(labels, self._model.predict(columns, batch_size=_ROWS_AT_ONCE, verbose=0)))


class Peer:
    """Another library, in a process of its own: training_peers.py."""

    def __init__(self, process: subprocess.Popen, log: pathlib.Path):
        self._process = process
        self._log = log

    def one_pass(self) -> float:
        return self._ask("epoch")

    def auc(self) -> float:
        return self._ask("auc")

    def _ask(self, what: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer ended; its log {self._log} ends with:\n{self._log.read_text()[-2000:]}")
        return float(answer)


@contextlib.contextmanager
def peer(
    library: str, config: ModelConfig, data: pathlib.Path, work: pathlib.Path, extra_fields: Sequence[str] = ()
) -> Iterator[Peer]:
    """Starts a library on the rows that `write_columns` wrote."""
    vocabulary = market.make_market().vocabulary()
    tables = {"item": vocabulary.items, "categories": vocabulary.categories, "brand": vocabulary.brands}
    tables |= dict.fromkeys(extra_fields, market.VALUES_OF_A_FIELD)
    length, categories = market.SIZES.history, market.SIZES.categories
    sizes = {
        **config.model_dump(include={"embedding_dim", "mlp", "cross_layers", "cin_widths", "activation_unit"}),
        **config.model_dump(include={"attention_layers", "attention_heads"}),
        "batch_size": BATCH,
        "extra_fields": list(extra_fields),
        "rows": {name: size + 2 for name, size in tables.items()},
        "lengths": {"categories": categories, "hist_item": length, "hist_categories": length * categories}
        | {"hist_brand": length},
    }
    command = [peers_python(work), str(FOLDER / "training_peers.py"), library, config.backbone]
    command += ["--train", str(data / "train.npz"), "--held-out", str(data / "held_out.npz")]
    log = work / f"training-{library}-{config.backbone}.log"
    with (
        open(log, "wb") as errors,
        subprocess.Popen(
            [*command, "--sizes", json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield Peer(process, log)
        assert process.stdin is not None
        process.stdin.close()


def peers_python(work: pathlib.Path) -> str:
    """The interpreter of the peers' environment; makes the environment if it is missing."""
    directory = work / "training-peers"
    python = directory / "bin" / "python"
    if not (directory / "complete").exists():
        print(f"installing {', '.join(PEERS)} into {directory}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        (directory / "complete").touch()
    return str(python)


def write_columns(directory: pathlib.Path, **splits: market.Columns) -> None:
    """Writes rows for the peers, one .npz for each split, with [rows] or [rows, values] by field."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        count = len(rows[features.LABEL])
        columns = {
            "item": rows[features.ITEM_INDEX],
            "categories": rows[features.ITEM_CATEGORY_INDICES],
            "brand": rows[features.ITEM_BRAND_INDEX],
            "hist_item": rows[features.HISTORY_ITEM_INDICES],
            "hist_categories": rows[features.HISTORY_CATEGORY_INDICES].reshape(count, -1),
            "hist_brand": rows[features.HISTORY_BRAND_INDICES],
            "hist_length": (rows[features.HISTORY_ITEM_INDICES] > 0).sum(axis=1).astype(np.int32),
            "label": rows[features.LABEL],
        }
        columns |= {name: values for name, values in rows.items() if name.startswith("field_")}
        np.savez(directory / f"{name}.npz", **columns)


def measure_speed(backbone: str, rows: int, held_out: int, passes: int, work: pathlib.Path) -> dict[str, Any]:
    """All arms of one backbone, pass by pass in turn."""
    config = plain_config(backbone)
    items = market.make_market()
    train, rest = market.make_rows(items, rows, _TRAIN), market.make_rows(items, held_out, _HELD_OUT)
    data = work / f"training-{rows}-{held_out}"
    write_columns(data, train=train, held_out=rest)
    pairs = market.make_pairs(items, PAIRS_IN_MEMORY, _PAIRS)
    tensors, held = as_tensors(train), as_tensors(rest)
    with contextlib.ExitStack() as stack:
        arms: dict[str, Contender] = {
            "sllmr": Sllmr(config, tensors, held_out=held),
            "sllmr_gated": Sllmr(config, tensors, pairs=pairs, held_out=held),
            "sllmr_extra_rows": Sllmr(config, tensors, batch=BATCH + EXTRA_ROWS, held_out=held),
            "keras": Keras(config, train, rest),
        }
        arms |= {library: stack.enter_context(peer(library, config, data, work)) for library in LIBRARIES}
        seconds, aucs = in_turn(arms, passes)
    result = compare(seconds, aucs, rows)
    result["gated_over_extra_rows"] = over_extra_rows(seconds, rows)
    return result


def measure_fields(backbone: str, rows: int, held_out: int, passes: int, work: pathlib.Path) -> dict[str, Any]:
    """This project and the libraries with EXTRA_FIELDS more fields, pass by pass in turn."""
    config = plain_config(backbone)
    items = market.make_market()
    train, rest = (
        market.make_rows(items, count, seed) | market.extra_fields(count, EXTRA_FIELDS, seed)
        for count, seed in ((rows, _TRAIN), (held_out, _HELD_OUT))
    )
    data = work / f"training-fields-{rows}-{held_out}"
    write_columns(data, train=train, held_out=rest)
    names = list(market.extra_fields(0, EXTRA_FIELDS, _TRAIN))
    with contextlib.ExitStack() as stack:
        arms: dict[str, Contender] = {
            "sllmr": Sllmr(config, as_tensors(train), fields=EXTRA_FIELDS, held_out=as_tensors(rest))
        }
        arms |= {library: stack.enter_context(peer(library, config, data, work, names)) for library in LIBRARIES}
        return compare(*in_turn(arms, passes), rows)


def in_turn(arms: Mapping[str, Contender], passes: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """One warm-up pass and `passes` measured ones, arms in turn; by arm, seconds of the measured, AUCs after each."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    aucs: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(1 + passes):
        for name, arm in arms.items():
            taken = arm.one_pass()
            if number:
                seconds[name].append(taken)
            aucs[name].append(round(arm.auc(), 4))
            print(f"pass {number}, {name}: {taken:.2f} s, AUC {aucs[name][-1]:.4f}", flush=True)
    return seconds, aucs


def compare(seconds: Mapping[str, list[float]], aucs: Mapping[str, list[float]], rows: int) -> dict[str, Any]:
    """The figures of each arm, from the seconds of its measured passes over `rows` rows."""
    steps = {name: _steps(name, rows) for name in seconds}
    arms = {
        name: {
            "step_ms": round(statistics.median(taken) / steps[name] * 1000, 3),
            "rows_per_s": round(rows / statistics.median(taken)),
            "relative_speed": round(_median_ratio(seconds["sllmr"], taken), 3),
            "auc_by_pass": aucs[name],
            "seconds": [round(value, 3) for value in taken],
        }
        for name, taken in seconds.items()
    }
    return {"arms": arms}


def over_extra_rows(seconds: Mapping[str, list[float]], rows: int) -> float:
    """The time of a step with pairs over that of a step without, but with as many more rows."""
    ratio = _median_ratio(seconds["sllmr_gated"], seconds["sllmr_extra_rows"])
    return round(ratio * _steps("sllmr_extra_rows", rows) / _steps("sllmr_gated", rows), 3)


def _steps(arm: str, rows: int) -> int:
    return -(-rows // (BATCH + EXTRA_ROWS if arm == "sllmr_extra_rows" else BATCH))


def _median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios by round: whatever slows the machine in a round slows both."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def measure_input(rows: int, passes: int, pattern: str | None) -> dict[str, Any]:
    """How long a pass waits for its rows, with the backbone of the cheapest steps."""
    if pattern is None:
        arm = Sllmr(default_config(CHEAPEST), as_tensors(market.make_rows(market.make_market(), rows, _TRAIN)))
    else:
        arm = Sllmr(default_config(CHEAPEST), from_records(pattern))
    kept = arm.batches.take(_KEPT_BATCHES).cache().repeat().take(-(-rows // BATCH))
    taken: dict[str, list[float]] = {"iterate_s": [], "train_s": [], "train_kept_batches_s": []}
    for number in range(1 + passes):
        start = time.perf_counter()
        for _ in arm.batches:
            pass
        once = (time.perf_counter() - start, arm.one_pass(), arm.one_pass(kept))
        if number:
            for values, value in zip(taken.values(), once, strict=True):
                values.append(value)
    with tempfile.TemporaryDirectory() as directory:
        with tf.profiler.experimental.Profile(directory):
            arm.one_pass(arm.batches.take(50))
        top = top_ops(pathlib.Path(directory))
    medians = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    waiting = 1 - _median_ratio(taken["train_kept_batches_s"], taken["train_s"])
    return {**medians, "waiting_fraction": round(waiting, 3), "top_ops": top}


def top_ops(directory: pathlib.Path) -> dict[str, float]:
    """The longest kinds of ops on the host, as fractions of the time of all, from a profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = directory.rglob("*.xplane.pb")
    total: collections.Counter[str] = collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(file.read_bytes()).planes:
        if plane.name == "/host:CPU":
            for line in plane.lines:
                for event in line.events:
                    # An op's event is called `name:Kind`; iterators and the runtime's own have `::` in their names.
                    name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                    if name and not name.endswith(":") and kind.isalnum():
                        total[kind] += event.duration_ps
    everything = sum(total.values())
    return {kind: round(time / everything, 3) for kind, time in total.most_common(TOP_OPS)}


def measure_memory(backbone: str, rows: int, held_out: int, passes: int) -> dict[str, Any]:
    """Trains by models.training.recipe.train with pairs; reads the memory at the validation after each pass."""
    items = market.make_market()

    class Validation:
        """Rows that note the process's memory as each pass over them begins."""

        batches = inputs.row_batches(as_tensors(market.make_rows(items, held_out, _HELD_OUT)), batch_size=_ROWS_AT_ONCE)
        rss_mb: list[float] = []  # noqa: RUF012

        def __iter__(self) -> Iterator[Mapping[str, tf.Tensor]]:
            self.rss_mb.append(round(tree_sample(os.getpid()).rss_mb, 1))
            print(f"after pass {len(self.rss_mb)}: {self.rss_mb[-1]} MB", flush=True)
            return iter(self.batches)

    config = TrainConfig(batch_size=BATCH, pairs_per_batch=PAIRS_A_BATCH, epochs=passes, patience=passes)
    train_rows = as_tensors(market.make_rows(items, rows, _TRAIN))
    valid = Validation()
    train(
        vocabulary=items.vocabulary(),
        model_config=default_config(backbone),
        gate_config=GateConfig(),
        loss_config=LossConfig(),
        train_config=config,
        rows=lambda: inputs.row_batches(train_rows, batch_size=BATCH, seed=0),
        valid=valid,
        pairs=market.make_pairs(items, PAIRS_IN_MEMORY, _PAIRS),
    )
    growth = np.polyfit(np.arange(len(valid.rss_mb) // 2), valid.rss_mb[-(len(valid.rss_mb) // 2) :], 1)[0]
    return {"rss_mb_by_pass": valid.rss_mb, "mb_a_pass_in_the_second_half": round(float(growth), 2)}


def measure_linear(backbone: str, rows: int, passes: int, pattern: str) -> dict[str, Any]:
    """Passes over TFRecords with pairs, after some steps to warm up."""
    pairs = market.make_pairs(market.make_market(), PAIRS_IN_MEMORY, _PAIRS)
    arm = Sllmr(default_config(backbone), from_records(pattern), pairs=pairs)
    arm.one_pass(arm.batches.take(20))
    before = tree_sample(os.getpid()).rss_mb
    seconds = []
    for _ in range(passes):
        seconds.append(arm.one_pass())
        print(f"{rows} rows: {seconds[-1]:.1f} s", flush=True)
    return {
        "seconds_a_pass": round(statistics.median(seconds), 2),
        "microseconds_a_row": round(statistics.median(seconds) / rows * 1e6, 3),
        "rss_mb_before": round(before),
        "rss_mb_after": round(tree_sample(os.getpid()).rss_mb),
    }


def plain_config(backbone: str) -> ModelConfig:
    """What every library supports: no dropout or penalty; attention as wide as an embedding, as in DeepCTR."""
    return default_config(backbone).model_copy(
        update={"dropout": 0.0, "embedding_l2": 0.0, "attention_heads": 2, "attention_head_dim": EMBEDDING_DIM // 2}
    )


def default_config(backbone: str) -> ModelConfig:
    """The project's defaults at the width of the comparison."""
    return ModelConfig.model_validate({"backbone": backbone, "embedding_dim": EMBEDDING_DIM, "mlp": (200, 80)})


def from_records(pattern: str) -> tf.data.Dataset:
    """Batches of the rows in TFRecords, as the Trainer reads them."""
    columns = features.transformed_features(market.SIZES, use_user_id=False)
    return inputs.read_rows([pattern], columns, batch_size=BATCH, shuffle_buffer=TrainConfig().shuffle_buffer, seed=0)


def as_tensors(columns: market.Columns) -> dict[str, tf.Tensor]:
    """The rows as inputs.load_rows returns them."""
    return {name: tf.constant(values) for name, values in columns.items()}


def in_own_process(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Measures in a process of its own, so that no part inherits the memory and threads of another."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=tuple(BACKBONES))
    parser.add_argument("--rows", type=int, default=76_800, help="of all but linear")
    parser.add_argument("--held-out-rows", type=int, default=30_000)
    parser.add_argument("--passes", type=int, default=5, help="measured, of speed, fields and input")
    parser.add_argument("--memory-passes", type=int, default=10)
    parser.add_argument("--linear-rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    results = Results(arguments.results)
    rows, held_out, passes = arguments.rows, arguments.held_out_rows, arguments.passes
    shape = {"rows": rows, "batch": BATCH, "embedding_dim": EMBEDDING_DIM, "code": code_hash()}
    own = versions("tensorflow", "tf-keras")

    def cell(part: str, settings: dict[str, Any], measure: Callable[..., dict[str, Any]], *values: Any) -> None:
        what = {"part": part, **shape, **settings}
        what["versions"] = own | ({"peers": PEERS} if part in ("speed", "fields") else {})
        if results.holds(what):
            print(f"{part}, {settings}: already in {arguments.results}")
        else:
            print(f"{part}, {settings}", flush=True)
            results.append(what, in_own_process(measure, *values))

    def records(count: int) -> str:
        return market.write_rows(work / f"training-rows-{count}", count, processes=os.cpu_count() or 1)

    of_libraries = {"speed": (measure_speed, {}), "fields": (measure_fields, {"extra_fields": EXTRA_FIELDS})}
    for part in of_libraries.keys() & set(arguments.only):
        measure, extra = of_libraries[part]
        peers_python(work)
        for backbone in arguments.backbones:
            settings = {"backbone": backbone, "held_out_rows": held_out, "passes": passes, **extra}
            cell(part, settings, measure, backbone, rows, held_out, passes, work)
    if "input" in arguments.only:
        settings = {"backbone": CHEAPEST, "passes": passes}
        cell("input", {**settings, "source": "memory"}, measure_input, rows, passes, None)
        count = max(rows // market.ROWS_A_SHARD, 1) * market.ROWS_A_SHARD
        pattern = records(count)
        cell("input", {**settings, "source": "tfrecords", "rows": count}, measure_input, count, passes, pattern)
    if "memory" in arguments.only:
        arenas = os.environ.get("MALLOC_ARENA_MAX", "default")
        settings = {"backbone": "dcnv2", "passes": arguments.memory_passes, "malloc_arena_max": arenas}
        cell("memory", settings, measure_memory, "dcnv2", rows, held_out, arguments.memory_passes)
    if "linear" in arguments.only:
        for count in arguments.linear_rows:
            # Over many rows, one pass has enough steps.
            times = 3 if count <= 1_000_000 else 1
            settings = {"backbone": "dcnv2", "rows": count, "passes": times}
            cell("linear", settings, measure_linear, "dcnv2", count, times, records(count))


def code_hash() -> str:
    """12 hex digits that change with the files of models/, whose speed is measured."""
    digest = hashlib.sha256()
    for file in sorted((FOLDER.parent / "models").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    main()
