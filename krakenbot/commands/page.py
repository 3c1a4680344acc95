"""The parts of a self-contained HTML page: it needs no network, no library and no fonts.

A chart is an SVG that is stretched to the page, under labels in HTML, which keep their size on a
phone. All text from outside is escaped.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from html import escape
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

from krakenbot.commands import write_output
from krakenbot.commands.help import manual_file
from krakenbot.format import MINUTE, UTC_FORM, moment, price, volume
from krakenbot.log import clean

ROWS_MAX = 500
COLUMNS = 1000  # A chart's width in units of its SVG; each shows at most three points.


def write_page(path: Path, text: str) -> None:
    """Write the page; bytes that are not UTF-8, as in a file's name, are escaped.

    Raises UsageError when it cannot be written.
    """
    write_output(path, text.encode(errors="backslashreplace"))


def page(
    title: str,
    subtitle: str,
    headline: str,
    tone: Decimal | float,
    facts: Mapping[str, str],
    notes: Iterable[str],
    sections: Iterable[str],
) -> str:
    """Return a whole page. `sections` are HTML already; the sign of `tone` colors the headline."""
    pairs = ((escape(name.capitalize()), escape(fact)) for name, fact in facts.items())
    shown = "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in pairs)
    lines = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title><style>
{manual_file("report.css")}</style></head><body><main>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<p class="hero {_tone(tone)}">{escape(headline)}</p><dl>{shown}</dl>{lines}
{"".join(sections)}
</main><script>
{manual_file("report.js")}</script></body></html>
"""


def section(title: str, note: str, inside: str) -> str:
    """Return a part of a page; `inside` is HTML already."""
    return f"<section><h2>{escape(title)} <small>{escape(note)}</small></h2>{inside}</section>"


def table(
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    values: Sequence[Sequence[float]] = (),
    note: str = "",
    left_out: int = 0,
) -> str:
    """Return a table that can be scrolled, with at most 500 of the rows.

    It says how many there are in all, with those that the caller `left_out`. Columns whose names
    begin with | are aligned right. With `values`, one for each cell, gains and losses are shaded by
    their size.
    """
    shown = rows[:ROWS_MAX]
    count = len(rows) + left_out
    more = f"{len(shown)} of {count:,}" if len(shown) < count else ""
    kinds = [' class="n"' if name.startswith("|") else "" for name in names]
    body = _row("th", kinds, [name.removeprefix("|") for name in names])
    best, worst = (most([*chain(*values)], default=0.0) for most in (max, min))
    shades = [[_shade(one, best if one > 0 else worst) for one in line] for line in values]
    for at, row in enumerate(shown):
        body += _row("td", shades[at] if values else kinds, row)
    inside = f'<div class="wide"><table class="rows">{body}</table></div>'
    return section(title, ", ".join(filter(None, (note, more))), inside)


def _row(tag: str, kinds: Sequence[str], cells: Sequence[str]) -> str:
    pairs = zip(kinds, cells, strict=True)
    return f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in pairs)}</tr>"


def _shade(value: float, largest: float) -> str:
    share = value / (largest or 1) * 75
    return f' class="n {_tone(value)}" style="--share:{share:.0f}%"'


def _tone(amount: Decimal | float) -> str:
    return "good" if amount > 0 else "bad" if amount < 0 else "even"


