"""What was meant and what came of it, on disk before and after each order.

One SQLite file per mode, exchange and pair. Nothing here is believed about what is held: the
exchange is asked, and the journal explains the answer.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from krakenbot import log
from krakenbot.errors import ConfigError, StopError
from krakenbot.lock import make_private_directory
from krakenbot.log import redact
from krakenbot.model import ZERO, Execution, MarginSummary, Order, Purpose, Side

MIGRATIONS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE intents (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        interval_s INTEGER NOT NULL,
        candle INTEGER NOT NULL,
        purpose TEXT NOT NULL,
        side TEXT NOT NULL,
        volume TEXT NOT NULL,
        leverage INTEGER NOT NULL,
        reduce_only INTEGER NOT NULL,
        reason TEXT NOT NULL,
        held_before TEXT NOT NULL,
        created INTEGER NOT NULL,
        deadline INTEGER NOT NULL,
        accepted INTEGER NOT NULL DEFAULT 0,
        outcome TEXT,
        exchange_order_id TEXT,
        executed TEXT NOT NULL DEFAULT '0',
        cost TEXT NOT NULL DEFAULT '0',
        fee TEXT NOT NULL DEFAULT '0',
        settled INTEGER,
        note TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX intents_open ON intents (number) WHERE outcome IS NULL;
    CREATE INDEX intents_candle ON intents (interval_s, candle);
    CREATE INDEX intents_created ON intents (created);
    CREATE TABLE decisions (
        interval_s INTEGER NOT NULL,
        candle INTEGER NOT NULL,
        price TEXT NOT NULL,
        average TEXT NOT NULL,
        slope INTEGER NOT NULL,
        target INTEGER NOT NULL,
        held TEXT NOT NULL,
        reason TEXT NOT NULL,
        decided INTEGER NOT NULL,
        done INTEGER NOT NULL,
        PRIMARY KEY (interval_s, candle)
    ) WITHOUT ROWID;
    CREATE TABLE equity (
        time INTEGER PRIMARY KEY,
        price TEXT NOT NULL,
        held TEXT NOT NULL,
        pnl TEXT NOT NULL,
        fees TEXT NOT NULL,
        rollover TEXT NOT NULL,
        equity TEXT,
        margin_level TEXT
    );
    CREATE TABLE charges (
        id TEXT PRIMARY KEY,
        time INTEGER NOT NULL,
        kind TEXT NOT NULL,
        amount TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
)

NOT_SENT = "not sent"
REFUSED = "refused"
ABSENT = "absent"
ADOPTED = "adopted"
PUT_OFF = "put off"  # Refused for a reason that passes: the market's state, a rate limit.


class Intent(NamedTuple):
    """An order as it was meant, and what came of it: `outcome` is None while that is unknown."""

    id: str
    interval_s: int
    candle: int
    purpose: Purpose
    side: Side
    volume: Decimal
    leverage: int
    reduce_only: bool
    reason: str
    held_before: Decimal
    created: int
    deadline: int
    accepted: bool = False
    outcome: str | None = None
    exchange_order_id: str | None = None
    executed: Decimal = ZERO
    cost: Decimal = ZERO
    fee: Decimal = ZERO
    settled: int | None = None
    note: str = ""

    @property
    def order(self) -> Order:
        return Order(self.id, self.side, self.volume, self.leverage, self.reduce_only)


class Account(NamedTuple):
    """What the journal's own fills add up to, in quote currency but for `held`.

    `cash` is what sales brought less what purchases cost, before all fees.
    """

    held: Decimal
    cash: Decimal
    fees: Decimal
    rollover: Decimal

    def pnl(self, price: Decimal) -> Decimal:
        """Return profit or loss since the beginning, after all costs, held volume at `price`."""
        return self.cash + self.held * price - self.fees - self.rollover


WRITTEN_FIRST = Intent._fields.index("accepted")


def client_order_id(
    fingerprint: str, pair: str, interval_s: int, candle: int, purpose: Purpose, attempt: int
) -> str:
    """Return the UUID of one step of one decision: the same step has the same id for ever."""
    text = f"{fingerprint} {pair} {interval_s} {candle} {purpose.value} {attempt}"
    raw = bytearray(hashlib.sha256(text.encode()).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class Journal:
    """The journal on an open connection. All times are the exchange's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def close(self) -> None:
        self._db.close()

    # -- orders ------------------------------------------------------------------------------

    def write(self, intent: Intent) -> None:
        """Put the intent on disk. Returns only when it is there; refuses a second one like it."""
        with self._transaction():
            self._insert(intent, WRITTEN_FIRST)

    def _insert(self, intent: Intent, fields: int) -> None:
        names, marks = ", ".join(Intent._fields[:fields]), ", ".join("?" * fields)
        self._db.execute(
            f"INSERT INTO intents ({names}) VALUES ({marks})",
            [_stored(value) for value in intent[:fields]],
        )

    def accept(self, intent_id: str) -> None:
        """Note that the exchange has taken the order, whatever comes of it."""
        with self._transaction():
            self._db.execute("UPDATE intents SET accepted = 1 WHERE id = ?", (intent_id,))

    def conclude(
        self, intent: Intent, outcome: str, now: int, found: Execution | None = None, note: str = ""
    ) -> None:
        """Write the end of an intent and add its fill to the account, both or neither."""
        volume, cost, fee = (found.volume, found.cost, found.fee) if found else (ZERO, ZERO, ZERO)
        account = self.account()
        sign = intent.side.sign
        with self._transaction():
            changed = self._db.execute(
                "UPDATE intents SET outcome = ?, exchange_order_id = ?, executed = ?, cost = ?,"
                " fee = ?, settled = ?, note = ? WHERE id = ? AND outcome IS NULL",
                (
                    outcome,
                    _stored(found.exchange_order_id) if found else None,
                    str(volume),
                    str(cost),
                    str(fee),
                    now,
                    _stored(note),
                    intent.id,
                ),
            ).rowcount
            if changed != 1:
                raise StopError(f"intent {intent.id} already had an end; it cannot get another")
            if volume:
                self._set("held", account.held + sign * volume)
                self._set("cash", account.cash - sign * cost)
                self._set("fees", account.fees + fee)
                self._set("on_margin", int(intent.leverage > 0))

    def open_intents(self) -> list[Intent]:
        return self.intents("outcome IS NULL")

    def intents(self, where: str = "1", *values: object) -> list[Intent]:
        """Return intents in the order of their writing; `where` is this program's own SQL."""
        rows = self._db.execute(f"SELECT * FROM intents WHERE {where} ORDER BY number", values)
        return [_intent(row) for row in rows]

    def count(self, where: str, *values: object) -> int:
        return int(
            self._db.execute(f"SELECT count(*) FROM intents WHERE {where}", values).fetchone()[0]
        )

    def orders_since(self, time: int) -> int:
        """Return how many orders went out since then, whatever came of them."""
        return self.count(
            "created > ? AND outcome IS NOT ? AND outcome IS NOT ?", time, NOT_SENT, ADOPTED
        )

    def consecutive_unfilled(self) -> tuple[int, str]:
        """Return how many of the newest orders traded nothing, and the last one's note."""
        count, note = 0, ""
        rows = self._db.execute(
            "SELECT executed, outcome, note FROM intents WHERE outcome IS NOT ?"
            " AND outcome IS NOT ? AND number > ? ORDER BY number DESC LIMIT 50",
            (NOT_SENT, PUT_OFF, int(self.get("fruitless_from", "0"))),
        )
        for row in rows:
            if row["outcome"] is None or Decimal(row["executed"]):
                break
            note = note or f"{row['outcome']}: {row['note']}"
            count += 1
        return count, note

    def newest_turn_failed(self) -> bool:
        """Return whether the newest order was to turn at once and traded nothing."""
        row = self._db.execute(
            "SELECT purpose, executed FROM intents ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return row is not None and row[0] == Purpose.REVERSE.value and not Decimal(row[1])

    def knows_order(self, exchange_order_id: str) -> bool:
        return self.count("exchange_order_id = ?", exchange_order_id) > 0

    # -- the account as the journal explains it ------------------------------------------------

    def account(self) -> Account:
        rows = self._db.execute(
            "SELECT key, value FROM meta WHERE key IN ('held', 'cash', 'fees', 'rollover')"
        )
        values = {str(key): Decimal(value) for key, value in rows}
        return Account(*(values.get(field, ZERO) for field in Account._fields))

    def adopt(self, held: Decimal, price: Decimal, now: int, on_margin: bool) -> None:
        """Take over what is held, as if the difference had been traded at `price`; end a halt.

        Orders whose end was still unknown are given up: what is held now is the truth.
        """
        account = self.account()
        difference = held - account.held
        side, volume = Side.BUY if difference > 0 else Side.SELL, abs(difference)
        row = Intent(
            f"adopted {now} {self.count('1')}",
            0,
            now,
            Purpose.ADOPT,
            side,
            volume,
            int(on_margin),
            False,
            "run --adopt",
            account.held,
            now,
            now,
            True,
            ADOPTED,
            None,
            volume,
            volume * price,
            ZERO,
            now,
        )
        with self._transaction():
            self._db.execute(
                "UPDATE intents SET outcome = 'given up', settled = ? WHERE outcome IS NULL", (now,)
            )
            if difference:
                self._insert(row, len(row))
                self._set("held", held)
                self._set("cash", account.cash - difference * price)
            number = self._db.execute("SELECT max(number) FROM intents").fetchone()[0]
            self._set("fruitless_from", number or 0)
            self._set("entered", 1)
            for key in ("halted", "flatten", "difference"):
                self._set(key, None)
            self._set("on_margin", int(on_margin))

    def halt(self, reason: str) -> StopError:
        """Write why the bot stops for good, and return the error that ends it."""
        self.put(halted=reason)
        log.critical("halted reason=%s", reason)
        return StopError(reason)

    def resume(self, flatten: str | None = None) -> None:
        """Clear a halt, or replace it by a reason to flatten; losses count anew from here."""
        number = self._db.execute("SELECT max(number) FROM intents").fetchone()[0]
        self.put(
            halted=None,
            flatten=flatten,
            difference=None,
            pnl_at_resume=None,
            fruitless_from=number or 0,
        )

    def charge(self, charge_id: str, time: int, kind: str, amount: Decimal) -> None:
        """Book a margin opening fee or a rollover, once, however often it is told."""
        if self.is_charged(charge_id):
            return
        row = (_stored(charge_id), time, kind, str(amount))
        rollover = self.account().rollover + amount
        with self._transaction():
            self._db.execute("INSERT INTO charges VALUES (?, ?, ?, ?)", row)
            self._set("rollover", rollover)

    def is_charged(self, charge_id: str) -> bool:
        found = self._db.execute("SELECT 1 FROM charges WHERE id = ?", (_stored(charge_id),))
        return found.fetchone() is not None

    # -- decisions and equity ------------------------------------------------------------------

    def decide(self, row: Mapping[str, Any], summary: MarginSummary | None = None) -> None:
        """Write what was decided on a candle; with `summary` for good, and the equity after it."""
        account = self.account()
        with self._transaction():
            self._db.execute(
                "INSERT INTO decisions VALUES (:interval_s, :candle, :price, :average, :slope,"
                " :target, :held, :reason, :decided, :done) ON CONFLICT DO UPDATE SET"
                " target = :target, held = :held, reason = :reason, decided = :decided,"
                " done = :done WHERE done = 0",
                {**row, "done": summary is not None},
            )
            if summary is not None:
                level = summary.margin_level
                self._db.execute(
                    "INSERT OR REPLACE INTO equity VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        row["decided"],
                        row["price"],
                        row["held"],
                        str(account.pnl(Decimal(row["price"]))),
                        str(account.fees),
                        str(account.rollover),
                        str(summary.equity),
                        None if level is None else f"{level:.2f}",
                    ),
                )

    def is_done(self, interval_s: int, candle: int) -> bool:
        row = self._db.execute(
            "SELECT done FROM decisions WHERE interval_s = ? AND candle = ?", (interval_s, candle)
        ).fetchone()
        return row is not None and bool(row[0])

    def rows(self, query: str, *values: object) -> Iterator[sqlite3.Row]:
        """Yield rows of this program's own query, for commands that only read."""
        return self._db.execute(query, values)

    # -- single values -------------------------------------------------------------------------

    def get(self, key: str, default: str = "") -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else str(row[0])

    def put(self, **values: object) -> None:
        """Set single values, all or none; None removes one."""
        with self._transaction():
            for key, value in values.items():
                self._set(key, value)

    def _set(self, key: str, value: object) -> None:
        if value is None:
            self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            text = _stored(str(value))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, text))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError as error:
            raise StopError(f"the journal already holds this step: {error}") from error
        except sqlite3.Error as error:
            raise StopError(
                f"the journal cannot be written ({error}); nothing is sent without it. Check "
                "free space and permissions of the state directory"
            ) from error


