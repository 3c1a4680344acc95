"""The books: worked example, FIFO, margin, rollover, liquidation, and that nothing is lost."""

import json
import random
import unittest
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal as D
from typing import Any

from krakenbot.errors import RefusedError
from krakenbot.model import MarginSummary, Order, Side
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.simulated.books import Account, Trade, identifier
from krakenbot.simulated.listing import PAIRS
from krakenbot.simulated.paper import restore, state_of

RULES = parse_rules("XXBTZUSD", PAIRS["XXBTZUSD"])
ETH = parse_rules("XETHZUSD", PAIRS["XETHZUSD"])
FEE = D("0.008")
RATES = {"ZUSD": D("0.00025"), "XXBT": D("0.0001")}
LONG, SHORT = 1, -1
START = 1_791_500_000
HOUR_S = 3600


class Books(Account):
    """An account in dollars that trades bitcoin, and begins with a position opened at 50,000."""

    def __init__(
        self,
        balance: str = "2000",
        volume: str = "0.04",
        *,
        leverage: int = 2,
        fee_rate: D = FEE,
        margin_rates: Mapping[str, D] = {},
    ) -> None:
        super().__init__({"ZUSD": D(balance)}, fee_rate, margin_rates=margin_rates, history=10000)
        self.price(D(50000))
        if volume:
            self.trade(volume, leverage=leverage)

    def price(self, price: D | int, after_s: int = 0, rules: PairRules = RULES) -> None:
        self.advance(self.position(rules), START + after_s, D(price))

    def trade(
        self,
        volume: str | D,
        price: D | int = 50000,
        after_s: int = 0,
        *,
        leverage: int = 2,
        reduce_only: bool = False,
        rules: PairRules = RULES,
    ) -> list[Trade]:
        """Fill an order of a signed volume."""
        side = Side.BUY if D(volume) > 0 else Side.SELL
        order = Order("", side, abs(D(volume)), leverage, reduce_only)
        return self.fill(self.position(rules), START + after_s, order, D(price))

    @property
    def book(self) -> Any:
        return self.position(RULES)

    @property
    def usd(self) -> MarginSummary:
        return self.summary("ZUSD")

    def text(self) -> str:
        return json.dumps(state_of(self), default=str)


def account_from(text: str, fee_rate: D = FEE) -> Books:
    account = Books(volume="", fee_rate=fee_rate)
    restore(account, json.loads(text), {rules.pair: rules for rules in (RULES, ETH)})
    return account


class WorkedExampleTest(unittest.TestCase):
    """The reference's example: 2,000 USD, 0.8 % taker, 0.02 % per 4 h, 0.04 XBT at 50,000, 2x."""

    def setUp(self) -> None:
        self.account = Books()

    def test_opening_costs_trade_fee_and_opening_fee(self) -> None:
        self.assertEqual(self.account.usd.used_margin, D("1000"))
        self.assertEqual(self.account.book.lots[0].fee, D("16.40000"))
        self.assertEqual(self.account.balances["ZUSD"], D("1983.60000"))

    def test_ten_hours_cost_two_rollovers(self) -> None:
        self.account.price(51000, 10 * HOUR_S)
        self.assertEqual(self.account.balances["ZUSD"], D("1982.80000"))
        usd = self.account.usd
        self.assertEqual((usd.unrealized_pnl, usd.equity), (D(40), D("2022.80")))
        self.assertEqual((usd.free_margin, usd.margin_level), (D("1022.80"), D("202.28")))
        self.assertEqual(self.account.liquidation_price(self.account.book), D("10430.0"))

    def test_turning_costs_the_same_in_one_order_and_in_two(self) -> None:
        for orders in (["-0.08"], ["-0.04", "-0.04"]):
            with self.subTest(orders=orders):
                account = Books()
                account.price(51000, 10 * HOUR_S)
                trades = [x for volume in orders for x in account.trade(volume, 51000, 10 * HOUR_S)]
                self.assertEqual(sum(x.fee + x.opening_fee for x in trades), D("33.048"))
                self.assertEqual(account.balances["ZUSD"], D("1989.752"))
                self.assertEqual(account.book.volume, D("-0.04"))
                self.assertEqual(account.usd.used_margin, D(1020))
                self.assertEqual(round(account.usd.margin_level or 0, 2), D("195.07"))
                self.assertEqual(account.liquidation_price(account.book), D("83953.2"))

    def test_a_shorts_used_margin_grows_with_the_price(self) -> None:
        free = {"XXBT": D(0)}
        account = Books("5000", "-0.2", leverage=5, fee_rate=D(0), margin_rates=free)
        account.price(65200)
        self.assertEqual((account.usd.used_margin, account.usd.equity), (D(2608), D(1960)))


