"""A rule file as its users have it: a process, its exit code, and what it sent."""

import hashlib
from decimal import Decimal as D

from tests import slow
from tests.commands.program import LIVE, PAPER, ProgramTest
from tests.markets import short_histories

RULE = """
import os

CANDLES = 21

def direction(candles):
    while os.path.exists("hang"):
        pass
    return 1
"""
FILE = {"KRAKENBOT_STRATEGY_NAME": "file", "KRAKENBOT_STRATEGY_FILE": "~/my_rule.py"}


def setUpModule() -> None:
    short_histories()


class RuleTest(ProgramTest):
    def setUp(self) -> None:
        super().setUp()
        self.rule = self.folder / "my_rule.py"
        self.rule.write_text(RULE)


class TestRun(RuleTest):
    def test_it_trades_live_and_status_names_its_bytes(self) -> None:
        gate = self.gate()
        done = self.once(gate, **LIVE, **FILE)
        digest = hashlib.sha256(RULE.encode()).hexdigest()
        self.assert_ends(done, 0, digest)
        self.assertEqual(D("0.01"), gate.position)
        status = self.status(gate, **LIVE, **FILE)
        self.assertEqual((f"my_rule.py {digest}", 1), (status["strategy"], status["target"]))

    @slow
    def test_a_rule_that_fails_its_trial_is_refused_and_nothing_is_sent(self) -> None:
        gate = self.gate()
        for body, words in (
            ("return 1 / 0", "my_rule.py:3: ZeroDivisionError"),
            ("while True: pass", "no answer within 1 s"),
        ):
            self.rule.write_text(f"CANDLES = 21\ndef direction(candles):\n    {body}\n")
            with self.subTest(body):
                self.assert_ends(self.run_it(gate, "run", "--once", **PAPER, **FILE), 78, words)
        self.rule.chmod(0o666)
        done = self.run_it(gate, "run", "--live", **LIVE, **FILE)
        self.assert_ends(done, 78, "chmod go-w")
        self.assertEqual([], gate.added)

    @slow
    def test_a_rule_that_never_answers_halts_in_seconds_and_flatten_needs_none(self) -> None:
        gate = self.gate()
        settings = LIVE | FILE | {"KRAKENBOT_INTERVAL": "1"}  # The next candle comes by itself.
        running = self.start(gate, "run", "--live", **settings)
        running.wait_for("decided")
        (self.folder / "hang").touch()
        done = running.done()
        self.assert_ends(done, 76, "my_rule.py:7: no answer within 5 s", "0.01 XBTUSD stays held")
        self.assertEqual(D("0.01"), gate.position)
        self.rule.write_text("broken")
        done = self.run_it(gate, "flatten", "--live", **settings)
        self.assert_ends(done, 0)
        self.assertEqual(D(0), gate.position)

    @slow
    def test_what_another_rule_wanted_last_is_not_traded_on(self) -> None:
        gate, waiting = self.gate(), PAPER | FILE | {"KRAKENBOT_ENTRY": "next-turn"}
        self.run_it(gate, "run", "--once", **waiting)
        for body, position in (("None", "0"), ("1", "0.0001"), ("None", "0.0001")):
            self.rule.write_text(f"CANDLES = 21\ndef direction(candles): return {body}\n")
            gate.pass_candle()
            self.assert_ends(self.run_it(gate, "run", "--once", **PAPER, **FILE), 0)
            status = self.status(gate, **FILE)
            with self.subTest(body):
                self.assertEqual(position, status["position"])
