"""One HTTP request: put on the wire at most once, on a connection of its own, in a bounded time."""

import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol

from krakenbot import log
from krakenbot.errors import Cause, LaterError, UnansweredError

ANSWER_BYTES_MAX = 8 * 1024 * 1024
CONNECT_MAX_S = 4.0  # For one address while there are others to try.
LOOK_S = 0.25  # How often a slow lookup looks whether the program is to stop.
_BROKEN = (OSError, ValueError, RuntimeError, http.client.HTTPException)
_lookups: dict[tuple[str, int], "_Lookup"] = {}
_answering: dict[tuple[str, int], Any] = {}  # The address of each host that answered last.


class Transport(Protocol):
    """LaterError (UNREACHABLE) if no byte of the request left, UnansweredError if some may have."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """Return status and body of the answer."""


class UrllibTransport:
    """HTTP by a urllib opener that follows no redirect and takes nothing from the environment.

    `timeout_s` bounds a whole request: name lookup, all addresses tried, TLS and every read.
    `proxy` is `http://host:port`. A name lookup ends when `is_stopping` says so.
    """

    def __init__(
        self,
        timeout_s: float,
        proxy: str | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        if proxy is None:
            _tell_of_unused_proxies()
        self._timeout_s = timeout_s
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(_Handler(proxy, is_stopping))

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(url, body, dict(headers), method=method)
        host = request.host
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer = response.read(ANSWER_BYTES_MAX + 1)
        except _BROKEN as error:
            problem = _name(error)
        else:
            encoding = response.headers.get("Content-Encoding", "identity")
            if len(answer) > ANSWER_BYTES_MAX:
                problem = f"it is over {ANSWER_BYTES_MAX} bytes"
            elif response.length:
                problem = f"{response.length} bytes of it are missing"
            elif encoding.lower() != "identity":
                problem = f"it comes in {encoding:.20}, which was not asked for"
            else:
                return response.status, answer
        # Raised out here, because a library error can quote the header that it choked on.
        raise UnansweredError(f"no whole answer from {host}: {problem}")


class _Handler(urllib.request.AbstractHTTPHandler):
    def __init__(self, proxy: str | None, is_stopping: Callable[[], bool]) -> None:
        super().__init__()
        self._proxy = proxy.partition("://")[2].rstrip("/") if proxy else None
        self._is_stopping = is_stopping

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request, is_stopping=self._is_stopping)  # type: ignore[arg-type]

    def https_open(self, request: urllib.request.Request) -> Any:
        if self._proxy:
            request.set_proxy(self._proxy, "http")
        options: dict[str, Any] = {"context": tls_context(), "is_stopping": self._is_stopping}
        return self.do_open(_TlsConnection, request, **options)  # type: ignore[arg-type]


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        """Read status and headers; interim answers (1xx) before them are skipped."""
        super().begin()
        while self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _Connection(http.client.HTTPConnection):
    """A connection for one request, at whose end every step of it ends."""

    response_class = _Response
    sock: Any

    def __init__(self, host: str, *, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(host, **options)
        self._deadline = time.monotonic() + options["timeout"]
        self._is_stopping = is_stopping

    def connect(self) -> None:
        """Connect, with TLS where it is due. LaterError when no address answers in time."""
        try:
            self._connect_any()
        except _BROKEN as error:
            problem = f"{self.host} cannot be reached: {_name(error)}"
            raise LaterError(problem, cause=Cause.UNREACHABLE) from None
        self.sock.deadline = self._deadline

    def _connect_any(self) -> None:
        """Try each address for its share of the time that is left, the one known to work first."""
        host = self.host, self.port
        addresses = _look_up(host, self._deadline, self._is_stopping)
        addresses.sort(key=lambda address: address != _answering.get(host))
        while True:
            address = addresses.pop(0)
            limit_s = _left(self._deadline) / (len(addresses) + 1)
            if addresses:
                limit_s = min(limit_s, CONNECT_MAX_S)
            deadline = time.monotonic() + limit_s
            # Where HTTPConnection.connect gets its socket from; a tunnel and TLS follow there.
            self._create_connection = lambda *_, to=address, by=deadline: _open(to, by)
            try:
                super().connect()
            except _BROKEN:
                if self.sock is not None:
                    self.sock.close()
                    self.sock = None
                if not addresses:
                    raise
            else:
                _answering[host] = address
                return


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Socket(socket.socket):
    """A socket whose every read ends at one moment, however slowly bytes drip in."""

    deadline: float

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*args)


class _TlsSocket(ssl.SSLSocket):
    deadline: float

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*args)


def _open(address: Any, deadline: float) -> _Socket:
    """Return a socket that is connected to an address as getaddrinfo gives it."""
    family, kind, protocol, _, place = address
    sock = _Socket(family, kind, protocol)
    try:
        sock.deadline = deadline
        sock.settimeout(_left(deadline))
        sock.connect(place)
        sock.settimeout(_left(deadline))  # For the request and for what TLS says first.
    except BaseException:
        sock.close()
        raise
    return sock


class _Lookup(threading.Thread):
    """The lookup of one name. It cannot be ended, only left alone; then the next request joins."""

    def __init__(self, host: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._host = host
        self.addresses: list[Any] = []
        self.error: Exception = OSError("it has no address")

    def run(self) -> None:
        try:
            self.addresses = socket.getaddrinfo(*self._host, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            self.error = error
        finally:
            _lookups.pop(self._host, None)


def _look_up(host: tuple[str, int], deadline: float, is_stopping: Callable[[], bool]) -> list[Any]:
    lookup = _lookups.get(host)
    if lookup is None:
        lookup = _lookups[host] = _Lookup(host)
        lookup.start()
    lookup.join(min(LOOK_S, _left(deadline)))
    while lookup.is_alive():
        if is_stopping():
            raise OSError("asked to stop while its name was looked up")
        lookup.join(min(LOOK_S, _left(deadline)))
    if not lookup.addresses:
        raise lookup.error
    return list(lookup.addresses)


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
    context.sslsocket_class = _TlsSocket
    return context


@cache
def _tell_of_unused_proxies() -> None:
    names = {name for name in os.environ if name.lower() in ("https_proxy", "all_proxy")}
    if names:
        log.warning("proxy not used: %s; exchange.proxy would be", ", ".join(sorted(names)))


def _name(error: BaseException) -> str:
    """Return what went wrong without quoting anything that was sent."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, OSError):
        return reason.strerror or str(reason) or type(reason).__name__
    return type(reason).__name__
