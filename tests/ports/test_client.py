import contextlib
import json
import os
import socket
import threading
import time
import unittest
import unittest.mock
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

from krakenbot.clock import StopRequestedError
from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.kraken.client import Client, UrllibTransport
from krakenbot.kraken.signing import sign
from krakenbot.model import Secret
from tests.logs import logged

RECORDED = os.environ.get("TEST_DATA_KRAKEN")
SECRET = Secret(
    "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg=="
)
KEY = Secret("the-key")
OK = b'{"error":[],"result":{"ok":1}}'

REFUSED = """
EGeneral:Invalid arguments
EGeneral:Invalid arguments:volume
EGeneral:Invalid arguments:volume minimum not met
EGeneral:Invalid arguments:price
EGeneral:Invalid arguments:timeinforce
EGeneral:Invalid arguments:trigger
EGeneral:Invalid arguments:Index unavailable
EGeneral:Unknown method
EGeneral:Unknown Method
EQuery:Unknown asset pair
EQuery:Unknown asset
EQuery:Invalid asset pair
EOrder:Invalid order
EOrder:Invalid price
EOrder:Tick size check failed
EOrder:Order minimum not met
EOrder:Cost minimum not met
EOrder:Post only order
EOrder:Unknown order
EOrder:Unknown position
EOrder:Order not editable
EOrder:Not enough leaves qty
EOrder:Cancel pending
ETrade:Invalid request
EOrder:Insufficient funds
EOrder:Insufficient initial margin
EOrder:Insufficient margin
EOrder:Margin allowance exceeded
EBM:limit exceeded:CAL
EOrder:Margin level too low
EOrder:Margin position size exceeded
EOrder:Positions limit exceeded
EOrder:Cannot open position
EOrder:Cannot open opposing position
EOrder:Reduce only:No position exists
EOrder:Reduce only:Cannot increase position
EOrder:Reduce only:One-sided margin
EOrder:Reduce only:Non-PC
EOrder:Reduce only:Non-ECP
EOrder:Something never heard of
""".strip().splitlines()
LATER = """
EAPI:Rate limit exceeded
EOrder:Rate limit exceeded
EOrder:Domain rate limit exceeded
EService:Market in cancel_only mode
EService:Market in post_only mode
EService:Market in limit_only mode
""".strip().splitlines()
# Neither is an order: whether the caller waits or gives up, nothing was executed.
NOT_EXECUTED = ["EOrder:Orders limit exceeded", "EOrder:Scheduled orders limit exceeded"]
STOP = """
EAPI:Invalid key
EAPI:Invalid signature
EAPI:Bad request
EAPI:Feature disabled
EAuth:Account temporary disabled
EAuth:Account unconfirmed
EAuth:Failed
EAuth:Rate limit exceeded
EAuth:Too many requests
ESession:Invalid session
EGeneral:Permission denied
EGeneral:Too many requests
EGeneral:Temporary lockout
EAccount:Invalid permissions
EAccount:Invalid permissions:XBT trading restricted
ETrade:Locked
ETrade:User Locked
EOrder:Trading agreement required
""".strip().splitlines()
UNKNOWN = """
EGeneral:Invalid arguments:cl_ord_id not unique
EService:Throttled
EService: Throttled: 1691000000
EService:Unavailable
EService:Busy
EService:Timeout
EService:Deadline elapsed
EGeneral:Internal error
EGeneral:Internal error:17
EGeneral:Unknown error
EDatabase:Internal error
EOrder:Reduce only:Position is closed
EFunding:Unknown withdraw key
EEarnings:Busy
ENew:Never heard of
no category at all

""".strip("\n").splitlines()
EVERY = [
    (RefusedError, REFUSED),
    (LaterError, LATER),
    (StopError, STOP),
    (UnansweredError, UNKNOWN),
]


class FakeClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    def nonce(self) -> int:
        return 1616492376594

    def set(self, exchange_time: float) -> None:
        raise AssertionError("the client does not set clocks")

    def wait(self, seconds: float) -> None:
        self.time += seconds


