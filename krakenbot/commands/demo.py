"""`demo`: the bot in live mode, with signed HTTP requests, against the built-in exchange."""

import argparse
import os
import tempfile
import time
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path

from krakenbot import log as logs
from krakenbot.accounting import Ledger
from krakenbot.assemble import Parts, assemble
from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError
from krakenbot.commands import UsageError
from krakenbot.commands.page import write_page
from krakenbot.commands.report import render, report_of
from krakenbot.commands.screen import Screen
from krakenbot.config import Config, ExchangeTable, RiskTable, StrategyTable
from krakenbot.config_reader import current_folder, load
from krakenbot.format import money, percent, signed, volume
from krakenbot.presence import Presence
from krakenbot.simulated.http import Sandbox
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

EXAMPLE = "krakenbot demo --candles 60 --seed 7"
SIZE = Decimal("0.05")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, "(default %(default)s)"
    add("--candles", type=int, default=120, help=f"how many candles to trade {default}")
    add("--speed", type=float, default=600.0, help=f"simulated seconds per real one {default}")
    add("--seed", type=int, default=1, help=f"seed of the random market {default}")


def run(arguments: argparse.Namespace) -> int:
    if arguments.candles < 1 or not 1 <= arguments.speed <= 5000 or arguments.seed < 0:
        raise UsageError("--candles must be at least 1, --speed from 1 to 5000, --seed 0 or more")
    logs.setup("error", "text")
    report, strategy = _report_and_strategy(arguments.config)
    for name in ("CREDENTIALS_DIRECTORY", "KRAKEN_API_KEY_FILE", "KRAKEN_API_SECRET_FILE"):
        os.environ.pop(name, None)
    os.environ |= {"KRAKEN_API_KEY": SANDBOX_KEY, "KRAKEN_API_SECRET": SANDBOX_SECRET}
    try:
        temporary = tempfile.TemporaryDirectory(prefix="krakenbot-demo-")
    except OSError as error:
        raise UsageError(f"{error.strerror}; set TMPDIR to a folder you may write to") from error
    sandbox = Sandbox(f"random:{arguments.seed}", arguments.speed)
    with temporary as folder, closing(sandbox):
        config = Config(
            mode="live",
            size=SIZE,
            strategy=strategy,
            state_directory=Path(folder),
            exchange=ExchangeTable(url=sandbox.url, clock_speed=arguments.speed),
            risk=RiskTable(max_fee_percent_per_day=Decimal(1000)),
        )
        pace = f"one second is {arguments.speed / 60:g} minutes."
        print(f"A built-in exchange listens on {sandbox.url}; {pace}", flush=True)
        screen, left = Screen(), arguments.candles

        def on_event(event: Event) -> None:
            nonlocal left
            presence(event)
            screen(event)
            left -= event.kind == "decision"
            if left == 0:
                parts.clock.request_stop()

        parts = assemble(config, live=True, on_event=on_event)
        presence = Presence(parts.journal, parts.clock, config.interval * 60)
        began = time.monotonic()
        with suppress(StopRequestedError):
            parts.bot.run()
        logs.flush()
        _summarise(parts, time.monotonic() - began, report)
    return 0


def _report_and_strategy(path: str | None) -> tuple[Path, StrategyTable]:
    """Return the path of the report, the same at each run, and the strategy to trade.

    The report goes to the state folder or, if that cannot be written, to the current one. Of the
    user's settings only the strategy is used, and only from a file given with --config. Raises
    UsageError when neither folder can be written.
    """
    here = current_folder()
    given = {name: os.environ.get(name, "") for name in ("HOME", "XDG_STATE_HOME")}
    places = {name: path for name, path in given.items() if path.startswith("/")}
    home = load("/dev/null", places, here).state_directory if places else here
    strategy = load(path, places, here).strategy if path else StrategyTable()
    for folder in (home, here):
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder / "krakenbot-demo.html", strategy
    raise UsageError(f"the report can be written neither to {home} nor to the current folder")


def _summarise(parts: Parts, seconds: float, path: Path) -> None:
    """Print the result after a run that took `seconds`, and write the report."""
    Ledger(parts.exchange, parts.journal, parts.clock).read(parts.exchange.rules())
    journal, report = parts.journal, report_of(parts.config, parts.journal)
    unresolved = len(journal.open_intents())
    figures = {
        "candles decided on": f"{len(report.points)}, in {seconds:.1f} s",
        "orders sent": f"{journal.orders_since(0)}, each once; unresolved: {unresolved}",
        "position now": volume(journal.account().held, "XBT"),
    }
    figures |= {name: signed(money(amount, "USD")) for name, amount in report.costs.items()}
    print(f"\n{'Interrupted. ' if parts.clock.signalled else ''}The result:")
    for name, text in figures.items():
        print(f"  {name:22}{text}")
    if report.points:
        first, last = report.points[0], report.points[-1]
        days = Decimal(last.time - first.time + 60) / 86400  # A busy machine misses candles.
        share = percent(journal.account().fees / (SIZE * Decimal(last.close)) / days * 100, 0)
        print(
            f"\nAt this pace fees of 0.8 % a trade cost {share} of the position per day.\n"
            "With real money use an `interval` far longer than a minute: krakenbot help costs"
        )
    write_page(path, render(report))
    print(f"report: {path}")
