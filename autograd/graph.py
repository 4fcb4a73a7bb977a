"""The tape: what was computed from what, and the backward pass that walks it.

While tensors are computed, every operation on a tensor that requires a gradient leaves a `Node`: which operator,
from which nodes its inputs came (`edges`), and what its derivative needs (`saved`). The result is a directed
acyclic graph with the inputs at its leaves.

`run_backward` walks the graph from the outputs. A node is ready when every node that used its value has
contributed; `pending` counts those still missing. This is Kahn's topological sort, so no recursion: a chain of a
million operations needs no deeper stack than a chain of two.

      x ──► mul ──► sum ──► loss           forward: tensors point back along edges
      x ◄── mul ◄── sum ◄── 1              backward: each node turns d(loss)/d(out) into d(loss)/d(inputs)

In an ordinary pass gradients are plain ndarrays. With `create_graph=True` they are tensors: the same rules run on
them and leave nodes of their own, which is what a second derivative is taken through.

This file knows nothing of operators; a node's `op` is asked for its derivative and may be anything that has one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .kernels.sums import add
from .kernels.together import postponed, settle, together
from .storage import Saved, Storage

__all__ = ["Leaf", "Node", "Variable", "detect_anomaly", "enable_grad", "no_grad", "plain", "run_backward", "state"]

Gradient = Any  # an ndarray in an ordinary pass, a Tensor under create_graph


# ---------------------------------------------------------------------------------------------------------------
# Modes. Each is a switch of the current thread.
# ---------------------------------------------------------------------------------------------------------------


class _State(threading.local):
    recording = True  # leave nodes on the tape
    plain = False  # run fused operators as their textbook definitions
    anomaly = False  # look for NaN and Inf, remember where each node was made
    retaining = False  # the running backward pass leaves saved arrays in place
    frame: _Recomputation | None = None  # inside checkpoint(): do not keep saved arrays


state = _State()


@contextlib.contextmanager
def _switch(name: str, value: Any) -> Iterator[None]:
    before = getattr(state, name)
    setattr(state, name, value)
    try:
        yield
    finally:
        setattr(state, name, before)


def no_grad() -> contextlib.AbstractContextManager:
    """Within this context (or decorated function) nothing is recorded; results have `requires_grad=False`."""
    return _switch("recording", False)


def enable_grad() -> contextlib.AbstractContextManager:
    """Undo `no_grad` within this context (or decorated function)."""
    return _switch("recording", True)


def plain() -> contextlib.AbstractContextManager:
    """Run every fused operator as its `plain` definition, a short program of primitive operators.

    The values stay the same up to rounding. Use it to study what a kernel computes, or to suspect one.
    """
    return _switch("plain", True)


def detect_anomaly() -> contextlib.AbstractContextManager:
    """Stop at the first NaN or Inf that an operation makes, forward or backward, naming operator and line.

    Slow: every result is inspected and every operation remembers its caller.
    """
    return _switch("anomaly", True)


# ---------------------------------------------------------------------------------------------------------------
# The graph
# ---------------------------------------------------------------------------------------------------------------


class Variable:
    """What the engine knows of a tensor: its array, the node it came from, and whose memory it is."""

    __slots__ = ("__weakref__", "_array", "_grad", "node", "storage")

    _array: np.ndarray
    node: Node | Leaf | None
    storage: Storage
    _grad: Any

    @classmethod
    def wrap(cls, array: np.ndarray, node: Node | Leaf | None = None, storage: Storage | None = None) -> Any:
        """A tensor around `array` itself (no copy)."""
        self = Variable.__new__(cls.tensor_class)
        self._array = array
        self.node = node
        self.storage = storage or Storage(array)
        self._grad = None
        return self

    @property
    def array(self) -> np.ndarray:
        """The ndarray, with its numbers in it: kernels that wait are called first."""
        settle()
        return self._array

    tensor_class: type[Variable]  # the class of results; a subclass of Tensor makes plain Tensors


class Leaf:
    """Where a gradient comes to rest: the end of the graph at a tensor that the user made."""

    __slots__ = ("hooks", "variable")

    def __init__(self, variable: Variable) -> None:
        self.variable = weakref.ref(variable)  # the graph keeps no input alive that its owner has dropped
        self.hooks: list[Callable] = []

    edges: tuple = ()
    name = "leaf"

    def accumulate(self, gradient: Gradient, owned: bool) -> None:
        """Add to `.grad`. Memory that something else may still point to is copied, never adopted."""
        variable = self.variable()
        if variable is None:
            return
        if isinstance(gradient, Variable):
            before = variable._grad
            variable._grad = gradient if before is None else before + gradient
        elif variable._grad is None:
            array = np.asarray(gradient)
            variable._grad = Variable.wrap(array if owned else array.copy())  # what kernels still owe is owned
        elif variable._grad.node is not None:  # was made under create_graph: part of a graph, so not written to
            variable._grad = Variable.wrap(variable._grad.array + gradient)
        else:
            target = variable._grad.mutate()
            add(target, gradient, out=target)


class Node:
    """One recorded operation.

    edges   for each input the node it came from, or None where no gradient is wanted
    inputs  for each input its (shape, dtype): gradients are summed and cast back to these
    saved   what the derivative needs, by the operator's plan; None once freed
    params  the operation's keyword arguments
    needs   for each input whether a gradient is wanted
    """

    __slots__ = ("edges", "hooks", "inputs", "needs", "op", "params", "plan", "saved", "trace")

    def __init__(self, op: Any, plan: Any, edges: tuple, inputs: tuple, params: dict, needs: tuple) -> None:
        self.op = op
        self.plan = plan
        self.edges = edges
        self.inputs = inputs
        self.params = params
        self.needs = needs
        self.saved: tuple | None = ()
        self.hooks: list[Callable] | None = None
        self.trace: str | None = _caller() if state.anomaly else None

    @property
    def name(self) -> str:
        return self.op.name

    def __repr__(self) -> str:
        return f"<{self.op.name}>"


def keep(array: np.ndarray, storage: Storage | None = None) -> Any:
    """Save an array for the backward pass; within `checkpoint` only a promise to compute it again.

    With the storage of a tensor, a change in place is noticed. Without, it is memory that no tensor shows to anybody.
    """
    frame = state.frame
    if frame is not None:
        return frame.promise(array, storage or Storage(array))
    return array if storage is None else Saved(array, storage)


# ---------------------------------------------------------------------------------------------------------------
# The backward pass
# ---------------------------------------------------------------------------------------------------------------


def run_backward(
    roots: Sequence[tuple[Node | Leaf, Gradient]],
    *,
    targets: Iterable[Node | Leaf] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> dict[Node | Leaf, Gradient]:
    """Carry gradients from `roots` to the leaves.

    With `targets` None, every leaf adds what arrives to its `.grad`, and {} is returned. Otherwise nothing is
    accumulated, only the part of the graph that leads to the targets is walked, and what arrives at each target is
    returned (targets that nothing reaches are missing).

    Saved arrays are dropped node by node as the pass goes, unless `retain_graph`.
    """
    pending, order = _count_uses([node for node, _ in roots])
    wanted = None if targets is None else _leading_to(set(targets), order)
    collected: dict[Node | Leaf, Gradient] = {}
    gradients: dict[Node | Leaf, Gradient] = {}
    owned: set[Node | Leaf] = set()  # nodes whose gradient's memory nobody else refers to

    def contribute(node: Node | Leaf, gradient: Gradient, fresh: bool) -> None:
        before = gradients.get(node)
        if before is None:
            gradients[node] = gradient
            if fresh:
                owned.add(node)
            return
        settle()
        if create_graph or not before.ndim:  # NumPy's 0-d results are immutable scalars
            gradients[node] = before + gradient
            owned.add(node)
        elif node in owned:
            add(before, gradient, out=before)
        else:
            gradients[node] = add(gradient, before, out=gradient if fresh else None)
            owned.add(node)

    for node, gradient in roots:
        contribute(node, gradient, False)
    ready = [node for node in dict.fromkeys(node for node, _ in roots) if not pending[node]]

    with _switch("recording", create_graph), _switch("retaining", retain_graph), postponed:
        while ready:
            node = ready.pop()
            gradient = gradients.pop(node, None)
            if gradient is not None and node.hooks:
                gradient = _run_hooks(node, gradient, create_graph)
                owned.discard(node)  # a hook may have kept it
            if gradient is not None:
                if targets is None and isinstance(node, Leaf):
                    node.accumulate(gradient, node in owned)
                elif wanted is not None and node in wanted and wanted[node]:
                    collected[node] = gradient
            owned.discard(node)
            if isinstance(node, Leaf):
                continue
            if gradient is None:
                parts: Iterable = ()
            else:
                needs = node.needs if wanted is None else tuple([edge in wanted for edge in node.edges])
                parts = _input_gradients(node, gradient, needs, create_graph) if True in needs else ()
                if not retain_graph:
                    node.saved = None
            del gradient
            for index, part in parts:
                contribute(node.edges[index], *part)
            for edge in node.edges:
                if edge is not None:
                    pending[edge] -= 1
                    if not pending[edge]:
                        ready.append(edge)
    return collected


def _count_uses(roots: list) -> tuple[dict, list]:
    """How many recorded operations used each node's value, and the nodes in order of discovery."""
    pending: dict = dict.fromkeys(roots, 0)
    order = list(pending)
    for node in order:  # grows while it is walked
        for edge in node.edges:
            if edge is None:
                continue
            if edge in pending:
                pending[edge] += 1
            else:
                pending[edge] = 1
                order.append(edge)
    return pending, order


