"""Our tokenizer beside tiktoken and tokenizers: one run, one thread each, medians of alternating rounds.

    python -m benchmarks tokenizer [--rounds 3] [--json FILE]

Texts: tinyshakespeare ten times (from ../shared/data; left out where it is absent), and the built-in corpus five
times, eleven megabytes each. All three encode with the same vocabulary: GPT-2's on Shakespeare where its files are
there, else one of 8192 tokens trained by us; ids are compared before anything is timed. tokenizers is given the text
in documents of about ten kilobytes, which it encodes twice as fast as the same text in one piece.

Each tool is asked for what its users would ask for: we return a NumPy array, tiktoken a list, tokenizers an Encoding.
Memory is the growth of the peak resident set over what the process held just before, in a process of its own.

Bars (issue 5): encode at least 3 times tiktoken and 20 times tokenizers, train at least 3 times tokenizers; memory at
or under theirs; on texts without a seam, 2 MB in under 2.5 times the time of 1 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from rich.console import Console
from rich.table import Table

from data.builtin import builtin_documents
from tokenizer import Tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data"
VOCAB_SIZE = 8192
BARS = {("encode", "tiktoken"): 3, ("encode", "tokenizers"): 20, ("train", "tokenizers"): 3}


def texts() -> dict[str, str]:
    """The texts to measure on, about 11 MB each."""
    found = {}
    if (SHARED / "tinyshakespeare.txt").exists():
        found["Shakespeare"] = (SHARED / "tinyshakespeare.txt").read_text() * 10
    found["built-in corpus"] = "".join(builtin_documents()) * 5
    return found


def documents(text: str) -> list[str]:
    """The text in documents of about ten kilobytes, cut where no pattern joins characters."""
    lines = text.splitlines(keepends=True)
    out, size, start = [], 0, 0
    for i, line in enumerate(lines):
        size += len(line)
        if size > 10_000 and line[-2:-1].isalpha():
            out.append("".join(lines[start:i + 1])[:-1])
            lines[i] = "\n"
            size, start = 0, i
    return [*out, "".join(lines[start:])]


def vocabulary(name: str, text: str) -> tuple[str, Tokenizer]:
    """GPT-2's for Shakespeare if it is there, else one of our own."""
    files = SHARED / "gpt2" / "vocab.bpe", SHARED / "gpt2" / "encoder.json"
    if name == "Shakespeare" and all(file.exists() for file in files):
        return "GPT-2's 50257", Tokenizer.from_gpt2(*files)
    return f"gpt4 pattern, {VOCAB_SIZE}", Tokenizer.train(text, VOCAB_SIZE, special_tokens=("<|endoftext|>",))


def check_ids(tokenizer: Tokenizer, text: str) -> None:
    """Stop unless all three give the same ids."""
    tiktoken, hugging_face = peer(tokenizer)
    if tokenizer.encode(text).tolist() != tiktoken.encode_ordinary(text):
        raise AssertionError("tiktoken gives other ids")
    sample = text[:300_000]
    if tokenizer.encode(sample).tolist() != hugging_face.encode(sample).ids:
        raise AssertionError("tokenizers gives other ids")


def peer(tokenizer: Tokenizer) -> tuple[Any, Any]:
    """The same tokenizer in tiktoken and in tokenizers."""
    import tiktoken
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "tokenizer.json")
        hugging_face = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    return tiktoken.Encoding(**tokenizer.to_tiktoken()), hugging_face


def encoders(tokenizer: Tokenizer, text: str) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    tiktoken, hugging_face = peer(tokenizer)
    parts = documents(text)
    return {
        "groundup": lambda: tokenizer.encode(text),
        "tiktoken": lambda: tiktoken.encode_ordinary(text),
        "tokenizers": lambda: hugging_face.encode_batch_fast(parts),
    }


