"""Deliberate defects, each of which the simulation must find: it must be able to say no.

    python -m unittest tests.mutations      all of them, each where it is known to show
    python -m tests.mutations "an order has no deadline"      one of them

The defects, and what shows each, are in tests/simulation/defects.py. When one no longer shows
there, the second command looks for another place, to be written down instead.
"""

import importlib
import multiprocessing
import os
import re
import sys
import time
import unittest
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

from krakenbot.model import OrderStatus
from tests import exhaustive
from tests.simulation.defects import DEFECTS, SETTINGS
from tests.simulation.episode import episode, scratch
from tests.simulation.world import choose

SEEDS_MAX, PLACES_MAX = 100, 9
KEPT = ("on target", "halted 76", "halted 77")  # How faults end when all invariants hold.
# With these a replacement has failed, not the program.
OWN = ("the simulation works", "no defect")
Where = int | str


def plant(defect: str) -> None:
    """Put the defect into the program of this process."""
    for module_name, name, source in DEFECTS[defect].changes:
        module = importlib.import_module(f"krakenbot.{module_name}")
        *path, last = name.split(".")
        place: Any = attrgetter(".".join(path))(module) if path else module
        names = {**vars(module), "OrderStatus": OrderStatus, "original": getattr(place, last)}
        if source.startswith("def "):
            exec(source, names)
            setattr(place, last, names["defect"])
        else:
            setattr(place, last, eval(source, names))


def verdict(where: Where, defect: str = "") -> str:
    """Return the invariant that does not hold there with the defect; nothing if all of them hold.

    Each call needs a process of its own.
    """
    os.environ["TZ"] = "Asia/Kolkata"  # For a deadline in local time.
    time.tzset()
    if defect:
        plant(defect)
    with scratch() as folder:
        if isinstance(where, int):
            result = episode(where, Path(folder) / "run")
            name, text = result.name, result.text
        else:
            outcome = exhaustive.replay(where, Path(folder) / "run")
            name, text = "" if outcome.end in KEPT else outcome.end, outcome.text
    return f"{name}: {text}" if name and not (defect and name in OWN) else ""


def places(defect: str) -> Iterator[Where]:
    """Yield where the defect may show: the same faults elsewhere, and seeds that can show it."""
    known = DEFECTS[defect].shown_by
    if isinstance(known, str):
        faults = re.sub("#[0-9]+", "", known.partition(":")[2])
        for number in range(1, PLACES_MAX + 1):
            for variant in exhaustive.VARIANTS:
                yield f"{variant}:{faults.replace('=', f'#{number}=', 1)}"
    fits = SETTINGS.get(defect, lambda setting: True)
    seeds = (seed for seed in count(1) if fits(choose(Random(f"{seed} world"), seed)))
    yield from islice(seeds, SEEDS_MAX)


def one_process_each() -> Any:
    return multiprocessing.Pool(os.cpu_count(), maxtasksperchild=1)


def main(words: list[str]) -> int:
    (defect,) = words
    known = DEFECTS[defect].shown_by
    with one_process_each() as pool:
        found = pool.apply(verdict, (known, defect))
    if found:
        print(f"{known}: {found}")
        return 0
    print(f"{known!r} does not show it any more", flush=True)
    looked_at = [*places(defect)]
    with one_process_each() as pool, one_process_each() as checking:
        found_there = pool.imap(partial(verdict, defect=defect), looked_at)
        for where, found in zip(looked_at, found_there, strict=True):
            if found and not checking.apply(verdict, (where,)):
                print(f"to be written down: {where!r}: {found}")
                return 0
    print("nothing found")
    return 1


class TestMutations(unittest.TestCase):
    def test_every_name_that_is_replaced_is_there(self) -> None:
        for defect, (_, changes) in DEFECTS.items():
            for module_name, name, _ in changes:
                with self.subTest(defect):
                    attrgetter(name)(importlib.import_module(f"krakenbot.{module_name}"))

    def test_every_defect_is_found_where_it_is_known_to_show(self) -> None:
        with one_process_each() as pool:
            asked = [(where, defect) for defect, (where, _) in DEFECTS.items()]
            answers = [pool.apply_async(verdict, question) for question in asked]
            for (where, defect), answer in zip(asked, answers, strict=True):
                with self.subTest(defect):
                    found = answer.get()
                    print(f"{defect}: {where}: {found:.100}", flush=True)
                    self.assertTrue(found, "nothing is found")

    def test_nothing_is_found_there_without_the_defect(self) -> None:
        looked_at = [*dict.fromkeys(defect.shown_by for defect in DEFECTS.values())]
        with one_process_each() as pool:
            for where, found in zip(looked_at, pool.imap(verdict, looked_at), strict=True):
                with self.subTest(where):
                    self.assertEqual("", found)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(main(sys.argv[1:]))
    unittest.main()