def _leading_to(targets: set, order: list) -> dict:
    """The nodes from which a target can be reached; True for the targets themselves."""
    wanted = dict.fromkeys((node for node in order if node in targets), True)
    users: dict = {}
    for node in order:
        for edge in node.edges:
            if edge is not None:
                users.setdefault(edge, []).append(node)
    stack = list(wanted)
    while stack:
        for user in users.get(stack.pop(), ()):
            if user not in wanted:
                wanted[user] = False
                stack.append(user)
    return wanted


def _input_gradients(node: Node, dout: Gradient, needs: tuple, create_graph: bool) -> list[tuple[int, tuple]]:
    """Ask the operator for its derivative and shape the answer like the inputs.

    The one place where broadcasting is undone: an input that was stretched along an axis was used many times, and
    the gradient of something used many times is the sum over its uses.
    """
    if node.saved is None:
        raise RuntimeError(
            f"expected a graph that is still whole, but `{node.op.name}` has been walked backward before and its saved "
            f"arrays are freed; call backward(retain_graph=True) the first time to walk a graph twice"
        )
    differentiate = node.op.differentiate_recorded if create_graph else node.op.differentiate
    parts = []
    if node.op.waits and not create_graph:
        with together:
            gradients = differentiate(node, dout, needs)
    else:
        settle()
        gradients = differentiate(node, dout, needs)
    for index, gradient in gradients:
        if gradient is None:
            continue
        shape, dtype = node.inputs[index]
        fresh = node.op.fresh
        if gradient.shape != shape or gradient.dtype != dtype:
            settle()
        if gradient.shape != shape:
            if not _broadcasts(shape, gradient.shape):
                raise GradientShapeError(node.op.name, index, shape, gradient.shape)
            gradient = unbroadcast(gradient, shape)
            fresh = True
        if gradient.dtype != dtype:
            gradient = gradient.astype(dtype)
            fresh = True
        if state.anomaly:
            check_finite(gradient, node, "backward")
        parts.append((index, (gradient, fresh)))
    return parts


