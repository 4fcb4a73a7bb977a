"""The tape: recording, walking, freeing, hooks, and what it refuses."""

import gc
import operator
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd
from autograd import Tensor, checkpoint, enable_grad, no_grad


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


# -- the backward pass --------------------------------------------------------------------------------------------


def test_gradients_add_up_in_leaves():
    x = leaf(3)
    (x * 2).sum().backward()
    (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad.array, [5, 5, 5])


def test_a_value_used_twice_gets_both_gradients():
    x = leaf(3)
    y = x * x
    (y + y * x).sum().backward()  # x² + x³
    np.testing.assert_allclose(x.grad.array, 2 * x.array + 3 * x.array**2)


def test_leaves_never_share_the_memory_of_their_gradients():
    a, b = leaf(3), leaf(3)
    (a + b).backward(Tensor(np.ones(3)))
    a.grad.mutate()[...] = 7
    np.testing.assert_array_equal(b.grad.array, [1, 1, 1])


def test_the_upstream_gradient_is_never_adopted():
    x, v = leaf(3), Tensor(np.ones(3))
    (x + 0).backward(v)
    (x + 0).backward(v)
    np.testing.assert_array_equal(v.array, [1, 1, 1])
    np.testing.assert_array_equal(x.grad.array, [2, 2, 2])


@given(st.data())
def test_any_graph_of_sums_and_products_is_differentiated(data):
    """Random acyclic graphs, against forward-mode derivatives carried along by hand."""
    x = Tensor(np.array(data.draw(st.floats(0.5, 1.5))), requires_grad=True)
    values, derivatives = [x, Tensor(np.array(2.0))], [1.0, 0.0]
    for _ in range(data.draw(st.integers(1, 12))):
        i, j = (data.draw(st.integers(0, len(values) - 1)) for _ in range(2))
        if data.draw(st.booleans()):
            values.append(values[i] + values[j])
            derivatives.append(derivatives[i] + derivatives[j])
        else:
            values.append((values[i] * values[j]).tanh())
            slope = 1 - values[-1].item() ** 2
            derivatives.append(slope * (derivatives[i] * values[j].item() + derivatives[j] * values[i].item()))
    if values[-1].requires_grad:
        values[-1].backward()
        assert x.grad.item() == pytest.approx(derivatives[-1], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("wrong", [(3, 2), (6,), (1, 2, 3, 1), (1, 3), ()], ids=str)
def test_a_gradient_that_its_input_cannot_have_is_refused(wrong):
    """Of the right size in another shape above all, which a reshape would let through."""
    x = leaf(2, 3)
    y = x * 1
    y.node.op = Wrong(np.ones(wrong))
    with pytest.raises(ValueError, match=r"`wrong`: expected a gradient of shape \(2, 3\) for input 0, or of one"):
        y.sum().backward()


class Wrong:
    """An operator whose rule returns this gradient."""

    name, fresh, waits = "wrong", False, False

    def __init__(self, gradient):
        self.gradient = gradient

    def differentiate(self, node, dout, needs):
        return [(0, self.gradient)]


def test_a_gradient_is_summed_over_what_was_stretched():
    x = leaf(2, 1, 3)
    y = x * 1
    y.node.op = Wrong(np.arange(5 * 2 * 4 * 3.0).reshape(5, 2, 4, 3))
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.array, y.node.op.gradient.sum((0, 2)).reshape(2, 1, 3))


def test_a_hundred_thousand_operations_need_no_deeper_stack():
    x = Tensor(np.array(1.0), requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 1e-6
    y.backward()
    assert x.grad.item() == 1
    del y  # dropping the graph must not recurse either
    gc.collect()


def test_a_graph_is_freed_as_it_is_walked():
    x = leaf(4)
    y = x.exp()
    memory = weakref.ref(y.storage.root)
    z = y.sin().sum()
    del y
    assert memory() is not None, "sin saved its input"
    z.backward()
    assert memory() is None


def test_a_freed_graph_is_refused():
    x = leaf(3)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"retain_graph=True"):
        y.backward()


def test_retain_graph_keeps_it():
    x = leaf(3)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.array, 4 * x.array)


