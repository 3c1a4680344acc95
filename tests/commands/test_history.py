import csv
import io
import json
from decimal import Decimal as D
from unittest import mock

from krakenbot.commands import history
from krakenbot.format import moment
from krakenbot.model import MarginSummary
from krakenbot.presence import UNITS
from krakenbot.records import Booked, Outcome
from tests.commands.test_status import Folder
from tests.ports.test_journal import ROW, SUMMARY, execution, intent

EVIL = "\x1b[2J=cmd"


class TestHistory(Folder):
    def setUp(self) -> None:
        super().setUp()
        self.journal.put(**dict(zip(UNITS, ("XXBT", "ZUSD", "1"), strict=True)))
        self.trade()

    def trade(self) -> None:
        sold = intent(volume=D("0.05"), reason=f"short: sell 0.05 to close {EVIL * 9}")
        self.journal.write(sold)
        found = execution(sold, "0.05", "3565.52", "28.52416")
        self.journal.conclude(sold, Outcome.CLOSED, 1_700_000_000, found, EVIL)
        self.journal.write(intent(1_700_000_100))

    def shown(self, *argv: str) -> str:
        return self.status(*argv, command="history")

    def test_orders_fit_into_80_columns_and_have_a_price(self) -> None:
        header, first, second = self.shown("orders").splitlines()
        self.assertEqual(
            ["time", "(UTC)", "purpose", "side", "volume", "price", "fee"], header.split()[:7]
        )
        self.assertEqual(["open", "buy", "0.05", "71,310.4", "28.52", "closed"], first.split()[2:8])
        self.assertEqual(["open", "buy", "0", "-", "0.00", "unresolved"], second.split()[2:8])
        self.assertLessEqual(max(map(len, (header, first, second))), 80)

    def test_people_read_how_an_order_ended_and_programs_the_stored_word(self) -> None:
        outcomes = Outcome.REFUSED_FOR_NOW_NO_ORDER, Outcome.ABANDONED
        for number, outcome in enumerate(outcomes):
            refused = intent(1_700_000_200 + 100 * number)
            self.journal.write(refused)
            self.journal.conclude(refused, outcome, 1_700_000_500)
        ends = [line.split()[7:10] for line in self.shown("orders").splitlines()[-2:]]
        self.assertEqual(["refused", "for", "now"], ends[0])
        self.assertEqual("abandoned", ends[1][0])
        rows = map(json.loads, self.shown("orders", "--format", "json").splitlines()[-2:])
        self.assertEqual(["put off, no order left", "given up"], [row["outcome"] for row in rows])

    def test_numbers_stand_to_the_right(self) -> None:
        header, first, second = self.shown("orders").splitlines()
        for name in ("volume", "price", "fee"):
            end = header.index(name) + len(name)
            for line in (first, second):
                self.assertRegex(line[:end], r"[-0-9]$")
                self.assertEqual(" ", line[end])

    def test_for_programs_all_columns_are_there_and_numbers_are_plain(self) -> None:
        first = json.loads(self.shown("orders", "--format", "json").splitlines()[0])
        self.assertEqual(("71310.4", "28.52416"), (first["price"], first["fee"]))
        rows = list(csv.DictReader(io.StringIO(self.shown("orders", "--format", "csv"))))
        self.assertEqual(set(first), set(rows[0]))

    def test_all_formats_tell_the_same_of_each_kind(self) -> None:
        self.journal.decide(ROW, SUMMARY)
        for what in ("decisions", "orders", "equity"):
            with self.subTest(what):
                lines = self.shown(what, "--format", "json").splitlines()
                rows = csv.DictReader(io.StringIO(self.shown(what, "--format", "csv")))
                table = self.shown(what).splitlines()[1:]
                for told, row, line in zip(map(json.loads, lines), rows, table, strict=True):
                    self.assertNotIn(float, map(type, told.values()))
                    at = moment(told["time"], "%Y-%m-%dT%H:%M:%SZ")
                    texts = {k: "" if v is None else str(v) for k, v in told.items()}
                    self.assertEqual(list((texts | {"time": at}).items()), list(row.items()))
                    self.assertTrue(line.startswith(f"{at[:10]} {at[11:16]} "), line)
                    self.assertLessEqual(len(line), 80)

    def test_gross_is_what_is_left_and_all_that_was_paid(self) -> None:
        fees = (Booked("1", 1, "opening", D("0.7")), Booked("2", 1, "rollover", D("0.2")))
        self.journal.book(fees)
        self.journal.decide(ROW, SUMMARY)
        told = json.loads(self.shown("equity", "--format", "json"))
        paid = sum(D(told[name]) for name in ("net", "fees", "margin_fees", "rollover"))
        self.assertEqual(D(told["gross"]), paid)

    def test_a_price_for_programs_has_the_pair_s_decimals(self) -> None:
        bought = intent(1_700_000_200, volume=D("0.03"))
        self.journal.write(bought)
        found = execution(bought, "0.03", "2139.31", "0")
        self.journal.conclude(bought, Outcome.CLOSED, 1_700_000_300, found)
        last = json.loads(self.shown("orders", "--format", "json").splitlines()[-1])
        self.assertEqual("71310.3", last["price"])

    def test_no_format_prints_what_could_drive_a_terminal(self) -> None:
        for form in ("table", "csv", "json"):
            self.assertNotIn("\x1b", self.shown("orders", "--format", form))

    def test_nothing_yet_is_said(self) -> None:
        self.assertEqual("nothing yet\n", self.shown("equity"))
        self.assertEqual("", self.shown("equity", "--format", "json"))
        self.assertTrue(self.shown("equity", "--format", "csv").startswith("time,price,held,"))

    def test_a_zero_is_shown_as_one_and_only_nothing_as_a_dash(self) -> None:
        row = {"target": 0, "reason": "", "held": D(0)}
        _, (cells,) = history.shown([row], "|target *reason |held", "ZUSD", None)
        self.assertEqual(["0", "-", "0"], cells)

    def test_a_line_that_ends_with_figures_keeps_all_of_them(self) -> None:
        long = "123456789.12345678"
        summary = MarginSummary(D(long), D(0), D(long) / D("16.43"))
        self.journal.decide(ROW | {"price": long, "held": long}, summary)
        header, line = self.shown("equity").splitlines()
        self.assertGreater(len(line), 80)
        self.assertEqual(("level", True), (header.split()[-1], line.endswith(" 1,643 %")))

    def test_amounts_have_the_decimals_of_the_quote_currency(self) -> None:
        self.journal.put(quote="XXBT")
        self.assertIn(" 28.52416000 ", self.shown("orders"))

    def test_since_takes_dates_times_and_spans(self) -> None:
        with mock.patch("time.time", lambda: 1_700_000_000.0):
            for text, want in (
                ("7d", 1_700_000_000 - 7 * 86400),
                ("2023-11-14", 1_699_920_000),
                ("20231114", 1_699_920_000),
                ("1699920000", 1_699_920_000),
            ):
                self.assertEqual(want, history.since(text))
