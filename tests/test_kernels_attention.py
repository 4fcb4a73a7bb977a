"""Attention against its definition in higher precision: shapes, strides, masks, dropout, threads, processors.

In bfloat16, too: there the operands are rounded first, so that what is left to be wrong is what is rounded on the way.
"""

import contextlib
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, check, dtypes, narrow, packed, precise, same_bits_for_any_threads, seeds

from autograd.kernels import attention as attention_module
from autograd.kernels import bfloat16
from autograd.kernels.arrays import workspace
from autograd.kernels.attention import FEW, attention, attention_backward
from autograd.kernels.bfloat16 import amx_available, matmul_precision, round_to_bfloat16
from autograd.kernels.matmul import allow_tiles
from autograd.kernels.random import uniform

BFLOAT16 = 1.01 * 2**-8  # what rounding may move a number by; sums before it have been rounded themselves
# what attention has kernels for, and those whose results have all digits
WHOLE = [*((dtype, "vectors") for dtype in DTYPES), *[(DTYPES[0], "parts")][: amx_available()]]
KINDS = [*WHOLE, *[(DTYPES[0], "bfloat16")][: amx_available()]]


@contextlib.contextmanager
def on(kind):
    """Let attention run on vectors, on tiles in parts or on tiles in bfloat16, however little there is to do."""
    usual = attention_module.TILED
    attention_module.TILED = (1, 1) if kind == "parts" else usual
    allow_tiles(kind != "vectors")
    with matmul_precision("bfloat16" if kind == "bfloat16" else "float32"):
        yield
    attention_module.TILED = usual
    allow_tiles(True)


def exact(dout, q, k, v, scale, causal, p, seed, unit=0):
    """(out, lse, dq, dk, dv) by the textbook: the whole matrix of weights, in higher precision.

    With a `unit` of rounding, how far each may be off instead, where weights and gradients of scores are rounded to it
    before they are multiplied. A weight's error moves out, and out moves δ = dout·out.
    """
    (B, H, Tq, _), (K, Tk) = q.shape, k.shape[1:3]
    dout, q, k, v = precise(dout, q, k, v)
    group = H // K
    k_heads, v_heads = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = q @ k_heads.swapaxes(2, 3) * scale
    if causal:
        scores = np.where(np.tri(Tq, Tk, Tk - Tq, dtype=bool), scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    lse = largest + np.log(np.exp(scores - largest).sum(axis=-1, keepdims=True))
    weights = np.exp(scores - lse)
    keep = (uniform((B, H, Tq, Tk), seed) >= p) / (1 - p)
    dweights = dout @ v_heads.swapaxes(2, 3) * keep
    dscores = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True)) * scale
    if unit:
        dout, v_heads, k_heads, q = map(abs, (dout, v_heads, k_heads, q))
        weights = weights * unit
        out = (weights * keep) @ v_heads
        dscores = abs(dscores) * unit + weights / unit * (dout * out).sum(axis=-1, keepdims=True) * scale
    else:
        out = (weights * keep) @ v_heads
    dk, dv = dscores.swapaxes(2, 3) @ q, (weights * keep).swapaxes(2, 3) @ dout
    over_groups = lambda x: x.reshape(B, K, group, Tk, q.shape[3]).sum(axis=2)
    return out, lse[..., 0] / np.log(2), dscores @ k_heads, over_groups(dk), over_groups(dv)


