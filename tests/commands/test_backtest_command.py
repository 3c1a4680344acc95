"""`backtest` as people call it: files as they have them, what is disclosed, sweeps, reports."""

import contextlib
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import unittest
import zipfile
from collections.abc import Iterable, Sequence
from decimal import Decimal as D
from pathlib import Path
from typing import Any
from unittest import mock

from krakenbot.commands import backtest
from krakenbot.simulated.listing import PAIRS
from tests.commands.called import Done, Terminal, call
from tests.folders import own_folder


class CommandTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)

    def write(self, rows: Sequence[str], name: str = "XBTUSD_1.csv") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows))
        return str(path)

    def jumpy(self, name: str = "XBTUSD_1.csv") -> str:
        return self.write(candles(walk(700)), name)

    def notes(self, *words: str, **environment: str) -> str:
        return " ".join(self.told(*words, **environment)["notes"])

    def told(self, *words: str, **environment: str) -> Any:
        code, output, errors = command(*words, "--json", **environment)
        self.assertEqual((code, errors), (0, ""))
        return json.loads(output)

    def refused(self, *words: str, **environment: str) -> str:
        code, output, errors = command(*words, **environment)
        self.assertEqual((code, output, errors.count("\n")), (2, "", 1))
        return errors


class TestRun(CommandTest):
    ENDING = ("100,100,100,100", "100,100,100,100", "100,101,100,101", "101,101,50,60")

    def liquidated(self, *after: str) -> str:
        rows = [
            f"{1600002000 + 3600 * at},{row},1,1" for at, row in enumerate((*self.ENDING, *after))
        ]
        return self.write(rows, "ETHUSD_60.csv")

    def test_a_liquidation_is_the_headline_a_round_trip_and_the_whole_drawdown(self) -> None:
        words = ("--length", "2", "--size", "900", "--leverage", "10", "--fee", "0")
        for path in (self.liquidated("60,60,60,60"), self.liquidated()):
            told = self.told(path, *words, KRAKENBOT_ENTRY="now")
            self.assertEqual(told["max_drawdown"], told["net"].removeprefix("-"))
            (trip,) = told["round_trips"]
            self.assertEqual((told["orders"], told["win_rate"]), (2, 0))
            self.assertEqual(D(trip["net"]), D(told["net"]))
            lines = command(path, *words, KRAKENBOT_ENTRY="now")[1].splitlines()
            self.assertIn("ENDED EARLY after 4 h, 2020-09-13 17:00 UTC: ", lines[1])
            self.assertIn("liquidated", lines[1])
            self.assertRegex("\n".join(lines), r"turns +\d+, [\d.]+ per day while it traded")

    def test_the_candle_of_a_liquidation_counts_as_one_with_a_position(self) -> None:
        words = "--length", "2", "--size", "900", "--leverage", "10", "--fee", "0"
        gap = self.ENDING[0], self.ENDING[1], self.ENDING[2], "101,101,100,101", "50,50,50,50"
        for after, held in (((), 1), (("60,60,60,60",), 1), (("60,60,60,60",) * 2, 1)):
            told = self.told(self.liquidated(*after), *words, KRAKENBOT_ENTRY="now")
            self.assertEqual(told["exposure"] * told["candles"], held)
        with mock.patch.object(type(self), "ENDING", gap):
            told = self.told(self.liquidated(gap[-1]), *words, KRAKENBOT_ENTRY="now")
        self.assertEqual(told["exposure"] * told["candles"], 1)

    def test_a_liquidation_does_not_wait_for_the_next_trade(self) -> None:
        rows = (*self.ENDING[:3], "101,101,50,101", "", "70,130,70,130", "130,130,130,130")
        path = self.write(
            [f"{1600002000 + 3600 * at},{row},1,1" for at, row in enumerate(rows) if row],
            "ETHUSD_60.csv",
        )
        words = (path, "--length", "2", "--size", "900", "--leverage", "10", "--fee", "0")
        told = self.told(*words, KRAKENBOT_ENTRY="now")
        waits = self.told(*words, "--no-trade-no-fill", KRAKENBOT_ENTRY="now")
        self.assertIn("liquidated", told["ended"])
        for name in ("ended", "ended_at", "net"):
            self.assertEqual(told[name], waits[name])

    def test_an_account_that_can_pay_nothing_any_more_has_ended_and_turned_until_then(self) -> None:
        path = self.write(candles([*[90, 90, 100, 100] * 45, *range(101, 999)]), "ETHUSD_1.csv")
        words = ("--length", "2", "--size", "100", "--balance", "7000", "--fee", "1")
        told = self.told(path, *words, KRAKENBOT_ENTRY="now")
        self.assertIn("needed", told["ended"])
        days = (told["ended_at"] - told["begin"]) / 86400
        self.assertAlmostEqual(told["turns_per_day"], told["turns"] / days)
        self.assertGreater(told["refused"], 850)

    def test_a_position_that_cannot_be_closed_any_more_goes_on_costing(self) -> None:
        prices = [100, 100, 101, 102, *[60 - at % 2 for at in range(400)]]
        path = self.write(candles(prices, 3600), "ETHUSD_60.csv")
        words = ("--length", "2", "--size", "0.01", "--leverage", "2")
        rules = {"max_spread_percent": "100", "min_margin_level": "0"}
        limits = {f"KRAKENBOT_RISK_{name.upper()}": value for name, value in rules.items()}
        costmin = PAIRS["XETHZUSD"] | {"costmin": "0.8", "ordermin": "0.01"}
        saved = self.write([json.dumps({"result": {"XETHZUSD": costmin}})], "rules.json")
        told = self.told(path, *words, "--pair-rules", saved, KRAKENBOT_ENTRY="now", **limits)
        self.assertIn("EOrder:Cost minimum not met; 0.01 ETH stays held", told["ended"])
        self.assertEqual(D(told["rollover"]), 100 * D("0.00026"))

    def test_a_candle_without_a_position_does_not_hide_when_the_account_recovered(self) -> None:
        prices = [100, 100, 101, 102, 100, 90, *[90 - at / 100 for at in range(480)]]
        path, report = self.write(candles(prices, 3600), "ETHUSD_60.csv"), self.folder / "r.html"
        words = (path, "--length", "2", "--size", "1", "--leverage", "0", "--fee", "0")
        told = self.told(*words, KRAKENBOT_ENTRY="now")
        command(*words, "--report", str(report), KRAKENBOT_ENTRY="now")
        days = f"at most {told['under_water_days']:,.1f} days"
        self.assertIn(f"<dt>Under water</dt><dd>{days}</dd>", report.read_text())

    def test_slippage_below_a_tick_costs_a_tick(self) -> None:
        words = (self.jumpy(), "--length", "5", "--size", "1")
        slipped = (self.told(*words, "--slippage", text) for text in ("0", "0.000001", "0.01"))
        none, little, much = (D(told["net"]) for told in slipped)
        self.assertTrue(none > little > much)

    def test_rollovers_of_the_last_candle_are_paid_and_none_after_just_four_hours(self) -> None:
        for minutes, prices, turns, rollovers in (
            (21600, (100, 100, 101, 101), 1, 89),
            (240, (100, 100, 101, 99, 99), 2, 0),
        ):
            path = self.write(candles(prices, minutes * 60), f"ETHUSD_{minutes}.csv")
            words = (path, "--length", "2", "--size", "1", "--fee", "0")
            told = self.told(*words, KRAKENBOT_ENTRY="now")
            expected = (turns, rollovers * D("0.02525"))
            self.assertEqual((told["turns"], D(told["rollover"])), expected)

    def test_openings_in_candles_without_trades_are_counted_or_wait(self) -> None:
        prices = [*range(100, 130), *range(130, 100, -1), *range(100, 130)]
        rows = candles(prices)
        path = self.write(rows[:32] + rows[34:])
        words = (path, "--length", "2", "--size", "1")
        told = self.told(*words, KRAKENBOT_ENTRY="now")
        self.assertEqual((told["candles"], told["candles_untraded"]), (90, 2))
        self.assertEqual(told["openings_untraded"], 1)
        waits = self.told(*words, "--no-trade-no-fill", KRAKENBOT_ENTRY="now")
        self.assertEqual((waits["turns"], waits["openings_untraded"]), (told["turns"], 0))
        entries = [[trip["entry"] for trip in one["round_trips"]][1] for one in (told, waits)]
        self.assertEqual(entries, [33 * 60 + 1, 34 * 60 + 1])

    def test_a_turn_while_an_order_would_wait_for_a_trade_is_a_turn(self) -> None:
        rows = candles([100, 102, 101, 101, 101, 101])
        words = (self.write(rows[:3] + rows[4:]), "--length", "2", "--size", "1")
        for more in ((), ("--no-trade-no-fill",)):
            self.assertEqual(self.told(*words, *more)["turns"], 1)

    def test_an_order_that_waits_for_a_trade_at_the_end_has_not_been_refused(self) -> None:
        rows = candles([120, 120, 121, 122, 90, 80, 80, 81, 81])
        words = self.write([*rows[:-1], rows[-1][:-3] + "0,0"]), "--length", "2", "--size", "1"
        words += "--leverage", "0", "--balance", "85", "--no-trade-no-fill"
        told = self.told(*words, KRAKENBOT_ENTRY="now")
        self.assertEqual((told["refused"], told["ended"]), (2, None))

    def test_no_order_is_refused_while_it_would_wait_for_a_trade(self) -> None:
        rows = candles([*range(100, 140)])
        path = self.write(rows[:20] + rows[25:])
        words = (path, "--length", "2", "--size", "1", "--balance", "9")
        told = self.told(*words, KRAKENBOT_ENTRY="now")
        waits = self.told(*words, "--no-trade-no-fill", KRAKENBOT_ENTRY="now")
        self.assertEqual((told["refused"], waits["refused"]), (37, 32))

    def test_round_trips_add_up_to_the_result(self) -> None:
        told = self.told(self.jumpy(), "--length", "5")
        trips = told["round_trips"]
        won = sum(D(trip["net"]) > 0 for trip in trips)
        self.assertEqual(won / len(trips), told["win_rate"])
        for trip in trips:
            self.assertEqual(D(trip["gross"]) - D(trip["costs"]), D(trip["net"]))
        self.assertEqual(told["net_percent"], float(100 * D(told["net"]) / D(told["balance"])))

    def test_what_is_assumed_about_a_pair_is_said_and_can_be_given(self) -> None:
        path = self.jumpy("FOOBAR_1.csv")
        notes = self.notes(path)
        self.assertIn("FOO/BAR is not in the built-in list", notes)
        self.assertIn("margin rate of BAR and FOO: 0.02 %", notes)
        row = {**PAIRS["XXBTZUSD"], "altname": "FOOBAR", "wsname": "FOO/BAR", "ordermin": "7"}
        rules = self.write([json.dumps({"error": [], "result": {"FOOBAR": row}})], "rules.json")
        self.assertIn("below the smallest order, 7", self.notes(path, "--pair-rules", rules))
        euro = self.jumpy("XBTEUR_1.csv")
        self.assertIn("no pair XBT/EUR", self.refused(euro, "--pair-rules", rules))
        self.assertIn("AssetPairs", self.refused(path, "--pair-rules", path))
        told = self.refused(path, "--pair-rules", self.write(["[]"], "empty.json"))
        self.assertRegex(told, "not a saved AssetPairs answer$")
        whole = self.write(candles([*range(100, 140)]), "FOOBAR_1.csv")
        self.assertIn("a tick of 1,", self.notes(whole))

    def test_a_run_that_ended_early_makes_no_promise_for_a_year(self) -> None:
        rows = [f"{86400 * at},{row},1,1" for at, row in enumerate(self.ENDING)]
        rows += [f"{86400 * at},60,60,60,60,1,1" for at in range(4, 99)]
        path = self.write(rows, "ETHUSD_1440.csv")
        words = (path, "--interval", "1440", "--length", "2", "--size", "900", "--fee", "0")
        output = command(*words, "--leverage", "10", KRAKENBOT_ENTRY="now")[1]
        self.assertIn("ENDED EARLY", output)
        self.assertNotIn("per year", output)

    def test_a_mistake_in_a_file_does_not_follow_the_progress_on_its_line(self) -> None:
        path, shown = self.write([*candles(walk(3000)), "no candle"]), Terminal()
        self.assertEqual(2, command(path, err=shown).code)
        progress = r"(\r[0-9,]+ candles, 1970-01-0. ..:..)+\r\x1b\[K"
        self.assertRegex(shown.getvalue(), f"^{progress}krakenbot: .*'no candle'")

    def test_max_loss_and_intervals_that_the_bot_does_not_have_are_remarked(self) -> None:
        notes = self.notes(self.jumpy(), KRAKENBOT_RISK_MAX_LOSS="9")
        self.assertIn("max_loss is checked when a candle ends", notes)
        rows = [f"{43200 * at},9,9,9,9,1,1" for at in range(40)]
        path = self.write(rows, "XBTUSD_720.csv")
        self.assertIn("cannot run at 720 min", self.notes(path))

    def test_a_report_of_an_interval_longer_than_the_file_s_shows_all_of_it(self) -> None:
        rows = [f"{60 * at},{9 + at % 7},{99},{1},{9 + at % 5},1,1" for at in range(60 * 24 * 9)]
        path, report = self.write(rows), self.folder / "report.html"
        self.assertEqual(command(path, "--interval", "60", "--report", str(report))[0], 0)
        page = report.read_text()
        self.assertGreater(page.count("UTC"), 0)
        shown = re.findall(r'"t":\["([^"]*)".*?"([^"]*)"\],"x"', page)[0]
        self.assertEqual((shown[0][:10], shown[1][:10]), ("1970-01-01", "1970-01-10"))

    def profits_drawn(self, *words: str, **environment: str) -> tuple[Any, list[list[D]]]:
        report = str(self.folder / "report.html")
        told = self.told(*words, "--report", report, **environment)
        lines = re.findall(r'\["(?:before|after) costs",(\[[^]]*\])\]', Path(report).read_text())
        return told, [[D(text.replace(",", "")) for text in json.loads(line)] for line in lines]

    def test_the_lines_of_a_report_end_at_the_result_and_never_below_a_liquidation(self) -> None:
        flat = "100,100,100,100"
        candles = flat, flat, "100,101,100,101", "101,101,101,101"
        rows = [f"{21600 * 60 * at},{row},1,1" for at, row in enumerate(candles, 1000)]
        held = self.write(rows, "ETHUSD_21600.csv")
        words = "--length", "2", "--size", "900", "--leverage", "10", "--fee", "0"
        for path in (held, self.liquidated(), self.liquidated(*["60,60,60,60"] * 3)):
            told, drawn = self.profits_drawn(path, *words, KRAKENBOT_ENTRY="now")
            self.assertNotEqual(told["rollover"] == "0", path == held)
            for profits, name in zip(drawn, ("gross", "net"), strict=True):
                self.assertEqual(profits[-1], round(D(told[name]), 2))
            self.assertEqual(min(drawn[1]), round(-D(told["max_drawdown"]), 2))

    def test_all_but_tables_fits_into_eighty_columns(self) -> None:
        path = self.write(candles(walk(900), 3600, 86400), "ABCJPY_60.csv")
        for words in ([], ["--sweep", "length=5,10"]):
            lines = command(path, "--size", "500", *words)[1].splitlines()
            tables = ("entry (UTC)", "1970-", "length=")
            long = [line for line in lines if len(line) > 80 and not line.startswith(tables)]
            self.assertEqual(long, [])
        self.assertIn("saved AssetPairs answer with", " ".join(lines))

    def test_a_report_tells_of_all_round_trips_and_not_of_those_it_draws(self) -> None:
        path, report = self.jumpy(), self.folder / "report.html"
        count = len(self.told(path, "--length", "5")["round_trips"])
        lines = command(path, "--length", "5")[1].splitlines()
        with mock.patch.object(backtest, "TRIPS_DRAWN", 15):
            more = command(path, "--length", "5", "--report", str(report))[1].splitlines()
        self.assertEqual([*lines, f"report: {report}"], more)
        self.assertGreater(count, 15)
        page = report.read_text()
        self.assertIn(f"<dt>Round trips</dt><dd>{count}</dd>", page)
        self.assertIn(f"<h2>Round trips <small>newest first, 15 of {count}</small></h2>", page)
        still_open = page.count("<td>open</td>") - page.count("<td>close</td>")
        shown, orders = 30 + still_open, 2 * count + still_open
        self.assertIn(f"<h2>Orders <small>newest first, {shown} of {orders}</small></h2>", page)


