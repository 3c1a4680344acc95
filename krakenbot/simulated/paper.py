"""Paper mode: Kraken's real public methods, and private ones of a simulated account.

The bot's `Spot` uses this client in place of the real one. In validate mode two private methods do
go to Kraken: GetApiKeyInfo, and AddOrder with `validate`.
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Any

from krakenbot.clock import Clock
from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.journal import Journal
from krakenbot.kraken.client import result_of
from krakenbot.kraken.shape import Methods, parse_candles
from krakenbot.kraken.spot import Spot
from krakenbot.model import ZERO, Quote, Side
from krakenbot.pairs import PairRules
from krakenbot.simulated.books import Account, Entry, Lot
from krakenbot.simulated.private import PrivateApi, Span
from krakenbot.simulated.wire import Answer

ROWS_KEPT, LEDGER_KEPT = 60, 2500  # Orders and trades; ledger entries, a year of rollovers.
OPENING_S = 60  # An order comes within this time after the start of a candle.
QUOTE_S = 5  # Reads of the account use a quote again until it is this old.
_NO_KEY = {"permissions": [], "nonce": "0", "iban": ""}
_NOT_VALIDATED = ("cl_ord_id", "deadline", "reduce_only")  # Left out when Kraken validates.


class PaperClient:
    """Kraken's methods by name, on the real market and a simulated account.

    A fill is in the journal before its order is answered. With `validates` Kraken checks each order
    first, and may refuse it. This class is the account's `Markets`, too. Its status is always
    `online`, because the bot itself asks Kraken for the real one.
    """

    status = "online"

    def __init__(
        self,
        real: Methods,
        market: Spot,
        clock: Clock,
        journal: Journal,
        *,
        fee_rate: Decimal,
        balance: Decimal,
        validates: bool = False,
    ) -> None:
        self._real, self._market, self._clock, self._journal = real, market, clock, journal
        self._fee_rate, self._balance, self._validates = fee_rate, balance, validates
        self.rules: dict[str, PairRules] = {}
        self._quoted: tuple[float, Quote] | None = None
        self._swept, self._saved = 0, -1

    def public(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        """Return the result of a public method. Candles may liquidate the position."""
        result = self._real.public(method, params)
        if method == "OHLC" and params:
            self._sweep(result, int(str(params["interval"])) * 60)
        return result

    def private(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        """Return the result of a private method of the simulated account.

        Raises as `Client` does, and LaterError if Kraken gives no quote or does not validate.
        """
        if method == "GetApiKeyInfo":
            return self._real.private(method) if self._validates else _NO_KEY
        form = {name: str(value) for name, value in (params or {}).items()}
        api = self.private_api
        if method == "AddOrder":
            self._prepare(form)
        try:
            api.mark_to_market()
            reply = Answer.of({"error": [], "result": api.methods[method](form)})
        except RefusedError as error:
            reply = Answer.of({"error": [str(error)]})
        self._save()
        return result_of(method, 200, reply.body)

    # The account's `Markets`

    def pair(self, name: str, again: bool = False) -> PairRules:
        """Return the rules of the one pair; with `again` those that the bot has read last."""
        if again or not self.rules:
            rules = self._market.known_rules()
            self.rules = {rules.pair: rules}
        return next(iter(self.rules.values()))

    def quote(self, rules: PairRules) -> Quote:
        """Return the real quote, at most five seconds old."""
        now, quoted = self._clock.now(), self._quoted
        if quoted is None or not 0 <= now - quoted[0] < QUOTE_S:
            self._quoted = quoted = now, self._market.quote()
        return quoted[1]

    def ended(self, rules: PairRules, since: float, until: float) -> Iterable[Span]:
        """Return no intervals: the candles that the bot reads show them."""
        return ()

    def _prepare(self, form: Mapping[str, str]) -> None:
        """Read quote and margin rates for an order and, in validate mode, let Kraken check it."""
        self._quoted = None
        try:
            rules = self.pair("", again=True)
            self.quote(rules)
            if "leverage" in form:
                rates = self._market.margin_rates()
                lent = {rules.quote: rates.of(Side.BUY), rules.base: rates.of(Side.SELL)}
                self.private_api.account.margin_rates = lent
            if self._validates:
                sent = {k: v for k, v in form.items() if k not in _NOT_VALIDATED}
                self._real.private("AddOrder", sent | {"validate": "true"})
        except UnansweredError as error:
            raise LaterError(f"nothing was filled: {error}") from error

    def _sweep(self, result: Any, interval_s: int) -> None:
        """Liquidate if a candle that is newly finished has reached the liquidation price."""
        api, candles = self.private_api, parse_candles(result, interval_s)
        position = api.account.position(self.pair(""))
        for candle in candles[:-1]:
            # What was opened later in the candle may never have seen its low.
            is_seen = position.lots and position.lots[-1].time <= candle.time + OPENING_S
            if is_seen and candle.time >= self._swept:
                api.mark(self._clock.now(), position, position.price, candle.low, candle.high)
        self._swept = max([self._swept, *(candle.time for candle in candles)])
        self._save()

    @cached_property
    def private_api(self) -> PrivateApi:
        """Return the account, read from the journal at first use.

        Raises StopError if it cannot be read.
        """
        rules, text = self.pair(""), self._journal.get("paper")
        serial, money = int(self._clock.now()) * 1000, {rules.quote: self._balance}
        account = Account(money, self._fee_rate, serial=serial, history=LEDGER_KEPT)
        api = PrivateApi(self, account, self._clock.now)
        api.history = ROWS_KEPT
        if not text:
            return api
        try:
            state = json.loads(text)
            restore(account, state["account"], self.rules)
            api.orders, api.trades = _rows_of(state, rules)
            self._swept, self._saved = state["swept"], account.serial
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise StopError(
                f"the paper account in the journal cannot be read ({error!r:.80}); move the "
                "journal away to start a new one"
            ) from error
        return api

    def _save(self) -> None:
        """Save a change. If that fails, forget it, so that memory is never ahead of the disk."""
        api = self.private_api
        if api.account.serial == self._saved:
            return
        state = {"account": state_of(api.account), "swept": self._swept}
        state |= {"orders": api.orders, "trades": api.trades}
        try:
            self._journal.put(paper=json.dumps(state, default=str))
        except BaseException:
            del self.private_api
            raise
        self._saved = api.account.serial


def state_of(account: Account) -> dict[str, Any]:
    """Return an account as values for JSON, from which `restore` makes exactly the same one."""
    sums = [account.balances, account.fees, account.rollovers, account.realized]
    books = {pair: [position.price, position.lots] for pair, position in account.positions.items()}
    state = {"numbers": [account.serial], "sums": sums}
    return state | {"ledger": list(account.ledger), "books": books}


def restore(account: Account, state: dict[str, Any], rules: Mapping[str, PairRules]) -> None:
    """Load saved state into a new account; `rules` has those of each pair in it by its key."""
    account.serial = state["numbers"][0]
    sums = account.balances, account.fees, account.rollovers, account.realized
    for amounts, texts in zip(sums, state["sums"], strict=True):
        amounts.clear()
        amounts.update((asset, Decimal(text)) for asset, text in texts.items())
    for entry in state["ledger"]:
        account.ledger.append(Entry(*entry[:5], *map(Decimal, entry[5:])))
    for pair, (price, lots) in state["books"].items():
        position = account.position(rules[pair])
        position.price = Decimal(price)
        position.lots = [
            # Before version 0.3.5 a lot had the number of its order in second place.
            Lot._make(Decimal(x) if isinstance(x, str) else x for x in (lot[0], *lot[-10:]))
            for lot in lots
        ]
        position.held = sum((lot.open_volume for lot in position.lots), ZERO)
        position.cost_left = sum((lot.cost_left for lot in position.lots), ZERO)


def _rows_of(state: dict[str, Any], rules: PairRules) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return saved orders and trades by id; those of version 0.2.0 are converted."""
    if isinstance(state["orders"], dict):
        return state["orders"], state["trades"]
    orders = {
        txid: {"cl_ord_id": name, "status": status, "vol_exec": volume, "cost": cost, "fee": fee}
        | {"reason": reason, "opentm": time, "closetm": time, "userref": 0}
        for time, name, txid, status, volume, cost, fee, reason in state["orders"]
    }
    trades = {
        trade_id: {"ordertxid": order_id, "pair": rules.pair, "time": time, "cost": cost}
        for _, trade_id, order_id, time, cost, *_ in state.get("charges", ())
    }
    return orders, trades
