"""Files of candles as columns: Kraken's OHLCVT CSV (plain or .gz) and saved OHLC answers.

A file is read in blocks, so memory does not grow with its length. Missing intervals are filled
flat, as the live API has them. Anything odd is a BadDataError.

Only closes become numbers, floats of at most 15 digits, which compare exactly and whose `repr`
gives back the digits. The other prices stay as text until somebody asks: where all have as many
digits before the point, texts compare as the numbers do, and few are ever needed.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain
from math import gcd, inf
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from krakenbot.errors import UnansweredError
from krakenbot.model import Candle

BLOCK_BYTES = 1 << 15
GAP_MAX_S = 31 * 86400  # More is a hole that no flat price may paper over.
DIGITS_MAX = 15
INTERVALS = (1, 5, 15, 30, 60, 240, 720, 1440, 10080, 21600)
_MIXED_ROWS = 16
_SHAPES_MAX = 5000


class BadDataError(Exception):
    """A file that no number may be computed from. Names the file and, where there is one, line."""


Price = float | bytes


class Columns(NamedTuple):
    """Candles without gaps, the first one starting at `time`. No price is beyond low and high."""

    time: int
    interval_s: int
    low: float
    high: float
    opens: Sequence[Price]
    highs: Sequence[Price]
    lows: Sequence[Price]
    closes: Sequence[float]

    def cut(self, begin: int, end: int) -> "Columns":
        """Return the candles from number `begin` up to `end`."""
        return Columns(
            self.time + begin * self.interval_s, self.interval_s, self.low, self.high,
            self.opens[begin:end], self.highs[begin:end], self.lows[begin:end],
            self.closes[begin:end],
        )  # fmt: skip

    def joined(self, after: "Columns") -> "Columns":
        """Return these candles and those that follow them."""
        return Columns(
            self.time, self.interval_s, min(self.low, after.low), max(self.high, after.high),
            [*self.opens, *after.opens], [*self.highs, *after.highs], [*self.lows, *after.lows],
            [*self.closes, *after.closes],
        )  # fmt: skip


class _Rows(NamedTuple):
    times: list[int]
    low: float
    high: float
    opens: Sequence[Price]
    highs: Sequence[Price]
    lows: Sequence[Price]
    closes: Sequence[float]

    def after(self, count: int) -> "_Rows":
        return _Rows(
            self.times[count:], self.low, self.high, self.opens[count:], self.highs[count:],
            self.lows[count:], self.closes[count:],
        )  # fmt: skip


def read(paths: Sequence[Path], interval_s: int, notes: list[str]) -> Iterator[Columns]:
    """Yield the candles of files of one interval in order of time, each a part of the whole.

    Rows that an earlier file had already are left out; `notes` gets a line about them.
    """
    last: tuple[int, float] | None = None
    for path in sorted(paths, key=_first_time) if len(paths) > 1 else paths:
        skipped = 0
        for number, rows in _json(path) if ".json" in path.suffixes else _csv(path):
            if last is not None and len(paths) > 1:
                old = sum(time <= last[0] for time in rows.times)
                skipped += old
                rows = rows.after(old)
            if rows.times:
                yield (columns := _filled(path, number, rows, interval_s, last))
                last = rows.times[-1], columns.closes[-1]
        if skipped:
            notes.append(f"{path}: {skipped} rows are in an earlier file already")
    if last is None:
        raise BadDataError(f"{paths[0]}: no candles")


def aggregate(parts: Iterable[Columns], interval_s: int) -> Iterator[Columns]:
    """Yield candles of a larger interval; incomplete ones at both ends are left out."""
    rest: list[list[float]] = [[], [], [], []]
    for part in parts:
        time = part.time - len(rest[0]) * part.interval_s
        columns = [[*a, *map(float, b)] for a, b in zip(rest, part[4:], strict=True)]
        step = interval_s // part.interval_s
        skip = -time // part.interval_s % step
        count = max(len(columns[0]) - skip, 0) // step
        end = skip + count * step
        if count:
            opens, highs, lows, closes = (
                [column[skip + at : end : step] for at in range(step)] for column in columns
            )
            yield Columns(
                time + skip * part.interval_s, interval_s, min(columns[2]), max(columns[1]),
                opens[0], list(map(max, *highs)), list(map(min, *lows)), closes[-1],
            )  # fmt: skip
        rest = [column[end if count else 0 :] for column in columns]


def interval_of(path: Path) -> int:
    """Return the seconds between the candles of a file: by its name, else by its first rows."""
    minutes = _stem(path).rpartition("_")[2]
    if minutes.isdecimal() and int(minutes) in INTERVALS:
        return int(minutes) * 60
    _, rows = next(iter(_json(path) if ".json" in path.suffixes else _csv(path)))
    step = gcd(*(b - a for a, b in zip(rows.times, rows.times[1:], strict=False)))
    if step // 60 not in INTERVALS or step % 60:
        raise BadDataError(f"{path}: its times are not those of any interval of Kraken's")
    return step


def pair_of(path: Path) -> str | None:
    """Return the pair in a name like PAIR_MINUTES.csv or in an OHLC answer, None if none is."""
    if ".json" in path.suffixes:
        return _answer(path)[0]
    pair, _, minutes = _stem(path).rpartition("_")
    return pair if pair and minutes.isdecimal() else None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0]


def _first_time(path: Path) -> int:
    return next(iter(_json(path) if ".json" in path.suffixes else _csv(path)))[1].times[0]


def _csv(path: Path) -> Iterator[tuple[int, _Rows]]:
    """Yield blocks of rows, each with the number of its first line."""
    number, rest = 1, b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            rest = _start(file)
            while True:
                block = file.read(BLOCK_BYTES)
                text = rest + block if block else rest.rstrip() + b"\n"
                cut = text.rfind(b"\n") + 1
                rest = text[cut:]
                if lines := text[:cut].rstrip():
                    rows = _rows(lines + b"\n")
                    if rows is None:
                        raise _bad_row(path, number, lines)
                    yield number, rows
                    number += len(rows.times)
                if not block:
                    break
                if len(rest) > BLOCK_BYTES:
                    raise BadDataError(f"{path}:{number}: not a line of numbers")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadDataError(f"{path}:{number}: damaged after this line: {error}") from error
    except OSError as error:
        raise BadDataError(f"{path}: {error.strerror or error}") from error
    if number == 1:
        raise BadDataError(f"{path}: no candles")


def _start(file: BinaryIO | gzip.GzipFile) -> bytes:
    return file.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")


_DIGITS = bytes(ord("0") if chr(code).isdigit() and code < 128 else code for code in range(256))
_SHAPE = re.compile(
    rb"0{1,11}((?:,0+(?:\.0+)?){4}),0+(?:\.0*)?(?:[eE][-+]?0{1,2})?,0+", re.ASCII
)
_shapes: dict[bytes, int] = {}


def _whole_digits(shape: bytes) -> int:
    """Return how many digits stand before the point in all four prices of a line, or 0."""
    match = _SHAPE.fullmatch(shape)
    prices = match[1][1:].split(b",") if match else [b""]
    whole = {len(price.partition(b".")[0]) for price in prices}
    usual = len(whole) == 1 and max(map(len, prices)) <= DIGITS_MAX
    if len(_shapes) > _SHAPES_MAX:
        _shapes.clear()
    _shapes[shape] = len(prices[0].partition(b".")[0]) if usual else 0
    return _shapes[shape]


def _rows(block: bytes) -> _Rows | None:
    """Return the columns of whole lines, None if any line is not a candle."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    shapes = set(block.translate(_DIGITS).splitlines())
    whole = {_shapes.get(shape) or _whole_digits(shape) for shape in shapes}
    if len(whole) > 1 or 0 in whole:
        return _unusual_rows(block)
    fields = block[:-1].replace(b"\n", b",").split(b",")
    opens, highs, lows, closes = (fields[at::7] for at in range(1, 5))
    for o, h, low, c in zip(opens, highs, lows, closes, strict=True):
        if not low <= o <= h >= c >= low:
            return _unusual_rows(block)
    bottom = float(min(lows))
    if not bottom:
        return None
    return _Rows(
        list(map(int, fields[0::7])), bottom, float(max(highs)), opens, highs, lows,
        list(map(float, closes)),
    )  # fmt: skip


