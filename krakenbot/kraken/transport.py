"""One HTTP request: sent at most once, on its own connection, in a bounded time."""

import _thread
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
from urllib.parse import urlsplit

from krakenbot import log
from krakenbot.errors import Cause, LaterError, UnansweredError

ANSWER_BYTES_MAX = 8 * 1024 * 1024
CONNECT_MAX_S = 4.0  # For one address while there are others to try.
LOOK_S = 0.25  # How often a slow name lookup checks for a request to stop.
_BROKEN = (OSError, ValueError, RuntimeError, http.client.HTTPException)
_lookups: dict[tuple[str, int], "_Lookup"] = {}
_answering: dict[tuple[str, int], Any] = {}  # The address of each host that answered last.


class Transport(Protocol):
    """Raises LaterError (UNREACHABLE) if no byte was sent, UnansweredError if any may have been."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """Return status and body of the answer."""


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
            _warn_of_unused_proxies()
        self._timeout_s, self._proxy, self._is_stopping = timeout_s, proxy, is_stopping
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self)

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
                problem = f"it is encoded as {encoding:.20}, which was not requested"
            else:
                return response.status, answer
        # Raised outside of `except`, because a library error can quote a header.
        raise UnansweredError(f"no complete answer from {host}: {problem}")

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> Any:
        return self._open(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> Any:
        if self._proxy:
            request.set_proxy(urlsplit(self._proxy).netloc, "http")
        return self._open(_TlsConnection, request, context=tls_context())

    def _open(self, kind: Any, request: urllib.request.Request, **options: Any) -> Any:
        return self.do_open(kind, request, is_stopping=self._is_stopping, **options)


class _Response(http.client.HTTPResponse):
    # A signal may leave a response without it, about which Python 3.13 and newer complain.
    fp = None  # type: ignore[assignment]

    def begin(self) -> None:
        """Read status and headers; interim answers (1xx) before them are skipped."""
        super().begin()
        while self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _Connection(http.client.HTTPConnection):
    """A connection for one request; a single deadline bounds all of its steps."""

    response_class = _Response
    sock: Any

    def __init__(self, host: str, *, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(host, **options)
        self._deadline = time.monotonic() + options["timeout"]
        self._is_stopping = is_stopping

    def connect(self) -> None:
        """Connect to the first address that answers, with TLS; LaterError when none does in time.

        Each address gets its share of the time left; the one that answered last comes first.
        """
        host = self.host, self.port
        try:
            addresses = _look_up(host, self._deadline, self._is_stopping)
            addresses.sort(key=lambda address: address != _answering.get(host))
            while not self._connect_to(addresses.pop(0), len(addresses)):
                pass
        except _BROKEN as error:
            problem = f"{self.host} cannot be reached: {_name(error)}"
            raise LaterError(problem, cause=Cause.UNREACHABLE) from None
        self.sock.deadline = self._deadline

    def _connect_to(self, address: Any, others: int) -> bool:
        """Return whether it worked; raise the error if there are no others to try."""
        share_s = _left(self._deadline) / (others + 1)
        deadline = time.monotonic() + (min(share_s, CONNECT_MAX_S) if others else share_s)
        # HTTPConnection.connect gets its socket from this, then adds tunnel and TLS.
        self._create_connection = lambda *_: _open(address, deadline)
        try:
            super().connect()
        except _BROKEN:
            if self.sock is not None:
                self.sock.close()
                self.sock = None
            if not others:
                raise
            return False
        _answering[self.host, self.port] = address
        return True


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Reading:
    """A socket whose reads all end at one deadline, however slowly the bytes arrive."""

    deadline: float

    def recv_into(self: Any, *args: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*args)  # type: ignore[misc, no-any-return]


class _Socket(_Reading, socket.socket):
    pass


class _TlsSocket(_Reading, ssl.SSLSocket):
    pass


def _open(address: Any, deadline: float) -> _Socket:
    """Return a socket connected to an address as returned by getaddrinfo."""
    family, kind, protocol, _, place = address
    sock = _Socket(family, kind, protocol)
    try:
        sock.deadline = deadline
        sock.settimeout(_left(deadline))
        sock.connect(place)
        sock.settimeout(_left(deadline))  # For the TLS handshake and the request.
    except BaseException:
        sock.close()
        raise
    return sock


class _Lookup:
    """The lookup of one name. It cannot be cancelled; a later request for the name joins it.

    The thread has no Thread object: a signal that interrupts its start or join leaves it broken.
    """

    def __init__(self, host: tuple[str, int]) -> None:
        self._host = host
        self.addresses: list[Any] = []
        self.error: Exception = OSError("it has no address")
        self.done = threading.Event()
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        _lookups[self._host] = self
        try:
            self.addresses = socket.getaddrinfo(*self._host, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            self.error = error
        finally:
            _lookups.pop(self._host, None)
            self.done.set()


def _look_up(host: tuple[str, int], deadline: float, is_stopping: Callable[[], bool]) -> list[Any]:
    lookup = _lookups.get(host) or _Lookup(host)
    while not lookup.done.wait(min(LOOK_S, _left(deadline))):
        if is_stopping():
            raise OSError("stopped while its name was looked up")
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
def _warn_of_unused_proxies() -> None:
    names = {name for name in os.environ if name.lower() in ("https_proxy", "all_proxy")}
    if names:
        log.warning("proxy not used: %s; to use one, set exchange.proxy", ", ".join(sorted(names)))


def _name(error: BaseException) -> str:
    """Return what went wrong without quoting anything that was sent."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, OSError):
        return reason.strerror or str(reason) or type(reason).__name__
    return type(reason).__name__
