import os
import unittest
from decimal import Decimal
from pathlib import Path
from threading import Thread
from unittest import mock

from krakenbot import config, log
from krakenbot.commands.install import value
from krakenbot.config_reader import load, load_here
from krakenbot.errors import ConfigError
from tests.folders import own_folder
from tests.logs import forget_secrets

EXAMPLE = Path(__file__).parent.parent.parent / "config.example.toml"  # A link into the manual.
HOME = {"HOME": "/home/someone"}


# A wrong value in a file, and what the message names.
WRONG: tuple[tuple[str, str], ...] = (
    ("mode = 'Live'", "mode = 'Live'"),
    ("pair = 'X/../../Y Z'", "pair = "),
    ("pair = 5", "pair = 5"),
    ("interval = true", "interval = true"),
    ("interval = '60'", "interval = '60'"),
    ("interval = 60.0", "interval = 60.0"),
    ("size = 0", "size = 0"),
    ("size = -1", "size = -1"),
    ("size = nan", "size = NaN"),
    ("size = inf", "size = Infinity"),
    ("size = '1e-4'", "size = '1e-4'"),
    ("size = '1_0'", "size = '1_0'"),
    ("size = true", "size = true"),
    ("size = 1e-19", "size = 1E-19"),
    ("size = 1e99", "size = 1E+99"),
    ("size = [1]", "size = a list"),
    ("size = 0x" + "f" * 5000, "size = a huge number"),
    ("interval = 0x" + "f" * 5000, "interval = a huge number"),
    ("leverage = 21", "leverage = 21"),
    ("leverage = false", "leverage = false"),
    ("[pair]\nname = 'x'", "pair = a table"),
    ("[riks]", "'riks' is not known; the nearest valid name is"),
    ("[strategy]\nlength = 1", "strategy.length = 1"),
    ("[strategy]\nlength = 701", "strategy.length = 701"),
    ("[strategy]\nname = 'macd'", '"sma-slope", "sma-cross"'),
    ("[strategy]\nshort = 20", "strategy.short = 20"),
    ("[strategy]\nlong = 5", "strategy.long = 5"),
    ("[risk]\nmax_orders_per_day = 0", "risk.max_orders_per_day = 0"),
    ("[risk]\nmin_margin_level = -1", "risk.min_margin_level = -1"),
    ("[exchange]\nfee_percent = 5.1", "exchange.fee_percent = 5.1"),
    ("[exchange]\ntimeout = 0", "exchange.timeout = 0"),
    ("[exchange]\npatience = 90000", "exchange.patience = 90000"),
    ("[exchange]\nclock_speed = 60", "exchange.clock_speed = 60"),
    ("[exchange]\ntrading_agreement = 1", "exchange.trading_agreement = 1"),
    ("[exchange]\nproxy = 'http://host'", "http://host:port"),
    ("[state]\ndirectory = 'a\\nb'\nx = 1", "state.x"),
    ("[state]\ndirectory = ''", "state.directory = '': must be a path"),
    ("[keys]\napi_key_file = 'k'", "api_key_file is set, the other file"),
    ("[log]\nformat = 'xml'", "log.format = 'xml'"),
)


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)
        self.addCleanup(forget_secrets)

    def load(self, toml: str | bytes = "", **environ: str) -> config.Config:
        data = toml.encode() if isinstance(toml, str) else toml
        (self.folder / "config.toml").write_bytes(data)
        return load(None, HOME | environ, self.folder)

    def complaint(self, toml: str | bytes = "", **environ: str) -> str:
        with self.assertRaises(ConfigError) as caught:
            self.load(toml, **environ)
        return str(caught.exception)


