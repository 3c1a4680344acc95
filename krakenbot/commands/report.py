"""`report`: one HTML file about what the bot did, from its journal alone; also for `backtest`."""

import argparse
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from krakenbot import config_reader, format
from krakenbot.backtest.result import Result
from krakenbot.commands import history, views
from krakenbot.commands.history import Row, shown
from krakenbot.commands.journals import journal_path
from krakenbot.commands.page import Chart, page, table, write_page
from krakenbot.commands.status import units
from krakenbot.config import Config, is_loopback
from krakenbot.format import duration, moment, money, percent, signed, volume
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO, Purpose, Side
from krakenbot.records import Account, Booked, Equity, Intent

EXAMPLE = "krakenbot report --output report.html"
NEWEST = 360  # Candles in the second chart.
GAP_CANDLES = 3  # After a longer gap between decisions the bot counts as having been down.
MARKS_MAX = 400  # Orders that are marked in a chart.
ORDER = (
    "*time *purpose *side |volume |price |fee |margin_fee *outcome *reason *note *client_order_id"
)
ROUND = "*entry *exit *side |volume |entry_price |exit_price |gross |costs |net"


class Point(NamedTuple):
    """A point of the charts, in unix seconds.

    `held` is the volume until then, `net` and `gross` are the profit since the start, after and
    before costs.
    """

    time: float
    close: float
    net: float
    gross: float
    held: float


class RoundTrip(NamedTuple):
    """A position from its opening to its closing or reversal. `gross` is the profit before `costs`.

    These are trade fees, opening fees and rollovers. The names are fields of `backtest --json`: do
    not change them.
    """

    entry: float
    exit: float
    side: str
    volume: Decimal
    entry_price: Decimal
    exit_price: Decimal
    gross: Decimal
    costs: Decimal
    net: Decimal


class Report(NamedTuple):
    """The contents of a page; every sequence is in order of time, money in quote currency.

    `costs` is a `cost_breakdown`, `orders` are rows of `history`, `newest` are times, closes and
    averages. The account began with `balance`, 0 if that is not known; `hold` is the profit from
    holding `size` all the time. `facts` take the place of computed ones of the same name. `earlier`
    round trips and their orders are left out. Where no point follows within `gap_s` seconds, the
    bot was down.
    """

    title: str
    subtitle: str
    headline: str
    quote: str
    pair_decimals: int | None
    balance: Decimal
    size: Decimal
    hold: Decimal
    facts: Mapping[str, str]
    costs: Mapping[str, Decimal]
    points: Sequence[Point]
    orders: Sequence[Row]
    rounds: Sequence[RoundTrip]
    newest: Sequence[tuple[float, float, float]] = ()
    notes: Sequence[str] = ()
    earlier: int = 0
    gap_s: float = math.inf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    name, text = "krakenbot-report.html", "default: %(default)s"
    parser.add_argument("--output", metavar="FILE", default=name, type=Path, help=text)


def run(arguments: argparse.Namespace) -> int:
    config = config_reader.load_here(arguments.config)
    journal = open_read_only(journal_path(config))
    write_page(arguments.output, render(report_of(config, journal)))
    print(f"report: {arguments.output}")
    return 0


