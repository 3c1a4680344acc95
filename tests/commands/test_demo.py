"""The demo's places; what it does is tested as a reader of the README would do it."""

import contextlib
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from tests.commands.called import Done, call
from tests.folders import own_folder
from tests.markets import short_histories

NOWHERE = "/proc"  # Not even root can make a file there.


def setUpModule() -> None:
    short_histories()


class TestPlaces(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)
        self.shut = self.folder / "shut"
        self.shut.touch()  # A file, in which there can be no folder.

    def demo(self, home: Path | str, here: Path | str) -> Done:
        with contextlib.chdir(here):
            return call("demo", "--candles", "1", "--speed", "5000", HOME=str(home))

    def test_the_report_is_in_the_current_folder_where_no_home_can_be_written(self) -> None:
        for home in (self.shut, ""):
            done = self.demo(home, self.folder)
            self.assertEqual(0, done.code, done.err)
            report = self.folder / "krakenbot-demo.html"
            self.assertIn(f"report: {report}\n", done.out)
            self.assertGreater(report.stat().st_size, 1000)
            report.unlink()

    def test_without_a_place_for_the_report_nothing_is_traded(self) -> None:
        done = self.demo(self.shut, NOWHERE)
        self.assertEqual((2, ""), (done.code, done.out), done.err)
        self.assertIn(f"neither to {self.shut}/.local/state/krakenbot nor to the", done.err)

    def test_figures_that_make_no_market_are_wrong_usage(self) -> None:
        for words in (("--candles", "0"), ("--speed", "nan"), ("--seed", "-5")):
            done = call("demo", *words, HOME=str(self.folder))
            self.assertEqual((2, True), (done.code, words[0] in done.err))

    def test_without_a_temporary_folder_nothing_is_traded(self) -> None:
        with mock.patch.multiple(
            tempfile, tempdir=None, _candidate_tempdir_list=lambda: [str(self.shut)]
        ):
            done = self.demo(self.folder, self.folder)
        self.assertEqual((2, ""), (done.code, done.out), done.err)
        self.assertIn(f"{self.shut}", done.err)
        self.assertIn("TMPDIR", done.err)
