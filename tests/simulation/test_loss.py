"""`max_loss`: noticed between long candles, and nothing holds up the closing then."""

from decimal import Decimal

from krakenbot.bot import Bot
from krakenbot.model import ZERO
from tests.simulation.test_bot import DAY_S, LIMITS, SIZE, T0, BotTest, Killed

CRASH = Decimal(30_000)
LATE_S = 22 * 3600  # In the last tenth of a daily candle.


class TestMaxLoss(BotTest):
    interval_s = DAY_S

    def setUp(self) -> None:
        super().setUp()
        self.plan = self.plan._replace(limits=LIMITS)

    def hold(self) -> Bot:
        bot = self.run_for(600)
        self.assert_held(SIZE)
        return bot

    def crash(self, price: Decimal = CRASH) -> None:
        self.exchange.close = lambda number: price

    def assert_closed_within(self, seconds: float, bot: Bot | None = None) -> None:
        began = self.clock.time
        self.clock.end = began + DAY_S
        self.assertIn("max_loss", self.stopped((bot or self.bot()).run))
        self.assertLess(self.clock.time - began, seconds)
        sent = self.exchange.placed[:]
        self.assertEqual(bool(self.plan.leverage), sent[-1].reduce_only)
        self.assertIn("max_loss", self.stopped(self.once))  # It is halted, and stays so.
        self.assert_held(ZERO, sent=len(sent))

    def halt_and_resume(self) -> None:
        self.exchange.by_hand(2 * SIZE)
        self.stopped(self.bot().run)
        self.exchange.by_hand(SIZE)
        self.journal.resume()

    def test_the_loss_is_taken_within_minutes(self) -> None:
        bot = self.hold()
        self.crash()
        self.assert_closed_within(360, bot)

    def test_a_loss_that_is_over_before_its_close_went_out_is_taken_all_the_same(self) -> None:
        bot = self.hold()
        self.crash()
        self.exchange.script = ["later"] * 9
        self.run_for(600, bot)
        self.assert_held(SIZE)
        self.exchange.script.clear()
        self.crash(Decimal(60_000))
        self.assert_closed_within(600)

    def test_a_rest_too_small_to_be_closed_does_not_keep_the_bot_from_halting(self) -> None:
        bot, execute, rest = self.hold(), self.exchange.execute, Decimal("0.00001")
        self.crash()
        self.exchange.execute = lambda order, volume: execute(order, volume - rest)
        self.stopped(bot.run)
        self.assert_held(rest)

    def test_after_a_resume_it_counts_at_once_not_from_the_next_candle_on(self) -> None:
        self.hold()
        self.halt_and_resume()
        self.run_for(3600)
        self.crash()
        self.assert_closed_within(600)

    def test_a_resume_before_the_first_decision_values_the_position_at_its_price(self) -> None:
        for rise in (10_000, 0):  # A long and a short one.
            with self.anew(rise):
                self.exchange.rise = rise
                self.answers("summary", None, Killed())
                self.assertRaises(Killed, self.once)
                self.journal.put(halted="by hand")
                self.journal.resume()
                bot = self.run_for(600)
                self.assertEqual(SIZE, abs(self.exchange.held))
                self.crash(self.exchange.close(101) - (6000 if rise else -6000))
                self.assert_closed_within(600, bot)

    def test_after_a_resume_it_counts_from_the_price_then(self) -> None:
        self.hold()
        self.halt_and_resume()
        self.crash(Decimal(44_000))
        self.run_for(3600)
        self.assert_held(SIZE)

    def test_the_loss_is_told_with_the_decimals_of_the_quote_currency(self) -> None:
        self.exchange.pair_rules = self.exchange.pair_rules._replace(quote="XXBT")
        self.hold()
        self.crash()
        reason = self.stopped(self.bot().run)
        self.assertRegex(reason, r"the loss since the last resume is \d+\.\d{8}, max_loss is 50$")

    def test_a_close_that_fails_is_tried_again_however_late_in_the_candle(self) -> None:
        for leverage in (2, 0):
            for word in ("later", "wait", "unsent", "zero", "never"):
                with self.anew(word, leverage=leverage):
                    self.hold()
                    self.clock.time = T0 + DAY_S * 101 + LATE_S
                    self.crash()
                    self.exchange.script = [word]
                    self.assert_closed_within(900)

    def test_a_sale_in_the_same_candle_does_not_hold_up_the_close(self) -> None:
        self.plan = self.plan._replace(leverage=0, size=2 * SIZE)
        self.run_for(600)
        self.at(101)
        self.plan = self.plan._replace(size=SIZE)
        self.run_for(600)
        self.crash()
        self.assert_closed_within(600)

    def test_a_wide_spread_does_not_hide_a_loss_that_both_prices_show(self) -> None:
        for is_same in (True, False):  # Which knows a candle's close from before, or none.
            with self.anew(is_same):
                bot = self.hold()
                self.crash()
                self.exchange.spread = Decimal(400)
                self.assert_closed_within(600, bot if is_same else None)

    def test_after_a_resume_no_absurd_quote_is_counted_from(self) -> None:
        for spread in (30_000, 600):
            with self.anew(spread):
                self.hold()
                self.journal.resume()
                self.exchange.spread = Decimal(spread)
                bot = self.run_for(60)
                self.exchange.spread = Decimal(1)
                self.run_for(600, bot)
                self.assert_held(SIZE)
                self.crash()
                self.assert_closed_within(600, bot)

    def test_a_loss_that_only_the_worse_price_of_a_wide_spread_shows_is_none(self) -> None:
        for price, spread in ((50_000, 90_000), (45_000, 12_000)):
            with self.anew(spread):
                bot = self.hold()
                self.exchange.spread = Decimal(spread)
                self.crash(Decimal(price))
                self.run_for(3600, bot)
                self.assert_held(SIZE)

    def test_one_wild_quote_is_no_loss(self) -> None:
        bot, steady, quotes = self.hold(), self.exchange.close, iter((40_000, 50_100))
        self.exchange.close = lambda number: Decimal(next(quotes, 0)) or steady(number)
        self.run_for(1000, bot)
        self.assert_held(SIZE)

    def test_a_run_of_one_candle_tries_a_pending_close_again(self) -> None:
        self.hold()
        self.journal.put(flatten="max_loss was reached")
        self.exchange.script = ["later"]
        self.stopped(self.once)
        self.assert_held(ZERO)
