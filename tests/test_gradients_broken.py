"""Who proves the proof? Operators broken on purpose, each in another way. Every one must be caught."""

import numpy as np
import pytest

import autograd
from autograd import Tensor, ops
from autograd.gradcheck import GradcheckError
from autograd.graph import Variable
from autograd.kernels import activation, embedding, norm, rotary
from autograd.kernels import attention as attention_kernels
from autograd.kernels import random as random_kernels
from autograd.op import Op, registry
from autograd.proof import prove
from autograd.testing import function_test, operator_test, samples_of


def rebuilt(name, **changes):
    """An operator declared anew with some parts of its record changed; the registry keeps the right one."""
    op = registry[name]
    flags = ("broadcasts", "floats", "view", "extras", "fresh", "kinks", "domain", "analytic")
    body = {key: getattr(op, key) for key in ("forward", "plain", "samples", "space", *flags)}
    for rule in op.rules:
        body["vjp" if rule.joint else f"d{op.inputs[rule.indices[0]]}"] = rule.function
    body["constant"] = tuple(n for i, n in enumerate(op.inputs) if i not in op.differentiable)
    try:
        return Op(type(name, (), {"__doc__": op.doc, **body, **changes}), is_fused=op.is_fused)
    finally:
        registry[name] = op


def assigned(dout, x_shape, index):
    out = np.zeros(x_shape)
    out[index] = dout.array if isinstance(dout, Tensor) else dout
    return Variable.wrap(out) if isinstance(dout, Tensor) else out


def assigned_scatter(x, *, shape, index):
    out = np.zeros(shape, x.dtype)
    out[index] = x
    return out


def in_place(dout):
    if isinstance(dout, np.ndarray) and dout.flags.writeable:
        dout *= -1
        return dout
    return -dout


def writes_to_input(x):
    out = np.sin(x)
    if x.flags.writeable:
        x[...] = out
    return out


def forgetful(dout, x):  # right, but the first derivative does not remember that it depends on x
    return dout * np.cos(x.array) if isinstance(x, Tensor) else dout * np.cos(x)


def wrong_seed(dout, p, seed):
    yield random_kernels.dropout(dout, p, seed + 1) if p < 1 else np.zeros_like(dout)


def unmasked(dout, q, k, v, out, lse, scale, dropout_p, seed):
    scale = q.shape[3] ** -0.5 if scale is None else scale
    how = {"scale": scale, "causal": False, "dropout_p": dropout_p, "seed": seed}
    return attention_kernels.attention_backward(dout, q, k, v, out, lse, **how)


def last_bias(dout, x, weight, needs):
    yield from registry["linear"].rules[0].function(dout, x, weight, needs[:2])
    if len(needs) > 2:
        yield dout.reshape(-1, weight.shape[0])[-1] if needs[2] and dout.size else None


