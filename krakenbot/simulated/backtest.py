"""The bot's decisions over columns of candles: the same rules, orders, fees and margin as live.

After candle n is finished an order fills at the open of candle n + 1, a second into it, at the
ask or bid one tick away. Candles without an event cost one comparison of two closes; the exact
books move only at fills, rollovers and near liquidation. An ordinary turn skips the questions
whose answer is known; anything else goes through the same pure functions as a live tick.
"""

from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from krakenbot.config import Config
from krakenbot.decision import Plan, Snapshot, decide
from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Candle, Direction, MarginSummary, Purpose, Quote, Signal, Step
from krakenbot.pairs import PairRules
from krakenbot.risk import Surroundings, objection
from krakenbot.simulated.candlefile import DIGITS, BadDataError, Columns, exact, units
from krakenbot.simulated.exchange import execute
from krakenbot.simulated.exchange import objection as refusal
from krakenbot.simulated.margin import MARGIN_RATE, ROLLOVER_S, Account, Trade

WAKE_DELAY_S = 1
ROUNDS_MAX = 3
FRUITLESS_MAX = 5
DAY_S = 86400
WINDOW = 720
_UNIT = 10.0**-DIGITS
_REASONS = {1: "average rises", -1: "average falls"}


class Costs(NamedTuple):
    """What trading costs: fractions, and the money at the start."""

    fee_rate: Decimal
    balance: Decimal
    slippage: Decimal = ZERO
    margin_rate: Decimal = MARGIN_RATE


class Fill(NamedTuple):
    """A trade; one order may have two, closing and opening. `order` counts from 1."""

    time: int
    order: int
    direction: int
    reason: str
    trade: Trade


class Result(NamedTuple):
    """What came of it. Money in quote currency; shares and rates as fractions."""

    pair: str
    interval_s: int
    begin: int
    end: int
    candles: int
    turns: int
    turns_per_day: float
    win_rate: float | None
    orders: int
    gross: Decimal
    fees: Decimal
    opening_fees: Decimal
    rollover: Decimal
    net: Decimal
    max_drawdown: Decimal
    exposure: float
    break_even_fee: Decimal | None  # The taker fee at which net is nothing; negative: no fee is.
    hold: Decimal
    ended: str | None
    objection: str | None

    @property
    def days(self) -> float:
        return (self.end - self.begin) / DAY_S


def slope_length(config: Config) -> int | None:
    """Return the length of sma-slope, None for any other strategy."""
    return config.strategy.length if config.strategy.name == "sma-slope" else None


