"""Whole models: every derivative of a GPT, in both styles, against the definition, and by every way of
computing it."""

import sys

import numpy as np
import pytest

import autograd
import nn
from autograd import Tensor, checkpoint
from autograd.differences import differentiate
from model import GPT, GPTConfig
from model.gpt import Block

GPT2 = {"bias": True}
LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 1, "mlp_hidden": 12}
STYLES = {"gpt2": GPT2, "llama": LLAMA, "llama, untied": {**LLAMA, "tie_embeddings": False}}


def build(style, **changes):
    small = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}
    return GPTConfig(**{**small, **style, **changes})


def scrambled(module, seed=0):
    """float64 weights large enough for every part to matter."""
    rng = np.random.default_rng(seed)
    module.to(np.float64)
    for p in module.parameters():
        p.mutate()[...] = p.array * 2 + rng.normal(size=p.shape) * 0.2
    return module


def batch(config, B=2, T=5, seed=1):
    rng = np.random.default_rng(seed)
    idx = rng.integers(0, config.vocab_size, (B, T + 1))
    return idx[:, :-1].copy(), idx[:, 1:].copy()


def seeded(loss, seed=5):
    """The same dropout masks at each call."""

    def run():
        autograd.manual_seed(seed)
        return loss()

    return run


def assert_directional(loss, parameters, directions=3, rtol=1e-9):
    """⟨gradient, u⟩ for random directions u of all parameters at once, against differences along u."""
    for p in parameters:
        p.grad = None
    loss().backward()
    gradients = [p.grad.array.copy() for p in parameters]
    kept = [p.array.copy() for p in parameters]
    rng = np.random.default_rng(2)
    for _ in range(directions):
        us = [rng.normal(size=p.shape) / np.sqrt(p.array.size) for p in parameters]

        def at(t, us=us):
            for p, x, u in zip(parameters, kept, us, strict=True):
                p.mutate()[...] = x + t * u
            with autograd.no_grad():
                return np.array([loss().item()])

        numeric = differentiate(at, step=2.0**-4)
        at(0.0)
        analytic = sum(float(np.sum(g * u)) for g, u in zip(gradients, us, strict=True))
        scale = max(abs(analytic), 1e-2)
        assert numeric.bar[0] < 1e-7 * scale, "the definition itself is known well enough"
        assert abs(analytic - numeric.value[0]) <= 4 * numeric.bar[0] + rtol * scale
    return gradients


@pytest.mark.parametrize("style", STYLES)
def test_every_derivative_of_a_block_is_that_of_the_definition(style):
    config = build(STYLES[style])
    block = scrambled(Block(config))
    x = nn.Parameter(Tensor(np.random.default_rng(0).normal(size=(2, 5, config.n_embd))))
    weights = Tensor(np.random.default_rng(3).normal(size=x.shape))
    assert_directional(lambda: (block(x) * weights).sum(), [x, *block.parameters()])


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("style", STYLES)
def test_every_derivative_of_a_gpt_is_that_of_the_definition(style, dropout):
    config = build(STYLES[style], dropout=dropout)
    gpt = scrambled(GPT(config))
    idx, targets = batch(config)
    targets[0, 0] = -100
    assert_directional(seeded(lambda: gpt(idx, targets)[1]), list(gpt.parameters()))


def test_each_parameter_by_itself():
    """Not only in sum: one element of every parameter, so that errors cannot hide behind each other."""
    config = build(GPT2, n_layer=1)
    gpt = scrambled(GPT(config))
    idx, targets = batch(config)
    gpt(idx, targets)[1].backward()
    rng = np.random.default_rng(0)
    for name, p in gpt.named_parameters():
        used = np.argwhere(p.grad.array != 0)
        i = tuple(used[rng.integers(len(used))])
        kept = p.array[i]

        def at(t, p=p, i=i, kept=kept):
            p.mutate()[i] = kept + t
            with autograd.no_grad():
                return np.array([gpt(idx, targets)[1].item()])

        numeric = differentiate(at)
        at(0.0)
        assert abs(p.grad.array[i] - numeric.value[0]) <= 4 * numeric.bar[0] + 1e-9 * np.abs(p.grad.array).max(), name


