"""The commands. Each is a module with EXAMPLE, `add_arguments(parser)` and `run(arguments)`."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from krakenbot.clock import StopRequestedError
from krakenbot.log import clean
from krakenbot.pairs import plain

# By command: its module, and its line in `help`.
COMMANDS = {
    "run": ("run", "run the bot: one decision per finished candle (the default command)"),
    "demo": ("demo", "try the whole bot on the built-in exchange: no keys, no network"),
    "doctor": ("doctor", "check configuration, keys, clock, network, pair, account and costs"),
    "status": ("status", "show whether the bot runs, its position, last decision and result"),
    "history": ("history", "list decisions, orders or equity from the journal"),
    "report": ("report", "write one self-contained HTML file about what the bot did"),
    "backtest": ("backtest", "replay decisions, orders, fees and margin over past candles"),
    "sandbox": ("sandbox", "start a local exchange that answers like Kraken's Spot REST API"),
    "flatten": ("handover", "close the bot's position, verify, and leave the bot halted"),
    "adopt": ("handover", "take over your position at Kraken; shows first what that will trade"),
    "resume": ("handover", "clear a halt after showing its reason; max_loss starts again from 0"),
    "call": ("call", "call any method of Kraken's REST API; all but reads need --live"),
    "config": ("install", "show every setting with its value and where it came from"),
    "install": ("install", "set the bot up as a systemd service; starts nothing"),
    "uninstall": ("install", "remove the service; journal and keys stay"),
    "unit": ("install", "print the systemd unit of this installation and mode"),
    "build": ("install", "write the program as a single file and print its SHA-256"),
    "help": ("help", "this list, or a page of the manual: help TOPIC"),
}
PAGES = ("backtest", "sandbox")  # Commands with a page of the manual: `help` prints that.
CONFIG_HELP = "TOML file (default: $KRAKENBOT_CONFIG, else ./config.toml)"
_ENDED_BY_SIGNAL = ("run", "demo", "sandbox", "status")  # A signal is their usual end.


class UsageError(Exception):
    """The command line asks for something that cannot be done."""

    exit_code = 2


def exit_code(error: BaseException, command: str) -> int:
    """Return the exit code for the error that ended a command; 70 stands for a defect."""
    if isinstance(error, KeyboardInterrupt | StopRequestedError):
        return 0 if command in _ENDED_BY_SIGNAL else 130
    code: int = getattr(error, "exit_code", 70)
    return code


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for JSON or CSV: Decimals as text, control characters of texts escaped."""
    texts = {name: plain(value) for name, value in values.items() if isinstance(value, Decimal)}
    texts |= {name: clean(value) for name, value in values.items() if isinstance(value, str)}
    return {**values, **texts}


def in_columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with aligned columns; those whose name begins with | are right-aligned."""
    heads = [name.removeprefix("|") for name in names]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    sides = [">" if name.startswith("|") else "<" for name in names]
    return ["  ".join(map("{:{}{}}".format, row, sides, widths)).rstrip() for row in (heads, *rows)]


def shows_color(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that shows colors."""
    terminal, no_color = os.environ.get("TERM"), os.environ.get("NO_COLOR")
    return stream.isatty() and terminal != "dumb" and not no_color


def write_output(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write to a path that the user named: to a device or pipe directly, to a file in one step.

    A link is followed. Even the file of the running program can be replaced. `mode` gives a file's
    permissions. Raises UsageError when nothing can be written there.
    """
    try:
        if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(1)):  # /dev/stdout
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            return
        if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
            # Appending nothing changes no file. But Linux refuses it through a link in /tmp that is
            # another user's, and `realpath` would follow that.
            with open(path, "ab") as file:
                if not os.path.isfile(path):
                    file.write(data)
                    return
        real = Path(os.path.realpath(path))  # Fails when the current folder was removed.
        part = real.parent / f".krakenbot.{time.time_ns()}.part"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(part, flags, mode or 0o666), "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(data)
            part.replace(real)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
