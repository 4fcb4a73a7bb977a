"""Tensor's methods mean what PyTorch's mean, and NumPy's where PyTorch borrows from it.

Each expression below is run on both libraries, forward and backward, from one text: the functions take the tensors and
use only methods and operators, so there is nothing to translate.
"""

import itertools
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import autograd
import nn
from autograd import Tensor, ops
from autograd.kernels.random import uniform

EXPRESSIONS = [
    # arithmetic and broadcasting
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / (y * y + 1), lambda x, y: 1 - x,
    lambda x, y: 2 / (x * x + 1), lambda x, y: x**2, lambda x, y: x**3.0, lambda x, y: (x * x + 1) ** y,
    lambda x, y: 2**x, lambda x, y: -x, lambda x, y: abs(x), lambda x, y: x[:, None] * y, lambda x, y: x.maximum(y),
    lambda x, y: x.minimum(y),
    lambda x, y: x.clip(-0.5, 0.5), lambda x, y: x.clamp(min=-0.3), lambda x, y: x.clamp(max=0.3),
    # elementwise
    lambda x, y: x.exp(), lambda x, y: (x * x + 0.1).log(), lambda x, y: (x * x + 0.1).sqrt(), lambda x, y: x.tanh(),
    lambda x, y: x.sigmoid(), lambda x, y: x.erf(), lambda x, y: x.sin(), lambda x, y: x.cos(), lambda x, y: x.relu(),
    lambda x, y: (x * x).log1p(), lambda x, y: x.expm1(), lambda x, y: (x * x + 1).rsqrt(), lambda x, y: x.square(),
    lambda x, y: (x * x + 1).reciprocal(),
    # reductions
    lambda x, y: x.sum(), lambda x, y: x.sum(0), lambda x, y: x.sum(dim=(0, 2)),
    lambda x, y: x.sum(axis=1, keepdims=True),
    lambda x, y: x.sum(-1, keepdim=True), lambda x, y: x.mean(), lambda x, y: x.mean(dim=1), lambda x, y: x.max(),
    lambda x, y: x.min(), lambda x, y: x.max(dim=1).values, lambda x, y: x.min(1, keepdim=True)[0],
    lambda x, y: x.amax(dim=2), lambda x, y: x.amin(dim=(0, 1)), lambda x, y: x.var(), lambda x, y: x.var(dim=1),
    lambda x, y: x.var(1, unbiased=False), lambda x, y: x.std(dim=-1, keepdim=True),
    lambda x, y: x.var(dim=0, correction=0),
    lambda x, y: x.logsumexp(dim=-1), lambda x, y: x.logsumexp(1, keepdim=True), lambda x, y: x.cumsum(dim=1),
    lambda x, y: x.cumsum(-1), lambda x, y: x.prod(), lambda x, y: x.prod(dim=1), lambda x, y: x.norm(),
    lambda x, y: x % 0.7, lambda x, y: x % (y * y + 0.3), lambda x, y: x.norm(3, dim=1), lambda x, y: x.norm(p=1),
    lambda x, y: x.norm(dim=-1, keepdim=True), lambda x, y: x.norm(float("inf"), 0),
    lambda x, y: (x * 0).std(dim=1), lambda x, y: (x * 0).norm(dim=0),
    lambda x, y: x.softmax(dim=-1), lambda x, y: x.log_softmax(dim=1),
    # shape
    lambda x, y: x.reshape(6, 4), lambda x, y: x.reshape(-1), lambda x, y: x.reshape((4, -1)),
    lambda x, y: x.view(2, 12),
    lambda x, y: x.view(-1, 4), lambda x, y: x.flatten(), lambda x, y: x.flatten(1), lambda x, y: x.flatten(0, 1),
    lambda x, y: x.unflatten(2, (2, 2)), lambda x, y: x.transpose(0, 2), lambda x, y: x.transpose(-2, -1),
    lambda x, y: x.swapaxes(0, 1), lambda x, y: x.permute(2, 0, 1), lambda x, y: x.permute((1, 2, 0)),
    lambda x, y: y.t(),
    lambda x, y: y.T, lambda x, y: x.mT, lambda x, y: x.unsqueeze(1), lambda x, y: x.unsqueeze(-1).squeeze(-1),
    lambda x, y: x[:1].squeeze(), lambda x, y: x[:1].squeeze(1), lambda x, y: x[:, :1].expand(2, 5, 4),
    lambda x, y: x[:, :1].expand(-1, 5, -1), lambda x, y: y.expand(2, 3, 4), lambda x, y: y.expand_as(x),
    lambda x, y: x.flip(0), lambda x, y: x.flip((0, 2)), lambda x, y: x.transpose(1, 2).contiguous().view(2, -1),
    lambda x, y: x.chunk(2, dim=-1)[1], lambda x, y: x.chunk(2, dim=1)[0], lambda x, y: x.split(2, dim=1)[1],
    lambda x, y: x.split([1, 3], dim=2)[1], lambda x, y: x.unbind(1)[2], lambda x, y: x.tril(), lambda x, y: x.triu(1),
    lambda x, y: x.tril(-1), lambda x, y: x.chunk(3, dim=1)[2],
    # indexing
    lambda x, y: x[0], lambda x, y: x[-1, 1], lambda x, y: x[:, 1:, ::2], lambda x, y: x[..., 0], lambda x, y: x[None],
    lambda x, y: x[[0, 1, 1]], lambda x, y: x[:, [0, 2, 2], 1], lambda x, y: x[x > 0],
    lambda x, y: x[y.argmax(dim=1)[:2] * 0],
    lambda x, y: x.masked_fill(y > 0, -1.5), lambda x, y: x.masked_fill(y == 0, float("-inf")).softmax(dim=-1),
    lambda x, y: x.where(y > 0, y), lambda x, y: x.gather(2, x.argmax(dim=2, keepdim=True)),
    lambda x, y: x.take((y > 9).long()),
    lambda x, y: x.gather(1, (x > 0).long()), lambda x, y: x.index_select(1, (y > 9).long()[0]),
    # products
    lambda x, y: x @ y.T, lambda x, y: x @ x.transpose(-2, -1), lambda x, y: x @ y[0], lambda x, y: y[0] @ y[1],
    lambda x, y: y[:, 0] @ y, lambda x, y: x.matmul(y.T),
    lambda x, y: x.topk(2).values, lambda x, y: x.topk(2, dim=1, largest=False)[0], lambda x, y: y.repeat(2, 3),
    lambda x, y: y.repeat(2, 1, 1), lambda x, y: x.repeat_interleave(2, dim=1), lambda x, y: y.repeat_interleave(2),
    lambda x, y: x[:, :0].prod(dim=1) * 2,
    # copies and dtypes
    lambda x, y: (x > 0).long().clamp(min=0.5) * x.float(), lambda x, y: (x > 0).long().clamp(max=0.5) * x.float(),
    lambda x, y: x.clone() * 2, lambda x, y: x.float() * 2, lambda x, y: x.detach() * x,
]  # fmt: skip


