import unittest
from decimal import Decimal
from itertools import product
from typing import Any

from krakenbot.decision import Blocked
from krakenbot.model import Purpose
from krakenbot.order_states import (
    BELOW_MINIMUM_AFTER_S,
    LOOKUP_REFUSED,
    LOST,
    STILL_OPEN,
    TABLE,
    VISIBLE_S,
    Answer,
    Do,
    Search,
    State,
    Write,
    next_action,
    next_attempt,
)
from krakenbot.records import Intent, Outcome
from tests.ports.test_journal import CANDLE
from tests.ports.test_journal import intent as written

A, S, W = Answer, State, Write
DAY = 86400
ORDERMIN = Decimal("0.00005")
NEW = Search()
# Looked up for 200 s; deadline and lag were over for the last 10 s.
LONG = Search(lookups=20, first=0.0, after=190.0)
NOW = 200.0

# State, answer: what is written, what is done, after how many seconds, the state after it; then
# what is done once waiting is over, and what a person is told. All other cells cannot be.
CELLS: dict[tuple[State, Answer], tuple[Any, ...]] = {
    (S.PREPARED, A.NOT_FOUND): (W.INTENT, Do.SEND, 0, S.SENT),
    (S.PREPARED, A.FOUND_OPEN): (W.INTENT, Do.LOOK_UP, 1, S.UNCONFIRMED),
    (S.PREPARED, A.FOUND_FINAL): (W.INTENT, Do.LOOK_UP, 1, S.UNCONFIRMED),
    (S.PREPARED, A.LOOKUP_FAILED): (W.NOTHING, Do.LEAVE_OPEN, 0, S.PREPARED),
    (S.SENT, A.ACCEPTED): (W.ACCEPTED, Do.LOOK_UP, 0, S.ACCEPTED),
    (S.SENT, A.REJECTED): (W.NOTHING, Do.LOOK_UP, 0, S.SENT),
    (S.SENT, A.NOT_SENT): (W.REFUSAL, Do.DONE, 0, S.FINAL),
    (S.SENT, A.UNKNOWN): (W.NOTHING, Do.LOOK_UP, 0, S.UNCONFIRMED),
    (S.SENT, A.FOUND_OPEN): (W.NOTHING, Do.LOOK_UP, 1, S.UNCONFIRMED),
    (S.SENT, A.FOUND_FINAL): (W.FILL, Do.DONE, 0, S.FINAL),
    (S.SENT, A.NOT_FOUND): (W.REFUSAL, Do.DONE, 0, S.FINAL),
    (S.SENT, A.LOOKUP_FAILED): (W.NOTHING, Do.LOOK_UP, 10, S.UNCONFIRMED),
    (S.ACCEPTED, A.FOUND_OPEN): (W.NOTHING, Do.LOOK_UP, 1, S.ACCEPTED, Do.HALT, STILL_OPEN),
    (S.ACCEPTED, A.FOUND_FINAL): (W.FILL, Do.DONE, 0, S.FINAL),
    (S.ACCEPTED, A.NOT_FOUND): (W.NOTHING, Do.LOOK_UP, 1, S.ACCEPTED, Do.HALT, LOST),
    (S.ACCEPTED, A.LOOKUP_FAILED): (
        *(W.NOTHING, Do.LEAVE_OPEN, 0, S.ACCEPTED),
        *(Do.HALT, LOOKUP_REFUSED),
    ),
    (S.UNCONFIRMED, A.FOUND_OPEN): (W.NOTHING, Do.LOOK_UP, 1, S.UNCONFIRMED, Do.HALT, STILL_OPEN),
    (S.UNCONFIRMED, A.FOUND_FINAL): (W.FILL, Do.DONE, 0, S.FINAL),
    (S.UNCONFIRMED, A.NOT_FOUND): (W.NOTHING, Do.LOOK_UP, 10, S.UNCONFIRMED, Do.PROVE, ""),
    (S.UNCONFIRMED, A.LOOKUP_FAILED): (
        *(W.NOTHING, Do.LEAVE_OPEN, 0, S.UNCONFIRMED),
        *(Do.HALT, LOOKUP_REFUSED),
    ),
}


def due(state: State, answer: Answer, search: Search, now: float = NOW) -> tuple[Do, float]:
    return next_action(TABLE[state, answer], answer, search, now)


