"""`run`: the bot itself, and what it shows to the person who started it."""

import argparse
import sys
from decimal import Decimal

from krakenbot import log
from krakenbot.assemble import Parts, assemble, require_live
from krakenbot.bot import Event
from krakenbot.commands import UsageError, exit_code, journals
from krakenbot.commands.handover import BY_HAND, adopt
from krakenbot.commands.preview import compared, unresolved
from krakenbot.commands.screen import Screen
from krakenbot.config import Config, is_loopback
from krakenbot.config_reader import load_config
from krakenbot.errors import StopError
from krakenbot.format import moment, money, volume
from krakenbot.handover import flatten
from krakenbot.notify import Notifier
from krakenbot.presence import Presence, is_locked

EXAMPLE = "krakenbot --config my.toml run --live"


class FlattenRequestedError(Exception):
    """A person asks the running bot to flatten. Raised while waiting, like a request to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--live", action="store_true", help='real orders; needs mode = "live"')
    text = "decide once, on the newest finished candle, and end"
    parser.add_argument("--once", action="store_true", help=text)
    text = "take over your position at Kraken, after showing what that will trade; needs --yes"
    parser.add_argument("--adopt", action="store_true", help=text)
    parser.add_argument("--yes", action="store_true", help="confirm --adopt")
    text = "trade although these settings may cost more than max_fee_percent_per_day"
    parser.add_argument("--accept-costs", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.yes and not arguments.adopt:
        raise UsageError("--yes is only for --adopt: without it, run asks nothing")
    config = load_config(arguments.config)
    is_watched = sys.stdout.isatty() and sys.stderr.isatty()
    if is_watched and config.sources["log.level"] == "default":
        log.setup("warning", config.log.format)  # The table shows the rest.
    require_live(config, arguments.live)
    if arguments.adopt and (code := adopt(config, yes=arguments.yes)):
        return code

    def on_event(event: Event) -> None:
        notifier(event)
        presence(event)
        if event.kind == "start":
            _say(_banner(config, parts))
            for text in journals.unmanaged(config, parts.path):
                log.warning("%s", text)
            if config.mode != "live" and not arguments.once:  # In live mode the start shows them.
                _say_costs(parts)
        screen(event)

    with Notifier(config) as notifier:
        parts = assemble(
            config,
            live=arguments.live,
            on_event=on_event,
            progress=notifier.alive,
            accept_costs=arguments.accept_costs,
            by_bot=True,
        )
        presence, screen = Presence(parts.journal, parts.clock, config.interval * 60), Screen()
        code, why = 0, "decided once, as asked"
        try:
            _trade(config, parts, notifier, arguments.once)
        except BaseException as error:
            code, why = exit_code(error, "run"), str(error) or "stopped as asked"
            raise
        finally:
            presence.end(code, why)
            _say([goodbye(config, parts)])
            parts.journal.close()  # So that one file holds the whole journal.
    return 0


def _trade(config: Config, parts: Parts, notifier: Notifier, once: bool) -> None:
    """Run the bot until it ends. When `krakenbot flatten` asks, flatten and raise StopError."""

    def progress() -> None:
        notifier.alive()
        # `krakenbot flatten` holds this lock while it asks. If that cannot be known, nobody asks.
        if is_locked(parts.path.with_suffix(".flatten"), if_unknown=False):
            raise FlattenRequestedError

    parts.clock.progress = progress
    try:
        parts.bot.run(once=once, patience_s=config.exchange.patience)
    except FlattenRequestedError:
        parts.clock.progress = notifier.alive
        log.warning("flattening, as `krakenbot flatten` asks")
        checks = () if parts.bot.retry.has_started else parts.checks
        flatten(parts.bot, BY_HAND, config.exchange.patience, checks)
        raise StopError(f"{BY_HAND}; `krakenbot resume` lets it trade again") from None


def _say(lines: list[str]) -> None:
    """Print lines on a terminal; without one, log them as one line."""
    if sys.stdout.isatty():
        log.put(sys.stdout, "\n  ".join(map(log.clean, lines)) + "\n")
    else:
        log.info("%s", "; ".join(lines))


def _banner(config: Config, parts: Parts) -> list[str]:
    """Return what the bot will trade, where and how much, and the path of its journal."""
    journal = parts.journal
    base, candles, worth = journal.get("base"), parts.bot.window.known(), ""
    if candles:
        worth = f", worth {money(config.size * candles[-1].close, journal.get('quote'))} now"
    margin = f"leverage {config.leverage}" if config.leverage else "no margin: long or flat"
    now, interval_s = int(parts.clock.now()), config.interval * 60
    is_real = config.mode == "live" and not is_loopback(config.exchange.url)
    return [
        f"{config.mode} {config.pair} on {config.exchange.url}, {config.strategy.title}: "
        + ("REAL ORDERS WITH REAL MONEY" if is_real else "no real money"),
        f"size {volume(config.size, base)}{worth}, {margin}; held now: "
        f"{volume(journal.account().held, base)}",
        f"one decision per {config.interval} min candle, the next after "
        f"{moment(now - now % interval_s + interval_s)}",
        f"journal {parts.path}",
    ]


def goodbye(config: Config, parts: Parts) -> str:
    """Return the last line: what is still held, and how to go on or close it."""
    held, base = parts.journal.account().held, parts.journal.get("base")
    if unknown := unresolved(parts.journal):
        return f"ended; {unknown}, so something may be held"
    if holds := parts.journal.get("exchange_position"):
        return f"ended; {compared(Decimal(holds), held, base)}"
    if not held:
        return "ended; nothing is held"
    if parts.journal.get("halted"):
        return f"ended, halted: {volume(held, base)} is still held; `krakenbot status` says why"
    live = " --live" if config.mode == "live" else ""
    return (
        f"ended; {volume(held, base)} is still held, and no bot manages it now: "
        f"`krakenbot run{live}` goes on, `krakenbot flatten{live}` closes it"
    )


def _say_costs(parts: Parts) -> None:
    """Log what these settings cost with real money."""
    from krakenbot.backtest.costs import fee_guard

    market, candles = parts.bot.market, parts.bot.window.known()
    rates = market.fee_rate, market.margin_rates
    for line in fee_guard(parts.config, candles, market.rules, *rates).lines:
        log.warning("costs: %s", line)
