"""Where arrays happen to lie in memory changes no bit.

Compiled loops may come in two versions, chosen by how far apart their arrays are (see `jit`); a run that repeats to
the bit must not depend on it. Every operator is run with its inputs, and all that it allocates, put close together in
one piece of memory, at distances that vary.
"""

import math
import random

import numpy as np
import pytest

import autograd
from autograd.kernels.bfloat16 import amx_available, matmul_precision
from autograd.kernels.optimizer import AdamWSettings, adamw, sum_of_squares
from autograd.proof import as_tensors, wanted
from autograd.testing import samples_of

PLACEMENTS = 32
OPERATORS = sorted(autograd.registry.values(), key=lambda op: op.name)


class Arena:
    """One piece of memory, in which each new array comes to lie close behind some other."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.block = np.frombuffer(bytearray(b"\xff" * (1 << 22)), np.uint8)
        self.taken = [(0, 0)]  # first byte, last byte + 1

    def empty(self, shape, dtype=float, order="C"):
        if not np.dtype(dtype).itemsize:  # NumPy's own way to reckon with shapes
            return np.zeros(shape, dtype)
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        first = self.find(size)
        self.taken.append((first, first + size))
        return self.block[first : first + size].view(dtype).reshape(shape)

    def find(self, size):
        for neighbour in self.rng.sample(range(len(self.taken)), len(self.taken)):
            gap = self.rng.choice([0, 16 * self.rng.randrange(16)])
            first = -(-self.taken[neighbour][1] // 16) * 16 + gap
            if all(first + size <= start or end <= first for start, end in self.taken):
                return first
        return -(-max(end for _, end in self.taken) // 16) * 16

    def place(self, x):
        """An input, with room behind it."""
        if not isinstance(x, np.ndarray) or x.dtype == object:
            return x
        placed = self.empty(x.shape, x.dtype)
        placed[...] = x
        far = 1 << 16
        self.taken.append((-(-max(end for _, end in self.taken) // far) * far,) * 2)
        return placed


def upstream(out):
    """A gradient to begin with, in the arena if there is one."""
    dout = np.empty(out.shape, out.dtype)
    dout[...] = np.random.default_rng(1).normal(size=out.shape)
    return dout


def assert_same_bits_anywhere(function, arrays):
    """`function(*arrays)` returns a list of arrays; it is run once as usual, and then in arenas."""
    expected = [x.tobytes() for x in function(*(np.array(x) if isinstance(x, np.ndarray) else x for x in arrays))]
    for seed in range(PLACEMENTS):
        arena = Arena(seed)
        order = arena.rng.sample(range(len(arrays)), len(arrays))
        placed = list(arrays)
        for i in order:
            placed[i] = arena.place(arrays[i])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "empty", arena.empty)
            found = function(*placed)
        assert all(x.tobytes() == e for x, e in zip(found, expected, strict=True)), f"placement {seed} gave other bits"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_every_operator(op, dtype):
    def run(*arrays, params):
        inputs = as_tensors(op, arrays, dtype)
        out = op(*inputs, **params)
        if out.node is None:
            return [out.array]
        dout = upstream(out)
        distinct = list({id(x): x for x in wanted(inputs)}.values())
        gradients = autograd.grad(out, distinct, autograd.Tensor(dout), allow_unused=True)
        return [out.array, *(g.array for g in gradients if g is not None)]

    for sample in samples_of(op):
        arrays = [x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in sample.inputs]
        with np.errstate(all="ignore"):
            assert_same_bits_anywhere(lambda *a, params=sample.params: run(*a, params=params), arrays)


@pytest.mark.parametrize("size", [16, 43, 64])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "swiglu", "rotary_embedding", "linear"])
def test_the_sizes_of_small_models(name, size):
    """Rows as short as the reach of one round of a vectorised loop, where two arrays can be that close."""
    op, size = autograd.registry[name], size // 2 * 2 if name == "rotary_embedding" else size
    rng = np.random.default_rng(0)
    shapes = {
        "rms_norm": [(16, size), (size,)], "layer_norm": [(16, size), (size,), (size,)],
        "swiglu": [(16, size), (16, size)], "rotary_embedding": [(2, 8, 2, size), (8, size // 2), (8, size // 2)],
        "linear": [(16, size), (24, size), (24,)],
    }[name]  # fmt: skip
    params = {"eps": 1e-5} if name.endswith("norm") else {}

    def run(*arrays):
        inputs = as_tensors(op, arrays)
        out = op(*inputs, **params)
        dout = upstream(out)
        return [out.array, *(g.array for g in autograd.grad(out, wanted(inputs), autograd.Tensor(dout)))]

    assert_same_bits_anywhere(run, [rng.normal(size=shape).astype(np.float32) for shape in shapes])


@pytest.mark.skipif(not amx_available(), reason="this processor has no bfloat16 tiles")
@pytest.mark.parametrize("name", ["linear", "causal_self_attention"])
def test_products_in_bfloat16(name):
    rng = np.random.default_rng(0)
    shapes, params = {
        "linear": ([(40, 43), (24, 43), (24,)], {}),
        "causal_self_attention": ([(1, 40, 4 * 24)], {"n_head": 2, "n_kv_head": 1}),
    }[name]

    def run(*arrays):
        inputs = as_tensors(autograd.registry[name], arrays)
        with matmul_precision("bfloat16"):
            out = autograd.registry[name](*inputs, **params)
            return [out.array, *(g.array for g in autograd.grad(out, wanted(inputs), autograd.Tensor(upstream(out))))]

    assert_same_bits_anywhere(run, [rng.normal(size=shape).astype(np.float32) for shape in shapes])


@pytest.mark.parametrize("size", [1, 16, 43, 270])
def test_the_optimizer(size):
    def run(param, grad, m, v):
        adamw([(param, grad, m, v, AdamWSettings(1e-3, 0.9, 0.99, 1e-8, 0.1, 0.1, 0.01, 0.7))])
        return [param, m, v, np.array(sum_of_squares([grad]))]

    rng = np.random.default_rng(0)
    param, grad, m = (rng.normal(size=size).astype(np.float32) for _ in range(3))
    assert_same_bits_anywhere(run, [param, grad, m, np.square(m)])
