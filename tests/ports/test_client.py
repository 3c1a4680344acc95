import gzip
import json
import time
import unittest
from collections.abc import Mapping
from decimal import Decimal
from itertools import count, product
from typing import Any
from urllib.parse import parse_qs, urlsplit

from krakenbot.errors import (
    Cause,
    KeyRefusedError,
    LaterError,
    RefusedError,
    StopError,
    UnansweredError,
)
from krakenbot.kraken.client import Client, result_of
from krakenbot.kraken.counter import RestCounter
from krakenbot.kraken.signing import sign
from krakenbot.model import Secret
from tests.clients import signing
from tests.clocks import StandingClock
from tests.folders import own_folder
from tests.logs import logged, silence

SECRET = Secret(
    "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg=="
)
KEY, URL = Secret("the-key"), "http://127.0.0.1:1"
OK = b'{"error":[],"result":{"ok":1}}'


def errors(words: str) -> list[str]:
    """Return the texts of lines of `category:message; message; ...`."""
    lines = (line.partition(":") for line in words.strip().splitlines())
    return [f"{category}:{text}" for category, _, texts in lines for text in texts.split("; ")]


REFUSED = errors("""
EGeneral:Invalid arguments; Invalid arguments:volume; Invalid arguments:volume minimum not met
EGeneral:Invalid arguments:price; Invalid arguments:timeinforce; Invalid arguments:trigger
EGeneral:Invalid arguments:Index unavailable; Unknown method; Unknown Method
EQuery:Unknown asset pair; Unknown asset; Invalid asset pair
EOrder:Invalid order; Invalid price; Tick size check failed; Order minimum not met
EOrder:Cost minimum not met; Unknown order; Unknown position
EOrder:Order not editable; Not enough leaves qty; Cancel pending; Insufficient funds
EOrder:Insufficient initial margin; Margin allowance exceeded; Margin level too low
EOrder:Margin position size exceeded; Positions limit exceeded; Cannot open position
EOrder:Cannot open opposing position; Reduce only:No position exists
EOrder:Reduce only:Cannot increase position; Reduce only:One-sided margin; Reduce only:Non-PC
EOrder:Reduce only:Non-ECP; Something never heard of
ETrade:Invalid request
EBM:limit exceeded:CAL
""")
LATER = errors("""
EAPI:Rate limit exceeded
EOrder:Rate limit exceeded; Domain rate limit exceeded; Orders limit exceeded
EOrder:Scheduled orders limit exceeded; Insufficient margin; Post only order
EService:Market in cancel_only mode; Market in post_only mode; Market in limit_only mode
""")
STOP = errors("""
EAPI:Invalid key; Invalid signature; Bad request; Feature disabled
EAuth:Account temporary disabled; Account unconfirmed; Failed; Rate limit exceeded
EAuth:Too many requests
ESession:Invalid session
EGeneral:Permission denied; Too many requests; Temporary lockout
EAccount:Invalid permissions; Invalid permissions:XBT trading restricted
ETrade:Locked; User Locked
EOrder:Trading agreement required
""")
UNKNOWN = errors("""
EGeneral:Invalid arguments:cl_ord_id not unique; Internal error; Internal error:17; Unknown error
EService:Throttled;  Throttled: 1691000000; Unavailable; Busy; Timeout; Deadline elapsed
EDatabase:Internal error
EOrder:Reduce only:Position is closed
EFunding:Unknown withdraw key
EEarnings:Busy
ENew:Never heard of
""")
UNKNOWN.append("no category at all")
EMPTY: tuple[dict[str, Any], ...] = ({}, {"result": {}}, {"result": None})
KINDS = {RefusedError: REFUSED, LaterError: LATER, StopError: STOP, UnansweredError: UNKNOWN}
EVERY = [(kind, text) for kind, texts in KINDS.items() for text in texts]


