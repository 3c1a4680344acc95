"""Files of candles, read as columns of numbers.

They may be Kraken's OHLCVT files (CSV, .csv.gz, or the zip from support.kraken.com 360047124832),
CSV with a header line, or saved OHLC answers. Files are read in blocks, so memory does not grow
with their length. Missing intervals are filled flat, as in the live API.

Prices are floats. With at most 15 digits floats compare as the decimals in the file do, and `exact`
restores those; a file with longer prices is refused. Volumes stay as text until they are needed.
"""

import gzip
import json
import re
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain, pairwise
from math import gcd, inf
from operator import le, sub
from pathlib import Path
from typing import Any, NamedTuple

from krakenbot.model import Candle
from krakenbot.pairs import plain

BLOCK_BYTES = 1 << 16
ANSWER_BYTES = 1 << 24
GAP_MAX_S = 31 * 86400  # A longer gap must not be filled with flat prices.
DIGITS = 15
INTERVALS = (1, 5, 15, 30, 60, 240, 720, 1440, 10080, 21600)
_MIXED_ROWS = 16
_MILLISECONDS = 10**11  # As seconds this is the year 5138.
_TIME_NAMES = ("time", "timestamp", "unix", "date", "datetime")
_UNIT_MINUTES = {"": 1, "m": 1, "min": 1, "h": 60, "d": 1440, "w": 10080}
NO_TRADES = b"0"
_Numbers = tuple[Any, ...]
Source = Path | zipfile.Path  # A file, or one in a zip.
_DAMAGED = OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError
_ODD = ValueError, LookupError, AttributeError, TypeError, StopIteration, ArithmeticError
_VOLUMES = re.compile(rb"(?:\d++(?:\.\d*+)?+(?:[eE][-+]?\d++)?+,)*+")
_SOME_ZERO = re.compile(rb",0[.0]*+(?:[eE][-+]?\d++)?+,")
# PAIR_MINUTES, and variants from browsers and people: `XBTEUR_60 (1)`, `BTC_USD_1h`.
_NAME = re.compile(
    r"([a-z0-9.]+?(?:[-_][a-z]{3,5})?)[-_](\d+)(m|min|h|d|w|)(?![a-z0-9]).*", re.IGNORECASE
)


class BadDataError(ValueError):
    """Data that must not be used. The message names the file and, if there is one, the line."""


class Columns(NamedTuple):
    """Candles by column. `times` are their starts, prices floats, volumes numbers or text.

    A candle without trades has the volume NO_TRADES or 0.0. `read` and `aggregate` leave no gaps.
    """

    interval_s: int
    times: Sequence[int]
    opens: Sequence[float]
    highs: Sequence[float]
    lows: Sequence[float]
    closes: Sequence[float]
    volumes: Sequence[Any]

    @property
    def end(self) -> int:
        return self.times[-1] + self.interval_s

    @property
    def numbers(self) -> tuple[Sequence[Any], ...]:
        return self.opens, self.highs, self.lows, self.closes, self.volumes

    def is_traded(self, at: int) -> bool:
        return self.volumes[at] not in (NO_TRADES, 0.0)

    def untraded(self, begin: int) -> int:
        """Return how many candles from number `begin` on had no trades."""
        volumes = self.volumes[begin:]
        return volumes.count(NO_TRADES) + volumes.count(0.0)

    def cut(self, begin: int, end: int) -> "Columns":
        """Return the candles from number `begin` up to `end`."""
        numbers = (column[begin:end] for column in self.numbers)
        return Columns(self.interval_s, self.times[begin:end], *numbers)

    def joined(self, after: "Columns") -> "Columns":
        """Return these candles and those after them; there must be no gap between."""
        both = zip(self.numbers, after.numbers, strict=True)
        times = range(self.times[0], after.end, self.interval_s)
        return Columns(self.interval_s, times, *([*a, *b] for a, b in both))


class _Form(NamedTuple):
    """Which columns of a file are time, open, high, low, close and volume."""

    width: int
    places: tuple[int, ...]


_KRAKEN = _Form(7, (0, 1, 2, 3, 4, 5))  # The seventh is the number of trades.
_ANSWER = _Form(8, (0, 1, 2, 3, 4, 6))  # The sixth is an average price.


def exact(number: float | bytes) -> Decimal:
    """Return the number exactly as in the file."""
    return Decimal(number.decode() if isinstance(number, bytes) else repr(number))


