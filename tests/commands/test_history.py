import contextlib
import io
import unittest

from krakenbot.commands import history


class TestTable(unittest.TestCase):
    def test_a_zero_is_shown_as_one_and_only_nothing_as_a_dash(self) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            history._print_table([{"time": 0, "target": 0, "note": "", "equity": None}])
        self.assertEqual(["0", "-", "-"], out.getvalue().splitlines()[1].split()[2:])


if __name__ == "__main__":
    unittest.main()
