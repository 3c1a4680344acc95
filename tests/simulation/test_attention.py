"""What happens between and around decisions: attention, patience, clocks, and who is told."""

import unittest
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any
from unittest import mock

from krakenbot.alerts import active_alerts
from krakenbot.bot import Bot
from krakenbot.clock import StopRequestedError
from krakenbot.commands.run import FlattenRequestedError
from krakenbot.commands.views import decisions
from krakenbot.errors import (
    KeyRefusedError,
    LaterError,
    RefusedError,
    UnansweredError,
)
from krakenbot.journal import Outcome
from krakenbot.market import MarketState
from krakenbot.model import (
    ZERO,
    Candle,
    Execution,
    MarginSummary,
    OrderStatus,
    Purpose,
    Quote,
    Side,
    SystemStatus,
)
from krakenbot.retry import KEY_PAUSES_S, retry
from tests.logs import silence
from tests.rules.test_pairs import rules
from tests.simulation.test_bot import DAY_S, DOWN, LIMITS, SIZE, BotTest, FakeClock

LONG_S = 240 * 60


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


class TestOrdinaryTrouble(BotTest):
    def test_margin_that_a_close_set_free_is_waited_for_and_it_opens_in_time(self) -> None:
        for lag_s in (5, 15, 60):
            with self.anew(lag_s):

                def summary(_: bool, lag_s: int = lag_s) -> MarginSummary:
                    used = self.exchange.position(lag_s).cost / 2
                    return MarginSummary(Decimal(480), ZERO, used)

                self.exchange.summary = summary
                self.at_the_turn()
                began = self.clock.time
                self.run_for(max(38, lag_s + 30))
                self.assert_held(-SIZE)
                self.assertLess(self.intents()[2].created - began, lag_s + 15)

    def test_while_a_reversal_cannot_be_sent_its_close_is_not_sent_in_the_same_second(self) -> None:
        bot = self.at_the_turn("unsent", "unsent", one_order=True)
        self.run_for(50, bot)
        moments = [intent.created for intent in self.intents()[1:]]
        self.assertTrue(all(b - a >= 2 for a, b in pairwise(moments)), moments)
        self.assert_held(-SIZE)

    def test_a_market_that_refuses_for_hours_is_not_hammered_and_counts_for_nothing(self) -> None:
        self.exchange.script = ["later"] * 300
        self.run_for(2 * 3600)
        self.assertLess(len(self.exchange.placed), 30)
        self.assertEqual(0, self.journal.orders_since(0))
        self.assertFalse(self.journal.get("halted"))

    def test_a_market_that_says_so_is_not_asked_by_ordering_at_all(self) -> None:
        self.exchange.status = "cancel_only"
        self.run_for(3600)
        self.assert_held(ZERO, sent=0)
        self.assertIn("cancel_only", self.told())

    def test_candles_that_the_strategy_lacks_after_a_short_answer_are_asked_for(self) -> None:
        whole, short, seen = self.exchange.candles, iter([True]), list[int]()
        self.exchange.candles = lambda since: whole(since)[-4 if next(short, False) else 0 :]
        strategy = self.plan.strategy
        self.plan = self.plan._replace(
            strategy=lambda shown: seen.append(len(shown)) or strategy(shown), candles_min=50
        )
        self.run_for(100)
        self.assertLess(seen[0], 50)
        self.assertGreaterEqual(seen[-1], 50)


