"""What a configuration costs a day, told before the first order."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot.backtest.engine import DAY_S, Costs, Replay
from krakenbot.backtest.files import Columns, aggregate, columns_of
from krakenbot.config import INTERVALS, Config
from krakenbot.decision import plan_of
from krakenbot.model import ZERO, Candle
from krakenbot.pairs import PairRules, plain
from krakenbot.simulated.books import ROLLOVER_S

_NEEDED = 5  # How many times the strategy's own length a count of turns should rest on.
_TIMES = 1000  # As much money as positions, so that no order is ever refused.


class FeeDrag(NamedTuple):
    """Costs in percent of the position; `fits` says which interval costs less than the limit."""

    days: float
    fee_rate: Decimal
    turns_per_day: float
    fee_percent_per_day: Decimal
    margin_percent_per_day: Decimal
    percent_per_turn: Decimal
    limit_percent_per_day: Decimal
    fits: str = ""

    @property
    def percent_per_day(self) -> Decimal:
        return self.fee_percent_per_day + self.margin_percent_per_day

    @property
    def too_much(self) -> bool:
        return self.percent_per_day > self.limit_percent_per_day

    def lines(self) -> list[str]:
        """Return what people should read, the newest numbers first."""
        limit = plain(self.limit_percent_per_day)
        return [
            f"over the newest {self.days * 24:.1f} h this configuration turned "
            f"{self.turns_per_day:.1f} times a day; at a taker fee of "
            f"{plain(self.fee_rate * 100)} % that costs {self.percent_per_day:.1f} % of the "
            f"position a day (fees {self.fee_percent_per_day:.1f} %, margin "
            f"{self.margin_percent_per_day:.2f} %)",
            f"each turn must win {self.percent_per_turn:.2f} % of the position to break even",
            *([f"risk.max_fee_percent_per_day is {limit}: {self.fits}"] if self.too_much else []),
        ]


def check_fee_drag(
    config: Config, candles: Sequence[Candle], rules: PairRules, fee_rate: Decimal
) -> FeeDrag | None:
    """Replay finished candles through the plan; None when they are too few to show a turn."""
    if len(candles) <= plan_of(config).candles_min:
        return None
    price = candles[-1].close
    # The share of the position does not depend on its size, so one that may always trade is taken.
    size = rules.round_volume(max(config.size, 10 * rules.ordermin, 10 * rules.costmin / price))
    risk = config.risk._replace(
        max_loss=None,
        min_margin_level=ZERO,
        max_spread_percent=Decimal(100),
        max_orders_per_day=10**6,
    )
    free = config._replace(size=size, entry="now", risk=risk)
    costs = Costs(fee_rate, _TIMES * size * price)
    part = columns_of(candles, config.interval * 60)
    drag = _counted(free, part, rules, costs)
    return drag._replace(fits=_fitting(free, part, rules, costs, drag)) if drag.too_much else drag


def _counted(config: Config, part: Columns, rules: PairRules, costs: Costs) -> FeeDrag:
    plan = plan_of(config)._replace(interval_s=part.interval_s)
    replay = Replay(plan, rules, costs)
    replay.feed(part)
    result = replay.result()
    position = costs.balance / _TIMES / 100
    fees, margin = result.fees / position, (result.opening_fees + result.rollover) / position
    days = Decimal(result.days)
    return FeeDrag(
        result.days,
        costs.fee_rate,
        result.turns_per_day,
        fees / days,
        margin / days,
        (fees + margin) / max(result.turns, 1),
        config.risk.max_fee_percent_per_day,
    )


def _fitting(config: Config, part: Columns, rules: PairRules, costs: Costs, drag: FeeDrag) -> str:
    """Return words about the smallest interval below the limit: counted if the candles suffice."""
    daily = 100 * costs.margin_rate * (DAY_S // ROLLOVER_S) if config.leverage else ZERO
    for minutes in INTERVALS:
        ratio, rest = divmod(minutes, config.interval)
        if ratio < 2 or rest:
            continue
        cost = drag.percent_per_day / ratio + daily
        known = "an estimate: twice the interval, half the turns"
        if len(part.closes) >= plan_of(config).candles_min * _NEEDED * ratio:
            larger = next(aggregate([part], minutes * 60))
            cost = _counted(config, larger, rules, costs).percent_per_day
            known = "counted on the same candles"
        if cost <= drag.limit_percent_per_day:
            return f"interval = {minutes} would cost about {cost:.1f} % ({known})"
    return "no interval would fit at this fee"
