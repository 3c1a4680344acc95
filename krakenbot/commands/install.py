"""Setting the bot up: `config`, `build` (a single file), and a systemd service with few rights.

The service runs as a user that systemd creates at each start (DynamicUser), and who then owns the
state folder. What root's commands write there belongs to that owner, too.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path

from krakenbot import config_reader
from krakenbot.commands import UsageError, in_columns, write_output
from krakenbot.commands.help import manual_file
from krakenbot.config import Config
from krakenbot.errors import ConfigError
from krakenbot.format import volume
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean, hide_keys
from krakenbot.presence import holder

EXAMPLE = (
    "sudo python3 krakenbot.pyz install --systemd --dry-run; sudo krakenbot uninstall --dry-run; "
    "krakenbot unit --template; krakenbot config --example > config.toml; "
    "krakenbot build --output bot.pyz && python3 -I -S bot.pyz demo"
)
EXAMPLE_FILE = "config.example.toml"
PACKED = (".py", ".md", ".toml", ".css", ".js", ".service", ".png")
NEVER = (1980, 1, 1, 0, 0, 0)
FOLDER = "/etc/krakenbot"
STATE = "/var/lib/krakenbot"
PROGRAM = "/opt/krakenbot/krakenbot.pyz"
WRAPPER = "/usr/local/bin/krakenbot"
UNIT_FILE = "/etc/systemd/system/krakenbot.service"
SYSTEM_PYTHON = "/usr/bin/python3"
KEYS = ("kraken_api_key", "kraken_api_secret")
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
DRY = "print every step, but do none"
OPTIONS = {
    "config": {"--example": "print a file with every setting explained, to start from"},
    "build": {},
    "unit": {"--template": f"one unit for several pairs: krakenbot@NAME runs {FOLDER}/NAME.toml"},
    "install": {"--systemd": "as a systemd service", "--dry-run": DRY},
    "uninstall": {"--purge": "remove journal, configuration and keys too", "--dry-run": DRY},
}
SLOW_START_S = 1500  # How much longer than `exchange.patience` open orders or a lockout may take.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for option, text in OPTIONS[parser.get_default("command")].items():
        needed = option == "--systemd"
        parser.add_argument(option, action="store_true", required=needed, help=text)
    if parser.get_default("command") == "build":
        name, text = Path("krakenbot.pyz"), "default: %(default)s"
        parser.add_argument("--output", type=Path, default=name, metavar="FILE", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.command == "build":
        archive = packed()
        write_output(arguments.output, archive)
        print(f"{hashlib.sha256(archive).hexdigest()}  {arguments.output}")
        return 0
    if arguments.command == "config" and arguments.example:
        print(manual_file(EXAMPLE_FILE), end="")
        return 0
    if arguments.command in ("config", "unit"):
        config = config_reader.load_here(arguments.config)
        if arguments.command == "unit":
            file = os.path.abspath(_named(arguments.config) or f"{FOLDER}/config.toml")
            print(unit(config, file, arguments.template), end="")
        else:
            rows = [(key, value(config, key), by) for key, by in config.sources.items()]
            print("\n".join(map(clean, in_columns(("", "", ""), rows)[1:])))
        return 0
    installs, is_dry = arguments.command == "install", arguments.dry_run
    if os.geteuid() != 0 and not is_dry:
        raise UsageError(f"needs root: sudo ... {arguments.command}, or --dry-run to see the steps")
    os.umask(0o022)  # The service must be able to read the program.
    for text, do in _install(arguments.config) if installs else _uninstall(arguments.purge):
        print(text, flush=True)
        if not is_dry:
            do()
    if is_dry or installs:
        print("None of this was done." if is_dry else NEXT)
    return 0


Step = tuple[str, Callable[[], object]]  # What it does, in words, and the function that does it.
PLACES = {
    "keys.api_key_file": f"{FOLDER}/{KEYS[0]}",
    "keys.api_secret_file": f"{FOLDER}/{KEYS[1]}",
    "state.directory": STATE,
}
NEXT = f"""\
Nothing was started. Next steps:
  put the API key into {FOLDER}/{KEYS[0]},
    and its secret into {FOLDER}/{KEYS[1]} (neither for paper)
  edit {FOLDER}/config.toml; install again after a change of
    `mode`, `pair`, `[keys]`, `strategy.file` or `exchange.patience`
  sudo krakenbot --config {FOLDER}/config.toml doctor
  sudo systemctl enable --now krakenbot    (after an update: systemctl restart)
  sudo krakenbot --config {FOLDER}/config.toml status"""


def _install(given: str | None) -> Iterator[Step]:
    """Yield the steps that make this program a service. Raises ConfigError before the first."""
    archive, folder, file = packed(), Path(PROGRAM).parent, Path(FOLDER, "config.toml")
    given = _named(given)
    if given is None and os.path.exists("config.toml"):
        given = "config.toml"
    keeps, files = os.path.exists(file), dict[str, bytes]()
    if keeps:
        config = config_reader.load(str(file), {"STATE_DIRECTORY": STATE}, Path("/"))
    else:
        config, files = _service_files(given)
    text = unit(config, str(file), False)
    digest = hashlib.sha256(archive).hexdigest()
    yield _write(PROGRAM, archive, 0o644, f"the program as one file, SHA-256 {digest}")
    yield f"set mode 755 of {folder}, for the service", partial(folder.chmod, 0o755)
    wrapper = f'#!/bin/sh\nexec {shlex.quote(_python())} -I -S {PROGRAM} "$@"\n'
    yield _write(WRAPPER, wrapper.encode(), 0o755, "a command that runs it")
    if keeps and given and os.path.realpath(given) != os.path.realpath(file):
        yield _note(f"keeps {file}; {given} was not read")
    files = {name: b"" for name in KEYS if not os.path.lexists(f"{FOLDER}/{name}")} | files
    kinds = {"config.toml": f"mode {config.mode}, {config.pair}"}
    kinds |= dict.fromkeys(KEYS, "empty, for you to fill in")
    for name, data in files.items():
        yield _write(f"{FOLDER}/{name}", data, 0o600, kinds.get(name, "your rule"))
    yield _write(UNIT_FILE, text.encode(), 0o644, "the unit")
    yield _systemctl("daemon-reload")
    for key, want in PLACES.items():
        if value(config, key) != want or config.sources[key] == "STATE_DIRECTORY":
            yield _note(f'{file} should say {key} = "{want}", so that `sudo krakenbot` uses it too')


def _named(given: str | None) -> str | None:
    """Return the path of the configuration that the command line or the environment names."""
    named = os.environ.get("KRAKENBOT_CONFIG") or None if given is None else given
    return named and os.path.expanduser(named)


def _service_files(given: str | None) -> tuple[Config, dict[str, bytes]]:
    """Return the service's configuration, made from the one given, and its files by name."""
    if given and os.path.exists(given) and not os.path.isfile(given):
        raise ConfigError(f"{given}: is not a regular file")  # It is read twice.
    variables = {f"KRAKENBOT_{key.replace('.', '_').upper()}": at for key, at in PLACES.items()}
    variables["HOME"] = os.environ.get("HOME", "")
    name = "/dev/null" if given is None else given
    config = config_reader.load(name, variables, config_reader.current_folder())
    text = Path(given).read_text("utf-8-sig") if given else manual_file(EXAMPLE_FILE)
    rule = config.strategy.file
    files = {"config.toml": _with_places(text, name, rule).encode()}
    if rule is not None:
        try:
            files[rule.name] = rule.read_bytes()
        except OSError as error:
            raise ConfigError(f"strategy.file: {error.filename}: {error.strerror}") from error
        config = config._replace(strategy=config.strategy._replace(file=Path(FOLDER, rule.name)))
    return config, files