def compare(dout, q, k, v, scale, causal, p=0.0, seed=0, unit=0, **targets):
    assert not unit or q.dtype == np.float32  # others are not rounded
    options = {"scale": scale, "causal": causal, "dropout_p": p, "seed": seed}
    out, lse = attention(q, k, v, **options, out=targets.pop("out", None))
    gradients = attention_backward(dout, q, k, v, out, lse, **options, **targets)
    expected = exact(dout, q, k, v, scale, causal, p, seed)
    rounded = exact(dout, q, k, v, scale, causal, p, seed, unit) if unit else [0.0] * 5
    # the error of a score is that of a sum of D products, and moves the weight by as much, relatively
    biggest, scale = lambda x: float(abs(x).max(initial=0)), abs(scale)
    conditioning = 16 + q.shape[3] + scale * biggest(q) * biggest(k) * q.shape[3]
    check(out, expected[0], conditioning, scale=biggest(v) / (1 - p), also=rounded[0])
    check(lse, expected[1], conditioning)
    size = biggest(dout) * biggest(v) / (1 - p) * q.shape[3] * scale
    check(gradients[0], expected[2], 4 * conditioning, scale=size * biggest(k), also=rounded[2])
    rows = q.shape[2] * (q.shape[1] // k.shape[1])
    check(gradients[1], expected[3], 4 * conditioning, scale=size * biggest(q) * rows, also=rounded[3])
    check(gradients[2], expected[4], 4 * conditioning, scale=biggest(dout) / (1 - p) * rows, also=rounded[4])
    return out, *gradients


@st.composite
def problems(draw, dtypes=dtypes, prepare=lambda array: array):
    B, K, group = draw(st.sampled_from([0, 1, 2])), draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3]))
    Tq = draw(st.sampled_from([0, 1, 2, 3, 5, 8, 31, 63, 64, 65, 130]))
    causal = draw(st.booleans())
    Tk = max(1, Tq + draw(st.sampled_from([0, 0, 0, 1, 5, 64, 100] if causal else [-40, -1, 0, 3, 64])))
    D = draw(st.sampled_from([1, 2, 5, 8, 16, 24, 32, 33, 64, 80]))
    dtype, rng = draw(dtypes), np.random.default_rng(draw(seeds))
    shapes = [(B, K * group, Tq, D), (B, K * group, Tq, D), (B, K, Tk, D), (B, K, Tk, D)]
    arrays = []
    for shape in shapes:
        layout = draw(st.sampled_from(["C", "heads last", "every other", "read-only"]))
        _batch, _heads, _steps, _width = shape
        array = prepare(rng.standard_normal(shape).astype(dtype))
        if layout == "heads last":
            array = np.ascontiguousarray(array.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        elif layout == "every other":
            array = np.repeat(array, 2, axis=3)[..., ::2]
        elif layout == "read-only":
            array.flags.writeable = False
        arrays.append(array)
    return arrays, draw(st.sampled_from([0.1, 1.0])), causal


@given(problems(), st.sampled_from([0.0, 0.0, 0.2, 0.9]), seeds)
def test_like_the_textbook(problem, p, seed):
    arrays, scale, causal = problem
    compare(*arrays, scale, causal, p, seed)


@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=str)
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (3, 1)])
def test_reads_and_writes_the_fused_projection(dtype, precision, H, K):
    B, T, D = 2, 70, 16
    rng = np.random.default_rng(0)
    rounded = round_to_bfloat16 if precision == "bfloat16" else lambda x: x
    qkv = rounded(rng.standard_normal((B, T, (H + 2 * K) * D)).astype(dtype))
    dqkv = np.full_like(qkv, np.nan)
    heads = lambda x, n: x.reshape(B, T, n, D).transpose(0, 2, 1, 3)
    parts = lambda x: [heads(part, n) for part, n in
                       zip(np.split(x, [H * D, (H + K) * D], axis=2), (H, K, K), strict=True)]
    out = np.full((B, T, H * D), np.nan, dtype)
    dout = heads(rounded(rng.standard_normal((B, T, H * D)).astype(dtype)), H)
    targets = dict(zip(("dq", "dk", "dv"), parts(dqkv), strict=True), out=heads(out, H))
    unit = BFLOAT16 if precision == "bfloat16" else 0
    with on(precision):
        results = compare(dout, *parts(qkv), D**-0.5, True, unit=unit, **targets)
    assert all(np.shares_memory(a, b) for a, b in zip(results, (out, dqkv, dqkv, dqkv), strict=True))
    assert np.isfinite(dqkv).all() and np.isfinite(out).all()


@pytest.mark.parametrize(("dtype", "precision"), WHOLE, ids=str)
def test_large_scores(dtype, precision):
    with on(precision):
        large_scores(dtype)


