"""The proof: derivatives by the rules against derivatives by the definition.

`gradcheck` compares the Jacobian that backward passes give with the one that differences of the function give
(`differences`: values with error bars). Both are matrices J[j, k] = ∂(output element k)/∂(input element j).
Small ones are compared whole. Of large ones the numbers vᵀJu are compared, for random directions u of the
input and v of the output: one backward pass and a dozen evaluations test every element at once, since a wrong
one shows in nearly every projection. When a comparison fails, the element at fault is looked for, and the
pattern of the difference names a likely cause.

Source: projections as in HIPS autograd's `check_grads`.
"""

from __future__ import annotations

import inspect
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from .differences import Estimate, differentiate
from .functional import grad
from .graph import GradientShapeError, Variable, enable_grad, no_grad
from .op import registry
from .ops import alias
from .tensor import Tensor

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck", "reproduction"]

WHOLE = 1500  # elements of a Jacobian that is compared whole
EPS = float(np.finfo(np.float64).eps)
TRIES = 4  # at random, to see what rounding does
PROJECTIONS = 4


class GradcheckError(AssertionError):
    """A derivative that is not what it should be.

    Attributes (those that apply, else None):
        input, index      which input, and which of its elements
        output, element   which output, and which of its elements (None: a random combination of all)
        analytic, numeric, bar
        cause             "sign", "factor", "sum", "transposed", "nothing", "kink", "vague", "not finite",
        "shape", "random" or ""
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.cause: str = details.pop("cause", "")
        self.input = self.index = self.output = self.element = self.analytic = self.numeric = self.bar = None
        vars(self).update(details)


def gradcheck(
    function: Callable,
    inputs: Any,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-10,
    step: float = 2.0**-5,
    whole: int = WHOLE,
    seed: int = 0,
    raise_exception: bool = True,
) -> bool:
    """Compare every first derivative of `function` at `inputs` with its definition.

    A derivative passes if it differs from the numeric one by no more than four error bars of that, plus
    `rtol` of the largest derivative of the same output and input, plus `atol`. Points where no derivative
    exists (a kink, a jump) do not pass.

    Args:
        function: takes the inputs, returns a Tensor or several.
        inputs: a Tensor or several, those with requires_grad in float64; others are passed on as they are.
        rtol, atol: as above.
        step: the largest step of the difference table, relative to max(1, |x|). Smaller ones are tried by
        themselves.
        whole: Jacobians of more elements than this are compared in random projections.
        seed: of the projections.

    Returns:
        True; on failure raises GradcheckError, or returns False if not `raise_exception`.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, not these
    inputs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)

    def check(*points: Any) -> None:
        examine(function, points, rtol=rtol, atol=atol, step=step, whole=whole, seed=seed)

    return _checked(check, function, inputs, "gradcheck", len(inputs), raise_exception)


def gradgradcheck(
    function: Callable,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    step: float = 2.0**-5,
    whole: int = WHOLE // 4,
    raise_exception: bool = True,
    seed: int = 0,
) -> bool:
    """Compare every second derivative: `gradcheck` of the map (inputs, upstream gradients) ↦ gradients of the
    inputs.

    `grad_outputs` are drawn from a seeded normal distribution if left out. See `gradcheck` for the rest.
    """
    __tracebackhide__ = True
    inputs = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    count = len(inputs)
    weights = tuple(grad_outputs) if isinstance(grad_outputs, tuple | list) else (grad_outputs,)

    def check(*points: Any) -> None:
        gradients, arguments = gradients_of(function, points[:count], points[count:] or None, seed)
        examine(gradients, arguments, rtol=rtol, atol=atol, step=step, whole=whole, seed=seed)

    given = inputs if grad_outputs is None else (*inputs, *weights)
    return _checked(check, function, given, "gradgradcheck", count, raise_exception)


def _checked(check: Callable, function: Callable, inputs: tuple, name: str, count: int, raises: bool) -> bool:
    """Run a check on inputs; if it fails, say how to see that again, on inputs as small as possible."""
    __tracebackhide__ = True
    try:
        check(*inputs)
    except GradcheckError as error:
        if not raises:
            return False
        text = str(error)
        small = smaller(check, inputs, error)
        if small is not None:
            text += f"\n\non smaller inputs: {small.error}"
            inputs = small.inputs
        text += f"\n\nto see it again:\n\n{reproduction(function, inputs, name, count)}"
        raise GradcheckError(text, **vars(error)) from None
    return True


