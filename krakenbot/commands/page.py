"""One self-contained HTML page about a stretch of trading: no network, no library, no fonts.

Charts are stretched vector graphics with labels in HTML over them, so that text keeps its size
on a phone. Whatever comes from outside passes through `escape`.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from krakenbot.commands import write_whole

COLUMNS = 1000
MARKS_MAX = 400
ROWS_MAX = 500
_ORDER = ("time", "side", "volume", "price", "fee", "outcome", "why", "client order id")


class Mark(NamedTuple):
    time: float
    price: float
    buys: bool
    text: str


class Point(NamedTuple):
    """A stretch of candles that ends at `time`. `net` and `gross`: profit since the beginning."""

    time: float
    low: float
    high: float
    close: float
    net: float
    gross: float
    held: float


class Story(NamedTuple):
    """All that the page tells. `newest` are times, closes and averages; `orders` rows of texts."""

    title: str
    subtitle: str
    headline: str
    net: float
    facts: Sequence[tuple[str, str]]
    costs: Sequence[tuple[str, float]]
    points: Sequence[Point]
    newest: Sequence[tuple[float, float, float]]
    marks: Sequence[Mark]
    orders: Sequence[Sequence[str]]
    notes: Sequence[str]


def utc(moment: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """Return unix seconds as people write them, in UTC."""
    return time.strftime(form, time.gmtime(moment))


def write(path: Path, story: Story) -> None:
    """Put the page in place, whole or not at all; UsageError when it cannot be written."""
    write_whole(path, render(story).encode())


def headline(pair: str, days: float, turns: int, before: float, net: float) -> str:
    """Return the result in plain words."""
    span = f"{days:,.1f} days" if days >= 2 else f"{days * 24:.1f} hours"
    currency = next((c for c in ("USDT", "USDC") if pair.endswith(c)), pair[-3:])
    return (
        f"In {span} and {turns:,} turns the bot {'won' if net > 0 else 'lost'} "
        f"{abs(net):,.2f} {currency}. Trading itself {'won' if before > 0 else 'lost'} "
        f"{abs(before):,.2f}; fees and margin cost {before - net:,.2f}."
    )


def thinned(points: Iterable[Point], limit: int = COLUMNS) -> list[Point]:
    """Return at most `limit` (even) points; merged ones keep the lowest and highest price."""
    kept: list[Point] = []
    step = 1
    for number, point in enumerate(points):
        if number % step:
            kept[-1] = _merged(kept[-1], point)
            continue
        if len(kept) == limit:
            kept = [_merged(a, b) for a, b in zip(kept[::2], kept[1::2], strict=True)]
            step *= 2
        kept.append(point)
    return kept


def _merged(a: Point, b: Point) -> Point:
    return b._replace(low=min(a.low, b.low), high=max(a.high, b.high))


def render(story: Story) -> str:
    """Return the whole page."""
    facts = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in story.facts)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in story.notes)
    charts = "\n".join(_charts(story)) if len(story.points) > 1 else ""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(story.title)}</title><style>{_STYLE}</style></head><body><main>
<header><h1>{escape(story.title)}</h1><p>{escape(story.subtitle)}</p></header>
<p class="hero {_tone(story.net)}">{escape(story.headline)}</p><dl>{facts}</dl>{notes}
{charts}
{_bars(story.costs)}
{_table(story.orders)}
</main><script>{_SCRIPT}</script></body></html>
"""


def _charts(story: Story) -> Iterator[str]:
    times, low, high, closes, nets, grosses, held = zip(*story.points, strict=True)
    few = story.marks if len(story.marks) <= MARKS_MAX else ()
    price = _Chart("Price and position", times, [*low, *high])
    price.area("range", low, high)
    price.line("price", closes, "price")
    price.dots(few)
    price.band(held)
    hidden = "too many fills to mark; the newest are in the next chart"
    yield price.html(hidden if len(few) < len(story.marks) else "")
    if len(story.newest) > 1:
        ends, newest, averages = zip(*story.newest, strict=True)
        near = _Chart(f"The newest {len(newest)} candles", ends, [*newest, *averages])
        near.line("price", newest, "price")
        near.line("average", averages, "second")
        near.dots([mark for mark in story.marks if mark.time >= ends[0]][-MARKS_MAX:])
        yield near.html()
    equity = _Chart("Profit and loss", times, [*nets, *grosses, 0.0])
    equity.line("before costs", grosses, "second")
    equity.line("after costs", nets, "price")
    yield equity.html()
    falls = [net - peak for net, peak in zip(nets, accumulate(nets, max), strict=True)]
    drawdown = _Chart("Below the best so far", times, [*falls, 0.0])
    drawdown.area("loss", falls, [0.0] * len(falls))
    drawdown.line("drawdown", falls, "lossline")
    yield drawdown.html()


class _Chart:
    """One chart: a time axis, a value axis, and layers put on one after the other."""

    def __init__(self, title: str, times: Sequence[float], values: Sequence[float]) -> None:
        self.title, self.times = title, times
        bottom, top = min(values), max(values)
        margin = (top - bottom) * 0.06 or abs(top) * 0.001 or 1.0
        self.bottom, self.top = bottom - margin, top + margin
        self.layers = ""
        self.series: list[tuple[str, list[str]]] = []
        self.keys: dict[str, str] = {}

    def line(self, name: str, values: Sequence[float], kind: str) -> None:
        self._draw(kind, "M" + " ".join(map(self._at, self.times, values)))
        self.series.append((name, [f"{value:,.7g}" for value in values]))
        self.keys[name] = kind

    def area(self, kind: str, low: Sequence[float], high: Sequence[float]) -> None:
        there, back = map(self._at, self.times, high), map(self._at, self.times, low)
        self._draw(kind, f"M{' '.join([*there, *[*back][::-1]])}Z")

    def dots(self, marks: Iterable[Mark]) -> None:
        for mark in marks:
            if self.times[0] <= mark.time <= self.times[-1]:
                path = f"M{self._at(mark.time, mark.price)}h0"
                self._draw("buy" if mark.buys else "sell", path, mark.text)
                self.keys |= {"buy": "buy", "sell": "sell"}

    def band(self, held: Sequence[float]) -> None:
        """Show along the bottom what was held."""
        for kind, sign in (("long", 1), ("short", -1)):
            stretches = zip(pairwise(map(self._x, self.times)), held[1:], strict=True)
            self._draw(kind, "".join(f"M{a} 1000H{b}" for (a, b), v in stretches if v * sign > 0))
            self.keys[kind] = kind

    def html(self, note: str = "") -> str:
        labels, grid = "", ""
        for value, text in _ticks(self.bottom, self.top):
            y = self._y(value)
            grid += f'<path class="grid" d="M0 {y}H{COLUMNS}"/>'
            labels += f'<span class="y" style="top:{y / 10:.2f}%">{text}</span>'
        span = self.times[-1] - self.times[0]
        # The shorter the span, the finer.
        form = "%b %Y" if span > 300 * 86400 else "%d %b" if span > 3 * 86400 else "%d %b %H:%M"
        for share, kind in ((0, ""), (1 / 3, " far"), (1 / 2, " near"), (2 / 3, " far"), (1, "")):
            text = utc(self.times[0] + share * span, form)
            labels += (
                f'<span class="x{kind}" style="left:{share:.1%};transform:'
                f'translateX(-{share:.0%})">{text}</span>'
            )
        keys = "".join(f'<span class="key {kind}">{key}</span>' for key, kind in self.keys.items())
        shown = {"t": [*map(utc, self.times)], "x": [*map(self._x, self.times)], "s": self.series}
        numbers = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
        return (
            f'<section><h2>{escape(self.title)}</h2><p class="keys">{keys} '
            f'<small>{escape(note)}</small></p><div class="chart"><svg viewBox="0 0 {COLUMNS} 1000"'
            f' preserveAspectRatio="none" aria-hidden="true">{grid}{self.layers}</svg>{labels}'
            f'<i></i><output></output><script type="application/json">{numbers}</script></div>'
            "</section>"
        )

    def _draw(self, kind: str, path: str, text: str = "") -> None:
        self.layers += f'<path class="{kind}" d="{path}"><title>{escape(text)}</title></path>'

    def _at(self, moment: float, value: float) -> str:
        return f"{self._x(moment)} {self._y(value)}"

    def _x(self, moment: float) -> float:
        span = self.times[-1] - self.times[0]
        return round((moment - self.times[0]) / span * COLUMNS, 1) if span else 0.0

    def _y(self, value: float) -> float:
        return round((self.top - value) / (self.top - self.bottom) * 1000, 1)


