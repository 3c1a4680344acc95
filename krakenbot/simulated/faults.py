"""Fault injection around the sandbox: what networks, gateways and exchanges do to requests.

A spec such as `lost-after=0.02,lag=30,seed=7` gives each fault its probability per request; `all`
gives one to every fault. Reads are up to `lag` seconds out of date. `seed` makes a run repeatable.
"""

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy, deepcopy
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from random import Random
from typing import Any

from krakenbot.errors import RefusedError
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.books import Account
from krakenbot.simulated.listing import Row
from krakenbot.simulated.private import PrivateApi
from krakenbot.simulated.wire import Answer, Params, parameters

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
_ONLY = dict.fromkeys(_CANDLES, "OHLC") | dict.fromkeys(("margin", "partial"), "AddOrder")
_LATE_S = {"late": (0, 12), "overdue": (16, 19)}
_UNREAD = {"refused": ConnectionRefusedError, "lost-before": ConnectionResetError}
_UNANSWERED = {"lost-after": ConnectionResetError, "timeout": TimeoutError}
# Instead of the answer comes a page with one of these statuses, or one of these errors.
_PAGES = {"gateway": (502, 504, 520), "html": (200,)}
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
_SHAPES = b"""[] "x" {"error":[]} {"result":{}} {"error":"EGeneral:x","result":{}}
    {"error":[],"result":null} {"error":[],"result":"x"} {"error":[],"result":[null]}
    {"error":[],"result":{"x":null}} {"error":[7],"result":{}} {"error":[],"result":5}""".split()
_LEVERAGES: tuple[list[int], ...] = ([], [3, 4, 5], [2], [5, 10])

_Request = tuple[str, str, Mapping[str, str], bytes]


