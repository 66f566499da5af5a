"""HTTP for many threads, with a time-out that bounds a whole call, and not each read of it.

httpx2 bounds every single read: a server that drips a byte a second can hold a call for hours, and with it a thread and
a concurrency slot (github.com/pydantic/httpx2/issues/557, open).

httpx2 decompresses a body of any size: 400 MB of zeros fit into 400 KB. Here a body is bounded as it is decompressed,
and a redirect that leads to another host is refused before anything is sent there.

httpx2's pool, which all threads share, checks every idle connection before each call, under one lock, so that many
threads wait for each other. Here each thread has a connection of its own.
"""

import contextlib
import ssl
import threading
import time
import urllib.parse
import urllib.request
import weakref
import zlib
from collections.abc import Iterable, Iterator

import httpcore2
import httpx2

MAX_RESPONSE_BYTES = 32_000_000
"""Of a decompressed response: more than the largest embedding or chat response takes by a factor of hundreds."""

_PIECE_BYTES = 1 << 16


class ResponseTooLarge(httpx2.DecodingError):
    """A decompressed response is longer than MAX_RESPONSE_BYTES."""


class RedirectRefused(httpx2.RequestError):
    """The endpoint redirects to another host, or from https to http.

    Attributes:
        target: scheme and host that the redirect leads to.
    """

    def __init__(self, target: str):
        super().__init__(f"the endpoint redirects to {target}")
        self.target = target


class BoundedTransport(httpx2.BaseTransport):
    """A transport to one host, for many threads; a request's read time-out is the time for all of it.

    Name look-up is the operating system's and not bounded. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are heeded,
    SSL_CERT_FILE and SSL_CERT_DIR as well.
    """

    def __init__(self, url: str, *, trust_env: bool):
        """
        Args:
            url: where all requests go; decides which proxy does.
            trust_env: whether the environment may name proxies and certificates.
        """
        self._origin = urllib.parse.urlsplit(url)
        self._ssl_context = httpx2.create_ssl_context(trust_env=trust_env)
        self._proxy = _proxy_for(url) if trust_env else None
        self._deadline = _Deadline()
        self._local = threading.local()
        self._pools: weakref.WeakSet[httpcore2.ConnectionPool] = weakref.WeakSet()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.SyncByteStream)
        if request.url.host != self._origin.hostname or (self._origin.scheme, request.url.scheme) == ("https", "http"):
            raise RedirectRefused(f"{request.url.scheme}://{request.url.host}")
        # An encoding that _Body can bound.
        request.headers["Accept-Encoding"] = "gzip"
        seconds = request.extensions["timeout"]["read"]
        self._deadline.at = float("inf") if seconds is None else time.monotonic() + seconds
        with _errors_of_httpx():
            response = self._pool().handle_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        assert isinstance(response.stream, Iterable)
        headers = httpx2.Headers(response.headers)
        encoding = headers.pop("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            response.close()
            raise httpx2.DecodingError(f"the response is encoded as {encoding:.20}, which was not requested")
        # JSON is UTF-8; a server that names another character set is not believed.
        headers["content-type"] = headers.get("content-type", "application/json").partition(";")[0]
        bound = getattr(self._local, "max_response_bytes", MAX_RESPONSE_BYTES)
        return httpx2.Response(
            status_code=response.status,
            headers=headers,
            stream=_Body(response, compressed=encoding not in ("identity", ""), max_bytes=bound),
            extensions=response.extensions,
        )

    @contextlib.contextmanager
    def unbounded_responses(self) -> Iterator[None]:
        """Within it, the calling thread's responses may have any size: it reads them piece by piece."""
        self._local.max_response_bytes = None
        try:
            yield
        finally:
            del self._local.max_response_bytes

    def close(self) -> None:
        for pool in list(self._pools):
            pool.close()

    def _pool(self) -> httpcore2.ConnectionPool:
        """The calling thread's own; it goes with the thread."""
        if not hasattr(self._local, "pool"):
            self._local.pool = httpcore2.ConnectionPool(
                ssl_context=self._ssl_context,
                proxy=self._proxy,
                max_connections=1,
                # An idle connection that a server or a middlebox has dropped costs a failed call.
                keepalive_expiry=30,
                network_backend=_BoundedBackend(self._deadline),
            )
            self._pools.add(self._local.pool)
        return self._local.pool


class _Deadline(threading.local):
    """When the calling thread's call must be over; a call stays in one thread."""

    at = float("inf")

    def left(self, timeout: float | None) -> float:
        """`timeout`, or what is left of the call's time where that is less.

        Raises:
            httpcore2.ReadTimeout: nothing is left.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the time for the whole call is over")
        return left if timeout is None else min(timeout, left)


class _BoundedBackend(httpcore2.NetworkBackend):
    def __init__(self, deadline: _Deadline):
        self._deadline = deadline
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        stream = self._inner.connect_tcp(host, port, self._deadline.left(timeout), local_address, socket_options or ())
        return _BoundedStream(stream, self._deadline)


class _BoundedStream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream, deadline: _Deadline):
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        stream = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return _BoundedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


class _Body(httpx2.SyncByteStream):
    """A response's body, decompressed in pieces and no further than `max_bytes`."""

    def __init__(self, response: httpcore2.Response, *, compressed: bool, max_bytes: int | None):
        self._response = response
        self._compressed = compressed
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        with _errors_of_httpx():
            pieces = self._response.iter_stream()
            for piece in _decompressed(pieces) if self._compressed else pieces:
                size += len(piece)
                if self._max_bytes is not None and size > self._max_bytes:
                    raise ResponseTooLarge(f"the response is longer than {self._max_bytes / 1e6:.0f} MB")
                yield piece

    def close(self) -> None:
        self._response.close()


def _decompressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What gzip or zlib data hold, in pieces of at most _PIECE_BYTES.

    Raises:
        httpx2.DecodingError: the data are damaged or cut.
    """
    # 32 added to the window size: zlib detects gzip or zlib by the header.
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        for piece in pieces:
            while piece:
                if decompressor.eof:
                    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)
                yield decompressor.decompress(piece, _PIECE_BYTES)
                piece = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
    except zlib.error as error:
        raise httpx2.DecodingError(f"the compressed response is damaged: {error}") from None
    if not decompressor.eof:
        raise httpx2.DecodingError("the compressed response is cut")


@contextlib.contextmanager
def _errors_of_httpx() -> Iterator[None]:
    """Turns the lower library's errors into those that the openai client knows."""
    try:
        yield
    except httpcore2.ConnectTimeout as error:
        raise httpx2.ConnectTimeout(str(error)) from error
    except httpcore2.TimeoutException as error:
        raise httpx2.ReadTimeout(str(error)) from error
    except (httpcore2.ConnectError, httpcore2.ProxyError) as error:
        raise httpx2.ConnectError(str(error)) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise httpx2.ReadError(str(error)) from error


def _proxy_for(url: str) -> httpcore2.Proxy | None:
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    named = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    user, password = urllib.parse.unquote(named.username or ""), urllib.parse.unquote(named.password or "")
    address = f"{named.scheme}://{named.netloc.rpartition('@')[2]}"
    return httpcore2.Proxy(url=address, auth=(user, password) if user else None)
