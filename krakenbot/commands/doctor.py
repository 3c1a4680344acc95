"""`doctor`: everything that could keep the bot from working, looked at before it matters.

It disturbs nothing: orders are only ever validated, and a key that a running bot holds is left
alone, since its nonces are that bot's.
"""

import argparse
import json
import os
import shutil
import socket
import ssl
import stat
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
from krakenbot.errors import ConfigError, LaterError, RefusedError, StopError, UnansweredError
from krakenbot.journal import Lock, open_read_only
from krakenbot.model import ZERO, MarginSummary, Order, Purpose, Quote, Side, Step
from krakenbot.ohlc import fill
from krakenbot.pairs import PairRules, plain
from krakenbot.parts import check_key, load_credentials, plan_of
from krakenbot.risk import Surroundings, objection
from krakenbot.spot import FEE_RATE_ASSUMED, Spot

HELP = "Check configuration, keys, clock, network, pair, account and costs."
EXAMPLE = "krakenbot doctor --json"
FREE_BYTES_MIN = 50 << 20
LIMIT_S = 10.0
DAY_S = 86400
EXPOSURE_MAX = 1.2
COLORS = {"ok": "32", "warn": "33", "fail": "31"}
RICH = MarginSummary(Decimal(10**15), ZERO, ZERO)
TROUBLES = (ConfigError, LaterError, RefusedError, StopError, UnansweredError, OSError)


class Finding(NamedTuple):
    check: str
    verdict: str
    text: str
    mend: str


class SkippedError(Exception):
    """The check cannot be made, and another line says why."""


class Complaint(Exception):
    """Something to be mended; a warning if the bot can run all the same."""

    def __init__(self, text: str, mend: str = "", *, verdict: str = "fail") -> None:
        super().__init__(text)
        self.mend, self.verdict = mend, verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="a list of objects")


def run(arguments: argparse.Namespace) -> int:
    logs.setup("critical", "text")
    findings = []
    for finding in examine(arguments.config):
        findings.append(finding)
        if not arguments.json:
            print(shown(finding, sys.stdout.isatty() and not os.environ.get("NO_COLOR")), flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings]))
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def examine(file: str | None) -> Iterator[Finding]:
    """Yield one finding for each check, always in the same order."""
    visit = Visit(file)
    for name, check, mend in CHECKS:
        try:
            found = Finding(name, "ok", check(visit), "")
        except SkippedError as reason:
            found = Finding(name, "ok", f"skipped: {reason}", "")
        except Complaint as complaint:
            found = Finding(name, complaint.verdict, str(complaint), complaint.mend or mend)
        except TROUBLES as error:
            found = Finding(name, "fail", str(error) or type(error).__name__, mend)
        yield found._replace(text=logs.clean(found.text), mend=logs.clean(found.mend))


def shown(finding: Finding, colored: bool) -> str:
    """Return a finding in at most 80 columns, what to do about it on a line of its own."""
    start, indent = f"{finding.verdict:<5}{finding.check:<9} ", " " * 15
    lines = textwrap.wrap(finding.text, 80, initial_indent=start, subsequent_indent=indent)
    if finding.mend:
        arrow = f"{indent}-> "
        lines += textwrap.wrap(
            finding.mend, 80, initial_indent=arrow, subsequent_indent=f"{indent}   "
        )
    if colored:
        word = finding.verdict
        lines[0] = f"\x1b[{COLORS[word]}m{word}\x1b[0m{lines[0][len(word) :]}"
    return "\n".join(lines)


