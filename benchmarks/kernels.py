"""Single kernels beside those of OpenBLAS and PyTorch, and beside what the machine can do at most.

    python -m benchmarks kernels                        every group, five rounds
    python -m benchmarks kernels attention --rounds 9
    python -m benchmarks kernels --json kernels.json

Groups: `matmul` in float32, on AMX tiles where there are any, and `vectors`, without them (peer: NumPy's OpenBLAS; the
peak is that of vectors, which tiles can pass), `bfloat16` (peer: PyTorch's oneDNN on bfloat16 tensors, which read
and write half the bytes of our float32 arrays) and `narrow` (the same peer, and ours on bfloat16 arrays, too: results
rounded to it as the peer's, except weight gradients, which AdamW wants in float32), each over the products of the
models, forward and backward;
`attention` and, in bfloat16, `attention16` (peer: scaled_dot_product_attention, on bfloat16 tensors in the second),
forward with backward; `rest` (peer: PyTorch). Each side runs in a process of its own, so that their thread pools do not
meet. The line `A/A` is ours against ours: the noise.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks._pairs import compare, processor, run_arm

# rows, inputs and outputs of the linear layers of tiny, baby and gpt2 (see training.py)
LAYERS = [
    *((768, *shape) for shape in ((128, 384), (128, 128), (128, 512), (512, 128))),
    *((4096, *shape) for shape in ((384, 1152), (384, 384), (384, 1536), (1536, 384))),
    *((256, *shape) for shape in ((768, 2304), (768, 768), (768, 3072), (3072, 768))),
]
ATTENTION = [(4, 6, T, D) for T in (64, 256, 1024) for D in (32, 64)]  # B, H, T, D
REST = ["gelu", "gelu exact", "layer_norm", "softmax", "cross_entropy", "adamw"]
GROUPS = ["matmul", "vectors", "bfloat16", "narrow", "attention", "attention16", "rest"]
PEERS = dict.fromkeys(GROUPS, "torch") | {"matmul": "numpy", "vectors": "numpy"}

Case = tuple[str, float, Callable[[], object]]  # name, FLOPs (0: not counted), what is timed


def main() -> int:
    """Run both sides in turn and print a table of times, rates and ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    for group in options.groups:
        if group not in GROUPS:
            parser.error(f"no group {group!r}; there are {', '.join(GROUPS)}")
    peaks = run_arm("benchmarks._peaks", threads=options.threads)
    print(f"{processor()}; peaks in GFLOP/s or GB/s:", ", ".join(f"{k} {v / 1e9:.0f}" for k, v in peaks.items()))
    report = {"processor": processor(), "peaks": peaks, "threads": options.threads}
    for group in options.groups or GROUPS:
        report[group] = measure(group, options.rounds, options.threads, peaks)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(group: str, rounds: int, threads: int, peaks: dict[str, float]) -> dict[str, dict]:
    """Time a group's cases on both sides, and ours a second time; print and return what came out."""
    sides: list[list[dict]] = [[], [], []]
    for _ in range(rounds):
        for library, found in zip(("groundup", PEERS[group], "groundup"), sides, strict=True):
            found.append(run_arm("benchmarks.kernels", "--worker", library, group, threads=threads))
    print(f"\n{group}: {rounds} rounds, {threads} threads; ratio: {PEERS[group]}'s time over ours\n"
          f"{'':<34}{'µs':>9}{'GFLOP/s':>9}{'of peak':>9}   ratio [interval]")  # fmt: skip
    figures = {}
    peak = peaks.get("bfloat16" if group in ("bfloat16", "narrow", "attention16") else "float32", math.nan)
    for name, (_, flops) in sides[0][0].items():
        ours, theirs, again = ([found[name][0] for found in side] for side in sides)
        seconds, ratio, noise = statistics.median(ours), compare(ours, theirs), compare(ours, again)
        rate = flops / seconds
        figures[name] = {"seconds": seconds, "flops": flops, "of_peak": rate / peak, "ratio": ratio.median,
                         "low": ratio.low, "high": ratio.high, "again": noise.median}  # fmt: skip
        share = f"{rate / 1e9:>9.0f}{rate / peak:>9.0%}" if flops else " " * 18
        print(f"{name:<34}{seconds * 1e6:>9.1f}{share}   {ratio}")
    mean = lambda key: math.exp(statistics.fmean(math.log(figure[key]) for figure in figures.values()))
    spread = [figure["again"] for figure in figures.values()]
    print(f"{'geometric mean':<55}{mean('ratio'):.2f}")
    print(f"{'A/A: geometric mean, lowest, highest':<55}{mean('again'):.2f}, {min(spread):.2f}, {max(spread):.2f}")
    return figures


