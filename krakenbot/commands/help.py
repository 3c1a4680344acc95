"""`help`: the commands, or a page of the manual that comes with the program."""

import argparse
import difflib
import textwrap
from importlib import resources

from krakenbot.commands import UsageError, overview

EXAMPLE = "krakenbot help costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="a page of the manual")


def run(arguments: argparse.Namespace) -> int:
    files = [entry.name for entry in resources.files("krakenbot").joinpath("manual").iterdir()]
    topics = sorted(name.removesuffix(".md") for name in files if name.endswith(".md"))
    if arguments.topic is None:
        pages = f"Pages of the manual, printed by help TOPIC: {', '.join(topics)}"
        print(f"{overview()}\n{textwrap.fill(pages, 80)}")
    elif arguments.topic in topics:
        print(page(f"{arguments.topic}.md"), end="")
    else:
        nearest = difflib.get_close_matches(arguments.topic[:80], topics, 1, 0.0)[0]
        wrong = f"no page {arguments.topic[:80]!r}; did you mean {nearest!r}?"
        raise UsageError(f"{wrong} The pages: {', '.join(topics)}")
    return 0


def page(name: str) -> str:
    """Return the text of a file that comes with the program."""
    return resources.files("krakenbot").joinpath("manual", name).read_text(encoding="utf-8")
