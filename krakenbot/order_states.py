"""An order's life as one table: what is done after each answer in each state. Pure.

Look at TABLE first. orders.py carries it out; the tests go through it cell by cell.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from itertools import product
from typing import NamedTuple

from krakenbot.decision import Blocked
from krakenbot.model import Purpose
from krakenbot.records import PASSING, Intent, Outcome

VISIBLE_S = 120  # How long reading may lag behind what happened: twice the longest seen.
WATCH_MIN_S = 75.0  # How long this process must have looked before lookups prove anything.
LOOKUP_PAUSE_S = 10.0  # What Kraken's lowest REST limit sustains.
LOOKUP_REFUSED_S = 3600.0


class State(Enum):
    PREPARED = "meant; neither on disk nor sent"
    SENT = "on disk and sent; a no is not yet checked"
    ACCEPTED = "the exchange has taken it"
    UNCONFIRMED = "it may have been executed or not"
    FINAL = "its end is on disk"


class Answer(Enum):
    """The first four are answers to sending it, the others to asking what became of it."""

    ACCEPTED = "taken"
    REJECTED = "a no, for good or for now: which of them is written down as its outcome"
    NOT_SENT = "no byte left this machine"
    UNKNOWN = "no answer, or none that can be understood"
    FOUND_OPEN = "it is there, and may still trade or show more of its fill"
    FOUND_FINAL = "it has ended, and what it traded is certain"
    NOT_FOUND = "the exchange knows no such order"
    LOOKUP_FAILED = "no answer to the question"


class Write(Enum):
    NOTHING = "nothing"
    INTENT = "the intent"
    ACCEPTED = "that the exchange has taken it"
    FILL = "its end and its fill"
    REFUSAL = "that it was refused or not sent, and why"


class Do(Enum):
    SEND = "send it, once"
    LOOK_UP = "ask what became of it"
    PROVE = "write that it never happened, if trades and position agree; else halt"
    DECIDE = "nothing more; the next decision may make a new attempt: next_attempt"
    WAIT = "leave it; the loop waits for the exchange and asks again"
    HALT = "stop for good, on disk: a person must look"


NOW_S = (0.0,)
QUICK_S = (1.0, 2.0, 4.0, 8.0, LOOKUP_PAUSE_S)  # A market order ends within a second or two.
SLOW_S = (LOOKUP_PAUSE_S,)


class Cell(NamedTuple):
    """What comes of an answer: `write`, then `do` after `pauses_s`, of which the last repeats.

    `late` is done instead once waiting is over (see `next_action`); `reason` is what a halt says.
    """

    state: State
    do: Do
    pauses_s: Sequence[float] = NOW_S
    on_timeout: Do | None = None
    reason: str = ""
    write: Write = Write.NOTHING

    @property
    def pause_s(self) -> float:
        return self.pauses_s[0]


PREPARED, SENT, ACCEPTED, UNCONFIRMED, FINAL = State
LOST = "was accepted by the exchange, which now does not know it"
STILL_OPEN = "is a market order and still open long after its deadline"
LOOKUP_REFUSED = "cannot be looked up: the exchange has refused that for an hour"
OPEN_AFTER_REFUSAL = "was refused, and yet it is open"
TRADED_AFTER_REFUSAL = "was refused, and yet it was taken"


def _impossible(state: State, answer: Answer) -> Cell:
    reason = f"was answered {answer.name} in state {state.name}, which cannot be"
    return Cell(state, Do.HALT, reason=reason)


TABLE: Mapping[tuple[State, Answer], Cell] = {
    **{pair: _impossible(*pair) for pair in product(State, Answer)},
    # Nothing is sent. Where the journal is young it is looked for: an earlier one may be lost.
    (PREPARED, Answer.NOT_FOUND): Cell(SENT, Do.SEND, write=Write.INTENT),
    (PREPARED, Answer.FOUND_OPEN): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S, write=Write.INTENT),
    (PREPARED, Answer.FOUND_FINAL): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S, write=Write.INTENT),
    (PREPARED, Answer.LOOKUP_FAILED): Cell(PREPARED, Do.WAIT),
    # It was sent. A no is believed after one look that finds no such order.
    (SENT, Answer.ACCEPTED): Cell(ACCEPTED, Do.LOOK_UP, write=Write.ACCEPTED),
    (SENT, Answer.REJECTED): Cell(SENT, Do.LOOK_UP),
    (SENT, Answer.NOT_SENT): Cell(FINAL, Do.DECIDE, write=Write.REFUSAL),
    (SENT, Answer.UNKNOWN): Cell(UNCONFIRMED, Do.LOOK_UP),
    (SENT, Answer.NOT_FOUND): Cell(FINAL, Do.DECIDE, write=Write.REFUSAL),
    (SENT, Answer.FOUND_OPEN): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S),
    (SENT, Answer.FOUND_FINAL): Cell(FINAL, Do.DECIDE, write=Write.FILL),
    (SENT, Answer.LOOKUP_FAILED): Cell(UNCONFIRMED, Do.LOOK_UP, SLOW_S),
    # It was taken: it must be there, and must end.
    (ACCEPTED, Answer.FOUND_FINAL): Cell(FINAL, Do.DECIDE, write=Write.FILL),
    (ACCEPTED, Answer.FOUND_OPEN): Cell(ACCEPTED, Do.LOOK_UP, QUICK_S, Do.HALT, STILL_OPEN),
    (ACCEPTED, Answer.NOT_FOUND): Cell(ACCEPTED, Do.LOOK_UP, QUICK_S, Do.HALT, LOST),
    (ACCEPTED, Answer.LOOKUP_FAILED): Cell(ACCEPTED, Do.WAIT, NOW_S, Do.HALT, LOOKUP_REFUSED),
    # Nobody knows. So begins every order that another process left without an end, too.
    (UNCONFIRMED, Answer.FOUND_FINAL): Cell(FINAL, Do.DECIDE, write=Write.FILL),
    (UNCONFIRMED, Answer.FOUND_OPEN): Cell(UNCONFIRMED, Do.LOOK_UP, QUICK_S, Do.HALT, STILL_OPEN),
    (UNCONFIRMED, Answer.NOT_FOUND): Cell(UNCONFIRMED, Do.LOOK_UP, SLOW_S, Do.PROVE),
    (UNCONFIRMED, Answer.LOOKUP_FAILED): Cell(UNCONFIRMED, Do.WAIT, NOW_S, Do.HALT, LOOKUP_REFUSED),
    # It was refused, in a way not documented to leave no order. Before another order may open
    # anything it is looked for once more, when deadline and lag are over.
    (FINAL, Answer.NOT_FOUND): Cell(FINAL, Do.DECIDE),
    (FINAL, Answer.FOUND_OPEN): Cell(FINAL, Do.HALT, reason=OPEN_AFTER_REFUSAL),
    (FINAL, Answer.FOUND_FINAL): Cell(FINAL, Do.HALT, reason=TRADED_AFTER_REFUSAL),
    (FINAL, Answer.LOOKUP_FAILED): Cell(FINAL, Do.WAIT, NOW_S, Do.HALT, LOOKUP_REFUSED),
}


class Search(NamedTuple):
    """What is known of the lookups for one order, by a clock in seconds that no one can set.

    `lookups` were answered since `first`; `after` is the first one after the deadline and the lag
    of reading were over. `refused` is since when looking has been refused now and then, None while
    it is answered; `is_refused` whether the newest look was, and not merely unanswered.
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


