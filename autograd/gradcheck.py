"""The proof: derivatives by the rules against derivatives by the definition.

The definition is a limit of differences. A central difference (f(x+h) − f(x−h))/2h is off by c₂h² + c₄h⁴ + …; taking it
at h, h/2, h/4, … and combining the results so that c₂, then c₄, … cancel (Richardson extrapolation) reaches about ten
digits where one difference reaches six. What is left between two columns of that table is an estimate of the error, so a
comparison needs no guessed tolerance: it fails when analytic and numeric value differ by more than the numeric one's own
error bar, beyond `rtol` of the derivative's scale.

Where the function has a kink the table does not converge, the error bar is wide, and that is reported as what it is.

Source: Ridders, "Accurate computation of F′(x) and F′(x)F″(x)", 1982; Press et al., "Numerical Recipes", 5.7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .functional import grad
from .graph import Variable, enable_grad, no_grad
from .ops import alias
from .tensor import Tensor

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck", "numeric_jacobian"]


class GradcheckError(AssertionError):
    """A derivative that is not what it should be."""


def _outputs(function: Callable, inputs: Sequence[Any]) -> list[Tensor]:
    result = function(*inputs)
    return [y for y in (result if isinstance(result, tuple | list) else (result,)) if isinstance(y, Variable)]  # type: ignore


def numeric_jacobian(
    function: Callable, inputs: Sequence[Any], which: int, step: float = 0.03, levels: int = 5
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Derivatives of each output with respect to input `which`, by extrapolated central differences.

    Returns:
        values and error bars: for each output an array (number of input elements, number of output elements).
    """
    x = inputs[which].array.astype(np.float64)

    def at(values: np.ndarray) -> list[np.ndarray]:
        arguments = list(inputs)
        arguments[which] = Variable.wrap(values)
        with no_grad():
            return [y.array.astype(np.float64).reshape(-1) for y in _outputs(function, arguments)]

    values, bars = [], []
    for j in range(x.size):
        h0 = step * max(1.0, abs(x.reshape(-1)[j]))
        table: list[list[list[np.ndarray]]] = []  # [level][column][output]
        noise: list[np.ndarray] = []
        for level in range(levels):
            h = h0 / 2**level
            plus, minus = x.copy(), x.copy()
            plus.reshape(-1)[j] += h
            minus.reshape(-1)[j] -= h
            width = plus.reshape(-1)[j] - minus.reshape(-1)[j]  # what 2h became in floating point
            above, below = at(plus), at(minus)
            row = [[(a - b) / width for a, b in zip(above, below, strict=True)]]
            for column in range(1, level + 1):
                factor = 4.0**column
                row.append([(factor * finer - coarser) / (factor - 1) for finer, coarser in
                            zip(row[column - 1], table[level - 1][column - 1], strict=True)])
            table.append(row)
            noise = [4 * np.finfo(np.float64).eps * np.maximum(np.abs(a), np.abs(b)) / h for a, b in
                     zip(above, below, strict=True)]
        best = [value.copy() for value in table[0][0]]
        error = [np.full(value.shape, np.inf) for value in best]
        for level in range(1, levels):
            for column in range(1, level + 1):
                for k, value in enumerate(table[level][column]):
                    spread = np.maximum(np.abs(value - table[level][column - 1][k]),
                                        np.abs(value - table[level - 1][column - 1][k]))
                    better = spread < error[k]
                    best[k][better] = value[better]
                    error[k][better] = spread[better]
        values.append(best)
        bars.append([e + n for e, n in zip(error, noise, strict=True)])
    sizes = [y.size for y in at(x)]
    return ([np.array([v[k] for v in values]).reshape(x.size, size) for k, size in enumerate(sizes)],
            [np.array([b[k] for b in bars]).reshape(x.size, size) for k, size in enumerate(sizes)])


def _analytic_jacobian(function: Callable, inputs: Sequence[Any], which: int) -> list[np.ndarray]:
    with enable_grad():
        arguments = [alias(x) if isinstance(x, Variable) and x.node is not None else x for x in inputs]
        outputs = _outputs(function, arguments)
        x = arguments[which]
        jacobians = []
        for y in outputs:
            columns = []
            for k in range(y.array.size):
                unit = np.zeros(y.shape, y.dtype)
                unit.reshape(-1)[k] = 1
                g = grad(y, x, unit, retain_graph=True, allow_unused=True)[0] if y.node is not None else None
                if g is not None and (g.shape != x.shape or g.dtype != x.dtype):
                    raise GradcheckError(f"input {which}: expected a gradient of shape {x.shape} and dtype {x.dtype}, got "
                                         f"{g.shape} and {g.dtype}")
                columns.append(np.zeros(x.array.size) if g is None else g.array.reshape(-1))
            jacobians.append(np.array(columns).reshape(y.array.size, x.array.size).T)
        return jacobians


