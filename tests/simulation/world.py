"""One account, one bot on one machine, everything from one seed.

The rooms: `machine` and `network` are what the shipped program runs on, `market` and `lies` the
exchange, `storms` what goes wrong and when, `people` who starts the program and who else trades,
`invariants` and `duty` what must hold. Here they meet, and here time passes.
"""

import contextlib
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Container
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from krakenbot.bot import Event
from krakenbot.journal import Account, Journal
from krakenbot.model import ZERO
from krakenbot.pairs import parse_rules
from krakenbot.rulefile import load
from krakenbot.simulated.listing import PAIRS, SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.wire import Answer
from tests.simulation.duty import FLAT_EVERY, Duty
from tests.simulation.invariants import QUOTE, Truth
from tests.simulation.lies import Trouble
from tests.simulation.machine import Death, Machine
from tests.simulation.market import Market, TurningFeed
from tests.simulation.people import SIZES, People
from tests.simulation.report import START, Trace, Violation
from tests.simulation.storms import Storms

DAY_S = 86400.0
STEPS_MAX = 3_000_000  # An episode that needs more runs in circles.
# As sma-slope, but flat in each fifth candle.
RULE = """
CANDLES = {length} + 20

def direction(candles):
    step_s = candles[1].time - candles[0].time
    for at in range(len(candles) - 1, {length} - 1, -1):
        if candles[at].time // step_s % {flat} == 0:
            return 0
        rise = candles[at].close - candles[at - {length}].close
        if rise:
            return 1 if rise > 0 else -1
    return None
"""


class Over(BaseException):
    """The episode's time is over."""


class Setting(NamedTuple):
    """What stays the same in an episode; by default nothing that disturbs it."""

    interval: int = 5  # Minutes.
    pair: str = "XXBTZUSD"  # The exchange's own name.
    length: int = 2
    balance: Decimal = Decimal(1_000_000)
    coins: Decimal = ZERO
    fee_rate: Decimal = Decimal("0.0026")
    max_loss: Decimal | None = None
    orders_max: int = 5000
    tier: str = "pro"
    turning: float = 0.0
    alone: bool = True  # Nobody else touches the account or the journal, nothing is changed.
    rule: bool = False  # A rule file decides, which is flat now and then.
    blinding: bool = False  # Views may lag for longer than the bot waits.
    dead_first: bool = False  # The first address of the exchange's name swallows every packet.


