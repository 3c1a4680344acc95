"""The sandbox's answers against recorded ones of Kraken: every field, and every field's type.

What ours lacks, has too much or types differently fails, unless EXCEPTIONS says why it may.
Skipped where TEST_DATA_KRAKEN does not name the folder with the recordings.
"""

import json
import os
import re
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.markets import short_histories
from tests.ports.test_sandbox import ID, Client

DATA = os.environ.get("TEST_DATA_KRAKEN")
NAME = re.compile(r"[A-Z0-9][A-Za-z0-9./]+(-[A-Z0-9]+)*")
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")

# Our answer, the recordings it must look like. R: real ones, S: samples by hand, maybe old.
RECORDINGS = {
    "Time": "nautilus_trader/http_server_time.json",
    "SystemStatus": "nautilus_trader/http_system_status.json kraken.net/GetSystemStatus.json",
    "AssetPairs": "constructed/asset_pairs_autumn2026.json nautilus_trader/http_asset_pairs.json "
    "xchange-wiremock/0_public_assetpairs-*.json",
    "Assets": "api-specs/assets.json",
    "OHLC": "nautilus_trader/http_ohlc.json constructed/ohlc_daily_oct2026.json",
    "Ticker": "nautilus_trader/http_ticker.json kraken.net/GetTicker.json",
    "Depth": "nautilus_trader/http_order_book.json",
    "Balance": "xchange-wiremock/0_private_balance-*.json",
    "BalanceEx": "xchange-wiremock/0_private_balanceex-*.json",
    "TradeBalance": "constructed/trade_balance_long_2x.json",
    "TradeBalance flat": "xchange-wiremock/0_private_tradebalance-*.json "
    "constructed/trade_balance_flat.json",
    "OpenPositions": "xchange-wiremock/0_private_openpositions-*.json",
    "OpenPositions docalcs": "kraken.net/GetOpenPositions.json "
    "constructed/open_positions_one_order_two_fills.json",
    "OpenPositions flat": "constructed/open_positions_none_object.json",
    "OpenOrders": "constructed/open_orders_none.json",
    "ClosedOrders": "api-specs/closed_orders.json",
    "ClosedOrders as open": "xchange-wiremock/0_private_openorders-*.json",
    "ClosedOrders by id": "constructed/closed_orders_by_cl_ord_id.json",
    "ClosedOrders none": "constructed/closed_orders_none.json",
    "QueryOrders": "xchange/example-market-ask-order.json kraken.net/GetOrders2.json",
    "QueryOrders partial": "constructed/query_orders_market_partial_then_canceled.json",
    "QueryOrders unknown": "constructed/query_orders_unknown_txid.json",
    "TradesHistory": "xchange-wiremock/0_private_tradeshistory-*.json",
    "QueryTrades": "api-specs/query_trades.json",
    "Ledgers": "xchange-wiremock/0_private_ledgers-*.json",
    "TradeVolume": "api-specs/trade_volume.json",
    "GetApiKeyInfo": "kraken.net/GetApiKeyInfo.json",
    "AddOrder": "xchange-wiremock/0_private_addorder-61dd*.json "
    "constructed/add_order_margin_market.json",
    "AddOrder validate": "constructed/add_order_validate.json",
}
# Answer and field: why ours may lack it, have it or give it another type.
OPTIONAL = "shown when it was set or is true; the recorded order has none"
NEWER = "the recording is older than the field"
EXCEPTIONS = {
    ("AssetPairs", r".*\.fees(_maker)?\[\].*"): "empty since September 2026",
    ("AssetPairs", r".*\.execution_venue"): "there since April 2026",
    ("Assets", r".*\.margin_rate"): NEWER,
    ("OpenPositions docalcs", r".*\.class"): NEWER,
    ("ClosedOrders", r".*\.(cl_ord_id|margin|reduce_only)"): OPTIONAL,
    ("ClosedOrders", r".*\.descr\.aclass"): NEWER,
    ("ClosedOrders", r".*\.reason"): "null when nothing went wrong; the sample's are cancelled",
    ("ClosedOrders as open", r".*\.(cl_ord_id|margin|reduce_only)"): OPTIONAL,
    ("ClosedOrders as open", r".*\.(closetm|reason)"): "an open order has no end yet",
    ("QueryOrders", r".*\.(cl_ord_id|margin|trades.*)"): OPTIONAL,
    ("QueryOrders", r".*\.(descr\.aclass|descr\.close|limitprice|stopprice)"): NEWER,
    ("QueryOrders", r".*\.userref"): "null in 2018, 0 in 2025 when it is not set",
    ("QueryOrders", r".*\.descr\.price"): "+1.0000% of a trailing stop, which is not simulated",
    ("QueryOrders", r".*\.reason"): "null when nothing went wrong; the recorded one is cancelled",
    ("QueryTrades", r".*\.(aclass|leverage|maker|trade_id)"): NEWER,
    ("GetApiKeyInfo", r".*\.(api_key|iban)"): "made unrecognisable by who published it",
}


