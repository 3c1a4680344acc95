"""Kraken's words: which parameters a method knows, how they are read, what rows look like.

Where Kraken's behaviour is not known for sure: an order's `fee` is the trade fee alone, and a
`reduce_only` order bigger than the position is cancelled for the rest.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Side
from krakenbot.pairs import PairRules
from krakenbot.simulated.listing import ASSETS
from krakenbot.simulated.margin import Book, Entry, Lot, Trade, identifier

Params = dict[str, str]
Row = dict[str, Any]

_PAGE = "start end ofs without_count "
PUBLIC = {
    "Time": "",
    "SystemStatus": "",
    "Assets": "asset aclass",
    "AssetPairs": "pair aclass_base info country_code execution_venue",
    "OHLC": "pair interval since asset_class",
    "Ticker": "pair asset_class",
    "Depth": "pair count asset_class",
}
PRIVATE = {
    "Balance": "",
    "BalanceEx": "",
    "TradeBalance": "asset",
    "OpenPositions": "txid docalcs consolidation rebase_multiplier",
    "OpenOrders": "trades userref cl_ord_id",
    "ClosedOrders": _PAGE + "closetime trades userref cl_ord_id consolidate_taker",
    "QueryOrders": "txid trades userref cl_ord_id consolidate_taker",
    "TradesHistory": _PAGE + "type trades consolidate_taker ledgers",
    "QueryTrades": "txid trades",
    "Ledgers": _PAGE + "asset aclass type",
    "QueryLedgers": "id trades",
    "TradeVolume": "pair fee_schedule fee-info",
    "AddOrder": "pair type ordertype volume price price2 leverage reduce_only stptype oflags "
    "timeinforce trigger displayvol starttm expiretm deadline validate userref cl_ord_id "
    "asset_class broker account_id trading_agreement close[ordertype] close[price] close[price2]",
    "CancelOrder": "txid cl_ord_id",
    "CancelAll": "",
    "GetApiKeyInfo": "",
}
_CLOSED_TO_THIS_KEY = (
    "GetWebSocketsToken DepositMethods DepositAddresses DepositStatus WithdrawMethods "
    "WithdrawAddresses WithdrawInfo Withdraw WithdrawStatus WithdrawCancel WalletTransfer "
    "CreateSubaccount AccountTransfer AddExport ExportStatus RetrieveExport RemoveExport "
    "Earn/Allocate Earn/Deallocate Earn/AllocateStatus Earn/DeallocateStatus Earn/Strategies "
    "Earn/Allocations"
)
_NOT_SIMULATED = (
    "Trades Spread AddOrderBatch AmendOrder EditOrder CancelOrderBatch CancelAllOrdersAfter"
)
NOT_SIMULATED = {
    **dict.fromkeys(_CLOSED_TO_THIS_KEY.split(), "EGeneral:Permission denied"),
    **dict.fromkeys(_NOT_SIMULATED.split(), "EAPI:Feature disabled"),
}
_ORDER_TYPES = (
    "market", "limit", "iceberg", "stop-loss", "take-profit", "stop-loss-limit",
    "take-profit-limit", "trailing-stop", "trailing-stop-limit", "settle-position",
)  # fmt: skip
_VOLUME_MAX = 10**15


class Wish(NamedTuple):
    """An order as it is asked for; `said` are the parameters it came with."""

    rules: PairRules
    side: Side
    volume: Decimal
    leverage: int
    reduce_only: bool
    said: Params

    def text(self, volume: str) -> str:
        leverage = f" with {self.leverage}:1 leverage" if self.leverage else ""
        return f"{self.side.value} {volume} {self.rules.altname} @ market{leverage}"


def wish_of(rules: PairRules, p: Params) -> Wish:
    """Return the market order in these parameters; RefusedError for what Kraken does not take."""
    wrong = [name for name, value in p.items() if not value]
    wrong += [name for name in ("timeinforce", "trigger", "displayvol") if name in p]
    if p.get("type") not in ("buy", "sell"):
        wrong.append("type")
    if p.get("ordertype") not in _ORDER_TYPES:
        wrong.append("ordertype")
    elif p["ordertype"] != "market" or "close[ordertype]" in p or p.get("expiretm", "0") != "0":
        raise RefusedError("EAPI:Feature disabled")
    flags = p.get("oflags", "").split(",")
    leverage = p.get("leverage", "none").removesuffix(":1").removesuffix(".0")
    leverage = "0" if leverage == "none" else leverage
    volume = p.get("volume", "")
    if "post" in flags or ("viqc" in flags and (p.get("type") == "sell" or leverage != "0")):
        wrong.append("oflags")
    if not _is_client_order_id(p.get("cl_ord_id", "")):
        wrong.append("cl_ord_id")
    if not -(2**31) <= whole(p, "userref", 0) < 2**31 or {"userref", "cl_ord_id"} <= p.keys():
        wrong.append("userref")
    if not _is_digits(leverage) or int(leverage) > 1000 or p.get("leverage") == "0":
        wrong.append("leverage")
    if not _is_digits(volume.replace(".", "", 1)) or Decimal(volume) > _VOLUME_MAX:
        wrong.append("volume")
    if wrong:
        raise bad(wrong[0])
    return Wish(
        rules, Side(p["type"]), Decimal(volume), int(leverage), flag(p, "reduce_only"), p
    )


def order_row(wish: Wish, trades: Sequence[Trade], now: float, misc: str) -> Row:
    rules, p = wish.rules, wish.said
    volume, executed, cost, fee = (
        fixed(number, digits)
        for number, digits in (
            (wish.volume, rules.lot_decimals),
            (sum((trade.volume for trade in trades), ZERO), rules.lot_decimals),
            (sum((trade.cost for trade in trades), ZERO), rules.cost_decimals),
            (sum((trade.fee for trade in trades), ZERO), rules.cost_decimals),
        )
    )
    zero = fixed(ZERO, rules.cost_decimals)
    row = {
        "refid": None, "userref": whole(p, "userref", 0), "status": "closed", "reason": None,
        "opentm": round(now, 6), "closetm": round(now + 0.002, 6), "starttm": 0, "expiretm": 0,
        "descr": {
            "pair": rules.altname, "aclass": "forex", "type": wish.side.value,
            "ordertype": "market", "price": "0", "price2": "0",
            "leverage": f"{wish.leverage}:1" if wish.leverage else "none",
            "order": wish.text(volume), "close": "",
        },
        "vol": volume, "vol_exec": executed, "cost": cost, "fee": fee,
        "price": price(trades[0].price, rules) if trades else zero,
        "stopprice": zero, "limitprice": zero, "misc": misc, "oflags": p.get("oflags", "fciq"),
        "trades": [identifier("T", trade.serial) for trade in trades],
    }  # fmt: skip
    if executed != volume:
        reason = "Position is closed" if wish.reduce_only else "Market price protection"
        row |= {"status": "canceled", "reason": reason}
    if "cl_ord_id" in p:
        row["cl_ord_id"] = p["cl_ord_id"]
    row |= {"margin": True} if wish.leverage else {}
    return row | ({"reduce_only": True} if wish.reduce_only else {})


def trade_row(wish: Wish, trade: Trade, txid: str, now: float, misc: str) -> Row:
    rules = wish.rules
    return {
        "ordertxid": txid, "postxid": "TKH2SE-M7IF5-CFI7LT", "pair": rules.pair,
        "aclass": "forex", "time": round(now, 6), "type": wish.side.value, "ordertype": "market",
        "price": price(trade.price, rules), "cost": fixed(trade.cost, rules.cost_decimals),
        "fee": fixed(trade.fee, rules.cost_decimals),
        "vol": fixed(trade.volume, rules.lot_decimals),
        "margin": fixed(trade.margin, rules.cost_decimals), "leverage": str(wish.leverage),
        "misc": ",".join(word for word in ("closing" if trade.closing else "", misc) if word),
        "trade_id": trade.serial % 10**9, "maker": False,
    }  # fmt: skip


def position_row(book: Book, lots: Sequence[Lot], docalcs: bool) -> Row:
    """Return what one position's row and that of several taken together have in common."""
    rules = book.rules
    cost, fee, vol, closed, left, margin = (
        sum(column, ZERO)
        for column in zip(
            *((x.cost, x.fee, x.volume, x.closed, x.cost_left, x.cost / x.leverage) for x in lots),
            strict=True,
        )
    )
    row = {
        "pair": rules.pair, "type": "buy" if book.sign > 0 else "sell",
        "cost": fixed(cost, rules.cost_decimals), "fee": fixed(fee, rules.cost_decimals),
        "vol": fixed(vol, rules.lot_decimals), "vol_closed": fixed(closed, rules.lot_decimals),
        "margin": fixed(margin, rules.cost_decimals),
    }  # fmt: skip
    if docalcs:
        value = (vol - closed) * book.price
        row["value"] = fixed(value, rules.pair_decimals)
        row["net"] = f"{((value - left) * book.sign).quantize(Decimal('0.0001')):+f}"
    return row


