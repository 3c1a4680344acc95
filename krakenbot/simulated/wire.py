"""Kraken's wire format: how parameters are parsed, and the rows of answers.

Assumed, since Kraken's behaviour is not known for sure: an order's `fee` is the trade fee alone,
and the volume by which a `reduce_only` order exceeds the position is cancelled.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple
from urllib.parse import parse_qsl

from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Order, Side
from krakenbot.pairs import PairRules
from krakenbot.simulated.books import Entry, Lot, MarginPosition, Trade, identifier
from krakenbot.simulated.listing import ASSETS, Row


class Answer(NamedTuple):
    """A response, without HTTP's own headers."""

    status: int
    content_type: str
    body: bytes

    @classmethod
    def of(cls, envelope: Row) -> "Answer":
        """Return an envelope (`error`, `result`) as JSON; Decimals become text."""
        text = json.dumps(envelope, separators=(",", ":"), default="{:f}".format)
        return cls(200, "application/json; charset=utf-8", text.encode())


Params = dict[str, str]

# The parameters that any method knows; Kraken ignores all others.
PARAMETERS = (
    "nonce otp asset aclass aclass_base asset_class pair interval since count txid docalcs "
    "consolidation rebase_multiplier trades userref cl_ord_id start end ofs without_count "
    "closetime consolidate_taker ledgers type id fee_schedule fee-info ordertype volume price "
    "price2 leverage reduce_only stptype oflags timeinforce trigger displayvol starttm expiretm "
    "deadline validate close broker account_id trading_agreement"
)
_NOT_SIMULATED = {
    "EAPI:Feature disabled": "Trades|Spread|AddOrderBatch|AmendOrder|EditOrder|CancelOrderBatch"
    "|CancelAllOrdersAfter",
    "EGeneral:Permission denied": "(Deposit|Withdraw|Create|Earn/|Account|Wallet).*|.*Export.*"
    "|GetWebSocketsToken",
}
_OTHER_TYPES = "limit|iceberg|(stop-loss|take-profit|trailing-stop)(-limit)?|settle-position"
# Patterns for the parameters of a market order; one that is not given counts as "".
# Documented: docs.kraken.com, "Add Order" and the guide on client order identifiers.
_FORMS = {
    **dict.fromkeys(("timeinforce", "trigger", "displayvol"), ""),
    "type": "buy|sell",
    "ordertype": "market",
    "oflags": "((fciq|fcib|nompp),?)*",
    "stptype": "(cancel-(newest|oldest|both))?",
    "cl_ord_id": "[ -~]{0,18}|[0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "userref": "(-?[0-9]{1,10})?",
    "leverage": r"(none|[1-9][0-9]{0,2}(:1|\.0)?)?",
    "volume": r"[0-9]{1,15}(\.[0-9]{0,15})?",
}


class OrderRequest(NamedTuple):
    """An order, and the parameters that it was made from. `misc` is a word such as liquidated."""

    rules: PairRules
    order: Order
    params: Params
    misc: str = ""

    def text(self, volume: str) -> str:
        """Return the order in Kraken's words: buy 0.05 XBTUSD @ market with 2:1 leverage."""
        leverage = f" with {self.order.leverage}:1 leverage" if self.order.leverage else ""
        return f"{self.order.side.value} {volume} {self.rules.altname} @ market{leverage}"


def order_request(rules: PairRules, p: Params) -> OrderRequest:
    """Parse a market order. Raises RefusedError for parameters that Kraken would refuse."""
    if (
        re.fullmatch(_OTHER_TYPES, p.get("ordertype", ""))
        or "viqc" in p.get("oflags", "")
        or any(p.get(name, "0") != "0" for name in ("starttm", "expiretm"))
        or any(name.startswith("close") and text != "{}" for name, text in p.items())
    ):
        raise RefusedError("EAPI:Feature disabled")
    wrong = [name for name, value in p.items() if not value]
    wrong += [name for name, form in _FORMS.items() if not re.fullmatch(form, p.get(name, ""))]
    if not -(2**31) <= number(p, "userref", 0) < 2**31 or {"userref", "cl_ord_id"} <= p.keys():
        wrong.append("userref")
    if wrong:
        raise bad(wrong[0])
    leverage = p.get("leverage", "none").replace("none", "0").removesuffix(":1").removesuffix(".0")
    side, volume, reduces = Side(p["type"]), Decimal(p["volume"]), flag(p, "reduce_only")
    order = Order(p.get("cl_ord_id", ""), side, volume, int(leverage), reduces)
    return OrderRequest(rules, order, p)


