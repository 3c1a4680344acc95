"""The front door: which parts a mode is made of. Chosen here once, nowhere further in."""

import gc
import json
import os
import signal
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from krakenbot import config as configuration
from krakenbot import log, rulefile
from krakenbot.bot import Bot, Event
from krakenbot.candles import fill
from krakenbot.clock import Clock, SystemClock
from krakenbot.config import Config
from krakenbot.credentials import Credentials, load_credentials
from krakenbot.decision import plan_of
from krakenbot.errors import ConfigError, LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal
from krakenbot.kraken.client import Client
from krakenbot.kraken.counter import RestCounter
from krakenbot.kraken.signing import fingerprint
from krakenbot.kraken.spot import FORBIDDEN_PERMISSIONS, NEEDED_PERMISSIONS, Methods, Spot
from krakenbot.kraken.transport import UrllibTransport
from krakenbot.lock import Lock, Nonces
from krakenbot.model import ZERO
from krakenbot.orders import VISIBLE_S
from krakenbot.pairs import plain
from krakenbot.risk import FEE_RATE_ASSUMED

REPLAY_MAX_S = 15
FILES_MAX = 1024


class Parts(NamedTuple):
    """Everything a command may want of one bot. Both locks are held until the process ends."""

    config: Config
    clock: SystemClock
    client: Client
    spot: Spot
    exchange: Exchange
    journal: Journal
    bot: Bot
    locks: tuple[Lock, ...]


def load_config(path: str | None) -> Config:
    """Return the configuration and set up logging as it says."""
    config = configuration.load_here(path)
    log.setup(config.log.level, config.log.format)
    return config


def client_of(
    config: Config,
    clock: SystemClock,
    credentials: Credentials | None = None,
    lock: Lock | None = None,
    *,
    live: bool = False,
) -> Client:
    """Return a client of the configured exchange; with credentials it needs the key's lock."""
    options: dict[str, Any] = {}
    if credentials is not None and lock is not None:
        counter = config.state_directory / f"key-{fingerprint(credentials.key)}.counter"
        options = {
            "key": credentials.key,
            "secret": credentials.secret,
            "next_nonce": Nonces(lock).next,
            "counter": RestCounter(clock, counter),
            "live": live,
        }
    transport = UrllibTransport(
        config.exchange.timeout, config.exchange.proxy, lambda: clock.stop_requested
    )
    return Client(transport, config.exchange.url, clock, **options)


def assemble(
    config: Config, *, live: bool, on_event: Callable[[Event], None] = lambda event: None
) -> Parts:
    """Return the parts of `config.mode`; ConfigError when one of them cannot be had.

    `live` is the word from the command line without which no order can leave.
    """
    if config.mode == "live" and not live:
        raise ConfigError(
            'mode = "live" trades real money: add --live to the command line as well, '
            "or set mode to paper. Nothing was sent"
        )
    is_live = config.mode == "live" and live
    credentials = None if config.mode == "paper" else load_credentials(config)
    if credentials is None and config.mode != "paper":
        raise ConfigError(
            f'mode = "{config.mode}" needs an API key: set KRAKEN_API_KEY_FILE and '
            "KRAKEN_API_SECRET_FILE, or KRAKEN_API_KEY and KRAKEN_API_SECRET"
        )
    path = configuration.journal_path(config)
    locks = [Lock(path.with_suffix(".lock"), f"the {config.mode} journal of {config.pair}")]
    if credentials is None:
        owner = "paper"
    else:
        owner = fingerprint(credentials.key)
        locks.append(Lock(config.state_directory / f"key-{owner}.lock", "this API key"))
    journal = open_journal(path)
    clock = SystemClock(config.exchange.clock_speed)
    client = client_of(config, clock, credentials, locks[-1], live=is_live)
    client.on_read = clock.read
    spot = spot_of(config, client)
    exchange = spot if is_live else _paper(config, client, spot, clock, journal)
    checks: tuple[Callable[[], None], ...] = (
        partial(check_key, spot),
        partial(outwait_lost_orders, journal, clock, bool(locks[0].read())),
        partial(check_untracked_balance, config, spot, journal, locks[0]),
        partial(refuse_costs, config, spot, journal),
    )
    # Nothing made so far will ever be garbage: a later collection need not walk over it.
    gc.collect()
    gc.freeze()
    checks = (partial(try_strategy, config, exchange, journal), *(checks if is_live else ()))
    bot = Bot(plan_of(config), exchange, journal, clock, owner, on_event, checks)
    return Parts(config, clock, client, spot, exchange, journal, bot, tuple(locks))


def _paper(config: Config, client: Client, spot: Spot, clock: Clock, journal: Journal) -> Exchange:
    from krakenbot.simulated.paper import PaperClient

    account = PaperClient(
        client,
        spot,
        clock,
        JournalStore(journal),
        fee_rate=assumed_fee_rate(config),
        balance=config.paper.balance,
        validates=config.mode == "validate",
    )
    return spot_of(config, account)


def spot_of(config: Config, client: Methods) -> Spot:
    """Return the configured pair at Kraken, through this client."""
    exchange = config.exchange
    percent = exchange.fee_percent
    return Spot(
        client,
        config.pair,
        config.interval * 60,
        asset_class=exchange.asset_class,
        trading_agreement=exchange.trading_agreement,
        fee_rate=None if percent is None else percent / 100,
    )


