"""What the bot owes when nothing goes wrong: a decision a candle, the target, a word in silence."""

import re
from decimal import Decimal
from typing import TYPE_CHECKING

from krakenbot.bot import Event

if TYPE_CHECKING:
    from tests.simulation.world import World

SILENCE_MAX_S, AGAIN_S = 1800.0, 90000.0
LOOK_S = 600.0  # Between two looks at one candle.
FRESH_S = 400.0
AWAKE_S = 300.0  # After a sleep of the machine: an order may have been on its way.
FLAT_EVERY = 5  # Of the rule's candles.
# Reasons for which it may be off target in calm.
HELD_BACK = (
    "are needed|margin level|max_orders_per_day|left alone below|max_loss|waiting for a turn"
)
STALE = "in state|has no margin|is not offered|smallest order"


class Duty:
    """Looks at each finished candle. `due` is when it next looks."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.due = world.time
        self.decided = 0  # The start of the newest candle that was decided on.
        self.reason = ""
        self.was_stale = False
        self.target = 0
        self.decided_at = self.told_at = world.time
        self.woke_at = float("-inf")  # When the machine slept last.
        self.halted_at = float("-inf")  # When a person last looked at a halt.

    def back_s(self) -> float:
        """Return how long after the last fault the bot must be back on target.

        The lag of reading and a search for a lost order, the pauses between attempts, and the
        last tenth of a candle, in which nothing is opened.
        """
        interval_s = self.world.interval_s
        return 480.0 + min(2.0 * interval_s, 1200.0) + 0.15 * interval_s

    def late_s(self) -> float:
        """Return how long after a candle's end it must be decided."""
        return 45.0 if self.world.interval_s == 60 else 150.0

    def is_calm(self) -> bool:
        """Return whether all has been well for so long that there is no excuse."""
        world = self.world
        since = max(world.storms.calm_from, world.truth.foreign_at, world.born)
        is_awake = world.time - self.woke_at > AWAKE_S
        return world.is_alive and is_awake and world.time - since > self.back_s()

    def hear(self, event: Event) -> None:
        if event.kind == "decision":
            self._check_silence()
            self.decided_at = self.world.time
            self.decided = int(event.values["candle"])
            self.reason, self.target = event.values["reason"], int(event.values["target"])
            if not self._is_polluted():
                self._check_direction(self.decided)
        elif event.kind == "warning":
            self.told_at = self.world.time

    def _check_silence(self) -> None:
        """Where nothing was decided for long, a person must have been told."""
        world = self.world
        silent = world.time - max(self.decided_at, world.born)
        if world.is_alive and silent > SILENCE_MAX_S + 2 * world.interval_s:
            told = self.told_at > self.decided_at and world.time - self.told_at < AGAIN_S
            world.expect(told, "no long silence", f"{silent:.0f} s without decision or notice")

    def act(self) -> None:
        """Look at the candle that ended a little while ago, and at the position."""
        world, step = self.world, self.world.interval_s
        ended = int(world.time - self.late_s()) // step * step
        self.due = min(ended + step + self.late_s(), world.time + LOOK_S)
        self._check_silence()
        if not self.is_calm() or world.meta("halted"):
            return
        text = f"the candle of {ended - step} is not decided, the newest is {self.decided}"
        polluted = self._is_polluted()
        if self.decided < ended - step and self._is_written(ended - step):
            return
        if not polluted or world.storms.candles_wrong_at < world.time - 3 * step:
            world.expect(self.decided >= ended - step, "one decision a finished candle", text)
        world.counts["calm candles"] += 1
        if not polluted:
            self._check_target(ended - step)

    def _is_written(self, candle: int) -> bool:
        """Return whether a process decided on it and died before it told anybody."""
        query = "SELECT 1 FROM decisions WHERE interval_s = ? AND candle >= ? AND done"
        return bool(self.world.raw(query, self.world.interval_s, candle))

    def _is_polluted(self) -> bool:
        """Return whether the candles that count now may have been told wrongly."""
        world = self.world
        reach_s = (int(world.settings["STRATEGY_LENGTH"]) + 3) * world.interval_s
        return world.storms.candles_wrong_at > world.time - reach_s

    def _check_direction(self, candle: int) -> None:
        """The target is where the market's own candles say, unless something else is said."""
        world = self.world
        if re.search("waiting for a turn|loss since|no view yet|by hand", self.reason):
            return
        wanted = self.true_direction(candle)
        target = max(wanted, 0) if not world.leverage else wanted
        text = f"candle {candle}: target {self.target}, truly {target}: {self.reason}"
        if self.decided == candle and (wanted or world.setting.rule):
            world.expect(self.target == target, "the candles are followed", text)

    def _check_target(self, candle: int) -> None:
        world = self.world
        if re.search("waiting for a turn|loss since", self.reason):
            return
        self._check_direction(candle)
        text = f"candle {candle}: target {self.target}: {self.reason}"
        own = world.truth.own
        before, self.was_stale = self.was_stale, False
        if own == world.size * self.target:
            return
        if not before and re.search(STALE, self.reason):
            self.was_stale = True  # It read the pair's rules in the storm; soon it knows better.
            return
        excuse: object = re.search(HELD_BACK, self.reason)
        if "ordered once for this candle" in self.reason:
            # What it opened was closed by a halt, or it was filled in part only.
            partly = world.raw(
                "SELECT 1 FROM intents WHERE candle = ? AND outcome = 'canceled'", candle
            )
            excuse = excuse or self.halted_at >= candle + world.interval_s or partly
        least = Decimal(world.api.markets.listing[world.setting.pair]["ordermin"])
        is_fresh = self.decided_at > world.storms.calm_from + FRESH_S  # It knows the rules now.
        is_whole = abs(own - world.size * self.target) >= least
        if "left alone below" in self.reason and is_fresh and is_whole:
            excuse = None
        world.expect(excuse, "back on target", f"{own} is held; {text}")
        world.counts["calm but held back"] += 1

    def true_direction(self, candle: int) -> int:
        """Return the sign of the newest slope that is not zero, straight from the market.

        A rule is flat instead in every candle of certain times.
        """
        world, step_s = self.world, self.world.interval_s
        series = world.feed.series(world.rules)
        has_rule = world.settings.get("STRATEGY_NAME") == "file"
        length = world.setting.length if has_rule else int(world.settings["STRATEGY_LENGTH"])

        def close(start: int) -> Decimal:
            return series.bar(start, step_s, start + step_s).close

        while candle - length * step_s >= series.first:
            if has_rule and (candle // step_s) % FLAT_EVERY == 0:
                return 0
            difference = close(candle) - close(candle - length * step_s)
            if difference:
                return 1 if difference > 0 else -1
            candle -= step_s
        return 0
