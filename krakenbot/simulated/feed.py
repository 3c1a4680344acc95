"""The sandbox's market: candles of a seeded random walk or a file, and Kraken's public methods.

During an interval the price stays at its open, with bid and ask one tick away. When the interval
ends, its high and low count as reached. So every order in an interval gets the same price, and
sandbox, paper mode and backtest agree.
"""

import math
import random
import time
from bisect import bisect, bisect_left
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from krakenbot import format
from krakenbot.backtest.columns import exact
from krakenbot.backtest.files import interval_of, pair_of, read
from krakenbot.config import INTERVALS
from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Candle, Quote
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.simulated import wire
from krakenbot.simulated.listing import (
    ASSETS,
    FIRST_TICKS,
    PAIRS,
    Row,
    aliases,
    asset_row,
    assets_of,
    unlisted,
)
from krakenbot.simulated.private import Span
from krakenbot.simulated.wire import Params, bad, number

ROWS_MAX = 721  # With the unfinished one; docs.kraken.com, "Get OHLC Data", promises 720.
HISTORY = 60 * 1440  # Minutes of a random market before the sandbox starts.
MINUTE_VOLUME = Decimal("0.05")  # Traded in each minute in which a random market moves.
# Open, high, low, close and volume of a candle. Decimals for the prices would take twice the
# memory; `exact` makes them from the floats when needed.
Numbers = tuple[float, float, float, float, Decimal]


