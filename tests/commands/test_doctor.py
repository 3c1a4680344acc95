import json
import os
import sys
import unittest
import warnings
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from unittest import mock

from krakenbot.clock import Clock
from krakenbot.commands import doctor
from krakenbot.errors import RefusedError
from krakenbot.journal_file import open_journal
from krakenbot.kraken.spot import NEEDED_PERMISSIONS, Spot
from krakenbot.lock import Lock, no_access
from krakenbot.model import KeyInfo, Position
from krakenbot.presence import Presence
from krakenbot.simulated import http as server
from tests import slow
from tests.clients import key_files
from tests.commands.called import call
from tests.folders import own_folder
from tests.logs import forget_secrets
from tests.markets import sandbox_for, short_histories

NAMES = [name for name, *_ in doctor.CHECKS]


def setUpModule() -> None:
    short_histories()


class Patient(unittest.TestCase):
    """A folder, an environment and, where asked for, a sandbox of the test's own."""

    def setUp(self) -> None:
        # Connections that are kept open end with the process, as the command does.
        warnings.simplefilter("ignore", ResourceWarning)
        self.addCleanup(forget_secrets)
        self.folder = own_folder(self)
        self.state = self.folder / "state"
        self.environ: dict[str, str] = {"HOME": str(self.folder)}

    def sandbox(self) -> server.Sandbox:
        return sandbox_for(self)

    def keys(self) -> None:
        self.environ |= key_files(self.folder)

    def examine(self, url: str, toml: str = "", **environ: str) -> dict[str, doctor.Finding]:
        file = self.folder / "my.toml"
        file.write_text(
            f'{toml}\n[exchange]\nurl = "{url}"\ntimeout = 5\n[state]\ndirectory = "{self.state}"\n'
        )
        with mock.patch.dict(os.environ, self.environ | environ, clear=True):
            return {finding.check: finding for finding in doctor.examine(str(file))}


