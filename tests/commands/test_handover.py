"""`flatten`, `adopt` and `resume`: what a person is told first, and what is done then."""

import contextlib
import io
import json
import os
import signal
import sqlite3
import sys
import time
import unittest
from collections.abc import Callable
from decimal import Decimal as D
from functools import partial
from types import SimpleNamespace
from unittest import mock

from krakenbot import retry
from krakenbot.clock import Clock
from krakenbot.commands import handover
from krakenbot.commands.preview import describe_trade
from krakenbot.journal_file import open_journal
from krakenbot.lock import Lock
from krakenbot.model import Quote
from krakenbot.presence import Presence, State, is_locked
from tests import slow
from tests.commands.called import Done, Terminal, call
from tests.commands.program import LIVE, Gate, ProgramTest
from tests.commands.test_status import Folder
from tests.markets import short_histories
from tests.rules.test_pairs import rules

UP = {"KRAKENBOT_STRATEGY_NAME": "file", "KRAKENBOT_STRATEGY_FILE": "~/up.py"}
UPWARD = LIVE | UP
SPOT = UPWARD | {"KRAKENBOT_LEVERAGE": "0"}


def setUpModule() -> None:
    short_histories()


class HandoverTest(ProgramTest):
    def setUp(self) -> None:
        super().setUp()
        rule = "CANDLES = 2\ndef direction(candles):\n    return 1\n"
        (self.folder / "up.py").write_text(rule)  # Whatever the market does.

    def elsewhere(self, settings: dict[str, str]) -> dict[str, str]:
        return settings | {"KRAKENBOT_STATE_DIRECTORY": str(self.folder / "elsewhere")}

    def held(self, settings: dict[str, str]) -> Gate:
        """Return an exchange at which the bot has opened its position and does not run."""
        gate = self.gate()
        self.decide(gate, **settings)
        self.assertEqual(1, len(gate.orders))
        return gate

    def flatten(
        self, gate: Gate, settings: dict[str, str], *words: str, ends: int = 0, says: str = ""
    ) -> Done:
        done = self.run_it(gate, "flatten", "--live", *words, **settings)
        self.assert_ends(done, ends, says)
        return done

    def unresolved(self) -> Gate:
        """Return an exchange that executed an order, of which the bot got to know nothing."""
        gate = self.held(UPWARD)
        with contextlib.closing(sqlite3.connect(self.journal())) as journal, journal:
            journal.execute("UPDATE intents SET outcome = NULL, executed = '0'")
            journal.execute("DELETE FROM charges")
        return gate


