"""`history`: what the journal holds, for people, spreadsheets and programs."""

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from krakenbot import config as configuration
from krakenbot.commands.page import utc
from krakenbot.journal import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO
from krakenbot.pairs import plain

EXAMPLE = "krakenbot history orders --since 7d --format csv"

# The columns shown, in order.
QUERIES = {
    "decisions": "SELECT candle AS time, interval_s / 60 AS interval, price, average, slope,"
    " target, held, reason FROM decisions WHERE decided >= ? ORDER BY decided",
    "orders": "SELECT created AS time, side, executed AS volume, cost, fee,"
    " coalesce(outcome, 'unresolved') AS outcome, purpose, volume AS asked, leverage,"
    " id AS client_order_id, exchange_order_id, reason, note"
    " FROM intents WHERE created >= ? ORDER BY number",
    "equity": "SELECT time, price, held, '' AS gross, fees, rollover, pnl AS net, equity,"
    " margin_level"
    " FROM equity WHERE time >= ? ORDER BY time",
}
SPANS_S = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=QUERIES)
    parser.add_argument(
        "--since",
        type=since,
        default=0,
        metavar="T",
        help="a date (2026-11-21 or 2026-11-21T12:00, UTC), unix seconds, or a span: 90m 24h 7d 2w",
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    journal = open_read_only(configuration.journal_path(config))
    rows = map(_row, journal.rows(QUERIES[arguments.what], arguments.since))
    if arguments.format == "json":
        for row in rows:
            print(json.dumps(row))
    elif arguments.format == "csv":
        _print_csv(rows)
    else:
        _print_table(rows)
    return 0


def since(text: str) -> int:
    """Return the unix time that a date, a number of seconds or a span before now stands for."""
    span = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if span:
        return int(time.time()) - int(span[1]) * SPANS_S[span[2]]
    if re.fullmatch(r"\d{1,11}", text) and len(text) != 8:  # Eight digits are a date.
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date (2026-11-21), no unix time and no span (90m 24h 7d 2w)"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _row(row: Any) -> dict[str, Any]:
    """Return a row of the journal; that of equity with what would be left without costs."""
    found = dict(row)
    if "gross" in found:
        amounts = (Decimal(found[name]) for name in ("net", "fees", "rollover"))
        found["gross"] = plain(sum(amounts, ZERO))
    return found


def _print_csv(rows: Iterable[dict[str, Any]]) -> None:
    """Print RFC 4180 with a header; times as ISO 8601 in UTC."""
    writer = csv.writer(sys.stdout)
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow((row | {"time": utc(row["time"], "%Y-%m-%dT%H:%M:%SZ")}).values())


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    """Print aligned columns, each as wide as its widest value."""
    lines: list[list[str]] = []
    for row in rows:
        row["time"] = utc(row["time"], "%Y-%m-%d %H:%M:%S")
        lines = lines or [list(row)]
        lines.append([clean("-" if value in (None, "") else str(value)) for value in row.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
