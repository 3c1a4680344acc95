"""`doctor`: checks whatever could keep the bot from working.

It changes nothing: orders are only validated, and a key that a running bot uses is left alone.
"""

import argparse
import json
import os
import shutil
import ssl
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from krakenbot import config_reader
from krakenbot import log as logs
from krakenbot.assemble import assumed_fee_rate, client_of, spot_of
from krakenbot.backtest.costs import fee_guard
from krakenbot.clock import Clock
from krakenbot.commands import journals, preview, shows_color
from krakenbot.commands.call import signed_client
from krakenbot.config import StrategyTable, is_loopback
from krakenbot.credentials import CUSTOM_CODE, load_credentials
from krakenbot.errors import ConfigError, ExchangeError, HeldError
from krakenbot.format import asset, money, percent, price, volume
from krakenbot.journal_file import open_read_only
from krakenbot.lock import Lock
from krakenbot.model import ZERO, Credentials, MarginRates, MarginSummary, Order, Side
from krakenbot.pairs import plain
from krakenbot.plan import plan_of
from krakenbot.presence import read_life
from krakenbot.risk import CLOCK_OFFSET_MAX_S, clock_error
from krakenbot.rulefile import load
from krakenbot.startup import RICH, objections, refuse_permissions

EXAMPLE = "krakenbot doctor --json"
FREE_BYTES_MIN = 50 << 20
LEDGER_PERMISSION = "query-ledger"
UNNEEDED_PERMISSIONS = ("add-funds", "earn-funds", "export-data")
COLORS = {"ok": "32", "warn": "33", "fail": "31", "skip": "2"}
# The verdict (ok, warn, fail or skip), what was found and, unless CHECKS says it, how to repair it.
Answer = tuple[str, str] | tuple[str, str, str]


class Finding(NamedTuple):
    """What one check found. The names are fields of `doctor --json`: do not change them."""

    check: str
    verdict: str
    text: str
    repair: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")


def run(arguments: argparse.Namespace) -> int:
    logs.setup("critical", "text")
    findings = []
    for finding in examine(arguments.config):
        findings.append(finding)
        if not arguments.json:
            print(shown(finding, shows_color(sys.stdout)), flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings]))
    return int(any(finding.verdict == "fail" for finding in findings))


def examine(file: str | None) -> Iterator[Finding]:
    """Yield the finding of each check, always in the same order; `file` is the configuration."""
    visit = Checks(file)
    missing: dict[str, str] = {}
    for name, check, need, usual_repair in CHECKS:
        try:
            lacking = [missing[one] for one in need.split() if one in missing]
            answer = ("skip", lacking[0]) if lacking else check(visit)
        except Exception as error:  # The other checks must run all the same.
            text = logs.joined(str(error)) or type(error).__name__
            is_denied = isinstance(error.__cause__ or error, PermissionError)
            answer = "fail", text, "use sudo" if is_denied else usual_repair
        verdict, text, *repair = answer
        if verdict in ("skip", "fail"):
            missing[name] = text if text.startswith("see ") else f"see {name}"
        repair = [] if verdict in ("ok", "skip") else repair or [usual_repair]
        yield Finding(name, verdict, logs.clean(text), logs.clean("".join(repair)))
    if visit.lock is not None:
        visit.lock.close()


def shown(finding: Finding, colored: bool) -> str:
    """Return a finding as lines of at most 80 columns, with the repair on lines of its own."""
    start, indent = f"{finding.verdict:<5}{finding.check:<9} ", " " * 15
    arrow = f"{indent}-> "
    lines = textwrap.wrap(finding.text, 80, initial_indent=start, subsequent_indent=indent)
    under = f"{indent}   "
    lines += textwrap.wrap(finding.repair, 80, initial_indent=arrow, subsequent_indent=under)
    if colored:
        lines[0] = f"\x1b[{COLORS[finding.verdict]}m{start[:4]}\x1b[0m{lines[0][4:]}"
    return "\n".join(lines)


