"""The loop and one tick: settle, look, decide, write, send. Read this first.

An order is written to disk before it is sent, sent once, and asked about until its end is
known. Nothing is sent while the end of an order, or the position, is not known.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot.clock import Clock, StopRequestedError
from krakenbot.decision import Decision, Plan, Snapshot, decide
from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.journal import ABSENT, NOT_SENT, REFUSED, Intent, Journal, client_order_id
from krakenbot.model import (
    Candle,
    Direction,
    Execution,
    MarginSummary,
    Position,
    Purpose,
    Quote,
    Signal,
    Step,
)
from krakenbot.ohlc import CandleWindow
from krakenbot.pairs import PairRules, plain
from krakenbot.risk import Surroundings, objection

ROUNDS_MAX = 3  # close, open, confirm
DEADLINE_S = 15  # The engine refuses an order that reaches it later.
VISIBLE_S = 120  # How long reading may lag behind what happened: twice the longest seen.
LOOK_PAUSE_S = 10.0
WATCH_MIN_S = 75.0  # An order counts as absent only when looked for this long by this process.
WAKE_DELAY_S = 1.0
PASSING_PAUSE_S = 60.0
REFRESH_S = 3600.0
FEE_REFRESH_S = 86400.0
BACKOFF_MAX_S = 60.0
CLOCK_WARN_S = 5.0
FRUITLESS_MAX = 5

log = logging.getLogger("krakenbot")


class Event(NamedTuple):
    """Something that a person may want to know at once. `values` are ready to be shown."""

    kind: str
    text: str
    values: Mapping[str, str] = {}


class TickResult(NamedTuple):
    """`next_due` is when the next tick should be; `decided` whether a candle was decided on."""

    next_due: float
    decided: bool


class Bot:
    """One pair, one journal, one exchange. The parts are handed in; none is made here."""

    def __init__(
        self,
        plan: Plan,
        exchange: Exchange,
        journal: Journal,
        clock: Clock,
        fingerprint: str,
        on_event: Callable[[Event], None] = lambda event: None,
        checks: Sequence[Callable[[], None]] = (),
    ) -> None:
        """`checks` are done before the first decision, with the exchange's time known."""
        self._checks = checks
        self._plan = plan
        self._exchange = exchange
        self._journal = journal
        self._clock = clock
        self._fingerprint = fingerprint
        self._on_event = on_event
        self._window = CandleWindow(exchange, clock, plan.interval_s, plan.candles_min)
        self._watched: dict[str, list[float]] = {}
        self._rules: PairRules | None = None
        self._fee_rate = Decimal(0)
        self._entries: set[str] = set()
        self._fees_read = self._refreshed = self._clock_offset_s = 0.0

    # -- the loop ------------------------------------------------------------------------------

    def run(self, *, once: bool = False, patience_s: float = 300.0, adopt: bool = False) -> None:
        """Decide on every finished candle until StopRequestedError; with `once` on one.

        Raises StopError when a person must look, LaterError when the exchange cannot be reached
        at the start for longer than `patience_s`.
        """
        try:
            self._patiently(self._start, patience_s)
            if adopt:
                self._patiently(self._adopt, patience_s)
            self._refuse_when_halted()
            self._emit("start", f"trading {self._plan.pair} on {self._plan.interval_s // 60} min")
            self._loop(once)
        except StopRequestedError:
            self._emit("stop", "stopped as asked")
            raise

    def _loop(self, once: bool) -> None:
        backoff_s, failing_since, said = 1.0, 0.0, 0.0
        while True:
            try:
                result = self.tick()
                if failing_since:
                    lasted_s = self._clock.monotonic() - failing_since
                    self._emit("recovery", f"the exchange answers again after {lasted_s:.0f} s")
                    backoff_s, failing_since = 1.0, 0.0
                if once and result.decided:
                    return
                self._clock.wait(max(0.0, result.next_due - self._clock.now()))
                self._refresh()
            except (LaterError, UnansweredError, RefusedError) as error:
                # A read that fails is no reason to end: nothing is sent, and it is asked again.
                now = self._clock.monotonic()
                if not failing_since or now - said >= 60:
                    said = now
                    log.warning("no tick now, asking again reason=%s", error)
                failing_since = failing_since or now
                self._clock.wait(max(backoff_s, getattr(error, "wait_s", 0.0)))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def flatten(self, reason: str, patience_s: float = 300.0) -> None:
        """Close what the bot holds, verify, and leave it halted for `reason`."""
        self._patiently(self._start, patience_s)
        self._journal.put(flatten=reason)
        for _ in range(2 * FRUITLESS_MAX):
            self._patiently(self._settle, patience_s)
            if self._agreed_position() == 0:
                self._journal.put(flatten=None, halted=reason)
                return
            try:
                self._close_now(reason)
            except (LaterError, UnansweredError) as error:
                log.warning("not closed yet reason=%s", error)
                self._clock.wait(LOOK_PAUSE_S)
        raise StopError(f"could not close the position for: {reason}; look at the exchange")

    def _patiently(self, action: Callable[[], None], patience_s: float) -> None:
        began, said, pause_s = self._clock.monotonic(), float("-inf"), 1.0
        while True:
            try:
                return action()
            except (LaterError, UnansweredError) as error:
                now = self._clock.monotonic()
                if now - began > patience_s:
                    raise LaterError(f"gave up after {patience_s:.0f} s: {error}") from error
                if now - said >= 60:
                    said = now
                    log.warning("waiting for the exchange reason=%s", error)
                wait_s = max(pause_s, getattr(error, "wait_s", 0.0))
                self._clock.wait(min(wait_s, max(0.1, patience_s - (now - began) + 0.1)))
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)

    def _start(self) -> None:
        self._measure_clock()
        self._rules = self._exchange.rules()
        self._refreshed = self._clock.monotonic()
        for check in self._checks:
            check()
        self._read_fee_rate()
        self._settle()
        self._book_rollovers()

    def _adopt(self) -> None:
        """Make what is held the journal's own, and clear a halt about it."""
        position = self._exchange.position()
        price = self._exchange.quote().mid
        if position.volume:
            price = position.cost / abs(position.volume)
        before = self._journal.account().held
        self._journal.adopt(position.volume, price)
        self._journal.put(halted=None, flatten=None)
        log.warning(
            "position adopted held=%s explained_before=%s price=%s",
            plain(position.volume), plain(before), plain(price),
        )  # fmt: skip

    def _refuse_when_halted(self) -> None:
        reason = self._journal.get("halted")
        if reason:
            raise StopError(f"halted: {reason}. `krakenbot resume` clears this after a look")

    def _refresh(self) -> None:
        """Between ticks, hourly: the exchange's clock and the pair's rules; daily: the fee."""
        if self._clock.monotonic() - self._refreshed >= REFRESH_S:
            self._measure_clock()
            self._rules = self._exchange.rules()
            self._book_rollovers()
            self._refreshed = self._clock.monotonic()
        if self._clock.monotonic() - self._fees_read >= FEE_REFRESH_S:
            self._read_fee_rate()

    def _read_fee_rate(self) -> None:
        self._fee_rate = self._exchange.fee_rate()
        self._fees_read = self._clock.monotonic()

    def _measure_clock(self) -> None:
        """Take the exchange's time, good to about half a second and half the round trip."""
        sent = self._clock.monotonic()
        server = self._exchange.server_time()
        estimate = server + 0.5 + (self._clock.monotonic() - sent) / 2
        if abs(estimate - self._clock.now()) > 1.0:
            self._clock.set(estimate)
        self._clock_offset_s = estimate - self._clock.wall()
        if abs(self._clock_offset_s) > CLOCK_WARN_S:
            log.warning("clock of this host is off offset_s=%+.1f", -self._clock_offset_s)

    # -- one tick ------------------------------------------------------------------------------

    def tick(self) -> TickResult:
        """Bring the position to where the newest finished candle says it should be.

        Safe to be called again after any error and after any death: all it needs to know is on
        disk or at the exchange.
        """
        interval_s = self._plan.interval_s
        self._settle()
        expected = int(self._clock.now()) // interval_s * interval_s - interval_s
        candles = self._window.up_to(expected)
        if candles is None:
            log.warning("candle left out time=%s: the exchange has not finished it", expected)
            self._measure_clock()
            return TickResult(expected + 2 * interval_s + WAKE_DELAY_S, decided=False)
        candle = candles[-1]
        next_due = candle.time + 2 * interval_s + WAKE_DELAY_S
        if self._journal.is_done(interval_s, candle.time):
            return TickResult(next_due, decided=True)
        signal = self._plan.strategy(candles)
        if signal.direction is Direction.FLAT:
            signal = self._plan.strategy(self._window.widen(expected))
        done = self._work(candle, signal)
        if not done:
            return TickResult(min(next_due, self._clock.now() + PASSING_PAUSE_S), decided=True)
        return TickResult(next_due, decided=True)

    def _work(self, candle: Candle, signal: Signal) -> bool:
        """Decide and send until on target; False when the market should be asked again soon."""
        around: tuple[str, Quote] | None = None
        done = True
        for _ in range(ROUNDS_MAX):
            held = self._agreed_position()
            self._check_loss(held, candle.close)
            decision = decide(self._snapshot(candle, signal, held), self._plan)
            step = decision.step
            if step is None:
                break
            if around is None:
                around = self._exchange.system_status(), self._exchange.quote()
            summary = self._summary() if step.purpose is not Purpose.CLOSE else None
            against = objection(
                step, self._plan.leverage, self._around(around, held, summary), self._plan.limits
            )
            if against is not None:
                done = not against.passing
                decision = Decision(decision.target, None, f"{decision.reason}, but {against.reason}")
                self._emit("objection", decision.reason)
                break
            self._journal.decide(self._row(candle, signal, held, decision))
            self._send(self._write(candle.time, step, held, decision.reason))
            self._settle()
        else:
            held = self._agreed_position()
        self._finish(candle, signal, held, decision, done)
        return done

    def _snapshot(self, candle: Candle, signal: Signal, held: Decimal) -> Snapshot:
        assert self._rules is not None
        tried = {
            intent.purpose
            for intent in self._journal.intents(
                "WHERE interval_s = ? AND candle = ?", self._plan.interval_s, candle.time
            )
            if intent.outcome != NOT_SENT
        }
        return Snapshot(
            signal=signal,
            held=held,
            rules=self._rules,
            waits_for_turn_from=self._first_direction(signal.direction),
            flatten_reason=self._journal.get("flatten") or None,
            tried=tried,
        )

    def _first_direction(self, direction: Direction) -> Direction | None:
        """Return the direction whose end a first start waits for; None when it has entered."""
        if self._plan.entry_now or self._journal.get("entered"):
            return None
        first = self._journal.get("first_direction")
        if not first and direction is not Direction.FLAT:
            self._journal.put(first_direction=int(direction))
            return direction
        if first and direction is not Direction.FLAT and int(first) != direction:
            self._journal.put(entered=1)
            return None
        return Direction(int(first)) if first else direction

    def _around(
        self, market: tuple[str, Quote], held: Decimal, summary: MarginSummary | None
    ) -> Surroundings:
        assert self._rules is not None
        return Surroundings(
            system_status=market[0],
            quote=market[1],
            rules=self._rules,
            held=held,
            summary=summary,
            orders_today=self._journal.orders_since(int(self._clock.now()) - 86400),
            fee_rate=self._fee_rate,
            clock_offset_s=self._clock_offset_s,
        )

    def _summary(self) -> MarginSummary:
        if self._plan.leverage:
            return self._exchange.summary()
        assert self._rules is not None
        return MarginSummary(
            self._exchange.balances().get(self._rules.quote, Decimal(0)), Decimal(0), Decimal(0)
        )

    def _check_loss(self, held: Decimal, price: Decimal) -> None:
        """Latch `max_loss` when it is reached; once flat, end with a safety stop."""
        limit = self._plan.limits.max_loss
        loss = Decimal(self._journal.get("pnl_at_resume", "0")) - self._journal.account().pnl(price)
        reason = self._journal.get("flatten")
        if not reason and limit is not None and loss >= limit:
            reason = f"the loss since the last resume is {loss:.2f}, max_loss is {limit}"
            self._journal.put(flatten=reason)
            log.critical("flattening reason=%s", reason)
        if reason and held == 0:
            self._journal.put(flatten=None)
            raise self._halt(reason)

    def _finish(
        self, candle: Candle, signal: Signal, held: Decimal, decision: Decision, done: bool
    ) -> None:
        row = self._row(candle, signal, held, decision)
        summary = self._summary()
        level = summary.margin_level
        if level is not None and level < self._plan.limits.min_margin_level:
            log.critical("margin level low level=%.1f", level)
            self._emit("margin", f"the margin level is {level:.1f} %")
        if done:
            self._journal.finish(row, candle.close, summary)
        else:
            self._journal.decide(row)
        values = {
            "candle": str(candle.time),
            "price": plain(candle.close),
            "average": f"{signal.average:.8g}",
            "slope": str(signal.slope),
            "target": str(int(decision.target)),
            "held": plain(held),
            "equity": f"{summary.equity:.2f}",
            "reason": decision.reason,
        }
        log.info("decided %s", " ".join(f"{key}={value}" for key, value in values.items()))
        self._emit("decision", decision.reason, values)

    def _row(
        self, candle: Candle, signal: Signal, held: Decimal, decision: Decision
    ) -> dict[str, object]:
        return {
            "interval_s": self._plan.interval_s,
            "candle": candle.time,
            "price": str(candle.close),
            "average": f"{signal.average:.12g}",
            "slope": signal.slope,
            "target": int(decision.target),
            "held": str(held),
            "reason": decision.reason,
            "decided": int(self._clock.now()),
        }

    # -- what is held --------------------------------------------------------------------------

    def _agreed_position(self) -> Decimal:
        """Return the signed volume held, once the exchange and the journal say the same.

        Reading may lag, so a difference is asked about for a while; then a person must look.
        """
        explained = self._journal.account().held
        pause_s, began = 2.0, self._clock.monotonic()
        while True:
            held = self._held(explained)
            if held == explained:
                return held
            if self._clock.monotonic() - began >= VISIBLE_S:
                break
            log.warning("position differs, asking again held=%s explained=%s", held, explained)
            self._clock.wait(pause_s)
            pause_s = min(pause_s * 2, LOOK_PAUSE_S)
        raise self._halt(
            f"the exchange holds {plain(held)} {self._plan.pair}, the journal explains "
            f"{plain(explained)}: closed, opened or liquidated by someone else? "
            "Look, then `run --adopt` to go on with what is held"
        )

    def _held(self, explained: Decimal) -> Decimal:
        if self._plan.leverage:
            position = self._exchange.position()
            if position.volume == explained:
                self._book_opening_fees(position)
            return position.volume
        # Without margin, the bot's position is what it bought itself; other coins of the same
        # kind are not its business, but they must at least be there.
        assert self._rules is not None
        return min(explained, self._exchange.balances().get(self._rules.base, Decimal(0)))

    def _book_opening_fees(self, position: Position) -> None:
        """Book what opening each entry cost beyond its share of the order's own fee."""
        for entry in position.entries:
            if entry.id in self._entries:
                continue
            self._entries.add(entry.id)
            for intent in self._journal.intents(
                "WHERE exchange_order_id = ?", entry.exchange_order_id
            ):
                share = (intent.fee * entry.cost / intent.cost).quantize(Decimal("0.00001"))
                amount = max(entry.fee - share, Decimal(0))
                self._journal.charge(f"open {entry.id}", self._now(), "opening", amount)

    def _book_rollovers(self) -> None:
        """Book what keeping the journal's own entries open has cost since the last time."""
        if not self._plan.leverage:
            return
        since = int(self._journal.get("rollovers_read", str(self._now())))
        for rollover in self._exchange.rollovers(since - 2 * VISIBLE_S):
            if self._journal.is_charged(f"open {rollover.entry_id}"):
                self._journal.charge(rollover.id, rollover.time, "rollover", rollover.amount)
        self._journal.put(rollovers_read=self._now())

    # -- an order, exactly ---------------------------------------------------------------------

    def _write(self, candle: int, step: Step, held: Decimal, reason: str) -> Intent:
        """Return the intent, which is on disk by then."""
        same = self._journal.intents(
            "WHERE interval_s = ? AND candle = ? AND purpose = ? AND outcome = ?",
            self._plan.interval_s, candle, step.purpose.value, NOT_SENT,
        )  # fmt: skip
        now = int(self._clock.now())
        leverage, offered = self._plan.leverage, self._rules_known().leverages(step.side)
        if step.purpose is Purpose.CLOSE and leverage and offered and leverage not in offered:
            leverage = min(offered)  # Any offered value closes.
        intent = Intent(
            id=client_order_id(
                self._fingerprint,
                self._plan.pair,
                self._plan.interval_s,
                candle,
                step.purpose,
                len(same),
            ),
            interval_s=self._plan.interval_s,
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
        self._journal.write(intent)
        return intent

    def _send(self, intent: Intent) -> None:
        """Send the order of a written intent, once. Its end is learnt by settling."""
        self._emit("order", f"{intent.side.value} {plain(intent.volume)}: {intent.reason}")
        try:
            self._exchange.place(intent.order, intent.deadline)
        except UnansweredError as error:
            log.warning("order unanswered id=%s reason=%s", intent.id, error)
        except LaterError as error:
            if error.sent:
                self._drop_refused(intent, error)
            else:
                log.warning("order not sent id=%s reason=%s", intent.id, error)
                self._journal.conclude(intent, NOT_SENT, self._now(), note=str(error))
        except RefusedError as error:
            self._drop_refused(intent, error)
        except StopError as error:
            self._drop_refused(intent, error)
            raise
        else:
            self._journal.accept(intent.id)

    def _drop_refused(self, intent: Intent, error: Exception) -> None:
        """Believe a refusal after one look that finds no such order; else leave it to settling."""
        try:
            if self._exchange.find(intent.id, intent.created) is not None:
                return
        except (LaterError, UnansweredError, RefusedError, StopError) as failure:
            log.warning("refusal not confirmed id=%s reason=%s", intent.id, failure)
            return
        log.warning("order refused id=%s reason=%s", intent.id, error)
        self._journal.conclude(intent, REFUSED, self._now(), note=str(error))
        self._emit("refusal", str(error))

    def _settle(self) -> None:
        """Ask about every open intent until its end is known; then see that orders still work."""
        for intent in self._journal.open_intents():
            self._settle_one(intent)
        count, note = self._journal.fruitless_in_a_row()
        if count >= FRUITLESS_MAX:
            raise self._halt(f"{count} orders in a row traded nothing; the last: {note}")

    def _settle_one(self, intent: Intent) -> None:
        pause_s = 1.0 if intent.accepted else LOOK_PAUSE_S
        previous: Execution | None = None
        looked = False
        while True:
            if looked:
                self._clock.wait(pause_s)
                pause_s = min(pause_s * 2, LOOK_PAUSE_S)
            looked = True
            found = self._exchange.find(intent.id, intent.created)
            if found is None:
                previous = None
                if self._is_absent(intent):
                    return
                continue
            self._watched.pop(intent.id, None)
            complete = found.volume == intent.volume and found.status.is_final
            # A cancelled order's fill may still be on its way: two equal reads.
            if complete or (found.status.is_final and found == previous):
                return self._conclude(intent, found)
            previous = found
            if self._clock.now() > intent.deadline + VISIBLE_S and not found.status.is_final:
                raise self._halt(
                    f"market order {found.exchange_order_id} is still {found.status.value}, "
                    f"{plain(found.volume)} of {plain(intent.volume)} done; look at the exchange"
                )

    def _conclude(self, intent: Intent, found: Execution) -> None:
        if not 0 <= found.volume <= intent.volume:
            raise self._halt(
                f"order {found.exchange_order_id} traded {plain(found.volume)}, "
                f"asked for were {plain(intent.volume)}"
            )
        self._journal.conclude(
            intent, found.status.value, self._now(), found, found.reason
        )
        price = f"{found.cost / found.volume:.8g}" if found.volume else "-"
        text = (
            f"{intent.side.value} {plain(found.volume)} of {plain(intent.volume)} at {price}, "
            f"fee {plain(found.fee)}"
        )
        log.info("order ended id=%s status=%s %s", intent.id, found.status.value, text)
        self._emit("fill" if found.volume else "refusal", text)

    def _is_absent(self, intent: Intent) -> bool:
        """Return True once it is certain that an unfound order never happened, and write so.

        Certain means: the deadline and the lag of reading are over, this process has looked for
        a good while, and neither the trades nor the position say otherwise.
        """
        now = self._clock.monotonic()
        looks = self._watched.setdefault(intent.id, [])
        looks.append(now)
        del looks[1:-1]
        if self._clock.now() <= intent.deadline + VISIBLE_S or now - looks[0] < WATCH_MIN_S:
            return False
        if intent.accepted:
            raise self._halt(
                f"the exchange accepted order {intent.id} and now does not know it; look there"
            )
        strange = self._strange_trades(intent)
        held = self._held(self._journal.account().held)
        if strange or held != self._journal.account().held:
            raise self._halt(
                f"order {intent.id} is not found, yet the exchange holds {plain(held)} (explained: "
                f"{plain(self._journal.account().held)}) and shows unexplained trades: "
                f"{', '.join(strange) or 'none'}"
            )
        log.warning("order never happened id=%s", intent.id)
        self._journal.conclude(intent, ABSENT, self._now(), note="not found after its deadline")
        self._emit("refusal", f"the {intent.side.value} order never reached the exchange")
        return True

    def _strange_trades(self, intent: Intent) -> Sequence[str]:
        trades = self._exchange.traded_orders(intent.created - 5)
        return [order for order in trades if not self._journal.knows_order(order)]

    def _close_now(self, reason: str) -> None:
        """Send one closing order outside of any candle."""
        held = self._agreed_position()
        direction = Direction.FLAT
        snapshot = Snapshot(
            Signal(direction, Decimal(0), 0), held, self._rules_known(), None, reason, frozenset()
        )
        decision = decide(snapshot, self._plan)
        if decision.step is None:
            raise StopError(decision.reason)
        self._send(self._write(self._now(), decision.step, held, reason))
        self._settle()

    # -- small things --------------------------------------------------------------------------

    def _rules_known(self) -> PairRules:
        assert self._rules is not None
        return self._rules

    def _now(self) -> int:
        return int(self._clock.now())

    def _halt(self, reason: str) -> StopError:
        """Write why the bot stops for good and return the error that ends it."""
        self._journal.put(halted=reason)
        log.critical("halted reason=%s", reason)
        self._emit("halt", reason)
        return StopError(reason)

    def _emit(self, kind: str, text: str, values: Mapping[str, str] | None = None) -> None:
        self._on_event(Event(kind, text, values or {}))


__all__ = ["Bot", "Event", "StopRequestedError", "TickResult"]
