"""`history`: decisions, orders or equity from the journal, for people and for programs."""

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from krakenbot import config_reader
from krakenbot.commands import in_columns, json_values, views
from krakenbot.commands.journals import journal_path
from krakenbot.commands.status import units
from krakenbot.format import MINUTE, amount, moment, percent, price, volume
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.log import clean
from krakenbot.model import ZERO
from krakenbot.records import Outcome, assumed_id

EXAMPLE = "krakenbot history orders --since 7d --format csv"

Row = Mapping[str, Any]
ISO_FORM = "%Y-%m-%dT%H:%M:%SZ"
SPANS_S = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIMES = "a date (2026-11-21 or 2026-11-21T12:00, UTC), unix seconds, or a span: 90m 24h 7d 2w"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=ROWS, metavar="|".join(ROWS))
    parser.add_argument("--since", type=since, default=0, metavar="T", help=_TIMES)
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    config = config_reader.load_here(arguments.config)
    journal = open_read_only(journal_path(config))
    rows = ROWS[arguments.what](journal, arguments.since)
    fields = _FIELDS[arguments.what]
    names = fields.replace("*", "").replace("|", "").split()
    plain = ({name: row[name] for name in names} for row in map(json_values, rows))
    if arguments.format == "json":
        for row in plain:
            print(json.dumps(row))
    elif arguments.format == "csv":
        writer = csv.DictWriter(sys.stdout, names)  # RFC 4180, times as ISO 8601.
        writer.writeheader()
        writer.writerows(row | {"time": moment(row["time"], ISO_FORM)} for row in plain)
    else:
        _, quote, decimals = units(journal, config.pair)
        heads, cells = shown(rows, fields, quote, decimals)
        lines = in_columns(heads, cells)
        if not heads[-1].startswith("|"):  # It ends with words, which may be cut.
            lines = [line if len(line) <= 80 else f"{line[:77]}..." for line in lines]
        print("\n".join(lines) if cells else "nothing yet")
    return 0


def since(text: str) -> int:
    """Return a unix time, given as a date, as unix seconds, or as a span before now."""
    if span := re.fullmatch(r"(\d{1,6})([mhdw])", text):
        return int(time.time()) - int(span[1]) * SPANS_S[span[2]]
    if re.fullmatch(r"\d{1,11}", text) and len(text) != 8:  # Eight digits are a date.
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_TIMES}") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _decisions(journal: Journal, since: int) -> Iterator[Row]:
    for row in views.decisions(journal, since):
        yield row._asdict() | {"time": row.candle, "interval": row.interval_s // 60}


def _orders(journal: Journal, since: int) -> Iterator[Row]:
    fees, decimals = opening_fees(journal), int(journal.get("pair_decimals") or 10)
    for intent in journal.intents():
        paid = round(intent.cost / intent.executed, decimals) if intent.executed else None
        if intent.created >= since:
            yield intent._asdict() | {
                "time": intent.created,
                "purpose": intent.purpose.value,
                "side": intent.side.value,
                "volume": intent.executed,
                "price": paid,
                "margin_fee": fees.get(intent.id, ZERO),
                "outcome": intent.outcome or "unresolved",
                "asked": intent.volume,
                "client_order_id": intent.id,
            }


def opening_fees(journal: Journal) -> dict[str, Decimal]:
    """Return the margin opening fees by intent id, in quote currency."""
    fees: dict[str, Decimal] = {}
    for booked in views.charges(journal):
        # An intent's id with or without a prefix or suffix: see assumed_id and accounting.py.
        intent_id = booked.id.removeprefix(assumed_id("")).partition(" ")[0]
        if booked.kind == "opening":
            fees[intent_id] = fees.get(intent_id, ZERO) + booked.amount
    return fees


def _equity(journal: Journal, since: int) -> Iterator[Row]:
    for row in views.equity(journal, since):
        gross = row.pnl + row.fees + row.margin_fees + row.rollover
        yield row._asdict() | {"gross": gross, "net": row.pnl}


ROWS = {"decisions": _decisions, "orders": _orders, "equity": _equity}
# CSV and JSON have all fields; a table of 80 columns those marked with * or, aligned right, with |.
_FIELDS = {
    "decisions": "*time interval |price |average slope |target |held *reason",
    "orders": "*time *purpose *side |volume |price cost |fee margin_fee *outcome asked leverage "
    "client_order_id exchange_order_id *reason note",
    "equity": "*time |price |held |gross fees margin_fees rollover |net |equity |margin_level",
}
_HEADS = {
    "*time": "time (UTC)",
    "*entry": "entry (UTC)",
    "|entry_price": "|in at",
    "|exit_price": "|out at",
    "|margin_level": "|level",
}
_MONEY = ("fee", "margin_fee", "gross", "costs", "net", "equity")


def shown(
    rows: Iterable[Row], fields: str, quote: str, decimals: int | None
) -> tuple[list[str], list[list[str]]]:
    """Return the names and the cells, as people read them, of the fields marked with * or |.

    `decimals` are those of the pair's prices, None if unknown.
    """
    marked = [field for field in fields.split() if field[0] in "*|"]
    names = [_HEADS.get(field, field.strip("*").replace("_", " ")) for field in marked]
    return names, [
        [_cell(field[1:], row[field[1:]], quote, decimals) for field in marked] for row in rows
    ]


def _cell(name: str, value: Any, quote: str, decimals: int | None) -> str:
    if value in (None, ""):
        return "-"
    if name in ("time", "entry", "exit"):
        return moment(value, MINUTE)
    if name in ("price", "average", "entry_price", "exit_price"):
        return price(value, decimals)
    if name == "margin_level":
        return percent(value, 0)
    if isinstance(value, Outcome):
        return value.words.partition(",")[0]  # "refused for now, no order left" is too long.
    if isinstance(value, Decimal):
        return amount(value, quote) if name in _MONEY else volume(value)
    return clean(str(value))