class Checks:
    """The checks. What one finds out is stored here for those that need it, see CHECKS."""

    def __init__(self, file: str | None) -> None:
        self.file, self.recorded, self.unresolved = file, ZERO, ""
        self.objections: list[str] = []
        self.credentials: Credentials | None = None
        self.lock: Lock | None = None

    def _python(self) -> Answer:
        known = {*sys.stdlib_module_names, "krakenbot", "__main__", "__mp_main__"}
        foreign = []
        for name, module in sorted(sys.modules.items()):
            folder = os.path.dirname(getattr(module, "__file__", None) or "")
            is_beside = folder == os.path.dirname(os.__file__)
            if "." not in name and name not in known and (not is_beside or name in CUSTOM_CODE):
                foreign.append(name)
        if foreign:
            text = f"loaded from outside the standard library: {', '.join(foreign)}"
            return "warn", text, "start with python3 -I -S"
        version = ".".join(map(str, sys.version_info[:3]))
        return "ok", f"Python {version}, {ssl.OPENSSL_VERSION}, nothing foreign loaded"

    def _config(self) -> Answer:
        config = self.config = config_reader.load_here(self.file)
        self.is_rehearsal = is_loopback(config.exchange.url)
        chosen = [f"{key} ({by})" for key, by in config.sources.items() if by != "default"]
        text = f"{config.mode} {config.pair}, {config.interval} min, size {plain(config.size)}, "
        return "ok", f"{text}leverage {config.leverage}; set: {', '.join(chosen) or 'nothing'}"

    def _secrets(self) -> Answer:
        mode = self.config.mode
        sizes = [
            os.path.getsize(file) for file in self.config.keys if file and os.path.exists(file)
        ]
        # `install` makes empty files of keys, which paper mode does not need.
        if mode != "paper" or any(sizes) or not sizes:
            self.credentials = load_credentials(self.config)
        if self.credentials is None and mode == "paper":
            return "skip", "paper mode needs no API key"
        if self.credentials is None:
            return "fail", f"no API key, but mode is {mode}"
        if self.credentials.source == "KRAKEN_API_KEY":
            return "warn", "the key is in the environment, readable by this user's other programs"
        return "ok", f"found through {self.credentials.source}, with safe file modes"

    def _state(self) -> Answer:
        folder = self.config.state_directory
        existing = next(filter(os.path.exists, (folder, *folder.parents)))
        free = shutil.disk_usage(existing).free
        if not os.access(existing, os.W_OK | os.X_OK) or free < FREE_BYTES_MIN:
            return "fail", f"{existing} cannot be written or is full: {free >> 20} MB free"
        if existing == folder and folder.stat().st_mode & 0o077:
            return "warn", f"{folder} is open to other users", f"chmod 700 {folder}"
        owner, files = existing.stat().st_uid, (*folder.glob("*.db"), *folder.glob("*.lock"))
        if others := [file.name for file in files if file.stat().st_uid != owner]:
            text = f"{folder} has files of another user than its own: {', '.join(sorted(others))}"
            return "warn", text, f"chown --reference={folder} {folder}/*"
        new = "" if existing == folder else " (will be created)"
        return "ok", f"{folder}{new}, {free >> 20} MB free"

    def _journal(self) -> Answer:
        path = journals.find(self.config)
        if path is None:
            return "skip", "none yet: this bot has not run"
        with closing(open_read_only(path)) as journal:
            halted, unresolved = journal.get("halted"), len(journal.open_intents())
            self.recorded, speed = journal.account().held, self.config.exchange.clock_speed
            life = read_life(journal, path.with_suffix(".lock"), speed)
            self.unresolved = "" if halted else preview.unresolved(journal)
        if halted:
            return "warn", f"halted: {halted}"
        runs = f"{life.state.value} with pid {life.pid}" if life.pid else life.state.value
        return "ok", f"{path.name} is sound, unresolved orders: {unresolved}; the bot is {runs}"

    def _others(self) -> Answer:
        own = journals.find(self.config) or Path()
        if others := journals.unmanaged(self.config, own):
            return "warn", "; ".join(others)
        return "ok", "no other journal here shows a position or an open order"

    def _network(self) -> Answer:
        config, clock = self.config, Clock(self.config.exchange.clock_speed)
        self.market = spot_of(config, client_of(config, clock))
        sent, began = clock.wall(), time.monotonic()
        exchange_time = self.market.server_time() + 0.5
        self.ahead_s = (sent + clock.wall()) / 2 - exchange_time
        return "ok", f"{config.exchange.url} answers in {time.monotonic() - began:.2f} s"

    def _clock(self) -> Answer:
        if self.is_rehearsal:
            return "skip", "a sandbox has its own clock"
        off_s = abs(self.ahead_s)
        verdict = "ok" if off_s <= 5 else "warn" if off_s <= CLOCK_OFFSET_MAX_S else "fail"
        return verdict, f"this host's clock is {clock_error(-self.ahead_s)}"

    def _pair(self) -> Answer:
        status = self.market.market_status()
        rules, self.quote = self.market.rules(), self.market.quote()
        self.rules, self.fee_rate = rules, assumed_fee_rate(self.config)
        bid = f"{price(self.quote.bid, rules)} {asset(rules.quote)}"
        text = f"exchange {status.status}, {rules.altname} {rules.status}, bid {bid}"
        if status.notices:
            text += f"; Kraken announces: {'; '.join(status.notices)}"
            return "warn", text, "see status.kraken.com"
        return "ok" if status.status == rules.status == "online" else "warn", text

    def _size(self) -> Answer:
        size, least = (volume(v, self.rules.base) for v in (self.config.size, self.rules.ordermin))
        worth = money(self.config.size * self.quote.mid, self.rules.quote)
        return self._unless_refused(RICH, f"{size}, worth {worth}; the minimum is {least}")

    def _key(self) -> Answer:
        if self.credentials is None:
            return "skip", "no key"
        try:
            client, self.lock = signed_client(self.config, self.credentials, changes=False)
        except ConfigError as error:
            if isinstance(error, HeldError) and error.bot:
                return "skip", f"the running bot ({error.bot}) uses this key"
            return "skip", f"the key is left alone: {error}"
        self.account = spot_of(self.config, client)
        info = self.account.key_info()
        refuse_permissions(info)
        # Kraken's documentation spells these names both with underscores and in camel case.
        answer = client.private("GetApiKeyInfo")
        row = {name.replace("_", "").lower(): value for name, value in answer.items()}
        ends = float(row.get("validuntil") or 0)
        if (info.nonce or 0) > time.time_ns() + 60 * 10**9:
            return "fail", "another program has used this key with larger nonces"
        if 0 < ends < time.time() + 7 * 86400:
            return "warn", "the key expires within a week", "make a new one in time"
        if str(row.get("noncewindow") or 0) != "0":
            return "warn", "the key has a nonce window", "set it to 0 at Kraken"
        unneeded = ", ".join(code for code in info.permissions if code in UNNEEDED_PERMISSIONS)
        if unneeded:
            may = f"the key has permissions that the bot does not need: {unneeded}"
            return "warn", may, "take them off the key at Kraken"
        if not any(row.get("ipallowlist") or ()) and not self.is_rehearsal:
            return "warn", "the key works from any address", "limit it to this server's address"
        if LEDGER_PERMISSION not in info.permissions:
            lacks = f"the key lacks {LEDGER_PERMISSION}: fees are estimates, rollovers not booked"
            return "warn", lacks, "allow `Query ledger entries`"
        return "ok", "has the permissions needed, none to withdraw; nonce window 0"

    def _account(self) -> Answer:
        self.fee_rate, quote = self.account.fee_rate(), self.rules.quote
        summary = self.account.summary(self.config.leverage > 0)
        equity, free = money(summary.equity, quote), money(summary.free_margin, quote)
        text = f"taker fee {percent(self.fee_rate * 100)}, equity {equity}, free margin {free}"
        return self._unless_refused(summary, text)

    def _position(self) -> Answer:
        if self.config.mode != "live" or not self.config.leverage:
            return "skip", "only live margin trading has a position"
        held = self.account.position().volume
        text = preview.compared(held, self.recorded, self.rules.base)
        if held != self.recorded and self.unresolved:
            return "warn", f"{text}; {self.unresolved}", "start the bot: it looks the order up"
        return "ok" if held == self.recorded else "fail", text

    def _strategy(self) -> Answer:
        plan_of(self.config)
        file = self.config.strategy.file
        return "ok", f"{file}: SHA-256 {load(file).sha256}" if file else self.config.strategy.name

    def _costs(self) -> Answer:
        candles, rates = self.market.candles(None)[:-1], MarginRates()
        with suppress(ExchangeError):  # Then the bot assumes them, too.
            rates = self.market.margin_rates()
        costs = fee_guard(self.config, candles, self.rules, self.fee_rate, rates)
        if costs.is_too_much:
            verdict = "fail" if self.config.mode == "live" else "warn"
            return verdict, costs.lines[0], costs.lines[-1]
        return "ok", costs.lines[0]

    def _order(self) -> Answer:
        bought, leverage = self.rules.round_volume(self.config.size), self.config.leverage
        self.account.validate(Order("", Side.BUY, bought, leverage, False))
        return "ok", f"Kraken would accept a buy of {volume(bought, self.rules.base)} (validated)"

    def _unless_refused(self, summary: MarginSummary, text: str) -> Answer:
        """Return ok and the text, or fail and a new reason why the bot would not order `size`."""
        # The strategy does not matter here, and a rule file may be broken.
        config = self.config._replace(strategy=StrategyTable())
        found = objections(config, self.rules, self.quote, summary, self.fee_rate)
        against = [f"{side.value}: {why}" for side, why in found.items() if why]
        against = [one for one in against if one not in self.objections]
        self.objections += against
        return ("fail", against[0]) if against else ("ok", text)


