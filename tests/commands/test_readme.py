"""Every command of the README does what it says, in the order in which it is read there.

They run in a copy of the program with a home of its own, on an exchange on loopback.
"""

import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from krakenbot.bot import Bot
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from tests import IS_LONG, slow
from tests.commands.called import call
from tests.markets import sandbox_for, short_histories
from tests.rules import test_floors
from tests.simulation.test_contract import Direct
from tests.simulation.test_identity import FrontDoor

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "krakenbot"
# They hold values, times and texts, wherever an order is.
VALUES = {
    *("assemble.py", "clock.py", "format.py", "kraken/shape.py", "log.py"),
    *("model.py", "pairs.py", "records.py"),
}
COLUMNS = 80
SPEED = 60.0
LIMIT_S = 20.0
DEMO = "python3 -m krakenbot demo"

# Commands that end by themselves, with exit code 0.
ENDING = {
    "python3 -m krakenbot config --example > config.toml",
    "python3 -m krakenbot config",
    "python3 -m krakenbot help",
    "python3 -m krakenbot help strategies",
    "python3 -m krakenbot status",
    "python3 -m krakenbot history orders --since 24h",
    "python3 -m krakenbot report --output report.html",
    "python3 -m krakenbot backtest XBTUSD_60.csv --report backtest.html",
    "python3 -m krakenbot backtest XBTUSD_60.csv --sweep length=10:60:10 interval=60,240",
    "python3 -m krakenbot doctor",
    "install -m 600 /dev/null ~/kraken_api_key",
    "install -m 600 /dev/null ~/kraken_api_secret",
    "python3 -m krakenbot flatten --live",
    "python3 -m krakenbot resume",
    "python3 -m krakenbot build --output krakenbot.pyz",
    "sudo python3 krakenbot.pyz install --systemd",
}
# Commands that run until Ctrl-C, and what they write once they are at work.
LASTING = {
    "python3 -m krakenbot": "(long|short)[:,]",
    "python3 -m krakenbot run --live": "(long|short)[:,]",
    "python3 -m krakenbot status --watch": "STOPPED",
}
# What is written differently here, and why.
CHANGED = {
    # This machine is left as it is; tests/systemd.py does it all in a machine of its own.
    "sudo python3 krakenbot.pyz install": "python3 krakenbot.pyz install --dry-run"
}
# Commands that are not run here, and why.
LEFT_OUT = {
    "python3 -m unittest": "these are the tests",
    "bash .ci/run": "it runs these tests and much more",
    "python3 -m tests.torture --seed 1 --days 100": "it has a step of its own in .ci/run",
    "sudo krakenbot --config /etc/krakenbot/config.toml doctor": "tests/systemd.py runs it",
    "sudo systemctl enable --now krakenbot": "tests/systemd.py runs it",
    "sudo krakenbot --config /etc/krakenbot/config.toml status": "tests/systemd.py runs it",
}
# Configuration that the README's prose asks for before live mode.
LIVE = {
    '\nmode = "paper"': '\nmode = "live"',
    "\ninterval = 1\n": "\ninterval = 240\n",
    "# api_key_file": "api_key_file",
    "# api_secret_file": "api_secret_file",
}
WORDS_MAX = 1500


def setUpModule() -> None:
    short_histories()


