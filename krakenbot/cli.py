"""The command line: parses it and runs one command, whose module is imported only then."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from krakenbot import __version__, log
from krakenbot.clock import StopRequestedError
from krakenbot.commands import COMMANDS, CONFIG_HELP, PAGES, UsageError, exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of this process, and return the exit code."""
    _prepare_streams()
    command, lost = "run", None
    try:
        common = argparse.ArgumentParser(prog="krakenbot", add_help=False, allow_abbrev=False)
        common.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
        common.add_argument("--version", action="version", version=f"krakenbot {__version__}")
        options, words = common.parse_known_args(argv)
        if words and words[0] in ("-h", "--help"):
            words = ["help"]
        if words and not words[0].startswith("-"):
            command, *words = words
        if command == "help" and words and words[0] in COMMANDS and words[0] not in PAGES:
            command, words = words[0], ["--help"]
        if command not in COMMANDS:
            import difflib

            nearest = difflib.get_close_matches(command[:80], COMMANDS, 1, 0.0)[0]
            raise UsageError(f"unknown command {command[:80]!r}; did you mean {nearest!r}?")
        module = importlib.import_module(f"krakenbot.commands.{COMMANDS[command][0]}")
        arguments = _arguments(module, command, words)
        arguments.config = options.config
        code: int = module.run(arguments)
    except SystemExit as ending:
        # After --help and --version 0, after wrong usage 2.
        code = ending.code if isinstance(ending.code, int) else 2
    except BaseException as error:
        # With unbuffered output (python -u) the command itself fails when output is lost.
        lost = _lost_output("\n") if isinstance(error, OSError) else None
        code = 0 if lost else _report_error(command, error)
    lost = lost or _lost_output()
    if lost is None or isinstance(lost, BrokenPipeError):  # The reader has closed the pipe.
        return code
    log.say(f"krakenbot: cannot write to standard output: {lost.strerror}")
    return code or 2


def _prepare_streams() -> None:
    """Open standard streams that are closed, or other files would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # Not every terminal takes UTF-8.


def _arguments(module: ModuleType, command: str, words: list[str]) -> argparse.Namespace:
    """Return the arguments of a command, parsed from the words after its name."""
    examples = module.EXAMPLE.split("; ")
    example = next((text for text in examples if f" {command}" in text), examples[0])
    parser = argparse.ArgumentParser(
        prog=f"krakenbot {command}",
        description=COMMANDS[command][1],
        epilog=f"--config FILE may stand before or after the command.\nexample: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
    module.add_arguments(parser)
    return parser.parse_intermixed_args(words)


def _report_error(command: str, error: BaseException) -> int:
    """Print why the command ended and return its exit code."""
    code = exit_code(error, command)
    if code == 70:  # Indented, so that no text from outside looks like a line of the log.
        lines = ["krakenbot: unexpected error", *log.describe(error).splitlines()]
        log.say("\n    ".join(lines), "critical")
    elif not isinstance(error, KeyboardInterrupt | StopRequestedError):
        log.say("\n".join(f"krakenbot: {log.clean(line)}" for line in str(error).splitlines()))
    return code


def _lost_output(text: str = "") -> OSError | None:
    """Write text to standard output and flush it. Return the error if that fails, else None.

    Left to the interpreter's flush at exit, a failure would print a message and change the exit
    code.
    """
    try:
        if not sys.stdout.closed:
            print(end=text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return error
    return None
