"""`sandbox`: a local exchange with Kraken's REST API."""

import argparse
import os
import signal

from krakenbot.commands import UsageError
from krakenbot.kraken.signing import decode_secret
from krakenbot.model import Secret
from krakenbot.pairs import decimal
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

EXAMPLE = "krakenbot sandbox --port 8080 --speed 60 --feed random:7"
PORT = 8080
SPEED_MAX = 100000
_POSITION = 'or "liquidate": true, or "side", "volume", "leverage"'
# How to control a running sandbox: path, JSON and what it means.
CONTROLS = (
    ("ledger", "", "orders, fills, balances, requests; the others return this too"),
    ("faults", '{"spec": "lost-after=0.02"}', 'as --faults; "" for none'),
    ("clock", '{"advance": 3600}', '31 days at most; or {"now": unix seconds}, {"freeze": true}'),
    ("price", '{"pair": "XBTUSD", "price": "60000"}', "stays there; null: back to the feed"),
    ("balance", '{"asset": "ZUSD", "amount": "500"}', "a deposit or a withdrawal"),
    ("status", '{"status": "cancel_only"}', 'with "pair": for one pair; or {"fill_share": "0.5"}'),
    ("position", '{"pair": "XBTUSD", "close": true}', _POSITION),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from krakenbot.simulated.api import TIERS
    from krakenbot.simulated.faults import FAULTS

    words = "".join(f"  {word:16} {meaning}\n" for word, meaning in FAULTS.items())
    url = f"127.0.0.1:{PORT}/sandbox"
    controls = "".join(
        f"  curl {url}/{name}" + (f" -d '{params}'" if params else "") + f"\n      {meaning}\n"
        for name, params, meaning in CONTROLS
    )
    parser.epilog = (
        f"control, from this machine only:\n{controls}\n"
        f"faults, such as lost-after=0.02,lag=30,seed=7; all=0.01 for all of them:\n{words}\n"
        f"KRAKEN_API_KEY and KRAKEN_API_SECRET, if set, are the key and secret; else\n"
        f"{SANDBOX_KEY}\n{SANDBOX_SECRET}\nexample: {EXAMPLE}"
    )
    add = parser.add_argument
    add("--port", type=int, default=PORT, help="0 for any (default %(default)s)")
    add("--speed", type=float, default=1.0, metavar="S", help="simulated seconds per second")
    add("--feed", default="random:1", help="random:SEED, or csv:FILE with Kraken's candles")
    add("--fee", default="0.8", metavar="PERCENT", help="taker fee (default %(default)s)")
    tiers = "rate limits of an account tier, or generous ones (default %(default)s)"
    add("--counters", choices=TIERS, default="sandbox", help=tiers)
    add("--faults", default="", metavar="SPEC", help="WORD=PROBABILITY per request, see below")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    from krakenbot.simulated import http as server

    # Blocked before any thread starts, so that only the main thread receives them.
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
        sandbox = server.Sandbox(
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
    except OSError as error:  # With a file name it is about the feed, else about the port.
        hint = "" if error.filename else "; --port 0 takes any that is free"
        where = error.filename or f"port {arguments.port}"
        raise UsageError(f"{where}: {error.strerror}{hint}") from error
    print(f"sandbox listening on {sandbox.url}", flush=True)
    signal.sigwait(ends)
    sandbox.close()
    return 0
