"""The mutation score: do the tests notice when an operator is wrong?

    python tests/mutation.py                      every mutant of every operator (hours)
    python tests/mutation.py --sample 20          20 of each file, drawn with a fixed seed
    python tests/mutation.py --files softmax loss

cosmic-ray changes one operator, number, comparison or keyword of the source at a time, in a copy of the
project, and runs the walk over the operators of that file and the tests of Tensor's methods. A mutant that no
test notices has *survived*: either a test is missing, or the change means nothing. The table goes to
docs/mutation.md, with the reasons that are written beside survivors there kept.

Mutants of what is no rule (samples, spaces) are left out. Kernels are compiled anew for each mutant of
theirs.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "mutation.md"
NO_RULES = re.compile(r"sample|space|_pairs|_apart")
# Lines whose mutants mean nothing: annotations, where tests draw from, whether memory may be reused, words of
# errors.
NO_MEANING = re.compile(r"^\s*(def .*|domain = .*|fresh = .*|f?\".*|raise .*)$")

# The operators whose proof runs through a kernel.
KERNELS = {
    "activation": "gelu or silu or swiglu", "cross_entropy": "cross_entropy", "embedding": "embedding",
    "norm": "layer_norm or rms_norm", "random": "dropout", "rotary": "rotary", "softmax": "softmax",
}  # fmt: skip

TESTS = "tests/test_autograd_operators.py tests/test_autograd_tensor.py"
CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests} -k '{names}'"
[cosmic-ray.distributor]
name = "local"
"""


def operators_in(file: str) -> str:
    """A pytest -k expression for the operators that an ops file declares."""
    import autograd

    names = [name for name, op in autograd.registry.items() if op.__module__ == f"autograd.ops.{file}"]
    return " or ".join(["test_autograd_tensor", *(f"[{name}]" for name in names)])


def mutate(copy: Path, module: str, names: str, sample: int | None, timeout: float) -> list[dict]:
    """Run the mutants of one module; what became of each."""
    config, session = copy / "cosmic-ray.toml", copy / "session.sqlite"
    session.unlink(missing_ok=True)
    config.write_text(CONFIG.format(module=module, timeout=timeout, python=sys.executable, tests=TESTS, names=names))
    tool = shutil.which("cosmic-ray") or str(Path(sys.executable).parent / "cosmic-ray")
    subprocess.run([tool, "init", config, session], cwd=copy, check=True, capture_output=True)
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "select job_id, definition_name, start_pos_row from mutation_specs "
            "order by operator_name, occurrence, start_pos_row, start_pos_col"
        ).fetchall()
        source = (copy / module).read_text().splitlines()
        jobs = [
            job
            for job, name, line in rows
            if name and not NO_RULES.search(name) and not NO_MEANING.match(source[line - 1])
        ]
        chosen = set(jobs if sample is None else random.Random(0).sample(jobs, min(sample, len(jobs))))
        for job, _, _ in rows:
            if job not in chosen:
                database.execute("delete from mutation_specs where job_id = ?", (job,))
                database.execute("delete from work_items where job_id = ?", (job,))
    subprocess.run([tool, "exec", config, session], cwd=copy, check=True, capture_output=True)
    with sqlite3.connect(session) as database:
        results = database.execute(
            "select m.operator_name, m.definition_name, m.start_pos_row, r.test_outcome, r.diff from mutation_specs m "
            "left join work_results r on r.job_id = m.job_id"
        ).fetchall()
    return [
        {
            "module": module,
            "kind": kind.partition("/")[2],
            "where": name,
            "line": line,
            "outcome": outcome or "not run",
            "diff": diff or "",
            "of": len(jobs),
        }
        for kind, name, line, outcome, diff in results
    ]


def changed(diff: str) -> str:
    """The changed line of a diff, before → after."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return " → ".join(f"`{line[1:].strip()}`" for line in lines)


def write(results: list[dict], sample: int | None) -> None:
    """docs/mutation.md, with the reasons that stand beside survivors in it already."""
    reasons = {}
    if TABLE.exists():
        reasons = dict(re.findall(r"^\| \S+ \| (.*?) \| (.*?) \|$", TABLE.read_text(), re.M))
    modules = sorted({r["module"] for r in results})
    lines = ["# Mutation score", "", f"Last run {date.today()}: `python tests/mutation.py"
             + (f" --sample {sample}`" if sample else "`") + ", cosmic-ray 8. `make mutate` runs it again.", "",
             "| file | mutants of its rules | tried | killed | survived |", "|---|---|---|---|---|"]  # fmt: skip
    total = [0, 0, 0, 0]
    for module in modules:
        own = [r for r in results if r["module"] == module]
        row = [
            own[0]["of"],
            len(own),
            sum(r["outcome"] == "KILLED" for r in own),
            sum(r["outcome"] == "SURVIVED" for r in own),
        ]
        total = [a + b for a, b in zip(total, row, strict=True)]
        lines.append(f"| {module} | " + " | ".join(map(str, row)) + " |")
    lines += ["| **all** | " + " | ".join(f"**{n}**" for n in total) + " |", "", "## Survivors", ""]
    survivors = [r for r in results if r["outcome"] == "SURVIVED"]
    lines += ["| where | change | why it lives |", "|---|---|---|"] if survivors else ["None."]
    for r in survivors:
        change = changed(r["diff"]).replace("|", "\\|")
        lines.append(f"| {Path(r['module']).name}:{r['line']} | {change} | {reasons.get(change, '?')} |")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, help="mutants of each file (default: all)")
    parser.add_argument("--files", nargs="*", help="names of files in autograd/ops (default: all)")
    parser.add_argument("--kernels", nargs="*", default=[], help="names of files in autograd/kernels")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one mutant")
    arguments = parser.parse_args()
    if arguments.files is None:
        arguments.files = sorted(p.stem for p in (ROOT / "autograd/ops").glob("[a-z]*.py"))
    jobs = [(f"autograd/ops/{file}.py", operators_in(file)) for file in arguments.files]
    jobs += [(f"autograd/kernels/{file}.py", KERNELS[file]) for file in arguments.kernels]
    results: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "groundup"
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".hypothesis")
        )
        for module, names in jobs:
            found = mutate(copy, module, names, arguments.sample, arguments.timeout)
            results += found
            killed = sum(r["outcome"] == "KILLED" for r in found)
            sys.stdout.write(f"{module}: {killed} of {len(found)} killed\n")
            for r in found:
                if r["outcome"] != "KILLED":
                    sys.stdout.write(
                        f"    {r['outcome']} line {r['line']} in {r['where']}: {changed(r['diff'])}\n"
                    )
            sys.stdout.flush()
            write(results, arguments.sample)


if __name__ == "__main__":
    main()
