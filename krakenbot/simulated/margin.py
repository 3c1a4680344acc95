"""The books of a simulated account: spot balances and margin lots, pure arithmetic.

One quote currency is one margin account: its balance is the collateral of the pairs quoted in it,
other assets do not count. Costs, fees, opening fees, rollovers and the opening cost of a part that
is closed are each rounded once, half to even, to the pair's cost decimals; everything else is a
sum of those, so equity = start - fees - rollover + realized + unrealized to the last digit.

Sources: Kraken support, articles on margin fees, margin levels and liquidation.
"""

import json
from base64 import b32encode
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from hashlib import blake2b
from typing import NamedTuple

from krakenbot.errors import RefusedError
from krakenbot.model import ZERO
from krakenbot.pairs import PairRules

ROLLOVER_S = 14400
MARGIN_RATE = Decimal("0.0002")


class Trade(NamedTuple):
    """One fill. `fee` is the trade fee; `opening_fee` and `margin` are zero unless it opens."""

    serial: int
    volume: Decimal
    price: Decimal
    cost: Decimal
    fee: Decimal
    opening_fee: Decimal
    margin: Decimal
    realized: Decimal
    closing: bool


class Entry(NamedTuple):
    """One line of the ledger, in Kraken's words."""

    serial: int
    refid: int
    time: float
    type: str
    asset: str
    amount: Decimal
    fee: Decimal
    balance: Decimal


class Lot(NamedTuple):
    """What one fill opened. `cost` stays the opening cost, `cost_left` is that of what is open."""

    serial: int
    order: int
    time: float
    sign: int
    volume: Decimal
    closed: Decimal
    cost: Decimal
    cost_left: Decimal
    leverage: int
    fee: Decimal
    rate: Decimal
    due: float

    @property
    def open_volume(self) -> Decimal:
        return self.volume - self.closed


class Book:
    """The open lots of one pair, oldest first, all on one side. `price` is the last mark."""

    __slots__ = ("cost_left", "cost_step", "held", "lots", "price", "rules", "stop")

    def __init__(self, rules: PairRules) -> None:
        self.follow(rules)
        self.lots: list[Lot] = []
        self.held = self.cost_left = self.price = ZERO

    def follow(self, rules: PairRules) -> None:
        """Take over the pair's rules as they are now."""
        self.rules = rules
        self.cost_step = Decimal(1).scaleb(-rules.cost_decimals)
        self.stop = Decimal(rules.margin_stop) / 100

    @property
    def sign(self) -> int:
        return self.lots[0].sign if self.lots else 0

    @property
    def volume(self) -> Decimal:
        """Return the signed open volume."""
        return self.held * self.sign

    def unrealized(self) -> Decimal:
        return (self.held * self.price - self.cost_left) * self.sign

    def used_margin(self) -> Decimal:
        """Return what the lots bind: fixed for longs, growing with the price for shorts."""
        price = self.price
        return sum(
            ((lot.cost_left if lot.sign > 0 else lot.open_volume * price) / lot.leverage
             for lot in self.lots), ZERO,
        )  # fmt: skip


