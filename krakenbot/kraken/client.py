"""Kraken's REST interface: one HTTP attempt and what its answer means.

Nothing here repeats an order. A read whose nonce was refused is asked once more.
"""

import http.client
import io
import json
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cache, partial
from typing import Any, NoReturn, Protocol
from urllib.parse import urlencode, urlsplit

from krakenbot import __version__, log
from krakenbot.clock import Clock
from krakenbot.errors import Cause, KeyRefusedError, LaterError, RefusedError, UnansweredError
from krakenbot.kraken.signing import sign
from krakenbot.model import Secret

ANSWER_BYTES_MAX = 8 * 1024 * 1024
IDLE_MAX_S = 10.0
USER_AGENT = f"krakenbot/{__version__}"
_BROKEN = (OSError, ValueError, http.client.HTTPException)

# Methods that change something. Without `live`, AddOrder is sent as a check only, the others not.
READS = frozenset(
    (
        "Balance",
        "BalanceEx",
        "TradeBalance",
        "OpenOrders",
        "ClosedOrders",
        "QueryOrders",
        "TradesHistory",
        "QueryTrades",
        "OpenPositions",
        "Ledgers",
        "QueryLedgers",
        "TradeVolume",
        "GetApiKeyInfo",
        "GetWebSocketsToken",
        "CreditLines",
        "DepositMethods",
        "DepositAddresses",
        "DepositStatus",
        "WithdrawMethods",
        "WithdrawAddresses",
        "WithdrawInfo",
        "WithdrawStatus",
        "ExportStatus",
    )
)
POINTS = {"Ledgers": 2, "QueryLedgers": 2, "TradesHistory": 2, "QueryTrades": 2, "ClosedOrders": 2}
COUNTER_MAX = 15.0  # Kraken's Starter tier.
COUNTER_DECAY = 0.33


