"""Paper mode: what of it no other account has; tests/simulation/test_contract.py has the rest."""

import json
import unittest
from collections.abc import Sequence
from decimal import Decimal as D
from itertools import repeat
from typing import Any

from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.kraken.spot import Spot
from krakenbot.model import Candle, MarginRates, Order, Quote, Side
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.risk import FEE_RATE_ASSUMED
from krakenbot.simulated.listing import PAIRS
from krakenbot.simulated.paper import ROWS_KEPT, PaperClient
from tests.clocks import StandingClock
from tests.logs import silence
from tests.markets import Answers

START = 1_791_500_040
SAVED_BY_0_2_0 = (
    '{"account": {"rates": ["0.008", "0.0002"], "numbers": [1791500100003, 1, 50], "sums": '
    '[{"ZUSD": "9983.59997"}, {"ZUSD": "16.40003"}, {}, {}], "ledger": [[1791500100003, '
    '1791500100002, 1791500100.0, "margin", "ZUSD", "0", "16.40003", "9983.59997"]], "books":'
    ' {"XXBTZUSD": ["50000.0", [[1791500100002, 1791500100001, 1791500100.0, 1, "0.04", "0", '
    '"2000.00400", "2000.00400", 2, "16.40003", "0.0002", 1791514500.0]]]}}, "swept": 0, '
    '"orders": [[1791500100.0, "id-1", "OXEJXR-F7ITL-KOY4MN", "closed", "0.04", "2000.00400",'
    ' "16.00003", ""]], "charges": [["LMF5DK-CIDWS-FZZBW4", "TMF5DK-CIDWS-FZZBW4", '
    '"OXEJXR-F7ITL-KOY4MN", 1791500100, "2000.00400", "16.40003"]]}'
)


class World(StandingClock):
    """Market, clock and journal in one: prices and time are set by the test."""

    def __init__(self) -> None:
        super().__init__(float(START))
        self.price = D(50000)
        self.rates = MarginRates(D("0.00025"), D("0.0001"))
        self.status = "online"
        self.rows: list[Candle] = []
        self.state: str | None = None
        self.saves = 0
        self.breaks = self.mute = False
        self.answers = Answers(self, PAIRS["XXBTZUSD"])

    def margin_rates(self) -> MarginRates:
        return self.rates

    def rules(self) -> PairRules:
        if self.status == "delisted":
            raise RefusedError("EQuery:Unknown asset pair")
        return parse_rules("XXBTZUSD", {**PAIRS["XXBTZUSD"], "status": self.status})

    known_rules = rules

    def candles(self, since: int | None) -> Sequence[Candle]:
        return self.rows

    def quote(self) -> Quote:
        if self.mute:
            raise UnansweredError("no answer")
        return Quote(self.price - D("0.1"), self.price + D("0.1"))

    def get(self, key: str) -> str:
        return self.state or ""

    def put(self, *, paper: str) -> None:
        if self.breaks:
            raise OSError("disk full")
        self.state = paper
        self.saves += 1

    def exchange(self, interval_s: int = 60, *, validates: bool = False) -> Spot:
        journal: Any = self
        options = {"fee_rate": FEE_RATE_ASSUMED, "balance": D(10000), "validates": validates}
        client = PaperClient(self.answers, self, self, journal, **options)
        return Spot(client, "XBTUSD", interval_s)


def order(
    name: str = "a",
    side: Side = Side.BUY,
    volume: str = "0.04",
    leverage: int = 2,
    reduce_only: bool = False,
) -> Order:
    return Order(name, side, D(volume), leverage, reduce_only)


