"""The deliberate defects, and what shows each of them; tests/mutations.py tries them."""

import re
from collections.abc import Callable
from typing import NamedTuple

from tests.simulation.world import Setting

# What goes wrong; the seed of an episode, or faults as tests.exhaustive has them, that show it;
# and what stands in place of what then, by module and name: a function, or = and a value.
# `original` is what was there; `OrderStatus` is known everywhere. It happens in a process of its
# own; an unknown name fails loudly.
TEXT = """
# the order's life

an order is sent again after a time-out
shown by two-step:AddOrder=timeout
orders: Orders._place(self, intent):
    answer = original(self, intent)
    if answer is Answer.UNKNOWN:
        self._exchange.place(intent.order, intent.deadline)
    return answer

the intent is written after the order is sent
shown by two-step:
orders: Orders._write(self, what, intent):
    if what is not Write.INTENT:
        original(self, what, intent)
orders: Orders._place(self, intent):
    try:
        return original(self, intent)
    finally:
        self._journal.write(intent)

the remembered position is believed
shown by one-order:OHLC#2=hands
orders: Orders._held(self, explained): return explained

position and journal need not agree
shown by no margin:OHLC#1=hands
orders: Orders.position(self): return self._held(ZERO)

a partial fill counts as a whole one
shown by two-step:AddOrder=late-fill
orders: Orders._book(self, intent):
    if self._found.volume:
        self._found = self._found._replace(volume=intent.volume)
    original(self, intent)

the first final read of a cancelled order is believed
shown by two-step:AddOrder=late-fill
orders: Orders._look_up(self, intent):
    answer = original(self, intent)
    found = self._found
    is_final = answer is Answer.FOUND_OPEN and found.status.is_final
    return Answer.FOUND_FINAL if is_final else answer

the first empty answer proves absence
shown by two-step:AddOrder=lost-after,OpenOrders=lag,ClosedOrders=lag
orders: Orders._look_up(self, intent):
    answer = original(self, intent)
    self._searches[intent.id] = Search(9, -1e9, -1e9)
    return answer

absent although unexplained trades show
shown by no margin:AddOrder=unseen
orders: Orders._prove_absent(self, intent):
    self._journal.knows_order = lambda order_id: True
    try:
        original(self, intent)
    finally:
        del self._journal.knows_order

absent although the position differs
shown by two-step:AddOrder=untold
orders: Orders._prove_absent(self, intent):
    self._held, held = lambda explained: explained, self._held
    try:
        original(self, intent)
    finally:
        self._held = held

no contradiction is looked for at all
shown by two-step:AddOrder=untold
orders: Orders.position(self): return self._journal.account().held
orders: Orders._prove_absent(self, intent):
    self._journal.conclude(intent, Outcome.ABSENT, int(self._clock.now()))

reading is thought to lag for five seconds at most
shown by 3
orders: VISIBLE_S = 5
order_states: VISIBLE_S = 5
order_states: WATCH_MIN_S = 5.0

open intents are not asked about
shown by two-step:AddOrder=death-after
orders: Orders.reconcile(self): pass

a refused order counts as filled
shown by 2
journal: Journal.conclude(self, intent, outcome, now, found=None, note="", opening_fee=ZERO):
    if outcome is Outcome.REFUSED:
        found = Execution("", OrderStatus.CLOSED, intent.volume, intent.volume, ZERO)
    original(self, intent, outcome, now, found, note, opening_fee)

an accepted order counts as filled
shown by two-step:
journal: Journal.accept(self, intent_id):
    intent = self.open_intents()[-1]
    found = Execution("O", OrderStatus.CLOSED, intent.volume, intent.volume, ZERO)
    self.conclude(intent, Outcome.CLOSED, intent.created, found)

a refused order is thought never to have left
shown by two-step:AddOrder=timeout
orders: Orders._place(self, intent):
    answer = original(self, intent)
    if answer in (Answer.UNKNOWN, Answer.REJECTED):
        self._refusal = intent.id, Outcome.NOT_SENT, ""
        return Answer.NOT_SENT
    return answer

a refusal in doubt is believed
shown by one-order:AddOrder#2=yes-after-no,OpenOrders=lag,ClosedOrders=lag
orders: Orders._in_doubt(self, intent, error):
    return Answer.REJECTED if self._refusal[0] == intent.id else original(self, intent, error)

what was ordered for this candle is ordered again
shown by two-step:AddOrder=late-fill
orders: next_attempt(*question): pass

refusals go on for ever
shown by 19
orders: next_attempt(newest_first, *more):
    ended = newest_first[0].outcome if newest_first else None
    is_refused = ended in (Outcome.REFUSED, Outcome.REFUSED_FOR_NOW_NO_ORDER)
    return None if is_refused else original(newest_first, *more)
orders: UNFILLED_MAX = 500

an order found in another state counts as ended
shown by two-step:AddOrder=late-fill
orders: Orders._look_up(self, intent):
    answer = original(self, intent)
    return Answer.FOUND_FINAL if answer is Answer.FOUND_OPEN else answer
orders: Orders._book(self, intent):
    self._found = self._found._replace(status=OrderStatus.CANCELED)
    original(self, intent)

# the order's life, in ways that only two faults show

a lookup that fails proves absence
shown by two-step:AddOrder=timeout,OpenOrders=lost-before
orders: Orders._look_up(self, intent):
    answer = original(self, intent)
    if answer is Answer.LOOKUP_FAILED and not intent.accepted:
        self._searches[intent.id] = Search(9, -1e9, -1e9)
        return Answer.NOT_FOUND
    return answer

an unanswered order that cannot be looked up counts as filled
shown by two-step:AddOrder=lost-before,OpenOrders=lost-before
orders: Orders._look_up(self, intent):
    answer = original(self, intent)
    if answer is not Answer.LOOKUP_FAILED or intent.accepted:
        return answer
    volume = intent.volume
    self._found = Execution("O", OrderStatus.CLOSED, volume, volume, ZERO)
    return Answer.FOUND_FINAL

a new process believes its first empty answer
shown by 51
orders: Orders.reconcile(self):
    if not vars(self).get("is_old"):
        for intent in self._journal.open_intents():
            self._searches[intent.id] = Search(9, -1e9, -1e9)
    self.is_old = True
    original(self)

a new process takes a part of a fill for all of it
shown by two-step:AddOrder=late-fill,QueryOrders=death-after
orders: Orders.reconcile(self):
    self.is_new = True
    original(self)
    self.is_new = False
orders: Orders._book(self, intent):
    if vars(self).get("is_new") and self._found.volume:
        self._found = self._found._replace(volume=intent.volume)
    original(self, intent)

an unanswered order is sent again when it cannot be looked up
shown by two-step:AddOrder=lost-after,OpenOrders=lost-before
orders: Orders._look_up(self, intent):
    answer = original(self, intent)
    if answer is Answer.LOOKUP_FAILED and intent in self._journal.open_intents():
        self._exchange.place(intent.order, intent.deadline)
    return answer

# the journal and the key

what is committed may not be on disk
shown by two-step:
journal_file: prepare(connection):
    connection = original(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection

nonces are the clock's
shown by two-step:AddOrder=death-clock
lock: Nonces.next(self, clock_ns):
    self._last, self._is_marked = 0, True
    return original(self, clock_ns)

a new process forgets the nonces of the old one
shown by two-step:AddOrder=death-clock
lock: Nonces.__init__(self, lock):
    original(self, lock)
    self._last, self._is_marked = 0, True

nonces are written without being synced
shown by two-step:AddOrder#1=death-clock
lock: Lock._put(self, state):
    holder = "pid"
    text = f"{state:{STATE_BYTES_MAX - 1}}\\n{holder:<60}\\n"
    os.pwrite(self._file, text.encode(), 0)

the key is not locked
shown by two-step:
lock: fcntl.flock(descriptor, how): pass

a halt is forgotten by the next start
shown by two-step:AddOrder=untold
bot: Bot._refuse_when_halted(self): pass

a halt is not written down
shown by two-step:AddOrder=untold
journal: Journal.halt(self, reason, held=None, **more): return StopError(reason)
journal: Journal.keep_stop(self, error): pass

a charge is booked each time it is read
shown by 1
journal: Journal.is_charged(self, charge_id): return False

# the wire

an error of unknown text is a refusal
shown by two-step:AddOrder#3=unknown,OpenOrders=lag,ClosedOrders=lag
kraken.client: _verdict(failure):
    verdict = original(failure)
    return (REFUSED, Cause.OTHER) if verdict[0] == UNKNOWN else verdict

a page in place of JSON is a refusal
shown by two-step:AddOrder#1=html,OpenOrders=lag,ClosedOrders=lag
kraken.client: result_of(method, status, body, **more):
    if method == "AddOrder" and not body.startswith(b"{"):
        raise RefusedError("a page")
    return original(method, status, body, **more)

an order has no deadline
shown by two-step:
kraken.client: Client.private(self, method, params=None):
    params = dict(params or {})
    params.pop("deadline", None)
    return original(self, method, params)

the deadline is in local time
shown by two-step:
kraken.spot: time.gmtime(seconds): return time.localtime(seconds)

an order is looked for among open orders only
shown by two-step:AddOrder=timeout
kraken.client: Client.private(self, method, params=None):
    result = original(self, method, params)
    return {"closed": {}} if method == "ClosedOrders" else result

what of a position is closed already is not counted
shown by two-step:AddOrder#2=late-fill
kraken.client: Client.private(self, method, params=None):
    result = original(self, method, params)
    if method == "OpenPositions" and isinstance(result, dict):
        result = {key: row | {"vol_closed": "0"} for key, row in result.items()}
    return result

a lost connection is tried again by the transport
shown by two-step:AddOrder=lost-after
kraken.transport: UrllibTransport.send(self, method, url, headers, body):
    try:
        return original(self, method, url, headers, body)
    except UnansweredError:
        return original(self, method, url, headers, body)

a request lost on its way counts as not sent
shown by two-step:AddOrder=lost-after
kraken.transport: UrllibTransport.send(self, method, url, headers, body):
    try:
        return original(self, method, url, headers, body)
    except UnansweredError as error:
        raise LaterError(str(error), cause=Cause.UNREACHABLE) from None

an answer that did not come is taken for an empty one
shown by two-step:OpenPositions#2=dead-view
kraken.client: Client.private(self, method, params=None):
    try:
        return original(self, method, params)
    except (LaterError, UnansweredError):
        if method in ("OpenPositions", "Balance"):
            return {}
        raise

the whole time goes to the first address
shown by no margin:
kraken.transport: CONNECT_MAX_S = 1e9
kraken.transport: _look_up(host, deadline, stopping): return original(host, deadline, stopping)[:1]

an answer may drip for as long as it likes
shown by two-step:OHLC#1=drip
kraken.transport: _left(deadline): return 1e6

# time, waiting, deciding

a clock that stands still while the machine sleeps
shown by two-step:OpenPositions#2=sleep
clock: _steady(): return time.monotonic()

thirty of thirty-one candles are skipped
shown by two-step:
journal: Journal.is_done(self, interval_s, candle):
    return candle // interval_s % 31 != 0 or original(self, interval_s, candle)

closing may open the other way
shown by two-step:
decision: next_step(*args):
    step = original(*args)
    return step._replace(reduce_only=False) if step else step

candles of the future are believed
shown by two-step:OHLC#1=future
candles: AHEAD_MAX_S = 10**9
bot: CHECK_MAX_S = 1e9

one refusal of the key ends the bot
shown by two-step:OpenPositions#2=key
retry: KEY_PAUSES_S = ()

waiting is told to nobody
shown by two-step:OpenPositions#2=dead-view
retry: Retry._on_failure(self, error): pass

an objection holds until the next candle
shown by two-step:SystemStatus#3=spread
bot: Bot._objection(self, step, held):
    blocked = original(self, step, held)
    return blocked._replace(until=None) if blocked else None

the pair's rules are read once
shown by two-step:AssetPairs=closed
market: MarketState._keep_rules(self, rules):
    if not hasattr(self, "rules"):
        original(self, rules)

# identity

a journal that went back in time is believed
shown by no margin:AddOrder=death-backup
startup: check_trades(start, bot): bot.journal.put(created=1)

the coins of a lost journal are nobody's
shown by no margin:write#19=death-deleted
startup: check_untracked_balance(bot): pass

the journal is named by the pair's spelling
shown by 1
identity: recall(config, kind, name): return config.pair if kind == 'pair' else ''
"""


