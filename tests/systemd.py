"""The service as an operator has it: installed as the README says, under a systemd of its own.

Needs root, systemd-nspawn and debootstrap; skipped elsewhere. A Debian is made once and kept in
/var/tmp; what a test does to it is forgotten. The exchange is the sandbox on the host's loopback.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krakenbot.commands.install import packed
from krakenbot.simulated import http as server
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

ROOT = Path("/var/tmp/krakenbot-root")
PACKAGES = "systemd,systemd-sysv,dbus,python3,procps,sudo"
SPEED = 20.0
BOOT_S, LIMIT_S = 60.0, 120.0
CONFIG = "/etc/krakenbot/config.toml"
BOT = f"krakenbot --config {CONFIG}"
SETTINGS = """
mode = "live"
size = 0.01
entry = "now"
[risk]
max_fee_percent_per_day = 1000
[exchange]
url = "{url}"
clock_speed = {speed}
"""


def why_not() -> str | None:
    """Return why this machine cannot run these tests, None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("systemd-nspawn") is None:
        return "no systemd-nspawn here"
    if not ROOT.exists() and shutil.which("debootstrap") is None:
        return "no debootstrap here"
    return None


class Machine:
    """A Debian with systemd as PID 1. Whatever happens in it is gone when it ends."""

    def __init__(self) -> None:
        if not ROOT.exists():
            part = ROOT.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            made = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", part]
            subprocess.run([str(word) for word in made], check=True, stdout=subprocess.DEVNULL)
            part.rename(ROOT)
        environ = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_USE_CGNS": "1"}
        words = f"--boot -D {ROOT} --volatile=overlay --register=no --keep-unit --console=pipe"
        name = f"--machine=krakenbot-{os.getpid()}"
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", *words.split(), name, "--link-journal=no"],
            env=os.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._init = 0
        wait_until(self._is_up, BOOT_S, "the machine is up")

    def _is_up(self) -> bool:
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text()
        self._init = int(children.split()[0]) if children.split() else 0
        state = self.run("systemctl is-system-running").stdout if self._init else ""
        return state.strip() in ("running", "degraded")

    def run(self, command: str, user: str = "root", stdin: bytes = b"") -> Any:
        """Return the finished command, run by a shell in the machine."""
        inside = ["env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        shell = ["su", "-", user, "-c", command] if user != "root" else ["bash", "-c", command]
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-a", "--", *inside, "HOME=/root", *shell],
            input=stdin,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    def close(self) -> None:
        if self._init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGRTMIN + 3)
        try:
            self._nspawn.wait(20)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()


def wait_until(holds: Any, limit_s: float, what: str) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.3)


