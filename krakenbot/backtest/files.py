"""Files of candles as columns: Kraken's OHLCVT CSV (plain or .gz) and saved OHLC answers.

A file is read in blocks, so memory does not grow with its length. Missing intervals are filled
flat, as the live API has them. Anything odd is a BadDataError.

A column holds whole numbers of 1e-10 or, where all of them have one form like 000.00, the texts
of the file: these compare as their numbers do, and few of them are ever needed as numbers.
"""

import gzip
import json
import re
import zlib
from array import array
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, pairwise
from math import gcd, inf
from operator import sub
from pathlib import Path
from typing import Any, NamedTuple

from krakenbot.errors import UnansweredError
from krakenbot.model import Candle

BLOCK_BYTES = 1 << 16
GAP_MAX_S = 31 * 86400  # More is a hole that no flat price may paper over.
DIGITS = 10
INTERVALS = (1, 5, 15, 30, 60, 240, 720, 1440, 10080, 21600)
_MIXED_ROWS = 16
_VOLUMES = re.compile(rb"(?:\d++(?:\.\d++)?+(?:e-\d++|E\+\d)?+,)*+")  # Like 5e-07, 1E+1.
_ZEROS = bytes.maketrans(b"123456789", b"000000000")

Price = int | bytes
Column = Sequence[Any]  # Of prices; those of one column are of one kind and compare.


class BadDataError(ValueError):
    """A file that no number may be computed from. Names the file and, where there is one, line."""


class Columns(NamedTuple):
    """Candles without gaps, the first one starting at `time`. No price is beyond low and high."""

    time: int
    interval_s: int
    low: int
    high: int
    opens: Column
    highs: Column
    lows: Column
    closes: Column

    @property
    def end(self) -> int:
        return self.time + len(self.closes) * self.interval_s

    def cut(self, begin: int, end: int) -> "Columns":
        """Return the candles from number `begin` up to `end`."""
        if begin == 0 and end >= len(self.closes):
            return self
        columns = [column[begin:end] for column in self[4:]]
        return _part(self.time + begin * self.interval_s, self.interval_s, *columns)

    def joined(self, after: "Columns") -> "Columns":
        """Return these candles and those that follow them."""
        low, high = min(self.low, after.low), max(self.high, after.high)
        pairs: Iterable[tuple[Column, Column]] = zip(self[4:], after[4:], strict=True)
        if _form(self.closes) != _form(after.closes):
            pairs = ((numbers(a), numbers(b)) for a, b in pairs)
        return Columns(self.time, self.interval_s, low, high, *([*a, *b] for a, b in pairs))


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


def numbers(column: Column) -> Sequence[int]:
    """Return `units` of every price of a column."""
    if not column or isinstance(column[0], int):
        return column
    zeros = b"0" * (DIGITS + 1 - len(column[0]) + column[0].find(b"."))
    texts = (zeros + b",").join(column) + zeros
    return list(map(int, texts.replace(b".", b"").split(b",")))


def columns_of(candles: Sequence[Candle], interval_s: int) -> Columns:
    """Return candles without gaps as columns."""
    prices = ([units(price) for price in candle[1:5]] for candle in candles)
    return _part(candles[0].time, interval_s, *zip(*prices, strict=True))


def read(paths: Sequence[Path], interval_s: int, notes: list[str]) -> Iterator[Columns]:
    """Yield the candles of files of one interval in order of time, each a part of the whole.

    Rows that an earlier file had already are left out; `notes` gets a line about them.
    """
    last: tuple[int, Price] | None = None
    begins: list[tuple[float, Path]] = sorted((next(_blocks(path))[1][0], path) for path in paths)
    known = array("q")  # The times that a later file may have as well.
    for (_, path), (later, _) in pairwise([*begins, (inf, Path())]):
        skipped, ended = 0, last[0] if last else -1
        for number, times, rows in _blocks(path):
            old = sum(time <= ended for time in times) if times[0] <= ended else 0
            skipped += old
            had = known[bisect(known, times[0] - 1) : bisect(known, times[old - 1])] if old else ()
            if odd := {*times[:old]}.difference(had):
                line = f"{path}:{number + times.index(min(odd))}: time {min(odd)}"
                raise BadDataError(f"{line} is in a gap of a file that begins earlier")
            if old < len(times):
                times, rows = times[old:], rows.cut(old, len(times))
                yield _filled(times, rows, interval_s, last, path, number + old)
                last = times[-1], rows.closes[-1]
                if times[-1] >= later:
                    known.extend(time for time in times if time >= later)
        if skipped:
            notes.append(f"{path}: {skipped} rows are in an earlier file already")