def large_scores(dtype):
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 1, 150, 8)).astype(dtype) for _ in range(4))
    compare(dout, 100 * q, 100 * k, v, 1.0, True)
    rising = np.linspace(-1e4, 1e4, 150).astype(dtype)[:, None] * np.ones(8, dtype) / 8
    out, lse = attention(np.ones_like(q), rising[None, None], v, scale=1.0, causal=False)
    np.testing.assert_allclose(out, np.broadcast_to(v[:, :, -1:], v.shape), rtol=1e-5)
    np.testing.assert_allclose(lse, 1e4 / np.log(2), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=str)
@pytest.mark.parametrize("T", [1, 2, 3, 40])
def test_the_first_key_has_all_the_weight_of_the_first_query(dtype, precision, T):
    """However large its score: what reaches its value is dout, to the last digit."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (round_to_bfloat16(rng.standard_normal((4, 2, T, 24))).astype(dtype) for _ in range(4))
    dout[:, :, 1:], v[...] = 0, 1
    with on(precision):
        out, lse = attention(q, k, v, scale=50.0, causal=True)
        _, _, dv = attention_backward(dout, q, k, v, out, lse, scale=50.0, causal=True)
    np.testing.assert_array_equal(dv, dout)


@pytest.mark.parametrize(("dtype", "precision"), WHOLE, ids=str)
@pytest.mark.parametrize("T", [2, 70])
def test_a_negative_scale_is_that_of_negative_queries(dtype, precision, T):
    with on(precision):
        negative_scales(dtype, T)


def negative_scales(dtype, T):
    rng = np.random.default_rng(0)
    dout, q, k, v = (rng.standard_normal((1, 2, T, 24)).astype(dtype) for _ in range(4))
    for scale in (0.0, 1.0, 300.0):
        out, lse = attention(q, k, v, scale=-scale, causal=True)
        dq, *found = attention_backward(dout, q, k, v, out, lse, scale=-scale, causal=True)
        other = attention(-q, k, v, scale=scale, causal=True)
        negative, *expected = attention_backward(dout, -q, k, v, *other, scale=scale, causal=True)
        for a, b in zip((out, lse, dq, *found), (*other, -negative, *expected), strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.isfinite(a).all()


@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=str)
@pytest.mark.parametrize("Tq", [1, 100])
def test_nan_and_infinity_reach_the_queries_that_see_them(dtype, precision, Tq):
    q, k, v = (np.random.default_rng(i).standard_normal((1, 1, 100, 8)).astype(dtype) for i in range(3))
    for bad in (np.nan, np.inf):
        k_bad = k.copy()
        k_bad[0, 0, 99] = bad
        with on(precision):
            out, lse = attention(abs(q[:, :, -Tq:]), k_bad, v, scale=1.0, causal=True)
        assert np.isnan(out[0, 0, -1]).all() and np.isfinite(out[0, 0, :-1]).all() and np.isfinite(lse[0, 0, :-1]).all()


@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("Tq", "Tk"), [(300, 300), (40, 530), (2, 70)])
def test_an_infinite_value_stays_in_its_column(dtype, precision, causal, Tq, Tk):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, T, 64)).astype(dtype) for T in (Tq, Tk, Tk))
    bad = v.copy()
    bad[:, :, 0, ::20] = np.inf
    with on(precision):
        expected, _ = attention(q, k, v, scale=0.1, causal=causal)
        out, _ = attention(q, k, bad, scale=0.1, causal=causal)
    expected[..., ::20] = np.inf
    digits = {"rtol": 1e-5, "atol": 1e-5} if precision == "parts" else {"rtol": 0}  # vectors do those again
    np.testing.assert_allclose(out, expected, **digits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_query_at_a_time_gives_what_all_give_at_once(dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, 90, 24)).astype(dtype) for heads in (4, 2, 2))
    whole, sums = attention(q, k, v, scale=0.3, causal=True)
    for t in (1, 2, 64, 90):
        last, lse = attention(q[:, :, t - 1:t], k[:, :, :t], v[:, :, :t], scale=0.3, causal=True)
        check(last, precise(whole[:, :, t - 1:t]), 64)
        check(lse, precise(sums[:, :, t - 1:t]), 64)


needs_tiles = pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
float32 = st.just(DTYPES[0])


@needs_tiles
@given(problems(float32, round_to_bfloat16), st.sampled_from([0.0, 0.0, 0.2, 0.9]), seeds)
def test_in_bfloat16_like_the_textbook(problem, p, seed):
    arrays, scale, causal = problem
    with matmul_precision("bfloat16"):
        compare(*arrays, scale, causal, p, seed, unit=BFLOAT16)


@needs_tiles
@pytest.mark.parametrize(("T", "D"), [(600, 64), (257, 80)])
def test_in_bfloat16_over_several_chunks_of_keys(T, D):
    rng = np.random.default_rng(0)
    arrays = [round_to_bfloat16(rng.standard_normal((1, heads, T, D), np.float32)) for heads in (2, 2, 1, 1)]
    with matmul_precision("bfloat16"):
        compare(*arrays, D**-0.5, True, unit=BFLOAT16)
        compare(*arrays, 2.0, True, 0.1, 3, unit=BFLOAT16)
        compare(*arrays, -2.0, True, unit=BFLOAT16)
        compare(*arrays, 0.0, True, unit=BFLOAT16)
        compare(*arrays, D**-0.5, False, unit=BFLOAT16)


@needs_tiles
@given(problems(float32), st.sampled_from([0.0, 0.0, 0.2, 0.9]), seeds)
def test_in_parts_like_the_textbook(problem, p, seed):
    arrays, scale, causal = problem
    with on("parts"):
        compare(*arrays, scale, causal, p, seed)


@needs_tiles
@pytest.mark.parametrize(("T", "D"), [(600, 64), (257, 80)])
def test_in_parts_over_several_chunks_of_keys(T, D):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, heads, T, D), np.float32) for heads in (2, 2, 1, 1)]
    with on("parts"):
        compare(*arrays, D**-0.5, True)
        compare(*arrays, 2.0, True, 0.1, 3)
        compare(*arrays, D**-0.5, False)


@needs_tiles
def test_in_parts_no_less_accurate_than_on_vectors():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 2, 600, 64), np.float32) for _ in range(4)]
    expected = exact(*arrays, 0.2, True, 0.0, 0)
    errors = {}
    for kind in ("vectors", "parts"):
        with on(kind):
            out, lse = attention(*arrays[1:], scale=0.2, causal=True)
            found = out, lse, *attention_backward(*arrays, out, lse, scale=0.2, causal=True)
        errors[kind] = [np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(found, expected, strict=True)]
    ratios = [parts / vectors for parts, vectors in zip(errors["parts"], errors["vectors"], strict=True)]
    assert max(ratios[0], *ratios[2:]) < 0.95, ratios
    assert ratios[1] < 1.3, ratios  # lse: half a unit in the last place is what storing it costs


@needs_tiles
def test_long_sequences_go_to_tiles_in_parts():
    q, k, v = (np.random.default_rng(i).standard_normal((1, 2, 512, 16), np.float32) for i in range(3))
    rooms = {}
    problems = {"long": (q, k, v), "short": (q[:, :, 1:], k, v), "narrow": [x[..., 1:] for x in (q, k, v)]}
    for name, arrays in problems.items():
        usual, _ = attention(*arrays, scale=0.2, causal=True)
        for kind in ("vectors", "parts"):
            with on(kind):
                rooms[name, kind] = (attention(*arrays, scale=0.2, causal=True)[0] == usual).all()
    expected = {("long", "parts"), ("short", "vectors"), ("narrow", "vectors")}
    assert {name for name, same in rooms.items() if same} == expected


@needs_tiles
def test_infinite_gradients_are_those_of_vectors():
    """They have no parts: vectors do the work again."""
    rng = np.random.default_rng(0)
    dout, q, k, v = (rng.standard_normal((2, 2, 70, 24), np.float32) for _ in range(4))
    out, lse = attention(q, k, v, scale=0.2, causal=True)
    for bad in (np.inf, np.nan):
        for array in (dout, q, k, v):
            before, array[0, 1, 40, 3] = array[0, 1, 40, 3], bad
            found = {}
            for kind in ("vectors", "parts"):
                with on(kind), np.errstate(invalid="ignore"):
                    found[kind] = attention_backward(dout, q, k, v, out, lse, scale=0.2, causal=True)
            for a, b in zip(found["parts"], found["vectors"], strict=True):
                np.testing.assert_array_equal(a, b)
            array[0, 1, 40, 3] = before


@needs_tiles
@given(problems(float32))
def test_operands_are_rounded_to_nearest_even(problem):
    (_, q, k, v), scale, causal = problem
    with matmul_precision("bfloat16"):
        found = attention(q, k, v, scale=scale, causal=causal)
        if q.shape[2] > FEW:
            q, k, v = map(round_to_bfloat16, (q, k, v))
        expected = attention(q, k, v, scale=scale, causal=causal)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@needs_tiles
@given(problems(float32, round_to_bfloat16), st.sampled_from([0.0, 0.2]), seeds)
def test_operands_in_bfloat16_give_the_same_numbers_rounded(problem, p, seed):
    """Half the memory, and not a bit of difference, once what is read is rounded."""
    (dout, q, k, v), scale, causal = problem
    options = {"scale": scale, "causal": causal, "dropout_p": p, "seed": seed}
    if q.shape[2] <= FEW:
        return  # in float32 the scores of a query or two are summed in another order
    with matmul_precision("bfloat16"):
        expected, expected_lse = attention(q, k, v, **options)
        out, lse = attention(*map(narrow, (q, k, v)), **options)
        np.testing.assert_array_equal(out, narrow(expected))
        np.testing.assert_array_equal(lse, expected_lse)
        if attention_module._shape(q, k, v, causal)[-1] > 1:  # parts of a single head
            with pytest.raises(ValueError, match="single head"):
                attention_backward(*map(narrow, (dout, q, k, v)), out, lse, **options)
            return
        expected = attention_backward(dout, q, k, v, round_to_bfloat16(expected), lse, **options)
        found = attention_backward(*map(narrow, (dout, q, k, v)), out, lse, **options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, narrow(b))
    with pytest.raises(ValueError, match="positive scale"):
        attention(*map(narrow, (q, k, v)), scale=-1.0, causal=causal)


@needs_tiles
def test_bfloat16_is_a_setting_that_leaves_no_trace():
    rng = np.random.default_rng(0)
    dout, q, k, v = (rng.standard_normal((2, 2, 70, 24)) for _ in range(4))

    def run(dtype, T=70):
        arrays = [x.astype(dtype)[:, :, -T:] for x in (dout, q, k, v)]
        out, lse = attention(*arrays[1:], scale=0.2, causal=True)
        return [out, *attention_backward(*arrays, out, lse, scale=0.2, causal=True)]

    single, double, one_query = run(np.float32), run(np.float64), run(np.float32, 1)
    with matmul_precision("bfloat16"):
        rounded = run(np.float32)
        assert all(x.dtype == np.float32 and (x != y).mean() > 0.5 for x, y in zip(rounded, single, strict=True))
        same = lambda found, expected: [x.tobytes() for x in found] == [x.tobytes() for x in expected]
        assert same(run(np.float64), double) and same(run(np.float32, 1)[:1], one_query[:1])
    assert same(run(np.float32), single)


def test_without_tiles_attention_stays_in_float32(monkeypatch):
    q, k, v = (np.random.default_rng(i).standard_normal((1, 2, 40, 8), np.float32) for i in range(3))
    expected, _ = attention(q, k, v, scale=1.0, causal=True)
    for module in (attention_module, bfloat16):
        monkeypatch.setattr(module, "amx_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="stay in float32"), matmul_precision("bfloat16"):
        np.testing.assert_array_equal(attention(q, k, v, scale=1.0, causal=True)[0], expected)


@pytest.mark.parametrize(("dtype", "precision"), WHOLE, ids=str)
@pytest.mark.parametrize("earlier", [55, 63, 64, 119, 124, 127, 128])
def test_the_diagonal_crosses_blocks_anywhere(dtype, precision, earlier):
    rng = np.random.default_rng(0)
    dout, q, k, v = (rng.standard_normal((1, 1, T, 32)).astype(dtype) for T in (64, 64, 64 + earlier, 64 + earlier))
    with on(precision):
        compare(dout, q, k, v, 0.2, True)


@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=str)
@pytest.mark.parametrize(("Tq", "Tk", "D"), [(2, 5, 3), (70, 70, 33), (20, 300, 80)])
def test_what_lies_beside_the_operands_is_neither_read_nor_written(dtype, precision, Tq, Tk, D):
    rng = np.random.default_rng(0)
    margin = slice(3, -40)  # of rows and columns before and after
    options = {"scale": 0.1, "causal": Tq == Tk}

    def amid(array, other):
        B, H, T, width = array.shape
        around = np.full((B, H, T + 43, width + 43), other, array.dtype)
        around[:, :, margin, margin] = array
        return around[:, :, margin, margin]

    dout, q = (rng.standard_normal((2, 2, Tq, D)).astype(dtype) for _ in range(2))
    k, v = (rng.standard_normal((2, 1, Tk, D)).astype(dtype) for _ in range(2))
    with on(precision):
        out, lse = attention(q, k, v, **options)
        expected = out, *attention_backward(dout, q, k, v, out, lse, **options)
        found = [amid(np.zeros_like(x), 7) for x in (q, q, k, v)]
        dout, q, k, v = (amid(x, np.nan) for x in (dout, q, k, v))
        attention(q, k, v, **options, out=found[0])
        out, lse = amid(out, np.nan), np.append(lse, np.full(64, np.nan, dtype))[:lse.size].reshape(lse.shape)
        attention_backward(dout, q, k, v, out, lse, **options, dq=found[1], dk=found[2], dv=found[3])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        a[...] = 7
        assert (a.base == 7).all()


GUARD, UNUSED = 1 << 16, 1 << 12  # numbers


@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=str)
@pytest.mark.parametrize(("Tq", "Tk", "D"), [(130, 130, 16), (64, 300, 33), (530, 520, 80)])
def test_a_workspace_is_as_large_as_what_is_laid_out_in_it(monkeypatch, dtype, precision, Tq, Tk, D):
    """Nothing is written beyond it, little is left over at its end, and what it held before does not matter."""
    rng = np.random.default_rng(0)
    dout, q = (rng.standard_normal((1, 2, Tq, D)).astype(dtype) for _ in range(2))
    k, v = (rng.standard_normal((1, 1, Tk, D)).astype(dtype) for _ in range(2))
    options = {"scale": 0.1, "causal": Tq == Tk, "dropout_p": 0.1, "seed": 1}

    def run():
        out, lse = attention(q, k, v, **options)
        return out, lse, *attention_backward(dout, q, k, v, out, lse, **options)

    sizes = []

    def take(dtype, workers, size):
        sizes.append(size)
        memory = workspace(dtype, workers, size + GUARD)
        memory[:, :size], memory[:, size:] = np.nan, 7
        return memory

    def run_tasks(*arguments):
        memory = usual(*arguments)
        assert (memory[:, sizes[-1]:] == 7).all()
        assert not np.isnan(memory[:, sizes[-1] - UNUSED:sizes[-1]]).all()
        return memory

    with on(precision):
        expected = run()
        monkeypatch.setattr(attention_module, "workspace", take)
        usual = attention_module._run
        monkeypatch.setattr(attention_module, "_run", run_tasks)
        found = run()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(sizes) == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_strides_that_break_numbers_are_refused(axis):
    shape = (2, 3, 4, 8)
    good, broken = np.ones(shape, np.float32), packed(shape[: axis + 1], shape[axis + 1 :])
    lse = np.ones(shape[:3], np.float32)
    options = {"scale": 1, "causal": True}
    for i in range(3):
        with pytest.raises(ValueError, match="strides"):
            attention(*[broken if i == j else good for j in range(3)], **options)
    with pytest.raises(ValueError, match="strides"):
        attention(good, good, good, **options, out=broken)
    for i in range(5):
        with pytest.raises(ValueError, match="strides"):
            attention_backward(*[broken if i == j else good for j in range(5)], lse, **options)
    for target in ("dq", "dk", "dv"):
        with pytest.raises(ValueError, match="strides"):
            attention_backward(*[good] * 5, lse, **options, **{target: broken})


def test_shapes_are_checked():
    array = lambda *shape: np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="H a multiple of K"):
        attention(array(1, 3, 4, 8), array(1, 2, 4, 8), array(1, 2, 4, 8), scale=1, causal=False)
    good = (1, 2, 4, 8)
    for q, k, v in (
        (good, good, (1, 2, 5, 8)), (good, (1, 2, 5, 8), good), ((2, 2, 4, 8), good, good), ((1, 2, 4, 7), good, good),
        ((1, 2, 4, 9), good, good), (good[1:], good, good), (good[1:],) * 3, ((*good, 1),) * 3,
        ((*good, 1), good, good), (good, (1, 0, 4, 8), (1, 0, 4, 8)), (good, (2, 2, 4, 8), (2, 2, 4, 8)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected q"):
            attention(array(*q), array(*k), array(*v), scale=1, causal=False)
    with pytest.raises(ValueError, match="as many keys as queries"):
        attention(array(1, 2, 5, 8), array(1, 2, 4, 8), array(1, 2, 4, 8), scale=1, causal=True)
    with pytest.raises(ValueError, match="at least one key"):
        attention(array(1, 2, 5, 8), array(1, 2, 0, 8), array(1, 2, 0, 8), scale=1, causal=False)
    read_only = array(*good)
    read_only.flags.writeable = False
    narrow = array(*good).astype(np.float16)
    for out in (array(1, 2, 8, 4).swapaxes(2, 3), array(1, 2, 4, 9), array(*good).astype(float), narrow, read_only):
        with pytest.raises(ValueError, match="expected out to be"):
            attention(*[array(*good)] * 3, scale=1, causal=True, out=out)


def test_same_bits_for_any_threads():
    rng = np.random.default_rng(0)
    for dtype, precision in KINDS:
        q, dout = (rng.standard_normal((3, 4, 100, 24)).astype(dtype) for _ in range(2))
        k, v = (rng.standard_normal((3, 2, 100, 24)).astype(dtype) for _ in range(2))
        options = {"scale": 0.2, "causal": True, "dropout_p": 0.1, "seed": 3}
        with on(precision):
            out, lse = same_bits_for_any_threads(partial(attention, **options), q, k, v)
            same_bits_for_any_threads(partial(attention_backward, **options), dout, q, k, v, out, lse)
            same_bits_for_any_threads(partial(attention, scale=0.2, causal=True), q[:, :, -1:], k, v)
            one_head = [x[:1, :1] for x in (dout, q, k, v, out, lse)]  # cut along its queries
            same_bits_for_any_threads(partial(attention, **options), *one_head[1:4])
            same_bits_for_any_threads(partial(attention_backward, **options), *one_head)


SMALLER_PROCESSOR = """
import numpy as np
from kernel_checks import DTYPES
from test_kernels_attention import compare
rng = np.random.default_rng(0)
for dtype in DTYPES[:1]:
    for Tq, Tk, D in ((70, 70, 24), (1, 30, 32)):
        q, k, v, dout = (rng.standard_normal((1, 2, T, D)).astype(dtype) for T in (Tq, Tk, Tk, Tq))
        compare(dout, q, k, v, 0.3, True)
"""


def test_on_a_processor_with_avx2_only():
    if sys.platform == "win32" or os.uname().machine not in ("x86_64", "amd64"):
        pytest.skip("AVX2 belongs to x86-64 processors")
    here = os.path.dirname(__file__)
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+popcnt",
                                "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)])}
    subprocess.run([sys.executable, "-c", SMALLER_PROCESSOR], env=environment, check=True)
