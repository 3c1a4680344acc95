"""The deliberate defects, and what shows each of them; tests/mutations.py tries them.

A defect replaces functions or values by name in a process of its own. In a replacement `original`
is what it stands in place of; a name that is not there fails loudly.
"""

from collections.abc import Callable
from typing import NamedTuple

from tests.simulation.world import Setting


class Change(NamedTuple):
    """`name` of a module, as `function`, `Class.method` or `VALUE`, and what stands there instead.

    The source is an expression for a value, else the definition of a function called `defect`.
    """

    module: str
    name: str
    source: str


# What goes wrong, and what stands in place of what then.
DEFECTS: dict[str, tuple[Change, ...]] = {
    # -- the order's life ------------------------------------------------------------------------
    "an order is sent again after a time-out": (
        Change(
            "orders",
            "Orders._place",
            """
            def defect(self, intent):
                answer = original(self, intent)
                if answer is Answer.UNKNOWN:
                    self._exchange.place(intent.order, intent.deadline)
                return answer
            """,
        ),
    ),
    "the intent is written after the order is sent": (
        Change(
            "orders",
            "Orders._write",
            """
            def defect(self, what, intent):
                if what is not Write.INTENT:
                    original(self, what, intent)
            """,
        ),
        Change(
            "orders",
            "Orders._place",
            """
            def defect(self, intent):
                try:
                    return original(self, intent)
                finally:
                    self._journal.write(intent)
            """,
        ),
    ),
    "the remembered position is believed": (
        Change("orders", "Orders._held", "def defect(self, explained): return explained"),
    ),
    "position and journal need not agree": (
        Change("orders", "Orders.position", "def defect(self): return self._held(ZERO)"),
    ),
    "a partial fill counts as a whole one": (
        Change(
            "orders",
            "Orders._book",
            """
            def defect(self, intent):
                if self._found.volume:
                    self._found = self._found._replace(volume=intent.volume)
                original(self, intent)
            """,
        ),
    ),
    "the first final read of a cancelled order is believed": (
        Change(
            "orders",
            "Orders._look_up",
            """
            def defect(self, intent):
                answer = original(self, intent)
                found = self._found
                is_final = answer is Answer.FOUND_OPEN and found.status.is_final
                return Answer.FOUND_FINAL if is_final else answer
            """,
        ),
    ),
    "the first empty answer proves absence": (
        Change(
            "orders",
            "Orders._look_up",
            """
            def defect(self, intent):
                answer = original(self, intent)
                self._searches[intent.id] = Search(9, -1e9, -1e9)
                return answer
            """,
        ),
    ),
    "absent although unexplained trades show": (
        Change(
            "orders",
            "Orders._prove_absent",
            """
            def defect(self, intent):
                self._journal.knows_order = lambda order_id: True
                try:
                    original(self, intent)
                finally:
                    del self._journal.knows_order
            """,
        ),
    ),
    "absent although the position differs": (
        Change(
            "orders",
            "Orders._prove_absent",
            """
            def defect(self, intent):
                self._held, held = lambda explained: explained, self._held
                try:
                    original(self, intent)
                finally:
                    self._held = held
            """,
        ),
    ),
    "no contradiction is looked for at all": (
        Change(
            "orders", "Orders.position", "def defect(self): return self._journal.account().held"
        ),
        Change(
            "orders",
            "Orders._prove_absent",
            """
            def defect(self, intent):
                self._journal.conclude(intent, Outcome.ABSENT, int(self._clock.now()))
            """,
        ),
    ),
    "reading is thought to lag for five seconds at most": (
        Change("orders", "VISIBLE_S", "5"),
        Change("order_states", "VISIBLE_S", "5"),
        Change("order_states", "WATCH_MIN_S", "5.0"),
    ),
    "open intents are not asked about": (
        Change("orders", "Orders.reconcile", "def defect(self): pass"),
    ),
    "a refused order counts as filled": (
        Change(
            "journal",
            "Journal.conclude",
            """
            def defect(self, intent, outcome, now, found=None, note="", opening_fee=ZERO):
                if outcome is Outcome.REFUSED:
                    from krakenbot.model import OrderStatus
                    found = Execution(
                        intent.id, "", OrderStatus.CLOSED, intent.volume, intent.volume, ZERO
                    )
                original(self, intent, outcome, now, found, note, opening_fee)
            """,
        ),
    ),
    "an accepted order counts as filled": (
        Change(
            "journal",
            "Journal.accept",
            """
            def defect(self, intent_id):
                from krakenbot.model import OrderStatus
                intent = self.open_intents()[-1]
                found = Execution(
                    intent.id, "O", OrderStatus.CLOSED, intent.volume, intent.volume, ZERO
                )
                self.conclude(intent, Outcome.CLOSED, intent.created, found)
            """,
        ),
    ),
    "a refused order is thought never to have left": (
        Change(
            "orders",
            "Orders._place",
            """
            def defect(self, intent):
                answer = original(self, intent)
                if answer in (Answer.UNKNOWN, Answer.REJECTED):
                    self._refusal = Outcome.NOT_SENT, ""
                    return Answer.NOT_SENT
                return answer
            """,
        ),
    ),
    "what was ordered for this candle is ordered again": (
        Change("orders", "next_attempt", "def defect(*question): pass"),
    ),
    "refusals go on for ever": (
        Change(
            "orders",
            "next_attempt",
            """
            def defect(newest_first, *more):
                ended = newest_first[0].outcome if newest_first else None
                is_refused = ended in (Outcome.REFUSED, Outcome.REFUSED_FOR_NOW_NO_ORDER)
                return None if is_refused else original(newest_first, *more)
            """,
        ),
        Change("orders", "UNFILLED_MAX", "500"),
    ),
    "an order found in another state counts as ended": (
        Change(
            "orders",
            "Orders._look_up",
            """
            def defect(self, intent):
                answer = original(self, intent)
                return Answer.FOUND_FINAL if answer is Answer.FOUND_OPEN else answer
            """,
        ),
        Change(
            "orders",
            "Orders._book",
            """
            def defect(self, intent):
                from krakenbot.model import OrderStatus
                self._found = self._found._replace(status=OrderStatus.CANCELED)
                original(self, intent)
            """,
        ),
    ),
    # -- the order's life, in ways that only two faults show -----------------------------------
    "a lookup that fails proves absence": (
        Change(
            "orders",
            "Orders._look_up",
            """
            def defect(self, intent):
                answer = original(self, intent)
                if answer is Answer.LOOKUP_FAILED and not intent.accepted:
                    self._searches[intent.id] = Search(9, -1e9, -1e9)
                    return Answer.NOT_FOUND
                return answer
            """,
        ),
    ),
    "an unanswered order that cannot be looked up counts as filled": (
        Change(
            "orders",
            "Orders._look_up",
            """
            def defect(self, intent):
                from krakenbot.model import OrderStatus
                answer = original(self, intent)
                if answer is not Answer.LOOKUP_FAILED or intent.accepted:
                    return answer
                volume = intent.volume
                self._found = Execution(intent.id, "O", OrderStatus.CLOSED, volume, volume, ZERO)
                return Answer.FOUND_FINAL
            """,
        ),
    ),
    "a new process believes its first empty answer": (
        Change(
            "orders",
            "Orders.reconcile",
            """
            def defect(self):
                if not vars(self).get("is_old"):
                    for intent in self._journal.open_intents():
                        self._searches[intent.id] = Search(9, -1e9, -1e9)
                self.is_old = True
                original(self)
            """,
        ),
    ),
    "a new process takes a part of a fill for all of it": (
        Change(
            "orders",
            "Orders.reconcile",
            """
            def defect(self):
                self.is_new = True
                original(self)
                self.is_new = False
            """,
        ),
        Change(
            "orders",
            "Orders._book",
            """
            def defect(self, intent):
                if vars(self).get("is_new") and self._found.volume:
                    self._found = self._found._replace(volume=intent.volume)
                original(self, intent)
            """,
        ),
    ),
    "an unanswered order is sent again when it cannot be looked up": (
        Change(
            "orders",
            "Orders._look_up",
            """
            def defect(self, intent):
                answer = original(self, intent)
                if answer is Answer.LOOKUP_FAILED and intent in self._journal.open_intents():
                    self._exchange.place(intent.order, intent.deadline)
                return answer
            """,
        ),
    ),
    # -- the journal and the key -------------------------------------------------------------------
    "what is committed may not be on disk": (
        Change(
            "journal_file",
            "prepare",
            """
            def defect(connection, path):
                connection = original(connection, path)
                connection.execute("PRAGMA synchronous = NORMAL")
                return connection
            """,
        ),
    ),
    "nonces are the clock's": (
        Change(
            "lock",
            "Nonces.next",
            """
            def defect(self, clock_ns):
                self._last, self._is_first = 0, False
                return original(self, clock_ns)
            """,
        ),
    ),
    "a new process forgets the nonces of the old one": (
        Change(
            "lock",
            "Nonces.__init__",
            """
            def defect(self, lock):
                original(self, lock)
                self._last, self._is_first = 0, False
            """,
        ),
    ),
    "nonces are written without being synced": (
        Change(
            "lock",
            "Lock._put",
            """
            def defect(self, state):
                holder = "pid"
                text = f"{state:{STATE_BYTES_MAX - 1}}\\n{holder:<60}\\n"
                os.pwrite(self._file, text.encode(), 0)
            """,
        ),
    ),
    "the key is not locked": (Change("lock", "fcntl.flock", "def defect(descriptor, how): pass"),),
    "a halt is forgotten by the next start": (
        Change("bot", "Bot._refuse_when_halted", "def defect(self): pass"),
    ),
    "a halt is not written down": (
        Change(
            "journal",
            "Journal.halt",
            "def defect(self, reason, held=None): return StopError(reason)",
        ),
        Change("journal", "Journal.keep_stop", "def defect(self, error): pass"),
    ),
    "a charge is booked each time it is read": (
        Change("journal", "Journal.is_charged", "def defect(self, charge_id): return False"),
    ),
    # -- the wire ----------------------------------------------------------------------------------
    "an error of unknown text is a refusal": (
        Change(
            "kraken.client",
            "_verdict",
            """
            def defect(failure):
                verdict = original(failure)
                return (REFUSED, Cause.OTHER) if verdict[0] == UNKNOWN else verdict
            """,
        ),
    ),
    "a page in place of JSON is a refusal": (
        Change(
            "kraken.client",
            "result_of",
            """
            def defect(method, status, body, **more):
                if method == "AddOrder" and not body.startswith(b"{"):
                    raise RefusedError("a page")
                return original(method, status, body, **more)
            """,
        ),
    ),
    "an order has no deadline": (
        Change(
            "kraken.client",
            "Client.private",
            """
            def defect(self, method, params=None):
                params = dict(params or {})
                params.pop("deadline", None)
                return original(self, method, params)
            """,
        ),
    ),
    "the deadline is in local time": (
        Change("kraken.spot", "time.gmtime", "def defect(seconds): return time.localtime(seconds)"),
    ),
    "an order is looked for among open orders only": (
        Change(
            "kraken.client",
            "Client.private",
            """
            def defect(self, method, params=None):
                result = original(self, method, params)
                return {"closed": {}} if method == "ClosedOrders" else result
            """,
        ),
    ),
    "what of a position is closed already is not counted": (
        Change(
            "kraken.client",
            "Client.private",
            """
            def defect(self, method, params=None):
                result = original(self, method, params)
                if method == "OpenPositions" and isinstance(result, dict):
                    result = {key: row | {"vol_closed": "0"} for key, row in result.items()}
                return result
            """,
        ),
    ),
    "a lost connection is tried again by the transport": (
        Change(
            "kraken.transport",
            "UrllibTransport.send",
            """
            def defect(self, method, url, headers, body):
                try:
                    return original(self, method, url, headers, body)
                except UnansweredError:
                    return original(self, method, url, headers, body)
            """,
        ),
    ),
    "a request lost on its way counts as not sent": (
        Change(
            "kraken.transport",
            "UrllibTransport.send",
            """
            def defect(self, method, url, headers, body):
                try:
                    return original(self, method, url, headers, body)
                except UnansweredError as error:
                    raise LaterError(str(error), cause=Cause.UNREACHABLE) from None
            """,
        ),
    ),
    "an answer that did not come is taken for an empty one": (
        Change(
            "kraken.client",
            "Client.private",
            """
            def defect(self, method, params=None):
                try:
                    return original(self, method, params)
                except (LaterError, UnansweredError):
                    if method in ("OpenPositions", "Balance"):
                        return {}
                    raise
            """,
        ),
    ),
    "the whole time goes to the first address": (
        Change("kraken.transport", "CONNECT_MAX_S", "1e9"),
        Change(
            "kraken.transport",
            "_look_up",
            "def defect(host, deadline, stopping): return original(host, deadline, stopping)[:1]",
        ),
    ),
    "an answer may drip for as long as it likes": (
        Change("kraken.transport", "_left", "def defect(deadline): return 1e6"),
    ),
    # -- time, waiting, deciding -------------------------------------------------------------------
    "a clock that stands still while the machine sleeps": (
        Change("clock", "_steady", "def defect(): return time.monotonic()"),
    ),
    "thirty of thirty-one candles are skipped": (
        Change(
            "journal",
            "Journal.is_done",
            """
            def defect(self, interval_s, candle):
                return candle // interval_s % 31 != 0 or original(self, interval_s, candle)
            """,
        ),
    ),
    "closing may open the other way": (
        Change(
            "decision",
            "next_step",
            """
            def defect(*args):
                step = original(*args)
                return step._replace(reduce_only=False) if step else step
            """,
        ),
    ),
    "candles of the future are believed": (
        Change("candles", "AHEAD_MAX_S", "10**9"),
        Change("bot", "CHECK_MAX_S", "1e9"),
    ),
    "one refusal of the key ends the bot": (Change("retry", "KEY_PAUSES_S", "()"),),
    "waiting is told to nobody": (
        Change("retry", "Retry._on_failure", "def defect(self, error): pass"),
    ),
    "an objection holds until the next candle": (
        Change(
            "bot",
            "Bot._objection",
            """
            def defect(self, step, held):
                blocked = original(self, step, held)
                return blocked._replace(until=None) if blocked else None
            """,
        ),
    ),
    "the pair's rules are read once": (
        Change(
            "market",
            "MarketState._keep_rules",
            """
            def defect(self, rules):
                if not hasattr(self, "rules"):
                    original(self, rules)
            """,
        ),
    ),
    # -- identity ----------------------------------------------------------------------------------
    "a journal that went back in time is believed": (
        Change("startup", "check_trades", "def defect(start): start.journal.put(created=1)"),
    ),
    "the coins of a lost journal are nobody's": (
        Change("startup", "check_untracked_balance", "def defect(start): start.lock.write('live')"),
    ),
    "the journal is named by the pair's spelling": (
        Change(
            "identity",
            "recall",
            "def defect(config, kind, name): return config.pair if kind == 'pair' else ''",
        ),
    ),
}
# What shows a defect: the seed of an episode, or faults as tests.exhaustive has them.
SHOWN_BY: dict[str, int | str] = {
    "an order is sent again after a time-out": "two-step:AddOrder=timeout",
    "the intent is written after the order is sent": "two-step:",
    "the remembered position is believed": "one-order:OHLC#3=hands",
    "position and journal need not agree": "two-step:OHLC#3=hands",
    "a partial fill counts as a whole one": "two-step:AddOrder=late-fill",
    "the first final read of a cancelled order is believed": "two-step:AddOrder=late-fill",
    "the first empty answer proves absence": (
        "two-step:AddOrder=lost-after,OpenOrders=lag,ClosedOrders=lag"
    ),
    "absent although unexplained trades show": "no margin:AddOrder=unseen",
    "absent although the position differs": "two-step:AddOrder=untold",
    "no contradiction is looked for at all": "two-step:AddOrder=untold",
    "reading is thought to lag for five seconds at most": 2,
    "open intents are not asked about": "two-step:AddOrder=death-after",
    "a refused order counts as filled": 1,
    "an accepted order counts as filled": "two-step:",
    "a refused order is thought never to have left": "two-step:AddOrder=timeout",
    "what was ordered for this candle is ordered again": "two-step:AddOrder=late-fill",
    "refusals go on for ever": 9,
    "an order found in another state counts as ended": "two-step:AddOrder=late-fill",
    "a lookup that fails proves absence": "two-step:AddOrder=timeout,OpenOrders=lost-before",
    "an unanswered order that cannot be looked up counts as filled": (
        "two-step:AddOrder=lost-before,OpenOrders=lost-before"
    ),
    "a new process believes its first empty answer": 27,
    "a new process takes a part of a fill for all of it": (
        "two-step:AddOrder=late-fill,QueryOrders=death-after"
    ),
    "an unanswered order is sent again when it cannot be looked up": (
        "two-step:AddOrder=lost-after,OpenOrders=lost-before"
    ),
    "what is committed may not be on disk": "two-step:",
    "nonces are the clock's": "two-step:AddOrder=death-clock",
    "a new process forgets the nonces of the old one": "two-step:AddOrder=death-clock",
    "nonces are written without being synced": "two-step:AddOrder#1=death-clock",
    "the key is not locked": "two-step:",
    "a halt is forgotten by the next start": "two-step:AddOrder=untold",
    "a halt is not written down": "two-step:AddOrder=untold",
    "a charge is booked each time it is read": 1,
    "an error of unknown text is a refusal": (
        "two-step:AddOrder#2=unknown,OpenOrders=lag,ClosedOrders=lag"
    ),
    "a page in place of JSON is a refusal": (
        "one-order:AddOrder#2=html,OpenOrders=lag,ClosedOrders=lag"
    ),
    "an order has no deadline": "two-step:",
    "the deadline is in local time": "two-step:",
    "an order is looked for among open orders only": "two-step:AddOrder=timeout",
    "what of a position is closed already is not counted": "two-step:AddOrder#2=late-fill",
    "a lost connection is tried again by the transport": "two-step:AddOrder=lost-after",
    "a request lost on its way counts as not sent": "two-step:AddOrder=lost-after",
    "an answer that did not come is taken for an empty one": "two-step:OpenPositions#2=dead-view",
    "the whole time goes to the first address": "no margin:",
    "an answer may drip for as long as it likes": "two-step:OHLC#2=drip",
    "a clock that stands still while the machine sleeps": "two-step:OpenPositions#2=sleep",
    "thirty of thirty-one candles are skipped": "two-step:",
    "closing may open the other way": "two-step:",
    "candles of the future are believed": "two-step:OHLC#2=future",
    "one refusal of the key ends the bot": "two-step:OpenPositions#2=key",
    "waiting is told to nobody": "two-step:OpenPositions#2=dead-view",
    "an objection holds until the next candle": "two-step:SystemStatus#3=spread",
    "the pair's rules are read once": "two-step:AssetPairs=closed",
    "a journal that went back in time is believed": "no margin:AddOrder=death-backup",
    "the coins of a lost journal are nobody's": "no margin:write#21=death-deleted",
    "the journal is named by the pair's spelling": 1,
}
# Where to look for another seed, when only some episodes can show a defect.
SETTINGS: dict[str, Callable[[Setting], bool]] = {
    "refusals go on for ever": lambda setting: setting.interval == 1 and setting.turning > 0.6,
}
