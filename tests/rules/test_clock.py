import os
import signal
import threading
import time
import unittest
from collections.abc import Callable
from unittest import mock

from krakenbot.clock import Clock, StopRequestedError


class TestStopping(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))

    def assert_ends_at_once(self, seconds: float = 60) -> None:
        began = time.monotonic()
        self.assertRaises(StopRequestedError, self.clock.wait, seconds)
        self.assertLess(time.monotonic() - began, 2)

    def soon(self, act: Callable[..., object], *arguments: object) -> None:
        timer = threading.Timer(0.05, act, arguments)
        timer.start()
        self.addCleanup(timer.join)

    def test_a_request_to_stop_ends_a_wait_at_once(self) -> None:
        self.soon(self.clock.request_stop)
        with mock.patch("krakenbot.clock.SLICE_S", 0.05):
            self.assert_ends_at_once()

    def test_a_signal_ends_a_wait_at_once(self) -> None:
        self.clock.stop_on_signals()
        self.soon(os.kill, os.getpid(), signal.SIGTERM)
        with mock.patch("krakenbot.clock.SLICE_S", 30):
            self.assert_ends_at_once()

    def test_a_bot_that_was_started_with_nohup_outlives_its_terminal(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.clock.stop_on_signals()
        self.assertIs(signal.SIG_IGN, signal.getsignal(signal.SIGHUP))

    def test_a_request_before_the_wait_is_not_lost_even_for_a_wait_of_nothing(self) -> None:
        self.clock.request_stop()
        self.clock.request_stop()
        for seconds in (60, 0, -5):
            with self.subTest(seconds):
                self.assert_ends_at_once(seconds)

    def test_a_signal_is_heard_by_the_next_wait_and_interrupts_nothing_else(self) -> None:
        self.clock.stop_on_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertEqual(6, sum(range(4)))  # Work between journal and send goes on.
        self.assertTrue(self.clock.signalled)
        self.assert_ends_at_once()

    def test_a_read_after_the_signal_ends_at_once_and_what_ends_the_program_may_read(self) -> None:
        clock = self.clock
        clock.read(True)
        clock.read(False)
        clock.request_stop()
        clock.read(False)
        self.assertRaises(StopRequestedError, clock.read, True)
        clock.read(True)

    def test_a_signal_in_the_middle_of_a_read_ends_it(self) -> None:
        self.clock.stop_on_signals()
        self.clock.read(True)
        self.assertRaises(StopRequestedError, os.kill, os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # A second one interrupts nothing.


class TestTime(unittest.TestCase):
    def test_a_step_of_the_wall_clock_moves_neither_now_nor_monotonic(self) -> None:
        clock = Clock()
        clock.set(1_790_000_000.0)
        before = clock.monotonic()
        for stepped in (0.0, 4e9):
            with mock.patch("time.time", return_value=stepped):
                self.assertAlmostEqual(1_790_000_000.0, clock.now(), delta=1)
                self.assertAlmostEqual(before, clock.monotonic(), delta=1)
                self.assertEqual(stepped, clock.wall())

    def test_without_the_exchange_s_time_the_host_s_is_taken(self) -> None:
        self.assertAlmostEqual(time.time(), Clock().now(), delta=1)

    def test_the_exchange_s_time_goes_on_after_it_was_set(self) -> None:
        clock = Clock()
        clock.set(1000.0)
        clock.wait(0.05)
        self.assertGreater(clock.now(), 1000.04)
        self.assertLess(clock.now(), 1001)

    def test_a_clock_of_a_hundredfold_speed_waits_a_hundredth(self) -> None:
        clock = Clock(100)
        began, before = time.monotonic(), clock.now()
        clock.wait(5)
        self.assertLess(time.monotonic() - began, 1)
        self.assertGreaterEqual(clock.now() - before, 4.9)

    def test_nonces_are_made_of_the_host_s_nanoseconds_whatever_the_exchange_s_time(self) -> None:
        clock = Clock()
        clock.set(0.0)
        self.assertAlmostEqual(time.time_ns(), clock.nonce(), delta=1_000_000_000)
