"""The whole bot over real sockets that fail: it goes on, sends nothing twice, and gets there."""

import os
import random
import socket
import unittest
from decimal import Decimal
from itertools import count, pairwise, product
from pathlib import Path
from urllib.parse import parse_qs

from krakenbot.bot import Bot
from krakenbot.clock import StopRequestedError
from krakenbot.commands.views import decisions
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal
from krakenbot.kraken.counter import DECAY, POINTS, RestCounter
from krakenbot.kraken.spot import Spot
from krakenbot.kraken.transport import UrllibTransport
from tests import slow
from tests.clients import signing
from tests.folders import own_folder
from tests.logs import silence
from tests.ports.test_transport import RESET, Server, answer
from tests.simulation.test_contract import World, plan_of_length, write_candles

SEEDS = int(os.environ.get("TEST_SEEDS", "1"))
KINDS = ("reset", "page", "cut", "empty", "service")
SHARE = 0.1  # Of all requests.
FAULTY, GRACE, CALM = 20, 8, 5  # Candles.
SIZE = plan_of_length(3).size


class Rough(World):
    """A sandbox behind a server that fails a tenth of all requests, and everybody's clock."""

    def __init__(self, path: Path, kinds: tuple[str, ...], seed: int) -> None:
        super().__init__(path, paper=False, direct=True)
        self.kinds, self.random = kinds, random.Random(f"{kinds} {seed}")
        self.calm_from = self.time + 60 * FAULTY
        self.held: dict[int, Decimal] = {}  # By the moment at which a candle ended.
        self.nonces: list[int] = []
        self.counter = self.highest = 0.0
        self.counted = self.time
        self.failed = 0
        self.server = Server(self._serve)

    def close(self) -> None:
        self.server.close()
        super().close()

    def wait(self, seconds: float) -> None:
        for end in range(int(self.time) // 60 + 1, int(self.time + seconds) // 60 + 1):
            book = self.sandbox.api.account.positions.get("XXBTZUSD")
            self.held[60 * end] = book.volume if book else Decimal(0)
        super().wait(seconds)

    def _serve(self, server: Server, connection: socket.socket) -> None:
        head, _, body = server.request(connection).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        if "/private/" in target:
            self._count(target.rsplit("/", 1)[1], int(parse_qs(body)[b"nonce"][0]))
        is_bad = self.time < self.calm_from and self.random.random() < SHARE
        kind = self.random.choice(self.kinds) if is_bad else ""
        self.failed += is_bad
        if kind in ("page", "service") and self.random.random() < 0.5:
            said = b""  # It was not carried out.
        else:
            said = self.sandbox.api.respond(method, target, headers, body).body
        if kind == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        spoiled = {
            "page": answer(b"<html>sorry</html>", status=b"502 Bad Gateway"),
            "cut": answer(said)[: -len(said) // 2],
            "empty": answer(b""),
            "service": answer(b'{"error":["EService:Busy"]}'),
        }
        connection.sendall(spoiled.get(kind, answer(said)))

    def _count(self, method: str, nonce: int) -> None:
        self.nonces.append(nonce)
        if method in ("AddOrder", "CancelOrder"):
            return
        self.counter = max(0.0, self.counter - DECAY * (self.time - self.counted))
        self.counter += POINTS.get(method, 1)
        self.counted, self.highest = self.time, max(self.highest, self.counter)


@slow
class TestRoughWire(unittest.TestCase):
    def setUp(self) -> None:
        silence(self)
        self.folder = own_folder(self)
        self.candles = write_candles(self.folder, 1)

    def bot(self, world: Rough, journal: Journal, nonces: "count[int]") -> Bot:
        """Return a bot as a start makes it: all in it is new but journal, nonces and counter."""
        url = f"http://127.0.0.1:{world.server.port}"
        counter = RestCounter(world, self.folder / f"counter{id(world)}")
        client = signing(UrllibTransport(10), url, world, nonces=nonces, counter=counter)
        return Bot(plan_of_length(3), Spot(client, "XBTUSD", 60), journal, world, "rough")

    def run_through(self, kinds: tuple[str, ...], seed: int) -> tuple[Rough, dict[int, int]]:
        """Let a bot, started twice in a row, trade through the faults and some calm candles.

        Return the targets of its decisions, too.
        """
        world = Rough(self.candles, kinds, seed)
        self.addCleanup(world.close)
        journal, nonces = open_journal(None), count(1)
        self.addCleanup(journal.close)
        for ends in (3, 5, 60 * (FAULTY + GRACE + CALM)):
            world.end = world.time + ends
            with self.assertRaises(StopRequestedError):
                self.bot(world, journal, nonces).run()
        targets = sorted((row.candle, int(row.target)) for row in decisions(journal))
        return world, dict(targets)

    def test_the_bot_goes_on_and_is_on_target_soon_after_the_last_fault(self) -> None:
        for kinds, seed in product((KINDS, *((kind,) for kind in KINDS)), range(SEEDS)):
            with self.subTest(kinds, seed=seed):
                world, targets = self.run_through(kinds, seed)
                self.assertGreater(world.failed, 5)
                self.check_requests(world)
                turns = sum(a != b for a, b in pairwise(targets.values()))
                self.assertGreater(turns, 3)  # Six in the market; faults hide one or two.
                self.assertGreaterEqual(len(world.sandbox.api.orders), turns)
                calm = [end for end in world.held if end >= world.calm_from + 60 * GRACE]
                self.assertGreaterEqual(len(calm), CALM - 1)
                for end in calm:
                    self.assertEqual(targets[end - 120] * SIZE, world.held[end])

    def check_requests(self, world: Rough) -> None:
        self.assertEqual(sorted(set(world.nonces)), world.nonces)
        self.assertLessEqual(world.highest, 14.001)
        orders = [row["cl_ord_id"] for row in world.sandbox.api.orders.values()]
        self.assertEqual(len(set(orders)), len(orders))
