"""Retrying while the exchange cannot be reached or refuses the key, and alerts about that."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from krakenbot import log
from krakenbot.alerts import Alerts
from krakenbot.clock import Clock
from krakenbot.errors import ExchangeError, KeyRefusedError, LaterError
from krakenbot.journal import Journal
from krakenbot.kraken.spot import Spot

BACKOFF_MAX_S, WAIT_MAX_S = 60.0, 300.0
LOGGED_S = 60.0  # At most one log line in this time.
SILENCE_MAX_S = 300.0  # A longer wait is an alert.
KEY_PAUSES_S = (60.0, 180.0, 300.0)
LOCKOUT_S = 900.0

T = TypeVar("T")


class Retry:
    """Retries actions that are safe to repeat after any failure of the exchange."""

    def __init__(self, exchange: Spot, journal: Journal, clock: Clock, alerts: Alerts) -> None:
        self._exchange, self._journal = exchange, journal
        self._clock, self._alerts = clock, alerts
        self.has_started = False  # Whether the bot has run all its checks in this process.
        self._locked_until = float("-inf")  # By the monotonic clock.

    def __call__(self, action: Callable[[], T], patience_s: float = float("inf")) -> T:
        """Return the action's result; LaterError if it fails for longer than `patience_s`."""
        refusals, refused_at = 0, float("-inf")
        locked_s = self._locked_until - self._clock.monotonic()
        if locked_s > 0:  # A request to flatten has ended the wait for the end of a lockout.
            self._clock.wait(locked_s)
        while True:
            try:
                result = retry(action, self._clock, patience_s, self._on_failure)
            except KeyRefusedError as error:
                # A key may read the balance and still lack what the action needs. A refusal long
                # after the last one, as in an outage or after a lockout, is a new one.
                now = self._clock.monotonic()
                refusals = refusals + 1 if now - refused_at < LOCKOUT_S else 1
                refused_at = now
                error.lasting = error.lasting or refusals > len(KEY_PAUSES_S)
                self._wait_out_refused_key(error, KEY_PAUSES_S[refusals - 1 :])
            else:
                self._alerts.update("waiting", "")
                self._alerts.update("key", "")
                return result

    def _on_failure(self, text: str) -> None:
        self._alerts.update("waiting", text, SILENCE_MAX_S)

    def _wait_out_refused_key(self, error: KeyRefusedError, pauses_s: Sequence[float]) -> None:
        """Wait a few minutes and try the key again; raise the error if it is still refused.

        No private request is sent meanwhile, because each one prolongs a lockout. There is no
        second try at the start of a bot that holds nothing and has no open order.
        Source: support.kraken.com 360001491786, "API error messages".
        """
        is_needed = self._journal.account().held or self._journal.open_intents()
        if error.lasting or not (is_needed or self.has_started):
            raise error
        self._alerts.update("key", f"{error}; trying it again in a few minutes")
        for pause_s in (LOCKOUT_S,) if error.lockout else pauses_s:
            if error.lockout:
                pause_s, self._locked_until = LOCKOUT_S, self._clock.monotonic() + LOCKOUT_S
            self._clock.wait(pause_s)
            try:
                self._exchange.balances()
                return
            except KeyRefusedError as again:
                error = again
            except ExchangeError:
                return  # The caller retries the action.
        raise error


def retry(
    action: Callable[[], T],
    clock: Clock,
    patience_s: float,
    on_failure: Callable[[str], None] = lambda text: None,
    key_pauses_s: Sequence[float] = (),
) -> T:
    """Return the action's result, retrying with backoff while it raises ExchangeError.

    Raises LaterError when it keeps failing for longer than `patience_s`. `on_failure` gets a text
    at each failure. A refused key is tried again after each of `key_pauses_s`, in a lockout once.
    """
    pauses = iter(key_pauses_s)
    began, logged, pause_s = float("inf"), float("-inf"), 1.0
    while True:
        try:
            return action()
        except KeyRefusedError as error:
            key_pause_s = next(pauses, None)
            if key_pause_s is None:
                raise
            log.warning("key refused, trying it again in a few minutes reason=%s", error)
            if error.lockout:
                key_pause_s, pauses = LOCKOUT_S, iter(())
            clock.wait(key_pause_s)
        except ExchangeError as error:
            now = clock.monotonic()
            began = min(began, now)
            if now - began > patience_s:
                raise LaterError(f"gave up after {patience_s:.0f} s: {error}") from error
            if now - logged >= LOGGED_S:
                logged = now
                log.warning("waiting for the exchange reason=%s", error)
            on_failure(f"waiting for the exchange: {error}")
            wait_s = min(max(pause_s, error.wait_s), WAIT_MAX_S)
            clock.wait(min(wait_s, max(0.1, patience_s - (now - began) + 0.1)))
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)
