import contextlib
import errno
import os
import re
import resource
import shutil
import sqlite3
import stat
import threading
import unittest
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import patch
from uuid import UUID

from krakenbot.commands.views import decisions, equity
from krakenbot.errors import ConfigError, StopError
from krakenbot.journal import Journal
from krakenbot.journal_file import MIGRATIONS, open_journal, open_read_only, prepare
from krakenbot.lock import Lock, Nonces
from krakenbot.model import Execution, MarginSummary, OrderStatus, Purpose, Side
from krakenbot.presence import is_locked
from krakenbot.records import PASSING, Booked, Intent, Outcome, client_order_id
from tests.folders import own_folder
from tests.logs import logged

CANDLE = 1_790_000_040
ROW: dict[str, Any] = {
    "interval_s": 60,
    "candle": CANDLE,
    "price": "50000",
    "average": "49990",
    "slope": 1,
    "target": 1,
    "held": "0",
    "reason": "long",
    "decided": CANDLE + 61,
}

SUMMARY = MarginSummary(Decimal(2000), Decimal(0), Decimal(0))


def intent(
    candle: int = CANDLE, purpose: Purpose = Purpose.OPEN, attempt: int = 0, **more: Any
) -> Intent:
    wanted = Intent(
        id=client_order_id("abc", "XBTUSD", 60, candle, purpose, attempt),
        interval_s=60,
        candle=candle,
        purpose=purpose,
        side=Side.BUY,
        volume=Decimal("0.04"),
        leverage=2,
        reduce_only=False,
        reason="long",
        held_before=Decimal(0),
        created=candle + 61,
        deadline=candle + 76,
    )
    return wanted._replace(**more)


