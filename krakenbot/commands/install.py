"""`install`, `uninstall` and `unit`: the bot as a systemd service with little access.

It runs as a dynamic user, which needs no setup; systemd gives it the state folder at each start.
Commands that root runs leave every file there to the folder's owner.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from krakenbot import config as configuration
from krakenbot.commands import UsageError, write_atomically
from krakenbot.commands.build import packed
from krakenbot.commands.config import value
from krakenbot.commands.help import page
from krakenbot.config import Config
from krakenbot.errors import ConfigError
from krakenbot.format import volume
from krakenbot.journal_file import open_read_only

EXAMPLE = (
    "sudo python3 krakenbot.pyz install --systemd --dry-run; sudo krakenbot uninstall --dry-run; "
    "krakenbot unit --template"
)
FOLDER = "/etc/krakenbot"
STATE = "/var/lib/krakenbot"
PROGRAM = "/opt/krakenbot/krakenbot.pyz"
WRAPPER = "/usr/local/bin/krakenbot"
UNIT_FILE = "/etc/systemd/system/krakenbot.service"
KEYS = ("kraken_api_key", "kraken_api_secret")
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
SLOW_START_S = 1500  # On top of `exchange.patience`: open orders, or a lockout of the key.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command = parser.get_default("command")
    if command == "unit":
        text = f"one unit for several pairs: krakenbot@NAME runs {FOLDER}/NAME.toml"
        parser.add_argument("--template", action="store_true", help=text)
        return
    if command == "install":
        text = "as a systemd service"
        parser.add_argument("--systemd", action="store_true", required=True, help=text)
    else:
        text = "remove journal, configuration and keys as well"
        parser.add_argument("--purge", action="store_true", help=text)
    parser.add_argument("--dry-run", action="store_true", help="print every step, but do none")


def run(arguments: argparse.Namespace) -> int:
    if arguments.command == "unit":
        config = configuration.load_here(arguments.config)
        file = os.path.abspath(arguments.config or f"{FOLDER}/config.toml")
        print(unit(config, file, arguments.template), end="")
        return 0
    if os.geteuid() != 0 and not arguments.dry_run:
        raise UsageError(f"needs root: sudo ... {arguments.command}, or --dry-run to see the steps")

    def act(text: str, do: Callable[[], object] = lambda: None) -> None:
        print(text, flush=True)
        if not arguments.dry_run:
            do()

    if arguments.command == "install":
        _install(arguments.config, act)
    else:
        _uninstall(arguments.purge, act)
    if arguments.dry_run:
        print("None of this was done.")
    elif arguments.command == "install":
        print(NEXT)
    return 0


# Takes the text of a step and, unless it is only a note, the function that does it.
Act = Callable[..., None]
PLACES = {
    "keys.api_key_file": f"{FOLDER}/{KEYS[0]}",
    "keys.api_secret_file": f"{FOLDER}/{KEYS[1]}",
    "state.directory": STATE,
}
NEXT = f"""\
Nothing was started. Next steps:
  put the API key into {FOLDER}/{KEYS[0]}, its secret into {FOLDER}/{KEYS[1]} (not for paper)
  edit {FOLDER}/config.toml; install again after a change of `mode`, `pair`, `[keys]`,
    `strategy.file` or `exchange.patience`
  sudo krakenbot --config {FOLDER}/config.toml doctor
  sudo systemctl enable --now krakenbot      (after an update: systemctl restart krakenbot)
  sudo krakenbot --config {FOLDER}/config.toml status"""


def _install(given: str | None, act: Act) -> None:
    """Make this program a service. Raises ConfigError for a wrong configuration."""
    archive, python, file = packed(), _python(), Path(FOLDER, "config.toml")
    given = given or ("config.toml" if os.path.exists("config.toml") else None)
    is_new = not file.exists()
    if is_new:
        if given and os.path.exists(given) and not os.path.isfile(given):
            raise ConfigError(f"{given}: is not a regular file")  # It is read twice.
        variables = {f"KRAKENBOT_{key.replace('.', '_').upper()}": at for key, at in PLACES.items()}
        config = configuration.load(given or "/dev/null", variables, Path.cwd())
        try:
            source = config.strategy.file.read_bytes() if config.strategy.file else b""
        except OSError as error:
            raise ConfigError(f"strategy.file: {error.filename}: {error.strerror}") from error
        text = Path(given).read_text("utf-8-sig") if given else page("config.example.toml")
        settings = _with_places(text, given or "config.example.toml")
        rule = config.strategy.file
        written = Path(tomllib.loads(settings)["strategy"]["file"]) if rule else Path()
        if rule and not written.is_absolute() and written.parent != Path():
            # Commands would not find its copy in the service's folder.
            words = f'write file = "{rule.name}" and put the rule beside it'
            raise ConfigError(f"{given}: strategy.file: {words}")
    else:
        config = configuration.load(str(file), {"STATE_DIRECTORY": STATE}, Path("/"))
    digest = hashlib.sha256(archive).hexdigest()
    _write(act, PROGRAM, archive, 0o644, f"the program as one file, SHA-256 {digest}")
    wrapper = f'#!/bin/sh\nexec {python} -I -S {PROGRAM} "$@"\n'
    _write(act, WRAPPER, wrapper.encode(), 0o755, "a command that runs it")
    if is_new:
        what = f"mode {config.mode}, {config.pair}"
        _write(act, str(file), settings.encode(), 0o600, what)
        if rule is not None:
            _write(act, f"{FOLDER}/{rule.name}", source, 0o600, "your rule")
            strategy = config.strategy._replace(file=Path(FOLDER, rule.name))
            config = config._replace(strategy=strategy)
    for name in KEYS:
        if not os.path.lexists(f"{FOLDER}/{name}"):
            _write(act, f"{FOLDER}/{name}", b"", 0o600, "empty, for you to fill in")
    text = unit(config, str(file), False)
    _write(act, UNIT_FILE, text.encode(), 0o644, "the unit")
    _systemctl(act, "daemon-reload")
    for key, want in PLACES.items():
        if value(config, key) != want or config.sources[key] == "STATE_DIRECTORY":
            act(f'note: {file} should say {key} = "{want}", so that `sudo krakenbot` uses it too')


def _with_places(text: str, name: str) -> str:
    """Return the text of a configuration with the service's paths for journal and keys.

    Raises ConfigError when only a person can put them there.
    """
    fields = "|".join(key.partition(".")[2] for key in PLACES)
    heads = r"\[[ \t]*(keys|state)[ \t]*\]"
    lines = rf"(?m)^[ \t]*({heads}|(# )?((keys|state)\.)?({fields})[ \t]*=).*\n?"
    changed = "".join(f'{key} = "{at}"\n' for key, at in PLACES.items()) + re.sub(lines, "", text)
    wanted = tomllib.loads(text) | {"keys": {}, "state": {}}
    for key, at in PLACES.items():
        table, _, field = key.partition(".")
        wanted[table][field] = at
    with suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(changed) == wanted:
            return changed
    raise ConfigError(
        f"{name}: cannot insert the service's paths. Write [keys] and [state] as plain "
        "tables: the name alone on its line, then one setting on each line"
    )


def _uninstall(purge: bool, act: Act) -> None:
    """Remove the service. ConfigError while a live bot has a position or unresolved orders."""
    _refuse_while_held()
    _systemctl(act, "disable", "--now", "krakenbot")
    _refuse_while_held()  # It may have traded until the moment it ended.
    for path in (UNIT_FILE, WRAPPER, str(Path(PROGRAM).parent)):
        act(f"remove {path}", partial(_remove, path))
    _systemctl(act, "daemon-reload")
    if purge:
        for path in (FOLDER, STATE, "/var/lib/private/krakenbot"):
            act(f"remove {path}", partial(_remove, path))
        act("note: delete the API key at Kraken as well")
    else:
        act(f"note: {FOLDER} and {STATE} stay: configuration, keys, journal")


def _refuse_while_held() -> None:
    for file in sorted(Path(STATE).glob("live-*.db")):
        with closing(open_read_only(file)) as journal:
            held, unresolved = journal.account().held, len(journal.open_intents())
            shown = volume(held, journal.get("base"))
        if held or unresolved:
            raise ConfigError(
                f"{file} shows {shown} held and {unresolved} orders unresolved. Close it "
                f"first: sudo krakenbot --config {FOLDER}/config.toml flatten --live"
            )


def _write(act: Act, path: str, data: bytes, mode: int, what: str) -> None:
    def do() -> None:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomically(Path(path), data, mode)

    act(f"write {path} (mode {mode:03o}): {what}", do)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def _systemctl(act: Act, *words: str) -> None:
    def do() -> None:
        try:
            subprocess.run(["systemctl", *words], check=words == ("daemon-reload",))
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(f"systemctl {' '.join(words)}: {error}") from error

    act(f"run systemctl {' '.join(words)}", do)


def _python() -> str:
    """Return a Python outside the folders that are hidden from the service."""
    for python in (sys.executable, "/usr/bin/python3"):
        if not python.startswith(HIDDEN) and _is_new_enough(python):
            return python
    raise UsageError(f"no Python 3.11 or newer outside of {', '.join(HIDDEN)}")


def _is_new_enough(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-I", "-S", "-c", check], check=False).returncode == 0
    except OSError:
        return False


def unit(config: Config, file: str, template: bool) -> str:
    """Return the unit's text; `file` is the configuration, which only root needs to read."""
    sources = {"config.toml": f"{FOLDER}/%i.toml" if template else file.replace("%", "%%")}
    rule = config.strategy.file
    if rule is not None:
        sources[rule.name] = str(rule).replace("%", "%%")
    if config.mode != "paper":
        for name, path in zip(KEYS, config.keys, strict=True):
            place = f"{FOLDER}/{'%i.' if template else ''}{name}"
            sources[name] = str(path).replace("%", "%%") if path and not template else place
    return page("krakenbot.service").format(
        name="krakenbot@" if template else "krakenbot",
        what="%i" if template else f"{config.mode} {config.pair}",
        program=f"{_quoted(_python())} -I -S {PROGRAM}",
        live=" --live" if config.mode == "live" else "",
        credentials="".join(f"LoadCredential={key}:{at}\n" for key, at in sources.items()),
        start_s=config.exchange.patience + SLOW_START_S,
    )


def _quoted(path: str) -> str:
    """Return a path as systemd reads it: a percent sign begins a specifier, a dollar a variable."""
    path = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{path}"' if set(path) & set(" '\"\\;") else path