class TestDefaults(Folder):
    def unset(self) -> set[str]:
        """Return the settings that have no default, or one that depends on the machine."""
        default = load(None, HOME, self.folder)
        return {key for key in default.sources if value(default, key) == "none"} | {
            "state.directory"
        }

    def test_without_file_and_variables_every_value_is_the_default(self) -> None:
        got = load(None, HOME, self.folder)
        self.assertEqual(
            ("paper", "XBTUSD", 1, 2), (got.mode, got.pair, got.interval, got.leverage)
        )
        self.assertEqual(Decimal("0.0001"), got.size)
        self.assertEqual("https://api.kraken.com", got.exchange.url)
        self.assertIsNone(got.exchange.proxy)
        self.assertEqual(Path("/home/someone/.local/state/krakenbot"), got.state_directory)
        self.assertEqual({"default"}, set(got.sources.values()))

    def test_the_example_file_says_exactly_the_defaults(self) -> None:
        example = load(str(EXAMPLE), HOME, self.folder)
        default = load(None, HOME, self.folder)
        self.assertEqual(default._replace(sources={}), example._replace(sources={}))

    def test_the_example_sets_every_key_that_has_a_default_and_mentions_the_others(self) -> None:
        example = load(str(EXAMPLE), HOME, self.folder)
        table, set_keys, mentioned = "", set[str](), set[str]()
        for line in EXAMPLE.read_text().splitlines():
            if line.startswith("["):
                table = line.strip("[]") + "."
            words = line.removeprefix("# ").split()
            if len(words) > 2 and words[1] == "=":
                (mentioned if line.startswith("#") else set_keys).add(table + words[0])
        self.assertEqual({*example.sources} - self.unset(), set_keys)
        self.assertEqual(self.unset(), mentioned)

    def test_the_commented_lines_of_the_example_are_valid_settings(self) -> None:
        text = EXAMPLE.read_text()
        for key in self.unset():
            name = key.partition(".")[2]
            text = text.replace(f"\n# {name} = ", f"\n{name} = ")
        got = self.load(text.replace('name = "sma-slope"', 'name = "file"'))
        self.assertNotIn(None, (*got.exchange, *got.notify, got.risk.max_loss))


class TestRule(Folder):
    def test_parameters_are_exact_and_single_values(self) -> None:
        rule = "[strategy]\nname = 'file'\nfile = 'r.py'\n[strategy.parameters]\n"
        got = self.load(rule + "fast = 12\nband = 0.1\nname = 'x'\nboth = true\n")
        expected = {"fast": 12, "band": Decimal("0.1"), "name": "x", "both": True}
        self.assertEqual(expected, got.strategy.parameters)
        for line in ("fast = [1]", "fast = 2026-01-01", "fast = {}", '"a b" = 1', '"" = 1'):
            with self.subTest(line):
                self.assertIn("strategy.parameters", self.complaint(rule + line))

    def test_a_rule_without_its_name_or_the_name_without_a_rule_is_refused(self) -> None:
        for toml in (
            "[strategy]\nname = 'file'",
            "[strategy]\nfile = 'r.py'",
            "[strategy]\nname = 'sma-cross'\nparameters = {fast = 1}",
        ):
            with self.subTest(toml):
                self.assertRegex(self.complaint(toml), '^config.toml: strategy.*name = "file"')


