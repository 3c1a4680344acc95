"""The sandbox on one core: requests a second over keep-alive, and memory over 100,000 orders.

    python -m tests.benchmarks.sandbox [ORDERS]

Server and client have a core each where the machine lets us choose.
"""

import os
import resource
import socket
import sys
import time
from decimal import Decimal
from multiprocessing import get_context
from multiprocessing.connection import Connection
from urllib.parse import urlencode

from krakenbot.kraken.signing import sign
from krakenbot.model import Secret
from krakenbot.simulated import http as server
from krakenbot.simulated.api import START_BALANCES

ORDERS = 100_000
SAMPLE = 5000
TIME = b"GET /0/public/Time HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: benchmark\r\n\r\n"


def pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def order(number: int) -> bytes:
    """Return a signed AddOrder: opens, turns and closes in turn, so that positions stay small."""
    nonce = str(time.time_ns())
    body = urlencode(
        {
            "nonce": nonce,
            "pair": "XBTUSD",
            "type": ("buy", "sell")[number % 2],
            "ordertype": "market",
            "volume": "0.0001",
            "leverage": "2",
            "cl_ord_id": f"{number:018d}",
        }
    ).encode()
    path = "/0/private/AddOrder"
    signature = sign(Secret(server.SANDBOX_SECRET), path, nonce, body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: benchmark\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nAPI-Key: {server.SANDBOX_KEY}\r\n"
        f"API-Sign: {signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def client(port: int, pipe: Connection) -> None:
    """Send what the pipe asks for and answer with the seconds it took."""
    pin(1)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = connection.makefile("rb")
        while (wish := pipe.recv()) is not None:
            kind, first, count = wish
            began = time.perf_counter()
            for number in range(first, first + count):
                connection.sendall(TIME if kind == "Time" else order(number))
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    if line.startswith(b"Content-Length:"):
                        length = int(line.split()[1])
                answer = answers.read(length)
                assert b'"error":[]' in answer, answer
            pipe.send(time.perf_counter() - began)


def main(orders: int) -> None:
    pin(0)
    sandbox = server.Sandbox("random:1")
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=client, args=(int(sandbox.url.rsplit(":", 1)[1]), theirs)
    )
    process.start()
    for kind in ("Time", "AddOrder"):
        ours.send((kind, 0, SAMPLE))
        print(f"{kind}: {SAMPLE / ours.recv():.0f} requests a second")
    step = max(orders // 10, 1)
    for first in range(SAMPLE, SAMPLE + orders, step):
        ours.send(("AddOrder", first, step))
        seconds = ours.recv()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{first + step} orders: {step / seconds:.0f} a second, {memory:.0f} MB at most")
    ours.send(None)
    process.join()
    account = sandbox.api.account
    fees, rolled = account.fees["ZUSD"], account.rollovers.get("ZUSD", Decimal(0))
    exact = START_BALANCES["ZUSD"] - fees - rolled + account.realized["ZUSD"]
    assert account.summary("ZUSD").equity == exact + account.summary("ZUSD").unrealized_pnl
    print("equity = start - fees - rollover + realized + unrealized, to the last digit")
    sandbox.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ORDERS)
