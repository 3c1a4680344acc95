"""CPU of whole ticks over HTTPS against plain `urlopen` calls; memory over 1,000 ticks; cold start.

    python -m tests.benchmarks.tick

Starts the sandbox on loopback, behind TLS for the first figure (needs the openssl program). The
certificate bundle holds the system's roots and ours, as on a usual machine.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAIN = """
import json, sys, time, urllib.request
url, n = sys.argv[1], int(sys.argv[2])
began = time.process_time()
for _ in range(n):
    json.load(urllib.request.urlopen(url))
print((time.process_time() - began) / n * 1000)
"""
BARE = "import json, sys, urllib.request; json.load(urllib.request.urlopen(sys.argv[1]))"
TICKS = 1000
SPEED = 900.0


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold_start(folder)
        memory(folder)
        https(folder)


def environment(folder: Path, url: str, speed: float, mode: str) -> dict[str, str]:
    from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET

    return {
        "PATH": os.environ["PATH"],
        "KRAKEN_API_KEY": SANDBOX_KEY,
        "KRAKEN_API_SECRET": SANDBOX_SECRET,
        "KRAKENBOT_MODE": mode,
        "KRAKENBOT_RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
        "KRAKENBOT_EXCHANGE_URL": url,
        "KRAKENBOT_EXCHANGE_CLOCK_SPEED": f"{speed:g}",
        "KRAKENBOT_STATE_DIRECTORY": str(folder),
        "KRAKENBOT_LOG_LEVEL": "error",
    }


def cold_start(folder: Path) -> None:
    """Print process time and wall time of one decision against one bare fetch, in turn."""
    from krakenbot.simulated import api as server

    sandbox = server.Sandbox("random:1")
    ours, bare = [], []
    run = [sys.executable, "-m", "krakenbot", "run", "--once"]
    for number in range(21):
        state = folder / f"cold{number}"
        began = time.perf_counter()
        subprocess.run(run, env=environment(state, sandbox.url, 1.0, "paper"), check=True)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", BARE, f"{sandbox.url}/0/public/OHLC?pair=XBTUSD"], check=True
        )
        bare.append(time.perf_counter() - began)
    sandbox.close()
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    print(
        f"cold start: {median(ours):.0f} ms to the first decision, bare fetch "
        f"{median(bare):.0f} ms, ratio {ratios[len(ratios) // 2]:.2f} (median of 21 pairs)"
    )


def median(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2] * 1000


def memory(folder: Path) -> None:
    """Print the resident memory of a live bot early and after a thousand ticks."""
    from krakenbot.simulated import api as server

    sandbox = server.Sandbox("random:1", SPEED)
    bot = subprocess.Popen(
        [sys.executable, "-m", "krakenbot", "run", "--live"],
        env=environment(folder / "memory", sandbox.url, SPEED, "live"),
    )
    marks = []
    for ticks in (100, TICKS // 2, TICKS):
        while sandbox.api.requests["OHLC"] < ticks and bot.poll() is None:
            time.sleep(0.05)
        status = Path(f"/proc/{bot.pid}/status").read_text()
        kib = next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)
        marks.append(f"{kib / 1024:.1f} MiB after {ticks}")
    bot.terminate()
    bot.wait()
    sandbox.close()
    print("resident memory:", ", ".join(marks), "ticks")


def https(folder: Path) -> None:
    """Print the CPU of a tick with three signed and public requests over TLS."""
    if not shutil.which("openssl"):
        print("https: skipped, there is no openssl program")
        return
    from krakenbot.simulated import api as server

    key, certificate, bundle = (folder / name for name in ("key.pem", "cert.pem", "all.pem"))
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ],
        check=True,
        capture_output=True,
    )
    system = Path(ssl.get_default_verify_paths().openssl_cafile)
    roots = system if system.exists() else Path("/etc/ssl/certs/ca-certificates.crt")
    bundle.write_text((roots.read_text() if roots.exists() else "") + certificate.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    sandbox = server.Sandbox("random:1", SPEED)
    front = sandbox._front
    front.socket = context.wrap_socket(front.socket, server_side=True)
    url = sandbox.url.replace("http://127.0.0.1", "https://localhost")
    values = environment(folder / "https", url, SPEED, "live") | {"SSL_CERT_FILE": str(bundle)}
    ours = json.loads(
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.one_bot", "300"],
            env=values,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, f"{url}/0/public/OHLC?pair=XBTUSD", "40"],
        env=values,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    sandbox.close()
    print(
        f"https: {ours['idle_ms']:.2f} ms CPU a tick without an order "
        f"({ours['requests']:.1f} requests), all ticks {ours['all_ms']:.2f} ms; plain urlopen "
        f"{float(plain):.2f} ms a call; ratio to a call {ours['idle_ms'] / float(plain):.3f}, all "
        f"ticks {ours['all_ms'] / float(plain):.3f}"
    )


if __name__ == "__main__":
    main()