@pytest.mark.parametrize("f", EXPRESSIONS)
def test_methods_mean_what_pytorch_s_mean(f):
    torch = pytest.importorskip("torch", reason="the oracle is in the `bench` extra")
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 4))
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, expected = f(*ours), f(*theirs)
    assert out.shape == tuple(expected.shape)
    assert str(out.dtype) == str(expected.dtype).removeprefix("torch.")
    np.testing.assert_allclose(out.array, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    dout = rng.normal(size=out.shape)
    out.backward(Tensor(dout))
    expected.backward(torch.tensor(dout, dtype=expected.dtype))
    for x, y in zip(ours, theirs, strict=True):
        if y.grad is not None:
            rtol = 1e-6 if out.dtype == np.float32 else 1e-10
            np.testing.assert_allclose(x.grad.array, y.grad.numpy(), rtol=rtol, atol=1e-10)


SHAPES = [(), (1,), (3,), (2, 3), (3, 2), (0,), (0, 3), (2, 0), (1, 1), (4, 2, 3)]
DTYPES = ["float32", "float64", "int64", "int32", "bool"]
WHEREVER_PYTORCH_DOES = [
    # reductions: empty, 0-d, negative and several axes, with the dtype that PyTorch gives
    lambda x: x.sum(), lambda x: x.sum(-1), lambda x: x.sum((0, -1)), lambda x: x.prod(), lambda x: x.prod(0),
    lambda x: x.cumsum(0), lambda x: x.cumsum(1), lambda x: x.any(), lambda x: x.any(-1, keepdim=True),
    lambda x: x.all(0), lambda x: x.all([0, -1]), lambda x: x.logsumexp(0), lambda x: x.logsumexp(-1, keepdim=True),
    lambda x: x.amax(0), lambda x: x.max(0), lambda x: x.min(-1, keepdim=True), lambda x: x.argmax(-1),
    lambda x: x.argmin(0, keepdim=True), lambda x: x.mean(0), lambda x: x.var(0), lambda x: x.var(False),
    lambda x: x.std(True), lambda x: x.std(0, False), lambda x: x.std((0, 1), keepdim=True),
    lambda x: x.norm(), lambda x: x.norm(1), lambda x: x.norm(p=3, dim=0), lambda x: x.norm(float("inf"), -1, True),
    lambda x: x.norm(-float("inf"), 0), lambda x: x.norm(0, 0), lambda x: x.norm("fro"), lambda x: x.norm(dim=-1),
    # order
    lambda x: x.sort(), lambda x: x.sort(0, descending=True), lambda x: x.argsort(-1), lambda x: x.flatten().topk(1),
    lambda x: x.sort(descending=True, dim=-1),
    # shape
    lambda x: x.flatten(), lambda x: x.flatten(1), lambda x: x.flatten(0, 0),
    lambda x: x.unflatten(-1, (-1, 1)), lambda x: x.unbind(), lambda x: x.unbind(-1), lambda x: x.chunk(2),
    lambda x: x.repeat_interleave(2), lambda x: x.repeat_interleave(2, 0), lambda x: x.repeat_interleave(2, -1),
    lambda x: x.squeeze(0), lambda x: x.tril(), lambda x: x.triu(1), lambda x: x.t(),
    # element by element
    lambda x: x.logical_not(), lambda x: x.clip(-0.5, 0.5), lambda x: x.clip(min=0.5), lambda x: x.clip(0, 1),
    lambda x: x.masked_fill(x == x, 1.5), lambda x: x.masked_fill(x == 0, -1), lambda x: x // 2,
    lambda x: 2.5 // (x + 9), lambda x: x % 2, lambda x: x % -0.75, lambda x: x % float("inf"),
    lambda x: x % (x.float() + 9),
    lambda x: (x.double() + 9) // (x + 9), lambda x: ~(x > 0), lambda x: (x > 0) & True, lambda x: False ^ (x > 0),
    lambda x: 5 | x.long(), lambda x: x * np.sqrt(64), lambda x: np.float64(0.5) + x,
    lambda x: x.float() / np.int64(2), lambda x: x.ceil(),
]  # fmt: skip
TIES_HAVE_NO_RULE = {"topk", "sort", "argsort", "max", "min", "argmax", "argmin"}


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of variances of nothing; NumPy's, where infinities meet
@pytest.mark.parametrize("f", WHEREVER_PYTORCH_DOES)
def test_whatever_dtype_and_shape_pytorch_takes_is_taken_alike(f):
    torch = pytest.importorskip("torch", reason="the oracle is in the `bench` extra")
    rng = np.random.default_rng(0)
    compared = 0
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        # Whole and half numbers between -2 and 2, so that zeros, ones and rows of equal numbers are among them.
        array = np.asarray(rng.integers(-4, 5, shape) / (2 if "float" in dtype else 1)).astype(dtype)
        if TIES_HAVE_NO_RULE.intersection(f.__code__.co_names):
            array = np.asarray(rng.permutation(array.size).reshape(shape)).astype(dtype)
            if dtype == "bool" and array.size > 1:
                continue
        ours, theirs = Tensor(array), torch.tensor(array)
        if "float" in dtype:
            ours.requires_grad, theirs.requires_grad = True, True
        try:
            expected = f(theirs)
        except (RuntimeError, IndexError, NotImplementedError, TypeError):
            continue  # PyTorch refuses it, so there is nothing to compare: `compared` sees that this is not the rule
        out = f(ours)
        pairs = list(zip(out, expected, strict=True)) if isinstance(expected, tuple) else [(out, expected)]
        for result, wanted in pairs:
            assert result.shape == tuple(wanted.shape)
            assert str(result.dtype) == str(wanted.dtype).removeprefix("torch.")
            np.testing.assert_allclose(result.array, wanted.detach().numpy(), rtol=1e-6, atol=1e-6)
            if result.requires_grad:
                dout = rng.normal(size=result.shape)
                (result * Tensor(dout)).sum().backward(retain_graph=True)
                (wanted * torch.tensor(dout)).sum().backward(retain_graph=True)
        if ours.grad is not None:
            np.testing.assert_allclose(ours.grad.array, theirs.grad.numpy(), rtol=1e-5, atol=1e-5)
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("dtypes", [*itertools.product(DTYPES, DTYPES)], ids=str)
@pytest.mark.parametrize("join", ["cat", "stack"])
def test_joined_tensors_promote_as_in_pytorch(join, dtypes):
    torch = pytest.importorskip("torch", reason="the oracle is in the `bench` extra")
    arrays = [np.ones(3, dtype) for dtype in dtypes]
    theirs = getattr(torch, join)([torch.tensor(a) for a in arrays])
    assert str(getattr(autograd, join)([Tensor(a) for a in arrays]).dtype) == str(theirs.dtype).removeprefix("torch.")


def test_an_empty_vector_is_nothing_beside_other_tensors():
    x = Tensor(np.ones((2, 3)))
    assert autograd.cat([autograd.empty(0), x]).shape == (2, 3)
    assert autograd.cat([x, autograd.empty(0), x], dim=1).shape == (2, 6)
    assert autograd.cat([autograd.empty(0), autograd.empty(0)]).shape == (0,)


def test_nan_is_the_largest_of_numbers_to_sort():
    x = Tensor([1.0, float("nan"), 3.0, 3.0])
    assert x.argsort().tolist() == [0, 2, 3, 1]
    assert x.argsort(descending=True).tolist() == x.topk(4).indices.tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("index", [
    (0, slice(None), np.array([0, 2])), (np.array([0, 2]), slice(None), 1), (0, None, np.array([0, 2])),
    (np.array([0, 2]), None, 1), (Ellipsis, 1, np.array([0, 2])), (0, Ellipsis, np.array([0, 2])),
    (1, slice(1, 3), np.array([[0, 2]])), (slice(None), 1, np.array([True, False, True])), (0, np.ones((5, 3), bool)),
    (0, slice(None), [1, 1]), (True, 0), (slice(None), 0, slice(None), np.array([1, 0, 1])),
], ids=str)  # fmt: skip
def test_integers_select_before_arrays_pick(index):
    torch = pytest.importorskip("torch", reason="the oracle is in the `bench` extra")
    array = np.random.default_rng(0).normal(size=(4, 5, 3) if len(index) < 4 else (4, 5, 3, 2))
    theirs, x = torch.tensor(array, requires_grad=True), Tensor(array, requires_grad=True)
    same = tuple(torch.tensor(part) if isinstance(part, np.ndarray) else part for part in index)
    np.testing.assert_array_equal(x[index].array, theirs[same].detach().numpy())
    dout = np.random.default_rng(1).normal(size=x[index].shape)
    (x[index] * Tensor(dout)).sum().backward()
    (theirs[same] * torch.tensor(dout)).sum().backward()
    np.testing.assert_allclose(x.grad.array, theirs.grad.numpy(), rtol=1e-12)
    if not any(isinstance(part, list) for part in index):  # which of two values stays is nobody's promise
        with autograd.no_grad(), torch.no_grad():
            x[index], theirs[same] = Tensor(dout), torch.tensor(dout)
        np.testing.assert_array_equal(x.array, theirs.detach().numpy())


@given(st.data())
def test_binary_operators_broadcast_as_numpy_and_undo_it_in_the_gradient(data):
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3)).input_shapes
    a, b = (Tensor(np.random.default_rng(i).uniform(0.5, 2, s), requires_grad=True) for i, s in enumerate(shapes))
    name = data.draw(st.sampled_from(["add", "sub", "mul", "div", "pow", "maximum", "minimum"]))
    out = getattr(a, name)(b)
    assert out.shape == np.broadcast_shapes(*shapes)
    out.sum().backward()
    assert a.grad.shape == a.shape and b.grad.shape == b.shape
    wide_a, wide_b = (Tensor(np.broadcast_to(x.array, out.shape), requires_grad=True) for x in (a, b))
    getattr(wide_a, name)(wide_b).sum().backward()
    for x, wide in ((a, wide_a), (b, wide_b)):
        extra = out.ndim - x.ndim
        axes = tuple(i for i in range(out.ndim) if i < extra or x.shape[i - extra] == 1)
        np.testing.assert_allclose(x.grad.array, wide.grad.array.sum(axes).reshape(x.shape), rtol=1e-12)