def report_of(config: Config, journal: Journal) -> Report:
    """Return the report on everything in the journal."""
    equity, intents, account = [*views.equity(journal)], journal.intents(), journal.account()
    base, quote, decimals = units(journal, config.pair)
    size = next((abs(row.held) for row in equity if row.held), config.size)
    costs = cost_breakdown(ZERO, account)  # Before the first candle the profit is 0.
    balance, hold, when, words = ZERO, ZERO, "no candle yet", "Nothing was decided yet."
    if equity:
        first, last = equity[0], equity[-1]
        newest = journal.newest_of(Purpose.ADOPT, 1)
        adopted = [order for order in newest if order.created > last.time]
        price = adopted[0].cost / adopted[0].executed if adopted else last.price
        costs = cost_breakdown(account.pnl(price), account)
        balance = first.equity - first.pnl if first.equity else ZERO
        # Holding pays a fee, too, for a purchase and a sale.
        turnover = sum(order.cost for order in intents if order.purpose is not Purpose.ADOPT)
        fee_rate = account.fees / (turnover or 1)
        hold = size * (last.price - first.price - fee_rate * (first.price + last.price))
        when = f"{moment(first.time)} to {moment(last.time)}"
        words = in_words(last.time - first.time, costs, hold, balance, quote)
    if halted := journal.get("halted"):
        words = f"The bot is halted: {clean(halted)}. {words}"
    place = " on a sandbox, no real money" if is_loopback(config.exchange.url) else ""
    strategy = journal.get("strategy") or config.strategy.title
    decided = [row for row in views.decisions(journal, newest=NEWEST) if row.done]
    return Report(
        title=f"{config.pair} · {config.mode}{place}",
        subtitle=f"{when}, {journal.get('interval') or config.interval} min candles, {strategy}, "
        f"size {volume(size)}, leverage {config.leverage}",
        headline=words,
        quote=quote,
        pair_decimals=decimals,
        balance=balance,
        size=size,
        hold=hold,
        facts={"orders": f"{journal.orders_since(0):,}", "held now": volume(account.held, base)},
        costs=costs,
        # A row says what was held after its decision, and so until the next one.
        points=[_point(row, before.held) for before, row in pairwise(equity[:1] + equity)],
        orders=[*history.ROWS["orders"](journal, 0)],
        rounds=round_trips(intents, views.charges(journal)),
        newest=sorted(
            (row.candle + row.interval_s, float(row.price), float(row.average)) for row in decided
        ),
        # After a change of the interval, candles of the longest one are no gap.
        gap_s=GAP_CANDLES * max((row.interval_s for row in views.decisions(journal)), default=0),
    )


def _point(row: Equity, held: Decimal) -> Point:
    gross = row.pnl + row.fees + row.margin_fees + row.rollover
    return Point(row.time, float(row.price), float(row.pnl), float(gross), float(held))


def cost_breakdown(net: Decimal, paid: Account | Result) -> dict[str, Decimal]:
    """Return signed amounts by name: the profit before costs, each cost, the net profit."""
    costs = {"trade fees": -paid.fees, "margin fees": -paid.margin_fees, "rollover": -paid.rollover}
    return {"before costs": net - sum(costs.values()), **costs, "net": net}


def in_words(
    seconds: float, costs: Mapping[str, Decimal], hold: Decimal, balance: Decimal, quote: str
) -> str:
    """Return the result in sentences; a `balance` of 0 means that it is not known."""
    gross, net = costs["before costs"], costs["net"]
    share = f", {percent(abs(net) / balance * 100)} of the account" if balance else ""
    return (
        f"In {duration(seconds)} the bot {_won(net, quote)}{share}. Trading itself "
        f"{_won(gross, quote)}; fees and margin cost {money(gross - net, quote)}. Holding would "
        f"have {_won(hold, quote)}."
    )


def _won(amount: Decimal, quote: str) -> str:
    word = "won" if amount > 0 else "lost" if amount else "made"
    return f"{word} {money(abs(amount), quote)}"


def render(report: Report) -> str:
    """Return the page as HTML."""
    decimals, quote = report.pair_decimals, report.quote
    ended = shown((trip._asdict() for trip in reversed(report.rounds)), ROUND, quote, decimals)
    sent = shown(reversed(report.orders), ORDER, quote, decimals)
    falls = drawdowns(report.balance, report.points)
    facts = {name: signed(money(cost, quote)) for name, cost in report.costs.items()}
    if report.balance:
        facts["return"] = signed(percent(report.costs["net"] / report.balance * 100))
        facts["holding"] = signed(percent(report.hold / report.balance * 100))
        facts["max drawdown"] = percent(max(falls))
    won = sum(trip.net > 0 for trip in report.rounds)
    facts["round trips"] = f"{len(report.rounds):,}, {won:,} won"
    sections = [
        *_charts(report, falls, [order for order in report.orders if order["price"]]),
        table("Round trips", *ended, note="newest first", left_out=report.earlier),
        table("Orders", *sent, note="newest first", left_out=2 * report.earlier),
    ]
    head = (report.title, report.subtitle, report.headline, report.costs["net"])
    return page(*head, {**facts, **report.facts}, report.notes, sections)


