import os
import pickle
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

from krakenbot import log
from krakenbot.config import Config, KeysTable
from krakenbot.config_reader import load
from krakenbot.credentials import load_credentials
from krakenbot.errors import ConfigError
from tests.commands.called import call
from tests.folders import own_folder
from tests.logs import forget_secrets

NO_FILES = KeysTable()
ROOT = Path(__file__).parent.parent.parent
BASE64 = "c2VjcmV0IGJ5dGVzIG9mIHRoZSBrZXk="
# What is no key, and what is said about it.
ODD = {
    " \n": "is empty",
    "HUSH" * 5000: "too long",
    "HUSH\x00HUSH": "not plain text",
    "HUSHé": "not plain text",
    "HUSH\nHUSH\n": "a line end in the middle",
    "HUSH HUSH": "a space",
    '"HUSHHUSH"': "quotes",
    "'HUSHHUSH'": "quotes",
}


class TestCredentials(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)
        self.addCleanup(forget_secrets)

    def file(self, name: str, text: str, mode: int = 0o600) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def files(self, key: str) -> dict[str, str]:
        """Return the variables that name a key's file and a good secret's."""
        return {"KRAKEN_API_KEY_FILE": key, "KRAKEN_API_SECRET_FILE": self.file("s", BASE64)}

    def pair(
        self, environ: dict[str, str], prefix: str = "KRAKEN", keys: KeysTable = NO_FILES
    ) -> tuple[str, str, str]:
        found = load_credentials(Config(keys=keys), prefix, environ)
        assert found is not None
        return found.key.reveal(), found.secret.reveal(), found.source

    def refused(self, environ: dict[str, str], pattern: str) -> str:
        with self.assertRaisesRegex(ConfigError, pattern) as caught:
            load_credentials(Config(), environ=environ)
        return str(caught.exception)

    def test_none_given_is_none(self) -> None:
        blank = {"KRAKEN_API_KEY": "", "KRAKEN_API_SECRET": " "}
        for environ in ({}, blank, {"CREDENTIALS_DIRECTORY": str(self.folder)}):
            with self.subTest(environ):
                self.assertIsNone(load_credentials(Config(), environ=environ))

    def test_the_credentials_folder_comes_first_then_files_then_variables(self) -> None:
        environ = {"KRAKEN_API_KEY": " varkey\n", "KRAKEN_API_SECRET": BASE64}
        self.assertEqual(("varkey", BASE64, "KRAKEN_API_KEY"), self.pair(environ))
        environ["KRAKEN_API_KEY_FILE"] = self.file("k", "filekey\r\n")
        environ["KRAKEN_API_SECRET_FILE"] = self.file("s", f"\n {BASE64} \n", 0o400)
        self.assertEqual(("filekey", BASE64, "KRAKEN_API_KEY_FILE"), self.pair(environ))
        keys = KeysTable(Path(self.file("K", "tablekey")), Path(self.file("S", BASE64)))
        self.assertEqual("[keys]", self.pair(environ, keys=keys)[2])
        environ["CREDENTIALS_DIRECTORY"] = str(self.folder)
        self.file("kraken_api_key", "systemdkey", 0o444)
        self.file("kraken_api_secret", BASE64, 0o440)
        systemd = ("systemdkey", BASE64, "CREDENTIALS_DIRECTORY")
        self.assertEqual(systemd, self.pair(environ, keys=keys))

    def test_another_prefix_has_its_own_names(self) -> None:
        environ = {"CREDENTIALS_DIRECTORY": str(self.folder), "KRAKEN_API_KEY": "x"}
        self.file("kraken_futures_api_key", "futures")
        self.file("kraken_futures_api_secret", BASE64)
        self.assertEqual("futures", self.pair(environ, "KRAKEN_FUTURES")[0])

    def test_half_a_pair_is_refused(self) -> None:
        self.refused({"KRAKEN_API_KEY": "x"}, "KRAKEN_API_KEY is set, KRAKEN_API_SECRET is not")
        self.refused({"KRAKEN_API_SECRET": "x"}, "KRAKEN_API_SECRET is set, KRAKEN_API_KEY is not")
        self.file("kraken_api_key", "x")
        both = {"KRAKEN_API_KEY": "x", "KRAKEN_API_SECRET": "y"}
        self.refused(both | {"CREDENTIALS_DIRECTORY": str(self.folder)}, "kraken_api_secret is not")

    def test_a_file_that_others_may_read_is_refused_with_the_command_that_repairs_it(self) -> None:
        for mode in (0o640, 0o604, 0o644, 0o620):
            with self.subTest(oct(mode)):
                key = self.file("k", "HUSHHUSH", mode)
                text = self.refused(self.files(key), f"mode {mode:04o} .*chmod 600 {key}")
                self.assertNotIn("HUSH", text)

    def test_a_key_in_the_place_of_its_file_s_name_is_not_shown_however_it_was_pasted(self) -> None:
        for key in ("HUSH" * 14, "HUSH" * 21 + "HUS="):  # As long as a key, and as its secret.
            half = f"{key[:44]}\n{key[44:]}"
            for pasted in (key, f" {key}\n", f'"{key}"', f"'{key}' ", f"`{key}`", half):
                for variable in ("KRAKEN_API_KEY_FILE", "KRAKENBOT_KEYS_API_KEY_FILE"):
                    self.assert_hidden(variable, pasted)

    def assert_hidden(self, variable: str, pasted: str) -> None:
        forget_secrets()
        environ = {variable: pasted, "HOME": "/root"}
        with self.subTest(f"{variable}={pasted!r}"):
            with self.assertRaisesRegex(ConfigError, "not the key|the key itself") as caught:
                load(None, environ, self.folder)
                load_credentials(Config(), environ=environ)
            for text in (caught.exception, f"{pasted}: cannot be read", "".join(pasted.split())):
                self.assertNotIn("HUSH", log.clean(str(text)))

    def test_a_key_with_something_around_it_is_shown_nowhere(self) -> None:
        (self.folder / "a-b").mkdir()
        live = {"KRAKENBOT_MODE": "live"}
        for key in ("HUSH" * 14, "HU/SH/" * 12 + "HUSHHUSHHUSHHU=="):
            around = "~/{0} ./{0} {0}, {0}.txt key={0} {0}:{0} {1}/a-b/{0} file://{0} x/{0} x:{0}"
            for pasted in around.format(key, self.folder).split():
                for line in (
                    f"mode = '{pasted}'",
                    f"[keys]\napi_key_file = '{pasted}'\napi_secret_file = '{pasted}'",
                    f"[strategy]\nname = 'file'\nfile = '{pasted}'",
                    f"['{pasted}']\n['{pasted}']",
                    f"'{pasted}' = 1",
                    f"[keys]\n'{pasted}' = 1",
                ):
                    for command in ("config", "unit"):
                        self.assert_silent(f"leverage = 3\n{line}", command, **live)
                files = {"KRAKEN_API_KEY_FILE": pasted, "KRAKEN_API_SECRET_FILE": "/none"}
                self.assert_silent("", "call", "Balance", **files)
                for name in ("MODE", "KEYS_API_KEY_FILE", "STATE_DIRECTORY", "CONFIG"):
                    self.assert_silent("", "status", **{f"KRAKENBOT_{name}": pasted})
            for quoted in (f"' {key}'", f"\"'{key}'\"", f"'{key * 2}'", f'"""{key}\n{key}"""'):
                for command in ("config", "doctor", "status"):
                    self.assert_silent(f"[keys]\napi_key_file = {quoted}", command)

    def assert_silent(self, toml: str, *argv: str, **environ: str) -> None:
        forget_secrets()
        file = self.folder / "c.toml"
        file.write_text(toml)
        named = () if "KRAKENBOT_CONFIG" in environ else ("--config", str(file))
        done = call(*named, *argv, HOME=str(self.folder), **environ)
        with self.subTest(toml, **environ):
            self.assertNotRegex("".join(f"{done.out}{done.err}".split()), "HU/?SH")

    def test_the_path_of_a_file_is_shown_however_long_it_is(self) -> None:
        folder = self.folder / "production" / "kraken"
        folder.mkdir(parents=True)
        (folder / ("k" * 50)).touch()
        (folder / "c.toml").write_text(f"[strategy]\nname = 'file'\nfile = '{'k' * 50}'")
        done = call("--config", f"{folder}/c.toml", "config", HOME=str(self.folder))
        self.assertIn(f"{folder}/kkkk", done.out)

    def test_a_key_file_whose_name_could_be_a_key_is_read(self) -> None:
        path = self.file("k" * 60, "filekey")
        self.assertEqual("filekey", self.pair(self.files(path))[0])

    def test_what_is_no_key_file_is_refused_without_showing_or_waiting(self) -> None:
        os.mkfifo(self.folder / "fifo", 0o600)
        odd = {self.file(f"odd-{n}", text): part for n, (text, part) in enumerate(ODD.items())}
        for path, part in odd.items() | {
            (str(self.folder / "fifo"), "not a regular file"),
            (str(self.folder), "directory|not a regular file"),
            (str(self.folder / "none"), "No such file"),
        }:
            with self.subTest(path):
                self.assertNotIn("HUSH", self.refused(self.files(path), part))

    def test_what_was_loaded_is_redacted_from_then_on_and_cannot_be_pickled(self) -> None:
        got = load_credentials(
            Config(), environ={"KRAKEN_API_KEY": "HUSHHUSH", "KRAKEN_API_SECRET": BASE64}
        )
        self.assertNotIn("HUSH", repr(got))
        self.assertEqual("<secret> and <secret>", log.redact(f"HUSHHUSH and {BASE64}"))
        self.assertRaises(TypeError, pickle.dumps, got)

    def test_a_variable_with_quotes_around_the_key_is_told(self) -> None:
        environ = {"KRAKEN_API_KEY": '"HUSHHUSH"', "KRAKEN_API_SECRET": BASE64}
        self.assertNotIn("HUSH", self.refused(environ, "^KRAKEN_API_KEY: has quotes"))

    def test_the_files_of_the_table_are_not_for_futures(self) -> None:
        keys = KeysTable(Path(self.file("K", "k")), Path(self.file("S", BASE64)))
        self.assertIsNone(load_credentials(Config(keys=keys), "KRAKEN_FUTURES", {}))

    def test_who_may_not_read_a_file_is_told_to_use_sudo(self) -> None:
        keys = KeysTable(Path("/k"), Path("/s"))
        with (
            mock.patch("os.open", side_effect=PermissionError),
            self.assertRaisesRegex(ConfigError, "^/k: .*sudo"),
        ):
            load_credentials(Config(keys=keys), "KRAKEN", {})


class TestForeignCode(unittest.TestCase):
    def test_code_that_ran_before_the_program_and_sees_the_key_is_named(self) -> None:
        folder = own_folder(self)
        (folder / "sitecustomize.py").touch()
        code = (
            f"import sys; sys.path.append({str(ROOT)!r}); from krakenbot.config import Config;"
            "from krakenbot.credentials import load_credentials; load_credentials(Config())"
        )
        environ = {"KRAKEN_API_KEY": "HUSHHUSH", "KRAKEN_API_SECRET": "SFVTSEhVU0g="}
        environ["PYTHONPATH"] = str(folder)
        for flags, want in (((), True), (("-I", "-S"), False)):
            command = [sys.executable, *flags, "-c", code]
            done = subprocess.run(command, env=environ, capture_output=True, text=True)
            self.assertEqual(0, done.returncode, done.stderr)
            self.assertEqual(want, f"{folder}/sitecustomize.py ran" in done.stderr)
