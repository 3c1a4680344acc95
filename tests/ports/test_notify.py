import json
import os
import socket
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError
from krakenbot.config import Config
from krakenbot.config_reader import load
from krakenbot.errors import ConfigError, StopError, UnansweredError
from krakenbot.notify import WAITING_MAX, Notifier, sd_notify
from tests.folders import own_folder
from tests.logs import forget_secrets, logged, silence
from tests.markets import sandbox_for, short_histories
from tests.ports.test_transport import Server, answer, says

URL = "http://127.0.0.1:9/hook/a-very-secret-token"


def setUpModule() -> None:
    short_histories()


def config(**notify: str) -> Config:
    environ = {f"KRAKENBOT_NOTIFY_{key.upper()}": value for key, value in notify.items()}
    return load("/dev/null", {"HOME": "/x", **environ}, Path("/"))


class Wire:
    """A transport that keeps what is sent, and can be slow or broken."""

    def __init__(self, status: int = 200, error: Exception | None = None) -> None:
        self.sent: list[tuple[str, str, str, str]] = []
        self.status, self.error = status, error
        self.open = threading.Event()
        self.open.set()

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        self.open.wait(10)
        self.sent.append((method, url, headers["Content-Type"], (body or b"").decode()))
        if self.error is not None:
            raise self.error
        return self.status, b""


class Quiet(unittest.TestCase):
    def setUp(self) -> None:
        self.addCleanup(forget_secrets)
        silence(self)


class TestNotices(Quiet):
    def told(self, settings: Config, *events: Event, wire: Wire | None = None) -> list[str]:
        wire = wire or Wire()
        with Notifier(settings, wire) as notifier:
            for event in events:
                notifier(event)
        return [body for _, _, _, body in wire.sent]

    def test_what_a_person_wants_to_know_is_posted_and_nothing_else(self) -> None:
        wanted = ["start", "fill", "refusal", "warning", "halt", "recovery", "difference", "stop"]
        kinds = (*wanted, "waiting", "decision", "objection", "order")
        told = self.told(config(url=URL), *(Event(kind, "text") for kind in kinds))
        self.assertEqual([f"krakenbot paper XBTUSD: {kind}: text" for kind in wanted], told)

    def test_a_template_gets_the_text_escaped_as_json(self) -> None:
        wire = Wire()
        event = Event("refusal", 'a "quoted" \\ text\nwith $text')
        self.told(config(url=URL, body='{"content": "$text", "x": 1}'), event, wire=wire)
        ((method, url, kind, body),) = wire.sent
        self.assertEqual(("POST", URL, "application/json"), (method, url, kind))
        self.assertIn('a "quoted" \\ text\\nwith $text', json.loads(body)["content"])

    def test_without_a_template_the_text_goes_as_it_is(self) -> None:
        wire = Wire()
        self.told(config(url=URL), Event("fill", "buy 1 at 2 \u20ac"), wire=wire)
        self.assertEqual("text/plain; charset=utf-8", wire.sent[0][2])
        self.assertTrue(wire.sent[0][3].endswith("buy 1 at 2 \u20ac"))

    def test_each_decided_candle_calls_the_heartbeat(self) -> None:
        wire = Wire()
        beat = URL.replace("hook", "beat")
        self.told(config(heartbeat_url=beat), Event("start", ""), Event("decision", ""), wire=wire)
        self.assertEqual([("GET", beat)], [sent[:2] for sent in wire.sent])

    def test_without_addresses_nothing_is_sent_and_no_thread_runs(self) -> None:
        before = threading.active_count()
        wire = Wire()
        with Notifier(config(), wire) as notifier:
            notifier(Event("fill", "x"))
            self.assertLessEqual(threading.active_count(), before)
        self.assertEqual([], wire.sent)

    def test_a_slow_receiver_delays_nothing_and_too_many_notices_are_dropped(self) -> None:
        wire = Wire()
        wire.open.clear()
        with logged() as out, Notifier(config(url=URL), wire) as notifier:
            began = time.monotonic()
            for number in range(WAITING_MAX + 5):
                notifier(Event("fill", str(number)))
            self.assertLess(time.monotonic() - began, 1)
            wire.open.set()
        self.assertLessEqual(len(wire.sent), WAITING_MAX + 1)
        self.assertIn("dropped", out.getvalue())

    def test_a_broken_receiver_is_said_without_its_address_and_the_next_is_sent(self) -> None:
        errors = UnansweredError("no"), ValueError(URL)
        for wire in (Wire(500), Wire(302), *(Wire(error=error) for error in errors)):
            with self.subTest(wire.error or wire.status), logged() as out:
                told = self.told(config(url=URL), Event("fill", "1"), Event("fill", "2"), wire=wire)
                self.assertEqual(2, len(told))
            shown = out.getvalue()
            self.assertEqual(2, shown.count("notice dropped"))
            self.assertNotIn("a-very-secret-token", shown)

    def test_how_the_program_ended_is_told_once(self) -> None:
        for error, events, want in (
            (StopError("both numbers"), [Event("halt", "both numbers")], 1),
            (StopError("key refused", 77), [], 1),
            (ZeroDivisionError("a defect"), [], 1),
            (StopRequestedError(), [Event("stop", "stopped as asked")], 1),
            (KeyboardInterrupt(), [], 0),
        ):
            with self.subTest(error=error):
                wire = Wire()
                with self.assertRaises(type(error)), Notifier(config(url=URL), wire) as notifier:
                    for event in events:
                        notifier(event)
                    raise error
                self.assertEqual(want, len(wire.sent))
                if isinstance(error, StopError):
                    self.assertNotIn("StopError", wire.sent[0][3])

    def test_the_lines_of_an_error_are_told_one_after_the_other(self) -> None:
        wire = Wire()
        with self.assertRaises(ConfigError), Notifier(config(url=URL), wire):
            raise ConfigError("not trading: too small\nNothing is held")
        told = "krakenbot paper XBTUSD: ended: not trading: too small; Nothing is held"
        self.assertEqual(told, wire.sent[0][3])

    def test_over_a_real_connection_no_redirect_is_followed(self) -> None:
        web = Server(says(answer(b"", b"Location: /elsewhere", status=b"307 Moved")))
        self.addCleanup(web.close)
        with Notifier(config(url=f"http://127.0.0.1:{web.port}/topic")) as notifier:
            notifier(Event("fill", "sold"))
        (request,) = web.requests
        self.assertTrue(request.startswith(b"POST /topic "))
        self.assertTrue(request.endswith(b"\r\n\r\nkrakenbot paper XBTUSD: fill: sold"))


