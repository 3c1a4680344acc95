"""Retrying while the exchange cannot be reached or refuses the key, and alerts about that."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from krakenbot import log
from krakenbot.alerts import Alerts
from krakenbot.clock import Clock
from krakenbot.errors import ExchangeError, KeyRefusedError, LaterError
from krakenbot.journal import Journal
from krakenbot.kraken.spot import Spot

BACKOFF_MAX_S = 60.0
LOGGED_S = 60.0  # At most one log line in this time.
SILENCE_MAX_S = 300.0  # A longer wait is an alert.
KEY_PAUSES_S = (60.0, 180.0, 300.0)
LOCKOUT_S = 900.0

T = TypeVar("T")


class Retry:
    """Retries actions that are safe to repeat after any failure of the exchange.

    When a bot starts that holds nothing and has no open order, a refused key is not tried again.
    """

    def __init__(self, exchange: Spot, journal: Journal, clock: Clock, alerts: Alerts) -> None:
        self._exchange, self._journal = exchange, journal
        self._clock, self._alerts = clock, alerts
        self.has_started = False  # Whether the bot has run all its checks in this process.
        self._locked_until = float("-inf")  # By the monotonic clock.

    def __call__(self, action: Callable[[], T], patience_s: float = float("inf")) -> T:
        """Return the action's result; LaterError if it fails for longer than `patience_s`."""
        locked_s = self._locked_until - self._clock.monotonic()
        if locked_s > 0:  # A request to flatten has ended the wait for the end of a lockout.
            self._clock.wait(locked_s)
        is_needed = self.has_started or self._journal.is_exposed()
        pauses_s, probe = (KEY_PAUSES_S if is_needed else ()), self._exchange.balances
        result = retry(action, self._clock, patience_s, self._on_failure, pauses_s, probe)
        self._alerts.update("waiting", "")
        self._alerts.update("key", "")
        return result

    def _on_failure(self, error: Exception) -> None:
        if not isinstance(error, KeyRefusedError):
            self._alerts.update("waiting", f"waiting for the exchange: {error}", SILENCE_MAX_S)
            return
        self._alerts.update(
            "key", f"{error}; while the bot runs, the key is tried again every few minutes"
        )
        if error.lockout:
            self._locked_until = self._clock.monotonic() + LOCKOUT_S


def retry(
    action: Callable[[], T],
    clock: Clock,
    patience_s: float,
    on_failure: Callable[[Exception], None] = lambda error: None,
    key_pauses_s: Sequence[float] | None = None,
    probe: Callable[[], object] | None = None,
) -> T:
    """Return the action's result, retrying with backoff while it raises ExchangeError.

    Raises LaterError when it keeps failing for longer than `patience_s`. `on_failure` gets each
    failure. A refused key is tried again after each of `key_pauses_s` (None: never), in a
    lockout after LOCKOUT_S. After that pause `probe` is called first. Until then nothing private is
    sent, because that prolongs a lockout.
    """
    began, logged, backoff_s = float("inf"), float("-inf"), 1.0
    refusal: KeyRefusedError | None = None  # The newest one, until the key has worked again.
    refused_at, pauses_s = float("-inf"), iter(key_pauses_s or ())
    while True:
        try:
            if refusal and probe:
                probe()
                refusal = None
            return action()
        except KeyRefusedError as error:
            if key_pauses_s is None:
                raise
            now = clock.monotonic()
            # A key may pass the probe and still lack what the action needs. A refusal long after
            # the last one, as in an outage or after a lockout, is a new one.
            if refusal is None and now - refused_at >= LOCKOUT_S:
                pauses_s = iter(key_pauses_s)
            pause_s = _key_pause_s(error, refusal, pauses_s, patience_s)
            refusal, refused_at, began = error, now, float("inf")
            log.warning("key refused, trying it again in a few minutes reason=%s", error)
            on_failure(error)
            clock.wait(pause_s)
        except ExchangeError as error:
            refusal, now = None, clock.monotonic()
            began = min(began, now)
            if now - began > patience_s:
                raise LaterError(f"gave up after {patience_s:.0f} s: {error}") from error
            if now - logged >= LOGGED_S:
                logged = now
                log.warning("waiting for the exchange reason=%s", error)
            on_failure(error)
            left_s = patience_s - (now - began) + 0.1
            clock.wait(min(max(backoff_s, error.wait_s), left_s))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


def _key_pause_s(
    error: KeyRefusedError,
    before: KeyRefusedError | None,
    pauses_s: Iterator[float],
    patience_s: float,
) -> float:
    """Return the seconds until a refused key is tried again; raise when it is not.

    `before` is the refusal before this one, None if the key has worked since. A second lockout in a
    row is raised; a limit of requests only with a finite patience.
    Source: support.kraken.com 360001491786, "API error messages".
    """
    if error.rate_limited:
        if before and before.rate_limited and patience_s < float("inf"):
            raise LaterError(f"gave up: {error}") from error
        return LOCKOUT_S
    pause_s = next(pauses_s, None)
    is_second = error.lockout and before and before.lockout and not before.rate_limited
    if pause_s is None or is_second:
        raise error
    return LOCKOUT_S if error.lockout else pause_s
