"""Whichever kernel a process meets first, it can be loaded from the cache."""

import subprocess
import sys

import pytest

FIRST = """
import numpy as np
from autograd.kernels.{file} import {name}
x = np.ones((1, 2, 5, 4), "{dtype}")
{call}
"""
CALLS = {
    ("matmul", "matmul"): "matmul(x, x.swapaxes(-1, -2))",
    ("attention", "attention"): "attention(x, x, x, scale=1.0, causal=True)",
    ("mlp", "mlp"): "mlp(x[0, 0], x[0, 0], x[0, 0].T, None, None, True)",
    ("softmax", "softmax"): "softmax(x)",
    ("sums", "column_sums"): "column_sums(np.ones((9000, 8), x.dtype))",
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("file", "name"), CALLS, ids=[name for _, name in CALLS])
def test_from_the_cache(file, name, dtype):
    """Twice in processes of their own: the second, at the latest, finds everything compiled."""
    program = FIRST.format(file=file, name=name, dtype=dtype, call=CALLS[file, name])
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
