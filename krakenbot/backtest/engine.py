"""The bot's decisions replayed over columns of candles, with the same orders, fees and margin.

An order decided on candle n fills one second into candle n + 1, at its open plus or minus one tick.
Comparisons of floats find the next candle in which anything can happen. Money is only counted in
the exact books of the simulated exchange. Everything except plain reversals goes through the same
pure functions as a tick of the bot.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import count
from math import inf
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
Turns = Sequence[tuple[int, Direction]]  # Candle numbers, each with the direction from then on.
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
        slope = getattr(plan.strategy, "func", None) is sma_slope
        self._length = plan.candles_min - 1 if slope else 0
        self._window: deque[Candle] = deque(maxlen=OHLC_ROWS_MAX)
        self._part: Columns | None = None
        self._warm_up, self._first_open, self._is_traded = warm_up, ZERO, True
        self._direction: Direction | None = None
        self._seen: set[Direction] = set()
        self._off_target, self._flatten = True, ""
        self._unaffordable, self._allowed_at = inf, 0
        self._recent: deque[int] = deque()
        self._unfilled = 0
        self._set_limits()
        self._set_bounds(0.0, inf)

    def feed(self, part: Columns) -> None:
        """Process the next candles. The newest one is decided on once the next one is known."""
        if self._part is None:
            new, first = self._warm_up, max(self._warm_up - 1, 0)
            self._first_open = exact(part.opens[new])
            self.record.begin = part.times[new]
        else:
            # The newest candle so far is not decided on yet, and the strategy looks back from it.
            first = min(len(self._part.times) - 1, self._length)
            new = first + 1
            part = self._part.cut(-new).joined(part)
        self._part = part
        self.record.candles += len(part.times) - new
        self.record.candles_untraded += part.volumes[new:].count(0.0)
        turns = self._slope_turns if self._length else self._strategy_turns
        self._run(part, turns(part) if self.record.ended is None else (), first)

    def result(self) -> Result:
        """Return the final result, at the last close. BadDataError for fewer than two candles."""
        part, record, account = self._part, self.record, self.account
        if part is None or record.candles < 2:
            raise BadDataError("fewer than two candles of this interval")
        low, high, close = (exact(column[-1]) for column in (part.lows, part.highs, part.closes))
        lost = account.liquidate_between(self.position, part.end, low, high)
        lost = lost or account.advance(self.position, part.end, close)
        if lost:
            record.candles_held += 1
            self._liquidated(lost, part.end)
        self._set_bounds(float(self.held), inf)
        self._follow(part, len(part.times))
        if self._off_target and record.refused_since and not self._allowed_at:
            stays = f"; {format.volume(self.held, self.rules.base)} stays held" if self.held else ""
            why = f"no order could be sent any more: {record.refused_reason}{stays}"
            record.end(why, record.refused_since)
        first, net = self._first_open, self.equity(close) - self.costs.balance
        hold = self._volume * (close - first - (close + first) * self.costs.fee_rate)
        return record.result(part.end, net, self.paid, self.rollovers, hold)

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

    def _run(self, part: Columns, turns: Turns, first: int) -> None:
        """Decide on the candles from number `first` on, except the last one."""
        self._followed = begin = first
        for turn, direction in turns:
            if turn >= first and self.record.ended is None:
                self._walk(part, begin, turn)
                self._direction, begin = direction, turn + 1
                if not self._reverse(part, turn, direction):
                    self._process(part, turn, True)
            else:
                self._direction = direction
        self._walk(part, begin, len(part.times) - 1)
        self._follow(part, len(part.times) - 1)

    def _walk(self, part: Columns, begin: int, end: int) -> None:
        """Process those candles from `begin` up to `end` at which anything can happen."""
        if begin < end and not self._is_quiet(part, begin, end):
            for at in range(begin, end):
                if not self._is_quiet(part, at, at + 1):
                    self._process(part, at, False)

    def _is_quiet(self, part: Columns, begin: int, end: int) -> bool:
        """Return whether a tick after any of these candles does nothing, if none is a turn."""
        is_done = not self._off_target or self.record.ended is not None
        return is_done and part.times[end] < self._due and self._is_safe(part, begin, end)

    def _is_safe(self, part: Columns, begin: int, end: int) -> bool:
        """Return whether all prices of these candles and the next open are within the bounds."""
        worst = min(part.lows[begin:end]) if self._held > 0 else max(part.highs[begin:end])
        return self._bottom < worst < self._top and self._bottom < part.opens[end] < self._top

    def _reverse(self, part: Columns, at: int, direction: Direction) -> bool:
        """Reverse the position after candle `at`, or return False if a check might refuse that."""
        held, price, now = self._held, part.opens[at + 1], part.times[at + 1] + WAKE_DELAY_S
        is_traded = part.volumes[at + 1] > 0
        if not (
            held == -self._size * direction
            and held != 0
            and not self._off_target
            and now <= self._due
            and self._bottom < part.lows[at]
            and self._bottom < price < self._top
            and part.highs[at] < self._top
            and price >= self._price_min
            and self._fixed + held * price > self._need * max(price, self._entry) + self._floor
            and (is_traded or not self.costs.needs_trades)
            and self._sent(now) <= self._room
        ):
            return False
        self._follow(part, at + 1)
        orders, self._is_traded = 1 if self.plan.one_order else 2, is_traded
        self._recent.extend((now,) * orders)
        trades = self.account.reverse(self.position, now, self._price(exact(price), direction))
        self._record(now, direction, "", trades, orders)
        self._set_bounds(-held, now + ROLLOVER_S)
        return True

    def _process(self, part: Columns, at: int, is_turn: bool) -> None:
        """Do what a tick of the bot does after candle `at`."""
        account, position, record = self.account, self.position, self.record
        now, price = part.times[at + 1] + WAKE_DELAY_S, part.opens[at + 1]
        self._is_traded = part.volumes[at + 1] > 0
        waits = self.costs.needs_trades and not self._is_traded
        # What the account cannot pay for at one price it cannot pay for at a higher one.
        if (not is_turn and price >= self._unaffordable) or now < self._allowed_at:
            way = self._direction or 0
            record.refused += not waits and (way > 0 or (way < 0 and self.plan.leverage > 0))
            return
        low, high, closed = (exact(column[at]) for column in (part.lows, part.highs, part.closes))
        opened, is_safe = exact(price), self._is_safe(part, at, at + 1)
        rollovers = self.rollovers
        lost = account.liquidate_between(position, now, low, high)
        self._follow(part, at if lost else at + 1)  # Not valued at the close if liquidated in it.
        record.candles_held += lost is not None
        self._followed = at + 1
        lost = lost or account.advance(position, now, opened)
        if lost:
            self._liquidated(lost, now)
        elif record.ended is None and (is_turn or self._off_target or not is_safe):
            if self._direction is not None:
                self._seen.add(self._direction)
            if waits and not self._off_target:
                self._allowed_at = now  # It waits for a trade: no order is refused.
            self._off_target, self._unaffordable = waits, inf
            if not waits:
                self._allowed_at = 0
                self._trade(opened, closed, self.rollovers - rollovers, now)
        due = min((lot.due for lot in position.lots), default=inf)
        self._set_bounds(float(self.held), due)

    def _follow(self, part: Columns, end: int) -> None:
        """Record the equity after the candles up to `end` for which that is not done yet."""
        self.record.follow(self._fixed, self._held, part, self._followed, end)
        self._followed = end

    def _slope_turns(self, part: Columns) -> Turns:
        """Return the candles at which the average turns."""
        long, short, length = Direction.LONG, Direction.SHORT, self._length
        seen, turns = self._direction, []
        for at, before, close in zip(
            count(length), part.closes, part.closes[length:-1], strict=False
        ):
            direction = long if close > before else short
            if direction is not seen and close != before:
                seen = direction
                turns.append((at, seen))
        return turns

    def _strategy_turns(self, part: Columns) -> Turns:
        """Return the candles at which a strategy changes direction, by calling it at every one."""
        seen, turns = self._direction, []
        for at, candle in enumerate(candles_of(part.cut(0, -1))):
            self._window.append(candle)
            direction = self.plan.strategy(list(self._window)).direction
            if direction is not None and direction != seen:
                seen = direction
                turns.append((at, seen))
        return turns

    def _set_limits(self) -> None:
        """Compute once the limits within which no check refuses a reversal, with room to spare."""
        plan, rules, costs = self.plan, self.rules, self.costs
        limits, leverage = plan.limits, plan.leverage or 1
        self._room = limits.max_orders_per_day - (1 if plan.one_order else 2)
        self._tick = Decimal(1).scaleb(-rules.pair_decimals)
        self._volume = rules.round_volume(plan.size)
        spread_max = 200 * self._tick / limits.max_spread_percent
        self._price_min = 1.001 * float(max(spread_max, rules.costmin / (self._volume or 1)))
        share = max(Decimal(1), limits.min_margin_level / 100) + 1
        need = share / leverage + 4 * costs.fee_rate + costs.slippage
        self._need = 2.02 * float(need * self._volume)
        self._stop = float(rules.margin_stop) / 100 / leverage
        self._loss_max = Decimal(inf) if limits.max_loss is None else limits.max_loss
        self._floor = max(float(costs.balance - self._loss_max), 0.0)
        sizes = rules.long_position_limit, rules.short_position_limit
        is_ordinary = (
            rules.status == "online"
            and plan.leverage in {*rules.leverage_buy} & {*rules.leverage_sell}
            and self._volume == plan.size >= rules.ordermin
            and all(size is None or 2 * self._volume <= size for size in sizes)
        )
        self._size = float(self._volume) if is_ordinary else inf  # Never held: all is checked.

    def _set_bounds(self, held: float, due: float) -> None:
        """Set prices between which, and a time until which, nothing happens to the position.

        Equity at a price is `_fixed + _held * price`. A long borrows its cost, whatever it is worth
        now: `_entry` is its price, else 0. The bounds lie 0.1 % of the position before
        liquidation and `max_loss`; beyond them the exact books decide.
        """
        balance, cost = self.account.balances[self.rules.quote], float(self.position.cost_left)
        self._held, self._due = held, due
        self._fixed = fixed = float(balance) - (cost if held > 0 else -cost)
        self._entry = cost / held if held > 0 else 0.0
        self._bottom, self._top = -inf, inf
        if held > 0:
            self._bottom = (max(self._stop * cost, self._floor) - fixed) / held / 0.999
        elif held < 0:
            self._top = min(fixed / (1.001 + self._stop), (fixed - self._floor) / 1.001) / -held

    def _sent(self, now: int) -> int:
        """Return how many orders were sent in the 24 hours before `now`; older ones are dropped."""
        while self._recent and self._recent[0] <= now - DAY_S:
            self._recent.popleft()
        return len(self._recent)

    def _trade(self, opened: Decimal, closed: Decimal, charged: Decimal, now: int) -> None:
        """Decide and send orders, in as many rounds as one tick of the bot has at most."""
        direction = self._direction
        signal, sent = Signal(direction, ZERO, 0), dict[Purpose, Blocked]()
        waits = None if self.plan.entry_now or len(self._seen) > 1 else direction
        for _ in range(ROUNDS_MAX):
            held = self.held
            now = self._check_loss(held, opened, closed, charged, now)
            if self.record.ended is not None:
                break
            snapshot = Snapshot(signal, held, self.rules, waits, self._flatten, sent)
            step = decide(snapshot, self.plan).step
            if step is None or not self._place(step, held, opened, now):
                break
            sent[step.purpose] = Blocked("ordered in this candle already", None)

    def _liquidated(self, lost: Trade, now: int) -> None:
        self._record(now, -1 if self._held > 0 else 1, "liquidated", (lost,))
        left = format.money(self.record.flat_equity, self.rules.quote)
        self.record.end(f"liquidated with {left} left; the bot stops there", now)
        self.record.value(float(self.record.flat_equity), now)

    def _check_loss(
        self, held: Decimal, opened: Decimal, closed: Decimal, charged: Decimal, now: int
    ) -> int:
        """Latch `max_loss` as the bot does. Return the time, later if the bot checks it twice.

        In a wide spread the newest close or the better price must show the loss, too. Rollovers
        `charged` just now do not count yet: the bot books them after this check.
        """

        def loss_at(price: Decimal) -> Decimal:
            return self.costs.balance - self.equity(price) - charged

        is_wide = 200 * self._tick / opened > self.plan.limits.max_spread_percent
        better = opened + self._tick if held > 0 else opened - self._tick
        certain = max(map(loss_at, (better, closed))) if is_wide else self._loss_max
        loss = loss_at(opened)
        if not self._flatten and min(loss, certain) >= self._loss_max:
            decimals = format.decimals_of(self.rules.quote)
            self._flatten = f"the loss is {loss:.{decimals}f}, max_loss is {self._loss_max:f}"
            if held:
                now += LOSS_PAUSE_S
                if lost := self.account.advance(self.position, now, opened):
                    self._liquidated(lost, now)
        if self._flatten and abs(held) < self.rules.ordermin:
            self.record.end(f"{self._flatten}; the bot stops there", now)
        return now

    def _place(self, step: Step, held: Decimal, price: Decimal, now: int) -> bool:
        """Send an order as the bot would. Return whether another one may follow in this tick."""
        plan, rules, account = self.plan, self.rules, self.account
        quote, today = Quote(price - self._tick, price + self._tick), self._sent(now)
        summary, rate = account.summary(rules.quote), account.rate_of_loan(rules, step.side.sign)
        fees, limits = (self.costs.fee_rate, 0.0, rate), plan.limits
        inputs = RiskInputs("online", quote, rules, held, summary, today, *fees)
        if self._flatten:
            limits = limits._replace(max_spread_percent=Decimal(100))
        against = objection(step, plan.leverage, inputs, limits)
        if against is not None:
            self._off_target = True
            self.record.refuse(against.reason, now)
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
            self._off_target = True
            self.record.refuse(str(error), now)
            is_small = step.volume < rules.ordermin or step.volume * price < rules.costmin
            if is_small and step.purpose is Purpose.CLOSE:
                self._recent.pop()  # The bot does not count this order, and tries it again.
                return False
            self._unfilled += 1
            if self._unfilled >= UNFILLED_MAX:
                self.record.end(f"{UNFILLED_MAX} orders in a row were refused: {error}", now)
            return self.record.ended is None
        self._unfilled = self.record.refused_since = 0
        self._record(now, side.sign, self._flatten, trades)
        return True

    def _price(self, opened: Decimal, direction: int) -> Decimal:
        """Return the price of a fill in whole ticks: the open, the slippage and half a spread."""
        if self.costs.slippage:
            away = ROUND_CEILING if direction > 0 else ROUND_FLOOR
            opened = (opened * (1 + direction * self.costs.slippage)).quantize(self._tick, away)
        return opened + self._tick if direction > 0 else opened - self._tick

    def _record(
        self, now: int, sign: int, reason: str, trades: Sequence[Trade], orders: int = 1
    ) -> None:
        """Record what one order, or the two of a reversal, closed and opened."""
        record, balance = self.record, self.account.balances[self.rules.quote]
        number, why = record.orders + 1, reason or _NAMES[self._direction or 0]
        record.orders += orders
        closed = trades[0].closing or (not self.plan.leverage and sign < 0)
        opened = trades[-1] if len(trades) > closed else None
        if closed:
            since = opened.fee + opened.opening_fee if opened else ZERO
            fill = Fill(now, number, sign, why, trades[0])
            record.close(fill, balance + since, self.paid - since)
        if opened:
            record.open(Fill(now, record.orders, sign, why, opened), self._is_traded)
