import unittest
from decimal import Decimal
from functools import partial

from krakenbot.decision import Blocked, Decision, Plan, Snapshot, decide
from krakenbot.model import Direction, Purpose, Side, Signal, Step
from krakenbot.risk import Limits
from krakenbot.strategy import sma_slope
from tests.rules.test_pairs import rules

PLAN = Plan(
    pair="XBTUSD",
    interval_s=60,
    size=Decimal("0.01"),
    leverage=2,
    one_order=False,
    entry_now=False,
    strategy=partial(sma_slope, length=3),
    candles_min=4,
    limits=Limits(None, Decimal(150), Decimal(1), 500),
)


def decision(
    direction: Direction | None, held: str = "0", plan: Plan = PLAN, **more: object
) -> Decision:
    snapshot = Snapshot(
        signal=Signal(direction, Decimal(100), int(direction or 0)),
        held=Decimal(held),
        rules=rules(),
        waits_for_turn_from=None,
        flatten_reason="",
        blocked={},
    )
    return decide(snapshot._replace(**more), plan)


class TestDecision(unittest.TestCase):
    def test_a_rise_is_long_and_a_fall_is_short(self) -> None:
        for direction, side in ((Direction.LONG, Side.BUY), (Direction.SHORT, Side.SELL)):
            got = decision(direction)
            assert got.step is not None
            self.assertEqual((direction, side), (got.target, got.step.side))
            self.assertEqual((Purpose.OPEN, PLAN.size), (got.step.purpose, got.step.volume))

    def test_on_target_nothing_is_ordered_however_often_it_is_asked(self) -> None:
        for direction, held in ((Direction.LONG, "0.01"), (Direction.SHORT, "-0.01")):
            got = decision(direction, held)
            self.assertEqual((direction, None), (got.target, got.step))
            self.assertIn("on target", got.reason)

    def test_without_a_view_yet_nothing_is_touched(self) -> None:
        for held, target in (("0", 0), ("0.01", 1), ("-0.01", -1)):
            got = decision(None, held)
            self.assertEqual((target, None), (int(got.target), got.step))

    def test_flat_closes_what_is_held_and_orders_no_more(self) -> None:
        for held, side in (("0.01", Side.SELL), ("-0.01", Side.BUY)):
            for one_order in (False, True):
                got = decision(Direction.FLAT, held, PLAN._replace(one_order=one_order))
                self.assertEqual(Step(Purpose.CLOSE, side, PLAN.size, True), got.step)
        self.assertEqual((Direction.FLAT, None), decision(Direction.FLAT)[:2])

    def test_a_first_start_waits_through_flat_and_goes_with_the_next_view(self) -> None:
        waiting = decision(Direction.FLAT, waits_for_turn_from=Direction.FLAT)
        self.assertIn("waiting", waiting.reason)
        self.assertIsNotNone(decision(Direction.LONG).step)

    def test_a_reason_to_flatten_beats_the_signal_and_the_waiting(self) -> None:
        got = decision(
            Direction.LONG, "0.01", flatten_reason="enough", waits_for_turn_from=Direction.LONG
        )
        assert got.step is not None
        self.assertEqual((Direction.FLAT, Purpose.CLOSE), (got.target, got.step.purpose))
        self.assertTrue(got.step.reduce_only)
        self.assertIn("enough", got.reason)

    def test_flattening_while_flat_orders_nothing(self) -> None:
        self.assertIsNone(decision(Direction.LONG, "0", flatten_reason="enough").step)

    def test_a_rest_below_the_smallest_order_is_left_and_both_numbers_are_said(self) -> None:
        got = decision(Direction.LONG, "0.00998")
        self.assertIsNone(got.step)
        self.assertIn("0.00002", got.reason)
        self.assertIn("0.00005", got.reason)

    def test_what_may_not_be_sent_now_is_said_with_why_and_until_when(self) -> None:
        blocked = Blocked("refused for now", 99.0)
        got = decision(Direction.LONG, blocked={Purpose.OPEN: blocked})
        self.assertEqual((None, blocked), (got.step, got.blocked))
        self.assertIn("0.01 off target, refused for now", got.reason)

    def test_a_whole_position_below_a_raised_minimum_is_still_to_be_closed(self) -> None:
        raised = rules()._replace(ordermin=Decimal("0.05"))
        got = decision(Direction.SHORT, "0.01", rules=raised)
        self.assertEqual(Step(Purpose.CLOSE, Side.SELL, Decimal("0.01"), True), got.step)
        self.assertIsNone(decision(Direction.LONG, "0.01", rules=raised).step)

    def test_deciding_twice_on_the_same_snapshot_says_the_same(self) -> None:
        self.assertEqual(decision(Direction.SHORT, "0.01"), decision(Direction.SHORT, "0.01"))
