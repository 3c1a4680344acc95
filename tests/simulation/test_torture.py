"""A few seeds of the simulation in every run of the tests; `python -m tests.torture` has more."""

import contextlib
import gc
import tempfile
import unittest
from pathlib import Path

from krakenbot.errors import StopError
from krakenbot.simulated.faults import parse
from tests.torture import SIZE, World, episode

SEEDS = (2, 7)


def setUpModule() -> None:
    gc.freeze()  # The bot collects garbage hourly, which need not walk over all other tests.
    unittest.addModuleCleanup(gc.unfreeze)


class TestTorture(unittest.TestCase):
    def test_no_promise_is_broken_by_faults_deaths_and_other_hands(self) -> None:
        sent = deaths = 0
        with tempfile.TemporaryDirectory() as folder:
            for seed in SEEDS:
                with self.subTest(seed=seed):
                    _, counts, failure = episode(seed, Path(folder))
                    self.assertEqual("", failure)
                    sent += counts["orders sent"]
                    deaths += counts["deaths"]
        self.assertGreater(sent, 100)
        self.assertGreater(deaths, 5)

    def test_the_order_of_a_lost_journal_is_found_minutes_later_and_not_sent_again(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(5):
                with self.subTest(seed=seed):
                    world = World(seed, 1, Path(folder))
                    world.next_event = float("inf")
                    world.plan = world.plan._replace(interval_s=900, entry_now=True, leverage=2)
                    world.setting = world.setting._replace(interval_s=900, leverage=2)
                    world.pass_time(100)
                    world._process(once=True)
                    world.new_journal()
                    world.api.respond(
                        "POST", "/sandbox/position", {}, b'{"pair":"XBTUSD","close":true}'
                    )
                    world.look_at_exchange()
                    world.pass_time(300)
                    with contextlib.suppress(StopError):
                        world._process(once=True)

    def test_adopting_does_not_believe_a_position_older_than_the_last_order(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(10):
                with self.subTest(seed=seed):
                    world = World(seed, 1, Path(folder))
                    world.next_event = float("inf")
                    world.plan = world.plan._replace(entry_now=True, leverage=2, interval_s=60)
                    world.setting = world.setting._replace(leverage=2, interval_s=60)
                    world.pass_time(30)
                    world._process(once=True)
                    world.pass_time(12)  # A new candle, and a reading from before the order.
                    world.faults.lag_s = 60.0
                    world._process(adopt=True, once=True)
                    self.assertLessEqual(abs(world._position()), SIZE)

    def test_a_wrong_word_in_a_spec_is_named_with_the_nearest_right_one(self) -> None:
        for spec, said in (
            ("lost-aftr=0.1", "is lost-after meant"),
            ("lag=61", "0..60"),
            ("html", "WORD=NUMBER"),
        ):
            with self.subTest(spec), self.assertRaisesRegex(ValueError, said):
                parse(spec)

    def test_a_seed_tells_the_same_story_twice(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            once, again = episode(29, Path(folder)), episode(29, Path(folder))
        self.assertEqual(once, again)


if __name__ == "__main__":
    unittest.main()
