"""Configuration: built-in defaults, then a TOML file, then the environment; and the secrets.

`load` reports every mistake at once. `sources` of its result says where each value came from.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from krakenbot.errors import ConfigError
from krakenbot.model import Secret
from krakenbot.pairs import decimal, plain

STRATEGIES = ("sma-slope", "sma-cross")
INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)
_FILE_BYTES_MAX = 1 << 20
_SECRET_BYTES_MAX = 4096


# The tables are named tuples because a dataclass takes ten times as long to create at each start.
class StrategyTable(NamedTuple):
    """`length` belongs to sma-slope, `short` and `long` to sma-cross; all in candles."""

    name: str
    length: int
    short: int
    long: int


class RiskTable(NamedTuple):
    """`max_loss` in quote currency or None; the rest in percent."""

    max_fee_percent_per_day: Decimal
    max_loss: Decimal | None
    min_margin_level: Decimal
    max_spread_percent: Decimal
    max_orders_per_day: int


class ExchangeTable(NamedTuple):
    """`timeout` and `patience` in seconds; `proxy` is http://host:port or None."""

    url: str
    proxy: str | None
    timeout: float
    patience: float
    clock_speed: float
    fee_percent: Decimal | None
    asset_class: str | None
    trading_agreement: bool


class PaperTable(NamedTuple):
    balance: Decimal


class LogTable(NamedTuple):
    level: str
    format: str


class NotifyTable(NamedTuple):
    """Addresses and bodies often carry a token, so they count as secrets."""

    url: Secret | None
    body: str | None
    heartbeat_url: Secret | None

    def __repr__(self) -> str:
        return "NotifyTable(<secret>)"


class Config(NamedTuple):
    """All of it. `sources` maps a dotted key to "default", a file's or a variable's name."""

    mode: Literal["paper", "validate", "live"]
    pair: str
    interval: int
    size: Decimal
    leverage: int
    reversal: Literal["two-step", "one-order"]
    entry: Literal["next-turn", "now"]
    strategy: StrategyTable
    risk: RiskTable
    exchange: ExchangeTable
    paper: PaperTable
    state_directory: Path
    log: LogTable
    notify: NotifyTable
    sources: Mapping[str, str]


class Credentials(NamedTuple):
    """`source` names the variable through which the two were found."""

    key: Secret
    secret: Secret
    source: str


def load(path: str | None, environ: Mapping[str, str], cwd: Path) -> Config:
    """Return the configuration; `path` is the one named on the command line.

    Raises ConfigError whose text has one line for each mistake. Registers what is secret in it
    for redaction.
    """
    errors: list[str] = []
    values: dict[str, Any] = {key: default for key, (default, _) in _KEYS.items()}
    sources = dict.fromkeys(_KEYS, "default")
    settings = [*_from_file(path, environ, cwd, errors), *_from_environment(environ, errors)]
    for key, raw, source in settings:
        label = source if source.startswith("KRAKENBOT_") else f"{source}: {key}"
        default, parse = _KEYS[key]
        sources[key] = source
        try:
            values[key] = None if default is None and raw == "" else parse(raw)
        except ValueError as allowed:
            errors.append(f"{label} = {_shown(key, raw)}: must be {allowed}")
            values.pop(key, None)
    _check_together(values, sources, errors)
    directory = _state_directory(values, environ, sources, errors)
    if errors:
        raise ConfigError("\n".join(errors))
    rest: dict[str, Any] = {key: values[key] for key in _KEYS if "." not in key}
    config = Config(
        **rest,
        strategy=StrategyTable(**_table(values, "strategy")),
        risk=RiskTable(**_table(values, "risk")),
        exchange=ExchangeTable(**_table(values, "exchange")),
        paper=PaperTable(**_table(values, "paper")),
        state_directory=cwd / directory,
        log=LogTable(**_table(values, "log")),
        notify=NotifyTable(**_table(values, "notify")),
        sources=sources,
    )
    _register(config.notify.url, config.notify.heartbeat_url)
    return config


def load_here(path: str | None) -> Config:
    """Return the configuration of this process: its environment, its current folder."""
    return load(path, os.environ, Path.cwd())


def journal_path(config: Config) -> Path:
    """Return the one file of this mode, exchange and pair."""
    host = config.exchange.url.partition("://")[2]
    # However the pair is spelt, it is one market: BTC/USD and XBTUSD share a journal.
    pair = config.pair.upper().replace("/", "").replace("BTC", "XBT")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{config.mode}-{host}-{pair}")
    return config.state_directory / f"{name}.db"


