"""A live bot on the sandbox, and then its books against the exchange's: equal to the cent.

Long runs, and long candles with fees in coins, are for .ci/run.
"""

import contextlib
import sqlite3
import unittest
from collections.abc import Callable
from decimal import Decimal as D
from typing import Any
from unittest import mock

from krakenbot import handover
from krakenbot.accounting import Ledger
from krakenbot.bot import Bot, Event
from krakenbot.clock import StopRequestedError
from krakenbot.commands.history import ROWS
from krakenbot.commands.preview import adoption
from krakenbot.commands.report import report_of
from krakenbot.commands.status import read_status
from krakenbot.config import Config
from krakenbot.handover import adopt, held_of
from krakenbot.journal import Journal
from krakenbot.journal_file import prepare
from krakenbot.kraken.spot import Spot
from krakenbot.model import Execution, OrderStatus, Purpose, Secret, Side
from krakenbot.records import Intent, Outcome
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.books import Account
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from tests import IS_LONG
from tests.clients import signing
from tests.clocks import StandingClock
from tests.logs import silence_module
from tests.markets import short_histories
from tests.simulation.test_contract import Direct, plan_of_length

START = 1_791_504_000.0
CENT = D("0.01")
# Minutes of a candle, how many candles, and whether margin fees are taken in coins.
SHORT = ((1, 30, False), (240, 4, True), (240, 3, False))
LONG = tuple((*run, coins) for run in ((1, 1000), (240, 80), (1440, 30)) for coins in (False, True))


def setUpModule() -> None:
    short_histories(10)  # Some of its candles are days.
    silence_module()


class CoinAccount(Account):
    """Pays opening fees and rollovers in the base currency, in rows of the ledger of their own."""

    def _book(self, now: float, kind: str, refid: int, asset: str, amount: D, fee: D) -> None:
        (position,) = self.positions.values()
        opened = [lot for lot in position.lots if lot.serial == refid and kind == "margin"]
        for_loan = sum((round(lot.cost * lot.rate, 5) for lot in opened), D(0))
        if kind == "rollover":
            for_loan = fee
        if fee > for_loan:
            super()._book(now, kind, refid, asset, amount, fee - for_loan)
        if for_loan:
            coins = round(for_loan / position.price, 10)
            super()._book(now, kind, refid, position.rules.base, D(0), coins)


class World(StandingClock):
    """A sandbox with a bot in live mode, on one simulated clock."""

    def __init__(
        self, interval_s: int, *, size: D = D("0.05"), length: int = 5, **account: Any
    ) -> None:
        super().__init__(START)
        self.api = SandboxApi(
            Feed("random:3", START),
            lambda: self.time,
            SANDBOX_KEY,
            Secret(SANDBOX_SECRET),
            **{"balances": {"ZUSD": D(10000), "XXBT": D(1)}} | account,
        )
        client = signing(Direct(self.reached_by(self.api)), "http://127.0.0.1:1", self)
        self.spot = Spot(client, "XBTUSD", interval_s)
        self.database = prepare(sqlite3.connect(":memory:", isolation_level=None))
        self.journal = Journal(self.database)
        self.plan = plan_of_length(length, interval_s=interval_s, size=size)
        self.on_event: Callable[[Event], object] = lambda event: None
        self.start()

    def reached_by(self, api: SandboxApi) -> Any:
        """Return what stands between the bot and the exchange."""
        return api

    def start(self) -> None:
        """Begin a new process, in which nothing has been read yet."""
        parts = (self.plan, self.spot, self.journal, self, "money")
        self.bot = Bot(*parts, lambda event: self.on_event(event))

    def set(self, exchange_time: float) -> None:
        self.time = max(self.time, exchange_time)

    def run(self, seconds: float) -> None:
        self.end = self.time + seconds
        with contextlib.suppress(StopRequestedError):
            self.bot.run()
        self.end = float("inf")

    def held(self) -> D:
        """Return the position at the exchange."""
        position = self.api.account.positions.get("XXBTZUSD")
        return position.volume if position else D(0)

    def hands(self, side: str, volume: str) -> None:
        """Somebody else trades on margin."""
        params = {"pair": "XBTUSD", "side": side, "volume": volume, "leverage": 2}
        self.api.controls["position"](params)

    def price(self, price: D) -> None:
        self.api.controls["price"]({"pair": "XBTUSD", "price": price})

    def ledger(self) -> dict[str, D]:
        """Return what the exchange took, by kind and asset."""
        total: dict[str, D] = {}
        for entry in self.api.account.ledger:
            key = f"{entry.type} {entry.asset}"
            total[key] = total.get(key, D(0)) + entry.fee
        return total


class Died(BaseException):
    """The process dies here."""


