"""The nouns: frozen values that the rest of the program hands around.

Money is `Decimal`, volumes are in base currency, costs and fees in quote currency, times in
unix seconds (UTC). A long position has a positive volume, a short one a negative. They are named
tuples because a dataclass takes ten times as long to make at each start.
"""

from decimal import Decimal
from enum import Enum, IntEnum
from typing import NamedTuple, NoReturn

ZERO = Decimal(0)
MARGIN_RATE_ASSUMED = Decimal("0.0002")  # Of most assets, where Kraken names none.


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


class OrderStatus(Enum):
    """Kraken's words for where an order is in its life."""

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

    `ADOPT` is no order: it enters into the journal what someone else has traded.
    """

    CLOSE = "close"
    OPEN = "open"
    REVERSE = "turn"
    ADOPT = "adopt"

    @property
    def verb(self) -> str:
        return "reverse" if self is Purpose.REVERSE else self.value


class Candle(NamedTuple):
    """One finished interval; `time` is its start. `volume` is 0 when nobody traded."""

    time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal = ZERO


class Quote(NamedTuple):
    bid: Decimal
    ask: Decimal

    @property
    def mid(self) -> Decimal:
        return (self.bid + self.ask) / 2

    @property
    def spread_percent(self) -> Decimal:
        return (self.ask - self.bid) / self.mid * 100


class Step(NamedTuple):
    """The next order that leads from what is held towards the target."""

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
    """What the exchange says became of an order so far. `cost` and `fee` in quote currency."""

    client_order_id: str
    exchange_order_id: str
    status: OrderStatus
    volume: Decimal
    cost: Decimal
    fee: Decimal
    reason: str = ""


class Position(NamedTuple):
    """What is open on one pair: signed volume, opening cost of what is left, by which trades."""

    volume: Decimal = ZERO
    cost: Decimal = ZERO
    trades: tuple[str, ...] = ()


class ChargeKind(Enum):
    """Kraken's words for a row of its ledger. The fee of opening on margin may stand in two."""

    TRADE = "trade"
    MARGIN = "margin"
    ROLLOVER = "rollover"


class Charge(NamedTuple):
    """One row of the exchange's ledger: what a trade cost, or keeping open what it opened.

    `cost` is the trade's own in quote currency, told with one of its rows; `order_id` is its
    order's. A rollover has neither. `fee` is in `asset`, the quote currency where that is empty.
    """

    id: str
    trade_id: str
    order_id: str
    time: int
    cost: Decimal
    fee: Decimal
    asset: str = ""
    kind: ChargeKind = ChargeKind.TRADE


class SystemStatus(NamedTuple):
    """The whole exchange's state: `online` or what else, and its announcements in words."""

    status: str
    upcoming: tuple[str, ...] = ()
    emergency: tuple[str, ...] = ()


class KeyInfo(NamedTuple):
    """What the exchange knows of an API key.

    `nonce` is the last one it has seen, None when it does not say; `account` names the account,
    the same for all its keys, and is empty when unknown.
    """

    permissions: tuple[str, ...]
    nonce: int | None = None
    account: str = ""


class MarginRates(NamedTuple):
    """What borrowing costs, as fractions, at the opening and again each 4 hours.

    A long position borrows the quote currency, a short one the base. None: the exchange does not
    say.
    """

    long: Decimal | None = None
    short: Decimal | None = None

    def of(self, side: Side) -> Decimal:
        """Return the rate of a position opened by a buy or a sell, MARGIN_RATE_ASSUMED if none."""
        rate = self.long if side is Side.BUY else self.short
        return MARGIN_RATE_ASSUMED if rate is None else rate


class MarginSummary(NamedTuple):
    """Kraken's TradeBalance. Source: Kraken support, "Terminology used on the Overview page"."""

    trade_balance: Decimal
    unrealized_pnl: Decimal
    used_margin: Decimal

    @property
    def equity(self) -> Decimal:
        return self.trade_balance + self.unrealized_pnl

    @property
    def free_margin(self) -> Decimal:
        return self.equity - self.used_margin

    @property
    def margin_level(self) -> Decimal | None:
        """Return equity over used margin in percent, or None when no margin is used."""
        return self.equity / self.used_margin * 100 if self.used_margin else None


class Signal(NamedTuple):
    """What a strategy says after a finished candle.

    `direction` is None when it has no view: things are to be left as they are. `average` is for
    people to look at, never for deciding.
    """

    direction: Direction | None
    average: Decimal
    slope: int


class Secret:
    """A text that no repr, str, format, pickle or copy shows; `reveal` is the only way in."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "<secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")
