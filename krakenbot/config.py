"""Configuration: built-in defaults, then a TOML file, then the environment.

`Config` and its tables are the list of all keys: type, what is allowed, default. `load` reports
every mistake at once. `sources` of its result says where each value came from.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from krakenbot.errors import ConfigError
from krakenbot.log import redact, register
from krakenbot.model import Secret
from krakenbot.pairs import decimal, plain

INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)
_FILE_BYTES_MAX = 1 << 20
_HUGE = 10**12
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)"
_LOOPBACK = r"(?:localhost|\[::1\]|127(?:\.(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3})"
_PORT = r":(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[0-5]?[0-9]{1,4})"
_KEY = r"[A-Za-z0-9+/]{40,}={0,2}"
_ORIGIN = rf"(?:https://{_HOST}|http://{_LOOPBACK})(?:{_PORT})?"


class _Rule(NamedTuple):
    """What a setting may be: in words, as a check of TOML's value, and how that becomes ours."""

    allowed: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], object] = lambda raw: raw


def _one_of(*values: object) -> _Rule:
    typed = [(type(value), value) for value in values]  # True is not 1.
    allowed = f"one of {', '.join(map(json.dumps, values))}"
    return _Rule(allowed, lambda raw: (type(raw), raw) in typed)


def _whole(low: int, high: int) -> _Rule:
    allowed = f"a whole number from {low} to {high}"
    return _Rule(allowed, lambda raw: type(raw) is int and low <= raw <= high)


def _number(high: int, kind: type[Decimal | float] = Decimal, *, zero: bool = False) -> _Rule:
    """Accept numbers and texts that are exact decimals above (`zero`: from) 0 and up to `high`."""

    def accepts(raw: object) -> bool:
        with suppress(ValueError):
            text = raw if isinstance(raw, str) else plain(decimal(raw))
            is_plain = re.fullmatch(r"[0-9]+(\.[0-9]{1,18})?", text)
            return bool(is_plain and Decimal(text) <= high and (zero or Decimal(text)))
        return False

    allowed = (
        f"a number {'from' if zero else 'above'} 0, at most {high}, written plainly like 0.0001, "
        "with at most 18 decimals"
    )
    return _Rule(allowed, accepts, lambda raw: kind(plain(decimal(raw))))


def _text(shape: str, allowed: str, kind: Callable[[str], object] = str) -> _Rule:
    def accepts(raw: object) -> bool:
        with suppress(ValueError):
            if isinstance(raw, str) and re.fullmatch(shape, raw):
                return all(map(IPv6Address, re.findall(r"^\w+://\[(.*?)\]", raw)))
        return False

    return _Rule(allowed, accepts, kind)


def _is_path(raw: object) -> bool:
    with suppress(ValueError):
        return isinstance(raw, str) and bool(re.fullmatch(rb"[^\x00-\x1f\x7f]+", os.fsencode(raw)))
    return False


