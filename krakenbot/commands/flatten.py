"""`flatten`: closes what the bot holds and leaves it halted."""

import argparse

from krakenbot.assemble import assemble, load_config
from krakenbot.config import StrategyTable

EXAMPLE = "krakenbot flatten --live"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--live", action="store_true", help='needed as well as mode = "live"')


def run(arguments: argparse.Namespace) -> int:
    # Closing needs no strategy, so a broken rule file must not stand in its way.
    config = load_config(arguments.config)._replace(strategy=StrategyTable())
    parts = assemble(config, live=arguments.live)
    parts.bot.flatten("flattened by hand", config.exchange.patience)
    print(f"nothing is held on {config.pair} any more; `krakenbot resume` lets the bot trade again")
    return 0
