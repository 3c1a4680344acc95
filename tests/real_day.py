"""A real stretch of candles, the sandbox and the bot as processes, against ten lines of rule.

    python -m tests.real_day FILE --speed 600 --mode live

Prints how many turns the rule has and how many reversals the bot made of them, whether the
position stood on target after every finished candle, and the largest position. Exit code 0 if
everything agrees.
"""

import argparse
import csv
import gzip
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

LENGTH = 20
SIZE = "0.001"


def rule(path: Path, step_s: int) -> dict[int, int]:
    """Return the direction after each finished candle, by its start."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        rows = [(int(row[0]), Decimal(row[4])) for row in csv.reader(file)]
    closes: list[tuple[int, Decimal]] = []
    for moment, close in rows:
        while closes and moment - closes[-1][0] > step_s:
            closes.append((closes[-1][0] + step_s, closes[-1][1]))
        closes.append((moment, close))
    direction, directions = 0, {}
    for index in range(LENGTH, len(closes)):
        change = closes[index][1] - closes[index - LENGTH][1]
        direction = (change > 0) - (change < 0) or direction
        directions[closes[index][0]] = direction
    return directions


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--speed", default="600")
    parser.add_argument("--mode", default="live", choices=("live", "paper"))
    parser.add_argument("--size", default=SIZE)
    parser.add_argument("--reversal", default="two-step")
    parser.add_argument("--candles", type=int, default=0, help="stop after so many; 0: all")
    arguments = parser.parse_args()
    pair, minutes = arguments.file.name.split(".")[0].split("_")
    directions = rule(arguments.file, int(minutes) * 60)
    with tempfile.TemporaryDirectory() as folder:
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "krakenbot",
                "sandbox",
                "--port",
                "0",
                "--feed",
                f"csv:{arguments.file}",
                "--speed",
                arguments.speed,
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as sandbox:
            assert sandbox.stdout is not None
            url = sandbox.stdout.readline().split()[-1]
            environment = bot_environment(arguments, pair, minutes, url, folder)
            command = [sys.executable, "-m", "krakenbot", "run"]
            with subprocess.Popen(
                [*command, "--live"] if arguments.mode == "live" else command,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            ) as bot:
                requests = wait_for_end(Path(folder), directions, arguments.candles)
                bot.terminate()
                errors = bot.communicate()[1]
            ledger = json.load(urllib.request.urlopen(f"{url}/sandbox/ledger"))
            sandbox.terminate()
        return compare(Path(folder), directions, arguments, errors, ledger, requests)


def bot_environment(
    arguments: argparse.Namespace, pair: str, minutes: str, url: str, folder: str
) -> dict[str, str]:
    from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

    return {
        "PATH": os.environ["PATH"],
        "KRAKEN_API_KEY": SANDBOX_KEY,
        "KRAKEN_API_SECRET": SANDBOX_SECRET,
        "KRAKENBOT_MODE": arguments.mode,
        "KRAKENBOT_PAIR": pair,
        "KRAKENBOT_INTERVAL": minutes,
        "KRAKENBOT_SIZE": arguments.size,
        "KRAKENBOT_REVERSAL": arguments.reversal,
        "KRAKENBOT_RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
        "KRAKENBOT_RISK_MAX_ORDERS_PER_DAY": "10000",
        "KRAKENBOT_EXCHANGE_FEE_PERCENT": "0.8",
        "KRAKENBOT_PAPER_BALANCE": "10000",
        "KRAKENBOT_EXCHANGE_URL": url,
        "KRAKENBOT_EXCHANGE_CLOCK_SPEED": arguments.speed,
        "KRAKENBOT_STATE_DIRECTORY": folder,
        "KRAKENBOT_LOG_LEVEL": "warning",
    }


def wait_for_end(folder: Path, directions: dict[int, int], candles: int) -> int:
    """Wait until the newest candle of the file is decided or nothing more happens."""
    newest, seen = max(directions), (0.0, 0)
    while True:
        time.sleep(0.5)
        decided = query(folder, "SELECT count(*), max(candle) FROM decisions WHERE done")
        count, last = decided[0] if decided else (0, 0)
        if last and (last >= newest or (candles and count >= candles)):
            return int(count)
        if seen[1] != count:
            seen = (time.monotonic(), count)
        elif seen[0] and time.monotonic() - seen[0] > 20:
            return int(count)


def query(folder: Path, sql: str) -> list[tuple[int, ...]]:
    for path in folder.glob("*.db"):
        try:
            with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
                return database.execute(sql).fetchall()
        except sqlite3.Error:
            return []
    return []


def compare(
    folder: Path,
    directions: dict[int, int],
    arguments: argparse.Namespace,
    errors: str,
    ledger: dict[str, object],
    count: int,
) -> int:
    size = Decimal(arguments.size)
    rows = query(folder, "SELECT candle, target, held FROM decisions WHERE done ORDER BY candle")
    fills = query(folder, "SELECT candle, side, executed, cost, fee FROM intents ORDER BY number")
    candles = [row[0] for row in rows if row[0] in directions]
    expected = [directions[candle] for candle in candles]
    first_turn = next((i for i, d in enumerate(expected) if d != expected[0]), len(expected))
    everything = [directions[c] for c in sorted(directions) if candles[0] <= c <= candles[-1]]
    turns = sum(a != b for a, b in pairwise(everything))
    held = [Decimal(row[2]) for row in rows if row[0] in directions]
    off = [
        candle
        for candle, volume, direction in zip(
            candles[first_turn:], held[first_turn:], expected[first_turn:], strict=True
        )
        if volume != direction * size
    ]
    changes = sum(a != b for a, b in pairwise(held))
    print(f"file             {arguments.file.name}, {arguments.mode}, speed {arguments.speed}")
    print(f"candles          {len(candles)} decided of {len(everything)} finished")
    missing = sorted(set(directions) - set(candles))
    missing = [c for c in missing if candles[0] <= c <= candles[-1]]
    print(f"never decided    {missing[:5]}")
    print(f"turns of rule    {turns}")
    print(f"reversals of bot {changes} in {len(fills)} orders")
    print(f"off target       {len(off)} candles {off[:5]}")
    print(f"largest position {max(map(abs, held), default=0)} (size {size})")
    requests = ledger.get("requests")
    print(f"requests         {requests}")
    warnings = [line for line in errors.splitlines() if line]
    print(f"log lines        {len(warnings)}", *warnings[:8], sep="\n  ")
    return 0 if turns == changes and not off and len(candles) == len(everything) else 1


if __name__ == "__main__":
    sys.exit(main())
