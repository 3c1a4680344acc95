"""The bot on an exchange made of values: what becomes of its orders, position and halts."""

import sqlite3
import unittest
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import partial
from itertools import chain, count, pairwise, repeat
from typing import Any, NoReturn
from unittest import mock

from krakenbot.alerts import active_alerts
from krakenbot.bot import Bot, Event
from krakenbot.clock import StopRequestedError
from krakenbot.commands.preview import adoption
from krakenbot.commands.views import decisions
from krakenbot.errors import (
    Cause,
    ConfigError,
    ContradictionError,
    KeyRefusedError,
    LaterError,
    RefusedError,
    StopError,
    UnansweredError,
)
from krakenbot.handover import adopt, flatten, held_of
from krakenbot.journal import Journal
from krakenbot.journal_file import prepare
from krakenbot.kraken.spot import Spot
from krakenbot.model import (
    ZERO,
    Candle,
    Charge,
    Execution,
    KeyInfo,
    MarginRates,
    MarginSummary,
    Order,
    OrderStatus,
    Position,
    Purpose,
    Quote,
    Side,
    SystemStatus,
)
from krakenbot.pairs import PairRules
from krakenbot.records import Intent, Outcome
from tests import IS_LONG, slow
from tests.clocks import StandingClock
from tests.logs import silence
from tests.rules import test_decision
from tests.rules.test_pairs import rules

DAY_S = 86400
T0 = 20717 * DAY_S  # In September 2026; candle n starts n minutes later.
SIZE = test_decision.PLAN.size
PLAN = test_decision.PLAN._replace(entry_now=True)
PEAK = 110  # Closes rise up to this candle; the first falling decision is two candles later.
DOWN = PEAK + 2


LIMITS = PLAN.limits._replace(max_loss=Decimal(50))
REFUSALS: dict[str, Exception] = {
    "unsent": LaterError("connection refused", cause=Cause.UNREACHABLE),
    "refuse": RefusedError("EOrder:Insufficient initial margin"),
    "later": LaterError("EOrder:Rate limit exceeded", leaves_no_order=True),
    "funds": RefusedError("EOrder:Insufficient initial margin", cause=Cause.FUNDS),
    "pool": LaterError(
        "EOrder:Insufficient margin", cause=Cause.LENDING_POOL, leaves_no_order=True
    ),
    "wait": LaterError("EAPI:Rate limit exceeded"),
    "stop": KeyRefusedError("EAPI:Invalid key"),
    "never": UnansweredError("timed out"),
}


class Killed(BaseException):
    """The process dies here."""


class FakeClock(StandingClock):
    def set(self, exchange_time: float) -> None:
        pass