def _bars(costs: Sequence[tuple[str, float]]) -> str:
    """Show amounts as bars to both sides of a middle line."""
    largest = max((abs(amount) for _, amount in costs), default=0) or 1
    rows = ""
    for name, amount in costs:
        width = abs(amount) / largest * 50
        left = 50 if amount >= 0 else 50 - width
        rows += (
            f'<tr><th>{escape(name)}</th><td><div><b class="{_tone(amount)}" '
            f'style="left:{left:.2f}%;width:{width:.2f}%"></b></div></td>'
            f"<td>{amount + 0.0:+,.2f}</td></tr>"  # No negative zero.
        )
    return f'<section><h2>Where it went</h2><table class="bars">{rows}</table></section>'


def _table(orders: Sequence[Sequence[str]]) -> str:
    shown = orders[-ROWS_MAX:][::-1]
    more = f" (the newest {len(shown)})" if len(shown) < len(orders) else ""
    rows = f"<tr>{''.join(f'<th>{name}</th>' for name in _ORDER)}</tr>"
    for row in shown:
        rows += f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>"
    return (
        f'<section><h2>Orders{more}</h2><div class="wide"><table class="orders">{rows}</table>'
        "</div></section>"
    )


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return three to six round values between low and high, with their labels."""
    rough = (high - low) / 5.5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step)) + (step / power == 2.5))
    first = math.ceil(low / step)
    return [(n * step, f"{n * step:,.{decimals}f}") for n in range(first, int(high // step) + 1)]


def _tone(amount: float) -> str:
    return "good" if amount > 0 else "bad" if amount < 0 else "even"


_STYLE = """
:root{--ground:#fbfbfa;--card:#fff;--ink:#1c1e21;--soft:#666c75;--rule:#e4e5e7;--price:#22262b;
--second:#b0721a;--buy:#1765d8;--sell:#d4451a;--good:#0e7a4b;--bad:#b3261e;--band:#c3cad4}
@media(prefers-color-scheme:dark){:root{--ground:#14161a;--card:#1c1f24;--ink:#e8eaed;
--soft:#9aa1ab;--rule:#30343b;--price:#e3e6ea;--second:#e0a64b;--buy:#6aa5ff;--sell:#ff8a5c;
--good:#4cc38a;--bad:#ff7b72;--band:#465060}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:20px 16px 48px}h1{font-size:1.5rem;margin:0}
header p,.note,.keys,small{color:var(--soft)}header p,.note{margin:.3rem 0;font-size:.9rem}
.hero{font-size:1.25rem;line-height:1.4;margin:1.1rem 0;padding:.9rem 1.1rem;background:var(--card);
border:1px solid var(--rule);border-left:5px solid var(--soft);border-radius:8px}
.hero.good{border-left-color:var(--good)}.hero.bad{border-left-color:var(--bad)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin:0 0 1rem}
dl div,section{background:var(--card);border:1px solid var(--rule);border-radius:8px}
dl div{padding:.55rem .8rem}dt{color:var(--soft);font-size:.8rem}
dd{margin:0;font-size:1.08rem;font-weight:600;font-variant-numeric:tabular-nums}
section{padding:.9rem 1rem 1rem;margin:0 0 14px}h2{font-size:1rem;margin:0 0 .2rem}
.keys{margin:0 0 .5rem;font-size:.82rem}.key{margin-right:.9rem;white-space:nowrap}
.key:before{content:"";display:inline-block;width:.75em;height:.75em;border-radius:2px;
margin-right:.35em;background:var(--c)}.key.buy:before,.key.sell:before{border-radius:50%}
.price{--c:var(--price)}.second{--c:var(--second)}.buy,.long{--c:var(--buy)}
.sell,.short{--c:var(--sell)}.lossline{--c:var(--bad)}
.chart{position:relative;height:270px;margin:0 0 20px 58px;touch-action:pan-y}
svg{position:absolute;width:100%;height:100%;overflow:visible}
path{fill:none;stroke:var(--c);stroke-width:1.4;vector-effect:non-scaling-stroke;
stroke-linejoin:round}path.grid{stroke:var(--rule);stroke-width:1}
path.range{fill:var(--band);stroke:none;opacity:.55}path.loss{fill:var(--bad);stroke:none;
opacity:.18}path.buy,path.sell{stroke-width:8;stroke-linecap:round}
path.long,path.short{stroke-width:8}
.chart span{position:absolute;font-size:.74rem;color:var(--soft);white-space:nowrap;
font-variant-numeric:tabular-nums}.y{right:calc(100% + 6px);transform:translateY(-50%)}
.x{top:calc(100% + 6px)}.near{display:none}
.chart i{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);
display:none;pointer-events:none}.chart output{position:absolute;top:4px;display:none;
padding:.3rem .55rem;font-size:.8rem;background:var(--card);border:1px solid var(--rule);
border-radius:6px;pointer-events:none;white-space:pre;z-index:1;
font-variant-numeric:tabular-nums;box-shadow:0 2px 8px #0003}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
.bars th{text-align:left;font-weight:400;white-space:nowrap;padding:.25rem .8rem .25rem 0;width:1%}
.bars td:last-child{text-align:right;white-space:nowrap;padding-left:.8rem;width:1%}
.bars div{position:relative;height:14px;background:linear-gradient(var(--rule),var(--rule))
center/1px 100% no-repeat}.bars b{position:absolute;height:100%;border-radius:3px;min-width:1px}
b.good{background:var(--good)}b.bad{background:var(--bad)}b.even{background:var(--soft)}
.wide{overflow-x:auto;max-height:560px;overflow-y:auto}.orders th,.orders td{text-align:left;
padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--rule);white-space:nowrap}
.orders th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:500}
@media(max-width:520px){.hero{font-size:1.08rem}.chart{height:210px;margin-left:52px}.far{display:none}.near{display:inline}
dl{grid-template-columns:1fr 1fr}section{padding:.8rem .7rem}}
"""
_SCRIPT = """
for(const c of document.querySelectorAll('.chart')){
const d=JSON.parse(c.querySelector('script').textContent),i=c.querySelector('i'),
o=c.querySelector('output');
c.onpointermove=e=>{const b=c.getBoundingClientRect(),x=(e.clientX-b.left)/b.width*1000;
let l=0,h=d.x.length-1;while(l<h){const m=l+h>>1;d.x[m]<x?l=m+1:h=m}
if(l&&x-d.x[l-1]<d.x[l]-x)l--;i.style.left=d.x[l]/10+'%';
o.textContent=d.t[l]+' UTC'+d.s.map(s=>'\\n'+s[0]+'  '+s[1][l]).join('');
const r=d.x[l]>500;o.style.left=r?'auto':d.x[l]/10+1+'%';
o.style.right=r?101-d.x[l]/10+'%':'auto';i.style.display=o.style.display='block'};
c.onpointerleave=()=>{i.style.display=o.style.display='none'}}
"""