def load_secrets(environ: Mapping[str, str], prefix: str = "KRAKEN") -> Credentials | None:
    """Return the first key and secret found, registered for redaction; None if there are none.

    Looks into $CREDENTIALS_DIRECTORY, then at the files named by <prefix>_API_KEY_FILE and
    <prefix>_API_SECRET_FILE, then at <prefix>_API_KEY and <prefix>_API_SECRET. Raises ConfigError
    for half a pair and for a file that others may read.
    """
    names = (f"{prefix}_API_KEY", f"{prefix}_API_SECRET")
    places: tuple[tuple[Callable[[Mapping[str, str], str], str | None], str, str], ...] = (
        (_credential, "CREDENTIALS_DIRECTORY", "file {low} in $CREDENTIALS_DIRECTORY"),
        (_named_file, f"{names[0]}_FILE", "{name}_FILE"),
        (_variable, names[0], "{name}"),
    )
    for read, source, label in places:
        key, secret = (read(environ, name) for name in names)
        if key is not None and secret is not None:
            credentials = Credentials(Secret(key), Secret(secret), source)
            _register(credentials.key, credentials.secret)
            return credentials
        if key is not None or secret is not None:
            here, missing = (
                label.format(name=name, low=name.lower())
                for name in (names if secret is None else names[::-1])
            )
            raise ConfigError(f"{here} is there, {missing} is not: a key needs its secret")
    return None


def is_loopback(url: str) -> bool:
    """Return whether the address is on this machine: localhost, 127.0.0.0/8 or [::1]."""
    return _is_loopback_host(_split(url)[0])


def _from_file(
    path: str | None, environ: Mapping[str, str], cwd: Path, errors: list[str]
) -> Iterator[tuple[str, Any, str]]:
    named = path or environ.get("KRAKENBOT_CONFIG")
    name = named or "config.toml"
    for top, raw in _read_toml(name, bool(named), environ, cwd, errors).items():
        if top not in _TABLES:
            inner = {top: raw}
        elif isinstance(raw, dict):
            inner = {f"{top}.{key}": value for key, value in raw.items()}
        else:
            inner = {}
            errors.append(f"{name}: {top} = {_shown(top, raw)}: must be a table, [{top}]")
        for key, value in inner.items():
            if key in _KEYS:
                yield key, value, name
            else:
                below = list(value) if isinstance(value, dict) else []
                errors.append(f"{name}: {_unknown(key, below, [*_KEYS, *_TABLES])}")


def _from_environment(
    environ: Mapping[str, str], errors: list[str]
) -> Iterator[tuple[str, Any, str]]:
    variables = {"KRAKENBOT_" + key.replace(".", "_").upper(): key for key in _KEYS}
    for name in sorted(environ):
        if name in variables:
            yield variables[name], _typed(environ[name], _KEYS[variables[name]][0]), name
        elif name.startswith("KRAKENBOT_") and name != "KRAKENBOT_CONFIG":
            errors.append(_unknown(name, [], [*variables, "KRAKENBOT_CONFIG"]))


def _typed(text: str, default: object) -> object:
    """Return a variable's text as the type that TOML would have given it."""
    if type(default) is int and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if type(default) is bool:
        return {"true": True, "false": False}.get(text, text)
    return text


