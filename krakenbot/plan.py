"""From the configuration to the plan that decisions follow."""

from functools import partial

from krakenbot import rulefile
from krakenbot.config import Config
from krakenbot.decision import Plan
from krakenbot.model import Strategy
from krakenbot.risk import Limits
from krakenbot.strategy import sma_cross, sma_slope


def plan_of(config: Config) -> Plan:
    """Return the plan in a configuration; RuleError for a rule file that cannot be used."""
    chosen, risk = config.strategy, config.risk
    strategy: Strategy
    if chosen.name == "file" and chosen.file is not None:
        rule = rulefile.load(chosen.file)
        strategy, needed = partial(rule.signal, parameters=chosen.parameters), rule.candles
    elif chosen.name == "sma-cross":
        strategy, needed = partial(sma_cross, short=chosen.short, long=chosen.long), chosen.long
    else:
        strategy, needed = partial(sma_slope, length=chosen.length), chosen.length + 1
    return Plan(
        pair=config.pair,
        interval_s=config.interval * 60,
        size=config.size,
        leverage=config.leverage,
        one_order=config.reversal == "one-order",
        entry_now=config.entry == "now",
        strategy=strategy,
        candles_min=needed,
        limits=Limits(
            risk.max_loss, risk.min_margin_level, risk.max_spread_percent, risk.max_orders_per_day
        ),
    )