class TestRefusalsThatPass(BotTest):
    interval_s = LONG_S

    def test_after_a_reversal_refused_in_doubt_nothing_goes_until_it_must_have_shown(self) -> None:
        self.plan = self.plan._replace(one_order=True)
        self.at_the_turn("wait")
        bot = self.run_for(130)
        self.assertEqual(2, len(self.exchange.placed))
        self.run_for(60, bot)  # Then in two steps.
        self.assert_held(-SIZE, sent=4)

    def test_one_rate_limit_or_a_few_refused_connections_do_not_cost_the_candle(self) -> None:
        for words in ("later", "wait", "unsent unsent unsent", "never", "pool pool pool"):
            with self.anew(words):
                self.exchange.script = words.split()
                self.run_for(1000)
                self.assert_held(SIZE, sent=len(words.split()) + 1)
                self.assertEqual(1, self.journal.orders_since(0))

    def test_a_refusal_that_may_hide_an_order_is_proven_before_another_one_may_open(self) -> None:
        self.exchange.script = ["wait"]
        self.run_for(1000)
        first, second = self.intents()
        self.assertGreaterEqual(second.created, first.deadline + 120)
        self.assertEqual(Outcome.REFUSED_FOR_NOW, first.outcome)
        self.assertIn("EAPI:Rate limit exceeded", first.note)
        self.assertIn("refused for now: EAPI:Rate limit exceeded", self.told("delay"))

    def test_without_margin_a_refusal_is_not_contradicted_by_what_a_person_trades(self) -> None:
        self.plan = self.plan._replace(leverage=0)
        self.exchange.script = ["wait"]
        self.answers("traded_orders", then=["OTHER"])
        self.run_for(1000)
        self.assert_settled(SIZE)

    def test_an_order_that_shows_up_after_its_refusal_is_the_bot_s_own(self) -> None:
        for leverage in (2, 0):
            with self.anew(leverage=leverage):
                self.exchange.script = ["taken"]
                self.run_for(1000)
                self.assert_held(SIZE, sent=1)
                self.assertEqual(SIZE, self.journal.account().held)

    def test_flatten_is_not_done_while_a_refused_order_may_have_opened_something(self) -> None:
        for leverage in (2, 0):
            with self.anew(leverage=leverage):
                self.exchange.script, self.exchange.position_lag_s = ["taken"], 60.0
                self.flatten(self.run_for(10))
                self.assert_held(ZERO)

    def test_a_loss_is_not_flat_while_a_refused_order_may_have_opened_something(self) -> None:
        self.exchange.script, self.exchange.position_lag_s = ["taken"], 60.0
        bot = self.run_for(10)
        self.journal.put(flatten="the loss")
        self.assertIn("the loss", self.stopped(bot.run))
        self.assert_held(ZERO, sent=2)

    def test_coins_sold_by_an_order_found_at_the_adoption_are_not_taken_again(self) -> None:
        self.plan = self.plan._replace(leverage=0)
        self.exchange.foreign_base = Decimal(1)
        self.once(105)
        self.written("sale", purpose=Purpose.CLOSE, side=Side.SELL)
        sold = Execution("O9", OrderStatus.CLOSED, SIZE, Decimal(500), ZERO)
        self.exchange.executions["sale"], self.exchange.base = sold, ZERO
        self.adopt()
        self.assertEqual(ZERO, self.journal.account().held)

    def test_an_order_that_was_adopted_after_its_refusal_is_not_booked_once_more(self) -> None:
        self.exchange.script, self.exchange.hang_s = ["taken"], 1000.0
        self.assertIn("shows unknown trades", self.stopped(self.bot().run))
        self.adopt()
        self.at(DOWN)
        self.run_for(1000)
        self.assertEqual(-SIZE, self.journal.account().held)
        self.assert_held(-SIZE, sent=3)

    def test_an_empty_lending_pool_halts_nothing_is_told_after_an_hour_and_at_its_end(self) -> None:
        self.exchange.script = ["pool"] * 20
        bot = self.run_for(3 * 3600)
        self.assertFalse(self.journal.get("halted"))
        self.assertLess(len(self.exchange.placed), 20)
        self.assertRegex(self.told(), "^[^|]*Insufficient margin[^|]*$")
        self.assertEqual((0, 1), (self.journal.orders_since(0), len(active_alerts(self.journal))))
        self.exchange.script.clear()
        self.run_for(1000, bot)
        self.assert_held(SIZE)
        self.assertRegex(self.told("recovery"), "^[^|]+$")
        self.assertEqual([], active_alerts(self.journal))