@given(st.data())
def test_any_index_reads_and_scatters_as_numpy_does(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    array = np.random.default_rng(0).normal(size=shape)
    index = data.draw(st.one_of(
        hnp.basic_indices(shape, allow_newaxis=True),
        hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4)),
        hnp.arrays(bool, shape),
    ))  # fmt: skip
    x = Tensor(array, requires_grad=True)
    out = x[index]
    np.testing.assert_array_equal(out.array, array[index])
    dout = np.random.default_rng(1).normal(size=out.shape)
    out.backward(Tensor(dout))
    expected = np.zeros(shape)
    np.add.at(expected, index, dout)
    np.testing.assert_allclose(x.grad.array, expected, rtol=1e-12)


def test_powers_of_zero_have_the_derivatives_that_their_record_states():
    a, b = Tensor(np.zeros(4), requires_grad=True), Tensor(np.array([0.0, 1.0, 2.0, 0.5]), requires_grad=True)
    with np.errstate(all="ignore"):
        (a**b).sum().backward()
    np.testing.assert_array_equal(a.grad.array, [0, 1, 0, np.inf])
    np.testing.assert_array_equal(b.grad.array, [0, 0, 0, 0])


def test_functions_of_arrays_reduce_everything_and_correct_variances_unless_told_otherwise():
    x = np.random.default_rng(0).normal(size=(2, 5))
    assert ops.var(x) == pytest.approx(np.var(x, ddof=1)) and ops.std(x) == pytest.approx(np.std(x, ddof=1))
    assert all(np.shape(f(x)) == () for f in (ops.mean, ops.var, ops.std, ops.prod))


