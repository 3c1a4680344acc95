"""Adopting and flattening a position on a person's request, and showing what that will trade.

Each function takes a bot whose loop is not running; all but `flatten` need `bot.market.learn` to
have run.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

from krakenbot import format, log
from krakenbot.accounting import own_trades
from krakenbot.bot import Bot
from krakenbot.candles import CandleWindow
from krakenbot.decision import Snapshot, decide
from krakenbot.errors import (
    ExchangeError,
    FlattenRequestedError,
    KeyRefusedError,
    LaterError,
    RefusedError,
    StopError,
)
from krakenbot.lock import no_access, open_private
from krakenbot.model import ZERO, Direction, Position, Purpose, Side, Step
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import UNFILLED_MAX
from krakenbot.pairs import earn_balances, plain
from krakenbot.records import Intent

PAUSE_MAX_S = 15.0  # The longest wait between two closing orders.
REQUEST_S = 60.0  # A request to flatten expires after this.


def held_of(bot: Bot) -> Position:
    """Return the bot's position at the exchange; on margin it includes the opening cost.

    Without margin it is what the journal records (if nothing, `size`), up to the balance. Raises
    StopError when that is a margin position, still open.
    """
    if bot.plan.leverage:
        return bot.exchange.position()
    if bot.journal.account().held and bot.journal.get("on_margin") == "1":
        margin = bot.exchange.position().volume
        if margin:
            raise StopError(
                f"{plain(margin)} {bot.plan.pair} is held on margin, and leverage is now 0: set it "
                "back, or close that position by hand first. Nothing was changed"
            )
        return Position()  # It was closed by hand. None of the coins are the bot's.
    owned = bot.exchange.balances().get(bot.market.rules.base, ZERO)
    return Position(min(bot.journal.account().held or bot.plan.size, owned), ZERO)


def describe_trade(bot: Bot, side: Side, volume: Decimal) -> str:
    """Return in words what an order would trade now: volume, price, value and fee."""
    rules = bot.market.rules
    text = f"{side.value} {format.volume(volume, rules.base)} at market"
    bot.market.read_rates()
    try:
        quote = bot.exchange.quote()
    except ExchangeError as error:
        return f"{text}; its value is not known now: {log.clean(str(error))}"
    price = quote.ask if side is Side.BUY else quote.bid
    worth, fee = volume * price, volume * price * bot.market.fee_rate
    return (
        f"{text}, about {format.price(price, rules)} = {format.money(worth, rules.quote)}, "
        f"fee about {format.money(fee, rules.quote)}"
    )


def adoption(bot: Bot) -> list[str]:
    """Return lines on what adopting changes and what the next decision will then trade."""
    position, rules, before = held_of(bot), bot.market.rules, bot.journal.account().held
    shown, explained = (format.volume(held, rules.base) for held in (position.volume, before))
    difference = format.signed(format.volume(position.volume - before, rules.base))
    at = format.price(_price(bot, position), rules)
    adopting = f"adopting: {difference} counts as traded at about {at}"
    halt = "; the halt is cleared" if bot.journal.get("halted") else ""
    halt += "; the request to flatten is dropped" if bot.journal.get("flatten") else ""
    lines = [
        f"held at the exchange: {shown}; recorded in the journal: {explained}",
        ("nothing to adopt" if position.volume == before else adopting) + halt,
    ]
    if not bot.plan.leverage:
        lines += [
            f"{plain(amount)} {code} is in Earn or staked and does not count: move it "
            "back first, or the bot will buy again"
            for code, amount in earn_balances(bot.exchange.balances(), rules.base).items()
        ]
    trades = [f"  {trade}" for trade in _next_trades(bot, position.volume)]
    return [*lines, "the next decision then trades" + ("" if trades else " nothing"), *trades]


def _price(bot: Bot, position: Position) -> Decimal:
    if not position.cost:
        return bot.exchange.quote().mid
    return position.cost / abs(position.volume)


def _next_trades(bot: Bot, held: Decimal) -> Iterator[str]:
    plan, last = bot.plan, bot.journal.get("direction")
    window = CandleWindow(bot.exchange, bot.clock, plan.interval_s, plan.candles_min)
    signal = plan.strategy(window.up_to(int(bot.clock.now()) - 2 * plan.interval_s + 1) or ())
    if signal.direction is None and last:
        signal = signal._replace(direction=Direction(int(last)))
    for _ in range(2):  # A reversal takes two.
        decision = decide(Snapshot(signal, held, bot.market.rules, None, "", {}), plan)
        if decision.step is None:
            return
        yield f"{describe_trade(bot, decision.step.side, decision.step.volume)} ({decision.reason})"
        held += decision.step.side.sign * decision.step.volume


def adopt(bot: Bot, shown: Decimal) -> None:
    """Record what is held as the bot's own, and clear a halt.

    `shown` is what the journal recorded when a person agreed. Raises StopError while an earlier
    order may still be executed.
    """
    journal, clock = bot.journal, bot.clock
    try:
        bot.orders.reconcile()
    except KeyRefusedError:
        raise  # No private request may follow.
    except StopError:
        # A person has looked into it: open orders are abandoned unless one may still be executed.
        over = int(clock.now()) - VISIBLE_S
        for intent in journal.open_intents():
            if intent.deadline > over or _is_open(bot, intent):
                raise
    # The bot's last trade may not be visible yet; adopting too early would miss it.
    newest = journal.newest_intent()
    if newest is not None:
        visible_s = (newest.settled or newest.created) + VISIBLE_S - clock.now()
        clock.wait(min(max(visible_s, 0.0), VISIBLE_S))
    before, position = journal.account().held, held_of(bot)
    if shown and not before and not bot.plan.leverage:
        position = Position()  # Its coins were sold, as is known only now; others are not its own.
    price, now = _price(bot, position), int(clock.now())
    journal.adopt(position.volume, price, now, bot.plan.leverage > 0)
    own_trades(journal, position.trades, now)
    figures = plain(position.volume), plain(before), format.price(price, bot.market.rules)
    log.warning("adopted held=%s recorded_before=%s price=%s", *figures)


def _is_open(bot: Bot, intent: Intent) -> bool:
    """Return whether the exchange shows the order as open; False if nothing certain is shown."""
    try:
        found = bot.exchange.find(intent.id, intent.created)
    except KeyRefusedError:
        raise
    except (RefusedError, StopError):  # StopError: several orders have this id.
        return False
    return found is not None and not found.status.is_final


def flatten(
    bot: Bot, reason: str, patience_s: float = 300.0, checks: Sequence[Callable[[], object]] = ()
) -> None:
    """Close what the bot holds, verify, and leave it halted for `reason`.

    Learns the market and runs `checks` first. Raises StopError when something may still be held.
    If the process dies, the next one goes on with it.
    """
    bot.journal.resume(flatten=reason)
    why = "the closing orders were not filled"
    try:
        for action in (bot.market.learn, *checks):
            bot.retry(action, patience_s)
        for _ in range(2 * UNFILLED_MAX):
            if bot.retry(partial(_close, bot, reason), patience_s):
                bot.journal.put(flatten=None, halted=reason)
                return
            bot.clock.wait(1.0)
    except LaterError as error:
        why = str(error)
    except StopError as error:
        bot.journal.keep_stop(error)
        raise
    raise bot.journal.halt(
        f"could not close the position ({reason}); {plain(bot.journal.account().held)} "
        f"{bot.plan.pair} may still be held ({why}): look at Kraken"
    )


def _close(bot: Bot, reason: str) -> bool:
    """Return whether nothing is held; otherwise send one order to close it."""
    bot.orders.reconcile()
    held = bot.orders.position()
    if held == 0:
        bot.orders.prove_refused()
        return True
    # Kraken decides whether a very small rest can be closed.
    volume = bot.market.rules.round_volume(abs(held)) or abs(held)
    side = Side.SELL if held > 0 else Side.BUY
    step = Step(Purpose.CLOSE, side, volume, bot.plan.leverage > 0)
    now = bot.clock.now()
    blocked = bot.orders.blocked(int(now)).get(Purpose.CLOSE)
    if blocked is not None and blocked.until is not None:  # Refused or not sent just now.
        bot.clock.wait(min(blocked.until - now, PAUSE_MAX_S))
    # The current time stands in for a candle's, so each closing order has a new id.
    bot.orders.send(step, int(bot.clock.now()), held, reason)
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
            what = f"the bot cannot be asked to flatten, {self._path}"
            raise no_access(self._path.parent, what, error) from error

    def withdraw(self) -> bool:
        """Delete the request; return whether it was still there."""
        with suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False

    def is_open(self) -> bool:
        return self._path.exists()

    def look(self) -> None:
        """Delete a request; raise FlattenRequestedError unless it is older than REQUEST_S."""
        with suppress(FileNotFoundError):
            age_s = time.time() - self._path.stat().st_mtime
            if self.withdraw() and age_s <= REQUEST_S:
                raise FlattenRequestedError
