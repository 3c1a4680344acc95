"""Other people's clients against the sandbox, unchanged but for the base URL.

Skipped where python-kraken-sdk, krakenex or ccxt is not installed. Each client gets a sandbox of
its own: their nonces count in different units, which no key at Kraken would take either.
"""

import asyncio
import importlib.util
import unittest
from collections.abc import Callable
from decimal import Decimal as D
from functools import partial
from typing import Any

from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from tests.markets import sandbox_for, short_histories
from tests.ports.test_sandbox import ID, MARKET, REFUSALS

WRONG_SECRET = "d3Jvbmc="
ORDER = {"ordertype": "market", "type": "buy", "pair": "XBTUSD", "volume": "0.01"}
MARGIN = {**ORDER, "leverage": "2"}
CLOSE = {**MARGIN, "type": "sell", "reduce_only": "true"}


def setUpModule() -> None:
    short_histories()


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


class WithSandbox(unittest.TestCase):
    def setUp(self) -> None:
        self.sandbox = sandbox_for(self, "random:1")

    def mode(self, status: str) -> None:
        self.sandbox.api.markets.status = status

    def check_account(self, call: Callable[..., Any]) -> None:
        """Go through every call of an account by `call(method, **parameters) -> result`."""
        opened = call("AddOrder", **MARGIN, cl_ord_id=ID)["txid"][0]
        spot = call("AddOrder", **ORDER, userref="7")["txid"][0]
        self.assertNotIn("txid", call("AddOrder", **ORDER, validate="true"))
        self.assertEqual("0.0100000000", call("Balance")["XXBT"])
        self.assertEqual("0.0100000000", call("BalanceEx")["XXBT"]["balance"])
        self.assertIn("ml", call("TradeBalance"))
        (position,) = call("OpenPositions", docalcs="true").values()
        self.assertEqual(opened, position["ordertxid"])
        self.assertEqual({"open": {}}, call("OpenOrders", cl_ord_id=ID))
        self.assertEqual({spot, opened}, set(call("QueryOrders", txid=f"{opened},{spot}")))
        self.assertEqual([spot], list(call("QueryOrders", txid=f"{opened},{spot}", userref="7")))
        self.assertEqual([opened], list(call("ClosedOrders", cl_ord_id=ID)["closed"]))
        self.assertEqual([spot], list(call("ClosedOrders", userref="7")["closed"]))
        self.assertEqual(2, call("TradesHistory")["count"])
        order = call("QueryOrders", txid=opened, trades="true")[opened]
        self.assertEqual(order["trades"], list(call("QueryTrades", txid=order["trades"][0])))
        self.assertEqual(3, call("Ledgers")["count"])
        self.assertEqual("0.8000", call("TradeVolume", pair="XBTUSD")["fees"]["XXBTZUSD"]["fee"])
        self.assertEqual(SANDBOX_KEY, call("GetApiKeyInfo")["api_key"])
        call("AddOrder", **CLOSE)
        self.assertEqual({}, call("OpenPositions"))


@unittest.skipUnless(has("krakenex"), "krakenex is not installed")
class KrakenexTest(WithSandbox):
    def client(self, key: str = SANDBOX_KEY, secret: str = SANDBOX_SECRET) -> Any:
        import krakenex

        client = krakenex.API(key, secret)
        client.uri = self.sandbox.url
        self.addCleanup(client.close)
        return client

    def test_it_reads_the_market_and_uses_the_account(self) -> None:
        client = self.client()

        def call(method: str, **parameters: str) -> Any:
            answer = client.query_private(method, parameters)
            self.assertEqual([], answer["error"])
            return answer["result"]

        self.check_account(call)
        for method, parameters in (
            ("Time", {}),
            ("SystemStatus", {}),
            ("AssetPairs", {}),
            ("Assets", {}),
            ("OHLC", {"pair": "XBTUSD", "interval": 60}),
            ("Ticker", {"pair": "ETHUSD"}),
            ("Depth", {"pair": "SOLUSD", "count": 3}),
        ):
            with self.subTest(method=method):
                answer = client.query_public(method, parameters)
                self.assertEqual([], answer["error"])
                self.assertTrue(answer["result"])

    def test_errors_are_krakens_words(self) -> None:
        client = self.client()
        for change, words in REFUSALS:
            with self.subTest(words=words):
                answer = client.query_private("AddOrder", {**MARKET, **change})
                self.assertEqual({"error": [words]}, answer)
        for other, words in (
            (self.client(key="x"), "EAPI:Invalid key"),
            (self.client(secret=WRONG_SECRET), "EAPI:Invalid signature"),
        ):
            self.assertEqual([words], other.query_private("Balance")["error"])
        client._nonce = lambda: 1
        self.assertEqual(["EAPI:Invalid nonce"], client.query_private("Balance")["error"])
        self.assertEqual([], self.sandbox.api.truth()["orders"])


