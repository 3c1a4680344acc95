"""`status`: where the bot stands, from its journal alone. Works while it runs, without network."""

import argparse
import json
import time
from decimal import Decimal
from typing import Any

from krakenbot import config as configuration
from krakenbot.accounting import realized
from krakenbot.journal import Journal, open_read_only
from krakenbot.log import clean
from krakenbot.pairs import plain

HELP = "Position, target, last decision and why, profit and loss."
EXAMPLE = "krakenbot status --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    status = read_status(open_read_only(configuration.journal_path(config)))
    status = {"mode": config.mode, "pair": config.pair, "interval": config.interval, **status}
    if arguments.json:
        print(json.dumps(status))
    else:
        print("\n".join(lines(status)))
    return 0


def read_status(journal: Journal) -> dict[str, Any]:
    """Return what INTERFACE calls the status object, less mode, pair and interval."""
    account = journal.account()
    decision = next(journal.rows("SELECT * FROM decisions ORDER BY decided DESC LIMIT 1"), None)
    equity = next(journal.rows("SELECT * FROM equity ORDER BY time DESC LIMIT 1"), None)
    return {
        "position": plain(account.held),
        "target": decision["target"] if decision else 0,
        "last_candle": decision["candle"] if decision else None,
        "decision": {key: decision[key] for key in ("candle", "slope", "target", "reason")}
        if decision
        else None,
        "unresolved": [intent.id for intent in journal.open_intents()],
        "halted": journal.get("halted") or None,
        "orders": journal.orders_since(0),
        "fees": plain(account.fees),
        "rollover": plain(account.rollover),
        "realized": plain(realized(journal.intents("executed != '0'"))),
        "pnl": plain(Decimal(equity["pnl"])) if equity else "0",
        "equity": equity["equity"] if equity else None,
        "margin_level": equity["margin_level"] if equity else None,
        "updated": equity["time"] if equity else None,
    }


def lines(status: dict[str, Any]) -> list[str]:
    """Return the status for people, aligned, at most 80 columns."""
    decision = status["decision"]
    rows = [
        ("bot", f"{status['mode']} {status['pair']}, candles of {status['interval']} min"),
        ("position", f"{status['position']}, target {status['target']:+d}"),
        ("decided", f"{moment(decision['candle'])} {decision['reason']}" if decision else "never"),
        ("orders", f"{status['orders']}, unresolved: {', '.join(status['unresolved']) or 'none'}"),
        ("realized", status["realized"] + " before costs"),
        ("costs", f"fees {status['fees']}, margin fees and rollover {status['rollover']}"),
        ("result", f"{status['pnl']} after all costs, held volume at the last price"),
        ("equity", f"{status['equity'] or 'unknown'}, margin level {level(status)}"),
        ("updated", moment(status["updated"]) if status["updated"] else "never"),
    ]
    if status["halted"]:
        rows.insert(0, ("HALTED", status["halted"]))
    import textwrap

    shown = []
    for name, text in rows:
        shown += textwrap.wrap(
            clean(text), 80, initial_indent=f"{name:<10}", subsequent_indent=" " * 10
        )
    return shown


def level(status: dict[str, Any]) -> str:
    return f"{status['margin_level']} %" if status["margin_level"] else "none (nothing held)"


def moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


