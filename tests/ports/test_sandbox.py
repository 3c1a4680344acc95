"""The sandbox in Kraken's words: through `respond`, and through real HTTP."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import unittest
from decimal import Decimal as D
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from krakenbot.kraken.signing import sign
from krakenbot.model import Secret
from krakenbot.simulated import api as server
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.http import Sandbox
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from tests.commands.called import call
from tests.logs import logged, silence_module
from tests.markets import short_histories

START = 1_791_500_000.25
SECRET = Secret(SANDBOX_SECRET)
ID = "6d1b345e-2821-40e2-ad83-4ecb18a06876"
MARKET = {"pair": "XBTUSD", "ordertype": "market", "type": "buy", "volume": "0.04"}


BAD = "EGeneral:Invalid arguments"
# What is changed in an order: how Kraken refuses it.
REFUSALS: tuple[tuple[dict[str, str], str], ...] = (
    ({"pair": "NOPE"}, "EQuery:Unknown asset pair"),
    ({"type": "hold"}, f"{BAD}:type"),
    ({"ordertype": "bet"}, f"{BAD}:ordertype"),
    ({"ordertype": "limit"}, "EAPI:Feature disabled"),
    ({"oflags": "fciq,viqc"}, "EAPI:Feature disabled"),
    ({"close[ordertype]": "limit"}, "EAPI:Feature disabled"),
    ({"starttm": "+3600"}, "EAPI:Feature disabled"),
    ({"oflags": "post"}, f"{BAD}:oflags"),
    ({"volume": "1e-2"}, f"{BAD}:volume"),
    ({"volume": "0.000123456789"}, f"{BAD}:volume"),
    ({"volume": "0.00004"}, f"{BAD}:volume minimum not met"),
    ({"pair": "BONKUSD", "volume": "1"}, f"{BAD}:volume minimum not met"),
    ({"leverage": "11"}, f"{BAD}:leverage"),
    ({"leverage": "1.5"}, f"{BAD}:leverage"),
    ({"pair": "BONKUSD", "volume": "300000", "leverage": "2"}, f"{BAD}:leverage"),
    ({"timeinforce": "GTC"}, f"{BAD}:timeinforce"),
    ({"trigger": "last"}, f"{BAD}:trigger"),
    ({"stptype": "cancel-all"}, f"{BAD}:stptype"),
    ({"price": ""}, f"{BAD}:price"),
    ({"cl_ord_id": "x" * 19}, f"{BAD}:cl_ord_id"),
    ({"cl_ord_id": "x", "userref": "1"}, f"{BAD}:userref"),
    ({"volume": "1"}, "EOrder:Insufficient funds"),
    ({"volume": "1", "leverage": "2"}, "EOrder:Insufficient initial margin"),
    ({"volume": "351", "leverage": "2"}, "EOrder:Margin position size exceeded"),
    ({"leverage": "2", "reduce_only": "true"}, "EOrder:Reduce only:No position exists"),
    ({"leverage": "2", "reduce_only": "yes"}, f"{BAD}:reduce_only"),
    ({"validate": "yes"}, f"{BAD}:validate"),
)


def setUpModule() -> None:
    short_histories()
    silence_module()


class Client:
    """Speaks to a SandboxApi without a socket, on a clock that stands until it is moved."""

    def __init__(self, **options: Any) -> None:
        self.time = START
        self.nonce = 0
        self.api = server.SandboxApi(
            Feed("random:1", START), lambda: self.time, SANDBOX_KEY, SECRET, **options
        )

    def get(self, target: str) -> Any:
        return json.loads(self.api.respond("GET", "/0/public/" + target, {}, b"").body)

    def post(self, name: str, /, **parameters: Any) -> Any:
        self.nonce += 1
        body = urlencode({"nonce": self.nonce, **parameters}).encode()
        return self.send(name, body, str(self.nonce))

    def send(self, name: str, body: bytes, nonce: str, kind: str = "") -> Any:
        return json.loads(self.api.respond(*self.signed(name, body, nonce, kind)).body)

    def signed(
        self, name: str, body: bytes, nonce: str, kind: str = ""
    ) -> tuple[str, str, dict[str, str], bytes]:
        """Return method, path, headers and body of a signed request."""
        path = "/0/private/" + name
        headers = {
            "API-Key": SANDBOX_KEY,
            "API-Sign": sign(SECRET, path, nonce, body),
            "Content-Type": kind or "application/x-www-form-urlencoded",
        }
        return "POST", path, headers, body

    def result(self, name: str, /, **parameters: Any) -> Any:
        answer = self.post(name, **parameters)
        if answer["error"]:
            raise AssertionError(answer)
        return answer["result"]

    def error(self, name: str, /, **parameters: Any) -> str:
        answer = self.post(name, **parameters)
        if "result" in answer:
            raise AssertionError(answer)
        return str(answer["error"][0])

    def order(self, **changes: Any) -> Any:
        """Place MARKET with these changes, and return the result."""
        return self.result("AddOrder", **{**MARKET, **changes})

    def refusal(self, **changes: Any) -> str:
        """Place MARKET with these changes, which must be refused, and return the error."""
        return self.error("AddOrder", **{**MARKET, **changes})

    def control(self, name: str, **params: Any) -> Any:
        method, body = ("POST", json.dumps(params).encode()) if params else ("GET", b"")
        return json.loads(self.api.respond(method, f"/sandbox/{name}", {}, body).body)


class PublicTest(unittest.TestCase):
    def test_a_pair_has_many_names_and_one_key(self) -> None:
        client = Client()
        for name in ("XBTUSD", "XXBTZUSD", "BTCUSD", "BTC/USD"):
            self.assertEqual(list(client.get(f"Ticker?pair={name}")["result"]), ["XXBTZUSD"])
        for name in ("NOPE", "XBT/USD"):
            answer = client.get(f"AssetPairs?pair={name}")
            self.assertEqual(answer, {"error": ["EQuery:Unknown asset pair"]})
        self.assertEqual(client.get("Nope"), {"error": ["EGeneral:Unknown method"]})

    def test_a_pair_is_not_of_another_class_of_assets(self) -> None:
        for asked in ("AssetPairs?pair=XBTUSD&aclass_base", "OHLC?pair=XBTUSD&asset_class"):
            answer = Client().get(f"{asked}=tokenized_asset")
            self.assertEqual(answer["error"], ["EQuery:Unknown asset pair"])

    def test_the_last_row_is_running_and_last_names_the_one_before(self) -> None:
        client = Client()
        result = client.get("OHLC?pair=XBTUSD&interval=5")["result"]
        rows = result["XXBTZUSD"]
        self.assertEqual(len(rows), 721)
        self.assertEqual(rows[-1][0], START // 300 * 300)
        self.assertEqual(result["last"], rows[-2][0])
        wrong = client.get("OHLC?pair=XBTUSD&interval=7")["error"]
        self.assertEqual(wrong, ["EGeneral:Invalid arguments:interval"])

    def test_a_ticker_has_every_price_with_five_decimals(self) -> None:
        row = Client().get("Ticker?pair=XBTUSD")["result"]["XXBTZUSD"]
        for price in (row["a"][0], row["b"][0], row["c"][0], row["o"], *row["p"], *row["l"]):
            self.assertRegex(price, r"\A[0-9]+\.[0-9]{5}\Z")
        self.assertLess(D(row["l"][0]), D(row["p"][0]))
        self.assertLess(D(row["p"][0]), D(row["h"][0]))

    def test_an_asset_asked_for_by_two_names_comes_once(self) -> None:
        client = Client()
        self.assertEqual(list(client.get("Assets?asset=XBT,XXBT,USD")["result"]), ["XXBT", "ZUSD"])
        self.assertEqual(client.get("Assets?asset=XBT,X")["error"], ["EQuery:Unknown asset"])

    def test_assets_show_what_borrowing_them_costs_where_they_are_lent(self) -> None:
        rows = Client().get("Assets")["result"]
        self.assertEqual((rows["ZUSD"]["margin_rate"], rows["XXBT"]["margin_rate"]), (0.025, 0.01))
        self.assertNotIn("margin_rate", rows["BONK"])
        self.assertEqual(rows["USDT"]["collateral_value"], 0.9)

    def test_maintenance_ahead_and_emergencies_are_shown_beside_the_status(self) -> None:
        client = Client()
        self.assertEqual(client.get("SystemStatus")["result"].keys(), {"status", "timestamp"})
        client.control("status", upcoming_maintenance=["at noon"], emergency=["no margin"])
        status = client.get("SystemStatus")["result"]
        self.assertEqual((status["status"], status["emergency"]), ("online", ["no margin"]))
        client.control("status", upcoming_maintenance=[])
        self.assertNotIn("upcoming_maintenance", client.get("SystemStatus")["result"])

    def test_a_depth_is_a_whole_number(self) -> None:
        wrong = Client().get("Depth?pair=XBTUSD&count=1.9")["error"]
        self.assertEqual(wrong, ["EGeneral:Invalid arguments:count"])

    def test_unknown_parameters_are_ignored_and_counted(self) -> None:
        client = Client()
        with logged() as out:
            self.assertEqual(client.get("Time?intervall=1")["error"], [])
        self.assertIn("intervall", out.getvalue())
        self.assertEqual(client.api.ignored["Time:intervall"], 1)


class LoginTest(unittest.TestCase):
    def test_wrong_key_signature_and_nonce_are_told_apart(self) -> None:
        client = Client()
        client.result("Balance")
        body = b"nonce=7"
        good = {"API-Key": SANDBOX_KEY, "API-Sign": sign(SECRET, "/0/private/Balance", "7", body)}
        for headers, words in (
            ({}, "EAPI:Invalid key"),
            ({**good, "API-Key": "x"}, "EAPI:Invalid key"),
            ({**good, "API-Sign": "\u00e9"}, "EAPI:Invalid signature"),
            ({**good, "api-key": SANDBOX_KEY}, None),
            (good, "EAPI:Invalid nonce"),
        ):
            with self.subTest(words=words):
                answer = client.api.respond("POST", "/0/private/Balance", headers, body).body
                self.assertEqual(json.loads(answer)["error"], [words] if words else [])

    def test_a_json_body_is_signed_and_read_like_a_form(self) -> None:
        client = Client()
        order = {"nonce": 9, **MARKET, "leverage": 2, "reduce_only": False, "validate": True}
        answer = client.send("AddOrder", json.dumps(order).encode(), "9", "application/json")
        descr = {"order": "buy 0.04 XBTUSD @ market with 2:1 leverage"}
        self.assertEqual(answer["result"], {"descr": descr})
        wrong = client.send("Balance", b"[1]", "10", "application/json")["error"]
        self.assertEqual(wrong, ["EGeneral:Invalid arguments"])

    def test_failed_logins_in_a_row_lock_the_key_out(self) -> None:
        client = Client(tier="starter")
        for _ in range(20):
            client.send("Balance", b"nonce=0", "0")
        for _ in range(3):  # Each asking lengthens it.
            self.assertEqual(client.error("Balance"), "EGeneral:Temporary lockout")
            client.time += server.LOCKOUT_S - 1
        client.time += 1
        client.result("Balance")

    def test_the_starter_counter_lets_fifteen_calls_through_and_decays(self) -> None:
        client = Client(tier="starter")
        for _ in range(15):
            client.result("Balance")
        self.assertEqual(client.error("Balance"), "EAPI:Rate limit exceeded")
        client.time += 60
        client.result("Balance")


class OrderTest(unittest.TestCase):
    def test_a_margin_order_is_shown_the_same_by_id_and_by_client_id(self) -> None:
        client = Client()
        txid = client.order(leverage="2:1", cl_ord_id=ID)["txid"][0]
        order = client.result("QueryOrders", txid=txid, trades="true")[txid]
        closed = client.result("ClosedOrders", cl_ord_id=ID, trades="true")["closed"]
        self.assertEqual(closed, {txid: order})
        self.assertEqual((order["status"], order["descr"]["leverage"]), ("closed", "2:1"))

    def test_a_trade_and_what_it_opened_are_shown_the_same(self) -> None:
        client = Client()
        txid = client.order(leverage="2")["txid"][0]
        (trade_id,) = client.result("QueryOrders", txid=txid, trades="true")[txid]["trades"]
        trade = client.result("QueryTrades", txid=trade_id)[trade_id]
        position, cost = client.result("OpenPositions")[trade_id], D(trade["cost"])
        self.assertEqual((position["ordertxid"], position["cost"]), (txid, trade["cost"]))
        self.assertEqual(position["rollovertm"], str(int(START) + 14400))
        self.assertEqual(D(position["fee"]), (cost * D("0.00825")).quantize(D("1e-5")))
        self.assertEqual(D(position["margin"]) * 2, cost)
        ask = client.get("Ticker?pair=XBTUSD")["result"]["XXBTZUSD"]["a"][0]
        self.assertEqual(trade["price"], ask)

    def test_what_kraken_refuses_is_refused_in_its_words(self) -> None:
        client = Client()
        for change, words in REFUSALS:
            with self.subTest(change=change):
                self.assertEqual(client.refusal(**change), words)
        self.assertEqual(client.control("ledger")["orders"], [])

    def test_a_balance_as_shown_can_be_sold_or_spent_in_full(self) -> None:
        client = Client(fee_rate=D(0))
        client.order(pair="BONKUSD", volume="200000.12345678")
        shown = client.result("Balance")["BONK"]
        client.order(pair="BONKUSD", type="sell", volume=shown)
        money = D(client.result("Balance")["ZUSD"])
        self.assertLessEqual(money, client.api.account.balances["ZUSD"])
        client.control("balance", asset="ZUSD", amount="-0.00001")
        self.assertEqual(client.result("Balance")["ZUSD"], "-0.0001")

    def test_a_client_order_id_is_unique_among_open_orders_and_free_again_after(self) -> None:
        client = Client()
        client.order(cl_ord_id=ID)
        self.assertIn("cl_ord_id not unique", client.refusal(cl_ord_id=ID))
        client.time += 1
        client.order(cl_ord_id=ID)
        self.assertEqual(len(client.result("ClosedOrders", cl_ord_id=ID)["closed"]), 2)

    def test_what_is_not_simulated_is_refused_in_krakens_words(self) -> None:
        client = Client()
        for method, words in (
            ("Withdraw", "EGeneral:Permission denied"),
            ("Earn/Strategies", "EGeneral:Permission denied"),
            ("AmendOrder", "EAPI:Feature disabled"),
            ("Nonsense", "EGeneral:Unknown method"),
        ):
            self.assertEqual(client.error(method), words)

    def test_the_engines_counter_is_kept_for_each_pair(self) -> None:
        client = Client(tier="starter")
        for _ in range(60):
            client.refusal(volume="0")
        self.assertEqual(client.refusal(), "EOrder:Rate limit exceeded")
        client.order(pair="ETHUSD")
        client.time += 2
        client.order()

    def test_a_deadline_must_lie_two_to_sixty_seconds_ahead(self) -> None:
        client = Client()
        client.time = 1_791_500_000.0
        for seconds, words in (
            (-1, "EService:Deadline elapsed"),
            (1, "EGeneral:Invalid arguments:deadline"),
            (2, None),
            (60, None),
            (61, "EGeneral:Invalid arguments:deadline"),
        ):
            deadline = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(client.time + seconds))
            answer = client.post("AddOrder", **MARKET, deadline=deadline)
            with self.subTest(seconds=seconds):
                self.assertEqual(answer["error"], [words] if words else [])

    def test_the_volume_zero_asks_kraken_to_count_what_closes(self) -> None:
        client = Client()
        client.order(leverage="2")
        client.order(type="sell", leverage="2", volume="0")
        self.assertEqual(client.result("OpenPositions"), {})

    def test_why_a_close_was_not_filled_is_shown(self) -> None:
        client = Client()
        client.order(leverage="2")
        close = {"type": "sell", "leverage": "2", "reduce_only": "true", "volume": "0.05"}
        for share, reason in ((0.5, "Market price protection"), (1, "Position is closed")):
            client.control("status", fill_share=share)
            txid = client.order(**close)["txid"][0]
            order = client.result("QueryOrders", txid=txid)[txid]
            self.assertEqual((order["status"], order["reason"]), ("canceled", reason))

    def test_an_order_that_only_reduces_is_refused_on_the_side_of_the_position(self) -> None:
        client = Client()
        for side in ("buy", "sell"):
            client.order(type=side, leverage="2")
            refused = client.refusal(type=side, leverage="2", reduce_only="true")
            self.assertEqual(refused, "EOrder:Reduce only:Cannot increase position")
            client.control("position", pair="XBTUSD", close=True)
            client.time += 1

    def test_an_opposite_order_without_leverage_leaves_the_position(self) -> None:
        client = Client()
        client.order(leverage="2")
        client.order()
        client.order(type="sell")
        self.assertEqual(len(client.result("OpenPositions")), 1)

    def test_an_unknown_id_is_no_error_and_no_id_is_one(self) -> None:
        client = Client()
        self.assertEqual(client.result("QueryOrders", txid="OAAAAA-BBBBB-CCCCCC"), {})
        self.assertEqual(client.error("QueryOrders", cl_ord_id=ID), "EGeneral:Invalid arguments")
        self.assertEqual(client.error("CancelOrder", txid="O"), "EOrder:Unknown order")

    def test_closed_orders_come_fifty_a_page_newest_first(self) -> None:
        client = Client()
        for _ in range(60):
            client.order(volume="0.0001")
            client.time += 1
        page = client.result("ClosedOrders")
        self.assertEqual((len(page["closed"]), page["count"]), (50, 60))
        times = [row["opentm"] for row in page["closed"].values()]
        self.assertEqual(times, sorted(times, reverse=True))
        self.assertEqual(len(client.result("ClosedOrders", ofs=50)["closed"]), 10)
        late = client.result("ClosedOrders", start=times[3], closetime="open", without_count="true")
        self.assertEqual(len(late["closed"]), 3)
        self.assertNotIn("count", late)


class HistoryTest(unittest.TestCase):
    def test_an_id_as_start_or_end_stands_for_its_time(self) -> None:
        client = Client()
        for _ in range(4):
            client.order(leverage="2")
            client.time += 1
        views = {"ClosedOrders": "closed", "TradesHistory": "trades", "Ledgers": "ledger"}
        for name, key in views.items():
            with self.subTest(name=name):
                ids = list(client.result(name)[key])
                for edge, want in (("start", ids[:2]), ("end", ids[2:])):
                    found = client.result(name, closetime="open", **{edge: ids[2]})[key]
                    self.assertEqual(list(found), want)
                wrong = client.error(name, start="OAAAAA-BBBBB-CCCCCC")
                self.assertEqual(wrong, "EGeneral:Invalid arguments:start")

    def test_a_client_order_id_is_found_by_its_very_words_or_its_128_bits(self) -> None:
        for sent, asked, others in (
            ("a,b", ("a,b",), ("a", "all")),
            (ID, (ID, ID.upper(), ID.replace("-", "")), (ID[:-1] + "0",)),
            (ID.replace("-", "").upper(), (ID,), ("all",)),
        ):
            client = Client()
            client.order(cl_ord_id=sent)
            for text in (*asked, *others):
                with self.subTest(sent=sent, text=text):
                    found = client.result("ClosedOrders", cl_ord_id=text)
                    self.assertEqual(found["count"], int(text in asked))
            for text in asked:
                self.assertIn("not unique", client.refusal(cl_ord_id=text))

    def test_a_word_that_kraken_does_not_know_is_refused(self) -> None:
        client = Client()
        for method, name in (
            ("ClosedOrders", "closetime"),
            ("TradesHistory", "type"),
            ("OpenPositions", "docalcs"),
        ):
            self.assertEqual(client.error(method, **{name: "bogus"}), f"{BAD}:{name}")

    def test_trades_are_listed_by_what_they_did_to_positions(self) -> None:
        client = Client()
        client.order()
        client.order(leverage="2")
        client.order(type="sell", leverage="2")
        counts = {"all": 3, "any position": 2, "closing position": 1, "no position": 1}
        for kind, count in counts.items():
            self.assertEqual(client.result("TradesHistory", type=kind)["count"], count, kind)
        wrong = client.error("TradesHistory", type="closed position")
        self.assertEqual(wrong, "EAPI:Feature disabled")

    def test_an_entry_of_the_ledger_is_found_by_its_id(self) -> None:
        client = Client()
        for count in (2, 4):
            client.order()
            ledger = client.result("Ledgers")["ledger"]
            self.assertEqual(len(ledger), count)
            name = next(iter(ledger))
            self.assertEqual(client.result("QueryLedgers", id=name), {name: ledger[name]})

    def test_the_volume_traded_is_that_of_thirty_days(self) -> None:
        client = Client()
        client.order(), client.order(type="sell")
        trades = client.result("TradesHistory")["trades"].values()
        volume = sum(D(row["cost"]) for row in trades).quantize(D("0.0001"))
        self.assertEqual(D(client.result("TradeVolume")["volume"]), volume)
        client.time += 31 * 86400
        self.assertEqual(D(client.result("TradeVolume")["volume"]), 0)

    def test_the_ledger_is_asked_for_by_asset_and_type(self) -> None:
        client = Client()
        client.order()
        for assets in ("XXBT,ZEUR", "XBT,EUR"):
            self.assertEqual(client.result("Ledgers", asset=assets, type="trade")["count"], 1)
        self.assertEqual(client.result("Ledgers", type="rollover")["count"], 0)
        self.assertEqual(client.error("Ledgers", asset="FOO"), "EQuery:Unknown asset")


class TimePassesTest(unittest.TestCase):
    def test_after_a_long_step_the_ledger_holds_every_rollover_and_its_balance(self) -> None:
        client = Client()
        for pair in ("XBTUSD", "ETHUSD", "XBTUSD", "SOLUSD", "ETHUSD"):
            client.order(pair=pair, volume="0.1", leverage="2")
            client.time += 700
        client.control("price", pair="ETHUSD", price="3000")
        client.control("clock", advance=2 * 86400)
        client.control("price", pair="ETHUSD", price=None)
        client.control("clock", advance=86400)
        first, rest = (client.result("Ledgers", ofs=ofs)["ledger"] for ofs in (0, 50))
        rows = list((first | rest).values())[::-1]
        self.assertEqual(len(rows), 5 + 5 * 18)
        balance = D(10000)
        for row in rows:
            balance += D(row["amount"]) - D(row["fee"])
            self.assertEqual(D(row["balance"]), balance)

    def test_a_month_passes_quickly_and_not_more_of_it_at_once(self) -> None:
        client = Client()
        client.order(leverage="2")
        began = time.process_time()
        self.assertNotIn("error", client.control("clock", advance=31 * 86400))
        self.assertLess(time.process_time() - began, 5)
        self.assertIn("31 days", str(client.control("clock", advance=31 * 86400 + 1)["error"]))

    def test_a_price_set_by_hand_stays_in_the_finished_candles(self) -> None:
        client = Client()
        start = client.time = START // 60 * 60
        for price, after_s in (("50000", 10), ("0", 5), (None, 115), (None, 60)):
            client.time += after_s
            client.control("price", pair="XBTUSD", price=price)
            rows = client.get(f"OHLC?pair=XBTUSD&since={int(start) - 60}")["result"]["XXBTZUSD"]
            first, *later = (row[1:5] for row in rows)
            self.assertEqual(first, [first[0], first[0], "50000.0", "50000.0"])
        flat, last, _ = later
        self.assertEqual(flat, ["50000.0"] * 4)
        self.assertEqual((last[0], last[2]), ("50000.0", "50000.0"))
        self.assertLess(D(60000), D(last[3]))
        self.assertLessEqual(D(last[3]), D(last[1]))

    def test_a_price_from_before_a_position_does_not_liquidate_it(self) -> None:
        for is_freed in (False, True):
            client = Client()
            for price in ("20000", "60000"):
                client.control("price", pair="XBTUSD", price=price)
                client.time += 5
            client.order(volume="0.3", leverage="2")
            if is_freed:
                client.control("price", pair="XBTUSD", price=None)
            client.time += 60
            self.assertTrue(client.result("OpenPositions"), is_freed)

    def test_a_balance_is_set_under_either_name_of_its_asset(self) -> None:
        balances = Client().control("balance", asset="USD", amount="50")["balances"]
        self.assertEqual((D(50), None), (D(balances["ZUSD"]), balances.get("USD")))

    def test_an_empty_close_is_no_second_order(self) -> None:
        self.assertIn("txid", Client().order(close="{}"))

    def test_a_position_is_liquidated_by_hand(self) -> None:
        client = Client()
        client.order(pair="ETHUSD", leverage="2")
        self.assertIn("ml", client.result("TradeBalance"))
        self.assertEqual(client.control("position", pair="ETHUSD", liquidate=True)["position"], {})
        self.assertNotIn("ml", client.result("TradeBalance"))
        order = next(iter(client.result("ClosedOrders")["closed"].values()))
        self.assertEqual((order["misc"], order["descr"]["type"]), ("liquidated", "sell"))

    def test_amounts_beyond_all_markets_are_refused(self) -> None:
        for name, params in (
            ("balance", {"asset": "ZUSD", "amount": "1e24"}),
            ("balance", {"asset": "ZUSD", "amount": "-1e15"}),
            ("balance", {"asset": "NOPE", "amount": "1"}),
            ("balance", {"asset": 1.5, "amount": "1"}),
            ("price", {"pair": "XBTUSD", "price": "1e15"}),
        ):
            self.assertIn("error", Client().control(name, **params))

    def test_amounts_too_large_to_be_rounded_stop_nobody(self) -> None:
        client = Client()
        client.control("position", pair="XBTUSD", side="sell", volume="0.0001")
        client.control("balance", asset="ZUSD", amount="999999999999999")
        self.assertNotIn("error", client.control("price", pair="XBTUSD", price="99999999999999"))
        self.assertNotIn("error", client.control("clock", advance=120))
        self.assertEqual(client.get("Time")["error"], [])
        rules = client.api.markets.pair("XBTUSD")
        client.api.markets.series(rules).by_hand.append((START, 1e30))
        failed = client.control("clock", advance=14400)
        self.assertEqual(failed, {"error": ["EGeneral:Internal error"]})

    def test_a_margin_that_rounds_to_nothing_is_shown(self) -> None:
        client = Client()
        client.control("price", pair="XBTUSD", price="0.2")
        client.control("status", fill_share="0.000000001")
        client.order(volume="10", leverage="2")
        (market,) = client.result("OpenPositions", consolidation="market")
        self.assertEqual((market["margin"], market["vol"]), ("0.00000", "0.00000001"))

    def test_a_person_opens_and_closes_a_position(self) -> None:
        client = Client()
        truth = client.control("position", pair="XBTUSD", side="sell", volume="0.01")
        self.assertEqual(truth["position"], {"XXBTZUSD": "-0.01"})
        client.control("status", fill_share="0.5")
        self.assertEqual(client.control("position", pair="XBTUSD", close=True)["position"], {})

    def test_a_clock_goes_forward_or_stands_still(self) -> None:
        client = Client()
        self.assertEqual(client.control("clock", advance=3600)["time"], START + 3600)
        client.control("clock", freeze=True)
        client.time += 100
        self.assertEqual(client.control("clock", freeze=False)["time"], START + 3600)
        client.time += 100
        self.assertEqual(client.api.now(), START + 3700)
        self.assertIn("error", client.control("clock", now=1))

    def test_a_pair_s_status_is_set_and_an_unknown_control_refused(self) -> None:
        client = Client()
        client.control("status", pair="XBTUSD", status="cancel_only")
        self.assertEqual(client.refusal(), "EService:Market in cancel_only mode")
        self.assertIn("error", client.control("nothing", x=1))

    def test_the_books_do_not_depend_on_how_often_they_are_looked_at(self) -> None:
        seen = []
        for step in (97, 5000):
            client = Client()
            client.order(volume="0.3", leverage="5")
            while client.time < START + 50000:
                client.time = min(client.time + step, START + 50000)
                client.result("OpenPositions")
            truth = client.control("ledger")
            seen.append([truth[name] for name in ("balances", "rollover", "position", "equity")])
        self.assertEqual(seen[0], seen[1])


class HttpTest(unittest.TestCase):
    sandbox: Sandbox

    @classmethod
    def setUpClass(cls) -> None:
        cls.sandbox = Sandbox("random:1")
        cls.addClassCleanup(cls.sandbox.close)

    def address(self) -> tuple[str, int]:
        host, port = self.sandbox.url.removeprefix("http://").split(":")
        return host, int(port)

    def raw(self, request: bytes) -> bytes:
        with socket.create_connection(self.address(), 5) as connection:
            connection.sendall(request)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def test_one_connection_serves_many_requests(self) -> None:
        connection = http.client.HTTPConnection(*self.address(), timeout=5)
        self.addCleanup(connection.close)
        for _ in range(3):
            connection.request("GET", "/0/public/Time")
            answer = connection.getresponse()
            self.assertEqual(json.loads(answer.read())["error"], [])
            self.assertEqual(answer.status, 200)

    def test_pages_of_other_sites_and_foreign_hosts_are_refused(self) -> None:
        cross = "Host: localhost\r\nSec-Fetch-Site: cross-site"
        hosts = ("Host: evil.example", "Host: 127.0.0.1.evil.example")
        for line in (*hosts, "Origin: http://x", cross):
            with self.subTest(line=line):
                answer = self.raw(f"GET /0/public/Time HTTP/1.1\r\n{line}\r\n\r\n".encode())
                self.assertTrue(answer.startswith(b"HTTP/1.1 403 "), answer)
        for host in ("localhost:1", "[::1]:80", "127.0.0.1"):
            answer = self.raw(f"GET /0/public/Time HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)

    def test_nonsense_and_too_much_of_it_is_refused(self) -> None:
        post = b"POST /0/private/Balance HTTP/1.1\r\n"
        for request, status in (
            (b"hello\r\n\r\n", b"400"),
            (post + b"Content-Length: 99999999\r\n\r\n", b"413"),
            (post + b"Content-Length: -1\r\n\r\n", b"400"),
            (post + b"Transfer-Encoding: chunked\r\n\r\n", b"400"),
            (post + b"a: b\r\na: c\r\n\r\n", b"400"),
            (post + b"a: b\r\n" * 200 + b"\r\n", b"431"),
            (post + b"a: " + b"x" * 70000 + b"\r\n\r\n", b"431"),
            (b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n", b"414"),
        ):
            with self.subTest(request=request[:60]):
                self.assertEqual(self.raw(request).split(b" ")[1:2], [status])

    def test_a_head_is_refused_without_a_body(self) -> None:
        answer = self.raw(b"HEAD /0/public/Time HTTP/1.1\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 501 "), answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n"), answer)

    def test_faults_are_set_and_taken_back_on_a_running_sandbox(self) -> None:
        def control(name: str, params: dict[str, str]) -> Any:
            body = json.dumps(params).encode()
            head = f"POST /sandbox/{name} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
            return json.loads(self.raw(head.encode() + body).partition(b"\r\n\r\n")[2])

        self.assertNotIn("error", control("faults", {"spec": "lost-before=1"}))
        self.assertEqual(self.raw(b"GET /0/public/Time HTTP/1.1\r\n\r\n"), b"")
        self.assertIn("error", control("faults", {"spec": "nonsense=1"}))
        self.assertNotIn("error", control("faults", {"spec": ""}))
        answer = self.raw(b"GET /0/public/Time HTTP/1.1\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))

    def test_a_silent_client_stops_nobody(self) -> None:
        with socket.create_connection(self.address(), 5) as silent:
            silent.sendall(b"POST /0/private/Balance HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
            answer = self.raw(b"GET /0/public/Time HTTP/1.1\r\n\r\n")
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))


class CommandTest(unittest.TestCase):
    def setUp(self) -> None:  # The command blocks the signals that end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.addCleanup(signal.pthread_sigmask, signal.SIG_SETMASK, before)

    def test_it_says_where_it_listens_and_ends_cleanly_on_sigterm(self) -> None:
        command = [sys.executable, "-m", "krakenbot", "sandbox", "--port", "0"]
        where, pipe = Path(__file__).parent.parent.parent, subprocess.PIPE
        with (
            subprocess.Popen(command, stdout=pipe, text=True, cwd=where) as one,
            subprocess.Popen(command, stdout=pipe, text=True, cwd=where) as other,
        ):
            for process, number in ((one, signal.SIGTERM), (other, signal.SIGINT)):
                assert process.stdout is not None
                line = process.stdout.readline()
                self.assertRegex(line, r"\Asandbox listening on http://127\.0\.0\.1:\d+\n\Z")
                process.send_signal(number)
                self.assertEqual(process.wait(5), 0)

    def test_a_port_that_is_taken_is_named_and_so_is_the_way_out(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = call("sandbox", "--port", str(port))
        want = f"krakenbot: port {port}: Address already in use; --port 0 takes any free one\n"
        self.assertEqual((2, want), (done.code, done.err))

    def test_wrong_options_end_with_two(self) -> None:
        for options in ("--feed csv:/nowhere_1.csv", "--speed 0", "--fee x", "--port 70000"):
            with self.subTest(options=options):
                done = call("sandbox", "--port", "0", *options.split())
                self.assertEqual((2, 1), (done.code, len(done.err.splitlines())))
