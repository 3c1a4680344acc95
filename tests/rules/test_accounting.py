import sqlite3
import unittest
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import cast

from krakenbot.accounting import LATE_S, Ledger, opening_fee
from krakenbot.commands.history import opening_fees
from krakenbot.commands.status import read_status, realized
from krakenbot.errors import KeyRefusedError, StopError, UnansweredError
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal, prepare
from krakenbot.kraken.spot import Spot
from krakenbot.model import Candle, Charge, MarginRates, Side
from krakenbot.pairs import parse_rules
from krakenbot.records import Booked, Outcome
from krakenbot.simulated.listing import PAIRS
from tests.clocks import StandingClock
from tests.logs import silence
from tests.ports.test_journal import CANDLE, execution, intent

RULES = parse_rules("XXBTZUSD", PAIRS["XXBTZUSD"])
RATES = MarginRates(Decimal("0.00025"), Decimal("0.0001"))
DAY_LATER = CANDLE + LATE_S + 600


class Rows:
    """An exchange of which only the ledger and prices are asked."""

    def __init__(self) -> None:
        self.rows: list[Charge] = []
        self.price = Decimal(50000)
        self.past: list[Candle] | None = None  # None: one at the current price.
        self.asked_for_candles = 0
        self.error: Exception | None = None
        self.fails_after = float("inf")

    def charges(self, since: int, until: int, pages: Iterator[int]) -> Sequence[Charge] | None:
        if self.error is not None:
            raise self.error
        if next(pages, None) is None or next(pages, None) is None:
            return None  # Of two histories a page each.
        if until > self.fails_after:
            raise UnansweredError("no")
        return [charge for charge in self.rows if since < charge.time <= until]

    def candles(self, since: int | None) -> Sequence[Candle]:
        price, self.asked_for_candles = self.price, self.asked_for_candles + 1
        return [Candle(0, price, price, price, price)] if self.past is None else self.past


class AccountingTest(unittest.TestCase):
    def setUp(self) -> None:
        silence(self)
        self.database = prepare(sqlite3.connect(":memory:", isolation_level=None))
        self.addCleanup(self.database.close)
        self.journal, self.ledger = Journal(self.database), Rows()
        self.journal.put(charges_read=CANDLE)

    def traded(
        self, journal: Journal, number: int, side: Side, volume: str, cost: str, fee: str = "0"
    ) -> str:
        held = journal.account().held
        wanted = intent(CANDLE + 60 * number, side=side, volume=Decimal(volume), held_before=held)
        done = execution(wanted, volume, cost, fee)
        journal.write(wanted)
        assumed = opening_fee(wanted, done, RATES, RULES)
        journal.conclude(wanted, Outcome.CLOSED, CANDLE, done, opening_fee=assumed)
        return done.exchange_order_id

    def bought(self, fee: str = "16", *, told: str = "", at: int = CANDLE) -> str:
        """Buy for 2000; with `told` the ledger shows it, and that the whole fee is so much."""
        order = self.traded(self.journal, 0, Side.BUY, "0.04", "2000", fee)
        if told:
            self.told("T1", order, "2000", told, at)
        return order

    def told(
        self, trade: str, order_id: str, cost: str, fee: str, at: int = CANDLE, asset: str = "ZUSD"
    ) -> None:
        """Have the ledger show a row of a trade, or with no order id a rollover."""
        name = f"L{len(self.ledger.rows)}"
        row = Charge(name, trade, order_id, at, Decimal(cost), Decimal(fee), asset)
        self.ledger.rows.append(row)

    def book(self, now: int = CANDLE + 600, pages: int = 20) -> str:
        clock = StandingClock(now)
        return Ledger(cast(Spot, self.ledger), self.journal, clock).read(RULES, pages)

    def costs(self) -> tuple[Decimal, Decimal]:
        account = self.journal.account()
        return account.fees, account.margin_fees + account.rollover

    def check(self, fees: str, others: str, now: int = CANDLE + 600) -> None:
        """Read the ledger, which differs in nothing, and compare what is booked then."""
        self.assertEqual("", self.book(now))
        self.assertEqual((Decimal(fees), Decimal(others)), self.costs())