class TestLookups(BotTest):
    def test_a_lookup_that_is_refused_for_an_hour_halts_on_disk(self) -> None:
        bot, began = self.at_the_turn("lost"), self.clock.time
        self.fails("find", error=RefusedError("QueryOrders: EOrder:Invalid order"))
        self.stopped(bot.run)
        self.assertTrue(3600 <= self.clock.time - began < 4200, self.clock.time - began)
        halted = self.journal.get("halted")
        self.assertRegex(halted, "cannot be looked up: .*; the exchange shows nothing")
        self.assertTrue(self.told(), "an hour of waiting told nobody")

    def test_an_unknown_trade_or_a_strange_position_alone_is_no_proof_of_absence(self) -> None:
        for trades, held in ((["OSTRANGE"], ZERO), ([], SIZE)):
            with self.anew((trades, held)):
                self.exchange.script = ["never"]
                self.answers("traded_orders", then=trades)
                self.exchange.on_place = lambda *_, held=held: self.exchange.by_hand(held)
                self.assertIn("the exchange holds", self.stopped(self.bot().run))
                self.assertIsNone(self.intents()[0].outcome)

    def test_a_cancelled_order_s_looks_must_agree_with_each_other_and_the_position(self) -> None:
        for shown in (["0.003", "0.005"], ["0"] * 4):
            with self.anew(shown):
                self.exchange.script = ["half"]
                looks = map(Decimal, shown)
                self.shows(lambda found, looks=looks: found._replace(volume=next(looks, SIZE / 2)))
                self.run_for(50)
                self.assertEqual(SIZE / 2, self.intents()[0].executed)

    def test_an_order_accepted_before_a_death_must_be_there_after_it(self) -> None:
        self.exchange.script = ["lost"]
        self.shows(lambda found: None)
        self.run_for(20)
        self.journal.accept(self.intents()[0].id)
        self.assertIn("was accepted", self.stopped(self.bot().run))

    def test_a_close_uses_a_leverage_that_is_offered_when_its_own_is_no_more(self) -> None:
        bot = self.at_the_turn()
        self.exchange.pair_rules = rules(leverage_buy=[3, 5], leverage_sell=[3, 5])
        self.run_for(50, bot)
        self.assertEqual(3, self.exchange.placed[1].leverage)
        self.assert_held(ZERO)


class TestLongCandles(BotTest):
    interval_s = LONG_S

    def test_foreign_hands_and_liquidation_are_noticed_within_minutes(self) -> None:
        for held in (ZERO, SIZE * 2):
            with self.anew(held):
                bot = self.run_for(1000)
                self.exchange.by_hand(held)
                began = self.clock.time
                self.stopped(bot.run)
                self.assertLess(self.clock.time - began, 300 + 150)

    def test_once_latched_a_loss_is_taken_through_a_wide_spread_too(self) -> None:
        bot = self.run_for(1000)
        self.journal.put(flatten="too big a loss")
        self.exchange.spread = Decimal(5000)
        self.stopped(bot.run)
        self.assert_held(ZERO)
        kept = [self.journal.get(key) for key in ("halted", "flatten")]
        self.assertEqual(["too big a loss"] * 2, kept, "until somebody resumes")

    def test_the_clock_is_looked_at_every_five_minutes(self) -> None:
        asked = self.moments("server_time")
        self.run_for(3600)
        self.assertLess(max(later - sooner for sooner, later in pairwise(asked)), 310)


RAISED, ABOVE_SIZE = rules(ordermin="0.05"), "smallest order is now 0.05, above size"


