"""Tools for testing operators and functions of tensors with Hypothesis and pytest.

An operator of your own, declared with the same record as the library's, is proved by one line in a test file:

    test_softsign = operator_test(softsign)

and a function of tensors, on any inputs of some shapes, by another:

    test_energy = function_test(energy, (3, 4), (4,))

Both become ordinary pytest tests (`prove_operator` is the first as a fixture). A failure is shrunk by Hypothesis to the
smallest input that shows it and printed as lines to paste into a session.

Where an operator's inputs are more than numbers of its `domain` in one shape (or shapes that broadcast), its
record says so in `space`, a function of a `Draw`. `Draw` gives arrays in every layout that NumPy has: C and
Fortran order, slices of something larger, reversed axes, axes of stride 0, read-only memory.

Needs hypothesis and pytest; the library itself needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from .gradcheck import gradcheck, gradgradcheck
from .graph import Variable
from .op import Op, Sample
from .proof import prove, refuses
from .tensor import Tensor

__all__ = ["Draw", "function_test", "operator_test", "prove_operator", "samples_of", "spaces"]

LAYOUTS = ("C", "Fortran", "sliced", "reversed", "stride 0", "read-only")


class Draw:
    """What an operator's `space` draws its inputs with. Everything shrinks: to fewer, smaller and plainer
    things.
    """

    def __init__(self, draw: Callable, op: Op | None = None) -> None:
        self._draw = draw
        self._arrays = 0
        self._domain = (-2.0, 2.0) if op is None else op.domain
        # Equal elements are ties, where an operator with kinks has no derivative; those points have tests of
        # their own.
        self._layouts = tuple(
            layout for layout in LAYOUTS if not (layout == "stride 0" and op is not None and op.kinks)
        )

    def size(self, low: int = 0, high: int = 4) -> int:
        """A whole number from low to high, both included."""
        return self._draw(st.integers(low, high))

    def boolean(self) -> bool:
        return self._draw(st.booleans())

    def choice(self, *options: Any) -> Any:
        """One of the options; the first is the plainest."""
        return options[self._draw(st.integers(0, len(options) - 1))]

    def shape(self, min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4) -> tuple[int, ...]:
        """A shape, axes of size 0 and 1 among it."""
        return self._draw(hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side))

    def shapes(self, n: int, max_dims: int = 3, max_side: int = 3) -> tuple[tuple[int, ...], ...]:
        """`n` shapes that broadcast with each other."""
        strategy = hnp.mutually_broadcastable_shapes(num_shapes=n, max_dims=max_dims, min_side=0, max_side=max_side)
        return self._draw(strategy).input_shapes

    def axis(self, ndim: int) -> int:
        """One of `ndim` axes, counted from either end (0 or −1 for none)."""
        return self.size(-max(ndim, 1), max(ndim, 1) - 1)

    def axes(self, ndim: int) -> Any:
        """Axes to reduce: None for all, one, or several."""
        kind = self.choice("all", "one", "several")
        if kind == "all" or not ndim:
            return None
        if kind == "one":
            return self.axis(ndim)
        chosen = self._draw(st.lists(st.integers(0, ndim - 1), unique=True, min_size=1))
        return tuple(axis - self.choice(0, ndim) for axis in chosen)

    def permutation(self, n: int) -> tuple[int, ...]:
        return tuple(self._draw(st.permutations(range(n))))

    def index(self, shape: tuple[int, ...]) -> Any:
        """Any index of an array of that shape: basic, boolean, or of integers, with repetitions."""
        strategies: list[Any] = [hnp.basic_indices(shape, allow_newaxis=True, max_dims=4), hnp.arrays(bool, shape)]
        if 0 not in shape:
            result = hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=3)
            strategies.append(hnp.integer_array_indices(shape, result_shape=result))
        return self._draw(st.one_of(strategies))

    def array(self, shape: tuple[int, ...], low: float | None = None, high: float | None = None) -> np.ndarray:
        """float64 numbers between low and high (the operator's domain if left out), in any layout."""
        low, high = self._domain[0] if low is None else low, self._domain[1] if high is None else high
        self._arrays += 1
        rng = np.random.default_rng((self._arrays, self._draw(st.integers(0, 2**16))))
        return self._in_layout(self._apart(rng, shape, low, high))

    def _apart(self, rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        """Numbers with few digits, no two of them equal, in this array or in two: ties are tested apart."""
        points, wanted = 1000, math.prod(shape)
        if wanted > points or low == high:
            return np.asarray(rng.uniform(low, high, shape))
        spacing = (high - low) / (points + 1)
        digits = math.ceil(-math.log10(spacing))
        x = np.round(low + spacing * (1 + rng.choice(points, wanted, replace=False)), digits)
        return np.round(x + self._arrays % 10 * 10.0 ** -(digits + 2), digits + 2).reshape(shape)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """int64 numbers from low to high − 1, equal ones among them."""
        return self._draw(hnp.arrays(np.int64, shape, elements=st.integers(low, high - 1)))

    def _in_layout(self, x: np.ndarray) -> np.ndarray:
        layout = self.choice(*self._layouts)
        if layout == "Fortran":
            return np.array(x, order="F")
        if layout == "sliced":
            larger = np.full([2 * size + 1 for size in x.shape], np.nan)  # what is read beside the slice is seen
            larger[tuple(slice(1, None, 2) for _ in x.shape)] = x
            return larger[tuple(slice(1, None, 2) for _ in x.shape)]
        if layout == "reversed":
            backward = tuple(slice(None, None, -1) for _ in x.shape)
            return np.array(x[backward], order="C")[backward]
        if layout == "stride 0" and x.ndim:
            axis = self.size(0, x.ndim - 1)
            return np.broadcast_to(x.take([0], axis), x.shape) if x.shape[axis] else x
        if layout == "read-only":
            x.flags.writeable = False
        return x


def spaces(op: Op) -> st.SearchStrategy[Sample]:
    """Samples of an operator, from all of its space."""

    @st.composite
    def sample(draw_: Callable) -> Sample:
        draw = Draw(draw_, op)
        if op.space is not None:
            return op.space(draw)
        count = len(op.inputs) - len(op.input_defaults)
        shapes = draw.shapes(count) if op.broadcasts else (draw.shape(),) * count
        return Sample(tuple(draw.array(shape) for shape in shapes))

    return sample()


def samples_of(op: Op, *, errors: bool = False) -> list[Sample]:
    """The operator's own samples: those it must compute, or with `errors` those it must refuse."""
    rng = np.random.default_rng(len(op.name))
    return [sample for sample in op.samples(rng) if (sample.error is not None) == errors]


def operator_test(op: Op, max_examples: int = 50) -> Callable[[], None]:
    """A pytest test that proves an operator: `test_mine = operator_test(mine)`.

    It runs every check of `autograd.proof` on the operator's samples and on `max_examples` samples drawn from
    its space, and tries what it must refuse.
    """

    def test() -> None:
        __tracebackhide__ = True
        try:
            for sample in samples_of(op):
                prove(op, sample)
        except AssertionError:
            drawn()  # is there a smaller example?
            raise
        for sample in samples_of(op, errors=True):
            refuses(op, sample)
        drawn()

    @settings(max_examples=max_examples, deadline=None, phases=set(settings().phases) - {Phase.explain})
    @given(spaces(op))
    def drawn(sample: Sample) -> None:
        __tracebackhide__ = True
        prove(op, sample)

    test.__name__ = f"test_{op.name}"
    return test


@pytest.fixture
def prove_operator() -> Callable[..., None]:
    """For tests that do more: `pytest_plugins = ["autograd.testing"]` in conftest.py, and then

    def test_mine(prove_operator): prove_operator(mine)
    """
    return lambda op, max_examples=50: operator_test(op, max_examples)()


def function_test(
    function: Callable,
    *shapes: tuple[int, ...],
    low: float = -2,
    high: float = 2,
    max_examples: int = 20,
    second_order: bool = True,
) -> Callable[[], None]:
    """A pytest test that checks the first (and second) derivatives of a function of tensors of those shapes.

    The numbers lie between low and high, in any layout; None for a side of a shape lets it be anything from 0
    to 4: `function_test(f, (None, 3))`.
    """

    @st.composite
    def inputs(draw_: Callable) -> tuple[Tensor, ...]:
        draw = Draw(draw_)
        sides: dict[int, int] = {}  # a None at the same place from the right has the same size in all shapes
        found = []
        for shape in shapes:
            size = [
                side if side is not None else sides.setdefault(i - len(shape), draw.size())
                for i, side in enumerate(shape)
            ]
            found.append(Variable.wrap(draw.array(tuple(size), low, high)).requires_grad_())
        return tuple(found)

    @settings(max_examples=max_examples, deadline=None, phases=set(settings().phases) - {Phase.explain})
    @given(inputs())
    def test(arguments: tuple[Tensor, ...]) -> None:
        __tracebackhide__ = True
        note(f"shapes {[x.shape for x in arguments]}")
        gradcheck(function, arguments)
        if second_order:
            gradgradcheck(function, arguments)

    def run() -> None:
        __tracebackhide__ = True
        test()

    run.__name__ = f"test_{getattr(function, '__name__', 'function')}"
    return run
