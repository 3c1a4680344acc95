"""What a person does about a position: adopt it, or flatten it, after seeing what that trades."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from krakenbot import format, log
from krakenbot.assemble import Parts
from krakenbot.bot import Event
from krakenbot.candles import CandleWindow
from krakenbot.decision import Snapshot, decide, plan_of
from krakenbot.errors import ConfigError, FlattenRequestedError, LaterError, StopError
from krakenbot.lock import access_hint, open_private
from krakenbot.market import MarketState
from krakenbot.model import ZERO, Direction, Position, Purpose, Side, Signal, Step
from krakenbot.orders import UNFILLED_MAX, VISIBLE_S, Orders, Owner
from krakenbot.pairs import elsewhere, plain
from krakenbot.startup import fee_rate_of, patiently

REQUEST_S = 60.0  # So long a request to flatten waits for the bot to take it.


class Desk:
    """One bot's orders and market, without its loop."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.plan = plan_of(parts.config)
        self._market = MarketState(self.plan, parts.exchange, parts.clock, parts.journal)
        owner = Owner(parts.owner, self.plan.pair, self.plan.interval_s, self.plan.leverage)
        self._orders = Orders(owner, parts.exchange, parts.journal, parts.clock, self._emit)
        self._patience_s = parts.config.exchange.patience

    def _emit(self, kind: str, text: str) -> None:
        self.parts.on_event(Event(kind, text, {}))

    def learn(self) -> None:
        """Read clock and rules; LaterError when that cannot be done for too long."""
        patiently(self._market.learn, self.parts.clock, self._patience_s)
        self.rules = self._market.rules
        self._orders.base = self.rules.base

    # -- what is held --------------------------------------------------------------------------

    def held(self) -> Position:
        """Return what the exchange holds of the bot's, and what that is worth.

        Without margin that is what the journal says was bought, as far as it is there.
        """
        if self.plan.leverage:
            return self.parts.exchange.position()
        owned = self.parts.exchange.balances().get(self.rules.base, ZERO)
        explained = self.parts.journal.account().held
        volume = min(explained or self.plan.size, owned)
        return Position(volume, volume * self.parts.exchange.quote().mid)

    def told(self, side: Side, volume: Decimal) -> str:
        """Return what an order trades now, in words: volume, price, worth and fee."""
        quote = self.parts.exchange.quote()
        price = quote.ask if side is Side.BUY else quote.bid
        rules, worth = self.rules, volume * price
        fee = worth * fee_rate_of(self.parts.exchange)
        return (
            f"{side.value} {format.volume(volume, rules.base)} at market, about "
            f"{format.price(price, rules)} = {format.money(worth, rules.quote)}, fee about "
            f"{format.money(fee, rules.quote)}"
        )

    # -- adopting ------------------------------------------------------------------------------

    def adoption(self) -> list[str]:
        """Return what adopting will explain, and what the next decision will trade then."""
        position, rules = self.held(), self.rules
        before = self.parts.journal.account().held
        shown = format.volume(position.volume, rules.base)
        lines = [
            f"held at the exchange: {shown}; explained so far: {format.volume(before, rules.base)}",
            f"adopting makes {shown} the bot's own, counted as traded at about "
            f"{format.price(self._price(position), rules)}; a halt ends",
        ]
        if not self.plan.leverage:
            earning = elsewhere(self.parts.exchange.balances(), rules.base)
            lines += [
                f"{plain(amount)} {code} lies in Earn or is staked, and is not counted: move it "
                "back first, else the bot buys again"
                for code, amount in earning.items()
            ]
        trades = list(self._next_trades(position.volume))
        lines.append("the next decision then trades" + ("" if trades else " nothing"))
        return [*lines, *(f"  {trade}" for trade in trades)]

    def _price(self, position: Position) -> Decimal:
        if not position.volume:
            return self.parts.exchange.quote().mid
        return position.cost / abs(position.volume)

    def _next_trades(self, held: Decimal) -> Iterator[str]:
        parts, plan = self.parts, self.plan
        window = CandleWindow(parts.exchange, parts.clock, plan.interval_s, plan.candles_min)
        candles = window.up_to(int(parts.clock.now()) - 2 * plan.interval_s + 1)
        signal = plan.strategy(candles or ())
        if signal.direction is None and parts.journal.get("direction"):
            signal = signal._replace(direction=Direction(int(parts.journal.get("direction"))))
        for _ in range(2):  # A reversal takes two.
            decision = decide(Snapshot(signal, held, self.rules, None, None, {}), plan)
            if decision.step is None:
                return
            yield f"{self.told(decision.step.side, decision.step.volume)} ({decision.reason})"
            held += decision.step.side.sign * decision.step.volume

    def adopt(self) -> None:
        """Make what is held the journal's own, and clear a halt about it."""
        journal, clock = self.parts.journal, self.parts.clock
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
        journal.adopt(position.volume, price, int(clock.now()), self.plan.leverage > 0)
        log.warning("adopted held=%s explained_before=%s price=%s", position.volume, before, price)

    # -- flattening ----------------------------------------------------------------------------

    def flatten(self, reason: str) -> None:
        """Close what the bot holds, verify, and leave it halted for `reason`.

        Raises StopError when something may still be held.
        """
        journal, clock = self.parts.journal, self.parts.clock
        journal.resume(flatten=reason)
        why = "the orders to close it traded nothing"
        try:
            for _ in range(2 * UNFILLED_MAX):
                if patiently(lambda: self._close(reason), clock, self._patience_s):
                    journal.put(flatten=None, halted=reason)
                    return
                clock.wait(1.0)
        except LaterError as error:
            why = str(error)
        raise journal.halt(
            f"could not close the position for: {reason}; {plain(journal.account().held)} "
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
        candle = int(self.parts.clock.now())  # Outside of any candle, so that ids are new.
        self._orders.send(step, self.rules, candle, held, reason)
        return False


# -- asking a bot that runs ------------------------------------------------------------------------


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
