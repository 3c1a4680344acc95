import ast
import os
import signal
import subprocess
import sys
import types
import unittest
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from krakenbot import __version__, cli, log
from krakenbot.clock import StopRequestedError
from krakenbot.commands import COMMANDS, UsageError, help
from krakenbot.errors import ConfigError, LaterError, StopError, UnansweredError
from krakenbot.simulated.listing import SANDBOX_KEY, SANDBOX_SECRET
from tests.commands.called import Done, call
from tests.logs import forget_secrets

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
    def run_with(self, name: str, run: Callable[[Namespace], int], *argv: str) -> Done:
        module = fake(COMMANDS.get(name, (name,))[0], run)
        with mock.patch.dict(sys.modules, {module.__name__: module}):
            return call(*argv, **os.environ)

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

    def test_config_is_taken_before_and_after_the_command(self) -> None:
        before = ("--config a.toml status", "--config=a.toml status")
        for line in (*before, "status --config a.toml", "--config b.toml status --config=a.toml"):
            with self.subTest(line):
                self.assertEqual("a.toml", self.parsed("status", *line.split()).config)
        self.assertIsNone(self.parsed("status", "status").config)
        self.assertEqual("status", self.parsed("run", "--config", "status").config)

    def test_words_after_the_command_belong_to_it(self) -> None:
        self.assertEqual(["run", "a=b"], self.parsed("call", "call", "run", "a=b").words)

    def test_every_help_fits_a_terminal_of_80_columns(self) -> None:
        for words in ((), *((command,) for command in COMMANDS)):
            with self.subTest(words):
                done = call(*words, "--help", COLUMNS="80")
                self.assertEqual(0, done.code)
                lines = {*done.out.splitlines()} - {SANDBOX_SECRET}
                self.assertEqual([], [line for line in lines if len(line) > 80])
        self.assertIn(f"\n{SANDBOX_KEY}\n{SANDBOX_SECRET}\n", call("sandbox", "--help").out)

    def test_each_of_the_commands_of_one_file_shows_an_example_of_its_own(self) -> None:
        for command in ("flatten", "adopt", "resume", "uninstall"):
            example = call(command, "--help").out.rpartition("example: ")[2]
            self.assertRegex(example, rf"^(sudo )?krakenbot {command}[^;]*\n$")

    def test_wrong_usage_is_two_and_names_the_nearest_command(self) -> None:
        code, _, err = self.run_with("status", lambda _: 0, "statsu")
        self.assertEqual(2, code)
        self.assertIn("'status'", err)
        code, _, err = self.run_with("status", lambda _: 0, "status", "--liev")
        self.assertEqual(2, code)
        self.assertIn("--liev", err)
        self.assertEqual(2, self.run_with("status", lambda _: 0, "status", "--config")[0])

    def test_yes_without_a_question_is_wrong_usage(self) -> None:
        code, _, err = call("--config", "/dev/null", "run", "--yes")
        self.assertEqual(2, code)
        self.assertIn("--yes is only for --adopt", err)

    def test_errors_end_with_the_agreed_exit_codes(self) -> None:
        for name, error, want in (
            ("run", ConfigError("no pair"), 78),
            ("run", StopError("look"), 76),
            ("run", StopError("key", 77), 77),
            ("run", LaterError("no exchange"), 75),
            ("call", UnansweredError("no answer"), 75),
            ("report", UsageError("no such folder"), 2),
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
                if want == 2 or 70 < want < 79:
                    self.assertEqual(f"krakenbot: {error}\n", err)

    def test_a_current_folder_that_was_removed_is_no_defect(self) -> None:
        lost = mock.patch("os.getcwd", side_effect=FileNotFoundError(2, "No such file"))
        for line in ("demo", "install --systemd --dry-run", "unit", "build", "config"):
            with self.subTest(line), lost:
                done = call(*line.split(), HOME="/x")
                self.assertEqual(2 if line == "build" else 78, done.code, done.err)

    def test_each_line_of_a_message_says_who_speaks_and_hides_escapes(self) -> None:
        error = mock.Mock(side_effect=ConfigError("one\ntwo \x1b[2J"))
        _, _, err = self.run_with("run", error)
        self.assertEqual("krakenbot: one\nkrakenbot: two \\x1b[2J\n", err)

    def test_a_traceback_shows_no_secret(self) -> None:
        self.addCleanup(forget_secrets)
        log.register("HUSHHUSH")

        def run(_: Namespace) -> int:
            hidden = "HUSH" + "HUSH"
            raise ValueError(f"bad {hidden}") from KeyError(hidden)

        code, _, err = self.run_with("run", run)
        self.assertEqual(70, code)
        self.assertIn("ValueError: bad <secret>", err)
        self.assertNotIn("HUSHHUSH", err)

    def test_help_lists_the_commands_and_prints_a_command_s_own(self) -> None:
        code, out, _ = self.run_with("other", lambda _: 1, "help")
        self.assertEqual(0, code)
        for name in COMMANDS:
            self.assertIn(f"\n  {name} ", out)
        for words in (("help", "status"), ("status", "--help")):
            code, out, _ = self.run_with("status", lambda _: 1, *words)
            self.assertEqual(0, code)
            self.assertIn("example: krakenbot an-example", out)

    def test_help_prints_every_page_that_it_lists_and_names_them_all(self) -> None:
        topics = call("help").out.rpartition("help TOPIC: ")[2].replace(",", " ").split()
        self.assertIn("sandbox", topics)
        for topic in topics:
            with self.subTest(topic):
                text = help.manual_file(f"{topic}.md")
                self.assertTrue(text.endswith("\n"))
                self.assertEqual(text, call("help", topic).out)
        done = call("help", "cots")
        self.assertEqual((2, True), (done.code, " costs," in done.err))

    def test_config_shows_every_setting_with_its_source_and_no_secret(self) -> None:
        environ = {"HOME": "/x", "KRAKENBOT_PAIR": "ETHUSD"}
        environ["KRAKENBOT_NOTIFY_URL"] = "https://example.org/HUSHHUSH"
        self.addCleanup(forget_secrets)
        with mock.patch.dict(os.environ, environ, clear=True):
            code, out, _ = self.run_with("other", lambda _: 1, "config")
        self.assertEqual(0, code)
        self.assertRegex(out, r"(?m)^pair +ETHUSD +KRAKENBOT_PAIR$")
        self.assertRegex(out, r"(?m)^risk.max_loss +none +default$")
        self.assertNotIn("HUSH", out)


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
            "bad = {'ssl', 'socket', 'sqlite3', 'krakenbot.config'} & {*sys.modules};"
            "sys.exit(str(bad) if bad else code)"
        )
        for option, want in (("--version", f"krakenbot {__version__}\n"), ("--help", "  sandbox ")):
            with self.subTest(option):
                process = self.start("-c", code, option)
                out, err = process.communicate(timeout=30)
                self.assertEqual((0, ""), (process.returncode, err))
                self.assertIn(want, out)

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
        want = "krakenbot: cannot write to standard output: No space left on device\n"
        for unbuffered, count in (("", 1), ("", 100_000), ("1", 1)):
            with self.subTest(unbuffered=unbuffered, count=count):
                environ = os.environ | {"PYTHONUNBUFFERED": unbuffered}
                code = FAKE.format(name="history", body=f"print('x' * {count})")
                with open("/dev/full", "w") as full:
                    process = self.start("-c", code, stdout=full, env=environ)
                    _, err = process.communicate(timeout=30)
                self.assertEqual((2, want), (process.returncode, err))

    def test_a_character_that_the_terminal_cannot_show_is_no_defect(self) -> None:
        environ = os.environ | {"PYTHONIOENCODING": "ascii"}
        code = FAKE.format(name="history", body="print('\u20bf')")
        process = self.start("-c", code, env=environ)
        self.assertEqual(("\\u20bf\n", ""), process.communicate(timeout=30))

    def test_an_error_on_a_full_standard_error_keeps_its_exit_code(self) -> None:
        body = "from krakenbot.errors import ConfigError; raise ConfigError('x')"
        refused = ("-m", "krakenbot", "--config=/dev/null", "call", "--futures", "x")
        for words in (("-c", FAKE.format(name="status", body=body)), refused):
            with self.subTest(words), open("/dev/full", "w") as full:
                self.assertEqual(78, self.start(*words, stderr=full).wait(timeout=30))

    def test_a_program_that_is_started_without_its_streams_runs_all_the_same(self) -> None:
        body = "assert not any(s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr))"
        code = FAKE.format(name="status", body=f"import os; {body}; assert os.dup(0) > 2")
        started = {
            closed: self.start("-c", code, preexec_fn=lambda n=closed: [*map(os.close, n)])
            for closed in ((0,), (1,), (2,), (0, 1, 2))
        }
        for closed, process in started.items():
            with self.subTest(closed=closed):
                self.assertEqual(0, process.wait(timeout=30))

    def test_ctrl_c_is_a_clean_end_for_run_and_130_for_others(self) -> None:
        # Short sleeps: a signal just before a long one would be noticed only at its end.
        body = "import time; print('up', flush=True); [time.sleep(0.05) for _ in range(600)]"
        wanted = {"run": 0, "backtest": 130}
        started = {name: self.start("-c", FAKE.format(name=name, body=body)) for name in wanted}
        for name, process in started.items():
            with self.subTest(name):
                assert process.stdout is not None and process.stderr is not None
                process.stdout.readline()
                process.send_signal(signal.SIGINT)
                self.assertEqual("", process.stderr.read())
                self.assertEqual(wanted[name], process.wait(timeout=30))

    def test_ctrl_c_before_any_command_has_begun_ends_quietly_with_130(self) -> None:
        body = "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
        code = (
            "import os, signal, sys, time, types, runpy;"
            "module = types.ModuleType('krakenbot.cli');"
            f"module.__getattr__ = lambda name: exec({body!r});"
            "sys.modules[module.__name__] = module;"
            "runpy.run_module('krakenbot', run_name='__main__')"
        )
        process = self.start("-c", code)
        self.assertEqual(("", ""), process.communicate(timeout=30))
        self.assertEqual(130, process.returncode)


class TestOldPython(unittest.TestCase):
    def test_a_python_that_is_too_old_is_told_in_one_sentence(self) -> None:
        """Only `__main__.py` is run as an old Python would; it could not even parse the rest."""
        door = Path(cli.__file__).with_name("__main__.py")
        ast.parse(door.read_text(), feature_version=(3, 7))
        code = (
            "import runpy, sys; sys.version_info = (3, 10, 4, 'final', 0);"
            f"runpy.run_path({str(door)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(78, done.returncode)
        self.assertEqual("krakenbot needs Python 3.11 or newer, and this is 3.10.\n", done.stderr)
