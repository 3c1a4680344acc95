"""Files of candles, read as columns of numbers.

These are Kraken's OHLCVT files (CSV, .csv.gz, or the zip from support.kraken.com 360047124832), CSV
with a header line, or saved OHLC answers. Files are read in blocks, so the memory needed does not
grow with their length. Missing candles are filled flat, as the bot does.

A price of more than 15 digits or 18 decimals is refused; a volume of more digits is rounded.
"""

import gzip
import json
import os
import re
import stat
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain, pairwise
from math import gcd, inf
from operator import sub
from pathlib import Path
from typing import Any

from krakenbot.backtest.columns import BadDataError, Columns, candles_of
from krakenbot.format import moment
from krakenbot.pairs import plain

_JSON = ".json"  # Saved answers, also as .json.gz.
BLOCK_BYTES = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ANSWER_BYTES = 1 << 24  # The most that is read of a saved answer.
GAP_MAX_S = 31 * 86400  # A longer gap must not be filled with flat prices.
DIGITS = 15
DECIMALS_MAX = 18  # Of a pair, see `parse_rules`.
INTERVALS = (1, 5, 15, 30, 60, 240, 720, 1440, 10080, 21600)
_MIXED_ROWS = 16  # More equal steps than this show that a file is of a longer interval.
_MILLISECONDS = 10**11  # As seconds this is the year 5138.
_TIME_NAMES = ("time", "timestamp", "unix", "date", "datetime")
_UNIT_MINUTES = {"": 1, "m": 1, "min": 1, "h": 60, "d": 1440, "w": 10080}
Source = Path | zipfile.Path  # A file, or one in a zip.
_DAMAGED = OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError
# PAIR_MINUTES, and variants by browsers and people: `XBTEUR_60 (1)`, `BTC_USD_1h`.
_NAME = re.compile(
    r"([a-z0-9.]+?(?:[-_][a-z]{3,5})?)[-_](\d+)(m|min|h|d|w|)(?![a-z0-9]).*", re.IGNORECASE
)


Names = Sequence[str]
_COLUMNS: Names = ("time", "open", "high", "low", "close", "volume")
_KRAKEN: Names = (*_COLUMNS, "trades")
_ANSWER: Names = (*_COLUMNS[:5], "average", "volume", "trades")


def sources_of(path: Path) -> Sequence[Source]:
    """Return the files of candles at a path: the file itself, or those in the folder or zip.

    Raises BadDataError when any of them might be missing, as in a folder that cannot be read.
    """
    inside: Sequence[Source]
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            walked = os.walk(path, onerror=_raise)
            inside = sorted(Path(place, name) for place, _, names in walked for name in names)
        elif not stat.S_ISREG(kind):
            raise BadDataError(f"{path}: not a regular file; candles are read more than once")
        elif path.suffix.lower() == ".zip":
            archive = zipfile.ZipFile(path)
            inside = [zipfile.Path(archive, name) for name in sorted(archive.namelist())]
        else:
            return [path]
    except _DAMAGED as error:
        where, why = (getattr(error, name, None) for name in ("filename", "strerror"))
        raise BadDataError(f"{where or path}: {why or error}") from error
    found = (one for one in inside if one.name.lower().endswith((".csv", ".csv.gz")))
    return [one for one in found if one.is_file() and not one.name.startswith(".")]


def _raise(error: OSError) -> None:
    raise error


def pair_of(source: Source) -> str | None:
    """Return the pair as a name like PAIR_MINUTES.csv or a saved answer spells it, or None."""
    return _named(source)[0]


def interval_of(source: Source) -> int:
    """Return a file's interval in seconds, from its name or else from its first rows.

    Raises BadDataError when its times fit no interval of Kraken's.
    """
    if named := _named(source)[1]:
        return named
    step = gcd(*(b - a for a, b in pairwise(next(_blocks(source))[1].times)))
    if step // 60 not in INTERVALS or step % 60:
        raise BadDataError(f"{source}: the times fit no interval that Kraken has")
    return step


