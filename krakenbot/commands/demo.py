"""`demo`: the bot in live mode, with real signed requests, against the built-in exchange."""

import argparse
import os
import tempfile
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from krakenbot import log as logs
from krakenbot.accounting import Ledger
from krakenbot.assemble import Parts, assemble
from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError
from krakenbot.commands import UsageError
from krakenbot.commands.report import report_of
from krakenbot.commands.run_report import write
from krakenbot.commands.screen import Screen
from krakenbot.config import Config, ExchangeTable, RiskTable, StrategyTable, load
from krakenbot.format import money, percent, signed, volume
from krakenbot.presence import Presence

EXAMPLE = "krakenbot demo --candles 60 --seed 7"
SIZE = Decimal("0.05")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--candles", type=int, default=120, help="how many candles to trade")
    parser.add_argument("--speed", type=float, default=600.0, help="simulated seconds per second")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random market")


def run(arguments: argparse.Namespace) -> int:
    from krakenbot.simulated import http as server
    from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

    if arguments.candles < 1 or not 1 <= arguments.speed <= 5000:
        raise UsageError("--candles must be at least 1, --speed from 1 to 5000")
    logs.setup("error", "text")
    report, strategy = _report_and_strategy(arguments.config)
    for name in ("CREDENTIALS_DIRECTORY", "KRAKEN_API_KEY_FILE", "KRAKEN_API_SECRET_FILE"):
        os.environ.pop(name, None)
    os.environ["KRAKEN_API_KEY"], os.environ["KRAKEN_API_SECRET"] = SANDBOX_KEY, SANDBOX_SECRET
    with _temporary_folder() as folder:
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
        finally:
            sandbox.close()
    return 0


def _report_and_strategy(path: str | None) -> tuple[Path, StrategyTable]:
    """Return the path of the report, the same each time, and the strategy to trade.

    The report is in the current folder where the home folder cannot be written. Of the user's
    settings only the strategy is used, and only from a file given with --config.
    """
    places = {name: os.environ[name] for name in ("HOME", "XDG_STATE_HOME") if name in os.environ}
    home = load("/dev/null", places, Path.cwd()).state_directory if places else Path.cwd()
    strategy = load(path, places, Path.cwd()).strategy if path else StrategyTable()
    return _writable(home, Path.cwd()) / "krakenbot-demo.html", strategy


def _writable(home: Path, here: Path) -> Path:
    """Return the first folder in which a file can be made; UsageError when there is none."""
    for folder in (home, here):
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    raise UsageError(f"the report can be written neither to {home} nor to the current folder")


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="krakenbot-demo-")
    except OSError as error:
        raise UsageError(f"{error.strerror}; set TMPDIR to a folder you may write to") from error


def _summarise(parts: Parts, seconds: float, report: Path) -> None:
    Ledger(parts.exchange, parts.journal, parts.clock).read(parts.exchange.rules())
    account, equity = parts.journal.account(), parts.journal.newest_equity()
    mark = equity.price if equity else parts.exchange.quote().mid  # As in the report.
    decided = [row.candle for row in parts.journal.decisions() if row.done]
    pnl, position = account.pnl(mark), SIZE * mark
    unresolved = len(parts.journal.open_intents())
    margin = account.margin_fees + account.rollover
    figures = {
        "candles decided on": f"{len(decided)}, in {seconds:.1f} s",
        "orders sent": f"{parts.journal.orders_since(0)}, each once; unresolved: {unresolved}",
        "position now": volume(account.held, "XBT"),
        "result before costs": signed(money(pnl + account.costs, "USD")),
        "trade fees": f"{money(-account.fees, 'USD')} (0.8 % per trade, the entry tier)",
        "margin fees": money(-margin, "USD"),
        "result after costs": f"{signed(money(pnl, 'USD'))}, "
        f"{signed(percent(pnl / position * 100, 1))} of the position",
    }
    print(f"\n{'Interrupted. ' if parts.clock.signalled else ''}What happened:")
    for name, text in figures.items():
        print(f"  {name:22}{text}")
    if decided:
        minutes = (max(decided) - min(decided)) // 60 + 1  # A busy machine misses candles.
        share = percent(account.fees / position / minutes * 1440 * 100, 0)
        print(
            f"\nAt this pace fees alone cost {share} of the position per day.\n"
            "With real money use an `interval` far longer than a minute: krakenbot help costs"
        )
    write(report, report_of(parts.config, parts.journal))
    print(f"report: {report}")
