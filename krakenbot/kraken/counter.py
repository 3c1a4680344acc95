"""Kraken's counter of a key's private requests, kept when this program is restarted.

Source: support.kraken.com 206548367, "API rate limits", lowest tier (Starter).
"""

import os
from contextlib import suppress
from pathlib import Path

from krakenbot.clock import Clock
from krakenbot.lock import open_private

COUNTER_MAX = 14.0  # Kraken refuses above 15; one point is left because our clocks differ.
DECAY = 0.33  # Points a second.
POINTS = {"Ledgers": 2, "QueryLedgers": 2, "TradesHistory": 2, "QueryTrades": 2, "ClosedOrders": 2}
FREE = ("AddOrder", "CancelOrder")  # The matching engine counts these itself.


class RestCounter:
    """Waits before a request that would exceed the limit.

    Its state is the time at which the counter will be back at zero, by the monotonic clock that all
    processes of this machine share. `path` keeps it for the next process; the caller holds the
    key's lock.
    """

    def __init__(self, clock: Clock, path: Path | None = None) -> None:
        self._clock = clock
        self._file: int | None = None
        self._zero = clock.monotonic()
        if path is not None:
            with suppress(OSError, ValueError):
                self._file = open_private(path, os.O_RDWR)
                kept = float(os.pread(self._file, 32, 0) or 0)
                # After a reboot this clock begins at zero: then a full counter is assumed.
                self._zero += min(max(0.0, kept - self._zero), COUNTER_MAX / DECAY)

    def spend(self, method: str) -> None:
        """Count a request that is about to be sent, and wait until there is room for it."""
        if method in FREE:
            return
        now = self._clock.monotonic()
        self._zero = max(self._zero, now) + POINTS.get(method, 1) / DECAY
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, b"%31.3f\n" % self._zero, 0)
        excess_s = self._zero - now - COUNTER_MAX / DECAY
        if excess_s > 0:
            self._clock.wait(excess_s)
