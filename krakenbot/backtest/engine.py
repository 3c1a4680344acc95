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
from krakenbot.backtest.result import DAY_S, YEAR_S, Fill, Record, Result
from krakenbot.decision import Blocked, Plan, Snapshot, decide
from krakenbot.errors import RefusedError
from krakenbot.model import (
    ZERO,
    Candle,
    Direction,
    MarginRates,
    Purpose,
    Quote,
    Side,
    Signal,
    Step,
)
from krakenbot.pairs import PairRules
from krakenbot.risk import RiskInputs, objection
from krakenbot.simulated.books import ROLLOVER_S, Account, Trade
from krakenbot.simulated.books import objection as refusal
from krakenbot.strategy import sma_slope

WAKE_DELAY_S = 1
ROUNDS_MAX = 3
UNFILLED_MAX = 5
WINDOW = 720  # Candles that the bot shows its strategy at most.


class Costs(NamedTuple):
    """What trading costs, as fractions, and the money at the start."""

    fee_rate: Decimal
    balance: Decimal
    slippage: Decimal = ZERO
    margin_rates: Mapping[str, Decimal] = {}  # By the asset that is lent.

    @classmethod
    def of(
        cls, fee_rate: Decimal, balance: Decimal, rules: PairRules, rates: MarginRates
    ) -> "Costs":
        """Return the costs on one pair; a rate that is not known is 0.02 %."""
        by_asset = {rules.quote: rates.of(Side.BUY), rules.base: rates.of(Side.SELL)}
        return cls(fee_rate, balance, ZERO, by_asset)


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
        self.book = self.account.position(rules)
        self.record = Record(costs.balance, keep)
        self.ended: str | None = None
        self.ended_at: int | None = None
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
        self._unfilled = self._refused = self._refused_since = 0
        self._refused_reason: str | None = None
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
        if self.ended is None:
            turns = self._slope_turns if self._length else self._strategy_turns
            self._run(part, turns(part, begin, last), at, last)

    def result(self) -> Result:
        """Return what came of it, what is held valued at the last close; nothing can follow."""
        part, record = self._part, self.record
        if part is None or record.candles < 2:
            raise BadDataError("fewer than two candles of this interval")
        account, book, quote = self.account, self.book, self.rules.quote
        close, end, balance = exact(part.closes[-1]), part.end, self.costs.balance
        if self.ended is None and not self._is_over:
            low, high = exact(part.lows[-1]), exact(part.highs[-1])
            lost = account.sweep(book, end, low, high) or account.advance(book, end, close)
            self._liquidated(lost, end)
            self._look_up()
            self._mark(part, len(part.times) - 1, len(part.times))
        if self.ended is None and self._off_target and self._refused_since and not self._allowed_at:
            self._end(
                f"no order could be sent any more: {self._refused_reason}", self._refused_since
            )
        self._is_over = True
        net, paid, hold = self.worth() - balance, self.paid, self.hold(close)
        rollover = account.rollovers.get(quote, ZERO)
        fees = paid - record.opening_fees - rollover
        traded_s = (self.ended_at or end) - record.begin
        return Result(
            pair=self.rules.altname,
            quote=quote,
            interval_s=part.interval_s,
            begin=record.begin,
            end=end,
            candles=record.candles,
            candles_untraded=record.untraded,
            balance=balance,
            turns=record.turns,
            turns_per_day=record.turns / traded_s * DAY_S if traded_s > 0 else 0.0,
            openings_untraded=record.openings_untraded,
            orders=record.orders,
            refused=self._refused,
            refused_reason=self._refused_reason,
            gross=net + paid,
            fees=fees,
            margin_fees=record.opening_fees,
            rollover=rollover,
            net=net,
            net_percent=float(100 * net / balance),
            net_percent_per_year=float(100 * net / balance) * YEAR_S / (end - record.begin),
            hold=hold,
            hold_percent=float(100 * hold / balance),
            max_drawdown=Decimal(record.drawdown).quantize(book.cost_step),
            max_drawdown_percent=100 * record.drawdown_share,
            under_water_days=record.longest_below(end) / DAY_S,
            win_rate=record.wins / record.closed if record.closed else None,
            profit_factor=float(record.won / record.lost) if record.lost else None,
            exposure=record.candles_held / record.candles,
            break_even_fee=(net + fees) / record.turnover if record.turnover else None,
            ended=self.ended,
            ended_at=self.ended_at,
        )

    @property
    def held(self) -> Decimal:
        """Return the signed volume of the position, without leverage the coins."""
        coins = self.account.balances.get(self.rules.base, ZERO)
        return self.book.volume if self.plan.leverage else coins

    @property
    def paid(self) -> Decimal:
        """Return all fees, opening fees and rollovers so far."""
        account, quote = self.account, self.rules.quote
        return account.fees.get(quote, ZERO) + account.rollovers.get(quote, ZERO)

    def worth(self) -> Decimal:
        """Return the equity at the newest close."""
        assert self._part is not None
        self.book.price = price = exact(self._part.closes[-1])
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
        while self.ended is None:
            if made := self._turn_often(part, turns[ahead:], at):
                at, ahead = turns[ahead + made - 1][0] + 1, ahead + made
            turn = turns[ahead][0] if ahead < len(turns) else last
            stop = max(at, self._next_look(part, at, turn))
            while self._needs_trades and stop < last and not part.is_traded(stop + 1):
                stop += 1
            is_turn = ahead < len(turns) and turns[ahead][0] <= stop
            while ahead < len(turns) and turns[ahead][0] <= stop:
                self._direction = turns[ahead][1]
                ahead += 1
            self._mark(part, at, min(stop, last))
            if stop >= last:
                return
            now = part.times[stop + 1] + WAKE_DELAY_S
            if is_turn or self._off_target or self._is_in_danger(part, stop):
                self._look(part, stop, now)
            else:
                self._mark(part, stop, stop + 1)
                self.account.advance(self.book, now, exact(part.opens[stop + 1]))
            self._look_up()
            at = stop + 1

    def _turn_often(self, part: Columns, turns: Sequence[tuple[int, int]], at: int) -> int:
        """Take the next turns that nothing can speak against and before which nothing can happen.

        Each closes what is held and opens as much the other way. Returns how many were taken.
        """
        if not (self._is_ordinary and self._held and self.book.held == self._volume):
            return 0
        record, room = self.record, self.plan.limits.max_orders_per_day - self._orders_a_turn
        size, money = abs(self._held), self.account.balances
        for made, (turn, way) in enumerate(turns):
            held, price = self._held, part.opens[turn + 1]
            now, is_traded = part.times[turn + 1] + WAKE_DELAY_S, part.is_traded(turn + 1)
            if (
                held * way >= 0
                or self._off_target
                or self._due < now
                or price < self._price_min
                or self._is_near(self._low if held > 0 else self._high)
                or self._fixed + held * price <= self._need * size * price + max(self._floor, 0.0)
                or self._sent(now) > room
                or (self._needs_trades and not is_traded)
            ):
                return made
            self._mark(part, at, turn + 1)
            self._direction, at = way, turn + 1
            self._recent.extend((now,) * self._orders_a_turn)
            record.orders += self._orders_a_turn
            paid = self._price(exact(price), way)
            trades = self.account.turn(self.book, now, paid, self.plan.leverage)
            self._record(now, way, "", trades, is_traded)
            self._follow_position(way * size, float(money[self.rules.quote]), now + ROLLOVER_S)
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
        """Return the first candle up to `turn` after which an order is missing, a rollover is due
        or the price is near an end."""
        if self._off_target:
            # What could not be paid at one price cannot be at a higher one.
            opens, dear = part.opens, self._too_dear
            later = range(max(at, self._number(part, self._allowed_at)), turn)
            stop = next((number for number in later if opens[number + 1] < dear), turn)
            self._refused += (stop - at) * (self._refused_since > 0)
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
        due = min((lot.due for lot in self.book.lots), default=inf)
        balance = float(self.account.balances[self.rules.quote])
        self._follow_position(float(self.held), balance, due)

    def _follow_position(self, held: float, balance: float, due: float) -> None:
        """Set where the position may end. Equity at a price is `_fixed` and `_held` times it."""
        cost = float(self.book.cost_left)
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
        if moment == inf:
            return len(part.times)
        return -int((part.times[0] + WAKE_DELAY_S - moment) // part.interval_s) - 1

    def _sent(self, now: int) -> int:
        """Return how many orders were sent in the 24 h before, and forget older ones."""
        while self._recent and self._recent[0] <= now - DAY_S:
            self._recent.popleft()
        return len(self._recent)

    def _look(self, part: Columns, at: int, now: int) -> None:
        """Do after candle `at` all that a tick does."""
        if now < self._allowed_at:
            self._refused += 1
            self._mark(part, at, at + 1)
            return
        account, book, quote = self.account, self.book, self.rules.quote
        opened, traded = exact(part.opens[at + 1]), part.is_traded(at + 1)
        charged = account.rollovers.get(quote, ZERO)
        lost = account.sweep(book, now, exact(part.lows[at]), exact(part.highs[at]))
        if lost is None:
            self._mark(part, at, at + 1)
            lost = account.advance(book, now, opened)
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
            self._check_loss(held, exact(part.closes[at]), charged, now)
            if self.ended is not None:
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
            self._record(now, -1 if self._held > 0 else 1, "liquidated", (lost,), True)
            left = format.money(self.record.flat_worth, self.rules.quote)
            self._end(f"liquidated with {left} left; the bot stops there", now)
            self.record.value(float(self.record.flat_worth), now)

    def _end(self, why: str, now: int) -> None:
        self.ended, self.ended_at = why, now

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
            self._end(f"{self._flatten}; the bot stops there", now)

    def _place(self, step: Step, held: Decimal, opened: Decimal, now: int, traded: bool) -> bool:
        """Send an order as the bot would; return whether there may be another one."""
        plan, rules, account = self.plan, self.rules, self.account
        quote = Quote(opened - self._tick, opened + self._tick)
        today, today_max = self._sent(now), plan.limits.max_orders_per_day
        summary, fee_rate = account.summary(rules.quote), self.costs.fee_rate
        rate = account.rate_of_loan(rules, step.side.sign)
        inputs = RiskInputs("online", quote, rules, held, summary, today, fee_rate, 0.0, rate)
        against = objection(step, plan.leverage, inputs, plan.limits)
        if against is not None:
            self._refuse(against.reason, now)
            if not (held or against.passing) and today >= today_max:
                self._allowed_at = self._recent[today - today_max] + DAY_S
            elif not (held or against.passing):
                self._too_dear = float(opened) if step.volume * opened >= rules.costmin else inf
            return step.purpose is Purpose.REVERSE and not against.passing
        self._recent.append(now)
        side, volume, reduces = step.side, step.volume, step.reduce_only
        price, number = self._price(opened, side.sign), self.record.orders + 1
        try:
            if refused := refusal(rules, side, volume, plan.leverage, price, reduces):
                raise RefusedError(refused)
            order = self.book, now, side.sign, volume, price, plan.leverage
            trades = account.fill(*order, reduce_only=reduces, order=number)
        except RefusedError as error:
            self._refuse(str(error), now)
            self._unfilled += 1
            if self._unfilled >= UNFILLED_MAX:
                self._end(f"{UNFILLED_MAX} orders in a row were refused: {error}", now)
            return self.ended is None
        self._unfilled = self._refused_since = 0
        self.record.orders = number
        self._record(now, side.sign, self._flatten, trades, traded)
        return True

    def _refuse(self, reason: str, now: int) -> None:
        self._off_target = True
        self._refused += 1
        if not self._refused_since:
            self._refused_since, self._refused_reason = now, reason

    def _price(self, opened: Decimal, direction: int) -> Decimal:
        """Return the price of a fill: the quote's side and the slippage, in whole ticks."""
        if self.costs.slippage:
            opened = (opened * (1 + direction * self.costs.slippage)).quantize(self._tick)
        return opened + self._tick if direction > 0 else opened - self._tick

    def _record(
        self, now: int, direction: int, reason: str, trades: Sequence[Trade], traded: bool
    ) -> None:
        """Count what was closed and opened, by one order or by the last two."""
        record, worth, opened = self.record, self.account.balances[self.rules.quote], trades[-1]
        reason = reason or Direction(self._direction or 0).name.lower()
        is_closing = opened.closing or (not self.plan.leverage and direction < 0)
        since = ZERO if is_closing else opened.fee + opened.opening_fee
        for later, trade in enumerate(trades, 1 - len(trades)):
            fill = None
            if record.trips.maxlen != 0:
                order = record.orders + (0 if self.plan.one_order else later)
                fill = Fill(now, order, direction, reason, traded, *trade[1:6])
            if later or is_closing:
                record.close(fill, trade.cost, worth + since, self.paid - since)
            else:
                record.open(fill, trade.cost, trade.opening_fee, traded)