class Replay:
    """One plan over one series, handed in part by part."""

    def __init__(
        self, plan: Plan, length: int | None, rules: PairRules, costs: Costs, keep: int | None = 0
    ) -> None:
        """`length` is that of sma-slope, None for any other strategy. Keeps `keep` fills."""
        self.plan, self.rules, self.costs = plan, rules, costs
        self.account = Account(
            {rules.quote: costs.balance}, costs.fee_rate, margin_rate=costs.margin_rate
        )
        self.book = self.account.book(rules)
        self.fills: deque[Fill] = deque(maxlen=keep)
        self.ended: str | None = None
        self.objection: str | None = None
        self._length = length
        self._past: list[int] = []
        self._window: deque[Candle] = deque(maxlen=WINDOW)
        self._part: Columns | None = None
        self._begin, self._first_open, self._candles, self._candles_held = 0, ZERO, 0, 0
        self._seen = self._direction = self._first = 0
        self._entered, self._off_target, self._flatten = plan.entry_now, True, ""
        self._recent: deque[int] = deque(maxlen=plan.limits.max_orders_per_day)
        self._turns = self._trips = self._won = self._orders = self._fruitless = 0
        self._turnover = self._opening_fees = ZERO
        self._worth = costs.balance
        self._peak, self._drawdown = float(costs.balance), 0.0
        self._sign, self._money = 0, costs.balance
        self._held = self._due = self._fixed = self._alarm = 0.0
        self._set_bounds()
        self._look_up()

    def feed(self, part: Columns) -> None:
        """Go on with the next candles; all but the newest of them are decided on."""
        if self._part is None:
            self._begin, self._first_open = part.time, exact(part.opens[0])
        self._candles += len(part.closes)
        last = len(self._part.closes) - 1 if self._part else 0
        if self._part is not None:
            part = self._part.cut(last, last + 1).joined(part)
        self._part = part
        self._time, _, self._low, self._high, self._opens, self._highs, self._lows, closes = part
        self._closes = closes
        if self.ended is None:
            self._run(len(closes) - 1)

    def result(self) -> Result:
        """Return what came of it, what is held valued at the last close."""
        if self._part is None or self._candles < 2:
            raise BadDataError("fewer than two candles of this interval")
        account, quote, part = self.account, self.rules.quote, self._part
        last = len(part.closes) - 1
        end, first, price = part.end, self._first_open, exact(part.closes[-1])
        self._mark(last, last + 1)
        low, high = exact(part.lows[-1]), exact(part.highs[-1])
        if self.ended is None and account.sweep(self.book, end, low, high):
            self.ended = f"liquidated at {end}"
        equity, costs = self.worth()
        net = equity - self.costs.balance
        rollover = account.rollovers.get(quote, ZERO)
        margin_costs = self._opening_fees + rollover
        left = net + costs - margin_costs
        days = (end - self._begin) / DAY_S
        return Result(
            pair=self.rules.altname, interval_s=part.interval_s, begin=self._begin, end=end,
            candles=self._candles, turns=self._turns, turns_per_day=self._turns / days,
            win_rate=self._won / self._trips if self._trips else None, orders=self._orders,
            gross=net + costs, fees=costs - margin_costs, opening_fees=self._opening_fees,
            rollover=rollover, net=net,
            max_drawdown=Decimal(self._drawdown).quantize(self.book.cost_step),
            exposure=self._candles_held / self._candles,
            break_even_fee=left / self._turnover if self._turnover else None,
            hold=self._volume * (price - first - (price + first) * self.costs.fee_rate),
            ended=self.ended, objection=self.objection,
        )  # fmt: skip

    @property
    def held(self) -> Decimal:
        """Return the signed volume of the position, without leverage the coins."""
        if self.plan.leverage:
            return self.book.volume
        return self.account.balances.get(self.rules.base, ZERO)

    def worth(self) -> tuple[Decimal, Decimal]:
        """Return equity at the newest close, and all costs so far."""
        account, quote = self.account, self.rules.quote
        assert self._part is not None
        self.book.price = price = exact(self._part.closes[-1])
        coins = account.balances.get(self.rules.base, ZERO) * price
        costs = account.fees.get(quote, ZERO) + account.rollovers.get(quote, ZERO)
        return account.equity(quote) + coins, costs

    # -- from event to event -------------------------------------------------------------------

    def _run(self, last: int) -> None:
        """Decide on the candles before number `last`."""
        turns = self._slope_turns(last) if self._length else self._strategy_turns(last)
        at = 0
        for turn, direction in (*turns, (last, 0)):
            while (stop := self._next_look(at, turn)) < turn:
                self._mark(at, stop + 1)
                self._look(stop)
                at = stop + 1
                if self.ended is not None:
                    return
            if turn == last:
                self._mark(at, last)
                return
            self._mark(at, turn + 1)
            self._direction = direction
            if stop == turn or not self._quick or not self._turn(turn, direction):
                self._look(turn)
                if self.ended is not None:
                    return
            at = turn + 1

    def _slope_turns(self, count: int) -> list[tuple[int, int]]:
        """Return number and new direction of each candle at which the average turns."""
        length = self._length or 0
        closes = [*self._past, *self._closes[:count]]
        seen, turns = self._seen, []
        begin = length - len(self._past)
        for at, (before, close) in enumerate(zip(closes, closes[length:], strict=False), begin):
            if close > before:
                if seen != 1:
                    seen = 1
                    turns.append((at, 1))
            elif close < before and seen != -1:
                seen = -1
                turns.append((at, -1))
        self._past, self._seen = closes[-length:], seen
        return turns

    def _strategy_turns(self, count: int) -> list[tuple[int, int]]:
        """Return the same for any strategy, by asking it about each candle."""
        turns = []
        for at, close in enumerate(map(exact, self._closes[:count])):
            self._window.append(Candle(at, close, close, close, close))
            direction = int(self.plan.strategy(list(self._window)).direction)
            if direction and direction != self._seen:
                self._seen = direction
                turns.append((at, direction))
        return turns

    def _next_look(self, at: int, turn: int) -> int:
        """Return the first candle after which an order is missing, a rollover is due or the price
        is near an end; beyond `turn` when there is none before."""
        if self._off_target:
            return at
        sign, stop, interval_s = self._sign, turn + 1, self.plan.interval_s
        if not sign:
            return stop
        if self._time + stop * interval_s + WAKE_DELAY_S >= self._due:
            stop = max(-int((self._time + WAKE_DELAY_S - self._due) // interval_s) - 1, at)
        # The open of the candle after counts too: that is where the position is marked.
        if self._low <= self._alarm if sign > 0 else self._high >= self._alarm:
            prices = self._lows if sign > 0 else self._highs
            for number in range(at, min(turn + 2, len(prices))):
                price = units(prices[number])
                if price <= self._alarm if sign > 0 else price >= self._alarm:
                    return min(stop, max(number - 1, at))
        return stop

    def _mark(self, begin: int, end: int) -> None:
        """Follow the equity over the closes of candles `begin` up to `end`, for the drawdown."""
        fixed, held, peak = self._fixed, self._held, self._peak
        if begin == end:
            return
        if held:
            self._candles_held += end - begin
        low, high = (self._low, self._high) if held >= 0 else (self._high, self._low)
        # Most stretches of a candle part cannot matter, whatever their closes are.
        if fixed + held * high <= peak and peak - fixed - held * low <= self._drawdown:
            return
        closes = self._closes[begin:end]
        if fixed + held * high <= peak:
            low = min(closes) if held >= 0 else max(closes)
            self._drawdown = max(self._drawdown, peak - fixed - held * low)
            return
        for close in closes:
            equity = fixed + held * close
            if equity > peak:
                self._peak = peak = equity
            elif peak - equity > self._drawdown:
                self._drawdown = peak - equity

    def _turn(self, at: int, direction: int) -> bool:
        """Close and open the other way, where nothing can speak against it; else return False."""
        plan, recent, account = self.plan, self._recent, self.account
        opened = exact(self._opens[at + 1])
        now = self._time + (at + 1) * plan.interval_s + WAKE_DELAY_S
        if (
            direction != -self._sign
            or self.book.held != self._volume
            or opened < self._price_min
            or self._money < opened * self._needs[direction]
            or (len(recent) == recent.maxlen and recent[1] > now - DAY_S)
        ):
            return False
        recent.append(now)
        self._orders += 1
        if not plan.one_order:
            recent.append(now)
            self._orders += 1
        price_paid = self._price(opened, direction)
        if self.fills.maxlen != 0:
            trades = account.fill(
                self.book, now, direction, 2 * self._volume, price_paid, plan.leverage
            )
            self._count(now, direction, _REASONS[direction], trades)
        else:
            cost, fee, opening_fee = account.turn(self.book, now, price_paid, plan.leverage)
            worth = account.balances[self.rules.quote] + fee + opening_fee
            self._turnover += cost + cost
            self._opening_fees += opening_fee
            self._trips += 1
            self._turns += 1
            self._won += worth > self._worth
            self._worth = worth
        self._sign, self._held, self._due = direction, -self._held, now + ROLLOVER_S
        self._look_at_money()
        return True

    def _set_bounds(self) -> None:
        """Set the bounds inside which an ordinary turn meets no objection."""
        plan, rules = self.plan, self.rules
        self._tick = Decimal(1).scaleb(-rules.pair_decimals)
        self._volume = rules.round_volume(plan.size)
        spread = 200 * self._tick / plan.limits.max_spread_percent
        self._price_min = Decimal("1.001") * max(spread, rules.costmin / (self._volume or 1))
        level = max(Decimal(1), plan.limits.min_margin_level / 100)
        share = (level + 1) / (plan.leverage or 1) + 4 * self.costs.fee_rate + self.costs.slippage
        need = Decimal("1.01") * 2 * self._volume * share
        self._needs = {1: need + self._volume, -1: need - self._volume}
        self._stop = float(rules.margin_stop) / 100 / (plan.leverage or 1)
        loss = plan.limits.max_loss
        self._floor = float("-inf") if loss is None else float(self.costs.balance - loss)
        limits = [rules.long_position_limit, rules.short_position_limit]
        self._quick = (
            rules.status == "online"
            and plan.leverage in rules.leverages_buy
            and plan.leverage in rules.leverages_sell
            and self._volume == plan.size >= rules.ordermin
            and all(limit is None or 2 * self._volume <= limit for limit in limits)
            and plan.limits.max_orders_per_day > 2
        )

    def _look_up(self) -> None:
        """Read from the books what quiet candles are measured by.

        Equity at a price in the units of the columns is `_fixed` and `_held` times it; floats,
        to compare and draw. `_alarm` is some way before a price that would end the position.
        """
        self._sign, self._held = self.book.sign, _UNIT * float(self.held)
        self._due = min((lot.due for lot in self.book.lots), default=0.0)
        if not self._sign and self._held and self.plan.limits.max_loss is not None:
            self._off_target = True
        self._look_at_money()

    def _look_at_money(self) -> None:
        sign, cost = self._sign, self.book.cost_left
        balance = self.account.balances[self.rules.quote]
        self._money = balance - cost if sign > 0 else balance + cost
        self._fixed = fixed = float(self._money)
        if sign > 0:
            worst = max(self._stop * float(cost), self._floor)
            self._alarm = 1.001 * (worst - fixed) / self._held
        elif sign < 0:
            most = min(fixed / (1 + self._stop), fixed - self._floor)
            self._alarm = 0.999 * most / -self._held

    # -- one candle as the live tick sees it ---------------------------------------------------

    def _look(self, at: int) -> None:
        """Do after candle `at` all that a tick does."""
        account, book, quote = self.account, self.book, self.rules.quote
        opened = exact(self._opens[at + 1])
        now = self._time + (at + 1) * self.plan.interval_s + WAKE_DELAY_S
        charged = account.rollovers.get(quote, ZERO)
        lost = account.sweep(book, now, exact(self._lows[at]), exact(self._highs[at]))
        lost = account.advance(book, now, opened) or lost
        charged = account.rollovers.get(quote, ZERO) - charged
        self._off_target = False
        if lost is not None:
            self._count(now, -self._sign, "liquidated", (lost,))
            self.ended = f"liquidated at {now}: the bot would stop here"
        tried: set[Purpose] = set()
        for _ in range(ROUNDS_MAX):
            held = self.held
            if self.ended is None:
                self._check_loss(held, exact(self._closes[at]), charged, now)
            if self.ended is not None:
                break
            step = decide(self._snapshot(held, tried), self.plan).step
            if step is None:
                break
            tried.add(step.purpose)
            if not self._place(step, held, opened, now):
                break
        self._look_up()

    def _snapshot(self, held: Decimal, tried: set[Purpose]) -> Snapshot:
        direction = Direction(self._direction)
        if not self._entered and direction:
            self._first = self._first or direction
            self._entered = self._first != direction
        waits = None if self._entered else direction
        signal = Signal(direction, ZERO, 0)
        return Snapshot(signal, held, self.rules, waits, self._flatten or None, tried)

    def _check_loss(self, held: Decimal, close: Decimal, charged: Decimal, now: int) -> None:
        """Latch max_loss as the bot does; what was charged just now is booked after the check."""
        limit = self.plan.limits.max_loss
        if limit is None:
            return
        balance = self.account.balances[self.rules.quote] + charged
        loss = self.costs.balance - balance - held * close + self.book.cost_left * self.book.sign
        if not self._flatten and loss >= limit:
            self._flatten = f"the loss is {loss:.2f}, max_loss is {limit}"
        if self._flatten and abs(held) < self.rules.ordermin:
            self.ended = f"{self._flatten}: the bot would stop at {now}"

    def _place(self, step: Step, held: Decimal, opened: Decimal, now: int) -> bool:
        """Send an order as the bot would; return whether there may be another one."""
        plan, rules, account = self.plan, self.rules, self.account
        quote = Quote(opened - self._tick, opened + self._tick)
        today = sum(time > now - DAY_S for time in self._recent)
        balance = account.balances.get(rules.quote, ZERO)
        summary = MarginSummary(balance, ZERO, ZERO)
        if plan.leverage:
            pair = rules.quote
            summary = MarginSummary(balance, account.unrealized(pair), account.used_margin(pair))
        around = Surroundings(
            "online", quote, rules, held, summary, today, self.costs.fee_rate, 0.0
        )
        against = objection(step, plan.leverage, around, plan.limits)
        if against is not None:
            self._off_target = True
            self.objection = self.objection or against.reason
            return step.purpose is Purpose.TURN and not against.passing
        self._recent.append(now)
        self._orders += 1
        side, volume, reduces = step.side, step.volume, step.reduce_only
        price = self._price(opened, side.sign)
        try:
            if refused := refusal(rules, side, volume, plan.leverage, price, reduces):
                raise RefusedError(refused)
            trades = execute(
                account, self.book, now, side, volume, Quote(price, price), plan.leverage, reduces,
                self._orders,
            )  # fmt: skip
        except RefusedError as error:
            self.objection = self.objection or str(error)
            self._off_target = True
            self._fruitless += 1
            if self._fruitless >= FRUITLESS_MAX:
                self.ended = f"{FRUITLESS_MAX} orders in a row refused at {now}: {error}"
            return self.ended is None
        self._fruitless = 0
        self._count(now, side.sign, self._flatten or _REASONS[self._direction], trades)
        return True

    def _price(self, opened: Decimal, direction: int) -> Decimal:
        """Return the price of a fill: the quote's side and the slippage, in whole ticks."""
        if self.costs.slippage:
            opened = (opened * (1 + direction * self.costs.slippage)).quantize(self._tick)
        return opened + self._tick if direction > 0 else opened - self._tick

    def _count(self, now: int, direction: int, reason: str, trades: Sequence[Trade]) -> None:
        balance = self.account.balances[self.rules.quote]
        for later, trade in enumerate(trades, 1 - len(trades)):
            self._turnover += trade.cost
            if trade.closing or (not self.plan.leverage and direction < 0):
                after = balance if not later else balance + trades[-1].fee + trades[-1].opening_fee
                self._trips += 1
                self._won += after > self._worth
                self._worth = after
            else:
                self._turns += 1
                self._opening_fees += trade.opening_fee
            order = self._orders if self.plan.one_order else self._orders + later
            self.fills.append(Fill(now, order, direction, reason, trade))
