"""`call`: any method of Kraken's REST API, Spot or Futures, signed if it is private."""

import argparse
import binascii
import difflib
import hashlib
import hmac
import json
import os
import re
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from krakenbot import identity
from krakenbot.assemble import client_of
from krakenbot.clock import Clock
from krakenbot.commands import UsageError, write_output
from krakenbot.config import Config, is_loopback
from krakenbot.config_reader import load_config
from krakenbot.credentials import require_credentials
from krakenbot.errors import ConfigError, RefusedError, UnansweredError
from krakenbot.kraken.client import READS, USER_AGENT, Client, kind_of, parse_json
from krakenbot.kraken.signing import decode_secret, fingerprint
from krakenbot.kraken.transport import ANSWER_BYTES_MAX, UrllibTransport
from krakenbot.lock import Lock, Nonces
from krakenbot.log import clean, redact_registered, say
from krakenbot.model import Credentials, Secret

EXAMPLE = "krakenbot call OHLC pair=XBTUSD interval=60"
_PUBLIC = """Time SystemStatus MaintenanceSchedule Assets AssetPairs Ticker OHLC Depth GroupedBook
    Trades Spread PreTrade PostTrade"""
_CHANGES = """AddOrder AddOrderBatch AmendOrder EditOrder CancelOrder CancelOrderBatch CancelAll
    CancelAllOrdersAfter AddExport RemoveExport DepositAddresses Withdraw WithdrawCancel
    WalletTransfer CreateSubaccount AccountTransfer Earn/Allocate Earn/Deallocate"""
PUBLIC = _PUBLIC.split()
KNOWN = (*PUBLIC, *READS, *_CHANGES.split())
FUTURES = "https://futures.kraken.com"
# Paths that need no key, and those that are sent by POST unless --verb says otherwise.
FUTURES_PUBLIC = (
    r"/api/charts/.+|/derivatives/api/v\d/(instruments|tickers|orderbook|history|"
    r"feeschedules|historicalfundingrates)(/(?!volumes).*)?"
)
FUTURES_POST = (
    r".*/(sendorder|editorder|cancel\w+|batchorder|transfer|transfer/subaccount|"
    r"withdrawal|orders/status)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="such as Balance, or accounts of Futures")
    parser.add_argument("values", nargs="*", metavar="name=value", help="its parameters")
    parser.add_argument("--json", action="store_true", help="print one line; decimals come as text")
    most = f"at most {ANSWER_BYTES_MAX >> 20} MiB"
    output = f"write the answer, such as the archive of RetrieveExport, to a new file; {most}"
    parser.add_argument("--output", metavar="FILE", type=Path, help=output)
    live = 'required for all but reads; needs mode = "live" as well'
    parser.add_argument("--live", action="store_true", help=live)
    parser.add_argument("--futures", action="store_true", help="Kraken Futures, with its own keys")
    parser.add_argument("--verb", choices=("GET", "POST", "PUT"), help="HTTP method for Futures")


def run(arguments: argparse.Namespace) -> int:
    config, values, output = load_config(arguments.config), _values(arguments), arguments.output
    changes = _changes(arguments, values)
    if changes and not (arguments.live and config.mode == "live"):
        method = arguments.method
        near = [] if method in KNOWN else difflib.get_close_matches(method, KNOWN)
        hint = f". Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"{method} may trade, move money or change the account: it needs both --live "
            f'and mode = "live". Nothing was sent{hint}'
        )
    if output is not None:
        write_output(output, b"", 0o600)  # Nothing is sent if the answer could not be written.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has SIGHUP ignored.
            signal.signal(number, signal.default_int_handler)
    try:
        result = (_futures if arguments.futures else _spot)(config, arguments, values)
    except (RefusedError, UnansweredError, KeyboardInterrupt) as error:
        is_unknown = changes and not isinstance(error, RefusedError)
        why = clean(str(error) or "stopped") + ("; it may have happened" if is_unknown else "")
        say(f"krakenbot call: {why}")
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        if output is not None:
            output.unlink(missing_ok=True)
    text, is_file = "", isinstance(result, bytes)
    try:
        if not is_file:
            text = json.dumps(result, default=str, indent=None if arguments.json else 2)
            text = redact_registered(f"{text}\n")
        if output is not None:
            write_output(output, result if is_file else text.encode(), 0o600)
        elif is_file:
            sys.stdout.buffer.write(result)
        else:
            print(end=text, flush=True)
    except (OSError, UsageError, KeyboardInterrupt) as error:
        if not changes:
            raise
        why = str(error) or "stopped"
        say(f"krakenbot call: it was carried out, but {why}\n{text}")
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    return 0


