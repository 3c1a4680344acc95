"""Kraken's public methods, answered from a feed of candles."""

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from krakenbot.config import INTERVALS
from krakenbot.errors import RefusedError
from krakenbot.model import Quote
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.simulated import listing, wire
from krakenbot.simulated.feed import Bar, Feed
from krakenbot.simulated.listing import ASSETS, PAIRS
from krakenbot.simulated.private import Span
from krakenbot.simulated.wire import Params, Row, bad, number, whole


class FeedMarkets:
    """The pairs of a sandbox. `prices` are those set by hand; `now` returns unix seconds.

    `methods` has Kraken's methods by name; each returns its result or raises RefusedError.
    """

    def __init__(self, feed: Feed, now: Callable[[], float]) -> None:
        self.feed, self.now = feed, now
        self.status = "online"
        self.notices: dict[str, list[Any]] = {}
        self.prices: dict[str, Decimal] = {}
        self.listing = {name: dict(row) for name, row in PAIRS.items()}
        if feed.pair and feed.pair not in PAIRS:
            self.listing[feed.pair] = listing.unlisted(*listing.assets_of(feed.pair), feed.digits)
        self.rules = {name: parse_rules(name, row) for name, row in self.listing.items()}
        self._names = {
            alias: name
            for name, row in self.listing.items()
            for alias in listing.aliases(name, row)
            if not alias.startswith("XBT/")
        }
        self.methods: dict[str, Callable[[Params], Any]] = {
            "Time": self._time,
            "SystemStatus": self._system_status,
            "Assets": self._assets,
            "AssetPairs": lambda p: {x.pair: self.listing[x.pair] for x in self._pairs(p)},
            "OHLC": self._ohlc,
            "Ticker": lambda p: {rules.pair: self._ticker(rules) for rules in self._pairs(p)},
            "Depth": self._depth,
        }

    def pair(self, name: str) -> PairRules:
        """Return the rules of a pair, given by any of its names."""
        if name not in self._names:
            raise RefusedError("EQuery:Unknown asset pair")
        return self.rules[self._names[name]]

    def relist(self, pair: str, **changes: Any) -> None:
        """Change a pair's AssetPairs row and with it the rules."""
        self.listing[pair].update(changes)
        self.rules[pair] = parse_rules(pair, self.listing[pair])

    def _pairs(self, p: Params) -> list[PairRules]:
        if p.get("aclass_base", p.get("asset_class", "currency")) != "currency":
            raise RefusedError("EQuery:Unknown asset pair")  # All that is listed is of this class.
        names = p["pair"].split(",") if "pair" in p else self.rules
        return [self.pair(name.strip()) for name in names]

    def quote(self, rules: PairRules) -> Quote:
        """Return bid and ask, one tick to either side of the price."""
        step, price = tick(rules), self.prices.get(rules.pair)
        if price is None:
            series = self.feed.series(rules)
            price = series.prices(series.number(self.now()))[0]
        return Quote(price - step, price + step)

    def ended(self, rules: PairRules, since: float, until: float) -> Iterator[Span]:
        """Yield the intervals that ended; none at a set price."""
        series = self.feed.series(rules)
        numbers = range(series.number(since), series.number(until))
        for number_ in numbers if rules.pair not in self.prices else ():
            opened, high, low, _ = series.prices(number_)
            yield series.first + (number_ + 1) * series.interval_s, opened, low, high

    def _time(self, _: Params) -> Any:
        now = int(self.now())
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
        series, price = self.feed.series(rules), self.prices.get(rules.pair)
        if step_s / 60 not in INTERVALS or step_s % series.interval_s:
            raise bad("interval")
        bars = series.bars(step_s, int(number(p, "since", 0)), self.now())
        if price is not None:
            high, low = max(bars[-1].open, price), min(bars[-1].open, price)
            bars[-1] = bars[-1]._replace(high=high, low=low, close=price)
        rows = [_bar_row(bar, rules) for bar in bars]
        return {rules.pair: rows, "last": bars[-1].time - step_s}

    def _ticker(self, rules: PairRules) -> Row:
        series, now, quote = self.feed.series(rules), int(self.now()), self.quote(rules)
        begins = now // 86400 * 86400, now - 86400 + series.interval_s
        bars = [_bar_row(series.bar(begin, 86400, now), rules) for begin in begins]
        _, opens, highs, lows, _, averages, volumes, counts = map(list, zip(*bars, strict=True))
        ask, bid, last = (wire.price(x, rules) for x in (quote.ask, quote.bid, quote.mid))
        sides = {"a": [ask, "1", "1.000"], "b": [bid, "1", "1.000"], "c": [last, "0.01000000"]}
        day = {"v": volumes, "p": averages, "t": counts, "l": lows, "h": highs, "o": opens[0]}
        return sides | day

    def _depth(self, p: Params) -> Any:
        rules, count = self.pair(p.get("pair", "")), whole(p, "count", 100)
        if not 1 <= count <= 500:
            raise bad("count")
        quote, step, now = self.quote(rules), tick(rules), int(self.now())
        levels = [step * n for n in range(min(count, int(quote.bid / step) - 1))]
        asks, bids = (
            [[wire.price(first + away * sign, rules), "1.000", now] for away in levels]
            for first, sign in ((quote.ask, 1), (quote.bid, -1))
        )
        return {rules.pair: {"asks": asks, "bids": bids}}


def tick(rules: PairRules) -> Decimal:
    """Return the smallest price step of a pair."""
    return Decimal(1).scaleb(-rules.pair_decimals)


def _bar_row(bar: Bar, rules: PairRules) -> list[Any]:
    """Return a row of OHLC; prices from a file may have more decimals than the pair."""
    exponents = [int(price.normalize().as_tuple().exponent) for price in bar[1:5]]
    digits = max(rules.pair_decimals, -min(exponents))
    average = (bar.high + bar.low + bar.close) / 3
    prices = [f"{price:.{digits}f}" for price in (*bar[1:5], average)]
    if not bar.trades:
        prices[4] = "0.0"
    return [bar.time, *prices, f"{bar.volume:.8f}", bar.trades]
