"""An order, exactly: written, sent once, asked about until its end is known.

And the other half of that: what is held is what the exchange says and the journal explains.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.errors import LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.journal import Intent, Journal, Outcome, client_order_id
from krakenbot.model import ZERO, Execution, Purpose, Step
from krakenbot.pairs import PairRules, elsewhere, plain

DEADLINE_S = 15  # The engine refuses an order that reaches it later.
VISIBLE_S = 120  # How long reading may lag behind what happened: twice the longest seen.
WATCH_MIN_S = 75.0  # An order counts as absent only when looked for this long by this process.
LOOK_PAUSE_S = 10.0
UNFILLED_MAX = 5

Emit = Callable[[str, str], None]


class Owner(NamedTuple):
    """What makes an order this bot's own; its client order ids are derived from it."""

    fingerprint: str
    pair: str
    interval_s: int
    leverage: int


class Orders:
    """The orders and the position of one bot. Nothing is sent while anything is unknown."""

    def __init__(
        self, owner: Owner, exchange: Exchange, journal: Journal, clock: Clock, emit: Emit
    ) -> None:
        self._owner = owner
        self._exchange = exchange
        self._journal = journal
        self._clock = clock
        self._emit = emit
        self.base = ""  # The pair's base asset, known once its rules are.
        self._looks: dict[str, tuple[float, float]] = {}

    # -- sending -------------------------------------------------------------------------------

    def send(self, step: Step, rules: PairRules, candle: int, held: Decimal, reason: str) -> None:
        """Write the intent, send its order once, and settle it."""
        intent = self._intent(step, rules, candle, held, reason)
        born = int(self._journal.get("created", "0"))
        is_new = self._journal.newest_intent() is None or born >= candle + self._owner.interval_s
        lost = intent._replace(created=min(candle, intent.created))
        if is_new and self._exchange.find(lost.id, lost.created) is not None:
            # The journal is younger than the candle, and the exchange knows this order from as
            # far back as the candle goes: an earlier journal was lost.
            self._journal.write(lost)
        else:
            self._journal.write(intent)
            self._send(intent)
        self.reconcile()

    def _send(self, intent: Intent) -> None:
        self._emit("order", f"{intent.side.value} {plain(intent.volume)}: {intent.reason}")
        try:
            self._exchange.place(intent.order, intent.deadline)
        except UnansweredError as error:
            log.warning("order unanswered id=%s reason=%s", intent.id, error)
        except LaterError as error:
            if error.sent:
                self._drop_refused(intent, error, Outcome.RATE_LIMITED)
            else:
                log.warning("order not sent id=%s reason=%s", intent.id, error)
                self._journal.conclude(intent, Outcome.NOT_SENT, self._now(), note=str(error))
        except RefusedError as error:
            self._drop_refused(intent, error)
        except StopError as error:
            self._drop_refused(intent, error)
            raise
        else:
            self._journal.accept(intent.id)

    def _intent(
        self, step: Step, rules: PairRules, candle: int, held: Decimal, reason: str
    ) -> Intent:
        owner, now = self._owner, self._now()
        leverage, offered = owner.leverage, rules.leverages(step.side)
        if step.purpose is Purpose.CLOSE and leverage and offered and leverage not in offered:
            leverage = min(offered)  # Any offered value closes.
        # Only an order that provably never left may be followed by another one like it.
        attempt = self._journal.attempts(owner.interval_s, candle, step.purpose, Outcome.NOT_SENT)
        return Intent(
            id=client_order_id(
                owner.fingerprint, owner.pair, owner.interval_s, candle, step.purpose, attempt
            ),
            interval_s=owner.interval_s,
            candle=candle,
            purpose=step.purpose,
            side=step.side,
            volume=step.volume,
            leverage=leverage,
            reduce_only=step.reduce_only,
            reason=reason,
            held_before=held,
            created=now,
            deadline=now + DEADLINE_S,
        )

    def _drop_refused(
        self, intent: Intent, error: Exception, outcome: Outcome = Outcome.REFUSED
    ) -> None:
        """Believe a refusal after one look that finds no such order; else leave it to settling."""
        try:
            if self._exchange.find(intent.id, intent.created) is not None:
                return
        except (LaterError, UnansweredError, RefusedError, StopError) as failure:
            log.warning("refusal not confirmed id=%s reason=%s", intent.id, failure)
            return
        log.warning("order %s id=%s reason=%s", outcome, intent.id, error)
        self._journal.conclude(intent, outcome, self._now(), note=str(error))
        self._emit("refusal", str(error))

    # -- settling ------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Ask about every open intent until its end is known; then see that orders still work."""
        for intent in self._journal.open_intents():
            self._reconcile_one(intent)
        count, note = self._journal.consecutive_unfilled()
        if count >= UNFILLED_MAX:
            raise self._journal.halt(f"{count} orders in a row traded nothing; the last: {note}")

    def _reconcile_one(self, intent: Intent) -> None:
        pause_s = 1.0 if intent.accepted else LOOK_PAUSE_S
        previous: Execution | None = None
        while True:
            found = self._exchange.find(intent.id, intent.created)
            if found is None:
                if self._is_absent(intent):
                    return None
            elif found.status.is_final and (found.volume == intent.volume or found == previous):
                # A cancelled order's fill may still be on its way, hence two equal reads.
                return self._conclude(intent, found)
            elif self._clock.now() > intent.deadline + VISIBLE_S and not found.status.is_final:
                raise self._journal.halt(
                    f"market order {found.exchange_order_id} is still {found.status.value}, "
                    f"{plain(found.volume)} of {plain(intent.volume)} done; look at the exchange"
                )
            previous = found
            self._clock.wait(pause_s)
            pause_s = min(pause_s * 2, LOOK_PAUSE_S)

    def _conclude(self, intent: Intent, found: Execution) -> None:
        if not 0 <= found.volume <= intent.volume:
            raise self._journal.halt(
                f"order {found.exchange_order_id} traded {plain(found.volume)}, "
                f"asked for were {plain(intent.volume)}"
            )
        self._journal.conclude(
            intent, Outcome(found.status.value), self._now(), found, found.reason
        )
        price = f"{found.cost / found.volume:.8g}" if found.volume else "-"
        text = (
            f"{intent.side.value} {plain(found.volume)} of {plain(intent.volume)} at {price}, "
            f"fee {plain(found.fee)}"
        )
        log.info("order ended id=%s status=%s %s", intent.id, found.status.value, text)
        self._emit("fill" if found.volume else "refusal", text)

    def _is_absent(self, intent: Intent) -> bool:
        """Return True once it is certain that an unfound order never happened, and write so.

        Certain means: the deadline and the lag of reading are over, this process has looked for
        a good while, and neither the trades nor the position say otherwise.
        """
        now, is_over = self._clock.monotonic(), self._clock.now() > intent.deadline + VISIBLE_S
        first, first_after = self._looks.get(intent.id, (now, float("inf")))
        self._looks[intent.id] = first, min(first_after, now) if is_over else first_after
        if now - first < WATCH_MIN_S or not is_over or now - first_after < LOOK_PAUSE_S:
            return False
        if intent.accepted:
            raise self._journal.halt(
                f"the exchange accepted order {intent.id} and now does not know it; look there"
            )
        traded = self._exchange.traded_orders(intent.created - 5, intent.deadline + VISIBLE_S)
        strange = sorted({order for order in traded if not self._journal.knows_order(order)})
        explained = self._journal.account().held
        held = self._held(explained)
        if strange or held != explained:
            raise self._journal.halt(
                f"order {intent.id} is not found, yet the exchange holds {plain(held)} (explained: "
                f"{plain(explained)}) and shows unexplained trades: {', '.join(strange) or 'none'}",
                held,
            )
        log.warning("order never happened id=%s", intent.id)
        self._journal.conclude(
            intent, Outcome.ABSENT, self._now(), note="not found after its deadline"
        )
        self._emit("refusal", f"the {intent.side.value} order never reached the exchange")
        return True

    # -- what is held --------------------------------------------------------------------------

    def position(self) -> Decimal:
        """Return the signed volume held, once the exchange and the journal say the same.

        Reading may lag, so a difference is asked about for a while; then a person must look.
        """
        explained = self._journal.account().held
        on_margin = self._owner.leverage > 0
        if explained and self._journal.get("on_margin", str(int(on_margin))) != str(int(on_margin)):
            raise self._journal.halt(
                f"{plain(explained)} {self._owner.pair} is held {'without' if on_margin else 'on'} "
                f"margin, leverage is now {self._owner.leverage}: set it back, or close the "
                "position by hand and `run --adopt`"
            )
        pause_s, began = 2.0, self._clock.monotonic()
        while True:
            held = self._held(explained)
            if held == explained:
                return held
            if self._clock.monotonic() - began >= VISIBLE_S:
                break
            log.warning("position differs, asking again held=%s explained=%s", held, explained)
            self._clock.wait(pause_s)
            pause_s = min(pause_s * 2, LOOK_PAUSE_S)
        told = (
            f"the exchange holds {plain(held)} {self._owner.pair}, the journal explains "
            f"{plain(explained)}"
        )
        earning = {} if on_margin else elsewhere(self._exchange.balances(), self.base)
        if earning:
            places = " and ".join(f"{plain(amount)} {code}" for code, amount in earning.items())
            raise self._journal.halt(
                f"{told}; {places} lies in Kraken's Earn or is staked: switch auto-earn off, move "
                "it back to the spot wallet, then `krakenbot resume`. Until it is back do not "
                "adopt: the bot would buy again",
                held,
            )
        raise self._journal.halt(
            f"{told}: closed, opened or liquidated by someone else? Look, then `run --adopt` to "
            "go on with what is held",
            held,
        )

    def _held(self, explained: Decimal) -> Decimal:
        if self._owner.leverage:
            return self._exchange.position().volume
        # Without margin, the bot's position is what it bought itself; other coins of the same
        # kind are not its business, but they must at least be there.
        return min(explained, self._exchange.balances().get(self.base, ZERO))

    def _now(self) -> int:
        return int(self._clock.now())
