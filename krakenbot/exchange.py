"""The port: what the bot needs of an exchange, whichever one stands behind it.

Every method may raise LaterError, UnansweredError or KeyRefusedError; RefusedError where the
exchange says no for good.
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
    """What everybody may know."""

    def server_time(self) -> int:
        """Return the exchange's time in whole unix seconds."""

    def market_status(self) -> SystemStatus:
        """Return `online` or what is the matter with the whole exchange, and what is announced."""

    def rules(self) -> PairRules:
        """Return the pair's rules as they are now."""

    def known_rules(self) -> PairRules:
        """Return the pair's rules as they were read last, or as they are now."""

    def assume_rules(self, rules: PairRules) -> None:
        """Take over rules that were read before, for when they cannot be read."""

    def candles(self, since: int | None) -> Sequence[Candle]:
        """Return the candles from about `since` (None: all there are), oldest first.

        The last one is still being made.
        """

    def quote(self) -> Quote:
        """Return the best bid and ask."""

    def margin_rates(self) -> MarginRates:
        """Return what borrowing costs on either side of the pair."""


class Exchange(Market, Protocol):
    """One account on one pair."""

    def key_info(self) -> KeyInfo:
        """Return what the exchange knows of the API key and whose it is."""

    def summary(self) -> MarginSummary:
        """Return the account's margin numbers in the pair's quote currency."""

    def balances(self) -> Mapping[str, Decimal]:
        """Return what is owned outright, by asset code."""

    def position(self) -> Position:
        """Return the open margin position on the pair."""

    def charges(self, since: int, until: int, pages: Iterator[int]) -> Sequence[Charge] | None:
        """Return what trades on the pair and keeping positions open cost, in whatever asset.

        Rows of the ledger after `since` until `until`, both in unix seconds. Each request takes
        one of `pages`. None when they do not suffice: asked for the same again, it goes on.
        """

    def fee_rate(self) -> Decimal:
        """Return the account's taker fee as a fraction: 0.008 is 0.8 %.

        The configured one where it cannot be read; UnansweredError where there is none.
        """

    def place(self, order: Order, deadline: int) -> None:
        """Send the order once. What became of it is learnt from `find` alone.

        Raises RefusedError, LaterError or KeyRefusedError when the exchange said no, and
        UnansweredError when it may have been executed. The exchange refuses it after `deadline`.
        """

    def find(self, client_order_id: str, since: int) -> Execution | None:
        """Return what became of an order sent after `since`.

        None only when the exchange has answered that it knows no such order.
        """

    def traded_orders(self, since: int, until: int) -> Sequence[str]:
        """Return the exchange's ids of all orders that traded on the pair from then to then."""
