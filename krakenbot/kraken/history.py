"""Kraken's histories, TradesHistory and Ledgers: read page by page over a window of time.

An account may have any number of unrelated rows, and a page costs two points of a counter that
falls by a third of a point a second. So reading may be interrupted and continued later.
"""

from collections.abc import Callable, Iterator
from typing import Any

from krakenbot.errors import UnansweredError
from krakenbot.kraken.shape import Methods, moment, rows, shape

PAGE = 50


class History:
    """The rows of a method after `since` and up to `until`, in unix seconds, newest first.

    Each page moves the window's end back to its oldest row; more pages of one second are read by
    offset. Rows added meanwhile lie outside the window, so they shift nothing. Only rows for which
    `keeps` is true are kept.
    """

    def __init__(
        self,
        method: str,
        key: str,
        since: int,
        until: int,
        keeps: Callable[[Any], bool] = lambda row: True,
        **more: str,
    ) -> None:
        self._method, self._key, self._more = method, key, more
        self._since, self._until, self._keeps = since, until, keeps
        self._begin()

    def _begin(self) -> None:
        self._end, self._offset, self._is_whole = self._until, 0, False
        self._newest_page: set[str] = set()
        self.rows: dict[str, Any] = {}

    def read(self, client: Methods, pages: Iterator[int]) -> bool:
        """Continue reading, one request for each of `pages`; return whether all rows are read."""
        while not self._is_whole and next(pages, None) is not None:
            self._read_page(client)
        return self._is_whole

    def _read_page(self, client: Methods) -> None:
        page = {"start": self._since, "end": self._end, "without_count": "true", **self._more}
        if self._offset:
            page["ofs"] = self._offset
        found = rows(client, self._method, page, self._key)
        with shape(self._method):
            self.rows |= {name: row for name, row in found.items() if self._keeps(row)}
            if len(found) < PAGE:
                self._is_whole = True
                return
            oldest = min(moment(row["time"]) for row in found.values()) + 1
        if self._offset and self._newest_page == found.keys():
            self._begin()
            raise UnansweredError(f"{self._method}: the same rows again on every page")
        self._newest_page = {*found}
        is_older = oldest < self._end
        self._end, self._offset = (oldest, 0) if is_older else (self._end, self._offset + PAGE)
