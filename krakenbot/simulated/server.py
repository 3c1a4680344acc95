"""The simulated exchange in Kraken's words: one request in, one answer out, no socket.

Where Kraken's behaviour is not known for sure: a `reduce_only` order bigger than the position
fills what it can and is cancelled for the rest, an opposite order bigger than the position turns
it, an order's `fee` is the trade fee alone, a deadline counts for `validate` too, `cl_ord_id` may
be used again once its order is closed.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime
from hmac import compare_digest
from math import nextafter
from typing import Any
from urllib.parse import parse_qsl

from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Quote, Secret, Side
from krakenbot.pairs import PairRules, decimal, parse_rules, plain
from krakenbot.signing import sign
from krakenbot.simulated.exchange import FEE_RATE, execute, objection
from krakenbot.simulated.feed import INTERVALS, Feed, Series
from krakenbot.simulated.front import Answer, Front
from krakenbot.simulated.listing import (
    ASSETS,
    PAIRS,
    aliases,
    unlisted,
)
from krakenbot.simulated.listing import (
    SANDBOX_KEY as SANDBOX_KEY,
)
from krakenbot.simulated.listing import (
    SANDBOX_SECRET as SANDBOX_SECRET,
)
from krakenbot.simulated.margin import Account, Book, Lot, Trade, identifier

log = logging.getLogger(__name__)

START_BALANCES = {"ZUSD": Decimal(10000), "ZEUR": Decimal(5000), "USDT": Decimal(1000)}
KEPT = 10000
PAGE = 50

# Kraken's limits by tier: REST counter and its decay a second, the same of the matching engine,
# failed logins in a row until the lockout. Not documented: the last column; "sandbox" is ours.
TIERS = {
    "starter": (15, 0.33, 60, 1.0, 20),
    "intermediate": (20, 0.5, 125, 2.34, 20),
    "pro": (20, 1.0, 180, 3.75, 20),
    "sandbox": (50000, 1000.0, 50000, 1000.0, 1000),
}
LOCKOUT_S = 900
CLOCK_STEP_MAX_S = 366 * 86400
VOLUME_MAX = 10**15
DEADLINE_MIN_S, DEADLINE_MAX_S = 2, 60

_ORDER_TYPES = (
    "market", "limit", "iceberg", "stop-loss", "take-profit", "stop-loss-limit",
    "take-profit-limit", "trailing-stop", "trailing-stop-limit", "settle-position",
)  # fmt: skip
_PERMISSIONS = (
    "query-funds", "query-open-trades", "query-closed-trades", "modify-trades", "close-trades",
    "query-ledger", "create-ws-token",
)  # fmt: skip
_PAGED = "start end ofs without_count "
# Method: the parameters Kraken knows there; others are ignored, as Kraken does, but logged.
_PUBLIC = {
    "Time": "",
    "SystemStatus": "",
    "Assets": "asset aclass",
    "AssetPairs": "pair aclass_base info country_code execution_venue",
    "OHLC": "pair interval since asset_class",
    "Ticker": "pair asset_class",
    "Depth": "pair count asset_class",
}
_PRIVATE = {
    "Balance": "",
    "BalanceEx": "",
    "TradeBalance": "asset",
    "OpenPositions": "txid docalcs consolidation rebase_multiplier",
    "OpenOrders": "trades userref cl_ord_id",
    "ClosedOrders": _PAGED + "closetime trades userref cl_ord_id consolidate_taker",
    "QueryOrders": "txid trades userref cl_ord_id consolidate_taker",
    "TradesHistory": _PAGED + "type trades consolidate_taker ledgers",
    "QueryTrades": "txid trades",
    "Ledgers": _PAGED + "asset aclass type",
    "QueryLedgers": "id trades",
    "TradeVolume": "pair fee_schedule fee-info",
    "AddOrder": "pair type ordertype volume price price2 leverage reduce_only stptype oflags "
    "timeinforce trigger displayvol starttm expiretm deadline validate userref cl_ord_id "
    "asset_class broker account_id trading_agreement close[ordertype] close[price] close[price2]",
    "CancelOrder": "txid cl_ord_id",
    "CancelAll": "",
    "CancelAllOrdersAfter": "timeout",
    "GetApiKeyInfo": "",
    "GetWebSocketsToken": "",
}
_TWO_POINTS = frozenset(["Ledgers", "QueryLedgers", "TradesHistory", "QueryTrades"])
_NO_POINTS = frozenset(["AddOrder", "CancelOrder"])


Params = dict[str, str]


class Sandbox:
    """A running sandbox; its threads end with the process or at `close`."""

    def __init__(self, api: "SandboxApi", port: int) -> None:
        self.api = api
        self._front = Front(api.respond, port)
        self.url = f"http://127.0.0.1:{self._front.port}"
        threading.Thread(target=self._front.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._front.shutdown()
        self._front.server_close()


def start(
    spec: str = "random:1",
    speed: float = 1.0,
    *,
    port: int = 0,
    key: str = SANDBOX_KEY,
    secret: str = SANDBOX_SECRET,
    fee_rate: Decimal = FEE_RATE,
    tier: str = "sandbox",
) -> Sandbox:
    """Return a sandbox that listens. Raises ValueError for a bad feed, OSError for the port."""
    feed = Feed(spec, time.time())
    began = time.monotonic()

    def now() -> float:
        return feed.start + (time.monotonic() - began) * speed

    # Half a real second of way is half a minute at 60 times the speed.
    slack_s = max(speed - 1, 0.0) / 2
    api = SandboxApi(
        feed, now, key, Secret(secret), fee_rate=fee_rate, tier=tier, slack_s=slack_s
    )
    return Sandbox(api, port)


class SandboxApi:
    """One account and its markets. `now` gives unix seconds; `respond` may be called by threads.

    `slack_s` widens deadlines by what a scaled clock makes of the way of a request.
    """

    def __init__(
        self,
        feed: Feed,
        now: Callable[[], float],
        key: str,
        secret: Secret,
        *,
        fee_rate: Decimal = FEE_RATE,
        balances: Mapping[str, Decimal] = START_BALANCES,
        tier: str = "sandbox",
        slack_s: float = 0.0,
    ) -> None:
        self.feed = feed
        self.listing = {name: dict(row) for name, row in PAIRS.items()}
        if feed.file is not None and feed.file[0] not in (r["altname"] for r in PAIRS.values()):
            name, row = unlisted(feed.file[0], max(feed.file[1].digits, 1))
            self.listing[name] = row
            balances = {row["quote"]: Decimal(10000), **balances}
        self.system_status = "online"
        self.fill_share = Decimal(1)
        self.requests: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.orders: dict[str, dict[str, Any]] = {}
        self.trades: dict[str, dict[str, Any]] = {}
        self.prices: dict[str, Decimal] = {}
        self._now = now
        self._offset = 0.0
        self._frozen: float | None = None
        self._key, self._secret = key, secret
        self._limits = TIERS[tier]
        self._slack_s = slack_s
        self._nonce = 0
        self._failures, self._locked_until = 0, 0.0
        self._counters: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self.account = Account(balances, fee_rate, serial=int(self.now()) * 1000, history=KEPT)
        self._volume = ZERO
        self._swept: dict[str, float] = {}
        self._rules: dict[str, PairRules] = {}
        self._names: dict[str, str] = {}
        for name, row in self.listing.items():
            self._rules[name] = parse_rules(name, row)
            self._names.update(dict.fromkeys(aliases(name, row), name))

    def respond(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Return the answer to one HTTP request."""
        path, _, query = target.partition("?")
        with self._lock:
            try:
                if path.startswith("/sandbox/"):
                    return _json(self._control(method, path.removeprefix("/sandbox/"), body))
                result = self._dispatch(method, path, query, headers, body)
            except RefusedError as error:
                return _json({"error": [str(error)]})
        return _json({"error": [], "result": result})

    def now(self) -> float:
        """Return the sandbox's time."""
        return self._frozen if self._frozen is not None else self._now() + self._offset

    def _dispatch(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> Any:
        kind, _, name = path.removeprefix("/0/").partition("/")
        self.requests[name if name in _PUBLIC or name in _PRIVATE else "other"] += 1
        if kind == "public" and name in _PUBLIC and method == "GET":
            parameters = _form(query)
            self._note_unknown(name, parameters, _PUBLIC[name])
        elif kind == "private" and name in _PRIVATE and method == "POST":
            lower = {header.lower(): value for header, value in headers.items()}
            parameters = _body(lower.get("content-type", ""), body)
            self._authenticate(path, lower, parameters, body)
            self._note_unknown(name, parameters, _PRIVATE[name] + " nonce otp")
            if name not in _NO_POINTS:
                points = 2 if name in _TWO_POINTS else 1
                self._spend("", points, *self._limits[:2], "EAPI:Rate limit exceeded")
        else:
            raise RefusedError("EGeneral:Unknown method")
        self._settle()
        return getattr(self, "_do_" + name)(parameters)

    def _note_unknown(self, name: str, parameters: Params, known: str) -> None:
        for parameter in parameters.keys() - known.split():
            label = f"{name}:{parameter:.40}"
            if label not in self.ignored:
                if len(self.ignored) == 1000:
                    return
                log.warning("parameter ignored, as Kraken does: %r", label)
            self.ignored[label] += 1

    def _authenticate(
        self, path: str, headers: Mapping[str, str], parameters: Params, body: bytes
    ) -> None:
        now = self.now()
        if now < self._locked_until:
            raise RefusedError("EGeneral:Temporary lockout")
        nonce = parameters.get("nonce", "")
        refusal = ""
        if headers.get("api-key") != self._key:
            refusal = "EAPI:Invalid key"
        elif not (nonce.isascii() and nonce.isdecimal() and len(nonce) <= 20):
            refusal = "EAPI:Invalid nonce"
        elif not compare_digest(
            sign(self._secret, path, nonce, body).encode(),
            headers.get("api-sign", "").encode("utf-8", "replace"),
        ):
            refusal = "EAPI:Invalid signature"
        elif not self._nonce < int(nonce) < 2**64:
            refusal = "EAPI:Invalid nonce"
        if not refusal:
            self._nonce, self._failures = int(nonce), 0
            return
        self._failures += 1
        if self._failures >= self._limits[4]:
            self._failures, self._locked_until = 0, now + LOCKOUT_S
        raise RefusedError(refusal)

    def _spend(self, name: str, points: int, most: float, decay: float, refusal: str) -> None:
        now = self.now()
        used, then = self._counters.get(name, (0.0, now))
        used = max(0.0, used - decay * max(now - then, 0.0)) + points
        self._counters[name] = (min(used, most + points), now)
        if used > most:
            raise RefusedError(refusal)

    # Markets

    def _pair(self, name: str) -> PairRules:
        if name not in self._names:
            raise RefusedError("EQuery:Unknown asset pair")
        return self._rules[self._names[name]]

    def _pairs(self, names: str | None) -> list[PairRules]:
        if names is None:
            return list(self._rules.values())
        return [self._pair(name.strip()) for name in names.split(",")]

    def _quote(self, rules: PairRules) -> Quote:
        price = self.prices.get(rules.pair)
        if price is None:
            return self.feed.series(rules).quote(self.now())
        tick = Decimal(1).scaleb(-rules.pair_decimals)
        return Quote(price - tick, price + tick)

    def _book(self, rules: PairRules) -> Book:
        book = self.account.book(rules)
        if not book.lots:
            self._swept[rules.pair] = self.now()
        book.price = self._quote(rules).mid
        return book

    def _settle(self) -> None:
        """Bring the books to now: each interval's rollovers, then its high and low."""
        now = self.now()
        for pair, book in list(self.account.books.items()):
            series = self.feed.series(book.rules)
            here = series.index(self._swept.get(pair, now))
            while book.lots and here < series.index(now) and pair not in self.prices:
                price, high, low, *_ = (series.decimal(n) for n in series.at(here)[:3])
                end = nextafter(series.first + (here + 1) * series.interval_s, 0)
                self._liquidated(book, end, self.account.advance, price)
                self._liquidated(book, end, self.account.sweep, low, high)
                here += 1
            self._swept[pair] = now
            self._liquidated(book, now, self.account.advance, self._quote(book.rules).mid)

    def _liquidated(
        self, book: Book, now: float, look: Callable[..., Trade | None], *prices: Decimal
    ) -> None:
        """Let the books look at prices and record the forced closing that may come of it."""
        sign, leverage = book.sign, book.lots[0].leverage if book.lots else 0
        trade = look(book, now, *prices)
        if trade is not None:
            self._force_closed(book, now, sign, leverage, trade)

    def _force_closed(
        self, book: Book, now: float, sign: int, leverage: int, trade: Trade
    ) -> None:
        log.warning("liquidated pair=%s volume=%s", book.rules.altname, trade.volume)
        side = Side.SELL if sign > 0 else Side.BUY
        self._record(book.rules, side, trade.volume, leverage, (trade,), now, misc="liquidated")

    def _do_Time(self, _: Params) -> Any:
        now = int(self.now())
        text = datetime.fromtimestamp(now, UTC).strftime("%d %b %y %H:%M:%S +0000")
        day = format_datetime(datetime.fromtimestamp(now, UTC))[:5]
        return {"unixtime": now, "rfc1123": day + text}

    def _do_SystemStatus(self, _: Params) -> Any:
        return {"status": self.system_status, "timestamp": _rfc3339(self.now())}

    def _do_Assets(self, p: Params) -> Any:
        names = {altname: code for code, (altname, _, _) in ASSETS.items()}
        chosen = p["asset"].split(",") if p.get("asset") else list(ASSETS)
        result = {}
        for name in chosen:
            code = names.get(name, name)
            if code not in ASSETS:
                raise RefusedError("EQuery:Unknown asset")
            altname, digits, shown = ASSETS[code]
            result[code] = {
                "aclass": "currency", "altname": altname, "decimals": digits,
                "display_decimals": shown, "status": "enabled",
            }  # fmt: skip
        return result

    def _do_AssetPairs(self, p: Params) -> Any:
        return {rules.pair: self.listing[rules.pair] for rules in self._pairs(p.get("pair"))}

    def _do_OHLC(self, p: Params) -> Any:
        rules = self._pair(p.get("pair", ""))
        series = self.feed.series(rules)
        minutes = _whole(p, "interval", 1)
        if minutes not in INTERVALS or minutes * 60 % series.interval_s:
            raise RefusedError("EGeneral:Invalid arguments:interval")
        since = _whole(p, "since", 0) if p.get("since") else None
        bars = series.bars(minutes * 60, since, self.now())
        digits = max(rules.pair_decimals, series.digits)
        rows = [
            [bar.time, *(series.text(units, digits) for units in bar[1:5]),
             series.text(bar.vwap, digits) if bar.volume else "0.0",
             f"{bar.volume // 10**8}.{bar.volume % 10**8:08d}", bar.trades]
            for bar in bars
        ]  # fmt: skip
        if rules.pair in self.prices:
            rows[-1][4] = plain(self.prices[rules.pair])
        return {rules.pair: rows, "last": bars[-1].time - minutes * 60}

    def _do_Ticker(self, p: Params) -> Any:
        return {rules.pair: self._ticker(rules) for rules in self._pairs(p.get("pair"))}

    def _ticker(self, rules: PairRules) -> dict[str, Any]:
        series, now, quote = self.feed.series(rules), self.now(), self._quote(rules)
        series.reach(int(now) - 86400)
        here = max(series.index(now), 0)
        today = max(series.index(now // 86400 * 86400), 0)
        spans = [_span(series, min(start, here), here) for start in
                 (today, max(here - 86400 // series.interval_s, 0))]  # fmt: skip
        last = _five(quote.mid, rules)
        return {
            "a": [_five(quote.ask, rules), "1", "1.000"],
            "b": [_five(quote.bid, rules), "1", "1.000"],
            "c": [last, "0.01000000"],
            "v": [span[0] for span in spans],
            "p": [last, last],
            "t": [span[1] for span in spans],
            "l": [_five(span[2], rules) for span in spans],
            "h": [_five(span[3], rules) for span in spans],
            "o": _five(series.decimal(series.at(today)[0]), rules),
        }

    def _do_Depth(self, p: Params) -> Any:
        rules = self._pair(p.get("pair", ""))
        count = _whole(p, "count", 100)
        if not 1 <= count <= 500:
            raise RefusedError("EGeneral:Invalid arguments:count")
        quote, now = self._quote(rules), int(self.now())
        tick = Decimal(1).scaleb(-rules.pair_decimals)
        count = min(count, int(quote.bid / tick) - 1)
        book = {
            "asks": [[_five(quote.ask + tick * n, rules), "1.000", now] for n in range(count)],
            "bids": [[_five(quote.bid - tick * n, rules), "1.000", now] for n in range(count)],
        }
        return {rules.pair: book}

    # The account

    def _do_Balance(self, _: Params) -> Any:
        return {
            asset: _amount(asset, amount)
            for asset, amount in self.account.balances.items() if amount
        }  # fmt: skip

    def _do_BalanceEx(self, p: Params) -> Any:
        return {
            asset: {"balance": text, "hold_trade": _amount(asset, ZERO)}
            for asset, text in self._do_Balance(p).items()
        }

    def _do_TradeBalance(self, p: Params) -> Any:
        asset = p.get("asset", "ZUSD")
        quote = f"Z{asset}" if f"Z{asset}" in ASSETS else asset
        if quote not in {rules.quote for rules in self._rules.values()}:
            raise RefusedError("EQuery:Unknown asset")
        account = self.account
        books = [b for b in account.books.values() if b.lots and b.rules.quote == quote]
        own = account.balances.get(quote, ZERO)
        coins = ZERO
        for rules in self._rules.values():
            if rules.quote == quote and account.balances.get(rules.base):
                coins += account.balances[rules.base] * self._quote(rules).mid
        amounts = {
            "eb": own + coins,
            "tb": own,
            "m": account.used_margin(quote),
            "uv": ZERO,
            "n": account.unrealized(quote),
            "c": sum((book.cost_left for book in books), ZERO),
            "v": sum((book.held * book.price for book in books), ZERO),
            "e": account.equity(quote),
            "mf": account.free_margin(quote),
            "mfo": account.free_margin(quote),
        }
        result = {name: _fixed(amount, 4) for name, amount in amounts.items()}
        level = account.margin_level(quote)
        return result if level is None else {**result, "ml": _fixed(level, 2)}

    def _do_OpenPositions(self, p: Params) -> Any:
        if p.get("consolidation") == "market":
            return [_consolidated(b) for b in self.account.books.values() if b.lots]
        wanted = p["txid"].split(",") if p.get("txid") else None
        return {
            name: self._position(book, lot, _flag(p, "docalcs"))
            for book in self.account.books.values()
            for lot in book.lots
            if (name := identifier("T", lot.serial)) is not None
            and (wanted is None or name in wanted)
        }

    def _position(self, book: Book, lot: Lot, docalcs: bool) -> dict[str, Any]:
        rules = book.rules
        row = {
            "ordertxid": identifier("O", lot.order),
            "posstatus": "open",
            "pair": rules.pair,
            "class": "forex",
            "time": round(lot.time, 6),
            "type": "buy" if lot.sign > 0 else "sell",
            "ordertype": "market",
            "cost": _fixed(lot.cost, rules.cost_decimals),
            "fee": _fixed(lot.fee, rules.cost_decimals),
            "vol": _fixed(lot.volume, rules.lot_decimals),
            "vol_closed": _fixed(lot.closed, rules.lot_decimals),
            "margin": _fixed(lot.cost / lot.leverage, rules.cost_decimals),
        }
        if docalcs:
            value = lot.open_volume * book.price
            row["value"] = _fixed(value, rules.pair_decimals)
            row["net"] = f"{((value - lot.cost_left) * lot.sign).quantize(Decimal('0.0001')):+f}"
        row["terms"] = f"{_fixed(lot.rate * 100, 4)}% per 4 hours"
        return {**row, "rollovertm": str(int(lot.due)), "misc": "", "oflags": ""}

    def _do_OpenOrders(self, _: Params) -> Any:
        return {"open": {}}

    def _do_ClosedOrders(self, p: Params) -> Any:
        column = {"open": ("opentm",), "close": ("closetm",)}.get(
            p.get("closetime", ""), ("opentm", "closetm")
        )
        page = self._page(self.orders, p, "closed", column, ("cl_ord_id", "userref"))
        page["closed"] = {t: _without_trades(row, p) for t, row in page["closed"].items()}
        return page

    def _do_QueryOrders(self, p: Params) -> Any:
        if not p.get("txid"):
            raise RefusedError("EGeneral:Invalid arguments")
        found = {t: self.orders[t] for t in p["txid"].split(",")[:50] if t in self.orders}
        wanted = p.get("cl_ord_id")
        return {
            txid: _without_trades(row, p)
            for txid, row in found.items()
            if wanted is None or row.get("cl_ord_id") == wanted
        }

    def _do_TradesHistory(self, p: Params) -> Any:
        kind = p.get("type", "all").replace("position", "").strip()
        trades = self.trades
        if kind != "all":
            trades = {
                name: row
                for name, row in trades.items()
                if (kind == "no") == (row["leverage"] == "0")
                and (kind in ("no", "any") or row["misc"] != "")
            }
        return self._page(trades, p, "trades", ("time",), ())

    def _do_QueryTrades(self, p: Params) -> Any:
        if not p.get("txid"):
            raise RefusedError("EGeneral:Invalid arguments")
        return {t: self.trades[t] for t in p["txid"].split(",")[:20] if t in self.trades}

    def _ledger_rows(self) -> dict[str, dict[str, Any]]:
        rows = {}
        for entry in self.account.ledger:
            spot = entry.type == "trade"
            rows[identifier("L", entry.serial)] = {
                "aclass": "currency",
                "amount": _amount(entry.asset, entry.amount, 5),
                "asset": entry.asset,
                "balance": _amount(entry.asset, entry.balance, 5),
                "fee": _amount(entry.asset, entry.fee, 5),
                "refid": identifier("T", entry.refid),
                "time": round(entry.time, 6),
                "type": entry.type,
                "subtype": "tradespot" if spot else "",
            }
        return rows

    def _do_Ledgers(self, p: Params) -> Any:
        same = () if p.get("type") in (None, "all") else ("type",)
        assets = None if p.get("asset") in (None, "all") else p["asset"].split(",")
        rows = {
            name: row
            for name, row in self._ledger_rows().items()
            if assets is None or row["asset"] in assets
        }
        return self._page(rows, p, "ledger", ("time",), same)

    def _do_QueryLedgers(self, p: Params) -> Any:
        if not p.get("id"):
            raise RefusedError("EGeneral:Invalid arguments")
        rows = self._ledger_rows()
        return {name: rows[name] for name in p["id"].split(",")[:20] if name in rows}

    def _page(
        self, rows: Mapping[str, dict[str, Any]], p: Params, name: str,
        times: tuple[str, ...], same: tuple[str, ...],
    ) -> dict[str, Any]:  # fmt: skip
        """Return 50 rows, the newest first: after `start`, up to `end`, equal in `same`."""
        start, end = self._moment(p, "start"), self._moment(p, "end")
        chosen = [
            (key, row)
            for key, row in reversed(list(rows.items()))
            if all(str(row.get(field, "")) == p[field] for field in same if field in p)
            and any(
                (start is None or row[time] > start) and (end is None or row[time] <= end)
                for time in times
            )
        ]
        offset = max(_whole(p, "ofs", 0), 0)
        page: dict[str, Any] = {name: dict(chosen[offset : offset + PAGE])}
        return page if _flag(p, "without_count") else {**page, "count": len(chosen)}

    def _moment(self, p: Params, name: str) -> float | None:
        text = p.get(name)
        if text in self.orders:
            return float(self.orders[text]["opentm"])
        if text in self.trades:
            return float(self.trades[text]["time"])
        try:
            return float(text) if text else None
        except ValueError:
            raise RefusedError(f"EGeneral:Invalid arguments:{name}") from None

    def _do_TradeVolume(self, p: Params) -> Any:
        result: dict[str, Any] = {"currency": "ZUSD", "volume": _fixed(self._volume, 4)}
        if not p.get("pair"):
            return result
        rate = self.account.fee_rate * 100
        for name, fee in (("fees", rate), ("fees_maker", rate / 2)):
            row = {
                "fee": _fixed(fee, 4), "minfee": _fixed(fee, 4), "maxfee": _fixed(fee, 4),
                "nextfee": None, "nextvolume": None, "tiervolume": "0.0000",
            }  # fmt: skip
            result[name] = {rules.pair: row for rules in self._pairs(p["pair"])}
        return result

    def _do_GetApiKeyInfo(self, _: Params) -> Any:
        return {
            "api_key_name": "sandbox",
            "api_key": self._key,
            "nonce": str(self._nonce),
            "nonce_window": "0",
            "permissions": list(_PERMISSIONS),
            "iban": "AA00 N000 0000 0000",
            "valid_until": "0",
            "query_from": "0",
            "query_to": "0",
            "created_time": str(int(self.feed.start)),
            "modified_time": str(int(self.feed.start)),
            "ip_allowlist": [""],
            "last_used": str(int(self.now())),
        }

    def _do_GetWebSocketsToken(self, _: Params) -> Any:
        return {"token": identifier("W", self._nonce).replace("-", "") * 2, "expires": 900}

    # Orders

    def _do_AddOrder(self, p: Params) -> Any:
        rules = self._pair(p.get("pair", ""))
        self._spend(rules.pair, 1, *self._limits[2:4], "EOrder:Rate limit exceeded")
        _check_market_order(p)
        self._check_deadline(p)
        side, leverage = Side(p["type"]), _leverage(p)
        book, quote = self._book(rules), self._quote(rules)
        volume = self._volume_of(p, rules, side, leverage, book, quote)
        reduce_only = _flag(p, "reduce_only")
        refusal = objection(
            rules, side, volume, leverage, quote.ask if side is Side.BUY else quote.bid, reduce_only
        )
        if refusal is None and self.system_status != "online":
            refusal = f"EService:Market in {self.system_status} mode"
            if self.system_status == "maintenance":
                refusal = "EService:Unavailable"
        if refusal is not None:
            raise RefusedError(refusal)
        text = f"{side.value} {p['volume']} {rules.altname} @ market"
        text += f" with {leverage}:1 leverage" if leverage else ""
        if _flag(p, "validate"):
            return {"descr": {"order": text}}
        return {"txid": [self._place(p, rules, side, volume, leverage)], "descr": {"order": text}}

    def _place(
        self, p: Params, rules: PairRules, side: Side, volume: Decimal, leverage: int
    ) -> str:
        """Fill the order and return its id. Raises RefusedError in the books' words."""
        now, book, quote = self.now(), self._book(rules), self._quote(rules)
        self.account.serial += 1
        number = self.account.serial
        part = rules.round_volume(volume * self.fill_share)
        trades: tuple[Trade, ...] = ()
        if part:
            reduce_only = _flag(p, "reduce_only")
            trades = execute(
                self.account, book, now, side, part, quote, leverage, reduce_only, number
            )
        return self._record(rules, side, volume, leverage, trades, now, p, number)

    def _volume_of(
        self, p: Params, rules: PairRules, side: Side, leverage: int, book: Book, quote: Quote
    ) -> Decimal:
        """Return the order's volume in base currency."""
        text = p.get("volume", "")
        if not (text.isascii() and text.replace(".", "", 1).isdecimal() and len(text) <= 30):
            raise RefusedError("EGeneral:Invalid arguments:volume")
        volume = Decimal(text)
        if volume > VOLUME_MAX:
            raise RefusedError("EGeneral:Invalid arguments:volume")
        if "viqc" in p.get("oflags", "").split(","):
            if side is Side.SELL or leverage:
                raise RefusedError("EGeneral:Invalid arguments:oflags")
            return rules.round_volume(volume / quote.ask)
        if not volume and leverage and book.sign == -side.sign:
            return book.held
        return volume

    def _check_deadline(self, p: Params) -> None:
        if "deadline" not in p:
            return
        now = self.now()
        try:
            moment = datetime.fromisoformat(p["deadline"])
            ahead = moment.timestamp() - now
        except (ValueError, OverflowError):
            raise RefusedError("EGeneral:Invalid arguments:deadline") from None
        if ahead < -self._slack_s:
            raise RefusedError("EService:Deadline elapsed")
        earliest = DEADLINE_MIN_S - self._slack_s
        if moment.tzinfo is None or not earliest <= ahead <= DEADLINE_MAX_S:
            raise RefusedError("EGeneral:Invalid arguments:deadline")

    def _record(
        self, rules: PairRules, side: Side, volume: Decimal, leverage: int,
        trades: tuple[Trade, ...], now: float, p: Params | None = None, number: int = 0,
        misc: str = "",
    ) -> str:  # fmt: skip
        """Keep the order and its trades as Kraken shows them; return the order's id."""
        p = p or {}
        if not number:
            self.account.serial += 1
            number = self.account.serial
        txid = identifier("O", number)
        for trade in trades:
            row = _trade_row(rules, side, leverage, trade, txid, now, misc)
            self.trades[identifier("T", trade.serial)] = row
            if rules.quote == "ZUSD":
                self._volume += trade.cost
        self.orders[txid] = _order_row(rules, side, volume, leverage, trades, now, p, misc)
        for rows in (self.orders, self.trades):
            while len(rows) > KEPT:
                del rows[next(iter(rows))]
        return txid

    def _do_CancelOrder(self, p: Params) -> Any:
        if not p.get("txid") and not p.get("cl_ord_id"):
            raise RefusedError("EGeneral:Invalid arguments")
        # Market orders never rest, so there is never one to cancel.
        raise RefusedError("EOrder:Unknown order")

    def _do_CancelAll(self, _: Params) -> Any:
        return {"count": 0}

    def _do_CancelAllOrdersAfter(self, p: Params) -> Any:
        timeout = _whole(p, "timeout", -1)
        if not 0 <= timeout < 86400:
            raise RefusedError("EGeneral:Invalid arguments:timeout")
        trigger = _rfc3339(self.now() + timeout) if timeout else "0"
        return {"currentTime": _rfc3339(self.now()), "triggerTime": trigger}

    # What only a sandbox has

    def _control(self, method: str, name: str, body: bytes) -> Any:
        """Return the truth about the sandbox after doing what was asked of it."""
        self._settle()
        if method == "POST":
            try:
                wish = json.loads(body or b"{}", parse_float=Decimal)
                {"position": self._set_position, "clock": self._set_clock,
                 "price": self._set_price, "balance": self._set_balance,
                 "status": self._set_status}[name](wish)  # fmt: skip
            except (LookupError, ValueError, TypeError, ArithmeticError) as error:
                raise RefusedError(f"EGeneral:Invalid arguments:{error}") from None
            self._settle()
        elif name not in ("ledger", "status"):
            raise RefusedError("EGeneral:Unknown method")
        return self.truth()

    def truth(self) -> dict[str, Any]:
        """Return everything that happened, for tests: orders, trades, books and requests."""
        account = self.account
        quotes = {rules.quote for rules in self._rules.values()}
        books = {name: book for name, book in account.books.items() if book.lots}
        money = [asset for asset in account.balances if asset in quotes]
        return {
            "time": self.now(),
            "status": self.system_status,
            "orders": [{"txid": txid, **row} for txid, row in self.orders.items()],
            "executions": [{"id": name, **row} for name, row in self.trades.items()],
            "position": {name: plain(book.volume) for name, book in books.items()},
            "liquidation": {n: str(account.liquidation_price(b)) for n, b in books.items()},
            "balances": {asset: str(amount) for asset, amount in account.balances.items()},
            "equity": {asset: str(account.equity(asset)) for asset in money},
            "unrealized": {asset: str(account.unrealized(asset)) for asset in money},
            "realized": {asset: str(amount) for asset, amount in account.realized.items()},
            "fees": {asset: str(amount) for asset, amount in account.fees.items()},
            "rollover": {asset: str(amount) for asset, amount in account.rollovers.items()},
            "requests": dict(self.requests),
            "ignored": dict(self.ignored),
        }

    def _set_position(self, wish: dict[str, Any]) -> None:
        """Trade by hand: {pair, close | liquidate} or {pair, side, volume, leverage}."""
        rules = self._pair(wish["pair"])
        book, now = self._book(rules), self.now()
        if wish.get("liquidate"):
            if book.lots:
                sign, leverage = book.sign, book.lots[0].leverage
                trade = self.account.close(book, now, book.held, book.price)
                self._force_closed(book, now, sign, leverage, trade)
            return
        if wish.get("close"):
            if book.lots:
                side = Side.SELL if book.sign > 0 else Side.BUY
                self._place({}, rules, side, book.held, book.lots[0].leverage)
            return
        side, volume = Side(wish["side"]), decimal(wish["volume"])
        leverage = int(wish.get("leverage", 2))
        refusal = objection(rules, side, volume, leverage, book.price, False)
        if refusal is not None:
            raise RefusedError(refusal)
        self._place({}, rules, side, volume, leverage)

    def _set_clock(self, wish: dict[str, Any]) -> None:
        """{freeze: bool}, {now: unix seconds} or {advance: seconds}; never backwards."""
        target = float(wish.get("now", self.now() + float(wish.get("advance", 0))))
        frozen = bool(wish.get("freeze", self._frozen is not None))
        if not 0 <= target - self.now() <= CLOCK_STEP_MAX_S:
            raise ValueError("the clock goes forwards only, a year at a time")
        self._frozen = target if frozen else None
        self._offset = target - self._now()

    def _set_price(self, wish: dict[str, Any]) -> None:
        """{pair, price}: the market stands there until the price is set to null."""
        rules = self._pair(wish["pair"])
        if wish["price"] is None:
            self.prices.pop(rules.pair, None)
        else:
            tick = Decimal(1).scaleb(-rules.pair_decimals)
            price = decimal(wish["price"]).quantize(tick)
            if price <= tick:
                raise ValueError("the price is not above one tick")
            self.prices[rules.pair] = price

    def _set_balance(self, wish: dict[str, Any]) -> None:
        """{asset, amount}: a deposit or withdrawal makes the balance that amount."""
        had = self.account.balances.get(wish["asset"], ZERO)
        self.account.deposit(self.now(), wish["asset"], decimal(wish["amount"]) - had)

    def _set_status(self, wish: dict[str, Any]) -> None:
        """{status} of the exchange, {pair, status} of one market, {fill_share} of each order."""
        if "fill_share" in wish:
            self.fill_share = min(max(decimal(wish["fill_share"]), ZERO), Decimal(1))
        elif "pair" in wish:
            pair = self._pair(wish["pair"]).pair
            self.listing[pair]["status"] = str(wish["status"])
            self._rules[pair] = parse_rules(pair, self.listing[pair])
        else:
            self.system_status = str(wish["status"])


def _check_market_order(p: Params) -> None:
    """Raise RefusedError for parameters that Kraken does not take on a market order."""
    wrong = [name for name, value in p.items() if not value]
    wrong += [name for name in ("timeinforce", "trigger", "displayvol") if name in p]
    if p.get("type") not in ("buy", "sell"):
        wrong.append("type")
    kind = p.get("ordertype", "")
    if kind not in _ORDER_TYPES:
        wrong.append("ordertype")
    elif kind != "market" or "close[ordertype]" in p or p.get("expiretm", "0") != "0":
        raise RefusedError("EAPI:Feature disabled")
    if "post" in p.get("oflags", ""):
        wrong.append("oflags")
    name = p.get("cl_ord_id", "x")
    undashed = name.replace("-", "") if len(name) == 36 else name
    if not name.isascii() or (len(name) > 18 and not _is_hex32(undashed)):
        wrong.append("cl_ord_id")
    if "cl_ord_id" in p and "userref" in p:
        wrong.append("userref")
    if wrong:
        raise RefusedError(f"EGeneral:Invalid arguments:{wrong[0]}")
    if not -(2**31) <= _whole(p, "userref", 0) < 2**31:
        raise RefusedError("EGeneral:Invalid arguments:userref")


def _is_hex32(text: str) -> bool:
    return len(text) == 32 and not text.lower().strip("0123456789abcdef")


def _leverage(p: Params) -> int:
    text = p.get("leverage", "none").removesuffix(":1").removesuffix(".0")
    if text == "none":
        return 0
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1000):
        raise RefusedError("EGeneral:Invalid arguments:leverage")
    return int(text)


def _order_row(
    rules: PairRules, side: Side, volume: Decimal, leverage: int, trades: tuple[Trade, ...],
    now: float, p: Params, misc: str,
) -> dict[str, Any]:  # fmt: skip
    executed = sum((trade.volume for trade in trades), ZERO)
    cost = sum((trade.cost for trade in trades), ZERO)
    fee = sum((trade.fee for trade in trades), ZERO)
    whole, text = executed == volume, f"{side.value} {_fixed(volume, rules.lot_decimals)}"
    text += f" {rules.altname} @ market"
    zero = _fixed(ZERO, rules.cost_decimals)
    row = {
        "refid": None,
        "userref": _whole(p, "userref", 0),
        "status": "closed" if whole else "canceled",
        "reason": None if whole else
        "Position is closed" if "reduce_only" in p else "Market price protection",
        "opentm": round(now, 6),
        "closetm": round(now + 0.002, 6),
        "starttm": 0,
        "expiretm": 0,
        "descr": {
            "pair": rules.altname, "aclass": "forex", "type": side.value, "ordertype": "market",
            "price": "0", "price2": "0", "leverage": f"{leverage}:1" if leverage else "none",
            "order": text + (f" with {leverage}:1 leverage" if leverage else ""), "close": "",
        },
        "vol": _fixed(volume, rules.lot_decimals),
        "vol_exec": _fixed(executed, rules.lot_decimals),
        "cost": _fixed(cost, rules.cost_decimals),
        "fee": _fixed(fee, rules.cost_decimals),
        "price": _five(trades[0].price, rules) if trades else zero,
        "stopprice": zero,
        "limitprice": zero,
        "misc": misc,
        "oflags": p.get("oflags", "fciq"),
        "trades": [identifier("T", trade.serial) for trade in trades],
    }  # fmt: skip
    if "cl_ord_id" in p:
        row["cl_ord_id"] = p["cl_ord_id"]
    if leverage:
        row["margin"] = True
    if _flag(p, "reduce_only"):
        row["reduce_only"] = True
    return row


def _trade_row(
    rules: PairRules, side: Side, leverage: int, trade: Trade, txid: str, now: float, misc: str
) -> dict[str, Any]:
    return {
        "ordertxid": txid,
        "postxid": "TKH2SE-M7IF5-CFI7LT",
        "pair": rules.pair,
        "aclass": "forex",
        "time": round(now, 6),
        "type": side.value,
        "ordertype": "market",
        "price": _five(trade.price, rules),
        "cost": _fixed(trade.cost, rules.cost_decimals),
        "fee": _fixed(trade.fee, rules.cost_decimals),
        "vol": _fixed(trade.volume, rules.lot_decimals),
        "margin": _fixed(trade.margin, rules.cost_decimals),
        "leverage": str(leverage),
        "misc": ",".join(word for word in ("closing" if trade.closing else "", misc) if word),
        "trade_id": trade.serial % 10**9,
        "maker": False,
    }


def _consolidated(book: Book) -> dict[str, str]:
    """Return a pair's positions in one row, in the shape that ccxt expects."""
    rules, lots = book.rules, book.lots
    cost = sum((lot.cost for lot in lots), ZERO)
    margin = sum((lot.cost / lot.leverage for lot in lots), ZERO)
    return {
        "pair": rules.pair,
        "positions": str(len(lots)),
        "type": "buy" if book.sign > 0 else "sell",
        "leverage": _fixed(cost / margin, 5),
        "cost": _fixed(cost, rules.cost_decimals),
        "fee": _fixed(sum((lot.fee for lot in lots), ZERO), rules.cost_decimals),
        "vol": _fixed(sum((lot.volume for lot in lots), ZERO), rules.lot_decimals),
        "vol_closed": _fixed(sum((lot.closed for lot in lots), ZERO), rules.lot_decimals),
        "margin": _fixed(margin, rules.cost_decimals),
    }


def _without_trades(row: dict[str, Any], p: Params) -> dict[str, Any]:
    if _flag(p, "trades"):
        return row
    return {name: value for name, value in row.items() if name != "trades"}


def _span(series: Series, start: int, stop: int) -> tuple[str, int, Decimal, Decimal]:
    """Return volume, trades, low and high of finished candles and the running one's open."""
    price = series.at(stop)[0]
    _, highs, lows, _, volumes, trades = (column[start:stop] for column in series.columns)
    volume = sum(volumes)
    return (
        f"{volume // 10**8}.{volume % 10**8:08d}",
        sum(trades),
        series.decimal(min(lows, default=price)),
        series.decimal(max(highs, default=price)),
    )


def _five(price: Decimal, rules: PairRules) -> str:
    return _fixed(price, max(5, rules.pair_decimals))


def _fixed(number: Decimal, digits: int) -> str:
    return f"{number:.{digits}f}"


def _amount(asset: str, amount: Decimal, digits_min: int = 0) -> str:
    return _fixed(amount, max(ASSETS[asset][1] if asset in ASSETS else 8, digits_min))


def _rfc3339(time: float) -> str:
    return datetime.fromtimestamp(int(time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _flag(p: Params, name: str) -> bool:
    return p.get(name, "").lower() in ("true", "1")


def _whole(p: Params, name: str, default: int) -> int:
    text = p.get(name)
    if not text:
        return default
    if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 20):
        raise RefusedError(f"EGeneral:Invalid arguments:{name}")
    return int(text)


def _form(text: str) -> Params:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=100))
    except ValueError:
        raise RefusedError("EGeneral:Invalid arguments") from None


def _body(content_type: str, body: bytes) -> Params:
    """Return the parameters of a form or JSON body, all as text."""
    try:
        if "json" not in content_type:
            return _form(body.decode())
        values = json.loads(body, parse_float=str, parse_int=str)
        parameters = {}
        for name, value in values.items():
            if isinstance(value, dict):
                parameters.update({f"{name}[{k}]": str(v) for k, v in value.items()})
            elif value is not None:
                parameters[name] = str(value).lower() if isinstance(value, bool) else str(value)
        return parameters
    except (ValueError, AttributeError, RecursionError):
        raise RefusedError("EGeneral:Invalid arguments") from None


def _json(value: Any) -> Answer:
    body = json.dumps(value, separators=(",", ":")).encode()
    return Answer(200, "application/json; charset=utf-8", body)
