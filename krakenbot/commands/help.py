"""`help`: the commands, or a page of the manual that comes with the program."""

import argparse
import textwrap
from importlib import resources

from krakenbot import __version__
from krakenbot.commands import COMMANDS, CONFIG_HELP, UsageError

EXAMPLE = "krakenbot help costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="a page of the manual")


def run(arguments: argparse.Namespace) -> int:
    files = [entry.name for entry in resources.files("krakenbot").joinpath("manual").iterdir()]
    topics = sorted(name.removesuffix(".md") for name in files if name.endswith(".md"))
    if arguments.topic is None:
        lines = "".join(f"  {name:10} {text}\n" for name, (_, text) in COMMANDS.items())
        pages = f"Pages of the manual, printed by help TOPIC: {', '.join(topics)}"
        print(
            f"krakenbot {__version__}\n"
            "usage: krakenbot [--config FILE] [COMMAND] [options]\n\n"
            f"commands:\n{lines}\n"
            f"--config FILE  {CONFIG_HELP}\n"
            "--version      show it and exit\n\n"
            "Each command has its own --help with an example. First: krakenbot demo\n"
            f"{textwrap.fill(pages, 80)}"
        )
    elif arguments.topic in topics:
        print(manual_file(f"{arguments.topic}.md"), end="")
    else:
        raise UsageError(f"no page {arguments.topic[:80]!r}. The pages: {', '.join(topics)}")
    return 0


def manual_file(name: str) -> str:
    """Return the text of a file in the folder `manual`, which comes with the program."""
    return resources.files("krakenbot").joinpath("manual", name).read_text(encoding="utf-8")
