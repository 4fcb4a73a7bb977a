"""The page of one run: HTML around the charts, one file that needs nothing else.

Bokeh's script is inside; a Content-Security-Policy forbids the page to ask the network for anything. Whatever came
from a run (its name, settings, samples) is escaped.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.embed import components
from bokeh.models import CustomJS
from bokeh.plotting import figure
from bokeh.resources import Resources

from data.files import write_whole
from model import GPTConfig
from training.report.charts import run_charts
from training.report.facts import with_facts
from training.report.picture import loss_picture
from training.report.record import Record, read_record
from training.report.thinning import MOST_POINTS, thin_list

MOST_SAMPLES = 24
MOST_CHARACTERS = 4000  # of a sample
RELOAD_SECONDS = 20  # of a page that shows a run in progress

POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline' blob:; img-src data: blob:"

STYLE = """
:root { color-scheme: light dark; --font: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  --ground: #f6f7f9; --card: #ffffff; --ink: #1c2330; --dim: #667085; --line: #e4e7ec;
  --train: #2f6fed; --val: #e0632b; --base: #8a94a6; --good: #16803c }
@media (prefers-color-scheme: dark) { :root {
  --ground: #0f1318; --card: #171c23; --ink: #e6e9ef; --dim: #98a2b3; --line: #2a313c;
  --train: #6ea1ff; --val: #ff955c; --base: #7d8898; --good: #4ade80 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 var(--font) }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .3rem 1rem; margin-bottom: 1.1rem }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.02rem; margin: 0 0 .1rem }
p { margin: .15rem 0 .8rem; color: var(--dim); font-size: .88rem; max-width: 62rem }
.state { font-size: .88rem; color: var(--dim) }
.state b { color: var(--good); font-weight: 600 }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .7rem; margin-bottom: .9rem }
.figures div, section { background: var(--card); border: 1px solid var(--line); border-radius: 12px }
.figures div { padding: .7rem .9rem }
.figures b { display: block; font-size: 1.28rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums }
.figures span { font-size: .8rem; color: var(--dim) }
.board { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .9rem }
section { padding: .95rem 1rem; grid-column: span 6; min-width: 0 }
@media (min-width: 56rem) { .third { grid-column: span 2 } .half { grid-column: span 3 } .most { grid-column: span 4 } }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500; color: var(--dim) }
td, th { padding: .22rem .8rem .22rem 0; vertical-align: top; border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
tr:last-child > * { border-bottom: 0 }
.number { text-align: right; white-space: nowrap; padding-right: .2rem }
td code, th code { font: .92em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.changed { font-weight: 650; color: var(--ink) }
.columns { columns: 13rem; column-gap: 2rem }
.columns table { break-inside: avoid; margin-bottom: .9rem }
caption { text-align: left; font-weight: 600; padding-bottom: .1rem }
.wide { overflow-x: auto }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 .9rem; padding: .75rem .9rem; background: var(--ground);
  border-radius: 8px; font: .88rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; max-height: 26rem; overflow-y: auto }
summary { cursor: pointer; padding: .2rem 0 }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 3px; margin-right: .5em }
.warn { color: var(--val) }
footer { margin-top: 1.2rem; color: var(--dim); font-size: .82rem }
"""

# Paints the charts in the reader's theme; lets a finger read values as a mouse does (Bokeh knows hovering only) and
# scroll the page; and, while the run goes on, shows the newest page to a reader who is not in the middle of something.
SCRIPT = """
const dark = matchMedia('(prefers-color-scheme: dark)');
function paint() {
  const style = getComputedStyle(document.documentElement);
  for (const doc of Bokeh.documents) for (const model of doc.all_models ?? doc._all_models.values())
    for (const tag of model.tags ?? []) {
      const [property, variable] = tag.split(':');
      model[property] = style.getPropertyValue('--' + variable).trim();
    }
}
function touch() {
  if (!matchMedia('(pointer: coarse)').matches) return;
  for (const doc of Bokeh.documents) for (const model of doc.roots()) model.toolbar.active_drag = null;
}
dark.addEventListener('change', paint);
let kind = 'mouse', used = 0;
for (const name of ['pointerdown', 'pointermove', 'wheel', 'scroll', 'keydown'])
  addEventListener(name, event => { used = Date.now(); kind = event.pointerType ?? kind }, {capture: true, passive: true});
addEventListener('click', event => {
  if (kind == 'mouse') return;
  const {clientX, clientY} = event;
  event.composedPath()[0].dispatchEvent(
    new PointerEvent('pointermove', {clientX, clientY, bubbles: true, composed: true, isPrimary: true, pointerType: 'mouse'}));
}, true);
"""
RELOAD = """
const opened = Date.now();
setInterval(() => {
  if (!document.hidden && Date.now() - Math.max(used, opened) > RELOAD_SECONDS * 1000) location.reload();
}, 1000);
"""


def write_report(folder: Path, live: bool = False) -> Path:
    """Write report.html into a run folder from what lies there, and loss.png unless `live`; returns the page.

    live   the run is going on: the page shows its newest self by and by

    Raises UserError where the folder holds no run, OSError where it can't be written.
    """
    record = with_facts(read_record(folder))
    page = folder / "report.html"
    write_whole(page, run_page(record, live))
    if not live:
        (folder / "loss.png").write_bytes(loss_picture(record))
    return page


def run_page(record: Record, live: bool = False) -> str:
    """The page of a run as HTML; `live`: see `write_report`."""
    charts = run_charts(record)
    steps = record.settings.train.steps
    state = f"<b>done</b>, {record.steps_done:,} steps"
    if record.steps_done < steps:
        state = f"{'<b>training</b>, ' if live else ''}step {record.steps_done:,} of {steps:,}"
    body = [
        heading(record.name, state),
        figures_html(key_figures(record)),
        '<div class="board">',
        *chart_sections(record, charts),
        samples_section(record),
        model_section(record),
        settings_section(record),
        "</div>",
    ]
    return document(f"{record.name} · groundup", body, charts, RELOAD if live else "")


def document(title: str, body: Iterable[str], charts: Mapping[str, figure], script: str = "") -> str:
    """A whole page: `body` holds `chart_place(name)` for each of the charts."""
    head = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>
"""
    text = "\n".join(body)
    drawn = ""
    if charts:
        holder = Document()
        for chart in charts.values():
            holder.add_root(chart)
        holder.js_on_event("document_ready", CustomJS(code="paint(); touch()"))
        code, places = components(dict(charts), wrap_script=False, wrap_plot_info=True)
        for name, place in places.items():
            text = text.replace(chart_place(name), place)
        drawn = f"<script>{bokeh_script()}</script>\n<script>{SCRIPT}\n{code}</script>\n"
    script = script.replace("RELOAD_SECONDS", str(RELOAD_SECONDS))
    script = f"<script>{'' if charts else 'let used = 0;'}{script}</script>" if script else ""
    page = f"{head}{text}\n</main>{drawn}{script}</body></html>\n"
    return page.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can spell, has no UTF-8


@cache
def bokeh_script() -> str:
    """BokehJS, the part that draws charts."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw)


def chart_place(name: str) -> str:
    """Where `document` puts a chart."""
    return f"<!-- chart {name} -->"


# -- the parts of the page ---------------------------------------------------------------------------------


def heading(name: str, state: str) -> str:
    """The name, what state it is in (HTML), and when this was."""
    now = datetime.now().astimezone()
    return (
        f"<header><h1>{escape(name)}</h1><span class=state>{state} · "
        f'<time datetime="{now.isoformat(timespec="seconds")}">{now:%Y-%m-%d %H:%M}</time></span></header>'
    )


def figures_html(figures: Iterable[tuple[str, str]]) -> str:
    """Tiles of (what, how much)."""
    tiles = "".join(f"<div><span>{escape(what)}</span><b>{escape(value)}</b></div>" for what, value in figures)
    return f'<div class="figures">{tiles}</div>'


def key_figures(record: Record) -> list[tuple[str, str]]:
    """The numbers one asks for first."""
    figures = []
    if (best := record.best) is not None:
        figures += [
            ("best validation loss", f"{record.val['loss'][best]:.4f}"),
            ("bits per byte", f"{record.val['bits_per_byte'][best]:.4f}"),
        ]
    if config := model_config(record):
        figures.append(("parameters", short_number(config.num_parameters())))
    if record.steps_done:
        figures.append(("tokens read", short_number(record.steps_done * record.tokens_per_step)))
        rate = typical_rate(record)
        figures.append(("tokens per second", f"{rate:,.0f}" if math.isfinite(rate) else "–"))
        if math.isfinite(mfu := 100 * rate * record.mfu_per_token_rate):
            figures.append(("MFU", f"{mfu:.1f}\u202f%"))
        figures.append(("time in updates", duration(float(record.seconds[-1]))))
    return figures


def typical_rate(record: Record) -> float:
    """The median of tokens per second; NaN where none are known."""
    rates = sorted(rate for rate in record.train["tokens_per_second"].tolist() if math.isfinite(rate))
    return rates[len(rates) // 2] if rates else math.nan


def short_number(value: float) -> str:
    """1,967,808 → 1.97M"""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            scale = 1e3 if letter == "k" else unit
            return f"{value / scale:.3g}{letter}" if value / scale < 999.5 else f"{value / scale:,.0f}{letter}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """5025 → 1 h 24 min"""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1:
        return f"{int(hours)}\u202fh {int(minutes) % 60}\u202fmin"
    return f"{int(minutes)}\u202fmin {int(seconds) % 60}\u202fs" if minutes >= 1 else f"{seconds:.1f}\u202fs"


def model_config(record: Record) -> GPTConfig | None:
    """The model's shape; None where the run does not tell yet."""
    try:
        return GPTConfig.from_dict(record.facts["model"])
    except (KeyError, TypeError, ValueError):
        return None


def section(title: str, content: str, note: str = "", width: str = "") -> str:
    """A card: title and note are text, content is HTML."""
    note = f"<p>{escape(note)}</p>" if note else ""
    return f'<section class="{width}"><h2>{escape(title)}</h2>{note}{content}</section>'


def chart_sections(record: Record, charts: Mapping[str, figure]) -> list[str]:
    """The charts that there are, each with what to know to read it."""
    n = len(record.train["step"])
    thinned = f" {n:,} steps are shown by {MOST_POINTS:,} points; lows and highs are all there." if n > MOST_POINTS else ""
    baselines = record.facts.get("baselines") or {}
    places = {
        "loss": ("Loss", "Point at a chart to read it. Drag to zoom in, double-click to see all again." + thinned, "most"),
        "baselines": ("What it is worth", baseline_note(baselines), "third"),
        "lr": ("Learning rate", "", "third"),
        "grad_norm": ("Gradient norm", "", "third"),
        "throughput": ("Throughput", "", "third"),
        "update": (
            "Update beside weight, by layer",
            "How far one update moves a layer: |Δw| / |w|. About 1e-3 is healthy for AdamW.", "half",
        ),
        "gradient": (
            "Gradient beside weight, by layer", "|g| / |w| before clipping. A row that differs by magnitudes stands out.",
            "half",
        ),
        "attention": ("Attention", attention_note(record), "half"),
    }  # fmt: skip
    if "baselines" not in charts:
        places["loss"] = (*places["loss"][:2], "")
    sections = [section(title, chart_place(name), note, width) for name, (title, note, width) in places.items() if name in charts]
    if not charts:
        sections.append(section("Loss", "", "Nothing has been logged yet."))
    if record.left_out:
        which = "; ".join(f"{step:,}: {reason}" for step, reason in record.left_out[:12])
        more = f"; and {len(record.left_out) - 12:,} more" if len(record.left_out) > 12 else ""
        sections.insert(0, section("Steps left out", f'<div class="warn">{escape(which + more)}</div>'))
    bad = record.train["step"][~np.isfinite(record.train["loss"])]
    if len(bad):
        which = ", ".join(f"{int(step):,}" for step in bad[:12]) + (" …" if len(bad) > 12 else "")
        sections.insert(0, section("Not finite", f'<div class="warn">The loss at {len(bad):,} steps: {which}</div>'))
    return sections


def baseline_note(baselines: Mapping[str, Any]) -> str:
    """What the bars compare."""
    def count(key: str) -> str:
        return short_number(float(baselines.get(key) or 0))

    part = "" if baselines.get("val_bytes") == baselines.get("all_val_bytes") else f" of {count('all_val_bytes')}"
    return (
        f"Bits per byte on the same held-out text ({count('val_bytes')}{part} bytes); less is better. Order k: an n-gram "
        f"model of bytes that sees k before, learnt from {count('train_bytes')} bytes of the training text. "
        f"xz sees the held-out text only."
    )


def attention_note(record: Record) -> str:
    """How to read the maps."""
    attention = record.facts.get("attention") or {}
    n = len(attention.get("tokens") or ())
    return (
        f"The first {n} tokens of the sample at step {attention.get('step', 0):,}, for every layer and head. In each square, "
        f"rows are the tokens that look, from the top down, and columns those that are looked at."
    )


def samples_section(record: Record) -> str:
    """Texts, newest first and open."""
    shown = thin_list(record.samples, MOST_SAMPLES)
    items = []
    for i, sample in enumerate(reversed(shown)):
        text = sample["text"]
        text = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
        opened = " open" if i < 1 else ""
        items.append(f"<details{opened}><summary>Step {escape(str(sample['step']))}</summary><pre>{escape(text)}</pre></details>")
    note = f"{len(shown)} of {len(record.samples)}, at even distances." if len(shown) < len(record.samples) else ""
    return section("Samples", "".join(items) or "<p>None were taken yet.</p>", note, "half")


def model_section(record: Record) -> str:
    """Layer, shape, parameters: what is the same in every block stands once."""
    config = model_config(record)
    if config is None:
        return section("Model", "<p>Not made yet.</p>", "", "half")
    rows: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in config.parameter_shapes():
        first, _, rest = name.partition(".")
        key = f"blocks.*.{rest.partition('.')[2]}" if first == "blocks" else name
        rows[key, shape] = rows.get((key, shape), 0) + 1
    total = config.num_parameters()
    lines = []
    for (name, shape), count in rows.items():
        times = f" × {count}" if name.startswith("blocks.*") else ""
        numbers = math.prod(shape) * count
        lines.append(
            f"<tr><td><code>{escape(name)}</code></td><td class=number>{' × '.join(map(str, shape))}</td>"
            f"<td class=number>{times}</td><td class=number>{numbers:,}</td><td class=number>{100 * numbers / total:.1f}\u202f%</td></tr>"
        )
    table = (
        "<div class=wide><table><tr><th>layer</th><th class=number>shape</th><th></th><th class=number>parameters</th><th></th></tr>"
        f"{''.join(lines)}<tr><th>total</th><th></th><th></th><th class=number>{total:,}</th><th></th></tr></table></div>"
    )
    summary = record.facts.get("summary")
    note = "; ".join(f"{key.lower()}: {value}" for key, value in summary.items()) if isinstance(summary, dict) else ""
    return section("Model", table, note, "half")


def settings_section(record: Record) -> str:
    """Every setting; those that are not the default stand out."""
    changed = record.changed_settings()
    tables = []
    for name, values in record.settings.sections().items():
        rows = "".join(
            f"<tr><th{' class=changed' if f'{name}.{key}' in changed else ''}><code>{escape(key)}</code></th>"
            f"<td{' class=changed' if f'{name}.{key}' in changed else ''}>{escape(setting_text(value))}</td></tr>"
            for key, value in values.items()
        )
        tables.append(f"<table><caption>{escape(name)}</caption>{rows}</table>")
    return section("Settings", f'<div class="columns">{"".join(tables)}</div>', "In bold: not the default.", "half")


def setting_text(value: Any) -> str:
    """A setting as one would write it."""
    if value is None:
        return "–"
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)
