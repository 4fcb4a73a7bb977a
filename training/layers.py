"""How large gradients and updates are beside the weights, layer by layer.

    grad/weight     |g| / |w|     the gradient before clipping, beside the weights it is for
    update/weight   |Δw| / |w|    how far one update moves the weights; about 0.001 is healthy for AdamW

A layer is what owns parameters: a linear layer with its bias, a norm, an embedding. Norms are Euclidean, over all of a
layer's numbers, with the weights from before the update. A layer whose ratios differ from its neighbours' by orders of
magnitude learns too fast, or not at all; which is why these lines are kept.

An update is weights before and after, so the weights from before are copied; of a large parameter only some, at even
distances, whose squares are scaled up. That bounds the memory, and nothing here touches the training.
"""

import math

import numpy as np

from autograd import Tensor
from autograd.kernels.optimizer import sum_of_squares
from nn import Module

MOST_NUMBERS = 1 << 18  # of a parameter, that are copied: a megabyte

Weights = dict[str, tuple[float, np.ndarray]]


def weights_before(model: Module) -> Weights:
    """What `layer_ratios` has to know from before an update: by parameter, Σ w² and (some of) its numbers."""
    return {name: (sum_of_squares([p.array]), _some(p)) for name, p in model.named_parameters()}


def layer_ratios(model: Module, before: Weights) -> dict[str, list[float | None]]:
    """By layer, [|g| / |w|, |Δw| / |w|], to four digits: `model` holds the gradients and the updated weights.

    None where all of a layer's weights were zero, or a ratio is not finite.
    """
    sums: dict[str, np.ndarray] = {}  # by layer: Σ w², Σ g², Σ Δw²
    for name, parameter in model.named_parameters():
        weight, old = before[name]
        gradient = sum_of_squares([parameter.grad.array]) if parameter.grad is not None else 0.0
        moved = sum_of_squares([_some(parameter) - old]) * parameter.array.size / old.size
        layer = name.rpartition(".")[0] or name
        sums[layer] = sums.get(layer, 0.0) + np.array([weight, gradient, moved])
    return {layer: [_ratio(grad, weight), _ratio(moved, weight)] for layer, (weight, grad, moved) in sums.items()}


def _some(parameter: Tensor) -> np.ndarray:
    numbers = parameter.array.reshape(-1)
    every = -(-numbers.size // MOST_NUMBERS) | 1  # odd: does not fall in step with rows of even length
    return np.array(numbers[::every])


def _ratio(squares: float, of: float) -> float | None:
    ratio = math.sqrt(squares / of) if of > 0 else math.nan
    return float(f"{ratio:.4g}") if math.isfinite(ratio) else None
