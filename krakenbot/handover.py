"""Adopting and flattening a position on a person's request.

The bot's loop must not be running. For all but `flatten`, `bot.market.learn` must have run.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial

from krakenbot import format, log
from krakenbot.accounting import mark, own_trades
from krakenbot.bot import Bot
from krakenbot.errors import KeyRefusedError, LaterError, RefusedError, StopError
from krakenbot.model import ZERO, Position, Purpose, Side, Step
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import UNFILLED_MAX
from krakenbot.pairs import plain
from krakenbot.records import Intent, opening_cost

PAUSE_MAX_S = 15.0  # The longest wait between two closing orders.


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


def price_of(bot: Bot, position: Position) -> Decimal:
    """Return the price at which more than the journal records was opened; else the price now."""
    journal, held = bot.journal, bot.journal.account().held
    more = abs(position.volume) - abs(held)
    if more <= 0 or not position.cost or held * position.volume < 0:
        return bot.exchange.quote().mid
    average = position.cost / abs(position.volume)
    bot.read_ledger()  # The ledger tells which part the bot itself has opened.
    if not any(journal.is_charged(mark(trade)) for trade in position.trades):
        return average  # What the journal records is not part of it any more.
    price = (position.cost - abs(opening_cost(reversed(journal.intents()), held))) / more
    return price if average / 2 < price < average * 2 else average


def adopt(bot: Bot, recorded: Decimal, held: Decimal) -> None:
    """Record what is held as the bot's own, and clear a halt.

    `recorded` (in the journal) and `held` (at the exchange) are what a person was shown. Raises
    LaterError when something else is held now, perhaps because an answer lags, or while an earlier
    order may still be executed, and StopError when one is still open.
    """
    journal, clock = bot.journal, bot.clock
    try:
        bot.orders.reconcile()
    except KeyRefusedError:
        raise  # No private request may follow.
    except StopError as error:
        # A person has looked into it: open orders are abandoned unless one may still be executed.
        over = int(clock.now()) - VISIBLE_S
        for intent in journal.open_intents():
            if intent.deadline > over:
                raise LaterError(f"order {intent.id} may still be executed: {error}") from error
            if _is_open(bot, intent):
                raise
    # The bot's last trade may not be visible yet; adopting too early would miss it.
    newest = journal.newest_intent()
    if newest is not None:
        visible_s = (newest.settled or newest.created) + VISIBLE_S - clock.now()
        clock.wait(min(max(visible_s, 0.0), VISIBLE_S))
    before, position = journal.account().held, held_of(bot)
    if recorded and not before and not bot.plan.leverage:
        position = Position()  # Its coins were sold, as is known only now; others are not its own.
    elif position.volume != held:
        now_held = f"{plain(position.volume)} is held now, {plain(held)} when this was shown"
        raise LaterError(f"nothing was adopted: {now_held}. Look again")
    price, now = price_of(bot, position), int(clock.now())
    own_trades(journal, position.trades, now)  # First: a crash between must not hide rollovers.
    journal.adopt(position.volume, price, now, bot.plan.leverage > 0)
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
    held = f"{plain(bot.journal.account().held)} {bot.plan.pair} may still be held"
    if ids := ", ".join(intent.id for intent in bot.journal.open_intents()):
        held += f", besides what order {ids} may have traded"
    raise bot.journal.halt(
        f"could not close the position ({reason}); {held} ({why}): check at Kraken"
    )


def _close(bot: Bot, reason: str) -> bool:
    """Return whether nothing is held; otherwise send one order to close it."""
    bot.orders.reconcile()
    held = bot.orders.position()
    if held == 0:
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
