"""What attention in float32 and in bfloat16 have in common: where heads lie, and passes over single rows.

Operands come as a table of addresses and strides (`places`), so that one compilation serves arrays of all strides; as
arrays of four axes each they would take a dozen arguments, through every layer that a parallel loop is made of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .ir import INT, emitted, shift, stored_pointer
from .jit import kernel

__all__ = ["LOG2_E", "Heads", "at", "heads", "pack", "places", "round_up", "row_products", "unpack"]

LOG2_E = 1 / np.log(2)  # scores are exponents of 2 inside the kernels: exp(s) = 2^(LOG2_E·s)


class Heads(NamedTuple):
    """A (B, H, T, D) array in memory: where it begins, and how many numbers on the next batch, head and row lie."""

    start: Any
    batch: int
    head: int
    row: int


OPERANDS = 8  # of the backward pass; forward has half of them, and names the last one again for the others


def _list_places(table, operands):
    for i in range(len(operands)):
        x = operands[i]
        table[4 * i] = x.ctypes.data
        for axis in range(3):
            table[4 * i + 1 + axis] = x.strides[axis] // x.itemsize


@functools.cache
def _compiled_list_places(dtype: np.dtype) -> Callable:
    operands = types.UniTuple(types.Array(numba.from_dtype(dtype), 4, "A", readonly=True), OPERANDS)
    return kernel(signature=types.void(types.Array(types.int64, 1, "C"), operands))(_list_places)


def places(*operands: np.ndarray) -> np.ndarray:
    """For each (B, H, T, D) array its address and three strides, in numbers. (NumPy takes 1 µs to tell an address.)"""
    dtype = operands[0].dtype
    for x in operands:
        if x.dtype != dtype:
            raise TypeError(f"attention takes arrays of one dtype, got {dtype} and {x.dtype}")
    table = np.empty(4 * OPERANDS, np.int64)
    _compiled_list_places(dtype)(table, operands + operands[-1:] * (OPERANDS - len(operands)))
    return table


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


def copier(name: str, narrow_source: bool) -> Any:
    """target = scale · source for matrices (rows, D), one of which is padded to a `width` of whole vectors."""

    def body(e, source, source_stride, target, target_stride, rows, D, width, scale):
        builder = e.builder
        scale = e.broadcast(scale)
        whole = builder.and_(D, INT(-e.lanes))
        with e.loop(rows, [source, target]) as outer:
            x, y = outer
            with e.loop(builder.sdiv(whole, INT(e.lanes)), [INT(0)]) as inner:
                (column,) = inner
                e.store(builder.fmul(e.load(e.at(x, column)), scale), e.at(y, column))
                inner[:] = [builder.add(column, INT(e.lanes))]
            with e.loop(builder.sdiv(builder.sub(width, whole), INT(e.lanes)), [whole]) as inner:
                (column,) = inner
                inside = e.first(builder.sub(D, column))
                if narrow_source:
                    e.store(builder.fmul(e.load_masked(e.at(x, column), inside), scale), e.at(y, column))
                else:
                    e.store_masked(builder.fmul(e.load(e.at(x, column)), scale), e.at(y, column), inside)
                inner[:] = [builder.add(column, INT(e.lanes))]
            outer[:] = [e.at(x, source_stride), e.at(y, target_stride)]

    @intrinsic
    def copy(typingctx, source, source_stride, target, target_stride, rows, D, width, scale):
        """target = scale · source, row by row; to a padded target (pack) or from a padded source (unpack)."""
        i = types.intp
        return types.void(source, i, target, i, i, i, i, scale), emitted(f"attention.{name}", body)

    return copy


pack = copier("pack", narrow_source=True)
unpack = copier("unpack", narrow_source=False)


@intrinsic
def row_products(typingctx, x, x_stride, y, y_stride, rows, D, result):
    """result[i] = Σ_d x[i, d]·y[i, d]."""

    def body(e, x, x_stride, y, y_stride, rows, D, result):
        builder = e.builder
        vectors, rest = builder.sdiv(D, INT(e.lanes)), e.first(builder.srem(D, INT(e.lanes)))
        with e.loop(rows, [x, y, result]) as outer:
            x, y, result = outer
            with e.loop(vectors, [x, y, e.zero()]) as inner:
                a, b, total = inner
                inner[:] = [e.at(a, e.lanes), e.at(b, e.lanes), e.fma(e.load(a), e.load(b), total)]
            a, b, total = inner
            total = e.fma(e.load_masked(a, rest), e.load_masked(b, rest), total)
            builder.store(e.sum(total), result)
            outer[:] = [e.at(x, x_stride), e.at(y, y_stride), e.at(result, 1)]

    i = types.intp
    return types.void(x, i, y, i, i, i, result), emitted("attention.row_products", body)
