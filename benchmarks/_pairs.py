"""How two things are compared fairly on a noisy machine.

Absolute times drift by tens of percent from minute to minute, so none is trusted. The arms of a comparison run in
turn, A B C A B C …, each round in fresh processes, and the figure is the median over rounds of the ratio within a
round. Its interval is the range between order statistics that holds the true median with the stated probability, by
the binomial distribution, which assumes nothing about the noise. An arm compared with itself shows what the noise alone
does.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ratio", "compare", "processor", "run_arm"]


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and an interval that holds it with about 95 % confidence (less for few rounds)."""

    median: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Their time over ours, round by round: above 1 we are faster."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    n = len(ratios)
    median = (ratios[(n - 1) // 2] + ratios[n // 2]) / 2
    cut = 0  # leave out this many at each end
    while cut + 1 < (n + 1) // 2 and 1 - 2 * _at_most(cut, n) >= 0.95:
        cut += 1
    cut = max(0, cut - 1)
    return Ratio(median, ratios[cut], ratios[n - 1 - cut], 1 - 2 * _at_most(cut, n))


def _at_most(k: int, n: int) -> float:
    """The probability of at most k heads in n tosses."""
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def run_arm(module: str, *arguments: str, threads: int = 2) -> dict:
    """Run `python -m module arguments` in a fresh process; the last line it prints is its result as JSON."""
    pools = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(pools, str(threads))
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
