"""Sweeps: many settings over one series, and how the best of one span did in the next."""

import os
import signal
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from itertools import pairwise, product
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import NamedTuple

from krakenbot.backtest.columns import BadDataError, Columns
from krakenbot.backtest.engine import Costs, Replay
from krakenbot.backtest.files import aggregate
from krakenbot.backtest.result import Result
from krakenbot.config import Config
from krakenbot.kraken.shape import OHLC_ROWS_MAX
from krakenbot.model import ZERO
from krakenbot.pairs import PairRules
from krakenbot.plan import plan_of

RUNS_MAX = 10_000
_SIGNALS = signal.SIGINT, signal.SIGTERM
Value = int | Decimal
Keys = Mapping[str, Value]
Spans = Sequence[tuple[int, int]]  # From and to, in unix seconds.


class Cell(NamedTuple):
    """One combination of settings, with its result over the whole series and over each span."""

    keys: Keys
    whole: Result
    spans: Sequence[Result]


class Step(NamedTuple):
    """A span, the settings that were best in the span before, and their net profit in this one.

    `rank` 1 is the best of all cells in this span, `average` the mean of their net profits. The
    names are fields of `backtest --json`: do not change them.
    """

    begin: int
    end: int
    chosen: Keys
    net: Decimal
    rank: int
    best: Keys
    best_net: Decimal
    average: Decimal
    hold: Decimal


class Setting(NamedTuple):
    """What all runs of a sweep have in common."""

    config: Config
    rules: PairRules
    costs: Costs


# What `_cell` needs. Forked processes share it, so every file is read once.
_shared: list[tuple[Setting, Mapping[int, Columns], Spans]] = []


def cells_of(
    setting: Setting, values: Mapping[str, Sequence[Value]], whole: Columns, spans: Spans
) -> list[Cell]:
    """Return the cell of each combination of values, computed on all processors.

    Each cell runs over the whole series, then over each of the spans. Raises BadDataError when the
    runs are too many or the data too few.
    """
    runs = [dict(zip(values, row, strict=True)) for row in product(*values.values())]
    if len(runs) > RUNS_MAX:
        raise BadDataError(f"--sweep: {len(runs)} runs, at most {RUNS_MAX}")
    series = {}
    for minutes in map(int, values.get("interval", [setting.config.interval])):
        made = next(aggregate([whole], minutes * 60), None)
        if made is None:
            raise BadDataError(f"the data hold no whole candle of {minutes} min")
        series[minutes] = made
    _shared[:] = [(setting, series, spans)]
    with ProcessPoolExecutor(mp_context=get_context("fork"), initializer=_follow_parent) as pool:
        on_term = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # Until the workers are forked.
            futures = [pool.submit(_cell, keys) for keys in runs]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            return [future.result() for future in futures]
        except BaseException:
            for worker in active_children():
                worker.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, on_term)


def is_sound(result: Result) -> bool:
    """Return whether a run traded and reached its end. Only such a run may be the best."""
    return result.ended is None and result.turns > 0


def best_of(results: Sequence[Result]) -> int | None:
    """Return the index of the sound result with the highest net profit, None if none is sound."""
    sound = [at for at, result in enumerate(results) if is_sound(result)]
    return max(sound, key=lambda at: results[at].net, default=None)


def walk_forward(cells: Sequence[Cell]) -> list[Step]:
    """Return for each span but the first what the best cell of the span before made in it."""
    steps = []
    for before, now in pairwise(zip(*(cell.spans for cell in cells), strict=True)):
        chosen = best_of(before)
        if chosen is None:
            continue
        nets = [result.net for result in now]
        steps.append(
            Step(
                begin=now[0].begin,
                end=now[0].end,
                chosen=cells[chosen].keys,
                net=nets[chosen],
                rank=1 + sum(net > nets[chosen] for net in nets),
                best=cells[nets.index(max(nets))].keys,
                best_net=max(nets),
                average=sum(nets, ZERO) / len(nets),
                hold=now[chosen].hold,
            )
        )
    return steps


def whole_of(parts: Iterable[Columns]) -> Columns:
    """Return all parts as one, in arrays, which take 40 bytes for each candle."""
    columns = [array("d") for _ in range(5)]
    begin = interval_s = 0
    for part in parts:
        begin, interval_s = begin or part.times[0], part.interval_s
        for column, numbers in zip(columns, part.numbers, strict=True):
            column.extend(numbers)
    times = range(begin, begin + len(columns[0]) * interval_s, interval_s)
    return Columns(interval_s, times, *columns)


def _follow_parent() -> None:
    """Set up a worker: it leaves Ctrl-C to the parent, and ends when the parent does."""
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _cell(keys: Keys) -> Cell:
    ((setting, every, spans),) = _shared
    config, chosen = setting.config, setting.config.strategy
    interval = int(keys.get("interval", config.interval))
    series = every[interval]
    chosen = chosen._replace(
        length=int(keys.get("length", chosen.length)),
        parameters={**chosen.parameters, **{key: keys[key] for key in keys if key != "interval"}},
    )
    plan = plan_of(config._replace(interval=interval, strategy=chosen))

    def run(begin: int, end: int) -> Result:
        first, stop = bisect_left(series.times, begin), bisect_left(series.times, end)
        warm_up = min(first, OHLC_ROWS_MAX)  # The candles that a bot would have at the start.
        replay = Replay(plan, setting.rules, setting.costs, warm_up=warm_up)
        replay.feed(series.cut(first - warm_up, stop))
        return replay.result()

    return Cell(keys, run(0, series.end), [run(*span) for span in spans])