def examine(
    function: Callable,
    inputs: Sequence[Any],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-10,
    step: float = 2.0**-5,
    whole: int = WHOLE,
    seed: int = 0,
) -> tuple[float, float]:
    """What `gradcheck` does; returns the error that came closest to what is allowed and what is allowed
    there.

    Both are relative to the largest derivative of the same output and input.
    """
    checked = [i for i, x in enumerate(inputs) if isinstance(x, Variable) and x.node is not None]
    if not checked:
        raise ValueError("gradcheck: expected at least one input with requires_grad=True")
    for i in checked:
        if inputs[i].array.dtype != np.float64:
            raise TypeError(
                f"gradcheck: expected float64 inputs, got {inputs[i].array.dtype} for input {i}; differences in "
                f"fewer digits prove little (use x.double())"
            )
    pairs = [_check_input(_Target(function, inputs, i), rtol, atol, step, whole, seed) for i in checked]
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def examine_second(
    function: Callable,
    inputs: Sequence[Any],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    whole: int = WHOLE // 4,
    seed: int = 0,
) -> tuple[float, float]:
    """What `gradgradcheck` does; returns as `examine`."""
    gradients, arguments = gradients_of(function, inputs, None, seed)
    return examine(gradients, arguments, rtol=rtol, atol=atol, whole=whole, seed=seed)


def gradients_of(function: Callable, inputs: Sequence[Any], grad_outputs: Any, seed: int) -> tuple[Callable, tuple]:
    """The map (inputs, upstream gradients) ↦ gradients of the inputs, and arguments for it."""
    wanted = [i for i, x in enumerate(inputs) if isinstance(x, Variable) and x.node is not None]
    if not wanted:
        raise ValueError("gradgradcheck: expected at least one input with requires_grad=True")
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
            found = grad(
                [y for y, _ in pairs],
                [points[i] for i in wanted],
                [w for _, w in pairs],
                create_graph=True,
                allow_unused=True,
            )
            return tuple(g for g in found if g is not None)

    gradients.__name__ = f"gradients of {_name(function)}"
    return gradients, (*inputs, *weights)


# -- one input ---------------------------------------------------------------------------------------------


def _outputs(function: Callable, inputs: Sequence[Any]) -> list[Tensor]:
    result = function(*inputs)
    several = result if isinstance(result, tuple | list) else (result,)
    outputs = [y for y in several if isinstance(y, Variable)]
    if several and not outputs:
        raise TypeError(
            f"gradcheck: expected `{_name(function)}` to return a Tensor or several, got {type(several[0]).__name__}"
        )
    return outputs  # type: ignore


def _name(function: Callable) -> str:
    function = getattr(function, "func", function)  # of a functools.partial
    return getattr(function, "name", None) or getattr(function, "__name__", None) or type(function).__name__


def _input_name(function: Callable, which: int) -> str:
    """`input 1 (b)`: an input by its number and, where the function's signature tells, its name."""
    function = getattr(function, "func", function)
    names = getattr(function, "inputs", ())
    if not names:
        try:
            names = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            names = ()
    named = which < len(names) and not getattr(function, "variadic", False) and names[which] != "arguments"
    return f"input {which} ({names[which]})" if named else f"input {which}"