def test_a_fused_loss_can_be_walked_twice():
    x, w, t = leaf(4, 3), leaf(5, 3, seed=1), Tensor([0, 1, 2, 3])
    loss = autograd.ops.linear_cross_entropy(x, w, t)
    first = autograd.grad(loss * 2, [x, w], retain_graph=True)
    second = autograd.grad(loss * 2, [x, w])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_a_gradient_needs_a_matching_upstream_gradient():
    x = leaf(2, 3)
    with pytest.raises(ValueError, match="single element"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(3,\)"):
        (x * 2).backward(Tensor(np.ones(3)))
    with pytest.raises(RuntimeError, match="nothing to differentiate"):
        x.detach().sum().backward()


def test_grad_touches_no_leaf_and_walks_no_more_than_it_must():
    x, y = leaf(3), leaf(3, seed=1)
    called = []
    h = y * 2
    h.register_hook(lambda g: called.append(g))
    z = (x * h).sum()
    (dx,) = autograd.grad(z, [x])
    np.testing.assert_allclose(dx.array, h.array)
    assert x.grad is None and y.grad is None and not called


def test_grad_of_an_intermediate_and_of_an_unused_input():
    x, unused = leaf(3), leaf(2)
    y = x * x
    z = (y * 3).sum()
    dy, nothing = autograd.grad(z, [y, unused], allow_unused=True, retain_graph=True)
    np.testing.assert_array_equal(dy.array, [3, 3, 3])
    assert nothing is None
    with pytest.raises(RuntimeError, match="not used"):
        autograd.grad(z, [unused])


# -- modes ----------------------------------------------------------------------------------------------------------


def test_no_grad_records_nothing_and_enable_grad_undoes_it():
    x = leaf(3)
    with no_grad():
        assert not (x * 2).requires_grad
        with enable_grad():
            assert (x * 2).requires_grad
    assert (x * 2).requires_grad

    @no_grad()
    def evaluate():
        return x * 2

    assert not evaluate().requires_grad and not evaluate().requires_grad


def test_detach_shares_memory_and_forgets_history():
    x = leaf(3)
    y = (x * 2).detach()
    assert not y.requires_grad
    np.testing.assert_array_equal(y.array, 2 * x.array)


def test_only_floating_leaves_require_grad():
    with pytest.raises(TypeError, match="floating"):
        Tensor([1, 2], requires_grad=True)
    y = leaf(3) * 2
    with pytest.raises(RuntimeError, match="detach"):
        y.requires_grad = False


# -- saved arrays ----------------------------------------------------------------------------------------------------


def write_through_data(x):
    yield
    x.data[0] = 9.0


def write_through_an_older_view(x):
    view = x.data[:2]
    yield
    view[0] = 9.0


def write_through_add(x):
    yield
    x.data += 1


def write_through_setitem(x):
    yield
    with no_grad():
        x[0] = 9.0


def write_through_a_tensor_view(x):
    yield
    with no_grad():
        x[1:].fill_(9.0)


def write_through_numpy(x):
    yield
    x.detach().numpy()[1] = 9.0


@pytest.mark.parametrize("write", [
    write_through_data, write_through_an_older_view, write_through_add, write_through_setitem,
    write_through_a_tensor_view, write_through_numpy,
], ids=lambda f: f.__name__)  # fmt: skip
def test_changing_a_saved_array_is_noticed(write):
    x = leaf(3)
    steps = write(x)
    next(steps)  # what happens before the forward pass
    y = (x * x).sum()
    assert not list(steps)  # and after it
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


@pytest.mark.parametrize("held", [False, True])
def test_what_is_saved_after_a_change_is_not_accused_of_it(held):
    x = leaf(3)
    handle = x.data if held else None
    older = (x * x).sum()
    (x.data if handle is None else handle)[0] = 9.0  # by a writer who does not say so
    newer = (x * x).sum()
    newer.backward()
    np.testing.assert_array_equal(x.grad.array, 2 * x.array)
    with pytest.raises(RuntimeError, match="changed in place"):
        older.backward()


def test_changing_an_array_that_is_not_needed_is_allowed():
    x = leaf(3)
    y = (x + 1).sum()
    x.data[0] = 9.0
    y.backward()
    np.testing.assert_array_equal(x.grad.array, [1, 1, 1])


def test_reading_data_changes_nothing():
    x = leaf(3)
    y = (x * x).sum()
    assert x.data.sum() == x.array.sum()
    y.backward()
    np.testing.assert_allclose(x.grad.array, 2 * x.array)


def test_in_place_changes_inside_a_graph_are_refused():
    x = leaf(3)
    for change in (lambda: x.add_(1), lambda: x.zero_(), lambda: x.copy_(0), lambda: x.__setitem__(0, 1)):
        with pytest.raises(RuntimeError, match="not recorded"):
            change()
    with pytest.raises(RuntimeError, match="leaf"):
        x += 1
    before = y = x * 1
    y += 1  # makes a new tensor
    assert y is not before and not y.is_leaf


@pytest.mark.parametrize("update", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_outside_of_graphs_in_place_arithmetic_writes_into_the_tensor(update):
    x = leaf(2, 3)
    view, before = x.detach()[0], x.array.copy()
    with no_grad():
        assert update(x, Tensor(np.full(3, 2.0))) is x  # as in `for p in parameters: p -= lr * p.grad`
    np.testing.assert_array_equal(x.array, update(before, 2))
    np.testing.assert_array_equal(view.array, x.array[0])
    view = x.detach()
    for wrong in (np.ones((4, 2, 3)), np.ones(2)):
        with pytest.raises(ValueError, match="expected"):
            update(view, Tensor(wrong))
    with pytest.raises(ValueError, match="int64 to keep in place"):
        update(Tensor([1, 2]), 0.5)
    y = (x * x).sum()
    with no_grad():
        update(x, 3)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_arrays_take_tensors_into_themselves_and_leave_other_arithmetic_to_them():
    x = leaf(3)
    (x * x).sum().backward()
    before = x.array.copy()
    x.data -= 0.5 * x.grad  # micrograd's step
    np.testing.assert_array_equal(x.array, 0)
    array = np.full(3, 2.0)
    with pytest.raises(RuntimeError, match="lose its history"):
        array += x
    for of_two in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul,
                   operator.floordiv, operator.mod, operator.lt, operator.le, operator.eq, operator.ne, operator.gt,
                   operator.ge):  # fmt: skip
        for left, right in ((array, Tensor(before)), (np.float64(2), Tensor([1.0, 3.0]))):
            if np.ndim(left) or of_two is not operator.matmul:
                out = of_two(left, right)
                assert isinstance(out, Tensor)
                np.testing.assert_allclose(out.array, of_two(left, right.array), rtol=1e-7)
    for of_two in (operator.and_, operator.or_, operator.xor):
        np.testing.assert_array_equal(of_two(np.array([5, 6]), Tensor([3, 3])).array, of_two(np.array([5, 6]), 3))
    assert (array + x).requires_grad
    with pytest.raises(TypeError, match=r"np.exp would lose .* x.detach\(\).numpy\(\)"):
        np.exp(x)


# -- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_see_and_replace_gradients():
    x = leaf(3)
    y = x * 2
    seen = []
    handle = y.register_hook(lambda g: seen.append(g.array.copy()))
    y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    y.sum().backward(retain_graph=True)
    np.testing.assert_array_equal(seen, [[1, 1, 1]])
    np.testing.assert_array_equal(x.grad.array, [21, 21, 21])
    handle.remove()
    y.sum().backward()
    assert len(seen) == 1


def test_a_hook_must_keep_the_shape():
    x = leaf(3)
    x.register_hook(lambda g: g.sum())
    with pytest.raises(ValueError, match="hook"):
        x.sum().backward()


def test_retain_grad_keeps_the_gradient_of_a_result():
    x = leaf(3)
    y = x * 2
    y.retain_grad()
    (y * 3).sum().backward()
    np.testing.assert_array_equal(y.grad.array, [3, 3, 3])


# -- checkpoint and anomalies ----------------------------------------------------------------------------------------


def test_checkpoint_gives_the_same_gradients_and_keeps_nothing():
    w, calls = leaf(4, 4), []

    def block(x):
        calls.append(1)
        return ((x @ w).tanh() @ w).exp()

    def gradients(run):
        x = leaf(3, 4, seed=2)
        loss = run(x).sum()
        return autograd.grad(loss, [x, w])

    expected = gradients(block)
    assert len(calls) == 1
    actual = gradients(lambda x: checkpoint(block, x))
    assert len(calls) == 3
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.array, b.array)

    x = leaf(3, 4)
    hidden = []

    def watched(x):
        h = (x @ w).tanh()
        hidden.append(weakref.ref(h.storage.root))
        return h * h

    y = checkpoint(watched, x)
    assert hidden[0]() is None
    y.sum().backward()


