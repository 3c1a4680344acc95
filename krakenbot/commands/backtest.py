"""`backtest`: replays the bot's own decisions, orders, fees and margin over files of candles."""

import json
import os
import re
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from krakenbot import config_reader
from krakenbot.backtest import files, sweep
from krakenbot.backtest.columns import BadDataError, Columns
from krakenbot.backtest.engine import Costs, Replay
from krakenbot.backtest.files import Source, interval_of, pair_of
from krakenbot.backtest.pair import rates_of, rules_of
from krakenbot.backtest.result import DAY_S
from krakenbot.backtest.sweep import Setting, Value
from krakenbot.commands import UsageError
from krakenbot.commands import backtest_output as output
from krakenbot.config import INTERVALS, Config
from krakenbot.errors import ConfigError
from krakenbot.format import MINUTE, moment
from krakenbot.pairs import decimal, plain
from krakenbot.plan import plan_of
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.simulated.listing import assets_of

EXAMPLE = "krakenbot backtest XBTUSD_60.csv --sweep length=10:90:10 --forward 365d"

# Options, and the settings that they override, as in their environment variables.
_KEYS = {
    "pair": "PAIR",
    "interval": "INTERVAL",
    "size": "SIZE",
    "leverage": "LEVERAGE",
    "length": "STRATEGY_LENGTH",
    "balance": "PAPER_BALANCE",
    "fee": "EXCHANGE_FEE_PERCENT",
}
Parts = Iterable[Columns]
_SWEPT_MAX = 50_000  # Values of one range of a sweep.
_TRIPS_SHOWN, TRIPS_DRAWN = 10, 1000  # The newest round trips in the output and in a report.


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    kinds = "PAIR_MINUTES.csv or .csv.gz, a folder of them, Kraken's zip, or OHLC JSON"
    add("files", nargs="+", metavar="FILE_OR_DIR", type=_path, help=kinds)
    for name, key in _KEYS.items():
        unit = {"interval": " (minutes)", "fee": " (percent)"}.get(name, "")
        add(f"--{name}", help=f"overrides {key.lower().replace('_', '.', 1)}{unit}")
    slippage = "percent by which each fill is worse, besides the half spread of one tick"
    add("--slippage", metavar="PERCENT", type=decimal, default=0, help=slippage)
    wait = "let an order wait for the next candle that has trades"
    add("--no-trade-no-fill", action="store_true", help=wait)
    rules = "a saved AssetPairs answer, for a pair outside the built-in list"
    add("--pair-rules", metavar="FILE", type=_path, help=rules)
    swept = "length, interval or a rule's parameter: 10:60:2 (from:to:step) or 1,5,15"
    add("--sweep", nargs="+", metavar="KEY=VALUES", default=[], help=swept)
    forward = "with --sweep: how the best of each span did in the next (365d, 26w, 1y)"
    add("--forward", metavar="SPAN", help=forward)
    add("--report", metavar="FILE", type=_path, help="write an HTML report as well")
    form = "print one object; with --sweep a list of them, with --forward cells and spans"
    add("--json", action="store_true", help=form)


def run(arguments: Namespace) -> int:
    words = vars(arguments)
    given = {name: words[name] for name in _KEYS if words[name] is not None}
    if empty := [f"--{name} is empty" for name, word in given.items() if not word]:
        raise UsageError(", ".join(empty))
    options = {f"KRAKENBOT_{_KEYS[name]}": word for name, word in given.items()}
    environ = os.environ | {"KRAKENBOT_STATE_DIRECTORY": "/"}  # A backtest does not use it.
    try:
        config = config_reader.load(arguments.config, environ | options, Path.cwd())
    except ConfigError as error:
        # A mistake in the file itself is no usage error: this raises ConfigError.
        config_reader.load(arguments.config, environ, Path.cwd())
        text = str(error)
        for name, key in _KEYS.items():
            text = text.replace(f"KRAKENBOT_{key} =", f"--{name}")
        raise UsageError(text) from error
    try:
        lines = _backtest(config, arguments)
    except (BadDataError, OSError) as error:
        raise UsageError(str(error)) from error
    print(*lines, sep="\n")
    return 0


