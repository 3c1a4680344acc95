"""The bot's decisions over columns of candles: the same rules, orders, fees and margin as live.

After candle n is finished an order fills at the open of candle n + 1, a second into it, at the
ask or bid one tick away. Candles without an event cost one comparison of two closes; the exact
books move only at fills, rollovers and near liquidation. Ordinary turns are worked out in whole
cost steps, many at once; anything else goes through the same pure functions as a live tick.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from math import inf
from typing import NamedTuple

from krakenbot.backtest.files import DIGITS, BadDataError, Columns, exact, numbers, units
from krakenbot.decision import Blocked, Plan, Snapshot, decide
from krakenbot.errors import RefusedError
from krakenbot.model import (
    ZERO,
    Candle,
    Direction,
    MarginRates,
    MarginSummary,
    Purpose,
    Quote,
    Side,
    Signal,
    Step,
)
from krakenbot.pairs import PairRules
from krakenbot.risk import RiskInputs, objection
from krakenbot.simulated.books import ROLLOVER_S, Account, Book, Lot, Trade, execute
from krakenbot.simulated.books import objection as refusal
from krakenbot.strategy import sma_slope

WAKE_DELAY_S = 1
ROUNDS_MAX = 3
UNFILLED_MAX = 5
DAY_S = 86400
WINDOW = 720
_REASONS = {way.value: way.name.lower() for way in Direction}
# Candle, direction, price in units of the columns; cost, fee and opening fee in cost steps.
_Turn = tuple[int, int, int, tuple[int, int, int]]


class Costs(NamedTuple):
    """What trading costs: fractions, and the money at the start."""

    fee_rate: Decimal
    balance: Decimal
    slippage: Decimal = ZERO
    margin_rates: Mapping[str, Decimal] = {}  # By the asset that is lent.

    @classmethod
    def of(
        cls,
        fee_rate: Decimal,
        balance: Decimal,
        rules: PairRules,
        rates: MarginRates,
        slippage: Decimal = ZERO,
    ) -> "Costs":
        """Return the costs on one pair; a rate that is not known is 0.02 %."""
        by_asset = {rules.quote: rates.of(Side.BUY), rules.base: rates.of(Side.SELL)}
        return cls(fee_rate, balance, slippage, by_asset)


class Fill(NamedTuple):
    """One part of an order, which may close and open. `order` counts from 1."""

    time: int
    order: int
    direction: int
    reason: str
    closing: bool
    volume: Decimal
    price: Decimal
    cost: Decimal
    fee: Decimal
    opening_fee: Decimal


class Result(NamedTuple):
    """What came of it. Money in quote currency; shares and rates as fractions."""

    pair: str
    interval_s: int
    begin: int
    end: int
    days: float
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


class Replay:
    """One plan over one series, handed in part by part. Keeps the newest `keep` fills."""

    def __init__(self, plan: Plan, rules: PairRules, costs: Costs, keep: int | None = 0) -> None:
        self.plan, self.rules, self.costs = plan, rules, costs
        money = {rules.quote: costs.balance}
        self.account = Account(money, costs.fee_rate, margin_rates=costs.margin_rates)
        self.book = self.account.book(rules)
        self.fills: deque[Fill] = deque(maxlen=keep)
        self.ended: str | None = None
        self.objection: str | None = None
        slope = getattr(plan.strategy, "func", None) is sma_slope
        self._length = plan.candles_min - 1 if slope else 0
        self._window: list[Candle] = []
        self._part: Columns | None = None
        self._begin, self._first_open, self._candles, self._candles_held = 0, ZERO, 0, 0
        self._seen: int | None = None
        self._direction: int | None = None
        self._first: int | None = None
        self._entered, self._off_target, self._flatten = plan.entry_now, True, ""
        self._too_dear, self._allowed_at = inf, 0
        self._recent: deque[int] = deque()
        self._turns = self._trips = self._won = self._orders = self._fruitless = 0
        self._turnover = self._opening_fees = ZERO
        self._worth = costs.balance
        self._set_bounds()
        self._peak, self._drawdown = self._steps(costs.balance), 0.0
        self._look_up()

    def feed(self, part: Columns) -> None:
        """Go on with the next candles; all but the newest of them are decided on."""
        before, at = self._part, 0
        self._candles += len(part.closes)
        if before is None:
            self._begin, self._first_open = part.time, exact(part.opens[0])
        else:
            # The newest candle is not decided on yet, and the strategy looks back from it.
            at = min(len(before.closes) - 1, self._length)
            part = before.cut(len(before.closes) - 1 - at, len(before.closes)).joined(part)
        self._part = part
        self._time, _, self._low, self._high, self._opens, self._highs, self._lows, _ = part
        self._closes = part.closes
        if self.ended is None:
            self._run(at, len(part.closes) - 1)

    def result(self) -> Result:
        """Return what came of it, what is held valued at the last close."""
        if self._part is None or self._candles < 2:
            raise BadDataError("fewer than two candles of this interval")
        account, quote, part = self.account, self.rules.quote, self._part
        last = len(part.closes) - 1
        self._mark(last, last + 1, self._fixed, self._held)
        low, high, price = exact(part.lows[-1]), exact(part.highs[-1]), exact(part.closes[-1])
        if self.ended is None and account.sweep(self.book, part.end, low, high):
            self.ended = f"liquidated at {part.end}"
        equity, costs = self.worth()
        net, rollover = equity - self.costs.balance, account.rollovers.get(quote, ZERO)
        fees = costs - self._opening_fees - rollover
        first, days = self._first_open, (part.end - self._begin) / DAY_S
        return Result(
            pair=self.rules.altname,
            interval_s=part.interval_s,
            begin=self._begin,
            end=part.end,
            days=days,
            candles=self._candles,
            turns=self._turns,
            turns_per_day=self._turns / days,
            win_rate=self._won / self._trips if self._trips else None,
            orders=self._orders,
            gross=net + costs,
            fees=fees,
            opening_fees=self._opening_fees,
            rollover=rollover,
            net=net,
            max_drawdown=round(self._drawdown) * self.book.cost_step,
            exposure=self._candles_held / self._candles,
            break_even_fee=(net + fees) / self._turnover if self._turnover else None,
            hold=self._volume * (price - first - (price + first) * self.costs.fee_rate),
            ended=self.ended,
            objection=self.objection,
        )

    @property
    def held(self) -> Decimal:
        """Return the signed volume of the position, without leverage the coins."""
        coins = self.account.balances.get(self.rules.base, ZERO)
        return self.book.volume if self.plan.leverage else coins

    def worth(self) -> tuple[Decimal, Decimal]:
        """Return equity at the newest close, and all costs so far."""
        account, quote = self.account, self.rules.quote
        assert self._part is not None
        self.book.price = price = exact(self._part.closes[-1])
        coins = account.balances.get(self.rules.base, ZERO) * price
        costs = account.fees.get(quote, ZERO) + account.rollovers.get(quote, ZERO)
        return account.equity(quote) + coins, costs

    def _run(self, at: int, last: int) -> None:
        """Decide on the candles from number `at` up to `last`."""
        turns = self._slope_turns(at, last) if self._length else self._strategy_turns(at, last)
        ahead = self._priced(turns)
        while self.ended is None:
            if made := self._ride(ahead, at):
                at, ahead = ahead[made - 1][0] + 1, ahead[made:]
            turn = ahead[0][0] if ahead else last
            stop = min(self._next_look(at, turn), turn)
            self._mark(at, min(stop + 1, last), self._fixed, self._held)
            if stop == last:
                return
            if stop == turn:
                self._direction = ahead[0][1]
                ahead = ahead[1:]
            if self._wake(stop) >= self._allowed_at:
                self._look(stop)
            at = stop + 1

    def _slope_turns(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return number and new direction of each candle at which the average turns."""
        length, seen, turns = self._length, self._seen or 0, []
        begin = max(begin, length)
        pairs = zip(self._closes[begin - length :], self._closes[begin:end], strict=False)
        for at, (before, close) in enumerate(pairs, begin):
            if seen < 1 and close > before:
                seen = 1
                turns.append((at, 1))
            elif seen > -1 and close < before:
                seen = -1
                turns.append((at, -1))
        self._seen = seen
        return turns

    def _strategy_turns(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the same for any strategy, by asking it about each candle."""
        turns: list[tuple[int, int]] = []
        part = self._part
        assert part is not None
        if len(self._window) > WINDOW:
            del self._window[:-WINDOW]
        prices = zip(*(map(exact, column[begin:end]) for column in part[4:]), strict=True)
        for at, candle in enumerate(prices, begin):
            self._window.append(Candle(part.time + at * part.interval_s, *candle))
            direction = self.plan.strategy(self._window).direction
            if direction is not None and direction != self._seen:
                self._seen = direction
                turns.append((at, direction))
        return turns

    def _next_look(self, at: int, turn: int) -> int:
        """Return the first candle after which an order is missing, a rollover is due or the price
        is near an end; beyond `turn` when there is none before."""
        if self._off_target:
            # What could not be paid at one price cannot be at a higher one.
            opens, dear = self._opens, self._too_dear
            later = range(max(at, self._candle(self._allowed_at)), turn)
            return next((number for number in later if units(opens[number + 1]) < dear), turn)
        if not self._sign:
            return turn + 1
        stop = min(turn + 1, max(at, self._candle(self._due)))
        # The open of the candle after counts too: that is where the position is marked.
        prices, worst = (self._lows, self._low) if self._sign > 0 else (self._highs, self._high)
        if not self._outlives(worst):
            for number in range(at, min(turn + 2, len(prices))):
                if not self._outlives(units(prices[number])):
                    return min(stop, max(number - 1, at))
        return stop

    def _outlives(self, price: int) -> bool:
        """Return whether the position goes on at a price, with a thousandth of it to spare."""
        value = self._held * price
        used = self._cost if self._sign > 0 else -value
        return bool(self._fixed + value - abs(value) / 1000 > max(self._stop * used, self._floor))

    def _mark(self, begin: int, end: int, fixed: float, held: float) -> None:
        """Follow the equity over the closes of candles `begin` up to `end`, for the drawdown."""
        peak = self._peak
        if held:
            self._candles_held += end - begin
        low, high = (self._low, self._high) if held >= 0 else (self._high, self._low)
        # Most stretches of a candle part cannot matter, whatever their closes are.
        if fixed + held * high <= peak and peak - fixed - held * low <= self._drawdown:
            return
        closes = self._closes[begin:end]
        if closes and fixed + held * high <= peak:
            closes = [min(closes) if held >= 0 else max(closes)]
        for close in numbers(closes):
            equity = fixed + held * close
            if equity > peak:
                self._peak = peak = equity
            elif peak - equity > self._drawdown:
                self._drawdown = peak - equity

    def _priced(self, turns: Sequence[tuple[int, int]]) -> list[_Turn]:
        """Return what each turn would be filled at and cost, whatever the account holds."""
        opens, tick = numbers([self._opens[at + 1] for at, _ in turns]), units(self._tick)
        prices = [
            units(self._price(exact(opened), way)) if self.costs.slippage else opened + way * tick
            for opened, (_, way) in zip(opens, turns, strict=True)
        ]
        charges = whole_charges(self.account, self.book, self._volume, prices)
        rows = zip(turns, prices, charges, strict=True)
        return [(at, direction, price, charge) for (at, direction), price, charge in rows]

    def _ride(self, ahead: Sequence[_Turn], at: int) -> int:
        """Take the turns that nothing can speak against and before which nothing else comes.

        Each closes and opens the other way. Returns how many; afterwards they are in the books.
        """
        sign, due, recent, held = self._sign, self._due, self._recent, abs(self._held)
        room = self.plan.limits.max_orders_per_day - self._orders_a_turn
        if (
            not (self._quick and sign and ahead)
            or self._off_target
            or self._low < self._price_min
            or self.book.held != self._volume
        ):
            return 0
        # What is held changes the equity by this much at the ends of this part of the candles.
        worst = {1: held * self._low, -1: -held * self._high}
        best = {1: held * self._high, -1: -held * self._low}
        enough = self._need * best[1] + max(self._stop * self._cost, self._floor)
        start, step = self.account.balances[self.rules.quote], self.book.cost_step
        balance, worth = self._steps(start), int((self._worth - start) / step)
        gain, won, paid, stretches, rises = 0, 0, int(self._cost), [], False
        for turn, direction, _, (cost, fee, opening_fee) in ahead:
            now, fixed = self._wake(turn), balance + gain - sign * paid
            if (
                direction != -sign
                or now >= due
                or fixed + worst[sign] <= enough
                or (len(recent) > room and self._sent(now) > room)
            ):
                break
            recent.extend((now,) * self._orders_a_turn)
            stretches.append((at, turn + 1, fixed, sign * held))
            rises = rises or fixed + best[sign] > self._peak
            worth, before = gain + (cost - paid) * sign - fee, worth
            gain = worth - fee - opening_fee
            won += worth > before
            sign, paid, due, at = direction, cost, now + ROLLOVER_S, turn + 1
        # Where nothing rises above the peak, most drawdowns are less than that at the end.
        for stretch in stretches if rises else reversed(stretches):
            self._mark(*stretch)
        if stretches:
            self._won += won
            self._worth = start + worth * step
            self._settle(ahead[: len(stretches)], gain * step)
        return len(stretches)

    def _settle(self, made: Sequence[_Turn], gain: Decimal) -> None:
        """Enter turns into the books; `gain` is by how much they change the balance."""
        step, order = self.book.cost_step, self._orders
        for at, direction, price, charge in made if self.fills.maxlen != 0 else ():
            cost, fee, opening_fee = (step * amount for amount in charge)
            first, order = order + 1, order + self._orders_a_turn
            fill = Fill(
                self._wake(at),
                first,
                direction,
                _REASONS[direction],
                True,
                self._volume,
                exact(price),
                cost,
                fee,
                ZERO,
            )
            opened = fill._replace(order=order, closing=False, opening_fee=opening_fee)
            self.fills.extend((fill, opened))
        charges = [charge for *_, charge in made]
        now = self._wake(made[-1][0])
        enter_turns(self.account, self.book, now, charges, gain, self.plan.leverage)
        self._turnover += 2 * step * sum(cost for cost, _, _ in charges)
        self._opening_fees += step * sum(opening_fee for _, _, opening_fee in charges)
        self._turns += len(made)
        self._trips += len(made)
        self._orders += len(made) * self._orders_a_turn
        self._direction = made[-1][1]
        self._look_up()

    def _set_bounds(self) -> None:
        """Set what never changes, and the bounds inside which a turn meets no objection."""
        plan, rules, costs = self.plan, self.rules, self.costs
        self._orders_a_turn = 1 if plan.one_order else 2
        self._tick = Decimal(1).scaleb(-rules.pair_decimals)
        self._volume = rules.round_volume(plan.size)
        limits, leverage, loss = plan.limits, plan.leverage or 1, plan.limits.max_loss
        price_min = max(
            200 * self._tick / limits.max_spread_percent, rules.costmin / (self._volume or 1)
        )
        self._price_min = 1.001 * float(price_min) * 10**DIGITS
        share = max(Decimal(1), limits.min_margin_level / 100) + 1
        self._need = 2.02 * float(share / leverage + 4 * costs.fee_rate + costs.slippage)
        self._stop = float(rules.margin_stop) / 100 / leverage
        self._floor = -inf if loss is None else self._steps(costs.balance - loss)
        sizes = rules.long_position_limit, rules.short_position_limit
        self._quick = (
            not costs.margin_rates
            and rules.status == "online"
            and plan.leverage in {*rules.leverages_buy} & {*rules.leverages_sell}
            and self._volume == plan.size >= rules.ordermin
            and all(size is None or 2 * self._volume <= size for size in sizes)
        )

    def _look_up(self) -> None:
        """Read from the books what quiet candles are measured by, to compare and draw only.

        Equity at a price in the units of the columns is `_fixed` and `_held` times it.
        """
        self._sign, self._held = self.book.sign, self._steps(self.held) / 10**DIGITS
        self._due = min((lot.due for lot in self.book.lots), default=0.0)
        if not self._sign and self._held and self.plan.limits.max_loss is not None:
            self._off_target = True
        self._cost = self._steps(self.book.cost_left)
        balance = self.account.balances[self.rules.quote]
        self._fixed = self._steps(balance) - self._sign * self._cost

    def _steps(self, money: Decimal) -> float:
        return float(money.scaleb(self.rules.cost_decimals))

    def _wake(self, at: int) -> int:
        """Return when candle `at` is decided on."""
        return self._time + (at + 1) * self.plan.interval_s + WAKE_DELAY_S

    def _candle(self, moment: float) -> int:
        """Return the first candle that is decided on at this moment or later."""
        return -int((self._time + WAKE_DELAY_S - moment) // self.plan.interval_s) - 1

    def _sent(self, now: int) -> int:
        """Return how many orders were sent in the 24 h before, and forget older ones."""
        while self._recent and self._recent[0] <= now - DAY_S:
            self._recent.popleft()
        return len(self._recent)

    def _look(self, at: int) -> None:
        """Do after candle `at` all that a tick does."""
        account, book, quote = self.account, self.book, self.rules.quote
        opened, now = exact(self._opens[at + 1]), self._wake(at)
        charged = account.rollovers.get(quote, ZERO)
        lost = account.sweep(book, now, exact(self._lows[at]), exact(self._highs[at]))
        lost = account.advance(book, now, opened) or lost
        charged = account.rollovers.get(quote, ZERO) - charged
        self._off_target, self._too_dear, self._allowed_at = False, inf, 0
        if lost is not None:
            self._count(now, -self._sign, "liquidated", (lost,))
            self.ended = f"liquidated at {now}: the bot would stop here"
        direction = None if self._direction is None else Direction(self._direction)
        signal, sent = Signal(direction, ZERO, 0), dict[Purpose, Blocked]()
        if not self._entered and direction is not None:
            self._first = direction if self._first is None else self._first
            self._entered = self._first != direction
        for _ in range(ROUNDS_MAX if lost is None else 0):
            held = self.held
            self._check_loss(held, exact(self._closes[at]), charged, now)
            if self.ended is not None:
                break
            waits = None if self._entered else direction
            snapshot = Snapshot(signal, held, self.rules, waits, self._flatten or None, sent)
            step = decide(snapshot, self.plan).step
            if step is None or not self._place(step, held, opened, now):
                break
            sent[step.purpose] = Blocked("ordered in this candle already", None)
        self._look_up()

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
        today, today_max, money = self._sent(now), plan.limits.max_orders_per_day, rules.quote
        summary = MarginSummary(
            account.balances[money], account.unrealized(money), account.used_margin(money)
        )
        fee_rate = self.costs.fee_rate
        inputs = RiskInputs("online", quote, rules, held, summary, today, fee_rate, 0.0)
        against = objection(step, plan.leverage, inputs, plan.limits)
        if against is not None:
            self._off_target = True
            self.objection = self.objection or against.reason
            if not (held or against.passing) and today >= today_max:
                self._allowed_at = self._recent[today - today_max] + DAY_S
            elif not (held or against.passing):
                self._too_dear = units(opened) if step.volume * opened >= rules.costmin else inf
            return step.purpose is Purpose.REVERSE and not against.passing
        self._recent.append(now)
        self._orders += 1
        side, volume, reduces = step.side, step.volume, step.reduce_only
        price = self._price(opened, side.sign)
        try:
            if refused := refusal(rules, side, volume, plan.leverage, price, reduces):
                raise RefusedError(refused)
            trades = execute(
                account,
                self.book,
                now,
                side,
                volume,
                Quote(price, price),
                plan.leverage,
                reduces,
                self._orders,
            )
        except RefusedError as error:
            self.objection = self.objection or str(error)
            self._off_target = True
            self._fruitless += 1
            if self._fruitless >= UNFILLED_MAX:
                self.ended = f"{UNFILLED_MAX} orders in a row refused at {now}: {error}"
            return self.ended is None
        self._fruitless = 0
        self._count(now, side.sign, self._flatten or _REASONS[self._direction or 0], trades)
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
            self.fills.append(Fill(now, order, direction, reason, trade.closing, *trade[1:6]))


def whole_charges(
    account: Account, book: Book, volume: Decimal, prices: Iterable[int]
) -> Iterator[tuple[int, int, int]]:
    """Yield cost, fee and opening fee at each price, all as whole numbers of the cost step.

    A price is a whole number of 10**-DIGITS. Rounded half to even, as the books do it.
    """
    share = volume * Decimal(1).scaleb(-DIGITS) / book.cost_step
    shares = (share, account.fee_rate, account.margin_rate)
    (p, per_p), (f, per_f), (m, per_m) = (share.as_integer_ratio() for share in shares)
    for price in prices:
        cost, rest = divmod(price * p, per_p)
        cost += 2 * rest + (cost & 1) > per_p
        fee, rest = divmod(cost * f, per_f)
        fee += 2 * rest + (fee & 1) > per_f
        opening_fee, rest = divmod(cost * m, per_m)
        yield cost, fee, opening_fee + (2 * rest + (opening_fee & 1) > per_m)


def enter_turns(
    account: Account,
    book: Book,
    now: float,
    charges: Sequence[tuple[int, int, int]],
    gain: Decimal,
    leverage: int,
) -> None:
    """Enter into the books that all was closed and as much opened the other way at each charge.

    The last turn was `now`; all of them changed the balance by `gain`. Nothing is checked and no
    ledger written.
    """
    step, quote, (cost, *fees) = book.cost_step, book.rules.quote, charges[-1]
    paid = step * sum(2 * fee + opening_fee for _, fee, opening_fee in charges)
    sign = -book.sign if len(charges) % 2 else book.sign
    account.serial += 2 * len(charges)
    account.revision += 2 * len(charges)
    book.cost_left = step * cost
    book.lots = [
        Lot(
            account.serial,
            0,
            now,
            sign,
            book.held,
            ZERO,
            book.cost_left,
            book.cost_left,
            leverage,
            step * sum(fees),
            account.margin_rate,
            now + ROLLOVER_S,
        )
    ]
    account.realized[quote] = account.realized.get(quote, ZERO) + gain + paid
    account.fees[quote] = account.fees.get(quote, ZERO) + paid
    account.balances[quote] += gain
