"""The simulated market: what the walk looks like, and how files are read."""

import gzip
import os
import tempfile
import unittest
from decimal import Decimal as D
from itertools import pairwise
from pathlib import Path

from krakenbot.pairs import parse_rules
from krakenbot.simulated.feed import Feed, Series, read_file
from krakenbot.simulated.listing import PAIRS

RULES = {key: parse_rules(key, row) for key, row in PAIRS.items()}
XBT = RULES["XXBTZUSD"]
NOW = 1_791_417_605
DATA = os.environ.get("TEST_DATA_KRAKEN")


def walk(seed: str = "1", pair: str = "XXBTZUSD", now: float = NOW) -> Series:
    return Feed(f"random:{seed}", now).series(RULES[pair])


class RandomTest(unittest.TestCase):
    def test_seed_and_pair_give_the_same_candles_whenever_it_starts(self) -> None:
        one, two = walk(), walk(now=NOW + 86400)
        self.assertEqual(
            [bar[1:] for bar in one.bars(60, None, NOW)],
            [bar[1:] for bar in two.bars(60, None, NOW + 86400)],
        )
        self.assertNotEqual(one.at(5), walk("2").bars(60, None, NOW)[5][1:])

    def test_the_past_does_not_depend_on_when_it_is_asked_for(self) -> None:
        early, late = walk(), walk()
        late.index(NOW + 100000)
        hours = early.bars(3600, None, NOW)
        late.bars(300, None, NOW)
        self.assertEqual(len(hours), 721)
        self.assertEqual(late.bars(3600, None, NOW), hours)

    def test_the_twenty_candle_rule_turns_every_eight_to_twelve_candles(self) -> None:
        for pair in RULES:
            with self.subTest(pair=pair):
                series = walk(pair=pair)
                series.index(NOW + 60 * 30000)
                closes = series.columns[3]
                turns, direction, ties = 0, 0, 0
                for now, then in zip(closes[20:], closes, strict=False):
                    sign = (now > then) - (now < then)
                    ties += sign == 0
                    if sign and sign != direction:
                        direction, turns = sign, turns + 1
                self.assertTrue(8 <= len(closes) / turns <= 12, len(closes) / turns)
                self.assertGreater(ties, 100)
                self.assertGreater(min(closes), 0)

    def test_candles_contain_their_open_and_close_and_follow_without_a_gap(self) -> None:
        for interval_s in (60, 300, 3600, 14400):
            bars = walk().bars(interval_s, None, NOW)
            for before, bar in pairwise(bars):
                self.assertEqual(bar.time, before.time + interval_s)
                self.assertLessEqual(bar.low, min(bar.open, bar.close))
                self.assertGreaterEqual(bar.high, max(bar.open, bar.close))

    def test_the_running_row_is_its_open_and_the_market_stands_there(self) -> None:
        series = walk()
        for now in (NOW // 60 * 60, NOW // 60 * 60 + 59.9):
            bar = series.bars(60, None, now)[-1]
            self.assertEqual(bar.time, now // 60 * 60)
            self.assertEqual(bar[1:], (bar.open,) * 4 + (0, 0, 0))
            quote = series.quote(now, D("0.1"))
            self.assertEqual(quote.mid, series.decimal(bar.open))
            self.assertEqual(quote.ask - quote.bid, D("0.2"))
        later = series.bars(60, None, NOW + 60)
        self.assertEqual(later[-2].open, bar.open)

    def test_since_gives_the_rows_after_it_and_always_the_running_one(self) -> None:
        series, running = walk(), NOW // 60 * 60
        times = [bar.time for bar in series.bars(60, running - 180, NOW)]
        self.assertEqual(times, [running - 120, running - 60, running])
        self.assertEqual([bar.time for bar in series.bars(60, running + 999, NOW)], [running])

    def test_a_larger_interval_is_made_of_the_smaller_one(self) -> None:
        series = walk()
        minutes = {bar.time: bar for bar in series.bars(60, None, NOW)}
        for bar in series.bars(300, NOW - 30000, NOW)[:-1]:
            parts = [minutes[bar.time + 60 * n] for n in range(5)]
            self.assertEqual(bar.open, parts[0].open)
            self.assertEqual(bar.high, max(part.high for part in parts))
            self.assertEqual(bar.low, min(part.low for part in parts))
            self.assertEqual(bar.close, parts[-1].close)
            self.assertEqual(bar.volume, sum(part.volume for part in parts))


class FileTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, text: str, name: str = "XBTUSD_1.csv") -> str:
        path = self.folder / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        return str(path)

    def rows(self, count: int) -> str:
        return "".join(f"{60 * n},10.5,11,10,{10 + n % 2},0.5,3\n" for n in range(1, count + 1))

    def test_gaps_are_filled_flat_and_odd_numbers_read(self) -> None:
        text = "\ufeff60,1.25,2,1,1.5,5.002e-05,1\r\n240,1.5,1.5,1.5,1.5,1E+1,2\r\n"
        for name in ("XBTUSD_1.csv", "XBTUSD_1.csv.gz"):
            with self.subTest(name=name):
                pair, series = read_file(self.write(text, name))
                self.assertEqual((pair, len(series), series.digits), ("XBTUSD", 4, 2))
                self.assertEqual(series.at(0), (125, 200, 100, 150, 5002, 1))
                self.assertEqual(series.at(1), (150, 150, 150, 150, 0, 0))
                self.assertEqual(series.at(3)[4:], (10**9, 2))

    def test_a_bad_line_is_named(self) -> None:
        for line in (
            "120,1,2", "120,1,2,1,x,1,1", "120,1,2,1,nan,1,1", "60,1,2,1,1,1,1", "121,1,1,1,1,1,1",
            "120,3,2,1,1,1,1", "120,1,2,0,1,1,1", "999999999960,1,1,1,1,1,1", "120,1,2,1,1,-1,1",
        ):  # fmt: skip
            with self.subTest(line=line), self.assertRaisesRegex(ValueError, r"XBTUSD_1.csv:2: "):
                read_file(self.write(f"60,1,2,1,1,1,1\n{line}\n"))

    def test_what_is_not_a_file_of_candles_is_refused(self) -> None:
        for name, text in (("XBTUSD.csv", self.rows(3)), ("XBTUSD_1.csv", ""),
                           ("XBTUSD_x.csv", self.rows(3))):  # fmt: skip
            with self.subTest(name=name), self.assertRaises(ValueError):
                read_file(self.write(text, name))
        (self.folder / "XBTUSD_5.csv.gz").write_bytes(b"no gzip")
        with self.assertRaises(ValueError):
            read_file(str(self.folder / "XBTUSD_5.csv.gz"))

    def test_time_starts_after_a_third_and_the_market_stands_still_at_the_end(self) -> None:
        feed = Feed("csv:" + self.write(self.rows(150)), NOW)
        self.assertEqual(feed.start, 60 + 50 * 60)
        series = feed.series(XBT)
        self.assertEqual(len(series.bars(60, None, feed.start)), 51)
        over = series.bars(60, None, 60 * 1000)
        self.assertEqual({bar[1:6] for bar in over[-300:]}, {(100, 100, 100, 100, 0)})
        with self.assertRaises(ValueError):
            Feed("csv:" + self.write(self.rows(40)), NOW)

    def test_a_feed_that_is_neither_is_refused(self) -> None:
        for spec in ("", "random:", "random:a/b", "file:x", "csv:"):
            with self.subTest(spec=spec), self.assertRaises(ValueError):
                Feed(spec, NOW)

    @unittest.skipUnless(DATA, "TEST_DATA_KRAKEN is not set")
    def test_krakens_own_files_are_read(self) -> None:
        assert DATA
        files = sorted((Path(DATA) / "candles" / "ohlcvt").glob("*/*_*.csv*"))
        self.assertTrue(files)
        for path in files:
            with self.subTest(path=path.name):
                pair, series = read_file(str(path))
                self.assertTrue(path.name.startswith(pair))
                self.assertGreater(len(series), 80)


if __name__ == "__main__":
    unittest.main()
