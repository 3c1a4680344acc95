"""The loop and one tick: reconcile, read the market, decide, send. Read this file first.

Everything a tick needs is in the journal or at the exchange, so a tick can be repeated after any
error or crash. README.md says in which order to read the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import NamedTuple

from krakenbot import log
from krakenbot.accounting import Ledger
from krakenbot.alerts import Alerts
from krakenbot.candles import CandleWindow
from krakenbot.clock import Clock, StopRequestedError
from krakenbot.decision import Blocked, Decision, Plan, Snapshot, decide, is_stuck
from krakenbot.errors import ConfigError, ExchangeError, LaterError, StopError, UnansweredError
from krakenbot.format import amount, decimals_of, moment, percent, price
from krakenbot.journal import Journal
from krakenbot.kraken.spot import Spot
from krakenbot.market import MarketState
from krakenbot.model import ZERO, Candle, Direction, MarginSummary, Purpose, Signal, Step
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import Orders
from krakenbot.pairs import plain
from krakenbot.retry import SILENCE_MAX_S, Retry
from krakenbot.risk import CLOCK_OFFSET_MAX_S, clock_error, objection
from krakenbot.rulefile import RuleError

ROUNDS_MAX = 3  # Orders in one tick before it pauses: a close, an open, one more.
WAKE_DELAY_S = 1.0
CHECK_MAX_S = 300.0  # Position and loss are checked at least this often, by the monotonic clock.
PASSING_PAUSE_S = 60.0  # Before the next try when the obstacle is temporary.
FUNDS_PAUSE_S = 5.0  # TradeBalance shows a close a few seconds late.
LATE_PAUSE_S, LOSS_PAUSE_S = 30.0, 10.0
LATE_MAX_S = 300.0  # Later than this, as after a sleep of the machine, nothing is opened.
BLOCKED_CANDLES, BLOCKED_MAX_S = 3, 3600.0  # Blocked for so long, whichever is less: an alert.
CHECKS_S = 3600.0  # Between two runs of a start check that so far allows only closing.
PAGES_MAX, PAGE_S = 10, 6.0  # Ledger pages per check; the REST limit allows a page in 6 s.
PAGES_BEFORE_S = 20.0  # The ledger is not read this close to the next candle.
DAY_S = 86400
Check = Callable[["Bot"], str | None]


class Event(NamedTuple):
    """Something a person may want to know at once. `values` are formatted for display."""

    kind: str
    text: str
    values: Mapping[str, str] = {}


class TickResult(NamedTuple):
    """When the next tick is due (unix seconds).

    `decided` is False only if the newest finished candle was late. `is_done` is False while another
    order may follow for the same candle.
    """

    next_due: float
    decided: bool
    is_done: bool = True


class Bot:
    """One pair, one journal, one exchange. The parts are passed in or built from these."""

    def __init__(
        self,
        plan: Plan,
        exchange: Spot,
        journal: Journal,
        clock: Clock,
        fingerprint: str,
        on_event: Callable[[Event], None] = lambda event: None,
        checks: Sequence[Check] = (),
    ) -> None:
        """`checks` run before the first decision, once the exchange's time is known.

        If a check returns a text, the bot only closes what is held; the text says why. It runs the
        check again hourly. Once nothing is held, the check raises ConfigError instead.
        """
        self.plan, self.exchange, self.journal, self.clock = plan, exchange, journal, clock
        self._on_event, self._checks, self._checked_start = on_event, [*checks], 0.0
        self.market = MarketState(plan, exchange, clock, journal)
        self.orders = Orders(plan, fingerprint, self.market, exchange, journal, clock, self._emit)
        self._alerts = Alerts(journal, clock, self._emit)
        self.retry = Retry(exchange, journal, clock, self._alerts)
        self.window = CandleWindow(exchange, clock, plan.interval_s, plan.candles_min)
        self._ledger = Ledger(exchange, journal, clock)
        self._books_kept, self._checked = float("-inf"), clock.monotonic()
        self._newest_close: Decimal | None = None

    def run(self, *, once: bool = False, patience_s: float = 300.0) -> None:
        """Decide on every finished candle until StopRequestedError; with `once`, on one candle.

        Raises StopError when a person must look, and LaterError when a step of the start (or the
        tick of `once`) keeps failing for longer than `patience_s`.
        """
        try:
            self._refuse_when_halted()
            self._start(patience_s)
            self.retry(self.orders.reconcile, patience_s)
            rules = self.market.rules
            units = {name: str(getattr(rules, name)) for name in ("base", "quote", "pair_decimals")}
            text = f"trading {self.plan.pair} on {self.plan.interval_s // 60}-minute candles"
            self._emit("start", text, units)
            if once:
                return self.retry(self._tick_once, patience_s)
            while True:
                due = self.retry(self.tick).next_due
                self.retry(partial(self._keep_books, due - self.clock.now()))
                pause_s = max(0.0, due - self.clock.now())
                longest_s = CHECK_MAX_S if self._ledger.is_read else PASSING_PAUSE_S
                self.clock.wait(min(pause_s, longest_s, self.plan.interval_s))
        except StopRequestedError:
            self._emit("stop", "stopped as asked")
            raise
        except StopError as error:
            self.journal.keep_stop(error)
            self._emit("halt", str(error))
            raise

    def _refuse_when_halted(self) -> None:
        if reason := self.journal.get("halted"):
            cleared = "`krakenbot resume` clears this once you have checked"
            raise StopError(f"halted: {reason}. {cleared}")

    def _start(self, patience_s: float = 300.0) -> None:
        self.retry(self.market.learn, patience_s)
        self._run_checks(partial(self.retry, patience_s=patience_s))
        self.retry(self._keep_books, patience_s)
        self.retry.has_started = True

    def _run_checks(self, run: Callable[[Callable[[], str | None]], str | None]) -> None:
        """Run the checks; those that let the bot only close are run again later."""
        reasons = {check: why for check in self._checks if (why := run(partial(check, self)))}
        self._checks, only = [*reasons], next(iter(reasons.values()), "")
        self.plan = self.plan._replace(limits=self.plan.limits._replace(close_only=only))
        self._alerts.update("closing", f"closing only, nothing is opened: {only}" if only else "")
        self._checked_start = self.clock.monotonic()

    def _check_again(self) -> None:
        held, now = self.journal.account().held, self.clock.monotonic()
        if held and now - self._checked_start < CHECKS_S:
            return
        try:
            self.market.learn()  # The checks look at the rules as last read.
            self._run_checks(lambda check: check())
        except ExchangeError as error:
            if not held:
                raise
            self._checked_start = now  # What is held must be looked after meanwhile.
            log.warning("still closing only: the check failed reason=%s", error)

    def _keep_books(self, left_s: float = CHECK_MAX_S) -> None:
        """Read the exchange's ledger, if that is due and `left_s` is long enough.

        A busy account's ledger is read over several checks, so that no candle is decided late.
        """
        is_due = self.clock.monotonic() - self._books_kept >= CHECK_MAX_S
        pages = min(PAGES_MAX, int((left_s - PAGES_BEFORE_S) / PAGE_S))
        if pages > 0 and (is_due or not self._ledger.is_read):
            self.read_ledger(pages)

    def read_ledger(self, pages: int = PAGES_MAX) -> None:
        """Book the charges in the exchange's ledger, with at most `pages` requests."""
        self._books_kept = self.clock.monotonic()
        difference = self._ledger.read(self.market.rules, pages)
        self._alerts.update("ledger", self._ledger.refused)
        self._alerts.update("unread", self._ledger.unread, SILENCE_MAX_S)
        if difference:
            self._emit("difference", difference)

    def _emit(self, kind: str, text: str, values: Mapping[str, str] = {}) -> None:
        self._on_event(Event(kind, text, values))

    def _tick_once(self) -> None:
        began = self.clock.monotonic()
        while True:
            result = self.tick()
            if not result.decided:
                raise LaterError("the exchange has not finished the newest candle yet")
            pause_s = max(0.0, result.next_due - self.clock.now())  # 0: a newer one has finished.
            if (result.is_done and pause_s) or self.clock.monotonic() - began + pause_s > VISIBLE_S:
                return
            self.clock.wait(pause_s)

    def tick(self) -> TickResult:
        """Bring the position to where the newest finished candle says it should be."""
        interval_s = self.plan.interval_s
        self.orders.reconcile()
        if self._checks and not self.journal.get("flatten"):
            self._check_again()
        if self.plan.limits.close_only and not self.journal.account().held:
            raise ConfigError(f"nothing is held any more, and {self.plan.limits.close_only}")
        self._refresh()
        if not self.journal.get("pnl_at_resume"):  # max_loss counts from here.
            account = self.journal.account()
            valued_at = self.market.fair_price() if account.held else ZERO
            self.journal.put(pnl_at_resume=account.pnl(valued_at))
        if self.clock.monotonic() - self._checked >= CHECK_MAX_S:
            self._check_between_candles()
        if self.journal.get("flatten"):
            return self._flatten_on()
        candles = self._finished()
        if candles is None:
            return TickResult(self.clock.now() + LATE_PAUSE_S, decided=False)
        newest, next_due = candles[-1], self._next_due(candles[-1])
        if self.journal.is_done(interval_s, newest.time):
            return TickResult(next_due, decided=True)
        again_at = self._work(newest, self._remembered(self._signal(candles)))
        if again_at is None:
            return TickResult(next_due, decided=True)
        return TickResult(min(next_due, again_at), decided=True, is_done=False)

    def _next_due(self, candle: Candle) -> float:
        """Return when the candle after this one is finished."""
        return candle.time + 2 * self.plan.interval_s + WAKE_DELAY_S

    def _refresh(self) -> None:
        """Read again whatever is out of date, apart from candles and position."""
        held = self.journal.account().held
        try:
            self.market.refresh()
        except ExchangeError as error:
            log.warning("refresh failed, retrying at the next check reason=%s", error)
            trouble = f"the market cannot be read: {error}"
        else:
            trouble = self.market.closed if held else ""
        self._alerts.update("market", trouble, SILENCE_MAX_S)
        self._alerts.update("minimum", self.market.minimum_alert(held))
        offset_s, announced = self.market.clock_offset_s, "; ".join(self.market.notices)
        words = f"this host's clock is {clock_error(offset_s)}: nothing is opened"
        self._alerts.update("rates", self.market.assumed)
        self._alerts.update("clock", words if abs(offset_s) > CLOCK_OFFSET_MAX_S else "")
        self._alerts.update("notices", f"Kraken announces: {announced}" if announced else "")

    def _check_between_candles(self) -> None:
        """Check position, loss and margin level between candles."""
        held = self.orders.position()
        self._check_loss(held)
        self._checked = self.clock.monotonic()
        if held and self.plan.leverage:
            try:
                self._check_margin(self.exchange.summary())
            except ExchangeError as error:  # No reason not to close.
                words = f"the margin level cannot be read: {error}"
                self._alerts.update("margin", words, SILENCE_MAX_S)

    def _flatten_on(self) -> TickResult:
        """Continue a flatten that has begun; this needs no finished candle."""
        now, interval_s = int(self.clock.now()), self.plan.interval_s
        mid = self.market.quote().mid
        candle = Candle(now - now % interval_s - interval_s, mid, mid, mid, mid)
        again_at = self._work(candle, Signal(None, mid, 0))
        due = again_at or self.clock.now() + PASSING_PAUSE_S
        return TickResult(due, decided=True, is_done=False)

    def _finished(self) -> Sequence[Candle] | None:
        """Return the finished candles; None if the newest is late."""
        try:
            candles = self.window.up_to_date()
        except UnansweredError as error:
            if not error.wait_s:
                self.market.invalidate()  # Either the exchange's clock or ours is wrong.
            raise
        words = "no finished candles from the exchange: market closed, delisted, or an outage?"
        self._alerts.update("candles", words if candles is None else "", SILENCE_MAX_S)
        if candles is None:
            log.warning("candle late: the exchange has not finished it in time")
            self.market.invalidate()
        return candles

    def _signal(self, candles: Sequence[Candle]) -> Signal:
        try:
            return self.plan.strategy(candles)
        except RuleError as error:
            held = plain(self.journal.account().held)
            raise self.journal.halt(
                f"{error}. Nothing was sent; {held} {self.plan.pair} stays held until someone acts"
            ) from error

    def _remembered(self, signal: Signal) -> Signal:
        """Return the signal; if it has no direction, with the last known direction."""
        last = self.journal.get("direction")
        if signal.direction is None:
            return signal._replace(direction=Direction(int(last)) if last else None)
        if last != str(int(signal.direction)):
            self.journal.put(direction=int(signal.direction))
        return signal

    def _work(self, candle: Candle, signal: Signal) -> float | None:
        """Decide and send until on target; return when to continue with this candle, or None."""
        not_now: dict[Purpose, Blocked] = {}
        self._newest_close = candle.close
        sent, held = 0, self.orders.position()
        while True:
            decision = self._decide(candle, signal, held, not_now)
            step = decision.step
            if step is None:
                break
            against = self._objection(step, held)
            late_s = self.clock.now() - self._next_due(candle)  # After a newer candle has finished.
            if late_s >= (0 if sent else LATE_MAX_S) and step.purpose is not Purpose.CLOSE:
                against = Blocked("left to the next candle", None)
            elif sent == ROUNDS_MAX:
                until = self.clock.now() + PASSING_PAUSE_S
                against = Blocked("continuing after a pause", until)
            if against is not None:
                not_now[step.purpose] = against
                continue
            self.journal.decide(self._row(candle, signal, held, decision))
            self.orders.send(step, candle.time, held, decision.reason)
            sent, before, held = sent + 1, held, self.orders.position()
            if held == before:
                self.market.invalidate()  # Outdated rules or a wrong clock may be why.
        self._finish(candle, signal, held, decision)
        return decision.blocked.until if decision.blocked else None

    def _decide(
        self, candle: Candle, signal: Signal, held: Decimal, not_now: Mapping[Purpose, Blocked]
    ) -> Decision:
        self._check_loss(held)
        blocked = {**self.orders.blocked(candle.time), **not_now}
        waits, flatten = self._first_direction(signal.direction), self.journal.get("flatten")
        return decide(Snapshot(signal, held, self.market.rules, waits, flatten, blocked), self.plan)

    def _first_direction(self, direction: Direction | None) -> Direction | None:
        """Return the direction that must end before the first entry, or None once entered."""
        if direction is None or self.journal.get("entered"):
            return None
        if self.journal.account().held:
            self.journal.put(entered=1)
            return None
        if self.plan.entry_now:
            return None
        first = self.journal.get("first_direction")
        if not first:
            self.journal.put(first_direction=int(direction))
        elif int(first) != direction:
            self.journal.put(entered=1)
            return None
        return direction

    def _objection(self, step: Step, held: Decimal) -> Blocked | None:
        """Return why the step may not be sent now and when to check again, or None."""
        today = self.journal.orders_since(int(self.clock.now()) - DAY_S)
        try:
            inputs = self.market.risk_inputs(step, held, today)
        except ExchangeError as error:
            if step.purpose is not Purpose.REVERSE:
                raise
            # A close, which needs less, is tried in its place.
            return Blocked(f"but {error}", self.clock.now() + PASSING_PAUSE_S)
        limits = self.plan.limits
        if self.journal.get("flatten"):
            limits = limits._replace(max_spread_percent=Decimal(100))
        against = objection(step, self.plan.leverage, inputs, limits)
        if against is None:
            return None
        pause_s = PASSING_PAUSE_S if against.passing else CHECK_MAX_S
        if against.funds and self.orders.has_just_closed():
            pause_s = FUNDS_PAUSE_S
        self.market.invalidate()  # The reason may be gone at the next check.
        self._emit("objection", against.reason)
        return Blocked(f"but {against.reason}", self.clock.now() + pause_s)

    def _check_loss(self, held: Decimal) -> None:
        """When `max_loss` is reached, begin to flatten; once flat, end with a safety stop."""
        reason = self.journal.get("flatten")
        if not reason:
            reason = self._loss_reached(held)
            if not reason:
                return
            self.journal.put(flatten=reason)
            log.critical("flattening reason=%s", reason)
        rules, pair = self.market.rules, self.plan.pair
        if abs(held) < rules.ordermin and not is_stuck(held, self.plan.size, rules):
            rest = f"; {plain(held)} {pair} is held and too small to be closed" if held else ""
            raise self.journal.halt(reason + rest)

    def _loss_reached(self, held: Decimal) -> str:
        """Return why to flatten if two quotes both show the loss; else an empty text.

        The mid price of a wide spread may be absurd, so the newest candle's close or the better
        of the two prices must show the loss too. Wide spreads are not ignored altogether, because
        they persist in a crash.
        """
        limit, began = self.plan.limits.max_loss, self.journal.get("pnl_at_resume")
        if limit is None or not began:
            return ""
        for attempt in range(2):
            if attempt and held:
                self.clock.wait(LOSS_PAUSE_S)
            quote = self.market.quote()
            is_wide = quote.spread_percent > self.plan.limits.max_spread_percent
            better = quote.ask if held > 0 else quote.bid
            certain = [better, self._newest_close or better] if is_wide else [quote.mid]
            pnl = self.journal.account().pnl
            loss = Decimal(began) - pnl(quote.mid)
            if loss < limit or Decimal(began) - min(map(pnl, certain)) < limit:
                return ""
        decimals = decimals_of(self.market.rules.quote)
        return f"the loss since the last resume is {loss:.{decimals}f}, max_loss is {limit:f}"

    def _check_margin(self, summary: MarginSummary) -> None:
        level, level_min, words = summary.margin_level, self.plan.limits.min_margin_level, ""
        if level is not None and level < level_min:
            words = f"the margin level is {percent(level, 1)}, below min_margin_level {level_min} %"
        self._alerts.update("margin", words)

    def _finish(self, candle: Candle, signal: Signal, held: Decimal, decision: Decision) -> None:
        """Record the decision on this candle, and update the alerts about it."""
        row, rules = self._row(candle, signal, held, decision), self.market.rules
        summary = self.exchange.summary(self.plan.leverage > 0)
        if not self.plan.leverage:
            summary = summary._replace(unrealized_pnl=held * candle.close)
        self._check_margin(summary)
        self._checked = self.clock.monotonic()
        is_done = decision.blocked is None or decision.blocked.until is None
        self.journal.decide(row, summary if is_done else None)
        after_s = min(BLOCKED_CANDLES * self.plan.interval_s, BLOCKED_MAX_S)
        self._alerts.update("target", decision.reason if decision.blocked else "", after_s)
        self._alerts.update("minimum", self.market.minimum_alert(held))
        log.info(
            "decided %s",
            f"candle={moment(candle.time)} price={price(candle.close, rules)} "
            f"average={price(signal.average, rules)} slope={signal.slope} "
            f"target={int(decision.target)} held={plain(held)} "
            f"equity={amount(summary.equity, rules.quote)} reason={decision.reason}",
        )
        values = {key: str(value) for key, value in row.items()}
        self._emit("decision", decision.reason, values | {"equity": plain(summary.equity)})

    def _row(
        self, candle: Candle, signal: Signal, held: Decimal, decision: Decision
    ) -> dict[str, object]:
        return {
            "interval_s": self.plan.interval_s,
            "candle": candle.time,
            "price": plain(candle.close),
            "average": f"{signal.average:.12g}",
            "slope": signal.slope,
            "target": int(decision.target),
            "held": plain(held),
            "reason": decision.reason,
            "decided": int(self.clock.now()),
        }
