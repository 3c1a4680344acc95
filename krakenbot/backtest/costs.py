"""What a configuration costs a day, told before the first order."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot import format
from krakenbot.backtest.engine import Costs, Replay
from krakenbot.backtest.files import aggregate, columns_of
from krakenbot.backtest.result import DAY_S, Result
from krakenbot.candles import fill
from krakenbot.config import INTERVALS, Config
from krakenbot.decision import plan_of
from krakenbot.model import ZERO, Candle, MarginRates, Side
from krakenbot.pairs import PairRules, plain

_NEEDED = 5  # How many times the strategy's own length a count of turns should rest on.
_TIMES = 1000  # As much money as positions, so that no order is refused for want of it.


class Guard(NamedTuple):
    """What trading costs a day in percent of the position, over the newest candles.

    `refused_reason` says why that could not be counted; the other figures mean nothing then.
    `lines` are for people, the figures first.
    """

    percent_per_day: Decimal
    turns_per_day: float
    refused_reason: str | None
    lines: list[str]


class _Count(NamedTuple):
    fees: Decimal
    margin: Decimal
    per_turn: Decimal
    result: Result


def fee_guard(
    config: Config,
    candles: Sequence[Candle],
    rules: PairRules,
    fee_rate: Decimal,
    rates: MarginRates,
) -> Guard:
    """Return what the strategy would have cost over finished candles, gaps filled flat.

    `fee_rate` and `rates` are fractions. A pair that refuses the orders, or too few candles for
    the strategy to say anything, is a `refused_reason` and never a low cost.
    """
    interval_s, needed = config.interval * 60, plan_of(config).candles_min
    filled = fill(sorted(candles), interval_s)
    if len(filled) <= needed:
        reason = f"only {len(filled)} finished candles are known, {needed + 1} are needed"
        return _unknown(reason)
    price = filled[-1].close
    # The share of the position does not depend on its size, so one that may always trade is taken.
    size = rules.round_volume(max(config.size, 10 * rules.ordermin, 10 * rules.costmin / price))
    risk = config.risk._replace(
        max_loss=None,
        min_margin_level=ZERO,
        max_spread_percent=Decimal(100),
        max_orders_per_day=10**6,
    )
    free = config._replace(size=size, entry="now", risk=risk)
    lent = {rules.quote: rates.of(Side.BUY), rules.base: rates.of(Side.SELL)}
    costs = Costs(fee_rate, _TIMES * size * price, margin_rates=lent)
    count = _counted(free, filled, rules, costs)
    if count.result.refused_reason:
        return _unknown(count.result.refused_reason)
    total = count.fees + count.margin
    limit = config.risk.max_fee_percent_per_day
    lines = [
        f"over the newest {format.duration(len(filled) * interval_s)} this configuration turned "
        f"{count.result.turns_per_day:.1f} times a day; at a taker fee of "
        f"{plain(fee_rate * 100)} % that costs {total:.2f} % of the position a day (fees "
        f"{count.fees:.2f} %, margin {count.margin:.2f} %)",
        f"each turn must win {count.per_turn:.2f} % of the position to break even",
    ]
    if total > limit:
        fitting = _fitting(free, filled, rules, costs, total)
        lines.append(f"risk.max_fee_percent_per_day is {plain(limit)}: {fitting}")
    return Guard(total, count.result.turns_per_day, None, lines)


def _unknown(reason: str) -> Guard:
    return Guard(ZERO, 0.0, reason, [f"what this configuration costs is not known: {reason}"])


def _counted(
    config: Config, candles: Sequence[Candle], rules: PairRules, costs: Costs, step: int = 1
) -> _Count:
    """Return what was paid over the candles, each made of `step` of them, in percent a day."""
    interval_s = config.interval * 60
    part = columns_of(candles, interval_s)
    if step > 1:
        part = next(aggregate([part], interval_s * step))
    # The state of the market now says nothing about these candles.
    online = rules._replace(status="online")
    plan = plan_of(config)._replace(interval_s=part.interval_s)
    replay = Replay(plan, online, costs)
    replay.feed(part)
    result = replay.result()
    position = costs.balance / _TIMES / 100
    fees, margin = result.fees / position, (result.margin_fees + result.rollover) / position
    days = Decimal(result.end - result.begin) / DAY_S
    return _Count(fees / days, margin / days, (fees + margin) / max(result.turns, 1), result)


def _fitting(
    config: Config, candles: Sequence[Candle], rules: PairRules, costs: Costs, total: Decimal
) -> str:
    """Return words about the smallest interval below the limit: counted if the candles suffice."""
    limit = config.risk.max_fee_percent_per_day
    # Six rollovers a day are paid at any interval.
    daily = 600 * max(costs.margin_rates.values()) if config.leverage else ZERO
    for minutes in INTERVALS:
        ratio, rest = divmod(minutes, config.interval)
        if ratio < 2 or rest:
            continue
        cost = total / ratio + daily
        known = "an estimate: twice the interval, half the turns"
        if len(candles) >= plan_of(config).candles_min * _NEEDED * ratio:
            larger = _counted(config, candles, rules, costs, ratio)
            cost = larger.fees + larger.margin
            known = "counted on the same candles"
        if cost <= limit:
            return f"interval = {minutes} would cost about {cost:.1f} % ({known})"
    return "no interval would fit at this fee"
