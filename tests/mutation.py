"""The mutation score: do the tests notice when a rule or a kernel is wrong?

    python tests/mutation.py                             every mutant of every file (very long)
    python tests/mutation.py --sample 40                 40 of each file; always the same, and more include fewer
    python tests/mutation.py softmax.py ops/loss.py      some files
    python tests/mutation.py --again                     those that survived last time

cosmic-ray changes one thing at a time in a copy of the project: an operator, number, comparison or keyword, and by our
own plug-in (`mutators`) what it has no mutator for: a dropped term, another argument, a sign, a sum that overwrites, a
bound that is one off. Then it runs the few tests that aim at the file. A mutant that no test notices has *survived*:
either a test is missing, or the change means nothing.

Left out is what is no rule or kernel: samples and spaces, annotations, decorators, words of errors and the conditions'
values in them, `domain` (where tests draw from) and `fresh` (whether memory may be reused). Left out, too, is what
raises on any input: floats shifted or masked by bits, `is` for `<`.

A mutant of a kernel must be compiled. Kernels of files that do not depend on the mutated one come from the cache of the
unchanged copy, so only the mutated file and those above it are. The table in docs/mutation.md keeps the rows of files
that are not run, and the reasons beside survivors.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "mutation.md"
KERNELS = "autograd/kernels"

# For each kernel file the operators whose proof runs through it; its own tests run first.
PROOFS = {
    "activation": "gelu silu swiglu", "attention": "attention causal_self_attention",
    "attention_vectors": "attention causal_self_attention", "attention_bfloat16": "attention causal_self_attention",
    "cross_entropy": "cross_entropy linear_cross_entropy", "elementary": "gelu silu softmax", "embedding": "embedding",
    "norm": "layer_norm rms_norm", "random": "dropout", "rotary": "rotary_embedding", "softmax": "softmax log_softmax",
    "special": "erf", "matmul": "linear matmul_2d", "matrix": "linear",
}  # fmt: skip
# Kernel files without a test file of their own name, or with more than one.
OTHERS = {
    "arrays": "arrays", "ir": "matmul attention", "matrix": "matmul bfloat16",
    "attention_parts": "attention", "attention_vectors": "attention", "attention_bfloat16": "attention",
    "special": "", "elementary": "elementary softmax activation",
}  # fmt: skip
INFRASTRUCTURE = {"jit", "memory", "__init__"}  # how kernels are compiled and memory is kept: no arithmetic

NO_RULE = re.compile(r"samples?$|space$|_pairs|_apart|_samples|_space|examples$")
NO_VALUE = {"domain", "fresh", "__all__", "kinks", "_SHAPES"}
CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{python} tests/mutation.py --test {module}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = [
  "core/ReplaceBinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(RShift|LShift|BitOr|BitAnd|BitXor)",
  "core/ReplaceBinaryOperator_(Add|Sub|Mul|Div)_(Mod|Pow)",
  "core/ReplaceComparisonOperator_(Lt|LtE|Gt|GtE|Eq|NotEq)_(Is|IsNot|In|NotIn)",
  "core/RemoveDecorator", "core/ExceptionReplacer",
]
"""
PLUGIN = {
    "METADATA": "Metadata-Version: 2.1\nName: groundup-mutators\nVersion: 0\n",
    "entry_points.txt": "[cosmic_ray.operator_providers]\ngroundup = mutators:Provider\n",
}


# -- which tests, which mutants ----------------------------------------------------------------------------------------


def files() -> list[str]:
    """What is mutated: the files of operators and of kernels."""
    found = [*ROOT.glob("autograd/ops/[a-z]*.py"), *ROOT.glob(f"{KERNELS}/[a-z]*.py")]
    return sorted(str(p.relative_to(ROOT)) for p in found if p.stem not in INFRASTRUCTURE)