def columns_of(candles: Sequence[Candle], interval_s: int) -> Columns:
    """Return candles without gaps as columns."""
    times, *numbers = zip(*candles, strict=True)
    return Columns(interval_s, times, *(list(map(float, column)) for column in numbers))


def candles_of(part: Columns) -> Iterator[Candle]:
    """Yield the candles with the exact numbers of the file."""
    for time, *numbers in zip(part.times, *part.numbers, strict=True):
        yield Candle(time, *map(exact, numbers))


def sources_of(path: Path) -> Sequence[Source]:
    """Return the candle files at a path: itself, or those inside a folder or zip."""
    inside: list[Source]
    if path.is_dir():
        inside = [found for found in sorted(path.rglob("*")) if found.is_file()]
    elif path.suffix == ".zip":
        try:
            archive = zipfile.ZipFile(path)
        except _DAMAGED as error:
            raise BadDataError(f"{path}: {error}") from error
        inside = [zipfile.Path(archive, name) for name in sorted(archive.namelist())]
    else:
        return [path]
    kinds = ".csv", ".csv.gz"
    return [one for one in inside if one.name.endswith(kinds) and not one.name.startswith(".")]


def pair_of(source: Source) -> str | None:
    """Return the pair in a name like PAIR_MINUTES.csv or in a saved answer, or None."""
    return _answer(source)[0] if _is_answer(source) else _named(source)[0]


def interval_of(source: Source) -> int:
    """Return a file's interval in seconds, from its name or else from its first rows."""
    if not _is_answer(source) and (named := _named(source)[1]):
        return named
    step = gcd(*(b - a for a, b in pairwise(next(_blocks(source))[1].times)))
    if step // 60 not in INTERVALS or step % 60:
        raise BadDataError(f"{source}: its times fit no interval that Kraken has")
    return step


def read(sources: Sequence[Source], interval_s: int, notes: list[str]) -> Iterator[Columns]:
    """Yield the candles of files of one interval, in parts and in order of time.

    Rows already in an earlier file are left out, with a line in `notes`. Raises BadDataError where
    files disagree.
    """
    last: tuple[int, float] | None = None
    begins = sorted((next(_blocks(one))[1].times[0], at, one) for at, one in enumerate(sources))
    known: dict[int, tuple[str, _Numbers]] = {}  # Rows that a later file may have too.
    for (*_, source), (later, *_) in pairwise([*begins, (inf, 0, Path())]):
        skipped, ended = 0, last[0] if last else -1
        for number, rows in _blocks(source):
            times = rows.times
            old = bisect_right(times, ended) if times[0] <= ended else 0
            for at in range(old):
                numbers = tuple(column[at] for column in rows.numbers)
                _agree(f"{source}:{number + at}", times[at], numbers, known)
            skipped += old
            if old == len(times):
                continue
            rows, number = rows.cut(old, len(times)), number + old
            yield _filled(rows, interval_s, last, source, number)
            last = rows.times[-1], rows.closes[-1]
            if rows.times[-1] >= later:
                for at, (time, *row) in enumerate(zip(rows.times, *rows.numbers, strict=True)):
                    known[time] = f"{source}:{number + at}", tuple(row)
        if skipped:
            notes.append(f"{source}: {skipped} rows are in an earlier file already")


def aggregate(parts: Iterable[Columns], interval_s: int) -> Iterator[Columns]:
    """Yield candles of a longer interval; incomplete ones at both ends are left out.

    As in Kraken's own candles, the open is the first price traded, not the previous close.
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
        part = part if rest is None else rest.joined(part)
        count = len(part.times)
        begin = -part.times[0] // part.interval_s % step
        end = begin + max(count - begin, 0) // step * step
        rest = part.cut(end, count) if end < count else None
        if begin < end:
            yield _larger(part, range(begin, end, step), interval_s)


def _larger(part: Columns, starts: range, interval_s: int) -> Columns:
    """Return one candle for each `starts.step` candles of the part."""
    opens, highs, lows, closes, volumes = part.numbers
    rows = []
    for start in starts:
        stop = start + starts.step
        # Before the first trade there is only the previous close.
        first = next((at for at in range(start, stop) if part.is_traded(at)), start)
        high, low = max(highs[first:stop]), min(lows[first:stop])
        volume = sum(map(float, volumes[first:stop]))
        rows.append((opens[first], high, low, closes[stop - 1], volume))
    begin = part.times[starts[0]]
    times = range(begin, begin + len(starts) * interval_s, interval_s)
    return Columns(interval_s, times, *zip(*rows, strict=True))


def _is_answer(source: Source) -> bool:
    return ".json" in source.name


def _open(source: Source) -> Any:
    if isinstance(source, Path) and source.suffix == ".gz":
        return gzip.open(source)
    return source.open("rb")


def _named(source: Source) -> tuple[str | None, int]:
    """Return pair and interval in seconds from a file's name; None and 0 if it has none."""
    found = _NAME.fullmatch(source.name.removesuffix(".gz").removesuffix(".csv"))
    minutes = int(found[2]) * _UNIT_MINUTES[found[3].lower()] if found else 0
    return (found[1], minutes * 60) if found and minutes in INTERVALS else (None, 0)


