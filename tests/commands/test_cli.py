import contextlib
import importlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import types
import unittest
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from unittest import mock

from krakenbot import __version__, cli, log
from krakenbot.clock import StopRequestedError
from krakenbot.errors import ConfigError, LaterError, StopError
from krakenbot.model import Secret

# Installs a command made up for the test in a process of its own, then runs it.
FAKE = """
import sys, types
from krakenbot import cli
module = types.ModuleType("krakenbot.commands.{name}")
module.EXAMPLE = "e"
module.add_arguments = lambda parser: None
def run(arguments):
    {body}
    return 0
module.run = run
sys.modules[module.__name__] = module
sys.exit(cli.main(["{name}"]))
"""


def fake(name: str, run: Callable[[Namespace], int]) -> types.ModuleType:
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--live", action="store_true")
        parser.add_argument("words", nargs="*")

    module = types.ModuleType(f"krakenbot.commands.{name}")
    vars(module).update(EXAMPLE="krakenbot an-example", add_arguments=add_arguments, run=run)
    return module


class TestCommandLine(unittest.TestCase):
    def run_with(
        self, name: str, run: Callable[[Namespace], int], *argv: str
    ) -> tuple[int, str, str]:
        module = fake(name, run)
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(sys.modules, {module.__name__: module}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = cli.main(argv)
        return code, out.getvalue(), err.getvalue()

    def parsed(self, name: str, *argv: str) -> Namespace:
        command = mock.Mock(return_value=0)
        code, _, err = self.run_with(name, command, *argv)
        self.assertEqual(0, code, err)
        seen: Namespace = command.call_args.args[0]
        return seen

    def test_no_command_means_run(self) -> None:
        self.assertFalse(self.parsed("run").live)
        self.assertTrue(self.parsed("run", "--live").live)
        self.assertTrue(self.parsed("run", "--config", "a.toml", "--live").live)

    def test_the_short_way_of_run_gives_the_same_as_its_parser(self) -> None:
        parser = ArgumentParser()
        parser.add_argument("--config")
        importlib.import_module("krakenbot.commands.run").add_arguments(parser)
        for argv in ((), ("--live",), ("--once", "--adopt"), ("--live", "--once", "--live")):
            with self.subTest(argv):
                self.assertEqual(vars(parser.parse_args(argv)), vars(self.parsed("run", *argv)))

    def test_config_is_taken_before_and_after_the_command(self) -> None:
        for argv in (
            ("--config", "a.toml", "status"),
            ("--config=a.toml", "status"),
            ("status", "--config", "a.toml"),
            ("--config", "b.toml", "status", "--config=a.toml"),
        ):
            with self.subTest(argv):
                self.assertEqual("a.toml", self.parsed("status", *argv).config)
        self.assertIsNone(self.parsed("status", "status").config)
        self.assertEqual("status", self.parsed("run", "--config", "status").config)

    def test_words_after_the_command_belong_to_it(self) -> None:
        self.assertEqual(["run", "a=b"], self.parsed("call", "call", "run", "a=b").words)

    def test_help_of_a_command_shows_its_example(self) -> None:
        code, out, _ = self.run_with("status", lambda _: 1, "status", "--help")
        self.assertEqual(0, code)
        self.assertIn("example: krakenbot an-example", out)

    def test_wrong_usage_is_two_and_names_the_nearest_command(self) -> None:
        code, _, err = self.run_with("status", lambda _: 0, "statsu")
        self.assertEqual(2, code)
        self.assertIn("'status'", err)
        self.assertEqual(2, self.run_with("status", lambda _: 0, "status", "--nonsense")[0])
        self.assertEqual(2, self.run_with("status", lambda _: 0, "status", "--config")[0])

    def test_errors_end_with_the_agreed_exit_codes(self) -> None:
        for name, error, want in (
            ("run", ConfigError("no pair"), 78),
            ("run", StopError("look"), 76),
            ("run", StopError("key", 77), 77),
            ("run", LaterError("no exchange"), 75),
            ("run", ValueError("oops"), 70),
            ("run", StopRequestedError(), 0),
            ("demo", KeyboardInterrupt(), 0),
            ("sandbox", StopRequestedError(), 0),
            ("flatten", KeyboardInterrupt(), 130),
            ("flatten", StopRequestedError(), 130),
            ("run", BrokenPipeError("a connection of the bot's"), 70),
        ):
            with self.subTest(name=name, error=error):
                code, _, err = self.run_with(name, mock.Mock(side_effect=error), name)
                self.assertEqual(want, code)
                self.assertEqual(want == 70, "Traceback" in err)
                if 70 < want < 79:
                    self.assertEqual(f"krakenbot: {error}\n", err)

    def test_each_line_of_a_message_says_who_speaks_and_hides_escapes(self) -> None:
        error = mock.Mock(side_effect=ConfigError("one\ntwo \x1b[2J"))
        _, _, err = self.run_with("run", error)
        self.assertEqual("krakenbot: one\nkrakenbot: two \\x1b[2J\n", err)

    def test_a_traceback_shows_no_secret(self) -> None:
        self.addCleanup(log._hidden.clear)
        log.register(Secret("HUSHHUSH"))

        def run(_: Namespace) -> int:
            hidden = "HUSH" + "HUSH"
            raise ValueError(f"bad {hidden}") from KeyError(hidden)

        code, _, err = self.run_with("run", run)
        self.assertEqual(70, code)
        self.assertIn("ValueError: bad <secret>", err)
        self.assertNotIn("HUSHHUSH", err)

    def test_every_command_that_exists_keeps_the_form(self) -> None:
        for name in cli.COMMANDS:
            if importlib.util.find_spec(f"krakenbot.commands.{name}") is None:
                continue
            with self.subTest(name):
                module = importlib.import_module(f"krakenbot.commands.{name}")
                self.assertNotIn("\n", module.EXAMPLE)
                module.add_arguments(ArgumentParser())
                self.assertTrue(callable(module.run))


class TestProcess(unittest.TestCase):
    def start(self, *argv: str, **options: object) -> "subprocess.Popen[str]":
        command = [sys.executable, *argv]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]
        self.addCleanup(process.wait)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                self.addCleanup(stream.close)
        return process  # type: ignore[no-any-return]

    def test_version_and_help_need_no_command_module_and_no_network(self) -> None:
        code = (
            "import sys; from krakenbot.cli import main; code = main([sys.argv[1]]);"
            "bad = [n for n in sys.modules if n.startswith('krakenbot.commands') or n in"
            " ('ssl', 'socket', 'http.client', 'logging', 'sqlite3', 'krakenbot.config')];"
            "sys.exit(str(bad) if bad else code)"
        )
        for option, want in (
            ("--version", f"krakenbot {__version__}\n"),
            ("--help", "  sandbox  "),
        ):
            with self.subTest(option):
                process = self.start("-c", code, option)
                out, err = process.communicate(timeout=30)
                self.assertEqual((0, ""), (process.returncode, err))
                self.assertIn(want, out)

    def test_a_running_bot_does_not_carry_the_parser_of_its_command_line(self) -> None:
        code = (
            "import sys; from krakenbot import cli; from krakenbot.commands import run;"
            "run.run = lambda _: len({'argparse', 'gettext', 'queue', 'difflib'} & {*sys.modules});"
            "sys.exit(cli.main(sys.argv[1:]))"
        )
        for words in ((), ("--live", "--once"), ("--config", "x.toml", "run", "--adopt")):
            with self.subTest(words):
                process = self.start("-c", code, *words)
                self.assertEqual(("", ""), process.communicate(timeout=30))
                self.assertEqual(0, process.returncode)
        self.assertEqual(2, self.start("-c", code, "run", "--config=x.toml").wait(timeout=30))

    def test_a_reader_that_goes_away_is_no_error(self) -> None:
        body = "[print('line' * 100) for _ in range(5000)]"
        for unbuffered in ("", "1"):
            with self.subTest(unbuffered=unbuffered):
                environ = os.environ | {"PYTHONUNBUFFERED": unbuffered}
                process = self.start("-c", FAKE.format(name="history", body=body), env=environ)
                assert process.stdout is not None and process.stderr is not None
                process.stdout.readline()
                process.stdout.close()
                self.assertEqual("", process.stderr.read())
                self.assertEqual(0, process.wait(timeout=30))

    def test_output_on_a_full_disk_is_told_and_not_taken_for_success(self) -> None:
        environ = os.environ | {"PYTHONUNBUFFERED": ""}
        code = FAKE.format(name="history", body="print('x')")
        with open("/dev/full", "w") as full:
            process = self.start("-c", code, stdout=full, env=environ)
            _, err = process.communicate(timeout=30)
        self.assertEqual(70, process.returncode)
        self.assertEqual(
            "krakenbot: cannot write to standard output: No space left on device\n", err
        )

    def test_an_error_on_a_full_standard_error_keeps_its_exit_code(self) -> None:
        body = "from krakenbot.errors import ConfigError; raise ConfigError('x')"
        with open("/dev/full", "w") as full:
            process = self.start("-c", FAKE.format(name="status", body=body), stderr=full)
            self.assertEqual(78, process.wait(timeout=30))

    def test_ctrl_c_is_a_clean_end_for_run_and_130_for_others(self) -> None:
        body = "import time; print('up', flush=True); time.sleep(30)"
        for name, want in (("run", 0), ("backtest", 130)):
            with self.subTest(name):
                process = self.start("-c", FAKE.format(name=name, body=body))
                assert process.stdout is not None and process.stderr is not None
                process.stdout.readline()
                process.send_signal(signal.SIGINT)
                self.assertEqual("", process.stderr.read())
                self.assertEqual(want, process.wait(timeout=30))


if __name__ == "__main__":
    unittest.main()
