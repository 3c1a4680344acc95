"""The bot's decisions over columns of candles: the same rules, orders, fees and margin as live.

After candle n is finished an order fills at the open of candle n + 1, a second into it, at the
ask or bid one tick away. Candles in which nothing can happen are passed over by comparing floats.
Money moves in the exact books of the simulated exchange alone, and whatever is not an ordinary
turn goes through the same pure functions as a tick of the bot.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import inf
from typing import NamedTuple

from krakenbot import format
from krakenbot.backtest.files import BadDataError, Columns, candles_of, exact
from krakenbot.backtest.result import DAY_S, Fill, Record, Result
from krakenbot.decision import Blocked, Plan, Snapshot, decide
from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Candle, Direction, Purpose, Quote, Side, Signal, Step
from krakenbot.pairs import PairRules
from krakenbot.risk import RiskInputs, objection
from krakenbot.simulated.books import ROLLOVER_S, Account, Trade
from krakenbot.simulated.books import objection as refusal
from krakenbot.strategy import sma_slope

WAKE_DELAY_S = 1
LOSS_PAUSE_S = 10
ROUNDS_MAX = 3
UNFILLED_MAX = 5
WINDOW = 720  # Candles that the bot shows its strategy at most.
_NAMES = {way.value: way.name.lower() for way in Direction}


class Costs(NamedTuple):
    """What trading costs, as fractions, and the money at the start."""

    fee_rate: Decimal
    balance: Decimal
    slippage: Decimal = ZERO
    margin_rates: Mapping[str, Decimal] = {}  # By the asset that is lent.


class Replay:
    """One plan over one series, handed in part by part. `record` keeps the newest `keep` trips.

    The first `warm_up` candles are only for the strategy to see. With `needs_trades` an order
    waits for the next candle in which there was a trade.
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
        self._warm_up, self._needs_trades = warm_up, needs_trades
        self._first_open, self._is_over = ZERO, False
        self._seen: int | None = None
        self._direction: int | None = None
        self._first: int | None = None
        self._entered, self._off_target, self._flatten = plan.entry_now, True, ""
        self._too_dear, self._allowed_at = inf, 0
        self._recent: deque[int] = deque()
        self._unfilled = 0
        self._set_bounds()
        self._look_up()

    def feed(self, part: Columns) -> None:
        """Go on with the next candles; all but the newest of them are decided on."""
        if self._part is None:
            new, at, begin = self._warm_up, max(self._warm_up - 1, 0), 0
            self._first_open = exact(part.opens[new])
            self.record.start(part.times[new])
        else:
            # The newest candle is not decided on yet, and the strategy looks back from it.
            count = len(self._part.times)
            at = begin = min(count - 1, self._length)
            part, new = self._part.cut(count - 1 - at, count).joined(part), at + 1
        self._part, last = part, len(part.times) - 1
        self.record.candles += last + 1 - new
        self.record.untraded += part.untraded(new)
        if self.record.ended is None:
            turns = self._slope_turns if self._length else self._strategy_turns
            self._run(part, turns(part, begin, last), at, last)

    def result(self) -> Result:
        """Return what came of it, what is held valued at the last close; nothing can follow."""
        part, record = self._part, self.record
        if part is None or record.candles < 2:
            raise BadDataError("fewer than two candles of this interval")
        account, position, end = self.account, self.position, part.end
        low, high, close = (exact(column[-1]) for column in (part.lows, part.highs, part.closes))
        if record.ended is None and not self._is_over:
            lost = account.sweep(position, end, low, high) or account.advance(position, end, close)
            self._liquidated(lost, end)
            self._look_up()
            self._mark(part, len(part.times) - 1, len(part.times))
        self._is_over = True
        if self._off_target and record.refused_since and not self._allowed_at:
            why = f"no order could be sent any more: {record.refused_reason}"
            record.end(why, record.refused_since)
        return record.result(
            self.rules,
            part.interval_s,
            end,
            net=self.worth() - self.costs.balance,
            paid=self.paid,
            rollover=account.rollovers.get(self.rules.quote, ZERO),
            hold=self.hold(close),
        )

    @property
    def held(self) -> Decimal:
        """Return the signed volume of the position, without leverage the coins."""
        coins = self.account.balances.get(self.rules.base, ZERO)
        return self.position.volume if self.plan.leverage else coins

    @property
    def paid(self) -> Decimal:
        """Return all fees, opening fees and rollovers so far."""
        account, quote = self.account, self.rules.quote
        return account.fees.get(quote, ZERO) + account.rollovers.get(quote, ZERO)

    def worth(self) -> Decimal:
        """Return the equity at the newest close."""
        assert self._part is not None
        self.position.price = price = exact(self._part.closes[-1])
        coins = self.account.balances.get(self.rules.base, ZERO) * price
        return self.account.equity(self.rules.quote) + coins

    def hold(self, price: Decimal) -> Decimal:
        """Return what buying as much at the first open and selling at a price would have made."""
        first = self._first_open
        return self._volume * (price - first - (price + first) * self.costs.fee_rate)

    def _run(self, part: Columns, turns: Sequence[tuple[int, int]], at: int, last: int) -> None:
        """Decide on the candles from number `at` up to `last`; `turns` are new directions."""
        ahead = 0
        self._low, self._high = min(part.lows), max(part.highs)
        while self.record.ended is None:
            if (done := self._turn_often(part, turns, ahead, at)) > ahead:
                at, ahead = turns[done - 1][0] + 1, done
            turn = turns[ahead][0] if ahead < len(turns) else last
            stop = max(at, self._next_look(part, at, turn))
            while self._needs_trades and stop < last and not part.is_traded(stop + 1):
                stop += 1
            is_turn = False
            while ahead < len(turns) and turns[ahead][0] <= stop:
                is_turn, self._direction, ahead = True, turns[ahead][1], ahead + 1
            self._mark(part, at, min(stop, last))
            if stop >= last:
                return
            now = part.times[stop + 1] + WAKE_DELAY_S
            if is_turn or self._off_target or self._is_in_danger(part, stop):
                self._look(part, stop, now)
            else:
                self._mark(part, stop, stop + 1)
                self.account.advance(self.position, now, exact(part.opens[stop + 1]))
            self._look_up()
            at = stop + 1

    def _turn_often(
        self, part: Columns, turns: Sequence[tuple[int, int]], ahead: int, at: int
    ) -> int:
        """Take the turns ahead that nothing can speak against and before which nothing can happen.

        Each closes what is held and opens as much the other way. Returns the next number.
        """
        if not self._is_ordinary or self._off_target or self.position.held != self._volume:
            return ahead
        record, recent, account, position = self.record, self._recent, self.account, self.position
        quote, leverage, orders = self.rules.quote, self.plan.leverage, self._orders_a_turn
        room, size = self.plan.limits.max_orders_per_day - orders, abs(self._held)
        need, floor, held = self._need * size, max(self._floor, 0.0), self._held
        for number in range(ahead, len(turns)):
            turn, way = turns[number]
            price, now = part.opens[turn + 1], part.times[turn + 1] + WAKE_DELAY_S
            is_traded = part.is_traded(turn + 1)
            if (
                held * way >= 0
                or self._due < now
                or price < self._price_min
                or (self._low <= self._danger if held > 0 else self._high >= self._danger)
                or self._fixed + held * price <= need * price + floor
                or (len(recent) > room and self._sent(now) > room)
                or (self._needs_trades and not is_traded)
            ):
                return number
            self._mark(part, at, turn + 1)
            at, self._direction, held = turn + 1, way, way * size
            recent.extend((now,) * orders)
            record.orders += orders
            trades = account.turn(position, now, self._price(exact(price), way), leverage)
            self._record(now, way, "", trades[0], trades[1], is_traded)
            self._follow_position(held, float(account.balances[quote]), now + ROLLOVER_S)
        return len(turns)

    def _slope_turns(self, part: Columns, begin: int, end: int) -> list[tuple[int, int]]:
        """Return number and new direction of each candle at which the average turns."""
        length, seen, turns = self._length, self._seen or 0, []
        begin = max(begin, length)
        pairs = zip(part.closes[begin - length :], part.closes[begin:end], strict=False)
        for at, (before, close) in enumerate(pairs, begin):
            if seen < 1 and close > before:
                seen = 1
                turns.append((at, 1))
            elif seen > -1 and close < before:
                seen = -1
                turns.append((at, -1))
        self._seen = seen
        return turns

    def _strategy_turns(self, part: Columns, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the same for any strategy, by asking it about each candle."""
        turns: list[tuple[int, int]] = []
        for at, candle in enumerate(candles_of(part.cut(begin, end)), begin):
            self._window.append(candle)
            direction = self.plan.strategy(list(self._window)).direction
            if direction is not None and direction != self._seen:
                self._seen = direction
                turns.append((at, direction))
        return turns

    def _next_look(self, part: Columns, at: int, turn: int) -> int:
        """Return the first candle up to `turn` at which something may have to be done."""
        if self._off_target:
            # What could not be paid at one price cannot be at a higher one.
            opens, dear = part.opens, self._too_dear
            later = range(max(at, self._number(part, self._allowed_at)), turn)
            stop = next((number for number in later if opens[number + 1] < dear), turn)
            self.record.refused += (stop - at) * (self.record.refused_since > 0)
            return stop
        if not self._held:
            return turn
        stop = min(turn, max(at, self._number(part, self._due + 1)))
        if not self._is_near(self._low if self._held > 0 else self._high):
            return stop
        # The open of the candle after counts too: that is where the position is marked.
        prices = (part.lows if self._held > 0 else part.highs)[at : stop + 2]
        near = (number for number, price in enumerate(prices, at - 1) if self._is_near(price))
        return min(stop, next(near, stop))

    def _is_near(self, price: float) -> bool:
        """Return whether the position may end at a price: liquidation, or the loss is reached."""
        return price <= self._danger if self._held > 0 else price >= self._danger

    def _is_in_danger(self, part: Columns, at: int) -> bool:
        """Return whether the position may end in candle `at` or at the next open."""
        worst = part.lows[at] if self._held > 0 else part.highs[at]
        return self._is_near(worst) or self._is_near(part.opens[at + 1])

    def _mark(self, part: Columns, begin: int, end: int) -> None:
        """Follow the equity over the closes of candles `begin` up to `end`."""
        if begin < end:
            closes, first = part.closes[begin:end], part.times[begin] + part.interval_s
            self.record.follow(self._fixed, self._held, closes, first, part.interval_s)

    def _set_bounds(self) -> None:
        """Set what never changes, and the bounds inside which a turn meets no objection."""
        plan, rules, costs = self.plan, self.rules, self.costs
        limits, leverage, loss = plan.limits, plan.leverage or 1, plan.limits.max_loss
        self._orders_a_turn = 1 if plan.one_order else 2
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

    def _look_up(self) -> None:
        """Read from the books what quiet candles are measured by, to compare and draw only."""
        due = min((lot.due for lot in self.position.lots), default=inf)
        balance = float(self.account.balances[self.rules.quote])
        self._follow_position(float(self.held), balance, due)

    def _follow_position(self, held: float, balance: float, due: float) -> None:
        """Set where the position may end. Equity at a price is `_fixed` and `_held` times it."""
        cost = float(self.position.cost_left)
        self._held, self._due = held, due
        self._fixed = fixed = balance - (cost if held > 0 else -cost)
        # A thousandth of the position is kept to spare: what is near is looked at exactly.
        if held > 0:
            self._danger = (max(self._stop * cost, self._floor) - fixed) / held / 0.999
        elif held < 0:
            most = min(fixed / (1.001 + self._stop), (fixed - self._floor) / 1.001)
            self._danger = most / -held

    def _number(self, part: Columns, moment: float) -> int:
        """Return the first candle that is decided on at this moment or later."""
        moment = min(moment, part.end + part.interval_s)
        return -int((part.times[0] + WAKE_DELAY_S - moment) // part.interval_s) - 1

    def _sent(self, now: int) -> int:
        """Return how many orders were sent in the 24 h before, and forget older ones."""
        while self._recent and self._recent[0] <= now - DAY_S:
            self._recent.popleft()
        return len(self._recent)

    def _look(self, part: Columns, at: int, now: int) -> None:
        """Do after candle `at` all that a tick does."""
        if now < self._allowed_at:
            self.record.refused += 1
            self._mark(part, at, at + 1)
            return
        account, position, quote = self.account, self.position, self.rules.quote
        opened, traded = exact(part.opens[at + 1]), part.is_traded(at + 1)
        charged = account.rollovers.get(quote, ZERO)
        lost = account.sweep(position, now, exact(part.lows[at]), exact(part.highs[at]))
        if lost is None:
            self._mark(part, at, at + 1)
            lost = account.advance(position, now, opened)
        charged = account.rollovers.get(quote, ZERO) - charged
        self._off_target, self._too_dear, self._allowed_at = False, inf, 0
        self._liquidated(lost, now)
        direction = None if self._direction is None else Direction(self._direction)
        signal, sent = Signal(direction, ZERO, 0), dict[Purpose, Blocked]()
        if not self._entered and direction is not None:
            self._first = direction if self._first is None else self._first
            self._entered = self._first != direction
        for _ in range(ROUNDS_MAX if lost is None else 0):
            held = self.held
            now = self._check_loss(held, opened, charged, now)
            if self.record.ended is not None:
                break
            waits = None if self._entered else direction
            snapshot = Snapshot(signal, held, self.rules, waits, self._flatten or None, sent)
            step = decide(snapshot, self.plan).step
            if step is None or not self._place(step, held, opened, now, traded):
                break
            sent[step.purpose] = Blocked("ordered in this candle already", None)

    def _liquidated(self, lost: Trade | None, now: int) -> None:
        if lost is not None:
            self.record.orders += 1
            self._record(now, -1 if self._held > 0 else 1, "liquidated", lost, None, True)
            left = format.money(self.record.flat_worth, self.rules.quote)
            self.record.end(f"liquidated with {left} left; the bot stops there", now)
            self.record.value(float(self.record.flat_worth), now)

    def _check_loss(self, held: Decimal, price: Decimal, charged: Decimal, now: int) -> int:
        """Latch max_loss as the bot does, and return when: it looks twice before it sells.

        What was charged just now is booked after the check.
        """
        limit = self.plan.limits.max_loss
        if limit is None:
            return now
        balance = self.account.balances[self.rules.quote] + charged
        loss = (
            self.costs.balance
            - balance
            - held * price
            + self.position.cost_left * self.position.sign
        )
        if not self._flatten and loss >= limit:
            self._flatten = f"the loss is {loss:.2f}, max_loss is {limit}"
            now += LOSS_PAUSE_S if held else 0
        if self._flatten and abs(held) < self.rules.ordermin:
            self.record.end(f"{self._flatten}; the bot stops there", now)
        return now

    def _place(self, step: Step, held: Decimal, price: Decimal, now: int, traded: bool) -> bool:
        """Send an order as the bot would; return whether there may be another one."""
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
                self._too_dear = float(price) if step.volume * price >= rules.costmin else inf
            return step.purpose is Purpose.REVERSE and not against.passing
        self._recent.append(now)
        side, volume, reduces = step.side, step.volume, step.reduce_only
        price, number = self._price(price, side.sign), self.record.orders + 1
        order = self.position, now, side.sign, volume, price, plan.leverage
        try:
            if refused := refusal(rules, side, volume, plan.leverage, price, reduces):
                raise RefusedError(refused)
            trades = account.fill(*order, reduce_only=reduces, order=number)
        except RefusedError as error:
            self._off_target = True
            self.record.refuse(str(error), now)
            self._unfilled += 1
            if self._unfilled >= UNFILLED_MAX:
                self.record.end(f"{UNFILLED_MAX} orders in a row were refused: {error}", now)
            return self.record.ended is None
        self._unfilled = self.record.refused_since = 0
        self.record.orders = number
        is_closing = trades[0].closing or (not plan.leverage and side is Side.SELL)
        closed = trades[0] if is_closing else None
        opened = None if is_closing and len(trades) == 1 else trades[-1]
        self._record(now, side.sign, self._flatten, closed, opened, traded)
        return True

    def _price(self, opened: Decimal, direction: int) -> Decimal:
        """Return the price of a fill: the quote's side and the slippage, in whole ticks."""
        if self.costs.slippage:
            opened = (opened * (1 + direction * self.costs.slippage)).quantize(self._tick)
        return opened + self._tick if direction > 0 else opened - self._tick

    def _record(
        self,
        now: int,
        direction: int,
        reason: str,
        closed: Trade | None,
        opened: Trade | None,
        traded: bool,
    ) -> None:
        """Count what was closed and opened, by one order or by the last two."""
        record, why = self.record, reason or _NAMES[self._direction or 0]
        order = record.orders
        if closed:
            worth, paid, first = self.account.balances[self.rules.quote], self.paid, order
            if opened:
                since = opened.fee + opened.opening_fee
                worth, paid, first = worth + since, paid - since, order + 1 - self._orders_a_turn
            record.close(Fill(now, first, direction, why, traded, closed), worth, paid)
        if opened:
            record.open(Fill(now, order, direction, why, traded, opened))
