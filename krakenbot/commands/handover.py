"""`flatten`, `adopt`, `resume`: what a person does about a position or a halt."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

from krakenbot import config as configuration
from krakenbot import handover, identity
from krakenbot.assemble import (
    Parts,
    assemble,
    assumed_fee_rate,
    client_of,
    load_config,
    require_live,
    spot_of,
)
from krakenbot.clock import SystemClock
from krakenbot.config import Config, StrategyTable
from krakenbot.errors import ConfigError, ExchangeError, LaterError, StopError
from krakenbot.format import asset, money, percent, price, volume
from krakenbot.handover import REQUEST_S, FlattenRequest
from krakenbot.journal_file import open_journal, open_read_only
from krakenbot.lock import Lock, is_locked
from krakenbot.log import clean
from krakenbot.model import ZERO, Side
from krakenbot.presence import State, read_life
from krakenbot.retry import LOCKOUT_S

EXAMPLE = "krakenbot flatten --live; krakenbot adopt; krakenbot resume"
BY_HAND = "flattened by hand"
POLL_S, PROGRESS_S = 0.2, 10.0
GRACE_S = LOCKOUT_S + 600.0  # A bot in a lockout first waits for its end.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command = parser.get_default("command")
    if command != "resume":
        asks = "do it, not only show it" if command == "adopt" else "do it without asking"
        parser.add_argument("--yes", action="store_true", help=asks)
    if command == "flatten":
        parser.add_argument("--live", action="store_true", help='real orders; needs mode = "live"')
        everything = "close the pair's whole margin position, whoever opened it"
        parser.add_argument("--all", action="store_true", help=everything)


def run(arguments: argparse.Namespace) -> int:
    if arguments.command == "resume":
        return _resume(configuration.load_here(arguments.config))
    config = load_config(arguments.config)
    if arguments.command == "adopt":
        return adopt(config, yes=arguments.yes)
    # Closing needs no strategy, so a broken rule file must not prevent it.
    return _flatten(config._replace(strategy=StrategyTable()), arguments)


def _resume(config: Config) -> int:
    path = identity.journal_path(config)
    lock = Lock(path.with_suffix(".lock"), f"the {config.mode} journal of {config.pair}")
    with closing(lock), closing(open_journal(path)) as journal:
        reason, held = journal.get("halted"), journal.account().held
        print(f"was halted: {clean(reason)}" if reason else "was not halted")
        if not reason and (request := journal.get("flatten")):
            print(f"the request to flatten is dropped: {clean(request)}")
        if journal.get("exchange_position"):
            shown = volume(Decimal(journal.get("exchange_position")), journal.get("base"))
            print(f"the exchange then held {shown}, the journal records {volume(held)}")
        journal.resume()
    live = " --live" if config.mode == "live" else ""
    print(f"cleared; `krakenbot run{live}` trades again, and max_loss counts from zero")
    return 0


def adopt(config: Config, *, yes: bool) -> int:
    """Show what adopting does and, with `yes`, do it. Return the exit code, 2 without `yes`."""
    with closing(assemble(config, live=False, adopts=True, makes_journal=yes)) as parts:
        bot, ask = parts.bot, partial(parts.bot.retry, patience_s=config.exchange.patience)
        for action in (bot.market.learn, *(parts.checks if yes else ())):
            ask(action)
        print("\n".join(ask(partial(handover.adoption, bot))))
        shown = bot.journal.account().held
        if not yes:
            print("Nothing was changed: add --yes to do this")
            return 2
        ask(partial(handover.adopt, bot, shown))
        print("adopted")
    return 0


def _flatten(config: Config, arguments: argparse.Namespace) -> int:
    require_live(config, arguments.live)
    path = identity.find(config)
    if path is not None and _is_running(config, path):
        code = _ask_the_bot(config, path, arguments)
        if code or not arguments.all:
            return code
    takes_all = arguments.all and config.leverage > 0
    options = {"live": arguments.live, "adopts": takes_all, "makes_journal": arguments.all}
    with closing(assemble(config, **options)) as parts:
        bot, ask = parts.bot, partial(parts.bot.retry, patience_s=config.exchange.patience)
        ask(bot.market.learn)
        if parts.is_new and not arguments.all:
            return _tell_without_journal(parts)
        for check in (*parts.checks, *(() if takes_all else (bot.orders.reconcile,))):
            ask(check)
        if reason := parts.journal.get("halted"):
            print(f"was halted: {clean(reason)}")
        if arguments.all and not takes_all:
            print("with leverage = 0, --all closes no more than what the bot itself bought")
        held = ask(partial(handover.held_of, bot)).volume
        explained, base = parts.journal.account().held, bot.market.rules.base
        if takes_all and explained and parts.journal.get("on_margin") == "0":
            raise StopError(
                f"nothing was closed: {volume(explained, base)} was bought without margin, and "
                f"leverage is now {config.leverage}: flatten with leverage = 0 first"
            )
        if takes_all and held != explained:
            text = f"the exchange holds {volume(held, base)}, the journal records "
            print(f"{text}{volume(explained, base)}: all of it is closed")
            explained = held
        if explained:
            side = Side.SELL if explained > 0 else Side.BUY
            print(f"flatten: {ask(partial(handover.describe_trade, bot, side, abs(explained)))}")
        if not _agreed(arguments, parts.clock.read):
            return 2
        if takes_all:
            ask(partial(handover.adopt, bot, explained))
        handover.flatten(bot, BY_HAND, config.exchange.patience)
        print(_what_is_left(parts))
    return 0


def _is_running(config: Config, path: Path) -> bool:
    with closing(open_read_only(path)) as journal:
        life = read_life(journal, path.with_suffix(".lock"), config.exchange.clock_speed)
    return life.state is not State.STOPPED


def _agreed(
    arguments: argparse.Namespace, on_read: Callable[[bool], None] = lambda is_reading: None
) -> bool:
    """Ask for confirmation if a terminal can answer. Else the command is the confirmation.

    `on_read` is called when the question begins and ends, so that a signal can interrupt it.
    """
    if arguments.yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stdout.flush()  # What is asked about comes first, also through a pipe.
    print("Type yes to do this: ", end="", file=sys.stderr, flush=True)
    answer = ""
    on_read(True)
    try:
        answer = sys.stdin.readline()
    except UnicodeDecodeError:
        pass  # What cannot be read is not a yes.
    finally:
        on_read(False)
    if answer.strip().lower() == "yes":
        return True
    if not answer:  # Ctrl-D leaves the cursor in the line.
        print(file=sys.stderr)
    print("Not confirmed: nothing is sent")
    return False


def _what_is_left(parts: Parts) -> str:
    """Return what the exchange shows after flattening.

    The position is closed by now, so a read that fails here must not look like a failure to close.
    """
    config, base, besides = parts.config, parts.bot.market.rules.base, ""
    tail = "The bot is halted: `krakenbot resume` lets it trade again"
    if config.leverage:
        return f"the exchange shows no open position on {config.pair} any more. {tail}"
    with suppress(ExchangeError, StopError):
        margin, owned = parts.exchange.position().volume, parts.exchange.balances().get(base, ZERO)
        besides = f"; the account owns {volume(owned, base)}"
        if margin:
            besides += f", and a margin position of {volume(margin, base)}, not the bot's, is open"
    return f"the bot holds no {asset(base)} of its own on {config.pair} any more{besides}. {tail}"


def _tell_without_journal(parts: Parts) -> int:
    """Show what the exchange holds when there is no journal. StopError if it holds anything."""
    config, rules = parts.config, parts.bot.market.rules
    left = "".join(f"\n{clean(text)}" for text in identity.unmanaged(config, parts.path))
    if config.mode != "live":
        missing = f"there is no {config.mode} journal of {config.pair} here"
        raise ConfigError(f"{missing}: nothing to do{left}")
    margin = parts.exchange.position().volume
    owned = parts.exchange.balances().get(rules.base, ZERO)
    found = f"the exchange shows a position of {volume(margin, rules.base)} on {config.pair} and "
    found += f"{volume(owned, rules.base)} owned"
    if margin or (not config.leverage and owned >= rules.ordermin):
        raise StopError(
            f"nothing was closed: {found}, and no journal in {config.state_directory} says what of "
            "that a bot opened. Use that bot's configuration, or `flatten --all` for the whole "
            f"margin position{left}"
        )
    print(f"{found}: there is nothing to close{left}")
    return 0


def _ask_the_bot(config: Config, path: Path, arguments: argparse.Namespace) -> int:
    """Ask the running bot to flatten, and show its progress. Return the exit code."""
    with closing(open_read_only(path)) as journal:
        held, base, quote = journal.account().held, journal.get("base"), journal.get("quote")
        paid = [intent.fee / intent.cost for intent in journal.intents() if intent.fee]
    print(f"a running bot holds {volume(held, base)} and will be asked to close it")
    try:
        spot = spot_of(config, client_of(config, SystemClock(config.exchange.clock_speed)))
        shown = spot.quote()
        at = shown.bid if held > 0 else shown.ask
        worth, fee_rate = abs(held) * at, paid[-1] if paid else assumed_fee_rate(config)
        about = f"  at market, about {price(at)} = {money(worth, quote)}, fee about "
        print(f"{about}{money(worth * fee_rate, quote)} at {percent(100 * fee_rate)}")
    except ExchangeError as error:
        print(f"  the current price is not known: {clean(str(error))}")
    if not _agreed(arguments):
        return 2
    _wait_for_the_bot(path, config.exchange.patience + GRACE_S)
    with closing(open_read_only(path)) as journal:
        halted, left = journal.get("halted"), journal.account().held
    if halted == BY_HAND and not left:
        print("it is closed, and the bot is halted: `krakenbot resume` lets it trade again")
        return 0
    ended = f"the bot ended with: {halted or 'no halt'}; its journal shows {volume(left)} held"
    if not arguments.all:
        raise StopError(f"{ended}. Run `krakenbot flatten` again")
    print(clean(ended))
    return 0


def _wait_for_the_bot(path: Path, patience_s: float) -> None:
    """Ask the bot to flatten and wait until it has ended; withdraw the request on any error."""
    request, lock = FlattenRequest(path), path.with_suffix(".lock")
    request.make()
    began = time.monotonic()
    try:
        while request.is_open():
            if not is_locked(lock) and request.withdraw():  # It ended before it took the request.
                return
            if time.monotonic() - began > REQUEST_S and request.withdraw():
                raise LaterError(f"the bot did not answer within {REQUEST_S:.0f} s; {_waits(path)}")
            time.sleep(POLL_S)
    except BaseException:
        request.withdraw()
        raise
    print("the bot has accepted the request", flush=True)
    printed = time.monotonic()
    ends = printed + patience_s
    while is_locked(lock):
        if time.monotonic() > ends:
            raise LaterError(f"the bot is not done yet; {_waits(path)}. See `krakenbot status`")
        if time.monotonic() - printed > PROGRESS_S:
            printed = time.monotonic()
            print(f"  waiting: {_waits(path)}", flush=True)
        time.sleep(POLL_S)


def _waits(path: Path) -> str:
    with closing(open_read_only(path)) as journal:
        ids = ", ".join(intent.id for intent in journal.open_intents())
    return f"it is reconciling {ids} first" if ids else "it has no open order"
