import random
import unittest
from decimal import Decimal
from typing import Any

from krakenbot.model import Side
from krakenbot.pairs import PairRules, decimal, parse_rules, plain

ROW: dict[str, Any] = {
    "altname": "XBTUSD",
    "wsname": "XBT/USD",
    "base": "XXBT",
    "quote": "ZUSD",
    "cost_decimals": 5,
    "pair_decimals": 1,
    "lot_decimals": 8,
    "lot_multiplier": 1,
    "leverage_buy": [2, 3, 4, 5],
    "leverage_sell": [2, 3],
    "fees": [],
    "fees_maker": [],
    "fee_volume_currency": "ZUSD",
    "margin_call": 80,
    "margin_stop": 40,
    "ordermin": "0.00005",
    "costmin": "0.5",
    "tick_size": "0.1",
    "status": "online",
    "execution_venue": "international",
    "long_position_limit": 350,
    "short_position_limit": 250,
}
SEED = 20260711


def rules(**changes: object) -> PairRules:
    return parse_rules("XXBTZUSD", ROW | changes)


class TestRules(unittest.TestCase):
    def test_an_entry_of_today_becomes_rules(self) -> None:
        got = rules()
        self.assertEqual("XXBTZUSD", got.pair)
        self.assertEqual("XBTUSD", got.altname)
        self.assertEqual(("XXBT", "ZUSD", "online"), (got.base, got.quote, got.status))
        self.assertEqual((8, 1, 5), (got.lot_decimals, got.pair_decimals, got.cost_decimals))
        self.assertEqual((Decimal("0.00005"), Decimal("0.5")), (got.ordermin, got.costmin))
        self.assertEqual((2, 3, 4, 5), got.leverages(Side.BUY))
        self.assertEqual((2, 3), got.leverages(Side.SELL))
        self.assertEqual(40, got.margin_stop)
        self.assertEqual((350, 250), (got.long_position_limit, got.short_position_limit))

    def test_a_pair_without_margin_and_with_the_fields_of_old_pairs_is_accepted(self) -> None:
        left_out = ("costmin", "tick_size", "status", "long_position_limit", "execution_venue")
        row = {key: value for key, value in ROW.items() if key not in left_out}
        row |= {"leverage_buy": [], "leverage_sell": [], "short_position_limit": None}
        got = parse_rules("SOLUSD", row)
        self.assertEqual(((), ()), (got.leverage_buy, got.leverage_sell))
        self.assertEqual((None, None), (got.long_position_limit, got.short_position_limit))
        self.assertEqual(0, got.costmin)

    def test_a_status_that_is_null_is_not_online_and_a_stop_of_zero_is_none(self) -> None:
        for status in (None, "", "cancel_only"):
            self.assertNotEqual("online", parse_rules("XXBTZUSD", ROW | {"status": status}).status)
        self.assertEqual(40, parse_rules("XXBTZUSD", ROW | {"margin_stop": 0}).margin_stop)

    def test_a_missing_or_senseless_field_is_a_value_error_that_names_the_pair(self) -> None:
        for no_row in (None, [], "text", 5, Decimal(1)):
            with self.subTest(no_row), self.assertRaises(ValueError):
                parse_rules("XXBTZUSD", no_row)
        for field in ("altname", "base", "quote", "lot_decimals", "pair_decimals", "ordermin"):
            row = {key: value for key, value in ROW.items() if key != field}
            with self.subTest(missing=field), self.assertRaisesRegex(ValueError, "XXBTZUSD"):
                parse_rules("XXBTZUSD", row)
        for field, values in {
            "lot_decimals": (-1, 19, "many", None, [8], {}, 1e300, float("inf"), float("nan")),
            "pair_decimals": (-3, "x", 10**30),
            "ordermin": (None, "", "NaN", "Infinity", "-0.1", True, [], {}, "1e99"),
            "costmin": ("-1", "many", ["1"], "sNaN"),
            "leverage_buy": ("x", 3, [None], ["two"], [[2]]),
            "margin_stop": ("high", [80]),
            "long_position_limit": ("many", [], True),
        }.items():
            for value in values:
                with self.subTest(field=field, value=value), self.assertRaises(ValueError):
                    rules(**{field: value})

    def test_a_fraction_in_a_field_of_margin_leaves_the_pair_readable(self) -> None:
        got = rules(leverage_buy=[2, Decimal("2.5"), 3], margin_stop=Decimal("42.5"))
        self.assertEqual(((2, 3), Decimal("42.5")), (got.leverage_buy, got.margin_stop))


class TestRounding(unittest.TestCase):
    def test_volumes_are_cut_towards_zero_never_up(self) -> None:
        draw = random.Random(SEED)
        for _ in range(500):
            got = rules(lot_decimals=draw.randint(0, 8))
            volume = Decimal(draw.randint(-(10**14), 10**14)).scaleb(-draw.randint(0, 14))
            rounded, step = got.round_volume(volume), Decimal(1).scaleb(-got.lot_decimals)
            with self.subTest(volume=volume, decimals=got.lot_decimals):
                self.assertLessEqual(abs(rounded), abs(volume))
                self.assertLess(abs(volume - rounded), step)
                self.assertEqual(0, rounded % step)
                self.assertGreaterEqual(rounded * volume, 0)


class TestPlain(unittest.TestCase):
    def test_numbers_are_written_without_exponent_or_needless_zeros(self) -> None:
        pairs = "5E-7=0.0000005 1E+3=1000 100=100 0.00005000=0.00005 -0.10=-0.1 0E-8=0 -0=0"
        for pair in f"{pairs} -0.000=0 120.0=120".split():
            number, text = pair.split("=")
            with self.subTest(number):
                self.assertEqual(text, plain(Decimal(number)))

    def test_what_is_written_reads_back_as_the_same_number(self) -> None:
        draw = random.Random(SEED)
        for _ in range(500):
            number = Decimal(draw.randint(-(10**12), 10**12)).scaleb(draw.randint(-12, 6))
            with self.subTest(number):
                self.assertRegex(plain(number), r"^-?\d+(\.\d*[1-9])?$")
                self.assertEqual(number, Decimal(plain(number)))


class TestDecimal(unittest.TestCase):
    def test_texts_integers_and_decimals_are_numbers(self) -> None:
        for value in ("1.50", 3, Decimal("0.1"), "-2", "+154.9", "0E-8", " 7 "):
            with self.subTest(value):
                self.assertEqual(Decimal(value), decimal(value))

    def test_everything_else_is_a_value_error(self) -> None:
        texts = ("", "abc", "NaN", "sNaN", "-Infinity", "1e31", "1e-40", "1e999999", "0x10", "1,5")
        for value in (*texts, None, True, False, 1.5, [], {}, b"1"):
            with self.subTest(value), self.assertRaises(ValueError):
                decimal(value)
