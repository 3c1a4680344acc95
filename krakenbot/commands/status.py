"""`status`: whether the bot runs and how it is doing, from its journal alone, without network."""

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from typing import Any

from krakenbot import config_reader
from krakenbot.alerts import active_alerts
from krakenbot.commands import journals, json_values, shows_color, views
from krakenbot.commands.preview import compared
from krakenbot.config import Config
from krakenbot.format import duration, moment, money, percent, signed, volume
from krakenbot.journal import CLEARED, Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean, joined
from krakenbot.model import ZERO
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import DEADLINE_S
from krakenbot.presence import UNITS, State, read_life
from krakenbot.records import opening_cost
from krakenbot.simulated.listing import assets_of

EXAMPLE = "krakenbot status --watch"
WATCH_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--watch", action="store_true", help="repeat every 2 s until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    config = config_reader.load_here(arguments.config)
    is_screen = arguments.watch and not arguments.json and shows_color(sys.stdout)
    while True:
        status = _status(config)
        text = json.dumps(json_values(status)) if arguments.json else _text(status)
        print(f"\x1b[H\x1b[J{text}" if is_screen else text, flush=True)
        if not arguments.watch:
            return 0
        time.sleep(WATCH_S)


def _status(config: Config) -> dict[str, Any]:
    path = journals.journal_path(config)
    with closing(open_read_only(path)) as journal:
        life = read_life(journal, path.with_suffix(".lock"), config.exchange.clock_speed)
        status = read_status(journal) | life._asdict() | {"mode": config.mode, "pair": config.pair}
        status["interval"] = int(journal.get("interval") or config.interval)
        status["strategy"] = journal.get("strategy") or config.strategy.title
        status["base"], status["quote"], _ = units(journal, config.pair)
    status["warnings"] += journals.unmanaged(config, path)
    if status["interval"] != config.interval:
        text = f"config now says interval = {config.interval}: restart the bot to use it"
        status["warnings"].append(text)
    return status


def units(journal: Journal, pair: str) -> tuple[str, str, int | None]:
    """Return base currency, quote currency and the decimals of prices, None if these are unknown.

    A journal of version 0.2.0 has none of them: then the currencies come from the pair's name.
    """
    base, quote, decimals = (journal.get(key) for key in UNITS)
    return (base, quote, int(decimals)) if base and decimals else (*assets_of(pair), None)


def read_status(journal: Journal) -> dict[str, Any]:
    """Return those fields of `status --json` that come from the journal's tables.

    Amounts are Decimals in quote currency, `gross` and `pnl` None if no price is known. Times are
    unix seconds by the exchange's clock. The names must not change.
    """
    account, equity = journal.account(), journal.newest_equity()
    decided = next(views.decisions(journal, newest=1), None)
    price, halted = equity.price if equity else None, journal.get("halted")
    flatten = "" if halted else journal.get("flatten")
    if equity and int(journal.get("adopted") or 0) > equity.time:
        price = None  # That of the last decision may be far from the one at the adoption.
    net = None if price is None and account.held else account.pnl(price or ZERO)
    names = ("candle", "slope", "target", "reason")
    return {
        "position": account.held,
        "target": decided.target if decided else 0,
        "last_candle": decided.candle if decided else None,
        "decision": decided and {name: getattr(decided, name) for name in names},
        "unresolved": [intent.id for intent in journal.open_intents()],
        "halted": halted or None,
        "orders": journal.orders_since(0),
        "fees": account.fees,
        "margin_fees": account.margin_fees,
        "rollover": account.rollover,
        "realized": realized(journal),
        "gross": None if net is None else net + account.costs,
        "pnl": net,
        "price": price,
        "equity": equity.equity if equity else None,
        "margin_level": (equity.margin_level or None) if equity else None,
        "updated": equity.time if equity else None,
        "ledger_read": int(journal.get("charges_read") or 0) or None,
        "exchange_position": Decimal(journal.get("exchange_position") or account.held),
        "warnings": active_alerts(journal) + ([f"flattening: {flatten}"] if flatten else []),
        "difference": journal.get("difference") or None,
    }


