"""What `backtest` tells on the terminal and in HTML reports, about one run or a sweep.

A table is a title, the names of columns (a leading | marks numbers), rows, and a note.
"""

import sys
import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from krakenbot import format
from krakenbot.backtest.engine import Replay
from krakenbot.backtest.files import Columns, candles_of, exact
from krakenbot.backtest.result import DAY_S, YEAR_S, Result, Trip
from krakenbot.backtest.result import Fill as Order
from krakenbot.backtest.sweep import Cell, Keys, Setting, Step, Value, best_of, is_sound
from krakenbot.commands import write_output
from krakenbot.commands.chart import COLUMNS, Fill
from krakenbot.commands.page import heat_map, page, table
from krakenbot.commands.run_report import Point, RunReport, cost_breakdown, render
from krakenbot.format import MINUTE, in_columns, moment, money, percent, price, shows_color, signed
from krakenbot.model import ZERO
from krakenbot.pairs import PairRules, plain
from krakenbot.rulefile import load

_TRIP = ("entry", "exit", "side", "|bars", "|in at", "|out at", "|gross", "|costs", "|net")
_CELL = ("cell", "|turns/day", "|gross", "|net", "|return", "|drawdown", "ended early")
_FORWARD = ("span from", "best before", "|its net", "|rank", "|best net", "|average", "|hold")
# Figures that the page shows nowhere else.
_FACTS = ("turns", "win rate", "under water", "exposure", "break-even fee")
_CANDLES_SHOWN = 360
Table = tuple[str, Sequence[str], Sequence[Sequence[str]], str]
_GRID_WIDTH = 90
_GAINS, _LOSSES = (22, 28, 34), (52, 88, 124)  # Shades of the terminal's 256.


def title(result: Result, with_interval: bool = True) -> str:
    interval = f" {result.interval_s // 60} min," if with_interval else ""
    untraded = result.candles_untraded
    return (
        f"{result.pair},{interval} {moment(result.begin, MINUTE)} to {moment(result.end, MINUTE)} "
        f"UTC, {(result.end - result.begin) / DAY_S:,.1f} days, {result.candles:,} candles"
        + (f", {untraded:,} of them without trades" if untraded else "")
    )


def headline(result: Result) -> list[str]:
    """Return what a reader must not miss: an early end, then the net result."""
    made = (
        f"net {_signed(result.net, result)}, {signed(percent(result.net_percent))} of the "
        f"{money(result.balance, result.quote)} at the start; holding "
        f"{signed(percent(result.hold_percent))}"
    )
    return [f"ENDED EARLY: {end_of(result)}", made] if result.ended else [made]


def end_of(result: Result, is_brief: bool = False) -> str:
    """Return when and why a run ended before its data, "" if it did not; if brief, without days."""
    if result.ended is None or result.ended_at is None:
        return ""
    when = moment(result.ended_at, MINUTE)
    if is_brief:
        return f"{when} {result.ended}"
    days, whole = ((at - result.begin) / DAY_S for at in (result.ended_at, result.end))
    return f"{when} UTC, after {days:,.1f} of {whole:,.1f} days: {result.ended}"


def setup(setting: Setting, swept: Container[str] = ()) -> str:
    """Return strategy, size, fees and rates in one sentence, without what is swept."""
    config, rules, costs = setting.config, setting.rules, setting.costs
    chosen, name = config.strategy, config.strategy.name
    if chosen.file is not None:
        fixed = {key: chosen.parameters[key] for key in chosen.parameters if key not in swept}
        name = f"{chosen.file.name} {load(chosen.file).sha256[:12]} {name_of(fixed)}".rstrip()
    elif "length" not in swept:
        name += f" {chosen.length}" if name == "sma-slope" else f" {chosen.short}/{chosen.long}"
    slipped = f" and {plain(costs.slippage * 100)} % slippage" if costs.slippage else ""
    long, short = (plain(100 * costs.margin_rates[code]) for code in (rules.quote, rules.base))
    return (
        f"{name}, size {plain(config.size)}, leverage {config.leverage}, {config.reversal}; "
        f"taker fee {plain(costs.fee_rate * 100)} %, margin {long} % long and {short} % short at "
        f"opening and every 4 h, fills at the next open one tick away{slipped}"
    )


