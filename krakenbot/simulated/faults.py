"""Fault injection around the sandbox: what networks, gateways and exchanges do to requests.

A spec such as `lost-after=0.02,lag=30,seed=7` gives each fault its probability per request; `all`
gives one to every fault. Reads are up to `lag` seconds out of date. `seed` makes a run repeatable.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from random import Random
from typing import Any

from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.wire import Answer, Params, identified, parameters

FAULTS = {
    "refused": "the connection is refused (over HTTP: closed unread)",
    "lost-before": "the connection breaks before the request is read",
    "lost-after": "the connection breaks after the request was executed",
    "late": "the request arrives up to 12 s late",
    "overdue": "the request arrives 16 to 19 s late, after its deadline",
    "timeout": "the request is executed, but no answer ever comes",
    "stuck": "no answer ever comes; an order arrives up to a minute later",
    "gateway": "HTML with status 502, 504 or 520, the request executed or not",
    "html": "HTML with status 200, the request executed or not",
    "cut": "the answer is cut off",
    "shape": "the answer is JSON of the wrong shape",
    "service": "EService or EGeneral:Internal error, executed or not",
    "unknown": "an undocumented error, the request executed or not",
    "nonce": "EAPI:Invalid nonce",
    "rate": "EAPI:Rate limit exceeded or EService: Throttled",
    "lockout": "EGeneral:Temporary lockout",
    "maintenance": "the exchange is in maintenance for some minutes",
    "cancel_only": "the exchange is in cancel_only mode for some minutes",
    "post_only": "the exchange is in post_only mode for some minutes",
    "margin": "an order is refused for lack of margin",
    "partial": "an order is partly filled and the rest cancelled",
    "candle-late": "the newest candles are still missing",
    "candle-stale": "an earlier answer with candles is repeated",
    "candle-missing": "a candle is missing",
    "candle-repeated": "a candle appears twice",
    "rules": "the minimum order or the leverages change for some minutes",
    "clock": "the exchange's clock is up to 90 s off for some minutes",
}
_CANDLES = frozenset(word for word in FAULTS if word.startswith("candle"))
_UNREAD = {"refused": ConnectionRefusedError, "lost-before": ConnectionResetError}
_UNANSWERED = {"lost-after": ConnectionResetError, "timeout": TimeoutError}
# What comes in place of the answer: one of these errors, or a page with one of these statuses.
_ERRORS = {
    "nonce": "EAPI:Invalid nonce",
    "rate": "EAPI:Rate limit exceeded|EService: Throttled: {until:.0f}",
    "lockout": "EGeneral:Temporary lockout",
    "margin": "EOrder:Insufficient initial margin|EOrder:Insufficient margin"
    "|EOrder:Margin allowance exceeded",
    "service": "EService:Unavailable|EService:Busy|EService:Timeout|EService:Deadline elapsed"
    "|EGeneral:Internal error|EGeneral:Internal error:ord",
    "unknown": "EFoo:Bar baz",
}
_PAGES = {"gateway": (502, 504, 520), "html": (200,)}
_SHAPES = b"""[] "x" {"error":[]} {"result":{}} {"error":"EGeneral:x","result":{}}
    {"error":[],"result":null} {"error":[],"result":"x"} {"error":[],"result":[null]}
    {"error":[],"result":{"x":null}} {"error":[7],"result":{}} {"error":[],"result":5}""".split()
_LAGGING = ("OpenPositions", "Balance", "TradeBalance")  # Lists of orders and trades: `_orders`.
_READS_MAX = 100
_LEVERAGES: tuple[list[int], ...] = ([], [3, 4, 5], [2], [5, 10])

_Request = tuple[str, str, Mapping[str, str], bytes]


def parse(spec: str) -> dict[str, float]:
    """Return the number for each word of a spec. Raises ValueError naming the wrong part."""
    chances: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        word, _, text = part.partition("=")
        if word not in (known := [*FAULTS, "all", "lag", "seed"]):
            near = get_close_matches(word, known, 1, 0.4)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no fault is called {word!r}{meant}")
        most = {"lag": 60.0, "seed": 2.0**53}.get(word, 1.0)
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number <= most:
            raise ValueError(f"{part!r} is not WORD=NUMBER with a number from 0 to {most:.0f}")
        chances.update(dict.fromkeys(FAULTS, number) if word == "all" else {word: number})
    return chances


class Faults:
    """A sandbox's `respond` with faults added. `wait` sleeps for simulated seconds."""

    def __init__(self, api: SandboxApi, spec: str, wait: Callable[[float], None]) -> None:
        self.api = api
        self.random = Random()
        self.seen: Counter[str] = Counter()
        self._wait = wait
        self._clock_off = 0
        fields = ("ordermin", "leverage_buy", "leverage_sell")
        self._listing = {p: {f: row[f] for f in fields} for p, row in api.markets.listing.items()}
        self._due: list[tuple[float, Callable[[], object]]] = []
        self._closed = ""  # The exchange's state, if a fault has changed it.
        # What lagging reads answered from a time on, by method and parameters.
        self._past: list[tuple[float, dict[str, Any]]] = []
        self._reads: dict[str, tuple[str, Params]] = {}
        self._seen_at, self._revision, self._prices = 0.0, -1, list[Decimal]()
        for name in _LAGGING:
            self._read_key(name, {"asset": "ZUSD"} if name == "TradeBalance" else {})
        self._stale: dict[str, Answer] = {}  # By pair.
        self._lock = threading.RLock()
        self.set(spec)

    def set(self, spec: str) -> None:
        """Replace the faults from now on; what an earlier one has changed is as before."""
        chances = parse(spec)
        self._clock_off = 0
        self._restore_rules()
        self._reopen()
        self.random.seed(int(chances.pop("seed", 1)))
        self.lag_s, self.chances = chances.pop("lag", 0.0), chances

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer to a request.

        Raises ConnectionRefusedError if it was never sent, ConnectionResetError if the connection
        breaks, TimeoutError if no answer will ever come.
        """
        request = method, target, headers, body
        if target.startswith("/sandbox/"):
            with self._lock:
                return self.api.respond(*request)
        name = target.partition("?")[0].rpartition("/")[2]
        with self._lock:
            self._catch_up()
            word = self._draw(name, method) if self.chances else ""
            self.seen[word] += 1
        if word in ("late", "overdue"):
            self._wait(self.random.uniform(*((0, 12) if word == "late" else (16, 19))))
        with self._lock:
            return self._with(word, name, request) if word else self._pass(name, request)

    def _draw(self, name: str, method: str) -> str:
        for word, chance in self.chances.items():
            if self.fits(word, name, method) and chance and self.random.random() < chance:
                return word
        return ""

    def fits(self, word: str, name: str, method: str) -> bool:
        """Return whether a fault can happen to a request for Kraken method `name`."""
        if word in _CANDLES:
            return name == "OHLC"
        if word in ("margin", "partial"):
            return name == "AddOrder"
        return method == "POST" or word not in ("nonce", "lockout")

    def _with(self, word: str, name: str, request: _Request) -> Answer:
        choice = self.random.choice
        if word in _UNREAD:
            raise _UNREAD[word](word)
        if word == "stuck":
            if name == "AddOrder":
                self._later(0, 60, partial(self._arrive, name, request))
            raise TimeoutError(word)
        if word in ("gateway", "html", "service", "unknown") and choice((True, False)):
            self.seen[f"{word}, executed"] += 1
            self._pass(name, request)
        if word in _PAGES:
            page = b"<html><h1>Something went wrong</h1></html>"
            return Answer(self._one_of(_PAGES[word]), "text/html", page)
        if word in _ERRORS:
            text = self._one_of(_ERRORS[word].split("|")).format(until=self.api.now() + 10)
            return Answer(200, "application/json", json.dumps({"error": [text]}).encode())
        usual_share = self.api.private_api.fill_share
        match word:
            case "partial":
                self.api.private_api.fill_share = Decimal(choice((0, 3, 50, 97))) / 100
            case "rules":
                self._change_rules()
            case "clock":
                self._clock_off = self.random.randint(-90, 90)
                self._later(60, 900, partial(setattr, self, "_clock_off", 0))
            case "maintenance" | "cancel_only" | "post_only":
                self.api.markets.status = self._closed = word
                self._later(60, 600, self._reopen)
        answer = self._pass(name, request)
        self.api.private_api.fill_share = usual_share
        if word in _UNANSWERED:
            raise _UNANSWERED[word](word)
        if word == "cut":
            return answer._replace(body=answer.body[: self.random.randrange(len(answer.body))])
        if word == "shape":
            return answer._replace(body=choice(_SHAPES))
        return self._candles(word, answer) if word in _CANDLES else answer

    def _one_of(self, choices: Sequence[Any]) -> Any:
        return self.random.choice(choices) if len(choices) > 1 else choices[0]

    def _pass(self, name: str, request: _Request) -> Answer:
        """Return the sandbox's answer, out of date if reads lag."""
        answer = self.api.respond(*request)
        self._look()
        if name == "Time" and self._clock_off:
            now = {"unixtime": int(self.api.now()) + self._clock_off, "rfc1123": ""}
            return answer._replace(body=json.dumps({"error": [], "result": now}).encode())
        if not self.lag_s or b'"result"' not in answer.body:
            return answer
        moment = self.api.now() - self.lag_s * self.random.choice((0, 1, 1, self.random.random()))
        params = parameters(request[2], request[3])
        if name in _LAGGING and (key := self._read_key(name, params)):
            known = [(time, seen[key]) for time, seen in self._past if key in seen]
            result = ([x for time, x in known if time <= moment] or [known[0][1]])[-1]
        elif name in ("OpenOrders", "ClosedOrders", "QueryOrders", "TradesHistory"):
            result = self._orders(name, moment, json.loads(answer.body)["result"], params)
        else:
            return answer
        return answer._replace(body=json.dumps({"error": [], "result": result}).encode())

    def _read_key(self, name: str, params: Params) -> str:
        """Return the key of a read in `_past`, kept there from now on; "" if there are too many."""
        params = {name: text for name, text in params.items() if name not in ("nonce", "otp")}
        key = f"{name} {sorted(params.items())}"
        if key not in self._reads and len(self._reads) < _READS_MAX:
            self._reads[key] = name, params
            if self._past:
                self._past[-1][1][key] = self.api.private_api.methods[name](params)
        return key if key in self._reads else ""

    def _look(self) -> None:
        """Remember what lagging reads answer now, if account or prices have changed."""
        account, methods = self.api.private_api.account, self.api.private_api.methods
        prices = [position.price for position in account.held_positions()]
        now, before, self._seen_at = self.api.now(), self._seen_at, self.api.now()
        if account.revision != self._revision or prices != self._prices:
            # Nobody knows when since the last look a price has changed.
            since = now if account.revision != self._revision else before
            self._revision, self._prices = account.revision, prices
            seen = {key: methods[name](params) for key, (name, params) in self._reads.items()}
            self._past = [*self._past[-99:], (since, seen)]

    def _orders(self, name: str, moment: float, result: Any, params: Params) -> Any:
        """Return rows as of `moment`; each order shows as open for its first 0 to 6 s."""
        if name == "TradesHistory":
            rows = {k: row for k, row in result["trades"].items() if row["time"] <= moment}
            return result | {"trades": rows} | ({"count": len(rows)} if "count" in result else {})
        rows = self.api.private_api.orders if name == "OpenOrders" else result.get("closed", result)
        running, ended = {}, {}
        for txid, row in list(rows.items())[-50:]:
            age = moment - row["opentm"]
            if age >= int(row["opentm"] * 1000) % 7:
                ended[txid] = row
            elif age >= 0:
                nothing = {"status": "open", "vol_exec": "0.00000000", "cost": "0.0", "fee": "0.0"}
                ends = ("closetm", "reason", "trades")
                running[txid] = {k: v for k, v in row.items() if k not in ends} | nothing
        if name == "QueryOrders":
            return running | ended
        if name == "ClosedOrders":
            return {**result, "closed": ended}
        return {"open": identified(running, params)}

    def _candles(self, word: str, answer: Answer) -> Answer:
        envelope = json.loads(answer.body)
        for key, rows in (envelope.get("result") or {}).items():
            if key == "last" or len(rows) < 2:
                continue
            if word == "candle-stale":
                before, self._stale[key] = self._stale.get(key, answer), answer
                return before
            place = self.random.randrange(len(rows) - 1)
            if word == "candle-late":
                del rows[-self.random.choice((1, 1, 2)) :]
            elif word == "candle-missing":
                del rows[place]
            else:
                rows.insert(place, rows[place])
        return answer._replace(body=json.dumps(envelope).encode())

    def _change_rules(self) -> None:
        for pair, row in self._listing.items():
            if self.random.choice((True, False)):
                least = Decimal(row["ordermin"]) * self.random.choice((40, 4000))
                self.api.markets.relist(pair, ordermin=str(least))
            else:
                leverages = self.random.choice(_LEVERAGES)
                self.api.markets.relist(pair, leverage_buy=leverages, leverage_sell=leverages)
        self._later(60, 900, self._restore_rules)

    def _restore_rules(self) -> None:
        for pair, row in self._listing.items():
            self.api.markets.relist(pair, **row)

    def _reopen(self) -> None:
        if self.api.markets.status == self._closed:
            self.api.markets.status = "online"

    def _arrive(self, name: str, request: _Request) -> None:
        # Its nonce was used when it was sent; only its delivery was slow.
        newest, self.api.nonce = self.api.nonce, 0
        self._pass(name, request)
        self.api.nonce = max(newest, self.api.nonce)

    def _later(self, least_s: float, most_s: float, action: Callable[[], object]) -> None:
        self._due.append((self.api.now() + self.random.uniform(least_s, most_s), action))

    def _catch_up(self) -> None:
        for due in [due for due in self._due if due[0] <= self.api.now()]:
            self._due.remove(due)
            due[1]()