def test_dropout_keeps_what_draws_p_itself():
    u = uniform((64,), 3)
    for definition in (ops.dropout, ops.dropout.plain):
        kept = definition(np.ones(64), p=float(u[5]), seed=3) != 0
        np.testing.assert_array_equal(kept, u >= u[5])


def test_randint_and_multinomial_read_their_arguments_as_pytorch_does():
    autograd.manual_seed(0)
    assert autograd.randint(5, (2, 3)).shape == (2, 3)
    assert set(autograd.randint(3, 5, (100,)).tolist()) == {3, 4}
    weights = Tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 0.0]])
    draws = autograd.multinomial(weights, 2000, replacement=True)
    assert draws.shape == (2, 2000) and set(draws[1].tolist()) == {0}
    assert np.mean(draws.array[0] == 2) == pytest.approx(0.75, abs=0.05)
    assert sorted(autograd.multinomial(weights[:1], 2).tolist()[0]) == [1, 2]
    with pytest.raises(ValueError, match="at least 2 positive"):
        autograd.multinomial(weights, 2)


# -- dtypes ----------------------------------------------------------------------------------------------------------


def test_python_floats_are_float32_and_arrays_keep_their_dtype():
    assert Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64
    assert Tensor([True]).dtype == np.bool_
    assert Tensor(np.array([1.0])).dtype == np.float64
    assert Tensor([1, 2], dtype=np.float64).dtype == np.float64
    with pytest.raises(TypeError, match="expected numbers"):
        Tensor(["a"])