def worker(library: str, group: str) -> None:
    """Time the cases of a group in this process and print {name: (seconds, FLOPs)}."""
    if library == "groundup":
        from autograd.kernels.memory import keep_freed_memory

        keep_freed_memory()
    cases = {"attention": attentions, "attention16": attentions, "rest": others}.get(group, products)
    times = {name: (_seconds(function), flops) for name, flops, function in cases(library, group)}
    print(json.dumps(times))


def _seconds(function: Callable[[], object]) -> float:
    """The median time of a call, from as many as fit in a fifth of a second."""
    function()
    function()
    times = []
    while sum(times) < 0.2 or len(times) < 3:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def products(library: str, group: str) -> Iterator[Case]:
    """out = x Wᵀ, dx = dout W, dW = doutᵀ x for each linear layer of the models."""
    rng = np.random.default_rng(0)
    for rows, inputs, outputs in LAYERS:
        x, dout = (rng.standard_normal((rows, width), np.float32) for width in (inputs, outputs))
        weight = rng.standard_normal((outputs, inputs), np.float32)
        for layout, a, b in (("NT", x, weight.T), ("NN", dout, weight), ("TN", dout.T, x)):
            name = f"{layout} {a.shape[0]}×{a.shape[1]}×{b.shape[1]}"
            yield name, 2.0 * a.shape[0] * a.shape[1] * b.shape[1], _product(library, group, layout, a, b)


