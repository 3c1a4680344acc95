"""Candles as columns of floats, which a long backtest compares far faster than Decimals.

Up to 15 digits, floats compare as the decimals in a file do, and `exact` gives those back.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot.model import Candle


class BadDataError(ValueError):
    """Data that must not be used. The message names the file and, if there is one, the line."""


class Columns(NamedTuple):
    """Candles by column, in order of time; those from `read` and `aggregate` have no gaps.

    `times` are their starts in unix seconds, `volumes` in base currency: 0 without trades.
    """

    interval_s: int
    times: Sequence[int]
    opens: Sequence[float]
    highs: Sequence[float]
    lows: Sequence[float]
    closes: Sequence[float]
    volumes: Sequence[float]

    @property
    def end(self) -> int:
        """Return when the last candle ends."""
        return self.times[-1] + self.interval_s

    @property
    def numbers(self) -> tuple[Sequence[float], ...]:
        """Return all columns but the times."""
        return self.opens, self.highs, self.lows, self.closes, self.volumes

    def cut(self, begin: int, end: int | None = None) -> "Columns":
        """Return the candles from number `begin` on, up to but without number `end`."""
        numbers = (column[begin:end] for column in self.numbers)
        return Columns(self.interval_s, self.times[begin:end], *numbers)

    def joined(self, after: "Columns") -> "Columns":
        """Return these candles and those of `after`, which must follow without a gap."""
        times = range(self.times[0], after.end, self.interval_s)
        both = zip(self.numbers, after.numbers, strict=True)
        return Columns(self.interval_s, times, *([*a, *b] for a, b in both))


def exact(number: float) -> Decimal:
    """Return the number as it stands in the file, if that has at most 15 digits."""
    return Decimal(repr(number))


def columns_of(candles: Sequence[Candle], interval_s: int) -> Columns:
    """Return candles as columns; there must be no gap between them."""
    times, *numbers = zip(*candles, strict=True)
    return Columns(interval_s, times, *(list(map(float, column)) for column in numbers))


def candles_of(part: Columns) -> Iterator[Candle]:
    """Yield the candles with exact numbers."""
    for time, *numbers in zip(part.times, *part.numbers, strict=True):
        yield Candle(time, *map(exact, numbers))
