"""What can become of a journal's file between two processes: a page spoiled, an older version."""

import sqlite3
from pathlib import Path
from random import Random

from krakenbot.journal import Journal
from tests.simulation.machine import real_connect

PAGE_BYTES = 4096


def spoil_page(path: Path, random: Random) -> bytes:
    """Write nonsense over one page that is in use; return what the file holds then."""
    connection = real_connect(path)
    roots = [page for (page,) in connection.execute("SELECT rootpage FROM sqlite_master")]
    connection.close()
    at = (random.choice([1, *roots]) - 1) * PAGE_BYTES
    data = path.read_bytes()
    data = data[:at] + random.randbytes(PAGE_BYTES) + data[at + PAGE_BYTES :]
    path.write_bytes(data)
    return data


def make_older(path: Path, spelling: str) -> None:
    """Turn the journal into what version 0.2.0 would have written, under the name it gave it."""
    connection = real_connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    account = Journal(connection).account()
    copy = {
        "held": account.held,
        "cash": account.cash,
        "fees": account.fees,
        "rollover": account.rollover + account.margin_fees,
    }
    connection.executescript(
        """
        ALTER TABLE equity DROP COLUMN margin_fees;
        ALTER TABLE charges DROP COLUMN asset;
        ALTER TABLE charges DROP COLUMN charged;
        UPDATE meta SET key = 'fruitless_from' WHERE key = 'unfilled_from';
        DELETE FROM meta WHERE key IN ('pair_id', 'account');
        PRAGMA user_version = 1;
        """
    )
    for key, amount in copy.items():
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, str(amount)))
    connection.close()
    mode, host, port, _ = path.stem.split("-", 3)
    for file in (path, path.with_suffix(".lock")):
        file.rename(file.with_stem(f"{mode}-{host}-{port}-{spelling}"))
