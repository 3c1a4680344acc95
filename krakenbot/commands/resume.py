"""`resume`: clears a halt, after showing why it was set."""

import argparse

from krakenbot import config as configuration
from krakenbot import identity
from krakenbot.journal_file import open_journal
from krakenbot.lock import Lock
from krakenbot.log import clean

EXAMPLE = "krakenbot resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    path = identity.journal_path(config)
    lock = Lock(path.with_suffix(".lock"), f"the {config.mode} journal of {config.pair}")
    journal = open_journal(path)
    reason = journal.get("halted")
    if reason:
        print(f"was halted: {clean(reason)}")
        print("cleared; `krakenbot run` trades again")
    else:
        print("was not halted; max_loss counts from here")
    journal.resume()
    journal.close()
    lock.close()
    return 0