class TestTable(unittest.TestCase):
    def test_every_state_has_a_cell_for_every_answer(self) -> None:
        self.assertEqual(set(product(State, Answer)), set(TABLE))

    def test_each_cell_does_what_is_written_here_and_else_only_once_waiting_is_over(self) -> None:
        refused = LONG._replace(refused=0.0, is_refused=True)
        for (state, answer), (write, do, pause_s, after, *late) in CELLS.items():
            with self.subTest(state=state.name, answer=answer.name):
                cell, over = TABLE[state, answer], refused if answer is A.LOOKUP_FAILED else LONG
                later, reason = late or (do, "")
                self.assertEqual((write, after, reason), (cell.write, cell.state, cell.reason))
                self.assertEqual((do, pause_s), due(state, answer, NEW))
                self.assertEqual(later, due(state, answer, over, 4000.0)[0])

    def test_every_other_cell_cannot_be_and_stops_for_a_person_with_nothing_written(self) -> None:
        others = TABLE.keys() - CELLS.keys()
        self.assertEqual(20, len(others))
        for state, answer in others:
            with self.subTest(state=state.name, answer=answer.name):
                cell, got = TABLE[state, answer], due(state, answer, NEW)[0]
                self.assertEqual((W.NOTHING, Do.HALT), (cell.write, got))
                self.assertRegex(cell.reason, rf"{answer.name} in state {state.name}\b")

    def test_an_order_is_sent_from_one_cell_alone_right_after_its_intent_is_written(self) -> None:
        sending = [(key, cell.write) for key, cell in TABLE.items() if cell.do is Do.SEND]
        self.assertEqual([((S.PREPARED, A.NOT_FOUND), W.INTENT)], sending)


class TestWaiting(unittest.TestCase):
    def absent(self, search: Search, now: float = NOW) -> bool:
        return due(S.UNCONFIRMED, A.NOT_FOUND, search, now)[0] is Do.PROVE

    def test_absent_needs_a_long_watch_and_two_answered_looks_ten_seconds_apart(self) -> None:
        self.assertTrue(self.absent(LONG))
        self.assertFalse(self.absent(LONG._replace(after=None)), "deadline and lag are not over")
        self.assertFalse(self.absent(LONG._replace(after=191.0)), "one look after that")
        self.assertFalse(self.absent(LONG._replace(first=126.0, after=126.0)), "a short watch")

    def test_answered_looks_count_from_the_first_one_and_the_first_one_after_the_time(self) -> None:
        search = NEW.answered(5, False).answered(15, False).answered(25, True).answered(35, True)
        self.assertEqual(Search(4, 5, 25), search)

    def test_an_accepted_order_is_looked_at_after_1_2_4_8_and_then_every_10_seconds(self) -> None:
        pauses = [due(S.ACCEPTED, A.FOUND_OPEN, NEW._replace(lookups=n))[1] for n in range(1, 8)]
        self.assertEqual([1, 2, 4, 8, 10, 10, 10], pauses)

    def test_a_look_that_is_refused_for_an_hour_needs_a_person(self) -> None:
        search = NEW.failed(100, True).failed(2000, False).failed(3000, True)
        early, late = (due(S.UNCONFIRMED, A.LOOKUP_FAILED, search, at)[0] for at in (3699, 3700))
        self.assertEqual((Do.LEAVE_OPEN, Do.HALT), (early, late))
        outage = due(S.UNCONFIRMED, A.LOOKUP_FAILED, search.failed(9000, False), 9000)
        self.assertIs(Do.LEAVE_OPEN, outage[0])

    def test_an_exchange_that_cannot_be_reached_is_waited_for_without_end(self) -> None:
        outage = due(S.ACCEPTED, A.LOOKUP_FAILED, NEW.failed(100, False), 100 + 30 * DAY)
        self.assertIs(Do.LEAVE_OPEN, outage[0])

    def test_a_look_that_is_answered_again_forgets_the_refusals(self) -> None:
        self.assertIsNone(NEW.failed(100, True).answered(200, False).refused)


def intent(outcome: Outcome, settled: int = CANDLE + DAY, **more: Any) -> Intent:
    sent = {"interval_s": DAY, "created": settled - 1, "deadline": settled + 14}
    row = written(**sent, volume=Decimal("0.01"), outcome=outcome, settled=settled)
    return row._replace(**more)


def attempt(*newest_first: Intent, candle: int = CANDLE, now: float = 0) -> Blocked | None:
    return next_attempt(newest_first, candle, DAY, ORDERMIN, now)