def order_row(request: OrderRequest, trades: Sequence[Trade], now: float, is_flat: bool) -> Row:
    """Return an order that has ended; `is_flat` says whether it has left no position."""
    rules, order, p, misc = request
    coins, money = _forms(rules)
    executed, cost, fee = (
        sum((getattr(trade, name) for trade in trades), ZERO) for name in ("volume", "cost", "fee")
    )
    leverage = f"{order.leverage}:1" if order.leverage else "none"
    descr = (
        {"pair": rules.altname, "aclass": "forex", "type": order.side.value, "close": ""}
        | {"ordertype": "market", "price": "0", "price2": "0", "leverage": leverage}
        | {"order": request.text(coins(order.volume))}
    )
    status, reason = "closed", None
    if executed != order.volume:
        status, reason = "canceled", "Market price protection"
        if order.reduce_only and is_flat:
            reason = "Position is closed"
    optional = {"cl_ord_id": order.client_order_id, "reduce_only": order.reduce_only}
    optional["margin"] = order.leverage > 0
    return (
        {"status": status, "reason": reason, "refid": None, "userref": int(p.get("userref", 0))}
        | {"opentm": round(now, 6), "closetm": round(now + 0.002, 6), "starttm": 0, "expiretm": 0}
        | {"descr": descr, "vol": coins(order.volume), "vol_exec": coins(executed), "misc": misc}
        | {"cost": money(cost), "fee": money(fee), "stopprice": money(0), "limitprice": money(0)}
        | {"price": price(trades[0].price if trades else ZERO, rules)}
        | {"oflags": p.get("oflags", "fciq")}
        | {"trades": [identifier("T", trade.serial) for trade in trades]}
        | {name: value for name, value in optional.items() if value}
    )


def trade_row(request: OrderRequest, trade: Trade, txid: str, now: float) -> Row:
    """Return a trade of the order with the id `txid`, as TradesHistory shows it."""
    rules, order, _, misc = request
    coins, money = _forms(rules)
    misc = f"closing,{misc}".strip(",") if trade.closing else misc
    margin = trade.cost / order.leverage if order.leverage and not trade.closing else ZERO
    return (
        {"ordertxid": txid, "postxid": "TKH2SE-M7IF5-CFI7LT", "trade_id": trade.serial % 10**9}
        | {"pair": rules.pair, "aclass": "forex", "time": round(now, 6), "ordertype": "market"}
        | {"type": order.side.value, "price": price(trade.price, rules), "maker": False}
        | {"cost": money(trade.cost), "fee": money(trade.fee), "vol": coins(trade.volume)}
        | {"margin": money(margin), "leverage": str(order.leverage), "misc": misc}
    )


def position_row(position: MarginPosition, lot: Lot, docalcs: bool) -> Row:
    """Return a lot as OpenPositions shows it, with value and profit if `docalcs`."""
    rules, value = position.rules, lot.open_volume * position.price
    coins, money = _forms(rules)
    net = f"{(value - lot.cost_left) * lot.sign:+.4f}"
    return (
        {"ordertxid": identifier("O", lot.serial), "posstatus": "open", "pair": rules.pair}
        | {"class": "forex", "time": round(lot.time, 6), "type": "buy" if lot.sign > 0 else "sell"}
        | {"ordertype": "market", "cost": money(lot.cost), "fee": money(lot.fee), "misc": ""}
        | {"vol": coins(lot.volume), "vol_closed": coins(lot.closed), "oflags": ""}
        | {"margin": money(lot.cost / lot.leverage), "rollovertm": str(int(lot.due))}
        | {"terms": f"{lot.rate * 100:.4f}% per 4 hours"}
        | ({"value": f"{value:.{rules.pair_decimals}f}", "net": net} if docalcs else {})
    )


