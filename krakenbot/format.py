"""The one formatter for all that people read: figures with units, no exponents, no raw Unix times.

What is sent or stored is written by `pairs.plain`. Numbers may be Decimals, whole numbers, or the
floats of a chart.
"""

import re
import time
from decimal import Context, Decimal

from krakenbot.pairs import PairRules, plain

Number = Decimal | float | int
MINUTE = "%Y-%m-%d %H:%M"
UTC_FORM = f"{MINUTE}:%S"
_YEAR_9999_END = 253402300799
# Kraken's old codes carry an X or a Z in front; later assets such as ZETA do not.
# Source: docs.kraken.com, "Assets", `altname`.
_OLD_CODE = re.compile(
    "X(ETC|ETH|ICN|LTC|MLN|REP|XBT|XDG|XLM|XMR|XRP|XTZ|ZEC)|Z(AUD|CAD|EUR|GBP|JPY|KRW|USD)"
)
_TWO_DECIMALS = ("USD", "EUR", "GBP", "CAD", "AUD", "CHF", "JPY", "USDT", "USDC", "DAI", "PYUSD")


def price(number: Number, decimals: PairRules | int | None = None) -> str:
    """Return a price with the pair's decimals; if these are unknown, with ten digits."""
    if decimals is None:
        return volume(Context(prec=10).plus(_decimal(number)))
    return _fixed(number, decimals.pair_decimals if isinstance(decimals, PairRules) else decimals)


def volume(number: Number, code: str = "") -> str:
    """Return a volume with all its digits and, where given, the asset: 0.0100000 is 0.01 XBT."""
    return f"{Decimal(plain(_decimal(number))):,f} {asset(code)}".rstrip()


def money(number: Number, currency: str) -> str:
    """Return an amount with its currency: cents, and finer where cents would show nothing."""
    return f"{amount(number, currency)} {asset(currency)}".rstrip()


def amount(number: Number, currency: str) -> str:
    """Return an amount as `money` does, without naming its currency."""
    is_small = 0 < abs(_decimal(number)) < Decimal("0.1")
    return _fixed(number, max(decimals_of(currency), 4 if is_small else 2))


def decimals_of(currency: str) -> int:
    """Return the decimals of a usual amount in the currency; of an unknown one, 2."""
    return 2 if asset(currency) in ("", *_TWO_DECIMALS) else 8


def percent(number: Number, decimals: int = 2) -> str:
    """Return a number of percent: 1.62 is 1.62 %."""
    return f"{_fixed(number, decimals)} %"


def signed(text: str) -> str:
    """Return a figure formatted here with a plus sign in front if it is above 0."""
    return f"+{text}" if re.match("[0.,]*[1-9]", text) else text


def moment(unix: float, form: str = f"{UTC_FORM} UTC") -> str:
    """Return unix seconds as a date and time in UTC, to the second; at most the end of 9999."""
    return time.strftime(form, time.gmtime(min(max(unix, 0), _YEAR_9999_END)))


def duration(seconds: float) -> str:
    """Return a stretch of time in its two largest units: 3 h 12 min, 45 s, 2 days 4 h."""
    minutes, s = divmod(abs(round(seconds)), 60)
    days, h, m = minutes // 1440, minutes // 60 % 24, minutes % 60
    counts = ((days, "day" if days == 1 else "days"), (h, "h"), (m, "min"), (s, "s"))
    first = next((at for at, (count, _) in enumerate(counts) if count), 0)
    return " ".join(f"{n} {unit}" for n, unit in counts[first : first + 2] if n) or "0 s"


def asset(code: str) -> str:
    """Return an asset's code as Kraken shows it: XXBT is XBT, ZUSD is USD, XXBT.F is XBT.F."""
    name, dot, kind = code.partition(".")
    return (name[1:] if _OLD_CODE.fullmatch(name) else name) + dot + kind


def _fixed(number: Number, decimals: int) -> str:
    return f"{_decimal(number):z,.{decimals}f}"  # The z: never minus zero.


def _decimal(number: Number) -> Decimal:
    """Return the number exactly; a float rounded to its fifteen reliable digits."""
    return Decimal(f"{number:.15g}") if isinstance(number, float) else Decimal(number)
