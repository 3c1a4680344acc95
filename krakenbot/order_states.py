"""The life of an order as one table: what to do after each answer in each state. Pure.

Read TABLE first. orders.py carries it out; the tests check it cell by cell.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from itertools import product, takewhile
from typing import NamedTuple

from krakenbot.decision import Blocked
from krakenbot.model import Purpose
from krakenbot.records import PASSING, Intent, Outcome

VISIBLE_S = 120  # Reads may lag behind events this long: twice the longest lag reported.
WATCH_MIN_S = 75.0  # How long this process must look up an order to prove it absent.
LOOKUP_PAUSE_S = 10.0  # As often as Kraken's lowest REST limit allows a lookup.
LOOKUP_REFUSED_S = 3600.0


class State(Enum):
    PREPARED = "planned; neither on disk nor sent"
    SENT = "on disk and sent; a refusal is not yet confirmed by a lookup"
    ACCEPTED = "the exchange has accepted it"
    UNCONFIRMED = "outcome unknown: it may have been executed or not"
    FINAL = "its outcome is on disk"


class Answer(Enum):
    """The first four answer the sending of the order, the others a lookup."""

    ACCEPTED = "accepted"
    REJECTED = "refused, for good or for now, and no order can be left"
    NOT_SENT = "no byte left this machine"
    UNKNOWN = "no answer, none that can be understood, or a refusal that may leave an order"
    FOUND_OPEN = "it exists, and may still trade or show more of its fill"
    FOUND_FINAL = "it has ended, and its fill is certain"
    NOT_FOUND = "the exchange knows no such order"
    LOOKUP_FAILED = "the lookup was refused or not answered"


class Write(Enum):
    NOTHING = "nothing"
    INTENT = "the intent"
    ACCEPTED = "that the exchange has accepted it"
    FILL = "its outcome and its fill"
    REFUSAL = "that it was refused or not sent, and why"


class Do(Enum):
    SEND = "send it, once"
    LOOK_UP = "look up what became of it"
    PROVE = "record it as absent if trades and position agree; else halt"
    DONE = "nothing more; the next decision may make a new attempt: next_attempt"
    LEAVE_OPEN = "leave it open; the loop waits for the exchange and reconciles again"
    HALT = "halt, recorded on disk: a person must look"


NOW_S = (0.0,)
QUICK_S = (1.0, 2.0, 4.0, 8.0, LOOKUP_PAUSE_S)  # A market order ends within a second or two.
SLOW_S = (LOOKUP_PAUSE_S,)


class Cell(NamedTuple):
    """What follows an answer: `write`, the new `state`, a wait, then `do`.

    `on_timeout` replaces `do` after a timeout (see `next_action`); `reason` is a halt's text.
    """

    state: State
    do: Do
    pauses_s: Sequence[float] = NOW_S  # The waits before `do`, in turn; the last repeats.
    on_timeout: Do | None = None
    reason: str = ""
    write: Write = Write.NOTHING


PREPARED, SENT, ACCEPTED, UNCONFIRMED, FINAL = State
LOST = "was accepted by the exchange, which now does not know it"
STILL_OPEN = "is a market order and still open long after its deadline"
LOOKUP_REFUSED = "cannot be looked up: the exchange has refused lookups for an hour"


def _impossible(state: State, answer: Answer) -> Cell:
    reason = f"was answered {answer.name} in state {state.name}, which should be impossible"
    return Cell(state, Do.HALT, reason=reason)


TABLE: Mapping[tuple[State, Answer], Cell] = {
    **{pair: _impossible(*pair) for pair in product(State, Answer)},
    # Not sent. An order starts with NOT_FOUND; only with a new journal is it looked up before that,
    # because a journal that was lost may have sent it.
    (PREPARED, Answer.NOT_FOUND): Cell(SENT, Do.SEND, write=Write.INTENT),
    (PREPARED, Answer.FOUND_OPEN): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S, write=Write.INTENT),
    (PREPARED, Answer.FOUND_FINAL): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S, write=Write.INTENT),
    (PREPARED, Answer.LOOKUP_FAILED): Cell(PREPARED, Do.LEAVE_OPEN),
    # Sent. A refusal is believed after one lookup that does not find the order.
    (SENT, Answer.ACCEPTED): Cell(ACCEPTED, Do.LOOK_UP, write=Write.ACCEPTED),
    (SENT, Answer.REJECTED): Cell(SENT, Do.LOOK_UP),
    (SENT, Answer.NOT_SENT): Cell(FINAL, Do.DONE, write=Write.REFUSAL),
    (SENT, Answer.UNKNOWN): Cell(UNCONFIRMED, Do.LOOK_UP),
    (SENT, Answer.NOT_FOUND): Cell(FINAL, Do.DONE, write=Write.REFUSAL),
    (SENT, Answer.FOUND_OPEN): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S),
    (SENT, Answer.FOUND_FINAL): Cell(FINAL, Do.DONE, write=Write.FILL),
    (SENT, Answer.LOOKUP_FAILED): Cell(UNCONFIRMED, Do.LOOK_UP, SLOW_S),
    # Accepted: the exchange must know the order, and the order must end.
    (ACCEPTED, Answer.FOUND_FINAL): Cell(FINAL, Do.DONE, write=Write.FILL),
    (ACCEPTED, Answer.FOUND_OPEN): Cell(ACCEPTED, Do.LOOK_UP, QUICK_S, Do.HALT, STILL_OPEN),
    (ACCEPTED, Answer.NOT_FOUND): Cell(ACCEPTED, Do.LOOK_UP, QUICK_S, Do.HALT, LOST),
    (ACCEPTED, Answer.LOOKUP_FAILED): Cell(ACCEPTED, Do.LEAVE_OPEN, NOW_S, Do.HALT, LOOKUP_REFUSED),
    # Outcome unknown. Open orders of an earlier process start here, unless they were accepted.
    (UNCONFIRMED, Answer.FOUND_FINAL): Cell(FINAL, Do.DONE, write=Write.FILL),
    (UNCONFIRMED, Answer.FOUND_OPEN): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S, Do.HALT, STILL_OPEN),
    (UNCONFIRMED, Answer.NOT_FOUND): Cell(UNCONFIRMED, Do.LOOK_UP, SLOW_S, Do.PROVE),
    (UNCONFIRMED, Answer.LOOKUP_FAILED): Cell(
        UNCONFIRMED, Do.LEAVE_OPEN, NOW_S, Do.HALT, LOOKUP_REFUSED
    ),
}


class Search(NamedTuple):
    """The lookups of one order so far; times are seconds of the monotonic clock.

    `lookups` were answered since `first`; `after` is the first one after deadline and read lag.
    `refused` is the first refusal since the last answer, None without one; `is_refused` says
    whether the newest lookup was refused, not just unanswered.
    """

    lookups: int = 0
    first: float | None = None
    after: float | None = None
    refused: float | None = None
    is_refused: bool = False

    def answered(self, now: float, is_over: bool) -> "Search":
        first = now if self.first is None else self.first
        after = now if self.after is None and is_over else self.after
        return Search(self.lookups + 1, first, after)

    def failed(self, now: float, is_refused: bool) -> "Search":
        since = now if is_refused and self.refused is None else self.refused
        return self._replace(refused=since, is_refused=is_refused)


def next_action(cell: Cell, answer: Answer, search: Search, now: float) -> tuple[Do, float]:
    """Return what the answer's cell says to do now, and the pause before that in seconds.

    Answered lookups time out once deadline and read lag are over, this process has looked for
    WATCH_MIN_S, and two lookups answered since then were LOOKUP_PAUSE_S apart. Refused ones time
    out after LOOKUP_REFUSED_S; ones without any answer are repeated without limit.
    """
    has_timed_out = False
    if answer is Answer.LOOKUP_FAILED:
        if search.is_refused and search.refused is not None:
            has_timed_out = now - search.refused >= LOOKUP_REFUSED_S
    elif search.first is not None and search.after is not None:
        has_timed_out = now - search.first >= WATCH_MIN_S and now - search.after >= LOOKUP_PAUSE_S
    if cell.on_timeout is not None and has_timed_out:
        return cell.on_timeout, 0.0
    at = min(max(search.lookups - 1, 0), len(cell.pauses_s) - 1)
    return cell.do, cell.pauses_s[at]


REFUSED_AFTER_S = (15.0, 60.0, 300.0, 900.0)  # Pauses before a retry; the last one repeats.
NOT_SENT_AFTER_S = (2.0, 5.0, 15.0, 60.0)
# A new candle's first attempt waits at most this long because an earlier candle's order failed.
EARLIER_CANDLE_MAX_S = 300.0
BELOW_MINIMUM_AFTER_S = 3600.0  # After an order below the minimum, at new candles too.
ENDED_EARLY = (Outcome.CANCELED, Outcome.EXPIRED, Outcome.REFUSED)


def next_attempt(
    newest_first: Sequence[Intent],
    candle: int,
    interval_s: int | None,
    ordermin: Decimal,
    now: float,
) -> Blocked | None:
    """Return why this purpose may not be ordered again for the candle, and until when, or None.

    `newest_first` are orders of one purpose, all final. Pauses grow while the same outcome repeats.
    A retry for the same candle is only allowed after a temporary failure, or for an order that only
    reduces the position, and never in the last tenth of the time before the next candle's decision.
    Without an `interval_s`, the candle does not matter.
    """
    newest = newest_first[0] if newest_first else None
    if newest is None or (newest.reduce_only and newest.executed == newest.volume):
        return None
    is_of_candle = newest.interval_s == interval_s and newest.candle == candle
    # Without margin a close is an ordinary sale: what it left may be sold, once that is certain.
    ended_early = newest.purpose is Purpose.CLOSE and newest.outcome in ENDED_EARLY
    if not (newest.reduce_only or ended_early or newest.outcome in PASSING):
        return Blocked("already ordered once for this candle", None) if is_of_candle else None
    at = (newest.settled or newest.created) + _pause_s(newest_first, is_of_candle, ordermin)
    is_sale = newest.purpose is Purpose.CLOSE and newest.outcome is Outcome.REFUSED
    if not newest.reduce_only and (is_sale or newest.outcome is Outcome.REFUSED_FOR_NOW):
        at = max(at, newest.deadline + VISIBLE_S)  # Up to 0.3.5 it was recorded at once.
    reason = f"{newest.ending} ({newest.note})" if newest.note else newest.ending
    if is_of_candle and max(at, now) > candle + 2 * newest.interval_s - newest.interval_s / 10:
        return Blocked(f"{reason}, no retry for this candle", None)
    return Blocked(f"{reason}, retrying after a pause", at)


def _pause_s(newest_first: Sequence[Intent], is_of_candle: bool, ordermin: Decimal) -> float:
    newest = newest_first[0]
    if newest.volume < ordermin:
        return BELOW_MINIMUM_AFTER_S
    pauses = NOT_SENT_AFTER_S if newest.outcome is Outcome.NOT_SENT else REFUSED_AFTER_S
    in_a_row = len(list(takewhile(lambda one: one.outcome is newest.outcome, newest_first)))
    if newest.outcome is Outcome.ABSENT:
        in_a_row = 2  # The second pause, a minute, in case reads lag: proving it absent took two.
    pause_s = pauses[min(in_a_row, len(pauses)) - 1]
    return pause_s if is_of_candle else min(pause_s, EARLIER_CANDLE_MAX_S)
