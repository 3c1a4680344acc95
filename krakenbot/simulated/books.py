"""The books of a simulated account: spot balances and margin lots. Arithmetic only, no I/O.

Each quote currency is a margin account of its own: its balance is the collateral for the pairs
quoted in it, and no other asset counts. The opening fee and each rollover are charged at the rate
of the currency borrowed (quote for a long, base for a short), which is fixed when a lot is opened.
Costs, fees, opening fees, rollovers and the opening cost of a closed part are each rounded once,
half to even, to the pair's cost decimals. Everything else is a sum of these, so
equity = start - fees - rollover + realized + unrealized holds to the last digit.

Documented: margin fees (support.kraken.com 206161568), closing the oldest lots first, liquidation
at the margin stop (articles on closing and on margin levels). Simplified: the collateral. Assumed:
the rounding.
"""

from base64 import b32encode
from collections import defaultdict, deque
from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from hashlib import blake2b
from operator import attrgetter
from typing import NamedTuple

from krakenbot.errors import RefusedError
from krakenbot.model import MARGIN_RATE_ASSUMED, ZERO, MarginSummary, Order
from krakenbot.pairs import PairRules

ROLLOVER_S = 14400  # Source: support.kraken.com 206161568.
AMOUNT_MAX = Decimal(10**15)  # Sums of smaller amounts can still be rounded exactly.


class Trade(NamedTuple):
    """One fill. `fee` is the trade fee; `opening_fee` is 0 unless it opens a lot."""

    serial: int
    volume: Decimal
    price: Decimal
    cost: Decimal
    fee: Decimal
    opening_fee: Decimal = ZERO
    closing: bool = False


class Entry(NamedTuple):
    """One ledger entry, with Kraken's names."""

    serial: int
    refid: int
    time: float
    type: str
    asset: str
    amount: Decimal
    fee: Decimal
    balance: Decimal


class Lot(NamedTuple):
    """What one fill opened. `cost` is its cost, `cost_left` that of the part still open.

    `sign` is 1 for a long; `rate` is the fraction charged at each rollover, `due` the time of the
    next one; `fee` includes the opening fee.
    """

    serial: int
    time: float
    sign: int
    volume: Decimal
    closed: Decimal
    cost: Decimal
    cost_left: Decimal
    leverage: int
    fee: Decimal
    rate: Decimal
    due: float

    @property
    def open_volume(self) -> Decimal:
        """Return the volume that is not closed yet, never negative."""
        return self.volume - self.closed

    def loan(self, price: Decimal) -> Decimal:
        """Return the loan in quote currency: a long's cost, a short's coins valued at `price`."""
        return self.cost_left if self.sign > 0 else self.open_volume * price


class MarginPosition:
    """The open lots of one pair, oldest first, all on one side. `price` is the latest mark.

    `held` (never negative) and `cost_left` are the sums over the lots: a backtest needs them at
    every turn.
    """

    def __init__(self, rules: PairRules) -> None:
        self.rules = rules
        self.lots: list[Lot] = []
        self.held = self.cost_left = self.price = ZERO

    @property
    def sign(self) -> int:
        """Return 1 for a long, -1 for a short, 0 if flat."""
        return self.lots[0].sign if self.lots else 0

    @property
    def volume(self) -> Decimal:
        """Return the signed open volume."""
        return self.held * self.sign

    def unrealized(self) -> Decimal:
        """Return the profit of the lots at the latest mark, in quote currency."""
        return (self.held * self.price - self.cost_left) * self.sign

    def used_margin(self) -> Decimal:
        """Return each lot's loan over its leverage, summed, in quote currency."""
        return sum((lot.loan(self.price) / lot.leverage for lot in self.lots), ZERO)


