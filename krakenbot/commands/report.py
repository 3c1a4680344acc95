"""`report`: one HTML file about what the bot did, from its journal alone; also for `backtest`."""

import argparse
from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from krakenbot import config as configuration
from krakenbot.commands import write_output
from krakenbot.commands.chart import Fill
from krakenbot.commands.run_report import Point, RunReport, cost_breakdown, render
from krakenbot.config import Config, is_loopback
from krakenbot.format import asset, moment, volume
from krakenbot.identity import journal_path
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO, Purpose
from krakenbot.presence import units
from krakenbot.records import Booked, Equity, Intent

EXAMPLE = "krakenbot report --output report.html"
NEWEST = 360
GAP_CANDLES = 3  # A longer gap between decisions means that the bot was down.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", default="krakenbot-report.html", type=Path)


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    journal = open_read_only(journal_path(config))
    write_output(arguments.output, render(report_of(config, journal)).encode())
    print(f"report: {arguments.output}")
    return 0


def report_of(config: Config, journal: Journal) -> RunReport:
    """Return the report on everything in the journal."""
    equity, intents = [*journal.equity()], journal.intents()
    base, quote, decimals = units(journal, config.pair)
    account, halted = journal.account(), journal.get("halted")
    decided = [row for row in journal.newest_decisions(NEWEST) if row.done]
    size = next((abs(row.held) for row in equity if row.held), config.size)
    times = {one.id: one.created for one in intents}
    charges = [_charge(one, times) for one in journal.charges()]
    # Before the first candle the net result is 0.
    gross, balance, hold, when = account.costs, ZERO, ZERO, "no candle yet"
    if equity:
        first, last = equity[0], equity[-1]
        adopted = (one for one in reversed(intents) if one.purpose is Purpose.ADOPT)
        prices = (one.cost / one.executed for one in adopted if one.created > last.time)
        gross += account.pnl(next(prices, last.price))
        balance = (first.equity or ZERO) - first.pnl
        # Holding, too, pays for a purchase and a sale.
        turnover = sum(one.cost for one in intents if one.purpose is not Purpose.ADOPT)
        fee_rate = account.fees / (turnover or 1)
        hold = size * (last.price - first.price - fee_rate * (first.price + last.price))
        when = f"{moment(first.time)} to {moment(last.time)}"
    place = " on a sandbox, no real money" if is_loopback(config.exchange.url) else ""
    strategy = journal.get("strategy") or config.strategy.title
    return RunReport(
        title=f"{config.pair} · {config.mode}{place}",
        subtitle=f"{when}, {journal.get('interval') or config.interval} min candles, {strategy}, "
        f"size {volume(size)}, leverage {config.leverage}",
        quote=asset(quote),
        pair_decimals=decimals,
        balance=balance,
        size=size,
        hold=hold,
        facts={"Orders": f"{journal.orders_since(0):,}", "Held now": volume(account.held, base)},
        costs=cost_breakdown(gross, account.fees, account.margin_fees, account.rollover),
        # A row has what was held after its decision: that is what was held until the next one.
        points=[_point(row, before.held) for before, row in pairwise(equity[:1] + equity)],
        newest=sorted(
            (row.candle + row.interval_s, float(row.price), float(row.average)) for row in decided
        ),
        # A charge in the same second as an order is its opening fee, so it comes after it.
        fills=sorted([*map(_fill, intents), *charges], key=lambda fill: fill.time),
        notes=[],
        end=f"The bot is halted: {clean(halted)}." if halted else "",
        # The interval may have been a longer one: then candles of that one are no gap.
        gap_s=GAP_CANDLES * max((row.interval_s for row in journal.decisions()), default=0),
    )


def _point(row: Equity, held: Decimal) -> Point:
    price, net = float(row.price), float(row.pnl)
    gross = net + float(row.fees + row.margin_fees + row.rollover)
    return Point(row.time, price, price, price, net, gross, float(held))


def _charge(charge: Booked, times: Mapping[str, int]) -> Fill:
    """Return a charge; the opening fee of an order is never earlier than its time in `times`."""
    time = max(charge.time, times.get(charge.id.partition(" ")[0], 0))
    return Fill(time, 0, ZERO, ZERO, charge.amount)


def _fill(intent: Intent) -> Fill:
    volume, price = intent.volume, ZERO
    if intent.executed:
        volume, price = intent.executed, intent.cost / intent.executed
    outcome = intent.outcome or "not known yet"
    why = f"{intent.reason}: {intent.note}" if intent.note else intent.reason
    return Fill(
        intent.created, intent.side.sign, volume, price, intent.fee, outcome, why, intent.id
    )