class RatesTest(unittest.TestCase):
    """A long borrows the quote currency, a short the base; a lot keeps the rate it began with."""

    def test_opening_and_rollover_cost_the_rate_of_what_is_lent(self) -> None:
        for volume, rate, costs in (("0.04", "0.00025", "0.5"), ("-0.04", "0.0001", "0.2")):
            with self.subTest(volume):
                account = Books(volume=volume, fee_rate=D(0), margin_rates=RATES)
                self.assertEqual(
                    (account.fees["ZUSD"], account.book.lots[0].rate), (D(costs), D(rate))
                )
                account.margin_rates.clear()
                account.price(50000, 4 * HOUR_S + 1)
                self.assertEqual(account.rollovers["ZUSD"], D(costs))

    def test_what_has_no_rate_of_its_own_pays_the_assumed_one(self) -> None:
        self.assertEqual(Books(margin_rates=RATES).rate_of_loan(ETH, SHORT), D("0.0002"))


class OrdersTest(unittest.TestCase):
    def test_the_oldest_lot_is_closed_first(self) -> None:
        account = Books("10000", "0.01")
        account.trade("0.02", 51000, 1)
        account.trade("-0.015", 52000, 2)
        self.assertEqual(account.realized["ZUSD"], D("25.00000"))
        (lot,) = account.book.lots
        self.assertEqual((lot.open_volume, lot.cost_left), (D("0.015"), D("765.00000")))

    def test_a_refused_order_changes_nothing(self) -> None:
        account = Books()
        before = account.text()
        for volume, words in (
            ("0.04", "EOrder:Insufficient initial margin"),
            ("-0.2", "EOrder:Insufficient initial margin"),
            ("-400", "EOrder:Margin position size exceeded"),
        ):
            with self.subTest(volume), self.assertRaisesRegex(RefusedError, words):
                account.trade(volume)
            self.assertEqual(account.text(), before)