def market_row(rows: Sequence[Row]) -> Row:
    """Return the lots of a pair as one row, for `consolidation`, in the shape that ccxt reads."""
    names = rows[0].keys() & {"cost", "fee", "vol", "vol_closed", "margin", "value", "net"}
    sums = {name: sum((Decimal(row[name]) for row in rows), ZERO) for name in names}
    leverage = sums["cost"] / (sums["margin"] or 1)  # The margin of a few coins may round to 0.
    texts = {name: f"{total:{'+' if name == 'net' else ''}f}" for name, total in sums.items()}
    same = {"pair": rows[0]["pair"], "type": rows[0]["type"], "positions": str(len(rows))}
    return same | texts | {"leverage": f"{leverage:.5f}"}


def ledger_row(entry: Entry) -> Row:
    """Return an entry as Ledgers shows it."""
    form = f".{max(decimals(entry.asset), 5)}f"
    return (
        {"aclass": "currency", "asset": entry.asset, "amount": f"{entry.amount:{form}}"}
        | {"balance": f"{entry.balance:{form}}", "fee": f"{entry.fee:{form}}", "type": entry.type}
        | {"refid": identifier("T", entry.refid), "time": round(entry.time, 6)}
        | {"subtype": "tradespot" if entry.type == "trade" else ""}
    )


def identified(orders: Mapping[str, Row], p: Params) -> dict[str, Row]:
    """Return the orders that have the `cl_ord_id` and the `userref` asked for."""
    wanted, userref = _client_id(p.get("cl_ord_id", "")), p.get("userref", "")
    return {
        txid: row
        for txid, row in orders.items()
        if wanted in ("", _client_id(row.get("cl_ord_id", "")))
        and userref in ("", str(row["userref"]))
    }


def not_simulated(method: str) -> RefusedError:
    """Return Kraken's error for a method that is not simulated or does not exist."""
    found = (text for text, names in _NOT_SIMULATED.items() if re.fullmatch(names, method))
    return RefusedError(next(found, "EGeneral:Unknown method"))


def bad(name: str) -> RefusedError:
    """Return Kraken's error for a wrong parameter."""
    return RefusedError(f"EGeneral:Invalid arguments:{name}")


def flag(p: Params, name: str) -> bool:
    """Return whether a parameter is set to true. RefusedError if it is neither true nor false."""
    text = p.get(name, "").lower()
    if text not in ("", "true", "1", "false", "0"):
        raise bad(name)
    return text in ("true", "1")


def number(p: Params, name: str, default: float, fraction: str = r"(\.[0-9]*)?") -> float:
    """Return a parameter as a number, `default` if it is not given. RefusedError if it is none."""
    text = p.get(name)
    if text and not re.fullmatch("-?[0-9]{1,20}" + fraction, text):
        raise bad(name)
    return float(text) if text else default


def price(price: Decimal, rules: PairRules) -> str:
    """Return a price with the pair's decimals, at least five."""
    return f"{price:.{max(5, rules.pair_decimals)}f}"


def _forms(rules: PairRules) -> tuple[Callable[..., str], Callable[..., str]]:
    """Return the functions that write volumes and amounts of money."""
    return f"{{:.{rules.lot_decimals}f}}".format, f"{{:.{rules.cost_decimals}f}}".format


def _client_id(text: str) -> str:
    """Return an id in the form for comparing: a UUID may lack dashes or have capitals."""
    return text.replace("-", "").lower() if len(text) >= 32 else text


def decimals(asset: str) -> int:
    """Return the decimals of an asset's balances."""
    return int(ASSETS[asset]["decimals"]) if asset in ASSETS else 8


def parameters(headers: Mapping[str, str], body: bytes) -> Params:
    """Return the parameters of a query, a form or a JSON body, all as text.

    Raises RefusedError for any other body.
    """
    try:
        if "json" not in headers.get("content-type", ""):
            return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
        given = json.loads(body, parse_float=str, parse_int=str)
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in given.items()
            if value is not None
        }
    except (ValueError, AttributeError, RecursionError):
        raise RefusedError("EGeneral:Invalid arguments") from None


def asset_codes(names: str) -> list[str]:
    """Return the codes of assets named by code or altname, with commas. RefusedError if unknown."""
    codes = {name: code for code, row in ASSETS.items() for name in (code, row["altname"])}
    if not codes.keys() >= set(names.split(",")):
        raise RefusedError("EQuery:Unknown asset")
    return [codes[name] for name in names.split(",")]
