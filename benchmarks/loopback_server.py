"""An endpoint that costs nothing and answers after a set latency, to measure clients with.

    python -m benchmarks.loopback_server [--latency-ms 200] [--concurrency 64] [--candidates 10]

prints its base URL and answers every POST .../chat/completions with the same listwise scores after the latency; above
`concurrency` requests in flight it answers 429 at once. So no client can get more than concurrency / latency answers a
second: 320 with the defaults. POST /reset sets the counters to zero, GET /stats returns them. The server runs until
SIGTERM or the end of its standard input.
"""

import argparse
import asyncio
import json
import sys
import time

_REJECTION = {"error": {"message": "too many requests under way", "type": "rate_limit_error", "code": "rate_limit"}}


class Endpoint:
    """The settings and counters that all connections share.

    Attributes:
        counters: answered and rejected requests, most requests in flight at once, Unix seconds of the first request's
            arrival and of the last answer, CPU seconds of this process.
    """

    def __init__(self, *, latency_s: float, concurrency: int, candidates: int):
        self.latency_s = latency_s
        self.concurrency = concurrency
        self.in_flight = 0
        scores = [{"item": n, "score": round(1 / (1 + n), 3)} for n in range(1, candidates + 1)]
        message = {"role": "assistant", "content": json.dumps({"scores": scores}), "refusal": None}
        answer = {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": "loopback",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}],
            "usage": {"prompt_tokens": 400, "completion_tokens": 120, "total_tokens": 520},
        }
        self.answer = _response(200, answer)
        self.rejection = _response(429, _REJECTION)
        self.reset()

    def reset(self) -> None:
        self.answered = self.rejected = self.most_in_flight = 0
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.cpu_before_s = time.process_time()

    def counters(self) -> dict[str, float | None]:
        return {
            "answered": self.answered,
            "rejected": self.rejected,
            "most_in_flight": self.most_in_flight,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "server_cpu_s": time.process_time() - self.cpu_before_s,
        }


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request at a time."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        self._answer(head.split(b" ", 2)[1], rest[:length])

    def _answer(self, path: bytes, body: bytes) -> None:
        endpoint = self._endpoint
        if path == b"/stats":
            self._transport.write(_response(200, endpoint.counters()))
        elif path == b"/reset":
            endpoint.reset()
            self._transport.write(_response(200, {}))
        elif b'"messages": []' in body or b'"messages":[]' in body:
            # A client that first looks for the account's limits; this endpoint reports none.
            self._transport.write(_response(400, {"error": {"message": "messages must not be empty"}}))
        elif endpoint.in_flight >= endpoint.concurrency:
            endpoint.rejected += 1
            self._transport.write(endpoint.rejection)
        else:
            endpoint.first_at = endpoint.first_at or time.time()
            endpoint.in_flight += 1
            endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
            asyncio.get_running_loop().call_later(endpoint.latency_s, self._send_answer)

    def _send_answer(self) -> None:
        endpoint = self._endpoint
        endpoint.in_flight -= 1
        if self._transport.is_closing():
            return
        endpoint.answered += 1
        endpoint.last_at = time.time()
        self._transport.write(endpoint.answer)


def _response(status: int, value: object) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(endpoint: Endpoint) -> None:
    """Prints the base URL and answers until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(endpoint), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=10)
    arguments = parser.parse_args()
    asyncio.run(
        serve(
            Endpoint(
                latency_s=arguments.latency_ms / 1000,
                concurrency=arguments.concurrency,
                candidates=arguments.candidates,
            )
        )
    )


if __name__ == "__main__":
    main()
