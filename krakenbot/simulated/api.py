"""The simulated exchange behind Kraken's REST methods: one request in, one answer out, no socket.

Where Kraken's behaviour is not known for sure: an opposite order bigger than the position turns
it, a deadline counts for `validate` too, `cl_ord_id` may be used again once its order is closed.
"""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from heapq import merge
from hmac import compare_digest
from itertools import takewhile
from operator import itemgetter
from typing import Any

from krakenbot import log
from krakenbot.errors import RefusedError
from krakenbot.kraken.signing import sign
from krakenbot.model import ZERO, Quote, Secret, Side
from krakenbot.pairs import PairRules, decimal, parse_rules, plain
from krakenbot.simulated import listing, words
from krakenbot.simulated.books import AMOUNT_MAX, Account, Book, Trade, identifier
from krakenbot.simulated.faults import Faults
from krakenbot.simulated.feed import INTERVALS, Feed
from krakenbot.simulated.http import Answer, Front
from krakenbot.simulated.listing import ASSETS, PAIRS, SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.paper import FEE_RATE, execute, objection
from krakenbot.simulated.words import Params, Row, Wish, bad, flag, number, whole

Headers = Mapping[str, str]

START_BALANCES = {"ZUSD": Decimal(10000), "ZEUR": Decimal(5000), "USDT": Decimal(1000)}
KEPT, PAGE = 10000, 50
# Kraken's limits by tier: REST counter and its decay a second, the same of the matching engine,
# failed logins in a row until the lockout. Not documented: the last column; "sandbox" is ours.
TIERS = {
    "starter": (15, 0.33, 60, 1.0, 20),
    "intermediate": (20, 0.5, 125, 2.34, 20),
    "pro": (20, 1.0, 180, 3.75, 20),
    "sandbox": (50000, 10000.0, 50000, 10000.0, 1000),
}
POINTS = {
    "Ledgers": 2,
    "QueryLedgers": 2,
    "TradesHistory": 2,
    "QueryTrades": 2,
    "AddOrder": 0,
    "CancelOrder": 0,
}
_PERMISSIONS = (
    "query-funds",
    "query-open-trades",
    "query-closed-trades",
    "modify-trades",
    "close-trades",
    "query-ledger",
)
_TRADE_TYPES: dict[str, Callable[[Row], bool]] = {
    "all": lambda row: True,
    "any position": lambda row: row["leverage"] != "0",
    "closing position": lambda row: "closing" in row["misc"],
    "no position": lambda row: row["leverage"] == "0",
}
LOCKOUT_S = 900
MS_NONCES = (10**12, 10**14)  # What a nonce is that counts milliseconds.
CLOCK_STEP_MAX_S = 31 * 86400
DEADLINE_MIN_S, DEADLINE_MAX_S = 2, 60
LABELS_MAX = 1000


