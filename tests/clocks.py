"""A clock for tests whose waiting costs nothing."""

from krakenbot.clock import StopRequestedError


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

    def read(self, is_reading: bool) -> None:
        """No signal interrupts anything."""

    def wait(self, seconds: float) -> None:
        self.time += max(seconds, 0.0)
        if self.time >= self.end:
            raise StopRequestedError
