"""Numbers going wrong: how it is noticed, how it is examined, and what is written down.

A step is *bad* when its loss or gradient norm is not finite, or, with `--train.spike_sigma`, lies far above those of
the steps before it (the rule of OLMo-core's SkipStepOptimizer). It is noticed before the weights are touched. Trainer
then stops, leaves it out, or goes back to a checkpoint and on with the batches behind it (as Chowdhery et al. 2022,
"PaLM", section 5.1, did by hand). The flight recorder keeps what there is to know:

    DIR/bad-steps/step-00000124-draw-00000123/
        batch.safetensors     inputs and targets, int64 (accumulation, B, T)
        bad-step.json         losses, norms, gradient norm of every parameter, the operator and the parameter that
                              went bad first, the text of the batch

A step is a function of the weights and its draw, so it can be repeated as often as looking at it takes, and a run
that is killed and resumed meets the same bad steps, in the same order, and does the same about them.
"""

import json
import math
import os
import shutil
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import autograd as ag
from autograd.kernels.optimizer import sum_of_squares
from data.files import remove_leftovers, write_whole
from model import GPT
from tokenizer import Tokenizer
from training.loop import BadStep, batch, batch_loss, not_finite
from training.settings import TrainSettings

WINDOW = 128  # steps that say what is usual
RECORDS = 16  # of bad steps that are kept


class Watch:
    """Knows the losses and gradient norms of the last steps, and what would stand out among them."""

    def __init__(self, sigma: float) -> None:
        """`sigma`: how many standard deviations above the mean are a spike; 0: nothing is."""
        self.sigma = sigma
        self.recent: dict[str, deque[float]] = {"loss": deque(maxlen=WINDOW), "grad_norm": deque(maxlen=WINDOW)}

    def complaint(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step's numbers, in words; None if nothing is."""
        if reason := not_finite(loss, grad_norm):
            return reason
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            usual = self.recent[name]
            if self.sigma and len(usual) >= WINDOW // 2:  # fewer say nothing
                mean, deviation = statistics.fmean(usual), statistics.stdev(usual)
                if value > mean + self.sigma * deviation:
                    what = {"loss": "loss", "grad_norm": "norm of the gradient"}[name]
                    return f"the {what} is {value:.4g}, {(value - mean) / (deviation or math.inf):.1f} deviations above"
        return None

    def accept(self, loss: float, grad_norm: float) -> None:
        """A step was good."""
        self.recent["loss"].append(loss)
        self.recent["grad_norm"].append(grad_norm)

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps."""
        return {name: list(values) for name, values in self.recent.items()}

    def load(self, state: dict[str, list[float]]) -> None:
        """The inverse of `state`."""
        for name, values in self.recent.items():
            values.clear()
            values.extend(map(float, state.get(name, ())))


def examine(model: GPT, ids: np.ndarray, draw: int, settings: TrainSettings) -> dict[str, Any]:
    """What there is to know about a bad step, found by repeating it. Gradients are overwritten, weights are not.

    weight              the first parameter that holds a NaN or an infinity itself, or None
    operator            the first operation that made one; or None
    called_at           the lines of the program that called it; or None
    parameter           the first parameter, in the order of the backward pass, whose gradient holds one; else
                        the one whose gradient is longest
    gradient_norms      of every parameter
    """
    weights = [name for name, p in model.named_parameters() if not np.isfinite(p.array).all()]
    arrived: list[str] = []
    hooks = [p.register_hook(_note_if_bad(name, arrived)) for name, p in model.named_parameters()]
    model.zero_grad()
    operator = called_at = None
    with np.errstate(all="ignore"):
        try:
            for micro_step in range(settings.accumulation):
                (batch_loss(model, ids, draw, micro_step, settings) / settings.accumulation).backward()
        finally:
            for hook in hooks:
                hook.remove()
        norms = {
            name: math.sqrt(sum_of_squares([p.grad.array]))
            for name, p in model.named_parameters() if p.grad is not None
        }  # fmt: skip
        try:
            with ag.detect_anomaly():
                for micro_step in range(settings.accumulation):
                    batch_loss(model, ids, draw, micro_step, settings).backward()
        except ag.AnomalyError as error:
            operator, called_at = error.what, error.where.splitlines()
    longest = max(norms, key=lambda name: norms[name], default=None)
    return {
        "weight": weights[0] if weights else None,
        "operator": operator,
        "called_at": called_at,
        "parameter": arrived[0] if arrived else longest,
        "gradient_norms": norms,
    }


def _note_if_bad(name: str, arrived: list[str]) -> Any:
    def hook(gradient: ag.Tensor) -> None:
        if not np.isfinite(gradient.array).all():
            arrived.append(name)

    return hook


def explain(found: dict[str, Any]) -> str:
    """The findings of `examine` in a few words."""
    if found["weight"]:
        return f"the parameter {found['weight']} holds it already"
    words = [found["operator"]] if found["operator"] else []
    if found["parameter"]:
        first = "the first gradient to go bad is" if found["operator"] else "the longest gradient is"
        words.append(f"{first} that of {found['parameter']}")
    return "; ".join(words)


def record(
    folder: Path, step: int, draw: int, bad: BadStep, found: dict[str, Any], lr: float,
    ids: np.ndarray, block_size: int, tokenizer: Tokenizer, settings: TrainSettings,
) -> Path:  # fmt: skip
    """Write down a bad step in a folder of its own under `folder`, which is returned. Raises OSError."""
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    target = folder / f"step-{step:08d}-draw-{draw:08d}"
    aside = folder / f".{target.name}.part"
    aside.mkdir()
    batches = [batch(ids, block_size, draw, micro_step, settings) for micro_step in range(settings.accumulation)]
    inputs, targets = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    save_file({"inputs": inputs, "targets": targets}, aside / "batch.safetensors")
    content = {
        "step": step, "draw": draw, "seed": settings.seed, "reason": bad.reason, "loss": bad.loss,
        "losses": bad.losses, "grad_norm": bad.grad_norm, "lr": lr, **found,
        "text": [[tokenizer.decode(row) for row in rows] for rows in inputs],
    }  # fmt: skip
    write_whole(aside / "bad-step.json", json.dumps(content, indent=1, ensure_ascii=False))
    shutil.rmtree(target, ignore_errors=True)  # the same, from before the run was killed
    os.rename(aside, target)
    for old in sorted(folder.glob("step-*"), key=lambda path: path.stat().st_mtime)[:-RECORDS]:
        shutil.rmtree(old)
    return target
