"""What an attacker on the wire, beside the process or at the exchange's end must not get."""

import contextlib
import copy
import json
import os
import pickle
import shutil
import ssl
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from krakenbot.clock import Clock
from krakenbot.commands import status
from krakenbot.config import Config
from krakenbot.config_reader import load
from krakenbot.credentials import load_credentials
from krakenbot.errors import Cause, ConfigError, LaterError, UnansweredError
from krakenbot.journal_file import open_journal
from krakenbot.kraken.client import Client
from krakenbot.kraken.signing import decode_secret
from krakenbot.kraken.transport import (
    ANSWER_BYTES_MAX,
    UrllibTransport,
    tls_context,
    warn_of_unused_proxies,
)
from krakenbot.lock import Lock
from krakenbot.model import Secret
from krakenbot.simulated import http as sandboxes
from tests.clients import key_files, signing
from tests.commands.called import call
from tests.folders import own_folder
from tests.logs import forget_secrets, logged
from tests.markets import sandbox_for, short_histories
from tests.ports.test_transport import Serve, Server, answer, says

ROOT = Path(__file__).parent.parent.parent
KEY, SECRET = "the-very-secret-key/with+signs=", "dGhlIHZlcnkgc2VjcmV0IHNlY3JldCBvZiBhIGtleQ=="


def setUpModule() -> None:
    short_histories()


class Safe(unittest.TestCase):
    def setUp(self) -> None:
        warnings.simplefilter("ignore", ResourceWarning)
        self.folder = own_folder(self)
        self.addCleanup(forget_secrets)

    def serve(self, serve: Serve, context: ssl.SSLContext | None = None) -> Server:
        server = Server(serve, context)
        self.addCleanup(server.close)
        return server

    def signed(self, url: str) -> Client:
        return signing(UrllibTransport(5), url, Clock(), key=KEY, secret=SECRET)