def aggregate(parts: Iterable[Columns], interval_s: int) -> Iterator[Columns]:
    """Yield candles of another interval; incomplete ones at both ends are left out."""
    rest: Columns | None = None
    for part in parts:
        step, odd = divmod(interval_s, part.interval_s)
        if odd:
            given, wanted = part.interval_s // 60, interval_s // 60
            raise BadDataError(f"candles of {wanted} min cannot be made from those of {given} min")
        if step == 1:
            yield part
            continue
        part = part if rest is None else rest.joined(part)
        begin = -part.time // part.interval_s % step
        end = begin + max(len(part.closes) - begin, 0) // step * step
        if begin < end:
            opens, highs, lows, closes = (
                [column[at:end:step] for at in range(begin, begin + step)] for column in part[4:]
            )
            high, low = list(map(max, *highs)), list(map(min, *lows))
            time = part.time + begin * part.interval_s
            yield _part(time, interval_s, opens[0], high, low, closes[-1])
        rest = part.cut(end, len(part.closes)) if end < len(part.closes) else None


def interval_of(path: Path) -> int:
    """Return the seconds between the candles of a file: by its name, else by its first rows."""
    minutes = _stem(path).rpartition("_")[2]
    if minutes.isdecimal() and int(minutes) in INTERVALS:
        return int(minutes) * 60
    step = gcd(*(b - a for a, b in pairwise(next(_blocks(path))[1])))
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


def _part(time: int, interval_s: int, *columns: Column) -> Columns:
    low, high = units(min(columns[2])), units(max(columns[1]))
    return Columns(time, interval_s, low, high, *columns)


def _form(column: Column) -> bytes:
    """Return what the texts of a column look like, nothing for one of numbers."""
    return column[0].translate(_ZEROS) if isinstance(column[0], bytes) else b""


def _blocks(path: Path) -> Iterator[tuple[int, list[int], Columns]]:
    """Yield blocks of rows: the number of the first line, the times, the columns. At least one."""
    if ".json" in path.suffixes:
        yield 1, *_answer(path)[1:]
        return
    number = 1
    try:
        for block in _lines(path):
            block = block.replace(b"\r\n", b"\n") if b"\r" in block else block
            times, columns = _rows(block) or _slow_rows(block, path, number)
            yield number, times, columns
            number += len(times)
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


def _rows(block: bytes) -> tuple[list[int], Columns] | None:
    """Return the rows of lines whose prices are texts of one form, None for any others."""
    fields = block[:-1].replace(b"\n", b",").split(b",")
    times, *columns, volumes, trades = (fields[at::7] for at in range(7))
    count = len(trades)
    if not 7 * count == len(fields) == 7 * block.count(b"\n"):
        return None
    texts = columns
    for attempt in range(3):
        prices = b"," + b",".join(chain(*columns))
        form = b"," + _form(columns[0])
        # Too many fields in one line and too few in another would be of another form as well.
        if len(form) <= 21 and prices.translate(_ZEROS) == form * 4 * count:
            break
        # Zeros at the end are not always written, those before 999.9 near 1000.0 never.
        if attempt:
            whole = min(max(text.find(b".") for text in chain(*texts)), 20)
            texts = [[b"0" * (whole - text.find(b".")) + text for text in part] for part in texts]
        width = min(max(map(len, chain(*texts))), 20)
        columns = [[text.ljust(width, b"0") for text in part] for part in texts]
    else:
        return None
    point = form.find(b".")
    if (
        form.strip(b",0") != b"."
        or point < 2
        or len(form) > point + 1 + DIGITS
        or not (all(times) and all(trades) and b"".join((*times, *trades)).isdigit())
        or max(map(len, times)) > 12
        or not _VOLUMES.fullmatch(b",".join(volumes) + b",")
        or not _in_order(prices, len(form), count)
    ):
        return None
    rows = _part(0, 0, *columns)
    return (list(map(int, times)), rows) if rows.low else None