def lot_row(book: Book, lot: Lot, docalcs: bool) -> Row:
    return position_row(book, [lot], docalcs) | {
        "ordertxid": identifier("O", lot.order), "posstatus": "open", "class": "forex",
        "time": round(lot.time, 6), "ordertype": "market", "rollovertm": str(int(lot.due)),
        "terms": f"{fixed(lot.rate * 100, 4)}% per 4 hours", "misc": "", "oflags": "",
    }  # fmt: skip


def market_row(book: Book, docalcs: bool) -> Row:
    """Return a pair's positions in one row, in the shape that ccxt expects."""
    row, lots = position_row(book, book.lots, docalcs), book.lots
    leverage = Decimal(row["cost"]) / Decimal(row["margin"])
    return row | {"positions": str(len(lots)), "leverage": fixed(leverage, 5)}


def ledger_row(entry: Entry) -> Row:
    return {
        "aclass": "currency", "amount": amount(entry.asset, entry.amount, 5),
        "asset": entry.asset, "balance": amount(entry.asset, entry.balance, 5),
        "fee": amount(entry.asset, entry.fee, 5), "refid": identifier("T", entry.refid),
        "time": round(entry.time, 6), "type": entry.type,
        "subtype": "tradespot" if entry.type == "trade" else "",
    }  # fmt: skip


