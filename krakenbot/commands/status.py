"""`status`: whether the bot runs and how it is doing, from its journal alone, without network."""

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from krakenbot import config as configuration
from krakenbot import identity
from krakenbot.alerts import active_alerts
from krakenbot.commands import json_values
from krakenbot.format import duration, moment, money, percent, shows_color, signed, volume
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO
from krakenbot.presence import Life, State, Units, read_life, units
from krakenbot.records import Intent

EXAMPLE = "krakenbot status --watch"
WATCH_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--watch", action="store_true", help="repeat every 2 s until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    while True:
        path = identity.journal_path(config)
        journal = open_read_only(path)
        life = read_life(journal, path.with_suffix(".lock"), config.exchange.clock_speed)
        status: dict[str, Any] = {
            "mode": config.mode,
            "pair": config.pair,
            "interval": config.interval,
        }
        status |= read_status(journal)
        status |= {"state": life.state.value, "pid": life.pid, "since": life.since}
        status |= {"next_decision": life.next_decision, "exit_code": life.exit_code}
        status["end_reason"] = life.reason or None
        status["strategy"] = journal.get("strategy") or config.strategy.title
        if flatten := journal.get("flatten"):
            status["warnings"].append(f"flattening: {flatten}")
        status["warnings"] += identity.unmanaged(config, path)
        unit = units(journal, config.pair)
        journal.close()
        text = json.dumps(status) if arguments.json else "\n".join(lines(status, life, unit))
        is_screen = arguments.watch and not arguments.json and shows_color(sys.stdout)
        print(f"\x1b[H\x1b[J{text}" if is_screen else text, flush=True)
        if not arguments.watch:
            return 0
        time.sleep(WATCH_S)


def read_status(journal: Journal) -> dict[str, Any]:
    """Return the status object, without the fields that come from configuration and lock."""
    account, equity = journal.account(), journal.newest_equity()
    decided = next(iter(journal.newest_decisions(1)), None)
    price = equity.price if equity else None
    net = None if price is None and account.held else account.pnl(price or ZERO)
    names = ("candle", "slope", "target", "reason")
    return json_values(
        {
            "position": account.held,
            "target": decided.target if decided else 0,
            "last_candle": decided.candle if decided else None,
            "decision": decided and {name: getattr(decided, name) for name in names},
            "unresolved": [intent.id for intent in journal.open_intents()],
            "halted": journal.get("halted") or None,
            "orders": journal.orders_since(0),
            "fees": account.fees,
            "margin_fees": account.margin_fees,
            "rollover": account.rollover,
            "realized": realized(journal.intents()),
            "gross": None if net is None else net + account.costs,
            "pnl": net,
            "price": price,
            "equity": equity.equity if equity else None,
            "margin_level": (equity.margin_level or None) if equity else None,
            "updated": equity.time if equity else None,
            "ledger_read": int(journal.get("charges_read") or 0) or None,
            "exchange_position": journal.get("exchange_position") or account.held,
            "warnings": active_alerts(journal),
            "difference": journal.get("difference") or None,
        }
    )


def realized(intents: Iterable[Intent]) -> Decimal:
    """Return the profit of closed volume before all costs, first in, first out."""
    lots: list[tuple[Decimal, Decimal]] = []  # signed volume, cost
    total = ZERO
    for intent in intents:
        volume, cost = intent.executed * intent.side.sign, intent.cost
        while volume and lots and lots[0][0] * volume < 0:
            lot_volume, lot_cost = lots[0]
            part = min(abs(volume), abs(lot_volume))
            opened, closed = lot_cost * part / abs(lot_volume), cost * part / abs(volume)
            total += (closed - opened) if lot_volume > 0 else (opened - closed)
            sign = 1 if volume > 0 else -1
            volume, cost = volume - sign * part, cost - closed
            rest = lot_volume + sign * part
            lots[:1] = [(rest, lot_cost - opened)] if rest else []
        if volume:
            lots.append((volume, cost))
    return total


def lines(status: Mapping[str, Any], life: Life, unit: Units) -> list[str]:
    """Return the status in aligned lines of at most 80 columns, the most important first."""
    decision, updated, read = (status[key] for key in ("decision", "updated", "ledger_read"))
    names = ("realized", "fees", "margin_fees", "rollover")
    realized, *costs = (money(Decimal(status[key]), unit.quote) for key in names)
    target = "none decided yet"
    if decision:
        target = f"{decision['reason']} (candle of {moment(decision['candle'])})"
    result = "not known before the next decision"
    if status["pnl"] is not None:
        net, gross = (signed(money(Decimal(status[key]), unit.quote)) for key in ("pnl", "gross"))
        result = f"{net} after all costs, {gross} before"
    paid = "trade fees {}, margin fees {}, rollover {}".format(*costs)
    paid += f"; ledger as of {moment(read)}" if read else ""
    unresolved = ", ".join(status["unresolved"]) or "none"
    rows = [
        (life.state.name, _process(life, status["halted"])),
        ("next", _next(life)),
        ("HALTED", status["halted"]),
        ("bot", "{mode} {pair}, {interval} min candles, {strategy}".format_map(status)),
        ("position", _position(status, unit)),
        ("target", target),
        ("result", f"{result}; realized before costs {signed(realized)}"),
        ("costs", paid),
        ("account", _account(status, unit)),
        ("orders", f"{status['orders']} sent, unresolved: {unresolved}"),
        ("DIFFERS", status["difference"]),
        *(("warning", text) for text in status["warnings"]),
        ("as of", f"{moment(updated)}, {duration(life.now - updated)} ago" if updated else None),
    ]
    return [
        textwrap.fill(clean(text), 80, initial_indent=f"{name:<10}", subsequent_indent=" " * 10)
        for name, text in rows
        if text
    ]


def _process(life: Life, halted: str | None) -> str:
    if life.since is None:
        return "it has not run yet with this version"
    since = f"since {moment(life.since)} ({duration(time.time() - life.since)})"
    if life.state is not State.STOPPED:
        return f"pid {life.pid}, {since}"
    if life.exit_code is None:
        ways = "killed, out of disk space, or the machine went down"
        return f"{since}, without a clean end: {ways}; see its log"
    reason = "halted" if life.reason == halted else life.reason
    return f"{since}, exit code {life.exit_code}: {reason}"


def _next(life: Life) -> str | None:
    if life.next_decision is None:
        return None
    left = life.next_decision - life.now
    when = f"decision at {moment(life.next_decision)}"
    if life.state is State.STALE:
        return f"{when} is {duration(left)} late: see its log and the warnings below"
    return f"{when}, in {duration(left)}" if left > 0 else f"{when}, now"


def _position(status: Mapping[str, Any], unit: Units) -> str:
    held, explained = (Decimal(status[key]) for key in ("exchange_position", "position"))
    shown = volume(held, unit.base)
    if held != explained:
        return f"the exchange holds {shown}, the journal records {volume(explained, unit.base)}"
    if not held or status["price"] is None:
        return shown if held else "nothing is held"
    worth = money(abs(held) * Decimal(status["price"]), unit.quote)
    return f"{shown}, worth {worth} at the last close"


def _account(status: Mapping[str, Any], unit: Units) -> str | None:
    if status["equity"] is None:
        return None
    level = status["margin_level"] if Decimal(status["exchange_position"]) else None
    shown = f"margin level {percent(Decimal(level), 0)}" if level else "no margin used"
    return f"equity {money(Decimal(status['equity']), unit.quote)}, {shown}"
