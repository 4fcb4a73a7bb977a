# mypy: disable-error-code=misc
"""Dropout. Its random numbers are a function of (seed, position), so the mask is never stored, only computed again."""

from __future__ import annotations

import numpy as np

from ..kernels import random as kernels
from ..op import Sample, fused
from .selection import where

__all__ = ["dropout"]


@fused
class dropout:
    """out = x / (1 − p) where u ≥ p, else 0, with u uniform on [0, 1), one number for each element

    dx = the same operation on dout, with the same seed
    """

    def forward(x, *, p, seed):
        if not 0 <= p <= 1:
            raise ValueError(f"dropout: expected a probability p from 0 to 1, got {p}")
        return kernels.dropout(x, p, seed) if p < 1 else np.zeros_like(x)

    def vjp(dout, p, seed):
        yield dropout.forward(dout, p=p, seed=seed)

    def plain(x, *, p, seed):
        kept = kernels.uniform(x.shape, seed) >= p
        return where(kept, x * (1 / (1 - p) if p < 1 else 0.0), 0)

    def samples(rng):
        for p in (0.0, 0.5, 0.9, 1.0):
            yield Sample((rng.normal(size=(3, 7)),), {"p": p, "seed": 42})
        yield Sample((rng.normal(size=()),), {"p": 0.5, "seed": 1})
        yield Sample((rng.normal(size=(3,)),), {"p": 1.5, "seed": 1}, error=ValueError, match="from 0 to 1")

    def space(draw):
        return Sample((draw.array(draw.shape()),), {"p": draw.choice(0.0, 0.3, 0.9, 1.0), "seed": draw.size(0, 1000)})
