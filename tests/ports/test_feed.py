"""The simulated market: what the walk looks like, and what a file of candles becomes."""

import functools
import gzip
import os
import unittest
from decimal import Decimal as D
from itertools import pairwise
from pathlib import Path

from krakenbot.pairs import parse_rules
from krakenbot.simulated.feed import Feed, Series
from krakenbot.simulated.listing import PAIRS
from tests import IS_LONG
from tests.folders import own_folder

RULES = {key: parse_rules(key, row) for key, row in PAIRS.items()}
XBT = RULES["XXBTZUSD"]
NOW = 1_791_417_605
DATA = os.environ.get("TEST_DATA_KRAKEN")


@functools.cache
def walk(seed: str = "1", pair: str = "XXBTZUSD", now: float = NOW) -> Series:
    return Feed(f"random:{seed}", now).series(RULES[pair])


def closes(series: Series, count: int) -> list[D]:
    times = range(series.first, series.first + 60 * count, 60)
    return [series.bar(time, 60, times.stop).close for time in times]


class RandomTest(unittest.TestCase):
    def test_seed_and_pair_give_the_same_candles_whenever_it_starts(self) -> None:
        one, two = walk(), walk(now=NOW + 5000)
        self.assertEqual(
            [bar[1:] for bar in one.bars(60, 0, NOW)],
            [bar[1:] for bar in two.bars(60, 0, NOW + 5000)],
        )
        self.assertNotEqual(closes(one, 50), closes(walk("2"), 50))

    def test_there_are_sixty_days_of_history_and_a_year_is_remembered(self) -> None:
        series = walk()
        for interval_s, count in ((60, 721), (3600, 721), (86400, 60), (1296000, 4)):
            bars = series.bars(interval_s, 0, NOW)
            self.assertIn(len(bars), (count, count + 1))
        past_days = 3 * 366 if IS_LONG else 20
        later = NOW + past_days * 86400
        days = series.bars(86400, 0, later)
        self.assertGreaterEqual(len(days), min(past_days, 365))
        self.assertEqual(days[-1].time, later // 86400 * 86400)
        self.assertEqual(series.bars(60, 0, later)[-1].open, series.price(later))

    def test_the_twenty_candle_rule_turns_every_eight_to_twelve_candles(self) -> None:
        for pair in RULES:
            with self.subTest(pair=pair):
                seen = closes(walk(pair=pair), 10000)
                turns, direction, ties = 0, 0, 0
                for now, then in zip(seen[20:], seen, strict=False):
                    sign = (now > then) - (now < then)
                    ties += sign == 0
                    if sign and sign != direction:
                        direction, turns = sign, turns + 1
                self.assertTrue(8 <= len(seen) / turns <= 12, len(seen) / turns)
                self.assertGreater(ties, 30)
                self.assertGreater(min(seen), 0)

    def test_candles_contain_their_open_and_close_and_follow_without_a_gap(self) -> None:
        series = walk()
        for interval_s in (60, 300, 3600, 14400):
            bars = series.bars(interval_s, 0, NOW)
            for before, bar in pairwise(bars):
                self.assertEqual(bar.time, before.time + interval_s)
                self.assertLessEqual(bar.low, min(bar.open, bar.close))
                self.assertGreaterEqual(bar.high, max(bar.open, bar.close))

    def test_the_running_row_is_its_open_and_the_market_stands_there(self) -> None:
        series = walk()
        for now in (NOW // 60 * 60, NOW // 60 * 60 + 59.9):
            bar = series.bars(60, 0, now)[-1]
            self.assertEqual(bar.time, now // 60 * 60)
            self.assertEqual(bar[1:], (bar.open,) * 4 + (0,))
            self.assertEqual(series.price(now), bar.open)
        later = series.bars(60, 0, NOW + 60)
        self.assertEqual(later[-2].open, bar.open)

    def test_since_gives_the_rows_after_it_and_always_the_running_one(self) -> None:
        series, running = walk(), NOW // 60 * 60
        times = [bar.time for bar in series.bars(60, running - 180, NOW)]
        self.assertEqual(times, [running - 120, running - 60, running])
        self.assertEqual([bar.time for bar in series.bars(60, running + 999, NOW)], [running])


class FileTest(unittest.TestCase):
    """How a file is read is the backtest's business; here is what the sandbox makes of it."""

    def setUp(self) -> None:
        self.folder = own_folder(self)

    def write(self, text: str, name: str = "XBTUSD_1.csv") -> str:
        path = self.folder / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        return f"csv:{path}"

    def rows(self, count: int) -> str:
        return "".join(f"{60 * n},10.5,11,10,{10 + n % 2},0.5,3\n" for n in range(1, count + 1))

    def test_time_starts_after_a_third_and_the_market_stands_still_at_the_end(self) -> None:
        for name in ("XBTUSD_1.csv", "XBTUSD_1.csv.gz"):
            feed = Feed(self.write(self.rows(150), name), NOW)
            self.assertEqual((feed.own_pair, feed.start), ("XXBTZUSD", 60 + 50 * 60))
            series = feed.series(XBT)
            self.assertEqual(len(series.bars(60, 0, feed.start)), 51)
            self.assertEqual(series.bar(60, 60, feed.start)[1:5], (D("10.5"), D(11), D(10), D(11)))
            over = series.bars(60, 0, 60 * 1000)
            self.assertEqual({bar[1:] for bar in over[-300:]}, {(D(10),) * 4 + (0,)})
            traded = [bar.volume for bar in series.bars(300, 0, 60 * 61)][-3:]
            self.assertEqual(traded, [D("2.5"), D("2.5"), D("0.5")])

    def test_the_pair_of_a_file_is_known_however_it_is_spelled(self) -> None:
        for name in ("BTC_USD_1m", "xbtusd_1", "BTC-USD_1", "XBT_USD_1", "XXBTZUSD_1"):
            self.assertEqual(
                "XXBTZUSD", Feed(self.write(self.rows(50), f"{name}.csv"), NOW).own_pair
            )

    def test_the_assets_of_any_pair_are_listed(self) -> None:
        markets = Feed(self.write(self.rows(50), "DOT_USDC_1.csv"), NOW)
        self.assertEqual({"DOT", "USDC"}, {*markets.methods["Assets"]({"asset": "DOT,USDC"})})
        self.assertEqual("DOTUSDC", markets.pair("DOTUSDC").altname)
        rules = Feed(self.write(self.rows(50), "LTCCAD_1.csv"), NOW).pair("LTCCAD")
        self.assertEqual(("XLTC", "ZCAD"), (rules.base, rules.quote))

    def test_a_long_candle_is_its_minutes_also_where_a_price_was_set(self) -> None:
        series, now = Feed("random:1", NOW).series(XBT), NOW + 7200
        series.by_hand += [(NOW + 600.0, 1.0), (NOW + 900.0, None)]
        for time in range(int(NOW) // 3600 * 3600 - 3600, int(now), 3600):
            whole, minutes = series.bar(time, 3600, now), range(time, time + 3600, 60)
            parts = [series.bar(at, 60, now) for at in minutes if at <= now]
            self.assertEqual((parts[0].open, parts[-1].close), (whole.open, whole.close))
            self.assertEqual(min(part.low for part in parts), whole.low)
            self.assertEqual(max(part.high for part in parts), whole.high)
            self.assertEqual(sum(part.volume for part in parts), whole.volume)

    def test_volumes_and_prices_may_be_as_large_as_a_file_has_them(self) -> None:
        text = "".join(f"{60 * n},5e9,5e9,5e9,5e9,{10**14},3\n" for n in range(1, 60))
        feed = Feed(self.write(text), NOW)
        bar = feed.series(XBT).bars(60, 0, feed.start)[0]
        self.assertEqual((bar.high, bar.volume), (5 * 10**9, 10**14))

    def test_what_is_not_a_file_of_enough_candles_is_refused_at_once(self) -> None:
        for name, text in (
            ("XBTUSD.csv", self.rows(50)),
            ("XBTUSD_1.csv", ""),
            ("XBTUSD_x.csv", self.rows(50)),
            ("XBTUSD_1.csv", self.rows(40)),
            ("XBTUSD_1.csv", self.rows(50) + "x\n"),
        ):
            with self.subTest(name=name), self.assertRaisesRegex(ValueError, name):
                Feed(self.write(text, name), NOW)
        (self.folder / "XBTUSD_5.csv.gz").write_bytes(b"no gzip")
        self.assertRaises(ValueError, Feed, f"csv:{self.folder}/XBTUSD_5.csv.gz", NOW)

    def test_a_feed_that_is_neither_is_refused(self) -> None:
        for spec in ("", "random:", "random:a/b", "file:x", "csv:"):
            with self.subTest(spec=spec), self.assertRaises(ValueError):
                Feed(spec, NOW)

    @unittest.skipUnless(DATA, "TEST_DATA_KRAKEN is not set")
    def test_krakens_own_files_are_read(self) -> None:
        assert DATA
        files = sorted((Path(DATA) / "candles" / "ohlcvt").glob("*/*_*.csv*"))
        files = [path for path in files if IS_LONG or path.stat().st_size < 200_000]
        self.assertGreater(len(files), 2)
        for path in files:
            with self.subTest(path=path.name):
                feed = Feed(f"csv:{path}", NOW)
                self.assertTrue(feed.own_pair)
                self.assertLess(feed.start, NOW)