class Transport(Protocol):
    """One HTTP request. LaterError(sent=False) if no byte left, UnansweredError if some may."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, fresh: bool
    ) -> tuple[int, bytes]: ...


class Client:
    """Calls of Kraken's methods by name. Without credentials only the public ones work."""

    def __init__(
        self,
        transport: Transport,
        base_url: str,
        clock: Clock,
        *,
        key: Secret | None = None,
        secret: Secret | None = None,
        next_nonce: Callable[[int], int] | None = None,
        live: bool = False,
    ) -> None:
        self._transport = transport
        self._base_url = base_url
        self._clock = clock
        self._key = key
        self._secret = secret
        self._next_nonce = next_nonce
        self._live = live
        self._counter = 0.0
        self._counted = clock.monotonic()

    def public(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        """Return the result of a public method."""
        url = f"{self._base_url}/0/public/{method}"
        if params:
            url += "?" + urlencode(params)
        status, body = self._transport.send("GET", url, {"User-Agent": USER_AGENT}, None, False)
        return result_of(method, status, body)

    def private(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        """Return the result of a private method; orders go out once, on a fresh connection."""
        is_read = method in READS
        params = dict(params or {})
        if not is_read and not self._live:
            if method != "AddOrder":
                raise RefusedError(f"{method} changes the account and needs live mode and --live")
            params["validate"] = "true"
        if method != "AddOrder":
            self._spend(POINTS.get(method, 1))
        try:
            return self._once(method, params, fresh=not is_read)
        except InvalidNonceError as error:
            if not is_read:
                raise RefusedError(str(error)) from error
        try:
            return self._once(method, params, fresh=False)
        except InvalidNonceError as error:
            raise KeyRefusedError(
                f"Kraken refused two nonces in a row ({error}): another program uses this key, or "
                "it has seen larger nonces. Give each program a key of its own",
                nonce=True,
            ) from error

    def _once(self, method: str, params: Mapping[str, object], fresh: bool) -> Any:
        if self._key is None or self._secret is None or self._next_nonce is None:
            raise KeyRefusedError(f"{method} needs an API key and there is none")
        nonce = str(self._next_nonce(self._clock.nonce()))
        path = f"/0/private/{method}"
        body = urlencode({**params, "nonce": nonce}).encode()
        headers = {
            "User-Agent": USER_AGENT,
            "Content-Type": "application/x-www-form-urlencoded",
            "API-Key": self._key.reveal(),
            "API-Sign": sign(self._secret, path, nonce, body),
        }
        status, answer = self._transport.send("POST", self._base_url + path, headers, body, fresh)
        return result_of(method, status, answer)

    def _spend(self, points: int) -> None:
        """Wait until Kraken's REST counter has room, as the lowest tier counts."""
        now = self._clock.monotonic()
        self._counter = max(0.0, self._counter - COUNTER_DECAY * (now - self._counted)) + points
        self._counted = now
        excess = self._counter - COUNTER_MAX
        if excess > 0:
            self._clock.wait(excess / COUNTER_DECAY)


class InvalidNonceError(Exception):
    """The nonce was not above the last one; nothing was executed."""


def result_of(method: str, status: int, body: bytes) -> Any:
    """Return the result inside Kraken's envelope, or raise what its errors mean.

    Anything that is not such an envelope is UnansweredError, whatever the HTTP status says.
    """
    try:
        envelope = parse_json(body)
    except ValueError:
        raise UnansweredError(f"{method}: HTTP {status} without a JSON answer") from None
    errors = envelope.get("error") if isinstance(envelope, dict) else None
    if not isinstance(errors, list) or not all(isinstance(e, str) for e in errors):
        raise UnansweredError(f"{method}: HTTP {status} with an answer of unknown form")
    failures = [re.sub(r"\s*:\s*", ":", e.strip()) for e in errors if not e.startswith("W")]
    if failures:
        raise_verdict(method, failures)
    for warning in errors:
        log.warning("exchange warns method=%s warning=%s", method, warning)
    if status != 200 or envelope.get("result") is None:
        raise UnansweredError(f"{method}: HTTP {status} without a result")
    return envelope["result"]


def parse_json(body: bytes) -> Any:
    """Return outside JSON with exact numbers; ValueError for anything odd, however deep."""
    try:
        return json.loads(body, parse_float=Decimal, parse_constant=_refuse_constant)
    except (RecursionError, ArithmeticError):
        raise ValueError("JSON nested too deeply, or a number out of range") from None


# Kraken's errors by what a careful caller does. The first match counts; the worst of several
# errors counts. Source: docs.kraken.com, guide "Errors"; support article 360001491786.
UNKNOWN, STOP, LATER, REFUSED, NONCE = "unknown", "stop", "later", "refused", "nonce"
VERDICTS: tuple[tuple[str, str], ...] = (
    ("EAPI:Invalid nonce", NONCE),
    ("EAPI:Rate limit exceeded", LATER),
    ("EAPI:", STOP),
    ("EAuth:Rate limit", STOP),
    ("EAuth:", STOP),
    ("ESession:", STOP),
    ("EGeneral:Permission denied", STOP),
    ("EGeneral:Temporary lockout", STOP),
    ("EGeneral:Too many requests", STOP),
    ("EGeneral:Invalid arguments:cl_ord_id not unique", UNKNOWN),
    ("EGeneral:Invalid arguments", REFUSED),
    ("EGeneral:Unknown method", REFUSED),
    ("EGeneral:Unknown Method", REFUSED),
    ("EAccount:", STOP),
    ("ETrade:Locked", STOP),
    ("ETrade:User Locked", STOP),
    ("ETrade:Invalid request", REFUSED),
    ("EQuery:", REFUSED),
    ("EOrder:Trading agreement required", STOP),
    ("EOrder:Rate limit exceeded", LATER),
    ("EOrder:Domain rate limit exceeded", LATER),
    ("EOrder:Reduce only:Position is closed", UNKNOWN),
    ("EOrder:", REFUSED),
    ("EBM:limit exceeded", REFUSED),
    ("EService:Market in", LATER),
)
MARKET_WAIT_S, RATE_WAIT_S = 60.0, 15.0
SEVERITY = (UNKNOWN, STOP, NONCE, LATER, REFUSED)


def raise_verdict(method: str, failures: Sequence[str]) -> NoReturn:
    """Raise the error that a list of Kraken's error strings amounts to."""
    verdict = min((_verdict(f) for f in failures), key=SEVERITY.index)
    text = f"{method}: {'; '.join(failures)}"
    if verdict == UNKNOWN:
        raise UnansweredError(text)
    if verdict == STOP:
        raise KeyRefusedError(f"Kraken refused the key or the account: {text}")
    if verdict == NONCE:
        raise InvalidNonceError(text)
    if verdict == LATER:
        is_market = any(f.startswith("EService:Market in") for f in failures)
        raise LaterError(text, wait_s=MARKET_WAIT_S if is_market else RATE_WAIT_S)
    raise RefusedError(text)


def _verdict(failure: str) -> str:
    for prefix, verdict in VERDICTS:
        if failure.startswith(prefix):
            return verdict
    return UNKNOWN


class UrllibTransport(urllib.request.AbstractHTTPHandler):
    """HTTP by a urllib opener with this one handler: no redirect, cookie or proxy from outside.

    `timeout_s` bounds a whole request: connecting, TLS and every read together (the name lookup
    has the resolver's own limits). Reads share one connection while it is busy; an order gets a
    fresh one, since a kept one may die under it without telling whether the order left.
    `on_read` is told when a read begins and when it is over.
    """

    def __init__(self, timeout_s: float, proxy: str | None = None) -> None:
        super().__init__()
        if proxy is None:
            _tell_of_unused_proxies()
        self._timeout_s = timeout_s
        self._proxy = proxy
        self._context: ssl.SSLContext | None = None
        self._kept: http.client.HTTPConnection | None = None
        self._kept_host = ""
        self._used = 0.0
        self.on_read: Callable[[bool], None] = lambda is_reading: None
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self)

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, fresh: bool
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(url, data=body, headers=dict(headers), method=method)
        if fresh:
            self._drop()
        try:
            self.on_read(not fresh)
            answer: Any = self._opener.open(request)
        except BaseException:
            self._drop()  # What is left of this answer must not be taken for the next one.
            raise
        finally:
            self.on_read(False)
        if fresh:
            self._drop()
        status, text = answer
        return status, text

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> Any:
        """Return status and body of one request; called by the opener."""
        deadline = time.monotonic() + self._timeout_s
        host = f"{request.type}://{request.host}"
        if self._kept_host != host or time.monotonic() - self._used > IDLE_MAX_S:
            self._drop()
        if self._kept is not None:
            with suppress(*_BROKEN):
                return self._ask(self._kept, request, deadline)
            # It had died meanwhile. Only reads use a kept connection, so they are asked again.
            self._drop()
            if time.monotonic() >= deadline:
                raise UnansweredError(f"no whole answer from {request.host}: timed out")
        try:
            self._kept, self._kept_host = self._connect(request, deadline), host
        except _BROKEN as error:
            problem = f"{request.host} cannot be reached: {_name(error)}"
            raise LaterError(problem, cause=Cause.UNREACHABLE) from None
        try:
            return self._ask(self._kept, request, deadline)
        except _BROKEN as error:
            problem = _name(error)
        self._drop()
        # Raised out here, because a library error can quote the header that it choked on.
        raise UnansweredError(f"no whole answer from {request.host}: {problem}")

    https_open = http_open

    def _drop(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _connect(
        self, request: urllib.request.Request, deadline: float
    ) -> http.client.HTTPConnection:
        left_s = max(0.001, deadline - time.monotonic())
        if request.type == "http":
            return _opened(http.client.HTTPConnection(request.host, timeout=left_s))
        context = self._context = self._context or tls_context()
        if self._proxy is None:
            connection = _opened(
                http.client.HTTPSConnection(request.host, timeout=left_s, context=context)
            )
            name: Any = connection.host.encode()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=name)
            return connection
        proxy = urlsplit(f"//{self._proxy}").netloc
        tunnel = http.client.HTTPSConnection(proxy, timeout=left_s, context=context)
        tunnel.set_tunnel(request.host)
        tunnel.connect()
        return tunnel

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        request: urllib.request.Request,
        deadline: float,
    ) -> tuple[int, bytes]:
        headers = {
            name.title().replace("Api-", "API-"): value for name, value in request.header_items()
        }
        connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
        timed: Any = partial(_TimedResponse, deadline)
        connection.response_class = timed
        data = request.data if isinstance(request.data, bytes) else None
        connection.request(request.get_method(), request.selector, data, headers)
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX + 1)
        if len(body) > ANSWER_BYTES_MAX:
            self._drop()
            raise UnansweredError(f"an answer of {request.host} is over {ANSWER_BYTES_MAX} bytes")
        self._used = time.monotonic()
        if response.will_close:
            self._drop()
        return response.status, body


