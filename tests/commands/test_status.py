import functools
import json
import os
import subprocess
import sys
import time
import unittest
from decimal import Decimal as D
from pathlib import Path
from unittest import mock

from krakenbot import identity
from krakenbot.bot import Event
from krakenbot.clock import Clock
from krakenbot.commands import journals
from krakenbot.commands.status import units
from krakenbot.config_reader import load
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal
from krakenbot.lock import Lock
from krakenbot.model import MarginSummary
from krakenbot.presence import Presence, State, read_life
from krakenbot.records import Booked, Outcome
from tests.commands.called import call
from tests.folders import own_folder
from tests.logs import silence_module
from tests.ports.test_journal import ROW, execution, intent

START = Event("start", "", {"base": "XXBT", "quote": "ZUSD", "pair_decimals": "1"})


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        folder = own_folder(self)
        self.environ = {"HOME": str(folder), "KRAKENBOT_STATE_DIRECTORY": f"{folder}/state"}
        config = load("/dev/null", self.environ, Path("/"))
        self.path = identity.place_of(config, identity.Identity("XBTUSD"))
        self.lock = self.path.with_suffix(".lock")

    @functools.cached_property
    def journal(self) -> Journal:
        journal = open_journal(self.path)
        self.addCleanup(journal.close)
        return journal

    def presence(self) -> Presence:
        """Return what a running bot notes itself with; its lock is held until the test ends."""
        held = Lock(self.lock, "it")
        self.addCleanup(held.close)
        return Presence(self.journal, Clock(), 60)

    def status(self, *argv: str, command: str = "status", **environ: str) -> str:
        done = call("--config", "/dev/null", command, *argv, **self.environ | environ)
        self.assertEqual(0, done.code, done.err)
        return done.out