def round_trips(intents: Sequence[Intent], charges: Iterable[Booked]) -> list[RoundTrip]:
    """Return the round trips that ended, in order. A reversal ends one and begins the next.

    A charge belongs to the round trip in whose time it falls. An opening fee counts from its order
    on, even if it has an earlier time by Kraken's clock.
    """
    times = {order.id: order.created for order in intents}
    booked = sorted(
        (max(charge.time, times.get(charge.id.partition(" ")[0], 0)), charge.amount)
        for charge in charges
    )
    moments, sums = (
        [time for time, _ in booked],
        [ZERO, *accumulate(amount for _, amount in booked)],
    )
    rounds: list[RoundTrip] = []
    held = ZERO
    for intent in intents:
        rest, sign = intent.executed, intent.side.sign
        while rest:
            if not held:
                entry, volume, fees = intent, ZERO, ZERO
                costs = dict.fromkeys(Side, ZERO)
            part = min(rest, abs(held)) if held * sign < 0 else rest
            costs[intent.side] += intent.cost * part / intent.executed
            fees += intent.fee * part / intent.executed
            volume += part if intent.side is entry.side else ZERO
            held, rest = held + sign * part, rest - part
            if not held:
                begin, end = (bisect_left(moments, order.created) for order in (entry, intent))
                fees += sums[end] - sums[begin]
                paid, got = costs[entry.side], costs[intent.side]
                gross = entry.side.sign * (got - paid)
                side = "long" if entry.side is Side.BUY else "short"
                traded = volume, paid / volume, got / volume, gross, fees, gross - fees
                rounds.append(RoundTrip(entry.created, intent.created, side, *traded))
    return rounds


def drawdowns(balance: Decimal, points: Iterable[Point]) -> list[float]:
    """Return for each point the fall from the highest equity until then, in percent of that."""
    equity = [float(balance), *(float(balance) + point.net for point in points)]
    pairs = zip(accumulate(equity, max), equity, strict=True)
    return [(peak - now) / peak * 100 if peak > 0 else 0.0 for peak, now in pairs][1:]


def _charts(report: Report, falls: Sequence[float], trades: Sequence[Row]) -> Iterator[str]:
    """Yield the charts; `falls` are the drawdowns, in percent, at the points."""
    if len(report.points) < 2:
        return
    times, closes, nets, grosses, held = zip(*report.points, strict=True)
    decimals = 6 if report.pair_decimals is None else report.pair_decimals
    gap_s, marked = report.gap_s, trades[-MARKS_MAX:]
    prices = Chart("Price and position", times, {"price": closes}, gap_s, decimals)
    prices.dots(marked)
    prices.band(held)
    yield prices.html("" if marked == trades else f"with the newest {MARKS_MAX} fills")
    if len(report.newest) > 1:
        ends, newest, averages = zip(*report.newest, strict=True)
        both = {"average": averages, "price": newest}
        near = Chart(f"The newest {len(newest)} candles", ends, both, gap_s, decimals)
        near.dots(trade for trade in marked if trade["time"] >= ends[0])
        yield near.html()
    size, last = float(report.size), float(report.hold)
    hold = [last - size * (closes[-1] - close) for close in closes]
    title = f"Profit and loss, {format.asset(report.quote)}"
    lines = {"holding": hold, "before costs": grosses, "after costs": nets}
    yield Chart(title, times, lines, gap_s, format.decimals_of(report.quote)).html()
    if report.balance:
        title, lows = "Drawdown, percent of the account", [-fall for fall in falls]
        yield Chart(title, times, {"drawdown": lows}, gap_s).html()