class TimeTest(unittest.TestCase):
    def test_a_position_of_exactly_four_hours_pays_no_rollover_and_a_longer_one_does(self) -> None:
        account = Books()
        account.price(50000, 4 * HOUR_S)
        self.assertEqual(account.rollovers, {})
        account.price(50000, 4 * HOUR_S + 1)
        self.assertEqual(account.rollovers, {"ZUSD": D("0.40000")})

    def test_the_rollovers_of_two_lots_are_entered_in_order_of_time(self) -> None:
        account = Books("10000")
        account.trade("0.01", after_s=60)
        account.price(50000, 20 * HOUR_S + 1)
        times = [entry.time for entry in account.ledger]
        self.assertEqual((len(times), times), (2 + 9, sorted(times)))

    def test_a_short_pays_on_what_the_coins_are_worth(self) -> None:
        account = Books(volume="-0.04")
        account.price(60000, 4 * HOUR_S + 1)
        self.assertEqual(account.rollovers, {"ZUSD": D("0.48000")})

    def test_a_price_beyond_the_liquidation_price_closes_at_it(self) -> None:
        account = Books("1100")
        book, limit = account.book, account.liquidation_price(account.book)
        self.assertIsNone(account.liquidate_between(book, START, limit + 1, limit + 9))
        trade = account.liquidate_between(book, START, limit - 9, limit + 9)
        self.assertEqual(trade and trade.cost, (limit * D("0.04")).quantize(D("0.00001")))
        self.assertEqual(book.volume, 0)

    def test_the_closed_form_agrees_with_the_level_one_tick_to_either_side(self) -> None:
        for seed in range(50):
            draw = random.Random(seed)
            account, sign = Books("10000", ""), draw.choice((LONG, SHORT))
            account.price(3000, rules=ETH)
            account.trade(D("0.5") * draw.choice((LONG, SHORT)), 3000, rules=ETH)
            for _ in range(3):
                volume = D(draw.randrange(10000, 15000)).scaleb(-5)
                account.trade(sign * volume, leverage=draw.choice((3, 5)))
            limit, text = account.liquidation_price(account.book), account.text()
            for away, is_closed in ((sign, False), (-sign, True)):
                with self.subTest(seed=seed, is_closed=is_closed):
                    again = account_from(text)
                    again.price(limit + D("0.1") * away)
                    self.assertEqual(again.book.volume == 0, is_closed)


class IdentityTest(unittest.TestCase):
    def test_equity_is_start_less_costs_plus_gains_to_the_last_digit(self) -> None:
        for seed in range(30):
            with self.subTest(seed=seed):
                account = _random_life(random.Random(seed))
                costs = account.fees.get("ZUSD", D(0)) + account.rollovers.get("ZUSD", D(0))
                gains = account.realized.get("ZUSD", D(0)) + account.usd.unrealized_pnl
                self.assertEqual(account.usd.equity, D(10000) - costs + gains)
                book = account.book
                self.assertEqual(book.held, sum((x.open_volume for x in book.lots), D(0)))
                self.assertEqual(book.cost_left, sum((x.cost_left for x in book.lots), D(0)))
                moved = sum((e.amount - e.fee for e in account.ledger), D(0))
                self.assertEqual(account.balances["ZUSD"], D(10000) + moved)

    def test_an_account_read_back_from_its_text_goes_on_the_same(self) -> None:
        account = _random_life(random.Random(7))
        again = account_from(account.text(), account.fee_rate)
        self.assertEqual(again.text(), account.text())
        for one in (account, again):
            one.price(D("50123.4"), 10**7)
            one.trade(D("0.003") * (-one.book.sign or 1), D("50123.4"), 10**7, leverage=3)
        self.assertEqual(again.text(), account.text())

    def test_the_ledger_is_bounded(self) -> None:
        account = Account({"ZUSD": D(10000)}, FEE, history=5)
        for _ in range(9):
            account.deposit(START, "ZUSD", D(1))
        self.assertEqual(len(account.ledger), 5)

    def test_ids_have_krakens_form_and_differ(self) -> None:
        ids = {identifier("O", serial) for serial in range(10000)}
        self.assertEqual(len(ids), 10000)
        for text in ids:
            self.assertRegex(text, r"\AO[0-9A-Z]{5}-[0-9A-Z]{5}-[0-9A-Z]{6}\Z")


def _random_life(draw: random.Random) -> Books:
    account = Books("10000", "", fee_rate=D("0.0026"))
    price, now = D(50000), 0
    for _ in range(200):
        price = max(price + D(draw.randrange(-9000, 9001)) / 10, D(1000))
        now += draw.randrange(1, 9000)
        account.price(price, now)
        volume = D(draw.randrange(1, 10**7)).scaleb(-8) * draw.choice((LONG, SHORT))
        how = {"leverage": draw.choice((2, 3, 7)), "reduce_only": draw.random() < 0.2}
        with suppress(RefusedError):
            account.trade(volume, price + D("0.1"), now, **how)
    return account