BROKEN = {
    # primitives: the rule
    "a flipped sign": ("sub", {"db": lambda dout: dout}),
    "a forgotten minus": ("cos", {"dx": lambda dout, x: dout * ops.sin(x)}),
    "a factor of two": ("mul", {"da": lambda dout, b: 2 * dout * b}),
    "a factor of 1 + 1e-7": ("exp", {"dx": lambda dout, out: dout * out * (1 + 1e-7)}),
    "the wrong saved value": ("exp", {"dx": lambda dout, x: dout * x}),
    "the other operand": ("mul", {"da": lambda dout, a: dout * a}),
    "the square forgotten": ("div", {"db": lambda dout, a, b: -dout * a / b}),
    "a dropped term": ("tanh", {"dx": lambda dout, out: dout * (1 - out)}),
    "no gradient": ("add", {"db": lambda dout: None}),
    "the first of a broadcast axis only": ("add", {"db": lambda dout: dout[:1] if len(dout.shape) else dout}),
    "a mean in place of a sum": ("mul", {"db": lambda dout, a, b_shape: dout * a / max(1, int(np.prod(dout.shape)))}),
    "an operand not transposed": ("matmul_2d", {"da": lambda dout, b: ops.matmul(dout, b)}),
    "the wrong axis": ("cumsum", {"dx": lambda dout, dim: ops.flip(ops.cumsum(ops.flip(dout, 0), dim=0), 0)}),
    "a sum that starts one late": ("cumsum", {"dx": lambda dout, dim: ops.cumsum(dout, dim=dim)}),
    "one place off": ("getitem", {"dx": lambda dout, x_shape, index: ops.scatter(
        ops.flip(dout, 0) if len(dout.shape) else dout, shape=x_shape, index=index)}),
    "repeated indices overwrite (gradient)": ("getitem", {"dx": assigned}),
    "repeated indices overwrite (value)": ("scatter", {"forward": assigned_scatter}),
    "not linear in dout": ("neg", {"dx": lambda dout: -dout * (dout * dout)}),
    "not homogeneous in dout": ("neg", {"dx": lambda dout: -dout + 1e-9}),
    "an axis order not undone": ("permute", {"dx": lambda dout, dims: ops.permute(dout, dims=dims)}),
    "swapped parts": ("concatenate", {"vjp": lambda dout, shapes, dim: reversed(
        list(registry["concatenate"].rules[0].function(dout, shapes, dim)))}),
    # primitives: kinks
    "relu with slope 1 at 0": ("relu", {"dx": lambda dout, out: ops.where(out >= 0, dout, 0)}),
    "clip without its edges": ("clip", {"dx": lambda dout, x, low, high: ops.where(
        (x > (-9 if low is None else low)) & (x < (9 if high is None else high)), dout, dout * 0)}),
    "ties get everything": ("maximum", {"da": lambda dout, a, b: ops.where(a >= b, dout, dout * 0)}),
    # what else can go wrong
    "writes to the upstream gradient": ("neg", {"dx": in_place}),
    "writes to its input": ("sin", {"forward": writes_to_input}),
    "a derivative without memory": ("sin", {"dx": forgetful}),
    "the strides of the input": ("neg", {"forward": lambda x: -x.ravel(order="K").reshape(x.shape)}),
    "digits lost in float32": ("exp", {"forward": lambda x: (np.exp(x) + np.float32(1e3)) - np.float32(1e3)}),
    "always float64": ("sin", {"forward": lambda x: np.sin(x.astype(np.float64))}),
    "overflow of large logits": ("logsumexp", {"forward": lambda x, *, dim=None, keepdim=False: np.log(
        np.sum(np.exp(100 * x), axis=dim, keepdims=keepdim)) / 100}),
    "a value off by 1e-13": ("sqrt", {"forward": lambda x: np.sqrt(x) * (1 + 1e-13)}),
    # fused operators: the hand-derived derivative against the definition
    "silu without its second term": ("silu", {"vjp": lambda dout, x: (dout / (1 + np.exp(-x)),)}),
    "the other gelu": ("gelu", {"vjp": lambda dout, x: (activation.gelu_backward(dout, x, True),)}),
    "gate and up exchanged": ("swiglu", {"vjp": lambda dout, gate, up: activation.swiglu_backward(dout, up, gate)}),
    "softmax without its sum": ("softmax", {"vjp": lambda dout, out: (dout * out,)}),
    "log_softmax by the wrong exponential": ("log_softmax", {
        "vjp": lambda dout, out: (dout - out * dout.sum(-1, keepdims=True),)}),
    "a norm that forgets eps": ("rms_norm", {"vjp": lambda dout, x, weight: norm.rms_norm_backward(
        dout, x, weight, 1 / np.sqrt((x * x).mean(-1)))}),
    "a mean that takes no part": ("layer_norm", {"vjp": lambda dout, x, weight, mean, rstd: (
        norm.rms_norm_backward(dout, x, weight, rstd)[0], *norm.layer_norm_backward(dout, x, weight, mean, rstd)[1:])}),
    "turned the wrong way": ("rotary_embedding", {
        "vjp": lambda dout, cos, sin, heads: (rotary.rotary(dout, cos, sin, heads),)}),
    "values turned too": ("rotary_embedding", {"vjp": lambda dout, cos, sin: (rotary.rotary(dout, cos, -sin),)}),
    "ignored targets counted": ("cross_entropy", {"vjp": lambda dout, logits, lse, targets: (
        dout[:, None] * (np.exp(logits - lse[:, None]) - np.eye(logits.shape[1])[np.maximum(targets, 0)]),)}),
    "an upstream gradient forgotten": ("linear_cross_entropy", {
        "vjp": lambda unit_dx, unit_dweight: (unit_dx, unit_dweight)}),
    "only the last row's bias": ("linear", {"vjp": last_bias}),
    "ids that overwrite": ("embedding", {"vjp": lambda dout, ids, weight_shape: (
        embedding.embedding_backward(dout, ids, weight_shape[0]) / np.maximum(1, np.bincount(
            ids.ravel(), minlength=weight_shape[0]))[:, None],)}),
    "another dropout mask": ("dropout", {"vjp": wrong_seed}),
    "no mask on the way back": ("attention", {"vjp": unmasked}),
    "a definition that is another function": ("silu", {"plain": lambda x: x * ops.sigmoid(1.0001 * x)}),
}  # fmt: skip


