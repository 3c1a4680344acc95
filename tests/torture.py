"""A deterministic simulation of everything that can go wrong, all of it from one seed.

    python -m tests.torture --seed 1 --days 1000 --jobs 2
    python -m tests.torture --replay 17

The real bot, journal, client and sandbox run in one process, on a simulated clock, without
threads. An episode is one seed: about a day of one configuration, with storms of faults, deaths
of the process at any statement or request, and other hands on the account. After every step the
invariants below are checked; `Violation` names the one that does not hold.
"""

import argparse
import contextlib
import gc
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from krakenbot.bot import Bot, Event
from krakenbot.client import Client
from krakenbot.clock import StopRequestedError
from krakenbot.decision import Plan
from krakenbot.errors import ConfigError, LaterError, StopError, UnansweredError
from krakenbot.journal import Journal, Lock, Nonces, prepare
from krakenbot.model import ZERO, Secret, Side
from krakenbot.parts import check_key, outwait_lost_orders
from krakenbot.risk import Limits
from krakenbot.signing import fingerprint
from krakenbot.simulated.faults import FAULTS, Faults
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.server import SandboxApi
from krakenbot.spot import Spot
from krakenbot.strategy import build

SIZE = Decimal("0.01")
PAIR, ALTNAME, QUOTE, BASE = "XXBTZUSD", "XBTUSD", "ZUSD", "XXBT"
START = 1_790_000_000.0
DAY_S = 86400.0
TIMEOUT_S = 20.0
CALM_S = 420.0  # Back on target within seven finished candles after the last fault.
TRACE_LINES = 60
STEPS_MAX = 3_000_000  # An episode that needs more runs in circles.
TICK = Decimal("0.00001")  # The last digit of costs.

KEY, SECRET = Secret(SANDBOX_KEY), Secret(SANDBOX_SECRET)


class Violation(BaseException):
    """An invariant does not hold. Not an Exception, so that nothing under test swallows it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")


class Death(BaseException):
    """The process dies at this very statement."""


class Over(BaseException):
    """The episode's time is over."""


class Disk(sqlite3.Connection):
    """A journal's connection on which any statement may fail or be the process's last."""

    world: "World"

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        after = self.world.touch(sql)
        cursor = super().execute(sql, parameters)
        if after is not None:
            raise after
        return cursor

    def executescript(self, sql: str) -> sqlite3.Cursor:
        after = self.world.touch(sql)
        cursor = super().executescript(sql)
        if after is not None:
            raise after
        return cursor


class KeyLock(Lock):
    """The real lock of an API key, on a disk that may fail."""

    def __init__(self, path: Path, world: "World") -> None:
        super().__init__(path, "this API key")
        self.world = world

    def write(self, text: bytes) -> None:
        after = self.world.touch("nonce")
        super().write(text)
        if after is not None:
            raise OSError("I/O error") if isinstance(after, sqlite3.Error) else after


class SimulatedClock:
    """A clock of one process: waiting costs nothing, the host's own time may be wrong."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._offset = self.wall() - world.time

    def now(self) -> float:
        return self._world.time + self._offset

    def monotonic(self) -> float:
        return self._world.time

    def wall(self) -> float:
        return self._world.time + self._world.wall_off

    def nonce(self) -> int:
        return int(self.wall() * 1e9)

    def set(self, exchange_time: float) -> None:
        self._offset = exchange_time - self._world.time

    def wait(self, seconds: float) -> None:
        self._world.touch("wait")
        self._world.pass_time(max(seconds, 0.0))
        if self._world.stop_asked:
            self._world.stop_asked = False
            raise StopRequestedError


class Wire:
    """The transport: one request to the sandbox through the faults."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, fresh: bool
    ) -> tuple[int, bytes]:
        world = self._world
        target = url[len("https://exchange.test") :]
        began = world.time
        world.note("ask", target, body or b"")
        world.touch("send")
        if body is not None:
            world.check_request(target, body, fresh)
        world.pass_time(0.02 + world.random.random() * 0.2)
        try:
            answer = world.faults.respond(method, target, headers, body or b"")
            if world.time - began > TIMEOUT_S:
                raise TimeoutError("timed out")
        except ConnectionRefusedError as error:
            world.note("refused", "", b"")
            world.not_sent(target)
            raise LaterError(f"connection refused: {error}", sent=False) from None
        except OSError as error:
            if isinstance(error, TimeoutError):
                world.pass_time(max(0.0, began + TIMEOUT_S - world.time))
            world.note("lost", str(error), b"")
            raise UnansweredError(f"no whole answer: {error}") from None
        finally:
            world.look_at_exchange()
        world.note("got", str(answer.status), answer.body)
        after = world.touch("answer")
        if after is not None:
            raise after
        return answer.status, answer.body


