"""What a bot costs its machine, each beside a peer that does the same requests in the same run.

    python -m tests.benchmarks.tick

Needs the openssl program; the memory of krakenex is measured where it is installed. The sandbox
listens on loopback behind TLS. Its certificate stands in a bundle with the system's roots.
"""

import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from krakenbot.simulated import http as server
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

START_MAX, CPU_MAX = 1.6, 0.1  # Times the peer.
TICKS, PAIRS, CALLS = 1000, 11, 40
SPEED = 900.0
BARE = "import json, sys, urllib.request; json.load(urllib.request.urlopen(sys.argv[1]))"
PLAIN = """
import json, sys, time, urllib.request
began = time.process_time()
for _ in range(int(sys.argv[2])):
    json.load(urllib.request.urlopen(sys.argv[1]))
print((time.process_time() - began) / int(sys.argv[2]) * 1000)
"""
KRAKENEX = """
import os, sys, krakenex
api = krakenex.API(os.environ["KRAKEN_API_KEY"], os.environ["KRAKEN_API_SECRET"])
api.uri = sys.argv[1]
for _ in range(int(sys.argv[2])):
    api.query_public("OHLC", {"pair": "XBTUSD", "interval": 1})
    for method in ("OpenPositions", "TradeBalance"):
        api.query_private(method)
status = open("/proc/self/status").read()
print(next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024)
"""


def main() -> int:
    """Print each figure beside its limit; return 1 when one of them is over it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, context = certificate(folder)
        results = [measure(folder, bundle, context) for measure in (start, cpu, memory)]
    return 0 if all(results) else 1


def said(text: str, value: float, limit: float) -> bool:
    print(f"{text}; limit {limit:.2f}: {'ok' if value <= limit else 'OVER'}", flush=True)
    return value <= limit


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return a bundle of roots with one of ours, and a server's context that it vouches for."""
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout "
    words += "key.pem -out cert.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    command = ["openssl", *words.split()]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    system = Path(ssl.get_default_verify_paths().openssl_cafile)
    roots = system if system.exists() else Path("/etc/ssl/certs/ca-certificates.crt")
    bundle = folder / "all.pem"
    own = (folder / "cert.pem").read_text()
    bundle.write_text((roots.read_text() if roots.exists() else "") + own)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return bundle, context


def sandbox(context: ssl.SSLContext, speed: float) -> tuple[server.Sandbox, str]:
    exchange = server.Sandbox("random:1", speed)
    exchange.socket = context.wrap_socket(
        exchange.socket, server_side=True, do_handshake_on_connect=False
    )
    return exchange, exchange.url.replace("http://127.0.0.1", "https://localhost")


def environment(folder: Path, bundle: Path, url: str, speed: float, mode: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "KRAKEN_API_KEY": SANDBOX_KEY,
        "KRAKEN_API_SECRET": SANDBOX_SECRET,
        "KRAKENBOT_MODE": mode,
        "KRAKENBOT_RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
        "KRAKENBOT_RISK_MAX_ORDERS_PER_DAY": "100000",
        "KRAKENBOT_EXCHANGE_URL": url,
        "KRAKENBOT_EXCHANGE_CLOCK_SPEED": f"{speed:g}",
        "KRAKENBOT_STATE_DIRECTORY": str(folder),
        "KRAKENBOT_LOG_LEVEL": "error",
        "SSL_CERT_FILE": str(bundle),
        "REQUESTS_CA_BUNDLE": str(bundle),
    }


def start(folder: Path, bundle: Path, context: ssl.SSLContext) -> bool:
    """Compare wall time to the first decision with a bare script that fetches the candles."""
    exchange, url = sandbox(context, 1.0)
    ours, bare = [], []
    fetch = [sys.executable, "-c", BARE, f"{url}/0/public/OHLC?pair=XBTUSD"]
    for number in range(PAIRS):
        values = environment(folder / f"start{number}", bundle, url, 1.0, "paper")
        run = [sys.executable, "-m", "krakenbot", "run", "--once"]
        ours.append(seconds(lambda run=run, env=values: subprocess.run(run, env=env, check=True)))
        bare.append(seconds(lambda env=values: subprocess.run(fetch, env=env, check=True)))
    exchange.close()
    ratio = sorted(a / b for a, b in zip(ours, bare, strict=True))[PAIRS // 2]
    text = f"start: {median(ours):.0f} ms to the first decision, a bare script {median(bare):.0f}"
    return said(f"{text}, ratio {ratio:.2f}", ratio, START_MAX)


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2] * 1000


def cpu(folder: Path, bundle: Path, context: ssl.SSLContext) -> bool:
    """Compare the CPU of a tick with an order with as many calls of plain `urlopen`."""
    exchange, url = sandbox(context, SPEED)
    values = environment(folder / "cpu", bundle, url, SPEED, "live")
    ours = json.loads(output(["-m", "tests.benchmarks.one_bot", "200"], values))
    plain = float(output(["-c", PLAIN, f"{url}/0/public/OHLC?pair=XBTUSD", str(CALLS)], values))
    exchange.close()
    ratio = ours["order_ms"] / (plain * ours["requests"])
    text = (
        f"CPU: {ours['order_ms']:.1f} ms a tick with an order ({ours['requests']:.0f} requests), "
        f"{ours['idle_ms']:.1f} without; plain urlopen {plain:.1f} ms a call"
    )
    return said(f"{text}, ratio {ratio:.3f}", ratio, CPU_MAX)


def memory(folder: Path, bundle: Path, context: ssl.SSLContext) -> bool:
    """Compare the resident memory after TICKS ticks with krakenex after as many."""
    exchange, url = sandbox(context, SPEED)
    values = environment(folder / "memory", bundle, url, SPEED, "live")
    run = [sys.executable, "-m", "krakenbot", "run", "--live"]
    bot = subprocess.Popen(run, env=values)
    while exchange.api.requests["OHLC"] < TICKS and bot.poll() is None:
        time.sleep(0.05)
    status = Path(f"/proc/{bot.pid}/status").read_text()
    ours = next(int(x.split()[1]) for x in status.splitlines() if "VmRSS" in x) / 1024
    bot.terminate()
    bot.wait()
    try:
        peer = float(output(["-c", KRAKENEX, url, str(TICKS)], values))
    except subprocess.CalledProcessError:
        print(f"memory: {ours:.1f} MiB after {TICKS} ticks; krakenex is not installed")
        return True
    finally:
        exchange.close()
    return said(f"memory: {ours:.1f} MiB after {TICKS} ticks, krakenex {peer:.1f}", ours, peer)


def output(words: list[str], values: dict[str, str]) -> str:
    command = [sys.executable, *words]
    return subprocess.run(command, env=values, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
