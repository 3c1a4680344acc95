"""The program as its users have it: a process, its exit code, its words, and what it sent."""

import ctypes
import io
import json
import resource
import signal
import socket
import time
import unittest
from collections.abc import Callable
from contextlib import redirect_stdout
from decimal import Decimal as D
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from krakenbot.assemble import Parts
from krakenbot.bot import Event
from krakenbot.commands.run import goodbye
from krakenbot.commands.screen import HEADER, Screen
from krakenbot.config import Config
from krakenbot.journal_file import open_journal
from krakenbot.lock import Lock
from krakenbot.model import Purpose, Side
from krakenbot.records import Intent
from krakenbot.simulated.listing import SANDBOX_SECRET
from tests import slow
from tests.commands.called import Terminal
from tests.commands.program import KEYS, LIVE, PAPER, ProgramTest
from tests.markets import short_histories

ENDS_MAX_S = 1.0
# Fields of `status --json` and their types, as agreed; then what is told beyond that.
TEXTS = "mode pair position strategy fees rollover realized equity margin_fees exchange_position"
NUMBERS = "interval target last_candle orders updated since"
AGREED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(f"{TEXTS} state".split(), (str,)),
    **dict.fromkeys(NUMBERS.split(), (int,)),
    **dict.fromkeys(("pid", "next_decision"), (int, type(None))),
    **dict.fromkeys(("unresolved", "warnings"), (list,)),
    "decision": (dict,),
    "halted": (str, type(None)),
}
BEYOND = "ledger_read gross pnl price margin_level difference exit_code base quote now"


def setUpModule() -> None:
    short_histories()


class TestRefusals(ProgramTest):
    def test_a_key_that_does_not_fit_ends_with_77(self) -> None:
        other = SANDBOX_SECRET.swapcase()
        cases = [
            ("live", self.gate(key="ANOTHER-KEY"), ("Kraken refused the key", "Invalid key")),
            ("live", self.gate(secret=other), ("Kraken refused the key", "Invalid signature")),
            ("live", self.gate(), ("lacks permissions: modify-trades",)),
            ("live", self.gate(), ("withdraw-funds", "must not")),
            ("validate", self.gate(), ("withdraw-funds", "must not")),
        ]
        cases[2][1].edit = lambda path, answer: answer.replace(b'"modify-trades"', b'"query-funds"')
        for _, gate, _ in cases[3:]:
            gate.edit = lambda path, answer: answer.replace(b'["', b'["withdraw-funds", "')
        started = []
        for number, (mode, gate, _) in enumerate(cases):
            settings = LIVE | {"KRAKENBOT_STATE_DIRECTORY": str(self.folder / str(number))}
            settings["KRAKENBOT_MODE"] = mode
            started.append(self.start(gate, "run", "--live", **settings))
        for running, (_, gate, words) in zip(started, cases, strict=True):
            with self.subTest(words):
                self.assert_ends(running.done(), 77, *words)
                self.assertEqual(gate.added, [])

    def test_without_the_second_word_or_a_key_nothing_is_sent(self) -> None:
        gate = self.gate()
        keyless = {name: value for name, value in LIVE.items() if name not in KEYS}
        half = {name: value for name, value in LIVE.items() if name != "KRAKEN_API_SECRET"}
        cases: tuple[tuple[str, dict[str, str], str], ...] = (
            ("run", LIVE, "--live"),
            ("", LIVE, "--live"),
            ("flatten", LIVE, "--live"),
            ("run --live", keyless, "KRAKEN_API_KEY_FILE"),
            ("run --live", half, "KRAKEN_API_SECRET"),
            ("run", keyless | {"KRAKENBOT_MODE": "validate"}, "KRAKEN_API_KEY_FILE"),
        )
        started = [self.start(gate, *words.split(), **settings) for words, settings, _ in cases]
        for running, (words, _, say) in zip(started, cases, strict=True):
            with self.subTest(words, say=say):
                self.assert_ends(running.done(), 78, say)
        self.assertEqual(gate.sent, [])

    def test_costs_within_the_limit_are_told_before_an_order_also_at_a_terminal(self) -> None:
        gate = self.gate()
        settings = LIVE | {"KRAKENBOT_LOG_LEVEL": "warning"}  # As a terminal's.
        done = self.once(gate, **settings)
        self.assertRegex(done.err, r"costs: over the last .*\n.*costs: each round trip must gain")

    def test_the_rules_of_the_pair_are_asked_for_once_at_the_start(self) -> None:
        for number, (settings, words) in enumerate(((LIVE, ["--live"]), (PAPER, []))):
            with self.subTest(words):
                gate = self.gate()
                state = {"KRAKENBOT_STATE_DIRECTORY": str(self.folder / str(number))}
                self.run_it(gate, "run", "--once", *words, **(settings | state))
                asked = [path for path, _ in gate.sent if "/AssetPairs" in path]
                self.assertEqual(1, len(asked), asked)

    def test_a_second_instance_is_refused_and_the_first_goes_on(self) -> None:
        gate = self.gate()
        first = self.start(gate, "run", "--live", **LIVE)
        first.wait_for("decided")
        count = len(gate.sent)
        elsewhere = LIVE | {"KRAKENBOT_STATE_DIRECTORY": str(self.folder / "elsewhere")}
        there = self.start(gate, "run", "--live", **elsewhere)
        same = self.start(gate, "run", "--live", **LIVE)
        key = self.start(gate, "run", "--live", **LIVE, KRAKENBOT_PAIR="ETHUSD")
        told = {same: "this API key", key: f"pid {first.pid}", there: "another state directory"}
        for running, words in told.items():
            with self.subTest(words):
                self.assert_ends(running.done(), 78, "another krakenbot", words)
                self.assertNotIn("waiting", running.err)
        self.assertEqual(len(gate.sent), count)
        self.assertIsNone(first.process.exitcode)

    def test_it_waits_while_another_command_holds_the_key_or_the_journal(self) -> None:
        gate = self.gate(60.0)
        self.decide(gate, **LIVE)
        (key,) = self.state.glob("key-*.lock")
        name = f"{gate.url.removeprefix('http://')} {key.stem.removeprefix('key-')}"
        for path, held in (
            (key, ""),
            (self.journal().with_suffix(".lock"), ""),
            (self.folder / "elsewhere" / key.name, name),
        ):
            with self.subTest(path):
                other = Lock(path, "it", held)  # As `doctor` holds it.
                running = self.start(gate, "run", "--live", "--once", **LIVE)
                running.wait_for("waiting for another command")
                other.close()
                self.assert_ends(running.done(), 0)