class Account:
    """Balances and lots of one holder. `revision` rises with every change.

    `history` bounds the ledger; 0 keeps none, which is what a long backtest wants.
    """

    def __init__(
        self, balances: Mapping[str, Decimal], fee_rate: Decimal, *,
        margin_rate: Decimal = MARGIN_RATE, serial: int = 0, history: int = 0,
    ) -> None:  # fmt: skip
        self.balances = dict(balances)
        self.fee_rate = fee_rate
        self.margin_rate = margin_rate
        self.serial = serial
        self.revision = 0
        self.books: dict[str, Book] = {}
        self.fees: dict[str, Decimal] = {}
        self.rollovers: dict[str, Decimal] = {}
        self.realized: dict[str, Decimal] = {}
        self.ledger: deque[Entry] = deque(maxlen=history)

    def book(self, rules: PairRules) -> Book:
        """Return the pair's book, made or brought up to its present rules."""
        book = self.books.get(rules.pair)
        if book is None:
            book = self.books[rules.pair] = Book(rules)
        elif book.rules is not rules:
            book.follow(rules)
        return book

    def fill(
        self, book: Book, now: float, sign: int, volume: Decimal, price: Decimal, leverage: int,
        *, reduce_only: bool = False, order: int = 0,
    ) -> tuple[Trade, ...]:  # fmt: skip
        """Execute a market order with leverage and return its one or two trades.

        The book must have been advanced to `now`, so that free margin is that of now.
        Opposite lots are closed first, the oldest first; what is left of the volume opens the
        other way or, with `reduce_only`, is dropped. Raises RefusedError, with nothing changed.
        """
        closing = ZERO
        if book.lots and book.lots[0].sign != sign:
            closing = volume if volume < book.held else book.held
            if reduce_only or closing == volume:
                return (self.close(book, now, closing, price),)
        elif reduce_only:
            raise RefusedError("EOrder:Reduce only:No position exists")
        opening = volume - closing
        costs = self._costs(book, sign, opening, price, leverage)
        closed = (self.close(book, now, closing, price),) if closing else ()
        return (*closed, self._open(book, now, sign, opening, price, leverage, order, costs))

    def charges(
        self, book: Book, volume: Decimal, prices: Iterable[int], unit: Decimal
    ) -> Iterator[tuple[int, int, int]]:
        """Yield cost, fee and opening fee at each price, all as whole numbers of the cost step.

        A price is a whole number of `unit`. Rounded half to even, as `fill` does it.
        """
        shares = (volume * unit / book.cost_step, self.fee_rate, self.margin_rate)
        (p, per_p), (f, per_f), (m, per_m) = (share.as_integer_ratio() for share in shares)
        for price in prices:
            cost, rest = divmod(price * p, per_p)
            cost += 2 * rest + (cost & 1) > per_p
            fee, rest = divmod(cost * f, per_f)
            fee += 2 * rest + (fee & 1) > per_f
            opening_fee, rest = divmod(cost * m, per_m)
            yield cost, fee, opening_fee + (2 * rest + (opening_fee & 1) > per_m)

    def turned(
        self, book: Book, now: float, charges: Sequence[tuple[int, int, int]], gain: Decimal,
        leverage: int,
    ) -> None:  # fmt: skip
        """Enter that all was closed and as much opened the other way at each of `charges`.

        The last turn was `now`; all of them changed the balance by `gain`. Nothing is checked and
        no ledger written.
        """
        step, quote, (cost, *fees) = book.cost_step, book.rules.quote, charges[-1]
        paid = step * sum(2 * fee + opening_fee for _, fee, opening_fee in charges)
        sign = -book.sign if len(charges) % 2 else book.sign
        self.serial += 2 * len(charges)
        self.revision += 2 * len(charges)
        book.cost_left = step * cost
        book.lots = [
            Lot(self.serial, 0, now, sign, book.held, ZERO, book.cost_left, book.cost_left,
                leverage, step * sum(fees), self.margin_rate, now + ROLLOVER_S)
        ]  # fmt: skip
        self.realized[quote] = self.realized.get(quote, ZERO) + gain + paid
        self.fees[quote] = self.fees.get(quote, ZERO) + paid
        self.balances[quote] += gain

    def fill_spot(
        self, book: Book, now: float, sign: int, volume: Decimal, price: Decimal
    ) -> Trade:
        """Execute a market order without leverage: coins against money, lots untouched."""
        base, quote = book.rules.base, book.rules.quote
        cost, fee = self._cost_and_fee(book, volume, price)
        own = self.balances.get(quote if sign > 0 else base, ZERO)
        if sign > 0:
            short_of = cost + fee > min(own, self.free_margin(quote))
        else:
            short_of = volume > own
        if short_of:
            raise RefusedError("EOrder:Insufficient funds")
        self.serial += 1
        trade = Trade(self.serial, volume, price, cost, fee, ZERO, ZERO, ZERO, False)
        self._book(now, "trade", trade.serial, quote, -cost * sign, fee)
        self._book(now, "trade", trade.serial, base, volume * sign, ZERO)
        return trade

    def close(self, book: Book, now: float, volume: Decimal, price: Decimal) -> Trade:
        """Close `volume` of the lots, the oldest first; no check is made."""
        quote, sign = book.rules.quote, book.lots[0].sign
        cost, fee = self._cost_and_fee(book, volume, price)
        realized = (cost - _take(book, volume)) * sign
        self.serial = serial = self.serial + 1
        self.realized[quote] = self.realized.get(quote, ZERO) + realized
        self._book(now, "margin", serial, quote, realized, fee)
        return Trade(serial, volume, price, cost, fee, ZERO, ZERO, realized, True)

    def advance(self, book: Book, now: float, price: Decimal) -> Trade | None:
        """Mark the pair at `price`, charge the rollovers due by `now`, liquidate if need be."""
        book.price, quote = price, book.rules.quote
        for number, lot in enumerate(book.lots):
            # The loan of a long is its cost; a short owes coins, at what they are worth now.
            owed = lot.cost_left if lot.sign > 0 else lot.open_volume * price
            charge, due = (owed * lot.rate).quantize(book.cost_step), lot.due
            while due <= now:
                self.rollovers[quote] = self.rollovers.get(quote, ZERO) + charge
                self._book(due, "rollover", lot.serial, quote, ZERO, charge, paid=False)
                due += ROLLOVER_S
            if due != lot.due:
                book.lots[number] = lot._replace(due=due)
        if book.lots and self.equity(quote) <= book.stop * self.used_margin(quote):
            return self.close(book, now, book.held, price)
        return None

    def sweep(self, book: Book, now: float, low: Decimal, high: Decimal) -> Trade | None:
        """Liquidate if the price passed the liquidation price on its way from `low` to `high`."""
        limit = self.liquidation_price(book)
        if limit is None or (low > limit if book.sign > 0 else high < limit):
            return None
        return self.close(book, now, book.held, limit)

    def liquidation_price(self, book: Book) -> Decimal | None:
        """Return the price at which equity falls to the margin stop, other pairs standing still.

        Rounded to the pair's decimals, against the holder. None: flat, or at no price.
        """
        if not book.lots:
            return None
        quote = book.rules.quote
        others = [b for b in self._books(quote) if b is not book]
        money = self.balances.get(quote, ZERO) + sum((b.unrealized() for b in others), ZERO)
        money -= book.stop * sum((b.used_margin() for b in others), ZERO)
        if book.sign > 0:
            price = (book.stop * book.used_margin() + book.cost_left - money) / book.held
        else:
            loans = sum((lot.open_volume / lot.leverage for lot in book.lots), ZERO)
            price = (money + book.cost_left) / (book.held + book.stop * loans)
        step = Decimal(1).scaleb(-book.rules.pair_decimals)
        rounding = ROUND_DOWN if book.sign > 0 else ROUND_UP
        return price.quantize(step, rounding=rounding) if price > 0 else None

    def unrealized(self, quote: str) -> Decimal:
        return sum((book.unrealized() for book in self._books(quote)), ZERO)

    def used_margin(self, quote: str) -> Decimal:
        return sum((book.used_margin() for book in self._books(quote)), ZERO)

    def equity(self, quote: str) -> Decimal:
        return self.balances.get(quote, ZERO) + self.unrealized(quote)

    def free_margin(self, quote: str) -> Decimal:
        return self.equity(quote) - self.used_margin(quote)

    def margin_level(self, quote: str) -> Decimal | None:
        """Return equity over used margin in percent, or None when no margin is used."""
        used = self.used_margin(quote)
        return self.equity(quote) / used * 100 if used else None

    def deposit(self, now: float, asset: str, amount: Decimal) -> None:
        """Add money from outside, or take it away."""
        self.serial += 1
        kind = "deposit" if amount >= 0 else "withdrawal"
        self._book(now, kind, self.serial, asset, amount, ZERO)

    def to_text(self) -> str:
        """Return the whole account as JSON text that `account_from_text` reads back exactly."""
        state = {
            "balances": self.balances,
            "rates": [self.fee_rate, self.margin_rate],
            "serial": self.serial,
            "revision": self.revision,
            "totals": [self.fees, self.rollovers, self.realized],
            "books": {pair: [book.price, book.lots] for pair, book in self.books.items()},
            "history": self.ledger.maxlen,
            "ledger": list(self.ledger),
        }
        return json.dumps(state, default=str)

    def _cost_and_fee(
        self, book: Book, volume: Decimal, price: Decimal
    ) -> tuple[Decimal, Decimal]:
        cost = (price * volume).quantize(book.cost_step)
        return cost, (cost * self.fee_rate).quantize(book.cost_step)

    def _costs(
        self, book: Book, sign: int, volume: Decimal, price: Decimal, leverage: int
    ) -> tuple[Decimal, Decimal, Decimal]:
        """Return cost, fee and opening fee of opening `volume` after opposite lots are closed.

        Raises RefusedError where Kraken would not open it.
        """
        rules = book.rules
        cost, fee = self._cost_and_fee(book, volume, price)
        opening_fee = (cost * self.margin_rate).quantize(book.cost_step)
        free = self.balances.get(rules.quote, ZERO)
        held = volume
        if book.lots and book.lots[0].sign != sign:
            closed, closing_fee = self._cost_and_fee(book, book.held, price)
            free -= closing_fee + (closed - book.cost_left) * sign
        elif book.lots:
            free += book.unrealized() - book.used_margin()
            held += book.held
        others = self._books(rules.quote) if len(self.books) > 1 else []
        free += sum((b.unrealized() - b.used_margin() for b in others if b is not book), ZERO)
        limit = rules.long_position_limit if sign > 0 else rules.short_position_limit
        if limit is not None and held > limit:
            raise RefusedError("EOrder:Margin position size exceeded")
        if cost / leverage + fee + opening_fee > free:
            raise RefusedError("EOrder:Insufficient initial margin")
        return cost, fee, opening_fee

    def _open(
        self, book: Book, now: float, sign: int, volume: Decimal, price: Decimal, leverage: int,
        order: int, costs: tuple[Decimal, Decimal, Decimal],
    ) -> Trade:  # fmt: skip
        cost, fee, opening_fee = costs
        self.serial = serial = self.serial + 1
        fees = fee + opening_fee
        book.lots.append(
            Lot(serial, order, now, sign, volume, ZERO, cost, cost, leverage, fees,
                self.margin_rate, now + ROLLOVER_S)
        )  # fmt: skip
        book.held += volume
        book.cost_left += cost
        self._book(now, "margin", serial, book.rules.quote, ZERO, fees)
        margin = (cost / leverage).quantize(book.cost_step)
        return Trade(serial, volume, price, cost, fee, opening_fee, margin, ZERO, False)

    def _book(
        self, now: float, kind: str, refid: int, asset: str, amount: Decimal, fee: Decimal,
        paid: bool = True,
    ) -> None:  # fmt: skip
        balance = self.balances.get(asset, ZERO) + amount - fee
        self.balances[asset] = balance
        if paid and fee:
            self.fees[asset] = self.fees.get(asset, ZERO) + fee
        self.revision += 1
        if self.ledger.maxlen:
            self.serial += 1
            self.ledger.append(Entry(self.serial, refid, now, kind, asset, amount, fee, balance))

    def _books(self, quote: str) -> list[Book]:
        return [b for b in self.books.values() if b.lots and b.rules.quote == quote]


