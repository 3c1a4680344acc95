"""The journal: intents, on disk before their orders are sent, and what became of them.

One SQLite file per mode, exchange, account and market. What is held is asked of the exchange, and
the journal must agree with the answer; without margin, it says which coins are the bot's. SQL is
only here, in journal_file and, for commands that only read, in commands/views.py.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

from krakenbot import log
from krakenbot.errors import StopError
from krakenbot.log import redact
from krakenbot.model import ZERO, Execution, MarginSummary, Purpose, Side
from krakenbot.pairs import decimal
from krakenbot.records import PASSING, Account, Booked, Equity, Intent, Outcome, assumed_id

BUSY_S = 20.0  # How long to wait for another program's lock on the file.
CLEARED = "a safety stop, cleared since then"  # In place of why the process ended.
# In SQL: leaves out temporary failures. Open orders count.
_COUNTED = "coalesce(outcome, '') NOT IN ('{}')".format("', '".join(PASSING))


class Journal:
    """The journal on an open connection. All times are the exchange's, in unix seconds.

    Every method raises StopError when the file cannot be read or written, or is damaged.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path = Path(":memory:")) -> None:
        self._db, self._path, self._file = connection, path, _file_at(path)
        self._account: Account | None = None  # None: to be summed anew.
        self.on_write: Callable[[str], None] = lambda intent_id: None

    def close(self) -> None:
        self._db.close()

    def write(self, intent: Intent) -> None:
        """Commit the intent to disk before returning; StopError if its id is there already.

        `on_write` is called with the id before anything can be sent.
        """
        with self._transaction():
            self._insert("intents", intent._asdict())
            self._check_file()
        self.on_write(intent.id)

    def _check_file(self) -> None:
        """Raise StopError when no later process would find what is written now."""
        if _file_at(self._path) != self._file:
            raise StopError(
                f"the journal {self._path} was removed or replaced while the bot ran. Nothing is "
                "sent without it. Put it back, or let `krakenbot adopt` take over what is held"
            )

    def accept(self, intent_id: str) -> None:
        """Record that the exchange has accepted the order."""
        with self._transaction():
            self._db.execute("UPDATE intents SET accepted = 1 WHERE id = ?", (intent_id,))

    def conclude(
        self,
        intent: Intent,
        outcome: Outcome,
        now: int,
        found: Execution | None = None,
        note: str = "",
        opening_fee: Decimal = ZERO,
    ) -> None:
        """Record the final state and book the fill in one transaction.

        `opening_fee`, in quote currency, is an estimate until the ledger shows the real fee.
        """
        volume, cost, fee = (found.volume, found.cost, found.fee) if found else (ZERO, ZERO, ZERO)
        order_id = found.exchange_order_id if found else None
        row = (outcome, order_id, volume, cost, fee, now, note, intent.id)
        with self._transaction():
            changed = self._db.execute(
                "UPDATE intents SET outcome = ?, exchange_order_id = ?, executed = ?, cost = ?,"
                " fee = ?, settled = ?, note = ? WHERE id = ? AND outcome IS NULL",
                [_stored(value) for value in row],
            ).rowcount
            if changed != 1:
                raise StopError(f"intent {intent.id} is final already; its outcome cannot change")
            if volume:
                self._set(on_margin=int(intent.leverage > 0))
            if opening_fee:
                assumed = Booked(assumed_id(intent.id), now, "opening", opening_fee)
                self._insert("charges", assumed._asdict())
            self._account = None

    def intents(self) -> list[Intent]:
        """Return all intents, oldest first."""
        return self._intents("ORDER BY number")

    def open_intents(self) -> list[Intent]:
        return self._intents("WHERE outcome IS NULL ORDER BY number")

    def newest_intent(self) -> Intent | None:
        return next(iter(self._intents("ORDER BY number DESC LIMIT 1")), None)

    def newest_of(self, purpose: Purpose, count: int) -> list[Intent]:
        """Return at most that many orders of the purpose, newest first."""
        return self._intents("WHERE purpose = ? ORDER BY number DESC LIMIT ?", purpose.value, count)

    def intents_of(self, interval_s: int, candle: int) -> list[Intent]:
        where = "WHERE interval_s = ? AND candle = ? ORDER BY number"
        return self._intents(where, interval_s, candle)

    def intents_between(self, first: int, last: int) -> list[Intent]:
        """Return the intents created between these times, both included."""
        return self._intents("WHERE created BETWEEN ? AND ? ORDER BY number", first, last)

    def _intents(self, rest: str, *values: object) -> list[Intent]:
        return list(self.read(Intent, f"SELECT * FROM intents {rest}", *values))

    def orders_since(self, time: int) -> int:
        """Return how many orders since then were accepted, refused for good, or are open."""
        where = f"created > ? AND {_COUNTED} AND outcome IS NOT ?"
        return self._number(f"SELECT count(*) FROM intents WHERE {where}", time, Outcome.ADOPTED)

    def consecutive_unfilled(self) -> tuple[int, str]:
        """Return how many of the newest orders were not filled, and the last one's note."""
        where = f"WHERE {_COUNTED} AND number > ? ORDER BY number DESC LIMIT 10"
        newest = self._intents(where, int(self.get("unfilled_from") or 0))
        failed = list(takewhile(lambda intent: intent.outcome and not intent.executed, newest))
        return len(failed), f"{failed[0].ending}: {failed[0].note}" if failed else ""

    def newest_record(self) -> int:
        """Return the time of the newest record, 0 in a new journal."""
        return max(
            int(self.get("created") or 0),
            self._number("SELECT max(created) FROM intents"),
            self._number("SELECT max(settled) FROM intents"),
            self._number("SELECT max(decided) FROM decisions"),
        )

    def knows_order(self, exchange_order_id: str) -> bool:
        query = "SELECT count(*) FROM intents WHERE exchange_order_id = ?"
        return self._number(query, exchange_order_id) > 0

    def account(self) -> Account:
        """Return the sum of all fills and charges."""
        if self._account is None:
            held = cash = fees = ZERO
            query = "SELECT side, executed, cost, fee FROM intents WHERE executed != '0'"
            for side, *amounts in self._rows(f"{query} ORDER BY number"):
                volume, cost, fee = map(decimal, amounts)
                held += Side(side).sign * volume
                cash -= Side(side).sign * cost
                fees += fee
            charged = {"opening": ZERO, "rollover": ZERO}
            for kind, amount in self._rows("SELECT kind, amount FROM charges"):
                charged[kind] += decimal(amount)
            self._account = Account(held, cash, fees, charged["rollover"], charged["opening"])
        return self._account

    def is_exposed(self) -> bool:
        """Return whether something is held, or may be by an order whose outcome is unknown."""
        return bool(self.account().held or self.open_intents())

    def adopt(self, held: Decimal, price: Decimal, now: int, on_margin: bool) -> None:
        """Adopt what is held as if the difference had been traded at `price`; clear a halt.

        `max_loss` counts from here again. Orders whose outcome is unknown become ABANDONED: what is
        held now is the truth.
        """
        recorded = self.account().held
        difference = held - recorded
        side, volume = Side.BUY if difference > 0 else Side.SELL, abs(difference)
        row = Intent(
            id=f"adopted {now} {self._newest_number()}",
            interval_s=0,
            candle=now,
            purpose=Purpose.ADOPT,
            side=side,
            volume=volume,
            leverage=int(on_margin),
            reduce_only=False,
            reason="adopted",
            held_before=recorded,
            created=now,
            deadline=now,
            accepted=True,
            outcome=Outcome.ADOPTED,
            executed=volume,
            cost=volume * price,
            settled=now,
        )
        with self._transaction():
            self._db.execute(
                "UPDATE intents SET outcome = ?, settled = ? WHERE outcome IS NULL",
                (Outcome.ABANDONED, now),
            )
            if difference:
                self._insert("intents", row._asdict())
            # `created`: all that was traded before is taken over.
            self._set(entered=1, on_margin=int(on_margin), adopted=now, created=now)
            self._forget_halt()
            self._account = None
        if difference:
            self.on_write(row.id)

    def halt(self, reason: str, held: Decimal | None = None, **more: object) -> StopError:
        """Record why the bot halts and `more` values, and return the error to raise.

        `held` is what the exchange holds, where that differs from what the journal records.
        """
        self.put(halted=reason, exchange_position=held, **more)
        log.critical("halted reason=%s", reason)
        return StopError(reason)

    def keep_stop(self, error: StopError) -> None:
        """Record a safety stop that was raised elsewhere, so that it outlasts a restart.

        A disk failure is not recorded: the disk may have space again by then.
        """
        is_of_disk = isinstance(error.__cause__, sqlite3.Error | OSError)
        if error.exit_code == 76 and not is_of_disk and not self.get("halted"):
            self.put(halted=str(error))

    def resume(self, flatten: str | None = None) -> None:
        """Clear a halt, or replace it by a reason to flatten; `max_loss` counts from here again."""
        with self._transaction():
            self._forget_halt()
            self._set(flatten=flatten)

    def _forget_halt(self) -> None:
        if self.get("halted") and self.get("exit_code") == "76":
            self._set(end_reason=CLEARED)
        self._set(halted=None, flatten=None, difference=None, exchange_position=None)
        self._set(unfilled_from=self._newest_number(), pnl_at_resume=None)

    def book(self, charges: Sequence[Booked], replaces: str = "") -> None:
        """Book charges in one transaction, skipping those that are booked already.

        `replaces` is the id of an estimated charge that they replace.
        """
        with self._transaction():
            self._db.execute("DELETE FROM charges WHERE id = ?", (_stored(replaces),))
            for charge in charges:
                if not self.is_charged(charge.id):
                    self._insert("charges", charge._asdict())
            self._account = None

    def is_charged(self, charge_id: str) -> bool:
        return self._number("SELECT count(*) FROM charges WHERE id = ?", _stored(charge_id)) > 0

    def decide(self, row: Mapping[str, Any], summary: MarginSummary | None = None) -> None:
        """Record a decision on a candle; with `summary` it is final, and equity is recorded too."""
        account = self.account()
        self._check_file()
        with self._transaction():
            self._db.execute(
                "INSERT INTO decisions VALUES (:interval_s, :candle, :price, :average, :slope,"
                " :target, :held, :reason, :decided, :done) ON CONFLICT DO UPDATE SET"
                " target = :target, held = :held, reason = :reason, decided = :decided,"
                " done = :done WHERE done = 0",
                {**row, "done": summary is not None},
            )
            if summary is None:
                return
            price, level = Decimal(row["price"]), summary.margin_level
            equity = Equity(
                row["decided"],
                price,
                row["held"],
                account.pnl(price),
                account.fees,
                account.margin_fees,
                account.rollover,
                summary.equity,
                None if level is None else level.quantize(Decimal("0.01")),
            )
            self._insert("equity", equity._asdict())

    def is_done(self, interval_s: int, candle: int) -> bool:
        query = "SELECT count(*) FROM decisions WHERE done AND interval_s = ? AND candle = ?"
        return self._number(query, interval_s, candle) > 0

    def newest_equity(self) -> Equity | None:
        rows = self.read(Equity, "SELECT * FROM equity ORDER BY time DESC LIMIT 1")
        return next(rows, None)

    def get(self, key: str, default: str = "") -> str:
        """Return a stored value, `default` if there is none."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return next((str(row[0]) for row in rows), default)

    def put(self, **values: object) -> None:
        """Set values in one transaction; None removes a value."""
        with self._transaction():
            self._set(**values)

    def _set(self, **values: object) -> None:
        for key, value in values.items():
            if value is None:
                self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                text = _stored(str(value))
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, text))

    def _insert(self, table: str, row: Mapping[str, object]) -> None:
        """Insert a row; only an equity row replaces one of the same second."""
        verb = "INSERT OR REPLACE" if table == "equity" else "INSERT"
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        self._db.execute(
            f"{verb} INTO {table} ({names}) VALUES ({marks})", list(map(_stored, row.values()))
        )

    def _newest_number(self) -> int:
        return self._number("SELECT max(number) FROM intents")

    def _number(self, query: str, *values: object) -> int:
        return int(next(self._rows(query, *values))[0] or 0)

    def read(self, kind: Any, query: str, *parameters: object) -> Iterator[Any]:
        """Yield rows as the named tuple `kind`, whose fields are named as the columns are."""
        fields = kind.__annotations__.items()
        for row in self._rows(query, *parameters):
            try:
                values = {name: _typed(of, row[name]) for name, of in fields}
            except (ValueError, TypeError, ArithmeticError) as error:
                what = f"{kind.__name__} {tuple(row)}: {error!r}"
                raise damaged(self._path, what) from sqlite3.DatabaseError(what)
            yield kind(**values)

    def _rows(self, query: str, *values: object) -> Iterator[sqlite3.Row]:
        with self._explained("read"):
            yield from self._db.execute(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained("written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # A defect of this program, not of the disk.
        except sqlite3.IntegrityError as error:
            raise StopError(f"the journal already holds this step: {error}") from error
        except sqlite3.OperationalError as error:
            words = f"the journal {self._path} cannot be {done} ({error}); nothing is sent without"
            raise StopError(f"{words} it. {advice(error)}") from error
        except sqlite3.Error as error:
            raise damaged(self._path, error) from error


def _file_at(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at this path from any other; None if there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def advice(error: sqlite3.Error) -> str:
    """Return what a person can do about an error of SQLite or the system that is not damage."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        holder = f"Another program has held its lock for {BUSY_S:.0f} s: a backup"
        return f"{holder} or an open sqlite3? End that and start again"
    if code == sqlite3.SQLITE_READONLY:
        return "The file, its folder or the whole disk is read-only"
    return "Check free space and permissions of the state directory"


def _stored(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):  # Half a surrogate pair cannot be stored as it is.
        return redact(value.encode("utf-8", "backslashreplace").decode())
    return str(value) if isinstance(value, Decimal) else value


def _typed(of: Any, stored: object) -> object:
    """Return a stored value as the type `of` or, if that is `Decimal | None`, as its first part."""
    if stored is None:
        return None
    (kind, *_) = get_args(of) or (of,)
    return decimal(stored) if kind is Decimal else kind(stored)


def damaged(path: Path, error: object) -> StopError:
    """Return the error for a damaged journal."""
    return StopError(
        f"the journal {path} is damaged ({error}) and was left as it is. Check at the exchange "
        "what is held, move the file away, then `krakenbot adopt` or close the position by hand"
    )
