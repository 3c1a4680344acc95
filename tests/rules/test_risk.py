import unittest
from decimal import Decimal

from krakenbot.model import MarginSummary, Purpose, Quote, Side, Step
from krakenbot.risk import Limits, Objection, RiskInputs, clock_error, objection
from tests.rules.test_pairs import rules

LIMITS = Limits(None, Decimal(150), Decimal(1), 500)
OPEN = Step(Purpose.OPEN, Side.BUY, Decimal("0.04"), False)
CLOSE = Step(Purpose.CLOSE, Side.SELL, Decimal("0.04"), True)
TURN = Step(Purpose.REVERSE, Side.SELL, Decimal("0.08"), False)
AROUND = RiskInputs(
    system_status="online",
    quote=Quote(Decimal("49999.9"), Decimal("50000.0")),
    rules=rules(),
    held=Decimal(0),
    summary=MarginSummary(Decimal(2000), Decimal(0), Decimal(0)),
    orders_today=0,
    fee_rate=Decimal("0.008"),
    clock_offset_s=0.4,
)


def against(
    step: Step, inputs: RiskInputs = AROUND, *, leverage: int = 2, limits: Limits = LIMITS
) -> Objection | None:
    return objection(step, leverage, inputs, limits)


def refused(step: Step, inputs: RiskInputs = AROUND, leverage: int = 2) -> Objection:
    got = against(step, inputs, leverage=leverage)
    assert got is not None
    return got


def having(balance: str, used: int = 0, *, unrealized: int = 0, held: str = "0") -> RiskInputs:
    """Return the usual inputs with these numbers of the account."""
    summary = MarginSummary(Decimal(balance), Decimal(unrealized), Decimal(used))
    return AROUND._replace(summary=summary, held=Decimal(held))


class TestMarket(unittest.TestCase):
    def test_in_ordinary_surroundings_nothing_speaks_against_any_step(self) -> None:
        self.assertIsNone(against(OPEN))
        self.assertIsNone(against(CLOSE))
        self.assertIsNone(against(CLOSE, AROUND._replace(summary=None)))

    def test_any_state_of_the_exchange_but_online_stops_every_order_for_a_while(self) -> None:
        for status in ("maintenance", "cancel_only", "post_only", "limit_only", "", "unheard-of"):
            for step in (OPEN, CLOSE):
                with self.subTest(status=status, step=step.purpose):
                    got = refused(step, AROUND._replace(system_status=status))
                    self.assertTrue(got.passing)
                    self.assertIn(status, got.reason)

    def test_a_pair_in_reduce_only_state_takes_a_reducing_order_and_no_other(self) -> None:
        inputs = AROUND._replace(rules=rules(status="reduce_only"))
        self.assertIsNone(against(CLOSE, inputs))
        self.assertIsNotNone(against(OPEN, inputs))
        self.assertIsNotNone(against(CLOSE._replace(reduce_only=False), inputs))
        self.assertIsNotNone(against(CLOSE, AROUND._replace(rules=rules(status="cancel_only"))))

    def test_a_clock_more_than_thirty_seconds_off_opens_nothing_and_closes_everything(self) -> None:
        for offset, stops in ((30.0, False), (-30.0, False), (30.5, True), (-31.0, True)):
            got = against(OPEN, AROUND._replace(clock_offset_s=offset))
            with self.subTest(offset):
                self.assertEqual(stops, got is not None and got.passing)
                self.assertIsNone(against(CLOSE, AROUND._replace(clock_offset_s=offset)))

    def test_the_margin_fee_of_opening_is_needed_too(self) -> None:
        # 1,000 margin, 16 trade fee, 0.5 margin fee at 0.025 % of what is lent.
        inputs = having("1016.2")
        self.assertIsNone(against(OPEN, inputs))
        dear = inputs._replace(margin_rate=Decimal("0.00025"))
        self.assertTrue(refused(OPEN, dear).funds)
        self.assertIsNone(against(OPEN._replace(volume=Decimal("0.01")), dear, leverage=0))

    def test_the_sentence_about_the_clock_says_which_way_it_is_off(self) -> None:
        # The exchange's time less the host's: above zero the host is behind.
        self.assertEqual("40 s behind the exchange's", clock_error(40.0))
        self.assertEqual("40 s ahead of the exchange's", clock_error(-40.0))

    def test_a_spread_above_the_limit_stops_market_orders_and_says_both_numbers(self) -> None:
        at_limit = AROUND._replace(quote=Quote(Decimal("49750"), Decimal("50250")))
        self.assertIsNone(against(CLOSE, at_limit))
        got = refused(CLOSE, AROUND._replace(quote=Quote(Decimal("49749"), Decimal("50251"))))
        self.assertTrue(got.passing)
        self.assertIn("49,749", got.reason)
        self.assertIn("50,251", got.reason)


