import io
import json
import signal
import time
import unittest
import warnings
from collections.abc import Mapping
from unittest import mock

from krakenbot.commands import UsageError
from krakenbot.commands.call import sign_futures
from krakenbot.kraken.transport import UrllibTransport
from krakenbot.lock import Lock
from krakenbot.model import Secret
from krakenbot.simulated import http as server
from krakenbot.simulated.http import Server
from krakenbot.simulated.wire import Answer
from tests.commands.called import Done, Terminal, call
from tests.folders import own_folder
from tests.logs import forget_secrets
from tests.markets import close_after, sandbox_for, short_histories

# Published with the API's documentation and by the maintainers of a public client.
SECRET = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw=="
GOLDEN_SECRET = "cHl0aG9uLWtyYWtlbi1zZGsgdW5pdC10ZXN0IHNlY3JldCB2YWx1ZQ=="
VECTORS = (
    (
        GOLDEN_SECRET,
        "/derivatives/api/v3/sendorder",
        "orderType=lmt&symbol=PI_XBTUSD",
        "1616492376594",
        "Txi+gJVXe3EN1brXYQ46FuV6UVtEVSKhc6dYMhPb7a/HXZLGvO6m9UUg+KVKqhLxrbllOPI7qRkHYmPfJZZSGA==",
    ),
    (
        SECRET,
        "/derivatives/api/v3/accounts",
        "",
        "",
        "QBye7cezp0pKjoos3UxEPd8Y4zfzoNG4k2coPuQvof0HlKBQn7RFH8fqt7jPNYVUD32XTYNtlcH/m28djrR8KA==",
    ),
    (
        SECRET,
        "/derivatives/api/v3/sendorder",
        "processBefore=2026-01-01T00%3A00%3A05.000Z&orderType=mkt&symbol=PF_XBTUSD&side=sell"
        "&size=0.0010",
        "1767225600002",
        "MP1uL8wfsu1yv/aYJq3hBnE1n4DF6WijxJvPGJLnOGxEEZqgFmrwLTOMg3QSVq/nNvGvwBqZNU0Kz7qADHCYrw==",
    ),
    (
        SECRET,
        "/api/history/v3/positions",
        "since=1767225600000&sort=asc",
        "1767225600006",
        "Bvb61hXH4AOs6ta9o58+qwE9lHp0etdXeuf4tFp0xPjdVnmY4DgBVCfa7o96AgmDzek3R8RC1oLVyRGG8IEaYA==",
    ),
)


def setUpModule() -> None:
    short_histories()


class Full(io.StringIO):
    def write(self, text: str) -> int:
        if text:
            raise OSError(28, "No space left on device")
        return 0


class Called(unittest.TestCase):
    stdout: type[io.StringIO] = io.StringIO

    def setUp(self) -> None:
        warnings.simplefilter("ignore", ResourceWarning)
        self.addCleanup(forget_secrets)
        self.state = own_folder(self)
        self.environ = {"KRAKENBOT_EXCHANGE_TIMEOUT": "5"}
        self.environ["KRAKENBOT_STATE_DIRECTORY"] = str(self.state)

    def call(self, *argv: str) -> Done:
        return call("--config", "/dev/null", "call", *argv, to=self.stdout(), **self.environ)


