"""A derivative by its definition, as exact as floating point allows, and how far off it may be.

The definition is a limit of differences. With P, M and C the function at +h, −h and 0,

    (P − M) / 2h        = f′ + c₂h² + c₄h⁴ + …      the derivative
    (P + M − 2C) / h    = J  + c₁h  + c₃h³ + …      the jump between right-hand and left-hand derivative

Taking them at h, h/2, h/4, … and combining the results so that one power of h after the other cancels
(Richardson extrapolation) reaches ten to twelve digits where one difference reaches six. How far neighbouring
entries of that table differ estimates the error of truncation; rounding adds a known amount. Together they
are the *error bar*. So a comparison needs no guessed tolerance, and a point without a derivative is seen:
either J ≠ 0 (a kink at the point itself, invisible to central differences), or the table does not settle (a
kink or jump close by).

Source: Ridders, "Accurate computation of F′(x) and F′(x)F″(x)", 1982; Press et al., "Numerical Recipes", 5.7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "complex_step", "differentiate"]

EPS = float(np.finfo(np.float64).eps)
LEVELS = 5


@dataclass
class Estimate:
    """A derivative: `value` ± `bar`; `jump` is right-hand minus left-hand derivative ± `jump_bar`. Arrays of
    one shape.
    """

    value: np.ndarray
    bar: np.ndarray
    jump: np.ndarray
    jump_bar: np.ndarray

    def kinked(self, atol: float = 0.0) -> np.ndarray:
        """Where the two one-sided derivatives surely differ, by more than `atol`."""
        scale = np.abs(self.value).max(initial=0) + np.abs(self.jump).max(initial=0)
        return np.abs(self.jump) > np.maximum(10 * self.jump_bar, 1e-4 * scale) + atol


def differentiate(f: Callable[[float], np.ndarray], step: float = 2.0**-5, size: float = 1.0) -> Estimate:
    """d/dt f(t) at t = 0, for f that takes a number and returns float64 numbers in an array of any shape.

    Args:
        step: the largest t tried; where the table does not settle, smaller ones are tried too.
        size: how large the numbers are that t is added to, which is what rounding eats from.
    """
    centre = f(0.0)
    best = _table(f, centre, step, size)
    for _ in range(2):
        scale = np.abs(best.value[np.isfinite(best.value)]).max(initial=0)
        if (best.bar <= 1e-9 * max(scale, 1e-3)).all():
            break
        step /= 2**LEVELS
        finer = _table(f, centre, step, size)
        value, jump = ~(best.bar <= finer.bar), ~(best.jump_bar <= finer.jump_bar)  # where the finer one is better
        best = Estimate(
            np.where(value, finer.value, best.value),
            np.where(value, finer.bar, best.bar),
            np.where(jump, finer.jump, best.jump),
            np.where(jump, finer.jump_bar, best.jump_bar),
        )
    return best


def _table(f: Callable[[float], np.ndarray], centre: np.ndarray, step: float, size: float) -> Estimate:
    steps = [step / 2**level for level in range(LEVELS)]
    slopes, gaps, noise = [], [], []
    magnitude = np.abs(centre[np.isfinite(centre)]).max(initial=0)
    for h in steps:
        above, below = f(h), f(-h)
        slopes.append((above - below) / (2 * h))
        gaps.append((above + below - 2 * centre) / h)
        noise.append(4 * EPS * (magnitude + size * np.abs(slopes[-1])) / h)
    value, bar = _extrapolate(slopes, noise, lambda column: 4.0**column)
    jump, jump_bar = _extrapolate(gaps, [4 * n for n in noise], lambda column: 2.0 ** (2 * column - 1))
    return Estimate(value, bar, jump, jump_bar)


def _extrapolate(
    rows: Sequence[np.ndarray], noise: Sequence[np.ndarray], factor: Callable[[int], float]
) -> tuple[np.ndarray, np.ndarray]:
    """For each element the entry of the table that differs least from its neighbours, and by how much."""
    best, error = rows[0].copy(), np.full(rows[0].shape, np.inf)
    before: list[np.ndarray] = [rows[0]]
    for row, rounding in zip(rows[1:], noise[1:], strict=True):
        now = [row]
        for column in range(1, len(before) + 1):
            power = factor(column)
            now.append((power * now[column - 1] - before[column - 1]) / (power - 1))
            spread = (
                np.maximum(np.abs(now[column] - now[column - 1]), np.abs(now[column] - before[column - 1])) + rounding
            )
            better = spread < error
            best[better], error[better] = now[column][better], spread[better]
        before = now
    return best, error


def complex_step(f: Callable[[complex], np.ndarray]) -> np.ndarray:
    """d/dt f(t) at t = 0 for an analytic f, to the last digits: Im f(ih)/h has no difference in it, so
    nothing cancels.

    Source: Squire and Trapp, "Using complex variables to estimate derivatives of real functions", 1998.
    """
    h = 1e-30
    return np.asarray(f(1j * h)).imag / h