class Change(NamedTuple):
    """`name` of a module, as `function`, `Class.method` or `VALUE`, and what stands there instead.

    The source is an expression for a value, else the definition of a function called `defect`.
    """

    module: str
    name: str
    source: str


class Defect(NamedTuple):
    shown_by: int | str
    changes: tuple[Change, ...]


def _defect(lines: str) -> Defect:
    shown_by, *changes = re.split(r"\n(?=\S)", lines)
    where = shown_by.removeprefix("shown by ")
    return Defect(int(where) if where.isdigit() else where, tuple(map(_change, changes)))


def _change(text: str) -> Change:
    module, name, rest = re.fullmatch(r"(\S+): ([\w.]+)(.*)", text, re.DOTALL).groups()
    is_value = rest.startswith(" = ")
    return Change(module, name, rest.removeprefix(" = ") if is_value else f"def defect{rest}")


_BLOCKS = [block.partition("\n") for block in TEXT.strip().split("\n\n") if block[0] != "#"]
DEFECTS = {name: _defect(lines) for name, _, lines in _BLOCKS}
# Where to look for another seed, when only some episodes can show a defect.
SETTINGS: dict[str, Callable[[Setting], bool]] = {
    "refusals go on for ever": lambda setting: setting.interval == 1 and setting.turning > 0.6,
}
