"""What commands read from a journal, oldest first, and the bot itself never does."""

from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

from krakenbot.journal import Journal
from krakenbot.records import Booked, Equity


class Decided(NamedTuple):
    """What was decided on a candle; `done` when nothing is left to do for it."""

    interval_s: int
    candle: int
    price: Decimal
    average: Decimal
    slope: int
    target: int
    held: Decimal
    reason: str
    decided: int
    done: bool


def decisions(journal: Journal, since: int = 0, newest: int = -1) -> Iterator[Decided]:
    """Yield the decisions since then; with `newest` at most so many of the newest."""
    query = "SELECT * FROM decisions WHERE decided >= ? ORDER BY decided DESC LIMIT ?"
    return journal.read(Decided, f"SELECT * FROM ({query}) ORDER BY decided", since, newest)


def equity(journal: Journal, since: int = 0) -> Iterator[Equity]:
    """Yield the equity records since then."""
    return journal.read(Equity, "SELECT * FROM equity WHERE time >= ? ORDER BY time", since)


def charges(journal: Journal) -> Iterator[Booked]:
    """Yield all charges besides trade fees, without the original amounts."""
    query = "SELECT id, time, kind, amount, '' AS asset, '0' AS charged FROM charges ORDER BY time"
    return journal.read(Booked, query)
