"""What may happen to a request on its way, on real sockets, and what must come of it."""

import _thread
import contextlib
import gzip
import os
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

from krakenbot.clock import Clock, StopRequestedError
from krakenbot.errors import Cause, LaterError, UnansweredError
from krakenbot.kraken import transport
from krakenbot.kraken.client import Client
from krakenbot.kraken.transport import ANSWER_BYTES_MAX, UrllibTransport, tls_context
from tests import slow
from tests.clients import signing
from tests.folders import own_folder

KEY, SECRET = "the-key", "c2VjcmV0IHNlY3JldCBzZWNyZXQ="
OK = b'{"error":[],"result":{"ok":1}}'
HEAD = b"HTTP/1.1 200 OK\r\n"
LIMIT_S = 0.5
RESET = b"\x01\0\0\0\0\0\0\0"  # SO_LINGER of no seconds: closing sends a reset.

UNASKED = count(1)  # Ports of hosts that nothing is remembered of, where names are looked up by us.

Serve = Callable[["Server", socket.socket], None]


def answer(body: bytes = OK, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = (b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Server:
    """A listening socket; `serve` gets each connection. Keeps the requests that came in whole."""

    def __init__(self, serve: Serve, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._serve, self._context = serve, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # Else the thread still accepts one more.
        self._listener.close()

    def request(self, connection: socket.socket) -> bytes:
        """Return one request, or nothing when the other side hangs up."""
        text = b""
        while b"\r\n\r\n" not in text:
            chunk = connection.recv(65536)
            if not chunk:
                return b""
            text += chunk
        head, _, body = text.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.split(b":")[1]):
                    body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._context is not None and not getattr(self._serve, "is_raw", False):
                with self._context.wrap_socket(connection, server_side=True) as secure:
                    self._serve(self, secure)
            else:
                self._serve(self, connection)


def says(*parts: bytes) -> Serve:
    def serve(server: Server, connection: socket.socket) -> None:
        server.request(connection)
        for part in parts:
            connection.sendall(part)

    return serve


def drips(text: bytes) -> Serve:
    def serve(server: Server, connection: socket.socket) -> None:
        server.request(connection)
        for byte in text:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return serve


def resets(text: bytes = b"") -> Serve:
    """Reset after the request, and after a part of the answer if there is one."""

    def serve(server: Server, connection: socket.socket) -> None:
        server.request(connection)
        connection.sendall(text)
        time.sleep(0.02 if text else 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    return serve


def raw(serve: Serve) -> Serve:
    """Let it act on the bare connection, before any TLS."""
    serve.is_raw = True
    return serve


@raw
def silent(server: Server, connection: socket.socket) -> None:
    with contextlib.suppress(ValueError):
        server.request(connection)
    time.sleep(3)


@raw
def reset_at_once(server: Server, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def reset_in_request(server: Server, connection: socket.socket) -> None:
    connection.recv(20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def endless(server: Server, connection: socket.socket) -> None:
    server.request(connection)
    connection.sendall(HEAD + b"\r\n")
    for _ in range(40):
        connection.sendall(b"x" * 1_000_000)


HINTS = b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWERED, UNREACHABLE, UNANSWERED = "answered", "unreachable", "unanswered"
EITHER = f"{UNREACHABLE} or {UNANSWERED}"
GZIP = answer(gzip.compress(OK), b"Content-Encoding: gzip")
MOVED = answer(b"", b"Location: http://127.0.0.1:1/", status=b"307 Moved")
HUGE = HEAD + b"Content-Length: %d\r\n\r\n" % 10**12
# Whether a public read, a private read or an order: the same must come of it. What is answered,
UNDERSTOOD: dict[str, Serve] = {
    "an answer": says(answer()),
    "a length that is none": says(HEAD + b"Content-Length: -5\r\n\r\n" + OK),
    "no length": says(HEAD + b"\r\n" + OK),
    "chunks": says(CHUNKED, b"%x\r\n" % len(OK), OK, b"\r\n0\r\n\r\n"),
    "100 before": says(b"HTTP/1.1 100 Continue\r\n\r\n", answer()),
    "103 before": says(HINTS * 3, answer()),
    "garbage after": says(answer(), b"HTTP/1.1 200 OK\r\n\r\n{}"),
    "old HTTP": says(b"HTTP/0.9 200 OK\r\n\r\n" + OK),
}
# and what is not, with and without TLS,
LOST: dict[str, Serve] = {
    "reset during the request": reset_in_request,
    "reset after the request": resets(),
    "reset during the answer": resets(answer()[:-9]),
    "closed after the request": says(),
    "half the headers": says(HEAD + b"Conte"),
    "half an answer": says(answer()[:-9]),
    "an empty answer": says(answer(b"")),
    "one byte at a time": drips(answer()),
    "headers without end": drips(HEAD + b"X: y\r\n" * 99),
    "chunks of one byte": drips(CHUNKED + b"1\r\nx\r\n" * 99),
    "a length too short": says(HEAD + b"Content-Length: 9\r\n\r\n" + OK),
    "a length too long": says(HEAD + b"Content-Length: 99\r\n\r\n" + OK),
    "chunks that end early": says(CHUNKED, b"%x\r\n" % len(OK), OK),
    "chunks of no size": says(CHUNKED, b"zz\r\n", OK),
    "a chunk of negative size": says(CHUNKED, b"-5\r\n", OK),
    "103 and nothing more": says(HINTS),
    "garbage at once": says(b"SSH-2.0-x\r\n"),
    "unknown HTTP": says(b"HTTP/7.3 200 OK\r\n\r\n" + OK),
    "a page": says(answer(b"<html>", status=b"502 Bad Gateway")),
    "gzip unasked": says(GZIP),
    "a redirect": says(MOVED),
    "over 8 MiB": endless,
    "over 8 MiB, announced": says(HUGE, b"x" * (ANSWER_BYTES_MAX + 9)),
    "too many headers": says(HEAD + b"A: b\r\n" * 200 + b"\r\n" + OK),
    "a header too long": says(HEAD + b"A: " + b"x" * 100_000),
}
# each with what comes of it without TLS, and with TLS.
FATES: list[tuple[str, Serve, str, str]] = [
    *((name, serve, ANSWERED, ANSWERED) for name, serve in UNDERSTOOD.items()),
    *((name, serve, UNANSWERED, UNANSWERED) for name, serve in LOST.items()),
    ("accepted and silent", silent, UNANSWERED, UNREACHABLE),
    ("reset before the request", reset_at_once, EITHER, UNREACHABLE),
]


class Wire(unittest.TestCase):
    def setUp(self) -> None:
        self.context: ssl.SSLContext | None = None
        self.clock = Clock()

    def serve(self, serve: Serve) -> Server:
        server = Server(serve, self.context)
        self.addCleanup(server.close)
        return server

    def client(
        self, port: int, limit_s: float = LIMIT_S, *, key: str = KEY, **options: Any
    ) -> Client:
        scheme = "https" if self.context else "http"
        url, wire = f"{scheme}://localhost:{port}", UrllibTransport(limit_s, **options)
        return signing(wire, url, self.clock, key=key, secret=SECRET)

    def outcome(self, ask: Callable[[], Any]) -> str:
        """Return what came of it, and see that it came in time."""
        began = time.monotonic()
        try:
            self.assertEqual({"ok": 1}, ask())
            return ANSWERED
        except UnansweredError:
            return UNANSWERED
        except LaterError as error:
            self.assertIs(Cause.UNREACHABLE, error.cause)
            return UNREACHABLE
        finally:
            self.assertLess(time.monotonic() - began, LIMIT_S + 1)

    def kinds(self, port: int, limit_s: float = LIMIT_S) -> Iterator[tuple[str, Callable[[], Any]]]:
        client = self.client(port, limit_s)
        yield "a public read", lambda: client.public("Time")
        yield "a private read", lambda: client.private("Balance")
        yield "an order", lambda: client.private("AddOrder", {"volume": "1"})

    def assert_each(self, outcome: str, port: int, limit_s: float = LIMIT_S) -> None:
        for kind, ask in self.kinds(port, limit_s):
            with self.subTest(kind):
                self.assertEqual(outcome, self.outcome(ask))


class TestFates(Wire):
    over_tls = False

    def test_whatever_happens_on_the_way_means_what_it_must_and_is_sent_once(self) -> None:
        def came_of(serve: Serve, number: int) -> tuple[str, str, int]:
            server = self.serve(serve)
            kind, ask = [*self.kinds(server.port)][number]
            return kind, self.outcome(ask), len(server.requests)

        each = [(fate, number) for number in range(3) for fate in FATES]
        with ThreadPoolExecutor(24) as pool:
            found = pool.map(lambda one: came_of(one[0][1], one[1]), each)
            for ((name, _, *wanted), _), (kind, result, requests) in zip(each, found, strict=True):
                with self.subTest(name, kind=kind):
                    self.assertIn(result, wanted[self.over_tls])
                    self.assertLessEqual(requests, 1, "it was sent twice")

    def test_nobody_listening_is_unreachable(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.assert_each(UNREACHABLE, port)

    def test_each_request_has_a_connection_of_its_own_that_is_closed_after_it(self) -> None:
        left: queue.Queue[bytes] = queue.Queue()

        def serve(server: Server, connection: socket.socket) -> None:
            server.request(connection)
            connection.sendall(answer())
            left.put(connection.recv(1))

        for _, ask in self.kinds(self.serve(serve).port):
            self.assertEqual(ANSWERED, self.outcome(ask))
            self.assertEqual(b"", left.get(timeout=2))


@unittest.skipIf(shutil.which("openssl") is None, "no openssl to make certificates with")
class TestFatesOverTls(TestFates):
    over_tls = True

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.folder = own_folder(cls)
        words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        words += " -keyout key.pem -out cert.pem -subj /CN=localhost"
        words += " -addext subjectAltName=DNS:localhost"
        command = ["openssl", *words.split()]
        subprocess.run(command, cwd=cls.folder, check=True, capture_output=True)

    def setUp(self) -> None:
        super().setUp()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        roots = {"SSL_CERT_FILE": str(self.folder / "cert.pem")}
        self.enterContext(mock.patch.dict(os.environ, roots))
        tls_context.cache_clear()
        self.addCleanup(tls_context.cache_clear)

    def test_no_tls_on_the_other_side_is_unreachable(self) -> None:
        @raw
        def plain(server: Server, connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(answer())

        self.assert_each(UNREACHABLE, self.serve(plain).port)

    def test_a_proxy_is_asked_for_a_tunnel_and_sees_no_key(self) -> None:
        server = self.serve(says(answer()))
        seen: list[bytes] = []

        @raw
        def tunnel(proxy: Server, connection: socket.socket) -> None:
            seen.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with socket.create_connection(("127.0.0.1", server.port)) as far:
                back = threading.Thread(target=_copy, args=(far, connection), daemon=True)
                back.start()
                _copy(connection, far)

        proxy = self.serve(tunnel)
        client = self.client(server.port, proxy=f"http://127.0.0.1:{proxy.port}")
        with mock.patch.dict(os.environ, {"no_proxy": "*"}):
            self.assertEqual({"ok": 1}, client.private("Balance"))
        self.assertTrue(seen[0].startswith(b"CONNECT localhost:%d" % server.port))
        self.assertNotIn(KEY.encode(), seen[0])
        self.assertIn(b"Host: localhost:%d" % server.port, server.requests[0])

    def test_a_proxy_that_refuses_or_talks_nonsense_is_unreachable(self) -> None:
        for words in (b"HTTP/1.1 403 No\r\n\r\n", b"SSH-2.0-x\r\n", b""):

            @raw
            def refuse(proxy: Server, connection: socket.socket, words: bytes = words) -> None:
                connection.recv(65536)
                connection.sendall(words)

            proxy = self.serve(refuse)
            client = self.client(1, proxy=f"http://127.0.0.1:{proxy.port}")
            with self.subTest(words):
                self.assertEqual(UNREACHABLE, self.outcome(partial(client.private, "Balance")))

    def test_a_silent_address_of_a_proxy_leaves_the_others_their_time(self) -> None:
        asked = threading.Event()

        @raw
        def silent(proxy: Server, connection: socket.socket) -> None:
            asked.wait(3)

        @raw
        def refuse(proxy: Server, connection: socket.socket) -> None:
            asked.set()

        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        ports = [self.serve(serve).port for serve in (silent, refuse)]
        found = [(*kind, ("127.0.0.1", port)) for port in ports]
        client = self.client(1, 0.6, proxy=f"http://localhost:{ports[0]}")
        with mock.patch.object(socket, "getaddrinfo", return_value=found):
            self.assertEqual(UNREACHABLE, self.outcome(partial(client.private, "Balance")))
        self.assertTrue(asked.is_set())


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


class TestAddresses(Wire):
    def setUp(self) -> None:
        super().setUp()
        self.living = self.serve(says(answer()))
        # A queue of connections that is full swallows every further one, as a dead host does.
        full = socket.socket()
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        self.addCleanup(full.close)
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
            self.addCleanup(waiting.close)
        time.sleep(0.05)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            refusing = listener.getsockname()[1]
        self.ports = {"dead": full.getsockname()[1], "no": refusing, "yes": self.living.port}

    def resolves_to(self, words: str) -> None:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [(*kind, ("127.0.0.1", self.ports[word])) for word in words.split()]
        self.enterContext(mock.patch.object(socket, "getaddrinfo", return_value=found))

    def test_one_address_that_works_is_enough_within_the_time_limit(self) -> None:
        for words in ("yes", "yes dead", "no yes", "dead yes", "dead dead yes", "no dead no yes"):
            self.resolves_to(words)
            for number, (kind, ask) in enumerate(self.kinds(next(UNASKED))):
                with self.subTest(words, kind=kind):
                    began = time.monotonic()
                    self.assertEqual(ANSWERED, self.outcome(ask))
                    if number:
                        self.assertLess(time.monotonic() - began, LIMIT_S / 3, "not tried first")

    @slow
    def test_dead_addresses_take_the_time_limit_once_and_not_each(self) -> None:
        for words in ("dead", "dead dead", "dead dead dead dead", "no no", "dead no dead no"):
            self.resolves_to(words)
            self.assert_each(UNREACHABLE, 1)
        self.assertEqual([], self.living.requests)

    def test_an_address_that_worked_and_died_is_left_for_the_others(self) -> None:
        mortal = self.serve(says(answer()))
        self.ports["mortal"] = mortal.port
        ask = partial(self.client(next(UNASKED)).public, "Time")
        self.resolves_to("mortal yes")
        self.assertEqual((ANSWERED, 1), (self.outcome(ask), len(mortal.requests)))
        mortal.close()
        self.assertEqual((ANSWERED, 1), (self.outcome(ask), len(self.living.requests)))

    def test_an_address_that_hangs_up_is_left_for_the_others(self) -> None:
        self.ports["sick"] = self.serve(says()).port
        client, outcomes = self.client(next(UNASKED)), set[str]()
        for order in ["sick yes", "yes sick"] * 2:
            self.resolves_to(order)
            outcomes.add(self.outcome(partial(client.public, "Time")))
        self.assertIn(ANSWERED, outcomes)


class TestNames(Wire):
    def slow(self) -> None:
        """Let looking up a name last until the end of the test."""
        done = threading.Event()
        self.addCleanup(done.set)

        def look_up(*_: Any, **__: Any) -> list[Any]:
            done.wait(9)
            return []

        patch = mock.patch.object(socket, "getaddrinfo", side_effect=look_up)
        self.lookups = self.enterContext(patch)

    def test_a_name_that_is_unknown_is_unreachable(self) -> None:
        for answers in (OSError("no such name"), [[]], UnicodeError("label too long")):
            with mock.patch.object(socket, "getaddrinfo", side_effect=answers):
                outcome = self.outcome(partial(self.client(1).public, "Time"))
                self.assertEqual(UNREACHABLE, outcome)

    def test_a_slow_lookup_ends_at_the_time_limit_and_is_not_begun_again(self) -> None:
        self.slow()
        self.assert_each(UNREACHABLE, next(UNASKED), 0.15)
        self.assertEqual(1, self.lookups.call_count)

    def test_a_slow_lookup_is_given_up_when_the_program_is_to_stop(self) -> None:
        self.slow()
        client = self.client(next(UNASKED), 60, is_stopping=lambda: True)
        self.assertEqual(UNREACHABLE, self.outcome(partial(client.private, "AddOrder", {})))

    def test_a_signal_in_the_instant_in_which_the_lookup_starts_ends_the_read(self) -> None:
        start = _thread.start_new_thread

        def interrupted(*arguments: Any) -> None:
            start(*arguments)
            time.sleep(0.05)  # Until the thread runs.
            raise StopRequestedError

        with mock.patch.object(_thread, "start_new_thread", interrupted):
            self.assertRaises(StopRequestedError, self.client(1).public, "Time")

    def test_a_signal_in_the_instant_before_an_answer_is_opened_leaves_no_traceback(self) -> None:
        with mock.patch.object(sys, "unraisablehook") as said:
            # A signal cannot be made to come in just that instant.
            transport._Response.__new__(transport._Response)
        said.assert_not_called()

    def test_a_signal_ends_a_read_in_the_middle_of_a_slow_lookup(self) -> None:
        self.slow()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.clock.stop_on_signals()
        client = self.client(next(UNASKED), 60)
        sender = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        sender.start()
        self.addCleanup(sender.join)
        began = time.monotonic()
        self.assertRaises(StopRequestedError, client.private, "Balance")
        self.assertLess(time.monotonic() - began, 1.5)