@pytest.mark.parametrize("a", ["bool", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("b", ["bool", "int32", "int64", "float32", "float64", 2, 2.5], ids=str)
@pytest.mark.parametrize("f", [operator.add, operator.mul, operator.truediv])
def test_mixed_dtypes_promote_as_in_pytorch(a, b, f):
    torch = pytest.importorskip("torch", reason="the oracle is in the `bench` extra")
    ours = f(Tensor(np.ones(2, a)), Tensor(np.ones(2, b)) if isinstance(b, str) else b)
    other = torch.ones(2, dtype=getattr(torch, b)) if isinstance(b, str) else b
    theirs = f(torch.ones(2, dtype=getattr(torch, a)), other)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")


def test_each_input_gets_a_gradient_of_its_own_dtype():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    y = Tensor(np.ones(3), requires_grad=True)
    (x * y).sum().backward()
    assert (x * y).dtype == np.float64
    assert x.grad.dtype == np.float32 and y.grad.dtype == np.float64


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_tensor_copies_what_it_is_made_of():
    a = np.ones(3)
    x = Tensor(a)
    a[0] = 5
    assert x.tolist() == [1, 1, 1]


def test_data_shares_memory_with_the_tensor():
    x = Tensor([1.0, 2.0])
    x.data[0] = 5
    assert x.tolist() == [5, 2]
    assert isinstance(x.data, np.ndarray)
    np.testing.assert_array_equal(np.asarray(x), [5, 2])


def test_view_shares_memory_or_refuses():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    assert np.shares_memory(x.view(3, 2).array, x.array)
    with pytest.raises(ValueError, match=r"contiguous"):
        x.T.view(6)
    assert x.T.reshape(6).tolist() == [0, 3, 1, 4, 2, 5]


def test_numpy_and_item_refuse_what_would_mislead():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="detach"):
        x.numpy()
    with pytest.raises(ValueError, match="one element"):
        x.item()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x == x)