@unittest.skipIf(why_not() is not None, why_not() or "")
class TestService(unittest.TestCase):
    """One day of an operator, in the order of the names."""

    machine: Machine
    sandbox: server.Sandbox

    @classmethod
    def setUpClass(cls) -> None:
        cls.sandbox = server.Sandbox("random:5", SPEED)
        cls.addClassCleanup(cls.sandbox.close)
        cls.machine = Machine()
        cls.addClassCleanup(cls.machine.close)
        cls.machine.run("useradd --create-home ana && adduser ana sudo")
        cls.machine.run("echo '%sudo ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/sudo")

    # -- what a test says with ------------------------------------------------------------------

    def do(self, command: str, user: str = "root", code: int = 0) -> str:
        done = self.machine.run(command, user)
        self.assertEqual(code, done.returncode, f"{command}\n{done.stdout}{done.stderr}")
        self.assertNotIn("Traceback", done.stdout + done.stderr)
        return str(done.stdout + done.stderr)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.do(f"{BOT} status --json"))
        return status

    def held(self) -> str:
        """Return what the exchange holds, however the bot sees it."""
        answer = self.sandbox.api.respond("GET", "/sandbox/ledger", {}, b"")
        position: dict[str, str] = json.loads(answer.body)["position"]
        return position.get("XXBTZUSD", "0")

    def start(self) -> None:
        self.do("systemctl reset-failed krakenbot; systemctl start krakenbot")
        self.wait_for_position()

    def wait_for_position(self) -> None:
        wait_until(lambda: self.status()["position"] != "0", LIMIT_S, "something is held")

    def owners(self) -> set[str]:
        return set(self.do("stat -c %U:%a /var/lib/krakenbot/*").split())

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold that nothing which a command does here changes an owner in the state folder."""
        before = self.owners()
        yield
        self.assertEqual(before, self.owners())

    # -- the day --------------------------------------------------------------------------------

    def test_1_it_is_installed_from_the_single_file_and_nothing_starts(self) -> None:
        self.machine.run("cat > /root/krakenbot.pyz", stdin=packed())
        settings = SETTINGS.format(url=self.sandbox.url, speed=SPEED)
        self.machine.run("cat > /root/config.toml", stdin=settings.encode())
        self.do("cd && python3 krakenbot.pyz install --systemd --dry-run")
        self.do("cd && python3 krakenbot.pyz install --systemd")
        self.do("systemctl is-active krakenbot", code=3)
        self.do(f"printf %s '{SANDBOX_KEY}' > /etc/krakenbot/kraken_api_key")
        self.do(f"printf %s '{SANDBOX_SECRET}' > /etc/krakenbot/kraken_api_secret")
        self.do("krakenbot --version", user="ana")

    def test_2_the_doctor_finds_nothing_wrong_before_the_first_start(self) -> None:
        found = self.do(f"{BOT} doctor")
        self.assertNotRegex(found, r"(?m)^fail")

    def test_3_it_runs_and_every_command_that_looks_can_be_used_by_root(self) -> None:
        self.do("systemctl enable --now krakenbot")
        self.wait_for_position()
        status = self.status()
        self.assertEqual("running", status["state"])
        pid = self.do("systemctl show -p MainPID --value krakenbot").strip()
        self.assertEqual(pid, str(status["pid"]))
        with self.quiet():
            self.assertRegex(self.do(f"{BOT} status"), rf"^RUNNING +pid {pid}, since ")
            for what in ("decisions", "orders", "equity"):
                self.assertIn("time", self.do(f"{BOT} history {what}"))
            self.do(f"{BOT} report --output /root/report.html")
            self.do(f"{BOT} doctor")
            self.do(f"{BOT} config")

    def test_4_an_ordinary_user_is_told_to_use_sudo_and_can(self) -> None:
        for command in ("status", "history orders", "report", "flatten --live", "resume"):
            with self.subTest(command):
                self.assertIn("sudo", self.do(f"{BOT} {command}", user="ana", code=78))
        self.assertRegex(self.do(f"sudo {BOT} status", user="ana"), "^RUNNING")

    def test_5_the_journal_of_systemd_has_one_time_a_line_and_our_name(self) -> None:
        lines = self.do("journalctl -t krakenbot -o cat --no-pager").splitlines()
        self.assertTrue(any("decided" in line for line in lines), lines)
        self.assertFalse([line for line in lines if re.match(r"\d{4}-\d\d-\d\d", line)])

    def test_6_killed_it_comes_back_with_the_same_position(self) -> None:
        before = self.status()
        self.do("systemctl kill -s KILL krakenbot")
        self.assertRegex(" ".join(self.do(f"{BOT} status").split()), "^STOPPED since .* killed")
        wait_until(lambda: self.status()["state"] == "running", LIMIT_S, "started again")
        wait_until(lambda: self.status()["updated"] > before["updated"], LIMIT_S, "decided again")
        self.assertEqual(self.held(), self.status()["position"])

    def test_7_flattened_while_it_runs_it_closes_and_stays_halted(self) -> None:
        self.wait_for_position()
        with self.quiet():
            self.do(f"{BOT} flatten --live --yes")
        self.assertEqual("0", self.held())
        wait_until(lambda: self.status()["state"] == "stopped", LIMIT_S, "ended")
        self.assertIn("HALTED", self.do(f"{BOT} status"))

    def test_8_resumed_it_trades_again_and_survives_an_update(self) -> None:
        with self.quiet():
            self.do(f"{BOT} resume")
        self.start()
        self.do("cd && python3 krakenbot.pyz install --systemd && systemctl restart krakenbot")
        wait_until(lambda: self.status()["state"] == "running", LIMIT_S, "started again")
        self.assertEqual(self.held(), self.status()["position"])

    def test_9_it_is_taken_away_only_when_nothing_is_held(self) -> None:
        self.wait_for_position()
        self.assertIn("held", self.do("krakenbot uninstall", code=78))
        self.do("systemctl stop krakenbot")
        self.do(f"{BOT} flatten --live --yes")
        self.assertEqual("0", self.held())
        self.do("krakenbot uninstall")
        self.do("test ! -e /usr/local/bin/krakenbot && test ! -e /opt/krakenbot")
        self.do("ls /etc/krakenbot/kraken_api_key /var/lib/krakenbot/live-*.db")
        self.do("cd && python3 krakenbot.pyz uninstall --purge")
        self.do("test ! -e /etc/krakenbot && test ! -e /var/lib/krakenbot")
