"""Modules: the tree, its names, its state."""

import copy

import numpy as np
import pytest

import autograd as ag
import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.stack = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.LayerNorm(4))
        self.scale = nn.Parameter(np.ones(4, np.float32))
        self.register_buffer("mask", ag.tensor(np.eye(4, dtype=np.float32)))
        self.register_buffer("scratch", ag.tensor(np.zeros(2, np.float32)), persistent=False)
        self.nothing = None

    def forward(self, x):
        return self.stack(self.first(x)) * self.scale @ self.mask


NAMES = ["scale", "first.weight", "first.bias", "stack.0.weight", "stack.2.weight", "stack.2.bias"]


def test_names_and_order_are_those_of_torch():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [name for name, _ in net.named_buffers()] == ["mask", "scratch"]
    assert [name for name, _ in net.named_modules()] == ["", "first", "stack", "stack.0", "stack.1", "stack.2"]
    assert [name for name, _ in net.named_children()] == ["first", "stack"]
    assert net.get_submodule("stack.2") is net.stack[2]
    assert sorted(net.state_dict()) == sorted([*NAMES, "mask"])
    with pytest.raises(AttributeError, match='Sequential has no child "7"'):
        net.get_submodule("stack.7")


def test_same_names_as_torch_itself():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")

    def build(nn):
        layer = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"a": nn.LayerNorm(3), "b": nn.Embedding(5, 2)}))
        layer.more = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Dropout(0.1), nn.GELU(), nn.SiLU(), nn.Identity()])
        return layer

    ours, theirs = build(nn), build(torch.nn)
    shapes = [[(n, tuple(p.shape)) for n, p in module.named_parameters()] for module in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    assert repr(ours.more) == repr(theirs.more).replace(", inplace=False", "")
    assert repr(ours[1]["a"]) == repr(theirs[1]["a"]).replace(", bias=True", "")


def test_shared_parameters_are_one():
    head, table = nn.Linear(3, 5, bias=False), nn.Embedding(5, 3)
    head.weight = table.weight
    both = nn.ModuleList([table, head, table])
    assert [name for name, _ in both.named_parameters()] == ["0.weight"]
    assert [name for name, _ in both.named_modules()] == ["", "0", "1"]
    assert list(both.state_dict()) == ["0.weight", "1.weight", "2.weight"]


def test_state_round_trip_copies_in_place():
    a, b = Net(), Net()
    memory = b.first.weight.array
    assert b.load_state_dict(a.state_dict()) == ([], [])
    assert b.first.weight.array is memory
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        np.testing.assert_array_equal(p.array, q.array, err_msg=name)
    with pytest.raises(ValueError):
        a.state_dict()["scale"][0] = 7


def test_state_that_does_not_fit_changes_nothing():
    net = Net()
    before = {name: value.copy() for name, value in net.state_dict().items()}
    good = {name: np.zeros_like(value) for name, value in before.items()}
    without = {name: value for name, value in good.items() if name != "first.bias"}
    for state, message in [
        (without, "missing: first.bias"),
        ({**good, "extra": np.zeros(1)}, "unexpected: extra"),
        ({**good, "scale": np.zeros(5)}, r"scale has shape \(5,\), expected \(4,\)"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            net.load_state_dict(state)
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
    assert net.load_state_dict({**without, "extra": np.zeros(1)}, strict=False) == (["first.bias"], ["extra"])
    assert not net.scale.array.any()
    with pytest.raises(RuntimeError, match="scale has shape"):
        net.load_state_dict({"scale": np.zeros(5)}, strict=False)


def test_modes_reach_everything():
    net = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.9)))
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    x = np.ones((50, 4), np.float32)
    np.testing.assert_array_equal(net(x), x)
    net.train()
    assert all(m.training for m in net.modules())
    assert (np.asarray(net(x)) == 0).mean() > 0.5


def test_dtype_conversion_keeps_parameters_and_drops_gradients():
    net = Net()
    parameters = list(net.parameters())
    net(np.ones((2, 3), np.float32)).sum().backward()
    net.double()
    assert [p is q for p, q in zip(net.parameters(), parameters, strict=True)] == [True] * len(parameters)
    assert all(p.dtype == np.float64 and p.grad is None and p.requires_grad for p in parameters)
    assert net.mask.dtype == np.float64
    net(np.ones((2, 3))).sum().backward()
    assert all(p.grad.dtype == np.float64 for p in parameters)
    assert net.float() is net.to("cpu") is net
    assert net.scale.dtype == np.float32


def test_gradients_and_freezing():
    net = Net()
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    net.stack.requires_grad_(False)
    net(x).sum().backward()
    assert net.first.weight.grad is not None
    assert net.stack[0].weight.grad is None
    net.zero_grad(set_to_none=False)
    assert not net.first.weight.grad.array.any()
    net.zero_grad()
    assert net.first.weight.grad is None


def test_hooks_see_and_replace():
    net = nn.Sequential(nn.Identity())
    seen = []
    before = net.register_forward_pre_hook(lambda module, args: seen.append(args) or (args[0] + 1,))
    after = net.register_forward_hook(lambda module, args, out: out * 10)
    assert net(1.0) == 20.0
    assert seen == [(1.0,)]
    before.remove()
    before.remove()
    assert net(1.0) == 10.0
    after.remove()
    assert net(1.0) == 1.0


def test_apply_walks_children_first():
    order = []
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU()))
    net.apply(lambda m: order.append(type(m).__name__))
    assert order == ["Identity", "ReLU", "Sequential", "Sequential"]