def next_action(state: State, answer: Answer, search: Search, now: float) -> Cell:
    """Return the table's cell as it is now: with what is to be done, after its first pause.

    An answered lookup times out when the deadline and the reading lag are over, this process has
    looked for at least WATCH_MIN_S, and two lookups answered since then are LOOKUP_PAUSE_S apart.
    A failing lookup times out only after LOOKUP_REFUSED_S of refusals. There is no time limit
    while the exchange cannot be reached or does not answer.
    """
    cell, has_timed_out = TABLE[state, answer], False
    if answer is Answer.LOOKUP_FAILED:
        if search.is_refused and search.refused is not None:
            has_timed_out = now - search.refused >= LOOKUP_REFUSED_S
    elif search.first is not None and search.after is not None:
        has_timed_out = now - search.first >= WATCH_MIN_S and now - search.after >= LOOKUP_PAUSE_S
    if cell.on_timeout is not None and has_timed_out:
        return cell._replace(do=cell.on_timeout, pauses_s=NOW_S)
    lookups = min(max(search.lookups, 1), len(cell.pauses_s))
    return cell._replace(pauses_s=cell.pauses_s[lookups - 1 :])


# -- a new attempt -------------------------------------------------------------------------------

REFUSED_AFTER_S = (15.0, 60.0, 300.0, 900.0)  # The last one repeats.
NOT_SENT_AFTER_S = (2.0, 5.0, 15.0, 60.0)
EARLIER_CANDLE_MAX_S = 300.0  # A new candle's first attempt waits no longer for an older one's.
BELOW_MINIMUM_AFTER_S = 3600.0
ENDED_EARLY = (Outcome.CANCELED, Outcome.EXPIRED)


