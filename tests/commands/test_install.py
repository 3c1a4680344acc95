import contextlib
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

from krakenbot.commands import UsageError
from krakenbot.commands import install as command
from krakenbot.config import Config
from krakenbot.config_reader import load
from krakenbot.errors import ConfigError
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal
from krakenbot.lock import Lock
from krakenbot.records import Outcome
from krakenbot.retry import LOCKOUT_S
from tests.commands.called import call
from tests.folders import own_folder
from tests.ports.test_journal import execution, intent

EXPOSURE_MAX = 1.2


def config(**environ: str) -> Config:
    return load("/dev/null", {"HOME": "/x", **environ}, Path("/"))


def settings(text: str) -> dict[str, list[str]]:
    """Return all values of each key of a unit, in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


class TestUnit(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)

    def test_what_must_be_looked_at_by_a_person_is_not_started_again(self) -> None:
        unit = settings(command.unit(config(), "/etc/krakenbot/config.toml", False))
        self.assertEqual(["on-failure"], unit["Restart"])
        self.assertEqual({"2", "76", "77", "78"}, set(unit["RestartPreventExitStatus"][0].split()))
        self.assertEqual((["notify"], ["main"]), (unit["Type"], unit["NotifyAccess"]))
        self.assertGreater(int(unit["TimeoutStartSec"][0]), 300 + LOCKOUT_S)

    def test_only_live_mode_says_live_and_paper_mode_asks_for_no_key(self) -> None:
        for mode, live, credentials in (("paper", 0, 1), ("validate", 0, 3), ("live", 1, 3)):
            with self.subTest(mode):
                unit = settings(command.unit(config(KRAKENBOT_MODE=mode), "/c", False))
                self.assertEqual(bool(live), unit["ExecStart"][0].endswith(" --live"))
                self.assertEqual(credentials, len(unit["LoadCredential"]))

    def test_the_template_names_everything_after_its_instance(self) -> None:
        unit = settings(command.unit(config(KRAKENBOT_MODE="live"), "/ignored", True))
        keys = [f"{name}:/etc/krakenbot/%i.{name}" for name in command.KEYS]
        credentials = ["config.toml:/etc/krakenbot/%i.toml", *keys]
        self.assertEqual(credentials, unit["LoadCredential"])
        self.assertEqual((["krakenbot"], ["krakenbot"]), (unit["StateDirectory"], unit["User"]))

    def test_the_configuration_named_is_the_one_that_is_loaded(self) -> None:
        (self.folder / "my.toml").write_text("")
        mine, home = f"{self.folder}/my.toml", str(self.folder)
        for argv, environ, want in (
            (["--config", "my.toml"], {}, mine),
            (["--config=~/my.toml"], {}, mine),
            ([], {"KRAKENBOT_CONFIG": "my.toml"}, mine),
            ([], {}, "/etc/krakenbot/config.toml"),
        ):
            with self.subTest(argv, **environ):
                with contextlib.chdir(self.folder):
                    done = call(*argv, "unit", HOME=home, **environ)
                self.assertEqual([f"config.toml:{want}"], settings(done.out)["LoadCredential"])

    def test_a_path_with_the_topic_of_the_notices_in_it_is_no_key(self) -> None:
        topic = {"KRAKENBOT_NOTIFY_URL": "https://ntfy.sh/xbt-bot-1"}
        file = "/etc/krakenbot/xbt-bot-1.toml"
        self.assertIn(f"config.toml:{file}", command.unit(config(**topic), file, False))

    def test_a_rule_whose_name_a_service_does_not_take_must_be_renamed(self) -> None:
        for name in ("règle.py", "r:1.py", "r%n.py", "my rule.py", "config.toml", *command.KEYS):
            rule = {"KRAKENBOT_STRATEGY_NAME": "file", "KRAKENBOT_STRATEGY_FILE": f"/r/{name}"}
            with self.subTest(name), self.assertRaisesRegex(ConfigError, f"rename '/r/{name}'"):
                command.unit(config(**rule), "/c", False)

    def test_odd_paths_survive_systemd_s_quoting(self) -> None:
        for path, quoted in (
            ("/opt/k", "/opt/k"),
            ("/opt/a b", '"/opt/a b"'),
            ("/opt/100%/$x", "/opt/100%%/$$x"),
            ('/opt/"\\', r'"/opt/\"\\"'),
        ):
            with self.subTest(path), mock.patch.multiple(sys, executable=path, base_prefix="/opt"):
                (start,) = settings(command.unit(config(), "/c", False))["ExecStart"]
                self.assertTrue(start.startswith(f"{quoted} -I -S "), start)

    def test_it_runs_the_single_file_with_a_python_that_the_service_can_see(self) -> None:
        with (
            mock.patch.object(sys, "executable", "/home/me/python"),
            mock.patch("shutil.which", lambda name: name),
            mock.patch("subprocess.call", return_value=0) as check,
        ):
            start = settings(command.unit(config(), "/c", False))["ExecStart"][0]
            self.assertTrue(start.startswith("/usr/bin/python3 -I -S /opt/krakenbot/krakenbot.pyz"))
            check.return_value = 1  # It is too old.
            with self.assertRaisesRegex(UsageError, "no Python 3.11 or newer outside of /home"):
                command.unit(config(), "/c", False)

    def test_a_python_that_leads_into_a_home_folder_is_none_that_the_service_can_see(self) -> None:
        (self.folder / "home").symlink_to("var")  # As on Fedora's immutable systems.
        (self.folder / "python").symlink_to("home/me/python")
        with (
            mock.patch.object(command, "HIDDEN", (f"{self.folder}/home",)),
            mock.patch("shutil.which", lambda name: name),
            mock.patch("subprocess.call", return_value=0),
        ):
            self.assertEqual(sys.executable, self.python())
            for name, path in (
                ("executable", "python"),
                ("executable", "var/me/python"),
                ("base_prefix", "home/me"),
            ):
                with self.subTest(path), mock.patch.object(sys, name, f"{self.folder}/{path}"):
                    self.assertEqual(command.SYSTEM_PYTHON, self.python())

    def python(self) -> str:
        """Return the interpreter that the unit starts."""
        return settings(command.unit(config(), "/c", False))["ExecStart"][0].split()[0]

    @unittest.skipIf(shutil.which("systemd-analyze") is None, "no systemd here")
    def test_systemd_accepts_it_and_finds_it_hardly_exposed(self) -> None:
        for template in (False, True):
            for mode in ("paper", "live"):
                name = "krakenbot@.service" if template else "krakenbot.service"
                path = self.folder / name
                text = command.unit(config(KRAKENBOT_MODE=mode), "/etc/k/config.toml", template)
                path.write_text(text)
                with self.subTest(name=name, mode=mode):
                    done = self.analyze("verify", str(path).replace("@.", "@xbt."))
                    self.assertEqual(("", "", 0), (done.stdout, done.stderr, done.returncode))
                    done = self.analyze("security", "--offline=true", str(path))
                    exposure = done.stdout.rpartition("service: ")[2].split()[0]
                    self.assertLessEqual(float(exposure), EXPOSURE_MAX)

    def analyze(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["systemd-analyze", *argv], capture_output=True, text=True, timeout=60, check=False
        )


class TestInstall(unittest.TestCase):
    """Into a folder that stands for the whole machine; `systemctl` is only noted."""

    def setUp(self) -> None:
        self.root = own_folder(self)
        self.here = self.root / "here"
        self.here.mkdir()
        self.addCleanup(os.umask, os.umask(0o022))
        places = {
            name: f"{self.root}{getattr(command, name)}"
            for name in ("FOLDER", "STATE", "PROGRAM", "WRAPPER", "UNIT_FILE")
        }
        self.config = Path(places["FOLDER"], "config.toml")
        keys = [f"{places['FOLDER']}/{name}" for name in command.KEYS]
        wanted = dict(zip(command.PLACES, [*keys, places["STATE"]], strict=True))
        self.systemctl = mock.Mock()
        for change in (
            mock.patch.multiple(command, **places, PLACES=wanted),
            mock.patch.object(command, "subprocess", mock.Mock(run=self.systemctl)),
            mock.patch.object(command, "HIDDEN", ()),  # Wherever the Python of these tests is.
            mock.patch("os.geteuid", lambda: 0),
        ):
            change.start()
            self.addCleanup(change.stop)

    def do(self, *argv: str, code: int = 0, **environ: str) -> str:
        with contextlib.chdir(self.here):
            done = call(*argv, HOME=str(self.here), **environ)
        self.assertEqual(code, done.code, done.err)
        return done.out + done.err

    def files(self) -> dict[str, int]:
        return {
            str(path.relative_to(self.root)): path.stat().st_mode & 0o777
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }

    def test_it_puts_six_files_in_place_and_starts_nothing(self) -> None:
        self.do("install", "--systemd")
        got = load(str(self.config), {}, Path("/"))  # It names the places of keys and journal.
        self.assertEqual(Path(command.STATE), got.state_directory)
        self.assertEqual(Path(command.FOLDER, "kraken_api_key"), got.keys.api_key_file)
        self.assertEqual(
            {
                "etc/krakenbot/config.toml": 0o600,
                "etc/krakenbot/kraken_api_key": 0o600,
                "etc/krakenbot/kraken_api_secret": 0o600,
                "etc/systemd/system/krakenbot.service": 0o644,
                "opt/krakenbot/krakenbot.pyz": 0o644,
                "usr/local/bin/krakenbot": 0o755,
            },
            self.files(),
        )
        self.systemctl.assert_called_once_with(["systemctl", "daemon-reload"], check=True)

    def test_the_service_can_read_the_program_whatever_the_umask_of_root(self) -> None:
        folders = [Path(command.PROGRAM).parent, Path(command.PROGRAM).parents[1]]
        os.umask(0o077)
        self.do("install", "--systemd")
        self.assertEqual([0o755] * 2, [folder.stat().st_mode & 0o777 for folder in folders])
        folders[0].chmod(0o700)
        self.do("install", "--systemd")
        self.assertEqual(0o755, folders[0].stat().st_mode & 0o777)

    def test_the_wrapper_runs_the_single_file(self) -> None:
        python = self.root / "my $python"
        python.symlink_to(sys.executable)
        with mock.patch.object(sys, "executable", str(python)):
            self.do("install", "--systemd")
        wrapper = [f"{self.root}/usr/local/bin/krakenbot", "--version"]
        done = subprocess.run(wrapper, capture_output=True, text=True, check=True, env={})
        self.assertRegex(done.stdout, r"^krakenbot \d")

    def test_a_configuration_of_one_s_own_keeps_all_but_these_places(self) -> None:
        (self.here / "config.toml").write_text(
            'mode = "live"\n[keys]\napi_key_file = "~/k"\napi_secret_file = "~/s"\n'
            '[strategy]\nname = "file"\nfile = "my_rule.py"\n'
        )
        (self.here / "my_rule.py").write_text("candles = 1\n")
        self.do("install", "--systemd")
        got = load(str(self.config), {}, Path("/"))
        self.assertEqual(("live", Path(command.STATE)), (got.mode, got.state_directory))
        self.assertEqual(Path(command.FOLDER, "kraken_api_secret"), got.keys.api_secret_file)
        unit = settings(Path(command.UNIT_FILE).read_text())
        self.assertTrue(unit["ExecStart"][0].endswith(" run --live"))
        kept = ("my_rule.py", "kraken_api_key", "kraken_api_secret")
        want = [f"config.toml:{self.config}", *(f"{name}:{command.FOLDER}/{name}" for name in kept)]
        self.assertEqual(want, unit["LoadCredential"])
        self.assertTrue(Path(command.FOLDER, "my_rule.py").exists())

    def test_a_configuration_is_understood_however_its_tables_are_written(self) -> None:
        given = self.here / "config.toml"
        for text in (
            '  [keys]\n\tapi_key_file = "/a"\n\tapi_secret_file = "/b"\n[log]\nlevel = "error"\n',
            '[ keys ]\napi_key_file="/a"\napi_secret_file="/b"\n[\tlog\t]\nlevel = "error"\n',
            '\ufeff[log]\nlevel = "error"\n[state]\ndirectory = "/s"\n[keys]',
            'keys.api_key_file = "/a"\nkeys.api_secret_file = "/b"\nlog.level = "error"',
            '[log]\r\nlevel = "error"\r\n[keys] # mine\r\n  api_key_file = "/a"\r\n'
            '  api_secret_file = "/b"\r\n',
        ):
            with self.subTest(text):
                given.write_text(text, "utf-8", newline="")
                self.do("install", "--systemd")
                got = load(str(self.config), {}, Path("/"))
                found = got.log.level, got.state_directory
                self.assertEqual(("error", Path(command.STATE)), found)
                self.assertEqual(Path(command.FOLDER, "kraken_api_key"), got.keys.api_key_file)
                self.config.unlink()

    def test_a_configuration_only_a_person_can_change_is_told_before_any_writing(self) -> None:
        for text in (
            'keys = {api_key_file = "/a", api_secret_file = "/b"}\n',
            '["keys"]\napi_key_file = "/a"\napi_secret_file = "/b"\n',
            'state = {directory = "/s"}\n',
            'notify.body = """\n[state]\n"""\n',
            'strategy = {name = "file", file = "/r/up.py"}\n',
            '[strategy]\nname = "file"\nfile = """/r/\\\nup.py"""\n',
        ):
            with self.subTest(text):
                (self.here / "config.toml").write_text(text)
                out = self.do("install", "--systemd", code=78)
                self.assertIn("config.toml: cannot insert the service's paths", out)
                self.assertEqual(["here/config.toml"], [*self.files()])

    def test_commands_and_service_use_the_copy_of_a_rule_wherever_it_was(self) -> None:
        (self.here / "rules").mkdir()
        (self.here / "rules/up.py").write_text("CANDLES = 1\n")
        place = Path(command.FOLDER, "up.py")
        for text in (
            '[strategy]\nname = "file"\nfile = "rules/up.py" # mine\n',
            '[strategy]\nname = "file"\nfile = "~/rules/up.py"\nparameters.file = "up"\n',
            f"strategy.name = 'file'\nstrategy.file='{self.here}/rules/up.py'\n",
        ):
            with self.subTest(text):
                (self.here / "config.toml").write_text(text)
                self.do("install", "--systemd")
                self.assertEqual(place, load(str(self.config), {}, Path("/")).strategy.file)
                credentials = settings(Path(command.UNIT_FILE).read_text())["LoadCredential"]
                self.assertEqual(f"up.py:{place}", credentials[1])
                self.assertEqual("CANDLES = 1\n", place.read_text())
                self.config.unlink()

    def test_a_rule_that_must_be_renamed_is_told_before_any_writing(self) -> None:
        text = """[strategy]\nname = "file"\nfile = 'r"\\1.py'\n"""
        for place in (self.here / "config.toml", self.config):
            with self.subTest(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
                (place.parent / 'r"\\1.py').touch()
                before = self.files()
                self.assertIn("rename", self.do("install", "--systemd", code=78))
                self.assertEqual(before, self.files())

    def test_a_configuration_in_the_home_folder_or_named_by_the_variable_is_found(self) -> None:
        (self.here / "my.toml").write_text('pair = "ETHUSD"\n')
        for argv, environ in (
            (["--config=~/my.toml"], {}),
            ([], {"KRAKENBOT_CONFIG": f"{self.here}/my.toml"}),
        ):
            with self.subTest(argv):
                self.do(*argv, "install", "--systemd", **environ)
                self.assertIn('pair = "ETHUSD"', self.config.read_text())
                self.config.unlink()
        self.assertIn("names no file", self.do("--config=", "install", "--systemd", code=78))

    def test_a_pipe_is_no_configuration_to_install(self) -> None:
        pipe = self.here / "pipe.toml"
        os.mkfifo(pipe)
        out = self.do("--config", str(pipe), "install", "--systemd", code=78)
        self.assertIn("pipe.toml: is not a regular file", out)

    def test_a_link_or_pipe_in_the_place_of_a_file_is_replaced_and_a_folder_refused(self) -> None:
        program, other = Path(command.PROGRAM), self.here / "other"
        program.parent.mkdir(parents=True)
        other.write_text("mine")
        for make in (lambda: program.symlink_to(other), lambda: os.mkfifo(program)):
            make()
            self.do("install", "--systemd")
            self.assertTrue(program.is_file() and not program.is_symlink())
            program.unlink()
        self.assertEqual("mine", other.read_text())
        program.mkdir()
        self.assertIn("cannot write", self.do("install", "--systemd", code=2))

    def test_what_is_there_is_kept_and_the_program_is_replaced(self) -> None:
        self.do("install", "--systemd")
        self.config.write_text('pair = "ETHUSD"\n')
        Path(command.FOLDER, "kraken_api_key").write_text("mine")
        Path(command.PROGRAM).write_text("old")
        out = self.do("install", "--systemd")
        self.assertEqual('pair = "ETHUSD"\n', self.config.read_text())
        self.assertEqual("mine", Path(command.FOLDER, "kraken_api_key").read_text())
        self.assertGreater(Path(command.PROGRAM).stat().st_size, 1000)
        self.assertIn(f'should say state.directory = "{command.STATE}"', out)

    def test_a_configuration_that_is_not_taken_over_is_named(self) -> None:
        self.do("install", "--systemd")
        (self.here / "config.toml").write_text('pair = "ETHUSD"\n')
        words = f"keeps {self.config}; config.toml was not read"
        self.assertIn(words, self.do("install", "--systemd"))
        self.assertNotIn("keeps", self.do("--config", str(self.config), "install", "--systemd"))

    def test_a_wrong_configuration_is_told_before_anything_is_written(self) -> None:
        (self.here / "config.toml").write_text("interval = 7\n")
        out = self.do("install", "--systemd", code=78)
        self.assertIn("config.toml: interval = 7", out)
        rule = '[strategy]\nname = "file"\nfile = "lost.py"\n'
        (self.here / "config.toml").write_text(rule)
        self.assertIn("lost.py: No such file", self.do("install", "--systemd", code=78))
        self.assertEqual(["here/config.toml"], [*self.files()])

    def test_a_dry_run_prints_every_step_and_does_none(self) -> None:
        out = self.do("install", "--systemd", "--dry-run")
        for place in (command.PROGRAM, command.WRAPPER, self.config, command.UNIT_FILE):
            self.assertIn(f"write {place} ", out)
        self.assertIn("None of this was done", out)
        self.assertEqual({}, self.files())
        self.systemctl.assert_not_called()

    def test_who_is_not_root_is_told_to_use_sudo(self) -> None:
        with mock.patch("os.geteuid", lambda: 1000):
            self.assertIn("sudo", self.do("install", "--systemd", code=2))

    def test_uninstall_keeps_journal_and_keys(self) -> None:
        self.do("install", "--systemd")
        self.journal().close()
        self.do("uninstall")
        left = [*self.files()]
        self.assertEqual(["etc/krakenbot/config.toml", "etc/krakenbot/kraken_api_key"], left[:2])
        self.assertTrue(any("var/lib/krakenbot/live" in name for name in left))
        self.assertFalse(any("opt/" in name or "usr/" in name for name in left))

    def test_uninstall_with_purge_leaves_nothing(self) -> None:
        self.do("install", "--systemd")
        self.journal().close()
        self.do("uninstall", "--purge")
        self.assertEqual({}, self.files())

    def test_uninstall_refuses_while_something_is_held_or_unresolved(self) -> None:
        self.do("install", "--systemd")
        journal = self.journal()
        journal.write(intent())
        self.assertIn("unresolved orders: 1", self.do("uninstall", "--purge", code=78))
        found = execution(intent(), "0.04", "2800")
        journal.conclude(intent(), Outcome.CLOSED, 1_700_000_000, found)
        self.assertIn("shows 0.04 held", self.do("uninstall", code=78))
        self.assertIn("opt/krakenbot/krakenbot.pyz", self.files())
        journal.close()

    def test_uninstall_refuses_while_a_bot_still_runs_as_one_of_several_pairs(self) -> None:
        self.do("install", "--systemd")
        lock = Lock(Path(command.STATE, "live-api.kraken.com-ETHUSD.lock"), "it")
        self.addCleanup(lock.close)
        self.assertIn("None of this was done", self.do("uninstall", "--dry-run"))
        self.assertIn(f"(pid {os.getpid()})", self.do("uninstall", "--purge", code=78))
        self.assertIn("opt/krakenbot/krakenbot.pyz", self.files())

    def journal(self) -> Journal:
        return open_journal(Path(command.STATE, "live-api.kraken.com-XBTUSD.db"))
