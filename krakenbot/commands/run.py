"""`run`: the bot itself."""

import argparse

from krakenbot.parts import assemble, load_config

HELP = "The bot: one decision for each finished candle, until SIGTERM or SIGINT."
EXAMPLE = "krakenbot --config my.toml run --live"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--live", action="store_true", help='needed as well as mode = "live"')
    parser.add_argument(
        "--once", action="store_true", help="decide on the newest finished candle and end"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="take over the position that is held now"
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    parts = assemble(config, live=arguments.live)
    parts.clock.stop_on_signals()
    parts.bot.run(
        once=arguments.once, patience_s=config.exchange.patience, adopt=arguments.adopt
    )
    return 0
