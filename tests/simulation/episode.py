"""One seed from beginning to end; many of them on several processes; the shrinking of one."""

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from krakenbot import clock, lock
from tests.folders import MEMORY
from tests.simulation import world as worlds
from tests.simulation.network import Network
from tests.simulation.people import Ended, attached
from tests.simulation.report import START, Violation
from tests.simulation.world import DAY_S, Over, World

LIVENESS_CANDLES = 6


class Result(NamedTuple):
    """`failure` is empty when all invariants held; `name` is that of the one that did not."""

    seed: int
    days: float
    counts: Counter[str]
    failure: str = ""
    name: str = ""
    text: str = ""
    struck: tuple[int, ...] = ()


def episode(
    seed: int,
    folder: Path,
    keep: frozenset[int] | None = None,
    show: bool = False,
    days_max: float = math.inf,
) -> Result:
    """Live through one seed; with `keep` only the faults of these numbers happen."""
    world = World(seed, 0, folder, keep=keep, show=show)
    days = min(worlds.episode_days(world.setting), days_max)
    world.end = START + days * DAY_S
    failure = name = text = ""
    try:
        with world.machine, simulated(world):
            live(world)
    except Violation as violation:
        name, text = violation.name, violation.text
        lines = (
            f"VIOLATION seed={seed} step={world.steps} day={(world.time - START) / DAY_S:.3f}",
            f"{world.setting} {world.settings}",
            *world.trace.lines(),
            str(violation),
            f"again: python -m tests.torture --replay {seed}",
        )
        failure = "\n".join(lines)
    finally:
        world.close_reader()
    counts = world.counts
    counts.update({f"fault {k}": n for k, n in world.trouble_maker.seen.items() if k})
    counts["steps"] = world.steps
    return Result(seed, days, counts, failure, name, text, tuple(world.storms.struck))


@contextlib.contextmanager
def simulated(world: World) -> Iterator[None]:
    """Put the network and the listeners of the world in place."""
    network = Network(world)
    for name, method in network.methods().items():
        world.machine.replace(socket.socket, name, partialmethod(_called, method))
    world.machine.replace(socket, "getaddrinfo", network.getaddrinfo)
    world.machine.replace(lock, "hold_name", lambda *_: None)  # One bot a machine.
    world.machine.replace(clock, "SLICE_S", 30.0)  # Nobody counts how often it shows that it waits.
    with attached(world), mock.patch.dict(os.environ):
        yield


def _called(self: Any, method: Callable[..., Any], *args: Any) -> Any:
    return method(self, *args)


def live(world: World) -> None:
    """Live until the end; then let all faults stop, and see that everything comes right."""
    people = world.people
    with contextlib.suppress(Over):
        while True:
            people.live()
    world.end = world.storms.due = float("inf")
    world.storms.calm_down()
    world.stop_asked, people.next_loss = False, ""
    world.truth.verify()
    _come_right(world)
    world.end = world.time + world.duty.back_s() + LIVENESS_CANDLES * world.interval_s
    with contextlib.suppress(Over):
        while True:
            people.live()
    world.end = float("inf")
    _last_look(world)


def _come_right(world: World) -> None:
    """Wait until nothing lasts any more, and have a halt looked at."""
    world.pass_time(max(0.0, world.storms.calm_from - world.time) + 1000)
    for _ in range(5):
        try:
            world.people.command("run", "--live", "--accept-costs", "--once")
        except Ended as error:
            world.people.check(error)
            if error.code == 76:
                with contextlib.suppress(Ended):
                    world.people.command("resume")
                if "loss since" in str(error):  # As it should, and it may soon again.
                    return
                world.people.adopt()
            world.pass_time(60)
        else:
            return
    raise Violation("a person can mend it", "five times")


def _last_look(world: World) -> None:
    """With all faults gone: nothing open, no secret, every book the same to the cent."""
    with contextlib.suppress(Ended):
        world.people.command("run", "--live", "--accept-costs", "--once")
    rows = world.raw("SELECT id FROM intents WHERE outcome IS NULL")
    world.expect(not rows, "nothing stays open", str([row[0] for row in rows]))
    world.truth.check_equity_of_journal()
    world.truth.check_no_secret()


def shrink(seed: int, folder: Path, tell: Callable[[str], None]) -> Result:
    """Return the result of this seed with as few faults as still break the same invariant."""
    best = episode(seed, folder)
    size = len(best.struck) // 2 if best.failure else 0
    while size:
        begin = 0
        while begin < len(best.struck):  # Leave out so many at a time.
            fewer = frozenset(best.struck[:begin] + best.struck[begin + size :])
            result = episode(seed, folder, fewer)
            if result.name == best.name:
                best = result
                tell(f"{len(best.struck)} faults still break it")
            else:
                begin += size
        size //= 2
    return best


def _run(function: Callable[[Any, Path], Any], root: str, piece: Any) -> Any:
    gc.collect()
    return function(piece, Path(root) / f"{os.getpid()}")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder as a context, in memory where there is such a thing."""
    return tempfile.TemporaryDirectory(dir=MEMORY, ignore_cleanup_errors=True)


def each(
    function: Callable[[Any, Path], Any], work: Iterable[Any], jobs: int, runs_max: int = 20
) -> Iterator[Any]:
    """Yield what a function makes of each piece of the work and a folder, in several processes.

    A process ends after `runs_max` runs, since each leaves some memory in pieces.
    """
    as_usual = signal.signal, (signal.SIGTERM, signal.SIG_DFL)
    with (
        scratch() as root,
        multiprocessing.Pool(jobs, *as_usual, maxtasksperchild=runs_max) as pool,
    ):
        yield from pool.imap_unordered(partial(_run, function, root), work)


def episodes(first: int, days: float, jobs: int) -> Iterator[Result]:
    """Yield one episode after the other, of at least so many days."""
    return each(episode, range(first, first + int(days * 4) + 1), jobs)
