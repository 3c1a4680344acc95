"""A few seeds of the simulation in every run of the tests; `python -m tests.torture` has more."""

import contextlib
import functools
import math
import unittest
from collections.abc import Iterator
from pathlib import Path

from krakenbot.simulated.faults import parse
from tests import IS_LONG, exhaustive, slow
from tests.folders import own_folder
from tests.simulation.episode import Result, episode, scratch, simulated
from tests.simulation.people import Ended
from tests.simulation.world import World

SEEDS, DAYS_MAX = ((2, 5), math.inf) if IS_LONG else ((2,), 0.05)


@contextlib.contextmanager
def quiet_world(seed: int, **settings: str) -> Iterator[World]:
    """A world in which nothing goes wrong by itself."""
    with scratch() as folder:
        world = World(seed, 1000, Path(folder))
        world.storms.due = float("inf")
        world.settings |= {"LEVERAGE": "2", "ENTRY": "now", **settings}
        with world.machine, simulated(world):
            yield world
        world.close_reader()


def lived(seed: int, keep: frozenset[int] | None = None) -> Result:
    with scratch() as folder:
        return episode(seed, Path(folder) / "run", keep, days_max=DAYS_MAX)


told = functools.cache(lived)


class TestTorture(unittest.TestCase):
    def test_no_promise_is_broken_by_faults_deaths_and_other_hands(self) -> None:
        sent = deaths = 0
        for seed in SEEDS:
            with self.subTest(seed=seed):
                result = told(seed)
                self.assertEqual("", result.failure)
                sent += result.counts["orders sent"]
                deaths += result.counts["deaths"]
        self.assertGreater(sent, 100 if IS_LONG else 10)
        self.assertGreater(deaths, 3 if IS_LONG else 0)

    @slow
    def test_a_seed_tells_the_same_story_twice(self) -> None:
        self.assertEqual(told(SEEDS[0]), lived(SEEDS[0]))

    @slow
    def test_a_story_with_fewer_faults_has_only_these(self) -> None:
        self.assertLessEqual(set(lived(SEEDS[0], frozenset({1, 2, 3})).struck), {1, 2, 3})

    def test_the_order_of_a_lost_journal_is_not_sent_again(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), quiet_world(seed, INTERVAL="15") as world:
                world.people.command("run", "--live", "--accept-costs", "--once")
                world.people.next_loss = "deleted"
                world.pass_time(100)
                world.people.change_journal()
                with contextlib.suppress(Ended):
                    world.people.command("run", "--live", "--accept-costs", "--once")

    def test_adopting_does_not_believe_a_position_older_than_the_last_order(self) -> None:
        for seed in range(5 if IS_LONG else 2):
            with self.subTest(seed=seed), quiet_world(seed) as world:
                world.people.command("run", "--live", "--accept-costs", "--once")
                world.pass_time(12)  # A new candle, and a reading from before the order.
                world.trouble_maker.lag_s = 60.0
                world.people.adopt()
                self.assertLessEqual(abs(world.position()), world.size)

    def test_a_wrong_word_in_a_spec_is_named_with_the_nearest_right_one(self) -> None:
        for spec, said in (
            ("lost-aftr=0.1", "did you mean lost-after"),
            ("lag=61", "from 0 to 60"),
            ("html", "WORD=NUMBER"),
        ):
            with self.subTest(spec), self.assertRaisesRegex(ValueError, said):
                parse(spec)


class TestPairsOfFaults(unittest.TestCase):
    def replay(self, faults: str) -> exhaustive.Outcome:
        return exhaustive.replay(f"two-step:{faults}", own_folder(self) / "run")

    def test_an_order_whose_answer_was_lost_is_found_and_not_sent_again(self) -> None:
        self.assertEqual("on target", self.replay("AddOrder=lost-after").end)

    def test_an_order_that_only_one_view_shows_yet_is_no_trade_of_somebody_else(self) -> None:
        outcome = self.replay("AddOrder=death-after,ClosedOrders=lag")
        self.assertEqual("on target", outcome.end, outcome.text)