def test_deep_copy_is_independent():
    net = Net()
    twin = copy.deepcopy(net)
    nn.init.zeros_(twin.scale)
    assert net.scale.array.all()
    assert twin.first.bias.decay is False
    assert [n for n, _ in twin.named_parameters()] == NAMES


def test_containers():
    layers = nn.ModuleList([nn.Identity(), nn.ReLU()])
    layers.append(nn.SiLU())
    assert len(layers) == 3
    assert isinstance(layers[-1], nn.SiLU)
    assert [type(m).__name__ for m in layers[1:]] == ["ReLU", "SiLU"]
    layers[-1] = nn.GELU()
    assert isinstance(layers[2], nn.GELU)
    named = nn.ModuleDict({"one": nn.Identity()})
    named["two"] = nn.ReLU()
    assert list(named) == ["one", "two"]
    assert "two" in named
    del named["one"]
    assert list(named.keys()) == ["two"]
    with pytest.raises(KeyError):
        named["one"]
    with pytest.raises(KeyError, match="already an attribute"):
        named["forward"] = nn.ReLU()
    assert isinstance(nn.Sequential(nn.Identity(), nn.ReLU())[0:1], nn.Sequential)


def test_repr_is_a_tree():
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.ReLU())) == (
        "Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n  (1): ReLU()\n)"
    )
    assert repr(nn.Parameter([1.0])).startswith("Parameter containing:\ntensor(")


def test_forward_must_be_defined():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty has no forward"):
        Empty()(1)


@pytest.mark.parametrize(
    ("branch", "names"),
    [(lambda: nn.MLP(8), ("up", "down")), (lambda: nn.CausalSelfAttention(8, 2), ("qkv", "out"))],
    ids=["MLP", "attention"],
)
def test_a_part_that_was_replaced_or_has_a_hook_runs(branch, names):
    """A branch is one operator only where its parts are what they were built as."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    x = ag.Tensor(np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32))
    for name in names:
        ag.manual_seed(0)
        plain, hooked, replaced = branch(), branch(), branch()
        for other in (hooked, replaced):
            other.load_state_dict(plain.state_dict())
        part = getattr(plain, name)
        getattr(hooked, name).register_forward_hook(lambda module, args, out: out * 2)
        new = Doubled(part.weight.shape[1], part.weight.shape[0])
        new.load_state_dict(part.state_dict())
        setattr(replaced, name, new)
        assert not np.allclose(plain(x).array, hooked(x).array)
        np.testing.assert_array_equal(hooked(x).array, replaced(x).array)


BRANCHES = {
    "MLP": lambda: nn.MLP(8),
    "attention": lambda: nn.CausalSelfAttention(8, 2),
    "rotary attention": lambda: nn.CausalSelfAttention(8, 2, rope_theta=1e4, block_size=4),
    "SwiGLU": lambda: nn.SwiGLU(8, 12),
}


class Doubled(nn.MLP):
    def forward(self, x):
        return super().forward(x) * 2


def hooked(part):
    part.register_forward_hook(lambda module, args, out: out * 2)
    return part


@pytest.mark.parametrize(
    ("norm", "branch", "dropout", "operator"),
    [
        (nn.LayerNorm, "MLP", 0.0, "residual_mlp"),
        (nn.LayerNorm, "attention", 0.0, "residual_attention"),
        (lambda C: nn.LayerNorm(C, elementwise_affine=False), "MLP", 0.0, "residual_mlp"),
        (lambda C: nn.LayerNorm(C, bias=False, eps=0.1), "attention", 0.0, "residual_attention"),
        (nn.RMSNorm, "MLP", 0.0, "add"),
        (nn.LayerNorm, "SwiGLU", 0.0, "add"),
        (nn.LayerNorm, "rotary attention", 0.0, "add"),
        (nn.LayerNorm, "MLP", 0.3, "add"),
        (nn.LayerNorm, lambda: Doubled(8), 0.0, "add"),
        (nn.LayerNorm, lambda: hooked(nn.MLP(8)), 0.0, "add"),
        (nn.LayerNorm, lambda: nn.Linear(8, 8), 0.0, "add"),
        (lambda C: hooked(nn.LayerNorm(C)), "attention", 0.0, "add"),
    ],
)  # fmt: skip
def test_a_branch_of_a_block_is_one_operator_where_nothing_stands_in_between(norm, branch, dropout, operator):
    ag.manual_seed(0)
    norm, branch, drop = norm(8), BRANCHES.get(branch, branch)(), nn.Dropout(dropout)
    for name, parameter in [*norm.named_parameters(), *branch.named_parameters()]:
        if name.endswith("bias") or "." not in name:  # norms and biases begin at one and zero, which hides mistakes
            nn.init.normal_(parameter)
    module, x = nn.ModuleList([norm, branch]).to(np.float64), np.random.default_rng(0).normal(size=(2, 3, 8))
    found = []
    for written_out in (False, True):
        ag.manual_seed(1)
        module.zero_grad()
        stream = ag.Tensor(x, requires_grad=True)
        if written_out:
            out = stream + drop(branch(norm(stream)))
        else:
            out = nn.residual(stream, norm, branch, drop)
            assert out.node.name == operator
        (out * out).sum().backward()
        found.append([out, stream.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a.array, b.array, rtol=1e-9, atol=1e-9)
    drop.eval()
    assert (nn.residual(stream, norm, branch, drop).node.name == operator) is (dropout == 0)


def test_a_norm_of_another_width_is_refused_in_a_branch():
    x = ag.Tensor(np.ones((2, 3, 8), np.float32))
    with pytest.raises(ValueError, match="normalized_shape"):
        nn.residual(x, nn.LayerNorm(7, elementwise_affine=False), nn.MLP(8), nn.Dropout(0.0))