def test_checkpoint_repeats_randomness_and_allows_second_derivatives():
    autograd.manual_seed(3)

    def block(x):
        return autograd.ops.dropout(x * x * x, p=0.5, seed=autograd.next_seed())

    x = leaf(50)
    y = checkpoint(block, x)
    kept = y.array != 0
    after = autograd.next_seed()
    (dx,) = autograd.grad(y.sum(), [x], create_graph=True)
    np.testing.assert_allclose(dx.array, np.where(kept, 6 * x.array**2, 0))
    (ddx,) = autograd.grad(dx.sum(), [x])
    np.testing.assert_allclose(ddx.array, np.where(kept, 12 * x.array, 0))
    autograd.manual_seed(3)
    autograd.next_seed()
    assert after == autograd.next_seed(), "computing again leaves the generator where it was"


def test_checkpoint_notices_a_function_that_does_something_else_the_second_time():
    calls = []

    def fickle(x):
        calls.append(1)
        return x.exp() if len(calls) == 1 else x.exp().sin()

    y = checkpoint(fickle, leaf(3))
    with pytest.raises(RuntimeError, match="computed again"):
        y.sum().backward()


def test_anomalies_are_caught_where_they_are_made():
    x = Tensor(np.array([1.0, -1.0]), requires_grad=True)
    with np.errstate(all="ignore"), autograd.detect_anomaly():
        with pytest.raises(autograd.AnomalyError, match=r"`log` made the first NaN .*forward .*\(1,\)") as e:
            x.log()  # this line is named
        assert "this line is named" in str(e.value)
        with pytest.raises(autograd.AnomalyError, match=r"`log` made the first Inf .*\(0,\)"):
            Tensor(np.array([0.0, -1.0])).log()
        with pytest.raises(autograd.AnomalyError, match=r"`mul` was given the first NaN .*\(1,\)"):
            x * np.array([1.0, np.nan])
        y = (Tensor(np.array([0.0]), requires_grad=True)).sqrt()
        with pytest.raises(autograd.AnomalyError, match="`sqrt` made the first Inf in its backward pass"):
            y.sum().backward()