def setUpModule() -> None:
    short_histories()


def kind(value: Any) -> str:
    if isinstance(value, str):
        return "number in text" if NUMBER.fullmatch(value) else "text"
    if isinstance(value, bool) or value is None:
        return "bool" if value is not None else "null"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every field's path and kind; ids, pairs and assets as keys are all written `*`."""
    yield path or ".", kind(value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield from fields(item, f"{path}.{'*' if NAME.fullmatch(key) else key}")
    elif isinstance(value, list):
        places = len(value) > 1 and {type(item) for item in value} != {type(value[0])}
        for place, item in enumerate(value):
            yield from fields(item, f"{path}[{place if places else ''}]")


def schema(value: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path, name in fields(value):
        found.setdefault(path, set()).add(name)
    return found


def differences(ours: Any, theirs: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields that differ and how."""
    mine, other = schema(ours), schema(theirs)
    for path in sorted(mine.keys() | other.keys()):
        if path not in mine:
            yield path, f"is missing, Kraken has {sorted(other[path])}"
        elif path not in other:
            yield path, f"Kraken does not have it, ours is {sorted(mine[path])}"
        elif not mine[path] <= other[path]:
            yield path, f"is {sorted(mine[path])}, Kraken's {sorted(other[path])}"


def answers() -> dict[str, Any]:
    """Return one answer of the sandbox for every recording."""
    client = Client()
    found = {
        "TradeBalance flat": client.result("TradeBalance"),
        "OpenPositions flat": client.result("OpenPositions"),
        "ClosedOrders none": client.result("ClosedOrders"),
        "QueryOrders unknown": client.result("QueryOrders", txid="OAAAAA-BBBBB-CCCCCC"),
        "AddOrder validate": client.order(leverage="2", validate="true"),
        "AddOrder": client.order(leverage="2", cl_ord_id=ID),
    }
    client.order()
    client.control("status", fill_share="0.5")
    part = client.order(type="sell", leverage="2", reduce_only="true", cl_ord_id="half")["txid"][0]
    txid = found["AddOrder"]["txid"][0]
    client.time += 14400
    names = "Balance BalanceEx TradeBalance OpenPositions OpenOrders ClosedOrders TradesHistory"
    found |= {name: client.result(name) for name in f"{names} Ledgers GetApiKeyInfo".split()}
    for name in ("Time", "SystemStatus", "Assets", "AssetPairs"):
        found[name] = client.get(name)["result"]
    for name in ("OHLC", "Ticker", "Depth"):
        found[name] = client.get(f"{name}?pair=XBTUSD")["result"]
    trades = client.result("QueryOrders", txid=txid, trades="true")
    return found | {
        "OpenPositions docalcs": client.result("OpenPositions", docalcs="true"),
        "ClosedOrders by id": client.result("ClosedOrders", cl_ord_id=ID, trades="true"),
        "ClosedOrders as open": {"open": found["ClosedOrders"]["closed"]},
        "QueryOrders": trades,
        "QueryOrders partial": client.result("QueryOrders", txid=part, trades="true"),
        "QueryTrades": client.result("QueryTrades", txid=trades[txid]["trades"][0]),
        "TradeVolume": client.result("TradeVolume", pair="XBTUSD"),
    }


def recordings() -> Iterator[tuple[str, str, Any]]:
    """Yield what is compared: our answer's name, the recording's name and its result."""
    assert DATA
    for name, patterns in RECORDINGS.items():
        for pattern in patterns.split():
            (path,) = (Path(DATA) / "payloads" / "spot").glob(pattern)
            recorded = json.loads(path.read_text())
            yield name, f"{path.parent.name}/{path.name[:30]}", recorded.get("result", recorded)


@unittest.skipUnless(DATA, "TEST_DATA_KRAKEN is not set")
class ShapesTest(unittest.TestCase):
    maxDiff = None

    def test_every_field_is_krakens_or_an_exception_with_a_reason(self) -> None:
        ours, used = answers(), set()
        for name, source, theirs in recordings():
            with self.subTest(name=name, source=source):
                found = {}
                for path, problem in differences(ours[name], theirs):
                    reasons = [
                        key for key in EXCEPTIONS if key[0] == name and re.fullmatch(key[1], path)
                    ]
                    used.update(reasons)
                    if not reasons:
                        found[path] = problem
                self.assertEqual({}, found)
        self.assertEqual(set(), EXCEPTIONS.keys() - used, "exceptions that nothing needs")
