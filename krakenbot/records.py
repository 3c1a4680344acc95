"""The rows of the journal as values: orders, decisions, equity, charges, and their sum."""

import hashlib
from collections.abc import Iterable
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from krakenbot.model import ZERO, Order, Purpose, Side


class Outcome(StrEnum):
    """How an order ended. The texts are stored in journals, so they must not change."""

    CLOSED = "closed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    NOT_SENT = "not sent"
    REFUSED = "refused"
    ABSENT = "absent"
    ADOPTED = "adopted"
    # Refused for a temporary reason; a lookup then found no order, or it could only close.
    REFUSED_FOR_NOW = "put off"
    REFUSED_FOR_NOW_NO_ORDER = "put off, no order left"  # The same, documented to leave no order.
    ABANDONED = "given up"

    @property
    def words(self) -> str:
        """Return what a person reads."""
        return self.replace("put off", "refused for now").replace("given up", "abandoned")


# Temporary failures: retried, not counted per day, nor among the orders that were not filled.
PASSING = (
    Outcome.NOT_SENT,
    Outcome.REFUSED_FOR_NOW,
    Outcome.REFUSED_FOR_NOW_NO_ORDER,
    Outcome.ABSENT,
)


class Intent(NamedTuple):
    """An order as planned, and its result; `outcome` is None while it is unknown."""

    id: str
    interval_s: int
    candle: int
    purpose: Purpose
    side: Side
    volume: Decimal
    leverage: int
    reduce_only: bool
    reason: str
    held_before: Decimal
    created: int
    deadline: int
    accepted: bool = False
    outcome: Outcome | None = None
    exchange_order_id: str | None = None
    executed: Decimal = ZERO
    cost: Decimal = ZERO
    fee: Decimal = ZERO
    settled: int | None = None
    note: str = ""

    @property
    def ending(self) -> str:
        """Return how it ended, for a person."""
        return self.outcome.words if self.outcome else "unresolved"

    @property
    def order(self) -> Order:
        return Order(self.id, self.side, self.volume, self.leverage, self.reduce_only)


class Equity(NamedTuple):
    """The account after a decision: `held` in base currency, amounts in quote currency."""

    time: int
    price: Decimal
    held: Decimal
    pnl: Decimal
    fees: Decimal
    margin_fees: Decimal
    rollover: Decimal
    equity: Decimal | None
    margin_level: Decimal | None


class Booked(NamedTuple):
    """A charge besides trade fees: `kind` is "opening", a fee on margin, or "rollover".

    `amount` is in quote currency; what was actually taken is `charged`, in `asset`.
    """

    id: str
    time: int
    kind: str
    amount: Decimal
    asset: str = ""
    charged: Decimal = ZERO


class Account(NamedTuple):
    """The sum of the journal's fills and charges: `held` in base currency, the rest in quote.

    `cash` is the proceeds of sales less the cost of purchases, before all fees.
    """

    held: Decimal = ZERO
    cash: Decimal = ZERO
    fees: Decimal = ZERO
    rollover: Decimal = ZERO
    margin_fees: Decimal = ZERO

    @property
    def costs(self) -> Decimal:
        return self.fees + self.margin_fees + self.rollover

    def pnl(self, price: Decimal) -> Decimal:
        """Return profit or loss since the beginning, after all costs, valuing `held` at `price`."""
        return self.cash + self.held * price - self.costs


def opening_cost(newest_first: Iterable[Intent], held: Decimal) -> Decimal:
    """Return what opening `held` has cost, first in, first out: below 0 for a short."""
    total, left = ZERO, held
    for intent in newest_first:  # What is held was bought or sold last.
        if left * intent.side.sign * intent.executed > 0:
            part = min(intent.executed, abs(left)) * intent.side.sign
            total += intent.cost * part / intent.executed
            left -= part
    return total


def client_order_id(
    fingerprint: str, pair: str, interval_s: int, candle: int, purpose: Purpose, attempt: int
) -> str:
    """Return the UUID of one step of one decision: the same step always has the same id."""
    text = f"{fingerprint} {pair} {interval_s} {candle} {purpose.value} {attempt}"
    return str(UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4))


def assumed_id(intent_id: str) -> str:
    """Return the id of the estimated opening fee, booked until the ledger shows the real one."""
    return f"assumed {intent_id}"