class PaperTest(unittest.TestCase):
    def setUp(self) -> None:
        silence(self)
        self.world = World()
        self.exchange = self.world.exchange()

    def place(self, wish: Order) -> None:
        self.exchange.place(wish, int(self.world.time) + 15)

    def charged(self) -> D:
        """Return the sum of all charges there are."""
        return sum(
            (x.fee for x in self.exchange.charges(START - 1, START + 10**6, repeat(0)) or ()), D(0)
        )

    def test_where_the_market_tells_no_rate_two_hundredths_of_a_percent_are_assumed(self) -> None:
        self.world.rates = MarginRates()
        self.place(order())
        self.assertEqual(self.charged(), D("16.00003") + D("0.40000"))

    def test_no_rollover_of_a_long_downtime_is_lost(self) -> None:
        self.place(order())
        self.world.time += 300 * 86400 + 1
        charges = self.exchange.charges(START - 1, int(self.world.time), repeat(0)) or ()
        self.assertEqual(1 + 300 * 6, len(charges))

    def test_an_account_in_bitcoin_shows_all_its_digits(self) -> None:
        world: Any = self.world
        rules = parse_rules("XETHXXBT", {**PAIRS["XETHZUSD"], "quote": "XXBT"})
        world.rules = world.known_rules = lambda: rules
        held = D("0.12345678")
        client = PaperClient(world.answers, world, world, world, fee_rate=D(0), balance=held)
        self.assertEqual(held, D(client.private("TradeBalance", {"asset": "XXBT"})["tb"]))

    def test_a_restart_finds_everything_as_it_was(self) -> None:
        self.place(order())
        self.world.time += 20000
        self.world.price = D(51000)
        again = self.world.exchange()
        self.assertEqual(again.summary(), self.exchange.summary())
        self.assertEqual(again.position(), self.exchange.position())
        self.assertEqual(again.find("a", START), self.exchange.find("a", START))
        span = START - 1, START + 30000
        self.assertEqual(again.charges(*span, repeat(0)), self.exchange.charges(*span, repeat(0)))
        self.assertEqual(len(again.charges(*span, repeat(0))), 2)

    def test_a_saved_account_of_another_kind_is_said_and_left_alone(self) -> None:
        for text in ('{"swept": 0}', "[]", '{"account": {"rates": ["x", "y"]}}'):
            self.world.state = text
            with self.assertRaises(StopError):
                self.world.exchange().summary()
            self.assertEqual(self.world.state, text)

    def test_a_fill_that_could_not_be_saved_did_not_happen(self) -> None:
        self.place(order())
        self.world.breaks = True
        with self.assertRaises(OSError):
            self.place(order("b"))
        self.world.breaks = False
        self.assertIsNone(self.exchange.find("b", START))
        self.assertEqual(self.exchange.position().volume, D("0.04"))

    def test_nothing_is_saved_when_nothing_changed(self) -> None:
        self.place(order())
        saves = self.world.saves
        self.exchange.summary()
        self.exchange.position()
        self.assertEqual(self.world.saves, saves)

    def test_an_order_that_kraken_would_not_take_is_not_filled_in_validate_mode(self) -> None:
        exchange = self.world.exchange(validates=True)
        for refusal, error in (
            (RefusedError("no"), RefusedError),
            (UnansweredError("?"), LaterError),
        ):
            self.world.answers.refusal = refusal
            with self.assertRaises(error):
                exchange.place(order(), START + 15)
        self.assertEqual(exchange.position().volume, 0)

    def test_validate_mode_shows_each_order_to_kraken_and_has_none_executed(self) -> None:
        self.world.exchange(validates=True).place(order(), START + 15)
        ((method, params),) = self.world.answers.sent
        self.assertEqual(
            (method, params["validate"], params["volume"]), ("AddOrder", "true", "0.04")
        )

    def test_validate_mode_asks_kraken_about_the_key_and_paper_mode_knows_none(self) -> None:
        self.assertEqual((), self.exchange.key_info().permissions)
        self.world.answers.refusal = RefusedError("asked")
        with self.assertRaisesRegex(RefusedError, "asked"):
            self.world.exchange(validates=True).key_info()

    def test_paper_mode_sends_nothing_private(self) -> None:
        self.place(order())
        self.exchange.position(), self.exchange.summary(), self.exchange.balances()
        self.assertEqual([], self.world.answers.sent)

    def test_without_a_price_nothing_is_filled_and_it_is_tried_later(self) -> None:
        self.world.mute = True
        with self.assertRaises(LaterError):
            self.place(order())

    def test_an_account_saved_by_version_0_2_0_goes_on(self) -> None:
        self.world.state = SAVED_BY_0_2_0
        self.world.time = 1791500101.0
        exchange = self.world.exchange()
        self.assertEqual(exchange.position().volume, D("0.04"))
        known = exchange.find("id-1", START)
        assert known is not None
        self.assertEqual((known.cost, known.fee), (D("2000.00400"), D("16.00003")))
        (charge,) = exchange.charges(START - 60, START + 3600, repeat(0)) or ()
        self.assertEqual((charge.order_id, charge.fee), (known.exchange_order_id, D("16.40003")))

    def test_what_is_held_is_still_told_when_the_pair_is_listed_no_more(self) -> None:
        self.place(order())
        self.world.status = "delisted"
        with self.assertRaises(RefusedError):
            self.place(order("b", Side.SELL, reduce_only=True))
        self.assertEqual(self.exchange.position().volume, D("0.04"))
        self.assertGreater(self.exchange.summary().used_margin, 0)

    def test_a_low_from_before_the_position_does_not_liquidate(self) -> None:
        began, day_s = START // 86400 * 86400, 86400
        exchange = self.world.exchange(day_s)
        self.world.rows = [_candle(began - day_s, 50000), _candle(began, 1000)]
        exchange.candles(None)
        exchange.place(order(volume="0.2", leverage=5), int(self.world.time) + 15)
        self.world.time += day_s
        self.world.rows += [_candle(began + day_s, 50000)]
        exchange.candles(None)
        self.assertEqual(D("0.2"), exchange.position().volume)

    def test_a_low_between_two_looks_liquidates(self) -> None:
        self.world.rows = [_candle(START - 60, 1), _candle(START, 50000)]
        self.exchange.candles(None)
        self.place(order(volume="0.2", leverage=5))
        self.exchange.candles(None)
        self.assertEqual(self.exchange.position().volume, D("0.2"))
        self.world.rows += [_candle(START + 60, 50000)]
        self.world.rows[1] = _candle(START, 1000)
        for exchange in (self.world.exchange(), self.exchange):
            exchange.candles(None)
            self.assertEqual(exchange.position().volume, 0)

    def test_what_is_remembered_is_bounded(self) -> None:
        for number in range(ROWS_KEPT + 5):
            self.place(order(f"n{number}", volume="0.0001"))
            self.world.time += 1
        self.assertIsNone(self.exchange.find("n4", START))
        self.assertIsNotNone(self.exchange.find("n5", START))
        assert self.world.state is not None
        rows = json.loads(self.world.state)
        self.assertEqual((len(rows["orders"]), len(rows["trades"])), (ROWS_KEPT, ROWS_KEPT))


def _candle(time: int, low: int) -> Candle:
    return Candle(time, D(50000), D(50001), D(low), D(50000))
