"""The HTML report on one run, of a bot or of a backtest."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from krakenbot.commands import write_output
from krakenbot.commands.chart import COLUMNS, Chart, Fill
from krakenbot.commands.page import bars, page, table
from krakenbot.format import MINUTE, duration, moment, money, percent, price, signed, volume

MARKS_MAX = 400
DUST = 1e-12  # The error of a sum of floats that should be 0.
_ORDER = ("time (UTC)", "side", "|volume", "|price", "|fee", "outcome", "why", "client order id")
_SIZES = ("|volume", "|in at", "|out at", "|costs", "|result", "|percent")
_ROUND = ("opened (UTC)", "|held for", "side", *_SIZES)


class Point(NamedTuple):
    """One or more candles up to `time`. `net` and `gross` are the profit since the start.

    `is_after_gap`: the bot was down between the previous point and this one.
    """

    time: float
    low: float
    high: float
    close: float
    net: float
    gross: float
    held: float
    is_after_gap: bool = False


class RunReport(NamedTuple):
    """The contents of the page. `newest` are times, closes and averages.

    `costs` is a `cost_breakdown`; `fills` are orders and costs of holding in order of time. The
    account began with `balance`. The result is compared with holding `size`, bought at
    `first_price`. `end` says why a run ended early. `facts` override those that are computed.
    """

    title: str
    subtitle: str
    quote: str
    pair_decimals: int | None
    balance: float
    size: float
    first_price: float
    facts: Mapping[str, str]
    costs: Sequence[tuple[str, Decimal]]
    points: Sequence[Point]
    newest: Sequence[tuple[float, float, float]]
    fills: Sequence[Fill]
    notes: Sequence[str]
    end: str = ""

    @property
    def gross(self) -> float:
        return float(self.costs[0][1])

    @property
    def net(self) -> float:
        return float(self.costs[-1][1])

    def holding(self, price: float) -> float:
        """Return the profit of holding from the start, at a price."""
        return self.size * (price - self.first_price)


def cost_breakdown(
    gross: Decimal, fees: Decimal, margin_fees: Decimal, rollover: Decimal
) -> list[tuple[str, Decimal]]:
    """Return names and signed amounts: the result before costs, each cost, the net result."""
    net = gross - fees - margin_fees - rollover
    costs = ("trade fees", -fees), ("margin fees", -margin_fees), ("rollover", -rollover)
    return [("before costs", gross), *costs, ("net", net)]


def write(path: Path, report: RunReport) -> None:
    """Write the page. Raises UsageError when it cannot be written."""
    write_output(path, render(report).encode())


def render(report: RunReport) -> str:
    trades = [fill for fill in report.fills if fill.sign and fill.price]
    rounds = round_trips(fill for fill in report.fills if fill.price or not fill.sign)
    ended = [_round_row(one, report.pair_decimals) for one in reversed(rounds)]
    orders = [fill.texts(report.pair_decimals) for fill in reversed(report.fills) if fill.sign]
    sections = [
        *(_charts(report, trades) if len(report.points) > 1 else ()),
        bars([(name, float(amount)) for name, amount in report.costs]),
        table("Round trips", _ROUND, ended, "after costs, newest first"),
        table("Orders", _ORDER, orders, "newest first"),
    ]
    facts = {**_facts(report, rounds), **report.facts}.items()
    headline = _headline(report)
    return page(report.title, report.subtitle, headline, report.net, facts, report.notes, sections)


def thinned(points: Iterable[Point]) -> list[Point]:
    """Return at most COLUMNS points; merged ones keep the lowest and highest price."""
    kept: list[Point] = []
    step = 1
    for number, point in enumerate(points):
        if number % step:
            kept[-1] = _merged(kept[-1], point)
            continue
        if len(kept) == COLUMNS:
            kept = [_merged(a, b) for a, b in zip(kept[::2], kept[1::2], strict=True)]
            step *= 2
        kept.append(point)
    return kept


def _merged(a: Point, b: Point) -> Point:
    low, high = min(a.low, b.low), max(a.high, b.high)
    return b._replace(low=low, high=high, is_after_gap=a.is_after_gap or b.is_after_gap)


class RoundTrip(NamedTuple):
    """From flat to flat or to a reversal. `costs` are trade fees and costs of holding."""

    begin: float
    end: float
    sign: int
    volume: float
    entry: float
    exit: float
    costs: float

    @property
    def net(self) -> float:
        return self.sign * self.volume * (self.exit - self.entry) - self.costs

    @property
    def percent(self) -> float:
        return self.net / (self.volume * self.entry) * 100


def round_trips(fills: Iterable[Fill]) -> list[RoundTrip]:
    """Return the round trips that ended, in order. A reversal ends one and begins the next."""
    rounds: list[RoundTrip] = []
    inside: list[Fill] = []  # Fills and costs of the open round trip.
    for fill in fills:
        held = sum(one.sign * one.volume for one in inside)
        closing = min(fill.volume, abs(held)) if held * fill.sign < 0 else 0.0
        share = closing / fill.volume if fill.volume else 1.0
        if inside and (closing or not fill.volume):
            inside.append(fill._replace(volume=closing, fee=fill.fee * share))
        if closing and abs(held) - closing < DUST:
            rounds.append(_round(inside))
            inside = []
        left = fill.volume - closing
        if left > DUST:
            inside.append(fill._replace(volume=left, fee=fill.fee * (1 - share)))
    return rounds


def _round(fills: Sequence[Fill]) -> RoundTrip:
    """Return the round trip of fills and costs, the first of which opened it."""
    sign, costs = fills[0].sign, sum(fill.fee for fill in fills)
    opened = sum(fill.volume for fill in fills if fill.sign == sign)
    entry, exit_ = (
        sum(fill.volume * fill.price for fill in fills if fill.sign == side) / opened
        for side in (sign, -sign)
    )
    return RoundTrip(fills[0].time, fills[-1].time, sign, opened, entry, exit_, costs)


def _round_row(one: RoundTrip, decimals: int | None) -> tuple[str, ...]:
    return (
        moment(one.begin, MINUTE),
        duration(one.end - one.begin),
        "long" if one.sign > 0 else "short",
        volume(one.volume),
        price(one.entry, decimals),
        price(one.exit, decimals),
        money(one.costs),
        signed(money(one.net)),
        signed(percent(one.percent)),
    )


def _headline(report: RunReport) -> str:
    """Return the result in words, an early end first."""
    if not report.points:
        return f"{report.end} Nothing was decided yet.".strip()
    first, last = report.points[0], report.points[-1]
    share = ""
    if report.balance:
        share = f", {percent(abs(report.net) / report.balance * 100)} of the account"
    amounts = report.net, report.gross, report.holding(last.close)
    net, gross, hold = (_won(amount, report.quote) for amount in amounts)
    costs = money(report.gross - report.net, report.quote)
    return (
        f"{report.end} In {duration(last.time - first.time)} the bot {net}{share}. Trading itself "
        f"{gross}; fees and margin cost {costs}. Holding would have {hold}."
    ).strip()


def _won(amount: float, quote: str) -> str:
    word = "won" if amount > 0 else "lost" if amount else "made"
    return f"{word} {money(abs(amount), quote)}"


def _facts(report: RunReport, rounds: Sequence[RoundTrip]) -> dict[str, str]:
    if not report.points:
        return {}
    facts = {"Net": signed(money(report.net, report.quote))}
    if report.balance:
        hold = report.holding(report.points[-1].close)
        facts["Return"] = signed(percent(report.net / report.balance * 100))
        facts["Holding"] = signed(percent(hold / report.balance * 100))
    won = sum(one.net > 0 for one in rounds)
    share = f", {percent(won / len(rounds) * 100, 0)} won" if rounds else ""
    return {**facts, "Round trips": f"{len(rounds):,}{share}"}


def drawdowns(balance: float, points: Iterable[Point]) -> list[float]:
    """Return the drawdown from the highest equity so far, in percent, at each point."""
    equity = [balance + point.net for point in points]
    pairs = zip(accumulate(equity, max), equity, strict=True)
    return [(peak - now) / peak * 100 if peak > 0 else 0.0 for peak, now in pairs]


def _charts(report: RunReport, trades: Sequence[Fill]) -> Iterator[str]:
    times, low, high, closes, nets, grosses, held, after_gap = zip(*report.points, strict=True)
    gaps = frozenset(at for at, is_after in enumerate(after_gap) if is_after)
    decimals = 6 if report.pair_decimals is None else report.pair_decimals
    few = trades if len(trades) <= MARKS_MAX else ()
    chart = Chart("Price and position", times, [*low, *high], gaps, decimals)
    if low != high:
        chart.area("range", low, high)
    chart.line("price", closes, "price")
    chart.dots(few)
    chart.band(held)
    hidden = "too many fills to mark; the newest are in the next chart"
    yield chart.html(hidden if len(few) < len(trades) else "")
    if len(report.newest) > 1:
        ends, newest, averages = zip(*report.newest, strict=True)
        title = f"The newest {len(newest)} candles"
        near = Chart(title, ends, [*newest, *averages], decimals=decimals)
        near.line("price", newest, "price")
        near.line("average", averages, "second")
        near.dots([trade for trade in trades if trade.time >= ends[0]][-MARKS_MAX:])
        yield near.html()
    hold = [*map(report.holding, closes)]
    equity = Chart(f"Profit and loss, {report.quote}", times, [*nets, *grosses, *hold, 0.0], gaps)
    equity.line("holding", hold, "faint")
    equity.line("before costs", grosses, "second")
    equity.line("after costs", nets, "price")
    yield equity.html()
    if report.balance:
        falls = [-fall for fall in drawdowns(report.balance, report.points)]
        drawdown = Chart("Drawdown, percent of the account", times, [*falls, 0.0], gaps)
        drawdown.area("loss", falls, [0.0] * len(falls))
        drawdown.line("drawdown", falls, "lossline")
        yield drawdown.html()
