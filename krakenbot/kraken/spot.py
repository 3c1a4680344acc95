"""Kraken Spot behind the port: parameters out, answers in, shapes checked.

An answer of a wrong shape is no answer: UnansweredError, never a guess.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Protocol

from krakenbot import log
from krakenbot.candles import parse_rows
from krakenbot.errors import RefusedError, StopError, UnansweredError
from krakenbot.model import (
    ZERO,
    Candle,
    Charge,
    ChargeKind,
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
SEARCH_BEFORE_S = 60
PAGE = 50
PAGES_MAX = 200  # Of a history; 20 minutes at the pace that Kraken allows.
MARGIN_RATE_MAX = Decimal("0.05")
_CHARGES = tuple(kind.value for kind in ChargeKind)
_BROKEN = (AttributeError, KeyError, TypeError, ValueError, IndexError)


class Methods(Protocol):
    """Kraken's methods by name: a Client, or in paper mode one whose account is simulated."""

    def public(self, method: str, params: Mapping[str, object] | None = None) -> Any: ...

    def private(self, method: str, params: Mapping[str, object] | None = None) -> Any: ...


class Spot:
    """One account and one pair at Kraken, as `krakenbot.exchange.Exchange` describes it."""

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
        self._client = client
        self._pair = pair
        self._interval_s = interval_s
        self._class = {"asset_class": asset_class} if asset_class else {}
        self._agreement = {"trading_agreement": "agree"} if trading_agreement else {}
        self._fee_rate = fee_rate
        self._rules: PairRules | None = None
        self._placed = ("", "")  # The newest order's client order id and exchange order id.

    # -- what everybody may know ---------------------------------------------------------------

    def server_time(self) -> int:
        result = self._client.public("Time")
        with _shape("Time"):
            return _moment(result["unixtime"])

    def market_status(self) -> SystemStatus:
        result = self._client.public("SystemStatus")
        with _shape("SystemStatus"):
            upcoming = map(_words, result.get("upcoming_maintenance") or ())
            emergency = map(_words, result.get("emergency") or ())
            return SystemStatus(str(result["status"]), tuple(upcoming), tuple(emergency))

    def rules(self) -> PairRules:
        params = {"pair": self._pair}
        if self._class:
            params["aclass_base"] = self._class["asset_class"]
        result = self._client.public("AssetPairs", params)
        with _shape("AssetPairs"):
            ((pair, row),) = result.items()
            self._rules = parse_rules(pair, row)
        return self._rules

    def known_rules(self) -> PairRules:
        return self._rules or self.rules()

    def assume_rules(self, rules: PairRules) -> None:
        self._rules = rules

    def candles(self, since: int | None) -> Sequence[Candle]:
        params: dict[str, object] = {"pair": self._name, "interval": self._interval_s // 60}
        if since is not None:
            params["since"] = since
        result = self._client.public("OHLC", params | self._class)
        if self._rules and isinstance(result, dict) and not any(map(self._is_ours, result)):
            raise UnansweredError(f"OHLC answer is of another pair: {', '.join(result)}")
        return parse_rows(result, self._interval_s)

    def quote(self) -> Quote:
        result = self._client.public("Ticker", {"pair": self._name, **self._class})
        with _shape("Ticker"):
            (row,) = result.values()
            quote = Quote(bid=decimal(row["b"][0]), ask=decimal(row["a"][0]))
            if not ZERO < quote.bid <= quote.ask:
                raise ValueError(f"bid {quote.bid}, ask {quote.ask}")
        return quote

    def margin_rates(self) -> MarginRates:
        rules = self.known_rules()
        # Tokenized assets stand in a list of their own, and are not known to be lent.
        is_token = self._class.get("asset_class") == "tokenized_asset"
        assets = rules.quote if is_token else f"{rules.quote},{rules.base}"
        result = self._client.public("Assets", {"asset": assets})
        return MarginRates(_margin_rate(result, rules.quote), _margin_rate(result, rules.base))

    # -- the account ---------------------------------------------------------------------------

    def key_info(self) -> KeyInfo:
        result = self._client.private("GetApiKeyInfo")
        with _shape("GetApiKeyInfo"):
            nonce = str(result.get("nonce"))
            return KeyInfo(
                permissions=tuple(str(code) for code in result["permissions"]),
                nonce=int(nonce) if re.fullmatch(r"(?a:\d{1,20})", nonce) else None,
                account=str(result.get("iban") or ""),
            )

    def summary(self) -> MarginSummary:
        result = self._client.private("TradeBalance", {"asset": self.known_rules().quote})
        with _shape("TradeBalance"):
            return MarginSummary(
                trade_balance=decimal(result["tb"]),
                unrealized_pnl=decimal(result["n"]),
                used_margin=decimal(result["m"]),
            )

    def balances(self) -> Mapping[str, Decimal]:
        rows = self._rows("Balance")
        with _shape("Balance"):
            return {asset: decimal(amount) for asset, amount in rows.items()}

    def position(self) -> Position:
        rows, volume, cost, trades = self._rows("OpenPositions"), ZERO, ZERO, list[str]()
        with _shape("OpenPositions"):
            for trade_id, row in rows.items():
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

    def charges(self, since: int, until: int) -> Sequence[Charge]:
        trades = dict(self._trades(since, until))
        found = []
        with _shape("TradesHistory"):
            costs = {key: decimal(row["cost"]) for key, row in trades.items()}
        with _shape("Ledgers"):
            for key, row in self._pages("Ledgers", "ledger", since, until):
                trade_id, kind = str(row["refid"]), row["type"]
                is_rollover = kind == ChargeKind.ROLLOVER.value
                if kind not in _CHARGES or not (is_rollover or trade_id in trades):
                    continue
                order_id = "" if is_rollover else str(trades[trade_id]["ordertxid"])
                cost = ZERO if is_rollover else costs.pop(trade_id, ZERO)
                time, fee, asset = _moment(row["time"]), decimal(row["fee"]), str(row["asset"])
                charge = Charge(key, trade_id, order_id, time, cost, fee, asset, ChargeKind(kind))
                found.append(charge)
        return found

    def traded_orders(self, since: int, until: int) -> Sequence[str]:
        with _shape("TradesHistory"):  # The start of Kraken's window is exclusive.
            return [str(row["ordertxid"]) for _, row in self._trades(since - 1, until)]

    def _trades(self, since: int, until: int) -> list[tuple[str, Any]]:
        rows = self._pages("TradesHistory", "trades", since, until, consolidate_taker="false")
        with _shape("TradesHistory"):
            return [(key, row) for key, row in rows if self._is_ours(row["pair"])]

    def _pages(
        self, method: str, key: str, since: int, until: int, **more: str
    ) -> list[tuple[str, Any]]:
        """Return the rows after `since` until `until`, however many others an account has there.

        Newest first, 50 an answer; the window is narrowed from its end, second by second.
        """
        found: dict[str, Any] = {}
        end, offset = until, 0
        for _ in range(PAGES_MAX):
            page: dict[str, object] = {"start": since, "end": end, "without_count": "true", **more}
            result = self._client.private(method, page | ({"ofs": offset} if offset else {}))
            if not isinstance(result, dict) or key not in result:
                raise UnansweredError(f"{method}: an answer without {key!r}")
            rows, known = dict(_items(method, result[key])), len(found)
            found |= rows
            if len(rows) < PAGE:
                return list(found.items())
            if len(found) == known and offset:
                raise UnansweredError(f"{method}: the same rows again and again")
            with _shape(method):
                oldest = min(_moment(row["time"]) for row in rows.values()) + 1
            end, offset = (oldest, 0) if oldest < end else (end, offset + PAGE)
        raise UnansweredError(f"{method}: more than {PAGES_MAX * PAGE} rows")

    def fee_rate(self) -> Decimal:
        rules = self.known_rules()
        try:
            result = self._client.private("TradeVolume", {"pair": rules.altname, **self._class})
            fees = result["fees"]
            row = fees.get(rules.pair) or fees[rules.altname]
            rate = decimal(row["fee"]) / 100
            if not 0 <= rate < Decimal("0.1"):
                raise ValueError(f"fee {rate}")
        except (*_BROKEN, RefusedError) as error:
            if self._fee_rate is None:
                raise UnansweredError(f"TradeVolume: not understood ({error!r:.120})") from error
            log.warning("configured fee used rate=%s reason=%r", self._fee_rate, error)
            return self._fee_rate
        return rate

    def place(self, order: Order, deadline: int) -> None:
        params = self._parameters(order)
        params["cl_ord_id"] = order.client_order_id
        params["deadline"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(deadline))
        if order.reduce_only:
            params["reduce_only"] = "true"
        result = self._client.private("AddOrder", params)
        ids = result.get("txid") if isinstance(result, dict) else None
        if not isinstance(ids, list) or len(ids) != 1 or not isinstance(ids[0], str) or not ids[0]:
            raise UnansweredError("AddOrder: an answer without one order id")
        self._placed = (order.client_order_id, ids[0])

    def validate(self, order: Order) -> None:
        """Let Kraken check the order without making one; RefusedError when it would not take it."""
        self._client.private("AddOrder", self._parameters(order) | {"validate": "true"})

    def _parameters(self, order: Order) -> dict[str, object]:
        leverage = {"leverage": str(order.leverage)} if order.leverage else {}
        return {
            "ordertype": "market",
            "type": order.side.value,
            "pair": self.known_rules().altname,
            "volume": plain(order.volume),
            "oflags": "fciq",
            **leverage,
            **self._agreement,
            **self._class,
        }

    def find(self, client_order_id: str, since: int) -> Execution | None:
        client_id, known = self._placed
        if client_id == client_order_id:
            orders = self._rows("QueryOrders", {"txid": known})
            orders = {key: row for key, row in orders.items() if key == known}
        else:
            orders = self._search(client_order_id, since)
        if len(orders) > 1:
            ids = ", ".join(orders)
            raise StopError(f"the exchange shows several orders for {client_order_id}: {ids}")
        if not orders:
            return None
        ((exchange_id, row),) = orders.items()
        execution = _execution(client_order_id, exchange_id, row)
        self._placed = (client_order_id, exchange_id)
        return execution

    def _search(self, client_order_id: str, since: int) -> dict[str, Any]:
        """Return the orders of that id by the exchange's; the newest word on each counts."""
        asked: dict[str, object] = {"cl_ord_id": client_order_id}
        closed = asked | {"start": since - SEARCH_BEFORE_S, "without_count": "true"}
        orders = self._rows("OpenOrders", asked, "open")
        orders |= self._rows("ClosedOrders", closed, "closed")
        with _shape("OpenOrders or ClosedOrders"):
            # An exchange that does not know the filter would show other orders, too.
            return {
                exchange_id: row
                for exchange_id, row in orders.items()
                if _digits(str(row.get("cl_ord_id"))) == _digits(client_order_id)
            }

    def _rows(
        self, method: str, params: Mapping[str, object] | None = None, key: str = ""
    ) -> dict[str, Any]:
        """Return the rows by id that are the result of a private method, or stand in it at `key`.

        Some empty answers hold a list in place of the object.
        """
        result = self._client.private(method, params)
        if key and (not isinstance(result, dict) or key not in result):
            raise UnansweredError(f"{method}: an answer without {key!r}")
        rows = result[key] if key else result
        if not isinstance(rows, dict) and rows != []:
            raise UnansweredError(f"{method}: an answer of unknown form")
        return dict(rows)

    @property
    def _name(self) -> str:
        return self._rules.altname if self._rules else self._pair

    def _is_ours(self, pair: object) -> bool:
        rules = self.known_rules()
        return pair in (rules.pair, rules.altname)


def _execution(client_order_id: str, exchange_id: str, row: Any) -> Execution:
    with _shape("order"):
        execution = Execution(
            client_order_id=client_order_id,
            exchange_order_id=exchange_id,
            status=OrderStatus(row["status"]),
            volume=decimal(row["vol_exec"]),
            cost=decimal(row["cost"]),
            fee=decimal(row["fee"]),
            reason=str(row.get("reason") or ""),
        )
        volume, cost = execution.volume, execution.cost
        if min(volume, cost) < 0 or (volume == 0 and cost):
            raise ValueError(f"volume {volume}, cost {cost}")
    return execution


def _items(method: str, result: Any) -> Iterator[tuple[str, Any]]:
    if result == [] and isinstance(result, list):
        return iter(())  # Some empty answers hold a list in place of the object.
    if not isinstance(result, dict):
        raise UnansweredError(f"{method}: an answer of unknown form")
    return iter(result.items())


def _words(event: Any) -> str:
    """Return an announcement as words. Source: docs.kraken.com, "Get System Status"."""
    if not isinstance(event, dict):
        return str(event)
    names = ("title", "incident_status", "expected_start_utc", "expected_end_utc")
    return ", ".join(str(event[name]) for name in names if event.get(name))


def _margin_rate(result: Any, asset: str) -> Decimal | None:
    try:
        text = result.get(asset, {}).get("margin_rate")
        rate = None if text is None else decimal(text) / 100
        if rate is not None and not 0 <= rate < MARGIN_RATE_MAX:
            raise ValueError(f"margin rate {rate}")
    except _BROKEN as error:  # It is only asked for to say what trading costs.
        log.warning("margin rate of %s not understood: %r", asset, error)
        return None
    return rate


def _moment(value: object) -> int:
    moment = int(decimal(value))
    if not 0 < moment < 10**11:
        raise ValueError(f"time {moment}")
    return moment


def _digits(client_order_id: str) -> str:
    return client_order_id.replace("-", "").lower()


@contextmanager
def _shape(method: str) -> Iterator[None]:
    """Take what cannot be read of an answer for no answer: UnansweredError."""
    try:
        yield
    except _BROKEN as error:
        raise UnansweredError(f"{method}: an answer of unknown form ({error!r:.120})") from error
