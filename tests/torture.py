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
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from krakenbot import log, startup
from krakenbot.accounting import read_ledger
from krakenbot.bot import Bot, Event
from krakenbot.clock import StopRequestedError
from krakenbot.config import Config
from krakenbot.decision import Plan
from krakenbot.errors import Cause, ConfigError, LaterError, StopError, UnansweredError
from krakenbot.handover import Desk
from krakenbot.identity import Identity
from krakenbot.journal import Journal
from krakenbot.journal_file import prepare
from krakenbot.kraken.client import Client
from krakenbot.kraken.signing import fingerprint
from krakenbot.kraken.spot import Spot
from krakenbot.lock import Lock, Nonces
from krakenbot.model import ZERO, Secret, Side
from krakenbot.records import Account
from krakenbot.risk import Limits
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.faults import FAULTS, Faults
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.strategy import build

SIZE = Decimal("0.01")
PAIR, ALTNAME, QUOTE, BASE = "XXBTZUSD", "XBTUSD", "ZUSD", "XXBT"
START = 1_790_000_000.0
DAY_S = 86400.0
TIMEOUT_S = 20.0
CALM_CANDLES = 7  # Back on target within so many finished candles after the last fault.
SLOW = ("maintenance", "cancel_only", "post_only", "rules", "clock")
SLOW_S = 900.0  # So long these may go on when a storm is over.
TRACE_LINES = 60
STEPS_MAX = 3_000_000  # An episode that needs more runs in circles.
# Ends of orders that surely left nothing behind; they count for nothing.
PASSING = ("not sent", "put off", "put off, no order left", "absent")
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
            cursor.close()
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

    def write(self, state: str) -> None:
        world = getattr(self, "world", None)  # None while the lock is being taken.
        after = world.touch("nonce") if world else None
        super().write(state)
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
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        world = self._world
        target = url[len("https://exchange.test") :]
        began = world.time
        world.note("ask", target, body or b"")
        world.touch("send")
        if body is not None:
            world.check_request(target, body)
        world.pass_time(0.02 + world.random.random() * 0.2)
        usual = chances = world.faults.chances
        if target.endswith("AddOrder"):  # Where faults cost money, they shall come more often.
            chances = {word: min(1.0, 4 * chance) for word, chance in usual.items()}
        world.faults.chances = chances
        try:
            answer = world.faults.respond(method, target, headers, body or b"")
            if world.time - began > TIMEOUT_S:
                raise TimeoutError("timed out")
        except ConnectionRefusedError as error:
            world.note("refused", "", "")
            world.not_sent(target)
            raise LaterError(f"connection refused: {error}", cause=Cause.UNREACHABLE) from None
        except OSError as error:
            if isinstance(error, TimeoutError):
                world.pass_time(max(0.0, began + TIMEOUT_S - world.time))
            world.note("lost", str(error), "")
            raise UnansweredError(f"no whole answer: {error}") from None
        finally:
            if world.faults.chances is chances:
                world.faults.chances = usual
            world.look_at_exchange()
        world.note("got", str(answer.status), answer.body)
        after = world.touch("answer")
        if after is not None:
            raise after
        return answer.status, answer.body