_PAIR = _text(r"[A-Za-z0-9./:_-]{3,20}", "a pair's name at Kraken, like XBTUSD")
_WHERE = "https://host or http:// with a loopback address, and nothing after it"
_EXCHANGE_URL = _text(f"{_ORIGIN}/?", _WHERE, lambda url: url.removesuffix("/"))
_PROXY = _text(rf"http://{_HOST}{_PORT}", "http://host:port")
_PRIVATELY = "https without user and password, or http on loopback"
_NOTIFY_URL = _text(rf"{_ORIGIN}([/?][!-~]*)?", _PRIVATELY, register)
_BODY = _text(r"(?s:.{1,10000})", "text of at most 10000 characters", Secret)
_PATH = _Rule("a path, in characters of this system's locale", _is_path, Path)
_KEY_FILE = _Rule(
    "the path of a file, and not the key itself",
    lambda raw: _is_path(raw) and not is_key_itself(raw),
    Path,
)
_PARAMETERS = _Rule(
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
    proxy: Annotated[str | None, _PROXY] = None
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


_TABLES: dict[str, Any] = {
    name: kind for name, kind in Config.__annotations__.items() if hasattr(kind, "_fields")
}
# Each key's default (None: none) and its rule.
_KEYS: dict[str, tuple[object, _Rule]] = {
    f"{table}.{field}".removeprefix("."): (kind._field_defaults[field], hint.__metadata__[0])
    for table, kind in {"": Config, **_TABLES}.items()
    for field, hint in kind.__annotations__.items()
    if hasattr(hint, "__metadata__")
} | {"state.directory": (None, _PATH)}


def load(path: str | None, environ: Mapping[str, str], cwd: Path) -> Config:
    """Return the configuration; `path` is the one named on the command line.

    Raises ConfigError with one line for each mistake. From then on no output shows the addresses in
    [notify].
    """
    errors: list[str] = []
    values: dict[str, Any] = {key: default for key, (default, _) in _KEYS.items()}
    values["state.directory"] = Path("~/.local/state/krakenbot")
    sources = dict.fromkeys(_KEYS, "default")
    for source, key, raw in _settings(path, environ, cwd, errors):
        sources[key], (default, rule) = source, _KEYS[key]
        if rule.accepts(raw):
            values[key] = rule.convert(raw)
            continue
        values.pop(key, None)
        label = source if source.startswith("KRAKENBOT_") else f"{source}: {key}"
        quotes = "without quotes, " if rule.accepts(_typed(raw, default)) else ""
        errors.append(f"{label} = {shown(key, raw)}: must be {quotes}{rule.allowed}")
    for key, value in values.items():
        try:
            if isinstance(value, Path):
                values[key] = _place(key, value, sources[key], environ, cwd)
        except ValueError as error:
            errors.append(f"{sources[key]}: {error}; set {key} to an absolute path")
        if isinstance(value, Path | str):
            hide_keys(str(values[key]))
    errors += _contradictions(values, sources)
    if errors:
        raise ConfigError("\n".join(errors))
    top = {key: value for key, value in values.items() if "." not in key}
    for table, kind in _TABLES.items():
        top[table] = kind(*(values[f"{table}.{field}"] for field in kind._fields))
    return Config(**top, state_directory=values["state.directory"], sources=sources)


def load_here(path: str | None) -> Config:
    """Return the configuration of this process: its environment, its current folder."""
    return load(path, os.environ, current_folder())


def current_folder() -> Path:
    """Return the current folder; ConfigError when somebody has removed it."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(f"the current folder cannot be found: {error}") from error


def is_loopback(url: str) -> bool:
    """Return whether the address is on this machine: localhost, 127.0.0.0/8 or [::1]."""
    return bool(re.fullmatch(rf"https?://{_LOOPBACK}({_PORT})?/?", url))


def is_key_itself(path: str) -> bool:
    """Return whether this is a key in place of a path; if so, no output will show it.

    A pasted key may have quotes around it, and white space anywhere.
    """
    bare = re.sub(r"[\s\"'`]", "", path)
    is_key = bool(re.fullmatch(_KEY, bare)) and not os.path.lexists(path)
    if is_key:
        register(path)
        register(bare)
    return is_key


def hide_keys(text: str) -> bool:
    """Hide from all output what may be a key, outside of a real path; return if there is one."""
    there = next(filter(os.path.lexists, (text, *map(str, Path(text).parents))), "")
    keys = re.findall(_KEY, text.removeprefix(there))
    for found in keys:
        for key in (found, re.sub("/+", "/", found)):  # A Path has no empty parts.
            register(key.strip("/"))
    return bool(keys)


def journals_in(folder: Path) -> list[Path]:
    """Return the paths of the journals there; none when this user may not look."""
    with suppress(OSError):
        return sorted(folder.glob("*.db"))
    return []


def _settings(
    path: str | None, environ: Mapping[str, str], cwd: Path, errors: list[str]
) -> Iterator[tuple[str, str, Any]]:
    """Yield source, key and raw value of all settings, the ones that take precedence last.

    A variable without a value is not set, so that none of them removes a limit by accident.
    """
    if environ.get("XDG_STATE_HOME", "").startswith("/"):
        yield "XDG_STATE_HOME", "state.directory", environ["XDG_STATE_HOME"] + "/krakenbot"
    if environ.get("STATE_DIRECTORY"):
        yield "STATE_DIRECTORY", "state.directory", environ["STATE_DIRECTORY"].partition(":")[0]
    named = path if path is not None else environ.get("KRAKENBOT_CONFIG") or None
    file = "config.toml" if named is None else named
    for name, raw in _read_toml(file, named is not None, environ, cwd, errors).items():
        fields = [key.removeprefix(f"{name}.") for key in _KEYS if key.startswith(f"{name}.")]
        if fields and not isinstance(raw, dict):
            how = f"write [{name}] with {', '.join(fields)}"
            errors.append(f"{file}: '{name}' is a table: {how}")
            continue
        is_table = isinstance(raw, dict) and (fields or (raw and name not in _KEYS))
        inner = {f"{name}.{key}": raw[key] for key in raw} if is_table else {name: raw}
        for key in inner:
            if key in _KEYS:
                yield file, key, inner[key]
            else:
                errors.append(f"{file}: {_unknown(key, [*_KEYS])}")
    variables = {f"KRAKENBOT_{key.replace('.', '_').upper()}": key for key in ("config", *_KEYS)}
    for name in sorted(environ):
        key = variables.get(name, "")
        if key in _KEYS and environ[name]:
            yield name, key, _typed(environ[name], _KEYS[key][0])
        elif name.startswith("KRAKENBOT_") and not key:
            errors.append(_unknown(name, [*variables]))


def _read_toml(
    file: str, must_exist: bool, environ: Mapping[str, str], cwd: Path, errors: list[str]
) -> dict[str, Any]:
    """Return the file's content; append what is wrong with it to `errors`."""
    try:
        if not file:
            raise ConfigError("--config '' names no file")
        with (cwd / _expanded(Path(file), environ)).open("rb") as opened:
            raw = opened.read(_FILE_BYTES_MAX + 1)
        if len(raw) > _FILE_BYTES_MAX:
            raise ValueError("larger than a megabyte")
        import tomllib  # Often there is no file.

        return tomllib.loads(raw.decode("utf-8-sig"), parse_float=Decimal)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not must_exist:
            return {}
        hint = "; try again with sudo in front" if isinstance(error, PermissionError) else ""
        trouble = f"{error.strerror}{hint}"
    except (ValueError, ArithmeticError, RecursionError) as error:
        is_number = isinstance(error, ArithmeticError)
        trouble = f"not valid TOML: {'a number is out of range' if is_number else error}"
    hide_keys(file)
    hide_keys(trouble)
    errors.append(f"{file}: {trouble}")
    return {}


def _typed(raw: object, default: object) -> object:
    """Return a variable's text as TOML would have given it."""
    if type(default) is int and isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,18}", raw):
        return int(raw)
    return raw == "true" if type(default) is bool and raw in ("true", "false") else raw