class World:
    """See the module. `keep` are the numbers of the faults that happen; None: all of them."""

    feed_type, trouble_type = TurningFeed, Trouble

    def __init__(
        self,
        seed: int,
        days: float,
        folder: Path,
        *,
        keep: frozenset[int] | None = None,
        show: bool = False,
        setting: Setting | None = None,
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.seed = seed
        self.random = random.Random(f"{seed} world")
        self.setting = s = setting or choose(self.random, seed)
        self.time, self.end = self.first_moment(), START + days * DAY_S
        self.wall_off = self.slept = 0.0
        self.counts: Counter[str] = Counter()
        self.rules = parse_rules(s.pair, PAIRS[s.pair])
        self.trace = Trace(show)
        self.steps = 0
        self.feed = self.feed_type(seed, self.time, s.interval * 60, s.length, s.turning)
        self.api = Market(
            self.feed,
            lambda: self.time,
            random.Random(f"{seed} market"),
            fee_rate=s.fee_rate,
            balances={QUOTE: s.balance, self.rules.base: s.coins},
            tier=s.tier,
        )
        self.trouble_maker = self.trouble_type(self.api, self.pass_time)
        self.trouble_maker.random = random.Random(f"{seed} trouble")
        self.storms = Storms(self, keep)
        self.trouble_maker.strikes = self.storms.strikes
        self.machine = Machine(self, folder)
        # The process under test.
        self.settings: dict[str, str] = self._first_settings(folder)
        self.parts: Any = None
        self.is_dead = self.is_halted = self.is_alive = False
        self.born = 0.0
        self.stop_asked = False
        self.disk_failed_at = float("-inf")
        self.connection: sqlite3.Connection | None = None
        self.people = People(self, folder)
        self.truth = Truth(self)
        self.duty = Duty(self)

    def first_moment(self) -> float:
        return START + self.random.uniform(0, 7200)

    def _first_settings(self, folder: Path) -> dict[str, str]:
        s = self.setting
        choice = self.random.choice
        settings = {
            "MODE": "live",
            "PAIR": self.rules.altname,
            "INTERVAL": str(s.interval),
            "SIZE": str(SIZES[s.pair][0]),
            "LEVERAGE": str(choice((0, 2, 2, 2, 3, 3))),
            "REVERSAL": choice(("two-step", "two-step", "one-order")),
            "ENTRY": choice(("now", "now", "next-turn")),
            "STRATEGY_LENGTH": str(s.length),
            "RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
            "RISK_MAX_ORDERS_PER_DAY": str(s.orders_max),
            "EXCHANGE_URL": f"http://localhost:8{'0' * 3}",
            "STATE_DIRECTORY": str(folder / "state"),
            "LOG_LEVEL": "info" if self.trace.show else "warning",
        }
        if s.rule:
            load.cache_clear()  # The episode before had a file of the same name.
            path = folder / "rule.py"
            path.write_text(RULE.format(length=s.length, flat=FLAT_EVERY))
            settings |= {"STRATEGY_NAME": "file", "STRATEGY_FILE": str(path)}
        if s.max_loss is not None:
            settings["RISK_MAX_LOSS"] = str(s.max_loss)
        self.key = SANDBOX_KEY
        return settings

    def environ(self) -> dict[str, str]:
        """Return the environment of the next process."""
        return {
            "KRAKEN_API_KEY": self.key,
            "KRAKEN_API_SECRET": SANDBOX_SECRET,
            **{f"KRAKENBOT_{key}": value for key, value in self.settings.items()},
        }

    @property
    def leverage(self) -> int:
        return int(self.settings["LEVERAGE"])

    @property
    def interval_s(self) -> int:
        return int(self.settings["INTERVAL"]) * 60

    @property
    def size(self) -> Decimal:
        return Decimal(self.settings["SIZE"])

    def pass_time(self, seconds: float) -> None:
        target = self.time + max(seconds, 0.0)
        while (due := min(self.storms.due, self.duty.due)) <= min(target, self.end):
            self.time, slept = max(self.time, due), self.slept
            (self.storms if due == self.storms.due else self.duty).act()
            target += self.slept - slept  # While the machine sleeps, nothing waits.
        self.time = target
        if self.time >= self.end:
            raise Over

    def wait(self, seconds: float) -> None:
        """Pass the time, and let the process hear a signal that came meanwhile."""
        self.pass_time(seconds)
        if self.stop_asked and self.machine.hears:
            self.stop_asked = False
            self.machine.terminate()

    def touch(self, what: str) -> BaseException | None:
        """Count one step; raise, or return what is to be raised after it was carried out."""
        self.steps += 1
        if self.is_dead:
            raise Death
        if self.steps < self.storms.alarm:
            return None
        self.expect(self.steps < STEPS_MAX, "progress", f"{STEPS_MAX} steps are not enough")
        return self.storms.strike(what)

    def way_s(self) -> float:
        return 0.01 + self.trouble_maker.random.random() * 0.1

    def spoil(self, most: int) -> int:
        return self.trouble_maker.random.randrange(max(most, 1))

    def trouble(self, words: Container[str]) -> str:
        return self.storms.wire(words)

    def respond(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Let one request reach the exchange."""
        self.note("ask", target, body)
        self.touch("send")
        if method == "POST":
            self.truth.check_request(target, headers.get("api-key", ""), body)
        usual = self.trouble_maker.chances
        if target.endswith("AddOrder"):  # Where faults cost money, they shall come more often.
            chances = {word: min(1.0, 4 * chance) for word, chance in usual.items()}
            self.trouble_maker.chances = chances
        try:
            answer = self.trouble_maker.respond(method, target, headers, body)
        except OSError as error:
            self.note("lost", str(error))
            raise
        except Exception as error:  # The simulation's own, not to be taken for the program's.
            raise Violation("the simulation works", repr(error)) from error
        finally:
            if target.endswith("AddOrder") and self.trouble_maker.chances is chances:
                self.trouble_maker.chances = usual
            self.truth.look()
        self.note("got", str(answer.status), answer.body)
        return answer

    def expect(self, holds: object, name: str, text: str) -> None:
        if not holds:
            raise Violation(name, text)

    def note(self, what: str, text: str, body: bytes | str = "") -> None:
        self.trace.add(self.time, what, text, body)

    def log(self, line: str) -> None:
        self.expect(SANDBOX_SECRET not in line and self.key not in line, "no secret", line)
        if line.strip():
            self.note("log", line.strip())

    def on_event(self, event: Event) -> None:
        self.counts[f"event {event.kind}"] += 1
        self.duty.hear(event)
        if event.kind == "decision":
            self.truth.verify()
            lost = not self.leverage and self.truth.unlooked
            self.expect(not lost, "a lost journal is noticed", f"nobody has seen {lost}")

    def raw(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """Read the journal past all faults."""
        connection = self._journal()
        return [] if connection is None else connection.execute(sql, values).fetchall()

    def _journal(self) -> sqlite3.Connection | None:
        """Return a connection to the journal in use, once it has tables."""
        if self.connection is None:
            connection = self.machine.read_only()
            made = "SELECT 1 FROM sqlite_master WHERE name = 'intents'"
            if connection is not None and not connection.execute(made).fetchone():
                connection.close()
                return None
            self.connection = connection
        return self.connection

    def close_reader(self) -> None:
        """Let go of the journal's file."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def meta(self, key: str) -> str:
        rows = self.raw("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else ""

    def account(self) -> Account | None:
        """Return what the bot's books say: those of the process that runs, or those on disk."""
        self.machine.looking = True
        try:
            if self.is_alive:
                with contextlib.suppress(sqlite3.ProgrammingError):  # It is closed already.
                    return Account(*self.parts.journal.account())
            connection = self._journal()
            return None if connection is None else Journal(connection).account()
        finally:
            self.machine.looking = False

    def position(self) -> Decimal:
        book = self.api.account.positions.get(self.setting.pair)
        return book.volume if book else ZERO

    def seen(self, word: str) -> bool:
        """Return whether something like this has happened in the episode."""
        return any(word in name and count for name, count in self.trouble_maker.seen.items())

    def changed(self, key: str) -> bool:
        return bool(self.counts[f"changed {key.upper()}"])

    @property
    def blind(self) -> bool:
        """Return whether views may have lagged for longer than the bot can wait."""
        return self.storms.blind

    @property
    def sizes(self) -> Decimal:
        """Return the largest size that was configured in this episode."""
        return max(Decimal(x) for x in (self.settings["SIZE"], *self.storms.sizes))


def choose(random: random.Random, seed: int) -> Setting:
    choice = random.choice
    poor = random.random() < 0.04
    return Setting(
        pair=choice(("XXBTZUSD", "XXBTZUSD", "XXBTZUSD", "XETHZUSD")),
        interval=random.choices((1, 5, 60, 240, 1440), (75, 12, 8, 4, 1))[0],
        length=choice((2, 2, 2, 2, 2, 3, 3, 5)),
        balance=Decimal(480 if poor else 1_000_000),
        coins=choice((ZERO, Decimal("0.5"))),
        fee_rate=choice((Decimal("0.008"), Decimal("0.0026"), ZERO)),
        max_loss=choice((None, None, None, Decimal(20), Decimal(200))),
        orders_max=random.choices((20000, 30), (19, 1))[0],
        tier=choice(("sandbox", "starter", "pro")),
        turning=choice((0.5, 0.7, 0.9)),
        alone=choice((True, False, False)),
        rule=random.random() < 0.25,
        blinding=random.random() < 0.05,
        dead_first=random.random() < 0.05,
    )


def episode_days(setting: Setting) -> float:
    """Return how long an episode lasts, so that all of them take about as long to run."""
    return {1: 0.4, 5: 0.8, 60: 1.0, 240: 2.0, 1440: 4.0}[setting.interval]
