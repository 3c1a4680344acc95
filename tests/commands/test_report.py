"""The report: whole, self-contained, small, and nothing from outside becomes markup."""

import re
import sqlite3
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path

from krakenbot import config
from krakenbot.commands import UsageError
from krakenbot.commands.page import COLUMNS, Point, render, thinned, write
from krakenbot.commands.report import story_of
from krakenbot.journal import Journal
from krakenbot.journal_file import prepare

EVIL = "</script><script>alert(1)</script><img src=x onerror=y>\x1b[31m"
START = 1_700_000_000
SETTINGS = config.load(None, {"HOME": "/"}, Path(tempfile.gettempdir()) / "none")


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


def empty() -> Journal:
    return Journal(prepare(sqlite3.connect(":memory:", isolation_level=None), Path(":memory:")))


def page(count: int = 3000, orders: int = 5) -> str:
    database = prepare(sqlite3.connect(":memory:", isolation_level=None), Path(":memory:"))
    for at in range(count):
        time = START + at * 60
        database.execute(
            "INSERT INTO equity VALUES (?, ?, ?, ?, ?, ?, ?, ?, '0')",
            (
                time,
                str(100 + at % 50),
                ("0.1", "-0.1", "0")[at // 40 % 3],
                str(-at / 100),
                str(at / 200),
                "0",
                "1000",
                None,
            ),
        )
        database.execute(
            "INSERT INTO decisions VALUES (60, ?, ?, '100.5', 1, 1, '0', ?, ?, 1)",
            (time - 60, str(100 + at % 50), EVIL, time),
        )
    for at in range(orders):
        database.execute(
            "INSERT INTO intents (id, interval_s, candle, purpose, side, volume, leverage,"
            " reduce_only, reason, held_before, created, deadline, outcome, executed, cost, fee,"
            " note) VALUES (?, 60, ?, 'open', 'buy', '0.1', 2, 0, ?, '0', ?, 0, 'closed', ?,"
            " '10.5', '0.1', ?)",
            (f"id-{at}", START, EVIL, START + at * 600, "0.1" if at % 2 else "0", EVIL),
        )
    database.execute("INSERT INTO charges VALUES ('L1', 0, 'rollover', '100', 'ZUSD', '100')")
    return render(story_of(SETTINGS, Journal(database)))


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
        self.assertIn("lost 91.40 USD", words[1])

    def test_a_journal_without_anything_makes_a_page_too(self) -> None:
        self.assertIn("no candle yet", page(0, 0))

    def test_a_place_that_cannot_be_written_leaves_nothing_behind(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            with self.assertRaises(UsageError):
                write(Path(name), story_of(SETTINGS, empty()))
            self.assertEqual([], list(Path(name).parent.glob(f".{Path(name).name}.*")))

    def test_many_points_are_thinned_without_losing_an_extreme(self) -> None:
        points = (
            Point(at, 50.0, 2000.0 if at == 77_777 else 60.0, 55.0, 0.0, 0.0, 1.0)
            for at in range(200_000)
        )
        kept = thinned(points)
        self.assertLessEqual(len(kept), COLUMNS)
        self.assertGreater(len(kept), COLUMNS // 3)
        self.assertEqual((kept[-1].time, max(p.high for p in kept)), (199_999, 2000.0))

    def test_the_page_stays_small(self) -> None:
        self.assertLess(len(page(20_000, 2_000)), 3_000_000)


if __name__ == "__main__":
    unittest.main()