class TestRaisedMinimum(BotTest):
    def raise_minimum(self) -> Bot:
        """Hold a long in a market that falls, whose smallest order is now five times that."""
        bot = self.at_the_turn()
        self.exchange.pair_rules = RAISED

        def refuse(order: Any, deadline: int) -> None:
            if order.volume < self.exchange.pair_rules.ordermin:
                self.exchange.placed.append(order)
                raise RefusedError("EGeneral:Invalid arguments:volume minimum not met")

        self.exchange.on_place = refuse
        return bot

    def test_its_close_is_tried_hourly_uncounted_and_told_at_once(self) -> None:
        bot = self.raise_minimum()
        self.run_for(3 * 3600, bot)
        self.assertTrue(2 <= len(self.exchange.placed) - 1 <= 4, len(self.exchange.placed))
        self.assertEqual(1, self.journal.orders_since(0))
        self.assertFalse(self.journal.get("halted"))
        self.assertIn(ABOVE_SIZE, self.told())

    def test_when_the_minimum_falls_again_the_position_is_closed_within_minutes(self) -> None:
        bot = self.raise_minimum()
        self.run_for(1200, bot)
        self.exchange.pair_rules = rules()
        self.run_for(400, bot)
        self.assert_held(-SIZE)
        self.assertTrue(self.told("recovery"))

    def test_a_flat_bot_tells_of_it_and_opens_at_the_next_candle_after_it_falls(self) -> None:
        self.exchange.pair_rules = RAISED
        bot = self.run_for(300)
        self.assert_held(ZERO, sent=0)
        self.assertIn(ABOVE_SIZE, self.told())
        self.exchange.pair_rules = rules()
        self.run_for(130, bot)
        self.assert_held(SIZE)
        self.assertTrue(self.told("recovery"))

    def test_a_rest_that_could_not_be_closed_does_not_hold_up_the_next_whole_close(self) -> None:
        bot, rest = self.at_the_turn(), Decimal("0.00001")
        refused = self.written("rest", purpose=Purpose.CLOSE, reduce_only=True, volume=rest)
        self.journal.conclude(refused, Outcome.REFUSED_FOR_NOW, refused.created, note="too small")
        self.run_for(100, bot)
        self.assert_held(-SIZE)

    def test_what_lasts_is_told_however_often_the_bot_is_started_again(self) -> None:
        self.once(105)
        self.exchange.status = "cancel_only"
        for minutes in range(DOWN, DOWN + 90, 15):
            self.once(minutes)
        self.assertIn("off target", self.told())

    def test_what_nobody_saw_for_a_week_has_not_lasted(self) -> None:
        self.once(105)
        self.exchange.status = "cancel_only"
        self.once(DOWN)
        self.once(DOWN + 7 * 1440)
        self.assertNotIn("off target", self.told())

    def test_a_size_raised_to_it_does_not_let_the_bot_keep_coins_for_ever(self) -> None:
        self.plan = self.plan._replace(leverage=0)
        self.raise_minimum()
        self.exchange.pair_rules = rules(ordermin="0.02")
        self.run_for(2 * 3600, self.bot(size=2 * SIZE))
        self.assertIn(len(self.exchange.placed), (2, 3, 4))
        self.assertIn("minimum not met", self.told())

    def test_max_loss_meeting_it_is_tried_hourly_and_told_until_it_is_closed(self) -> None:
        self.raise_minimum()
        self.exchange.close = lambda number: Decimal(40_000)
        bot = self.run_for(2 * 3600, self.bot(limits=LIMITS))
        self.assertIn(len(self.exchange.placed), (2, 3, 4))
        self.assertIn("minimum not met", self.told())
        self.exchange.pair_rules = rules()
        self.stopped(bot.run)
        self.assert_held(ZERO)


REFUSED = KeyRefusedError("EAPI:Invalid key")
LOCKOUT = KeyRefusedError("EGeneral:Temporary lockout", lockout=True)
LIMIT = KeyRefusedError("EGeneral:Too many requests", lockout=True, rate_limited=True)


