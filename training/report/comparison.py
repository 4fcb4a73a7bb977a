"""Several runs on one page: what they reached, and by which settings they differ.

Losses in nats per token compare only over the same tokens; bits per byte compare wherever the text is the same. So runs
are ranked, and drawn against tokens read and against time, by bits per byte.
"""

import math
from collections.abc import Sequence
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
    value_at,
)
from training.report.html import chart_place, document, foldable, heading, paragraph, section, table
from training.report.page import duration, model_config, setting_text, short_number, shortened, typical_rate
from training.report.record import Record
from training.report.thinning import smooth, thin

DASHES = ("solid", "dashed", "dotted", "dotdash")  # with ten colours, forty lines that differ
MOST_PLACES = 1000  # at which a chart can be read
MOST_ROWS = 16  # runs, the best, that are read there
Runs = Sequence[tuple[str, Record]]


def comparison_page(records: Sequence[Record]) -> str:
    """The page of several runs, the best first."""
    named = zip(run_names([record.folder for record in records]), records, strict=True)
    runs = sorted(named, key=lambda run: best_bits(run[1]))
    charts = comparison_charts(runs)
    titles = (
        (
            "tokens",
            "Validation by tokens read",
            "Point at a chart (or tap it) to read it; a click on a name hides its line.",
        ),
        ("time", "Validation by time in updates", "How fast a run got there, on its machine."),
        ("train", "Training loss, smoothed", "In nats per token: comparable where the tokenizer is the same."),
    )
    body = [
        heading("Comparison", f"{len(runs)} runs"),
        '<div class="board">',
        section("Runs", runs_table(runs), same_text(runs)),
        *(section(title, chart_place(name), note, "half") for name, title, note in titles if name in charts),
        section("Settings that differ", settings_table(runs), "", "half" if "train" in charts else ""),
        section("Last samples", samples_html(runs)),
        "</div>",
    ]
    return document("Comparison · groundup", body, charts)


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = [part[-1] for part in parts]
    for n in range(2, max(map(len, parts)) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(part[-n:]) for part in parts]
    return names


def best_bits(record: Record) -> float:
    """The lowest bits per byte on the validation split; infinite where there was no evaluation."""
    return float(record.val["bits_per_byte"][record.best]) if record.best is not None else math.inf


def same_text(runs: Runs) -> str:
    """Whether bits per byte compare."""
    data = {(record.settings.data.source, record.settings.data.val_fraction) for _, record in runs}
    if len(data) == 1:
        return "All were scored on the same text: bits per byte compare."
    return "Not all were scored on the same text: bits per byte compare only between runs with the same [data]."


def comparison_charts(runs: Runs) -> dict[str, figure]:
    """Validation against tokens and against time, and training against steps; what there are data for."""
    charts = {}
    if any(record.best is not None for _, record in runs):
        tokens = [record.val["step"] * record.tokens_per_step for _, record in runs]
        charts["tokens"] = validation_chart(runs, tokens, "tokens read", SHORT)
        minutes = [seconds_at(record, record.val["step"]) / 60 for _, record in runs]
        charts["time"] = validation_chart(runs, minutes, "minutes", "0.[00]")
    if any(np.isfinite(record.train["loss"]).any() for _, record in runs):
        lines = [smooth(record.train["loss"]) for _, record in runs]
        last = max(record.steps_done for _, record in runs)
        chart = base_chart(Steps.up_to(last), "nats per token", height=330, y_range=limits(*lines))
        kept = [thin(line) for line in lines]
        steps = [record.train["step"][indices] for (_, record), indices in zip(runs, kept, strict=True)]
        run_lines(
            chart, runs, steps, [line[indices] for line, indices in zip(lines, kept, strict=True)], "step", dots=False
        )
        charts["train"] = chart
    return charts


def validation_chart(runs: Runs, xs: Sequence[np.ndarray], x_label: str, x_format: str) -> figure:
    """Bits per byte of every run, with a dot for each evaluation, and the baselines where all have the same."""
    bits = [record.val["bits_per_byte"] for _, record in runs]
    last = max((float(x[np.isfinite(x)].max(initial=0.0)) for x in xs), default=0.0)
    chart = base_chart(
        Steps.up_to(last), "bits per byte", height=330, x_label=x_label, y_range=(low_high := limits(*bits))
    )
    run_lines(chart, runs, xs, bits, x_label, dots=True)
    baselines = {tuple(baseline_rows(record)) for _, record in runs}
    shared = next(iter(baselines)) if len(baselines) == 1 else ()
    near = [(name, level) for name, level in shared if low_high[0] <= level <= low_high[1]]
    for place, (name, level) in enumerate(near):
        marked_level(chart, level, name.removeprefix("bytes, "), place)
    chart.xaxis.formatter = NumeralTickFormatter(format=x_format)
    return chart