def parse(spec: str) -> dict[str, float]:
    """Return the number of each word in a spec. Raises ValueError, which names the wrong part."""
    chances: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        word, _, text = part.partition("=")
        if word not in (known := [*FAULTS, "all", "lag", "seed"]):
            near = get_close_matches(word[:80], known, 1, 0.0)[0]
            raise ValueError(f"no fault is called {word[:80]!r}; did you mean {near}?")
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
    """Adds faults and their control to a sandbox. `wait` sleeps for simulated seconds."""

    def __init__(self, api: SandboxApi, spec: str, wait: Callable[[float], None]) -> None:
        self.api = api
        self.random = Random()
        self.seen: Counter[str] = Counter()
        self._wait = wait
        fields = ("ordermin", "leverage_buy", "leverage_sell")
        self._listing = {p: {f: row[f] for f in fields} for p, row in api.markets.listing.items()}
        self._due: list[tuple[float, Callable[[], object]]] = []
        self._past: list[tuple[float, Account]] = []  # The account, as it was from a time on.
        self._looked_at, self._seen = 0.0, (-1, list[Decimal]())
        self._stale: dict[tuple[str, int], Answer] = {}  # By pair and interval.
        self.set(spec)
        api.controls["faults"] = lambda params: self.set(str(params["spec"]))

    def set(self, spec: str) -> None:
        """Replace the faults; what earlier ones have delayed happens now.

        Raises ValueError for a wrong spec.
        """
        chances = parse(spec)
        self._catch_up(math.inf)
        self.random.seed(int(chances.pop("seed", 1)))
        self.lag_s, self.chances = chances.pop("lag", 0.0), chances

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer to a request, after faults.

        Raises ConnectionRefusedError if it is never sent, ConnectionResetError if the connection
        breaks, TimeoutError if no answer will ever come.
        """
        request = method, target, headers, body
        if target.startswith("/sandbox/"):
            return self.api.respond(*request)
        name = target.partition("?")[0].rpartition("/")[2]
        with self.api.lock:
            self._catch_up(self.api.now())
            word = self._draw(name, method) if self.chances else ""
            self.seen[word] += 1
        if word in _LATE_S:
            self._wait(self.random.uniform(*_LATE_S[word]))
        with self.api.lock:
            return self._with(word, name, request) if word else self._pass(name, request)

    def _draw(self, name: str, method: str) -> str:
        for word, chance in self.chances.items():
            if self.fits(word, name, method) and self.random.random() < chance:
                return word
        return ""

    def fits(self, word: str, name: str, method: str) -> bool:
        """Return whether a fault can happen to a request for Kraken's method `name`."""
        is_private = method == "POST" or word not in ("nonce", "lockout")
        return is_private and name == _ONLY.get(word, name)

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
            return Answer(choice(_PAGES[word]), "text/html", page)
        if word in _ERRORS:
            text = choice(_ERRORS[word].split("|")).format(until=self.api.now() + 10)
            return Answer.of({"error": [text]})
        usual_share = self.api.private_api.fill_share
        match word:
            case "partial":
                self.api.private_api.fill_share = Decimal(choice((0, 3, 50, 97))) / 100
            case "rules":
                self._change_rules()
            case "clock":
                self.api.markets.clock_off_s = self.random.randint(-90, 90)
                self._later(60, 900, partial(setattr, self.api.markets, "clock_off_s", 0))
            case "maintenance" | "cancel_only" | "post_only":
                self.api.markets.status = word
                self._later(60, 600, partial(self._reopen, word))
        answer = self._pass(name, request)
        self.api.private_api.fill_share = usual_share
        if word in _UNANSWERED:
            raise _UNANSWERED[word](word)
        if word == "cut":
            return answer._replace(body=answer.body[: self.random.randrange(len(answer.body))])
        if word == "shape":
            return answer._replace(body=choice(_SHAPES))
        return self._candles(word, answer) if word in _CANDLES else answer

    def _pass(self, name: str, request: _Request) -> Answer:
        """Return the sandbox's answer, out of date if reads lag."""
        answer = self.api.respond(*request)
        self._look()
        if not self.lag_s or b'"result"' not in answer.body:
            return answer
        moment = self.api.now() - self.lag_s * self.random.choice((0, 1, 1, self.random.random()))
        if request[0] == "POST" and name not in ("AddOrder", "GetApiKeyInfo"):
            with suppress(RefusedError):  # The id at which the list shall start may be unknown yet.
                result = self._read(name, parameters(request[2], request[3]), moment)
                return Answer.of({"error": [], "result": result})
        return answer

    def _look(self) -> None:
        """Keep a copy of the account if it, or the price of a position, has changed."""
        account, now = self.api.account, self.api.now()
        seen = account.serial, [position.price for position in account.held_positions()]
        if seen != self._seen:
            # A price may have changed at any time since the last look.
            since = now if seen[0] != self._seen[0] else self._looked_at
            then = copy(account)
            then.balances, then.positions = deepcopy((account.balances, account.positions))
            self._past = [*self._past[-99:], (since, then)]
        self._seen, self._looked_at = seen, now

    def _read(self, name: str, params: Params, moment: float) -> Any:
        """Return the result of a private method as of `moment`."""
        now, known = self.api.private_api, [account for at, account in self._past if at <= moment]
        account = known[-1] if known else self._past[0][1]
        account.ledger = deque(x for x in now.account.ledger if x.time <= moment)
        then = PrivateApi(self.api.markets, account, self.api.now)
        orders = ((key, _as_of(row, moment)) for key, row in now.orders.items())
        then.orders = {key: row for key, row in orders if row}
        then.trades = {key: row for key, row in now.trades.items() if row["time"] <= moment}
        return then.methods[name](params)

    def _candles(self, word: str, answer: Answer) -> Answer:
        envelope = json.loads(answer.body)
        pair, rows = next(iter(envelope.get("result", {}).items()), ("", []))
        if len(rows) < 2:
            return answer
        if word == "candle-stale":
            key = pair, rows[1][0] - rows[0][0]
            before, self._stale[key] = self._stale.get(key, answer), answer
            return before
        place = self.random.randrange(len(rows) - 1)
        if word == "candle-late":
            del rows[-self.random.choice((1, 1, 2)) :]
        elif word == "candle-missing":
            del rows[place]
        else:
            rows.insert(place, rows[place])
        return Answer.of(envelope)

    def _change_rules(self) -> None:
        choice = self.random.choice
        for pair, row in self._listing.items():
            if choice((True, False)):
                changes: Row = {"ordermin": str(Decimal(row["ordermin"]) * choice((40, 4000)))}
            else:
                changes = dict.fromkeys(("leverage_buy", "leverage_sell"), choice(_LEVERAGES))
            self.api.markets.relist(pair, **changes)
        self._later(60, 900, self._restore_rules)

    def _restore_rules(self) -> None:
        for pair, row in self._listing.items():
            self.api.markets.relist(pair, **row)

    def _reopen(self, word: str) -> None:
        if self.api.markets.status == word:  # Else somebody has set another status.
            self.api.markets.status = "online"

    def _arrive(self, name: str, request: _Request) -> None:
        # The nonce was good when the request was sent; only the delivery was slow.
        newest, self.api.nonce = self.api.nonce, 0
        self._pass(name, request)
        self.api.nonce = max(newest, self.api.nonce)

    def _later(self, least_s: float, most_s: float, action: Callable[[], object]) -> None:
        self._due.append((self.api.now() + self.random.uniform(least_s, most_s), action))

    def _catch_up(self, until: float) -> None:
        for due in [due for due in self._due if due[0] <= until]:
            self._due.remove(due)
            due[1]()


def _as_of(order: Row, moment: float) -> Row | None:
    """Return an order as of `moment`: open for its first 0 to 6 s; None before it was sent."""
    age = moment - order["opentm"]
    if not 0 <= age < int(order["opentm"] * 1000) % 7:
        return order if age >= 0 else None
    nothing = dict.fromkeys(("vol_exec", "cost", "fee", "price"), "0.00000")
    ends = ("closetm", "reason", "trades")
    return {k: v for k, v in order.items() if k not in ends} | {**nothing, "status": "open"}
