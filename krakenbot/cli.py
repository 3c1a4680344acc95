"""The command line. A command's module is imported only when that command is asked for."""

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from krakenbot import __version__

COMMANDS = {
    "run": "the bot: one decision for each finished candle (what happens without a command)",
    "demo": "the whole bot against the built-in exchange: no keys, no network, no money",
    "doctor": "check configuration, keys, clock, network, pair, account and costs",
    "status": "position, target, last decision and why, profit and loss",
    "history": "what the journal holds: decisions, orders, equity",
    "report": "one self-contained HTML file about what the bot did",
    "backtest": "the same decisions, orders, fees and margin over Kraken's OHLCVT files",
    "sandbox": "a local exchange that answers as Kraken's Spot REST API does, for any client",
    "flatten": "close the bot's position, verify, and leave the bot halted",
    "resume": "clear a halt after showing why it was set; max_loss counts anew from here",
    "call": "any method of Kraken's REST API; what trades or moves money needs --live",
    "unit": "print a hardened systemd unit for this installation and this mode",
    "build": "write the program as a single file and print its SHA-256",
}
_CONFIG = "TOML file (default: $KRAKENBOT_CONFIG, else config.toml in this folder, if present)"
_PLAIN = ("--live", "--once", "--adopt")
_ENDED_BY_SIGNAL = ("run", "demo", "sandbox")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process."""
    command = "run"
    try:
        config, command, words = _split(list(sys.argv[1:] if argv is None else argv))
        module = importlib.import_module(f"krakenbot.commands.{command}")
        code: int = module.run(_arguments(module, command, config, words))
    except SystemExit as ending:
        # After --help and --version 0, after wrong usage 2.
        code = ending.code if isinstance(ending.code, int) else 2
    except BaseException as error:
        code = _exit_code(command, error)
    return _flushed(code)


def _split(words: list[str]) -> tuple[str | None, str, list[str]]:
    """Return --config's value, the command and what is left for the command's own parser."""
    config: str | None = None
    while words:
        word, *rest = words
        if word == "--config" and rest:
            config, *rest = rest
        elif word.startswith("--config="):
            config = word.partition("=")[2]
        elif word in COMMANDS:
            return config, word, rest
        elif word in ("-h", "--help", "--version"):
            print(f"krakenbot {__version__}" if word == "--version" else _help())
            sys.exit(0)
        elif word.startswith("-"):
            break
        else:
            import difflib

            nearest = difflib.get_close_matches(word, COMMANDS, 1, 0.0)[0]
            _say(f"krakenbot: unknown command {word!r}; the nearest is {nearest!r}")
            sys.exit(2)
        words = rest
    return config, "run", words


def _arguments(module: ModuleType, command: str, config: str | None, words: list[str]) -> Any:
    """Return a command's arguments, the words after its name."""
    if command == "run" and set(words) <= set(_PLAIN):
        # Without argparse the bot needs less memory for as long as it runs.
        given = {word.removeprefix("--"): word in words for word in _PLAIN}
        return SimpleNamespace(config=config, **given)
    import argparse

    parser = argparse.ArgumentParser(
        prog=f"krakenbot {command}",
        description=COMMANDS[command],
        epilog=f"example: {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", default=config, help=_CONFIG)
    module.add_arguments(parser)
    return parser.parse_args(words)


def _help() -> str:
    lines = "".join(f"  {name:9} {line}\n" for name, line in COMMANDS.items())
    return (
        f"usage: krakenbot [--config FILE] [COMMAND] [options]\n\ncommands:\n{lines}\n"
        f"--config FILE  {_CONFIG}\n--version      show it and exit\n\n"
        "Each command has its own --help with an example.\nexample: krakenbot demo"
    )


def _exit_code(command: str, error: BaseException) -> int:
    """Say what ended the command and return the exit code that stands for it."""
    from krakenbot import log
    from krakenbot.clock import StopRequestedError
    from krakenbot.errors import ConfigError, LaterError, StopError

    if isinstance(error, KeyboardInterrupt | StopRequestedError):
        return 0 if command in _ENDED_BY_SIGNAL else 130
    if isinstance(error, BrokenPipeError) and _is_output_cut():
        # Whoever read our output has seen enough.
        return 0
    if isinstance(error, ConfigError | StopError | LaterError):
        _say("\n".join(f"krakenbot: {log.clean(line)}" for line in str(error).splitlines()))
        if isinstance(error, StopError):
            return error.exit_code
        return 78 if isinstance(error, ConfigError) else 75
    # Indented, so that no text from outside can pass for a line of ours.
    _say("\n    ".join(["krakenbot: unexpected error", *log.describe(error).splitlines()]))
    return 70


def _is_output_cut() -> bool:
    """Return whether it is standard output that nobody reads, and not some other connection."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _flushed(code: int) -> int:
    """Return the exit code after a last write to standard output.

    Left to the interpreter, a failure would bring a complaint and an exit code of its own.
    """
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            _say(f"krakenbot: cannot write to standard output: {error.strerror}")
            return code or 70
    return code


def _say(text: str) -> None:
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
