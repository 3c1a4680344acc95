"""The program in a process of its own, on an exchange whose requests are kept and may be changed.

The exchange's clock and the bot's run equally fast, so that waiting for minutes takes a moment.
"""

import contextlib
import json
import multiprocessing
import os
import select
import signal
import sys
import time
import unittest
from collections.abc import Callable, Mapping
from decimal import Decimal as D
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from krakenbot import cli, log, market
from krakenbot.simulated import http as server
from krakenbot.simulated.http import Server
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.wire import Answer
from tests.commands.called import Done
from tests.folders import own_folder
from tests.markets import begin_candle, close_after

SIGNS_MAX_S = 60.0  # The exchange's own limit of requests may hold up a row of starts.
# Waits for the exchange are short; its answer and an order may take a real second all the same.
SPEED, TIMEOUT_S = 120.0, "120"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "krakenbot.commands.run", "krakenbot.commands.handover"])
KEYS = {"KRAKEN_API_KEY": SANDBOX_KEY, "KRAKEN_API_SECRET": SANDBOX_SECRET}
LIVE = KEYS | {
    "KRAKENBOT_MODE": "live",
    "KRAKENBOT_ENTRY": "now",
    "KRAKENBOT_SIZE": "0.01",
    "KRAKENBOT_INTERVAL": "240",  # So that no candle ends but by `pass_candle`.
    "KRAKENBOT_RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
}
PAPER = {"KRAKENBOT_ENTRY": "now", "KRAKENBOT_INTERVAL": "240"}


class Gate:
    """An exchange on loopback whose requests are kept, and whose answers may be changed.

    At speed 1 a bot would notice that its host's clock differs once this one's is moved.
    """

    def __init__(self, speed: float = SPEED, key: str = SANDBOX_KEY, secret: str = SANDBOX_SECRET):
        self.speed = speed
        self.sandbox = server.Sandbox("random:5", speed, key=key, secret=secret)
        begin_candle(self.sandbox)
        self.sent: list[tuple[str, dict[str, str]]] = []
        self.edit: Callable[[str, bytes], bytes] = lambda path, answer: answer
        self.http = Server(self.respond)
        self.url = self.http.url

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.sent.append((target, dict(parse_qsl(body.decode()))))
        answer = self.sandbox.api.respond(method, target, headers, body)
        return answer._replace(body=self.edit(target, answer.body))

    def close(self) -> None:
        self.http.close()
        self.sandbox.close()

    def control(self, name: str, **wish: object) -> Any:
        method, body = ("POST", json.dumps(wish).encode()) if wish else ("GET", b"")
        answer = self.sandbox.api.respond(method, f"/sandbox/{name}", {}, body)
        truth = json.loads(answer.body)
        assert "error" not in truth, truth
        return truth

    def pass_candle(self) -> None:
        self.control("clock", advance=240 * 60)

    @property
    def orders(self) -> Any:
        """Return the orders that the exchange has executed."""
        return self.control("ledger")["orders"]

    @property
    def position(self) -> D:
        return D(self.control("ledger")["position"].get("XXBTZUSD", "0"))

    @property
    def added(self) -> list[dict[str, str]]:
        """Return the parameters of every AddOrder that arrived."""
        return [body for path, body in self.sent if path.endswith("/AddOrder")]

    @property
    def private(self) -> list[str]:
        return [path for path, _ in self.sent if "/private/" in path]


class Running:
    """A running program, and what it has written so far, which must fit into its pipes.

    It is forked from a server that has imported the program already, which saves most of a start.
    """

    def __init__(self, *what: Any) -> None:
        """`what` are the arguments of `_be` but its output."""
        (self._out, out), (self._err, err) = FORKS.Pipe(False), FORKS.Pipe(False)
        self.process = FORKS.Process(target=_be, args=(*what, out, err))
        self.process.start()
        out.close()
        err.close()
        os.set_blocking(self._err.fileno(), False)
        self.err = ""

    def wait_for(self, words: str) -> None:
        """Wait until standard error shows the words."""
        end = time.monotonic() + SIGNS_MAX_S
        while words not in self.read():
            left = end - time.monotonic()
            if left < 0 or not self.process.is_alive():
                raise AssertionError(f"no {words!r} in:\n{self.read()}")
            select.select([self._err, self.process.sentinel], [], [], left)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def done(self) -> Done:
        self.process.join(SIGNS_MAX_S)
        if self.process.exitcode is None:
            raise AssertionError(f"does not end:\n{self.read()}")
        with open(self._out.fileno(), closefd=False) as out:
            return Done(self.process.exitcode, out.read(), self.read())

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._err.fileno(), 65536):
                self.err += more.decode()
        return self.err

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self._out.close()
        self._err.close()


def _be(
    folder: Path,
    environ: dict[str, str],
    argv: tuple[str, ...],
    before: Callable[[], None] | None,
    *output: Connection,
) -> None:
    """Become the program, as if it had been started from nothing."""
    os.chdir(folder)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Whatever started the tests may ignore it.
    os.environ.clear()
    os.environ.update(environ)
    for number, pipe in enumerate(output, 1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    # What the server had there may have been a file, which can be sought in.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    # Each start meets a clock that has run ahead of the host's, and would wait to believe it.
    market.CLOCK_PAUSE_S = 0.5
    if before is not None:
        before()
    code = cli.main(argv)
    log.flush()
    sys.exit(code)


class ProgramTest(unittest.TestCase):
    """Starts programs, each test in a folder of its own; all of them end with the test."""

    def setUp(self) -> None:
        self.folder = own_folder(self)
        self.state = self.folder / "state"

    def gate(self, speed: float = SPEED, **options: str) -> Gate:
        gate = Gate(speed, **options)
        close_after(self, gate)
        return gate

    def environ(self, gate: Gate | None) -> dict[str, str]:
        environ = {"HOME": str(self.folder), "PATH": os.environ["PATH"]}
        environ["KRAKENBOT_STATE_DIRECTORY"] = str(self.state)
        if gate is not None:
            environ["KRAKENBOT_EXCHANGE_URL"] = gate.url
            environ["KRAKENBOT_EXCHANGE_CLOCK_SPEED"] = f"{gate.speed:g}"
            environ["KRAKENBOT_EXCHANGE_TIMEOUT"] = TIMEOUT_S
        return environ

    def start(
        self, gate: Gate | None, *argv: str, before: Callable[[], None] | None = None, **more: str
    ) -> Running:
        running = Running(self.folder, self.environ(gate) | more, argv, before)
        self.addCleanup(running.close)
        return running

    def run_it(self, gate: Gate | None, *argv: str, **settings: Any) -> Done:
        return self.start(gate, *argv, **settings).done()

    def once(self, gate: Gate, **settings: Any) -> Done:
        """Let a live bot decide on one candle."""
        return self.run_it(gate, "run", "--live", "--once", **settings)

    def decide(self, gate: Gate, **settings: Any) -> None:
        """Let a live bot decide on one candle, with success."""
        self.assert_ends(self.once(gate, **settings), 0)

    def status(self, gate: Gate, **settings: Any) -> Any:
        done = self.run_it(gate, "status", "--json", **settings)
        self.assert_ends(done, 0)
        return json.loads(done.out)

    def journal(self) -> Path:
        (path,) = self.state.glob("*.db")
        return path

    def assert_ends(self, done: Done, code: int, *words: str) -> None:
        self.assertEqual(done.code, code, done.err)
        self.assertNotIn("Traceback", done.err)
        self.assertNotIn(SANDBOX_SECRET, done.err + done.out)
        for word in words:
            self.assertIn(word, done.err)