class Visit:
    """What one check learns for those after it; reading what is not known skips the check."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.known: Config | None = None
        self.credentials: Credentials | None = None
        self.market: Spot | None = None
        self.account: Spot | None = None
        self.no_account = "the exchange does not answer"
        self.rules: PairRules | None = None
        self.quote: Quote | None = None
        self.fee_rate: Decimal | None = None

    @property
    def config(self) -> Config:
        if self.known is None:
            raise SkippedError("the configuration is not valid")
        return self.known

    def listed(self) -> tuple[Spot, PairRules, Quote]:
        if self.market is None or self.rules is None or self.quote is None:
            raise SkippedError("the pair is not known, see above")
        return self.market, self.rules, self.quote

    def signed(self) -> Spot:
        if self.account is None:
            raise SkippedError(self.no_account)
        return self.account

    def object_to_size(self, summary: MarginSummary) -> None:
        """Raise Complaint for what the bot itself would say against an order of `size`."""
        _, rules, quote = self.listed()
        plan, config = plan_of(self.config), self.config
        around = Surroundings("online", quote, rules, ZERO, summary, 0, self.rate(), 0.0)
        for side in (Side.BUY, Side.SELL) if config.leverage else (Side.BUY,):
            step = Step(Purpose.OPEN, side, rules.round_volume(config.size), False)
            against = objection(step, config.leverage, around, plan.limits)
            if against is not None:
                raise Complaint(f"{side.value}: {against.reason}")

    def rate(self) -> Decimal:
        percent = self.config.exchange.fee_percent
        assumed = FEE_RATE_ASSUMED if percent is None else percent / 100
        return assumed if self.fee_rate is None else self.fee_rate


def _python(visit: Visit) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):
        raise Complaint(f"Python {version} is too old")
    return f"Python {version}, {ssl.OPENSSL_VERSION}"


def _modules(visit: Visit) -> str:
    own = sys.stdlib_module_names | {"krakenbot", "__main__", "__mp_main__"}
    foreign = sorted({name.partition(".")[0] for name in sys.modules} - own)
    if foreign:
        raise Complaint(f"loaded besides: {', '.join(foreign)}", verdict="warn")
    return "only the standard library and krakenbot are loaded"


def _config(visit: Visit) -> str:
    config = visit.known = configuration.load_here(visit.file)
    chosen = [f"{key} ({source})" for key, source in config.sources.items() if source != "default"]
    return (f"{config.mode} {config.pair}, {config.interval} min, size {plain(config.size)}, "
            f"leverage {config.leverage}; set: {', '.join(chosen) or 'nothing, all defaults'}"
            )  # fmt: skip


def _secrets(visit: Visit) -> str:
    found = visit.credentials = load_credentials()
    if found is None:
        if visit.config.mode != "paper":
            raise Complaint(f"no API key, and mode is {visit.config.mode}")
        return "no API key; paper mode needs none"
    if found.source == "KRAKEN_API_KEY":
        raise Complaint("the key stands in the environment, where other programs of this user "
                        "can read it", verdict="warn")  # fmt: skip
    return f"key and secret through {found.source}, modes as they should be"


def _state(visit: Visit) -> str:
    folder = visit.config.state_directory
    there = next(path for path in (folder, *folder.parents) if path.exists())
    status, free = there.stat(), shutil.disk_usage(there).free
    if not os.access(there, os.W_OK | os.X_OK):
        raise Complaint(f"{there} cannot be written", "let this user write there")
    if free < FREE_BYTES_MIN:
        raise Complaint(f"{there} has {free >> 20} MB free", "make room; nothing is sent without")
    if there == folder and stat.S_IMODE(status.st_mode) & 0o077:
        raise Complaint(f"{folder} is open to others", f"chmod 700 {folder}", verdict="warn")
    return f"{folder}{'' if there == folder else ' (will be made)'}, {free >> 20} MB free"


def _lock(visit: Visit) -> str:
    path = configuration.journal_path(visit.config).with_suffix(".lock")
    try:
        if path.exists():
            Lock(path, "the journal").close()
        if visit.credentials is not None and visit.config.state_directory.exists():
            key_lock(visit.config, visit.credentials).close()
    except ConfigError as error:
        visit.no_account = "a bot is running with this key or journal"
        visit.credentials = None
        return f"signed checks are left out: {error}"
    if visit.credentials is None:
        visit.no_account = "no key"
    return "no other krakenbot holds this journal or key"


def _journal(visit: Visit) -> str:
    path = configuration.journal_path(visit.config)
    if not path.exists():
        return "none yet: this bot has not run"
    journal = open_read_only(path)
    halted, unresolved = journal.get("halted"), len(journal.open_intents())
    journal.close()
    if halted:
        raise Complaint(f"halted: {halted}", verdict="warn")
    return f"{path.name} is sound, {unresolved} unresolved orders"


def _dns(visit: Visit) -> str:
    host = urlsplit(visit.config.exchange.proxy or visit.config.exchange.url).hostname
    addresses = {row[4][0] for row in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)}
    return f"{host} has {len(addresses)} addresses"


def _tls(visit: Visit) -> str:
    url = urlsplit(visit.config.exchange.url)
    if url.scheme == "http" or visit.config.exchange.proxy:
        return "plain on this machine" if url.scheme == "http" else "through the proxy, see clock"
    with (
        socket.create_connection((url.hostname or "", url.port or 443), LIMIT_S) as raw,
        tls_context().wrap_socket(raw, server_hostname=url.hostname) as secured,
    ):
        certificate, version = secured.getpeercert() or {}, secured.version()
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return f"{version}, certificate good for {(ends - time.time()) / DAY_S:.0f} days"


def _clock(visit: Visit) -> str:
    exchange = visit.config.exchange
    hasty = visit.config._replace(exchange=exchange._replace(timeout=min(LIMIT_S, exchange.timeout)))
    clock = SystemClock(exchange.clock_speed)
    market = Spot(
        Client(transport(hasty), exchange.url, clock), hasty.pair, hasty.interval * 60,
        asset_class=exchange.asset_class,
    )  # fmt: skip
    sent = clock.wall()
    offset_s = market.server_time() + 0.5 - (sent + clock.wall()) / 2
    visit.market = market
    if abs(offset_s) > 5 and exchange.clock_speed == 1:
        raise Complaint(f"this host is {-offset_s:+.1f} s off the exchange's time",
                        verdict="fail" if abs(offset_s) > 30 else "warn")  # fmt: skip
    return f"{-offset_s:+.1f} s off the exchange's time"


def _pair(visit: Visit) -> str:
    if visit.market is None:
        raise SkippedError("the exchange does not answer")
    state, rules = visit.market.system_status(), visit.market.rules()
    visit.rules, visit.quote = rules, visit.market.quote()
    if (state, rules.status) != ("online", "online"):
        raise Complaint(f"exchange {state}, {rules.altname} {rules.status}", verdict="warn")
    return f"exchange online, {rules.altname} online, bid {plain(visit.quote.bid)} {rules.quote}"


def _size(visit: Visit) -> str:
    rules, config = visit.listed()[1], visit.config
    visit.object_to_size(RICH)
    return f"{plain(config.size)} at leverage {config.leverage}; at least {plain(rules.ordermin)}"


def _key(visit: Visit) -> str:
    visit.listed()
    if visit.credentials is None:
        raise SkippedError(visit.no_account)
    config = visit.config
    client, _ = signed_client(config, visit.credentials, live=False)  # Held until the end.
    spot = Spot(client, config.pair, config.interval * 60, asset_class=config.exchange.asset_class,
                trading_agreement=config.exchange.trading_agreement)  # fmt: skip
    visit.no_account = "the key is refused, see above"
    check_key(spot)
    visit.account = spot
    # Kraken's documentation spells these both with underscores and in camel case.
    row = {name.replace("_", "").lower(): v for name, v in client.private("GetApiKeyInfo").items()}
    ahead_s = int(row.get("nonce") or 0) / 1e9 - time.time()
    ends_s = float(row.get("validuntil") or 0) - time.time()
    for bad, text, mend in (
        (ahead_s > 60, "was used with larger nonces by another program", "make a key of its own"),
        (-time.time() < ends_s < 7 * DAY_S, f"ends in {ends_s / DAY_S:.0f} days", "make a new one"),
        (str(row.get("noncewindow") or "0") != "0", "has a nonce window", "set it to 0 at Kraken"),
        (not any(row.get("ipallowlist") or ()), "works from any address",
         "set the key's address list to this server's at Kraken"),
    ):  # fmt: skip
        if bad:
            raise Complaint(f"the key {text}", mend, verdict="fail" if ahead_s > 60 else "warn")
    return "permissions as needed, none to withdraw, address list set, nonce window 0"


def _account(visit: Visit) -> str:
    spot, rules = visit.signed(), visit.listed()[1]
    visit.fee_rate = spot.fee_rate()
    if visit.config.leverage:
        summary = spot.summary()
    else:
        summary = MarginSummary(spot.balances().get(rules.quote, ZERO), ZERO, ZERO)
    visit.object_to_size(summary)
    return (f"taker fee {plain(visit.fee_rate * 100)} %, equity {summary.equity:.2f}, free margin "
            f"{summary.free_margin:.2f} {rules.quote}")  # fmt: skip


def _position(visit: Visit) -> str:
    config, path = visit.config, configuration.journal_path(visit.config)
    if config.mode != "live" or not config.leverage:
        return "nothing to compare: only live margin trading holds any at Kraken"
    held, explained = visit.signed().position().volume, ZERO
    if path.exists():
        journal = open_read_only(path)
        explained = journal.account().held
        journal.close()
    if held != explained:
        raise Complaint(f"the exchange holds {plain(held)}, the journal explains {plain(explained)}")
    return f"{plain(held)}, as the journal explains"


def _costs(visit: Visit) -> str:
    from krakenbot.simulated.drag import check_fee_drag

    market, rules, _ = visit.listed()
    candles = fill(market.candles(None)[:-1], visit.config.interval * 60)
    drag = check_fee_drag(visit.config, candles, rules, visit.rate())
    if drag is None:
        raise SkippedError("too few candles to show a turn")
    text, *more = drag.lines()
    if drag.too_much:
        raise Complaint(text, more[-1], verdict="fail" if visit.config.mode == "live" else "warn")
    return text


def _order(visit: Visit) -> str:
    spot, rules, config = visit.signed(), visit.listed()[1], visit.config
    spot.validate(Order("", Side.BUY, rules.round_volume(config.size), config.leverage, False))
    return f"Kraken would take a buy of {plain(config.size)} (validated, not sent)"


def _unit(visit: Visit) -> str:
    import subprocess
    import tempfile

    from krakenbot.commands.unit import unit

    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        raise SkippedError("no systemd here")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "krakenbot.service"
        path.write_text(unit(visit.config, "/etc/krakenbot/config.toml", False))
        done = subprocess.run([analyze, "security", "--offline=true", str(path)], timeout=30,
                              capture_output=True, text=True, check=False)  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if "Overall exposure" in line), "")
    if not line:
        raise SkippedError("this systemd cannot judge a unit")
    exposure = line.partition(": ")[2].split()[0]
    if float(exposure) > EXPOSURE_MAX:
        raise Complaint(f"exposure {exposure}", verdict="warn")
    return f"the unit that `unit` prints has exposure {exposure} of 10"


CHECKS = (
    ("python", _python, "install Python 3.11 or newer"),
    ("modules", _modules, "start with python3 -I -S, or the single file that `build` makes"),
    ("config", _config, "mend the file; config.example.toml explains every key"),
    ("secrets", _secrets, "put both into files of mode 0600 named by KRAKEN_API_KEY_FILE and "
     "KRAKEN_API_SECRET_FILE"),
    ("state", _state, ""),
    ("lock", _lock, ""),
    ("journal", _journal, "read why, look at the exchange, then `krakenbot resume`"),
    ("lookup", _dns, "look at the network and /etc/resolv.conf"),
    ("tls", _tls, "look at the firewall, this host's clock and its CA certificates"),
    ("clock", _clock, "timedatectl set-ntp true"),
    ("pair", _pair, "look at status.kraken.com and the name of the pair"),
    ("size", _size, "change `size` or `leverage`"),
    ("key", _key, "make a new key at Kraken with the permissions that the README names"),
    ("account", _account, "pay in, or lower `size`"),
    ("position", _position, "close it at Kraken, or start once with --adopt"),
    ("costs", _costs, "use a longer `interval`"),
    ("order", _order, "read what Kraken says"),
    ("unit", _unit, "print the unit again with this version"),
)  # fmt: skip
