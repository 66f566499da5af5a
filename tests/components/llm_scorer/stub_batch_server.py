"""A loopback server with the Batch API of OpenAI, and the faults that it can show."""

import contextlib
import dataclasses
import email.parser
import email.policy
import http.server
import json
import re
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.components.llm_scorer.stub_server import chat_response, scores_of

Line = dict[str, Any]


def answered(line: Line, body: Any = None) -> Line:
    """A line of an output file."""
    if body is None:
        is_embedding = line["url"] == "/v1/embeddings"
        body = embedding_of(line["body"]) if is_embedding else chat_response(scores_of(line["body"]))
    return _output(line, {"status_code": 200, "request_id": "r", "body": body}, None)


def embedding_of(body: dict[str, Any]) -> dict[str, Any]:
    """A vector that depends on the text."""
    values = [float(ord(letter)) for letter in body["input"][:8].ljust(8)]
    return {"data": [{"embedding": values}], "usage": {"prompt_tokens": 9, "total_tokens": 9}}


def failed_with(status: int, code: str = "some_code") -> Callable[[Line], Line]:
    """Lines that the model refused with an HTTP status."""
    return lambda line: _output(
        line, {"status_code": status, "request_id": "r", "body": {"error": {"code": code, "message": "no"}}}, None
    )


def expired(line: Line) -> Line:
    return _output(line, None, {"code": "batch_expired", "message": "This request could not be executed in time."})


def _output(line: Line, response: Any, error: Any) -> Line:
    return {"id": f"b-{line['custom_id']}", "custom_id": line["custom_id"], "response": response, "error": error}


@dataclasses.dataclass
class StubBatch:
    """A batch at the endpoint; `looks` of the client pass until it ends."""

    batch_id: str
    metadata: dict[str, str]
    endpoint: str
    lines: list[Line]
    looks: int
    status: str = "in_progress"
    files: dict[str, str | None] = dataclasses.field(default_factory=dict)
    errors: dict[str, Any] | None = None