class TestWhichFile(CommandTest):
    def test_the_pair_is_the_file_s_and_never_another(self) -> None:
        expected = self.told(self.jumpy("XBTEUR_1.csv"))
        self.assertEqual(expected["pair"], "XBTEUR")
        for name in ("XBTEUR_1 (1).csv", "BTC_EUR_1m.csv"):
            self.assertEqual(self.told(self.jumpy(name)), expected)
        euro, export = self.jumpy("XBTEUR_1.csv"), self.jumpy("export.csv")
        for pair in ("BTC/EUR", "XBT/EUR", "XXBTZEUR"):
            self.assertEqual(self.told(euro, "--pair", pair)["net"], expected["net"])
        self.assertIn("not of XBTUSD, XBTEUR", self.refused(euro, "--pair", "XBTUSD"))
        self.assertIn("add --pair", self.refused(export))
        self.assertEqual(self.told(export, "--pair", "XBTEUR")["net"], expected["net"])
        self.assertIn("must be of one pair", self.refused(euro, self.jumpy("ETHEUR_1.csv")))

    def test_a_folder_or_zip_is_searched_for_every_name_of_the_pair(self) -> None:
        expected = self.told(self.jumpy("some/XBTUSD_1.csv"))
        with zipfile.ZipFile(self.folder / "all.zip", "w") as archive:
            archive.write(self.folder / "some/XBTUSD_1.csv", "x/XBTUSD_1.csv")
            archive.writestr("x/ETHUSD_1.csv", "")
        for place in ("some", "all.zip"):
            for name in ("BTC/USD", "XBT/USD", "BTCUSD", "XXBTZUSD"):
                told = self.told(str(self.folder / place), "--pair", name)
                self.assertEqual(told["net"], expected["net"])
        error = self.refused(str(self.folder / "all.zip"), "--pair", "FOO/USD")
        self.assertIn("no files of FOO/USD, like FOOUSD_1.csv; it has ETHUSD, XBTUSD", error)

    def test_the_case_of_a_file_s_ending_does_not_matter(self) -> None:
        rows = candles(walk(700))
        path = Path(self.write(rows))
        expected = self.told(str(path))
        self.write(rows[:300], "parts/a/XBTUSD_1.CSV")
        packed = self.folder / "parts/XBTUSD_1.CSV.GZ"
        packed.write_bytes(gzip.compress("\n".join(rows[300:]).encode()))
        with zipfile.ZipFile(self.folder / "ALL.ZIP", "w") as archive:
            archive.write(path, "XBTUSD_1.Csv")
        for place in ("parts", "ALL.ZIP"):
            self.assertEqual(self.told(str(self.folder / place)), expected)

    def test_a_folder_is_stitched_in_order_of_time(self) -> None:
        rows = candles(walk(700))
        expected = self.told(self.write(rows, "whole/XBTUSD_1.csv"))
        self.write(rows[300:], "parts/0/XBTUSD_1.csv")
        self.write(rows[:300], "parts/1/XBTUSD_1.csv")
        self.assertEqual(self.told(str(self.folder / "parts")), expected)

    def test_no_home_is_needed(self) -> None:
        words = "--config", os.devnull, "backtest", self.jumpy()
        self.assertEqual([call(*words).code, call(*words, "--size", "x").code], [0, 2])

    def test_a_pipe_is_refused_because_a_file_is_read_more_than_once(self) -> None:
        pipe = self.folder / "XBTUSD_1.csv"
        os.mkfifo(pipe)
        for path in (str(pipe), os.devnull):
            told = self.refused(path, "--pair", "XBTUSD")
            self.assertIn(f"{path}: not a regular file; candles are read more than once", told)

    def test_an_empty_name_does_not_mean_the_current_folder(self) -> None:
        for words in ([""], ["--report", ""], ["--pair-rules", ""]):
            with self.subTest(words=words):
                self.assertIn("name of a file is empty", self.refused(self.jumpy(), *words))


