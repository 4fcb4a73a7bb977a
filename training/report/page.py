"""The page of one run: what stands where, and what to know to read it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.plotting import figure

from data.files import write_whole
from model import GPTConfig
from training.report.charts import run_charts
from training.report.html import chart_place, document, foldable, heading, paragraph, section, table, tiles
from training.report.picture import loss_picture
from training.report.record import Record
from training.report.thinning import MOST_POINTS, thin_list

MOST_SAMPLES = 24
MOST_CHARACTERS = 4000  # of a sample
MOST_NAMED = 12  # steps in a list of bad ones


def write_report(record: Record, live: bool = False) -> Path:
    """Write report.html into the folder of a run, and loss.png unless `live`; returns the page.

    live   the run is going on: the page shows its newest self by and by

    Raises OSError where the folder can't be written.
    """
    page = record.folder / "report.html"
    write_whole(page, run_page(record, live))
    if not live:
        (record.folder / "loss.png").write_bytes(loss_picture(record))
    return page


def run_page(record: Record, live: bool = False) -> str:
    """The page of a run as HTML; `live`: see `write_report`."""
    charts = run_charts(record)
    done, steps = record.steps_done, record.settings.train.steps
    state = f"{'training, ' if live else ''}step {done:,} of {steps:,}"
    if done >= steps:
        state = f"done, {done:,} step{'s' * (done != 1)}"
    body = [
        heading(record.name, state),
        tiles(key_figures(record)),
        '<div class="board">',
        *trouble_sections(record),
        *chart_sections(record, charts),
        samples_section(record),
        model_section(record),
        settings_section(record),
        "</div>",
    ]
    return document(f"{record.name} · groundup", body, charts, live)


def key_figures(record: Record) -> list[tuple[str, str]]:
    """The numbers one asks for first."""
    figures = []
    if (best := record.best) is not None:
        figures.append(("best validation loss", f"{record.val['loss'][best]:.4f}"))
        figures.append(("bits per byte", f"{record.val['bits_per_byte'][best]:.4f}"))
    if config := model_config(record):
        figures.append(("parameters", short_number(config.num_parameters())))
    if record.steps_done:
        figures.append(("tokens read", short_number(record.steps_done * record.tokens_per_step)))
        figures.append(("tokens per second", short_number(typical_rate(record))))
        mfu = 100 * typical_rate(record) * record.mfu_per_token_rate
        if math.isfinite(mfu):
            figures.append(("MFU", f"{mfu:.1f}\u202f%"))
        figures.append(("time in updates", duration(float(record.seconds[-1]))))
    return figures


def typical_rate(record: Record) -> float:
    """The median of tokens per second; NaN where none are known."""
    rates = record.train["tokens_per_second"]
    rates = rates[np.isfinite(rates)]
    return float(np.median(rates)) if len(rates) else math.nan


def short_number(value: float) -> str:
    """1,967,808 → 1.97M; a dash for what is not finite."""
    if not math.isfinite(value):
        return "–"
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            return f"{value / min(unit, 1e3 if letter == 'k' else unit):.3g}{letter}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """5025 → 1 h 23 min"""
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours:
        return f"{hours}\u202fh {minutes % 60}\u202fmin"
    return f"{minutes}\u202fmin {int(seconds) % 60}\u202fs" if minutes else f"{seconds:.1f}\u202fs"


def model_config(record: Record) -> GPTConfig | None:
    """The model's shape; None where the run does not tell yet."""
    try:
        return GPTConfig.from_dict(record.facts["model"])
    except (KeyError, TypeError, ValueError):
        return None


def trouble_sections(record: Record) -> list[str]:
    """What went wrong, where something did."""
    train = record.train
    bad = [f"{int(step):,}" for step in train["step"][~np.isfinite(train["loss"])]]
    left_out = [f"{step:,} ({reason})" for step, reason in record.left_out]
    troubles = (("The loss is not finite", bad), ("Steps left out", left_out))
    return [
        section(title, paragraph("; ".join(which[:MOST_NAMED]) + (" …" if len(which) > MOST_NAMED else ""), "warn"))
        for title, which in troubles if which
    ]  # fmt: skip


