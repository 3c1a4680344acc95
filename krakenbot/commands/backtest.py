"""`backtest`: the bot's own decisions, orders, fees and margin over files of candles."""

import argparse
import gc
import json
import os
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain, product
from pathlib import Path
from typing import Any

from krakenbot import config as configuration
from krakenbot.backtest import files as candlefile
from krakenbot.backtest.engine import Costs, Replay, Result
from krakenbot.backtest.files import BadDataError, Columns, interval_of, pair_of, units
from krakenbot.commands.chart import Mark
from krakenbot.commands.story import Fill, Point, Story, thinned, write
from krakenbot.config import Config
from krakenbot.decision import plan_of
from krakenbot.format import asset, moment, money, price, shows_color, volume
from krakenbot.pairs import PairRules, decimal, parse_rules, plain
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.rulefile import load
from krakenbot.simulated.listing import PAIRS, aliases, unlisted

EXAMPLE = "krakenbot backtest XBTUSD_1.csv.gz --fee 0.4 --sweep length=10:60:2 interval=1,5,15"

_KEYS = {
    "pair": "PAIR",
    "interval": "INTERVAL",
    "size": "SIZE",
    "leverage": "LEVERAGE",
    "length": "STRATEGY_LENGTH",
    "balance": "PAPER_BALANCE",
    "fee": "EXCHANGE_FEE_PERCENT",
}
_SWEPT_MAX, _RUNS_MAX = 50_000, 10_000
_PART = 20_000
_UNIT = 10.0**-candlefile.DIGITS
_GRID_WIDTH = 90
_GAINS, _LOSSES = (22, 28, 34), (52, 88, 124)  # Shades of the terminal's 256.
_FILLS_SHOWN, _CANDLES_SHOWN = 1000, 360
_POINT_BYTES = 20_000  # Of a file: some hundred candles, of which the page shows the outline.
_Swept = int | Decimal
_series: dict[int, Columns] = {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files = "PAIR_MINUTES.csv or .csv.gz, a folder of them, or OHLC JSON"
    parser.add_argument("files", nargs="+", metavar="FILE_OR_DIR", type=Path, help=files)
    for name, key in _KEYS.items():
        unit = {"interval": " (minutes)", "fee": " (percent)"}.get(name, "")
        parser.add_argument(f"--{name}", help=f"in place of {key.lower()} as configured{unit}")
    parser.add_argument(
        "--slippage",
        metavar="PERCENT",
        type=decimal,
        default=Decimal(0),
        help="of the price, on top of the half spread of one tick",
    )
    parser.add_argument(
        "--sweep",
        nargs="+",
        metavar="KEY=VALUES",
        default=[],
        help="length, interval or a rule's parameter: 10:60:2 (from:to:step) or 1,5,15",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write an HTML report as well")
    parser.add_argument("--json", action="store_true", help="one object (with --sweep a list)")


def run(arguments: argparse.Namespace) -> int:
    given = {key: getattr(arguments, name) for name, key in _KEYS.items()}
    asked = {f"KRAKENBOT_{key}": text for key, text in given.items() if text is not None}
    config = configuration.load(arguments.config, os.environ | asked, Path.cwd())
    gc.disable()  # Millions of short-lived values and no cycles among them.
    try:
        if not 0 <= arguments.slippage < 10:
            raise BadDataError(f"--slippage {arguments.slippage}: must be from 0 to 10")
        lines = _backtest(config, arguments)
    except (BadDataError, OSError) as error:
        print(f"krakenbot: {error}", file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    return 0


def _backtest(config: Config, arguments: argparse.Namespace) -> list[str]:
    """Return the lines to print."""
    if arguments.length is not None and config.strategy.name != "sma-slope":
        raise BadDataError(f"--length: the strategy {config.strategy.name} does not take it")
    sweep = _parse_sweep(arguments.sweep, config.strategy.name)
    if sweep and arguments.report:
        raise BadDataError("--report: shows one run, so it does not go with --sweep")
    paths, pair, file_s = _files(arguments.files, config)
    notes: list[str] = []
    parts = candlefile.read(paths, file_s, notes)
    first = next(parts)
    # A bot's own settings may be finer than the file; only what was asked for here must fit.
    asked = config.sources["interval"].startswith("KRAKENBOT_")
    if not asked and config.interval * 60 < file_s:
        config = config._replace(interval=file_s // 60)
        if config.sources["interval"] != "default":
            notes.append(f"candles of {config.interval} min, as in the file")
    rules = _rules(pair, first, notes)
    if config.size < rules.ordermin:
        notes.append(
            f"size {plain(config.size)} is below the smallest order, "
            f"{plain(rules.ordermin)}: nothing can be traded"
        )
    fee = config.exchange.fee_percent
    fee_rate = FEE_RATE_ASSUMED if fee is None else fee / 100
    costs = Costs(fee_rate, config.paper.balance, arguments.slippage / 100)
    parts = _watched(chain([first], parts))
    if sweep:
        lines = _sweep(config, rules, costs, parts, sweep, arguments.json)
        return lines if arguments.json else lines + notes
    drawn = arguments.report is not None
    replay = Replay(plan_of(config), rules, costs, _FILLS_SHOWN * drawn)
    parts = candlefile.aggregate(parts, config.interval * 60)
    if drawn:
        every = max(1, sum(path.stat().st_size for path in paths) // _POINT_BYTES)
        newest: deque[tuple[int, Any]] = deque(maxlen=_CANDLES_SHOWN + replay.plan.candles_min)
        points = thinned(_points(replay, parts, every, newest))
    for part in parts:
        replay.feed(part)
    result = replay.result()
    if drawn:
        write(arguments.report, _story(config, replay, result, points, newest))
        notes.append(f"report: {arguments.report}")
    if arguments.json:
        return [json.dumps(as_json(result), indent=2)]
    table = [f"{name:16}{text}" for name, text in _numbers(result)]
    return [
        _title(result),
        _setup(config, costs),
        "",
        *table,
        "",
        *_remarks(config, result),
        *notes,
    ]


def as_json(result: Result) -> dict[str, Any]:
    """Return the result as what json can write; money as decimal text."""
    return _plainly(result._asdict())


def _plainly(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: plain(v) if isinstance(v, Decimal) else v for k, v in values.items()}


def _files(named: list[Path], config: Config) -> tuple[list[Path], str, int]:
    """Return the files to read, all of one pair and interval, with these two."""
    paths: list[Path] = []
    wanted = _altname(config.pair)
    for path in named:
        inside = [p for p in sorted(path.rglob("*_*.csv*")) if _altname(pair_of(p)) == wanted]
        if path.is_dir() and not inside:
            raise BadDataError(f"{path}: no files of {config.pair}, like {wanted}_1.csv")
        # Of a folder, the largest interval that the wanted one can be made of, or the smallest.
        steps = {interval_of(p) for p in inside}
        fitting = (step for step in steps if config.interval * 60 % step == 0)
        chosen = max(fitting, default=min(steps, default=0))
        paths += [p for p in inside if interval_of(p) == chosen] if inside else [path]
    kinds = {(_altname(pair_of(path)) or wanted, interval_of(path)) for path in paths}
    if len(kinds) > 1:
        words = ", ".join(f"{pair} {step // 60} min" for pair, step in sorted(kinds))
        raise BadDataError(f"the files are not of one pair and interval: {words}")
    return paths, *kinds.pop()


def _altname(pair: str | None) -> str:
    """Return the name that the files of a pair have, nothing for None."""
    known = (row["altname"] for key, row in PAIRS.items() if pair in aliases(key, row))
    return next(known, (pair or "").replace("/", ""))


def _rules(pair: str, part: Columns, notes: list[str]) -> PairRules:
    for key, row in PAIRS.items():
        if pair == row["altname"]:
            return parse_rules(key, row)
    notes.append(f"{pair} is not in the built-in list of pairs: general rules are assumed")
    decimals = max(-int(candlefile.exact(close).as_tuple().exponent) for close in part.closes)
    try:
        return parse_rules(*unlisted(pair, max(decimals, 1)))
    except ValueError as error:
        raise BadDataError(str(error)) from error


def _watched(parts: Iterable[Columns]) -> Iterator[Columns]:
    """Yield the parts, with a line about the progress on a terminal when it takes long."""
    said, count, shown = time.monotonic(), 0, sys.stderr.isatty()
    for part in parts:
        yield part
        count += len(part.closes)
        if shown and time.monotonic() - said > 0.5:
            said = time.monotonic()
            print(f"\r{count:,} candles, {moment(part.time)}", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _parse_sweep(words: list[str], strategy: str) -> dict[str, list[_Swept]]:
    """Return the values of each key: interval, sma-slope's length, any parameter of a rule."""
    sweep: dict[str, list[_Swept]] = {}
    for word in words:
        key, _, text = word.partition("=")
        is_parameter = strategy == "file" and key.isidentifier() and key != "interval"
        known = is_parameter or key == "interval" or (key == "length" and strategy == "sma-slope")
        try:
            if not known or key in sweep:
                raise ValueError
            found = [number for piece in text.split(",") for number in _range(piece)]
            if not is_parameter and any(
                not isinstance(number, int) or not 1 <= number <= _SWEPT_MAX for number in found
            ):
                raise ValueError
        except (ValueError, ArithmeticError):
            raise BadDataError(
                f"--sweep {word}: must be interval, length (of sma-slope) or a parameter of a "
                "rule, then = and numbers like 10:60:2 (from:to:step) or 1,5,15"
            ) from None
        sweep[key] = list(dict.fromkeys(found))
    return sweep


def _range(piece: str) -> list[_Swept]:
    """Return the numbers of 10:60:2, 10:60 or 10, whole ones as int. ValueError if it is none."""
    begin, *rest = map(decimal, piece.split(":"))
    end, step = rest[0] if rest else begin, rest[1] if len(rest) > 1 else Decimal(1)
    count = int((end - begin) // step) + 1
    if len(rest) > 2 or step <= 0 or not 1 <= count <= _SWEPT_MAX:
        raise ValueError
    numbers = [begin + step * number for number in range(count)]
    return [int(number) if number == int(number) else number for number in numbers]


def _sweep(
    config: Config,
    rules: PairRules,
    costs: Costs,
    parts: Iterable[Columns],
    sweep: dict[str, list[_Swept]],
    as_list: bool,
) -> list[str]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    runs = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    if len(runs) > _RUNS_MAX:
        raise BadDataError(f"--sweep: {len(runs)} runs, at most {_RUNS_MAX}")
    whole = _whole(parts)
    for minutes in map(int, sweep.get("interval", [config.interval])):
        made = next(candlefile.aggregate([whole], minutes * 60), None)
        if made is None:
            raise BadDataError(f"the data hold no whole candle of {minutes} min")
        _series[minutes] = made
    # Forked processes see the columns without a copy, so every file is read once.
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        tasks = [(config, run, rules, costs) for run in runs]
        results = list(pool.map(_one, tasks, chunksize=max(1, len(tasks) // 64)))
    if as_list:
        rows = zip(map(_plainly, runs), map(as_json, results), strict=True)
        return [json.dumps([run | one for run, one in rows])]
    words = [" ".join(f"{key}={value}" for key, value in run.items()) for run in runs]
    best = max(range(len(runs)), key=lambda at: results[at].net)
    table = _grid(sweep, runs, [one.net for one in results]) or [
        f"{'':24}{'turns/day':>12}{'gross':>16}{'net':>16}{'drawdown':>16}",
        *(
            f"{text:24}{one.turns_per_day:12,.1f}{one.gross:+16,.2f}{one.net:+16,.2f}"
            f"{one.max_drawdown:16,.2f}"
            for text, one in zip(words, results, strict=True)
        ),
    ]
    return [
        *table,
        "",
        f"best of {len(runs)}: {words[best]}, net {results[best].net:+,.2f}",
        "The best of many is mostly the luckiest: it was chosen by these very candles. Look for",
        "broad areas where neighbours do well too, and test the choice on candles not used here.",
    ]


def _grid(
    sweep: dict[str, list[_Swept]], runs: list[dict[str, _Swept]], nets: list[Decimal]
) -> list[str]:
    """Return net by two keys, the longer one down; nothing if there is one, or no room."""
    across, down = sorted(sweep, key=lambda key: len(sweep[key])) if len(sweep) == 2 else ("", "")
    width = max(len(f"{net:+,.2f}") for net in nets) + 2
    if not across or len(sweep[across]) * width > _GRID_WIDTH:
        return []
    best, most = max(nets), max(map(abs, nets)) or 1
    colored = shows_color(sys.stdout)
    cells = {}
    for run, net in zip(runs, nets, strict=True):
        cell = f"{net:+,.2f}{'*' if net is best else ' '}".rjust(width)
        shade = (_LOSSES if net < 0 else _GAINS)[min(int(abs(net) / most * 3), 2)]
        cells[run[down], run[across]] = f"\x1b[97;48;5;{shade}m{cell}\x1b[0m" if colored else cell
    columns, rows = sweep[across], sweep[down]
    return [
        f"net by {down} (down) and {across} (across), the best with *",
        " " * 8 + " ".join(f"{column:>{width - 1}}" for column in columns),
        *(f"{row:>8}{''.join(cells[row, column] for column in columns)}".rstrip() for row in rows),
    ]


def _whole(parts: Iterable[Columns]) -> Columns:
    """Return all parts as one, in arrays of numbers."""
    columns = [array("q") for _ in range(4)]
    for end in parts:
        for column, prices in zip(columns, end[4:], strict=True):
            column.extend(candlefile.numbers(prices))
    begin = end.end - end.interval_s * len(columns[0])
    return Columns(begin, end.interval_s, min(columns[2]), max(columns[1]), *columns)


def _one(task: tuple[Config, dict[str, _Swept], PairRules, Costs]) -> Result:
    config, run, rules, costs = task
    interval, chosen = int(run.get("interval", config.interval)), config.strategy
    if chosen.name == "file":
        swept = {key: value for key, value in run.items() if key != "interval"}
        chosen = chosen._replace(parameters={**chosen.parameters, **swept})
    else:
        chosen = chosen._replace(length=int(run.get("length", chosen.length)))
    config = config._replace(interval=interval, strategy=chosen)
    replay = Replay(plan_of(config), rules, costs)
    series = _series[config.interval]
    for at in range(0, len(series.closes), _PART):
        replay.feed(series.cut(at, at + _PART))
    return replay.result()


def _title(result: Result) -> str:
    return (
        f"{result.pair}, {result.interval_s // 60} min, {moment(result.begin)} to "
        f"{moment(result.end)} UTC, {result.days:,.1f} days, {result.candles:,} candles"
    )


def _setup(config: Config, costs: Costs) -> str:
    slipped = f" and {plain(costs.slippage * 100)} % slippage" if costs.slippage else ""
    return (
        f"{_strategy(config)}, size {plain(config.size)}, leverage {config.leverage}, "
        f"{config.reversal}; taker fee {plain(costs.fee_rate * 100)} %, margin "
        f"{plain(Decimal('0.02'))} % at opening and every 4 h, fills at the next open "
        f"one tick away{slipped}; start {plain(costs.balance)}"
    )


def _strategy(config: Config) -> str:
    """Return the strategy's name and lengths, or a rule's file, SHA-256 and parameters."""
    chosen = config.strategy
    if chosen.file is not None:
        values = "".join(f" {key}={value}" for key, value in chosen.parameters.items())
        return f"{chosen.file.name} {load(chosen.file).sha256[:12]}{values}"
    lengths = f"{chosen.length}" if chosen.name == "sma-slope" else f"{chosen.short}/{chosen.long}"
    return f"{chosen.name} {lengths}"


def _numbers(result: Result) -> list[tuple[str, str]]:
    fee, won = result.break_even_fee, result.win_rate
    return [
        ("turns", f"{result.turns:,}, {result.turns_per_day:,.1f} a day"),
        ("win rate", "-" if won is None else f"{won:.1%} after costs"),
        *((name, f"{amount:+,.2f}") for name, amount in _money(result)),
        ("max drawdown", f"{result.max_drawdown:,.2f}"),
        ("exposure", f"{result.exposure:.1%}"),
        ("break-even fee", "-" if fee is None else f"{fee * 100:.4f} %" if fee > 0 else "none"),
    ]


def _money(result: Result) -> list[tuple[str, Decimal]]:
    """Return the way from the profit before costs to the net one, with signs."""
    return [
        ("before costs", result.gross),
        ("trade fees", -result.fees),
        ("opening fees", -result.opening_fees),
        ("rollover", -result.rollover),
        ("net", result.net),
        ("buy and hold", result.hold),
    ]


def _remarks(config: Config, result: Result) -> list[str]:
    sight = "it saw nothing but its last {} finished candles each time, so it cannot look ahead"
    file = config.strategy.file
    remarks = (
        (file.name if file else "", sight.format(plan_of(config).candles_min) if file else None),
        ("ended early", result.ended),
        ("first order not sent", result.objection),
    )
    return [f"{name}: {text}" for name, text in remarks if text]


def _points(
    replay: Replay, parts: Iterable[Columns], every: int, newest: deque[tuple[int, Any]]
) -> Iterator[Point]:
    """Feed the parts, yield a point for each so many candles; `newest` gets times and closes."""
    for part in parts:
        ends = range(part.time + part.interval_s, part.end + part.interval_s, part.interval_s)
        newest.extend(zip(ends, part.closes, strict=True))
        for at in range(0, len(part.closes), every):
            piece = part.cut(at, at + every)
            replay.feed(piece)
            equity, costs = replay.worth()
            low, high, close = (_UNIT * units(p) for p in (piece.low, piece.high, piece.closes[-1]))
            net = equity - replay.costs.balance
            gross, held = float(net + costs), float(replay.held)
            yield Point(piece.end, low, high, close, float(net), gross, held)


def _story(
    config: Config,
    replay: Replay,
    result: Result,
    points: list[Point],
    newest: Sequence[tuple[int, Any]],
) -> Story:
    marks, fills, orders = [], [], []
    for fill in replay.fills:
        when, side = moment(fill.time, "%Y-%m-%d %H:%M"), "buy" if fill.direction > 0 else "sell"
        why = f"{fill.reason}: {'close' if fill.closing else 'open'}"
        shown = volume(fill.volume), price(fill.price, replay.rules)
        text = f"{when} {side} {shown[0]} at {shown[1]}: {why}"
        fee = fill.fee + fill.opening_fee
        marks.append(Mark(fill.time, float(fill.price), fill.direction > 0, text))
        figures = (float(fill.volume), float(fill.price), float(fee))
        fills.append(Fill(fill.time, fill.direction, *figures))
        orders.append((when, side, *shown, money(fee), "filled", why, f"{fill.order}"))
    name, length = config.strategy.name, plan_of(config).candles_min
    length = {"sma-slope": length - 1, "sma-cross": length}.get(name, 1)
    closes = [_UNIT * units(close) for _, close in newest]
    candles = [
        (newest[at][0], closes[at], sum(closes[at + 1 - length : at + 1]) / length)
        for at in range(length - 1, len(closes))
    ]
    costs = [(name, float(amount)) for name, amount in _money(result)]
    return Story(
        title=f"{result.pair} · backtest",
        subtitle=f"{_title(result)}; {_setup(config, replay.costs)}",
        quote=asset(replay.rules.quote),
        pair_decimals=replay.rules.pair_decimals,
        net=float(result.net),
        gross=float(result.gross),
        balance=float(replay.costs.balance),
        size=float(config.size),
        first_price=points[0].close,
        facts=_numbers(result),
        costs=costs,
        points=points,
        newest=candles,
        marks=marks,
        fills=fills,
        orders=orders,
        notes=_remarks(config, result),
    )