def assumed_fee_rate(config: Config) -> Decimal:
    """Return the taker fee, a fraction, where the account's own cannot be asked."""
    percent = config.exchange.fee_percent
    return FEE_RATE_ASSUMED if percent is None else percent / 100


class JournalStore:
    """Where paper mode keeps its account: in the journal, so that a kill loses nothing."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def load(self) -> str | None:
        return self._journal.get("paper") or None

    def save(self, state: str) -> None:
        self._journal.put(paper=state)


def try_strategy(config: Config, exchange: Exchange, journal: Journal) -> None:
    """Say which strategy runs, in the journal too; RuleError when a rule file fails its trial."""
    chosen, name = config.strategy, config.strategy.title
    if chosen.file is not None:
        rule = rulefile.load(chosen.file)
        finished = fill(exchange.candles(None)[:-1], config.interval * 60)
        if len(finished) < rule.candles:
            log.warning("strategy untried: it needs %s candles", rule.candles)
        rule.try_on(finished, chosen.parameters)
        name += f" {rule.sha256}"
    log.info("strategy %s", name)
    journal.put(strategy=name)


def check_key(spot: Spot) -> None:
    """Raise StopError(77) when the key may do too much or too little."""
    try:
        permissions = spot.key_info().permissions
    except RefusedError as error:
        log.warning("key permissions cannot be read reason=%s", error)
        return
    too_much = [code for code in FORBIDDEN_PERMISSIONS if code in permissions]
    if too_much:
        raise StopError(
            f"the API key may withdraw ({', '.join(too_much)}): a bot's key must not. Make a new "
            "key without withdrawal permissions",
            77,
        )
    missing = [code for code in NEEDED_PERMISSIONS if code not in permissions]
    if missing:
        raise StopError(f"the API key lacks permissions: {', '.join(missing)}", 77)


def outwait_lost_orders(journal: Journal, clock: Clock, was_live: bool) -> None:
    """Let orders of a lost journal become visible before the first decision of a new one."""
    if journal.get("created"):
        return
    if was_live:
        log.warning("the journal is new, the bot is not: waiting for earlier orders to be visible")
        clock.wait(VISIBLE_S)
    journal.put(created=int(clock.now()))


def check_untracked_balance(config: Config, spot: Spot, journal: Journal, lock: Lock) -> None:
    """Stop when the journal of a bot without margin is lost, and with it which coins are its own.

    What is written to the lock file stays when the journal is lost.
    """
    if lock.read() and journal.get("created") and not journal.get("minded") and not config.leverage:
        rules = spot.rules()
        owned = spot.balances().get(rules.base, ZERO)
        if owned >= rules.ordermin:
            journal.put(minded=1)
            raise journal.halt(
                f"the account owns {plain(owned)} {rules.base}, the journal is new and explains 0, "
                "but the bot has traded here before. `run --adopt` takes up to `size` as its own, "
                "`resume` none"
            )
    journal.put(minded=1)
    lock.write(b"live\n")


def refuse_costs(config: Config, spot: Spot, journal: Journal) -> None:
    """Say what the configuration costs a day; ConfigError when that is above the limit.

    With a position open, stopping would be worse than costs: then they are only said.
    """
    holds = journal.account().held != 0
    try:
        too_much, lines = costs(config, fee_rate_of(spot))
    except LaterError as error:
        if not holds:
            raise
        too_much, lines = False, [str(error)]
    if too_much and not holds:
        raise ConfigError("\n".join(["not started: it costs too much. Nothing was sent", *lines]))
    for line in lines:
        log.info("costs: %s", line)


def fee_rate_of(spot: Spot) -> Decimal:
    """Return the account's taker fee, or the entry tier's where it cannot be asked."""
    try:
        return spot.fee_rate()
    except (LaterError, UnansweredError, RefusedError, StopError):
        return FEE_RATE_ASSUMED


def costs(config: Config, fee_rate: Decimal) -> tuple[bool, list[str]]:
    """Return whether costs a day are above the limit, and what to say about them.

    Replaying is done in a child process: the bot itself stays as small as it was. Raises
    LaterError when the exchange does not give the candles.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(REPLAY_MAX_S)
            # The locks must not outlive the bot in its child.
            os.closerange(3, writer)
            os.closerange(writer + 1, FILES_MAX)
            os.write(writer, json.dumps(_replay(config, fee_rate)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise LaterError("the newest candles for counting costs cannot be had")
    too_much, lines = json.loads(answer)
    return bool(too_much), [str(line) for line in lines]


def _replay(config: Config, fee_rate: Decimal) -> tuple[bool, list[str]]:
    from krakenbot.backtest.costs import fee_guard

    spot = spot_of(config, client_of(config, SystemClock()))
    rules, candles = spot.rules(), spot.candles(None)[:-1]
    guard = fee_guard(config, candles, rules, fee_rate, spot.margin_rates())
    too_much = guard.percent_per_day > config.risk.max_fee_percent_per_day
    return too_much or guard.refused_reason is not None, guard.lines
