import unittest
from decimal import Decimal
from typing import Any

from krakenbot.model import MarginSummary, Purpose, Quote, Side, Step
from krakenbot.risk import Limits, RiskInputs, clock_error, objection
from tests.rules.test_pairs import rules

LIMITS = Limits(None, Decimal(150), Decimal(1), 500)
BUY = Step(Purpose.OPEN, Side.BUY, Decimal("0.04"), False)
SELL = BUY._replace(side=Side.SELL)
CLOSE = Step(Purpose.CLOSE, Side.SELL, Decimal("0.04"), True)
TURN = Step(Purpose.REVERSE, Side.SELL, Decimal("0.08"), False)
USUAL = RiskInputs(
    system_status="online",
    quote=Quote(Decimal("49999.9"), Decimal("50000.0")),
    rules=rules(),
    held=Decimal(0),
    summary=MarginSummary(Decimal(2000), Decimal(0), Decimal(0)),
    orders_today=0,
    fee_rate=Decimal("0.008"),
    clock_offset_s=0.4,
)
ALLOWED = None
LATER, NEVER = True, False  # Whether an objection passes by itself.


def having(balance: str, used: int = 0, *, unrealized: int = 0, held: str = "0") -> dict[str, Any]:
    summary = MarginSummary(Decimal(balance), Decimal(unrealized), Decimal(used))
    return {"summary": summary, "held": Decimal(held)}


def quoted(bid: str, ask: str) -> dict[str, Any]:
    return {"quote": Quote(Decimal(bid), Decimal(ask))}


def pair(**changes: object) -> dict[str, Any]:
    return {"rules": rules(**changes)}


def of(volume: str, step: Step = BUY) -> Step:
    return step._replace(volume=Decimal(volume))


