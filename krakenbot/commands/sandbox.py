"""`sandbox`: a local exchange that answers like Kraken's Spot REST API."""

import argparse
import os
import signal

from krakenbot.commands import UsageError
from krakenbot.kraken.signing import decode_secret
from krakenbot.model import Secret
from krakenbot.pairs import decimal
from krakenbot.simulated.api import TIERS
from krakenbot.simulated.faults import FAULTS
from krakenbot.simulated.http import Sandbox
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

EXAMPLE = "krakenbot sandbox --port 8080 --speed 60 --feed random:7"
SPEED_MAX = 100000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "".join(f"  {word:16} {meaning}\n" for word, meaning in FAULTS.items())
    parser.epilog = (
        "`krakenbot help sandbox` says how to control it while it runs.\n\n"
        f"faults, such as lost-after=0.02,lag=30,seed=7; all=0.01 for all of them:\n{words}\n"
        "Key and secret are those in KRAKEN_API_KEY and KRAKEN_API_SECRET, if set; else\n"
        f"{SANDBOX_KEY}\n{SANDBOX_SECRET}\nexample: {EXAMPLE}"
    )
    add = parser.add_argument
    add("--port", type=int, default=8080, help="0 for any (default %(default)s)")
    speed = "simulated seconds per real second (default %(default)s)"
    add("--speed", type=float, default=1.0, metavar="S", help=speed)
    add("--feed", default="random:1", help="random:SEED, or csv:FILE with Kraken's candles")
    add("--fee", default="0.8", metavar="PERCENT", help="taker fee (default %(default)s)")
    tiers = "rate limits of an account tier, or generous ones (default %(default)s)"
    add("--counters", choices=TIERS, default="sandbox", help=tiers)
    add("--faults", default="", metavar="SPEC", help="WORD=PROBABILITY per request, see below")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, then return 0."""
    # Blocked before any thread starts, so that only the main thread receives these signals.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    key = os.environ.get("KRAKEN_API_KEY") or SANDBOX_KEY
    secret = os.environ.get("KRAKEN_API_SECRET") or SANDBOX_SECRET
    decode_secret(Secret(secret))
    try:
        fee_rate = decimal(arguments.fee) / 100
        if not 0 < arguments.speed <= SPEED_MAX:
            raise ValueError(f"--speed {arguments.speed} must be above 0 and at most {SPEED_MAX}")
        if not 0 <= arguments.port <= 65535:
            raise ValueError(f"--port {arguments.port} must be from 0 to 65535")
        if not 0 <= fee_rate <= 1:
            raise ValueError(f"--fee {arguments.fee} must be from 0 to 100")
        sandbox = Sandbox(
            arguments.feed,
            arguments.speed,
            port=arguments.port,
            key=key,
            secret=secret,
            fee_rate=fee_rate,
            tier=arguments.counters,
            faults=arguments.faults,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:  # Of the feed if it names a file, else of the port.
        hint = "" if error.filename else "; --port 0 takes any free one"
        where = error.filename or f"port {arguments.port}"
        raise UsageError(f"{where}: {error.strerror}{hint}") from error
    print(f"sandbox listening on {sandbox.url}", flush=True)
    signal.sigwait(ends)
    sandbox.close()
    return 0
