"""One HTTP request: sent at most once, on its own connection, in a bounded time."""

import _thread
import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent import futures
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

from krakenbot import log
from krakenbot.errors import Cause, LaterError, UnansweredError

ANSWER_BYTES_MAX = 8 * 1024 * 1024
CONNECT_MAX_S = 4.0  # For one address while there are others to try.
LOOK_S = 0.25  # How often a slow name lookup checks for a request to stop.
_BROKEN = (OSError, ValueError, RuntimeError, http.client.HTTPException)
_lookups: dict[tuple[str, int], futures.Future[list[Any]]] = {}
_answering: dict[str, Any] = {}  # By host, the address that answered last.


class UrllibTransport(urllib.request.AbstractHTTPHandler):
    """HTTP by a urllib opener with only this handler: no redirects, no proxy from the environment.

    `timeout_s` bounds a whole request: name lookup, all addresses tried, TLS and every read.
    `proxy` is `http://host:port`. A slow name lookup ends when `is_stopping` says so.
    """

    def __init__(
        self,
        timeout_s: float,
        proxy: str | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        if proxy is None:
            warn_of_unused_proxies()
        self.timeout_s, self._proxy, self._is_stopping = timeout_s, proxy, is_stopping
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self)

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """Return status and body of the answer.

        Raises LaterError (UNREACHABLE) if no byte was sent, UnansweredError if any may have been.
        """
        request = urllib.request.Request(url, body, dict(headers), method=method)
        host = request.host
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                answer = response.read(ANSWER_BYTES_MAX + 1)
        except _BROKEN as error:
            problem = _name(error)
        else:
            if len(answer) > ANSWER_BYTES_MAX:
                problem = f"it is over the limit of {ANSWER_BYTES_MAX >> 20} MiB"
            elif response.length:
                problem = f"{response.length} bytes of it are missing"
            else:
                return response.status, answer
        _answering.pop(urlsplit(url).hostname or "", None)  # Another address may answer.
        # Raised outside of `except`, because a library error can quote a header.
        raise UnansweredError(f"no complete answer from {host}: {problem}")

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> Any:
        connection: Any = partial(_Connection, self._is_stopping)
        return self.do_open(connection, request)

    def https_open(self, request: urllib.request.Request) -> Any:
        if self._proxy:
            request.set_proxy(urlsplit(self._proxy).netloc, "http")
        connection: Any = partial(_TlsConnection, self._is_stopping, context=tls_context())
        return self.do_open(connection, request)


class _Response(http.client.HTTPResponse):
    """A response whose reads all end at one deadline, however slowly the bytes arrive."""

    # A signal may leave a response without it, about which Python 3.13 and newer complain.
    fp: Any = None

    def __init__(self, deadline: float, sock: socket.socket, **options: Any) -> None:
        super().__init__(sock, **options)
        read = self.fp.raw.readinto

        def read_in_time(buffer: Any) -> int | None:
            sock.settimeout(_left(deadline))
            return read(buffer)  # type: ignore[no-any-return]

        # All reads, of lines and chunks too, go through this method of the buffered file's raw one.
        # `sock` is the TLS one, if there is one.
        self.fp.raw.readinto = read_in_time

    def _read_status(self) -> tuple[str, int, str]:
        """Read a status line; http.client skips an answer of status 100, so all interim ones."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if status < 200 else status, reason


class _Connection(http.client.HTTPConnection):
    """A connection for one request; a single deadline bounds all of its steps."""

    sock: Any
    response_class: Any

    def __init__(self, is_stopping: Callable[[], bool], host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._is_stopping, self._deadline = is_stopping, time.monotonic() + options["timeout"]

    def connect(self) -> None:
        """Connect to the first address that answers, with TLS; LaterError when none does in time.

        Each address gets its share of the time left; the one that answered last comes first.
        """
        host = self.host, self.port
        try:
            addresses = _look_up(host, self._deadline, self._is_stopping)
            addresses.sort(key=lambda address: address != _answering.get(self.host))
            while True:
                address = addresses.pop(0)
                try:
                    self._connect_to(address, len(addresses))
                    break
                except _BROKEN:
                    if self.sock is not None:
                        self.sock.close()
                    if not addresses:
                        raise
        except _BROKEN as error:
            problem = f"{self.host} cannot be reached: {_name(error)}"
            raise LaterError(problem, cause=Cause.UNREACHABLE) from None
        _answering[self.host] = address
        self.response_class = partial(_Response, self._deadline)

    def _connect_to(self, address: Any, others: int) -> None:
        """Connect to one address, leaving each of the others its share of the time."""
        family, kind, protocol, _, place = address  # As returned by getaddrinfo.
        share_s = _left(self._deadline) / (others + 1)
        deadline = time.monotonic() + (min(share_s, CONNECT_MAX_S) if others else share_s)
        self.sock = socket.socket(family, kind, protocol)
        self.sock.settimeout(_left(deadline))
        self.sock.connect(place)
        self.sock.settimeout(_left(deadline))  # For the TLS handshake and the request.
        # HTTPConnection.connect gets its socket from this, then adds tunnel and TLS. What a proxy
        # answers must come in this address's time, too.
        self.response_class = partial(_Response, deadline)
        self._create_connection = lambda *_: self.sock
        super().connect()


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


def _look_up(host: tuple[str, int], deadline: float, is_stopping: Callable[[], bool]) -> list[Any]:
    """Return the addresses of a name. A lookup cannot be cancelled; a later request joins it."""
    lookup = _lookups.get(host)
    if lookup is None:
        lookup = futures.Future()
        # No Thread object: a signal that interrupts its start or join leaves it broken.
        _thread.start_new_thread(_resolve, (host, lookup))
    while not futures.wait([lookup], min(LOOK_S, _left(deadline))).done:
        if is_stopping():
            raise OSError("stopped while its name was looked up")
    if not lookup.result():
        raise OSError("it has no address")
    return [*lookup.result()]


def _resolve(host: tuple[str, int], lookup: futures.Future[list[Any]]) -> None:
    _lookups[host] = lookup
    try:
        lookup.set_result(socket.getaddrinfo(*host, type=socket.SOCK_STREAM))
    except (OSError, ValueError) as error:
        lookup.set_exception(error)
    finally:
        _lookups.pop(host, None)


def _left(deadline: float) -> float:
    """Return the seconds until then; TimeoutError when there are none."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


@cache
def tls_context() -> ssl.SSLContext:
    """Return a context that checks names against the system's roots, TLS 1.2 or newer.

    `ssl.create_default_context` would also write the keys to a file that the environment names.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    return context


@cache
def warn_of_unused_proxies() -> None:
    names = {name for name in os.environ if name.lower() in ("https_proxy", "all_proxy")}
    if names:
        log.warning("proxy not used: %s; to use one, set exchange.proxy", ", ".join(sorted(names)))


def _name(error: BaseException) -> str:
    """Return what went wrong without quoting anything that was sent."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, OSError):
        return reason.strerror or str(reason) or type(reason).__name__
    return type(reason).__name__
