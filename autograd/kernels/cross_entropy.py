"""Cross-entropy over a vocabulary, from logits or fused with the projection that makes them.

    loss_n      = lse_n − logits[n, t_n]             lse_n = log Σ_v exp(logits[n, v]),  t = targets
    dlogits[n]  = dloss_n · (exp(logits[n] − lse_n) − onehot(t_n))

`cross_entropy` keeps no probabilities: the log-sum-exp of each row is enough to make them again.

`linear_cross_entropy` is the mean loss of logits = x @ weightᵀ and never holds more than a chunk of rows of them,
nor computes them twice: while a chunk is in cache, its part of the gradients for dout = 1 is taken too. With e_n =
exp(logits[n] − m_n) and s_n = Σe_n, each row of logits becomes its own gradient, in its place:

    dlogits[n] = (e_n / s_n − onehot(t_n)) / count
    dx         = dlogits @ weight
    dweight    = dlogitsᵀ @ x

With N rows that is 6·N·V·C FLOPs in the three products, and chunk·V numbers of memory in place of N·V.

Rows whose target is `ignore_index` have loss 0 and gradient 0 and do not count in the mean; a mean over no rows is
NaN, as in PyTorch, with gradients 0. Left out: class weights, label smoothing, soft targets.
"""

from __future__ import annotations

import numpy as np

from .arrays import operand, rows, rows_per_chunk
from .elementary import exp, minus, row_maximum, use_widest_vectors
from .jit import kernel, prange
from .matmul import matmul
from .softmax import exp_sum

__all__ = ["cross_entropy", "cross_entropy_backward", "linear_cross_entropy"]

CHUNK_BYTES = 64 << 20  # of logits. Every chunk reads the weights twice and its gradient once, so not too small


@kernel
def _loss_rows(logits, targets, ignore_index, losses, lse, first, last):
    for i in range(first, last):
        maximum = row_maximum(logits[i])
        log_sum = np.log(exp_sum(logits[i], maximum))
        lse[i] = maximum + log_sum
        losses[i] = 0
        if targets[i] != ignore_index:
            losses[i] = minus(log_sum, minus(logits[i, targets[i]], maximum))


@kernel
def _loss_backward_rows(dlosses, logits, targets, lse, ignore_index, dlogits, first, last):
    use_widest_vectors()
    zero = logits.dtype.type(0)
    for i in range(first, last):
        xi, dxi, d, log_sum = logits[i], dlogits[i], dlosses[i], lse[i]
        if targets[i] == ignore_index:
            for j in range(xi.size):
                dxi[j] = zero
        else:
            for j in range(xi.size):
                dxi[j] = d * exp(xi[j] - log_sum)
            dxi[targets[i]] -= d


@kernel
def _differentiate_rows(logits, targets, losses, count, first, last):
    """Replace each row by the gradient of the mean of `count` losses; note the loss."""
    use_widest_vectors()
    one = logits.dtype.type(1)
    for i in range(first, last):
        xi, target = logits[i], targets[i]
        maximum = row_maximum(xi)
        above = minus(xi[target], maximum)
        total = logits.dtype.type(0)
        for j in range(xi.size):
            e = exp(xi[j] - maximum)
            xi[j] = e
            total += e
        factor = one / (total * count)
        for j in range(xi.size):
            xi[j] *= factor
        xi[target] -= one / count
        losses[i] = minus(np.log(total), above)


