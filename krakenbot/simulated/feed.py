"""Candles of a simulated market: a seeded random walk, or a file in Kraken's OHLCVT form.

The price rule: while an interval runs the market stands at that interval's open, bid and ask one
tick to either side; at its end the interval's high and low have been. So an order anywhere inside
an interval has one price, and sandbox, paper mode and backtest agree.

Prices are kept as whole numbers of the last digit, in columns, not as objects.
"""

import gzip
import random
import zlib
from array import array
from decimal import Decimal
from typing import NamedTuple

from krakenbot.model import Quote
from krakenbot.pairs import PairRules
from krakenbot.simulated.listing import FIRST_TICKS

HISTORY, HISTORY_MIN, ROWS_MAX = 720, 40, 721
CANDLES_MAX = 4_000_000
INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)
# How far back a random market goes, in base intervals: 721 days of minutes.
_AGE_MAX = ROWS_MAX * 1440
VOLUME_DIGITS = 8
_FILE_DIGITS = 10
Row = tuple[int, int, int, int, int, int]


class Bar(NamedTuple):
    """One candle in whole units; `volume` in units of 1e-8."""

    time: int
    open: int
    high: int
    low: int
    close: int
    vwap: int
    volume: int
    trades: int


class Walk:
    """A random walk from `price`, one candle at a time, in either direction of time."""

    def __init__(self, seed: str, price: int) -> None:
        self._bits = random.Random(seed).getrandbits
        self.price = price
        self._unit = max(price // 8000, 1)
        self._floor = price // 4

    def step(self, forward: bool) -> Row:
        """Return open, high, low, close, volume and count of the next candle."""
        bits, unit = self._bits, self._unit
        noise = bits(38)
        near = self.price
        if noise & 15 == 0:
            return near, near, near, near, 0, 0
        # The sum of 64 coins is nearly normal; few steps of one size leave room for exact ties.
        change = (bits(64).bit_count() - 32) * unit
        far = near + change if near + change > self._floor else near + abs(change)
        self.price = far
        before, after = (near, far) if forward else (far, near)
        start = before + (noise >> 4 & 1) - (noise >> 5 & 1)
        high = max(start, after) + (noise >> 6 & 7) * unit // 2
        low = min(start, after) - (noise >> 9 & 7) * unit // 2
        return start, high, low, after, (noise >> 12) + 5000, 1 + (noise >> 12 & 127)


class Series:
    """The candles of one pair without gaps: columns, the first candle starting at `first`."""

    def __init__(self, interval_s: int, first: int, digits: int) -> None:
        self.interval_s = interval_s
        self.first = first
        self.digits = digits
        self.columns = tuple(array("q") for _ in range(6))
        self.ahead: Walk | None = None
        self.behind: Walk | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def append(self, candle: Row) -> None:
        for column, value in zip(self.columns, candle, strict=True):
            column.append(value)

    def index(self, time: float) -> int:
        """Return the number of the candle that runs at `time`, making it if it is random."""
        if self.ahead is not None:
            for _ in range(len(self), int((time - self.first) // self.interval_s) + 1):
                self.append(self.ahead.step(True))
            if len(self) > 2 * _AGE_MAX:
                self._forget(len(self) - _AGE_MAX)
        return int((time - self.first) // self.interval_s)

    def at(self, number: int) -> Row:
        """Return a candle; past the end of a file the market stands still."""
        if number < len(self):
            o, h, low, c, v, n = (column[number] for column in self.columns)
            return o, h, low, c, v, n
        last = self.columns[3][-1]
        return last, last, last, last, 0, 0

    def quote(self, time: float, tick: Decimal) -> Quote:
        """Return the running interval's open with a tick to either side."""
        price = self.decimal(self.at(max(self.index(time), 0))[0])
        return Quote(price - tick, price + tick)

    def bars(self, interval_s: int, since: float | None, now: float) -> list[Bar]:
        """Return up to 721 bars of an interval starting after `since`; the last one runs."""
        running = int(now // interval_s) * interval_s
        begin = running - (ROWS_MAX - 1) * interval_s
        if since is not None:
            begin = min(max(begin, int(since // interval_s + 1) * interval_s), running)
        self.reach(begin)
        if begin < self.first:
            begin = min(-(-self.first // interval_s) * interval_s, running)
        return [self.bar(time, interval_s, now) for time in range(begin, running + 1, interval_s)]

    def bar(self, time: int, interval_s: int, now: float) -> Bar:
        """Return what was traded in an interval; of a running candle only its open has been."""
        here = self.index(now)
        start = max((time - self.first) // self.interval_s, 0)
        stop = (time + interval_s - self.first) // self.interval_s
        candles = [self.at(number) for number in range(start, min(stop, here, len(self)))]
        if here < stop or not candles:
            price = self.at(max(min(here, stop - 1), 0))[0]
            candles.append((price, price, price, price, 0, 0))
        opens, highs, lows, closes, volumes, trades = zip(*candles, strict=True)
        volume = sum(volumes)
        value = sum((h + low + c) // 3 * v for _, h, low, c, v, _ in candles)
        return Bar(time, opens[0], max(highs), min(lows), closes[-1],
                   value // volume if volume else 0, volume, sum(trades))  # fmt: skip

    def decimal(self, units: int) -> Decimal:
        return Decimal(units).scaleb(-self.digits)

    def reach(self, time: int) -> None:
        """Make a random market's past as far back as `time`, or as its age allows."""
        missing = min((self.first - time) // self.interval_s, _AGE_MAX - len(self))
        if self.behind is None or missing <= 0:
            return
        past = [self.behind.step(False) for _ in range(missing)][::-1]
        self.columns = tuple(
            array("q", old) + column
            for old, column in zip(zip(*past, strict=True), self.columns, strict=True)
        )
        self.first -= missing * self.interval_s

    def rescale(self, digits: int) -> None:
        """Keep the prices in units of 10**-digits; digits that are lost must be zeros."""
        up, down = 10 ** max(digits - self.digits, 0), 10 ** max(self.digits - digits, 0)
        prices = (array("q", [units * up // down for units in c]) for c in self.columns[:4])
        self.columns = (*prices, *self.columns[4:])
        self.digits = digits

    def _forget(self, count: int) -> None:
        for column in self.columns:
            del column[:count]
        self.first += count * self.interval_s
        self.behind = None


class Feed:
    """All series of one sandbox. `start` is the simulated time at which it opens."""

    def __init__(self, spec: str, now: float) -> None:
        kind, _, detail = spec.partition(":")
        self.start = now
        self.file: tuple[str, Series] | None = None
        self.seed = detail
        self._series: dict[str, Series] = {}
        if kind == "csv" and detail:
            self.seed = "1"
            self.file = read_file(detail)
            series = self.file[1]
            history = max(HISTORY_MIN, min(HISTORY, len(series) // 3))
            if len(series) <= history:
                raise ValueError(f"{detail}: fewer than {HISTORY_MIN + 1} candles")
            self.start = series.first + history * series.interval_s
        elif kind != "random" or not (detail.isascii() and detail.isalnum()):
            raise ValueError(f"feed {spec!r} is neither random:SEED nor csv:FILE")

    def series(self, rules: PairRules) -> Series:
        if rules.pair not in self._series:
            if self.file is not None and self.file[0] == rules.altname:
                series = self.file[1]
                series.rescale(max(series.digits, rules.pair_decimals))
            else:
                price, seed = FIRST_TICKS.get(rules.pair, 100000), f"{self.seed}/{rules.pair}"
                first = int(self.start // 60) * 60 - HISTORY * 60
                series = Series(60, first, rules.pair_decimals)
                series.ahead, series.behind = Walk(seed, price), Walk(f"{seed}/past", price)
            self._series[rules.pair] = series
        return self._series[rules.pair]


def read_file(path: str) -> tuple[str, Series]:
    """Return the pair's altname and the candles of an OHLCVT file, gaps filled flat.

    Raises ValueError, naming file and line, for anything that is not one.
    """
    name = path.replace("\\", "/").rpartition("/")[2].removesuffix(".gz")
    pair, _, minutes = name.removesuffix(".csv").rpartition("_")
    if not pair or not minutes.isdecimal() or not 0 < int(minutes) <= INTERVALS[-1]:
        raise ValueError(f"{path}: the name is not PAIR_MINUTES.csv or PAIR_MINUTES.csv.gz")
    series, number, digits = Series(int(minutes) * 60, 0, _FILE_DIGITS), 0, 1
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  named in the error
                if line.strip():
                    digits = max(digits, _append_row(series, line.strip().split(",")))
    except (ValueError, ArithmeticError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:{number}: {error}") from error
    if not len(series):
        raise ValueError(f"{path}: no candles")
    series.rescale(min(digits, _FILE_DIGITS))
    return pair, series


def _append_row(series: Series, fields: list[str]) -> int:
    """Add a row, and flat ones for what is missing before it; return its prices' decimals."""
    if len(fields) != 7:
        raise ValueError(f"{len(fields)} columns instead of 7")
    time = int(fields[0])
    o, h, low, c = (_units(text, _FILE_DIGITS) for text in fields[1:5])
    if not 0 < low <= min(o, c) or h < max(o, c):
        raise ValueError("open, high, low and close contradict each other")
    if time % series.interval_s:
        raise ValueError(f"time {time} is not a multiple of the interval")
    if not len(series):
        series.first = time
    missing = (time - series.first) // series.interval_s - len(series)
    if missing < 0 or len(series) + missing > CANDLES_MAX:
        raise ValueError(f"time {time} does not rise, or leaves a gap of {missing} candles")
    for _ in range(missing):
        series.append(series.at(len(series)))
    series.append((o, h, low, c, _units(fields[5], VOLUME_DIGITS), int(fields[6])))
    return max(len(text.partition(".")[2]) for text in fields[1:5])


def _units(text: str, digits: int) -> int:
    """Return a number as a whole count of 10**-digits; further digits are cut."""
    value = Decimal(text)
    if not value.is_finite() or not -30 < value.adjusted() < 18:
        raise ValueError(f"{text!r} is not a usable number")
    number = int(value.scaleb(digits))
    if not 0 <= number < 2**63:
        raise ValueError(f"{text!r} is out of range")
    return number
