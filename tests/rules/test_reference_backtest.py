"""Every figure of a backtest is that of a reference in fractions, over real series and others."""

import json
import os
import shutil
import unittest
from fractions import Fraction as F
from pathlib import Path
from typing import NamedTuple

from tests import IS_LONG
from tests.commands.test_backtest_command import command
from tests.folders import own_folder
from tests.rules.reference_backtest import Settings, backtest, rows_of

DATA = os.environ.get("TEST_DATA_KRAKEN")
RATES = {"USD": F(25, 100000), "XBT": F(1, 10000)}
EXACT = F(1, 10**9)


class Case(NamedTuple):
    """A file under the candles or the cases, the minutes to run it at, and with which settings."""

    path: str
    minutes: int
    tick: str
    size: str
    leverage: int = 2
    length: int = 20
    fee: str = "0.8"
    balance: str = "10000"
    entry: str = "next-turn"
    step: str = "0.00001"
    is_slow: bool = False

    @property
    def name(self) -> str:
        """Return the file's name as Kraken writes it."""
        return "_".join(self.path.rpartition("/")[2].split("_")[-2:])

    @property
    def file_min(self) -> int:
        return int(self.name.partition("_")[2].partition(".")[0])

    @property
    def assets(self) -> tuple[str, str]:
        pair = self.name.split("_")[0]
        quote = "USDC" if pair.endswith("USDC") else pair[-3:]
        return pair.removesuffix(quote), quote


CASES = (
    Case("ohlcvt/2023Q1/XBTUSD_60.csv", 60, "0.1", "0.1"),
    Case("ohlcvt/2023Q1/XBTUSD_60.csv", 60, "0.1", "0.4", 5, 7, "0.1"),
    Case("ohlcvt/2023Q1/XBTUSD_60.csv", 240, "0.1", "0.1", entry="now"),
    Case("ohlcvt/2023Q1/XBTUSD_1440.csv", 1440, "0.1", "0.1", length=5),
    Case("ohlcvt/2024-2025/XBTUSD_240.csv", 1440, "0.1", "0.05"),
    Case("ohlcvt/2024-2025/XBTUSD_240.csv", 240, "0.1", "0.5", 10, is_slow=True),
    Case("ohlcvt/2023Q3/SOLUSD_15.csv.gz", 60, "0.01", "10", 3, fee="0.1", is_slow=True),
    Case("ohlcvt/2013-2020/XBTUSD_60.csv.gz", 240, "0.1", "0.5", 2, 9, is_slow=True),
    Case("ohlcvt/2013-2020/XBTUSD_60.csv.gz", 1440, "0.1", "20", 10, fee="0", is_slow=True),
    Case("ohlcvt/2023Q1/XBTUSDC_1.csv.gz", 60, "0.01", "0.1", is_slow=True),
    Case("ohlcvt/2023-03/XBTEUR_1.csv.gz", 15, "0.1", "0.1", is_slow=True),
    Case("ohlcvt/2023-03/USDTUSD_1.csv.gz", 1, "0.00001", "100", 3, fee="0.1", is_slow=True),
    Case("ohlcvt/2023Q1/XBTUSD_5.csv.gz", 5, "0.1", "0.05", is_slow=True),
    Case("ohlcvt/2013-2020/XBTUSD_60.csv.gz", 60, "0.1", "0.2", is_slow=True),
    Case("../cases/liquidated_ETHUSD_60.csv", 60, "0.01", "900", 10, 2, "0", entry="now"),
    Case("../cases/rollover_last_ETHUSD_21600.csv", 21600, "0.01", "1", 2, 2, entry="now"),
    Case("../cases/ETHXBT_60.csv", 60, "0.00001", "1", step="0.0000000001"),
    Case("../cases/XDGUSD_60.csv", 60, "0.0000001", "5000"),
)


@unittest.skipUnless(DATA, "TEST_DATA_KRAKEN is not set")
class TestAgainstTheReference(unittest.TestCase):
    def test_every_figure_is_that_of_the_reference(self) -> None:
        ended = 0
        for number, case in enumerate(CASES):
            if case.is_slow and not IS_LONG:
                continue
            with self.subTest(number=number, file=case.path, minutes=case.minutes):
                told, right = self.product(case), self.reference(case)
                ended += told["ended_at"] is not None
                for name, value in right.items():
                    self.check(name, told[name], value)
        self.assertGreater(ended, 1)

    def check(self, name: str, told: object, right: F | int | None) -> None:
        if right is None:
            self.assertIsNone(told, name)
            return
        tolerance = F(1, 10**5) if name == "max_drawdown" else EXACT * max(1, abs(F(right)))
        self.assertLessEqual(abs(F(str(told)) - right), tolerance, (name, told, float(right)))

    def path(self, case: Case) -> Path:
        assert DATA
        root = Path(DATA)
        return root / case.path if case.path.startswith("..") else root / "candles" / case.path

    def product(self, case: Case) -> dict[str, object]:
        path = own_folder(self) / case.name
        shutil.copy(self.path(case), path)
        words = ["--interval", str(case.minutes), "--size", case.size, "--fee", case.fee]
        words += ["--leverage", str(case.leverage), "--length", str(case.length)]
        code, told, _ = command(
            str(path), *words, "--balance", case.balance, "--json", KRAKENBOT_ENTRY=case.entry
        )
        self.assertEqual(code, 0)
        figures: dict[str, object] = json.loads(told)
        return figures

    def reference(self, case: Case) -> dict[str, F | int | None]:
        base, quote = case.assets
        rows = rows_of(self.path(case), case.file_min * 60, case.minutes * 60)
        settings = Settings(
            interval_s=case.minutes * 60,
            size=F(case.size),
            leverage=case.leverage,
            length=case.length,
            fee=F(case.fee) / 100,
            long_rate=RATES.get(quote, F(2, 10000)),
            short_rate=RATES.get(base, F(2, 10000)),
            balance=F(case.balance),
            tick=F(case.tick),
            step=F(case.step),
            entry_now=case.entry == "now",
        )
        return backtest(rows, settings)
