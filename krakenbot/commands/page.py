"""Pieces of a self-contained HTML page: no network, no library, no fonts.

Whatever comes from outside passes through `escape`.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from krakenbot.format import money, signed

ROWS_MAX = 500


def page(
    title: str,
    subtitle: str,
    headline: str,
    tone: float,
    facts: Iterable[tuple[str, str]],
    notes: Iterable[str],
    sections: Iterable[str],
) -> str:
    """Return a whole page. `sections` are HTML already; the sign of `tone` colors the headline."""
    shown = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<p class="hero {_tone(tone)}">{escape(headline)}</p><dl>{shown}</dl>{said}
{"".join(sections)}
</main><script>{_SCRIPT}</script></body></html>
"""


def table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Return a table that scrolls by itself. Columns whose name begins with | stand right."""
    shown = rows[:ROWS_MAX]
    more = f", {len(shown)} of {len(rows):,}" if len(shown) < len(rows) else ""
    kinds = [' class="n"' if name.startswith("|") else "" for name in names]
    lines = [_row("th", kinds, [name.removeprefix("|") for name in names])]
    lines += [_row("td", kinds, row) for row in shown]
    return (
        f"<section><h2>{escape(title)} <small>{escape(note + more)}</small></h2>"
        f'<div class="wide"><table class="rows">{"".join(lines)}</table></div></section>'
    )


def _row(tag: str, kinds: Sequence[str], cells: Sequence[str]) -> str:
    pairs = zip(kinds, cells, strict=True)
    return f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in pairs)}</tr>"


def heat_map(
    title: str, corner: str, cells: Mapping[tuple[str, str], float], note: str = ""
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
            body += f'<td class="{kind}" style="--share:{share:.0f}%">{signed(money(value))}</td>'
    return (
        f"<section><h2>{escape(title)} <small>{escape(note)}</small></h2>"
        f'<div class="wide"><table class="heat"><tr><th>{escape(corner)}</th>{body}</tr></table>'
        "</div></section>"
    )


def bars(costs: Sequence[tuple[str, float]]) -> str:
    """Return amounts as bars to both sides of a middle line."""
    largest = max((abs(amount) for _, amount in costs), default=0) or 1
    rows = ""
    for name, amount in costs:
        width = abs(amount) / largest * 50
        left = 50 if amount >= 0 else 50 - width
        rows += (
            f'<tr><th>{escape(name)}</th><td><div><b class="{_tone(amount)}" '
            f'style="left:{left:.2f}%;width:{width:.2f}%"></b></div></td>'
            f"<td>{signed(money(amount))}</td></tr>"
        )
    return f'<section><h2>Where it went</h2><table class="bars">{rows}</table></section>'


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
.sell,.short{--c:var(--sell)}.lossline{--c:var(--bad)}.faint{--c:var(--soft)}
.chart{position:relative;height:270px;margin:0 0 20px 58px;touch-action:pan-y}
svg{position:absolute;width:100%;height:100%;overflow:visible}
path{fill:none;stroke:var(--c);stroke-width:1.4;vector-effect:non-scaling-stroke;
stroke-linejoin:round}path.grid{stroke:var(--rule);stroke-width:1}
path.range{fill:var(--band);stroke:none;opacity:.55}path.loss{fill:var(--bad);stroke:none;
opacity:.18}path.buy,path.sell{stroke-width:8;stroke-linecap:round}
path.long,path.short{stroke-width:8}path.faint{stroke-dasharray:4 3}
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
.wide{overflow-x:auto;max-height:560px;overflow-y:auto}.rows th,.rows td{text-align:left;
padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--rule);white-space:nowrap}
.rows th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:500}
.rows .n,.heat .n{text-align:right}h2 small{font-weight:400;font-size:.8rem}
.heat td,.heat th{padding:.35rem .6rem;white-space:nowrap;font-weight:400}.heat{width:auto}
.heat td.good{background:color-mix(in srgb,var(--good) var(--share),transparent)}
.heat td.bad{background:color-mix(in srgb,var(--bad) var(--share),transparent)}
.heat td.best{outline:2px solid var(--ink);outline-offset:-2px;font-weight:600}
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