class FakeTransport:
    """Answers in turn; the last one for ever. Notes what was sent."""

    def __init__(self, *answers: bytes | tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, Mapping[str, str], bytes | None]] = []

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        self.requests.append((method, url, headers, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, tuple) else (200, answer)

    def form(self, number: int = -1) -> dict[str, str]:
        body = self.requests[number][3]
        assert body is not None
        return {key: values[0] for key, values in parse_qs(body.decode()).items()}


def client(transport: Any, clock: StandingClock | None = None, **options: Any) -> Client:
    """Return a client that may not trade unless `live` is true."""
    options = {"live": False, "nonces": count(1616492376594)} | options
    secrets = {"key": KEY.reveal(), "secret": SECRET.reveal()}
    return signing(transport, URL, clock or StandingClock(1000.0), **secrets, **options)


def envelope(*errors: str) -> bytes:
    return json.dumps({"error": errors}).encode()


class TestErrors(unittest.TestCase):
    def test_every_error_means_what_a_careful_caller_does_about_it(self) -> None:
        for kind, text in EVERY:
            for said, more in product((text, f" {text.replace(':', ' : ')} "), EMPTY):
                body = json.dumps({"error": [said], **more}).encode()
                for method in ("Balance", "AddOrder"):
                    transport = FakeTransport(body)
                    with self.subTest(said, method=method), self.assertRaises(kind):
                        client(transport, live=True).private(method, {})
                    self.assertEqual(1, len(transport.requests), "an order went out twice")

    def test_of_several_errors_the_gravest_counts(self) -> None:
        for other in [*REFUSED, *LATER, *STOP, "EAPI:Invalid nonce"]:
            for errors in ((other, "EService:Timeout"), ("EService:Timeout", other)):
                with self.subTest(errors), self.assertRaises(UnansweredError):
                    client(FakeTransport(envelope(*errors)), live=True).private("AddOrder", {})
        for other in [*REFUSED, *LATER]:
            with self.subTest(other), self.assertRaises(StopError):
                client(FakeTransport(envelope(other, "EAPI:Invalid key"))).private("Balance")

    def test_a_refused_key_is_told_from_a_lockout_which_asking_prolongs(self) -> None:
        for text in STOP:
            with self.subTest(text), self.assertRaises(KeyRefusedError) as caught:
                client(FakeTransport(envelope(text))).private("Balance")
            is_lockout = "lockout" in text or "Too many" in text or "EAuth:Rate" in text
            error = caught.exception
            self.assertEqual((77, is_lockout), (error.exit_code, error.lockout))

    def test_a_refusal_says_why_as_data(self) -> None:
        for text, cause, is_documented in (
            ("EAPI:Rate limit exceeded", Cause.RATE_LIMIT, False),
            ("EOrder:Rate limit exceeded", Cause.RATE_LIMIT, True),
            ("EService:Market in cancel_only mode", Cause.MARKET_STATE, False),
            ("EOrder:Post only order", Cause.MARKET_STATE, True),
            ("EOrder:Insufficient margin", Cause.LENDING_POOL, True),
            ("EOrder:Insufficient initial margin", Cause.FUNDS, None),
            ("EOrder:Insufficient funds", Cause.FUNDS, None),
            ("EOrder:Margin level too low", Cause.FUNDS, None),
            ("EOrder:Margin allowance exceeded", Cause.FUNDS, None),
            ("EOrder:Margin position size exceeded", Cause.FUNDS, None),
            ("EOrder:Positions limit exceeded", Cause.FUNDS, None),
            ("EOrder:Cannot open opposing position", Cause.FUNDS, None),
            ("EOrder:Cannot open position", Cause.OTHER, None),
            ("EBM:limit exceeded:CAL", Cause.OTHER, None),
            ("EOrder:Cost minimum not met", Cause.TOO_SMALL, None),
            ("EOrder:Order minimum not met", Cause.TOO_SMALL, None),
            ("EGeneral:Invalid arguments:volume minimum not met", Cause.TOO_SMALL, None),
        ):
            with self.subTest(text):
                error = self.refusal(text)
                self.assertIs(RefusedError if is_documented is None else LaterError, type(error))
                self.assertEqual(cause, error.cause)
                self.assertEqual(bool(is_documented), error.leaves_no_order)

    def test_an_account_without_margin_on_the_pair_is_told_what_to_do(self) -> None:
        for text in ("EOrder:Reduce only:Non-ECP", "EOrder: Reduce only: Non-PC"):
            self.assertIn("leverage = 0", str(self.refusal(text)))

    def refusal(self, text: str) -> RefusedError | LaterError:
        """Return what an order is answered with."""
        with self.assertRaises((RefusedError, LaterError)) as caught:
            client(FakeTransport(envelope(text)), live=True).private("AddOrder", {})
        return caught.exception

    def test_after_a_definite_later_the_request_counts_as_sent_and_a_wait_is_named(self) -> None:
        for text in LATER:
            error = self.refusal(text)
            self.assertIsNot(Cause.UNREACHABLE, error.cause)
            self.assertGreaterEqual(error.wait_s, 15)

    def test_too_many_requests_name_their_pause_also_where_the_outcome_is_unknown(self) -> None:
        for body, status, wait_s in (
            (envelope("EService: Throttled: 1691000000"), 200, 15.0),
            (b"<html>", 429, 60.0),
            (b"{}", 429, 60.0),
            (b"<html>", 502, 0.0),
        ):
            with self.subTest(body), self.assertRaises(UnansweredError) as caught:
                result_of("Balance", status, body)
            self.assertEqual(wait_s, caught.exception.wait_s)

    def test_a_pause_lasts_until_the_time_that_the_exchange_names_within_reason(self) -> None:
        for until, wait_s in ((1040, 40), (1001, 15), (99_000, 300)):
            calls = client(FakeTransport(envelope(f"EService:Throttled: {until}")))
            with self.subTest(until), self.assertRaises(UnansweredError) as caught:
                calls.private("Balance")
            self.assertEqual(wait_s, caught.exception.wait_s)

    def test_a_warning_is_logged_hides_no_result_and_is_none(self) -> None:
        with logged() as out:
            body = b'{"error":["WDatabase:No change"],"result":{"ok":1}}'
            self.assertEqual({"ok": 1}, client(FakeTransport(body)).private("Balance"))
            alone = client(FakeTransport(b'{"error":["WGeneral:Hm"]}'))
            self.assertRaises(UnansweredError, alone.private, "Balance")
        self.assertRegex(out.getvalue(), "(?s)WDatabase:No change.*WGeneral:Hm")

    def test_many_blanks_in_an_error_take_no_time(self) -> None:
        began = time.monotonic()
        with self.assertRaises(UnansweredError):
            client(FakeTransport(envelope("E" + 100_000 * " " + "x"))).public("Time")
        self.assertLess(time.monotonic() - began, 5)


class TestEnvelope(unittest.TestCase):
    def test_what_is_not_kraken_s_envelope_is_no_answer_to_reads_or_orders(self) -> None:
        short = b"""null [] 5 "text" {} {"result":{}} {"error":null} {"error":{}} {"error":"EAPI:x"}
            {"error":[5],"result":{}} {"error":[null],"result":{"a":1}} {"error":[["EAPI:x"]]}
            {"error":[]} {"error":[],"result":null} {"error":[],"resul {"error":[],"result":NaN}
            {"error":[],"result":{"tb":Infinity}} <html><body>502</body></html>
            {"error":[],"result":{"tb":1e99999999999999999999}}""".split()
        broken = (b"", b" ", OK[:-1], OK[:-5], OK + b"x", b"\xef\xbb\xbf\xff", b"\xff\xfe{}")
        huge = (b"[" * 100_000, b'{"a":' * 100_000, b'{"error":[],"result":' + b"9" * 5000 + b"}")
        for body in (*short, *broken, *huge, b"\x00" * 10):
            for method in ("Balance", "AddOrder"):
                calls = client(FakeTransport(body), live=True)
                with self.subTest(body=body[:60]):
                    self.assertRaises(UnansweredError, calls.private, method)
                    self.assertRaises(UnansweredError, calls.public, "Time")

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
        method, url, headers, body = transport.requests[0]
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
        method, url, headers, body = transport.requests[0]
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
        known = "CancelOrder CancelAll CancelAllOrdersAfter AmendOrder EditOrder AddOrderBatch"
        known += " CancelOrderBatch Withdraw WithdrawCancel WalletTransfer Earn/Allocate"
        known += " CreateSubaccount AccountTransfer"
        odd = ("addorder", "AddOrder ", "Balance/../AddOrder", "AddOrder?x=1", "SomethingNew")
        for method in (*known.split(), *odd):
            transport = FakeTransport(OK)
            with self.subTest(method), self.assertRaises(RefusedError):
                client(transport).private(method, {})
            self.assertEqual([], transport.requests)

    def test_the_clock_is_told_of_reads_and_of_nothing_that_changes_something(self) -> None:
        for method, want in (("AddOrder", [False] * 2), ("Balance", [True, False])):
            clock, told = StandingClock(1000.0), list[bool]()
            clock.read = told.append
            client(FakeTransport(OK), clock, live=True).private(method)
            self.assertEqual(want, told)

    def test_what_the_caller_says_is_sent_but_for_the_nonce_and_left_as_it_was(self) -> None:
        params, transport = {"volume": "1", "nonce": "18446744073709551615"}, FakeTransport(OK)
        client(transport, live=True).private("AddOrder", params)
        self.assertEqual({"volume": "1", "nonce": "1616492376594"}, transport.form())
        self.assertEqual({"volume": "1", "nonce": "18446744073709551615"}, params)

    def test_without_a_key_a_private_method_stops_unsent(self) -> None:
        transport = FakeTransport(OK)
        with self.assertRaises(StopError) as caught:
            Client(transport, URL, StandingClock(1000.0)).private("Balance")
        self.assertEqual(77, caught.exception.exit_code)
        self.assertEqual([], transport.requests)


class TestNonce(unittest.TestCase):
    def setUp(self) -> None:
        silence(self)

    def test_a_read_whose_nonce_is_refused_is_asked_again_later_with_larger_ones(self) -> None:
        refused = [envelope("EAPI:Invalid nonce")] * 4
        transport, clock = FakeTransport(*refused, OK), StandingClock(1000.0)
        self.assertEqual({"ok": 1}, client(transport, clock).private("Balance"))
        nonces = [int(transport.form(number)["nonce"]) for number in range(5)]
        self.assertEqual(sorted(set(nonces)), nonces)
        self.assertEqual(1000 + 1 + 2 + 4 + 8, clock.time)

    def test_a_public_request_is_limited_by_its_address_and_never_by_a_key_or_nonce(self) -> None:
        for words in ("EGeneral:Too many requests; Temporary lockout", "EAPI:Invalid key"):
            for text in errors(words):
                with self.subTest(text), self.assertRaises(LaterError) as caught:
                    client(FakeTransport(envelope(text))).public("Time")
                self.assertEqual(60, caught.exception.wait_s)
        with self.assertRaises(UnansweredError):
            client(FakeTransport(envelope("EAPI:Invalid nonce"))).public("Time")

    def test_nonces_that_stay_refused_for_a_minute_mean_another_program(self) -> None:
        clock = StandingClock(1000.0)
        with self.assertRaises(KeyRefusedError) as caught:
            client(FakeTransport(envelope("EAPI:Invalid nonce")), clock).private("Balance")
        self.assertIn("another program uses this key", str(caught.exception))
        self.assertGreaterEqual(clock.time, 1060)

    def test_an_order_whose_nonce_was_refused_is_not_sent_again_here_and_it_is_told(self) -> None:
        for method, sent in (("AddOrder", 1), ("Balance", 2)):
            transport = FakeTransport(envelope("EAPI:Invalid nonce"), OK)
            calls = client(transport, live=True)
            try:
                calls.private(method)
            except LaterError as error:
                self.assertEqual(("AddOrder", Cause.NONCE), (method, error.cause))
            self.assertEqual(sent, len(transport.requests))
            calls._nonces.set_mark.assert_called_once_with("refused")

    def test_the_second_asking_of_a_read_is_an_answer_like_any_other(self) -> None:
        transport = FakeTransport(envelope("EAPI:Invalid nonce"), envelope("EService:Busy"))
        with self.assertRaises(UnansweredError):
            client(transport).private("Balance")


class TestCounter(unittest.TestCase):
    COSTS = (("Balance", 1), ("ClosedOrders", 2), ("Ledgers", 2), ("OpenOrders", 1))

    def setUp(self) -> None:
        self.clock, self.told = StandingClock(1000.0), list[tuple[float, int]]()
        self.path = own_folder(self) / "counter"

    def start(self) -> Client:
        return client(FakeTransport(OK), self.clock, counter=RestCounter(self.clock, self.path))

    def ask(self, calls: Client, points: int) -> None:
        while points > 0:
            method, cost = self.COSTS[len(self.told) % 4]
            calls.private(method)
            self.told.append((self.clock.time, cost))
            points -= cost

    def highest(self) -> float:
        """Return how high Kraken's own counter got."""
        counter, before, highest = 0.0, self.told[0][0], 0.0
        for moment, cost in self.told:
            counter = max(0.0, counter - 0.33 * (moment - before)) + cost
            before, highest = moment, max(highest, counter)
        return highest

    def test_a_point_of_room_is_kept_below_the_lowest_tier_s_limit(self) -> None:
        self.ask(self.start(), 90)
        self.assertLessEqual(self.highest(), 14.001)
        self.assertLess(self.clock.time - 1000, 84 / 0.33, "waited longer than needed")

    def test_a_start_goes_on_from_where_the_process_before_ended(self) -> None:
        for _ in range(3):
            self.ask(self.start(), 14)
            self.clock.time += 1
        self.assertLessEqual(self.highest(), 14.001)

    def test_a_nonce_asked_for_again_counts_again(self) -> None:
        calls = client(FakeTransport(*[envelope("EAPI:Invalid nonce")] * 3, OK), self.clock)
        with logged():
            calls.private("Balance")
        self.clock.time = 1007.0
        self.ask(calls, 11)
        self.assertEqual(1007.0, self.clock.time)
        self.ask(calls, 2)
        self.assertGreater(self.clock.time, 1007.0)

    def test_what_an_earlier_boot_or_a_broken_file_says_costs_a_short_wait_at_most(self) -> None:
        for kept in ("99999999.0", "rubbish", "-5", "nan", ""):
            self.path.write_text(kept)
            began = self.clock.time
            self.ask(self.start(), 1)
            self.assertLessEqual(self.clock.time - began, 1 / 0.33 + 0.01, kept)

    def test_the_points_come_back_with_time(self) -> None:
        calls = self.start()
        for _ in range(2):
            began = self.clock.time
            self.ask(calls, 13)
            self.assertEqual(began, self.clock.time)
            self.clock.time += 60

    def test_orders_and_public_methods_wait_for_nothing(self) -> None:
        calls = client(FakeTransport(OK), self.clock, live=True)
        for _ in range(50):
            calls.private("AddOrder", {})
            calls.public("Time")
        self.assertEqual(1000.0, self.clock.time)


class TestAnswersThatAreNoJson(unittest.TestCase):
    def test_an_answer_that_is_no_json_is_named_for_what_it_is(self) -> None:
        for body, words in (
            (gzip.compress(OK), "a gzip answer"),
            (b"<!DOCTYPE html><html>502</html>", "an HTML page"),
            (b"\n<html><body>", "an HTML page"),
            (b"PK\x03\x04....", "a zip archive"),
            (b"", "nothing"),
            (OK[:-3], "cut"),
            (b"upstream timed out", "another text"),
        ):
            for answer in (body, (502, body)):
                with self.subTest(answer), self.assertRaisesRegex(UnansweredError, words):
                    client(FakeTransport(answer)).private("Balance")

    def test_a_file_is_given_as_it_is_and_an_error_in_its_place_means_what_it_says(self) -> None:
        zipped = b"PK\x03\x04 and more"
        self.assertEqual(zipped, client(FakeTransport(zipped)).private("RetrieveExport"))
        for answer, kind in (
            (envelope("EGeneral:Permission denied"), KeyRefusedError),
            (envelope("EExport:Unknown"), UnansweredError),
            (OK, UnansweredError),
            ((502, zipped), UnansweredError),
            (b"<html>", UnansweredError),
            (b"", UnansweredError),
            (OK[:-4], UnansweredError),
        ):
            with self.subTest(answer), self.assertRaises(kind):
                client(FakeTransport(answer)).private("RetrieveExport")