def read(sources: Sequence[Source], interval_s: int, notes: list[str]) -> Iterator[Columns]:
    """Yield the candles of files of one interval, in parts, in order of time and without gaps.

    Rows that an earlier file has too are left out, and `notes` gets a line about them. Raises
    BadDataError where a file cannot be used or two files disagree.
    """
    last: tuple[int, float] | None = None
    begins = sorted((next(_blocks(file))[1].times[0], at, file) for at, file in enumerate(sources))
    known: dict[int, tuple[str, str]] = {}  # Rows that a later file may have too.
    for (*_, source), (later, *_) in pairwise([*begins, (inf, 0, Path())]):
        skipped, ended = 0, last[0] if last else -1
        for number, rows in _blocks(source):
            if old := bisect_right(rows.times, ended):
                for time, where, words in _in_words(rows.cut(0, old), source, number):
                    _check_known(time, where, words, known)
                skipped += old
                if old == len(rows.times):
                    continue
                rows, number = rows.cut(old), number + old
            yield _filled(rows, interval_s, last, source, number)
            last = rows.times[-1], rows.closes[-1]
            if rows.times[-1] >= later:
                for time, where, words in _in_words(rows, source, number):
                    known[time] = where, words
        if skipped:
            notes.append(f"{source}: {skipped} rows are in an earlier file already")


def aggregate(parts: Iterable[Columns], interval_s: int) -> Iterator[Columns]:
    """Yield the candles of a longer interval; incomplete ones at both ends are left out.

    As in Kraken's own candles, the open is the first price traded, not the previous close. Raises
    BadDataError when the longer interval is not a multiple of the shorter.
    """
    rest: Columns | None = None
    for part in parts:
        step, odd = divmod(interval_s, part.interval_s)
        if odd:
            given, wanted = part.interval_s // 60, interval_s // 60
            raise BadDataError(f"candles of {wanted} min cannot be made from those of {given} min")
        if step == 1:
            yield part
            continue
        part = rest.joined(part) if rest else part
        count = len(part.times)
        begin = -part.times[0] // part.interval_s % step
        end = begin + max(count - begin, 0) // step * step
        rest = part.cut(end) if end < count else None
        if begin < end:
            rows = [_larger(part.cut(at, at + step)) for at in range(begin, end, step)]
            times = range(part.times[begin], part.times[end - 1] + 1, interval_s)
            yield Columns(interval_s, times, *zip(*rows, strict=True))


def _larger(part: Columns) -> tuple[float, ...]:
    """Return open, high, low, close and volume of the candles taken as one."""
    # Before the first trade there is only the previous close.
    first = next((at for at, volume in enumerate(part.volumes) if volume), 0)
    high, low = max(part.highs[first:]), min(part.lows[first:])
    return part.opens[first], high, low, part.closes[-1], sum(part.volumes)


def _open(source: Source) -> Any:
    if source.name.lower().endswith(".gz"):
        return gzip.open(source if isinstance(source, Path) else source.open("rb"))
    return source.open("rb")


def _named(source: Source) -> tuple[str | None, int]:
    """Return the pair and the interval in seconds that a file's name has, else None and 0."""
    if _JSON in source.name.lower():
        return _answer(source)[0], 0
    found = _NAME.fullmatch(source.name)
    minutes = int(found[2]) * _UNIT_MINUTES[found[3].lower()] if found else 0
    return (found[1], minutes * 60) if found and minutes in INTERVALS else (None, 0)


