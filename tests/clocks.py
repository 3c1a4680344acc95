"""Clocks for tests: one whose waiting costs nothing, and the system's, to be closed."""

import os

from krakenbot.clock import StopRequestedError, SystemClock


def close_clock(clock: SystemClock) -> None:
    """Close a clock's pipe, which the program keeps to its end; `select` takes 1,024 files."""
    os.close(clock._stop_reader)
    os.close(clock._stop_writer)


class StandingClock:
    """All clocks in one, moved by waiting alone. At `end` the process is asked to stop."""

    def __init__(self, time: float = 0.0) -> None:
        self.time, self.end = time, float("inf")

    def now(self) -> float:
        return self.time

    monotonic = wall = now

    def nonce(self) -> int:
        return int(self.time * 1e9)

    def set(self, exchange_time: float) -> None:
        raise AssertionError(f"the clock is right: {self.time}, not {exchange_time}")

    def wait(self, seconds: float) -> None:
        self.time += max(seconds, 0.0)
        if self.time >= self.end:
            raise StopRequestedError
