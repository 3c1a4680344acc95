import json
import os
import unittest
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from krakenbot.candles import CandleWindow, fill
from krakenbot.errors import UnansweredError
from krakenbot.kraken.shape import parse_candles
from krakenbot.model import Candle
from tests.clocks import StandingClock
from tests.logs import silence_module

RECORDED = os.environ.get("TEST_DATA_KRAKEN")
T0 = 1_790_000_040  # A whole minute.
NEEDED = 21


def setUpModule() -> None:
    silence_module()


def candle(number: int, close: object = 100) -> Candle:
    price = Decimal(str(close))
    return Candle(T0 + 60 * number, price, price, price, price)


def row(time: int, close: str = "100.0") -> list[Any]:
    return [time, "100.0", "110.0", "90.0", close, "100.0", "1.5", 7]


class FakeMarket:
    """A market of numbered candles; number `running` is being made, those in `gone` are lost."""

    def __init__(self, running: int, *, inclusive: bool = False) -> None:
        self.running, self.clock = running, StandingClock()
        self.inclusive = inclusive
        self.gone: set[int] = set()
        self.rows_told: list[int] = []
        self.finishes_after = -1
        self.revised: Candle | None = None

    def candles(self, since: int | None) -> Sequence[Candle]:
        if len(self.rows_told) + 1 == self.finishes_after:
            self.running += 1
        every = numbered(self.running - 719, self.running + 1)
        rows = [row for row in every if (row.time - T0) // 60 not in self.gone]
        if self.revised:
            rows = [self.revised if row.time == self.revised.time else row for row in rows]
        if since is not None:
            begin = since if self.inclusive else since + 1
            rows = [row for row in rows if row.time >= begin] or rows[-1:]
        self.rows_told.append(len(rows))
        return rows


def window(market: FakeMarket, needed: int = 0) -> CandleWindow:
    return CandleWindow(market, market.clock, 60, needed)


def begun() -> tuple[FakeMarket, CandleWindow]:
    """Return a market and a window that knows its first 800 candles."""
    market = FakeMarket(800)
    kept = window(market)
    up_to(market, kept, 799)
    return market, kept


def asked(market: FakeMarket, kept: CandleWindow, number: int) -> Sequence[Candle] | None:
    """Return what the window has when candle `number` has just finished."""
    market.clock.time = candle(number + 1).time
    return kept.up_to_date()


def up_to(market: FakeMarket, kept: CandleWindow, number: int) -> list[Candle]:
    found = asked(market, kept, number)
    assert found is not None
    return list(found)


def numbered(first: int, end: int) -> list[Candle]:
    """Return the market's candles from `first` to before `end`."""
    return [candle(n, 1000 + n % 17) for n in range(first, end)]


class TestWindow(unittest.TestCase):
    def test_the_first_answer_is_asked_for_by_time_lest_it_span_more_than_it_can(self) -> None:
        market = FakeMarket(5)
        with mock.patch.object(market, "candles", wraps=market.candles) as request:
            up_to(market, window(market), 4)
        self.assertLessEqual(candle(4).time - 720 * 60, request.call_args.args[0])

    def test_a_late_candle_is_asked_for_again(self) -> None:
        market = FakeMarket(5)
        market.finishes_after = 3
        got = up_to(market, window(market), 5)
        self.assertEqual(candle(5).time, got[-1].time)
        self.assertEqual(3, len(market.rows_told))
        self.assertGreater(market.clock.time, candle(6).time)

    def test_a_candle_that_never_comes_is_given_up_within_a_minute(self) -> None:
        empty = mock.Mock(**{"candles.return_value": [], "clock": StandingClock()})
        for market in (FakeMarket(5), empty):
            self.assertIsNone(asked(market, window(market), 5))
            self.assertLess(market.clock.time, candle(7).time)

    def test_a_given_up_candle_is_there_at_the_next_one(self) -> None:
        market = FakeMarket(5)
        kept = window(market)
        self.assertIsNone(asked(market, kept, 5))
        market.running = 7
        got = up_to(market, kept, 6)
        self.assertEqual(numbered(4, 7), got[-3:])

    def test_new_candles_join_those_known_whether_since_is_inclusive_or_not(self) -> None:
        for inclusive in (False, True):
            market = FakeMarket(800, inclusive=inclusive)
            kept = window(market)
            up_to(market, kept, 799)
            for running in (801, 802, 805, 1105):
                market.running = running
                got = up_to(market, kept, running - 1)
                with self.subTest(inclusive=inclusive, running=running):
                    self.assertEqual(numbered(running - len(got), running), got)
                    self.assertGreaterEqual(len(got), NEEDED)
                    self.assertLessEqual(len(got), 721)
            self.assertLessEqual(market.rows_told[1], 4, "only the rows needed travel")

    def test_after_a_first_answer_that_was_short_all_candles_are_asked_for_again(self) -> None:
        market = FakeMarket(800)
        whole, market.candles = market.candles, lambda since: whole(since)[-4:]
        kept = window(market, NEEDED)
        self.assertEqual(3, len(up_to(market, kept, 799)))
        market.candles, market.running = whole, 801
        self.assertGreaterEqual(len(up_to(market, kept, 800)), NEEDED)

    def test_it_shows_all_that_is_finished_and_goes_on_from_there_even_after_an_outage(
        self,
    ) -> None:
        market = FakeMarket(800)
        kept = window(market)
        for running, first in ((800, 81), (801, 81), (5000, 4281)):
            market.running = running
            self.assertEqual(numbered(first, running), up_to(market, kept, running - 1))

    def test_a_missing_interval_is_filled_at_the_close_before_in_all_fetches(self) -> None:
        market = FakeMarket(800)
        market.gone = {790, 802, 803}
        kept = window(market)
        up_to(market, kept, 799)
        market.running = 805
        got = up_to(market, kept, 804)
        for number, known in ((790, 789), (802, 801), (803, 801)):
            self.assertIn(candle(number, 1000 + known % 17), got)
        self.assertTrue(all(b.time - a.time == 60 for a, b in pairwise(got)))

    def test_a_hole_is_asked_about_once_more_and_what_comes_then_is_taken(self) -> None:
        market, kept = begun()
        market.running, market.gone = 804, {801}
        got = up_to(market, kept, 803)
        self.assertEqual(candle(801, 1000 + 800 % 17), got[-3])
        market.running, market.gone = 805, set()
        got = up_to(market, kept, 804)
        self.assertEqual(numbered(801, 805), got[-4:])
        for running in (806, 807):
            market.running = running
            up_to(market, kept, running - 1)
        self.assertLessEqual(market.rows_told[-1], 4, "only the rows needed travel")

    def test_of_two_answers_about_a_candle_the_newer_one_counts(self) -> None:
        market, kept = begun()
        told, revised = market.candles, candle(799, 5)
        market.running = 801
        market.candles = lambda since: [
            revised if c.time == revised.time else c for c in told(since)
        ]
        self.assertEqual(revised, up_to(market, kept, 800)[-2])

    def test_a_candle_once_known_is_not_lost_to_an_answer_that_lacks_it(self) -> None:
        market, kept = begun()
        market.running, market.gone = 801, {799}
        self.assertEqual(numbered(799, 801), up_to(market, kept, 800)[-2:])


class TestRows(unittest.TestCase):
    def test_rows_are_read_under_whatever_name_kraken_gives_the_pair(self) -> None:
        for name in ("XXBTZUSD", "XBTUSD", "SOLUSD"):
            result = {"last": T0, name: [row(T0), row(T0 + 60)]}
            self.assertEqual([T0, T0 + 60], [c.time for c in parse_candles(result, 60)])

    def test_prices_are_exact(self) -> None:
        result = {"X": [[T0, "0.1", "0.30000000000000001", "0.1", 0.2, "0", "0", 0]], "last": T0}
        with self.assertRaises(UnansweredError):
            parse_candles(result, 60)  # A float would mean that something read the JSON inexactly.
        result["X"][0][4] = Decimal("0.2")
        self.assertEqual(
            Candle(T0, *map(Decimal, ("0.1", "0.30000000000000001", "0.1", "0.2", "0"))),
            parse_candles(result, 60)[0],
        )

    def test_each_missing_interval_gets_a_flat_candle_in_which_nothing_was_traded(self) -> None:
        self.assertEqual([], fill([], 60))
        whole = [candle(0, 7), candle(1, 7), candle(2, 7), candle(3, 9)]
        self.assertEqual(whole, fill(whole[::3], 60))
        self.assertEqual(whole, fill(whole, 60))
        candles = fill(parse_candles({"X": [row(T0), row(T0 + 120)], "last": T0}, 60), 60)
        self.assertEqual([Decimal("1.5"), 0, Decimal("1.5")], [c.volume for c in candles])

    def test_rows_out_of_order_or_twice_come_out_once_and_in_order(self) -> None:
        for rows in ([], [row(T0 + 60), row(T0), row(T0 + 60, "101.0")]):
            found = [c.time for c in parse_candles({"X": rows, "last": T0}, 60)]
            self.assertEqual(sorted({row[0] for row in rows}), found)

    def test_rows_of_another_interval_are_no_answer(self) -> None:
        for asked_s, told_s in ((60, 3600), (3600, 60)):
            result = {"X": [row(T0 + told_s * n) for n in range(20)], "last": T0}
            with self.subTest(told_s), self.assertRaises(UnansweredError):
                parse_candles(result, asked_s)

    def test_any_other_shape_is_no_answer(self) -> None:
        good = row(T0)
        wrong_rows: list[Any] = [None, 5, "text", [], {}, [T0], good[:5], [True, *good[1:]]]
        for column, values in {
            0: (None, T0 + 1, -60, 1.5, Decimal("1.5"), [], 10**400),
            1: (None, "", "x", "NaN", [], {}, True, "1e400"),
            2: ("89.0", "Infinity", "0"),
            3: ("0", "-1", "111", "0.0"),
            4: ("111", "89", "-5", None, "sNaN"),
            6: ("-1", None, "x", "NaN"),
        }.items():
            for value in values:
                wrong_rows.append([*good[:column], value, *good[column + 1 :]])
        results: list[Any] = [{"X": [row(T0 - 60), wrong], "last": T0} for wrong in wrong_rows]
        results += [None, [], "text", 5, {}, {"last": T0}]
        results += [{"X": None, "last": T0}, {"X": 5, "last": 1}]
        results += [{"X": [good], "Y": [good], "last": T0}, {"X": True}, {"X": "text", "last": T0}]
        results += [{"X": [row(T0), row(T0 + 60 * 1_000_000)], "last": T0}]
        for result in results:
            with self.subTest(str(result)[:100]), self.assertRaises(UnansweredError):
                parse_candles(result, 60)


@unittest.skipUnless(RECORDED, "TEST_DATA_KRAKEN names no folder with recorded answers")
class TestRecorded(unittest.TestCase):
    def result(self, name: str) -> Any:
        text = (Path(RECORDED or "") / name).read_bytes()
        return json.loads(text, parse_float=Decimal)["result"]

    def test_recorded_minutes_are_whole_and_last_names_the_last_finished_one(self) -> None:
        result = self.result("candles/rest/OHLC_XBTUSDT_1.json")
        got = parse_candles(result, 60)
        self.assertGreaterEqual(len(got), 700)
        self.assertEqual(got, fill(got, 60))
        self.assertEqual(result["last"], got[-2].time)

    def test_a_recorded_answer_to_since_and_recorded_samples_are_read(self) -> None:
        for name, interval_s in {
            "candles/rest/OHLC_ETHUSD_1_since.json": 60,
            "payloads/spot/constructed/ohlc_daily_oct2026.json": 86400,
            "payloads/spot/constructed/ohlc_flat_rows_and_gap.json": 60,
            "payloads/spot/nautilus_trader/http_ohlc.json": 60,
            "payloads/spot/kraken.net/GetKlines.json": 60,
            "payloads/spot/api-specs/ohlc.json": 60,
        }.items():
            with self.subTest(name):
                got = parse_candles(self.result(name), interval_s)
                self.assertTrue(got)
                filled = fill(got, interval_s)
                self.assertTrue(all(b.time - a.time == interval_s for a, b in pairwise(filled)))