class FakeTransport:
    """Answers in turn; the last one for ever. Notes what was sent."""

    def __init__(self, *answers: bytes | tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, Mapping[str, str], bytes | None, bool]] = []

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, fresh: bool
    ) -> tuple[int, bytes]:
        self.requests.append((method, url, headers, body, fresh))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, tuple) else (200, answer)

    def form(self, number: int = -1) -> dict[str, str]:
        body = self.requests[number][3]
        assert body is not None
        return {key: values[0] for key, values in parse_qs(body.decode()).items()}


class Rising:
    def __init__(self) -> None:
        self.last = 0

    def __call__(self, clock_ns: int) -> int:
        self.last = max(clock_ns, self.last + 1)
        return self.last


def client(transport: Any, clock: FakeClock | None = None, *, live: bool = False) -> Client:
    return Client(
        transport,
        "http://127.0.0.1:1",
        clock or FakeClock(),
        key=KEY,
        secret=SECRET,
        next_nonce=Rising(),
        live=live,
    )


def envelope(*errors: str) -> bytes:
    return json.dumps({"error": errors}).encode()


class TestErrors(unittest.TestCase):
    def test_every_error_of_a_read_means_what_a_careful_caller_does_about_it(self) -> None:
        for kind, texts in EVERY:
            for text in texts:
                for body in (
                    envelope(text),
                    json.dumps({"error": [text], "result": {}}).encode(),
                    json.dumps({"error": [text], "result": None}).encode(),
                ):
                    with self.subTest(text), self.assertRaises(kind):
                        client(FakeTransport(body)).private("Balance")

    def test_every_error_of_an_order_means_what_a_careful_caller_does_about_it(self) -> None:
        for kind, texts in EVERY:
            for text in texts:
                transport = FakeTransport(envelope(text))
                with self.subTest(text), self.assertRaises(kind):
                    client(transport, live=True).private("AddOrder", {"pair": "XBTUSD"})
                self.assertEqual(1, len(transport.requests), "an order went out twice")

    def test_too_many_orders_means_that_nothing_was_executed(self) -> None:
        for text in NOT_EXECUTED:
            with self.subTest(text), self.assertRaises((RefusedError, LaterError)):
                client(FakeTransport(envelope(text)), live=True).private("AddOrder", {})

    def test_blanks_round_colons_change_nothing(self) -> None:
        for kind, texts in EVERY:
            for text in texts:
                spaced = " " + text.replace(":", " : ") + " "
                with self.subTest(spaced), self.assertRaises(kind):
                    client(FakeTransport(envelope(spaced))).private("Balance")

    def test_of_several_errors_the_one_that_may_hide_an_order_counts(self) -> None:
        for other in [*REFUSED, *LATER, *STOP, "EAPI:Invalid nonce"]:
            for errors in ((other, "EService:Timeout"), ("EService:Timeout", other)):
                with self.subTest(errors), self.assertRaises(UnansweredError):
                    client(FakeTransport(envelope(*errors)), live=True).private("AddOrder", {})

    def test_of_several_definite_errors_one_that_needs_a_person_counts(self) -> None:
        for other in [*REFUSED, *LATER]:
            with self.subTest(other), self.assertRaises(StopError):
                client(FakeTransport(envelope(other, "EAPI:Invalid key"))).private("Balance")

    def test_a_refused_key_stops_with_its_own_exit_code(self) -> None:
        for text in STOP:
            with self.subTest(text), self.assertRaises(StopError) as caught:
                client(FakeTransport(envelope(text))).private("Balance")
            self.assertEqual(77, caught.exception.exit_code)

    def test_after_a_definite_later_the_request_counts_as_sent_and_a_wait_is_named(self) -> None:
        for text in LATER:
            with self.assertRaises(LaterError) as caught:
                client(FakeTransport(envelope(text)), live=True).private("AddOrder", {})
            self.assertTrue(caught.exception.sent)
            self.assertGreaterEqual(caught.exception.wait_s, 15)

    def test_a_warning_beside_a_result_does_not_hide_the_result(self) -> None:
        body = b'{"error":["WDatabase:No change"],"result":{"ok":1}}'
        with logged() as out:
            self.assertEqual({"ok": 1}, client(FakeTransport(body)).private("Balance"))
        self.assertIn("WDatabase:No change", out.getvalue())

    def test_a_warning_alone_is_no_answer(self) -> None:
        with logged() as out, self.assertRaises(UnansweredError):
            client(FakeTransport(b'{"error":["WGeneral:Hm"]}')).private("Balance")
        self.assertIn("WGeneral:Hm", out.getvalue())

    @unittest.skipUnless(RECORDED, "TEST_DATA_KRAKEN names no folder with recorded answers")
    def test_recorded_error_envelopes_and_gateway_pages_are_never_a_result(self) -> None:
        folder = Path(RECORDED or "") / "payloads/spot/constructed"
        bodies = [
            (folder / name).read_bytes()
            for name in (
                "error_with_empty_result.json",
                "error_with_null_result.json",
                "gateway_502.html",
            )
        ]
        found = json.loads((folder / "error_envelopes.json").read_text())
        texts: list[str] = []
        pending: list[Any] = [found]
        while pending:
            item = pending.pop()
            if isinstance(item, dict) and isinstance(item.get("error"), list):
                texts += item["error"]
            if isinstance(item, (dict, list)):
                pending += item.values() if isinstance(item, dict) else item
        self.assertGreater(len(texts), 30)
        bodies += [envelope(text) for text in texts if not text.startswith("W")]
        for body in bodies:
            with (
                self.subTest(body[:80]),
                self.assertRaises((RefusedError, LaterError, StopError, UnansweredError)),
            ):
                client(FakeTransport(body)).private("Balance")