def _with_places(text: str, name: str, rule: Path | None) -> str:
    """Return the text of a configuration with the service's paths for journal, keys and rule.

    `name` is that of its file. Raises ConfigError if the text is such that only a person can put
    them there.
    """
    fields = "|".join(key.partition(".")[2] for key in PLACES)
    heads = r"\[[ \t]*(keys|state)[ \t]*\]"
    lines = rf"(?m)^[ \t]*({heads}|(# )?((keys|state)\.)?({fields})[ \t]*=).*\n?"
    places = "".join(f'{key} = "{at}"\n' for key, at in PLACES.items())
    changed = places + re.sub(lines, "", text)
    wanted = tomllib.loads(text) | tomllib.loads(places)
    if rule is not None:
        wanted["strategy"]["file"] = rule.name  # Its copy is beside the configuration.
        line = r"(?m)^([ \t]*(strategy\.)?file[ \t]*=[ \t]*)([\"']).*?\3"
        name_in_toml = json.dumps(rule.name, ensure_ascii=False)
        changed = re.sub(line, lambda found: found[1] + name_in_toml, changed, count=1)
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(changed) == wanted:
            return changed
    raise ConfigError(
        f"{name}: cannot insert the service's paths. Write [keys], [state] and [strategy] as plain "
        "tables: the name alone on its line, then one setting on each line"
    )


