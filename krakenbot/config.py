"""The settings: type, what is allowed, default. config_reader.py fills them in.

`Config` and its tables are the list of all keys.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from krakenbot.log import is_key_itself, register
from krakenbot.model import Secret
from krakenbot.pairs import decimal, plain

INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)
_HUGE = 10**12
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)"
_LOOPBACK = r"(?:localhost|\[::1\]|127(?:\.(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3})"
_PORT = r":(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[0-5]?[0-9]{1,4})"
_ORIGIN = rf"(?:https://{_HOST}|http://{_LOOPBACK})(?:{_PORT})?"


class Rule(NamedTuple):
    """What a setting may be: in words, as a check of TOML's value, and how that becomes ours."""

    allowed: str
    check: Callable[[Any], object]  # False or a ValueError refuses the value.
    convert: Callable[[Any], object] = lambda raw: raw

    def accepts(self, raw: object) -> bool:
        with suppress(ValueError):
            return bool(self.check(raw))
        return False


def _one_of(*values: object) -> Rule:
    typed = [(type(value), value) for value in values]  # True is not 1.
    allowed = f"one of {', '.join(map(json.dumps, values))}"
    return Rule(allowed, lambda raw: (type(raw), raw) in typed)


def _whole(low: int, high: int) -> Rule:
    allowed = f"a whole number from {low} to {high}"
    return Rule(allowed, lambda raw: type(raw) is int and low <= raw <= high)


def _number(high: int, kind: type[Decimal | float] = Decimal, *, zero: bool = False) -> Rule:
    """Accept numbers and texts that are exact decimals above (`zero`: from) 0 and up to `high`."""

    def check(raw: object) -> object:
        text = raw if isinstance(raw, str) else plain(decimal(raw))
        is_plain = re.fullmatch(r"[0-9]+(\.[0-9]{1,18})?", text)
        return is_plain and Decimal(text) <= high and (zero or Decimal(text))

    allowed = (
        f"a number {'from' if zero else 'above'} 0, at most {high}, written plainly like 0.0001, "
        "with at most 18 decimals"
    )
    return Rule(allowed, check, lambda raw: kind(plain(decimal(raw))))


def _text(shape: str, allowed: str, kind: Callable[[str], object] = str) -> Rule:
    def check(raw: object) -> object:
        is_shaped = isinstance(raw, str) and re.fullmatch(shape, raw)
        return is_shaped and all(map(IPv6Address, re.findall(r"^\w+://\[(.*?)\]", str(raw))))

    return Rule(allowed, check, kind)


def _is_path(raw: object) -> object:
    return isinstance(raw, str) and re.fullmatch(rb"[^\x00-\x1f\x7f]+", os.fsencode(raw))


_PAIR = _text(r"[A-Za-z0-9./:_-]{3,20}", "a pair's name at Kraken, like XBTUSD")
_WHERE = "https://host or http:// with a loopback address, and nothing after it"
_EXCHANGE_URL = _text(f"{_ORIGIN}/?", _WHERE, lambda url: url.removesuffix("/"))
PROXY = _text(rf"http://{_HOST}{_PORT}", "http://host:port")
_PRIVATELY = "https without user and password, or http on loopback"
_NOTIFY_URL = _text(rf"{_ORIGIN}([/?][!-~]*)?", _PRIVATELY, register)
_BODY = _text(r"(?s:.{1,10000})", "text of at most 10000 characters", Secret)
_PATH = Rule("a path, in characters of this system's locale", _is_path, Path)
_IS_NO_KEY = "the path of a file, and not the key itself"
_KEY_FILE = Rule(_IS_NO_KEY, lambda raw: _is_path(raw) and not is_key_itself(raw), Path)
_PARAMETERS = Rule(
    "a table of names with one number, text, true or false each",
    lambda raw: (
        isinstance(raw, dict)
        and all(n.isidentifier() and isinstance(v, str | int | Decimal) for n, v in raw.items())
    ),
)


class StrategyTable(NamedTuple):
    """`length` belongs to sma-slope, `short` and `long` to sma-cross, all in candles; the rest to
    a rule file."""

    name: Annotated[str, _one_of("sma-slope", "sma-cross", "file")] = "sma-slope"
    length: Annotated[int, _whole(2, 700)] = 20
    short: Annotated[int, _whole(1, 699)] = 5
    long: Annotated[int, _whole(2, 700)] = 20
    file: Annotated[Path | None, _PATH] = None
    parameters: Annotated[Mapping[str, Any], _PARAMETERS] = {}

    @property
    def title(self) -> str:
        return self.name if self.file is None else self.file.name


