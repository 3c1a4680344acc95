"""What `backtest` prints: the figures of one run, the cells of a sweep, and the walk forward."""

import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from krakenbot.backtest.engine import Costs
from krakenbot.backtest.result import DAY_S, YEAR_S, Result, Trip
from krakenbot.backtest.sweep import Cell, Step, Value, best_of, is_sound
from krakenbot.config import Config
from krakenbot.format import moment, money, percent, price, shows_color, signed
from krakenbot.pairs import PairRules, plain
from krakenbot.rulefile import load

MINUTE = "%Y-%m-%d %H:%M"
_DATE = "%Y-%m-%d"
_GRID_WIDTH = 90
_GAINS, _LOSSES = (22, 28, 34), (52, 88, 124)  # Shades of the terminal's 256.


def title(result: Result, with_interval: bool = True) -> str:
    interval = f" {result.interval_s // 60} min," if with_interval else ""
    days = (result.end - result.begin) / DAY_S
    traded = f", {result.candles_untraded:,} of them without trades" * (result.candles_untraded > 0)
    return (
        f"{result.pair},{interval} {moment(result.begin, MINUTE)} to "
        f"{moment(result.end, MINUTE)} UTC, {days:,.1f} days, {result.candles:,} candles{traded}"
    )


def headline(result: Result) -> list[str]:
    """Return what a reader must not miss: an early end first, then what was made."""
    made = (
        f"net {signed(money(result.net, result.quote))}, {signed(percent(result.net_percent))} of "
        f"the {money(result.balance, result.quote)} at the start; holding "
        f"{signed(percent(result.hold_percent))}"
    )
    end = end_of(result)
    return [f"ENDED EARLY: {end}", made] if end else [made]


def end_of(result: Result) -> str:
    """Return why and when a run ended before the data did, "" when it did not."""
    if result.ended is None or result.ended_at is None:
        return ""
    days, whole = (at - result.begin for at in (result.ended_at, result.end))
    return (
        f"{moment(result.ended_at, MINUTE)} UTC, after {days / DAY_S:,.1f} of "
        f"{whole / DAY_S:,.1f} days: {result.ended}"
    )


def setup(config: Config, costs: Costs, rules: PairRules, is_sweep: bool = False) -> str:
    chosen = config.strategy.name if is_sweep else strategy(config)
    slipped = f" and {plain(costs.slippage * 100)} % slippage" if costs.slippage else ""
    long, short = (plain(100 * costs.margin_rates[code]) for code in (rules.quote, rules.base))
    return (
        f"{chosen}, size {plain(config.size)}, leverage {config.leverage}, {config.reversal}; "
        f"taker fee {plain(costs.fee_rate * 100)} %, margin {long} % long and {short} % short at "
        f"opening and every 4 h, fills at the next open one tick away{slipped}"
    )


def strategy(config: Config) -> str:
    """Return the strategy's name and lengths, or a rule's file, SHA-256 and parameters."""
    chosen = config.strategy
    if chosen.file is not None:
        values = "".join(f" {key}={value}" for key, value in chosen.parameters.items())
        return f"{chosen.file.name} {load(chosen.file).sha256[:12]}{values}"
    lengths = f"{chosen.length}" if chosen.name == "sma-slope" else f"{chosen.short}/{chosen.long}"
    return f"{chosen.name} {lengths}"


def figures(result: Result) -> list[tuple[str, str]]:
    """Return the rows of the table of figures."""
    fee, won, factor = result.break_even_fee, result.win_rate, result.profit_factor
    better = "-" if factor is None else f"{factor:.2f}"
    fall = money(result.max_drawdown, result.quote)
    years = (result.end - result.begin) / YEAR_S
    a_year = f", {percent(result.net_percent_per_year)} a year" if years > 0.1 else ""
    return [
        ("turns", f"{result.turns:,}, {result.turns_per_day:,.1f} a day while it traded"),
        ("no trades then", f"{result.openings_untraded:,} of {result.turns:,} openings"),
        ("orders", f"{result.orders:,}, {result.refused:,} refused{_why(result)}"),
        ("win rate", "-" if won is None else f"{won:.1%} after costs, profit factor {better}"),
        *((name, signed(money(amount, result.quote))) for name, amount in money_of(result)),
        ("return", f"{percent(result.net_percent)}{a_year}"),
        ("holding", f"{percent(result.hold_percent)} of the balance with as much"),
        ("max drawdown", f"{fall}, {percent(result.max_drawdown_percent)} of the best before"),
        ("under water", f"{result.under_water_days:,.1f} days at the longest"),
        ("exposure", f"{result.exposure:.1%}"),
        ("break-even fee", "-" if fee is None else f"{fee * 100:.4f} %" if fee > 0 else "none"),
    ]


def _why(result: Result) -> str:
    return f", lastly: {result.refused_reason}" if result.refused_reason else ""


def money_of(result: Result) -> list[tuple[str, Decimal]]:
    """Return the way from the profit before costs to the net one, with signs."""
    return [
        ("before costs", result.gross),
        ("trade fees", -result.fees),
        ("margin fees", -result.margin_fees),
        ("rollover", -result.rollover),
        ("net", result.net),
        ("buy and hold", result.hold),
    ]


def trip_object(trip: Trip, result: Result) -> dict[str, Any]:
    entry, end = trip.entry, trip.exit
    return {
        "entry": entry.time,
        "exit": end.time,
        "bars": (end.time - entry.time) // result.interval_s,
        "side": "long" if entry.direction > 0 else "short",
        "volume": plain(entry.volume),
        "entry_price": plain(entry.price),
        "exit_price": plain(end.price),
        "gross": plain(trip.net + trip.costs),
        "costs": plain(trip.costs),
        "net": plain(trip.net),
        "why": end.reason,
    }


