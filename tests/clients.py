"""The client as a bot has it: it signs, and it may trade unless `live` is false."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from krakenbot.kraken.client import Client
from krakenbot.model import Credentials, Secret
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET


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
    rising = nonces or count(1)
    return Client(
        transport,
        url,
        clock,
        credentials=Credentials(Secret(key), Secret(secret), "the test"),
        next_nonce=lambda _: next(rising),
        live=live,
        **more,
    )