class Reader(unittest.TestCase):
    """A home, a copy of the program, and a sandbox in place of Kraken."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="krakenbot-readme-")
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name) / "home"
        self.clone = Path(folder.name) / "clone"
        self.home.mkdir()
        keep_out = shutil.ignore_patterns(".*", "tests", "build", "dist", "*.egg-info")
        shutil.copytree(ROOT, self.clone, ignore=keep_out)
        _write_candles(self.clone / "XBTUSD_60.csv")
        tools = Path(folder.name) / "bin"
        tools.mkdir()
        (tools / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (tools / "python3").chmod(0o755)
        sandbox = sandbox_for(self, "random:5", SPEED)
        self.environ = {
            "HOME": str(self.home),
            "PATH": f"{tools}:{os.environ['PATH']}",
            "KRAKENBOT_EXCHANGE_URL": sandbox.url,
            "KRAKENBOT_EXCHANGE_CLOCK_SPEED": f"{SPEED:g}",
            "TERM": "xterm",
            "TMPDIR": folder.name,
        }
        self.exports: list[str] = []

    def arguments(self, command: str) -> list[str]:
        for written, instead in CHANGED.items():
            command = command.replace(written, instead)
        if command.startswith("python3 "):
            command = f"exec {command}"  # So that a signal finds the program.
        return ["bash", "-ec", "\n".join([*self.exports, command])]

    def run_to_its_end(self, command: str, code: int = 0) -> str:
        done = subprocess.run(
            self.arguments(command),
            env=self.environ,
            cwd=self.clone,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
        )
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        return done.stdout

    def run_until_signal(self, command: str, words: str) -> None:
        running = _Terminal(self.arguments(command), self.environ, self.clone)
        try:
            running.wait_for(words)
            running.process.send_signal(signal.SIGINT)
            self.assertEqual(running.process.wait(LIMIT_S), 0, running.text)
        finally:
            running.close()


@slow
class TestReadme(Reader):
    def test_every_command_is_known_to_this_test(self) -> None:
        known = {DEMO, *ENDING, *LASTING, *LEFT_OUT}
        self.assertEqual(known, set(_commands()))

    def test_every_command_works_as_written(self) -> None:
        demo = _Terminal(self.arguments(DEMO), self.environ, self.clone)
        self.addCleanup(demo.close)
        for command in _commands():
            if command in LEFT_OUT or command == DEMO:
                continue
            with self.subTest(command):
                self.prepare(command)
                if command in LASTING:
                    self.run_until_signal(command, LASTING[command])
                else:
                    self.run_to_its_end(command)
        for made in ("report.html", "backtest.html", "krakenbot.pyz"):
            self.assertGreater((self.clone / made).stat().st_size, 1000, made)
        self.check_demo(demo)

    def prepare(self, command: str) -> None:
        """Do what the README's prose tells the reader to do before a command."""
        if command.endswith("doctor"):
            (self.home / "kraken_api_key").write_text(SANDBOX_KEY)
            (self.home / "kraken_api_secret").write_text(SANDBOX_SECRET)
            text = (self.clone / "config.toml").read_text()
            for written, instead in LIVE.items():
                text = text.replace(written, instead)
            (self.clone / "config.toml").write_text(text)

    def check_demo(self, demo: "_Terminal") -> None:
        for _ in range(3):
            demo.wait_for(r"(long|short): ")
        demo.process.send_signal(signal.SIGINT)
        self.assertEqual(demo.process.wait(LIMIT_S), 0, demo.text)
        demo.close()
        lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", demo.text).splitlines()
        self.assertGreater(len(lines), 10)
        report = [line for line in lines if line.startswith("report: ")]
        self.assertEqual(
            [f"report: {self.home}/.local/state/krakenbot/krakenbot-demo.html"], report
        )
        self.assertEqual([line for line in lines if len(line) > COLUMNS and line not in report], [])
        for words in ("candles decided on", "orders sent", "fees", "result"):
            self.assertIn(words, "\n".join(lines))
        # A reversal's two orders are told apart.
        self.assertEqual(
            {"open"},
            {line.split(":")[0].strip() for line in lines if " 0.05 at" in line} - {"close"},
        )


class _Terminal:
    """A program on a terminal of 80 columns, and all that it wrote there."""

    def __init__(self, arguments: list[str], environ: dict[str, str], folder: Path) -> None:
        self._master, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            arguments,
            env=environ,
            cwd=folder,
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
        )
        os.close(child)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, words: str) -> None:
        """Wait until the program has written what the pattern describes."""
        end = time.monotonic() + LIMIT_S
        while not re.search(words, self.text):
            if time.monotonic() > end or not self._reader.is_alive():
                raise AssertionError(f"no {words!r} in:\n{self.text}")
            time.sleep(0.02)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(LIMIT_S)
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _read(self) -> None:
        raw = b""
        try:
            while chunk := os.read(self._master, 65536):
                raw += chunk
                self.text = raw.decode("utf-8", "replace")
        except OSError:
            return  # The program, and with it the other side of the terminal, is gone.