class TestEnvelope(unittest.TestCase):
    def test_what_is_not_kraken_s_envelope_is_no_answer_to_reads_or_orders(self) -> None:
        for body in (
            b"",
            b" ",
            b"null",
            b"[]",
            b"5",
            b'"text"',
            b"{}",
            b'{"result":{}}',
            b'{"error":null}',
            b'{"error":"EAPI:Invalid key"}',
            b'{"error":{}}',
            b'{"error":[5],"result":{}}',
            b'{"error":[null],"result":{"a":1}}',
            b'{"error":[["EAPI:Invalid key"]]}',
            b'{"error":[]}',
            b'{"error":[],"result":null}',
            b'{"error":[],"resul',
            OK[:-1],
            OK[:-5],
            OK + b"x",
            b"\xef\xbb\xbf\xff",
            b"\xff\xfe{}",
            b"\x00" * 10,
            b"<html><body>502 Bad Gateway</body></html>",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"error":[],"result":NaN}',
            b'{"error":[],"result":{"tb":Infinity}}',
            b'{"error":[],"result":' + b"9" * 5000 + b"}",
            b'{"error":[],"result":{"tb":1e99999999999999999999}}',
        ):
            for method in ("Balance", "AddOrder"):
                with (
                    self.subTest(method=method, body=body[:60]),
                    self.assertRaises(UnansweredError),
                ):
                    client(FakeTransport(body), live=True).private(method)
            with self.subTest(body=body[:60]), self.assertRaises(UnansweredError):
                client(FakeTransport(body)).public("Time")

    def test_any_status_but_200_without_an_error_list_is_no_answer(self) -> None:
        for status in (201, 204, 301, 302, 400, 403, 404, 429, 500, 502, 503, 504, 520, 524):
            for body in (b"<html>sorry</html>", b"", OK):
                with self.subTest(status=status, body=body), self.assertRaises(UnansweredError):
                    client(FakeTransport((status, body)), live=True).private("AddOrder", {})

    def test_numbers_are_exact(self) -> None:
        body = b'{"error":[],"result":{"n":0.1000000000000000055,"i":12345678901234567890}}'
        result = client(FakeTransport(body)).public("Time")
        self.assertEqual(Decimal("0.1000000000000000055"), result["n"])
        self.assertEqual(12345678901234567890, result["i"])