@kernel(parallel=True)
def _loss(logits, targets, ignore_index, losses, lse, step):
    for chunk in prange((len(logits) + step - 1) // step):
        _loss_rows(logits, targets, ignore_index, losses, lse, chunk * step, min(len(logits), (chunk + 1) * step))


@kernel(parallel=True)
def _loss_backward(dlosses, logits, targets, lse, ignore_index, dlogits, step):
    for chunk in prange((len(logits) + step - 1) // step):
        _loss_backward_rows(dlosses, logits, targets, lse, ignore_index, dlogits,
                            chunk * step, min(len(logits), (chunk + 1) * step))


@kernel(parallel=True)
def _differentiate(logits, targets, losses, count, step):
    for chunk in prange((len(logits) + step - 1) // step):
        _differentiate_rows(logits, targets, losses, count, chunk * step, min(len(logits), (chunk + 1) * step))


def _checked(targets: np.ndarray, num_rows: int, num_classes: int, ignore_index: int) -> tuple[np.ndarray, np.ndarray]:
    """(targets as a kernel takes them, which of them count)."""
    if targets.shape != (num_rows,):
        raise ValueError(f"expected one target for each of {num_rows} rows, got targets of shape {targets.shape}")
    targets = operand(np.asarray(targets, np.int64))
    counted = targets != ignore_index
    wrong = counted & ((targets < 0) | (targets >= num_classes))
    if wrong.any():
        raise IndexError(f"target {targets[wrong][0]} is out of range: expected 0 ≤ target < {num_classes}, "
                         f"or ignore_index ({ignore_index})")
    return targets, counted


def cross_entropy(logits: np.ndarray, targets: np.ndarray, ignore_index: int = -100) -> tuple[np.ndarray, np.ndarray]:
    """logits (N, V), targets (N,) integers → (losses (N,) in nats, lse (N,)), of the dtype of logits.

    Losses of ignored rows are 0. Raises IndexError for targets out of range, ValueError for shapes that do not fit.
    """
    num_rows, num_classes = logits.shape
    targets, _ = _checked(targets, num_rows, num_classes, ignore_index)
    losses, lse = np.empty(num_rows, logits.dtype), np.empty(num_rows, logits.dtype)
    _loss(rows(logits), targets, ignore_index, losses, lse, rows_per_chunk(num_classes))
    return losses, lse


def cross_entropy_backward(dlosses: np.ndarray, logits: np.ndarray, targets: np.ndarray, lse: np.ndarray,
                           ignore_index: int = -100) -> np.ndarray:
    """dlogits (N, V) from dlosses (N,) and the lse (N,) that `cross_entropy` returned."""
    dlogits = np.empty(logits.shape, logits.dtype)
    _loss_backward(operand(dlosses), rows(logits), operand(np.asarray(targets, np.int64)), operand(lse), ignore_index,
                   dlogits, rows_per_chunk(logits.shape[1]))
    return dlogits


def linear_cross_entropy(
    x: np.ndarray, weight: np.ndarray, targets: np.ndarray, ignore_index: int = -100, with_grad: bool = True
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The mean cross-entropy of logits x @ weightᵀ, with x (N, C), weight (V, C), targets (N,) integers.

    Returns (loss () in nats, dx (N, C), dweight (V, C)), of x's dtype; the gradients are those of the mean loss
    (multiply by dout), or None unless `with_grad`. Raises as `cross_entropy` does.
    """
    (num_rows, width), num_classes, dtype = x.shape, weight.shape[0], x.dtype
    targets, counted = _checked(targets, num_rows, num_classes, ignore_index)
    count = int(counted.sum())
    ignored = count < num_rows
    if ignored:  # ignored rows take no part in anything
        x, targets = x[counted], targets[counted]
    losses = np.empty(count, dtype)
    dx = np.empty((count, width), dtype) if with_grad else None
    dweight = np.empty(weight.shape, dtype) if count else np.zeros(weight.shape, dtype)
    step = max(16, CHUNK_BYTES // max(1, num_classes * dtype.itemsize))
    logits_buffer = np.empty((min(step, count), num_classes), dtype)
    for first in range(0, count, step):
        part = slice(first, min(count, first + step))
        logits = logits_buffer[:part.stop - first]
        matmul(x[part], weight.T, out=logits)
        _differentiate(logits, targets[part], losses[part], dtype.type(count), rows_per_chunk(num_classes))
        if with_grad:
            matmul(logits, weight, out=dx[part])
            matmul(logits.T, x[part], out=dweight, onto=dweight if first else None)
    loss = np.asarray(losses.sum(dtype=np.float64) / count if count else np.nan, dtype)
    if not with_grad:
        return loss, None, None
    if ignored:
        all_dx = np.zeros((num_rows, width), dtype)
        all_dx[counted] = dx
        dx = all_dx
    return loss, dx, dweight
