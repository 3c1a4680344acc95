"""Kraken Spot: all that the bot needs from an exchange. It builds parameters and parses answers.

An answer of the wrong shape raises UnansweredError; nothing is guessed. Source of fields and
permissions: docs.kraken.com, the page of each Spot REST method.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from krakenbot import log
from krakenbot.errors import ContradictionError, RefusedError, UnansweredError
from krakenbot.kraken.shape import BROKEN, History, Methods, moment, parse_candles, rows, shape
from krakenbot.model import (
    ZERO,
    Candle,
    Charge,
    Execution,
    KeyInfo,
    MarginRates,
    MarginSummary,
    Order,
    OrderStatus,
    Position,
    Quote,
    Side,
    SystemStatus,
)
from krakenbot.pairs import PairRules, decimal, parse_rules, plain

NEEDED_PERMISSIONS = ("query-funds", "query-open-trades", "query-closed-trades", "modify-trades")
FORBIDDEN_PERMISSIONS = ("withdraw-funds", "add-withdraw-address", "update-withdraw-address")
SEARCH_BEFORE_S = 60  # Closed orders are searched from this long before the order.
PAGES_MAX = 10_000  # Of a history: 16 hours at Kraken's rate limit.
MARGIN_RATE_MAX = Decimal("0.05")
# Types of ledger rows. The opening fee of a margin trade may be in a "trade" or a "margin" row.
_CHARGES = ("trade", "margin", "rollover")


class Spot:
    """One account and one pair at Kraken. All times are unix seconds.

    Every method may raise LaterError, UnansweredError or KeyRefusedError; RefusedError when Kraken
    refuses for good.
    """

    def __init__(
        self,
        client: Methods,
        pair: str,
        interval_s: int,
        *,
        asset_class: str | None = None,
        trading_agreement: bool = False,
        fee_rate: Decimal | None = None,
    ) -> None:
        self.client, self._pair, self._interval_s = client, pair, interval_s
        self._class = {"asset_class": asset_class} if asset_class else {}
        self._agreement = {"trading_agreement": "agree"} if trading_agreement else {}
        self._fee_rate = fee_rate
        self._rules: PairRules | None = None
        # The span that `charges` is reading, over several calls, and its two histories.
        self._reading: dict[tuple[int, int], tuple[History, History]] = {}
        self._placed = dict[str, str]()  # The newest order's exchange order id, by its own id.

    def server_time(self) -> int:
        """Return Kraken's time in whole unix seconds."""
        result = self.client.public("Time")
        with shape("Time"):
            return moment(result["unixtime"])

    def market_status(self) -> SystemStatus:
        """Return the state of the whole exchange, `online` or another, and its announcements."""
        result = self.client.public("SystemStatus")
        with shape("SystemStatus"):
            lists = result.get("emergency"), result.get("upcoming_maintenance")
            told = [events for events in lists if isinstance(events, list)]
            notices = [_words(event) for events in told for event in events]
            return SystemStatus(str(result["status"]), tuple(notices))

    def rules(self) -> PairRules:
        """Return the pair's rules as they are now."""
        params = {"pair": self._pair}
        if self._class:
            params["aclass_base"] = self._class["asset_class"]
        result = self.client.public("AssetPairs", params)
        with shape("AssetPairs"):
            ((pair, row),) = result.items()
            if self._rules and pair != self._rules.pair:
                raise ValueError(f"it is about {pair}, not {self._rules.pair}")
            self._rules = parse_rules(pair, row)
        return self._rules

    def known_rules(self) -> PairRules:
        """Return the pair's rules as last read; read them if they never were."""
        return self._rules or self.rules()

    def assume_rules(self, rules: PairRules) -> None:
        """Use stored rules because the pair's rules cannot be read."""
        self._rules = rules

    def candles(self, since: int | None) -> Sequence[Candle]:
        """Return the candles from about `since` (None: all available), oldest first.

        The last one is unfinished.
        """
        span = {} if since is None else {"since": since}
        result = self._of_pair("OHLC", {"interval": self._interval_s // 60} | span)
        return parse_candles(result, self._interval_s)

    def quote(self) -> Quote:
        """Return the best bid and ask."""
        result = self._of_pair("Ticker", {})
        with shape("Ticker"):
            (row,) = result.values()
            quote = Quote(bid=decimal(row["b"][0]), ask=decimal(row["a"][0]))
            if not ZERO < quote.bid <= quote.ask:
                raise ValueError(f"bid {quote.bid}, ask {quote.ask}")
            return quote

    def _of_pair(self, method: str, params: Mapping[str, object]) -> Any:
        """Return an answer about the pair; UnansweredError if it is about another."""
        name = self._rules.altname if self._rules else self._pair
        result = self.client.public(method, {"pair": name, **params, **self._class})
        if self._rules and isinstance(result, dict) and not any(map(self._is_ours, result)):
            raise UnansweredError(f"{method} answer is for {', '.join({*result} - {'last'})}")
        return result

    def _is_ours(self, pair: object) -> bool:
        rules = self.known_rules()
        return pair in (rules.pair, rules.altname)

    def margin_rates(self) -> MarginRates:
        """Return the margin rates of long and short positions on the pair."""
        rules = self.known_rules()
        # Tokenized assets are in a separate list, and are not known to be lent.
        is_token = self._class.get("asset_class") == "tokenized_asset"
        assets = rules.quote if is_token else f"{rules.quote},{rules.base}"
        result = self.client.public("Assets", {"asset": assets})
        return MarginRates(_margin_rate(result, rules.quote), _margin_rate(result, rules.base))

    def key_info(self) -> KeyInfo:
        """Return permissions, last nonce and account of the API key."""
        result = self.client.private("GetApiKeyInfo")
        with shape("GetApiKeyInfo"):
            nonce = str(result.get("nonce"))
            return KeyInfo(
                permissions=tuple(str(code) for code in result["permissions"]),
                nonce=int(nonce) if re.fullmatch(r"(?a:\d{1,20})", nonce) else None,
                account=str(result.get("iban") or ""),
            )

    def summary(self, on_margin: bool = True) -> MarginSummary:
        """Return the account's margin figures; without margin, its quote balance alone."""
        quote = self.known_rules().quote
        if not on_margin:
            return MarginSummary(self.balances().get(quote, ZERO), ZERO, ZERO)
        result = self.client.private("TradeBalance", {"asset": quote})
        with shape("TradeBalance"):
            for_orders = result.get("mfo")  # Newer than the others.
            return MarginSummary(
                trade_balance=decimal(result["tb"]),
                unrealized_pnl=decimal(result["n"]),
                used_margin=decimal(result["m"]),
                free_for_orders=None if for_orders in (None, "") else decimal(for_orders),
            )

    def balances(self) -> Mapping[str, Decimal]:
        """Return the balances by asset code."""
        balances = rows(self.client, "Balance")
        with shape("Balance"):
            return {asset: decimal(amount) for asset, amount in balances.items()}

    def position(self) -> Position:
        """Return the open margin position on the pair."""
        lots = rows(self.client, "OpenPositions")
        volume, cost, trades = ZERO, ZERO, list[str]()
        with shape("OpenPositions"):
            for trade_id, row in lots.items():
                if not self._is_ours(row["pair"]):
                    continue
                trades.append(trade_id)
                opened, whole = decimal(row["vol"]), decimal(row["cost"])
                rest = opened - decimal(row["vol_closed"])
                if rest < 0 or opened <= 0:
                    raise ValueError(f"vol {opened}, rest {rest}")
                volume += rest * Side(row["type"]).sign
                cost += whole * rest / opened
        return Position(volume, cost, tuple(trades))

    def charges(self, since: int, until: int, pages: Iterator[int]) -> Sequence[Charge] | None:
        """Return the charges for trades on the pair and for rollovers, in whatever asset.

        They are the ledger's rows after `since` and up to `until`. Each request uses up one of
        `pages`. None when these do not suffice: the next call for the same span continues.
        """
        span = since, until
        if span not in self._reading:
            ledger = History("Ledgers", *span, lambda row: row["type"] in _CHARGES)
            self._reading = {span: (self._trades(*span), ledger)}
        trades, ledger = self._reading[span]
        if not (trades.read(self.client, pages) and ledger.read(self.client, pages)):
            return None
        self._reading.clear()
        with shape("TradesHistory"):
            orders = {key: str(row["ordertxid"]) for key, row in trades.rows.items()}
            costs = {key: decimal(row["cost"]) for key, row in trades.rows.items()}
        found = []
        with shape("Ledgers"):
            for key, row in ledger.rows.items():
                trade_id = str(row["refid"])
                order_id = "" if row["type"] == "rollover" else orders.get(trade_id)
                if order_id is None:
                    continue
                cost = costs.pop(trade_id, ZERO) if order_id else ZERO
                at, fee, asset = moment(row["time"]), decimal(row["fee"]), str(row["asset"])
                found.append(Charge(key, trade_id, order_id, at, cost, fee, asset))
        return found

    def traded_orders(self, since: int, until: int) -> Sequence[str]:
        """Return Kraken's ids of all orders that traded on the pair in that time."""
        trades = self._trades(since - 1, until)  # The start of Kraken's window is exclusive.
        if not trades.read(self.client, iter(range(PAGES_MAX))):
            raise UnansweredError(f"TradesHistory: more than {PAGES_MAX} pages")
        with shape("TradesHistory"):
            return [str(row["ordertxid"]) for row in trades.rows.values()]

    def _trades(self, since: int, until: int) -> History:
        def is_ours(row: Any) -> bool:
            return self._is_ours(row["pair"])

        return History("TradesHistory", since, until, is_ours, consolidate_taker="false")

    def fee_rate(self) -> Decimal:
        """Return the account's taker fee as a fraction: 0.008 is 0.8 %.

        If it cannot be read: the configured fee, or UnansweredError if there is none.
        """
        rules = self.known_rules()
        try:
            result = self.client.private("TradeVolume", {"pair": rules.altname, **self._class})
            fees = result["fees"]
            rate = decimal((fees.get(rules.pair) or fees[rules.altname])["fee"]) / 100
            if not 0 <= rate < Decimal("0.1"):
                raise ValueError(f"fee {rate}")
        except (*BROKEN, RefusedError) as error:
            if self._fee_rate is None:
                raise UnansweredError(f"TradeVolume: not understood ({error!r:.120})") from error
            log.warning("configured fee used rate=%s reason=%r", self._fee_rate, error)
            return self._fee_rate
        return rate

    def place(self, order: Order, deadline: int) -> None:
        """Send the order once. Only `find` tells what became of it.

        Raises RefusedError, LaterError or KeyRefusedError when it was refused or not sent, and
        UnansweredError when it may have been executed. Kraken refuses it after `deadline`.
        """
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(deadline))
        params = {"cl_ord_id": order.client_order_id, "deadline": until}
        result = self.client.private("AddOrder", self._parameters(order) | params)
        with shape("AddOrder"):
            ids = result["txid"]
            if not (isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], str) and ids[0]):
                raise ValueError(f"order ids {ids!r:.80}")
        self._placed = {order.client_order_id: ids[0]}

    def validate(self, order: Order) -> None:
        """Let Kraken check the order without placing it; RefusedError if it would refuse it."""
        self.client.private("AddOrder", self._parameters(order) | {"validate": "true"})

    def _parameters(self, order: Order) -> dict[str, object]:
        margin = {"leverage": str(order.leverage)} if order.leverage else {}
        reducing = {"reduce_only": "true"} if order.reduce_only else {}
        return {
            "ordertype": "market",
            "type": order.side.value,
            "pair": self.known_rules().altname,
            "volume": plain(order.volume),
            "oflags": "fciq",  # The fee preferably in quote currency.
            **margin,
            **reducing,
            **self._agreement,
            **self._class,
        }

    def find(self, client_order_id: str, since: int) -> Execution | None:
        """Return state and fill of an order sent after `since`.

        None only when Kraken has answered that it knows no such order. Raises StopError when
        several orders have that id.
        """
        if placed := self._placed.get(client_order_id):
            orders = rows(self.client, "QueryOrders", {"txid": placed})
            with shape("QueryOrders"):
                orders = {placed: orders[placed]} if orders else {}
        else:
            orders = self._search(client_order_id, since)
        found = [_execution(key, row) for key, row in orders.items()]
        if len(found) > 1:
            ids = ", ".join(orders)
            raise ContradictionError(
                f"the exchange shows several orders for {client_order_id}: {ids}"
            )
        if not found:
            return None
        self._placed = {client_order_id: found[0].exchange_order_id}
        return found[0]

    def _search(self, client_order_id: str, since: int) -> dict[str, Any]:
        """Return the orders with that id, by Kraken's id; if both lists show one, as closed."""
        wanted, found = _digits(client_order_id), dict[str, Any]()
        closed = {"start": since - SEARCH_BEFORE_S, "without_count": "true"}
        for method, more in (("OpenOrders", {}), ("ClosedOrders", closed)):
            orders = rows(self.client, method, {"cl_ord_id": client_order_id, **more})
            with shape(method):  # A server that ignores the filter shows other orders, too.
                for exchange_id, row in orders.items():
                    if _digits(str(row.get("cl_ord_id"))) == wanted:
                        found[exchange_id] = row
        return found


