"""The loop and one tick: settle, look, decide, send. Read this first, then orders.py.

All that a tick needs to know is on disk or at the exchange, so it may be repeated after any
error and after any death.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import NamedTuple, TypeVar

from krakenbot import log
from krakenbot.accounting import read_ledger
from krakenbot.candles import CandleWindow
from krakenbot.clock import Clock, StopRequestedError
from krakenbot.decision import Decision, Plan, Snapshot, decide
from krakenbot.errors import ConfigError, LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.journal import Journal, Outcome
from krakenbot.market import MarketState
from krakenbot.model import (
    ZERO,
    Candle,
    Direction,
    Purpose,
    Side,
    Signal,
    Step,
)
from krakenbot.orders import UNFILLED_MAX, VISIBLE_S, Orders, Owner
from krakenbot.pairs import plain
from krakenbot.risk import objection
from krakenbot.rulefile import RuleError

ROUNDS_MAX = 3  # close, open, confirm
WAKE_DELAY_S = 1.0
PASSING_PAUSE_S = 60.0
BACKOFF_MAX_S = 60.0
BOOKS_S = 3600.0
DAY_S = 86400

T = TypeVar("T")


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
        checks: Sequence[Callable[[], str | None]] = (),
    ) -> None:
        """`checks` are done before the first decision, with the exchange's time known.

        What one of them returns says why this run only closes what is held.
        """
        self._plan = plan
        self._exchange = exchange
        self._journal = journal
        self._clock = clock
        self._on_event = on_event
        self._checks = checks
        owner = Owner(fingerprint, plan.pair, plan.interval_s, plan.leverage)
        self._orders = Orders(owner, exchange, journal, clock, self._emit)
        self._window = CandleWindow(exchange, clock, plan.interval_s, plan.candles_min)
        self._market = MarketState(plan, exchange, clock)
        self._books_kept = float("-inf")

    # -- the loop ------------------------------------------------------------------------------

    def run(self, *, once: bool = False, patience_s: float = 300.0, adopt: bool = False) -> None:
        """Decide on every finished candle until StopRequestedError; with `once` on one.

        Raises StopError when a person must look, LaterError when the exchange cannot be reached
        at the start for longer than `patience_s`.
        """
        try:
            self._refuse_when_halted(adopt)
            self._patiently(self._start, patience_s)
            if adopt:
                self._patiently(self._adopt, patience_s)
            self._refuse_when_halted(adopt=False)
            self._patiently(self._orders.reconcile, patience_s)
            rules = self._market.rules
            units = {"base": rules.base, "quote": rules.quote}
            units["pair_decimals"] = str(rules.pair_decimals)
            text = f"trading {self._plan.pair} on {self._plan.interval_s // 60} min"
            self._emit("start", text, units)
            if once:
                self._patiently(self._tick_once, patience_s)
                return
            while True:
                due = self._patiently(self.tick).next_due
                if self._keep_books():
                    gc.collect()  # Python keeps thousands of small tuples until it is told not to.
                self._clock.wait(max(0.0, due - self._clock.now()))
                self._refresh()
        except StopRequestedError:
            self._emit("stop", "stopped as asked")
            raise
        except StopError as error:
            self._journal.keep_stop(error)
            self._emit("halt", str(error))
            raise

    def flatten(self, reason: str, patience_s: float = 300.0) -> None:
        """Close what the bot holds, verify, and leave it halted for `reason`."""
        self._patiently(self._know_the_market, patience_s)
        self._journal.resume(flatten=reason)
        why = "the orders to close it traded nothing"
        try:
            for _ in range(2 * UNFILLED_MAX):
                if self._patiently(partial(self._close_all, reason), patience_s):
                    self._journal.put(flatten=None, halted=reason)
                    return
                self._clock.wait(1.0)
        except LaterError as error:
            why = str(error)
        raise self._journal.halt(
            f"could not close the position for: {reason}; {plain(self._journal.account().held)} "
            f"{self._plan.pair} may still be held ({why}): look at Kraken"
        )

    def _close_all(self, reason: str) -> bool:
        """Return whether nothing is held; if something is, send one order that closes it."""
        self._orders.reconcile()
        held = self._orders.position()
        if held == 0:
            return True
        nowhere = Signal(Direction.FLAT, ZERO, 0)
        snapshot = Snapshot(nowhere, held, self._market.rules, None, reason, frozenset())
        step = decide(snapshot, self._plan).step
        if step is None:  # Whether something so small can be closed is Kraken's say.
            side = Side.SELL if held > 0 else Side.BUY
            step = Step(Purpose.CLOSE, side, abs(held), self._plan.leverage > 0)
        candle = int(self._clock.now())  # Outside of any candle, so that ids are new.
        self._orders.send(step, self._market.rules, candle, held, reason)
        return False

    def _patiently(self, action: Callable[[], T], patience_s: float = float("inf")) -> T:
        """Return what the action returns, repeating it while the exchange cannot be had.

        Raises LaterError when that lasts longer than `patience_s`.
        """
        began: float | None = None
        said, pause_s = float("-inf"), 1.0
        while True:
            try:
                result = action()
            except (LaterError, UnansweredError, RefusedError) as error:
                # A read that fails is no reason to end: nothing is sent, and it is asked again.
                now = self._clock.monotonic()
                began = now if began is None else began
                if now - began > patience_s:
                    raise LaterError(f"gave up after {patience_s:.0f} s: {error}") from error
                if now - said >= 60:
                    said = now
                    log.warning("waiting for the exchange reason=%s", error)
                    self._emit("waiting", str(error))
                wait_s = max(pause_s, getattr(error, "wait_s", 0.0))
                self._clock.wait(min(wait_s, max(0.1, patience_s - (now - began) + 0.1)))
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
            else:
                if began is not None:
                    lasted_s = self._clock.monotonic() - began
                    self._emit("recovery", f"the exchange answers again after {lasted_s:.0f} s")
                return result

    def _refuse_when_halted(self, adopt: bool) -> None:
        reason = self._journal.get("halted")
        if reason and not adopt:
            raise StopError(f"halted: {reason}. `krakenbot resume` clears this after a look")

    def _know_the_market(self) -> None:
        self._market.learn()
        self._orders.base = self._market.rules.base

    def _start(self) -> None:
        self._know_the_market()
        for check in self._checks:
            if reason := check():
                limits = self._plan.limits._replace(close_only=reason)
                self._plan = self._plan._replace(limits=limits)
        self._market.read_fee_rate()
        self._keep_books()

    def _adopt(self) -> None:
        """Make what is held the journal's own, and clear a halt about it."""
        try:
            self._orders.reconcile()
        except StopError:
            # Looking at it was the person's part; only what may still happen is not given up.
            over = int(self._clock.now()) - VISIBLE_S
            if any(intent.deadline > over for intent in self._journal.open_intents()):
                raise
        # What this bot did last may not be visible yet, and would be adopted as it was before.
        newest = self._journal.newest_intent()
        if newest is not None:
            visible_s = (newest.settled or newest.created) + VISIBLE_S - self._clock.now()
            self._clock.wait(min(max(visible_s, 0.0), VISIBLE_S))
        before = self._journal.account().held
        price = self._exchange.quote().mid
        if self._plan.leverage:
            position = self._exchange.position()
            held = position.volume
            price = position.cost / abs(held) if held else price
        else:
            owned = self._exchange.balances().get(self._market.rules.base, ZERO)
            held = min(before or self._plan.size, owned)
        on_margin = self._plan.leverage > 0
        self._journal.adopt(held, price, int(self._clock.now()), on_margin)
        log.warning("adopted held=%s explained_before=%s price=%s", held, before, price)

    def _keep_books(self) -> bool:
        """Book what the exchange's ledger shows and say where it differs, when that is due."""
        now = self._clock.monotonic()
        if now - self._books_kept < BOOKS_S:
            return False
        self._books_kept = now
        difference = read_ledger(self._exchange, self._market.rules, self._journal, self._clock)
        if difference:
            self._emit("difference", difference)
        return True

    def _refresh(self) -> None:
        """Right before a tick: read anew what has grown old of all else."""
        try:
            self._market.refresh(self._journal.consecutive_unfilled()[0] > 0)
        except (LaterError, UnansweredError, RefusedError) as error:
            log.warning("not refreshed, trying again after the next candle reason=%s", error)

    # -- one tick ------------------------------------------------------------------------------

    def _tick_once(self) -> None:
        if not self.tick().decided:
            raise LaterError("the newest candle is not finished at the exchange")

    def tick(self) -> TickResult:
        """Bring the position to where the newest finished candle says it should be."""
        interval_s = self._plan.interval_s
        self._orders.reconcile()
        if self._plan.limits.close_only and not self._journal.account().held:
            raise ConfigError(f"nothing is held any more: {self._plan.limits.close_only}")
        # The newest candle that can be finished ended less than an interval ago.
        expected = int(self._clock.now()) - 2 * interval_s + 1
        candles = self._window.up_to(expected)
        signal = self._signal(candles)
        if candles and signal.direction is None and self._window.widen():
            candles = self._window.up_to(expected)
            signal = self._signal(candles)
        if candles is None:
            log.warning("candle left out: the exchange has not finished it in good time")
            self._market.measure_clock()
            now = int(self._clock.now())
            return TickResult(now - now % interval_s + interval_s + WAKE_DELAY_S, decided=False)
        next_due = candles[-1].time + 2 * interval_s + WAKE_DELAY_S
        if self._journal.is_done(interval_s, candles[-1].time):
            return TickResult(next_due, decided=True)
        done = self._work(candles[-1], self._remembered(signal))
        if not done:
            return TickResult(min(next_due, self._clock.now() + PASSING_PAUSE_S), decided=True)
        return TickResult(next_due, decided=True)

    def _signal(self, candles: Sequence[Candle] | None) -> Signal:
        try:
            return self._plan.strategy(candles or ())
        except RuleError as error:
            held = self._journal.account().held
            raise self._journal.halt(
                f"{error}. Nothing was sent; {plain(held)} {self._plan.pair} stays held until "
                "somebody acts"
            ) from error

    def _remembered(self, signal: Signal) -> Signal:
        """Return the signal, without a view of its own with the one that was had last."""
        last = self._journal.get("direction")
        if signal.direction is None:
            return signal._replace(direction=Direction(int(last)) if last else None)
        if last != str(int(signal.direction)):
            self._journal.put(direction=int(signal.direction))
        return signal

    def _work(self, candle: Candle, signal: Signal) -> bool:
        """Decide and send until on target; False when the market should be asked again soon."""
        blocked: set[Purpose] = set()
        done = True
        self._market.invalidate_quote()
        for _ in range(ROUNDS_MAX):
            held = self._orders.position()
            self._check_loss(held, candle.close)
            decision = decide(self._snapshot(candle, signal, held, blocked), self._plan)
            step = decision.step
            if step is None:
                break
            today = self._journal.orders_since(int(self._clock.now()) - DAY_S)
            inputs = self._market.risk_inputs(step, held, today)
            limits = self._plan.limits
            if self._journal.get("flatten"):
                limits = limits._replace(max_spread_percent=Decimal(100))
            against = objection(step, self._plan.leverage, inputs, limits)
            if against is None:
                self._journal.decide(self._row(candle, signal, held, decision))
                self._orders.send(step, self._market.rules, candle.time, held, decision.reason)
                if self._journal.consecutive_unfilled()[0]:
                    self._market.invalidate_rules()
                if self._clock.now() >= candle.time + 2 * self._plan.interval_s + WAKE_DELAY_S:
                    held = self._orders.position()
                    break  # A newer candle has finished meanwhile; it decides what comes next.
                continue
            reason = f"{decision.reason}, but {against.reason}"
            decision = Decision(decision.target, None, reason)
            self._emit("objection", reason)
            self._market.invalidate_rules()  # What speaks against it may be gone by the next tick.
            blocked.add(step.purpose)
            if step.purpose is not Purpose.REVERSE or against.passing:
                done = not against.passing
                break
        else:
            held = self._orders.position()
        self._finish(candle, signal, held, decision, done)
        return done

    def _snapshot(
        self, candle: Candle, signal: Signal, held: Decimal, blocked: set[Purpose]
    ) -> Snapshot:
        sent = self._journal.intents_of(self._plan.interval_s, candle.time)
        return Snapshot(
            signal=signal,
            held=held,
            rules=self._market.rules,
            waits_for_turn_from=self._first_direction(signal.direction),
            flatten_reason=self._journal.get("flatten") or None,
            tried=blocked
            | {intent.purpose for intent in sent if intent.outcome is not Outcome.NOT_SENT}
            | ({Purpose.REVERSE} if self._journal.newest_turn_failed() else set()),
        )

    def _first_direction(self, direction: Direction | None) -> Direction | None:
        """Return the direction whose end a first start waits for; None when it has entered."""
        if direction is None or self._plan.entry_now or self._journal.get("entered"):
            return None
        first = self._journal.get("first_direction")
        if first and int(first) != direction:
            self._journal.put(entered=1)
            return None
        if not first:
            self._journal.put(first_direction=int(direction))
        return direction

    def _check_loss(self, held: Decimal, price: Decimal) -> None:
        """Latch `max_loss` when it is reached; once flat, end with a safety stop."""
        limit = self._plan.limits.max_loss
        pnl = self._journal.account().pnl(price)
        if not self._journal.get("pnl_at_resume"):
            self._journal.put(pnl_at_resume=pnl)
        loss = Decimal(self._journal.get("pnl_at_resume")) - pnl
        reason = self._journal.get("flatten")
        if not reason and limit is not None and loss >= limit:
            reason = f"the loss since the last resume is {loss:.2f}, max_loss is {limit}"
            self._journal.put(flatten=reason)
            log.critical("flattening reason=%s", reason)
        if reason and abs(held) < self._market.rules.ordermin:
            self._journal.put(flatten=None)
            rest = f"; {plain(held)} is too small to be closed" if held else ""
            raise self._journal.halt(reason + rest)

    def _finish(
        self, candle: Candle, signal: Signal, held: Decimal, decision: Decision, done: bool
    ) -> None:
        row = self._row(candle, signal, held, decision)
        summary = self._market.summary()
        if not self._plan.leverage:
            summary = summary._replace(unrealized_pnl=held * candle.close)
        level = summary.margin_level
        if level is not None and level < self._plan.limits.min_margin_level:
            log.critical("margin level low level=%.1f", level)
            self._emit("margin", f"the margin level is {level:.1f} %")
        self._journal.decide(row, summary if done else None)
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

    def _emit(self, kind: str, text: str, values: Mapping[str, str] | None = None) -> None:
        self._on_event(Event(kind, text, values or {}))