class TestBooks(unittest.TestCase):
    def world(self, interval_s: int = 60, *, coin_fees: bool = False) -> World:
        world = World(interval_s)
        if coin_fees:
            world.api.account.__class__ = CoinAccount
        self.addCleanup(world.database.close)
        return world

    def life(self, minutes: int, candles: int, *, coin_fees: bool = False) -> World:
        world = self.world(minutes * 60, coin_fees=coin_fees)
        world.run(candles * minutes * 60 + 30)
        self.assertGreater(world.journal.account().fees, 20)
        return world

    def check_all_show_the_same(self, world: World) -> None:
        """Hold status, history and report against each other."""
        account, status = world.journal.account(), read_status(world.journal)
        self.assertAlmostEqual(status["ledger_read"], world.time, delta=300)
        for name in ("fees", "margin_fees", "rollover"):
            self.assertEqual(D(status[name]), getattr(account, name), name)
        orders = list(ROWS["orders"](world.journal, 0))
        self.assertEqual(sum(row["fee"] for row in orders), account.fees)
        self.assertEqual(sum(row["margin_fee"] for row in orders), account.margin_fees)
        costs = dict(report_of(Config(), world.journal).costs)
        names = {"trade fees": "fees", "margin fees": "margin_fees", "rollover": "rollover"}
        for shown, name in names.items():
            self.assertEqual(costs[shown], -getattr(account, name))

    def check_ledger_in_quote(self, world: World) -> None:
        account, charged = world.journal.account(), world.ledger()
        trade_fees = sum(D(row["fee"]) for row in world.api.trades.values())
        self.assertEqual(account.fees, trade_fees)
        self.assertEqual(account.margin_fees, charged["margin ZUSD"] - trade_fees)
        self.assertEqual(account.rollover, charged.get("rollover ZUSD", 0))
        price = world.spot.quote().mid
        equity = world.api.account.summary("ZUSD").equity
        self.assertLess(abs(10000 + account.pnl(price) - equity), CENT)

    def check_ledger_in_coins(self, world: World) -> None:
        account, charged = world.journal.account(), world.ledger()
        self.assertEqual(account.fees, charged["margin ZUSD"])
        taken = world.database.execute(
            "SELECT kind, sum(charged) FROM charges WHERE asset = 'XXBT' GROUP BY kind"
        )
        kinds = {"opening": "margin XXBT", "rollover": "rollover XXBT"}
        for kind, amount in taken:
            self.assertAlmostEqual(float(charged[kinds[kind]]), amount, 10)
        series = world.api.markets.series(world.spot.rules())
        worth = sum(
            entry.fee * series.bar(int(entry.time) // 60 * 60, 60, world.time).open
            for entry in world.api.account.ledger
            if entry.asset == "XXBT"
        )
        booked = account.margin_fees + account.rollover
        self.assertAlmostEqual(float(booked), float(worth), delta=float(worth) / 100)

    def read(self, world: World) -> None:
        world.time += 300
        self.assertEqual("", Ledger(world.spot, world.journal, world).read(world.spot.rules()))

    def test_status_history_report_and_ledger_are_equal_to_the_cent(self) -> None:
        for minutes, candles, coin_fees in LONG if IS_LONG else SHORT:
            with self.subTest(minutes=minutes, coin_fees=coin_fees):
                world = self.life(minutes, candles, coin_fees=coin_fees)
                self.read(world)
                self.check_all_show_the_same(world)
                if coin_fees:
                    self.check_ledger_in_coins(world)
                else:
                    self.check_ledger_in_quote(world)

    def test_the_ledger_s_word_replaces_a_wrong_assumption_within_ten_minutes(self) -> None:
        world = self.world(86400)
        world.api.markets.methods["Assets"] = lambda p: {p["asset"]: {}}
        world.run(60)
        wrong, charged = world.journal.account().margin_fees, world.ledger()["margin ZUSD"]
        world.run(600)
        account = world.journal.account()
        self.assertNotEqual(wrong, account.margin_fees)
        self.assertEqual(charged, account.fees + account.margin_fees)

    def test_what_is_assumed_is_a_warning_for_as_long_as_it_holds(self) -> None:
        world = self.world()

        def odd(p: dict[str, str]) -> object:
            return {p.get("asset", "odd"): {}}

        with (
            mock.patch.dict(world.api.markets.methods, Assets=odd),
            mock.patch.dict(world.api.private_api.methods, TradeVolume=odd),
        ):
            world.run(60)
        warnings = " ".join(read_status(world.journal)["warnings"])
        self.assertIn("a fee of 0.8 % is used", warnings)
        self.assertIn("0.02 %", warnings)
        world.run(3900)
        self.assertEqual([], read_status(world.journal)["warnings"])

    def test_rates_that_were_not_answered_are_assumed_for_minutes_only(self) -> None:
        world = self.world()
        methods = world.api.private_api.methods
        answer, lost = methods["TradeVolume"], list[float]()

        def lost_at_first(p: dict[str, str]) -> object:
            if world.time > START + 60:
                return answer(p)
            lost.append(world.time)
            return None

        with mock.patch.dict(methods, TradeVolume=lost_at_first):
            world.run(400)
        self.assertTrue(lost)
        self.assertEqual([], read_status(world.journal)["warnings"])

    def test_what_keeping_an_adopted_position_costs_is_booked(self) -> None:
        world = self.world()
        world.hands("buy", "0.05")
        world.bot.market.learn()
        self.adopt(world, D(0))
        self.read(world)
        world.time += 5 * 14400 + 30
        self.read(world)
        rollovers = world.ledger()["rollover ZUSD"]
        self.assertEqual((rollovers > 4, rollovers), (True, world.journal.account().rollover))

    def test_nothing_is_adopted_before_its_rollovers_are_known_to_be_its_own(self) -> None:
        world = self.world()
        world.hands("buy", "0.05")
        world.bot.market.learn()
        with mock.patch.object(handover, "own_trades", side_effect=Died):
            self.assertRaises(Died, self.adopt, world, D(0))
        self.assertEqual(0, world.journal.account().held)

    def test_an_order_that_was_adopted_costs_what_the_ledger_shows_all_the_same(self) -> None:
        world = self.world()
        world.api.markets.methods["Assets"] = lambda p: {p["asset"]: {}}  # Rates are assumed.
        world.run(20)
        self.adopt(world, world.journal.account().held)
        world.run(900)
        self.assertEqual(self.books(world), world.api.account.fees["ZUSD"])

    def test_what_someone_else_has_closed_counts_at_the_price_of_that_time(self) -> None:
        world = self.world()
        world.run(60)
        held, price = world.journal.account().held, world.spot.quote().mid + 5000
        world.price(price)
        side = "sell" if held > 0 else "buy"
        world.hands(side, "0.02")
        self.adopt(world, held)
        self.assertEqual(price * D("0.02"), world.journal.intents()[-1].cost)

    def test_what_someone_else_has_added_counts_at_the_price_of_that_part(self) -> None:
        for seconds in (60, 600):
            with self.subTest(seconds=seconds):
                self.check_addition(seconds)

    def check_addition(self, seconds: int) -> None:
        """Let the bot run so long, somebody add to its position, and a new process adopt that."""
        world = self.world()
        world.run(seconds)
        world.start()
        world.bot.market.learn()
        held = world.journal.account().held
        quote = world.spot.quote()
        world.price(quote.mid + 5000)
        side, quote = "buy" if held > 0 else "sell", world.spot.quote()
        world.hands(side, "0.02")
        with mock.patch.object(Spot, "charges", return_value=[]):  # The ledger is late.
            adoption(world.bot)
        self.adopt(world, held)
        price = quote.ask if held > 0 else quote.bid
        cost = world.journal.intents()[-1].cost
        self.assertAlmostEqual(float(price), float(cost / D("0.02")), delta=0.1)

    def test_what_is_adopted_in_place_of_a_closed_position_counts_at_its_own_price(self) -> None:
        world = self.world()
        world.price(D(60000))
        world.hands("buy", "0.02")
        bought = Execution("O1", OrderStatus.CLOSED, D("0.01"), D(500), D(0))
        order = Intent("x", 60, 1, Purpose.OPEN, Side.BUY, D("0.01"), 2, False, "", D(0), 1, 16)
        world.journal.write(order)
        world.journal.conclude(order, Outcome.CLOSED, 2, bought)
        world.bot.market.learn()
        self.adopt(world, D("0.01"))
        self.assertEqual(D("600.001"), world.journal.intents()[-1].cost)

    def adopt(self, world: World, recorded: D) -> None:
        adopt(world.bot, recorded, held_of(world.bot).volume)

    def books(self, world: World) -> D:
        account = world.journal.account()
        return account.fees + account.margin_fees

    def test_what_an_order_cost_is_known_the_moment_it_is_done(self) -> None:
        world = self.world()
        seen: list[tuple[D, D]] = []

        def see(event: Any) -> None:
            if event.kind == "fill":
                account = world.journal.account()
                entries = [x for x in world.api.account.ledger if x.type != "rollover"]
                seen.append((account.fees + account.margin_fees, sum(x.fee for x in entries)))

        world.on_event = see
        world.run(1200)
        self.assertGreater(len(seen), 3)
        for booked, charged in seen:
            self.assertEqual(booked, charged)
