"""The nouns: frozen values that the rest of the program passes around.

Money is `Decimal`, volumes are in base currency, costs and fees in quote currency, times in
unix seconds (UTC). A long position has a positive volume, a short one a negative. They are named
tuples because defining a dataclass takes ten times as long at each start.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from enum import Enum, IntEnum
from typing import NamedTuple, NoReturn

ZERO = Decimal(0)
MARGIN_RATE_ASSUMED = Decimal("0.0002")  # The rate of most assets, where Kraken gives none.


class Side(Enum):
    BUY = "buy"
    SELL = "sell"

    @property
    def sign(self) -> int:
        return 1 if self is Side.BUY else -1


class Direction(IntEnum):
    LONG = 1
    FLAT = 0
    SHORT = -1

    @classmethod
    def of(cls, number: Decimal) -> "Direction":
        return cls((number > 0) - (number < 0))


class OrderStatus(Enum):
    """The status of an order. Source: docs.kraken.com, "Query Orders Info"."""

    PENDING = "pending"
    OPEN = "open"
    CLOSED = "closed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self not in (OrderStatus.PENDING, OrderStatus.OPEN)


class Purpose(Enum):
    """What an order is for. `REVERSE` closes and opens the other way in one order.

    `ADOPT` is not an order: it records in the journal what someone else has traded.
    """

    CLOSE = "close"
    OPEN = "open"
    REVERSE = "turn"
    ADOPT = "adopt"

    @property
    def verb(self) -> str:
        return "reverse" if self is Purpose.REVERSE else self.value


class Candle(NamedTuple):
    """One interval; `time` is its start. `volume` is 0 when nobody traded."""

    time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal = ZERO


class Quote(NamedTuple):
    """The best prices, in quote currency."""

    bid: Decimal
    ask: Decimal

    @property
    def mid(self) -> Decimal:
        return (self.bid + self.ask) / 2

    @property
    def spread_percent(self) -> Decimal:
        return (self.ask - self.bid) / self.mid * 100


class Step(NamedTuple):
    """The next order on the way from the position held to the target."""

    purpose: Purpose
    side: Side
    volume: Decimal
    reduce_only: bool


class Order(NamedTuple):
    """A market order as it is sent. `leverage` 0 is a plain spot order."""

    client_order_id: str
    side: Side
    volume: Decimal
    leverage: int
    reduce_only: bool


class Execution(NamedTuple):
    """An order's state and fill so far, at the exchange. `cost` and `fee` in quote currency."""

    exchange_order_id: str
    status: OrderStatus
    volume: Decimal
    cost: Decimal
    fee: Decimal
    reason: str = ""


class Position(NamedTuple):
    """The open position on a pair: signed volume, its opening cost, ids of its trades."""

    volume: Decimal = ZERO
    cost: Decimal = ZERO
    trades: tuple[str, ...] = ()


class Charge(NamedTuple):
    """One row of the exchange's ledger: the fee of a trade, or a rollover of what it opened.

    `cost` is the trade's cost in quote currency, given in only one of its rows; `order_id` is its
    order. A rollover has no order: its id is empty. `fee` is in `asset`.
    """

    id: str
    trade_id: str
    order_id: str
    time: int
    cost: Decimal
    fee: Decimal
    asset: str


class SystemStatus(NamedTuple):
    """The state of the whole exchange, `online` or another, and what it announces, in words."""

    status: str
    notices: tuple[str, ...] = ()


class KeyInfo(NamedTuple):
    """What the exchange knows of an API key.

    `nonce` is the last one it has seen, None when not given; `account` identifies the account, is
    the same for all its keys, and is empty when unknown.
    """

    permissions: tuple[str, ...]
    nonce: int | None = None
    account: str = ""


class MarginRates(NamedTuple):
    """The rates of borrowing, as fractions, charged at the opening and again every 4 hours.

    A long position borrows the quote currency, a short one the base. None: not given.
    Source: support.kraken.com 206161568.
    """

    long: Decimal | None = None
    short: Decimal | None = None

    def of(self, side: Side) -> Decimal:
        """Return the rate for opening with this side, MARGIN_RATE_ASSUMED if it is unknown."""
        rate = self.long if side is Side.BUY else self.short
        return MARGIN_RATE_ASSUMED if rate is None else rate


class MarginSummary(NamedTuple):
    """Kraken's TradeBalance. Source: Kraken support, "Terminology used on the Overview page"."""

    trade_balance: Decimal
    unrealized_pnl: Decimal
    used_margin: Decimal
    free_for_orders: Decimal | None = None  # Free margin less what open orders hold.

    @property
    def equity(self) -> Decimal:
        return self.trade_balance + self.unrealized_pnl

    @property
    def free_margin(self) -> Decimal:
        free = self.equity - self.used_margin
        return free if self.free_for_orders is None else min(free, self.free_for_orders)

    @property
    def margin_level(self) -> Decimal | None:
        """Return equity over used margin in percent, or None when no margin is used."""
        return self.equity / self.used_margin * 100 if self.used_margin else None


class Signal(NamedTuple):
    """What a strategy says after a finished candle.

    `direction` is None when it has no view: the position is left as it is. `average` is only for
    display. `slope` is the sign of the newest difference: 1, 0 or -1.
    """

    direction: Direction | None
    average: Decimal
    slope: int


Strategy = Callable[[Sequence[Candle]], Signal]  # Of finished candles, oldest first.


class Secret:
    """A text that no repr, str, format, pickle or copy shows; only `reveal` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "<secret>"

    def __format__(self, spec: str) -> str:
        return "<secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


class Credentials(NamedTuple):
    """An API key and its secret; `source`: where they were found, a variable or "[keys]"."""

    key: Secret
    secret: Secret
    source: str