@slow
class TestRehearsal(Reader):
    """The recipe of the manual's page about the sandbox, in its three terminals."""

    @unittest.skipUnless(shutil.which("curl"), "the recipe uses curl")
    def test_it_leads_from_nothing_to_a_safety_stop(self) -> None:
        page = (ROOT / "krakenbot/manual/sandbox.md").read_text(encoding="utf-8")
        recipe = page.partition("## Rehearse")[2].partition("\n## ")[0]
        sandbox, *rest = _found(recipe)
        self.environ = {k: v for k, v in self.environ.items() if not k.startswith("KRAKENBOT_")}
        exchange = _Terminal(self.arguments(sandbox.replace("8080", "0")), self.environ, self.clone)
        self.addCleanup(exchange.close)
        exchange.wait_for(r"listening on http://127.0.0.1:\d+\s")
        port = re.findall(r"listening on http://127.0.0.1:(\d+)", exchange.text)[0]
        toml = recipe.partition("```toml\n")[2].partition("```")[0].replace("8080", port)
        (self.clone / "rehearsal.toml").write_text(toml)
        self.exports = [command for command in rest if command.startswith("export ")]
        doctor, run, status, liquidate = (c for c in rest if not c.startswith("export "))
        self.run_to_its_end(doctor)
        bot = _Terminal(self.arguments(run), self.environ, self.clone)
        self.addCleanup(bot.close)
        bot.wait_for("(long|short): on target")
        self.assertRegex(self.run_to_its_end(status), r"^RUNNING .*\n(.*\n)*position +-?0.01 XBT")
        self.run_to_its_end(liquidate.replace("8080", port))
        self.assertEqual(76, bot.process.wait(LIMIT_S), bot.text)
        bot.close()
        for words in ("no real money", "size 0.01 XBT, worth ", "journal /", "ended; "):
            self.assertIn(words, bot.text)
        self.assertRegex(" ".join(bot.text.split()), "exchange holds 0 .*journal records -?0.01")


class TestWay(FrontDoor):
    """The README names and counts the files that an order passes, as they run."""

    def test_the_first_thirteen_files_are_the_way_from_a_candle_to_the_wire(self) -> None:
        layout = _readme().partition("## How the code is laid out")[2]
        files = re.findall(r"`([a-z_/]+\.py)`", layout.partition("|---|")[2])[:13]
        found = re.search(r"first thirteen files, ([\d,]+) lines", layout)
        assert found is not None
        counted = [len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in files]
        self.assertEqual(sum(counted), int(found[1].replace(",", "")))
        self.assertEqual({*files} - {"kraken/transport.py"}, self.passed() - VALUES)

    def passed(self) -> set[str]:
        """Return the files that run from a candle's first look to AddOrder, but the transport."""
        ran, passed = set[str](), set[str]()
        work, send = Bot._work, Direct.send  # `tick` also reads the candles and books charges.

        def note(frame: Any, *_: object) -> None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                ran.add(str(path.relative_to(PACKAGE)))

        def noted(bot: Bot, *candle: Any) -> float | None:
            sys.setprofile(note)
            try:
                return work(bot, *candle)
            finally:
                sys.setprofile(None)

        def sending(wire: Direct, method: str, url: str, *rest: Any) -> Any:
            noting = sys.getprofile()
            passed.update(ran if url.endswith("/AddOrder") else ())
            sys.setprofile(None)  # The exchange is not on the way.
            answer = send(wire, method, url, *rest)
            sys.setprofile(noting)
            return answer

        replaced = (
            mock.patch.object(Bot, "_work", noted),
            mock.patch.object(Direct, "send", sending),
        )
        with replaced[0], replaced[1]:
            self.run_once()
        return passed


