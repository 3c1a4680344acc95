"""Folders for tests, in memory where there is such a place: there it costs nothing to sync."""

import os
import tempfile
import unittest
from pathlib import Path

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def own_folder(test: unittest.TestCase | type[unittest.TestCase]) -> Path:
    """Return a new folder that is gone after the test or the class."""
    folder = tempfile.TemporaryDirectory(prefix="krakenbot-test-", dir=MEMORY)
    (test.addClassCleanup if isinstance(test, type) else test.addCleanup)(folder.cleanup)
    return Path(folder.name).resolve()  # On macOS it lies behind a link.