# An order's cost and fee; trade, cost, fee and asset of the rows of the ledger; its opening fee.
SPLIT = "T1 500 4.10 ZUSD; T2 1500 12.30 ZUSD"
SHOWN = {
    "what an opening cost beyond the order's fee": ("2000", "16", SPLIT, "0.40"),
    "the ledger's word in place of what was assumed": ("2000", "16", "T1 2000 16.60 ZUSD", "0.6"),
    "a fee that holds the opening fee already": ("2000", "16.4", "T1 2000 16.4 ZUSD", "0"),
    "fills that are rounded each on its own": ("2000.00001", "16", SPLIT, "0.40"),
    "a fee in coins of the order too": ("2000", "16", "T1 2000 0 ZUSD; T1 0 0.00032 XXBT", "0"),
    "a trade fee that was taken in coins": ("2000", "0", "T1 2000 0 ZUSD; T1 0 0.0001 XXBT", "5"),
    "coins bought without margin": ("2000", "16", "T1 2000 16 ZUSD; T1 0 0 XXBT", "0"),
}


class TestLedger(AccountingTest):
    def test_what_the_ledger_shows_is_booked_once_however_often_it_is_read(self) -> None:
        for story, (cost, fee, rows, opening) in SHOWN.items():
            with self.subTest(story):
                self.setUp()
                order = self.traded(self.journal, 0, Side.BUY, "0.04", cost, fee)
                for row in rows.split("; "):
                    trade, cost_shown, fee_shown, asset = row.split()
                    self.told(trade, order, cost_shown, fee_shown, asset=asset)
                for _ in range(3):
                    self.check(fee, opening)
                again = Journal(self.database)
                self.assertEqual(again.account(), self.journal.account())

    def test_rollovers_of_own_trades_are_booked_and_others_are_nobody_s_business(self) -> None:
        self.bought(told="16.4")
        self.told("T1", "", "0", "0.4", CANDLE + 14400)
        self.told("T9", "OTHER", "2000", "16.4")
        self.told("T9", "", "0", "0.5", CANDLE + 14400)
        for now in (CANDLE + 600, CANDLE + 15000, CANDLE + 15200):
            self.assertEqual("", self.book(now))
        self.assertEqual((Decimal("16"), Decimal("0.8")), self.costs())

    def test_an_order_that_the_ledger_shows_in_part_is_read_again(self) -> None:
        order = self.bought()
        self.told("T1", order, "500", "4.10")
        self.check("16", "0.5")
        self.told("T2", order, "1500", "12.30")
        self.check("16", "0.40", CANDLE + 7200)

    def test_an_order_whose_end_is_learnt_late_is_not_passed_over(self) -> None:
        wanted = intent(CANDLE)
        done = execution(wanted, "0.04", "2000", "16")
        self.journal.write(wanted)
        self.told("T1", done.exchange_order_id, "2000", "16.4")
        self.assertEqual("", self.book(CANDLE + 600))
        self.journal.conclude(wanted, Outcome.CLOSED, CANDLE + 900, done)
        self.check("16", "0.4", CANDLE + 1000)

    def test_what_the_ledger_does_not_show_within_a_day_is_said_once_and_kept(self) -> None:
        self.assertIsNone(read_status(self.journal)["difference"])
        order = self.bought()
        self.assertEqual("", self.book())
        said = self.book(DAY_LATER)
        self.assertRegex(said, f"{order}.*not in the ledger|not in the ledger.*{order}")
        self.assertEqual(said, read_status(self.journal)["difference"])
        self.assertEqual("", self.book(DAY_LATER + 3600))

    def test_an_order_that_is_booked_is_not_missed_at_the_edge_of_the_next_reading(self) -> None:
        self.bought(told="16.4")
        self.assertEqual("", self.book())
        self.journal.put(charges_read=CANDLE + 240)
        self.ledger.rows.clear()
        self.assertEqual("", self.book(CANDLE + 2 * 86400))

    def test_a_ledger_that_took_less_than_the_order_said_is_a_difference(self) -> None:
        order = self.bought(told="15")
        self.assertIn(order, self.book())
        self.check("16", "0")

    def test_an_order_that_traded_nothing_costs_nothing(self) -> None:
        self.traded(self.journal, 0, Side.BUY, "0.00000000", "0.00000")
        self.assertEqual("", self.book())
        self.assertEqual("", self.book(DAY_LATER))

    def test_a_ledger_that_cannot_be_read_at_first_is_read_from_the_beginning(self) -> None:
        self.journal.put(charges_read=None)
        self.ledger.error = UnansweredError("no")
        self.assertEqual("", self.book(CANDLE))
        self.bought(told="16.4", at=CANDLE + 61)
        self.ledger.error = None
        self.check("16", "0.4", CANDLE + 3600)

    def test_a_key_that_may_not_read_the_ledger_is_said_until_it_may(self) -> None:
        ledger = Ledger(cast(Spot, self.ledger), self.journal, StandingClock(CANDLE + 600))
        self.ledger.error = KeyRefusedError("Ledgers: EGeneral:Permission denied")
        self.assertEqual("", ledger.read(RULES))
        self.assertIn("Permission denied", ledger.refused)
        self.ledger.error = UnansweredError("timed out")  # This says nothing about the key.
        self.assertEqual("", ledger.read(RULES))
        self.assertIn("Permission denied", ledger.refused)
        self.ledger.error = None
        self.assertEqual(("", ""), (ledger.read(RULES), ledger.refused))

    def test_other_stops_and_a_lockout_stop(self) -> None:
        lockout = KeyRefusedError("EGeneral:Temporary lockout", lockout=True)
        for error in (StopError("the nonce cannot be written"), lockout):
            self.ledger.error = error
            with self.subTest(error), self.assertRaises(type(error)):
                self.book()

    def test_without_candles_a_fee_in_coins_is_valued_later(self) -> None:
        order = self.bought("0", told="0")
        self.told("T1", order, "0", "0.0001", asset="XXBT")
        self.ledger.past = []
        self.check("0", "0.5", CANDLE + 3600)  # The estimate stays until then.

    def test_ten_days_without_reading_are_caught_up_with_at_once(self) -> None:
        self.bought(told="16.4", at=CANDLE + 61)
        for number in range(1, 60):
            self.told("T1", "", "0", "0.1", CANDLE + 14400 * number)
        self.check("16", "6.3", CANDLE + 14400 * 60)

    def test_months_are_caught_up_with_in_some_readings(self) -> None:
        self.bought(told="16.4", at=CANDLE + 61)
        self.told("T1", "", "0", "0.1", CANDLE + 86400 * 35)
        for _ in range(4):
            self.assertEqual("", self.book(CANDLE + 86400 * 36))
        self.assertEqual((Decimal("16"), Decimal("0.5")), self.costs())

    def test_weeks_of_a_quiet_account_are_caught_up_with_in_one_short_reading(self) -> None:
        self.book(CANDLE + 28 * 86400, pages=10)
        self.assertEqual(CANDLE + 28 * 86400, int(self.journal.get("charges_read")))

    def test_a_ledger_that_breaks_off_goes_on_where_it_was(self) -> None:
        self.bought()
        self.ledger.fails_after = CANDLE + 10 * 86400
        self.book(CANDLE + 86400 * 12)
        self.assertGreater(int(self.journal.get("charges_read")), CANDLE + 86400)

    def test_an_order_at_the_end_of_a_day_that_is_caught_up_is_not_called_late(self) -> None:
        self.journal.put(charges_read=CANDLE - LATE_S + 62)  # It was sent at CANDLE + 61.
        self.bought(told="16.4", at=CANDLE + 63)
        for _ in range(2):
            self.assertEqual("", self.book(CANDLE + 5 * LATE_S))
        self.assertEqual((Decimal("16"), Decimal("0.4")), self.costs())

    def test_a_death_in_the_middle_loses_no_charge(self) -> None:
        order = self.bought()
        self.told("T1", order, "500", "4.10")
        self.told("T2", order, "1500", "12.30")
        self.journal.book([Booked("open T1", CANDLE, "opening", Decimal(0))])
        self.assertEqual("", self.book())
        self.told("T2", "", "0", "0.3", CANDLE + 14400)
        self.check("16", "0.70", CANDLE + 15000)


