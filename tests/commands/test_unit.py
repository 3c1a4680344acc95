import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from krakenbot import cli
from krakenbot.commands import install as command
from krakenbot.commands.build import packed
from krakenbot.config import Config, load

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
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def printed(self, *argv: str, **environ: str) -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, {"HOME": "/x", **environ}, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(self.folder),
        ):
            self.assertEqual(0, cli.main([*argv]))
        return out.getvalue(), err.getvalue()

    def test_what_must_be_looked_at_by_a_person_is_not_started_again(self) -> None:
        unit = settings(command.unit(config(), "/etc/krakenbot/config.toml", False))
        self.assertEqual(["on-failure"], unit["Restart"])
        self.assertEqual({"2", "76", "77", "78"}, set(unit["RestartPreventExitStatus"][0].split()))
        self.assertEqual((["notify"], ["main"]), (unit["Type"], unit["NotifyAccess"]))
        self.assertGreater(int(unit["TimeoutStartSec"][0]), 300)

    def test_only_live_mode_says_live_and_paper_mode_asks_for_no_key(self) -> None:
        for mode, live, credentials in (("paper", 0, 1), ("validate", 0, 3), ("live", 1, 3)):
            with self.subTest(mode):
                unit = settings(command.unit(config(KRAKENBOT_MODE=mode), "/c", False))
                self.assertEqual(bool(live), unit["ExecStart"][0].endswith(" --live"))
                self.assertEqual(credentials, len(unit["LoadCredential"]))

    def test_the_template_names_everything_after_its_instance(self) -> None:
        unit = settings(command.unit(config(KRAKENBOT_MODE="live"), "/ignored", True))
        self.assertEqual(
            [
                "config.toml:/etc/krakenbot/%i.toml",
                "kraken_api_key:/etc/krakenbot/%i.kraken_api_key",
                "kraken_api_secret:/etc/krakenbot/%i.kraken_api_secret",
            ],
            unit["LoadCredential"],
        )
        self.assertEqual((["krakenbot"], ["krakenbot"]), (unit["StateDirectory"], unit["User"]))

    def test_the_configuration_named_is_the_one_that_is_loaded(self) -> None:
        (self.folder / "my.toml").write_text("")
        (self.folder / "config.toml").write_text("leverage = 3\n")
        for argv, environ, want in (
            (["--config", "my.toml"], {}, f"{self.folder}/my.toml"),
            ([], {}, f"{self.folder}/config.toml"),
            ([], {"KRAKENBOT_CONFIG": "my.toml"}, f"{self.folder}/my.toml"),
        ):
            with self.subTest(argv):
                out, _ = self.printed(*argv, "unit", **environ)
                self.assertEqual([f"config.toml:{want}"], settings(out)["LoadCredential"])

    def test_a_program_that_the_unit_would_hide_is_told(self) -> None:
        with mock.patch.object(sys, "executable", "/home/me/python"):
            self.assertIn("/home/me/python", self.printed("unit")[1])
        with (
            mock.patch.object(sys, "executable", "/usr/bin/python3"),
            mock.patch.object(command, "home", return_value=Path("/opt/krakenbot")),
        ):
            self.assertEqual("", self.printed("unit")[1])

    def test_odd_paths_survive_systemd_s_quoting(self) -> None:
        self.assertEqual("/opt/k", command._quoted("/opt/k"))
        self.assertEqual('"/opt/a b"', command._quoted("/opt/a b"))
        self.assertEqual("/opt/100%%/$$x", command._quoted("/opt/100%/$x"))
        self.assertEqual(r'"/opt/\"\\"', command._quoted('/opt/"\\'))

    def test_the_command_line_starts_this_program_from_a_clone_and_from_one_file(self) -> None:
        file = self.folder / "krakenbot.pyz"
        file.write_bytes(packed())
        clone = settings(command.unit(config(), "/c", False))["ExecStart"][0]
        printed = subprocess.run(
            [sys.executable, "-I", "-S", str(file), "unit"],
            check=True,
            capture_output=True,
            text=True,
            env={"HOME": "/x"},
        )
        single = settings(printed.stdout)["ExecStart"][0]
        self.assertIn(f"-I -S {file} --config", single)
        for line in (clone, single):
            start = line.partition(" --config")[0]
            done = subprocess.run(
                ["/bin/sh", "-c", f"{start} --version"],
                cwd="/",
                env={},
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertRegex(done.stdout, r"^krakenbot \d", done.stderr)

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


if __name__ == "__main__":
    unittest.main()
