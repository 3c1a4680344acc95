"""The front door: the only place that chooses the parts that a mode is made of."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import NamedTuple

from krakenbot import identity, log, startup
from krakenbot.bot import Bot, Event
from krakenbot.clock import Clock
from krakenbot.config import Config
from krakenbot.credentials import require_credentials
from krakenbot.errors import ConfigError, HeldError, LaterError
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal
from krakenbot.kraken.client import Client
from krakenbot.kraken.counter import RestCounter
from krakenbot.kraken.shape import Methods
from krakenbot.kraken.signing import fingerprint
from krakenbot.kraken.spot import Spot
from krakenbot.kraken.transport import UrllibTransport
from krakenbot.lock import Lock, Nonces
from krakenbot.model import Credentials
from krakenbot.plan import plan_of
from krakenbot.retry import KEY_PAUSES_S, retry
from krakenbot.risk import FEE_RATE_ASSUMED

LOCKS_WAIT_S = 90  # Longer than `flatten` waits for an answer to its question.


class Parts(NamedTuple):
    """Everything a command may want of one bot. The locks are held until `close`."""

    config: Config
    clock: Clock
    exchange: Spot
    journal: Journal
    bot: Bot
    locks: Sequence[Lock]
    path: Path  # The journal's.
    is_new: bool  # Whether the journal was created just now.
    # Run before an order that only closes; before trading, the bot runs its own longer list.
    checks: tuple[Callable[[], str | None], ...]

    def close(self) -> None:
        self.journal.close()
        for lock in self.locks:
            lock.close()


def client_of(
    config: Config,
    clock: Clock,
    credentials: Credentials | None = None,
    nonces: Nonces | None = None,
    *,
    live: bool = False,
) -> Client:
    """Return a client of the configured exchange; with credentials it needs the key's nonces."""
    transport = UrllibTransport(
        config.exchange.timeout, config.exchange.proxy, lambda: clock.is_stopping
    )
    if credentials is None or nonces is None:
        return Client(transport, config.exchange.url, clock)
    counter = config.state_directory / f"key-{fingerprint(credentials.key)}.counter"
    return Client(
        transport,
        config.exchange.url,
        clock,
        credentials=credentials,
        nonces=nonces,
        live=live,
        counter=RestCounter(clock, counter),
    )


def assemble(
    config: Config,
    *,
    live: bool,
    on_event: Callable[[Event], None] = lambda event: None,
    progress: Callable[[], None] = lambda: None,
    accept_costs: bool = False,
    adopts: bool = False,
    makes_journal: bool = True,
    by_bot: bool = False,
) -> Parts:
    """Return the parts of `config.mode`; ConfigError when one of them cannot be made.

    `live` is the option --live, without which no order can be sent. The exchange is asked for its
    ids of pair and account if they are not known yet; LaterError when that fails for too long.
    `progress` is called at least every 0.5 s of waiting. Without `makes_journal`, a missing
    journal is created in memory only. With `by_bot` it waits for commands that hold a lock.
    """
    if not adopts:  # Adopting sends no order.
        require_live(config, live)
    clock = Clock(config.exchange.clock_speed)
    clock.progress = progress
    clock.stop_on_signals()
    credentials, key_name, locks = _take_key(config, clock, by_bot)
    nonces, is_live = Nonces(locks[0]) if locks else None, config.mode == "live"
    client = client_of(config, clock, credentials, nonces, live=is_live and live)
    spot = spot_of(config, client)
    learn = partial(startup.learn, config, spot, key_name if credentials else "")
    pauses_s = KEY_PAUSES_S if any(identity.holding(config)) else ()
    owner, info = retry(learn, clock, config.exchange.patience, key_pauses_s=pauses_s)
    path = identity.place_of(config, owner)
    what = f"the {config.mode} journal of {config.pair}"
    locks.append(_lock(partial(Lock, path.with_suffix(".lock"), what), clock, by_bot))
    is_new = not path.exists()
    journal = open_journal(path if makes_journal or not is_new else None)
    if makes_journal or not is_new:
        identity.claim(config, journal, path, owner)
    if nonces is not None and is_live:
        journal.on_write = nonces.set_mark
    if not is_live:
        spot.client = _paper(config, client, spot, clock, journal)
    parts = (config, locks[-1], owner, clock.monotonic(), nonces if is_live else None)
    checks, closing = startup.checks_of(startup.Start(*parts, info, accept_costs, adopts))
    bot = Bot(plan_of(config), spot, journal, clock, key_name, on_event, checks)
    before = tuple(partial(check, bot) for check in closing)
    return Parts(config, clock, spot, journal, bot, locks, path, is_new, before)


def _take_key(
    config: Config, clock: Clock, by_bot: bool
) -> tuple[Credentials | None, str, list[Lock]]:
    """Return the credentials, the key's name in order ids, and its lock; paper mode has no key."""
    if config.mode == "paper":
        return None, "paper", []
    credentials = require_credentials(config, f'mode = "{config.mode}"')
    name = fingerprint(credentials.key)
    return credentials, name, [_lock(partial(identity.key_lock, config, name), clock, by_bot)]


def _lock(take: Callable[..., Lock], clock: Clock, by_bot: bool) -> Lock:
    """Return the lock; HeldError when another process holds it.

    A bot waits for a command, then raises LaterError: a service that systemd starts again must not
    end for good because somebody runs the doctor.
    """
    for second in range(LOCKS_WAIT_S):
        try:
            return take(by_bot=by_bot)
        except HeldError as error:
            if error.bot or not by_bot:
                raise
            if not second:
                log.warning("waiting for another command to end reason=%s", error)
        clock.wait(1.0)
    raise LaterError(f"another command still holds a lock after {LOCKS_WAIT_S} s")


def require_live(config: Config, live: bool) -> None:
    """Raise ConfigError when real money would be traded without --live on the command line."""
    if config.mode == "live" and not live:
        raise ConfigError(
            'mode = "live" trades real money: add --live to the command line as well '
            "(a service: install again), or set mode to paper. Nothing was sent"
        )


def _paper(config: Config, client: Client, spot: Spot, clock: Clock, journal: Journal) -> Methods:
    from krakenbot.simulated.paper import PaperClient

    return PaperClient(
        client,
        spot,
        clock,
        journal,
        fee_rate=assumed_fee_rate(config),
        balance=config.paper.balance,
        validates=config.mode == "validate",
    )


def spot_of(config: Config, client: Methods) -> Spot:
    """Return the configured pair at Kraken, through this client."""
    exchange = config.exchange
    return Spot(
        client,
        config.pair,
        config.interval * 60,
        asset_class=exchange.asset_class,
        trading_agreement=exchange.trading_agreement,
        fee_rate=None if exchange.fee_percent is None else assumed_fee_rate(config),
    )


def assumed_fee_rate(config: Config) -> Decimal:
    """Return the taker fee (a fraction) to use if the account's own cannot be read."""
    percent = config.exchange.fee_percent
    return FEE_RATE_ASSUMED if percent is None else percent / 100
