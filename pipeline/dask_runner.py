"""Beam pipelines on a Dask cluster: `beam: {args: ["--runner=DaskRunner"]}`.

Beam 2.77's own Dask runner cannot carry a pipeline that reads or writes files, and says nothing: it drops what a DoFn
gives back at the end of a bundle (every file is written empty, and RunInference loses its last batch), hands each
consumer all tagged outputs mixed, runs only the branch that was built last, and fails at a read (seen in 2.77.0; open:
https://github.com/apache/beam/issues/29365). This runner keeps its options, its result and its overrides, and
translates anew: a PCollection is a list of Dask futures, each holding one bundle as a list of WindowedValue.

Not carried, and refused by name: stateful and splittable DoFns, grouping in other windows than the global one. Beam's
metrics are not collected. Combiners are not lifted: all values of a key come together first.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.internal import pickler
from apache_beam.io import iobase
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor, PTransformOverride
from apache_beam.runners.common import DoFnContext, DoFnInvoker, DoFnSignature, Receiver, _OutputHandler
from apache_beam.runners.dask import dask_runner
from apache_beam.runners.dask.overrides import _Reshuffle
from apache_beam.transforms.sideinputs import SideInputMap
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.trivial_inference import key_value_types
from apache_beam.utils.windowed_value import WindowedValue

try:
    import distributed
except ImportError:
    raise ImportError(
        "--runner=DaskRunner needs Dask, which is not installed; install it with `pip install 'sllmr[dask]'`"
    ) from None

Bundle = list[WindowedValue]
Bundles = list[distributed.Future]

BUNDLES_PER_THREAD = 2
"""Bundles that a PCollection is spread over, for each thread of the cluster, unless --dask_npartitions says so."""


class DaskRunner(dask_runner.DaskRunner):
    """Executes a pipeline on a Dask cluster: the one at --dask_client_address, or this machine's cores.

    A worker needs what Beam's workers need anywhere: this project installed, and the directories that the pipeline
    reads and writes under the same paths.
    """

    def run_pipeline(self, pipeline: beam.Pipeline, options: Any) -> "Result":
        dask_options = options.view_as(dask_runner.DaskOptions).get_all_options(drop_default=True, current_only=True)
        bundles = dask_options.pop("npartitions", None)
        client = distributed.Client(**dask_options)
        try:
            pipeline.replace_all([_ReplaceRead(), _ReplaceReshuffle()])
            consumed = _Consumed()
            pipeline.visit(consumed)
            threads = sum(client.nthreads().values())
            translation = _Translation(client, bundles or BUNDLES_PER_THREAD * threads, consumed.values)
            pipeline.visit(translation)
        except BaseException:
            client.close()
            raise
        return Result(client, translation.ends)


class Result(dask_runner.DaskRunnerResult):
    """Ends the connection, and a cluster of this machine's cores, with the pipeline."""

    def wait_until_finish(self, duration: int | None = None) -> str:
        try:
            return super().wait_until_finish(duration)
        except BaseException:
            # A failed step or Ctrl-C: what still waits would go on spending.
            self.client.cancel(self.futures)
            raise
        finally:
            self.client.close()


class _ReadSource(beam.PTransform):
    """A read as one primitive step; Beam's own is made of splittable DoFns."""

    def __init__(self, source: iobase.BoundedSource):
        super().__init__()
        self.source = source

    def expand(self, input_or_inputs: pvalue.PBegin) -> pvalue.PCollection:
        return pvalue.PCollection.from_(input_or_inputs)

    def get_windowing(self, inputs: Any) -> beam.Windowing:
        return beam.Windowing(GlobalWindows())


class _ReplaceRead(PTransformOverride):
    def matches(self, applied_ptransform: AppliedPTransform) -> bool:
        transform = applied_ptransform.transform
        return isinstance(transform, beam.io.Read) and isinstance(transform.source, iobase.BoundedSource)

    def get_replacement_transform_for_applied_ptransform(self, applied_ptransform: AppliedPTransform) -> _ReadSource:
        transform: Any = applied_ptransform.transform
        return _ReadSource(transform.source)


class _ReplaceReshuffle(PTransformOverride):
    def matches(self, applied_ptransform: AppliedPTransform) -> bool:
        return isinstance(applied_ptransform.transform, beam.Reshuffle)

    def get_replacement_transform_for_applied_ptransform(self, applied_ptransform: AppliedPTransform) -> _Reshuffle:
        return _Reshuffle()


