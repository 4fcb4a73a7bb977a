"""torch.f(x, …) and autograd.f(x, …) are the same, for the functions that are methods by another name."""

import numpy as np
import pytest

import autograd
from autograd import functions

torch = pytest.importorskip("torch", reason="PyTorch (the bench extra) says what its functions mean")

X = np.random.default_rng(0).normal(size=(2, 3, 4))
POSITIVE = np.abs(X) + 0.5
SPECIAL = np.array([np.nan, np.inf, -np.inf, 1.0])
CALLS = {
    "abs": [(X,)], "pow": [(POSITIVE, 3), (POSITIVE, 0.5)], "square": [(X,)], "reciprocal": [(POSITIVE,)],
    "sign": [(X,)], "round": [(X,)], "floor": [(X,)], "ceil": [(X,)], "add": [(X, X), (X, 2)], "sub": [(X, 1)],
    "mul": [(X, X[0])], "div": [(X, POSITIVE)], "clamp": [(X, -0.5, 0.5), (X, 0.1)], "clip": [(X, -0.5, 0.5)],
    "isnan": [(SPECIAL,)], "isinf": [(SPECIAL,)], "isfinite": [(SPECIAL,)],
    "sum": [(X,), (X, 1), (X, (0, 2), True)], "mean": [(X,), (X, -1)], "prod": [(X,), (X, 1)],
    "var": [(X,), (X, 1)], "std": [(X,), (X, 2)], "norm": [(X,), (X, 1), (X, 3, 1, True)],
    "max": [(X,), (X, 1), (X, -1, True), (X, X[::-1].copy())], "min": [(X,), (X, 0)], "amax": [(X, 1)],
    "amin": [(X, (0, 1))], "argmax": [(X,), (X, 1)], "argmin": [(X, 2, True)],
    "any": [(X > 1,), (X > 1, 1)], "all": [(X > -1,), (X > -1, 0)], "cumsum": [(X, 1)],
    "sort": [(X,), (X, 1, True)], "argsort": [(X, 0)], "topk": [(X, 2), (X, 1, 0, False)],
    "softmax": [(X, 1)], "log_softmax": [(X, -1)],
    "reshape": [(X, (4, 6)), (X, (-1,))], "flatten": [(X,), (X, 1)], "permute": [(X, (2, 0, 1))],
    "transpose": [(X, 0, 2)], "swapaxes": [(X, -1, 0)], "squeeze": [(X[:1],), (X[:1], 0)], "unsqueeze": [(X, 1)],
    "flip": [(X, (0, 2))], "split": [(X, 3, 2)], "chunk": [(X, 3, 2)], "unbind": [(X,)],
    "tril": [(X,), (X, 1)], "triu": [(X, -1)], "gather": [(X, 2, np.array([[[0, 3]], [[1, 1]]]))],
    "index_select": [(X, 1, np.array([2, 0]))], "take": [(X, np.array([0, 5, 23]))],
    "repeat_interleave": [(X, 2, 1), (X, 2)], "clone": [(X,)], "dot": [(X[0, 0], X[1, 1])],
    "outer": [(X[0, 0], X[0, :, 0])], "cat": [([X, X], 1)], "concatenate": [([X, X],)], "stack": [([X, X], 2)],
    "allclose": [(X, X), (X, X + 1)], "equal": [(X, X), (X, X + 1e-9)],
    "as_tensor": [(X,)], "is_tensor": [(X,)],
}  # fmt: skip


def test_there_is_no_function_that_is_not_tried():
    assert CALLS.keys() == set(functions.__all__)


def converted(arguments, tensor):
    return [
        [tensor(y) for y in x] if isinstance(x, list) else tensor(x) if isinstance(x, np.ndarray) else x
        for x in arguments
    ]


def arrays(result):
    parts = result if isinstance(result, tuple | list) else (result,)
    return [np.asarray(part.detach() if isinstance(part, torch.Tensor) else part) for part in parts]


@pytest.mark.parametrize(
    ("name", "arguments"), [pytest.param(name, call, id=name) for name, calls in CALLS.items() for call in calls]
)
def test_a_function_means_what_it_means_in_pytorch(name, arguments):
    ours = arrays(getattr(autograd, name)(*converted(arguments, autograd.Tensor)))
    theirs = arrays(getattr(torch, name)(*converted(arguments, torch.tensor)))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-12)
