"""Good, bad and huge requests to every signature, over REST and gRPC, as TF Serving answers them.

The same requests go to the real server if TENSORFLOW_MODEL_SERVER names its binary.
"""

import base64
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import types
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from sllmr.models import features, signatures
from tests.models.exporting import CANDIDATES, HISTORIES, rank_request, raw_request, serialized, short_request
from tests.serving.server import ModelServer

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real_server(pushed):
    """TF Serving itself, where it can be had."""
    binary = os.environ.get("TENSORFLOW_MODEL_SERVER")
    if not binary:
        pytest.skip("TENSORFLOW_MODEL_SERVER names no tensorflow_model_server")
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        rest, rpc = one.getsockname()[1], other.getsockname()[1]
    arguments = [f"--port={rpc}", f"--rest_api_port={rest}", "--model_name=ranker", f"--model_base_path={pushed}"]
    process = subprocess.Popen([binary, *arguments])
    url = f"http://127.0.0.1:{rest}/v1/models/ranker"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                time.sleep(0.5)
        yield types.SimpleNamespace(url=url, grpc_address=f"127.0.0.1:{rpc}")
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=["stand-in", "real"])
def served(request):
    return request.getfixturevalue("server" if request.param == "stand-in" else "real_server")


def post(url: str, body: dict | bytes) -> tuple[int, dict]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}:predict", content)) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def predict(served, signature: str, inputs: dict, *, name: str = "ranker", version: int | None = None):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if version is not None:
        request.model_spec.version.value = version
    for column, values in inputs.items():
        request.inputs[column].CopyFrom(tf.make_tensor_proto(np.asarray(values, object), dtype=tf.string))
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(served.grpc_address, options) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    return {output: tf.make_ndarray(values) for output, values in response.outputs.items()}


def test_all_signatures_score_alike_over_rest_and_grpc(served):
    raw = {name: values.numpy() for name, values in raw_request(HISTORIES[:1], CANDIDATES[:1]).items()}
    ranked = predict(
        served, signatures.RANK, {n: v.numpy() for n, v in rank_request(HISTORIES[:1], CANDIDATES[:1]).items()}
    )
    expected = ranked[signatures.SCORES][0]
    known = [item for item in CANDIDATES[0] if item != "nowhere"]
    examples = [
        {"examples": {"b64": base64.b64encode(serialized(short_request(HISTORIES[0], i))).decode()}} for i in known
    ]
    instance = {features.HISTORY_ITEM_IDS: HISTORIES[0], signatures.CANDIDATE_ITEM_IDS: CANDIDATES[0]}

    _, by_row = post(served.url, {"signature_name": "rank", "instances": [instance]})
    _, by_column = post(served.url, {"signature_name": "rank", "inputs": {n: [v] for n, v in instance.items()}})
    _, by_example = post(served.url, {"instances": examples})

    np.testing.assert_allclose(predict(served, signatures.RAW, raw)[signatures.SCORES], expected, atol=1e-6)
    np.testing.assert_allclose(by_row["predictions"][0]["scores"], expected, atol=1e-6)
    np.testing.assert_allclose(by_column["outputs"]["scores"][0], expected, atol=1e-6)
    of_known = [score for item, score in zip(CANDIDATES[0], expected, strict=True) if item in known]
    np.testing.assert_allclose([row["scores"] for row in by_example["predictions"]], of_known, atol=1e-6)
    assert by_row["predictions"][0]["order"] == ranked[signatures.ORDER][0].tolist()


def test_the_client_in_deploy_ranks(served):
    spec = importlib.util.spec_from_file_location("client", ROOT / "deploy" / "client.py")
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)

    ranked = client.rank(served.url, ["item2"], ["item4", "item1", "item6"])

    assert sorted(item for item, _ in ranked) == ["item1", "item4", "item6"]
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    assert client.rank(f"{served.url}/versions/1", ["item2"], ["item4"])
    with pytest.raises(ValueError, match="not found"):
        client.rank(f"{served.url}/versions/2", ["item2"], ["item4"])