def _execution(exchange_id: str, row: Any) -> Execution:
    with shape("order"):
        status, reason = OrderStatus(row["status"]), str(row.get("reason") or "")
        volume, cost, fee = (decimal(row[key]) for key in ("vol_exec", "cost", "fee"))
        if min(volume, cost) < 0 or (volume == 0 and cost):
            raise ValueError(f"volume {volume}, cost {cost}")
    return Execution(exchange_id, status, volume, cost, fee, reason)


def _words(event: Any) -> str:
    """Return an announcement as words. Source: docs.kraken.com, "Get System Status"."""
    if not isinstance(event, dict):
        return str(event)
    names = ("title", "incident_status", "expected_start_utc", "expected_end_utc")
    return ", ".join(str(event[name]) for name in names if event.get(name))


def _margin_rate(result: Any, asset: str) -> Decimal | None:
    try:
        rate = decimal(result[asset]["margin_rate"]) / 100
        if not 0 <= rate < MARGIN_RATE_MAX:
            raise ValueError(f"margin rate {rate}")
    except BROKEN as error:  # It is only used to estimate costs, and the bot says what it assumes.
        log.info("margin rate of %s not given or not understood: %r", asset, error)
        return None
    return rate


def _digits(client_order_id: str) -> str:
    return client_order_id.replace("-", "").lower()
