"""`report`: one HTML file about what the bot did, from its journal alone; also for `backtest`."""

import argparse
import os
import time
from pathlib import Path

from krakenbot import config as configuration
from krakenbot.commands.page import Mark, Point, Story, render, thinned
from krakenbot.config import Config
from krakenbot.journal import Journal, open_read_only
from krakenbot.log import clean
from krakenbot.model import Purpose
from krakenbot.pairs import plain

HELP = "One self-contained HTML file: price, average, fills, profit and loss, costs, orders."
EXAMPLE = "krakenbot report --output report.html"
NEWEST = 360
COLUMNS = ("time", "side", "volume", "price", "fee", "outcome", "why", "client order id")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="FILE", type=Path, default=Path("krakenbot-report.html")
    )


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    journal = open_read_only(configuration.journal_path(config))
    write(arguments.output, render(story_of(config, journal)))
    print(f"report: {arguments.output}")
    return 0


def write(path: Path, page: str) -> None:
    """Put the page in place, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)


def story_of(config: Config, journal: Journal) -> Story:
    """Return what the journal has to tell."""
    rows = journal.rows("SELECT time, price, held, pnl, fees, rollover FROM equity ORDER BY time")
    points = thinned(
        Point(row["time"], price, price, price, net, net + float(row["fees"])
              + float(row["rollover"]), float(row["held"]))
        for row in rows
        for price, net in [(float(row["price"]), float(row["pnl"]))]
    )  # fmt: skip
    newest = [
        (row["candle"] + row["interval_s"], float(row["price"]), float(row["average"]) or None)
        for row in journal.rows(
            f"SELECT * FROM decisions WHERE done ORDER BY decided DESC LIMIT {NEWEST}"
        )
    ][::-1]
    intents = journal.intents("1")
    orders, marks, turns = [], [], 0
    for intent in intents:
        why = clean(f"{intent.reason}{': ' if intent.note else ''}{intent.note}")
        price = intent.cost / intent.executed if intent.executed else None
        outcome = clean(intent.outcome or "not known yet")
        text = f"{intent.side.value} {plain(intent.executed or intent.volume)}"
        if price is not None:
            text += f" at {price:,.8g}"
            marks.append(Mark(intent.created, float(price), intent.side.sign > 0,
                              f"{_date(intent.created)} {text}: {why}"))  # fmt: skip
            turns += intent.purpose is not Purpose.CLOSE
        orders.append((
            _date(intent.created), intent.side.value, plain(intent.executed or intent.volume),
            f"{price:,.8g}" if price is not None else "-", plain(intent.fee), outcome, why,
            intent.id,
        ))  # fmt: skip
    account = journal.account()
    net = points[-1].net if points else 0.0
    fees, rollover = float(account.fees), float(account.rollover)
    days = (points[-1].time - points[0].time) / 86400 if points else 0.0
    halted = journal.get("halted")
    return Story(
        title=f"{config.pair} · {config.mode}",
        subtitle=_span(points) + f", {config.interval} min candles, {config.strategy.name}, size "
        f"{plain(config.size)}, leverage {config.leverage}",
        headline=headline(config.pair, days, turns, net, fees + rollover),
        tone=(net > 0) - (net < 0),
        facts=[
            ("Net", f"{net:+,.2f}"), ("Before costs", f"{net + fees + rollover:+,.2f}"),
            ("Costs", f"{fees + rollover:,.2f}"), ("Turns", f"{turns:,}"),
            ("Orders", f"{len(orders):,}"), ("Held now", plain(account.held)),
        ],
        costs=[("before costs", net + fees + rollover), ("trade fees", -fees),
               ("margin fees", -rollover), ("net", net)],
        points=points, newest=newest, marks=marks, columns=COLUMNS, orders=orders,
        notes=[f"Halted: {clean(halted)}"] if halted else [],
    )  # fmt: skip


def headline(pair: str, days: float, turns: int, net: float, costs: float) -> str:
    """Return the result in plain words."""
    currency = next((c for c in ("USDT", "USDC") if pair.endswith(c)), pair[-3:])
    verb = "won" if net > 0 else "lost"
    before = net + costs
    return (
        f"In {days:,.1f} days and {turns:,} turns the bot {verb} {abs(net):,.2f} {currency}. "
        f"Trading itself {'won' if before > 0 else 'lost'} {abs(before):,.2f}; "
        f"fees and margin cost {costs:,.2f}."
    )


def _span(points: list[Point]) -> str:
    return f"{_date(points[0].time)} to {_date(points[-1].time)} UTC" if points else "no candle yet"


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))
