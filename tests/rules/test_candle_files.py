"""Files of candles: each kind is read, or refused with one message that names file and line."""

import gzip
import json
import os
import random
import unittest
import zipfile
from datetime import UTC, datetime
from decimal import Decimal as D
from functools import reduce
from pathlib import Path
from typing import Any
from unittest import mock

from krakenbot.backtest import files
from krakenbot.backtest.columns import BadDataError, Columns, exact
from krakenbot.backtest.files import Source, aggregate, read
from krakenbot.simulated.listing import assets_of
from tests.folders import own_folder

DATA = os.environ.get("TEST_DATA_KRAKEN")
T0 = 1_600_000_020


def rows(count: int = 40) -> list[str]:
    return [
        f"{T0 + at * 60},{100 + at}.5,{110 + at},{99 + at}.25,{101 + at}.0,1.5,3"
        for at in range(count)
    ]


class FilesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)

    def write(self, content: str | bytes, name: str = "XBTUSD_1.csv") -> Source:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def read(self, *sources: Source) -> Columns:
        return reduce(Columns.joined, read(sources, files.interval_of(sources[0]), []))

    def refused(self, *sources: Source) -> str:
        with self.assertRaises(BadDataError) as caught:
            self.read(*sources)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)


class TestRows(FilesTest):
    def test_each_kind_of_bad_line_is_named(self) -> None:
        at = "1600001820"
        prices = """100,nan,99,100 inf,inf,99,100 -100,100,-100,100 0,100,0,100 100,99,98,100
            100,101,100.5,101 100,101,99,102 100,101,99,98 1_00,101,99,100 1.0.0,101,1,100
            100.0000000000001,101,99,100 130.5,131.0,129.2,13e.0"""
        counts = "1 1,1,1 -1,1 x,1 ,1 1.2.3,1"
        for bad in (
            *(f"{at},{text},1,1" for text in prices.split()),
            *(f"{at},100,101,99,100,{text}" for text in counts.split()),
            *("text", "", "160000182.,130.5,131.0,129.2,131.0,1,1", rows()[20], rows()[29]),
            *("1600001821,100,101,99,100,1,1", "9600001820,100,101,99,100,1,1"),
        ):
            with self.subTest(bad=bad):
                text = "\n".join([*rows()[:30], bad, *rows()[31:]]) + "\n"
                self.assertIn("XBTUSD_1.csv:31:", self.refused(self.write(text)))

    def test_what_is_no_series_is_refused(self) -> None:
        text = "\n".join(rows())
        hours = "\n".join(f"{1_600_002_000 + at * 3600},9,9,9,9,1,1" for at in range(30))
        for name, content in {
            "XBTUSD_1.csv": b"",
            "XBTUSD_5.csv": text.encode(),
            "XBTUSD_1.csv.gz": gzip.compress(text.encode())[:-9],
            "XBTEUR_1.csv.gz": text.encode(),
            "ETHUSD_1.csv": text[:50].encode(),
            "SOLUSD_1.csv": b"\x00\xff" * 99,
            "ETHEUR_1.csv": (text[:-400] + hours).encode(),
            "a.json": b"{}",
            "b.json": b"[1]",
            "c.json": b"[" * 200_000,
            "DOTUSD_1.csv": b"6" + b"0" * 30 + b",9,9,9,9,1,1\n",
            "time_1.csv": b"time,open,high,low,close\n1,2,3,4,5\n",
        }.items():
            with self.subTest(name=name):
                self.assertIn(name, self.refused(self.write(content, name)))
        self.assertIn("none_1.csv", self.refused(self.folder / "none_1.csv"))
        microseconds = text.replace(",100", "000000,100", 1)
        self.assertIn("times must be unix seconds", self.refused(self.write(microseconds)))

    def test_line_ends_marks_quotes_headers_and_milliseconds_change_nothing(self) -> None:
        text = "\n".join(rows()) + "\n"
        expected = self.read(self.write(text))
        columns = "Time,Open,High,Low,Close,Volume,Trades\n"
        quoted = '"time","open","high","low","close","volume"\n' + "".join(
            ",".join(f'"{field}"' for field in row.split(",")[:6]) + "\n" for row in rows()
        )
        dated = "count,date,open,high,low,close,vwap,volume\n"
        for time, o, h, low, c, volume, _ in (row.split(",") for row in rows()):
            moment = datetime.fromtimestamp(int(time), UTC)
            dated += f"7,{moment:%Y-%m-%d %H:%M:%S},{o},{h},{low},{c},9,{volume}\n"
        for same in (
            b"\xef\xbb\xbf" + text.encode(),
            text.replace("\n", "\r\n"),
            text + "\n\n",
            text[:-1],
            columns + text,
            "\n".join(row.replace(",", "000,", 1) for row in rows()),
            quoted,
            quoted.partition("\n")[2].replace("\n", ',"1"\n'),
            dated,
        ):
            self.assertEqual(self.read(self.write(same)), expected)

    def test_a_volume_of_nothing_is_nothing_however_it_is_written(self) -> None:
        for text in ("0", "0.0", "0.00000000", "0E-8", "0e+3", "0.0E-10"):
            lines = [*rows()[:9], f"{T0 + 540},9,9,9,9,{text},0", *rows()[10:]]
            self.assertEqual(self.read(self.write("\n".join(lines))).volumes[9], 0, text)
        lines = [*rows()[:9], f"{T0 + 540},9,9,9,9,1E-8,1", *rows()[10:]]
        self.assertGreater(self.read(self.write("\n".join(lines))).volumes[9], 0)

    def test_a_gap_is_filled_flat_and_known_to_have_no_trades(self) -> None:
        columns = self.read(self.write("\n".join(rows()[:10] + rows()[12:])))
        self.assertEqual(list(columns.times), [T0 + 60 * at for at in range(40)])
        self.assertEqual({*columns.opens[10:12], *columns.lows[10:12]}, {110.0})
        self.assertEqual([at for at, volume in enumerate(columns.volumes) if not volume], [10, 11])

    def test_numbers_are_those_of_the_file_to_the_last_digit(self) -> None:
        dice = random.Random(1)
        for _ in range(2000):
            number = D(dice.randrange(1, 10 ** dice.randrange(1, 16))).scaleb(-dice.randrange(11))
            self.assertEqual(exact(float(f"{number:f}")), number)