class TestNoNetwork(ProgramTest):
    def closed_url(self) -> str:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{taken.getsockname()[1]}"

    def test_it_waits_as_long_as_patience_and_says_so_once_a_minute(self) -> None:
        started = []
        for patience, speed, lines in (("2", "8", (1,)), ("150", "400", (2, 3))):
            settings = {"URL": self.closed_url(), "CLOCK_SPEED": speed, "PATIENCE": patience}
            environ = {f"KRAKENBOT_EXCHANGE_{name}": value for name, value in settings.items()}
            environ["KRAKENBOT_STATE_DIRECTORY"] = str(self.folder / patience)
            started.append((lines, self.start(None, "run", **environ)))
        for lines, running in started:
            done = running.done()
            self.assert_ends(done, 75, "cannot be reached", "gave up after")
            self.assertIn(done.err.count("waiting for the exchange"), lines, done.err)

    def test_a_signal_ends_a_read_that_gets_no_answer_at_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            running = self.start(None, "run", KRAKENBOT_EXCHANGE_URL=url)
            silent.settimeout(20)
            connection, _ = silent.accept()
            with connection:
                connection.recv(65536)
                time.sleep(0.05)  # It waits for the answer by then.
                running.send_signal(signal.SIGTERM)
                began = time.monotonic()
                self.assert_ends(running.done(), 0)
        self.assertLess(time.monotonic() - began, ENDS_MAX_S)


class TestDisk(ProgramTest):
    """What cannot be written down is not done."""

    def test_a_state_directory_that_cannot_be_written_is_said_first(self) -> None:
        gate = self.gate()
        self.once(gate, **(LIVE | {"KRAKENBOT_ENTRY": "next-turn"}))
        gate.pass_candle()
        self.addCleanup(self.state.chmod, 0o700)
        fresh = self.folder / "fresh"
        fresh.mkdir()
        self.journal().chmod(0o400)
        for number, directory in enumerate((fresh, self.state)):
            directory.chmod(0o500)
            settings = LIVE | {"KRAKENBOT_STATE_DIRECTORY": str(directory)}
            with self.subTest(number):
                done = self.once(gate, before=_without_override, **settings)
                self.assert_ends(done, 78, "cannot be", str(directory))
        file = self.folder / "file"
        file.touch()
        started = []
        for words, settings in (("run", PAPER), ("adopt", PAPER), ("run --live", LIVE)):
            for path in (str(file), str(file / "below"), "/proc/none"):
                here = settings | {"KRAKENBOT_STATE_DIRECTORY": path}
                started.append((words, path, self.start(gate, *words.split(), **here)))
        for words, path, running in started:
            with self.subTest(words, path=path):
                self.assert_ends(running.done(), 78, "cannot be", path)
        self.assertEqual(gate.added, [])

    def test_a_full_disk_is_said_before_any_order(self) -> None:
        gate = self.gate()
        waiting = LIVE | {"KRAKENBOT_ENTRY": "next-turn"}
        self.decide(gate, **waiting)
        gate.pass_candle()
        fresh = {"KRAKENBOT_STATE_DIRECTORY": str(self.folder / "fresh")}
        for limit, settings in ((0, fresh), (30, fresh), (20000, fresh), (30, {}), (9000, {})):
            with self.subTest(limit, **settings):
                before = _full(limit)
                done = self.once(gate, before=before, **(LIVE | settings))
                self.assertIn(done.code, (76, 78), done.err)
                self.assert_ends(done, done.code, "cannot be")
        self.assertEqual(gate.added, [])
        self.decide(gate, **LIVE)
        self.assertEqual(len(gate.orders), 1)


