"""What it came to: profit from the journal's own orders, costs from the exchange's ledger.

Nothing here decides or sends anything.
"""

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import cache, partial

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.errors import KeyRefusedError, LaterError, RefusedError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.journal import Journal
from krakenbot.model import ZERO, Charge, ChargeKind, Execution, MarginRates, Purpose
from krakenbot.pairs import PairRules, plain
from krakenbot.records import Booked, Intent, assumed_id

OVERLAP_S = 240  # The ledger may show a charge later than the clock says.
SPAN_MAX_S = 86400  # So much is asked for at once,
SPANS_MAX = 10  # and so often at one reading.
LATE_S = 86400
NEARLY = Decimal("0.0001")  # Of an order's cost: more than rounding each fill makes of it.
STEP = Decimal("0.00001")  # To which a fee of our own reckoning is rounded.
FRESH_S = 600  # A charge so young is worth what the market says now.


def opening_fee(intent: Intent, found: Execution, rates: MarginRates) -> Decimal:
    """Return what the part of an order that opens on margin costs, by the known rate.

    In quote currency. A buy borrows the quote, a sell the base currency; 0.02 % where the
    exchange does not tell the rate.
    """
    before = intent.held_before * -intent.side.sign
    opened = found.volume - min(max(before, ZERO), found.volume)
    if not intent.leverage or not opened:
        return ZERO
    return (found.cost * opened / found.volume * rates.of(intent.side)).quantize(STEP)


def read_ledger(exchange: Exchange, rules: PairRules, journal: Journal, clock: Clock) -> str:
    """Book what the ledger shows; return what it says otherwise than the orders, or nothing.

    All is read that has come since the last reading, at most SPANS_MAX times SPAN_MAX_S of it.
    Without a ledger the bot goes on, and the books say that they lack it.
    """
    now = int(clock.now())
    if not journal.get("charges_read"):
        journal.put(charges_read=now)
    differences: list[str] = []
    price_at = cache(partial(_price_at, exchange, now))
    try:
        for _ in range(SPANS_MAX):
            since = int(journal.get("charges_read"))
            until = min(now, since + SPAN_MAX_S)
            charges = exchange.charges(since - OVERLAP_S, until)
            span = since - OVERLAP_S, until
            differences += book_charges(journal, charges, *span, rules, price_at)
            if until == now or int(journal.get("charges_read")) == since:
                break
    except (LaterError, UnansweredError, RefusedError) as error:
        log.warning("ledger not read reason=%s", error)
    except KeyRefusedError as error:
        differences.append(f"margin fees are not in the books: {error}")
    difference = "; ".join(differences)
    if difference and difference != journal.get("difference"):
        log.warning("books differ: %s", difference)
        journal.put(difference=difference)
        return difference
    return ""


def book_charges(
    journal: Journal,
    charges: Sequence[Charge],
    since: int,
    until: int,
    rules: PairRules,
    price_at: Callable[[int], Decimal],
) -> list[str]:
    """Book opening fees and rollovers of the journal's own orders, each once.

    Fees in coins are worth what `price_at` says of their time. Returns a sentence for each order
    of which journal and ledger tell different stories, and for each fee whose worth is not known.
    """
    read_until, differences = until, []
    for intent in journal.intents_between(since, until):
        if intent.purpose is Purpose.ADOPT or (intent.outcome and not intent.executed):
            continue
        own = [charge for charge in charges if charge.order_id == intent.exchange_order_id]
        is_known = bool(own) and all(journal.is_charged(_mark(charge)) for charge in own)
        is_whole = intent.outcome is not None and _is_whole(intent, own)
        if is_known or is_whole:
            differences += _book_order(journal, intent, own, rules, price_at, is_known)
        elif intent.outcome is None or until - intent.created < LATE_S:
            read_until = min(read_until, intent.created)
        else:
            differences.append(f"order {intent.exchange_order_id} is not in the ledger as a whole")
    rows = [
        _booked(charge.id, charge, rules, price_at)
        for charge in charges
        if charge.kind is ChargeKind.ROLLOVER
        and journal.is_charged(_mark(charge))
        and not journal.is_charged(charge.id)
    ]
    differences += _book(journal, rows, rules)
    journal.put(charges_read=read_until)
    return differences


def _is_whole(intent: Intent, own: Sequence[Charge]) -> bool:
    cost = sum((charge.cost for charge in own), ZERO)
    return abs(cost - intent.cost) <= intent.cost * NEARLY


def _book_order(
    journal: Journal,
    intent: Intent,
    own: Sequence[Charge],
    rules: PairRules,
    price_at: Callable[[int], Decimal],
    is_known: bool,
) -> list[str]:
    """Book what an order's rows took beyond its own fee, which is in the books already.

    That takes the place of the opening fee that was assumed. Of a known order only rows in other
    currencies can be new.
    """
    rows, differences, extra = [], [], -intent.fee
    for charge in own:
        name = f"{intent.id} {charge.id}"
        if charge.asset in ("", rules.quote):
            extra += charge.fee
        elif charge.fee and charge.kind is ChargeKind.MARGIN and not journal.is_charged(name):
            rows.append(_booked(name, charge, rules, price_at))
    if is_known:
        return _book(journal, rows, rules)
    if extra < -intent.cost * NEARLY:
        differences.append(
            f"the ledger took {-extra} less for order {intent.exchange_order_id} than its fee, "
            f"{intent.fee}"
        )
    extra = max(extra, ZERO)
    rows.append(Booked(intent.id, own[0].time, "opening", extra, rules.quote, extra))
    marks = {_mark(charge): Booked(_mark(charge), charge.time, "opening", ZERO) for charge in own}
    return differences + _book(journal, [*rows, *marks.values()], rules, assumed_id(intent.id))


def _book(
    journal: Journal, rows: Sequence[Booked], rules: PairRules, replaces: str = ""
) -> list[str]:
    """Book the rows; return a sentence for each whose worth is not known."""
    journal.book(rows, replaces)
    return [
        f"{plain(row.charged)} {row.asset} ({row.kind}, {row.id}) is not in the result: what it is "
        f"worth in {rules.quote} is not known"
        for row in rows
        if row.charged and row.asset not in (rules.quote, rules.base)
    ]


def _booked(
    name: str, charge: Charge, rules: PairRules, price_at: Callable[[int], Decimal]
) -> Booked:
    asset, worth = charge.asset or rules.quote, ZERO
    if asset == rules.quote:
        worth = charge.fee
    elif asset == rules.base:
        worth = (charge.fee * price_at(charge.time)).quantize(STEP)
    kind = "rollover" if charge.kind is ChargeKind.ROLLOVER else "opening"
    return Booked(name, charge.time, kind, worth, asset, charge.fee)


def _price_at(exchange: Exchange, now: int, time: int) -> Decimal:
    """Return the market's price at a time: its quote, or the close of the candle of that time."""
    if now - time < FRESH_S:
        return exchange.quote().mid
    candles = exchange.candles(None)
    return next((c.close for c in reversed(candles) if c.time <= time), candles[0].open)


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


def _mark(charge: Charge) -> str:
    """Return the mark, among the charges, of a trade that is the journal's own."""
    return f"open {charge.trade_id}"