class Sandbox:
    """A sandbox that listens; its threads end with the process or at `close`."""

    def __init__(
        self,
        spec: str = "random:1",
        speed: float = 1.0,
        *,
        port: int = 0,
        key: str = SANDBOX_KEY,
        secret: str = SANDBOX_SECRET,
        fee_rate: Decimal = FEE_RATE,
        tier: str = "sandbox",
        faults: str = "",
    ) -> None:
        """Raises ValueError for a bad feed or bad faults, OSError for the port."""
        feed, began = Feed(spec, time.time()), time.monotonic()
        self.api = SandboxApi(
            feed,
            lambda: feed.start + (time.monotonic() - began) * speed,
            key,
            Secret(secret),
            # Half a real second of way is half a minute at 60 times the speed.
            fee_rate=fee_rate,
            tier=tier,
            slack_s=max(speed - 1, 0.0) / 2,
        )
        self._faults = Faults(self.api, faults, lambda seconds: time.sleep(seconds / speed))
        self._front = Front(self._faults.respond if faults else self.api.respond, port)
        self.api.controls["faults"] = self._set_faults
        self.url = self._front.url
        threading.Thread(target=self._front.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._front.shutdown()
        self._front.server_close()

    def _set_faults(self, wish: Row) -> None:
        """{spec}: what goes wrong from now on, in the words of --faults."""
        self._faults.set(str(wish["spec"]))
        self._front.respond = self._faults.respond


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
        if feed.pair and feed.pair not in PAIRS:
            row = self.listing[feed.pair] = listing.unlisted(feed.pair, feed.digits)[1]
            balances = {row["quote"]: Decimal(10000), **balances}
        self.system_status = "online"
        self.notices: dict[str, list[Row]] = {}
        self.fill_share = Decimal(1)
        self.requests, self.ignored = Counter[str](), Counter[str]()
        self.orders, self.trades = dict[str, Row](), dict[str, Row]()
        self.prices: dict[str, Decimal] = {}
        self._ledger_rows, self._told, self._dollars = dict[str, Row](), 0, ZERO
        names = ("position", "clock", "price", "balance", "status")
        self.controls = {name: getattr(self, f"_set_{name}") for name in names}
        self._now, self._offset, self._frozen = now, 0.0, False
        self._key, self._secret, self._nonce = key, secret, 0
        self._limits, self._slack_s = TIERS[tier], slack_s
        self._failures, self._locked_until = 0, 0.0
        self._counters: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._settled = self.now()
        self.account = Account(
            balances,
            fee_rate,
            margin_rates=listing.MARGIN_RATES,
            serial=int(self._settled) * 1000,
            history=KEPT,
        )
        self._rules = {name: parse_rules(name, row) for name, row in self.listing.items()}
        self._names = {
            alias: name
            for name, row in self.listing.items()
            for alias in listing.aliases(name, row)
            if not alias.startswith("XBT/")
        }

    def respond(self, method: str, target: str, headers: Headers, body: bytes) -> Answer:
        """Return the answer to one HTTP request."""
        path, _, query = target.partition("?")
        with self._lock:
            try:
                if path.startswith("/sandbox/"):
                    answer = self._control(method, path.removeprefix("/sandbox/"), body)
                else:
                    said = body if method == "POST" else query.encode()
                    answer = {"error": [], "result": self._dispatch(method, path, headers, said)}
            except RefusedError as error:
                answer = {"error": [str(error)]}
            except ArithmeticError:  # Amounts that no market knows.
                answer = {"error": ["EGeneral:Internal error"]}
            text = json.dumps(answer, separators=(",", ":"), default="{:f}".format)
        if path.startswith("/0/private/") and MS_NONCES[0] < self._nonce < MS_NONCES[1]:
            time.sleep(0.001)  # No network is so fast that two requests share a millisecond.
        return Answer(200, "application/json; charset=utf-8", text.encode())

    def now(self) -> float:
        """Return the sandbox's time."""
        return self._offset if self._frozen else self._now() + self._offset

    def _dispatch(self, method: str, path: str, headers: Headers, body: bytes) -> Any:
        headers = {name.lower(): value for name, value in headers.items()}
        kind, _, name = path.removeprefix("/0/").partition("/")
        known = words.METHODS.get((method, kind), {})
        self.requests[name if name in known else "other"] += 1
        p = words.parameters(headers, body)
        if kind == "private":
            self._authenticate(path, headers, p, body)
        if name not in known:
            raise RefusedError(words.NOT_SIMULATED.get(name, "EGeneral:Unknown method"))
        given = {parameter.partition("[")[0] for parameter in p}
        for parameter in given - {*known[name].split(), "nonce", "otp"}:
            label = f"{name}:{parameter:.40}"
            if label not in self.ignored and len(self.ignored) < LABELS_MAX:
                log.warning("parameter ignored, as Kraken does: %r", label)
            self.ignored[label if len(self.ignored) < LABELS_MAX else "others"] += 1
        if kind == "private":
            self._spend("", POINTS.get(name, 1), *self._limits[:2], "EAPI:Rate limit exceeded")
        self._settle()
        # Market orders never rest, so none is ever open or there to be cancelled.
        always = {"OpenOrders": {"open": {}}, "CancelAll": {"count": 0}}
        return always[name] if name in always else getattr(self, "_do_" + name)(p)

    def _authenticate(self, path: str, headers: Headers, p: Params, body: bytes) -> None:
        now, nonce = self.now(), p.get("nonce", "")
        if now < self._locked_until:
            self._locked_until = now + LOCKOUT_S
            raise RefusedError("EGeneral:Temporary lockout")
        is_number = nonce.isascii() and nonce.isdecimal() and len(nonce) <= 20
        signature, told = sign(self._secret, path, nonce, body), headers.get("api-sign", "")
        checks = {
            "EAPI:Invalid key": headers.get("api-key") == self._key,
            "EAPI:Invalid signature": not is_number
            or compare_digest(signature.encode(), told.encode("utf-8", "replace")),
            "EAPI:Invalid nonce": is_number and self._nonce < int(nonce) < 2**64,
        }
        refusal = next((text for text, is_right in checks.items() if not is_right), None)
        if refusal is None:
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
        if points and used > most:
            raise RefusedError(refusal)

    # Markets

    def _pair(self, name: str) -> PairRules:
        if name not in self._names:
            raise RefusedError("EQuery:Unknown asset pair")
        return self._rules[self._names[name]]

    def _pairs(self, p: Params) -> list[PairRules]:
        names = p["pair"].split(",") if "pair" in p else self._rules
        return [self._pair(name.strip()) for name in names]

    def _quote(self, rules: PairRules) -> Quote:
        tick, price = _tick(rules), self.prices.get(rules.pair)
        if price is None:
            series = self.feed.series(rules)
            price = series.prices(series.number(self.now()))[0]
        return Quote(price - tick, price + tick)

    def _settle(self) -> None:
        """Bring the books to now: each interval's rollovers, then its high and low."""
        now, serial = self.now(), self.account.serial
        for look in merge(*(self._looks(book, now) for book in self._books()), key=itemgetter(1)):
            self._look(*look)
        self.account.sort_ledger(serial)
        self._settled = now

    def _looks(self, book: Book, now: float) -> Iterator[tuple[Any, ...]]:
        """Yield a look at each interval that has ended since the last time, and one at now."""
        series = self.feed.series(book.rules)
        passed = range(series.number(self._settled), series.number(now))
        for place in passed if book.rules.pair not in self.prices else ():
            price, high, low, _ = series.prices(place)
            end = series.first + (place + 1) * series.interval_s
            yield book, math.nextafter(end, 0), price, low, high
        yield book, now, self._quote(book.rules).mid

    def _books(self, quote: str = "") -> list[Book]:
        """Return the books with a position, of all quote currencies or of one."""
        books = self.account.books.values()
        return [book for book in books if book.lots and quote in ("", book.rules.quote)]

    def _look(self, book: Book, now: float, price: Decimal, *span: Decimal) -> None:
        """Let the books look at prices and record the forced closing that may come of it."""
        if not book.lots:
            return
        wish = _closing(book)
        trade = self.account.advance(book, now, price)
        if trade is None and span:
            trade = self.account.sweep(book, now, *span)
        if trade is not None:
            self._record(wish, (trade,), now, misc="liquidated")

    def _do_Time(self, _: Params) -> Any:
        now = int(self.now())
        text = time.strftime("%a, %d %b %y %H:%M:%S +0000", time.gmtime(now))
        return {"unixtime": now, "rfc1123": text}

    def _do_SystemStatus(self, _: Params) -> Any:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now()))
        told = {name: rows for name, rows in self.notices.items() if rows}
        return {"status": self.system_status, "timestamp": moment, **told}

    def _do_Assets(self, p: Params) -> Any:
        codes = {name: code for code, row in ASSETS.items() for name in (code, row["altname"])}
        wanted = p["asset"].split(",") if p.get("asset") else ASSETS
        if not codes.keys() >= set(wanted):
            raise RefusedError("EQuery:Unknown asset")
        return {codes[name]: ASSETS[codes[name]] for name in wanted}

    def _do_AssetPairs(self, p: Params) -> Any:
        return {rules.pair: self.listing[rules.pair] for rules in self._pairs(p)}

    def _do_OHLC(self, p: Params) -> Any:
        rules, step_s = self._pair(p.get("pair", "")), int(number(p, "interval", 1) * 60)
        series, price = self.feed.series(rules), self.prices.get(rules.pair)
        if step_s / 60 not in INTERVALS or step_s % series.interval_s:
            raise bad("interval")
        bars = series.bars(step_s, int(number(p, "since", 0)), self.now())
        if price is not None:
            high, low = max(bars[-1].open, price), min(bars[-1].open, price)
            bars[-1] = bars[-1]._replace(high=high, low=low, close=price)
        rows = [words.bar_row(bar, rules) for bar in bars]
        return {rules.pair: rows, "last": bars[-1].time - step_s}

    def _do_Ticker(self, p: Params) -> Any:
        return {rules.pair: self._ticker(rules) for rules in self._pairs(p)}

    def _ticker(self, rules: PairRules) -> Row:
        series, now, quote = self.feed.series(rules), int(self.now()), self._quote(rules)
        begins = now // 86400 * 86400, now - 86400 + series.interval_s
        bars = [words.bar_row(series.bar(begin, 86400, now), rules) for begin in begins]
        _, opens, highs, lows, _, averages, volumes, counts = map(list, zip(*bars, strict=True))
        return {
            "a": [words.price(quote.ask, rules), "1", "1.000"],
            "b": [words.price(quote.bid, rules), "1", "1.000"],
            "c": [words.price(quote.mid, rules), "0.01000000"],
            "v": volumes,
            "p": averages,
            "t": counts,
            "l": lows,
            "h": highs,
            "o": opens[0],
        }

    def _do_Depth(self, p: Params) -> Any:
        rules, count = self._pair(p.get("pair", "")), whole(p, "count", 100)
        if not 1 <= count <= 500:
            raise bad("count")
        quote, tick, now = self._quote(rules), _tick(rules), int(self.now())
        levels = [tick * n for n in range(min(count, int(quote.bid / tick) - 1))]
        return {
            rules.pair: {
                "asks": [[words.price(quote.ask + away, rules), "1.000", now] for away in levels],
                "bids": [[words.price(quote.bid - away, rules), "1.000", now] for away in levels],
            }
        }

    # The account

    def _do_Balance(self, _: Params) -> Any:
        return {
            asset: f"{amount:.{words.decimals(asset)}f}"
            for asset, amount in self.account.balances.items()
            if amount
        }

    def _do_BalanceEx(self, p: Params) -> Any:
        balances = self._do_Balance(p).items()
        return {asset: {"balance": text, "hold_trade": "0.0000000000"} for asset, text in balances}

    def _do_TradeBalance(self, p: Params) -> Any:
        asset, account = p.get("asset", "ZUSD"), self.account
        quote = f"Z{asset}" if f"Z{asset}" in ASSETS else asset
        coins = {rules.base: rules for rules in self._rules.values() if rules.quote == quote}
        if not coins:
            raise RefusedError("EQuery:Unknown asset")
        books, margin = self._books(quote), account.summary(quote)
        owned = [coin for coin in coins if account.balances.get(coin)]
        prices = {coin: self._quote(coins[coin]).mid for coin in owned}
        worth = sum((account.balances[coin] * prices[coin] for coin in owned), ZERO)
        amounts = {
            "eb": worth + margin.trade_balance,
            "tb": margin.trade_balance,
            "m": margin.used_margin,
            "uv": ZERO,
            "n": margin.unrealized_pnl,
            "c": sum((book.cost_left for book in books), ZERO),
            "v": sum((book.held * book.price for book in books), ZERO),
            "e": margin.equity,
            "mf": margin.free_margin,
            "mfo": margin.free_margin,
        }
        shown = {name: f"{amount:.4f}" for name, amount in amounts.items()}
        level = margin.margin_level
        return shown if level is None else {**shown, "ml": f"{level:.2f}"}

    def _do_OpenPositions(self, p: Params) -> Any:
        wanted = p["txid"].split(",") if p.get("txid") else None
        markets: list[dict[str, Row]] = [
            {
                identifier("T", lot.serial): words.position_row(book, lot, flag(p, "docalcs"))
                for lot in book.lots
            }
            for book in self._books()
        ]
        if p.get("consolidation") == "market":
            return [words.market_row(list(rows.values())) for rows in markets]
        return {
            name: row
            for rows in markets
            for name, row in rows.items()
            if wanted is None or name in wanted
        }

    def _do_ClosedOrders(self, p: Params) -> Any:
        columns = {"open": ["opentm"], "close": ["closetm"]}
        times = columns.get(p.get("closetime", ""), ["opentm", "closetm"])
        page = self._page(words.identified(self.orders, p), p, "closed", times)
        return {**page, "closed": _shown(page["closed"], p)}

    def _do_QueryOrders(self, p: Params) -> Any:
        return _shown(words.identified(_named(self.orders, p, "txid", 50), p), p)

    def _do_TradesHistory(self, p: Params) -> Any:
        if (kind := p.get("type", "all")) not in _TRADE_TYPES:
            raise RefusedError("EAPI:Feature disabled")
        chosen = {txid: row for txid, row in self.trades.items() if _TRADE_TYPES[kind](row)}
        return self._page(chosen, p, "trades")

    def _do_QueryTrades(self, p: Params) -> Any:
        return _named(self.trades, p, "txid", 20)

    def _do_Ledgers(self, p: Params) -> Any:
        rows = self._ledger()
        for name in ("type", "asset"):
            if (texts := p.get(name, "all").split(",")) != ["all"]:
                rows = {key: row for key, row in rows.items() if row[name] in texts}
        return self._page(rows, p, "ledger")

    def _do_QueryLedgers(self, p: Params) -> Any:
        return _named(self._ledger(), p, "id", 20)

    def _ledger(self) -> dict[str, Row]:
        """Return the rows of the ledger by id; each is made once."""
        fresh = takewhile(lambda entry: entry.serial > self._told, reversed(self.account.ledger))
        for entry in reversed(list(fresh)):
            _keep(self._ledger_rows, identifier("L", entry.serial), words.ledger_row(entry))
        self._told = self.account.serial
        return self._ledger_rows

    def _page(
        self, rows: dict[str, Row], p: Params, name: str, times: Sequence[str] = ("time",)
    ) -> Row:
        """Return 50 rows, the newest first, after `start` and up to `end` by one of its times."""
        start, end = self._moment(p, "start", 0), self._moment(p, "end", math.inf)
        chosen = [
            key
            for key, row in reversed(rows.items())
            if start < row[times[0]] <= end or start < row[times[-1]] <= end
        ]
        offset = max(whole(p, "ofs", 0), 0)
        page: Row = {name: {key: rows[key] for key in chosen[offset : offset + PAGE]}}
        return page if flag(p, "without_count") else {**page, "count": len(chosen)}

    def _moment(self, p: Params, name: str, default: float) -> float:
        """Return unix seconds, given as such or by the id of what happened then."""
        for rows in (self.orders, self.trades, self._ledger_rows):
            if row := rows.get(p.get(name, "")):
                return float(row["opentm" if rows is self.orders else "time"])
        return number(p, name, default)

    def _do_TradeVolume(self, p: Params) -> Any:
        result: Row = {"currency": "ZUSD", "volume": f"{self._dollars:.4f}"}
        for name, share in (("fees", 100), ("fees_maker", 50)) if p.get("pair") else ():
            percent = f"{self.account.fee_rate * share:.4f}"
            row = {
                "fee": percent,
                "minfee": percent,
                "maxfee": percent,
                "nextfee": None,
                "nextvolume": None,
                "tiervolume": "0.0000",
            }
            result[name] = {rules.pair: row for rules in self._pairs(p)}
        return result

    def _do_GetApiKeyInfo(self, _: Params) -> Any:
        began = str(int(self.feed.start))
        return {
            "api_key_name": "sandbox",
            "api_key": self._key,
            "nonce": str(self._nonce),
            "nonce_window": "0",
            "permissions": _PERMISSIONS,
            "iban": "AA00 N000 0000 0000",
            "valid_until": "0",
            "query_from": "0",
            "query_to": "0",
            "created_time": began,
            "modified_time": began,
            "ip_allowlist": [""],
            "last_used": str(int(self.now())),
        }

    # Orders

    def _do_AddOrder(self, p: Params) -> Any:
        rules = self._pair(p.get("pair", ""))
        self._spend(rules.pair, 1, *self._limits[2:4], "EOrder:Rate limit exceeded")
        wish = words.wish_of(rules, p)
        self._check_deadline(p.get("deadline"))
        quote, now, book = self._quote(rules), self.now(), self.account.book(rules)
        still_open = takewhile(lambda x: x[1]["closetm"] > now, reversed(self.orders.items()))
        if "cl_ord_id" in p and words.identified(dict(still_open), p):
            raise bad("cl_ord_id not unique")
        if not wish.volume and wish.leverage and book.sign == -wish.side.sign:
            wish = wish._replace(volume=book.held)
        price = quote.ask if wish.side is Side.BUY else quote.bid
        refusal = objection(rules, *wish[1:4], price, wish.reduce_only)
        if refusal is None and self.system_status != "online":
            refusal = f"EService:Market in {self.system_status} mode"
        if refusal is not None:
            raise RefusedError(refusal.replace("Market in maintenance mode", "Unavailable"))
        told = {"descr": {"order": wish.text(p["volume"])}}
        return told if flag(p, "validate") else {"txid": [self._place(wish)], **told}

    def _place(self, wish: Wish) -> str:
        """Fill the order and return its id. Raises RefusedError in the books' words."""
        account, book, quote = self.account, self.account.book(wish.rules), self._quote(wish.rules)
        part = wish.rules.round_volume(wish.volume * self.fill_share)
        account.serial = serial = account.serial + 1
        now, book.price = self.now(), quote.mid
        trades: tuple[Trade, ...] = ()
        if part:
            trades = execute(account, book, now, wish.side, part, quote, *wish[3:5], serial)
        return self._record(wish, trades, now, serial)

    def _check_deadline(self, text: str | None) -> None:
        if text is None:
            return
        try:
            moment = datetime.fromisoformat(text)
            ahead = moment.timestamp() - self.now()
        except (ValueError, OverflowError):
            raise bad("deadline") from None
        if ahead < -self._slack_s:
            raise RefusedError("EService:Deadline elapsed")
        if moment.tzinfo is None or not DEADLINE_MIN_S - self._slack_s <= ahead <= DEADLINE_MAX_S:
            raise bad("deadline")

    def _record(
        self, wish: Wish, trades: tuple[Trade, ...], now: float, serial: int = 0, misc: str = ""
    ) -> str:
        """Keep the order and its trades as Kraken shows them; return the order's id."""
        if not serial:
            self.account.serial = serial = self.account.serial + 1
        txid = identifier("O", serial)
        for trade in trades:
            row = words.trade_row(wish, trade, txid, now, misc)
            _keep(self.trades, identifier("T", trade.serial), row)
            self._dollars += trade.cost if wish.rules.quote == "ZUSD" else ZERO
        _keep(self.orders, txid, words.order_row(wish, trades, now, misc))
        return txid

    def _do_CancelOrder(self, p: Params) -> Any:
        known = p.get("txid") or p.get("cl_ord_id")
        raise RefusedError("EOrder:Unknown order" if known else "EGeneral:Invalid arguments")

    # What only a sandbox has

    def _control(self, method: str, name: str, body: bytes) -> Any:
        """Return the truth about the sandbox after doing what was asked of it."""
        self._settle()
        if method == "POST":
            try:
                self.controls[name](json.loads(body or b"{}", parse_float=Decimal))
            except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise bad(str(error)) from None
            self._settle()
        elif name not in ("ledger", "status"):
            raise RefusedError("EGeneral:Unknown method")
        return self.truth()

    def truth(self) -> Row:
        """Return everything that happened, for tests: orders, trades, books and requests."""
        account = self.account
        books = {book.rules.pair: book for book in self._books()}
        money = sorted({rules.quote for rules in self._rules.values()} & account.balances.keys())
        return {
            "time": self.now(),
            "status": self.system_status,
            "orders": [{"txid": txid, **row} for txid, row in self.orders.items()],
            "executions": [{"id": name, **row} for name, row in self.trades.items()],
            "position": {name: plain(book.volume) for name, book in books.items()},
            "liquidation": {name: account.liquidation_price(b) for name, b in books.items()},
            "equity": {asset: account.equity(asset) for asset in money},
            "unrealized": {asset: account.unrealized(asset) for asset in money},
            "balances": account.balances,
            "realized": account.realized,
            "fees": account.fees,
            "rollover": account.rollovers,
            "requests": self.requests,
            "ignored": self.ignored,
        }

    def _set_position(self, wish: Row) -> None:
        """Trade by hand: {pair, close | liquidate} or {pair, side, volume, leverage}."""
        rules = self._pair(wish["pair"])
        book, price = self.account.book(rules), self._quote(rules).mid
        if "side" in wish:
            side, volume = Side(wish["side"]), decimal(wish["volume"])
            order = Wish(rules, side, volume, int(wish.get("leverage", 2)), False, {})
            refusal = objection(rules, *order[1:4], price, False)
            if refusal is not None:
                raise RefusedError(refusal)
            self._place(order)
        elif book.lots and wish.get("liquidate"):
            order, now = _closing(book), self.now()
            trade = self.account.close(book, now, book.held, price)
            self._record(order, (trade,), now, misc="liquidated")
        elif book.lots and wish["close"]:
            self._place(_closing(book))

    def _set_clock(self, wish: Row) -> None:
        """{freeze: bool}, {now: unix seconds} or {advance: seconds}; never backwards."""
        now = self.now()
        target = float(wish.get("now", now + float(wish.get("advance", 0))))
        if not 0 <= target - now <= CLOCK_STEP_MAX_S:
            raise ValueError("the clock goes forwards only, 31 days at a time")
        self._frozen = bool(wish.get("freeze", self._frozen))
        self._offset = target - (0 if self._frozen else self._now())

    def _set_price(self, wish: Row) -> None:
        """{pair, price}: the market stands there until the price is set to null."""
        rules = self._pair(wish["pair"])
        self.prices.pop(rules.pair, None)
        if wish["price"] is not None:
            price = _amount(wish["price"]).quantize(_tick(rules))
            if price <= _tick(rules):
                raise ValueError("the price is not above one tick")
            self.prices[rules.pair] = price

    def _set_balance(self, wish: Row) -> None:
        """{asset, amount}: a deposit or withdrawal makes the balance that amount."""
        had = self.account.balances.get(wish["asset"], ZERO)
        self.account.deposit(self.now(), wish["asset"], _amount(wish["amount"]) - had)

    def _set_status(self, wish: Row) -> None:
        """{status} of the exchange, {pair, status} of one market, {fill_share} of each order.

        {upcoming_maintenance: [...]} and {emergency: [...]} are told by SystemStatus as they are.
        """
        notices = {
            name: wish[name] for name in ("upcoming_maintenance", "emergency") if name in wish
        }
        if notices:
            self.notices.update({name: list(rows) for name, rows in notices.items()})
        elif "fill_share" in wish:
            self.fill_share = min(max(decimal(wish["fill_share"]), ZERO), Decimal(1))
        elif "pair" in wish:
            pair = self._pair(wish["pair"]).pair
            self.listing[pair]["status"] = str(wish["status"])
            self._rules[pair] = parse_rules(pair, self.listing[pair])
        else:
            self.system_status = str(wish["status"])


