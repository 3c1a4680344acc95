"""What a configuration costs a day, told before the first order."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot.config import INTERVALS, Config
from krakenbot.model import ZERO, Candle
from krakenbot.pairs import PairRules, plain
from krakenbot.simulated.backtest import Costs, Replay, Result, plan_of
from krakenbot.simulated.candlefile import Columns, aggregate

ROLLOVERS_A_DAY = 6
_NEEDED = 5  # How many times the strategy's own length a count of turns should rest on.


class FeeDrag(NamedTuple):
    """Costs in percent of the position; `fits` is the smallest interval in minutes below the limit,
    None when there is none, and `fits_percent` its costs: counted or, if not, estimated.
    """

    days: float
    fee_rate: Decimal
    turns_per_day: float
    fee_percent_per_day: Decimal
    margin_percent_per_day: Decimal
    percent_per_turn: Decimal
    limit_percent_per_day: Decimal
    fits: int | None
    fits_percent: Decimal | None
    fits_counted: bool

    @property
    def percent_per_day(self) -> Decimal:
        return self.fee_percent_per_day + self.margin_percent_per_day

    @property
    def too_much(self) -> bool:
        return self.percent_per_day > self.limit_percent_per_day

    def lines(self) -> list[str]:
        """Return what people should read, the newest numbers first."""
        lines = [
            f"over the newest {self.days * 24:.1f} h this configuration turned "
            f"{self.turns_per_day:.1f} times a day; at a taker fee of "
            f"{plain(self.fee_rate * 100)} % that costs {self.percent_per_day:.1f} % of the "
            f"position a day (fees {self.fee_percent_per_day:.1f} %, margin "
            f"{self.margin_percent_per_day:.2f} %)",
            f"each turn must win {self.percent_per_turn:.2f} % of the position to break even",
        ]
        if self.too_much:
            known = "counted on the same candles" if self.fits_counted else (
                "an estimate: twice the interval, half the turns"
            )
            lines.append(
                f"risk.max_fee_percent_per_day is {plain(self.limit_percent_per_day)}: "
                + (f"interval = {self.fits} would cost about {self.fits_percent:.1f} % ({known})"
                   if self.fits else "no interval would fit at this fee")
            )  # fmt: skip
        return lines


def check_fee_drag(
    config: Config, candles: Sequence[Candle], rules: PairRules, fee_rate: Decimal
) -> FeeDrag | None:
    """Replay finished candles through the plan; None when they are too few to show a turn."""
    interval_s = config.interval * 60
    prices = [[float(price) for price in column] for column in zip(*(
        (c.open, c.high, c.low, c.close) for c in candles
    ), strict=True)]  # fmt: skip
    if not prices or len(candles) <= plan_of(config, interval_s, {})[0].candles_min:
        return None
    part = Columns(candles[0].time, interval_s, min(prices[2]), max(prices[1]), *prices)
    price = candles[-1].close
    # The share of the position does not depend on its size, so one that may always trade is taken.
    size = max(config.size, 10 * rules.ordermin, 10 * rules.costmin / price)

    def replayed(part: Columns) -> tuple[Result, Decimal, Decimal]:
        plan, length = plan_of(config, part.interval_s, {})
        limits = plan.limits._replace(
            max_loss=None, min_margin_level=ZERO, max_spread_percent=Decimal(100),
            max_orders_per_day=10**6,
        )  # fmt: skip
        plan = plan._replace(size=rules.round_volume(size), entry_now=True, limits=limits)
        replay = Replay(plan, length, rules, Costs(fee_rate, 1000 * size * price))
        replay.feed(part)
        result = replay.result()
        position = plan.size * price * Decimal(result.days) / 100
        return result, result.fees / position, (result.opening_fees + result.rollover) / position

    result, fees, margin = replayed(part)
    limit = config.risk.max_fee_percent_per_day
    drag = FeeDrag(
        result.days, fee_rate, result.turns_per_day, fees, margin,
        (fees + margin) * Decimal(result.days) / max(result.turns, 1), limit, None, None, False,
    )  # fmt: skip
    if not drag.too_much:
        return drag
    rollover = ROLLOVERS_A_DAY * Costs(fee_rate, ZERO).margin_rate * 100 if config.leverage else 0
    for minutes in INTERVALS:
        if minutes <= config.interval or minutes % config.interval:
            continue
        needed = plan_of(config, interval_s, {})[0].candles_min * _NEEDED
        counted = len(candles) * config.interval >= needed * minutes
        larger = next(iter(aggregate([part], minutes * 60)), None) if counted else None
        if larger is not None:
            cost = sum(replayed(larger)[1:], ZERO)
        else:
            cost = (fees + margin) * config.interval / minutes + rollover
        if cost <= limit:
            return drag._replace(fits=minutes, fits_percent=cost, fits_counted=larger is not None)
    return drag
