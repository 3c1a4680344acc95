"""More that an exchange may do: well-formed answers that are not true, and views that are dead.

The words of krakenbot.simulated.faults are what a sandbox can do to anybody's client; these are
for the simulation alone.
"""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from krakenbot.simulated.faults import FAULTS, Faults, _Request
from krakenbot.simulated.wire import Answer

LIES = {
    "other-candles": "the candles of another pair",
    "other-order": "the row of another order",
    "time-lie": "a time hours off",
    "future": "candles of the future",
    "shifted": "the answer to the request before",
    "flat": "no position, although there is one",
    "foreign-ledger": "rows of the ledger in other assets",
}
STATES = {
    "dead-view": "one way of reading fails for hours",
    "pool": "the lending pool is empty for some minutes",
    "key": "EAPI:Invalid key",
    "delisted": "the pair is not known for some minutes",
    "closed": "the pair is in another state for some minutes",
    "late-fill": "a cancelled order's fill shows a second later",
    "no-deadline": "an order that comes too late is carried out all the same",
    "yes-after-no": "an order is refused for now, and carried out all the same",
}
WORDS = LIES | STATES
_WHERE = {
    "other-candles": "OHLC",
    "other-order": "QueryOrders",
    "time-lie": "Time",
    "future": "OHLC",
    "flat": "OpenPositions",
    "foreign-ledger": "Ledgers",
    "pool": "AddOrder",
    "late-fill": "AddOrder",
    "no-deadline": "AddOrder",
    "yes-after-no": "AddOrder",
    "delisted": "AssetPairs",
}
ORDER_VIEWS = {"OpenOrders": "open", "ClosedOrders": "closed", "QueryOrders": ""}
ALL_VIEWS = ORDER_VIEWS | {"TradesHistory": "trades"}
_VIEWS = ("OpenPositions", "TradeBalance", "OpenOrders", "ClosedOrders", "TradesHistory", "OHLC")
_PAIR_STATES = ("cancel_only", "post_only", "limit_only", "reduce_only", "delisted")