def figures(result: Result) -> list[tuple[str, str]]:
    """Return names and values of the result, as shown."""
    fee, won, factor = result.break_even_fee, result.win_rate, result.profit_factor
    better = "-" if factor is None else f"{factor:.2f}"
    is_long = result.end - result.begin > YEAR_S / 10 and not result.ended
    a_year = f", {percent(result.net_percent_per_year)} per year, not compounded" if is_long else ""
    why = f": {result.refused_reason}" if result.refused_reason else ""
    fall = money(result.max_drawdown, result.quote)
    turns, untraded = f"{result.turns:,}", f"{result.openings_untraded:,}"
    rate = f"{percent(100 * (won or 0), 1)} after costs, profit factor {better}"
    return [
        ("turns", f"{turns}, {result.turns_per_day:,.1f} per day while it traded"),
        ("empty candles", f"{untraded} of {turns} openings were in candles without trades"),
        ("orders", f"{result.orders:,}, {result.refused:,} refused{why}"),
        ("win rate", "-" if won is None else rate),
        *((name, _signed(cost, result)) for name, cost in costs_of(result).items()),
        ("buy and hold", _signed(result.hold, result)),
        ("return", f"{percent(result.net_percent)}{a_year}"),
        ("max drawdown", f"{fall}; as a share of equity {percent(result.max_drawdown_percent)}"),
        ("under water", f"at most {result.under_water_days:,.1f} days"),
        ("exposure", f"{percent(100 * result.exposure, 1)} of the time"),
        ("break-even fee", "-" if fee is None else f"{fee * 100:.4f} %" if fee > 0 else "none"),
    ]


def costs_of(result: Result) -> dict[str, Decimal]:
    return cost_breakdown(result.gross, result.fees, result.margin_fees, result.rollover)


def _signed(number: Decimal, result: Result) -> str:
    return signed(money(number, result.quote))


def trip_values(trip: Trip, interval_s: int) -> dict[str, Any]:
    """Return a round trip as named values for JSON and the table."""
    entry, end = trip.entry, trip.exit
    return {
        "entry": entry.time,
        "exit": end.time,
        "side": "long" if entry.direction > 0 else "short",
        "bars": (end.time - entry.time) // interval_s,
        "volume": entry.trade.volume,
        "entry_price": entry.trade.price,
        "exit_price": end.trade.price,
        "gross": trip.net + trip.costs,
        "costs": trip.costs,
        "net": trip.net,
        "why": end.reason,
    }


def trips(newest: Sequence[Trip], rules: PairRules, interval_s: int) -> list[str]:
    rows = [
        (
            *(moment(one[key], MINUTE) for key in ("entry", "exit")),
            one["side"],
            f"{one['bars']:,}",
            *(price(one[key], rules) for key in ("entry_price", "exit_price")),
            *(format.amount(one[key], rules.quote) for key in ("gross", "costs", "net")),
        )
        for one in (trip_values(trip, interval_s) for trip in newest)
    ]
    return ["", f"the newest {len(rows)} round trips", *in_columns(_TRIP, rows)] if rows else []


def lines_of(table: Table) -> list[str]:
    title, names, rows, note = table
    return [title, *in_columns(names, rows), *textwrap.wrap(note, 80)]


def cell_table(every: Sequence[Cell], best: int | None) -> Table:
    """Return a table of all cells, the best one marked."""
    quote = every[0].whole.quote
    rows = [
        (
            f"{name_of(cell.keys)}{' *' if at == best else ''}",
            f"{cell.whole.turns_per_day:,.1f}",
            *(format.amount(one, quote) for one in (cell.whole.gross, cell.whole.net)),
            percent(cell.whole.net_percent),
            format.amount(cell.whole.max_drawdown, quote),
            "" if is_sound(cell.whole) else f"! {end_of(cell.whole, is_brief=True) or 'no turn'}",
        )
        for at, cell in enumerate(every)
    ]
    return "Cells", _CELL, rows, ""


