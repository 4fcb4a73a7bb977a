"""What an operator is: one record, declared in one block.

A **primitive** writes its derivative with operations that ndarrays and tensors share. `d<input>` is the rule for one
input; the names of its arguments say what it needs, and the engine saves exactly that:

    @primitive
    class mul:
        '''out = a · b

        da = dout · b
        db = dout · a
        '''
        broadcasts = True
        def forward(a, b): return a * b
        def da(dout, b): return dout * b
        def db(dout, a): return dout * a

A rule may name `dout` (the upstream gradient), any input, `out`, any keyword parameter of `forward`, and for an input
`x` also `x_shape` and `x_dtype`; `shapes` are those of all inputs. In an ordinary backward pass these are ndarrays and
the rule costs no more than NumPy. Under `create_graph` they are tensors, the rule is recorded like any other
computation, and derivatives of every order follow from the one rule.

A **fused** operator has a fast `forward` and one hand-derived `vjp` (vector-Jacobian product) for all inputs, both
calling kernels on arrays, and `plain`, the textbook formula as a short program on tensors:

    @fused
    class softmax:
        '''...'''
        def forward(x, *, dim): return kernels.softmax(x)
        def vjp(dout, out, *, dim): return kernels.softmax_backward(dout, out)
        def plain(x, *, dim): ...

`plain` is documentation, the tests' oracle, the path of higher derivatives, and what runs under
`autograd.plain()`. When `forward` returns a tuple, what follows the output are `extras`: arrays saved for `vjp` under
the names listed there.

Called with ndarrays, an operator computes and returns an ndarray. Called with at least one tensor, it also remembers.
That is why the rules of one operator can be written with others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .graph import Node, Variable, check_finite, keep, run_backward, state
from .kernels.together import settle, together

__all__ = ["Op", "Sample", "fused", "primitive", "registry"]

registry: dict[str, Op] = {}  # every operator by name; the gradient suite walks it


@dataclass(frozen=True)
class Sample:
    """Inputs on which an operator is tried: valid ones, edges, and (with `error`) ones it must refuse.

    Where the inputs are at a kink, `subgradient` says what the rule chooses for each input when dout = 1.
    """

    inputs: tuple
    params: dict[str, Any] = field(default_factory=dict)
    error: type[Exception] | None = None
    match: str = ""
    subgradient: tuple | None = None


@dataclass(frozen=True)
class _Rule:
    """One function of the derivative, for the inputs at `indices`, and where its arguments come from."""

    function: Callable
    indices: tuple[int, ...]
    sources: tuple[tuple[str, str, Any], ...]  # (argument, kind, key)
    joint: bool  # returns one gradient for each input of the operator

    def __call__(self, node: Node, dout: Any, saved: dict[str, Any], needs: tuple) -> Any:
        """Call the function with what it asks for."""
        arguments: dict[str, Any] = {}
        for argument, kind, key in self.sources:
            if kind == "dout":
                arguments[argument] = dout
            elif kind == "saved":
                arguments[argument] = saved[key]
            elif kind == "param":
                arguments[argument] = node.params[key]
            elif kind == "needs":
                arguments[argument] = needs
            elif kind == "retain_graph":
                arguments[argument] = state.retaining
            elif kind == "shapes":
                arguments[argument] = tuple(shape for shape, _ in node.inputs)
            else:
                shape, dtype = node.inputs[key]
                arguments[argument] = shape if kind == "shape" else dtype
        return self.function(**arguments)


class _Plan(NamedTuple):
    """What a node saves: names, and for each where it comes from: an input's number, `OUT`, or EXTRA − an extra's."""

    names: tuple[str, ...]
    slots: tuple[int, ...]


OUT, EXTRA = -1, -2


class Op:
    """An operator: its name, its formula and derivative (`doc`), how to compute both, and samples to try it on.

    Attributes:
        name         what it is called in graphs, errors and reports
        doc          the formula, the derivation of its derivative, and the source
        broadcasts   inputs of different shapes and dtypes are brought together as NumPy and PyTorch do
        floats       integer inputs are computed in the default floating dtype
        view         the output may share memory with the first input
        waits        `forward` and `vjp` read no array but by kernels that can wait (see kernels/together.py), and where
                     gradients are wanted, they do
        extras       names of what `forward` returns after the output, saved for `vjp`
        fresh        gradients come in memory that nothing else refers to
        plain        the textbook definition (fused operators), else None
        variadic     takes any number of inputs; `vjp` returns a sequence
        samples      function of a NumPy Generator that yields `Sample`s
        kinks        where the operator has no derivative, in words; `samples` show what its rule gives there
        domain       numbers on which it is smooth and well-conditioned; tests draw from them
        analytic     its definition also holds for complex numbers, so that it can be differentiated by a complex step
                     (a bool, or a function of the parameters that returns one)
        space        function of a `Draw` (see `testing`) that returns any `Sample`; needed where inputs are more than
                     numbers of the domain in one shape, or in shapes that broadcast
    """

    def __init__(self, declaration: type, *, is_fused: bool) -> None:
        get = vars(declaration).get
        self.name = declaration.__name__.rstrip("_")
        self.doc = inspect.cleandoc(declaration.__doc__ or "")
        self.__doc__ = self.doc
        self.__name__ = self.name
        self.__module__ = declaration.__module__
        self.forward: Callable = vars(declaration)["forward"]
        self.plain: Callable | None = get("plain")
        self.broadcasts: bool = get("broadcasts", False)
        self.floats: bool = get("floats", False)
        self.view: bool = get("view", False)
        self.waits: bool = get("waits", False)
        self.extras: tuple[str, ...] = get("extras", ())
        self.fresh: bool = get("fresh", is_fused)
        self.samples: Callable[[np.random.Generator], Iterable[Sample]] = vars(declaration)["samples"]
        self.is_fused = is_fused
        self.promotes = "f" if is_fused else "iuf" if self.broadcasts or self.floats else ""  # kinds of dtypes
        self.kinks: str = get("kinks", "")
        self.domain: tuple[float, float] = get("domain", (-2.0, 2.0))
        self.space: Callable[[Any], Sample] | None = get("space")
        self.analytic: Any = get("analytic", True)

        signature = inspect.signature(self.forward)
        positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
        keywords = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in positional)
        self.inputs = tuple(p.name for p in positional)
        self.input_defaults = {p.name: p.default for p in positional if p.default is not p.empty}
        self.wants_needs = any(p.name == "needs" for p in keywords)
        self.defaults = {p.name: p.default for p in keywords if p.default is not p.empty and p.name != "needs"}
        self.params = tuple(p.name for p in keywords if p.name != "needs")
        self.rules = tuple(self._read_rules(declaration))
        self.differentiable = frozenset(index for rule in self.rules for index in rule.indices)
        self._plans: dict[tuple, _Plan] = {}
        registry[self.name] = self

    def __repr__(self) -> str:
        return f"<operator {self.name}>"

    # -- declaration ----------------------------------------------------------------------------------------------

    def _read_rules(self, declaration: type) -> Iterator[_Rule]:
        joint = vars(declaration).get("vjp")
        if joint is not None:
            constant = vars(declaration).get("constant", ())  # names of inputs that have no gradient
            indices = tuple(i for i, name in enumerate(self.inputs) if name not in constant)
            yield _Rule(joint, indices, tuple(self._sources(joint)), joint=True)
            return
        for index, name in enumerate(self.inputs):
            rule = vars(declaration).get(f"d{name}")
            if rule is not None:
                yield _Rule(rule, (index,), tuple(self._sources(rule)), joint=False)

    def _sources(self, rule: Callable) -> Iterator[tuple[str, str, Any]]:
        for argument in inspect.signature(rule).parameters:
            base, _, suffix = argument.rpartition("_")
            if argument in ("dout", "needs", "shapes", "retain_graph"):
                yield argument, argument, None
            elif argument in ("out", *self.inputs, *self.extras):
                yield argument, "saved", argument
            elif argument in self.params:
                yield argument, "param", argument
            elif suffix in ("shape", "dtype") and base in self.inputs:
                yield argument, suffix, self.inputs.index(base)
            else:
                raise TypeError(
                    f"{self.name}: a rule asks for {argument!r}, which is neither an input, `out`, an extra "
                    f"({', '.join(self.extras) or 'none'}) nor a parameter ({', '.join(self.params) or 'none'})"
                )

    def _plan(self, needs: tuple) -> _Plan:
        """What must be saved when the inputs marked in `needs` want a gradient."""
        plan = self._plans.get(needs)
        if plan is None:
            names: dict[str, None] = {}
            if self.is_fused:  # `plain` may be asked to take over, and needs the inputs
                names.update(dict.fromkeys(self.inputs[: len(needs)]))
            for rule in self.rules:
                if self.variadic or any(needs[i] for i in rule.indices if i < len(needs)):
                    names.update((key, None) for _, kind, key in rule.sources if kind == "saved")
            slots = tuple(
                OUT if name == "out" else
                EXTRA - self.extras.index(name) if name in self.extras else
                self.inputs.index(name) for name in names
            )  # fmt: skip
            plan = self._plans[needs] = _Plan(tuple(names), slots)
        return plan

    # -- the forward pass -----------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any, **params: Any) -> Any:
        arrays, wants, tensors, scalars, recording = [], [], False, False, state.recording
        for i, x in enumerate(inputs):
            if isinstance(x, Variable):
                tensors = True
                arrays.append(x._array)
                wants.append(recording and x.node is not None and (self.variadic or i in self.differentiable))
            else:
                arrays.append(x)
                wants.append(False)
                scalars = scalars or isinstance(x, np.generic)
        needs = tuple(wants)
        tracked = True in needs
        if tensors and scalars:  # beside tensors NumPy's scalars are numbers like Python's: np.sqrt(64) does not widen
            arrays = [x.item() if isinstance(x, np.generic) else x for x in arrays]
        if self.promotes:
            arrays = promote(arrays, self.floats, kinds=self.promotes)
        if self.is_fused:
            self._require_floats(arrays)
        if tensors and state.plain and self.plain is not None:
            return self.plain(*inputs, **params)
        hints = {"needs": needs} if self.wants_needs else {}
        try:
            if tracked and self.waits and _are_quiet(inputs):
                with together:
                    result = self.forward(*arrays, **params, **hints)
            else:
                settle()
                result = self.forward(*arrays, **params, **hints)
        except (ValueError, IndexError) as error:
            raise type(error)(self._explain(error, arrays)) from None
        out, extras = (result[0], result[1:]) if self.extras else (result, ())
        if not tensors:
            return out
        if type(out) is not np.ndarray:
            out = np.asarray(out)  # NumPy turns 0-d results into scalars

        storage = None
        if (
            self.view
            and isinstance(inputs[0], Variable)
            and out.base is not None
            and np.may_share_memory(out, arrays[0])
        ):
            storage = inputs[0].storage
        result = Variable.wrap(out, None, storage)
        if tracked:
            self._record(result, inputs, arrays, extras, params, needs)
        if state.anomaly:
            check_finite(out, result.node, "forward", self.name, arrays)
        return result

    def _require_floats(self, arrays: list) -> None:
        """Kernels compute in two dtypes; TypeError for any other among the inputs that have a derivative."""
        for i, x in enumerate(arrays):
            if isinstance(x, _ARRAY) and x.dtype not in _FLOATS and x.dtype.kind != "c" and i in self.differentiable:
                raise TypeError(
                    f"{self.name}: expected `{self.inputs[i]}` in float32 or float64, got {x.dtype}; convert it with "
                    f".float() or .double()"
                )

    def _record(self, result: Variable, inputs: tuple, arrays: list, extras: tuple, params: dict, needs: tuple) -> None:
        """Leave a node on the tape."""
        plan = self._plan(needs)
        edges, described = [], []
        for x, need in zip(inputs, needs, strict=True):  # as they came, before promotion
            edges.append(x.node if need else None)
            array = x._array if isinstance(x, Variable) else x
            described.append((array.shape, array.dtype) if isinstance(array, np.ndarray) else ((), None))
        params = self.defaults | params if self.defaults else params
        node = Node(self, plan, tuple(edges), tuple(described), params, needs)
        saved = []
        for slot in plan.slots:
            if slot >= 0:
                saved.append(_keep_input(inputs[slot], arrays[slot]) if slot < len(inputs) else None)
            elif slot == OUT:
                saved.append(keep(result._array, result.storage))
            else:
                saved.append(keep(extras[EXTRA - slot]))
        node.saved = tuple(saved)
        result.node = node

    def _explain(self, error: Exception, arrays: list) -> str:
        shapes = ", ".join(str(np.shape(x)) for x in arrays if x is not None)
        text = str(error)
        if self.broadcasts and "broadcast" in text:
            return (
                f"{self.name}: expected shapes that broadcast (aligned at the right, equal or 1), got {shapes}; "
                f"reshape or unsqueeze one of them"
            )
        return text if text.startswith(self.name) else f"{self.name} of shapes {shapes}: {text}"

    # -- the backward pass ----------------------------------------------------------------------------------------

    def differentiate(self, node: Node, dout: np.ndarray, needs: tuple) -> list[tuple[int, Any]]:
        """Gradients of the inputs marked in `needs` as arrays, with their numbers, by the operator's own rules."""
        return self._apply_rules(node, dout, needs, self._saved(node))

    def differentiate_recorded(self, node: Node, dout: Variable, needs: tuple) -> list[tuple[int, Any]]:
        """The same as tensors that remember how they were made.

        A primitive's rules are run on tensors. A fused operator's kernels can't be looked into, so its definition
        is differentiated in its place.
        """
        saved = self._saved_as_tensors(node)
        if not self.is_fused:
            return self._apply_rules(node, dout, needs, saved)
        assert self.plain is not None
        # Through an alias, the gradient of one input does not run on into another that was computed from it.
        alias = registry["alias"]
        aliases = [alias(saved[name]) if need else saved[name] for name, need in zip(self.inputs, needs, strict=False)]
        out = self.plain(*aliases, **node.params)
        targets = [x.node for x, need in zip(aliases, needs, strict=True) if need]
        gradients = run_backward([(out.node, dout)], targets=targets, retain_graph=True, create_graph=True)
        return [(i, gradients.get(x.node)) for i, (x, need) in enumerate(zip(aliases, needs, strict=True)) if need]

    def _apply_rules(self, node: Node, dout: Any, needs: tuple, saved: dict) -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        for rule in self.rules:
            if rule.joint:
                gradients = rule(node, dout, saved, needs)
                found += [(i, g) for i, (g, need) in enumerate(zip(gradients, needs, strict=False)) if need]
            elif needs[rule.indices[0]]:
                found.append((rule.indices[0], rule(node, dout, saved, needs)))
        return found

    def _saved(self, node: Node) -> dict[str, Any]:
        """What was saved, by name: arrays, and what else came as an input."""
        return {
            name: x.unpack(name, self.name) if hasattr(x, "unpack") else x
            for name, x in zip(node.plan.names, node.saved or (), strict=True)
        }

    def _saved_as_tensors(self, node: Node) -> dict[str, Any]:
        """What was saved, attached again to the nodes it came from."""
        tensors = self._saved(node)
        for name, slot in zip(*node.plan, strict=True):
            array = tensors[name]
            if slot > EXTRA and isinstance(array, np.ndarray):
                tensors[name] = Variable.wrap(array, node if slot == OUT else node.edges[slot])
        return tensors


