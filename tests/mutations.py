"""Deliberate defects, each of which the simulation must find: it must be able to say no.

    python -m unittest tests.mutations      those found within minutes; all with TEST_DEFECTS=all
    python -m tests.mutations "an order has no deadline"      what the simulation says of one
    python -m tests.mutations --pairs "an accepted order counts as filled"

A defect replaces functions or values by name in a process of its own. In a replacement `original`
is what it stands in place of; a name that is not there fails loudly.
"""

import importlib
import os
import subprocess
import sys
import textwrap
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
DAYS_FIRST, DAYS_MAX = 5, 20
SECONDS_MAX = 1800


class Change(NamedTuple):
    """`name` of a module, as `function`, `Class.method` or `VALUE`, and what stands there instead.

    The source is an expression for a value, else the definition of a function called `defect`.
    """

    module: str
    name: str
    source: str


# What goes wrong; and the defects of the order's life that two faults at most must show.
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
        Change("kraken.spot", "Spot.traded_orders", "def defect(self, since, until): return []"),
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
        Change("orders", "next_attempt", "def defect(*question): pass"),
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
            def defect(method, status, body):
                if method == "AddOrder" and not body.startswith(b"{"):
                    raise RefusedError("a page")
                return original(method, status, body)
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
                if method == "OpenPositions":
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
    "one refusal of the key ends the bot": (
        Change("retry", "Retry._wait_out_refused_key", "def defect(self, error): raise error"),
    ),
    "waiting is told to nobody": (
        Change("retry", "Retry._on_failure", "def defect(self, text): pass"),
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
TWO_FAULTS = (
    "a lookup that fails proves absence",
    "an unanswered order that cannot be looked up counts as filled",
    "a new process believes its first empty answer",
    "a new process takes a part of a fill for all of it",
    "an unanswered order is sent again when it cannot be looked up",
)


def plant(defect: str) -> None:
    """Put the defect into the program of this process."""
    for module_name, name, source in DEFECTS.get(defect, ()):
        module = importlib.import_module(f"krakenbot.{module_name}")
        *path, last = name.split(".")
        place: Any = module
        for part in path:
            place = getattr(place, part)
        names = {**vars(module), "original": getattr(place, last)}
        text = textwrap.dedent(source).strip()
        if text.startswith("def "):
            exec(text, names)
            setattr(place, last, names["defect"])
        else:
            setattr(place, last, eval(text, names))


def verdict(defect: str, program: str = "torture") -> str:
    """Return what the simulation says of the defect; nothing when it finds none."""
    words = [sys.executable, "-m", "tests.mutations", defect]
    if program == "exhaustive":
        words.insert(3, "--pairs")
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            env={**os.environ, "TZ": "Asia/Kolkata"},
        )
    except subprocess.TimeoutExpired:
        return ""
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return found[0].removeprefix("FOUND ") if found else done.stderr[-2000:]


# Found within minutes by the first seeds; the others take hours, and TEST_DEFECTS=all.
QUICK = (
    "an order is sent again after a time-out",
    "the intent is written after the order is sent",
    "position and journal need not agree",
    "a partial fill counts as a whole one",
    "the first final read of a cancelled order is believed",
    "an accepted order counts as filled",
    "open intents are not asked about",
    "what is committed may not be on disk",
    "nonces are the clock's",
    "nonces are written without being synced",
    "a new process forgets the nonces of the old one",
    "the key is not locked",
    "an order has no deadline",
    "the deadline is in local time",
    "a lost connection is tried again by the transport",
    "thirty of thirty-one candles are skipped",
)
TAKES_ALL = os.environ.get("TEST_DEFECTS") == "all"


class TestMutations(unittest.TestCase):
    def test_every_name_that_is_replaced_is_there(self) -> None:
        for defect, changes in DEFECTS.items():
            for module_name, name, _ in changes:
                with self.subTest(defect):
                    place: Any = importlib.import_module(f"krakenbot.{module_name}")
                    for part in name.split("."):
                        place = getattr(place, part)

    def test_every_deliberate_defect_is_found(self) -> None:
        self._expect_found([*DEFECTS] if TAKES_ALL else [*QUICK], "torture")

    @unittest.skipUnless(TAKES_ALL, "takes long: TEST_DEFECTS=all")
    def test_without_a_defect_nothing_is_found(self) -> None:
        self.assertEqual("", verdict("none"))

    def test_two_faults_show_the_defects_of_an_orders_life(self) -> None:
        self._expect_found([*TWO_FAULTS], "exhaustive")

    def _expect_found(self, defects: list[str], program: str) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            said = pool.map(lambda defect: verdict(defect, program), defects)
            for defect, found in zip(defects, said, strict=True):
                with self.subTest(defect):
                    print(f"{program}: {defect}: {found:.150}", flush=True)
                    self.assertRegex(found, r"^[a-z0-9 =]+: ", defect)


def torture(first_seed: int, days_max: float) -> str:
    """Return the first violation in some days; nothing if there is none."""
    from tests.simulation.episode import episodes

    days = 0.0
    for result in episodes(first_seed, days_max, 1):
        days += result.days
        if result.failure:
            return f"{result.name}: seed {result.seed}: {result.text.strip()[-300:]!r}"
        if days > days_max:
            break
    return ""


def main(words: list[str]) -> int:
    from tests.exhaustive import find

    *options, defect = words
    if options:
        text = find(lambda: plant(defect), pairs=True)
    else:
        plant(defect)
        text = torture(1, DAYS_FIRST) or find(lambda: None) or torture(DAYS_FIRST * 4, DAYS_MAX)
    print(f"FOUND {text}" if text else "nothing found")
    return 0 if text else 1


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(main(sys.argv[1:]))
    unittest.main()