class TestOrder(Folder):
    def test_every_digit_of_an_amount_counts_whether_number_or_text(self) -> None:
        for text in ("1000000000000", "999999999999.000000000000000001", "0.10000000000000001"):
            for written in (text, f"'{text}'"):
                with self.subTest(written):
                    self.assertEqual(Decimal(text), self.load(f"size = {written}").size)

    def test_a_variable_beats_the_file_and_the_file_beats_the_default(self) -> None:
        got = self.load("pair = 'ETHUSD'\nleverage = 3\n", KRAKENBOT_PAIR="SOLUSD")
        self.assertEqual(("SOLUSD", 3, 1), (got.pair, got.leverage, got.interval))
        self.assertEqual("KRAKENBOT_PAIR", got.sources["pair"])
        self.assertEqual("config.toml", got.sources["leverage"])
        self.assertEqual("default", got.sources["interval"])

    def test_the_command_line_beats_the_variable_that_names_the_file(self) -> None:
        (self.folder / "a.toml").write_text("leverage = 3")
        (self.folder / "b.toml").write_text("leverage = 4")
        environ = HOME | {"KRAKENBOT_CONFIG": "b.toml"}
        self.assertEqual(3, load("a.toml", environ, self.folder).leverage)
        self.assertEqual(4, load(None, environ, self.folder).leverage)

    def test_variables_take_the_type_of_their_key(self) -> None:
        text = "INTERVAL=60 SIZE=0.5 STRATEGY_LENGTH=30 RISK_MAX_LOSS=12.50"
        text += " EXCHANGE_TRADING_AGREEMENT=true EXCHANGE_TIMEOUT=2.5"
        got = self.load(**dict(f"KRAKENBOT_{word}".split("=") for word in text.split()))
        self.assertEqual((60, Decimal("0.5"), 30), (got.interval, got.size, got.strategy.length))
        self.assertEqual(Decimal("12.5"), got.risk.max_loss)
        self.assertEqual((True, 2.5), (got.exchange.trading_agreement, got.exchange.timeout))

    def test_an_empty_variable_counts_as_not_set_whatever_its_key(self) -> None:
        empty = {"KRAKENBOT_" + key.replace(".", "_").upper(): "" for key in self.load().sources}
        toml = (
            "leverage = 3\nstate.directory = '/bot'\n[risk]\nmax_loss = 50\n"
            "[exchange]\nproxy = 'http://proxy:1'\n"
        )
        self.assertEqual(self.load(toml), self.load(toml, **empty))
        self.assertEqual(self.load(), self.load(**empty))
        self.assertIn("'KRAKENBOT_MODUS' is not known", self.complaint(KRAKENBOT_MODUS=""))

    def test_an_empty_folder_of_credentials_is_none(self) -> None:
        toml = "[strategy]\nname = 'file'\nfile = 'tmp'"  # There is also a /tmp.
        got = self.load(toml, CREDENTIALS_DIRECTORY="").strategy.file
        self.assertEqual(self.folder / "tmp", got)