def _unusual_rows(block: bytes) -> _Rows | None:
    """Return the same for lines whose prices cannot be compared as texts."""
    # A field of its own between the lines: none of them may have too few or too many.
    fields = block[:-1].replace(b"\n", b",\n,").split(b",")
    ends = fields[7::8]
    if ends.count(b"\n") != len(ends) or len(fields) != 8 * len(ends) + 7 or b"_" in block:
        return None
    try:
        times, trades = list(map(int, fields[0::8])), list(map(int, fields[6::8]))
        opens, highs, lows, closes, volumes = (
            list(map(float, fields[at::8])) for at in range(1, 6)
        )
        digits = max(
            len(Decimal(text.decode()).normalize().as_tuple().digits)
            for text in chain(*(fields[at::8] for at in range(1, 5)))
        )
    except (ValueError, ArithmeticError):
        return None
    if not (digits <= DIGITS_MAX and min(trades) >= 0 <= min(volumes)):
        return None
    if not sum(volumes) + max(highs) < inf:
        return None
    for o, h, low, c in zip(opens, highs, lows, closes, strict=True):
        if not 0 < low <= o <= h >= c >= low:
            return None
    return _Rows(times, min(lows), max(highs), opens, highs, lows, closes)


def _bad_row(path: Path, number: int, block: bytes) -> BadDataError:
    """Return the error about the first line that is not a candle."""
    for line in block.splitlines(keepends=True):
        if _rows(line if line.endswith(b"\n") else line + b"\n") is None:
            break
        number += 1
    shown = line.strip().decode("ascii", "replace")
    return BadDataError(
        f"{path}:{number}: {shown[:80]!r} is not a candle: seven columns, time, open, high, low,"
        f" close, volume, trades; prices above zero, low <= open, close <= high, at most"
        f" {DIGITS_MAX} digits"
    )


