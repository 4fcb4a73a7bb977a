"""Every operator in the registry, proved on its own samples and on samples drawn from its whole space.

There is no list of operators here to forget one on: the suite walks the registry, and an operator cannot be declared
without samples. What is checked is said in `autograd.proof`, how inputs are drawn in `autograd.testing`.
"""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import autograd
from autograd.gradcheck import examine_second, gradients_of
from autograd.proof import Case, as_tensors, prove, refuses, wanted
from autograd.references import REFERENCES
from autograd.testing import Draw, samples_of, spaces

OPERATORS = sorted(autograd.registry.values(), key=lambda op: op.name)
by_name = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)

# What applies to every operator that has a derivative; the others of `CHECKS` depend on what it is.
ALWAYS = {"value", "derivative", "second", "dot", "linear", "layout", "untouched"}


@by_name
def test_an_operator_explains_itself(op):
    assert "=" in op.doc.splitlines()[0], "the first line of the block is the formula"
    assert "\nd" in op.doc or "∂" in op.doc, "the block states the derivative"
    assert op.plain is not None if op.is_fused else op.name in REFERENCES, "there is something to compare it with"
    assert bool(op.kinks) == any(sample.subgradient is not None for sample in samples_of(op)), (
        "an operator with kinks has samples that say what its rule gives there"
    )


@by_name
def test_an_operator_is_proved_on_its_samples(op):
    checked = set()
    for sample in samples_of(op):
        assert wanted(as_tensors(op, sample.inputs)), "a valid sample must have something to differentiate"
        checked |= prove(op, sample).keys()
    expected = ALWAYS | ({"subgradient"} if op.kinks else set())
    expected |= {"complex"} if op.analytic else set()
    expected |= set() if op.name == "cast" else {"float32"}
    assert checked >= expected, "a check that was never made proves nothing"


@by_name
def test_an_operator_is_proved_on_all_of_its_space(op):
    # The same samples each time; `python -m autograd.prove` draws more.
    few, phases = max(5, settings().max_examples // 4), set(settings().phases) - {Phase.explain}

    @settings(max_examples=few, phases=phases, derandomize=True)
    @given(spaces(op))
    def drawn(sample):
        prove(op, sample)

    drawn()


@by_name
def test_a_result_that_shares_an_input_s_memory_notices_when_that_is_changed(op):
    for sample in samples_of(op):
        inputs = as_tensors(op, sample.inputs)
        out = op(*inputs, **sample.params)
        for x in inputs:
            if isinstance(x, autograd.Tensor) and np.shares_memory(x.array, out.array):
                assert out.storage is x.storage


@by_name
def test_a_graph_that_is_kept_gives_the_same_gradients_again(op):
    """Whoever got the first ones may write into them. And nothing comes of nothing."""
    for sample in samples_of(op):
        inputs = as_tensors(op, sample.inputs)
        out = op(*inputs, **sample.params)
        dout = autograd.Tensor(np.random.default_rng(0).normal(size=out.shape))
        found = []
        for _ in range(2):
            out.backward(dout, retain_graph=True)
            found.append([x.grad.array.copy() for x in wanted(inputs) if x.grad is not None])
            for x in wanted(inputs):
                if x.grad is not None:
                    x.grad.mutate().fill(np.nan)
                x.grad = None
        for first, second in zip(*found, strict=True):
            np.testing.assert_array_equal(first, second)
        out.backward(autograd.Tensor(np.zeros(out.shape)))
        assert not any(x.grad.array.any() for x in wanted(inputs) if x.grad is not None)


@by_name
def test_a_primitive_of_several_arrays_broadcasts_them(op):
    several = sum(any(isinstance(s.inputs[i], np.ndarray) for s in samples_of(op)) for i in range(len(op.inputs))) > 1
    assert op.broadcasts == (several and not op.is_fused and not op.variadic)


@by_name
def test_third_derivatives_follow_from_the_same_rules(op):
    """Second derivatives are proved everywhere; here their own derivatives, on a small sample, along directions."""
    samples = [s for s in samples_of(op) if s.subgradient is None and 0 < np.size(op(*s.inputs, **s.params)) <= 60]
    sample = min(samples, key=lambda s: sum(np.size(x) for x in s.inputs if isinstance(x, np.ndarray)))
    case = Case(op, sample)
    gradients, arguments = gradients_of(case.call, case.inputs, None, seed=0)
    examine_second(gradients, arguments, whole=0)


@by_name
def test_bad_input_is_refused_with_a_reason(op):
    for sample in samples_of(op, errors=True):
        refuses(op, sample)


@pytest.mark.parametrize("op", [op for op in OPERATORS if op.floats], ids=lambda op: op.name)
def test_integers_are_computed_in_the_default_floating_dtype(op):
    x = [np.ones((2, 3), np.int64) for _ in op.inputs]
    assert op(*x).dtype == np.float32
    np.testing.assert_allclose(op(*x), op(*(a.astype(np.float64) for a in x)), rtol=1e-6)


@by_name
def test_integers_never_become_float64(op):
    """What is no whole number any more is in the default dtype, unless float64 was asked for; and it is right."""
    if op.is_fused or op.name == "cast":
        return
    sample = next(s for s in samples_of(op) if all(np.size(x) for x in s.inputs))
    integers = [np.ones(x.shape, np.int64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
                for x in sample.inputs]  # fmt: skip
    assert op(*integers, **sample.params).dtype != np.float64
    wide = [x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.int64 else x for x in integers]
    np.testing.assert_allclose(op(*integers, **sample.params), op(*wide, **sample.params), rtol=1e-6)


@pytest.mark.parametrize("op", [op for op in OPERATORS if "keepdim" in op.params], ids=lambda op: op.name)
def test_a_reduction_reduces_everything_and_keeps_no_axis_unless_told_to(op):
    assert np.shape(op(np.ones((2, 3)))) == ()


@given(st.data())
def test_what_is_drawn_has_the_values_it_should_have_in_any_layout(data):
    draw = Draw(data.draw)
    shape = draw.shape()
    x = draw.array(shape, 1, 2)
    assert x.shape == shape and x.dtype == np.float64
    assert ((x >= 1) & (x <= 2)).all(), "nothing that stands beside a slice is seen"
