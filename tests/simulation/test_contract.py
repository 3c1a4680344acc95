"""One contract for the port: paper's books and the client of a real HTTP exchange alike.

Each behaviour is held against both; the numbers are worked out by hand, so both book the same.
Then the bot itself trades the same candles on both.
"""

import json
import unittest
from collections.abc import Mapping, Sequence
from decimal import Decimal as D
from functools import partial
from itertools import repeat
from pathlib import Path
from random import Random
from typing import Any

from krakenbot.bot import Bot
from krakenbot.clock import StopRequestedError
from krakenbot.commands import views
from krakenbot.decision import Plan
from krakenbot.errors import LaterError, RefusedError, UnansweredError
from krakenbot.journal_file import open_journal
from krakenbot.kraken.client import Client
from krakenbot.kraken.spot import Spot
from krakenbot.kraken.transport import UrllibTransport
from krakenbot.model import Charge, Execution, MarginSummary, Order, OrderStatus, Side
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.simulated import http as server
from krakenbot.simulated.paper import PaperClient
from krakenbot.strategy import sma_slope
from tests import IS_LONG, slow
from tests.clients import signing
from tests.clocks import StandingClock
from tests.folders import own_folder
from tests.logs import silence_module
from tests.markets import close_after, short_histories
from tests.rules import test_decision

T0 = 1_600_000_020 // 60 * 60
ROWS = 750
HISTORY = ROWS // 3  # The sandbox opens when this many candles are over.
CANDLES, ORDERS_MIN = (200, 15) if IS_LONG else (90, 4)
BASE, QUOTE = "XXBT", "ZUSD"
BALANCE = D(10000)
CENTS = D("0.0001")  # TradeBalance and Balance show four digits of a dollar.


def setUpModule() -> None:
    short_histories()
    silence_module()


def write_candles(folder: Path, seed: int) -> Path:
    """Write minutes of a market with turns, ties and gaps of price between candles."""
    dice = Random(seed)
    lines, price = [], 500000
    for number in range(ROWS):
        opened = price + dice.choice((0, 0, 0, 40, -40))
        price = opened + dice.choice((0, -60, 60, -300, 300, 900, -900))
        high, low = max(opened, price) + dice.randrange(200), min(opened, price) - 100
        prices = ",".join(f"{units / 10:.1f}" for units in (opened, high, low, price))
        lines.append(f"{T0 + 60 * number},{prices},1.5,7\n")
    path = folder / "XBTUSD_1.csv"
    path.write_text("".join(lines))
    return path


class Direct:
    """A transport that hands requests to the sandbox without a socket."""

    def __init__(self, api: server.SandboxApi) -> None:
        self._api = api

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        target = url[url.index("/0/") :]
        answer = self._api.respond(method, target, headers, body or b"")
        return answer.status, answer.body


class World(StandingClock):
    """A sandbox over one file of candles, and the clock of all who use it; only waiting moves it.

    `account` is the sandbox's own, over HTTP; with `paper` it is simulated on the same market.
    """

    def __init__(self, path: Path, *, paper: bool, direct: bool = False) -> None:
        self.sandbox = server.Sandbox(f"csv:{path}")
        super().__init__(float(T0 + 60 * HISTORY + 30))
        self._control("clock", freeze=True, now=self.time)
        self._http = UrllibTransport(10)
        transport = Direct(self.sandbox.api) if direct else self._http
        made = Client if paper else signing
        client = made(transport, self.sandbox.url, self)
        spot = Spot(client, "XBTUSD", 60)
        if paper:
            journal = open_journal(None)
            options = {"fee_rate": FEE_RATE_ASSUMED, "balance": D(10000)}
            account = PaperClient(client, spot, self, journal, **options)
            spot = Spot(account, "XBTUSD", 60)
        self.account = spot

    def close(self) -> None:
        self.sandbox.close()

    def wait(self, seconds: float) -> None:
        self._control("clock", now=self.time + max(seconds, 0.0))
        super().wait(seconds)

    def price(self, price: str | None) -> None:
        self._control("price", pair="XBTUSD", price=price)

    def market_status(self, status: str) -> None:
        self._control("status", pair="XBTUSD", status=status)

    def _control(self, name: str, **params: object) -> None:
        body = json.dumps(params).encode()
        answer = json.loads(self.sandbox.api.respond("POST", f"/sandbox/{name}", {}, body).body)
        assert "error" not in answer, answer


