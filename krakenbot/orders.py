"""Orders: written to disk, sent once, looked up until final, by the table in order_states.py.

Why no order is sent twice: only `_place` sends, and only one cell of the table leads to it, after
the intent is on disk. The order's id is derived from key, pair, interval, candle, purpose and
attempt number, and the journal accepts an id only once. While an intent is open, `reconcile` finds
its outcome or raises, and nothing is decided. The second half of this file compares the position
held with the journal.
"""

from contextlib import suppress
from decimal import Decimal

from krakenbot import log
from krakenbot.accounting import opening_fee
from krakenbot.alerts import Emit
from krakenbot.clock import Clock, StopRequestedError
from krakenbot.decision import Blocked, Plan
from krakenbot.errors import (
    Cause,
    ContradictionError,
    ExchangeError,
    KeyRefusedError,
    LaterError,
    RefusedError,
    StopError,
    UnansweredError,
)
from krakenbot.format import amount, price
from krakenbot.journal import Journal
from krakenbot.kraken.spot import Spot
from krakenbot.market import MarketState
from krakenbot.model import ZERO, Execution, Purpose, Step
from krakenbot.order_states import (
    LOOKUP_PAUSE_S,
    NOT_SENT_AFTER_S,
    TABLE,
    VISIBLE_S,
    Answer,
    Do,
    Search,
    State,
    Write,
    next_action,
    next_attempt,
)
from krakenbot.pairs import earn_balances, plain
from krakenbot.records import Intent, Outcome, client_order_id

DEADLINE_S = 15  # Kraken's engine refuses an order that reaches it later (docs, Add Order).
UNFILLED_MAX = 5
FIRST_PAUSE_S = 2.0
KEY_REFUSALS_MAX = 3  # When the key was refused for more orders in a row than this, the bot ends.
PURPOSES = (Purpose.CLOSE, Purpose.OPEN, Purpose.REVERSE)
CLOSING = (Purpose.CLOSE, Purpose.REVERSE)
HISTORY = len(NOT_SENT_AFTER_S)  # How many past orders can make a pause grow.


