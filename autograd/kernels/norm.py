"""Layer norm and RMS norm over the last axis, x (..., C), and their backward passes.

    layer_norm    x̂ = (x − mean) · rstd        mean = Σx / C,  rstd = 1/√(Σ(x − mean)²/C + eps)
                  out = x̂ · weight + bias
    backward      with g = dout · weight:
                  dx = rstd · (g − Σg/C − x̂ · Σ(g·x̂)/C)      dweight = Σ_rows dout·x̂      dbias = Σ_rows dout

    rms_norm      x̂ = x · rstd                 rstd = 1/√(Σx²/C + eps)
                  out = x̂ · weight
    backward      dx = rstd · (g − x̂ · Σ(g·x̂)/C)              dweight = Σ_rows dout·x̂

Layer norm: Ba, Kiros, Hinton, arXiv:1607.06450. RMS norm: Zhang, Sennrich, arXiv:1910.07467. The variance is taken
from the differences to the mean, in a second pass over the row in cache. Forward: two memory accesses and about 8
FLOPs an element; backward: three and about 15. The sums over rows go to one partial sum per chunk of rows, at most
`PARTIALS` of them, which are then added in order.

In a pre-norm block, x + f(norm(x)), only products read what the norm makes, and x has a second gradient beside the
norm's. So out and dout may be bfloat16, where products round to it, and dx may be added to that second gradient.

Left out: statistics over other axes; running averages.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
from numba import types

from .arrays import operand, rows, rows_per_chunk
from .elementary import as_number, computed_row, store_row, use_widest_vectors
from .ir import pointer
from .jit import kernel, prange
from .memory import empty
from .tasks import is_last, load, next_task
from .together import Shared

__all__ = ["layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward"]

PARTIALS = 32


@kernel
def _affine(x, shift, scale, weight, bias, out):
    """out = (x − shift)·scale·weight + bias, where an empty weight or bias counts as absent."""
    use_widest_vectors()
    C = x.size
    if weight.size and bias.size:
        for j in range(C):
            out[j] = (x[j] - shift) * scale * weight[j] + bias[j]
    elif weight.size:
        for j in range(C):
            out[j] = (x[j] - shift) * scale * weight[j]
    elif bias.size:
        for j in range(C):
            out[j] = (x[j] - shift) * scale + bias[j]
    else:
        for j in range(C):
            out[j] = (x[j] - shift) * scale


@kernel
def _layer_norm_rows(x, weight, bias, eps, out, mean, rstd, first, last):
    use_widest_vectors()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    C = x.dtype.type(x.shape[1])
    scratch = np.empty(x.shape[1], x.dtype)
    for i in range(first, last):
        xi = x[i]
        total = zero
        for j in range(xi.size):
            total += xi[j]
        mu = total / C
        square = zero
        for j in range(xi.size):
            square += (xi[j] - mu) * (xi[j] - mu)
        mean[i] = mu
        rstd[i] = one / np.sqrt(square / C + eps)
        place = pointer(out[i])
        row = computed_row(place, pointer(scratch))
        _affine(xi, mu, rstd[i], weight, bias, row)
        store_row(row, place, xi.size)


@kernel
def _rms_norm_rows(x, weight, bias, eps, out, rstd, first, last):
    zero, one = x.dtype.type(0), x.dtype.type(1)
    C = x.dtype.type(x.shape[1])
    for i in range(first, last):
        xi = x[i]
        square = zero
        for j in range(xi.size):
            square += xi[j] * xi[j]
        rstd[i] = one / np.sqrt(square / C + eps)
        _affine(xi, zero, rstd[i], weight, bias, pointer(out[i]))


@kernel
def _norm_backward_rows(dout, x, weight, mean, rstd, onto, dx, dweight, dbias, first, last):
    """Both norms: RMS norm has no `mean`; where there is nothing to add to, or no `dbias` wanted, arrays are empty."""
    use_widest_vectors()
    zero = x.dtype.type(0)
    C = x.dtype.type(x.shape[1])
    dweight[:] = zero
    dbias[:] = zero
    for i in range(first, last):
        di, xi, dxi = dout[i], x[i], dx[i]
        shift = mean[i] if mean.size else zero
        scale = rstd[i]
        total, along = zero, zero
        for j in range(xi.size):
            d, x_hat = as_number(di[j]), (xi[j] - shift) * scale
            dweight[j] += d * x_hat
            total += d * weight[j]
            along += d * weight[j] * x_hat
        if dbias.size:
            for j in range(xi.size):
                dbias[j] += as_number(di[j])
        total = total / C if mean.size else zero
        along = along / C
        if len(onto):
            below = onto[i]
            for j in range(xi.size):
                dxi[j] = below[j] + scale * (as_number(di[j]) * weight[j] - total - (xi[j] - shift) * scale * along)
        else:
            for j in range(xi.size):
                dxi[j] = scale * (as_number(di[j]) * weight[j] - total - (xi[j] - shift) * scale * along)


def _forward(shared_type):
    """What each thread does for `layer_norm`."""

    def work(shared, worker):
        x, weight, bias, eps, out, mean, rstd, step, chunks, queues = load(shared, shared_type)
        while True:
            chunk = next_task(queues, worker, chunks)
            if chunk < 0:
                break
            _layer_norm_rows(x, weight, bias, eps, out, mean, rstd, chunk * step, min(len(x), (chunk + 1) * step))

    return work


@kernel(parallel=True)
def _rms_norm(x, weight, bias, eps, out, rstd, step):
    for chunk in prange((len(x) + step - 1) // step):
        _rms_norm_rows(x, weight, bias, eps, out, rstd, chunk * step, min(len(x), (chunk + 1) * step))


@kernel
def _add_up(partials, total):
    """total = Σ over the chunks, in their order."""
    for j in range(total.size):
        total[j] = 0
    for chunk in range(len(partials)):
        for j in range(total.size):
            total[j] += partials[chunk, j]


def _backward(shared_type):
    """What each thread does for the backward pass of both norms. Whoever ends last adds up the partial sums."""

    def work(shared, worker):
        dout, x, weight, mean, rstd, onto, dx, dweights, dbiases, dweight, dbias, step, chunks, queues = load(
            shared, shared_type
        )
        while True:
            chunk = next_task(queues, worker, chunks)
            if chunk < 0:
                break
            _norm_backward_rows(dout, x, weight, mean, rstd, onto, dx, dweights[chunk], dbiases[chunk],
                                chunk * step, min(len(x), (chunk + 1) * step))  # fmt: skip
            if is_last(queues, chunks):
                _add_up(dweights, dweight)
                _add_up(dbiases, dbias)

    return work


@functools.cache
def _layer_norm(dtype: np.dtype, out: np.dtype) -> Shared:
    """The kernel for rows of these numbers."""
    number = numba.from_dtype(dtype)
    row, rows, target = (types.Array(n, d, "C") for n, d in ((number, 1), (number, 2), (numba.from_dtype(out), 2)))
    kinds = rows, row, row, number, target, row, row, types.int64
    return Shared(f"layer norm: {dtype} {out}", kinds, _forward)


@functools.cache
def _norm_backward(dtype: np.dtype, dout: np.dtype) -> Shared:
    """The kernel for rows of these numbers."""
    number = numba.from_dtype(dtype)
    row, rows, upstream = (types.Array(n, d, "C") for n, d in ((number, 1), (number, 2), (numba.from_dtype(dout), 2)))
    kinds = upstream, rows, row, row, row, rows, rows, rows, rows, row, row, types.int64
    return Shared(f"norm backward: {dtype} {dout}", kinds, _backward)


def _parameter(p: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    return np.empty(0, like.dtype) if p is None else operand(p)


def layer_norm(x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float,
               narrow: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (..., C), weight (C,) or None, bias (C,) or None → (out (..., C), mean (...), rstd (...)), all of x's dtype.

    `narrow`: out is rounded to bfloat16 (its bits, uint16), from float32.
    """
    out = empty(x.shape, np.uint16 if narrow else x.dtype)
    mean, rstd = np.empty(x.shape[:-1], x.dtype), np.empty(x.shape[:-1], x.dtype)
    step = rows_per_chunk(x.shape[-1])
    parameters = _parameter(weight, x), _parameter(bias, x), x.dtype.type(eps)
    _layer_norm(x.dtype, out.dtype)(
        -(-rstd.size // step), out.nbytes, rows(x), *parameters, rows(out), mean.reshape(-1), rstd.reshape(-1), step
    )
    return out, mean, rstd


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """x (..., C), weight (C,) or None → (out (..., C), rstd (...)), all of x's dtype."""
    out = empty(x.shape, x.dtype)
    rstd = np.empty(x.shape[:-1], x.dtype)
    _rms_norm(rows(x), _parameter(weight, x), _parameter(None, x), x.dtype.type(eps), rows(out),
              rstd.reshape(-1), rows_per_chunk(x.shape[-1]))
    return out, rstd


def _gradients(dout: np.ndarray, x: np.ndarray, weight: np.ndarray | None, mean: np.ndarray | None, rstd: np.ndarray,
              with_bias: bool, onto: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dx, dweight, dbias, or an empty array in its place)."""
    width = x.shape[-1]
    dx = empty(x.shape, x.dtype)
    step = max(rows_per_chunk(width), -(-rstd.size // PARTIALS))
    chunks = max(1, -(-rstd.size // step))
    dweight, dbias = np.empty(width, x.dtype), np.empty(width if with_bias else 0, x.dtype)
    partials = [np.empty((chunks, total.size), x.dtype) for total in (dweight, dbias)]
    weight = np.ones(width, x.dtype) if weight is None else operand(weight)
    added = np.empty((0, width), x.dtype) if onto is None else rows(onto)
    statistics = _parameter(mean, x).reshape(-1), operand(rstd).reshape(-1)
    _norm_backward(x.dtype, dout.dtype)(
        chunks, dx.nbytes, rows(dout), rows(x), weight, *statistics, added, rows(dx), *partials, dweight, dbias, step
    )
    return dx, dweight, dbias


def layer_norm_backward(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray | None, mean: np.ndarray, rstd: np.ndarray,
    with_bias: bool = True, onto: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:  # fmt: skip
    """(dx (..., C), dweight (C,), dbias (C,)) from dout, x (..., C) and what `layer_norm` returned beside out.

    dout may be bfloat16 (uint16) beside float32. dx is added to `onto` (..., C), if there is one. Without a bias,
    dbias is None.
    """
    dx, dweight, dbias = _gradients(dout, x, weight, mean, rstd, with_bias, onto)
    return dx, dweight, dbias if with_bias else None


def rms_norm_backward(dout: np.ndarray, x: np.ndarray, weight: np.ndarray | None,
                      rstd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dx (..., C), dweight (C,)) from dout, x (..., C) and the rstd that `rms_norm` returned."""
    dx, dweight, _ = _gradients(dout, x, weight, None, rstd, False, None)
    return dx, dweight