def trainers(text: str, pattern: str = "gpt2") -> dict[str, Callable[[], Any]]:
    """What is timed: counting and merging, from text in memory to vocabulary."""
    from tokenizers import Tokenizer as HuggingFace
    from tokenizers import models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    def theirs() -> Any:
        tokenizer = HuggingFace(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(parts, trainer)
        return tokenizer

    parts = documents(text)
    return {
        "groundup": lambda: Tokenizer.train(text, VOCAB_SIZE, pattern, special_tokens=()),
        "tokenizers": theirs,
    }


def medians(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds each task takes: the median of `rounds` rounds, in each of which every task runs once."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            begin = time.perf_counter()
            result = task()
            seconds[name].append(time.perf_counter() - begin)
            del result  # giving a list of a million integers back takes time that is not theirs
    return {name: statistics.median(times) for name, times in seconds.items()}


def peak_memory(kind: str, name: str, task: str) -> float:
    """Megabytes by which a task raises the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks", "tokenizer", "memory", kind, name, task]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    return float(done.stdout.split()[-1])


def resident(field: str) -> float:
    """A field of /proc/self/status, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} in /proc/self/status")


def measure_memory(kind: str, name: str, task: str) -> None:
    """In a process of its own: make everything ready on a small text, then run the task once."""
    text = texts()[name]
    if kind == "encode":
        tokenizer = vocabulary(name, text)[1]
        encoders(tokenizer, text[:10_000])[task]()
        run = encoders(tokenizer, text)[task]
    else:
        trainers(text[:10_000])[task]()
        run = trainers(text)[task]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    result = run()
    print(resident("VmHWM") - before)
    del result


def seamless() -> dict[str, str]:
    """Two megabytes each of what a merge loop finds hardest: one piece, or pieces of one character."""
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=2_000_000)
    english = "".join(filter(str.isalpha, "".join(builtin_documents())))
    return {
        "^": "^" * 2_000_000,
        "a": "a" * 2_000_000,
        "random letters": "".join(letters),
        "English without spaces": (english * 3)[:2_000_000],
        "spaces": " " * 2_000_000,
        "line breaks": "\n" * 2_000_000,
    }


def growth(tokenizer: Tokenizer, text: str) -> tuple[float, float]:
    """(seconds for the first half of the text, for all of it): processor time, the least of five alternating rounds."""
    best = [float("inf"), float("inf")]
    for _ in range(5):
        for i, part in enumerate((text[: len(text) // 2], text)):
            begin = time.thread_time()
            tokenizer.encode(part)
            best[i] = min(best[i], time.thread_time() - begin)
    return best[0], best[1]


def main() -> int:
    """Measure and print the tables. Returns 0 when every bar is reached, else 1."""
    if sys.argv[1:2] == ["memory"]:
        measure_memory(*sys.argv[2:5])
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks tokenizer")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds, of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    arguments = parser.parse_args()
    console = Console(width=110)
    figures: list[dict[str, Any]] = []
    for name, text in texts().items():
        size = len(text.encode()) / 1e6
        described, tokenizer = vocabulary(name, text)
        check_ids(tokenizer, text)
        tasks = {
            f"encode {name}, {size:.1f} MB, {described}": ("encode", encoders(tokenizer, text)),
            f"train {VOCAB_SIZE} tokens on {name}, {size:.1f} MB, gpt2 pattern": ("train", trainers(text)),
        }
        for title, (kind, tools) in tasks.items():
            table = Table(title=title, title_justify="left")
            for column in ("tool", "seconds", "MB/s", "groundup is", "bar", "peak memory", "bar "):
                table.add_column(column, min_width=12 if column == "tool" else 9)
            tools["groundup"]()  # compiled or loaded from the cache before it counts
            seconds = medians(tools, arguments.rounds)
            memory = {tool: peak_memory(kind, name, tool) for tool in tools}
            for tool in tools:
                figure = {"what": title, "tool": tool, "seconds": seconds[tool], "peak_mb": memory[tool]}
                cells, least = ("", ""), ""
                if tool != "groundup":
                    ratio, bar = seconds[tool] / seconds["groundup"], BARS[kind, tool]
                    fast, small = ratio >= bar, memory["groundup"] <= memory[tool]
                    figure |= {"ratio": ratio, "bar": bar, "reached": fast and small}
                    cells = f"{ratio:.1f} x faster", f"{bar} x {'✓' if fast else '✗'}"
                    least = f"ours ≤ it {'✓' if small else '✗'}"
                figures.append(figure)
                speed = f"{seconds[tool]:.3f}", f"{size / seconds[tool]:.1f}"
                table.add_row(tool, *speed, *cells, f"{memory[tool]:.0f} MB", least)
            console.print(table)

    table = Table("text", "1 MB, seconds", "2 MB, seconds", "ratio", "bar", title="Texts without a seam")
    for pattern in ("gpt2", "gpt4", "gpt4o"):
        tokenizer = Tokenizer.train("".join(builtin_documents()), VOCAB_SIZE, pattern)
        for name, text in seamless().items():
            half, whole = growth(tokenizer, text)
            linear = whole / half < 2.5
            figures.append({"what": f"{pattern}: {name}", "seconds_1mb": half, "seconds_2mb": whole,
                            "ratio": whole / half, "bar": 2.5, "reached": linear})
            row = f"{half:.4f}", f"{whole:.4f}", f"{whole / half:.2f}", f"2.5 {'✓' if linear else '✗'}"
            table.add_row(f"{pattern}: {name}", *row)
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    missed = [f"{figure['what']}: {figure.get('tool', '')}" for figure in figures if not figure.get("reached", True)]
    console.print("every bar reached" if not missed else f"NOT reached: {'; '.join(missed)}")
    return 1 if missed else 0
