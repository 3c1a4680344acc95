"""Adopting and flattening a position on a person's request, and showing what that will trade.

Functions that take a bot need one whose loop is not running; all of these but `flatten` need
`bot.market.learn` to have run.
"""

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial

from krakenbot import format, log
from krakenbot.accounting import own_trades
from krakenbot.bot import Bot
from krakenbot.decision import Snapshot, decide
from krakenbot.errors import ExchangeError, KeyRefusedError, LaterError, RefusedError, StopError
from krakenbot.kraken.spot import Spot
from krakenbot.model import ZERO, Direction, Position, Purpose, Side, Step
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import UNFILLED_MAX
from krakenbot.pairs import earn_balances, plain
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


def compared(holds: Decimal, records: Decimal, base: str) -> str:
    """Return what exchange and journal say is held, both in the base currency."""
    held, recorded = format.volume(holds, base), format.volume(records, base)
    return f"the exchange holds {held}, the journal records {recorded}"


def describe_trade(exchange: Spot, base: str, fee_rate: Decimal, change: Decimal) -> str:
    """Return in words what trading `change` now means: volume, price, value and fee.

    `change` is in the base currency, below 0 a sale; the fee rate is a fraction. `base` is given,
    because the rules may not be readable.
    """
    text = f"{'buy' if change > 0 else 'sell'} {format.volume(abs(change), base)} at market"
    try:
        rules, quote = exchange.known_rules(), exchange.quote()
    except ExchangeError as error:
        return f"{text}; its value is not known now: {log.clean(str(error))}"
    price = quote.ask if change > 0 else quote.bid
    worth = abs(change) * price
    fee = format.money(worth * fee_rate, rules.quote)
    about = f"about {format.price(price, rules)} = {format.money(worth, rules.quote)}"
    return f"{text}, {about}, fee about {fee} at {format.percent(100 * fee_rate)}"


def next_trade(bot: Bot, change: Decimal) -> str:
    """Return in words what this bot would trade now, with the fee of its account."""
    bot.market.read_rates()
    return describe_trade(bot.exchange, bot.market.rules.base, bot.market.fee_rate, change)


def adoption(bot: Bot) -> list[str]:
    """Return lines on what adopting changes and what the next decision will then trade."""
    position, rules, recorded = held_of(bot), bot.market.rules, bot.journal.account().held
    difference = format.signed(format.volume(position.volume - recorded, rules.base))
    at = format.price(_price(bot, position), rules)
    text = f"adopting: {difference} counts as traded at about {at}"
    if position.volume == recorded:
        text = "nothing to adopt"
    if bot.journal.get("halted"):
        text += "; the halt is cleared"
    if bot.journal.get("flatten"):
        text += "; the request to flatten is dropped"
    lines = [compared(position.volume, recorded, rules.base), text]
    if not bot.plan.leverage:
        lines += [
            f"{plain(amount)} {code} is in Earn or staked and does not count: move it "
            "back first, or the bot will buy again"
            for code, amount in earn_balances(bot.exchange.balances(), rules.base).items()
        ]
    trades = [f"  {trade}" for trade in _next_trades(bot, position.volume)]
    return [*lines, "the next decision then trades" + ("" if trades else " nothing"), *trades]


def _price(bot: Bot, position: Position) -> Decimal:
    """Return the price at which more than the journal records was opened; else the price now."""
    journal, held = bot.journal, bot.journal.account().held
    more = abs(position.volume) - abs(held)
    if more <= 0 or not position.cost or held * position.volume < 0:
        return bot.exchange.quote().mid
    average = position.cost / abs(position.volume)
    bot.keep_books()  # The ledger tells which part the bot itself has opened.
    if not any(journal.is_charged(f"open {trade}") for trade in position.trades):
        return average  # What the journal records is not part of it any more.
    price = (position.cost - abs(opening_cost(reversed(journal.intents()), held))) / more
    return price if average / 2 < price < average * 2 else average


def _next_trades(bot: Bot, held: Decimal) -> Iterator[str]:
    plan, last = bot.plan, bot.journal.get("direction")
    candles = bot.window.up_to(int(bot.clock.now()) - 2 * plan.interval_s + 1)
    signal = plan.strategy(candles or ())
    if signal.direction is None and last:
        signal = signal._replace(direction=Direction(int(last)))
    for _ in range(2):  # A reversal takes two.
        decision = decide(Snapshot(signal, held, bot.market.rules, None, "", {}), plan)
        if decision.step is None:
            return
        change = decision.step.side.sign * decision.step.volume
        yield f"{next_trade(bot, change)} ({decision.reason})"
        held += change


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
    raise bot.journal.halt(
        f"could not close the position ({reason}); {plain(bot.journal.account().held)} "
        f"{bot.plan.pair} may still be held ({why}): check at Kraken"
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
