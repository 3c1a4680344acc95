"""The sandbox's door: HTTP on loopback, one thread a connection, kept alive.

Foreign Host and Origin headers are refused, so that no web page can reach a sandbox. Whoever stays
silent loses the connection; when there are too many, the one that was quiet the longest goes.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What goes back to the client, before HTTP's own headers."""

    status: int
    content_type: str
    body: bytes


IDLE_S = 30.0
CONNECTIONS_MAX = 200
BODY_MAX = 1 << 20
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")

Respond = Callable[[str, str, Mapping[str, str], bytes], Answer]


class Front(ThreadingTCPServer):
    """Hands requests to `respond`, which may raise ConnectionError to hang up unanswered."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, respond: Respond, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.respond = respond
        self.port = int(self.server_address[1])
        self._heard: dict[Any, None] = {}  # The connections, the quietest first.
        self._lock = threading.Lock()

    def hear(self, connection: Any) -> None:
        """Note a sign of life, and hang up on the quietest connection if there are too many."""
        with self._lock:
            self._heard.pop(connection, None)
            self._heard[connection] = None
            if len(self._heard) > CONNECTIONS_MAX:
                quiet = next(iter(self._heard))
                del self._heard[quiet]
                with contextlib.suppress(OSError):
                    quiet.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.hear(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._heard.pop(request, None)
        super().shutdown_request(request)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True
    server: Front

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        headers = {name.lower(): value.strip() for name, value in self.headers.items()}
        length = headers.get("content-length", "0")
        # A repeated header would be read differently by others on the way.
        if len(headers) != len(self.headers) or "transfer-encoding" in headers:
            return self.send_error(400)
        if not _is_local(headers):
            return self.send_error(403)
        if not (length.isascii() and length.isdecimal()):
            return self.send_error(400)
        if len(length) > 9 or int(length) > BODY_MAX:
            return self.send_error(413)
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise ConnectionError("hung up in the middle of a body")
        self.server.hear(self.request)
        return self._send(self.server.respond(self.command, self.path, headers, body))

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        self.close_connection = True
        self._send(Answer(code, "text/plain", (message or self.responses[code][0]).encode()))
        # Closing over unread bytes would reset the connection before the answer is read.
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1)
        self.rfile.read(BODY_MAX)

    def _send(self, answer: Answer) -> None:
        reason = self.responses[answer.status][0] if answer.status in self.responses else "Unknown"
        head = (
            f"HTTP/1.1 {answer.status} {reason}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            f"Connection: {'close' if self.close_connection else 'keep-alive'}\r\n\r\n"
        )
        self.wfile.write(head.encode() + answer.body)

    def log_message(self, format: str, *values: object) -> None:
        pass


def _is_local(headers: Mapping[str, str]) -> bool:
    host = headers.get("host", "localhost")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return (
        name.lower() in _LOCAL_NAMES
        and "origin" not in headers
        and headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    )
