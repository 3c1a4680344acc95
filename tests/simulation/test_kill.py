"""The real program, killed: SIGKILL at any moment, also around a send, against a real sandbox.

TEST_KILLS says how often; the ledger of the exchange must equal the journal after it.
"""

import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from functools import partial
from itertools import cycle, islice

from krakenbot.simulated.wire import Answer
from tests import slow
from tests.commands import program
from tests.commands.program import LIVE, ProgramTest, Running

KILLS = int(os.environ.get("TEST_KILLS", "2"))
SPEED = 300.0
SIZE = Decimal(LIVE["KRAKENBOT_SIZE"])
WAIT_MAX_S = 30.0
SETTINGS = LIVE | {
    "KRAKENBOT_INTERVAL": "1",
    "KRAKENBOT_STRATEGY_LENGTH": "2",
    "KRAKENBOT_RISK_MAX_ORDERS_PER_DAY": "100000",
}


class Gate(program.Gate):
    """Kills the bot around the order it is told to.

    `deadly` is "before" (the order is written and sent, and never arrives), "after" (it is
    executed, and the answer never arrives), "late" (the same before the sandbox has answered)
    or nothing.
    """

    deadly = ""
    arrived = 0  # So many orders.
    bot: Running

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        deadly = ""
        if target.endswith("AddOrder"):
            self.arrived += 1
            deadly, self.deadly = self.deadly, ""
        if deadly in ("before", "late"):
            self.bot.process.kill()
        if deadly == "before":
            raise ConnectionResetError
        answer = super().respond(method, target, headers, body)
        if deadly == "after":
            self.bot.process.kill()
        return answer


@slow
class TestKill(ProgramTest):
    def setUp(self) -> None:
        super().setUp()
        self.gate = Gate(SPEED)
        self.addCleanup(self.gate.close)

    def bot(self, *, disk: int = resource.RLIM_INFINITY) -> Running:
        """Start a bot whose files cannot grow larger than `disk`."""
        before = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (disk, disk))
        self.gate.bot = self.start(self.gate, "run", "--live", before=before, **SETTINGS)
        return self.gate.bot

    def rows(self, query: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(f"{self.journal().as_uri()}?mode=ro", uri=True)) as journal:
            journal.row_factory = sqlite3.Row
            return journal.execute(query).fetchall()

    def decisions(self) -> int:
        try:
            return len(self.rows("SELECT candle FROM decisions WHERE done"))
        except (ValueError, sqlite3.Error):
            return 0

    def run_until_settled(self) -> None:
        """Let the bot work a while, again where the signal came in the middle of an order."""
        for _ in range(3):
            bot, seen = self.bot(), self.decisions()
            end = time.monotonic() + WAIT_MAX_S
            while time.monotonic() < end and self.decisions() <= seen + 10:
                time.sleep(0.1)
                self.assertTrue(bot.process.is_alive(), "the bot ended by itself")
            bot.send_signal(signal.SIGTERM)
            self.assert_ends(bot.done(), 0)
            if not (unresolved := self.rows("SELECT id FROM intents WHERE outcome IS NULL")):
                break
        self.assertEqual([], unresolved)

    def check_ledger(self) -> int:
        """Compare every order of the exchange with the journal; return how many there are."""
        intents = {row["id"]: row for row in self.rows("SELECT * FROM intents")}
        held, steps, orders = Decimal(0), set[tuple[int, str]](), self.gate.orders
        for order in orders:
            intent = intents.pop(order["cl_ord_id"])  # It is there once.
            for mine, theirs in (("executed", "vol_exec"), ("cost", "cost"), ("fee", "fee")):
                self.assertEqual(Decimal(order[theirs]), Decimal(intent[mine]), dict(intent))
            held += Decimal(intent["executed"]) * (1 if intent["side"] == "buy" else -1)
            self.assertLessEqual(abs(held), SIZE, "never beyond size")
            self.assertNotIn((intent["candle"], intent["purpose"]), steps)
            steps.add((intent["candle"], intent["purpose"]))
        self.assertEqual({"0"}, {"0", *(intent["executed"] for intent in intents.values())})
        self.assertEqual(held, self.gate.position)
        self.assertLessEqual(self.gate.arrived, len(orders) + len(intents))
        self.assertEqual("ok", self.rows("PRAGMA integrity_check")[0][0])
        return len(orders)

    def test_the_ledger_is_exact_however_often_it_is_killed(self) -> None:
        choose = random.Random(KILLS)
        for kind in islice(cycle(("before", "after", "late", "any time")), KILLS):
            bot = self.bot()
            if kind == "any time":
                time.sleep(choose.uniform(0.05, 1.5))
                bot.process.kill()
            else:
                self.gate.deadly = kind
            self.assert_ends(bot.done(), -signal.SIGKILL)
            self.gate.deadly = ""
        self.run_until_settled()
        self.assertGreaterEqual(self.check_ledger(), KILLS // 2)

    def test_a_full_disk_ends_it_with_76_and_the_ledger_stays_exact(self) -> None:
        done = self.bot(disk=160 * 1024).done()
        self.assert_ends(done, 76, "cannot be written")
        self.run_until_settled()
        self.assertGreater(self.check_ledger(), 0)
        self.assertGreater(self.decisions(), 10)

    def test_a_pair_that_the_exchange_does_not_know_ends_with_78(self) -> None:
        done = self.run_it(self.gate, "run", "--live", **SETTINGS, KRAKENBOT_PAIR="FOOUSD")
        self.assert_ends(done, 78, "'FOOUSD': AssetPairs: EQuery:Unknown asset pair")