class TestMistakes(Folder):
    def test_all_mistakes_are_told_at_once_one_a_line(self) -> None:
        toml = "leverage = 1\npiar = 'x'\n[exchange]\nurl = 'http://api.kraken.com'\n"
        toml += "trading_agreement = 'true'\n"
        lines = self.complaint(toml, KRAKENBOT_INTERVAL="7", KRAKENBOT_MODUS="live").splitlines()
        self.assertEqual(6, len(lines))
        text = "\n".join(lines)
        for part in (
            "config.toml: leverage = 1: must be one of 0, 2,",
            "trading_agreement = 'true': must be without quotes, one of true, false",
            "nearest valid name is 'pair'",
            "config.toml: exchange.url = 'http://api.kraken.com': must be https://",
            "KRAKENBOT_INTERVAL = 7: must be one of 1, 5, 15",
            "'KRAKENBOT_MODUS' is not known; the nearest valid name is 'KRAKENBOT_MODE'",
        ):
            self.assertIn(part, text)

    def test_wrong_values_are_refused_with_key_and_value(self) -> None:
        for toml, part in WRONG:
            with self.subTest(toml):
                self.assertIn(part, self.complaint(toml))

    def test_what_is_not_a_table_is_told_how_to_write_it(self) -> None:
        for toml, part in (
            ("state = '/x'", "config.toml: 'state' is a table: write [state] with directory"),
            ("keys = 'x'", "'keys' is a table: write [keys] with api_key_file, api_secret_file"),
            ("strategy = 3", "'strategy' is a table: write [strategy] with name, length, short,"),
            ("[[log]]\nlevel = 'info'", "'log' is a table: write [log] with level, format"),
            ("paper = []", "'paper' is a table: write [paper] with balance"),
        ):
            with self.subTest(toml):
                self.assertIn(part, self.complaint(toml))
        self.assertIn("'KRAKENBOT_KEYS_API_KEY_FILE'", self.complaint(KRAKENBOT_KEYS="/x"))

    def test_a_value_wrong_in_file_and_variable_is_told_twice(self) -> None:
        text = self.complaint("leverage = 1", KRAKENBOT_LEVERAGE="x")
        self.assertEqual(2, len(text.splitlines()))

    def test_the_nearest_key_is_looked_for_in_the_same_table(self) -> None:
        for key, want in (
            ("risk.max_fee_percent", "risk.max_fee_percent_per_day"),
            ("risk.max_los", "risk.max_loss"),
            ("paper.balanc", "paper.balance"),
            ("keys.api_key_path", "keys.api_key_file"),
        ):
            with self.subTest(key):
                self.assertIn(f"name is '{want}'", self.complaint(f"{key} = 1"))

    def test_an_empty_name_of_the_file_is_told_and_nothing_else_is_read(self) -> None:
        (self.folder / "config.toml").write_text("leverage = 3")
        with self.assertRaisesRegex(ConfigError, "^--config '' names no file$"):
            load("", HOME, self.folder)

    def test_a_key_in_the_wrong_place_is_sent_to_its_table(self) -> None:
        self.assertIn("'strategy.length'", self.complaint("length = 30"))

    def test_plain_http_is_for_loopback_only(self) -> None:
        good = """http://127.0.0.1:8000 http://127.9.9.9 http://localhost:1 http://[::1]:80
            https://example.org https://127.0.0.1:8443/"""
        for url in good.split():
            with self.subTest(url):
                got = self.load(f"[exchange]\nurl = '{url}'").exchange.url
                self.assertEqual(url.removesuffix("/"), got)
        bad = r"""http://127.0.0.1.evil.example http://127.0.0.999 http://10.0.0.1 ftp://b https://
            http://localhost@evil.example file:///etc/passwd http://example.org https://a@b
            https://b/path https://b?x=1 https://b:99999 https://b\nX https://[abc] https://[::1:]"""
        for url in bad.split():
            with self.subTest(url):
                self.complaint(f'[exchange]\nurl = "{url}"')

    def test_another_clock_speed_needs_a_loopback_address(self) -> None:
        toml = "[exchange]\nclock_speed = 60\nurl = '{}'"
        self.assertEqual(60, self.load(toml.format("http://127.0.0.1:1")).exchange.clock_speed)
        self.assertIn("loopback", self.complaint(toml.format("https://example.org")))

    def test_files_that_cannot_be_understood_give_one_clear_message(self) -> None:
        for data, part in (
            (b"pair = \n", "line 1"),
            (b"pair = 'X'\nx = '\xff'\n", "can't decode byte 0xff in position 16"),
            (b"x = " + b"[" * 5000, "not valid TOML"),
            (b"x = " + b"1" * 5000, "not valid TOML"),
            (b"x = 1e99999999999999999999", "not valid TOML"),
            (b"#" * (1 << 20) + b"#", "larger than a megabyte"),
        ):
            with self.subTest(part):
                text = self.complaint(data)
                self.assertIn(part, text)
                self.assertTrue(text.startswith("config.toml: "), text)
                self.assertEqual(1, len(text.splitlines()))

    def test_a_file_saved_with_a_byte_order_mark_is_read(self) -> None:
        self.assertEqual(3, self.load(b"\xef\xbb\xbfleverage = 3").leverage)

    def test_a_named_file_must_exist_and_be_a_file(self) -> None:
        for path, part in (("none.toml", "No such file"), (".", "Is a directory")):
            with self.subTest(path), self.assertRaisesRegex(ConfigError, part):
                load(path, HOME, self.folder)

    def test_who_may_not_read_the_file_is_told_to_use_sudo(self) -> None:
        (self.folder / "config.toml").touch()
        with (
            mock.patch.object(Path, "open", side_effect=PermissionError(13, "Permission denied")),
            self.assertRaisesRegex(ConfigError, "config.toml: .*sudo"),
        ):
            load(None, HOME, self.folder)


