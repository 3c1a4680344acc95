"""A backtest for the tests alone: fractions, one candle after the other, no code of the package.

Slow and plain on purpose: what it says about money is what the product must say.
"""

import csv
import gzip
import io
from collections.abc import Iterable
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

DAY_S = 86400
ROLLOVER_S = 4 * 3600
Row = tuple[int, Fraction, Fraction, Fraction, Fraction, bool]  # ... and whether it was traded.


class Settings(NamedTuple):
    """Prices and amounts in units, rates as fractions, the stop as a share of the used margin."""

    interval_s: int
    size: Fraction
    leverage: int
    length: int
    fee: Fraction
    long_rate: Fraction
    short_rate: Fraction
    balance: Fraction
    tick: Fraction
    step: Fraction
    entry_now: bool = False
    orders_max: int = 500
    stop: Fraction = Fraction(40, 100)


def rows_of(path: Path, file_s: int, interval_s: int) -> list[Row]:
    """Return the candles of a file, made larger from those that were traded, gaps filled flat."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    found = [
        (int(row[0]), *(Fraction(x) for x in row[1:5]), Fraction(row[5]) > 0)
        for row in csv.reader(io.StringIO(text))
    ]
    first, end = found[0][0], found[-1][0] + file_s
    buckets: dict[int, list[Row]] = {}
    for row in found:
        buckets.setdefault(row[0] // interval_s * interval_s, []).append(row)
    begin, stop = ceil(Fraction(first, interval_s)), floor(Fraction(end, interval_s))
    close = found[0][1]
    for row in found:
        if row[0] < begin * interval_s:
            close = row[4]
    rows: list[Row] = []
    for number in range(begin, stop):
        time = number * interval_s
        inside = [row for row in buckets.get(time, []) if row[5]] or buckets.get(time, [])
        if inside:
            close = inside[-1][4]
            high, low = max(row[2] for row in inside), min(row[3] for row in inside)
            traded = any(row[5] for row in inside)
            rows.append((time, inside[0][1], high, low, close, traded))
        else:
            rows.append((time, close, close, close, close, False))
    return rows


class Account:
    """The money and the one position."""

    def __init__(self, settings: Settings) -> None:
        self.s = settings
        self.balance, self.sign = settings.balance, 0
        self.volume = self.cost = Fraction(0)
        self.due = self.orders = self.turns = self.untraded = self.closed = self.wins = 0
        self.fees = self.margin_fees = self.rollover = self.turnover = Fraction(0)
        self.won = self.lost = Fraction(0)
        self.flat = settings.balance
        self.sent: list[int] = []
        self.peak, self.peak_at, self.under = settings.balance, 0, 0
        self.is_below = False
        self.fall = self.fall_share = Fraction(0)

    def rounded(self, amount: Fraction) -> Fraction:
        return round(amount / self.s.step) * self.s.step  # Half to even.

    def equity(self, price: Fraction) -> Fraction:
        return self.balance + self.sign * (self.volume * price - self.cost)

    def used(self, price: Fraction) -> Fraction:
        return (self.cost if self.sign > 0 else self.volume * price) / self.s.leverage

    def mark(self, price: Fraction, now: int) -> None:
        equity = self.equity(price)
        if equity >= self.peak:
            if self.is_below:
                self.under = max(self.under, now - self.peak_at)
            self.peak, self.peak_at = equity, now
        self.is_below = equity < self.peak
        self.fall = max(self.fall, self.peak - equity)
        self.fall_share = max(self.fall_share, (self.peak - equity) / self.peak)

    def close(self, price: Fraction) -> None:
        cost = self.rounded(self.volume * price)
        fee = self.rounded(cost * self.s.fee)
        self.balance += self.sign * (cost - self.cost) - fee
        self.fees += fee
        self.turnover += cost
        self.orders += 1
        net, self.flat = self.balance - self.flat, self.balance
        self.closed += 1
        self.wins += net > 0
        self.won += max(net, 0)
        self.lost -= min(net, 0)
        self.sign, self.volume, self.cost = 0, Fraction(0), Fraction(0)

    def open(self, sign: int, price: Fraction, now: int, traded: bool) -> bool:
        """Open and return True, or return False when there is too little money."""
        rate = self.s.long_rate if sign > 0 else self.s.short_rate
        cost = self.rounded(self.s.size * price)
        fee, opening_fee = self.rounded(cost * self.s.fee), self.rounded(cost * rate)
        if cost / self.s.leverage + fee + opening_fee > self.balance:
            return False
        self.balance -= fee + opening_fee
        self.fees += fee
        self.margin_fees += opening_fee
        self.turnover += cost
        self.sign, self.volume, self.cost, self.due = sign, self.s.size, cost, now + ROLLOVER_S
        self.orders += 1
        self.turns += 1
        self.untraded += not traded
        return True

    def charge(self, now: int, price: Fraction) -> None:
        while self.sign and self.due < now:
            loan = self.cost if self.sign > 0 else self.volume * price
            rate = self.s.long_rate if self.sign > 0 else self.s.short_rate
            self.balance -= self.rounded(loan * rate)
            self.rollover += self.rounded(loan * rate)
            self.due += ROLLOVER_S

    def is_swept(self, low: Fraction, high: Fraction) -> Fraction | None:
        """Return the price at which a candle ends the position, None when it does not."""
        if not self.sign:
            return None
        share = self.s.stop / self.s.leverage
        if self.sign > 0:
            price = (share * self.cost + self.cost - self.balance) / self.volume
            price = floor(price / self.s.tick) * self.s.tick
            return price if price > 0 and low <= price else None
        price = (self.balance + self.cost) / (self.volume * (1 + share))
        price = ceil(price / self.s.tick) * self.s.tick
        return price if price > 0 and high >= price else None

    def is_ended(self, price: Fraction) -> bool:
        return bool(self.sign) and self.equity(price) <= self.s.stop * self.used(price)


def directions(rows: Iterable[Row], length: int) -> list[int]:
    """Return after each candle where the average of so many closes last moved: 1, -1, or 0."""
    closes, found, before, last = [row[4] for row in rows], [], None, 0
    for at in range(len(closes)):
        average = None
        if at + 1 >= length:
            average = sum(closes[at + 1 - length : at + 1], Fraction(0)) / length
        if before is not None and average is not None and average != before:
            last = 1 if average > before else -1
        found.append(last)
        before = average
    return found


def backtest(rows: list[Row], s: Settings) -> dict[str, Fraction | int | None]:
    """Return every figure of the run."""
    account, signals = Account(s), directions(rows, s.length)
    account.peak_at = begin = rows[0][0]
    entered, first, held, refused = s.entry_now, 0, 0, 0
    ended_at: int | None = None
    refused_since: int | None = None
    for at, (time, _, high, low, close, _) in enumerate(rows[:-1]):
        if ended_at is not None:
            break
        end = time + s.interval_s
        now, opened, traded = end + 1, rows[at + 1][1], rows[at + 1][5]
        held += account.sign != 0
        price = account.is_swept(low, high)
        if price is not None:
            account.close(price)
            account.mark(price, now)
            ended_at = now
            break
        account.mark(close, end)
        account.charge(now, opened)
        if account.is_ended(opened):
            account.close(opened)
            account.mark(opened, now)
            ended_at = now
            break
        signal = signals[at]
        if not entered and signal:
            first = first or signal
            entered = signal != first
        if not signal or not entered or account.sign == signal:
            continue
        account.sent = [sent for sent in account.sent if sent > now - DAY_S]
        if account.sign:
            account.close(opened + signal * s.tick)
            account.sent.append(now)
        if len(account.sent) < s.orders_max and account.open(
            signal, opened + signal * s.tick, now, traded
        ):
            account.sent.append(now)
            refused_since = None
        else:
            refused += 1
            refused_since = refused_since or now
    time, _, high, low, close, _ = rows[-1]
    end = time + s.interval_s
    if ended_at is None:
        price = account.is_swept(low, high)
        if price is None:
            account.charge(end, close)
            price = close if account.is_ended(close) else None
        held += account.sign != 0
        if price is not None:
            account.close(price)
            ended_at = end
            account.mark(price, end)
        account.mark(close, end)
    if ended_at is None:
        ended_at = refused_since
    if account.is_below:
        account.under = max(account.under, end - account.peak_at)
    net = account.equity(close) - s.balance
    costs = account.fees + account.margin_fees + account.rollover
    days = Fraction((ended_at or end) - begin, DAY_S)
    hold = s.size * (close - rows[0][1] - (close + rows[0][1]) * s.fee)
    return {
        "begin": begin,
        "end": end,
        "candles": len(rows),
        "candles_untraded": sum(not row[5] for row in rows),
        "turns": account.turns,
        "turns_per_day": account.turns / days if days else Fraction(0),
        "openings_untraded": account.untraded,
        "orders": account.orders,
        "refused": refused,
        "gross": net + costs,
        "fees": account.fees,
        "margin_fees": account.margin_fees,
        "rollover": account.rollover,
        "net": net,
        "net_percent": 100 * net / s.balance,
        "hold": hold,
        "hold_percent": 100 * hold / s.balance,
        "max_drawdown": account.fall,
        "max_drawdown_percent": 100 * account.fall_share,
        "under_water_days": Fraction(account.under, DAY_S),
        "win_rate": Fraction(account.wins, account.closed) if account.closed else None,
        "profit_factor": account.won / account.lost if account.lost else None,
        "exposure": Fraction(held, len(rows)),
        "break_even_fee": (net + account.fees) / account.turnover if account.turnover else None,
        "ended_at": ended_at,
    }