def _blocks(source: Source) -> Iterator[tuple[int, Columns]]:
    """Yield the rows in blocks, at least one: the number of its first line, and its columns."""
    if _JSON in source.name.lower():
        yield 1, _answer(source)[1]
        return
    number, names, rows = 1, _KRAKEN, None
    try:
        with _open(source) as file:
            while block := file.read(BLOCK_BYTES):
                block = (block + file.readline(BLOCK_BYTES)).removeprefix(_BYTE_ORDER_MARK).rstrip()
                if number == 1 and re.match(rb"\"?[A-Za-z]", block):
                    line, _, block = block.partition(b"\n")
                    number, names = 2, _header(line, source)
                if block:
                    rows = _parse_or_refuse(block + b"\n", names, source, number)
                    yield number, rows
                    number += len(rows.times)
    except _DAMAGED as error:
        words = getattr(error, "strerror", None) or error
        after = f":{number}: damaged after this line" if number > 1 else ""
        raise BadDataError(f"{source}{after}: {words}") from error
    if rows is None:
        raise BadDataError(f"{source}: no candles")


def _header(line: bytes, source: Source) -> Names:
    """Return the names of the columns in a header line, that of the times as `time`."""
    names = [name.strip(' "\r').lower() for name in line.decode("utf-8", "replace").split(",")]
    time = next((name for name in _TIME_NAMES if name in names), "")
    names = ["time" if name == time else name for name in names]
    if missing := [name for name in _COLUMNS if name not in names]:
        raise BadDataError(f"{source}:1: {line[:80]!r} has no column {', '.join(missing)}")
    return names


def _parse_or_refuse(block: bytes, names: Names, source: Source, number: int) -> Columns:
    """Return whole lines, the first of which has this number. BadDataError names a wrong one."""
    try:
        return _parse(block, names)
    except (ValueError, ArithmeticError) as odd:
        for at, line in enumerate(block.splitlines(), number):
            try:
                _parse(line + b"\n", names)
            except (ValueError, ArithmeticError) as error:
                shown = f"{line[:80].decode('ascii', 'replace')!r} is not a candle: {error}"
                raise BadDataError(f"{source}:{at}: {shown}") from None
        why = "do lines end in CR alone, or are some times in seconds and others not?"
        raise BadDataError(
            f"{source}:{number}: these lines do not go together ({why}): {odd}"
        ) from None


def _parse(block: bytes, names: Names) -> Columns:
    """Return whole lines as columns. Raises ValueError when one of them is not a candle."""
    if b"\r" in block or b'"' in block:
        block = block.replace(b"\r\n", b"\n").replace(b'"', b"")
    fields = block.replace(b"\n", b",").split(b",")
    width = len(names)
    if len(fields) != width * block.count(b"\n") + 1:
        raise ValueError(f"not {width} columns")
    moments, *texts = (fields[names.index(name) : -1 : width] for name in _COLUMNS)
    if b"_" in block and any(b"_" in text for text in chain(moments, *texts)):
        raise ValueError("an underscore in a number")
    try:
        times = list(map(int, moments))
    except ValueError:
        times = list(map(_moment, moments))
    if times[0] >= _MILLISECONDS:
        if times[0] >= 1000 * _MILLISECONDS or any(time % 1000 for time in times):
            raise ValueError("times must be unix seconds, or milliseconds that are whole seconds")
        times = [time // 1000 for time in times]
    numbers = [list(map(float, column)) for column in texts]
    for opened, high, low, close, volume in zip(*numbers, strict=True):
        if not (0.0 < low <= opened <= high < 1e15 and low <= close <= high):
            raise ValueError("prices must be above 0, open and close between low and high")
        if not 0.0 <= volume < inf:
            raise ValueError("a volume must be a number from 0")
    longest = max(max(map(len, column)) for column in texts[:4])
    if longest > DIGITS + 1 or b"e" in block or b"E" in block:
        for text in chain(*texts[:4]):
            _, digits, exponent = Decimal(text.decode()).normalize().as_tuple()
            if len(digits) > DIGITS or int(exponent) < -DECIMALS_MAX:
                raise ValueError(f"more than {DIGITS} digits or {DECIMALS_MAX} decimals")
    return Columns(0, times, *numbers)


def _moment(text: bytes) -> int:
    """Return unix seconds of an ISO 8601 date; without a time zone it is UTC."""
    moment = datetime.fromisoformat(text.decode("ascii"))
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())