def test_there_are_enough_kinds():
    assert len(BROKEN) >= 40


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_operator_is_caught(kind):
    name, changes = BROKEN[kind]
    op = rebuilt(name, **changes)
    with pytest.raises(AssertionError, match="to see it again") as caught, np.errstate(all="ignore"):
        for sample in samples_of(op):
            prove(op, sample)
    assert f"`{name}` fails the check" in str(caught.value)


@pytest.mark.parametrize("name", sorted(registry))
def test_the_same_operators_pass_when_they_are_whole(name):
    """Rebuilding alone breaks nothing, so what is caught above is the change."""
    op = rebuilt(name)
    for sample in samples_of(op)[:3]:
        prove(op, sample)


def leaf(*shape):
    return Tensor(np.random.default_rng(sum(shape)).normal(size=shape), requires_grad=True)


@pytest.mark.parametrize(("cause", "name", "changes", "inputs"), [
    ("sign", "sub", {"db": lambda dout: dout}, (leaf(3), leaf(3))),
    ("factor", "mul", {"da": lambda dout, b: 0.5 * dout * b}, (leaf(3), leaf(3))),
    ("nothing", "add", {"db": lambda dout: None}, (leaf(3), leaf(3))),
    ("sum", "add", {"db": lambda dout: dout[:1]}, (leaf(2, 3), leaf(1, 3))),
    ("transposed", "matmul_2d", {"da": lambda dout, b: ops.matmul(b, dout.mT if isinstance(dout, Tensor) else dout.T)},
     (leaf(3, 3), leaf(3, 3))),
    ("transposed", "matmul_2d", {"da": lambda dout, b: ops.matmul(b, dout.mT if isinstance(dout, Tensor) else dout.T)},
     (leaf(2, 3), leaf(3, 3))),
    ("shape", "add", {"db": lambda dout: dout.sum(0)}, (leaf(2, 3), leaf(2, 3))),
])  # fmt: skip
def test_a_report_names_the_likely_cause(cause, name, changes, inputs):
    with pytest.raises(GradcheckError) as caught:
        autograd.gradcheck(rebuilt(name, **changes), inputs)
    assert caught.value.cause == cause


def test_what_proves_nothing_is_no_proof():
    x, rng = leaf(3), np.random.default_rng(0)
    for check in (autograd.gradcheck, autograd.gradgradcheck):
        for result in (3.0, {"loss": x.sum()}, np.ones(3)):
            with pytest.raises(TypeError, match="to return a Tensor or several, got"):
                check(lambda x, result=result: result, x)
        with pytest.raises(ValueError, match="at least one input with requires_grad=True"):
            check(lambda x: x * x, x.detach())
    with pytest.raises(GradcheckError, match="other values when it is called again") as caught:
        autograd.gradcheck(lambda x: x * rng.normal(size=3), x)
    assert caught.value.cause == "random"