def open_journal(path: Path) -> Journal:
    """Open or make the journal at `path`.

    Raises ConfigError when the folder or file cannot be used, StopError when the file is damaged;
    a damaged file is left as it is.
    """
    try:
        make_private_directory(path.parent)
        if path.exists():
            _check(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, cached_statements=16)
    except (OSError, sqlite3.OperationalError) as error:
        raise ConfigError(f"the journal {path} cannot be opened: {error}") from error
    return Journal(prepare(connection, path))


def prepare(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Set the connection to write for keeps, and bring its tables up to date."""
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -64")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise ConfigError(f"the journal {path} was written by a newer krakenbot")
        for number in range(version, len(MIGRATIONS)):
            connection.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            )
    except sqlite3.OperationalError as error:
        raise ConfigError(
            f"the journal {path} cannot be written: {error}. Nothing was sent; check free space "
            "and permissions"
        ) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from error
    return connection


def open_read_only(path: Path) -> Journal:
    """Open an existing journal for commands that only look; ConfigError when there is none."""
    if not path.exists():
        raise ConfigError(f"there is no journal {path} yet: this bot has not run")
    try:
        _check(path)
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        connection.execute("SELECT count(*) FROM meta")
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from error
    return Journal(connection)


def damaged(path: Path, error: object) -> StopError:
    return StopError(
        f"the journal {path} is damaged ({error}) and was left as it is. Look at the exchange what "
        "is held, move the file away, then start with --adopt or close the position by hand"
    )


def _check(path: Path) -> None:
    """Raise StopError when the file is not a journal that can be trusted; nothing is written."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise damaged(path, verdict)
            tables = [
                row[0] for row in connection.execute("SELECT sql FROM sqlite_master") if row[0]
            ]
            if any(table not in "".join(MIGRATIONS) for table in tables):
                raise damaged(path, "its tables are not a journal's")
            if tables:
                journal = Journal(connection)
                if not all(value.is_finite() for value in journal.account()):
                    raise damaged(path, "its account holds what is no number")
                journal.intents("outcome IS NULL")
                journal.consecutive_unfilled()
                for key in ("first_direction", "direction", "charges_read", "pnl_at_resume"):
                    Decimal(journal.get(key) or 0)
        finally:
            connection.close()
    except sqlite3.OperationalError:
        raise
    except (sqlite3.DatabaseError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise damaged(path, repr(error)) from error


def _stored(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):  # Half a surrogate pair from outside cannot be stored as it is.
        return redact(value.encode("utf-8", "backslashreplace").decode())
    return str(value) if isinstance(value, Decimal) else value


def _intent(row: sqlite3.Row) -> Intent:
    return Intent(*(_READ.get(name, _same)(row[name]) for name in Intent._fields))


def _same(value: Any) -> Any:
    return value


_READ: dict[str, Callable[[Any], Any]] = {
    "purpose": Purpose,
    "side": Side,
    **dict.fromkeys(("volume", "held_before", "executed", "cost", "fee"), Decimal),
    **dict.fromkeys(("reduce_only", "accepted"), bool),
}