def bad(name: str) -> RefusedError:
    return RefusedError(f"EGeneral:Invalid arguments:{name}")


def flag(p: Params, name: str) -> bool:
    return p.get(name, "").lower() in ("true", "1")


def whole(p: Params, name: str, default: int) -> int:
    text = p.get(name)
    if not text:
        return default
    if not _is_digits(text.removeprefix("-")):
        raise bad(name)
    return int(text)


def price(number: Decimal, rules: PairRules) -> str:
    return fixed(number, max(5, rules.pair_decimals))


def amount(asset: str, number: Decimal, digits_min: int = 0) -> str:
    return fixed(number, max(ASSETS[asset][1] if asset in ASSETS else 8, digits_min))


def fixed(number: Decimal, digits: int) -> str:
    return f"{number:.{digits}f}"


def units(number: int, digits: int) -> str:
    """Return a whole number of the last of some digits as text."""
    return f"{number // 10**digits}.{number % 10**digits:0{digits}d}"


def rfc3339(time: float) -> str:
    return datetime.fromtimestamp(int(time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parameters(headers: Mapping[str, str], body: bytes | str) -> Params:
    """Return the parameters of a query, a form or a JSON body, all as text."""
    try:
        if isinstance(body, str) or "json" not in headers.get("content-type", ""):
            text = body if isinstance(body, str) else body.decode()
            return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=100))
        found = {}
        for name, value in json.loads(body, parse_float=str, parse_int=str).items():
            if isinstance(value, dict):
                found.update({f"{name}[{k}]": str(v) for k, v in value.items()})
            elif value is not None:
                found[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return found
    except (ValueError, AttributeError, RecursionError):
        raise RefusedError("EGeneral:Invalid arguments") from None


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 30


def _is_client_order_id(text: str) -> bool:
    undashed = text.replace("-", "") if len(text) == 36 else text
    is_uuid = len(undashed) == 32 and not undashed.lower().strip("0123456789abcdef")
    return text.isascii() and (len(text) <= 18 or is_uuid)
