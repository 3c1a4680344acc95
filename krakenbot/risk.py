"""Objections to an order, from the pair's rules, market state and the user's limits. Pure."""

from decimal import Decimal
from typing import NamedTuple

from krakenbot.format import money, percent, price, volume
from krakenbot.model import ZERO, MarginSummary, Purpose, Quote, Side, Step
from krakenbot.pairs import PairRules


class Limits(NamedTuple):
    """The user's `[risk]`. `max_loss` in quote currency or None; level and spread in percent.

    `close_only` says why nothing may be opened; it is empty when opening is allowed.
    """

    max_loss: Decimal | None
    min_margin_level: Decimal
    max_spread_percent: Decimal
    max_orders_per_day: int
    close_only: str = ""


class Objection(NamedTuple):
    """Why an order is not sent. `passing`: the reason may be gone in a minute.

    `funds`: free margin or the margin level looks too low, perhaps because a close is not visible
    yet.
    """

    reason: str
    passing: bool = False
    funds: bool = False


class RiskInputs(NamedTuple):
    """What is read only when there is an order to send.

    `fee_rate` is a fraction of the cost traded, `margin_rate` of the cost opened on margin.
    `clock_offset_s` is the exchange's time minus the host's.
    """

    system_status: str
    quote: Quote
    rules: PairRules
    held: Decimal
    summary: MarginSummary | None
    orders_today: int
    fee_rate: Decimal
    clock_offset_s: float
    margin_rate: Decimal = ZERO


CLOCK_OFFSET_MAX_S = 30.0
# Kraken's entry tier as reported; used while the account's fee is unknown.
FEE_RATE_ASSUMED = Decimal("0.008")


def objection(step: Step, leverage: int, inputs: RiskInputs, limits: Limits) -> Objection | None:
    """Return the first objection to sending the step's order now, or None.

    Only the market's state and spread stop a close; for one, `summary` may be None.
    """
    against = _market(step, inputs, limits)
    if against or step.purpose is Purpose.CLOSE:
        return against
    return _pair(step, leverage, inputs) or _exposure(step, leverage, inputs, limits)


def _market(step: Step, inputs: RiskInputs, limits: Limits) -> Objection | None:
    rules, quote = inputs.rules, inputs.quote
    reduces = rules.status == "reduce_only" and step.reduce_only
    if inputs.system_status != "online":
        return Objection(f"the exchange is in state {inputs.system_status}, not online", True)
    if rules.status != "online" and not reduces:
        return Objection(f"{rules.altname} is in state {rules.status}, not online", True)
    if quote.spread_percent > limits.max_spread_percent:
        spread = f"{percent(quote.spread_percent, 3)} (bid {price(quote.bid, rules)}, ask "
        spread = f"the spread is {spread}{price(quote.ask, rules)})"
        return Objection(f"{spread}, above max_spread_percent {limits.max_spread_percent}", True)
    return None


def _pair(step: Step, leverage: int, inputs: RiskInputs) -> Objection | None:
    rules, cost = inputs.rules, step.volume * inputs.quote.mid
    allowed, name = rules.leverages(step.side), rules.altname
    if leverage and leverage not in allowed:
        only = f"leverage {leverage} is not offered on {name}, only {' '.join(map(str, allowed))}"
        return Objection(only if allowed else f"{name} has no margin for a {step.side.value}")
    if step.volume < rules.ordermin:
        needed = volume(rules.ordermin, rules.base)
        return Objection(
            f"{volume(step.volume, rules.base)} is below the smallest order of {name}, {needed}"
        )
    if cost < rules.costmin:
        worth, needed = money(cost, rules.quote), money(rules.costmin, rules.quote)
        return Objection(f"an order worth {worth} is below the smallest of {name}, {needed}")
    return None


def _exposure(step: Step, leverage: int, inputs: RiskInputs, limits: Limits) -> Objection | None:
    rules, summary = inputs.rules, inputs.summary
    if limits.close_only:
        return Objection(f"only closing is allowed: {limits.close_only}")
    if abs(inputs.clock_offset_s) > CLOCK_OFFSET_MAX_S:
        off = f"this host's clock is {clock_error(inputs.clock_offset_s)}, more than "
        off += f"{CLOCK_OFFSET_MAX_S:.0f} s; repair it (timedatectl set-ntp true)"
        return Objection(off, True)
    if inputs.orders_today >= limits.max_orders_per_day:
        return Objection(
            f"{inputs.orders_today} orders were sent in the last 24 h, max_orders_per_day is "
            f"{limits.max_orders_per_day}; only closing is allowed now"
        )
    if summary is None:
        return Objection("the margin numbers are not known", True)
    now = inputs.quote.ask if step.side is Side.BUY else inputs.quote.bid
    # A reversal closes first, which frees the margin of the old position.
    closing = abs(inputs.held) if step.purpose is Purpose.REVERSE else ZERO
    opening = step.volume - closing
    opened = volume(opening, rules.base)
    needed = opening * now / max(leverage, 1) + step.volume * now * inputs.fee_rate
    needed += opening * now * inputs.margin_rate if leverage else ZERO
    free = summary.free_margin + closing * now / max(leverage, 1)
    if needed > free:
        return Objection(
            f"{money(needed, rules.quote)} are needed ({opened} at leverage {leverage}, fees "
            f"included), {money(free, rules.quote)} are free",
            funds=True,
        )
    level, level_min = summary.margin_level, limits.min_margin_level
    if level is not None and level < level_min:
        low = f"the margin level is {percent(level, 1)}, below min_margin_level {level_min} %"
        return Objection(f"{low}: no new exposure", funds=True)
    limit = rules.long_position_limit if step.side is Side.BUY else rules.short_position_limit
    if leverage and limit is not None and opening > limit:
        most = volume(limit, rules.base)
        return Objection(f"{opened} is above the position limit of {rules.altname}, {most}")
    return None


def clock_error(offset_s: float) -> str:
    """Say how far the host's clock is off; `offset_s` is the exchange's time minus the host's."""
    return f"{abs(offset_s):.0f} s {'behind' if offset_s > 0 else 'ahead of'} the exchange's"
