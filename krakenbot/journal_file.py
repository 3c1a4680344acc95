"""The journal's file: its tables, and opening it without changing a damaged one."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from pathlib import Path

from krakenbot.alerts import active_alerts, pending_since
from krakenbot.errors import ConfigError
from krakenbot.journal import BUSY_S, Journal, advice, damaged
from krakenbot.lock import no_access, open_private

MIGRATIONS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE intents (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, interval_s INTEGER NOT NULL,
        candle INTEGER NOT NULL, purpose TEXT NOT NULL, side TEXT NOT NULL, volume TEXT NOT NULL,
        leverage INTEGER NOT NULL, reduce_only INTEGER NOT NULL, reason TEXT NOT NULL,
        held_before TEXT NOT NULL, created INTEGER NOT NULL, deadline INTEGER NOT NULL,
        accepted INTEGER NOT NULL DEFAULT 0, outcome TEXT, exchange_order_id TEXT,
        executed TEXT NOT NULL DEFAULT '0', cost TEXT NOT NULL DEFAULT '0',
        fee TEXT NOT NULL DEFAULT '0', settled INTEGER, note TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX intents_open ON intents (number) WHERE outcome IS NULL;
    CREATE INDEX intents_candle ON intents (interval_s, candle);
    CREATE INDEX intents_created ON intents (created);
    CREATE TABLE decisions (
        interval_s INTEGER NOT NULL, candle INTEGER NOT NULL, price TEXT NOT NULL,
        average TEXT NOT NULL, slope INTEGER NOT NULL, target INTEGER NOT NULL, held TEXT NOT NULL,
        reason TEXT NOT NULL, decided INTEGER NOT NULL, done INTEGER NOT NULL,
        PRIMARY KEY (interval_s, candle)
    ) WITHOUT ROWID;
    CREATE TABLE equity (
        time INTEGER PRIMARY KEY, price TEXT NOT NULL, held TEXT NOT NULL, pnl TEXT NOT NULL,
        fees TEXT NOT NULL, rollover TEXT NOT NULL, equity TEXT, margin_level TEXT
    );
    CREATE TABLE charges (
        id TEXT PRIMARY KEY, time INTEGER NOT NULL, kind TEXT NOT NULL, amount TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    # Opening fees separate from rollovers; the original amount of charges in other currencies. The
    # account is the sum of orders and charges, so the stored copy is dropped.
    """
    ALTER TABLE equity ADD COLUMN margin_fees TEXT NOT NULL DEFAULT '0';
    ALTER TABLE charges ADD COLUMN asset TEXT NOT NULL DEFAULT '';
    ALTER TABLE charges ADD COLUMN charged TEXT NOT NULL DEFAULT '';
    DELETE FROM meta WHERE key IN ('held', 'cash', 'fees', 'rollover');
    UPDATE meta SET key = 'unfilled_from' WHERE key = 'fruitless_from';
    """,
)


def open_journal(path: Path | None) -> Journal:
    """Open or create the journal at `path`; None: an empty one in memory.

    Raises ConfigError when it cannot be used, StopError when it is damaged and left as it is.
    """
    if path is None:
        return Journal(prepare(sqlite3.connect(":memory:", isolation_level=None)))
    with _explained(path):
        if os.path.lexists(path):
            _connect(path).close()
        os.close(open_private(path, os.O_RDWR))
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        return Journal(prepare(connection), path)


def prepare(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Make commits survive a power failure, and migrate the tables to the newest version."""
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    steps = "".join(MIGRATIONS[_version(connection) :])
    if steps:
        final = f"PRAGMA user_version = {len(MIGRATIONS)}"
        connection.executescript(f"BEGIN IMMEDIATE; {steps} {final}; COMMIT;")
    return connection


def open_read_only(path: Path) -> Journal:
    """Open an existing journal for commands that only read; ConfigError when there is none."""
    with _explained(path):
        if not os.path.lexists(path):
            raise ConfigError(f"there is no journal {path} yet: this bot has not run")
        connection = _connect(path)
        if _version(connection) < len(MIGRATIONS):
            old, connection = connection, sqlite3.connect(":memory:", isolation_level=None)
            old.backup(connection)
            old.close()
            prepare(connection)
    return Journal(connection, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise ConfigError for trouble with access, space or a lock; StopError for damage."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        what = f"the journal {path} cannot be used (nothing was sent, and it was left as it is)"
        hint = advice(error) if isinstance(error, sqlite3.Error) else ""
        raise no_access(path, what, error, hint) from error
    except sqlite3.Error as error:
        raise damaged(path, error) from error


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _connect(path: Path) -> sqlite3.Connection:
    """Return a read-only connection, after checking that the file can be trusted.

    Raises StopError when it is damaged, ConfigError when a newer krakenbot wrote it.
    """
    try:
        return _checked(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # On a full or read-only disk SQLite cannot create the files it needs beside the journal.
        # With an empty write-ahead log, the journal file alone is complete.
        log_file = Path(f"{path}-wal")
        is_busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        if is_busy or (log_file.exists() and log_file.stat().st_size > 0):
            raise
        return _checked(path, "mode=ro&immutable=1")


def _checked(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{how}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    with ExitStack() as opened:
        opened.callback(connection.close)
        try:
            _check(connection, path)
        except _ODD as error:
            raise damaged(path, repr(error)) from error
        opened.pop_all()
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise damaged(path, verdict)
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise ConfigError(f"the journal {path} was written by a newer krakenbot")
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript("".join(MIGRATIONS[:version]))
        expected = model.execute(_COLUMNS).fetchall()
    if [tuple(row) for row in connection.execute(_COLUMNS)] != expected:
        raise damaged(path, "its tables are not a journal's")
    if not expected:
        return
    journal = Journal(connection, path)
    journal.account()
    if version == 1:
        _compare_with_copy(journal, path)
    journal.open_intents()
    journal.consecutive_unfilled()
    journal.newest_intent()
    journal.newest_record()
    active_alerts(journal)
    pending_since(journal)
    for key in ("pnl_at_resume", "exchange_position"):
        Decimal(journal.get(key) or 0)
    for key in _WHOLE.split():
        int(journal.get(key) or 0)


_WHOLE = (
    "first_direction direction created adopted charges_read started pid ended exit_code seen "
    "seen_wall next_decision pair_decimals interval"
)
_ODD = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
_COLUMNS = (
    "SELECT m.name, c.name, c.type, c.pk FROM sqlite_master m, pragma_table_info(m.name) c"
    " ORDER BY 1, c.cid"
)


def _compare_with_copy(journal: Journal, path: Path) -> None:
    """Raise StopError when the account that 0.2.0 stored is not the sum of its orders."""
    account = journal.account()
    summed = (account.held, account.cash, account.fees, account.rollover + account.margin_fees)
    for name, value in zip(("held", "cash", "fees", "rollover"), summed, strict=True):
        kept = Decimal(journal.get(name, "0"))
        if abs(kept - value) > max(abs(value), Decimal(1)) * Decimal("1e-15"):
            raise damaged(path, f"it stores {name} = {kept}, but its orders add up to {value}")