class TestWire(Safe):
    def test_no_redirect_carries_the_key_to_another_host(self) -> None:
        other = self.serve(says(answer()))
        place = f"Location: http://127.0.0.1:{other.port}/0/x".encode()
        for code in (301, 302, 303, 307, 308):
            moved = self.serve(says(answer(b"", place, status=b"%d Moved" % code)))
            calls = self.signed(f"http://127.0.0.1:{moved.port}")
            for ask, method in (
                (calls.private, "Balance"),
                (calls.private, "AddOrder"),
                (calls.public, "Time"),
            ):
                with self.subTest(code), self.assertRaises(UnansweredError):
                    ask(method)
            self.assertEqual(([], 3), (other.requests, len(moved.requests)))

    def test_proxies_of_the_environment_are_not_used_and_that_is_said_once(self) -> None:
        proxy, server = self.serve(says(answer())), self.serve(says(answer()))
        names = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY")
        warn_of_unused_proxies.cache_clear()
        self.addCleanup(warn_of_unused_proxies.cache_clear)
        with (
            mock.patch.dict(os.environ, dict.fromkeys(names, f"http://127.0.0.1:{proxy.port}")),
            logged() as out,
        ):
            here = f"http://127.0.0.1:{server.port}/"
            for url in (here, here, "https://127.0.0.1:1/"):
                with contextlib.suppress(LaterError):
                    UrllibTransport(5).send("GET", url, {}, None)
        self.assertEqual((0, 2), (len(proxy.requests), len(server.requests)))
        self.assertEqual(1, out.getvalue().count("HTTPS_PROXY"))

    def test_an_answer_of_a_hundred_megabytes_costs_little_memory_and_time(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
        port = self.serve(says(head, *[b"x" * 1_000_000] * 100)).port
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        began = time.monotonic()
        with self.assertRaises(UnansweredError):
            UrllibTransport(5).send("GET", f"http://127.0.0.1:{port}/", {}, None)
        self.assertLess(time.monotonic() - began, 5)
        self.assertLess(tracemalloc.get_traced_memory()[1], 4 * ANSWER_BYTES_MAX)


@unittest.skipIf(shutil.which("openssl") is None, "no openssl to make certificates with")
class TestTls(Safe):
    def openssl(self, words: str) -> None:
        command = ["openssl", *words.split()]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def certificate(self, name: str, host: str, days: int = 2, *, signed: bool = True) -> None:
        new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        new += f" -keyout {name}.key -subj /CN={host}"
        if not signed:
            use = "keyUsage=critical,keyCertSign,digitalSignature"
            new += f" -x509 -addext subjectAltName=DNS:{host} -addext {use}"
            self.openssl(f"{new} -days {days} -out {name}.pem")
            return
        names = f"subjectAltName=DNS:{host}\nauthorityKeyIdentifier=keyid\n"
        (self.folder / "names").write_text(names)
        self.openssl(f"{new} -out request")
        root = "-CA root.pem -CAkey root.key -CAcreateserial"
        self.openssl(f"x509 -req -in request {root} -days {days} -extfile names -out {name}.pem")

    def ask(self, name: str) -> tuple[int, list[bytes]]:
        """Return the status of a signed-like request to a server with that certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        server = self.serve(says(answer()), context)
        tls_context.cache_clear()
        self.addCleanup(tls_context.cache_clear)
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(self.folder / "root.pem")}):
            url = f"https://localhost:{server.port}/0/private/Balance"
            try:
                done = UrllibTransport(5).send("POST", url, {"API-Key": KEY}, b"x")
                return done[0], server.requests
            except LaterError as error:
                self.assertIs(Cause.UNREACHABLE, error.cause)
                return 0, server.requests

    def test_a_certificate_must_be_of_the_right_name_not_expired_and_signed_by_a_root(self) -> None:
        self.certificate("root", "root", signed=False)
        self.certificate("good", "localhost")
        self.certificate("wrong", "api.kraken.example")
        self.certificate("expired", "localhost", 0)  # It ends the second that it begins.
        self.certificate("own", "localhost", signed=False)
        self.assertEqual(200, self.ask("good")[0])
        for name in ("wrong", "expired", "own"):
            with self.subTest(name):
                self.assertEqual((0, []), self.ask(name))

    def test_the_keys_of_a_session_are_written_nowhere(self) -> None:
        kept = self.folder / "keys"
        tls_context.cache_clear()
        self.addCleanup(tls_context.cache_clear)
        with mock.patch.dict(os.environ, {"SSLKEYLOGFILE": str(kept)}):
            self.assertIsNone(tls_context().keylog_filename)
        self.assertFalse(kept.exists())

    def test_old_versions_of_tls_are_not_spoken(self) -> None:
        context = tls_context()
        self.assertGreaterEqual(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        self.assertTrue(context.check_hostname)
        self.assertEqual(ssl.CERT_REQUIRED, context.verify_mode)


class TestSecrets(Safe):
    def leaks(self, text: str) -> list[str]:
        parts = (KEY, SECRET, KEY[4:20], SECRET[4:20])
        return [part for part in parts if part in text]

    def test_a_secret_shows_in_no_form_of_text(self) -> None:
        secret = Secret(SECRET)
        percent, braces = "%s %r", "{} {!r} {:>9}"
        for text in (
            repr(secret),
            str(secret),
            ascii(secret),
            f"{secret} {secret!r:>99}",
            percent % (secret, [secret]),
            braces.format(secret, {1: secret}, secret),
        ):
            self.assertEqual([], self.leaks(text))
        self.assertFalse(hasattr(secret, "__dict__"))
        for take in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
            with self.assertRaises(TypeError) as caught:
                take(secret)
            self.assertEqual([], self.leaks(str(caught.exception)))
        shown = json.dumps({"a": secret}, default=str)
        self.assertEqual([], self.leaks(shown))

    def test_no_exception_chain_carries_a_secret(self) -> None:
        def chain(error: BaseException | None) -> Iterator[BaseException]:
            while error is not None:
                yield error
                error = error.__cause__ or error.__context__

        files = [self.folder / name for name in ("a", "b")]
        for path in files:
            path.write_text(SECRET)
        environ = {"KRAKEN_API_KEY_FILE": str(files[0]), "KRAKEN_API_SECRET_FILE": str(files[1])}
        port = self.serve(says()).port
        url, order = f"http://127.0.0.1:{port}", {"volume": KEY}  # Nor the body of a request.
        wire, keys = UrllibTransport(5), (f"{KEY}\n{KEY}", f"{KEY}ключ")
        odd, foreign = (signing(wire, url, Clock(), key=key, secret=SECRET) for key in keys)
        for fails in (
            lambda: decode_secret(Secret(SECRET + "*")),
            lambda: load_credentials(Config(), environ=environ),
            lambda: load_credentials(
                Config(), environ={"KRAKEN_API_KEY": KEY + "\xe9", "KRAKEN_API_SECRET": SECRET}
            ),
            lambda: load_credentials(Config(), environ={"KRAKEN_API_SECRET": SECRET}),
            lambda: load("/dev/null", {"HOME": "/x", "KRAKENBOT_API_SECRET": SECRET}, self.folder),
            lambda: odd.private("Balance"),
            lambda: foreign.private("Balance"),
            lambda: self.signed(url).private("AddOrder", order),
        ):
            with self.assertRaises((ConfigError, LaterError, UnansweredError)) as caught:
                fails()
            for error in chain(caught.exception):
                self.assertEqual([], self.leaks(f"{error} {error!r} {error.args}"))
            self.assertEqual([], self.leaks("".join(traceback.format_exception(caught.exception))))

    @unittest.skipUnless(Path("/proc/self/environ").exists(), "no /proc here")
    def test_the_process_list_and_proc_show_no_secret_from_files(self) -> None:
        environ = {
            "HOME": str(self.folder),
            "KRAKENBOT_EXCHANGE_URL": sandbox_for(self).url,
            "KRAKENBOT_LOG_LEVEL": "debug",
            "KRAKENBOT_MODE": "live",
            "KRAKENBOT_RISK_MAX_FEE_PERCENT_PER_DAY": "1000",
        }
        environ |= key_files(self.folder)
        bot = subprocess.Popen(
            [sys.executable, "-m", "krakenbot", "run", "--live"],
            cwd=ROOT,
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        limit = threading.Timer(60, bot.kill)
        limit.start()
        for cleanup in (bot.wait, bot.kill, limit.cancel):
            self.addCleanup(cleanup)
        assert bot.stderr is not None
        shown = ""
        for line in bot.stderr:
            shown += line
            if "decided" in line:
                break
        self.assertIn("decided", shown)
        for name in ("cmdline", "environ", "comm"):
            shown += Path(f"/proc/{bot.pid}/{name}").read_bytes().decode(errors="replace")
        bot.terminate()
        shown += bot.communicate(timeout=20)[1]
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name not in ("KEY", "SECRET"):
                shown += path.read_bytes().decode("latin-1")
        for hidden in (sandboxes.SANDBOX_KEY, sandboxes.SANDBOX_SECRET):
            self.assertNotIn(hidden, shown)


class TestTerminal(Safe):
    EVIL = "\x1b]0;owned\x07\x1b[2J\r\nkrakenbot: all is well\x9b31m\u202e\u2028"

    def assert_tame(self, text: str) -> None:
        self.assertEqual([], [c for c in text if c != "\n" and not c.isprintable()])
        self.assertNotIn("\nkrakenbot: all is well", text)

    def test_errors_and_commands_escape_what_could_drive_a_terminal(self) -> None:
        for error in (LaterError(self.EVIL.replace("\n", " ")), ValueError(self.EVIL)):
            with mock.patch.object(status, "run", side_effect=error):
                self.assert_tame(call("status").err)
        state = self.folder / "state"
        path = state / "paper-api.kraken.com-XBTUSD.db"
        journal = open_journal(path)
        journal.put(halted=self.EVIL)
        numbers = ("interval_s", "candle", "price", "average", "slope", "target", "held", "decided")
        journal.decide(dict.fromkeys(numbers, 60) | {"reason": self.EVIL})
        journal.close()
        environ = {"HOME": "/x", "KRAKENBOT_STATE_DIRECTORY": str(state)}
        for argv in (["status"], ["history", "decisions"], ["resume"]):
            done = call("--config", "/dev/null", *argv, **environ)
            self.assertEqual(0, done.code, argv)
            self.assertIn("owned", done.out)
            self.assert_tame(done.out)


class TestFiles(Safe):
    def test_state_is_not_written_through_symbolic_links(self) -> None:
        victim, state = self.folder / "victim", self.folder / "state"
        state.mkdir(mode=0o700)
        for name in ("a.db", "a.db-wal", "a.db-shm", "a.lock"):
            for content in (b"", b"precious"):
                victim.write_bytes(content)
                link = state / name
                link.symlink_to(victim)
                with self.subTest(name=name, content=content):
                    with contextlib.suppress(Exception):
                        if name == "a.lock":
                            Lock(link, "a").write("1")
                        journal = open_journal(state / "a.db")
                        self.addCleanup(journal.close)
                        journal.put(x=1)
                    self.assertEqual(content, victim.read_bytes())
                for path in state.iterdir():
                    path.unlink()
