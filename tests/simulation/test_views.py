"""What a strategy may say after a candle: long, short, flat, or nothing new."""

from collections.abc import Sequence
from decimal import Decimal
from functools import partial

from krakenbot.bot import Bot
from krakenbot.model import ZERO, Candle, Direction, Signal
from krakenbot.rulefile import load
from tests.folders import own_folder
from tests.simulation.test_bot import SIZE, T0, BotTest


class TestViews(BotTest):
    """`views` are by number of the candle; on any other the strategy has nothing to say."""

    def setUp(self) -> None:
        super().setUp()
        self.views: dict[int, Direction] = {}

    def bot(self, **changes: object) -> Bot:
        def strategy(candles: Sequence[Candle]) -> Signal:
            number = (candles[-1].time - T0) // 60 if candles else -1
            return Signal(self.views.get(number), ZERO, 0)

        return super().bot(strategy=strategy, **changes)

    def held_after(self, number: int, **changes: object) -> Decimal:
        """Return what is held after a new bot's decision on that candle."""
        self.once(number, **changes)
        return self.exchange.held

    def test_flat_closes_without_opening_and_stays_out(self) -> None:
        self.views = {100: Direction.LONG, 101: Direction.FLAT, 103: Direction.SHORT}
        held = [self.held_after(number) for number in range(100, 104)]
        self.assertEqual([SIZE, ZERO, ZERO, -SIZE], held)
        reducing = [order.reduce_only for order in self.exchange.placed]
        self.assertEqual([False, True, False], reducing)

    def test_without_a_view_what_was_wanted_before_a_restart_is_still_wanted(self) -> None:
        self.views = {100: Direction.LONG}
        self.exchange.script = ["unsent"] * 9
        self.assertEqual(ZERO, self.held_after(100))
        self.exchange.script = []
        self.assertEqual([SIZE, SIZE], [self.held_after(101), self.held_after(102)])

    def test_a_bot_that_never_had_a_view_touches_nothing_that_it_holds(self) -> None:
        self.exchange.by_hand(Decimal("0.02"))
        self.once(101, adopt=True)
        self.assertEqual([Decimal("0.02")] * 2, [self.held_after(n) for n in (102, 103)])

    def test_waiting_for_a_turn_no_view_is_no_turn_and_flat_is_one(self) -> None:
        self.views = {101: Direction.LONG, 103: Direction.LONG, 104: Direction.FLAT}
        self.views[105] = Direction.LONG
        held = [self.held_after(number, entry_now=False) for number in range(100, 106)]
        self.assertEqual([*[ZERO] * 5, SIZE], held)

    def test_waiting_that_begins_flat_ends_with_the_first_other_view(self) -> None:
        self.views = {100: Direction.FLAT, 102: Direction.SHORT}
        held = [self.held_after(number, entry_now=False) for number in range(100, 103)]
        self.assertEqual([ZERO, ZERO, -SIZE], held)

    def test_without_a_view_the_candles_are_asked_for_once_a_tick(self) -> None:
        bot, asked = self.once(100), self.moments("candles")
        self.once(101, bot)
        self.assertEqual(1, len(asked))


class TestOwnRule(BotTest):
    """A rule file that is long until candle 102, and there does what it should not."""

    def run_rule(self, then: str) -> str:
        """Return why the bot halted."""
        path = own_folder(self) / "rule.py"
        path.write_text(
            "CANDLES = 20\n"
            "def direction(candles):\n"
            f"    if candles[-1].time < {T0 + 102 * 60}: return 1\n"
            f"    {then}\n"
        )
        strategy = partial(load(path).signal, parameters={}, answer_max_s=0.2)
        reason = self.stopped(lambda: self.until(105, strategy=strategy, candles_min=20))
        self.assertEqual(reason, self.journal.get("halted"))
        return reason

    def test_a_rule_that_fails_halts_the_bot_with_its_line_and_leaves_what_is_held(self) -> None:
        for then in ("return 1 / 0", "return 7", "while True: pass"):
            with self.anew(then):
                reason = self.run_rule(then)
                self.assertRegex(reason, f"rule.py:[24]: .*{SIZE} XBTUSD stays held")
                self.assert_held(SIZE, sent=1)
