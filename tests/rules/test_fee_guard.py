"""What a configuration costs a day: counted over filled candles, never guessed from a refusal."""

import random
import unittest
from collections.abc import Sequence
from decimal import Decimal as D
from pathlib import Path

from krakenbot import config, config_reader
from krakenbot.backtest.costs import CostEstimate, fee_guard
from krakenbot.candles import fill
from krakenbot.model import Candle, MarginRates
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.simulated.listing import PAIRS

XBTUSD = parse_rules("XXBTZUSD", PAIRS["XXBTZUSD"])
RATES = MarginRates(D("0.00025"), D("0.0001"))


def walk(count: int) -> list[Candle]:
    """Return candles of a minute whose one price goes up and down."""
    dice, price, candles = random.Random(1), D(20000), []
    for at in range(count):
        price += D(dice.randrange(-200, 201)) / 10
        candles.append(Candle(60 * at, price, price, price, price, D(1)))
    return candles


class TestFeeGuard(unittest.TestCase):
    def setUp(self) -> None:
        self.settings = config_reader.load(None, {"HOME": "/"}, Path("/nonexistent"))
        self.candles = walk(700)

    def guard(
        self,
        candles: Sequence[Candle],
        rules: PairRules = XBTUSD,
        fee: str = "0.008",
        rates: MarginRates = RATES,
    ) -> CostEstimate:
        return fee_guard(self.settings, candles, rules, D(fee), rates)

    def test_the_share_of_the_position_that_a_day_of_turns_costs_is_counted(self) -> None:
        found = self.guard(self.candles)
        self.assertIsNone(found.refused_reason)
        self.assertGreater(found.percent_per_day, self.settings.risk.max_fee_percent_per_day)
        per_turn = float(found.percent_per_day) / found.turns_per_day
        self.assertAlmostEqual(per_turn, 1.62, delta=0.1)
        self.assertIn("interval", found.lines[-1])

    def test_what_is_above_the_limit_or_unknown_is_too_much(self) -> None:
        total, risk = self.guard(self.candles).percent_per_day, self.settings.risk
        for limit, is_too_much in ((total, False), (total - D("0.01"), True)):
            changed = risk._replace(max_fee_percent_per_day=limit)
            self.settings = self.settings._replace(risk=changed)
            self.assertEqual(is_too_much, self.guard(self.candles).is_too_much)
            self.assertTrue(self.guard(self.candles[:20]).is_too_much)

    def test_without_a_fee_the_rates_of_what_is_lent_are_what_it_costs(self) -> None:
        free = self.guard(self.candles, fee="0", rates=MarginRates(D(0), D(0)))
        self.assertEqual(free.percent_per_day, 0)
        short = self.guard(self.candles, fee="0", rates=MarginRates(D(0), D("0.0001")))
        expected = short.turns_per_day / 2 * 0.01
        self.assertAlmostEqual(float(short.percent_per_day) / expected, 1, delta=0.1)

    def test_candles_with_gaps_cost_what_they_cost_when_filled(self) -> None:
        gaps = [candle for at, candle in enumerate(self.candles) if at % 3 != 1]
        self.assertEqual(self.guard(gaps), self.guard(fill(gaps, 60)))

    def test_candles_that_a_long_average_needs_first_are_not_days_without_costs(self) -> None:
        self.settings = self.settings._replace(strategy=config.StrategyTable(length=600))
        candles = walk(8000)
        short = [self.guard(candles[at : at + 720]) for at in range(0, 7000, 500)]
        mean = sum(guard.percent_per_day for guard in short) / len(short)
        ratio = mean / self.guard(candles).percent_per_day
        self.assertTrue(1 < ratio < 2, ratio)  # Above, as each window pays for an entry.
        self.assertIn("over the last 1 h 59 min", short[0].lines[0])

    def test_an_average_that_leaves_too_few_candles_is_not_guessed_at(self) -> None:
        for length, is_known in ((600, True), (700, False)):
            self.settings = self.settings._replace(strategy=config.StrategyTable(length=length))
            self.assertEqual(is_known, self.guard(walk(720)).refused_reason is None)

    def test_what_a_round_trip_must_gain_are_two_fees_and_an_opening(self) -> None:
        rising = [Candle(60 * at, *[D(9000 + at)] * 4) for at in range(700)]
        self.assertIn("must gain 1.67 %", self.guard(rising).lines[1])

    def test_fees_are_measured_by_the_prices_at_which_they_were_paid(self) -> None:
        for factor in (D(1) / 2, D(2)):
            moved = []
            for at, candle in enumerate(walk(5000)):
                price = candle.close * (1 + (factor - 1) * at / 5000)
                moved.append(Candle(candle.time, price, price, price, price, D(1)))
            found = self.guard(moved, rates=MarginRates(D(0), D(0)))
            per_turn = float(found.percent_per_day) / found.turns_per_day
            self.assertAlmostEqual(per_turn, 1.6, delta=0.3)

    def test_a_minimum_that_an_old_price_does_not_reach_refuses_nothing(self) -> None:
        cheap = [Candle(c.time, *[price / 1000 for price in c[1:5]], D(1)) for c in self.candles]
        late = [candle._replace(time=candle.time + 60 * 700) for candle in self.candles]
        self.assertIsNone(self.guard([*cheap, *late]).refused_reason)

    def test_a_pair_that_refuses_the_orders_is_not_cheap(self) -> None:
        for rules, word in (
            (XBTUSD._replace(leverage_buy=(), leverage_sell=()), "margin"),
            (XBTUSD._replace(leverage_sell=()), "leverage"),
            (XBTUSD._replace(leverage_buy=(3,), leverage_sell=(3,)), "leverage 2"),
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
