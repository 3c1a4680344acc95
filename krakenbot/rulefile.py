"""A user's own strategy in a Python file. What the file must define: manual/strategies.md.

Its code runs in this process and can see everything in it, keys too. So nobody else may be able
to write the file, it is read only once, and its answers are checked at every candle.
"""

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, localcontext
from functools import cache
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import NamedTuple, TypeVar

from krakenbot.errors import ConfigError
from krakenbot.model import ZERO, Candle, Direction, Signal

CANDLES_MAX = 700
ANSWER_MAX_S, TRIAL_MAX_S = 5.0, 1.0
_REPEAT_S = 0.005  # A rule that catches the first interruption will not catch them all.
_OTHERS_WRITE = 0o022
T = TypeVar("T")


class RuleError(ConfigError):
    """The rule file cannot be trusted or its answer is not valid. Names the file and line."""


class Rule(NamedTuple):
    """A rule file as it was read. `sha256` is that of the bytes that run."""

    path: Path
    sha256: str
    candles: int
    direction: FunctionType
    average: FunctionType | None

    def signal(
        self,
        candles: Sequence[Candle],
        parameters: Mapping[str, object],
        answer_max_s: float = ANSWER_MAX_S,
    ) -> Signal:
        """Return the rule's signal, without a direction while there are too few candles.

        Raises RuleError when it fails, takes longer, or its answer is not valid.
        """
        if len(candles) < self.candles:
            return Signal(None, ZERO, 0)
        seen = tuple(candles[-self.candles :])

        def ask() -> Signal:
            view = self.direction(seen, **parameters)
            if view is not None and (type(view) is bool or view not in (1, 0, -1)):
                place = f"{self.path}:{self.direction.__code__.co_firstlineno}"
                raise RuleError(f"{place}: direction returned {view!r:.80}, not 1, -1, 0 or None")
            average = Decimal(self.average(seen) if self.average else seen[-1].close)
            if not average.is_finite():
                raise ValueError(f"average returned {average}")
            direction = None if view is None else Direction(view)
            return Signal(direction, average, int(direction or 0))

        return _guarded(ask, self.path, answer_max_s)

    def try_on(self, candles: Sequence[Candle], parameters: Mapping[str, object]) -> None:
        """Raise RuleError unless the rule gives the same valid answer twice, each in a second."""
        first, second = (self.signal(candles, parameters, TRIAL_MAX_S) for _ in range(2))
        if first != second:
            raise RuleError(f"{self.path}: it gives two answers for the same candles")


@cache
def load(path: Path) -> Rule:
    """Return the rule in a file, which is read and run only once in this process.

    Raises RuleError when others may write the file, it fails to run, or definitions are missing.
    """
    source, module = _read(path), ModuleType("krakenbot_rule")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # Dataclasses look up annotations there.
    _guarded(lambda: exec(compile(source, str(path), "exec"), vars(module)), path)
    candles, direction, average = map(vars(module).get, ("CANDLES", "direction", "average"))
    if type(candles) is not int or not 1 <= candles <= CANDLES_MAX:
        raise RuleError(f"{path}: needs CANDLES = a whole number from 1 to {CANDLES_MAX}")
    if not isinstance(direction, FunctionType) or not isinstance(average, FunctionType | None):
        raise RuleError(f"{path}: needs def direction(candles), and may have def average(candles)")
    return Rule(path, hashlib.sha256(source).hexdigest(), candles, direction, average)


def _read(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK, opening a named pipe would block forever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            for place in (file.fileno(), path.parent, path.resolve().parent):
                status = os.stat(place)
                if status.st_mode & _OTHERS_WRITE or status.st_uid not in (0, os.geteuid()):
                    name = path if isinstance(place, int) else place
                    raise RuleError(
                        f"{name}: others may write it, so they could trade with your money; it "
                        f"must belong to you or root: chown it, then run: chmod go-w {name}"
                    )
            return file.read()
    except OSError as error:
        raise RuleError(f"{path}: cannot be read: {error.strerror}") from error


class _TooLongError(BaseException):
    """Not an Exception, so that a rule's own `except Exception` does not swallow it."""


def _guarded(ask: Callable[[], T], path: Path, answer_max_s: float = 0.0) -> T:
    """Return what a part of the rule returns; 0 s is no limit. RuleError names the line.

    Only Python code can be interrupted. A call into C that never returns is left to systemd's
    watchdog.
    """
    running = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if running:
            raise _TooLongError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, answer_max_s, _REPEAT_S)
        with localcontext():  # A rule must not change the precision of money elsewhere.
            return ask()
    except (KeyboardInterrupt, RuleError):
        raise
    except BaseException as error:
        running = False
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines = [error.lineno or 0]
        what = traceback.format_exception_only(error)[-1].strip()
        if isinstance(error, _TooLongError):
            what = f"no answer within {answer_max_s:g} s"
        raise RuleError(":".join([str(path), *map(str, lines[-1:]), f" {what}"])) from error
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