class TestFindings(Patient):
    def expect(self, finding: doctor.Finding, verdict: str, *words: str) -> None:
        self.assertEqual(verdict, finding.verdict, finding)
        for word in words:
            self.assertIn(word, finding.text)

    def test_paper_without_a_key_is_sound_and_says_which_checks_were_left_out(self) -> None:
        found = self.examine(self.sandbox().url)
        self.assertEqual(NAMES, list(found))
        self.assertEqual([], [finding for finding in found.values() if finding.verdict == "fail"])
        self.assertEqual(("skip", "no key"), found["key"][1:3])
        for name in ("account", "position", "order"):
            self.assertEqual(("skip", "see key"), found[name][1:3])
        self.assertFalse(self.state.exists(), "doctor makes nothing where it has nothing to sign")
        self.assertEqual("skip", found["clock"].verdict, "a sandbox has a clock of its own")
        self.assertNotIn("timedatectl", str(found))

    def test_live_with_a_key_looks_at_the_account_and_sends_nothing(self) -> None:
        sandbox = self.sandbox()
        self.keys()
        found = self.examine(sandbox.url, 'mode = "live"')
        verdicts = {name: finding.verdict for name, finding in found.items()}
        for name in ("secrets", "account", "position", "order"):
            self.assertEqual("ok", verdicts[name], found[name])
        self.assertIn("free margin", found["account"].text)
        self.assertEqual({}, sandbox.api.orders)
        self.assertNotIn("any address", found["key"].text)

    def test_costs_are_counted_though_margin_rates_cannot_be_read(self) -> None:
        sandbox = self.sandbox()
        refused = RefusedError("EGeneral:Invalid arguments")
        sandbox.api.markets.methods["Assets"] = mock.Mock(side_effect=refused)
        self.expect(self.examine(sandbox.url)["costs"], "warn", "over the last")

    def test_announcements_of_the_exchange_are_passed_on(self) -> None:
        sandbox = self.sandbox()
        sandbox.api.markets.notices["upcoming_maintenance"] = ["Upgrade at noon"]
        self.expect(self.examine(sandbox.url)["pair"], "warn", "Kraken announces: Upgrade at noon")

    def test_the_empty_key_files_of_an_installation_are_no_trouble_in_paper_mode(self) -> None:
        for name in ("K", "S"):
            (self.folder / name).touch(0o600)
        keys = f'[keys]\napi_key_file = "{self.folder}/K"\napi_secret_file = "{self.folder}/S"\n'
        self.expect(self.examine(self.sandbox().url, keys)["secrets"], "skip")
        self.expect(
            self.examine(self.sandbox().url, f'mode = "live"\n{keys}')["secrets"],
            "fail",
            "is empty",
        )

    def test_without_network_the_line_says_so_and_the_others_are_still_there(self) -> None:
        found = self.examine("http://127.0.0.1:1")
        self.assertEqual(NAMES, list(found))
        self.assertEqual("fail", found["network"].verdict)
        self.assertEqual("see network", found["pair"].text)
        self.assertEqual("ok", found["config"].verdict)

    def test_an_answer_of_a_strange_form_fails_its_check_and_the_others_go_on(self) -> None:
        self.keys()
        strange = {"permissions": list(NEEDED_PERMISSIONS), "nonce": "n/a", "valid_until": "soon"}
        sandbox = self.sandbox()
        sandbox.api.private_api.methods["GetApiKeyInfo"] = lambda _: strange
        found = self.examine(sandbox.url, 'mode = "validate"')
        self.assertEqual("fail", found["key"].verdict)
        self.assertEqual(NAMES, list(found))

    def test_no_key_for_live_mode_fails_and_so_does_each_mistake_in_one_line(self) -> None:
        found = self.examine("http://127.0.0.1:1", 'mode = "live"')
        self.expect(found["secrets"], "fail", "no API key")
        found = self.examine("http://127.0.0.1:1", 'interval = 7\nsizee = 1\nmode = "live"')
        self.expect(found["config"], "fail", "interval = 7")
        self.assertIn("'sizee'", found["config"].text)
        self.assertEqual("see config", found["clock"].text)

    def test_the_place_of_each_value_is_named(self) -> None:
        found = self.examine("http://127.0.0.1:1", "leverage = 3", KRAKENBOT_SIZE="0.5")
        self.assertIn("size (KRAKENBOT_SIZE)", found["config"].text)
        self.assertIn(f"leverage ({self.folder}/my.toml)", found["config"].text)

    def test_a_secret_that_others_may_read_fails(self) -> None:
        self.keys()
        (self.folder / "SECRET").chmod(0o644)
        found = self.examine(self.sandbox().url)
        self.expect(found["secrets"], "fail", "chmod 600")
        self.assertEqual("no key", found["key"].text)

    def test_keys_in_the_environment_are_warned_about_and_not_shown(self) -> None:
        keys = {"KRAKEN_API_KEY": server.SANDBOX_KEY, "KRAKEN_API_SECRET": server.SANDBOX_SECRET}
        found = self.examine(self.sandbox().url, "", **keys)
        self.assertEqual("warn", found["secrets"].verdict)
        self.assertNotIn(server.SANDBOX_KEY, str(found))
        self.assertNotIn(server.SANDBOX_SECRET, str(found))

    def test_a_key_that_another_process_holds_is_never_used(self) -> None:
        sandbox = self.sandbox()
        self.keys()
        self.examine(sandbox.url)
        (key_lock,) = self.state.glob("key-*.lock")
        asked = sandbox.api.requests["GetApiKeyInfo"]
        bot = f"the running bot (pid {os.getpid()}, since "
        for by_bot, words in ((False, key_lock.name), (True, bot)):
            with closing(Lock(key_lock, "it", by_bot=by_bot)):
                self.expect(self.examine(sandbox.url)["key"], "skip", words)
        self.assertEqual(asked, sandbox.api.requests["GetApiKeyInfo"])

    def test_a_journal_that_a_bot_holds_is_said(self) -> None:
        with mock.patch.dict(os.environ, {"HOME": str(self.folder)}):
            url = self.sandbox().url
            self.examine(url)
            path = self.state / f"paper-{url.partition('://')[2].replace(':', '-')}-XBTUSD.db"
            journal = open_journal(path)
            self.addCleanup(journal.close)
            held = Lock(path.with_suffix(".lock"), "the journal", by_bot=True)
            self.addCleanup(held.close)
            Presence(journal, Clock(), 60)
            text = self.examine(url)["journal"].text
            self.assertIn(f"the bot is running with pid {os.getpid()}", text)

    def permitted(self, *codes: str) -> dict[str, doctor.Finding]:
        """Return what is found with a key that has these permissions."""
        self.keys()
        with mock.patch.object(Spot, "key_info", return_value=KeyInfo(codes)):
            return self.examine(self.sandbox().url)

    def test_a_key_that_may_withdraw_fails(self) -> None:
        found = self.permitted("withdraw-funds")
        self.expect(found["key"], "fail", "withdraw")
        self.assertEqual("see key", found["account"].text)

    def test_a_key_that_may_do_what_no_bot_needs_is_warned_of(self) -> None:
        found = self.permitted(*NEEDED_PERMISSIONS, "query-ledger", "earn-funds", "add-funds")
        self.expect(found["key"], "warn", "earn-funds, add-funds")
        self.expect(found["account"], "ok")

    def test_a_key_that_may_not_read_the_ledger_is_warned_of(self) -> None:
        self.expect(self.permitted(*NEEDED_PERMISSIONS)["key"], "warn", "query-ledger")

    @slow
    def test_larger_nonces_of_another_program_are_told(self) -> None:
        sandbox = self.sandbox()
        self.keys()
        sandbox.api.nonce = 10**20
        self.expect(self.examine(sandbox.url)["key"], "fail", "another program")

    def test_a_size_that_cannot_be_traded_or_paid_and_a_leverage_not_offered_fail(self) -> None:
        url = self.sandbox().url
        self.keys()
        for toml, size, account, word in (
            ("size = 0.00001", "fail", "ok", "smallest"),  # Money does not help.
            ("leverage = 20", "fail", "ok", "not offer"),
            ("size = 5", "ok", "fail", "are needed"),
        ):
            with self.subTest(toml):
                found = self.examine(url, toml)
                self.expect(found["size"], size)
                self.expect(found["account"], account)
                self.assertIn(word, found["size"].text + found["account"].text)

    def test_a_position_that_the_journal_cannot_explain_fails(self) -> None:
        sandbox = self.sandbox()
        self.keys()
        with mock.patch.object(Spot, "position", return_value=Position(Decimal(1), Decimal(9))):
            self.expect(
                self.examine(sandbox.url, 'mode = "live"')["position"],
                "fail",
                "holds 1 XBT, the journal records 0 XBT",
            )

    def test_costs_over_the_limit_fail_in_live_mode_only(self) -> None:
        url = self.sandbox().url
        self.expect(self.examine(url)["costs"], "warn")
        self.keys()
        found = self.examine(url, 'mode = "live"')["costs"]
        self.assertEqual("fail", found.verdict)
        self.assertIn("max_fee_percent_per_day", found.repair)

    def test_a_damaged_journal_fails_and_a_halted_one_warns(self) -> None:
        self.state.mkdir(0o700)
        path = self.state / "paper-127.0.0.1-1-XBTUSD.db"
        journal = open_journal(path)
        journal.put(halted="someone else traded")
        journal.close()
        found = self.examine("http://127.0.0.1:1")["journal"]
        self.assertEqual(("warn", "halted: someone else traded"), found[1:3])
        path.write_bytes(b"no journal at all" * 1000)
        self.expect(self.examine("http://127.0.0.1:1")["journal"], "fail")

    def test_a_state_folder_open_to_others_warns(self) -> None:
        self.state.mkdir(0o755)
        self.state.chmod(0o755)
        self.expect(self.examine("http://127.0.0.1:1")["state"], "warn")

    def test_a_broken_rule_is_no_reason_to_change_anything_else(self) -> None:
        self.keys()
        rule = self.folder / "rule.py"
        rule.write_text("boom")
        rule.chmod(0o600)
        toml = 'mode = "live"\nstrategy.name = "file"\nstrategy.file = "rule.py"'
        found = self.examine(self.sandbox().url, toml)
        failed = [name for name, finding in found.items() if finding.verdict == "fail"]
        self.assertEqual(["strategy"], failed)
        self.expect(found["costs"], "skip", "see strategy")

    @unittest.skipIf(os.geteuid() != 0, "needs root")
    def test_a_restored_file_that_the_service_cannot_use_is_named(self) -> None:
        self.state.mkdir(0o700)
        path = self.state / "paper-127.0.0.1-1-XBTUSD.db"
        open_journal(path).close()
        self.expect(self.examine("http://127.0.0.1:1")["state"], "ok")
        os.chown(self.state, 65534, 65534)
        self.expect(self.examine("http://127.0.0.1:1")["state"], "warn", path.name, "another user")
        with mock.patch("os.geteuid", return_value=65534):
            text = str(no_access(path, "it cannot be used", PermissionError(13, "denied")))
        self.assertIn(f"chown --reference={self.state} {path}", text)

    def test_what_this_user_may_not_look_at_is_advised_to_be_looked_at_with_sudo(self) -> None:
        denied = {"side_effect": PermissionError(13, "Permission denied")}
        with (
            mock.patch.multiple(Path, exists=mock.Mock(**denied), iterdir=mock.Mock(**denied)),
            mock.patch("os.access", return_value=False),
        ):
            found = self.examine("http://127.0.0.1:1")
        for name in ("state", "journal", "others"):
            self.assertIn("use sudo", found[name].repair, found[name])