def execution(wanted: Intent, volume: str, cost: str, fee: str = "0") -> Execution:
    numbers = Decimal(volume), Decimal(cost), Decimal(fee)
    return Execution(f"O{wanted.id[:5]}", OrderStatus.CLOSED, *numbers)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILLED = execution(intent(), "0.04", "2000", "16")


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)
        self.path = self.folder / "state" / "live.sqlite"

    def journal(self) -> Journal:
        journal = open_journal(self.path)
        self.addCleanup(journal.close)
        return journal

    def connection(self) -> sqlite3.Connection:
        """Return a connection as a journal has it."""
        self.path.parent.mkdir(exist_ok=True)
        connection = prepare(sqlite3.connect(self.path, isolation_level=None))
        self.addCleanup(connection.close)
        return connection

    def sql(self, text: str) -> list[Any]:
        """Do what another program may do to the file."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(text).fetchall()

    def closed(self) -> bytes:
        """Return the file of a journal with one intent that was closed."""
        journal = open_journal(self.path)
        journal.write(intent())
        journal.close()
        return self.path.read_bytes()

    def look(self, path: Path) -> list[Intent]:
        """Return the intents as a command finds them that only looks."""
        with contextlib.closing(open_read_only(path)) as journal:
            return journal.intents()

    def traded(
        self, journal: Journal, number: int, side: Side, volume: str, cost: str, fee: str = "0"
    ) -> None:
        wanted = intent(CANDLE + 60 * number, side=side, volume=Decimal(volume))
        journal.write(wanted)
        done = execution(wanted, volume, cost, fee)
        journal.conclude(wanted, Outcome.CLOSED, wanted.created + 2, done)


class TestOrders(Folder):
    def test_an_intent_is_on_disk_as_it_was_meant_before_its_writing_returns(self) -> None:
        journal, volume, held = self.journal(), Decimal("0.00000001"), Decimal("-0.04")
        wanted = intent(reduce_only=True, held_before=held, volume=volume)
        journal.write(wanted)
        self.assertEqual([wanted], journal.open_intents())
        self.assertEqual([wanted], self.look(self.path))
        self.assertEqual(2, self.connection().execute("PRAGMA synchronous").fetchone()[0], "FULL")

    def test_a_second_intent_for_the_same_step_is_refused_and_nothing_is_lost(self) -> None:
        journal = self.journal()
        journal.write(intent())
        with self.assertRaises(StopError) as caught:
            journal.write(intent(volume=Decimal(9)))
        self.assertEqual(76, caught.exception.exit_code)
        self.assertEqual([intent()], journal.intents())
        journal.write(intent(attempt=1))
        self.assertEqual(2, len(journal.open_intents()))

    def test_the_same_step_has_the_same_uuid_for_ever_and_every_other_step_another(self) -> None:
        base = ("abc", "XBTUSD", 60, CANDLE, Purpose.OPEN, 0)
        first = client_order_id(*base)
        self.assertEqual((str(UUID(first)), 4), (first, UUID(first).version))
        self.assertEqual(first, client_order_id(*base))
        changes = enumerate(("abd", "ETHUSD", 300, CANDLE + 60, Purpose.CLOSE, 1))
        others = {client_order_id(*base[:n], value, *base[n + 1 :]) for n, value in changes}
        self.assertEqual(6, len(others - {first}))

    def test_an_order_has_one_end_which_is_written_with_its_fill_that_is_counted_once(self) -> None:
        journal = self.journal()
        self.assertRaises(StopError, journal.conclude, intent(), Outcome.CLOSED, CANDLE, FILLED)
        journal.write(intent())
        journal.accept(intent().id)
        self.assertEqual([intent(accepted=True)], journal.open_intents())
        journal.conclude(intent(), Outcome.CLOSED, CANDLE + 63, FILLED)
        self.assertEqual([], journal.open_intents())
        self.assertTrue(journal.knows_order(f"O{intent().id[:5]}"))
        self.assertFalse(journal.knows_order("OTHER"))
        for outcome in ("closed", Outcome.REFUSED, Outcome.ABSENT):
            with self.assertRaises(StopError):
                journal.conclude(intent(), outcome, CANDLE + 64, FILLED)
        account = journal.account()
        self.assertEqual((Decimal("0.04"), Decimal(-2000), Decimal(16)), account[:3])

    def test_what_left_nothing_behind_counts_neither_for_the_day_nor_as_unfilled(self) -> None:
        journal = self.journal()
        for number, outcome in enumerate((*PASSING, Outcome.REFUSED, Outcome.CANCELED)):
            wanted = intent(CANDLE + 60 * number)
            journal.write(wanted)
            journal.conclude(wanted, outcome, wanted.created)
        self.assertEqual(2, journal.orders_since(CANDLE))
        self.assertEqual(2, journal.consecutive_unfilled()[0])
        journal.write(intent(CANDLE + 600))
        self.assertEqual(3, journal.orders_since(CANDLE))
        self.assertEqual(1, journal.orders_since(CANDLE + 500))

    def test_fruitless_orders_are_counted_until_one_trades_or_someone_resumes(self) -> None:
        journal = self.journal()

        def fruitless(number: int) -> None:
            wanted = intent(CANDLE + 60 * number)
            journal.write(wanted)
            journal.conclude(wanted, Outcome.REFUSED, wanted.created, note=f"no {number}")

        for number in range(3):
            fruitless(number)
        self.assertEqual((3, "refused: no 2"), journal.consecutive_unfilled())
        self.traded(journal, 10, Side.BUY, "0.01", "500")
        self.assertEqual(0, journal.consecutive_unfilled()[0])
        fruitless(11)
        self.assertEqual(1, journal.consecutive_unfilled()[0])
        journal.resume()
        self.assertEqual(0, journal.consecutive_unfilled()[0])


class TestAccount(Folder):
    def test_the_account_is_the_sum_of_all_fills(self) -> None:
        journal = self.journal()
        self.traded(journal, 0, Side.BUY, "0.04", "2000", "16")
        self.traded(journal, 1, Side.SELL, "0.04", "2040", "16.32")
        self.traded(journal, 2, Side.SELL, "0.03", "1530", "12.24")
        account = journal.account()
        self.assertEqual((Decimal("-0.03"), Decimal(1570), Decimal("44.56")), tuple(account)[:3])
        # 40 won, and the short stands at 51,000: 30 more at 50,000.
        self.assertEqual(Decimal(70) - Decimal("44.56"), account.pnl(Decimal(50000)))

    def test_an_adopted_position_counts_as_traded_at_its_price(self) -> None:
        journal = self.journal()
        journal.adopt(Decimal(1), Decimal(100), CANDLE, True)
        self.assertEqual(Decimal(1), journal.account().held)
        self.assertEqual(0, journal.account().pnl(Decimal(100)))
        self.assertEqual(Decimal(10), journal.account().pnl(Decimal(110)))
        self.assertTrue(journal.get("entered"))

    def test_a_charge_is_booked_once_however_often_it_is_told(self) -> None:
        journal = self.journal()
        for _ in range(3):
            journal.book([Booked("L1", CANDLE, "rollover", Decimal("0.4"))])
        journal.book([Booked("L2", CANDLE, "opening", Decimal("0.1"))])
        self.assertEqual((Decimal("0.4"), Decimal("0.1")), journal.account()[3:])
        self.assertTrue(journal.is_charged("L1"))

    def test_resume_clears_a_halt_and_lets_the_loss_count_anew(self) -> None:
        journal = self.journal()
        journal.put(halted="loss", flatten="loss", pnl_at_resume=Decimal(-3))
        journal.resume()
        for key in ("halted", "flatten", "pnl_at_resume"):
            self.assertEqual("", journal.get(key))


class TestDecisions(Folder):
    def test_a_finished_decision_stays_as_it_is(self) -> None:
        journal = self.journal()
        self.assertFalse(journal.is_done(60, CANDLE))
        journal.decide(ROW)
        self.assertFalse(journal.is_done(60, CANDLE))
        summary = MarginSummary(Decimal(2000), Decimal(40), Decimal(1000))
        journal.decide(ROW | {"reason": "on target"}, summary)
        self.assertTrue(journal.is_done(60, CANDLE))
        self.assertFalse(journal.is_done(300, CANDLE))
        journal.decide(ROW | {"reason": "another", "target": -1})
        (row,) = self.sql("SELECT * FROM decisions")
        self.assertEqual(("on target", 1, 1), (row["reason"], row["target"], row["done"]))
        (row,) = self.sql("SELECT * FROM equity")
        self.assertEqual(("2040", "204.00"), (row["equity"], row["margin_level"]))

    def test_single_values_are_set_and_removed_all_or_none(self) -> None:
        journal = self.journal()
        journal.put(a=1, b="two")
        journal.put(a=None, c=Decimal("0.1"))
        self.assertEqual(("", "two", "0.1"), tuple(journal.get(key) for key in "abc"))


class TestFile(Folder):
    def test_a_new_journal_and_its_folder_are_readable_by_their_owner_only(self) -> None:
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        journal = self.journal()
        journal.put(a=1)
        self.assertEqual(0o700, stat.S_IMODE(self.path.parent.stat().st_mode))
        for path in self.path.parent.iterdir():
            self.assertEqual(0o600, stat.S_IMODE(path.stat().st_mode), path.name)

    def test_what_was_written_survives_closing_and_a_death_without_it(self) -> None:
        self.closed()
        journal = self.journal()
        self.assertEqual([intent()], journal.open_intents())
        journal.write(intent(attempt=1))
        copy = shutil.copytree(self.path.parent, self.folder / "copy")
        again = open_journal(copy / self.path.name)
        self.addCleanup(again.close)
        self.assertEqual([intent(), intent(attempt=1)], again.open_intents())

    def test_a_file_from_a_death_before_the_tables_were_made_is_brought_up_to_date(self) -> None:
        self.path.parent.mkdir()
        self.path.touch(mode=0o600)
        journal = self.journal()
        self.assertEqual([], journal.intents())
        self.assertEqual(len(MIGRATIONS), self.sql("PRAGMA user_version")[0][0])

    def test_a_journal_of_a_newer_program_is_refused_and_left_as_it_is(self) -> None:
        self.closed()
        self.sql(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        before = self.path.read_bytes()
        self.assertRaises(ConfigError, open_journal, self.path)
        self.assertEqual(before, self.path.read_bytes())

    def test_what_no_journal_can_hold_is_called_damaged(self) -> None:
        whole = self.closed()
        numbers = ("purpose", "outcome", "created", "executed")
        values = ("created", "adopted", "exchange_position", "warnings", "next_decision")
        for change in (
            *(f"UPDATE intents SET {name} = 'x'" for name in numbers),
            "UPDATE intents SET executed = 'NaN'",
            *(f"INSERT INTO meta VALUES ('{name}', 'x')" for name in values),
            "INSERT INTO meta VALUES ('warnings', '[1]')",
            'INSERT INTO meta VALUES (\'warnings\', \'{"a": ["b", "c"]}\')',
        ):
            with self.subTest(change):
                self.path.write_bytes(whole)
                self.sql(change)
                with self.assertRaisesRegex(StopError, "damaged"):
                    open_journal(self.path)

    def test_a_row_that_only_commands_read_is_called_damaged_where_it_is_odd(self) -> None:
        journal = self.journal()
        journal.decide(ROW, SUMMARY)
        for change in ("price = 'x'", "price = 'NaN'", "price = '1e4000'", "held = ''"):
            for table in ("decisions", "equity"):
                self.sql(f"UPDATE {table} SET {change}")
            for reading in (
                lambda: list(decisions(journal)),
                lambda: list(equity(journal)),
                journal.newest_equity,
            ):
                with self.subTest(change), self.assertRaisesRegex(StopError, "damaged.*left as it"):
                    reading()

    def test_a_file_that_fails_in_the_middle_of_a_run_stops_it_in_one_sentence(self) -> None:
        whole = self.journal()
        for kind in (sqlite3.OperationalError, sqlite3.DatabaseError):
            error = kind("disk I/O error")
            failing = Journal(FullDisk(self.connection(), ("SELECT", "PRAGMA"), error), self.path)
            for reading in (
                failing.account,
                failing.intents,
                failing.newest_record,
                partial(failing.get, "halted"),
                lambda failing=failing: list(decisions(failing)),
            ):
                said = f"the journal {re.escape(str(self.path))} .*disk I/O error"
                with self.subTest(kind), self.assertRaisesRegex(StopError, said) as caught:
                    reading()
                self.assertEqual(76, caught.exception.exit_code)
                whole.keep_stop(caught.exception)
                self.assertEqual("", whole.get("halted"), "a disk may come back")

    def test_damage_that_shows_while_writing_is_called_damage(self) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        failing = Journal(FullDisk(self.connection(), "BEGIN", error), self.path)
        self.assertRaisesRegex(StopError, "damaged.*malformed", failing.put, a=1)

    def test_a_damaged_file_is_refused_and_byte_identical_afterwards(self) -> None:
        journal = open_journal(self.path)
        for number in range(200):
            journal.write(intent(CANDLE + 60 * number))
        journal.close()
        whole = self.path.read_bytes()
        middle = len(whole) // 2
        other = self.enterContext(contextlib.closing(sqlite3.connect(":memory:")))
        other.executescript(f"CREATE TABLE t (x); PRAGMA user_version = {len(MIGRATIONS)};")
        for name, text in {
            "zeroed": whole[:middle] + b"\0" * 4096 + whole[middle + 4096 :],
            "cut": whole[: middle - 100],
            "header": b"x" * 100 + whole[100:],
            "first page": whole[:100] + b"\xff" * 3996 + whole[4096:],
            "text": b"this is no database\n" * 100,
            "of another program": other.serialize(),
        }.items():
            self.path.write_bytes(text)
            said = "(?s)damaged.*left as it is.*krakenbot adopt"
            with self.subTest(name), self.assertRaisesRegex(StopError, said) as caught:
                open_journal(self.path)
            self.assertEqual((76, text), (caught.exception.exit_code, self.path.read_bytes()))
            self.assertRaises((StopError, ConfigError), open_read_only, self.path)

    def test_a_journal_of_0_2_0_goes_on_with_the_same_account(self) -> None:
        self.old_journal()
        for journal in (open_read_only(self.path), self.journal(), open_read_only(self.path)):
            self.addCleanup(journal.close)
            account = journal.account()
            self.assertEqual((Decimal("0.04"), Decimal(-2000), Decimal(16)), account[:3])
            self.assertEqual(Decimal("0.5"), account.margin_fees + account.rollover)
            self.assertEqual((1, ""), (len(journal.intents()), journal.get("held")))

    def test_a_journal_of_0_2_0_that_remembers_another_account_is_not_believed(self) -> None:
        self.old_journal(held="0.05")
        before = self.path.read_bytes()
        with self.assertRaisesRegex(StopError, "held = 0.05, but its orders add up to 0.04"):
            open_journal(self.path)
        self.assertEqual(before, self.path.read_bytes())

    def old_journal(self, held: str = "0.04") -> None:
        """Make a journal as 0.2.0 left it: one order, one charge, and the account in `meta`."""
        self.path.parent.mkdir(mode=0o700)
        db = sqlite3.connect(self.path)
        db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
        values = {"held": held, "cash": "-2000", "fees": "16", "rollover": "0.5"}
        db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        db.execute(
            "INSERT INTO intents VALUES (1, 'id', 60, 1, 'open', 'buy', '0.04', 2, 0, 'rises', '0',"
            " 1, 16, 1, 'closed', 'OX', '0.04', '2000', '16', 3, '')"
        )
        db.execute("INSERT INTO charges VALUES ('L1', 1, 'rollover', '0.5')")
        db.commit()
        db.close()

    def test_a_sound_journal_that_may_only_be_read_is_read(self) -> None:
        self.journal().write(intent())
        self.addCleanup(self.path.parent.chmod, 0o700)
        before = contents(self.path.parent)
        for _ in range(2):
            self.path.parent.chmod(0o500)
            self.assertEqual([intent()], self.look(self.path))
            self.path.parent.chmod(0o700)
            self.journal().close()
        self.assertEqual(before.keys(), contents(self.path.parent).keys())

    def test_a_journal_that_was_closed_is_read_on_a_full_disk(self) -> None:
        self.closed()
        with full_disk():
            self.assertEqual([intent()], self.look(self.path))

    def test_on_a_full_disk_no_journal_is_read_without_its_newest_rows(self) -> None:
        self.journal().write(intent())
        copy = self.folder / self.path.name
        for end in ("", "-wal"):
            shutil.copy(f"{self.path}{end}", f"{copy}{end}")
        with full_disk(), self.assertRaises(ConfigError):
            open_read_only(copy)
        self.assertEqual([intent()], self.look(copy))

    @unittest.skipIf(os.geteuid() == 0, "permissions do not bind root")
    def test_a_journal_of_somebody_else_is_not_called_damaged(self) -> None:
        self.journal().write(intent())
        self.addCleanup(self.path.parent.chmod, 0o700)
        self.path.parent.chmod(0)
        for opening in (open_journal, open_read_only):
            with self.assertRaises(ConfigError) as caught:
                opening(self.path)
            self.assertNotIn("damaged", str(caught.exception))

    def test_a_lock_of_some_seconds_is_waited_for_and_a_longer_one_is_named(self) -> None:
        connection = self.connection()
        journal = Journal(connection)
        holder = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.addCleanup(holder.close)
        holder.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA busy_timeout = 50")
        with self.assertRaisesRegex(StopError, "Another program has held its lock"):
            journal.put(a=1)
        connection.execute("PRAGMA busy_timeout = 5000")
        release = threading.Timer(0.1, holder.execute, ["ROLLBACK"])
        release.start()
        journal.put(a=1)
        release.join()
        self.assertEqual("1", journal.get("a"))

    def test_a_link_a_folder_or_a_file_in_the_way_is_a_configuration_error(self) -> None:
        elsewhere = self.folder / "elsewhere"
        self.path.parent.mkdir()
        self.path.symlink_to(elsewhere)
        self.assertRaises(ConfigError, open_journal, self.path)
        self.assertFalse(elsewhere.exists())
        elsewhere.touch()
        self.assertRaises(ConfigError, open_journal, self.path)
        self.assertEqual(b"", elsewhere.read_bytes())
        for path in (self.path.parent, elsewhere / "live.sqlite"):
            self.assertRaises(ConfigError, open_journal, path)

    @unittest.skipIf(os.geteuid() == 0, "permissions do not bind root")
    def test_a_folder_that_cannot_be_written_is_a_configuration_error(self) -> None:
        self.path.parent.mkdir(mode=0o500)
        self.assertRaises(ConfigError, open_journal, self.path)
        self.assertRaises(ConfigError, Lock, self.path.with_suffix(".lock"), "the journal")

    def test_only_looking_needs_a_journal_and_cannot_write_it(self) -> None:
        self.assertRaises(ConfigError, open_read_only, self.path)
        self.assertFalse(self.path.exists())
        self.journal().write(intent())
        looking = open_read_only(self.path)
        self.addCleanup(looking.close)
        self.assertEqual([intent()], looking.intents())
        self.assertRaises(StopError, looking.put, a=1)

    def test_no_order_is_recorded_in_a_file_that_was_removed_or_replaced(self) -> None:
        journal, away = self.journal(), self.path.with_suffix(".away")
        self.path.rename(away)
        for replaced in (False, True):
            if replaced:
                shutil.copy(away, self.path)
            for write in (partial(journal.write, intent()), partial(journal.decide, ROW)):
                with self.subTest(replaced=replaced), self.assertRaisesRegex(StopError, "replaced"):
                    write()
        away.replace(self.path)
        self.assertEqual([], journal.intents())
        journal.write(intent())


class FullDisk:
    """A connection on which the disk fails at each statement of a kind."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        words: str | tuple[str, ...],
        error: sqlite3.Error | None = None,
    ) -> None:
        self._connection = connection
        self._words = words
        self._error = error or sqlite3.OperationalError("database or disk is full")

    def execute(self, sql: str, *values: Any) -> Any:
        if sql.lstrip().startswith(self._words):
            raise self._error
        return self._connection.execute(sql, *values)