class TestTrading(ProgramTest):
    def test_one_candle_is_decided_on_once(self) -> None:
        gate, settings = self.gate(), LIVE
        for _ in range(2):
            self.decide(gate, **settings)
        self.assertEqual(len(gate.orders), 1)
        (order,) = gate.added
        self.assertEqual(D(order["volume"]), D("0.01"))
        self.assertEqual(order["ordertype"], "market")
        self.assertNotIn("validate", order)
        self.assertEqual(abs(gate.position), D("0.01"))

    def test_a_position_left_by_a_change_of_the_pair_is_said_before_and_at_the_start(self) -> None:
        gate = self.gate()
        self.decide(gate, **LIVE)
        for changed in ({"KRAKENBOT_PAIR": "ETHUSD"}, {"KRAKENBOT_MODE": "paper"}):
            with self.subTest(changed):
                done = self.run_it(gate, "status", **(LIVE | changed))
                self.assert_ends(done, 78, "0.01 XXBTZUSD is still held, and no bot manages it")
                done = self.once(gate, **(LIVE | changed))
                self.assert_ends(done, 0, "0.01 XXBTZUSD is still held, and no bot manages it")
                status = self.status(gate, **(LIVE | changed))
                self.assertIn("no bot manages it", " ".join(status["warnings"]))
        self.assertEqual(2, len(gate.orders), "the second pair's bot has traded as well")

    def test_a_signal_ends_the_wait_for_the_next_candle_at_once(self) -> None:
        gate = self.gate()
        started = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            settings = PAPER | {"KRAKENBOT_STATE_DIRECTORY": str(self.folder / number.name)}
            started.append((self.start(gate, "run", **settings), number))
        for running, number in started:
            running.wait_for("decided")
            running.send_signal(number)
            began = time.monotonic()
            self.assert_ends(running.done(), 0)
            self.assertLess(time.monotonic() - began, ENDS_MAX_S)


class TestWithoutRisk(ProgramTest):
    """Paper and validate: nothing that reaches the exchange can trade."""

    @slow
    def test_paper_needs_no_key_and_asks_nothing_private(self) -> None:
        gate = self.gate()
        for words, keys in (
            (("run", "--once"), {}),
            (("flatten", "--live"), KEYS),
            (("resume",), KEYS),
            (("run", "--live", "--once"), KEYS),
        ):
            with self.subTest(words):
                self.assert_ends(self.run_it(gate, *words, **(PAPER | keys)), 0)
                gate.pass_candle()
        status = self.status(gate, **PAPER)
        self.assertEqual(status["orders"], 3)
        self.assertEqual(gate.private, [])
        self.assertEqual(gate.orders, [])

    def test_paper_says_what_its_settings_would_cost(self) -> None:
        running = self.start(self.gate(), "run", **PAPER)
        running.wait_for("costs: over the last")

    def test_validate_lets_every_order_be_checked_and_none_be_made(self) -> None:
        gate = self.gate()
        settings = LIVE | {"KRAKENBOT_MODE": "validate"}
        for words in (("run", "--live", "--once"), ("flatten",)):
            self.assert_ends(self.run_it(gate, *words, **settings), 0)
        self.assertGreaterEqual(len(gate.added), 2)
        self.assertEqual({order.get("validate") for order in gate.added}, {"true"})
        self.assertEqual(gate.orders, [])
        status = self.status(gate, **settings)
        self.assertEqual(status["orders"], len(gate.added))
        self.assertEqual(status["position"], "0")


