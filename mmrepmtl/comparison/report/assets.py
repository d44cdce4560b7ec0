"""Style and script of the page; nothing in them refers to a file or an address."""

CSS = """
:root {color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent);
  --faint: color-mix(in srgb, currentColor 62%, transparent); --mark: #e0a02033;
  --soft: color-mix(in srgb, currentColor 6%, transparent)}
body {font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 24px 64px; max-width: min(96vw, 1480px);
  background: Canvas; color: CanvasText}
h1 {font-size: 24px; margin: 28px 0 4px}
h2 {font-size: 19px; margin: 44px 0 8px; scroll-margin-top: 56px}
h3 {font-size: 15px; margin: 20px 0 6px}
p, li {max-width: 110ch}
ul {padding-left: 20px; margin: 4px 0}
li {margin: 2px 0}
a {color: inherit}
summary {cursor: pointer; margin: 6px 0}
nav {display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0}
.note {color: var(--faint); font-size: 13px}
.missing {border-left: 3px solid #d64545; padding: 2px 12px; margin: 12px 0; font-size: 14px}
.scroll {overflow-x: auto}
svg {max-width: 100%; height: auto; display: block; margin: 6px 0}
table {border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12px; margin: 8px 0}
th, td {padding: 4px 7px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap}
th:first-child, td:first-child {text-align: left; position: sticky; left: 0; background: Canvas}
thead th {vertical-align: bottom; border-bottom: 1px solid currentColor}
thead th {white-space: normal}
th.text {text-align: left}
th.task {text-align: center; border-bottom: 1px solid var(--line)}
td.text {text-align: left; white-space: normal}
tbody tr:hover {background: var(--soft)}
tr.base td {color: var(--faint)}
tr.differs td {background: var(--mark)}
td.first {font-weight: 700}
td.second {text-decoration: underline}
th button {all: unset; cursor: pointer}
th button:focus-visible {outline: 2px solid Highlight}
th[aria-sort=ascending] button::after {content: ' \\25b4'}
th[aria-sort=descending] button::after {content: ' \\25be'}
.methods {display: flex; flex-wrap: wrap; gap: 4px 14px; position: sticky; top: 0; background: Canvas; padding: 8px 0;
  border-bottom: 1px solid var(--line); z-index: 1; font-size: 13px}
.methods label {cursor: pointer; white-space: nowrap}
.methods svg {display: inline-block; vertical-align: 1px; margin: 0 4px 0 0}
.samples {display: grid; gap: 6px 8px; overflow-x: auto; justify-content: start; font-size: 12px; margin: 8px 0 28px}
.samples img, img.input {display: block; width: 132px; height: auto; image-rendering: pixelated; border-radius: 2px}
.samples .head {font-weight: 600; max-width: 132px; overflow-wrap: anywhere; align-self: end}
.samples .name {position: sticky; left: 0; background: Canvas; padding-right: 8px; align-self: center}
.samples .legend {width: 170px}
.samples .words {min-width: 132px; align-self: center}
.swatch {white-space: nowrap; margin-right: 10px; display: inline-block}
.swatch i {display: inline-block; width: 11px; height: 11px; margin-right: 4px; border: 1px solid #888;
  vertical-align: -1px}
"""

JS = """
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.querySelectorAll('th[data-column]')]
  const number = cell => cell.dataset.value === '' ? NaN : Number(cell.dataset.value)
  for (const head of heads) head.querySelector('button').addEventListener('click', () => {
    const column = Number(head.dataset.column), before = head.getAttribute('aria-sort')
    const first = head.dataset.first
    const order = before === first ? (first === 'ascending' ? 'descending' : 'ascending') : first
    for (const other of heads) other.setAttribute('aria-sort', other === head ? order : 'none')
    const sign = order === 'ascending' ? 1 : -1, body = table.tBodies[0]
    const key = row => row.cells[column]
    const rows = [...body.rows].sort((a, b) => {
      if (head.dataset.text !== undefined) return sign * key(a).textContent.localeCompare(key(b).textContent)
      const x = number(key(a)), y = number(key(b))
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y)
      return sign * (x - y)
    })
    body.append(...rows)
  })
}
for (const box of document.querySelectorAll('.methods input'))
  box.addEventListener('change', () => {
    for (const part of document.querySelectorAll('.m' + box.value)) part.style.display = box.checked ? '' : 'none'
  })
"""
