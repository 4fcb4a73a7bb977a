"""Mistakes of people who derive gradients by hand and write kernels, as mutators for cosmic-ray.

cosmic-ray changes operators, comparisons, numbers and keywords. What it has no mutator for is here:

    DropTerm      a + b − c   →  a + b,  a − c,  b − c          (the same for factors)
    WrongValue    dout · b    →  dout · a                       another argument of the same function
    NegateResult  return e    →  return −(e)                    also `yield e` and `out[i] = e`
    Accumulate    s += e      →  s = e,  s −= e                 the sum that is overwritten, the sign in a loop
    OffByOne      range(n)    →  range(n − 1);  range(a, b) → range(a + 1, b)

`tests/mutation.py` makes this a plug-in of cosmic-ray's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Name

Position = tuple[tuple[int, int], tuple[int, int]]


def written(code: str, like: Any) -> Any:
    """A leaf with this text in place of a node, with what stood before it."""
    prefix = like.get_first_leaf().prefix
    return Name(code, like.start_pos, prefix=prefix)


class _Mutator(Operator):
    """`variants(node)` gives functions; each changes the node and returns it."""

    @abstractmethod
    def variants(self, node: Any) -> list:
        """What can be made of this node; nothing, for most nodes."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        for _ in self.variants(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return self.variants(node)[index]()

    @classmethod
    def examples(cls) -> tuple:
        return tuple(Example(before, after, occurrence) for before, after, occurrence in cls.shown)

    shown: tuple = ()


class DropTerm(_Mutator):
    """One term of a sum or one factor of a product is forgotten."""

    shown = (("a + b", "b", 0), ("a + b", "a", 1), ("a * b / c", "a * b", 2))

    def variants(self, node: Any) -> list:
        if node.type not in ("arith_expr", "term"):
            return []

        def without(place: int) -> Any:
            first = place == 0
            end = node.children[1] if first else None
            keep_sign = first and end.value == "-"
            start, stop = (place, place + 2 - keep_sign) if first else (place - 1, place + 1)
            gone = node.children[start:stop]
            left = [child for child in node.children if not any(child is x for x in gone)]
            text = "".join(child.get_code() for child in left).strip()
            return written(f"({text})", node)

        places = range(0, len(node.children), 2)
        return [lambda p=p: without(p) for p in places if p or node.children[1].value in "+-*@"]


class WrongValue(_Mutator):
    """An argument of a function is mistaken for the next one."""

    shown = (("def f(a, b): return a", "def f(a, b): return b", 0),)

    def variants(self, node: Any) -> list:
        if node.type != "name":
            return []
        function = parso_function(node)
        if function is None or node.start_pos < function.children[3].start_pos:
            return []
        names = [p.name.value for p in function.get_params() if not p.star_count]
        if len(names) < 2 or node.value not in names or _is_no_use(node):
            return []
        other = names[(names.index(node.value) + 1) % len(names)]
        return [lambda: written(other, node)]


def parso_function(node: Any) -> Any:
    """The function in whose body a node stands."""
    while node is not None and node.type != "funcdef":
        node = node.parent
    return node


def _is_no_use(node: Any) -> bool:
    """An attribute, the name of a keyword argument, a parameter, or the target of an assignment."""
    before, parent = node.get_previous_leaf(), node.parent
    if before is not None and before.value == ".":
        return True
    if parent.type == "argument" and parent.children[0] is node:
        return True
    while parent is not None and parent.type not in ("funcdef", "suite"):
        if parent.type in ("param", "parameters"):
            return True
        parent = parent.parent
    return node.is_definition()


class NegateResult(_Mutator):
    """The wrong sign of a result."""

    shown = (("def f(): return a + b", "def f(): return -(a + b)", 0), ("out[i] = a", "out[i] = -(a)", 0))

    def variants(self, node: Any) -> list:
        if node.type in ("return_stmt", "yield_expr") and len(node.children) == 2:
            value = node.children[1]
        elif node.type == "expr_stmt" and node.children[1].type == "operator" and node.children[1].value == "=":
            if not node.children[0].get_code().strip().endswith("]"):
                return []
            value = node.children[2]
        else:
            return []
        if value.type in ("yield_arg", "testlist", "testlist_star_expr", "string", "keyword"):
            return []

        def negated() -> Any:
            node.children[node.children.index(value)] = written(f"-({value.get_code().strip()})", value)
            return node

        return [negated]


class Accumulate(_Mutator):
    """A sum that is overwritten at each step, or that goes the other way."""

    shown = (("s += a", "s = a", 0), ("s += a", "s -= a", 1))
    others: ClassVar = {"+=": ("=", "-="), "-=": ("=", "+="), "*=": ("=", "/="), "/=": ("=", "*=")}

    def variants(self, node: Any) -> list:
        if node.type != "operator" or node.value not in self.others:
            return []
        return [lambda o=o: written(o, node) for o in self.others[node.value]]


class OffByOne(_Mutator):
    """A loop that stops one early, or starts one late."""

    shown = (("for i in range(n): pass", "for i in range((n) - 1): pass", 0),)

    def variants(self, node: Any) -> list:
        if node.type != "trailer" or node.children[0].value != "(" or len(node.children) != 3:
            return []
        name = node.get_previous_leaf()
        if name is None or name.value not in ("range", "prange"):
            return []
        inside = node.children[1]
        arguments = [a for a in inside.children if a.type != "operator"] if inside.type == "arglist" else [inside]

        def with_(argument: Any, text: str) -> Any:
            parent = argument.parent
            parent.children[parent.children.index(argument)] = written(
                f"({argument.get_code().strip()}) {text}", argument
            )
            return node

        stop = arguments[min(1, len(arguments) - 1)]
        found = [lambda: with_(stop, "- 1")]
        return found if len(arguments) == 1 else [*found, lambda: with_(arguments[0], "+ 1")]


class Provider:
    """What cosmic-ray asks a plug-in for."""

    operators: ClassVar = {cls.__name__: cls for cls in (DropTerm, WrongValue, NegateResult, Accumulate, OffByOne)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.operators)

    def __getitem__(self, name: str) -> type:
        return self.operators[name]
