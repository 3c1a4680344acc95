"""The entry point, also of the single file. Old Pythons must be able to parse this module."""

import sys


def start() -> int:
    """Return the exit code of the process."""
    if sys.version_info < (3, 11):  # noqa: UP036
        found = "%d.%d" % sys.version_info[:2]  # noqa: UP031
        sys.stderr.write("krakenbot needs Python 3.11 or newer, and this is " + found + ".\n")
        return 78
    try:
        from krakenbot.cli import main

        return main()
    except KeyboardInterrupt:  # While modules are imported; `main` handles all others.
        return 130


if __name__ == "__main__":
    sys.exit(start())