class TestFullDisk(Folder):
    def test_whatever_statement_fails_the_bot_stops_and_nothing_is_half_written(self) -> None:
        for word in ("BEGIN", "INSERT", "UPDATE", "COMMIT"):
            connection = prepare(sqlite3.connect(":memory:", isolation_level=None))
            self.addCleanup(connection.close)
            whole, full = Journal(connection), Journal(FullDisk(connection, word))
            whole.write(intent())
            stopped = 0
            for attempt in (
                partial(full.put, a=1),
                partial(full.write, intent(attempt=1)),
                partial(full.accept, intent().id),
                partial(full.conclude, intent(), Outcome.CLOSED, CANDLE, FILLED),
                partial(full.book, [Booked("L1", CANDLE, "rollover", Decimal(1))]),
                partial(full.decide, ROW, SUMMARY),
                partial(full.adopt, Decimal(1), Decimal(1), CANDLE, True),
            ):
                before = list(connection.iterdump())
                try:
                    attempt()
                except StopError as error:
                    stopped += 1
                    self.assertEqual(76, error.exit_code)
                    self.assertEqual(before, list(connection.iterdump()))
            with self.subTest(word):
                self.assertGreater(stopped, 1)
                whole.put(still="works")

    def test_a_disk_that_is_full_at_the_start_is_a_configuration_error(self) -> None:
        with full_disk():
            self.assertRaises(ConfigError, open_journal, self.path)


