"""The exchange of the simulation: a market that turns often, with a spread that moves."""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from random import Random
from typing import Any

from krakenbot.model import Quote, Secret
from krakenbot.pairs import PairRules
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.feed import Feed, Numbers, Series
from krakenbot.simulated.listing import FIRST_TICKS, SANDBOX_KEY, SANDBOX_SECRET

VOLUME = Decimal("0.05")  # Of each candle.


class TurningFeed(Feed):
    """Candles of one length; the slope of an average of `length` changes with `turning`."""

    kept = 800  # Candles before the episode: more than the exchange gives at once.

    def __init__(self, seed: int, now: float, interval_s: int, length: int, turning: float) -> None:
        super().__init__(f"random:{seed}", now)
        self.number, self.interval_s = seed, interval_s
        self.length, self.turning = length, turning

    def series(self, rules: PairRules) -> Series:
        if rules.pair not in self._series:
            first = (int(self.start) // self.interval_s - self.kept) * self.interval_s
            rows = self._rows(FIRST_TICKS.get(rules.pair, 100000), 10**rules.pair_decimals)
            self._series[rules.pair] = Series(self.interval_s, first, rows)
        return self._series[rules.pair]

    def _rows(self, start: int, scale: int) -> Iterator[Numbers]:
        random = Random(f"{self.number} market")
        unit, sign, opened = max(start // 8000, 1), 1, start
        closes = [start] * self.length
        while True:
            if random.random() < self.turning:
                sign = -sign
            change = random.choice((0, 1, 1, 2, 5)) * unit
            close = closes[0] + sign * change
            if random.random() < 0.0005:  # A crash, or the contrary; in the end it comes back.
                close = start if close != start else start + sign * start // random.choice((3, 20))
                closes = [close] * self.length
            closes = [*closes[1:], close]
            high, low = max(opened, close) + unit, min(opened, close) - unit
            yield opened / scale, high / scale, low / scale, close / scale, VOLUME
            opened = close + random.choice((-1, 0, 0, 1))


class Market(SandboxApi):
    """The sandbox with a spread that can widen, and prices that move before an order fills."""

    def __init__(
        self, feed: TurningFeed, now: Callable[[], float], random: Random, **more: Any
    ) -> None:
        self.spread = self.slippage = 0  # In ticks beyond the usual two; at most.
        self._random = random
        super().__init__(feed, now, SANDBOX_KEY, Secret(SANDBOX_SECRET), **more)
        self._usual: Callable[[PairRules], Quote] = self.markets.quote
        vars(self.markets)["quote"] = self._quote
        self.markets.methods["Ticker"] = self._ticker

    def _quote(self, rules: PairRules) -> Quote:
        quote = self._usual(rules)
        if not self.spread and not self.slippage:
            return quote
        tick = (quote.ask - quote.bid) / 2
        away = tick * self._random.randint(-self.slippage, self.slippage)
        return Quote(quote.bid + away - tick * self.spread, quote.ask + away + tick * self.spread)

    def _ticker(self, p: Mapping[str, str]) -> dict[str, Any]:
        rules = self.markets.pair(p["pair"])
        quote = self._quote(rules)
        sides = {"a": [f"{quote.ask:f}", "1", "1.0"], "b": [f"{quote.bid:f}", "1", "1.0"]}
        return {rules.pair: sides}
