import random
import unittest
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import product

from krakenbot.config import Config, StrategyTable
from krakenbot.model import Candle, Direction
from krakenbot.plan import plan_of
from krakenbot.strategy import sma_cross, sma_slope

SEEDS = range(40)


def candles(closes: Sequence[object]) -> list[Candle]:
    prices = [Decimal(str(close)) for close in closes]
    return [Candle(60 * number, p, p, p, p) for number, p in enumerate(prices)]


def average(closes: Sequence[Decimal]) -> Fraction:
    return Fraction(sum(closes, Decimal(0))) / len(closes)  # Sums of so few digits are exact.


def sign(number: Fraction) -> int:
    return (number > 0) - (number < 0)


def closes_with_ties(seed: int) -> list[Decimal]:
    """A walk on a coarse grid, so that equal closes and equal averages are common."""
    draw = random.Random(seed)
    step = draw.choice(("0.1", "0.00001", "0.3", "1"))
    price, closes = Decimal(50_000), []
    for _ in range(draw.randint(1, 90)):
        price += Decimal(step) * draw.choice((-1, 0, 0, 0, 1))
        closes.append(price)
    return closes


def slope_by_fractions(closes: Sequence[Decimal], length: int) -> tuple[int, int]:
    """Return direction and slope by comparing whole averages, oldest first."""
    direction = slope = 0
    for end in range(length + 1, len(closes) + 1):
        now, before = closes[end - length : end], closes[end - length - 1 : end - 1]
        slope = sign(average(now) - average(before))
        direction = slope or direction
    return direction, slope


def cross_by_fractions(closes: Sequence[Decimal], short: int, long: int) -> tuple[int, int]:
    direction = slope = 0
    for end in range(long, len(closes) + 1):
        slope = sign(average(closes[end - short : end]) - average(closes[end - long : end]))
        direction = slope or direction
    return direction, slope


class TestAverages(unittest.TestCase):
    def test_direction_and_slope_are_those_of_the_exact_averages_also_at_ties(self) -> None:
        for strategy, exact, choices in (
            (sma_slope, slope_by_fractions, ((1,), (2,), (3,), (7,), (20,))),
            (sma_cross, cross_by_fractions, ((1, 2), (2, 3), (3, 7), (5, 20))),
        ):
            ties = 0
            for seed, lengths in product(SEEDS, choices):
                closes = closes_with_ties(seed)
                with self.subTest(strategy.__name__, seed=seed, lengths=lengths):
                    signal = strategy(candles(closes), *lengths)
                    expected = exact(closes, *lengths)
                    self.assertEqual(expected, (signal.direction or 0, signal.slope))
                    ties += signal.slope == 0
            self.assertGreater(ties, 50, "the series hold too few ties to prove anything")


class TestSlope(unittest.TestCase):
    def test_a_tie_between_rise_and_fall_does_not_hide_the_turn(self) -> None:
        rising = [1, 2, 3, 4]
        self.assertEqual(Direction.LONG, sma_slope(candles(rising), 2).direction)
        tied = sma_slope(candles([*rising, 3]), 2)  # The close two candles before was 3 as well.
        self.assertEqual((Direction.LONG, 0), (tied.direction, tied.slope))
        falling = sma_slope(candles([*rising, 3, 2]), 2)
        self.assertEqual((Direction.SHORT, -1), (falling.direction, falling.slope))

    def test_too_few_or_only_equal_candles_give_no_direction(self) -> None:
        for closes in ([], [5], [5, 6], [5, 6, 7], [5] * 40):
            with self.subTest(closes):
                self.assertIsNone(sma_slope(candles(closes), 3).direction)
        self.assertEqual(Direction.LONG, sma_slope(candles([5, 6, 7, 8]), 3).direction)

    def test_one_candle_more_at_the_front_never_changes_a_direction_that_is_known(self) -> None:
        closes = closes_with_ties(4)
        whole = sma_slope(candles(closes), 3).direction
        for start in range(len(closes)):
            direction = sma_slope(candles(closes[start:]), 3).direction
            with self.subTest(start):
                self.assertIn(direction, (whole, None))

    def test_the_shown_average_is_that_of_the_newest_closes(self) -> None:
        self.assertEqual(Decimal("3.5"), sma_slope(candles([9, 9, 3, 4]), 2).average)


class TestTable(unittest.TestCase):
    def test_each_strategy_speaks_from_the_number_of_candles_it_asks_for(self) -> None:
        for name in ("sma-slope", "sma-cross"):
            table = StrategyTable(name, length=5, short=2, long=6)
            plan = plan_of(Config(strategy=table))
            strategy, needed = plan.strategy, plan.candles_min
            closes = list(range(1, needed + 1))
            with self.subTest(name):
                self.assertEqual(Direction.LONG, strategy(candles(closes)).direction)
                self.assertIsNone(strategy(candles(closes[1:])).direction)
