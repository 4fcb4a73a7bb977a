"""What kernels are told of the processor, and what the emitters write: each operation by itself against NumPy."""

import functools
import platform

import numba
import numpy as np
import pytest
from kernel_checks import DTYPES, as_pointer
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic

from autograd.kernels import ir, jit
from autograd.kernels.bfloat16 import amx_available, round_to_bfloat16
from autograd.kernels.jit import callback, kernel

TILE = 16  # rows of a tile, and numbers in one


@pytest.fixture(autouse=True)
def nothing_is_stored(monkeypatch):
    """What these tests compile, nobody wants again."""
    monkeypatch.setattr(jit, "CACHE_FOLDER", None)


@pytest.mark.parametrize(
    ("features", "machine", "expected"),
    [
        (("avx512f", "avx2"), "x86_64", (64, 32)),
        (("avx2", "fma"), "x86_64", (32, 16)),
        (("sse2",), "x86_64", (16, 16)),
        (("neon",), "aarch64", (16, 32)),
        (("neon",), "arm64", (16, 32)),
    ],
    ids=str,
)
def test_vector_registers_by_features(monkeypatch, features, machine, expected):
    monkeypatch.setattr(ir, "features", lambda: frozenset(features))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert ir.host.__wrapped__() == expected
    assert ir.has(*features) and not ir.has(*features, "imaginary")


@pytest.mark.parametrize("told", ["+avx2,-avx512f,+fma", ""])
def test_features_are_what_numba_is_told_to_compile_for(monkeypatch, told):
    monkeypatch.setattr(numba.config, "CPU_FEATURES", told)
    assert ir.features.__wrapped__() == ({"avx2", "fma"} if told else set())
    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    assert ir.features.__wrapped__() >= ir.features()


@functools.cache
def compiled(body, operands, emitter):
    @intrinsic
    def written(typingctx, pointers, number):
        codegen = ir.emitted(f"test {id(body)}", body, emitter=emitter)

        def unpacked(context, builder, signature, args):
            flat = types.void(*signature.args[0].types, signature.args[1])
            return codegen(context, builder, flat, [*numba.core.cgutils.unpack_tuple(builder, args[0]), args[1]])

        return types.void(pointers, types.intp), unpacked

    if operands == 2:
        return kernel(lambda a, b, n: written((ir.pointer(a), ir.pointer(b)), n))
    return kernel(lambda a, b, c, n: written((ir.pointer(a), ir.pointer(b), ir.pointer(c)), n))


def run(body, *arrays, number=0, emitter=ir.Emitter):
    """Let `body(emitter, pointer, …, number)` write a function of two or three arrays, and call it; gives the last."""
    compiled(body, len(arrays), emitter)(*arrays, number)
    return arrays[-1]


@pytest.mark.parametrize(
    ("number", "size"), [(llvm.FloatType(), 4), (llvm.DoubleType(), 8), (llvm.IntType(16), 2), (ir.INT, 8)], ids=str
)
def test_vectors_fill_a_register(number, size):
    emitter = ir.Emitter(None, number)
    assert emitter.lanes * size == emitter.lanes * emitter.bytes == ir.host().vector_bytes
    assert emitter.vector == llvm.VectorType(number, emitter.lanes)