class KeysTable(NamedTuple):
    """The paths of the two secrets; never the secrets themselves."""

    api_key_file: Annotated[Path | None, _KEY_FILE] = None
    api_secret_file: Annotated[Path | None, _KEY_FILE] = None


class RiskTable(NamedTuple):
    """`max_loss` in quote currency or None; fees, level and spread in percent."""

    max_fee_percent_per_day: Annotated[Decimal, _number(1000)] = Decimal(5)
    max_loss: Annotated[Decimal | None, _number(_HUGE)] = None
    min_margin_level: Annotated[Decimal, _number(10000, zero=True)] = Decimal(150)
    max_spread_percent: Annotated[Decimal, _number(100)] = Decimal(1)
    max_orders_per_day: Annotated[int, _whole(1, 100000)] = 500


class ExchangeTable(NamedTuple):
    """`timeout` and `patience` in seconds."""

    url: Annotated[str, _EXCHANGE_URL] = "https://api.kraken.com"
    proxy: Annotated[str | None, PROXY] = None
    timeout: Annotated[float, _number(120, float)] = 20.0
    patience: Annotated[float, _number(86400, float)] = 300.0
    clock_speed: Annotated[float, _number(1000000, float)] = 1.0
    fee_percent: Annotated[Decimal | None, _number(5, zero=True)] = None
    asset_class: Annotated[str | None, _one_of("currency", "tokenized_asset")] = None
    trading_agreement: Annotated[bool, _one_of(True, False)] = False


class PaperTable(NamedTuple):
    balance: Annotated[Decimal, _number(_HUGE)] = Decimal(10000)


class LogTable(NamedTuple):
    level: Annotated[str, _one_of("debug", "info", "warning", "error")] = "info"
    format: Annotated[str, _one_of("text", "json")] = "text"


class NotifyTable(NamedTuple):
    """Addresses and bodies often carry a token, so they count as secrets."""

    url: Annotated[Secret | None, _NOTIFY_URL] = None
    body: Annotated[Secret | None, _BODY] = None
    heartbeat_url: Annotated[Secret | None, _NOTIFY_URL] = None


class Config(NamedTuple):
    """All settings. `sources` maps a dotted key to "default", a file's or a variable's name."""

    mode: Annotated[str, _one_of("paper", "validate", "live")] = "paper"
    pair: Annotated[str, _PAIR] = "XBTUSD"
    interval: Annotated[int, _one_of(*INTERVALS)] = 1
    size: Annotated[Decimal, _number(_HUGE)] = Decimal("0.0001")
    leverage: Annotated[int, _one_of(0, *range(2, 21))] = 2
    reversal: Annotated[str, _one_of("two-step", "one-order")] = "two-step"
    entry: Annotated[str, _one_of("next-turn", "now")] = "next-turn"
    strategy: StrategyTable = StrategyTable()
    keys: KeysTable = KeysTable()
    risk: RiskTable = RiskTable()
    exchange: ExchangeTable = ExchangeTable()
    paper: PaperTable = PaperTable()
    log: LogTable = LogTable()
    notify: NotifyTable = NotifyTable()
    state_directory: Path = Path()
    sources: Mapping[str, str] = {}


TABLES: dict[str, Any] = {
    name: kind for name, kind in Config.__annotations__.items() if hasattr(kind, "_fields")
}
# Each key's default (None: none) and its rule.
KEYS: dict[str, tuple[object, Rule]] = {
    f"{table}.{field}".removeprefix("."): (kind._field_defaults[field], hint.__metadata__[0])
    for table, kind in {"": Config, **TABLES}.items()
    for field, hint in kind.__annotations__.items()
    if hasattr(hint, "__metadata__")
} | {"state.directory": (None, _PATH)}


def is_loopback(url: str) -> bool:
    """Return whether the address is on this machine: localhost, 127.0.0.0/8 or [::1]."""
    return bool(re.fullmatch(rf"https?://{_LOOPBACK}({_PORT})?/?", url))
