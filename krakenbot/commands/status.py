"""`status`: where the bot stands, from its journal alone. Works while it runs, without network."""

import argparse
import json
import textwrap
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from krakenbot import config as configuration
from krakenbot.accounting import realized
from krakenbot.commands.page import utc
from krakenbot.journal import Journal, open_read_only
from krakenbot.log import clean
from krakenbot.pairs import plain

EXAMPLE = "krakenbot status --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    status = {"mode": config.mode, "pair": config.pair, "interval": config.interval}
    status |= read_status(open_read_only(configuration.journal_path(config)))
    print(json.dumps(status) if arguments.json else "\n".join(lines(status)))
    return 0


def read_status(journal: Journal) -> dict[str, Any]:
    """Return what INTERFACE calls the status object, less mode, pair and interval."""
    account = journal.account()
    decided = journal.rows(
        "SELECT candle, slope, target, reason FROM decisions ORDER BY decided DESC LIMIT 1"
    )
    decision = next(map(dict, decided), None)
    worth = journal.rows("SELECT * FROM equity ORDER BY time DESC LIMIT 1")
    equity: Mapping[str, Any] = next(map(dict, worth), {})
    net = account.pnl(Decimal(equity.get("price", 0)))
    return {
        "position": plain(account.held),
        "target": decision["target"] if decision else 0,
        "last_candle": decision["candle"] if decision else None,
        "decision": decision,
        "unresolved": [intent.id for intent in journal.open_intents()],
        "halted": journal.get("halted") or None,
        "orders": journal.orders_since(0),
        "fees": plain(account.fees),
        "rollover": plain(account.rollover),
        "realized": plain(realized(journal.intents("executed != '0'"))),
        "gross": plain(net + account.fees + account.rollover),
        "pnl": plain(net),
        "equity": equity.get("equity"),
        "margin_level": equity.get("margin_level"),
        "updated": equity.get("time"),
        "difference": journal.get("difference") or None,
    }


def lines(status: Mapping[str, Any]) -> list[str]:
    """Return the status for people, aligned, at most 80 columns."""
    decision, updated, level = (status[key] for key in ("decision", "updated", "margin_level"))
    rows = {
        "HALTED": status["halted"],
        "bot": f"{status['mode']} {status['pair']}, candles of {status['interval']} min",
        "position": f"{status['position']}, target {status['target']:+d}",
        "decided": f"{_moment(decision['candle'])} {decision['reason']}" if decision else "never",
        "orders": f"{status['orders']}, unresolved: {', '.join(status['unresolved']) or 'none'}",
        "realized": f"{status['realized']} before costs",
        "costs": f"fees {status['fees']}, margin fees and rollover {status['rollover']}",
        "result": f"gross {status['gross']}, net of all costs {status['pnl']}, held volume at the"
        " last price",
        "equity": f"{status['equity'] or 'unknown'}, margin level "
        + (f"{level} %" if level else "none (nothing held)"),
        "updated": _moment(updated) if updated else "never",
        "DIFFERS": status["difference"],
    }
    return [
        textwrap.fill(clean(text), 80, initial_indent=f"{name:<10}", subsequent_indent=" " * 10)
        for name, text in rows.items()
        if text
    ]


def _moment(seconds: int) -> str:
    return utc(seconds, "%Y-%m-%d %H:%M:%S")