class GradientShapeError(ValueError):
    """An operator's rule returned a gradient (of shape `got`) that its input (of shape `expected`) cannot have."""

    def __init__(self, name: str, index: int, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
        super().__init__(
            f"`{name}`: expected a gradient of shape {expected} for input {index}, or of one that {expected} "
            f"broadcasts to, got {got}; mend the operator's rule"
        )
        self.expected, self.got = expected, got


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be stretched to the shape `to`."""
    extra = len(to) - len(shape)
    return extra >= 0 and all(size in (1, wanted) for size, wanted in zip(shape, to[extra:], strict=True))


def unbroadcast(gradient: Gradient, shape: tuple[int, ...]) -> Gradient:
    """Sum `gradient` over the axes along which an array of `shape` was stretched."""
    extra = len(gradient.shape) - len(shape)
    stretched = tuple(
        axis for axis, size in enumerate(gradient.shape) if axis < extra or (shape[axis - extra] == 1 and size != 1)
    )
    if stretched:
        gradient = gradient.sum(stretched)
    return gradient.reshape(shape)


def _run_hooks(node: Node | Leaf, gradient: Gradient, create_graph: bool) -> Gradient:
    """Show the gradient to each hook; a hook that returns something replaces it."""
    settle()  # what a hook writes to may still be read otherwise
    hooks = node.hooks or ()
    tensor = gradient if create_graph else Variable.wrap(np.asarray(gradient))
    for hook in list(hooks):
        replacement = hook(tensor)
        if replacement is not None:
            if replacement.shape != tensor.array.shape:
                raise ValueError(
                    f"a gradient hook on {node.name} returned shape {replacement.shape}, expected {tensor.array.shape}"
                )
            tensor = replacement
    return tensor if create_graph else tensor.array


# ---------------------------------------------------------------------------------------------------------------
# Checkpointing: trade a second forward computation for memory
# ---------------------------------------------------------------------------------------------------------------


class _Promise:
    """Stands for a saved array that was not kept: the `position`-th that its function saves."""

    __slots__ = ("frame", "position")

    def __init__(self, frame: _Recomputation, position: int) -> None:
        self.frame = frame
        self.position = position

    def unpack(self, name: str, op_name: str) -> np.ndarray:
        return self.frame.fetch(self.position).unpack(name, op_name)


class _Recomputation:
    """Runs a function once without keeping anything, and again when the backward pass asks for what it needs.

    The graph is recorded the first time, so hooks, `grad` and higher derivatives see nothing unusual; only the
    arrays are missing from it. The second run saves its arrays in the same order.
    """

    def __init__(self, again: Callable[[], Any]) -> None:
        self.again = again
        self.promised = 0
        self.kept: dict[int, Saved] | None = None  # None: not computed again yet
        self.refilling = False

    def promise(self, array: np.ndarray, storage: Storage) -> Any:
        if self.refilling:
            assert self.kept is not None
            saved = Saved(array, storage)
            self.kept[len(self.kept)] = saved
            return saved
        self.promised += 1
        return _Promise(self, self.promised - 1)

    def fetch(self, position: int) -> Saved:
        if self.kept is None or position not in self.kept:
            self.kept, self.refilling = {}, True
            try:
                with _switch("recording", True), _switch("frame", self):
                    self.again()
            finally:
                self.refilling = False
            if len(self.kept) != self.promised:
                raise RuntimeError(
                    f"the checkpointed function saved {self.promised} arrays when it was recorded and {len(self.kept)} "
                    f"when it was computed again; expected the same operations each time (no outside state, no "
                    f"unseeded randomness)"
                )
        return self.kept.pop(position)


def recompute_in_backward(function: Callable[[], Any]) -> Any:
    """Call `function` recording its graph, without keeping the arrays that its derivative needs."""
    if not state.recording:
        return function()
    with _switch("frame", _Recomputation(function)):
        return function()


# ---------------------------------------------------------------------------------------------------------------
# Anomalies
# ---------------------------------------------------------------------------------------------------------------


class AnomalyError(FloatingPointError):
    """A NaN or Inf, caught where it was made (see `detect_anomaly`): `what` it is, in a line, and the lines `where`."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what}; it was called at\n{where}" if where else what)
        self.what, self.where = what, where