class TestAdopt(HandoverTest):
    def test_adopting_says_what_it_will_trade_and_changes_nothing_without_yes(self) -> None:
        gate = self.gate()
        gate.control("position", pair="XBTUSD", side="buy", volume="0.02", leverage=2)
        for words in (("adopt",), ("run", "--live", "--once", "--adopt")):
            done = self.run_it(gate, *words, **UPWARD)
            self.assertEqual(2, done.code, done.err)
            self.assertFalse(list(self.state.glob("*.db")))
            self.assertIn("the exchange holds 0.02 XBT, the journal records 0 XBT", done.out)
            self.assertRegex(done.out, r"sell 0\.01 XBT at market, about [\d,.]+ = .* fee about")
            self.assertIn("Nothing was changed", done.out)
        self.assertEqual([], gate.added)

    def test_adopted_at_its_start_the_position_is_what_the_bot_trades_on_from(self) -> None:
        gate = self.gate()
        gate.control("position", pair="XBTUSD", side="buy", volume="0.02", leverage=2)
        gate.pass_candle()  # So that no trade is too new to be looked for.
        words = ("run", "--live", "--once", "--adopt", "--yes")
        self.assert_ends(self.run_it(gate, *words, **UPWARD), 0)
        self.assertEqual((D("0.01"), 1), (gate.position, len(gate.added)))

    def test_with_yes_the_position_is_the_bot_s_own_and_the_command_ends(self) -> None:
        gate = self.gate()
        gate.control("position", pair="XBTUSD", side="buy", volume="0.01", leverage=2)
        done = self.run_it(gate, "adopt", "--yes", **UPWARD)
        self.assert_ends(done, 0)
        self.assertEqual([], gate.added)
        status = self.status(gate, **UPWARD)
        self.assertEqual(D("0.01"), D(status["position"]))

    def test_an_order_whose_end_is_not_known_explains_what_is_held(self) -> None:
        gate = self.unresolved()
        (order_id,) = self.status(gate, **UPWARD)["unresolved"]
        told = f"what became of order {order_id} is not known yet"
        done = self.run_it(gate, "adopt", **UPWARD)
        self.assert_ends(done, 2)
        self.assertIn(f"{told}: it is looked up first", done.out)
        done = self.run_it(gate, "doctor", "--json", **UPWARD)
        (found,) = (row for row in json.loads(done.out) if row["check"] == "position")
        self.assertEqual(("warn", told), (found["verdict"], found["text"].rpartition("; ")[2]))
        self.assertNotIn("close", found["repair"])

    @slow
    def test_coins_that_earn_are_named_and_not_bought_again_unsaid(self) -> None:
        gate = self.held(SPOT)
        account = gate.sandbox.api.account
        account.balances["XBT.F"] = account.balances.pop("XXBT")
        gate.pass_candle()
        done = self.once(gate, **SPOT)
        self.assert_ends(done, 76, "0.01 XBT.F", "do not adopt")
        done = self.run_it(gate, "adopt", **SPOT)
        self.assertIn("XBT.F is in Earn", done.out)
        self.assertEqual(1, len(gate.orders))


