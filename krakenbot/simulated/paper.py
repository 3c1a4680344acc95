"""Paper mode: the port of exchange.py on live prices and simulated books.

Also the checks of an order that the sandbox's server shares with it.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

from krakenbot.clock import Clock
from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Market
from krakenbot.model import (
    ZERO,
    Candle,
    Charge,
    ChargeKind,
    Execution,
    KeyInfo,
    MarginRates,
    MarginSummary,
    Order,
    OrderStatus,
    Position,
    Quote,
    Side,
    SystemStatus,
)
from krakenbot.pairs import PairRules
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.simulated.books import Account, Book, Entry, Lot, identifier

FEE_RATE = FEE_RATE_ASSUMED
START_BALANCE = Decimal(10000)
ORDERS_KEPT, LEDGER_KEPT, CHARGES_KEPT = 20, 50, 60
# Reading the account asks the market for a price only when the last one is older.
QUOTE_S = 5


class Store(Protocol):
    """Where paper mode keeps its account between ticks."""

    def load(self) -> str | None:
        """Return the text of the last save, or None."""

    def save(self, state: str) -> None:
        """Keep the text; when this returns it must survive a crash."""


def state_of(account: Account) -> dict[str, Any]:
    """Return the whole account as what JSON can write, for `account_of` to read back exactly."""
    return {
        "rates": [account.fee_rate, account.margin_rate],
        "numbers": [account.serial, account.revision, account.ledger.maxlen],
        "sums": [account.balances, account.fees, account.rollovers, account.realized],
        "ledger": list(account.ledger),
        "books": {pair: [book.price, book.lots] for pair, book in account.books.items()},
    }


def account_of(state: dict[str, Any], rules: Iterable[PairRules]) -> Account:
    """Return the account that was written; `rules` of every pair it has a book of."""
    fee_rate, margin_rate = map(Decimal, state["rates"])
    serial, revision, history = state["numbers"]
    account = Account({}, fee_rate, margin_rate=margin_rate, serial=serial, history=history)
    account.revision = revision
    sums = account.balances, account.fees, account.rollovers, account.realized
    for amounts, texts in zip(sums, state["sums"], strict=True):
        amounts.update((asset, Decimal(text)) for asset, text in texts.items())
    for entry in state["ledger"]:
        account.ledger.append(Entry(*entry[:5], *map(Decimal, entry[5:])))
    known = {pair_rules.pair: pair_rules for pair_rules in rules}
    for pair, (price, lots) in state["books"].items():
        book = account.book(known[pair])
        book.price = Decimal(price)
        book.lots = [
            Lot._make(Decimal(x) if isinstance(x, str) else x for x in lot) for lot in lots
        ]
        book.held = sum((lot.open_volume for lot in book.lots), ZERO)
        book.cost_left = sum((lot.cost_left for lot in book.lots), ZERO)
    return account


class PaperExchange:
    """A simulated account on a real market. A fill is saved before `place` returns.

    `validate` is called with each order before it is filled and may refuse it.
    """

    def __init__(
        self,
        market: Market,
        clock: Clock,
        store: Store,
        *,
        fee_rate: Decimal = FEE_RATE,
        start_balance: Decimal = START_BALANCE,
        validate: Callable[[Order], None] | None = None,
        margin_rates: Mapping[str, Decimal] | None = None,
    ) -> None:
        self._market, self._clock, self._store = market, clock, store
        self._fee_rate = fee_rate
        self._start_balance = start_balance
        self._validate = validate
        self._margin_rates = margin_rates
        self._account: Account | None = None
        self._orders: list[tuple[float, Execution]] = []
        self._charges: list[Charge] = []
        self._rules: PairRules | None = None
        self._quoted: tuple[float, Quote] | None = None
        self._swept = 0
        self._saved = -1

    def server_time(self) -> int:
        return self._market.server_time()

    def market_status(self) -> SystemStatus:
        return self._market.market_status()

    def margin_rates(self) -> MarginRates:
        return self._market.margin_rates()

    def key_info(self) -> KeyInfo:
        return KeyInfo(())

    def rules(self) -> PairRules:
        self._rules = self._market.rules()
        return self._rules

    def quote(self) -> Quote:
        self._quoted = self._clock.now(), self._market.quote()
        return self._quoted[1]

    def candles(self, since: int | None) -> Sequence[Candle]:
        """Return the market's candles; those that ended meanwhile count for liquidation."""
        candles = self._market.candles(since)
        if not candles:
            return candles
        account, book = self._open()
        for candle in candles[:-1]:
            if self._swept and book.lots and candle.time >= self._swept:
                account.sweep(book, self._clock.now(), candle.low, candle.high)
        self._swept = max(self._swept, candles[-1].time)
        self._save()
        return candles

    def summary(self) -> MarginSummary:
        account, book, _ = self._advanced()
        return account.summary(book.rules.quote)

    def balances(self) -> Mapping[str, Decimal]:
        return dict(self._open()[0].balances)

    def position(self) -> Position:
        _, book, _ = self._advanced()
        return Position(book.volume, book.cost_left)

    def charges(self, since: int, until: int) -> Sequence[Charge]:
        account, _, _ = self._advanced()
        rollovers = (
            Charge(
                identifier("L", entry.serial),
                identifier("T", entry.refid),
                "",
                int(entry.time),
                ZERO,
                entry.fee,
                entry.asset,
                ChargeKind.ROLLOVER,
            )
            for entry in account.ledger
            if entry.type == "rollover" and since < int(entry.time) <= until
        )
        return [*(c for c in self._charges if since < c.time <= until), *rollovers]

    def fee_rate(self) -> Decimal:
        return self._fee_rate

    def place(self, order: Order, deadline: int) -> None:
        if self.find(order.client_order_id, 0) is not None:
            raise UnansweredError("EGeneral:Invalid arguments:cl_ord_id not unique")
        self.quote()
        account, book, quote = self._advanced()
        price = quote.ask if order.side is Side.BUY else quote.bid
        refusal = objection(
            book.rules, order.side, order.volume, order.leverage, price, order.reduce_only
        )
        if refusal is not None:
            raise LaterError(refusal) if "Market in" in refusal else RefusedError(refusal)
        if self._validate is not None:
            self._validate(order)
        now = self._clock.now()
        if now > deadline:
            raise LaterError("EService:Deadline elapsed")
        account.serial = number = account.serial + 1
        trades = execute(
            account,
            book,
            now,
            order.side,
            order.volume,
            quote,
            order.leverage,
            order.reduce_only,
            number,
        )
        volume, cost, fee = (
            sum(column, ZERO)
            for column in zip(*((x.volume, x.cost, x.fee) for x in trades), strict=True)
        )
        status, reason = OrderStatus.CLOSED, ""
        if volume != order.volume:
            status, reason = OrderStatus.CANCELED, "Reduce only:Position is closed"
        execution = Execution(
            order.client_order_id, identifier("O", number), status, volume, cost, fee, reason
        )
        self._orders = [*self._orders, (now, execution)][-ORDERS_KEPT:]
        charges = (
            Charge(
                identifier("L", x.serial),
                identifier("T", x.serial),
                identifier("O", number),
                int(now),
                x.cost,
                x.fee + x.opening_fee,
                book.rules.quote,
            )
            for x in trades
        )
        self._charges = [*self._charges, *charges][-CHARGES_KEPT:]
        self._save()

    def find(self, client_order_id: str, since: int) -> Execution | None:
        self._open()
        return next((x for _, x in self._orders if x.client_order_id == client_order_id), None)

    def traded_orders(self, since: int, until: int) -> Sequence[str]:
        self._open()
        return [x.exchange_order_id for time, x in self._orders if since <= time <= until]

    def _open(self) -> tuple[Account, Book]:
        """Return account and book, read from the store the first time."""
        rules = self._rules or self.rules()
        account = self._account
        if account is None and (text := self._store.load()) is not None:
            try:
                account = self._restored(json.loads(text), rules)
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                raise StopError(
                    f"the paper account in the journal cannot be read ({error!r:.80}); move the "
                    "journal away to begin with a new one"
                ) from error
        elif account is None:
            account = Account(
                {rules.quote: self._start_balance},
                self._fee_rate,
                margin_rates=self._margin_rates,
                serial=int(self._clock.now()) * 1000,
                history=LEDGER_KEPT,
            )
        self._account = account
        return account, account.book(rules)

    def _advanced(self) -> tuple[Account, Book, Quote]:
        """Return account and book as they are at the market's quote, some seconds old at most."""
        account, book = self._open()
        now, quoted = self._clock.now(), self._quoted
        quote = quoted[1] if quoted and 0 <= now - quoted[0] < QUOTE_S else self.quote()
        account.advance(book, now, quote.mid)
        self._save()
        return account, book, quote

    def _restored(self, state: dict[str, Any], rules: PairRules) -> Account:
        account = account_of(state["account"], [rules])
        account.fee_rate = self._fee_rate
        account.margin_rates = dict(self._margin_rates or {})
        self._saved = account.revision
        self._swept = state["swept"]
        for time, name, txid, status, *numbers, reason in state["orders"]:
            volume, cost, fee = map(Decimal, numbers)
            execution = Execution(name, txid, OrderStatus(status), volume, cost, fee, reason)
            self._orders.append((time, execution))
        self._charges = [
            Charge(*row[:4], *map(Decimal, row[4:6]))._replace(asset=rules.quote)
            for row in state.get("charges", ())
        ]
        return account

    def _save(self) -> None:
        """Save if anything changed; on failure forget it, so that memory never leads the disk."""
        account = self._account
        if account is None or account.revision == self._saved:
            return
        orders = [[time, *x[:2], x.status.value, *x[3:]] for time, x in self._orders]
        state = {
            "account": state_of(account),
            "swept": self._swept,
            "orders": orders,
            "charges": [charge[:6] for charge in self._charges],
        }
        try:
            self._store.save(json.dumps(state, default=str))
        except BaseException:
            self._account, self._orders, self._charges = None, [], []
            raise
        self._saved = account.revision