class TestSpot(Called):
    def setUp(self) -> None:
        super().setUp()
        self.sandbox = sandbox_for(self)
        self.environ["KRAKENBOT_EXCHANGE_URL"] = self.sandbox.url

    def with_keys(self, mode: str = "paper") -> None:
        self.environ["KRAKENBOT_MODE"] = mode
        self.environ["KRAKEN_API_KEY"] = server.SANDBOX_KEY
        self.environ["KRAKEN_API_SECRET"] = server.SANDBOX_SECRET

    def test_a_public_method_needs_no_key_and_uses_none(self) -> None:
        code, out, _ = self.call("OHLC", "pair=XBTUSD", "interval=60", "--json")
        self.assertEqual(0, code)
        self.assertEqual({"XXBTZUSD", "last"}, set(json.loads(out)))
        self.assertEqual([], list(self.state.iterdir()))

    def test_a_private_read_is_signed_with_the_bot_s_own_nonces(self) -> None:
        self.with_keys()
        for _ in range(2):
            code, out, err = self.call("Balance", "--json")
            self.assertEqual(0, code, err)
            self.assertIn("ZUSD", json.loads(out))
        (lock,) = self.state.glob("*.lock")
        self.assertEqual(0o600, lock.stat().st_mode & 0o777)
        self.assertEqual(int(lock.read_text().split()[0]), self.sandbox.api.nonce)

    def test_what_changes_the_account_leaves_no_proof_that_a_journal_is_current(self) -> None:
        self.with_keys("live")
        marks = []
        for words in (("Balance",), ("CancelAll", "--live"), ("Balance",)):
            self.assertEqual(0, self.call(*words)[0])
            (lock,) = self.state.glob("*.lock")
            marks.append(lock.read_text().splitlines()[0].partition(" ")[2].strip())
        self.assertEqual(["", "called", "called"], marks)

    def test_a_change_is_taken_although_another_program_used_a_larger_nonce(self) -> None:
        self.with_keys("live")
        self.assertEqual(0, self.call("Balance")[0])
        self.sandbox.api.nonce = time.time_ns()
        code, _, err = self.call("CancelAll", "--live")
        self.assertEqual(0, code, err)

    def test_a_private_method_without_a_key_is_a_matter_of_configuration(self) -> None:
        self.assertEqual(78, self.call("Balance")[0])

    def test_what_trades_or_moves_money_needs_live_and_sends_nothing_without(self) -> None:
        self.with_keys()
        before = sum(self.sandbox.api.requests.values())
        order = ("pair=XBTUSD", "type=buy", "ordertype=market", "volume=0.001")
        for method in ("AddOrder", "CancelAll", "Withdraw", "WalletTransfer", "NewThing"):
            code, _, err = self.call(method, *order)
            self.assertEqual(78, code)
            self.assertIn("--live", err)
        for mode in ("paper", "validate"):
            self.environ["KRAKENBOT_MODE"] = mode
            self.assertEqual(78, self.call("AddOrder", *order, "--live")[0])
        self.assertEqual(before, sum(self.sandbox.api.requests.values()))
        self.environ["KRAKENBOT_MODE"] = "live"
        self.assertEqual(78, self.call("AddOrder", *order)[0])
        self.assertEqual(0, self.call("AddOrder", *order, "--live")[0])
        self.assertEqual(1, len(self.sandbox.api.orders))

    def test_a_misspelt_method_gets_the_nearest_names_and_is_not_sent(self) -> None:
        self.with_keys()
        before = sum(self.sandbox.api.requests.values())
        for misspelt, meant in (("Balanc", "Balance"), ("openorders", "OpenOrders")):
            code, _, err = self.call(misspelt)
            self.assertEqual(78, code)
            self.assertIn(f"Did you mean {meant}", err)
        self.assertEqual(before, sum(self.sandbox.api.requests.values()))

    def test_every_read_of_the_interface_goes_without_live(self) -> None:
        self.with_keys()
        for method in ("MaintenanceSchedule", "Level3", "OrderAmends", "Earn/Strategies"):
            code, _, err = self.call(method)
            self.assertNotIn("--live", err)
            self.assertNotEqual(78, code)

    def test_a_long_address_is_shown_whole(self) -> None:
        self.with_keys("live")
        address, answer = "addr1" + "q9" * 49, b'{"error":[],"result":[{"address":"%s"}]}'
        with mock.patch.object(
            UrllibTransport, "send", return_value=(200, answer % address.encode())
        ):
            self.assertIn(address, self.call("DepositAddresses", "asset=ADA", "--live").out)

    def test_a_file_goes_to_a_new_file_and_never_to_a_terminal(self) -> None:
        self.with_keys()
        path = self.state / "export.zip"
        zipped = b"PK\x03\x04\xff\x00 and more"
        answer = mock.patch.object(UrllibTransport, "send", return_value=(200, zipped))
        with answer as send:
            self.stdout = Terminal
            self.assertEqual(2, self.call("RetrieveExport", "id=GOCO")[0])
            send.assert_not_called()
            self.assertEqual(0, self.call("RetrieveExport", "id=GOCO", "--output", str(path))[0])
            self.assertEqual(zipped, path.read_bytes())
            self.assertEqual(0o600, path.stat().st_mode & 0o777)
            send.reset_mock()
            self.assertEqual(2, self.call("RetrieveExport", "id=GOCO", "--output", str(path))[0])
            send.assert_not_called()

    def test_nothing_is_sent_when_its_answer_could_not_be_written(self) -> None:
        self.with_keys("live")
        for path in ("/nonexistent/answer", str(self.state)):
            self.assertEqual(2, self.call("CancelAll", "--live", "--output", path)[0])
        self.assertEqual(0, self.sandbox.api.requests["CancelAll"])
        answer = self.state / "answer"
        self.assertEqual(1, self.call("Ticker", "pair=NOPE", "--output", str(answer))[0])
        self.assertFalse(answer.exists())

    def test_an_answer_to_a_change_that_cannot_be_written_is_said(self) -> None:
        self.with_keys("live")
        self.stdout, full = Full, UsageError("cannot write answer: No space left on device")
        written = ("--output", f"{self.state}/answer")
        for words, error, code, why in (
            ((), None, 2, "No space left"),
            (written, full, 2, "No space left"),
            (written, KeyboardInterrupt(), 130, "stopped"),
        ):
            with mock.patch("krakenbot.commands.call.write_output", side_effect=(None, error)):
                done = self.call("CancelAll", "--live", *words)
            self.assertEqual(code, done.code)
            self.assertRegex(done.err, rf'(?s)carried out, but .*{why}.*"count": 0')

    def test_a_change_that_is_interrupted_may_have_happened_and_a_read_has_not(self) -> None:
        self.with_keys("live")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # As in a terminal.
            for method, may_have in (("CancelAll", True), ("Balance", False)):
                with mock.patch.object(
                    UrllibTransport, "send", lambda *_, n=number: signal.raise_signal(n)
                ):
                    code, _, err = self.call(method, "--live")
                said = "may have happened" in err
                self.assertEqual((130, may_have), (code, said), (number, method))

    def test_an_order_that_is_only_validated_needs_no_live(self) -> None:
        self.with_keys()
        order = ("pair=XBTUSD", "type=buy", "ordertype=market", "volume=0.001", "validate=true")
        for extra in ((), ("--live",)):
            self.assertEqual(0, self.call("AddOrder", *order, *extra)[0])
        self.assertEqual({}, self.sandbox.api.orders)

    def test_the_client_can_trade_only_for_what_needs_live(self) -> None:
        self.with_keys("live")
        checked, traded = ("AddOrder", "validate=true", "--live"), ("CancelAll", "--live")
        for words, live in ((("Balance", "--live"), False), (checked, False), (traded, True)):
            with mock.patch("krakenbot.commands.call.client_of") as made:
                made.return_value.private.return_value = {}
                self.assertEqual(0, self.call(*words)[0], words)
            self.assertEqual(live, made.call_args.kwargs["live"], words)

    def test_while_a_bot_holds_the_key_nothing_is_signed(self) -> None:
        self.with_keys()
        self.call("Balance")
        (path,) = self.state.glob("*.lock")
        held = Lock(path, "the bot")
        self.addCleanup(held.close)
        code, _, err = self.call("Balance")
        self.assertEqual(78, code)
        self.assertIn("holds this API key", err)

    def test_kraken_s_refusal_is_one_line(self) -> None:
        code, out, err = self.call("Ticker", "pair=NOPE")
        self.assertEqual((1, ""), (code, out))
        self.assertIn("EQuery:Unknown asset pair", err)
        self.assertNotIn("Traceback", err)

    def test_what_is_no_method_or_no_parameter_is_wrong_usage(self) -> None:
        for argv in (("../Balance",), ("Balance?x",), ("Balance", "asset"), ("OHLC", "=5"), ("",)):
            self.assertEqual(2, self.call(*argv)[0], argv)
        self.assertEqual(2, self.call("Time", "a=\udcff")[0])
        code, _, err = self.call("QueryTrades", "txid=A", "trades=true", "txid=B")
        self.assertEqual((2, True), (code, "more than once: txid" in err))

    def test_the_key_is_not_shown_even_when_the_exchange_sends_it_back(self) -> None:
        self.with_keys()
        code, out, _ = self.call("GetApiKeyInfo")
        self.assertEqual(0, code)
        self.assertIn("<secret>", out)
        self.assertNotIn(server.SANDBOX_KEY, out)