class _Target:
    """A function as a function of one of its inputs, its outputs laid end to end."""

    def __init__(self, function: Callable, inputs: Sequence[Any], which: int) -> None:
        self.function, self.inputs, self.which = function, inputs, which
        self.x: np.ndarray = inputs[which].array
        with enable_grad():
            self.arguments = [alias(x) if isinstance(x, Variable) and x.node is not None else x for x in inputs]
            self.outputs = _outputs(function, self.arguments)
        self.name = _input_name(function, which)
        self.sizes = [y.array.size for y in self.outputs]
        self.width = sum(self.sizes)
        once = np.concatenate([y.array.astype(np.float64).reshape(-1) for y in self.outputs] or [np.zeros(0)])
        again = self.at(self.x)
        if once.shape != again.shape or not np.allclose(once, again, 1e-4, 1e-4 * _largest(once), equal_nan=True):
            raise GradcheckError(
                f"`{_name(function)}` gives other values when it is called again with the same inputs; a derivative "
                f"exists only if what it draws at random is the same each time (fix its seed)",
                input=which,
                cause="random",
            )

    def at(self, x: np.ndarray) -> np.ndarray:
        """All output elements, with `x` for the input."""
        arguments = [Variable.wrap(a.array) if isinstance(a, Variable) else a for a in self.inputs]
        arguments[self.which] = Variable.wrap(x)
        with no_grad():
            outputs = _outputs(self.function, arguments)
        return np.concatenate([y.array.astype(np.float64).reshape(-1) for y in outputs] or [np.zeros(0)])

    def backward(self, v: np.ndarray) -> np.ndarray:
        """J v by a backward pass: the gradient that upstream gradients `v`, laid end to end, give the
        input.
        """
        parts = np.split(v, np.cumsum(self.sizes)[:-1])
        pairs = [
            (y, part.reshape(y.shape).astype(y.dtype))
            for y, part in zip(self.outputs, parts, strict=True)
            if y.node is not None
        ]
        g = None
        if pairs:
            (g,) = grad(
                [y for y, _ in pairs],
                self.arguments[self.which],
                [w for _, w in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        if g is None:
            return np.zeros(self.x.size)
        if g.shape != self.x.shape or g.dtype != self.x.dtype:
            raise GradcheckError(
                f"{self.name}: expected a gradient of shape {self.x.shape} and dtype {self.x.dtype}, "
                f"got {g.shape} and {g.dtype}",
                cause="shape",
            )
        return np.asarray(g.array.reshape(-1), np.float64)

    def analytic(self) -> np.ndarray:
        """The Jacobian (input elements, output elements) by backward passes."""
        return np.array([self.backward(unit) for unit in np.eye(self.width)]).reshape(self.width, self.x.size).T

    def with_rounding(self, numeric: Estimate, analytic: Callable[[_Target], np.ndarray], seed: int) -> Estimate:
        """The estimate, its bar longer by how far `analytic(self)` moves when each input moves up or down by a unit in
        the last place, at random. Where large numbers cancel, that may be all that is left of a derivative. What moves
        by more than rounding can explain, such as a rule that asks whether x == 3, is no excuse.
        """
        rng, here, moves = np.random.default_rng(seed), analytic(self), []
        for _ in range(TRIES):
            inputs = [
                Tensor(x.array * (1 + EPS * rng.choice([-1.0, 1.0], x.array.shape)), requires_grad=True)
                if isinstance(x, Variable) and x.node is not None
                else x
                for x in self.inputs
            ]
            moves.append(np.abs(analytic(_Target(self.function, inputs, self.which)) - here))
        moved = np.max(moves, axis=0)
        most = 1e-4 * max(_scale(here, numeric.value), 1e-3)
        return replace(numeric, bar=numeric.bar + np.where(moved <= most, moved, 0))

    def numeric(self, step: float, reduce: Callable = lambda y: y) -> Estimate:
        """The Jacobian by differences; with `reduce`, that of reduce(outputs)."""
        flat = self.x.reshape(-1)
        scales = np.maximum(1.0, np.abs(flat))

        def shifted(t: float) -> np.ndarray:
            rows = []
            for j in range(flat.size):
                moved = np.array(flat)
                moved[j] += t * scales[j]
                rows.append(reduce(self.at(moved.reshape(self.x.shape))))
            return np.array(rows)

        return _scaled(differentiate(shifted, step), 1 / scales)

    def slope(self, u: np.ndarray, v: np.ndarray, step: float) -> Estimate:
        """vᵀ J u by differences along `u`."""
        size = np.abs(self.x).max(initial=1)
        u = u.reshape(self.x.shape)
        return differentiate(lambda t: np.array([v @ self.at(self.x + (t * size) * u)]) / size, step)

    def locate(self, element: int) -> tuple[int, tuple[int, ...]]:
        """The output that an element of all of them belongs to, and its index there."""
        bounds = np.cumsum(self.sizes)
        k = int(np.searchsorted(bounds, element, side="right"))
        shape = self.outputs[k].shape
        return k, _index(element - int(bounds[k] - self.sizes[k]), shape)


def _scaled(estimate: Estimate, factors: np.ndarray) -> Estimate:
    factors = factors[:, None] if estimate.value.ndim == 2 else factors
    return Estimate(
        estimate.value * factors, estimate.bar * factors, estimate.jump * factors, estimate.jump_bar * factors
    )


def _index(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(position, shape)) if shape else ()


def _check_input(target: _Target, rtol: float, atol: float, step: float, whole: int, seed: int) -> tuple[float, float]:
    if not target.x.size or not target.width:
        return 0.0, rtol
    try:
        if target.x.size * target.width <= whole:
            analytic, numeric = target.analytic(), target.numeric(step)
            try:
                return _compare(target, analytic, numeric, rtol, atol)
            except GradcheckError:
                numeric = target.with_rounding(numeric, _Target.analytic, seed)
            return _compare(target, analytic, numeric, rtol, atol)
        rng = np.random.default_rng(seed)
        worst = []
        for _ in range(PROJECTIONS):
            u, v = rng.normal(size=target.x.size), rng.normal(size=target.width)
            along = lambda t, u=u, v=v: np.array([t.backward(v) @ u])
            a, n = along(target), target.slope(u, v, step)
            good, error, bound = _agrees(a, n, rtol, atol)
            if not good.all():
                n = target.with_rounding(n, along, seed)
                good, error, bound = _agrees(a, n, rtol, atol)
            worst.append((error, bound))
            if not good.all():
                combine, column = lambda y, v=v: np.array([v @ y]), lambda t, v=v: t.backward(v)[:, None]
                numeric = target.with_rounding(target.numeric(step, combine), column, seed)
                _compare(target, column(target), numeric, rtol, atol)
                raise GradcheckError(
                    f"derivative with respect to {target.name} along a random direction: "
                    f"analytic {a[0]:.12g}, numeric "
                    f"{n.value[0]:.12g} ± {n.bar[0]:.1g}",
                    input=target.which,
                    analytic=a[0],
                    numeric=n.value[0],
                    bar=n.bar[0],
                    cause="kink" if n.kinked(atol).any() else "",
                )
        return max(worst, key=lambda pair: pair[0] / pair[1])
    except (ValueError, IndexError, TypeError) as error:
        cause, words = "shape", "a rule that returns a gradient of another shape than its input, broadcast with dout"
        if isinstance(error, GradientShapeError) and sorted(error.got) == sorted(error.expected):
            cause, words = "transposed", "the gradient is transposed"
        raise GradcheckError(
            f"`{_name(target.function)}`, {target.name} of shape {target.x.shape}: the derivative could "
            f"not be computed: {error}; likely cause: {words}",
            input=target.which,
            cause=cause,
        ) from error


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


def _scale(a: np.ndarray, n: np.ndarray) -> float:
    return max(np.abs(n).max(initial=0), np.abs(a).max(initial=0))


def _agrees(a: np.ndarray, n: Estimate, rtol: float, atol: float) -> tuple[np.ndarray, float, float]:
    """Where analytic and numeric derivative agree, and the numeric one is worth something; the worst error,
    its bound.
    """
    scale = _scale(a, n.value)
    error, allowed = np.abs(a - n.value), atol + rtol * scale + 4 * n.bar
    good = (error <= allowed) & (n.bar <= 1e-4 * max(scale, 1e-3)) & ~n.kinked(atol)
    k = np.argmax(error / allowed)
    return good, float(error.flat[k] / max(scale, 1e-3)), float(allowed.flat[k] / max(scale, 1e-3))


def _compare(target: _Target, a: np.ndarray, n: Estimate, rtol: float, atol: float) -> tuple[float, float]:
    """Raise for the element of the Jacobian that is furthest off, if one is; else the worst error and its
    bound.
    """
    good, worst = np.ones(a.shape, bool), []
    whole = a.shape[1] == target.width
    blocks = np.cumsum([0, *target.sizes]) if whole else [0, a.shape[1]]
    for start, stop in itertools.pairwise(blocks):  # each output has a scale of its own
        if start < stop:
            part = slice(start, stop)
            estimate = Estimate(n.value[:, part], n.bar[:, part], n.jump[:, part], n.jump_bar[:, part])
            good[:, part], error, bound = _agrees(a[:, part], estimate, rtol, atol)
            worst.append((error, bound))
    if good.all():
        return max(worst, key=lambda pair: pair[0] / pair[1])
    kinks = n.kinked(atol) & ~good
    candidates = kinks if kinks.any() else ~good
    distance = np.where(np.isfinite(a - n.value), np.abs(a - n.value), np.inf)
    j, k = (int(i) for i in np.unravel_index(np.argmax(np.where(candidates, distance, -1)), a.shape))
    output, element = target.locate(k) if whole else (0, None)
    cause, words = _likely_cause(target, a, n, good, atol)
    index = _index(j, target.x.shape)
    of_output = f"output {output} at {list(element)}" if element else f"output {output}"
    raise GradcheckError(
        f"`{_name(target.function)}`: derivative of {of_output} with respect to {target.name} at {list(index)}: "
        f"analytic {a[j, k]:.12g}, "
        f"numeric {n.value[j, k]:.12g} ± {n.bar[j, k]:.1g} "
        f"({int((~good).sum())} of {a.size} derivatives are off)" + (f"; likely cause: {words}" if words else ""),
        input=target.which,
        index=index,
        output=output,
        element=element,
        analytic=float(a[j, k]),
        numeric=float(n.value[j, k]),
        bar=float(n.bar[j, k]),
        cause=cause,
    )


# -- smaller inputs ----------------------------------------------------------------------------------------


class Smaller(NamedTuple):
    """Inputs that fail as others did, and how."""

    inputs: tuple
    error: GradcheckError


def smaller(check: Callable, inputs: Sequence[Any], error: GradcheckError, seconds: float = 10) -> Smaller | None:
    """The smallest and plainest inputs that Hypothesis finds on which `check` fails for the same input and cause.

    Axes of one length stay of one length, since a function may rely on it. None if there are none, or Hypothesis is
    not installed, or is at work already and will shrink by itself.
    """
    try:
        from hypothesis import HealthCheck, Phase, currently_in_test_context, find, settings
        from hypothesis import strategies as st
    except ImportError:
        return None
    arrays = {i: x.array for i, x in enumerate(inputs) if isinstance(x, Variable)}
    lengths = sorted({length for x in arrays.values() for length in x.shape if length > 1})
    if currently_in_test_context():
        return None
    until = time.monotonic() + seconds
    failing: dict[tuple, Smaller] = {}

    def made(choice: tuple) -> tuple:
        sizes, plainness = dict(zip(lengths, choice[0], strict=True)), dict(zip(arrays, choice[1], strict=True))
        points = list(inputs)
        for i, x in arrays.items():
            part = _plainer(x[tuple(slice(sizes.get(length, length)) for length in x.shape)], plainness[i])
            points[i] = Variable.wrap(part).requires_grad_(inputs[i].node is not None)
        return tuple(points)

    def fails(choice: tuple) -> bool:
        if time.monotonic() > until:
            return False
        try:
            points = made(choice)
            check(*points)
        except GradcheckError as found:
            same = (found.cause, found.input) == (error.cause, error.input)
            if same:
                failing[choice] = Smaller(points, found)
            return same
        except Exception:  # the function does not take these inputs
            return False
        return False

    choices = st.tuples(
        st.tuples(*(st.integers(1, length) for length in lengths)),
        st.tuples(*(st.integers(0, len(DIGITS)) for _ in arrays)),
    )
    quiet = settings(
        max_examples=100, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        return failing[find(choices, fails, settings=quiet, random=random.Random(0))]
    except Exception:  # none, or no time for the last one: the failure to report is in any case the one there was
        return min(failing.values(), key=lambda f: sum(np.size(f.inputs[i].array) for i in arrays), default=None)


DIGITS = (0, 1, 2, 4)  # that numbers are rounded to, from the plainest on; then as they are


def _plainer(x: np.ndarray, plainness: int) -> np.ndarray:
    """An array with fewer digits; a whole-numbered one with zeros."""
    if plainness == len(DIGITS):
        return x.copy()
    return np.round(x, DIGITS[plainness]) if x.dtype.kind == "f" else np.zeros_like(x) if not plainness else x.copy()


# -- what went wrong ---------------------------------------------------------------------------------------


def _likely_cause(target: _Target, a: np.ndarray, n: Estimate, good: np.ndarray, atol: float) -> tuple[str, str]:
    """What the pattern of the difference suggests: a short name, and words."""
    if not (np.isfinite(a).all() and np.isfinite(n.value).all()):
        return "not finite", "the function or its derivative is not finite here"
    kinks = n.kinked(atol) & ~good
    if kinks.any():
        j, k = np.unravel_index(np.argmax(np.where(kinks, np.abs(n.jump), -1)), a.shape)
        left, right = n.value[j, k] - n.jump[j, k] / 2, n.value[j, k] + n.jump[j, k] / 2
        return "kink", (
            f"a kink: the derivative is {left:.6g} from the left and {right:.6g} from the right, and the rule gives "
            f"{a[j, k]:.6g}; no derivative exists at this point"
        )
    scale = _scale(a, n.value)
    if (n.bar > 1e-4 * max(scale, 1e-3)).any():
        return (
            "vague",
            "a kink or a jump close by, or a function that is not smooth (try other inputs or a smaller step=)",
        )
    if not a.any():
        return "nothing", "the rule returns no gradient for this input"
    near = 1e-6 * scale
    solid = np.abs(n.value) > near
    if solid.any() and (np.abs(a[~solid]) <= near).all():
        ratios = a[solid] / n.value[solid]
        simple = Fraction(float(ratios[0])).limit_denominator(12)  # what one number alone may show
        if np.ptp(ratios) < 1e-6 * np.abs(ratios).max() and (ratios.size > 1 or abs(ratios[0] - simple) < 1e-9):
            if abs(ratios[0] + 1) < 1e-6:
                return "sign", "a wrong sign"
            return "factor", f"a wrong factor, the rule gives {ratios[0]:.6g} times the derivative"
    shape = target.x.shape
    for order in _permutations(len(shape)):  # the rule's axes, in whose order its numbers were laid out
        moved = a.reshape(*(shape[i] for i in order), -1).transpose(*np.argsort(order), len(shape)).reshape(a.shape)
        if np.abs(moved - n.value).max() <= near:
            return "transposed", f"the gradient is transposed: its axes come in the order {order}"
    if a.shape[0] == a.shape[1] and np.abs(a.T - n.value).max() <= near:
        return "transposed", "the Jacobian is transposed"
    missing = (np.abs(a) <= near) & solid
    if missing.any() and (np.abs(a - n.value)[~missing] <= near).all():
        return "sum", (
            "a missing sum over a broadcast axis: some uses of the input are left out, the others are right "
            f"({int(missing.sum())} of {int(solid.sum())} terms are missing)"
        )
    return "", ""


def _permutations(axes: int) -> Iterator[tuple[int, ...]]:
    """Orders of a few axes, other than the present one."""
    if 2 <= axes <= 4:
        yield from itertools.islice(itertools.permutations(range(axes)), 1, None)


def reproduction(function: Callable, inputs: Sequence[Any], check: str = "gradcheck", count: int | None = None) -> str:
    """Lines to paste into a Python session that run this check again.

    Of the inputs, those after the first `count` are upstream gradients.
    """
    params = getattr(function, "keywords", {})  # of a functools.partial
    lines = ["import numpy as np", "import autograd", "from numpy import array, float32, float64, int64", ""]
    names = []
    for i, x in enumerate(inputs):
        names.append(f"x{i}")
        array = x.array if isinstance(x, Variable) else x
        text = literal(array)
        if isinstance(x, Variable):
            text = f"autograd.Tensor({text}, requires_grad={x.node is not None})"
        lines.append(f"x{i} = {text}")
    name = _name(function)
    if name in registry:
        lines[2:2] = [f"import {module}" for module in modules_of(registry[name])]
        arguments = ", ".join([*names[:count], *(f"{key}={literal(value)}" for key, value in params.items())])
        lines.append(f'f = lambda {", ".join(names[:count])}: autograd.registry["{name}"]({arguments})')
    else:
        lines.append(_import_of(function))
    upstream = f", [{', '.join(names[count:])}]" if count is not None and names[count:] else ""
    lines.append(f"autograd.{check}(f, [{', '.join(names[:count])}]{upstream})")
    return "\n".join(lines)


def modules_of(op: Any) -> list[str]:
    """What must be imported for an operator to be known, besides the library."""
    return [] if op.__module__.startswith("autograd.") or op.__module__ == "__main__" else [op.__module__]


def _import_of(function: Callable) -> str:
    """A line that makes `f` the function; where there is none, where to look for it."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if name.isidentifier() and module not in ("", "__main__", None):
        return f"from {module} import {name} as f"
    code = getattr(function, "__code__", None)
    where = f", {code.co_filename}:{code.co_firstlineno}" if code else ""
    return f"f = ...  # {_name(function)}{where}"


def literal(value: Any) -> str:
    """A value as Python source, exact to the last bit."""
    if isinstance(value, np.ndarray):
        with np.printoptions(threshold=2000, floatmode="unique", linewidth=110):
            text = repr(value.tolist()) if value.size <= 2000 else np.array2string(value, separator=", ")
        empty = f".reshape({value.shape})" if not value.size else ""
        text = text.replace("nan", "np.nan").replace("inf", "np.inf")
        return f"array({text}, {value.dtype}){empty}" if value.dtype != np.bool_ else f"array({text}){empty}"
    if isinstance(value, tuple):
        return "(" + "".join(f"{literal(part)}, " for part in value) + ")"
    if isinstance(value, np.dtype):
        return f'np.dtype("{value}")'
    return repr(value)
