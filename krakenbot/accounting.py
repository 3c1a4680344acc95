"""What it came to: profit from the journal's own orders, costs from the exchange's ledger.

Nothing here decides or sends anything.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.journal import Intent, Journal
from krakenbot.model import ZERO, Charge, Purpose

OVERLAP_S = 240  # The ledger may show a charge later than the clock says.
SPAN_MAX_S = 86400  # So much is read at once; what is older than that is caught up hour by hour.
LATE_S = 86400
NEARLY = Decimal("0.0001")  # Of an order's cost: more than rounding each fill makes of it.


def read_ledger(exchange: Exchange, journal: Journal, clock: Clock) -> str:
    """Book what the ledger shows; return what it says otherwise than the orders, or nothing.

    Without a ledger the bot goes on, and the books say that they lack it.
    """
    now = int(clock.now())
    if not journal.get("charges_read"):
        journal.put(charges_read=now)
    since = int(journal.get("charges_read"))
    until = min(now, since + SPAN_MAX_S)
    try:
        charges = exchange.charges(since - OVERLAP_S, until)
    except (LaterError, UnansweredError, RefusedError) as error:
        log.warning("ledger not read reason=%s", error)
        return ""
    except StopError as error:
        if error.exit_code != 77:
            raise
        difference = f"margin fees are not in the books: {error}"
    else:
        difference = "; ".join(book_charges(journal, charges, since - OVERLAP_S, until))
    if difference and difference != journal.get("difference"):
        log.warning("books differ: %s", difference)
        journal.put(difference=difference)
        return difference
    return ""


def book_charges(journal: Journal, charges: Sequence[Charge], since: int, until: int) -> list[str]:
    """Book opening fees and rollovers of the journal's own orders, each once.

    An order's own fee is in the books already; what the ledger took beyond it is the margin
    opening fee. Returns a sentence for each order of which journal and ledger tell different
    stories.
    """
    read_until, differences = until, []
    for intent in journal.intents_between(since, until):
        if intent.purpose is Purpose.ADOPT or (intent.outcome and not intent.executed):
            continue
        own = [charge for charge in charges if charge.order_id == intent.exchange_order_id]
        if own and all(journal.is_charged(_opened(charge)) for charge in own):
            continue
        tolerance = intent.cost * NEARLY
        is_whole = abs(sum((charge.cost for charge in own), ZERO) - intent.cost) <= tolerance
        if intent.outcome is None or (not is_whole and until - intent.created < LATE_S):
            read_until = min(read_until, intent.created)
            continue
        if not is_whole:
            differences.append(f"order {intent.exchange_order_id} is not in the ledger as a whole")
            continue
        extra = sum((charge.fee for charge in own), ZERO) - intent.fee
        if extra < -tolerance:
            differences.append(
                f"the ledger took {-extra} less for order {intent.exchange_order_id} than its fee, "
                f"{intent.fee}"
            )
        journal.charge(intent.id, own[0].time, "opening", max(extra, ZERO))
        for charge in own:
            journal.charge(_opened(charge), charge.time, "opening", ZERO)
    for charge in charges:
        if not charge.order_id and journal.is_charged(_opened(charge)):
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


def _opened(charge: Charge) -> str:
    """Return the mark, among the charges, of a trade that is the journal's own."""
    return f"open {charge.trade_id}"