def pause(*newest_first: Intent, candle: int = CANDLE) -> float | None:
    """Return the seconds from the newest one's end to the next attempt; None for none at all."""
    blocked, settled = attempt(*newest_first, candle=candle), newest_first[0].settled
    assert blocked is not None and settled is not None
    return None if blocked.until is None else blocked.until - settled


SURE, UNSURE, NOT_SENT = Outcome.REFUSED_FOR_NOW_NO_ORDER, Outcome.REFUSED_FOR_NOW, Outcome.NOT_SENT


class TestNextAttempt(unittest.TestCase):
    def test_the_first_order_of_a_purpose_is_free(self) -> None:
        self.assertIsNone(attempt())

    def test_the_reason_says_in_plain_words_how_the_last_one_ended(self) -> None:
        for outcome, words in ((UNSURE, "refused for now"), (NOT_SENT, "not sent")):
            with self.subTest(words):
                blocked = attempt(intent(outcome, note="EOrder:Orders limit exceeded"))
                expected = f"{words} (EOrder:Orders limit exceeded), retrying after a pause"
                self.assertEqual(expected, blocked and blocked.reason)

    def test_refusals_documented_to_leave_no_order_are_retried_after_growing_pauses(self) -> None:
        pauses = [pause(*[intent(SURE)] * count) for count in range(1, 6)]
        self.assertEqual([15, 60, 300, 900, 900], pauses)

    def test_what_was_not_sent_is_asked_again_after_seconds(self) -> None:
        pauses = [pause(*[intent(NOT_SENT)] * count) for count in range(1, 6)]
        self.assertEqual([2, 5, 15, 60, 60], pauses)

    def test_a_close_that_can_only_shrink_is_retried_after_any_failure(self) -> None:
        for outcome in (UNSURE, SURE, Outcome.REFUSED, Outcome.CANCELED):
            with self.subTest(outcome):
                close = intent(outcome, purpose=Purpose.CLOSE, reduce_only=True)
                self.assertEqual(15, pause(close))

    def test_a_doubt_of_0_3_5_recorded_at_once_is_waited_out(self) -> None:
        self.assertEqual(14 + VISIBLE_S, pause(intent(UNSURE)))

    def test_what_never_happened_may_be_tried_again_for_the_same_candle(self) -> None:
        self.assertEqual(60, pause(*[intent(Outcome.ABSENT)] * 4))

    def test_a_definite_no_to_what_opens_is_final_for_the_candle_and_not_for_the_next(self) -> None:
        for outcome in (Outcome.REFUSED, Outcome.CANCELED, Outcome.CLOSED, Outcome.EXPIRED):
            with self.subTest(outcome):
                self.assertIsNone(pause(intent(outcome)))
                self.assertIsNone(attempt(intent(outcome), candle=CANDLE + DAY))

    def test_a_close_that_was_filled_stands_in_no_later_one_s_way(self) -> None:
        close = intent(Outcome.CLOSED, reduce_only=True, executed=Decimal("0.01"))
        self.assertIsNone(attempt(close))

    def test_nothing_is_tried_again_in_the_last_tenth_of_a_candle_s_time(self) -> None:
        end, tenth = CANDLE + 2 * DAY, DAY // 10
        self.assertEqual(15, pause(intent(SURE, end - tenth - 15)))
        self.assertIsNone(pause(intent(SURE, end - tenth - 14)))

    def test_an_attempt_that_was_due_earlier_is_not_made_up_for_in_the_last_tenth(self) -> None:
        blocked = attempt(intent(SURE), now=CANDLE + 2 * DAY - DAY // 20)
        self.assertEqual((True, None), (blocked is not None, blocked and blocked.until))

    def test_a_new_candle_waits_at_most_five_minutes_for_the_refusals_of_older_ones(self) -> None:
        refused = [intent(SURE)] * 4
        self.assertEqual(300, pause(*refused, candle=CANDLE + DAY))

    def test_only_refusals_in_a_row_make_the_pause_longer(self) -> None:
        self.assertEqual(15, pause(intent(SURE), intent(Outcome.CLOSED), intent(SURE)))

    def test_a_close_below_a_raised_minimum_is_tried_once_an_hour(self) -> None:
        small = intent(UNSURE, reduce_only=True, volume=ORDERMIN / 2)
        self.assertEqual(BELOW_MINIMUM_AFTER_S, pause(small))
        self.assertEqual(BELOW_MINIMUM_AFTER_S, pause(small, candle=CANDLE + DAY))
