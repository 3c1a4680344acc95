"""Every fault, and every pair of faults, through a first entry and a reversal.

    python -m tests.exhaustive            all of them
    python -m tests.exhaustive --sample   every fifth pair, for `.ci/run`

The shipped program runs on the simulated machine (see tests/simulation), each time with one or two
faults at one or two of its requests and writes, deaths and restarts included. Every run must end
on target, or halted for a reason that is true, with all invariants of the simulation kept.
"""

import argparse
import contextlib
import os
import random
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Container, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from krakenbot.errors import RefusedError
from krakenbot.model import ZERO
from krakenbot.simulated.feed import Numbers
from krakenbot.simulated.wire import Answer
from tests.simulation import market
from tests.simulation.episode import each, scratch, simulated
from tests.simulation.lies import ALL_VIEWS, ORDER_VIEWS, Trouble
from tests.simulation.machine import ENOSPC, Death
from tests.simulation.people import Ended
from tests.simulation.report import START, Violation
from tests.simulation.world import Over, Setting, World

INTERVAL_S = 300
FIRST_TICK = 816840
RISING = 40  # Candles that rise; those after them fall.
ON_TARGET_S = 1500.0  # So long after the reversal is due, it must have been made.
STARTS_MAX = 40
DEAD_S = 5400.0  # So long one view is refused.
SLEEP_S = 200.0
SPREAD_S, SPREAD_TICKS = 30.0, 20000
BACK_S = 20.0  # So far the host's clock goes back; nothing is opened when it is 30 s off.
RULES_S = 2400.0  # How long the smallest order is larger than the bot's.
SHOWN_EVERY = 50  # First faults.
EACH_MAX = 2  # Of requests that repeat themselves, the first ones and the last are tried.
VARIANTS: dict[str, dict[str, str]] = {
    "two-step": {"LEVERAGE": "2", "REVERSAL": "two-step"},
    "one-order": {"LEVERAGE": "2", "REVERSAL": "one-order"},
    "no margin": {"LEVERAGE": "0", "REVERSAL": "two-step"},
}
OPEN_TO_ALL = ("Time", "AssetPairs", "OHLC", "SystemStatus", "Ticker", "Assets")
PUBLIC = ("refused", "lost-before", "death-after", "dead-addresses", "half")
PRIVATE = (*PUBLIC, "lag", "nonce", "rate", "key", "service", "dead-view")
ORDER = (
    *("refused", "lost-before", "lost-after", "timeout", "stuck", "overdue", "late-fill"),
    *("rate", "margin", "pool", "partial", "service", "unknown", "nonce", "key", "lockout"),
    *("cancel_only", "death-before", "death-after", "unseen", "untold"),
    *("dead-addresses", "half", "death-deleted", "death-stuck-deleted", "death-backup", "rules"),
    *("hands", "sleep", "death-clock"),
)
# Without one of these no halt is called for.
MAY_HALT = (
    *("disk", "disk-done", "key", "lockout", "unseen", "untold", "death-deleted"),
    *("death-stuck-deleted", "death-backup", "hands"),
)
WRITE = ("death-before", "death-after", "disk", "disk-done")
# As the second of two faults: one of each sort, deaths around writes and orders only.
ORDER_AGAIN = (
    *("lost-before", "lost-after", "stuck", "overdue", "late-fill", "rate", "margin", "partial"),
    *("service", "nonce", "death-after"),
)
WRITE_AGAIN = ("death-after", "disk")
LAGGING = (
    *("OpenPositions", "TradeBalance", "Balance", "QueryOrders", "OpenOrders", "ClosedOrders"),
    "TradesHistory",
)


class Point(NamedTuple):
    """A place where something can go wrong. `name` is a method, "write" or "nonce"."""

    index: int
    name: str


class Outcome(NamedTuple):
    points: tuple[Point, ...]
    end: str  # "on target", "halted" or the invariant that does not hold.
    text: str = ""
    orders: int = 0  # Executed.


NAMES = re.compile(r"/\S+|O[0-9A-Z]{5}-[0-9A-Z-]+|[0-9a-f]{8}-[0-9a-f-]+|[0-9.]+")
Plan = tuple[tuple[int, str], ...]


class HillFeed(market.TurningFeed):
    """Prices that rise until one candle, and fall from then on."""

    kept = RISING

    def _rows(self, start: int, scale: int) -> Iterator[Numbers]:
        for number in range(10**6):
            price = FIRST_TICK + 20 * number - 80 * max(0, number - RISING + 1)
            close = price + (20 if number < RISING else -60)
            high, low = (price + 80) / scale, (price - 80) / scale
            yield price / scale, high, low, close / scale, market.VOLUME