class TestPython(unittest.TestCase):
    def test_only_a_module_from_elsewhere_is_foreign(self) -> None:
        beside, elsewhere = os.path.dirname(os.__file__), "/usr/lib/python3/dist-packages"
        for name, folder, is_foreign in (
            ("_distributors_own", beside, False),
            ("some_library", elsewhere, True),
            ("sitecustomize", beside, True),
        ):
            module = ModuleType(name)
            module.__file__ = f"{folder}/{name}.py"
            with self.subTest(name), mock.patch.dict(sys.modules, {name: module}):
                finding = next(doctor.examine("/dev/null"))
                self.assertEqual(("python", is_foreign), (finding.check, name in finding.text))


class TestOutput(Patient):
    def run_doctor(self, *argv: str, **environ: str) -> tuple[int, str]:
        environ |= {"KRAKENBOT_EXCHANGE_URL": "http://127.0.0.1:1"}
        done = call("--config", "/dev/null", "doctor", *argv, **self.environ | environ)
        return done.code, done.out

    def test_json_is_one_list_of_objects_and_a_fail_is_exit_code_one(self) -> None:
        code, out = self.run_doctor("--json")
        findings = json.loads(out)
        self.assertEqual(1, code)
        self.assertEqual(NAMES, [finding["check"] for finding in findings])
        self.assertEqual({"check", "verdict", "text", "repair"}, set(findings[0]))

    def test_lines_are_at_most_eighty_columns_and_uncolored_in_a_pipe(self) -> None:
        _, out = self.run_doctor(KRAKENBOT_STATE_DIRECTORY=f"{self.folder}/{'long' * 9}")
        self.assertLessEqual(max(map(len, out.splitlines())), 80)
        self.assertNotIn("\x1b", out)
        self.assertIn("\n               -> ", out)

    def test_color_touches_the_verdict_only(self) -> None:
        finding = doctor.Finding("clock", "fail", "slow", "wind it up")
        plain, colored = doctor.shown(finding, False), doctor.shown(finding, True)
        self.assertEqual(plain, colored.replace("\x1b[31m", "").replace("\x1b[0m", ""))
        self.assertNotEqual(plain, colored)

    def test_text_from_outside_cannot_drive_the_terminal(self) -> None:
        answer = ("ok", "a\x1b[2J\nok   b")
        with mock.patch.object(doctor, "CHECKS", (("x", lambda _: answer, "", ""),)):
            (finding,) = doctor.examine(None)
        self.assertEqual(r"a\x1b[2J\nok   b", finding.text)