def winner(every: Sequence[Cell], best: int | None) -> str:
    """Return which cell is the best, and what that is worth."""
    ended = sum(not is_sound(cell.whole) for cell in every)
    left = (
        f"! {ended} of {len(every)} ended early or did not trade: not compared. " if ended else ""
    )
    if best is None:
        return f"{left}So none is the best."
    name, net = name_of(every[best].keys), _signed(every[best].whole.net, every[best].whole)
    return (
        f"{left}Best of {len(every)}: {name}, net {net}. The best of many is mostly the luckiest: "
        "it was chosen on these candles. Look for broad areas where neighbours do well too, and "
        "use --forward 365d to see how the best of one year did in the next."
    )


def name_of(keys: Keys) -> str:
    return " ".join(f"{key}={value}" for key, value in keys.items())


def grid(
    every: Sequence[Cell], values: Mapping[str, Sequence[Value]], best: int | None
) -> list[str]:
    """Return a grid of net by two keys; nothing for another number of keys or without room."""
    nets, quote = [cell.whole.net for cell in every], every[0].whole.quote
    width = max(len(format.amount(net, quote)) for net in nets) + 3
    across, *downs = sorted(values, key=lambda key: len(values[key]))
    if len(downs) != 1 or len(values[across]) * width > _GRID_WIDTH:
        return []
    down, most, colored = downs[0], max(map(abs, nets)) or 1, shows_color(sys.stdout)
    shown = {}
    for at, (cell, net) in enumerate(zip(every, nets, strict=True)):
        mark = "*" if at == best else " " if is_sound(cell.whole) else "!"
        words = f"{signed(format.amount(net, quote))}{mark}".rjust(width)
        shade = (_LOSSES if net < 0 else _GAINS)[min(int(abs(net) / most * 3), 2)]
        words = f"\x1b[97;48;5;{shade}m{words}\x1b[0m" if colored else words
        shown[cell.keys[down], cell.keys[across]] = words
    columns = values[across]
    return [
        f"net by {down} (down) and {across} (across), the best with *",
        " " * 8 + " ".join(f"{column:>{width - 1}}" for column in columns),
        *(f"{row:>8}{''.join(shown[row, x] for x in columns)}".rstrip() for row in values[down]),
    ]


def forward_table(steps: Sequence[Step], cells: Sequence[Cell]) -> Table:
    """Return a table of the walk forward."""
    count, quote = len(cells), cells[0].whole.quote
    rows = [
        (
            moment(step.begin, "%Y-%m-%d"),
            name_of(step.chosen),
            signed(format.amount(step.net, quote)),
            f"{step.rank} of {count}",
            *(signed(format.amount(x, quote)) for x in (step.best_net, step.average, step.hold)),
        )
        for step in steps
    ]
    note = _verdict(steps, count, quote)
    return "How the best cell of each span did in the next", _FORWARD, rows, note


def _verdict(steps: Sequence[Step], count: int, quote: str) -> str:
    """Return what the walk forward means, in words."""
    if not steps:
        return "No cell traded to the end of a span, so none was tried on the next one."
    better = sum(step.net > step.average for step in steps)
    rank = sum(step.rank for step in steps) / len(steps)
    columns = zip(*((step.net, step.average, step.hold) for step in steps), strict=True)
    chosen, average, hold = (signed(format.amount(sum(column, ZERO), quote)) for column in columns)
    return (
        f"The best cell of one span did better than the average cell in {better} of the "
        f"{len(steps)} following spans. Its rank there was {rank:.1f} of {count} on average. In "
        f"all it made {chosen}, the average cell {average}, and holding {hold}."
    )


