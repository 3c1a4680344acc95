"""Kraken's private methods, answered from the books of a simulated account.

Assumed, since Kraken's behaviour is not known for sure: an opposite order larger than the position
reverses it (as support.kraken.com 202966956 once said), a deadline applies to `validate` too, and a
`cl_ord_id` may be used again once its order is closed.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_FLOOR, Decimal
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Any, Protocol

from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Order, Quote, Side
from krakenbot.pairs import PairRules
from krakenbot.simulated import wire
from krakenbot.simulated.books import Account, MarginPosition, Trade, identifier, refusal
from krakenbot.simulated.listing import ASSETS, Row
from krakenbot.simulated.wire import OrderRequest, Params, bad, flag, number

HISTORY_MAX = 10000
PAGE = 50  # Documented: docs.kraken.com, "Get Closed Orders", `ofs`.
DEADLINE_MIN_S, DEADLINE_MAX_S = 2, 60  # Documented: docs.kraken.com, "Add Order", `deadline`.
_TRADE_TYPES: dict[str, Callable[[Row], bool]] = {
    "all": lambda row: True,
    "any position": lambda row: row["leverage"] != "0",
    "closing position": lambda row: "closing" in row["misc"],
    "no position": lambda row: row["leverage"] == "0",
}
Span = tuple[float, Decimal, Decimal, Decimal]  # An interval's last moment, open, low, high.


class Markets(Protocol):
    """What an account needs from the markets it trades on."""

    rules: dict[str, PairRules]
    status: str

    def pair(self, name: str) -> PairRules: ...

    def quote(self, rules: PairRules) -> Quote: ...

    def ended(self, rules: PairRules, since: float, until: float) -> Iterable[Span]:
        """Return the intervals that ended from `since` to `until`."""


class PrivateApi:
    """One account with its orders, trades and ledger. `now` returns unix seconds.

    `methods` has Kraken's methods by name; each returns its result or raises RefusedError. The
    newest `history` orders and trades are kept. `slack_s` widens deadlines, because a scaled clock
    runs on while a request is on its way. Source: docs.kraken.com, "Account Data" and "Trading".
    """

    def __init__(self, markets: Markets, account: Account, now: Callable[[], float]) -> None:
        self.markets, self.account, self.now = markets, account, now
        self.orders, self.trades = dict[str, Row](), dict[str, Row]()
        self.fill_share, self.slack_s, self.history = Decimal(1), 0.0, HISTORY_MAX
        self._marked = now()
        self.methods: dict[str, Callable[[Params], Any]] = {
            "Balance": self._balance,
            "BalanceEx": self._balance_ex,
            "TradeBalance": self._trade_balance,
            "OpenPositions": self._open_positions,
            "OpenOrders": lambda p: {"open": _shown(self._orders(p, is_open=True), p)},
            # Market orders never rest in the order book, so there is nothing to cancel.
            "CancelAll": lambda _: {"count": 0},
            "CancelOrder": self._cancel_order,
            "ClosedOrders": self._closed_orders,
            "QueryOrders": lambda p: _shown(wire.identified(_by_id(self.orders, p), p), p),
            "TradesHistory": self._trades_history,
            "QueryTrades": lambda p: _by_id(self.trades, p, most=20),
            "Ledgers": self._ledgers,
            "QueryLedgers": lambda p: _by_id(dict(self._ledger()), p, "id", 20),
            "TradeVolume": self._trade_volume,
            "AddOrder": self._add_order,
        }

    def mark_to_market(self) -> None:
        """Bring the books up to now: for each interval charge rollovers, then try high and low."""
        now, marks = self.now(), list[tuple[float, MarginPosition, Decimal, Decimal, Decimal]]()
        for position in self.account.held_positions():
            for moment, price, low, high in self.markets.ended(position.rules, self._marked, now):
                marks.append((moment, position, price, low, high))
            mid = self.markets.quote(position.rules).mid
            marks.append((now, position, mid, mid, mid))
        for mark in sorted(marks, key=itemgetter(0)):
            self.mark(*mark)
        self._marked = now

    def mark(
        self, now: float, position: MarginPosition, price: Decimal, low: Decimal, high: Decimal
    ) -> None:
        """Mark a position at `price`; liquidate it there, or if low or high reach the limit."""
        if position.lots:
            request = closing(position, "liquidated")
            trade = self.account.advance(position, now, price)
            trade = trade or self.account.liquidate_between(position, now, low, high)
            if trade:
                self.record(request, [trade], now)

    def _balance(self, _: Params) -> Any:
        """Return the balances rounded down, so that what is shown can be spent."""
        steps = {name: Decimal(1).scaleb(-wire.decimals(name)) for name in self.account.balances}
        return {
            asset: f"{amount.quantize(steps[asset], rounding=ROUND_FLOOR):f}"
            for asset, amount in self.account.balances.items()
            if amount
        }

    def _balance_ex(self, p: Params) -> Any:
        return {
            asset: {"balance": text, "hold_trade": f"{ZERO:.{wire.decimals(asset)}f}"}
            for asset, text in self._balance(p).items()
        }

    def _trade_balance(self, p: Params) -> Any:
        asset, account = p.get("asset", "ZUSD"), self.account
        quote = f"Z{asset}" if f"Z{asset}" in ASSETS else asset
        pairs = [rules for rules in self.markets.rules.values() if rules.quote == quote]
        if not pairs:
            raise RefusedError("EQuery:Unknown asset")
        held, margin = account.held_positions(quote), account.summary(quote)
        owned = [rules for rules in pairs if account.balances.get(rules.base)]
        worth = sum((account.balances[r.base] * self.markets.quote(r).mid for r in owned), ZERO)
        value = sum((position.held * position.price for position in held), ZERO)
        cost = sum((position.cost_left for position in held), ZERO)
        amounts = (
            {"eb": worth + margin.trade_balance, "tb": margin.trade_balance, "uv": ZERO}
            | {"m": margin.used_margin, "n": margin.unrealized_pnl, "c": cost, "v": value}
            | {"e": margin.equity, "mf": margin.free_margin, "mfo": margin.free_margin}
        )
        digits = max(4, wire.decimals(quote))
        shown = {name: f"{amount:.{digits}f}" for name, amount in amounts.items()}
        level = margin.margin_level
        return shown if level is None else {**shown, "ml": f"{level:.2f}"}

    def _open_positions(self, p: Params) -> Any:
        docalcs = flag(p, "docalcs")
        rows = {
            identifier("T", lot.serial): wire.position_row(position, lot, docalcs)
            for position in self.account.held_positions()
            for lot in position.lots
        }
        if p.get("consolidation") == "market":
            pairs = groupby(rows.values(), itemgetter("pair"))
            return [wire.market_row(list(lots)) for _, lots in pairs]
        return _by_id(rows, p) if p.get("txid") else rows

    def _orders(self, p: Params, *, is_open: bool) -> dict[str, Row]:
        """Return the open orders or the closed ones. Orders only seem open while reads lag."""
        rows = {key: x for key, x in self.orders.items() if (x["status"] == "open") is is_open}
        return wire.identified(rows, p)

    def _closed_orders(self, p: Params) -> Any:
        columns = {"open": ["opentm"], "close": ["closetm"], "both": ["opentm", "closetm"]}
        times = columns.get(p.get("closetime") or "both")
        if times is None:
            raise bad("closetime")
        newest = reversed(self._orders(p, is_open=False).items())
        page = self._page(newest, p, "closed", *times)
        return page | {"closed": _shown(page["closed"], p)}

    def _trades_history(self, p: Params) -> Any:
        kind = p.get("type") or "all"
        if kind == "closed position":
            raise RefusedError("EAPI:Feature disabled")
        is_kind = _TRADE_TYPES.get(kind)
        if is_kind is None:
            raise bad("type")
        newest = (x for x in reversed(self.trades.items()) if is_kind(x[1]))
        return self._page(newest, p, "trades", "time")

    def _ledgers(self, p: Params) -> Any:
        types, assets = p.get("type", "all").split(","), p.get("asset", "all")
        codes = None if assets == "all" else wire.asset_codes(assets)
        newest = (
            (key, row)
            for key, row in self._ledger(self._moment(p, "start", 0) - 1)
            if types == ["all"] or row["type"] in types
            if codes is None or row["asset"] in codes
        )
        return self._page(newest, p, "ledger", "time")

    def _ledger(self, since: float = 0) -> Iterator[tuple[str, Row]]:
        """Yield ids and rows of the ledger entries after `since`, the newest first."""
        for entry in (entry for entry in reversed(self.account.ledger) if entry.time > since):
            yield identifier("L", entry.serial), wire.ledger_row(entry)

    def _page(self, newest: Iterable[tuple[str, Row]], p: Params, name: str, *times: str) -> Row:
        """Return the page, from number `ofs` on, of rows after `start` and not after `end`.

        `newest` has ids and rows, the newest first; one of the fields `times` must be in that time.
        """
        start, end = self._moment(p, "start", 0), self._moment(p, "end", math.inf)
        offset = max(int(number(p, "ofs", 0, fraction="")), 0)
        found = [x for x in newest if any(start < x[1][time] <= end for time in times)]
        page: Row = {name: dict(found[offset : offset + PAGE])}
        return page if flag(p, "without_count") else {**page, "count": len(found)}

    def _moment(self, p: Params, name: str, default: float) -> float:
        """Return unix seconds, given as a number or as the id of a row of that time."""
        text = p.get(name, "")
        ledger = dict(self._ledger()) if text.startswith("L") else {}
        row = ChainMap(self.orders, self.trades, ledger).get(text)
        return float(row.get("opentm") or row["time"]) if row else number(p, name, default)

    def _trade_volume(self, p: Params) -> Any:
        in_dollars = {key for key, rules in self.markets.rules.items() if rules.quote == "ZUSD"}
        recent = (t for t in self.trades.values() if t["time"] > self.now() - 30 * 86400)
        costs = (Decimal(t["cost"]) for t in recent if t["pair"] in in_dollars)
        result: Row = {"currency": "ZUSD", "volume": f"{sum(costs):.4f}"}
        if not p.get("pair"):
            return result
        pairs = [self.markets.pair(name.strip()).pair for name in p["pair"].split(",")]
        same = {"nextfee": None, "nextvolume": None, "tiervolume": "0.0000"}
        for name, share in (("fees", 100), ("fees_maker", 50)):
            percent = f"{self.account.fee_rate * share:.4f}"
            row = dict.fromkeys(("fee", "minfee", "maxfee"), percent) | same
            result[name] = dict.fromkeys(pairs, row)
        return result

    def _add_order(self, p: Params) -> Any:
        rules = self.markets.pair(p.get("pair", ""))
        request = wire.order_request(rules, p)
        if "deadline" in p:
            self._check_deadline(p["deadline"])
        quote, now, position = self.markets.quote(rules), self.now(), self.account.position(rules)
        still_open = takewhile(lambda x: x[1]["closetm"] > now, reversed(self.orders.items()))
        if "cl_ord_id" in p and wire.identified(dict(still_open), p):
            raise bad("cl_ord_id not unique")
        order = request.order
        if not order.volume and order.leverage and position.sign == -order.side.sign:
            order = order._replace(volume=position.held)
        price = quote.ask if order.side is Side.BUY else quote.bid
        error = refusal(rules, order, price)
        if self.markets.status != "online":
            error = error or f"EService:Market in {self.markets.status} mode"
        if error is not None:
            raise RefusedError(error.replace("Market in maintenance mode", "Unavailable"))
        reply: Row = {"descr": {"order": request.text(p["volume"])}}
        if flag(p, "validate"):
            return reply
        part = order._replace(volume=rules.round_volume(order.volume * self.fill_share))
        position.price = quote.mid
        trades = self.account.fill(position, now, part, price) if part.volume else []
        return {"txid": [self.record(request._replace(order=order), trades, now)], **reply}

    def _check_deadline(self, text: str) -> None:
        try:
            moment = datetime.fromisoformat(text)
            ahead = moment.timestamp() - self.now()
        except (ValueError, OverflowError):
            raise bad("deadline") from None
        if ahead < -self.slack_s:
            raise RefusedError("EService:Deadline elapsed")
        if moment.tzinfo is None or not DEADLINE_MIN_S - self.slack_s <= ahead <= DEADLINE_MAX_S:
            raise bad("deadline")

    def record(self, request: OrderRequest, trades: Sequence[Trade], now: float) -> str:
        """Store an order and its trades as Kraken shows them; return the order's id.

        The id is made from the serial of the last trade, which is also that of the lot opened.
        """
        self.account.serial += 1
        txid = identifier("O", trades[-1].serial if trades else self.account.serial)
        for trade in trades:
            self.trades[identifier("T", trade.serial)] = wire.trade_row(request, trade, txid, now)
        is_flat = not self.account.position(request.rules).lots
        self.orders[txid] = wire.order_row(request, trades, now, is_flat)
        for rows in (self.orders, self.trades):
            while len(rows) > self.history:
                del rows[next(iter(rows))]
        return txid

    def _cancel_order(self, p: Params) -> Any:
        known = p.get("txid") or p.get("cl_ord_id")
        raise RefusedError("EOrder:Unknown order" if known else "EGeneral:Invalid arguments")


def closing(position: MarginPosition, misc: str = "") -> OrderRequest:
    """Return the market order that closes the position, which must have a lot."""
    side = Side.SELL if position.sign > 0 else Side.BUY
    order = Order("", side, position.held, position.lots[0].leverage, False)
    return OrderRequest(position.rules, order, {}, misc)


def _by_id(rows: dict[str, Row], p: Params, name: str = "txid", most: int = 50) -> dict[str, Row]:
    if not p.get(name):
        raise RefusedError("EGeneral:Invalid arguments")
    return {key: rows[key] for key in p[name].split(",")[:most] if key in rows}


def _shown(orders: Mapping[str, Row], p: Params) -> dict[str, Row]:
    """Return the orders, with the ids of their trades only if `trades` asks for them."""
    left_out = "" if flag(p, "trades") else "trades"
    return {txid: {k: v for k, v in row.items() if k != left_out} for txid, row in orders.items()}
