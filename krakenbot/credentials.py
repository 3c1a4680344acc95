"""The API key and its secret: where they are looked for, and the checks of their files."""

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from functools import cache

from krakenbot import log
from krakenbot.config import Config
from krakenbot.errors import ConfigError
from krakenbot.kraken.signing import decode_secret
from krakenbot.log import is_key_itself, register
from krakenbot.model import Credentials

CUSTOM_CODE = ("sitecustomize", "usercustomize")  # Modules that run before any program.
_CHARACTERS_MAX = 4096


def load_credentials(
    config: Config, prefix: str = "KRAKEN", environ: Mapping[str, str] = os.environ
) -> Credentials | None:
    """Return the first key and secret found, registered for redaction; None if there are none.

    Looks into $CREDENTIALS_DIRECTORY, at the files of [keys], at those named by
    <prefix>_API_KEY_FILE and <prefix>_API_SECRET_FILE, then at <prefix>_API_KEY and
    <prefix>_API_SECRET. Raises ConfigError for half a pair, for a file that others may read, and
    for what is no key or no base64.
    """
    for source, places, texts in _found(config, prefix, environ):
        if all(texts):
            key, secret = map(register, texts)
            decode_secret(secret)
            _warn_of_foreign_code()
            return Credentials(key, secret, source)
        if any(texts):
            here, missing = places if texts[0] else reversed(places)
            raise ConfigError(f"{here} is set, {missing} is not: a key needs its secret")
    return None


def _found(
    config: Config, prefix: str, environ: Mapping[str, str]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each source, the places of key and secret in it, and what is there, perhaps nothing."""
    names = [f"{prefix}_API_KEY", f"{prefix}_API_SECRET"]
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        files = [f"{folder}/{name.lower()}" for name in names]
        # systemd protects its folder itself, with other modes.
        texts = [_read(file, strict=False) if os.path.lexists(file) else "" for file in files]
        yield "CREDENTIALS_DIRECTORY", files, texts
    if prefix == "KRAKEN" and None not in config.keys:
        files = [*map(str, config.keys)]
        yield "[keys]", files, [*map(_read, files)]
    given = {name: text for name, text in environ.items() if text.strip()}
    files = [f"{name}_FILE" for name in names]
    yield files[0], files, [_read(given[name]) if name in given else "" for name in files]
    yield names[0], names, [_bare(given[name], name) if name in given else "" for name in names]


def require_credentials(config: Config, what: str, prefix: str = "KRAKEN") -> Credentials:
    """Return the key and secret that `what` needs; ConfigError if there are none."""
    credentials = load_credentials(config, prefix)
    if credentials is None:
        place = "name its two files in [keys], or " if prefix == "KRAKEN" else ""
        key, secret = f"{prefix}_API_KEY", f"{prefix}_API_SECRET"
        words = f"{place}set {key}_FILE and {secret}_FILE, or {key} and {secret}"
        raise ConfigError(f"{what} needs an API key: {words}")
    return credentials


@cache
def _warn_of_foreign_code() -> None:
    """Warn of installed code that ran in this process before the program itself."""
    for module in filter(None, map(sys.modules.get, CUSTOM_CODE)):
        log.warning(
            "%s ran in this process and may read the API key; `python3 -I -S krakenbot.pyz` "
            "runs without it",
            getattr(module, "__file__", ""),
        )


def _read(path: str, *, strict: bool = True) -> str:
    """Return the secret in a file that, with `strict`, only its owner may read."""
    if is_key_itself(path):
        raise ConfigError("the path of a file is needed, but this looks like the key itself")
    try:
        # Without O_NONBLOCK, opening a named pipe would block forever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path}: not a regular file")
            if strict and mode & 0o177:
                too_open = f"mode {stat.S_IMODE(mode):04o} is too open for a secret"
                raise ConfigError(f"{path}: {too_open}; run: chmod 600 {path}")
            raw = file.read(_CHARACTERS_MAX + 1)
    except OSError as error:
        hint = "; try again with sudo" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    return _bare(raw.decode("utf-8-sig", "replace"), path)


def _bare(text: str, where: str) -> str:
    """Return the secret without the white space around it; ConfigError says what is wrong."""
    bare = text.strip()
    for is_wrong, what in (
        (not bare, "is empty; put the key into it"),
        (len(text) > _CHARACTERS_MAX, "is too long for a key"),
        (bare[:1] in ('"', "'", "`"), "has quotes around it; remove them"),
        (re.search(r"[^!-~\s]", bare), "is not plain text; is it the right file?"),
        (re.search(r"\s", bare), "has a space or a line end in the middle; a key is one word"),
    ):
        if is_wrong:
            raise ConfigError(f"{where}: {what}")
    return bare