# A name, the check, the checks whose results it needs, and the repair unless the check names one.
CHECKS = (
    ("python", Checks._python, "", ""),
    ("config", Checks._config, "", "repair the file; see `krakenbot config --example`"),
    ("secrets", Checks._secrets, "config", "put both into files of mode 0600, named in [keys]"),
    ("state", Checks._state, "config", "free space there, make it writable, or use sudo"),
    ("strategy", Checks._strategy, "config", "read `krakenbot help strategies`"),
    ("journal", Checks._journal, "config", "check the exchange, then `krakenbot resume`"),
    ("others", Checks._others, "config", "close that position before you go on"),
    ("network", Checks._network, "config", "check DNS, firewall, CA certificates and the clock"),
    ("clock", Checks._clock, "network", "timedatectl set-ntp true"),
    ("pair", Checks._pair, "network", "check status.kraken.com and the name of the pair"),
    ("size", Checks._size, "pair", "change `size` or `leverage`"),
    ("key", Checks._key, "pair", "make a new key with the permissions that the README names"),
    ("account", Checks._account, "key", "deposit money, or lower `size`"),
    ("position", Checks._position, "key", "close it at Kraken, or `krakenbot adopt`"),
    ("costs", Checks._costs, "pair strategy", "use a longer `interval`"),
    ("order", Checks._order, "key", "change what Kraken's answer names"),
)