def tests_of(module: str) -> list[str]:
    """The tests that aim at a file, as arguments of pytest, the quickest first."""
    name = Path(module).stem
    if module.startswith(KERNELS):
        paths = [f"tests/test_kernels_{test}.py" for test in OTHERS.get(name, name).split()]
        names = PROOFS.get(name, "").split()
        paths += ["tests/test_autograd_operators.py"] if names else []
    else:
        import autograd

        names = [n for n, op in autograd.registry.items() if op.__module__ == f"autograd.ops.{name}"]
        names = names or ["sum", "softmax", "permute"]  # what uses the helpers of _axes.py
        rest = ["tests/test_autograd_tensor.py", "tests/test_gradients_composites.py"]
        paths = ["tests/test_autograd_operators.py", *rest]
    files = [path.partition("/")[2] for path in paths if "operators" not in path]
    return [*paths, "-k", " or ".join([*files, *(f"[{name}]" for name in names)])]


def run_tests(module: str) -> int:
    """What cosmic-ray runs for each mutant: 0 if every test passes."""
    import pytest

    if module.startswith(KERNELS):
        _reuse_kernels(module)
    plugins = [part for name in ("cacheprovider", "xdist", "anyio", "typeguard") for part in ("-p", f"no:{name}")]
    return int(pytest.main(["-x", "-q", *plugins, *tests_of(module)]))


@cache
def _imports(kernel: str) -> frozenset[str]:
    """The kernel files that a kernel file depends on, itself among them."""
    tree = ast.parse((ROOT / KERNELS / f"{kernel}.py").read_text())
    direct = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module}
    return frozenset({kernel}).union(*(_imports(other) for other in direct))


def _reuse_kernels(module: str) -> None:
    """Lay compiled kernels that a mutant does not touch where its tests look for them."""
    from autograd.kernels.jit import CACHE_FOLDER

    mutated, unchanged = Path(module).stem, os.environ.get("UNCHANGED_KERNELS", "")
    if not unchanged or CACHE_FOLDER is None or Path(unchanged) == CACHE_FOLDER:
        return
    for path in Path(unchanged).rglob("*.nb[ic]"):
        if mutated not in _imports(path.name.partition(".")[0]):
            target = CACHE_FOLDER / path.relative_to(unchanged)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy2(path, target)


