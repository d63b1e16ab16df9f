"""The look of the report page, light and dark."""

from __future__ import annotations

STYLE = """
:root{--ink:#1c2024;--soft:#5b6570;--line:#e2e6ea;--paper:#fff;--tint:#f6f8fa;--good:#1a7f4b;--goodbg:#e5f5ec;
--bad:#b3261e;--badbg:#fdebe9;--warn:#8a6100;--warnbg:#fdf3d8;--link:#0b5cad}
@media(prefers-color-scheme:dark){:root{--ink:#e7eaee;--soft:#9aa5b1;--line:#2c333b;--paper:#12161b;--tint:#1a2027;
--good:#56d08c;--goodbg:#12301f;--bad:#ff8a80;--badbg:#3a1513;--warn:#f0c252;--warnbg:#33290e;--link:#79b8ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:62rem;margin:0 auto;padding:3.5rem 1.25rem 4rem}
a{color:var(--link);text-underline-offset:2px}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.eyebrow{margin:0;color:var(--soft);font-size:.8rem;letter-spacing:.08em;text-transform:uppercase}
h1{margin:.1rem 0 0;font-size:2.6rem;line-height:1.15;letter-spacing:-.02em}
h2{margin:0 0 .25rem;font-size:1.2rem}
h2 small{color:var(--soft);font-weight:400;font-size:.85rem;margin-left:.4rem}
.what{margin:.35rem 0 1.25rem;color:var(--soft)}
.note{margin:.25rem 0 .75rem;color:var(--soft);font-size:.9rem}
.verdict{display:inline-flex;align-items:center;gap:.75rem;margin:0 0 .25rem;padding:.55rem 1rem;
border-radius:.6rem;font-size:1.2rem;font-weight:650}
.verdict.good{color:var(--good);background:var(--goodbg)}
.verdict.bad{color:var(--bad);background:var(--badbg)}
.verdict.open{color:var(--warn);background:var(--warnbg)}
.tier{font-size:.78rem;font-weight:600;padding:.1rem .55rem;border:1px solid currentColor;border-radius:1rem}
.figures{display:flex;flex-wrap:wrap;gap:.5rem 1.75rem;margin:1.25rem 0 0;padding:1rem 0;list-style:none;
border-block:1px solid var(--line);color:var(--soft)}
.figures b{color:var(--ink);font-size:1.35rem;font-variant-numeric:tabular-nums;margin-right:.2rem}
.figures .pass b{color:var(--good)}.figures .fail b{color:var(--bad)}.figures .waived b{color:var(--warn)}
section,footer{margin-top:2.75rem}
.attention ul{margin:.5rem 0 0;padding:0;list-style:none}
.attention li{padding:.65rem 0;border-top:1px solid var(--line)}
.scroll{overflow-x:auto}
table{width:100%;border-collapse:collapse;font-size:.92rem}
th,td{padding:.5rem .75rem .5rem 0;text-align:left;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-size:.78rem;font-weight:500}
tbody th{font-weight:550;white-space:nowrap}
tr:target{background:var(--tint)}
.id{font:.84em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:nowrap}
.rules td:nth-child(2){color:var(--soft);font-size:.78rem}
.pill{display:inline-block;padding:.05rem .55rem;border-radius:1rem;font-size:.78rem;font-weight:600;
white-space:nowrap;background:var(--tint);color:var(--soft)}
.pill.pass{color:var(--good);background:var(--goodbg)}
.pill.fail{color:var(--bad);background:var(--badbg)}
.pill.waived{color:var(--warn);background:var(--warnbg)}
.message{display:block;margin-top:.15rem;color:var(--soft);font-size:.88rem;overflow-wrap:anywhere}
code.has,code.lacks{display:inline-block;margin:0 .35rem .2rem 0;padding:.05rem .4rem;border-radius:.3rem;
background:var(--tint)}
code.lacks{color:var(--soft);text-decoration:line-through;background:none}
.yes{color:var(--good);font-weight:600}.no{color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.25rem;margin:.5rem 0 1rem;font-size:.88rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media print{main{padding:0;max-width:none}section{break-inside:avoid}}
""".strip()