def gradcheck(
    function: Callable,
    inputs: Any,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-10,
    step: float = 0.03,
    raise_exception: bool = True,
) -> bool:
    """Compare every first derivative of `function` at `inputs` with its definition.

    Args:
        function: takes the inputs, returns a Tensor or several.
        inputs: a Tensor or several, those with requires_grad in float64; others are passed on as they are.
        rtol: allowed difference relative to the largest derivative of the same output and input.
        atol: allowed absolute difference.
        step: the first, largest step of the difference table, relative to max(1, |x|). Make it smaller where the
            function is defined only close by.

    Returns:
        True; on failure raises GradcheckError, or returns False if not `raise_exception`.
    """
    inputs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    checked = [i for i, x in enumerate(inputs) if isinstance(x, Variable) and x.node is not None]
    if not checked:
        raise ValueError("gradcheck: expected at least one input with requires_grad=True")
    for i in checked:
        if inputs[i].dtype != np.float64:
            raise TypeError(f"gradcheck: expected float64 inputs, got {inputs[i].dtype} for input {i}; differences in fewer "
                            f"digits prove little (use x.double())")
    try:
        for i in checked:
            analytic = _analytic_jacobian(function, inputs, i)
            numeric, error = numeric_jacobian(function, inputs, i, step)
            for k, (a, n, e) in enumerate(zip(analytic, numeric, error, strict=True)):
                _compare(a, n, e, i, k, inputs[i].shape, rtol, atol)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _compare(a: np.ndarray, n: np.ndarray, e: np.ndarray, i: int, k: int, shape: tuple, rtol: float, atol: float) -> None:
    if not a.size:
        return
    scale = max(np.abs(n).max(), np.abs(a).max()) if np.isfinite(n).all() and np.isfinite(a).all() else np.inf
    allowed = atol + rtol * scale + 4 * e
    wrong = ~(np.abs(a - n) <= allowed)
    vague = e > 1e-4 * max(scale, 1e-6)
    if not np.isfinite(scale) or wrong.any() or vague.any():
        if np.isfinite(scale) and not wrong.any():
            wrong = vague
        elif not np.isfinite(scale):
            wrong = ~(np.isfinite(a) & np.isfinite(n))
        element, output = (int(v) for v in np.unravel_index(np.argmax(np.where(wrong, np.abs(a - n), -1)), a.shape))
        where = tuple(int(v) for v in np.unravel_index(element, shape)) if shape else ()
        raise GradcheckError(
            f"derivative of output {k}[{output}] with respect to input {i} at {where}: analytic {a[element, output]:.12g}, "
            f"numeric {n[element, output]:.12g} ± {e[element, output]:.1g} ({int(wrong.sum())} of {a.size} derivatives are "
            f"off){_likely_cause(a, n, e)}"
        )


def _likely_cause(a: np.ndarray, n: np.ndarray, e: np.ndarray) -> str:
    """What the pattern of the difference suggests."""
    if not (np.isfinite(a).all() and np.isfinite(n).all()):
        return "; likely cause: the function or its derivative is not finite here"
    if (e > 1e-4 * max(np.abs(n).max(), 1e-6)).any():
        return "; likely cause: a kink or a jump within the step, where no derivative exists (try other inputs or step=)"
    if not a.any():
        return "; likely cause: the rule returns no gradient for this input"
    solid = np.abs(n) > 1e-6 * np.abs(n).max()
    if solid.any():
        ratios = a[solid] / n[solid]
        if np.ptp(ratios) < 1e-6 * np.abs(ratios).max():
            return "; likely cause: a wrong sign" if abs(ratios[0] + 1) < 1e-6 else \
                f"; likely cause: a wrong factor, the rule gives {ratios[0]:.6g} times the derivative"
    if a.shape[0] == a.shape[1] and np.allclose(a.T, n, atol=1e-6):
        return "; likely cause: the Jacobian is transposed"
    return ""


def gradgradcheck(
    function: Callable,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    step: float = 0.03,
    raise_exception: bool = True,
    seed: int = 0,
) -> bool:
    """Compare every second derivative: `gradcheck` of the map (inputs, upstream gradients) ↦ gradients of the inputs.

    `grad_outputs` are drawn from a seeded normal distribution if left out. See `gradcheck` for the rest.
    """
    inputs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    wanted = [i for i, x in enumerate(inputs) if isinstance(x, Variable) and x.node is not None]
    if grad_outputs is None:
        rng = np.random.default_rng(seed)
        with no_grad():
            grad_outputs = [Tensor(rng.normal(size=y.shape), requires_grad=True) for y in _outputs(function, inputs)]
    weights = tuple(grad_outputs) if isinstance(grad_outputs, tuple | list) else (grad_outputs,)

    def gradients(*arguments: Any) -> tuple[Tensor, ...]:
        with enable_grad():
            points = list(arguments[: len(inputs)])
            for i in wanted:
                points[i] = alias(points[i]) if points[i].node is not None else points[i].detach().requires_grad_()
            outputs = _outputs(function, points)
            pairs = [(y, w) for y, w in zip(outputs, arguments[len(inputs) :], strict=True) if y.node is not None]
            found = grad([y for y, _ in pairs], [points[i] for i in wanted], [w for _, w in pairs], create_graph=True,
                         allow_unused=True)
            return tuple(g for g in found if g is not None)

    return gradcheck(gradients, (*inputs, *weights), rtol=rtol, atol=atol, step=step, raise_exception=raise_exception)