class FakeExchange:
    """An exchange with one account on one pair, whose answers to orders can be told before.

    `script` holds one word for each coming order: fill (also when it is empty), lost (executed,
    the answer lost), never (lost on the way), refuse, funds, later, pool, wait, unsent, stop,
    half, zero (cancelled without a trade), hang and taken (unanswered or refused, and yet executed
    and shown `hang_s` later). An order that goes out twice fails the test.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.script: list[str] = []
        self.placed: list[Order] = []
        self.executions: dict[str, Execution] = {}
        self.visible_from: dict[str, float] = {}
        self.held = ZERO
        self.shown: list[tuple[float, Decimal]] = [(0.0, ZERO)]
        self.position_lag_s = 0.0
        self.base = self.foreign_base = ZERO
        self.quote_money = self.equity = Decimal(100_000)
        self.used_margin = ZERO
        self.rise = PEAK
        self.status = "online"
        self.upcoming: tuple[str, ...] = ()
        self.spread = Decimal(1)
        self.pair_rules = rules()
        self.hang_s = 60.0
        self.down = False
        self.interval_s = 60
        self.newest = 10**9  # The candle after which the market makes no more.
        self.on_place: Callable[[Order, int], object] = lambda order, deadline: None

    @property
    def number(self) -> int:
        """Return the number of the candle being made."""
        return min((int(self.clock.time) - T0) // self.interval_s, self.newest)

    def close(self, number: int) -> Decimal:
        return Decimal(50_000 + (number if number <= self.rise else 2 * self.rise - number))

    def server_time(self) -> int:
        return int(self.clock.time)

    def market_status(self) -> SystemStatus:
        return SystemStatus(self.status, self.upcoming)

    def margin_rates(self) -> MarginRates:
        return MarginRates(Decimal("0.00025"), Decimal("0.0001"))

    def key_info(self) -> KeyInfo:
        return KeyInfo(())

    def rules(self) -> PairRules:
        return self.pair_rules

    def known_rules(self) -> PairRules:
        return self.rules()

    def assume_rules(self, rules: PairRules) -> None:
        self.pair_rules = rules

    def candles(self, since: int | None) -> Sequence[Candle]:
        if self.down:
            raise UnansweredError("timed out")
        step_s, running = self.interval_s, self.number
        first = 0 if since is None else (since - T0) // step_s + 1
        numbers = range(min(running, max(0, first, running - 719)), running + 1)
        return [Candle(T0 + step_s * number, *[self.close(number)] * 4) for number in numbers]

    def quote(self) -> Quote:
        middle = self.close(self.number)
        return Quote(middle - self.spread / 2, middle + self.spread / 2)

    def summary(self, on_margin: bool = True) -> MarginSummary:
        if not on_margin:
            return MarginSummary(self.quote_money, ZERO, ZERO)
        return MarginSummary(self.equity, ZERO, self.used_margin)

    def balances(self) -> Mapping[str, Decimal]:
        return {"ZUSD": self.quote_money, "XXBT": self.base + self.foreign_base}

    def position(self, lag_s: float | None = None) -> Position:
        moment = self.clock.time - (self.position_lag_s if lag_s is None else lag_s)
        volume = [volume for since, volume in self.shown if since <= moment or since == 0.0][-1]
        return Position(volume, abs(volume) * 50_000)

    def charges(self, since: int, until: int, pages: Iterator[int]) -> Sequence[Charge] | None:
        return []

    def fee_rate(self) -> Decimal:
        return Decimal("0.008")

    def place(self, order: Order, deadline: int) -> None:
        self.on_place(order, deadline)
        sent_before = {placed.client_order_id for placed in self.placed}
        assert order.client_order_id not in sent_before, f"{order} goes out twice"
        self.placed.append(order)
        word = self.script.pop(0) if self.script else "fill"
        if word in REFUSALS:
            self.refuse(word)
        part = {"half": Decimal("0.5"), "zero": ZERO}.get(word, Decimal(1))
        self.execute(order, order.volume * part)
        if word in ("hang", "taken"):
            self.visible_from[order.client_order_id] = self.clock.time + self.hang_s
        if word in ("lost", "hang"):
            raise UnansweredError("timed out")
        if word == "taken":
            self.refuse("wait")

    def refuse(self, word: str) -> NoReturn:
        raise REFUSALS[word].with_traceback(None)

    def execute(self, order: Order, volume: Decimal) -> None:
        if order.reduce_only:
            volume = min(volume, max(ZERO, -self.held * order.side.sign))
        status = OrderStatus.CLOSED if volume == order.volume else OrderStatus.CANCELED
        name, cost = f"O{len(self.executions)}", volume * self.close(self.number)
        done = Execution(name, status, volume, cost, cost * self.fee_rate())
        self.executions[order.client_order_id] = done
        if order.leverage:
            self.by_hand(self.held + order.side.sign * volume)
        else:
            self.base += order.side.sign * volume
            self.quote_money -= order.side.sign * cost

    def by_hand(self, volume: Decimal) -> None:
        """Change the position, as someone else may."""
        self.held = volume
        self.shown.append((self.clock.time, volume))

    def find(self, client_order_id: str, since: int) -> Execution | None:
        if self.clock.time < self.visible_from.get(client_order_id, 0.0):
            return None
        return self.executions.get(client_order_id)

    def traded_orders(self, since: int, until: int) -> Sequence[str]:
        return [done.exchange_order_id for done in self.executions.values() if done.volume]


class Dying:
    """Hands every call on; with each of those named, `step` is called before and after it."""

    def __init__(self, target: Any, names: Container[str], step: Callable[[], object]) -> None:
        self._target, self._names, self._step = target, names, step

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*args: Any) -> Any:
            if args[:1] == ("ROLLBACK",):
                return method(*args)
            self._step()
            result = method(*args)
            self._step()
            return result

        return call if name in self._names else method


CALLS = [name for name in dir(Spot) if not name.startswith("_")]


class BotTest(unittest.TestCase):
    plan = PLAN
    interval_s = 60

    def setUp(self) -> None:
        self.doCleanups()  # Tests begin anew many times.
        silence(self)
        self.clock = FakeClock()
        self.exchange = FakeExchange(self.clock)
        self.exchange.interval_s = self.interval_s
        self.plan = type(self).plan._replace(interval_s=self.interval_s)
        self.begin_journal()
        self.events: list[Event] = []
        self.at(100)

    @contextmanager
    def anew(self, case: object = None, **changes: Any) -> Iterator[None]:
        """Begin anew for one case of several, which may change the plan."""
        with self.subTest(case, **changes):
            self.setUp()
            self.plan = self.plan._replace(**changes)
            yield

    def change(self, **unusual: Any) -> None:
        """Change what is of the plan there, and else the exchange."""
        plan = {name: value for name, value in unusual.items() if name in PLAN._fields}
        self.plan = self.plan._replace(**plan)
        vars(self.exchange).update(unusual)

    def begin_journal(self) -> None:
        self.connection = prepare(sqlite3.connect(":memory:", isolation_level=None))
        self.addCleanup(self.connection.close)
        self.journal = Journal(self.connection)

    def at(self, number: int, seconds: float = 1.5) -> None:
        """Make it that many seconds after candle `number` was finished."""
        self.clock.time = T0 + self.interval_s * (number + 1) + seconds

    def bot(self, *checks: Callable[[Bot], Any], **changes: Any) -> Bot:
        plan, tell = self.plan._replace(**changes), self.events.append
        return Bot(plan, self.exchange, self.journal, self.clock, "abc", tell, checks=checks)

    def adopt(self, bot: Bot | None = None) -> None:
        bot = bot or self.bot()
        bot.retry(bot.market.learn)
        held = bot.retry(partial(held_of, bot)).volume
        bot.retry(partial(adopt, bot, self.journal.account().held, held))

    def flatten(self, bot: Bot | None = None, patience_s: float = 300.0) -> None:
        flatten(bot or self.bot(), "asked to", patience_s)

    def once(
        self, number: int | None = None, bot: Bot | None = None, *, adopt: bool = False, **plan: Any
    ) -> Bot:
        """Start a bot (or go on with one) and let it decide on one candle."""
        if number is not None:
            self.at(number)
        if adopt:
            self.adopt()
        bot = bot or self.bot(**plan)
        bot.run(once=True)
        return bot

    def until(self, number: int, bot: Bot | None = None, **changes: Any) -> Bot:
        """Let a bot run until candle `number` was finished a while ago."""
        end = T0 + self.interval_s * (number + 1) + 40
        return self.run_for(end - self.clock.time, bot or self.bot(**changes))

    def at_the_turn(self, *script: str, hang_s: float = 60.0, **changes: Any) -> Bot:
        """Let a bot hold a long when a fall is seen; the next orders meet the script."""
        bot = self.once(105, **changes)
        self.exchange.script, self.exchange.hang_s = list(script), hang_s
        self.at(DOWN)
        return bot

    def run_for(self, seconds: float, bot: Bot | None = None) -> Bot:
        """Let a bot run for so long from now."""
        self.clock.end = self.clock.time + seconds
        bot = bot or self.bot()
        self.assertRaises(StopRequestedError, bot.run)
        self.clock.end = float("inf")
        return bot

    def deaths(
        self, prepare: Callable[[], object], act: Callable[[Bot], object], step: int
    ) -> Iterator[int]:
        """Let a process die that does this, at every `step`th call; yield how many came before."""
        for moment in count(step, step):
            self.setUp()
            prepare()
            die = mock.Mock(side_effect=chain([None] * moment, repeat(Killed)))
            journal = Journal(Dying(self.connection, ["execute"], die))
            try:
                act(Bot(self.plan, Dying(self.exchange, CALLS, die), journal, self.clock, "abc"))
                return
            except Killed:
                self.connection.rollback()  # As a real death does.
                self.journal = Journal(self.connection)
            yield moment

    def told(self, kind: str = "warning") -> str:
        return " | ".join(event.text for event in self.events if event.kind == kind)

    def stopped(self, act: Callable[..., object], *args: Any, code: int = 76) -> str:
        with self.assertRaises(StopError) as caught:
            act(*args)
        self.assertEqual(code, caught.exception.exit_code)
        return str(caught.exception)

    def fails(self, *methods: str, error: Exception | None = None) -> None:
        """Let the exchange answer these with nothing but the error."""
        for name in methods:
            self.answers(name, then=error or UnansweredError(f"{name}: timed out"))

    def answers(self, method: str, *first: object, then: object = None) -> mock.Mock:
        """Let the exchange answer this so at first, then with `then`, or as usual without it."""
        usual, coming = getattr(self.exchange, method), chain(first, repeat(then))

        def answer(*words: Any) -> Any:
            said = next(coming)
            if isinstance(said, BaseException):
                raise said
            return usual(*words) if said is None else said

        stand_in = mock.Mock(side_effect=answer)
        setattr(self.exchange, method, stand_in)
        return stand_in

    def delay(self, method: str, seconds: float) -> None:
        """Let each answer to this take so long."""
        usual = getattr(self.exchange, method)

        def slowly(*words: Any) -> Any:
            self.clock.time += seconds
            return usual(*words)

        setattr(self.exchange, method, slowly)

    def moments(self, method: str) -> list[float]:
        """Return what grows by the moment of each time that the exchange is asked this."""
        found, ask = list[float](), getattr(self.exchange, method)
        setattr(self.exchange, method, lambda *words: found.append(self.clock.time) or ask(*words))
        return found

    def shows(self, change: Callable[[Execution], Execution | None]) -> None:
        """Let a lookup show what `change` makes of the order that it finds."""
        find = self.exchange.find

        def changed(client_order_id: str, since: int) -> Execution | None:
            found = find(client_order_id, since)
            return found and change(found)

        self.exchange.find = changed

    def written(self, name: str, **more: Any) -> Intent:
        """Write an order into the journal that is like the first, of now, and not concluded."""
        unsent = {"accepted": False, "outcome": None, "settled": None}
        amounts = dict.fromkeys(("executed", "cost", "fee"), ZERO)
        now = {"id": name, "created": int(self.clock.time)}
        self.journal.write(intent := self.intents()[0]._replace(**unsent, **amounts, **now, **more))
        return intent

    def outcomes(self) -> list[tuple[Purpose, str | None]]:
        return [(intent.purpose, intent.outcome) for intent in self.intents()]

    def intents(self) -> list[Intent]:
        return self.journal.intents()

    def assert_held(self, volume: Decimal, *, sent: int | None = None) -> None:
        """What the bot holds, on margin or as coins; how many orders were sent, if that counts."""
        self.assertEqual(volume, self.exchange.held + self.exchange.base)
        if sent is not None:
            self.assertEqual(sent, len(self.exchange.placed))

    def assert_settled(self, volume: Decimal) -> None:
        """That is held, the journal knows it, and nothing is open."""
        self.assert_held(volume)
        self.assertEqual(volume, self.journal.account().held)
        self.assertEqual([], self.journal.open_intents())
        self.assertFalse(self.journal.get("halted"))


ONE_ORDER = {"one_order": True}
WITHOUT_MARGIN = {"leverage": 0, "foreign_base": Decimal(3)}  # The holder's own coins.
# What becomes of the orders of a rise, and of the fall that is seen at DOWN; until when it is
# looked at; what was sent, in sizes, and what is held then; what is unusual with plan or exchange.
STORIES: dict[str, tuple[str, int, list[float], int, dict[str, Any]]] = {
    "a rise is bought once and then held": ("", 108, [1], 1, {}),
    "a turn closes exactly what is held, then opens": ("", DOWN, [1, -1, -1], -1, {}),
    "an order whose answer was lost is found and not sent again": ("lost", 104, [1], 1, {}),
    "so is one that shows only after a minute": ("hang", 104, [1], 1, {}),
    "after one that never happened a later candle opens": ("never", 106, [1, 1], 1, {}),
    "one that never left is tried again": ("unsent", 100, [1, 1], 1, {}),
    "a key refused once does not end the bot": ("stop", 105, [1, 1], 1, {}),
    "the rest of an opening comes with the next candle": ("half", 101, [1, 0.5], 1, {}),
    "the rest of a close goes first": ("fill half", DOWN, [1, -1, -0.5, -1], -1, {}),
    "funds refused after a close only delay": ("fill fill funds", DOWN, [1, -1, -1, -1], -1, {}),
    "with one order a turn is twice the size": ("", DOWN, [1, -2], -1, ONE_ORDER),
    "a turn refused is closed": ("fill refuse fill refuse", DOWN, [1, -2, -1, -1], 0, ONE_ORDER),
    "a late position is waited for": ("", DOWN + 2, [1, -1, -1], -1, {"position_lag_s": 50}),
    "a first start waits for a turn": ("", DOWN - 1, [], 0, {"entry_now": False}),
    "at which it opens": ("", DOWN, [-1], -1, {"entry_now": False}),
    "without margin a fall sells what the bot bought": ("", DOWN + 5, [1, -1], 0, WITHOUT_MARGIN),
    "and nothing else": ("", 106, [], 0, WITHOUT_MARGIN | {"rise": 95}),
    "a sale that was cancelled is sent again": ("fill zero", DOWN, [1, -1, -1], 0, WITHOUT_MARGIN),
}


class TestStories(BotTest):
    def test_each_ends_as_it_says(self) -> None:
        for story, (script, number, sizes, held, unusual) in STORIES.items():
            with self.anew(story):
                self.change(**unusual, script=script.split())
                self.until(number)
                placed = self.exchange.placed
                self.assertEqual(sizes, [float(o.side.sign * o.volume / SIZE) for o in placed])
                closing = [intent.purpose is Purpose.CLOSE for intent in self.intents()]
                leverage = self.plan.leverage
                reducing = [is_close and leverage > 0 for is_close in closing]
                self.assertEqual(reducing, [order.reduce_only for order in placed])
                self.assertEqual({leverage} if placed else set(), {o.leverage for o in placed})
                self.assert_settled(held * SIZE)


class TestOrdinaryTicks(BotTest):
    def test_a_candle_is_decided_on_once_however_often_the_bot_ticks(self) -> None:
        bot = self.once()
        self.exchange.by_hand(ZERO)  # Were it decided again, this would be seen.
        for seconds in (2, 20, 40, 57):
            self.at(100, seconds)
            self.assertTrue(bot.tick().decided)
        self.assert_held(ZERO, sent=1)

    def test_the_next_tick_is_due_just_after_the_next_candle_is_finished(self) -> None:
        result = self.once().tick()
        self.assertTrue(T0 + 60 * 102 <= result.next_due <= T0 + 60 * 102 + 5)

    def test_a_turn_missed_in_an_outage_is_repaired_at_the_next_finished_candle(self) -> None:
        bot = self.once(105)
        self.exchange.down = True
        self.until(DOWN + 3, bot)
        self.assert_held(SIZE)
        self.exchange.down = False
        self.until(DOWN + 6, bot)
        self.assert_held(-SIZE, sent=3)

    def test_a_request_to_stop_between_close_and_open_leaves_nothing_unsettled(self) -> None:
        self.at_the_turn("hang", hang_s=30.0)
        self.run_for(15)
        self.assertEqual(1, len(self.journal.open_intents()))
        self.until(DOWN + 3)
        self.assertEqual([], self.journal.open_intents())
        self.assert_held(-SIZE, sent=3)

    def test_the_ledger_is_read_at_the_start_and_every_five_minutes(self) -> None:
        reads, began = self.moments("charges"), self.clock.time
        self.until(100 + 30)
        self.assertLess(reads[0] - began, 5)
        gaps = [later - sooner for sooner, later in pairwise(reads)]
        self.assertTrue(all(300 <= gap <= 360 for gap in gaps), gaps)

    def test_short_trouble_is_told_nobody_and_patience_lasts_from_its_beginning(self) -> None:
        answers = iter([UnansweredError("one lost answer"), None])

        def slow() -> None:
            self.clock.time += 500
            if error := next(answers):
                raise error

        self.bot().retry(slow, 300)
        self.assertEqual([], self.events)

    def test_patience_at_the_start_is_for_each_part_that_is_asked_for(self) -> None:
        def check(until: list[float], bot: Bot) -> None:
            until.append(self.clock.time + 200)
            if self.clock.time < until[0]:
                raise UnansweredError("one lost answer after another")

        bot = self.bot(partial(check, []), partial(check, []))
        bot.run(once=True, patience_s=300)
        self.assertTrue(bot.retry.has_started)

    def test_waiting_for_over_five_minutes_is_told_once_again_daily_and_when_over(self) -> None:
        began = self.clock.time

        def silent() -> None:
            waited_s = self.clock.time - began
            if not 300 <= waited_s <= 420:
                self.assertEqual(waited_s > 300, bool(self.events))
            if waited_s < 2.5 * DAY_S:
                raise UnansweredError("timed out")
            self.assertEqual(1, len(active_alerts(self.journal)))

        self.bot().retry(silent)
        kinds = [event.kind for event in self.events]
        self.assertEqual(["warning"] * 3 + ["recovery"], kinds)
        self.assertEqual([], active_alerts(self.journal))

    def test_maintenance_that_is_announced_is_a_warning_until_it_is_over(self) -> None:
        self.exchange.upcoming = ("Upgrade, 2026-05-11T09:00:00Z",)
        bot, said = self.until(101), "Kraken announces: Upgrade, 2026-05-11T09:00:00Z"
        self.assertEqual(([said], said), (active_alerts(self.journal), self.told()))
        self.exchange.upcoming = ()
        self.until(108, bot)
        self.assertEqual([], active_alerts(self.journal))


# The candles on which a bot decides that is started anew for each; what is unusual with plan or
# exchange from then on; and what is held after it.
STARTS: dict[str, list[tuple[int, dict[str, Any], int]]] = {
    "a restarted bot on target orders nothing": [(number, {}, 1) for number in range(100, 106)],
    "a turn is also noticed that came while it was not running": [
        (100, {"entry_now": False}, 0),
        (DOWN + 20, {}, -1),
    ],
    "once in the market a restart does not wait again": [
        (100, {"entry_now": False}, 0),
        (DOWN, {}, -1),
        (DOWN + 200, {"rise": 10_000}, 1),
    ],
    "who never entered waits after a change to next-turn": [
        (103, {"equity": ZERO}, 0),
        (105, {"equity": Decimal(100_000), "entry_now": False}, 0),
    ],
    "who is in the market does not wait because entry has changed": [
        (105, {}, 1),
        (DOWN + 3, {"entry_now": False}, -1),
    ],
    "a turn that is objected to is followed by its close, so risk goes down": [
        (105, {"one_order": True}, 1),
        (DOWN, {"equity": Decimal(300), "used_margin": Decimal(250)}, 0),  # A level of 120 %.
    ],
}


class TestStarts(BotTest):
    def test_each_restart_ends_as_its_story_says(self) -> None:
        for story, starts in STARTS.items():
            with self.anew(story):
                for number, unusual, held in starts:
                    self.change(**unusual)
                    self.once(number)
                    self.assert_settled(held * SIZE)

    def test_a_first_start_that_trades_nothing_asks_for_no_quote(self) -> None:
        quotes = self.moments("quote")
        self.once(entry_now=False)
        self.assertEqual(([], []), (self.exchange.placed, quotes))


class TestWithoutMargin(BotTest):
    plan = PLAN._replace(leverage=0)

    def setUp(self) -> None:
        super().setUp()
        self.exchange.foreign_base = Decimal(3)  # The holder's own coins.

    def test_a_margin_position_closed_by_hand_is_not_adopted_from_other_coins(self) -> None:
        for number in (105, DOWN):  # Over a long and over a short one.
            with self.anew(number):
                self.once(number, leverage=2)
                self.at(number + 1)
                self.assertIn("is held on margin", self.stopped(self.adopt))
                self.exchange.by_hand(ZERO)
                self.clock.time += 3600
                self.adopt()
                self.assertEqual(ZERO, self.journal.account().held)

    def test_a_sale_that_grows_after_it_looked_final_does_not_cost_other_coins(self) -> None:
        self.once(105)
        first = list[float]()

        def a_part_for_some_seconds(found: Execution) -> Execution:
            first.append(self.clock.time)
            if self.clock.time > first[0] + 8:
                return found
            volume, cost = found.volume * Decimal("0.4"), found.cost * Decimal("0.4")
            return found._replace(status=OrderStatus.CANCELED, volume=volume, cost=cost)

        self.shows(a_part_for_some_seconds)
        self.until(DOWN + 5)
        self.assert_held(ZERO, sent=2)

    def test_a_sale_refused_for_good_is_tried_again_once_it_certainly_left_nothing(self) -> None:
        self.interval_s = 4 * 3600
        self.setUp()
        self.at_the_turn("refuse")
        self.run_for(1200)
        refused, sold = self.intents()[-2:]
        self.assert_held(ZERO)
        self.assertGreaterEqual(sold.created - refused.deadline, 120)

    def test_coins_of_the_bot_that_are_gone_stop_it_with_both_numbers(self) -> None:
        bot = self.once()
        self.exchange.base, self.exchange.foreign_base = Decimal("0.004"), ZERO
        self.assertRegex(self.stopped(self.once, 101, bot), r"0\.004.* 0\.01\b")

    def test_adopting_goes_on_with_what_is_left_of_the_bot_s_own_coins(self) -> None:
        self.once()
        self.exchange.base, self.exchange.foreign_base = Decimal("0.004"), ZERO
        self.once(101, adopt=True)
        self.assert_held(SIZE)

    def test_turning_margin_off_over_an_open_margin_position_trades_nothing(self) -> None:
        for number, rise in ((105, PEAK), (DOWN, 10_000)):  # Over a long and over a short one.
            with self.anew(number):
                self.once(number, leverage=2)
                self.exchange.rise = rise
                self.stopped(self.once, DOWN + 3)
                self.assertEqual(1, len(self.exchange.placed), "other coins were traded")

    def test_turning_margin_on_over_coins_bought_without_it_trades_nothing(self) -> None:
        self.once(105)
        self.stopped(self.once, DOWN + 3, self.bot(leverage=2))
        self.assert_held(SIZE, sent=1)

    def test_without_its_journal_the_order_of_this_candle_is_found_and_not_repeated(self) -> None:
        self.exchange.foreign_base = ZERO
        self.once()
        self.begin_journal()
        self.at(100, 40)
        with suppress(StopError):
            self.bot().run(once=True)
        self.assert_held(SIZE, sent=1)


class TestUnanswered(BotTest):
    def test_an_order_that_never_happened_is_absent_only_after_deadline_and_lag(self) -> None:
        self.exchange.script = ["never"]
        looks, began, traded = self.moments("find"), self.clock.time, self.answers("traded_orders")
        self.once()
        (intent,) = self.intents()
        self.assertEqual(Outcome.ABSENT, intent.outcome)
        self.assertGreaterEqual(intent.settled, intent.deadline + 120)
        self.assertLess(self.clock.time - began, 200)
        self.assertGreaterEqual(len(looks), 8)
        self.assert_held(ZERO, sent=1)
        # The window of the proof is closed, so no busy account can make it endless.
        traded.assert_called_once_with(intent.created - 5, intent.deadline + 120)

    def test_an_order_not_found_while_unknown_trades_show_stops_it_until_adopted(self) -> None:
        self.exchange.script = ["hang"]
        self.shows(lambda found: None)
        self.stopped(self.once)
        self.assertTrue(self.journal.get("halted"))
        self.assertEqual([(Purpose.OPEN, None)], self.outcomes())
        self.at(110)
        self.once(adopt=True)
        self.assertEqual(SIZE, self.journal.account().held)
        self.assert_held(SIZE, sent=1)

    def test_an_accepted_order_that_the_exchange_then_does_not_know_stops_the_bot(self) -> None:
        self.shows(lambda found: None)
        message = self.stopped(self.once)
        self.assertIn(self.exchange.placed[0].client_order_id, message)
        self.assertIn("the exchange shows no such order", message)
        self.assert_held(SIZE, sent=1)
        self.assertEqual(SIZE, Decimal(self.journal.get("exchange_position")))

    def test_a_halt_is_on_disk_before_what_is_held_is_asked_for(self) -> None:
        self.shows(lambda found: None)
        self.answers("position", Position(), then=StopRequestedError())
        self.assertIn("does not know it", self.stopped(self.once))
        self.assertIn("does not know it", self.journal.get("halted"))

    def test_an_order_that_filled_more_than_was_ordered_halts_with_both_numbers(self) -> None:
        self.shows(lambda found: found._replace(volume=2 * SIZE))
        said = self.stopped(self.once)
        self.assertRegex(said, "filled 0.02, but 0.01 was ordered; the exchange holds 0.01, .* 0$")
        self.assertEqual(SIZE, Decimal(self.journal.get("exchange_position")))

    def test_a_deadline_begins_when_the_order_is_sent_and_not_with_a_lookup_before_it(self) -> None:
        deadlines = list[float]()
        self.delay("find", 6)
        self.exchange.on_place = lambda _, at: deadlines.append(at - self.clock.time)
        self.once()
        self.assertGreater(deadlines[0], 14)

    def test_an_outage_while_an_order_is_unknown_decides_nothing(self) -> None:
        self.exchange.script, find = ["lost"], self.exchange.find
        self.fails("find")
        bot = self.run_for(1000)
        self.assertEqual([], [row for row in decisions(self.journal) if row.done])
        self.exchange.find = find
        self.until(120, bot)
        self.assertEqual((Purpose.OPEN, "closed"), self.outcomes()[0])
        self.assert_held(-SIZE)

    def test_an_order_that_stays_open_or_traded_too_much_stops_the_bot(self) -> None:
        for change, said in (
            ({"status": OrderStatus.OPEN, "volume": ZERO}, "open"),
            ({"volume": 2 * SIZE}, r"0\.02.*0\.01|0\.01.*0\.02"),
        ):
            with self.anew(said):
                self.shows(lambda found, change=change: found._replace(**change))
                self.assertRegex(self.stopped(self.once), said)
                self.assert_held(SIZE, sent=1)

    def test_after_too_many_requests_the_lookup_waits_as_well(self) -> None:
        self.once(105)
        self.fails("place", error=UnansweredError("EService:Throttled", wait_s=60.0))
        looks = self.moments("find")
        self.once(DOWN)
        sent = self.intents()[1].created
        self.assertGreaterEqual(min(at for at in looks if at >= sent) - sent, 60)


class TestRefused(BotTest):
    def test_an_opening_refused_for_good_is_looked_for_once_and_left_to_the_next(self) -> None:
        self.exchange.script, looks = ["refuse"], self.moments("find")
        bot = self.once()
        self.assertEqual([(Purpose.OPEN, Outcome.REFUSED)], self.outcomes())
        self.assertIn("was refused: EOrder:Insufficient", self.told("refusal"))
        # One look before a journal's first order, one after the refusal.
        self.assertEqual(2, len(looks))
        bot.tick()
        self.assert_held(ZERO, sent=1)
        self.once(101)
        self.assert_held(SIZE, sent=2)

    def test_a_refusal_that_hides_an_executed_order_is_noticed(self) -> None:
        place = self.exchange.place
        self.exchange.place = lambda *order: place(*order) or self.exchange.refuse("refuse")
        self.once()
        self.assertEqual([(Purpose.OPEN, "closed")], self.outcomes())
        self.assertEqual((SIZE, 1), (self.journal.account().held, len(self.exchange.placed)))

    def test_five_fruitless_orders_in_a_row_halt_the_bot_until_it_is_flattened(self) -> None:
        words = "fill refuse never zero refuse later unsent refuse refuse fill"
        self.exchange.script = words.split()
        for _ in range(2):
            self.assertIn("5", self.stopped(self.bot().run))
            self.assert_held(SIZE, sent=9)
        self.flatten()
        self.assert_held(ZERO)

    def test_a_key_that_stays_refused_ends_it_after_three_pauses_or_a_lockout(self) -> None:
        refusal, lockout = (KeyRefusedError("EAPI:Invalid key", lockout=x) for x in (False, True))
        for answers, pauses in (
            ([refusal] * 4, [60, 180, 300]),
            ([refusal, lockout, refusal, refusal], [60, 900, 300]),
        ):
            with self.anew(pauses):
                bot = self.at_the_turn()
                self.answers("position", *answers)
                asked = self.moments("position")
                self.exchange.balances = self.exchange.position
                self.stopped(bot.run, code=77)
                self.assertEqual(pauses, [round(b - a) for a, b in pairwise(asked)])
                self.assertIn("EAPI:Invalid key", self.told())

    def test_a_key_refused_at_the_start_of_a_bot_that_holds_nothing_ends_it_at_once(self) -> None:
        began, refusal = self.clock.time, KeyRefusedError("EAPI:Invalid key")
        self.stopped(self.bot(mock.Mock(side_effect=refusal)).run, code=77)
        self.assertLess(self.clock.time - began, 1)

    def test_a_passing_objection_is_looked_at_again_within_the_candle(self) -> None:
        for name, trouble, usual in (
            ("status", "maintenance", "online"),
            ("spread", Decimal(5000), Decimal(1)),
        ):
            with self.anew(name):
                setattr(self.exchange, name, trouble)
                bot = self.once()
                self.assertLessEqual(bot.tick().next_due - self.clock.time, 60)
                self.assert_held(ZERO, sent=0)
                setattr(self.exchange, name, usual)
                self.clock.time += 30
                bot.tick()
                self.assert_held(SIZE, sent=1)

    def test_orders_that_never_leave_halt_nothing_and_do_not_count(self) -> None:
        self.exchange.script = ["unsent"] * 12
        self.until(104)
        self.assert_held(ZERO)
        self.until(115)
        self.assertEqual(SIZE, abs(self.exchange.held))


class TestPositionTruth(BotTest):
    def test_a_position_that_the_journal_cannot_explain_stops_it_with_both_numbers(self) -> None:
        for held in (Decimal("0.5"), -SIZE, ZERO):
            with self.anew(held):
                bot = self.once()
                self.exchange.by_hand(held)
                self.at(101)
                began = self.clock.time
                self.assertRegex(self.stopped(bot.run), f"{held:f} .*0.01|0.01.* {held:f} ")
                self.assertTrue(120 <= self.clock.time - began < 150)
                self.stopped(self.once, 110)
                self.assert_held(held, sent=1)
                self.assertEqual(held, Decimal(self.journal.get("exchange_position")))
                self.assertEqual(SIZE, self.journal.account().held)

    def test_every_safety_stop_is_on_disk_and_holds_after_a_restart(self) -> None:
        self.exchange.script, shown = ["lost"], self.exchange.find
        self.answers("find", None, then=ContradictionError("several orders of one id"))
        both = "the exchange holds 0.01, the journal records 0"
        self.assertIn(both, self.stopped(self.once, 100))
        self.assertIn("several orders", self.journal.get("halted"))
        self.assertEqual(SIZE, Decimal(self.journal.get("exchange_position")))
        self.exchange.find = shown
        self.assertIn("several orders", self.stopped(self.once, 101))

    def test_once_opens_at_the_next_candle_what_came_too_late_after_its_close(self) -> None:
        self.at_the_turn()
        self.delay("place", 70)
        self.once()
        self.assert_held(-SIZE)

    def test_nothing_is_opened_for_a_candle_that_ended_while_the_machine_slept(self) -> None:
        quote = self.exchange.quote
        self.delay("quote", 6 * 3600)
        self.once()
        self.assert_held(ZERO, sent=0)
        self.exchange.quote = quote  # type: ignore[method-assign]
        self.once()
        self.assert_held(-SIZE, sent=1)

    def test_adopting_takes_over_what_is_there_and_trades_on_from_it(self) -> None:
        self.exchange.by_hand(Decimal("-0.02"))
        self.stopped(self.once)
        self.once(101, adopt=True)
        close, opened = self.exchange.placed
        self.assertEqual((Decimal("0.02"), True), (close.volume, close.reduce_only))
        self.assertEqual((SIZE, SIZE), (opened.volume, self.exchange.held))

    def test_the_market_is_looked_at_anew_before_each_order(self) -> None:
        self.exchange.script, self.exchange.hang_s = ["fill", "hang"], 90.0
        quotes = self.moments("quote")
        self.until(DOWN + 2)
        _, closed, opened = self.intents()
        newest = max(moment for moment in quotes if moment <= opened.created + 1)
        self.assertGreaterEqual(newest, closed.settled - 1, "on a quote from before a long wait")

    def test_after_a_long_wait_for_the_close_the_newest_candle_says_what_to_open(self) -> None:
        self.at_the_turn("hang", hang_s=125.0)
        original = self.exchange.close
        self.exchange.close = lambda number: original(number) + 100 * max(0, number - DOWN)
        self.until(DOWN + 4)
        sides = [order.side for order in self.exchange.placed]
        self.assertEqual([Side.BUY, Side.SELL, Side.BUY], sides, "a short on a candle long gone")
        self.assert_held(SIZE)

    def test_nothing_is_sent_while_the_end_of_an_order_is_not_known(self) -> None:
        def check(order: Order, deadline: int) -> None:
            (intent,) = self.journal.open_intents()
            self.assertEqual((order, deadline), (intent.order, intent.deadline))
            self.assertLessEqual(deadline - self.clock.time, 15)

        self.exchange.on_place = check
        self.exchange.script = ["hang", "lost", "never", "half", "refuse", "unsent", "hang"]
        self.until(130)
        self.assertGreater(len(self.exchange.placed), 6)


class TestCloseOnly(BotTest):
    def test_what_is_held_is_closed_by_the_rule_nothing_is_opened_and_then_it_ends(self) -> None:
        for changes, reason in (({}, "it costs too much"), ({"size": SIZE / 1000}, "too small")):
            with self.anew(reason):
                self.once(105)
                bot = self.bot(mock.Mock(return_value=reason), **changes)
                with self.assertRaisesRegex(ConfigError, f"nothing is held any more, and {reason}"):
                    bot.run()
                self.assertLess(self.clock.time, T0 + 60 * (DOWN + 3))
                self.assert_held(ZERO, sent=2)

    def test_a_raised_smallest_cost_does_not_keep_it_from_closing(self) -> None:
        self.once(105)
        self.exchange.pair_rules = rules(costmin="600")
        self.until(DOWN + 1)
        self.assert_held(ZERO)

    def test_an_obstacle_that_passes_lets_it_open_again_within_an_hour(self) -> None:
        self.exchange.rise = 10_000
        self.once(100)
        check = mock.Mock(return_value="the pair has no margin")
        bot = self.run_for(900, self.bot(check))
        self.assertIn("closing only", " ".join(active_alerts(self.journal)))
        check.return_value = None
        self.run_for(5400, bot)
        self.assertEqual([], active_alerts(self.journal))

    def test_a_check_that_cannot_be_made_again_keeps_nothing_from_being_looked_after(self) -> None:
        self.once(100)
        check = mock.Mock(side_effect=["no margin", *[UnansweredError("timed out")] * 99])
        crash = self.clock.time + 3700
        self.exchange.close = lambda _: Decimal(30_000 if self.clock.time > crash else 50_000)
        self.clock.end = crash + 900
        self.assertIn("max_loss", self.stopped(self.bot(check, limits=LIMITS).run))

    def test_one_that_has_passed_when_it_is_flat_does_not_end_it(self) -> None:
        self.once(100)
        bot = self.bot(lambda bot: "no margin" if bot.journal.account().held else None)
        self.until(DOWN + 3, bot)
        self.assert_held(-SIZE)


class TestFlatten(BotTest):
    def setUp(self) -> None:
        super().setUp()
        self.once()

    def test_what_is_held_is_closed_whatever_its_orders_meet_and_the_bot_halted(self) -> None:
        for script in ("", "half lost unsent", "refuse refuse fill"):
            with self.anew(script):
                self.exchange.script = script.split()
                self.flatten()
                self.assert_held(ZERO)
                self.assertTrue(self.exchange.placed[-1].reduce_only)
                self.assertIn("asked to", self.stopped(self.once, 101))

    def test_flattening_while_flat_sends_nothing_and_halts(self) -> None:
        self.flatten()
        self.flatten()
        self.assert_held(ZERO, sent=2)
        self.stopped(self.once, 101)

    def test_between_two_refusals_there_is_a_pause(self) -> None:
        self.exchange.script = ["later", "later", "unsent"]
        self.flatten()
        self.assert_held(ZERO)
        first, second, third, last = (intent.created for intent in self.intents()[1:])
        self.assertGreaterEqual(min(second - first, third - second), 15)
        self.assertGreaterEqual(last - third, 2)

    def test_an_exchange_that_falls_silent_leaves_it_halted_and_says_so(self) -> None:
        for method in ("position", "server_time"):
            with self.anew(method):
                self.fails(method)
                said = self.stopped(partial(self.flatten, patience_s=30.0))
                self.assertRegex(said, f"{SIZE} .*may still be held")
                self.assertIn("asked to", self.journal.get("halted"))

    def test_one_that_ends_with_an_unresolved_order_names_it(self) -> None:
        self.at_the_turn("never")
        self.fails("find")
        self.run_for(60)
        (intent,) = self.journal.open_intents()
        self.assertRegex(self.stopped(self.flatten), f"besides what order {intent.id}")

    def test_a_contradiction_met_while_flattening_is_on_disk(self) -> None:
        self.fails("find", error=ContradictionError("several orders"))
        self.stopped(self.flatten)
        self.assertIn("several orders", self.stopped(self.once, 101))

    def test_a_request_outlasts_the_process_that_it_was_made_to(self) -> None:
        self.answers("server_time", Killed())
        self.assertRaises(Killed, self.flatten)
        self.assertIn("asked to", self.stopped(self.once, 101))
        self.assert_held(ZERO)

    def test_patience_begins_with_the_first_lost_answer_not_with_the_work_before_it(self) -> None:
        bot, began = self.bot(), self.clock.time
        self.exchange.script, self.exchange.hang_s = ["hang"], 100.0
        self.answers("position", None, then=UnansweredError("timed out"))
        self.stopped(self.flatten, bot, 30.0)
        self.assertGreater(self.clock.time - began, 100 + 30)


class TestAdoption(BotTest):
    def test_an_order_that_is_still_open_is_not_given_up(self) -> None:
        self.at_the_turn()
        self.shows(lambda found: found._replace(status=OrderStatus.OPEN, volume=ZERO))
        self.assertIn("still open", self.stopped(self.once))
        self.clock.time += 600
        self.assertIn("still open", self.stopped(self.adopt))
        self.assertEqual(1, len(self.journal.open_intents()))

    def test_what_an_order_of_a_lost_journal_traded_is_not_booked_again_when_found(self) -> None:
        self.once(100)
        self.begin_journal()
        self.at(100, 20)
        self.journal.put(created=int(self.clock.time))
        self.adopt()
        self.at(100, 30)
        self.once(size=2 * SIZE)
        self.assertEqual(SIZE, self.journal.account().held)

    def test_an_adoption_of_nothing_covers_the_order_of_a_lost_journal_too(self) -> None:
        self.once(105)
        self.exchange.by_hand(ZERO)
        self.begin_journal()
        self.clock.time += 10
        self.once(adopt=True)
        self.assertEqual(ZERO, self.journal.account().held)

    def test_several_orders_of_one_id_are_given_up_when_a_person_has_looked(self) -> None:
        self.at_the_turn()
        self.fails("find", error=ContradictionError("several orders"))
        self.stopped(self.once)
        self.clock.time += 3600
        self.adopt()
        self.assertEqual([], self.journal.open_intents())

    def test_they_are_waited_for_while_one_may_still_be_executed(self) -> None:
        bot = self.at_the_turn()
        self.fails("find", error=ContradictionError("several orders"))
        self.stopped(bot.run)
        began = self.clock.time
        self.adopt()
        self.assertGreater(self.clock.time - began, 120)
        self.assertEqual([], self.journal.open_intents())

    def test_what_is_adopted_is_what_a_person_has_seen(self) -> None:
        for leverage, view, nothing in ((2, "position", Position()), (0, "balances", {})):
            with self.anew(leverage=leverage):
                bot = self.once(105)
                self.answers(view, then=nothing)
                self.assertRaises(LaterError, adopt, bot, SIZE, SIZE)
                self.assertEqual(SIZE, self.journal.account().held)

    def test_max_loss_counts_from_the_adoption(self) -> None:
        self.plan = self.plan._replace(limits=LIMITS)
        self.once(105)
        self.journal.put(pnl_at_resume=Decimal(1000))
        self.adopt()
        self.once(107)
        self.assert_held(SIZE)

    def test_what_the_usual_candles_leave_open_is_previewed_as_it_will_be_decided(self) -> None:
        self.exchange.close = lambda number: Decimal(50_000 + min(number, 40))
        self.at(200)
        bot = self.bot()
        bot.market.learn()
        self.assertIn("buy 0.01 XBT at market", " ".join(adoption(bot)[1]))
        self.once()
        self.assert_held(SIZE)


class TestDeath(BotTest):
    def test_what_a_dead_process_opened_is_booked_at_the_account_s_own_rates(self) -> None:
        self.answers("find", None, Killed())
        self.assertRaises(Killed, self.once, 105)
        self.once(106, self.bot(lambda bot: bot.market.read_rates()))
        bought = self.intents()[0]
        self.assert_held(SIZE, sent=1)
        fee = (bought.cost * Decimal("0.00025")).quantize(Decimal("0.00001"))
        self.assertEqual(fee, self.journal.account().margin_fees)

    def test_after_a_death_at_any_call_each_step_has_one_executed_order_to_target(self) -> None:
        act = partial(Bot.run, once=True)
        for moment in self.deaths(self.at_the_turn, act, 1 if IS_LONG else 11):
            with self.subTest(moment):
                self.clock.time += 3
                self.until(DOWN + 6)
                self.assert_settled(-SIZE)
                executed = [e.volume for e in self.exchange.executions.values() if e.volume]
                self.assertEqual([SIZE] * 3, executed)
        self.assertGreater(moment, 100)

    @slow
    def test_a_death_while_adopting_does_not_leave_the_bot_stuck(self) -> None:
        def prepare() -> None:
            self.once()
            self.exchange.by_hand(Decimal("-0.02"))
            self.at(101)

        def act(bot: Bot) -> None:
            self.adopt(bot)
            bot.run(once=True)

        for moment in self.deaths(prepare, act, 1):
            with self.subTest(moment):
                self.once(105, adopt=True)
                self.assert_held(SIZE)
        self.assertGreater(moment, 20)


class TestWhatLasts(BotTest):
    """Troubles that one look cannot tell from passing ones."""

    def test_a_key_that_may_not_trade_any_more_ends_with_77_though_it_may_read(self) -> None:
        self.once(100)
        self.exchange.script = ["stop"] * 99
        self.clock.end = T0 + 60 * (DOWN + 240)
        self.stopped(self.bot().run, code=77)
        self.assertLess(len(self.exchange.placed), 7)

    def test_one_refused_look_and_then_an_outage_is_waited_for(self) -> None:
        self.once(100)
        self.exchange.script = ["never"]
        self.answers("find", RefusedError("EQuery:glitch"), then=UnansweredError("timed out"))
        self.until(DOWN + 180)
        self.assertIsNone(self.intents()[1].outcome)

    def test_one_empty_answer_while_an_absence_is_proven_is_asked_about_again(self) -> None:
        self.once(100)
        self.exchange.script = ["never"]
        told, lies = self.exchange.position, iter([Position()])

        def position() -> Position:
            return next(lies, told()) if self.journal.open_intents() else told()

        self.exchange.position = position
        self.until(DOWN + 10)
        self.assert_held(-SIZE)

    def test_once_does_not_wait_for_an_objection_that_stays(self) -> None:
        self.exchange.equity = Decimal(10)
        began = self.clock.time
        self.once()
        self.assertLess(self.clock.time - began, 130)
