"""The simulated network: addresses, sockets, and what can happen to one HTTP request.

The shipped transport runs on it, with urllib and http.client above these sockets.
"""

import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from krakenbot.simulated.wire import Answer

if TYPE_CHECKING:
    from tests.simulation.world import World

DEAD = ("192.0.2.1", "192.0.2.2")  # They swallow every packet.
ALIVE, HOST = "127.0.0.1", "localhost"
# What can happen to a connection, besides what krakenbot.simulated.faults does to a request.
CONNECTING = {
    "refused": "the connection is refused",
    "unreachable": "there is no route",
    "silent": "nobody answers the connection",
    "no-name": "the name is not found",
    "slow-name": "the name is found after long",
    "dead-addresses": "two addresses swallow packets before one that answers",
}
ANSWERING = {
    "half": "the connection ends in the middle of the answer",
    "half-reset": "the connection is reset in the middle of the answer",
    "drip": "the answer comes a byte a second",
    "slow-head": "the head of the answer comes a byte a second",
    "interim": "an interim answer comes first",
    "garbage": "bytes follow after the answer",
    "too-long": "the answer says that it is longer than it is",
    "too-short": "the answer says that it is shorter than it is",
    "chunked": "the answer comes in chunks",
    "broken-chunk": "the answer comes in chunks, one of them broken",
    "no-http": "what comes is not HTTP",
    "gzip": "the answer says that it is compressed",
    "redirect": "the answer sends the reader elsewhere",
    "never": "no byte of the answer comes, nor does the connection end",
}
WIRE = CONNECTING | ANSWERING
Event = tuple[float, bytes | OSError]  # What a socket reads: seconds after the one before, what.
_ON_TIME = b"HTTP/1.1 200 OK\r\n"


class Network:
    """All names, addresses and sockets of the machine."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self._lines: WeakKeyDictionary[socket.socket, _Line] = WeakKeyDictionary()

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Return what takes the place of the methods of `socket.socket`."""
        return {
            "connect": self._connect,
            "sendall": self._sendall,
            "send": self._sendall,
            "recv_into": self._recv_into,
            "recv": self._recv,
            "setsockopt": lambda *_: None,
            "shutdown": lambda *_: None,
        }

    def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        world = self.world
        world.expect(name.lower() == HOST, "no foreign host", f"{name} is looked up")
        word = world.trouble(("no-name", "slow-name", "dead-addresses"))
        if word == "slow-name":
            world.pass_time(1.0 + world.spoil(20))
        if word == "no-name":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        stream = socket.SOCK_STREAM
        dead = DEAD if word == "dead-addresses" else DEAD[: world.setting.dead_first]
        return [(socket.AF_INET, stream, 6, "", (place, port)) for place in (*dead, ALIVE)]

    def _connect(self, sock: socket.socket, address: Any) -> None:
        world, timeout = self.world, sock.gettimeout()
        self._lines[sock] = _Line()
        world.expect(address[0] in (*DEAD, ALIVE), "no foreign host", f"connecting to {address}")
        word = world.trouble(("refused", "unreachable", "silent"))
        if word == "silent" or address[0] in DEAD:
            world.pass_time(timeout if timeout is not None else 7200.0)
            raise TimeoutError("timed out")
        world.pass_time(world.way_s())
        if word == "refused":
            raise ConnectionRefusedError(111, "Connection refused")
        if word == "unreachable":
            raise OSError(101, "Network is unreachable")

    def _sendall(self, sock: socket.socket, data: Any, flags: int = 0) -> None:
        world, line = self.world, self._lines[sock]
        line.sent += data
        head, end, body = bytes(line.sent).partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v for n, _, v in (text.partition(": ") for text in lines)}
        if len(body) < int(headers.get("content-length", "0")):
            return
        world.expect(not line.asked, "one request a connection", first)
        line.asked = True
        method, target, _ = first.split(" ")
        line.coming.append((world.way_s(), b""))
        try:
            answer = world.respond(method, target, headers, body)
        except TimeoutError:
            line.coming.append((7200.0, b""))
        except OSError as error:
            line.coming.append((0.0, error))
        else:
            line.coming.extend(_events(world.trouble(ANSWERING), answer, world.spoil))

    def _recv_into(self, sock: socket.socket, buffer: Any, nbytes: int = 0, _: int = 0) -> int:
        world, line, timeout = self.world, self._lines[sock], sock.gettimeout()
        world.touch("answer")
        left = 7200.0 if timeout is None else timeout
        while not line.here and line.coming:
            after_s, what = line.coming[0]
            if after_s > left:
                world.pass_time(left)
                line.coming[0] = after_s - left, what
                raise TimeoutError("timed out")
            world.pass_time(after_s)
            left -= after_s
            line.coming.popleft()
            if isinstance(what, OSError):
                raise what
            line.here = what
        count = min(len(line.here), nbytes or len(buffer))
        buffer[:count] = line.here[:count]
        line.here = line.here[count:]
        return count

    def _recv(self, sock: socket.socket, most: int, _: int = 0) -> bytes:
        buffer = bytearray(most)
        return bytes(buffer[: self._recv_into(sock, buffer)])


class _Line:
    """One TCP connection. What it will read is decided when its request is complete."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.asked = False
        self.coming: deque[Event] = deque()
        self.here = b""


def _events(word: str, answer: Answer, spoil: Callable[[int], int]) -> list[Event]:
    """Return what is read when this happens to the answer; `spoil` chooses a place in it."""
    body, more = answer.body, ""
    length = len(body) + {"too-long": 100, "too-short": -1 - spoil(20)}.get(word, 0)
    if word == "gzip":
        more = "Content-Encoding: gzip\r\n"
    sizes = f"Content-Length: {max(length, 0)}\r\n"
    if "chunk" in word:
        sizes = "Transfer-Encoding: chunked\r\n"
        end = b"0\r\n\r\n" if word == "chunked" else b"zz\r\n"
        body = b"%x\r\n%b\r\n%b" % (len(body), body, end)
    line = f"HTTP/1.1 {answer.status} OK\r\n"
    if word == "redirect":
        line, more = "HTTP/1.1 307 Redirect\r\n", "Location: https://evil.example/0/private/x\r\n"
    head = f"{line}Content-Type: {answer.content_type}\r\n{sizes}{more}Connection: close\r\n\r\n"
    whole = head.encode() + body
    match word:
        case "half":
            return [(0.0, whole[: spoil(len(whole))])]
        case "half-reset":
            reset = ConnectionResetError(104, "Connection reset by peer")
            return [(0.0, whole[: spoil(len(whole))]), (0.1, reset)]
        case "drip":
            return [(0.0, head.encode()), *((1.0, body[n : n + 1]) for n in range(len(body)))]
        case "slow-head":
            return [(1.0, whole[n : n + 1]) for n in range(len(whole))]
        case "interim":
            return [(0.0, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + whole)]
        case "garbage":
            return [(0.0, whole + _ON_TIME + b"Content-Length: 2\r\n\r\n{}")]
        case "no-http":
            return [(0.0, b"\x15\x03\x01\x00\x02\x02\x16" * 3)]
        case "never":
            return [(7200.0, b"")]
    return [(0.0, whole)]
