"""Strategies: functions from finished candles to a Signal, and the table of their names.

A strategy of one's own needs no change here: it is a file, see rulefile.py.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path

from krakenbot import rulefile
from krakenbot.model import ZERO, Candle, Direction, Signal

Strategy = Callable[[Sequence[Candle]], Signal]


def build(
    name: str,
    length: int,
    short: int,
    long: int,
    file: Path | None = None,
    parameters: Mapping[str, object] = {},
) -> tuple[Strategy, int]:
    """Return the strategy of that name and how many candles it needs before it says anything.

    Raises rulefile.RuleError for a file that cannot be used.
    """
    if name == "file" and file is not None:
        rule = rulefile.load(file)
        return partial(rule.signal, parameters=parameters), rule.candles
    if name == "sma-slope":
        return partial(sma_slope, length=length), length + 1
    if name == "sma-cross":
        return partial(sma_cross, short=short, long=long), long
    raise ValueError(f"no strategy is called {name!r}")


def sma_slope(candles: Sequence[Candle], length: int) -> Signal:
    """Return the direction in which the simple moving average of `length` closes last moved.

    SMA_t - SMA_(t-1) = (close_t - close_(t-length)) / length, so one exact comparison of two
    closes gives the sign of the slope: no sum, no rounding, no false turn at a tie. A slope of
    zero keeps the direction before it, which therefore depends on the candles alone, and a
    restart needs no memory.

    Kraken's example compares only neighbouring slopes, so a tie between a rise and a fall hides
    that turn from it; here it does not.
    """
    slope = 0
    direction = None
    for newest in range(len(candles) - 1, length - 1, -1):
        sign = _sign(candles[newest].close - candles[newest - length].close)
        if newest == len(candles) - 1:
            slope = sign
        if sign:
            direction = Direction(sign)
            break
    return Signal(direction, _average(candles[-length:]), slope)


def sma_cross(candles: Sequence[Candle], short: int, long: int) -> Signal:
    """Return LONG while the average of `short` closes is above that of `long`, SHORT below.

    Equal averages keep the direction before. `average` is the long one.
    """
    slope = 0
    direction = None
    for end in range(len(candles), long - 1, -1):
        short_sum = sum((c.close for c in candles[end - short : end]), ZERO)
        long_sum = sum((c.close for c in candles[end - long : end]), ZERO)
        sign = _sign(short_sum * long - long_sum * short)
        if end == len(candles):
            slope = sign
        if sign:
            direction = Direction(sign)
            break
    return Signal(direction, _average(candles[-long:]), slope)


def _sign(number: Decimal) -> int:
    return (number > 0) - (number < 0)


def _average(candles: Sequence[Candle]) -> Decimal:
    if not candles:
        return ZERO
    return sum((c.close for c in candles), ZERO) / len(candles)