class _Consumed(PipelineVisitor):
    """Which PCollections any step reads."""

    def __init__(self) -> None:
        self.values: set[pvalue.PValue] = set()

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        self.values.update(transform_node.inputs)
        self.values.update(side.pvalue for side in transform_node.side_inputs)


class _Translation(PipelineVisitor):
    """Submits each primitive step as one task a bundle.

    Attributes:
        ends: tasks whose outputs nobody reads. The others are released as soon as they have been read.
    """

    def __init__(self, client: distributed.Client, bundles: int, consumed: set[pvalue.PValue]):
        self._client = client
        self._bundles = bundles
        self._consumed = consumed
        self._collections: dict[pvalue.PValue, Bundles] = {}
        self.ends: Bundles = []

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        transform = transform_node.transform
        inputs = [self._collections[value] for value in transform_node.inputs if value in self._collections]
        if isinstance(transform, beam.ParDo):
            self._par_do(transform_node, transform, inputs[0])
            return
        if isinstance(transform, beam.Impulse):
            output = [self._submit(_impulse)]
        elif isinstance(transform, _ReadSource):
            output = self._read(transform.source)
        elif isinstance(transform, beam.Flatten):
            output = [bundle for collection in inputs for bundle in collection]
        elif isinstance(transform, _Reshuffle):
            output = self._exchange(inputs[0], _deal, _concatenate)
        elif isinstance(transform, beam.GroupByKey):
            _check_window(transform_node)
            coder = pickler.dumps(_key_coder(transform_node))
            output = self._exchange(inputs[0], functools.partial(_by_key, coder=coder), _group)
        else:
            raise NotImplementedError(
                f"DaskRunner carries no {type(transform).__name__}, got the step {transform_node.full_label!r}; use "
                "another --runner"
            )
        (collection,) = transform_node.outputs.values()
        self._collections[collection] = output
        if collection not in self._consumed:
            self.ends += [self._submit(_nothing, bundle) for bundle in output]

    def _par_do(self, node: AppliedPTransform, transform: beam.ParDo, bundles: Bundles) -> None:
        signature = DoFnSignature(transform.fn)
        if signature.is_stateful_dofn() or signature.is_splittable_dofn():
            raise NotImplementedError(
                f"DaskRunner carries no stateful or splittable DoFn, got the step {node.full_label!r}; use another "
                "--runner"
            )
        step = _ParDo(
            label=node.full_label,
            fn=transform.fn,
            args=transform.args,
            kwargs=transform.kwargs,
            window_fn=_main_input(node).windowing.windowfn,
            views=[(type(side), side._view_options()) for side in node.side_inputs],
            tags=[output.tag for output in node.outputs.values() if output in self._consumed],
        )
        # Pickled here: each task gets a DoFn of its own, as Beam promises, also where workers have several threads.
        pickled = pickler.dumps(step)
        sides = [self._collections[side.pvalue] for side in node.side_inputs]
        results = [self._submit(_run_bundle, pickled, bundle, sides) for bundle in bundles]
        for output in node.outputs.values():
            if output in self._consumed:
                self._collections[output] = [self._submit(_output, result, output.tag) for result in results]
        if not step.tags:
            self.ends += results

    def _read(self, source: iobase.BoundedSource) -> Bundles:
        size = beam.io.Read.get_desired_chunk_size(source.estimate_size())
        return [
            self._submit(_read, pickler.dumps((part.source, part.start_position, part.stop_position)))
            for part in source.split(size)
        ]

    def _exchange(self, bundles: Bundles, scatter: Callable, gather: Callable) -> Bundles:
        scattered = [self._submit(scatter, bundle, n, self._bundles) for n, bundle in enumerate(bundles)]
        return [
            self._submit(gather, [self._submit(_output, parts, target) for parts in scattered])
            for target in range(self._bundles)
        ]

    def _submit(self, function: Callable, *arguments: Any) -> distributed.Future:
        # Not pure: Dask would take two equal calls for one.
        return self._client.submit(function, *arguments, pure=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ParDo:
    """A ParDo as its worker sees it.

    Attributes:
        args, kwargs: of `process`, with placeholders for side inputs.
        views: class and options of each side input.
        tags: outputs that somebody reads; None is the main one.
    """

    label: str
    fn: beam.DoFn
    args: list[Any]
    kwargs: dict[str, Any]
    window_fn: Any
    views: list[tuple[Any, dict[str, Any]]]
    tags: list[str | None]


class _Outputs(dict[str | None, "_Output"]):
    """A receiver for every tag that a DoFn uses."""

    def __missing__(self, tag: str | None) -> "_Output":
        self[tag] = _Output()
        return self[tag]


class _Output(Receiver):
    """Keeps one output of a bundle."""

    def __init__(self) -> None:
        self.values: Bundle = []

    def receive(self, windowed_value: WindowedValue) -> None:
        self.values.append(windowed_value)


def _run_bundle(pickled: bytes, bundle: Bundle, sides: list[list[Bundle]]) -> dict[str | None, Bundle]:
    if not bundle:
        return {}
    step: _ParDo = pickler.loads(pickled)
    outputs = _Outputs()
    invoker = DoFnInvoker.create_invoker(
        DoFnSignature(step.fn),
        _OutputHandler(
            window_fn=step.window_fn,
            main_receivers=outputs[None],
            tagged_receivers=outputs,
            per_element_output_counter=None,
            output_batch_converter=None,
            process_yields_batches=False,
            process_batch_yields_elements=False,
        ),
        context=DoFnContext(step.label, state=None),
        side_inputs=[
            SideInputMap(kind, options, _concatenate(parts))
            for (kind, options), parts in zip(step.views, sides, strict=True)
        ],
        input_args=step.args,
        input_kwargs=step.kwargs,
        bundle_finalizer_param=beam.DoFn.BundleFinalizerParam(),
    )
    invoker.invoke_setup()
    try:
        invoker.invoke_start_bundle()
        for value in bundle:
            invoker.invoke_process(value)
        invoker.invoke_finish_bundle()
    finally:
        invoker.invoke_teardown()
    return {tag: outputs[tag].values for tag in step.tags}


def _output(parts: Any, key: Any) -> Bundle:
    """One output of a step that ran, or one part of a scattered bundle; none where the bundle was empty."""
    return parts.get(key, [])


def _impulse() -> Bundle:
    return [GlobalWindows.windowed_value(b"")]


def _read(pickled: bytes) -> Bundle:
    source, start, stop = pickler.loads(pickled)
    return [GlobalWindows.windowed_value(v) for v in source.read(source.get_range_tracker(start, stop))]


def _deal(bundle: Bundle, index: int, bundles: int) -> dict[int, Bundle]:
    """Round robin; each bundle begins at another target, so that many small ones do not meet in the first."""
    return {(index + n) % bundles: bundle[n::bundles] for n in range(bundles)}


def _by_key(bundle: Bundle, index: int, bundles: int, *, coder: bytes) -> dict[int, list[tuple[bytes, Any, Any]]]:
    """By a hash of the encoded key, the same in every process; Python's own `hash` of a string is not."""
    encode = pickler.loads(coder).encode
    parts = collections.defaultdict(list)
    for windowed in bundle:
        key, value = windowed.value
        encoded = encode(key)
        digest = hashlib.blake2b(encoded, digest_size=8).digest()
        parts[int.from_bytes(digest) % bundles].append((encoded, key, value))
    return dict(parts)


def _group(parts: Iterable[list[tuple[bytes, Any, Any]]]) -> Bundle:
    keys: dict[bytes, Any] = {}
    values: dict[bytes, list[Any]] = collections.defaultdict(list)
    for part in parts:
        for encoded, key, value in part:
            keys.setdefault(encoded, key)
            values[encoded].append(value)
    return [GlobalWindows.windowed_value((key, values[encoded])) for encoded, key in keys.items()]


def _concatenate(parts: Iterable[Bundle]) -> Bundle:
    return [value for part in parts for value in part]


def _nothing(bundle: Bundle) -> None:
    """The end of a branch: the driver learns that it ended, and gets no data."""


def _main_input(node: AppliedPTransform) -> Any:
    (collection,) = node.main_inputs.values()
    return collection


def _key_coder(node: AppliedPTransform) -> coders.Coder:
    key_type, _ = key_value_types(_main_input(node).element_type)
    return coders.registry.get_coder(key_type).as_deterministic_coder(node.full_label)


def _check_window(node: AppliedPTransform) -> None:
    window_fn = _main_input(node).windowing.windowfn
    if not isinstance(window_fn, GlobalWindows):
        raise NotImplementedError(
            f"DaskRunner groups in the global window only, got {type(window_fn).__name__} in the step "
            f"{node.full_label!r}; use another --runner"
        )