@pytest.mark.parametrize("call, error, words", [
    (lambda x: x + Tensor(np.ones(5)), ValueError, "broadcast"),
    (lambda x: x @ Tensor(np.ones((2, 2))), ValueError, r"\(2, 3\) and \(2, 2\)"),
    (lambda x: x.reshape(4, 2), ValueError, "6 elements"),
    (lambda x: x.sum(dim=2), IndexError, "between -2 and 1"),
    (lambda x: x[5], IndexError, "out of bounds"),
    (lambda x: x.permute(0, 0), ValueError, "each of the 2 axes"),
    (lambda x: x.split([1, 1], dim=1), ValueError, "add up to 3"),
    (lambda x: Tensor([1, 2]).mean(), TypeError, "floating"),
    (lambda x: x.expand(4, 3), ValueError, "can be repeated"),
    (lambda x: x.gather(3, Tensor([[0]])), IndexError, "between -2 and 1"),
    (lambda x: x.index_select(2, Tensor([0])), IndexError, "between -2 and 1"),
    (lambda x: x.argmax(2), IndexError, "between -2 and 1"),
    (lambda x: x.any(-3), IndexError, "between -2 and 1"),
    (lambda x: x.flatten(1, 0), ValueError, "start_dim before"),
    (lambda x: x.norm("nuc"), ValueError, 'a number or "fro"'),
    (lambda x: x.long().norm(), TypeError, "floating"),
    (lambda x: x.long().masked_fill(x == 1, float("-inf")), ValueError, r"int64 has no -inf.*float\(\)"),
    (lambda x: x.gather(0, Tensor([0])), ValueError, "index with 2 axes"),
    (lambda x: x.gather(0, Tensor([[[0]]])), ValueError, "index with 2 axes"),
])  # fmt: skip
def test_errors_say_what_was_expected(call, error, words):
    with pytest.raises(error, match=words):
        call(Tensor(np.ones((2, 3))))


def test_ndarrays_on_the_left_are_left_to_the_tensor():
    x = Tensor(np.ones(3), requires_grad=True)
    for out in (np.ones(3) + x, np.ones(3) * x, np.ones((2, 3)) @ x, np.float64(2) * x):
        assert isinstance(out, Tensor) and out.requires_grad


def test_random_numbers_repeat_with_the_seed():
    autograd.manual_seed(5)
    first = autograd.randn(3).tolist(), autograd.randint(10, size=(4,)).tolist(), autograd.next_seed()
    autograd.manual_seed(5)
    assert first == (autograd.randn(3).tolist(), autograd.randint(10, size=(4,)).tolist(), autograd.next_seed())


def test_programs_that_name_their_device_run_on_the_only_one():
    x = autograd.arange(0, 3, dtype=autograd.long, device=autograd.zeros(1, device="cpu").device)
    assert x.tolist() == [0, 1, 2] and x.to("cpu") is x and x.to(device="cpu") is x
    assert x.to("cpu", autograd.float32).dtype == x.to(Tensor([1.0])).dtype == x.to(dtype="float32").dtype == np.float32
    for call in (lambda: x.to("cuda:0"), lambda: autograd.randn(2, device="mps"), lambda: nn.Linear(1, 1).to("cuda")):
        with pytest.raises(ValueError, match='expected the device "cpu"'):
            call()


def test_membership_is_that_of_the_elements():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert 3.0 in x and 5 not in x