def _values(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the parameters in the order given. Raises UsageError if they make no request."""
    method, output = arguments.method, arguments.output
    # Bytes that are not UTF-8 arrive as surrogates, which no URL can carry.
    shape = "(?s)[^=\ud800-\udfff]+=[^\ud800-\udfff]*"
    is_named = all(re.fullmatch(shape, value) for value in arguments.values)
    if not re.fullmatch(r"(?a:[\w/-]+)", method) or not is_named:
        raise UsageError("give METHOD, then name=value for each parameter, in UTF-8")
    if output is not None and os.path.lexists(output):
        raise UsageError(f"{str(output)!r} exists; --output must name a new file")
    if method == "RetrieveExport" and output is None and sys.stdout.isatty():
        raise UsageError("RetrieveExport returns a zip archive: add --output FILE")
    values = [(name, text) for name, _, text in (v.partition("=") for v in arguments.values)]
    if arguments.futures and not method.startswith("/"):
        arguments.method = f"/derivatives/api/v3/{method}"
    elif not arguments.futures and len(dict(values)) < len(values):
        names = [name for name, _ in values]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"given more than once: {twice}")
    return values


def _changes(arguments: argparse.Namespace, values: list[tuple[str, str]]) -> bool:
    """Return whether the request may trade, move money or change the account."""
    method = arguments.method
    if arguments.futures:
        is_posted = arguments.verb in ("POST", "PUT") or re.fullmatch(FUTURES_POST, method)
        return bool(is_posted) and not method.endswith("/orders/status")
    is_check = method == "AddOrder" and ("validate", "true") in values
    return not is_check and method not in (*PUBLIC, *READS)


def signed_client(config: Config, credentials: Credentials, changes: bool) -> tuple[Client, Lock]:
    """Return a client and the lock of its key; keep the lock until the last request.

    With `changes` the client can do more than read and validate. Then the key is marked: a bot must
    no longer assume that it knows all orders of the key. Raises HeldError, a ConfigError, when
    another process uses the key.
    """
    lock = identity.key_lock(config, fingerprint(credentials.key))
    clock, nonces = Clock(config.exchange.clock_speed), Nonces(lock)
    if changes:
        nonces.set_mark("called")
    client = client_of(config, clock, credentials, nonces, live=changes)
    client.nonce_pauses_s = (1, 2)  # A person is waiting.
    return client, lock


def _spot(config: Config, arguments: argparse.Namespace, values: list[tuple[str, str]]) -> Any:
    method, params = arguments.method, dict(values)
    if method in PUBLIC:
        return client_of(config, Clock()).public(method, params)
    credentials = require_credentials(config, method)
    client, lock = signed_client(config, credentials, _changes(arguments, values))
    with closing(lock):
        return client.private(method, params)


def _futures(config: Config, arguments: argparse.Namespace, values: list[tuple[str, str]]) -> Any:
    say("note: Kraken switches the Futures REST API off on 1 March 2027", "warning")
    path, url = arguments.method, config.exchange.url
    host = url if is_loopback(url) else FUTURES
    verb = arguments.verb or ("POST" if re.fullmatch(FUTURES_POST, path) else "GET")
    data, headers = urlencode(values), {"User-Agent": USER_AGENT}
    target, body = f"{host}{path}?{data}".rstrip("?"), None
    if verb == "POST":
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        target, body = host + path, data.encode()
    if not re.fullmatch(FUTURES_PUBLIC, path):
        credentials = require_credentials(config, path, "KRAKEN_FUTURES")
        with closing(identity.key_lock(config, fingerprint(credentials.key))) as lock:
            nonces = Nonces(lock)
            nonces.set_mark("called")
            nonce = str(nonces.next(Clock().nonce()))
        signature = sign_futures(credentials.secret, path, nonce, data)
        headers |= {"APIKey": credentials.key.reveal(), "Nonce": nonce, "Authent": signature}
    transport = UrllibTransport(config.exchange.timeout, config.exchange.proxy)
    status, answer = transport.send(verb, target, headers, body)
    try:
        result = parse_json(answer)
    except ValueError:
        what = f"HTTP {status} with {kind_of(answer)} instead of a JSON answer"
        raise UnansweredError(f"{path}: {what}") from None
    is_error = isinstance(result, dict) and (result.get("result") == "error" or result.get("error"))
    if status != 200 or is_error:  # A sandbox of the Spot API answers with a list of errors.
        kind = UnansweredError if status >= 500 else RefusedError
        raise kind(f"{path}: HTTP {status} {json.dumps(result, default=str):.500}")
    return result


def sign_futures(secret: Secret, path: str, nonce: str, data: str) -> str:
    """Return the Authent header. `data` is the encoded query or body exactly as it is sent.

    Source: docs.kraken.com, Futures REST guide, "Authentication".
    """
    digest = hashlib.sha256((data + nonce + path.removeprefix("/derivatives")).encode()).digest()
    mac = hmac.new(decode_secret(secret), digest, hashlib.sha512)
    return binascii.b2a_base64(mac.digest(), newline=False).decode()