class TestFlatten(HandoverTest):
    def test_a_bot_asked_at_its_start_first_finds_out_what_its_journal_does_not_know(self) -> None:
        gate = self.gate()
        self.decide(gate, **SPOT)
        journal, balances = self.journal(), gate.sandbox.api.account.balances
        backup, balances["XXBT"] = journal.read_bytes(), balances["XXBT"] + 1  # Not the bot's.
        self.flatten(gate, SPOT, "--yes")
        for path in self.state.glob(f"{journal.name}*"):
            path.unlink()
        journal.write_bytes(backup)
        gate.pass_candle()  # So that no trade is too new to be looked for.
        self.addCleanup(Lock(journal.with_suffix(".flatten"), "it").close)
        done = self.run_it(gate, "run", "--live", **SPOT)
        self.assert_ends(done, 76, "flattening, as", "does not know")
        self.assertEqual((D(1), 2), (balances["XXBT"], len(gate.orders)))

    def test_it_says_what_it_trades_closes_it_and_leaves_the_bot_halted(self) -> None:
        for settings in (UPWARD, self.elsewhere(SPOT)):
            gate = self.held(settings)
            done = self.flatten(gate, settings)
            self.assertNotIn("any earlier order", done.err, "nothing was sent, and that is proven")
            self.assertRegex(done.out, r"(sell|buy) 0\.01 XBT at market, about [\d,.]+ = ")
            self.assertEqual(2, len(gate.orders))
            done = self.once(gate, **settings)
            self.assert_ends(done, 76, "flattened by hand")
            self.assertIn("flattened by hand", self.run_it(gate, "resume", **settings).out)

    @slow
    def test_on_margin_it_closes_without_looking_back_at_trades(self) -> None:
        gate = self.held(UPWARD)
        for path in self.state.glob("key-*.lock"):
            path.unlink()  # Now nothing proves that the journal is current.
        done = self.flatten(gate, UPWARD)
        self.assertNotIn("waiting", done.err)
        self.assertEqual(0, gate.position)

    @slow
    def test_a_key_that_may_do_too_much_does_not_keep_it_from_closing(self) -> None:
        gate, both = self.held(UPWARD), b'"modify-trades","withdraw-funds"'
        gate.edit = lambda path, answer: answer.replace(b'"modify-trades"', both)
        self.assert_ends(self.once(gate, **UPWARD), 77, "withdraw")
        self.flatten(gate, UPWARD)
        self.assertEqual(0, gate.position)

    @slow
    def test_a_price_that_cannot_be_had_does_not_keep_it_from_closing(self) -> None:
        for leverage, settings in (("2", UPWARD), ("0", SPOT)):
            with self.subTest(leverage=leverage):
                self.state = self.folder / leverage
                gate = self.held(settings)
                gate.edit = lambda path, answer: b"<p>" if "/Ticker" in path else answer
                done = self.flatten(gate, settings)
                self.assertRegex(done.out, r"(sell|buy) 0\.01 XBT at market; its value is ")
                self.assertEqual(2, len(gate.orders))

    @slow
    def test_what_cannot_be_read_after_closing_does_not_deny_it(self) -> None:
        gate = self.held(SPOT)
        gate.edit = lambda path, answer: b"" if path.endswith("/OpenPositions") else answer
        done = self.flatten(gate, SPOT)
        self.assertIn("the bot holds no XBT of its own", done.out)

    @slow
    def test_from_another_folder_it_does_not_report_success_about_an_open_position(self) -> None:
        for leverage, settings in (("2", UPWARD), ("0", SPOT)):
            with self.subTest(leverage=leverage):
                self.state = self.folder / leverage
                gate = self.held(settings)
                done = self.run_it(gate, "flatten", "--live", **self.elsewhere(settings))
                self.assert_ends(done, 76, "nothing was closed", "0.01 XBT", "no journal in")
                self.assertEqual(1, len(gate.orders))
                self.assertFalse(list((self.folder / "elsewhere").glob("*.db")))

    def test_all_closes_the_position_whoever_opened_it(self) -> None:
        gate = self.gate()
        gate.control("position", pair="XBTUSD", side="buy", volume="0.02", leverage=2)
        done = self.flatten(gate, UPWARD, "--all")
        self.assertIn("the exchange holds 0.02 XBT, the journal records 0 XBT", done.out)
        self.assertIn("flatten: sell 0.02 XBT at market", done.out)
        self.assertEqual(0, gate.position)
        self.assertEqual(["true"], [order["reduce_only"] for order in gate.added])

    def test_all_on_margin_refuses_what_was_bought_without_it(self) -> None:
        gate = self.held(SPOT)
        self.flatten(gate, UPWARD, "--all", ends=76, says="0.01 XBT was bought without margin")
        self.assertEqual(1, len(gate.orders))

    def test_a_lockout_while_the_trade_is_described_is_waited_out(self) -> None:
        gate, locked = self.held(UPWARD), [True]

        def edit(path: str, answer: bytes) -> bytes:
            if path.endswith("/TradeVolume") and locked:
                locked.clear()
                return b'{"error":["EGeneral:Temporary lockout"]}'
            return answer

        gate.edit = edit
        done = self.run_it(gate, "flatten", "--live", "--yes", before=_shorten_lockout, **UPWARD)
        self.assert_ends(done, 0)
        self.assertEqual((0, []), (gate.position, locked))

    @slow
    def test_all_never_touches_coins_that_the_bot_did_not_buy(self) -> None:
        gate = self.held(SPOT)
        gate.sandbox.api.account.balances["XXBT"] += 1
        done = self.flatten(gate, SPOT, "--all")
        self.assertIn("no more than what the bot itself bought", done.out)
        self.assertEqual(1, gate.sandbox.api.account.balances["XXBT"])

    @slow
    def test_a_journal_that_went_back_in_time_sells_no_coins_of_somebody_else_s(self) -> None:
        gate = self.held(SPOT)
        before = self.journal().read_bytes()
        self.flatten(gate, SPOT)
        gate.sandbox.api.account.balances["XXBT"] += 1
        self.journal().write_bytes(before)
        self.flatten(gate, SPOT, ends=76, says="trades of XBTUSD that the journal does not know")
        self.assertEqual(2, len(gate.orders))

    @slow
    def test_a_lost_journal_is_no_proof_that_nothing_is_held(self) -> None:
        gate = self.held(SPOT)
        path = self.journal()
        path.unlink()
        open_journal(path).close()  # As a start makes it that ended before it could look.
        done = self.flatten(gate, SPOT, ends=76, says="the journal does not know")
        done = self.run_it(gate, "flatten", "--live", **SPOT)
        self.assertIn("was halted: the exchange shows trades", done.out)
        self.assertIn("owns 0.01 XBT", done.out)

    @slow
    def test_an_order_whose_end_is_not_known_is_asked_about_before_anything_is_said(self) -> None:
        gate = self.unresolved()
        done = self.flatten(gate, UPWARD)
        self.assertIn("sell 0.01 XBT at market", done.out)

    def test_nothing_to_close_here_does_not_hide_what_other_settings_left_held(self) -> None:
        gate = self.held(LIVE)
        for changed, code in (({"KRAKENBOT_PAIR": "ETHUSD"}, 0), ({"KRAKENBOT_MODE": "paper"}, 78)):
            with self.subTest(changed):
                done = self.run_it(gate, "flatten", "--live", **(LIVE | changed))
                self.assert_ends(done, code)
                self.assertRegex(
                    done.out + done.err, "(nothing to close|not run here)\n.*no bot manages it"
                )

    def test_a_bot_that_runs_is_asked_and_acts_within_seconds(self) -> None:
        gate = self.gate()
        bot = self.start(gate, "run", "--live", **UPWARD)
        bot.wait_for("decided")
        self.assertNotEqual(0, gate.position)
        began = time.monotonic()
        done = self.flatten(gate, UPWARD)
        self.assertIn("a running bot holds", done.out)
        self.assertEqual(0, gate.position)
        self.assert_ends(bot.done(), 76, "flattened by hand")
        self.assertLess(time.monotonic() - began, 30)
        status = self.status(gate, **UPWARD)
        self.assertEqual(("0", "flattened by hand"), (status["position"], status["halted"]))

    @slow
    def test_all_closes_what_others_opened_after_the_bot_that_runs_has_ended(self) -> None:
        gate = self.gate()
        bot = self.start(gate, "run", "--live", **UPWARD)
        bot.wait_for("decided")
        gate.control("position", pair="XBTUSD", side="buy", volume="0.02", leverage=2)
        done = self.flatten(gate, UPWARD, "--all")
        self.assertIn("the bot ended with: the exchange holds 0.03", done.out)
        self.assertEqual(0, gate.position)
        bot.done()

    @slow
    def test_a_bot_that_runs_flattens_by_the_pairs_newest_rules(self) -> None:
        gate = self.gate()
        settings = UPWARD | {"KRAKENBOT_LEVERAGE": "5"}
        bot = self.start(gate, "run", "--live", **settings)
        bot.wait_for("decided")
        less = {"leverage_buy": [2, 3], "leverage_sell": [2, 3]}
        gate.sandbox.api.markets.relist("XXBTZUSD", **less)
        self.flatten(gate, settings)
        self.assertEqual(0, gate.position)
        bot.done()

    def test_what_a_bot_leaves_that_ends_when_asked_is_closed_by_the_command(self) -> None:
        gate = self.held(UPWARD)
        done = self.run_it(gate, "flatten", "--live", before=_pretend_that_it_runs, **UPWARD)
        self.assert_ends(done, 0)
        self.assertIn("the bot ended with: no halt; its journal shows 0.01 held", done.out)
        self.assertEqual(0, gate.position)

    def test_what_is_adopted_is_compared_with_what_was_shown(self) -> None:
        parts = mock.MagicMock()
        parts.bot.retry = lambda action, patience_s: action()
        parts.bot.journal.account().held = D("0.01")
        with (
            mock.patch.object(handover, "assemble", return_value=parts),
            mock.patch.object(handover.preview, "adoption", return_value=(D("0.02"), [])),
            mock.patch.object(handover.handover, "adopt") as adopt,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            handover.adopt(mock.MagicMock(), yes=True)
        adopt.assert_called_once_with(parts.bot, D("0.01"), D("0.02"))

    def test_what_waits_for_a_lock_held_by_another_command_says_so(self) -> None:
        gate = self.held(UPWARD)
        lock = Lock(self.journal().with_suffix(".lock"), "it")  # As `adopt` holds it.
        self.addCleanup(lock.close)
        self.flatten(gate, UPWARD, ends=78, says="another krakenbot holds")

    @slow
    def test_a_request_that_nobody_waits_for_any_more_is_none(self) -> None:
        gate = self.held(UPWARD)
        Lock(self.journal().with_suffix(".flatten"), "it").close()
        self.decide(gate, **UPWARD)
        self.assertEqual(1, len(gate.orders))

    def test_a_request_that_somebody_waits_for_outlives_a_restart_of_the_bot(self) -> None:
        gate = self.held(UPWARD)
        self.addCleanup(Lock(self.journal().with_suffix(".flatten"), "it").close)
        done = self.once(gate, **UPWARD)
        self.assert_ends(done, 76, "flattened by hand")
        self.assertEqual((2, 0), (len(gate.orders), gate.position))


class TestAsking(Folder):
    """The command asks a running bot that holds nothing; the test acts as that bot."""

    def setUp(self) -> None:
        super().setUp()
        self.journal.put()
        Presence(self.journal, Clock(), 60)
        self.bot = Lock(self.lock, "the bot", by_bot=True)
        self.addCleanup(self.bot.close)
        self.request = self.path.with_suffix(".flatten")
        self.asked: list[bool] = []
        self.terminal = Terminal()

    def end(self, reason: str = handover.BY_HAND) -> None:
        self.journal.halt(reason)
        self.bot.close()

    def flatten(
        self,
        *words: str,
        sleep: Callable[[], object] | None = None,
        to: io.StringIO | None = None,
        err: io.StringIO | None = None,
    ) -> Done:
        """Run the command; at each of its pauses note whether it asks, and do `sleep`."""

        def pause(_: float) -> None:
            self.asked.append(is_locked(self.request))
            (sleep or self.end)()

        command = ("--config", "/dev/null", "flatten", *words)
        with mock.patch("time.sleep", pause):
            return call(*command, to=to, err=err, **self.environ)

    def answered(self, answer: Callable[[], str], *words: str, **streams: io.StringIO) -> Done:
        """Run the command at a terminal whose person gives this answer."""
        terminal = mock.Mock(isatty=lambda: True, readline=answer)
        terminal.fileno = self.enterContext(open(os.devnull)).fileno  # It can always be read.
        with mock.patch.object(sys, "stdin", terminal):
            return self.flatten(*words, **{"err": self.terminal} | streams)

    def test_a_bot_that_halts_for_another_reason_is_looked_into_first(self) -> None:
        done = self.flatten(sleep=partial(self.end, "the exchange holds 1"))
        self.assertEqual(76, done.code)
        self.assertIn("the bot ended with: the exchange holds 1", done.err)
        self.assertIn("Look into that", done.err)

    def test_a_request_that_nobody_takes_is_withdrawn_and_said(self) -> None:
        with mock.patch.object(handover, "ANSWER_S", 0.5):
            done = self.flatten(sleep=lambda: None)
        self.assertEqual((75, True), (done.code, "did not answer within" in done.err))
        self.assertEqual((True, False), (self.asked[-1], is_locked(self.request)))

    def test_at_a_terminal_nothing_happens_without_a_yes(self) -> None:
        for said in ("", "y\n", "\n"):
            done = self.answered(lambda said=said: said)
            self.assertEqual((2, True), (done.code, "Not confirmed" in done.out), said)
        self.assertEqual([], self.asked)
        self.assertEqual(0, self.answered(lambda: "yes\n").code)
        self.assertEqual([True], self.asked)

    def test_what_is_asked_about_is_shown_before_the_question_also_through_a_pipe(self) -> None:
        pipe = io.StringIO()
        pipe.flush = lambda: self.terminal.write("shown. ")  # type: ignore[method-assign]
        self.answered(lambda: "", to=pipe)
        self.assertIn("shown. Type yes", self.terminal.getvalue())

    def test_where_nobody_sees_a_question_or_yes_is_given_the_command_is_the_answer(self) -> None:
        for words, err in (((), io.StringIO()), (("--yes",), self.terminal)):
            self.assertEqual(0, self.answered(lambda: "", *words, err=err).code)
            self.bot = Lock(self.lock, "the bot", by_bot=True)
        self.assertNotIn("Type yes", self.terminal.getvalue())

    def test_a_signal_ends_the_question_at_once(self) -> None:
        clock = Clock()

        def interrupted() -> str:
            clock.stop_on_signals()
            signal.raise_signal(signal.SIGINT)
            return "yes"

        for number in (signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        with mock.patch.object(handover, "Clock", return_value=clock):
            self.assertEqual(130, self.answered(interrupted).code)
        self.assertEqual([], self.asked)

    def test_a_question_that_nobody_answers_is_not_agreed_to(self) -> None:
        reader, writer = os.pipe()
        with (
            open(reader) as silent,
            open(writer, "w"),
            mock.patch.object(sys, "stdin", mock.Mock(isatty=lambda: True, fileno=silent.fileno)),
            mock.patch.object(handover, "ANSWER_S", 0.0),
        ):
            done = self.flatten(err=self.terminal)
        self.assertEqual((2, True), (done.code, "Not confirmed" in done.out))

    def test_a_command_that_waits_with_another_asks_itself_once_that_has_gone(self) -> None:
        other, asks = Lock(self.request, "it"), list[bool]()

        def sleep() -> None:
            (self.end if asks else other.close)()
            asks.append(is_locked(self.request))

        self.assertEqual(0, self.flatten(sleep=sleep).code)
        self.assertEqual([False, True], asks)

    def test_a_request_ends_once_the_bot_has_begun(self) -> None:
        def sleep() -> None:
            self.journal.put(flatten=handover.BY_HAND)
            if len(self.asked) == 3:
                self.end()

        with mock.patch.object(handover, "LOOK_TURNS", 1):
            done = self.flatten(sleep=sleep)
        self.assertEqual([True, False, False], self.asked)
        self.assertEqual(1, done.out.count("the bot has begun to flatten\n"))

    def test_who_stops_waiting_takes_the_request_back(self) -> None:
        done = self.flatten(sleep=mock.Mock(side_effect=KeyboardInterrupt))
        self.assertEqual((130, [True]), (done.code, self.asked))
        self.assertFalse(is_locked(self.request))


class TestWords(unittest.TestCase):
    def test_a_trade_is_valued_at_the_price_that_it_would_get(self) -> None:
        quote = Quote(D("49999.9"), D("50000.1"))
        exchange = mock.Mock(known_rules=rules, quote=lambda: quote)
        for change, words in (
            (D("0.1"), "buy 0.1 XBT at market, about 50,000.1 = 5,000.01 USD, fee about 40.00 USD"),
            (D("-1"), "sell 1 XBT at market, about 49,999.9 = 49,999.90 USD, fee about 400.00 USD"),
        ):
            text = describe_trade(exchange, "XXBT", D("0.008"), change)
            self.assertEqual(f"{words} at 0.80 %", text)


def _shorten_lockout() -> None:
    retry.LOCKOUT_S = 12.0


def _pretend_that_it_runs() -> None:
    handover.read_life = lambda *_: SimpleNamespace(state=State.RUNNING)  # As until just now.
