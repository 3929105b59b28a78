"""The look of HTML pages that need nothing but themselves, on light and on dark."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --paper: #ffffff; --card: #f7f8fa; --line: #d9dde3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a0a6ae; --paper: #14171a; --card: #1c2024; --line: #363b41 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 72rem; margin: auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 1rem }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 0 0 .5rem }
p { max-width: 46rem; margin: .5rem 0 } .soft { color: var(--soft) }
.charts { display: grid; gap: 1rem; margin: 1rem 0 }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)) }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem }
figcaption { font-weight: 600; margin-bottom: .4rem }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem; margin: auto; color: var(--ink) }
figure svg text { font-family: system-ui, sans-serif !important }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .6rem; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; min-width: 100% }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
tr:last-child td { border-bottom: 0 } th { background: var(--card); font-weight: 600 }
td:first-child, th:first-child { text-align: left } summary { cursor: pointer; font-weight: 600 }
@media (max-width: 40rem) {
  table { font-size: .78rem } th, td { padding: .35rem .3rem }
  td:first-child, th:first-child { white-space: normal; min-width: 7.5rem }
}
"""
