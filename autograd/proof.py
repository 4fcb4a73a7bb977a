"""What it means that an operator is proved: a list of checks, each an error beside its bound.

    value       the result is what NumPy says (a primitive) or the textbook definition (a fused operator)
    derivative  the gradient is the limit of differences, within their error bar (float64)
    complex     the gradient is Im f(x + ih)/h, to twelve digits (analytic functions)
    second      the gradient's own derivative is the limit of differences
    dot         ⟨Ju, v⟩ = ⟨u, Jᵀv⟩: forward and backward derivative are transposes of each other
    linear      the backward pass is linear in the upstream gradient
    float32     result and gradients in float32 are those of float64, to a few units in the last place
    bfloat16    and so they are where matrix products round their operands to bfloat16, to a few units of that
    mixed       inputs of different precision give the wider one; each gets a gradient of its own
    aliased     one tensor for two inputs gets the sum of their gradients
    layout      strides, order and read-only memory of the inputs change nothing
    untouched   neither inputs nor upstream gradient are written to
    subgradient where there is no derivative, that is noticed, and the rule gives what its record says

`prove` runs them on one sample. Tests run it on every operator of the registry, `autograd.prove` makes a
certificate of it, and `autograd.testing` runs it on operators of your own.

**How large an error may be** is measured, not guessed. Errors are counted in ulp (units in the last place) of a
scale that says what rounding does to this problem at this point: the definition is run again with its inputs, and the
result of every single operation in it, forward and backward, moved up or down by one unit at random. How far the
results then move is the error that any algorithm must be allowed which rounds at all; that holds for ill-conditioned
problems, and for well-conditioned ones whose textbook formula cancels on the way (1 − p of a sure prediction). A kernel
passes if it stays within a few such units: 4, since the functions it is made of, NumPy's and our own, are right to
4 ulp, plus √n/2 for sums of n terms, whose partial sums the definition does not show.

Source: Parker, "Monte Carlo arithmetic: exploiting randomness in floating-point arithmetic", 1997; Higham, "Accuracy
and Stability of Numerical Algorithms", 2002, chapters 3 and 4 (sums whose errors grow like √n).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from .differences import complex_step
from .functional import grad, jvp
from .gradcheck import GradcheckError, examine, examine_second, literal, modules_of
from .graph import Variable
from .kernels.bfloat16 import amx_available, matmul_precision
from .op import Op, Sample, registry
from .references import CONTINUED, REFERENCES
from .tensor import Tensor

__all__ = ["CHECKS", "Finding", "ProofError", "prove", "refuses"]


class Finding(NamedTuple):
    """A measured error and the bound it must not exceed, in the same unit."""

    error: float
    bound: float


class ProofError(AssertionError):
    """A check that failed, with lines that show it again."""


Findings = Iterator[tuple[float, float]]


def as_tensors(op: Op, inputs: Sequence[Any], dtype: Any = None) -> list[Any]:
    """Inputs as tensors around the arrays themselves; those that have a derivative require it."""
    converted = []
    for index, x in enumerate(inputs):
        if isinstance(x, np.ndarray | np.generic):
            array = np.asarray(x)
            if array.dtype.kind == "f":
                tensor = Variable.wrap(array if dtype is None else array.astype(dtype, copy=False))
                converted.append(tensor.requires_grad_(op.variadic or index in op.differentiable))
            else:
                converted.append(Variable.wrap(array))
        else:
            converted.append(x)
    return converted


def wanted(inputs: Sequence[Any]) -> list[Tensor]:
    return [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]


def _run(function: Callable, inputs: list, dout: np.ndarray | None, **how: Any) -> list[np.ndarray]:
    """The result and, with `dout`, the gradients of the inputs that want one."""
    out = function(*inputs)
    if dout is None or out.node is None:
        return [out.array]
    return [
        out.array,
        *(_array(g, x) for g, x in zip(_gradients(out, inputs, dout, **how), wanted(inputs), strict=True)),
    ]


def _gradients(out: Tensor, inputs: list, dout: np.ndarray, **how: Any) -> tuple:
    # Twice the same tensor counts as one input of the calculus, so each is asked for once.
    distinct = list({id(x): x for x in wanted(inputs)}.values())
    found = grad(out, distinct, Tensor(dout, dtype=out.dtype), allow_unused=True, **how)
    by_id = {id(x): g for x, g in zip(distinct, found, strict=True)}
    return tuple(by_id[id(x)] for x in wanted(inputs))


def _array(gradient: Any, x: Tensor) -> np.ndarray:
    return np.zeros(x.shape, x.dtype) if gradient is None else gradient.array


class Case:
    """One operator on one sample, with an upstream gradient."""

    def __init__(self, op: Op, sample: Sample) -> None:
        self.op, self.sample, self.params = op, sample, sample.params
        self.call: Any = partial(op, **sample.params)
        self.arrays: list[Any] = [np.asarray(x) if isinstance(x, np.generic) else x for x in sample.inputs]
        self.inputs = as_tensors(op, sample.inputs)
        self.rng = np.random.default_rng(0)
        with np.errstate(all="ignore"):
            self.out = self.call(*self.inputs)
        self.dout = np.asarray(self.rng.normal(size=self.out.shape))

    def definition(self, *inputs: Any) -> Any:
        """The operator by its textbook definition."""
        return self.op.plain(*inputs, **self.params) if self.op.plain else self.call(*inputs)

    @cached_property
    def scales(self) -> list[float]:
        """For result and gradients: size, plus how far they move when everything moves by one unit, per unit."""
        rng = np.random.default_rng(1)
        fixed = () if self.sample.subgradient is None else self.arrays  # moving them would move us away from the kink

        def moved(x: Any) -> Any:
            is_number = isinstance(x, np.ndarray) and x.dtype.kind == "f" and not any(x is y for y in fixed)
            return x * (1 + UNIT * rng.choice([-1.0, 1.0], x.shape)) if is_number else x

        def run(arrays: Sequence[Any], dout: np.ndarray) -> list[np.ndarray]:
            return _run(self.definition, as_tensors(self.op, arrays), dout, create_graph=True)

        with np.errstate(all="ignore"):
            centre = run(self.arrays, self.dout)
            changes = [0.0] * len(centre)
            for _ in range(TRIES):
                with _rounding_at_random(rng):
                    results = run([moved(x) for x in self.arrays], moved(self.dout))
                for k, (r, c) in enumerate(zip(results, centre, strict=True)):
                    changes[k] = max(changes[k], _largest(r - c) / UNIT)
        return [_largest(c) + change for c, change in zip(centre, changes, strict=True)]


# -- errors in ulp -----------------------------------------------------------------------------------------

UNIT, TRIES = 2.0**-22, 6  # far above the rounding of float64, far below what would no longer be linear
EPS = float(np.finfo(np.float64).eps)
BFLOAT16 = 2.0**-8  # 8 bits of precision


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


@contextlib.contextmanager
def _rounding_at_random(rng: np.random.Generator) -> Iterator[None]:
    """Every primitive that computes something makes an error of one unit, up or down."""

    def unsteady(forward: Callable) -> Callable:
        def run(*inputs: Any, **params: Any) -> Any:
            out = np.asarray(forward(*inputs, **params))
            if out.dtype.kind != "f":
                return out
            given = [np.abs(np.ravel(x)) for x in inputs if np.asarray(x).dtype.kind == "f"]
            if np.isin(np.abs(out), np.concatenate([*given, [0.0]])).all():
                return out  # it chose among its inputs, which needs no rounding
            return out * (1 + UNIT * rng.choice([-1.0, 1.0], out.shape))

        return run

    with _computing({op: unsteady(op.forward) for op in registry.values() if not op.is_fused}):
        yield


@contextlib.contextmanager
def _computing(forwards: dict[Op, Callable]) -> Iterator[None]:
    """Operators compute their results by other functions."""
    usual = {op: op.forward for op in forwards}
    try:
        for op, forward in forwards.items():
            op.forward = forward
        yield
    finally:
        for op, forward in usual.items():
            op.forward = forward


def _ulps(actual: np.ndarray, expected: np.ndarray, scale: float, eps: float) -> float:
    """The largest difference in units of eps · scale; infinite where NaN or infinity stand in different places."""
    if actual.shape != expected.shape:
        return np.inf
    finite = np.isfinite(expected)
    if not (np.isfinite(actual) == finite).all() or not np.array_equal(
        actual[~finite], expected[~finite], equal_nan=True
    ):
        return np.inf
    difference = _largest((actual.astype(np.float64) - expected)[finite])
    return difference / (eps * scale) if difference else 0.0


def _sum_bound(case: Case, ulps: float = 4) -> float:
    """How many ulp result and gradients may be off: a sum of n terms has an error that grows like √n."""
    return ulps + float(np.sqrt(max([1, case.out.array.size, *(np.size(x) for x in case.arrays)]))) / 2


def _against_definition(case: Case, dtype: Any, eps: float | None = None) -> Findings:
    """Result and gradients in a dtype against the definition in float64, at inputs that the dtype can hold."""
    rounded = [
        x.astype(dtype).astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
        for x in case.arrays
    ]
    dout = case.dout.astype(dtype).astype(np.float64)
    with np.errstate(all="ignore"):
        expected = _run(case.definition, as_tensors(case.op, rounded), dout)
        with matmul_precision("bfloat16" if eps == BFLOAT16 else "float32"):
            actual = _run(case.call, as_tensors(case.op, rounded, dtype), dout)
    for a, e, scale in zip(actual, expected, case.scales, strict=True):
        yield (_ulps(a, e, scale, eps or float(np.finfo(dtype).eps)) if a.dtype == dtype else np.inf), _sum_bound(case)


# -- the checks --------------------------------------------------------------------------------------------


def value(case: Case) -> Findings:
    if case.op.plain is not None:
        yield from _against_definition(case, np.float64)
    elif case.op.name in REFERENCES:
        expected = np.asarray(REFERENCES[case.op.name](*case.arrays, **(case.op.defaults | case.params)))
        yield _ulps(case.out.array, expected, case.scales[0], EPS), _sum_bound(case)


def float32(case: Case) -> Findings:
    if case.op.name != "cast":
        yield from _against_definition(case, np.float32)


def bfloat16(case: Case) -> Findings:
    if not amx_available():
        return
    inputs = as_tensors(case.op, case.arrays, np.float32)
    with np.errstate(all="ignore"):
        usual = _run(case.call, inputs, case.dout)
        with matmul_precision("bfloat16"):
            rounded = _run(case.call, inputs, case.dout)
    if any(a.tobytes() != b.tobytes() for a, b in zip(usual, rounded, strict=True)):  # it does multiply matrices
        yield from _against_definition(case, np.float32, BFLOAT16)


def derivative(case: Case) -> Findings:
    if wanted(case.inputs):
        yield examine(case.call, case.inputs, rtol=1e-9, whole=400)


def complex_(case: Case) -> Findings:
    analytic = case.op.analytic
    if not (analytic(**(case.op.defaults | case.params)) if callable(analytic) else analytic):
        return
    function = case.op.plain or case.op
    continued = {op: CONTINUED[op.name] for op in (case.op, *registry.values()) if op.name in CONTINUED}
    gradients = iter(zip(_run(case.call, case.inputs, case.dout)[1:], case.scales[1:], strict=True))
    for i, x in enumerate(case.inputs):
        if not (isinstance(x, Tensor) and x.requires_grad):
            continue
        gradient, scale = next(gradients)
        for _ in range(2):
            u = case.rng.normal(size=x.shape)

            def along(t: complex, i: int = i, u: np.ndarray = u) -> np.ndarray:
                moved: list[Any] = [a + t * u if k == i else a for k, a in enumerate(case.arrays)]
                return np.sum(function(*moved, **case.params) * case.dout)

            with np.errstate(all="ignore"), _computing(continued):
                exact = float(complex_step(along))
            size = scale * float(np.linalg.norm(u))
            yield abs(exact - float(np.sum(gradient * u))) / size if size else 0.0, 1e-12


def second(case: Case) -> Findings:
    if wanted(case.inputs):
        yield examine_second(case.call, case.inputs, rtol=1e-8, whole=100)


def dot(case: Case) -> Findings:
    tensors = wanted(case.inputs)
    if not tensors:
        return
    us = [case.rng.normal(size=x.shape) for x in tensors]

    def of_wanted(*points: Tensor) -> Tensor:
        remaining = iter(points)
        return case.call(*(next(remaining) if isinstance(x, Tensor) and x.requires_grad else x for x in case.inputs))

    _, forward = jvp(of_wanted, tuple(tensors), tuple(Tensor(u) for u in us))
    backward = _run(case.call, case.inputs, case.dout)[1:]
    left = np.sum(forward.array * case.dout)
    right = sum(np.sum(g * u) for g, u in zip(backward, us, strict=True))
    size = sum(scale * float(np.linalg.norm(u)) for scale, u in zip(case.scales[1:], us, strict=True))
    # J u is as large as the gradients are, and is summed with weights dout.
    size += float(np.linalg.norm(case.dout) * np.linalg.norm(forward.array))
    yield abs(left - right) / (EPS * size) if size else 0.0, _sum_bound(case)


def linear(case: Case) -> Findings:
    other = case.rng.normal(size=case.dout.shape)
    douts = case.dout, other, 2 * case.dout - 3 * other
    runs = [_run(case.call, case.inputs, dout)[1:] for dout in douts]
    a, b, c = (_largest(dout) for dout in douts)
    for u, v, w, scale in zip(*runs, case.scales[1:], strict=True):  # a scale grows with the dout that it is of
        yield _ulps(w, 2 * u - 3 * v, scale * (2 + (3 * b + c) / a) if a else 0.0, EPS), _sum_bound(case)


def aliased(case: Case) -> Findings:
    tensors = wanted(case.inputs)
    if len(tensors) < 2 or len({x.shape for x in tensors}) > 1:
        return
    x = tensors[0]
    same = [x if isinstance(y, Tensor) and y.requires_grad else y for y in case.inputs]
    apart = [
        x.detach().clone().requires_grad_() if isinstance(y, Tensor) and y.requires_grad else y for y in case.inputs
    ]
    if case.op.kinks:  # equal inputs are where it has no derivative
        return
    together = _run(case.call, same, case.dout)[1]
    parts = _run(case.call, apart, case.dout)[1:]
    yield (
        _ulps(
            together,
            np.sum(parts, axis=0),
            _largest(np.array(parts)),
            EPS,
        ),
        8,
    )


def mixed(case: Case) -> Findings:
    tensors = wanted(case.inputs)
    if len(tensors) < 2 or not (case.op.broadcasts or case.op.is_fused):
        return
    for narrow in range(len(tensors)):
        inputs = [
            Variable.wrap(x.array.astype(np.float32)).requires_grad_() if x is tensors[narrow] else x
            for x in case.inputs
        ]
        wide = [
            x.double().detach().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x for x in inputs
        ]
        actual, expected = _run(case.call, inputs, case.dout), _run(case.call, wide, case.dout)
        for k, (a, e) in enumerate(zip(actual, expected, strict=True)):
            own = np.float32 if k == narrow + 1 else np.float64
            yield (_ulps(a, e, _largest(e), float(np.finfo(own).eps)) if a.dtype == own else np.inf), 8


def layout(case: Case) -> Findings:
    packed = [np.array(x, order="C") if isinstance(x, np.ndarray) else x for x in case.arrays]
    strided = [np.array(x, order="F") if isinstance(x, np.ndarray) else x for x in case.arrays]
    expected = _run(case.call, as_tensors(case.op, packed), case.dout)
    for arrays, dout in ((case.arrays, case.dout), (strided, np.array(case.dout, order="F"))):
        actual = _run(case.call, as_tensors(case.op, arrays), dout)
        for a, e, scale in zip(actual, expected, case.scales, strict=True):
            yield _ulps(a, e, scale, EPS), _sum_bound(case)


def untouched(case: Case) -> Findings:
    arrays = [np.array(x) if isinstance(x, np.ndarray) else x for x in case.arrays]
    upstream = Tensor(case.dout)
    inputs = as_tensors(case.op, arrays)
    out = case.call(*inputs)
    watched = [x for x in (*arrays, upstream.array, out.array) if isinstance(x, np.ndarray)]
    before = [x.copy() for x in watched]
    for how in ({"retain_graph": True}, {"create_graph": True}, {}):
        if out.node is not None:
            found = grad(out, wanted(inputs), upstream, allow_unused=True, **how)
            for gradient, x in zip(found, wanted(inputs), strict=True):
                if gradient is not None and (gradient.shape, gradient.dtype) != (x.shape, x.dtype):
                    raise ProofError(
                        f"expected a gradient of shape {x.shape} and dtype {x.dtype}, got {gradient.shape} and "
                        f"{gradient.dtype}"
                    )
        yield float(sum(a.tobytes() != b.tobytes() for a, b in zip(watched, before, strict=True))), 0.0
    computed = case.op(*case.arrays, **case.params)
    if isinstance(computed, Variable) or not np.array_equal(computed, case.out.array, equal_nan=True):
        raise ProofError("called with ndarrays, it must return the same numbers as an ndarray")


def subgradient(case: Case) -> Findings:
    if case.sample.subgradient is None:
        return
    try:
        examine(case.call, case.inputs)
    except GradcheckError as error:
        if error.cause != "kink":
            raise
    else:
        raise ProofError("expected a kink at this sample, but every derivative exists")
    for a, e in zip(_run(case.call, case.inputs, np.ones(case.out.shape))[1:], case.sample.subgradient, strict=True):
        yield float(np.abs(a - e).max()), 1e-15


CHECKS: dict[str, Callable[[Case], Findings]] = {
    "value": value, "derivative": derivative, "float32": float32, "bfloat16": bfloat16, "second": second,
    "complex": complex_, "dot": dot, "linear": linear, "mixed": mixed, "aliased": aliased, "layout": layout,
    "untouched": untouched,
}  # fmt: skip
AT_KINKS = {
    "value": value,
    "untouched": untouched,
    "linear": linear,
    "layout": layout,
    "subgradient": subgradient,
}


def prove(op: Op | str, sample: Sample, only: Sequence[str] | None = None) -> dict[str, Finding]:
    """Run every check (or `only` some) on one sample.

    Returns:
        for each check that applies, the error closest to its bound.

    Raises:
        ProofError (GradcheckError for derivatives): a check failed.
    """
    __tracebackhide__ = True
    op = registry[op] if isinstance(op, str) else op
    found: dict[str, Finding] = {}
    name = "computing the result"
    try:
        case = Case(op, sample)
        for name, check in (CHECKS if sample.subgradient is None else AT_KINKS).items():
            if only is not None and name not in only:
                continue
            for error, bound in check(case):
                error = float(error)
                if not error <= bound:
                    raise ProofError(f"the error is {error:.3g}, the bound {bound:.3g}")
                worst = found.get(name)
                if worst is None or error * worst.bound > worst.error * bound or (bound > 0 and worst.bound == 0):
                    found[name] = Finding(error, float(bound))
    except Exception as error:
        text = f'`{op.name}` fails the check "{name}": {error}\n\nto see it again:\n\n{_reproduction(op, sample, name)}'
        if name == "complex":
            text += "\n\n(an operator whose definition does not hold for complex numbers says `analytic = False`)"
        if isinstance(error, GradcheckError):
            raise GradcheckError(text, **vars(error)) from None
        raise ProofError(text) from (None if isinstance(error, ProofError) else error)
    return found


def refuses(op: Op, sample: Sample) -> None:
    """Make sure that the operator refuses a sample with the error and the words that its record promises."""
    import re

    assert sample.error is not None
    try:
        op(*as_tensors(op, sample.inputs), **sample.params)
    except sample.error as error:
        if not re.search(sample.match, str(error)):
            raise ProofError(
                f"`{op.name}`: expected an error that says {sample.match!r}, got {str(error)!r}"
            ) from error
        return
    raise ProofError(
        f"`{op.name}`: expected {sample.error.__name__} for inputs of shapes "
        f"{[np.shape(x) for x in sample.inputs]} and {sample.params}, got a result"
    )


def _reproduction(op: Op, sample: Sample, check: str) -> str:
    inputs = "".join(f"    {literal(x)},\n" for x in sample.inputs)
    params = ", ".join(f'"{key}": {literal(x)}' for key, x in sample.params.items())
    name = repr(op.name) if registry.get(op.name) is op else op.name
    declared = "".join(f"import {module}\n" for module in modules_of(op))
    return (
        f"import numpy as np\nfrom numpy import array, float32, float64, int64\nfrom autograd.op import Sample\n"
        f"from autograd.proof import prove\n{declared}\nsample = Sample((\n{inputs}), {{{params}}})\n"
        f"prove({name}, sample, only={[check]!r})"
    )