def _read_toml(
    name: str, must_exist: bool, environ: Mapping[str, str], cwd: Path, errors: list[str]
) -> dict[str, Any]:
    raw = b""
    try:
        with open(cwd / _expand(name, environ), "rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
        if len(raw) > _FILE_BYTES_MAX:
            raise ValueError("larger than a megabyte")
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        if must_exist:
            errors.append(f"{name}: no such file")
        return {}
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        errors.append(f"{name}: not UTF-8 text (at line {line})")
        return {}
    except (OSError, ValueError) as error:
        errors.append(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}")
        return {}
    import tomllib

    try:
        return tomllib.loads(text, parse_float=Decimal)
    except ArithmeticError:
        errors.append(f"{name}: not valid TOML: a number is out of range")
    except (ValueError, RecursionError) as error:
        errors.append(f"{name}: not valid TOML: {error}")
    return {}


def _unknown(name: str, below: list[str], valid: list[str]) -> str:
    """Return what is said of a name nobody knows; its value is never shown."""
    word = "(secret|passw|token|credential|private_?key|api_?key|(^|_)key$)"
    for part in (name, *below):
        if re.search(word, part.lower().replace("-", "_").rpartition(".")[2]):
            return (
                f"{part!r:.80}: secrets do not belong in the configuration; put them into files"
                " with mode 0600 named by KRAKEN_API_KEY_FILE and KRAKEN_API_SECRET_FILE, into"
                " systemd credentials, or into KRAKEN_API_KEY and KRAKEN_API_SECRET"
            )
    import difflib

    same = [key for key in valid if key.rpartition(".")[2] == name.rpartition(".")[2]]
    nearest = same or difflib.get_close_matches(name[:80], valid, 1, 0.0)
    return f"{name!r:.80} is not known; the nearest valid name is {nearest[0]!r}"


def _shown(key: str, raw: object) -> str:
    if key in ("notify.url", "notify.body", "notify.heartbeat_url"):
        return "(not shown)"
    if isinstance(raw, dict | list):
        return "a table" if isinstance(raw, dict) else "a list"
    if isinstance(raw, int) and raw.bit_length() > 256:
        return "a huge number"  # Python refuses to write out some of these.
    if isinstance(raw, str):
        # What stands before an @ in an address may be a password.
        return repr("***" + raw[raw.rindex("@") :] if "@" in raw else raw)[:80]
    return str(raw).lower() if isinstance(raw, bool) else str(raw)[:80]


def _check_together(
    values: Mapping[str, Any], sources: Mapping[str, str], errors: list[str]
) -> None:
    """Check what only makes sense together; a value already found wrong is missing here."""
    short, long = values.get("strategy.short", 0), values.get("strategy.long", 701)
    if short >= long:
        source = sources["strategy.short"]
        if source == "default":
            source = sources["strategy.long"]
        errors.append(f"{source}: strategy.short = {short}: must be below strategy.long = {long}")
    speed, url = values.get("exchange.clock_speed", 1), values.get("exchange.url")
    if speed != 1 and url and not is_loopback(url):
        source = sources["exchange.clock_speed"]
        errors.append(
            f"{source}: exchange.clock_speed = {speed:g}:"
            f" must be 1 unless exchange.url is a loopback address; it is {url}"
        )


def _state_directory(
    values: Mapping[str, Any],
    environ: Mapping[str, str],
    sources: dict[str, str],
    errors: list[str],
) -> str:
    directory: str | None = values.get("state.directory")
    systemd = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    xdg = environ.get("XDG_STATE_HOME", "")
    if directory is None and systemd:
        directory, sources["state.directory"] = systemd, "STATE_DIRECTORY"
    elif directory is None and xdg.startswith("/"):
        directory, sources["state.directory"] = f"{xdg}/krakenbot", "XDG_STATE_HOME"
    try:
        return _expand(directory or "~/.local/state/krakenbot", environ)
    except ValueError as error:
        errors.append(f"state.directory: {error}; set state.directory to an absolute path")
        return ""


def _expand(path: str, environ: Mapping[str, str]) -> str:
    if not path.startswith("~"):
        return path
    if path[1:2] not in ("", "/"):
        raise ValueError(f"{path!r} names another user's home, which is not looked up")
    if not environ.get("HOME", "").startswith("/"):
        raise ValueError(f"{path!r} needs $HOME, which is not set")
    return environ["HOME"] + path[1:]


def _table(values: Mapping[str, Any], table: str) -> dict[str, Any]:
    start = f"{table}."
    return {key[len(start) :]: value for key, value in values.items() if key.startswith(start)}


def _one_of(*allowed: str | int) -> Callable[[object], object]:
    """Return a parser that takes these values and no look-alikes: True is not 1."""

    def parse(raw: object) -> object:
        if not any(type(raw) is type(value) and raw == value for value in allowed):
            raise ValueError("one of " + ", ".join(map(json_like, allowed)))
        return raw

    def json_like(value: str | int) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value).lower()

    return parse


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(raw: object) -> int:
        if type(raw) is not int or not low <= raw <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return raw

    return parse


def _number(low: int, high: int, *, above: bool = False) -> Callable[[object], Decimal]:
    """Return a parser of exact decimals from (`above`: above) `low` to `high`."""
    allowed = (
        f"a number {'above' if above else 'from'} {low}{', at most' if above else ' to'} {high}"
    )

    def parse(raw: object) -> Decimal:
        if isinstance(raw, str) and not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,18})?", raw):
            raise ValueError(f"{allowed}, written plainly like 0.0001")
        try:
            number = Decimal(plain(decimal(raw)))
        except ValueError:
            raise ValueError(allowed) from None
        if not low <= number <= high or (above and number == low):
            raise ValueError(allowed)
        if int(number.as_tuple().exponent) < -18:
            raise ValueError(f"{allowed}, with at most 18 decimals")
        return number

    return parse


def _seconds(high: int) -> Callable[[object], float]:
    number = _number(0, high, above=True)
    return lambda raw: float(number(raw))


def _text(shape: str, allowed: str) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(shape, raw):
            raise ValueError(allowed)
        return raw

    return parse


def _exchange_url(raw: object) -> str:
    host, rest = _split(raw)
    if not isinstance(raw, str) or not host or rest not in ("", "/"):
        raise ValueError("https://host or http:// with a loopback address, and nothing after it")
    return raw.removesuffix("/")


def _notify_url(raw: object) -> Secret:
    if not isinstance(raw, str) or not _split(raw)[0]:
        raise ValueError("an https address without user and password, or http on loopback")
    return Secret(raw)


