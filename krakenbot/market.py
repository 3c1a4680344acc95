"""What an order depends on besides candles and position, and how fresh that knowledge is."""

import json
from decimal import Decimal

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.decision import Plan
from krakenbot.errors import (
    ConfigError,
    ExchangeError,
    KeyRefusedError,
    RefusedError,
    StopError,
    UnansweredError,
)
from krakenbot.journal import Journal
from krakenbot.kraken.spot import Spot
from krakenbot.model import MARGIN_RATE_ASSUMED, MarginRates, Purpose, Quote, Step
from krakenbot.pairs import PairRules, parse_rules, plain
from krakenbot.risk import FEE_RATE_ASSUMED, RiskInputs, clock_error

CLOCK_WARN_S = 5.0  # Harmless so far, but the host's clock is not synchronized.
CLOCK_JUMP_S = 5.0  # A larger jump is believed only when more answers agree.
CLOCK_LOOKS = 3
CLOCK_PAUSE_S = 5.0
RATES_S, RATES_AGAIN_S = 3600.0, 300.0  # The latter after an answer that did not come.
NEVER = float("-inf")


class MarketState:
    """The pair's rules, the account's fee, the exchange's clock and state, reread now and then."""

    rules: PairRules

    def __init__(self, plan: Plan, exchange: Spot, clock: Clock, journal: Journal) -> None:
        self._plan, self._exchange, self._clock, self._journal = plan, exchange, clock, journal
        self.fee_rate, self.margin_rates = FEE_RATE_ASSUMED, MarginRates()
        self.assumed = ""  # Which of these are assumed, in words.
        self.status = "online"
        self.clock_offset_s = 0.0  # The exchange's time minus the host's.
        self.notices: tuple[str, ...] = ()  # What the exchange announces: emergencies, maintenance.
        # How each part is read, and how old it may become, in seconds.
        self._parts = {
            "clock": (self.measure_clock, 300.0),
            "status": (self._read_status, 240.0),
            "rules": (lambda: self._keep_rules(exchange.rules()), 3600.0),
            "rates": (self.read_rates, RATES_S),
        }
        self._read_at = dict.fromkeys(self._parts, NEVER)  # By the monotonic clock.

    def learn(self) -> None:
        """Read clock and rules; while a position or order is open, stored rules will do.

        Raises ConfigError when the exchange has no such pair.
        """
        self.measure_clock()
        is_first = not hasattr(self, "rules")
        try:
            self._keep_rules(self._exchange.known_rules() if is_first else self._exchange.rules())
        except ExchangeError as error:
            text = self._journal.get("rules")
            if not text or (is_first and not self._journal.is_exposed()):
                if not isinstance(error, RefusedError):
                    raise
                raise ConfigError(f"pair = {self._plan.pair!r}: {error}") from error
            log.warning("the pair's rules cannot be read, using stored ones: %s", error)
            stored = json.loads(text)
            self.rules = parse_rules(stored["pair"], stored)
            if isinstance(error, RefusedError):
                self.rules = self.rules._replace(status="not listed")
            self._exchange.assume_rules(self.rules)

    @property
    def closed(self) -> str:
        """Say that exchange or pair take no orders now; an empty text when they do."""
        if self.status == self.rules.status == "online":
            return ""
        pair = f"{self.rules.altname} in state {self.rules.status}"
        return f"something is held; the exchange is in state {self.status}, {pair}"

    def minimum_alert(self, held: Decimal) -> str:
        """Say that the smallest order is above `size`; an empty text when it is not."""
        size, least = self._plan.size, self.rules.ordermin
        if size >= least:
            return ""
        self.invalidate()
        words = f"the exchange's smallest order is now {plain(least)}, above size {plain(size)}"
        return f"{words}; {f'{plain(held)} {self._plan.pair}' if held else 'nothing'} is held"

    def invalidate(self) -> None:
        """Let the next refresh read the pair's rules and the exchange's time again."""
        self._read_at["rules"] = self._read_at["clock"] = NEVER

    def refresh(self) -> None:
        """Read again each part that is out of date, up to the second failure; raise the first."""
        errors = list[ExchangeError]()
        for part, (read, age_max_s) in self._parts.items():
            if len(errors) == 2 or (errors and part == "rates"):
                break  # Nothing is answered. Rates that cannot be read are assumed meanwhile.
            try:
                if self._clock.monotonic() - self._read_at[part] >= age_max_s:
                    read()
            except ExchangeError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def measure_clock(self) -> None:
        """Set the clock to the exchange's time, to within half a second and half the round trip.

        An answer far from the time known so far (at first the host's) counts only if further
        answers, seconds apart, agree; else UnansweredError. The exchange's time is used, as
        Kraken judges deadlines by it; nothing is opened while the host's clock is far off.
        """
        offset_s, doubt_s = self._ask_time()
        known_s = self._clock.now() - self._clock.monotonic()
        if abs(offset_s - known_s) > CLOCK_JUMP_S + doubt_s:  # One of the two is wrong.
            self._read_at["clock"] = NEVER
            for _ in range(CLOCK_LOOKS - 1):
                self._clock.wait(CLOCK_PAUSE_S)
                again_s, again_doubt_s = self._ask_time()
                if abs(again_s - offset_s) > doubt_s + again_doubt_s:
                    raise UnansweredError(f"the exchange's clock jumps {again_s - offset_s:+.0f} s")
                offset_s, doubt_s = again_s, again_doubt_s
        self._read_at["clock"] = self._clock.monotonic()
        if abs(offset_s - known_s) > doubt_s:
            self._clock.set(self._clock.monotonic() + offset_s)
        self.clock_offset_s = self._clock.now() - self._clock.wall()
        if abs(self.clock_offset_s) > CLOCK_WARN_S:
            log.warning("this host's clock is %s", clock_error(self.clock_offset_s))

    def _ask_time(self) -> tuple[float, float]:
        """Return the exchange's time minus the monotonic clock, and its possible error, in seconds.

        The exchange answers in whole seconds.
        """
        sent = self._clock.monotonic()
        server = self._exchange.server_time()
        trip_s = self._clock.monotonic() - sent
        return server + 0.5 - sent - trip_s / 2, 1.0 + trip_s / 2

    def read_rates(self) -> None:
        """Read the account's fee and the margin rates; what cannot be read is assumed."""
        assumed, self._read_at["rates"] = list[str](), self._clock.monotonic()
        try:
            self.fee_rate = self._exchange.fee_rate()
            if self._plan.leverage:
                self.margin_rates = self._exchange.margin_rates()
        except (ExchangeError, StopError) as error:
            if isinstance(error, KeyRefusedError) and error.lockout:
                raise  # No private request may follow.
            self._read_at["rates"] -= RATES_S - RATES_AGAIN_S
            used = f"a fee of {plain(100 * self.fee_rate)} % is used"
            assumed += [f"the fee or the margin rates cannot be read, {used}: {error}"]
        if self._plan.leverage and None in self.margin_rates:
            assumed += [f"a margin rate of {plain(100 * MARGIN_RATE_ASSUMED)} % is assumed"]
        self.assumed = "; ".join(assumed)

    def quote(self) -> Quote:
        """Return bid and ask; while flattening, the last price known if they cannot be read."""
        try:
            return self._exchange.quote()
        except ExchangeError:
            equity = self._journal.newest_equity()
            if equity is None or not self._journal.get("flatten"):
                raise
            return Quote(equity.price, equity.price)

    def fair_price(self) -> Decimal:
        """Return the last close known, or the price of the quote nearest to it: none is absurd."""
        quote, equity = self.quote(), self._journal.newest_equity()
        return sorted((quote.bid, equity.price if equity else quote.mid, quote.ask))[1]

    def _read_status(self) -> None:
        self.status, self.notices = self._exchange.market_status()
        self._read_at["status"] = self._clock.monotonic()
        if self.rules.status not in ("online", "not listed"):
            self._read_at["rules"] = NEVER  # While the pair takes no orders, they are read often.

    def risk_inputs(self, step: Step, held: Decimal, orders_today: int) -> RiskInputs:
        """Return the inputs of `objection`. All but rules, rates and clock are read now."""
        closes, on_margin = step.purpose is Purpose.CLOSE, self._plan.leverage > 0
        try:
            self._read_status()
        except ExchangeError:
            if not closes:  # For a close the last one known will do.
                raise
        return RiskInputs(
            system_status=self.status,
            quote=self.quote(),
            rules=self.rules,
            held=held,
            summary=None if closes else self._exchange.summary(on_margin),
            orders_today=orders_today,
            fee_rate=self.fee_rate,
            clock_offset_s=self.clock_offset_s,
            margin_rate=self.margin_rates.of(step.side),
        )

    def _keep_rules(self, rules: PairRules) -> None:
        self.rules, self._read_at["rules"] = rules, self._clock.monotonic()
        text = json.dumps(rules._asdict(), default=str)
        if text != self._journal.get("rules"):
            self._journal.put(rules=text)
