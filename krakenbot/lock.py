"""One process for each journal and each API key, and the key's rising nonces."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from krakenbot.errors import ConfigError, StopError

TRIES, LOOK_S = 5, 0.02


class Lock:
    """An exclusive lock on a file, held until the process ends. ConfigError when it is taken."""

    def __init__(self, path: Path, what: str) -> None:
        try:
            make_private_directory(path.parent)
            self.existed = path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"the lock {path} cannot be opened: {error}") from error
        for _ in range(TRIES):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(LOOK_S)  # It may be somebody who only looks.
        os.close(self._file)
        raise ConfigError(f"another krakenbot holds {what} (lock {path})")

    def read(self) -> bytes:
        return os.pread(self._file, 64, 0)

    def write(self, text: bytes) -> None:
        """Replace the file's first bytes, on disk when this returns."""
        os.pwrite(self._file, text, 0)
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Nonces:
    """Rising numbers for one API key, across restarts and clocks that go back.

    They are nanoseconds of the host's clock, or one more than the last. A second's worth is put
    on disk in advance, in the key's own lock file, so that a lost journal loses no nonce.
    """

    RESERVE = 1_000_000_000

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        text = lock.read().strip()
        self._reserved = int(text) if text.isdigit() else 0
        self._last = self._reserved

    def next(self, clock_ns: int) -> int:
        """Return a nonce above all before it; StopError when that cannot be put on disk."""
        nonce = max(clock_ns, self._last + 1)
        if nonce > self._reserved:
            try:
                self._lock.write(b"%020d\n" % (nonce + self.RESERVE))
            except OSError as error:
                raise StopError(f"the nonce cannot be written to disk: {error}") from error
            self._reserved = nonce + self.RESERVE
        self._last = nonce
        return nonce


def is_locked(path: Path) -> bool:
    """Return whether a process holds this lock; a lock that is not there is held by none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def exists(path: Path) -> bool:
    """Return whether the file is there; ConfigError where this user may not even look."""
    try:
        path.lstat()
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be looked at: {error.strerror}. {access_hint(path)}"
        ) from error


def access_hint(path: Path) -> str:
    """Return what helps when a file cannot be used because it is somebody else's, or nothing."""
    for place in (path, *path.parents):
        with suppress(OSError):
            owner = place.stat().st_uid
            mine = os.geteuid()
            return "" if mine in (0, owner) else "It belongs to another user: use sudo"
    return ""


def make_private_directory(path: Path) -> None:
    """Make a folder that only its owner can read."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
