"""The loop and one tick: reconcile, look, decide, send. Read this first, then order_states.py.

All that a tick needs to know is on disk or at the exchange, so it may be repeated after any
error and after any death.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, TypeVar

from krakenbot import log
from krakenbot.accounting import read_ledger
from krakenbot.alerts import Alerts
from krakenbot.candles import CandleWindow
from krakenbot.clock import Clock, StopRequestedError
from krakenbot.decision import Blocked, Decision, Plan, Snapshot, decide, is_stuck
from krakenbot.errors import ConfigError, LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.format import moment, money, price
from krakenbot.journal import Journal
from krakenbot.market import MarketState
from krakenbot.model import (
    Candle,
    Direction,
    MarginSummary,
    Purpose,
    Signal,
    Step,
)
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import Orders, Owner
from krakenbot.pairs import plain
from krakenbot.patience import SILENCE_MAX_S, Patience
from krakenbot.risk import CLOCK_OFFSET_MAX_S, clock_error, objection
from krakenbot.rulefile import RuleError

ROUNDS_MAX = 3  # close, open, confirm
WAKE_DELAY_S = 1.0
LOOK_MAX_S = 300.0  # Nothing is left unlooked at for longer, whatever anyone says the time is.
PASSING_PAUSE_S = 60.0
FUNDS_PAUSE_S = 5.0  # TradeBalance shows a close some seconds late.
LATE_PAUSE_S = 30.0
LOSS_PAUSE_S = 10.0
BLOCKED_CANDLES, BLOCKED_MAX_S = 3, 3600.0  # What blocks the target for longer is told outside.
DAY_S = 86400

T = TypeVar("T")


class Event(NamedTuple):
    """Something that a person may want to know at once. `values` are ready to be shown."""

    kind: str
    text: str
    values: Mapping[str, str] = {}


class TickResult(NamedTuple):
    """`next_due` is when the next tick should be; `decided` whether a candle was decided on.

    `is_done` unless there may be another order for that candle.
    """

    next_due: float
    decided: bool
    is_done: bool = True


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
        self.has_started = False  # Whether all checks are done.
        owner = Owner(fingerprint, plan.pair, plan.interval_s, plan.leverage)
        self._orders = Orders(owner, exchange, journal, clock, self._emit)
        self._alerts = Alerts(journal, clock, self._emit)
        self._window = CandleWindow(exchange, clock, plan.interval_s, plan.candles_min)
        self._market = MarketState(plan, exchange, clock, journal)
        self._books_kept, self._looked = float("-inf"), clock.monotonic()
        self._newest_close: Decimal | None = None
        self._patiently = Patience(exchange, journal, clock, self._alerts)

    # -- the loop ------------------------------------------------------------------------------

    def run(self, *, once: bool = False, patience_s: float = 300.0) -> None:
        """Decide on every finished candle until StopRequestedError; with `once` on one.

        Raises StopError when a person must look, LaterError when any part of the start cannot be
        had from the exchange for longer than `patience_s`.
        """
        try:
            self._refuse_when_halted()
            self._start(patience_s)
            self.has_started = True
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
                self._keep_books()
                pause_s = max(0.0, due - self._clock.now())
                self._clock.wait(min(pause_s, LOOK_MAX_S, self._plan.interval_s))
        except StopRequestedError:
            self._emit("stop", "stopped as asked")
            raise
        except StopError as error:
            self._journal.keep_stop(error)
            self._emit("halt", str(error))
            raise

    def _refuse_when_halted(self) -> None:
        reason = self._journal.get("halted")
        if reason:
            raise StopError(f"halted: {reason}. `krakenbot resume` clears this after a look")

    def _start(self, patience_s: float = 300.0) -> None:
        for part in (self._learn, *self._checks, self._learn_costs):
            if reason := self._patiently(part, patience_s):
                limits = self._plan.limits._replace(close_only=reason)
                self._plan = self._plan._replace(limits=limits)

    def _learn(self) -> None:
        self._market.learn()
        self._orders.rules = self._market.rules

    def _learn_costs(self) -> None:
        self._market.read_rates()
        self._tell_rates()
        self._keep_books()

    def _keep_books(self) -> None:
        """Book what the exchange's ledger shows and say where it differs, when that is due."""
        now = self._clock.monotonic()
        if now - self._books_kept < LOOK_MAX_S:
            return
        self._books_kept = now
        difference = read_ledger(self._exchange, self._market.rules, self._journal, self._clock)
        if difference:
            self._emit("difference", difference)

    def _tell_rates(self) -> None:
        self._orders.margin_rates = self._market.margin_rates
        self._alerts.hold("rates", self._market.assumed)

    def _refresh(self) -> None:
        """Read anew what has grown old of all that matters besides candles and position."""
        try:
            self._market.refresh()
        except (LaterError, UnansweredError, RefusedError) as error:
            log.warning("not refreshed, trying again with the next look reason=%s", error)
        self._tell_rates()
        offset_s, announced = self._market.clock_offset_s, "; ".join(self._market.notices)
        words = f"this host's clock is {clock_error(offset_s)}: nothing is opened"
        self._alerts.hold("clock", words if abs(offset_s) > CLOCK_OFFSET_MAX_S else "")
        self._alerts.hold("notices", f"Kraken announces: {announced}" if announced else "")

    # -- one tick ------------------------------------------------------------------------------

    def _tick_once(self) -> None:
        began = self._clock.monotonic()
        while True:
            result = self.tick()
            if not result.decided:
                raise LaterError("the newest candle is not finished at the exchange")
            pause_s = result.next_due - self._clock.now()
            if result.is_done or self._clock.monotonic() - began + pause_s > VISIBLE_S:
                return
            self._clock.wait(pause_s)

    def tick(self) -> TickResult:
        """Bring the position to where the newest finished candle says it should be."""
        interval_s = self._plan.interval_s
        self._orders.reconcile()
        if self._plan.limits.close_only and not self._journal.account().held:
            raise ConfigError(f"nothing is held any more: {self._plan.limits.close_only}")
        self._refresh()
        if self._clock.monotonic() - self._looked >= LOOK_MAX_S:
            self._look()
        if self._journal.get("flatten"):
            return self._flatten_on()
        # The newest candle that can be finished ended less than an interval ago.
        expected = int(self._clock.now()) - 2 * interval_s + 1
        candles = self._finished(expected)
        if candles is None:
            return TickResult(self._clock.now() + LATE_PAUSE_S, decided=False)
        newest = candles[-1]
        next_due = newest.time + 2 * interval_s + WAKE_DELAY_S
        if self._journal.is_done(interval_s, newest.time):
            return TickResult(next_due, decided=True)
        signal = self._signal(candles)
        if signal.direction is None and self._window.widen():
            signal = self._signal(self._finished(expected) or candles)
        again_at = self._work(newest, self._remembered(signal))
        if again_at is None:
            return TickResult(next_due, decided=True)
        return TickResult(min(next_due, again_at), decided=True, is_done=False)

    def _flatten_on(self) -> TickResult:
        """Go on closing what is to be flattened, which needs no candle."""
        now, interval_s = int(self._clock.now()), self._plan.interval_s
        price = self._exchange.quote().mid
        candle = Candle(now - now % interval_s - interval_s, price, price, price, price)
        again_at = self._work(candle, Signal(None, price, 0))
        return TickResult(again_at or self._clock.now() + PASSING_PAUSE_S, decided=True)

    def _look(self) -> None:
        """See, between candles, whether someone else traded, and how much is lost and left."""
        held = self._orders.position()
        self._check_loss(held)
        if held and self._plan.leverage:
            self._check_margin(self._exchange.summary())
        self._looked = self._clock.monotonic()

    def _finished(self, expected: int) -> Sequence[Candle] | None:
        """Return finished candles, the newest from `expected` on; None while it is late."""
        try:
            candles = self._window.up_to(expected)
        except UnansweredError:
            self._market.invalidate_clock()  # One of the two is wrong about the time.
            raise
        words = "the exchange finishes no candle: closed, delisted, or in trouble?"
        self._alerts.hold("candles", words if candles is None else "", SILENCE_MAX_S)
        if candles is None:
            log.warning("candle late: the exchange has not finished it in good time")
            self._market.invalidate_clock()
        return candles

    def _signal(self, candles: Sequence[Candle]) -> Signal:
        try:
            return self._plan.strategy(candles)
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

    def _work(self, candle: Candle, signal: Signal) -> float | None:
        """Decide and send until on target; return when to go on with this candle, None if never."""
        next_due = candle.time + 2 * self._plan.interval_s + WAKE_DELAY_S
        objected: dict[Purpose, Blocked] = {}
        self._market.invalidate_quote()
        self._newest_close = candle.close
        sent, held = 0, self._orders.position()
        while True:
            self._check_baseline(candle.close)
            self._check_loss(held)
            decision = decide(self._snapshot(candle, signal, held, objected), self._plan)
            step = decision.step
            if step is None:
                break
            against = self._objection(step, held)
            if against is not None:
                objected[step.purpose] = against
                continue
            self._journal.decide(self._row(candle, signal, held, decision))
            self._orders.send(step, self._market.rules, candle.time, held, decision.reason)
            sent, before, held = sent + 1, held, self._orders.position()
            if held == before:  # Was it refused for what is known wrongly?
                self._market.invalidate_rules()
                self._market.invalidate_clock()
            now = self._clock.now()
            if now >= next_due:  # A newer candle has finished meanwhile.
                objected = dict.fromkeys(Purpose, Blocked("left to the next candle", None))
            elif sent == ROUNDS_MAX:
                pause = Blocked("going on after a pause", now + PASSING_PAUSE_S)
                objected = dict.fromkeys(Purpose, pause)
        self._finish(candle, signal, held, decision)
        return decision.blocked.until if decision.blocked else None

    def _objection(self, step: Step, held: Decimal) -> Blocked | None:
        """Return what speaks against the step now, and when to see whether it still does."""
        today = self._journal.orders_since(int(self._clock.now()) - DAY_S)
        inputs = self._market.risk_inputs(step, held, today)
        limits = self._plan.limits
        if self._journal.get("flatten"):
            limits = limits._replace(max_spread_percent=Decimal(100))
        against = objection(step, self._plan.leverage, inputs, limits)
        if against is None:
            return None
        pause_s = PASSING_PAUSE_S if against.passing else LOOK_MAX_S
        if against.funds and self._orders.has_just_closed():
            pause_s = FUNDS_PAUSE_S
        self._market.invalidate_rules()  # What speaks against it may be gone by the next look.
        self._emit("objection", against.reason)
        return Blocked(f"but {against.reason}", self._clock.now() + pause_s)

    def _snapshot(
        self,
        candle: Candle,
        signal: Signal,
        held: Decimal,
        objected: Mapping[Purpose, Blocked],
    ) -> Snapshot:
        return Snapshot(
            signal=signal,
            held=held,
            rules=self._market.rules,
            waits_for_turn_from=self._first_direction(signal.direction),
            flatten_reason=self._journal.get("flatten") or None,
            blocked={**self._orders.blocked(candle.time, self._market.rules.ordermin), **objected},
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

    def _check_baseline(self, price: Decimal) -> None:
        """Remember the profit from which a loss is counted, once after each resume."""
        if not self._journal.get("pnl_at_resume"):
            self._journal.put(pnl_at_resume=self._journal.account().pnl(price))

    def _check_loss(self, held: Decimal) -> None:
        """Latch `max_loss` when it is reached; once flat, end with a safety stop."""
        reason = self._journal.get("flatten") or self._loss_reached(held)
        if reason and not self._journal.get("flatten"):
            self._journal.put(flatten=reason)
            log.critical("flattening reason=%s", reason)
        if reason and abs(held) < self._market.rules.ordermin:
            pair = self._plan.pair
            rest = f"; {plain(held)} {pair} is held and too small to be closed" if held else ""
            raise self._journal.halt(reason + rest)

    def _loss_reached(self, held: Decimal) -> str:
        """Return why to flatten, when two looks both say so; else nothing.

        A quote with a wide spread alone may be absurd: then the newest candle's close must say the
        same. In a crash spreads are wide and stay so.
        """
        limit, began = self._plan.limits.max_loss, self._journal.get("pnl_at_resume")
        if limit is None or not began:
            return ""
        for look in range(2):
            if look and held:
                self._clock.wait(LOSS_PAUSE_S)
            quote = self._exchange.quote()
            is_wide = quote.spread_percent > self._plan.limits.max_spread_percent
            prices = [quote.mid, self._newest_close] if is_wide else [quote.mid]
            pnl = self._journal.account().pnl
            if any(price is None or Decimal(began) - pnl(price) < limit for price in prices):
                return ""
            loss = Decimal(began) - pnl(quote.mid)
        return f"the loss since the last resume is {loss:.2f}, max_loss is {limit}"

    def _check_margin(self, summary: MarginSummary) -> None:
        level, level_min = summary.margin_level, self._plan.limits.min_margin_level
        level = None if level is None else round(level, 1)
        is_low = level is not None and level < level_min
        words = f"the margin level is {level} %, below min_margin_level {level_min} %"
        self._alerts.hold("margin", words if is_low else "")

    def _finish(self, candle: Candle, signal: Signal, held: Decimal, decision: Decision) -> None:
        """Write down where this look at the candle ended, and tell what holds for too long."""
        row = self._row(candle, signal, held, decision)
        summary = self._market.summary()
        if not self._plan.leverage:
            summary = summary._replace(unrealized_pnl=held * candle.close)
        self._check_margin(summary)
        self._looked = self._clock.monotonic()
        is_done = decision.blocked is None or decision.blocked.until is None
        self._journal.decide(row, summary if is_done else None)
        after_s = min(BLOCKED_CANDLES * self._plan.interval_s, BLOCKED_MAX_S)
        self._alerts.hold("target", decision.reason if decision.blocked else "", after_s)
        rules, words = self._market.rules, ""
        if is_stuck(held, self._plan.size, rules):
            self._market.invalidate_rules()
            words = (
                f"{plain(held)} {self._plan.pair} is held, and now below the smallest order of "
                f"the exchange, {plain(rules.ordermin)}"
            )
        self._alerts.hold("minimum", words)
        values = {
            "candle": str(candle.time),
            "price": plain(candle.close),
            "average": plain(round(signal.average, rules.pair_decimals)),
            "slope": str(signal.slope),
            "target": str(int(decision.target)),
            "held": plain(held),
            "equity": f"{summary.equity:.2f}",
            "reason": decision.reason,
        }
        shown = values | {"candle": moment(candle.time), "price": price(candle.close, rules)}
        shown |= {"average": price(signal.average, rules), "equity": money(summary.equity)}
        log.info("decided %s", " ".join(f"{key}={value}" for key, value in shown.items()))
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
