"""Backtest: every fill, fee and value equals what the live tick makes of the same candles."""

import gzip
import io
import json
import os
import random
import sqlite3
import tempfile
import unittest
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal as D
from functools import reduce
from pathlib import Path
from unittest import mock

from krakenbot import bot, cli, config
from krakenbot import orders as orders_module
from krakenbot.accounting import read_ledger
from krakenbot.backtest import costs
from krakenbot.backtest import engine as backtest
from krakenbot.backtest import files as candlefile
from krakenbot.backtest.engine import Costs, Replay, whole_charges
from krakenbot.backtest.files import Columns, aggregate, exact, numbers, read, units
from krakenbot.bot import WAKE_DELAY_S, Bot
from krakenbot.candles import fill
from krakenbot.decision import Plan
from krakenbot.errors import StopError
from krakenbot.journal import Journal
from krakenbot.journal_file import prepare
from krakenbot.kraken.spot import Spot
from krakenbot.model import Candle, MarginRates, Quote, SystemStatus
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.risk import Limits
from krakenbot.simulated.books import Account
from krakenbot.simulated.listing import PAIRS
from krakenbot.simulated.paper import PaperClient
from krakenbot.strategy import build
from tests.logs import silence_module
from tests.markets import Answers


def setUpModule() -> None:
    silence_module()


DATA = os.environ.get("TEST_DATA_KRAKEN")
DAYS = int(os.environ.get("TEST_DAYS", "5"))  # Of the months that have more.
NOT_BOOKS = {"books": None, "ledger": None}
XBTUSD = parse_rules("XXBTZUSD", PAIRS["XXBTZUSD"])
USDTUSD = parse_rules("USDTZUSD", PAIRS["USDTZUSD"])


class World:
    """Market, clock and store in one, over columns of candles."""

    def __init__(self, columns: Columns, rules: PairRules) -> None:
        self.columns = columns
        self.pair_rules = rules
        self.time = float(columns.time)
        self.state: str | None = None
        self.tick = D(1).scaleb(-rules.pair_decimals)
        self.rows = [
            Candle(columns.time + at * columns.interval_s, *map(exact, prices))
            for at, prices in enumerate(zip(*columns[4:], strict=True))
        ]

    def now(self) -> float:
        return self.time

    monotonic = wall = now

    def nonce(self) -> int:
        return int(self.time)

    def set(self, exchange_time: float) -> None:
        raise AssertionError("the clock is right already")

    def wait(self, seconds: float) -> None:
        self.time += seconds

    def server_time(self) -> int:
        return int(self.time)

    def market_status(self) -> SystemStatus:
        return SystemStatus("online")

    def margin_rates(self) -> MarginRates:
        return MarginRates()

    def rules(self) -> PairRules:
        return self.pair_rules

    @property
    def running(self) -> int:
        return int(self.time - self.columns.time) // self.columns.interval_s

    def candles(self, since: int | None) -> Sequence[Candle]:
        running = self.running
        begin = 0 if since is None else (since - self.columns.time) // self.columns.interval_s
        return self.rows[max(begin, running - 720, 0) : running + 1]

    def quote(self) -> Quote:
        price = self.rows[self.running].open
        return Quote(price - self.tick, price + self.tick)

    def load(self) -> str | None:
        return self.state

    def save(self, state: str) -> None:
        self.state = state


def plan(
    interval_s: int = 60,
    size: str = "0.1",
    leverage: int = 2,
    one_order: bool = False,
    entry_now: bool = False,
    name: str = "sma-slope",
    length: int = 20,
    max_loss: str | None = None,
    orders_max: int = 500,
    level_min: int = 150,
) -> Plan:
    strategy, needed = build(name, length, 5, 20)
    limits = Limits(D(max_loss) if max_loss else None, D(level_min), D(1), orders_max)
    return Plan(
        "PAIR", interval_s, D(size), leverage, one_order, entry_now, strategy, needed, limits
    )


