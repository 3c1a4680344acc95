"""The one formatter for all that people read: figures with units, no exponents, no raw Unix times.

What is sent or stored is written by `pairs.plain`. Numbers may be Decimals, whole numbers, or the
floats of a chart.
"""

import os
import re
import time
from collections.abc import Sequence
from decimal import Context, Decimal
from typing import TextIO

from krakenbot.pairs import PairRules, plain

Number = Decimal | float | int
MINUTE = "%Y-%m-%d %H:%M"
UTC_FORM = f"{MINUTE}:%S"
# Kraken's old codes carry an X or a Z in front; later assets such as ZETA do not.
# Source: docs.kraken.com, "Assets", `altname`.
_OLD_CODE = re.compile(
    "X(ETC|ETH|ICN|LTC|MLN|REP|XBT|XDG|XLM|XMR|XRP|XTZ|ZEC)|Z(AUD|CAD|EUR|GBP|JPY|KRW|USD)"
)
_TWO_DECIMALS = ("USD", "EUR", "GBP", "CAD", "AUD", "CHF", "JPY", "USDT", "USDC", "DAI", "PYUSD")
_SMALL = Decimal("0.1")
_UNITS = ((86400, "day"), (3600, "h"), (60, "min"), (1, "s"))


def price(number: Number, decimals: PairRules | int | None = None) -> str:
    """Return a price with the pair's decimals; if these are unknown, with ten digits."""
    if isinstance(decimals, PairRules):
        decimals = decimals.pair_decimals
    if decimals is None:
        return plain_thousands(Context(prec=10).plus(_decimal(number)))
    return _fixed(number, decimals)


def volume(number: Number, asset_code: str = "") -> str:
    """Return a volume with all its digits and, where given, the asset: 0.0100000 is 0.01 XBT."""
    return _with_unit(plain_thousands(number), asset_code)


def money(number: Number, currency: str = "", decimals: int | None = None) -> str:
    """Return an amount with its currency: cents, and finer where cents would show nothing."""
    name = asset(currency)
    if decimals is None:
        is_small = 0 < abs(_decimal(number)) < _SMALL
        decimals = (4 if is_small else 2) if name in _TWO_DECIMALS or not name else 8
    return _with_unit(_fixed(number, decimals), currency)


def percent(number: Number, decimals: int = 2) -> str:
    """Return a number of percent: 1.62 is 1.62 %."""
    return f"{_fixed(number, decimals)} %"


def signed(text: str) -> str:
    """Return a figure formatted here with a plus sign in front if it is above 0."""
    figure = text.partition(" ")[0]
    return f"+{text}" if figure[:1] != "-" and figure.strip("0.,") else text


def moment(unix: float, form: str = f"{UTC_FORM} UTC") -> str:
    """Return unix seconds as a date and time in UTC, to the second."""
    return time.strftime(form, time.gmtime(unix))


def duration(seconds: float) -> str:
    """Return a stretch of time in its two largest units: 3 h 12 min, 45 s, 2 days 4 h."""
    left = abs(round(seconds))
    parts: list[tuple[int, str]] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or (parts and len(parts) < 2):
            parts.append((count, f"{unit}s" if unit == "day" and count != 1 else unit))
    shown = [f"{count} {unit}" for count, unit in parts[:2] if count]
    return " ".join(shown) or "0 s"


def asset(code: str) -> str:
    """Return an asset's code as Kraken shows it: XXBT is XBT, ZUSD is USD, XXBT.F is XBT.F."""
    name, dot, kind = code.partition(".")
    return (name[1:] if _OLD_CODE.fullmatch(name) else name) + dot + kind


def plain_thousands(number: Number) -> str:
    """Return all digits of a number, thousands separated, without needless zeros."""
    whole, dot, fraction = plain(_decimal(number)).partition(".")
    return f"{int(whole):,}{dot}{fraction}" if whole != "-0" else f"-0{dot}{fraction}"


def _fixed(number: Number, decimals: int) -> str:
    rounded = round(_decimal(number), decimals)
    return f"{rounded + 0 if rounded else abs(rounded):,.{decimals}f}"


def _decimal(number: Number) -> Decimal:
    """Return the number exactly; a float rounded to its fifteen reliable digits."""
    return Decimal(f"{number:.15g}") if isinstance(number, float) else Decimal(number)


def _with_unit(figure: str, code: str) -> str:
    return f"{figure} {asset(code)}" if code else figure


def in_columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with aligned columns; those whose name begins with | are right-aligned."""
    heads = [name.removeprefix("|") for name in names]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    sides = [">" if name.startswith("|") else "<" for name in names]
    return ["  ".join(map("{:{}{}}".format, row, sides, widths)).rstrip() for row in (heads, *rows)]


def shows_color(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that shows colors."""
    environ = os.environ
    return stream.isatty() and environ.get("TERM") != "dumb" and not environ.get("NO_COLOR")