class TestRefusedKey(unittest.TestCase):
    """How often, and after which pauses, a key is used again that was refused or is locked out."""

    def setUp(self) -> None:
        silence(self)

    def check(self, answers: list[Any], pauses: list[float], end: object, **options: Any) -> None:
        asked, clock = list[float](), FakeClock()
        answer = mock.Mock(side_effect=answers)
        options = {"patience_s": 300.0, "key_pauses_s": KEY_PAUSES_S} | options
        try:
            found = retry(lambda: asked.append(clock.time) or answer(), clock, **options)
        except (KeyRefusedError, LaterError) as error:
            found = type(error)
        self.assertEqual(end, found)
        self.assertEqual(pauses, [later - sooner for sooner, later in pairwise(asked)])

    def test_a_lockout_is_waited_out_once_in_a_row(self) -> None:
        self.check([LOCKOUT] * 2, [900], KeyRefusedError)
        self.check([LIMIT, LOCKOUT, "done"], [900, 900], "done")

    def test_a_limit_of_requests_is_waited_out_as_often_as_patience_allows(self) -> None:
        for pauses in ((), KEY_PAUSES_S):
            without_end = {"patience_s": float("inf"), "key_pauses_s": pauses}
            self.check([*[LIMIT] * 3, "done"], [900] * 3, "done", **without_end)
        self.check([LIMIT] * 3, [900], LaterError, key_pauses_s=())

    def test_no_limit_is_waited_out_where_nobody_is_told(self) -> None:
        self.check([LIMIT], [], KeyRefusedError, key_pauses_s=None)