def _uninstall(purge: bool) -> Iterator[Step]:
    """Yield the steps that remove the service; each must be done before the next is asked for.

    Raises ConfigError while a bot runs, holds something or has unresolved orders.
    """
    _refuse_while_held()
    yield _systemctl("disable", "--now", "krakenbot")
    yield "check that no other unit's bot runs", _refuse_while_running
    _refuse_while_held()  # The bot may have traded until it ended.
    for path in (UNIT_FILE, WRAPPER, str(Path(PROGRAM).parent)):
        yield _remove(path)
    yield _systemctl("daemon-reload")
    if purge:
        for path in (FOLDER, STATE, "/var/lib/private/krakenbot"):
            yield _remove(path)
        yield _note("delete the API key at Kraken as well")
    else:
        yield _note(f"{FOLDER} and {STATE} stay: configuration, keys, journal")


def _refuse_while_running() -> None:
    for file in sorted(Path(STATE).glob("*.lock")):
        if (pid := holder(file)) is not None:
            raise ConfigError(
                f"{file} is held (pid {pid}): a bot or a command still runs. Stop it first: "
                "systemctl stop its service, or kill that process"
            )


def _refuse_while_held() -> None:
    for file in sorted(Path(STATE).glob("live-*.db")):
        with closing(open_read_only(file)) as journal:
            held, unresolved = journal.account().held, len(journal.open_intents())
            shown = volume(held, journal.get("base"))
        if held or unresolved:
            raise ConfigError(
                f"{file} shows {shown} held, unresolved orders: {unresolved}. Close it "
                "first: sudo krakenbot --config FILE flatten --live, with its configuration"
            )


def _note(text: str) -> Step:
    return f"note: {text}", lambda: None


def _write(path: str, data: bytes, mode: int, what: str) -> Step:
    def do() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # What a link leads to is somebody else's, and nobody may read from a pipe.
        if os.path.islink(path) or not (os.path.isfile(path) or os.path.isdir(path)):
            Path(path).unlink(missing_ok=True)
        write_output(Path(path), data, mode)

    return f"write {path} (mode {mode:03o}): {what}", do


def _remove(path: str) -> Step:
    is_folder = os.path.isdir(path) and not os.path.islink(path)
    unlink = partial(Path(path).unlink, missing_ok=True)
    return f"remove {path}", partial(shutil.rmtree, path) if is_folder else unlink


def _systemctl(*words: str) -> Step:
    def do() -> None:
        try:
            subprocess.run(["systemctl", *words], check=words == ("daemon-reload",))
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(f"systemctl {' '.join(words)}: {error}") from error

    return f"run systemctl {' '.join(words)}", do


