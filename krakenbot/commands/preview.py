"""What an adoption or a flatten will trade, in words, before a person agrees to it.

For functions that take a bot, `bot.market.learn` must have run.
"""

from collections.abc import Iterator
from decimal import Decimal

from krakenbot import format, log
from krakenbot.bot import Bot
from krakenbot.decision import Snapshot, decide
from krakenbot.errors import ExchangeError
from krakenbot.handover import held_of, price_of
from krakenbot.journal import Journal
from krakenbot.kraken.spot import Spot
from krakenbot.model import Direction
from krakenbot.pairs import earn_balances, plain


def adoption(bot: Bot) -> tuple[Decimal, list[str]]:
    """Return what is held, and lines on what adopting changes and the next decision then trades."""
    position, rules, recorded = held_of(bot), bot.market.rules, bot.journal.account().held
    difference = format.signed(format.volume(position.volume - recorded, rules.base))
    at = format.price(price_of(bot, position), rules)
    text = f"adopting: {difference} counts as traded at about {at}"
    if position.volume == recorded:
        text = "nothing to adopt"
    if bot.journal.get("halted"):
        text += "; the halt is cleared"
    if bot.journal.get("flatten"):
        text += "; the request to flatten is dropped"
    lines = [compared(position.volume, recorded, rules.base), text]
    if unknown := unresolved(bot.journal):
        lines.insert(0, f"{unknown}: it is looked up first")
    if not bot.plan.leverage:
        lines += [
            f"{plain(amount)} {code} is in Earn or staked and does not count: move it "
            "back first, or the bot will buy again"
            for code, amount in earn_balances(bot.exchange.balances(), rules.base).items()
        ]
    trades = [f"  {trade}" for trade in _next_trades(bot, position.volume)]
    lines += ["the next decision then trades" + ("" if trades else " nothing"), *trades]
    return position.volume, lines


def _next_trades(bot: Bot, held: Decimal) -> Iterator[str]:
    plan, last = bot.plan, bot.journal.get("direction")
    signal = plan.strategy(bot.window.read())
    if signal.direction is None and last:
        signal = signal._replace(direction=Direction(int(last)))
    for _ in range(2):  # A reversal takes two.
        decision = decide(Snapshot(signal, held, bot.market.rules, None, "", {}), plan)
        if decision.step is None:
            return
        change = decision.step.side.sign * decision.step.volume
        yield f"{next_trade(bot, change)} ({decision.reason})"
        held += change


def compared(holds: Decimal, records: Decimal, base: str) -> str:
    """Return what exchange and journal say is held, both in the base currency."""
    held, recorded = format.volume(holds, base), format.volume(records, base)
    return f"the exchange holds {held}, the journal records {recorded}"


def unresolved(journal: Journal) -> str:
    """Return in words which orders have no known outcome yet; "" if there are none."""
    ids = ", ".join(intent.id for intent in journal.open_intents())
    return f"what became of order {ids} is not known yet" if ids else ""


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
