import random
import unittest
from decimal import Decimal
from functools import partial
from typing import Any

from krakenbot.decision import Blocked, Decision, Plan, Snapshot, decide, next_step, target_volume
from krakenbot.model import Direction, Purpose, Side, Signal, Step
from krakenbot.risk import Limits
from krakenbot.strategy import sma_slope
from tests.rules.test_pairs import rules

SEED = 71
SIZE = Decimal("0.01")
PLAN = Plan(
    pair="XBTUSD",
    interval_s=60,
    size=SIZE,
    leverage=2,
    one_order=False,
    entry_now=False,
    strategy=partial(sma_slope, length=3),
    candles_min=4,
    limits=Limits(None, Decimal(150), Decimal(1), 500),
)
LONG, SHORT, FLAT = Direction.LONG, Direction.SHORT, Direction.FLAT


def decision(
    direction: Direction | None, held: str = "0", plan: Plan = PLAN, **more: Any
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


def order(purpose: Purpose, volume: str, *, reduce_only: bool = False) -> Step:
    """Return the step of a signed volume."""
    side = Side.SELL if volume.startswith("-") else Side.BUY
    return Step(purpose, side, abs(Decimal(volume)), reduce_only)


def opens(volume: str) -> Step:
    return order(Purpose.OPEN, volume)


def closes(volume: str) -> Step:
    return order(Purpose.CLOSE, volume, reduce_only=True)


FLATTENED = {"flatten_reason": "enough", "waits_for_turn_from": LONG}
BLOCKED = {"blocked": {Purpose.OPEN: Blocked("refused for now", 99.0)}}
ONE_ORDER = {"plan": PLAN._replace(one_order=True)}
RAISED = {"rules": rules(ordermin="0.05")}
# What is held, the direction, what else is known; the step, the target, words of the reason.
DECISIONS: dict[str, list[tuple[str, Direction | None, dict[str, Any], Step | None, int, str]]] = {
    "a rise is long and a fall is short": [
        ("0", LONG, {}, opens("0.01"), 1, ""),
        ("0", SHORT, {}, opens("-0.01"), -1, ""),
    ],
    "on target nothing is ordered": [
        ("0.01", LONG, {}, None, 1, "on target"),
        ("-0.01", SHORT, {}, None, -1, "on target"),
        ("0", FLAT, {}, None, 0, ""),
    ],
    "without a view yet nothing is touched": [
        ("0", None, {}, None, 0, ""),
        ("0.01", None, {}, None, 1, ""),
        ("-0.01", None, {}, None, -1, ""),
    ],
    "flat closes what is held and orders no more": [
        ("0.01", FLAT, {}, closes("-0.01"), 0, ""),
        ("-0.01", FLAT, {}, closes("0.01"), 0, ""),
        ("0.01", FLAT, ONE_ORDER, closes("-0.01"), 0, ""),
    ],
    "a first start waits through flat": [
        ("0", FLAT, {"waits_for_turn_from": FLAT}, None, 0, "waiting"),
    ],
    "a reason to flatten beats the signal and the waiting": [
        ("0.01", LONG, FLATTENED, closes("-0.01"), 0, "enough"),
        ("0", LONG, FLATTENED, None, 0, ""),
    ],
    "a rest below the smallest order is left and both numbers are said": [
        ("0.00998", LONG, {}, None, 1, "0.00002.*0.00005"),
    ],
    "what may not be sent now is said with why": [
        ("0", LONG, BLOCKED, None, 1, "0.01 off target, refused for now"),
    ],
    "a whole position below a raised minimum is still to be closed": [
        ("0.01", SHORT, RAISED, closes("-0.01"), -1, ""),
        ("0.01", LONG, RAISED, None, 1, ""),
    ],
}


class TestDecision(unittest.TestCase):
    def test_each_is_the_same_however_often_it_is_asked_for(self) -> None:
        for story, cases in DECISIONS.items():
            for held, direction, more, step, target, words in cases:
                with self.subTest(story, held=held, direction=direction):
                    got = decision(direction, held, **more)
                    self.assertEqual((target, step), (got.target, got.step))
                    self.assertRegex(got.reason, words or "^")
                    self.assertEqual(got, decision(direction, held, **more))

    def test_until_when_a_step_is_blocked_is_told(self) -> None:
        self.assertEqual(BLOCKED["blocked"][Purpose.OPEN], decision(LONG, **BLOCKED).blocked)

    def test_the_target_is_the_size_in_the_direction_and_without_margin_never_short(self) -> None:
        for leverage, targets in ((2, [SIZE, -SIZE, 0]), (0, [SIZE, 0, 0])):
            found = [target_volume(direction, SIZE, leverage) for direction in (LONG, SHORT, FLAT)]
            self.assertEqual(targets, found)


# What is held, the target, the plan; and the next step.
STEPS: dict[str, list[tuple[str, str, dict[str, Any], Step | None]]] = {
    "a reversal closes exactly what is held first with reduce-only": [
        ("0.007", "-0.01", {}, closes("-0.007")),
        ("-0.02", "0.01", {}, closes("0.02")),
    ],
    "with one order a reversal is a single order for the whole way": [
        ("0.01", "-0.01", {"one_order": True}, order(Purpose.REVERSE, "-0.02")),
    ],
    "after it was tried only the close remains": [
        ("0.01", "-0.01", {"one_order": True, "blocked": {Purpose.REVERSE}}, closes("-0.01")),
    ],
    "too much is shrunk with reduce-only and too little is filled up": [
        ("0.014", "0.01", {}, closes("-0.004")),
        ("0.007", "0.01", {}, opens("0.003")),
    ],
    "without margin closing is a plain sale": [
        ("0.01", "0", {"leverage": 0}, order(Purpose.CLOSE, "-0.01")),
    ],
    "a difference below the smallest order is left alone": [
        ("0.00996", "0.01", {}, None),
        ("0.00004", "0", {}, None),
        ("0.00995", "0.01", {}, opens("0.00005")),
    ],
    "a position a trifle above a size too small to be closed is left alone": [
        ("0.011", "0.0109", {"ordermin": "0.011"}, None),
        ("0.012", "0.01", {"ordermin": "0.011"}, None),
        ("-0.012", "-0.01", {"ordermin": "0.011"}, None),
    ],
    "a rest too small to be closed goes with the order the other way": [
        ("0.00004", "-0.01", {}, opens("-0.01004")),
    ],
}


class TestNextStep(unittest.TestCase):
    def test_each_is_what_its_story_says(self) -> None:
        for story, cases in STEPS.items():
            for held, target, changes, expected in cases:
                plan = {name: changes[name] for name in changes if name in Plan._fields}
                pair = rules(ordermin=changes.get("ordermin", "0.00005"))
                more = PLAN._replace(**plan), pair, changes.get("blocked", set())
                with self.subTest(story, held=held):
                    found = next_step(Decimal(held), Decimal(target), *more)
                    self.assertEqual(expected, found)

    def test_from_anywhere_filled_steps_end_within_a_smallest_order_of_the_target(self) -> None:
        draw = random.Random(SEED)
        for number in range(400):
            held = Decimal(draw.randint(-3_000_000, 3_000_000)).scaleb(-8)
            target, one_order = SIZE * draw.choice((-1, 0, 1)), draw.random() < 0.5
            plan, sent = PLAN._replace(one_order=one_order), set[Purpose]()
            with self.subTest(number, held=held, target=target, one_order=one_order):
                bound = max(abs(held), abs(target))
                for _ in range(3):
                    if step := next_step(held, target, plan, rules(), sent):
                        held = self.filled(step, held)
                        sent.add(step.purpose)
                    self.assertLessEqual(abs(held), bound)
                self.assertLess(abs(target - held), rules().ordermin)

    def filled(self, step: Step, held: Decimal) -> Decimal:
        """Return what is held after the step, which must be one that can be sent."""
        self.assertEqual(0, step.volume % Decimal(1).scaleb(-rules().lot_decimals))
        self.assertGreaterEqual(step.volume, rules().ordermin)
        after = held + step.side.sign * step.volume
        if step.reduce_only:
            self.assertLessEqual(abs(after), abs(held))
            self.assertGreaterEqual(after * held, 0, "reduce-only crossed flat")
        return after
