"""Every operator in the registry, proved on its own samples.

There is no list of operators here to forget one on: the suite walks the registry, and an operator cannot be declared
without samples.
"""

import zlib

import numpy as np
import pytest

import autograd
from autograd import Tensor
from autograd.graph import Variable

OPERATORS = sorted(autograd.registry.values(), key=lambda op: op.name)


def samples(op, *, errors):
    rng = np.random.default_rng(zlib.crc32(op.name.encode()))
    chosen = [sample for sample in op.samples(rng) if (sample.error is not None) == errors]
    return [pytest.param(op, sample, id=f"{op.name}-{i}") for i, sample in enumerate(chosen)]


VALID = [case for op in OPERATORS for case in samples(op, errors=False)]
ERRORS = [case for op in OPERATORS for case in samples(op, errors=True)]


def as_tensors(op, sample, dtype=np.float64):
    """The sample's inputs as tensors, those that have a derivative requiring it."""

    def convert(index, x):
        if not isinstance(x, np.ndarray | np.generic):
            return x
        wanted = x.dtype.kind == "f" and (op.variadic or index in op.differentiable)
        return Tensor(x, requires_grad=wanted, dtype=dtype if x.dtype.kind == "f" else None)

    return [convert(i, x) for i, x in enumerate(sample.inputs)]


def wants_grad(inputs):
    return any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def call(op, sample):
    return lambda *inputs: op(*inputs, **sample.params)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_an_operator_explains_itself(op):
    assert "=" in op.doc.splitlines()[0], "the first line of the block is the formula"
    assert not op.differentiable or "\nd" in op.doc or "∂" in op.doc, "the block states the derivative"
    assert any(True for _ in op.samples(np.random.default_rng(0)))
    if op.is_fused:
        assert op.plain is not None


@pytest.mark.parametrize("op, sample", VALID)
def test_first_derivatives_are_those_of_the_definition(op, sample):
    inputs = as_tensors(op, sample)
    if not wants_grad(inputs):
        pytest.fail("a valid sample must have something to differentiate")
    assert autograd.gradcheck(call(op, sample), inputs)


@pytest.mark.parametrize("op, sample", VALID)
def test_second_derivatives_are_those_of_the_first(op, sample):
    inputs = as_tensors(op, sample)
    out = op(*inputs, **sample.params)
    if out.array.size * sum(x.array.size for x in inputs if isinstance(x, Tensor)) > 4000:
        pytest.skip("too large for differences of differences; smaller samples of the operator run")
    assert autograd.gradgradcheck(call(op, sample), inputs)


@pytest.mark.parametrize("op, sample", [case for case in VALID if case.values[0].is_fused])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_fused_operator_computes_its_definition(op, sample, dtype):
    tolerance = 1e-12 if dtype == np.float64 else 2e-5
    fast = as_tensors(op, sample, dtype)
    exact = as_tensors(op, sample, np.float64)
    out = op(*fast, **sample.params)
    with autograd.plain():
        expected = op(*exact, **sample.params)
    assert out.dtype == dtype and out.shape == expected.shape
    dout = np.random.default_rng(1).normal(size=out.shape)
    close(out.array, expected.array, tolerance)
    out.backward(Tensor(dout, dtype=dtype))
    expected.backward(Tensor(dout))
    for x, y in zip(fast, exact, strict=True):
        if isinstance(x, Tensor) and x.requires_grad:
            assert x.grad.dtype == dtype
            close(x.grad.array, y.grad.array, tolerance)


def close(actual, expected, tolerance):
    """Equal up to `tolerance` of the result's scale; NaN and infinity in the same places."""
    if expected.size:
        finite = np.abs(expected[np.isfinite(expected)])
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * max(finite.max(initial=0), 1e-3))


@pytest.mark.parametrize("op, sample", VALID)
def test_on_arrays_an_operator_only_computes(op, sample):
    arrays = [x.array if isinstance(x, Variable) else x for x in as_tensors(op, sample)]
    before = [x.copy() if isinstance(x, np.ndarray) else x for x in arrays]
    for x in arrays:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False  # an operator that wrote to an input would raise
    out = op(*arrays, **sample.params)
    assert not isinstance(out, Variable)
    np.testing.assert_array_equal(out, op(*as_tensors(op, sample), **sample.params).array)
    for x, y in zip(arrays, before, strict=True):
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("op, sample", VALID)
def test_the_backward_pass_is_linear_and_writes_to_nothing_it_was_given(op, sample):
    rng = np.random.default_rng(2)
    inputs = as_tensors(op, sample)
    out = op(*inputs, **sample.params)
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    u, v = rng.normal(size=out.shape), rng.normal(size=out.shape)
    kept = u.copy()
    du = autograd.grad(out, wanted, Tensor(u), retain_graph=True)
    dv = autograd.grad(out, wanted, Tensor(v), retain_graph=True)
    dw = autograd.grad(out, wanted, Tensor(2 * u - 3 * v))
    np.testing.assert_array_equal(u, kept)
    for a, b, c in zip(du, dv, dw, strict=True):
        scale = max(np.abs(a.array).max(initial=0), np.abs(b.array).max(initial=0), 1e-30)
        np.testing.assert_allclose(2 * a.array - 3 * b.array, c.array, atol=2e-14 * 10 * scale)


@pytest.mark.parametrize("op, sample", ERRORS)
def test_bad_input_is_refused_with_a_reason(op, sample):
    with pytest.raises(sample.error, match=sample.match):
        op(*as_tensors(op, sample), **sample.params)