class TestMissingPermission(BotTest):
    def test_a_key_that_reads_the_balance_but_not_the_position_ends_it_in_minutes(self) -> None:
        bot, began = self.once(105), self.clock.time
        self.fails("position", error=KeyRefusedError("EGeneral:Permission denied"))
        self.stopped(bot.run, code=77)
        self.assertTrue(540 <= self.clock.time - began <= 900, self.clock.time - began)

    def test_refusals_that_lie_hours_apart_do_not_end_it(self) -> None:
        bot, position, began = self.once(105), self.exchange.position, self.clock.time
        hours = [0]

        def outage() -> Any:
            hours.append(int(self.clock.time - began) // 3600)
            if hours[-1] > 5:
                return position()
            raise UnansweredError("timed out") if hours[-1] == hours[-2] else REFUSED

        self.exchange.position = outage
        self.run_for(7 * 3600, bot)
        self.assertLessEqual({*range(7)}, {*hours}, "it was not asked in every hour")

    def test_the_wait_for_the_end_of_a_lockout_takes_no_patience(self) -> None:
        bot, silence = self.once(105), UnansweredError("HTTP 502")
        self.answers("balances", silence, {})
        action = mock.Mock(side_effect=[silence, LOCKOUT, "done"])
        self.assertEqual("done", bot.retry(action, 300.0))

    def test_an_order_refused_with_the_key_is_recorded_with_that_reason(self) -> None:
        self.run_for(900, self.at_the_turn("stop"))
        self.assertEqual("EAPI:Invalid key", self.intents()[1].note)

    def test_an_order_refused_with_the_key_is_not_absent_while_an_unknown_trade_is_shown(
        self,
    ) -> None:
        self.exchange.script = ["stop"]
        self.answers("traded_orders", then=["O99"])
        self.assertIn("unknown trades: O99", self.stopped(lambda: self.once(leverage=0)))

    def test_orders_refused_by_a_limit_of_requests_do_not_end_it(self) -> None:
        bot = self.at_the_turn()
        self.fails("place", error=LIMIT)
        self.run_for(2 * 3600, bot)
        self.assert_held(SIZE)

    def test_repeated_lockouts_do_not_end_it_while_the_key_is_good(self) -> None:
        bot = self.once(105)
        position = self.answers("position", *[LOCKOUT] * 5)
        self.run_for(7000, bot)
        self.assertGreater(position.call_count, 5)


class TestLockout(BotTest):
    def test_one_that_answers_the_ledger_is_waited_out_and_the_bot_goes_on(self) -> None:
        bot = self.once(105)
        self.answers("charges", LOCKOUT, then=REFUSED)
        locked, private = self.moments("charges"), self.moments("position")
        self.run_for(2000, bot)
        self.assertGreaterEqual(min(at for at in private if at > locked[0]) - locked[0], 900)

    def test_one_that_answers_the_question_for_the_fee_is_not_passed_over(self) -> None:
        self.fails("fee_rate", error=LOCKOUT)
        self.stopped(self.bot(lambda bot: bot.market.read_rates()).run, code=77)
        self.assert_held(ZERO, sent=0)

    def test_a_flatten_that_is_asked_for_meanwhile_waits_for_its_end(self) -> None:
        bot, began = self.once(105), self.clock.time
        with mock.patch.object(self.clock, "wait", side_effect=FlattenRequestedError):
            self.assertRaises(FlattenRequestedError, bot.retry, mock.Mock(side_effect=LOCKOUT))
        private = self.moments("position")
        self.flatten(bot)
        self.assertGreaterEqual(private[0] - began, 900)


class TestRefresh(BotTest):
    """The market is read again an hour later, and not all of it is answered."""

    PARTS = ("server_time", "market_status", "rules", "fee_rate", "margin_rates")

    def refreshed(self, *silent: str) -> MarketState:
        self.setUp()
        market = self.run_for(10).market
        self.clock.time += 3600
        self.exchange.status, self.exchange.pair_rules = "maintenance", rules(status="cancel_only")
        for name in self.PARTS:
            self.answers(name)
        self.fails(*silent)
        self.assertRaises(UnansweredError, market.refresh)
        return market

    def test_one_part_that_cannot_be_read_keeps_no_other_from_being_read(self) -> None:
        for silent in ("server_time", "market_status", "rules"):
            with self.subTest(silent):
                market = self.refreshed(silent)
                self.exchange.server_time.assert_called_once()
                read = {"market_status": market.status, "rules": market.rules.status}
                expected = {"market_status": "maintenance", "rules": "cancel_only"}
                self.assertEqual(expected | {silent: "online"}, read | {silent: "online"})
                self.exchange.fee_rate.assert_not_called()  # It would be assumed for an hour.

    def test_where_nothing_is_answered_two_requests_are_enough_and_no_fee_is_assumed(self) -> None:
        market = self.refreshed(*self.PARTS)
        asked = sum(getattr(self.exchange, name).call_count for name in self.PARTS)
        self.assertEqual((2, ""), (asked, market.assumed))


class TestOneMethodThatFails(BotTest):
    interval_s = LONG_S

    def setUp(self) -> None:
        super().setUp()
        self.plan = self.plan._replace(limits=LIMITS)
        self.once(105)

    def test_it_keeps_no_position_from_being_closed_for_max_loss(self) -> None:
        for name in ("summary", "market_status", "quote"):
            with self.anew(name):
                crash = [Quote(Decimal(40_000), Decimal(40_001))] * (2 if name == "quote" else 99)
                self.fails(name)
                self.answers("quote", *crash, then=UnansweredError("EService:Unavailable"))
                began = self.clock.time
                self.stopped(self.bot().run)
                self.assert_held(ZERO)
                self.assertLess(self.clock.time - began, 1000)

    def test_a_reversal_in_one_order_that_cannot_be_checked_is_closed_at_least(self) -> None:
        self.plan = self.plan._replace(one_order=True)
        self.at(DOWN)
        self.fails("summary")
        self.run_for(600)
        self.assert_held(ZERO)

    def test_a_flatten_goes_on_after_a_restart_although_no_quote_is_answered(self) -> None:
        self.journal.put(flatten="max_loss reached")
        self.fails("quote")
        self.stopped(self.bot().run)
        self.assert_held(ZERO)


UNKNOWN_PAIR = RefusedError("EQuery:Unknown asset pair")
NOT_LISTED = dict.fromkeys(("rules", "candles", "quote"), UNKNOWN_PAIR)
LOW_LEVEL = {"equity": Decimal(300), "used_margin": Decimal(250)}
# Seconds of a candle; what becomes of the exchange of a bot that holds something, and of its
# methods: the error that they raise, None for no answer; and what is told.
TOLD: dict[str, tuple[int, dict[str, Any], str]] = {
    "a low margin level": (LONG_S, LOW_LEVEL, "margin level is 120.0 %"),
    "a margin level unknown": (LONG_S, {"summary": None}, "margin level cannot be read"),
    "a smallest order above the size": (DAY_S, {"pair_rules": RAISED}, ABOVE_SIZE),
    "a market that takes no orders": (DAY_S, {"status": "cancel_only"}, "in state cancel_only"),
    "a pair that is listed no more": (DAY_S, NOT_LISTED, "in state not listed"),
    "a ledger that cannot be read": (LONG_S, {"charges": None}, "ledger cannot be read"),
    "a market that makes no candles": (60, {"newest": 120}, "no finished candles"),
}


class TestTold(BotTest):
    def test_each_trouble_is_told_once_however_long_the_candle(self) -> None:
        for story, (interval_s, troubles, words) in TOLD.items():
            self.interval_s = interval_s
            with self.anew(story):
                bot = self.run_for(600)
                for name, trouble in troubles.items():
                    if callable(getattr(self.exchange, name)):
                        self.fails(name, error=trouble)
                    else:
                        setattr(self.exchange, name, trouble)
                self.run_for(2 * 3600, bot)
                self.assertRegex(self.told(), f"^[^|]*{words}[^|]*$")

    def test_a_time_that_is_not_answered_any_more_is_told(self) -> None:
        bot = self.once(105)
        self.answers("server_time", None, then=UnansweredError("Time: HTTP 503"))
        self.run_for(1500, bot)
        self.assertIn("cannot be read: Time", self.told())


class TestMarketThatCloses(BotTest):
    interval_s = DAY_S

    def test_a_maintenance_of_two_minutes_is_no_alarm(self) -> None:
        bot, began = self.run_for(600), self.clock.time

        def status() -> SystemStatus:
            is_closed = 3600 <= self.clock.time - began < 3720
            return SystemStatus("maintenance" if is_closed else "online")

        self.exchange.market_status = status
        self.run_for(2 * 3600, bot)
        self.assertEqual("", self.told())

    def test_while_nothing_is_held_a_closed_market_is_no_alarm(self) -> None:
        self.exchange.status = "maintenance"
        self.run_for(2 * 3600)
        self.assertNotIn("something is held", self.told())


class TestWaiting(BotTest):
    def test_candles_that_are_refused_are_told_and_the_position_still_looked_after(self) -> None:
        bot = self.once(105)
        self.fails("candles", error=UNKNOWN_PAIR)
        self.at(106)
        self.run_for(1000, bot)
        self.assertIn("Unknown asset pair", self.told())
        self.exchange.by_hand(ZERO)
        began = self.clock.time
        self.stopped(bot.run)
        self.assertLess(self.clock.time - began, 600)

    def test_while_candles_are_throttled_nothing_else_is_asked_for_in_addition(self) -> None:
        bot = self.run_for(90)
        self.fails("candles", error=UnansweredError("OHLC: EService:Throttled", wait_s=15.0))
        self.answers("rules")
        self.clock.end = self.clock.time + 280
        self.assertRaises(StopRequestedError, bot.retry, bot.tick)
        self.assertGreater(self.exchange.candles.call_count, 3)
        self.exchange.rules.assert_not_called()

    def test_flatten_needs_no_rules_from_the_exchange_when_they_are_remembered(self) -> None:
        self.once(105)
        self.fails("rules", error=UNKNOWN_PAIR)
        assume = self.answers("assume_rules")
        self.flatten()
        self.assert_held(ZERO)
        self.assertEqual("not listed", assume.call_args_list[0].args[0].status)

    def test_flatten_of_a_bot_that_holds_nothing_needs_no_newer_rules(self) -> None:
        bot = self.bot()
        bot.retry(bot.market.learn)
        self.fails("rules")
        self.flatten(bot)
        self.assertEqual("asked to", self.journal.get("halted"))


class TestClocks(BotTest):
    def setUp(self) -> None:
        super().setUp()
        self.loose = LooseClock()
        self.loose.time = self.clock.time
        self.clock = self.exchange.clock = self.loose

    def off(self, *seconds: float) -> None:
        """Let the next answers about the time be off by so much, and all others be right."""
        answers = iter(seconds)
        self.exchange.server_time = lambda: int(self.clock.time) + next(answers, 0)

    def assert_it_goes_on(self, seconds: float, bot: Bot | None = None) -> None:
        self.run_for(seconds, bot)
        self.assertLess(abs(self.clock.now() - self.clock.time), 2)
        newest = max(decided.candle for decided in decisions(self.journal))
        self.assertTrue(self.clock.time - 180 < newest < self.clock.time)

    def test_one_answer_hours_off_at_the_start_or_later_does_not_move_the_clock(self) -> None:
        self.off(-7200)
        self.assert_it_goes_on(120)
        bot = self.run_for(100)
        self.off(7200)
        self.assert_it_goes_on(900, bot)

    def test_an_answer_about_the_time_that_took_long_moves_no_clock_that_it_allows(self) -> None:
        bot = self.run_for(100)
        self.delay("server_time", 28)  # The first addresses are dead.
        bot.market.invalidate()
        bot.market.refresh()
        self.assertLess(abs(self.clock.now() - self.clock.time), 2)

    def test_a_clock_found_wrong_is_asked_about_until_answers_agree(self) -> None:
        bot = self.run_for(100)
        self.loose.offset = 15.0  # What answers that agreed have said.
        bot.market.invalidate()
        self.answers("server_time", None, UnansweredError("timed out"))
        self.assertRaises(UnansweredError, bot.market.refresh)
        bot.market.refresh()
        self.assertLess(abs(self.clock.now() - self.clock.time), 2)

    def test_candles_of_the_future_are_not_believed_and_asked_for_again(self) -> None:
        original, answers = self.exchange.candles, iter((600, 15))

        def candles(since: int | None) -> Sequence[Candle]:
            ahead = next(answers, 0)
            return [c._replace(time=c.time + 60 * ahead) for c in original(since)]

        self.exchange.candles = candles
        self.assert_it_goes_on(300)
        self.assert_held(SIZE)

    def test_a_host_s_clock_that_is_off_blocks_opening_never_closing_and_is_told(self) -> None:
        self.at_the_turn()
        self.loose.host_off = -40.0
        self.run_for(100)
        self.assert_held(ZERO)
        self.assertEqual([Purpose.OPEN, Purpose.CLOSE], [i.purpose for i in self.intents()])
        self.assertIn("40 s behind", self.told())
        self.loose.host_off = 0.0
        self.run_for(400)
        self.assert_held(-SIZE)
        self.assertTrue(self.told("recovery"))

    def test_an_exchange_whose_answers_about_the_time_contradict_is_waited_for(self) -> None:
        self.off(*(9000, -9000) * 100)
        with self.assertRaises(LaterError):
            self.bot().run(patience_s=60)
        self.assert_held(ZERO, sent=0)


class TestWords(BotTest):
    def test_the_two_orders_of_a_reversal_say_close_and_open(self) -> None:
        self.once(105)
        self.events.clear()
        self.once(DOWN)
        self.assertRegex(self.told("order"), "^[^|]*to close[^|]*[|][^|]*to open[^|]*$")
        self.assertRegex(self.told("fill"), "^close:[^|]*[|] open:[^|]*$")

    def test_a_decision_that_ended_without_its_order_says_why(self) -> None:
        self.exchange.script = ["refuse"]
        self.once()
        (decided,) = decisions(self.journal)
        self.assertIn("0.01 off target", decided.reason)
        self.assertIn("already ordered once for this candle", decided.reason)