def trips(newest: Sequence[Trip], rules: PairRules, result: Result) -> list[str]:
    if not newest:
        return []
    lines = ["", f"the newest {len(newest)} round trips"]
    lines.append(
        f"{'entry':17}{'exit':17}{'side':6}{'bars':>6}{'in at':>12}{'out at':>12}{'gross':>10}"
        f"{'costs':>10}{'net':>10}"
    )
    for trip in newest:
        told = trip_object(trip, result)
        amounts = trip.net + trip.costs, trip.costs, trip.net
        lines.append(
            f"{moment(trip.entry.time, MINUTE):17}{moment(trip.exit.time, MINUTE):17}"
            f"{told['side']:6}{told['bars']:>6,}{price(trip.entry.price, rules):>12}"
            f"{price(trip.exit.price, rules):>12}{''.join(f'{money(x):>10}' for x in amounts)}"
        )
    return lines


def cells(all_of_them: Sequence[Cell], values: Mapping[str, Sequence[Value]]) -> list[str]:
    """Return net by the swept keys, and which is the best of those that can be compared."""
    results = [cell.whole for cell in all_of_them]
    best = best_of(all_of_them, results)
    lines = _grid(all_of_them, values, best) or _list(all_of_them, best)
    ended = sum(not is_sound(result) for result in results)
    if ended:
        lines.append(f"! {ended} of {len(results)} ended early or could not trade: not compared")
    if best is None:
        return [*lines, "", "no cell traded to the end: none is the best"]
    net = signed(money(results[best].net, results[best].quote))
    return [
        *lines,
        "",
        f"best of {len(results)}: {all_of_them[best].name}, net {net}",
        "The best of many is mostly the luckiest: it was chosen by these very candles. Look for",
        "broad areas where neighbours do well too, and see with --forward 365d what the best of",
        "one year made in the next.",
    ]


def _list(all_of_them: Sequence[Cell], best: int | None) -> list[str]:
    width = max(len(cell.name) for cell in all_of_them) + 2
    lines = [f"{'':{width}}{'turns/day':>10}{'gross':>14}{'net':>14}{'drawdown':>14}"]
    for at, cell in enumerate(all_of_them):
        one = cell.whole
        amounts = "".join(f"{money(x):>14}" for x in (one.gross, one.net, one.max_drawdown))
        mark = "*" if at == best else "" if is_sound(one) else "! " + (one.ended or "no turn")
        lines.append(f"{cell.name:{width}}{one.turns_per_day:10,.1f}{amounts} {mark}"[:79].rstrip())
    return lines


def _grid(
    all_of_them: Sequence[Cell], values: Mapping[str, Sequence[Value]], best: int | None
) -> list[str]:
    """Return net by two keys, the longer one down; nothing if there is one, or no room."""
    across, down = (
        sorted(values, key=lambda key: len(values[key])) if len(values) == 2 else ("", "")
    )
    nets = [cell.whole.net for cell in all_of_them]
    width = max(len(money(net)) for net in nets) + 3
    if not across or len(values[across]) * width > _GRID_WIDTH:
        return []
    most, colored = max(map(abs, nets)) or 1, shows_color(sys.stdout)
    shown = {}
    for at, cell in enumerate(all_of_them):
        net = nets[at]
        mark = "*" if at == best else " " if is_sound(cell.whole) else "!"
        words = f"{signed(money(net))}{mark}".rjust(width)
        shade = (_LOSSES if net < 0 else _GAINS)[min(int(abs(net) / most * 3), 2)]
        words = f"\x1b[97;48;5;{shade}m{words}\x1b[0m" if colored else words
        shown[cell.keys[down], cell.keys[across]] = words
    columns, rows = values[across], values[down]
    return [
        f"net by {down} (down) and {across} (across), the best with *",
        " " * 8 + " ".join(f"{column:>{width - 1}}" for column in columns),
        *(f"{row:>8}{''.join(shown[row, column] for column in columns)}".rstrip() for row in rows),
    ]


FORWARD = ("span from", "best before", "|made then", "|rank", "|best then", "|average", "|hold")


def forward_rows(steps: Sequence[Step], count: int) -> list[tuple[str, ...]]:
    """Return the rows of the walk forward under the names of FORWARD."""
    return [
        (
            moment(step.begin, _DATE),
            step.chosen.name,
            signed(money(step.net)),
            f"{step.rank} of {count}",
            signed(money(step.best_net)),
            signed(money(step.average)),
            signed(money(step.hold)),
        )
        for step in steps
    ]


def verdict(steps: Sequence[Step], count: int) -> str:
    """Return in one sentence what the walk forward means."""
    if not steps:
        return "In no span was there a cell that had traded to the end of the span before."
    better = sum(step.net > step.average for step in steps)
    rank = sum(step.rank for step in steps) / len(steps)
    chosen, average, hold = (
        signed(money(sum((getattr(step, name) for step in steps), Decimal(0))))
        for name in ("net", "average", "hold")
    )
    return (
        f"The best cell of one span did better than the average cell in {better} of the "
        f"{len(steps)} spans after; its rank there was {rank:.1f} of {count} on average, and it "
        f"made {chosen} in all, where the average cell made {average} and holding {hold}."
    )


def forward(steps: Sequence[Step], count: int) -> list[str]:
    names = [name.removeprefix("|") for name in FORWARD]
    rows = [tuple(names), *forward_rows(steps, count)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(names))]
    lines = ["", "each span with the cell that was best in the span before"]
    for row in rows:
        cells = (
            f"{cell:>{width}}" if name.startswith("|") else f"{cell:{width}}"
            for cell, width, name in zip(row, widths, FORWARD, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return [*lines, verdict(steps, count)]