def _backtest(config: Config, arguments: Namespace) -> list[str]:
    if not 0 <= arguments.slippage < 10:
        raise BadDataError(f"--slippage {arguments.slippage}: must be from 0 to 10")
    if arguments.length is not None and config.strategy.name != "sma-slope":
        raise BadDataError(f"--length: the strategy {config.strategy.name} does not take it")
    if arguments.forward is not None and not arguments.sweep:
        raise BadDataError("--forward: compares the cells of a sweep, so it needs --sweep")
    sources, pair, file_s = _sources(arguments.files, arguments.pair, config)
    notes: list[str] = []
    parts = files.read(sources, file_s, notes)
    first = next(parts)
    # A configured interval may be shorter than the file's; one that was asked for must fit.
    is_given = config.sources["interval"].startswith("KRAKENBOT_")
    if not is_given and config.interval * 60 < file_s:
        config = config._replace(interval=file_s // 60)
        notes.append(f"candles of {config.interval} min, as in the file")
    if config.interval not in INTERVALS:
        notes.append(
            f"the bot cannot run at {config.interval} min: Kraken's API has no such candles"
        )
    rules = rules_of(pair, arguments.pair_rules, first, notes)
    if config.size < rules.ordermin:
        smallest = f"below the smallest order, {plain(rules.ordermin)}: nothing can be traded"
        notes.append(f"size {plain(config.size)} is {smallest}")
    if config.strategy.file:
        seen = f"its last {plan_of(config).candles_min} finished candles"
        notes.append(f"{config.strategy.file.name} only ever saw {seen}, so it cannot look ahead")
    if config.risk.max_loss is not None:
        notes.append("max_loss is checked when a candle ends; the bot checks it every few minutes")
    fee = config.exchange.fee_percent
    costs = Costs(
        fee_rate=FEE_RATE_ASSUMED if fee is None else fee / 100,
        balance=config.paper.balance,
        slippage=Decimal(arguments.slippage) / 100,
        margin_rates=rates_of(rules, notes),
        needs_trades=arguments.no_trade_no_fill,
    )
    work = _sweep if arguments.sweep else _once
    return work(Setting(config, rules, costs), _watched(chain([first], parts)), arguments, notes)


def _once(setting: Setting, parts: Parts, arguments: Namespace, notes: list[str]) -> list[str]:
    config, rules = setting.config, setting.rules
    keep = None if arguments.json else TRIPS_DRAWN if arguments.report else _TRIPS_SHOWN
    replay = Replay(plan_of(config), rules, setting.costs, keep)
    parts = files.aggregate(parts, config.interval * 60)
    if arguments.report:
        result = output.write_run(arguments.report, setting, replay, parts, notes)
        notes.append(f"report: {arguments.report}")
    else:
        for part in parts:
            replay.feed(part)
        result = replay.result()
    if arguments.json:
        trips = [output.trip_values(trip, result.interval_s) for trip in replay.record.trips]
        shown = {**result._asdict(), "notes": notes, "round_trips": trips}
        return [json.dumps(shown, indent=2, default=plain)]
    return [
        *_wrapped([output.title(result), *output.headline(result), output.setup(setting)]),
        "",
        *_wrapped((f"{name:16}{words}" for name, words in output.figures(result)), 16),
        *output.trips([*replay.record.trips][-_TRIPS_SHOWN:], rules),
        "",
        *_wrapped(notes),
    ]


def _wrapped(lines: Iterable[str], indent: int = 0) -> list[str]:
    """Return lines of at most 80 columns, if no word is longer."""
    wrap = textwrap.TextWrapper(
        80, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return [row for line in lines for row in wrap.wrap(line)]


def _path(text: str) -> Path:
    if not text:  # Path("") would be the current folder.
        raise UsageError("the name of a file is empty")
    return Path(text)


def _sources(named: list[Path], given: str | None, config: Config) -> tuple[list[Source], str, int]:
    """Return the files to read, and the pair and interval in seconds that all of them have."""
    chosen: list[Source] = []
    for path in named:
        inside = files.sources_of(path)
        chosen += inside if inside == [path] else _of_pair(inside, config, path)
    names, where = [pair_of(source) for source in chosen], ", ".join(map(str, named))
    if not given and None in names:
        raise BadDataError(
            f"{where}: the file name does not give the pair; add --pair, as in --pair XBTEUR"
        )
    pairs = {assets_of(name): name for name in (given, *names) if name}
    steps = {interval_of(source) for source in chosen}
    if len(pairs) > 1 or len(steps) > 1:
        found = ", ".join([*pairs.values(), *(f"{step // 60} min" for step in sorted(steps))])
        also = " and --pair" if given else ""
        raise BadDataError(f"{where}{also}: must be of one pair and interval, not of {found}")
    return chosen, next(iter(pairs.values())), steps.pop()


def _of_pair(inside: Sequence[Source], config: Config, path: Path) -> list[Source]:
    """Return those files of the configured pair whose interval suits the configured one best.

    That is the longest interval that divides it or, if none does, the shortest.
    """
    names = {source: pair_of(source) or "" for source in inside}
    wanted = assets_of(config.pair)
    steps = {file: interval_of(file) for file, name in names.items() if assets_of(name) == wanted}
    if not steps:
        others = sorted({name or file.name for file, name in names.items()})
        has = f"{', '.join(others[:8]) or 'none'}{' ...' if others[8:] else ''}"
        like = f"{''.join(wanted)}_1.csv"
        raise BadDataError(f"{path}: no files of {config.pair}, like {like}; it has {has}")
    fitting = (step for step in steps.values() if config.interval * 60 % step == 0)
    best = max(fitting, default=min(steps.values()))
    return [file for file, step in steps.items() if step == best]


def _watched(parts: Parts) -> Iterator[Columns]:
    """Yield the parts and, on a terminal, show the progress."""
    count, out = 0, sys.stderr
    if not out.isatty():
        yield from parts
        return
    try:
        for part in parts:
            yield part
            count += len(part.times)
            print(end=f"\r{count:,} candles, {moment(part.times[0], MINUTE)}", file=out, flush=True)
    finally:
        print(end="\r\x1b[K", file=out, flush=True)


def _parse_sweep(words: list[str], strategy: str) -> dict[str, list[Value]]:
    """Return the values by key: interval, length of sma-slope, or a rule's parameter."""
    found: dict[str, list[Value]] = {}
    for word in words:
        (key, _, after), values = word.partition("="), list[Value]()
        with suppress(ValueError, ArithmeticError):
            values = [number for piece in after.split(",") for number in _range(piece)]
        if key == "interval":
            is_allowed = all(value in INTERVALS for value in values)
        elif strategy == "sma-slope":
            is_allowed = key == "length" and all(value in range(2, 701) for value in values)
        else:
            is_allowed = strategy == "file" and key.isidentifier()
        if not values or not is_allowed or key in found:
            raise BadDataError(
                f"--sweep {word}: must be interval (one that the bot offers), length (2 to 700, of "
                "sma-slope) or a rule's parameter, then = and numbers like 10:60:2 or 1,5,15"
            )
        found[key] = list(dict.fromkeys(values))
    return found


def _range(piece: str) -> list[Value]:
    """Return the numbers that 10:60:2, 10:60 or 10 stands for, whole ones as int."""
    begin, *rest = map(decimal, piece.split(":"))
    end, step = rest[0] if rest else begin, rest[1] if len(rest) > 1 else Decimal(1)
    count = int((end - begin) // step) + 1
    if len(rest) > 2 or step <= 0 or not 1 <= count <= _SWEPT_MAX:
        raise ValueError
    numbers = [begin + step * number for number in range(count)]
    return [int(number) if number == int(number) else number for number in numbers]


def _parse_span(word: str) -> int:
    """Return the seconds of a span like 365d, 26w or 1y; BadDataError for any other text."""
    found = re.fullmatch(r"(\d{1,5})([dwy])", word)
    if found is None or not int(found[1]):
        raise BadDataError(f"--forward {word}: must be a span like 365d, 26w or 1y")
    return int(found[1]) * {"d": 1, "w": 7, "y": 365}[found[2]] * DAY_S


def _sweep(setting: Setting, parts: Parts, arguments: Namespace, notes: list[str]) -> list[str]:
    values = _parse_sweep(arguments.sweep, setting.config.strategy.name)
    span_s = 0 if arguments.forward is None else _parse_span(arguments.forward)
    longest = int(max(values.get("interval", [setting.config.interval])))
    if 0 < span_s < 2 * longest * 60:
        few = f"a span holds fewer than two candles of {longest} min"
        raise BadDataError(f"--forward {arguments.forward}: {few}")
    whole = sweep.whole_of(parts)
    midnight = -(-whole.times[0] // DAY_S) * DAY_S  # The first one in the data (UTC).
    begins = range(midnight, whole.end - span_s + 1, span_s) if span_s else ()
    spans = [(begin, begin + span_s) for begin in begins]
    if span_s and len(spans) < 2:
        raise BadDataError(f"--forward {arguments.forward}: the data hold fewer than two spans")
    cells = sweep.cells_of(setting, values, whole, spans)
    steps, best = sweep.walk_forward(cells), sweep.best_of([cell.whole for cell in cells])
    forward = output.forward_table(steps, cells) if spans else None
    head = [
        output.title(cells[0].whole, with_interval="interval" not in values),
        output.setup(setting, values),
    ]
    if arguments.report:
        output.write_sweep(arguments.report, head, cells, forward, notes)
        notes.append(f"report: {arguments.report}")
    if arguments.json:
        shown: Any = [{**cell.keys, **cell.whole._asdict(), "cell": cell.keys} for cell in cells]
        if spans:
            shown = {"cells": shown, "forward": [step._asdict() for step in steps]}
        return [json.dumps(shown, default=plain)]
    return [
        *_wrapped(head),
        "",
        *output.overview(cells, best),
        "",
        *_wrapped([output.winner(cells, best)]),
        *(["", *output.lines_of(forward)] if forward else []),
        "",
        *_wrapped(notes),
    ]
