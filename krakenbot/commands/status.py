"""`status`: where the bot stands, from its journal alone. Works while it runs, without network."""

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from krakenbot import config as configuration
from krakenbot.accounting import realized
from krakenbot.commands.page import utc
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO
from krakenbot.pairs import plain

EXAMPLE = "krakenbot status --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    status = {"mode": config.mode, "pair": config.pair, "interval": config.interval}
    journal = open_read_only(configuration.journal_path(config))
    status |= read_status(journal) | {"strategy": journal.get("strategy") or config.strategy.name}
    print(json.dumps(status) if arguments.json else "\n".join(lines(status)))
    return 0


def read_status(journal: Journal) -> dict[str, Any]:
    """Return what INTERFACE calls the status object, less mode, pair and interval."""
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
        "equity": plain(equity.equity) if equity and equity.equity is not None else None,
        "margin_level": str(equity.margin_level) if equity and equity.margin_level else None,
        "updated": equity.time if equity else None,
        "exchange_position": journal.get("exchange_position") or plain(account.held),
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
        "costs": f"fees {status['fees']}, margin fees {status['margin_fees']}, "
        f"rollover {status['rollover']}",
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
