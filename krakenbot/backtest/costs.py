"""An estimate, before the first order, of what a configuration costs per day."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot import format
from krakenbot.backtest.columns import columns_of
from krakenbot.backtest.engine import Costs, Replay
from krakenbot.backtest.result import DAY_S
from krakenbot.candles import fill
from krakenbot.config import INTERVALS, Config
from krakenbot.kraken.shape import OHLC_ROWS_MAX
from krakenbot.model import ZERO, Candle, MarginRates, Side
from krakenbot.pairs import PairRules, plain
from krakenbot.plan import plan_of
from krakenbot.risk import Limits

NEEDED_MAX = 620  # Of 720 candles: in fewer than 100, the number of turns is mostly chance.
_BALANCE_FACTOR = 1000  # Times the position, so that no order is refused for lack of money.


class CostEstimate(NamedTuple):
    """What trading over the last candles would have cost, in percent of the position per day.

    `refused_reason` says why that is unknown, and then the figures mean nothing; else it is None.
    `is_too_much`: it is unknown, or above the configured limit. `lines` are for people.
    """

    percent_per_day: Decimal
    turns_per_day: float
    refused_reason: str | None
    is_too_much: bool
    lines: list[str]


def fee_guard(
    config: Config,
    candles: Sequence[Candle],
    rules: PairRules,
    fee_rate: Decimal,
    rates: MarginRates,
) -> CostEstimate:
    """Return what the strategy would have cost over finished candles, with gaps filled flat.

    `fee_rate` and `rates` are fractions. If orders were refused or the candles are too few for the
    strategy, the cost counts as unknown, never as low.
    """
    interval_s, needed = config.interval * 60, plan_of(config).candles_min
    filled = fill(sorted(candles), interval_s)
    traded = filled[needed:]  # Nothing is ordered before.
    if len(traded) < 2:
        return _unknown(f"only {len(filled)} finished candles are known, {needed + 2} are needed")
    if needed > NEEDED_MAX:
        left = f"the strategy needs {needed} candles, Kraken gives {OHLC_ROWS_MAX}"
        return _unknown(f"{left}: the rest are too few to count turns in")
    price = sum((candle.close for candle in traded), ZERO) / len(traded)
    # Costs in percent do not depend on the size, so take one far above the pair's minimum.
    size = rules.round_volume(max(config.size, 10 * rules.ordermin, 10 * rules.costmin / price))
    lent = {rules.quote: rates.of(Side.BUY), rules.base: rates.of(Side.SELL)}
    # What the pair's status and minima are now says nothing about past candles.
    open_rules = rules._replace(status="online", ordermin=ZERO, costmin=ZERO)
    costs = Costs(fee_rate, _BALANCE_FACTOR * size * price, margin_rates=lent)
    limits = Limits(None, ZERO, Decimal(100), 10**6)
    plan = plan_of(config)._replace(size=size, entry_now=True, limits=limits)
    replay = Replay(plan, open_rules, costs, warm_up=needed)
    replay.feed(columns_of(filled, interval_s))
    result = replay.result()
    if result.refused_reason:
        return _unknown(result.refused_reason)
    position, days = size * price / 100, Decimal(result.end - result.begin) / DAY_S
    fees, margin = result.fees / position, (result.margin_fees + result.rollover) / position
    total = (fees + margin) / days
    lines = [
        f"over the last {format.duration(len(traded) * interval_s)} these settings turned "
        f"{result.turns_per_day:.1f} times a day; at a taker fee of {plain(fee_rate * 100)} % that "
        f"costs {total:.2f} % of the position a day (fees {fees / days:.2f} %, margin "
        f"{margin / days:.2f} %)",
    ]
    if result.turns:
        gain = f"{200 * fee_rate + margin / result.turns:.2f} % of the position"
        lines.append(f"each round trip must gain {gain} to break even")
    is_too_much = total > config.risk.max_fee_percent_per_day
    if is_too_much:
        lines.append(_longer_interval(config, total, max(lent.values())))
    return CostEstimate(total, result.turns_per_day, None, is_too_much, lines)


def _longer_interval(config: Config, total: Decimal, rate: Decimal) -> str:
    """Return a line that names the shortest interval whose cost would be within the limit."""
    limit = config.risk.max_fee_percent_per_day
    daily = 600 * rate if config.leverage else ZERO  # Six rollovers a day, at any interval.
    costs = {minutes: total * config.interval / minutes + daily for minutes in INTERVALS}
    longer = (n for n in INTERVALS if n > config.interval and costs[n] <= limit)
    hint = "no interval would be cheap enough at this fee"
    if minutes := next(longer, None):
        hint = f"interval = {minutes} would cost about {costs[minutes]:.1f} % (an estimate)"
    return f"risk.max_fee_percent_per_day is {plain(limit)}: {hint}"


def _unknown(reason: str) -> CostEstimate:
    lines = [f"the cost of these settings is unknown: {reason}"]
    return CostEstimate(ZERO, 0.0, reason, True, lines)
