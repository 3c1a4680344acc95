"""What happens between and around decisions: attention, patience, clocks, and who is told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from itertools import chain, pairwise, repeat
from typing import Any
from unittest import mock

from krakenbot.alerts import active_alerts
from krakenbot.bot import Bot
from krakenbot.clock import StopRequestedError
from krakenbot.errors import (
    FlattenRequestedError,
    KeyRefusedError,
    LaterError,
    RefusedError,
    UnansweredError,
)
from krakenbot.handover import adopt
from krakenbot.journal import Outcome
from krakenbot.model import (
    ZERO,
    Candle,
    Execution,
    MarginSummary,
    OrderStatus,
    Purpose,
    Quote,
    Side,
    Signal,
    SystemStatus,
)
from krakenbot.retry import KEY_PAUSES_S, retry
from tests.rules.test_pairs import rules
from tests.simulation.test_bot import DOWN, PLAN, SIZE, T0, BotTest, FakeClock

LONG_S = 240 * 60
DAY_S = 86400


class LooseClock(FakeClock):
    """A clock that can be set, beside a host's clock that can be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = self.host_off = 0.0

    def now(self) -> float:
        return self.time + self.offset

    def monotonic(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + self.host_off

    def set(self, exchange_time: float) -> None:
        self.offset = exchange_time - self.time


class AttentionTest(BotTest):
    interval_s = 60

    def setUp(self) -> None:
        super().setUp()
        self.plan = PLAN._replace(interval_s=self.interval_s)
        self.exchange.interval_s = self.interval_s
        self.at(100)

    def at(self, number: int, seconds: float = 1.5) -> None:
        self.clock.time = T0 + self.interval_s * (number + 1) + seconds

    def run_for(self, seconds: float, bot: Bot | None = None) -> Bot:
        """Let a bot run for so long from now."""
        self.clock.end = self.clock.time + seconds
        bot = bot or self.bot()
        with self.assertRaises(Exception) as caught:
            bot.run()
        self.assertEqual("StopRequestedError", type(caught.exception).__name__, caught.exception)
        self.clock.end = float("inf")
        return bot

    def told(self, kind: str = "warning") -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


class TestTradeBalanceThatLags(AttentionTest):
    def test_margin_that_a_close_set_free_is_waited_for_and_it_opens_in_time(self) -> None:
        for lag_s in (5, 15, 60):
            with self.subTest(lag_s):
                self.setUp()
                money = Decimal(480)

                def summary(_: bool, money: Decimal = money, lag_s: int = lag_s) -> MarginSummary:
                    moment = self.clock.time - lag_s
                    held = [v for since, v in self.exchange.shown if since <= moment][-1]
                    return MarginSummary(money, ZERO, abs(held) * 50_000 / 2)

                self.exchange.summary = summary
                self.once(105)
                self.at(DOWN)
                began = self.clock.time
                self.until(DOWN) if lag_s < 30 else self.run_for(lag_s + 30)
                self.assertEqual(-SIZE, self.exchange.held)
                self.assertLess(self.intents()[2].created - began, lag_s + 15)

    def test_a_refusal_for_funds_right_after_a_close_is_not_held_against_the_bot(self) -> None:
        self.once(105)
        self.exchange.script = ["fill", "funds", "fill"]
        self.until(DOWN)
        self.assertEqual(-SIZE, self.exchange.held)
        self.assertEqual(Outcome.REFUSED_FOR_NOW_NO_ORDER, self.intents()[2].outcome)


class TestStart(AttentionTest):
    def test_candles_that_the_strategy_lacks_after_a_short_answer_are_asked_for(self) -> None:
        whole, short, seen = self.exchange.candles, iter([True]), list[int]()

        def candles(since: int | None) -> Sequence[Candle]:
            return whole(since)[-4:] if next(short, False) else whole(since)

        def strategy(shown: Sequence[Candle]) -> Signal:
            seen.append(len(shown))
            return PLAN.strategy(shown)

        self.exchange.candles = candles
        self.plan = self.plan._replace(strategy=strategy, candles_min=50)
        self.run_for(100)
        self.assertLess(seen[0], 50)
        self.assertGreaterEqual(seen[-1], 50)

    def test_a_refused_key_is_tried_again_after_pauses_and_in_a_lockout_once(self) -> None:
        for lockout, pauses in ((False, [*KEY_PAUSES_S]), (True, [900.0])):
            asked: list[float] = []

            def refuse(asked: list[float] = asked, lockout: bool = lockout) -> None:
                asked.append(self.clock.time)
                raise KeyRefusedError("no", lockout=lockout)

            with self.subTest(lockout=lockout), self.assertRaises(KeyRefusedError):
                retry(refuse, self.clock, 300.0, key_pauses_s=KEY_PAUSES_S)
            self.assertEqual(pauses, [b - a for a, b in pairwise(asked)])


class TestRefusalsThatPass(AttentionTest):
    interval_s = LONG_S

    def test_after_a_reversal_refused_in_doubt_nothing_goes_until_it_must_have_shown(self) -> None:
        self.plan = self.plan._replace(one_order=True)
        self.once(105)
        self.exchange.script = ["wait"]
        self.at(DOWN)
        bot = self.run_for(14)
        self.assertEqual(2, len(self.exchange.placed))
        self.run_for(100, bot)  # The close may go when the deadline is over.
        self.assertEqual((3, ZERO), (len(self.exchange.placed), self.exchange.held))
        self.run_for(60, bot)
        self.assertEqual(-SIZE, self.exchange.held)

    def test_one_rate_limit_or_a_few_refused_connections_do_not_cost_the_candle(self) -> None:
        for script in (["later"], ["wait"], ["unsent"] * 3, ["never"], ["pool"] * 3):
            with self.subTest(script):
                self.setUp()
                self.exchange.script = list(script)
                self.run_for(1000)
                self.assertEqual(SIZE, self.exchange.held)
                self.assertEqual(len(script) + 1, len(self.exchange.placed))
                self.assertEqual(1, self.journal.orders_since(0))

    def test_a_refusal_that_may_hide_an_order_is_proven_before_another_one_may_open(self) -> None:
        self.exchange.script = ["wait"]
        self.run_for(1000)
        first, second = self.intents()
        self.assertGreaterEqual(second.created, first.deadline + 120)
        # Before it is sent, since the journal is young; right after its refusal; and once more.
        self.assertEqual(3, self.exchange.looks.count(first.id))

    @contextmanager
    def taken_after_refusal(self, lag_s: float = 60.0) -> Iterator[None]:
        """Let orders be refused and executed all the same, and be found only `lag_s` later."""
        original = self.exchange.place

        def place(order: Any, deadline: int) -> None:
            self.exchange.visible_from[order.client_order_id] = self.clock.time + lag_s
            original(order, deadline)
            raise LaterError("EAPI:Rate limit exceeded")

        with mock.patch.object(self.exchange, "place", place):
            yield

    def test_an_order_that_shows_up_after_its_refusal_stops_the_bot_and_is_its_own(self) -> None:
        for leverage in (2, 0):
            for person in (self.adopt, lambda: self.journal.resume()):
                with self.subTest(leverage=leverage, person=person):
                    self.setUp()
                    self.plan = self.plan._replace(leverage=leverage)
                    with self.taken_after_refusal():
                        self.assertIn("was refused, and yet", self.stopped(self.bot().run))
                    person()
                    self.run_for(1000)
                    self.assertEqual(1, len(self.exchange.placed))
                    self.assertEqual(SIZE, self.journal.account().held)

    def test_flatten_is_not_done_while_a_refused_order_may_have_opened_something(self) -> None:
        for leverage in (2, 0):
            with self.subTest(leverage):
                self.setUp()
                self.exchange.position_lag_s = 60.0
                self.plan = self.plan._replace(leverage=leverage)
                with self.taken_after_refusal():
                    bot = self.run_for(10)
                message = self.stopped(lambda bot=bot: self.flatten(bot))
                self.assertIn("was refused, and yet", message)
                self.flatten(bot)
                self.assertEqual((ZERO, ZERO), (self.exchange.held, self.exchange.base))

    def test_a_loss_is_not_flat_while_a_refused_order_may_have_opened_something(self) -> None:
        self.exchange.position_lag_s = 300.0
        with self.taken_after_refusal():
            bot = self.run_for(10)
        self.journal.put(flatten="the loss")
        self.assertIn("was refused, and yet", self.stopped(bot.run))

    def test_coins_sold_by_an_order_found_at_the_adoption_are_not_taken_again(self) -> None:
        self.plan = self.plan._replace(leverage=0)
        self.exchange.foreign_base = Decimal(1)
        self.once(105)
        sale = self.intents()[0]._replace(
            id="sale", purpose=Purpose.CLOSE, side=Side.SELL, accepted=False, outcome=None
        )
        self.journal.write(sale._replace(executed=ZERO, cost=ZERO, fee=ZERO, settled=None))
        sold = Execution("sale", "O9", OrderStatus.CLOSED, SIZE, Decimal(500), ZERO)
        self.exchange.executions["sale"], self.exchange.base = sold, ZERO
        bot, shown = self.bot(), self.journal.account().held
        bot.retry(bot.market.learn)
        adopt(bot, shown)
        self.assertEqual(ZERO, self.journal.account().held)

    def test_an_order_that_was_adopted_after_its_refusal_is_not_booked_once_more(self) -> None:
        with self.taken_after_refusal(1000):
            self.assertIn("the journal records 0", self.stopped(self.bot().run))
        self.adopt()
        self.at(DOWN)
        self.run_for(1000)
        self.assertEqual(-SIZE, self.journal.account().held)
        self.assertEqual(3, len(self.exchange.placed))

    def test_an_order_not_looked_up_after_its_refusal_is_looked_up_after_a_resume(self) -> None:
        self.exchange.script = ["wait"]
        find, answered = self.exchange.find, iter((True, True))

        def refused(name: str, since: int) -> Any:
            if next(answered, False):
                return find(name, since)
            raise RefusedError("EQuery:Unknown")

        self.exchange.find = refused
        self.assertIn("the exchange shows nothing", self.stopped(self.bot().run))
        self.journal.resume()
        self.assertIn("the exchange shows nothing", self.stopped(self.bot().run))
        self.assertEqual(1, len(self.exchange.placed))

    def test_an_empty_lending_pool_halts_nothing_and_is_told_after_an_hour(self) -> None:
        self.exchange.script = ["pool"] * 20
        self.run_for(4 * 3600 - 1600)
        self.assertFalse(self.journal.get("halted"))
        self.assertLess(len(self.exchange.placed), 20)
        self.assertEqual(1, len(self.told()))
        self.assertIn("Insufficient margin", self.told()[0])
        self.assertEqual(0, self.journal.orders_since(0))
        self.assertTrue(active_alerts(self.journal))

    def test_what_was_told_is_told_again_when_it_is_over(self) -> None:
        self.exchange.script = ["pool"] * 8
        self.run_for(3 * 3600)
        self.assertEqual(SIZE, self.exchange.held)
        self.assertEqual(1, len(self.told("recovery")))
        self.assertEqual([], active_alerts(self.journal))


class TestOneOrder(AttentionTest):
    def test_while_a_reversal_cannot_be_sent_its_close_is_not_sent_in_the_same_second(self) -> None:
        bot = self.once(105, self.bot(one_order=True))
        self.exchange.script = ["unsent"] * 2
        self.at(DOWN)
        self.run_for(50, bot)
        moments = [intent.created for intent in self.intents()[1:]]
        self.assertTrue(all(b - a >= 2 for a, b in pairwise(moments)), moments)
        self.assertEqual(-SIZE, self.exchange.held)


class TestAskingByOrdering(AttentionTest):
    def test_a_market_that_refuses_for_hours_is_not_hammered_and_counts_for_nothing(self) -> None:
        self.exchange.script = ["later"] * 300
        self.run_for(2 * 3600)
        self.assertLess(len(self.exchange.placed), 30)
        self.assertEqual(0, self.journal.orders_since(0))
        self.assertFalse(self.journal.get("halted"))

    def test_a_market_that_says_so_is_not_asked_by_ordering_at_all(self) -> None:
        self.exchange.status = "cancel_only"
        self.run_for(3600)
        self.assertEqual([], self.exchange.placed)
        self.assertIn("cancel_only", self.told()[0])


class TestLookups(AttentionTest):
    def test_a_lookup_that_is_refused_for_an_hour_halts_on_disk(self) -> None:
        bot = self.once(105)
        self.exchange.script = ["lost"]
        refusal = RefusedError("QueryOrders: EOrder:Invalid order")
        self.exchange.find = mock.Mock(side_effect=refusal)
        self.at(DOWN)
        began = self.clock.time
        self.stopped(bot.run)
        self.assertTrue(3600 <= self.clock.time - began < 4200, self.clock.time - began)
        self.assertIn("looked up", self.journal.get("halted"))
        self.assertTrue(self.told(), "an hour of waiting told nobody")

    def test_an_absent_order_is_proven_by_the_trades_of_a_closed_window(self) -> None:
        self.exchange.traded_orders = mock.Mock(return_value=[])
        self.exchange.script = ["never"]
        self.run_for(200)
        absent = self.intents()[0]
        window = (absent.created - 5, absent.deadline + 120)
        self.exchange.traded_orders.assert_called_once_with(*window)

    def test_an_unknown_trade_or_a_strange_position_alone_is_no_proof_of_absence(self) -> None:
        for trades, held in ((["OSTRANGE"], ZERO), ([], SIZE)):
            with self.subTest(trades=trades, held=held):
                self.setUp()
                self.exchange.script = ["never"]
                self.exchange.traded_orders = lambda *span, t=trades: t
                original = self.exchange.place

                def place(order: Any, deadline: int, held: Decimal = held, place: Any = original):
                    self.exchange.by_hand(held)
                    place(order, deadline)

                self.exchange.place = place
                self.assertIn("the exchange holds", self.stopped(self.bot().run))
                self.assertIsNone(self.intents()[0].outcome)

    def test_a_cancelled_order_s_looks_must_agree_with_each_other_and_the_position(self) -> None:
        for shown in (["0.003", "0.005"], ["0"] * 4):
            with self.subTest(shown):
                self.setUp()
                self.exchange.script = ["half"]
                looks = map(Decimal, shown)
                self.shows(lambda found, looks=looks: found._replace(volume=next(looks, SIZE / 2)))
                self.run_for(50)
                self.assertEqual(SIZE / 2, self.intents()[0].executed)

    def test_an_order_accepted_before_a_death_must_be_there_after_it(self) -> None:
        bot = self.bot()
        self.exchange.script = ["lost"]
        self.exchange.find = lambda *asked: None
        self.clock.end = self.clock.time + 20
        self.assertRaises(StopRequestedError, bot.run)
        self.clock.end = float("inf")
        self.journal.accept(self.intents()[0].id)
        self.assertIn("was accepted", self.stopped(self.bot().run))

    def test_a_close_uses_a_leverage_that_is_offered_when_its_own_is_no_more(self) -> None:
        bot = self.once(105)
        self.exchange.pair_rules = rules(leverage_buy=[3, 5], leverage_sell=[3, 5])
        self.at(DOWN)
        self.run_for(50, bot)
        self.assertEqual(3, self.exchange.placed[1].leverage)
        self.assertEqual(ZERO, self.exchange.held)


class TestLongCandles(AttentionTest):
    interval_s = LONG_S

    def test_foreign_hands_and_liquidation_are_noticed_within_minutes(self) -> None:
        for held in (ZERO, SIZE * 2):
            with self.subTest(held):
                self.setUp()
                bot = self.run_for(1000)
                self.exchange.by_hand(held)
                began = self.clock.time
                self.stopped(bot.run)
                self.assertLess(self.clock.time - began, 300 + 150)

    def test_max_loss_is_acted_on_within_minutes(self) -> None:
        limits = PLAN.limits._replace(max_loss=Decimal(10))
        bot = self.run_for(1000, self.bot(limits=limits))
        self.exchange.close = lambda number: Decimal(48_000)
        began = self.clock.time
        self.assertIn("max_loss", self.stopped(bot.run))
        self.assertLess(self.clock.time - began, 360)
        self.assertEqual(ZERO, self.exchange.held)

    def test_one_wild_quote_sells_nothing(self) -> None:
        limits = PLAN.limits._replace(max_loss=Decimal(10))
        bot = self.run_for(1000, self.bot(limits=limits))
        steady, quotes = self.exchange.close, iter((40_000, 50_100))
        self.exchange.close = lambda n: Decimal(next(quotes, 0)) or steady(n)
        self.run_for(1000, bot)
        self.assertEqual(SIZE, self.exchange.held)

    def test_a_loss_seen_only_through_a_wide_spread_sells_nothing(self) -> None:
        limits = PLAN.limits._replace(max_loss=Decimal(10))
        bot = self.run_for(1000, self.bot(limits=limits))
        self.exchange.close = lambda number: Decimal(45_000)
        self.exchange.spread = Decimal(12_000)
        self.run_for(1000, bot)
        self.assertEqual(SIZE, self.exchange.held)

    def test_once_latched_a_loss_is_taken_through_a_wide_spread_too(self) -> None:
        bot = self.run_for(1000)
        self.journal.put(flatten="the loss is too big")
        self.exchange.spread = Decimal(5000)
        self.stopped(bot.run)
        self.assertEqual(ZERO, self.exchange.held)

    def test_a_low_margin_level_is_told_within_minutes_and_once(self) -> None:
        bot = self.run_for(1000)
        self.exchange.equity, self.exchange.used_margin = Decimal(300), Decimal(250)
        self.run_for(400, bot)
        self.assertIn("margin level is 120.0 %", self.told()[0])
        self.run_for(3000, bot)
        self.assertEqual(1, len(self.told()))

    def test_the_clock_is_looked_at_every_five_minutes(self) -> None:
        asked, original = list[float](), self.exchange.server_time
        self.exchange.server_time = lambda: asked.append(self.clock.time) or original()
        self.run_for(3600)
        gaps = [later - sooner for sooner, later in pairwise(asked)]
        self.assertLess(max(gaps), 310)

    def test_an_attentive_bot_still_decides_once_a_candle(self) -> None:
        self.run_for(5 * LONG_S)
        self.assertEqual(6, len(list(self.journal.decisions())))
        self.assertEqual(1, len(self.exchange.placed))


class TestRaisedMinimum(AttentionTest):
    def raise_minimum(self) -> Bot:
        """Hold a long in a market that falls, whose smallest order is now five times that."""
        bot = self.once(105)
        self.exchange.pair_rules = rules(ordermin="0.05")
        original = self.exchange.place

        def place(order: Any, deadline: int) -> None:
            if order.volume < self.exchange.pair_rules.ordermin:
                self.exchange.placed.append(order)
                raise RefusedError("EGeneral:Invalid arguments:volume minimum not met")
            original(order, deadline)

        self.exchange.place = place
        self.at(DOWN)
        return bot

    def test_its_close_is_tried_hourly_uncounted_and_told_at_once(self) -> None:
        bot = self.raise_minimum()
        self.run_for(3 * 3600, bot)
        self.assertTrue(2 <= len(self.exchange.placed) - 1 <= 4, len(self.exchange.placed))
        self.assertEqual(1, self.journal.orders_since(0))
        self.assertFalse(self.journal.get("halted"))
        self.assertIn("smallest order is now 0.05, above size", " ".join(self.told()))

    def test_on_long_candles_it_is_told_between_two_of_them(self) -> None:
        self.interval_s = DAY_S
        self.setUp()
        bot = self.run_for(600)
        self.exchange.pair_rules = rules(ordermin="0.05")
        self.run_for(2 * 3600, bot)
        self.assertIn("smallest order is now 0.05, above size", " ".join(self.told()))

    def test_when_the_minimum_falls_again_the_position_is_closed_within_minutes(self) -> None:
        bot = self.raise_minimum()
        self.run_for(1200, bot)
        self.exchange.pair_rules = rules()
        self.run_for(400, bot)
        self.assertEqual(-SIZE, self.exchange.held)
        self.assertTrue(self.told("recovery"))

    def test_a_flat_bot_tells_of_it_and_opens_at_the_next_candle_after_it_falls(self) -> None:
        self.exchange.pair_rules = rules(ordermin="0.05")
        bot = self.run_for(300)
        self.assertEqual([], self.exchange.placed)
        self.assertIn("smallest order is now 0.05, above size", " ".join(self.told()))
        self.exchange.pair_rules = rules()
        self.run_for(130, bot)
        self.assertEqual(SIZE, self.exchange.held)
        self.assertTrue(self.told("recovery"))

    def test_a_rest_that_could_not_be_closed_does_not_hold_up_the_next_whole_close(self) -> None:
        bot = self.once(105)
        now, rest = int(self.clock.time), Decimal("0.00001")
        refused = self.intents()[0]._replace(
            id="rest", purpose=Purpose.CLOSE, reduce_only=True, volume=rest, created=now
        )
        self.journal.write(refused._replace(outcome=None, settled=None, executed=ZERO))
        self.journal.conclude(refused, Outcome.REFUSED_FOR_NOW, now, note="too small")
        self.at(DOWN)
        self.run_for(100, bot)
        self.assertEqual(-SIZE, self.exchange.held)

    def test_what_lasts_is_told_however_often_the_bot_is_started_again(self) -> None:
        self.once(105)
        self.exchange.status = "cancel_only"
        self.interval_s = 60
        for minutes in range(DOWN, DOWN + 90, 15):
            self.once(minutes)
        self.assertIn("off target", " ".join(self.told()))

    def test_what_nobody_saw_for_a_week_has_not_lasted(self) -> None:
        self.once(105)
        self.exchange.status = "cancel_only"
        self.once(DOWN)
        self.once(DOWN + 7 * 1440)
        self.assertNotIn("off target", " ".join(self.told()))

    def test_a_size_raised_to_it_does_not_let_the_bot_keep_coins_for_ever(self) -> None:
        self.plan = self.plan._replace(leverage=0)
        self.raise_minimum()
        self.exchange.pair_rules = rules(ordermin="0.02")
        self.run_for(2 * 3600, self.bot(size=2 * SIZE))
        self.assertIn(len(self.exchange.placed), (2, 3, 4))
        self.assertIn("minimum not met", " ".join(self.told()))

    def test_max_loss_meeting_it_is_tried_hourly_and_told_until_it_is_closed(self) -> None:
        self.raise_minimum()
        self.exchange.close = lambda number: Decimal(40_000)
        bot = self.bot(limits=PLAN.limits._replace(max_loss=Decimal(10)))
        before = len(self.exchange.placed)
        self.run_for(2 * 3600, bot)
        self.assertIn(len(self.exchange.placed) - before, (1, 2, 3))
        self.assertIn("minimum not met", " ".join(self.told()))
        self.exchange.pair_rules = rules()
        self.stopped(bot.run)
        self.assertEqual(ZERO, self.exchange.held)


class TestMissingPermission(AttentionTest):
    def test_a_key_that_reads_the_balance_but_not_the_position_ends_it_in_minutes(self) -> None:
        bot = self.once(105)
        refusal = KeyRefusedError("OpenPositions: EGeneral:Permission denied")
        began, self.clock.end = self.clock.time, self.clock.time + DAY_S
        with mock.patch.object(self.exchange, "position", side_effect=refusal):
            self.stopped(bot.run, 77)
        self.assertTrue(540 <= self.clock.time - began <= 900, self.clock.time - began)

    def test_refusals_that_lie_hours_apart_do_not_end_it(self) -> None:
        bot, position, began = self.once(105), self.exchange.position, self.clock.time
        hours = iter(range(1, 6))
        due = [began + 3600 * next(hours)]

        def outage() -> Any:
            if self.clock.time > began + 5 * 3600:
                return position()
            if self.clock.time > due[0]:
                due[0] = began + 3600 * next(hours)
                raise KeyRefusedError("EAPI:Invalid key")
            raise UnansweredError("timed out")

        self.exchange.position = outage
        self.run_for(6 * 3600, bot)

    def test_the_wait_for_the_end_of_a_lockout_takes_no_patience(self) -> None:
        bot, lockout = self.once(105), KeyRefusedError("EGeneral:Temporary lockout", lockout=True)
        silence, answers = UnansweredError("HTTP 502"), self.exchange.balances
        action = mock.Mock(side_effect=[silence, lockout, "done"])
        self.clock.end = self.clock.time + DAY_S
        with mock.patch.object(self.exchange, "balances", side_effect=[silence, answers()]):
            self.assertEqual("done", bot.retry(action, 300.0))

    def test_a_limit_of_requests_is_waited_out_however_often_it_comes(self) -> None:
        limit = KeyRefusedError("EGeneral:Too many requests", lockout=True, passing=True)
        asked: list[float] = []

        def ask() -> str:
            asked.append(self.clock.time)
            if len(asked) <= 3:
                raise limit
            return "done"

        for pauses in ((), KEY_PAUSES_S):
            asked.clear()
            ever = float("inf")
            self.assertEqual("done", retry(ask, self.clock, ever, key_pauses_s=pauses))
            self.assertEqual([900.0] * 3, [b - a for a, b in pairwise(asked)])
        asked.clear()
        with self.assertRaises(LaterError):
            retry(ask, self.clock, 300.0, key_pauses_s=())
        self.assertEqual(2, len(asked))

    def test_a_lockout_after_a_limit_of_requests_is_the_first_in_a_row(self) -> None:
        limit = KeyRefusedError("EGeneral:Too many requests", lockout=True, passing=True)
        lockout = KeyRefusedError("EGeneral:Temporary lockout", lockout=True)
        action = mock.Mock(side_effect=[limit, lockout, "done"])
        self.assertEqual("done", retry(action, self.clock, 300.0, key_pauses_s=KEY_PAUSES_S))

    def test_a_limit_of_requests_is_not_waited_out_where_nobody_is_told(self) -> None:
        limit = KeyRefusedError("EGeneral:Too many requests", lockout=True, passing=True)
        with self.assertRaises(KeyRefusedError):
            retry(mock.Mock(side_effect=limit), self.clock, 60.0)

    def test_orders_refused_by_a_limit_of_requests_do_not_end_it(self) -> None:
        bot = self.once(105)
        limit = KeyRefusedError("EGeneral:Too many requests", lockout=True, passing=True)
        self.at(DOWN)
        with mock.patch.object(self.exchange, "place", side_effect=limit):
            self.run_for(2 * 3600, bot)
        self.assertEqual(SIZE, self.exchange.held)

    def test_repeated_lockouts_do_not_end_it_while_the_key_is_good(self) -> None:
        bot, lockout = self.once(105), KeyRefusedError("EGeneral:Temporary lockout", lockout=True)
        answers = chain([lockout] * 5, iter(self.exchange.position, None))
        with mock.patch.object(self.exchange, "position", side_effect=answers) as position:
            self.run_for(7000, bot)
        self.assertGreater(position.call_count, 5)


class TestLockout(AttentionTest):
    def note_private(self) -> list[float]:
        """Return what grows by the moment of each private request for the position."""
        moments, position = list[float](), self.exchange.position
        self.exchange.position = lambda: moments.append(self.clock.time) or position()
        return moments

    def test_one_that_answers_the_ledger_is_waited_out_and_the_bot_goes_on(self) -> None:
        bot, locked, private = self.once(105), list[float](), self.note_private()

        def charges(*_: object) -> list[Any]:
            locked.append(self.clock.time)
            raise KeyRefusedError("EGeneral:Temporary lockout", lockout=len(locked) == 1)

        self.exchange.charges = charges
        self.run_for(2000, bot)
        after = [time - locked[0] for time in private if time > locked[0]]
        self.assertGreaterEqual(min(after), 900)

    def test_a_flatten_that_is_asked_for_meanwhile_waits_for_its_end(self) -> None:
        bot, began = self.once(105), self.clock.time
        lockout = mock.Mock(side_effect=KeyRefusedError("-", lockout=True))
        with mock.patch.object(self.clock, "wait", side_effect=FlattenRequestedError):
            self.assertRaises(FlattenRequestedError, bot.retry, lockout)
        private = self.note_private()
        self.flatten(bot)
        self.assertGreaterEqual(private[0] - began, 900)


class TestOneMethodThatFails(AttentionTest):
    interval_s = LONG_S

    def setUp(self) -> None:
        super().setUp()
        self.plan = self.plan._replace(limits=PLAN.limits._replace(max_loss=Decimal(50)))
        self.once(105)
        self.quotes_left = 10**6

    def crash(self) -> Quote:
        self.quotes_left -= 1
        if self.quotes_left < 0:
            raise UnansweredError("Ticker: EService:Unavailable")
        return Quote(Decimal(40_000), Decimal(40_001))

    def test_it_keeps_no_position_from_being_closed_for_max_loss(self) -> None:
        for name in ("summary", "market_status", "quote"):
            with self.subTest(name):
                self.setUp()
                self.exchange.quote = self.crash
                self.quotes_left = 2 if name == "quote" else 10**6
                if name != "quote":
                    error = UnansweredError(f"{name}: EService:Unavailable")
                    setattr(self.exchange, name, mock.Mock(side_effect=error))
                began = self.clock.time
                self.clock.end = began + 3600
                self.stopped(self.bot().run)
                self.assertEqual(ZERO, self.exchange.held)
                self.assertLess(self.clock.time - began, 1000)

    def test_the_time_is_asked_for_although_another_part_of_the_market_cannot_be_read(self) -> None:
        bot, time, down = self.run_for(10), self.exchange.server_time, UnansweredError("timed out")
        for name in ("rules", "market_status"):
            bot.market.invalidate()
            self.clock.time += 300
            with (
                self.subTest(name),
                mock.patch.object(self.exchange, name, side_effect=down),
                mock.patch.object(self.exchange, "server_time", wraps=time) as asked,
            ):
                self.assertRaises(UnansweredError, bot.market.refresh)
                asked.assert_called_once()

    def test_all_else_is_read_although_the_time_is_not_answered(self) -> None:
        bot, error = self.run_for(10), UnansweredError("Time: timed out")
        self.exchange.server_time = mock.Mock(side_effect=error)
        self.exchange.status = "maintenance"
        self.clock.time += 300
        self.assertRaises(UnansweredError, bot.market.refresh)
        self.assertEqual("maintenance", bot.market.status)

    def test_what_comes_after_a_part_that_cannot_be_read_is_read_all_the_same(self) -> None:
        bot, error = self.run_for(10), UnansweredError("SystemStatus: timed out")
        self.exchange.market_status = mock.Mock(side_effect=error)
        self.exchange.pair_rules = self.exchange.pair_rules._replace(status="cancel_only")
        self.clock.time += 3600
        self.exchange.fee_rate = mock.Mock()
        self.assertRaises(UnansweredError, bot.market.refresh)
        self.assertEqual("cancel_only", bot.market.rules.status)
        self.exchange.fee_rate.assert_not_called()  # It would be assumed for an hour.

    def test_where_nothing_is_answered_two_requests_are_enough_and_no_fee_is_assumed(self) -> None:
        bot, asked = self.run_for(10), mock.Mock(side_effect=UnansweredError("timed out"))
        for name in ("server_time", "market_status", "rules", "fee_rate", "margin_rates"):
            setattr(self.exchange, name, asked)
        self.clock.time += 3600
        self.assertRaises(UnansweredError, bot.market.refresh)
        self.assertEqual((2, ""), (asked.call_count, bot.market.assumed))

    def test_a_reversal_in_one_order_that_cannot_be_checked_is_closed_at_least(self) -> None:
        error = UnansweredError("TradeBalance: EService:Unavailable")
        self.plan = self.plan._replace(one_order=True)
        self.at(DOWN)
        self.exchange.summary = mock.Mock(side_effect=error)
        self.run_for(600)
        self.assertEqual(ZERO, self.exchange.held)

    def test_a_flatten_goes_on_after_a_restart_although_no_quote_is_answered(self) -> None:
        self.journal.put(flatten="max_loss reached")
        error = UnansweredError("Ticker: EService:Unavailable")
        self.exchange.quote = mock.Mock(side_effect=error)
        self.clock.end = self.clock.time + 3600
        self.stopped(self.bot().run)
        self.assertEqual(ZERO, self.exchange.held)

    def test_a_margin_level_that_cannot_be_read_for_long_is_told(self) -> None:
        bot, error = self.run_for(10), UnansweredError("TradeBalance: EService:Unavailable")
        self.exchange.summary = mock.Mock(side_effect=error)
        self.run_for(1500, bot)
        self.assertIn("margin level cannot be read", " ".join(self.told()))


class TestMarketThatCloses(AttentionTest):
    interval_s = DAY_S

    def test_what_happens_to_the_market_of_a_position_is_told_before_the_candle(self) -> None:
        for trouble in ("not listed", "cancel_only"):
            with self.subTest(trouble):
                self.setUp()
                bot = self.run_for(600)
                if trouble == "cancel_only":
                    self.exchange.status = trouble
                else:
                    refusal = mock.Mock(side_effect=RefusedError("EQuery:Unknown asset pair"))
                    for name in ("rules", "candles", "quote"):
                        setattr(self.exchange, name, refusal)
                self.run_for(2 * 3600, bot)
                self.assertIn(f"in state {trouble}", " ".join(self.told()))

    def test_a_maintenance_of_two_minutes_is_no_alarm(self) -> None:
        bot, began = self.run_for(600), self.clock.time

        def status() -> SystemStatus:
            is_closed = 3600 <= self.clock.time - began < 3720
            return SystemStatus("maintenance" if is_closed else "online")

        self.exchange.market_status = status
        self.run_for(2 * 3600, bot)
        self.assertEqual([], self.told())

    def test_while_nothing_is_held_a_closed_market_is_no_alarm(self) -> None:
        self.exchange.status = "maintenance"
        self.run_for(2 * 3600)
        self.assertNotIn("something is held", " ".join(self.told()))


class TestWaiting(AttentionTest):
    def test_candles_that_are_refused_are_told_and_the_position_still_looked_after(self) -> None:
        bot = self.once(105)

        refusal = RefusedError("OHLC: EQuery:Unknown asset pair")
        self.exchange.candles = mock.Mock(side_effect=refusal)
        self.at(106)
        self.run_for(1000, bot)
        self.assertIn("Unknown asset pair", self.told()[0])
        self.exchange.by_hand(ZERO)
        began = self.clock.time
        self.stopped(bot.run)
        self.assertLess(self.clock.time - began, 600)

    def test_while_candles_are_throttled_nothing_else_is_asked_for_in_addition(self) -> None:
        bot = self.run_for(90)
        throttled = UnansweredError("OHLC: EService:Throttled", wait_s=15.0)
        self.exchange.candles = mock.Mock(side_effect=throttled)
        self.exchange.rules = mock.Mock(wraps=self.exchange.rules)
        self.clock.end = self.clock.time + 280
        with suppress(StopRequestedError):
            bot.retry(bot.tick)
        self.assertGreater(self.exchange.candles.call_count, 3)
        self.exchange.rules.assert_not_called()

    def test_a_market_that_makes_no_candles_is_told(self) -> None:
        bot = self.once(105)
        newest = self.exchange.candles(None)
        self.exchange.candles = lambda since: newest
        self.run_for(1000, bot)
        self.assertIn("no finished candles", self.told()[0])

    def test_a_time_that_is_not_answered_any_more_is_told(self) -> None:
        bot = self.once(105)
        answers = chain([int(self.clock.time)], repeat(UnansweredError("Time: HTTP 503")))
        self.exchange.server_time = mock.Mock(side_effect=answers)
        self.run_for(1500, bot)
        self.assertIn("cannot be read: Time", " ".join(self.told()))

    def test_flatten_needs_no_rules_from_the_exchange_when_they_are_remembered(self) -> None:
        self.once(105)
        refusal = RefusedError("AssetPairs: EQuery:Unknown asset pair")
        with (
            mock.patch.object(self.exchange, "rules", side_effect=refusal),
            mock.patch.object(self.exchange, "assume_rules") as assume,
        ):
            self.flatten()
        self.assertEqual(ZERO, self.exchange.held)
        self.assertEqual("not listed", assume.call_args_list[0].args[0].status)

    def test_flatten_of_a_bot_that_holds_nothing_needs_no_newer_rules(self) -> None:
        bot = self.bot()
        bot.retry(bot.market.learn)
        with mock.patch.object(self.exchange, "rules", side_effect=UnansweredError("timed out")):
            self.flatten(bot)
        self.assertEqual("asked to", self.journal.get("halted"))


class TestClocks(AttentionTest):
    def setUp(self) -> None:
        super().setUp()
        self.loose = LooseClock()
        self.loose.time = self.clock.time
        self.clock = self.exchange.clock = self.loose

    def test_one_old_answer_about_the_time_at_the_start_is_not_believed(self) -> None:
        answers = iter((7200,))
        self.exchange.server_time = lambda: int(self.clock.time) - next(answers, 0)
        self.run_for(120)
        newest = max(decided.candle for decided in self.journal.decisions())
        self.assertGreater(newest, self.clock.time - 180)

    def test_a_later_answer_hours_off_does_not_move_the_clock(self) -> None:
        bot = self.run_for(100)
        answers = iter((7200,))
        self.exchange.server_time = lambda: int(self.clock.time) + next(answers, 0)
        self.run_for(900, bot)
        self.assertLess(abs(self.clock.now() - self.clock.time), 2)
        newest = max(decided.candle for decided in self.journal.decisions())
        self.assertGreater(newest, self.clock.time - 180)

    def test_an_answer_about_the_time_that_took_long_moves_no_clock_that_it_allows(self) -> None:
        bot = self.run_for(100)

        def server_time() -> int:
            self.clock.time += 28  # The first addresses were dead.
            return int(self.clock.time)

        self.exchange.server_time = server_time
        bot.market.invalidate()
        bot.market.refresh()
        self.assertLess(abs(self.clock.now() - self.clock.time), 2)

    def test_a_clock_found_wrong_is_asked_about_until_answers_agree(self) -> None:
        bot = self.run_for(100)
        self.loose.offset = 15.0  # What answers that agreed have said.
        answers = (int(self.clock.time), UnansweredError("timed out"))
        bot.market.invalidate()
        with mock.patch.object(self.exchange, "server_time", side_effect=answers):
            self.assertRaises(UnansweredError, bot.market.refresh)
        bot.market.refresh()
        self.assertLess(abs(self.clock.now() - self.clock.time), 2)

    def test_candles_of_the_future_are_not_believed_and_asked_for_again(self) -> None:
        original, answers = self.exchange.candles, iter((600, 15))

        def candles(since: int | None) -> Sequence[Candle]:
            ahead = next(answers, 0)
            return [c._replace(time=c.time + 60 * ahead) for c in original(since)]

        self.exchange.candles = candles
        self.run_for(300)
        newest = max(decided.candle for decided in self.journal.decisions())
        self.assertTrue(self.clock.time - 180 < newest < self.clock.time)
        self.assertEqual(SIZE, self.exchange.held)

    def test_a_host_s_clock_that_is_off_blocks_opening_never_closing_and_is_told(self) -> None:
        self.once(105)
        self.at(DOWN)
        self.loose.host_off = -40.0
        self.run_for(100)
        self.assertEqual(ZERO, self.exchange.held)
        self.assertEqual([Purpose.OPEN, Purpose.CLOSE], [i.purpose for i in self.intents()])
        self.assertIn("40 s behind", self.told()[0])
        self.loose.host_off = 0.0
        self.run_for(400)
        self.assertEqual(-SIZE, self.exchange.held)
        self.assertTrue(self.told("recovery"))

    def test_an_exchange_whose_answers_about_the_time_contradict_is_waited_for(self) -> None:
        answers = iter((9000, -9000) * 100)
        self.exchange.server_time = lambda: int(self.clock.time) + next(answers)
        with self.assertRaises(LaterError):
            self.bot().run(patience_s=60)
        self.assertEqual([], self.exchange.placed)


class TestWords(AttentionTest):
    def test_the_two_orders_of_a_reversal_say_close_and_open(self) -> None:
        self.once(105)
        self.events.clear()
        self.once(DOWN)
        orders, fills = self.told("order"), self.told("fill")
        self.assertIn("to close", orders[0])
        self.assertIn("to open", orders[1])
        self.assertEqual(["close", "open"], [text.partition(":")[0] for text in fills])

    def test_a_decision_that_ended_without_its_order_says_why(self) -> None:
        self.exchange.script = ["refuse"]
        self.once()
        (decided,) = self.journal.decisions()
        self.assertIn("0.01 off target", decided.reason)
        self.assertIn("already ordered once for this candle", decided.reason)
