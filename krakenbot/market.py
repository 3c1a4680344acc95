"""What matters to an order besides candles and position, and how fresh that knowledge is."""

from decimal import Decimal

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.decision import Plan
from krakenbot.errors import ConfigError, LaterError, RefusedError, StopError, UnansweredError
from krakenbot.exchange import Exchange
from krakenbot.model import ZERO, MarginSummary, Purpose, Quote, Step
from krakenbot.pairs import PairRules
from krakenbot.risk import CLOCK_OFFSET_MAX_S, FEE_RATE_ASSUMED, RiskInputs

CLOCK_REFRESH_S = 3600.0
RULES_REFRESH_S = 6 * 3600.0
FEE_REFRESH_S = 86400.0
MARKET_FRESH_S = 60.0
CLOCK_WARN_S = 5.0
NEVER = float("-inf")


class MarketState:
    """The pair's rules, the account's fee, the exchange's clock and state, asked now and then."""

    rules: PairRules

    def __init__(self, plan: Plan, exchange: Exchange, clock: Clock) -> None:
        self._plan = plan
        self._exchange = exchange
        self._clock = clock
        self._fee_rate = ZERO
        self._clock_offset_s = 0.0
        self._market: tuple[float, str, Quote] = NEVER, "", Quote(ZERO, ZERO)
        self._clock_read = self._rules_read = self._fee_read = NEVER

    def learn(self) -> None:
        """Read clock and rules. Raises ConfigError when there is no such pair."""
        self.measure_clock()
        try:
            self._read_rules()
        except RefusedError as error:
            raise ConfigError(f"pair = {self._plan.pair!r}: {error}") from error

    def invalidate_rules(self) -> None:
        """Have the pair's rules read anew after this tick."""
        self._rules_read = NEVER

    def invalidate_quote(self) -> None:
        """Have the market's state and quote asked anew for the next order."""
        self._market = (NEVER, *self._market[1:])

    def refresh(self, is_clock_in_doubt: bool) -> None:
        """Read anew what has grown old."""
        now = self._clock.monotonic()
        if is_clock_in_doubt or now - self._clock_read >= CLOCK_REFRESH_S:
            self.measure_clock()
        if now - self._rules_read >= RULES_REFRESH_S:
            self._read_rules()
        if now - self._fee_read >= FEE_REFRESH_S:
            self.read_fee_rate()

    def measure_clock(self) -> None:
        """Take the exchange's time, good to about half a second and half the round trip."""
        sent = self._clock_read = self._clock.monotonic()
        server = self._exchange.server_time()
        estimate = server + 0.5 + (self._clock.monotonic() - sent) / 2
        if abs(estimate - self._clock.now()) > 1.0:
            self._clock.set(estimate)
        self._clock_offset_s = estimate - self._clock.wall()
        if abs(self._clock_offset_s) > CLOCK_WARN_S:
            log.warning("clock of this host is off offset_s=%+.1f", -self._clock_offset_s)

    def read_fee_rate(self) -> None:
        try:
            self._fee_rate = self._exchange.fee_rate()
        except (LaterError, UnansweredError, RefusedError, StopError) as error:
            self._fee_rate = self._fee_rate or FEE_RATE_ASSUMED
            log.warning("fee rate assumed rate=%s reason=%s", self._fee_rate, error)
        self._fee_read = self._clock.monotonic()

    def risk_inputs(self, step: Step, held: Decimal, orders_today: int) -> RiskInputs:
        """Return what speaks for or against an order; status and quote are good for a minute."""
        now = self._clock.monotonic()
        if abs(self._clock_offset_s) > CLOCK_OFFSET_MAX_S:
            self.measure_clock()  # It may have been repaired since.
        if now - self._market[0] > MARKET_FRESH_S:
            self._market = (now, self._exchange.market_status().status, self._exchange.quote())
        return RiskInputs(
            system_status=self._market[1],
            quote=self._market[2],
            rules=self.rules,
            held=held,
            summary=None if step.purpose is Purpose.CLOSE else self.summary(),
            orders_today=orders_today,
            fee_rate=self._fee_rate,
            clock_offset_s=self._clock_offset_s,
        )

    def summary(self) -> MarginSummary:
        """Return the account's numbers; without margin its money alone."""
        if self._plan.leverage:
            return self._exchange.summary()
        return MarginSummary(self._exchange.balances().get(self.rules.quote, ZERO), ZERO, ZERO)

    def _read_rules(self) -> None:
        self.rules = self._exchange.rules()
        self._rules_read = self._clock.monotonic()
