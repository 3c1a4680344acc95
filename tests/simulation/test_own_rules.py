"""A rule file beside the built-in strategy it repeats: the same decisions everywhere."""

import json
import os
import random
import re
import unittest
from decimal import Decimal

from krakenbot.backtest.columns import columns_of
from krakenbot.backtest.engine import Costs, Replay
from krakenbot.backtest.result import Fill
from krakenbot.commands.help import manual_file
from krakenbot.config import Config, StrategyTable
from krakenbot.model import Candle
from krakenbot.plan import plan_of
from krakenbot.rulefile import load
from tests.commands.called import call
from tests.folders import own_folder
from tests.logs import silence_module
from tests.markets import short_histories
from tests.rules.test_pairs import rules
from tests.simulation.test_contract import ORDERS_MIN, traded, write_candles

SLOPE = """
CANDLES = 21

def direction(candles):
    rise = candles[-1].close - candles[0].close
    return 1 if rise > 0 else -1 if rise < 0 else None

def average(candles):
    return sum(candle.close for candle in candles[1:]) / 20
"""
LAG = """
CANDLES = 61

def direction(candles, lag, share=1):
    rise = candles[-1].close - candles[-1 - lag].close
    return None if not rise else (1 if rise > 0 else -1) if share else 0
"""
SESSION = """
CANDLES = 1

def direction(candles):
    (candle,) = candles
    assert candle.volume == candle.time // 3600 % 5
    assert candle.low <= candle.open <= candle.high and candle.low <= candle.close <= candle.high
    hour = candle.time // 3600 % 24
    return {8: 1, 12: 0, 16: -1, 20: 0}.get(hour)
"""


def setUpModule() -> None:
    short_histories()
    silence_module()


def walk(count: int, seed: int = 1) -> list[Candle]:
    """Return candles of an hour, with ties, whose opens are the closes before."""
    draw, price, candles = random.Random(seed), Decimal(50_000), []
    for number in range(count):
        opened, price = price, price + draw.choice((-7, -2, 0, 0, 2, 8))
        high, low = max(opened, price) + 1, min(opened, price) - 1
        candles.append(Candle(3600 * number, opened, high, low, price, Decimal(number % 5)))
    return candles


class OwnRuleTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)

    def file(self, text: str, **parameters: object) -> StrategyTable:
        path = self.folder / f"rule{len(os.listdir(self.folder))}.py"
        path.write_text(text)
        return StrategyTable("file", file=path, parameters=parameters)

    def replay(self, table: StrategyTable, candles: list[Candle], **more: object) -> Replay:
        config = Config(interval=60, size=Decimal("0.1"), entry="now", strategy=table)
        costs = Costs(Decimal("0.004"), Decimal(10_000))
        plan = plan_of(config._replace(**more))
        replay = Replay(plan, rules(), costs, None)
        for at in range(0, len(candles), 37):
            replay.feed(columns_of(candles[at : at + 37], 3600))
        return replay


def fills(replay: Replay) -> list[Fill]:
    return [fill for trip in replay.record.trips for fill in (trip.entry, trip.exit)]


class TestBacktest(OwnRuleTest):
    def test_sma_slope_as_a_file_trades_as_the_built_in_one(self) -> None:
        for more in ({}, {"entry": "next-turn", "reversal": "one-order"}, {"leverage": 0}):
            tables = StrategyTable(), self.file(SLOPE)
            replays = [self.replay(table, walk(900), **more) for table in tables]
            one, other = ((fills(replay), replay.result()) for replay in replays)
            self.assertEqual(one, other)
            self.assertGreater(one[1].turns, 25)

    def test_flat_closes_and_what_follows_opens_on_the_hour(self) -> None:
        replay = self.replay(self.file(SESSION), walk(24 * 20))
        found = [(fill.time // 3600 % 24, fill.direction) for fill in fills(replay)][:8]
        day = [(9, 1), (13, -1), (17, -1), (21, 1)]
        self.assertEqual(day + day, found)
        self.assertEqual(40, replay.result().turns)
        self.assertEqual(Decimal(0), replay.held)


class TestBacktestCommand(OwnRuleTest):
    def setUp(self) -> None:
        super().setUp()
        self.data = self.folder / "XBTUSD_60.csv"
        rows = (f"{c.time},{','.join(map(str, c[1:6]))},1\n" for c in walk(900))
        self.data.write_text("".join(rows))
        table = self.file(LAG)
        self.config = self.folder / "config.toml"
        self.config.write_text(
            f'interval = 60\nentry = "now"\n[strategy]\nname = "file"\nfile = "{table.file}"\n'
            "[strategy.parameters]\nlag = 20\n"
        )

    def run_it(self, *words: str, code: int = 0) -> str:
        place = ("--config", str(self.config), "backtest", str(self.data))
        done = call(*place, *words, HOME="/x")
        self.assertEqual(code, done.code, done.err)
        return done.out if code == 0 else done.err

    def test_it_names_the_rule_and_says_that_it_cannot_look_ahead(self) -> None:
        report = self.folder / "report.html"
        said = self.run_it("--report", str(report))
        self.assertRegex(said, r"rule\d\.py [0-9a-f]{12} lag=20, size")
        for text in (said, report.read_text()):
            self.assertIn("last 61 finished candles", text)

    def test_a_sweep_goes_over_its_parameters_whole_or_not(self) -> None:
        rows = json.loads(self.run_it("--sweep", "lag=10:20:10", "share=0:1:0.5", "--json"))
        swept = [(row["lag"], row["share"]) for row in rows]
        self.assertEqual([(10, 0), (10, "0.5"), (10, 1), (20, 0), (20, "0.5"), (20, 1)], swept)
        self.assertEqual(json.loads(self.run_it("--json"))["net"], rows[5]["net"])
        self.assertNotEqual(rows[2]["net"], rows[5]["net"])

    def test_what_the_rule_does_not_know_or_cannot_do_is_a_configuration_error(self) -> None:
        self.assertIn("unexpected keyword", self.run_it("--sweep", "leg=1:3", code=78))
        self.assertIn("py:5: IndexError", self.run_it("--sweep", "lag=500", code=78))
        self.assertIn("--length", self.run_it("--length", "5", code=2))


class TestTheBot(OwnRuleTest):
    def test_sma_slope_as_a_file_decides_and_orders_as_the_built_in_one(self) -> None:
        path = write_candles(self.folder, 2)
        config = Config(size=Decimal("0.02"), entry="now")
        configs = [config._replace(strategy=x) for x in (StrategyTable(), self.file(SLOPE))]
        built_in, file = (traded(path, plan_of(config), paper=False) for config in configs)
        self.assertEqual(repr(built_in), repr(file))
        self.assertGreater(len(built_in[0]), ORDERS_MIN)


class TestManual(OwnRuleTest):
    """The rules that the manual shows, as they stand there."""

    def test_each_passes_its_trial_and_trades_both_ways_and_the_band_is_also_flat(self) -> None:
        text, candles = manual_file("strategies.md"), walk(900, 3)
        (table,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
        (self.folder / "weights.csv").write_text(table)
        rules = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        self.assertEqual(3, len(rules))
        for rule in rules:
            with self.subTest(rule[:40]):
                chosen = self.file(rule)
                load(chosen.file).try_on(candles, {})
                trips = self.replay(chosen, candles).record.trips
                self.assertEqual({1, -1}, {trip.entry.direction for trip in trips})
        (band,) = (rule for rule in rules if "stdev" in rule)
        replay = self.replay(self.file(band, width=Decimal("1.5")), candles)
        self.assertLess(replay.result().exposure, 0.9)