class Trouble(Faults):
    """All faults of one simulated exchange; `strikes` may spare the bot one that was drawn."""

    strikes: Callable[[str], bool]

    def __init__(self, api: Any, wait: Callable[[float], None]) -> None:
        super().__init__(api, "", wait)
        self.words = FAULTS | WORDS
        self.refused_keys: list[float] = []  # When the key or its nonce was refused.
        self._before: Answer | None = None
        # Views that show nothing of what has happened since then.
        self.dark: Mapping[str, str] = {}
        self.dark_from = 0.0
        self._dead: dict[str, float] = {}  # The view, and until when.
        self._pool_until = self._unknown_until = self._hidden_until = 0.0

    def lasts_until(self) -> float:
        """Return when all that goes on for a while is over."""
        states = [self._pool_until, self._unknown_until, *self._dead.values()]
        states += [when for when, _ in self._due]
        if self.refused_keys:  # After a lockout nothing private is asked for 15 minutes.
            states.append(self.refused_keys[-1] + 960)
        return max(states)

    def _draw(self, name: str, method: str) -> str:
        for word, chance in self.chances.items():
            if word not in self.words or self.random.random() >= chance:
                continue
            if word in WORDS:
                fits = _WHERE.get(word, name) == name and (method == "POST" or word != "key")
            else:
                fits = self.fits(word, name, method)
            if fits and self.strikes(f"{word} {name}"):
                return word
        return ""

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = super().respond(method, target, headers, body)
        # Nobody can tell that two equal answers both hide the same fill.
        self._before = answer if self.api.now() >= self._hidden_until else None
        if b'"EAPI:Invalid' in answer.body or b"lockout" in answer.body:
            self.refused_keys.append(self.api.now())
        return answer

    def _pass(self, name: str, request: _Request) -> Answer:
        now = self.api.now()
        if self._dead.get(name, 0.0) > now:
            return _error("EService:Unavailable")
        if self._unknown_until > now and name == "AssetPairs":
            return _error("EQuery:Unknown asset pair")
        if self._pool_until > now and name == "AddOrder" and b"reduce_only" not in request[3]:
            return _error("EOrder:Insufficient margin")
        answer = super()._pass(name, request)
        if now < self._hidden_until and name in ("QueryOrders", "ClosedOrders"):
            return _without_newest_fill(answer)
        return self._darkened(name, answer) if name in self.dark else answer

    def _darkened(self, name: str, answer: Answer) -> Answer:
        envelope = json.loads(answer.body)
        key, result = self.dark[name], envelope.get("result") or {}
        rows = result.get(key, {}) if key else result
        for txid in [
            t for t, r in rows.items() if r.get("opentm", r.get("time")) >= self.dark_from
        ]:
            del rows[txid]
        return answer._replace(body=json.dumps(envelope).encode())

    def _with(self, word: str, name: str, request: _Request) -> Answer:
        if word not in WORDS:
            return super()._with(word, name, request)
        now, choice = self.api.now(), self.random.choice
        match word:
            case "dead-view":
                self._dead[name if name in _VIEWS else choice(_VIEWS)] = now + choice((600, 9000))
            case "pool":
                self._pool_until = now + choice((20, 300, 1200))
            case "delisted":
                self._unknown_until = now + choice((20, 300, 1200))
            case "yes-after-no":
                self._pass(name, request)
                return _error(choice(("EAPI:Rate limit exceeded", "EService:Market in post_only")))
            case "key":
                return _error("EAPI:Invalid key")
            case "closed":
                for pair in self.api.markets.listing:
                    self.api.markets.relist(pair, status=choice(_PAIR_STATES))
                self._later(60, 900, self._open_pairs)
            case "late-fill":
                self.api.private_api.fill_share = Decimal(choice((30, 50, 97))) / 100
            case "no-deadline":
                self._wait(self.random.uniform(16, 19))
                text = request[3].decode().replace("deadline=", "late=")
                request = (*request[:2], _signed_again(self.api, request, text), text.encode())
        before = self._before
        answer = self._pass(name, request)
        if word == "late-fill":
            self.api.private_api.fill_share = Decimal(1)
            self._hidden_until = self.api.now() + 0.9
        if word == "shifted":
            return before or answer
        return self._lie(word, answer) if word in LIES else answer

    def _open_pairs(self) -> None:
        for pair in self.api.markets.listing:
            self.api.markets.relist(pair, status="online")

    def _lie(self, word: str, answer: Answer) -> Answer:
        envelope = json.loads(answer.body)
        result = envelope.get("result")
        if not result:
            return answer
        match word:
            case "time-lie":
                result["unixtime"] += self.random.choice((-7200, -600, 600, 7200, 86400))
            case "flat":
                result = {}
            case "other-candles":
                pair = next(key for key in result if key != "last")
                rows = [[row[0], *row[5:0:-1], *row[6:]] for row in result[pair]]
                for row in rows:  # Of the same time, with a price of its own.
                    price = f"{Decimal(row[5 - row[0] // 60 % 5 or 1]) / 20:.2f}"
                    row[1:6] = [price] * 5
                other = "XXBTZUSD" if pair == "XETHZUSD" else "XETHZUSD"
                result = {other: rows, "last": result["last"]}
            case "future":
                for rows in (rows for key, rows in result.items() if key != "last"):
                    step = rows[-1][0] - rows[-2][0] if len(rows) > 1 else 60
                    ahead = step * self.random.choice((1, 15, 600))
                    rows[:] = [[row[0] + ahead, *row[1:]] for row in rows]
            case "other-order":
                result = {key: row | {"cl_ord_id": "another"} for key, row in result.items()}
                result = {f"O{key[1:][::-1]}": row for key, row in result.items()}
            case "foreign-ledger":
                for key, row in list(result["ledger"].items()):
                    result["ledger"][f"L{key[1:][::-1]}"] = row | {"asset": "SOL", "fee": "3.1"}
        return answer._replace(body=json.dumps({"error": [], "result": result}).encode())


def _without_newest_fill(answer: Answer) -> Answer:
    envelope = json.loads(answer.body)
    rows = envelope.get("result") or {}
    rows = rows.get("closed", rows)
    for row in sorted(rows.values(), key=lambda row: row["opentm"])[-1:]:
        row |= {"vol_exec": "0.00000000", "cost": "0.00000", "fee": "0.00000"}
    return answer._replace(body=json.dumps(envelope).encode())


def _signed_again(api: Any, request: _Request, text: str) -> Mapping[str, str]:
    from krakenbot.kraken.signing import sign

    fields = dict(pair.split("=", 1) for pair in text.split("&"))
    signature = sign(api.secret, request[1], fields["nonce"], text.encode())
    return {**request[2], "api-sign": signature}


def _error(text: str) -> Answer:
    return Answer(200, "application/json", json.dumps({"error": [text]}).encode())