def chart_sections(record: Record, charts: Mapping[str, figure]) -> list[str]:
    """The charts that there are, each with what to know to read it."""
    if not charts:
        return [section("Loss", paragraph("Nothing has been logged yet."))]
    n = len(record.train["step"])
    reading = "Point at a chart (or tap it) to read it. Drag to zoom in, double-click to see all again."
    if n > MOST_POINTS:
        reading += f" {n:,} steps are drawn with at most {MOST_POINTS:,} points, lows and highs among them."
    places = (
        ("loss", "Loss", reading, "most" if "baselines" in charts else ""),
        ("baselines", "What it is worth", baseline_note(record), "third"),
        ("lr", "Learning rate", "", "third"),
        ("grad_norm", "Gradient norm", "", "third"),
        ("throughput", "Throughput", "", "third"),
        (
            "update",
            "Update beside weight",
            "|Δw| / |w|: how far an update moves a layer. About 1e-3 is healthy.",
            "half",
        ),
        ("gradient", "Gradient beside weight", "|g| / |w| before clipping. Look for rows that stand out.", "half"),
        ("attention", "Attention", attention_note(record), "half"),
    )
    return [section(title, chart_place(name), note, width) for name, title, note, width in places if name in charts]


def baseline_note(record: Record) -> str:
    """What the bars compare."""
    baselines: Mapping[str, Any] = record.facts.get("baselines") or {}
    scored, whole, learnt = (
        short_number(float(baselines.get(key) or 0)) for key in ("val_bytes", "all_val_bytes", "train_bytes")
    )
    return (
        f"Bits per byte of the same held-out text, {scored} bytes{'' if scored == whole else f' of {whole}'}; less is "
        f"better. Order k predicts a byte from the k before it, learnt from {learnt} bytes of the training text; "
        f"xz sees the held-out text only."
    )


def attention_note(record: Record) -> str:
    """How to read the maps."""
    attention: Mapping[str, Any] = record.facts.get("attention") or {}
    return (
        f"The first {len(attention.get('tokens') or ())} tokens of the sample at step {attention.get('step')}. In each "
        f"square, rows are the tokens that look, from the top down, and columns those that are looked at."
    )


def samples_section(record: Record) -> str:
    """Texts, newest first and open."""
    shown = thin_list(record.samples, MOST_SAMPLES)[::-1]
    note = f"{len(shown)} of {len(record.samples)}, at even distances." if len(shown) < len(record.samples) else ""
    texts = [foldable(f"Step {each['step']}", shortened(each["text"]), each is shown[0]) for each in shown]
    return section("Samples", "".join(texts) or paragraph("None were taken yet."), note, "half")


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"


def model_section(record: Record) -> str:
    """Layer, shape, parameters; what every block has stands once, with how many there are."""
    config = model_config(record)
    if config is None:
        return section("Model", paragraph("Not known yet."), "", "half")
    layers: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in config.parameter_shapes():
        in_block = name.startswith("blocks.")
        key = f"block.{name.split('.', 2)[2]}" if in_block else name, shape
        layers[key] = layers.get(key, 0) + 1
    total = config.num_parameters()
    rows = [("layer", "shape", "", "parameters", "")]
    for (name, shape), count in layers.items():
        numbers = math.prod(shape) * count
        times = f"× {count}" if name.startswith("block.") else ""
        rows.append((name, " × ".join(map(str, shape)), times, f"{numbers:,}", f"{100 * numbers / total:.1f}\u202f%"))
    rows.append(("total", "", "", f"{total:,}", ""))
    summary = record.facts.get("summary")
    note = "; ".join(f"{key.lower()}: {value}" for key, value in summary.items()) if isinstance(summary, dict) else ""
    return section("Model", table(rows, code=True, numbers=True, kind="headed"), note, "half")


def settings_section(record: Record) -> str:
    """Every setting; those that are not the default come first, apart."""
    changed = record.changed_settings()
    rows = [
        (f"{name}.{key}", setting_text(value))
        for name, values in record.settings.sections().items() for key, value in values.items()
    ]  # fmt: skip
    others = [row for row in rows if row[0] not in changed]
    content = table([row for row in rows if row[0] in changed], code=True, kind="changed") if changed else ""
    content += f"<details{'' if changed else ' open'}><summary>Defaults</summary>{table(others, code=True)}</details>"
    return section("Settings", content, "Not the default:" if changed else "", "half")


def setting_text(value: Any) -> str:
    """A setting as one would write it."""
    if value is None:
        return "–"
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)