def _amount(said: object) -> Decimal:
    amount = decimal(said)
    if abs(amount) >= AMOUNT_MAX:
        raise ValueError(f"{amount} is not below {AMOUNT_MAX}")
    return amount


def _tick(rules: PairRules) -> Decimal:
    return Decimal(1).scaleb(-rules.pair_decimals)


def _closing(book: Book) -> Wish:
    """Return the order that closes all of the position."""
    side = Side.SELL if book.sign > 0 else Side.BUY
    return Wish(book.rules, side, book.held, book.lots[0].leverage, False, {})


def _keep(rows: dict[str, Any], name: str, row: Any) -> None:
    rows[name] = row
    while len(rows) > KEPT:
        del rows[next(iter(rows))]


def _named(rows: Mapping[str, Row], p: Params, name: str, most: int) -> dict[str, Row]:
    if not p.get(name):
        raise RefusedError("EGeneral:Invalid arguments")
    return {key: rows[key] for key in p[name].split(",")[:most] if key in rows}


def _shown(orders: Mapping[str, Row], p: Params) -> dict[str, Row]:
    """Return orders with their trades only where these are asked for."""
    left_out = "" if flag(p, "trades") else "trades"
    return {txid: {k: v for k, v in row.items() if k != left_out} for txid, row in orders.items()}