class TestFutures(Called):
    def setUp(self) -> None:
        super().setUp()
        self.seen: list[tuple[str, str, Mapping[str, str], str]] = []
        self.answer = (200, b'{"result":"success","size":0.0001}')

        def respond(verb: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
            self.seen.append((verb, target, headers, body.decode()))
            return Answer(self.answer[0], "application/json", self.answer[1])

        web = Server(respond)
        close_after(self, web)
        self.environ["KRAKENBOT_EXCHANGE_URL"] = web.url
        for prefix, key in (("KRAKEN_FUTURES", "futures-key"), ("KRAKEN", "spot-key")):
            self.environ |= {f"{prefix}_API_KEY": key, f"{prefix}_API_SECRET": SECRET}

    def futures(self, *argv: str) -> Done:
        return self.call("--futures", *argv)

    def test_the_signature_is_that_of_the_published_vectors(self) -> None:
        for secret, path, data, nonce, want in VECTORS:
            self.assertEqual(want, sign_futures(Secret(secret), path, nonce, data))

    def test_a_private_read_carries_its_own_key_and_a_signature_over_what_is_sent(self) -> None:
        code, out, err = self.futures("fills", "lastFillTime=2026-01-01T00:00:00.000Z", "--json")
        self.assertEqual(0, code, err)
        ((verb, target, headers, _),) = self.seen
        path, _, query = target.partition("?")
        self.assertEqual(("GET", "/derivatives/api/v3/fills"), (verb, path))
        self.assertEqual("futures-key", headers["apikey"])
        want = sign_futures(Secret(SECRET), path, headers["nonce"], query)
        self.assertEqual(want, headers["authent"])
        self.assertEqual({"result": "success", "size": "0.0001"}, json.loads(out))
        self.assertIn("1 March 2027", err)

    def test_each_nonce_is_that_of_the_clock(self) -> None:
        began = time.time_ns()
        for _ in range(2):
            self.futures("accounts")
        first, second = (int(headers["nonce"]) for _, _, headers, _ in self.seen)
        self.assertLess(began, first)
        self.assertLess(first + 1, second)

    def test_an_order_is_posted_once_and_only_with_live(self) -> None:
        order = ("sendorder", "orderType=mkt", "symbol=PF_XBTUSD", "side=buy", "size=0.001")
        self.assertEqual((78, []), (self.futures(*order)[0], self.seen))
        self.assertEqual((78, []), (self.futures(*order, "--live")[0], self.seen))
        self.environ["KRAKENBOT_MODE"] = "live"
        self.assertEqual(0, self.futures(*order, "--live")[0])
        ((verb, target, headers, body),) = self.seen
        self.assertEqual(("POST", "/derivatives/api/v3/sendorder"), (verb, target))
        self.assertEqual(
            sign_futures(Secret(SECRET), target, headers["nonce"], body), headers["authent"]
        )

    def test_every_verb_but_get_needs_live_apart_from_asking_about_orders(self) -> None:
        self.assertEqual(78, self.futures("leveragepreferences", "--verb", "PUT")[0])
        self.assertEqual(78, self.futures("transfer", "amount=1")[0])
        self.assertEqual(78, self.futures("sendorder", "size=1", "--verb", "GET")[0])
        self.assertEqual([], self.seen)
        self.assertEqual(0, self.futures("orders/status", "cliOrdIds=a", "cliOrdIds=b")[0])
        self.assertEqual(("POST", "cliOrdIds=a&cliOrdIds=b"), (self.seen[0][0], self.seen[0][3]))

    def test_an_answer_with_errors_of_the_spot_api_is_a_refusal(self) -> None:
        self.answer = (200, b'{"error":["EGeneral:Unknown method"]}')
        done = self.futures("tickers")
        self.assertEqual(1, done.code)
        self.assertIn("EGeneral:Unknown method", done.err)

    def test_public_methods_carry_no_key(self) -> None:
        names = "tickers/PF_XBTUSD instruments instruments/PF_XBTUSD/status"
        for method in f"{names} /api/charts/v1/trade/PF_XBTUSD/1h".split():
            self.assertEqual(0, self.futures(method)[0])
        for verb, _, headers, _ in self.seen:
            self.assertEqual("GET", verb)
            self.assertFalse({"apikey", "authent", "nonce"} & headers.keys())
        self.futures("feeschedules/volumes")
        self.assertIn("authent", self.seen[-1][2])

    def test_an_error_inside_http_200_is_an_error(self) -> None:
        refused = b'{"result":"error","error":"authenticationError"}'
        for answer in ((200, refused), (403, b"<html>no</html>"), (200, b"x"), (500, b"{}")):
            self.answer = answer
            code, out, err = self.futures("accounts")
            self.assertEqual((1, ""), (code, out))
            self.assertNotIn("Traceback", err)

    def test_an_order_that_a_gateway_did_not_answer_may_have_happened(self) -> None:
        self.environ["KRAKENBOT_MODE"] = "live"
        for status, may_have in ((502, True), (500, True), (400, False), (200, False)):
            self.answer = (status, b'{"result":"error","error":"upstream"}')
            code, _, err = self.futures("sendorder", "size=1", "--live")
            self.assertEqual((1, may_have), (code, "may have happened" in err), status)

    def test_keys_go_to_kraken_or_this_machine_only(self) -> None:
        self.environ["KRAKENBOT_EXCHANGE_URL"] = "https://example.org"
        with mock.patch.object(UrllibTransport, "send", return_value=(200, b"{}")) as send:
            self.assertEqual(0, self.futures("accounts")[0])
        self.assertEqual(
            "https://futures.kraken.com/derivatives/api/v3/accounts", send.call_args.args[1]
        )
