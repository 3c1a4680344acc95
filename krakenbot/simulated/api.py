"""The simulated exchange as a whole: one request in, one answer out, no socket but `Sandbox`'s.

Login, rate limits and nonces are here; what the methods do is in public.py and private.py.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from hmac import compare_digest
from typing import Any

from krakenbot import log
from krakenbot.errors import RefusedError
from krakenbot.kraken.signing import sign
from krakenbot.kraken.spot import NEEDED_PERMISSIONS
from krakenbot.model import ZERO, Secret
from krakenbot.pairs import decimal, plain
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.simulated import words
from krakenbot.simulated.books import AMOUNT_MAX, Account
from krakenbot.simulated.faults import Faults
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.http import Answer, Front
from krakenbot.simulated.listing import MARGIN_RATES, PAIRS, SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.private import KEPT, Holder, closing
from krakenbot.simulated.public import FeedMarkets, tick
from krakenbot.simulated.words import Method, Params, Row, bad

Headers = Mapping[str, str]

START_BALANCES = {"ZUSD": Decimal(10000), "ZEUR": Decimal(5000), "USDT": Decimal(1000)}
# Kraken's limits by tier: REST counter and its decay a second, the same of the matching engine,
# failed logins in a row until the lockout. Not documented: the last column; "sandbox" is ours.
TIERS = {
    "starter": (15, 0.33, 60, 1.0, 20),
    "intermediate": (20, 0.5, 125, 2.34, 20),
    "pro": (20, 1.0, 180, 3.75, 20),
    "sandbox": (50000, 10000.0, 50000, 10000.0, 1000),
}
POINTS = dict.fromkeys(("Ledgers", "QueryLedgers", "TradesHistory", "QueryTrades"), 2)
FREE = ("AddOrder", "CancelOrder")  # They count at the matching engine.
_PERMISSIONS = [*NEEDED_PERMISSIONS, "close-trades", "query-ledger"]
LOCKOUT_S = 900
MS_NONCES = (10**12, 10**14)  # What a nonce is that counts milliseconds.
CLOCK_STEP_MAX_S = 31 * 86400
NOTICES = ("upcoming_maintenance", "emergency")


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
        fee_rate: Decimal = FEE_RATE_ASSUMED,
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
            fee_rate=fee_rate,
            tier=tier,
            slack_s=max(speed - 1, 0.0) / 2,  # A request may be on its way for half a real second.
        )
        troubled = Faults(self.api, faults, lambda seconds: time.sleep(seconds / speed))
        # {spec}: what goes wrong from now on, in the words of --faults.
        self.api.controls["faults"] = lambda params: troubled.set(str(params["spec"]))
        self._front = Front(troubled.respond, port)
        self.url = self._front.url
        threading.Thread(target=self._front.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._front.shutdown()
        self._front.server_close()


class SandboxApi:
    """One account and its markets. `now` gives unix seconds; `respond` may be called by threads.

    `slack_s` widens deadlines by what a scaled clock makes of the way of a request; with
    `coin_fees` margin fees are taken in the base currency.
    """

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
        slack_s: float = 0.0,
        coin_fees: bool = False,
    ) -> None:
        self._now, self._offset, self._frozen = now, 0.0, False
        self.markets = FeedMarkets(feed, self.now)
        if feed.pair and feed.pair not in PAIRS:
            balances = {self.markets.rules[feed.pair].quote: Decimal(10000), **balances}
        self.account = Account(
            balances,
            fee_rate,
            margin_rates=MARGIN_RATES,
            coin_fees=coin_fees,
            serial=int(self.now()) * 1000,
            history=KEPT,
        )
        self.holder = Holder(self.markets, self.account, self.now, slack_s=slack_s)
        self.holder.methods["GetApiKeyInfo"] = Method(self._key_info)
        self._methods = {
            ("GET", "public"): self.markets.methods,
            ("POST", "private"): self.holder.methods,
        }
        self.orders, self.trades = self.holder.orders, self.holder.trades
        self.listing, self.prices = self.markets.listing, self.markets.prices
        self.requests, self.ignored = Counter[str](), Counter[str]()
        self.controls: dict[str, Callable[[Row], None]] = {
            "position": self._set_position,
            "clock": self._set_clock,
            "price": self._set_price,
            "balance": self._set_balance,
            "status": self._set_status,
        }
        self._began, self._key, self._secret, self.nonce = self.now(), key, secret, 0
        self._limits = TIERS[tier]
        self._failures, self._locked_until = 0, 0.0
        self._counters: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def respond(self, method: str, target: str, headers: Headers, body: bytes) -> Answer:
        """Return the answer to one HTTP request."""
        path, _, query = target.partition("?")
        with self._lock:
            try:
                if path.startswith("/sandbox/"):
                    answer = self._control(method, path.removeprefix("/sandbox/"), body)
                else:
                    sent = body if method == "POST" else query.encode()
                    answer = {"error": [], "result": self._dispatch(method, path, headers, sent)}
            except RefusedError as error:
                answer = {"error": [str(error)]}
            except ArithmeticError:  # Amounts that no market knows.
                answer = {"error": ["EGeneral:Internal error"]}
            text = json.dumps(answer, separators=(",", ":"), default="{:f}".format)
        if path.startswith("/0/private/") and MS_NONCES[0] < self.nonce < MS_NONCES[1]:
            time.sleep(0.001)  # No network is so fast that two requests share a millisecond.
        return Answer(200, "application/json; charset=utf-8", text.encode())

    def now(self) -> float:
        """Return the sandbox's time."""
        return self._offset if self._frozen else self._now() + self._offset

    def _dispatch(self, method: str, path: str, headers: Headers, body: bytes) -> Any:
        headers = {name.lower(): value for name, value in headers.items()}
        kind, _, name = path.removeprefix("/0/").partition("/")
        known = self._methods.get((method, kind), {})
        self.requests[name if name in known else "other"] += 1
        p = words.parameters(headers, body)
        if kind == "private":
            self._authenticate(path, headers, p, body)
        if name not in known:
            raise words.not_simulated(name)
        given = {parameter.partition("[")[0] for parameter in p}
        for parameter in given - {*known[name].parameters.split(), "nonce", "otp"}:
            label = f"{name}:{parameter:.40}"
            if label not in self.ignored:
                log.warning("parameter ignored, as Kraken does: %r", label)
            self.ignored[label] += 1
        if kind == "private":
            points = 0 if name in FREE else POINTS.get(name, 1)
            self._spend("", points, *self._limits[:2], "EAPI:Rate limit exceeded")
        if name == "AddOrder":
            pair = self.markets.pair(p.get("pair", "")).pair
            self._spend(pair, 1, *self._limits[2:4], "EOrder:Rate limit exceeded")
        self.holder.mark_to_market()
        return known[name].answer(p)

    def _authenticate(self, path: str, headers: Headers, p: Params, body: bytes) -> None:
        now, nonce = self.now(), p.get("nonce", "")
        if now < self._locked_until:
            self._locked_until = now + LOCKOUT_S
            raise RefusedError("EGeneral:Temporary lockout")
        is_number = nonce.isascii() and nonce.isdecimal() and len(nonce) <= 20
        signature, given = sign(self._secret, path, nonce, body), headers.get("api-sign", "")
        checks = {
            "EAPI:Invalid key": headers.get("api-key") == self._key,
            "EAPI:Invalid signature": not is_number
            or compare_digest(signature.encode(), given.encode("utf-8", "replace")),
            "EAPI:Invalid nonce": is_number and self.nonce < int(nonce) < 2**64,
        }
        refusal = next((text for text, is_right in checks.items() if not is_right), None)
        if refusal is None:
            self.nonce, self._failures = int(nonce), 0
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

    def _key_info(self, _: Params) -> Any:
        unset = dict.fromkeys(("nonce_window", "valid_until", "query_from", "query_to"), "0")
        began = dict.fromkeys(("created_time", "modified_time"), str(int(self._began)))
        return (
            {"api_key_name": "sandbox", "api_key": self._key, "nonce": str(self.nonce)}
            | {"permissions": _PERMISSIONS, "iban": "AA00 N000 0000 0000", "ip_allowlist": [""]}
            | {"last_used": str(int(self.now())), **began, **unset}
        )

    # What only a sandbox has

    def _control(self, method: str, name: str, body: bytes) -> Any:
        """Return the truth about the sandbox after doing what was asked of it."""
        self.holder.mark_to_market()
        if method == "POST":
            try:
                self.controls[name](json.loads(body or b"{}", parse_float=Decimal))
            except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise bad(str(error)) from None
            self.holder.mark_to_market()
        elif name not in ("ledger", "status"):
            raise RefusedError("EGeneral:Unknown method")
        return self.truth()

    def truth(self) -> Row:
        """Return everything that happened, for tests: orders, trades, books and requests."""
        account = self.account
        books = {position.rules.pair: position for position in account.held_positions()}
        quotes = {rules.quote for rules in self.markets.rules.values()}
        money = sorted(quotes & account.balances.keys())
        return (
            {"time": self.now(), "status": self.markets.status, "balances": account.balances}
            | {"orders": [{"txid": txid, **row} for txid, row in self.orders.items()]}
            | {"executions": [{"id": name, **row} for name, row in self.trades.items()]}
            | {"position": {name: plain(position.volume) for name, position in books.items()}}
            | {"liquidation": {name: account.liquidation_price(b) for name, b in books.items()}}
            | {"equity": {asset: account.equity(asset) for asset in money}}
            | {"unrealized": {asset: account.unrealized(asset) for asset in money}}
            | {"realized": account.realized, "fees": account.fees, "rollover": account.rollovers}
            | {"requests": self.requests, "ignored": self.ignored}
        )

    def _set_position(self, params: Row) -> None:
        """Trade by hand: {pair, close | liquidate} or {pair, side, volume, leverage}."""
        rules = self.markets.pair(params["pair"])
        position, quote = self.account.position(rules), self.markets.quote(rules)
        if "side" in params:
            leverage, volume = int(params.get("leverage", 2)), decimal(params["volume"])
            asked = {"pair": rules.pair, "ordertype": "market", "type": str(params["side"])}
            asked |= {"volume": plain(volume), "leverage": str(leverage or "none")}
            self.holder.methods["AddOrder"].answer(asked)
        elif position.lots and params.get("liquidate"):
            order, now = closing(position), self.now()
            trade = self.account.close(position, now, position.held, quote.mid)
            self.holder.record(order, (trade,), now, misc="liquidated")
        elif position.lots and params["close"]:
            self.holder.fill(closing(position))

    def _set_clock(self, params: Row) -> None:
        """{freeze: bool}, {now: unix seconds} or {advance: seconds}; never backwards."""
        now = self.now()
        target = float(params.get("now", now + float(params.get("advance", 0))))
        if not 0 <= target - now <= CLOCK_STEP_MAX_S:
            raise ValueError("the clock goes forwards only, 31 days at a time")
        self._frozen = bool(params.get("freeze", self._frozen))
        self._offset = target - (0 if self._frozen else self._now())

    def _set_price(self, params: Row) -> None:
        """{pair, price}: the market stands there until the price is set to null."""
        rules = self.markets.pair(params["pair"])
        self.prices.pop(rules.pair, None)
        if params["price"] is not None:
            price = _amount(params["price"]).quantize(tick(rules))
            if price <= tick(rules):
                raise ValueError("the price is not above one tick")
            self.prices[rules.pair] = price

    def _set_balance(self, params: Row) -> None:
        """{asset, amount}: a deposit or withdrawal makes the balance that amount."""
        had = self.account.balances.get(params["asset"], ZERO)
        self.account.deposit(self.now(), params["asset"], _amount(params["amount"]) - had)

    def _set_status(self, params: Row) -> None:
        """{status} of the exchange, {pair, status} of one market, {fill_share} of each order.

        {upcoming_maintenance: [...]} and {emergency: [...]} are told by SystemStatus as they are.
        """
        told = {name: list(params[name]) for name in NOTICES if name in params}
        self.markets.notices.update(told)
        if "fill_share" in params:
            self.holder.fill_share = min(max(decimal(params["fill_share"]), ZERO), Decimal(1))
        elif "pair" in params:
            pair = self.markets.pair(params["pair"]).pair
            self.markets.relist(pair, status=str(params["status"]))
        elif not told:
            self.markets.status = str(params["status"])


def _amount(text: object) -> Decimal:
    amount = decimal(text)
    if abs(amount) >= AMOUNT_MAX:
        raise ValueError(f"{amount} is not below {AMOUNT_MAX}")
    return amount