class Scripted(Trouble):
    """An exchange at which exactly the planned faults happen."""

    lab: "Lab"

    def _draw(self, name: str, method: str) -> str:
        return self.lab.arrive(name)

    def _with(self, word: str, name: str, request: Any) -> Answer:
        lab, now = self.lab, self.api.now()
        match word:
            case "unseen" | "untold":  # By any view of orders; and by that of trades as well.
                self.dark = ORDER_VIEWS if word == "unseen" else ALL_VIEWS
                # A little earlier, since the times of orders are rounded.
                self.dark_from, lab.storms.dark = now - 0.001, True
                self._pass(name, request)
                raise ConnectionResetError("reset")
            case "dead-view":
                self._dead[name] = now + DEAD_S
                lab.end += DEAD_S
            case "rules":
                self.api.markets.relist(lab.setting.pair, ordermin="1")
                self._later(RULES_S, RULES_S, self._restore_rules)
                lab.end += RULES_S + 3600  # The pause after a close below the minimum.
            case "hands":  # Somebody else closes the position.
                with contextlib.suppress(RefusedError):
                    self.api.controls["position"]({"pair": lab.rules.altname, "close": True})
                lab.truth.look()
            case "sleep":
                lab.storms.sleep(SLEEP_S)
                lab.end += SLEEP_S
            case "spread":  # It is too wide for so short that the same candle is traded on.
                self.api.spread = SPREAD_TICKS
                self._later(SPREAD_S, SPREAD_S, partial(setattr, self.api, "spread", 0))
                lab.end = min(lab.end, max(now, lab.turns_at) + 0.8 * INTERVAL_S)
            case "lag":
                self.lag_s = 60.0
            case _:
                return (
                    self._die(word, name, request)
                    if word.startswith("death")
                    else (super()._with(word, name, request))
                )
        try:
            return self._pass(name, request)
        finally:
            self.lag_s = 0.0

    def _die(self, word: str, name: str, request: Any) -> NoReturn:
        answer = None
        if "stuck" in word:
            with contextlib.suppress(TimeoutError):
                super()._with("stuck", name, request)
        elif word != "death-before":
            answer = self._pass(name, request)
        self.lab.die(word)
        self.lab.truth.look()
        raise Death(answer)