class Orders:
    """The orders and the position of one bot. Nothing is sent while an outcome is unknown.

    Order ids are derived from the plan and the key's `fingerprint`.
    """

    def __init__(
        self,
        plan: Plan,
        fingerprint: str,
        market: MarketState,
        exchange: Spot,
        journal: Journal,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._plan, self._fingerprint, self._market = plan, fingerprint, market
        self._exchange, self._journal, self._clock, self._emit = exchange, journal, clock, emit
        self._searches: dict[str, Search] = {}
        self._found: Execution | None = None
        # The newest refusal: the intent's id, and what is recorded unless a lookup finds the order.
        self._refusal = "", Outcome.REFUSED, ""
        self._failure: Exception | None = None
        self._key_refusals = 0
        # Without margin, the balance in base currency: now, and before the order.
        self._owned: Decimal | None = None
        self._owned_before: Decimal | None = None

    def send(self, step: Step, candle: int, held: Decimal, reason: str) -> None:
        """Write the intent, send its order once, and follow it until it is final."""
        self._owned_before = self._owned
        intent = self._intent(step, candle, held, reason)
        answer = Answer.NOT_FOUND  # No lookup is needed, except in the case below.
        trusted_since = int(self._journal.get("created") or 0)
        if trusted_since >= candle + self._plan.interval_s or self._journal.newest_intent() is None:
            # The journal is newer than the candle. One that was lost may have sent this order
            # already, at any time since the candle began.
            maybe_sent = intent._replace(created=min(candle, intent.created))
            answer = self._look_up(maybe_sent)
            # Its deadline begins now, after the lookup.
            is_new = answer is Answer.NOT_FOUND
            intent = self._intent(step, candle, held, reason) if is_new else maybe_sent
            was_adopted = int(self._journal.get("adopted") or -1) >= trusted_since
            if was_adopted and self._found is not None and self._found.status.is_final:
                # What this order traded was adopted with the rest.
                self._journal.write(maybe_sent)
                self._journal.conclude(maybe_sent, Outcome.ABANDONED, int(self._clock.now()))
                return
        self._follow(intent, State.PREPARED, answer)
        self._check_unfilled()

    def reconcile(self) -> None:
        """Look up every open intent until it is final; halt when too many were not filled."""
        for intent in self._journal.open_intents():
            state = State.ACCEPTED if intent.accepted else State.UNCONFIRMED
            self._follow(intent, state, self._look_up(intent))
        self._check_unfilled()

    def blocked(self, candle: int) -> dict[Purpose, Blocked]:
        """Return which purposes may not be ordered now for this candle, why, and until when."""
        now, blocked = self._clock.now(), dict[Purpose, Blocked]()
        newest, ordermin = self._journal.newest_intent(), self._market.rules.ordermin
        is_closable = abs(self._journal.account().held) >= ordermin
        # A flatten waits for no candle.
        interval_s = None if self._journal.get("flatten") else self._plan.interval_s
        for purpose in PURPOSES:
            history = self._journal.newest_of(purpose, HISTORY)
            if is_closable:  # What happened to orders below the minimum does not matter.
                history = [intent for intent in history if intent.volume >= ordermin]
            reason = next_attempt(history, candle, interval_s, ordermin, now)
            if reason is not None and (reason.until is None or reason.until > now):
                blocked[purpose] = reason
        if newest and newest.outcome is Outcome.NOT_SENT and newest.purpose in blocked:
            blocked = dict.fromkeys(Purpose, blocked[newest.purpose]) | blocked  # Offline.
        if newest and newest.purpose is Purpose.REVERSE and not newest.executed:
            blocked.setdefault(Purpose.REVERSE, Blocked("the last one was not filled", None))
        return blocked

    def _check_unfilled(self) -> None:
        count, note = self._journal.consecutive_unfilled()
        if count >= UNFILLED_MAX:
            raise self._journal.halt(f"{count} orders in a row were not filled; the last: {note}")

    def _follow(self, intent: Intent, state: State, answer: Answer) -> None:
        """Carry out the table until the order is final; raise when the loop must wait or halt."""
        while True:
            cell, search = TABLE[state, answer], self._searches.get(intent.id, Search())
            do, pause_s = next_action(cell, answer, search, self._clock.monotonic())
            self._write(cell.write, intent)
            state = cell.state
            match do:
                case Do.SEND:
                    answer = self._place(intent)
                case Do.LOOK_UP:
                    if pause_s:
                        self._clock.wait(pause_s)
                    answer = self._look_up(intent)
                case Do.PROVE:
                    return self._prove_absent(intent)
                case Do.DONE:
                    self._searches.pop(intent.id, None)
                    return None
                case Do.LEAVE_OPEN:
                    assert self._failure is not None
                    raise self._failure
                case Do.HALT:
                    raise self._halt(intent, cell.reason, answer)

    def _halt(self, intent: Intent, reason: str, answer: Answer) -> StopError:
        order = f"order {intent.id} ({intent.side.value} {plain(intent.volume)}) {reason}"
        return self._halted(f"{order}; the exchange shows {self._shown(answer)}. Check it there")

    def _halted(self, reason: str) -> StopError:
        """Halt because of an order, and say what is held if that differs from the journal."""
        halt = self._journal.halt(reason)  # On disk before anything else is asked.
        recorded = self._journal.account().held
        with suppress(ExchangeError, StopError, StopRequestedError):
            held = self._held(recorded)
            if held != recorded:
                self._journal.put(exchange_position=held)
                both = f"the exchange holds {plain(held)}, the journal records {plain(recorded)}"
                return StopError(f"{reason}; {both}")
        return halt

    def _shown(self, answer: Answer) -> str:
        """Return what the newest lookup has shown, for a person."""
        if answer is Answer.LOOKUP_FAILED:
            return "nothing"
        if self._found is None:
            return "no such order"
        done = f"{self._found.status.value}, {plain(self._found.volume)} done"
        return f"{self._found.exchange_order_id} {done}"

    def _write(self, what: Write, intent: Intent) -> None:
        match what:
            case Write.INTENT:
                self._journal.write(intent)
            case Write.ACCEPTED:
                self._journal.accept(intent.id)
            case Write.FILL:
                self._book(intent)
            case Write.REFUSAL:
                self._record_refusal(intent)

    def _record_refusal(self, intent: Intent) -> None:
        """Record that an order was not executed: its refusal or, without one, its absence."""
        name, outcome, note = self._refusal
        if name != intent.id:
            outcome, note = Outcome.ABSENT, "the exchange knows no such order"
        log.warning("order %s id=%s reason=%s", outcome.words, intent.id, note)
        self._journal.conclude(intent, outcome, int(self._clock.now()), note=note)
        text = f"the order to {intent.purpose.verb} was {outcome.words}: {note}"
        self._emit("refusal" if outcome is Outcome.REFUSED else "delay", text)

    def _place(self, intent: Intent) -> Answer:
        """Send the order. KeyRefusedError leaves the intent open, to be looked up later."""
        self._emit("order", f"{intent.side.value} {plain(intent.volume)}: {intent.reason}")
        try:
            self._exchange.place(intent.order, intent.deadline)
        except UnansweredError as error:
            return self._in_doubt(intent, error)
        except KeyRefusedError as error:
            if not error.rate_limited:
                self._key_refusals += 1
                if self._key_refusals > KEY_REFUSALS_MAX:
                    raise StopError(str(error), error.exit_code) from error
            self._refusal = intent.id, Outcome.ABSENT, str(error)
            raise  # No private request may follow now.
        except (LaterError, RefusedError) as error:
            outcome = self._outcome(intent, error)
            self._refusal = intent.id, outcome, str(error)
            if outcome is Outcome.NOT_SENT:
                return Answer.NOT_SENT
            # Not documented to leave no order; or a sale without margin, which is tried again and
            # could sell other coins.
            is_sale = intent.purpose is Purpose.CLOSE and outcome is Outcome.REFUSED
            if not intent.reduce_only and (is_sale or outcome is Outcome.REFUSED_FOR_NOW):
                return self._in_doubt(intent, error)
            return Answer.REJECTED
        self._key_refusals = 0
        return Answer.ACCEPTED

    def _in_doubt(self, intent: Intent, error: ExchangeError) -> Answer:
        log.warning("order may have been executed id=%s reason=%s", intent.id, error)
        if error.wait_s:
            self._clock.wait(error.wait_s)
        return Answer.UNKNOWN

    def _outcome(self, intent: Intent, error: LaterError | RefusedError) -> Outcome:
        """Return the outcome of an order refused with this error, if a lookup does not find it."""
        if isinstance(error, LaterError):
            if error.cause is Cause.UNREACHABLE:
                return Outcome.NOT_SENT
            if error.leaves_no_order:
                return Outcome.REFUSED_FOR_NOW_NO_ORDER
            return Outcome.REFUSED_FOR_NOW
        if error.cause is Cause.FUNDS and self.has_just_closed():
            return Outcome.REFUSED_FOR_NOW_NO_ORDER
        is_small = intent.volume < self._market.rules.ordermin or error.cause is Cause.TOO_SMALL
        is_small_close = is_small and intent.purpose is Purpose.CLOSE
        return Outcome.REFUSED_FOR_NOW if is_small_close else Outcome.REFUSED

    def has_just_closed(self) -> bool:
        """Return whether free margin may look too small because a close is not yet visible."""
        visible_from = self._clock.now() - VISIBLE_S
        closes = [intent for one in CLOSING for intent in self._journal.newest_of(one, 1)]
        return any(one.executed and (one.settled or 0) > visible_from for one in closes)

    def _look_up(self, intent: Intent) -> Answer:
        """Look up what became of the order. Halts when several orders have its id."""
        search, now = self._searches.get(intent.id, Search()), self._clock.monotonic()
        before, self._found = self._found, None
        is_over = self._clock.now() > intent.deadline + VISIBLE_S
        try:
            found = self._exchange.find(intent.id, intent.created)
            is_final = found is not None and found.status.is_final
            if found and is_final and found.volume != intent.volume and not is_over:
                # A partial fill may still grow: it is final once two lookups agree and the position
                # shows it.
                is_final = found == before and self._is_seen(intent, found)
        except ExchangeError as error:
            self._failure = error
            self._searches[intent.id] = search.failed(now, isinstance(error, RefusedError))
            log.warning("order lookup failed id=%s reason=%s", intent.id, error)
            return Answer.LOOKUP_FAILED
        except ContradictionError as error:
            raise self._halted(str(error)) from error
        self._searches[intent.id] = search.answered(now, is_over)
        self._found = found
        if found is None:
            return Answer.NOT_FOUND
        return Answer.FOUND_FINAL if is_final else Answer.FOUND_OPEN

    def _is_seen(self, intent: Intent, found: Execution) -> bool:
        """Return whether the position shows the partial fill that the lookup found."""
        traded = intent.side.sign * found.volume
        recorded = self._journal.account().held + traded
        if self._held(recorded) != recorded:
            return False
        # Without margin, other coins could hide that more was traded.
        before = self._owned_before
        return self._plan.leverage > 0 or (before is not None and self._owned == before + traded)

    def _intent(self, step: Step, candle: int, held: Decimal, reason: str) -> Intent:
        plan, rules, now = self._plan, self._market.rules, int(self._clock.now())
        leverage, offered = plan.leverage, rules.leverages(step.side)
        if step.purpose is Purpose.CLOSE and leverage and offered and leverage not in offered:
            leverage = min(offered)  # Any offered value closes.
        sent = self._journal.intents_of(plan.interval_s, candle)
        attempt = sum(intent.purpose is step.purpose for intent in sent)
        where = self._fingerprint, rules.pair, plan.interval_s, candle
        return Intent(
            id=client_order_id(*where, step.purpose, attempt),
            interval_s=plan.interval_s,
            candle=candle,
            purpose=step.purpose,
            side=step.side,
            volume=step.volume,
            leverage=leverage,
            reduce_only=step.reduce_only,
            reason=reason,
            held_before=held,
            created=now,
            deadline=now + DEADLINE_S,
        )

    def _book(self, intent: Intent) -> None:
        """Record the order's outcome and fill, and report side, volume, price and fee."""
        found, rules = self._found, self._market.rules
        assert found is not None
        volume, asked = plain(found.volume), plain(intent.volume)
        if not 0 <= found.volume <= intent.volume:
            order_id = found.exchange_order_id
            raise self._halted(f"order {order_id} filled {volume}, but {asked} was ordered")
        outcome = Outcome(found.status.value)
        fee = opening_fee(intent, found, self._market.margin_rates, self._market.rules)
        now = int(self._clock.now())
        self._journal.conclude(intent, outcome, now, found, found.reason, fee)
        paid = price(found.cost / found.volume, rules) if found.volume else "-"
        volume += "" if found.volume == intent.volume else f" of {asked}"
        order = f"{intent.purpose.verb}: {intent.side.value}"
        text = f"{order} {volume} at {paid}, fee {amount(found.fee, rules.quote)}"
        log.info("order ended id=%s status=%s %s", intent.id, outcome, text)
        self._emit("fill" if found.volume else "refusal", text)

    def _prove_absent(self, intent: Intent) -> None:
        """Record an order as absent; halt when trades or the position contradict that."""
        since, until = intent.created - 5, intent.deadline + VISIBLE_S
        traded = self._exchange.traded_orders(since, until)
        unknown = sorted({order for order in traded if not self._journal.knows_order(order)})
        name, outcome, _ = self._refusal
        # Without margin, a refusal is not contradicted by what a person trades meanwhile.
        is_refused = name == intent.id and outcome is not Outcome.ABSENT and not self._plan.leverage
        if unknown and not is_refused:
            recorded = self._journal.account().held
            held = self._held(recorded)
            raise self._journal.halt(
                f"order {intent.id} is not found, yet the exchange holds {plain(held)} (recorded: "
                f"{plain(recorded)}) and shows unknown trades: {', '.join(unknown)}",
                held,
            )
        self.position()  # Halts if it keeps contradicting the journal.
        self._record_refusal(intent)
        self._searches.pop(intent.id, None)

    def position(self) -> Decimal:
        """Return the signed volume held, once the exchange and the journal agree.

        Reads may lag, so a difference is read again for VISIBLE_S; if it persists, the bot halts.
        """
        recorded, plan = self._journal.account().held, self._plan
        on_margin = plan.leverage > 0
        if recorded and self._journal.get("on_margin", str(int(on_margin))) != str(int(on_margin)):
            raise self._journal.halt(
                f"{plain(recorded)} {plan.pair} is held {'without' if on_margin else 'on'} "
                f"margin, leverage is now {plan.leverage}: set it back, or close the position by "
                "hand and `krakenbot adopt`"
            )
        began = self._clock.monotonic()
        while (held := self._held(recorded)) != recorded:
            waited_s = self._clock.monotonic() - began
            if waited_s >= VISIBLE_S:
                raise self._contradiction(held, recorded)
            figures = plain(held), plain(recorded)
            log.warning("position differs, asking again held=%s recorded=%s", *figures)
            self._clock.wait(min(FIRST_PAUSE_S + waited_s, LOOKUP_PAUSE_S))
        return held

    def _held(self, recorded: Decimal) -> Decimal:
        if self._plan.leverage:
            return self._exchange.position().volume
        # Without margin, the bot's position is what it bought itself. Any other coins are ignored,
        # but the balance must cover the position.
        self._owned = self._exchange.balances().get(self._market.rules.base, ZERO)
        return min(recorded, self._owned)

    def _contradiction(self, held: Decimal, recorded: Decimal) -> StopError:
        """Halt with both numbers, and return the error that ends the bot."""
        cause, earning = "was it closed, opened or liquidated by someone else", dict[str, Decimal]()
        if not self._plan.leverage:
            cause = "were coins sold or moved, or did Kraken take a fee in coins"
            earning = earn_balances(self._exchange.balances(), self._market.rules.base)
        why = f": {cause}? Check, then `krakenbot adopt` to continue with what is held"
        if earning:
            places = " and ".join(f"{plain(amount)} {code}" for code, amount in earning.items())
            why = (
                f"; {places} is in Kraken's Earn or staked: switch auto-earn off, move it back to "
                "the spot wallet, then `krakenbot resume`. Until it is back do not adopt: the bot "
                "would buy again"
            )
        numbers = f"the exchange holds {plain(held)} {self._plan.pair}, the journal records "
        return self._journal.halt(f"{numbers}{plain(recorded)}{why}", held)
