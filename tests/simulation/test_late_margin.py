"""The bot on the real client and sandbox, with money for one position and a TradeBalance behind."""

import sqlite3
import unittest
from collections.abc import Mapping
from decimal import Decimal
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from krakenbot.bot import Bot, Event
from krakenbot.clock import StopRequestedError
from krakenbot.decision import Plan
from krakenbot.journal import Journal
from krakenbot.journal_file import prepare
from krakenbot.kraken.client import Client
from krakenbot.kraken.spot import Spot
from krakenbot.model import Secret
from krakenbot.risk import Limits
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.faults import Faults
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.strategy import build
from tests.logs import silence
from tests.simulation.test_attention import LooseClock

START = 1_790_000_000.0
CANDLES = 24
SIZE = Decimal("0.006")  # About 500 USD.


class LateBalance(Faults):
    """A sandbox whose TradeBalance alone lags."""

    late_s = 0.0

    def _pass(self, name: str, request: Any) -> Any:
        self.lag_s = self.late_s if name == "TradeBalance" else 0.0
        return super()._pass(name, request)


class TestLateMargin(unittest.TestCase):
    def run_with(self, late_s: float) -> tuple[list[Decimal], list[int]]:
        """Return what was held and what was wanted when each candle was over."""
        silence(self)
        clock = LooseClock()
        clock.time = START
        balances = {"ZUSD": Decimal(480)}
        secret = Secret(SANDBOX_SECRET)
        api = SandboxApi(
            Feed("random:7", START),
            lambda: clock.time,
            SANDBOX_KEY,
            secret,
            fee_rate=Decimal("0.0026"),
            balances=balances,
            tier="starter",
        )
        wire = LateBalance(api, "seed=1", clock.wait)
        wire.late_s = late_s

        class Wire:
            def send(
                self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
            ) -> tuple[int, bytes]:
                clock.wait(0.1)
                target = url.removeprefix("https://exchange.test")
                answer = wire.respond(method, target, headers, body or b"")
                return answer.status, answer.body

        nonces = count(1)
        client = Client(
            Wire(),
            "https://exchange.test",
            clock,
            key=Secret(SANDBOX_KEY),
            secret=secret,
            next_nonce=lambda _: next(nonces),
            live=True,
        )
        strategy, needed = build("sma-slope", 3, 2, 5)
        limits = Limits(None, Decimal(100), Decimal(1), 500)
        plan = Plan("XBTUSD", 60, SIZE, 2, False, True, strategy, needed, limits)
        memory = sqlite3.connect(":memory:", isolation_level=None)
        journal = Journal(prepare(memory, Path("memory")))
        self.addCleanup(journal.close)
        wanted: list[int] = []

        def on_event(event: Event) -> None:
            if event.kind == "decision":
                wanted[-1:] = [int(event.values["target"])]

        bot = Bot(plan, Spot(client, "XBTUSD", 60), journal, clock, "late", on_event)
        held: list[Decimal] = []
        for number in range(CANDLES):
            wanted.append(0)
            clock.end = (START // 60 + number + 2) * 60
            with self.assertRaises(StopRequestedError):
                bot.run()
            position = api.account.positions.get("XXBTZUSD")
            held.append(position.volume if position else Decimal(0))
        return held, wanted

    def test_it_is_on_target_at_the_end_of_every_candle_all_the_same(self) -> None:
        for late_s in (0, 5, 10, 15):
            with self.subTest(late_s):
                held, wanted = self.run_with(late_s)
                self.assertEqual([SIZE * target for target in wanted], held)
                turns = sum(a != b for a, b in pairwise(wanted[1:]))
                self.assertGreaterEqual(turns, 5)


if __name__ == "__main__":
    unittest.main()
