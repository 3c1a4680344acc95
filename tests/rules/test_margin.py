"""The books: worked example, FIFO, margin, rollover, liquidation, and that nothing is lost."""

import json
import random
import unittest
from contextlib import suppress
from decimal import Decimal as D

from krakenbot.errors import RefusedError
from krakenbot.model import Order, Side
from krakenbot.pairs import parse_rules
from krakenbot.simulated.books import Account, MarginPosition, Trade, identifier
from krakenbot.simulated.listing import PAIRS
from krakenbot.simulated.paper import restore, state_of

RULES = parse_rules("XXBTZUSD", PAIRS["XXBTZUSD"])
ETH = parse_rules("XETHZUSD", PAIRS["XETHZUSD"])
FEE = D("0.008")
RATES = {"ZUSD": D("0.00025"), "XXBT": D("0.0001")}
LONG, SHORT = 1, -1
START = 1_791_500_000


def fill(
    account: Account,
    book: MarginPosition,
    now: float,
    sign: int,
    volume: D,
    price: D,
    leverage: int,
    reduce_only: bool = False,
) -> list[Trade]:
    side = Side.BUY if sign > 0 else Side.SELL
    return account.fill(book, now, Order("", side, volume, leverage, reduce_only), price)


def opened(
    balance: str = "2000", price: str = "50000", sign: int = LONG, volume: str = "0.04"
) -> tuple[Account, MarginPosition]:
    account = Account({"ZUSD": D(balance)}, FEE, history=100)
    book = account.position(RULES)
    account.advance(book, START, D(price))
    fill(account, book, START, sign, D(volume), D(price), 2)
    return account, book


def text_of(account: Account) -> str:
    return json.dumps(state_of(account), default=str)


def account_from(text: str, fee_rate: D = FEE) -> Account:
    account = Account({"ZUSD": D(1)}, fee_rate, history=10000)
    restore(account, json.loads(text), {rules.pair: rules for rules in (RULES, ETH)})
    return account


class WorkedExampleTest(unittest.TestCase):
    """The reference's example: 2,000 USD, 0.8 % taker, 0.02 % per 4 h, 0.04 XBT at 50,000, 2x."""

    def test_opening_costs_trade_fee_and_opening_fee(self) -> None:
        account, book = opened()
        self.assertEqual(account.summary("ZUSD").used_margin, D("1000"))
        self.assertEqual(book.lots[0].fee, D("16.40000"))
        self.assertEqual(account.balances["ZUSD"], D("1983.60000"))

    def test_ten_hours_cost_two_rollovers(self) -> None:
        account, book = opened()
        account.advance(book, START + 36000, D(51000))
        self.assertEqual(account.balances["ZUSD"], D("1982.80000"))
        self.assertEqual(account.summary("ZUSD").unrealized_pnl, D(40))
        self.assertEqual(account.summary("ZUSD").equity, D("2022.80"))
        self.assertEqual(account.summary("ZUSD").free_margin, D("1022.80"))
        self.assertEqual(account.summary("ZUSD").margin_level, D("202.28"))
        self.assertEqual(account.liquidation_price(book), D("10430.0"))

    def test_turning_costs_the_same_in_one_order_and_in_two(self) -> None:
        for orders in (["0.08"], ["0.04", "0.04"]):
            with self.subTest(orders=orders):
                account, book = opened()
                now = START + 36000
                account.advance(book, now, D(51000))
                fees = D(0)
                for volume in orders:
                    for trade in fill(account, book, now, SHORT, D(volume), D(51000), 2):
                        fees += trade.fee + trade.opening_fee
                self.assertEqual(fees, D("33.048"))
                self.assertEqual(account.balances["ZUSD"], D("1989.752"))
                self.assertEqual(book.volume, D("-0.04"))
                self.assertEqual(account.summary("ZUSD").used_margin, D(1020))
                level = account.summary("ZUSD").margin_level
                assert level is not None
                self.assertEqual(round(level, 2), D("195.07"))
                self.assertEqual(account.liquidation_price(book), D("83953.2"))

    def test_a_shorts_used_margin_grows_with_the_price(self) -> None:
        account = Account({"ZUSD": D(5000)}, D(0), margin_rates={"XXBT": D(0)})
        book = account.position(RULES)
        account.advance(book, START, D(50000))
        fill(account, book, START, SHORT, D("0.2"), D(50000), 5)
        account.advance(book, START, D(65200))
        self.assertEqual(account.summary("ZUSD").used_margin, D(2608))
        self.assertEqual(account.summary("ZUSD").equity, D(1960))


