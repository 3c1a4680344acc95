import random
import unittest
from collections.abc import Set
from decimal import Decimal

from krakenbot.decision import next_step, target_volume
from krakenbot.model import Direction, Purpose, Side, Step
from tests.rules.test_decision import PLAN
from tests.rules.test_pairs import rules

SIZE = Decimal("0.01")
SEED = 71


def step(
    held: str,
    target: str,
    *,
    leverage: int = 2,
    one_order: bool = False,
    blocked: Set[Purpose] = frozenset(),
) -> Step | None:
    plan = PLAN._replace(leverage=leverage, one_order=one_order)
    return next_step(Decimal(held), Decimal(target), plan, rules(), blocked)


def opens(side: Side, volume: str) -> Step:
    return Step(Purpose.OPEN, side, Decimal(volume), False)


def closes(side: Side, volume: str, *, reduce_only: bool = True) -> Step:
    return Step(Purpose.CLOSE, side, Decimal(volume), reduce_only)


class TestTarget(unittest.TestCase):
    def test_the_target_is_the_size_in_the_direction(self) -> None:
        for direction in Direction:
            self.assertEqual(SIZE * int(direction), target_volume(direction, SIZE, 2))

    def test_without_margin_nothing_is_sold_short(self) -> None:
        self.assertEqual(0, target_volume(Direction.SHORT, SIZE, 0))
        self.assertEqual(SIZE, target_volume(Direction.LONG, SIZE, 0))


class TestNextStep(unittest.TestCase):
    def test_on_target_there_is_no_step(self) -> None:
        for volume in ("0", "0.01", "-0.01"):
            self.assertIsNone(step(volume, volume))

    def test_from_flat_the_position_is_opened(self) -> None:
        self.assertEqual(opens(Side.BUY, "0.01"), step("0", "0.01"))
        self.assertEqual(opens(Side.SELL, "0.01"), step("0", "-0.01"))

    def test_a_reversal_closes_exactly_what_is_held_first_with_reduce_only(self) -> None:
        self.assertEqual(closes(Side.SELL, "0.007"), step("0.007", "-0.01"))
        self.assertEqual(closes(Side.BUY, "0.02"), step("-0.02", "0.01"))

    def test_with_one_order_a_reversal_is_a_single_order_for_the_whole_way(self) -> None:
        whole = Step(Purpose.REVERSE, Side.SELL, Decimal("0.02"), False)
        self.assertEqual(whole, step("0.01", "-0.01", one_order=True))

    def test_after_a_turn_was_tried_only_the_close_remains(self) -> None:
        got = step("0.01", "-0.01", one_order=True, blocked={Purpose.REVERSE})
        self.assertEqual(closes(Side.SELL, "0.01"), got)

    def test_too_much_is_shrunk_with_reduce_only_and_too_little_is_filled_up(self) -> None:
        self.assertEqual(closes(Side.SELL, "0.004"), step("0.014", "0.01"))
        self.assertEqual(opens(Side.BUY, "0.003"), step("0.007", "0.01"))

    def test_without_margin_closing_is_a_plain_sale(self) -> None:
        plain = closes(Side.SELL, "0.01", reduce_only=False)
        self.assertEqual(plain, step("0.01", "0", leverage=0))

    def test_a_difference_below_the_smallest_order_is_left_alone(self) -> None:
        self.assertIsNone(step("0.00996", "0.01"))
        self.assertIsNone(step("0.00004", "0"))
        self.assertIsNotNone(step("0.00995", "0.01"))

    def test_a_position_of_a_trifle_above_a_size_too_small_to_close_is_left_alone(self) -> None:
        raised = rules(ordermin="0.011")
        for held, target in (("0.011", "0.0109"), ("0.012", "0.01"), ("-0.012", "-0.01")):
            self.assertIsNone(next_step(Decimal(held), Decimal(target), PLAN, raised, set()))

    def test_a_rest_too_small_to_be_closed_goes_with_the_order_the_other_way(self) -> None:
        self.assertEqual(opens(Side.SELL, "0.01004"), step("0.00004", "-0.01"))

    def test_from_anywhere_filled_steps_end_within_a_smallest_order_of_the_target(self) -> None:
        draw = random.Random(SEED)
        for number in range(400):
            held = Decimal(draw.randint(-3_000_000, 3_000_000)).scaleb(-8)
            target = SIZE * draw.choice((-1, 0, 1))
            one_order = draw.random() < 0.5
            before, sent, bound = held, set[Purpose](), max(abs(held), abs(target))
            for _ in range(3):
                order = next_step(held, target, PLAN._replace(one_order=one_order), rules(), sent)
                if order is None:
                    break
                self.assertEqual(0, order.volume % Decimal(1).scaleb(-rules().lot_decimals))
                self.assertGreaterEqual(order.volume, rules().ordermin)
                after = held + order.side.sign * order.volume
                if order.reduce_only:
                    self.assertLessEqual(abs(after), abs(held))
                    self.assertGreaterEqual(after * held, 0, "reduce-only crossed flat")
                held = after
                sent.add(order.purpose)
                self.assertLessEqual(abs(held), bound)
            with self.subTest(number=number, before=before, target=target, one_order=one_order):
                self.assertLess(abs(target - held), rules().ordermin)