class Chart:
    """A chart of lines over time. `lines` has their values by name, `times` are in unix seconds.

    Points more than `gap_s` seconds apart are not joined, as nothing is known of the time between.
    `decimals` are those of the labels.
    """

    def __init__(
        self,
        title: str,
        times: Sequence[float],
        lines: Mapping[str, Sequence[float]],
        gap_s: float = math.inf,
        decimals: int = 2,
    ) -> None:
        self.title, self.decimals, self.keys, self.layers = title, decimals, [*lines], ""
        self.begin, self.span = times[0], (times[-1] - times[0]) or 1.0
        self.kept = [*self._thinned(times, lines[self.keys[-1]])]
        self.times = [times[at] for at in self.kept]
        self.lines = {name: [line[at] for at in self.kept] for name, line in lines.items()}
        values = [*chain(*self.lines.values())]
        bottom, top = min(values), max(values)
        margin = (top - bottom) * 0.06 or abs(top) * 0.001 or 1.0
        self.bottom, self.top = bottom - margin, top + margin
        self.xs = [self._x(time) for time in self.times]
        # The points that are left are up to a column further apart, which makes no gap.
        gap_s += self.span / COLUMNS
        steps = enumerate(pairwise(self.times), 1)
        self.starts = {0, *(at for at, (before, now) in steps if now - before > gap_s)}
        for name, line in self.lines.items():
            points = enumerate(zip(self.xs, map(self._y, line), strict=True))
            path = (f"{'M' if at in self.starts else ' '}{x} {y}" for at, (x, y) in points)
            self._draw(name, "".join(path))

    def _thinned(self, times: Sequence[float], values: Sequence[float]) -> Iterator[int]:
        """Yield the numbers of the points to draw: each column's lowest, highest and last one."""
        for _, group in groupby(range(len(times)), lambda at: int(self._x(times[at]))):
            column = [*group]
            ends = (most(column, key=values.__getitem__) for most in (min, max))
            yield from sorted({*ends, column[-1]})

    def dots(self, orders: Iterable[Mapping[str, Any]]) -> None:
        """Mark orders, rows of `history`, with dots; one outside of the chart at its edge."""
        self.keys += "buy", "sell"
        for order in orders:
            x = min(max(self._x(order["time"]), 0), COLUMNS)
            y = min(max(self._y(float(order["price"])), 0), 1000)
            paid = f"{volume(order['volume'])} at {price(order['price'], self.decimals)}"
            when, side = moment(order["time"], UTC_FORM), order["side"]
            self._draw(side, f"M{x} {y}h0", f"{when} {side} {paid}: {clean(order['reason'])}")

    def band(self, held: Sequence[float]) -> None:
        """Show along the bottom what was held, in base currency, until each of the times."""
        self.keys += "long", "short"
        known = [(at, held[kept]) for at, kept in enumerate(self.kept) if at not in self.starts]
        for kind, sign in (("long", 1), ("short", -1)):
            ends = (self.xs[at - 1 : at + 1] for at, volume in known if volume * sign > 0)
            self._draw(kind, "".join(f"M{a} 1000H{b}" for a, b in ends))

    def html(self, note: str = "") -> str:
        """Return the chart as a section of a page."""
        labels, grid = "", ""
        for value, text in _ticks(self.bottom, self.top):
            y = self._y(value)
            grid += f'<path class="grid" d="M0 {y}H{COLUMNS}"/>'
            labels += f'<span class="y" style="top:{y / 10:.2f}%">{text}</span>'
        days = self.span / 86400
        form = "%b %Y" if days > 300 else "%d %b" if days > 3 else "%d %b %H:%M"
        for share, kind in ((0, ""), (1 / 3, " far"), (1 / 2, " near"), (2 / 3, " far"), (1, "")):
            text = moment(self.begin + share * self.span, form)
            place = f"left:{share:.1%};transform:translateX(-{share:.0%})"
            labels += f'<span class="x{kind}" style="{place}">{text}</span>'
        keys = "".join(f'<span class="key {key}">{key}</span>' for key in self.keys)
        when = [moment(time, MINUTE) for time in self.times]
        lines = {name: [price(y, self.decimals) for y in line] for name, line in self.lines.items()}
        shown = {"t": when, "x": self.xs, "s": [*lines.items()]}
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
        return round((moment - self.begin) / self.span * COLUMNS, 1)

    def _y(self, value: float) -> float:
        return round((self.top - value) / (self.top - self.bottom) * 1000, 1)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return three to six round values from low to high, with their labels."""
    rough = (high - low) / 5.5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step)) + (step / power == 2.5))
    first = math.ceil(low / step)
    return [(n * step, f"{n * step:,.{decimals}f}") for n in range(first, int(high // step) + 1)]