def _in_order(prices: bytes, width: int, count: int) -> bool:
    """Return whether low <= open, close <= high in each row, of texts of one form by column.

    Each column is one large number. A bit is set before each price of the minuend: to subtract a
    larger price would borrow it.
    """
    size = width * count
    opens, highs, lows, closes = (
        int.from_bytes(prices[at : at + size], "big") for at in range(0, 4 * size, size)
    )
    bits = int.from_bytes((b"\x80" + bytes(width - 1)) * count, "big")
    pairs = ((highs, opens), (highs, closes), (opens, lows), (closes, lows))
    return all((more | bits) - less & bits == bits for more, less in pairs)


def _slow_rows(block: bytes, path: Path, number: int) -> tuple[list[int], Columns]:
    """Return the rows of lines in any form. Raises BadDataError about the first bad one."""
    times, columns = [], []
    for at, line in enumerate(block.splitlines()):
        try:
            time, *texts, volume, trades = line.decode("ascii").split(",")
            o, high, low, close = prices = [units(text) for text in texts]
            in_order = 0 < low <= o <= high >= close >= low
            if not in_order or not 0 <= float(volume) < inf or int(trades) < 0 or b"_" in line:
                raise ValueError
            times.append(int(time))
            columns.append(prices)
        except (ValueError, ArithmeticError):
            raise BadDataError(
                f"{path}:{number + at}: {line[:80].decode('ascii', 'replace')!r} is not a candle: "
                "seven columns, time, open, high, low, close, volume, trades; prices above zero, "
                f"low <= open, close <= high, at most {DIGITS} decimals"
            ) from None
    return times, _part(0, 0, *zip(*columns, strict=True))


def _answer(path: Path) -> tuple[str, list[int], Columns]:
    """Return the key of a saved OHLC answer, and times and columns of its finished candles."""
    from krakenbot.candles import parse_rows

    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            answer = json.loads(file.read(1 << 24), parse_float=Decimal)
        result = answer.get("result", answer)
        candles = parse_rows(result, 60)[:-1]
        key = next(key for key in result if key != "last")
        return key, [candle.time for candle in candles], columns_of(candles, 0)
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        LookupError,
        AttributeError,
        StopIteration,
        ArithmeticError,
        RecursionError,
        UnansweredError,
    ) as error:
        raise BadDataError(f"{path}: not a saved OHLC answer: {error}") from error


def _filled(
    times: list[int],
    rows: Columns,
    interval_s: int,
    last: tuple[int, Price] | None,
    path: Path,
    number: int,
) -> Columns:
    """Return the rows with what is missing before and between them filled flat."""
    before, flat = last or (times[0] - interval_s, rows.closes[0])
    first = before + interval_s
    if last and times == list(range(first, first + len(times) * interval_s, interval_s)):
        return rows._replace(time=first, interval_s=interval_s)
    steps = list(map(sub, times, (before, *times)))
    breaks = [at for at, step in enumerate(steps) if step != interval_s]
    columns: Sequence[Column] = rows[4:]
    if _form([flat]) != _form(rows.closes):
        flat, columns = units(flat), [*map(numbers, columns)]
    filled: list[list[Price]] = [[], [], [], []]
    repeated = 0
    for begin, end in pairwise(dict.fromkeys((0, *breaks, len(steps)))):
        step = steps[begin]
        repeated = repeated + 1 if begin and steps[begin - 1] == step >= 4 * interval_s else 0
        if wrong := _wrong_time(times[begin], step, interval_s, repeated):
            raise BadDataError(f"{path}:{number + begin}: time {times[begin]} {wrong}")
        price = columns[3][begin - 1] if begin else flat
        for column, source in zip(filled, columns, strict=True):
            column += [price] * (step // interval_s - 1)
            column += source[begin:end]
    return _part(first, interval_s, *filled)


def _wrong_time(time: int, step: int, interval_s: int, repeated: int) -> str | None:
    """Return what is wrong with a time so long after the one before, None if it may be so."""
    if time % interval_s or not 0 <= time < 1 << 33:
        return f"is not the start of a candle of {interval_s // 60} min"
    if step <= 0:
        return f"comes after {time - step}" if step else "is there twice"
    if step > max(GAP_MAX_S, 4 * interval_s):
        return f"leaves a hole of {step // 86400} days before"
    if repeated == _MIXED_ROWS:
        return f"and those before are {step // 60} minutes apart, not {interval_s // 60}"
    return None
