"""Backtest: every fill, fee and value equals what the live tick makes of the same candles."""

import os
import random
import unittest
from collections.abc import Sequence
from decimal import Decimal as D
from functools import partial
from pathlib import Path
from unittest import mock

from krakenbot import bot
from krakenbot import orders as orders_module
from krakenbot.accounting import Ledger
from krakenbot.backtest import engine as backtest
from krakenbot.backtest.columns import Columns, candles_of
from krakenbot.backtest.engine import Costs, Replay
from krakenbot.backtest.files import read
from krakenbot.backtest.result import Fill, Result
from krakenbot.bot import WAKE_DELAY_S, Bot
from krakenbot.decision import Plan
from krakenbot.errors import StopError
from krakenbot.journal_file import open_journal
from krakenbot.kraken.spot import Spot
from krakenbot.model import Candle, MarginRates, Quote, SystemStatus
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.risk import Limits
from krakenbot.simulated.listing import PAIRS
from krakenbot.simulated.paper import PaperClient
from krakenbot.strategy import sma_cross, sma_slope
from tests import IS_LONG, slow
from tests.clocks import StandingClock
from tests.logs import silence_module
from tests.markets import Answers


def setUpModule() -> None:
    silence_module()


DATA = os.environ.get("TEST_DATA_KRAKEN")
DAYS = float(os.environ.get("TEST_DAYS", "0.15"))
ADDED = ("volume", "cost", "fee")
NOT_BOOKS = {"positions": None, "ledger": None}
LONG, SHORT = D("0.00025"), D("0.0001")
RATES = MarginRates(LONG, SHORT)
XBTUSD = parse_rules("XXBTZUSD", PAIRS["XXBTZUSD"])
USDTUSD = parse_rules("USDTZUSD", PAIRS["USDTZUSD"])


