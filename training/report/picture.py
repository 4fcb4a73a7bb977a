"""loss.png: the losses over steps, for a README or a message."""

import io

import numpy as np

from training.report.record import Record
from training.report.thinning import smooth, thin


def loss_picture(record: Record) -> bytes:
    """The training loss (faint, and smoothed), and the validation loss, over steps: a PNG."""
    from matplotlib.figure import Figure  # takes most of a second to import, and is needed once, at the end

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = record.train["step"], record.train["loss"]
    losses = np.where(np.isfinite(losses), losses, np.nan)
    if np.isfinite(losses).any():
        kept = thin(losses)
        axes.plot(steps[kept], losses[kept], color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(steps[kept], smooth(losses)[kept], color="tab:blue", label="training")
    finite = np.isfinite(record.val["loss"])
    if finite.any():
        val = record.val["step"][finite], record.val["loss"][finite]
        axes.plot(*val, color="tab:orange", marker="o", markersize=4, label="validation")
        axes.annotate(
            f"{val[1][-1]:.3f}", (val[0][-1], val[1][-1]), textcoords="offset points", xytext=(0, 8), ha="right"
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