def account_from_text(text: str, rules: Iterable[PairRules]) -> Account:
    """Return the account that `to_text` wrote; `rules` of every pair it has a book of."""
    state = json.loads(text)
    fee_rate, margin_rate = (Decimal(rate) for rate in state["rates"])
    account = Account(
        _decimals(state["balances"]), fee_rate, margin_rate=margin_rate,
        serial=state["serial"], history=state["history"],
    )  # fmt: skip
    account.revision = state["revision"]
    account.fees, account.rollovers, account.realized = map(_decimals, state["totals"])
    for entry in state["ledger"]:
        account.ledger.append(Entry(*entry[:5], *(Decimal(text) for text in entry[5:])))
    known = {rule.pair: rule for rule in rules}
    for pair, (price, lots) in state["books"].items():
        book = account.book(known[pair])
        book.price = Decimal(price)
        book.lots = [
            Lot._make(Decimal(v) if isinstance(v, str) else v for v in lot) for lot in lots
        ]
        book.held = sum((lot.open_volume for lot in book.lots), ZERO)
        book.cost_left = sum((lot.cost_left for lot in book.lots), ZERO)
    return account


def identifier(letter: str, serial: int) -> str:
    """Return a text of Kraken's form (`O` order, `T` trade, `L` ledger), one for each serial."""
    text = b32encode(blake2b(b"%d" % serial, digest_size=10).digest()).decode()
    return f"{letter}{text[:5]}-{text[5:10]}-{text[10:]}"


def _take(book: Book, volume: Decimal) -> Decimal:
    """Close `volume` of the lots, oldest first, and return what that part cost to open."""
    cost, left = ZERO, volume
    while left:
        lot = book.lots[0]
        part = min(left, lot.open_volume)
        if part == lot.open_volume:
            paid = lot.cost_left
            del book.lots[0]
        else:
            paid = (lot.cost_left * part / lot.open_volume).quantize(book.cost_step)
            book.lots[0] = lot._replace(closed=lot.closed + part, cost_left=lot.cost_left - paid)
        cost += paid
        left -= part
    book.held -= volume
    book.cost_left -= cost
    return cost


def _decimals(amounts: Mapping[str, str]) -> dict[str, Decimal]:
    return {asset: Decimal(amount) for asset, amount in amounts.items()}
