"""Whether the bot runs, and since when: `run` records it in the journal, `status` reads it.

Times of the process are by the host's clock, times of the market by the exchange's.
"""

import fcntl
import os
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
        began = {"started": int(time.time()), "pid": os.getpid(), "interval": interval_s // 60}
        journal.put(**values, **began)

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
    keys = ("started", "pid", "ended", "exit_code", "seen", "seen_wall", "next_decision")
    values = {key: int(text) for key in keys if (text := journal.get(key))}
    now = wall = int(time.time())
    if "seen" in values:  # A sandbox has its own time, which may run faster.
        now = values["seen"] + int((wall - values["seen_wall"]) * clock_speed)
    pid, due = values.get("pid"), values.get("next_decision")
    if "ended" in values or pid is None or holder(lock_file) not in (pid, 0):
        since = values.get("ended", values.get("seen_wall", values.get("started")))
        reason = journal.get("end_reason") or None
        return Life(State.STOPPED, None, since, None, values.get("exit_code"), reason, now)
    is_overdue = due is not None and (now - due) / clock_speed > OVERDUE_S
    state = State.STALE if is_overdue else State.RUNNING
    return Life(state, pid, values["started"], due, None, None, now)


def is_locked(path: Path, *, if_unknown: bool = True) -> bool:
    """Return whether a process holds this lock; False when there is no such file.

    Some file systems cannot tell: then the answer is `if_unknown`.
    """
    try:
        file = path.open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return if_unknown or isinstance(error, BlockingIOError)
    return False


def holder(path: Path) -> int | None:
    """Return the id of the process that holds this lock, 0 if it does not say; None if free."""
    if not is_locked(path):
        return None
    found = re.search(r"\npid (\d+)", path.read_text(encoding="ascii", errors="replace"))
    return int(found[1]) if found else 0