class TestRequests(unittest.TestCase):
    def test_a_private_request_is_signed_over_the_very_bytes_that_are_sent(self) -> None:
        transport = FakeTransport(OK)
        client(transport).private("OpenPositions", {"docalcs": "true", "x": "a+b:c"})
        method, url, headers, body, _ = transport.requests[0]
        assert body is not None
        self.assertEqual("POST", method)
        nonce = transport.form()["nonce"]
        signature = sign(SECRET, urlsplit(url).path, nonce, body)
        self.assertEqual(signature, headers["API-Sign"])
        self.assertEqual("a+b:c", transport.form()["x"])
        self.assertIn(b"a%2Bb%3Ac", body)

    def test_a_public_request_carries_no_key_and_no_body(self) -> None:
        transport = FakeTransport(OK)
        client(transport).public("OHLC", {"pair": "XBTUSD", "interval": 1})
        method, url, headers, body, _ = transport.requests[0]
        self.assertEqual(("GET", None), (method, body))
        self.assertTrue(url.endswith("/0/public/OHLC?pair=XBTUSD&interval=1"))
        self.assertFalse({"API-Key", "API-Sign"} & set(headers))
        self.assertIn("User-Agent", headers)

    def test_without_live_an_order_always_carries_validate(self) -> None:
        for params in ({}, {"validate": "false"}, {"validate": ""}, {"volume": "1"}, None):
            transport = FakeTransport(OK)
            client(transport).private("AddOrder", params)
            self.assertEqual("true", transport.form()["validate"])
            assert transport.requests[0][3] is not None
            self.assertEqual(1, transport.requests[0][3].count(b"validate"))

    def test_without_live_every_other_changing_or_unknown_method_is_refused_unsent(self) -> None:
        for method in (
            "CancelOrder",
            "CancelAll",
            "CancelAllOrdersAfter",
            "AmendOrder",
            "EditOrder",
            "AddOrderBatch",
            "CancelOrderBatch",
            "Withdraw",
            "WithdrawCancel",
            "WalletTransfer",
            "Earn/Allocate",
            "CreateSubaccount",
            "AccountTransfer",
            "addorder",
            "AddOrder ",
            "Balance/../AddOrder",
            "AddOrder?x=1",
            "SomethingNew",
        ):
            transport = FakeTransport(OK)
            with self.subTest(method), self.assertRaises(RefusedError):
                client(transport).private(method, {})
            self.assertEqual([], transport.requests)

    def test_live_orders_carry_no_validate_of_their_own(self) -> None:
        transport = FakeTransport(OK)
        client(transport, live=True).private("AddOrder", {"volume": "1"})
        self.assertNotIn("validate", transport.form())

    def test_orders_and_other_changes_ask_for_a_fresh_connection_and_reads_do_not(self) -> None:
        for method, fresh in (("AddOrder", True), ("CancelOrder", True), ("Balance", False)):
            transport = FakeTransport(OK)
            client(transport, live=True).private(method)
            self.assertEqual(fresh, transport.requests[0][4])

    def test_the_caller_s_parameters_are_left_as_they_were(self) -> None:
        params = {"volume": "1"}
        client(FakeTransport(OK)).private("AddOrder", params)
        self.assertEqual({"volume": "1"}, params)

    def test_a_parameter_called_nonce_does_not_replace_the_signed_one(self) -> None:
        transport = FakeTransport(OK)
        client(transport).private("Balance", {"nonce": "18446744073709551615"})
        self.assertEqual("1616492376594", transport.form()["nonce"])

    def test_without_a_key_a_private_method_stops_unsent(self) -> None:
        transport = FakeTransport(OK)
        with self.assertRaises(StopError) as caught:
            Client(transport, "http://127.0.0.1:1", FakeClock()).private("Balance")
        self.assertEqual(77, caught.exception.exit_code)
        self.assertEqual([], transport.requests)


