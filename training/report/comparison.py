"""Several runs on one page: what they reached, and by which settings they differ.

Losses in nats per token compare only over the same tokens; bits per byte compare wherever the text is the same. So runs
are ranked, and drawn against tokens read and against time, by bits per byte.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from bokeh.models import ColumnDataSource, NumeralTickFormatter
from bokeh.palettes import Category10_10
from bokeh.plotting import figure

from training.report.charts import (
    SHORT,
    Steps,
    base_chart,
    baseline_rows,
    hover,
    limits,
    marked_level,
    themed,
)
from training.report.page import (
    chart_place,
    document,
    duration,
    heading,
    model_config,
    section,
    setting_text,
    short_number,
    typical_rate,
)
from training.report.record import Record
from training.report.thinning import smooth, thin

DASHES = ("solid", "dashed", "dotted", "dotdash")


def comparison_page(records: Sequence[Record]) -> str:
    """The page of several runs, the best first."""
    names = run_names([record.folder for record in records])
    order = sorted(range(len(records)), key=lambda i: best_bits(records[i]))
    runs = [(names[i], records[i]) for i in order]
    charts = comparison_charts(runs)
    titles = {
        "tokens": ("Validation, by tokens read", "Point at a line to read it, click on a name to hide it."),
        "time": ("Validation, by time in updates", "How fast a run got there on its machine."),
        "train": ("Training loss, smoothed", "In nats per token: comparable where the tokenizer is the same."),
    }
    body = [
        heading("Comparison", f"{len(runs)} runs"),
        '<div class="board">',
        section("Runs", runs_table(runs), same_text(runs)),
        *(section(title, chart_place(key), note, "half") for key, (title, note) in titles.items() if key in charts),
        section("Settings that differ", settings_table(runs), "", "half" if "train" in charts else ""),
        section("Last samples", samples_html(runs)),
        "</div>",
    ]
    return document("Comparison · groundup", body, charts)


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def best_bits(record: Record) -> float:
    """The lowest bits per byte on the validation split; infinite where there was no evaluation."""
    return float(record.val["bits_per_byte"][record.best]) if record.best is not None else math.inf


def same_text(runs: Sequence[tuple[str, Record]]) -> str:
    """Whether bits per byte compare."""
    sources = {(r.settings.data.source, r.settings.data.val_fraction) for _, r in runs}
    if len(sources) == 1:
        return "All were scored on the same text: bits per byte compare."
    return "Not all were scored on the same text: compare bits per byte only where data.source and data.val_fraction agree."


def colour(i: int) -> tuple[str, str]:
    """Colour and dash of the i-th line: forty differ."""
    return Category10_10[i % 10], DASHES[i // 10 % len(DASHES)]


def comparison_charts(runs: Sequence[tuple[str, Record]]) -> dict[str, figure]:
    """Validation against tokens and against time, and training against steps; what there are data for."""
    charts = {}
    scored = [(i, name, record) for i, (name, record) in enumerate(runs) if record.best is not None]
    if scored:
        levels = {baseline for _, _, record in scored for baseline in baseline_rows(record)}
        for key, label, unit in (("tokens", "tokens read", 1), ("time", "minutes", 60)):
            xs = {}
            for i, _, record in scored:
                by_tokens = record.val["step"] * record.tokens_per_step
                by_time = np.interp(record.val["step"], record.train["step"], record.seconds) if len(record.seconds) else by_tokens * 0
                xs[i] = (by_tokens if key == "tokens" else by_time) / unit
            chart = base_chart(
                Steps.up_to(max(float(x.max()) for x in xs.values())), "bits per byte", height=330, x_label=label,
                y_range=limits(*(record.val["bits_per_byte"] for _, _, record in scored)),
            )  # fmt: skip
            for i, name, record in scored:
                line_of(chart, i, name, xs[i], record.val["bits_per_byte"], label, "bits per byte", dots=True)
            shown = [(name, bits) for name, bits in levels if chart.y_range.start <= bits <= chart.y_range.end]
            for name, bits in shown if len(levels) <= 3 else ():  # the runs share their text
                marked_level(chart, bits, name)
            chart.xaxis.formatter = NumeralTickFormatter(format=SHORT if key == "tokens" else "0.[0]")
            legend_below(chart)
            charts[key] = chart
    trained = [(i, name, record) for i, (name, record) in enumerate(runs) if np.isfinite(record.train["loss"]).any()]
    if trained:
        lines = {i: smooth(record.train["loss"]) for i, _, record in trained}
        chart = base_chart(
            Steps.up_to(max(record.steps_done for _, _, record in trained)), "nats per token", height=330,
            y_range=limits(*lines.values()),
        )  # fmt: skip
        for i, name, record in trained:
            kept = thin(lines[i])
            line_of(chart, i, name, record.train["step"][kept], lines[i][kept], "step", "nats per token")
        legend_below(chart)
        charts["train"] = chart
    return charts


def line_of(
    chart: figure, i: int, name: str, x: np.ndarray, y: np.ndarray, x_label: str, y_label: str, dots: bool = False
) -> None:
    """A run's line in a chart, with values to read."""
    source = ColumnDataSource({"x": x, "y": y, "name": [name] * len(x)})
    ink, dash = colour(i)
    line = chart.line("x", "y", source=source, line_width=2, color=ink, line_dash=dash, legend_label=name)
    if dots:
        chart.scatter("x", "y", source=source, size=5, color=ink, legend_label=name)
    hover(chart, line, [("", "@name"), (x_label, "@x{0,0.[0]}"), (y_label, "@y{0.0000}")])
    chart.hover[-1].mode = "mouse"


