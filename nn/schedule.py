"""Learning rates that change while training: pure functions of the step, and an object that applies one.

    warmup_cosine                        warmup_stable_decay
      max ┤  ╭──╮                          max ┤  ╭────────────╮
          │ ╱    ╲                             │ ╱              ╲
      min ┤╱      ╰────                    min ┤╱                ╰──
          └─────────────                       └────────────────────
           warmup   total                       warmup       decay  total

Steps count from 0. Warm-up rises linearly and reaches `max_lr` at step `warmup_steps`; its first step is already above
0. From `total_steps` on the rate stays at `min_lr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nn.optim import Optimizer

__all__ = ["Scheduler", "constant", "warmup_cosine", "warmup_stable_decay"]


def constant(step: int, *, max_lr: float, warmup_steps: int = 0) -> float:
    """Rise to `max_lr`, and stay."""
    return max_lr * min(1.0, (step + 1) / (warmup_steps + 1))


def warmup_cosine(
    step: int, *, max_lr: float, total_steps: int, warmup_steps: int = 0, min_lr: float = 0.0
) -> float:
    """Rise to `max_lr`, then fall along half a cosine to `min_lr` at `total_steps` (Loshchilov & Hutter 2017)."""
    if step < warmup_steps:
        return constant(step, max_lr=max_lr, warmup_steps=warmup_steps)
    progress = _progress(step, warmup_steps, total_steps)
    return min_lr + (max_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(
    step: int, *, max_lr: float, total_steps: int, decay_steps: int, warmup_steps: int = 0, min_lr: float = 0.0
) -> float:
    """Rise to `max_lr`, stay, and fall linearly to `min_lr` over the last `decay_steps` (Hu et al. 2024, MiniCPM).

    Unlike a cosine it does not commit to `total_steps` early: training may go on from before the decay.
    """
    decay_start = max(total_steps - decay_steps, warmup_steps)
    if step < decay_start:
        return constant(step, max_lr=max_lr, warmup_steps=warmup_steps)
    return max_lr + (min_lr - max_lr) * _progress(step, decay_start, total_steps)


def _progress(step: int, start: int, end: int) -> float:
    """0 at `start`, 1 from `end` on."""
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


class Scheduler:
    """Writes the learning rate of each step into an optimizer.

        scheduler = Scheduler(optimizer, lambda step: warmup_cosine(step, max_lr=1e-3, total_steps=1000))
        for batch in batches:
            ...
            optimizer.step()
            scheduler.step()

    The rate of step 0 is set at once. Groups whose rate differs at the start keep their ratio to the largest.
    """

    def __init__(self, optimizer: Optimizer, schedule: Callable[[int], float], step: int = 0) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        rates = [group["lr"] for group in optimizer.param_groups]
        largest = max(rates)
        self.ratios = [rate / largest if largest else 1.0 for rate in rates]
        self._set(step)

    def step(self) -> float:
        """Go on to the next step; returns its learning rate."""
        return self._set(self.step_count + 1)

    def _set(self, step: int) -> float:
        self.step_count = step
        self.lr = self.schedule(step)
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = self.lr * ratio
        return self.lr

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain numbers; the schedule itself belongs to the settings."""
        return {"step": self.step_count, "ratios": self.ratios}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where `state_dict` stood."""
        self.ratios = list(state_dict["ratios"])
        self._set(state_dict["step"])