class TestNonce(unittest.TestCase):
    def test_a_read_whose_nonce_was_refused_is_asked_once_more_with_a_larger_one(self) -> None:
        transport = FakeTransport(envelope("EAPI:Invalid nonce"), OK)
        self.assertEqual({"ok": 1}, client(transport).private("Balance"))
        first, second = (int(transport.form(number)["nonce"]) for number in (0, 1))
        self.assertGreater(second, first)

    def test_two_refused_nonces_in_a_row_stop_the_bot(self) -> None:
        transport = FakeTransport(envelope("EAPI:Invalid nonce"))
        with self.assertRaises(StopError) as caught:
            client(transport).private("Balance")
        self.assertEqual(77, caught.exception.exit_code)
        self.assertEqual(2, len(transport.requests))

    def test_an_order_whose_nonce_was_refused_is_refused_and_not_sent_again(self) -> None:
        transport = FakeTransport(envelope("EAPI:Invalid nonce"), OK)
        with self.assertRaises(RefusedError):
            client(transport, live=True).private("AddOrder", {})
        self.assertEqual(1, len(transport.requests))

    def test_the_second_asking_of_a_read_is_an_answer_like_any_other(self) -> None:
        transport = FakeTransport(envelope("EAPI:Invalid nonce"), envelope("EService:Busy"))
        with self.assertRaises(UnansweredError):
            client(transport).private("Balance")


class TestCounter(unittest.TestCase):
    def test_reads_wait_so_that_the_counter_of_the_lowest_tier_never_overflows(self) -> None:
        clock, told = FakeClock(), list[tuple[float, int]]()
        calls = client(FakeTransport(OK), clock)
        costs = {"Balance": 1, "ClosedOrders": 2, "TradesHistory": 2, "Ledgers": 2, "OpenOrders": 1}
        for number in range(60):
            method = sorted(costs)[number % len(costs)]
            calls.private(method)
            told.append((clock.time, costs[method]))
        counter, before = 0.0, told[0][0]
        for moment, cost in told:
            counter = max(0.0, counter - 0.33 * (moment - before)) + cost
            before = moment
            self.assertLessEqual(counter, 15.0001)
        self.assertLess(clock.time - 1000, 84 / 0.33, "waited longer than needed")

    def test_the_first_fifteen_points_wait_for_nothing_and_come_back_with_time(self) -> None:
        clock = FakeClock()
        calls = client(FakeTransport(OK), clock)
        for _ in range(2):
            began = clock.time
            for _ in range(15):
                calls.private("Balance")
            self.assertEqual(began, clock.time)
            clock.time += 60

    def test_orders_and_public_methods_wait_for_nothing(self) -> None:
        clock = FakeClock()
        calls = client(FakeTransport(OK), clock, live=True)
        for _ in range(50):
            calls.private("AddOrder", {})
            calls.public("Time")
        self.assertEqual(1000.0, clock.time)


