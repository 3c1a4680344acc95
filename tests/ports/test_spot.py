import copy
import json
import os
import unittest
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import reduce
from itertools import product, repeat
from operator import getitem, itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.kraken.spot import Spot
from krakenbot.model import Execution, Order, OrderStatus, Side, SystemStatus
from tests.clients import signing
from tests.clocks import StandingClock
from tests.logs import silence
from tests.rules.test_pairs import ROW

RECORDED = os.environ.get("TEST_DATA_KRAKEN")
ID = "6d1b345e-2821-40e2-ad83-4ecb18a06876"
ABSENT = object()
TXID = "OUF4EM-FRGI2-MQMWZD"
SINCE = 1_790_000_000
ORDER = Order(ID, Side.SELL, Decimal("0.00005"), 2, True)


def row(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return found


# Answers written by hand after the documentation of each method.
OPEN_ORDER = {"cl_ord_id": ID} | row("""{
    "refid": null, "userref": 0, "status": "open", "opentm": 1790000001.62, "starttm": 0,
    "expiretm": 0, "vol": "0.04000000", "vol_exec": "0.00000000", "cost": "0.00000",
    "fee": "0.00000", "price": "0.00000", "misc": "", "oflags": "fciq",
    "descr": {"pair": "XBTUSD", "type": "sell", "ordertype": "market", "leverage": "2:1"}
}""")
CLOSED_ORDER = OPEN_ORDER | row("""{
    "status": "closed", "reason": null, "closetm": 1790000001.64, "vol_exec": "0.04000000",
    "cost": "2000.00000", "fee": "16.00000", "price": "50000.0"
}""")
POSITION = row("""{
    "ordertxid": "O6WVA4-LI5QL-GPHYKL", "posstatus": "open", "pair": "XXBTZUSD", "class": "forex",
    "time": 1790000001.583491, "type": "buy", "ordertype": "market", "cost": "2000.00000",
    "fee": "16.40000", "vol": "0.04000000", "vol_closed": "0.01000000", "margin": "1000.00000",
    "terms": "0.0200% per 4 hours", "rollovertm": "1790014401", "misc": "", "oflags": ""
}""")
LEDGER_ROW = row("""{
    "refid": "TAGKDK-PVBGJ-RZ4N35", "time": 1790014402.6, "type": "rollover", "subtype": "",
    "aclass": "currency", "asset": "ZUSD", "amount": "0.0000", "fee": "0.4000", "balance": "1983.2"
}""")
TRADE = {"ordertxid": TXID, "pair": "XXBTZUSD", "type": "sell", "cost": "2000.00000"}
ANSWERS: dict[str, Any] = row("""{
    "Time": {"unixtime": 1762820224, "rfc1123": "Tue, 11 Nov 25 00:17:04 +0000"},
    "SystemStatus": {"status": "online", "timestamp": "2026-10-01T00:00:00Z"},
    "OHLC": {"last": 1791417600, "XXBTZUSD": [
        [1791417600, "83276.1", "83467.7", "80328.6", "81683.8", "81878.5", "4015.1", 196775],
        [1791504000, "81683.8", "81771.5", "81656.4", "81723.4", "81717.5", "3.55", 1117]
    ]},
    "Ticker": {"XXBTZUSD": {
        "a": ["50000.10000", "1", "1.000"], "b": ["50000.00000", "1", "1.000"],
        "c": ["50000.00000", "0.00009443"]
    }},
    "TradeBalance": {
        "eb": "2000.0000", "tb": "1982.8000", "m": "1000.0000", "uv": "0.0000", "n": "40.0000",
        "c": "2000.0000", "v": "2040.0000", "e": "2022.8000", "mf": "1022.8000", "ml": "202.28"
    },
    "Balance": {"ZUSD": "2970172.7962", "XXBT": "3.2223768244"},
    "TradeVolume": {
        "currency": "ZUSD", "volume": "120.5000", "fees_maker": {"XXBTZUSD": {"fee": "0.3000"}},
        "fees": {"XXBTZUSD": {"fee": "0.6000", "minfee": "0.0500", "maxfee": "0.8000"}}
    },
    "OpenOrders": {"open": {}},
    "GetApiKeyInfo": {"permissions": ["query-funds", "modify-trades"], "nonce": "1"}
}""") | {
    "AssetPairs": {"XXBTZUSD": ROW},
    "OpenPositions": {
        "TS3FY4-PAZT6-E4TLCB": POSITION,
        "T24DOR-TAFLM-ID3NYP": POSITION | {"vol_closed": "0.00000000"},
    },
    "Ledgers": {"ledger": {"L4UESK-KG3EQ-UFO4T5": LEDGER_ROW}, "count": 1},
    "AddOrder": {"descr": {"order": "sell 0.00005 XBTUSD @ market"}, "txid": [TXID]},
    "ClosedOrders": {"closed": {TXID: CLOSED_ORDER}},
    "QueryOrders": {TXID: CLOSED_ORDER},
    "TradesHistory": {
        "trades": {
            "TAGKDK-PVBGJ-RZ4N35": TRADE,
            "TBGKDK-PVBGJ-RZ4N35": {"ordertxid": "OOTHER-AAAAA-BBBBBB", "pair": "XETHZUSD"},
        }
    },
}


class Kraken:
    """A transport that answers each method as it was told, and notes what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = ANSWERS | answers
        self.asked: list[tuple[str, dict[str, str]]] = []

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        parts = urlsplit(url)
        name = parts.path.rsplit("/", 1)[1]
        query = body.decode() if body is not None else parts.query
        params = {key: values[-1] for key, values in parse_qs(query).items()}
        self.asked.append((name, params))
        answer = self.answers[name]
        if callable(answer):
            answer = answer(params)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, bytes):
            return 200, answer
        return 200, json.dumps({"error": [], "result": answer}, default=float).encode()

    def params(self, method: str) -> dict[str, str]:
        return next(params for name, params in reversed(self.asked) if name == method)


def spot(kraken: Kraken, pair: str = "XBTUSD", **more: Any) -> Spot:
    return Spot(signing(kraken, "http://127.0.0.1:1", StandingClock(1000.0)), pair, 86400, **more)


def error(text: str) -> bytes:
    return json.dumps({"error": [text]}).encode()


def found(exchange: Spot, name: str = ID) -> Execution:
    execution = exchange.find(name, SINCE)
    assert execution is not None
    return execution


class TestMarket(unittest.TestCase):
    def test_time_status_rules_and_quote_are_read(self) -> None:
        kraken = Kraken()
        exchange = spot(kraken)
        self.assertEqual(1762820224, exchange.server_time())
        self.assertEqual("online", exchange.market_status().status)
        self.assertEqual("XXBTZUSD", exchange.rules().pair)
        quote = exchange.quote()
        self.assertEqual((Decimal("50000"), Decimal("50000.1")), (quote.bid, quote.ask))

    def test_candles_are_asked_for_in_minutes_and_under_the_altname_once_it_is_known(self) -> None:
        kraken = Kraken()
        exchange = spot(kraken, "BTC/USD")
        exchange.rules()
        self.assertEqual([1791417600, 1791504000], [c.time for c in exchange.candles(1791331200)])
        asked = kraken.params("OHLC")
        self.assertEqual(
            ("XBTUSD", "1440", "1791331200"), (asked["pair"], asked["interval"], asked["since"])
        )
        exchange.candles(None)
        self.assertNotIn("since", kraken.params("OHLC"))

    def test_once_the_pair_is_known_answers_about_another_one_are_none(self) -> None:
        kraken = Kraken()
        exchange = spot(kraken)
        exchange.rules()
        exchange.quote()
        kraken.answers["OHLC"] = {"XETHZUSD": kraken.answers["OHLC"]["XXBTZUSD"], "last": 1}
        kraken.answers["Ticker"] = {"XETHZUSD": {"a": ["3001"], "b": ["3000"]}}
        kraken.answers["AssetPairs"] = {"XETHZUSD": {**ROW, "altname": "ETHUSD"}}
        for method in ("OHLC", "Ticker", "AssetPairs"):
            with self.subTest(method), self.assertRaisesRegex(UnansweredError, "XETHZUSD"):
                CALLS[method](exchange)
        self.assertEqual("XXBTZUSD", exchange.known_rules().pair)

    def test_a_crossed_or_empty_quote_is_no_answer(self) -> None:
        for ask, bid in (("1", "2"), ("0", "0"), ("2", "0"), ("2", "-1"), ("0", "1")):
            kraken = Kraken(Ticker={"X": {"a": [ask], "b": [bid]}})
            with self.subTest(ask=ask, bid=bid), self.assertRaises(UnansweredError):
                spot(kraken).quote()

    def test_the_asset_class_travels_wherever_kraken_wants_it(self) -> None:
        kraken = Kraken()
        exchange = spot(kraken, asset_class="tokenized_asset")
        exchange.rules()
        exchange.candles(None)
        exchange.quote()
        exchange.place(ORDER, SINCE)
        self.assertEqual("tokenized_asset", kraken.params("AssetPairs")["aclass_base"])
        for method in ("OHLC", "Ticker", "AddOrder"):
            self.assertEqual("tokenized_asset", kraken.params(method)["asset_class"])


class TestAccount(unittest.TestCase):
    def test_the_margin_numbers_are_those_of_the_quote_currency(self) -> None:
        kraken = Kraken()
        got = spot(kraken).summary()
        self.assertEqual((Decimal("2022.8"), Decimal("1022.8")), (got.equity, got.free_margin))
        self.assertEqual(Decimal("202.28"), got.margin_level)
        self.assertEqual("ZUSD", kraken.params("TradeBalance")["asset"])

    def test_flat_there_is_no_margin_level_and_resting_orders_bind_margin(self) -> None:
        flat = {"tb": "20000.0", "n": "0.0", "m": "0.0", "mf": "20000.0", "mfo": "50.0"}
        got = spot(Kraken(TradeBalance=flat)).summary()
        self.assertEqual((None, 50), (got.margin_level, got.free_margin))
        for mfo, free in ((0, 0), ("0.0000", 0), (None, 20000), ("", 20000)):
            with self.subTest(mfo):
                margin = spot(Kraken(TradeBalance=flat | {"mfo": mfo})).summary()
                self.assertEqual(free, margin.free_margin)

    def test_a_position_is_the_sum_of_what_is_left_of_its_fills(self) -> None:
        got = spot(Kraken()).position()
        self.assertEqual((Decimal("0.07"), Decimal(3500)), (got.volume, got.cost))
        for empty in ({}, []):  # Both ways of showing none.
            self.assertEqual(0, spot(Kraken(OpenPositions=empty)).position().volume)
        for odd in (0, "", False, Decimal(0)):
            with self.subTest(repr(odd)), self.assertRaises(UnansweredError):
                spot(Kraken(OpenPositions=odd)).position()
        for change in ({"vol_closed": "0.05"}, {"vol": "0", "vol_closed": "-0.01"}):
            with self.subTest(change), self.assertRaises(UnansweredError):
                spot(Kraken(OpenPositions={"T1": POSITION | change})).position()

    def test_a_short_position_is_negative_and_those_of_other_pairs_are_not_counted(self) -> None:
        other = POSITION | {"pair": "XETHZUSD"}
        for name in ("XXBTZUSD", "XBTUSD"):
            positions = {"T1": POSITION | {"type": "sell", "pair": name}, "T2": other}
            held = spot(Kraken(OpenPositions=positions)).position().volume
            self.assertEqual(Decimal("-0.03"), held)

    def test_charges_are_the_pair_s_trades_and_all_rollovers_in_any_currency(self) -> None:
        rollover, in_coins = LEDGER_ROW | {"refid": "TS3FY4-PAZT6-E4TLCB"}, {"asset": "XXBT"}
        opening = LEDGER_ROW | {"type": "margin", "fee": "16"}
        margin_fee = LEDGER_ROW | {"type": "margin", "fee": "0.00001"} | in_coins
        foreign = opening | {"refid": "TBGKDK-PVBGJ-RZ4N35"}
        deposit = opening | {"type": "deposit"}
        rows = [rollover, rollover | in_coins, opening, margin_fee, foreign, deposit]
        ledger = {"ledger": {f"L{number}": row for number, row in enumerate(rows)}}
        kraken = Kraken(Ledgers=ledger)
        charges = spot(kraken).charges(SINCE, SINCE + 86400, repeat(0))
        self.assertEqual(
            [
                ("L0", "", 0, Decimal("0.4"), "ZUSD"),
                ("L1", "", 0, Decimal("0.4"), "XXBT"),
                ("L2", TXID, 2000, Decimal(16), "ZUSD"),
                ("L3", TXID, 0, Decimal("0.00001"), "XXBT"),
            ],
            [(x.id, x.order_id, x.cost, x.fee, x.asset) for x in charges],
        )
        self.assertEqual("TAGKDK-PVBGJ-RZ4N35", charges[2].trade_id)
        # Fills one by one, as the ledger has them.
        self.assertEqual("false", kraken.params("TradesHistory")["consolidate_taker"])

    def test_the_fee_is_the_account_s_taker_fee_or_the_configured_one_or_none(self) -> None:
        silence(self)
        self.assertEqual(Decimal("0.006"), spot(Kraken()).fee_rate())
        for answer in ({}, {"fees": {}}, {"fees": None}, [], {"fees": {"XXBTZUSD": {"fee": "80"}}}):
            kraken = Kraken(TradeVolume=answer)
            with self.subTest(answer=answer), self.assertRaises(UnansweredError):
                spot(kraken).fee_rate()
            configured = Decimal("0.001")
            self.assertEqual(configured, spot(kraken, fee_rate=configured).fee_rate())

    def test_a_window_is_read_whole_however_many_trades_there_are(self) -> None:
        for each_second, count in ((1, 1500), (40, 10_500), (700, 1500), (4, 99)):
            rows = [
                {"pair": "ETHUSD", "ordertxid": f"O{n}", "time": SINCE + n // each_second + 0.5}
                for n in range(count)
            ]
            own = rows if count == 99 else (rows[7], rows[-10])
            for row in own:
                row["pair"] = "XBTUSD"

            def page(params: dict[str, str], rows: list[Any] = rows) -> Any:
                start, end, offset = (int(params.get(key, 0)) for key in ("start", "end", "ofs"))
                first, last = (
                    bisect_right(rows, at, key=itemgetter("time")) for at in (start, end)
                )
                newest = rows[first:last][::-1]
                if offset and len(rows) < 100:  # Rows of one moment may stand in another order.
                    newest.sort(key=lambda row: (-row["time"], int(row["ordertxid"][1:])))
                chosen = newest[offset : offset + 50]
                return {"trades": {f"T{row['ordertxid']}": row for row in chosen}}

            traded = spot(Kraken(TradesHistory=page)).traded_orders(SINCE, SINCE + 1500)
            with self.subTest(each_second):
                self.assertEqual({row["ordertxid"] for row in own}, set(traded))

    def test_an_exchange_that_shows_the_same_page_for_ever_is_no_answer(self) -> None:
        rows = {f"T{n}": {"pair": "X", "ordertxid": "O", "time": SINCE + 9} for n in range(50)}
        kraken = Kraken(TradesHistory={"trades": rows})
        with self.assertRaises(UnansweredError):
            spot(kraken).traded_orders(SINCE, SINCE + 86400)
        self.assertLess(len(kraken.asked), 6)


class TestWhatElseIsTold(unittest.TestCase):
    def test_announcements_are_words_and_none_of_them_hides_the_status(self) -> None:
        event = {"title": "Upgrade", "expected_start_utc": "2026-05-11T09:00:00Z", "phase": "x"}
        odd = {"upcoming_maintenance": [event], "emergency": ["fire", 5, None, {}]}
        status = spot(Kraken(SystemStatus={"status": "online", **odd})).market_status()
        self.assertEqual(("online", "fire"), (status.status, status.notices[0]))
        self.assertEqual("Upgrade, 2026-05-11T09:00:00Z", status.notices[-1])
        for absent in ({}, {"upcoming_maintenance": True, "emergency": "burns"}):
            status = spot(Kraken(SystemStatus={"status": "online", **absent})).market_status()
            self.assertEqual(SystemStatus("online"), status)

    def test_borrowing_costs_what_the_lent_asset_s_row_says(self) -> None:
        rows = {"ZUSD": {"margin_rate": "0.025"}, "XXBT": {"margin_rate": "0.01"}}
        kraken = Kraken(Assets=rows)
        self.assertEqual((Decimal("0.00025"), Decimal("0.0001")), spot(kraken).margin_rates())
        silence(self)
        for row in ({}, {"margin_rate": None}, {"margin_rate": "x"}, {"margin_rate": "99"}, 5):
            kraken = Kraken(Assets={"ZUSD": row, "XXBT": row})
            self.assertEqual((None, None), spot(kraken).margin_rates())

    def test_a_key_is_known_by_its_account_and_last_nonce_where_they_are_told(self) -> None:
        told = {"permissions": ["query-funds"], "nonce": "1772611", "iban": "AA00 N1"}
        got = spot(Kraken(GetApiKeyInfo=told)).key_info()
        self.assertEqual((("query-funds",), 1772611, "AA00 N1"), got)
        got = spot(Kraken(GetApiKeyInfo={"permissions": [], "nonce": "n/a"})).key_info()
        self.assertEqual(((), None, ""), got)


class TestPlacing(unittest.TestCase):
    def test_an_order_says_everything_that_it_must_and_nothing_that_does_not_fit(self) -> None:
        on_margin = f" leverage=2 reduce_only=true cl_ord_id={ID} deadline=2021-04-01T00:18:45Z"
        said = f"ordertype=market type=sell pair=XBTUSD volume=0.00005 oflags=fciq{on_margin}"
        expected = dict(words.split("=") for words in said.split())
        kraken = Kraken()
        spot(kraken).place(ORDER, 1_617_236_325)
        asked = kraken.params("AddOrder")
        self.assertEqual(expected | {"nonce": asked["nonce"]}, asked)
        spot(kraken).place(ORDER._replace(leverage=0, reduce_only=False), SINCE)
        self.assertFalse({"leverage", "reduce_only"} & set(kraken.params("AddOrder")))
        spot(kraken, trading_agreement=True).place(ORDER, SINCE)
        self.assertEqual("agree", kraken.params("AddOrder")["trading_agreement"])

    def test_an_answer_without_exactly_one_order_id_is_no_answer(self) -> None:
        for ids in (None, [], [TXID, TXID + "X"], TXID, "O", [None], [5], [""], {}, True):
            for answer in ({"descr": {}, "txid": ids}, {"descr": {}}, [], "text", {}):
                with self.subTest(answer), self.assertRaises(UnansweredError):
                    spot(Kraken(AddOrder=answer)).place(ORDER, SINCE)

    def test_refusals_of_the_exchange_are_handed_on_as_they_are(self) -> None:
        for text, kind in {
            "EOrder:Insufficient initial margin": RefusedError,
            "EService:Market in post_only mode": LaterError,
            "EService:Unavailable": UnansweredError,
            "EAPI:Invalid key": StopError,
        }.items():
            with self.subTest(text), self.assertRaises(kind):
                spot(Kraken(AddOrder=error(text))).place(ORDER, SINCE)

    def test_a_dry_check_never_makes_an_order_even_with_a_live_client(self) -> None:
        kraken = Kraken(AddOrder={"descr": {"order": "sell"}})
        spot(kraken).validate(ORDER)
        self.assertEqual("true", kraken.params("AddOrder")["validate"])


class TestFinding(unittest.TestCase):
    def test_a_closed_order_is_found_by_its_own_id_with_what_it_traded(self) -> None:
        kraken = Kraken()
        amounts = Decimal("0.04"), Decimal(2000), Decimal(16)
        self.assertEqual((TXID, OrderStatus.CLOSED, *amounts), found(spot(kraken))[:5])
        for method in ("OpenOrders", "ClosedOrders"):
            self.assertEqual(ID, kraken.params(method)["cl_ord_id"])
        self.assertLessEqual(int(kraken.params("ClosedOrders")["start"]), SINCE - 60)

    def test_an_order_that_one_view_shows_by_its_id_is_found_whatever_the_other_says(self) -> None:
        nameless = {key: x for key, x in CLOSED_ORDER.items() if key != "cl_ord_id"}
        for open_row, closed_row, is_final in (
            (OPEN_ORDER, None, False),
            (OPEN_ORDER | {"status": "pending"}, None, False),
            (OPEN_ORDER, nameless, False),
            (OPEN_ORDER, CLOSED_ORDER, True),
            (None, CLOSED_ORDER | {"cl_ord_id": ID.upper()}, True),
            (None, CLOSED_ORDER | {"cl_ord_id": ID.replace("-", "")}, True),
        ):
            rows = [{TXID: row} if row else {} for row in (open_row, closed_row)]
            kraken = Kraken(OpenOrders={"open": rows[0]}, ClosedOrders={"closed": rows[1]})
            with self.subTest(open=open_row, closed=closed_row):
                self.assertEqual(is_final, found(spot(kraken)).status.is_final)

    def test_orders_of_others_are_not_taken_for_the_own_one(self) -> None:
        strangers = {
            "OAAAAA-AAAAA-AAAAAA": CLOSED_ORDER | {"cl_ord_id": "0" * 32},
            "OBBBBB-BBBBB-BBBBBB": CLOSED_ORDER | {"cl_ord_id": None},
            "OCCCCC-CCCCC-CCCCCC": {k: v for k, v in CLOSED_ORDER.items() if k != "cl_ord_id"},
        }
        kraken = Kraken(OpenOrders={"open": strangers}, ClosedOrders={"closed": strangers})
        self.assertIsNone(spot(kraken).find(ID, SINCE))
        kraken.answers["ClosedOrders"] = {"closed": strangers | {TXID: CLOSED_ORDER}}
        self.assertEqual(TXID, found(spot(kraken)).exchange_order_id)

    def test_several_orders_for_one_id_need_a_person(self) -> None:
        both = {TXID: CLOSED_ORDER, "OAAAAA-AAAAA-AAAAAA": CLOSED_ORDER}
        with self.assertRaises(StopError) as caught:
            spot(Kraken(ClosedOrders={"closed": both})).find(ID, SINCE)
        self.assertEqual(76, caught.exception.exit_code)
        with self.assertRaises(StopError):
            spot(Kraken(OpenOrders={"open": {"OAAAAA-AAAAA-AAAAAA": OPEN_ORDER}})).find(ID, SINCE)

    def test_an_accepted_order_is_followed_by_the_exchange_s_own_id(self) -> None:
        kraken = Kraken()
        exchange = spot(kraken)
        exchange.place(ORDER, SINCE)
        found(exchange)
        self.assertEqual(TXID, kraken.params("QueryOrders")["txid"])
        kraken.answers["QueryOrders"] = {}
        self.assertIsNone(exchange.find(ID, SINCE))
        kraken.answers["QueryOrders"] = {"OAAAAA-AAAAA-AAAAAA": CLOSED_ORDER | {"cl_ord_id": "0"}}
        self.assertRaises(UnansweredError, exchange.find, ID, SINCE)  # About other orders.

    def test_a_look_that_was_answered_only_in_part_is_no_look(self) -> None:
        for method in ("OpenOrders", "ClosedOrders"):
            busy, reset = error("EService:Busy"), UnansweredError("reset")
            for answer in (busy, reset, b"<html>", {}, [], {"x": {}}):
                kraken = Kraken(OpenOrders={"open": {}}, ClosedOrders={"closed": {}})
                kraken.answers[method] = answer
                with self.subTest(method=method, answer=answer), self.assertRaises(UnansweredError):
                    spot(kraken).find(ID, SINCE)

    def test_a_row_that_is_no_order_is_not_taken_for_no_order(self) -> None:
        other, odd = "OAAAAA-AAAAA-AAAAAA", [{"vol_exec": "-1"}, {"cost": "-1"}, {"status": "?"}]
        odd.append({"vol_exec": "0"})  # It has a cost all the same.
        for rows in (
            *({TXID: None}, {TXID: []}, {TXID: "closed"}, "", 0, False),
            *({TXID: CLOSED_ORDER | change} for change in odd),
            {TXID: CLOSED_ORDER, other: CLOSED_ORDER | {"vol_exec": "?"}},
        ):
            kraken = Kraken(ClosedOrders={"closed": rows})
            with self.subTest(rows), self.assertRaises(UnansweredError):
                spot(kraken).find(ID, SINCE)


CALLS: dict[str, Callable[[Spot], object]] = {
    "Time": lambda s: s.server_time(),
    "SystemStatus": lambda s: s.market_status(),
    "AssetPairs": lambda s: s.rules(),
    "OHLC": lambda s: s.candles(None),
    "Ticker": lambda s: s.quote(),
    "TradeBalance": lambda s: s.summary(),
    "Balance": lambda s: s.balances(),
    "OpenPositions": lambda s: s.position(),
    "Ledgers": lambda s: s.charges(SINCE, SINCE + 86400, repeat(0)),
    "TradeVolume": lambda s: s.fee_rate(),
    "AddOrder": lambda s: s.place(ORDER, SINCE),
    "OpenOrders": lambda s: s.find(ID, SINCE),
    "ClosedOrders": lambda s: s.find(ID, SINCE),
    "QueryOrders": lambda s: (s.place(ORDER, SINCE), s.find(ID, SINCE)),
    "TradesHistory": lambda s: s.traded_orders(SINCE, SINCE + 86400),
    "GetApiKeyInfo": lambda s: s.key_info(),
}
ODD_TEXTS = ("", "x", "NaN", "Infinity", "-Infinity", "1e400", "\ud800", "9" * 400)
ODD_VALUES = (None, -1, 0, 1.5, True, 10**400, [], {}, [[]], {"a": {}}, [None], *ODD_TEXTS)


def mutations(answer: Any) -> Iterator[Any]:
    """Yield copies of the answer with one part replaced by something odd, or left out."""
    yield from ODD_VALUES
    for *above, last in paths(answer):
        for odd in (*ODD_VALUES, ABSENT):
            changed = copy.deepcopy(answer)
            target = reduce(getitem, above, changed)
            if odd is ABSENT:
                del target[last]
            else:
                target[last] = odd
            yield changed


def paths(answer: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = range(len(answer)) if isinstance(answer, list) else answer
    for key in keys if isinstance(answer, list | dict) else ():
        yield (*before, key)
        yield from paths(answer[key], (*before, key))


class TestMutations(unittest.TestCase):
    def test_a_wrong_shape_anywhere_in_any_answer_is_no_answer_and_no_other_exception(self) -> None:
        answers = dict(ANSWERS)
        answers["OpenOrders"] = {"open": {TXID: OPEN_ORDER}}
        for method, call in CALLS.items():
            for changed in mutations(answers[method]):
                kraken = Kraken(**{method: changed})
                shown = str(changed)[:2000]
                with (
                    self.subTest(method=method, changed=shown),
                    suppress(UnansweredError, StopError),
                ):
                    call(spot(kraken))

    def test_numbers_out_of_all_bounds_are_no_answer_and_no_other_exception(self) -> None:
        numbers = (b"1e400", b"-1e400", b"1e99999", b"-5", b"1e30", b"-1e15")
        bodies = {
            "TradeBalance": b'{"tb": %s, "n": 0, "m": 0}',
            "Ledgers": b'{"ledger": {"L": {"refid": "T", "time": %s, "type": "rollover",'
            b' "asset": "ZUSD", "fee": "1"}}}',
        }
        for (method, body), number in product(bodies.items(), numbers):
            text = b'{"error": [], "result": ' + body % number + b"}"
            with self.subTest(method, number=number), suppress(UnansweredError):
                CALLS[method](spot(Kraken(**{method: text})))
        for number in numbers:
            text = b'{"error": [], "result": {"unixtime": ' + number + b"}}"
            with self.subTest(number), self.assertRaises(UnansweredError):
                spot(Kraken(Time=text)).server_time()

    def test_each_good_answer_is_accepted_before_it_is_broken(self) -> None:
        for method, call in CALLS.items():
            with self.subTest(method):
                call(spot(Kraken()))


@unittest.skipUnless(RECORDED, "TEST_DATA_KRAKEN names no folder with recorded answers")
class TestRecorded(unittest.TestCase):
    def load(self, name: str) -> bytes:
        return (Path(RECORDED or "") / name).read_bytes()

    def test_recorded_pairs_become_rules(self) -> None:
        for name in (
            "payloads/spot/constructed/asset_pairs_autumn2026.json",
            "payloads/spot/nautilus_trader/http_asset_pairs.json",
            "payloads/spot/nautilus_trader/http_asset_pairs_tokenized.json",
            "candles/rest/AssetPairs_XBTUSDT.json",
        ):
            for key, row in json.loads(self.load(name))["result"].items():
                with self.subTest(name=name, pair=key):
                    got = spot(Kraken(AssetPairs={key: row})).rules()
                    self.assertEqual(row["altname"], got.altname)
                    self.assertEqual(Decimal(row["ordermin"]), got.ordermin)

    def test_recorded_answers_are_read(self) -> None:
        for folder, files in {
            "candles/rest": "Time SystemStatus Ticker_XBTUSDT=Ticker",
            "candles/private_examples": "Balance Ledgers OpenPositions TradesHistory TradeVolume",
            "payloads/spot/kraken.net": "GetApiKeyInfo GetSystemStatus=SystemStatus"
            " GetOpenPositions=OpenPositions",
            "payloads/spot/constructed": "trade_balance_flat=TradeBalance"
            " trade_balance_long_2x=TradeBalance add_order_margin_market=AddOrder"
            " get_api_key_info_camel_case=GetApiKeyInfo open_positions_none_object=OpenPositions"
            " open_positions_none_array=OpenPositions"
            " open_positions_one_order_two_fills=OpenPositions",
            "payloads/spot/nautilus_trader": "http_server_time=Time http_spot_balance=Balance"
            " http_system_status=SystemStatus http_spot_trade_balance=TradeBalance"
            " http_spot_open_positions=OpenPositions http_trades_history=TradesHistory"
            " http_add_order_spot=AddOrder",
        }.items():
            for file in files.split():
                name, _, method = file.partition("=")
                with self.subTest(name, folder=folder):
                    answer = self.load(f"{folder}/{name}.json")
                    CALLS[method or name](spot(Kraken(**{method or name: answer})))

    def test_recorded_orders_are_found_by_their_id(self) -> None:
        folder = "payloads/spot/constructed"
        result = json.loads(self.load(f"{folder}/closed_orders_by_cl_ord_id.json"))["result"]
        ((txid, shown),) = result["closed"].items()
        got = found(spot(Kraken(ClosedOrders=result)), shown["cl_ord_id"])
        self.assertEqual((txid, Decimal(shown["vol_exec"])), (got.exchange_order_id, got.volume))
        nothing = Kraken(
            OpenOrders=self.load(f"{folder}/open_orders_none.json"),
            ClosedOrders=self.load(f"{folder}/closed_orders_none.json"),
        )
        self.assertIsNone(spot(nothing).find(ID, SINCE))

    def test_a_recorded_partial_fill_that_was_cancelled_keeps_its_volume_and_reason(self) -> None:
        folder = "payloads/spot/constructed/query_orders"
        result = json.loads(self.load(f"{folder}_market_partial_then_canceled.json"))["result"]
        ((txid, shown),) = result.items()
        kraken = Kraken(AddOrder={"txid": [txid], "descr": {}}, QueryOrders=result)
        exchange = spot(kraken)
        exchange.place(ORDER, SINCE)
        got = found(exchange)
        self.assertEqual(OrderStatus.CANCELED, got.status)
        self.assertEqual(Decimal(shown["vol_exec"]), got.volume)
        self.assertTrue(got.reason)
        kraken.answers["QueryOrders"] = self.load(f"{folder}_unknown_txid.json")
        self.assertIsNone(exchange.find(ID, SINCE))