# -- the calculus ----------------------------------------------------------------------------------------------------


def test_jvp_and_vjp_are_transposes_of_one_map():
    rng = np.random.default_rng(0)
    w = Tensor(rng.normal(size=(3, 4)))

    def f(x):
        return (x @ w).softmax(dim=-1).log()

    x, u, v = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=(2, 4))
    _, forward = autograd.jvp(f, Tensor(x), Tensor(u))
    _, backward = autograd.vjp(f, Tensor(x), Tensor(v))
    assert (forward.array * v).sum() == pytest.approx((backward.array * u).sum(), rel=1e-12)


def test_the_jacobian_of_a_linear_map_is_its_matrix():
    w = np.random.default_rng(0).normal(size=(3, 4))
    j = autograd.jacobian(lambda x: Tensor(w) @ x, leaf(4))
    np.testing.assert_allclose(j.array, w)


def test_the_hessian_of_a_small_mlp_equals_the_analytic_one():
    """f(x) = vᵀ tanh(W x):  ∂²f/∂x∂xᵀ = Wᵀ diag(−2 v tanh(Wx) (1 − tanh²(Wx))) W."""
    rng = np.random.default_rng(0)
    w, v, x = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)
    h = autograd.hessian(lambda x: (Tensor(v) * (Tensor(w) @ x).tanh()).sum(), Tensor(x))
    t = np.tanh(w @ x)
    np.testing.assert_allclose(h.array, w.T @ np.diag(-2 * v * t * (1 - t * t)) @ w, atol=1e-10)
    _, product = autograd.hvp(lambda x: (Tensor(v) * (Tensor(w) @ x).tanh()).sum(), Tensor(x), Tensor(x))
    np.testing.assert_allclose(product.array, h.array @ x, atol=1e-10)


def test_third_derivatives_follow_from_the_same_rules():
    x = Tensor(np.array(0.7), requires_grad=True)
    y = x.sin() * x.exp()
    for _ in range(3):
        (y,) = autograd.grad(y, [x], create_graph=True)
    assert y.item() == pytest.approx(2 * np.exp(0.7) * (np.cos(0.7) - np.sin(0.7)), rel=1e-12)


def test_plain_swaps_every_kernel_for_its_definition():
    x = leaf(2, 5)
    fast = x.softmax(dim=-1)
    with autograd.plain():
        plain = x.softmax(dim=-1)
    assert fast.grad_fn.name == "softmax" and plain.grad_fn.name == "exp"
    np.testing.assert_allclose(fast.array, plain.array, rtol=1e-12)


def test_gradcheck_finds_wrong_rules_and_says_what_is_wrong():
    from autograd.op import Op

    def broken(factor):
        class wrong:
            """out = x²

            dx = factor · 2 x dout
            """

            def forward(x):
                return x * x

            def dx(dout, x):
                return dout * x * (2 * factor)

            def samples(rng):
                return ()

        return Op(wrong, is_fused=False)

    try:
        assert autograd.gradcheck(broken(1.0), leaf(3))
        with pytest.raises(autograd.GradcheckError, match="wrong sign"):
            autograd.gradcheck(broken(-1.0), leaf(3))
        with pytest.raises(autograd.GradcheckError, match=r"wrong factor, the rule gives 0\.5"):
            autograd.gradcheck(broken(0.5), leaf(3))
        assert not autograd.gradcheck(broken(1 + 1e-5), leaf(3), raise_exception=False)
        with pytest.raises(autograd.GradcheckError, match="kink"):
            autograd.gradcheck(lambda x: x.abs(), Tensor(np.array([0.0, 1.0]), requires_grad=True))
        with pytest.raises(TypeError, match="float64"):
            autograd.gradcheck(lambda x: x * x, Tensor([1.0], requires_grad=True))
    finally:
        autograd.registry.pop("wrong", None)
