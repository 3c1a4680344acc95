import os
import signal
import time
import unittest
from decimal import Decimal, getcontext

from krakenbot.model import Candle, Direction, Signal
from krakenbot.rulefile import Rule, RuleError, load
from tests.folders import own_folder

SLOPE = """
CANDLES = 3

def direction(candles, length=2):
    newest, before = candles[-1].close, candles[-1 - length].close
    return 1 if newest > before else -1 if newest < before else None

def average(candles):
    return sum(candle.close for candle in candles[-2:]) / 2
"""


def candles(*closes: int) -> list[Candle]:
    prices = map(Decimal, closes)
    return [Candle(60 * number, p, p, p, p, Decimal(number)) for number, p in enumerate(prices)]


class RuleTest(unittest.TestCase):
    def setUp(self) -> None:
        self.path = own_folder(self) / "my_rule.py"

    def rule(self, text: str) -> Rule:
        self.path.write_text(text)
        load.cache_clear()
        return load(self.path)

    def answering(self, body: str) -> Rule:
        return self.rule(f"CANDLES = 1\ndef direction(candles):\n    {body}\n")

    def complaint(self, text: str) -> str:
        with self.assertRaises(RuleError) as caught:
            self.rule(text)
        return str(caught.exception)


class TestAnswers(RuleTest):
    def test_one_is_long_minus_one_short_nought_flat_and_none_no_view(self) -> None:
        for text, direction in (
            ("1", Direction.LONG),
            ("-1", Direction.SHORT),
            ("0", Direction.FLAT),
            ("None", None),
        ):
            with self.subTest(text):
                got = self.answering(f"return {text}").signal(candles(5), {})
                self.assertEqual(Signal(direction, Decimal(5), direction or 0), got)

    def test_it_sees_its_newest_candles_oldest_first_and_no_others(self) -> None:
        body = "seen.append([c.time for c in candles]); return 1"
        rule = self.rule(f"CANDLES = 3\nseen = []\ndef direction(candles):\n    {body}\n")
        for count in range(6):
            rule.signal(candles(*range(1, count + 1)), {})
        seen = rule.direction.__globals__["seen"]
        self.assertEqual([[0, 60, 120], [60, 120, 180], [120, 180, 240]], seen)

    def test_a_candle_has_all_its_prices_and_what_was_traded_as_decimals(self) -> None:
        rule = self.answering(
            "(c,) = candles; numbers = (c.open, c.high, c.low, c.close, c.volume); "
            "return int(all(type(n).__name__ == 'Decimal' for n in numbers))"
        )
        self.assertEqual(Direction.LONG, rule.signal(candles(5), {}).direction)

    def test_parameters_arrive_as_keywords_and_the_average_is_shown(self) -> None:
        signals = [self.rule(SLOPE).signal(candles(2, 6, 3), {"length": n}) for n in (1, 2)]
        self.assertEqual([Direction.SHORT, Direction.LONG], [s.direction for s in signals])
        self.assertEqual(Decimal("4.5"), signals[0].average)

    def test_what_a_rule_does_to_the_precision_of_decimals_ends_with_it(self) -> None:
        before = getcontext().prec
        rule = self.answering("import decimal; decimal.getcontext().prec = 3; return 1")
        rule.signal(candles(5), {})
        self.assertEqual(before, getcontext().prec)

    def test_annotations_and_dataclasses_work_in_it(self) -> None:
        self.rule(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass Band:\n    low: float\nCANDLES = 1\n"
            "def direction(candles): return Band(0.5) and 1\n"
        )