class TestPair(unittest.TestCase):
    def test_a_leverage_that_is_not_offered_stops_an_opening_order(self) -> None:
        got = refused(OPEN, leverage=7)
        self.assertFalse(got.passing)
        self.assertIn("7", got.reason)

    def test_the_leverages_of_the_order_s_own_side_count(self) -> None:
        sell = OPEN._replace(side=Side.SELL)
        self.assertIsNone(against(OPEN, leverage=5))
        self.assertIsNotNone(against(sell, leverage=5))  # 2 and 3 only

    def test_a_position_can_be_closed_although_its_leverage_is_offered_no_more(self) -> None:
        inputs = AROUND._replace(rules=rules(leverage_sell=[2]))
        self.assertIsNone(against(CLOSE, inputs, leverage=5))

    def test_a_position_can_be_closed_although_the_pair_shows_no_margin_any_more(self) -> None:
        inputs = AROUND._replace(rules=rules(leverage_buy=[], leverage_sell=[]))
        self.assertIsNotNone(against(OPEN, inputs))
        self.assertIsNone(against(CLOSE, inputs), "risk must be allowed to go down")

    def test_without_margin_the_leverages_of_the_pair_do_not_matter(self) -> None:
        inputs = AROUND._replace(rules=rules(leverage_buy=[], leverage_sell=[]))
        self.assertIsNone(against(OPEN._replace(volume=Decimal("0.03")), inputs, leverage=0))

    def test_an_order_below_the_smallest_volume_or_cost_is_not_sent(self) -> None:
        self.assertIsNotNone(against(OPEN._replace(volume=Decimal("0.00004"))))
        dear = AROUND._replace(rules=rules(costmin="2500"))
        self.assertIn("2,500", refused(OPEN, dear).reason)


class TestExposure(unittest.TestCase):
    def test_an_order_that_own_money_cannot_carry_is_not_sent_and_its_numbers_said(self) -> None:
        # 0.04 at 50 000 with leverage 2 needs 1 000, and 16 for the fee.
        self.assertIsNone(against(OPEN, having("1016")))
        got = refused(OPEN, having("1015.99"))
        self.assertFalse(got.passing)
        self.assertIn("1,016.00", got.reason)
        self.assertIn("1,015.99", got.reason)

    def test_without_margin_the_whole_cost_must_be_there(self) -> None:
        self.assertIsNotNone(against(OPEN, leverage=0, inputs=AROUND))  # 2 016 of 2 000
        self.assertIsNone(against(OPEN, having("2016"), leverage=0))

    def test_a_turn_is_carried_by_the_margin_that_its_closing_half_sets_free(self) -> None:
        # Long 0.04 at 50 000: 1 000 are used. The new short needs 1 000 and a fee of 32.
        for balance, carries in (("1984", True), ("1600", True), ("1030", False)):
            got = against(TURN, having(balance, 1000, held="0.04"))
            self.assertEqual(carries, got is None, balance)

    def test_a_margin_level_below_the_limit_forbids_new_exposure_and_never_a_close(self) -> None:
        low = having("14000", 10000, unrealized=900)
        self.assertIn("149.0", refused(OPEN, low).reason)
        self.assertIsNone(against(CLOSE, low))
        self.assertIsNone(against(OPEN, having("14000", 10000, unrealized=1000)))

    def test_after_the_most_orders_of_a_day_only_closing_is_allowed(self) -> None:
        busy = AROUND._replace(orders_today=500)
        self.assertIsNotNone(against(OPEN, busy))
        self.assertIsNone(against(CLOSE, busy))
        self.assertIsNone(against(OPEN, AROUND._replace(orders_today=499)))

    def test_unknown_margin_numbers_forbid_opening_for_a_while(self) -> None:
        self.assertTrue(refused(OPEN, AROUND._replace(summary=None)).passing)

    def test_the_position_limit_of_the_side_counts(self) -> None:
        inputs = AROUND._replace(rules=rules(long_position_limit=0, short_position_limit=1))
        self.assertIsNotNone(against(OPEN, inputs))
        self.assertIsNone(against(OPEN._replace(side=Side.SELL), inputs))
        self.assertIsNone(against(CLOSE, inputs))
        turn = TURN._replace(volume=Decimal("1.04"))
        rich = having("99000", 1000, held="0.04")._replace(rules=inputs.rules)
        self.assertIsNone(against(turn, rich), "only 1 of it is opened")
        self.assertIsNotNone(against(turn._replace(volume=Decimal("1.05")), rich))