class TestStateDirectory(Folder):
    def test_the_first_place_given_is_used(self) -> None:
        xdg = {"XDG_STATE_HOME": "/xdg"}
        systemd = xdg | {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}
        for toml, environ, want, source in (
            ("", xdg, "/xdg/krakenbot", "XDG_STATE_HOME"),
            ("", systemd, "/var/lib/a", "STATE_DIRECTORY"),
            ("[state]\ndirectory = '~/bot'", systemd, "/home/someone/bot", "config.toml"),
            ("", {"XDG_STATE_HOME": "relative"}, "/home/someone/.local/state/krakenbot", "default"),
        ):
            with self.subTest(want):
                got = self.load(toml, **environ)
                self.assertEqual(
                    (Path(want), source), (got.state_directory, got.sources["state.directory"])
                )

    def test_a_current_folder_that_was_deleted_is_said(self) -> None:
        gone = mock.patch("os.getcwd", side_effect=FileNotFoundError("No such file or directory"))
        with gone, self.assertRaisesRegex(ConfigError, "current folder"):
            load_here(None)

    def test_a_rule_file_is_found_among_the_credentials(self) -> None:
        toml = "[strategy]\nname = 'file'\nfile = '{}'"
        (self.folder / "my_rule.py").touch()
        environ = {"CREDENTIALS_DIRECTORY": str(self.folder), "HOME": ""}  # As in a service.
        environ["STATE_DIRECTORY"] = "/var/lib/krakenbot"
        for place in ("/etc/krakenbot/my_rule.py", "~/my_rule.py"):
            loaded = self.load(toml.format(place), **environ).strategy.file
            self.assertEqual(self.folder / "my_rule.py", loaded)

    def test_without_any_home_the_message_says_what_to_set(self) -> None:
        with self.assertRaisesRegex(ConfigError, "set state.directory"):
            load(None, {}, self.folder)
        load(None, {"STATE_DIRECTORY": "/var/lib/a"}, self.folder)


class TestPaths(Folder):
    def test_a_long_path_that_is_not_there_yet_is_no_key(self) -> None:
        path = "/usr/share/krakenbotsomewhere/bitcoin/state"
        self.load(f"[state]\ndirectory = '{path}'")
        self.assertEqual(path, log.redact_registered(path))

    def test_a_long_path_of_a_key_file_is_no_key_either(self) -> None:
        (self.folder / "my-bots").mkdir()
        for folder in ("~", str(self.folder / "my-bots")):
            path = f"{folder}/secrets/of/production/krakenbot/exchange/apikey"
            with self.subTest(path):
                self.load(f"[keys]\napi_key_file = '{path}'\napi_secret_file = '{path}'")

    TOML = (
        "state.directory = 'here'\n[keys]\napi_key_file = '~/key'\napi_secret_file = 'secret'\n"
        "[strategy]\nname = 'file'\nfile = 'rule.py'"
    )

    def test_a_relative_path_in_a_file_counts_from_its_folder_wherever_it_runs(self) -> None:
        (self.folder / "bots").mkdir()
        bots = self.folder / "bots"
        for name in ("bot.toml", "config.toml"):
            (bots / name).write_text(self.TOML)
        for named, cwd in (
            ("bot.toml", bots),
            (None, bots),
            ("bots/bot.toml", self.folder),
            ("../bot.toml", bots / "elsewhere"),
            ("~/bots/bot.toml", Path("/")),
            (str(bots / "bot.toml"), Path("/")),
        ):
            with self.subTest(named, cwd=cwd):
                cwd.mkdir(exist_ok=True)
                got = load(named, {"HOME": str(self.folder)}, cwd)
                self.assertEqual(bots / "here", got.state_directory)
                self.assertEqual((self.folder / "key", bots / "secret"), got.keys)
                self.assertEqual(bots / "rule.py", got.strategy.file)

    def test_a_relative_path_in_a_variable_is_refused(self) -> None:
        for name in (
            "KRAKENBOT_STATE_DIRECTORY",
            "KRAKENBOT_KEYS_API_KEY_FILE",
            "KRAKENBOT_STRATEGY_FILE",
            "STATE_DIRECTORY",
        ):
            with self.subTest(name):
                said = rf"(?m)^{name}: a relative path works only in .*; set "
                self.assertRegex(self.complaint(**{name: "here"}), said)
        got = self.load(KRAKENBOT_STATE_DIRECTORY="~/here").state_directory
        self.assertEqual(Path("/home/someone/here"), got)

    def test_a_journal_where_older_versions_looked_for_the_folder_is_not_left_behind(self) -> None:
        (self.folder / "bots").mkdir()
        (self.folder / "bots/bot.toml").write_text("state.directory = 'here'")
        (self.folder / "here").mkdir()
        self.assertEqual(
            self.folder / "bots/here", load("bots/bot.toml", HOME, self.folder).state_directory
        )
        (self.folder / "here/live.db").touch()
        with self.assertRaisesRegex(ConfigError, f"{self.folder}/here has .*; set state.directory"):
            load("bots/bot.toml", HOME, self.folder)
        (self.folder / "bots/here").mkdir()
        self.assertRaises(ConfigError, load, "bots/bot.toml", HOME, self.folder)
        (self.folder / "here/live.db").rename(self.folder / "bots/here/live.db")
        load("bots/bot.toml", HOME, self.folder)

    def test_a_former_place_that_cannot_be_looked_at_is_no_objection(self) -> None:
        file = self.folder / "bot.toml"
        file.write_text("state.directory = 'here'")
        with mock.patch.object(Path, "glob", side_effect=PermissionError):
            self.assertEqual(self.folder / "here", load(str(file), HOME, Path("/")).state_directory)
        file.write_text(f"state.directory = '{'a' * 300}'")
        load(str(file), HOME, Path("/"))

    def test_a_path_that_the_locale_cannot_write_is_refused(self) -> None:
        error = UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range(128)")
        with mock.patch("os.fsencode", side_effect=error):
            said = self.complaint("state.directory = '/bücher'")
        self.assertIn("config.toml: state.directory = '/bücher': must be a path, in", said)

    def test_where_a_file_has_no_folder_of_its_own_a_path_must_be_absolute(self) -> None:
        (self.folder / "config.toml").write_text("state.directory = 'here'")
        os.mkfifo(self.folder / "pipe.toml")
        pipe, text = self.folder / "pipe.toml", "state.directory = 'a'"
        Thread(target=pipe.write_text, args=(text,)).start()
        service = HOME | {"CREDENTIALS_DIRECTORY": str(self.folder)}
        for named, environ in (("config.toml", service), ("pipe.toml", HOME)):
            with self.assertRaisesRegex(
                ConfigError, "only in a regular config.*; set state.directory"
            ):
                load(named, environ, self.folder)