@unittest.skipUnless(has("kraken"), "python-kraken-sdk is not installed")
class SdkTest(WithSandbox):
    def clients(self, key: str = SANDBOX_KEY, secret: str = SANDBOX_SECRET) -> tuple[Any, ...]:
        from kraken.spot import Market, Trade, User

        return tuple(
            part(key=key, secret=secret, url=self.sandbox.url) for part in (Market, User, Trade)
        )

    def test_it_reads_the_market(self) -> None:
        market, _, _ = self.clients()
        self.assertIn("XBT", str(market.get_assets()))
        self.assertIn("XXBTZUSD", market.get_asset_pairs(pair="XBTUSD"))
        self.assertIn("XXBTZUSD", market.get_ticker(pair="BTC/USD"))
        self.assertEqual(721, len(market.get_ohlc(pair="XBTUSD", interval=5)["XXBTZUSD"]))
        self.assertEqual(3, len(market.get_order_book(pair="XBTUSD", count=3)["XXBTZUSD"]["asks"]))
        self.assertEqual("online", market.get_system_status()["status"])

    def test_its_own_methods_trade_and_read_the_account(self) -> None:
        _, user, trade = self.clients()
        order = partial(trade.create_order, ordertype="market", pair="XBTUSD", volume="0.01")
        opened = order(side="buy", leverage=2, cl_ord_id=ID, oflags="fciq")["txid"][0]
        spot = order(side="buy", pair="BTC/USD", volume=0.01, userref=7)["txid"][0]
        self.assertNotIn("txid", order(side="sell", volume=0.01, validate=True))
        self.assertEqual(0.01, float(user.get_balance("XBT")["available_balance"]))
        self.assertEqual("1", user.get_open_positions(docalcs=True)[0]["positions"])
        self.assertEqual([spot], list(user.get_closed_orders(userref=7, trades=True)["closed"]))
        trades = user.get_orders_info(txid=[opened, spot], trades=True)[opened]["trades"]
        self.assertIn(trades[0], user.get_trades_info(txid=trades))
        ledger = user.get_ledgers_info(type_="margin", asset=["ZUSD", "XXBT"])["ledger"]
        self.assertEqual(ledger, user.get_ledgers(id_=list(ledger)))
        order(side="sell", leverage=2, reduce_only=True)
        self.assertEqual([], user.get_open_positions())

    def test_every_private_call_works_sync_and_async(self) -> None:
        from kraken.spot import SpotAsyncClient, SpotClient

        client = SpotClient(key=SANDBOX_KEY, secret=SANDBOX_SECRET, url=self.sandbox.url)
        self.check_account(
            lambda method, **p: client.request("POST", f"/0/private/{method}", params=dict(p))
        )
        self.sandbox = sandbox_for(self, "random:1")

        async def ask(method: str, parameters: dict[str, str]) -> Any:
            login = {"key": SANDBOX_KEY, "secret": SANDBOX_SECRET, "url": self.sandbox.url}
            async with SpotAsyncClient(**login) as one:
                return await one.request("POST", f"/0/private/{method}", params=dict(parameters))

        self.check_account(lambda method, **p: asyncio.run(ask(method, p)))

    def test_errors_become_the_exceptions_of_the_client(self) -> None:
        from kraken import exceptions as e

        _, user, trade = self.clients()
        add = partial(trade.request, "POST", "/0/private/AddOrder")
        for change, kind in (
            ({"pair": "NOPE"}, e.KrakenUnknownAssetError),
            ({"leverage": "50"}, e.KrakenInvalidArgumentsError),
            ({"volume": "5"}, e.KrakenInsufficientFundsError),
            ({"volume": "400", "leverage": "2"}, e.KrakenMarginPositionSizeExceededError),
        ):
            self.assertRaises(kind, add, params={**ORDER, **change})
        for other, kind in (
            (self.clients(key="x")[1], e.KrakenInvalidAPIKeyError),
            (self.clients(secret=WRONG_SECRET)[1], e.KrakenInvalidSignatureError),
        ):
            self.assertRaises(kind, other.get_account_balance)
        self.assertRaises(e.KrakenUnknownOrderError, trade.cancel_order, txid="OAAAAA-BBBBB-CCCCCC")
        self.assertRaises(e.KrakenUnknownMethodError, user.request, "POST", "/0/private/Nonsense")
        with self.assertRaises(e.KrakenPermissionDeniedError):
            user.request("POST", "/0/private/Earn/Strategies")
        for status, kind in (
            ("cancel_only", e.KrakenMarketInOnlyCancelModeError),
            ("post_only", e.KrakenMarketInOnlyPostModeError),
            ("maintenance", e.KrakenServiceUnavailableError),
        ):
            self.mode(status)
            self.assertRaises(kind, add, params=dict(ORDER))
        user.get_nonce = lambda: "1"
        self.assertRaises(e.KrakenInvalidNonceError, user.get_account_balance)


