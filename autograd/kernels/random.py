"""Random numbers that are a function of (seed, position), and dropout made of them.

Number i of a seed is a hash of i under two 32-bit keys drawn from the seed: no state, no order, no stored mask. The
backward pass of dropout calls the same function and meets the same decisions, any thread can start anywhere, and a
restored run needs nothing but its seed. Such generators are called counter-based: Salmon et al., *Parallel Random
Numbers: As Easy as 1, 2, 3* (2011). The hash multiplies and shifts 32-bit words, which vectorises; its constants
are those of Wellons's "lowbias32" (hash-prospector) and of MurmurHash3. It is made for dropout, not for
cryptography.

    dropout     out_i = x_i / (1 − p) if u_i ≥ p else 0         dx = dropout(dout, p, seed)

About 12 integer operations and two memory accesses an element.
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import GRAIN, flat
from .elementary import use_widest_vectors
from .jit import kernel, prange

__all__ = ["dropout", "keep_threshold", "keys", "random_bits", "uniform"]


def keys(seed: int) -> tuple[np.uint32, np.uint32]:
    """Two words drawn from the seed (any integer; 64 bits of it count), by the finalizer of SplitMix64."""
    z = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    z ^= z >> 31
    return np.uint32(z & 0xFFFFFFFF), np.uint32(z >> 32)


def keep_threshold(p: float) -> np.uint32:
    """Random bits at or above it mean: keep. Their share is 1 − p."""
    if not 0 <= p < 1:
        raise ValueError(f"expected a dropout probability 0 ≤ p < 1, got {p}")
    return np.uint32(min(round(p * 2**32), 2**32 - 1))


@kernel
def random_bits(key0, key1, i):
    """32 random bits for position i (0 ≤ i < 2⁶³)."""
    h = np.uint32(i) * np.uint32(0x9E3779B9) + key0
    h = np.uint32(h)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ key1 ^ np.uint32(np.uint32(i >> 32) * np.uint32(0x85EBCA6B)))
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@kernel
def _dropout_span(x, key0, key1, threshold, scale, first, last, out):
    use_widest_vectors()
    zero = x.dtype.type(0)
    for i in range(first, last):
        kept = x[i] * scale
        out[i] = kept if random_bits(key0, key1, i) >= threshold else zero


@kernel(parallel=True)
def _dropout(x, key0, key1, threshold, scale, out):
    for chunk in prange((x.size + GRAIN - 1) // GRAIN):
        _dropout_span(x, key0, key1, threshold, scale, chunk * GRAIN, min(x.size, (chunk + 1) * GRAIN), out)


@kernel
def _uniform(key0, key1, out):
    for i in range(out.size):
        out[i] = random_bits(key0, key1, i) * 2.0**-32


def dropout(x: np.ndarray, p: float, seed: int) -> np.ndarray:
    """Zero each element of x with probability p and divide the others by 1 − p; a new array.

    Element i (in C order) is kept where `uniform(x.shape, seed)` is at least p. Raises ValueError unless 0 ≤ p < 1.
    """
    out = np.empty(x.shape, x.dtype)
    _dropout(flat(x), *keys(seed), keep_threshold(p), x.dtype.type(1 / (1 - p)), out.reshape(-1))
    return out


def uniform(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The numbers in [0, 1) that decide in `dropout` with this seed, float64 with 32 random bits."""
    out = np.empty(math.prod(shape), np.float64)
    _uniform(*keys(seed), out)
    return out.reshape(shape)
