"""A rule file beside the built-in strategy it repeats: the same decisions everywhere."""

import os
import random
import tempfile
import unittest
from decimal import Decimal
from pathlib import Path

from krakenbot.backtest.engine import Costs, Replay
from krakenbot.backtest.files import columns_of
from krakenbot.config import Config, StrategyTable
from krakenbot.decision import plan_of
from krakenbot.model import Candle
from tests.rules.test_pairs import rules

SLOPE = """
CANDLES = 21

def direction(candles):
    rise = candles[-1].close - candles[0].close
    return 1 if rise > 0 else -1 if rise < 0 else None

def average(candles):
    return sum(candle.close for candle in candles[1:]) / 20
"""
SESSION = """
CANDLES = 1

def direction(candles):
    (candle,) = candles
    assert candle.low <= candle.open <= candle.high and candle.low <= candle.close <= candle.high
    hour = candle.time // 3600 % 24
    return {8: 1, 12: 0, 16: -1, 20: 0}.get(hour)
"""


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
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def file(self, text: str, **parameters: object) -> StrategyTable:
        path = self.folder / f"rule{len(os.listdir(self.folder))}.py"
        path.write_text(text)
        return StrategyTable("file", file=path, parameters=parameters)

    def replay(self, table: StrategyTable, candles: list[Candle], **more: object) -> Replay:
        config = Config(interval=60, size=Decimal("0.1"), entry="now", strategy=table)
        costs = Costs(Decimal("0.004"), Decimal(10_000))
        plan = plan_of(config._replace(**more))  # type: ignore[arg-type]
        replay = Replay(plan, rules(), costs, None)
        for at in range(0, len(candles), 37):
            replay.feed(columns_of(candles[at : at + 37], 3600))
        return replay


class TestBacktest(OwnRuleTest):
    def test_sma_slope_as_a_file_trades_as_the_built_in_one(self) -> None:
        for more in ({}, {"entry": "next-turn", "reversal": "one-order"}, {"leverage": 0}):
            replays = [
                self.replay(t, walk(2000), **more) for t in (StrategyTable(), self.file(SLOPE))
            ]
            one, other = ((replay.fills, replay.result()) for replay in replays)
            self.assertEqual(one, other)
            self.assertGreater(one[1].turns, 50)

    def test_flat_closes_and_what_follows_opens_on_the_hour(self) -> None:
        replay = self.replay(self.file(SESSION), walk(24 * 20))
        found = [(f.time // 3600 % 24, f.direction, f.closing) for f in replay.fills][:8]
        day = [(9, 1, False), (13, -1, True), (17, -1, False), (21, 1, True)]
        self.assertEqual(day + day, found)
        self.assertEqual(40, replay.result().turns)
        self.assertEqual(Decimal(0), replay.held)


if __name__ == "__main__":
    unittest.main()
