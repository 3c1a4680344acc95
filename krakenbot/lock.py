"""One process for each journal and each API key, and the key's rising nonces."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from krakenbot.errors import ConfigError, StopError
from krakenbot.format import moment

TRIES, LOOK_S = 5, 0.02
STATE_BYTES_MAX = 80


class Lock:
    """An exclusive lock on a file, held until the process ends. ConfigError when it is taken.

    The file's first line is kept from process to process, the second says who holds it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        try:
            self._file = open_private(path, os.O_RDWR)
        except OSError as error:
            raise no_access(path, f"the lock {path} cannot be opened", error) from error
        try:
            self._take(what)
            self._put(self.read())
        except OSError as error:
            os.close(self._file)
            raise ConfigError(f"the lock {path} cannot be written: {error.strerror}") from error

    def _take(self, what: str) -> None:
        for _ in range(TRIES):
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(LOOK_S)  # It may be somebody who only looks.
        holder = self.read(1) or "it does not say who it is"
        os.close(self._file)
        raise ConfigError(
            f"another krakenbot holds {what} ({holder}; lock {self.path}). Stop it first: "
            "systemctl stop its service, or kill that process"
        )

    def read(self, line: int = 0) -> str:
        """Return the line that outlives the process, or 1: who holds the lock."""
        text = os.pread(self._file, 4 * STATE_BYTES_MAX, 0).decode("ascii", "replace")
        return f"{text}\n\n".split("\n")[line].strip()

    def write(self, state: str) -> None:
        """Replace that line, on disk when this returns; StopError when it cannot be."""
        try:
            self._put(state)
        except OSError as error:
            words = f"the lock {self.path} cannot be written ({error}); nothing is sent without it"
            raise StopError(words) from error

    def _put(self, state: str) -> None:
        holder = f"pid {os.getpid()}, since {moment(time.time())}"
        os.pwrite(self._file, f"{state:{STATE_BYTES_MAX - 1}}\n{holder:<60}\n".encode(), 0)
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Nonces:
    """Rising numbers for one API key, across restarts and clocks that go back.

    They are nanoseconds of the host's clock, or one more than the last, and on disk in the key's
    own lock file before they are used, so that a lost journal loses no nonce.

    The first one of a process is one more than the last one stored: when the exchange takes it,
    and says that it has seen none above it, nothing was sent since with this key. `mark` is the
    newest intent that was on disk; when the journal knows a different one, it went back in time.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        number, _, self.mark = lock.read().partition(" ")
        self.stored = self._last = int(number) if number.isdigit() else 0
        self._is_first = self._last > 0
        self.seen: int | None = None  # The last one that the exchange knew of at the start.

    def set_mark(self, intent_id: str) -> None:
        """Have the next nonces stored with the id of the newest intent on disk."""
        self.mark = intent_id

    def next(self, clock_ns: int) -> int:
        """Return a nonce above all before it; StopError when that cannot be put on disk."""
        nonce = self._last + 1 if self._is_first else max(clock_ns, self._last + 1)
        self._lock.write(f"{nonce:020d} {self.mark}")
        self._last, self._is_first = nonce, False
        return nonce


def open_private(path: Path, flags: int) -> int:
    """Open a file that only its owner can read, made with its folder if there is none.

    Raises OSError as `os.open` does. Root makes it for the folder's owner, so that a service can
    use what its operator's commands have made.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.fchown(file, folder.st_uid, folder.st_gid)
    return file


def exists(path: Path) -> bool:
    """Return whether there is such a file; ConfigError where that may not be seen."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise no_access(path, f"{path} cannot be looked at", error) from error
    return True


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


def no_access(path: Path, what: str, error: OSError) -> ConfigError:
    return ConfigError(f"{what}: {error.strerror}. {access_hint(path)}")


def access_hint(path: Path) -> str:
    """Return what helps when a file cannot be used because it is somebody else's, or nothing."""
    for place in (path, *path.parents):
        with suppress(OSError):
            owner = place.stat().st_uid
            mine = os.geteuid()
            return "" if mine in (0, owner) else "It belongs to another user: use sudo"
    return ""
