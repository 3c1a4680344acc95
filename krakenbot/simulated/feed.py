"""Candles of a simulated market, from a seeded random walk or from a file.

During an interval the price stays at its open, with bid and ask one tick away. At the end of the
interval its high and low count as reached. So every order in an interval gets the same price, and
sandbox, paper mode and backtest agree.
"""

import random
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from krakenbot.backtest.files import exact, interval_of, pair_of, read
from krakenbot.pairs import PairRules
from krakenbot.simulated.listing import FIRST_TICKS, PAIRS, aliases

ROWS_MAX = 721  # With the unfinished one; docs.kraken.com, "Get OHLC Data", promises 720.
HISTORY = 60 * 1440  # Minutes of a random market before the sandbox starts.
_FILE_DIGITS = 10  # Kraken's prices have no more decimals.
# Open, high, low and close in units of the last decimal; volume in units of 1e-8.
Row = tuple[int, int, int, int, int]
_VOLUME_DIGITS = 8
_MINUTE_VOLUME = 5_000_000  # Traded in each minute in which a random market moves.


class Bar(NamedTuple):
    """A candle of any interval. `trades` counts the feed's candles in it that had trades."""

    time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    trades: int


class Series:
    """The candles of one pair without gaps, generated as far as they are needed.

    Candle 0 starts at `first`.
    """

    def __init__(self, interval_s: int, first: int, digits: int, rows: Iterator[Row]) -> None:
        self.interval_s, self.first, self.digits = interval_s, first, digits
        self._source, self._made = rows, list[Row]()

    def number(self, time: float) -> int:
        """Return the number of the candle that contains `time`."""
        return int((time - self.first) // self.interval_s)

    def row(self, number: int) -> Row:
        self._made += islice(self._source, max(number + 1 - len(self._made), 0))
        return self._made[number]

    def prices(self, number: int) -> tuple[Decimal, ...]:
        """Return open, high, low and close of a candle, without trailing zeros."""
        return tuple(Decimal(x).scaleb(-self.digits).normalize() for x in self.row(number)[:4])

    def bars(self, interval_s: int, since: int, now: float) -> list[Bar]:
        """Return up to 721 bars that start after `since`; the last one is unfinished."""
        running = int(now // interval_s)
        begin = max(since // interval_s + 1, running - ROWS_MAX + 1, -(-self.first // interval_s))
        times = range(min(begin, running) * interval_s, (running + 1) * interval_s, interval_s)
        return [self.bar(time, interval_s, now) for time in times]

    def bar(self, time: int, interval_s: int, now: float) -> Bar:
        """Return the bar of an interval; of an unfinished candle only the open counts."""
        here, start = self.number(now), max(self.number(time), 0)
        stop = max(self.number(time + interval_s), start + 1)
        rows = [self.row(number) for number in range(start, min(stop, here))]
        if here < stop:
            price = self.row(here)[0]
            rows.append((price, price, price, price, 0))
        opens, highs, lows, closes, volumes = zip(*rows, strict=True)
        prices = (opens[0], max(highs), min(lows), closes[-1])
        volume = Decimal(sum(volumes)).scaleb(-_VOLUME_DIGITS)
        opened, high, low, close = (Decimal(price).scaleb(-self.digits) for price in prices)
        return Bar(time, opened, high, low, close, volume, sum(map(bool, volumes)))


class Feed:
    """All series of one sandbox. `start` is the simulated time at which it starts.

    `pair` is the key of the pair in a file of candles, `digits` the decimals of its prices.
    """

    def __init__(self, spec: str, now: float) -> None:
        kind, _, self.seed = spec.partition(":")
        self.start, self.pair, self.digits = now, "", 0
        self._series: dict[str, Series] = {}
        if kind == "csv" and self.seed:
            self._open(Path(self.seed))
        elif kind != "random" or not (self.seed.isascii() and self.seed.isalnum()):
            raise ValueError(f"feed {spec!r} is neither random:SEED nor csv:FILE")

    def series(self, rules: PairRules) -> Series:
        if rules.pair not in self._series:
            rows = walk(f"{self.seed}/{rules.pair}", FIRST_TICKS.get(rules.pair, 100000))
            first = int(self.start // 60 - HISTORY) * 60
            self._series[rules.pair] = Series(60, first, rules.pair_decimals, rows)
        return self._series[rules.pair]

    def _open(self, path: Path) -> None:
        """Read a file once to find its errors now; its candles are read when needed."""
        name, interval_s = pair_of(path), interval_of(path)
        first = next(read([path], interval_s, []))
        count = sum(len(part.times) for part in read([path], interval_s, []))
        if name is None or count <= 40:
            raise ValueError(f"{path}: not PAIR_MINUTES.csv, or fewer than 41 candles")
        self.seed, self.start = "1", first.times[0] + max(40, min(720, count // 3)) * interval_s
        self.pair = next((key for key, row in PAIRS.items() if name in aliases(key, row)), name)
        self.digits = max(-int(exact(close).as_tuple().exponent) for close in first.closes)
        rows = _rows_of(path, interval_s)
        self._series[self.pair] = Series(interval_s, first.times[0], _FILE_DIGITS, rows)


def walk(seed: str, price: int) -> Iterator[Row]:
    """Yield the candles of a random walk from `price`, in units of the last decimal."""
    bits = random.Random(seed).getrandbits
    unit, floor = max(price // 8000, 1), price // 4
    while True:
        noise = bits(38)
        if noise & 15 == 0:
            yield price, price, price, price, 0
            continue
        opened = price + (noise >> 4 & 1) - (noise >> 5 & 1)
        # The sum of 64 coin flips is nearly normal; its coarse steps make exact ties possible.
        change = (bits(64).bit_count() - 32) * unit
        price += change if price + change > floor else abs(change)
        high = max(opened, price) + (noise >> 6 & 7) * unit // 2
        low = min(opened, price) - (noise >> 9 & 7) * unit // 2
        yield opened, high, low, price, _MINUTE_VOLUME if high > low else 0


def _rows_of(path: Path, interval_s: int) -> Iterator[Row]:
    """Yield the candles of a file; after its end the price stands still."""
    close = 0
    for part in read([path], interval_s, []):
        for *prices, volume in zip(*part.numbers, strict=True):
            opened, high, low, close = (int(exact(x).scaleb(_FILE_DIGITS)) for x in prices)
            yield opened, high, low, close, int(exact(volume).scaleb(_VOLUME_DIGITS))
    while True:
        yield close, close, close, close, 0