class TestAgainstTheLiveTick(unittest.TestCase):
    """Each case goes through Bot.tick with the simulated account, and through the replay."""

    def compare(
        self,
        columns: Columns,
        rules: PairRules,
        wish: Plan,
        *,
        balance: str = "10000",
        fee: str = "0.008",
    ) -> backtest.Result:
        world = World(columns, rules)
        journal = Journal(
            prepare(sqlite3.connect(":memory:", isolation_level=None), Path(":memory:"))
        )
        answers = Answers(world, PAIRS[rules.pair])
        client = PaperClient(answers, world, world, world, fee_rate=D(fee), balance=D(balance))
        exchange = Spot(client, rules.altname, columns.interval_s)
        live_bot = Bot(wish, exchange, journal, world, "test")
        live_bot._start()
        halted = None
        for number in range(len(columns.closes) - 1):
            world.time = columns.time + (number + 1) * columns.interval_s + WAKE_DELAY_S
            try:
                live_bot.tick()
                for _ in range(1 + columns.interval_s // 86400):
                    read_ledger(exchange, rules, journal, world)
            except StopError as error:
                halted = error
                break
        paid = Costs(D(fee), D(balance))
        replay = Replay(wish, rules, paid, keep=None)
        lean = Replay(wish, rules, paid)
        for part in split(columns, (500, 37, 1, 2, 999)):
            replay.feed(part)
            lean.feed(part)
        self.assertEqual(vars(lean.account) | NOT_BOOKS, vars(replay.account) | NOT_BOOKS)
        self.assertEqual([lot[2:] for lot in lean.book.lots], [lot[2:] for lot in replay.book.lots])
        live = [
            (i.created, i.side.sign, i.executed, i.cost, i.fee)
            for i in journal.intents()
            if i.executed
        ]
        self.assertEqual(live, orders(replay))
        self.assertEqual(halted is not None, replay.ended is not None, (halted, replay.ended))
        account = client.holder.account
        for name in ("balances", "fees", "rollovers", "realized"):
            self.assertEqual(getattr(account, name), getattr(replay.account, name), name)
        if halted is None:
            self.assertEqual(
                [lot[2:] for lot in account.book(rules).lots],
                [lot[2:] for lot in replay.book.lots],
            )
            replay.book.price = world.rows[world.running].open
            quote = rules.quote
            self.assertEqual(account.equity(quote), replay.account.equity(quote))
            paid = journal.account().costs
            charged = sum(replay.account.fees.values(), D(0))
            self.assertEqual(paid, charged + sum(replay.account.rollovers.values(), D(0)))
        self.assertEqual(lean.result(), replay.result())
        return lean.result()

    def test_a_month_of_bitcoin_is_equal_to_the_last_digit(self) -> None:
        columns = real("2023-03/XBTUSD_1.csv.gz", 60, DAYS)
        result = self.compare(columns, XBTUSD, plan(size="0.01"), balance="20000")
        self.assertGreater(result.turns, 65 * DAYS)

    def test_a_month_of_many_ties_is_equal_to_the_last_digit(self) -> None:
        columns = real("2023-03/USDTUSD_1.csv.gz", 60, DAYS)
        result = self.compare(columns, USDTUSD, plan(size="100", one_order=True), fee="0.002")
        self.assertGreater(result.turns, 32 * DAYS)

    def test_years_of_hours_with_rollovers_are_equal(self) -> None:
        columns = real("2023Q1/XBTUSD_60.csv", 3600)
        for leverage in (0, 2, 5):
            with self.subTest(leverage=leverage):
                wish = plan(3600, leverage=leverage, entry_now=True)
                result = self.compare(columns, XBTUSD, wish, fee="0.001")
                self.assertEqual(result.rollover > 0, leverage > 0)

    def test_random_walks_with_every_option_are_equal(self) -> None:
        endings = set()
        for seed in (*range(8), 29, 31, 38):
            with self.subTest(seed=seed):
                columns, wish, balance = wild(seed)
                result = self.compare(columns, XBTUSD, wish, balance=balance, fee="0.002")
                endings.add((result.ended or "none").split()[0])
        self.assertLessEqual({"none", "liquidated", "the"}, endings)

    def test_the_limit_of_orders_is_kept_by_many_turns_at_once_and_waited_for(self) -> None:
        prices = [units(str(9000 + at // 2 % 2)) for at in range(3000)]
        columns = Columns(6_000_000, 60, min(prices), max(prices), prices, prices, prices, prices)
        for limit in (2, 7):
            with self.subTest(limit=limit):
                wish = plan(entry_now=True, length=2, orders_max=limit, one_order=limit > 6)
                with mock.patch.object(backtest, "objection", wraps=backtest.objection) as asked:
                    result = self.compare(columns, XBTUSD, wish, fee="0.0001")
                self.assertIn("in the last 24 h", str(result.objection))
                self.assertLess(asked.call_count, 2 * result.orders + 2 * len(prices) / 60)

    def test_what_is_too_dear_is_bought_as_soon_as_it_is_not(self) -> None:
        prices = [units(str(price)) for price in (*range(9000, 9200), *range(9200, 4000, -20))]
        columns = Columns(6_000_000, 60, min(prices), max(prices), prices, prices, prices, prices)
        for leverage in (0, 2):
            with self.subTest(leverage=leverage):
                wish = plan(size="1", leverage=leverage, entry_now=True, level_min=0)
                result = self.compare(columns, XBTUSD, wish, balance=str(6000 // max(leverage, 1)))
                self.assertIn("needed", str(result.objection))
                self.assertEqual(result.orders > 0, leverage > 0)


class Terminal(io.StringIO):
    """What a command prints to; a terminal where a test says so."""


class TestFiles(unittest.TestCase):
    """What is not a series of candles gives one message with file and line, never a number."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def rows(self, count: int = 40) -> list[str]:
        return [
            f"{1_600_000_020 + at * 60},{100 + at}.5,{110 + at},{99 + at}.25,{101 + at}.0,1.5,3"
            for at in range(count)
        ]

    def plain_rows(self, count: int = 40) -> list[str]:
        """Return rows whose prices all have one form, like most in Kraken's files."""
        return [
            f"{1_600_000_020 + at * 60},{100 + at}.5,{110 + at}.0,{99 + at}.2,{101 + at}.0,1.5,3"
            for at in range(count)
        ]

    def run_on(self, content: bytes, name: str = "XBTUSD_1.csv") -> tuple[int, str, str]:
        (self.folder / name).write_bytes(content)
        return command(str(self.folder / name))

    def test_each_kind_of_bad_line_is_named(self) -> None:
        for bad in (
            "1600001820,100,nan,99,100,1,1",
            "1600001820,inf,inf,99,100,1,1",
            "text",
            "",
            "1600001820,-100,100,-100,100,1,1",
            "1600001820,0,100,0,100,1,1",
            "1600001820,100,99,98,100,1,1",
            "1600001820,100,101,99,100,1",
            "1600001820,100,101,99,100,1,1,1",
            "1600001820,1_00,101,99,100,1,1",
            "1600001820,100,101,99,100,-1,1",
            "1600001820,100,101,99,100,x,1",
            "1600001820,100.0000000000001,101,99,100,1,1",
            *self.rows()[20:30:9],
            "1600001821,100,101,99,100,1,1",
            "9600001820,100,101,99,100,1,1",
            "1600001820,100,101,99,100,1,",
            "1600001820,1.0.0,101,1,100,1,1",
            "1600001820,130.5,130.0,129.2,130.0,1,1",
            "1600001820,130.5,131.0,130.6,131.0,1,1",
            "1600001820,130.5,131.0,129.2,131.5,1,1",
            "1600001820,130.5,131.0,129.2,129.0,1,1",
            "1600001820,130.5,131.0,000.0,131.0,1,1",
            "1600001820,130.5,131.0,129.2,131.0,1.2.3,1",
            "1600001820,130.5,131.0,129.2,131.0,,1",
            "160000182.,130.5,131.0,129.2,131.0,1,1",
            "1600001820,130.5,131.0,129.2,131.0,1,1.5",
            "1600001820,130.5,131.0,129.2,13e.0,1,1",
        ):
            for good in (self.rows(), self.plain_rows()):
                bad = {self.rows()[at]: good[at] for at in (20, 29)}.get(bad, bad)
                text = "\n".join([*good[:30], bad, *good[31:]]) + "\n"
                code, output, errors = self.run_on(text.encode())
                self.assertEqual((code, output), (2, ""))
                self.assertEqual(errors.count("\n"), 1)
                self.assertIn("XBTUSD_1.csv:31:", errors)

    def test_files_that_are_no_series_are_refused(self) -> None:
        text = "\n".join(self.rows()).encode() + b"\n"
        hours = "\n".join(f"{1_600_002_000 + at * 3600},9,9,9,9,1,1" for at in range(30)).encode()
        for name, content in {
            "XBTUSD_1.csv": b"",
            "XBTUSD_5.csv": text,
            "XBTUSD_1.csv.gz": gzip.compress(text)[:-9],
            "XBTEUR_1.csv.gz": text,
            "ETHUSD_1.csv": text[:50],
            "SOLUSD_1.csv": b"\x00\xff" * 99,
            "ETHEUR_1.csv": text[:-400] + hours,
            "a.json": b"{}",
            "b.json": b"[1]",
            "DOTUSD_1.csv": b"6" + b"0" * 30 + b",9,9,9,9,1,1\n",
        }.items():
            with self.subTest(name):
                code, output, errors = self.run_on(content, name)
                self.assertEqual((code, output), (2, ""))
                self.assertIn(name, errors)
        self.assertEqual(command(str(self.folder / "none_1.csv"))[0], 2)

    def test_an_answer_of_impossible_prices_or_depth_is_refused(self) -> None:
        for price in ("9.5", "9.50000000001", "1e30", "1e999999999", "NaN", "0"):
            rows = [[60 * at, price, price, price, price, "9", "1", 1] for at in range(1, 40)]
            text = json.dumps({"XBTUSD": rows, "last": 0})
            with self.subTest(price=price):
                code, output, errors = self.run_on(text.encode(), "a.json")
                self.assertEqual((code, bool(output)), (0, True) if price == "9.5" else (2, False))
                self.assertEqual("not a saved OHLC answer" in errors, price != "9.5")
        self.assertEqual(self.run_on(b"[" * 200_000, "a.json")[0], 2)

    def test_marks_line_ends_and_gaps_change_nothing(self) -> None:
        rows = self.rows()
        text = "\n".join(rows).encode() + b"\n"
        expected = self.run_on(text)
        self.assertEqual(expected[0], 0)
        windows = text.replace(b"\n", b"\r\n")
        for same in (b"\xef\xbb\xbf" + text, windows, text + b"\n\n", text[:-1]):
            self.assertEqual(self.run_on(same), expected)
        flat = [*rows[:10], f"{rows[10][:10]},110.0,110.0,110.0,110.0,0,0", *rows[11:]]
        with_gap = "\n".join(rows[:10] + rows[11:]).encode()
        self.assertEqual(self.run_on(with_gap), self.run_on("\n".join(flat).encode()))

    def test_a_folder_is_stitched_in_order_of_time(self) -> None:
        rows = self.rows(60)
        expected = self.run_on("\n".join(rows).encode())
        (self.folder / "XBTUSD_1.csv").unlink()
        for number, part in enumerate((rows[30:], rows[:30])):
            path = self.folder / str(number) / "XBTUSD_1.csv"
            path.parent.mkdir()
            path.write_text("\n".join(part))
        self.assertEqual(command(str(self.folder)), expected)

    def test_rows_of_two_files_are_skipped_where_both_have_them_and_refused_in_a_gap(self) -> None:
        rows = self.rows(60)
        expected = self.run_on("\n".join(rows).encode())
        for number, (first, second) in enumerate(
            (
                (rows[:40], rows[20:]),
                (rows, rows),
                (rows, rows[10:50]),
                (rows[:20] + rows[30:], rows[10:]),
                (rows[:20] + rows[50:], rows[20:50]),
                (rows[:40], [*rows[10:20], "1600001249,100,100,100,100,1,1", *rows[20:]]),
            )
        ):
            with self.subTest(number=number):
                paths = []
                for part in (second, first):
                    paths.append(self.folder / str(len(paths)) / "XBTUSD_1.csv")
                    paths[-1].parent.mkdir(exist_ok=True)
                    paths[-1].write_text("\n".join(part))
                code, output, errors = command(*map(str, paths))
                if number < 3:
                    count = (20, 60, 40)[number]
                    note = f": {count} rows are in an earlier file already\n"
                    self.assertTrue(output.startswith(expected[1]) and output.endswith(note))
                else:
                    self.assertEqual((code, output), (2, ""))
                    self.assertIn("is in a gap of a file that begins earlier", errors)

    def test_a_block_checked_as_a_whole_is_read_like_line_by_line(self) -> None:
        quick = 0
        for seed in range(400):
            block = rows_of(random.Random(seed))
            with self.subTest(seed=seed):
                whole = candlefile._rows(block)
                if whole is not None:
                    times, columns = candlefile._slow_rows(block, Path("x"), 1)
                    self.assertEqual(whole[0], times)
                    self.assertEqual(
                        [*map(list, map(numbers, whole[1][4:]))], [*map(list, columns[4:])]
                    )
                    quick += 1
        self.assertGreater(quick, 40)

    def test_a_block_in_which_the_price_gets_a_digit_more_is_checked_as_a_whole(self) -> None:
        lines = (f"{60 * at},{at}.5,{at + 9}.25,{at}.5,{at}.5,1E+1,3\n" for at in range(90, 120))
        block = "".join(lines).encode()
        whole = candlefile._rows(block)
        assert whole is not None
        times, columns = candlefile._slow_rows(block, Path("x"), 1)
        self.assertEqual(whole[0], times)
        self.assertEqual([*map(list, map(numbers, whole[1][4:]))], [*map(list, columns[4:])])
        self.assertEqual(whole[1][2:4], columns[2:4])
        self.assertIsNone(candlefile._rows(block.replace(b"1E+1,", b"1E+999,")))

    def test_prices_as_text_and_as_numbers_are_the_same_candles(self) -> None:
        mixed = "\n".join(
            f"{60 * at},{p},{p}.50,{p - 1}.0,{p}.5,1E+1,3" for at, p in enumerate(range(90, 120))
        )
        path = self.folder / "XBTUSD_1.csv"
        path.write_text(mixed)
        columns = reduce(Columns.joined, read([path], 60, []))
        self.assertEqual([*map(exact, columns.opens)], [*range(90, 120)])
        self.assertEqual((exact(columns.low), exact(columns.high)), (89, 119.5))
        five = reduce(Columns.joined, aggregate(split(columns, (7, 1, 3)), 300))
        self.assertEqual((five.time, five.interval_s), (0, 300))
        self.assertEqual([*map(exact, five.opens)], [90.0, 95.0, 100.0, 105.0, 110.0, 115.0])
        self.assertEqual([*map(exact, five.highs)], [94.5, 99.5, 104.5, 109.5, 114.5, 119.5])
        self.assertEqual([*map(exact, five.lows)], [89.0, 94.0, 99.0, 104.0, 109.0, 114.0])
        self.assertEqual([*map(exact, five.closes)], [94.5, 99.5, 104.5, 109.5, 114.5, 119.5])

    def test_a_sweep_gives_what_each_run_gives_alone(self) -> None:
        columns = wild(3)[0]
        rows = [
            f"{60 * at},{o},{h},{low},{c},1,1"
            for at, (o, h, low, c) in enumerate(
                zip(*(map(exact, column) for column in columns[4:]), strict=True)
            )
        ]
        path = self.folder / "XBTUSD_1.csv"
        path.write_text("\n".join(rows))
        code, output, _ = command(str(path), "--sweep", "length=5:15:5", "interval=1,5", "--json")
        self.assertEqual(code, 0)
        runs = json.loads(output)
        self.assertEqual(len(runs), 6)
        table = command(str(path), "--sweep", "length=5:15:5", "interval=1,5")[1].splitlines()
        self.assertEqual(table[0].split()[:3], ["net", "by", "length"])
        self.assertEqual(table[1].split(), ["1", "5"])
        nets = [f"{float(run['net']):+,.2f}" for run in runs]
        cells = [cell for line in table[2:5] for cell in line.split()[1:]]
        self.assertEqual([cell.rstrip("*") for cell in cells], nets)
        best = max(runs, key=lambda run: D(run["net"]))["net"]
        self.assertEqual([cell for cell in cells if "*" in cell], [f"{float(best):+,.2f}*"])
        for no_color, shades in (("", True), ("1", False)):
            with (
                mock.patch.dict(os.environ, NO_COLOR=no_color),
                mock.patch.object(Terminal, "isatty", return_value=True),
            ):
                shown = command(str(path), "--sweep", "length=5:6", "interval=1,5")[1]
                self.assertEqual("\x1b[97;48;5;" in shown, shades)
        for run in runs:
            alone = command(
                str(path),
                "--json",
                "--length",
                str(run.pop("length")),
                "--interval",
                str(run.pop("interval")),
            )
            self.assertEqual(json.loads(alone[1]), run)
        skipped = command(str(path), str(path), "--sweep", "length=5:6", "--json")[1]
        self.assertEqual(len(json.loads(skipped)), 2)

    def test_options_that_mean_nothing_are_refused(self) -> None:
        text = "\n".join(self.rows()).encode()
        self.assertEqual(self.run_on(text)[0], 0)
        path, report = str(self.folder / "XBTUSD_1.csv"), self.folder / "report.html"
        cross = {"KRAKENBOT_STRATEGY_NAME": "sma-cross"}
        for environment, *words in (
            ({}, "--slippage", "x"),
            ({}, "--slippage", "NaN"),
            ({}, "--slippage", "-1"),
            ({}, "--slippage", "10"),
            ({}, "--sweep", "length=1:99999999999999"),
            ({}, "--sweep", "length=-99999999999999:5"),
            ({}, "--sweep", "length=5:1"),
            ({}, "--sweep", "length=5:6", "--report", str(report)),
            (cross, "--sweep", "length=5:6"),
        ):
            with self.subTest(words=words):
                code, output, errors = command(path, *words, **environment)
                self.assertEqual((code, output), (2, ""))
                self.assertIn(words[0], errors.splitlines()[-1])
        self.assertFalse(report.exists())
        self.assertEqual(command(path, "--sweep", "interval=1,5", **cross)[0], 0)

    def test_a_folder_is_searched_for_every_name_of_the_pair(self) -> None:
        expected = self.run_on("\n".join(self.rows()).encode())
        for name in ("BTC/USD", "XBT/USD", "BTCUSD", "XXBTZUSD"):
            self.assertEqual(command(str(self.folder), "--pair", name), expected)
        for name, like in (("ETH/USD", "ETHUSD_1.csv"), ("FOO/USD", "FOOUSD_1.csv")):
            code, output, errors = command(str(self.folder), "--pair", name)
            self.assertEqual((code, output), (2, ""))
            self.assertIn(f"no files of {name}, like {like}", errors)


class TestFeeGuard(unittest.TestCase):
    RATES = MarginRates(D("0.00025"), D("0.0001"))

    def setUp(self) -> None:
        self.settings = config.load(None, {"HOME": "/"}, Path("/nonexistent"))
        columns = wild(3)[0]
        self.candles = [
            Candle(at * 60, *map(exact, prices))
            for at, prices in enumerate(zip(*columns[4:], strict=True))
        ]

    def guard(
        self,
        candles: Sequence[Candle],
        rules: PairRules = XBTUSD,
        fee: str = "0.008",
        rates: MarginRates = RATES,
    ) -> costs.Guard:
        return costs.fee_guard(self.settings, candles, rules, D(fee), rates)

    def test_the_share_of_the_position_that_a_day_of_turns_costs_is_counted(self) -> None:
        found = self.guard(self.candles)
        self.assertIsNone(found.refused_reason)
        self.assertGreater(found.percent_per_day, self.settings.risk.max_fee_percent_per_day)
        self.assertAlmostEqual(float(found.percent_per_day) / found.turns_per_day, 1.62, delta=0.4)
        self.assertIn("interval", found.lines[-1])

    def test_without_a_fee_the_rates_of_what_is_lent_are_what_it_costs(self) -> None:
        free = MarginRates(D(0), D(0))
        self.assertEqual(self.guard(self.candles, fee="0", rates=free).percent_per_day, 0)
        turns = self.guard(self.candles, fee="0").turns_per_day
        cost = self.guard(self.candles, fee="0", rates=MarginRates(D(0), D("0.0001")))
        self.assertAlmostEqual(float(cost.percent_per_day), turns / 2 * 0.01, delta=turns * 0.002)

    def test_candles_with_gaps_cost_what_they_cost_when_filled(self) -> None:
        gaps = [c for at, c in enumerate(self.candles) if not at or at % 3]
        filled = fill(gaps, 60)
        self.assertEqual(len(filled), len(self.candles) - (len(self.candles) % 3 == 1))
        self.assertEqual(self.guard(gaps), self.guard(filled))

    def test_a_pair_that_refuses_the_orders_is_not_cheap(self) -> None:
        for rules, word in (
            (XBTUSD._replace(leverages_buy=(), leverages_sell=()), "margin"),
            (XBTUSD._replace(leverages_buy=(3,), leverages_sell=(3,)), "leverage 2"),
            (XBTUSD._replace(long_position_limit=D("0.0001")), "position limit"),
        ):
            with self.subTest(word=word):
                self.assertIn(word, str(self.guard(self.candles, rules).refused_reason))

    def test_too_few_candles_are_not_cheap_and_a_market_without_turns_is(self) -> None:
        self.assertIn("only 20", str(self.guard(self.candles[:20]).refused_reason))
        still = [Candle(60 * at, *[D(9000 + at)] * 4) for at in range(200)]
        found = self.guard(still)
        self.assertEqual((found.refused_reason, found.turns_per_day < 15), (None, True))

    def test_a_market_that_is_closed_now_is_counted_all_the_same(self) -> None:
        closed = XBTUSD._replace(status="cancel_only")
        self.assertEqual(self.guard(self.candles, closed), self.guard(self.candles))


class TestWholeSteps(unittest.TestCase):
    def test_turns_in_whole_cost_steps_round_like_the_books(self) -> None:
        dice, ties = random.Random(1), 0
        for _ in range(2000):
            fee_rate, rate = (D(dice.choice(("0.008", "0.0002", "0.5"))) for _ in range(2))
            volume = D(dice.randrange(1, 10**5)).scaleb(-8)
            price = D(dice.choice((dice.randrange(1, 10**7), 5 * dice.randrange(1, 10**4))))
            account = Account({"ZUSD": D(10**12)}, fee_rate, margin_rate=rate)
            book = account.book(XBTUSD)
            opened = account.fill(book, 0.0, 1, volume, price, 2)[0]
            charges = whole_charges(account, book, volume, [units(price)])
            exactly = [opened.cost, opened.fee, opened.opening_fee]
            self.assertEqual([amount * book.cost_step for amount in next(charges)], exactly)
            ties += any(
                amount / book.cost_step % 1 == D("0.5")
                for amount in (price * volume, opened.cost * fee_rate, opened.cost * rate)
            )
        self.assertGreater(ties, 100)


class TestSameConstants(unittest.TestCase):
    def test_the_replay_waits_and_gives_up_as_the_bot_does(self) -> None:
        self.assertEqual(backtest.WAKE_DELAY_S, bot.WAKE_DELAY_S)
        self.assertEqual(backtest.ROUNDS_MAX, bot.ROUNDS_MAX)
        self.assertEqual(backtest.UNFILLED_MAX, orders_module.UNFILLED_MAX)


def command(*words: str, **environment: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of `backtest`, run far from any configuration."""
    output, errors = Terminal(), io.StringIO()
    own = {name: text for name, text in os.environ.items() if not name.startswith("KRAKENBOT_")}
    with (
        redirect_stdout(output),
        redirect_stderr(errors),
        mock.patch.dict(os.environ, own | environment, clear=True),
    ):
        code = cli.main(["--config", os.devnull, "backtest", *words])
    return code, output.getvalue(), errors.getvalue()


def wild(seed: int) -> tuple[Columns, Plan, str]:
    """Return a jumpy market and a plan in which every limit is met sooner or later."""
    dice = random.Random(seed)
    price = dice.choice((20000.0, 20000.0, 8000.0))
    closes, opens, highs, lows = [], [], [], []
    for _ in range(700):
        opened = round(price * (1 + dice.choice((0, 0, 0, 0.001, -0.001))), 1)
        price = round(opened * (1 + dice.gauss(0, dice.choice((0.0005, 0.005, 0.03)))), 1)
        if dice.random() < 0.2:
            price = opened
        opens.append(opened)
        closes.append(price)
        highs.append(round(max(opened, price) * (1 + abs(dice.gauss(0, 0.003))), 1))
        lows.append(round(min(opened, price) * (1 - abs(dice.gauss(0, 0.003))), 1))
    interval_s = dice.choice((60, 3600, 14400, 86400))
    wish = plan(
        interval_s,
        size=dice.choice(("0.1", "0.4", "0.00006", "0.123456789")),
        leverage=dice.choice((0, 2, 5, 10, 10)),
        one_order=dice.random() < 0.5,
        entry_now=dice.random() < 0.5,
        name=dice.choice(("sma-slope", "sma-slope", "sma-cross")),
        max_loss=dice.choice((None, None, "300")),
        orders_max=dice.choice((500, 7, 2, 1)),
        level_min=dice.choice((150, 0, 0, 220)),
    )
    time = 1_600_000_000 // interval_s * interval_s
    prices = [[units(str(price)) for price in column] for column in (opens, highs, lows, closes)]
    columns = Columns(time, interval_s, min(prices[2]), max(prices[1]), *prices)
    return columns, wish, dice.choice(("4000", "1200", "9000"))


def rows_of(dice: random.Random) -> bytes:
    """Return a few lines of a file, many of them a little wrong."""
    digits, base = dice.choice((1, 1, 2, 4)), dice.choice((10, 999, 23456, 99999990))
    lines = []
    for at in range(dice.randrange(1, 6)):
        o, close = (base + dice.randrange(9) for _ in range(2))
        high = max(o, close) + dice.choice((0, 0, 3, 3, 3, 3, -1))
        low = min(o, close) - dice.choice((0, 0, 3, 3, 3, 3, -1))
        texts = [f"{D(price).scaleb(-digits):f}" for price in (o, high, low, close)]
        if dice.random() < 0.3:
            texts[dice.randrange(4)] = texts[0].rstrip("0").rstrip(".")
        lines.append(",".join((str(60 * at + 60), *texts, dice.choice(("0.5", "3e-07")), "7")))
    text = "\n".join(lines)
    if dice.random() < 0.3:
        at = dice.randrange(len(text))
        text = text[:at] + dice.choice("0123456789.,-e\n x") + text[at + dice.randrange(2) :]
    return text.encode() + b"\n"


def orders(replay: Replay) -> list[tuple[object, ...]]:
    """Return the fills, those of one order added up, without liquidations."""
    merged: dict[int, tuple[object, ...]] = {}
    for one in replay.fills:
        numbers = one.volume, one.cost, one.fee
        if one.order in merged:
            before = merged[one.order][2:]
            numbers = tuple(a + b for a, b in zip(before, numbers, strict=True))
        if one.reason != "liquidated":
            merged[one.order] = (one.time, one.direction, *numbers)
    return list(merged.values())


def split(columns: Columns, sizes: Sequence[int]) -> list[Columns]:
    parts, begin, turn = [], 0, 0
    while begin < len(columns.closes):
        end = begin + sizes[turn % len(sizes)]
        parts.append(columns.cut(begin, end))
        begin, turn = end, turn + 1
    return parts


def real(name: str, interval_s: int, days: int = 10_000) -> Columns:
    if not DATA:
        raise unittest.SkipTest("TEST_DATA_KRAKEN is not set")
    path = Path(DATA) / "candles" / "ohlcvt" / name
    whole = reduce(Columns.joined, read([path], interval_s, []))
    return whole.cut(0, days * 86400 // interval_s)


if __name__ == "__main__":
    unittest.main()
