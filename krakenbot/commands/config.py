"""`config`: every setting, its value, and where the value came from."""

import argparse

from krakenbot import config as configuration
from krakenbot.commands.help import page
from krakenbot.config import Config
from krakenbot.format import in_columns
from krakenbot.log import clean

EXAMPLE = "krakenbot config --example > config.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "print a file with every setting explained, to start from"
    parser.add_argument("--example", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.example:
        print(page("config.example.toml"), end="")
        return 0
    config = configuration.load_here(arguments.config)
    rows = [(key, value(config, key), by) for key, by in config.sources.items()]
    print(*map(clean, in_columns(("", "", ""), rows)[1:]), sep="\n")
    return 0


def value(config: Config, key: str) -> str:
    """Return a setting's value as text, with secrets hidden."""
    table, _, field = key.rpartition(".")
    if key == "state.directory":
        return str(config.state_directory)
    found = getattr(getattr(config, table) if table else config, field)
    if isinstance(found, float):
        return f"{found:g}"
    return "none" if found is None else configuration.shown(key, found).strip("'")
