"""The charts of a page, drawn by Bokeh: what they show, and how they behave under a pointer.

Charts over steps share their horizontal axis and a crosshair: zooming one zooms all. A pointer (or a tap) reads the
values at a step. Colours are not fixed here: `themed` notes for each what it should have, by the name of a CSS
variable of the page, and the page's script paints them, again when the reader's light or dark theme changes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from bokeh.model import Model
from bokeh.models import (
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    CrosshairTool,
    CustomJS,
    CustomJSHover,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    Label,
    LinearAxis,
    LinearColorMapper,
    LogColorMapper,
    NumeralTickFormatter,
    Range1d,
    Span,
)
from bokeh.palettes import Cividis256
from bokeh.plotting import figure

from training.report.baselines import nats_per_token
from training.report.facts import decode_maps
from training.report.record import Record
from training.report.thinning import smooth, thin

MOST_COLUMNS = 300  # of a map of ratios over time
SHORT = "0.[0]a"  # 12,500 → 12.5k

AnyModel = TypeVar("AnyModel", bound=Model)


def themed(model: AnyModel, **colours: str) -> AnyModel:
    """Have the page's script give properties of a model the colours of CSS variables: line_color="train"."""
    model.tags = [*model.tags, *(f"{name}:{variable}" for name, variable in colours.items())]
    return model


@dataclass
class Steps:
    """What charts over the same steps share: the range on show and the crosshair."""

    x_range: Range1d
    crosshair: Span

    @classmethod
    def up_to(cls, last: float, first: float = 0.0) -> "Steps":
        """From `first` to `last`."""
        end = last + 0.01 * (last - first) if last > first else first + 1  # room for a dot on the last step
        crosshair = themed(Span(dimension="height", line_width=1, line_alpha=0.6), line_color="dim")
        return cls(Range1d(first, end, bounds=(first, end)), crosshair)


def base_chart(steps: Steps, y_label: str, height: int = 220, x_label: str = "step", **options: Any) -> figure:
    """An empty chart in the style of the page: drag along it, or a box, to zoom; double-click to see all."""
    chart = figure(
        height=height, sizing_mode="stretch_width", x_range=steps.x_range, toolbar_location=None, min_border=4,
        background_fill_alpha=0, border_fill_alpha=0, outline_line_alpha=0, tools="", **options,
    )  # fmt: skip
    zoom = BoxZoomTool(dimensions="auto")
    themed(zoom.overlay, fill_color="train", line_color="train")
    chart.add_tools(zoom, CrosshairTool(overlay=steps.crosshair))
    chart.toolbar.active_drag = zoom
    chart.js_on_event("doubletap", CustomJS(args={"chart": chart}, code="chart.reset.emit()"))
    chart.xaxis.axis_label, chart.yaxis.axis_label = x_label, y_label
    chart.xaxis.formatter = NumeralTickFormatter(format=SHORT)
    for axis in chart.axis:
        style_axis(axis)
    for grid in chart.grid:
        themed(grid, grid_line_color="line")
    chart.xgrid.visible = False
    return chart


def style_axis(axis: Any) -> None:
    """Quiet lines, small upright letters."""
    axis.axis_label_text_font_style, axis.axis_label_text_font_size, axis.major_label_text_font_size = (
        "normal", "12px", "11px",
    )  # fmt: skip
    axis.minor_tick_line_alpha = axis.major_tick_line_alpha = axis.axis_line_alpha = 0
    themed(axis, axis_label_text_color="dim", major_label_text_color="dim")


def style_legend(chart: figure) -> None:
    """Across the top, without a box; a click on a name hides its line."""
    for legend in chart.legend:
        themed(legend, label_text_color="ink")
        legend.update(
            orientation="horizontal", click_policy="hide", label_text_font_size="12px", background_fill_alpha=0,
            border_line_alpha=0, padding=0, spacing=14, glyph_width=16, margin=0,
        )  # fmt: skip
        chart.add_layout(legend, "above")


def hover(chart: figure, renderer: Any, rows: Sequence[tuple[str, str]], **options: Any) -> None:
    """Read values at the pointer's step, from the source of one renderer."""
    chart.add_tools(
        HoverTool(renderers=[renderer], tooltips=list(rows), mode="vline", line_policy="nearest", **options)
    )


