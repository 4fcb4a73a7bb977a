"""What attention on vectors and on tiles have in common: where heads lie, and passes over single rows.

Operands come as a table of addresses and strides (`places`), so that one compilation serves arrays of all strides; as
arrays of four axes each they would take a dozen arguments, through every layer that a parallel loop is made of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .ir import INT, TileEmitter, emitted, shift, stored_pointer
from .jit import kernel

__all__ = ["LOG2_E", "OPERANDS", "Heads", "at", "heads", "pack", "places", "round_up", "row_products", "unpack"]

LOG2_E = 1 / np.log(2)  # scores are exponents of 2 inside the kernels: exp(s) = 2^(LOG2_E·s)


class Heads(NamedTuple):
    """A (B, H, T, D) array in memory: where it begins, and how many numbers on the next batch, head and row lie."""

    start: Any
    batch: int
    head: int
    row: int


OPERANDS = 8  # of the backward pass; forward has half of them, and names the last one again for the others


@kernel
def places(operands, table):
    """Write for each (B, H, T, D) array its address and three strides, in numbers.

    Returns whether that is possible: no stride may end inside a number.
    """
    for i in range(len(operands)):
        x = operands[i]
        table[4 * i] = x.ctypes.data
        for axis in range(3):
            table[4 * i + 1 + axis], rest = divmod(x.strides[axis], x.itemsize)
            if rest:
                return False
    return True


@kernel
def heads(places, number, like):
    """Operand `number` of `places`, whose numbers are those of the array `like`."""
    at = 4 * number
    return Heads(stored_pointer(places, at, like), places[at + 1], places[at + 2], places[at + 3])


@kernel
def at(heads, batch, head, row):
    """Where one row begins."""
    return shift(heads.start, batch * heads.batch + head * heads.head + row * heads.row)


@kernel
def round_up(n, unit):
    """The next multiple of `unit` from n on."""
    return (n + unit - 1) // unit * unit


def _stored(pointer: Any) -> ir.Type:
    """How the numbers of a row lie in memory: 16 bits are a bfloat16."""
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint16: ir.IntType(16)}[pointer.dtype]


def copier(name: str, to_padded: bool) -> Any:
    """target = scale · source for matrices (rows, D), one of which is padded to a `width` of whole vectors.

    The other one may be stored in bfloat16, where the processor has it.
    """

    def body_for(source_kind, target_kind):
        def body(e, source, source_stride, target, target_stride, rows, D, width, scale):
            builder = e.builder
            scale = e.broadcast(scale)
            with e.loop(rows, [source, target]) as outer:
                x, y = outer
                with e.loop(builder.sdiv(width, INT(e.lanes)), [x, y, D]) as inner:
                    x, y, columns = inner
                    inside = e.first(columns)
                    if to_padded:
                        e.store(builder.fmul(e.load_stored(x, inside, source_kind), scale), y)
                    else:
                        e.store_stored(builder.fmul(e.load(x), scale), y, inside, target_kind)
                    inner[:] = [e.at(x, e.lanes, source_kind), e.at(y, e.lanes, target_kind),
                                builder.sub(columns, INT(e.lanes))]  # fmt: skip
                x, y = outer
                outer[:] = [e.at(x, source_stride, source_kind), e.at(y, target_stride, target_kind)]

        return body

    @intrinsic
    def copy(typingctx, source, source_stride, target, target_stride, rows, D, width, scale):
        """target = scale · source, row by row; to a padded target (pack) or from a padded source (unpack)."""
        i, kinds = types.intp, (_stored(source), _stored(target))
        full_name = f"attention.{name}.{kinds[0]}.{kinds[1]}"
        emit = emitted(full_name, body_for(*kinds), emitter=TileEmitter, like=2 if to_padded else 0)
        return types.void(source, i, target, i, i, i, i, scale), emit

    return copy


pack = copier("pack", to_padded=True)
unpack = copier("unpack", to_padded=False)


@intrinsic
def row_products(typingctx, x, x_stride, y, y_stride, rows, D, result):
    """result[i] = Σ_d x[i, d]·y[i, d]."""
    x_kind, y_kind = _stored(x), _stored(y)

    def body(e, x, x_stride, y, y_stride, rows, D, result):
        builder = e.builder
        vectors = builder.sdiv(builder.add(D, INT(e.lanes - 1)), INT(e.lanes))
        with e.loop(rows, [x, y, result]) as outer:
            x, y, result = outer
            with e.loop(vectors, [x, y, D, e.zero()]) as inner:
                a, b, columns, total = inner
                inside = e.first(columns)
                total = e.fma(e.load_stored(a, inside, x_kind), e.load_stored(b, inside, y_kind), total)
                columns = builder.sub(columns, INT(e.lanes))
                inner[:] = [e.at(a, e.lanes, x_kind), e.at(b, e.lanes, y_kind), columns, total]
            builder.store(e.sum(inner[3]), result)
            outer[:] = [e.at(x, x_stride, x_kind), e.at(y, y_stride, y_kind), e.at(result, 1)]

    i = types.intp
    emit = emitted(f"attention.row_products.{x_kind}.{y_kind}", body, emitter=TileEmitter, like=6)
    return types.void(x, i, y, i, i, i, result), emit