class RatesTest(unittest.TestCase):
    """A long borrows the quote currency, a short the base; a lot keeps the rate it began with."""

    def test_opening_and_rollover_cost_the_rate_of_what_is_lent(self) -> None:
        for sign, rate, costs in ((LONG, "0.00025", "0.50000"), (SHORT, "0.0001", "0.20000")):
            account = Account({"ZUSD": D(2000)}, D(0), margin_rates=RATES, history=9)
            book = account.position(RULES)
            account.advance(book, START, D(50000))
            (trade,) = fill(account, book, START, sign, D("0.04"), D(50000), 2)
            account.margin_rates.clear()
            account.advance(book, START + 14401, D(50000))
            with self.subTest(sign=sign):
                self.assertEqual((trade.opening_fee, book.lots[0].rate), (D(costs), D(rate)))
                self.assertEqual(account.rollovers["ZUSD"], D(costs))

    def test_what_has_no_rate_of_its_own_pays_the_assumed_one(self) -> None:
        account = Account({}, D(0), margin_rates=RATES)
        self.assertEqual(account.rate_of_loan(ETH, SHORT), D("0.0002"))


class OrdersTest(unittest.TestCase):
    def test_the_oldest_lot_is_closed_first(self) -> None:
        account, book = opened("10000", volume="0.01")
        fill(account, book, START + 1, LONG, D("0.02"), D(51000), 2)
        fill(account, book, START + 2, SHORT, D("0.015"), D(52000), 2)
        self.assertEqual(account.realized["ZUSD"], D("25.00000"))
        self.assertEqual([lot.open_volume for lot in book.lots], [D("0.015")])
        self.assertEqual(book.lots[0].cost_left, D("765.00000"))

    def test_a_refused_order_changes_nothing(self) -> None:
        account, book = opened()
        before = text_of(account)
        for sign, volume, words in (
            (LONG, "0.04", "EOrder:Insufficient initial margin"),
            (SHORT, "0.2", "EOrder:Insufficient initial margin"),
            (SHORT, "400", "EOrder:Margin position size exceeded"),
        ):
            with self.subTest(volume=volume), self.assertRaisesRegex(RefusedError, words):
                fill(account, book, START, sign, D(volume), D(50000), 2)
            self.assertEqual(text_of(account), before)


