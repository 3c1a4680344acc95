"""The sandbox and its HTTP server: only on loopback, with a thread for each connection.

Requests with a foreign Host or with an Origin are refused, so no web page can use a sandbox.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from krakenbot.model import Secret
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.faults import Faults
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.wire import Answer

IDLE_S = 30.0
HANG_S = 600.0  # How long a connection stays open if no answer will ever come.
BODY_MAX = 1 << 20
_LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?", re.IGNORECASE)


class Server(ThreadingTCPServer):
    """Passes requests to `respond`, and listens at `url` as soon as it is made.

    `respond` raises ConnectionError to hang up without an answer, TimeoutError to never answer.
    """

    daemon_threads = allow_reuse_address = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, respond: Callable[[str, str, Mapping[str, str], bytes], Answer], port: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.respond = respond
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()


class Sandbox(Server):
    """A sandbox that listens on loopback until `close`, or until the process ends."""

    def __init__(
        self,
        spec: str = "random:1",
        speed: float = 1.0,
        *,
        port: int = 0,
        key: str = SANDBOX_KEY,
        secret: str = SANDBOX_SECRET,
        fee_rate: Decimal = FEE_RATE_ASSUMED,
        tier: str = "sandbox",
        faults: str = "",
    ) -> None:
        """Raises ValueError for a wrong feed or fault spec, OSError if the port cannot be bound."""
        feed, began = Feed(spec, time.time()), time.monotonic()
        self.api = SandboxApi(
            feed,
            lambda: feed.start + (time.monotonic() - began) * speed,
            key,
            Secret(secret),
            fee_rate=fee_rate,
            tier=tier,
        )
        # A request may take half a real second to arrive.
        self.api.private_api.slack_s = max(speed - 1, 0.0) / 2
        injector = Faults(self.api, faults, lambda seconds: time.sleep(seconds / speed))
        super().__init__(injector.respond, port)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = default_request_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        headers = {name.lower(): value.strip() for name, value in self.headers.items()}
        length = headers.get("content-length", "0")
        is_foreign = (
            not _LOCAL.fullmatch(headers.get("host", "localhost"))
            or "origin" in headers
            or headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        )
        # Programs differ in which copy of a repeated header they take.
        is_odd = len(headers) != len(self.headers) or "transfer-encoding" in headers
        if is_odd or not re.fullmatch("[0-9]{1,9}", length):
            return self.send_error(400)
        if is_foreign:
            return self.send_error(403)
        if int(length) > BODY_MAX:
            return self.send_error(413)
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise ConnectionError("the client hung up within a body")
        try:
            answer = self.server.respond(self.command, self.path, headers, body)
        except TimeoutError:
            self.connection.settimeout(HANG_S)
            self.rfile.read(1)  # Until the client hangs up.
            raise
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        return None

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *values: object) -> None:
        pass
