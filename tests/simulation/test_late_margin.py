"""The bot on the real client and sandbox: a TradeBalance that lags, an account that is busy."""

import unittest
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import Any

from krakenbot.bot import Bot, Event
from krakenbot.clock import StopRequestedError
from krakenbot.decision import Plan
from krakenbot.journal_file import open_journal
from krakenbot.kraken.spot import Spot
from krakenbot.model import Secret
from krakenbot.risk import Limits
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.faults import Faults
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.strategy import sma_slope
from tests.clients import signing
from tests.logs import silence
from tests.markets import short_histories
from tests.simulation.test_attention import LooseClock

START = 1_790_000_000.0
CANDLES = 14
SIZE = Decimal("0.006")  # About 500 USD.


def setUpModule() -> None:
    short_histories()


class LateBalance(Faults):
    """A sandbox whose TradeBalance alone lags."""

    late_s = 0.0

    def _pass(self, name: str, request: Any) -> Any:
        self.lag_s = self.late_s if name == "TradeBalance" else 0.0
        return super()._pass(name, request)


class RealClientTest(unittest.TestCase):
    """A bot on an account with money for one position. Waiting costs nothing."""

    money = 480

    def setUp(self) -> None:
        silence(self)
        self.clock = clock = LooseClock()
        clock.time = START
        secret = Secret(SANDBOX_SECRET)
        self.api = SandboxApi(
            Feed("random:7", START),
            lambda: clock.time,
            SANDBOX_KEY,
            secret,
            fee_rate=Decimal("0.0026"),
            balances={"ZUSD": Decimal(self.money)},
            tier="starter",
        )
        self.wire = wire = LateBalance(self.api, "seed=1", clock.wait)

        class Wire:
            def send(
                self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
            ) -> tuple[int, bytes]:
                clock.wait(0.1)
                target = url.removeprefix("https://exchange.test")
                answer = wire.respond(method, target, headers, body or b"")
                return answer.status, answer.body

        strategy, needed = partial(sma_slope, length=3), 4
        limits = Limits(None, Decimal(100), Decimal(1), 500)
        plan = Plan("XBTUSD", 60, SIZE, 2, False, True, strategy, needed, limits)
        self.journal = open_journal(None)
        self.addCleanup(self.journal.close)
        spot = Spot(signing(Wire(), "https://exchange.test", clock), "XBTUSD", 60)
        self.bot = Bot(plan, spot, self.journal, clock, "late", self.on_event)

    def on_event(self, event: Event) -> None:
        pass

    def run_until(self, end: float) -> None:
        self.clock.end = end
        self.assertRaises(StopRequestedError, self.bot.run)


class TestLateMargin(RealClientTest):
    def on_event(self, event: Event) -> None:
        if event.kind == "decision":
            self.wanted[-1:] = [int(event.values["target"])]

    def run_with(self, late_s: float) -> tuple[list[Decimal], list[int]]:
        """Return what was held and what was wanted when each candle was over."""
        self.setUp()
        self.wire.late_s = late_s
        self.wanted: list[int] = []
        held: list[Decimal] = []
        for number in range(CANDLES):
            self.wanted.append(0)
            self.run_until((START // 60 + number + 2) * 60)
            position = self.api.account.positions.get("XXBTZUSD")
            held.append(position.volume if position else Decimal(0))
        return held, self.wanted

    def test_it_is_on_target_at_the_end_of_every_candle_all_the_same(self) -> None:
        for late_s in (0, 5, 10, 15):
            with self.subTest(late_s):
                held, wanted = self.run_with(late_s)
                self.assertEqual([SIZE * target for target in wanted], held)
                turns = sum(a != b for a, b in pairwise(wanted[1:]))
                self.assertGreaterEqual(turns, 3)


class BusyClock(LooseClock):
    """Whoever waits, `trade` is called `per_hour` times an hour."""

    per_hour = 3000
    trade: Callable[[], None] = staticmethod(lambda: None)

    def wait(self, seconds: float) -> None:
        step_s = 3600 / self.per_hour
        begin, end = self.time // step_s, (self.time + max(0.0, seconds)) // step_s
        for _ in range(int(end - begin)):
            self.trade()
        super().wait(seconds)


class TestBusyAccount(RealClientTest):
    """Another program trades on the account, 3,000 times an hour, elsewhere."""

    money = 1_000_000

    def setUp(self) -> None:
        super().setUp()
        self.late_s: list[float] = []
        self.clock.__class__ = BusyClock
        wish = {"pair": "SOLUSD", "side": "buy", "volume": Decimal("0.1")}
        self.clock.trade = lambda: self.api.controls["position"](wish)  # type: ignore[attr-defined]

    def on_event(self, event: Event) -> None:
        if event.kind == "decision":
            self.late_s.append(self.clock.time % 60)

    def test_no_candle_waits_for_the_ledger_and_all_of_its_rows_are_booked(self) -> None:
        self.run_until(START + 600)
        self.assertGreaterEqual(len(self.late_s), 9)
        self.assertLess(max(self.late_s[1:]), 10)
        self.assertGreater(int(self.journal.get("charges_read")), START)
        self.assertGreater(self.journal.account().margin_fees, 0)
        self.assertFalse(self.journal.get("difference"))