class TestLife(Folder):
    def decided(self, age_s: int) -> None:
        presence = self.presence()
        presence(START)
        presence(Event("decision", "long", {"candle": str(int(time.time()) - 120 - age_s)}))

    def test_a_bot_that_holds_its_lock_runs_and_says_since_when_and_what_comes_next(self) -> None:
        self.decided(-30)
        first, second = self.status().splitlines()[:2]
        self.assertRegex(
            first, rf"^RUNNING +pid {os.getpid()}, since 20..-..-.. .* UTC \([0-9] s\)"
        )
        self.assertRegex(second, r"^next +decision at 20.* UTC, in (29|30|31) s$")

    def test_one_that_has_just_started_says_so(self) -> None:
        self.presence()
        self.assertRegex(self.status(), r"\nnext +starting\n")  # On paper there is no wait.

    def test_what_is_held_is_not_known_while_an_order_is_unresolved(self) -> None:
        self.journal.write(intent())
        text = " ".join(self.status().split())
        self.assertIn(
            "position unknown while an order is unresolved; the journal records 0 XBT", text
        )

    def test_a_decision_that_is_long_overdue_is_stale(self) -> None:
        self.decided(600)
        self.assertEqual(State.STALE, read_life(self.journal, self.lock, 1.0).state)
        self.assertRegex(
            self.status(), r"^STALE +pid .*\nnext +decision at .* is (9|10) min.* late"
        )
        self.assertEqual(State.RUNNING, read_life(self.journal, self.lock, 60.0).state)

    def test_one_that_ended_says_when_why_and_with_which_code(self) -> None:
        Presence(self.journal, Clock(), 60).end(76, "the exchange holds 1, explained is 0")
        first = " ".join(self.status().split())
        self.assertIn("exit code 76: the exchange holds 1, explained is 0", first)
        self.assertTrue(first.startswith("STOPPED since 20"), first)

    def test_the_lines_of_a_reason_are_told_one_after_the_other(self) -> None:
        Presence(self.journal, Clock(), 60).end(78, "not trading: too small\nNothing is held")
        self.assertIn(
            "78: not trading: too small; Nothing is held", " ".join(self.status().split())
        )

    def test_an_end_without_a_reason_is_no_halt(self) -> None:
        Presence(self.journal, Clock(), 60).end(0, "")
        self.assertIn("exit code 0: no reason was recorded", " ".join(self.status().split()))

    def test_a_halt_that_was_cleared_is_not_told_as_if_it_held(self) -> None:
        self.journal.halt("flattened by hand")
        self.presence().end(76, "flattened by hand")
        self.journal.resume()
        self.assertIn("cleared since then", self.status())
        self.journal.halt("flattened by hand")  # By a command, while no bot runs.
        self.assertIn("exit code 76: halted, see below", " ".join(self.status().split()))

    def test_a_stop_as_asked_stays_one_when_a_later_halt_is_cleared(self) -> None:
        self.presence().end(0, "stopped as asked")
        self.journal.put(halted="flattened by hand")
        self.journal.resume()
        self.assertIn("exit code 0: stopped as asked", " ".join(self.status().split()))

    def test_a_flatten_that_has_not_ended_is_told(self) -> None:
        self.journal.resume(flatten="max_loss reached")
        self.assertIn("warning   flattening: max_loss reached", self.status())
        self.journal.halt("max_loss reached")
        self.assertNotIn("flattening", self.status())

    def test_one_in_a_container_runs_though_its_process_cannot_be_seen_from_here(self) -> None:
        self.presence()(START)
        self.journal.put(pid=9)
        text = self.lock.read_text().replace(f"pid {os.getpid()},", "pid 9,")
        self.lock.write_text(text)
        self.assertTrue(self.status().startswith("RUNNING"))

    def test_a_lock_held_by_another_command_is_no_running_bot(self) -> None:
        self.presence()(START)
        self.journal.put(pid=9)
        self.assertTrue(self.status().startswith("STOPPED"))

    def test_without_a_price_no_result_is_invented_for_what_is_held(self) -> None:
        self.journal.adopt(D("0.01"), D(70000), 1, True)
        self.assertIn("result    not known before the next decision", self.status())
        told = json.loads(self.status("--json"))
        self.assertEqual((None, None), (told["pnl"], told["gross"]))

    def test_what_was_adopted_since_the_last_decision_is_not_valued_at_its_price(self) -> None:
        self.journal.decide(ROW, MarginSummary(D(2000), D(0), D(0)))
        self.journal.adopt(D("0.01"), D(70000), ROW["decided"] + 1, True)
        self.assertIn("result    not known before the next decision", self.status())
        self.assertRegex(self.status(), r"(?m)^position +0.01[ A-Z]*$")

    def test_one_without_a_clean_end_is_told_all_that_may_have_ended_it(self) -> None:
        command = [sys.executable, "-c", "import os; print(os.getpid())"]
        gone = subprocess.check_output(command, text=True)
        self.presence()(START)
        self.journal.put(pid=int(gone))
        want = "killed, out of disk space, or the machine went down; see its log"
        self.assertRegex(" ".join(self.status().split()), f"^STOPPED since .*: {want}")

    def test_a_process_that_only_has_the_same_number_is_not_the_bot(self) -> None:
        Presence(self.journal, Clock(), 60)(START)
        self.assertEqual(State.STOPPED, read_life(self.journal, self.lock, 1.0).state)

    def test_a_journal_that_never_ran_with_this_version_is_stopped(self) -> None:
        self.journal.put()
        self.assertIn("STOPPED", self.status())

    def test_the_time_of_a_rehearsal_is_that_of_its_exchange(self) -> None:
        self.presence()
        self.journal.put(seen=1_000_000, seen_wall=int(time.time()) - 10, next_decision=1_000_700)
        life = read_life(self.journal, self.lock, 60.0)
        self.assertAlmostEqual(1_000_600, life.now, delta=60)
        self.assertEqual(State.RUNNING, life.state)

    def test_looking_does_not_keep_a_bot_from_starting(self) -> None:
        for _ in range(50):
            read_life(self.journal, self.lock, 1.0)
            Lock(self.lock, "it").close()


@unittest.skipIf(os.geteuid() != 0, "needs root")
class TestRoot(Folder):
    """A service's folder belongs to the service's user, whoever runs a command on it."""

    def test_what_root_makes_in_a_service_s_folder_belongs_to_the_service(self) -> None:
        self.path.parent.mkdir(mode=0o700)
        os.chown(self.path.parent, 65534, 65534)
        self.presence()(START)
        self.assertEqual({65534}, {file.stat().st_uid for file in self.path.parent.iterdir()})
        self.journal.close()
        self.status()
        self.assertEqual({65534}, {file.stat().st_uid for file in self.path.parent.iterdir()})