class TestSweep(CommandTest):
    def test_a_sweep_gives_what_each_run_gives_alone(self) -> None:
        path = self.jumpy()
        cells = self.told(path, "--sweep", "length=5:15:5", "interval=1,5")
        self.assertEqual(len(cells), 6)
        for cell in cells:
            words = "--length", str(cell.pop("length")), "--interval", str(cell.pop("interval"))
            alone = self.told(path, *words)
            del alone["notes"], alone["round_trips"], cell["cell"]
            self.assertEqual(alone, cell)

    def test_a_sweep_goes_with_the_bot_s_own_configuration(self) -> None:
        path = self.jumpy()
        notify = {"KRAKENBOT_NOTIFY_URL": "https://example.org/secret"}
        self.assertEqual(2, len(self.told(path, "--sweep", "length=5,10", **notify)))

    def test_a_parameter_with_the_name_of_a_figure_hides_neither(self) -> None:
        lines = "CANDLES = 1", "def direction(candles, net):", "    return 1"
        rule = {"KRAKENBOT_STRATEGY_FILE": self.write(lines, "rule.py")}
        rule |= {"KRAKENBOT_STRATEGY_NAME": "file"}
        cells = self.told(self.jumpy(), "--sweep", "net=5:6", **rule)
        self.assertEqual([cell["cell"] for cell in cells], [{"net": 5}, {"net": 6}])
        self.assertEqual({D(cell["net"]) for cell in cells}, {D(cells[0]["net"])})

    def test_a_sweep_s_header_shows_what_all_cells_share(self) -> None:
        lines = "CANDLES = 1", "def direction(candles, hold, band):", "    return 1"
        values = "[strategy.parameters]", "hold = 20", "band = 3"
        rule = self.write(lines, "rule.py")
        named = self.write(["[strategy]", "name = 'file'", f"file = '{rule}'", *values], "c.toml")
        words = "--config", named, "backtest", self.jumpy(), "--sweep", "hold=1,2"
        shown = call(*words, HOME="/x").out
        self.assertIn(" band=3,", shown)
        tiny = call(*words[:-1], "hold=0.0000001", HOME="/x").out
        self.assertIn("hold=0.0000001 ", tiny)
        self.assertNotIn("hold=20", shown)
        shown = command(self.jumpy(), "--sweep", "interval=1,5")[1]
        self.assertIn("sma-slope 20, size", shown)

    def test_a_signal_ends_a_sweep_and_its_workers_at_once(self) -> None:
        signals = (
            (signal.SIGTERM, os.kill, 130),
            (signal.SIGINT, os.killpg, 130),
            (signal.SIGKILL, os.kill, -signal.SIGKILL),
        )
        for (number, send, code), program in [(row, self.slow_sweep()) for row in signals]:
            with self.subTest(number=number):
                for _ in range(9):  # Then the sweep is well under way.
                    program.stdout.readline()
                send(program.pid, number)
                errors = program.communicate(timeout=10)[1]  # Workers hold the pipes open.
                self.assertEqual((program.returncode, errors), (code, ""))

    def slow_sweep(self) -> Any:
        """Return a sweep in a process group of its own, which ends with the test."""
        lines = "import time", "CANDLES = 1", "def direction(candles, hold):"
        rule = self.write([*lines, " print('began', flush=True)", " time.sleep(0.1)"], "rule.py")
        chosen = {"KRAKENBOT_STRATEGY_NAME": "file", "KRAKENBOT_STRATEGY_FILE": rule}
        words = "-m", "krakenbot", "--config", os.devnull, "backtest", self.jumpy()
        program = subprocess.Popen(
            [sys.executable, *words, "--sweep", "hold=1:9"],
            env=os.environ | chosen,
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.communicate()

        self.addCleanup(end)
        return program

    def test_the_table_marks_the_best_of_the_cells_that_traded_to_the_end(self) -> None:
        path = self.jumpy()
        lines = command(path, "--sweep", "length=5:15:5", "interval=1,5")[1].splitlines()
        cells = self.told(path, "--sweep", "length=5:15:5", "interval=1,5")
        table = next(at for at, line in enumerate(lines) if line.startswith("net by length"))
        shown = [word for line in lines[table + 2 : table + 5] for word in line.split()[1:]]
        nets = [f"{float(cell['net']):+,.2f}" for cell in cells]
        self.assertEqual([word.rstrip("*!") for word in shown], nets)
        best = max((c for c in cells if not c["ended"]), key=lambda c: D(c["net"]))
        self.assertEqual([w for w in shown if "*" in w], [f"{float(best['net']):+,.2f}*"])

    def test_a_cell_that_ended_early_is_never_the_best(self) -> None:
        path = self.write(candles([*[100, 100, 101, 101] * 40, *range(101, 200)]), "ETHUSD_1.csv")
        words = (path, "--size", "90", "--balance", "3500", "--leverage", "5")
        sweep = (*words, "--sweep", "length=2,3,40")
        shown = command(*sweep, KRAKENBOT_ENTRY="now")[1]
        cells = self.told(*sweep, KRAKENBOT_ENTRY="now")
        self.assertEqual([bool(cell["ended"]) for cell in cells], [True, True, False])
        self.assertIn("! 2 of 3 ended early", shown)
        self.assertIn("Best of 3: length=40,", shown)
        report = self.folder / "r.html"
        table = command(*sweep, "--report", str(report), KRAKENBOT_ENTRY="now")[1]
        for shown in (table, report.read_text()):
            self.assertIn(f"! 1970-01-01 00:17 UTC: {cells[0]['ended']}", shown)

    def test_the_walk_forward_tells_what_the_best_of_each_span_made_in_the_next(self) -> None:
        path = self.write(candles(walk(122 * 6), 14400, 86400), "XBTUSD_240.csv")
        words = (path, "--sweep", "length=5,10,20", "--size", "0.1")
        told = self.told(*words, "--forward", "20d")
        self.assertEqual(len(told["forward"]), 5)
        for step in told["forward"]:
            span = (step["begin"], step["end"])
            self.assertEqual(span[1] - span[0], 20 * 86400)
            self.assertLessEqual(D(step["net"]), D(step["best_net"]))
            self.assertIn(step["rank"], (1, 2, 3))
        text = command(*words, "--forward", "20d")[1]
        self.assertIn("did in the next", text)
        total = next(line for line in text.splitlines() if line.startswith("in all")).split()
        made = sum(D(step["net"]) for step in told["forward"])
        self.assertEqual(f"{made:+,.2f}", total[5])
        report = self.folder / "sweep.html"
        both = (path, "--sweep", "length=5,10", "interval=240,1440", "--forward", "20d")
        self.assertEqual(command(*both, "--report", str(report))[0], 0)
        self.assertIn("How the best cell", report.read_text())

    def test_spans_after_one_without_a_best_cell_are_counted(self) -> None:
        prices = [2] * 24 * 12 + walk(24 * 8)
        path = self.write(candles(prices, 3600, 86400), "XBTUSD_60.csv")
        words = path, "--sweep", "length=5,10", "--size", "0.01", "--forward", "4d"
        self.assertEqual(len(self.told(*words)["forward"]), 1)
        text = command(*words)[1]
        self.assertIn("did in the next (3 left out: no best before)\n", text)
        self.assertIn("How the best cell", text)
        self.assertNotIn("use --forward", text)
        self.assertIn("use --forward", " ".join(command(*words[:-2])[1].split()))

    def test_spans_are_walked_through_in_candles_that_do_not_begin_with_them(self) -> None:
        path = self.write(candles(walk(300 * 6), 14400, 86400), "XBTUSD_240.csv")
        weeks = self.told(path, "--sweep", "length=2,3", "interval=10080", "--forward", "60d")
        begins = [step["begin"] for step in weeks["forward"]]
        self.assertEqual([begin % 604800 for begin in begins], [0] * len(begins))
        self.assertEqual(len(begins), 4)

    def test_a_span_too_short_for_two_candles_is_named(self) -> None:
        path = self.write(candles(walk(24 * 20), 3600, 86400), "XBTUSD_60.csv")
        for words in (["interval=60,1440"], ["length=2,3", "interval=1440"]):
            told = self.refused(path, "--sweep", *words, "--forward", "1d")
            self.assertIn("--forward 1d: a span holds fewer than two candles of 1440 min", told)

    def test_options_that_mean_nothing_are_refused(self) -> None:
        path = self.jumpy()
        cross = {"KRAKENBOT_STRATEGY_NAME": "sma-cross"}
        sweeps = """length=1:99999999999999 length=-99999999999999:5 length=5:1 other=5:6
            interval=60,120 length=1,5 length=5,900"""
        for environment, *words in (
            *(({}, "--sweep", sweep) for sweep in sweeps.split()),
            *(({}, "--slippage", text) for text in ("-1", "10")),
            ({}, "--interval", "120"),
            ({}, "--length", "900"),
            ({}, "--fee", "7"),
            ({}, "--size", "abc"),
            ({}, "--size", ""),
            ({}, "--pair", ""),
            (cross, "--sweep", "length=5:6"),
            ({}, "--forward", "365d"),
            ({}, "--forward", ""),
            *(({}, "--forward", text, "--sweep", "length=5:6") for text in ("1y", "x", "")),
        ):
            with self.subTest(words=words):
                self.assertIn(words[0], self.refused(path, *words, **environment))
        self.assertEqual(command(path, "--sweep", "interval=1,5", **cross)[0], 0)
        self.assertEqual(command(path, "--size", "0.1", KRAKENBOT_SIZE="bad")[0], 0)
        self.assertEqual(command(path, KRAKENBOT_SIZE="bad")[0], 78)


def command(*words: str, **environment: Any) -> Done:
    """Run `backtest` far from any configuration."""
    place = ("--config", os.devnull, "backtest")
    return call(*place, *words, HOME="/x", **environment)


def candles(prices: Iterable[float], step_s: int = 60, first: int = 0) -> list[str]:
    """Return lines of a file in which each candle has one price."""
    return [f"{first + step_s * at},{p},{p},{p},{p},1,1" for at, p in enumerate(prices)]


def walk(count: int, seed: int = 7) -> list[float]:
    """Return prices that walk at random."""
    dice, price, prices = random.Random(seed), 20000.0, []
    for _ in range(count):
        price = round(price * (1 + dice.gauss(0, 0.005)), 1)
        prices.append(price)
    return prices