def _python() -> str:
    """Return the path of a Python outside the folders that are hidden from the service."""
    hidden = [os.path.realpath(folder) for folder in HIDDEN]
    places = os.path.dirname(sys.executable), sys.executable, sys.base_prefix
    real = [Path(os.path.realpath(place)) for place in places]
    if not any(place.is_relative_to(folder) for place in real for folder in hidden):
        return sys.executable
    check = [SYSTEM_PYTHON, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if shutil.which(SYSTEM_PYTHON) is None or subprocess.call(check):
        raise UsageError(f"no Python 3.11 or newer outside of {', '.join(HIDDEN)}")
    return SYSTEM_PYTHON


def unit(config: Config, file: str, template: bool) -> str:
    """Return the text of a systemd unit. `file` is the path of the configuration.

    With `template` it is the unit krakenbot@, which serves several pairs. Systemd reads
    configuration, keys and rule as root and hands them over as credentials. Raises ConfigError when
    the rule's name cannot be that of a credential, or a path seems to be a key. Source: man pages
    systemd.exec(5), "LoadCredential", and systemd.service(5).
    """
    rule, sources = config.strategy.file, {"config.toml": file}
    if rule is not None:
        if not re.fullmatch("[A-Za-z0-9._-]+", rule.name) or rule.name in ("config.toml", *KEYS):
            words = "a service takes names of A-Z a-z 0-9 . _ - that no other of its files has"
            raise ConfigError(f"strategy.file: rename '{rule}': {words}")
        sources[rule.name] = str(rule)
    if config.mode != "paper":
        for name, path in zip(KEYS, config.keys, strict=True):
            sources[name] = str(path or f"{FOLDER}/{name}")
    credentials = ""
    for name, place in sources.items():
        escaped = place.replace("%", "%%")
        if template and place != str(rule):
            # NAME.toml, NAME.kraken_api_key, NAME.kraken_api_secret.
            escaped = f"{FOLDER}/%i.{name.removeprefix('config.')}"
        credentials += f"LoadCredential={name}:{escaped}\n"
    if any(map(hide_keys, sources.values())):  # Everybody may read a unit.
        raise ConfigError("a key seems to stand where the path of a file belongs")
    return manual_file("krakenbot.service").format(
        name="krakenbot@" if template else "krakenbot",
        what="%i" if template else f"{config.mode} {config.pair}",
        program=f"{_quoted(_python())} -I -S {PROGRAM}",
        live=" --live" if config.mode == "live" else "",
        credentials=credentials,
        start_s=config.exchange.patience + SLOW_START_S,
    )


def _quoted(path: str) -> str:
    """Return a path as systemd needs it in a unit: quoted, with %, $ and backslashes escaped."""
    path = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{path}"' if set(path) & set(" '\"\\;") else path


def packed() -> bytes:
    """Return the program as one zip archive: the same bytes whenever and wherever it is made.

    Its files are sorted and have neither times nor compression, which would vary.
    """
    root, memory = Path(__file__).parents[2], io.BytesIO()
    if root.is_file():  # The program runs from its archive.
        with zipfile.ZipFile(root) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
    else:
        paths = filter(Path.is_file, (root / "krakenbot").rglob("*"))
        found = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    names = [name for name in found if name.startswith("krakenbot/") and name.endswith(PACKED)]
    found["__main__.py"] = found["krakenbot/__main__.py"]
    with zipfile.ZipFile(memory, "w") as archive:
        for name in sorted([*names, "__main__.py"]):
            entry = zipfile.ZipInfo(name, NEVER)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, found[name])
    return memory.getvalue()


def value(config: Config, key: str) -> str:
    """Return a setting's value as text, with secrets hidden."""
    found = attrgetter(key.replace("state.", "state_"))(config)
    if isinstance(found, float | Path):
        return f"{found:g}" if isinstance(found, float) else str(found)
    return "none" if found is None else config_reader.shown(key, found).strip("'")
