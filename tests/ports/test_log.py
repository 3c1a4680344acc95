import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import unittest

from krakenbot import log
from tests.logs import restoring

KEY = "k+y/AbCdEf0123456789=="


def run(code: str, **streams: object) -> "subprocess.CompletedProcess[str]":
    options = {"text": True, "timeout": 30, "stdout": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-c", code], **options)  # type: ignore[call-overload,no-any-return]


class TestLog(unittest.TestCase):
    def setUp(self) -> None:
        self.addCleanup(restoring())
        self.stream = io.StringIO()
        self.setup()

    def setup(self, format: str = "text", level: str = "info") -> None:
        log.setup(level, format, self.stream)

    def test_text_is_time_level_and_message(self) -> None:
        log.info("order filled id=%s volume=%s", "a", 5)
        pattern = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO order filled id=a volume=5\n$"
        self.assertRegex(self.stream.getvalue(), pattern)

    def test_json_is_one_object_a_line(self) -> None:
        self.setup("json")
        log.warning("one\ntwo")
        log.critical("three")
        first, second = map(json.loads, self.stream.getvalue().splitlines())
        self.assertEqual("one\\ntwo", first["message"])
        self.assertEqual("warning", first["level"])
        self.assertEqual(("critical", "three"), (second["level"], second["message"]))

    def test_in_json_why_a_command_ended_is_an_object_too(self) -> None:
        self.setup("json")
        log.say("krakenbot: halted: why\nand what to do")
        line = json.loads(self.stream.getvalue())
        self.assertEqual("error", line["level"])
        self.assertIn("halted: why", line["message"])

    def test_a_second_setup_replaces_the_first_and_hides_what_is_below_its_level(self) -> None:
        self.setup(level="warning")
        log.info("x")
        log.warning("y")
        self.assertRegex(self.stream.getvalue(), r"^[^\n]* WARNING y\n$")

    def test_registered_secrets_appear_in_no_form(self) -> None:
        log.register(KEY)
        forms = (
            KEY,
            "ayt5L0FiQ2RFZjAxMjM0NTY3ODk9PQ==",
            "k%2By%2FAbCdEf0123456789%3D%3D",
            "k%2by%2fAbCdEf0123456789%3d%3d",
            "k%2By/AbCdEf0123456789%3D%3D",
        )
        for format in ("text", "json"):
            self.setup(format)
            for form in forms:
                log.info("answer=%s", f"x{form}x")
                log.info("answer=%r", {"key": form})
        try:
            raise ValueError(KEY) from KeyError(KEY)
        except ValueError as error:
            text = self.stream.getvalue() + log.describe(error)
        self.assertIn("<secret>", text)
        self.assertNotIn("AbCdEf", text)
        self.assertNotIn("ayt5L0", text)

    def test_a_plain_word_at_the_end_of_an_address_is_not_hidden_in_other_text(self) -> None:
        for end, shown in (("krakenbot", True), ("T0/HUSHHUSH", False), ("t0pic-hush", False)):
            log.register(f"https://ntfy.sh/{end}")
            self.assertEqual(shown, end in log.redact(f"the {end}"))
            self.assertNotIn(end, log.redact(f"POST https://ntfy.sh/{end}"))

    def test_text_from_outside_forges_no_line_and_drives_no_terminal(self) -> None:
        evil = "x\n2026-01-01 00:00:00 INFO fine\r\x1b[2J\x9b1m\x00\u2028\u202e\ud800"
        self.setup("json")
        log.info("answer=%s", evil)
        self.assertEqual(1, self.stream.getvalue().count("\n"))
        self.setup("text")
        log.info("answer=%s", evil)
        try:
            raise ValueError(evil)
        except ValueError as error:
            text = self.stream.getvalue() + log.describe(error)
        for character in "\r\x1b\x9b\x00\u2028\u202e\ud800":
            self.assertNotIn(character, text)
        self.assertEqual(2, sum(line[:1] == "2" for line in text.splitlines()))
        self.assertIn("x\\n2026-01-01 00:00:00 INFO fine\\r\\x1b[2J", text)

    def test_a_wrong_placeholder_costs_neither_the_record_nor_an_exception(self) -> None:
        log.info("volume=%d", "many")
        self.assertIn("many", self.stream.getvalue())

    def test_a_stream_that_fails_raises_nothing(self) -> None:
        self.stream.close()
        log.critical("x")

    def journald(self, code: str, *, reads: bool = True) -> list[str]:
        """Return the lines on standard error, which journald reads or only another program."""
        with tempfile.TemporaryFile() as file:
            at = os.fstat(file.fileno())
            name = f"{at.st_dev}:{at.st_ino}" if reads else "1:1"
            run(f"from krakenbot import log; {code}", stderr=file, env={"JOURNAL_STREAM": name})
            file.seek(0)
            return file.read().decode().splitlines()

    def test_journald_gets_priorities_only_when_it_is_the_reader(self) -> None:
        code = "log.setup('debug', 'text');"
        code += "[write('x') for write in (log.critical, log.warning, log.info, log.debug)]"
        self.assertEqual(["<2>x", "<4>x", "<6>x", "<7>x"], self.journald(code))
        self.assertEqual(["20"] * 4, [line[:2] for line in self.journald(code, reads=False)])

    def test_a_reader_that_stands_still_holds_neither_the_program_nor_its_end(self) -> None:
        code = (
            "import time; from krakenbot import log; log.setup('info', 'text');"
            "began = time.monotonic();"
            "[log.info('line ' * 20) for _ in range(5000)]; log.say('the end');"
            "print(time.monotonic() - began < 2)"
        )
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        began = time.monotonic()
        with open(writer, "w") as stuck:
            done = run(code, stderr=stuck)
        self.assertEqual((0, "True\n"), (done.returncode, done.stdout))
        self.assertLess(time.monotonic() - began, 5)

    def test_lines_that_nobody_read_are_counted_when_somebody_reads_again(self) -> None:
        code = (
            "import sys, time; from krakenbot import log; log.setup('info', 'text');"
            "[log.info('line ' * 20) for _ in range(2500)]; time.sleep(0.2);"  # The pipe is full.
            "[log.info('line ' * 20) for _ in range(2500)]; print(flush=True); sys.stdin.read(1);"
            "log.flush(); log.info('again')"
        )
        command = [sys.executable, "-c", code]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
            process.stdout.readline()
            _, text = process.communicate("x", timeout=30)
        self.assertRegex(text, r"\n\d+ lines are lost: nobody read them\n.* INFO again\n$")
        lost = sum(map(int, re.findall(r"\n(\d+) lines are lost", text)))
        self.assertEqual((5001, True), (lost + text.count(" INFO "), lost > 1000))

    def test_why_a_command_ended_carries_its_priority_for_journald(self) -> None:
        self.assertEqual(["<3>why", "<3>and how"], self.journald("log.say('why\\nand how')"))

    def test_a_full_disk_or_closed_standard_error_does_not_change_the_exit_code(self) -> None:
        code = (
            "from krakenbot import log; log.setup('info', 'text'); log.critical('x'); print('done')"
        )
        with open("/dev/full", "w") as full:
            done = run(code, stderr=full)
        self.assertEqual((0, "done\n"), (done.returncode, done.stdout))
        command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30)
        self.assertEqual((0, "done\n"), (done.returncode, done.stdout))
