"""`max_loss`: noticed between long candles, and nothing holds up the closing then."""

from decimal import Decimal
from unittest import mock

from krakenbot.bot import Bot
from krakenbot.model import ZERO
from tests.simulation import test_attention, test_bot
from tests.simulation.test_attention import DAY_S, AttentionTest
from tests.simulation.test_bot import PLAN, SIZE

LIMITS = PLAN.limits._replace(max_loss=Decimal(50))
CRASH = Decimal(30_000)
T0 = test_bot.T0 // DAY_S * DAY_S  # So that days begin where those of `flatten` do.
LATE_S = 22 * 3600  # In the last tenth of a daily candle.


class TestMaxLoss(AttentionTest):
    interval_s = DAY_S

    def setUp(self) -> None:
        for module in (test_attention, test_bot):
            mock.patch.object(module, "T0", T0).start()
        super().setUp()
        self.addCleanup(mock.patch.stopall)
        self.plan = self.plan._replace(limits=LIMITS)

    def hold(self, leverage: int = 2) -> Bot:
        self.plan = self.plan._replace(leverage=leverage)
        bot = self.run_for(600)
        self.assertEqual(SIZE, self.exchange.held + self.exchange.base)
        return bot

    def crash(self, price: Decimal = CRASH) -> None:
        self.exchange.close = lambda number: price

    def assert_closed_within(self, seconds: float, bot: Bot | None = None) -> None:
        began = self.clock.time
        self.clock.end = began + DAY_S
        self.assertIn("max_loss", self.stopped((bot or self.bot()).run))
        self.assertLess(self.clock.time - began, seconds)
        self.assertEqual(ZERO, self.exchange.held + self.exchange.base)

    def halt_and_resume(self) -> None:
        self.exchange.by_hand(2 * SIZE)
        self.stopped(self.bot().run)
        self.exchange.by_hand(SIZE)
        self.journal.resume()

    def test_after_a_resume_it_counts_at_once_not_from_the_next_candle_on(self) -> None:
        self.hold()
        self.halt_and_resume()
        self.run_for(3600)
        self.crash()
        self.assert_closed_within(600)

    def test_after_a_resume_it_counts_from_the_price_then(self) -> None:
        self.hold()
        self.halt_and_resume()
        self.crash(Decimal(44_000))
        self.run_for(3600)
        self.assertEqual(SIZE, self.exchange.held)

    def test_the_loss_is_told_with_the_decimals_of_the_quote_currency(self) -> None:
        self.exchange.pair_rules = self.exchange.pair_rules._replace(quote="XXBT")
        self.hold()
        self.crash()
        reason = self.stopped(self.bot().run)
        self.assertRegex(reason, r"the loss since the last resume is \d+\.\d{8}, max_loss is 50$")

    def test_a_close_that_fails_is_tried_again_however_late_in_the_candle(self) -> None:
        for leverage in (2, 0):
            for word in ("later", "wait", "unsent", "zero", "never"):
                with self.subTest(leverage=leverage, word=word):
                    self.setUp()
                    self.hold(leverage)
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
            self.setUp()
            bot = self.hold()
            self.crash()
            self.exchange.spread = Decimal(400)
            self.assert_closed_within(600, bot if is_same else None)

    def test_nor_one_that_the_newest_candle_shows(self) -> None:
        bot = self.hold()
        self.exchange.spread = Decimal(21_000)  # The better price shows none.
        self.crash(Decimal(40_000))
        bot._newest_close = Decimal(40_000)
        self.assert_closed_within(600, bot)

    def test_after_a_resume_no_absurd_quote_is_counted_from(self) -> None:
        for spread in (30_000, 600):
            self.setUp()
            self.hold()
            self.journal.resume()
            self.exchange.spread = Decimal(spread)
            bot = self.run_for(60)
            self.exchange.spread = Decimal(1)
            self.run_for(600, bot)
            self.assertEqual(SIZE, self.exchange.held)
            self.crash()
            self.assert_closed_within(600, bot)

    def test_an_absurd_bid_is_no_loss(self) -> None:
        self.hold()
        self.exchange.spread = Decimal(90_000)
        self.run_for(3600)
        self.assertEqual(SIZE, self.exchange.held)

    def test_a_run_of_one_candle_tries_a_pending_close_again(self) -> None:
        self.hold()
        self.journal.put(flatten="max_loss was reached")
        self.exchange.script = ["later"]
        self.stopped(lambda: self.bot().run(once=True))
        self.assertEqual(ZERO, self.exchange.held)
