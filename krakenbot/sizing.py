"""How much: from a direction and what is held to the next order. Pure."""

from collections.abc import Container
from decimal import Decimal

from krakenbot.model import ZERO, Direction, Purpose, Side, Step
from krakenbot.pairs import PairRules


def target_volume(direction: Direction, size: Decimal, leverage: int) -> Decimal:
    """Return the signed volume to hold; without margin there is nothing below flat."""
    if leverage == 0 and direction is Direction.SHORT:
        return ZERO
    return size * int(direction)


def next_step(
    held: Decimal,
    target: Decimal,
    leverage: int,
    one_order: bool,
    rules: PairRules,
    blocked: Container[Purpose],
) -> Step | None:
    """Return the next order on the way from `held` to `target`, or None.

    None also when the difference is below the pair's minimum. A reversal closes first and opens
    next; with `one_order` it is one order unless that is `blocked`, which leads back to closing.
    """
    difference = target - held
    side = Side.BUY if difference > 0 else Side.SELL
    reverses = held * target < 0
    shrinks = abs(target) < abs(held) and not reverses
    volume = abs(difference)
    reduce_only = False
    if reverses and one_order and Purpose.REVERSE not in blocked:
        purpose = Purpose.REVERSE
    elif reverses and abs(held) < rules.ordermin:
        # A rest too small to be closed alone goes with the order the other way.
        purpose = Purpose.OPEN
    elif reverses or shrinks:
        purpose = Purpose.CLOSE
        volume = abs(held) if reverses else volume
        reduce_only = leverage > 0
    else:
        purpose = Purpose.OPEN
    volume = rules.round_volume(volume)
    if volume == 0 or volume < rules.ordermin:
        return None
    return Step(purpose, side, volume, reduce_only)
