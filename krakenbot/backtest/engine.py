"""The bot's decisions replayed over columns of candles, with the same orders, fees and margin.

An order decided on candle n fills one second into candle n + 1, at its open, at the ask or bid one
tick away. One loop takes the candles in order and skips those in which nothing can happen, as
comparisons of floats show. Money is counted in the exact books of the simulated exchange only, and
everything but plain reversals goes through the same pure functions as a tick of the bot.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from math import inf
from typing import NamedTuple

from krakenbot import format
from krakenbot.backtest.files import BadDataError, Columns, candles_of, exact
from krakenbot.backtest.result import DAY_S, Fill, Record, Result
from krakenbot.decision import Blocked, Plan, Snapshot, decide
from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Candle, Direction, Order, Purpose, Quote, Signal, Step
from krakenbot.pairs import PairRules
from krakenbot.risk import RiskInputs, objection
from krakenbot.simulated.books import ROLLOVER_S, Account, Trade, refusal
from krakenbot.strategy import sma_slope

WAKE_DELAY_S = 1
LOSS_PAUSE_S = 10
ROUNDS_MAX = 3
UNFILLED_MAX = 5
WINDOW = 720  # The bot passes at most this many candles to its strategy.
_NAMES = {way.value: way.name.lower() for way in Direction}


class Costs(NamedTuple):
    """Trading costs as fractions, and the starting balance in quote currency."""

    fee_rate: Decimal
    balance: Decimal
    slippage: Decimal = ZERO
    margin_rates: Mapping[str, Decimal] = {}  # By the asset borrowed.


class Replay:
    """Replays one plan over one series, fed in parts. `record` keeps the newest `keep` trips.

    The first `warm_up` candles are only shown to the strategy. With `needs_trades` an order waits
    for the next candle that has trades.
    """

    def __init__(
        self,
        plan: Plan,
        rules: PairRules,
        costs: Costs,
        keep: int | None = 0,
        *,
        warm_up: int = 0,
        needs_trades: bool = False,
    ) -> None:
        self.plan, self.rules, self.costs = plan, rules, costs
        money = {rules.quote: costs.balance}
        self.account = Account(money, costs.fee_rate, margin_rates=costs.margin_rates)
        self.position = self.account.position(rules)
        self.record = Record(costs.balance, keep)
        slope = getattr(plan.strategy, "func", None) is sma_slope
        self._length = plan.candles_min - 1 if slope else 0
        self._window: deque[Candle] = deque(maxlen=WINDOW)
        self._part: Columns | None = None
        self._warm_up, self._needs_trades, self._first_open = warm_up, needs_trades, ZERO
        self._direction: int | None = None
        self._first: int | None = None
        self._entered, self._off_target, self._flatten = plan.entry_now, True, ""
        self._unaffordable, self._allowed_at = inf, 0
        self._recent: deque[int] = deque()
        self._unfilled = 0
        self._set_limits()
        self._update_bounds()

    def feed(self, part: Columns) -> None:
        """Process the next candles, and decide on all but the newest of them."""
        if self._part is None:
            new, first, begin = self._warm_up, max(self._warm_up - 1, 0), 0
            self._first_open = exact(part.opens[new])
            self.record.start(part.times[new])
        else:
            # The newest candle so far is still undecided, and the strategy looks back from it.
            count = len(self._part.times)
            first = begin = min(count - 1, self._length)
            part, new = self._part.cut(count - 1 - first).joined(part), first + 1
        self._part = part
        self.record.candles += len(part.times) - new
        self.record.untraded += part.volumes[new:].count(0.0)
        turns = self._slope_turns if self._length else self._strategy_turns
        self._run(part, {} if self.record.ended else turns(part, begin), begin, first)

    def result(self) -> Result:
        """Return the final result, at the last close. BadDataError for fewer than two candles."""
        part, record = self._part, self.record
        if part is None or record.candles < 2:
            raise BadDataError("fewer than two candles of this interval")
        account, position, end = self.account, self.position, part.end
        low, high, close = (exact(column[-1]) for column in (part.lows, part.highs, part.closes))
        lost = account.liquidate_between(position, end, low, high)
        self._liquidated(lost or account.advance(position, end, close), end)
        self._update_bounds()
        self._mark(part, len(part.times) - 1, len(part.times))
        if self._off_target and record.refused_since and not self._allowed_at:
            why = f"no order could be sent any more: {record.refused_reason}"
            record.end(why, record.refused_since)
        first, net = self._first_open, self.equity() - self.costs.balance
        hold = self._volume * (close - first - (close + first) * self.costs.fee_rate)
        rollover = account.rollovers.get(self.rules.quote, ZERO)
        return record.result(self.rules, part.interval_s, end, net, self.paid, rollover, hold)

    @property
    def held(self) -> Decimal:
        """Return the signed position or, without leverage, the coins owned."""
        coins = self.account.balances.get(self.rules.base, ZERO)
        return self.position.volume if self.plan.leverage else coins

    @property
    def paid(self) -> Decimal:
        """Return all fees and rollovers so far, in quote currency."""
        account, quote = self.account, self.rules.quote
        return account.fees.get(quote, ZERO) + account.rollovers.get(quote, ZERO)

    def equity(self) -> Decimal:
        """Return the equity at the newest close, in quote currency."""
        assert self._part is not None
        return self._equity_at(exact(self._part.closes[-1]))

    def _equity_at(self, price: Decimal) -> Decimal:
        self.position.price = price
        coins = self.account.balances.get(self.rules.base, ZERO) * price
        return self.account.equity(self.rules.quote) + coins

    def _run(self, part: Columns, turns: Mapping[int, int], begin: int, first: int) -> None:
        """Decide on the candles from number `first` on; `turns` has new directions by number."""
        marked, last = first, len(part.times) - 1
        ends, opens = part.times[begin + 1 :], part.opens[begin + 1 :]
        rows = zip(ends, opens, part.lows[begin:], part.highs[begin:], strict=False)
        bottom, top, due, off_target = self._bottom, self._top, self._due, self._off_target
        for at, (end, opened, low, high) in enumerate(rows, begin):
            is_safe = bottom < low and high < top and bottom < opened < top
            is_turn = at in turns
            if is_safe and end < due and not is_turn and not off_target:
                continue
            now = end + WAKE_DELAY_S
            self._direction = turns.get(at, self._direction)
            if at < first:
                continue
            # What the account cannot afford at one price it cannot afford at a higher one.
            is_unaffordable = opened >= self._unaffordable and not is_turn
            if off_target and (now < self._allowed_at or is_unaffordable):
                self.record.refused += 1
                continue
            if is_turn and is_safe and self._is_plain_reversal(part, at, now):
                self._mark(part, marked, at + 1)
                self._reverse(exact(opened), now, part.volumes[at + 1] > 0)
            else:
                self._mark(part, marked, at)
                decides = self.record.ended is None and (is_turn or not is_safe or off_target)
                self._process(part, at, now, decides)
            marked = at + 1
            if self.record.ended is not None:  # What is still held is only followed from here on.
                turns, self._off_target = {}, False
            bottom, top, due, off_target = self._bottom, self._top, self._due, self._off_target
        self._mark(part, marked, last)

    def _is_plain_reversal(self, part: Columns, at: int, now: int) -> bool:
        """Return whether the position can be reversed and no check can refuse that."""
        held, price, room = self._held, part.opens[at + 1], self._room
        size = abs(held)
        return (
            self._is_ordinary
            and not self._off_target
            and self.position.held == self._volume
            and held * (self._direction or 0) < 0
            and now <= self._due
            and price >= self._price_min
            and self._fixed + held * price > self._need * size * price + max(self._floor, 0.0)
            and (len(self._recent) <= room or self._sent(now) <= room)
            and not (self._needs_trades and not part.volumes[at + 1])
        )

    def _reverse(self, opened: Decimal, now: int, is_traded: bool) -> None:
        """Close the position and open the same volume on the other side."""
        sign, account = -self.position.sign, self.account
        self._recent.extend((now,) * self._reversal_orders)
        self.record.orders += self._reversal_orders
        price = self._price(opened, sign)
        trades = account.reverse(self.position, now, price, self.plan.leverage)
        self._record(now, sign, "", trades, is_traded)
        self._set_bounds(-self._held, float(account.balances[self.rules.quote]), now + ROLLOVER_S)

    def _slope_turns(self, part: Columns, begin: int) -> dict[int, int]:
        """Return the new direction by number of each candle at which the average turns."""
        length, seen, turns = self._length, self._direction or 0, {}
        begin = max(begin, length)
        pairs = zip(part.closes[begin - length :], part.closes[begin:-1], strict=False)
        for at, (before, close) in enumerate(pairs, begin):
            if seen < 1 and close > before:
                turns[at] = seen = 1
            elif seen > -1 and close < before:
                turns[at] = seen = -1
        return turns

    def _strategy_turns(self, part: Columns, begin: int) -> dict[int, int]:
        """Return the same for any strategy, by calling it at each candle."""
        seen, turns = self._direction, {}
        for at, candle in enumerate(candles_of(part.cut(begin, len(part.times) - 1)), begin):
            self._window.append(candle)
            direction = self.plan.strategy(list(self._window)).direction
            if direction is not None and direction != seen:
                turns[at] = seen = direction.value
        return turns

    def _mark(self, part: Columns, begin: int, end: int) -> None:
        """Record the equity at the closes of candles `begin` up to `end`."""
        if begin < end:
            closes, first = part.closes[begin:end], part.times[begin] + part.interval_s
            self.record.follow(self._fixed, self._held, closes, first, part.interval_s)

    def _set_limits(self) -> None:
        """Set the constants, among them the limits within which no reversal is refused."""
        plan, rules, costs = self.plan, self.rules, self.costs
        limits, leverage, loss = plan.limits, plan.leverage or 1, plan.limits.max_loss
        self._reversal_orders = 1 if plan.one_order else 2
        self._room = limits.max_orders_per_day - self._reversal_orders
        self._tick = Decimal(1).scaleb(-rules.pair_decimals)
        self._volume = rules.round_volume(plan.size)
        spread_max = 200 * self._tick / limits.max_spread_percent
        self._price_min = 1.001 * float(max(spread_max, rules.costmin / (self._volume or 1)))
        share = max(Decimal(1), limits.min_margin_level / 100) + 1
        self._need = 2.02 * float(share / leverage + 4 * costs.fee_rate + costs.slippage)
        self._stop = float(rules.margin_stop) / 100 / leverage
        self._floor = -inf if loss is None else float(costs.balance - loss)
        sizes = rules.long_position_limit, rules.short_position_limit
        self._is_ordinary = (
            rules.status == "online"
            and plan.leverage in {*rules.leverages_buy} & {*rules.leverages_sell}
            and self._volume == plan.size >= rules.ordermin
            and all(size is None or 2 * self._volume <= size for size in sizes)
        )

    def _update_bounds(self) -> None:
        """Set from the books the bounds within which candles are skipped."""
        due = min((lot.due for lot in self.position.lots), default=inf)
        self._set_bounds(float(self.held), float(self.account.balances[self.rules.quote]), due)

    def _set_bounds(self, held: float, balance: float, due: float) -> None:
        """Set the prices between which, and the time until which, nothing happens to the position.

        Equity at a price is `_fixed + _held * price`. The prices stop 0.1 % of the position short
        of liquidation and `max_loss`; beyond them the exact books decide.
        """
        cost = float(self.position.cost_left)
        self._held, self._due, self._bottom, self._top = held, due, -inf, inf
        self._fixed = fixed = balance - (cost if held > 0 else -cost)
        if held > 0:
            self._bottom = (max(self._stop * cost, self._floor) - fixed) / held / 0.999
        elif held < 0:
            self._top = min(fixed / (1.001 + self._stop), (fixed - self._floor) / 1.001) / -held

    def _sent(self, now: int) -> int:
        """Return how many orders were sent in the last 24 hours; forget older ones."""
        while self._recent and self._recent[0] <= now - DAY_S:
            self._recent.popleft()
        return len(self._recent)

    def _process(self, part: Columns, at: int, now: int, decides: bool) -> None:
        """Apply candle `at` to the books and then, if it `decides`, do what a tick does."""
        account, position, quote = self.account, self.position, self.rules.quote
        opened, traded = exact(part.opens[at + 1]), part.volumes[at + 1] > 0
        charged = account.rollovers.get(quote, ZERO)
        lost = account.liquidate_between(position, now, exact(part.lows[at]), exact(part.highs[at]))
        if lost is None:
            self._mark(part, at, at + 1)
            lost = account.advance(position, now, opened)
        charged = account.rollovers.get(quote, ZERO) - charged
        self._liquidated(lost, now)
        if decides and lost is None:
            self._off_target, self._unaffordable, self._allowed_at = False, inf, 0
            if self._needs_trades and not traded:
                self._off_target = True
            else:
                self._trade(opened, charged, now, traded)
        self._update_bounds()

    def _trade(self, opened: Decimal, charged: Decimal, now: int, traded: bool) -> None:
        """Decide and send orders, up to as many as the bot does in one tick."""
        direction = None if self._direction is None else Direction(self._direction)
        signal, sent = Signal(direction, ZERO, 0), dict[Purpose, Blocked]()
        if not self._entered and direction is not None:
            self._first = direction if self._first is None else self._first
            self._entered = self._first != direction
        for _ in range(ROUNDS_MAX):
            held = self.held
            now = self._check_loss(held, opened, charged, now)
            if self.record.ended is not None:
                break
            waits = None if self._entered else direction
            snapshot = Snapshot(signal, held, self.rules, waits, self._flatten, sent)
            step = decide(snapshot, self.plan).step
            if step is None or not self._place(step, held, opened, now, traded):
                break
            sent[step.purpose] = Blocked("ordered in this candle already", None)

    def _liquidated(self, lost: Trade | None, now: int) -> None:
        if lost is not None:
            self.record.orders += 1
            self._record(now, -1 if self._held > 0 else 1, "liquidated", (lost,), True)
            left = format.money(self.record.flat_equity, self.rules.quote)
            self.record.end(f"liquidated with {left} left; the bot stops there", now)
            self.record.value(float(self.record.flat_equity), now)

    def _check_loss(self, held: Decimal, price: Decimal, charged: Decimal, now: int) -> int:
        """Latch max_loss as the bot does. Return the time, later if it checks again to be sure.

        Rollovers `charged` just now do not count yet: the bot books them after this check.
        """
        limit = self.plan.limits.max_loss
        if limit is None:
            return now
        loss = self.costs.balance - self._equity_at(price) - charged
        if not self._flatten and loss >= limit:
            self._flatten = f"the loss is {loss:.2f}, max_loss is {limit}"
            now += LOSS_PAUSE_S if held else 0
        if self._flatten and abs(held) < self.rules.ordermin:
            self.record.end(f"{self._flatten}; the bot stops there", now)
        return now

    def _place(self, step: Step, held: Decimal, price: Decimal, now: int, traded: bool) -> bool:
        """Send an order as the bot would; return whether another one may follow."""
        plan, rules, account = self.plan, self.rules, self.account
        quote = Quote(price - self._tick, price + self._tick)
        today, today_max = self._sent(now), plan.limits.max_orders_per_day
        summary, fee_rate = account.summary(rules.quote), self.costs.fee_rate
        rate = account.rate_of_loan(rules, step.side.sign)
        inputs = RiskInputs("online", quote, rules, held, summary, today, fee_rate, 0.0, rate)
        against = objection(step, plan.leverage, inputs, plan.limits)
        if against is not None:
            self._off_target = True
            self.record.refuse(against.reason, now)
            if not (held or against.passing) and today >= today_max:
                self._allowed_at = self._recent[today - today_max] + DAY_S
            elif not (held or against.passing):
                self._unaffordable = float(price) if step.volume * price >= rules.costmin else inf
            return step.purpose is Purpose.REVERSE and not against.passing
        self._recent.append(now)
        side, price = step.side, self._price(price, step.side.sign)
        order = Order("", side, step.volume, plan.leverage, step.reduce_only)
        try:
            if refused := refusal(rules, order, price):
                raise RefusedError(refused)
            trades = account.fill(self.position, now, order, price)
        except RefusedError as error:
            self._off_target = True
            self.record.refuse(str(error), now)
            self._unfilled += 1
            if self._unfilled >= UNFILLED_MAX:
                stays = f"; {format.volume(held, rules.base)} stays held" if held else ""
                self.record.end(f"{UNFILLED_MAX} orders in a row were refused: {error}{stays}", now)
            return self.record.ended is None
        self._unfilled = self.record.refused_since = 0
        self.record.orders += 1
        self._record(now, side.sign, self._flatten, trades, traded)
        return True

    def _price(self, opened: Decimal, direction: int) -> Decimal:
        """Return the price of a fill in whole ticks: the open, slippage and half spread."""
        if self.costs.slippage:
            away = ROUND_CEILING if direction > 0 else ROUND_FLOOR
            opened = (opened * (1 + direction * self.costs.slippage)).quantize(self._tick, away)
        return opened + self._tick if direction > 0 else opened - self._tick

    def _record(
        self, now: int, sign: int, reason: str, trades: Sequence[Trade], traded: bool
    ) -> None:
        """Record what one order, or the last two, closed and opened."""
        record, why = self.record, reason or _NAMES[self._direction or 0]
        order = record.orders
        is_closing = trades[0].closing or (not self.plan.leverage and sign < 0)
        opened = None if is_closing and len(trades) == 1 else trades[-1]
        if is_closing:
            worth, paid, first = self.account.balances[self.rules.quote], self.paid, order
            if opened:
                since = opened.fee + opened.opening_fee
                worth, paid, first = worth + since, paid - since, order + 1 - self._reversal_orders
            record.close(Fill(now, first, sign, why, traded, trades[0]), worth, paid)
        if opened:
            record.open(Fill(now, order, sign, why, traded, opened))