class Account:
    """Balances, positions and ledger of one account. `serial` rises with every change.

    `fees` (trades and openings), `rollovers` and `realized` profits before costs are sums by asset.
    """

    def __init__(
        self,
        balances: Mapping[str, Decimal],
        fee_rate: Decimal,
        *,
        margin_rates: Mapping[str, Decimal] | None = None,
        serial: int = 0,
        history: int = 0,
    ) -> None:
        """`margin_rates` are fractions by the asset borrowed, else MARGIN_RATE_ASSUMED.

        The newest `history` ledger entries are kept, by default none.
        """
        self.balances = defaultdict(Decimal, balances)
        self.fee_rate = fee_rate
        self.margin_rates = dict(margin_rates or {})
        self.serial = serial
        self.positions: dict[str, MarginPosition] = {}
        self.fees = defaultdict[str, Decimal](Decimal)
        self.rollovers = defaultdict[str, Decimal](Decimal)
        self.realized = defaultdict[str, Decimal](Decimal)
        self.ledger = deque[Entry](maxlen=history)

    def position(self, rules: PairRules) -> MarginPosition:
        """Return the pair's position, a new one if there is none, with these rules from now on."""
        position = self.positions.setdefault(rules.pair, MarginPosition(rules))
        position.rules = rules
        return position

    def fill(
        self, position: MarginPosition, now: float, order: Order, price: Decimal
    ) -> list[Trade]:
        """Execute a market order; return its trades, two if it reverses a position.

        Call `advance` with `now` first, so that free margin is current. Opposite lots are closed,
        the oldest first. The rest of the volume opens the other side or, with `reduce_only`, is
        cancelled. An order without leverage is a spot trade and leaves lots as they are. Raises
        RefusedError with Kraken's error, and then changes nothing.
        """
        if not order.leverage:
            return [self._fill_spot(position, now, order, price)]
        is_opposite = position.sign == -order.side.sign
        closing = min(order.volume, position.held) if is_opposite else ZERO
        if order.reduce_only and not closing:
            why = "Cannot increase position" if position.lots else "No position exists"
            raise RefusedError(f"EOrder:Reduce only:{why}")
        rest = order._replace(volume=ZERO if order.reduce_only else order.volume - closing)
        if rest.volume:
            self._check_opening(position, rest, price)
        trades = [self.close(position, now, closing, price)] if closing else []
        if rest.volume:
            trades.append(self._open(position, now, rest, price))
        return trades

    def _fill_spot(
        self, position: MarginPosition, now: float, order: Order, price: Decimal
    ) -> Trade:
        base, quote, sign = position.rules.base, position.rules.quote, order.side.sign
        cost, fee = self._costs(position.rules, order.volume, price)
        own, owed = self.balances.get(base, ZERO), order.volume
        if sign > 0:
            own = min(self.balances.get(quote, ZERO), self.summary(quote).free_margin)
            owed = cost + fee
        if owed > own:
            raise RefusedError("EOrder:Insufficient funds")
        self.serial = serial = self.serial + 1
        self._book(now, "trade", serial, quote, -cost * sign, fee)
        self._book(now, "trade", serial, base, order.volume * sign, ZERO)
        return Trade(serial, order.volume, price, cost, fee)

    def close(self, position: MarginPosition, now: float, volume: Decimal, price: Decimal) -> Trade:
        """Close `volume` of the lots, the oldest first, without any check."""
        quote, sign = position.rules.quote, position.lots[0].sign
        cost, fee = self._costs(position.rules, volume, price)
        realized = (cost - _close_lots(position, volume)) * sign
        self.serial = serial = self.serial + 1
        self.realized[quote] += realized
        self._book(now, "margin", serial, quote, realized, fee)
        return Trade(serial, volume, price, cost, fee, closing=True)

    def reverse(self, position: MarginPosition, now: float, price: Decimal) -> list[Trade]:
        """Close the position and open the same volume on the other side, without any check.

        The same as `close` and `_open`, but cost and fee, which are equal, are computed once, and
        nothing is written to the ledger: a backtest spends a fifth of its time here.
        """
        rules, volume, lot = position.rules, position.held, position.lots[0]
        quote, sign, serial = rules.quote, -lot.sign, self.serial + 1
        cost, fee = self._costs(rules, volume, price)
        rate = self.rate_of_loan(rules, sign)
        opening_fee = round(cost * rate, rules.cost_decimals)
        realized, paid = (position.cost_left - cost) * sign, fee + opening_fee
        self.realized[quote] += realized
        self.fees[quote] += fee + paid
        self.balances[quote] += realized - fee - paid
        self.serial = later = serial + 1
        closed = Trade(serial, volume, price, cost, fee, ZERO, True)
        opened = Trade(later, volume, price, cost, fee, opening_fee)
        due = now + ROLLOVER_S
        lot = Lot(later, now, sign, volume, ZERO, cost, cost, lot.leverage, paid, rate, due)
        position.lots, position.cost_left = [lot], cost
        return [closed, opened]

    def advance(self, position: MarginPosition, now: float, price: Decimal) -> Trade | None:
        """Mark the pair at `price`, charge the rollovers due before `now`; return any liquidation.

        A rollover due exactly at `now` is not charged: a bot closes at the start of a tick and
        opens at its end, so a position held for n times 4 hours ends just before the rollover.
        """
        position.price, rules = price, position.rules
        while due := [lot for lot in position.lots if lot.due < now]:
            lot = min(due, key=attrgetter("due", "serial"))
            fee = round(lot.loan(price) * lot.rate, rules.cost_decimals)
            self._book(lot.due, "rollover", lot.serial, rules.quote, ZERO, fee)
            later = lot._replace(due=lot.due + ROLLOVER_S)
            position.lots[position.lots.index(lot)] = later
        summary = self.summary(rules.quote)
        if position.lots and summary.equity <= rules.margin_stop / 100 * summary.used_margin:
            return self.close(position, now, position.held, price)
        return None

    def liquidate_between(
        self, position: MarginPosition, now: float, low: Decimal, high: Decimal
    ) -> Trade | None:
        """Liquidate at the liquidation price if prices from `low` to `high` reached it."""
        limit = self.liquidation_price(position)
        if limit is None or (low > limit if position.sign > 0 else high < limit):
            return None
        return self.close(position, now, position.held, limit)

    def liquidation_price(self, position: MarginPosition) -> Decimal | None:
        """Return the price at which equity falls to the margin stop if no other pair moves.

        It is rounded to the pair's decimals, against the account; None if there is no such price.
        """
        if not position.lots:
            return None
        rules, used, cost = position.rules, position.used_margin(), position.cost_left
        summary, stop = self.summary(rules.quote), rules.margin_stop / 100
        money = summary.equity - position.unrealized() - stop * (summary.used_margin - used)
        if position.sign > 0:
            price = (stop * used + cost - money) / position.held
        else:
            loans = sum((lot.open_volume / lot.leverage for lot in position.lots), ZERO)
            price = (money + cost) / (position.held + stop * loans)
        step = Decimal(1).scaleb(-rules.pair_decimals)
        rounding = ROUND_DOWN if position.sign > 0 else ROUND_UP
        return price.quantize(step, rounding=rounding) if 0 < price < AMOUNT_MAX else None

    def rate_of_loan(self, rules: PairRules, sign: int) -> Decimal:
        """Return the fraction charged for a position's loan at opening and every 4 hours."""
        lent = rules.quote if sign > 0 else rules.base
        return self.margin_rates.get(lent, MARGIN_RATE_ASSUMED)

    def held_positions(self, quote: str = "") -> list[MarginPosition]:
        """Return the open positions, all or those of one quote currency."""
        return [x for x in self.positions.values() if x.lots and quote in ("", x.rules.quote)]

    def summary(self, quote: str) -> MarginSummary:
        """Return the margin account of a quote currency, at the latest marks."""
        positions = self.held_positions(quote)
        unrealized = sum((position.unrealized() for position in positions), ZERO)
        used = sum((position.used_margin() for position in positions), ZERO)
        return MarginSummary(self.balances.get(quote, ZERO), unrealized, used)

    def deposit(self, now: float, asset: str, amount: Decimal) -> None:
        """Deposit an amount, or withdraw a negative one."""
        self.serial += 1
        kind = "deposit" if amount >= 0 else "withdrawal"
        self._book(now, kind, self.serial, asset, amount, ZERO)

    def _check_opening(self, position: MarginPosition, order: Order, price: Decimal) -> None:
        """Raise RefusedError if Kraken would refuse to open this after closing opposite lots."""
        rules, sign, held = position.rules, order.side.sign, order.volume + position.held
        free = self.summary(rules.quote).free_margin
        if position.sign == -sign:
            closed, closing_fee = self._costs(rules, position.held, price)
            free += position.used_margin() - position.unrealized()
            free -= closing_fee + (closed - position.cost_left) * sign
            held = order.volume
        limit = rules.long_position_limit if sign > 0 else rules.short_position_limit
        if limit is not None and held > limit:
            raise RefusedError("EOrder:Margin position size exceeded")
        cost, fee = self._costs(rules, order.volume, price)
        opening_fee = round(cost * self.rate_of_loan(rules, sign), rules.cost_decimals)
        if cost / order.leverage + fee + opening_fee > free:
            raise RefusedError("EOrder:Insufficient initial margin")

    def _open(self, position: MarginPosition, now: float, order: Order, price: Decimal) -> Trade:
        rules, sign, volume = position.rules, order.side.sign, order.volume
        cost, fee = self._costs(rules, volume, price)
        rate = self.rate_of_loan(rules, sign)
        opening_fee = round(cost * rate, rules.cost_decimals)
        self.serial = serial = self.serial + 1
        paid, due, leverage = fee + opening_fee, now + ROLLOVER_S, order.leverage
        lot = Lot(serial, now, sign, volume, ZERO, cost, cost, leverage, paid, rate, due)
        position.lots.append(lot)
        position.held += volume
        position.cost_left += cost
        self._book(now, "margin", serial, rules.quote, ZERO, paid)
        return Trade(serial, volume, price, cost, fee, opening_fee)

    def _costs(self, rules: PairRules, volume: Decimal, price: Decimal) -> tuple[Decimal, Decimal]:
        """Return the cost and the trade fee."""
        cost = round(price * volume, rules.cost_decimals)
        return cost, round(cost * self.fee_rate, rules.cost_decimals)

    def _book(
        self, now: float, kind: str, refid: int, asset: str, amount: Decimal, fee: Decimal
    ) -> None:
        """Change a balance and write a ledger entry."""
        self.balances[asset] = balance = self.balances[asset] + amount - fee
        if fee:
            (self.rollovers if kind == "rollover" else self.fees)[asset] += fee
        self.serial += 1
        if self.ledger.maxlen:
            self.ledger.append(Entry(self.serial, refid, now, kind, asset, amount, fee, balance))


