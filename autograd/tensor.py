"""Tensor: an ndarray that remembers how it was made.

The names and their meaning are PyTorch's; `axis` and `keepdims` are accepted for `dim` and `keepdim`. There is nothing
to compute here: each method names the operator that does. Differences from PyTorch that are deliberate:

- in-place arithmetic is not recorded: within a graph `x += y` makes a new tensor; `x[...] = y`, `fill_`, `copy_` and
  the like are for tensors outside a graph, or under `no_grad`;
- a 0-d tensor takes part in dtype promotion like any other; only numbers of Python and NumPy adapt to the tensors they
  meet;
- what has no derivative or is flat between its jumps (comparisons, `//`, `floor`, `ceil`, `round`, `sign`) does not
  require grad;
- negative steps in slices and negative positions in `gather` count from the end, as in NumPy;
- tensors live in the CPU's memory in the dtypes of NumPy.
"""

from __future__ import annotations

import functools
import math
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import ops
from .graph import Leaf, Variable, run_backward, state
from .ops._axes import normalize_axes, normalize_axis
from .ops.selection import integers_first, plain_index

__all__ = ["Tensor", "float32", "float64", "int64"]

float32, float64, int64, bool_ = np.float32, np.float64, np.int64, np.bool_

MISSING = object()


class Extremes(NamedTuple):
    """What `max(dim)` and `min(dim)` return."""

    values: Tensor
    indices: Tensor


def _numpy_spelling(method: Callable) -> Callable:
    """Accept `axis` for `dim` and `keepdims` for `keepdim`, as PyTorch does."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "axis" in kwargs:
            kwargs["dim"] = kwargs.pop("axis")
        if "keepdims" in kwargs:
            kwargs["keepdim"] = kwargs.pop("keepdims")
        return method(self, *args, **kwargs)

    return call


def _sequence(args: tuple) -> tuple:
    """f(2, 3) and f((2, 3)) mean the same."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args


def _discrete(function: Callable) -> Callable:
    """A method whose result has no derivative: comparisons, positions, rounding to bool."""

    @functools.wraps(function)
    def call(self: Tensor, other: Any = MISSING) -> Any:
        if other is MISSING:
            return Variable.wrap(np.asarray(function(self.array)))
        if not isinstance(other, Variable | np.ndarray | np.generic | int | float | bool):
            return NotImplemented
        return Variable.wrap(np.asarray(function(self.array, other.array if isinstance(other, Variable) else other)))

    return call


