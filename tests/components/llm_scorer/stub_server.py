"""A loopback server that answers and misbehaves on command, for faults that a real LLM does not show."""

import contextlib
import http.server
import json
import re
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

DRIP_S = 0.05
DRIPS = 1200

Reply = Callable[["StubHandler", dict[str, Any]], None]


class StubServer(http.server.ThreadingHTTPServer):
    """Answers as `replies` say, one after the other, then as `always`, else with scores for every candidate.

    Attributes:
        received: bodies in order of arrival.
        answered: bodies whose good answer was written out.
        gate: a good answer waits until it is set.
        free_answers: so many good answers do not wait for the gate.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.replies: list[Reply] = []
        self.always: Reply | None = None
        self.received: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.free_answers = 0
        self.changed = threading.Condition()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def wait_until(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed leave broken pipes; they are part of the test."""


class StubHandler(http.server.BaseHTTPRequestHandler):
    server: StubServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.changed:
            self.server.received.append(body)
            reply = self.server.replies.pop(0) if self.server.replies else self.server.always
            free = len(self.server.received) <= self.server.free_answers
            self.server.changed.notify_all()
        if reply is not None:
            reply(self, body)
            return
        if not free:
            self.server.gate.wait()
        self.send_json(200, chat_response(scores_of(body)))
        with self.server.changed:
            self.server.answered.append(body)
            self.server.changed.notify_all()

    def send_json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(value).encode(), headers)

    def send_bytes(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def scores_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A valid listwise answer: the higher a candidate's number, the lower its score."""
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", body["messages"][-1]["content"], re.MULTILINE)]
    return [{"item": n, "score": 1 / (1 + n)} for n in numbers]


def chat_response(scores: Any, **choice: Any) -> dict[str, Any]:
    """An answer as OpenAI gives it; 1,000 prompt tokens of which 200 cached, 100 completion tokens."""
    message = {"role": "assistant", "content": json.dumps({"scores": scores}), "refusal": None}
    return {
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, **choice}],
        "usage": {
            "prompt_tokens": 1000,
            "completion_tokens": 100,
            "prompt_tokens_details": {"cached_tokens": 200},
        },
    }


def failing(status: int, error: dict[str, Any], headers: dict[str, str] | None = None) -> Reply:
    return lambda handler, body: handler.send_json(status, {"error": error}, headers)


def cutting_header(handler: StubHandler, body: dict[str, Any]) -> None:
    """Closes the connection in the middle of the header."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    handler.close_connection = True


def cutting_body(handler: StubHandler, body: dict[str, Any]) -> None:
    """Promises an answer and closes the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.wfile.flush()
    handler.close_connection = True


def dripping_header(handler: StubHandler, body: dict[str, Any]) -> None:
    """A header that never ends, byte by byte."""
    drip(handler, b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * DRIPS)


def dripping_body(handler: StubHandler, body: dict[str, Any]) -> None:
    """An answer that never ends, byte by byte."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(DRIPS))
    handler.end_headers()
    drip(handler, b" " * DRIPS)


def drip(handler: StubHandler, content: bytes) -> None:
    handler.close_connection = True
    for byte in content:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        # As long as the client listens; a minute at most.
        if handler.connection in select.select([handler.connection], [], [], DRIP_S)[0]:
            return


def echoing_key(status: int) -> Reply:
    """An error body that holds the request's own Authorization header."""

    def reply(handler: StubHandler, body: dict[str, Any]) -> None:
        header = handler.headers["Authorization"]
        key = header.removeprefix("Bearer ")
        handler.send_json(status, {"error": {"message": f"got {header}, that is {key[:-3]}***", "code": key}})

    return reply


@contextlib.contextmanager
def running_stub() -> Iterator[StubServer]:
    server = StubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
