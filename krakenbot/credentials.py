"""The API key and its secret: where they are looked for, and what a file of one must be like."""

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from krakenbot import log
from krakenbot.config import Config, KeysTable, is_key_itself
from krakenbot.errors import ConfigError
from krakenbot.kraken.signing import decode_secret
from krakenbot.log import clean, register
from krakenbot.model import Secret

_CHARACTERS_MAX = 4096


class Credentials(NamedTuple):
    """`source` says where the two were found: a variable's name or "[keys]"."""

    key: Secret
    secret: Secret
    source: str


def load_credentials(config: Config, prefix: str = "KRAKEN") -> Credentials | None:
    """Return the API key and secret of this process, known to the log's filter from here on."""
    credentials = load_secrets(os.environ, prefix, config.keys)
    if credentials is not None:
        decode_secret(credentials.secret)
        _tell_of_foreign_code()
    return credentials


@cache
def _tell_of_foreign_code() -> None:
    """Say which code of this machine ran in this process before the program itself."""
    for name in ("sitecustomize", "usercustomize"):
        if name in sys.modules:
            path = clean(str(getattr(sys.modules[name], "__file__", "")))
            log.warning(
                "%s ran in this process and may read the API key; `python3 -I -S krakenbot.pyz` "
                "runs without it",
                path,
            )


def load_secrets(
    environ: Mapping[str, str], prefix: str = "KRAKEN", keys: KeysTable | None = None
) -> Credentials | None:
    """Return the first key and secret found, registered for redaction; None if there are none.

    Looks into $CREDENTIALS_DIRECTORY, at the files of [keys], at those named by
    <prefix>_API_KEY_FILE and <prefix>_API_SECRET_FILE, then at <prefix>_API_KEY and
    <prefix>_API_SECRET. Raises ConfigError for half a pair and for a file that others may read.
    """
    for source, (key_at, key), (secret_at, secret) in _places(environ, prefix, keys):
        if key and secret:
            credentials = Credentials(Secret(key), Secret(secret), source)
            register(credentials.key)
            register(credentials.secret)
            return credentials
        if key or secret:
            here, missing = (key_at, secret_at) if key else (secret_at, key_at)
            raise ConfigError(f"{here} is there, {missing} is not: a key needs its secret")
    return None


def _places(
    environ: Mapping[str, str], prefix: str, keys: KeysTable | None
) -> Iterator[tuple[Any, ...]]:
    """Yield a source's name, then for key and secret where it is and what it says, or ""."""
    names = (f"{prefix}_API_KEY", f"{prefix}_API_SECRET")
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder:
        # systemd guards this folder itself, with modes of its own.
        files = [f"{folder}/{name.lower()}" for name in names]
        yield (
            "CREDENTIALS_DIRECTORY",
            *((file, _read(file, strict=False) if os.path.lexists(file) else "") for file in files),
        )
    if prefix == "KRAKEN" and keys and keys.api_key_file:
        yield "[keys]", *((str(file), _read(str(file))) for file in keys)
    yield (
        f"{names[0]}_FILE",
        *(
            (f"{name}_FILE", _read(environ[f"{name}_FILE"]) if environ.get(f"{name}_FILE") else "")
            for name in names
        ),
    )
    texts = [(name, environ.get(name, "").strip()) for name in names]
    yield names[0], *((name, _bare(text, name) if text else "") for name, text in texts)


def _read(path: str, *, strict: bool = True) -> str:
    """Return the secret in a file that, with `strict`, only its owner may read."""
    if is_key_itself(path):
        raise ConfigError("the path of a file is needed, and what stands there looks like the key")
    try:
        # Without O_NONBLOCK a named pipe would hold the program here for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path}: not a regular file")
            if strict and mode & 0o177:
                have = stat.S_IMODE(mode)
                raise ConfigError(
                    f"{path}: mode {have:04o} is too open for a secret; run: chmod 600 {path}"
                )
            raw = file.read(_CHARACTERS_MAX + 1)
    except PermissionError:
        raise ConfigError(f"{path}: this user may not read it; try again with sudo") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return _bare(raw.decode("utf-8-sig", "replace"), path)


def _bare(text: str, where: str) -> str:
    """Return the secret without the white space around it; ConfigError says what is wrong."""
    bare = text.strip()
    wrong = ""
    if not bare:
        wrong = "is empty; put the key into it"
    elif len(text) > _CHARACTERS_MAX:
        wrong = "is too long for a key"
    elif bare[0] in "\"'`":
        wrong = "has quotes around it; a key stands there alone"
    elif not bare.isascii() or not all(c.isprintable() or c.isspace() for c in bare):
        wrong = "is no plain text; is it the right file?"
    elif len(bare.split()) > 1:
        wrong = "has a space or a line end in the middle; a key is one word"
    if wrong:
        raise ConfigError(f"{where}: {wrong}")
    return bare