class TestWords(unittest.TestCase):
    def test_the_last_line_says_what_is_held_what_is_not_known_and_what_can_be_done(self) -> None:
        sent = Intent("abc", 60, 1, Purpose.OPEN, Side.BUY, D(1), 0, False, "", D(0), 1, 16)
        still = "0.01 XBT is still held, and no bot manages it now: `krakenbot run` goes on"
        for held, intents, changes, words in (
            ("0", [], {}, "nothing is held"),
            ("0.01", [], {}, still),
            ("0.01", [], {"halted": "why"}, "halted: 0.01 XBT is still held; `krakenbot status`"),
            ("0.01", [], {"exchange_position": D(0)}, "0 XBT, the journal records 0.01 XBT"),
            ("0", [sent], {}, "order abc is not known yet"),
        ):
            journal = open_journal(None)
            self.addCleanup(journal.close)
            journal.adopt(D(held), D(70000), 1, True)
            journal.put(base="XXBT", **changes)
            for intent in intents:
                journal.write(intent)
            with self.subTest(words):
                line = goodbye(Config(), cast(Parts, SimpleNamespace(journal=journal)))
                self.assertIn(words, line)

    def test_no_text_from_outside_commands_the_terminal(self) -> None:
        with redirect_stdout(io.StringIO()) as out:
            Screen()(Event("halt", "\x1b[2J forged"))
        self.assertIn("forged", out.getvalue())
        self.assertNotIn("\x1b", out.getvalue())


class TestScreen(unittest.TestCase):
    """The rows of a terminal, for a pair and figures as the bot gives them."""

    def row(self, quote: str = "ZUSD", **changes: str) -> str:
        values = {"pair_decimals": "1", "quote": quote, "candle": "0", "price": "71780"}
        values |= {"average": "71790.04", "held": "0.05", "equity": "9999.76786"} | changes
        with redirect_stdout(Terminal()) as out:
            screen = Screen()
            screen(Event("start", "", values))
            screen(Event("decision", "long: blocked, but the spread is wide", values))
        return out.getvalue().splitlines()[-1]

    def test_a_row_has_the_header_s_columns(self) -> None:
        row, words = self.row(), "long: blocked, but the spr"
        self.assertEqual((len(HEADER), words), (len(row), row[35:61]))
        self.assertTrue(row.endswith(" 9,999.77"))

    def test_the_equity_has_the_decimals_of_its_currency(self) -> None:
        self.assertTrue(self.row("XXBT", equity="0.14").endswith(" 0.14000000"))

    def test_only_at_a_terminal_are_long_words_cut(self) -> None:
        for stream, is_cut in ((Terminal(), True), (io.StringIO(), False)):
            with redirect_stdout(stream):
                Screen()(Event("halt", "a reason " * 20))
            self.assertEqual(is_cut, len(stream.getvalue()) < 100)

    def test_long_figures_shorten_the_words_and_lose_no_digit(self) -> None:
        row = self.row(held="20000000.12345", equity="1234567.89")
        self.assertEqual(80, len(row))
        self.assertTrue(row.endswith("long: blocked,  20,000,000.12345 1,234,567.89"), row)


class TestLooking(ProgramTest):
    """The commands that only look, while the bot runs."""

    def test_status_can_be_read_by_programs_while_the_bot_runs(self) -> None:
        gate = self.gate()
        bot = self.start(gate, "run", **PAPER)
        bot.wait_for("order ended")
        bot.wait_for("decided")
        status = self.run_it(gate, "status", "--json", **PAPER)
        self.assert_ends(status, 0)
        self.check_status(json.loads(status.out))
        plain = self.run_it(gate, "status", **PAPER)
        self.assert_ends(plain, 0)
        self.assertLessEqual(max(map(len, plain.out.splitlines())), 80)
        self.assertIsNone(bot.process.exitcode)
        bot.send_signal(signal.SIGTERM)
        self.assert_ends(bot.done(), 0)

    def check_status(self, status: dict[str, Any]) -> None:
        self.assertEqual(set(status), {*AGREED, *f"{BEYOND} end_reason".split()})
        for name, types in AGREED.items():
            self.assertIs(type(status[name]) in types, True, (name, status[name]))
        for name in ("position", "fees", "rollover", "realized", "gross", "pnl", "equity"):
            self.assertRegex(status[name], r"^-?[0-9]+(\.[0-9]+)?$")
        self.assertIn(status["target"], (-1, 0, 1))
        self.assertEqual((status["mode"], status["pair"]), ("paper", "XBTUSD"))
        self.assertEqual(status["interval"], 240)
        decision = status["decision"]
        types = {"candle": int, "slope": int, "target": int, "reason": str}
        self.assertEqual({name: type(value) for name, value in decision.items()}, types)
        self.assertEqual(status["last_candle"], decision["candle"])
        self.assertEqual(status["last_candle"] % 14400, 0)
        self.assertTrue(all(type(name) is str for name in status["unresolved"]))


def _full(limit: int) -> Callable[[], None]:
    """Return what makes every write beyond `limit` bytes of a file fail, as a full disk does."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))


def _without_override() -> None:
    """Make root obey file modes like everybody else. Source: capabilities(7), capset(2)."""
    version_3, dac_override = 0x20080522, 1
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~(1 << dac_override)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
