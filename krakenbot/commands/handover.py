"""`flatten`, `adopt` and `resume`: a person takes over a position or ends a halt."""

import argparse
import select
import sys
import time
from contextlib import ExitStack, closing, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

from krakenbot import handover
from krakenbot.assemble import Parts, assemble, assumed_fee_rate, client_of, require_live, spot_of
from krakenbot.clock import Clock
from krakenbot.commands import journals, preview
from krakenbot.commands.preview import compared
from krakenbot.config import Config, StrategyTable
from krakenbot.config_reader import load_config
from krakenbot.errors import ExchangeError, HeldError, LaterError, StopError
from krakenbot.format import asset, volume
from krakenbot.journal_file import open_journal, open_read_only
from krakenbot.lock import Lock
from krakenbot.log import clean
from krakenbot.model import ZERO
from krakenbot.presence import State, is_locked, read_life
from krakenbot.retry import LOCKOUT_S

EXAMPLE = "krakenbot flatten --live; krakenbot adopt; krakenbot resume"
BY_HAND = "flattened by hand"
# While a bot flattens, the journal is read every 2 s and a line printed every 10 s.
POLL_S, LOOK_TURNS, PROGRESS_TURNS = 0.2, 10, 50
ANSWER_S = 60.0  # The bot must begin to flatten within it, and a person must say yes.
GRACE_S = LOCKOUT_S + 600.0  # On top of `exchange.patience`: a lockout, and then the closing.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command = parser.get_default("command")
    if command != "resume":
        asks = "do it, not only show it" if command == "adopt" else "do it without asking"
        parser.add_argument("--yes", action="store_true", help=asks)
    if command == "flatten":
        parser.add_argument("--live", action="store_true", help='real orders; needs mode = "live"')
        everything = "close the whole margin position of the pair, whoever opened it"
        parser.add_argument("--all", action="store_true", help=everything)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    if arguments.command == "resume":
        return _resume(config)
    if arguments.command == "adopt":
        return adopt(config, yes=arguments.yes)
    # Closing needs no strategy, so a broken rule file must not prevent it.
    return _flatten(config._replace(strategy=StrategyTable()), arguments)


def _resume(config: Config) -> int:
    path = journals.journal_path(config)
    lock = Lock(path.with_suffix(".lock"), f"the {config.mode} journal of {config.pair}")
    with closing(lock), closing(open_journal(path)) as journal:
        reason = journal.get("halted")
        print(f"was halted: {clean(reason)}" if reason else "was not halted: nothing to clear")
        if not reason and (request := journal.get("flatten")):
            print(f"the request to flatten is withdrawn: {clean(request)}")
        if holds := journal.get("exchange_position"):
            text = compared(Decimal(holds), journal.account().held, journal.get("base"))
            print(f"at that time: {text}")
        journal.resume()
    print("max_loss counts from zero")
    if reason:
        live = " --live" if config.mode == "live" else ""
        print(f"cleared: start the bot again: `krakenbot run{live}` or `systemctl start krakenbot`")
    return 0


def adopt(config: Config, *, yes: bool) -> int:
    """Show what adopting changes and, with `yes`, adopt. Return the exit code: 2 without `yes`."""
    with closing(assemble(config, live=False, adopts=True, makes_journal=yes)) as parts:
        bot, ask = parts.bot, partial(parts.bot.retry, patience_s=config.exchange.patience)
        for action in (bot.market.learn, *(parts.checks if yes else ())):
            ask(action)
        held, lines = ask(partial(preview.adoption, bot))
        print("\n".join(lines))
        if not yes:
            print("Nothing was changed: add --yes to do this")
            return 2
        ask(partial(handover.adopt, bot, bot.journal.account().held, held))
        print("done; max_loss counts from zero")
    return 0


def _flatten(config: Config, arguments: argparse.Namespace) -> int:
    require_live(config, arguments.live)
    # Without a journal only a live account can hold something.
    path = journals.find(config) if config.mode == "live" else journals.journal_path(config)
    if path is not None and _is_running(config, path):
        code = _ask_the_bot(config, path, arguments)
        if code is not None:
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
        held, base = ask(partial(handover.held_of, bot)).volume, bot.market.rules.base
        recorded = parts.journal.account().held
        if takes_all and recorded and parts.journal.get("on_margin") == "0":
            raise StopError(
                f"nothing was closed: {volume(recorded, base)} was bought without margin, and "
                f"leverage is now {config.leverage}: flatten with leverage = 0 first"
            )
        if takes_all and held != recorded:
            print(f"{compared(held, recorded, base)}: all of it is closed")
        if closes := held if takes_all else recorded:
            print(f"flatten: {ask(partial(preview.next_trade, bot, -closes))}")
        if not _agreed(arguments, parts.clock):
            return 2
        if takes_all:
            ask(partial(handover.adopt, bot, recorded, held))
        handover.flatten(bot, BY_HAND, config.exchange.patience)
        left = f"the exchange shows no open position on {config.pair} any more"
        if not config.leverage:
            left = f"the bot holds no {asset(base)} of its own on {config.pair} any more"
            # It is closed by now, so a read that fails must not look like a failure to close.
            with suppress(ExchangeError, StopError):
                left += f"; {_holdings(parts)[2]}"
        print(f"{left}. The bot is halted: `krakenbot resume` lets it trade again")
    return 0