class TestNothingSecretIsShown(Folder):
    def test_keys_in_the_file_are_refused_without_showing_them(self) -> None:
        for name in ("api_key", "secret", "[exchange]\napi-secret", "[kraken]\nkey"):
            with self.subTest(name):
                text = self.complaint(f"{name} = 'HUSHHUSH'")
                self.assertIn("secrets do not belong in the configuration", text)
                self.assertNotIn("HUSH", text)
        self.assertNotIn("HUSH", self.complaint(KRAKENBOT_API_SECRET="HUSHHUSH"))

    def test_wrong_addresses_do_not_show_passwords_or_tokens(self) -> None:
        text = self.complaint(
            "[notify]\nurl = 'http://hooks.example/HUSH'\nbody = 5\nheartbeat_url = 'HUSH'\n"
            "[exchange]\nurl = 'https://me:HUSH@b'\nproxy = 'http://me:HUSH@b:1'\n"
        )
        self.assertEqual(5, len(text.splitlines()))
        self.assertNotIn("HUSH", text)

    def test_a_password_in_a_wrong_proxy_is_not_shown(self) -> None:
        for proxy in ("http://1.2.3.4:3128:user:HUSH", "http://user:HUSH", "HUSH"):
            said = self.complaint(f"exchange.proxy = '{proxy}'")
            self.assertEqual(
                "config.toml: exchange.proxy = (not shown): must be http://host:port", said
            )

    def test_a_key_in_the_place_of_any_other_setting_is_not_shown(self) -> None:
        for key, pasted in (("pair", "HUSH" * 22), ("exchange.url", " " + "HUSH" * 14)):
            with self.subTest(key):
                self.assertNotIn("HUSH", log.clean(self.complaint(f"{key} = '{pasted}'")))
        self.assertNotIn("HUSH", log.clean(self.complaint(f"mode = 'x:{'HUSH' * 22};'")))

    def test_a_notify_address_is_a_secret_everywhere(self) -> None:
        got = self.load("[notify]\nurl = 'https://hooks.example/T0/HUSHHUSH'\nbody = 'HUSH $text'")
        assert got.notify.url is not None
        self.assertEqual("https://hooks.example/T0/HUSHHUSH", got.notify.url.reveal())
        self.assertNotIn("HUSH", repr(got))
        self.assertNotIn("HUSH", log.redact("POST /T0/HUSHHUSH failed"))
