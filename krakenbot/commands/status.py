"""`status`: whether the bot runs and where it stands, from its journal alone, without network."""

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
from krakenbot.alerts import standing
from krakenbot.format import duration, moment, money, percent, shows_color, signed, volume
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO
from krakenbot.pairs import plain
from krakenbot.presence import Life, State, Units, read_life, units
from krakenbot.records import Intent

EXAMPLE = "krakenbot status --watch"
WATCH_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--watch", action="store_true", help="again every two seconds, to Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    while True:
        path = identity.journal_path(config)
        journal = open_read_only(path)
        life = read_life(journal, path.with_suffix(".lock"), config.exchange.clock_speed)
        status = {"mode": config.mode, "pair": config.pair, "interval": config.interval}
        status |= read_status(journal) | _of(life)
        status["strategy"] = journal.get("strategy") or config.strategy.title
        unit = units(journal, config.pair)
        journal.close()
        text = json.dumps(status) if arguments.json else "\n".join(lines(status, life, unit))
        is_screen = arguments.watch and not arguments.json and shows_color(sys.stdout)
        print(f"\x1b[H\x1b[J{text}" if is_screen else text, flush=True)
        if not arguments.watch:
            return 0
        time.sleep(WATCH_S)


def read_status(journal: Journal) -> dict[str, Any]:
    """Return what INTERFACE calls the status object, less what the configuration and lock say."""
    account = journal.account()
    decided = next(iter(journal.newest_decisions(1)), None)
    equity = journal.newest_equity()
    net = account.pnl(equity.price if equity else ZERO)
    decision = decided and {
        "candle": decided.candle,
        "slope": decided.slope,
        "target": decided.target,
        "reason": decided.reason,
    }
    return {
        "position": plain(account.held),
        "target": decided.target if decided else 0,
        "last_candle": decided.candle if decided else None,
        "decision": decision,
        "unresolved": [intent.id for intent in journal.open_intents()],
        "halted": journal.get("halted") or None,
        "orders": journal.orders_since(0),
        "fees": plain(account.fees),
        "margin_fees": plain(account.margin_fees),
        "rollover": plain(account.rollover),
        "realized": plain(realized(journal.intents())),
        "gross": plain(net + account.costs),
        "pnl": plain(net),
        "price": plain(equity.price) if equity else None,
        "equity": plain(equity.equity) if equity and equity.equity is not None else None,
        "margin_level": str(equity.margin_level) if equity and equity.margin_level else None,
        "updated": equity.time if equity else None,
        "ledger_read": int(journal.get("charges_read") or 0) or None,
        "exchange_position": journal.get("exchange_position") or plain(account.held),
        "warnings": standing(journal),
        "difference": journal.get("difference") or None,
    }


def realized(intents: Iterable[Intent]) -> Decimal:
    """Return what closed parts won or lost before all costs, first in, first out."""
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


def _of(life: Life) -> dict[str, Any]:
    return {
        "state": life.state.value,
        "pid": life.pid,
        "since": life.since,
        "next_decision": life.next_decision,
        "exit_code": life.exit_code,
        "end_reason": life.reason or None,
    }


def lines(status: Mapping[str, Any], life: Life, unit: Units) -> list[str]:
    """Return the status for people, aligned, at most 80 columns, what is asked first first."""
    base, quote, _ = unit
    decision, level, updated, read = (
        status[key] for key in ("decision", "margin_level", "updated", "ledger_read")
    )
    held = Decimal(status["exchange_position"])
    amounts = {key: Decimal(status[key]) for key in ("gross", "pnl", "realized")}
    gross, net, realized = (signed(money(amounts[key], quote)) for key in amounts)
    costs = {key: money(Decimal(status[key]), quote) for key in ("fees", "margin_fees", "rollover")}
    rows = [
        (life.state.name, _process(life, status["halted"])),
        ("next", _next(life)),
        ("HALTED", status["halted"]),
        (
            "bot",
            f"{status['mode']} {status['pair']}, {status['interval']} min candles, "
            f"{status['strategy']}",
        ),
        ("position", _position(status, base, quote)),
        (
            "target",
            f"{decision['reason']} (candle of {moment(decision['candle'])})"
            if decision
            else "none decided yet",
        ),
        ("result", f"{net} after all costs, {gross} before; realized before costs {realized}"),
        (
            "costs",
            f"trade fees {costs['fees']}, margin fees {costs['margin_fees']}, rollover "
            f"{costs['rollover']}" + (f"; ledger as of {moment(read)}" if read else ""),
        ),
        ("account", _account(status["equity"], level if held else None, quote)),
        (
            "orders",
            f"{status['orders']} sent, unresolved: " + (", ".join(status["unresolved"]) or "none"),
        ),
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
        return f"{since}, without an end of its own: killed, or the machine went down"
    reason = "halted" if life.reason == halted else life.reason
    return f"{since}, exit code {life.exit_code}: {reason}"


def _next(life: Life) -> str | None:
    if life.next_decision is None:
        return None
    left = life.next_decision - life.now
    when = f"decision at {moment(life.next_decision)}"
    if life.state is State.STALE:
        return f"{when} is {duration(left)} late: look at its log and the warnings below"
    return f"{when}, in {duration(left)}" if left > 0 else f"{when}, now"


def _position(status: Mapping[str, Any], base: str, quote: str) -> str:
    held, explained = (Decimal(status[key]) for key in ("exchange_position", "position"))
    if held != explained:
        return (
            f"the exchange holds {volume(held, base)}, the journal explains "
            f"{volume(explained, base)}"
        )
    worth = money(abs(held) * Decimal(status["price"] or 0), quote)
    return f"{volume(held, base)}, worth {worth} at the last close" if held else "nothing is held"


def _account(equity: str | None, level: str | None, quote: str) -> str | None:
    if equity is None:
        return None
    shown = f"margin level {percent(Decimal(level), 0)}" if level else "no margin used"
    return f"equity {money(Decimal(equity), quote)}, {shown}"
