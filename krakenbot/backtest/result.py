"""The result of a replay: fills, round trips, equity and drawdown."""

from collections import deque
from decimal import Decimal
from typing import NamedTuple

from krakenbot.backtest.columns import Columns
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
        self.begin = self.candles = self.candles_untraded = self.candles_held = 0
        self.orders = self.turns = self.openings_untraded = self.closed = self.wins = 0
        self.margin_fees = self.turnover = self.won = self.lost = ZERO
        self.flat_equity, self._paid = balance, ZERO
        self.refused, self.refused_since = 0, 0
        self.refused_reason: str | None = None
        self.ended: str | None = None
        self.ended_at: int | None = None
        self.drawdown = self.drawdown_share = 0.0
        self._peak, self._peak_at, self._is_below, self.under_water_s = float(balance), 0, False, 0

    def end(self, why: str, now: int) -> None:
        """Note why trading ended; the first reason stays."""
        if self.ended is None:
            self.ended, self.ended_at = why, now

    def refuse(self, reason: str, now: int) -> None:
        """Count an order that was refused or not sent; the first one in a row gives the reason."""
        self.refused += 1
        if not self.refused_since:
            self.refused_since, self.refused_reason = now, reason

    def open(self, fill: Fill, is_traded: bool) -> None:
        """Count an opening; `is_traded` says whether its candle has trades."""
        self.entry = fill
        self.turns += 1
        self.openings_untraded += not is_traded
        self.turnover += fill.trade.cost
        self.margin_fees += fill.trade.opening_fee

    def close(self, fill: Fill, equity: Decimal, paid: Decimal) -> None:
        """Count a round trip; `equity` and `paid` (all costs so far) are the values after it."""
        net, costs = equity - self.flat_equity, paid - self._paid
        self.flat_equity, self._paid = equity, paid
        self.closed += 1
        self.turnover += fill.trade.cost
        if net > 0:
            self.wins += 1
            self.won += net
        else:
            self.lost -= net
        if self.entry:
            self.trips.append(Trip(self.entry, fill, costs, net))
        self.entry = None

    def value(self, equity: float, now: int) -> None:
        """Update peak and drawdown with the equity at the time `now`."""
        fall = self._peak - equity
        if fall <= 0:
            self.under_water_s = self.longest_below(now)
            self._peak, self._peak_at, self._is_below = equity, now, False
            return
        self._is_below = True
        self.drawdown = max(self.drawdown, fall)
        self.drawdown_share = max(self.drawdown_share, fall / self._peak)

    def longest_below(self, now: int) -> int:
        """Return the longest time below an earlier high until `now`, in seconds."""
        peak_at = self._peak_at or self.begin
        return max(self.under_water_s, (now - peak_at) * self._is_below)

    def follow(self, fixed: float, held: float, part: Columns, begin: int, end: int) -> None:
        """Update with the equity `fixed + held * close` after each candle from `begin` to `end`."""
        closes = part.closes[begin:end]
        if not closes:
            return
        best, worst = max(closes), min(closes)
        if held < 0:
            best, worst = worst, best
        self.candles_held += (end - begin) * (held != 0)
        if fixed + held * best < self._peak:
            self.value(fixed + held * worst, 0)  # The time only matters at a new high.
        else:
            for time, close in zip(part.times[begin:end], closes, strict=True):
                self.value(fixed + held * close, time + part.interval_s)

    def result(
        self, end: int, net: Decimal, paid: Decimal, rollover: Decimal, hold: Decimal
    ) -> Result:
        """Return the figures at the end: `net` is the profit, `paid` all costs."""
        traded_s, fees = (self.ended_at or end) - self.begin, paid - self.margin_fees - rollover
        percent = float(100 * net / self.balance)
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
            exposure=self.candles_held / self.candles,
            break_even_fee=(net + fees) / self.turnover if self.turnover else None,
        )