def next_attempt(
    newest_first: Sequence[Intent], candle: int, interval_s: int, ordermin: Decimal, now: float
) -> Blocked | None:
    """Return what speaks against one more order of this purpose for the candle, and until when.

    `newest_first` are orders of one purpose, all with an end. Pauses grow as long as nothing but
    refusals comes; nothing is tried again in the last tenth of the time for a candle. Only what
    left no order, or can only shrink what is held, is tried again for the same candle.
    """
    newest = newest_first[0] if newest_first else None
    if newest is None or (newest.reduce_only and newest.executed == newest.volume):
        return None
    is_of_candle = newest.interval_s == interval_s and newest.candle == candle
    # Without margin a close is an ordinary sale; once its end is certain the rest may be sold.
    ended_early = newest.purpose is Purpose.CLOSE and newest.outcome in ENDED_EARLY
    if not (newest.reduce_only or ended_early or newest.outcome in PASSING):
        return Blocked("ordered once in this candle already", None) if is_of_candle else None
    at = (newest.settled or newest.created) + _pause_s(newest_first, is_of_candle, ordermin)
    if needs_proof(newest):
        at = max(at, newest.deadline + VISIBLE_S)
    reason = f"{newest.outcome} ({newest.note})" if newest.note else str(newest.outcome)
    if is_of_candle and max(at, now) > candle + 2 * interval_s - interval_s / 10:
        return Blocked(f"{reason}, not again for this candle", None)
    return Blocked(f"{reason}, tried again after a pause", at)


def needs_proof(intent: Intent) -> bool:
    """Return whether a refusal may hide an order that opens: it is looked for once more."""
    return intent.outcome is Outcome.REFUSED_FOR_NOW and not intent.reduce_only


def _pause_s(newest_first: Sequence[Intent], is_of_candle: bool, ordermin: Decimal) -> float:
    newest = newest_first[0]
    if newest.volume < ordermin:
        return BELOW_MINIMUM_AFTER_S
    pauses = NOT_SENT_AFTER_S if newest.outcome is Outcome.NOT_SENT else REFUSED_AFTER_S
    ends = [intent.outcome is newest.outcome for intent in newest_first]
    in_a_row = ends.index(False) if False in ends else len(ends)
    if newest.outcome is Outcome.ABSENT:
        in_a_row = 2  # To prove its absence took two minutes; one more, should all views lag.
    pause_s = pauses[min(in_a_row, len(pauses)) - 1]
    return pause_s if is_of_candle else min(pause_s, EARLIER_CANDLE_MAX_S)
