"""The result of a replay: fills, round trips, equity and drawdown."""

from collections import deque
from decimal import Decimal
from typing import NamedTuple

from krakenbot.model import ZERO
from krakenbot.pairs import PairRules
from krakenbot.simulated.books import Trade

DAY_S = 86400
YEAR_S = 365.25 * DAY_S


class Fill(NamedTuple):
    """What one order closed or opened. `direction` is 1 for a buy; `order` counts from 1."""

    time: int
    order: int
    direction: int
    reason: str
    trade: Trade


class Trip(NamedTuple):
    """A position from its opening to its closing; `costs` are fees, opening fee and rollovers."""

    entry: Fill
    exit: Fill
    costs: Decimal
    net: Decimal


class Result(NamedTuple):
    """The figures of a run, in quote currency, unix seconds or percent of the balance at the start.

    `gross` is the profit before costs, `net` after them; `margin_fees` are opening fees; `hold` is
    the profit from holding `size` all the time. `ended` and `ended_at` say why and when a run ended
    early; turns per day count the days until then. The names are fields of `backtest --json`: do
    not change them.
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
    max_drawdown_percent: float  # Of the equity at the high before the fall.
    under_water_days: float  # The longest time below an earlier high.
    win_rate: float | None
    profit_factor: float | None
    exposure: float  # The fraction of the candles in which something was held.
    break_even_fee: Decimal | None  # The taker fee at which `net` is 0; below 0 if there is none.
    ended: str | None
    ended_at: int | None


class Record:
    """Counts while a replay runs, and keeps the newest `keep` round trips, all if None."""

    def __init__(
        self, rules: PairRules, interval_s: int, balance: Decimal, keep: int | None
    ) -> None:
        self.rules, self.interval_s, self.balance = rules, interval_s, balance
        self.trips: deque[Trip] = deque(maxlen=keep)
        self.entry: Fill | None = None
        self.begin = self.candles = self.candles_untraded = self.held_s = 0
        self.orders = self.turns = self.openings_untraded = self.wins = 0
        self.margin_fees = self.turnover = self.won = self.lost = self._rollovers = ZERO
        self.refused, self.refused_since = 0, 0
        self.refused_reason: str | None = None
        self.ended: str | None = None
        self.ended_at: int | None = None
        self.drawdown = self.drawdown_share = 0.0
        self.peak = self.lowest = float(balance)  # `lowest` since the peak.
        self._peak_at = self.under_water_s = 0

    @property
    def closed(self) -> int:
        """Return how many positions were opened and closed."""
        return self.turns - (self.entry is not None)

    def end(self, why: str, now: int) -> None:
        """Note why trading ended; the first reason stays."""
        if self.ended is None:
            self.ended, self.ended_at = why, now

    def refuse(self, reason: str, now: int) -> None:
        """Count an order that was refused or not sent; the first one in a row gives the reason."""
        self.refused += 1
        if not self.refused_since:
            self.refused_since, self.refused_reason = now, reason

    def book(self, fill: Fill, rollovers: Decimal, is_traded: bool) -> None:
        """Count a fill, which opens a position if none is open, and else closes it.

        `rollovers` are all that were paid so far. `is_traded`: its candle has trades.
        """
        entry, trade = self.entry, fill.trade
        self.turnover += trade.cost
        if entry is None:
            self.entry = fill
            self.turns += 1
            self.openings_untraded += not is_traded
            self.margin_fees += trade.opening_fee
            return
        opened = entry.trade
        costs = opened.fee + opened.opening_fee + trade.fee + rollovers - self._rollovers
        net = (trade.cost - opened.cost) * entry.direction - costs
        self._rollovers, self.entry = rollovers, None
        self.held_s += fill.time - entry.time
        if net > 0:
            self.wins += 1
            self.won += net
        else:
            self.lost -= net
        self.trips.append(Trip(entry, fill, costs, net))

    def value(self, equity: float, now: int) -> None:
        """Update peak and drawdown with the equity at the time `now`."""
        if equity >= self.peak:
            self.under_water_s = self.longest_below(now)
            self.peak = self.lowest = equity
            self._peak_at = now
        elif equity < self.lowest:
            self.lowest, fall = equity, self.peak - equity
            self.drawdown = max(self.drawdown, fall)
            self.drawdown_share = max(self.drawdown_share, fall / self.peak)

    def longest_below(self, now: int) -> int:
        """Return the longest time below an earlier high until `now`, in seconds."""
        below_s = now - (self._peak_at or self.begin) if self.lowest < self.peak else 0
        return max(self.under_water_s, below_s)

    def result(
        self, end: int, net: Decimal, paid: Decimal, rollover: Decimal, hold: Decimal
    ) -> Result:
        """Return the figures at the end: `net` is the profit, `paid` all costs."""
        traded_s, fees = (self.ended_at or end) - self.begin, paid - self.margin_fees - rollover
        percent = float(100 * net / self.balance)
        held_s = self.held_s + (end - self.entry.time if self.entry else 0)
        cent = Decimal(1).scaleb(-self.rules.cost_decimals)
        # These attributes have the names of fields of Result.
        counted = {name: value for name, value in vars(self).items() if name in Result._fields}
        return Result(
            **counted,
            pair=self.rules.altname,
            quote=self.rules.quote,
            end=end,
            turns_per_day=self.turns / traded_s * DAY_S if traded_s > 0 else 0.0,
            gross=net + paid,
            fees=fees,
            rollover=rollover,
            net=net,
            net_percent=percent,
            net_percent_per_year=percent * YEAR_S / (end - self.begin),
            hold=hold,
            hold_percent=float(100 * hold / self.balance),
            max_drawdown=Decimal(self.drawdown).quantize(cent),
            max_drawdown_percent=100 * self.drawdown_share,
            under_water_days=self.longest_below(end) / DAY_S,
            win_rate=self.wins / self.closed if self.closed else None,
            profit_factor=float(self.won / self.lost) if self.lost else None,
            exposure=round(held_s / self.interval_s) / self.candles,  # Orders fill a second late.
            break_even_fee=(net + fees) / self.turnover if self.turnover else None,
        )