class World(StandingClock):
    """Market and clock in one, over columns of candles."""

    def __init__(self, columns: Columns, rules: PairRules) -> None:
        self.columns = columns
        self.pair_rules = rules
        super().__init__(float(columns.times[0]))
        self.tick = D(1).scaleb(-rules.pair_decimals)
        self.rows = list(candles_of(columns))

    def server_time(self) -> int:
        return int(self.time)

    def market_status(self) -> SystemStatus:
        return SystemStatus("online")

    def margin_rates(self) -> MarginRates:
        return RATES

    def rules(self) -> PairRules:
        return self.pair_rules

    known_rules = rules

    @property
    def running(self) -> int:
        return int(self.time - self.columns.times[0]) // self.columns.interval_s

    def candles(self, since: int | None) -> Sequence[Candle]:
        running = self.running
        begin = 0 if since is None else (since - self.rows[0].time) // self.columns.interval_s
        return self.rows[max(begin, running - 720, 0) : running + 1]

    def quote(self) -> Quote:
        price = self.rows[self.running].open
        return Quote(price - self.tick, price + self.tick)


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
    strategy, needed = partial(sma_slope, length=length), length + 1
    if name == "sma-cross":
        strategy, needed = partial(sma_cross, short=5, long=20), 20
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
    ) -> Result:
        world = World(columns, rules)
        journal = open_journal(None)
        self.addCleanup(journal.close)
        answers = Answers(world, PAIRS[rules.pair])
        client = PaperClient(answers, world, world, journal, fee_rate=D(fee), balance=D(balance))
        exchange = Spot(client, rules.altname, columns.interval_s)
        live_bot = Bot(wish, exchange, journal, world, "test")
        live_bot.market.learn()
        live_bot.market.read_rates()
        halted, ledger = None, Ledger(exchange, journal, world)
        for number in range(len(columns.times) - 1):
            world.time = columns.times[number + 1] + WAKE_DELAY_S
            try:
                live_bot.tick()
                ledger.read(rules, 100)
            except StopError as error:
                halted = error
                break
        paid = Costs(D(fee), D(balance), margin_rates={rules.quote: LONG, rules.base: SHORT})
        replay = Replay(wish, rules, paid, keep=None)
        lean = Replay(wish, rules, paid)
        for part in split(columns, (500, 37, 1, 2, 999)):
            replay.feed(part)
            lean.feed(part)
        self.assertEqual(vars(lean.account) | NOT_BOOKS, vars(replay.account) | NOT_BOOKS)
        lots = [lot[1:] for lot in replay.position.lots]
        self.assertEqual([lot[1:] for lot in lean.position.lots], lots)
        done = [one for one in journal.intents() if one.executed]
        live = [(one.created, one.side.sign, one.executed, one.cost, one.fee) for one in done]
        self.assertEqual(live, orders(replay))
        ended = replay.record.ended
        self.assertEqual(halted is not None, ended is not None, (halted, ended))
        account = client.private_api.account
        for name in ("balances", "fees", "rollovers", "realized"):
            self.assertEqual(getattr(account, name), getattr(replay.account, name), name)
        if halted is None:
            self.assertEqual([lot[1:] for lot in account.position(rules).lots], lots)
            replay.position.price = world.rows[world.running].open
            quote = rules.quote
            self.assertEqual(account.summary(quote).equity, replay.account.summary(quote).equity)
            paid = journal.account().costs
            charged = sum(replay.account.fees.values(), D(0))
            self.assertEqual(paid, charged + sum(replay.account.rollovers.values(), D(0)))
        result = replay.result()
        self.assertEqual(lean.result(), result)
        return result

    def test_a_month_of_bitcoin_is_equal_to_the_last_digit(self) -> None:
        columns = real("2023-03/XBTUSD_1.csv.gz", 60, DAYS)
        result = self.compare(columns, XBTUSD, plan(size="0.01"), balance="20000")
        self.assertGreater(result.turns, 65 * DAYS)

    def test_a_month_of_many_ties_is_equal_to_the_last_digit(self) -> None:
        columns = real("2023-03/USDTUSD_1.csv.gz", 60, DAYS)
        result = self.compare(columns, USDTUSD, plan(size="100", one_order=True), fee="0.002")
        self.assertGreater(result.turns, 32 * DAYS)

    def test_years_of_hours_with_rollovers_are_equal(self) -> None:
        columns = real("2023Q1/XBTUSD_60.csv", 3600, 10_000 if IS_LONG else 5)
        for leverage in (0, 2, 5) if IS_LONG else (2,):
            with self.subTest(leverage=leverage):
                wish = plan(3600, leverage=leverage, entry_now=True)
                result = self.compare(columns, XBTUSD, wish, fee="0.001")
                self.assertEqual(result.rollover > 0, leverage > 0)

    def test_random_walks_with_every_option_are_equal(self) -> None:
        endings = set()
        for seed in (*range(8), 29, 31, 38) if IS_LONG else (29,):
            with self.subTest(seed=seed):
                columns, wish, balance = wild(seed)
                result = self.compare(columns, XBTUSD, wish, balance=balance, fee="0.002")
                endings.add((result.ended or "none").split()[0])
        if IS_LONG:
            self.assertLessEqual({"none", "liquidated", "the"}, endings)

    @slow
    def test_the_limit_of_orders_is_kept_by_many_turns_at_once_and_waited_for(self) -> None:
        minutes = 3000 if IS_LONG else 1600
        columns = flat(*(9000 + at // 2 % 2 for at in range(minutes)))
        for limit in (2, 7) if IS_LONG else (7,):
            with self.subTest(limit=limit):
                wish = plan(entry_now=True, length=2, orders_max=limit, one_order=limit > 6)
                with mock.patch.object(backtest, "objection", wraps=backtest.objection) as asked:
                    result = self.compare(columns, XBTUSD, wish, fee="0.0001")
                self.assertIn("in the last 24 h", str(result.refused_reason))
                self.assertLess(asked.call_count, 2 * result.orders + 2 * minutes / 60)

    def test_what_is_too_dear_is_bought_as_soon_as_it_is_not(self) -> None:
        columns = flat(*range(9070, 9100), *range(9100, 4000, -50))
        for leverage in (0, 2):
            with self.subTest(leverage=leverage):
                wish = plan(size="1", leverage=leverage, entry_now=True, level_min=0)
                result = self.compare(columns, XBTUSD, wish, balance=str(6000 // max(leverage, 1)))
                self.assertIn("needed", str(result.refused_reason))
                self.assertEqual(result.orders > 0, leverage > 0)

    def test_no_order_is_refused_where_none_is_wanted(self) -> None:
        columns = flat(*range(9000, 9010), *range(9010, 8990, -1), *range(8990, 9000), *[8970] * 20)
        wish = plan(leverage=0, length=2, entry_now=True, orders_max=1)
        result = self.compare(columns, XBTUSD, wish)
        self.assertEqual((result.orders, result.refused), (2, 8))

    def test_a_close_below_the_smallest_order_counts_for_nothing(self) -> None:
        prices = *range(5100, 5110), *range(4999, 4980, -1), 5001, 4999, 5001, 5100
        columns = flat(*prices, interval_s=3600)
        wish = plan(3600, size="0.0001", length=2, entry_now=True, orders_max=9)
        result = self.compare(columns, XBTUSD, wish)
        self.assertEqual((result.ended, result.orders), (None, 5))
        self.assertEqual(result.refused_reason, "EOrder:Cost minimum not met")

    def test_a_long_that_fell_far_is_closed_first_when_its_margin_is_too_low(self) -> None:
        columns = flat(10000, 10000, 10001, 10001, 2000, 2000, 2000)
        for size, refused in (("0.95", 1), ("0.85", 0)):
            wish = plan(size=size, length=2, entry_now=True, leverage=5, one_order=True)
            result = self.compare(columns, XBTUSD, wish, fee="0")
            self.assertEqual((result.orders, result.refused), (2 + refused, refused))

    def test_max_loss_closes_whatever_the_spread(self) -> None:
        columns = flat(21, 22, 23, 24, 25, 25, 15, 15, 15)
        opens, closes = columns.opens, [*columns.opens[1:], 15.0]
        highs, lows = list(map(max, opens, closes)), list(map(min, opens, closes))
        columns = columns._replace(highs=highs, lows=lows, closes=closes)
        wish = plan(size="20", length=2, entry_now=True, max_loss="60")
        result = self.compare(columns, XBTUSD, wish)
        self.assertIn("max_loss is 60", str(result.ended))

    def test_max_loss_needs_more_than_the_middle_of_a_wide_spread(self) -> None:
        for max_loss in ("160", "165"):
            wish = plan(size="20", length=2, entry_now=True, max_loss=max_loss)
            result = self.compare(flat(24, 24, 25, 25, 17, 17, 17), XBTUSD, wish)
            self.assertIn(f"max_loss is {max_loss}", str(result.ended))

    def test_max_loss_is_noticed_where_the_next_order_cannot_be_paid(self) -> None:
        columns = flat(10000, 10000, 10001, 9999, 9999, 9999, 9999, interval_s=86400)
        wish = plan(86400, size="1", length=2, entry_now=True, max_loss="10", level_min=0)
        result = self.compare(columns, XBTUSD, wish, balance="5010", fee="0")
        self.assertIn("max_loss is 10", str(result.ended))
        self.assertIn("are needed", str(result.refused_reason))

    def test_a_rollover_during_the_pause_of_max_loss_is_paid(self) -> None:
        columns = flat(100, 100, 101, 101, 90, 90, 90, interval_s=14400)
        wish = plan(14400, size="1", length=2, entry_now=True, max_loss="10")
        result = self.compare(columns, XBTUSD, wish, fee="0")
        self.assertEqual(result.rollover, D("0.02528"))


class TestSameConstants(unittest.TestCase):
    def test_the_replay_waits_and_gives_up_as_the_bot_does(self) -> None:
        self.assertEqual(backtest.WAKE_DELAY_S, bot.WAKE_DELAY_S)
        self.assertEqual(backtest.ROUNDS_MAX, bot.ROUNDS_MAX)
        self.assertEqual(backtest.LOSS_PAUSE_S, bot.LOSS_PAUSE_S)
        self.assertEqual(backtest.UNFILLED_MAX, orders_module.UNFILLED_MAX)


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
    times = range(time, time + 700 * interval_s, interval_s)
    columns = Columns(interval_s, times, opens, highs, lows, closes, [1.0] * 700)
    return columns, wish, dice.choice(("4000", "1200", "9000"))


def flat(*prices: float, interval_s: int = 60) -> Columns:
    """Return candles that each have one price."""
    one, begin = list(map(float, prices)), 100_000 * interval_s
    times = range(begin, begin + interval_s * len(one), interval_s)
    return Columns(interval_s, times, one, one, one, one, one)


def orders(replay: Replay) -> list[tuple[object, ...]]:
    """Return the fills, those of one order added up, without liquidations."""
    fills = [fill for trip in replay.record.trips for fill in (trip.entry, trip.exit)]
    fills += [replay.record.entry] if replay.record.entry else []
    merged: dict[int, Fill] = {}
    for one in fills:
        if one.order in merged:
            trade, was = one.trade, merged[one.order].trade
            added = {name: getattr(trade, name) + getattr(was, name) for name in ADDED}
            one = one._replace(trade=trade._replace(**added))
        if one.reason != "liquidated":
            merged[one.order] = one
    return [
        (one.time, one.direction, one.trade.volume, one.trade.cost, one.trade.fee)
        for one in merged.values()
    ]


def split(columns: Columns, sizes: Sequence[int]) -> list[Columns]:
    parts, begin, turn = [], 0, 0
    while begin < len(columns.times):
        end = begin + sizes[turn % len(sizes)]
        parts.append(columns.cut(begin, end))
        begin, turn = end, turn + 1
    return parts


def real(name: str, interval_s: int, days: float = 10_000) -> Columns:
    if not DATA:
        raise unittest.SkipTest("TEST_DATA_KRAKEN is not set")
    path, count = Path(DATA) / "candles" / "ohlcvt" / name, int(days * 86400 // interval_s)
    parts = read([path], interval_s, [])
    found = next(parts)
    while len(found.times) < count and (part := next(parts, None)):
        found = found.joined(part)
    return found.cut(0, count)
