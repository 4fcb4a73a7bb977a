"""A picture of the loss, and a page that shows a run: loss.png and report.html in the run folder.

The page is one file that needs nothing else: the picture is inside. It can be opened from disk, offline.
"""

import base64
import html
import io
import math
from pathlib import Path
from typing import Any

from training.metrics import read_lines


def write_report(folder: Path, summary: dict[str, str]) -> Path:
    """Write loss.png and report.html from what the run has logged; returns the page.

    summary   what to show on top, by name: parameters, tokens, …
    """
    entries = list(read_lines(folder / "metrics.jsonl"))
    samples = list(read_lines(folder / "samples.jsonl"))
    picture = loss_picture(entries)
    (folder / "loss.png").write_bytes(picture)
    settings = (folder / "config.toml").read_text()
    page = folder / "report.html"
    page.write_text(_page(folder.name, summary, picture, samples, settings), encoding="utf-8")
    return page


def loss_picture(entries: list[dict[str, Any]]) -> bytes:
    """The training loss (faint, and smoothed), and the validation loss, over steps: a PNG."""
    from matplotlib.figure import Figure  # takes most of a second to import, and is needed once, at the end

    train = [(e["step"], e["loss"]) for e in entries if e["split"] == "train" and math.isfinite(e["loss"])]
    val = [(e["step"], e["loss"]) for e in entries if e["split"] == "val"]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smoothed(losses), color="tab:blue", label="training")
    if val:
        axes.plot(*zip(*val, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
        step, loss = val[-1]
        axes.annotate(f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="right")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    if train or val:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _smoothed(values: tuple[float, ...], share: float = 0.01) -> list[float]:
    """An exponential average over about `share` of the run, freed of its bias towards the start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    average = weight = 0.0
    out = []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append(average / weight)
    return out


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; border-radius: 6px; background: white }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .8rem 1rem; border: 1px solid #8884; border-radius: 6px }
td, th { text-align: left; padding: .15rem 1.5rem .15rem 0; vertical-align: top }
"""


def _page(
    name: str, summary: dict[str, str], picture: bytes, samples: list[dict[str, Any]], settings: str
) -> str:
    esc = html.escape
    rows = "".join(f"<tr><th>{esc(key)}</th><td>{esc(value)}</td></tr>" for key, value in summary.items())
    texts = "".join(f"<h3>Step {s['step']}</h3><pre>{esc(s['text'])}</pre>" for s in reversed(samples))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{esc(name)} · groundup</title><style>{_STYLE}</style></head><body>
<h1>{esc(name)}</h1>
<table>{rows}</table>
<h2>Loss</h2>
<img alt="Loss over steps" src="data:image/png;base64,{base64.b64encode(picture).decode()}">
<h2>Samples</h2>
{texts or "<p>None were taken.</p>"}
<h2>Settings</h2>
<pre>{esc(settings)}</pre>
</body></html>
"""
