"""Finished candles without gaps."""

from collections.abc import Sequence
from itertools import pairwise

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.errors import UnansweredError
from krakenbot.format import moment
from krakenbot.kraken.shape import OHLC_ROWS_MAX
from krakenbot.kraken.spot import Spot
from krakenbot.model import Candle

LATE_WAIT_S = 2.0
LATE_TRIES = 8
HOLE_YOUNG = 20  # In candles: a gap younger than this is requested again.
AHEAD_MAX_S = 5.0  # A candle that starts further in the future is rejected.


class CandleWindow:
    """The finished candles without gaps, kept up to date by requests of a few rows.

    While there are fewer than `needed`, all are requested again: an answer may have been short.
    """

    def __init__(self, exchange: Spot, clock: Clock, interval_s: int, needed: int = 0) -> None:
        self._exchange, self._clock = exchange, clock
        self._interval_s, self._needed = interval_s, needed
        self._candles: dict[int, Candle] = {}  # As received, by time, oldest first.

    def up_to_date(self) -> Sequence[Candle] | None:
        """Return the finished candles; None if the newest is late, even after some retries.

        Besides errors of the request, raises UnansweredError for candles in the future: then the
        exchange's clock or ours is wrong.
        """
        expected = self._newest_start()
        for attempt in range(LATE_TRIES):
            if attempt:
                self._clock.wait(LATE_WAIT_S)
            candles = self.read()
            if candles and candles[-1].time >= expected:
                return candles
        return None

    def read(self) -> Sequence[Candle]:
        """Return the finished candles known, after one request if the newest is not among them."""
        if max(self._candles, default=0) < self._newest_start():
            self._fetch(self._newest_start())
        return self.known()

    def _newest_start(self) -> int:
        """Return when the newest finished candle began at the earliest, in unix seconds.

        It ended less than an interval ago.
        """
        return int(self._clock.now()) - 2 * self._interval_s + 1

    def known(self) -> Sequence[Candle]:
        """Return the finished candles known, without a request."""
        return fill([*self._candles.values()], self._interval_s)[-OHLC_ROWS_MAX:]

    def _fetch(self, expected: int) -> None:
        """Request candles from the first recent gap on, else those after the newest known."""
        step_s, known = self._interval_s, max(self._candles, default=0)
        begin = expected - (OHLC_ROWS_MAX - 2) * step_s
        if expected - known > (OHLC_ROWS_MAX // 2) * step_s:
            known, self._candles = 0, {}
        elif len(self._candles) >= self._needed:
            young = expected - HOLE_YOUNG * step_s
            holes = (a for a, b in pairwise(self._candles) if b - a > step_s and a >= young)
            begin = next(holes, known)
        # One candle more than needed: it is not certain that `since` itself is included.
        rows = self._exchange.candles(begin - step_s)
        if rows and rows[-1].time > self._clock.now() + AHEAD_MAX_S:
            raise UnansweredError(
                f"OHLC answer has a candle of {rows[-1].time}, but now is {self._clock.now():.0f}"
            )
        for candle in rows[:-1]:  # The last row is unfinished; its close will change.
            was = self._candles.get(candle.time, candle)
            if was != candle:
                when = moment(candle.time)
                log.warning("candle revised %s close=%s before=%s", when, candle.close, was.close)
            self._candles[candle.time] = candle  # The newest answer counts.
        newest = sorted(self._candles)[-OHLC_ROWS_MAX:]
        self._candles = {time: self._candles[time] for time in newest}
        for ends in pairwise(newest):
            if ends[1] - ends[0] > step_s and ends[1] > known:
                log.warning("candles missing between %s and %s, filled flat", *map(moment, ends))


def fill(candles: Sequence[Candle], interval_s: int) -> list[Candle]:
    """Return the candles, each missing one filled by a flat one at the close before it."""
    filled: list[Candle] = []
    for candle in candles:
        while filled and candle.time - filled[-1].time > interval_s:
            time, price = filled[-1].time + interval_s, filled[-1].close
            filled.append(Candle(time, price, price, price, price))
        filled.append(candle)
    return filled
