"""One market and account have one journal, and a journal that is not current trades nothing.

The bot as the front door makes it, with the built-in exchange in the same process. Time passes only
while the bot waits.
"""

import io
import os
import shutil
import signal
import socket
import sqlite3
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    nullcontext,
    redirect_stdout,
    suppress,
)
from decimal import Decimal
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest import mock

from krakenbot import assemble as assembling
from krakenbot import identity
from krakenbot.alerts import active_alerts
from krakenbot.assemble import Parts, assemble
from krakenbot.clock import Clock
from krakenbot.commands import call as calling
from krakenbot.commands import journals
from krakenbot.commands.handover import adopt as adopting
from krakenbot.config import Config, ExchangeTable, RiskTable, StrategyTable
from krakenbot.config_reader import load
from krakenbot.credentials import load_credentials
from krakenbot.errors import (
    Cause,
    ConfigError,
    ContradictionError,
    KeyRefusedError,
    LaterError,
    RefusedError,
    StopError,
    UnansweredError,
)
from krakenbot.handover import flatten
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal
from krakenbot.kraken.spot import Spot
from krakenbot.lock import Lock, Nonces
from krakenbot.model import ZERO, KeyInfo, Purpose, Secret, Side
from krakenbot.records import Intent, Outcome
from krakenbot.simulated.api import SandboxApi
from krakenbot.simulated.feed import Feed
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from krakenbot.simulated.wire import Answer
from krakenbot.startup import Start, check_account
from tests.clocks import StandingClock
from tests.folders import own_folder
from tests.logs import silence
from tests.markets import short_histories
from tests.simulation.test_bot import Killed
from tests.simulation.test_contract import Direct

SIZE = Decimal("0.01")
START = 1_791_504_000.0  # Where a candle of any length begins.
KEYS = {"KRAKEN_API_KEY": SANDBOX_KEY, "KRAKEN_API_SECRET": SANDBOX_SECRET}
REFUSED, BUSY = b'{"error":["EAPI:Invalid key"]}', b'{"error":["EService:Busy"]}'
NO_MARGIN: dict[str, Any] = {"leverage_buy": [], "leverage_sell": []}
NO_MARGIN_YET = NO_MARGIN | {"status": "reduce_only"}


def setUpModule() -> None:
    short_histories(2)


class LeapingClock(Clock):
    """Waits in no time."""

    def __init__(self, test: "FrontDoor", speed: float) -> None:
        self.test = test
        super().__init__(speed)

    def monotonic(self) -> float:
        return self.test.time

    def wall(self) -> float:
        return self.now()

    def wait(self, seconds: float) -> None:
        self.test.time += max(seconds, 0.0)
        super().wait(0)


