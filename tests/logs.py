"""The log in tests: kept silent, or written into a text."""

import io
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from krakenbot import log


def forget_secrets() -> None:
    """Let the log hide nothing any more."""
    log._hidden.clear()  # A program never forgets a secret, so there is no public way.


def restoring() -> Callable[[], None]:
    """Return what brings back the log as it is now, hiding nothing."""
    handlers, level = log.logger.handlers, log.logger.level

    def restore() -> None:
        log.logger.handlers = handlers
        log.logger.setLevel(level)
        forget_secrets()

    return restore


@contextmanager
def logged(level: str = "warning", form: str = "text") -> Iterator[io.StringIO]:
    """Let the program's log go into the text that this yields."""
    restore, out = restoring(), io.StringIO()
    log.setup(level, form, out)
    try:
        yield out
    finally:
        restore()


def silence(test: unittest.TestCase | type[unittest.TestCase]) -> None:
    """Keep the log silent until the test's or the class's clean-up."""
    clean_up = test.addClassCleanup if isinstance(test, type) else test.addCleanup
    clean_up(restoring())
    log.setup("critical", "text", io.StringIO())


def silence_module() -> None:
    """Keep the log silent until the module's clean-up."""
    unittest.addModuleCleanup(restoring())
    log.setup("critical", "text", io.StringIO())