class RawServer:
    """A listening socket on loopback; `serve` gets each connection and its number."""

    def __init__(
        self, test: unittest.TestCase, serve: Callable[[socket.socket, int], None]
    ) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = 0
        self.requests: list[bytes] = []
        self._serve = serve
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        test.addCleanup(self.close)

    def close(self) -> None:
        self.listener.close()

    def read_request(self, connection: socket.socket) -> bytes:
        """Return one request, or nothing when the other side has hung up."""
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
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(
                target=self._run, args=(connection, self.connections), daemon=True
            ).start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection, number)


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class TestTransport(unittest.TestCase):
    def server(self, serve: Callable[["RawServer", socket.socket, int], None]) -> RawServer:
        server = RawServer(self, lambda connection, number: serve(server, connection, number))
        return server

    def get(
        self, transport: UrllibTransport, server: RawServer, *, fresh: bool = False
    ) -> tuple[int, bytes]:
        if fresh:
            return transport.send("POST", server.url + "/0/private/AddOrder", {}, b"nonce=1", True)
        return transport.send("POST", server.url + "/0/private/Balance", {}, b"nonce=1", False)

    def test_reads_share_a_connection_and_each_order_gets_a_fresh_one(self) -> None:
        def serve(server: RawServer, connection: socket.socket, number: int) -> None:
            while server.read_request(connection):
                connection.sendall(http(str(number).encode()))

        server, transport = self.server(serve), UrllibTransport(5)
        order = [
            self.get(transport, server, fresh=fresh)[1]
            for fresh in (False, False, True, False, True, True)
        ]
        self.assertEqual([b"1", b"1", b"2", b"3", b"4", b"5"], order)

    def test_the_time_limit_holds_however_slowly_headers_or_body_drip_in(self) -> None:
        def drip_headers(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            for count in range(100):
                connection.sendall(b"X-%d: y\r\n" % count)
                time.sleep(0.05)

        def drip_body(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)

        def drip_chunks(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                connection.sendall(b"1\r\nx\r\n")
                time.sleep(0.05)

        def silent(server: RawServer, connection: socket.socket, number: int) -> None:
            time.sleep(3)

        for serve in (drip_headers, drip_body, drip_chunks, silent):
            for fresh in (False, True):
                server, began = self.server(serve), time.monotonic()
                with self.subTest(serve.__name__, fresh=fresh), self.assertRaises(UnansweredError):
                    self.get(UrllibTransport(0.1), server, fresh=fresh)
                self.assertLess(time.monotonic() - began, 1)
                self.assertEqual(1, server.connections)

    def test_the_time_limit_also_holds_when_a_kept_connection_falls_silent(self) -> None:
        def serve(server: RawServer, connection: socket.socket, number: int) -> None:
            if number == 1 and server.read_request(connection):
                connection.sendall(http(OK))
            time.sleep(3)

        server, transport = self.server(serve), UrllibTransport(0.3)
        self.get(transport, server)
        began = time.monotonic()
        with self.assertRaises((UnansweredError, LaterError)):
            self.get(transport, server)
        self.assertLess(time.monotonic() - began, 0.55)

    def test_a_read_that_was_given_up_leaves_nothing_for_the_next_one(self) -> None:
        def serve(server: RawServer, connection: socket.socket, number: int) -> None:
            while server.read_request(connection):
                connection.sendall(http(str(number).encode()))

        server, transport = self.server(serve), UrllibTransport(5)
        self.get(transport, server)
        kept = transport._kept
        with mock.patch.object(transport, "_ask", side_effect=StopRequestedError):
            self.assertRaises(StopRequestedError, self.get, transport, server)
        self.assertIsNot(kept, transport._kept)
        self.assertEqual(b"2", self.get(transport, server)[1])

    def test_an_answer_over_the_size_cap_is_no_answer(self) -> None:
        def endless(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(40):
                connection.sendall(b"x" * 1_000_000)

        def announced(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
            for _ in range(40):
                connection.sendall(b"x" * 1_000_000)

        for serve in (endless, announced):
            with self.subTest(serve.__name__), self.assertRaises(UnansweredError):
                self.get(UrllibTransport(5), self.server(serve))

    def test_a_read_is_asked_again_when_the_kept_connection_had_died(self) -> None:
        def hang_up_after_one(server: RawServer, connection: socket.socket, number: int) -> None:
            if server.read_request(connection):
                connection.sendall(http(str(number).encode()))

        def reset_on_second(server: RawServer, connection: socket.socket, number: int) -> None:
            if server.read_request(connection):
                connection.sendall(http(str(number).encode()))
            if number == 1 and server.read_request(connection):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

        for serve in (hang_up_after_one, reset_on_second):
            server, transport = self.server(serve), UrllibTransport(5)
            with self.subTest(serve.__name__):
                self.assertEqual(b"1", self.get(transport, server)[1])
                time.sleep(0.05)
                self.assertEqual(b"2", self.get(transport, server)[1])

    def test_an_order_whose_connection_dies_is_sent_once_and_unanswered(self) -> None:
        def hang_up(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)

        def hang_up_in_headers(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConte")

        def hang_up_in_body(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + OK[:20])

        for serve in (hang_up, hang_up_in_headers, hang_up_in_body):
            server = self.server(serve)
            orders = Client(
                UrllibTransport(5),
                server.url,
                FakeClock(),
                key=KEY,
                secret=SECRET,
                next_nonce=Rising(),
                live=True,
            )
            with self.subTest(serve.__name__), self.assertRaises(UnansweredError):
                orders.private("AddOrder", {"volume": "1"})
            self.assertEqual(1, len(server.requests))

    def test_nobody_listening_means_later_and_that_nothing_was_sent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for fresh in (False, True):
            with self.assertRaises(LaterError) as caught:
                UrllibTransport(5).send("POST", url, {"API-Key": "the-key"}, b"secret", fresh)
            self.assertFalse(caught.exception.sent)
            self.assertNotIn("the-key", str(caught.exception))

    def test_no_tls_on_the_other_side_means_later_and_that_nothing_was_sent(self) -> None:
        def plain(server: RawServer, connection: socket.socket, number: int) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        url = self.server(plain).url.replace("http:", "https:")
        with self.assertRaises(LaterError) as caught:
            UrllibTransport(5).send("POST", url, {}, b"nonce=1", True)
        self.assertFalse(caught.exception.sent)

    def test_a_name_that_does_not_resolve_means_later_and_that_nothing_was_sent(self) -> None:
        with self.assertRaises(LaterError) as caught:
            UrllibTransport(5).send("POST", "http://nowhere.invalid", {}, b"nonce=1", True)
        self.assertFalse(caught.exception.sent)

    def test_a_redirect_is_never_followed(self) -> None:
        def other(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(http(OK))

        elsewhere = self.server(other)

        def redirect(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(http(b"moved", "307 Moved", f"Location: {elsewhere.url}/"))

        orders = Client(
            UrllibTransport(5),
            self.server(redirect).url,
            FakeClock(),
            key=KEY,
            secret=SECRET,
            next_nonce=Rising(),
            live=True,
        )
        for ask in (lambda: orders.private("AddOrder", {}), lambda: orders.public("Time")):
            with self.assertRaises(UnansweredError):
                ask()
        self.assertEqual(0, elsewhere.connections)

    def test_proxies_from_the_surroundings_are_not_used(self) -> None:
        def serve(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)
            connection.sendall(http(OK))

        proxy, server = self.server(serve), self.server(serve)
        with unittest.mock.patch.dict(
            os.environ, {"http_proxy": proxy.url, "HTTP_PROXY": proxy.url}
        ):
            self.get(UrllibTransport(5), server)
        self.assertEqual((0, 1), (proxy.connections, server.connections))

    def test_whatever_bytes_come_back_the_outcome_is_an_answer_or_no_answer(self) -> None:
        replies = [
            b"",
            b"\r\n",
            b"HTTP",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 99999 OK\r\n\r\n",
            b"SSH-2.0-x\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"{}",
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\xff\xfe: \x00\r\n\r\n" + OK,
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + OK,
            b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + OK,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5" * 70_000,
            b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
            b"HTTP/1.1 101 Switching\r\n\r\nxx",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/0.9 200 OK\r\n\r\n",
            b"HTTP/7.3 200 OK\r\n\r\n",
        ]
        for reply in replies:

            def serve(
                server: RawServer, connection: socket.socket, number: int, reply: bytes = reply
            ) -> None:
                server.read_request(connection)
                connection.sendall(reply)

            server = self.server(serve)
            for fresh in (True, False):
                with self.subTest(reply[:60], fresh=fresh):
                    try:
                        status, body = self.get(UrllibTransport(1), server, fresh=fresh)
                    except UnansweredError:
                        continue
                    self.assertIsInstance(status, int)
                    self.assertIsInstance(body, bytes)

    def test_no_error_of_the_transport_quotes_the_key_the_signature_or_the_body(self) -> None:
        def hang_up(server: RawServer, connection: socket.socket, number: int) -> None:
            server.read_request(connection)

        server = self.server(hang_up)
        for key in ("the-key", "key\nwith a newline", "ключ"):
            calls = Client(
                UrllibTransport(5),
                server.url,
                FakeClock(),
                key=Secret(key),
                secret=SECRET,
                next_nonce=Rising(),
                live=True,
            )
            with self.subTest(key):
                with self.assertRaises((UnansweredError, LaterError, StopError)) as caught:
                    calls.private("AddOrder", {"volume": "1.2345"})
                for hidden in (key, "1.2345", SECRET.reveal()[:10]):
                    self.assertNotIn(hidden, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