class FrontDoor(unittest.TestCase):
    def setUp(self) -> None:
        silence(self)
        # Each bot's clock takes them.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.folder = own_folder(self)
        self.state = self.folder / "state"
        self.time = START
        secret = Secret(SANDBOX_SECRET)
        self.api = SandboxApi(Feed("random:5", START), lambda: self.time, SANDBOX_KEY, secret)
        for module, name, stand_in in (
            (assembling, "Clock", partial(LeapingClock, self)),
            (calling, "Clock", partial(LeapingClock, self)),
            (assembling, "UrllibTransport", lambda *_: Direct(self.api)),
        ):
            self.enterContext(mock.patch.object(module, name, stand_in))
        self.enterContext(mock.patch.dict(os.environ, KEYS))
        # On this machine a key of one exchange has one bot, of all tests that run now.
        port = self.enterContext(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        rule = self.folder / "long.py"  # What is held does not depend on the hour.
        rule.write_text("CANDLES = 1\ndef direction(candles): return 1\n")
        rule.chmod(0o600)
        # Long candles, so that none ends while a test looks at one.
        self.config = Config(
            mode="live",
            interval=240,
            size=SIZE,
            leverage=0,
            entry="now",
            strategy=StrategyTable(name="file", file=rule),
            state_directory=self.state,
            exchange=ExchangeTable(url=f"http://127.0.0.1:{port}"),
            risk=RiskTable(max_fee_percent_per_day=Decimal(1000)),
        )

    def run_once(self, *, accept_costs: bool = False, **changes: Any) -> None:
        config = self.config._replace(**changes)
        with closing(assemble(config, live=True, accept_costs=accept_costs)) as parts:
            parts.bot.run(once=True)

    def bought(self) -> list[Decimal]:
        return [Decimal(row["vol_exec"]) for row in self.api.orders.values()]

    def journals(self) -> list[str]:
        return sorted(path.name for path in self.state.glob("*.db"))

    def journal(self) -> AbstractContextManager[Journal]:
        return closing(open_journal(self.state / self.journals()[0]))

    def written(self, write: Callable[..., None], *values: object, **named: object) -> None:
        """Write something into the journal of a bot that does not run."""
        with self.journal() as journal:
            write(journal, *values, **named)

    def assert_stops(self, words: str, **changes: Any) -> None:
        with self.assertRaisesRegex(StopError, words) as caught:
            self.run_once(**changes)
        self.assertEqual(76, caught.exception.exit_code)

    def write_lost_order(self, name: str = "lost", leverage: int = 0) -> None:
        """Write an order that never reached the exchange."""
        now = int(self.time)
        lost = Intent(name, 1, 1, Purpose.OPEN, Side.BUY, SIZE, leverage, False, "", ZERO, now, now)
        self.written(Journal.write, lost)

    def assert_no_order_is_open(self) -> None:
        with self.journal() as journal:
            self.assertEqual([], journal.open_intents())

    def failing(self, method: str, error: Exception) -> Any:
        """Let the exchange answer this with the error."""
        return mock.patch.object(Spot, method, side_effect=error)

    def listed(self, **changes: Any) -> Any:
        """Let the exchange list the pair with these changes."""
        return mock.patch.dict(self.api.markets.listing["XXBTZUSD"], changes)

    def answer_with(self, answer: Callable[[str], bytes | None]) -> None:
        """Let the exchange answer what this makes of a request's target, or else as usual."""
        respond = self.api.respond

        def answered(method: str, target: str, *more: Any) -> Answer:
            body = answer(target)
            return respond(method, target, *more) if body is None else Answer(200, "", body)

        self.api.respond = answered

    def lose_journal(self) -> None:
        for path in self.state.glob("*.db*"):
            path.unlink()

    def made(self, **changes: Any) -> Parts:
        """Return the parts of a bot that has not begun; its files are closed with the test."""
        parts = assemble(self.config._replace(**changes), live=True)
        self.addCleanup(parts.close)
        return parts

    def hold(self) -> None:
        """Let the bot buy."""
        self.run_once()
        self.assertEqual([SIZE], self.bought())

    def let_go(self) -> None:
        """Let a person close the margin position and resume."""
        with closing(self.made()) as parts:
            self.assertEqual(SIZE, parts.exchange.position().volume)
            flatten(parts.bot, "by a person")
            parts.journal.resume()


class TestSpelling(FrontDoor):
    def test_another_spelling_of_the_pair_finds_the_same_journal(self) -> None:
        self.hold()
        self.run_once(pair="XXBTZUSD")
        self.assertEqual([SIZE], self.bought())
        self.assertEqual(1, len(self.journals()), self.journals())

    def test_another_spelling_of_the_exchange_s_host_means_the_same_journal(self) -> None:
        whose = identity.Identity("XXBTZUSD", "0123456789ab")
        hosts = ("api.kraken.com", "API.Kraken.com", "api.kraken.com:443")
        tables = (ExchangeTable(url=f"https://{host}") for host in hosts)
        paths = {identity.place_of(self.config._replace(exchange=at), whose) for at in tables}
        self.assertEqual(1, len(paths), paths)

    def test_a_key_of_an_unknown_account_does_not_go_on_with_a_known_one_s_journal(self) -> None:
        path = self.folder / "live.db"
        journal = self.enterContext(closing(open_journal(path)))
        identity.claim(self.config, journal, path, identity.Identity("XXBTZUSD", "0123456789ab"))
        with self.assertRaisesRegex(
            StopError, "account 0123456789ab; the exchange now says pair XXBTZUSD, account unknown"
        ):
            identity.claim(self.config, journal, path, identity.Identity("XXBTZUSD"))

    def test_without_a_home_a_pair_that_was_never_traded_has_no_journal(self) -> None:
        os.environ.pop("HOME", None)  # As in a container, where a user may have no home at all.
        with (
            mock.patch("pwd.getpwuid", side_effect=KeyError),
            self.assertRaisesRegex(ConfigError, "no live journal"),
        ):
            journals.journal_path(self.config._replace(pair="ETHUSD"))

    def test_commands_without_network_know_spellings_that_were_never_used(self) -> None:
        for used in ("XBTUSD", "XXBTZUSD"):
            self.setUp()
            self.run_once(pair=used, entry="next-turn")
            for pair in ("BTCUSD", "BTC/USD", "XBT/USD", "xbtusd", "XBTUSD", "XXBTZUSD"):
                with self.subTest(used=used, pair=pair):
                    path = journals.journal_path(self.config._replace(pair=pair))
                    self.assertEqual(self.journals(), [path.name])
            self.doCleanups()

    def test_a_journal_of_0_2_0_is_found_whatever_its_spelling_and_carried_over(self) -> None:
        self.hold()
        (name,) = self.journals()
        old = f"{name.rsplit('-', 2)[0]}-XBTUSD.db"
        for path in self.state.iterdir():  # Only what 0.2.0 left: a journal and a lock.
            if path.name.startswith("live"):
                path.rename((self.state / old).with_suffix(path.suffix))
        (self.state / identity.INDEX).unlink()
        self.run_once(pair="XXBTZUSD")
        self.assertEqual(([SIZE], [old]), (self.bought(), self.journals()))

    def test_a_journal_that_0_2_0_named_after_doge_is_the_one_of_xdg(self) -> None:
        identity.remember(self.config, "pair", "XDGUSD", "XDGUSD")
        named = identity.place_of(self.config, identity.Identity("XDGUSD"))
        old = named.with_name(named.name.replace("XDG", "DOGE"))
        old.touch()
        self.assertEqual(old, identity.place_of(self.config, identity.Identity("XDGUSD")))

    def test_two_journals_of_one_market_stop_with_both_names(self) -> None:
        self.hold()
        (name,) = self.journals()
        other = f"{name.rsplit('-', 2)[0]}-XBTUSD.db"
        shutil.copy(self.state / name, self.state / other)
        self.assert_stops(f"(?s){name}.*{other}|{other}.*{name}")

    def test_a_spelling_that_now_means_another_market_stops(self) -> None:
        self.hold()
        index = self.state / identity.INDEX
        index.write_text(index.read_text().replace('"XXBTZUSD"', '"XETHZUSD"'))
        self.assert_stops("XXBTZUSD")
        self.assertEqual([SIZE], self.bought())


class TestUnmanaged(FrontDoor):
    def test_what_a_bot_left_held_on_another_pair_is_said_until_it_is_closed(self) -> None:
        self.hold()
        own = self.state / self.journals()[0]
        (text,) = journals.unmanaged(self.config._replace(mode="paper"), Path())
        self.assertIn("0.01 XXBTZUSD is still held, and no bot manages it", text)
        self.assertEqual([], journals.unmanaged(self.config, own))
        self.written(Journal.adopt, ZERO, Decimal(1), 1, on_margin=False)
        self.assertEqual([], journals.unmanaged(self.config, Path()))

    def test_it_is_said_by_commands_of_a_bot_that_has_not_run_yet(self) -> None:
        self.hold()
        for changed in ({"pair": "ETHUSD"}, {"mode": "paper"}):
            with self.subTest(changed), self.assertRaises(ConfigError) as caught:
                journals.journal_path(self.config._replace(**changed))
            lines = str(caught.exception).splitlines()
            self.assertIn("this bot has not run here", lines[0])
            self.assertIn("0.01 XXBTZUSD is still held, and no bot manages it", lines[1])
            self.assertIn("Journals of other settings", lines[2])

    def test_what_a_running_bot_holds_is_managed(self) -> None:
        self.hold()
        self.made()
        self.assertEqual([], journals.unmanaged(self.config, Path()))


class TestRefusedKey(FrontDoor):
    def test_where_a_bot_has_run_a_key_that_is_refused_once_is_tried_again(self) -> None:
        self.hold()
        (self.state / identity.INDEX).unlink()  # So that the key's account must be asked for.
        answers = chain([REFUSED], repeat(None))
        self.answer_with(lambda path: next(answers) if path.endswith("GetApiKeyInfo") else None)
        self.run_once()
        self.assertEqual([SIZE], self.bought())

    def test_where_none_has_run_a_refused_key_ends_it_at_once(self) -> None:
        refused = self.failing("key_info", KeyRefusedError("no"))
        with refused as asked, self.assertRaises(KeyRefusedError):
            self.run_once()
        self.assertEqual(1, asked.call_count)

    def test_it_is_used_once_at_a_start_with_nothing_held(self) -> None:
        self.run_once(entry="next-turn")
        asked = list[str]()
        self.answer_with(lambda path: REFUSED if asked.append(path) or "private" in path else None)
        with self.assertRaises(KeyRefusedError):
            self.run_once(entry="next-turn")
        private = [path for path in asked if "private" in path]
        self.assertEqual(["/0/private/GetApiKeyInfo"], private)


class TestStart(FrontDoor):
    def test_fee_rates_and_candles_are_read_once(self) -> None:
        asked = list[str]()
        self.answer_with(asked.append)
        self.run_once(entry="next-turn", leverage=2)
        names = ("TradeVolume", "Assets", "OHLC", "AssetPairs", "Ticker")
        counts = [sum(f"/{name}?" in f"{path}?" for path in asked) for name in names]
        self.assertEqual([1, 1, 1, 1, 0], counts)


class TestStrategy(FrontDoor):
    def test_nothing_that_cannot_be_read_keeps_it_from_closing(self) -> None:
        for method, changes in (
            ("candles", {}),
            ("candles", {"reversal": "one-order"}),
            ("margin_rates", {"reversal": "one-order"}),
        ):
            with self.subTest(method, **changes):
                self.setUp()
                self.hold()
                self.written(Journal.put, flatten="max_loss was reached")
                began = self.time
                with self.failing(method, UnansweredError("timed out")):
                    self.assert_stops("max_loss was reached", **changes)
                self.assertEqual([SIZE, SIZE], self.bought())
                self.assertLess(self.time - began, 60)

    def test_a_flatten_that_is_done_halts_it_whatever_the_settings_cost(self) -> None:
        self.run_once(entry="next-turn")
        self.written(Journal.put, flatten="max_loss was reached")
        too_much = RiskTable(max_fee_percent_per_day=Decimal("0.0001"))
        self.assert_stops("max_loss was reached", risk=too_much)

    def test_candles_are_not_needed_to_look_up_an_open_order(self) -> None:
        self.run_once(entry="next-turn")
        delisted = RefusedError("no such pair")
        for error in (delisted, UnansweredError("timed out")):
            self.write_lost_order(str(error))
            without = self.failing("candles", error), self.failing("quote", delisted)
            with without[0], without[1], suppress(ConfigError, LaterError):
                self.run_once(risk=RiskTable(max_fee_percent_per_day=Decimal(999)))
            self.assert_no_order_is_open()

    def test_an_upgrade_is_no_change_of_the_strategy(self) -> None:
        self.run_once(entry="next-turn")
        with self.journal() as journal:
            journal.put(direction_by=journal.get("direction_by").rsplit(" ", 2)[0])  # As in 0.3.2.
        self.run_once(entry="next-turn")
        with self.journal() as journal:
            self.assertEqual("1", journal.get("first_direction"))

    def test_another_interval_is_not_the_turn_that_the_first_entry_waits_for(self) -> None:
        self.run_once(entry="next-turn")
        with self.journal() as journal:
            self.assertEqual("1", journal.get("first_direction"))
            journal.put(first_direction=-1)
        self.run_once(entry="next-turn", interval=60)
        self.assertEqual([], self.bought())


class TestOneProcess(FrontDoor):
    def test_another_state_directory_does_not_let_a_second_bot_use_the_key(self) -> None:
        other = {"state_directory": self.folder / "other"}
        held = self.assertRaisesRegex(ConfigError, "another krakenbot on this machine holds")
        with closing(self.made()), held:
            self.made(**other)
        self.made(**other)

    def test_a_lock_says_since_when_it_is_held_not_when_it_was_last_written(self) -> None:
        with mock.patch("time.time", side_effect=(0.0, 3600.0)):
            lock = Lock(self.folder / "key.lock", "a key")
            Nonces(lock).next(5)
        self.addCleanup(lock.close)
        self.assertIn("since 1970-01-01 00:00:00", lock.read(1))


class TestLostJournal(FrontDoor):
    def lose_what_is_held(self) -> None:
        self.hold()
        self.time += 3 * 240 * 60
        self.lose_journal()

    def test_orders_of_a_lost_journal_s_last_minutes_stop_a_new_one_though_flat(self) -> None:
        self.run_once(leverage=2, entry="next-turn")
        traded = {"pair": "XBTUSD", "side": "buy", "volume": SIZE, "leverage": 2}
        for wish in (traded, {"pair": "XBTUSD", "close": True}):
            self.api.controls["position"](wish)
        self.lose_journal()
        with self.failing("position", RefusedError("no")):
            self.assert_stops("does not know", leverage=2)
        self.assertEqual(2, len(self.bought()))
        self.assert_stops("halted", leverage=2)

    def test_a_death_before_the_halt_does_not_hide_the_coins_of_a_lost_journal(self) -> None:
        self.lose_what_is_held()
        with mock.patch.object(Journal, "halt", side_effect=Killed):
            self.assertRaises(Killed, self.run_once)
        self.assert_stops("the journal is new")
        self.assertEqual([SIZE], self.bought())
        self.written(Journal.resume)
        self.run_once()  # It is not asked about again.

    def test_a_death_of_an_older_version_between_two_checks_does_not_hide_them_either(self) -> None:
        self.lose_what_is_held()
        with mock.patch.object(Spot, "balances", side_effect=Killed):
            self.assertRaises(Killed, self.run_once)
        self.written(Journal.put, created=int(self.time))  # 0.3.7 did that before it asked.
        self.assert_stops("the journal is new")
        self.assertEqual([SIZE], self.bought())


class TestSeveralOrders(FrontDoor):
    def test_an_adoption_needs_no_answer_about_an_order_id_that_several_have(self) -> None:
        self.config = self.config._replace(leverage=2)
        self.hold()
        self.write_lost_order(leverage=2)
        with self.failing("find", ContradictionError("several orders")):
            self.assert_stops("several orders")
            self.time += 1000
            with redirect_stdout(io.StringIO()):
                self.assertEqual(0, adopting(self.config, yes=True))
        self.assert_no_order_is_open()


class TestCurrent(FrontDoor):
    """Before anything is sent, all trades since the newest record are known."""

    def back_up_before_the_first_order(self) -> Path:
        self.run_once(entry="next-turn")  # It has run and bought nothing yet.
        old = Intent("old", 1, 1, Purpose.OPEN, Side.BUY, SIZE, 0, False, "", ZERO, 1, 16)
        self.written(Journal.write, old)
        self.written(Journal.conclude, old, Outcome.REFUSED, 2)
        with closing(sqlite3.connect(self.state / self.journals()[0])) as database, database:
            database.execute("UPDATE decisions SET done = 0")
        return shutil.copytree(self.state, self.folder / "backup")

    def test_a_journal_that_went_back_doubles_nothing_whatever_else_is_there(self) -> None:
        for gone, back in (("live*", "live*"), ("*", "*"), ("*", "*.db")):
            with self.subTest(gone=gone, back=back):
                self.setUp()
                backup = self.back_up_before_the_first_order()
                self.run_once()
                for path in self.state.glob(gone):
                    path.unlink()
                for path in backup.glob(back):
                    shutil.copy(path, self.state)
                self.assert_stops("does not know: O")
                self.assert_stops("halted")
                self.written(Journal.resume)
                self.run_once()  # Of the same candle: it finds its order, and sends none.
                self.assertEqual([SIZE], self.bought())

    def test_a_journal_that_is_current_is_not_waited_for(self) -> None:
        self.hold()
        for _ in range(2):
            began = self.time
            self.run_once()
            self.assertLess(self.time - began, 60)

    def test_a_key_that_was_used_elsewhere_meanwhile_makes_it_wait(self) -> None:
        self.hold()
        self.api.nonce += 5
        parts = self.made()
        stands = mock.patch.object(parts.clock, "monotonic", return_value=parts.clock.monotonic())
        with stands, mock.patch.object(parts.clock, "wait") as wait:
            for check in parts.checks:  # Without margin, all that concern earlier orders.
                check()
        self.assertGreater(max(call.args[0] for call in wait.call_args_list), 10)

    def assert_waits_for_earlier_orders(self, parts: Parts, waits: bool = True) -> None:
        with mock.patch.object(parts.clock, "wait") as wait:
            parts.checks[1]()
        self.assertEqual(waits, max((call.args[0] for call in wait.call_args_list), default=0) > 60)

    def test_a_key_whose_refused_nonce_another_command_has_met_makes_it_wait(self) -> None:
        self.hold()
        self.api.nonce += 5
        credentials = load_credentials(self.config)
        assert credentials is not None
        client, lock = calling.signed_client(self.config, credentials, changes=False)
        client.nonce_pauses_s = (0,)
        client.private("Balance")
        lock.close()
        with closing(assemble(self.config, live=True)) as parts:
            parts.checks[0]()
            self.assert_waits_for_earlier_orders(parts)

    def test_a_key_whose_first_request_was_lost_before_a_death_makes_it_wait(self) -> None:
        self.hold()
        self.api.nonce += 5
        with closing(self.made()) as parts:
            offline = LaterError("unreachable", cause=Cause.UNREACHABLE)
            with mock.patch.object(Direct, "send", side_effect=offline):
                self.assertRaises(LaterError, parts.exchange.balances)
            parts.exchange.client.nonce_pauses_s = (0,)
            parts.checks[0]()
        with closing(self.made()) as parts:
            parts.checks[0]()
            self.assert_waits_for_earlier_orders(parts)
            parts.exchange.balances()
        with closing(self.made()) as parts:  # Once they have been compared, all is proven.
            parts.checks[0]()
            self.assert_waits_for_earlier_orders(parts, waits=False)


class TestSettings(FrontDoor):
    def test_what_can_never_trade_ends_at_once_and_says_why(self) -> None:
        for changes, words in (
            ({"size": Decimal("0.00001")}, "smallest"),
            ({"leverage": 20}, "leverage 20 is not offered"),
            ({"size": Decimal(10**6), "leverage": 2}, "position limit"),
        ):
            with self.subTest(words), self.assertRaisesRegex(ConfigError, words):
                self.run_once(**changes)
        self.assertEqual([], self.bought())

    def test_a_side_that_the_pair_does_not_offer_is_named_with_the_costs(self) -> None:
        one_sided = self.listed(leverage_sell=[])
        with one_sided, self.assertRaisesRegex(ConfigError, "no margin for a sell"):
            self.run_once(leverage=2, strategy=StrategyTable(length=2))

    def test_a_size_worth_less_than_the_smallest_order_at_the_newest_close_ends_it_too(
        self,
    ) -> None:
        price = self.api.markets.quote(self.api.markets.rules["XXBTZUSD"]).mid
        for share, ends in (("1.01", True), ("0.99", False)):
            least = str(Decimal(share) * price * self.config.size)
            refused = self.assertRaisesRegex(ConfigError, "worth") if ends else nullcontext()
            with self.subTest(share), self.listed(costmin=least), refused:
                self.run_once()

    def test_margin_that_is_missing_for_some_minutes_is_waited_for(self) -> None:
        self.config = self.config._replace(leverage=2)
        for changes in (NO_MARGIN_YET, NO_MARGIN):  # The second has traded.
            with self.subTest(changes):
                with self.listed(**changes), self.assertRaisesRegex(LaterError, "now"):
                    self.run_once()
                self.run_once()
                self.let_go()
                self.time += self.config.interval * 60

    def test_it_trades_as_soon_as_margin_is_back(self) -> None:
        without = self.enterContext(ExitStack())
        without.enter_context(self.listed(**NO_MARGIN_YET))
        self.answer_with(lambda path: without.close() if self.time > START + 60 else None)
        self.run_once(leverage=2)
        self.assertEqual([SIZE], self.bought())

    def test_what_other_settings_have_traded_is_no_reason_to_wait_for_margin(self) -> None:
        self.config = self.config._replace(leverage=2)
        self.hold()
        self.let_go()
        for listed, changes in (
            ({}, {"size": Decimal(10**6)}),
            (NO_MARGIN, {"leverage": 3}),
            (NO_MARGIN_YET, {"leverage": 0, "size": Decimal("0.00001")}),
        ):
            never = self.assertRaisesRegex(ConfigError, "never trade")
            with self.subTest(changes), self.listed(**listed), never:
                self.run_once(**changes)

    def test_an_order_is_looked_up_though_margin_is_missing(self) -> None:
        self.config = self.config._replace(leverage=2)
        self.hold()
        self.let_go()
        self.write_lost_order(leverage=2)
        with self.listed(**NO_MARGIN), suppress(LaterError):
            self.run_once()
        self.assert_no_order_is_open()

    def test_while_something_is_held_it_starts_to_close_only_and_ends_once_flat(self) -> None:
        self.config = self.config._replace(leverage=2)
        self.hold()
        parts = self.made(leverage=20)
        parts.bot.run(once=True)
        self.assertEqual([SIZE], self.bought())
        self.assertEqual(SIZE, abs(parts.exchange.position().volume))

    def test_a_pair_whose_candles_are_refused_ends_it_and_that_is_said(self) -> None:
        delisted = self.failing("candles", RefusedError("no such pair"))
        with delisted, self.assertRaisesRegex(ConfigError, "cannot be traded: no such pair"):
            self.run_once(accept_costs=True)

    def test_candles_that_do_not_come_at_once_are_waited_for(self) -> None:
        begin = 0.0
        self.answer_with(lambda path: BUSY if "OHLC" in path and self.time < begin else None)
        for silent_s, limit in ((200, 1000), (10, 999)):  # The second holds what the first bought.
            parts = self.made(risk=RiskTable(max_fee_percent_per_day=Decimal(limit)))
            begin = self.time + silent_s
            with self.subTest(silent_s), closing(parts):
                parts.bot.run(once=True)
                self.assertEqual("", parts.bot.plan.limits.close_only)
                self.assertEqual([SIZE], self.bought())

    def test_costs_are_counted_at_the_account_s_own_fee(self) -> None:
        self.api.account.fee_rate = Decimal("0.0001")
        self.run_once(interval=1, risk=RiskTable(max_fee_percent_per_day=Decimal("0.5")))
        self.assertEqual([SIZE], self.bought())

    def test_costs_that_were_accepted_once_are_not_asked_about_again(self) -> None:
        self.config = self.config._replace(
            interval=1, risk=RiskTable(max_fee_percent_per_day=Decimal("0.001"))
        )
        with self.assertRaisesRegex(ConfigError, "--accept-costs"):
            self.run_once()
        self.assertEqual([], self.bought())
        self.run_once(accept_costs=True)
        self.run_once()
        self.assertEqual([SIZE], self.bought())
        self.run_once(strategy=StrategyTable(length=2))  # It holds, so it starts to close only.
        self.assertLessEqual(len(self.bought()), 2)
        with self.journal() as journal:
            (alert,) = (text for text in active_alerts(journal) if text.startswith("closing only"))
        self.assertRegex(alert, "it costs too much; over the .*; `run --accept-costs` starts")


class TestTogether(unittest.TestCase):
    def setUp(self) -> None:
        environ = {"HOME": "/", "KRAKENBOT_STATE_DIRECTORY": str(own_folder(self))}
        self.config = load("/dev/null", environ, Path("/"))

    def test_bots_that_start_at_the_same_time_keep_each_others_ids(self) -> None:
        config = self.config
        names = [f"PAIR{number}USD" for number in range(24)]
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(partial(identity.remember, config, "pair"), names, names))
        self.assertEqual(names, [identity.recall(config, "pair", name) for name in names])

    def test_half_an_entry_after_a_power_failure_hides_none_but_itself(self) -> None:
        index = self.config.state_directory / identity.INDEX
        index.parent.mkdir(exist_ok=True)
        index.write_text('{"pair api.kraken.com A": "PAIR1"}\n{"pair api.kra')
        identity.remember(self.config, "pair", "B", "PAIR2")
        identity.remember(self.config, "pair", "A", "PAIR3")
        self.assertEqual(
            ["PAIR3", "PAIR2"], [identity.recall(self.config, "pair", x) for x in "AB"]
        )

    def test_what_an_older_version_has_stored_is_known_until_something_newer_is(self) -> None:
        former = self.config.state_directory / identity.FORMER_INDEX
        former.parent.mkdir(exist_ok=True)
        former.write_text('{\n "pair api.kraken.com A": "PAIR1",\n "x": "y"\n}')
        self.assertEqual("PAIR1", identity.recall(self.config, "pair", "A"))
        identity.remember(self.config, "pair", "A", "PAIR2")
        self.assertEqual("PAIR2", identity.recall(self.config, "pair", "A"))

    def test_what_is_known_already_is_not_written_again(self) -> None:
        identity.remember(self.config, "pair", "XBTUSD", "XXBTZUSD")
        with mock.patch.object(identity, "open_private", side_effect=OSError("full")):
            identity.remember(self.config, "pair", "XBT/USD", "XXBTZUSD")
            with self.assertRaises(ConfigError):
                identity.remember(self.config, "pair", "XBTUSD", "XETHZUSD")
        self.assertEqual("XXBTZUSD", identity.recall(self.config, "pair", "XBTUSD"))


