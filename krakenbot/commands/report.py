"""`report`: one HTML file about what the bot did, from its journal alone; also for `backtest`."""

import argparse
from decimal import Decimal
from pathlib import Path

from krakenbot import config as configuration
from krakenbot.commands.page import Mark, Point, Story, headline, thinned, utc, write
from krakenbot.config import Config
from krakenbot.identity import open_here
from krakenbot.journal import Journal
from krakenbot.log import clean
from krakenbot.model import Purpose
from krakenbot.pairs import plain

EXAMPLE = "krakenbot report --output report.html"
NEWEST = 360


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path("krakenbot-report.html")
    parser.add_argument("--output", metavar="FILE", type=Path, default=default)


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    journal = open_here(config)
    write(arguments.output, story_of(config, journal))
    print(f"report: {arguments.output}")
    return 0


def story_of(config: Config, journal: Journal) -> Story:
    """Return what the journal has to tell."""
    points = thinned(
        Point(
            row.time,
            float(row.price),
            float(row.price),
            float(row.price),
            float(row.pnl),
            float(row.pnl + row.fees + row.margin_fees + row.rollover),
            float(row.held),
        )
        for row in journal.equity()
    )
    newest = [
        (row.candle + row.interval_s, float(row.price), float(row.average))
        for row in reversed(journal.newest_decisions(NEWEST))
        if row.done
    ]
    marks, orders, turns = [], [], 0
    for intent in journal.intents():
        price = intent.cost / intent.executed if intent.executed else None
        row = (
            utc(intent.created),
            intent.side.value,
            plain(intent.executed or intent.volume),
            "-" if price is None else f"{price:,.8g}",
            plain(intent.fee),
            clean(intent.outcome or "not known yet"),
            clean(f"{intent.reason}: {intent.note}" if intent.note else intent.reason),
            intent.id,
        )
        orders.append(row)
        if price is not None:
            text = f"{row[0]} {row[1]} {row[2]} at {row[3]}: {row[6]}"
            marks.append(Mark(intent.created, float(price), intent.side.sign > 0, text))
            turns += intent.purpose is not Purpose.CLOSE
    account, halted = journal.account(), journal.get("halted")
    net = float(account.pnl(Decimal(points[-1].close))) if points else 0.0
    fees, rollover = float(account.fees), float(account.costs - account.fees)
    before = net + fees + rollover
    begin, end = (points[0].time, points[-1].time) if points else (0.0, 0.0)
    when = f"{utc(begin)} to {utc(end)} UTC" if points else "no candle yet"
    return Story(
        title=f"{config.pair} · {config.mode}",
        subtitle=f"{when}, {config.interval} min candles, "
        f"{journal.get('strategy') or config.strategy.title}, "
        f"size {plain(config.size)}, leverage {config.leverage}",
        headline=headline(config.pair, (end - begin) / 86400, turns, before, net),
        net=net,
        facts=[
            ("Net", f"{net:+,.2f}"),
            ("Before costs", f"{before:+,.2f}"),
            ("Costs", f"{fees + rollover:,.2f}"),
            ("Turns", f"{turns:,}"),
            ("Orders", f"{len(orders):,}"),
            ("Held now", plain(account.held)),
        ],
        costs=[
            ("before costs", before),
            ("trade fees", -fees),
            ("margin fees", -rollover),
            ("net", net),
        ],
        points=points,
        newest=newest,
        marks=marks,
        orders=orders,
        notes=[f"Halted: {clean(halted)}"] if halted else [],
    )
