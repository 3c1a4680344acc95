"""Every command of the README does what it says, in the order in which it is read there.

They run in a copy of the program with a home of its own, on an exchange on loopback.
"""

import fcntl
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

from krakenbot.simulated import api as server
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

ROOT = Path(__file__).resolve().parent.parent.parent
COLUMNS = 80
SPEED = 60.0
LIMIT_S = 20.0
DEMO = "python3 -m krakenbot demo"

# Commands that end by themselves, with exit code 0.
ENDING = {
    "python3 -m krakenbot config --example > config.toml",
    "python3 -m krakenbot status",
    "python3 -m krakenbot history orders --since 24h",
    "python3 -m krakenbot history equity --format csv",
    "python3 -m krakenbot report --output report.html",
    "python3 -m krakenbot backtest XBTUSD_60.csv --report backtest.html",
    "python3 -m krakenbot backtest XBTUSD_60.csv --sweep length=10:60:10 interval=60,240",
    "python3 -m krakenbot doctor",
    "install -m 600 /dev/null ~/kraken_api_key",
    "install -m 600 /dev/null ~/kraken_api_secret",
    "export KRAKEN_API_KEY_FILE=~/kraken_api_key KRAKEN_API_SECRET_FILE=~/kraken_api_secret",
    "python3 -m krakenbot flatten --live",
    "python3 -m krakenbot resume",
    "python3 -m krakenbot build --output krakenbot.pyz",
    "python3 -I -S krakenbot.pyz --config /etc/krakenbot/config.toml unit "
    "| sudo tee /etc/systemd/system/krakenbot.service",
}
# Commands that run until a signal, and what they write once they are at work.
LASTING = {
    "python3 -m krakenbot": "(long|short)[:,]",
    "python3 -m krakenbot run --live": "(long|short)[:,]",
    "python3 -m krakenbot sandbox --port 8080 --speed 60": "sandbox listening on http://127.0.0.1:",
}
# What is written differently here, and why.
CHANGED = {
    "| sudo tee /etc/systemd/system/krakenbot.service": "",  # This machine is left as it is.
    "--port 8080": "--port 0",  # The port may be taken.
    "/etc/krakenbot/config.toml unit": "config.toml unit",
}
# Commands that are not run here, and why.
LEFT_OUT = {
    "python3 -m unittest": "these are the tests",
    "bash .ci/run": "it runs these tests and much more",
    "python3 -m tests.torture --seed 1 --days 100": "it has a step of its own in .ci/run",
    "python3 -m tests.benchmarks.tick": "it measures; nothing depends on it",
    "sudo install -D -m 644 krakenbot.pyz /opt/krakenbot/krakenbot.pyz": "needs root",
    "sudo install -D -m 644 config.toml /etc/krakenbot/config.toml": "needs root",
    "sudo install -m 600 ~/kraken_api_key ~/kraken_api_secret /etc/krakenbot/": "needs root",
    "cd /opt/krakenbot": "the line before made it",
    "sudo systemctl daemon-reload": "needs systemd",
    "sudo systemctl enable --now krakenbot": "needs systemd",
    "journalctl -u krakenbot -f": "needs systemd",
}


class TestReadme(unittest.TestCase):
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
        sandbox = server.Sandbox("random:5", SPEED)
        self.addCleanup(sandbox.close)
        self.environ = {
            "HOME": str(self.home),
            "PATH": f"{tools}:{os.environ['PATH']}",
            "KRAKENBOT_EXCHANGE_URL": sandbox.url,
            "KRAKENBOT_EXCHANGE_CLOCK_SPEED": f"{SPEED:g}",
            "TERM": "xterm",
            "TMPDIR": folder.name,
        }
        self.exports: list[str] = []

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
                if command.startswith("export "):
                    self.exports.append(command)
                elif command in LASTING:
                    self.run_until_signal(command, LASTING[command])
                else:
                    self.run_to_its_end(command)
        for made in ("report.html", "backtest.html", "krakenbot.pyz"):
            self.assertGreater((self.clone / made).stat().st_size, 1000, made)
        self.check_demo(demo)

    def prepare(self, command: str) -> None:
        """Do what the README's prose tells the reader to do before a command."""
        if command.startswith("export "):
            (self.home / "kraken_api_key").write_text(SANDBOX_KEY)
            (self.home / "kraken_api_secret").write_text(SANDBOX_SECRET)
        elif command.endswith("run --live"):
            # With one-minute candles the costs would be above the limit.
            text = (self.clone / "config.toml").read_text()
            text = text.replace('\nmode = "paper"', '\nmode = "live"')
            text = text.replace("\ninterval = 1\n", "\ninterval = 240\n")
            (self.clone / "config.toml").write_text(text)

    def arguments(self, command: str) -> list[str]:
        for written, instead in CHANGED.items():
            command = command.replace(written, instead)
        if command.startswith("python3 "):
            command = f"exec {command}"  # So that a signal finds the program.
        return ["bash", "-ec", "\n".join([*self.exports, command])]

    def run_to_its_end(self, command: str) -> None:
        done = subprocess.run(
            self.arguments(command),
            env=self.environ,
            cwd=self.clone,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def run_until_signal(self, command: str, words: str) -> None:
        running = _Terminal(self.arguments(command), self.environ, self.clone)
        try:
            running.wait_for(words)
            running.process.send_signal(signal.SIGTERM)
            self.assertEqual(running.process.wait(LIMIT_S), 0, running.text)
        finally:
            running.close()

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


def _commands() -> list[str]:
    """Return the README's commands in its order: indented lines, and those within sentences."""
    return list(dict.fromkeys(_found((ROOT / "README.md").read_text(encoding="utf-8"))))


def _found(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("    "):
            yield re.split(r"\s+#\s", line)[0].strip()
        else:
            yield from re.findall(r"`(python3 [^`]+)`", line)


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


if __name__ == "__main__":
    unittest.main()