class TestKeyInformation(unittest.TestCase):
    def setUp(self) -> None:
        silence(self)

    def check(self, held: str, error: object, account: str = "a1b2", *, opens: bool) -> None:
        journal = self.enterContext(closing(open_journal(None)))
        journal.adopt(Decimal(held), Decimal(70000), 1, True)
        bot, unused, whose = mock.Mock(), mock.Mock(), identity.Identity("XXBTZUSD", account)
        bot.exchange.key_info.side_effect, bot.clock, bot.journal = error, StandingClock(0), journal
        start = Start(load("/dev/null", {"HOME": "/"}, Path("/")), unused, whose, 0.0, unused)
        check_account(start, bot, opens=opens)

    def test_a_known_key_is_asked_about_for_a_minute(self) -> None:
        silent = UnansweredError("GetApiKeyInfo: EService:Unavailable")
        withdraws = KeyInfo(("withdraw-funds",), account="")
        with self.assertRaisesRegex(StopError, "may withdraw"):
            self.check("0.01", [silent, silent, withdraws], opens=True)

    def test_what_is_held_is_looked_after_although_a_known_key_tells_nothing(self) -> None:
        silent = UnansweredError("GetApiKeyInfo: EService:Unavailable")
        disabled = KeyRefusedError("GetApiKeyInfo: EAPI:Feature disabled")
        for error in (silent, disabled):
            self.check("0.01", error, opens=True)
            self.check("0", error, opens=False)
            for held, account in (("0", "a1b2"), ("0.01", "")):
                with self.subTest(held, error=error), self.assertRaises(type(error)):
                    self.check(held, error, account, opens=True)
        with self.assertRaises(KeyRefusedError):
            self.check("0.01", KeyRefusedError("lockout", lockout=True), opens=True)
