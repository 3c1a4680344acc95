"""Time, for all that decides and orders.

`now` is the exchange's time: its last answer to `Time`, continued by the monotonic clock. A step of
the host's wall clock therefore moves neither a deadline nor a timeout.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

# A long wait wakes this often: to call `progress`, and because a signal just before the operating
# system is asked to sleep does not interrupt that sleep.
SLICE_S = 0.5


class StopRequestedError(Exception):
    """A signal asked to stop. Raised while waiting or reading, never between journal and send."""


class Clock:
    """`now` is the exchange's time in unix seconds, as far as it is known; `set` corrects it.

    `monotonic` is in seconds that never go back, at the exchange's speed; `wall` is the host's
    time, `nonce` the same in nanoseconds. All but `nonce` run `speed` times as fast (other than 1
    only for rehearsals). `wait` raises StopRequestedError at once when the process is asked to end.
    It calls `progress` at least every SLICE_S real seconds. Only the main thread may wait: while
    another thread slept, a signal would raise in the main thread wherever that is, even between
    journal and send.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.set(time.time())
        self.progress: Callable[[], None] = lambda: None
        self.stop_requested = self.signalled = False
        self._is_interruptible = self._has_ended = False

    def now(self) -> float:
        return self.monotonic() + self._offset

    def monotonic(self) -> float:
        return _steady() * self.speed

    def wall(self) -> float:
        # A rehearsal follows the sandbox's time, which may be years ago.
        return time.time() if self.speed == 1 else self.now()

    def nonce(self) -> int:
        return time.time_ns()

    def set(self, exchange_time: float) -> None:
        self._offset = exchange_time - self.monotonic()

    def wait(self, seconds: float) -> None:
        until = _steady() + seconds / self.speed
        while not self.stop_requested:
            self.progress()
            left = until - _steady()
            if left <= 0:
                return
            self._is_interruptible = True
            time.sleep(min(left, SLICE_S))
            self._is_interruptible = False
        self._end()

    def stop_on_signals(self) -> None:
        """Let SIGTERM, SIGINT and SIGHUP end the next (or current) wait."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As `nohup` sets it.
            signal.signal(signal.SIGHUP, self._on_signal)

    def read(self, is_reading: bool) -> None:
        """Note whether a read is in progress: a signal may interrupt that at once, too.

        Raises StopRequestedError when a read begins after the request to stop, but only once:
        the shutdown may read again.
        """
        self._is_interruptible = is_reading
        if is_reading and self.is_stopping:
            self._end()

    @property
    def is_stopping(self) -> bool:
        """Return whether a stop was requested and StopRequestedError not yet raised for it."""
        return self.stop_requested and not self._has_ended

    def request_stop(self) -> None:
        """Make the current or next wait raise StopRequestedError; a current one within SLICE_S."""
        self.stop_requested = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = self.signalled = True
        if self._is_interruptible:
            self._end()

    def _end(self) -> NoReturn:
        self._is_interruptible, self._has_ended = False, True
        raise StopRequestedError


def _steady() -> float:
    # Unlike CLOCK_MONOTONIC it continues while the machine is suspended.
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
