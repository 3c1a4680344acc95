"""`doctor`: everything that could keep the bot from working, looked at before it matters.

It disturbs nothing: orders are only validated, and a key that a running bot holds is left alone.
"""

import argparse
import json
import os
import shutil
import socket
import ssl
import sys
import textwrap
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from krakenbot import config as configuration
from krakenbot import log as logs
from krakenbot.client import Client, tls_context
from krakenbot.clock import SystemClock
from krakenbot.commands.call import key_lock, signed_client, transport
from krakenbot.config import Config, Credentials
from krakenbot.decision import plan_of
from krakenbot.errors import ConfigError, LaterError, RefusedError, StopError, UnansweredError
from krakenbot.journal import Lock, open_read_only
from krakenbot.model import ZERO, MarginSummary, Order, Purpose, Quote, Side, Step
from krakenbot.pairs import PairRules, plain
from krakenbot.parts import check_key, costs, load_credentials
from krakenbot.risk import Surroundings, objection
from krakenbot.spot import FEE_RATE_ASSUMED, Spot

HELP = "Check configuration, keys, clock, network, pair, account and costs."
EXAMPLE = "krakenbot doctor --json"
FREE_BYTES_MIN = 50 << 20
EXPOSURE_MAX = 1.2
DAY_S = 86400
COLORS = {"ok": "32", "warn": "33", "fail": "31"}
RICH = MarginSummary(Decimal(10**15), ZERO, ZERO)
TROUBLES = (ConfigError, LaterError, RefusedError, StopError, UnansweredError, OSError)


class Finding(NamedTuple):
    check: str
    verdict: str
    text: str
    mend: str = ""


class SkippedError(Exception):
    """The check cannot be made, which is nobody's fault."""


class ComplaintError(Exception):
    """Something to be mended: text, what to do, verdict. With `warn` the bot can still run."""

    def __init__(self, text: str, mend: str = "", verdict: str = "fail") -> None:
        super().__init__(text)
        self.mend, self.verdict = mend, verdict


class Visit:
    """What one check learns for those that name it as their need."""

    file: str | None
    config: Config
    credentials: Credentials | None
    no_key = "no key"
    lock: Lock | None = None
    market: Spot
    account: Spot
    rules: PairRules
    quote: Quote
    fee_rate: Decimal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="a list of objects")


def run(arguments: argparse.Namespace) -> int:
    logs.setup("critical", "text")
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    findings = []
    for finding in examine(arguments.config):
        findings.append(finding)
        if not arguments.json:
            print(shown(finding, colored), flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings]))
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def examine(file: str | None) -> Iterator[Finding]:
    """Yield one finding for each check, always in the same order."""
    visit = Visit()
    visit.file = file
    missing: dict[str, str] = {}
    for name, check, need, mend in CHECKS:
        try:
            if need in missing:
                raise SkippedError(missing[need])
            found = Finding(name, "ok", check(visit))
        except SkippedError as reason:
            missing[name] = str(reason)
            found = Finding(name, "ok", f"skipped: {reason}")
        except ComplaintError as error:
            found = Finding(name, error.verdict, str(error), error.mend or mend)
        except TROUBLES as error:
            text = str(error).replace("\n", "; ") or type(error).__name__
            found = Finding(name, "fail", text, mend)
        if found.verdict == "fail":
            missing[name] = f"see {name}"
        yield found._replace(text=logs.clean(found.text), mend=logs.clean(found.mend))
    if visit.lock is not None:
        visit.lock.close()


def shown(finding: Finding, colored: bool) -> str:
    """Return a finding in at most 80 columns, what to do about it on a line of its own."""
    start, indent = f"{finding.verdict:<5}{finding.check:<9} ", " " * 15
    text = textwrap.fill(finding.text, 80, initial_indent=start, subsequent_indent=indent)
    if colored:
        text = f"\x1b[{COLORS[finding.verdict]}m{text[:4]}\x1b[0m{text[4:]}"
    if finding.mend:
        arrow, indent = f"{indent}-> ", f"{indent}   "
        text += "\n" + textwrap.fill(
            finding.mend, 80, initial_indent=arrow, subsequent_indent=indent
        )
    return text


def _python(visit: Visit) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    foreign = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    if foreign := foreign - {"krakenbot", "__main__", "__mp_main__"}:
        raise ComplaintError(f"loaded besides the standard library: {', '.join(sorted(foreign))}",
                             "start with python3 -I -S", "warn")  # fmt: skip
    return f"Python {version}, {ssl.OPENSSL_VERSION}, nothing foreign loaded"


def _config(visit: Visit) -> str:
    config = visit.config = configuration.load_here(visit.file)
    chosen = [f"{key} ({source})" for key, source in config.sources.items() if source != "default"]
    return (f"{config.mode} {config.pair}, {config.interval} min, size {plain(config.size)}, "
            f"leverage {config.leverage}; set: {', '.join(chosen) or 'nothing'}")  # fmt: skip


