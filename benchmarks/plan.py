"""What `train.py --plan` predicts beside what the run then takes.

    python -m benchmarks plan                       the cases below, about a minute each
    python -m benchmarks plan default --seconds 60

Each case is planned and then trained, in fresh processes, one right after the other, for as many steps as should take
--seconds. Whatever else the machine does falls on both, so where it is busy the two may differ by chance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "default": [],
    "default-bfloat16": ["--train.precision", "bfloat16"],
    "shakespeare": ["--config", "configs/shakespeare_cpu.toml"],
    "shakespeare-bfloat16": ["--config", "configs/shakespeare_cpu.toml", "--train.precision", "bfloat16"],
    "llama": ["--config", "configs/shakespeare_cpu_llama.toml"],
    "llama-bfloat16": ["--config", "configs/shakespeare_cpu_llama.toml", "--train.precision", "bfloat16"],
    "wide": ["--model.n_embd", "384", "--model.n_layer", "6", "--model.n_head", "6"],
    "wide-bfloat16": ["--model.n_embd", "384", "--model.n_layer", "6", "--model.n_head", "6",
                      "--train.precision", "bfloat16"],
    "accumulation": ["--train.accumulation", "8", "--train.batch_size", "4"],
}  # fmt: skip


def main() -> int:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=40, help="that each run should take")
    options = parser.parse_args()
    print(f"{'':<22}" + "".join(f"{name:>10}{'taken':>9}{'ratio':>7}" for name in ("ms a step", "run, s", "MB")))
    for case in options.cases:
        compare(case, options.seconds)
    return 0


def compare(case: str, seconds: float) -> None:
    """Plan, train, print."""
    flags = CASES[case]
    planned = run_worker(seconds, CASES[case])
    flags = [*CASES[case], "--train.steps", str(planned["steps"]), "--train.eval_interval", str(planned["interval"]),
             "--train.sample_interval", str(planned["interval"])]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-c", _TRAIN, *flags, "--out", folder]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        taken = time.perf_counter() - began
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if line["split"] == "train"][1:]  # kernels are loaded at first
    mean = sum(planned["tokens_per_step"] / rate for rate in rates) / len(rates)
    memory = planned["megabytes"], json.loads(output.splitlines()[-1])["megabytes"]
    pairs = [(1e3 * planned["step_seconds"], 1e3 * mean), (planned["seconds"], taken), memory]
    cells = "".join(f"{said:>10.1f}{was:>9.1f}{said / was:>7.2f}" for said, was in pairs)
    print(f"{case:<22}{cells}", flush=True)


_TRAIN = """
import json, resource, sys, train
train.main()
print(json.dumps({"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def run_worker(seconds: float, flags: list[str]) -> dict:
    """What the plan for these flags says, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan", "--worker", str(seconds), *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def worker(seconds: float, flags: list[str]) -> None:
    """Plan a run of `seconds` of training, with two evaluations and samples, and print what was found as JSON."""
    from autograd.kernels.memory import keep_freed_memory
    from training.plan import make_plan
    from training.settings import parse_settings

    keep_freed_memory()  # as train.py does
    plan = make_plan(parse_settings(flags))
    steps = max(6, int(seconds / plan.step_seconds))
    interval = -(-steps // 2)
    train = dataclasses.replace(plan.settings.train, steps=steps, eval_interval=interval, sample_interval=interval)
    plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, train=train))
    print(json.dumps({
        "steps": steps, "interval": interval, "step_seconds": plan.step_seconds, "seconds": plan.seconds,
        "tokens_per_step": plan.tokens_per_step, "utilisation": plan.utilisation,
        "megabytes": (plan.program + plan.needed) / 2**20,
    }))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] != ["--worker"]:
        sys.exit("run this as: python -m benchmarks plan")
    worker(float(sys.argv[2]), sys.argv[3:])
