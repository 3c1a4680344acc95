"""Whether the bot runs, and since when: its lock says so, and what `run` records in the journal.

Times of the process are by the host's clock, times of the market by the exchange's.
"""

import fcntl
import re
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from krakenbot.bot import Event
from krakenbot.clock import Clock
from krakenbot.errors import StopError
from krakenbot.journal import Journal
from krakenbot.lock import BY_BOT

OVERDUE_S = 300.0
UNITS = ("base", "quote", "pair_decimals")


class State(StrEnum):
    """Whether a bot runs. The texts are the values of `status --json`."""

    RUNNING = "running"
    STOPPED = "stopped"
    STALE = "stale"  # Running, but its next decision is long overdue.


class Life(NamedTuple):
    """What is known of the bot's process, in unix seconds.

    `since` is by the host's clock, `now` and `next_decision` by the exchange's. The names are
    fields of `status --json`: do not change them.
    """

    state: State
    pid: int | None
    since: int | None
    next_decision: int | None
    exit_code: int | None
    end_reason: str | None
    now: int


class Presence:
    """Receives the bot's events, and records that the bot runs and when it decides next."""

    def __init__(self, journal: Journal, clock: Clock, interval_s: int) -> None:
        self._journal, self._clock, self._interval_s = journal, clock, interval_s
        values = dict.fromkeys(("next_decision", "ended", "exit_code", "end_reason", "seen"))
        journal.put(**values, started=int(time.time()), interval=interval_s // 60)

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            units = {key: event.values[key] for key in UNITS}
            self._note(next_decision=int(self._clock.now()), **units)
        elif event.kind == "decision":
            self._note(next_decision=int(event.values["candle"]) + 2 * self._interval_s + 1)

    def end(self, exit_code: int, reason: str) -> None:
        """Record how the process ends."""
        with suppress(StopError):  # A journal that cannot be written has been reported before.
            self._note(ended=int(time.time()), exit_code=exit_code, end_reason=reason)

    def _note(self, **values: object) -> None:
        self._journal.put(seen=int(self._clock.now()), seen_wall=int(time.time()), **values)


def read_life(journal: Journal, lock_file: Path, clock_speed: float) -> Life:
    """Return what a journal and its lock file say about the process that trades with it.

    `clock_speed` is in simulated seconds per real second.
    """
    keys = ("started", "ended", "exit_code", "seen", "seen_wall", "next_decision")
    values = {key: int(text) for key in keys if (text := journal.get(key))}
    now = wall = int(time.time())
    if "seen" in values:  # A sandbox has its own time, which may run faster.
        now = values["seen"] + int((wall - values["seen_wall"]) * clock_speed)
    bot, due = holder(lock_file), values.get("next_decision")
    if "started" not in values or "ended" in values or not bot.endswith(BY_BOT):
        since = values.get("ended", values.get("seen_wall", values.get("started")))
        reason = journal.get("end_reason") or None
        return Life(State.STOPPED, None, since, None, values.get("exit_code"), reason, now)
    is_overdue = due is not None and (now - due) / clock_speed > OVERDUE_S
    state = State.STALE if is_overdue else State.RUNNING
    pid = int(re.findall("pid ([0-9]+)", bot)[0])
    return Life(state, pid, values["started"], due, None, None, now)


def is_locked(path: Path) -> bool:
    """Return whether a process holds this lock; False when there is no such file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)  # Without locks no bot can run at all.
    return False


def holder(path: Path) -> str:
    """Return which process holds this lock, in the words of the lock file; "" if it is free."""
    if not is_locked(path):
        return ""
    return path.read_text(encoding="ascii", errors="replace").partition("\n")[2].strip()