class StubBatchServer(http.server.ThreadingHTTPServer):
    """Answers /v1/files, /v1/batches and, as stub_server does, /v1/chat/completions.

    Attributes:
        outcome: makes the line of the output or error file of a request, by how often it was handed over; None: the
            line is in neither.
        end_status: of a batch, by how many were created before it; `failed` refuses it as a whole.
        failed_errors: why.
        spoil: changes the content of an output or error file.
        looks: of the client that pass until a batch ends.
        page: entries of a page of the list of batches.
        file_status: of an uploaded file, by how often the client has asked for it; None: the endpoint does not know the
            file yet.
        creation_error: HTTP status and error of the creation of a batch, by how many attempts came before; None: it is
            created.
        hides_output: whether a batch that ends tells no output file, by how many were created before it.
        gone: files that the endpoint does not know any more.
        missing: requests whose name begins so are unknown to the endpoint; empty: none.
        received: names of requests, as `GET /v1/batches/ID`.
        live: bodies that were asked live.
        before, after: called with the request's name before it is carried out, and after, before it is answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.outcome: Callable[[Line, int], Line | None] = lambda line, attempt: answered(line)
        self.end_status: Callable[[int], str] = lambda number: "completed"
        self.spoil: Callable[[bytes], bytes] = lambda content: content
        self.failed_errors: list[dict[str, Any]] = []
        self.file_status: Callable[[int], str | None] = lambda asked: "processed"
        self.creation_error: Callable[[int], tuple[int, dict[str, Any]] | None] = lambda attempt: None
        self.hides_output: Callable[[int], bool] = lambda number: False
        self.gone: set[str] = set()
        self.asked_for_file: Counter[str] = Counter()
        self.looks = 1
        self.page = 2
        self.missing = ""
        self.received: list[str] = []
        self.live: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.batches: list[StubBatch] = []
        self.handed_over: Counter[str] = Counter()
        self.before: Callable[[str], None] = lambda name: None
        self.after: Callable[[str], None] = lambda name: None
        self.lock = threading.RLock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed leave broken pipes; they are part of the test."""

    def store(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def create(self, wanted: dict[str, Any]) -> StubBatch:
        lines = [json.loads(line) for line in self.files[wanted["input_file_id"]].splitlines()]
        batch = StubBatch(f"batch-{len(self.batches)}", wanted["metadata"], wanted["endpoint"], lines, self.looks)
        self.batches.append(batch)
        if self.end_status(len(self.batches) - 1) == "failed":
            batch.status, batch.errors = "failed", {"object": "list", "data": self.failed_errors}
        return batch

    def look(self, batch: StubBatch) -> None:
        if batch.status in ("in_progress", "cancelling"):
            batch.looks -= 1
            if batch.looks < 0:
                self.end(batch)

    def end(self, batch: StubBatch) -> None:
        output, errors = [], []
        for line in batch.lines:
            self.handed_over[line["custom_id"]] += 1
            result = self.outcome(line, self.handed_over[line["custom_id"]])
            if result is not None:
                (output if result["response"] else errors).append(result)
        number = self.batches.index(batch)
        batch.status = "cancelled" if batch.status == "cancelling" else self.end_status(number)
        for name, entries in (("output_file_id", output), ("error_file_id", errors)):
            # In another order than asked, and with the separators that only \n is not.
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in reversed(entries))
            batch.files[name] = self.store(self.spoil(text.encode())) if entries else None
        if self.hides_output(number):
            batch.files["output_file_id"] = None

    def describe(self, batch: StubBatch) -> dict[str, Any]:
        done = len(batch.lines) if batch.files else 0
        return {
            "id": batch.batch_id,
            "object": "batch",
            "status": batch.status,
            "metadata": batch.metadata,
            "endpoint": batch.endpoint,
            "errors": batch.errors,
            "request_counts": {"total": len(batch.lines), "completed": done, "failed": 0},
            f"{batch.status}_at": 1_800_000_000,
            **batch.files,
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StubBatchServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._carry_out(b"")

    def do_POST(self) -> None:
        self._carry_out(self.rfile.read(int(self.headers["Content-Length"])))

    def _carry_out(self, body: bytes) -> None:
        url = urllib.parse.urlsplit(self.path)
        name = f"{self.command} " + re.sub(r"/(file|batch)-\d+", "/ID", url.path)
        with self.server.lock:
            self.server.received.append(name)
            self.server.before(name)
            status, content = self._answer(name, url, body)
            self.server.after(name)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, name: str, url: urllib.parse.SplitResult, body: bytes) -> tuple[int, bytes]:
        server = self.server
        path = url.path.removeprefix("/v1").split("/")[1:]
        if server.missing and name.startswith(server.missing):
            return 404, json.dumps({"error": {"message": "Not Found"}}).encode()
        if name == "POST /v1/embeddings":
            return _json(embedding_of(json.loads(body)))
        if name == "POST /v1/chat/completions":
            asked = json.loads(body)
            server.live.append(asked)
            return _json(chat_response(scores_of(asked)))
        if name == "POST /v1/files":
            return _json({"id": server.store(self._uploaded(body)), "object": "file", "status": "uploaded"})
        if name == "GET /v1/files/ID":
            file_status = server.file_status(server.asked_for_file[path[1]])
            server.asked_for_file[path[1]] += 1
            if file_status is None:
                return 404, json.dumps({"error": {"message": f"No such File object: {path[1]}"}}).encode()
            return _json({"id": path[1], "object": "file", "status": file_status, "status_details": "line 1: no JSON"})
        if name == "GET /v1/files/ID/content":
            if path[1] in server.gone:
                return 404, json.dumps({"error": {"message": f"No such File object: {path[1]}"}}).encode()
            return 200, server.files[path[1]]
        if name == "POST /v1/batches":
            error = server.creation_error(server.received.count(name) - 1)
            if error is not None:
                return error[0], json.dumps({"error": error[1]}).encode()
            return _json(server.describe(server.create(json.loads(body))))
        if name == "GET /v1/batches":
            return _json(self._list(urllib.parse.parse_qs(url.query)))
        batch = next((batch for batch in server.batches if batch.batch_id == path[1]), None)
        if batch is None:
            return 404, json.dumps({"error": {"message": "No such batch"}}).encode()
        if path[2:] == ["cancel"]:
            batch.status = "cancelling"
        else:
            server.look(batch)
        return _json(server.describe(batch))

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        newest_first = [self.server.describe(batch) for batch in reversed(self.server.batches)]
        start = 0
        if "after" in query:
            start = [entry["id"] for entry in newest_first].index(query["after"][0]) + 1
        page = newest_first[start : start + self.server.page]
        return {"object": "list", "data": page, "has_more": start + len(page) < len(newest_first)}

    def _uploaded(self, body: bytes) -> bytes:
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(header + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        assert parts["purpose"].get_payload() == "batch"
        content = parts["file"].get_payload(decode=True)
        assert isinstance(content, bytes)
        return content

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def _json(value: Any) -> tuple[int, bytes]:
    return 200, json.dumps(value).encode()


@contextlib.contextmanager
def running_batch_stub() -> Iterator[StubBatchServer]:
    server = StubBatchServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