def write_run(
    path: Path, setting: Setting, replay: Replay, parts: Iterable[Columns], notes: Sequence[str]
) -> Result:
    """Feed the replay, write the page about it, and return the result."""
    tail: list[Columns] = []
    points = [*_points(replay, parts, tail)]
    result, plan = replay.result(), replay.plan
    fills: list[Fill] = []
    for trip in replay.record.trips:
        opening, closing = _fill(trip.entry, "open"), _fill(trip.exit, "close")
        rollover = trip.costs - opening.fee - closing.fee
        fills += [opening, Fill(trip.exit.time, 0, ZERO, ZERO, rollover), closing]
    if replay.record.entry:
        fills.append(_fill(replay.record.entry, "open"))
    trips = f"{replay.record.closed:,}"  # The record keeps fewer.
    facts = {"Max drawdown": percent(result.max_drawdown_percent), "Round trips": trips}
    facts |= {name.capitalize(): fact for name, fact in figures(result) if name in _FACTS}
    newest, needed = list(candles_of(*tail)), plan.candles_min
    windows = (newest[at - needed : at] for at in range(needed, len(newest) + 1))
    report = RunReport(
        title=f"{result.pair} · backtest",
        subtitle=f"{title(result)}; {setup(setting)}",
        quote=format.asset(result.quote),
        pair_decimals=replay.rules.pair_decimals,
        balance=result.balance,
        size=setting.config.size,
        hold=result.hold,
        facts=facts,
        costs=costs_of(result),
        points=points,
        newest=[
            (
                seen[-1].time + plan.interval_s,
                float(seen[-1].close),
                float(plan.strategy(seen).average),
            )
            for seen in windows
        ],
        fills=fills,
        notes=notes,
        end=f"ENDED EARLY: {end}." if (end := end_of(result)) else "",
    )
    write_output(path, render(report).encode())
    return result


def _points(replay: Replay, parts: Iterable[Columns], tail: list[Columns]) -> Iterator[Point]:
    """Feed the parts and yield points to draw; the longer the run, the more candles each covers.

    `tail` ends up with the newest candles, which are drawn one by one.
    """
    count, kept = 0, _CANDLES_SHOWN + replay.plan.candles_min - 1
    for part in parts:
        end = tail[0].joined(part) if tail else part
        tail[:] = [end.cut(-kept)]
        at = 0
        while at < len(part.times):
            step = max(1, count // COLUMNS)
            piece = part.cut(at, at + step)
            replay.feed(piece)
            at, count = at + step, count + len(piece.times)
            net = replay.equity(exact(piece.closes[-1])) - replay.costs.balance
            prices = min(piece.lows), max(piece.highs), piece.closes[-1]
            gross = float(net + replay.paid)
            yield Point(piece.end, *prices, float(net), gross, float(replay.held))


def _fill(order: Order, kind: str) -> Fill:
    trade = order.trade
    figures = trade.volume, trade.price, trade.fee + trade.opening_fee
    why = f"{order.reason}: {kind}"
    return Fill(order.time, order.direction, *figures, "filled", why, f"{order.order}")


def write_sweep(
    path: Path,
    head: Sequence[str],
    cells: Sequence[Cell],
    forward: Table | None,
    notes: Sequence[str],
) -> None:
    """Write the page about a sweep: its cells, for two keys as a heat map, and the walk forward."""
    first, best = cells[0], best_of([cell.whole for cell in cells])
    sections = [table(*forward)] if forward else []
    if len(first.keys) == 2:
        down, across = first.keys
        nets = {
            (str(cell.keys[down]), str(cell.keys[across])): float(cell.whole.net)
            for cell in cells
            if is_sound(cell.whole)
        }
        note = "cells that ended early are left out"
        sections.append(heat_map("Net", f"{down} by {across}", nets, first.whole.quote, note))
    sections.append(table(*cell_table(cells, best)))
    tone = -1.0 if best is None else float(cells[best].whole.net)
    title, headline = f"{first.whole.pair} · sweep", winner(cells, best)
    write_output(path, page(title, "; ".join(head), headline, tone, {}, notes, sections).encode())