def gradients_of(gpt, loss, backward=True):
    for p in gpt.parameters():
        p.grad = None
    value = loss()
    if backward:
        value.backward()
    return [p.grad.array.copy() for p in gpt.parameters()]


def assert_same(a, b, rtol=1e-12):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * max(np.abs(y).max(), 1e-6))


@pytest.mark.parametrize("style", STYLES)
def test_checkpointed_blocks_give_the_same_bits(style):
    config = build(STYLES[style], dropout=0.2)
    gpt = scrambled(GPT(config))
    idx, targets = batch(config)
    expected = gradients_of(gpt, seeded(lambda: gpt(idx, targets)[1]))
    for block in gpt.blocks.children():
        block.forward = lambda x, cache=None, forward=block.forward: checkpoint(forward, x)
    for a, b in zip(gradients_of(gpt, seeded(lambda: gpt(idx, targets)[1])), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("style", STYLES)
def test_accumulated_micro_batches_give_the_gradient_of_the_batch(style):
    config = build(STYLES[style])
    gpt = scrambled(GPT(config))
    idx, targets = batch(config, B=4)
    expected = gradients_of(gpt, lambda: gpt(idx, targets)[1])

    def accumulate():
        for part in (slice(0, 1), slice(1, 2), slice(2, 4)):
            share = len(idx[part]) / len(idx)
            (gpt(idx[part], targets[part])[1] * share).backward()

    for p in gpt.parameters():
        p.grad = None
    accumulate()
    assert_same([p.grad.array for p in gpt.parameters()], expected)


def test_a_tied_embedding_gets_the_gradient_of_both_its_uses():
    config = build(GPT2)
    tied = scrambled(GPT(config))
    apart = GPT(build(GPT2, tie_embeddings=False)).to(np.float64)
    state = {name: np.array(x) for name, x in tied.state_dict().items()}
    apart.load_state_dict({**state, "head.weight": state["token_embedding.weight"]})
    idx, targets = batch(config)
    for gpt in (tied, apart):
        gpt(idx, targets)[1].backward()
    both = apart.token_embedding.weight.grad.array + apart.head.weight.grad.array
    assert_same([tied.token_embedding.weight.grad.array], [both])


@pytest.mark.parametrize("style", STYLES)
def test_fused_loss_logits_and_plain_definitions_give_one_gradient(style):
    config = build(STYLES[style])
    gpt = scrambled(GPT(config))
    idx, targets = batch(config)
    expected = gradients_of(gpt, lambda: gpt(idx, targets)[1])
    assert_same(gradients_of(gpt, lambda: gpt(idx, targets, with_logits=True)[1]), expected)
    with autograd.plain():
        assert_same(gradients_of(gpt, lambda: gpt(idx, targets)[1]), expected, rtol=1e-10)


@pytest.mark.parametrize("style", STYLES)
def test_second_derivatives_run_through_a_whole_model(style):
    """The Hessian times a direction, against differences of the gradient."""
    config = build(STYLES[style], n_layer=1)
    gpt = scrambled(GPT(config))
    idx, targets = batch(config)
    parameters = list(gpt.parameters())
    rng = np.random.default_rng(4)
    us = [rng.normal(size=p.shape) / np.sqrt(p.array.size) for p in parameters]
    found = autograd.grad(gpt(idx, targets)[1], parameters, create_graph=True)
    slope = sum(((g * Tensor(u)).sum() for g, u in zip(found, us, strict=True)), start=Tensor(np.zeros(())))
    products = autograd.grad(slope, parameters)
    kept = [p.array.copy() for p in parameters]

    def at(t):
        for p, x, u in zip(parameters, kept, us, strict=True):
            p.mutate()[...] = x + t * u
        return np.concatenate([g.array.ravel() for g in autograd.grad(gpt(idx, targets)[1], parameters)])

    numeric = differentiate(at, step=2.0**-5)
    analytic = np.concatenate([h.array.ravel() for h in products])
    assert (np.abs(analytic - numeric.value) <= 4 * numeric.bar + 1e-8 * np.abs(analytic).max()).all()


def test_anomalies_in_a_model_name_the_operator_and_the_line_of_the_user():
    config = build(GPT2)
    gpt = GPT(config)
    idx, targets = batch(config)
    gpt.blocks[1].mlp.up.weight.mutate()[0, 0] = np.inf
    with (
        np.errstate(all="ignore"),
        autograd.detect_anomaly(),
        pytest.raises(autograd.AnomalyError, match="`residual_mlp`") as caught,
    ):
        gpt(idx, targets)  # the line of the user
    assert "forward pass" in str(caught.value) and "the line of the user" in str(caught.value)


def test_an_anomaly_on_the_way_back_names_the_line_that_made_the_operation():
    x = Tensor(np.array([0.0, 1.0]), requires_grad=True)
    with np.errstate(all="ignore"), autograd.detect_anomaly():
        y = x.sqrt() * 2  # the root of all trouble
        with pytest.raises(autograd.AnomalyError, match="`sqrt` made the first Inf in its backward pass") as caught:
            y.sum().backward()
    assert "the root of all trouble" in str(caught.value)


def test_a_weight_changed_between_forward_and_backward_is_noticed_through_any_view():
    config = build(GPT2)
    idx, targets = batch(config)
    changes = {
        "itself": lambda w: w.mutate().fill(0),
        "data": lambda w: w.data.__setitem__(0, 0.0),
        "a view of data": lambda w: w.data[1:, ::2].__setitem__((0, 0), 7.0),
        "a transposed tensor": lambda w: w.detach().T[0].fill_(3.0),
        "a reshaped tensor": lambda w: w.detach().view(-1)[3:].zero_(),
        "numpy": lambda w: w.detach().numpy().reshape(-1).__setitem__(5, 1.0),
        "load_state_dict": lambda w: None,
    }
    for how, change in changes.items():
        gpt = GPT(config)
        state = {name: np.array(x) + 1 for name, x in gpt.state_dict().items()}
        loss = gpt(idx, targets)[1]
        change(gpt.blocks[0].mlp.up.weight)
        if how == "load_state_dict":
            gpt.load_state_dict(state)
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()


def test_module_and_tensor_hooks_see_a_model_from_inside():
    config = build(GPT2)
    gpt = scrambled(GPT(config))
    idx, targets = batch(config)
    expected = gradients_of(gpt, lambda: gpt(idx, targets)[1])
    seen, arriving = [], {}

    def watch(module, arguments, out):
        seen.append(type(module).__name__)
        place = len(seen)
        out.register_hook(lambda g: arriving.update({place: g.array.copy()}))

    handles = [block.register_forward_hook(watch) for block in gpt.blocks.children()]
    assert_same(gradients_of(gpt, lambda: gpt(idx, targets)[1]), expected)
    assert seen == ["Block", "Block"] and all(np.abs(g).sum() > 0 for g in arriving.values())
    for handle in handles:
        handle.remove()
    handle = gpt.blocks[1].register_forward_hook(lambda module, arguments, out: out * 0)
    silenced = gradients_of(gpt, lambda: gpt(idx, targets)[1])
    handle.remove()
    index = [name for name, _ in gpt.named_parameters()].index("blocks.0.mlp.up.weight")
    assert not silenced[index].any() and expected[index].any()
    handle = gpt.blocks[0].register_forward_pre_hook(lambda module, arguments: (arguments[0] * 1.0, *arguments[1:]))
    assert_same(gradients_of(gpt, lambda: gpt(idx, targets)[1]), expected)
    handle.remove()
    assert_same(gradients_of(gpt, lambda: gpt(idx, targets)[1]), expected)


def test_the_work_of_a_backward_pass_grows_with_the_chain_and_no_faster():
    """Counted, not timed: the calls, of Python and of C, that a chain n times as long makes."""

    def calls(length):
        x = Tensor(np.array(1.0), requires_grad=True)
        y = x
        for _ in range(length):
            y = y * 1.0
        count = [0]

        def profile(frame, event, argument):
            count[0] += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            y.backward()
        finally:
            sys.setprofile(None)
        return count[0]

    assert calls(50_000) < 10.1 * calls(5_000)
