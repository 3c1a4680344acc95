"""`backtest`: the bot's own decisions, orders, fees and margin over files of candles."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krakenbot import config as configuration
from krakenbot.config import Config
from krakenbot.pairs import PairRules, parse_rules, plain
from krakenbot.simulated.backtest import Costs, Replay, Result, plan_of
from krakenbot.simulated.candlefile import (
    BadDataError,
    Columns,
    aggregate,
    interval_of,
    pair_of,
    read,
)
from krakenbot.simulated.exchange import FEE_RATE
from krakenbot.simulated.listing import PAIRS, aliases, unlisted

if TYPE_CHECKING:
    from krakenbot.commands.page import Story

HELP = "The same decisions, orders, fees and margin as live, over Kraken's OHLCVT files."
EXAMPLE = "krakenbot backtest XBTUSD_1.csv.gz --fee 0.4 --sweep length=10:60:2 interval=1,5,15"

_KEYS = {
    "pair": "PAIR", "interval": "INTERVAL", "size": "SIZE", "leverage": "LEVERAGE",
    "length": "STRATEGY_LENGTH", "balance": "PAPER_BALANCE",
    "fee": "EXCHANGE_FEE_PERCENT",
}  # fmt: skip
_SWEPT = ("length", "short", "long", "interval")
_PART = 20_000
_RUNS_MAX = 10_000
_series: dict[int, Columns] = {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE_OR_DIR", type=Path,
        help="PAIR_MINUTES.csv or .csv.gz, a folder of them, or OHLC JSON",
    )  # fmt: skip
    for name, key in _KEYS.items():
        unit = {"interval": " (minutes)", "fee": " (percent)"}.get(name, "")
        parser.add_argument(f"--{name}", help=f"in place of {key.lower()} as configured{unit}")
    parser.add_argument("--slippage", metavar="PERCENT", type=Decimal, default=Decimal(0),
                        help="of the price, on top of the half spread of one tick")  # fmt: skip
    parser.add_argument("--sweep", nargs="+", metavar="KEY=VALUES", default=[],
                        help=f"{', '.join(_SWEPT)}: 10:60:2 (from:to:step) or 1,5,15")  # fmt: skip
    parser.add_argument("--report", metavar="FILE", type=Path, help="write an HTML report as well")
    parser.add_argument("--json", action="store_true", help="one object (with --sweep a list)")


def run(arguments: argparse.Namespace) -> int:
    environ = dict(os.environ)
    for name, key in _KEYS.items():
        if getattr(arguments, name) is not None:
            environ[f"KRAKENBOT_{key}"] = getattr(arguments, name)
    config = configuration.load(arguments.config, environ, Path.cwd())
    try:
        if not 0 <= arguments.slippage < 10:
            raise BadDataError(f"--slippage {arguments.slippage}: must be from 0 to 10")
        return _backtest(config, arguments)
    except BadDataError as error:
        print(f"krakenbot: {error}", file=sys.stderr)
        return 2


def _backtest(config: Config, arguments: argparse.Namespace) -> int:
    sweep = _parse_sweep(arguments.sweep)
    paths, pair, file_s = _files(arguments.files, config)
    explicit = config.sources["interval"] != "default"
    interval_s = config.interval * 60 if explicit or config.interval * 60 > file_s else file_s
    notes: list[str] = []
    parts = read(paths, file_s, notes)
    first = next(parts)
    rules = _rules(pair, first, notes)
    if config.size < rules.ordermin:
        notes.append(f"size {plain(config.size)} is below the smallest order, "
                     f"{plain(rules.ordermin)}: nothing can be traded")  # fmt: skip
    fee = config.exchange.fee_percent
    costs = Costs(
        FEE_RATE if fee is None else fee / 100, config.paper.balance, arguments.slippage / 100
    )
    parts = _watched(chain([first], parts))
    if sweep:
        return _sweep(config, rules, costs, parts, sweep, file_s, interval_s, notes, arguments.json)
    replay = _replay(config, rules, costs, interval_s, {}, drawn=arguments.report is not None)
    for part in _at(parts, interval_s, file_s):
        replay.feed(part)
    result = _result(replay, paths[0])
    if arguments.report is not None:
        from krakenbot.commands.page import render

        page = render(_story(config, result, replay, _setup(config, costs)))
        arguments.report.write_text(page, encoding="utf-8")
        notes.append(f"report: {arguments.report}")
    if arguments.json:
        print(json.dumps(as_json(result), indent=2))
    else:
        print("\n".join([*_lines(result, _setup(config, costs)), *notes]))
    return 0


def as_json(result: Result) -> dict[str, Any]:
    """Return the result as what json can write; money as decimal text."""
    values = {name: getattr(result, name) for name in result.__slots__}
    values |= {"turns_per_day": result.turns_per_day, "break_even_fee": result.break_even_fee,
               "win_rate": result.won / result.trips if result.trips else None}  # fmt: skip
    return {k: plain(v) if isinstance(v, Decimal) else v for k, v in values.items()}


def _files(named: list[Path], config: Config) -> tuple[list[Path], str, int]:
    """Return the files to read, all of one pair and interval, with these two."""
    paths = []
    for path in named:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*_*.csv*") if pair_of(p))
            mine = [p for p in inside if pair_of(p) == config.pair]
            if not mine:
                pairs = ", ".join(sorted({pair_of(p) or "" for p in inside})) or "none"
                raise BadDataError(f"{path}: no files of {config.pair}; pairs there: {pairs}")
            wanted = config.interval * 60
            steps = {interval_of(p) for p in mine}
            fitting = [s for s in steps if wanted % s == 0] or sorted(steps)[:1]
            paths += [p for p in mine if interval_of(p) == max(fitting)]
        else:
            paths.append(path)
    kinds = {(pair_of(path) or config.pair, interval_of(path)) for path in paths}
    if len(kinds) > 1:
        words = ", ".join(f"{pair} {step // 60} min" for pair, step in sorted(kinds))
        raise BadDataError(f"the files are not of one pair and interval: {words}")
    return paths, *kinds.pop()


def _rules(pair: str, part: Columns, notes: list[str]) -> PairRules:
    for key, row in PAIRS.items():
        if pair in aliases(key, row):
            return parse_rules(key, row)
    decimals = max(len(repr(close).partition(".")[2]) for close in part.closes)
    notes.append(f"{pair} is not in the built-in list of pairs: general rules are assumed")
    try:
        return parse_rules(*unlisted(pair, decimals))
    except ValueError as error:
        raise BadDataError(str(error)) from error


def _at(parts: Iterable[Columns], interval_s: int, file_s: int) -> Iterable[Columns]:
    if interval_s == file_s:
        return parts
    if interval_s % file_s:
        raise BadDataError(
            f"candles of {interval_s // 60} min cannot be made from those of {file_s // 60} min"
        )
    return aggregate(parts, interval_s)


def _watched(parts: Iterable[Columns]) -> Iterator[Columns]:
    """Yield the parts, with a line about the progress on a terminal when it takes long."""
    said, count = time.monotonic(), 0
    shown = sys.stderr.isatty()
    for part in parts:
        yield part
        count += len(part.closes)
        if shown and time.monotonic() - said > 0.5:
            said = time.monotonic()
            print(f"\r{count:,} candles, {_date(part.time)}", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _replay(
    config: Config, rules: PairRules, costs: Costs, interval_s: int, swept: Mapping[str, int],
    drawn: bool = False,
) -> Replay:  # fmt: skip
    plan, length = plan_of(config, interval_s, swept)
    return Replay(plan, length, rules, costs, keep=1000 if drawn else 0, drawn=drawn)


def _result(replay: Replay, path: Path) -> Result:
    try:
        return replay.result()
    except ValueError as error:
        raise BadDataError(f"{path}:1: {error}") from error


# -- many at once ------------------------------------------------------------------------------


def _parse_sweep(words: list[str]) -> dict[str, list[int]]:
    sweep = {}
    for word in words:
        key, _, text = word.partition("=")
        try:
            if key not in _SWEPT or key in sweep:
                raise ValueError
            values: list[int] = []
            for piece in text.split(","):
                numbers = [int(number) for number in piece.split(":")]
                begin, end, step = numbers if len(numbers) == 3 else (numbers[0], numbers[-1], 1)
                values += range(begin, end + 1, step)
            if not values or min(values) < 1 or max(values) > 50_000:
                raise ValueError
        except ValueError:
            raise BadDataError(
                f"--sweep {word}: must be one of {', '.join(_SWEPT)}, then = and whole numbers "
                "like 10:60:2 (from:to:step) or 1,5,15"
            ) from None
        sweep[key] = list(dict.fromkeys(values))
    return sweep


def _sweep(
    config: Config, rules: PairRules, costs: Costs, parts: Iterable[Columns],
    sweep: dict[str, list[int]], file_s: int, interval_s: int, notes: list[str], as_list: bool,
) -> int:  # fmt: skip
    from array import array
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    columns = [array("d") for _ in range(4)]
    begin = None
    for part in parts:
        begin = part.time if begin is None else begin
        for column, more in zip(columns, part[4:], strict=True):
            column.extend(map(float, more))
    whole = Columns(begin or 0, file_s, min(columns[2]), max(columns[1]), *columns)
    for minutes in sweep.get("interval", [interval_s // 60]):
        made = list(_at([whole], minutes * 60, file_s))
        if not made:
            raise BadDataError(f"the data hold no whole candle of {minutes} min")
        _series[minutes * 60] = made[0]
    runs = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    runs = [r for r in runs if r.get("short", 0) < r.get("long", config.strategy.long)]
    if len(runs) > _RUNS_MAX:
        raise BadDataError(f"--sweep: {len(runs)} runs, at most {_RUNS_MAX}")
    # Forked processes see the columns without a copy, so every file is read once.
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        tasks = [(config, rules, costs, interval_s, run) for run in runs]
        results = list(pool.map(_one, tasks, chunksize=max(1, len(tasks) // 64)))
    if as_list:
        print(json.dumps([r | as_json(result) for r, result in zip(runs, results, strict=True)]))
        return 0
    print("\n".join([*_table(sweep, runs, results), "", *notes]))
    best = max(range(len(runs)), key=lambda at: results[at].net)
    print(f"best of {len(runs)}: {_words(runs[best])}, net {results[best].net:+,.2f}")
    print(
        "The best of many is mostly the luckiest: it was chosen by these very candles. Look for "
        "broad\nareas where neighbours do well too, and test the choice on candles not used here."
    )
    return 0


def _one(task: tuple[Config, PairRules, Costs, int, dict[str, int]]) -> Result:
    config, rules, costs, interval_s, swept = task
    interval_s = swept.get("interval", 0) * 60 or interval_s
    replay = _replay(config, rules, costs, interval_s, swept)
    series = _series[interval_s]
    for at in range(0, len(series.closes), _PART):
        part = series.cut(at, at + _PART)
        replay.feed(part._replace(low=min(map(float, part.lows)), high=max(map(float, part.highs))))
    return replay.result()


def _table(
    sweep: dict[str, list[int]], runs: list[dict[str, int]], results: list[Result]
) -> list[str]:
    """Return net by two parameters as a grid shaded from worst to best; else one line a run."""
    if len(sweep) != 2:
        lines = [f"{'':24}{'turns/day':>12}{'net':>16}{'drawdown':>16}{'gross':>16}"]
        return lines + [
            f"{_words(run):24}{r.turns_per_day:12,.1f}{r.net:+16,.2f}{r.max_drawdown:16,.2f}"
            f"{r.gross:+16,.2f}"
            for run, r in zip(runs, results, strict=True)
        ]
    down, across = sweep
    nets = {(run[down], run[across]): r.net for run, r in zip(runs, results, strict=True)}
    order = sorted(nets.values())
    lines = [f"net in quote currency; the darker the better\n{down:>9} | {across}"]
    lines.append(" " * 9 + " | " + "".join(f"{value:>15}" for value in sweep[across]))
    for row in sweep[down]:
        cells = ((nets.get((row, value))) for value in sweep[across])
        lines.append(f"{row:>9} | " + "".join(
            " " * 15 if net is None
            else f"{net:+13,.2f} {' ░▒▓█'[5 * order.index(net) // len(order)]}" for net in cells
        ))  # fmt: skip
    return lines


# -- words -------------------------------------------------------------------------------------


def _words(values: Mapping[str, int]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))


def _setup(config: Config, costs: Costs) -> str:
    chosen = config.strategy
    lengths = f"{chosen.length}" if chosen.name == "sma-slope" else f"{chosen.short}/{chosen.long}"
    slipped = f" and {plain(costs.slippage * 100)} % slippage" if costs.slippage else ""
    return (
        f"{chosen.name} {lengths}, size {plain(config.size)}, leverage {config.leverage}, "
        f"{config.reversal}; taker fee {plain(costs.fee_rate * 100)} %, margin "
        f"{plain(costs.margin_rate * 100)} % at opening and every 4 h, fills at the next open "
        f"one tick away{slipped}; start {plain(costs.balance)}"
    )


def _story(config: Config, result: Result, replay: Replay, setup: str) -> "Story":
    from krakenbot.commands.page import Mark, Point, Story, thinned
    from krakenbot.commands.report import COLUMNS, headline

    start = float(replay.costs.balance)
    costs = result.fees + result.opening_fees + result.rollover
    marks, orders = [], []
    for fill in replay.fills:
        trade = fill.trade
        side = "buy" if fill.direction > 0 else "sell"
        why = f"{fill.reason}: {'close' if trade.closing else 'open'}"
        text = f"{_date(fill.time)} {side} {plain(trade.volume)} at {plain(trade.price)}: {why}"
        marks.append(Mark(fill.time, float(trade.price), fill.direction > 0, text))
        orders.append((_date(fill.time), side, plain(trade.volume), plain(trade.price),
                       plain(trade.fee + trade.opening_fee), "filled", why,
                       f"{fill.order}"))  # fmt: skip
    length = config.strategy.length if config.strategy.name == "sma-slope" else config.strategy.long
    closes = [close for _, close in replay.newest]
    newest = [
        (moment, close, sum(closes[at + 1 - length : at + 1]) / length if at >= length else None)
        for at, (moment, close) in enumerate(replay.newest)
    ][length:][-360:]
    notes = _remarks(result)
    facts = [(name, text) for name, text in _numbers(result) if name != "before costs"]
    return Story(
        title=f"{result.pair} · backtest",
        subtitle=f"{_date(result.begin)} to {_date(result.end)} UTC, {result.interval_s // 60} min "
        f"candles; {setup}",
        headline=headline(result.pair, result.days, result.turns, float(result.net), float(costs)),
        tone=(result.net > 0) - (result.net < 0), facts=facts,
        costs=[("before costs", float(result.gross)), ("trade fees", -float(result.fees)),
               ("opening fees", -float(result.opening_fees)),
               ("rollover", -float(result.rollover)), ("net", float(result.net)),
               ("buy and hold", float(result.hold))],
        points=thinned(Point(*p[:4], p.equity - start, p.gross - start, p.held)
                       for p in replay.points),
        newest=newest, marks=marks, columns=COLUMNS, orders=orders, notes=notes,
    )  # fmt: skip


def _numbers(result: Result) -> list[tuple[str, str]]:
    fee = result.break_even_fee
    won = f"{result.won / result.trips:.1%} after costs" if result.trips else "-"
    return [
        ("turns", f"{result.turns:,}, {result.turns_per_day:,.1f} a day"),
        ("win rate", won),
        ("before costs", f"{result.gross:+,.2f}"),
        ("trade fees", f"{-result.fees:+,.2f}"),
        ("opening fees", f"{-result.opening_fees:+,.2f}"),
        ("rollover", f"{-result.rollover:+,.2f}"),
        ("net", f"{result.net:+,.2f}"),
        ("max drawdown", f"{result.max_drawdown:,.2f}"),
        ("exposure", f"{result.exposure:.1%}"),
        ("break-even fee", "-" if fee is None else f"{fee * 100:.4f} %" if fee > 0
         else "none"),
        ("buy and hold", f"{result.hold:+,.2f}"),
    ]  # fmt: skip


def _lines(result: Result, setup: str) -> list[str]:
    lines = [
        f"{result.pair}, {result.interval_s // 60} min, {_date(result.begin)} to "
        f"{_date(result.end)} UTC, {result.days:,.1f} days, {result.candles:,} candles",
        setup,
        "",
        *(f"{name:16}{text}" for name, text in _numbers(result)),
        "",
    ]
    return lines + _remarks(result)


def _remarks(result: Result) -> list[str]:
    remarks = ("ended early", result.ended), ("first order not sent", result.objection)
    return [f"{name}: {text}" for name, text in remarks if text]