def seconds_at(record: Record, steps: np.ndarray) -> np.ndarray:
    """Time spent in updates when these steps were reached; NaN where that is not known."""
    known = record.train["step"]
    return np.interp(steps, known, record.seconds, left=math.nan, right=math.nan) if len(known) else steps * math.nan


def run_lines(
    chart: figure, runs: Runs, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], x_label: str, dots: bool
) -> None:
    """A line for each run, their names under the chart, and at the pointer the last value of each before it."""
    for i, (name, _) in enumerate(runs):
        style = {"source": ColumnDataSource({"x": xs[i], "y": ys[i]}), "color": Category10_10[i % 10]}
        if np.isfinite(ys[i]).any():  # no name for a line that is not there
            style |= {"legend_label": name}
        chart.line("x", "y", line_width=2, line_dash=DASHES[i // 10 % len(DASHES)], **style)
        if dots:
            chart.scatter("x", "y", size=5, **style)
    every = np.unique(np.concatenate([x[np.isfinite(x)] for x in xs]))
    every = every[np.unique(np.linspace(0, len(every) - 1, min(len(every), MOST_PLACES)).astype(int))]
    values = np.array([value_at(every, x, y) for x, y in zip(xs, ys, strict=True)])  # (runs, places)
    seen = np.isfinite(values)
    middle = np.where(seen, values, 0).sum(axis=0) / np.maximum(1, seen.sum(axis=0))
    source = ColumnDataSource({"x": every, "middle": middle, **{f"run{i}": row for i, row in enumerate(values)}})
    unseen = chart.line("x", "middle", source=source, line_alpha=0)
    rows = [(x_label, "@x{0,0.[0]}"), *((name, f"@run{i}{{0.0000}}") for i, (name, _) in enumerate(runs[:MOST_ROWS]))]
    hover(chart, unseen, rows)
    names_below(chart)


def names_below(chart: figure) -> None:
    """Names of runs can be long: they stand in a column under the chart; a click hides a line."""
    for legend in chart.legend:
        themed(legend, label_text_color="ink")
        legend.update(
            click_policy="hide", label_text_font_size="12px", background_fill_alpha=0, border_line_alpha=0, padding=0,
            spacing=2, margin=6, glyph_height=14, location="left",
        )  # fmt: skip
        chart.add_layout(legend, "below")
        chart.height = 330 + 20 * len(legend.items)


def runs_table(runs: Runs) -> str:
    """What each run reached."""
    rows = [("run", "bits per byte", "validation loss", "at step", "steps", "parameters", "tokens read", "tokens/s",
             "MFU", "time")]  # fmt: skip
    for name, record in runs:
        best, val, config, rate = record.best, record.val, model_config(record), typical_rate(record)
        mfu = 100 * rate * record.mfu_per_token_rate
        rows.append((
            name,
            f"{val['bits_per_byte'][best]:.4f}" if best is not None else "–",
            f"{val['loss'][best]:.4f}" if best is not None else "–",
            f"{val['step'][best]:,.0f}" if best is not None else "–",
            f"{record.steps_done:,} of {record.settings.train.steps:,}",
            short_number(config.num_parameters()) if config else "–",
            short_number(record.steps_done * record.tokens_per_step),
            short_number(rate),
            f"{mfu:.1f}\u202f%" if math.isfinite(mfu) else "–",
            duration(float(record.seconds[-1])) if len(record.seconds) else "–",
        ))  # fmt: skip
    return table(rows, numbers=True, kind="headed roomy")


def settings_table(runs: Runs) -> str:
    """The settings that are not the same in all runs, a column for each run."""
    flat = [
        {
            f"{section}.{key}": setting_text(value)
            for section, values in sections.items()
            for key, value in values.items()
        }
        for sections in (record.settings.sections() for _, record in runs)
    ]
    rows = [(key, *(one[key] for one in flat)) for key in flat[0] if len({one[key] for one in flat}) > 1]
    if not rows:
        return paragraph("None: all settings are the same.")
    return table([("", *(name for name, _ in runs)), *rows], code=True, kind="headed roomy")


def samples_html(runs: Runs) -> str:
    """The newest text of each run, that of the best one open."""
    last = [(name, record.samples[-1]) for name, record in runs if record.samples]
    texts = [
        foldable(f"{name}, step {each['step']}", shortened(each["text"]), i == 0) for i, (name, each) in enumerate(last)
    ]
    return "".join(texts) or paragraph("None were taken.")