def _secrets(visit: Visit) -> str:
    found = visit.credentials = load_credentials()
    if found is None and visit.config.mode == "paper":
        return "no API key; paper mode needs none"
    if found is None:
        raise ComplaintError(f"no API key, and mode is {visit.config.mode}")
    if found.source == "KRAKEN_API_KEY":
        raise ComplaintError("the key is in the environment, for other programs of this user to "
                             "read", verdict="warn")  # fmt: skip
    return f"found through {found.source}, modes as they should be"


def _state(visit: Visit) -> str:
    folder = visit.config.state_directory
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK | os.X_OK) or free < FREE_BYTES_MIN:
        raise ComplaintError(f"{there} cannot be written or is full, {free >> 20} MB free")
    if there == folder and folder.stat().st_mode & 0o077:
        raise ComplaintError(f"{folder} is open to others", f"chmod 700 {folder}", "warn")
    return f"{folder}{'' if there == folder else ' (will be made)'}, {free >> 20} MB free"


def _journal(visit: Visit) -> str:
    path = configuration.journal_path(visit.config)
    text = "none yet: this bot has not run"
    if path.exists():
        journal = open_read_only(path)
        halted, unresolved = journal.get("halted"), len(journal.open_intents())
        journal.close()
        if halted:
            raise ComplaintError(f"halted: {halted}", verdict="warn")
        text = f"{path.name} is sound, {unresolved} orders unresolved"
    try:
        if path.with_suffix(".lock").exists():
            Lock(path.with_suffix(".lock"), "the journal").close()
        if visit.credentials is not None and visit.config.state_directory.exists():
            key_lock(visit.config, visit.credentials).close()
    except ConfigError as error:
        visit.credentials, visit.no_key = None, "a bot is running, and the key is its own"
        text += f"; {error}"
    return text


def _network(visit: Visit) -> str:
    exchange = visit.config.exchange
    url, way = urlsplit(exchange.url), urlsplit(exchange.proxy or exchange.url)
    port = way.port or (443 if way.scheme == "https" else 80)
    with socket.create_connection((way.hostname or "", port), 10) as raw:
        if url.scheme == "http" or exchange.proxy:
            return f"{way.hostname} answers, {'through the proxy' if exchange.proxy else 'no TLS'}"
        with tls_context().wrap_socket(raw, server_hostname=url.hostname) as secured:
            ends = ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"]))
            return (f"{way.hostname} found, {secured.version()}, certificate good for "
                    f"{(ends - time.time()) / DAY_S:.0f} days")  # fmt: skip


def _clock(visit: Visit) -> str:
    config, clock = visit.config, SystemClock(visit.config.exchange.clock_speed)
    visit.market = _spot(config, Client(transport(config), config.exchange.url, clock))
    sent = clock.wall()
    ahead_s = (sent + clock.wall()) / 2 - visit.market.server_time() - 0.5
    text = f"this host is {ahead_s:+.1f} s ahead of the exchange"
    if abs(ahead_s) > 5 and clock.speed == 1:
        raise ComplaintError(text, verdict="fail" if abs(ahead_s) > 30 else "warn")
    return text


def _pair(visit: Visit) -> str:
    state, rules = visit.market.system_status(), visit.market.rules()
    visit.rules, visit.quote = rules, visit.market.quote()
    percent = visit.config.exchange.fee_percent
    visit.fee_rate = FEE_RATE_ASSUMED if percent is None else percent / 100
    text = f"exchange {state}, {rules.altname} {rules.status}, bid {plain(visit.quote.bid)}"
    if (state, rules.status) != ("online", "online"):
        raise ComplaintError(text, verdict="warn")
    return text


def _size(visit: Visit) -> str:
    _object(visit, RICH)
    return f"{plain(visit.config.size)}, the smallest is {plain(visit.rules.ordermin)}"


def _key(visit: Visit) -> str:
    if visit.credentials is None:
        raise SkippedError(visit.no_key)
    client, visit.lock = signed_client(visit.config, visit.credentials, live=False)
    visit.account = _spot(visit.config, client)
    check_key(visit.account)
    # Kraken's documentation spells these both with underscores and in camel case.
    row = {name.replace("_", "").lower(): v for name, v in client.private("GetApiKeyInfo").items()}
    if int(row.get("nonce") or 0) > time.time_ns() + 60 * 10**9:
        raise ComplaintError("this key was used with larger nonces by another program")
    ends = float(row.get("validuntil") or 0)
    for bad, text, mend in (
        (0 < ends < time.time() + 7 * DAY_S, "ends within a week", "make a new one in time"),
        (str(row.get("noncewindow") or 0) != "0", "has a nonce window", "set it to 0 at Kraken"),
        (not any(row.get("ipallowlist") or ()), "works from any address",
         "set its address list to this server's at Kraken"),
    ):  # fmt: skip
        if bad:
            raise ComplaintError(f"the key {text}", mend, "warn")
    return "permissions as needed, none to withdraw, address list set, nonce window 0"


