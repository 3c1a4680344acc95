"""A market made of values, in Kraken's own words: what a client's public methods would answer."""

import threading
import unittest
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Protocol
from unittest import mock

from krakenbot.simulated import feed
from krakenbot.simulated.http import Sandbox


def short_histories(days: int = 5) -> None:
    """Let a module's sandboxes open after some days of minutes, not sixty: so much less work."""
    patch = mock.patch.object(feed, "HISTORY", days * 1440)
    patch.start()
    unittest.addModuleCleanup(patch.stop)


class Closable(Protocol):
    def close(self) -> None: ...


def close_after(test: unittest.TestCase, server: Closable) -> None:
    """Close a server after the test, which does not wait until that has noticed."""
    test.addCleanup(threading.Thread(target=server.close, daemon=True).start)


def sandbox_for(test: unittest.TestCase, spec: str = "random:3", speed: float = 1.0) -> Sandbox:
    """Return a sandbox that is closed after the test."""
    sandbox = Sandbox(spec, speed)
    close_after(test, sandbox)
    return sandbox


def begin_candle(sandbox: Sandbox) -> None:
    """Move a sandbox's clock to where its next candle of four hours begins."""
    step_s = 240 * 60
    sandbox.api.controls["clock"]({"advance": step_s - sandbox.api.now() % step_s})


class Answers:
    """Answers public methods from a market, whose pair is one that the sandbox lists."""

    def __init__(self, market: Any, row: Mapping[str, Any]) -> None:
        self.market, self.row = market, row
        self.sent: list[tuple[str, dict[str, object]]] = []  # The private calls.
        self.refusal: Exception | None = None

    def public(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        rules = self.market.rules()
        if method == "Time":
            return {"unixtime": self.market.server_time()}
        if method == "SystemStatus":
            return {"status": self.market.market_status().status}
        if method == "AssetPairs":
            return {rules.pair: {**self.row, "status": rules.status}}
        if method == "Ticker":
            bid, ask = self.market.quote()
            return {rules.pair: {"b": [str(bid)], "a": [str(ask)]}}
        if method == "Assets":
            rates = self.market.margin_rates()
            rate = rates.long if (params or {})["asset"] == rules.quote else rates.short
            return {"": {} if rate is None else {"margin_rate": rate * 100}}
        assert method == "OHLC", method
        since = (params or {}).get("since")
        candles = self.market.candles(None if since is None else int(str(since)))
        rows = [[c.time, *map(str, c[1:5]), "0", str(Decimal(c.volume)), 1] for c in candles]
        return {rules.pair: rows, "last": rows[-2][0] if len(rows) > 1 else 0}

    def private(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        self.sent.append((method, dict(params or {})))
        if self.refusal is not None:
            raise self.refusal
        return {}
