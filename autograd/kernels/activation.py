"""Activations, element by element, and their backward passes.

    relu     max(x, 0)                                 dx = dout · [x > 0]
    gelu     x·Φ(x)                                    dx = dout · (Φ(x) + x·φ(x))
    gelu~    x·σ(2u),  u = √(2/π)·(x + 0.044715·x³)    dx = dout · (σ(2u) + x·σ′(2u)·2u′)
    silu     x·σ(x)                                    dx = dout · (σ(x) + x·σ′(x))
    swiglu   silu(gate)·up                             dgate = dout·up·silu′(gate),  dup = dout·silu(gate)

Φ and φ are the standard normal distribution and density, σ the logistic function, σ′ = σ·(1 − σ); (1 + tanh u)/2 =
σ(2u) turns the tanh of GPT-2's GELU into one exponential. GELU: Hendrycks, Gimpel, arXiv:1606.08415. SwiGLU:
Shazeer, arXiv:2002.05202.

Each is one pass over memory: 2 accesses an element forward, 3 backward (SwiGLU 3 and 5), about 25 FLOPs.

Left out: saving anything for the backward pass; recomputing costs less than the memory traffic.
"""

from __future__ import annotations

import numpy as np

from .arrays import GRAIN, flat
from .elementary import like, logistic, normal_cdf, normal_pdf, sigmoid, use_widest_vectors
from .jit import kernel, prange

__all__ = [
    "gelu", "gelu_and_slope", "gelu_backward", "relu", "relu_backward", "silu", "silu_backward", "swiglu",
    "swiglu_backward",
]  # fmt: skip


A, B = 2 * np.sqrt(2 / np.pi), 2 * np.sqrt(2 / np.pi) * 0.044715


@kernel
def gelu_and_slope(x, tanh):
    """GELU of one number, and its derivative. What is not used is not computed."""
    if tanh:
        square = x * x
        s, slope = logistic(x * (like(x, A) + like(x, B) * square))
        return x * s, s + x * slope * (like(x, A) + like(x, 3 * B) * square)
    phi = normal_cdf(x)
    return x * phi, phi + x * normal_pdf(x)


@kernel
def _gelu_span(x, out, tanh):
    use_widest_vectors()
    if tanh:
        for i in range(x.size):
            out[i] = gelu_and_slope(x[i], True)[0]
    else:
        for i in range(x.size):
            out[i] = gelu_and_slope(x[i], False)[0]


@kernel
def _gelu_backward_span(dout, x, dx, tanh):
    use_widest_vectors()
    if tanh:
        for i in range(x.size):
            dx[i] = dout[i] * gelu_and_slope(x[i], True)[1]
    else:
        for i in range(x.size):
            dx[i] = dout[i] * gelu_and_slope(x[i], False)[1]


@kernel
def _silu_span(x, out):
    use_widest_vectors()
    for i in range(x.size):
        out[i] = x[i] * sigmoid(x[i])


@kernel
def _silu_backward_span(dout, x, dx):
    use_widest_vectors()
    for i in range(x.size):
        s, slope = logistic(x[i])
        dx[i] = dout[i] * (s + x[i] * slope)


@kernel
def _swiglu_span(gate, up, out):
    use_widest_vectors()
    for i in range(gate.size):
        out[i] = gate[i] * sigmoid(gate[i]) * up[i]


@kernel
def _swiglu_backward_span(dout, gate, up, dgate, dup):
    use_widest_vectors()
    for i in range(gate.size):
        g, d = gate[i], dout[i]
        s, slope = logistic(g)
        dgate[i] = d * up[i] * (s + g * slope)
        dup[i] = d * g * s


@kernel(parallel=True)
def _gelu(x, out, tanh):
    for chunk in prange((x.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(x.size, (chunk + 1) * GRAIN))
        _gelu_span(x[span], out[span], tanh)


@kernel(parallel=True)
def _gelu_backward(dout, x, dx, tanh):
    for chunk in prange((x.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(x.size, (chunk + 1) * GRAIN))
        _gelu_backward_span(dout[span], x[span], dx[span], tanh)


@kernel(parallel=True)
def _silu(x, out):
    for chunk in prange((x.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(x.size, (chunk + 1) * GRAIN))
        _silu_span(x[span], out[span])


@kernel(parallel=True)
def _silu_backward(dout, x, dx):
    for chunk in prange((x.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(x.size, (chunk + 1) * GRAIN))
        _silu_backward_span(dout[span], x[span], dx[span])


@kernel(parallel=True)
def _swiglu(gate, up, out):
    for chunk in prange((gate.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(gate.size, (chunk + 1) * GRAIN))
        _swiglu_span(gate[span], up[span], out[span])


@kernel(parallel=True)
def _swiglu_backward(dout, gate, up, dgate, dup):
    for chunk in prange((gate.size + GRAIN - 1) // GRAIN):
        span = slice(chunk * GRAIN, min(gate.size, (chunk + 1) * GRAIN))
        _swiglu_backward_span(dout[span], gate[span], up[span], dgate[span], dup[span])


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), NaN where x is NaN; a new array."""
    return np.maximum(x, x.dtype.type(0))


def relu_backward(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dx = dout where x > 0, else 0."""
    return dout * (x > 0)


def gelu(x: np.ndarray, tanh: bool) -> np.ndarray:
    """x·Φ(x), or with `tanh` GPT-2's approximation of it; x of any shape, float32 or float64; a new array."""
    out = np.empty(x.shape, x.dtype)
    _gelu(flat(x), out.reshape(-1), tanh)
    return out


def gelu_backward(dout: np.ndarray, x: np.ndarray, tanh: bool) -> np.ndarray:
    """dx of the GELU of the same `tanh`."""
    dx = np.empty(x.shape, x.dtype)
    _gelu_backward(flat(dout), flat(x), dx.reshape(-1), tanh)
    return dx


def silu(x: np.ndarray) -> np.ndarray:
    """x·σ(x); x of any shape, float32 or float64; a new array."""
    out = np.empty(x.shape, x.dtype)
    _silu(flat(x), out.reshape(-1))
    return out


def silu_backward(dout: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dx of `silu`."""
    dx = np.empty(x.shape, x.dtype)
    _silu_backward(flat(dout), flat(x), dx.reshape(-1))
    return dx


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate)·up, both of one shape and dtype; a new array."""
    out = np.empty(gate.shape, gate.dtype)
    _swiglu(flat(gate), flat(up), out.reshape(-1))
    return out


def swiglu_backward(dout: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dgate, dup) of `swiglu`."""
    dgate, dup = np.empty(gate.shape, gate.dtype), np.empty(gate.shape, gate.dtype)
    _swiglu_backward(flat(dout), flat(gate), flat(up), dgate.reshape(-1), dup.reshape(-1))
    return dgate, dup