class TestLock(Folder):
    def test_a_name_that_cannot_be_held_on_the_machine_is_told_and_stops_nothing(self) -> None:
        with (
            logged() as out,
            contextlib.closing(Lock(self.folder / "key.lock", "this API key", "x" * 200)),
        ):
            self.assertIn("not checked whether another bot uses this API key", out.getvalue())

    def test_a_second_holder_is_refused_until_the_first_has_gone_and_told_who_that_is(self) -> None:
        path = self.folder / "state" / "key.lock"
        first = Lock(path, "this API key")
        with self.assertRaisesRegex(ConfigError, rf"this API key \(pid {os.getpid()}, since 20"):
            Lock(path, "this API key")
        self.assertTrue(is_locked(path))
        first.close()
        self.assertFalse(is_locked(path))
        Lock(path, "this API key").close()

    def test_a_file_system_without_locks_is_not_taken_for_another_bot(self) -> None:
        request = self.folder / "journal.flatten"
        request.touch()
        with mock.patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "no locks available")):
            with self.assertRaisesRegex(ConfigError, "cannot be used: no locks available"):
                Lock(self.path, "the journal")
            self.assertTrue(is_locked(request))
            self.assertFalse(is_locked(request, if_unknown=False), "a bot would flatten")

    def test_what_is_written_outlives_the_holder(self) -> None:
        path = self.folder / "key.lock"
        for expected, written in (("", "live"), ("live", "x" * 70), ("x" * 70, "")):
            lock = Lock(path, "it")
            self.assertEqual(expected, lock.read())
            lock.write(written)
            lock.close()

    def test_the_lock_is_readable_by_its_owner_only_and_no_link_is_followed(self) -> None:
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        path = self.folder / "state" / "key.lock"
        Lock(path, "it").close()
        self.assertEqual(0o600, stat.S_IMODE(path.stat().st_mode))
        self.assertEqual(0o700, stat.S_IMODE(path.parent.stat().st_mode))
        link = self.folder / "state" / "link.lock"
        link.symlink_to(self.folder / "target")
        self.assertRaises(ConfigError, Lock, link, "it")


