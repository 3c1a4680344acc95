"""What a report tells about one run, from a journal or a backtest, and its page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from krakenbot.commands import write_whole
from krakenbot.commands.chart import COLUMNS, Chart, Fill
from krakenbot.commands.page import bars, page, table
from krakenbot.format import MINUTE, duration, moment, money, percent, price, signed, volume

MARKS_MAX = 400
DUST = 1e-12  # What is left of a sum of floats that should be nothing.
_ORDER = ("time (UTC)", "side", "|volume", "|price", "|fee", "outcome", "why", "client order id")
_SIZES = ("|volume", "|in at", "|out at", "|costs", "|result", "|percent")
_ROUND = ("opened (UTC)", "|held for", "side", *_SIZES)


class Point(NamedTuple):
    """A stretch of candles that ends at `time`. `net` and `gross`: profit since the beginning.

    `is_after_gap`: between this and the point before it the bot was down.
    """

    time: float
    low: float
    high: float
    close: float
    net: float
    gross: float
    held: float
    is_after_gap: bool = False


class Story(NamedTuple):
    """All that the page of one run tells. `newest` are times, closes and averages.

    `costs` lead from the result before all costs to the one after, see `way_to_net`; `fills` are
    orders and costs of holding in order of time. `balance` is what the account began with; `size`,
    bought at `first_price`, what holding is compared with; `end` why and when it ended before its
    time. `facts` replace those of the same name that the points and fills give.
    """

    title: str
    subtitle: str
    quote: str
    pair_decimals: int | None
    balance: float
    size: float
    first_price: float
    facts: Mapping[str, str]
    costs: Sequence[tuple[str, Decimal]]
    points: Sequence[Point]
    newest: Sequence[tuple[float, float, float]]
    fills: Sequence[Fill]
    notes: Sequence[str]
    end: str = ""

    @property
    def gross(self) -> float:
        return float(self.costs[0][1])

    @property
    def net(self) -> float:
        return float(self.costs[-1][1])

    def holding(self, price: float) -> float:
        """Return what holding from the beginning would have made at a price."""
        return self.size * (price - self.first_price)


def way_to_net(
    gross: Decimal, fees: Decimal, margin_fees: Decimal, rollover: Decimal
) -> list[tuple[str, Decimal]]:
    """Return names and amounts from the result before costs to the net one, with signs."""
    net = gross - fees - margin_fees - rollover
    costs = ("trade fees", -fees), ("margin fees", -margin_fees), ("rollover", -rollover)
    return [("before costs", gross), *costs, ("net", net)]


def write(path: Path, story: Story) -> None:
    """Put the page in place, whole or not at all; UsageError when it cannot be written."""
    write_whole(path, render(story).encode())


def render(story: Story) -> str:
    """Return the whole page."""
    trades = [fill for fill in story.fills if fill.sign and fill.price]
    rounds = round_trips(fill for fill in story.fills if fill.price or not fill.sign)
    ended = [_round_row(one, story.pair_decimals) for one in reversed(rounds)]
    orders = [fill.texts(story.pair_decimals) for fill in reversed(story.fills) if fill.sign]
    sections = [
        *(_charts(story, trades) if len(story.points) > 1 else ()),
        bars([(name, float(amount)) for name, amount in story.costs]),
        table("Round trips", _ROUND, ended, "after costs, newest first"),
        table("Orders", _ORDER, orders, "newest first"),
    ]
    facts = {**_facts(story, rounds), **story.facts}.items()
    headline = _headline(story)
    return page(story.title, story.subtitle, headline, story.net, facts, story.notes, sections)


def thinned(points: Iterable[Point]) -> list[Point]:
    """Return at most COLUMNS points; merged ones keep the lowest and highest price."""
    kept: list[Point] = []
    step = 1
    for number, point in enumerate(points):
        if number % step:
            kept[-1] = _merged(kept[-1], point)
            continue
        if len(kept) == COLUMNS:
            kept = [_merged(a, b) for a, b in zip(kept[::2], kept[1::2], strict=True)]
            step *= 2
        kept.append(point)
    return kept


def _merged(a: Point, b: Point) -> Point:
    low, high = min(a.low, b.low), max(a.high, b.high)
    return b._replace(low=low, high=high, is_after_gap=a.is_after_gap or b.is_after_gap)


class Round(NamedTuple):
    """From flat to flat, or to the other side. `costs` are trade fees and costs of holding."""

    begin: float
    end: float
    sign: int
    volume: float
    entry: float
    exit: float
    costs: float

    @property
    def net(self) -> float:
        return self.sign * self.volume * (self.exit - self.entry) - self.costs

    @property
    def percent(self) -> float:
        return self.net / (self.volume * self.entry) * 100


def round_trips(fills: Iterable[Fill]) -> list[Round]:
    """Return the round trips that ended, in order. A fill that turns the position ends one."""
    rounds: list[Round] = []
    inside: list[Fill] = []  # Fills and costs of the round that is not over.
    for fill in fills:
        held = sum(one.sign * one.volume for one in inside)
        closing = min(fill.volume, abs(held)) if held * fill.sign < 0 else 0.0
        share = closing / fill.volume if fill.volume else 1.0
        if inside and (closing or not fill.volume):
            inside.append(fill._replace(volume=closing, fee=fill.fee * share))
        if closing and abs(held) - closing < DUST:
            rounds.append(_round(inside))
            inside = []
        left = fill.volume - closing
        if left > DUST:
            inside.append(fill._replace(volume=left, fee=fill.fee * (1 - share)))
    return rounds


def _round(fills: Sequence[Fill]) -> Round:
    """Return the round of fills and costs, the first of which opened it."""
    sign, costs = fills[0].sign, sum(fill.fee for fill in fills)
    opened = sum(fill.volume for fill in fills if fill.sign == sign)
    entry, exit_ = (
        sum(fill.volume * fill.price for fill in fills if fill.sign == side) / opened
        for side in (sign, -sign)
    )
    return Round(fills[0].time, fills[-1].time, sign, opened, entry, exit_, costs)


def _round_row(one: Round, decimals: int | None) -> tuple[str, ...]:
    return (
        moment(one.begin, MINUTE),
        duration(one.end - one.begin),
        "long" if one.sign > 0 else "short",
        volume(one.volume),
        price(one.entry, decimals),
        price(one.exit, decimals),
        money(one.costs),
        signed(money(one.net)),
        signed(percent(one.percent)),
    )


def _headline(story: Story) -> str:
    """Return the result in plain words, the end of the account first."""
    if not story.points:
        return f"{story.end} Nothing was decided yet.".strip()
    first, last = story.points[0], story.points[-1]
    share = ""
    if story.balance:
        share = f", {percent(abs(story.net) / story.balance * 100)} of the account"
    costs = money(story.gross - story.net, story.quote)
    return (
        f"{story.end} In {duration(last.time - first.time)} the bot {_won(story.net, story.quote)}"
        f"{share}. Trading itself {_won(story.gross, story.quote)}; fees and margin cost {costs}. "
        f"Holding would have {_won(story.holding(last.close), story.quote)}."
    ).strip()


def _won(amount: float, quote: str) -> str:
    return f"{'won' if amount > 0 else 'lost'} {money(abs(amount), quote)}"


def _facts(story: Story, rounds: Sequence[Round]) -> dict[str, str]:
    if not story.points:
        return {}
    facts = {"Net": signed(money(story.net, story.quote))}
    if story.balance:
        hold = story.holding(story.points[-1].close)
        facts["Return"] = signed(percent(story.net / story.balance * 100))
        facts["Holding"] = signed(percent(hold / story.balance * 100))
        facts["Max drawdown"] = percent(max(_drawdowns(story)))
    won = sum(one.net > 0 for one in rounds)
    share = f", {percent(won / len(rounds) * 100, 0)} won" if rounds else ""
    return {**facts, "Round trips": f"{len(rounds):,}{share}"}


def _drawdowns(story: Story) -> list[float]:
    """Return how far the account is below its highest so far, in percent, at each point."""
    worth = [story.balance + point.net for point in story.points]
    pairs = zip(accumulate(worth, max), worth, strict=True)
    return [(peak - now) / peak * 100 if peak > 0 else 0.0 for peak, now in pairs]


def _charts(story: Story, trades: Sequence[Fill]) -> Iterator[str]:
    times, low, high, closes, nets, grosses, held, after_gap = zip(*story.points, strict=True)
    gaps = frozenset(at for at, is_after in enumerate(after_gap) if is_after)
    decimals = 6 if story.pair_decimals is None else story.pair_decimals
    few = trades if len(trades) <= MARKS_MAX else ()
    chart = Chart("Price and position", times, [*low, *high], gaps, decimals)
    if low != high:
        chart.area("range", low, high)
    chart.line("price", closes, "price")
    chart.dots(few)
    chart.band(held)
    hidden = "too many fills to mark; the newest are in the next chart"
    yield chart.html(hidden if len(few) < len(trades) else "")
    if len(story.newest) > 1:
        ends, newest, averages = zip(*story.newest, strict=True)
        title = f"The newest {len(newest)} candles"
        near = Chart(title, ends, [*newest, *averages], decimals=decimals)
        near.line("price", newest, "price")
        near.line("average", averages, "second")
        near.dots([trade for trade in trades if trade.time >= ends[0]][-MARKS_MAX:])
        yield near.html()
    hold = [*map(story.holding, closes)]
    equity = Chart(f"Profit and loss, {story.quote}", times, [*nets, *grosses, *hold, 0.0], gaps)
    equity.line("holding", hold, "faint")
    equity.line("before costs", grosses, "second")
    equity.line("after costs", nets, "price")
    yield equity.html()
    if story.balance:
        falls = [-fall for fall in _drawdowns(story)]
        drawdown = Chart("Drawdown, percent of the account", times, [*falls, 0.0], gaps)
        drawdown.area("loss", falls, [0.0] * len(falls))
        drawdown.line("drawdown", falls, "lossline")
        yield drawdown.html()