def _split(url: object) -> tuple[str, str]:
    """Return host and what follows the port; two empty texts if the address is not acceptable."""
    shape = r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?([/?][!-~]*)?"
    match = re.fullmatch(shape, url) if isinstance(url, str) else None
    if match is None or not 1 <= int(match[3] or 1) <= 65535:
        return "", ""
    if match[1] == "http" and not _is_loopback_host(match[2]):
        return "", ""
    return match[2], match[4] or ""


def _is_loopback_host(host: str) -> bool:
    if re.fullmatch(r"127(\.[0-9]{1,3}){3}", host):
        return all(int(part) <= 255 for part in host.split("."))
    return host in ("localhost", "[::1]")


_HUGE = 10**12
# Each key's default (None: none) and its parser, which raises ValueError with what is allowed.
_KEYS: dict[str, tuple[object, Callable[[object], object]]] = {
    "mode": ("paper", _one_of("paper", "validate", "live")),
    "pair": ("XBTUSD", _text(r"[A-Za-z0-9./:_-]{3,20}", "a pair's name at Kraken, like XBTUSD")),
    "interval": (1, _one_of(*INTERVALS)),
    "size": (Decimal("0.0001"), _number(0, _HUGE, above=True)),
    "leverage": (2, _one_of(0, *range(2, 21))),
    "reversal": ("two-step", _one_of("two-step", "one-order")),
    "entry": ("next-turn", _one_of("next-turn", "now")),
    "strategy.name": ("sma-slope", _one_of(*STRATEGIES)),
    "strategy.length": (20, _whole(2, 700)),
    "strategy.short": (5, _whole(1, 699)),
    "strategy.long": (20, _whole(2, 700)),
    "risk.max_fee_percent_per_day": (Decimal(5), _number(0, 1000, above=True)),
    "risk.max_loss": (None, _number(0, _HUGE, above=True)),
    "risk.min_margin_level": (Decimal(150), _number(0, 10000)),
    "risk.max_spread_percent": (Decimal(1), _number(0, 100, above=True)),
    "risk.max_orders_per_day": (500, _whole(1, 100000)),
    "exchange.url": ("https://api.kraken.com", _exchange_url),
    "exchange.proxy": (
        None,
        _text(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}", "http://host:port"),
    ),
    "exchange.timeout": (20.0, _seconds(120)),
    "exchange.patience": (300.0, _seconds(86400)),
    "exchange.clock_speed": (1.0, _seconds(1000000)),
    "exchange.fee_percent": (None, _number(0, 5)),
    "exchange.asset_class": (None, _one_of("currency", "tokenized_asset")),
    "exchange.trading_agreement": (False, _one_of(True, False)),
    "paper.balance": (Decimal(10000), _number(0, _HUGE, above=True)),
    "state.directory": (None, _text(r"[^\x00-\x1f\x7f]+", "a folder's path")),
    "log.level": ("info", _one_of("debug", "info", "warning", "error")),
    "log.format": ("text", _one_of("text", "json")),
    "notify.url": (None, _notify_url),
    "notify.body": (None, _text(r"(?s:.{1,10000})", "text of at most 10000 characters")),
    "notify.heartbeat_url": (None, _notify_url),
}
_TABLES = tuple(dict.fromkeys(key.partition(".")[0] for key in _KEYS if "." in key))


def _credential(environ: Mapping[str, str], name: str) -> str | None:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    path = f"{directory}/{name.lower()}"
    # systemd guards this folder itself, with modes of its own.
    return _read_secret(path, strict=False) if directory and os.path.lexists(path) else None


def _named_file(environ: Mapping[str, str], name: str) -> str | None:
    path = environ.get(f"{name}_FILE")
    return _read_secret(path, strict=True) if path else None


def _variable(environ: Mapping[str, str], name: str) -> str | None:
    text = environ.get(name, "").strip()
    return _bare(text, name) if text else None


def _read_secret(path: str, *, strict: bool) -> str:
    try:
        # Without O_NONBLOCK a named pipe would hold the program here for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path}: not a regular file")
            if strict and mode & 0o177:
                have = stat.S_IMODE(mode)
                raise ConfigError(
                    f"{path}: mode {have:04o} is too open for a secret; run: chmod 600 {path}"
                )
            raw = file.read(_SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > _SECRET_BYTES_MAX:
        raise ConfigError(f"{path}: too long for a key")
    return _bare(raw.decode("utf-8-sig", "replace"), path)


def _bare(text: str, where: str) -> str:
    bare = "".join(text.split())
    if not bare or not bare.isascii() or not bare.isprintable():
        raise ConfigError(f"{where}: {'not plain text' if bare else 'empty'}; copy the key again")
    return bare


def _register(*secrets: Secret | None) -> None:
    for secret in secrets:
        if secret is not None:
            # Imported here because logging costs time that a command without secrets saves.
            from krakenbot.log import register

            register(secret)