class TestNonces(Folder):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "key.lock"

    def restart(self) -> Nonces:
        """Return what the next process has."""
        if hasattr(self, "lock"):
            self.lock.close()
        self.lock = Lock(self.path, "this API key")
        self.addCleanup(self.lock.close)
        return Nonces(self.lock)

    def test_nonces_rise_across_restarts_and_clocks_that_go_back(self) -> None:
        last, clock_ns = 0, 1_790_000_000_000_000_000
        for number in range(5):
            nonces = self.restart()
            for step in (0, 0, 1, -(10**15), 5, 3 * 10**9, -1):
                nonce = nonces.next(clock_ns + step)
                with self.subTest(restart=number, step=step):
                    self.assertGreater(nonce, last)
                last = nonce
            clock_ns -= 10**12 * number

    def test_a_nonce_is_on_disk_before_it_is_given(self) -> None:
        nonces = self.restart()
        for clock_ns in (10**18, 10**18, 10**18 + 10**9 + 1, 5):
            self.assertEqual(nonces.next(clock_ns), int(self.lock.read()))

    def test_until_a_mark_is_set_nonces_follow_those_of_the_process_before(self) -> None:
        nonces = self.restart()
        nonces.next(10**18)
        nonces.set_mark("intent-1")
        last = nonces.next(10**18)
        nonces = self.restart()
        self.assertEqual((last, "intent-1"), (nonces.stored, nonces.mark))
        # The first request may be lost: only an answer proves that there were no larger nonces.
        self.assertEqual([last + 1, last + 2], [nonces.next(2 * 10**18) for _ in range(2)])
        nonces.set_mark("intent-2")
        self.assertEqual(2 * 10**18, nonces.next(2 * 10**18))

    def test_the_first_nonce_before_a_change_is_that_of_the_clock(self) -> None:
        self.path.write_text(f"{10**18}")
        nonces = self.restart()
        nonces.set_mark("called")
        self.assertEqual(2 * 10**18, nonces.next(2 * 10**18))

    def test_a_lock_file_with_other_text_starts_from_the_clock(self) -> None:
        for text in ("", "\n", "not a number\n", "-5", "12.5"):
            self.path.write_text(text)
            self.assertEqual(10**18, self.restart().next(10**18))

    def test_a_nonce_that_cannot_be_put_on_disk_stops_the_bot(self) -> None:
        full, nonces = OSError(28, "No space left on device"), self.restart()
        with (
            patch("krakenbot.lock.os.pwrite", side_effect=full),
            self.assertRaises(StopError) as caught,
        ):
            nonces.next(10**18)
        self.assertEqual(76, caught.exception.exit_code)