def _opened(connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
    """Return the connection with its socket connected.

    The host goes down as bytes: for a str Python loads IDNA, whose tables take 0.4 MiB.
    """
    address: Any = (connection.host.encode(), connection.port)
    connection.sock = socket.create_connection(address, connection.timeout)
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@cache
def _tell_of_unused_proxies() -> None:
    names = {name for name in os.environ if name.lower() in ("https_proxy", "all_proxy")}
    if names:
        log.warning("proxy not used: %s; exchange.proxy would be", ", ".join(sorted(names)))


class _TimedResponse(http.client.HTTPResponse):
    """A response whose every read ends at one deadline, however slowly bytes drip in."""

    def __init__(self, deadline: float, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_TimedReader(raw, sock, deadline))


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(remaining)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def tls_context() -> ssl.SSLContext:
    """Return a context that checks names and roots, TLS 1.2 or newer.

    Where the system keeps its roots in a folder of hashed links, only the one that is needed is
    ever read: the same trust as the whole bundle, a hundred times faster to set up.
    """
    paths = ssl.get_default_verify_paths()
    folder = paths.capath
    if folder and not os.environ.get(paths.openssl_cafile_env) and _is_hashed(folder):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(capath=folder)
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_hashed(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(re.fullmatch(r"[0-9a-f]{8}\.\d+", entry.name) for entry in entries)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _name(error: BaseException) -> str:
    """Return what went wrong without quoting anything that was sent."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return type(error).__name__