def _account(visit: Visit) -> str:
    visit.fee_rate = visit.account.fee_rate()
    if visit.config.leverage:
        summary = visit.account.summary()
    else:
        summary = MarginSummary(visit.account.balances().get(visit.rules.quote, ZERO), ZERO, ZERO)
    _object(visit, summary)
    return (f"taker fee {plain(visit.fee_rate * 100)} %, equity {summary.equity:.2f}, free margin "
            f"{summary.free_margin:.2f} {visit.rules.quote}")  # fmt: skip


def _position(visit: Visit) -> str:
    if visit.config.mode != "live" or not visit.config.leverage:
        raise SkippedError("only live margin trading holds any at Kraken")
    path, explained = configuration.journal_path(visit.config), ZERO
    if path.exists():
        explained = open_read_only(path).account().held
    held = visit.account.position().volume
    text = f"the exchange holds {plain(held)}, the journal explains {plain(explained)}"
    if held != explained:
        raise ComplaintError(text)
    return text


def _costs(visit: Visit) -> str:
    too_much, lines = costs(visit.config, visit.fee_rate)
    if not lines:
        raise SkippedError("too few candles to show a turn")
    if too_much:
        verdict = "fail" if visit.config.mode == "live" else "warn"
        raise ComplaintError(lines[0], lines[-1], verdict)
    return lines[0]


def _order(visit: Visit) -> str:
    volume, leverage = visit.rules.round_volume(visit.config.size), visit.config.leverage
    visit.account.validate(Order("", Side.BUY, volume, leverage, False))
    return f"Kraken would take a buy of {plain(volume)} (validated, not sent)"


def _unit(visit: Visit) -> str:
    import subprocess
    import tempfile

    from krakenbot.commands.unit import unit

    if shutil.which("systemd-analyze") is None:
        raise SkippedError("no systemd here")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "krakenbot.service"
        path.write_text(unit(visit.config, "/etc/krakenbot/config.toml", False))
        command = ["systemd-analyze", "security", "--offline=true", str(path)]
        done = subprocess.run(command, timeout=30, capture_output=True, text=True, check=False)
    exposure = done.stdout.rpartition("service: ")[2].partition(" ")[0]
    if not exposure:
        raise SkippedError("this systemd cannot judge a unit")
    if float(exposure) > EXPOSURE_MAX:
        raise ComplaintError(f"exposure {exposure}", verdict="warn")
    return f"the unit that `unit` prints has exposure {exposure} of 10"


def _spot(config: Config, client: Client) -> Spot:
    return Spot(client, config.pair, config.interval * 60, asset_class=config.exchange.asset_class,
                trading_agreement=config.exchange.trading_agreement)  # fmt: skip


def _object(visit: Visit, summary: MarginSummary) -> None:
    """Raise what the bot itself would say against an order of `size` with this account."""
    config, rules = visit.config, visit.rules
    around = Surroundings("online", visit.quote, rules, ZERO, summary, 0, visit.fee_rate, 0.0)
    for side in (Side.BUY, Side.SELL) if config.leverage else (Side.BUY,):
        step = Step(Purpose.OPEN, side, rules.round_volume(config.size), False)
        against = objection(step, config.leverage, around, plan_of(config).limits)
        if against is not None:
            raise ComplaintError(f"{side.value}: {against.reason}")


# Name, check, the check that it needs, and how to mend what does not say so itself.
CHECKS = (
    ("python", _python, "", ""),
    ("config", _config, "", "mend the file; config.example.toml explains every key"),
    ("secrets", _secrets, "config", "put both into files of mode 0600 and name the files in "
     "KRAKEN_API_KEY_FILE and KRAKEN_API_SECRET_FILE"),
    ("state", _state, "config", "make room there, and let this user write"),
    ("journal", _journal, "secrets", "look at the exchange, then `krakenbot resume`"),
    ("network", _network, "config", "look at DNS, firewall, CA certificates and this host's clock"),
    ("clock", _clock, "network", "timedatectl set-ntp true"),
    ("pair", _pair, "clock", "look at status.kraken.com and at the name of the pair"),
    ("size", _size, "pair", "change `size` or `leverage`"),
    ("key", _key, "pair", "make a new key at Kraken with the permissions that the README names"),
    ("account", _account, "key", "pay in, or lower `size`"),
    ("position", _position, "key", "close it at Kraken, or start once with --adopt"),
    ("costs", _costs, "pair", "use a longer `interval`"),
    ("order", _order, "key", "read what Kraken says"),
    ("unit", _unit, "config", "print the unit again with this version"),
)  # fmt: skip
