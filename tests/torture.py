"""A deterministic simulation of everything that can go wrong, all of it from one seed.

    python -m tests.torture --seed 1 --days 1000 --jobs 2
    python -m tests.torture --replay 17

The shipped program, from its commands down to its sockets and files, runs on a simulated machine
against a simulated exchange. An episode is one seed: storms of faults, deaths of the process at
any statement or request, other hands on the account, changes between two starts; and calm between
the storms, in which every finished candle must be decided. `Violation` names the invariant that
does not hold. The rooms are in tests/simulation.
"""

import argparse
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.simulation.episode import episode, episodes, scratch, shrink
from tests.simulation.report import summary


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=float, default=100.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--faults", metavar="NUMBERS", help="replay with these faults alone: 3,17")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="find the fewest faults")
    parser.add_argument("--keep-going", action="store_true", help="show every failure, not one")
    parser.add_argument("--ci", action="store_true", help="fixed seeds for about a minute")
    chosen = parser.parse_args(arguments)
    if chosen.replay is not None or chosen.shrink is not None:
        return _replay(chosen)
    first, days, jobs = chosen.seed, chosen.days, chosen.jobs
    if chosen.ci:
        first, days, jobs = 1, 15.0, os.cpu_count() or 1
    began, done, said, failures = time.monotonic(), 0.0, 0.0, 0
    total: Counter[str] = Counter()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    for result in episodes(first, days, jobs):
        done += result.days
        total += result.counts
        if result.failure:
            print(result.failure, flush=True)
            failures += 1
            if not chosen.keep_going:
                break
        if done - said >= 20:
            said = done
            print(summary(done, total, failures, time.monotonic() - began), flush=True)
        if done >= days or stopped:
            break
    print(summary(done, total, failures, time.monotonic() - began))
    print("\n".join(f"  {name}: {count}" for name, count in sorted(total.items())))
    return 1 if failures else 0


def _replay(chosen: argparse.Namespace) -> int:
    keep = frozenset(map(int, chosen.faults.split(","))) if chosen.faults else None
    with scratch() as folder:
        seed = chosen.replay
        if chosen.shrink is not None:
            seed = chosen.shrink
            least = shrink(seed, Path(folder) / "run", lambda text: print(text, flush=True))
            keep = frozenset(least.struck) if least.failure else None
        result = episode(seed, Path(folder) / "run", keep, show=True)
    if keep is not None:
        numbers = ",".join(map(str, sorted(keep)))
        print(f"again: python -m tests.torture --replay {seed} --faults {numbers}")
    print(f"VIOLATION {result.name}: {result.text}" if result.failure else "no violation")
    return 1 if result.failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