class TestSystemd(Quiet):
    def setUp(self) -> None:
        super().setUp()
        self.address = f"{own_folder(self)}/notify"
        self.socket = self.listener(self.address)

    def listener(self, address: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listener.close)
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(0)
        return listener

    def heard(self, *events: Event) -> list[str]:
        with mock.patch.dict(os.environ, {"NOTIFY_SOCKET": self.address}):
            notifier = Notifier(config(), Wire())
            for event in events:
                notifier(event)
        return self.read(self.socket)

    def read(self, listener: socket.socket) -> list[str]:
        texts = []
        while True:
            try:
                texts.append(listener.recv(4096).decode())
            except BlockingIOError:
                return texts

    def test_events_are_told_in_one_line_each_and_silence_is_no_sign_of_life(self) -> None:
        values = {"held": "-0.05", "target": "-1"}
        decision = Event("decision", "short: on target\nREADY=1", values)
        status = "STATUS=holds -0.05, target -1: short: on target\\nREADY=1"
        self.assertEqual([], self.heard())
        for event, want in (
            (Event("start", "trading"), ["READY=1"]),
            (Event("waiting", "no answer"), []),
            (decision, [status]),
            (Event("halt", "why"), ["STOPPING=1\nSTATUS=halt: why"]),
            (Event("stop", "why"), ["STOPPING=1\nSTATUS=stop: why"]),
        ):
            self.assertEqual([*want, "WATCHDOG=1"], self.heard(event))

    def test_every_way_out_says_stopping(self) -> None:
        with mock.patch.dict(os.environ, {"NOTIFY_SOCKET": self.address}), Notifier(config()):
            pass
        self.assertEqual(["STOPPING=1"], self.read(self.socket))

    def test_a_run_says_when_it_is_ready_what_it_decided_and_that_it_ends(self) -> None:
        environ = {
            "NOTIFY_SOCKET": self.address,
            "KRAKENBOT_EXCHANGE_URL": sandbox_for(self).url,
            "STATE_DIRECTORY": str(Path(self.address).parent),
        }
        command = [sys.executable, "-m", "krakenbot", "run", "--once"]
        root = Path(__file__).parent.parent.parent
        subprocess.run(command, env=environ, check=True, cwd=root, capture_output=True, timeout=60)
        told = [text for text in self.read(self.socket) if text != "WATCHDOG=1"]
        self.assertEqual(["READY=1", "STATUS", "STOPPING=1"], [told[0], told[1][:6], told[-1]])

    def test_an_abstract_socket_is_spoken_to_as_well(self) -> None:
        address = f"@krakenbot-test-{os.getpid()}"
        listener = self.listener(address)
        with mock.patch.dict(os.environ, {"NOTIFY_SOCKET": address}):
            sd_notify("READY=1")
        self.assertEqual(["READY=1"], self.read(listener))

    def test_nobody_listening_or_a_full_or_odd_socket_costs_nothing(self) -> None:
        for address in ("", "/nowhere/at/all", "vsock:2:3", "@nobody", "/" + "x" * 300):
            with mock.patch.dict(os.environ, {"NOTIFY_SOCKET": address}):
                sd_notify("READY=1")
        began = time.monotonic()
        with mock.patch.dict(os.environ, {"NOTIFY_SOCKET": self.address}):
            for _ in range(1000):
                sd_notify("WATCHDOG=1")
        self.assertLess(time.monotonic() - began, 5)
