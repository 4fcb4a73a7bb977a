"""Whole training steps beside PyTorch's: forward, backward, clipping, AdamW, on batches drawn at random.

    python -m benchmarks training                       tiny and baby, five rounds
    python -m benchmarks training gpt2 --rounds 3
    python -m benchmarks training tiny --arms groundup-float32 torch-float32 groundup-float32 --json tiny.json

Arms: ours in float32 (products on AMX tiles where there are any: `kernels/split.py`), in float32 on vectors only, and
in bfloat16; PyTorch (the model of nanoGPT, its fused AdamW, scaled_dot_product_attention) eager in float32, compiled,
under bfloat16 autocast, and in float32 with bfloat16 products ("medium"). All use two threads.
Peak memory is the largest resident set of the process. An arm that is named twice shows what the noise alone does.
MFU is the share of the measured peak (float32 units, or AMX for bfloat16) that the FLOPs of the model's formula make:
what a kernel computes twice, or beyond the causal diagonal, does not count. float32 is measured by the peak of vectors,
which tiles can pass.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks._pairs import compare, processor, run_arm

# B sequences, T tokens, layers, heads, width C, vocabulary V, steps timed in a round
CONFIGS = {
    "tiny": (12, 64, 4, 4, 128, 65, 60),
    "baby": (16, 256, 6, 6, 384, 65, 5),
    "gpt2": (4, 64, 12, 12, 768, 50257, 5),
}
ARMS = ["groundup-float32", "groundup-vectors", "torch-float32", "torch-compile", "groundup-bfloat16",
        "torch-bfloat16", "torch-medium"]  # fmt: skip


def main() -> int:
    """Run the arms in turn and print a table of medians and ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=["tiny", "baby"], help=f"of {', '.join(CONFIGS)}")
    parser.add_argument("--arms", nargs="+", default=["groundup-float32", "torch-float32"], choices=ARMS, metavar="ARM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    for config in options.configs:
        if config not in CONFIGS:
            parser.error(f"no configuration {config!r}; there are {', '.join(CONFIGS)}")
    peaks = run_arm("benchmarks._peaks", threads=options.threads)
    print(f"{processor()}; peaks in GFLOP/s or GB/s:", ", ".join(f"{k} {v / 1e9:.0f}" for k, v in peaks.items()))
    report = {"processor": processor(), "threads": options.threads, "peaks": peaks}
    for config in options.configs:
        report[config] = measure(config, options.arms, options.rounds, options.threads, peaks)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def flops_of_a_step(config: str) -> float:
    """Six for each weight of a matrix and token, and the causal half of attention, backward twice forward."""
    B, T, n_layer, _, C, V, _ = CONFIGS[config]
    return 6.0 * B * T * (12 * C * C * n_layer + V * C) + 6.0 * B * T * T * C * n_layer


def measure(config: str, arms: list[str], rounds: int, threads: int, peaks: dict[str, float]) -> list[dict]:
    """Time every arm once a round, in fresh processes; print and return what came out."""
    results: list[list[dict]] = [[] for _ in arms]
    for _ in range(rounds):
        for arm, found in zip(arms, results, strict=True):
            found.append(run_arm("benchmarks.training", "--worker", arm, config, threads=threads))
    print(f"\n{config}: {rounds} rounds, {threads} threads")
    print(f"{'':<20}{'ms a step':>10}{'MFU':>6}{'peak MB':>9}{'faults':>8}   time over {arms[0]}'s [interval]")
    figures = []
    base = [r["milliseconds"] for r in results[0]]
    for arm, found in zip(arms, results, strict=True):
        times = [r["milliseconds"] for r in found]
        megabytes, faults = (statistics.median(r[key] for r in found) for key in ("megabytes", "faults_per_step"))
        float32 = arm.split("-")[1] in ("float32", "vectors", "compile")
        peak = peaks.get("float32" if float32 else "bfloat16", peaks["float32"])
        mfu = flops_of_a_step(config) / (statistics.median(times) / 1e3) / peak
        ratio = compare(base, times)
        print(f"{arm:<20}{statistics.median(times):>10.1f}{mfu:>6.0%}{megabytes:>9.0f}{faults:>8.0f}   {ratio}")
        figures.append({"arm": arm, "milliseconds": times, "mfu": mfu, "megabytes": megabytes,
                        "faults_per_step": faults, "ratio": ratio.median, "low": ratio.low, "high": ratio.high})
    return figures


def worker(arm: str, config: str) -> None:
    """One arm in this process: warm up, time, print a line of JSON."""
    library, precision = arm.split("-")
    B, T, *_, V, steps = CONFIGS[config]
    step = {"groundup": groundup_step, "torch": torch_step}[library](config, precision)
    rng = np.random.default_rng(0)

    def batch() -> tuple[np.ndarray, np.ndarray]:
        ids = rng.integers(0, V, (B, T + 1))
        return ids[:, :-1].copy(), ids[:, 1:].copy()

    for _ in range(3 + steps // 10):
        step(*batch())
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = []
    for _ in range(steps):
        inputs, targets = batch()
        start = time.perf_counter()
        step(inputs, targets)
        times.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "milliseconds": statistics.median(times) * 1e3,
        "megabytes": usage.ru_maxrss / 1024,
        "faults_per_step": (usage.ru_minflt - faults) / steps,
    }))  # fmt: skip


Step = Callable[[np.ndarray, np.ndarray], None]


def groundup_step(config: str, precision: str) -> Step:
    """A step of ours, by the functions that train.py uses."""
    import autograd as ag
    from autograd.kernels.matmul import allow_tiles
    from autograd.kernels.memory import keep_freed_memory
    from model import GPT, GPTConfig
    from nn.optim import AdamW, clip_scale, grad_norm

    _, T, n_layer, n_head, C, V, _ = CONFIGS[config]
    keep_freed_memory()
    if precision == "vectors":
        allow_tiles(False)
        precision = "float32"
    ag.manual_seed(0)
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": C, "block_size": T, "vocab_size": V}
    model = GPT(GPTConfig(**shape, bias=False, dropout=0.0))
    optimizer = AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)

    def step(inputs: np.ndarray, targets: np.ndarray) -> None:
        with ag.matmul_precision(precision):
            _, loss = model(inputs, targets)
            loss.backward()
        optimizer.step(grad_scale=clip_scale(grad_norm(optimizer.parameters()), 1.0))
        optimizer.zero_grad()

    return step


def torch_step(config: str, precision: str) -> Step:
    """The same in PyTorch, by its own best means."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    _, T, n_layer, n_head, C, V, _ = CONFIGS[config]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
            self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
            self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

        def forward(self, x):
            B, T, _ = x.shape
            q, k, v = (y.view(B, T, n_head, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(C, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(V, C), nn.Embedding(T, C)
            self.blocks = nn.ModuleList(Block() for _ in range(n_layer))
            self.norm = nn.LayerNorm(C, bias=False)

        def forward(self, idx, targets):
            x = self.tokens(idx) + self.positions(torch.arange(idx.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.view(-1, V), targets.reshape(-1))

    torch.manual_seed(0)
    model = GPT()
    for parameter in model.parameters():  # as nanoGPT. Left at 1, the table's logits underflow to slow denormal numbers
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    if precision == "medium":
        torch.set_float32_matmul_precision("medium")
    run = torch.compile(model) if precision == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def step(inputs: np.ndarray, targets: np.ndarray) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = run(torch.from_numpy(inputs), torch.from_numpy(targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    if sys.argv[1:2] != ["--worker"]:
        sys.exit("run this as: python -m benchmarks training")
    worker(*sys.argv[2:4])