def refusal(rules: PairRules, order: Order, price: Decimal) -> str | None:
    """Return the error with which Kraken refuses a market order by the pair's rules, or None.

    Source: support.kraken.com 360001491786; what follows a second colon is observed or assumed.
    """
    volume, invalid = order.volume, "EGeneral:Invalid arguments"
    is_tradable = rules.status == "online" or (rules.status == "reduce_only" and order.reduce_only)
    checks = (
        (is_tradable, f"EService:Market in {rules.status} mode"),
        (volume == rules.round_volume(volume), f"{invalid}:volume"),
        (volume >= rules.ordermin and volume > 0, f"{invalid}:volume minimum not met"),
        (volume * price >= rules.costmin, "EOrder:Cost minimum not met"),
        (order.leverage in (0, *rules.leverages(order.side)), f"{invalid}:leverage"),
        (order.leverage or not order.reduce_only, f"{invalid}:reduce_only"),
    )
    return next((error for is_right, error in checks if not is_right), None)


def identifier(letter: str, serial: int) -> str:
    """Return an id in Kraken's form; `letter` is O for an order, T a trade, L a ledger entry."""
    text = b32encode(blake2b(b"%d" % serial, digest_size=10).digest()).decode()
    return f"{letter}{text[:5]}-{text[5:10]}-{text[10:]}"


def _close_lots(position: MarginPosition, volume: Decimal) -> Decimal:
    """Close `volume` of the lots, the oldest first; return what that part had cost at opening."""
    cost, left = ZERO, volume
    while left:
        lot = position.lots.pop(0)
        part, paid = min(left, lot.open_volume), lot.cost_left
        if part < lot.open_volume:
            paid = round(lot.cost_left * part / lot.open_volume, position.rules.cost_decimals)
            rest = lot._replace(closed=lot.closed + part, cost_left=lot.cost_left - paid)
            position.lots.insert(0, rest)
        cost, left = cost + paid, left - part
    position.held -= volume
    position.cost_left -= cost
    return cost
