"""A page in one file that needs nothing else: no script, no font, no request."""

import re
from collections.abc import Iterator, Sequence

from textdiff.evaluation.comparison_tables import Table
from textdiff.page.characters import in_html
from textdiff.page.results import Results, Sample
from textdiff.page.sections import NO_PICTURES, Section
from textdiff.page.style import Picture, styled, svg
from textdiff.plots import can_draw

_CSS = """
:root { color-scheme: light dark; --ink: #24292f; --faint: #8a929b; --ground: #fff; --card: #f6f7f9; --rule: #d8dce1; --accent: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7eb; --faint: #8d959e; --ground: #15181c; --card: #1d2127; --rule: #363c44; --accent: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.2rem clamp(.8rem, 3vw, 2rem) 4rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule) }
p, ul { margin: .5rem 0; max-width: 46rem }
nav ul { padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem }
a { color: var(--accent) }
code, pre { font: .85rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code.command { display: block; padding: .6rem .8rem; background: var(--card); border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: .4rem 0; font-size: .95rem }
th, td { text-align: left; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; white-space: nowrap }
th { font-weight: 600; vertical-align: bottom }
tbody th { font-weight: 500 }
td.words { white-space: normal; min-width: 14rem }
td.number, th.number { text-align: right }
.note, figcaption { font-size: .85rem; opacity: .8; max-width: 46rem }
figure { margin: 1.2rem 0 }
figure svg { display: block; max-width: 100%; height: auto }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .8rem; margin: .8rem 0 1.6rem }
.samples > div { background: var(--card); border-radius: 4px; padding: .6rem .8rem; min-width: 0 }
.samples pre { margin: .4rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; tab-size: 4 }
.samples .from { font-size: .85rem; font-weight: 600 }
@media print {
  :root { --ink: #000; --faint: #777; --ground: #fff; --card: #fff; --rule: #bbb; --accent: #000 }
  body { max-width: none; padding: 0; font-size: 10pt }
  nav { display: none }
  .wide { overflow: visible }
  table { font-size: 7pt }
  th, td { white-space: normal; padding-right: .4rem }
  figure, tr, .samples > div { break-inside: avoid }
  h2, caption { break-after: avoid }
  figure svg { min-width: 0 !important }
  .samples > div { border: 1px solid var(--rule) }
}
"""


def page(results: Results, found: Sequence[Section]) -> str:
    """The page as text; equal results give equal bytes."""
    title = in_html(results.notes.title or "Comparison")
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>",
        *([f'<code class="command">{in_html(results.notes.command)}</code>'] if results.notes.command else []),
        *([] if can_draw() else [f"<p>{in_html(NO_PICTURES)}</p>"]),
        _contents(found),
        *(line for number, section in enumerate(found) for line in _section(number, section)),
        "</main>\n</body>\n</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _contents(found: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#section{number}">{in_html(section.title)}</a></li>' for number, section in enumerate(found))
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _section(number: int, section: Section) -> Iterator[str]:
    yield f'<section id="section{number}">\n<h2>{in_html(section.title)}</h2>'
    yield from (f"<p>{in_html(words)}</p>" for words in section.words)
    yield from map(_figure, section.pictures)
    yield from map(_table, section.tables)
    if section.lines:
        yield f"<ul>{''.join(f'<li>{in_html(line)}</li>' for line in section.lines)}</ul>"
    yield from map(_group, section.samples)
    yield "</section>"


def _figure(picture: Picture) -> str:
    with styled():
        drawn = svg(picture)
    caption = f"\n<figcaption>{in_html(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure>\n<div class="wide">{drawn}</div>{caption}\n</figure>'


def _table(table: Table) -> str:
    kinds = [_kind([row[column] for row in table.rows]) for column in range(len(table.columns))]
    head = "".join(f'<th scope="col"{kind}>{in_html(column)}</th>' for column, kind in zip(table.columns, kinds, strict=True))
    rows = "\n".join(f"<tr>{_cells(row, kinds)}</tr>" for row in table.rows)
    note = f'\n<p class="note">{in_html(table.note)}</p>' if table.note else ""
    title = f"<caption>{in_html(table.title)}</caption>"
    inside = f"{title}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return f'<div class="wide" tabindex="0">\n<table>\n{inside}\n</table>\n</div>{note}'


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    first = f'<th scope="row">{in_html(row[0])}</th>' if row else ""
    return first + "".join(f"<td{kind}>{in_html(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))


def _kind(cells: Sequence[str]) -> str:
    """How a column is set: numbers to the right, sentences in lines."""
    if all(re.fullmatch(r"[≤≈+\-\s]*[\d.,e+]+( ±.*)?( [*!])?|-", cell) for cell in cells):
        return ' class="number"'
    return ' class="words"' if any(len(cell) > 48 for cell in cells) else ""


def _group(samples: Sequence[Sample]) -> str:
    shown = "\n".join(
        f'<div><div class="from">{in_html(one.model)}</div><div class="note">{in_html(one.sampler)}</div>'
        f'<pre dir="auto">{in_html(one.text.strip())}</pre></div>'
        for one in samples
    )
    return f'<div class="samples">\n{shown}\n</div>'
