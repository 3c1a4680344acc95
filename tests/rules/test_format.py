import io
import unittest
from decimal import Decimal as D
from unittest import mock

from krakenbot import format as formats
from krakenbot.format import amount, asset, duration, moment, money, percent, price, signed, volume


class TestFigures(unittest.TestCase):
    def test_a_price_has_the_pair_s_decimals_and_no_exponent(self) -> None:
        for number, decimals, want in (
            (D("7.178E+4"), 1, "71,780.0"),
            (D("0.000012345"), 9, "0.000012345"),
            (71780.05, 1, "71,780.0"),
            (D("71780.10"), None, "71,780.1"),
            (D(2) / D(3), None, "0.6666666667"),
            (D("0.00001234"), None, "0.00001234"),
        ):
            with self.subTest(number):
                self.assertEqual(want, price(number, decimals))

    def test_a_volume_keeps_every_digit_that_counts_and_names_its_asset(self) -> None:
        self.assertEqual("0.01 XBT", volume(D("0.01000000"), "XXBT"))
        self.assertEqual("-0.009", volume(D("-0.009")))
        self.assertEqual("0 XBT", volume(D("0E-8"), "XXBT"))
        self.assertEqual("1,250,000.5 XDG", volume(D("1250000.5"), "XXDG"))

    def test_money_has_cents_and_its_currency(self) -> None:
        self.assertEqual("9,999.77 USD", money(D("9999.7678600000000"), "ZUSD"))
        self.assertEqual("0.00 USD", money(D("-0E-8"), "ZUSD"))
        self.assertEqual("-1,234.50", money(D("-1234.5"), ""))

    def test_money_too_small_for_cents_still_shows(self) -> None:
        self.assertEqual("0.0480 USD", money(D("0.048"), "ZUSD"))
        self.assertEqual("0.00012300 XBT", money(D("0.000123"), "XXBT"))

    def test_without_its_name_an_amount_has_the_decimals_of_its_currency(self) -> None:
        for number, currency, want in (
            (D("-1234.5"), "ZUSD", "-1,234.50"),
            (D("0.048"), "USDT", "0.0480"),
            (D("0.000123"), "XXBT", "0.00012300"),
            (1.5, "ETH", "1.50000000"),
        ):
            with self.subTest(currency):
                self.assertEqual(want, amount(number, currency))

    def test_nothing_is_ever_minus_zero(self) -> None:
        for text in (money(D("-0.00001"), "ZUSD"), percent(-0.0001), volume(D("-0.0"))):
            self.assertNotIn("-", text)

    def test_a_percentage_says_so(self) -> None:
        self.assertEqual("1.62 %", percent(D("1.62")))
        self.assertEqual("233 %", percent(233.28, 0))

    def test_a_sign_is_shown_where_something_was_won_or_lost(self) -> None:
        for text, want in (
            ("12.00 USD", "+12.00 USD"),
            ("-12.00 USD", "-12.00 USD"),
            ("0.00 USD", "0.00 USD"),
        ):
            self.assertEqual(want, signed(text))


class TestTimes(unittest.TestCase):
    def test_a_moment_is_a_date_in_utc_whatever_the_host_s_time_zone(self) -> None:
        self.assertEqual("2026-11-26 20:01:00 UTC", moment(1795723260))

    def test_a_time_that_no_calendar_has_is_shown_as_the_last_one(self) -> None:
        self.assertEqual("9999-12-31 23:59:59 UTC", moment(10**18))

    def test_a_duration_has_its_two_largest_units(self) -> None:
        for seconds, want in (
            (0, "0 s"),
            (45.4, "45 s"),
            (60, "1 min"),
            (11520, "3 h 12 min"),
            (3605, "1 h"),
            (86400, "1 day"),
            (2 * 86400 + 4 * 3600 + 59, "2 days 4 h"),
        ):
            with self.subTest(seconds):
                self.assertEqual(want, duration(seconds))


class TestAssets(unittest.TestCase):
    def test_old_codes_lose_their_letter_and_new_ones_keep_theirs(self) -> None:
        codes = ("XXBT", "ZUSD", "XBT.F", "XXBT.F", "ZETA", "SOL", "XDG", "")
        want = ["XBT", "USD", "XBT.F", "XBT.F", "ZETA", "SOL", "XDG", ""]
        self.assertEqual(want, [asset(code) for code in codes])

    def test_a_number_of_any_size_is_written_out(self) -> None:
        for number in (D("1E+30"), D("1E-30"), 1e15, 3):
            self.assertNotIn("E", formats.volume(number).upper())


class TestColors(unittest.TestCase):
    def test_only_a_terminal_that_wants_colors_gets_them(self) -> None:
        terminal = mock.Mock(isatty=lambda: True)
        for environ, want in (
            ({"TERM": "xterm"}, True),
            ({"TERM": "dumb"}, False),
            ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ):
            with self.subTest(environ), mock.patch.dict("os.environ", environ, clear=True):
                self.assertEqual(want, formats.shows_color(terminal))
                self.assertFalse(formats.shows_color(io.StringIO()))
