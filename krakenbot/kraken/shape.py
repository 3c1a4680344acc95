"""Reading Kraken's answers, for all methods. An answer of the wrong shape is no answer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from krakenbot.errors import UnansweredError
from krakenbot.pairs import decimal

BROKEN = (AttributeError, KeyError, TypeError, ValueError, IndexError)


class Methods(Protocol):
    """Kraken's methods by name: a Client, or in paper mode one whose account is simulated."""

    def public(self, method: str, params: Mapping[str, object] | None = None) -> Any: ...

    def private(self, method: str, params: Mapping[str, object] | None = None) -> Any: ...


@contextmanager
def shape(method: str) -> Iterator[None]:
    """Turn an answer that cannot be parsed into UnansweredError."""
    try:
        yield
    except BROKEN as error:
        raise UnansweredError(f"{method}: an answer of unknown form ({error!r:.120})") from error


def rows(
    client: Methods, method: str, params: Mapping[str, object] | None = None, key: str = ""
) -> dict[str, Any]:
    """Return the rows by id in a private method's result, or in its field `key`.

    Some empty answers have a list in place of the object (seen in clients, not documented).
    """
    result = client.private(method, params)
    if key and (not isinstance(result, dict) or key not in result):
        raise UnansweredError(f"{method}: an answer without {key!r}")
    found = result[key] if key else result
    if not isinstance(found, dict) and found != []:
        raise UnansweredError(f"{method}: an answer of unknown form")
    return dict(found)


def moment(value: object) -> int:
    """Return a time in whole unix seconds; ValueError if it cannot be one."""
    moment = int(decimal(value))
    if not 0 < moment < 10**11:
        raise ValueError(f"time {moment}")
    return moment
