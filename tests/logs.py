"""The log in tests: kept silent, or written into a text."""

import io
import unittest
from collections.abc import Iterator
from contextlib import contextmanager

from krakenbot import log


@contextmanager
def logged(level: str = "warning", form: str = "text") -> Iterator[io.StringIO]:
    """Let the program's log go into the text that this yields."""
    before, out = log.settings, io.StringIO()
    log.setup(level, form, out)
    try:
        yield out
    finally:
        log.settings = before


def silence(test: unittest.TestCase | type[unittest.TestCase]) -> None:
    """Keep the log silent until the test's or the class's clean-up."""
    clean_up = test.addClassCleanup if isinstance(test, type) else test.addCleanup
    clean_up(setattr, log, "settings", log.settings)
    log.setup("critical", "text", io.StringIO())


def silence_module() -> None:
    """Keep the log silent until the module's clean-up."""
    unittest.addModuleCleanup(setattr, log, "settings", log.settings)
    log.setup("critical", "text", io.StringIO())
