"""Functions that NumPy lacks, one element after another, as exact as the platform's mathematics library.

They serve definitions and rarely used operators. Where speed matters, kernels use the polynomials of `elementary`.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import kernel

__all__ = ["erf"]


@kernel
def _erf(x, out):
    for i in range(x.size):
        out[i] = math.erf(x[i])


def erf(x: np.ndarray) -> np.ndarray:
    """The error function of each element of `x` (float32 or float64, any shape), in the same dtype."""
    flat = np.array(x, order="C").reshape(-1)
    out = np.empty_like(flat)
    _erf(flat, out)
    return out.reshape(np.shape(x))
