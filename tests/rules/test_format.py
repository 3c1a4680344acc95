import io
import unittest
from decimal import Decimal as D
from unittest import mock

from krakenbot.commands import shows_color
from krakenbot.format import (
    amount,
    asset,
    duration,
    moment,
    money,
    percent,
    price,
    signed,
    volume,
)


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
        for number in (D("1E+30"), D("1E-30"), 1e15, 3):
            self.assertNotIn("E", volume(number).upper())

    def test_money_has_its_currency_s_decimals_and_more_where_cents_show_nothing(self) -> None:
        for number, currency, want in (
            (D("9999.7678600000000"), "ZUSD", "9,999.77 USD"),
            (D("-1234.5"), "", "-1,234.50"),
            (D("0.048"), "USDT", "0.0480 USDT"),
            (D("0.000123"), "XXBT", "0.00012300 XBT"),
            (1.5, "ETH", "1.50000000 ETH"),
        ):
            with self.subTest(want):
                self.assertEqual(want, money(number, currency))
                self.assertEqual(want.split()[0], amount(number, currency))

    def test_nothing_is_ever_minus_zero(self) -> None:
        for text in (money(D("-0.00001"), "ZUSD"), percent(-0.0001), volume(D("-0.0"))):
            self.assertNotIn("-", text)

    def test_a_percentage_says_so(self) -> None:
        self.assertEqual("1.62 %", percent(D("1.62")))
        self.assertEqual("233 %", percent(233.28, 0))

    def test_a_sign_is_shown_where_something_was_won_or_lost(self) -> None:
        shown = [signed(text) for text in ("12.00 USD", "-12.00 USD", "0.00 USD")]
        self.assertEqual(["+12.00 USD", "-12.00 USD", "0.00 USD"], shown)


class TestTimes(unittest.TestCase):
    def test_a_moment_is_a_date_in_utc_and_never_beyond_the_calendar(self) -> None:
        self.assertEqual("2026-11-26 20:01:00 UTC", moment(1795723260))
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


class TestOthers(unittest.TestCase):
    def test_old_codes_lose_their_letter_and_new_ones_keep_theirs(self) -> None:
        codes = ("XXBT", "ZUSD", "XBT.F", "XXBT.F", "ZETA", "SOL", "XDG", "")
        want = ["XBT", "USD", "XBT.F", "XBT.F", "ZETA", "SOL", "XDG", ""]
        self.assertEqual(want, [asset(code) for code in codes])

    def test_only_a_terminal_that_wants_colors_gets_them(self) -> None:
        terminal = mock.Mock(isatty=lambda: True)
        for environ, want in (
            ({"TERM": "xterm"}, True),
            ({"TERM": "dumb"}, False),
            ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ):
            with self.subTest(environ), mock.patch.dict("os.environ", environ, clear=True):
                self.assertEqual(want, shows_color(terminal))
                self.assertFalse(shows_color(io.StringIO()))
