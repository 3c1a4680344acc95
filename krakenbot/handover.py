"""What a person does about a position: adopt it, or flatten it, after seeing what that trades."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

from krakenbot import format, log
from krakenbot.accounting import own_trades
from krakenbot.alerts import Alerts
from krakenbot.bot import Event
from krakenbot.candles import CandleWindow
from krakenbot.clock import Clock
from krakenbot.decision import Plan, Snapshot, decide
from krakenbot.errors import (
    ConfigError,
    FlattenRequestedError,
    LaterError,
    RefusedError,
    StopError,
    UnansweredError,
)
from krakenbot.exchange import Exchange
from krakenbot.journal import Journal
from krakenbot.lock import access_hint, open_private
from krakenbot.market import MarketState
from krakenbot.model import ZERO, Direction, Position, Purpose, Side, Signal, Step
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import UNFILLED_MAX, Orders, Owner
from krakenbot.pairs import PairRules, elsewhere, plain
from krakenbot.patience import Patience

PAUSE_MAX_S = 15.0  # Between two orders that are to close, whatever became of the first.
REQUEST_S = 60.0  # So long a request to flatten waits for the bot to take it.


class Desk:
    """One bot's orders and market, without its loop."""

    rules: PairRules

    def __init__(
        self,
        plan: Plan,
        exchange: Exchange,
        journal: Journal,
        clock: Clock,
        fingerprint: str,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.plan = plan
        self._exchange = exchange
        self._journal = journal
        self._clock = clock
        self._on_event = on_event
        owner = Owner(fingerprint, plan.pair, plan.interval_s, plan.leverage)
        self._market = MarketState(plan, exchange, clock, journal)
        self._orders = Orders(owner, exchange, journal, clock, self._emit)
        self.patiently = Patience(exchange, journal, clock, Alerts(journal, clock, self._emit))

    def _emit(self, kind: str, text: str) -> None:
        self._on_event(Event(kind, text))

    def learn(self) -> None:
        """Read clock and rules, which everything else here needs; nothing private."""
        self._market.learn()
        self.rules = self._market.rules
        self._orders.rules = self.rules

    def reconcile(self) -> None:
        """Ask about every order whose end is not known."""
        self._orders.reconcile()

    def held(self) -> Position:
        """Return what the exchange holds of the bot's, on margin with what it cost.

        Without margin that is what the journal says was bought, as far as it is there.
        """
        if self.plan.leverage:
            return self._exchange.position()
        owned = self._exchange.balances().get(self.rules.base, ZERO)
        explained = self._journal.account().held
        return Position(min(explained or self.plan.size, owned), ZERO)

    def told(self, side: Side, volume: Decimal) -> str:
        """Return what an order trades now, in words: volume, price, worth and fee."""
        rules = self.rules
        text = f"{side.value} {format.volume(volume, rules.base)} at market"
        self._market.read_rates()
        try:
            quote = self._exchange.quote()
        except (LaterError, UnansweredError, RefusedError) as error:
            return f"{text}; what that is worth cannot be had now: {error}"
        price = quote.ask if side is Side.BUY else quote.bid
        worth = volume * price
        return (
            f"{text}, about {format.price(price, rules)} = {format.money(worth, rules.quote)}, "
            f"fee about {format.money(worth * self._market.fee_rate, rules.quote)}"
        )

    def adoption(self) -> list[str]:
        """Return what adopting will explain, and what the next decision will trade then."""
        position, rules = self.held(), self.rules
        before = self._journal.account().held
        shown = format.volume(position.volume, rules.base)
        difference = format.signed(format.volume(position.volume - before, rules.base))
        at = format.price(self._price(position), rules)
        adopting = f"adopting: {difference} counts as traded at about {at}"
        halt = "; the halt ends" if self._journal.get("halted") else ""
        lines = [
            f"held at the exchange: {shown}; explained so far: {format.volume(before, rules.base)}",
            ("nothing to adopt" if position.volume == before else adopting) + halt,
        ]
        if not self.plan.leverage:
            earning = elsewhere(self._exchange.balances(), rules.base)
            lines += [
                f"{plain(amount)} {code} lies in Earn or is staked, and is not counted: move it "
                "back first, else the bot buys again"
                for code, amount in earning.items()
            ]
        trades = list(self._next_trades(position.volume))
        lines.append("the next decision then trades" + ("" if trades else " nothing"))
        return [*lines, *(f"  {trade}" for trade in trades)]

    def _price(self, position: Position) -> Decimal:
        if not position.cost:
            return self._exchange.quote().mid
        return position.cost / abs(position.volume)

    def _next_trades(self, held: Decimal) -> Iterator[str]:
        plan = self.plan
        window = CandleWindow(self._exchange, self._clock, plan.interval_s, plan.candles_min)
        candles = window.up_to(int(self._clock.now()) - 2 * plan.interval_s + 1)
        signal = plan.strategy(candles or ())
        if signal.direction is None and self._journal.get("direction"):
            signal = signal._replace(direction=Direction(int(self._journal.get("direction"))))
        for _ in range(2):  # A reversal takes two.
            decision = decide(Snapshot(signal, held, self.rules, None, None, {}), plan)
            if decision.step is None:
                return
            yield f"{self.told(decision.step.side, decision.step.volume)} ({decision.reason})"
            held += decision.step.side.sign * decision.step.volume

    def adopt(self) -> None:
        """Make what is held the journal's own, and clear a halt about it."""
        journal, clock = self._journal, self._clock
        try:
            self._orders.reconcile()
        except StopError:
            # Looking at it was the person's part; only what may still happen is not given up.
            over = int(clock.now()) - VISIBLE_S
            if any(intent.deadline > over for intent in journal.open_intents()):
                raise
        # What this bot did last may not be visible yet, and would be adopted as it was before.
        newest = journal.newest_intent()
        if newest is not None:
            visible_s = (newest.settled or newest.created) + VISIBLE_S - clock.now()
            clock.wait(min(max(visible_s, 0.0), VISIBLE_S))
        before, position = journal.account().held, self.held()
        price = self._price(position)
        now = int(clock.now())
        journal.adopt(position.volume, price, now, self.plan.leverage > 0)
        own_trades(journal, position.trades, now)
        log.warning("adopted held=%s explained_before=%s price=%s", position.volume, before, price)

    def flatten(
        self, reason: str, patience_s: float = 300.0, checks: Sequence[Callable[[], object]] = ()
    ) -> None:
        """Close what the bot holds, verify, and leave it halted for `reason`.

        `checks` come first. Raises StopError when something may still be held.
        """
        for action in (self.learn, *checks):
            self.patiently(action, patience_s)
        self._journal.resume(flatten=reason)
        why = "the orders to close it traded nothing"
        try:
            for _ in range(2 * UNFILLED_MAX):
                if self.patiently(partial(self._close, reason), patience_s):
                    self._journal.put(flatten=None, halted=reason)
                    return
                self._clock.wait(1.0)
        except LaterError as error:
            why = str(error)
        raise self._journal.halt(
            f"could not close the position for: {reason}; {plain(self._journal.account().held)} "
            f"{self.plan.pair} may still be held ({why}): look at Kraken"
        )

    def _close(self, reason: str) -> bool:
        """Return whether nothing is held; if something is, send one order that closes it."""
        self._orders.reconcile()
        held = self._orders.position()
        if held == 0:
            return True
        nowhere = Signal(Direction.FLAT, ZERO, 0)
        step = decide(Snapshot(nowhere, held, self.rules, None, reason, {}), self.plan).step
        if step is None:  # Whether something so small can be closed is Kraken's say.
            side = Side.SELL if held > 0 else Side.BUY
            step = Step(Purpose.CLOSE, side, abs(held), self.plan.leverage > 0)
        blocked = self._orders.blocked(int(self._clock.now()), ZERO).get(Purpose.CLOSE)
        if blocked is not None and blocked.until is not None:  # Refused or not sent just now.
            self._clock.wait(min(blocked.until - self._clock.now(), PAUSE_MAX_S))
        candle = int(self._clock.now())  # Outside of any candle, so that ids are new.
        self._orders.send(step, self.rules, candle, held, reason)
        return False


class FlattenRequest:
    """A file beside the journal by which one process asks another to flatten."""

    def __init__(self, journal_path: Path) -> None:
        self._path = journal_path.with_suffix(".flatten")

    def make(self) -> None:
        try:
            os.close(open_private(self._path, os.O_WRONLY))
            os.utime(self._path)
        except OSError as error:
            hint = access_hint(self._path.parent)
            raise ConfigError(
                f"the bot cannot be asked, {self._path}: {error.strerror}. {hint}"
            ) from error

    def withdraw(self) -> bool:
        """Return whether it was still there to be withdrawn."""
        with suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False

    def is_open(self) -> bool:
        return self._path.exists()

    def look(self) -> None:
        """Raise FlattenRequestedError when somebody asks; what is old has expired."""
        with suppress(FileNotFoundError):
            age_s = time.time() - self._path.stat().st_mtime
            if self.withdraw() and age_s <= REQUEST_S:
                raise FlattenRequestedError
