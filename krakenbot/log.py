"""Logging to standard error, in which no secret appears and no outside text forges a line."""

import binascii
import json
import logging
import os
import re
import sys
import time
import traceback
from typing import Any, TextIO

from krakenbot.model import Secret

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_SECRET_CHARACTERS_MIN = 4
_PATH_CHARACTERS_MIN = 8
# Control characters drive terminals, the others end lines or turn the direction of writing.
_ESCAPES = {
    code: {10: "\\n", 13: "\\r", 9: "\\t"}.get(
        code, f"\\x{code:02x}" if code < 256 else f"\\u{code:x}"
    )
    for code in (
        *range(32),
        *range(127, 160),
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
}
_hidden: list[str] = []


def setup(level: str, format: str, stream: TextIO | None = None) -> None:
    """Send log records of `level` and above to `stream`, standard error if None.

    `format` is "text" or "json". A record that cannot be written is lost without an exception.
    """
    target = sys.stderr if stream is None else stream
    handler = _Handler(target)
    handler.setFormatter(_JsonFormatter() if format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False


def register(secret: Secret) -> None:
    """Have `redact` hide this secret from now on, also in base64 or quoted for an address."""
    from urllib.parse import quote, quote_plus

    text = secret.reveal()
    texts = [text]
    if "://" in text:
        # Of an address, what follows the host is the secret part, and errors may show it alone.
        rest = re.split("[/?]", text.partition("://")[2], maxsplit=1)[-1]
        texts += [rest] if len(rest) >= _PATH_CHARACTERS_MIN else []
    for part in texts:
        encoded = binascii.b2a_base64(part.encode(), newline=False).decode().rstrip("=")
        quoted = quote(part, safe="")
        for form in (
            part,
            encoded,
            encoded.replace("+", "-").replace("/", "_"),
            quoted,
            quoted.replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d"),
            quote(part),
            quote_plus(part),
        ):
            if len(form) >= _SECRET_CHARACTERS_MIN and form not in _hidden:
                _hidden.append(form)
    _hidden.sort(key=len, reverse=True)


def redact(text: str) -> str:
    """Return the text with every registered secret replaced by `<secret>`."""
    for form in _hidden:
        text = text.replace(form, "<secret>")
    # A signature or secret that nobody registered is still as long as no other word is.
    return re.sub(r"[A-Za-z0-9+/]{84,}={0,2}", "<secret>", text)


def clean(text: str) -> str:
    """Return the text on one line, redacted, with control characters written as escapes."""
    return redact(text).translate(_ESCAPES).encode(errors="backslashreplace").decode()


def describe(error: BaseException) -> str:
    """Return the traceback of an error, cleaned line by line and without local values."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return redact("\n".join(clean(line) for line in lines))


class _Handler(logging.Handler):
    """Writes each record at once; a stream that fails keeps nothing back to fail again at exit."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.stream = stream
        self.descriptor: int | None = None
        self.to_journal = False
        try:
            if stream is not None:
                self.descriptor = stream.fileno()
                at = os.fstat(self.descriptor)
                self.to_journal = os.environ.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}"
        except (OSError, ValueError):
            pass  # A stream in memory, or a closed one.

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            if self.to_journal:
                line = f"<{_priority(record.levelno)}>{line}"
            if self.descriptor is not None:
                os.write(self.descriptor, line.encode())
            elif self.stream is not None:
                self.stream.write(line)
        except Exception:
            self.handleError(record)


class _TextFormatter(logging.Formatter):
    """2026-11-21 12:00:01 INFO event key=value (UTC); a traceback follows indented."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created))
        line = f"{moment} {record.levelname} {_message(record)}"
        return "\n    ".join([line, *_traceback(record).splitlines()])


class _JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message and, of an exception, its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            fields["traceback"] = _traceback(record)
        return json.dumps(fields)


def _message(record: logging.LogRecord) -> str:
    try:
        return clean(record.getMessage())
    except Exception:
        # A wrong placeholder must not cost the record.
        return clean(f"{record.msg} {record.args!r}")


def _traceback(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return describe(error) if error is not None else ""


def _priority(level: int) -> int:
    """Return the syslog priority that journald reads at the start of a line."""
    return next((priority for least, priority in _PRIORITIES if level >= least), 7)
