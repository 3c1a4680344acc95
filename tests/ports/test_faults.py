"""Fault injection: what a fault does to a request, and that it ends."""

import json
import socket
import unittest
from decimal import Decimal as D
from email.utils import parsedate_to_datetime
from typing import Any

from krakenbot.simulated.faults import Faults
from tests.logs import silence_module
from tests.markets import sandbox_for, short_histories
from tests.ports.test_sandbox import MARKET, START, Client

SLOW_S = 0.3  # An answer that has not come by then never comes.


def setUpModule() -> None:
    short_histories()
    silence_module()


class FaultyClient(Client):
    """A client whose requests pass through faults; waiting moves its clock."""

    def __init__(self, spec: str = "") -> None:
        super().__init__()
        self.faults = Faults(self.api, spec, self.wait)

    def wait(self, seconds: float) -> None:
        self.time += seconds

    def get(self, target: str) -> Any:
        return json.loads(self.faults.respond("GET", "/0/public/" + target, {}, b"").body)

    def send(self, name: str, body: bytes, nonce: str, kind: str = "") -> Any:
        answer = self.faults.respond(*self.signed(name, body, nonce, kind))
        return json.loads(answer.body)

    def set_price(self, price: int) -> None:
        self.api.controls["price"]({"pair": "XBTUSD", "price": price})


class LagTest(unittest.TestCase):
    def setUp(self) -> None:
        self.client = client = FaultyClient()
        client.set_price(50000)
        client.order(leverage=2)
        client.wait(60)
        client.result("TradeBalance")
        client.faults.set("lag=1")

    def seen(self, name: str, **more: Any) -> list[Any]:
        return [self.client.result(name, **more) for _ in range(20)]

    def test_a_lagging_balance_follows_the_price(self) -> None:
        self.client.set_price(40000)
        self.client.wait(3)
        self.assertEqual({"-400.0040"}, {row["n"][:9] for row in self.seen("TradeBalance")[1:]})

    def test_a_lagging_position_is_shown_as_it_was_asked_for(self) -> None:
        self.assertIsInstance(self.seen("OpenPositions", consolidation="market")[-1], list)
        self.assertEqual({}, self.seen("OpenPositions", txid="T-NONE")[-1])
        (row,) = self.seen("OpenPositions", docalcs="true")[-1].values()
        self.assertIn("net", row)

    def test_a_fill_shows_late_in_a_read_that_was_never_made_before(self) -> None:
        self.client.order(leverage=2)
        counts = {len(result) for result in self.seen("OpenPositions")}
        self.assertEqual({1, 2}, counts)

    def test_a_charge_shows_late_in_the_ledger(self) -> None:
        self.client.order(leverage=2)
        self.assertEqual({1, 2}, {page["count"] for page in self.seen("Ledgers")})

    def test_what_is_not_seen_yet_is_not_counted_and_what_is_on_later_pages_is(self) -> None:
        for _ in range(60):
            self.client.order(volume="0.0001")
        self.client.wait(60)
        self.client.order(leverage=2)
        for name, key in (("TradesHistory", "trades"), ("ClosedOrders", "closed")):
            self.assertLessEqual({page["count"] for page in self.seen(name)}, {61, 62})
            self.assertEqual({50}, {len(page[key]) for page in self.seen(name)})

    def test_an_order_that_shows_as_open_has_no_end_and_no_trades(self) -> None:
        name = self.client.order(leverage=2)["txid"][0]
        shown = [found[name] for found in self.seen("QueryOrders", txid=name) if found]
        for row in (row for row in shown if row["status"] == "open"):
            self.assertFalse(row.keys() & {"closetm", "trades", "reason"})


class EndTest(unittest.TestCase):
    def setUp(self) -> None:
        self.client = FaultyClient()

    def strike(self, word: str, target: str = "Time") -> None:
        self.client.faults.set(f"{word}=1")
        self.client.get(target)
        self.client.faults.set("")

    def test_with_the_faults_ends_what_they_have_changed(self) -> None:
        markets = self.client.api.markets
        for word in ("post_only", "clock", "rules"):
            self.strike(word)
        self.assertEqual("online", markets.status)
        self.assertEqual(int(START), self.client.get("Time")["result"]["unixtime"])
        self.assertEqual({D("0.00005")}, {markets.rules["XXBTZUSD"].ordermin})

    def test_an_order_that_is_stuck_arrives_when_the_faults_are_taken_back(self) -> None:
        self.client.faults.set("stuck=1")
        self.assertRaises(TimeoutError, self.client.post, "AddOrder", **MARKET)
        self.assertEqual(1, len(self.client.control("faults", spec="")["orders"]))

    def test_what_a_person_has_set_outlasts_a_fault(self) -> None:
        control = self.client.api.controls["status"]
        control({"fill_share": "0.5"})
        self.client.faults.set("partial=1")
        self.client.post("AddOrder", **MARKET)
        self.client.faults.set("post_only=1")
        self.client.get("Time")
        control({"status": "cancel_only"})
        self.client.faults.set("")
        self.client.wait(3600)
        self.client.get("Time")
        self.assertEqual("cancel_only", self.client.api.markets.status)
        self.assertEqual(D("0.5"), self.client.api.private_api.fill_share)

    def test_a_clock_that_is_off_is_so_in_both_forms_of_the_time(self) -> None:
        self.client.faults.set("clock=1")
        answer = self.client.get("Time")["result"]
        self.assertNotEqual(int(START), answer["unixtime"])
        written = parsedate_to_datetime(answer["rfc1123"]).timestamp()
        self.assertEqual(answer["unixtime"], written)

    def test_a_stale_answer_is_one_about_the_same_pair(self) -> None:
        self.client.faults.set("candle-stale=1")
        for pair, name in (("XBTUSD", "XXBTZUSD"), ("ETHUSD", "XETHZUSD")):
            self.assertIn(name, self.client.get(f"OHLC?pair={pair}")["result"])


class SilenceTest(unittest.TestCase):
    def test_a_request_that_is_never_answered_keeps_its_connection(self) -> None:
        sandbox = sandbox_for(self)
        for word in ("timeout", "stuck"):
            sandbox.api.controls["faults"]({"spec": f"{word}=1"})
            with socket.create_connection(sandbox.server_address, 5) as client:
                client.sendall(b"GET /0/public/Time HTTP/1.1\r\nHost: localhost\r\n\r\n")
                client.settimeout(SLOW_S)
                self.assertRaises(TimeoutError, client.recv, 1)
