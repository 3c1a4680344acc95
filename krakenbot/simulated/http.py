"""The sandbox's HTTP server: loopback only, one thread per connection.

Requests with a foreign Host or any Origin header are refused, so no web page can reach a sandbox.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """A response, without HTTP's own headers."""

    status: int
    content_type: str
    body: bytes


IDLE_S = 30.0
BODY_MAX = 1 << 20
_LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?", re.IGNORECASE)

Respond = Callable[[str, str, Mapping[str, str], bytes], Answer]


class Server(ThreadingTCPServer):
    """Passes requests to `respond`, which may raise ConnectionError to hang up unanswered."""

    daemon_threads = allow_reuse_address = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, respond: Respond, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.respond = respond
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


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
        # Programs differ in which copy of a repeated header they believe.
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
        answer = self.server.respond(self.command, self.path, headers, body)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        return None

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *values: object) -> None:
        pass
