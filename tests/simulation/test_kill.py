"""The real program, killed: SIGKILL at any moment, also around a send, against a real sandbox.

TEST_KILLS says how often; the ledger of the exchange must equal the journal after it.
"""

import http.client
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import unittest
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from krakenbot.simulated.http import Server
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.wire import Answer
from tests import slow
from tests.folders import own_folder

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("TEST_KILLS", "2"))
SPEED = 300
SIZE = Decimal("0.01")
WAIT_MAX_S = 30.0
SETTINGS = {
    "KRAKEN_API_KEY": SANDBOX_KEY,
    "KRAKEN_API_SECRET": SANDBOX_SECRET,
    "KRAKENBOT_MODE": "live",
    "KRAKENBOT_ENTRY": "now",
    "KRAKENBOT_SIZE": str(SIZE),
    "KRAKENBOT_STRATEGY_LENGTH": "2",
    "KRAKENBOT_EXCHANGE_CLOCK_SPEED": str(SPEED),
    "KRAKENBOT_RISK_MAX_ORDERS_PER_DAY": "100000",
    "KRAKENBOT_RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Gate:
    """Stands between bot and sandbox, and kills the bot around the order it is told to.

    `deadly` is "before" (the order is written and sent, and never arrives), "after" (it is
    executed, and the answer never arrives), "late" (the same before the sandbox has answered)
    or nothing.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.deadly = ""
        self.bot: subprocess.Popen[bytes] | None = None
        self.orders = 0
        self.server = Server(self.respond)
        self.url = self.server.url

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        deadly = ""
        if target.endswith("AddOrder"):
            self.orders += 1
            deadly, self.deadly = self.deadly, ""
        if deadly == "before":
            self.kill()
            raise ConnectionResetError
        if deadly == "late":
            self.kill()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_MAX_S)
        try:
            kept = {k: v for k, v in headers.items() if k.lower() not in ("host", "connection")}
            connection.request(method, target, body or None, kept)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if deadly == "after":
            self.kill()
        return Answer(response.status, "application/json", answer)

    def kill(self) -> None:
        if self.bot is not None:
            self.bot.kill()

    def close(self) -> None:
        self.server.close()


@slow
class TestKill(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)
        self.bots: list[subprocess.Popen[bytes]] = []
        options = f"sandbox --port 0 --speed {SPEED} --fee 0.01 --feed random:11"
        self.sandbox = subprocess.Popen(
            [sys.executable, "-m", "krakenbot", *options.split()],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.sandbox.stdout is not None
        self.addCleanup(self.sandbox.stdout.close)
        self.addCleanup(self.sandbox.wait)
        self.addCleanup(self.sandbox.kill)
        self.port = int(self.sandbox.stdout.readline().rpartition(b":")[2])
        self.gate = Gate(self.port)
        self.addCleanup(self.gate.close)
        self.addCleanup(self.end_bots)

    def start(self, *arguments: str, limit: int = 0, **settings: str) -> subprocess.Popen[bytes]:
        def before() -> None:
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        state = {"KRAKENBOT_STATE_DIRECTORY": str(self.folder)}
        bot = subprocess.Popen(
            [sys.executable, "-m", "krakenbot", *(arguments or ("run", "--live"))],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
            | {"KRAKENBOT_EXCHANGE_URL": self.gate.url}
            | SETTINGS
            | state
            | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=before,
        )
        self.bots.append(bot)
        self.gate.bot = bot
        return bot

    def end_bots(self) -> None:
        for bot in self.bots:
            bot.kill()
            bot.communicate()

    def finish(self, bot: subprocess.Popen[bytes]) -> tuple[int, str]:
        _, said = bot.communicate(timeout=WAIT_MAX_S)
        return bot.returncode, said.decode()

    def truth(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_MAX_S)
        self.addCleanup(connection.close)
        connection.request("GET", "/sandbox/ledger")
        result: dict[str, Any] = json.loads(connection.getresponse().read())
        return result

    def rows(self, query: str) -> list[sqlite3.Row]:
        (path,) = self.folder.glob("*.db")
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            connection.row_factory = sqlite3.Row
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def run_until_settled(self) -> None:
        """Let the bot work a while, again where the signal came in the middle of an order."""
        for _ in range(3):
            self.run_a_while()
            if not (unresolved := self.rows("SELECT id FROM intents WHERE outcome IS NULL")):
                break
        self.assertEqual([], unresolved)

    def run_a_while(self) -> None:
        bot, seen = self.start(), len(self.decisions())
        end = time.monotonic() + WAIT_MAX_S
        while time.monotonic() < end:
            time.sleep(0.1)
            self.assertIsNone(bot.poll(), "the bot ended by itself")
            if len(self.decisions()) > seen + 10:
                break
        bot.send_signal(signal.SIGTERM)
        code, said = self.finish(bot)
        self.assertEqual(0, code, said)

    def decisions(self) -> list[sqlite3.Row]:
        try:
            return self.rows("SELECT candle FROM decisions WHERE done")
        except (ValueError, sqlite3.Error):
            return []

    def check_ledger(self) -> int:
        """Compare every order of the exchange with the journal; return how many there are."""
        truth = self.truth()
        intents = {row["id"]: row for row in self.rows("SELECT * FROM intents")}
        held = Decimal(0)
        seen: set[str] = set()
        steps: set[tuple[int, str]] = set()
        for order in truth["orders"]:
            intent = intents[order["cl_ord_id"]]
            self.assertNotIn(intent["id"], seen)
            seen.add(intent["id"])
            for mine, theirs in (("executed", "vol_exec"), ("cost", "cost"), ("fee", "fee")):
                self.assertEqual(Decimal(order[theirs]), Decimal(intent[mine]), dict(intent))
            held += Decimal(order["vol_exec"]) * (1 if intent["side"] == "buy" else -1)
            self.assertLessEqual(abs(held), SIZE, "never beyond size")
            self.assertNotIn((intent["candle"], intent["purpose"]), steps)
            steps.add((intent["candle"], intent["purpose"]))
        for name in intents.keys() - seen:
            self.assertEqual("0", intents[name]["executed"], dict(intents[name]))
        signs = {"buy": 1, "sell": -1}
        known = [signs[row["side"]] * Decimal(row["executed"]) for row in intents.values()]
        self.assertEqual(held, sum(known))
        self.assertEqual(held, Decimal(truth["position"].get("XXBTZUSD", "0")))
        self.assertLessEqual(self.gate.orders, len(intents))
        self.assertEqual("ok", self.rows("PRAGMA integrity_check")[0][0])
        return len(truth["orders"])

    def test_the_ledger_is_exact_however_often_it_is_killed(self) -> None:
        choose = random.Random(KILLS)
        kinds = ["before", "after", "late", "any time"]
        for number in range(KILLS):
            kind = kinds[number % len(kinds)]
            bot = self.start()
            if kind == "any time":
                time.sleep(choose.uniform(0.05, 1.5))
                bot.kill()
            else:
                self.gate.deadly = kind
            code, said = self.finish(bot)
            self.assertEqual(-signal.SIGKILL, code, said)
            self.gate.deadly = ""
        self.run_until_settled()
        self.assertGreaterEqual(self.check_ledger(), KILLS // 2)

    def test_a_full_disk_ends_it_with_76_and_the_ledger_stays_exact(self) -> None:
        code, said = self.finish(self.start(limit=160 * 1024))
        self.assertEqual(76, code, said)
        self.assertIn("the journal cannot be written", said)
        sent = self.gate.orders
        self.run_until_settled()
        self.assertGreater(self.check_ledger(), 0)
        self.assertGreater(self.gate.orders, 0)
        self.assertGreater(len(self.decisions()), 10, sent)

    def test_a_pair_that_the_exchange_does_not_know_ends_with_78(self) -> None:
        code, said = self.finish(self.start(KRAKENBOT_PAIR="FOOUSD"))
        self.assertEqual(78, code, said)
        self.assertIn("'FOOUSD': AssetPairs: EQuery:Unknown asset pair", said)