def _unknown(name: str, valid: list[str]) -> str:
    """Return the message about an unknown name; its value is never shown."""
    import difflib

    hide_keys(name)
    said = repr(redact(name))[:80]
    table, dot, last = name.rpartition(".")
    word = "(secret|passw|token|credential|private_?key|api_?key|(^|_)key)$"
    if re.search(word, last.lower().replace("-", "_")):
        return (
            f"{said}: secrets do not belong in the configuration; put them into two files "
            "of mode 0600 and name these as api_key_file and api_secret_file in the table [keys]"
        )
    same = [key for key in valid if key.rpartition(".")[2] == last]
    inside = [key for key in valid if table and key.startswith(table + dot)] or valid
    longer = [key for key in inside if key.startswith(name)]
    nearest = same or longer or difflib.get_close_matches(name[:80], inside, 1, 0.0)
    return f"{said} is not known; the nearest valid name is {nearest[0]!r}"


def shown(key: str, raw: object) -> str:
    """Return a value in a form that anybody may see."""
    # A wrong proxy may hold a password anywhere.
    if key.startswith("notify.") or (key == "exchange.proxy" and not _PROXY.accepts(raw)):
        return "(not shown)"
    if isinstance(raw, dict | list):
        return "a table" if isinstance(raw, dict) else "a list"
    if isinstance(raw, int) and raw.bit_length() > 256:
        return "a huge number"  # Python refuses to write out some of these.
    if isinstance(raw, str):
        is_key_itself(raw)
        hide_keys(raw)  # Before an @ in an address there may be a password.
        return repr(redact(re.sub("(?s).*@", "***@", raw)))[:80]
    return str(raw).lower() if isinstance(raw, bool) else redact(str(raw))[:80]