def test_a_report_names_operator_input_index_values_and_error_bar():
    x = Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]), requires_grad=True)
    wrong = rebuilt("mul", db=lambda dout, a: ops.where(a == 3.0, 0, dout * a))
    with pytest.raises(GradcheckError) as caught:
        autograd.gradcheck(wrong, (x, Tensor(np.ones((2, 2)), requires_grad=True)))
    error = caught.value
    assert error.input == 1 and error.index == (1, 0) and error.element == (1, 0)
    assert error.analytic == 0 and error.numeric == pytest.approx(3) and 0 < error.bar < 1e-9
    for words in ("`mul`", "input 1 (b) at [1, 0]", "analytic 0", "numeric 3", "±"):
        assert words in str(error)


def test_a_reproduction_can_be_pasted():
    """The lines under "to see it again" are a program that fails in the same way."""
    wrong = rebuilt("sub", db=lambda dout: dout)
    right = registry["sub"]
    try:
        registry["sub"] = wrong
        with pytest.raises(GradcheckError) as caught:
            autograd.gradcheck(wrong, (leaf(2, 3), leaf(3)))
        with pytest.raises(GradcheckError, match="wrong sign"):
            exec(str(caught.value).split("to see it again:\n\n")[1], {})
        with pytest.raises(GradcheckError) as proved:
            prove(wrong, samples_of(wrong)[2], only=["derivative"])
        with pytest.raises(GradcheckError, match="wrong sign"):
            exec(str(proved.value).split("to see it again:\n\n")[1], {})
    finally:
        registry["sub"] = right


def test_what_is_reported_is_as_small_as_can_be():
    """One number for each input, of few digits, that fails in the same way; and never another failure."""
    wrong = rebuilt("mul", da=lambda dout, b: dout * b * b)
    x, y = leaf(4, 5), leaf(5)
    for function, check in ((wrong, autograd.gradcheck), (lambda x, y: wrong(x, y.exp()) @ y, autograd.gradgradcheck)):
        with pytest.raises(GradcheckError, match="on smaller inputs") as caught:
            check(function, (x, y))
        assert caught.value.analytic != caught.value.numeric and str(list(caught.value.index)) in str(caught.value)
        lines = str(caught.value).split("to see it again:\n\n")[1].splitlines()
        small = [eval(line.split("Tensor(")[1].split(", requires")[0], {"array": np.array, "float64": np.float64})
                 for line in lines if line.startswith("x")]  # fmt: skip
        assert [array.shape for array in small] == [(1, 1), (1,)]
        assert all(len(str(array.item())) <= len("-0.1234") for array in small)
        assert lines[-1].startswith(f"autograd.{check.__name__}(f, [x0, x1]")


def test_what_cannot_be_made_smaller_is_reported_as_it_is():
    """A function that takes one shape only, and fails at one point only."""
    point = np.array([0.123456789, 2.0])

    def at_one_point(x):
        assert x.shape == (2,)
        return (x.detach() if np.abs(x.array - point).max() < 0.1 else x) * 2

    with pytest.raises(GradcheckError) as caught:
        autograd.gradcheck(at_one_point, Tensor(point, requires_grad=True))
    assert caught.value.cause == "nothing" and "2.0]" in str(caught.value).split("to see it again")[1]


def test_one_line_proves_an_operator_of_the_user_s_own_and_shrinks_what_fails():
    operator_test(registry["sigmoid"], max_examples=5)()
    wrong = rebuilt("add", db=lambda dout: 2 * dout, samples=lambda rng: ())
    with pytest.raises(AssertionError) as caught:
        operator_test(wrong, max_examples=20)()
    sample = str(caught.value).split("sample = ")[1]
    assert sample.count("array(") == 2
    assert "[" not in sample.split("), {")[0], "two 0-d arrays are the smallest that fail"


def test_one_line_checks_a_function_of_the_user_s_own():
    function_test(lambda x, w: (x @ w).tanh().sum(-1), (None, 3), (3, 2), max_examples=5)()
    with pytest.raises(GradcheckError, match="kink"):
        function_test(lambda x: x.abs(), (2,), low=0, high=0, max_examples=5)()
