"""Margin fees and rollovers: estimated at once, then replaced by the ledger's figures.

Nothing here sends anything, but `max_loss` counts what it books.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.errors import ExchangeError, KeyRefusedError, UnansweredError
from krakenbot.format import asset as shown
from krakenbot.format import volume
from krakenbot.journal import Journal
from krakenbot.kraken.spot import Spot
from krakenbot.model import ZERO, Candle, Charge, Execution, MarginRates, Purpose
from krakenbot.pairs import PairRules
from krakenbot.records import Booked, Intent, assumed_id

OVERLAP_S = 240  # The ledger may show a charge this late.
SPAN_MAX_S = 7 * 86400  # The longest span that is read at once.
PAGES_AT_ONCE = 20  # At Kraken's rate limit, a page takes six seconds.
LATE_S = 86400  # An order that the ledger does not show by then is reported.
NEARLY = Decimal("0.0001")  # Of an order's cost: more than the rounding of its fills.


def opening_fee(intent: Intent, found: Execution, rates: MarginRates, rules: PairRules) -> Decimal:
    """Return the margin opening fee, in quote currency, of the part of an order that opens."""
    closing = min(max(intent.held_before * -intent.side.sign, ZERO), found.volume)
    if not intent.leverage or closing == found.volume:
        return ZERO
    share = (found.volume - closing) / found.volume
    return round(found.cost * share * rates.of(intent.side), rules.cost_decimals)


def own_trades(journal: Journal, trades: Sequence[str], now: int) -> None:
    """From now on, book the rollovers of the positions that these trades opened."""
    journal.book([Booked(mark(trade_id), now, "opening", ZERO) for trade_id in trades])


class Ledger:
    """Books from the exchange's ledger what the journal's orders and positions cost.

    An account may have many unrelated rows, so one call reads a few pages and the next continues.
    Each trade of the journal's orders has a mark, a charge of 0, because a rollover names only the
    trade.
    """

    def __init__(self, exchange: Spot, journal: Journal, clock: Clock) -> None:
        self._exchange, self._journal, self._clock = exchange, journal, clock
        self._until = 0  # The end of the span being read; 0 when there is none.
        self.is_read = False  # False only while the next call must continue this reading.
        self.refused = ""  # Why the key may not read the ledger, if the last call was refused.
        self.unread = ""  # Why the last call could not read it, if it failed otherwise.
        self._differences: list[str] = []
        self._candles: Sequence[Candle] = ()  # For the prices of one reading.

    def read(self, rules: PairRules, pages: int = PAGES_AT_ONCE) -> str:
        """Book what the ledger shows, with at most `pages` requests.

        Returns how the ledger differs from the orders, or an empty text: a sentence for each order
        and for each fee that cannot be valued. If the ledger cannot be read, `refused` or `unread`
        says so.
        """
        self._rules, self._now = rules, int(self._clock.now())
        self._differences, self._candles = [], ()
        self.is_read = True  # Also after a failure: the next check tries again.
        try:
            self.is_read = self._read_spans(iter(range(pages)))
            self.refused = self.unread = ""
        except ExchangeError as error:
            uncounted = "margin fees are neither booked nor counted by max_loss"
            self.unread = f"{uncounted}: the ledger cannot be read ({error})"
            log.warning("ledger not read reason=%s", error)
        except KeyRefusedError as error:
            if error.lockout:
                raise  # No private request may follow.
            self.refused = f"margin fees are not in the books: {error}"
        difference = "; ".join(self._differences)
        if not difference or difference == self._journal.get("difference"):
            return ""
        log.warning("books differ: %s", difference)
        self._journal.put(difference=difference)
        return difference

    def _read_spans(self, allowed: Iterator[int]) -> bool:
        """Read and book one span of time after another; return whether the newest is done."""
        if not self._journal.get("charges_read"):
            self._journal.put(charges_read=self._now)
        while True:
            since = int(self._journal.get("charges_read"))
            until = self._until = self._until or min(self._now, since + SPAN_MAX_S)
            charges = self._exchange.charges(since - OVERLAP_S, until, allowed)
            if charges is None:
                return False
            self._until = 0
            read_until = self._book(charges, since - OVERLAP_S, until)
            if read_until != since:
                self._journal.put(charges_read=read_until)
            if read_until == since or until >= self._now - OVERLAP_S:
                return True

    def _book(self, charges: Sequence[Charge], since: int, until: int) -> int:
        """Book charges, each once; return the time up to which the ledger is complete."""
        journal, read_until = self._journal, until
        for intent in journal.intents_between(since, until):
            if intent.purpose is Purpose.ADOPT or (intent.outcome and not intent.executed):
                continue
            own = [charge for charge in charges if charge.order_id == intent.exchange_order_id]
            missing = intent.cost - sum((charge.cost for charge in own), ZERO)
            is_known = journal.is_charged(intent.id)
            is_whole = intent.outcome is not None and abs(missing) <= intent.cost * NEARLY
            if is_known or is_whole:
                self._book_order(intent, own, is_known)
            elif intent.outcome is None or until - intent.created < LATE_S:
                read_until = min(read_until, intent.created)
            else:
                order_id = intent.exchange_order_id
                self._differences.append(f"order {order_id} is not in the ledger in full")
        for charge in charges:
            is_rollover = not charge.order_id and journal.is_charged(mark(charge.trade_id))
            if is_rollover and not journal.is_charged(charge.id):
                journal.book([self._row(charge.id, charge)])
        return read_until

    def _book_order(self, intent: Intent, own: Sequence[Charge], is_known: bool) -> None:
        """Book what an order's rows charge beyond its trade fee, which is booked already.

        This replaces the estimated opening fee. Of an order booked before, only rows in other
        currencies can be new.
        """
        journal, quote, rows = self._journal, self._rules.quote, list[Booked]()
        extra = sum((charge.fee for charge in own if charge.asset == quote), -intent.fee)
        for charge in own:
            name = f"{intent.id} {charge.id}"
            if charge.asset != quote and charge.fee and not journal.is_charged(name):
                row = self._row(name, charge)
                # The order's own fee may already include this charge, in quote currency.
                shown_as_fee = min(row.amount, max(-extra, ZERO))
                rows.append(row._replace(amount=row.amount - shown_as_fee))
                extra += shown_as_fee
        if is_known:
            return journal.book(rows)
        if extra < -intent.cost * NEARLY:
            self._differences.append(
                f"the ledger took {-extra} less for order {intent.exchange_order_id} than its fee, "
                f"{intent.fee}"
            )
        extra = max(extra, ZERO)
        rows.append(Booked(intent.id, own[0].time, "opening", extra, quote, extra))
        rows += [Booked(mark(one.trade_id), one.time, "opening", ZERO) for one in own]
        return journal.book(rows, replaces=assumed_id(intent.id))

    def _row(self, name: str, charge: Charge) -> Booked:
        """Return the charge valued in quote currency."""
        asset, worth = charge.asset, charge.fee
        if asset == self._rules.base:
            worth = round(charge.fee * self._price_at(charge.time), self._rules.cost_decimals)
        elif asset != self._rules.quote:
            worth = ZERO
            self._differences.append(
                f"{volume(charge.fee, asset)} (ledger row {charge.id}) is not in the result: its "
                f"value in {shown(self._rules.quote)} is not known"
            )
        kind = "opening" if charge.order_id else "rollover"
        return Booked(name, charge.time, kind, worth, asset, charge.fee)

    def _price_at(self, time: int) -> Decimal:
        """Return the close of the candle at that time, or the first open if all are newer."""
        self._candles = candles = self._candles or self._exchange.candles(None)
        if not candles:
            raise UnansweredError("OHLC: an answer without candles")
        return next((c.close for c in reversed(candles) if c.time <= time), candles[0].open)


def mark(trade_id: str) -> str:
    """Return the id of the charge of 0 that marks a trade whose rollovers are booked."""
    return f"open {trade_id}"