def _is_running(config: Config, path: Path) -> bool:
    with closing(open_read_only(path)) as journal:
        life = read_life(journal, path.with_suffix(".lock"), config.exchange.clock_speed)
    return life.state is not State.STOPPED


def _agreed(arguments: argparse.Namespace, clock: Clock) -> bool:
    """Return whether the person at the terminal confirms; True with --yes or without a terminal."""
    if arguments.yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stdout.flush()  # So that the question comes after what it is about, also through a pipe.
    print("Type yes to do this: ", end="", file=sys.stderr, flush=True)
    answer = ""
    clock.read(True)  # So that a signal can interrupt the wait for an answer.
    try:
        with suppress(UnicodeDecodeError):  # An answer that is no text is not a yes.
            if select.select([sys.stdin], [], [], ANSWER_S)[0]:
                answer = sys.stdin.readline()
    finally:
        clock.read(False)
    if answer.strip().lower() == "yes":
        return True
    # After no answer or Ctrl-D the cursor is still in the line of the question.
    print(end="" if answer else "\n", file=sys.stderr)
    print("Not confirmed: nothing is sent")
    return False


def _holdings(parts: Parts) -> tuple[Decimal, Decimal, str]:
    """Return the pair's margin position, the base currency owned, and both in words."""
    base, exchange = parts.bot.market.rules.base, parts.exchange
    margin, owned = exchange.position().volume, exchange.balances().get(base, ZERO)
    position = f"the exchange shows a position of {volume(margin, base)} on {parts.config.pair}"
    return margin, owned, f"{position}, and the account owns {volume(owned, base)}"


def _tell_without_journal(parts: Parts) -> int:
    """Print what the exchange holds, and return 0. Raises StopError if it holds anything."""
    config, (margin, owned, found) = parts.config, _holdings(parts)
    left = "".join(f"\n{clean(text)}" for text in journals.unmanaged(config, parts.path))
    if margin or (not config.leverage and owned >= parts.bot.market.rules.ordermin):
        raise StopError(
            f"nothing was closed: {found}, and no journal in {config.state_directory} shows which "
            "part a bot has opened. Use that bot's configuration, or `flatten --all` for the whole "
            f"margin position{left}"
        )
    print(f"{found}: there is nothing to close{left}")
    return 0


def _ask_the_bot(config: Config, path: Path, arguments: argparse.Namespace) -> int | None:
    """Ask the running bot to flatten, and show its progress.

    Return the exit code, or None if the bot has ended and there may be more to close. Raises
    StopError if it has halted for another reason, LaterError if it does not answer or takes too
    long.
    """
    with closing(open_read_only(path)) as journal:
        held, base = journal.account().held, journal.get("base")
        paid = [intent.fee / intent.cost for intent in journal.intents() if intent.fee]
        pending = preview.unresolved(journal)
    print(f"a running bot holds {volume(held, base)} and will be asked to close it")
    if pending:
        print(f"  {pending}: the position may be larger or smaller")
    clock = Clock(config.exchange.clock_speed)
    if held:
        spot = spot_of(config, client_of(config, clock))
        fee_rate = paid[-1] if paid else assumed_fee_rate(config)
        print(f"  {preview.describe_trade(spot, base, fee_rate, -held)}")
    if not _agreed(arguments, clock):
        return 2
    _wait_for_the_bot(path, config.exchange.patience + GRACE_S)
    with closing(open_read_only(path)) as journal:
        halted, left = journal.get("halted"), journal.account().held
    if halted == BY_HAND and not left and not arguments.all:
        print("it is closed, and the bot is halted: `krakenbot resume` lets it trade again")
        return 0
    ended = f"the bot ended with: {halted or 'no halt'}; its journal shows {volume(left)} held"
    if halted and not (arguments.all and config.leverage):
        raise StopError(f"{ended}. Look into that, then run `krakenbot flatten` again")
    print(clean(ended))
    arguments.yes = arguments.yes or not arguments.all  # It was asked already, but not about --all.
    return None


def _wait_for_the_bot(path: Path, patience_s: float) -> None:
    """Ask the bot to flatten, and wait until it has ended.

    The request is a lock beside the journal. It is withdrawn when the bot has begun, or when this
    process ends, in whatever way.
    """
    request, has_begun = path.with_suffix(".flatten"), False
    with ExitStack() as asking:
        for turn in range(1, int(patience_s / POLL_S)):
            if not is_locked(path.with_suffix(".lock")):
                return
            if not (has_begun or is_locked(request)):  # Nobody asks: neither we nor another.
                with suppress(HeldError):  # Another command was faster.
                    asking.enter_context(closing(Lock(request, "the request to flatten")))
            if turn % LOOK_TURNS == 0 and not has_begun:
                with closing(open_read_only(path)) as journal:
                    has_begun = journal.get("flatten") == BY_HAND or bool(journal.get("halted"))
                if has_begun:
                    print("the bot has begun to flatten", flush=True)
                    asking.close()
                elif turn * POLL_S > ANSWER_S:
                    raise LaterError(f"the bot did not answer within {ANSWER_S:.0f} s")
            if turn % PROGRESS_TURNS == 0:
                print("  waiting for it; `krakenbot status` shows more", flush=True)
            time.sleep(POLL_S)
    raise LaterError("the bot is not done yet. See `krakenbot status`")
