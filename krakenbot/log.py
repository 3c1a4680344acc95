"""The log on standard error, in which no secret appears and no outside text forges a line.

A separate thread writes the lines: a reader that stops reading (a paused pager, Ctrl-S) must block
neither the bot nor its exit.
"""

import base64
import json
import logging
import os
import queue
import re
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from krakenbot.model import Secret

# The priority of each level, which journald reads at the start of a line; 2: a person must look.
LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
LINES_MAX = 1000  # How many may wait to be read.
FLUSH_S = 1.0  # How long the program waits for a reader at its exit.
_KEY = r"[A-Za-z0-9+/]{40,}={0,2}"
_AROUND = r"[\s\"'`]"  # A pasted key may have quotes around it, and white space anywhere.
_CHARACTERS_MIN, _PATH_CHARACTERS_MIN = 4, 8  # Of what is hidden.
_hidden: set[str] = set()
_waiting: queue.Queue[tuple[int, str]] = queue.Queue(LINES_MAX)
_lost = 0

logger = logging.getLogger("krakenbot")
logger.propagate = False
debug, info, warning = logger.debug, logger.info, logger.warning
critical = logger.critical  # A person must look.


def setup(level: str, format: str, stream: TextIO | None = None) -> None:
    """Write lines of `level` and above to `stream`, standard error if None.

    `format` is "text" or "json". A line that cannot be written is lost without an exception.
    """
    logger.handlers = [_Handler(stream, format == "json")]
    logger.setLevel(level.upper())


def say(text: str, level: str = "error") -> None:
    """Write lines to standard error that are not log lines, such as why a command ended.

    With `format` "json" they are one log line.
    """
    handler = logger.handlers[0]
    if isinstance(handler, _Handler) and handler.is_json:
        handler.emit(logging.makeLogRecord({"msg": text, "levelname": level.upper()}))
        return
    mark = _mark(sys.stderr, level)
    put(sys.stderr, "".join(f"{mark}{line}\n" for line in text.splitlines()))


def put(stream: TextIO | None, text: str) -> None:
    """Write to a stream without ever waiting for its reader.

    Lines that nobody reads are dropped, and counted in a later line.
    """
    global _lost
    try:
        descriptor = stream.fileno()  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):  # A stream in memory, closed, or none.
        with suppress(OSError, ValueError, AttributeError):
            stream.write(text)  # type: ignore[union-attr]
        return
    try:
        _start_writer()
        lost = f"{_lost} lines are lost: nobody read them\n" if _lost else ""
        _waiting.put_nowait((descriptor, lost + text))
        _lost = 0
    except (queue.Full, RuntimeError):
        _lost += 1


def flush() -> None:
    """Wait for at most FLUSH_S until everything put so far is written."""
    with _waiting.all_tasks_done:
        _waiting.all_tasks_done.wait_for(lambda: not _waiting.unfinished_tasks, FLUSH_S)


def register(text: str) -> Secret:
    """Return a secret that `redact` hides from now on, also in base64 or quoted for a URL."""
    # In a URL the part after the host is the secret one, and errors may show it alone;
    # but a plain word, such as the bot's name, is in ordinary text, too.
    rest = re.split("[/?]", text.partition("://")[2], maxsplit=1)[-1]
    is_word = len(rest) < _PATH_CHARACTERS_MIN or re.fullmatch("[A-Za-z_-]{,15}", rest)
    for part in (text,) if is_word else (text, rest):
        quoted = quote(part, "")
        forms = {part, quote(part), quoted, re.sub("%..", lambda code: code[0].lower(), quoted)}
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(part.encode()).decode().rstrip("="))
        _hidden.update(form for form in forms if len(form) >= _CHARACTERS_MIN)
    return Secret(text)


def hide_keys(text: str) -> bool:
    """Hide from all output what may be a key, outside of a real path; return if there is one."""
    there = next(filter(os.path.lexists, (text, *map(str, Path(text).parents))), "")
    rest = text.removeprefix(there)
    bare = re.sub(_AROUND, "", rest)
    keys = [rest, bare] if re.fullmatch(_KEY, bare) else re.findall(_KEY, rest)
    for found in keys:
        for key in (found, re.sub("/+", "/", found)):  # A Path has no empty parts.
            register(key.strip("/"))
    return bool(keys)


def is_key_itself(path: str) -> bool:
    """Return whether this is a key in place of a path; if so, no output will show it."""
    return hide_keys(path) and bool(re.fullmatch(_KEY, re.sub(_AROUND, "", path)))


def redact(text: str) -> str:
    """Return the text with every secret, registered or not, replaced by `<secret>`."""
    # Signatures and secrets that nobody registered are longer than any other word of ours.
    return re.sub(r"[A-Za-z0-9+/]{84,}={0,2}", "<secret>", redact_registered(text))


def redact_registered(text: str) -> str:
    """Return the text with only registered secrets replaced: an answer may have long words."""
    for form in sorted(_hidden, key=len, reverse=True):
        text = text.replace(form, "<secret>")
    return text


def clean(text: str) -> str:
    """Return the text on one line, redacted, with control characters escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(text))
    return "".join(shown)


def joined(text: str) -> str:
    """Return a message of several lines as one line."""
    return "; ".join(text.splitlines())


def describe(error: BaseException) -> str:
    """Return the traceback of an error, cleaned line by line and without local values."""
    return "\n".join(map(clean, "".join(traceback.format_exception(error)).splitlines()))


class _Handler(logging.Handler):
    """Writes each record as one redacted line."""

    def __init__(self, stream: TextIO | None, is_json: bool) -> None:
        super().__init__()
        self._stream, self.is_json = stream, is_json

    def emit(self, record: logging.LogRecord) -> None:
        stream, level = self._stream or sys.stderr, record.levelname.lower()
        try:
            line = clean(record.getMessage())
        except Exception:  # A wrong placeholder must not lose the line.
            line = clean(f"{record.msg} {record.args!r}")
        mark, at = _mark(stream, level), time.gmtime(record.created)
        if self.is_json:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
            line = json.dumps({"time": moment, "level": level, "message": line})
        elif not mark:  # journald adds time and level itself.
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S', at)} {record.levelname} {line}"
        put(stream, f"{mark}{line}\n")

    def flush(self) -> None:
        flush()  # Called at the end of the program, too.


@cache
def _start_writer() -> None:
    threading.Thread(target=_write, name="log", daemon=True).start()


def _write() -> None:
    while True:
        descriptor, text = _waiting.get()
        left = text.encode(errors="backslashreplace")
        with suppress(OSError):
            while left:
                left = left[os.write(descriptor, left) :]
        _waiting.task_done()


def _mark(stream: TextIO | None, level: str) -> str:
    """Return a line's priority if journald reads the stream. Source: systemd.exec(5)."""
    with suppress(OSError, ValueError, AttributeError):
        at = os.fstat(stream.fileno())  # type: ignore[union-attr]
        if os.environ.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}":
            return f"<{LEVELS[level]}>"
    return ""


setup("warning", "text")
