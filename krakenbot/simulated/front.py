"""The sandbox's door: HTTP/1.1 on loopback, one thread a connection, kept alive.

Small on purpose: only what clients of a REST API send. Slow or silent ones lose their connection;
foreign Host and Origin headers are refused, so that no web page can reach a sandbox.
"""

import socket
import socketserver
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Answer(NamedTuple):
    """What goes back to the client, before HTTP's own headers."""

    status: int
    content_type: str
    body: bytes


IDLE_S = 30.0
BODY_MAX = 1 << 20
HEADERS_MAX = 100
LINE_MAX = 16384
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 413: "Content Too Large"}

Respond = Callable[[str, str, Mapping[str, str], bytes], Answer]


class Front(socketserver.ThreadingTCPServer):
    """Hands requests to `respond`, which may raise ConnectionError to hang up unanswered."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, respond: Respond, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.respond = respond

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Connection(socketserver.StreamRequestHandler):
    timeout = IDLE_S
    disable_nagle_algorithm = True
    server: Front

    def handle(self) -> None:
        try:
            while self._serve_one():
                pass
        except OSError:
            return  # Hung up, or silent for too long.

    def _serve_one(self) -> bool:
        """Answer one request; return whether the connection stays open."""
        line = self.rfile.readline(LINE_MAX)
        words = line.decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return self._refuse(400) if line.strip() else False
        method, target, version = words
        headers = self._headers()
        if headers is None or "transfer-encoding" in headers:
            return self._refuse(400)
        if not _is_local(headers):
            return self._refuse(403)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            return self._refuse(400)
        if len(length) > 9 or int(length) > BODY_MAX:
            return self._refuse(413)
        if headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(int(length)) if length != "0" else b""
        if len(body) != int(length):
            return False
        wish = headers.get("connection", "").lower()
        keep = wish != "close" if version != "HTTP/1.0" else wish == "keep-alive"
        return self._send(self.server.respond(method, target, headers, body), keep)

    def _headers(self) -> dict[str, str] | None:
        headers: dict[str, str] = {}
        for _ in range(HEADERS_MAX):
            line = self.rfile.readline(LINE_MAX)
            if line in (b"\r\n", b"\n"):
                return headers
            name, colon, value = line.decode("latin-1").partition(":")
            name = name.lower()
            # A repeated header would be read differently by others on the way.
            if not colon or not line.endswith(b"\n") or name in headers or name != name.strip():
                return None
            headers[name] = value.strip()
        return None

    def _refuse(self, status: int) -> bool:
        self._send(Answer(status, "text/plain", _REASONS[status].encode()), False)
        # Closing over unread bytes would reset the connection before the answer is read.
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1)
        self.rfile.read(BODY_MAX)
        return False

    def _send(self, answer: Answer, keep: bool) -> bool:
        head = (
            f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Unknown')}\r\n"
            f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self.wfile.write(head.encode("latin-1") + answer.body)
        return keep


def _is_local(headers: Mapping[str, str]) -> bool:
    host = headers.get("host", "localhost")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return (
        name.lower() in _LOCAL_NAMES
        and "origin" not in headers
        and headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    )