@unittest.skipUnless(has("ccxt"), "ccxt is not installed")
class CcxtTest(WithSandbox):
    def client(self, key: str = SANDBOX_KEY, secret: str = SANDBOX_SECRET) -> Any:
        import ccxt

        client = ccxt.kraken({"apiKey": key, "secret": secret, "enableRateLimit": False})
        client.urls["api"].update(public=self.sandbox.url, private=self.sandbox.url)
        return client

    def test_it_reads_the_market(self) -> None:
        client = self.client()
        markets = client.load_markets()
        self.assertEqual(6, len(markets))
        self.assertEqual(D("0.00005"), D(str(markets["BTC/USD"]["limits"]["amount"]["min"])))
        self.assertFalse(markets["BONK/USD"]["margin"])
        self.assertGreater(client.fetch_time(), 1.6e12)
        self.assertEqual("ok", client.fetch_status()["status"])
        self.assertEqual(720, len(client.fetch_ohlcv("BTC/USD", "5m", limit=720)))
        ticker = client.fetch_ticker("ETH/USD")
        self.assertLess(ticker["bid"], ticker["ask"])
        self.assertEqual(3, len(client.fetch_order_book("BTC/USD", 3)["bids"]))

    def test_it_trades_and_reads_the_account(self) -> None:
        client = self.client()
        buy = partial(client.create_order, "BTC/USD", "market", "buy", 0.01)
        opened = buy(params={"leverage": 2, "clientOrderId": ID})
        spot = buy(params={"userref": 7})
        self.assertEqual(0.01, client.fetch_balance()["BTC"]["total"])
        (position,) = client.fetch_positions()
        told = position["side"], position["contracts"], position["leverage"]
        self.assertEqual(("long", 0.01, 2), told)
        order = client.fetch_order(opened["id"], "BTC/USD")
        told = order["status"], order["filled"], order["clientOrderId"]
        self.assertEqual(("closed", 0.01, ID), told)
        self.assertEqual([], client.fetch_open_orders("BTC/USD"))
        closed = client.fetch_closed_orders("BTC/USD")
        self.assertEqual({spot["id"], opened["id"]}, {order["id"] for order in closed})
        self.assertEqual(2, len(client.fetch_my_trades("BTC/USD")))
        trades = {"trades": order["trades"]}
        found = client.fetch_order_trades(opened["id"], "BTC/USD", params=trades)
        self.assertEqual(1, len(found))
        self.assertEqual(3, len(client.fetch_ledger()))
        self.assertEqual(0.008, client.fetch_trading_fee("BTC/USD")["taker"])
        close = {"leverage": 2, "reduce_only": True}
        client.create_order("BTC/USD", "market", "sell", 0.01, params=close)
        self.assertEqual([], client.fetch_positions())

    def test_errors_become_the_exceptions_of_the_client(self) -> None:
        import ccxt

        client, add = self.client(), "private_post_addorder"
        for kind, method, params in (
            (ccxt.InvalidOrder, add, {**ORDER, "volume": "0.00001"}),
            (ccxt.InsufficientFunds, add, {**ORDER, "volume": "5"}),
            (ccxt.BadSymbol, "private_post_tradebalance", {"asset": "NOPE"}),
            (ccxt.PermissionDenied, "private_post_depositmethods", {"asset": "XBT"}),
            (ccxt.InvalidOrder, "cancel_order", "OAAAAA-BBBBB-CCCCCC"),
        ):
            self.assertRaises(kind, getattr(client, method), params)
        self.assertRaises(ccxt.AuthenticationError, self.client(key="x").fetch_balance)
        with self.assertRaisesRegex(ccxt.ExchangeError, "EAPI:Invalid signature"):
            self.client(secret=WRONG_SECRET).fetch_balance()
        self.mode("post_only")
        self.assertRaises(ccxt.OnMaintenance, client.private_post_addorder, dict(ORDER))
        client.incrementing_nonce = lambda: 1
        self.assertRaises(ccxt.InvalidNonce, client.fetch_balance)
