"""The HTML report on one run, of a bot or of a backtest."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate, groupby, islice
from typing import NamedTuple

from krakenbot import format
from krakenbot.commands.chart import COLUMNS, Chart, Fill
from krakenbot.commands.page import bars, page, table
from krakenbot.format import MINUTE, duration, moment, money, percent, price, signed, volume
from krakenbot.model import ZERO

MARKS_MAX = 400
_ORDER = ("time (UTC)", "side", "|volume", "|price", "|fee", "outcome", "why", "client order id")
_SIZES = ("|volume", "|in at", "|out at", "|costs", "|result", "|percent")
_ROUND = ("opened (UTC)", "|held for", "side", *_SIZES)


class Point(NamedTuple):
    """One or more candles up to `time`, and what was `held` until then.

    `net` and `gross` are the profit since the start.
    """

    time: float
    low: float
    high: float
    close: float
    net: float
    gross: float
    held: float


class RunReport(NamedTuple):
    """The contents of the page. `newest` are times, closes and averages.

    `costs` is a `cost_breakdown`; `fills` are orders and costs of holding in order of time. The
    account began with `balance`; holding `size` all the time would have made `hold`. `end` says
    why a run ended early or is halted. `facts` override those that are computed. Where no point
    follows within `gap_s` seconds, the bot was down.
    """

    title: str
    subtitle: str
    quote: str
    pair_decimals: int | None
    balance: Decimal
    size: Decimal
    hold: Decimal
    facts: Mapping[str, str]
    costs: Mapping[str, Decimal]
    points: Sequence[Point]
    newest: Sequence[tuple[float, float, float]]
    fills: Sequence[Fill]
    notes: Sequence[str]
    end: str = ""
    gap_s: float = math.inf


def cost_breakdown(
    gross: Decimal, fees: Decimal, margin_fees: Decimal, rollover: Decimal
) -> dict[str, Decimal]:
    """Return signed amounts by name: the result before costs, each cost, the net result."""
    return {
        "before costs": gross,
        "trade fees": -fees,
        "margin fees": -margin_fees,
        "rollover": -rollover,
        "net": gross - fees - margin_fees - rollover,
    }


def render(report: RunReport) -> str:
    rounds = round_trips(report.fills)
    orders = [fill for fill in report.fills if fill.sign]
    ended = [one.texts(report.pair_decimals, report.quote) for one in reversed(rounds)]
    sent = [order.texts(report.pair_decimals, report.quote) for order in reversed(orders)]
    sections = [
        *_charts(report, [order for order in orders if order.price]),
        bars(report.costs, report.quote),
        table("Round trips", _ROUND, ended, "after costs, newest first"),
        table("Orders", _ORDER, sent, "newest first"),
    ]
    head = (report.title, report.subtitle, _headline(report), report.costs["net"])
    return page(*head, {**_facts(report, rounds), **report.facts}, report.notes, sections)


class RoundTrip(NamedTuple):
    """From flat to flat or to a reversal. `costs` are trade fees and costs of holding."""

    begin: float
    end: float
    sign: int
    volume: Decimal
    entry: Decimal
    exit: Decimal
    costs: Decimal
    net: Decimal

    def texts(self, decimals: int | None, quote: str) -> tuple[str, ...]:
        return (
            moment(self.begin, MINUTE),
            duration(self.end - self.begin),
            "long" if self.sign > 0 else "short",
            volume(self.volume),
            *(price(one, decimals) for one in (self.entry, self.exit)),
            format.amount(self.costs, quote),
            signed(format.amount(self.net, quote)),
            signed(percent(self.net / (self.volume * self.entry) * 100)),
        )


def round_trips(fills: Iterable[Fill]) -> list[RoundTrip]:
    """Return the round trips that ended, in order. A reversal ends one and begins the next."""
    rounds: list[RoundTrip] = []
    inside: list[Fill] = []  # Fills and costs of the open round trip.
    held = ZERO
    for fill in fills:
        if not fill.price and (fill.sign or not inside):
            continue  # It traded nothing, or it is the cost of nothing that is held.
        closing = -held * fill.sign
        parts = [fill]
        if 0 < closing < fill.volume:
            parts = [_part(fill, closing), _part(fill, fill.volume - closing)]
        for part in parts:
            inside.append(part)
            held += part.sign * part.volume
            if not held:
                rounds.append(_round(inside))
                inside = []
    return rounds


def _part(fill: Fill, volume: Decimal) -> Fill:
    return fill._replace(volume=volume, fee=fill.fee * volume / fill.volume)


def _round(fills: Sequence[Fill]) -> RoundTrip:
    """Return the round trip of fills and costs, the first of which opened it."""
    begin, end, sign = fills[0].time, fills[-1].time, fills[0].sign
    opened = sum((fill.volume for fill in fills if fill.sign == sign), ZERO)
    paid, got = (
        sum((fill.volume * fill.price for fill in fills if fill.sign == side), ZERO)
        for side in (sign, -sign)
    )
    costs = sum((fill.fee for fill in fills), ZERO)
    net = sign * (got - paid) - costs
    return RoundTrip(begin, end, sign, opened, paid / opened, got / opened, costs, net)


def _headline(report: RunReport) -> str:
    """Return the result in words, an early end first."""
    if not report.points:
        return f"{report.end} Nothing was decided yet.".strip()
    gross, net, quote = report.costs["before costs"], report.costs["net"], report.quote
    spent = duration(report.points[-1].time - report.points[0].time)
    share = f", {percent(abs(net) / report.balance * 100)} of the account" if report.balance else ""
    return (
        f"{report.end} In {spent} the bot {_won(net, quote)}{share}. Trading itself "
        f"{_won(gross, quote)}; fees and margin cost {money(gross - net, quote)}. Holding would "
        f"have {_won(report.hold, quote)}."
    ).strip()


def _won(amount: Decimal, quote: str) -> str:
    word = "won" if amount > 0 else "lost" if amount else "made"
    return f"{word} {money(abs(amount), quote)}"


def _facts(report: RunReport, rounds: Sequence[RoundTrip]) -> dict[str, str]:
    net = report.costs["net"]
    facts = {"Net": signed(money(net, report.quote))}
    if report.balance:
        facts["Return"] = signed(percent(net / report.balance * 100))
        facts["Holding"] = signed(percent(report.hold / report.balance * 100))
        facts["Max drawdown"] = percent(max(drawdowns(report.balance, report.points)))
    won = sum(one.net > 0 for one in rounds)
    share = f", {percent(won / len(rounds) * 100, 0)} won" if rounds else ""
    return {**facts, "Round trips": f"{len(rounds):,}{share}"}


def drawdowns(balance: Decimal, points: Iterable[Point]) -> list[float]:
    """Return the drawdown from the highest equity so far, in percent, at each point."""
    equity = [float(balance) + point.net for point in points]
    peaks = accumulate(equity, max, initial=float(balance))
    pairs = zip(islice(peaks, 1, None), equity, strict=True)
    return [(peak - now) / peak * 100 if peak > 0 else 0.0 for peak, now in pairs]


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most one point per column of a chart, with its lowest and highest price."""
    kept: list[Point] = []
    begin, span = points[0].time, points[-1].time - points[0].time + 1
    for _, group in groupby(points, lambda point: (point.time - begin) * COLUMNS // span):
        column = [*group]
        low, high = min(one.low for one in column), max(one.high for one in column)
        kept.append(column[-1]._replace(low=low, high=high))
    return kept


def _charts(report: RunReport, trades: Sequence[Fill]) -> Iterator[str]:
    if len(report.points) < 2:
        return
    points = thinned(report.points)
    times, low, high, closes, nets, grosses, held = zip(*points, strict=True)
    gap_s = report.gap_s
    decimals = 6 if report.pair_decimals is None else report.pair_decimals
    few = len(trades) <= MARKS_MAX
    chart = Chart("Price and position", times, [*low, *high], gap_s, decimals)
    chart.area("range", low, high)
    chart.line("price", closes, "price")
    chart.dots(trades if few else ())
    chart.band(held)
    yield chart.html("" if few else "too many fills to mark; the newest are in the next chart")
    if len(report.newest) > 1:
        ends, newest, averages = zip(*report.newest, strict=True)
        title = f"The newest {len(newest)} candles"
        near = Chart(title, ends, [*newest, *averages], gap_s, decimals)
        near.line("price", newest, "price")
        near.line("average", averages, "second")
        near.dots(trade for trade in trades[-MARKS_MAX:] if trade.time >= ends[0])
        yield near.html()
    size, last = float(report.size), float(report.hold)
    hold = [last - size * (closes[-1] - close) for close in closes]
    title, values = f"Profit and loss, {report.quote}", [*nets, *grosses, *hold, 0.0]
    equity = Chart(title, times, values, gap_s, format.decimals_of(report.quote))
    equity.line("holding", hold, "faint")
    equity.line("before costs", grosses, "second")
    equity.line("after costs", nets, "price")
    yield equity.html()
    if report.balance:
        deep = zip(report.points, drawdowns(report.balance, report.points), strict=True)
        falls = [one.low for one in thinned([point._replace(low=-fall) for point, fall in deep])]
        drawdown = Chart("Drawdown, percent of the account", times, [*falls, 0.0], gap_s)
        drawdown.area("loss", falls, [0.0] * len(falls))
        drawdown.line("drawdown", falls, "lossline")
        yield drawdown.html()
