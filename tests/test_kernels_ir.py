"""What kernels are told of the processor. (What they emit is tested where it is used.)"""

import numba
import numpy as np
import pytest

from autograd.kernels import ir
from autograd.kernels.jit import kernel


@pytest.mark.parametrize(
    ("features", "machine", "expected"),
    [
        ({"avx512f", "avx2"}, "x86_64", (64, 32)),
        ({"avx2", "fma"}, "x86_64", (32, 16)),
        ({"sse2"}, "x86_64", (16, 16)),
        ({"neon"}, "aarch64", (16, 32)),
        ({"neon"}, "arm64", (16, 32)),
    ],
    ids=str,
)
def test_vector_registers_by_the_features_of_the_processor(monkeypatch, features, machine, expected):
    monkeypatch.setattr(ir, "features", lambda: frozenset(features))
    monkeypatch.setattr(ir.platform, "machine", lambda: machine)
    assert ir.host.__wrapped__() == expected
    assert ir.has(*features) and not ir.has(*features, "imaginary")


@pytest.mark.parametrize("told", ["+avx2,-avx512f,+fma", ""])
def test_features_are_what_numba_is_told_to_compile_for(monkeypatch, told):
    monkeypatch.setattr(numba.config, "CPU_FEATURES", told)
    assert ir.features.__wrapped__() == ({"avx2", "fma"} if told else set())
    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    assert ir.features.__wrapped__() >= ir.features()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_are_as_long_as_registers(dtype):
    @kernel
    def count(x):
        return ir.lanes(ir.pointer(x))

    assert count(np.zeros(1, dtype)) * np.dtype(dtype).itemsize == ir.host().vector_bytes
