"""`report`: one HTML file about what the bot did, from its journal alone; also for `backtest`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from krakenbot import config as configuration
from krakenbot.commands.chart import Fill
from krakenbot.commands.run_report import (
    Point,
    RunReport,
    cost_breakdown,
    drawdowns,
    thinned,
    write,
)
from krakenbot.config import Config, is_loopback
from krakenbot.format import asset, moment, percent, volume
from krakenbot.identity import journal_path
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO
from krakenbot.presence import units
from krakenbot.records import Equity, Intent

EXAMPLE = "krakenbot report --output report.html"
NEWEST = 360
GAP_CANDLES = 3  # A longer gap between decisions means that the bot was down.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path("krakenbot-report.html")
    parser.add_argument("--output", metavar="FILE", type=Path, default=default)


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    journal = open_read_only(journal_path(config))
    write(arguments.output, report_of(config, journal))
    print(f"report: {arguments.output}")
    return 0


def report_of(config: Config, journal: Journal) -> RunReport:
    """Return the report on everything in the journal."""
    equity, unit = [*journal.equity()], units(journal, config.pair)
    points = _points(equity, GAP_CANDLES * config.interval * 60)
    account, halted = journal.account(), journal.get("halted")
    orders = [_fill(intent) for intent in journal.intents()]
    charges = [Fill(time, 0, 0.0, 0.0, float(amount)) for time, amount in journal.charges()]
    gross = account.costs + (account.pnl(equity[-1].price) if equity else ZERO)
    balance = float((equity[0].equity or ZERO) - equity[0].pnl) if equity else 0.0
    facts = {"Orders": f"{len(orders):,}", "Held now": volume(account.held, unit.base)}
    if balance:
        facts["Max drawdown"] = percent(max(drawdowns(balance, points)))
    turnover = sum(fill.volume * fill.price for fill in orders)
    fee_rate = float(account.fees) / turnover if turnover else 0.0
    when = f"{moment(points[0].time)} to {moment(points[-1].time)}" if points else "no candle yet"
    place = " on a sandbox, no real money" if is_loopback(config.exchange.url) else ""
    strategy = journal.get("strategy") or config.strategy.title
    return RunReport(
        title=f"{config.pair} · {config.mode}{place}",
        subtitle=f"{when}, {config.interval} min candles, {strategy}, size {volume(config.size)}, "
        f"leverage {config.leverage}",
        quote=asset(unit.quote),
        pair_decimals=unit.decimals,
        balance=balance,
        size=float(config.size),
        # Holding, too, pays for a purchase and a sale.
        first_price=points[0].close + fee_rate * (points[0].close + points[-1].close)
        if points
        else 0.0,
        facts=facts,
        costs=cost_breakdown(gross, account.fees, account.margin_fees, account.rollover),
        points=thinned(points),
        newest=[
            (row.candle + row.interval_s, float(row.price), float(row.average))
            for row in reversed(journal.newest_decisions(NEWEST))
            if row.done
        ],
        # A charge in the same second as an order is its opening fee, so it comes after it.
        fills=sorted([*orders, *charges], key=lambda fill: fill.time),
        notes=[],
        end=f"The bot is halted: {clean(halted)}." if halted else "",
    )


def _points(equity: Sequence[Equity], gap_s: int) -> list[Point]:
    return [
        Point(
            time=now.time,
            low=float(now.price),
            high=float(now.price),
            close=float(now.price),
            net=float(now.pnl),
            gross=float(now.pnl + now.fees + now.margin_fees + now.rollover),
            held=float(now.held),
            is_after_gap=now.time - before.time > gap_s,
        )
        for before, now in zip([*equity[:1], *equity], equity, strict=False)
    ]


def _fill(intent: Intent) -> Fill:
    return Fill(
        time=intent.created,
        sign=intent.side.sign,
        volume=float(intent.executed or intent.volume),
        price=float(intent.cost / intent.executed) if intent.executed else 0.0,
        fee=float(intent.fee),
        outcome=intent.outcome or "not known yet",
        why=f"{intent.reason}: {intent.note}" if intent.note else intent.reason,
        id=intent.id,
    )
