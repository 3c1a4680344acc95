"""What `backtest` shows of a run or a sweep, on the terminal and in an HTML report.

A table is a title, the names of its columns (| marks one of numbers), its rows, and the values by
which their cells are shaded.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any

from krakenbot import format
from krakenbot.backtest.columns import Columns, exact
from krakenbot.backtest.engine import WAKE_DELAY_S, Replay
from krakenbot.backtest.result import YEAR_S, Fill, Result, Trip
from krakenbot.backtest.sweep import Cell, Setting, Step, best_of, is_sound
from krakenbot.commands import in_columns
from krakenbot.commands import report as pages
from krakenbot.commands.history import shown
from krakenbot.commands.page import COLUMNS, page, table, write_page
from krakenbot.commands.report import Point, Report, RoundTrip, cost_breakdown, in_words
from krakenbot.format import MINUTE, moment, money, percent, signed
from krakenbot.model import ZERO
from krakenbot.pairs import PairRules, plain
from krakenbot.rulefile import load

_TRIP = "*entry *exit *side |entry_price |exit_price |costs |net"
_CELL = ("cell", "|turns/day", "|gross", "|net", "|return", "|drawdown", "ended early")
_FORWARD = ("span from", "best before", "|rank", "|its net", "|best net", "|average", "|hold")
_GRID_WIDTH = 90
Table = tuple[str, Sequence[str], Sequence[Sequence[str]], Sequence[Sequence[float]]]


def title(result: Result, with_interval: bool = True) -> str:
    """Return which candles were replayed, in one line."""
    interval = f" {result.interval_s // 60} min," if with_interval else ""
    untraded = result.candles_untraded
    return (
        f"{result.pair},{interval} {moment(result.begin, MINUTE)} to {moment(result.end, MINUTE)} "
        f"UTC, {format.duration(result.end - result.begin)}, {result.candles:,} candles"
        + (f", {untraded:,} of them without trades" if untraded else "")
    )


def headline(result: Result) -> list[str]:
    """Return what nobody must miss: an early end, if there was one, and the result in words."""
    seconds, costs = result.end - result.begin, cost_breakdown(result.net, result)
    words = in_words(seconds, costs, result.hold, result.balance, result.quote)
    traded = format.duration((result.ended_at or result.end) - result.begin)
    ended = [f"ENDED EARLY after {traded}, {end_of(result)}."] if result.ended else []
    return [*ended, words]


def end_of(result: Result) -> str:
    """Return when and why a run ended before its data did, "" if it did not."""
    if result.ended is None or result.ended_at is None:
        return ""
    return f"{moment(result.ended_at, MINUTE)} UTC: {result.ended}"


def setup(setting: Setting, swept: Container[str] = ()) -> str:
    """Return strategy, size, fees and rates in one line, without the keys of a sweep."""
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
    """Return the names and values of a result as people read them."""
    fee, won, factor = result.break_even_fee, result.win_rate, result.profit_factor
    is_long = result.end - result.begin > YEAR_S / 10 and not result.ended
    a_year = f", {percent(result.net_percent_per_year)} per year, not compounded" if is_long else ""
    why = f": {result.refused_reason}" if result.refused_reason else ""
    fall = money(result.max_drawdown, result.quote)
    better = "" if factor is None else f", profit factor {factor:.2f}"
    costs, until = cost_breakdown(result.net, result), " while it traded" if result.ended else ""
    return [
        ("turns", f"{result.turns:,}, {result.turns_per_day:,.1f} per day{until}"),
        ("no-trade fills", f"{result.openings_untraded:,} of {result.turns:,} openings"),
        ("orders", f"{result.orders:,}, {result.refused:,} refused{why}"),
        ("win rate", "-" if won is None else f"{percent(100 * won, 1)} after costs{better}"),
        *((name, signed(money(cost, result.quote))) for name, cost in costs.items()),
        ("holding", signed(percent(result.hold_percent))),
        ("return", f"{signed(percent(result.net_percent))}{a_year}"),
        ("max drawdown", f"{fall}; as a share of equity {percent(result.max_drawdown_percent)}"),
        ("under water", f"at most {result.under_water_days:,.1f} days"),
        ("exposure", f"{percent(100 * result.exposure, 1)} of the time"),
        ("break-even fee", "-" if fee is None else f"{fee * 100:.4f} %" if fee > 0 else "none"),
    ]


def round_of(trip: Trip) -> RoundTrip:
    """Return a round trip of a replay in the form of `report`."""
    entry, end = trip.entry, trip.exit
    side = "long" if entry.direction > 0 else "short"
    traded = entry.trade.volume, entry.trade.price, end.trade.price
    return RoundTrip(
        entry.time, end.time, side, *traded, trip.net + trip.costs, trip.costs, trip.net
    )


def trip_values(trip: Trip, interval_s: int) -> dict[str, Any]:
    """Return a round trip as values for JSON; `bars` is its length in candles."""
    bars = (trip.exit.time - trip.entry.time) // interval_s
    return {**round_of(trip)._asdict(), "bars": bars, "why": trip.exit.reason}


def trips(newest: Sequence[Trip], rules: PairRules) -> list[str]:
    """Return the lines of a table of round trips, none if there are none."""
    rows = (round_of(trip)._asdict() for trip in newest)
    names, cells = shown(rows, _TRIP, rules.quote, rules.pair_decimals)
    title = f"the newest {len(cells)} round trips"
    return ["", title, *in_columns(names, cells)] if cells else []


def _order(fill: Fill, purpose: str) -> dict[str, Any]:
    """Return what an order traded, as a row of `history orders`."""
    return {
        **fill.trade._asdict(),
        "time": fill.time,
        "purpose": purpose,
        "side": "buy" if fill.direction > 0 else "sell",
        "margin_fee": fill.trade.opening_fee,
        "outcome": "filled",
        "reason": fill.reason,
        "note": "",
        "client_order_id": fill.order,
    }


def lines_of(table: Table) -> list[str]:
    """Return a table as lines for a terminal."""
    title, names, rows, _ = table
    return [title, *in_columns(names, rows)]


def cell_table(every: Sequence[Cell], best: int | None) -> Table:
    """Return a table of all cells; `best` is the number of the best one, which is marked."""
    quote = every[0].whole.quote
    rows = [
        (
            f"{name_of(cell.keys)}{' *' if at == best else ''}",
            f"{cell.whole.turns_per_day:,.1f}",
            *(format.amount(profit, quote) for profit in (cell.whole.gross, cell.whole.net)),
            percent(cell.whole.net_percent),
            format.amount(cell.whole.max_drawdown, quote),
            "" if is_sound(cell.whole) else f"! {end_of(cell.whole) or 'no turn'}",
        )
        for at, cell in enumerate(every)
    ]
    return "Cells", _CELL, rows, ()


def winner(every: Sequence[Cell], best: int | None) -> str:
    """Return in words which cell is the best, and how far to trust that."""
    out = sum(not is_sound(cell.whole) for cell in every)
    left = f"! {out} of {len(every)} ended early or did not trade: left out. " if out else ""
    if best is None:
        return f"{left}So none is the best."
    name, net = name_of(every[best].keys), money(every[best].whole.net, every[best].whole.quote)
    how = ", and use --forward 365d to see how the best of one year did in the next"
    return (
        f"{left}Best of {len(every)}: {name}, net {signed(net)}. The best of many is mostly the "
        "luckiest: it was chosen on these candles. Prefer settings whose neighbours do well"
        f"{'' if every[best].spans else how}."
    )


def name_of(keys: Mapping[str, Any]) -> str:
    """Return settings in one line: length=20 interval=60."""
    return " ".join(f"{key}={_text(value)}" for key, value in keys.items())


def _text(value: Any) -> str:
    return plain(value) if isinstance(value, Decimal) else str(value)


def overview(every: Sequence[Cell], best: int | None) -> list[str]:
    """Return a sweep over two keys as a grid if that is not too wide; else a table of its cells."""
    if len(every[0].keys) == 2:
        lines = lines_of(net_table(every, best))
        if max(map(len, lines[1:])) <= _GRID_WIDTH:
            return lines
    return lines_of(cell_table(every, best))


def net_table(every: Sequence[Cell], best: int | None) -> Table:
    """Return a table of the net profits by two keys."""
    keys, quote = every[0].keys, every[0].whole.quote
    across, down = sorted(keys, key=lambda key: len({cell.keys[key] for cell in every}))
    rows: dict[str, list[str]] = {}
    nets: dict[str, list[float]] = {}
    for at, cell in enumerate(every):
        row, net, sound = _text(cell.keys[down]), cell.whole.net, is_sound(cell.whole)
        mark = "*" if at == best else " " if sound else "!"
        rows.setdefault(row, [row]).append(f"{signed(format.amount(net, quote))}{mark}")
        nets.setdefault(row, [0.0]).append(float(net) if sound else 0.0)
    columns = dict.fromkeys(f"|{_text(cell.keys[across])} " for cell in every)
    title = f"net by {down} (down) and {across} (across), the best with *"
    return title, (f"|{down}", *columns), [*rows.values()], [*nets.values()]


def forward_table(steps: Sequence[Step], cells: Sequence[Cell]) -> Table:
    """Return a table of the walk forward; its last row has the sums and the mean rank."""
    quote, count = cells[0].whole.quote, len(cells)
    heads = [
        (moment(step.begin, "%Y-%m-%d"), name_of(step.chosen), f"{step.rank} of {count}")
        for step in steps
    ]
    nets = [[step.net, step.best_net, step.average, step.hold] for step in steps]
    if steps:
        rank = sum(step.rank for step in steps) / len(steps)
        heads.append(("in all", "", f"{rank:.1f} of {count}"))
        nets.append([sum(column, ZERO) for column in zip(*nets, strict=True)])
    rows = [
        [*head, *(signed(format.amount(net, quote)) for net in row)]
        for head, row in zip(heads, nets, strict=True)
    ]
    left = len(cells[0].spans) - 1 - len(steps)
    out = f" ({left} left out: no best before)" if left else ""
    none = out if steps else ": no cell traded to the end of a span"
    return f"How the best cell of each span did in the next{none}", _FORWARD, rows, ()


def write_run(
    path: Path, setting: Setting, replay: Replay, parts: Iterable[Columns], notes: Sequence[str]
) -> Result:
    """Feed the parts to the replay, write the page about it, and return the result."""
    points = [*_points(replay, parts)]
    result, trips, still_open = replay.result(), replay.record.trips, replay.record.entry
    lost_at = trips[-1].exit.time if trips and trips[-1].exit.reason == "liquidated" else inf
    # The end of the candles charges rollovers, too. One that liquidated has no value at its close.
    final = {"net": float(result.net), "gross": float(result.gross)}
    since = min(result.end, lost_at - WAKE_DELAY_S)
    points = [point._replace(**final) if point.time >= since else point for point in points]
    orders = [*chain(*(((trip.entry, "open"), (trip.exit, "close")) for trip in trips))]
    orders += [(still_open, "open")] if still_open else []
    report = Report(
        title=f"{result.pair} · backtest",
        subtitle=f"{title(result)}; {setup(setting)}",
        headline=" ".join(headline(result)),
        quote=result.quote,
        pair_decimals=replay.rules.pair_decimals,
        balance=result.balance,
        size=setting.config.size,
        hold=result.hold,
        facts={**dict(figures(result)), "round trips": f"{replay.record.closed:,}"},
        costs=cost_breakdown(result.net, result),
        points=points,
        orders=[_order(*order) for order in orders],
        rounds=[*map(round_of, trips)],
        notes=notes,
        earlier=replay.record.closed - len(trips),
    )
    write_page(path, pages.render(report))
    return result


def _points(replay: Replay, parts: Iterable[Columns]) -> Iterator[Point]:
    """Feed the parts to the replay and yield points, the further apart the longer the run is."""
    count = 0
    for part in parts:
        at = 0
        while at < len(part.times):
            step = max(1, count // COLUMNS)
            piece = part.cut(at, at + step)
            replay.feed(piece)
            at, count = at + step, count + len(piece.times)
            net = replay.equity(exact(piece.closes[-1])) - replay.costs.balance
            results = float(net), float(net + replay.paid)
            yield Point(piece.end, piece.closes[-1], *results, float(replay.held))


def write_sweep(
    path: Path,
    head: Sequence[str],
    cells: Sequence[Cell],
    forward: Table | None,
    notes: Sequence[str],
) -> None:
    """Write the page about a sweep: the walk forward, the net profits by two keys, the cells."""
    best = best_of([cell.whole for cell in cells])
    tables = [forward] if forward else []
    tables += [net_table(cells, best)] if len(cells[0].keys) == 2 else []
    sections = [table(*one) for one in (*tables, cell_table(cells, best))]
    tone = ZERO if best is None else cells[best].whole.net
    title, subtitle = f"{cells[0].whole.pair} · sweep", "; ".join(head)
    write_page(path, page(title, subtitle, winner(cells, best), tone, {}, notes, sections))