def _blocks(source: Source) -> Iterator[tuple[int, Columns]]:
    """Yield at least one block of rows: the number of its first line, and its columns."""
    if _is_answer(source):
        yield 1, _answer(source)[1]
        return
    number, form = 1, _KRAKEN
    try:
        for block in _lines(source):
            if number == 1 and re.match(rb"\"?[A-Za-z]", block):
                names, _, block = block.partition(b"\n")
                number, form = 2, _header(names, source)
                if not block:
                    continue
            try:
                rows = _parse(block, form)
            except (ValueError, ArithmeticError):
                raise _first_wrong(block, form, source, number) from None
            yield number, rows
            number += len(rows.times)
    except _DAMAGED as error:
        words = getattr(error, "strerror", None) or error
        after = f":{number}: damaged after this line" if number > 1 else ""
        raise BadDataError(f"{source}{after}: {words}") from error
    if number < 3 and (number == 1 or form is not _KRAKEN):
        raise BadDataError(f"{source}: no candles")


def _lines(source: Source) -> Iterator[bytes]:
    """Yield a file in pieces of whole lines, without byte order mark and blank last lines."""
    with _open(source) as file:
        rest = file.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        while block := file.read(BLOCK_BYTES):
            cut = rest.rfind(b"\n") + 1 or len(rest)
            yield rest[:cut]
            rest = rest[cut:] + block
        if rest := rest.rstrip():
            yield rest + b"\n"


def _header(line: bytes, source: Source) -> _Form:
    names = [name.strip(' "\r').lower() for name in line.decode("utf-8", "replace").split(",")]
    wanted = [next((name for name in _TIME_NAMES if name in names), "time")]
    wanted += ["open", "high", "low", "close", "volume"]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise BadDataError(f"{source}:1: {line[:80]!r} has no column {', '.join(missing)}")
    return _Form(len(names), tuple(map(names.index, wanted)))


