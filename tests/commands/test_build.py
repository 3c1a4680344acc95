import hashlib
import os
import stat
import subprocess
import sys
import threading
import unittest
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

from krakenbot.commands.install import packed
from tests.commands.called import call
from tests.folders import own_folder
from tests.markets import sandbox_for, short_histories

ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534
OF_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def setUpModule() -> None:
    short_histories()


def python_for_others() -> str | None:
    """Return a Python that a user without any rights can start, None if there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            check = "import sys; sys.exit(sys.version_info < (3, 11))"
            command = [python, "-I", "-S", "-c", check]
            done = subprocess.run(command, capture_output=True, check=False, **OF_NOBODY)
        except OSError:
            continue
        if done.returncode == 0:
            return python
    return None


class TestBuild(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = own_folder(self)
        self.file = self.folder / "krakenbot.pyz"
        self.file.write_bytes(packed())

    def run_python(
        self, *argv: str, python: str = sys.executable, **more: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run an isolated Python, by default with no variables and in the test's folder."""
        options = {"cwd": self.folder, "env": {}, "capture_output": True, "timeout": 60} | more
        return subprocess.run([python, "-I", "-S", *argv], text=True, check=False, **options)

    def test_it_holds_the_sources_in_order_with_one_time_and_nothing_else(self) -> None:
        with zipfile.ZipFile(self.file) as archive:
            entries = archive.infolist()
        names = [entry.filename for entry in entries]
        files = [path for path in (ROOT / "krakenbot").rglob("*.*") if path.is_file()]
        package = [str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"]
        self.assertEqual(sorted(["__main__.py", *package]), names)
        self.assertEqual({(1980, 1, 1, 0, 0, 0)}, {entry.date_time for entry in entries})
        self.assertEqual({0o100644 << 16}, {entry.external_attr for entry in entries})

    def test_a_clone_an_installed_copy_and_the_file_itself_build_the_same_bytes(self) -> None:
        again = self.folder / "again.pyz"
        done = self.run_python(str(self.file), "build", "--output", str(again))
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.assertEqual(f"{digest}  {again}\n", done.stdout, done.stderr)
        self.assertEqual(self.file.read_bytes(), again.read_bytes())
        with zipfile.ZipFile(self.file) as archive:
            archive.extractall(self.folder / "installed")
        code = f"import sys; sys.path.insert(0, {str(self.folder / 'installed')!r}); "
        code += "from krakenbot.cli import main; sys.exit(main(['build']))"
        self.file.unlink()
        self.run_python("-c", code)
        self.assertEqual(self.file.read_bytes(), again.read_bytes())

    def test_it_can_replace_the_very_file_that_runs(self) -> None:
        before = self.file.read_bytes()
        done = self.run_python(str(self.file), "build", "--output", str(self.file))
        self.assertEqual((0, before), (done.returncode, self.file.read_bytes()))
        self.assertEqual([self.file], list(self.folder.iterdir()))

    def test_an_interruption_leaves_no_file_and_a_killed_process_none_that_is_in_the_way(
        self,
    ) -> None:
        argv = ["build", "--output", str(self.file)]
        for unlink in (
            Path.unlink,
            lambda path, missing_ok: None,
        ):  # As if it was killed in between.
            with (
                mock.patch.object(Path, "replace", side_effect=KeyboardInterrupt),
                mock.patch.object(Path, "unlink", unlink),
            ):
                self.assertEqual(130, call(*argv).code)
            self.assertEqual(0, call(*argv).code)
        self.assertEqual(2, len(list(self.folder.iterdir())))

    def test_a_place_that_cannot_be_written_is_wrong_usage(self) -> None:
        for place in ("/proc/none.pyz", "/etc/passwd/x.pyz", "/", ""):
            with self.subTest(place):
                done = call("build", "--output", place)
                self.assertEqual((2, True), (done.code, "cannot write" in done.err))

    def test_a_pipe_is_written_to_and_stays_a_pipe(self) -> None:
        pipe, link = self.folder / "pipe", self.folder / "link"
        read: list[bytes] = []
        os.mkfifo(pipe)
        link.symlink_to(pipe)
        for place in (pipe, link):
            reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
            reader.start()
            with self.subTest(place.name):
                self.assertEqual(0, call("build", "--output", str(place)).code)
                reader.join(10)
                self.assertEqual(self.file.read_bytes(), read.pop())
                self.assertTrue(pipe.is_fifo() and link.is_symlink())

    def test_a_link_stays_and_the_file_that_it_names_is_replaced(self) -> None:
        before, link, new = self.file.stat().st_ino, self.folder / "link", self.folder / "new"
        link.symlink_to(self.file.name)
        (self.folder / "dangling").symlink_to(new)
        for place in (link, self.folder / "dangling"):
            self.assertEqual(0, call("build", "--output", str(place)).code)
        self.assertTrue(link.is_symlink())
        self.assertNotEqual(before, self.file.stat().st_ino)
        self.assertEqual(packed(), new.read_bytes())

    @unittest.skipIf(os.geteuid() != 0, "needs root")
    def test_a_device_that_is_full_is_wrong_usage_and_stays_a_device(self) -> None:
        full = self.folder / "full"
        try:
            os.mknod(full, stat.S_IFCHR | 0o600, os.makedev(1, 7))
        except PermissionError:
            self.skipTest("no devices can be made here")
        done = call("build", "--output", str(full))
        self.assertEqual((2, True), (done.code, f"cannot write {full}" in done.err))
        self.assertTrue(full.is_char_device())

    def test_it_brings_its_manual_and_its_example_along(self) -> None:
        done = self.run_python(str(self.file), "help", "costs")
        self.assertTrue(done.stdout.startswith("# Costs"), done.stderr)
        done = self.run_python(str(self.file), "config", "--example")
        self.assertIn("interval = 1", done.stdout)

    def test_the_doctor_finds_nothing_foreign_in_it(self) -> None:
        environ = {"HOME": str(self.folder), "KRAKENBOT_EXCHANGE_URL": "http://127.0.0.1:1"}
        done = self.run_python(str(self.file), "doctor", env=environ)
        self.assertIn("nothing foreign loaded", done.stdout)

    def test_it_runs_for_a_stranger_with_nothing_but_a_state_directory_and_a_rule(self) -> None:
        """Empty environment, no home, a folder that cannot be written, a user without rights."""
        sandbox = sandbox_for(self)
        state, shut, file = self.folder / "state", self.folder / "shut", self.folder / "c.toml"
        state.mkdir(0o700)
        shut.mkdir(0o755)
        file.write_text(
            f'entry = "now"\nexchange.url = "{sandbox.url}"\nstate.directory = "{state}"\n'
            '[strategy]\nname = "file"\nfile = "my_rule.py"\n'
        )
        rule = self.folder / "my_rule.py"
        rule.write_text("CANDLES = 2\ndef direction(candles):\n    return 1\n")
        for path in (self.folder, shut, self.file, rule):
            path.chmod(0o555)
        self.addCleanup(self.folder.chmod, 0o700)
        python = python_for_others() if os.geteuid() == 0 else None
        if python is not None:
            os.chown(state, NOBODY, NOBODY)
        stranger = {"python": python, **OF_NOBODY} if python is not None else {}
        words = (str(self.file), "--config", str(file), "run", "--once")
        done = self.run_python(*words, cwd=shut, **stranger)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("long: ", done.stderr)
        self.assertEqual([], list(shut.iterdir()))
        made = list(state.iterdir())
        self.assertEqual({0o600}, {path.stat().st_mode & 0o777 for path in made})
        if python is not None:
            self.assertEqual({NOBODY}, {path.stat().st_uid for path in made})
