"""One process per journal and per API key on this machine, and the key's increasing nonces."""

import errno
import fcntl
import os
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from krakenbot import log
from krakenbot.errors import ConfigError, HeldError, StopError
from krakenbot.format import moment

TRIES, LOOK_S = 5, 0.02
STATE_BYTES_MAX = 80
BY_BOT = ", run"
_STOP_IT = "Stop it first: systemctl stop its service, or kill that process"


class Lock:
    """An exclusive lock on a file, held until the process ends. HeldError if another holds it.

    The file's first line is state that outlives the process, the second says who holds the lock,
    and with `by_bot` that it is a bot.
    With a `name`, no other process of this machine may hold that name either: a lock file is found
    only by processes that use the same folder.
    """

    def __init__(self, path: Path, what: str, name: str = "", *, by_bot: bool = False) -> None:
        self._path, self._holder = path, f"pid {os.getpid()}, since {moment(time.time())}"
        self._holder += BY_BOT * by_bot
        with ExitStack() as opened:
            try:
                self._file = open_private(path, os.O_RDWR)
                opened.callback(os.close, self._file)
                self._take(what)
                self._put(self.read())
            except OSError as error:
                raise no_access(path, f"the lock {path} cannot be used", error) from error
            # At this name a second bot learns that a bot holds the key, not a short command.
            if name and by_bot:
                hold_name(f"{name}{BY_BOT}", what, opened)
            if name:
                hold_name(name, what, opened)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Release the lock and the name."""
        self._opened.close()

    def _take(self, what: str) -> None:
        for _ in range(TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(LOOK_S)  # The holder may only be checking, as `is_locked` does.
        unknown = "it does not say which process"
        holder = self.read(1) or unknown
        words = f"another krakenbot holds {what} ({holder}; lock {self._path}). {_STOP_IT}"
        is_bot = holder.endswith(BY_BOT) or holder == unknown
        raise HeldError(words, holder.removesuffix(BY_BOT) if is_bot else "")

    def read(self, line: int = 0) -> str:
        """Return the state, or for line 1 who holds the lock."""
        text = os.pread(self._file, 4 * STATE_BYTES_MAX, 0).decode("ascii", "replace")
        return f"{text}\n\n".split("\n")[line].strip()

    def write(self, state: str) -> None:
        """Write the state to disk before returning; StopError when that fails."""
        try:
            self._put(state)
        except OSError as error:
            words = f"the lock {self._path} cannot be written ({error}); nothing is sent without it"
            raise StopError(words) from error

    def _put(self, state: str) -> None:
        text = f"{state:{STATE_BYTES_MAX - 1}}\n{self._holder:<60}\n"
        os.pwrite(self._file, text.encode(), 0)
        os.fsync(self._file)


def hold_name(name: str, what: str, opened: ExitStack) -> None:
    """Hold a name on this machine until `opened` is closed; HeldError if another holds it.

    Linux has names for sockets that need no file, source: unix(7), "abstract"; elsewhere nothing is
    held.
    """
    if sys.platform != "linux":
        return
    try:
        with socket.socket(socket.AF_UNIX) as claim:
            claim.bind(f"\0krakenbot {name}")
            opened.callback(os.close, claim.detach())
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            log.warning("not checked whether another bot uses %s: %s", what, error)
            return
        where = "with another state directory"
        words = f"another krakenbot on this machine holds {what}, {where}. {_STOP_IT}"
        raise HeldError(words, where if name.endswith(BY_BOT) else "") from error


class Nonces:
    """Increasing nonces for one API key, across restarts and clocks that go back.

    A nonce is the host's clock in nanoseconds, or one more than the last. It is written to the
    key's lock file before it is used, so that a lost journal loses no nonce. Kraken requires each
    to be above all before it. Source: docs.kraken.com, guide "Spot REST authentication".

    Until a `mark` is set, each nonce is one more than the last one stored: if the exchange accepts
    them and reports none above them, nothing was sent since with this key. From then on nonces are
    the clock's, so that no order is refused because another program used larger ones. `mark` is the
    id of the newest intent on disk. If the journal's newest is another one, the journal is an old
    copy. Two marks are words instead: "refused" after a refused nonce, "called" by the command
    `call`.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        number, _, self.mark = lock.read().partition(" ")
        self.stored = self._last = int(number) if number.isdigit() else 0
        self._is_marked = not self.stored
        self.seen: int | None = None  # The last nonce that the exchange knew of at the start.

    def set_mark(self, intent_id: str) -> None:
        """Store the id of the newest intent on disk with the next nonces."""
        self.mark, self._is_marked = intent_id, True

    def prove(self, intent_id: str) -> bool:
        """Return whether nothing was sent with this key since that intent was written."""
        is_ours = self.stored > 0 and self.seen in range(self.stored, self._last + 1)
        return is_ours and self.mark == intent_id

    def next(self, clock_ns: int) -> int:
        """Return a nonce above all before it; StopError when it cannot be stored."""
        nonce = max(clock_ns, self._last + 1) if self._is_marked else self._last + 1
        self._lock.write(f"{nonce:020d} {self.mark}")
        self._last = nonce
        return nonce


def open_private(path: Path, flags: int) -> int:
    """Open a file that only its owner can read, creating it and its folder if needed.

    Raises OSError as `os.open` does. As root, the file is given to the folder's owner, so that a
    service can use files that its operator's commands created.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.fchown(file, folder.st_uid, folder.st_gid)
    return file


def no_access(path: Path, what: str, error: Exception, advice: str = "") -> ConfigError:
    """Return the error, with other advice if the file belongs to another user."""
    there = next(filter(os.path.exists, (path, *path.parents)), "/")
    if os.geteuid() not in (0, os.stat(there).st_uid):
        advice = "It belongs to another user: use sudo"
        folder = os.path.dirname(there)
        if os.stat(folder).st_uid == os.geteuid():
            advice = f"Its folder's owner must own it, too: chown --reference={folder} {there}"
    return ConfigError(f"{what}: {getattr(error, 'strerror', None) or error}. {advice}".rstrip())
