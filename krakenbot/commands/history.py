"""`history`: what the journal holds, for people, spreadsheets and programs."""

import argparse
import csv
import io
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from krakenbot import config as configuration
from krakenbot.journal import open_read_only
from krakenbot.log import clean

HELP = "What the journal holds: decisions, orders or equity."
EXAMPLE = "krakenbot history orders --since 7d --format csv"

# The columns shown, in order, and the time that --since compares.
QUERIES = {
    "decisions": (
        "decided",
        "SELECT candle AS time, interval_s / 60 AS interval, price, average, slope, target,"
        " held, reason FROM decisions WHERE decided >= ? ORDER BY decided",
    ),
    "orders": (
        "created",
        "SELECT created AS time, side, executed AS volume,"
        " cost, fee, coalesce(outcome, 'unresolved') AS outcome, purpose, volume AS asked,"
        " leverage, id AS client_order_id, exchange_order_id, reason, note"
        " FROM intents WHERE created >= ? ORDER BY number",
    ),
    "equity": (
        "time",
        "SELECT time, price, held, pnl AS net, fees, rollover, equity, margin_level"
        " FROM equity WHERE time >= ? ORDER BY time",
    ),
}
SPANS_S = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=QUERIES)
    parser.add_argument(
        "--since", type=since, default=0, metavar="T",
        help="a date (2026-11-21 or 2026-11-21T12:00, UTC), unix seconds, or a span: 90m 24h 7d 2w",
    )  # fmt: skip
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    journal = open_read_only(configuration.journal_path(config))
    rows = (dict(row) for row in journal.rows(QUERIES[arguments.what][1], arguments.since))
    for line in {"table": table, "csv": as_csv, "json": as_json}[arguments.format](rows):
        sys.stdout.write(line)
    return 0


def since(text: str) -> int:
    """Return the unix time that a date, a number of seconds or a span before now stands for."""
    span = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if span:
        return int(time.time()) - int(span[1]) * SPANS_S[span[2]]
    if re.fullmatch(r"\d{1,11}", text) and len(text) != 8:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date (2026-11-21), no unix time and no span (90m 24h 7d 2w)"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def as_json(rows: Iterable[dict[str, object]]) -> Iterator[str]:
    """Yield one JSON object a line."""
    for row in rows:
        yield json.dumps(row) + "\n"


def as_csv(rows: Iterable[dict[str, object]]) -> Iterator[str]:
    """Yield lines of RFC 4180 with a header; times as ISO 8601 in UTC."""
    for number, row in enumerate(rows):
        text = io.StringIO()
        writer = csv.writer(text)
        if number == 0:
            writer.writerow(row)
        writer.writerow([_time(row["time"], "%Y-%m-%dT%H:%M:%SZ"), *list(row.values())[1:]])
        yield text.getvalue()


def table(rows: Iterable[dict[str, object]]) -> Iterator[str]:
    """Yield aligned lines; each column as wide as its widest value, the last one open."""
    shown = [
        {
            key: _time(value, "%Y-%m-%d %H:%M:%S") if key == "time" else clean(str(value or "-"))
            for key, value in row.items()
        }
        for row in rows
    ]
    if not shown:
        return
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in shown[0]}
    for row in [{key: key for key in widths}, *shown]:
        yield "  ".join(f"{row[key]:<{width}}" for key, width in widths.items()).rstrip() + "\n"


def _time(value: object, form: str) -> str:
    return time.strftime(form, time.gmtime(int(str(value))))