class TimeTest(unittest.TestCase):
    def test_a_position_of_exactly_four_hours_pays_no_rollover_and_a_longer_one_does(self) -> None:
        account, book = opened()
        account.advance(book, START + 14400, D(50000))
        self.assertEqual(account.rollovers, {})
        account.advance(book, START + 14401, D(50000))
        self.assertEqual(account.rollovers, {"ZUSD": D("0.40000")})

    def test_the_rollovers_of_two_lots_are_entered_in_order_of_time(self) -> None:
        account, book = opened("10000")
        fill(account, book, START + 60, LONG, D("0.01"), D(50000), 2)
        account.advance(book, START + 5 * 14400 + 1, D(50000))
        times = [entry.time for entry in account.ledger]
        self.assertEqual(len(times), 2 + 9)
        self.assertEqual(times, sorted(times))

    def test_a_short_pays_on_what_the_coins_are_worth(self) -> None:
        account, book = opened(sign=SHORT)
        account.advance(book, START + 14401, D(60000))
        self.assertEqual(account.rollovers, {"ZUSD": D("0.48000")})

    def test_a_price_beyond_the_liquidation_price_closes_at_it(self) -> None:
        account, book = opened("1100")
        limit = account.liquidation_price(book)
        assert limit is not None
        self.assertIsNone(account.liquidate_between(book, START, limit + 1, limit + 9))
        trade = account.liquidate_between(book, START, limit - 9, limit + 9)
        assert trade is not None
        self.assertEqual(trade.cost, (limit * D("0.04")).quantize(D("0.00001")))
        self.assertEqual(book.volume, 0)

    def test_the_closed_form_agrees_with_the_level_one_tick_to_either_side(self) -> None:
        for seed in range(50):
            with self.subTest(seed=seed):
                draw = random.Random(seed)
                account = Account({"ZUSD": D(10000)}, FEE)
                other, book = account.position(ETH), account.position(RULES)
                account.advance(other, START, D(3000))
                account.advance(book, START, D(50000))
                fill(account, other, START, draw.choice((LONG, SHORT)), D("0.5"), D(3000), 2)
                sign = draw.choice((LONG, SHORT))
                for _ in range(3):
                    volume = D(draw.randrange(10000, 15000)).scaleb(-5)
                    fill(account, book, START, sign, volume, D(50000), draw.choice((3, 5)))
                limit = account.liquidation_price(book)
                assert limit is not None
                text = text_of(account)
                for away, is_closed in ((sign, False), (-sign, True)):
                    account = account_from(text)
                    book = account.positions[RULES.pair]
                    account.advance(book, START, limit + D("0.1") * away)
                    self.assertEqual(book.volume == 0, is_closed)


class IdentityTest(unittest.TestCase):
    def test_equity_is_start_less_costs_plus_gains_to_the_last_digit(self) -> None:
        for seed in range(30):
            with self.subTest(seed=seed):
                account, book = _random_life(random.Random(seed))
                fees = account.fees.get("ZUSD", D(0))
                rollover = account.rollovers.get("ZUSD", D(0))
                realized = account.realized.get("ZUSD", D(0))
                self.assertEqual(
                    account.summary("ZUSD").equity,
                    D(10000) - fees - rollover + realized + account.summary("ZUSD").unrealized_pnl,
                )
                self.assertEqual(book.held, sum((x.open_volume for x in book.lots), D(0)))
                self.assertEqual(book.cost_left, sum((x.cost_left for x in book.lots), D(0)))
                moved = sum((e.amount - e.fee for e in account.ledger), D(0))
                self.assertEqual(account.balances["ZUSD"], D(10000) + moved)

    def test_an_account_read_back_from_its_text_goes_on_the_same(self) -> None:
        account, book = _random_life(random.Random(7))
        again = account_from(text_of(account), account.fee_rate)
        self.assertEqual(text_of(again), text_of(account))
        for one in (account, again):
            book = one.positions[RULES.pair]
            one.advance(book, START + 10**7, D("50123.4"))
            fill(one, book, START + 10**7, -book.sign or 1, D("0.003"), D("50123.4"), 3)
        self.assertEqual(text_of(again), text_of(account))

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


def _random_life(draw: random.Random) -> tuple[Account, MarginPosition]:
    account = Account({"ZUSD": D(10000)}, D("0.0026"), history=10000)
    book = account.position(RULES)
    price, now = D(50000), START
    for _ in range(200):
        price = max(price + D(draw.randrange(-9000, 9001)) / 10, D(1000))
        now += draw.randrange(1, 9000)
        account.advance(book, now, price)
        volume = D(draw.randrange(1, 10**7)).scaleb(-8)
        sign, leverage, reduces = draw.choice((LONG, SHORT)), draw.choice((2, 3, 7)), draw.random()
        with suppress(RefusedError):
            fill(account, book, now, sign, volume, price + D("0.1"), leverage, reduces < 0.2)
    return account, book