RANK = {features.HISTORY_ITEM_IDS: ["item2"], signatures.CANDIDATE_ITEM_IDS: ["item4", "item1"]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON"),
        ({"signature_name": "rank"}, "instances"),
        ({"signature_name": "nothing", "instances": [RANK]}, "nothing"),
        ({"signature_name": "rank", "instances": [{features.HISTORY_ITEM_IDS: ["item2"]}]}, "candidate_item_ids"),
        ({"signature_name": "rank", "instances": [RANK | {"candidate_item_ids": [1, 2]}]}, "JSON"),
        (
            {"signature_name": "rank", "instances": [RANK, RANK | {"candidate_item_ids": ["item1"]}]},
            "candidate_item_ids",
        ),
        ({"signature_name": "rank", "instances": [RANK | {"candidate_item_ids": "item1"}]}, "candidate_item_ids"),
        ({"signature_name": "raw", "instances": [{"item_id": "item1"}]}, "item_brand"),
        ({"instances": [{"examples": {"b64": base64.b64encode(b"no example").decode()}}]}, "xample"),
    ],
)
def test_a_bad_request_is_a_client_error_that_says_why(server, body, message):
    status, answer = post(server.url, body)

    assert status == 400
    assert message in answer["error"]


def test_a_model_or_version_that_is_not_there_is_not_found(served):
    inputs = {name: [values] for name, values in RANK.items()}
    assert post(served.url.replace("ranker", "other"), {"instances": []})[0] == 404
    for wrong in ({"name": "other"}, {"version": 7}):
        with pytest.raises(grpc.RpcError) as raised:
            predict(served, signatures.RANK, inputs, **wrong)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_wrong_shape_is_an_invalid_argument_that_names_the_column(served):
    inputs = {name: [values] for name, values in RANK.items()}
    with pytest.raises(grpc.RpcError, match=signatures.CANDIDATE_ITEM_IDS) as raised:
        predict(served, signatures.RANK, inputs | {signatures.CANDIDATE_ITEM_IDS: ["item1"]})
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_huge_request_is_answered(served):
    candidates = [f"item{n % 12}" for n in range(200_000)]
    history = ["item1"] * 50_000
    answer = predict(
        served,
        signatures.RANK,
        {features.HISTORY_ITEM_IDS: [history], signatures.CANDIDATE_ITEM_IDS: [candidates]},
    )

    assert sorted(answer[signatures.ORDER][0].tolist()) == list(range(200_000))


def test_a_new_version_is_served_beside_the_old_one(pushed, tmp_path):
    shutil.copytree(pushed / "1", tmp_path / "1")
    request = {"signature_name": "rank", "instances": [RANK]}
    with ModelServer("ranker", tmp_path) as server:
        shutil.copytree(pushed / "1", tmp_path / "2")
        server.load_newest()

        assert server.numbers == [1, 2]
        assert [post(f"{server.url}{version}", request)[0] for version in ("", "/versions/1", "/versions/2")] == [
            200
        ] * 3


def test_no_request_fails_while_versions_change(pushed, tmp_path):
    shutil.copytree(pushed / "1", tmp_path / "1")
    request = {"signature_name": "rank", "instances": [RANK]}
    done = threading.Event()

    def client(_: int) -> list[int]:
        statuses = [post(server.url, request)[0]]
        while not done.is_set():
            statuses.append(post(server.url, request)[0])
        return statuses

    with ModelServer("ranker", tmp_path) as server, concurrent.futures.ThreadPoolExecutor(3) as clients:
        running = [clients.submit(client, number) for number in range(3)]
        try:
            for version in ("2", "3"):
                shutil.copytree(pushed / "1", tmp_path / version)
                server.load_newest()
        finally:
            done.set()
        statuses = [status for client in running for status in client.result()]

    assert server.numbers == [2, 3]
    assert set(statuses) == {200}
