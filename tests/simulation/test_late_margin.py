"""The bot on the real client and sandbox: a TradeBalance that lags, an account that is busy."""

import unittest
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

from krakenbot.simulated.faults import Faults
from tests.logs import silence
from tests.markets import short_histories
from tests.simulation.test_money import START, World

CANDLES = 14
SIZE = Decimal("0.006")  # About 500 USD.


def setUpModule() -> None:
    short_histories()


class LateBalance(Faults):
    """A sandbox that takes a moment for each answer, and whose TradeBalance alone lags."""

    late_s = 0.0

    def _pass(self, name: str, request: Any) -> Any:
        self._wait(0.1)
        self.lag_s = self.late_s if name == "TradeBalance" else 0.0
        return super()._pass(name, request)


class Slow(World):
    """An account of a starter with so much money, and somebody who trades while the bot waits."""

    def __init__(self, money: int, trades_per_hour: int = 0) -> None:
        self.step_s = 3600 / trades_per_hour if trades_per_hour else float("inf")
        account = {"balances": {"ZUSD": Decimal(money)}, "fee_rate": Decimal("0.0026")}
        super().__init__(60, size=SIZE, length=3, tier="starter", **account)

    def reached_by(self, api: Any) -> LateBalance:
        self.wire = LateBalance(api, "seed=1", self.wait)
        return self.wire

    def wait(self, seconds: float) -> None:
        wish = {"pair": "SOLUSD", "side": "buy", "volume": Decimal("0.1")}
        before, after = (at // self.step_s for at in (self.time, self.time + max(0.0, seconds)))
        for _ in range(int(after - before)):
            self.api.controls["position"](wish)
        super().wait(seconds)


class TestSlowAccount(unittest.TestCase):
    def world(self, *account: int) -> Slow:
        silence(self)
        world = Slow(*account)
        self.addCleanup(world.database.close)
        return world

    def targets_and_held(self, late_s: float) -> Iterator[tuple[Decimal, Decimal]]:
        """Yield what was wanted and what was held when each candle was over."""
        world, wanted = self.world(480), dict[str, str]()
        world.wire.late_s, world.on_event = late_s, lambda event: wanted.update(event.values)
        for number in range(CANDLES):
            wanted["target"] = "0"
            world.run((START // 60 + number + 2) * 60 - world.time)
            yield SIZE * int(wanted["target"]), world.held()

    def test_although_its_margin_lags_it_is_on_target_at_the_end_of_every_candle(self) -> None:
        for late_s in (0, 5, 10, 15):
            with self.subTest(late_s):
                targets, held = zip(*self.targets_and_held(late_s), strict=True)
                self.assertEqual(targets, held)
                self.assertGreaterEqual(sum(a != b for a, b in pairwise(targets[1:])), 3)

    def test_no_candle_waits_for_a_busy_ledger_and_all_of_its_rows_are_booked(self) -> None:
        world, late_s = self.world(1_000_000, 3000), list[float]()
        world.on_event = lambda event: event.kind == "decision" and late_s.append(world.time % 60)
        world.run(600)
        self.assertGreaterEqual(len(late_s), 9)
        self.assertLess(max(late_s[1:]), 10)
        self.assertGreater(int(world.journal.get("charges_read")), START)
        self.assertGreater(world.journal.account().margin_fees, 0)
        self.assertFalse(world.journal.get("difference"))