class Setting(NamedTuple):
    """One configuration of an episode."""

    length: int
    leverage: int
    one_order: bool
    entry_now: bool
    max_loss: Decimal | None
    orders_max: int
    balance: Decimal
    coins: Decimal
    fee_rate: Decimal
    tier: str


class World:
    """One account, one bot and its supervisor, from one seed."""

    def __init__(self, seed: int, days: float, folder: Path, show: bool = False) -> None:
        self.seed, self.show = seed, show
        self.random = random.Random(seed)
        self.time, self.end = START, START + days * DAY_S
        self.wall_off = 0.0
        self.setting = self._choose()
        s = self.setting
        strategy, needed = build("sma-slope", s.length, 2, 5)
        limits = Limits(s.max_loss, Decimal(150), Decimal(1), s.orders_max)
        self.plan = Plan(
            ALTNAME, 60, SIZE, s.leverage, s.one_order, s.entry_now, strategy, needed, limits
        )
        self.api = SandboxApi(
            Feed(f"random:{seed}", START), lambda: self.time, SANDBOX_KEY, SECRET,
            fee_rate=s.fee_rate, balances={QUOTE: s.balance, BASE: s.coins}, tier=s.tier,
        )  # fmt: skip
        self.faults = Faults(self.api, f"seed={seed}", self.pass_time)
        self.wire = Wire(self)
        self.owner = fingerprint(KEY)
        self.lock_path = folder / f"key-{self.owner}.lock"
        self.lock_path.unlink(missing_ok=True)
        self.trace: deque[tuple[float, str, str, bytes | str]] = deque(maxlen=4 * TRACE_LINES)
        self.counts: Counter[str] = Counter()
        # What the process under test is about to suffer.
        self.steps = 0
        self.alarm = STEPS_MAX
        self.die_at = self.fail_at = STEPS_MAX
        self.dead = False
        self.stop_asked = False
        # What is known from outside, for the invariants.
        self.nonce = 0
        self.sent: set[str] = set()
        self.sent_now = ""
        self.executed: dict[str, dict[str, Any]] = {}
        self.newest_order: str | None = None
        self.own = self.foreign = ZERO
        self.own_fees = self.own_cash = ZERO
        self.turns = 0
        self.clean = True  # Nobody but this journal ever traded.
        self.foreign_at = self.candle_fault_at = self.disk_failed_at = self.clock_off_at = -DAY_S
        self.calm_from = self.time
        self.storming = False
        self.verified = 0
        self.decided_at = 0.0
        self.decided_candle = 0
        self.born = 0.0  # When the process under test was started.
        self.new_journal()
        self.next_event = self.time + self.random.uniform(60, 3600)
        self.key_used = False

    def _choose(self) -> Setting:
        choice = self.random.choice
        leverage = choice((0, 2, 2, 3))
        poor = self.random.random() < 0.1
        return Setting(
            length=choice((2, 3, 3, 5, 8, 20)),
            leverage=leverage,
            one_order=choice((False, True)),
            entry_now=choice((True, True, False)),
            max_loss=choice((None, None, None, Decimal(20), Decimal(200))),
            orders_max=choice((500, 5000, 5000, 30)),
            balance=Decimal(900 if poor else 1_000_000),
            coins=choice((ZERO, Decimal("0.5"))),
            fee_rate=choice((Decimal("0.008"), Decimal("0.0026"), ZERO)),
            tier=choice(("sandbox", "starter", "pro")),
        )

    # -- the supervisor ------------------------------------------------------------------------

    def run(self) -> None:
        """Live until the end, then let the faults stop and look at everything once more."""
        with contextlib.suppress(Over):
            while True:
                self._supervise()
        self.end = float("inf")
        self._calm_down()
        self.verify()
        self._last_look()

    def _supervise(self) -> None:
        """Start the process and do what a supervisor and its person do when it ends."""
        choice = self.random.random
        try:
            self._process(adopt=False)
        except Death:
            self.note("death", "", b"")
            self.counts["deaths"] += 1
            if self.storming and choice() < 0.5:
                self.die_at = self.steps + self.random.randint(1, 150)
                self._set_alarm()
            self.pass_time(self.random.choice((0.5, 3, 30, 300)) * choice())
        except StopRequestedError:
            self.counts["stops"] += 1
            self.pass_time(self.random.choice((1, 60, 1800)) * choice())
        except LaterError:
            self.counts["exit 75"] += 1
            self.pass_time(5)
        except ConfigError as error:
            self.counts["exit 78"] += 1
            self._expect(self.disk_failed_at >= self.born, "true reason", f"78 said {error}")
            self.pass_time(60)
        except StopError as error:
            self._person(error)

    def _person(self, error: StopError) -> None:
        """Look whether the reason is true, wait, and let the bot trade again."""
        choice = self.random.random
        self.note("halt", str(error), b"")
        self.counts[f"exit {error.exit_code}"] += 1
        self._check_reason(str(error), error.exit_code)
        if choice() < 0.3:
            self._check_stays_halted()
        self.pass_time(self.random.choice((30, 300, 1800)) * choice() + 1)
        how = choice()
        for _ in range(50):
            try:
                if how < 0.2 or "max_loss" in str(error):
                    self._process(flatten=how < 0.1)
                    self._open_process()[1].resume()
                    return
                self._process(adopt=True, once=True)
                return
            except (StopError, LaterError, ConfigError, StopRequestedError) as again:
                self.note("halt", f"while adopting: {again}", b"")
                if isinstance(again, StopError):
                    self._check_reason(str(again), again.exit_code)
                how = 0.5 if "position" in str(again) else choice()
                self.pass_time(60 * choice() + 20)
            except Death:
                self.counts["deaths"] += 1
                self.pass_time(10 * choice())
        raise Violation("a person can mend it", str(error))

    def _check_stays_halted(self) -> None:
        """Start again without a look: what was halted must say so and send nothing."""
        halted = self._raw("SELECT value FROM meta WHERE key = 'halted'").fetchone()
        orders = len(self.sent)
        with contextlib.suppress(Death, LaterError, StopRequestedError, ConfigError):
            try:
                if halted is None:
                    return
                self._process()
            except StopError as error:
                self._check_reason(str(error), error.exit_code)
            self._expect(len(self.sent) == orders, "halted means halted", "an order was sent")

    def _open_process(self) -> tuple[Bot, Journal, KeyLock]:
        """Return the parts that a new process is made of, as the front door makes them."""
        self.dead = False
        self.born = self.time
        sqlite3.Connection.rollback(self.disk)
        existed = self.lock_path.exists()
        lock = KeyLock(self.lock_path, self)
        try:
            try:
                second = Lock(self.lock_path, "this API key")
            except ConfigError:
                pass
            else:
                second.close()
                raise Violation("one process a key", "a second process got the lock")
            clock = SimulatedClock(self)
            journal = Journal(prepare(self.disk, Path("journal")))
            client = Client(
                self.wire, "https://exchange.test", clock, key=KEY, secret=SECRET,
                next_nonce=Nonces(lock).next, live=True,
            )  # fmt: skip
            spot = Spot(client, ALTNAME, 60)
            checks = (
                partial(check_key, spot),
                partial(outwait_lost_orders, journal, clock, existed),
            )
            bot = Bot(self.plan, spot, journal, clock, self.owner, self.on_event, checks)
        except BaseException:
            lock.close()
            raise
        return bot, journal, lock

    def _process(self, adopt: bool = False, once: bool = False, flatten: bool = False) -> None:
        self.note("start", f"adopt={adopt} once={once} flatten={flatten}", b"")
        bot, journal, lock = self._open_process()
        try:
            if flatten:
                bot.flatten("flattened by hand", 300.0)
                self.verify()
                self._check_flat()
            else:
                bot.run(adopt=adopt, once=once, patience_s=300.0)
        except (StopError, LaterError, StopRequestedError, Over):
            self.verify()
            raise
        except (Death, ConfigError, Violation):
            raise
        except Exception as error:
            raise Violation("no defect", f"exit 70: {error!r}") from error
        finally:
            self.dead = False
            lock.close()

    # -- time and what happens in it -----------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        target = self.time + seconds
        while self.next_event <= min(target, self.end):
            self.time = max(self.time, self.next_event)
            self._event()
        self.time = target
        if self.time >= self.end:
            raise Over

    def _event(self) -> None:
        """Begin or end a storm; outside of one, let someone else lay hands on the account."""
        choice = self.random.random
        if self.storming:
            self._calm_down()
            self.next_event = self.time + self.random.choice((900, 3600, 9000)) * (0.3 + choice())
            return
        if choice() < 0.2:
            self._hands()
            self.next_event = self.time + self.random.choice((20, 2000)) * choice()
            return
        self.storming = True
        self.calm_from = float("inf")
        self.counts["storms"] += 1
        kinds = self.random.sample([*FAULTS], self.random.choice((1, 2, 4, 8)))
        weight = self.random.choice((0.02, 0.1, 0.3))
        rare = ("lockout", "maintenance", "cancel_only", "post_only", "rules", "clock")
        self.faults.chances = {kind: weight / (20 if kind in rare else 1) for kind in kinds}
        self.faults.lag_s = self.random.choice((0, 0, 5, 30, 60))
        if any("candle" in kind for kind in kinds):
            self.candle_fault_at = float("inf")
        if choice() < 0.5:
            self.die_at = self.steps + self.random.randint(1, 400)
        if choice() < 0.1:
            self.fail_at = self.steps + self.random.randint(1, 400)
        if choice() < 0.3:
            self.wall_off = self.random.choice((-7200, -40, -3, -0.5, 0.7, 4, 45, 9000)) * choice()
        if choice() < 0.1:
            self.stop_asked = True
        if choice() < 0.03:
            self.counts["journals deleted"] += 1
            self.delete_journal_at_next_start = True
        self.note("storm", f"{self.faults.chances} lag={self.faults.lag_s}", b"")
        self._set_alarm()
        self.next_event = self.time + self.random.choice((60, 300, 1200)) * (0.3 + choice())

    def _calm_down(self) -> None:
        self.storming = False
        self.note("calm", "", b"")
        if self.candle_fault_at == float("inf"):
            self.candle_fault_at = self.time
        self.faults.chances, self.faults.lag_s = {}, 0.0
        self.die_at = self.fail_at = STEPS_MAX
        self.wall_off = 0.0
        self._set_alarm()
        self.calm_from = self.time + 900  # Modes, rules and clocks that are off last so long.

    def _hands(self) -> None:
        """Trade beside the bot: close, open, reverse, liquidate."""
        choice = self.random.choice
        held = self._position()
        volume = choice((SIZE, SIZE / 2, 3 * SIZE))
        what = choice(("close", "open", "reverse", "liquidate"))
        side = choice((Side.BUY, Side.SELL))
        wish: dict[str, object] = {"pair": ALTNAME, "side": side.value, "volume": volume}
        wish["leverage"] = self.setting.leverage
        if what == "reverse" and held:
            wish |= {"side": "sell" if held > 0 else "buy", "volume": 2 * abs(held)}
        elif what in ("close", "liquidate") and self.setting.leverage:
            wish = {"pair": ALTNAME, what: True}
        self.note("hands", str(wish), b"")
        self.counts[f"hands: {what}"] += 1
        with contextlib.suppress(Exception):
            self.api._settle()
            self.api._set_position(wish)
        self.look_at_exchange()

    def touch(self, what: str) -> BaseException | None:
        """Count one step; raise, or return what is to be raised after it was carried out."""
        self.steps += 1
        if self.dead:
            raise Death
        if self.steps < self.alarm:
            return None
        if self.steps >= STEPS_MAX:
            raise Violation("progress", f"{STEPS_MAX} steps are not enough")
        if self.steps >= self.die_at:
            self.die_at = STEPS_MAX
            self._set_alarm()
            self.dead = self.random.choice((True, False))
            self.note("dying", f"{'before' if self.dead else 'after'} {what:.60}", b"")
            if self.dead or what == "wait":
                self.dead = True
                raise Death
            return Death()
        if what.startswith(("SELECT", "wait", "send", "answer", "PRAGMA", "ROLLBACK")):
            return None  # Only writing fails.
        self.fail_at = STEPS_MAX
        self._set_alarm()
        self.disk_failed_at = self.time
        self.counts["disk faults"] += 1
        self.note("disk", f"fails at {what:.60}", b"")
        error = sqlite3.OperationalError(
            self.random.choice(("database or disk is full", "disk I/O error"))
        )
        if what == "nonce":
            raise OSError("No space left on device")
        if what.startswith("COMMIT") and self.random.choice((True, False)):
            return error  # It is on disk although the disk says otherwise.
        raise error

    def _set_alarm(self) -> None:
        self.alarm = min(self.die_at, self.fail_at, STEPS_MAX)