class Series:
    """The candles of one pair without gaps, the first starting at `first`, made when needed.

    `by_hand` are the times at which somebody has set the price, in order, each with that price or
    None for back to the feed.
    """

    def __init__(self, interval_s: int, first: int, rows: Iterator[Numbers]) -> None:
        self.interval_s, self.first = interval_s, first
        self._source, self._made = rows, list[Numbers]()
        self.by_hand: list[tuple[float, float | None]] = [(-math.inf, None)]

    def number(self, time: float) -> int:
        """Return the number of the candle in which `time` falls; the first one has number 0."""
        return int((time - self.first) // self.interval_s)

    def row(self, number: int) -> Numbers:
        """Return a candle of the feed, whatever was set by hand."""
        self._made += islice(self._source, max(number + 1 - len(self._made), 0))
        return self._made[number]

    def _seen(self, number: int, now: float) -> Numbers:
        """Return a candle as it is at `now`; until its end the feed stays at the open."""
        row, begin = self.row(number), self.first + number * self.interval_s
        end = begin + self.interval_s
        if end <= now and len(self.by_hand) == 1:
            return row
        first = bisect(self.by_hand, begin, key=itemgetter(0)) - 1
        stop = bisect_left(self.by_hand, end, key=itemgetter(0))
        path = [row[0] if price is None else price for _, price in self.by_hand[first:stop]]
        if end <= now and self.by_hand[stop - 1][1] is None:
            path += row[1:4]
        return path[0], max(path), min(path), path[-1], row[4] if end <= now else ZERO

    def price(self, now: float) -> Decimal:
        """Return the price at `now`."""
        return exact(self._seen(self.number(now), now)[3])

    def bars(self, interval_s: int, since: int, now: float) -> list[Candle]:
        """Return at most 721 candles that start after `since`; the last one is unfinished."""
        running = int(now // interval_s)
        begin = max(since // interval_s + 1, running - ROWS_MAX + 1, -(-self.first // interval_s))
        times = range(min(begin, running) * interval_s, (running + 1) * interval_s, interval_s)
        return [self.bar(time, interval_s, now) for time in times]

    def bar(self, time: int, interval_s: int, now: float) -> Candle:
        """Return the candle that starts at `time`, as it is at `now`."""
        here = self.number(now)
        start = min(max(self.number(time), 0), here)
        stop = min(max(self.number(time + interval_s), start + 1), here + 1)
        rows = (self._seen(number, now) for number in range(start, stop))
        opens, highs, lows, closes, volumes = zip(*rows, strict=True)
        prices = opens[0], max(highs), min(lows), closes[-1]
        opened, high, low, close = map(exact, prices)
        return Candle(time, opened, high, low, close, sum(volumes, ZERO))


class Feed:
    """The markets of one sandbox, and Kraken's public `methods` by name.

    A method returns its result or raises RefusedError. The sandbox's time begins at `start`; `now`,
    which the sandbox sets, returns it. `own_pair` is the key of a file's pair. Raises ValueError
    for a wrong spec or file. Source: docs.kraken.com, "Market Data".
    """

    def __init__(self, spec: str, start: float) -> None:
        kind, _, self.seed = spec.partition(":")
        self.start, self.own_pair = start, ""
        self.now: Callable[[], float] = lambda: self.start
        self.status, self.clock_off_s = "online", 0  # By how much `Time` is wrong.
        self.notices: dict[str, list[Any]] = {}
        self.listing = {name: dict(row) for name, row in PAIRS.items()}
        self._series: dict[str, Series] = {}
        if kind == "csv" and self.seed:
            self._open(Path(self.seed))
        elif kind != "random" or not (self.seed.isascii() and self.seed.isalnum()):
            raise ValueError(f"feed {spec!r} is neither random:SEED nor csv:FILE")
        self.rules = {name: parse_rules(name, row) for name, row in self.listing.items()}
        self.methods: dict[str, Callable[[Params], Any]] = {
            "Time": self._time,
            "SystemStatus": self._system_status,
            "Assets": self._assets,
            "AssetPairs": lambda p: {x.pair: self.listing[x.pair] for x in self._pairs(p)},
            "OHLC": self._ohlc,
            "Ticker": lambda p: {rules.pair: self._ticker(rules) for rules in self._pairs(p)},
            "Depth": self._depth,
        }

    def _open(self, path: Path) -> None:
        """Read a file once, to find its errors now; later its candles are read when needed."""
        name, interval_s = pair_of(path), interval_of(path)
        first = next(read([path], interval_s, []))
        count = sum(len(part.times) for part in read([path], interval_s, []))
        if name is None or count <= 40:
            raise ValueError(f"{path}: not PAIR_MINUTES.csv, or fewer than 41 candles")
        base, quote = assets_of(name)
        self.seed, self.start = "1", first.times[0] + max(40, min(720, count // 3)) * interval_s
        names = {row["altname"]: key for key, row in PAIRS.items()}
        pair = self.own_pair = names.get(base + quote, base + quote)
        if pair not in PAIRS:
            digits = max(-int(exact(close).as_tuple().exponent) for close in first.closes)
            row = self.listing[pair] = unlisted(base, quote, digits)
            for code in (row["base"], row["quote"]):
                ASSETS.setdefault(code, asset_row(format.asset(code), 8, 5))
        self._series[pair] = Series(interval_s, first.times[0], _rows_of(path, interval_s))

    def series(self, rules: PairRules) -> Series:
        """Return the series of a pair: the file's, or a random one."""
        if rules.pair not in self._series:
            first, ticks = int(self.start // 60 - HISTORY) * 60, FIRST_TICKS[rules.pair]
            rows = walk(f"{self.seed}/{rules.pair}", ticks, 10**rules.pair_decimals)
            self._series[rules.pair] = Series(60, first, rows)
        return self._series[rules.pair]

    def pair(self, name: str) -> PairRules:
        """Return the rules of a pair by any of its names. Raises RefusedError if none has it."""
        for key, row in self.listing.items():
            if name in aliases(key, row):
                return self.rules[key]
        raise RefusedError("EQuery:Unknown asset pair")

    def relist(self, pair: str, **changes: Any) -> None:
        """Change the row of a pair in AssetPairs, and with it the rules."""
        self.listing[pair].update(changes)
        self.rules[pair] = parse_rules(pair, self.listing[pair])

    def _pairs(self, p: Params) -> list[PairRules]:
        names = p["pair"].split(",") if "pair" in p else self.rules
        return [self.pair(name.strip()) for name in names]

    def quote(self, rules: PairRules) -> Quote:
        """Return bid and ask, one tick to either side of the price."""
        price, step = self.series(rules).price(self.now()), tick(rules)
        return Quote(price - step, price + step)

    def ended(self, rules: PairRules, since: float, until: float) -> Iterator[Span]:
        """Yield the feed's intervals that ended from `since` to `until`; none while a price is set.

        What was set by hand within them is left out: it may be older than a position.
        """
        series = self.series(rules)
        if series.by_hand[-1][1] is None:
            for number in range(series.number(since), series.number(until)):
                opened, high, low, *_ = series.row(number)
                end = series.first + (number + 1) * series.interval_s
                yield math.nextafter(end, 0), exact(opened), exact(low), exact(high)

    def _time(self, _: Params) -> Any:
        now = int(self.now()) + self.clock_off_s
        text = time.strftime("%a, %d %b %y %H:%M:%S +0000", time.gmtime(now))
        return {"unixtime": now, "rfc1123": text}

    def _system_status(self, _: Params) -> Any:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now()))
        notices = {name: rows for name, rows in self.notices.items() if rows}
        return {"status": self.status, "timestamp": moment, **notices}

    def _assets(self, p: Params) -> Any:
        wanted = wire.asset_codes(p["asset"]) if p.get("asset") else ASSETS
        return {code: ASSETS[code] for code in wanted}

    def _ohlc(self, p: Params) -> Any:
        rules, step_s = self.pair(p.get("pair", "")), int(number(p, "interval", 1) * 60)
        series = self.series(rules)
        if step_s / 60 not in INTERVALS or step_s % series.interval_s:
            raise bad("interval")
        bars = series.bars(step_s, int(number(p, "since", 0)), self.now())
        rows = [_bar_row(bar, rules) for bar in bars]
        return {rules.pair: rows, "last": bars[-1].time - step_s}

    def _ticker(self, rules: PairRules) -> Row:
        series, now, quote = self.series(rules), int(self.now()), self.quote(rules)
        begins = now // 86400 * 86400, now - 86400 + series.interval_s
        days = [series.bar(begin, 86400, now) for begin in begins]
        text = partial(wire.price, rules=rules)
        sides = {"a": [text(quote.ask), "1", "1.000"], "b": [text(quote.bid), "1", "1.000"]}
        prices = {"p": map(_average, days), "l": [x.low for x in days], "h": [x.high for x in days]}
        return (
            {**sides, "c": [text(quote.mid), "0.01000000"], "o": text(days[0].open)}
            | {"v": [f"{day.volume:.8f}" for day in days], "t": [*map(_trades, days)]}
            | {name: [*map(text, pair)] for name, pair in prices.items()}
        )

    def _depth(self, p: Params) -> Any:
        rules, count = self.pair(p.get("pair", "")), int(number(p, "count", 100, fraction=""))
        if not 1 <= count <= 500:
            raise bad("count")
        quote, step, now = self.quote(rules), tick(rules), int(self.now())
        steps = range(min(count, int(quote.bid / step) - 1))

        def levels(best: Decimal, away: Decimal) -> list[Any]:
            return [[wire.price(best + away * n, rules), "1.000", now] for n in steps]

        return {rules.pair: {"asks": levels(quote.ask, step), "bids": levels(quote.bid, -step)}}


def tick(rules: PairRules) -> Decimal:
    """Return the smallest price step of a pair."""
    return Decimal(1).scaleb(-rules.pair_decimals)


def _bar_row(bar: Candle, rules: PairRules) -> list[Any]:
    """Return a row of OHLC. Prices of a file may have more decimals than the pair."""
    exponents = [int(price.normalize().as_tuple().exponent) for price in bar[1:5]]
    digits = max(rules.pair_decimals, -min(exponents))
    average = f"{_average(bar):.{digits}f}" if bar.volume else "0.0"
    prices = [f"{price:.{digits}f}" for price in bar[1:5]]
    return [bar.time, *prices, average, f"{bar.volume:.8f}", _trades(bar)]


def _average(bar: Candle) -> Decimal:
    return (bar.high + bar.low + bar.close) / 3 if bar.volume else ZERO


def _trades(bar: Candle) -> int:
    return min(math.ceil(bar.volume / MINUTE_VOLUME), 10**6)


def walk(seed: str, price: int, scale: int) -> Iterator[Numbers]:
    """Yield the candles of a random walk that starts at `price`, in ticks of 1 / `scale`."""
    bits = random.Random(seed).getrandbits
    unit, floor = max(price // 8000, 1), price // 4
    while True:
        noise = bits(38)
        opened = high = low = price
        if noise & 15:
            opened += (noise >> 4 & 1) - (noise >> 5 & 1)
            # The sum of 64 coin flips is nearly normal; its coarse steps make exact ties possible.
            change = (bits(64).bit_count() - 32) * unit
            price += change if price + change > floor else abs(change)
            high = max(opened, price) + (noise >> 6 & 7) * unit // 2
            low = min(opened, price) - (noise >> 9 & 7) * unit // 2
        volume = MINUTE_VOLUME if high > low else ZERO
        yield opened / scale, high / scale, low / scale, price / scale, volume


def _rows_of(path: Path, interval_s: int) -> Iterator[Numbers]:
    """Yield the candles of a file; after its end the price stands still."""
    for part in read([path], interval_s, []):
        yield from zip(*part.numbers[:4], map(exact, part.volumes), strict=True)
    close = part.closes[-1]
    while True:
        yield close, close, close, close, ZERO