def realized(journal: Journal) -> Decimal:
    """Return the profit of the volume closed so far, before all costs, first in, first out."""
    account = journal.account()
    return account.cash + opening_cost(reversed(journal.intents()), account.held)


def _text(status: Mapping[str, Any]) -> str:
    """Return the status as lines of at most 80 columns, the most important first."""

    def amount(key: str) -> str:
        return money(status[key], status["quote"])

    decision, updated, read = (status[key] for key in ("decision", "updated", "ledger_read"))
    target, result, account = "none decided yet", "not known before the next decision", None
    if decision:
        target = f"{decision['reason']} (candle of {moment(decision['candle'])})"
    if status["pnl"] is not None:
        result = f"{signed(amount('pnl'))} after all costs, {signed(amount('gross'))} before"
    if status["equity"] is not None:
        level = status["margin_level"] if status["exchange_position"] else None
        margin = f"margin level {percent(level, 0)}" if level else "no margin used"
        account = f"equity {amount('equity')}, {margin}"
    costs = f"margin fees {amount('margin_fees')}, rollover {amount('rollover')}"
    until = f"; ledger as of {moment(read)}" if read else ""
    unresolved = ", ".join(status["unresolved"]) or "none"
    rows = [
        (status["state"].upper(), _process(status)),
        ("next", _next(status)),
        ("HALTED", status["halted"]),
        ("bot", "{mode} {pair}, {interval} min candles, {strategy}".format_map(status)),
        ("position", _position(status)),
        ("target", target),
        ("result", f"{result}; realized before costs {signed(amount('realized'))}"),
        ("costs", f"trade fees {amount('fees')}, {costs}{until}"),
        ("account", account),
        ("orders", f"{status['orders']} sent, unresolved: {unresolved}"),
        ("DIFFERS", status["difference"]),
        *(("warning", text) for text in status["warnings"]),
        ("as of", updated and f"{moment(updated)}, {duration(status['now'] - updated)} ago"),
    ]
    wrap = textwrap.TextWrapper(80, subsequent_indent=" " * 10, break_on_hyphens=False)
    return "\n".join(wrap.fill(f"{name:<10}{clean(joined(text))}") for name, text in rows if text)


def _process(status: Mapping[str, Any]) -> str:
    if status["since"] is None:
        return "the bot has not run yet with this version"
    since = f"since {moment(status['since'])} ({duration(time.time() - status['since'])})"
    if status["state"] is not State.STOPPED:
        return f"pid {status['pid']}, {since}"
    if status["exit_code"] is None:
        ways = "killed, out of disk space, or the machine went down"
        return f"{since}, without a clean end: {ways}; see its log"
    reason = status["end_reason"] or "no reason was recorded"
    if status["halted"] and (status["halted"] in reason or reason == CLEARED):
        reason = "halted, see below"
    return f"{since}, exit code {status['exit_code']}: {reason}"


def _next(status: Mapping[str, Any]) -> str:
    due = status["next_decision"]
    if due is None:
        if status["state"] is State.STOPPED:
            return ""
        wait = f"it may wait up to {DEADLINE_S + VISIBLE_S} s, until any earlier order is visible"
        return f"starting: {wait}" if status["mode"] == "live" else "starting"
    left = due - status["now"]
    when = f", in {duration(left)}" if left > 0 else ", now"
    if status["state"] is State.STALE:
        when = f" is {duration(left)} late: see its log and the warnings below"
    return f"decision at {moment(due)}{when}"


def _position(status: Mapping[str, Any]) -> str:
    held, recorded, price = (status[key] for key in ("exchange_position", "position", "price"))
    text = volume(held, status["base"])
    if held != recorded:
        return compared(held, recorded, status["base"])
    if status["unresolved"]:
        return f"unknown while an order is unresolved; the journal records {text}"
    if held and price is not None:
        text += f", worth {money(abs(held) * price, status['quote'])} at the last close"
    return text if held else "nothing is held"
