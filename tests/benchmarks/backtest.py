"""A million candles through `backtest`, beside a bare loop of the rule and backtesting.py.

    TEST_DATA_KRAKEN=... python -m tests.benchmarks.backtest [PYTHON_WITH_BACKTESTING_PY]

Whole processes, the reading of the file included; the best of three. Prints figures only.
"""

import gzip
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CANDLES = 1_000_000
BARE = """
import sys
from collections import deque
closes, direction, turns = deque(maxlen=20), 0, 0
with open(sys.argv[1]) as file:
    for line in file:
        close = float(line.split(",")[4])
        if len(closes) == 20:
            sign = (close > closes[0]) - (close < closes[0])
            if sign and sign != direction:
                direction = sign
                turns += 1
        closes.append(close)
print(turns)
"""
OTHER = """
import sys
import pandas
from backtesting import Backtest, Strategy
names = ["t", "Open", "High", "Low", "Close", "Volume", "n"]
frame = pandas.read_csv(sys.argv[1], header=None, names=names)
frame.index = pandas.to_datetime(frame.pop("t"), unit="s")
class Slope(Strategy):
    def init(self):
        closes = pandas.Series(self.data.Close)
        self.change = self.I(lambda: (closes - closes.shift(20)).values, plot=False)
    def next(self):
        change = self.change[-1]
        if change > 0 and not self.position.is_long:
            self.position.close()
            self.buy(size=1)
        elif change < 0 and not self.position.is_short:
            self.position.close()
            self.sell(size=1)
print(Backtest(frame, Slope, cash=1e10, commission=0.008, margin=0.5).run()["# Trades"])
"""


def main() -> None:
    data = Path(os.environ.pop("TEST_DATA_KRAKEN")) / "candles/ohlcvt/2023-03/XBTUSD_1.csv.gz"
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "XBTUSD_1.csv")
        build(data, path)
        own = [sys.executable, "-m", "krakenbot", "backtest", path, "--balance", "1000000"]
        bare = measure("bare loop", [sys.executable, "-c", BARE, path])
        measure("krakenbot backtest", own, bare)
        measure("krakenbot backtest --report", [*own, "--report", path + ".html"], bare)
        if subprocess.run([python, "-c", "import backtesting"], capture_output=True).returncode:
            print("backtesting.py is not installed: not measured")
        else:
            measure("backtesting.py", [python, "-c", OTHER, path], bare, runs=1)


def build(source: Path, path: str) -> None:
    """Write the real candles again and again, each time later, until there are enough."""
    with gzip.open(source, "rt") as file:
        rows = [line.split(",", 1) for line in file]
    span = int(rows[-1][0]) - int(rows[0][0]) + 60
    with open(path, "w") as file:
        for number in range(CANDLES):
            turn, at = divmod(number, len(rows))
            file.write(f"{int(rows[at][0]) + turn * span},{rows[at][1]}")


def measure(name: str, command: list[str], base: float = 0.0, runs: int = 3) -> float:
    """Print and return the shortest time of a process."""
    best, memory = float("inf"), 0.0
    for _ in range(runs):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            memory = max(memory, resident(process.pid))
            time.sleep(0.002)
        best = min(best, time.perf_counter() - began)
        if process.returncode:
            raise SystemExit(f"{name} ended with {process.returncode}")
    ratio = f"{best / base:6.2f} x the bare loop" if base else ""
    print(f"{name:30}{best:7.2f} s {memory:7.1f} MiB {ratio}", flush=True)
    return best


def resident(process: int) -> float:
    """Return the most memory that a process has had so far, in MiB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0.0


if __name__ == "__main__":
    main()
