"""From a snapshot of the world to the next order. Pure: no clock, no socket, no memory."""

from collections.abc import Container, Mapping
from decimal import Decimal
from typing import NamedTuple

from krakenbot.model import ZERO, Direction, Purpose, Side, Signal, Step, Strategy
from krakenbot.pairs import PairRules, plain
from krakenbot.risk import Limits

DUST = 10  # Less than `size` / DUST is left alone if it is below the exchange's minimum.


class Plan(NamedTuple):
    """The settings that a decision depends on. `size` is in base currency."""

    pair: str
    interval_s: int
    size: Decimal
    leverage: int
    one_order: bool
    entry_now: bool
    strategy: Strategy
    candles_min: int
    limits: Limits


class Blocked(NamedTuple):
    """Why a purpose may not be ordered, and until when (unix seconds; None: for this candle)."""

    reason: str
    until: float | None


class Snapshot(NamedTuple):
    """What a decision is based on.

    `waits_for_turn_from`: before the first entry, the direction that must end first; None once
    entered, or with `entry_now`. `flatten_reason` is empty unless the position must be closed for
    good. `blocked` are the purposes that may not be ordered now.
    """

    signal: Signal
    held: Decimal
    rules: PairRules
    waits_for_turn_from: Direction | None
    flatten_reason: str
    blocked: Mapping[Purpose, Blocked]


class Decision(NamedTuple):
    """`target` is the direction to be in, `step` the next order towards it or None.

    `blocked` is set when the next order may not be sent now.
    """

    target: Direction
    step: Step | None
    reason: str
    blocked: Blocked | None = None


def decide(snapshot: Snapshot, plan: Plan) -> Decision:
    """Return the target and the next order on the way to it."""
    signal, held, rules = snapshot.signal, snapshot.held, snapshot.rules
    if snapshot.flatten_reason:
        direction, why = Direction.FLAT, snapshot.flatten_reason
    elif signal.direction is None:
        return Decision(Direction.of(held), None, "the strategy has no view yet")
    elif snapshot.waits_for_turn_from is signal.direction:
        view = signal.direction.name.lower()
        return Decision(Direction.FLAT, None, f"{view}, waiting for a turn")
    else:
        direction, why = signal.direction, signal.direction.name.lower()
    target = target_volume(direction, plan.size, plan.leverage)
    goal, rest = Direction.of(target), abs(target - held)
    step = next_step(held, target, plan, rules, snapshot.blocked)
    if step is None and is_stuck(held, plan.size, rules) and held * target <= 0:
        # The position must be closed all the same.
        side = Side.SELL if held > 0 else Side.BUY
        step = Step(Purpose.CLOSE, side, abs(held), plan.leverage > 0)
    if step is None:
        left = f"{plain(rest)} off target, left alone below the smallest order "
        left = f"{left}{plain(rules.ordermin)}" if rest else "on target"
        return Decision(goal, None, f"{why}: {left}")
    if step.purpose in snapshot.blocked:
        blocked = snapshot.blocked[step.purpose]
        return Decision(goal, None, f"{why}: {plain(rest)} off target, {blocked.reason}", blocked)
    order = f"{step.side.value} {plain(step.volume)} to {step.purpose.verb}"
    return Decision(goal, step, f"{why}: {order}")


def is_stuck(held: Decimal, size: Decimal, rules: PairRules) -> bool:
    """Return whether what is held is below the exchange's minimum, and yet not mere dust.

    The exchange may have raised its minimum, or filled an order only in part.
    """
    return size / DUST <= abs(held) < rules.ordermin


def target_volume(direction: Direction, size: Decimal, leverage: int) -> Decimal:
    """Return the signed volume to hold; without margin, SHORT means flat."""
    if leverage == 0 and direction is Direction.SHORT:
        return ZERO
    return size * int(direction)


def next_step(
    held: Decimal, target: Decimal, plan: Plan, rules: PairRules, blocked: Container[Purpose]
) -> Step | None:
    """Return the next order on the way from `held` to `target`, or None.

    None also when the difference is below the pair's minimum. A reversal closes first and opens
    next; with `one_order` it is a single order, unless REVERSE is `blocked`: then it closes first.
    """
    difference, reverses = target - held, held * target < 0
    purpose, volume = Purpose.OPEN, abs(difference)
    if reverses and plan.one_order and Purpose.REVERSE not in blocked:
        purpose = Purpose.REVERSE
    elif reverses and abs(held) >= rules.ordermin:
        # A rest too small to be closed alone is closed by the opening order.
        purpose, volume = Purpose.CLOSE, abs(held)
    elif not reverses and abs(target) < abs(held):
        purpose = Purpose.CLOSE
        if abs(target) < rules.ordermin <= volume:  # Less than that could not be closed later.
            volume = abs(held)
    volume = rules.round_volume(volume)
    if volume == 0 or volume < rules.ordermin:
        return None
    side = Side.BUY if difference > 0 else Side.SELL
    return Step(purpose, side, volume, purpose is Purpose.CLOSE and plan.leverage > 0)