class Setting(NamedTuple):
    """One configuration of an episode."""

    interval_s: int
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
    alone: bool  # Nobody else touches the account or the journal.


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
            ALTNAME,
            s.interval_s,
            SIZE,
            s.leverage,
            s.one_order,
            s.entry_now,
            strategy,
            needed,
            limits,
        )
        self.api = SandboxApi(
            Feed(f"random:{seed}", START),
            lambda: self.time,
            SANDBOX_KEY,
            SECRET,
            fee_rate=s.fee_rate,
            balances={QUOTE: s.balance, BASE: s.coins},
            tier=s.tier,
        )
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
        self.dead = self.halted = False
        self.stop_asked = False
        # What is known from outside, for the invariants.
        self.nonce = 0
        self.sent: set[str] = set()
        self.sent_now = ""
        self.executed: dict[str, dict[str, Any]] = {}
        self.strangers: set[str] = set()  # Orders that the present journal did not know.
        self.newest_order: str | None = None
        self.own = self.foreign = ZERO
        self.own_fees = self.own_cash = ZERO
        self.turns = 0
        self.clean = True  # Nobody but this journal ever traded.
        self.foreign_at = self.candle_fault_at = self.disk_failed_at = self.clock_off_at = -DAY_S
        self.calm_from = self.time
        self.storming = self.lose_journal = False
        self.verified = 0
        self.rules_objected = False
        self.born = 0.0  # When the process under test was started.
        self.new_journal()
        self.next_event = self.time + self.random.uniform(60, 3600)

    def _choose(self) -> Setting:
        choice = self.random.choice
        leverage = choice((0, 2, 2, 3))
        poor = self.random.random() < 0.1
        return Setting(
            interval_s=choice((60, 60, 60, 60, 60, 300)),
            length=choice((2, 3, 3, 5, 8, 20)),
            leverage=leverage,
            one_order=choice((False, True)),
            entry_now=choice((True, True, False)),
            max_loss=choice((None, None, None, Decimal(20), Decimal(200))),
            orders_max=choice((500, 5000, 5000, 5000, 5000, 30)),
            balance=Decimal(900 if poor else 1_000_000),
            coins=choice((ZERO, Decimal("0.5"))),
            fee_rate=choice((Decimal("0.008"), Decimal("0.0026"), ZERO)),
            tier=choice(("sandbox", "starter", "pro")),
            alone=choice((True, False, False)),
        )

    # -- the supervisor ------------------------------------------------------------------------

    def run(self) -> None:
        """Live until the end, then let the faults stop and look at everything once more."""
        with contextlib.suppress(Over):
            while True:
                self._supervise()
        self.end = self.next_event = float("inf")
        self._calm_down()
        self.stop_asked = self.lose_journal = False
        self.verify()
        self._last_look()

    def _supervise(self) -> None:
        """Start the process and do what a supervisor and its person do when it ends."""
        choice = self.random.random
        if self.lose_journal:
            self.new_journal()
        try:
            self._process(adopt=False)
        except Death:
            self.note("death", "", "")
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
        self.note("halt", str(error), "")
        self.counts[f"exit {error.exit_code}"] += 1
        self._check_reason(str(error), error.exit_code)
        if choice() < 0.3:
            self._check_stays_halted()
        self.pass_time(self.random.choice((30, 300, 1800)) * choice() + 1)
        how = 0.15 if "max_loss" in str(error) else choice()
        for _ in range(50):
            try:
                if how < 0.1:
                    self._process(flatten=True)
                if how < 0.2:
                    self._resume()
                    return
                self._process(adopt=True, once=True)
                return
            except (StopError, LaterError, ConfigError, StopRequestedError) as again:
                self.note("halt", f"while adopting: {again}", "")
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
        if halted is None:
            return
        self.halted = True
        try:
            self._process()
        except StopError as error:
            said = str(error)
            known = said.startswith("halted: ") or "Kraken refused" in said or "written" in said
            self._expect(known, "halted means halted", f"instead it said: {said}")
            self.counts["started again while halted"] += 1
        except (Death, LaterError, StopRequestedError, ConfigError):
            pass
        finally:
            self.halted = False

    def _open_process(self, adopts: bool = False) -> tuple[Bot, Journal, KeyLock]:
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
            nonces = Nonces(lock)
            journal.on_write = nonces.set_mark
            client = Client(
                self.wire,
                "https://exchange.test",
                clock,
                key=KEY,
                secret=SECRET,
                next_nonce=nonces.next,
                live=True,
            )
            spot = Spot(client, ALTNAME, self.setting.interval_s)
            was_live: Any = SimpleNamespace(read=lambda: "live" if existed else "")
            config, whose = Config(pair=ALTNAME), Identity(PAIR)
            start = startup.Start(
                config, spot, journal, clock, was_live, whose, nonces, adopts=adopts
            )
            checks = (partial(startup.check_key, start), partial(startup.check_trades, start))
            bot = Bot(self.plan, spot, journal, clock, self.owner, self.on_event, checks)
        except BaseException:
            lock.close()
            raise
        return bot, journal, lock

    def _resume(self) -> None:
        _, journal, lock = self._open_process()
        try:
            journal.resume()
        finally:
            self.dead = False
            lock.close()

    def _process(self, adopt: bool = False, once: bool = False, flatten: bool = False) -> None:
        self.note("start", f"adopt={adopt} once={once} flatten={flatten}", "")
        bot, journal, lock = self._open_process(adopt)
        try:
            desk = Desk(self.plan, bot._exchange, journal, bot._clock, self.owner, self.on_event)
            if adopt:
                desk.patiently(desk.learn, 300.0)
                for check in bot._checks:
                    desk.patiently(check, 300.0)
                desk.patiently(desk.adopt, 300.0)
            if flatten:
                desk.flatten("flattened by hand", 300.0)
                self.verify()
                self._check_flat()
            else:
                bot.run(once=once, patience_s=300.0)
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
            self.next_event = self.time + self.random.choice((600, 1500, 5000)) * (0.3 + choice())
            return
        if choice() < 0.2 and not self.setting.alone:
            self._hands()
            self.next_event = self.time + self.random.choice((20, 2000)) * choice()
            return
        self.storming = True
        self.calm_from = float("inf")
        self.counts["storms"] += 1
        kinds = self.random.sample([*FAULTS], self.random.choice((1, 2, 4, 8)))
        weight = self.random.choice((0.02, 0.1, 0.3))
        rare = ("lockout", *SLOW)
        self.faults.chances = {kind: weight / (20 if kind in rare else 1) for kind in kinds}
        if choice() < 0.1:
            self.faults.chances = {self.random.choice(("margin", "partial")): 1.0}
        self.faults.lag_s = self.random.choice((0, 0, 5, 30, 60))
        if any("candle" in kind for kind in self.faults.chances):
            self.candle_fault_at = float("inf")
        if choice() < 0.5:
            self.die_at = self.steps + self.random.randint(1, 400)
        if choice() < 0.1:
            self.fail_at = self.steps + self.random.randint(1, 400)
        if choice() < 0.3:
            self.wall_off = self.random.choice((-7200, -40, -3, -0.5, 0.7, 4, 45, 9000)) * choice()
        if choice() < 0.1:
            self.stop_asked = True
        if choice() < 0.03 and not self.setting.alone:
            self.counts["journals deleted"] += 1
            self.lose_journal = True
        self.note("storm", f"{self.faults.chances} lag={self.faults.lag_s}", "")
        self._set_alarm()
        self.next_event = self.time + self.random.choice((60, 300, 1200)) * (0.3 + choice())

    def _calm_down(self) -> None:
        self.storming = False
        self.note("calm", "", "")
        if self.candle_fault_at == float("inf"):
            self.candle_fault_at = self.time
        slow = any(kind in SLOW for kind in self.faults.chances)
        self.calm_from = self.time + (SLOW_S if slow else 0)
        self.faults.chances, self.faults.lag_s = {}, 0.0
        self.die_at = self.fail_at = STEPS_MAX
        self.wall_off = 0.0
        self._set_alarm()

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
        self.note("hands", str(wish), "")
        self.counts[f"hands: {what}"] += 1
        body = json.dumps(wish, default=str).encode()
        self.api.respond("POST", "/sandbox/position", {}, body)
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
            self.dead = True
            before = what == "wait" or self.random.choice((True, False))
            self.note("dying", f"{'before' if before else 'after'} {what:.60}", "")
            if before:
                raise Death
            return Death()
        if what.startswith(("SELECT", "wait", "send", "answer", "PRAGMA", "ROLLBACK")):
            return None  # Only writing fails.
        self.fail_at = STEPS_MAX
        self._set_alarm()
        self.disk_failed_at = self.time
        self.counts["disk faults"] += 1
        self.note("disk", f"fails at {what:.60}", "")
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

    # -- looking from outside --------------------------------------------------------------------

    def note(self, what: str, text: str, body: bytes | str) -> None:
        self.trace.append((self.time, what, text, body))
        if self.show:
            print(_line(self.steps, *self.trace[-1]))

    def _expect(self, holds: bool, name: str, text: str) -> None:
        if not holds:
            raise Violation(name, text)

    def _raw(self, sql: str, *values: object) -> sqlite3.Cursor:
        """Read the journal past the faults."""
        return sqlite3.Connection.execute(self.disk, sql, values)

    def _account(self) -> Account:
        """Return what the journal explains, read past the faults."""
        execute = partial(sqlite3.Connection.execute, self.disk)
        return Journal(SimpleNamespace(execute=execute)).account()  # type: ignore[arg-type]

    def new_journal(self) -> None:
        """Begin an empty journal; what the old one explained is nobody's now."""
        self.lose_journal = False
        self.disk = sqlite3.connect(":memory:", isolation_level=None, factory=Disk)
        self.disk.world = self
        self.foreign += self.own
        self.strangers |= self.executed.keys()
        self.own = self.own_fees = self.own_cash = ZERO
        self.verified = 0
        if self.sent:
            self.clean = False
            self.foreign_at = self.time
            self.note("hands", "the journal is deleted", "")

    def _position(self) -> Decimal:
        book = self.api.account.books.get(PAIR)
        return book.volume if book else ZERO

    def check_request(self, target: str, body: bytes) -> None:
        """What must hold whenever a signed request leaves."""
        fields = dict(parse_qsl(body.decode()))
        nonce = int(fields["nonce"])
        self._expect(nonce > self.nonce, "nonces rise", f"{nonce} after {self.nonce}")
        self.nonce = nonce
        self._expect(
            SANDBOX_SECRET not in target + body.decode(), "no secret", "it is in a request"
        )
        if not target.endswith("AddOrder"):
            return
        name = fields.get("cl_ord_id", "")
        self.counts["orders sent"] += 1
        self._expect(not self.halted, "halted means halted", f"{name} is sent")
        self._verify_ends()
        self._expect("deadline" in fields, "an order has a deadline", str(fields))
        self._expect(name not in self.sent, "one send an intent", f"{name} is sent again")
        self.sent.add(name)
        self.sent_now = name
        self._expect(not self.disk.in_transaction, "written first", "a transaction is open")
        rows = self._raw("SELECT * FROM intents WHERE outcome IS NULL").fetchall()
        known = [row for row in rows if row["id"] == name]
        self._expect(bool(known), "written first", f"{name} is not in the journal")
        others = [row["id"] for row in rows if row["id"] != name]
        self._expect(not others, "nothing sent while an intent is open", f"{others} are")
        durable = self._raw("PRAGMA synchronous").fetchone()[0]
        self._expect(durable >= 2, "written for keeps", f"synchronous is {durable}")
        row = known[0]
        said = fields["type"], Decimal(fields["volume"]), fields.get("reduce_only") == "true"
        meant = row["side"], Decimal(row["volume"]), bool(row["reduce_only"])
        self._expect(said == meant, "sent as written", f"{said} instead of {meant}")
        self._check_attempts(row, is_reducing=said[2])
        idle = self._raw(
            f"SELECT executed FROM intents WHERE outcome NOT IN {PASSING} AND number >"
            " (SELECT coalesce(max(value), 0) FROM (SELECT CAST(value AS INTEGER) AS value FROM"
            " meta WHERE key = 'unfilled_from')) ORDER BY number DESC LIMIT 5"
        ).fetchall()
        useful = len(idle) < 5 or any(Decimal(row[0]) for row in idle)
        self._expect(useful, "no hammering", "five orders in a row traded nothing")
        closes = self.setting.leverage and row["purpose"] == "close"
        self._expect(not closes or said[2], "closing is reduce_only", name)

    def _check_attempts(self, row: sqlite3.Row, is_reducing: bool) -> None:
        """A step that may open is attempted again only after what surely left no order."""
        earlier = self._raw(
            "SELECT outcome, deadline FROM intents WHERE candle = ? AND purpose = ? AND id != ?",
            row["candle"],
            row["purpose"],
            row["id"],
        ).fetchall()
        step = f"candle {row['candle']} {row['purpose']}"
        for outcome, deadline in () if is_reducing else earlier:
            self._expect(outcome in PASSING, "one order a step", step)
            is_proven = outcome != "put off" or self.time > deadline + 120
            self._expect(is_proven, "a second attempt needs proof", step)

    def not_sent(self, target: str) -> None:
        if target.endswith("AddOrder"):
            self.sent.discard(self.sent_now)

    def look_at_exchange(self) -> None:
        """Take note of every order that was executed since the last look."""
        newest = next(reversed(self.api.orders), None)
        if newest == self.newest_order:
            return
        fresh = []
        for txid in reversed(self.api.orders):
            if txid == self.newest_order:
                break
            fresh.append((txid, self.api.orders[txid]))
        self.newest_order = newest
        for txid, row in reversed(fresh):
            self._executed(txid, row)

    def _executed(self, txid: str, row: dict[str, Any]) -> None:
        name = row.get("cl_ord_id", "")
        volume, cost = Decimal(row["vol_exec"]), Decimal(row["cost"])
        sign = 1 if row["descr"]["type"] == "buy" else -1
        self.note("executed", f"{name or 'someone else'} {sign * volume}", "")
        intent = None
        if name:
            self._expect(name not in self.executed, "one execution an order", name)
            self.executed[name] = row | {"txid": txid}
            self.counts["orders executed"] += 1
            if self.storming:
                self.counts["orders executed in a storm"] += 1
            intent = self._raw("SELECT * FROM intents WHERE id = ?", name).fetchone()
        if intent is None:
            self.counts["foreign orders"] += 1
            self.foreign += sign * volume
            self.strangers.add(name)
            self.foreign_at, self.clean = self.time, False
            return
        ended = intent["outcome"]
        self._expect(ended is None, "what has an end does not happen", f"{name} was {ended}")
        before, self.own = self.own, self.own + sign * volume
        self.own_fees += Decimal(row["fee"])
        self.own_cash -= sign * cost
        self.turns += intent["purpose"] == "turn"
        bound = max(SIZE, abs(before))
        self._expect(abs(self.own) <= bound, "never beyond size", f"{before} became {self.own}")

    def on_event(self, event: Event) -> None:
        if event.kind == "decision":
            self.verify()
            calm_s = CALM_CANDLES * self.setting.interval_s
            if self.time - max(self.calm_from, self.foreign_at, self.born) > calm_s:
                self._check_on_target(event.values)

    def verify(self) -> None:
        """Compare what the journal says has ended with what the exchange has done."""
        self._verify_ends()
        self._verify_account()

    def _verify_ends(self) -> None:
        rows = self._raw(
            "SELECT * FROM intents WHERE number > ? AND outcome IS NOT NULL ORDER BY number",
            self.verified,
        )
        for row in rows.fetchall():
            self.verified = row["number"]
            signed = Decimal(row["executed"]) * (1 if row["side"] == "buy" else -1)
            if row["purpose"] == "adopt":
                self.own, self.foreign = self.own + signed, self.foreign - signed
                self.own_cash -= Decimal(row["cost"]) * (1 if row["side"] == "buy" else -1)
                continue
            real = self.executed.get(row["id"], {"vol_exec": 0, "cost": 0, "fee": 0})
            if (row["outcome"] == "given up") != (row["id"] in self.strangers):
                self._change_hands(row, real, -1 if row["outcome"] == "given up" else 1)
            if row["outcome"] == "given up":
                continue
            for mine, theirs in (("executed", "vol_exec"), ("cost", "cost"), ("fee", "fee")):
                self._expect(
                    Decimal(row[mine]) == Decimal(real[theirs]),
                    "journal = fills",
                    f"{row['id']} {row['outcome']}: {mine} {row[mine]}, real {real[theirs]}",
                )
            self.counts[f"outcome {row['outcome']}"] += 1

    def _change_hands(self, row: sqlite3.Row, real: Mapping[str, Any], sign: int) -> None:
        """An order given up is nobody's from now on; one found by a new journal its own."""
        self.strangers ^= {row["id"]}
        volume = sign * Decimal(real["vol_exec"]) * (1 if row["side"] == "buy" else -1)
        cost = sign * Decimal(real["cost"]) * (1 if row["side"] == "buy" else -1)
        self.own, self.foreign = self.own + volume, self.foreign - volume
        self.own_cash, self.own_fees = (
            self.own_cash - cost,
            self.own_fees + sign * Decimal(real["fee"]),
        )
        self.clean = False

    def _verify_account(self) -> None:
        if self._raw("SELECT 1 FROM intents WHERE outcome IS NULL").fetchone():
            return
        told = list(self._account()[:3])
        real = [self.own, self.own_cash, self.own_fees]
        self._expect(told == real, "journal = fills", f"the account is {told}, really {real}")
        if self.setting.leverage:
            books = self._position()
            total = self.own + self.foreign
            self._expect(books == total, "fills = books", f"{books}, the fills are {total}")
        self._check_equity_of_books()

    def _check_equity_of_books(self) -> None:
        account = self.api.account
        if not self.setting.leverage:
            return
        costs = account.fees.get(QUOTE, ZERO) + account.rollovers.get(QUOTE, ZERO)
        gains = account.realized.get(QUOTE, ZERO) + account.unrealized(QUOTE)
        expected, equity = self.setting.balance - costs + gains, account.equity(QUOTE)
        self._expect(equity == expected, "equity identity", f"{equity}, not {expected}")

    def _true_direction(self, candle: int) -> int:
        series = self.api.markets.feed.series(self.api.markets.rules[PAIR])
        step = self.setting.interval_s // 60
        length = self.setting.length * step
        here = (candle - series.first) // 60 + step - 1
        while here >= length:
            difference = series.row(here)[3] - series.row(here - length)[3]
            if difference:
                return 1 if difference > 0 else -1
            here -= step
        return 0

    def _check_on_target(self, values: Mapping[str, str]) -> None:
        """In calm times the position is where the candles say, or it is said why not."""
        self.counts["calm decisions"] += 1
        reason, held = values["reason"], Decimal(values["held"])
        if "first start" in reason or "the loss since" in reason:
            return
        wanted = self._true_direction(int(values["candle"]))
        target = max(wanted, 0) if not self.setting.leverage else wanted
        candles = self.setting.length + 3
        polluted = self.candle_fault_at > self.time - self.setting.interval_s * candles
        if not polluted:
            self._expect(int(values["target"]) == target, "back on target", f"{values}")
        before, self.rules_objected = self.rules_objected, False
        if held == SIZE * int(values["target"]):
            return
        if not before and re.search("has no margin|is not offered|the smallest order", reason):
            self.rules_objected = True  # It read the pair's rules in the storm; next time it knows.
            return
        why = (
            "are needed",
            "margin level",
            "max_orders_per_day",
            "left alone below",
            "tried in this candle already",
        )
        self._expect(any(word in reason for word in why), "back on target", f"{values}")
        self.counts["calm but held back"] += 1

    def _check_flat(self) -> None:
        halted = self._raw("SELECT value FROM meta WHERE key = 'halted'").fetchone()
        self._expect(bool(halted and halted[0]), "flatten halts", "no halt is written")
        rest = "too small to be closed" in halted[0] and self.faults.seen["rules"]
        self._expect(rest or abs(self.own) < SIZE / 10, "flatten closes", f"{self.own} is held")

    def _check_reason(self, text: str, code: int) -> None:
        """A stop says why, and what it says is true."""
        self._expect(len(text) > 20, "a halt says why", repr(text))
        name = "true reason"
        text = text.removeprefix("halted: ").partition(". `krakenbot resume`")[0]
        recent = self.time - 3600
        if code == 77:
            known = self.faults.seen["lockout"] + self.faults.seen["nonce"]
            self._expect(known > 0, name, text)
        elif found := re.search(r"exchange holds (\S+) \S+ the journal explains (\S+):", text):
            self._expect(self.foreign != 0 or self.foreign_at > recent, name, text)
            self._expect(found[1] != found[2], name, text)
        elif "that the journal does not know" in text:
            self._expect(self.foreign_at > START, name, text)
        elif "is not found, yet" in text:
            self._expect(self.foreign_at > recent, name, text)
        elif "that the journal does not know" in text:
            names = re.findall(r"O\w{5}-\w{5}-\w{6}", text)
            rows = self._raw("SELECT exchange_order_id FROM intents").fetchall()
            self._expect(bool(names) and not {row[0] for row in rows} & {*names}, name, text)
        elif "in a row traded nothing" in text:
            rows = self._raw(
                f"SELECT id, executed FROM intents WHERE outcome NOT IN {PASSING}"
                " ORDER BY number DESC LIMIT 5"
            ).fetchall()
            idle = not any(Decimal(row[1]) for row in rows)
            self._expect(len(rows) == 5 and idle, name, text)
        elif "the loss since" in text:
            flat = abs(self.own) < SIZE or ("too small" in text and self.faults.seen["rules"])
            self._expect(self.setting.max_loss is not None and flat, name, text)
        elif "flattened by hand" in text or "could not close" in text:
            pass
        elif "journal cannot be written" in text or "nonce cannot be written" in text:
            self._expect(self.disk_failed_at > recent, name, text)
        else:
            raise Violation(name, f"not expected at all: {text}")

    def _last_look(self) -> None:
        """With all faults gone: on target, nothing open, and every book the same to the cent."""
        self.time += 1000
        self.calm_from = self.time
        for _ in range(5):
            try:
                self._process(once=True)
                break
            except StopError as error:
                self._check_reason(str(error), error.exit_code)
                self._resume()
                self._adopt_at_last()
        else:
            raise Violation("a person can mend it", "five times")
        self.time += self.setting.interval_s
        with contextlib.suppress(StopError):
            self._process(once=True)
        rows = self._raw("SELECT id FROM intents WHERE outcome IS NULL").fetchall()
        self._expect(not rows, "nothing stays open", str(rows))
        self.time += 60
        bot, journal, lock = self._open_process()
        read_ledger(bot._exchange, bot._exchange.rules(), journal, bot._clock)
        lock.close()
        self._check_equity_of_journal()
        for table in ("meta", "intents", "decisions", "charges"):
            text = str([tuple(row) for row in self._raw(f"SELECT * FROM {table}")])
            hidden = SANDBOX_KEY not in text and SANDBOX_SECRET not in text
            self._expect(hidden, "no secret", f"table {table}")

    def _adopt_at_last(self) -> None:
        with contextlib.suppress(StopError):
            self._process(adopt=True, once=True)

    def _check_equity_of_journal(self) -> None:
        """Start + the journal's profit = the exchange's equity; a turn's fees round twice."""
        if not self.clean or not self.setting.leverage:
            return
        self.api.holder.mark_to_market()
        account, book = self.api.account, self.api.account.books.get(PAIR)
        if book is None:
            return
        pnl = self._account().pnl(book.price)
        difference = abs(account.equity(QUOTE) - self.setting.balance - pnl)
        self._expect(
            difference <= TICK * self.turns,
            "equity identity",
            f"the journal's profit is {pnl}, the exchange's differs by {difference}",
        )
        self.counts["journals exact to the end"] += 1