def _are_quiet(inputs: tuple) -> bool:
    """Whether nobody can write to the inputs unseen while a kernel waits to read them."""
    return not any(x.storage.exposed for x in inputs if isinstance(x, Variable))


def _keep_input(x: Any, array: Any) -> Any:
    """Save an input: watched if it is a tensor's own memory, as it is if it is a copy, an index or a number."""
    if isinstance(x, Variable) and x._array is array:
        return keep(array, x.storage)
    return keep(array) if isinstance(array, np.ndarray) else array


def promote(arrays: list, floats: bool, kinds: str = "iuf") -> list:
    """Bring inputs to one dtype as PyTorch does: a floating dtype wins over any integer, the wider float over the
    narrower; Python numbers adapt to the arrays. Dtypes that are not of `kinds` stay (NumPy's letters).
    """
    dtypes = {x.dtype for x in arrays if isinstance(x, _ARRAY)}
    if len(dtypes) == 1 and next(iter(dtypes)).kind in "fc":
        return arrays
    settle()
    floating = [dtype for dtype in dtypes if dtype.kind in "fc"]  # complex only where a proof differentiates by it
    if floating:
        target = np.result_type(*floating)
    elif floats or ("i" in kinds and any(isinstance(x, float) for x in arrays)):
        target = np.dtype(np.float32)
    else:
        return arrays
    if floats or not floating:  # everything becomes floating, numbers and bools too
        return [x if x is None else np.asarray(x, target) for x in arrays]
    # NumPy computes bool with float as PyTorch does, and a condition stays a condition.
    return [x.astype(target, copy=False) if isinstance(x, _ARRAY) and x.dtype.kind in kinds else x for x in arrays]


_ARRAY = (np.ndarray, np.generic)
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def primitive(declaration: type) -> Any:
    """Declare an operator whose rules are written with operations that ndarrays and tensors share."""
    return Op(declaration, is_fused=False)


def fused(declaration: type) -> Any:
    """Declare an operator that has a `plain` definition beside a fast `forward` and a hand-derived `vjp`."""
    return Op(declaration, is_fused=True)
