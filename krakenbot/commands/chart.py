"""Charts as stretched SVG under HTML labels, so that text keeps its size on a phone.

All text from outside passes through `escape`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from html import escape
from itertools import pairwise
from typing import NamedTuple

from krakenbot.commands.page import section
from krakenbot.format import MINUTE, UTC_FORM, amount, moment, price, volume
from krakenbot.log import clean

COLUMNS = 1000


class Fill(NamedTuple):
    """An order: `sign` is 1 for a buy and -1 for a sell, `price` 0 if nothing was traded.

    With `sign` 0 it is a cost of holding, whose amount is the `fee`.
    """

    time: float
    sign: int
    volume: Decimal
    price: Decimal
    fee: Decimal
    outcome: str = ""
    why: str = ""
    id: str = ""

    def texts(self, decimals: int | None, quote: str = "") -> tuple[str, ...]:
        return (
            moment(self.time, UTC_FORM),
            "buy" if self.sign > 0 else "sell",
            volume(self.volume),
            price(self.price, decimals) if self.price else "-",
            amount(self.fee, quote),
            *map(clean, (self.outcome, self.why, self.id)),
        )


class Chart:
    """One chart: a time axis, a value axis for `values`, and layers added one by one.

    Nothing is known between points more than `gap_s` seconds apart, so no line joins them.
    """

    def __init__(
        self,
        title: str,
        times: Sequence[float],
        values: Sequence[float],
        gap_s: float,
        decimals: int = 2,
    ) -> None:
        self.title, self.times, self.decimals = title, times, decimals
        # Neighbours in a thinned series are up to a column further apart: that is no gap.
        gap_s += (times[-1] - times[0]) / COLUMNS
        steps = enumerate(pairwise(times), 1)
        self.starts = {0, *(at for at, (before, now) in steps if now - before > gap_s)}
        bottom, top = min(values), max(values)
        margin = (top - bottom) * 0.06 or abs(top) * 0.001 or 1.0
        self.bottom, self.top = bottom - margin, top + margin
        self.xs = [self._x(time) for time in times]
        self.layers = ""
        self.series: list[tuple[str, list[str]]] = []
        self.keys: dict[str, str] = {}

    def line(self, name: str, values: Sequence[float], kind: str) -> None:
        points = enumerate(zip(self.xs, map(self._y, values), strict=True))
        path = (f"{'M' if at in self.starts else ' '}{x} {y}" for at, (x, y) in points)
        self._draw(kind, "".join(path))
        self.series.append((name, [f"{value:z,.{self.decimals}f}" for value in values]))
        self.keys[name] = kind

    def area(self, kind: str, low: Sequence[float], high: Sequence[float]) -> None:
        path = ""
        for a, b in pairwise(sorted({*self.starts, len(self.xs)})):
            xs = self.xs[a:b]
            edge = zip(xs + xs[::-1], [*high[a:b], *low[a:b][::-1]], strict=True)
            path += f"M{' '.join(f'{x} {self._y(value)}' for x, value in edge)}Z"
        self._draw(kind, path)

    def dots(self, fills: Iterable[Fill]) -> None:
        """Mark the fills; one before the first or after the last point is shown at the edge."""
        for fill in fills:
            when, side, size, paid, _, _, why, _ = fill.texts(self.decimals)
            x = min(max(self._x(fill.time), 0), COLUMNS)
            path = f"M{x} {self._y(float(fill.price))}h0"
            self._draw(side, path, f"{when} {side} {size} at {paid}: {why}")
            self.keys |= {"buy": "buy", "sell": "sell"}

    def band(self, held: Sequence[float]) -> None:
        """Show the position along the bottom, where it is known."""
        for kind, sign in (("long", 1), ("short", -1)):
            known = (at for at, volume in enumerate(held) if volume * sign > 0)
            ends = ((self.xs[at - 1], self.xs[at]) for at in known if at not in self.starts)
            self._draw(kind, "".join(f"M{a} 1000H{b}" for a, b in ends))
            self.keys[kind] = kind

    def html(self, note: str = "") -> str:
        labels, grid = "", ""
        for value, text in _ticks(self.bottom, self.top):
            y = self._y(value)
            grid += f'<path class="grid" d="M0 {y}H{COLUMNS}"/>'
            labels += f'<span class="y" style="top:{y / 10:.2f}%">{text}</span>'
        span = self.times[-1] - self.times[0]
        form = "%b %Y" if span > 300 * 86400 else "%d %b" if span > 3 * 86400 else "%d %b %H:%M"
        for share, kind in ((0, ""), (1 / 3, " far"), (1 / 2, " near"), (2 / 3, " far"), (1, "")):
            text = moment(self.times[0] + share * span, form)
            place = f"left:{share:.1%};transform:translateX(-{share:.0%})"
            labels += f'<span class="x{kind}" style="{place}">{text}</span>'
        keys = "".join(f'<span class="key {kind}">{key}</span>' for key, kind in self.keys.items())
        when = [moment(time, MINUTE) for time in self.times]
        shown = {"t": when, "x": self.xs, "s": self.series}
        numbers = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
        return section(
            self.title,
            note,
            f'<p class="keys">{keys}</p><div class="chart"><svg viewBox="0 0 {COLUMNS} 1000"'
            f' preserveAspectRatio="none" aria-hidden="true">{grid}{self.layers}</svg>{labels}'
            f'<i></i><output></output><script type="application/json">{numbers}</script></div>',
        )

    def _draw(self, kind: str, path: str, text: str = "") -> None:
        self.layers += f'<path class="{kind}" d="{path}"><title>{escape(text)}</title></path>'

    def _x(self, moment: float) -> float:
        span = (self.times[-1] - self.times[0]) or 1.0
        return round((moment - self.times[0]) / span * COLUMNS, 1)

    def _y(self, value: float) -> float:
        return round((self.top - value) / (self.top - self.bottom) * 1000, 1)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return three to six round values between low and high, with their labels."""
    rough = (high - low) / 5.5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step)) + (step / power == 2.5))
    first = math.ceil(low / step)
    return [(n * step, f"{n * step:,.{decimals}f}") for n in range(first, int(high // step) + 1)]
