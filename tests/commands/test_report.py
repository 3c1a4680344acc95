"""The report: whole, self-contained, small, and nothing from outside becomes markup."""

import functools
import os
import re
import sqlite3
import subprocess
import sys
import unittest
from decimal import Decimal as D
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

from krakenbot import config_reader
from krakenbot.commands import UsageError, report, write_output
from krakenbot.commands.page import COLUMNS, Chart, table, write_page
from krakenbot.commands.report import NEWEST, Point, render, report_of, round_trips
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal, prepare
from krakenbot.model import MarginSummary, Side
from krakenbot.records import Booked, Intent, Outcome
from tests.folders import own_folder
from tests.ports.test_journal import CANDLE, ROW, execution, intent

EVIL = "</script><script>alert(1)</script><img src=x onerror=y>\x1b[31m"
START = 1_700_000_000
SETTINGS = config_reader.load(None, {"HOME": "/"}, Path("/nonexistent"))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect"):
            assert self.open.pop() == tag, tag


def _path(text: str, kind: str) -> str:
    """Return the first line of that kind in the page's drawings."""
    found = re.search(rf'<path class="{kind}" d="([^"]*)"', text)
    assert found is not None
    return found[1]


def empty() -> sqlite3.Connection:
    """Return the database of a new journal."""
    return prepare(sqlite3.connect(":memory:", isolation_level=None))


