"""Reading Kraken's answers, for all methods. An answer of the wrong shape is no answer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from math import gcd
from typing import Any, Protocol

from krakenbot.errors import UnansweredError
from krakenbot.model import ZERO, Candle
from krakenbot.pairs import decimal

BROKEN = (AttributeError, KeyError, TypeError, ValueError, IndexError)
# The field of a method's result that has its rows; of other methods the result itself.
ROWS_IN = {
    "OpenOrders": "open",
    "ClosedOrders": "closed",
    "TradesHistory": "trades",
    "Ledgers": "ledger",
}
PAGE = 50  # Rows in a page of a history.
PAGE_OVERLAP = 10  # In case rows of one moment change places between two requests.
OHLC_ROWS_MAX = 720  # The most that OHLC returns. Source: docs.kraken.com, "Get OHLC Data".
STEPS_MIN = 10  # Fewer rows cannot tell a longer interval from missing candles.


class Methods(Protocol):
    """Kraken's methods by name: a Client, or in paper mode one whose account is simulated."""

    def public(self, method: str, params: Mapping[str, object] | None = None) -> Any: ...

    def private(self, method: str, params: Mapping[str, object] | None = None) -> Any: ...


@contextmanager
def shape(method: str) -> Iterator[None]:
    """Turn an answer that cannot be parsed into UnansweredError."""
    try:
        yield
    except BROKEN as error:
        why = str(error) if type(error) is ValueError else repr(error)
        raise UnansweredError(f"{method}: an answer of unknown form ({why:.120})") from error


def rows(
    client: Methods, method: str, params: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Request a private method and return the rows in its result, by id.

    Some empty answers have a list in place of the object (seen in clients, not documented).
    """
    result = client.private(method, params)
    with shape(method):
        found = result[ROWS_IN[method]] if method in ROWS_IN else result
        if not isinstance(found, dict) and found != []:
            raise ValueError("no rows")
    return dict(found)


def moment(value: object) -> int:
    """Return a time in whole unix seconds; ValueError if it cannot be one."""
    moment = int(decimal(value))
    if not 0 < moment < 10**11:
        raise ValueError(f"time {moment}")
    return moment


def parse_candles(result: Any, interval_s: int) -> list[Candle]:
    """Return the candles in an OHLC result, oldest first, one for each time.

    Their key is Kraken's own name of the pair, whichever name was sent. Raises UnansweredError when
    the result is not of the documented shape.
    """
    with shape("OHLC"):
        (table,) = (value for key, value in result.items() if key != "last")
        by_time = {candle.time: candle for candle in map(_candle, table)}
        times = sorted(by_time)
        steps = [after - before for before, after in pairwise(times)]
        step_s = gcd(*steps) if len(steps) >= STEPS_MIN else interval_s
        if any(step % interval_s for step in steps) or step_s != interval_s:
            raise ValueError(f"times that are not {interval_s} s apart")
        if times and times[-1] - times[0] > (2 * OHLC_ROWS_MAX) * interval_s:
            raise ValueError("more time than it can span")
    return [by_time[time] for time in times]


def _candle(row: Any) -> Candle:
    # Column 5 is the volume-weighted average price, which nothing here uses.
    candle = Candle(moment(row[0]), *map(decimal, (*row[1:5], row[6])))
    low, high = candle.low, candle.high
    in_order = low <= candle.open <= high and low <= candle.close <= high
    if low <= ZERO or not in_order or candle.volume < ZERO:
        raise ValueError(f"row {row!r:.80}")
    return candle


class History:
    """The rows of TradesHistory or Ledgers after `since` and up to `until`, in unix seconds.

    An account may have any number of unrelated rows, and a page costs two points of a counter that
    falls by a third of a point a second. So reading may be interrupted and continued later, and
    only rows for which `keeps` is true are kept. Kraken sends the newest first, so a row that shows
    up meanwhile moves others to a later page: some are read twice, none is missed.
    """

    def __init__(
        self, method: str, since: int, until: int, keeps: Callable[[Any], bool], **more: str
    ) -> None:
        self._method, self._keeps = method, keeps
        self._params = {"start": since, "end": until, "without_count": "true", **more}
        self._begin()

    def _begin(self) -> None:
        self._offset, self._is_whole, self._newest_page = 0, False, set[str]()
        self.rows: dict[str, Any] = {}

    def read(self, client: Methods, pages: Iterator[int]) -> bool:
        """Continue reading, one request for each of `pages`; return whether all rows are read."""
        while not self._is_whole and next(pages, None) is not None:
            found = rows(client, self._method, self._params | {"ofs": self._offset})
            if found and self._newest_page == found.keys():
                self._begin()
                raise UnansweredError(f"{self._method}: the same rows again on every page")
            with shape(self._method):
                self.rows |= {name: row for name, row in found.items() if self._keeps(row)}
            self._newest_page, self._is_whole = {*found}, len(found) < PAGE
            self._offset += PAGE - PAGE_OVERLAP
        return self._is_whole