def _answer(source: Source) -> tuple[str, Columns]:
    """Return the pair's key in a saved OHLC answer, and the finished candles."""
    try:
        with _open(source) as file:
            answer = json.loads(file.read(ANSWER_BYTES), parse_float=str)
        if errors := answer.get("error"):
            raise ValueError(f"Kraken answered {', '.join(errors)}")
        result = answer.get("result", answer)
        key, rows = next((key, rows) for key, rows in result.items() if key != "last")
        if len(rows) < 2:
            raise ValueError("no finished candle")
        lines = "".join(",".join(map(str, row)) + "\n" for row in rows[:-1])
        return key, _parse(lines.encode(), _ANSWER)
    except (LookupError, AttributeError, TypeError, StopIteration) as error:
        none = "it has no candles of a pair"
        raise BadDataError(f"{source}: not a saved OHLC answer: {none}") from error
    except (*_DAMAGED, ValueError, ArithmeticError) as error:
        raise BadDataError(f"{source}: not a saved OHLC answer: {error}") from error


def _in_words(rows: Columns, source: Source, number: int) -> Iterator[tuple[int, str, str]]:
    """Yield the time, the place and the numbers of each row; `number` is the first one's line."""
    for line, (time, *numbers) in enumerate(candles_of(rows), number):
        yield time, f"{source}:{line}", " ".join(map(plain, numbers))


def _check_known(time: int, where: str, words: str, known: dict[int, tuple[str, str]]) -> None:
    """Raise BadDataError unless an earlier file has the same candle."""
    if time not in known:
        raise BadDataError(f"{where}: {moment(time)} is in a gap of a file that begins earlier")
    if known[time][1] != words:
        what = f"the candle of {moment(time)} (open high low close volume)"
        both = f"{' has '.join(known[time])}, {where} has {words}"
        raise BadDataError(f"two files disagree about {what}: {both}")


def _filled(
    rows: Columns, interval_s: int, last: tuple[int, float] | None, source: Source, number: int
) -> Columns:
    """Return the rows, with candles missing before and between them filled flat.

    `last` has the time and the close before them; `number` is that of the first line. Raises
    BadDataError unless the times are starts of candles, in order and without a long gap.
    """
    times = rows.times
    before, flat = last or (times[0] - interval_s, rows.opens[0])
    every = range(before + interval_s, times[-1] + 1, interval_s)
    if last and times == [*every]:
        return rows._replace(interval_s=interval_s, times=every)
    steps = list(map(sub, times, (before, *times)))
    breaks = [at for at, step in enumerate(steps) if step != interval_s]
    for at in breaks if last else (0, *breaks):
        time, step, newest = times[at], steps[at], steps[max(0, at - _MIXED_ROWS) : at + 1]
        if time % interval_s or not 0 <= time < 1 << 33:
            wrong = f"is not the start of a candle of {interval_s // 60} min"
        elif step <= 0:
            wrong = f"comes after {time - step}" if step else "appears twice"
        elif step > max(GAP_MAX_S, 4 * interval_s):
            wrong = f"follows a gap of {step // 86400} days"
        elif step >= 4 * interval_s and newest.count(step) > _MIXED_ROWS:
            wrong = f"and those before are {step // 60} minutes apart, not {interval_s // 60}"
        else:
            continue
        raise BadDataError(f"{source}:{number + at}: time {time} {wrong}")
    filled = [list(column) for column in rows.numbers]
    for at in reversed(breaks):
        price = rows.closes[at - 1] if at else flat
        for column, value in zip(filled, (price, price, price, price, 0.0), strict=True):
            column[at:at] = [value] * (steps[at] // interval_s - 1)
    return Columns(interval_s, every, *filled)