class TestFigures(Folder):
    def fill(self) -> None:
        bought = intent(volume=D("0.05"))
        self.journal.write(bought)
        found = execution(bought, "0.05", "3500", "28")
        self.journal.conclude(bought, Outcome.CLOSED, 1_700_000_000, found)
        self.journal.book([Booked("L1", 1_700_000_000, "opening", D("0.7"))])
        row = ROW | {"candle": 1_699_999_920, "price": "71780.05", "held": "0.05"}
        row |= {"reason": "long: on target", "decided": 1_700_000_000}
        self.journal.decide(row, MarginSummary(D("9999.7678600000000"), D(0), D(1750)))

    def test_before_the_first_start_the_currencies_come_from_the_pair_s_name(self) -> None:
        for pair, want in (("XXBTZUSD", ("XBT", "USD", None)), ("SOL/USDC", ("SOL", "USDC", None))):
            with self.subTest(pair):
                self.assertEqual(want, units(open_journal(None), pair))

    def test_figures_have_units_and_no_exponent_and_no_raw_time(self) -> None:
        self.presence()(START)
        self.fill()
        text = self.status()
        self.assertIn("position  0.05 XBT, worth 3,589.00 USD", text)
        self.assertIn("+60.30 USD after all costs, +89.00 USD before", text)
        self.assertIn("trade fees 28.00 USD, margin fees 0.70 USD, rollover 0.00 USD", text)
        self.assertIn("equity 9,999.77 USD, margin level 571 %", text)
        self.assertIn("target    long: on target (candle of 2023-11-14 22:12:00 UTC)", text)
        self.assertRegex(text, r"as of +2023-11-14 22:13:20 UTC, \d+ days")
        self.assertNotRegex(text, r"\d[eE][+-]?\d|\b1[67]\d{8}\b")
        self.assertLessEqual(max(map(len, text.splitlines())), 80)

    def test_what_the_exchange_holds_and_what_is_explained_are_both_said(self) -> None:
        presence = self.presence()
        presence(START)
        self.fill()
        self.journal.halt("the exchange holds 0.005", D("0.005"))
        text = " ".join(self.status().split())
        self.assertIn("the exchange holds 0.005 XBT, the journal records 0.05 XBT", text)
        self.assertIn("HALTED the exchange holds 0.005", text)
        presence.end(76, "halted: the exchange holds 0.005. `krakenbot resume`")
        self.assertIn("exit code 76: halted, see below", self.status())
        self.assertEqual("0.005", json.loads(self.status("--json"))["exchange_position"])

    def test_json_gains_the_state_and_keeps_its_names(self) -> None:
        self.presence()(START)
        self.fill()
        got = json.loads(self.status("--json"))
        self.assertEqual(("running", os.getpid()), (got["state"], got["pid"]))
        self.assertEqual((int, int), (type(got["since"]), type(got["next_decision"])))
        self.assertEqual([], got["warnings"])
        self.assertEqual("sma-slope", got["strategy"])
        self.assertEqual("9999.76786", got["equity"])
        self.assertEqual(("XXBT", "ZUSD"), (got["base"], got["quote"]))
        self.assertAlmostEqual(time.time(), got["now"], delta=5)

    def test_the_interval_is_that_of_the_running_bot_also_once_the_file_says_another(self) -> None:
        self.presence()(START)
        got = json.loads(self.status("--json", KRAKENBOT_INTERVAL="240"))
        self.assertEqual(1, got["interval"])
        self.assertIn("config now says interval = 240", got["warnings"][0])

    def test_resume_says_whether_there_was_something_to_clear(self) -> None:
        self.journal.put()
        self.assertIn("nothing to clear", self.status(command="resume"))
        self.journal.put(halted="flattened by hand", pnl_at_resume=5)
        self.assertIn(
            "was halted: flattened by hand\nmax_loss counts from zero\ncleared",
            self.status(command="resume"),
        )

    def test_an_order_s_id_is_never_broken_between_lines(self) -> None:
        ids = [f"{number}bcdefab-cdef-4abc-abcd-abcdefabcdef" for number in range(3)]
        for number, name in enumerate(ids):
            self.journal.write(intent(number)._replace(id=name))
        text = self.status()
        for name in ids:
            self.assertIn(name, text)

    def test_watch_shows_it_again_until_the_signal(self) -> None:
        self.journal.put()
        with mock.patch("time.sleep", side_effect=[None, KeyboardInterrupt]):
            self.assertEqual(2, self.status("--watch").count("STOPPED"))

    def test_without_a_journal_here_others_are_named(self) -> None:
        self.journal.put()
        environ = self.environ | {"KRAKENBOT_PAIR": "ETHUSD"}
        done = call("--config", "/dev/null", "status", **environ)
        self.assertEqual(78, done.code)
        self.assertIn("this bot has not run here", done.err)
        self.assertIn(str(self.path), done.err)

    def test_where_a_service_s_journals_cannot_be_seen_sudo_is_advised(self) -> None:
        with (
            mock.patch.object(journals, "SERVICE_STATE", self.path.parent.parent),
            mock.patch.object(Path, "glob", side_effect=PermissionError),
            mock.patch("os.geteuid", return_value=1),
        ):
            done = call("--config", "/dev/null", "status", **self.environ)
        self.assertEqual(78, done.code, done.err)
        self.assertIn("try sudo", done.err)


def setUpModule() -> None:
    silence_module()
