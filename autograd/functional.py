"""The calculus: derivatives as functions of functions.

All of it is reverse mode. `vjp` is one backward pass. `jvp` is two: the map v ↦ vᵀJ is linear in v, so its own
derivative, taken backward in direction u, is J u. Hessian-vector products differentiate a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .creation import generator, zeros_like
from .graph import Variable, enable_grad, recompute_in_backward, run_backward
from .ops import alias, stack
from .tensor import Tensor, start

__all__ = ["checkpoint", "grad", "hessian", "hvp", "jacobian", "jvp", "vjp"]

Tensors = Tensor | Sequence[Tensor]


def _tuple(x: Any) -> tuple:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def _like(reference: Any, values: Sequence) -> Any:
    """A single value for a single tensor, a tuple for several."""
    return tuple(values) if isinstance(reference, tuple | list) else values[0]


def grad(
    outputs: Tensors,
    inputs: Tensors,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of the sum of `outputs`, each weighted by its grad_output, for `inputs`. No `.grad` changes.

    Args:
        outputs: what to differentiate, a tensor or several.
        inputs: with respect to what, a tensor or several; leaves or intermediate results.
        grad_outputs: upstream gradients in the shapes of `outputs`; may be left out for single elements.
        retain_graph: keep what was saved for another pass (default: `create_graph`).
        create_graph: record the pass, so that the gradients can be differentiated again.
        allow_unused: give None, instead of an error, for an input that the outputs do not depend on.

    Returns:
        A tuple with one gradient for each input, in its shape.
    """
    outputs, inputs = _tuple(outputs), _tuple(inputs)
    weights = _tuple(grad_outputs) if grad_outputs is not None else (None,) * len(outputs)
    if len(weights) != len(outputs):
        raise ValueError(f"grad: expected one of grad_outputs for each of {len(outputs)} outputs, got {len(weights)}")
    for x in inputs:
        if x.node is None:
            raise RuntimeError(
                "grad: expected inputs that require grad, got one without history; call x.requires_grad_() "
                "before computing the outputs"
            )
    roots = [start(output, weight, create_graph) for output, weight in zip(outputs, weights, strict=True)]
    found = run_backward(
        roots,
        targets=[x.node for x in inputs],
        create_graph=create_graph,
        retain_graph=create_graph if retain_graph is None else retain_graph,
    )
    gradients: list[Any] = []
    for i, x in enumerate(inputs):
        gradient = found.get(x.node)
        if gradient is None and not allow_unused:
            raise RuntimeError(
                f"grad: input {i} of shape {x.shape} was not used to compute the outputs; pass allow_unused="
                f"True to get None for it"
            )
        gradients.append(
            gradient if gradient is None or isinstance(gradient, Variable) else Variable.wrap(np.asarray(gradient))
        )
    return tuple(gradients)


def _call(function: Callable, inputs: Tensors) -> tuple[Any, tuple[Tensor, ...]]:
    """The function at inputs that nothing else in the graph refers to."""
    arguments = tuple(alias(x) if x.node is not None else x.detach().requires_grad_() for x in _tuple(inputs))
    return function(*arguments), arguments


def _grad_or_zero(outputs: Any, inputs: tuple, weights: Any, create_graph: bool) -> tuple[Tensor, ...]:
    outputs = _tuple(outputs)
    weights = _tuple(weights) if weights is not None else (None,) * len(outputs)
    used = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.node is not None]
    if not used:
        return tuple(zeros_like(x) for x in inputs)
    found = grad([o for o, _ in used], inputs, [w for _, w in used], create_graph=create_graph, allow_unused=True)
    return tuple(zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))


def vjp(function: Callable, inputs: Tensors, v: Any = None, create_graph: bool = False) -> tuple[Any, Any]:
    """(function(inputs), vᵀJ) with J the Jacobian at `inputs`. `v` has the shape of the output (1 if left out)."""
    with enable_grad():
        outputs, arguments = _call(function, inputs)
        return outputs, _like(inputs, _grad_or_zero(outputs, arguments, v, create_graph))


def jvp(function: Callable, inputs: Tensors, v: Tensors, create_graph: bool = False) -> tuple[Any, Any]:
    """(function(inputs), J v) with J the Jacobian at `inputs`. `v` has the shape of the inputs."""
    with enable_grad():
        outputs, arguments = _call(function, inputs)
        weights = tuple(
            zeros_like(o).requires_grad_() for o in _tuple(outputs)
        )  # any value will do: vᵀJ is linear in v
        rows = _grad_or_zero(outputs, arguments, weights, create_graph=True)
        return outputs, _like(outputs, _grad_or_zero(rows, weights, v, create_graph))


def hvp(function: Callable, inputs: Tensors, v: Tensors) -> tuple[Any, Any]:
    """(function(inputs), H v), H the Hessian of a function with one output element. `v` has the shape of the inputs."""
    with enable_grad():
        outputs, arguments = _call(function, inputs)
        gradients = _grad_or_zero(outputs, arguments, None, create_graph=True)
        return outputs, _like(inputs, _grad_or_zero(gradients, arguments, v, create_graph=False))


def jacobian(function: Callable, inputs: Tensors, create_graph: bool = False) -> Any:
    """All first derivatives of a function with one output: for each input an array (*output.shape, *input.shape).

    One backward pass for each element of the output.
    """
    with enable_grad():
        output, arguments = _call(function, inputs)
        rows: list[tuple[Tensor, ...]] = []
        for i in range(output.array.size):
            unit = np.zeros(output.shape, output.dtype)
            unit.reshape(-1)[i] = 1
            if output.node is None:
                rows.append(tuple(zeros_like(x) for x in arguments))
                continue
            found = grad(output, arguments, unit, retain_graph=True, create_graph=create_graph, allow_unused=True)
            rows.append(tuple(zeros_like(x) if g is None else g for g, x in zip(found, arguments, strict=True)))
        columns = [
            stack(column).reshape(*output.shape, *x.shape)
            if rows
            else Variable.wrap(np.zeros(output.shape + x.shape, x.dtype))
            for column, x in zip(zip(*rows, strict=True) if rows else [()] * len(arguments), arguments, strict=True)
        ]
        return _like(inputs, columns)


def hessian(function: Callable, inputs: Tensor, create_graph: bool = False) -> Tensor:
    """All second derivatives of a function of one tensor with one output element: (*input.shape, *input.shape)."""

    def gradient(x: Tensor) -> Tensor:
        return _grad_or_zero(function(x), (x,), None, create_graph=True)[0]

    return jacobian(gradient, inputs, create_graph)


def checkpoint(function: Callable, *inputs: Any) -> Any:
    """function(*inputs), recorded without keeping what its derivative needs; the backward pass computes that again.

    Memory falls from all that `function` saves to nothing until its turn comes; time grows by one more forward pass.
    Randomness from the library's generator is repeated exactly. `function` must do the same operations both times.
    """
    before = generator().bit_generator.state
    first = [True]

    def run() -> Any:
        if first:
            first.clear()
            return function(*inputs)
        now = generator().bit_generator.state
        generator().bit_generator.state = before
        try:
            return function(*inputs)
        finally:
            generator().bit_generator.state = now

    return recompute_in_backward(run)
