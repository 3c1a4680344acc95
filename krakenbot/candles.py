"""From Kraken's OHLC rows to finished candles without gaps."""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import Any, Protocol

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.errors import UnansweredError
from krakenbot.format import moment
from krakenbot.model import ZERO, Candle
from krakenbot.pairs import decimal, plain

ROWS_MAX = 720  # The most that OHLC returns. Source: docs.kraken.com, "Get OHLC Data".
LATE_WAIT_S = 2.0
LATE_TRIES = 8
HOLE_YOUNG = 20  # In candles: a gap younger than this is requested again.
STEPS_MIN = 10  # Fewer rows cannot tell a longer interval from missing candles.
AHEAD_MAX_S = 5.0  # A candle that starts further in the future is rejected.


class Market(Protocol):
    def candles(self, since: int | None) -> Sequence[Candle]: ...


class CandleWindow:
    """The finished candles without gaps, kept up to date by requests of a few rows.

    While there are fewer than `needed`, all are requested again: an answer may have been short.
    """

    def __init__(self, market: Market, clock: Clock, interval_s: int, needed: int = 0) -> None:
        self._market, self._clock = market, clock
        self._interval_s, self._needed = interval_s, needed
        self._candles: dict[int, Candle] = {}  # As received, by time, oldest first.

    def up_to(self, expected: int) -> Sequence[Candle] | None:
        """Return finished candles, the newest starting at `expected` (unix seconds) or later.

        Retries while that one is late, then returns None. Besides errors of the request, raises
        UnansweredError for candles in the future: then the exchange's clock or ours is wrong.
        """
        for attempt in range(LATE_TRIES):
            if attempt:
                self._clock.wait(LATE_WAIT_S)
            if max(self._candles, default=0) < expected:
                self._fetch(expected)
            if max(self._candles, default=0) >= expected:
                return fill([*self._candles.values()], self._interval_s)[-ROWS_MAX:]
        return None

    def _fetch(self, expected: int) -> None:
        """Request candles from the first recent gap on, else those after the newest known."""
        step_s, known = self._interval_s, max(self._candles, default=0)
        begin = expected - (ROWS_MAX - 2) * step_s
        if expected - known > (ROWS_MAX // 2) * step_s:
            known, self._candles = 0, {}
        elif len(self._candles) >= self._needed:
            young = expected - HOLE_YOUNG * step_s
            holes = (a for a, b in pairwise(self._candles) if b - a > step_s and a >= young)
            begin = next(holes, known)
        # One candle more than needed: it is not certain that `since` itself is included.
        rows = self._market.candles(begin - step_s)
        if rows and rows[-1].time > self._clock.now() + AHEAD_MAX_S:
            raise UnansweredError(
                f"OHLC answer has a candle of {rows[-1].time}, but now is {self._clock.now():.0f}"
            )
        candles = dict(self._candles)
        for candle in rows[:-1]:  # The last row is unfinished; its close will change.
            was = candles.get(candle.time, candle)
            if was != candle:
                closes = plain(was.close), plain(candle.close)
                log.warning(
                    "candle revised %s close=%s before=%s", moment(candle.time), *closes[::-1]
                )
            candles[candle.time] = candle  # The newest answer counts.
        self._candles = {time: candles[time] for time in sorted(candles)[-ROWS_MAX:]}
        for before, after in pairwise(self._candles):
            if after - before > step_s and after > known:
                ends = moment(before), moment(after)
                log.warning("candles missing between %s and %s, filled flat", *ends)


def fill(candles: Sequence[Candle], interval_s: int) -> list[Candle]:
    """Return the candles, each missing one filled by a flat one at the close before it."""
    filled: list[Candle] = []
    for candle in candles:
        while filled and candle.time - filled[-1].time > interval_s:
            time, price = filled[-1].time + interval_s, filled[-1].close
            filled.append(Candle(time, price, price, price, price))
        filled.append(candle)
    return filled


def parse_rows(result: Any, interval_s: int) -> list[Candle]:
    """Return the rows of an OHLC result, oldest first, one for each time.

    Their key is Kraken's own name of the pair, whichever name was sent. Raises UnansweredError when
    the result is not of the documented shape.
    """
    try:
        (rows,) = (value for key, value in result.items() if key != "last")
        by_time = {candle.time: candle for candle in (_row(row) for row in rows)}
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise UnansweredError(f"OHLC answer is not as expected: {error}") from error
    times = sorted(by_time)
    steps = [after - before for before, after in pairwise(times)]
    step_s = gcd(*steps) if len(steps) >= STEPS_MIN else interval_s
    if any(step % interval_s for step in steps) or step_s != interval_s:
        raise UnansweredError(f"OHLC answer has times that are not {interval_s} s apart")
    if times and times[-1] - times[0] > (2 * ROWS_MAX) * interval_s:
        raise UnansweredError("OHLC answer spans more time than it can")
    return [by_time[time] for time in times]


def _row(row: Any) -> Candle:
    if not isinstance(row, list) or len(row) < 7:
        raise ValueError(f"row {row!r:.80}")
    time = decimal(row[0])
    if not 0 < time < 10**11 or time != int(time):
        raise ValueError(f"row {row!r:.80}")
    # Column 5 is the volume-weighted average price, which nothing here uses.
    candle = Candle(int(time), *(decimal(number) for number in (*row[1:5], row[6])))
    low, high = candle.low, candle.high
    in_order = low <= candle.open <= high and low <= candle.close <= high
    if low <= ZERO or not in_order or candle.volume < ZERO:
        raise ValueError(f"row {row!r:.80}")
    return candle
