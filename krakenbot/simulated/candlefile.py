"""Files of candles as columns: Kraken's OHLCVT CSV (plain or .gz) and saved OHLC answers.

A file is read in blocks, so memory does not grow with its length. Missing intervals are filled
flat, as the live API has them. Anything odd is a BadDataError.

A price is a whole number of 1e-10 or still the text of the file: where all texts of a block are
equally long, they compare as the numbers do, and few of them are ever needed as numbers.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from math import gcd, inf
from operator import sub
from pathlib import Path
from typing import Any, NamedTuple

from krakenbot.errors import UnansweredError
from krakenbot.model import Candle

BLOCK_BYTES = 1 << 15
GAP_MAX_S = 31 * 86400  # More is a hole that no flat price may paper over.
DIGITS = 10
INTERVALS = (1, 5, 15, 30, 60, 240, 720, 1440, 10080, 21600)
_MIXED_ROWS = 16

Price = int | bytes


class BadDataError(ValueError):
    """A file that no number may be computed from. Names the file and, where there is one, line."""


class Columns(NamedTuple):
    """Candles without gaps, the first one starting at `time`. No price is beyond low and high."""

    time: int
    interval_s: int
    low: int
    high: int
    opens: Sequence[Price]
    highs: Sequence[Price]
    lows: Sequence[Price]
    closes: Sequence[int]

    @property
    def end(self) -> int:
        return self.time + len(self.closes) * self.interval_s

    def cut(self, begin: int, end: int) -> "Columns":
        """Return the candles from number `begin` up to `end`."""
        if begin == 0 and end >= len(self.closes):
            return self
        highs, lows = self.highs[begin:end], self.lows[begin:end]
        return Columns(
            self.time + begin * self.interval_s, self.interval_s,
            min(map(units, lows), default=self.low), max(map(units, highs), default=self.high),
            self.opens[begin:end], highs, lows, self.closes[begin:end],
        )  # fmt: skip

    def joined(self, after: "Columns") -> "Columns":
        """Return these candles and those that follow them."""
        low, high = min(self.low, after.low), max(self.high, after.high)
        opens, highs, lows = ([*a, *b] for a, b in zip(self[4:7], after[4:7], strict=True))
        closes = [*self.closes, *after.closes]
        return Columns(self.time, self.interval_s, low, high, opens, highs, lows, closes)


class _Rows(NamedTuple):
    """The rows of one block as the file has them."""

    times: list[int]
    low: int
    high: int
    opens: Sequence[Price]
    highs: Sequence[Price]
    lows: Sequence[Price]
    closes: Sequence[int]


def units(price: Price | str | Decimal) -> int:
    """Return a price as a whole number of 1e-10. ValueError or ArithmeticError when it is none."""
    if isinstance(price, int):
        return price
    value = Decimal(price.decode() if isinstance(price, bytes) else price).scaleb(DIGITS)
    if value.adjusted() > 18 or value != int(value):
        raise ValueError(f"{price!r} has too many digits")
    return int(value)


def exact(price: Price) -> Decimal:
    if isinstance(price, bytes):
        return Decimal(price.decode())
    return Decimal(price).scaleb(-DIGITS).normalize()


def columns_of(candles: Sequence[Candle], interval_s: int) -> Columns:
    """Return candles without gaps as columns."""
    rows = ([units(c.open), units(c.high), units(c.low), units(c.close)] for c in candles)
    opens, highs, lows, closes = map(list, zip(*rows, strict=True))
    return Columns(
        candles[0].time, interval_s, min(lows), max(highs), opens, highs, lows, closes
    )


def read(paths: Sequence[Path], interval_s: int, notes: list[str]) -> Iterator[Columns]:
    """Yield the candles of files of one interval in order of time, each a part of the whole.

    Rows that an earlier file had already are left out; `notes` gets a line about them.
    """
    last: tuple[int, int] | None = None
    for path in sorted(paths, key=lambda path: _first(path).times[0]) if paths[1:] else paths:
        skipped, ended = 0, last[0] if last else -1
        for number, rows in _blocks(path):
            old = sum(time <= ended for time in rows.times) if rows.times[0] <= ended else 0
            skipped += old
            if old < len(rows.times):
                if old:
                    columns: list[Any] = [column[old:] for column in rows[3:]]
                    rows = _Rows(rows.times[old:], rows.low, rows.high, *columns)
                yield _filled(rows, interval_s, last, path, number + old)
                last = rows.times[-1], rows.closes[-1]
        if skipped:
            notes.append(f"{path}: {skipped} rows are in an earlier file already")


def aggregate(parts: Iterable[Columns], interval_s: int) -> Iterator[Columns]:
    """Yield candles of a larger interval; incomplete ones at both ends are left out."""
    rest: Columns | None = None
    for part in parts:
        part = part if rest is None else rest.joined(part)
        step = interval_s // part.interval_s
        begin = -part.time // part.interval_s % step
        end = begin + max(len(part.closes) - begin, 0) // step * step
        if begin < end:
            whole = [list(map(units, column[begin:end])) for column in part[4:]]
            opens, highs, lows, closes = ([c[at::step] for at in range(step)] for c in whole)
            yield Columns(
                part.time + begin * part.interval_s, interval_s, part.low, part.high,
                opens[0], list(map(max, *highs)), list(map(min, *lows)), closes[-1],
            )  # fmt: skip
            part = part.cut(end, len(part.closes))
        rest = part


def interval_of(path: Path) -> int:
    """Return the seconds between the candles of a file: by its name, else by its first rows."""
    minutes = _stem(path).rpartition("_")[2]
    if minutes.isdecimal() and int(minutes) in INTERVALS:
        return int(minutes) * 60
    times = _first(path).times
    step = gcd(*(b - a for a, b in pairwise(times)))
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


def _first(path: Path) -> _Rows:
    return next(_blocks(path))[1]


def _blocks(path: Path) -> Iterator[tuple[int, _Rows]]:
    """Yield blocks of rows, each with the number of its first line; at least one."""
    if ".json" in path.suffixes:
        candles = _answer(path)[1]
        yield 1, _Rows([candle.time for candle in candles], *columns_of(candles, 0)[2:])
        return
    number = 1
    try:
        for block in _lines(path):
            block = block.replace(b"\r\n", b"\n") if b"\r" in block else block
            rows = _rows(block) or _slow_rows(block, path, number)
            yield number, rows
            number += len(rows.times)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadDataError(f"{path}:{number}: damaged after this line: {error}") from error
    except OSError as error:
        raise BadDataError(f"{path}: {error.strerror or error}") from error
    if number == 1:
        raise BadDataError(f"{path}: no candles")


def _lines(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces of whole lines, without a mark before and empty lines after them."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        rest = file.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        while block := file.read(BLOCK_BYTES):
            cut = rest.rfind(b"\n") + 1 or len(rest)
            yield rest[:cut]
            rest = rest[cut:] + block
        if rest := rest.rstrip():
            yield rest + b"\n"


def _rows(block: bytes) -> _Rows | None:
    """Return the columns of lines whose prices are texts of one form, None for any others.

    Volumes are not used, so that only their characters are looked at.
    """
    fields = block[:-1].replace(b"\n", b",").split(b",")
    times, opens, highs, lows, closes, _, trades = (fields[at::7] for at in range(7))
    count = len(trades)
    prices = b",".join(opens + highs + lows + closes) + b","
    width, point = prices.find(b","), prices.find(b".")
    strange = block.translate(None, b"0123456789.,\n")
    # Regular commas mean equal lengths, and a line with too many fields would shift the next.
    if (
        not 7 * count == len(fields) == 7 * block.count(b"\n")
        or prices[width :: width + 1] != b"," * 4 * count
        or prices[point :: width + 1] != b"." * 4 * count or prices.count(b".") != 4 * count
        or not 0 < point < width <= point + 1 + DIGITS
        or b",," in block or b",\n" in block or b"." in b"".join(times)
        or width > 20 or max(map(len, times)) > 12
        # Very small volumes are written like 5e-07.
        or strange.strip(b"e-") or b",-" in block or block.count(b".") > 5 * count
        or (strange and not b"".join((prices.translate(None, b".,"), *times, *trades)).isdigit())
    ):
        return None
    for o, high, low, close in zip(opens, highs, lows, closes, strict=True):
        if not low <= o <= high >= close >= low:
            return None
    zeros = b"0" * (DIGITS + 1 - width + point)
    numbers = ((zeros + b",").join(closes) + zeros).replace(b".", b"").split(b",")
    bottom = units(min(lows))
    return _Rows(
        list(map(int, times)), bottom, units(max(highs)), opens, highs, lows,
        list(map(int, numbers)),
    ) if bottom else None  # fmt: skip


def _slow_rows(block: bytes, path: Path, number: int) -> _Rows:
    """Return the columns of lines in any form. Raises BadDataError about the first bad one."""
    times, columns = [], []
    for at, line in enumerate(block.splitlines()):
        try:
            time, *texts, volume, trades = line.decode("ascii").split(",")
            o, high, low, close = prices = [units(text) for text in texts]
            if not (0 < low <= o <= high >= close >= low and 0 <= float(volume) < inf):
                raise ValueError
            if int(trades) < 0 or b"_" in line:
                raise ValueError
            times.append(int(time))
        except (ValueError, ArithmeticError):
            shown = line[:80].decode("ascii", "replace")
            raise BadDataError(
                f"{path}:{number + at}: {shown!r} is not a candle: seven columns, time, open, high,"
                f" low, close, volume, trades; prices above zero, low <= open, close <= high, at"
                f" most {DIGITS} decimals"
            ) from None
        columns.append(prices)
    opens, highs, lows, closes = map(list, zip(*columns, strict=True))
    return _Rows(times, min(lows), max(highs), opens, highs, lows, closes)


def _answer(path: Path) -> tuple[str, list[Candle]]:
    """Return the key and the finished candles of a saved OHLC answer."""
    from krakenbot.ohlc import parse_rows

    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            answer = json.loads(file.read(1 << 24), parse_float=Decimal)
        result = answer.get("result", answer)
        candles = parse_rows(result, 60)[:-1]
        return next(key for key in result if key != "last"), [candles[0], *candles[1:]]
    except (
        OSError, EOFError, zlib.error, ValueError, LookupError, AttributeError, StopIteration,
        UnansweredError,
    ) as error:  # fmt: skip
        raise BadDataError(f"{path}: not a saved OHLC answer: {error}") from error


def _filled(
    rows: _Rows, interval_s: int, last: tuple[int, int] | None, path: Path, number: int
) -> Columns:
    """Return the rows with what is missing before and between them filled flat."""
    before, flat = last or (rows.times[0] - interval_s, rows.low)
    steps = list(map(sub, rows.times, (before, *rows.times)))
    breaks = [at for at, step in enumerate(steps) if step != interval_s]
    _check_times(rows.times, steps, breaks or [0], interval_s, path, number)
    first = before + interval_s
    if not breaks:
        return Columns(first, interval_s, *rows[1:])
    filled: list[list[Any]] = [[], [], [], []]
    for begin, end in pairwise(dict.fromkeys((0, *breaks, len(steps)))):
        missing = steps[begin] // interval_s - 1
        price = rows.closes[begin - 1] if begin else flat
        for column, source in zip(filled, rows[3:], strict=True):
            column += [price] * missing
            column += source[begin:end]
    return Columns(first, interval_s, min(rows.low, flat), max(rows.high, flat), *filled)


def _check_times(
    times: list[int], steps: list[int], breaks: list[int], interval_s: int, path: Path, number: int
) -> None:
    """Raise BadDataError unless times only leave out candles; `breaks` are where they may."""
    repeated = 0
    for before, at in pairwise((0, *breaks)):
        time, step = times[at], steps[at]
        mixed = step == steps[before] >= 4 * interval_s and at == before + 1
        repeated = repeated + 1 if mixed else 0
        wrong = ""
        if time % interval_s or time < 0:
            wrong = f"is not the start of a candle of {interval_s // 60} min"
        elif step <= 0:
            wrong = f"comes after {times[at] - step}" if step else "is there twice"
        elif step > max(GAP_MAX_S, 4 * interval_s):
            wrong = f"leaves a hole of {step // 86400} days before"
        elif repeated == _MIXED_ROWS:
            wrong = f"and those before are {step // 60} minutes apart, not {interval_s // 60}"
        if wrong:
            raise BadDataError(f"{path}:{number + at}: time {time} {wrong}")
