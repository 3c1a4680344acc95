"""The bot's decisions over columns of candles: the same rules, orders, fees and margin as live.

After candle n is finished an order fills at the open of candle n + 1, a second into it, at the
ask or bid one tick away. Candles without an event cost one comparison of two closes; the exact
books move only at fills, rollovers and near liquidation. An ordinary turn skips the questions
whose answer is known; anything else goes through the same pure functions as a live tick.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from krakenbot.config import Config
from krakenbot.decision import Plan, Snapshot, decide
from krakenbot.errors import RefusedError
from krakenbot.model import ZERO, Candle, Direction, MarginSummary, Purpose, Quote, Signal
from krakenbot.pairs import PairRules
from krakenbot.risk import Limits, Surroundings, objection
from krakenbot.simulated.candlefile import Columns, Price
from krakenbot.simulated.exchange import execute
from krakenbot.simulated.exchange import objection as refusal
from krakenbot.simulated.margin import MARGIN_RATE, Account, Trade
from krakenbot.strategy import build

WAKE_DELAY_S = 1
ROUNDS_MAX = 3
FRUITLESS_MAX = 5
DAY_S = 86400
WINDOW = 720
POINTS_MAX = 2000
FILLS_KEPT = 1000


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


class Point(NamedTuple):
    """A stretch of candles for drawing; `gross` is equity before costs."""

    time: int
    low: float
    high: float
    close: float
    equity: float
    gross: float
    held: float


@dataclass(slots=True)
class Result:
    """What came of it. Money in quote currency; shares and rates as fractions."""

    pair: str
    interval_s: int
    begin: int
    end: int
    candles: int
    turns: int
    trips: int
    won: int
    orders: int
    gross: Decimal
    fees: Decimal
    opening_fees: Decimal
    rollover: Decimal
    net: Decimal
    equity: Decimal
    max_drawdown: Decimal
    turnover: Decimal
    exposure: float
    hold: Decimal
    ended: str | None
    objection: str | None

    @property
    def days(self) -> float:
        return (self.end - self.begin) / DAY_S

    @property
    def turns_per_day(self) -> float:
        return self.turns / self.days

    @property
    def break_even_fee(self) -> Decimal | None:
        """Return the taker fee at which the net would be nothing; negative: it lost without."""
        if not self.turnover:
            return None
        return (self.gross - self.opening_fees - self.rollover) / self.turnover


def plan_of(config: Config, interval_s: int, swept: Mapping[str, int]) -> tuple[Plan, int | None]:
    """Return the plan and, for sma-slope, its length."""
    chosen = config.strategy
    chosen = chosen._replace(
        length=swept.get("length", chosen.length), short=swept.get("short", chosen.short),
        long=swept.get("long", chosen.long),
    )  # fmt: skip
    strategy, candles_min = build(chosen.name, chosen.length, chosen.short, chosen.long)
    risk = config.risk
    plan = Plan(
        config.pair, interval_s, config.size, config.leverage, config.reversal == "one-order",
        config.entry == "now", strategy, candles_min,
        Limits(risk.max_loss, risk.min_margin_level, risk.max_spread_percent,
               risk.max_orders_per_day),
    )  # fmt: skip
    return plan, chosen.length if chosen.name == "sma-slope" else None


class Replay:
    """One plan over one series, handed in part by part."""

    def __init__(
        self, plan: Plan, length: int | None, rules: PairRules, costs: Costs, *,
        keep: int | None = 0, drawn: bool = False,
    ) -> None:  # fmt: skip
        """`length` is that of sma-slope, None for any other strategy. Keeps `keep` fills."""
        self.plan, self.rules, self.costs = plan, rules, costs
        self.account = Account(
            {rules.quote: costs.balance}, costs.fee_rate, margin_rate=costs.margin_rate
        )
        self.book = self.account.book(rules)
        self.fills: deque[Fill] = deque(maxlen=keep)
        self.points: list[Point] = []
        self.step = 1 if drawn else 0
        self.newest: deque[tuple[float, ...]] = deque(maxlen=WINDOW if drawn else 0)
        self.ended: str | None = None
        self.objection: str | None = None
        self._length = length
        self._past: list[float] = []
        self._window: list[Candle] = []
        self._direction = self._seen = 0
        self._first = 0
        self._entered = plan.entry_now
        self._flatten: str | None = None
        self._off_target = True
        self._half = Decimal(1).scaleb(-rules.pair_decimals)
        self._volume = rules.round_volume(plan.size)
        self._twice = 2 * self._volume
        self._recent: deque[int] = deque(maxlen=plan.limits.max_orders_per_day)
        self._tail: Columns | None = None
        self._fruitless = 0
        self._time = 0
        self._low = self._high = 0.0
        self._opens: Sequence[Price] = ()
        self._lows: Sequence[Price] = ()
        self._highs: Sequence[Price] = ()
        self._closes: Sequence[float] = ()
        self._begin, self._candles, self._first_open, self._candles_held = 0, 0, ZERO, 0
        self._turns = self._trips = self._won = self._orders = 0
        self._opening_fees = self._turnover = ZERO
        self._worth = costs.balance
        start = float(costs.balance)
        self._peak = (start, start, 0.0, 0.0)
        self._drawdown, self._deepest = 0.0, (self._peak, self._peak)
        self._look_up()
        self._quick = self._may_be_quick()

    def feed(self, part: Columns) -> None:
        """Go on with the next candles; all but the newest of them are decided on."""
        if self._tail is None:
            self._begin, self._first_open = part.time, _exact(part.opens[0])
        self._candles += len(part.closes)
        if self._tail is not None:
            part = self._tail.joined(part)
        last = len(part.closes) - 1
        step = self.step or last
        self._time = part.time
        _, _, self._low, self._high, self._opens, self._highs, self._lows, self._closes = part
        turns = self._slope_turns(last) if self._length else self._strategy_turns(last)
        begin = 0
        while begin < last:
            end = min(begin + step, last)
            self._run(begin, end, [turn for turn in turns if begin <= turn[0] < end]
                      if step < last else turns)  # fmt: skip
            if self.step:
                self._draw(begin, end)
            begin = end
        self._tail = part.cut(last, last + 1)

    def result(self) -> Result:
        """Return what came of it, what is held valued at the last close."""
        tail = self._tail
        if tail is None or self._candles < 2:
            raise ValueError("fewer than two candles of this interval")
        account, quote, close = self.account, self.rules.quote, _exact(tail.closes[0])
        self._opens, self._highs, self._lows, self._closes = tail[4:]
        self._mark(0, 0)
        if self.ended is None and account.sweep(
            self.book, tail.time, _exact(tail.lows[0]), _exact(tail.highs[0])
        ):
            self.ended = f"liquidated at {tail.time}"
        self.book.price = close
        coins = account.balances.get(self.rules.base, ZERO) * close
        equity = account.equity(quote) + coins
        fees = account.fees.get(quote, ZERO) - self._opening_fees
        rollover = account.rollovers.get(quote, ZERO)
        net = equity - self.costs.balance
        first = self._first_open
        peak, low = ((_exact(a) + _exact(h) * _exact(p)) for _, a, h, p in self._deepest)
        return Result(
            pair=self.rules.altname, interval_s=self.plan.interval_s, begin=self._begin,
            end=tail.time + tail.interval_s, candles=self._candles, turns=self._turns,
            trips=self._trips, won=self._won, orders=self._orders,
            gross=net + fees + self._opening_fees + rollover, fees=fees,
            opening_fees=self._opening_fees, rollover=rollover, net=net, equity=equity,
            max_drawdown=peak - low, turnover=self._turnover,
            exposure=self._candles_held / self._candles,
            hold=self._volume * (close - first - (close + first) * self.costs.fee_rate),
            ended=self.ended, objection=self.objection,
        )  # fmt: skip

    # -- where the direction turns -------------------------------------------------------------

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
        self._past = closes[-length:]
        self._seen = seen
        return turns

    def _strategy_turns(self, count: int) -> list[tuple[int, int]]:
        """Return the same for any strategy, by asking it about each candle."""
        turns = []
        for at, close in enumerate(self._closes[:count]):
            price = _exact(close)
            self._window = [*self._window[1 - WINDOW :], Candle(at, price, price, price, price)]
            direction = int(self.plan.strategy(self._window).direction)
            if direction and direction != self._seen:
                self._seen = direction
                turns.append((at, direction))
        return turns

    # -- from event to event -------------------------------------------------------------------

    def _run(self, begin: int, end: int, turns: Iterable[tuple[int, int]]) -> None:
        """Decide on the candles from `begin` up to `end`."""
        at = begin
        for turn, direction in (*turns, (end, 0)):
            while at < turn and self.ended is None:
                last = min(turn, end - 1)
                stop = at if self._off_target else self._first_alarm(at, last)
                if stop is None or stop == turn:
                    break
                self._mark(at, stop)
                self._look(stop)
                at = stop + 1
            if self.ended is not None:
                return
            if turn == end:
                if at < end:
                    self._mark(at, end - 1)
                return
            alarm = self._off_target or self._first_alarm(at, turn) is not None
            self._mark(at, turn)
            self._direction = direction
            if alarm or not self._quick or not self._turn(turn, direction):
                self._look(turn)
            at = turn + 1

    def _first_alarm(self, at: int, last: int) -> int | None:
        """Return the first candle after which a rollover is due or the price needs a look."""
        sign = self._sign
        if not sign:
            return None
        interval_s = self.plan.interval_s
        first = last + 1
        if self._time + (last + 1) * interval_s + WAKE_DELAY_S >= self._due:
            first = max(-int((self._time + WAKE_DELAY_S - self._due) // interval_s) - 1, at)
        # The open of the candle after counts too: that is where the position is marked.
        if (self._low <= self._alarm) if sign > 0 else (self._high >= self._alarm):
            for number in range(at, min(last + 2, len(self._closes))):
                price = float((self._lows if sign > 0 else self._highs)[number])
                if (price <= self._alarm) if sign > 0 else (price >= self._alarm):
                    return min(first, max(number - 1, at))
        return first if first <= last else None

    def _turn(self, at: int, direction: int) -> bool:
        """Close and open the other way, where nothing can speak against it; else return False."""
        price = _exact(self._opens[at + 1])
        opened = float(price)
        now = self._time + (at + 1) * self.plan.interval_s + WAKE_DELAY_S
        recent, book, account = self._recent, self.book, self.account
        if (
            direction != -self._sign
            or book.held != self._volume
            or opened < self._price_min
            or self._fixed + self._held * opened < opened * self._need
            or (len(recent) > self._orders_a_turn and recent[1] > now - DAY_S
                and len(recent) == recent.maxlen)
        ):  # fmt: skip
            return False
        price = self._price(price, direction)
        try:
            trades = account.fill(book, now, direction, self._twice, price, self.plan.leverage)
        except RefusedError:
            return False
        recent.extend((now,) * self._orders_a_turn)
        self._orders += self._orders_a_turn
        reason = "average rises" if direction > 0 else "average falls"
        self._count(now, direction, reason, trades, self._orders_a_turn)
        self._look_up()
        return True

    def _may_be_quick(self) -> bool:
        """Set the bounds inside which an ordinary turn meets no objection."""
        plan, rules = self.plan, self.rules
        limits = [rules.long_position_limit, rules.short_position_limit]
        spread = 200 * self._half / plan.limits.max_spread_percent
        self._price_min = 1.001 * float(max(spread, rules.costmin / max(self._volume, self._half)))
        level = max(Decimal(1), plan.limits.min_margin_level / 100)
        share = (level + 1) / (plan.leverage or 1) + 4 * self.costs.fee_rate
        self._need = 1.01 * float(self._twice * (share + self.costs.slippage))
        self._orders_a_turn = 1 if plan.one_order else 2
        return (
            rules.status == "online"
            and plan.leverage in rules.leverages_buy
            and plan.leverage in rules.leverages_sell
            and self._volume == plan.size >= rules.ordermin
            and all(limit is None or self._twice <= limit for limit in limits)
            and (self._recent.maxlen or 0) > 2
        )

    # -- one candle as the live tick sees it ---------------------------------------------------

    def _look(self, at: int) -> None:
        """Do after candle `at` all that a tick does."""
        account, book, plan = self.account, self.book, self.plan
        opened = _exact(self._opens[at + 1])
        now = self._time + (at + 1) * plan.interval_s + WAKE_DELAY_S
        quote = Quote(opened - self._half, opened + self._half)
        charged = account.rollovers.get(self.rules.quote, ZERO)
        lost = account.sweep(book, now, _exact(self._lows[at]), _exact(self._highs[at]))
        lost = account.advance(book, now, opened) or lost
        if lost is not None:
            self._count(now, -self._sign, "liquidated", (lost,))
            self._look_up()
            self.ended = f"liquidated at {now}: the bot would stop here"
            return
        charged = account.rollovers.get(self.rules.quote, ZERO) - charged
        tried: set[Purpose] = set()
        self._off_target = False
        for _ in range(ROUNDS_MAX):
            held = book.volume if plan.leverage else account.balances.get(self.rules.base, ZERO)
            self._check_loss(held, _exact(self._closes[at]), charged, now)
            if self.ended is not None:
                break
            step = decide(self._snapshot(held, tried), plan).step
            if step is None:
                break
            today = sum(time > now - DAY_S for time in self._recent)
            around = Surroundings(
                "online", quote, self.rules, held, self._summary(), today, self.costs.fee_rate, 0.0
            )
            against = objection(step, plan.leverage, around, plan.limits)
            tried.add(step.purpose)
            if against is not None:
                self._off_target = True
                self.objection = self.objection or against.reason
                if step.purpose is not Purpose.TURN or against.passing:
                    break
                continue
            self._recent.append(now)
            self._orders += 1
            slipped = Quote(self._price(opened, -1), self._price(opened, 1))
            side, volume = step.side, step.volume
            price = slipped.ask if side.sign > 0 else slipped.bid
            refused = refusal(self.rules, side, volume, plan.leverage, price, step.reduce_only)
            try:
                if refused:
                    raise RefusedError(refused)
                trades = execute(
                    account, book, now, side, volume, slipped, plan.leverage, step.reduce_only,
                    self._orders,
                )  # fmt: skip
            except RefusedError as error:
                self.objection = self.objection or str(error)
                self._off_target = True
                self._fruitless += 1
                if self._fruitless >= FRUITLESS_MAX:
                    self.ended = f"{FRUITLESS_MAX} orders in a row refused at {now}: {error}"
                    break
                continue
            self._fruitless = 0
            reason = "average rises" if self._direction > 0 else "average falls"
            self._count(now, side.sign, self._flatten or reason, trades)
        self._look_up()

    def _snapshot(self, held: Decimal, tried: set[Purpose]) -> Snapshot:
        direction = Direction(self._direction)
        if not self._entered and direction:
            self._first = self._first or direction
            self._entered = self._first != direction
        waits = None if self._entered else direction
        return Snapshot(Signal(direction, ZERO, 0), held, self.rules, waits, self._flatten, tried)

    def _summary(self) -> MarginSummary:
        account, quote = self.account, self.rules.quote
        balance = account.balances.get(quote, ZERO)
        if not self.plan.leverage:
            return MarginSummary(balance, ZERO, ZERO)
        return MarginSummary(balance, account.unrealized(quote), account.used_margin(quote))

    def _check_loss(self, held: Decimal, close: Decimal, charged: Decimal, now: int) -> None:
        """Latch max_loss as the bot does; what was charged just now is booked after the check."""
        limit = self.plan.limits.max_loss
        if limit is None:
            return
        balance = self.account.balances[self.rules.quote] + charged
        worth = balance + held * close - self.book.cost_left * self.book.sign
        loss = self.costs.balance - worth
        if not self._flatten and loss >= limit:
            self._flatten = f"the loss is {loss:.2f}, max_loss is {limit}"
        if self._flatten and abs(held) < self.rules.ordermin:
            self.ended = f"{self._flatten}: the bot would stop at {now}"

    # -- what is kept of it --------------------------------------------------------------------

    def _price(self, opened: Decimal, direction: int) -> Decimal:
        """Return the price of a fill: the quote's side and the slippage, in whole ticks."""
        if self.costs.slippage:
            opened = (opened * (1 + direction * self.costs.slippage)).quantize(self._half)
        return opened + self._half if direction > 0 else opened - self._half

    def _count(
        self, now: int, direction: int, reason: str, trades: Sequence[Trade], orders: int = 1
    ) -> None:
        balance = self.account.balances[self.rules.quote]
        for trade in trades:
            self._turnover += trade.cost
            if trade.closing or (not self.plan.leverage and direction < 0):
                self._trips += 1
                after = balance
                if trade is not trades[-1]:
                    after = balance + trades[-1].fee + trades[-1].opening_fee
                self._won += after > self._worth
                self._worth = after
            else:
                self._turns += 1
                self._opening_fees += trade.opening_fee
            if self.fills.maxlen != 0:
                order = self._orders - (orders > 1 and trade is not trades[-1])
                self.fills.append(Fill(now, order, direction, reason, trade))

    def _look_up(self) -> None:
        """Read from the books what quiet candles are measured by. Floats: to compare and draw."""
        account, book, plan = self.account, self.book, self.plan
        self._sign = sign = book.sign
        balance = account.balances[self.rules.quote]
        if not sign:
            self._fixed = float(balance)
            self._held = float(account.balances.get(self.rules.base, ZERO))
            self._due = self._alarm = 0.0
            if self._held and plan.limits.max_loss is not None:
                self._off_target = True
            return
        self._due = book.lots[0].due if len(book.lots) == 1 else account.next_rollover(book) or 0.0
        held, cost = float(book.held), float(book.cost_left)
        self._held = held * sign
        self._fixed = float(balance - book.cost_left if sign > 0 else balance + book.cost_left)
        stop = self.rules.margin_stop / 100 / plan.leverage
        floor = (
            float(self.costs.balance - plan.limits.max_loss)
            if plan.limits.max_loss is not None
            else float("-inf")
        )
        if sign > 0:
            self._alarm = 1.001 * (max(stop * cost, floor) - self._fixed) / held
        else:
            self._alarm = 0.999 * min(self._fixed / (1 + stop), self._fixed - floor) / held

    def _mark(self, begin: int, end: int) -> None:
        """Follow the equity over the closes of candles `begin` to `end`, for the drawdown."""
        closes, fixed, held = self._closes[begin : end + 1], self._fixed, self._held
        if held:
            self._candles_held += end + 1 - begin
        high, low = max(closes), min(closes)
        best, worst = (high, low) if held >= 0 else (low, high)
        top = fixed + held * best
        if top <= self._peak[0] and self._peak[0] - fixed - held * worst <= self._drawdown:
            return
        for close in closes:
            equity = fixed + held * close
            if equity > self._peak[0]:
                self._peak = (equity, fixed, held, close)
            elif self._peak[0] - equity > self._drawdown:
                self._drawdown = self._peak[0] - equity
                self._deepest = (self._peak, (equity, fixed, held, close))

    def _draw(self, begin: int, end: int) -> None:
        close = self._closes[end - 1]
        quote = self.rules.quote
        equity = self._fixed + self._held * close
        paid = self.account.fees.get(quote, ZERO) + self.account.rollovers.get(quote, ZERO)
        self.points.append(
            Point(
                self._time + end * self.plan.interval_s, min(map(float, self._lows[begin:end])),
                max(map(float, self._highs[begin:end])), close, equity, equity + float(paid),
                self._held,
            )
        )  # fmt: skip
        for number in range(begin, end):
            ended = self._time + (number + 1) * self.plan.interval_s
            self.newest.append((ended, self._closes[number]))
        if len(self.points) >= POINTS_MAX:
            self.step *= 2
            self.points = [
                b._replace(low=min(a.low, b.low), high=max(a.high, b.high))
                for a, b in zip(self.points[::2], self.points[1::2], strict=True)
            ]


def _exact(price: Price) -> Decimal:
    return Decimal(price.decode() if isinstance(price, bytes) else repr(price))