def check_finite(value: Any, node: Node | None, when: str, op_name: str | None = None, given: Iterable = ()) -> None:
    """Raise AnomalyError if there is a NaN or Inf in what an operator computed, from the arrays it was given."""
    settle()
    array = value.array if isinstance(value, Variable) else np.asarray(value)
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    bad = "NaN" if np.isnan(array[index]) else "Inf"
    numbers = [x for x in given if isinstance(x, np.ndarray | np.generic | float) and np.asarray(x).dtype.kind == "f"]
    verb = "made" if all(np.isfinite(x).all() for x in numbers) else "was given"
    where = node.trace if node is not None else _caller()
    name = op_name or node.name  # type: ignore[union-attr]
    raise AnomalyError(
        f"`{name}` {verb} the first {bad} in its {when} pass, at index {index} of shape {array.shape}", where or ""
    )


def _caller() -> str:
    """The line of user code that is being executed, and the lines of the rooms above this one that it went through."""
    here = os.path.dirname(__file__) + os.sep
    house = os.path.dirname(os.path.dirname(here)) + os.sep
    through = []
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if file.startswith(here):
            continue
        through.append((frame, line))
        if not (file.startswith(house) and frame.f_globals.get("__package__")):  # in no package beside this one
            break
    lines = traceback.StackSummary.extract(iter(through))
    if not lines:
        return "  (no line outside the library)"
    return "\n".join(f'  File "{f.filename}", line {f.lineno}, in {f.name}\n    {f.line}' for f in reversed(lines))