class TestBooksAtOnce(AccountingTest):
    """What an order cost is known when it is done, and the ledger has the last word."""

    def margin_fees(self) -> Decimal:
        return self.journal.account().margin_fees

    def test_an_opening_costs_the_rate_of_what_it_borrows_before_the_ledger_says_so(self) -> None:
        for side, fee in ((Side.BUY, "0.5"), (Side.SELL, "0.2")):
            self.journal = open_journal(None)
            self.traded(self.journal, 0, side, "0.04", "2000", "16")
            self.assertEqual(Decimal(fee), self.margin_fees())
            self.assertEqual(Decimal(16), self.journal.account().fees)

    def test_only_the_part_that_opens_costs_an_opening_fee(self) -> None:
        self.traded(self.journal, 0, Side.BUY, "0.04", "2000")
        self.traded(self.journal, 1, Side.SELL, "0.04", "2000")
        self.assertEqual(Decimal("0.5"), self.margin_fees())
        self.traded(self.journal, 2, Side.BUY, "0.02", "1000")
        self.traded(self.journal, 3, Side.SELL, "0.05", "2500")
        self.assertEqual(Decimal("0.5") + Decimal("0.25") + Decimal("0.15"), self.margin_fees())

    def test_an_opening_fee_is_rounded_and_its_rate_assumed_where_none_is_told(self) -> None:
        wanted = intent(CANDLE, volume=Decimal("0.04"))
        for cost, rates, decimals, fee in (
            ("0.0001", RATES, 5, "0"),
            ("0.0001", RATES, 10, "0.000000025"),
            ("2000", MarginRates(), 5, "0.4"),  # Two hundredths of a percent.
        ):
            done, fine = execution(wanted, "0.04", cost), RULES._replace(cost_decimals=decimals)
            self.assertEqual(Decimal(fee), opening_fee(wanted, done, rates, fine))
        bought = wanted._replace(leverage=0)
        self.assertEqual(0, opening_fee(bought, done, MarginRates(), RULES))


