"""`run`: the bot itself."""

from typing import TYPE_CHECKING

from krakenbot import log
from krakenbot.assemble import assemble, assumed_fee_rate, costs, load_config
from krakenbot.bot import Event
from krakenbot.config import Config
from krakenbot.errors import LaterError
from krakenbot.notify import Notifier

if TYPE_CHECKING:
    import argparse

EXAMPLE = "krakenbot --config my.toml run --live"


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    parser.add_argument("--live", action="store_true", help='needed as well as mode = "live"')
    once = "decide on the newest finished candle and end"
    parser.add_argument("--once", action="store_true", help=once)
    adopt = "take over the position that is held now"
    parser.add_argument("--adopt", action="store_true", help=adopt)


def run(arguments: "argparse.Namespace") -> int:
    config = load_config(arguments.config)
    costs_said = config.mode == "live" or arguments.once

    def on_event(event: Event) -> None:
        nonlocal costs_said
        notifier(event)
        if event.kind == "decision" and not costs_said:
            costs_said = True
            _say_costs(config)

    with Notifier(config) as notifier:
        parts = assemble(config, live=arguments.live, on_event=on_event)
        parts.clock.stop_on_signals()
        parts.clock.progress = notifier.alive
        try:
            patience_s = config.exchange.patience
            parts.bot.run(once=arguments.once, patience_s=patience_s, adopt=arguments.adopt)
        finally:
            parts.journal.close()  # So that one file holds all of it.
    return 0


def _say_costs(config: Config) -> None:
    """Say, after the first decision without money, what it would cost with it."""
    try:
        _, lines = costs(config, assumed_fee_rate(config))
    except LaterError as error:
        lines = [str(error)]
    for line in lines:
        log.warning("costs: %s", line)
