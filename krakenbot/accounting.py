"""What it came to: profit from the journal's own orders, costs from the exchange's ledger.

Nothing here decides or sends anything.
"""

from collections.abc import Iterable
from decimal import Decimal

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.journal import Intent, Journal
from krakenbot.model import ZERO, Purpose

OVERLAP_S = 240  # The ledger may show a charge later than the clock says.
LATE_S = 86400
ROUNDING = Decimal("0.0001")  # A ledger may hold fewer digits than an order.


def read_ledger(exchange: Exchange, journal: Journal, clock: Clock) -> None:
    """Book what the ledger shows and say what differs; without a ledger the bot goes on."""
    try:
        differences = book_charges(exchange, journal, int(clock.now()))
    except (LaterError, UnansweredError, RefusedError, StopError) as error:
        log.warning("ledger not read, the books may lack charges reason=%s", error)
        return
    for difference in differences:
        log.warning("books differ: %s", difference)
        journal.put(difference=difference)


def book_charges(exchange: Exchange, journal: Journal, now: int) -> list[str]:
    """Book opening fees and rollovers as the ledger has them since the last time.

    An order's own fee is in the books already; what the ledger took beyond it is the margin
    opening fee. Returns a sentence for each order of which journal and ledger tell different
    stories. A charge is booked once, however often it is read.
    """
    since = int(journal.get("charges_read", str(now)))
    charges = exchange.charges(since - OVERLAP_S)
    read_until, differences = now, []
    for intent in _traded_since(journal, since - OVERLAP_S):
        own = [charge for charge in charges if charge.order_id == intent.exchange_order_id]
        if own and journal.is_charged(_opened(own[0].trade_id)):
            continue
        is_whole = sum((charge.cost for charge in own), ZERO) == intent.cost
        if intent.outcome is None or (not is_whole and now - intent.created < LATE_S):
            read_until = min(read_until, intent.created)
            continue
        if not is_whole:
            differences.append(f"order {intent.exchange_order_id} is not in the ledger as a whole")
            continue
        extra = sum((charge.fee for charge in own), ZERO) - intent.fee
        if extra < -ROUNDING:
            differences.append(
                f"the ledger took {-extra} less for order {intent.exchange_order_id} than its fee, "
                f"{intent.fee}"
            )
        for charge in reversed(own):  # The first one last: it says that all are booked.
            amount = max(extra, ZERO) if charge is own[0] else ZERO
            journal.charge(_opened(charge.trade_id), charge.time, "opening", amount)
    for charge in charges:
        if not charge.order_id and journal.is_charged(_opened(charge.trade_id)):
            journal.charge(charge.id, charge.time, "rollover", charge.fee)
    journal.put(charges_read=read_until)
    return differences


def realized(intents: Iterable[Intent]) -> Decimal:
    """Return what closed parts won or lost before all costs, first in, first out."""
    lots: list[tuple[Decimal, Decimal]] = []  # signed volume, cost
    total = ZERO
    for intent in intents:
        volume, cost = intent.executed * intent.side.sign, intent.cost
        while volume and lots and lots[0][0] * volume < 0:
            lot_volume, lot_cost = lots[0]
            part = min(abs(volume), abs(lot_volume))
            opened, closed = lot_cost * part / abs(lot_volume), cost * part / abs(volume)
            total += (closed - opened) if lot_volume > 0 else (opened - closed)
            sign = 1 if volume > 0 else -1
            volume, cost = volume - sign * part, cost - closed
            rest = lot_volume + sign * part
            lots[:1] = [(rest, lot_cost - opened)] if rest else []
        if volume:
            lots.append((volume, cost))
    return total


def _traded_since(journal: Journal, time: int) -> list[Intent]:
    """Return the orders since then that traded or of which that is not known yet."""
    return journal.intents(
        "(executed != '0' OR outcome IS NULL) AND created >= ? AND purpose != ?",
        time, Purpose.ADOPT.value,
    )  # fmt: skip


def _opened(trade_id: str) -> str:
    """Return the charge id that marks a trade as the journal's own."""
    return f"open {trade_id}"