def single_dot(chart: figure, source: ColumnDataSource, y: str) -> None:
    """A line of one point shows nothing: after the first step, draw a dot."""
    if len(source.data["x"]) == 1:
        themed(chart.scatter("x", y, source=source, size=6, line_alpha=0).glyph, fill_color="train")


def limits(*series: np.ndarray | Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """The range of a vertical axis that holds the finite values of several series, with a margin."""
    values = np.concatenate([np.asarray(values, float).reshape(-1) for values in series])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def second_axis(chart: figure, label: str, factor: float, tick_format: str) -> None:
    """A scale on the right for the same lines in another unit: `factor` of it to one of the scale on the left."""
    chart.extra_y_ranges = {"right": Range1d(chart.y_range.start * factor, chart.y_range.end * factor)}
    axis = LinearAxis(y_range_name="right", axis_label=label, formatter=NumeralTickFormatter(format=tick_format))
    style_axis(axis)
    chart.add_layout(axis, "right")


def marked_level(chart: figure, level: float, text: str, place: int = 0) -> None:
    """A dashed line across the chart, and what it stands for; another `place` for each, levels can be near."""
    chart.add_layout(themed(Span(location=level, dimension="width", line_dash="dashed"), line_color="base"))
    label = Label(x=4 + 65 * place, y=level, x_units="screen", text=text, text_font_size="11px", text_baseline="bottom",
                  y_offset=3)  # above the line, not on it
    chart.add_layout(themed(label, text_color="dim"))


def value_at(steps: np.ndarray, known_steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each step the last known value, NaN before the first."""
    places = np.searchsorted(known_steps, steps, side="right") - 1
    return np.where(places >= 0, values[np.maximum(places, 0)], np.nan) if len(values) else np.full(len(steps), np.nan)


# -- one run -----------------------------------------------------------------------------------------------


def run_charts(record: Record) -> dict[str, figure]:
    """Every chart for which a run has data, by name."""
    steps = Steps.up_to(max([record.steps_done, *record.val["step"].tolist(), 1]))
    charts: dict[str, figure] = {}
    if np.isfinite(record.train["loss"]).any() or record.best is not None:
        charts["loss"] = loss_chart(record, steps)
    if len(record.train["step"]):
        charts["lr"] = rate_chart(record, steps)
        charts["grad_norm"] = gradient_chart(record, steps)
        charts["throughput"] = throughput_chart(record, steps)
    if record.ratios:
        charts["update"] = ratio_map(record, 2, "update / weight", 1e-5, 1e-1)
        charts["gradient"] = ratio_map(record, 1, "gradient / weight", 1e-5, 1e1)
    if baseline_rows(record):
        charts["baselines"] = baseline_chart(record)
    if "attention" in record.facts:
        charts["attention"] = attention_map(record.facts["attention"])
    return charts


def loss_chart(record: Record, steps: Steps) -> figure:
    """Training loss, faint and smoothed, and validation loss; in nats per token, on the right in bits per byte."""
    x, loss = record.train["step"], record.train["loss"]
    loss = np.where(np.isfinite(loss), loss, np.nan)
    smoothed = smooth(loss)
    kept = thin(loss)
    finite = np.isfinite(record.val["loss"])
    val_x, val, bits = (record.val[name][finite] for name in ("step", "loss", "bits_per_byte"))

    usual = np.nanquantile(loss, [0.01, 0.99]) if np.isfinite(loss).any() else np.empty(0)
    low, high = limits(smoothed[kept], val, usual)
    levels = {
        name: nats_per_token(bits_per_byte, record.bytes_per_token) for name, bits_per_byte in baseline_rows(record)
    }
    near = [level for level in levels.values() if abs(level - (low + high) / 2) < 0.8 * (high - low)]
    low, high = limits(smoothed[kept], val, usual, near)  # with room for what is near
    chart = base_chart(steps, "nats per token", height=380, y_range=(low, high))
    if len(x):
        source = ColumnDataSource({
            "x": x[kept], "loss": loss[kept], "smooth": smoothed[kept], "val": value_at(x[kept], val_x, val),
            "bits": value_at(x[kept], val_x, bits),
        })  # fmt: skip
        faint = chart.line("x", "loss", source=source, line_width=1, line_alpha=0.3, legend_label="training")
        line = chart.line("x", "smooth", source=source, line_width=2, legend_label="training")
        for renderer in (faint, line):
            themed(renderer.glyph, line_color="train")
        single_dot(chart, source, "smooth")
        rows = [("step", "@x{0,0}"), ("training", "@smooth{0.0000}"), ("this step", "@loss{0.0000}")]
        if len(val):
            rows += [("validation", "@val{0.0000}"), ("bits per byte", "@bits{0.0000}")]
        hover(chart, line, rows)
    if len(val):
        source = ColumnDataSource({"x": val_x, "val": val, "bits": bits})
        line = chart.line("x", "val", source=source, line_width=2, legend_label="validation")
        dots = chart.scatter("x", "val", source=source, size=7 if len(val) <= 60 else 0, legend_label="validation")
        themed(line.glyph, line_color="val")
        themed(dots.glyph, fill_color="val", line_color="card")
        if not len(x):
            rows = [("step", "@x{0,0}"), ("validation", "@val{0.0000}"), ("bits per byte", "@bits{0.0000}")]
            hover(chart, dots, rows)
    for place, (name, level) in enumerate((name, level) for name, level in levels.items() if low <= level <= high):
        marked_level(chart, level, name.removeprefix("bytes, "), place)
    if math.isfinite(record.bytes_per_token):
        second_axis(chart, "bits per byte", 1 / nats_per_token(1, record.bytes_per_token), "0.0[0]")
    style_legend(chart)
    return chart


def rate_chart(record: Record, steps: Steps) -> figure:
    """The learning rate of each update."""
    x, rate = record.train["step"], record.train["lr"]
    kept = thin(rate)
    chart = base_chart(steps, "learning rate", y_range=limits([0.0], rate))
    source = ColumnDataSource({"x": x[kept], "rate": rate[kept]})
    line = chart.line("x", "rate", source=source, line_width=2)
    themed(line.glyph, line_color="train")
    single_dot(chart, source, "rate")
    chart.yaxis.formatter = CustomJSTickFormatter(code="return tick ? tick.toExponential(1) : '0'")
    rows = [("step", "@x{0,0}"), ("rate", "@rate{%.3e}")]
    hover(chart, line, rows, formatters={"@rate": "printf"})
    return chart


def gradient_chart(record: Record, steps: Steps) -> figure:
    """The norm of the gradient before clipping, on a logarithmic scale, and where clipping begins."""
    x, norm = record.train["step"], record.train["grad_norm"]
    norm = np.where(np.isfinite(norm) & (norm > 0), norm, np.nan)
    kept = thin(norm)
    clip = record.settings.optim.clip
    low, high = limits(np.log10(norm[kept]), [math.log10(clip)] if clip else [])
    chart = base_chart(steps, "gradient norm", y_axis_type="log", y_range=(10**low, 10**high))
    source = ColumnDataSource({"x": x[kept], "norm": norm[kept], "smooth": smooth(norm)[kept]})
    themed(chart.line("x", "norm", source=source, line_alpha=0.35).glyph, line_color="train")
    line = chart.line("x", "smooth", source=source, line_width=2)
    themed(line.glyph, line_color="train")
    single_dot(chart, source, "smooth")
    if clip:
        marked_level(chart, clip, f"clipped to {clip:g}")
    hover(chart, line, [("step", "@x{0,0}"), ("norm", "@norm{0.0000}"), ("smoothed", "@smooth{0.0000}")])
    return chart


def throughput_chart(record: Record, steps: Steps) -> figure:
    """Tokens per second, and what share of the machine's peak that is."""
    x, rate = record.train["step"], record.train["tokens_per_second"]
    rate = np.where(np.isfinite(rate), rate, np.nan)
    kept, factor = thin(rate), 100 * record.mfu_per_token_rate
    chart = base_chart(steps, "tokens / s", y_range=limits([0.0], rate[kept], margin=0.04))
    smoothed = smooth(rate, 0.02)[kept]
    source = ColumnDataSource({"x": x[kept], "rate": rate[kept], "smooth": smoothed, "mfu": smoothed * factor})
    themed(chart.line("x", "rate", source=source, line_alpha=0.35).glyph, line_color="train")
    line = chart.line("x", "smooth", source=source, line_width=2)
    themed(line.glyph, line_color="train")
    single_dot(chart, source, "smooth")
    chart.yaxis.formatter = NumeralTickFormatter(format=SHORT)
    rows = [("step", "@x{0,0}"), ("tokens/s", "@rate{0,0}"), ("smoothed", "@smooth{0,0}")]
    if math.isfinite(factor):
        rows.append(("MFU", "@mfu{0.0}\u202f%"))
        second_axis(chart, "MFU, %", factor, "0.[0]")
    hover(chart, line, rows)
    return chart


def ratio_map(record: Record, column: int, label: str, low: float, high: float) -> figure:
    """A ratio for every layer (rows, input on top) over the steps (columns), as colours on a logarithmic scale."""
    layers = list(record.ratios)
    every = np.unique(np.concatenate([values[:, 0] for values in record.ratios.values()]))
    columns = np.array_split(every, min(len(every), MOST_COLUMNS))
    ends = np.array([column[-1] for column in columns])
    image = np.full((len(layers), len(columns)), np.nan, np.float32)
    for row, layer in enumerate(layers):
        values = record.ratios[layer]
        place = np.searchsorted(ends, values[:, 0])
        highest = np.full(len(columns), -np.inf)
        np.fmax.at(highest, place, values[:, column])  # of several records in a column, the largest
        image[len(layers) - 1 - row] = np.where(np.isfinite(highest), highest, np.nan)
    names = [short_name(layer) for layer in reversed(layers)]
    chart = base_chart(
        Steps.up_to(len(columns)), "", height=95 + 13 * len(layers), y_range=Range1d(0, len(layers)), x_label="step"
    )
    mapper = LogColorMapper(palette=Cividis256, low=low, high=high, nan_color="rgba(0,0,0,0)")
    drawn = chart.image([image], x=0, y=0, dw=len(columns), dh=len(layers), color_mapper=mapper)
    chart.yaxis.ticker = FixedTicker(ticks=[i + 0.5 for i in range(len(layers))])
    chart.yaxis.formatter = CustomJSTickFormatter(args={"names": names}, code="return names[Math.floor(tick)] ?? ''")
    chart.yaxis.major_label_text_font_size = "10px"
    chart.xaxis.formatter = CustomJSTickFormatter(
        args={"ends": ends.tolist()}, code="return tick > 0 ? (ends[Math.ceil(tick) - 1] ?? '') : '0'"
    )
    chart.ygrid.visible = False
    read = {"names": names, "ends": ends.tolist()}
    chart.add_tools(HoverTool(
        renderers=[drawn], tooltips=[("layer", "$y{custom}"), ("step", "$x{custom}"), (label, "@image{%.2e}")],
        formatters={
            "@image": "printf",
            "$y": CustomJSHover(args=read, code="return names[Math.floor(value)] ?? ''"),
            "$x": CustomJSHover(args=read, code="return '' + (ends[Math.ceil(value) - 1] ?? '')"),
        },
    ))  # fmt: skip
    bar = ColorBar(
        color_mapper=mapper, height=8, width="auto", padding=4, margin=0, background_fill_alpha=0,
        major_label_text_font_size="10px", bar_line_alpha=0, major_tick_line_alpha=0,
        formatter=CustomJSTickFormatter(code="return tick.toExponential(0)"),
    )  # fmt: skip
    chart.add_layout(themed(bar, major_label_text_color="dim"), "above")
    return chart


def short_name(layer: str) -> str:
    """blocks.3.attention.qkv → 3 attention.qkv"""
    first, _, rest = layer.partition(".")
    number, _, name = rest.partition(".")
    return f"{number} {name}" if first == "blocks" and number.isdecimal() else layer


def baseline_rows(record: Record) -> list[tuple[str, float]]:
    """(name, bits per byte) of the baselines, worst first."""
    baselines = record.facts.get("baselines") or {}
    names = {"order 0": "bytes, order 0", "order 3": "bytes, order 3", "xz": "xz -9"}
    rows = [(name, float(baselines[key])) for key, name in names.items() if isinstance(baselines.get(key), int | float)]
    return sorted(rows, key=lambda row: -row[1])


def baseline_chart(record: Record) -> figure:
    """Bits per byte of the baselines and of the model, on the same held-out bytes."""
    rows = [(name, bits, "base") for name, bits in baseline_rows(record)]
    if record.best is not None:
        rows.append(("this model", float(record.val["bits_per_byte"][record.best]), "val"))
    rows.sort(key=lambda row: row[1])  # the first is drawn at the bottom
    names = [name for name, _, _ in rows]
    chart = figure(
        height=40 + 34 * len(rows), sizing_mode="stretch_width", y_range=names, toolbar_location=None, tools="",
        x_range=Range1d(0, max(bits for _, bits, _ in rows) * 1.3), min_border=4, background_fill_alpha=0,
        border_fill_alpha=0, outline_line_alpha=0,
    )  # fmt: skip
    for name, bits, colour in rows:
        source = ColumnDataSource({"name": [name], "bits": [bits], "text": [f"{bits:.3f}"]})
        bar = chart.hbar("name", right="bits", height=0.62, source=source, line_alpha=0)
        themed(bar.glyph, fill_color=colour)
        text = chart.text("bits", "name", "text", source=source, x_offset=6, text_baseline="middle")
        text.glyph.text_font_size = "12px"
        themed(text.glyph, text_color="ink")
        chart.add_tools(HoverTool(renderers=[bar], tooltips=[("", "@name"), ("bits per byte", "@bits{0.0000}")]))
    for axis in chart.axis:
        style_axis(axis)
    chart.yaxis.major_label_text_font_size = "12px"
    themed(chart.yaxis[0], major_label_text_color="ink")
    chart.xgrid.visible = chart.ygrid.visible = chart.xaxis.visible = False
    return chart


def attention_map(attention: Mapping[str, Any]) -> figure:
    """The attention of every layer (rows) and head (columns) over the same tokens, side by side in one picture.

    In each square a row is the token that looks, a column the token that is looked at.
    """
    maps = decode_maps(attention)  # (L, H, T, T) uint8
    L, H, T, _ = maps.shape
    mosaic = maps.transpose(0, 2, 1, 3).reshape(L * T, H * T)[::-1]  # the first layer on top
    chart = base_chart(Steps.up_to(H * T), "", height=120, x_label="", y_range=Range1d(0, L * T, bounds=(0, L * T)))
    chart.sizing_mode, chart.aspect_ratio = "scale_width", max(0.4, min(2.5, H / L))
    palette = [f"#3b82f6{alpha:02x}" for alpha in range(256)]
    drawn = chart.image(
        [mosaic], x=0, y=0, dw=H * T, dh=L * T, color_mapper=LinearColorMapper(palette=palette, low=0, high=255)
    )
    for side, count in ((0, H), (1, L)):
        axis, grid = (chart.xaxis, chart.xgrid) if side == 0 else (chart.yaxis, chart.ygrid)
        word = "head" if side == 0 else "layer"
        axis.ticker = FixedTicker(ticks=[(i + 0.5) * T for i in range(count)])
        axis.formatter = CustomJSTickFormatter(
            args={"size": T, "count": count, "down": side},
            code="const i = Math.floor(tick / size); return '' + (down ? count - 1 - i : i)",
        )
        axis.axis_label = word
        grid.ticker = FixedTicker(ticks=[i * T for i in range(count + 1)])
        grid.visible, grid.level = True, "overlay"
    args = {"tokens": list(attention["tokens"]), "size": T, "layers": L}
    place = """
        const x = Math.floor(special_vars.x), y = layers * size - 1 - Math.floor(special_vars.y);
        const [layer, head, from, to] = [Math.floor(y / size), Math.floor(x / size), y % size, x % size];
    """
    read = {
        "$x": "return `layer ${layer}, head ${head}`",
        "$y": "return `${JSON.stringify(tokens[from])} (${from})`",
        "$index": "return `${JSON.stringify(tokens[to])} (${to})`",
        "@image": "return to > from ? 'hidden: it comes later' : ((value / 255) ** 2 * 100).toFixed(1) + '\u202f%'",
    }
    rows = [("", "$x{custom}"), ("token", "$y{custom}"), ("looks at", "$index{custom}"), ("with", "@image{custom}")]
    formatters = {key: CustomJSHover(args=args, code=place + code) for key, code in read.items()}
    chart.add_tools(HoverTool(renderers=[drawn], tooltips=rows, formatters=formatters))
    return chart