def _order(array: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Positions in rising or falling order along `axis`; equal elements keep theirs, NaN counts as the largest."""
    if not array.ndim:
        return np.zeros((), np.int64)
    if not descending:
        return np.argsort(array, axis, kind="stable")
    backwards = np.argsort(np.flip(array, axis), axis, kind="stable")  # so that equal elements come last to first
    return array.shape[axis] - 1 - np.flip(backwards, axis)


# What an ndarray's operators call, and the methods of a Tensor on the right of one and on its left.
_OPERATORS = {
    np.add: ("__radd__", "__add__"), np.subtract: ("__rsub__", "__sub__"), np.multiply: ("__rmul__", "__mul__"),
    np.true_divide: ("__rtruediv__", "__truediv__"), np.power: ("__rpow__", "__pow__"),
    np.matmul: ("__rmatmul__", "__matmul__"), np.floor_divide: ("__rfloordiv__", "__floordiv__"),
    np.remainder: ("__rmod__", "__mod__"), np.bitwise_and: ("__rand__", "__and__"),
    np.bitwise_or: ("__ror__", "__or__"), np.bitwise_xor: ("__rxor__", "__xor__"), np.equal: ("__eq__", "__eq__"),
    np.not_equal: ("__ne__", "__ne__"), np.less: ("__gt__", "__lt__"), np.less_equal: ("__ge__", "__le__"),
    np.greater: ("__lt__", "__gt__"), np.greater_equal: ("__le__", "__ge__"),
}  # fmt: skip


class Tensor(Variable):
    """An n-dimensional array that can be differentiated.

    Args:
        data: numbers, nested lists, an ndarray or a Tensor; always copied. Floats in Python become float32, integers
            int64; an ndarray keeps its dtype.
        requires_grad: whether gradients with respect to this tensor are wanted (floating dtypes only).
        dtype: convert to this dtype.

    Attributes:
        grad: the gradient accumulated by `backward`, a Tensor of the same shape, or None.
        array: the ndarray itself, for code that reads; write through `mutate`.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None) -> None:
        if isinstance(data, Variable):
            data = data.array
        elif isinstance(data, list | tuple) and any(isinstance(x, Variable) for x in data):
            data = [np.asarray(x) for x in data]
        known = isinstance(data, np.ndarray | np.generic)
        array = np.array(data, dtype=dtype, order="C")
        if dtype is None and not known and array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"Tensor: expected numbers, got {type(data).__name__} of dtype {array.dtype}")
        fresh = Variable.wrap(array)
        self._array, self.storage, self.node, self._grad = array, fresh.storage, None, None
        if requires_grad:
            self.requires_grad_()

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def data(self) -> np.ndarray:
        """The values as an ndarray that shares memory. Writing to it is noticed if a backward pass still needs them."""
        return self.storage.expose(self.array)

    @data.setter
    def data(self, value: Any) -> None:
        value = np.asarray(value)
        if value.shape != self.shape:
            raise ValueError(f"data: expected shape {self.shape}, got {value.shape}")
        if value.dtype == self.dtype:
            if value is not self.array and not np.shares_memory(value, self.array):
                self.mutate()[...] = value
            else:
                self.storage.changed()  # x.data += 1 has written already
        else:
            raise TypeError(f"data: expected dtype {self.dtype}, got {value.dtype}; make a new Tensor instead")

    def mutate(self) -> np.ndarray:
        """The ndarray, to write to. Whatever was saved of it for a backward pass counts as changed from now on."""
        self.storage.changed()
        return self.array

    def numpy(self) -> np.ndarray:
        """The values as an ndarray that shares memory; RuntimeError if a gradient is required (call `detach` first)."""
        if self.node is not None:
            raise RuntimeError("numpy() of a tensor that requires grad would lose its history; use x.detach().numpy()")
        return self.data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy or copy is None else np.asarray(self.data, dtype=dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """`array + tensor` is the tensor's; `array += tensor`, as in `p.data -= lr * p.grad`, writes into the array."""
        if method == "__call__" and kwargs.keys() == {"out"} and isinstance(kwargs["out"][0], np.ndarray):
            return ufunc(*(x.numpy() if isinstance(x, Tensor) else x for x in inputs), **kwargs)
        if method == "__call__" and not kwargs and ufunc in _OPERATORS:
            left, right = inputs
            on_right, on_left = _OPERATORS[ufunc]
            return getattr(left, on_left)(right) if isinstance(left, Tensor) else getattr(right, on_right)(left)
        raise TypeError(
            f"np.{ufunc.__name__} would lose the history of a Tensor; use the Tensor's own methods, or "
            f"x.detach().numpy()"
        )

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self.array.size != 1:
            raise ValueError(f"item: expected a tensor of one element, got shape {self.shape}")
        return self.array.item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self.array.tolist()

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        """NumPy's dtype of the elements."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._array.ndim

    def dim(self) -> int:
        """The number of axes."""
        return self._array.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one axis (torch.Tensor.size)."""
        return self.shape if dim is None else self.shape[normalize_axis(dim, self.ndim)]

    def numel(self) -> int:
        """The number of elements."""
        return self._array.size

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.array.size != 1:
            raise ValueError(f"the truth of a tensor of shape {self.shape} is ambiguous; use .any() or .all()")
        return bool(self.array)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.array.dtype.kind not in "iu":
            raise TypeError(f"only an integer tensor can be an index, got dtype {self.dtype}")
        return int(self.item())

    def __repr__(self) -> str:
        values = np.array2string(self.array, separator=", ", prefix="tensor(")
        extra = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        if self.grad_fn is not None:
            extra += f", grad_fn={self.grad_fn}"
        elif self.requires_grad:
            extra += ", requires_grad=True"
        return f"tensor({values}{extra})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if not self.ndim else object.__format__(self, spec)

    # -- gradients --------------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Want (or stop wanting) gradients for this leaf; returns the tensor."""
        if not self.is_leaf:
            if requires_grad:
                return self
            raise RuntimeError("only a leaf can stop requiring grad; use x.detach() for a tensor without history")
        if requires_grad and self.dtype.kind != "f":
            raise TypeError(f"only floating tensors can require grad, got dtype {self.dtype}")
        if requires_grad != self.requires_grad:
            self.node = Leaf(self) if requires_grad else None
        return self

    @property
    def is_leaf(self) -> bool:
        """Made by the user, not by a recorded operation."""
        return self.node is None or isinstance(self.node, Leaf)

    @property
    def grad_fn(self) -> Any:
        """The recorded operation that made this tensor, or None for a leaf."""
        return None if self.is_leaf else self.node

    @property
    def grad(self) -> Tensor | None:
        """The gradient accumulated by `backward`, of this tensor's shape and dtype, or None."""
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            value = value if isinstance(value, Tensor) else Variable.wrap(np.asarray(value))
            if value.shape != self.shape:
                raise ValueError(f"grad: expected shape {self.shape}, got {value.shape}")
        self._grad = value

    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Add d(self)/d(leaf), weighted by `gradient`, to the `.grad` of every leaf that this tensor was computed from.

        Args:
            gradient: the upstream gradient, in this tensor's shape; 1 if it is left out, for a single element only.
            retain_graph: keep what was saved, so that the graph can be walked again (default: `create_graph`).
            create_graph: record the backward pass too, for higher derivatives.

        Raises:
            RuntimeError: no gradient is required, the graph was freed, or a saved array was changed.
            ValueError: `gradient` is missing or has another shape.
        """
        root = start(self, gradient, create_graph)
        retain = create_graph if retain_graph is None else retain_graph
        run_backward([root], retain_graph=retain, create_graph=create_graph)

    def detach(self) -> Tensor:
        """The same values (and memory), without history."""
        return Variable.wrap(self.array, None, self.storage)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Hook:
        """Call `hook(gradient)` when this tensor's gradient is complete; what it returns (if not None) replaces it.

        Returns a handle with `.remove()`. RuntimeError if the tensor does not require grad.
        """
        if self.node is None:
            raise RuntimeError("register_hook: expected a tensor that requires grad")
        if self.node.hooks is None:
            self.node.hooks = []
        return Hook(self.node.hooks, hook)

    def retain_grad(self) -> None:
        """Also keep the gradient of this tensor, which is not a leaf, in `.grad`."""
        if self.is_leaf:
            return
        me = weakref.ref(self)

        def keep(gradient: Tensor) -> None:
            tensor = me()
            if tensor is not None:
                tensor._grad = gradient.clone() if tensor._grad is None else tensor._grad + gradient

        self.register_hook(keep)

    # -- arithmetic -------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        """self + other; both broadcast."""
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        """self − other; both broadcast."""
        return ops.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        """self · other, element by element; both broadcast."""
        return ops.mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        """self / other; both broadcast."""
        return ops.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.div(other, self)

    def __pow__(self, other: Any) -> Tensor:
        """self to the power of other; both broadcast."""
        return ops.pow_(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return ops.pow_(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        """The matrix product on the last two axes, (..., M, K) @ (..., K, N) → (..., M, N); those before broadcast."""
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)

    def __neg__(self) -> Tensor:
        """−self."""
        return ops.neg(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        """|self|; its gradient at 0 is 0."""
        return ops.abs_(self)

    def __mod__(self, other: Any) -> Tensor:
        """self − other · ⌊self / other⌋, with the sign of `other`; both broadcast."""
        return ops.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return ops.remainder(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        """⌊self / other⌋, which has no derivative; both broadcast."""
        return ops.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return ops.floor_divide(other, self)

    def _in_place(self, compute: Callable, other: Any) -> Tensor:
        """`x += y`: x itself, changed, where nothing is recorded; within a graph a new tensor under the old name."""
        if state.recording and (self.node is not None or (isinstance(other, Variable) and other.node is not None)):
            if isinstance(self.node, Leaf):
                raise RuntimeError(
                    "a leaf that requires grad can't be changed in place while operations are recorded; update it "
                    "under `with no_grad():`, or compute a new tensor (x = x + y)"
                )
            return compute(self, other)
        result = compute(self.detach(), other.detach() if isinstance(other, Tensor) else other).array
        if result.shape != self.shape or not np.can_cast(result.dtype, self.dtype, "same_kind"):
            raise ValueError(
                f"expected a result of shape {self.shape} and dtype {self.dtype} to keep in place, got {result.shape} "
                f"and {result.dtype}; compute a new tensor (x = x + y)"
            )
        self.mutate()[...] = result
        return self

    def __iadd__(self, other: Any) -> Tensor:
        return self._in_place(operator.add, other)

    def __isub__(self, other: Any) -> Tensor:
        return self._in_place(operator.sub, other)

    def __imul__(self, other: Any) -> Tensor:
        return self._in_place(operator.mul, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._in_place(operator.truediv, other)

    add, sub, mul, div, pow, matmul, neg = __add__, __sub__, __mul__, __truediv__, __pow__, __matmul__, __neg__
    mm = bmm = __matmul__
    abs = __abs__

    def maximum(self, other: Any) -> Tensor:
        """The larger of the two, element by element; both broadcast; ties share the gradient."""
        return ops.maximum(self, other)

    def minimum(self, other: Any) -> Tensor:
        """The smaller of the two, element by element; both broadcast; ties share the gradient."""
        return ops.minimum(self, other)

    def clip(self, min: float | None = None, max: float | None = None) -> Tensor:
        """Each element moved into [min, max]; None for no bound."""
        return ops.clip(self, low=min, high=max)

    clamp = clip

    # -- comparison (no derivative) ---------------------------------------------------------------------------------

    __eq__ = eq = _discrete(np.equal)  # type: ignore[assignment]
    __ne__ = ne = _discrete(np.not_equal)  # type: ignore[assignment]
    __lt__ = lt = _discrete(np.less)
    __le__ = le = _discrete(np.less_equal)
    __gt__ = gt = _discrete(np.greater)
    __ge__ = ge = _discrete(np.greater_equal)
    __and__ = __rand__ = _discrete(np.bitwise_and)
    __or__ = __ror__ = _discrete(np.bitwise_or)
    __xor__ = __rxor__ = _discrete(np.bitwise_xor)
    __invert__ = _discrete(np.invert)
    logical_not = _discrete(np.logical_not)
    isnan = _discrete(np.isnan)
    isinf = _discrete(np.isinf)
    isfinite = _discrete(np.isfinite)
    sign = _discrete(np.sign)
    floor = _discrete(np.floor)
    ceil = _discrete(np.ceil)
    round = _discrete(np.round)

    @_numpy_spelling
    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Positions of the largest elements: in the flattened tensor, or along `dim`."""
        return self._position(np.argmax, dim, keepdim)

    @_numpy_spelling
    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """Positions of the smallest elements: in the flattened tensor, or along `dim`."""
        return self._position(np.argmin, dim, keepdim)

    def _position(self, search: Callable, dim: int | None, keepdim: bool) -> Tensor:
        axis = None if dim is None else normalize_axis(dim, self.ndim)
        return Variable.wrap(np.asarray(search(self.array, axis=axis, keepdims=keepdim)))

    @_numpy_spelling
    def any(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """Whether any element is true, or any along `dim`."""
        return Variable.wrap(np.asarray(np.any(self.array, normalize_axes(dim, self.ndim), keepdims=keepdim)))

    @_numpy_spelling
    def all(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """Whether all elements are true, or all along `dim`."""
        return Variable.wrap(np.asarray(np.all(self.array, normalize_axes(dim, self.ndim), keepdims=keepdim)))

    # -- functions of each element ----------------------------------------------------------------------------------

    def exp(self) -> Tensor:
        """eˣ of each element."""
        return ops.exp(self)

    def expm1(self) -> Tensor:
        """eˣ − 1 of each element, exact near 0."""
        return ops.expm1(self)

    def log(self) -> Tensor:
        """The natural logarithm of each element."""
        return ops.log(self)

    def log1p(self) -> Tensor:
        """log(1 + x) of each element, exact near 0."""
        return ops.log1p(self)

    def sqrt(self) -> Tensor:
        """√x of each element."""
        return ops.sqrt(self)

    def rsqrt(self) -> Tensor:
        """1/√x of each element."""
        return ops.rsqrt(self)

    def square(self) -> Tensor:
        """x² of each element."""
        return ops.mul(self, self)

    def reciprocal(self) -> Tensor:
        """1/x of each element."""
        return ops.div(1, self)

    def sin(self) -> Tensor:
        """The sine of each element, in radians."""
        return ops.sin(self)

    def cos(self) -> Tensor:
        """The cosine of each element, in radians."""
        return ops.cos(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent of each element."""
        return ops.tanh(self)

    def sigmoid(self) -> Tensor:
        """1/(1 + e⁻ˣ) of each element."""
        return ops.sigmoid(self)

    def erf(self) -> Tensor:
        """The error function of each element."""
        return ops.erf(self)

    def relu(self) -> Tensor:
        """max(x, 0) of each element; its gradient at 0 is 0."""
        return ops.relu(self)

    # -- reductions -------------------------------------------------------------------------------------------------

    @_numpy_spelling
    def sum(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The sum of all elements, or along `dim` (an int or several), whose axes vanish unless `keepdim`."""
        return ops.sum_(self, dim=dim, keepdim=keepdim)

    @_numpy_spelling
    def mean(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The mean of all elements, or along `dim` (an int or several)."""
        return ops.mean(self, dim, keepdim)

    @_numpy_spelling
    def var(
        self, dim: Any = None, correction: float = 1, keepdim: bool = False, unbiased: bool | None = None
    ) -> Tensor:
        """The variance; `correction` is 1 (Bessel's) as in PyTorch, `unbiased=False` is its old name for 0."""
        dim, unbiased = (None, dim) if isinstance(dim, bool) else (dim, unbiased)  # var(False) is var(unbiased=False)
        return ops.var(self, dim, correction if unbiased is None else int(unbiased), keepdim)

    @_numpy_spelling
    def std(
        self, dim: Any = None, correction: float = 1, keepdim: bool = False, unbiased: bool | None = None
    ) -> Tensor:
        """The root of `var`; its gradient is 0 where all numbers are equal."""
        dim, unbiased = (None, dim) if isinstance(dim, bool) else (dim, unbiased)
        return ops.std(self, dim, correction if unbiased is None else int(unbiased), keepdim)

    @_numpy_spelling
    def prod(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The product of all elements, or along `dim`."""
        return ops.prod(self, dim, keepdim)

    @_numpy_spelling
    def cumsum(self, dim: int) -> Tensor:
        """Running sums along `dim`, of this tensor's shape."""
        return ops.cumsum(self, dim=dim)

    @_numpy_spelling
    def logsumexp(self, dim: Any, keepdim: bool = False) -> Tensor:
        """log Σ eˣ along `dim` (an int or several), without overflow."""
        return ops.logsumexp(self, dim=dim, keepdim=keepdim)

    @_numpy_spelling
    def amax(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The largest elements; ties share the gradient."""
        return ops.amax(self, dim=dim, keepdim=keepdim)

    @_numpy_spelling
    def amin(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The smallest elements; ties share the gradient."""
        return ops.amin(self, dim=dim, keepdim=keepdim)

    @_numpy_spelling
    def max(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The largest element; with an int `dim`, (values, indices) along it; what is picked takes the gradient."""
        if isinstance(dim, Tensor):
            return ops.maximum(self, dim)
        return self.amax(dim, keepdim) if dim is None else self._extremes(self.argmax(dim, True), dim, keepdim)

    @_numpy_spelling
    def min(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The smallest element; with an int `dim`, (values, indices) along it; what is picked takes the gradient."""
        if isinstance(dim, Tensor):
            return ops.minimum(self, dim)
        return self.amin(dim, keepdim) if dim is None else self._extremes(self.argmin(dim, True), dim, keepdim)

    def topk(self, k: int, dim: int = -1, largest: bool = True) -> Extremes:
        """The k largest (or smallest) elements along `dim`, sorted, and where they stand; values take the gradient."""
        axis = normalize_axis(dim, self.ndim)
        size = self.shape[axis] if self.ndim else 0
        if not 0 <= k <= size:
            raise ValueError(f"topk: expected k from 0 to {size}, the size of dim {dim}, got {k}")
        order = _order(self.array, axis, descending=largest)
        indices = Variable.wrap(np.ascontiguousarray(np.take(order, range(k), axis=axis)))
        return Extremes(ops.gather(self, axis, indices), indices)

    @_numpy_spelling
    def sort(self, dim: int = -1, descending: bool = False) -> Extremes:
        """(values, indices) in rising or falling order along `dim`; equal elements keep theirs."""
        indices = self.argsort(dim, descending)
        return Extremes(ops.gather(self, normalize_axis(dim, self.ndim), indices), indices)

    @_numpy_spelling
    def argsort(self, dim: int = -1, descending: bool = False) -> Tensor:
        """Positions of the elements in rising or falling order along `dim`; equal elements keep theirs."""
        return Variable.wrap(_order(self.array, normalize_axis(dim, self.ndim), descending))

    def _extremes(self, indices: Tensor, dim: int, keepdim: bool) -> Extremes:
        values = ops.gather(self, dim, indices)
        return Extremes(values, indices) if keepdim else Extremes(values.squeeze(dim), indices.squeeze(dim))

    def dot(self, other: Any) -> Tensor:
        """The inner product of two vectors (N,) → ()."""
        if self.ndim != 1 or other.shape != self.shape:
            raise ValueError(f"dot: expected two vectors of one length, got {self.shape} and {other.shape}; use @")
        return self @ other

    @_numpy_spelling
    def norm(self, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
        """(Σ |x|ᵖ)^(1/p) of all elements, or along `dim`: the Euclidean norm unless told otherwise; `p` may be inf."""
        return ops.norm(self, p, dim, keepdim)

    @_numpy_spelling
    def softmax(self, dim: int) -> Tensor:
        """eˣ / Σ eˣ along `dim`, of this tensor's shape."""
        return ops.softmax(self, dim=dim)

    @_numpy_spelling
    def log_softmax(self, dim: int) -> Tensor:
        """x − log Σ eˣ along `dim`, of this tensor's shape."""
        return ops.log_softmax(self, dim=dim)

    # -- shape ------------------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in C order under another shape; one size may be -1."""
        return ops.reshape(self, shape=_sequence(shape))

    def view(self, *shape: Any) -> Tensor:
        """As `reshape`, but sure to share memory; ValueError where the strides don't allow it."""
        result = self.reshape(*shape)
        if self.array.size and result.storage is not self.storage:
            raise ValueError(
                f"view: expected a tensor whose elements stand in memory in the order of its axes, got {self.shape} "
                f"with strides {self.array.strides}; use .reshape(...) or .contiguous().view(...)"
            )
        return result

    def view_as(self, other: Tensor) -> Tensor:
        """In the shape of `other`, which has as many elements."""
        return self.view(*other.shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Axes `start_dim` to `end_dim` as one."""
        start, end = normalize_axis(start_dim, self.ndim), normalize_axis(end_dim, self.ndim)
        if start > end:
            raise ValueError(f"flatten: expected start_dim before end_dim, got {start_dim} and {end_dim}")
        return self.reshape(*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :])

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Tensor:
        """Axis `dim` as several."""
        dim = normalize_axis(dim, self.ndim)
        known = math.prod(size for size in sizes if size != -1)
        sizes = [self.shape[dim] // known if size == -1 and known else size for size in sizes]
        return self.reshape(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Two axes exchanged (PyTorch's meaning; for NumPy's, see `permute`)."""
        return ops.swapaxes(self, dim0, dim1)

    swapaxes = transpose

    def permute(self, *dims: Any) -> Tensor:
        """The axes in another order."""
        return ops.permute(self, dims=_sequence(dims))

    def t(self) -> Tensor:
        """The transpose of a matrix."""
        if self.ndim > 2:
            raise ValueError(f"t: expected at most 2 axes, got shape {self.shape}; use .mT or .permute")
        return self.permute(*reversed(range(self.ndim)))

    @property
    def T(self) -> Tensor:
        """All axes reversed."""
        return self.permute(*reversed(range(self.ndim)))

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        return ops.swapaxes(self, -1, -2)

    def squeeze(self, dim: Any = None) -> Tensor:
        """Without its axes of size 1, or without those of `dim`."""
        return ops.squeeze(self, dim)

    def unsqueeze(self, dim: int) -> Tensor:
        """With a new axis of size 1 at `dim`."""
        return ops.unsqueeze(self, dim)

    def expand(self, *sizes: Any) -> Tensor:
        """Axes of size 1 repeated (without copying) to `sizes`; -1 keeps a size."""
        return ops.expand(self, shape=_sequence(sizes))

    def expand_as(self, other: Tensor) -> Tensor:
        """Repeated along axes of size 1 to the shape of `other`, without copying."""
        return self.expand(*other.shape)

    def repeat(self, *times: Any) -> Tensor:
        """The whole tensor, `times` along each axis (new axes first), as torch.Tensor.repeat and numpy.tile."""
        times = _sequence(times)
        if len(times) < self.ndim:
            raise ValueError(f"repeat: expected a number for each of {self.ndim} axes, got {times}")
        shape = (1,) * (len(times) - self.ndim) + self.shape
        paired = [size for pair in zip(times, shape, strict=True) for size in pair]
        apart = self.reshape([size for n in shape for size in (1, n)]).expand(paired)
        return apart.reshape([t * n for t, n in zip(times, shape, strict=True)])

    @_numpy_spelling
    def repeat_interleave(self, repeats: int, dim: int | None = None) -> Tensor:
        """Each element (of the flattened tensor, or each slice along `dim`) `repeats` times in a row."""
        if dim is None:
            return self.flatten().repeat_interleave(repeats, 0)
        axis = normalize_axis(dim, self.ndim)
        apart = self.unsqueeze(axis + 1).expand(*self.shape[: axis + 1], repeats, *self.shape[axis + 1 :])
        return apart.flatten(axis, axis + 1)

    def flip(self, *dims: Any) -> Tensor:
        """With the order along each of `dims` reversed."""
        return ops.flip(self, _sequence(dims))

    @_numpy_spelling
    def split(self, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
        """Parts of size `split_size` (or of the sizes listed) along `dim`."""
        return ops.split(self, split_size, dim)

    @_numpy_spelling
    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        """At most `chunks` parts of equal size along `dim`."""
        return ops.chunk(self, chunks, dim)

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        """The slices along `dim`, without that axis."""
        before = (slice(None),) * normalize_axis(dim, self.ndim)
        return tuple(self[(*before, i)] for i in range(self.size(dim)))

    def tril(self, diagonal: int = 0) -> Tensor:
        """The elements on and below a diagonal of the last two axes, 0 elsewhere."""
        return ops.masked_fill(self, ~np.tri(self.shape[-2], self.shape[-1], diagonal, dtype=np.bool_), 0)

    def triu(self, diagonal: int = 0) -> Tensor:
        """The elements on and above a diagonal of the last two axes, 0 elsewhere."""
        return ops.masked_fill(self, np.tri(self.shape[-2], self.shape[-1], diagonal - 1, dtype=np.bool_), 0)

    # -- choosing elements ------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Tensor:
        first, second = integers_first(plain_index(index))
        part = ops.getitem(self, index=first)
        return part if second is None else ops.getitem(part, index=second)

    def where(self, condition: Any, other: Any) -> Tensor:
        """This tensor where `condition`, else `other`."""
        return ops.where(condition, self, other)

    def masked_fill(self, mask: Any, value: Any) -> Tensor:
        """`value` where `mask` is true, this tensor elsewhere."""
        return ops.masked_fill(self, mask, value)

    @_numpy_spelling
    def gather(self, dim: int, index: Any) -> Tensor:
        """Along `dim`, the elements at the positions in `index`, whose shape the result has."""
        return ops.gather(self, dim, index)

    @_numpy_spelling
    def take(self, indices: Any, dim: int | None = None) -> Tensor:
        """Elements of the flattened tensor; with `dim` (or `axis`) whole slices, as numpy.take."""
        return ops.take(self, indices, dim)

    @_numpy_spelling
    def index_select(self, dim: int, index: Any) -> Tensor:
        """The slices at the positions in `index` (N,) along `dim`."""
        return ops.take(self, index, dim)

    # -- copies and dtypes ------------------------------------------------------------------------------------------

    def clone(self) -> Tensor:
        """A copy in memory of its own, with history."""
        return ops.clone(self)

    def contiguous(self) -> Tensor:
        """This tensor, or a copy if its elements do not stand in memory in the order of its axes."""
        return self if self.array.flags.c_contiguous else self.clone()

    def is_contiguous(self) -> bool:
        """Whether the elements lie in memory in the order of their indices."""
        return self.array.flags.c_contiguous

    def to(self, *where: Any, dtype: Any = None, device: Any = None) -> Tensor:
        """In another dtype (or that of another tensor), with history where both are floating.

        `to("cpu")`, as programs for PyTorch say, is this tensor; ValueError for any other device.
        """
        for given in where:
            if isinstance(given, str) and given.partition(":")[0] in DEVICES:
                device = given
            else:
                dtype = given.dtype if isinstance(given, Tensor) else given
        check_device(device)
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        if dtype == self.dtype:
            return self
        if dtype.kind != "f" or self.node is None:
            return Variable.wrap(self.array.astype(dtype))
        return ops.cast(self, dtype=dtype)

    astype = type = to

    def float(self) -> Tensor:
        """In float32."""
        return self.to(np.float32)

    def double(self) -> Tensor:
        """In float64."""
        return self.to(np.float64)

    def long(self) -> Tensor:
        """In int64."""
        return self.to(np.int64)

    def int(self) -> Tensor:
        """In int32."""
        return self.to(np.int32)

    def bool(self) -> Tensor:
        """In bool: True where not 0."""
        return self.to(np.bool_)

    @property
    def device(self) -> str:
        """Where the memory is: always "cpu"."""
        return "cpu"

    def cpu(self) -> Tensor:
        """This tensor: there is no other memory."""
        return self

    def __deepcopy__(self, memo: dict) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError("only leaves can be deep-copied; use x.detach() or x.clone()")
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        Tensor.__init__(copy, self.array, requires_grad=self.requires_grad)
        copy._grad = None if self._grad is None else self._grad.detach().clone()
        return copy

    # -- writing in place: outside of graphs only --------------------------------------------------------------------

    def _writable(self, what: str) -> np.ndarray:
        if self.node is not None and state.recording:
            raise RuntimeError(
                f"{what} would change a tensor that requires grad, and in-place changes are not recorded. Compute a "
                f"new tensor (x = x + 1, where, masked_fill), or write under `with no_grad():`"
            )
        return self.mutate()

    def __setitem__(self, index: Any, value: Any) -> None:
        array, value = self._writable("x[index] = value"), value.array if isinstance(value, Variable) else value
        first, second = integers_first(plain_index(index))
        if second is None:
            array[first] = value
        else:
            array[first][second] = value

    def copy_(self, source: Any) -> Tensor:
        """Overwrite with the values of `source`, which broadcasts."""
        self._writable("copy_")[...] = source.array if isinstance(source, Variable) else source
        return self

    def fill_(self, value: Any) -> Tensor:
        """Overwrite every element."""
        self._writable("fill_")[...] = value
        return self

    def zero_(self) -> Tensor:
        """Overwrite every element with 0."""
        return self.fill_(0)

    def masked_fill_(self, mask: Any, value: Any) -> Tensor:
        """Overwrite with `value` where `mask` is true."""
        mask = mask.array if isinstance(mask, Variable) else np.asarray(mask)
        np.copyto(self._writable("masked_fill_"), value, where=mask)
        return self

    def add_(self, other: Any, alpha: Any = 1) -> Tensor:
        """x = x + alpha · other, in place."""
        self._writable("add_")[...] += alpha * (other.array if isinstance(other, Variable) else other)
        return self

    def sub_(self, other: Any, alpha: Any = 1) -> Tensor:
        """x = x − alpha · other, in place."""
        return self.add_(other, -alpha)

    def mul_(self, other: Any) -> Tensor:
        """x = x · other, in place."""
        self._writable("mul_")[...] *= other.array if isinstance(other, Variable) else other
        return self


Variable.tensor_class = Tensor


DEVICES = {"cpu", "cuda", "mps"}  # by PyTorch's names


def check_device(device: Any) -> None:
    """ValueError for any device but the "cpu"."""
    if device is not None and str(device) != "cpu":
        raise ValueError(f'expected the device "cpu", where everything here is computed, got {device}')


class Hook:
    """A registered hook; `remove()` takes it away."""

    def __init__(self, hooks: list, hook: Callable) -> None:
        self._hooks, self._hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


def start(output: Tensor, gradient: Any, create_graph: bool) -> tuple[Any, Any]:
    """Where a backward pass from `output` begins: its node and upstream gradient, checked."""
    if output.node is None:
        raise RuntimeError(
            "expected a tensor that was computed from one with requires_grad=True (and not under no_grad), got one "
            "without history; there is nothing to differentiate"
        )
    if gradient is None:
        if output.array.size != 1:
            raise ValueError(
                f"expected a single element to differentiate, got shape {output.shape}; reduce it (x.sum()) or pass "
                f"the upstream gradient"
            )
        gradient = np.ones(output.shape, output.dtype)
    if not isinstance(gradient, Tensor):
        gradient = Variable.wrap(np.asarray(gradient))
    if gradient.shape != output.shape:
        raise ValueError(f"expected an upstream gradient of shape {output.shape}, got {gradient.shape}")
    if gradient.dtype != output.dtype:
        gradient = gradient.to(output.dtype)
    if create_graph:
        return output.node, gradient if gradient.node is not None else ops.alias(gradient)
    return output.node, gradient.array
