"""Reading the configuration: built-in defaults, then a TOML file, then the environment.

`load` reports every mistake at once. `sources` of its result says where each value came from.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from krakenbot import log
from krakenbot.config import KEYS, PROXY, TABLES, Config, is_loopback
from krakenbot.errors import ConfigError
from krakenbot.log import hide_keys, redact

_FILE_BYTES_MAX = 1 << 20


def load(path: str | None, environ: Mapping[str, str], cwd: Path) -> Config:
    """Return the configuration; `path` is the one named on the command line.

    Raises ConfigError with one line for each mistake. From then on no output shows the addresses in
    [notify].
    """
    errors: list[str] = []
    values: dict[str, Any] = {key: default for key, (default, _) in KEYS.items()}
    values["state.directory"] = Path("~/.local/state/krakenbot")
    sources = dict.fromkeys(KEYS, "default")
    for source, key, raw in _settings(path, environ, cwd, errors):
        sources[key], (default, rule) = source, KEYS[key]
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
    for table, kind in TABLES.items():
        top[table] = kind(*(values[f"{table}.{field}"] for field in kind._fields))
    return Config(**top, state_directory=values["state.directory"], sources=sources)


def load_here(path: str | None) -> Config:
    """Return the configuration of this process: its environment, its current folder."""
    return load(path, os.environ, current_folder())


def load_config(path: str | None) -> Config:
    """Return the configuration of this process and set up logging as it says."""
    config = load_here(path)
    log.setup(config.log.level, config.log.format)
    return config


def current_folder() -> Path:
    """Return the current folder; ConfigError when somebody has removed it."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(f"the current folder cannot be found: {error}") from error


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
        fields = [key.removeprefix(f"{name}.") for key in KEYS if key.startswith(f"{name}.")]
        if fields and not isinstance(raw, dict):
            how = f"write [{name}] with {', '.join(fields)}"
            errors.append(f"{file}: '{name}' is a table: {how}")
            continue
        is_table = isinstance(raw, dict) and (fields or (raw and name not in KEYS))
        inner = {f"{name}.{key}": raw[key] for key in raw} if is_table else {name: raw}
        for key in inner:
            if key in KEYS:
                yield file, key, inner[key]
            else:
                errors.append(f"{file}: {_unknown(key, [*KEYS])}")
    variables = {f"KRAKENBOT_{key.replace('.', '_').upper()}": key for key in ("config", *KEYS)}
    for name in sorted(environ):
        key = variables.get(name, "")
        if key in KEYS and environ[name]:
            yield name, key, _typed(environ[name], KEYS[key][0])
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
    last = name.rpartition(".")[2]
    word = "(secret|passw|token|credential|private_?key|api_?key|(^|_)key)$"
    if re.search(word, last.lower().replace("-", "_")):
        return (
            f"{said}: secrets do not belong in the configuration; put them into two files "
            "of mode 0600 and name these as api_key_file and api_secret_file in the table [keys]"
        )
    alike = [key for key in valid if key.rpartition(".")[2] == last or key.startswith(name)]
    nearest = alike or difflib.get_close_matches(name[:80], valid, 1, 0.0)
    return f"{said} is not known; the nearest valid name is {nearest[0]!r}"


def shown(key: str, raw: object) -> str:
    """Return a value in a form that anybody may see."""
    # A wrong proxy may hold a password anywhere.
    if key.startswith("notify.") or (key == "exchange.proxy" and not PROXY.accepts(raw)):
        return "(not shown)"
    if isinstance(raw, dict | list):
        return "a table" if isinstance(raw, dict) else "a list"
    if isinstance(raw, int) and raw.bit_length() > 256:
        return "a huge number"  # Python refuses to write out some of these.
    if isinstance(raw, str):
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
        raise ValueError(f"'{path}': $HOME is not set to an absolute path")
    return Path(home, *path.parts[1:])
