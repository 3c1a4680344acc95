"""A real bot whose output nobody reads goes on trading, and ends when it is told to."""

import os
import pty
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

from krakenbot.simulated import http as server
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from tests import slow
from tests.folders import own_folder
from tests.markets import sandbox_for

ROOT = Path(__file__).parent.parent.parent
SPEED = 600


@slow
class TestStuckReader(unittest.TestCase):
    def bot(self, output: int) -> tuple["subprocess.Popen[bytes]", server.Sandbox]:
        sandbox = sandbox_for(self, "random:1", SPEED)
        environ = {
            "HOME": str(own_folder(self)),
            "KRAKEN_API_KEY": SANDBOX_KEY,
            "KRAKEN_API_SECRET": SANDBOX_SECRET,
            "KRAKENBOT_MODE": "live",
            "KRAKENBOT_LOG_LEVEL": "debug",
            "KRAKENBOT_RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
            "KRAKENBOT_EXCHANGE_URL": sandbox.url,
            "KRAKENBOT_EXCHANGE_CLOCK_SPEED": str(SPEED),
        }
        command = [sys.executable, "-m", "krakenbot", "run", "--live"]
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=output)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process, sandbox

    def test_it_goes_on_and_ends_within_seconds_of_the_signal(self) -> None:
        reader, pipe = os.pipe()
        terminal, screen = pty.openpty()
        for descriptor in (reader, pipe, terminal, screen):
            self.addCleanup(os.close, descriptor)
        for output in (pipe, screen):
            os.set_blocking(output, False)
            try:
                while os.write(output, b"x" * 1000):
                    pass
            except BlockingIOError:
                os.set_blocking(output, True)  # As full as a paused pager leaves it.
            bot, sandbox = self.bot(output)
            until = time.monotonic() + 60
            while sandbox.api.requests["OHLC"] < 8 and time.monotonic() < until:
                time.sleep(0.05)
            self.assertGreaterEqual(sandbox.api.requests["OHLC"], 8)
            bot.send_signal(signal.SIGTERM)
            self.assertEqual(0, bot.wait(timeout=10))