def _parse(block: bytes, form: _Form) -> Columns:
    """Parse whole lines. Raises ValueError when one of them is not a candle."""
    if b"\r" in block or b'"' in block:
        block = block.replace(b"\r\n", b"\n").replace(b'"', b"")
    fields = block.replace(b"\n", b",").split(b",")
    width, places = form
    if len(fields) != width * block.count(b"\n") + 1 or b"_" in block:
        raise ValueError(f"not {width} columns")
    texts = [fields[place:-1:width] for place in places]
    try:
        times = list(map(int, texts[0]))
    except ValueError:
        times = list(map(_moment, texts[0]))
    if times[0] >= _MILLISECONDS:
        if any(time % 1000 for time in times):
            raise ValueError("a time that is not a whole second")
        times = [time // 1000 for time in times]
        if times[0] >= _MILLISECONDS:
            raise ValueError("a time that is neither in seconds nor in milliseconds")
    return _checked(times, texts[1:])


def _checked(times: list[int], texts: Sequence[Sequence[bytes]]) -> Columns:
    """Return the columns. Raises ValueError when one of the rows is not a candle."""
    *prices, volumes = texts
    opens, highs, lows, closes = (list(map(float, column)) for column in prices)
    inside = (lows, opens), (opens, highs), (lows, closes), (closes, highs)
    if (
        not all(all(map(le, low, high)) for low, high in inside)
        or min(lows) <= 0
        or max(highs) >= 1e15
    ):
        raise ValueError("prices must be above 0, open and close between low and high")
    joined = b",".join(volumes) + b","
    if not _VOLUMES.fullmatch(joined):
        raise ValueError("a volume that is not a number")
    if _SOME_ZERO.search(b"," + joined):
        volumes = [volume if float(volume) else NO_TRADES for volume in volumes]
    if max(max(map(len, column)) for column in prices) > DIGITS + 1:
        for text in chain(*prices):
            if len(Decimal(text.decode()).normalize().as_tuple().digits) > DIGITS:
                raise ValueError(f"more than {DIGITS} digits")
    return Columns(0, times, opens, highs, lows, closes, volumes)


def _moment(text: bytes) -> int:
    """Return unix seconds of an ISO 8601 date; without a time zone it is UTC."""
    moment = datetime.fromisoformat(text.decode("ascii"))
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _first_wrong(block: bytes, form: _Form, source: Source, number: int) -> BadDataError:
    """Return the error for the first line of a block that is not a candle."""
    for at, line in enumerate(block.splitlines()):
        try:
            _parse(line + b"\n", form)
        except (ValueError, ArithmeticError) as error:
            shown = line[:80].decode("ascii", "replace")
            return BadDataError(f"{source}:{number + at}: {shown!r} is not a candle: {error}")
    why = "they end in CR alone, or some times are in seconds and others are not"
    return BadDataError(f"{source}:{number}: these lines cannot be read together: {why}")


def _answer(source: Source) -> tuple[str, Columns]:
    """Return the key of a saved OHLC answer, and its finished candles."""
    try:
        with _open(source) as file:
            answer = json.loads(file.read(ANSWER_BYTES), parse_float=str)
        result = answer.get("result", answer)
        key, rows = next((key, rows) for key, rows in result.items() if key != "last")
        finished = [row for row in rows[:-1] if len(row) == _ANSWER.width]
        columns = list(zip(*finished, strict=True))
        times, *texts = ([str(x).encode() for x in columns[at]] for at in _ANSWER.places)
        return key, _checked(list(map(int, times)), texts)
    except (*_DAMAGED, *_ODD) as error:
        raise BadDataError(f"{source}: not a saved OHLC answer: {error}") from error


def _agree(
    where: str, time: int, numbers: _Numbers, known: Mapping[int, tuple[str, _Numbers]]
) -> None:
    """Raise BadDataError unless an earlier file has the same candle."""
    if time not in known:
        raise BadDataError(f"{where}: time {time} is in a gap of a file that begins earlier")
    earlier, before = known[time]
    if tuple(map(exact, numbers)) != tuple(map(exact, before)):
        one, other = (" ".join(plain(exact(number)) for number in row) for row in (before, numbers))
        raise BadDataError(
            f"two files disagree about the candle of {time} (open high low close volume): "
            f"{earlier} has {one}, {where} has {other}"
        )


def _filled(
    rows: Columns, interval_s: int, last: tuple[int, float] | None, source: Source, number: int
) -> Columns:
    """Return the rows, with candles missing before and between them filled flat.

    Raises BadDataError unless times are starts of candles, in order and without a long gap.
    """
    times, repeated, broken = rows.times, 0, -1
    before, flat = last or (times[0] - interval_s, rows.opens[0])
    every = range(before + interval_s, times[-1] + 1, interval_s)
    if last and times == [*every]:
        return rows._replace(interval_s=interval_s, times=every)
    steps = list(map(sub, times, (before, *times)))
    breaks = [at for at, step in enumerate(steps) if step != interval_s]
    for at in breaks if last else (0, *breaks):
        is_same = at == broken + 1 and steps[at] == steps[broken] >= 4 * interval_s
        repeated, broken = repeated + 1 if is_same else 0, at
        if wrong := _wrong_time(times[at], steps[at], interval_s, repeated):
            raise BadDataError(f"{source}:{number + at}: time {times[at]} {wrong}")
    filled: list[list[Any]] = [[], [], [], [], []]
    for begin, end in pairwise(dict.fromkeys((0, *breaks, len(times)))):
        price, missing = rows.closes[begin - 1] if begin else flat, steps[begin] // interval_s - 1
        for column, values in zip(filled, rows.numbers, strict=True):
            column += [NO_TRADES if values is rows.volumes else price] * missing
            column += values[begin:end]
    return Columns(interval_s, every, *filled)


def _wrong_time(time: int, step: int, interval_s: int, repeated: int) -> str | None:
    """Return what is wrong with a time `step` seconds after the one before, or None."""
    if time % interval_s or not 0 <= time < 1 << 33:
        return f"is not the start of a candle of {interval_s // 60} min"
    if step <= 0:
        return f"comes after {time - step}" if step else "appears twice"
    if step > max(GAP_MAX_S, 4 * interval_s):
        return f"follows a gap of {step // 86400} days"
    if repeated == _MIXED_ROWS:
        return f"and those before are {step // 60} minutes apart, not {interval_s // 60}"
    return None
