"""Pieces of a self-contained HTML page: no network, no library, no fonts.

All text from outside passes through `escape`.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from html import escape

from krakenbot.commands.help import page as file
from krakenbot.format import amount, signed

ROWS_MAX = 500


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
    pairs = ((escape(name), escape(fact)) for name, fact in facts.items())
    shown = "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in pairs)
    lines = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title><style>
{file("report.css")}</style></head><body><main>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<p class="hero {_tone(tone)}">{escape(headline)}</p><dl>{shown}</dl>{lines}
{"".join(sections)}
</main><script>
{file("report.js")}</script></body></html>
"""


def section(title: str, note: str, inside: str) -> str:
    """Return a part of a page; `inside` is HTML already."""
    return f"<section><h2>{escape(title)} <small>{escape(note)}</small></h2>{inside}</section>"


def table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Return a scrollable table. Columns whose names begin with | are aligned right."""
    shown = rows[:ROWS_MAX]
    more = f", {len(shown)} of {len(rows):,}" if len(shown) < len(rows) else ""
    kinds = [' class="n"' if name.startswith("|") else "" for name in names]
    body = _row("th", kinds, [name.removeprefix("|") for name in names])
    body += "".join(_row("td", kinds, row) for row in shown)
    inside = f'<div class="wide"><table class="rows">{body}</table></div>'
    return section(title, note + more, inside)


def _row(tag: str, kinds: Sequence[str], cells: Sequence[str]) -> str:
    pairs = zip(kinds, cells, strict=True)
    return f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in pairs)}</tr>"


def heat_map(
    title: str, corner: str, cells: Mapping[tuple[str, str], float], quote: str, note: str
) -> str:
    """Return figures by two keys, row and column; gains and losses are shaded by their size."""
    rows, columns = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))
    best, worst = max(cells.values(), default=0), min(cells.values(), default=0)
    body = "".join(f'<th class="n">{escape(name)}</th>' for name in columns)
    for row in rows:
        body += f'</tr><tr><th class="n">{escape(row)}</th>'
        for value in (cells.get((row, column)) for column in columns):
            if value is None:
                body += "<td></td>"
                continue
            kind = f"n {_tone(value)}{' best' if value == best else ''}"
            share = value / ((best if value > 0 else worst) or 1) * 75
            shown = signed(amount(value, quote))
            body += f'<td class="{kind}" style="--share:{share:.0f}%">{shown}</td>'
    table = f'<table class="heat"><tr><th>{escape(corner)}</th>{body}</tr></table>'
    return section(title, note, f'<div class="wide">{table}</div>')


def bars(costs: Mapping[str, Decimal], quote: str) -> str:
    """Return signed amounts as bars to both sides of a middle line."""
    largest, rows = max(map(abs, costs.values())) or 1, ""
    for name, cost in costs.items():
        width = abs(cost) / largest * 50
        left = 50 if cost >= 0 else 50 - width
        bar = f'<b class="{_tone(cost)}" style="left:{left:.2f}%;width:{width:.2f}%"></b>'
        rows += f"<tr><th>{escape(name)}</th><td><div>{bar}</div></td>"
        rows += f"<td>{signed(amount(cost, quote))}</td></tr>"
    return section("Where the money went", "", f'<table class="bars">{rows}</table>')


def _tone(amount: Decimal | float) -> str:
    return "good" if amount > 0 else "bad" if amount < 0 else "even"