def lanes(dtype):
    return ir.host().vector_bytes // np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arithmetic_on_vectors(dtype):
    n = lanes(dtype)
    rng = np.random.default_rng(0)
    x, y = rng.integers(-9, 9, (2, n)).astype(dtype)

    def body(e, x, y, out, number):
        a, b = e.load(x), e.load(y)
        results = [e.add(a, b), e.fma(a, b, a), e.zero(), e.splat(e.at(x, 1)), e.shuffle(a, b, [*range(n, 2 * n)])]
        results += [e.shuffle(a, b, [i // 2 + n * (i % 2) for i in range(n)]), e.broadcast(e.sum(b))]
        for i, result in enumerate(results):
            e.store(result, e.at(out, i * e.lanes))

    pairs = np.stack([x, y], axis=1).ravel()[:n]
    expected = [x + y, x * y + x, 0 * x, np.full(n, x[1]), y, pairs, np.full(n, y.sum())]
    np.testing.assert_array_equal(run(body, x, y, np.full((7, n), np.nan, dtype)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_let_through_the_first_lanes(dtype):
    n = lanes(dtype)
    x = np.arange(1, n + 1).astype(dtype)

    def body(e, x, out, number):
        mask = e.first(number)
        e.store(e.load_masked(x, mask), out)
        e.store_masked(e.load(x), e.at(out, e.lanes), mask)

    @kernel
    def move_first(x, out, count):
        ir.move_first(ir.pointer(x), ir.pointer(out), count)

    for count in range(-1, n + 2):
        shown = np.arange(n) < count
        expected = [np.where(shown, x, 0), np.where(shown, x, 7)]
        np.testing.assert_array_equal(run(body, x, np.full((2, n), 7, dtype), number=count), expected)
        out = np.full(n, 7, dtype)
        move_first(x, out, count)
        np.testing.assert_array_equal(out, expected[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loops_carry_values_from_round_to_round(dtype):
    n = lanes(dtype)
    x = np.arange(5 * n).astype(dtype)

    def body(e, x, out, number):
        with e.loop(number, [x, e.zero(), out]) as carried:
            start, total, place = carried
            total = e.add(total, e.load(start))
            e.store(total, place)
            carried[:] = e.at(start, e.lanes), total, e.at(place, e.lanes)
        e.store(carried[1], carried[2])

    for count in range(5):
        sums = np.cumsum(x.reshape(5, n)[:count], axis=0)
        expected = [*sums, sums[-1] if count else 0 * x[:n], *np.full((5 - count, n), 7)]
        np.testing.assert_array_equal(run(body, x, np.full((6, n), 7, dtype), number=count), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_squares_are_transposed(dtype):
    @kernel
    def transpose(x, stride, rows, out):
        ir.transpose(ir.pointer(x), stride, rows, ir.pointer(out), stride + 1)
        return ir.lanes(ir.pointer(x))

    n = lanes(dtype)
    x = np.random.default_rng(0).standard_normal((n, n + 3)).astype(dtype)
    for rows in (1, 2, n - 1, n):
        out = np.full((n, n + 4), 7, dtype)
        assert transpose(x, n + 3, rows, out) == n
        np.testing.assert_array_equal(out[:, :n], x[np.minimum(np.arange(n), rows - 1), :n].T)
        assert (out[:, n:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 15, 16, 28, 33])
def test_any_count_of_numbers_is_moved(dtype, count):
    mover = ir.mover(count)

    @kernel
    def move(x, out):
        mover(ir.pointer(x), ir.shift(ir.pointer(out), 2))

    out = np.zeros(count + 4, dtype)
    move(np.arange(1, count + 3).astype(dtype), out)
    np.testing.assert_array_equal(out, [0, 0, *range(1, count + 1), 0, 0])


def test_pointers_counters_and_calls():
    @callback(types.void(types.int64, types.int64))
    def note(address, number):
        numba.carray(as_pointer(address), 1)[0] = number

    @kernel
    def work(addresses, like, out, counters, function, noted):
        vector = ir.stored_pointer(addresses, 1, like)
        ir.move(vector, ir.shift(ir.pointer(out), 1))
        ir.call(function, (noted, 42))
        return ir.fetch_add(ir.shift(ir.pointer(counters), 1))

    x, noted = np.arange(1, 40).astype(np.float32), np.zeros(1, np.int64)
    n = lanes(np.float32)
    out, counters = np.zeros(n + 2, np.float32), np.array([5, 6, 7])
    addresses = np.array([0, x.ctypes.data, 0])
    assert work(addresses, x, out, counters, note.address, noted.ctypes.data) == 6
    np.testing.assert_array_equal(out, [0, *x[:n], 0])
    assert list(counters) == [5, 7, 7] and noted[0] == 42


needs_tiles = pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")


def halves(x):
    """float32 → the upper halves of their bits, as the numbers of a bfloat16."""
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


@needs_tiles
def test_tiles_multiply_pairs():
    """(16, 32) @ (32, 16), the right operand with its rows in pairs."""
    rng = np.random.default_rng(0)
    a, b = (round_to_bfloat16(rng.standard_normal(shape).astype("f")) for shape in ((TILE, 32), (32, TILE)))
    left = np.zeros((TILE, 20), np.float32)
    left[:, :TILE] = halves(a).view(np.float32)
    right = np.ascontiguousarray(halves(b).reshape(TILE, 2, TILE).swapaxes(1, 2)).view(np.float32)[..., 0]

    def body(e, left, right, out, stride):
        e.configure_tiles()
        for register, row in ((0, 20), (7, TILE)):
            e.zero_tile(3)
            e.load_tile(register, left if not register else right, ir.INT(row))
        e.multiply_tiles(3, 0, 7)
        e.multiply_tiles(3, 0, 7)
        e.store_tile(3, out, stride)
        e.load_tile(5, right, ir.INT(0))
        e.store_tile(5, e.at(out, TILE * 18), ir.INT(TILE))
        e.release_tiles()

    out = run(body, left, right, np.full(TILE * 34, 7, np.float32), number=18, emitter=ir.TileEmitter)
    product, again = out[:TILE * 18].reshape(TILE, 18), out[TILE * 18:].reshape(TILE, TILE)
    np.testing.assert_allclose(product[:, :TILE], 2 * (a.astype("d") @ b), rtol=1e-5, atol=1e-5)
    assert (product[:, TILE:] == 7).all()
    np.testing.assert_array_equal(again.view(np.uint32), [right.view(np.uint32)[0]] * TILE)


@needs_tiles
def test_halves_are_rounded_and_put_in_order():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, TILE)).astype(np.float32)
    both = np.concatenate([x, y])

    def body(e, x, y, out, number):
        pair = e.round_pair(e.load(x), e.load(y))
        other = e.round_pair(e.load(y), e.load(x))
        for i, vector in enumerate([pair, e.interleave(pair), *e.unpack(pair, other)]):
            e.store(vector, e.at(out, i * e.lanes))

    found = run(body, x, y, np.zeros((4, TILE), np.float32), emitter=ir.TileEmitter).view(np.uint16)
    rounded, swapped = halves(round_to_bfloat16(both)), halves(round_to_bfloat16(np.concatenate([y, x])))
    np.testing.assert_array_equal(found[0], rounded)
    np.testing.assert_array_equal(found[1], np.stack([rounded[:TILE], rounded[TILE:]], axis=1).ravel())
    orders = [[4 * part + 8 * group + i for group in range(4) for i in range(4)] for part in range(2)]
    for row, order in zip(found[2:], orders, strict=True):
        np.testing.assert_array_equal(row, np.stack([rounded[order], swapped[order]], axis=1).ravel())
        emitter = ir.TileEmitter(None, ir.ir.FloatType())
        assert emitter.unpacked(orders.index(order)) == order


@needs_tiles
def test_halves_are_read_as_far_as_they_exist():
    source = np.arange(1, 65, dtype=np.uint16)

    def body(e, source, out, count):
        exists = e.builder.icmp_signed(">", count, ir.INT(-1))
        count = e.builder.select(exists, count, ir.INT(9))
        low = e.load_halves(source, ir.INT(3), None, count, 16)
        high = e.load_halves(source, ir.INT(7), exists, count, 16)
        e.store(e.side_by_side(low, high), out)

    for count in (-1, 0, 1, 7, 15, 16, 20):
        out = run(body, source.view(np.float32), np.zeros(TILE, np.float32), number=count, emitter=ir.TileEmitter)
        seen = np.where(np.arange(16) < count, source[7:23], 0)
        np.testing.assert_array_equal(out.view(np.uint16), [*source[3:19], *seen])
