"""HTML for pages that need nothing but themselves: the frame around charts, cards, tables.

Bokeh's script, the style and the script of the page are inside; a Content-Security-Policy forbids the page to ask the
network for anything. What is text here is escaped here: `escape` is called wherever text becomes HTML, nowhere else.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from html import escape
from pathlib import Path

from bokeh.document import Document
from bokeh.embed import components
from bokeh.models import CustomJS
from bokeh.plotting import figure
from bokeh.resources import Resources

RELOAD_SECONDS = 20  # of a page that shows a run in progress, when nobody touches it
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline' blob:; img-src data: blob:"
)


def document(title: str, body: Iterable[str], charts: Mapping[str, figure], live: bool = False) -> str:
    """A whole page.

    body     HTML that holds `chart_place(name)` for each of the charts
    live     reload by and by, when nobody touches the page
    """
    text, drawn = "\n".join(body), ""
    if charts:
        holder = Document()
        for chart in charts.values():
            holder.add_root(chart)
        holder.js_on_event("document_ready", CustomJS(code="charts_are_ready()"))
        drawn, places = components(dict(charts), wrap_script=False)
        for name, place in places.items():
            text = text.replace(chart_place(name), place)
    page = f"""<!doctype html>
<html lang="en"{f' data-reload-seconds="{RELOAD_SECONDS}"' if live else ""}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{own_file("page.css")}</style>
</head>
<body>
<main>
{text}
</main>
<script>{bokeh_script() if charts else ""}</script>
<script>
{own_file("page.js")}{drawn}</script>
</body>
</html>
"""
    return page.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can spell, has no UTF-8


@cache
def bokeh_script() -> str:
    """BokehJS, as much of it as draws charts: 1.3 MB."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw)


@cache
def own_file(name: str) -> str:
    """The text of a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def chart_place(name: str) -> str:
    """Where `document` puts a chart."""
    return f"<!-- chart {name} -->"


def heading(name: str, state: str) -> str:
    """A name, what state it is in, and when this was."""
    now = datetime.now().astimezone()
    time = f'<time datetime="{now.isoformat(timespec="seconds")}">{now:%Y-%m-%d %H:%M}</time>'
    return f"<header><h1>{escape(name)}</h1><span class=state>{escape(state)} · {time}</span></header>"


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """(what, how much), side by side."""
    cells = "".join(f"<div><span>{escape(what)}</span><b>{escape(value)}</b></div>" for what, value in figures)
    return f'<div class="figures">{cells}</div>'


def section(title: str, content: str, note: str = "", width: str = "") -> str:
    """A card: title and note are text, content is HTML; width: "third", "half", "most" of a wide page, or all."""
    return f'<section class="{width}"><h2>{escape(title)}</h2>{paragraph(note) if note else ""}{content}</section>'


def paragraph(text: str, kind: str = "") -> str:
    """Text of its own."""
    return f'<p class="{kind}">{escape(text)}</p>'


def table(rows: Iterable[Sequence[str]], *, code: bool = False, numbers: bool = False, kind: str = "") -> str:
    """Rows of text, of which the first cell is a heading, and the first row, if `kind` is "headed …", too.

    code      the first cell of a row is code
    numbers   the other cells are numbers
    """
    lines = []
    for i, (first, *others) in enumerate(rows):
        is_head = kind.startswith("headed") and i == 0
        tag, number = "th" if is_head else "td", " class=number" if numbers else ""
        name = f"<code>{escape(first).replace('.', '.<wbr>')}</code>" if code and not is_head else escape(first)
        cells = "".join(f"<{tag}{number}>{escape(cell)}</{tag}>" for cell in others)
        lines.append(f"<tr><th>{name}</th>{cells}</tr>")
    return f'<div class="wide"><table class="{kind}">{"".join(lines)}</table></div>'


def foldable(title: str, text: str, is_open: bool) -> str:
    """Text as it stands, under a title that folds it away."""
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
