"""`demo`: the whole bot in live mode, real signed requests, against the built-in exchange."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from krakenbot import log as logs
from krakenbot.accounting import read_ledger
from krakenbot.assemble import Parts, assemble
from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError
from krakenbot.commands.page import utc, write
from krakenbot.commands.report import story_of
from krakenbot.commands.status import read_status
from krakenbot.config import Config, ExchangeTable, RiskTable, StrategyTable, load
from krakenbot.format import shows_color
from krakenbot.lock import make_private_directory

EXAMPLE = "krakenbot demo --candles 60 --seed 7"
SIZE = Decimal("0.05")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--candles", type=int, default=120, help="how many to trade on")
    parser.add_argument("--speed", type=float, default=600.0, help="simulated seconds per second")
    parser.add_argument("--seed", type=int, default=1, help="of the random market")


def run(arguments: argparse.Namespace) -> int:
    from krakenbot.simulated import api as server
    from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

    if arguments.candles < 1 or not 1 <= arguments.speed <= 5000:
        print("krakenbot: --candles must be at least 1, --speed from 1 to 5000", file=sys.stderr)
        return 2
    logs.setup("error", "text")
    # Of the user's own settings only the strategy is used, and only of a file named with --config.
    for name in ("CREDENTIALS_DIRECTORY", "KRAKEN_API_KEY_FILE", "KRAKEN_API_SECRET_FILE"):
        os.environ.pop(name, None)
    os.environ["KRAKEN_API_KEY"], os.environ["KRAKEN_API_SECRET"] = SANDBOX_KEY, SANDBOX_SECRET
    # One report, each time in the same place.
    places = {name: os.environ[name] for name in ("HOME", "XDG_STATE_HOME") if name in os.environ}
    home = load("/dev/null", places, Path.cwd()).state_directory if places else Path.cwd()
    report = home / "krakenbot-demo.html"
    strategy = StrategyTable()
    if arguments.config:
        strategy = load(arguments.config, places, Path.cwd()).strategy
    with tempfile.TemporaryDirectory(prefix="krakenbot-demo-") as folder:
        sandbox = server.Sandbox(f"random:{arguments.seed}", arguments.speed)
        try:
            config = Config(
                mode="live",
                size=SIZE,
                strategy=strategy,
                state_directory=Path(folder),
                exchange=ExchangeTable(url=sandbox.url, clock_speed=arguments.speed),
                risk=RiskTable(max_fee_percent_per_day=Decimal(1000)),
            )
            print(
                f"A built-in exchange listens on {sandbox.url}; one second is "
                f"{arguments.speed / 60:g} minutes."
            )
            screen = _Screen(arguments.candles)
            parts = assemble(config, live=True, on_event=screen)
            screen.stop = parts.clock.request_stop
            parts.clock.stop_on_signals()
            began = time.monotonic()
            with suppress(StopRequestedError):
                parts.bot.run()
            _summarise(parts, time.monotonic() - began, report)
        finally:
            sandbox.close()
    return 0


class _Screen:
    """Shows what happens as it happens: every candle on a terminal, orders alone in a pipe."""

    def __init__(self, candles: int) -> None:
        self.left = candles
        self.stop: Callable[[], None] = lambda: None
        self.is_terminal = sys.stdout.isatty()
        if self.is_terminal:
            print("time      price   average  decision                      held     equity")

    def __call__(self, event: Event) -> None:
        row = event.values
        if event.kind == "decision":
            if self.is_terminal:
                self._print(
                    f"{utc(int(row['candle']), '%H:%M')} {row['price']:>9} "
                    f"{Decimal(row['average']):9.1f}  {event.text[:27]:27} "
                    f"{row['held']:>6} {row['equity']:>10}",
                    "0",
                )
            self.left -= 1
            if self.left <= 0:
                self.stop()
        elif event.kind == "fill" and self.is_terminal:
            self._print(f"      {event.text}", "32" if event.text[0] == "b" else "31")
        elif event.kind in ("refusal", "halt", "objection"):
            self._print(f"      {event.kind}: {event.text}", "33")

    def _print(self, text: str, color: str) -> None:
        colored = shows_color(sys.stdout)
        print(f"\x1b[{color}m{text[:80]}\x1b[0m" if colored else text[:80], flush=True)


def _summarise(parts: Parts, seconds: float, report: Path) -> None:
    read_ledger(parts.exchange, parts.journal, parts.clock)
    status = read_status(parts.journal)
    decided = sum(row.done for row in parts.journal.decisions())
    account = parts.journal.account()
    fees, rollover, pnl = account.fees, account.costs - account.fees, Decimal(status["pnl"])
    position = SIZE * parts.exchange.quote().mid
    print(
        f"\n{'Interrupted. ' if parts.clock.signalled else ''}What happened:\n"
        f"  candles decided on    {decided}, in {seconds:.1f} s\n"
        f"  orders sent           {status['orders']}, each once; "
        f"unresolved: {len(status['unresolved'])}\n"
        f"  position now          {status['position']} XBT (target {status['target']:+d})\n"
        f"  won or lost by price  {pnl + fees + rollover:+.2f} USD\n"
        f"  fees                  {-fees:+.2f} USD (0.8 % a trade, the entry tier)\n"
        f"  margin fees           {-rollover:+.2f} USD\n"
        f"  result                {pnl:+.2f} USD, {pnl / position:+.1%} of the position\n"
    )
    if decided:
        share = fees / position / decided * 1440
        print(
            f"At this pace fees alone cost {share:.0%} of the position a day. That is why\n"
            "`interval` should be far longer than a minute with real money: see the README."
        )
    make_private_directory(report.parent)
    write(report, story_of(parts.config, parts.journal))
    print(f"report: {report}")