class TestClaims(unittest.TestCase):
    """What the README and the manual count is counted again."""

    def test_the_readme_has_at_most_its_words(self) -> None:
        self.assertLessEqual(len(_readme().split()), WORDS_MAX)

    def test_it_names_and_counts_the_files_that_can_spend_money(self) -> None:
        path = trading_path()
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in path)
        found = re.search(r"(\d+)\s+files of ([\d,]+) lines", _readme())
        assert found is not None
        self.assertEqual(len(path), int(found[1]))
        self.assertEqual(lines, int(found[2].replace(",", "")))
        layout = _readme().partition("## How the code is laid out")[2]
        for file in path:
            self.assertIn(f"`{file.relative_to(ROOT / 'krakenbot')}`", layout)

    def test_links_lead_to_files_that_are_there(self) -> None:
        for link in re.findall(r"\]\((krakenbot/[^)]+)\)", _readme()):
            self.assertTrue((ROOT / link).exists(), link)

    @unittest.skipIf("TEST_DATA_KRAKEN" not in os.environ, "no recorded candles here")
    def test_turns_a_day_are_those_of_recorded_candles(self) -> None:
        page = (ROOT / "krakenbot/manual/costs.md").read_text(encoding="utf-8")
        rows = re.findall(r"(?m)^\| (\d+) min \| ([\d.]+) \| ([\d.]+) \|", page)
        self.assertEqual(len(COUNTED), len(rows))
        for minutes, turns, percent in rows if IS_LONG else rows[3:]:
            with self.subTest(minutes):
                counted = _turns_per_day(int(minutes), COUNTED[minutes])
                self.assertAlmostEqual(float(turns), counted, delta=counted * 0.05)
                self.assertAlmostEqual(float(percent), counted * 1.62, delta=counted * 0.15)
        self.assertIn(f"about {rows[0][1]} times a day", _readme().replace("\n> ", " "))
        self.assertIn(f"**{rows[0][2]} % of the position", _readme())


COUNTED = {
    "1": "2023-03/XBTUSD_1.csv.gz",
    "5": "2023Q1/XBTUSD_5.csv.gz",
    "15": "2023Q1/XBTUSD_5.csv.gz",
    "60": "2023Q1/XBTUSD_60.csv",
    "240": "2024-2025/XBTUSD_240.csv",
    "1440": "2024-2025/XBTUSD_240.csv",
}


def _turns_per_day(minutes: int, file: str) -> float:
    """Return what `backtest` counts with the default rule and an account that cannot be ruined."""
    path = Path(os.environ["TEST_DATA_KRAKEN"]) / "candles/ohlcvt" / file
    words = f"--config /dev/null backtest {path} --interval {minutes} --balance 1000000000 --json"
    return float(json.loads(call(*words.split(), HOME="/x").out)["turns_per_day"])


def trading_path() -> list[Path]:
    """Return the files of the door, the loop, and all that they import."""
    modules = test_floors.modules()
    found: set[str] = set()
    waiting = ["assemble", "bot", "handover"]
    while waiting:
        name = waiting.pop()
        if name in modules and name not in found:
            found.add(name)
            waiting += test_floors.own(test_floors.imports(modules[name], lazy=False))
    return sorted(ROOT / "krakenbot" / f"{name.replace('.', '/')}.py" for name in found)


def _readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def _commands() -> list[str]:
    """Return the README's commands in its order: indented lines, and those within sentences."""
    return list(dict.fromkeys(_found(_readme())))


def _found(text: str) -> Iterator[str]:
    text = re.sub(r"(?ms)^ *```.*?```$", "", text)  # What is printed, and what stands in files.
    for line in text.splitlines():
        if line.startswith("    "):
            yield re.split(r"\s+#\s", line)[0].strip()
        else:
            yield from re.findall(r"`((?:python3|bash) [^`]+)`", line)


def _write_candles(path: Path) -> None:
    """Write three months of hours in the form of Kraken's downloadable files."""
    dice, price, lines = random.Random(1), 500000, []
    for number in range(2160):
        opened = price
        price += dice.randrange(-3000, 3001)
        high, low = max(opened, price) + dice.randrange(500), min(opened, price) - 400
        prices = ",".join(f"{units / 10:.1f}" for units in (opened, high, low, price))
        lines.append(f"{1_672_531_200 + 3600 * number},{prices},12.5,340\n")
    path.write_text("".join(lines))