NO_MARGIN = pair(leverage_buy=[], leverage_sell=[])
LIMITED = pair(long_position_limit=0, short_position_limit=1)
RICH = having("99000", 1000, held="0.04") | LIMITED
RATE = {"margin_rate": Decimal("0.00025")}
# Step, what is unusual, leverage; whether it is allowed, and what is said if not.
CASES: dict[str, list[tuple[Step, dict[str, Any], int, bool | None, str]]] = {
    "usually nothing speaks against any step": [
        (BUY, {}, 2, ALLOWED, ""),
        (CLOSE, {}, 2, ALLOWED, ""),
        (CLOSE, {"summary": None}, 2, ALLOWED, ""),
    ],
    "any state of the exchange but online stops every order for a while": [
        (step, {"system_status": status}, 2, LATER, status)
        for status in ("maintenance", "cancel_only", "post_only", "limit_only", "", "unheard-of")
        for step in (BUY, CLOSE)
    ],
    "a pair in reduce-only state takes a reducing order and no other": [
        (CLOSE, pair(status="reduce_only"), 2, ALLOWED, ""),
        (BUY, pair(status="reduce_only"), 2, LATER, "reduce_only"),
        (CLOSE._replace(reduce_only=False), pair(status="reduce_only"), 2, LATER, "reduce_only"),
        (CLOSE, pair(status="cancel_only"), 2, LATER, "cancel_only"),
    ],
    "a clock more than thirty seconds off opens nothing and closes everything": [
        *((BUY, {"clock_offset_s": offset}, 2, ALLOWED, "") for offset in (30.0, -30.0)),
        *((BUY, {"clock_offset_s": offset}, 2, LATER, "clock") for offset in (30.5, -31.0)),
        *((CLOSE, {"clock_offset_s": offset}, 2, ALLOWED, "") for offset in (30.5, -31.0)),
    ],
    "a spread above the limit stops market orders and says both numbers": [
        (CLOSE, quoted("49750", "50250"), 2, ALLOWED, ""),
        (CLOSE, quoted("49749", "50251"), 2, LATER, "49,749.*50,251"),
    ],
    "a leverage that the order's own side does not offer stops an opening order": [
        (BUY, {}, 7, NEVER, "7"),
        (BUY, {}, 5, ALLOWED, ""),
        (SELL, {}, 5, NEVER, "5"),  # 2 and 3 only.
    ],
    "a position can be closed although its leverage or all margin is offered no more": [
        (CLOSE, pair(leverage_sell=[2]), 5, ALLOWED, ""),
        (BUY, NO_MARGIN, 2, NEVER, ""),
        (CLOSE, NO_MARGIN, 2, ALLOWED, ""),
    ],
    "without margin the leverages of the pair do not matter": [
        (of("0.03"), NO_MARGIN, 0, ALLOWED, ""),
    ],
    "an order below the smallest volume or cost is not sent": [
        (of("0.00004"), {}, 2, NEVER, ""),
        (BUY, pair(costmin="2500"), 2, NEVER, "2,500"),
    ],
    # 0.04 at 50,000 with leverage 2 needs 1,000, and 16 for the fee.
    "an order that own money cannot carry is not sent and its numbers are said": [
        (BUY, having("1016"), 2, ALLOWED, ""),
        (BUY, having("1015.99"), 2, NEVER, r"1,016\.00.*1,015\.99"),
    ],
    # And 0.5 at 0.025 % of what is lent.
    "the margin fee of opening is needed too": [
        (BUY, having("1016.2"), 2, ALLOWED, ""),
        (BUY, having("1016.2") | RATE, 2, NEVER, ""),
        (of("0.01"), having("1016.2") | RATE, 0, ALLOWED, ""),
    ],
    "without margin the whole cost must be there": [
        (BUY, {}, 0, NEVER, ""),  # 2,016 of 2,000.
        (BUY, having("2016"), 0, ALLOWED, ""),
    ],
    # Long 0.04 at 50,000: 1,000 are used. The new short needs 1,000 and a fee of 32.
    "a turn is carried by the margin that its closing half sets free": [
        (TURN, having("1984", 1000, held="0.04"), 2, ALLOWED, ""),
        (TURN, having("1600", 1000, held="0.04"), 2, ALLOWED, ""),
        (TURN, having("1030", 1000, held="0.04"), 2, NEVER, ""),
    ],
    "a margin level below the limit forbids new exposure and never a close": [
        (BUY, having("14000", 10000, unrealized=900), 2, NEVER, r"149\.0"),
        (CLOSE, having("14000", 10000, unrealized=900), 2, ALLOWED, ""),
        (BUY, having("14000", 10000, unrealized=1000), 2, ALLOWED, ""),
    ],
    "after the most orders of a day only closing is allowed": [
        (BUY, {"orders_today": 500}, 2, NEVER, ""),
        (CLOSE, {"orders_today": 500}, 2, ALLOWED, ""),
        (BUY, {"orders_today": 499}, 2, ALLOWED, ""),
    ],
    "unknown margin numbers forbid opening for a while": [(BUY, {"summary": None}, 2, LATER, "")],
    "the position limit of the side counts, and of a turn only what it opens": [
        (BUY, LIMITED, 2, NEVER, ""),
        (SELL, LIMITED, 2, ALLOWED, ""),
        (CLOSE, LIMITED, 2, ALLOWED, ""),
        (of("1.04", TURN), RICH, 2, ALLOWED, ""),
        (of("1.05", TURN), RICH, 2, NEVER, ""),
    ],
}


class TestObjections(unittest.TestCase):
    def test_each_is_raised_where_its_story_says_and_nowhere_else(self) -> None:
        for story, cases in CASES.items():
            for step, unusual, leverage, passes, words in cases:
                with self.subTest(story, step=step, **unusual):
                    got = objection(step, leverage, USUAL._replace(**unusual), LIMITS)
                    self.assertEqual(passes, got and got.passing)
                    self.assertRegex(got.reason if got else "", words or "^")

    def test_one_for_want_of_money_says_so_as_data(self) -> None:
        for balance in ("1015.99", "30"):
            got = objection(BUY, 2, USUAL._replace(**having(balance)), LIMITS)
            self.assertTrue(got and got.funds)

    def test_the_sentence_about_the_clock_says_which_way_it_is_off(self) -> None:
        # The exchange's time less the host's: above zero the host is behind.
        self.assertEqual("40 s behind the exchange's", clock_error(40.0))
        self.assertEqual("40 s ahead of the exchange's", clock_error(-40.0))
