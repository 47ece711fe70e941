"""How a page looks: one style sheet for light and dark, without any file from elsewhere."""

import base64
import hashlib
from html import escape

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --sheet: #ffffff; --ink: #1c1d21; --soft: #575b66; --rule: #dcdde2; --bar: #cfe0fb;
  --c0: #1f5fbf; --c1: #b8430e; --c2: #15784a; --c3: #8a3ab0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --sheet: #1c1f25; --ink: #eceef2; --soft: #a9afbb; --rule: #363b45; --bar: #24406d;
    --c0: #7fb0ff; --c1: #ff9d6b; --c2: #63d69c; --c3: #d79cf5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 1.2rem; }
p { margin: 8px 0; }
.model { color: var(--soft); font-family: ui-monospace, monospace; }
.note { border-left: 4px solid var(--c1); padding-left: 12px; }
section { margin-top: 36px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 20px; }
.card { background: var(--sheet); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.card h2 { margin: 0; font-size: .95rem; font-weight: 600; color: var(--soft); }
.card p { margin: 0; color: var(--soft); font-size: .9rem; }
.card .value { color: var(--ink); font-size: 2rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
figure { margin: 0; }
.chart { background: var(--sheet); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.chart figcaption { font-weight: 600; }
.chart svg, .chart img { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 13px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.curve.c0 { stroke: var(--c0); } .curve.c1 { stroke: var(--c1); }
.curve.c2 { stroke: var(--c2); } .curve.c3 { stroke: var(--c3); }
.dot.c0 { fill: var(--c0); } .dot.c1 { fill: var(--c1); } .dot.c2 { fill: var(--c2); } .dot.c3 { fill: var(--c3); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 6px 0 0; }
.legend span { display: inline-flex; align-items: center; gap: 8px; }
.legend svg.key { width: 28px; height: 12px; flex: none; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: var(--sheet); font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--rule); padding: 5px 12px; text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; text-align: left; }
th.text, td.text { text-align: left; white-space: normal; }
td.bar { min-width: 110px; background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share)); }
.pair { margin-top: 20px; }
.pair div { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.pair img { display: block; width: 100%; height: auto; border-radius: 6px; }
.pair figcaption { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
ul { padding-left: 20px; overflow-wrap: anywhere; }
summary { cursor: pointer; font-family: ui-monospace, monospace; }
pre { background: var(--sheet); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px;
  overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; }
@media print { details > pre { overflow: visible; white-space: pre-wrap; } .pair { break-inside: avoid; } }
"""


def whole_page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """An HTML page that needs no network.

    Args:
        title: text.
        body: HTML.
        style: CSS after that of all pages.
        script: JavaScript, run after the body. A page with a script may show pictures that lie beside it.
    """
    # Even a class name that got past the escaping could load or run nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f" file: 'self'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )
