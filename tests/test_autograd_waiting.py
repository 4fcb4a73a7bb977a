"""Kernels that wait are never seen to: whoever looks, in whatever way, finds what an engine without waiting makes."""

import copy

import numpy as np
import pytest
from kernel_checks import impatient

import autograd as ag
import nn
from autograd import Tensor
from autograd.kernels import together
from autograd.kernels.together import postponed
from autograd.ops import layer_norm
from model import GPT, GPTConfig
from nn import functional as F

C = 12
calls = together._calls


def waiting():
    return calls.count > 0


def tensor(*shape, requires_grad=True, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=requires_grad, dtype=np.float32)


@pytest.fixture
def x():
    return tensor(5, C)


def normed(x):
    """A result that is still owed."""
    out = layer_norm(x, tensor(C, seed=1), None)
    assert waiting()
    return out


LOOKS = {
    "array": lambda y: y.array,
    "data": lambda y: y.data,
    "numpy": lambda y: y.detach().numpy(),
    "asarray": lambda y: np.asarray(y),
    "tolist": lambda y: y.tolist(),
    "item": lambda y: y[2, 3].item(),
    "repr": lambda y: repr(y),
    "an operator": lambda y: (y * 1).array,
    "a view": lambda y: y.T.array.T,
    "a row": lambda y: y[1].array,
    "detach": lambda y: y.detach().array,
    "compare": lambda y: (y > 0).array,
    "another dtype": lambda y: y.double().array,
    "mutate": lambda y: y.mutate().copy(),
    "a copy": lambda y: copy.deepcopy(y.detach()).array,
    "promotion": lambda y: layer_norm(y, Tensor(np.linspace(1, 2, C)), None).array,
    "promotion of an operator that does not wait": lambda y: F.linear(y, tensor(3, C).double()).array,
    "integers": lambda y: y.detach().long().array,
    "truth": lambda y: [bool(v) for row in y for v in row],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=list(LOOKS))
def test_whoever_looks_finds_numbers(x, look):
    for _ in range(100):  # what is not made yet must not be right by chance
        np.full((5, C), np.nan, np.float32)
    with postponed:
        found = look(normed(x))
        assert not waiting()
    expected = look(layer_norm(x, tensor(C, seed=1), None))
    assert not waiting(), "by itself, an operator does not wait"
    np.testing.assert_array_equal(found, expected)


def test_looking_at_the_form_makes_nothing(x):
    with postponed:
        y = normed(x)
        assert y.shape == (5, C) and y.dtype == np.float32 and y.ndim == y.dim() == 2 and y.numel() == 5 * C
        assert len(y) == 5 and y.size(1) == C and y.device == "cpu" and waiting()


def test_arrays_do_not_wait_nor_do_tensors_without_a_gradient(x):
    with postponed:
        out = layer_norm(x.array, np.ones(C, np.float32), None)
        assert not waiting() and isinstance(out, np.ndarray)
        layer_norm(x.detach(), np.ones(C, np.float32), None)
        with ag.no_grad():
            layer_norm(x, np.ones(C, np.float32), None)
        assert not waiting(), "kernels of a few numbers, as in decoding, only lose"


def test_a_module_ends_with_nothing_owed(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LayerNorm(C), nn.LayerNorm(C)

        def forward(self, x):
            y = self.first(x)
            assert waiting()
            z = self.second(y)
            assert waiting()
            return z

    module = Twice()
    z = module(x)
    assert not waiting()
    np.testing.assert_array_equal(z.array, module.second(Tensor(module.first(x).array)).array)


def gpt(**options):
    ag.manual_seed(0)
    return GPT(GPTConfig(n_layer=3, n_head=2, n_embd=16, block_size=9, vocab_size=11, **options))


def run(model, precision="float32"):
    ids = np.random.default_rng(0).integers(0, 11, (2, 10))
    for p in model.parameters():
        p.grad = None
    with ag.matmul_precision(precision):
        loss = model(ids[:, :-1].copy(), ids[:, 1:].copy())[1]
        loss.backward()
    assert not waiting()
    return [loss.array, *(p.grad.array for p in model.parameters())]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bias": True, "dropout": 0.2}, {"norm": "rmsnorm"}], ids=str)
def test_a_step_has_the_same_bits_without_waiting(options, precision, monkeypatch):
    most = []
    with monkeypatch.context() as patch:
        usual = together.run_slots
        patch.setattr(together, "run_slots", lambda first, count: (most.append(count), usual(first, count)))
        patient = run(gpt(**options), precision)
    assert options or max(most) > 15, "whole passes wait"
    with impatient(monkeypatch):
        apart = run(gpt(**options), precision)
    for a, b in zip(patient, apart, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_has_the_same_bits_however_much_may_wait(monkeypatch):
    expected = run(gpt())
    for size in (0, 1000, 10_000):
        monkeypatch.setattr(together, "PENDING", size)
        for a, b in zip(run(gpt()), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_hooks_see_numbers_and_what_they_write_is_read_later_only():
    model, seen = gpt(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append((args[0].numpy().copy(), out.array.copy())))
    ids = np.zeros((1, 4), np.int64)
    with ag.no_grad():
        model(ids)
        x = model.token_embedding(ids) + model.position_embedding(np.arange(4))
        for block, (given, made) in zip(model.blocks, seen, strict=True):
            np.testing.assert_array_equal(given, x.array)
            x = block.forward(x)
            np.testing.assert_array_equal(made, x.array)
        weight = model.blocks[0].mlp.up.weight.data  # handed out before
        model.blocks[0].register_forward_hook(lambda module, args, out: weight.fill(0) or None)
        before = [a.array.copy() for a in (model.blocks[0].forward(x),)]
        np.testing.assert_array_equal(model.blocks[0](x).array, before[0])
        assert not model.blocks[0].mlp.up.weight.array.any()


def test_a_holder_of_memory_may_write_to_it_at_any_time(x):
    weight = Tensor(np.ones(C, np.float32))
    held = weight.data
    with postponed:
        y = layer_norm(x, weight, None)
        assert not waiting(), "somebody could write to its weight"
        held[:] = 0
    assert y.array.any()
    del held
    with postponed:
        layer_norm(x, weight, None)
        assert waiting()


def test_gradient_hooks_see_numbers(x):
    seen = {}
    y = layer_norm(x, tensor(C, seed=1), None)
    z = layer_norm(y, tensor(C, seed=2), None)
    y.register_hook(lambda g: seen.update(y=g.array.copy()))
    x.register_hook(lambda g: seen.update(x=g.array.copy()))
    upstream = tensor(5, C, requires_grad=False, seed=3)
    z.backward(upstream)
    np.testing.assert_array_equal(seen["x"], x.grad.array)
    dx = ag.grad(layer_norm(layer_norm(x, tensor(C, seed=1), None), tensor(C, seed=2), None), [x], upstream)[0]
    np.testing.assert_array_equal(seen["x"], dx.array)
    alone = y.detach().requires_grad_()
    dy = ag.grad(layer_norm(alone, tensor(C, seed=2), None), [alone], upstream)[0]
    np.testing.assert_array_equal(seen["y"], dy.array)


def test_a_gradient_is_made_before_it_is_cast(x):
    weight = tensor(C, seed=1).double().requires_grad_()
    upstream = tensor(5, C, requires_grad=False, seed=3).double()
    found = ag.grad(layer_norm(x, weight, None), [x, weight], upstream)
    exact = ag.grad(layer_norm.plain(x.double(), weight, None), [x, weight], upstream)
    assert found[0].dtype == np.float32
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a.array, b.array, rtol=1e-5, atol=1e-6)


def test_what_a_gradient_hook_writes_to_has_been_read(x):
    first, second = tensor(C, seed=1), tensor(C, seed=2)
    y = layer_norm(x, first, None)
    z = layer_norm(y, second, None)
    upstream = tensor(5, C, requires_grad=False, seed=3)
    expected = ag.grad(z, [x], upstream, retain_graph=True)[0].array
    held = second.data
    y.register_hook(lambda g: held.fill(0))
    z.backward(upstream)
    np.testing.assert_array_equal(x.grad.array, expected)


def test_higher_derivatives_of_operators_that_wait(x):
    up, down, norm = tensor(7, C, seed=1), tensor(C, 7, seed=2), tensor(C, seed=3)

    def curvature(f):
        with postponed:
            slope = ag.grad((f(x, norm, None, up, down) ** 2).sum(), [x], create_graph=True)[0]
            return ag.grad((slope * slope).sum(), [x, up, norm])

    op = ag.registry["residual_mlp"]
    for a, b in zip(curvature(op), curvature(op.plain), strict=True):
        np.testing.assert_allclose(a.array, b.array, rtol=2e-3, atol=2e-3)


def test_gradients_that_meet_are_made_before_they_are_added(x):
    weight = tensor(C, seed=1)

    def both(norm):
        return (norm(x) * 2 + norm(norm(x))).sum() + (norm(x) ** 2).sum()

    loss = both(lambda x: layer_norm(x, weight, None))
    loss.backward()
    exact = ag.grad(both(lambda x: layer_norm.plain(x, weight, None)), [x, weight])
    for found, expected in zip((x.grad, weight.grad), exact, strict=True):
        np.testing.assert_allclose(found.array, expected.array, rtol=1e-4, atol=1e-4)
    twice = both(lambda x: layer_norm(x, weight, None))
    twice.backward()
    np.testing.assert_allclose(x.grad.array, 2 * exact[0].array, rtol=1e-4, atol=1e-4)


def test_what_is_computed_again_is_there_when_it_is_read(x):
    """Under `checkpoint`, rules that read arrays ask for what kernels that wait have to make first."""
    weight = tensor(C, seed=1)
    function = lambda x: F.gelu(layer_norm(layer_norm(x, weight, None), weight, None)) ** 2
    expected = ag.grad(function(x).sum(), [x, weight])
    found = ag.grad(ag.checkpoint(function, x).sum(), [x, weight])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_an_anomaly_is_found_where_it_is_made(x):
    weight = Tensor(np.full(C, np.inf, np.float32), requires_grad=True)
    with ag.detect_anomaly(), pytest.raises(ag.AnomalyError, match="layer_norm"):
        nn.Sequential(nn.Identity())(layer_norm(x, weight, None))


def test_an_anomaly_of_a_backward_pass_is_found_where_it_is_made(x):
    with ag.detect_anomaly():
        y = layer_norm(layer_norm(x, tensor(C, seed=1), None), tensor(C, seed=2), None)
        upstream = Tensor(np.full((5, C), 3e38, np.float32))
        with pytest.raises(ag.AnomalyError, match=r"`layer_norm` made the first .* in its backward"):
            y.backward(upstream)


def test_an_error_on_the_way_leaves_nothing_waiting():
    model = gpt()
    model.blocks[2].mlp.down.weight = nn.Parameter(np.zeros((3, 64), np.float32))
    with pytest.raises(ValueError, match="expected"):
        model(np.zeros((1, 4), np.int64))
    assert not (calls.count or calls.together or calls.postponed or calls.needed or calls.pending)