class TestAnswers(FilesTest):
    def answer(self, minutes: int, price: str = "9.5") -> Source:
        step = minutes * 60
        found = [[step * at, price, price, price, price, "9", "1", 1] for at in range(1, 40)]
        answer = {"error": [], "result": {"XXBTZUSD": found, "last": 0}}
        return self.write(json.dumps(answer), "a.json")

    def test_a_saved_answer_of_any_interval_is_read_without_its_running_candle(self) -> None:
        for minutes in (1, 240, 1440, 21600):
            columns = self.read(self.answer(minutes))
            self.assertEqual((columns.interval_s, len(columns.times)), (minutes * 60, 38))
            self.assertEqual(files.pair_of(self.answer(minutes)), "XXBTZUSD")

    def test_an_answer_with_impossible_prices_is_refused(self) -> None:
        for price in ("1e30", "1e999999999", "NaN", "0", "-1"):
            self.assertIn("not a saved OHLC answer", self.refused(self.answer(1, price)))


class TestSeveral(FilesTest):
    def test_rows_that_two_files_share_are_left_out_once(self) -> None:
        whole = self.read(self.write("\n".join(rows(60)), "a/XBTUSD_1.csv"))
        every = rows(60)
        for first, second in ((rows(40), every[20:]), (every, every), (every, rows(50)[10:])):
            sources = self.pair(second, first)
            notes: list[str] = []
            self.assertEqual(reduce(Columns.joined, read(sources, 60, notes)), whole)
            self.assertIn("are in an earlier file already", notes[0])

    def pair(self, first: list[str], second: list[str]) -> list[Source]:
        texts = enumerate(("\n".join(first), "\n".join(second)))
        return [self.write(text, f"{at}/XBTUSD_1.csv") for at, text in texts]

    def test_files_that_disagree_are_named_with_lines_and_values(self) -> None:
        other = rows(60)[20:]
        other[5] = other[5].replace("126.0", "126.5")
        told = self.refused(*self.pair(rows(40), other))
        for word in ("0/XBTUSD_1.csv:26", "1/XBTUSD_1.csv:6", " 126 ", " 126.5 "):
            self.assertIn(word, told)

    def test_a_row_in_the_gap_of_an_earlier_file_is_refused(self) -> None:
        told = self.refused(*self.pair(rows(20) + rows(40)[30:], rows(60)[10:]))
        self.assertIn("is in a gap of a file that begins earlier", told)

    def test_the_zip_of_the_download_page_is_read_as_it_is(self) -> None:
        expected = self.read(self.write("\n".join(rows())))
        path = self.folder / "Kraken_OHLCVT.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("Kraken_OHLCVT/XBTUSD_1.csv", "\n".join(rows()))
            archive.writestr("__MACOSX/._XBTUSD_1.csv", b"\x00")
        sources = files.sources_of(path)
        self.assertEqual([files.pair_of(one) for one in sources], ["XBTUSD"])
        self.assertEqual(self.read(*sources), expected)
        path.write_bytes(b"PK no zip")
        with self.assertRaisesRegex(BadDataError, "OHLCVT.zip"):
            files.sources_of(path)

    def test_a_folder_that_cannot_be_read_is_not_called_empty(self) -> None:
        (self.folder / "inner").mkdir()
        (self.folder / "XBTUSD_1.csv").touch()
        self.assertEqual([self.folder / "XBTUSD_1.csv"], files.sources_of(self.folder))
        list_folder = os.scandir

        def refused(path: str) -> Any:
            if str(path).endswith("inner"):
                raise PermissionError(13, "Permission denied", path)
            return list_folder(path)

        with (
            mock.patch("os.scandir", refused),
            self.assertRaisesRegex(BadDataError, "inner: Permission denied"),
        ):
            files.sources_of(self.folder)