def meaningless(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Stretches of a file whose mutants are no mistakes in a rule or kernel."""
    stretches: list = []

    def leave_out(node: ast.AST | None) -> None:
        if node is not None:
            stretches.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))  # type: ignore[attr-defined]

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            if NO_RULE.search(node.name):
                leave_out(node)
            if not node.args.defaults and not any(node.args.kw_defaults):  # a bare `*` is no product
                stretches.append(((node.lineno, node.col_offset), (node.body[0].lineno, 0)))
            for decorator in node.decorator_list:
                leave_out(decorator)
            for argument in (*node.args.args, *node.args.kwonlyargs):
                leave_out(argument.annotation)
            leave_out(node.returns)
        elif isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                leave_out(decorator)
        elif isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
            leave_out(node)
        elif isinstance(node, ast.AnnAssign):
            leave_out(node.annotation)
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in NO_VALUE for t in node.targets):
            leave_out(node)
    return stretches


# -- running them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change and what became of it: killed, survived, slow (killed by the clock), not compiled or not run."""

    module: str
    kind: str
    occurrence: int
    line: int
    outcome: str
    change: str
    of: int  # mutants of the file

    @property
    def key(self) -> str:
        return f"{self.kind} {self.occurrence}"


def mutate(copy: Path, module: str, sample: int | None, only: set[str] | None, timeout: float) -> list[Mutant]:
    """Run the mutants of one module in a copy of the project."""
    path, config, session = copy / module, copy / "cosmic-ray.toml", copy / "session.sqlite"
    session.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}{os.pathsep}{copy.parent / 'plugin'}",
        "HYPOTHESIS_PROFILE": "mutation", "NUMBA_NUM_THREADS": os.environ.get("NUMBA_NUM_THREADS", "2"),
        "NUMBA_CACHE_DIR": str(copy / "compiled"),
    }  # fmt: skip
    tool = Path(sys.executable).parent

    def run(*command: object, **more: str) -> subprocess.CompletedProcess:
        full = {**environment, **more}
        return subprocess.run([str(c) for c in command], cwd=copy, env=full, check=True, capture_output=True, text=True)

    started = time.monotonic()
    run(sys.executable, "tests/mutation.py", "--test", module)  # unchanged, it must pass; and its kernels are compiled
    seconds = time.monotonic() - started
    folder = "from autograd.kernels.jit import CACHE_FOLDER; print(CACHE_FOLDER)"
    unchanged = run(sys.executable, "-c", folder).stdout.strip()

    config.write_text(CONFIG.format(module=module, timeout=max(timeout, 4 * seconds), python=sys.executable))
    run(tool / "cosmic-ray", "init", config, session)
    run(tool / "cr-filter-operators", session, config)
    source, stamp = path.read_text(), path.stat()
    stretches = meaningless(source)
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "select m.job_id, m.operator_name, m.occurrence, m.start_pos_row, m.start_pos_col, m.end_pos_row, "
            "m.end_pos_col, r.job_id from mutation_specs m left join work_results r on r.job_id = m.job_id"
        ).fetchall()
        jobs = {
            job: f"{kind.rpartition('/')[2]} {occurrence}"
            for job, kind, occurrence, *position, filtered in rows
            if not filtered and not any(a <= tuple(position[:2]) and tuple(position[2:]) <= b for a, b in stretches)
        }
        chosen = sorted(jobs, key=lambda job: hashlib.sha256(f"{module} {jobs[job]}".encode()).digest())
        chosen = [job for job in chosen if only is None or jobs[job] in only][:sample]
        for job, *_ in rows:
            if job not in chosen:
                for table in ("work_results", "mutation_specs", "work_items"):
                    database.execute(f"delete from {table} where job_id = ?", (job,))
    run(tool / "cosmic-ray", "exec", config, session, UNCHANGED_KERNELS=unchanged)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as before, for Numba's cache
    for folder_ in (copy / "compiled").glob("kernels-*"):
        if str(folder_) != unchanged:
            shutil.rmtree(folder_)
    with sqlite3.connect(session) as database:
        results = database.execute(
            "select m.operator_name, m.occurrence, m.start_pos_row, r.test_outcome, r.output, r.diff "
            "from mutation_specs m left join work_results r on r.job_id = m.job_id"
        ).fetchall()
    return [
        Mutant(module, kind.rpartition("/")[2], occurrence, line, _outcome(outcome, output or ""), changed(diff or ""),
               len(jobs))
        for kind, occurrence, line, outcome, output, diff in results
    ]  # fmt: skip


def _outcome(outcome: str | None, output: str) -> str:
    if outcome == "KILLED" and output == "timeout":
        return "slow"
    if outcome == "KILLED" and re.search(r"^E .*(TypingError|LoweringError|Invalid use|SyntaxError)", output, re.M):
        return "not compiled"
    return {"KILLED": "killed", "SURVIVED": "survived"}.get(outcome or "", "not run")


