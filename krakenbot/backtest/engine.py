"""The bot's decisions replayed over columns of candles, with the same orders, fees and margin.

An order decided on candle n fills one second into candle n + 1, at its open plus or minus one tick.
Nearly always a tick does nothing or only reverses the position, and comparisons of floats show
that. All other ticks go through the same pure functions as those of the bot. Money is only counted
in the exact books of the simulated exchange.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import chain, islice, repeat
from math import inf, nan
from typing import NamedTuple

from krakenbot import format
from krakenbot.backtest.columns import BadDataError, Columns, candles_of, exact
from krakenbot.backtest.result import DAY_S, Fill, Record, Result
from krakenbot.decision import Blocked, Plan, Snapshot, decide
from krakenbot.errors import RefusedError
from krakenbot.kraken.shape import OHLC_ROWS_MAX
from krakenbot.model import ZERO, Candle, Direction, Order, Purpose, Quote, Signal, Step
from krakenbot.pairs import PairRules
from krakenbot.risk import RiskInputs, objection
from krakenbot.simulated.books import ROLLOVER_S, Account, Trade, refusal
from krakenbot.strategy import sma_slope

# As in bot.py and orders.py.
WAKE_DELAY_S = 1
LOSS_PAUSE_S = 10
ROUNDS_MAX = 3
UNFILLED_MAX = 5
# The start of the new candle, its open and volume; high, low and close of the finished one, and the
# strategy's view after it.
Tick = tuple[int, float, float, float, float, float, Direction | None]
_NAMES = {way.value: way.name.lower() for way in Direction}


class Costs(NamedTuple):
    """Trading costs as fractions, and the balance at the start, in quote currency.

    With `needs_trades` an order waits for the next candle that has trades.
    """

    fee_rate: Decimal
    balance: Decimal
    slippage: Decimal = ZERO
    margin_rates: Mapping[str, Decimal] = {}  # By the asset borrowed.
    needs_trades: bool = False


class Bounds:
    """In floats: prices between which, and a time until which, nothing happens to a position.

    Equity at a price is `fixed + held * price`. The bounds lie 0.1 % before liquidation, `max_loss`
    and prices too low for an order. Beyond them the exact books decide.
    """

    def __init__(self, plan: Plan, rules: PairRules, costs: Costs) -> None:
        limits, leverage = plan.limits, plan.leverage or 1
        volume, loss_max = rules.round_volume(plan.size), limits.max_loss
        self._size = float(volume)
        spread_max = 200 * Decimal(1).scaleb(-rules.pair_decimals) / limits.max_spread_percent
        self._price_min = 1.001 * float(max(spread_max, rules.costmin / (volume or 1)))
        share = max(Decimal(1), limits.min_margin_level / 100) + 1
        need = share / leverage + 4 * costs.fee_rate + costs.slippage
        self._need = 2.02 * float(need * volume)  # Twice what a check asks for.
        self._stop = float(rules.margin_stop) / 100 / leverage
        self._floor = 0.0 if loss_max is None else max(float(costs.balance - loss_max), 0.0)
        self.set(0.0, costs.balance, ZERO, 0)

    def set(self, held: float, balance: Decimal, cost: Decimal, due: float) -> None:
        """Set the bounds of a position with this opening cost, until the time `due`.

        A long borrows its cost, whatever it is worth now: `_entry` is its price, else 0.
        """
        self.held, self.due, opened_for = held, due, float(cost)
        self.fixed = fixed = float(balance) - (opened_for if held > 0 else -opened_for)
        self._entry, self.bottom, self.top = 0.0, -inf, inf
        if held > 0:
            self._entry = opened_for / held
            bottom = (max(self._stop * opened_for, self._floor) - fixed) / held / 0.999
            self.bottom = max(bottom, self._price_min)
        elif held < 0:
            top = min(fixed / (1.001 + self._stop), (fixed - self._floor) / 1.001) / -held
            self.bottom, self.top = self._price_min, top

    def can_reverse(self, price: float, direction: Direction) -> bool:
        """Return whether `size` is held the other way, and far more money than a reversal needs."""
        needed = self._need * max(price, self._entry) + self._floor
        return self.held == -self._size * direction and self.fixed + self.held * price > needed


class Replay:
    """Replays one plan over one series of candles, which `feed` takes in parts.

    `record` keeps the newest `keep` round trips, all if None. The first `warm_up` candles are only
    shown to the strategy.
    """

    def __init__(
        self, plan: Plan, rules: PairRules, costs: Costs, keep: int | None = 0, warm_up: int = 0
    ) -> None:
        self.plan, self.rules, self.costs = plan, rules, costs
        money = {rules.quote: costs.balance}
        self.account = Account(money, costs.fee_rate, margin_rates=costs.margin_rates)
        self.position = self.account.position(rules)
        self.record = Record(rules, plan.interval_s, costs.balance, keep)
        self._newest: Columns | None = None  # The newest candle, which is not decided on yet.
        self._warm_up, self._first_open = warm_up, ZERO
        is_slope = getattr(plan.strategy, "func", None) is sma_slope
        self._closes = [nan] * (plan.candles_min - 1) if is_slope else []
        self._window: deque[Candle] = deque(maxlen=OHLC_ROWS_MAX)
        self._direction: Direction | None = None
        self._now, self._is_traded = 0, True  # At the newest tick, as are the exact prices.
        self._opened = self._closed = ZERO
        self._seen: set[Direction] = set()
        self._passed: set[int] = set()  # Directions in which `size` was opened after all checks.
        self._is_off_target, self._flatten = True, ""
        self._unaffordable, self._allowed_at = inf, 0
        self._recent: deque[int] = deque()
        self._unfilled = 0
        self._tick = Decimal(1).scaleb(-rules.pair_decimals)
        self._volume = rules.round_volume(plan.size)
        self._loss_max = Decimal(inf) if plan.limits.max_loss is None else plan.limits.max_loss
        self._bounds = Bounds(plan, rules, costs)

    def feed(self, part: Columns) -> None:
        """Process the next candles. The newest one is decided on once the next one is known.

        The first part must be longer than the warm-up.
        """
        record, bounds, new = self.record, self._bounds, 0
        if self._newest is None:
            new = self._warm_up
            record.begin, self._first_open = part.times[new], exact(part.opens[new])
        record.candles += len(part.times) - new
        record.candles_untraded += part.volumes[new:].count(0.0)
        part = part if self._newest is None else self._newest.joined(part)
        self._newest = part.cut(-1)
        finished = part.highs, part.lows, part.closes, self._views(part)
        # This ends with the first column, so no view is asked for after the newest candle.
        nexts = (islice(column, 1, None) for column in (part.times, part.opens, part.volumes))
        ticks = zip(*nexts, *finished, strict=False)
        for *_, view in islice(ticks, max(new - 1, 0)):
            self._direction = self._direction if view is None else view
        for time, opened, volume, high, low, close, view in ticks:
            is_safe = (
                bounds.bottom < low and high < bounds.top and bounds.bottom < opened < bounds.top
            )
            is_quiet = is_safe and time < bounds.due
            if is_quiet:
                equity = bounds.fixed + bounds.held * close
                if not record.lowest <= equity < record.peak:
                    record.value(equity, time)
                if view is None or view is self._direction or record.ended:
                    continue
            tick = time, opened, volume, high, low, close, view
            if not (is_quiet and self._reverse(tick)):
                self._process(tick, is_safe)

    def result(self) -> Result:
        """Return the final result, at the last close. BadDataError for fewer than two candles."""
        newest, record, account = self._newest, self.record, self.account
        if newest is None or record.candles < 2:
            raise BadDataError("fewer than two candles of this interval")
        end, columns = newest.end, (newest.lows, newest.highs, newest.closes)
        low, high, close = (exact(column[0]) for column in columns)
        lost = account.liquidate_between(self.position, end, low, high)
        lost = lost or account.advance(self.position, end, close)
        if lost:
            self._now = end
            self._liquidated(lost)
        self._set_bounds()
        record.value(self._bounds.fixed + self._bounds.held * newest.closes[0], end)
        if self._is_off_target and record.refused_since and not self._allowed_at:
            stays = f"; {format.volume(self.held, self.rules.base)} stays held" if self.held else ""
            why = f"no order could be sent any more: {record.refused_reason}{stays}"
            record.end(why, record.refused_since)
        first, net = self._first_open, self.equity(close) - self.costs.balance
        hold = self._volume * (close - first - (close + first) * self.costs.fee_rate)
        return record.result(end, net, self.paid, self.rollovers, hold)

    @property
    def held(self) -> Decimal:
        """Return the signed position or, without leverage, the coins owned, in base currency."""
        return self.position.volume + self.account.balances.get(self.rules.base, ZERO)

    @property
    def paid(self) -> Decimal:
        """Return all trade fees, opening fees and rollovers so far, in quote currency."""
        return self.account.fees.get(self.rules.quote, ZERO) + self.rollovers

    @property
    def rollovers(self) -> Decimal:
        """Return all rollovers so far, in quote currency."""
        return self.account.rollovers.get(self.rules.quote, ZERO)

    def equity(self, price: Decimal) -> Decimal:
        """Return the equity at a price, in quote currency."""
        self.position.price = price
        coins = self.account.balances.get(self.rules.base, ZERO)
        return self.account.summary(self.rules.quote).equity + coins * price

    def _views(self, part: Columns) -> Iterable[Direction | None]:
        """Return the strategy's view after each candle; None: it is as before."""
        length, long, short = len(self._closes), Direction.LONG, Direction.SHORT
        if self.record.ended is not None:
            return repeat(None)
        if not length:
            return map(self._view_after, candles_of(part))
        earlier = chain(self._closes, part.closes)
        self._closes = [*self._closes, *part.closes[-length - 1 : -1]][-length:]
        return [
            long if close > before else short if close < before else None
            for before, close in zip(earlier, part.closes, strict=False)
        ]

    def _view_after(self, candle: Candle) -> Direction | None:
        self._window.append(candle)
        return self.plan.strategy(list(self._window)).direction

    def _reverse(self, tick: Tick) -> bool:
        """Reverse the position at the open, or return False if a check might refuse that.

        Once the checks have let `size` be opened in a direction, only the money, the price and the
        number of orders can make them refuse it.
        """
        time, opened, volume, _, _, _, direction = tick
        now, orders = time + WAKE_DELAY_S, 1 if self.plan.one_order else 2
        if not (
            direction in self._passed
            and self._bounds.can_reverse(opened, direction)
            and (volume > 0 or not self.costs.needs_trades)
            and self._sent(now) + orders <= self.plan.limits.max_orders_per_day
        ):
            return False
        self._direction, self._now, self._is_traded = direction, now, volume > 0
        self._recent.extend((now,) * orders)
        trades = self.account.reverse(self.position, now, self._price(exact(opened), direction))
        self._record(direction, "", trades, orders)
        balance, cost = self.account.balances[self.rules.quote], self.position.cost_left
        self._bounds.set(-self._bounds.held, balance, cost, now + ROLLOVER_S)
        return True

    def _set_bounds(self) -> None:
        position, due = self.position, inf
        if self._is_off_target and self.record.ended is None:
            due = 0
        elif position.lots:
            due = position.lots[0].due  # There is never more than one.
        balance = self.account.balances[self.rules.quote]
        self._bounds.set(float(self.held), balance, position.cost_left, due)

    def _process(self, tick: Tick, is_safe: bool) -> None:
        """Do what a tick of the bot does; `is_safe`: all prices are within the bounds."""
        time, opened, volume, high, low, close, view = tick
        account, position, record = self.account, self.position, self.record
        is_turn = view not in (None, self._direction)
        self._direction = direction = view if is_turn else self._direction
        self._now = now = time + WAKE_DELAY_S
        self._is_traded = volume > 0
        waits = self.costs.needs_trades and not volume
        # What the account cannot pay for at one price it cannot pay for at a higher one.
        if (not is_turn and opened >= self._unaffordable) or now < self._allowed_at:
            way = direction or 0
            record.refused += not waits and (way > 0 or (way < 0 and self.plan.leverage > 0))
            record.value(self._bounds.fixed, time)
            return
        self._opened, self._closed, rollovers = exact(opened), exact(close), self.rollovers
        lost = account.liquidate_between(position, now, exact(low), exact(high))
        if not lost:
            record.value(self._bounds.fixed + self._bounds.held * close, time)
            lost = account.advance(position, now, self._opened)
        if lost:
            self._liquidated(lost)
        elif record.ended is None and (is_turn or self._is_off_target or not is_safe):
            if direction is not None:
                self._seen.add(direction)
            if waits and not self._is_off_target:
                self._allowed_at = now  # It waits for a trade: no order is refused.
            self._is_off_target, self._unaffordable = waits, inf
            if not waits:
                self._allowed_at = 0
                self._trade(self.rollovers - rollovers)
        self._set_bounds()

    def _sent(self, now: int) -> int:
        """Return how many orders were sent in the 24 hours before `now`; older ones are dropped."""
        while self._recent and self._recent[0] <= now - DAY_S:
            self._recent.popleft()
        return len(self._recent)

    def _trade(self, charged: Decimal) -> None:
        """Decide and send orders, in as many rounds as one tick of the bot has at most."""
        direction = self._direction
        signal, sent = Signal(direction, ZERO, 0), dict[Purpose, Blocked]()
        waits = None if self.plan.entry_now or len(self._seen) > 1 else direction
        for _ in range(ROUNDS_MAX):
            held = self.held
            self._check_loss(held, charged)
            if self.record.ended is not None:
                break
            snapshot = Snapshot(signal, held, self.rules, waits, self._flatten, sent)
            step = decide(snapshot, self.plan).step
            if step is None or not self._place(step, held):
                break
            sent[step.purpose] = Blocked("ordered in this candle already", None)

    def _liquidated(self, lost: Trade) -> None:
        self._record(-1 if self._bounds.held > 0 else 1, "liquidated", (lost,))
        balance = self.account.balances[self.rules.quote]
        left = format.money(balance, self.rules.quote)
        self.record.end(f"liquidated with {left} left; the bot stops there", self._now)
        self.record.value(float(balance), self._now)

    def _check_loss(self, held: Decimal, charged: Decimal) -> None:
        """Latch `max_loss` as the bot does; it waits before it closes a position for that.

        In a wide spread the newest close or the better price must show the loss, too. Rollovers
        `charged` just now do not count yet: the bot books them after this check.
        """
        opened, loss_max = self._opened, self._loss_max

        def loss_at(price: Decimal) -> Decimal:
            return self.costs.balance - self.equity(price) - charged

        is_wide = 200 * self._tick / opened > self.plan.limits.max_spread_percent
        better = opened + self._tick if held > 0 else opened - self._tick
        certain = max(map(loss_at, (better, self._closed))) if is_wide else loss_max
        loss = loss_at(opened)
        if not self._flatten and min(loss, certain) >= loss_max:
            decimals = format.decimals_of(self.rules.quote)
            self._flatten = f"the loss is {loss:.{decimals}f}, max_loss is {loss_max:f}"
            if held:
                self._now += LOSS_PAUSE_S
                if lost := self.account.advance(self.position, self._now, opened):
                    self._liquidated(lost)
        if self._flatten and abs(held) < self.rules.ordermin:
            self.record.end(f"{self._flatten}; the bot stops there", self._now)

    def _place(self, step: Step, held: Decimal) -> bool:
        """Send an order as the bot would. Return whether another one may follow in this tick."""
        plan, rules, account, record = self.plan, self.rules, self.account, self.record
        price, now = self._opened, self._now
        quote, today = Quote(price - self._tick, price + self._tick), self._sent(now)
        summary, rate = account.summary(rules.quote), account.rate_of_loan(rules, step.side.sign)
        fees, limits = (self.costs.fee_rate, 0.0, rate), plan.limits
        inputs = RiskInputs("online", quote, rules, held, summary, today, *fees)
        if self._flatten:
            limits = limits._replace(max_spread_percent=Decimal(100))
        against = objection(step, plan.leverage, inputs, limits)
        if against is not None:
            self._is_off_target = True
            record.refuse(against.reason, now)
            # Rollovers charged just now may have reached max_loss: the next check sees that.
            is_lost = self.costs.balance - self.equity(price) >= self._loss_max
            if not (held or against.passing or is_lost):
                if today >= limits.max_orders_per_day:
                    self._allowed_at = self._recent[today - limits.max_orders_per_day] + DAY_S
                elif step.volume * price >= rules.costmin:
                    self._unaffordable = float(price)
            return step.purpose is Purpose.REVERSE and not against.passing
        self._recent.append(now)
        side, price = step.side, self._price(price, step.side.sign)
        order = Order("", side, step.volume, plan.leverage, step.reduce_only)
        try:
            if refused := refusal(rules, order, price):
                raise RefusedError(refused)
            trades = account.fill(self.position, now, order, price)
        except RefusedError as error:
            self._is_off_target = True
            record.refuse(str(error), now)
            is_small = step.volume < rules.ordermin or step.volume * price < rules.costmin
            if is_small and step.purpose is Purpose.CLOSE:
                self._recent.pop()  # The bot does not count this order, and tries it again.
                return False
            self._unfilled += 1
            if self._unfilled >= UNFILLED_MAX:
                record.end(f"{UNFILLED_MAX} orders in a row were refused: {error}", now)
            return record.ended is None
        self._unfilled = record.refused_since = 0
        self._record(side.sign, self._flatten, trades)
        if abs(self.held) == self._volume:
            self._passed.add(side.sign)
        return True

    def _price(self, opened: Decimal, direction: int) -> Decimal:
        """Return the price of a fill in whole ticks: the open, the slippage and half a spread."""
        if self.costs.slippage:
            away = ROUND_CEILING if direction > 0 else ROUND_FLOOR
            opened = (opened * (1 + direction * self.costs.slippage)).quantize(self._tick, away)
        return opened + self._tick if direction > 0 else opened - self._tick

    def _record(self, sign: int, reason: str, trades: Sequence[Trade], orders: int = 1) -> None:
        """Record what one order, or the two of a reversal, closed and opened."""
        record, why = self.record, reason or _NAMES[self._direction or 0]
        rollovers, number = self.rollovers, record.orders + 1
        record.orders += orders
        for trade in trades:
            record.book(Fill(self._now, number, sign, why, trade), rollovers, self._is_traded)
            number = record.orders