class Contract:
    """What every exchange behind the port does. The price stands at 50000, a tick is 0.1."""

    paper: bool
    path: Path
    world: World

    @classmethod
    def setUpClass(cls) -> None:
        cls.path = write_candles(own_folder(cls), 1)  # type: ignore[arg-type]

    def setUp(self) -> None:
        self.world = World(self.path, paper=self.paper)
        close_after(self, self.world)  # type: ignore[arg-type]
        self.exchange = self.world.account
        self.world.price("50000")
        self.exchange.rules()
        self.began = int(self.world.time)
        self.serial = 0

    def place(
        self, side: Side, volume: str, leverage: int = 2, *, reduce_only: bool = False
    ) -> Execution:
        """Place an order and return what `find` returns of it."""
        self.serial += 1
        name = self.name(self.serial)
        order = Order(name, side, D(volume), leverage, reduce_only)
        self.exchange.place(order, int(self.world.time) + 15)
        found = self.exchange.find(name, int(self.world.time))
        assert found is not None
        return found

    def name(self, serial: int) -> str:
        return f"00000000-0000-4000-8000-{serial:012}"

    def held(self) -> tuple[D, D]:
        position = self.exchange.position()
        return position.volume, position.cost

    def summary(self) -> MarginSummary:
        return MarginSummary(*(number.quantize(CENTS) for number in self.exchange.summary()))

    def traded(self) -> Sequence[str]:
        return self.exchange.traded_orders(self.began - 5, int(self.world.time))

    def charges(self, since: int) -> Sequence[Charge]:
        return self.exchange.charges(since, int(self.world.time), repeat(0)) or ()

    def money(self) -> D:
        return self.exchange.balances()[QUOTE].quantize(CENTS)

    def test_a_long_opens_at_the_ask_and_binds_its_margin(self) -> None:
        found = self.place(Side.BUY, "0.04")
        self.assertEqual(found.status, OrderStatus.CLOSED)
        self.assertEqual((found.volume, found.cost), (D("0.04"), D("2000.004")))
        self.assertEqual(found.fee, D("16.00003"))
        self.assertEqual(self.held(), (D("0.04"), D("2000.004")))
        (charge,) = self.charges(self.began - 5)
        self.assertEqual(charge.order_id, found.exchange_order_id)
        self.assertEqual((charge.cost, charge.fee), (D("2000.004"), D("16.50003")))
        summary = self.summary()
        self.assertEqual(summary.trade_balance, D("9983.5000"))
        self.assertEqual(summary.unrealized_pnl, D("-0.0040"))
        self.assertEqual(summary.used_margin, D("1000.0020"))

    def test_a_short_opens_at_the_bid_and_its_margin_grows_with_the_price(self) -> None:
        found = self.place(Side.SELL, "0.04", 4)
        self.assertEqual((found.cost, found.fee), (D("1999.996"), D("15.99997")))
        self.assertEqual(self.held(), (D("-0.04"), D("1999.996")))
        self.assertEqual(self.summary().used_margin, D(500))
        self.world.wait(10)
        self.world.price("55000")
        summary = self.summary()
        self.assertEqual(summary.used_margin, D(550))
        self.assertEqual(summary.unrealized_pnl, D("-200.0040"))
        self.assertEqual(summary.equity, summary.trade_balance + summary.unrealized_pnl)

    def test_a_close_realizes_and_leaves_nothing(self) -> None:
        self.place(Side.BUY, "0.04")
        self.world.wait(10)
        self.world.price("51000")
        found = self.place(Side.SELL, "0.04", reduce_only=True)
        self.assertEqual((found.cost, found.fee), (D("2039.996"), D("16.31997")))
        self.assertEqual(self.held(), (0, 0))
        # 10000 - 16.00003 - 0.50000 + 39.992 - 16.31997
        left = D("10007.1720")
        self.assertEqual(self.summary(), MarginSummary(left, D(0), D(0), left))

    def test_a_close_of_more_than_is_held_stops_at_nothing(self) -> None:
        self.place(Side.BUY, "0.04")
        found = self.place(Side.SELL, "0.06", reduce_only=True)
        self.assertEqual((found.status, found.volume), (OrderStatus.CANCELED, D("0.04")))
        self.assertEqual(self.held(), (0, 0))

    def test_a_part_is_closed_at_its_share_of_the_cost(self) -> None:
        self.place(Side.BUY, "0.04")
        self.place(Side.BUY, "0.02")
        found = self.place(Side.SELL, "0.05", reduce_only=True)
        self.assertEqual((found.status, found.volume), (OrderStatus.CLOSED, D("0.05")))
        self.assertEqual(self.held(), (D("0.01"), D("500.001")))

    def test_one_order_turns_a_long_into_a_short(self) -> None:
        self.place(Side.BUY, "0.04")
        self.world.wait(10)
        self.world.price("49000")
        found = self.place(Side.SELL, "0.08")
        self.assertEqual((found.volume, found.cost), (D("0.08"), D("3919.992")))
        self.assertEqual(found.fee, D("31.35994"))
        self.assertEqual(self.held(), (D("-0.04"), D("1959.996")))
        # 10000 - 16.00003 - 0.50000 - 40.008 - 31.35994 - 0.19600
        self.assertEqual(self.summary().trade_balance, D("9911.9360"))

    def test_coins_are_bought_and_sold_without_leverage(self) -> None:
        found = self.place(Side.BUY, "0.04", 0)
        self.assertEqual((found.cost, found.fee), (D("2000.004"), D("16.00003")))
        self.assertEqual(self.exchange.balances()[BASE], D("0.04"))
        self.assertEqual(self.money(), D("7983.9959"))  # 7983.99597, rounded down.
        self.assertEqual(self.held(), (0, 0))
        self.place(Side.SELL, "0.01", 0)
        self.assertEqual(self.exchange.balances()[BASE], D("0.03"))
        with self.assertRaisesRegex(RefusedError, "EOrder:Insufficient funds"):
            self.place(Side.SELL, "0.04", 0)

    def test_what_is_refused_changes_nothing(self) -> None:
        for words, side, volume, leverage, reduce_only in (
            ("volume minimum not met", Side.BUY, "0.00004", 2, False),
            ("EOrder:Insufficient initial margin", Side.BUY, "1", 2, False),
            ("EOrder:Insufficient funds", Side.SELL, "0.01", 0, False),
            ("EOrder:Reduce only:No position exists", Side.SELL, "0.04", 2, True),
        ):
            with self.subTest(words, side=side), self.assertRaisesRegex(RefusedError, words):
                self.place(side, volume, leverage, reduce_only=reduce_only)
        self.assertEqual(self.held(), (0, 0))
        self.assertEqual(self.money(), BALANCE)
        self.assertEqual(list(self.traded()), [])
        for serial in range(1, self.serial + 1):
            name = f"00000000-0000-4000-8000-{serial:012}"
            self.assertIsNone(self.exchange.find(name, self.began))

    def test_an_order_whose_deadline_has_passed_is_never_executed(self) -> None:
        late = Order("00000000-0000-4000-8000-00000000000f", Side.BUY, D("0.04"), 2, False)
        with self.assertRaisesRegex(UnansweredError, "Deadline elapsed"):
            self.exchange.place(late, int(self.world.time) - 5)
        self.assertIsNone(self.exchange.find(late.client_order_id, self.began))
        self.assertEqual(self.held(), (0, 0))

    def test_a_closed_market_takes_orders_later(self) -> None:
        self.world.market_status("cancel_only")
        self.exchange.rules()
        self.assertRaises(LaterError, self.place, Side.BUY, "0.04")
        self.assertEqual(self.held(), (0, 0))

    def test_an_unknown_order_is_none_and_a_known_one_stays_known(self) -> None:
        self.assertIsNone(self.exchange.find("00000000-0000-4000-8000-0000000000ff", self.began))
        first = self.place(Side.BUY, "0.01")
        second = self.place(Side.BUY, "0.02")
        for serial, found in ((1, first), (2, second)):
            self.assertEqual(found, self.exchange.find(self.name(serial), self.began))
        self.assertCountEqual(self.traded(), (first.exchange_order_id, second.exchange_order_id))

    def test_rollover_is_charged_every_four_hours_on_what_a_long_owes(self) -> None:
        self.check_rollovers(Side.BUY, D("2000.004") * D("0.00025"))

    def test_rollover_is_charged_every_four_hours_on_what_a_short_owes(self) -> None:
        self.check_rollovers(Side.SELL, D(2000) * D("0.0001"))

    def check_rollovers(self, side: Side, fee: D) -> None:
        self.place(side, "0.04")
        opened, before = int(self.world.time), self.summary().trade_balance
        self.world.wait(2 * 14400 + 1)
        self.assertEqual(self.held()[0], side.sign * D("0.04"))
        charges = self.charges(opened - 1)
        rollovers = [(charge.time, charge.fee) for charge in charges if not charge.order_id]
        fee = fee.quantize(D("0.00001"))
        self.assertCountEqual(rollovers, [(opened + 14400, fee), (opened + 28800, fee)])
        self.assertEqual(1, len({charge.trade_id for charge in charges}))
        self.assertEqual(self.summary().trade_balance, (before - 2 * fee).quantize(CENTS))

    def test_a_position_that_lost_its_margin_is_liquidated(self) -> None:
        self.place(Side.BUY, "0.8", 5)
        self.world.wait(10)
        self.world.price("40000")
        self.assertEqual(self.held(), (0, 0))
        # 10000 - 320.00064 - 10.00002 - 8000.08 - 256: sold at the middle of bid and ask.
        self.assertEqual(self.summary(), MarginSummary(D("1413.9193"), D(0), D(0), D("1413.9193")))

    def test_time_rules_candles_quote_and_fee_are_read(self) -> None:
        self.assertEqual(self.exchange.server_time(), self.began)
        self.assertEqual(self.exchange.market_status().status, "online")
        self.assertEqual(self.exchange.rules().altname, "XBTUSD")
        self.assertEqual(self.exchange.fee_rate(), D("0.008"))
        self.assertEqual(tuple(self.exchange.quote()), (D("49999.9"), D("50000.1")))
        self.world.price(None)
        candles = self.exchange.candles(None)
        self.assertEqual(candles[0].time, T0)
        self.assertEqual(candles[-1].time, self.began // 60 * 60)


class TestPaper(Contract, unittest.TestCase):
    paper = True


class TestSpotOverHttp(Contract, unittest.TestCase):
    paper = False


class TestTheBotOnBoth(unittest.TestCase):
    """The same candles, the same bot: what differs is only whose books are behind the port."""

    @slow
    def test_fills_prices_and_costs_are_identical(self) -> None:
        for seed, leverage, one_order in ((1, 2, False), (2, 3, True), (3, 0, False)):
            with self.subTest(seed=seed, leverage=leverage, one_order=one_order):
                path = write_candles(own_folder(self), seed)
                plan = plan_of_length(10, leverage=leverage, one_order=one_order)
                paper, spot = (traded(path, plan, paper=on) for on in (True, False))
                self.assertGreater(len(paper[0]), ORDERS_MIN)
                self.assertEqual(paper, spot)


def plan_of_length(length: int, **more: Any) -> Plan:
    """Return the plan of a bot that looks so many candles back, and enters at once."""
    strategy = partial(sma_slope, length=length)
    more = {"size": D("0.02"), "entry_now": True} | more
    return test_decision.PLAN._replace(strategy=strategy, candles_min=length + 1, **more)


def traded(path: Path, plan: Plan, *, paper: bool) -> tuple[list[object], object, list[object]]:
    """Return the orders, the account and the decisions of a bot after CANDLES candles."""
    world = World(path, paper=paper, direct=True)
    journal = open_journal(None)
    try:
        world.end = world.time + 60 * CANDLES
        Bot(plan, world.account, journal, world, "contract").run()
    except StopRequestedError:
        pass
    finally:
        world.close()
    orders: list[object] = [
        (i.candle, i.purpose, i.side, i.volume, i.outcome, i.executed, i.cost, i.fee)
        for i in journal.intents()
    ]
    decisions: list[object] = [
        (row.candle, row.price, row.average, row.slope, row.target, row.held, row.reason, row.done)
        for row in views.decisions(journal)
    ]
    account = journal.account()
    journal.close()
    if len(decisions) < CANDLES - 1:
        raise AssertionError(f"only {len(decisions)} candles decided on")
    return orders, account, decisions
