"""The HTML reports of `backtest`: of one run, and of a sweep."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from krakenbot.backtest.engine import Replay
from krakenbot.backtest.files import Columns, candles_of, exact
from krakenbot.backtest.result import Fill as Order
from krakenbot.backtest.result import Result
from krakenbot.backtest.sweep import Cell, Step, best_of, is_sound
from krakenbot.commands import backtest_text as text
from krakenbot.commands import write_output
from krakenbot.commands.chart import COLUMNS, Fill
from krakenbot.commands.page import heat_map, page, table
from krakenbot.commands.run_report import Point, RunReport, thinned, write
from krakenbot.config import Config
from krakenbot.format import asset, percent
from krakenbot.model import Candle

_CANDLES_SHOWN = 360

# Figures that the page shows nowhere else.
_FACTS = ("turns", "win rate", "under water", "exposure", "break-even fee")


def write_run(
    path: Path, config: Config, replay: Replay, parts: Iterable[Columns], notes: Sequence[str]
) -> Result:
    """Feed the replay, write the page about it, and return the result."""
    tail: list[Columns] = []
    points = thinned(_points(replay, parts, tail))
    result = replay.result()
    write(path, _report(config, replay, result, points, list(candles_of(*tail)), notes))
    return result


def _points(replay: Replay, parts: Iterable[Columns], tail: list[Columns]) -> Iterator[Point]:
    """Feed the parts and yield the points to draw, each of more candles the more there were before.

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


def _report(
    config: Config,
    replay: Replay,
    result: Result,
    points: list[Point],
    newest: Sequence[Candle],
    notes: Sequence[str],
) -> RunReport:
    fills: list[Fill] = []
    for trip in replay.record.trips:
        opening, closing = _fill(trip.entry, "open"), _fill(trip.exit, "close")
        rollover = float(trip.costs) - opening.fee - closing.fee
        fills += [opening, Fill(trip.exit.time, 0, 0.0, 0.0, rollover), closing]
    if replay.record.entry:
        fills.append(_fill(replay.record.entry, "open"))
    plan, trips = replay.plan, f"{replay.record.closed:,}"  # The record keeps fewer.
    facts = {"Max drawdown": percent(result.max_drawdown_percent), "Round trips": trips}
    facts |= {name.capitalize(): fact for name, fact in text.figures(result) if name in _FACTS}
    return RunReport(
        title=f"{result.pair} · backtest",
        subtitle=f"{text.title(result)}; {text.setup(config, replay.costs, replay.rules)}",
        quote=asset(result.quote),
        pair_decimals=replay.rules.pair_decimals,
        balance=float(result.balance),
        size=float(config.size),
        first_price=points[-1].close - float(result.hold / config.size),  # Including its fees.
        facts=facts,
        costs=text.costs_of(result),
        points=points,
        newest=[
            (
                candle.time + plan.interval_s,
                float(candle.close),
                float(plan.strategy(newest[at + 1 - plan.candles_min : at + 1]).average),
            )
            for at, candle in enumerate(newest)
            if at + 1 >= plan.candles_min
        ],
        fills=fills,
        notes=notes,
        end=f"ENDED EARLY: {end}." if (end := text.end_of(result)) else "",
    )


def _fill(order: Order, kind: str) -> Fill:
    trade = order.trade
    figures = float(trade.volume), float(trade.price), float(trade.fee + trade.opening_fee)
    why = f"{order.reason}: {kind}"
    return Fill(order.time, order.direction, *figures, "filled", why, f"{order.order}")


def write_sweep(
    path: Path,
    head: Sequence[str],
    cells: Sequence[Cell],
    steps: Sequence[Step],
    notes: Sequence[str],
) -> None:
    """Write the page about a sweep: its cells, for two keys as a heat map, and the walk forward."""
    first, best, sections = cells[0], best_of([cell.whole for cell in cells]), []
    if steps:
        rows, verdict = text.forward_rows(steps, len(cells)), text.verdict(steps, len(cells))
        title = "How the best cell of each span did in the next"
        sections.append(table(title, text.FORWARD, rows, verdict))
    if len(first.keys) == 2:
        down, across = first.keys
        nets = {
            (str(cell.keys[down]), str(cell.keys[across])): float(cell.whole.net)
            for cell in cells
            if is_sound(cell.whole)
        }
        note = "cells that ended early are left out"
        sections.append(heat_map("Net", f"{down} by {across}", nets, note))
    sections.append(table("Cells", text.CELL, text.cell_rows(cells, best)))
    tone = -1.0 if best is None else float(cells[best].whole.net)
    title, headline = f"{first.whole.pair} · sweep", text.winner(cells, best)
    write_output(path, page(title, "; ".join(head), headline, tone, [], notes, sections).encode())
