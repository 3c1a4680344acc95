"""The sandbox's key: in files, and in a client as a bot has it."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from krakenbot.kraken.client import Client
from krakenbot.model import Credentials, Secret
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET


def key_files(folder: Path) -> dict[str, str]:
    """Return the variables that name files of the sandbox's key, which are made in the folder."""
    environ = {}
    for name, text in (("KEY", SANDBOX_KEY), ("SECRET", SANDBOX_SECRET)):
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)
        environ[f"KRAKEN_API_{name}_FILE"] = str(path)
    return environ


def signing(
    transport: Any,
    url: str,
    clock: Any,
    *,
    key: str = SANDBOX_KEY,
    secret: str = SANDBOX_SECRET,
    nonces: Iterator[int] | None = None,
    live: bool = True,
    **more: Any,
) -> Client:
    """Return a client that signs, and may trade unless `live` is false."""
    rising = mock.Mock(**{"next.side_effect": nonces or count(1)})
    credentials = Credentials(Secret(key), Secret(secret), "the test")
    return Client(transport, url, clock, credentials=credentials, nonces=rising, live=live, **more)
