"""The simulated exchange: one HTTP request in, one answer out. http.py puts it on a socket.

Authentication, nonces, rate limits and the controls under /sandbox/ are here; Kraken's methods are
in feed.py (public) and private.py.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from krakenbot import log
from krakenbot.errors import RefusedError
from krakenbot.kraken.signing import sign
from krakenbot.kraken.spot import NEEDED_PERMISSIONS
from krakenbot.model import ZERO, Secret
from krakenbot.pairs import decimal, plain
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.simulated import wire
from krakenbot.simulated.books import AMOUNT_MAX, Account
from krakenbot.simulated.feed import Feed, tick
from krakenbot.simulated.listing import MARGIN_RATES, Row
from krakenbot.simulated.private import HISTORY_MAX, PrivateApi, closing
from krakenbot.simulated.wire import PARAMETERS, Answer, Params, bad

START_BALANCES = {"ZUSD": Decimal(10000), "ZEUR": Decimal(5000), "USDT": Decimal(1000)}
# Kraken's limits by tier: the maximum of the REST counter and its decay per second, the same of the
# matching engine's, and how many failed authentications in a row lead to a lockout.
# Documented: support.kraken.com 206548367; docs.kraken.com, guides on REST and trading rate limits.
# The last column is assumed, and "sandbox" is no tier of Kraken's.
TIERS = {
    "sandbox": ((50000, 10000.0), (50000, 10000.0), 1000),
    "starter": ((15, 0.33), (60, 1.0), 20),
    "intermediate": ((20, 0.5), (125, 2.34), 20),
    "pro": ((20, 1.0), (180, 3.75), 20),
}
POINTS = dict.fromkeys(("Ledgers", "QueryLedgers", "TradesHistory", "QueryTrades"), 2)
POINTS |= {"AddOrder": 0, "CancelOrder": 0}  # Counted by the matching engine instead.
_PERMISSIONS = [*NEEDED_PERMISSIONS, "close-trades", "query-ledger"]
LOCKOUT_S = 900  # Kraken's documentation says "minutes", an older article "about 15".
MS_NONCES = (10**12, 10**14)  # A nonce in this range is taken for milliseconds.
CLOCK_STEP_MAX_S = 31 * 86400


class SandboxApi:
    """One account and its markets. `now` returns unix seconds; `respond` is thread-safe."""

    def __init__(
        self,
        feed: Feed,
        now: Callable[[], float],
        key: str,
        secret: Secret,
        *,
        fee_rate: Decimal = FEE_RATE_ASSUMED,
        balances: Mapping[str, Decimal] = START_BALANCES,
        tier: str = "sandbox",
    ) -> None:
        self._now, self._offset, self._frozen = now, 0.0, False
        self.markets, feed.now = feed, self.now
        if feed.own_pair:
            balances = {feed.rules[feed.own_pair].quote: Decimal(10000), **balances}
        serial = int(self.now()) * 1000  # So that ids are not those of an earlier sandbox.
        self.account = Account(
            balances, fee_rate, margin_rates=MARGIN_RATES, serial=serial, history=HISTORY_MAX
        )
        self.private_api = PrivateApi(self.markets, self.account, self.now)
        self.private_api.methods["GetApiKeyInfo"] = self._key_info
        public, private = self.markets.methods, self.private_api.methods
        self._methods = {("GET", "public"): public, ("POST", "private"): private}
        self.orders, self.trades = self.private_api.orders, self.private_api.trades
        self.requests, self.ignored = Counter[str](), Counter[str]()
        self.controls: dict[str, Callable[[Row], None]] = {
            "ledger": lambda _: None,
            "position": self._set_position,
            "clock": self._set_clock,
            "price": self._set_price,
            "balance": self._set_balance,
            "status": self._set_status,
        }
        self.key, self.secret, self.nonce = key, secret, 0
        self._rest_limit, self._engine_limit, self._failures_max = TIERS[tier]
        self._failures, self._locked_until = 0, 0.0
        self._counters: dict[str, tuple[float, float]] = {}
        self.lock = threading.RLock()

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer to a request; errors are in its envelope, as Kraken's are."""
        path, _, query = target.partition("?")
        with self.lock:
            try:
                if path.startswith("/sandbox/"):
                    envelope = self._control(method, path.removeprefix("/sandbox/"), body)
                else:
                    sent = body if method == "POST" else query.encode()
                    envelope = {"error": [], "result": self._dispatch(method, path, headers, sent)}
            except RefusedError as error:
                envelope = {"error": [str(error)]}
            except ArithmeticError:  # Amounts too large to be rounded.
                envelope = {"error": ["EGeneral:Internal error"]}
            answer = Answer.of(envelope)
        if path.startswith("/0/private/") and MS_NONCES[0] < self.nonce < MS_NONCES[1]:
            time.sleep(0.001)  # Over a real network no two requests share a millisecond.
        return answer

    def now(self) -> float:
        """Return the simulated time in unix seconds."""
        return self._offset if self._frozen else self._now() + self._offset

    def _dispatch(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        headers = {name.lower(): value for name, value in headers.items()}
        kind, _, name = path.removeprefix("/0/").partition("/")
        known = self._methods.get((method, kind), {})
        self.requests[name if name in known else "other"] += 1
        p = wire.parameters(headers, body)
        if kind == "private":
            self._authenticate(path, headers, p, body)
        if name not in known:
            raise wire.not_simulated(name)
        if p.get("aclass_base", p.get("asset_class", "currency")) != "currency":
            raise RefusedError("EQuery:Unknown asset pair")  # All listed assets are currencies.
        for parameter in {name.partition("[")[0] for name in p} - {*PARAMETERS.split()}:
            label = f"{name}:{parameter:.40}"
            if label not in self.ignored:
                log.warning("the sandbox ignores the parameter %r", label)
            self.ignored[label] += 1
        if kind == "private":
            self._count("", POINTS.get(name, 1), *self._rest_limit, "EAPI:Rate limit exceeded")
        if name == "AddOrder":
            pair = self.markets.pair(p.get("pair", "")).pair
            self._count(pair, 1, *self._engine_limit, "EOrder:Rate limit exceeded")
        self.private_api.mark_to_market()
        return known[name](p)

    def _authenticate(self, path: str, headers: Mapping[str, str], p: Params, body: bytes) -> None:
        now, nonce = self.now(), p.get("nonce", "")
        if now < self._locked_until:
            self._locked_until = now + LOCKOUT_S
            raise RefusedError("EGeneral:Temporary lockout")
        is_number = re.fullmatch("[0-9]{1,20}", nonce) is not None
        if headers.get("api-key") != self.key:
            refusal = "EAPI:Invalid key"
        elif is_number and headers.get("api-sign") != sign(self.secret, path, nonce, body):
            refusal = "EAPI:Invalid signature"
        elif not is_number or not self.nonce < int(nonce) < 2**64:
            refusal = "EAPI:Invalid nonce"
        else:
            self.nonce, self._failures = int(nonce), 0
            return
        self._failures += 1
        if self._failures >= self._failures_max:
            self._failures, self._locked_until = 0, now + LOCKOUT_S
        raise RefusedError(refusal)

    def _count(self, name: str, points: int, most: float, decay: float, refusal: str) -> None:
        """Add points to a rate counter. Raises RefusedError, `refusal`, when it exceeds `most`."""
        now = self.now()
        used, then = self._counters.get(name, (0.0, now))
        used = max(0.0, used - decay * (now - then)) + points
        self._counters[name] = (min(used, most + points), now)
        if points and used > most:
            raise RefusedError(refusal)

    def _key_info(self, _: Params) -> Any:
        unset = dict.fromkeys(("nonce_window", "valid_until", "query_from", "query_to"), "0")
        began = dict.fromkeys(("created_time", "modified_time"), str(int(self.markets.start)))
        return (
            {"api_key_name": "sandbox", "api_key": self.key, "nonce": str(self.nonce)}
            | {"permissions": _PERMISSIONS, "iban": "AA00 N000 0000 0000", "ip_allowlist": [""]}
            | {"last_used": str(int(self.now())), **began, **unset}
        )

    def _control(self, method: str, name: str, body: bytes) -> Any:
        """Carry out a POST to /sandbox/NAME, and return the sandbox's full state."""
        self.private_api.mark_to_market()
        if name not in self.controls:
            raise RefusedError("EGeneral:Unknown method")
        if method == "POST":
            try:
                self.controls[name](json.loads(body or b"{}", parse_float=Decimal))
            except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise bad(str(error)) from None
            self.private_api.mark_to_market()
        return self.truth()

    def truth(self) -> Row:
        """Return the full state: orders, trades, balances, positions, results, request counts."""
        account = self.account
        positions = {position.rules.pair: position for position in account.held_positions()}
        quotes = {rules.quote for rules in self.markets.rules.values()}
        money = sorted(quotes & account.balances.keys())
        return (
            {"time": self.now(), "status": self.markets.status, "balances": account.balances}
            | {"orders": [{"txid": txid, **row} for txid, row in self.orders.items()]}
            | {"executions": [{"id": name, **row} for name, row in self.trades.items()]}
            | {"position": {name: plain(held.volume) for name, held in positions.items()}}
            | {"liquidation": {n: account.liquidation_price(p) for n, p in positions.items()}}
            | {"equity": {asset: account.summary(asset).equity for asset in money}}
            | {"unrealized": {asset: account.summary(asset).unrealized_pnl for asset in money}}
            | {"realized": account.realized, "fees": account.fees, "rollover": account.rollovers}
            | {"requests": self.requests, "ignored": self.ignored}
        )

    def _set_position(self, params: Row) -> None:
        """Trade by hand: {pair, close or liquidate} or {pair, side, volume, leverage}."""
        rules = self.markets.pair(params["pair"])
        position, quote, now = self.account.position(rules), self.markets.quote(rules), self.now()
        if "side" in params:
            leverage, volume = int(params.get("leverage", 2)), plain(decimal(params["volume"]))
            form = {"pair": rules.pair, "ordertype": "market", "type": str(params["side"])}
            form |= {"volume": volume, "leverage": str(leverage or "none")}
            self.private_api.methods["AddOrder"](form)
        elif position.lots and (params.get("liquidate") or params["close"]):
            price, misc = quote.bid if position.sign > 0 else quote.ask, ""
            if params.get("liquidate"):
                price, misc = quote.mid, "liquidated"
            order = closing(position, misc)
            trade = self.account.close(position, now, position.held, price)
            self.private_api.record(order, [trade], now)

    def _set_clock(self, params: Row) -> None:
        """{freeze: bool}, {now: unix seconds} or {advance: seconds}; never backwards."""
        now = self.now()
        target = float(params.get("now", now + float(params.get("advance", 0))))
        if not 0 <= target - now <= CLOCK_STEP_MAX_S:
            raise ValueError("the clock only moves forward, by at most 31 days at a time")
        self._frozen = bool(params.get("freeze", self._frozen))
        self._offset = target - (0 if self._frozen else self._now())

    def _set_price(self, params: Row) -> None:
        """{pair, price}: the price stays there until it is set to null."""
        rules, price = self.markets.pair(params["pair"]), params["price"]
        if price is not None:
            price = round(_amount(price), rules.pair_decimals)
            if price <= tick(rules):
                raise ValueError(f"{price} must be above one tick, {tick(rules)}")
        self.markets.series(rules).by_hand.append((self.now(), price and float(price)))

    def _set_balance(self, params: Row) -> None:
        """{asset, amount}: set a balance by a deposit or withdrawal."""
        (asset,) = wire.asset_codes(str(params["asset"]))
        had = self.account.balances.get(asset, ZERO)
        self.account.deposit(self.now(), asset, _amount(params["amount"]) - had)

    def _set_status(self, params: Row) -> None:
        """{status} for the exchange, {pair, status} for one pair, {fill_share} for each order.

        SystemStatus repeats {upcoming_maintenance: [...]} and {emergency: [...]} unchanged.
        """
        notices = params.keys() & {"upcoming_maintenance", "emergency"}
        announced = {name: list(params[name]) for name in notices}
        self.markets.notices.update(announced)
        if "fill_share" in params:
            self.private_api.fill_share = min(max(decimal(params["fill_share"]), ZERO), Decimal(1))
        elif "pair" in params:
            pair = self.markets.pair(params["pair"]).pair
            self.markets.relist(pair, status=str(params["status"]))
        elif not announced:
            self.markets.status = str(params["status"])


def _amount(text: object) -> Decimal:
    amount = decimal(text)
    if abs(amount) >= AMOUNT_MAX:
        raise ValueError(f"{amount} must be below {AMOUNT_MAX}")
    return amount
