"""From a snapshot of the world to a decision. Pure: no clock, no socket, no memory."""

from collections.abc import Set
from decimal import Decimal
from typing import NamedTuple

from krakenbot.config import Config
from krakenbot.model import ZERO, Direction, Purpose, Signal, Step
from krakenbot.pairs import PairRules, plain
from krakenbot.risk import Limits
from krakenbot.sizing import next_step, target_volume
from krakenbot.strategy import Strategy, build


class Plan(NamedTuple):
    """What the user wants, as far as deciding is concerned."""

    pair: str
    interval_s: int
    size: Decimal
    leverage: int
    one_order: bool
    entry_now: bool
    strategy: Strategy
    candles_min: int
    limits: Limits


def plan_of(config: Config) -> Plan:
    """Return what deciding needs to know of the configuration."""
    chosen, risk = config.strategy, config.risk
    strategy, candles_min = build(
        chosen.name, chosen.length, chosen.short, chosen.long, chosen.file, chosen.parameters
    )
    return Plan(
        pair=config.pair,
        interval_s=config.interval * 60,
        size=config.size,
        leverage=config.leverage,
        one_order=config.reversal == "one-order",
        entry_now=config.entry == "now",
        strategy=strategy,
        candles_min=candles_min,
        limits=Limits(
            max_loss=risk.max_loss,
            min_margin_level=risk.min_margin_level,
            max_spread_percent=risk.max_spread_percent,
            max_orders_per_day=risk.max_orders_per_day,
        ),
    )


class Snapshot(NamedTuple):
    """What is known when deciding.

    `waits_for_turn_from` is the direction whose end a first start waits for, None once it is in
    the market. `flatten_reason` is set when nothing may be held any more. `tried` are the kinds
    of orders already sent for this candle.
    """

    signal: Signal
    held: Decimal
    rules: PairRules
    waits_for_turn_from: Direction | None
    flatten_reason: str | None
    tried: Set[Purpose]


class Decision(NamedTuple):
    """`target` is the direction to be in, `step` the next order towards it or None."""

    target: Direction
    step: Step | None
    reason: str


def decide(snapshot: Snapshot, plan: Plan) -> Decision:
    """Return where to be and the next order on the way there."""
    signal, held = snapshot.signal, snapshot.held
    if snapshot.flatten_reason is not None:
        direction, why = Direction.FLAT, snapshot.flatten_reason
    elif signal.direction is None:
        return Decision(_direction(held), None, "the strategy has no view yet")
    elif snapshot.waits_for_turn_from is signal.direction:
        view = signal.direction.name.lower()
        return Decision(Direction.FLAT, None, f"first start: {view}, waiting for a turn")
    else:
        direction, why = signal.direction, signal.direction.name.lower()
    target = target_volume(direction, plan.size, plan.leverage)
    step = next_step(held, target, plan.leverage, plan.one_order, snapshot.rules, snapshot.tried)
    goal = _direction(target)
    if step is not None:
        verb = {Purpose.CLOSE: "close", Purpose.OPEN: "open", Purpose.REVERSE: "turn"}[step.purpose]
        return Decision(goal, step, f"{why}: {verb} by {step.side.value} {plain(step.volume)}")
    if held == target:
        return Decision(goal, None, f"{why}: on target")
    rest = abs(target - held)
    if snapshot.rules.round_volume(rest) < snapshot.rules.ordermin:
        return Decision(
            goal,
            None,
            f"{why}: {plain(rest)} off target, left alone below the smallest order "
            f"{plain(snapshot.rules.ordermin)}",
        )
    return Decision(goal, None, f"{why}: {plain(rest)} off target, tried in this candle already")


def _direction(volume: Decimal) -> Direction:
    return Direction((volume > ZERO) - (volume < ZERO))