def changed(diff: str) -> str:
    """The changed lines of a diff, before → after."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    before = " ".join(line[1:].strip() for line in lines if line[0] == "-")
    after = " ".join(line[1:].strip() for line in lines if line[0] == "+")
    return f"`{before}` → `{after}`".replace("|", "\\|")


# -- the table -----------------------------------------------------------------------------------------------------


ROW = re.compile(r"^\| (autograd/\S+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\S+) \|$", re.M)
SURVIVOR = re.compile(r"^\| (autograd/\S+):(\d+) \| (\w+ \d+) \| (.*?) \| ([^|]*) \|$", re.M)


def write(results: list[Mutant], again: bool = False) -> None:
    """docs/mutation.md: rows of files that were run are replaced, the others and all reasons kept."""
    text = TABLE.read_text() if TABLE.exists() else ""
    rows = {row[0]: [int(n) for n in row[1:7]] + [row[7]] for row in ROW.findall(text)}
    survivors = {(m, key): (line, change, why) for m, line, key, change, why in SURVIVOR.findall(text)}
    reasons = {(m, change): why for (m, _), (_, change, why) in survivors.items()}
    for module in {r.module for r in results}:
        own = [r for r in results if r.module == module]
        survivors = {k: v for k, v in survivors.items() if k[0] != module}
        for r in own:
            if r.outcome not in ("killed", "slow", "not compiled"):
                survivors[module, r.key] = (str(r.line), r.change, reasons.get((module, r.change), "?"))
        left = sum(m == module for m, _ in survivors)
        if again:
            size, tried, _, dead, slow, _, _ = rows[module]
        else:
            size, tried = own[0].of, len(own)
            dead, slow = (sum(r.outcome == o for r in own) for o in ("not compiled", "slow"))
        rows[module] = [size, tried, tried - left, dead, slow, 0, str(date.today())]
    for module, row in rows.items():
        row[5] = sum(m == module and why.startswith("equivalent") for (m, _), (_, _, why) in survivors.items())
    head, _, rest = text.partition("<!-- table -->")
    tail = rest.partition("<!-- end -->")[2]
    total = [sum(row[i] for row in rows.values()) for i in range(6)]
    lines = ["| file | mutants | tried | killed | of these not compiled | of these by the clock | equivalent | on |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [f"| {module} | {' | '.join(map(str, row))} |" for module, row in sorted(rows.items())]
    lines += [f"| **all** | {' | '.join(f'**{n}**' for n in total)} | |", ""]
    since = sum(why.startswith("killed since") for _, _, why in survivors.values())
    meant = max(1, total[1] - total[5])
    lines += [f"{total[1]} of {total[0]} mutants were tried. Of those that mean something, tests killed "
              f"{100 * total[2] / meant:.1f} %, and with the tests that survivors asked for "
              f"{100 * (total[2] + since) / meant:.1f} %.", "", "## Survivors", ""]  # fmt: skip
    lines += ["| where | mutator | change | why it lives |", "|---|---|---|---|"]
    place = lambda item: (item[0][0], int(item[1][0]), item[0][1])
    lines += [f"| {m}:{line} | {key} | {change} | {why} |"
              for (m, key), (line, change, why) in sorted(survivors.items(), key=place)]  # fmt: skip
    TABLE.write_text(f"{head}<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->" + (tail or "\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="parts of paths, such as softmax.py or ops/ (default: all)")
    parser.add_argument("--sample", type=int, help="mutants of each file (default: all)")
    parser.add_argument("--again", action="store_true", help="only those that survived last time")
    parser.add_argument("--workers", type=int, default=2, help="files that are worked on at the same time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one mutant, at least")
    parser.add_argument("--test", metavar="FILE", help="only run the tests that aim at FILE, here")
    arguments = parser.parse_args()
    if arguments.test:
        sys.exit(run_tests(arguments.test))
    chosen = [f for f in files() if not arguments.files or any(part in f for part in arguments.files)]
    last: dict[str, set[str]] = {}
    if arguments.again:
        for module, _, key, _, why in SURVIVOR.findall(TABLE.read_text()):
            if not why.startswith("equivalent"):
                last.setdefault(module, set()).add(key)
        chosen = [f for f in chosen if f in last]
    results: list[Mutant] = []
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "plugin" / "groundup_mutators-0.dist-info"
        plugin.mkdir(parents=True)
        for name, text in PLUGIN.items():
            (plugin / name).write_text(text)
        idle = []
        for i in range(arguments.workers):
            idle.append(Path(folder) / f"copy{i}")
            left_out = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".hypothesis")
            shutil.copytree(ROOT, idle[-1], ignore=left_out)

        def work(module: str) -> None:
            copy = idle.pop()
            try:
                only = last[module] if arguments.again else None
                found = mutate(copy, module, arguments.sample, only, arguments.timeout)
            except subprocess.CalledProcessError as error:
                sys.exit(f"{module}: {error.cmd} failed:\n{error.stdout[-3000:]}{error.stderr[-3000:]}")
            finally:
                idle.append(copy)
            with lock:
                results.extend(found)
                lived = [r for r in found if r.outcome in ("survived", "not run")]
                sys.stdout.write(f"{module}: {len(found) - len(lived)} of {len(found)} killed\n")
                sys.stdout.writelines(f"    {r.outcome} line {r.line}, {r.key}: {r.change}\n" for r in lived)
                sys.stdout.flush()
                write(results, arguments.again)

        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(work, chosen))


if __name__ == "__main__":
    main()