class TestRefusals(RuleTest):
    def test_a_file_that_lacks_what_a_rule_must_have_is_refused(self) -> None:
        good = "def direction(candles): return 1\n"
        for text in (
            good,
            f"CANDLES = 0\n{good}",
            f"CANDLES = 701\n{good}",
            f"CANDLES = 2.0\n{good}",
            f"CANDLES = True\n{good}",
            "CANDLES = 2\n",
            "CANDLES = 2\ndirection = 1\n",
            f"CANDLES = 2\naverage = 3\n{good}",
        ):
            with self.subTest(text):
                self.assertIn("my_rule.py", self.complaint(text))

    def test_a_file_that_does_not_run_is_refused_with_its_line(self) -> None:
        for text in ("\n\n1 / 0\n", "\n\ndef (:\n", "\n\nimport nothing_like_it\n"):
            with self.subTest(text):
                self.assertIn("my_rule.py:3: ", self.complaint(text))
        self.assertIn("my_rule.py:2: SystemExit", self.complaint("\nraise SystemExit(0)\n"))

    def test_a_file_or_folder_that_others_may_write_is_refused(self) -> None:
        self.rule(SLOPE)
        for place, mode in (
            (self.path, 0o620),
            (self.path, 0o602),
            (self.path.parent, 0o770),
            (self.path.parent, 0o1777),
        ):
            usual = place.stat().st_mode
            with self.subTest(f"{place.name} {mode:o}"):
                place.chmod(mode)
                self.assertIn("chmod go-w", self.complaint(SLOPE))
            place.chmod(usual)

    def test_a_link_is_as_safe_as_the_folder_it_leads_to(self) -> None:
        folder = own_folder(self)
        target = folder / "rule.py"
        target.write_text(SLOPE)
        self.path.symlink_to(target)
        load(self.path)
        folder.chmod(0o777)
        load.cache_clear()
        self.assertRaises(RuleError, load, self.path)

    def test_what_is_no_file_is_refused_at_once(self) -> None:
        self.assertRaises(RuleError, load, self.path)
        os.mkfifo(self.path)
        self.assertRaises(RuleError, load, self.path)

    def test_a_rule_that_changes_its_mind_about_the_same_candles_is_refused(self) -> None:
        rule = self.rule(
            "CANDLES = 1\nseen = []\n"
            "def direction(candles):\n    seen.append(1)\n    return len(seen) % 2\n"
        )
        with self.assertRaises(RuleError):
            rule.try_on(candles(5), {})
        self.rule(SLOPE).try_on(candles(1, 2, 3, 4), {"length": 1})

    def test_an_unknown_parameter_is_refused(self) -> None:
        with self.assertRaises(RuleError):
            self.rule(SLOPE).try_on(candles(1, 2, 3, 4), {"lenght": 1})


class TestFailures(RuleTest):
    def failure(self, body: str, answer_max_s: float = 5.0) -> str:
        with self.assertRaises(RuleError) as caught:
            self.answering(body).signal(candles(5), {}, answer_max_s)
        return str(caught.exception)

    def test_an_exception_or_another_value_is_said_with_its_line(self) -> None:
        for body, words in (
            ("return 1 / 0", "my_rule.py:3: ZeroDivisionError"),
            ("raise KeyError('x')", "my_rule.py:3: KeyError: 'x'"),
            ("return 2", "returned 2"),
            ("return True", "returned True"),
            ("return 'long'", "returned 'long'"),
            ("return []", "returned []"),
            ("raise SystemExit", "my_rule.py:3: SystemExit"),
        ):
            with self.subTest(body):
                self.assertIn(words, self.failure(body))

    def test_an_average_that_is_no_number_is_a_failure_too(self) -> None:
        for text in ("None", "'x'", "float('nan')", "1 / 0"):
            with self.subTest(text), self.assertRaises(RuleError):
                self.rule(f"{SLOPE}\ndef average(candles): return {text}\n").signal(
                    candles(1, 2, 3), {}
                )

    def test_a_rule_that_never_answers_is_interrupted_whatever_it_catches(self) -> None:
        began = time.monotonic()
        for body in (
            "while True: pass",
            "while True:\n        try: sum(range(99))\n        except: pass",
            "import time; time.sleep(60)",
            "return direction(candles) if candles else 1",
        ):
            with self.subTest(body):
                self.failure(body, 0.05)
        said = self.failure("while True: pass", 0.05)
        self.assertIn("my_rule.py:3: no answer within 0.05 s", said)
        self.assertLess(time.monotonic() - began, 5)

    def test_afterwards_no_alarm_is_left(self) -> None:
        self.failure("while True: pass", 0.05)
        self.answering("return 1").signal(candles(5), {})
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))
        self.assertEqual(signal.SIG_DFL, signal.getsignal(signal.SIGALRM))
