"""Deliberate defects, each of which the simulation must find: it must be able to say no.

    python -m unittest tests.mutations

Each defect is a substitution in a copy of the package; a text that is not there fails loudly.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
DAYS_MAX = 60
SECONDS_MAX = 240

FILLED = "Execution(intent.id, '', OrderStatus.CLOSED, intent.volume, intent.volume, ZERO)"
# What is wrong: file, right text, wrong text.
DEFECTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "an order is sent again after a time-out": (
        (
            "orders",
            'log.warning("order unanswered id=%s reason=%s", intent.id, error)',
            "self._exchange.place(intent.order, intent.deadline)",
        ),
    ),
    "the intent is written after the order is sent": (
        (
            "orders",
            "            self._journal.write(intent)\n            self._send(intent)\n",
            "            self._send(intent)\n            self._journal.write(intent)\n",
        ),
    ),
    "what is committed may not be on disk": (
        ("journal_file", "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"),
    ),
    "a fill is written and not counted": (
        (
            "journal",
            "        self._account = account.traded(intent.side, volume, cost, fee)",
            "        self._account = account.traded(intent.side, ZERO, cost, fee)",
        ),
    ),
    "the remembered position is believed": (
        (
            "orders",
            "            held = self._held(explained)\n            if held == explained:",
            "            return explained\n            if held == explained:",
        ),
    ),
    "position and journal need not agree": (
        (
            "orders",
            "            if held == explained:\n                return held",
            "            if True:\n                return held",
        ),
    ),
    "a partial fill counts as a whole one": (
        (
            "orders",
            "self._now(), found, found.reason)",
            "self._now(), found._replace(volume=intent.volume), found.reason)",
        ),
    ),
    "an order is looked for among open orders only": (
        ("kraken/spot", '("ClosedOrders", "closed", {', '("OpenOrders", "open", {'),
    ),
    "an order has no deadline": (
        (
            "spot",
            '        params["deadline"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", '
            "time.gmtime(deadline))\n",
            "",
        ),
    ),
    "the first empty answer proves absence": (
        (
            "orders",
            "        if now - first < WATCH_MIN_S or not is_over or "
            "now - first_after < LOOK_PAUSE_S:\n",
            "        if False:\n",
        ),
    ),
    "reading is thought to lag for five seconds at most": (
        ("orders", "VISIBLE_S = 120", "VISIBLE_S = 5"),
        ("orders", "WATCH_MIN_S = 75.0", "WATCH_MIN_S = 5.0"),
    ),
    "nonces are the clock's": (
        ("lock", "nonce = max(clock_ns, self._last + 1)", "nonce = clock_ns"),
    ),
    "a new process forgets the nonces of the old one": (
        ("lock", "self._reserved = int(text) if text.isdigit() else 0", "self._reserved = 0"),
    ),
    "the key is not locked": (
        ("lock", "fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
    ),
    "what of a position is closed already is not counted": (
        ("kraken/spot", 'rest = opened - decimal(row["vol_closed"])', "rest = opened"),
    ),
    "open intents are not settled": (
        ("bot", "            self._patiently(self._orders.reconcile, patience_s)\n", ""),
        (
            "bot",
            "        interval_s = self._plan.interval_s\n        self._orders.reconcile()\n",
            "        interval_s = self._plan.interval_s\n",
        ),
    ),
    "a refused order counts as filled": (
        (
            "orders",
            "self._journal.conclude(intent, outcome, self._now(), note=str(error))",
            f"self._journal.conclude(intent, outcome, self._now(), {FILLED}, str(error))",
        ),
        ("orders", "import ZERO, ", "import OrderStatus, ZERO, "),
    ),
    "an accepted order counts as filled": (
        (
            "orders",
            "            self._journal.accept(intent.id)\n",
            f"            self._journal.conclude(intent, 'closed', self._now(), {FILLED})\n",
        ),
        ("orders", "import ZERO, ", "import OrderStatus, ZERO, "),
    ),
    "an error of unknown text is a refusal": (
        (
            "client",
            "    if verdict == UNKNOWN:\n",
            '    if verdict == UNKNOWN and method != "AddOrder":\n',
        ),
    ),
    "a page in place of JSON is a refusal": (
        (
            "client",
            'raise UnansweredError(f"{method}: {problem}")',
            'raise (RefusedError if method == "AddOrder" else UnansweredError)("a page")',
        ),
    ),
    "closing may open the other way": (
        ("sizing", "reduce_only = leverage > 0", "reduce_only = False"),
    ),
    "what was tried in this candle is tried again": (
        (
            "bot",
            "            | {intent.purpose for intent in sent if intent.outcome != NOT_SENT}\n",
            "",
        ),
    ),
    "refusals go on for ever": (("orders", "UNFILLED_MAX = 5", "UNFILLED_MAX = 500"),),
    "a halt is forgotten by the next start": (
        ("bot", '        reason = self._journal.get("halted")\n', '        reason = ""\n'),
    ),
    "what the ledger took is not booked": (
        ("accounting", '"opening", max(extra, ZERO))', '"opening", ZERO)'),
    ),
    "a charge is booked each time it is read": (
        (
            "journal",
            "        if self.is_charged(charge_id):\n            return\n",
            "        charge_id = f'{charge_id} {os.urandom(4).hex()}'\n",
        ),
        (
            "accounting",
            "if own and all(journal.is_charged(_opened(charge)) for charge in own):",
            "if False:",
        ),
    ),
    "a refused order is thought never to have left": (
        ("orders", "            if error.sent:\n", "            if False:\n"),
        (
            "client",
            "    if verdict == UNKNOWN:\n        raise UnansweredError(text)",
            "    if verdict == UNKNOWN:\n        raise LaterError(text)",
        ),
    ),
}


def copy_with(defect: str, folder: Path) -> None:
    """Make a copy of program and tests that has the defect."""
    for name in ("krakenbot", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for module, right, wrong in DEFECTS[defect]:
        path = folder / "krakenbot" / f"{module}.py"
        text = path.read_text(encoding="utf-8")
        if text.count(right) != 1:
            raise LookupError(f"{defect}: {module}.py has {text.count(right)} times {right!r}")
        path.write_text(text.replace(right, wrong), encoding="utf-8")


def verdict(defect: str) -> str:
    """Return what the simulation says of the defect; nothing when it finds none."""
    with tempfile.TemporaryDirectory() as folder:
        copy_with(defect, Path(folder))
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.torture",
                    "--seed",
                    "1",
                    "--days",
                    str(DAYS_MAX),
                ],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=SECONDS_MAX,
            )
        except subprocess.TimeoutExpired:
            return ""
    lines = done.stdout.splitlines()
    if done.returncode == 1 and lines and lines[0].startswith("VIOLATION"):
        return next(line for line in reversed(lines[: lines.index(_again(lines))]) if line)
    return done.stderr[-2000:] if done.returncode not in (0, 1) else ""


def _again(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("again: "))


class TestMutations(unittest.TestCase):
    def test_every_text_to_be_replaced_is_there_once(self) -> None:
        for defect in DEFECTS:
            with self.subTest(defect), tempfile.TemporaryDirectory() as folder:
                copy_with(defect, Path(folder))

    def test_every_deliberate_defect_is_found(self) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for defect, found in zip(DEFECTS, pool.map(verdict, DEFECTS), strict=True):
                with self.subTest(defect):
                    print(f"{defect}: {found:.120}")
                    self.assertRegex(found, r"^[a-z_ =]+: ", defect)


if __name__ == "__main__":
    unittest.main()
