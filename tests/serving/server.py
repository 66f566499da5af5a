"""A stand-in for TF Serving's model server: its REST and gRPC interfaces over the SavedModel's Session.

It imports nothing of the project, so that a request which it answers needs nothing of the project either.
"""

import base64
import concurrent.futures
import http.server
import json
import pathlib
import re
import threading
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

_PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+))?(?::(?P<verb>\w+))?")
_CODES = {
    tf.errors.InvalidArgumentError: (400, grpc.StatusCode.INVALID_ARGUMENT),
    tf.errors.NotFoundError: (404, grpc.StatusCode.NOT_FOUND),
}


class Version:
    """One loaded SavedModel. Like the real server, it compares no value's shape with the signature."""

    def __init__(self, directory: pathlib.Path, *, warm_up: bool):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        self._signatures = dict(meta_graph.signature_def)
        self._callables: dict[tuple[str, tuple[str, ...]], Any] = {}
        warmup = directory / "assets.extra" / "tf_serving_warmup_requests"
        if warm_up and warmup.exists():
            for record in tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator():
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                self.run(request.model_spec.signature_name, tensors(request))

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if signature not in self._signatures:
            raise error(tf.errors.InvalidArgumentError, f'Serving signature name: "{signature}" not found')
        definition = self._signatures[signature]
        if inputs.keys() != definition.inputs.keys():
            raise error(
                tf.errors.InvalidArgumentError,
                f"input size does not match signature: {sorted(inputs)} is not {sorted(definition.inputs)}",
            )
        outputs = sorted(definition.outputs)
        key = (signature, tuple(inputs))
        if key not in self._callables:
            options = config_pb2.CallableOptions(
                feed=[definition.inputs[name].name for name in inputs],
                fetch=[definition.outputs[name].name for name in outputs],
            )
            self._callables[key] = self._session._make_callable_from_options(options)
        return dict(zip(outputs, self._callables[key](*inputs.values()), strict=True))

    def input_names(self, signature: str) -> list[str]:
        return sorted(self._signatures[signature].inputs) if signature in self._signatures else []


class ModelServer:
    """Serves the newest version below a folder, or one by number, on free ports of this machine.

    Use as a context manager. `load_newest` does what the real server does when it polls the folder.
    """

    def __init__(self, name: str, directory: pathlib.Path, *, warm_up: bool = True):
        self.name, self._directory, self._warm_up = name, directory, warm_up
        self._versions: dict[int, Version] = {}

    def load_newest(self) -> None:
        number = max(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())
        if number not in self._versions:
            loaded = Version(self._directory / str(number), warm_up=self._warm_up)
            kept = sorted(self._versions)[-1:]
            self._versions = {n: self._versions[n] for n in kept} | {number: loaded}

    def version(self, name: str, number: int | None) -> Version:
        versions = self._versions
        if name != self.name or (number is not None and number not in versions):
            raise error(tf.errors.NotFoundError, f"Servable not found for request: {name} {number or ''}")
        return versions[max(versions) if number is None else number]

    @property
    def numbers(self) -> list[int]:
        return sorted(self._versions)

    def __enter__(self) -> "ModelServer":
        self.load_newest()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _rest_handler(self))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._grpc = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(self), self._grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._grpc)
        self.grpc_address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1/models/{self.name}"
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(grace=None)


def error(kind: type[tf.errors.OpError], message: str) -> tf.errors.OpError:
    return kind(None, None, message)


def tensors(request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server: ModelServer):
        self._server = server

    def Predict(self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext) -> Any:
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        try:
            version = self._server.version(spec.name, number)
            outputs = version.run(spec.signature_name or "serving_default", tensors(request))
        except tf.errors.OpError as failure:
            context.abort(_CODES.get(type(failure), (500, grpc.StatusCode.INTERNAL))[1], failure.message)
        response = predict_pb2.PredictResponse()
        for name, values in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(values))
        return response


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server: ModelServer):
        self._server = server

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        response = get_model_status_pb2.GetModelStatusResponse()
        for number in self._server.numbers:
            state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            response.model_version_status.add(version=number, state=state)
        return response


def _rest_handler(server: ModelServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = [{"version": str(number), "state": "AVAILABLE"} for number in server.numbers]
            self._answer(200, {"model_version_status": status})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                self._answer(200, self._predict(json.loads(body)))
            except json.JSONDecodeError as failure:
                self._answer(400, {"error": f"JSON Parse error: {failure}"})
            except tf.errors.OpError as failure:
                self._answer(_CODES.get(type(failure), (500, None))[0], {"error": failure.message})

        def _predict(self, request: dict[str, Any]) -> dict[str, Any]:
            path = _PATH.fullmatch(self.path)
            if path is None or path["verb"] != "predict":
                raise error(tf.errors.InvalidArgumentError, f"Malformed request: POST {self.path}")
            version = server.version(path["name"], int(path["version"]) if path["version"] else None)
            signature = request.get("signature_name", "serving_default")
            names = version.input_names(signature)
            if ("instances" in request) == ("inputs" in request):
                raise error(tf.errors.InvalidArgumentError, "Request must have exactly one of `instances`, `inputs`")
            if "inputs" in request:
                outputs = version.run(signature, _columns(request["inputs"], names))
                return {"outputs": _one_or_all({name: values.tolist() for name, values in outputs.items()})}
            rows = [
                row if isinstance(row, dict) and "b64" not in row else {names[0]: row} for row in request["instances"]
            ]
            if any(row.keys() != rows[0].keys() for row in rows):
                raise error(tf.errors.InvalidArgumentError, "all instances must have the same keys")
            columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else names)}
            outputs = version.run(signature, _columns(columns, names))
            by_row = [{n: v[row].tolist() for n, v in outputs.items()} for row in range(len(rows))]
            return {"predictions": [_one_or_all(row) for row in by_row]}

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _one_or_all(outputs: dict[str, Any]) -> Any:
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _columns(inputs: Any, names: list[str]) -> dict[str, np.ndarray]:
    values = inputs if isinstance(inputs, dict) and "b64" not in inputs else {names[0]: inputs}
    return {name: _strings(name, value) for name, value in values.items()}


def _strings(name: str, value: Any) -> np.ndarray:
    """JSON -> a string tensor: every input of a model of this project is one."""

    def decoded(part: Any) -> Any:
        if isinstance(part, list):
            return [decoded(p) for p in part]
        if isinstance(part, dict) and part.keys() == {"b64"}:
            return base64.b64decode(part["b64"])
        if not isinstance(part, str):
            raise error(tf.errors.InvalidArgumentError, f"JSON Value: {part!r} of tensor {name} is not a string")
        return part.encode()

    def shape(part: Any) -> tuple[int, ...]:
        return (len(part), *(shape(part[0]) if part else ())) if isinstance(part, list) else ()

    plain = decoded(value)
    try:
        return np.array(plain, object).reshape(shape(plain))
    except ValueError:
        raise error(tf.errors.InvalidArgumentError, f"tensor {name} is not rectangular") from None
