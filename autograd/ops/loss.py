# mypy: disable-error-code=misc
"""Cross-entropy: how many nats the model needed for what came next."""

from __future__ import annotations

import numpy as np

from ..kernels import cross_entropy as kernels
from ..op import Sample, fused
from .linalg import matmul
from .reduction import logsumexp, sum_
from .selection import gather, where
from .shape import reshape, swapaxes

__all__ = ["cross_entropy", "linear_cross_entropy"]


def _check_targets(name, targets, rows, vocabulary, ignore_index):
    if targets.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer targets, got {targets.dtype}")
    if targets.shape != rows:
        raise ValueError(f"{name}: expected targets of shape {rows}, one for each row of logits, got {targets.shape}")
    bad = (targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))
    if bad.any():
        raise ValueError(
            f"{name}: expected targets from 0 to {vocabulary - 1} (or ignore_index {ignore_index}), "
            f"got {targets[bad][0]}"
        )


@fused
class cross_entropy:
    """lossᵢ = logsumexp(logitsᵢ) − logitsᵢ[targetᵢ] for logits (N, V) and targets (N,), 0 for targets equal to
    `ignore_index` → (N,), in nats

    dlogitsᵢ = dlossᵢ · (softmax(logitsᵢ) − onehot(targetᵢ))

    Only the logsumexp of each row is kept; probabilities are never stored.
    """

    constant = ("targets",)
    extras = ("lse",)

    def forward(logits, targets, *, ignore_index=-100):
        if logits.ndim != 2:
            raise ValueError(f"cross_entropy: expected logits of shape (N, V), got {logits.shape}")
        _check_targets("cross_entropy", targets, logits.shape[:1], logits.shape[1], ignore_index)
        return kernels.cross_entropy(logits, targets.astype(np.int64, copy=False), ignore_index)

    def vjp(dout, logits, targets, lse, ignore_index):
        yield kernels.cross_entropy_backward(dout, logits, targets.astype(np.int64, copy=False), lse, ignore_index)

    def plain(logits, targets, *, ignore_index=-100):
        kept = targets != ignore_index
        chosen = gather(logits, 1, reshape(where(kept, targets, 0), shape=(-1, 1)))
        return where(kept, logsumexp(logits, dim=1) - reshape(chosen, shape=(-1,)), 0)

    def samples(rng):
        for rows, vocabulary in ((3, 5), (1, 1), (4, 40), (0, 3)):
            yield Sample((rng.normal(size=(rows, vocabulary)) * 3, rng.integers(0, vocabulary, rows)))
        yield Sample((rng.normal(size=(3, 5)), np.array([1, -100, 4])))
        yield Sample((rng.normal(size=(3, 5)), np.array([1, 2, 0])), {"ignore_index": 2})
        for wrong in (5, 7, -1):
            targets = np.array([1, wrong, 0])
            yield Sample((rng.normal(size=(3, 5)), targets), error=ValueError, match=f"from 0 to 4 .* got {wrong}")
        yield Sample((rng.normal(size=(3, 5)), np.array([1, 2])), error=ValueError, match="one for each row")

    def space(draw):
        N, V = draw.size(0, 4), draw.size(1, 5)
        logits = draw.array((N, V)) * draw.choice(1, 20)
        return Sample((logits, draw.integers(0, V, (N,))), {"ignore_index": draw.choice(-100, 0)})


@fused
class linear_cross_entropy:
    """loss = mean of cross_entropy(x Wᵀ, targets) over the targets that are not `ignore_index`, with x (N, C),
    W (V, C), targets (N,) → (), in nats; NaN where no target counts

    With P = softmax(x Wᵀ), Y the one-hot targets and n the number of targets that count:
    dx = dout/n · (P − Y) W
    dW = dout/n · (P − Y)ᵀ x

    The logits (N, V) are the largest thing in a small GPT. They are made a few rows at a time; while such a chunk is
    in the cache its gradient is computed too, for dout = 1, and only multiplied by dout in the backward pass.
    """

    constant = ("targets",)
    extras = ("unit_dx", "unit_dweight")

    def forward(x, weight, targets, *, ignore_index=-100, needs):
        if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
            raise ValueError(
                f"linear_cross_entropy: expected x (N, C), weight (V, C), got {x.shape} and {weight.shape}"
            )
        _check_targets("linear_cross_entropy", targets, x.shape[:1], weight.shape[0], ignore_index)
        return kernels.linear_cross_entropy(x, weight, targets.astype(np.int64, copy=False), ignore_index, any(needs))

    def vjp(dout, unit_dx, unit_dweight, retain_graph):
        for unit in (unit_dx, unit_dweight):
            gradient = unit.copy() if retain_graph else unit  # else nobody asks for the saved array again
            if dout != 1:  # 1 is the usual case: the loss itself is what is differentiated
                gradient *= dout
            yield gradient

    def plain(x, weight, targets, *, ignore_index=-100):
        losses = cross_entropy.plain(matmul(x, swapaxes(weight, 0, 1)), targets, ignore_index=ignore_index)
        return sum_(losses) / sum_(targets != ignore_index)

    def samples(rng):
        for rows, vocabulary in ((3, 5), (1, 1), (40, 7)):
            yield Sample(
                (rng.normal(size=(rows, 4)), rng.normal(size=(vocabulary, 4)), rng.integers(0, vocabulary, rows))
            )
        yield Sample((rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), np.array([1, -100, 4])))
        yield Sample(
            (rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), np.array([1, 5, 4])),
            error=ValueError,
            match="from 0 to 4",
        )

    def space(draw):
        N, C, V = draw.size(1, 4), draw.size(1, 4), draw.size(2, 5)
        targets = draw.integers(0, V, (N,))
        targets[0] = V - 1  # one that counts
        return Sample((draw.array((N, C)), draw.array((V, C)), targets), {"ignore_index": draw.choice(-100, 0)})