def _contradictions(values: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong between settings; a value already found wrong is missing here."""
    short, long = values.get("strategy.short", 0), values.get("strategy.long", 701)
    if short >= long:
        key = "strategy.long" if sources["strategy.short"] == "default" else "strategy.short"
        yield f"{sources[key]}: strategy.short = {short}: must be below strategy.long = {long}"
    name, file = values.get("strategy.name"), values.get("strategy.file", Path())
    if name == "file" and file is None:
        yield f'{sources["strategy.name"]}: strategy.name = "file" needs strategy.file'
    for key in ("strategy.file", "strategy.parameters"):
        if name not in (None, "file") and values.get(key):
            yield f'{sources[key]}: {key} needs strategy.name = "file", not "{name}"'
    speed, url = values.get("exchange.clock_speed", 1), values.get("exchange.url")
    if speed != 1 and url and not is_loopback(url):
        setting = f"{sources['exchange.clock_speed']}: exchange.clock_speed = {speed:g}"
        yield f"{setting}: must be 1 unless exchange.url is on loopback; it is {url}"
    files = [key for key in ("keys.api_key_file", "keys.api_secret_file") if values.get(key)]
    if len(files) == 1:
        yield f"{sources[files[0]]}: {files[0]} is set, the other file of [keys] is not"


def _place(key: str, path: Path, source: str, environ: Mapping[str, str], cwd: Path) -> Path:
    """Return the path that is meant: a relative one counts from its configuration file's folder.

    Counted from the current folder, a second journal would be begun in each. Under systemd a rule
    file is among the credentials, wherever root keeps it.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if key == "strategy.file" and credentials and os.path.exists(f"{credentials}/{path.name}"):
        return Path(credentials, path.name)
    path = _expanded(path, environ)
    if path.is_absolute():
        return path
    file = cwd / _expanded(Path(source), environ)
    if source in environ or str(file.parent) == credentials or not os.path.isfile(file):
        # What is there may be a key, so it is not shown.
        raise ValueError(
            "a relative path works only in a regular configuration file, not in a service"
        )
    place = Path(os.path.normpath(file.parent.resolve() / path))  # systemd takes no "..".
    former = cwd / path
    if key == "state.directory" and journals_in(former) and not journals_in(place):
        # In 0.2.0 it counted from the current folder, and a journal there says what is held.
        raise ValueError(f"'{path}' now means {place}, but {former} has journals")
    return place


def _expanded(path: Path, environ: Mapping[str, str]) -> Path:
    """Return the path with $HOME in place of its ~; ValueError without a $HOME."""
    if not str(path).startswith("~"):
        return path
    home = environ.get("HOME", "")
    if path.parts[0] != "~":
        raise ValueError(f"'{path}': only ~/ is known")
    if not home.startswith("/"):
        raise ValueError(f"'{path}': $HOME is not set")
    return Path(home, *path.parts[1:])