class TestOtherCurrencies(AccountingTest):
    """Fees taken in coins are worth what the price of their moment says, and kept as they were."""

    def test_an_opening_fee_in_coins_is_valued_and_kept_with_its_amount(self) -> None:
        order = self.bought(told="16")
        self.told("T1", order, "0", "0.00001", asset="XXBT")
        self.ledger.price = Decimal(60000)
        self.check("16", "0.6", CANDLE + 300)
        rows = self.database.execute("SELECT charged FROM charges WHERE asset = 'XXBT'")
        self.assertEqual([("0.00001",)], [tuple(row) for row in rows])
        (intent_id,) = (x.id for x in self.journal.intents())
        self.assertEqual(Decimal("0.6"), opening_fees(self.journal)[intent_id])

    def test_a_row_in_coins_that_comes_late_is_booked_too(self) -> None:
        order = self.bought(told="16")
        self.book(CANDLE + 100)
        self.told("T1", order, "0", "0.00001", asset="XXBT")
        for _ in range(2):
            self.book(CANDLE + 200)
            self.assertEqual((Decimal(16), Decimal("0.5")), self.costs())

    def test_an_old_rollover_in_coins_is_worth_what_the_candle_of_its_time_says(self) -> None:
        self.bought(told="16.5")
        self.told("T1", "", "0", "0.00001", CANDLE + 14400, "XXBT")
        flat = [Decimal(price) for price in (40000, 45000, 90000)]
        self.ledger.past = [
            Candle(CANDLE + 14400 * at, price, price, price, price) for at, price in enumerate(flat)
        ]
        self.assertEqual("", self.book(CANDLE + 40000))
        self.assertEqual(Decimal("0.45"), self.journal.account().rollover)

    def test_one_answer_with_candles_values_all_fees_of_a_reading(self) -> None:
        self.bought(told="16.5")
        for hours in (4, 8, 12):
            self.told("T1", "", "0", "0.00001", CANDLE + hours * 3600, "XXBT")
        self.assertEqual("", self.book(CANDLE + 50000))
        self.assertEqual(Decimal("1.5"), self.journal.account().rollover)
        self.assertEqual(1, self.ledger.asked_for_candles)

    def test_what_cannot_be_valued_is_said_and_kept(self) -> None:
        self.bought(told="16.5")
        self.told("T1", "", "0", "0.37", CANDLE + 14400, "ZEUR")
        self.assertIn("0.37 EUR", self.book(CANDLE + 15000))
        self.assertIn("0.37 EUR", str(read_status(self.journal)["difference"]))
        self.assertEqual((Decimal(16), Decimal("0.5")), self.costs())
        self.assertTrue(self.journal.is_charged("L1"))


class TestRealized(AccountingTest):
    def test_what_was_won_and_lost_is_counted_first_in_first_out(self) -> None:
        journal = self.journal
        self.traded(journal, 0, Side.BUY, "1", "100")
        self.traded(journal, 1, Side.BUY, "1", "110")
        self.traded(journal, 2, Side.SELL, "1.5", "180")  # 120 each: 20 + 5
        self.assertEqual(Decimal(25), realized(journal))
        self.traded(journal, 3, Side.SELL, "1", "130")  # half closes at 130: 10; half is short
        self.assertEqual(Decimal(35), realized(journal))
        self.traded(journal, 4, Side.BUY, "0.5", "75")  # the short from 130 ends at 150
        self.assertEqual(Decimal(25), realized(journal))
        self.assertEqual(0, journal.account().held)
        account = journal.account()
        self.assertEqual(account.pnl(Decimal(1)) + account.costs, realized(journal))

    def test_closing_an_adopted_position_realizes_what_it_won(self) -> None:
        journal = self.journal
        journal.adopt(Decimal(1), Decimal(100), CANDLE, True)
        self.traded(journal, 0, Side.SELL, "1", "110")
        self.assertEqual(journal.account().pnl(Decimal(999)), Decimal(10))
        self.assertEqual(Decimal(10), realized(journal))
