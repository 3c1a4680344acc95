"""What goes wrong, and when: storms of faults with calm between them, each fault with a number.

Numbers are given in the order in which faults are drawn. A run that keeps only some of them tells
the same story with fewer faults, which is how a failing seed is shrunk.
"""

import random
import sqlite3
from collections.abc import Container
from typing import TYPE_CHECKING

from krakenbot.simulated.faults import FAULTS
from tests.simulation.lies import ALL_VIEWS, LIES, ORDER_VIEWS, WORDS
from tests.simulation.machine import ENOSPC, Death
from tests.simulation.network import WIRE

if TYPE_CHECKING:
    from tests.simulation.world import World

NEVER = 10**12
# What goes on for a while, so that one of them in a storm does much.
RARE = (
    *("maintenance", "cancel_only", "post_only", "rules", "clock", "closed", "pool", "delisted"),
    *("dead-view", "lockout", "time-lie"),
)
CANDLES = ("candle", "shifted", "future")
STORMY = [*{**FAULTS, **WORDS, **WIRE}]


class Storms:
    """The weather of one world. `due` is when it next changes."""

    def __init__(self, world: "World", keep: frozenset[int] | None) -> None:
        self.world, self.keep = world, keep
        self.random = random.Random(f"{world.seed} storms")
        self.drawn = 0
        self.struck: list[int] = []
        self.is_on = self.blind = self.lied = self.dark = False
        self.sizes: set[str] = set()
        self.chances: dict[str, float] = {}  # Of what happens on the wire.
        self.die_at = self.fail_at = self.alarm = NEVER
        self.loses_power = False
        self.calm_from = world.time
        self.candles_wrong_at = float("-inf")
        self.due = world.time + self.random.uniform(60, 600)

    def strikes(self, what: str) -> bool:
        """Give the next fault its number; return whether it happens."""
        self.drawn += 1
        if self.keep is not None and self.drawn not in self.keep:
            return False
        self.struck.append(self.drawn)
        self.world.note("fault", f"#{self.drawn} {what}")
        return True

    def wire(self, words: Container[str]) -> str:
        """Draw what happens to a connection, out of these words."""
        for word, chance in self.chances.items():
            if word in words and self.random.random() < chance and self.strikes(word):
                self.world.trouble_maker.seen[word] += 1
                return word
        return ""

    def act(self) -> None:
        """Begin or end a storm; outside of one, let someone else lay hands on the account."""
        world, chance, choice = self.world, self.random.random, self.random.choice
        scale = max(1.0, world.interval_s / 300)
        if self.is_on:
            self.calm_down()
            usual = world.duty.back_s()
            self.due = world.time + usual * choice((0.5, 1.1, 1.5)) + 200 * chance()
        elif chance() < 0.04 and self.strikes("sleep"):
            self.sleep(choice((20, 600, 7200)) * chance())
            self.due = world.time + 600 * chance()
        elif chance() < 0.12 and not world.setting.alone:
            if self.strikes("hands"):
                world.people.hands()
            self.due = world.time + choice((20, 2000)) * chance()
        else:
            self._begin()
            self.due = world.time + choice((100, 500, 1500)) * (0.3 + chance()) * scale
            if scale > 1:  # Where candles are long, let it storm when one has just ended.
                step = world.interval_s
                self.due = (world.time // step + 1) * step + 600 * chance()

    def _begin(self) -> None:
        world, chance, choice = self.world, self.random.random, self.random.choice
        self.is_on = True
        self.calm_from = float("inf")
        world.counts["storms"] += 1
        words = self.random.sample(STORMY, choice((1, 2, 4, 8)))
        weight = choice((0.01, 0.02, 0.05, 0.1, 0.3))
        chances = {word: weight / (20 if word in RARE else 1) for word in words}
        if chance() < 0.2:
            chances[choice(("margin", "partial", "late-fill"))] = choice((0.1, 0.3, 1.0)) / 4
        self.chances = {word: x for word, x in chances.items() if word in WIRE}
        faults = {w: x for w, x in chances.items() if w not in self.chances}
        world.trouble_maker.chances = faults
        lag = choice((0, 0, 5, 10, 30, 60))
        if world.setting.blinding and chance() < 0.3:
            lag = 240
        elif world.setting.blinding and self.strikes("dark"):  # Some views lag for very long.
            self.dark = True
            # Coins of its own and those that were there look alike: there, trades must tell.
            both = (ORDER_VIEWS, ALL_VIEWS) if world.leverage else (ORDER_VIEWS,)
            world.trouble_maker.dark = choice(both)
            world.trouble_maker.dark_from = world.time
        world.trouble_maker.lag_s = float(lag) if lag and self.strikes(f"lag {lag}") else 0.0
        self.blind |= world.trouble_maker.lag_s > 60 or "no-deadline" in faults
        self.lied |= any(word in LIES or word == "yes-after-no" for word in faults)
        if any(word.startswith(CANDLES) for word in chances):
            self.candles_wrong_at = float("inf")
        if chance() < 0.4 and self.strikes("death"):
            self.die_at = world.steps + self.random.randint(1, 400)
            self.loses_power = choice((True, False))
        if chance() < 0.1 and self.strikes("disk"):
            self.fail_at = world.steps + self.random.randint(1, 400)
        if chance() < 0.2 and self.strikes("wall clock"):
            world.wall_off = choice((-7200, -40, -3, -0.5, 0.7, 4, 45, 9000)) * chance()
        if chance() < 0.05 and self.strikes("sleep"):
            self.sleep(choice((20, 600, 7200)) * chance())
        if chance() < 0.15 and self.strikes("spread"):
            world.api.spread = choice((1, 20, 20000))
            world.api.slippage = choice((0, 3, 30))
        if chance() < 0.1 and self.strikes("stop"):
            world.stop_asked = True
        if chance() < 0.03 and not world.setting.alone and self.strikes("journal"):
            world.people.next_loss = choice(("deleted", "backup", "damaged", "older"))
        world.note("storm", f"{chances} lag={lag}")
        self.set_alarm()

    def sleep(self, seconds: float) -> None:
        """The whole machine sleeps: time passes, but the monotonic clock stands still."""
        self.world.note("sleep", f"{seconds:.0f} s")
        if self.calm_from > self.world.time:  # A pause under way lasts longer by as much.
            self.calm_from += seconds
        self.world.slept += seconds
        self.world.time += seconds
        self.world.duty.woke_at = self.world.time
        self.world.duty.decided_at += seconds
        self.world.duty.told_at += seconds
        self.world.born += seconds
        self.world.truth.foreign_at += seconds

    def calm_down(self) -> None:
        world = self.world
        self.is_on = False
        world.note("calm", "")
        self.calm_from = max(world.time, world.trouble_maker.lasts_until())
        if self.candles_wrong_at == float("inf"):
            self.candles_wrong_at = world.time
        world.trouble_maker.chances, self.chances = {}, {}
        world.trouble_maker.lag_s, world.trouble_maker.dark = 0.0, {}
        self.die_at = self.fail_at = NEVER
        world.wall_off = 0.0
        world.api.spread = world.api.slippage = 0
        self.set_alarm()

    def set_alarm(self) -> None:
        self.alarm = min(self.die_at, self.fail_at, 3_000_000)

    def die_soon(self) -> None:
        """Let the next process die soon as well."""
        if self.is_on and self.random.random() < 0.5 and self.strikes("death"):
            self.die_at = self.world.steps + self.random.randint(1, 150)
            self.loses_power = self.random.choice((True, False))
            self.set_alarm()

    def strike(self, what: str) -> BaseException | None:
        """Let the process die or the disk fail at this step, before it or after it."""
        world = self.world
        if world.steps >= self.die_at:
            self.die_at = NEVER
            self.set_alarm()
            world.is_dead = True
            before = what in ("wait", "answer") or self.random.choice((True, False))
            world.note("dying", f"{'before' if before else 'after'} {what:.60}")
            if before:
                raise Death
            return Death()
        if what.startswith(("SELECT", "wait", "send", "answer", "PRAGMA", "ROLLBACK")):
            return None  # Only writing fails.
        self.fail_at = NEVER
        self.set_alarm()
        world.disk_failed_at = world.time
        world.counts["disk faults"] += 1
        world.note("disk", f"fails at {what:.60}")
        if what == "write":
            raise ENOSPC
        error = sqlite3.OperationalError(
            self.random.choice(("database or disk is full", "disk I/O error"))
        )
        if what.startswith("COMMIT") and self.random.choice((True, False)):
            return error  # It is on disk although the disk says otherwise.
        raise error
