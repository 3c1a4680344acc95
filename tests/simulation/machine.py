"""The simulated computer: clocks that can be wrong, files that can be lost, signals, one process.

What runs on it is the shipped program, from its commands down; only what the operating system
gives is replaced. Waiting costs nothing, and any step may fail or be the process's last.
"""

import _thread
import contextlib
import fcntl
import gc
import io
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.world import World

real_open, real_close, real_connect = os.open, os.close, sqlite3.connect
ENOSPC = OSError(28, "No space left on device")


class Death(BaseException):
    """The process dies at this very step."""


class Disk(sqlite3.Connection):
    """A database on which any statement may fail or be the process's last."""

    machine: "Machine"
    path: Path

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return self._carry_out(super().execute, sql, *parameters)

    def executescript(self, sql: str) -> sqlite3.Cursor:
        return self._carry_out(super().executescript, sql)

    def _carry_out(self, act: Callable[..., sqlite3.Cursor], *statement: Any) -> sqlite3.Cursor:
        after = self.machine.statement(self, statement[0])
        cursor = act(*statement)
        if after is not None:
            cursor.close()
            raise after
        return cursor


class Machine:
    """As a context it stands in place of the operating system; one process at a time runs."""

    def __init__(self, host: "World", folder: Path) -> None:
        self.host, self.folder = host, folder
        self.database: Path | None = None  # The journal that was opened last.
        self._files: dict[int, str] = {}
        self._databases: list[Disk] = []
        self._durable: dict[str, bytes] = {}  # What of a file is on disk for certain.
        self._unsynced: dict[Path, bytes] = {}  # Databases as they were before unsynced commits.
        self._handler: Callable[..., object] | None = None
        self._saved: list[tuple[Any, str, Any]] = []
        self.looking = False

    def __enter__(self) -> "Machine":
        host, log = self.host, io.StringIO()
        log.write = lambda line: host.log(line) or len(line)  # type: ignore[method-assign]
        for place, name, new in (
            (time, "time", lambda: host.time + host.wall_off),
            (time, "time_ns", lambda: int((host.time + host.wall_off) * 1e9)),
            (time, "monotonic", lambda: host.time - host.slept),
            (time, "clock_gettime", self._clock_gettime),
            (time, "sleep", self._sleep),
            (signal, "signal", self._signal),
            (os, "open", self._open),
            (os, "close", self._close),
            (threading.Thread, "start", lambda thread: thread.run()),  # What it does takes no time.
            (_thread, "start_new_thread", lambda run, arguments: run(*arguments)),
            (threading.Thread, "join", lambda *_: None),
            (threading.Thread, "is_alive", lambda _: False),
            (os, "write", partial(self._write, os.write)),
            (os, "pwrite", partial(self._write, os.pwrite)),
            (os, "fsync", self._fsync),
            (sqlite3, "connect", self._connect),
            (gc, "collect", lambda *_: 0),  # The heap is the simulation's, not the bot's.
            (gc, "freeze", lambda: None),
            (sys, "stdout", log),
            (sys, "stderr", log),
        ):
            self.replace(place, name, new)
        return self

    def replace(self, place: Any, name: str, new: Any) -> None:
        """Put something in place of a name until the machine is gone."""
        self._saved.append((place, name, getattr(place, name)))
        setattr(place, name, new)

    def __exit__(self, *_: object) -> None:
        for place, name, old in reversed(self._saved):
            setattr(place, name, old)
        self._saved.clear()

    @property
    def hears(self) -> bool:
        """Return whether a process runs that a signal can end."""
        return self._handler is not None

    def terminate(self) -> None:
        """Send SIGTERM to the process that runs and hears it."""
        assert self._handler is not None
        self._handler(signal.SIGTERM, None)

    def end_process(self) -> None:
        """Take back what the process held, as the kernel does; forget what was in its memory."""
        # Nothing but its end makes a process forget these.
        for module, name in (("log", "_hidden"), ("kraken.transport", "_answering")):
            memory = getattr(sys.modules.get(f"krakenbot.{module}"), name, None)
            if memory:
                memory.clear()
        for database in self._databases:
            sqlite3.Connection.close(database)
        for descriptor in self._files:
            with contextlib.suppress(OSError):
                real_close(descriptor)
        self._databases.clear()
        self._files.clear()
        self._handler = None

    def lose_power(self, torn: bytes = b"") -> list[str]:
        """Take back whatever was not on disk for certain; return what that was.

        `torn` is what a write that was under way has left behind what was synced.
        """
        lost = []
        wal = Path(f"{self.database}-wal")
        if torn and wal.exists():
            wal.write_bytes(wal.read_bytes() + torn)
            lost.append("torn")
        for path, old in self._unsynced.items():
            for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                name.unlink(missing_ok=True)
            path.write_bytes(old)
            lost.append(path.name)
        for name, synced in self._durable.items():
            if Path(name).exists() and Path(name).read_bytes() != synced:
                Path(name).write_bytes(synced)
                lost.append(name)
        self._unsynced.clear()
        return lost

    def is_locked(self) -> bool:
        """Return whether a second process would find every lock file of this one taken."""
        files = {path for path in self._files.values() if path.endswith(".lock")}
        for path in files:
            descriptor = real_open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            finally:
                real_close(descriptor)
            return False
        return bool(files)

    def is_durable(self) -> bool:
        """Return whether all that was committed would survive a loss of power."""
        return not self._unsynced

    def read_only(self) -> sqlite3.Connection | None:
        """Return a connection past all faults to the journal in use."""
        if self.database is None or not self.database.exists():
            return None
        connection = real_connect(self.database, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    def _clock_gettime(self, clock: int) -> float:
        if clock == time.CLOCK_REALTIME:
            return self.host.time + self.host.wall_off
        return self.host.time - (0 if clock == time.CLOCK_BOOTTIME else self.host.slept)

    def _sleep(self, seconds: float) -> None:
        self.host.touch("wait")
        self.host.wait(seconds)

    def _signal(self, number: int, handler: Any) -> Any:
        if number == signal.SIGTERM and callable(handler):
            self._handler = handler

    def _close(self, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        real_close(descriptor)

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        descriptor = real_open(path, flags, mode, **more)
        if str(path).startswith(str(self.folder)) and os.path.isfile(path):
            self._files[descriptor] = str(path)
            self._durable.setdefault(str(path), Path(path).read_bytes() if flags & 3 else b"")
        return descriptor

    def _write(self, really: Callable[..., int], descriptor: int, *what: Any) -> int:
        after = self.host.touch("write") if self._files.get(descriptor) else None
        count = really(descriptor, *what)
        if after is not None:
            raise ENOSPC if isinstance(after, sqlite3.Error) else after
        return count

    def _fsync(self, descriptor: int) -> None:
        path = self._files.get(descriptor)
        if path and os.path.isfile(path):
            self._durable[path] = Path(path).read_bytes()

    def _connect(self, path: Any, *args: Any, **more: Any) -> sqlite3.Connection:
        text = str(path)
        if str(self.folder) not in text:
            return real_connect(path, *args, **more)
        disk: Disk = real_connect(path, *args, **{**more, "factory": Disk})
        disk.machine = self
        if not more.get("uri"):
            if self.database != Path(text):
                self.host.close_reader()
            self.database = Path(text)
            # SQLite syncs its files itself, in C.
            self._durable.pop(text, None)
        disk.path = Path(text)
        self._databases.append(disk)
        return disk

    def statement(self, disk: Disk, sql: str) -> BaseException | None:
        """Count one statement as a step; keep what an unsynced commit may lose."""
        if self.looking:
            return None
        if sql.startswith("COMMIT") and disk.path not in self._unsynced:
            level = sqlite3.Connection.execute(disk, "PRAGMA synchronous").fetchone()[0]
            if level < 2:
                before = real_connect(disk.path)
                self._unsynced[disk.path] = before.serialize()
                before.close()
        return self.host.touch(sql)