def _product(library: str, group: str, layout: str, a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    out = np.empty((len(a), b.shape[1]), np.float32)
    if library == "numpy":
        return lambda: np.matmul(a, b, out=out)
    if library == "torch":
        import torch

        # The strides stay: a transposed operand is a view there, too.
        a16, b16 = (torch.from_numpy(x).to(torch.bfloat16, memory_format=torch.preserve_format) for x in (a, b))
        out16 = torch.empty(out.shape, dtype=torch.bfloat16)
        return lambda: torch.mm(a16, b16, out=out16)
    from autograd.kernels.bfloat16 import matmul_bf16, matmul_narrow, round_to_bfloat16, rounded_product
    from autograd.kernels.matmul import allow_tiles, matmul
    from autograd.kernels.memory import empty

    allow_tiles(group != "vectors")
    if group == "narrow":

        def bits(x: np.ndarray) -> np.ndarray:
            if not x.flags.c_contiguous:
                return bits(x.T).T
            narrow = empty(x.shape, np.uint16)
            narrow[...] = round_to_bfloat16(x).view(np.uint32) >> 16
            return narrow

        operands = bits(a), bits(b)
        return lambda: matmul_narrow(*operands) if layout == "TN" else rounded_product(*operands)
    function = matmul_bf16 if group == "bfloat16" else matmul
    return lambda: function(a, b, out=out)


def attentions(library: str, group: str) -> Iterator[Case]:
    """Causal attention, forward and backward; FLOPs of the half that is seen."""
    rng = np.random.default_rng(0)
    for B, H, T, D in ATTENTION:
        q, k, v, dout = (rng.standard_normal((B, H, T, D), np.float32) for _ in range(4))
        flops = 14.0 * B * H * D * T * (T + 1) / 2
        yield f"forward + backward, T {T}, D {D}", flops, _attention(library, group, q, k, v, dout)


def _attention(
    library: str, group: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, dout: np.ndarray
) -> Callable[[], object]:
    if library == "torch":
        import torch

        dtype = torch.bfloat16 if group == "attention16" else torch.float32
        inputs = [torch.from_numpy(x).to(dtype).requires_grad_() for x in (q, k, v)]
        upstream = torch.from_numpy(dout).to(dtype)

        def run() -> object:
            out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
            return torch.autograd.grad(out, inputs, upstream)

        return run
    from autograd.kernels.attention import attention, attention_backward
    from autograd.kernels.bfloat16 import matmul_precision

    matmul_precision("bfloat16" if group == "attention16" else "float32")
    scale = 1 / math.sqrt(q.shape[3])

    def ours() -> object:
        out, lse = attention(q, k, v, scale=scale, causal=True)
        return attention_backward(dout, q, k, v, out, lse, scale=scale, causal=True)

    return ours


def others(library: str, group: str) -> Iterator[Case]:
    """What is no product: GELU, norm, softmax and loss with their backward passes, and AdamW."""
    rng = np.random.default_rng(0)
    x, dout = (rng.standard_normal((4096, 384), np.float32) for _ in range(2))
    weight, targets = np.ones(384, np.float32), rng.integers(0, 384, 4096)
    make = _others_of_torch if library == "torch" else _others_of_ours
    for name, function in zip(REST, make(x, dout, weight, targets), strict=True):
        yield f"{name}, 4096×384" if name != "adamw" else "adamw, 10 × 1.6 M", 0.0, function


def _others_of_ours(x: np.ndarray, dout: np.ndarray, weight: np.ndarray, targets: np.ndarray) -> list[Callable]:
    from autograd.kernels import activation, cross_entropy, norm, optimizer, softmax

    def layer_norm() -> None:
        _, mean, rstd = norm.layer_norm(x, weight, None, 1e-5)
        norm.layer_norm_backward(dout, x, weight, mean, rstd)

    def loss() -> None:
        losses, lse = cross_entropy.cross_entropy(x, targets)
        cross_entropy.cross_entropy_backward(np.full_like(losses, 1 / len(losses)), x, targets, lse)

    settings = optimizer.AdamWSettings(1e-3, 0.9, 0.99, 1e-8, 0.1, 0.1, 0.01)
    updates = [(*(np.ones(x.shape, np.float32) for _ in range(4)), settings) for _ in range(10)]
    return [
        lambda: activation.gelu_backward(dout, (activation.gelu(x, True), x)[1], True),
        lambda: activation.gelu_backward(dout, (activation.gelu(x, False), x)[1], False),
        layer_norm,
        lambda: softmax.softmax_backward(dout, softmax.softmax(x)),
        loss,
        lambda: optimizer.adamw(updates),
    ]


def _others_of_torch(x: np.ndarray, dout: np.ndarray, weight: np.ndarray, targets: np.ndarray) -> list[Callable]:
    import torch
    from torch.nn import functional as F

    tensor, upstream = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dout)
    scale, classes = torch.from_numpy(weight).requires_grad_(), torch.from_numpy(targets)
    parameters = [torch.ones(x.shape).requires_grad_() for _ in range(10)]
    for parameter in parameters:
        parameter.grad = torch.ones(x.shape)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    both = lambda out, inputs: torch.autograd.grad(out, inputs, upstream)
    return [
        lambda: both(F.gelu(tensor, approximate="tanh"), [tensor]),
        lambda: both(F.gelu(tensor), [tensor]),
        lambda: both(F.layer_norm(tensor, (384,), scale), [tensor, scale]),
        lambda: both(F.softmax(tensor, -1), [tensor]),
        lambda: torch.autograd.grad(F.cross_entropy(tensor, classes), [tensor]),
        optimizer.step,
    ]


if __name__ == "__main__":
    if sys.argv[1:2] != ["--worker"]:
        sys.exit("run this as: python -m benchmarks kernels")
    worker(*sys.argv[2:4])