def legend_below(chart: figure) -> None:
    """Names of runs can be long: in a column under the chart, without a box; a click hides a line."""
    for legend in chart.legend:
        themed(legend, label_text_color="ink")
        legend.update(
            click_policy="hide", label_text_font_size="12px", background_fill_alpha=0, border_line_alpha=0, padding=0,
            spacing=2, margin=6, glyph_height=14,
        )  # fmt: skip
        chart.add_layout(legend, "below")
        chart.height += 18 * len(legend.items)


def runs_table(runs: Sequence[tuple[str, Record]]) -> str:
    """What each run reached."""
    heads = ("run", "bits per byte", "validation loss", "at step", "steps", "parameters", "tokens read", "tokens/s", "MFU", "time")
    lines = []
    for i, (name, record) in enumerate(runs):
        best, config, rate = record.best, model_config(record), typical_rate(record)
        mfu = 100 * rate * record.mfu_per_token_rate
        cells = (
            *((f"{record.val['bits_per_byte'][best]:.4f}", f"{record.val['loss'][best]:.4f}", f"{int(record.val['step'][best]):,}")
              if best is not None else ("–", "–", "–")),
            f"{record.steps_done:,} of {record.settings.train.steps:,}",
            short_number(config.num_parameters()) if config else "–",
            short_number(record.steps_done * record.tokens_per_step),
            f"{rate:,.0f}" if math.isfinite(rate) else "–",
            f"{mfu:.1f}\u202f%" if math.isfinite(mfu) else "–",
            duration(float(record.seconds[-1])) if len(record.seconds) else "–",
        )  # fmt: skip
        swatch = f'<span class=swatch style="background:{colour(i)[0]}"></span>'
        lines.append(f"<tr><td>{swatch}{escape(name)}</td>" + "".join(f"<td class=number>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th{' class=number' if i else ''}>{escape(text)}</th>" for i, text in enumerate(heads))
    return f'<div class="wide"><table class="roomy"><tr>{head}</tr>{"".join(lines)}</table></div>'


def settings_table(runs: Sequence[tuple[str, Record]]) -> str:
    """The settings that are not the same in all runs, a column for each."""
    flat = [
        {f"{section}.{key}": value for section, values in record.settings.sections().items() for key, value in values.items()}
        for _, record in runs
    ]
    keys = [key for key in flat[0] if any(other[key] != flat[0][key] for other in flat)]
    if not keys:
        return "<p>None: all settings are the same.</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in runs)
    lines = "".join(
        f"<tr><th><code>{escape(key)}</code></th>" + "".join(f"<td>{escape(setting_text(one[key]))}</td>" for one in flat) + "</tr>"
        for key in keys
    )
    return f'<div class="wide"><table class="roomy"><tr><th></th>{head}</tr>{lines}</table></div>'


def samples_html(runs: Sequence[tuple[str, Record]]) -> str:
    """The newest text of each run."""
    return "".join(
        f"<details{' open' if i == 0 else ''}><summary>{escape(name)}, step {escape(str(record.samples[-1]['step']))}</summary>"
        f"<pre>{escape(record.samples[-1]['text'][:2000])}</pre></details>"
        for i, (name, record) in enumerate(runs) if record.samples
    ) or "<p>None were taken.</p>"  # fmt: skip