def _json(path: Path) -> Iterator[tuple[int, _Rows]]:
    """Yield the finished rows of a saved OHLC answer."""
    candles = _answer(path)[1]
    if not candles:
        raise BadDataError(f"{path}: no finished candles")
    prices = ([float(c.open), float(c.high), float(c.low), float(c.close)] for c in candles)
    columns: list[list[Any]] = [list(column) for column in zip(*prices, strict=True)]
    times = [candle.time for candle in candles]
    yield 1, _Rows(times, min(columns[2]), max(columns[1]), *columns)


def _answer(path: Path) -> tuple[str, list[Candle]]:
    """Return the key and the finished candles of a saved OHLC answer."""
    from krakenbot.ohlc import parse_rows

    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            answer = json.loads(file.read(1 << 24), parse_float=Decimal)
        result = answer.get("result", answer)
        return next(key for key in result if key != "last"), parse_rows(result, 60)[:-1]
    except (
        OSError, EOFError, zlib.error, ValueError, AttributeError, StopIteration, UnansweredError
    ) as error:  # fmt: skip
        raise BadDataError(f"{path}: not a saved OHLC answer: {error}") from error


def _filled(
    path: Path, number: int, rows: _Rows, interval_s: int, last: tuple[int, float] | None
) -> Columns:
    """Return the rows with what is missing before and between them filled flat."""
    times = rows.times
    first, close = (last[0] + interval_s, last[1]) if last else (times[0], 0.0)
    breaks = [
        at
        for at, (before, time) in enumerate(zip((first - interval_s, *times), times, strict=False))
        if time - before != interval_s
    ]
    if first % interval_s:
        breaks = [0]
    _check_times(path, number, times, breaks, interval_s, first - interval_s)
    if not breaks:
        return Columns(first, interval_s, *rows[1:])
    filled: tuple[list[Any], ...] = ([], [], [], [])
    prices = (rows.opens, rows.highs, rows.lows, rows.closes)
    done = 0
    for at in (*breaks, len(times)):
        for column, source in zip(filled, prices, strict=True):
            column += source[done:at]
        if at < len(times):
            expected = times[at - 1] + interval_s if at else first
            price = rows.closes[at - 1] if at else close
            flat = [price] * ((times[at] - expected) // interval_s)
            for column in filled:
                column += flat
        done = at
    low, high = (min(rows.low, close), max(rows.high, close)) if close else rows[1:3]
    return Columns(first, interval_s, low, high, *filled)


def _check_times(
    path: Path, number: int, times: list[int], breaks: list[int], interval_s: int, before: int
) -> None:
    """Raise BadDataError unless times only leave out candles; `breaks` are where they do."""
    for at in breaks:
        time, earlier = times[at], times[at - 1] if at else before
        where = f"{path}:{number + at}: time {time}"
        if time % interval_s or time < 0:
            raise BadDataError(f"{where} is not the start of a candle of {interval_s // 60} min")
        if time <= earlier:
            raise BadDataError(
                f"{where} " + ("is there twice" if time == earlier else f"comes after {earlier}")
            )
        if time - earlier > max(GAP_MAX_S, 4 * interval_s):
            raise BadDataError(f"{where} leaves a hole of {(time - earlier) // 86400} days before")
    for begin, end in zip(breaks, breaks[_MIXED_ROWS:], strict=False):
        if end - begin == _MIXED_ROWS:
            step = gcd(*(times[at] - times[at - 1] for at in range(begin + 1, end + 1)))
            if step >= 4 * interval_s:
                raise BadDataError(
                    f"{path}:{number + begin}: from here rows are {step // 60} minutes apart, in a "
                    f"file of {interval_s // 60}-minute candles"
                )
