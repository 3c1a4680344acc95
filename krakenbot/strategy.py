"""The built-in strategies: pure functions from finished candles to a Signal.

A user's own strategy is a file, see rulefile.py.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from krakenbot.model import ZERO, Candle, Direction, Signal


def sma_slope(candles: Sequence[Candle], length: int) -> Signal:
    """Return the direction in which the simple moving average of `length` closes last moved.

    SMA_t - SMA_(t-1) = (close_t - close_(t-length)) / length, so one exact comparison of two
    closes gives the sign of the slope: no sum, no rounding, no false turn at a tie.

    Kraken's example compares only neighbouring slopes, so it misses a turn when there is a tie
    between rise and fall. This one does not.
    """
    slopes = (
        candles[at].close - candles[at - length].close
        for at in range(len(candles) - 1, length - 1, -1)
    )
    return _signal(slopes, candles[-length:])


def sma_cross(candles: Sequence[Candle], short: int, long: int) -> Signal:
    """Return LONG while the average of `short` closes is above that of `long`, SHORT below.

    `average` is the long one.
    """
    distances = (
        _sum(candles[end - short : end]) * long - _sum(candles[end - long : end]) * short
        for end in range(len(candles), long - 1, -1)
    )
    return _signal(distances, candles[-long:])


def _signal(differences: Iterator[Decimal], averaged: Sequence[Candle]) -> Signal:
    """Return the sign of the first, newest difference; at a tie, of the newest one not zero.

    The direction depends on the candles alone, so a restart needs no memory.
    """
    newest = next(differences, ZERO)
    deciding = newest or next((difference for difference in differences if difference), None)
    direction = None if deciding is None else Direction.of(deciding)
    average = _sum(averaged) / len(averaged) if averaged else ZERO
    return Signal(direction, average, int(Direction.of(newest)))


def _sum(candles: Sequence[Candle]) -> Decimal:
    return sum((candle.close for candle in candles), ZERO)
