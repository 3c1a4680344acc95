"""`demo`: the whole bot in live mode, real signed requests, against the built-in exchange."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from krakenbot import config as configuration
from krakenbot import log as logs
from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError
from krakenbot.commands.page import write
from krakenbot.commands.report import story_of
from krakenbot.commands.status import read_status
from krakenbot.parts import Parts, assemble

HELP = "The whole bot against the built-in exchange: no keys, no network, no money."
EXAMPLE = "krakenbot demo --candles 60 --seed 7"
CANDLES = 120
SPEED = 600.0
SIZE = Decimal("0.05")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--candles", type=int, default=CANDLES, help="how many to trade on")
    parser.add_argument("--speed", type=float, default=SPEED, help="simulated seconds per second")
    parser.add_argument("--seed", type=int, default=1, help="of the random market")


def run(arguments: argparse.Namespace) -> int:
    from krakenbot.simulated import server

    if arguments.candles < 1 or not 1 <= arguments.speed <= 5000:
        print("krakenbot: --candles must be at least 1, --speed from 1 to 5000", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="krakenbot-demo-") as folder:
        sandbox = server.start(f"random:{arguments.seed}", arguments.speed)
        try:
            parts = _parts(sandbox.url, arguments.speed, Path(folder), arguments.candles)
            parts.clock.stop_on_signals()
            print(f"A built-in exchange listens on {sandbox.url}; one second is "
                  f"{arguments.speed / 60:g} minutes.")  # fmt: skip
            began = time.monotonic()
            interrupted = False
            try:
                parts.bot.run()
            except StopRequestedError:
                interrupted = parts.clock.signalled
            _summarise(parts, time.monotonic() - began, interrupted)
        finally:
            sandbox.close()
    return 0


def _parts(url: str, speed: float, folder: Path, candles: int) -> Parts:
    """Return a live bot for the sandbox; nothing of the user's own settings or keys is used."""
    from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

    os.environ["KRAKEN_API_KEY"], os.environ["KRAKEN_API_SECRET"] = SANDBOX_KEY, SANDBOX_SECRET
    for name in ("CREDENTIALS_DIRECTORY", "KRAKEN_API_KEY_FILE", "KRAKEN_API_SECRET_FILE"):
        os.environ.pop(name, None)
    logs.setup("error", "text")
    config = configuration.load("/dev/null", {"HOME": str(folder)}, folder)
    config = config._replace(
        mode="live",
        size=SIZE,
        state_directory=folder,
        exchange=config.exchange._replace(url=url, clock_speed=speed),
        risk=config.risk._replace(max_fee_percent_per_day=Decimal(1000)),
    )
    show = _Screen(candles)
    parts = assemble(config, live=True, on_event=show)
    show.stop = parts.clock.request_stop
    return parts


class _Screen:
    """Shows what happens as it happens: every candle on a terminal, orders alone in a pipe."""

    def __init__(self, candles: int) -> None:
        self.left = candles
        self.stop: Callable[[], None] = lambda: None
        self.is_terminal = sys.stdout.isatty()
        self.is_colored = self.is_terminal and not os.environ.get("NO_COLOR")
        if self.is_terminal:
            print("time      price   average  decision                      held     equity")

    def __call__(self, event: Event) -> None:
        if event.kind == "decision":
            if self.is_terminal:
                self._candle(event)
            self.left -= 1
            if self.left <= 0:
                self.stop()
        elif event.kind == "fill" and self.is_terminal:
            self._print(f"      {event.text}"[:80], "32" if event.text[0] == "b" else "31")
        elif event.kind in ("refusal", "halt", "objection"):
            self._print(f"      {event.kind}: {event.text}"[:80], "33")

    def _candle(self, event: Event) -> None:
        row = event.values
        clock = time.strftime("%H:%M", time.gmtime(int(row["candle"])))
        average = f"{Decimal(row['average']):.1f}"
        self._print(
            f"{clock:5} {row['price']:>9} {average:>9}  {event.text[:27]:27} "
            f"{row['held']:>6} {row['equity']:>10}"[:80],
            "0",
        )

    def _print(self, text: str, color: str) -> None:
        print(f"\x1b[{color}m{text}\x1b[0m" if self.is_colored else text, flush=True)


def _summarise(parts: Parts, seconds: float, interrupted: bool) -> None:
    status = read_status(parts.journal)
    decided = next(parts.journal.rows("SELECT count(*) FROM decisions WHERE done"))[0]
    fees, rollover, pnl = (Decimal(status[key]) for key in ("fees", "rollover", "pnl"))
    gross = pnl + fees + rollover
    position = SIZE * parts.exchange.quote().mid
    print()
    print("Interrupted. What happened until then:" if interrupted else "What happened:")
    for name, text in (
        ("candles decided on", f"{decided}, in {seconds:.1f} s"),
        ("orders sent", f"{status['orders']}, each once; unresolved: {len(status['unresolved'])}"),
        ("position now", f"{status['position']} XBT (target {status['target']:+d})"),
        ("won or lost by price", f"{gross:+.2f} USD"),
        ("fees", f"{-fees:+.2f} USD (0.8 % a trade, the entry tier)"),
        ("margin fees", f"{-rollover:+.2f} USD"),
        ("result", f"{pnl:+.2f} USD, {pnl / position * 100:+.1f} % of the position"),
    ):
        print(f"  {name:21} {text}")
    print()
    if decided:
        share = fees / position * 100 / decided * 1440
        print(f"At this pace fees alone cost {share:.0f} % of the position a day. That is why")
        print("`interval` should be far longer than a minute with real money: see the README.")
    handle, name = tempfile.mkstemp(prefix="krakenbot-demo-", suffix=".html")
    os.close(handle)
    write(Path(name), story_of(parts.config, parts.journal))
    print(f"report: {name}")
