"""The interface: what the bot needs from an exchange, whichever one implements it.

Every method may raise LaterError, UnansweredError or KeyRefusedError; RefusedError when
the exchange refuses for good. All times are unix seconds.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from krakenbot.model import (
    Candle,
    Charge,
    Execution,
    KeyInfo,
    MarginRates,
    MarginSummary,
    Order,
    Position,
    Quote,
    SystemStatus,
)
from krakenbot.pairs import PairRules


class Market(Protocol):
    """The public data of one pair."""

    def server_time(self) -> int:
        """Return the exchange's time in whole unix seconds."""

    def market_status(self) -> SystemStatus:
        """Return the state of the whole exchange, `online` or another, and its announcements."""

    def rules(self) -> PairRules:
        """Return the pair's rules as they are now."""

    def known_rules(self) -> PairRules:
        """Return the pair's rules as last read; read them if they never were."""

    def assume_rules(self, rules: PairRules) -> None:
        """Use stored rules because the pair's rules cannot be read."""

    def candles(self, since: int | None) -> Sequence[Candle]:
        """Return the candles from about `since` (None: all available), oldest first.

        The last one is unfinished.
        """

    def quote(self) -> Quote:
        """Return the best bid and ask."""

    def margin_rates(self) -> MarginRates:
        """Return the margin rates of long and short positions on the pair."""


class Exchange(Market, Protocol):
    """One account on one pair."""

    def key_info(self) -> KeyInfo:
        """Return permissions, last nonce and account of the API key."""

    def summary(self) -> MarginSummary:
        """Return the account's margin figures in the pair's quote currency."""

    def balances(self) -> Mapping[str, Decimal]:
        """Return the balances by asset code."""

    def position(self) -> Position:
        """Return the open margin position on the pair."""

    def charges(self, since: int, until: int, pages: Iterator[int]) -> Sequence[Charge] | None:
        """Return the charges for trades on the pair and for rollovers, in whatever asset.

        They are the ledger's rows after `since` and up to `until`. Each request uses up one of
        `pages`. None when these do not suffice: the next call for the same span continues.
        """

    def fee_rate(self) -> Decimal:
        """Return the account's taker fee as a fraction: 0.008 is 0.8 %.

        If it cannot be read: the configured fee, or UnansweredError if there is none.
        """

    def place(self, order: Order, deadline: int) -> None:
        """Send the order once. Only `find` tells what became of it.

        Raises RefusedError, LaterError or KeyRefusedError when it was refused or not sent, and
        UnansweredError when it may have been executed. The exchange refuses it after `deadline`.
        """

    def find(self, client_order_id: str, since: int) -> Execution | None:
        """Return state and fill of an order sent after `since`.

        None only when the exchange has answered that it knows no such order.
        """

    def traded_orders(self, since: int, until: int) -> Sequence[str]:
        """Return the exchange's ids of all orders that traded on the pair in that time."""