class TestNames(unittest.TestCase):
    def test_pair_and_interval_are_read_from_names_as_people_have_them(self) -> None:
        for name, pair, minutes in (
            ("XBTEUR_60.csv", "XBTEUR", 60),
            ("XBTEUR_60 (1).csv", "XBTEUR", 60),
            ("XBTEUR_60 - Copy.csv.gz", "XBTEUR", 60),
            ("XBTEUR_1h.csv", "XBTEUR", 60),
            ("BTC_USD_1m_A.csv", "BTC_USD", 1),
            ("ETH-BTC-1d.csv", "ETH-BTC", 1440),
            ("XBTUSD_720.csv", "XBTUSD", 720),
        ):
            found = files.pair_of(Path(name)), files.interval_of(Path(name))
            self.assertEqual(found, (pair, minutes * 60))
        for name in ("candles.csv", "XBTUSD.csv", "XBTUSD_7.csv", "2024_export.csv"):
            self.assertIsNone(files.pair_of(Path(name)))

    def test_a_pair_is_known_under_all_its_names(self) -> None:
        for names, assets in (
            ("XXBTZUSD XBTUSD BTCUSD BTC/USD XBT/USD BTC_USD btc-usd", ("XBT", "USD")),
            ("XDGUSD DOGEUSD DOGE/USD", ("XDG", "USD")),
            ("ETHXBT XETHXXBT ETH/BTC ETHBTC", ("ETH", "XBT")),
            ("XBTJPY XXBTZJPY BTC/JPY", ("XBT", "JPY")),
            ("XBTCHF BTC/CHF", ("XBT", "CHF")),
            ("USDTUSD USDTZUSD", ("USDT", "USD")),
            ("XTZUSD XTZ/USD", ("XTZ", "USD")),
            ("ZEURZUSD EURUSD", ("EUR", "USD")),
            ("XBTUSDT BTC/USDT", ("XBT", "USDT")),
            ("XBTPYUSD", ("XBT", "PYUSD")),
            ("PYUSDUSD", ("PYUSD", "USD")),
        ):
            for name in names.split():
                self.assertEqual(assets_of(name), assets, name)


class TestLarger(FilesTest):
    def test_a_larger_candle_is_made_of_what_was_traded_in_it(self) -> None:
        text = "".join(
            f"{60 * at},{p},{p + 2},{p - 1},{p + 1},1,3\n"
            for at, p in ((9, 50), (12, 70), (19, 90))
        )
        whole = self.read(self.write(text))
        for size in (1, 3, 99):
            pieces = (whole.cut(at, at + size) for at in range(0, len(whole.times), size))
            five = reduce(Columns.joined, aggregate(pieces, 300))
            self.assertEqual((list(five.times), [*five.closes]), ([600, 900], [71, 91]))
            prices = [[*five.opens], [*five.highs], [*five.lows]]
            self.assertEqual(prices, [[70, 90], [72, 92], [69, 89]])

    @unittest.skipUnless(DATA, "TEST_DATA_KRAKEN is not set")
    def test_files_of_one_market_agree_whatever_their_interval(self) -> None:
        assert DATA
        quarter = Path(DATA) / "candles/ohlcvt/2023Q1"
        finer = aggregate(read([quarter / "XBTUSD_5.csv.gz"], 300, []), 3600)
        hours = reduce(Columns.joined, finer)
        own = self.read(quarter / "XBTUSD_60.csv")
        for name in ("times", "opens", "highs", "lows", "closes"):
            self.assertEqual([*getattr(hours, name)], [*getattr(own, name)], name)