class Watcher(io.StringIO):
    """Every log line: kept for the trace, and searched for secrets."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def write(self, line: str) -> int:
        if SANDBOX_KEY in line or SANDBOX_SECRET in line:
            raise Violation("no secret", f"in the log: {line}")
        _, _, level, text = line.split(" ", 3)
        self.world.note(level.lower(), text, "")
        return len(line)


def _line(steps: int, when: float, what: str, text: str, body: bytes | str) -> str:
    shown = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    shown = re.sub(r"nonce=\d+&?|&?nonce=\d+", "", shown)
    most = 160 if what == "got" else 400
    return f"{when - START:10.2f} {what:9} {text} {shown[:most]}".rstrip()


def episode(seed: int, folder: Path, show: bool = False) -> tuple[float, Counter[str], str]:
    """Return the days, the counts and the failure (or nothing) of one seed."""
    days = random.Random(f"days {seed}").choice((0.5, 1, 1, 1, 2.5))
    world = World(seed, days, folder, show)
    log.setup("info" if show else "warning", "text", Watcher(world))
    failure = ""
    try:
        world.run()
    except Violation as violation:
        lines = [_line(0, *entry) for entry in list(world.trace)[-TRACE_LINES:]]
        failure = (
            f"VIOLATION seed={seed} step={world.steps} day={(world.time - START) / DAY_S:.3f}\n"
            f"{world.setting}\n" + "\n".join(lines) + f"\n{violation}\n"
            f"again: python -m tests.torture --replay {seed}"
        )
    counts = world.counts + Counter({f"fault {k}": n for k, n in world.faults.seen.items() if k})
    counts["steps"] = world.steps
    return days, counts, failure


def _one(seed: int) -> tuple[int, float, Counter[str], str]:
    assert _folder is not None
    gc.collect()
    gc.freeze()  # The bot collects garbage itself, which need not walk over the simulation.
    return seed, *episode(seed, _folder)


_folder: Path | None = None


def _begin(root: str, is_worker: bool = True) -> None:
    global _folder
    if is_worker:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _folder = Path(tempfile.mkdtemp(dir=root))
    gc.disable()


def episodes(first: int, days: float, jobs: int) -> Iterator[tuple[int, float, Counter[str], str]]:
    """Yield seed, days, counts and failure of one episode after the other."""
    root = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    seeds = range(first, first + int(days * 2) + 1)
    try:
        if jobs == 1:
            _begin(root, is_worker=False)
            yield from map(_one, seeds)
        else:
            with multiprocessing.Pool(jobs, _begin, (root,), maxtasksperchild=50) as pool:
                yield from pool.imap_unordered(_one, seeds, chunksize=4)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=float, default=100.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--keep-going", action="store_true", help="show every failure, not one")
    parser.add_argument("--ci", action="store_true", help="fixed seeds for about a minute")
    chosen = parser.parse_args(arguments)
    if chosen.replay is not None:
        with tempfile.TemporaryDirectory() as folder:
            _, _, failure = episode(chosen.replay, Path(folder), show=True)
        print(failure.rpartition("\n")[0].rpartition("\n")[2] or "no violation")
        return 1 if failure else 0
    first, days, jobs = chosen.seed, chosen.days, chosen.jobs
    if chosen.ci:
        first, days, jobs = 1, 60.0, os.cpu_count() or 1
    began = time.monotonic()
    done, said, failures = 0.0, 0.0, 0
    total: Counter[str] = Counter()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    for _, lasted, counts, failure in episodes(first, days, jobs):
        done += lasted
        total += counts
        if failure:
            print(failure, flush=True)
            failures += 1
            if not chosen.keep_going:
                break
        if done - said >= 1000:
            said = done
            _summary(done, total, failures, time.monotonic() - began)
        if done >= days or stopped:
            break
    _summary(done, total, failures, time.monotonic() - began)
    for name, count in sorted(total.items()):
        print(f"  {name}: {count}")
    return 1 if failures else 0


def _summary(days: float, total: Mapping[str, int], failures: int, seconds: float) -> None:
    faults = sum(count for name, count in total.items() if name.startswith("fault "))
    print(
        f"days={days:.0f} orders={total['orders executed']} faults={faults} "
        f"deaths={total['deaths']} violations={failures} seconds={seconds:.0f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
