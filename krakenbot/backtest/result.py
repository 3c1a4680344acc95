"""What came of a replay: fills, round trips, and what the equity went through."""

from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot.model import ZERO

DAY_S = 86400
YEAR_S = 365.25 * DAY_S


class Fill(NamedTuple):
    """What one order closed or opened. `order` counts from 1; `traded`: others traded then too."""

    time: int
    order: int
    direction: int
    reason: str
    traded: bool
    volume: Decimal
    price: Decimal
    cost: Decimal
    fee: Decimal
    opening_fee: Decimal


class Trip(NamedTuple):
    """A position from opening to closing; `costs` are fees, opening fee and rollovers."""

    entry: Fill
    exit: Fill
    costs: Decimal
    net: Decimal


class Result(NamedTuple):
    """The figures of a run. Money in quote currency; percent of the balance at the start.

    `gross` is the profit before costs, `margin_fees` are opening fees. A run that `ended` early
    says why and when; turns a day are those of the days until then.
    """

    pair: str
    quote: str
    interval_s: int
    begin: int
    end: int
    candles: int
    candles_untraded: int
    balance: Decimal
    turns: int
    turns_per_day: float
    openings_untraded: int
    orders: int
    refused: int
    refused_reason: str | None
    gross: Decimal
    fees: Decimal
    margin_fees: Decimal
    rollover: Decimal
    net: Decimal
    net_percent: float
    net_percent_per_year: float
    hold: Decimal
    hold_percent: float
    max_drawdown: Decimal
    max_drawdown_percent: float  # Of the best equity before it.
    under_water_days: float  # The longest time below the best equity before.
    win_rate: float | None
    profit_factor: float | None
    exposure: float
    break_even_fee: Decimal | None  # The taker fee at which net is nothing; negative: no fee is.
    ended: str | None
    ended_at: int | None


class Record:
    """Counts while a replay runs. Keeps the newest `keep` round trips."""

    def __init__(self, balance: Decimal, keep: int | None) -> None:
        self.trips: deque[Trip] = deque(maxlen=keep)
        self.entry: Fill | None = None
        self.orders = self.turns = self.openings_untraded = self.closed = self.wins = 0
        self.opening_fees = self.turnover = self.won = self.lost = ZERO
        self.begin, self.candles, self.untraded, self.candles_held = 0, 0, 0, 0
        self.drawdown = self.drawdown_share = 0.0
        self.flat_worth, self._paid = balance, ZERO
        self._peak, self._peak_at, self._is_below, self.under_water_s = float(balance), 0, False, 0

    def start(self, begin: int) -> None:
        self.begin = self._peak_at = begin

    def open(self, fill: Fill | None, cost: Decimal, opening_fee: Decimal, traded: bool) -> None:
        self.entry = fill
        self.turns += 1
        self.openings_untraded += not traded
        self.turnover += cost
        self.opening_fees += opening_fee

    def close(self, fill: Fill | None, cost: Decimal, worth: Decimal, paid: Decimal) -> None:
        """Count a round trip that left the account `worth` so much and `paid` so much in all."""
        net, costs = worth - self.flat_worth, paid - self._paid
        self.flat_worth, self._paid = worth, paid
        self.closed += 1
        self.turnover += cost
        if net > 0:
            self.wins += 1
            self.won += net
        else:
            self.lost -= net
        if fill and self.entry:
            self.trips.append(Trip(self.entry, fill, costs, net))
        self.entry = None

    def value(self, equity: float, now: int) -> None:
        """Take note of the equity."""
        fall = self._peak - equity
        if fall <= 0:
            self.under_water_s = self.longest_below(now)
            self._peak, self._peak_at, self._is_below = equity, now, False
            return
        self._is_below = True
        if fall > self.drawdown_share * self._peak or fall > self.drawdown:
            self.drawdown = max(self.drawdown, fall)
            self.drawdown_share = max(self.drawdown_share, fall / self._peak)

    def longest_below(self, now: int) -> int:
        """Return the longest time below the best equity before, up to now."""
        return max(self.under_water_s, (now - self._peak_at) * self._is_below)

    def follow(
        self, fixed: float, held: float, closes: Sequence[float], first: int, step: int
    ) -> None:
        """Take note of the equity `fixed + held * close` at closes, the first one at `first`."""
        self.candles_held += len(closes) * (held != 0)
        best, worst = (max(closes), min(closes)) if held > 0 else (min(closes), max(closes))
        if not held or fixed + held * best < self._peak:
            self.value(fixed + held * worst, first + step * (len(closes) - 1))
            return
        for now, close in enumerate(closes):
            self.value(fixed + held * close, first + step * now)
