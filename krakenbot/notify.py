"""Outgoing messages: notices to a person, a heartbeat, and the bot's state for systemd.

Nothing here can delay or end a tick: a separate thread sends from a short queue. A message is
dropped when the queue is full or sending fails; the log says so.
"""

import json
import os
import queue
import socket
import threading
from contextlib import suppress

from krakenbot import log
from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError
from krakenbot.config import Config
from krakenbot.errors import UnansweredError
from krakenbot.kraken.client import USER_AGENT
from krakenbot.kraken.transport import UrllibTransport
from krakenbot.log import clean, joined
from krakenbot.model import Secret

NOTICED = ("start", "fill", "refusal", "warning", "halt", "recovery", "difference", "stop")
LIMIT_S = 5.0  # For one whole request.
WAITING_MAX = 20
END_S = 6.0  # How long the end of the program waits for the last notices.


class Notifier:
    """Receives the bot's events. As a context manager it also reports how the program ended."""

    def __init__(self, config: Config, transport: UrllibTransport | None = None) -> None:
        self._notify = config.notify
        self._name = f"krakenbot {config.mode} {config.pair}"
        self._transport = transport or UrllibTransport(LIMIT_S, config.exchange.proxy)
        self._last_text = ""
        self._waiting: queue.Queue[tuple[Secret, str] | None] = queue.Queue(WAITING_MAX)
        self._sender = threading.Thread(target=self._send_all, name="notify", daemon=True)

    def __call__(self, event: Event) -> None:
        """Queue the notice or heartbeat that an event calls for, and tell systemd; never waits."""
        if event.kind == "start":
            sd_notify("READY=1")
        elif event.kind == "decision":
            held, target = event.values.get("held", "?"), event.values.get("target", "?")
            sd_notify(f"STATUS=holds {held}, target {target}: {clean(event.text)}")
            self._put(self._notify.heartbeat_url)
        elif event.kind in ("halt", "stop"):
            sd_notify(f"STOPPING=1\nSTATUS={event.kind}: {clean(event.text)}")
        if event.kind in NOTICED:
            self._last_text = event.text
            self._put(self._notify.url, f"{self._name}: {event.kind}: {clean(event.text)}")
        self.alive()

    def alive(self) -> None:
        """Tell systemd's watchdog that the bot is alive, after each tick and each bounded wait.

        The watchdog is for a call that never returns. Waiting for the exchange counts as alive.
        """
        sd_notify("WATCHDOG=1")

    def __enter__(self) -> "Notifier":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        is_asked_for = error is None or isinstance(error, StopRequestedError | KeyboardInterrupt)
        if not is_asked_for and str(error) != self._last_text:
            is_ours = hasattr(error, "exit_code")  # Else it is a defect.
            words = str(error) if is_ours else f"{type(error).__name__}: {error}"
            self._put(self._notify.url, f"{self._name}: ended: {clean(joined(words))}")
        sd_notify("STOPPING=1")
        if self._sender.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=END_S)
            self._sender.join(END_S)

    def _put(self, url: Secret | None, text: str = "") -> None:
        if url is None:
            return
        try:
            if self._sender.ident is None:
                self._sender.start()
            self._waiting.put_nowait((url, text))
        except (queue.Full, RuntimeError) as error:  # RuntimeError: no thread can be started.
            log.warning("notice dropped reason=%r text=%s", error, text or "heartbeat")

    def _send_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                self._send(*item)
            except Exception as error:  # Whatever it is, the next notice must still go out.
                log.warning("notice dropped reason=%s text=%s", error, item[1] or "heartbeat")

    def _send(self, url: Secret, text: str) -> None:
        """Send a notice or, if the text is empty, the heartbeat."""
        kind, body = "text/plain; charset=utf-8", text
        if self._notify.body is not None:
            body = self._notify.body.reveal().replace("$text", json.dumps(text)[1:-1])
            kind = "application/json" if body.lstrip()[:1] in ("{", "[") else kind
        headers = {"User-Agent": USER_AGENT, "Content-Type": kind}
        method, data = ("POST", body.encode(errors="replace")) if text else ("GET", None)
        status, _ = self._transport.send(method, url.reveal(), headers, data)
        if status >= 300:
            raise UnansweredError(f"HTTP {status}")


def sd_notify(text: str) -> None:
    """Send the bot's state to systemd if it listens, see sd_notify(3); a failure is only logged."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), address.replace("@", "\0", 1))
    except OSError as error:
        log.debug("systemd did not get %s: %s", text, error)
