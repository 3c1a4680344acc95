"""Paper mode: fills at the live quote, kept through a kill, refused in Kraken's words."""

import unittest
from collections.abc import Sequence
from decimal import Decimal as D

from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.model import Candle, MarginRates, Order, OrderStatus, Quote, Side, SystemStatus
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.simulated.listing import PAIRS
from krakenbot.simulated.paper import ORDERS_KEPT, PaperExchange

START = 1_791_500_000


class World:
    """Market, clock and store in one: prices and time are set by the test."""

    def __init__(self) -> None:
        self.time = float(START)
        self.price = D(50000)
        self.status = "online"
        self.rows: list[Candle] = []
        self.state: str | None = None
        self.saves = 0
        self.breaks = False

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    def nonce(self) -> int:
        return int(self.time)

    def set(self, exchange_time: float) -> None:
        self.time = exchange_time

    def wait(self, seconds: float) -> None:
        self.time += seconds

    def server_time(self) -> int:
        return int(self.time)

    def market_status(self) -> SystemStatus:
        return SystemStatus("online")

    def margin_rates(self) -> MarginRates:
        return MarginRates()

    def rules(self) -> PairRules:
        return parse_rules("XXBTZUSD", {**PAIRS["XXBTZUSD"], "status": self.status})

    def candles(self, since: int | None) -> Sequence[Candle]:
        return self.rows

    def quote(self) -> Quote:
        return Quote(self.price - D("0.1"), self.price + D("0.1"))

    def load(self) -> str | None:
        return self.state

    def save(self, state: str) -> None:
        if self.breaks:
            raise OSError("disk full")
        self.state = state
        self.saves += 1

    def exchange(self) -> PaperExchange:
        return PaperExchange(self, self, self)


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
        self.world = World()
        self.exchange = self.world.exchange()

    def place(self, wish: Order) -> None:
        self.exchange.place(wish, int(self.world.time) + 15)

    def test_a_buy_fills_at_the_ask_and_a_sell_at_the_bid(self) -> None:
        self.place(order())
        bought = self.exchange.find("a", START)
        assert bought is not None
        self.assertEqual(bought.cost, D("50000.1") * D("0.04"))
        self.assertEqual(bought.fee, D("16.00003"))
        self.assertEqual(bought.status, OrderStatus.CLOSED)
        position = self.exchange.position()
        self.assertEqual((position.volume, position.cost), (D("0.04"), bought.cost))
        (charge,) = self.exchange.charges(START - 1, START + 30000)
        self.assertEqual(charge.order_id, bought.exchange_order_id)
        self.place(order("b", Side.SELL, reduce_only=True))
        sold = self.exchange.find("b", START)
        assert sold is not None
        self.assertEqual(sold.cost, D("49999.9") * D("0.04"))
        self.assertEqual(self.exchange.position().volume, 0)
        self.assertEqual(
            self.exchange.traded_orders(START - 1, START + 60),
            [bought.exchange_order_id, sold.exchange_order_id],
        )
        self.assertIsNone(self.exchange.find("c", START))

    def test_a_known_id_is_never_filled_twice_not_even_after_a_restart(self) -> None:
        self.place(order())
        for exchange in (self.exchange, self.world.exchange()):
            with self.assertRaises(UnansweredError):
                exchange.place(order(), START + 15)
            self.assertEqual(exchange.position().volume, D("0.04"))

    def test_a_restart_finds_everything_as_it_was(self) -> None:
        self.place(order())
        self.world.time += 20000
        self.world.price = D(51000)
        again = self.world.exchange()
        self.assertEqual(again.summary(), self.exchange.summary())
        self.assertEqual(again.position(), self.exchange.position())
        self.assertEqual(again.find("a", START), self.exchange.find("a", START))
        span = START - 1, START + 30000
        self.assertEqual(again.charges(*span), self.exchange.charges(*span))
        self.assertEqual(len(again.charges(*span)), 2)

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

    def test_refusals_carry_krakens_words(self) -> None:
        for wish, words in (
            (order(volume="0.00001"), "volume minimum not met"),
            (order(volume="0.000123456789"), "Invalid arguments:volume"),
            (order(leverage=99), "Invalid arguments:leverage"),
            (order(volume="5"), "EOrder:Insufficient initial margin"),
            (order(volume="5", leverage=0), "EOrder:Insufficient funds"),
            (order(reduce_only=True), "No position exists"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(RefusedError, words):
                self.place(wish)
        self.assertIsNone(self.exchange.find("a", START))

    def test_a_closed_market_and_a_passed_deadline_mean_later(self) -> None:
        with self.assertRaisesRegex(LaterError, "Deadline elapsed"):
            self.exchange.place(order(), START - 1)
        self.world.status = "cancel_only"
        self.exchange.rules()
        with self.assertRaisesRegex(LaterError, "cancel_only"):
            self.place(order())

    def test_the_validator_may_refuse_before_anything_is_filled(self) -> None:
        def refuse(wish: Order) -> None:
            raise RefusedError(f"EOrder:{wish.client_order_id}")

        exchange = PaperExchange(self.world, self.world, self.world, validate=refuse)
        with self.assertRaisesRegex(RefusedError, "EOrder:a"):
            exchange.place(order(), START + 15)
        self.assertEqual(exchange.position().volume, 0)

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
        for number in range(ORDERS_KEPT + 5):
            self.place(order(f"n{number}", volume="0.0001"))
        self.assertIsNone(self.exchange.find("n4", START))
        self.assertIsNotNone(self.exchange.find("n5", START))
        assert self.world.state is not None
        self.assertLess(len(self.world.state), 20000)


def _candle(time: int, low: int) -> Candle:
    return Candle(time, D(50000), D(50001), D(low), D(50000))


if __name__ == "__main__":
    unittest.main()