class Lab(World):
    """A world in which nothing goes wrong but what is planned; its points are counted."""

    feed_type, trouble_type = HillFeed, Scripted

    def __init__(self, variant: str, folder: Path, plan: Plan, show: bool = False) -> None:
        setting = Setting(interval=INTERVAL_S // 60, dead_first=variant == "no margin")
        super().__init__(1, 1.0, folder, setting=setting, show=show)
        self.plan, self.count = dict(plan), 0
        self.points: list[Point] = []
        self.halted = self.loses = ""
        self.trouble_maker.random.seed(str(plan[:1]))
        self.trouble_maker.lab = self
        self.trouble_maker.chances = {"scripted": 1.0}
        self.settings |= VARIANTS[variant] | {"ENTRY": "now"}
        self.storms.due = self.duty.due = float("inf")
        self.turns_at = (int(self.time) // INTERVAL_S + 1) * INTERVAL_S
        self.end = self.turns_at + ON_TARGET_S
        self.power = random.Random(str(plan[:1])).choice((True, False))

    def first_moment(self) -> float:
        return START // INTERVAL_S * INTERVAL_S + 5.0

    def touch(self, what: str) -> BaseException | None:
        if self.is_dead:
            raise Death
        if not what.startswith("COMMIT") and what != "write":
            return None
        word = self._next("nonce" if what == "write" else "write")
        if not word.startswith(("death", "disk")):
            return None
        self.note("fault", f"{word} at {what}")
        error: BaseException = Death()
        if word.startswith("death"):
            self.die(word)
        else:
            self.disk_failed_at = self.time
            error = ENOSPC if what == "write" else sqlite3.OperationalError("disk I/O error")
        if word in ("death-before", "disk"):
            raise error
        return error

    def die(self, word: str) -> None:
        """Let the process be dead, and its journal be lost afterwards if the word says so."""
        self.is_dead, self.loses = True, word.rpartition("-")[2]

    def trouble(self, words: Container[str]) -> str:
        word = self.plan.get(self.count - ("half" in words), "")
        if word not in words:
            return ""
        if word == "refused":
            self._next(word)
        return word

    def arrive(self, name: str) -> str:
        """Return what happens to a request that has reached the exchange."""
        if name in ("OpenPositions", "Balance") and "death-backup" in self.plan.values():
            self.people.back_up()
        return self._next(name)

    def _next(self, name: str) -> str:
        self.points.append(Point(self.count, name))
        self.count += 1
        return self.plan.get(self.count - 1, "")

    def way_s(self) -> float:
        return 0.05

    def wait(self, seconds: float) -> bool:
        if self.is_done():
            raise Over
        self.pass_time(seconds)
        return False

    def is_done(self) -> bool:
        return self.is_on_target() and max(self.plan, default=0) < self.count

    def is_on_target(self) -> bool:
        """Return whether the reversal was decided on and the position is where it should be."""
        if self.duty.decided < self.turns_at - INTERVAL_S:
            return False
        down = -self.size if self.leverage else ZERO
        opened = self.raw("SELECT 1 FROM intents WHERE outcome IS NULL")
        least = Decimal(self.api.markets.listing[self.setting.pair]["ordermin"])
        return abs(self.truth.own - down) < least and not opened  # Dust is left alone.


def run(variant: str, folder: Path, plan: Plan, show: bool = False) -> Outcome:
    """Let the program live with these faults until it is on target, or has halted."""
    lab = Lab(variant, folder, plan, show)
    end, text = "on target", ""
    try:
        with lab.machine, simulated(lab):
            end = _live(lab)
            needless = end == "halted 76" and not any(word in MAY_HALT for _, word in plan)
            lab.expect(not needless, "no needless halt", lab.halted)
    except Violation as violation:
        end, text = violation.name, violation.text
        text += f" ({lab.is_on_target()})"
    finally:
        lab.close_reader()
    return Outcome(tuple(lab.points), end, text or lab.halted, lab.counts["orders executed"])


def _live(lab: Lab) -> str:
    for _ in range(STARTS_MAX):
        try:
            lab.people.command("run", "--live", "--accept-costs")
        except Death:
            lab.close_reader()
            if lab.power:
                lab.machine.lose_power()
            if lab.loses in ("deleted", "backup"):
                lab.people.lose_journal(lab.loses)
            else:
                lab.truth.recount()
            if lab.loses == "clock":
                lab.wall_off = -BACK_S
            lab.loses = ""
            lab.time += 3
        except Ended as error:
            if error.code in (76, 77):
                lab.truth.check_reason(str(error).removeprefix("halted: "), error.code)
                lab.halted = str(error)
                with contextlib.suppress(Over):
                    lab.people.check_stays_halted()
                return f"halted {error.code}"
            lab.expect(error.code == 75 or lab.disk_failed_at > 0, "ends for a reason", str(error))
            lab.time += 5
        except Over:
            break
    lab.truth.verify()
    text = f"{lab.truth.own} is held at {lab.time - lab.turns_at:.0f} s: {lab.duty.reason}"
    lab.expect(lab.is_on_target(), "back on target", text)
    unseen = "hands" in lab.plan.values() and lab.truth.foreign
    lab.expect(not unseen, "foreign trades halt", f"nobody has seen {unseen}")
    return "on target"


def kinds(name: str, leverage: str) -> tuple[str, ...]:
    """Return what can go wrong at a point."""
    if name == "AddOrder":
        # Coins that were bought look like any others: without trades nothing tells of them.
        return tuple(word for word in ORDER if word != "untold" or leverage != "0")
    if name in ("write", "nonce"):
        return WRITE if name == "write" else WRITE[::2]
    return PUBLIC if name in OPEN_TO_ALL else PRIVATE


def kinds_again(name: str) -> tuple[str, ...]:
    """Return one fault of each sort that a point can have, for the second of a pair.

    What looks the same to the bot is left out: of all ways to be left without an answer to a read
    one is tried, and deaths only around writes and orders.
    """
    lags = ("lost-before", "lag") if name in LAGGING else ("lost-before",)
    return {"write": WRITE_AGAIN, "nonce": (), "AddOrder": ORDER_AGAIN}.get(name, lags)


def kinds_first(name: str) -> tuple[str, ...]:
    """Return the same for the first fault of a pair."""
    more = {"write": ("disk-done",), "AddOrder": ("refused", "key", "lockout", "cancel_only")}
    return (*kinds_again(name), *more.get(name, ("death-after",)))


def worth_trying(points: tuple[Point, ...], after: int) -> list[Point]:
    """Return the points after one, without the many in the middle of what repeats itself."""
    seen: Counter[str] = Counter()
    chosen = []
    last = {point.name: point for point in points}
    for point in points:
        if point.index > after:
            seen[point.name] += 1
            if seen[point.name] <= EACH_MAX or point is last[point.name]:
                chosen.append(point)
    return chosen


class Share(NamedTuple):
    """All pairs that begin with one fault."""

    variant: str
    name: str
    first: tuple[int, str]
    every: int


def explore(share: Share, folder: Path) -> tuple[Counter[str], list[str]]:
    """Run a fault alone, and then with each other fault after it."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []

    def note(plan: Plan, outcome: Outcome) -> None:
        counts["runs"] += 1
        counts["orders"] += outcome.orders
        counts[outcome.end] += 1
        if outcome.end.startswith("halted"):
            counts[f"  {NAMES.sub('#', outcome.text):.70}"] += 1
        if outcome.end not in ("on target", "halted 76", "halted 77"):
            wrong.append(f"{outcome.end}: {share.variant} {plan}: {outcome.text[-300:]!r}")

    alone = run(share.variant, folder, (share.first,))
    note((share.first,), alone)
    number = share.first[0]
    pairs = share.every and share.first[1] in kinds_first(share.name)
    for point in worth_trying(alone.points, share.first[0]) if pairs else ():
        for kind in kinds_again(point.name):
            number += 1
            if number % share.every == 0:
                plan = (share.first, (point.index, kind))
                note(plan, run(share.variant, folder, plan))
    return counts, wrong


def shares(root: str, every: int) -> list[Share]:
    """Return every single fault of every variant."""
    found = []
    for variant in VARIANTS:
        calm = run(variant, Path(root) / "calm", ())
        if calm.end != "on target":
            raise SystemExit(f"{calm.end}: {variant} without any fault: {calm.text}")
        found += [
            Share(variant, point.name, (point.index, kind), every)
            for point in calm.points
            for kind in kinds(point.name, VARIANTS[variant]["LEVERAGE"])
        ]
    return found


def replay(text: str, folder: Path, show: bool = False) -> Outcome:
    """Run faults that are written like `two-step:AddOrder#2=html,OpenOrders=lag`.

    Each happens at the point of that number, or at the first one of that name after the fault
    before it; `#2` is the second one.
    """
    variant, _, faults = text.partition(":")
    plan: Plan = ()
    outcome = run(variant, folder, plan)
    for fault in filter(None, faults.split(",")):
        place, _, word = fault.partition("=")
        name, _, number = place.partition("#")
        after = plan[-1][0] if plan else -1
        fit = [point.index for point in outcome.points if point.name == name]
        fit = [int(name)] if name.isdigit() else [index for index in fit if index > after]
        if len(fit) < int(number or 1):
            return outcome
        plan = (*plan, (fit[int(number or 1) - 1], word))
        outcome = run(variant, folder, plan)
    return run(variant, folder, plan, show) if show else outcome


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exhaustive", description=__doc__)
    parser.add_argument("--sample", action="store_true", help="every fifth pair")
    parser.add_argument("--singles", action="store_true", help="no pairs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", metavar="PLAN", help="two-step:AddOrder#2=html,60=lag")
    chosen = parser.parse_args(arguments)
    began, total, wrong = time.monotonic(), Counter[str](), list[str]()
    with scratch() as root:
        if chosen.replay:
            print(*replay(chosen.replay, Path(root) / "replay", show=True)[1:])
            return 0
        work = shares(root, 0 if chosen.singles else 5 if chosen.sample else 1)
        for number, (counts, found) in enumerate(each(explore, work, chosen.jobs, 200), 1):
            total += counts
            wrong += found
            for line in found:
                print(line, flush=True)
            if number % SHOWN_EVERY == 0:
                print(f"{number} of {len(work)} first faults: {total['runs']} runs", flush=True)
    print(
        f"runs={total['runs']} on_target={total['on target']} halted={total['halted 76']} "
        f"key_refused={total['halted 77']} orders={total['orders']} violations={len(wrong)} "
        f"seconds={time.monotonic() - began:.0f} cpu={sum(os.times()[:4]):.0f}"
    )
    print("\n".join(f"{count:7}{name}" for name, count in sorted(total.items()) if name[0] == " "))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
