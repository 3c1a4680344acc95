"""The log on standard error, in which no secret appears and no outside text forges a line.

It does without the logging package, which with all that it imports would take 0.9 MiB of the 25
that a bot may hold.
"""

import binascii
import json
import os
import re
import sys
import time
from contextlib import suppress
from typing import NamedTuple, TextIO

from krakenbot.model import Secret

PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}  # As in syslog.
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


class Settings(NamedTuple):
    """What is written, how, and where to; `stream` None is standard error."""

    level: str = "warning"
    format: str = "text"
    stream: TextIO | None = None


settings = Settings()


def setup(level: str, format: str, stream: TextIO | None = None) -> None:
    """Write lines of `level` and above to `stream`, standard error if None.

    `format` is "text" or "json". A line that cannot be written is lost without an exception.
    """
    global settings
    settings = Settings(level, format, stream)


def debug(text: str, *values: object) -> None:
    _write("debug", text, values)


def info(text: str, *values: object) -> None:
    _write("info", text, values)


def warning(text: str, *values: object) -> None:
    _write("warning", text, values)


def critical(text: str, *values: object) -> None:
    """Write that a person must look."""
    _write("critical", text, values)


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
    import traceback

    lines = "".join(traceback.format_exception(error)).splitlines()
    return redact("\n".join(clean(line) for line in lines))


def _write(level: str, text: str, values: tuple[object, ...]) -> None:
    """Write one line, unless it is below the level; what fails here must not fail the caller."""
    if PRIORITIES[level] > PRIORITIES[settings.level]:
        return
    try:
        message = clean(text % values if values else text)
    except Exception:  # A wrong placeholder must not cost the line.
        message = clean(f"{text} {values!r}")
    now = time.gmtime()
    if settings.format == "json":
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", now)
        line = json.dumps({"time": moment, "level": level, "message": message})
    else:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S', now)} {level.upper()} {message}"
    with suppress(OSError, ValueError, AttributeError):
        _put(settings.stream or sys.stderr, PRIORITIES[level], line + "\n")


def _put(stream: TextIO, priority: int, line: str) -> None:
    """Write at once; a stream that fails keeps nothing back to fail again at exit."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):  # A stream in memory.
        stream.write(line)
        return
    at = os.fstat(descriptor)
    if os.environ.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}":
        line = f"<{priority}>{line}"  # What journald reads at the start of a line.
    os.write(descriptor, line.encode())
