"""`call`: any method of Kraken's REST API, Spot or Futures, signed when private."""

import argparse
import binascii
import hashlib
import hmac
import json
import re
import sys
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

from krakenbot import config as configuration
from krakenbot.assemble import load_config
from krakenbot.clock import SystemClock
from krakenbot.config import Config
from krakenbot.credentials import Credentials, load_credentials
from krakenbot.errors import ConfigError, RefusedError, UnansweredError
from krakenbot.kraken.client import READS, USER_AGENT, Client, UrllibTransport, parse_json
from krakenbot.kraken.signing import decode_secret, fingerprint
from krakenbot.lock import Lock, Nonces
from krakenbot.log import clean, redact
from krakenbot.model import Secret

EXAMPLE = "krakenbot call OHLC pair=XBTUSD interval=60"
PUBLIC = (
    "Time",
    "SystemStatus",
    "Assets",
    "AssetPairs",
    "Ticker",
    "OHLC",
    "Depth",
    "GroupedBook",
    "Trades",
    "Spread",
    "PreTrade",
    "PostTrade",
)
FUTURES = "https://futures.kraken.com"
FUTURES_PUBLIC = (
    r"/api/charts/.+|/derivatives/api/v\d/(instruments|tickers|orderbook|history|"
    r"feeschedules|historicalfundingrates)(/(?!volumes).*)?"
)
FUTURES_POST = (
    r".*/(sendorder|editorder|cancel\w+|batchorder|transfer|transfer/subaccount|"
    r"withdrawal|orders/status)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="Balance; with --futures: accounts")
    parser.add_argument("values", nargs="*", metavar="name=value")
    parser.add_argument("--json", action="store_true", help="one line; fractions come as text")
    parser.add_argument("--live", action="store_true", help="needed for all but reading")
    parser.add_argument("--futures", action="store_true", help="Kraken Futures, with its own keys")
    parser.add_argument("--verb", choices=("GET", "POST", "PUT"), help="of a Futures method")
    parser.add_argument("--host", default=FUTURES, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    values = [tuple(value.split("=", 1)) for value in arguments.values]
    if not re.fullmatch(r"(?a:[\w/-]+)", arguments.method) or any(len(v) != 2 for v in values):
        print("krakenbot call: give METHOD, then name=value for each parameter", file=sys.stderr)
        return 2
    try:
        result = (_futures if arguments.futures else _spot)(config, arguments, values)
    except (RefusedError, UnansweredError) as error:
        doubt = isinstance(error, UnansweredError) and arguments.live
        words = clean(str(error)) + ("; it may have happened" if doubt else "")
        print(f"krakenbot call: {words}", file=sys.stderr)
        return 1
    print(redact(json.dumps(result, default=str, indent=None if arguments.json else 2)))
    return 0


def transport(config: Config) -> UrllibTransport:
    return UrllibTransport(config.exchange.timeout, config.exchange.proxy)


def signed_client(config: Config, credentials: Credentials, live: bool) -> tuple[Client, Lock]:
    """Return a client and the key's lock, without which no nonce of the key may be used."""
    lock = key_lock(config, credentials)
    return Client(
        transport(config),
        config.exchange.url,
        SystemClock(config.exchange.clock_speed),
        key=credentials.key,
        secret=credentials.secret,
        next_nonce=Nonces(lock).next,
        live=live,
    ), lock


def key_lock(config: Config, credentials: Credentials) -> Lock:
    """Return the key's lock; ConfigError while a bot holds it."""
    path = config.state_directory / f"key-{fingerprint(credentials.key)}.lock"
    return Lock(path, "this API key: stop it first, or use another key here")


def _spot(config: Config, arguments: argparse.Namespace, values: list[tuple[str, str]]) -> Any:
    method, params = arguments.method, dict(values)
    if method in PUBLIC:
        return Client(transport(config), config.exchange.url, SystemClock()).public(method, params)
    is_check = method == "AddOrder" and params.get("validate") == "true"
    _ask_for_live(arguments, method in READS or is_check)
    client, lock = signed_client(config, _credentials(config, "KRAKEN"), not is_check)
    with closing(lock):
        return client.private(method, params)


def _futures(config: Config, arguments: argparse.Namespace, values: list[tuple[str, str]]) -> Any:
    print("note: Kraken switches the Futures REST API off on 1 March 2027", file=sys.stderr)
    if arguments.host != FUTURES and not configuration.is_loopback(arguments.host):
        raise ConfigError(f"{arguments.host!r:.60}: only {FUTURES} or a loopback address")
    method = arguments.method
    path = method if method.startswith("/") else f"/derivatives/api/v3/{method}"
    verb = arguments.verb or ("POST" if re.fullmatch(FUTURES_POST, path) else "GET")
    _ask_for_live(arguments, verb == "GET" or path.endswith("/orders/status"))
    data, headers = urlencode(values), {"User-Agent": USER_AGENT}
    url, body = arguments.host + path, None
    if verb == "POST":
        body, headers["Content-Type"] = data.encode(), "application/x-www-form-urlencoded"
    elif data:
        url += f"?{data}"
    if not re.fullmatch(FUTURES_PUBLIC, path):
        credentials = _credentials(config, "KRAKEN_FUTURES")
        with closing(key_lock(config, credentials)) as lock:
            nonce = str(Nonces(lock).next(SystemClock().nonce()))
        signature = sign_futures(credentials.secret, path, nonce, data)
        headers |= {"APIKey": credentials.key.reveal(), "Nonce": nonce, "Authent": signature}
    status, answer = transport(config).send(verb, url, headers, body, verb != "GET")
    try:
        result = parse_json(answer)
    except ValueError:
        raise UnansweredError(f"{method}: HTTP {status} without a JSON answer") from None
    if status != 200 or (isinstance(result, dict) and result.get("result") == "error"):
        raise RefusedError(f"{method}: HTTP {status} {json.dumps(result, default=str):.500}")
    return result


def sign_futures(secret: Secret, path: str, nonce: str, data: str) -> str:
    """Return the Authent header. `data` is the encoded query or body, the very text that is sent.

    Source: docs.kraken.com, Futures REST guide, "Authentication".
    """
    digest = hashlib.sha256((data + nonce + path.removeprefix("/derivatives")).encode()).digest()
    mac = hmac.new(decode_secret(secret), digest, hashlib.sha512)
    return binascii.b2a_base64(mac.digest(), newline=False).decode()


def _credentials(config: Config, prefix: str) -> Credentials:
    credentials = load_credentials(config, prefix)
    if credentials is None:
        raise ConfigError(f"needs a key: set {prefix}_API_KEY_FILE and {prefix}_API_SECRET_FILE")
    return credentials


def _ask_for_live(arguments: argparse.Namespace, is_harmless: bool) -> None:
    if not is_harmless and not arguments.live:
        raise ConfigError(
            f"{arguments.method} may trade, move money or change the account: "
            "add --live. Nothing was sent"
        )