@functools.cache
def page(count: int = 3000, orders: int = 5, down: int = 0) -> str:
    """Return the page of a bot that was down for an hour from candle `down` on."""
    database = empty()
    for at in range(count):
        time = START + at * 60 + 3600 * (0 < down <= at)
        price, held = str(100 + at % 50), ("0.1", "-0.1", "0")[at // 40 % 3]
        database.execute(
            "INSERT INTO equity VALUES (?, ?, ?, ?, ?, '0', '1000', NULL, '0')",
            (time, price, held, str(-at / 100), str(at / 200)),
        )
        database.execute(
            "INSERT INTO decisions VALUES (60, ?, ?, '100.5', 1, 1, '0', ?, ?, 1)",
            (time - 60, price, EVIL, time),
        )
    for at in range(orders):
        traded = ("0.1", "10.5") if at % 2 else ("0", "0")
        database.execute(
            "INSERT INTO intents (id, interval_s, candle, purpose, side, volume, leverage,"
            " reduce_only, reason, held_before, created, deadline, outcome, executed, cost, fee,"
            " note) VALUES (?, 60, ?, 'open', 'buy', '0.1', 2, 0, ?, '0', ?, 0, 'closed', ?,"
            " ?, '0.1', ?)",
            (f"id-{at}", START, EVIL, START + at * 600, *traded, EVIL),
        )
    database.execute("INSERT INTO charges VALUES ('L1', 0, 'rollover', '100', 'ZUSD', '100')")
    return render(report_of(SETTINGS, Journal(database)))


def trade(journal: Journal, order: Intent, cost: str = "3500", fee: str = "28") -> None:
    journal.write(order)
    found = execution(order, str(order.volume), cost, fee)
    journal.conclude(order, Outcome.CLOSED, order.created, found)


class ReportTest(unittest.TestCase):
    def test_tags_are_closed_and_nothing_is_fetched(self) -> None:
        text = page()
        tags = Tags()
        tags.feed(text)
        self.assertEqual([], tags.open)
        for tag, attributes in tags.seen:
            self.assertFalse({"src", "href", "onerror", "onload"} & attributes.keys(), tag)
        self.assertNotRegex(text, r"https?://|@import|url\(")
        self.assertIn("default-src 'none'", text)

    def test_texts_from_outside_never_become_markup(self) -> None:
        text = page()
        self.assertNotIn("<img", text)
        self.assertNotIn("\x1b", text)
        self.assertNotIn("alert(1)</script>", text)
        # One script a chart for its numbers, one for the page.
        self.assertEqual(text.count("<script"), 5)

    def test_numbers_are_told_in_words(self) -> None:
        words = re.search(r'class="hero bad">([^<]*)', page())
        assert words is not None
        lost = "lost 91.40 USD, 9.14 % of the account. Trading itself won 8.80 USD"
        self.assertIn(lost, words[1])
        self.assertIn("Holding would have won 4.66 USD", words[1])

    def test_a_result_of_nothing_is_no_loss(self) -> None:
        words = report.in_words(60, {"before costs": D(0), "net": D(0)}, D(0), D(0), "USD")
        self.assertEqual(3, words.count("made 0.00 USD"))

    def test_drawdown_return_and_holding_are_in_percent(self) -> None:
        text = page()
        figures = {"Return": "-9.14 %", "Holding": "+0.47 %", "Max drawdown": "3.00 %"}
        for name, figure in figures.items():
            self.assertIn(f"<dt>{name}</dt><dd>{figure}</dd>", text)

    def test_a_fall_between_two_points_that_are_drawn_as_one_is_in_the_drawdown(self) -> None:
        database = empty()
        row = "INSERT INTO equity VALUES (?, '100', '1', ?, '0', '0', '1000', NULL, '0')"
        for at in range(3 * COLUMNS):
            database.execute(row, (START + 60 * at, "-400" if at == 1500 else "0"))
        text = render(report_of(SETTINGS, Journal(database)))
        self.assertIn("<dt>Max drawdown</dt><dd>40.00 %</dd>", text)
        self.assertIn('"-40.00"', text)
        self.assertNotIn('"-0.00"', text)

    def test_the_drawdown_counts_from_the_balance_that_the_bot_began_with(self) -> None:
        points = [Point(at, 1.0, net, net, 1.0) for at, net in ((0, -10.0), (1, -5.0))]
        self.assertEqual([10.0, 5.0], report.drawdowns(D(100), points))

    def test_an_order_outside_of_the_chart_is_marked_at_its_edge(self) -> None:
        chart = Chart("Price", [100.0, 200.0], {"price": [1.0, 2.0]})
        order = {"side": "buy", "volume": D(1), "price": D(9), "reason": ""}
        chart.dots([order | {"time": 98}, order | {"time": 203, "price": D("0.1")}])
        self.assertIn('d="M0 0h0"', chart.layers)
        self.assertIn(f'd="M{COLUMNS} 1000h0"', chart.layers)

    def test_numbers_stand_to_the_right_and_words_to_the_left(self) -> None:
        text = table("Orders", ("why", "|fee"), [("<b>", "28.57")])
        self.assertIn('<th>why</th><th class="n">fee</th>', text)
        self.assertIn('<td>&lt;b&gt;</td><td class="n">28.57</td>', text)

    def test_a_long_table_says_how_much_of_it_is_shown(self) -> None:
        rows = [("x",)] * 501
        self.assertIn("<small>500 of 501</small>", table("Cells", ["cell"], rows))
        self.assertIn("<small>newest, 500 of 501</small>", table("", [""], rows, note="newest"))

    def test_cells_are_shaded_by_sign_and_size(self) -> None:
        rows, values = [("10", "-50*", "100"), ("20", "-25", "")], [(0, -50, 100), (0, -25, 0)]
        text = table("Net", ("length", "|60", "|240"), rows, values=values)
        self.assertIn('<td class="n bad" style="--share:75%">-50*</td>', text)
        self.assertIn('<td class="n bad" style="--share:38%">-25</td>', text)
        self.assertIn('<td class="n good" style="--share:75%">100</td>', text)

    def test_the_line_has_a_gap_where_the_bot_was_down(self) -> None:
        whole, broken = page(10), page(10, down=5)
        self.assertEqual(1, _path(whole, "price").count("M"))
        self.assertEqual(2, _path(broken, "price").count("M"))
        self.assertLess(_path(broken, "long").count("M"), _path(whole, "long").count("M"))

    def test_after_a_change_of_the_interval_the_newest_candles_are_in_order(self) -> None:
        journal, summary = open_journal(None), MarginSummary(D(1), D(0), D(0))
        for interval_s, candle in ((60, START + 14400), (14400, START)):
            row = ROW | {"interval_s": interval_s, "candle": candle, "decided": candle + 14500}
            journal.decide(row | {"decided": START + 14500 + interval_s}, summary)
        report = report_of(SETTINGS, journal)
        ends = [end for end, _, _ in report.newest]
        self.assertEqual(([START + 14400, START + 14460], 43200), (ends, report.gap_s))

    def test_candles_of_a_longer_interval_long_ago_are_no_gaps(self) -> None:
        journal = open_journal(None)
        journal.decide(ROW | {"interval_s": 14400, "decided": 0}, MarginSummary(D(1), D(0), D(0)))
        for at in range(NEWEST):
            journal.decide(ROW | {"candle": at}, MarginSummary(D(1), D(0), D(0)))
        self.assertEqual(43200, report_of(SETTINGS, journal).gap_s)

    def test_what_was_adopted_since_the_last_decision_has_won_nothing_yet(self) -> None:
        journal = open_journal(None)
        journal.decide(ROW, MarginSummary(D(2000), D(0), D(0)))
        journal.adopt(D("0.01"), D(70000), ROW["decided"] + 1, True)
        self.assertEqual(0, report_of(SETTINGS, journal).costs["net"])

    def test_a_position_is_drawn_from_the_decision_that_opened_it_on(self) -> None:
        journal = open_journal(None)
        for at, held in enumerate(("0", "0", "1", "1", "0", "0")):
            row = ROW | {"candle": CANDLE + at * 60, "decided": CANDLE + at * 60, "held": held}
            journal.decide(row, MarginSummary(D(2000), D(0), D(0)))
        path = _path(render(report_of(SETTINGS, journal)), "long")
        self.assertEqual("M400.0 1000H600.0M600.0 1000H800.0", path)

    def test_holding_is_of_the_size_first_held_not_of_the_one_asked_for_or_set_now(self) -> None:
        journal = open_journal(None)
        journal.write(intent(volume=D("0.07")))
        for at, held in enumerate(("0", "-0.05", "0.03")):
            row = ROW | {"candle": at, "decided": at, "held": held}
            journal.decide(row, MarginSummary(D(2000), D(0), D(0)))
        report = report_of(SETTINGS, journal)
        self.assertEqual(D("0.05"), report.size)
        self.assertIn("size 0.05", report.subtitle)

    def test_an_account_whose_equity_is_not_known_has_no_percentages(self) -> None:
        database = empty()
        journal = Journal(database)
        trade(journal, intent(volume=D("0.05")))
        journal.decide(ROW, MarginSummary(D(2000), D(0), D(0)))
        database.execute("UPDATE equity SET equity = NULL")
        self.assertEqual(0, report_of(SETTINGS, journal).balance)

    def test_what_was_adopted_paid_no_fee_and_makes_holding_no_cheaper(self) -> None:
        journal = open_journal(None)
        journal.adopt(D("0.05"), D(70000), CANDLE, True)
        trade(journal, intent(volume=D("0.05")))
        row = ROW | {"held": "0.05", "price": "70000"}
        journal.decide(row, MarginSummary(D(2000), D(0), D(0)))
        self.assertEqual(-56, report_of(SETTINGS, journal).hold)
        self.assertEqual("1", report_of(SETTINGS, journal).facts["orders"])

    def test_the_points_left_out_of_a_long_line_are_no_gap(self) -> None:
        self.assertEqual(1, _path(page(5000), "price").count("M"))
        self.assertEqual(2, _path(page(5000, down=2500), "price").count("M"))

    def test_the_end_of_the_account_comes_first(self) -> None:
        journal = open_journal(None)
        journal.put(halted="the loss since the last resume is 51, max_loss is 50")
        self.assertIn('">The bot is halted: the loss', render(report_of(SETTINGS, journal)))

    def test_the_fee_of_opening_belongs_to_its_order_though_its_time_is_earlier(self) -> None:
        for early_s in (0, 1):
            journal, bought = open_journal(None), intent(volume=D("0.05"))
            trade(journal, bought)
            trade(journal, intent(CANDLE + 60, side=Side.SELL, volume=D("0.05")))
            journal.book([Booked(bought.id, bought.created - early_s, "opening", D("0.7"))])
            (only,) = report_of(SETTINGS, journal).rounds
            self.assertEqual(D("56.7"), only.costs)

    def test_an_order_s_end_is_told_in_the_bot_s_words(self) -> None:
        journal = open_journal(None)
        for number, outcome in enumerate((Outcome.REFUSED_FOR_NOW, Outcome.ABANDONED)):
            order = intent(CANDLE + 60 * number)
            journal.write(order)
            journal.conclude(order, outcome, order.created)
        text = render(report_of(SETTINGS, journal))
        self.assertIn("<td>refused for now</td>", text)
        self.assertIn("<td>abandoned</td>", text)

    def test_a_journal_without_anything_makes_a_page_too(self) -> None:
        self.assertIn("no candle yet", page(0, 0))

    def test_a_place_that_cannot_be_written_leaves_nothing_behind(self) -> None:
        folder = own_folder(self)
        with self.assertRaises(UsageError):
            write_output(folder, b"<!doctype html>")
        self.assertFalse((folder.parent / f".krakenbot.{os.getpid()}.part").exists())

    def test_a_name_that_is_not_utf_8_is_shown_escaped(self) -> None:
        path = own_folder(self) / "page.html"
        write_page(path, "rule\udcff.py")
        self.assertEqual("rule\\udcff.py", path.read_text())

    def test_standard_output_is_written_to_and_never_replaced(self) -> None:
        kept = own_folder(self) / "kept"
        kept.write_text("before\n")
        code = "import pathlib, krakenbot.commands as c; print('one'); "
        code += "c.write_output(pathlib.Path('/dev/stdout'), b'two\\n'); print('three')"
        with kept.open("ab") as output:
            subprocess.run([sys.executable, "-c", code], stdout=output, check=True)
        self.assertEqual("before\none\ntwo\nthree\n", kept.read_text())

    def test_many_points_are_thinned_without_losing_an_extreme(self) -> None:
        prices = [2000.0 if at == 7_777 else 3.0 if at == 8_888 else 60.0 for at in range(50_000)]
        chart = Chart("Price", range(50_000), {"price": prices})
        self.assertEqual((2000.0, 3.0), (max(chart.lines["price"]), min(chart.lines["price"])))
        self.assertEqual(49_999, chart.times[-1])
        self.assertLessEqual(len(chart.times), 3 * COLUMNS)

    def test_the_end_is_drawn_as_finely_as_the_beginning(self) -> None:
        times, count = [0.0], 0
        while times[-1] < 1_000_000:  # Points of ever more candles, as a backtest makes them.
            count = max(count + 1, count + count // COLUMNS)
            times.append(count)
        chart = Chart("Price", times, {"price": [1.0] * len(times)})
        steps = [after - before for before, after in pairwise(chart.times)]
        self.assertLess(max(steps), 2.1 * times[-1] / COLUMNS)
        self.assertGreater(len(chart.times), 0.9 * COLUMNS)

    def test_the_page_stays_small(self) -> None:
        self.assertLess(len(page(10_000, 1_000)), 1_000_000)


class OtherQuoteTest(unittest.TestCase):
    """A pair quoted in bitcoin, whose amounts cents would not show."""

    def setUp(self) -> None:
        journal, bought = open_journal(None), intent(volume=D("0.5"))
        journal.put(base="XETH", quote="XXBT", pair_decimals="5")
        for one in (bought, intent(CANDLE + 60, side=Side.SELL, volume=D("0.5"))):
            trade(journal, one, "0.0157", "0.00004082")
            row = ROW | {"candle": one.candle, "decided": one.created, "price": "0.0314"}
            journal.decide(row, MarginSummary(D("0.14"), D(0), D(0)))
        self.text = render(report_of(SETTINGS, journal))

    def test_fees_and_results_show_all_eight_decimals(self) -> None:
        self.assertEqual(2, self.text.count('<td class="n">0.00004082</td>'))
        self.assertIn('<td class="n">-0.00008164</td>', self.text)
        self.assertIn("<dt>Trade fees</dt><dd>-0.00008164 XBT</dd>", self.text)

    def test_the_result_s_chart_shows_them_too(self) -> None:
        self.assertIn('["after costs",["-0.00004082","-0.00008164"]]', self.text)


class RoundTripsTest(unittest.TestCase):
    def rounds(self, *orders: tuple[int, int, str, str, str], **charges: str) -> list[object]:
        """Return entry, exit, side, prices and net; orders are time, sign, volume, cost, fee."""
        made = []
        for at, sign, *texts in orders:
            amounts = dict(zip(("executed", "cost", "fee"), map(D, texts), strict=True))
            side = Side.BUY if sign > 0 else Side.SELL
            made.append(intent(at, side=side)._replace(created=at, **amounts))
        booked = [Booked(name, int(name[1:]), "rollover", D(fee)) for name, fee in charges.items()]
        rounds = round_trips(made, booked)
        return [(*one[:3], one.entry_price, one.exit_price, one.net) for one in rounds]

    def test_a_round_ends_flat_or_on_the_other_side(self) -> None:
        made = self.rounds(
            (0, 1, "0.05", "5", "0.5"),
            (10, -1, "0.05", "5.5", "0.5"),
            (20, -1, "0.05", "5.5", "0.5"),
            (30, 1, "0.1", "10", "1.0"),
        )
        self.assertEqual((0, 10, "long", 100, 110, D("-0.5")), made[0])
        self.assertEqual((20, 30, "short", 110, 100, D("-0.5")), made[1])

    def test_parts_add_up_and_holding_costs_are_of_the_round_they_fall_in(self) -> None:
        made = self.rounds(
            (0, 1, "0.02", "2", "0"),
            (1, 1, "0.03", "3.3", "0"),
            (3, -1, "0.04", "4.8", "0"),
            (4, -1, "0.01", "1.2", "0"),
            L2="0.25",
            L5="9",
        )
        self.assertEqual([(0, 4, "long", 106, 120, D("0.45"))], made)

    def test_what_is_still_held_is_no_round_yet(self) -> None:
        self.assertEqual([], self.rounds((0, 1, "0.05", "5", "0.5")))
