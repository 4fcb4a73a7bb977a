"""The mutation score: do the tests notice when a rule or a kernel is wrong?

    python tests/mutation.py                             a mutant of each kind in each function
    python tests/mutation.py --each 3                    three of each kind in each function
    python tests/mutation.py --all                       every mutant (many hours)
    python tests/mutation.py softmax.py ops/loss.py      some files
    python tests/mutation.py --sample 40                 the first 40 of each file
    python tests/mutation.py --again                     those that survived, with tests that are better now

cosmic-ray changes one thing at a time: an operator, number, comparison or keyword, and by our own plug-in (`mutators`)
what it has no mutator for: a dropped term, another argument, a sign, a sum that overwrites, a bound that is one off.
Then the few tests that aim at the changed function run, and stop at the first failure. A mutant that no test notices
has *survived*: either a test is missing, or the change means nothing.

Each mutant is a fork of one process that has imported everything except the project, and meets its change while it
imports that: no file is touched, no copy made. A mutated kernel is compiled, and what is built on it; all others come
from the usual cache. Time is counted on the processor, so that a machine that is busy or suspended kills nobody.

Mutants are tried in an order in which each kind of each function has its turn before any has a second one, so a run
that is broken off is still a fair sample. Results are kept in .mutation/, a database of cosmic-ray's for each file and
version of it: the next run goes on where the last one stopped. The table in docs/mutation.md keeps the rows of files
that are not run, and the reasons beside survivors.

Left out is what is no rule or kernel: samples and spaces, annotations, decorators, words of errors and the conditions'
values in them, `domain` (where tests draw from) and `fresh` (whether memory may be reused). Left out, too, is what
raises on any input: floats shifted or masked by bits, `is` for `<`. And what changes speed only: `meaningless`.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib.machinery
import importlib.util
import itertools
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "mutation.md"
RESULTS = ROOT / ".mutation"
KERNELS = "autograd/kernels"

# For each kernel file the operators whose proof runs through it; its own tests run first.
PROOFS = {
    "activation": "gelu silu swiglu", "attention": "attention causal_self_attention",
    "attention_vectors": "attention causal_self_attention", "attention_parts": "attention causal_self_attention",
    "cross_entropy": "cross_entropy linear_cross_entropy", "elementary": "gelu silu softmax", "embedding": "embedding",
    "norm": "layer_norm rms_norm residual_mlp", "mlp": "mlp residual_mlp", "epilogue": "mlp", "split": "linear matmul",
    "random": "dropout", "rotary": "rotary_embedding",
    "multi_head": "causal_self_attention multi_head_attention residual_attention",
    "softmax": "softmax log_softmax",
    "special": "erf", "matmul": "linear matmul", "matrix": "linear matmul", "sums": "add",
}  # fmt: skip
# Kernel files without a test file of their own name, or with more than one.
OTHERS = {
    "arrays": "arrays", "ir": "ir matmul attention bfloat16 split mlp", "matrix": "matmul bfloat16",
    "tasks": "tasks together matmul attention", "bfloat16": "bfloat16 split mlp attention",
    "matmul": "matmul split mlp bfloat16", "split": "split matmul mlp",
    "attention_parts": "attention", "attention_vectors": "attention", "attention_tiles": "attention",
    "epilogue": "mlp",
    "special": "", "elementary": "elementary softmax activation norm",
}  # fmt: skip
# Which of these tests meet the kernel; the others would only compile more. One on a smaller processor is a process of
# its own, in which nothing is changed.
AIMED = {"attention_tiles": "bfloat16 or even or parts", "attention_vectors": "not bfloat16 and not parts"}
AIMED["bfloat16"] = "bfloat16 or split or even or mlp"
ELSEWHERE = "not processor"
INFRASTRUCTURE = {"jit", "memory", "__init__"}  # how kernels are compiled and memory is kept: no arithmetic

# The kinds of mistakes, and the mutators that make them.
KINDS = {
    "sign": r"NegateResult|_(Add_Sub|Sub_Add)$|UnaryOperator",
    "dropped term": r"DropTerm",
    "wrong value": r"WrongValue",
    "accumulation": r"Accumulate",
    "bound": r"OffByOne|Comparison|ZeroIteration|Break|Continue",
    "number or axis": r"NumberReplacer",
    "operation": r"BinaryOperator",
    "condition": r"",
}
RAISES = re.compile(
    r"core/(ReplaceBinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(RShift|LShift|BitOr|BitAnd|BitXor)"
    r"|ReplaceBinaryOperator_(Add|Sub|Mul|Div)_(Mod|Pow)"
    r"|ReplaceComparisonOperator_(Lt|LtE|Gt|GtE|Eq|NotEq)_(Is|IsNot|In|NotIn)|RemoveDecorator|ExceptionReplacer)$"
)

# The last ones say who does what when.
NO_RULE = re.compile(r"samples?$|space$|_pairs|_apart|_samples|_space|examples$|^plan$|^prefetch$|^fetch_soon$")
NO_VALUE = {"domain", "fresh", "__all__", "kinks", "_SHAPES"}
# How much of an array is worked on at a time: any size gives the same numbers, at another speed.
NO_VALUE |= {"GRAIN", "CHUNK_BYTES", "PARTIALS", "QUERIES", "KEYS", "FEW", "DEPTH", "WIDTH", "GROUP", "SMALL", "APART"}
NO_VALUE |= {"TILED", "DOTS", "UNROLL", "VECTOR_TASK", "VECTOR_UNIT", "TASKS", "ROWS_OF_PART", "step"}
NO_VALUE |= {"CLOCKS_TILE", "CLOCKS_PACK", "CLOCKS_PACK_A", "CLOCKS_PACK_B"}
NO_OPTION = {"copy", "strict"}  # what need not be copied, or does not differ in length
NO_OPTION |= {"likely", "inline"}  # what decides about speed


# -- which mutants -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change of a file, by the `occurrence`-th use of one of cosmic-ray's mutators in it."""

    module: str
    mutator: str
    occurrence: int
    line: int
    function: str  # where it is: `softmax.vjp`
    turn: int  # how many mutants of its kind come before it in its function
    job: str

    @property
    def key(self) -> str:
        return f"{self.mutator.rpartition('/')[2]} {self.occurrence}"

    @property
    def kind(self) -> str:
        return next(kind for kind, pattern in KINDS.items() if re.search(pattern, self.mutator))

    @property
    def chance(self) -> bytes:
        """Its place among those that have the same turn."""
        return hashlib.sha256(f"{self.module} {self.key}".encode()).digest()

    def code(self) -> str:
        """The file with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        code = mutate_code((ROOT / self.module).read_text(), get_operator(self.mutator)(), self.occurrence)
        assert code is not None, "the file is the one that the mutants were found in"
        return code


def files() -> list[str]:
    """What is mutated: the files of operators and of kernels."""
    found = [*ROOT.glob("autograd/ops/[a-z_]*.py"), *ROOT.glob(f"{KERNELS}/[a-z]*.py")]
    return sorted(str(p.relative_to(ROOT)) for p in found if p.stem not in INFRASTRUCTURE)


def database(module: str) -> Any:
    """cosmic-ray's mutants of a file as it is now, and what became of them."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB

    version = hashlib.sha256((ROOT / module).read_bytes() + (ROOT / "tests/mutators.py").read_bytes()).hexdigest()[:12]
    name = module.removesuffix(".py").replace("/", "-")
    path = RESULTS / f"{name}-{version}.sqlite"
    for older in RESULTS.glob(f"{name}-{'?' * 12}.sqlite"):
        if older != path:
            older.unlink()
    fresh = not path.exists()
    opened = WorkDB(path, WorkDB.Mode.create)
    if fresh:
        init([Path(module)], opened, {})
    return opened


def mutants(module: str, opened: Any) -> list[Mutant]:
    """The mutants of a file that mean something, in the order of their turns."""
    source = (ROOT / module).read_text()
    stretches, functions = meaningless(source), _functions(source)
    found = []
    for item in opened.work_items:
        (spec,) = item.mutations
        if RAISES.search(spec.operator_name) or any(
            a <= spec.start_pos and spec.end_pos <= b and re.search(mutator, spec.operator_name)
            for a, b, mutator in stretches
        ):
            continue
        line = spec.start_pos[0]
        within = [name for name, first, last in functions if first <= line <= last]  # the innermost comes last
        function = within[-1] if within else ""
        found.append(Mutant(module, spec.operator_name, spec.occurrence, line, function, 0, item.job_id))
    turns: Counter = Counter()
    ordered = []
    for mutant in sorted(found, key=lambda m: m.chance):
        place = mutant.function, mutant.kind
        ordered.append(Mutant(**(vars(mutant) | {"turn": turns[place]})))
        turns[place] += 1
    return sorted(ordered, key=lambda m: (m.turn, m.chance))


def _functions(source: str) -> list[tuple[str, int, int]]:
    """Every function and class of a file by its full name, with its first and last line."""
    found: list[tuple[str, int, int]] = []

    def visit(node: ast.AST, path: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            inner = (*path, child.name) if named else path  # type: ignore[attr-defined]
            if named:
                found.append((".".join(inner), child.lineno, child.end_lineno))  # type: ignore[attr-defined]
            visit(child, inner)

    visit(ast.parse(source), ())
    return found


def meaningless(source: str) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """Stretches of a file, from and to, in which these mutators (all, for "") make no mistake in a rule or kernel."""
    stretches: list = []

    def leave_out(node: Any, mutator: str = "") -> None:
        if node is not None:
            stretches.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), mutator))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            if NO_RULE.search(node.name):
                leave_out(node)
            if not node.args.defaults and not any(node.args.kw_defaults):
                stretches.append(((node.lineno, node.col_offset), (node.body[0].lineno, 0), ""))
            if node.args.kwonlyargs and not node.args.vararg:  # a bare `*` is no product
                before = [node, *node.args.args, *node.args.defaults][-1 if node.args.args else 0]
                start = (node.lineno, node.col_offset) if before is node else (before.end_lineno, before.end_col_offset)
                stretches.append((start, (node.args.kwonlyargs[0].lineno, node.args.kwonlyargs[0].col_offset), ""))
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
        elif isinstance(node, ast.Call):
            for option in node.keywords:
                leave_out(option if option.arg in NO_OPTION else None)
            if getattr(node.func, "attr", "") == "reshape":
                for argument in node.args:  # NumPy takes any negative size for the one to infer
                    leave_out(argument if isinstance(argument, ast.UnaryOp) else None, "NumberReplacer|Invert")
            if getattr(node.func, "id", "") == "rows_per_chunk":  # any number of rows gives the same numbers
                leave_out(node)
            if getattr(node.func, "id", getattr(node.func, "attr", "")) in ("fetch_soon", "prefetch"):  # speed only
                leave_out(node)
            if getattr(node.func, "id", "") == "prange":
                leave_out(node, "^(?!.*OffByOne)")  # more chunks than there are find nothing to do
        elif isinstance(node, ast.AnnAssign):
            leave_out(node.annotation)
        elif isinstance(node, ast.Assign) and any(
            getattr(name, "id", "") in NO_VALUE for target in node.targets for name in ast.walk(target)
        ):
            leave_out(node)
    return stretches


# -- which tests -------------------------------------------------------------------------------------------------------


def tests_of(module: str, function: str = "") -> Iterator[list[str]]:
    """The tests that aim at a file (or at one function in it), as arguments of pytest, in the order they are tried."""
    name, proofs = Path(module).stem, "tests/test_autograd_operators.py"
    if module.startswith(KERNELS):
        for test in OTHERS.get(name, name).split():
            yield [f"tests/test_kernels_{test}.py", "-k", f"{ELSEWHERE} and ({AIMED.get(name, ELSEWHERE)})"]
        names = PROOFS.get(name, "").split()
        if names:
            yield [proofs, "-k", " or ".join(f"[{operator}]" for operator in names)]
        return
    import autograd

    here = [op.name for op in autograd.registry.values() if op.__module__ == f"autograd.ops.{name}"]
    outermost = function.partition(".")[0].rstrip("_")
    names = [outermost] if outermost in here else here or ["sum", "softmax", "permute"]  # what uses _axes.py
    yield [proofs, "-k", " or ".join(f"[{operator}]" for operator in names)]
    yield ["tests/test_autograd_tensor.py"]
    aimed = "-k", " or ".join({outermost or names[0], *names})
    yield ["tests/test_gradients_composites.py", *aimed]
    yield ["tests/test_autograd_functions.py", *aimed]


def run_tests(module: str, function: str = "") -> int:
    """0 if every test passes."""
    import pytest

    for arguments in tests_of(module, function):
        status = pytest.main(["-x", "-q", "--tb=short", "-p", "no:cacheprovider", *arguments])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):  # no composite uses it
            return int(status)
    return 0


# -- one mutant --------------------------------------------------------------------------------------------------------


@cache
def _imports(kernel: str) -> frozenset[str]:
    """The kernel files that a kernel file is built on, itself among them: not what it imports while it runs."""
    statements = ast.parse((ROOT / KERNELS / f"{kernel}.py").read_text()).body
    direct = {n.module for n in statements if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module}
    return frozenset({kernel}).union(*(_imports(other) for other in direct))


def change_imports(module: str, code: str) -> None:
    """From now on, `module` is imported as `code`; kernels built on it are compiled, not taken from the cache."""
    path, mutated = str(ROOT / module), Path(module).stem
    loader: Any = importlib.machinery.SourceFileLoader
    get_code, exec_module = loader.get_code, loader.exec_module

    def changed_code(self: Any, name: str) -> Any:
        return compile(code, path, "exec", dont_inherit=True) if self.path == path else get_code(self, name)

    def exec_with_cache(self: Any, loaded: Any) -> None:
        room, _, kernel = loaded.__name__.rpartition(".")
        cached = room == "autograd.kernels" and kernel not in INFRASTRUCTURE and mutated not in _imports(kernel)
        if cached:
            jit.CACHE_FOLDER = folder
        exec_module(self, loaded)
        if cached:
            jit.CACHE_FOLDER = None

    loader.get_code = changed_code
    if module.startswith(KERNELS):
        # Nothing comes from the cache but kernels of files that do not import the changed one; tests compile some, too.
        jit, folder = _compiler()
        jit.CACHE_FOLDER = None
        loader.exec_module = exec_with_cache


def _compiler() -> tuple[Any, Any]:
    """The module that compiles kernels, by itself, and the folder of its cache."""
    name = "autograd.kernels.jit"
    found = importlib.util.spec_from_file_location(name, ROOT / KERNELS / "jit.py")
    assert found is not None and found.loader is not None
    jit: Any = importlib.util.module_from_spec(found)
    sys.modules[name] = jit
    found.loader.exec_module(jit)
    return jit, jit.CACHE_FOLDER


def warm_up() -> None:
    """Import what every mutant needs and none changes, and no thread."""
    os.chdir(ROOT)
    os.environ |= {"HYPOTHESIS_PROFILE": "mutation", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ |= {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}  # mutants share the processors
    os.environ.setdefault("NUMBA_NUM_THREADS", "2")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import cosmic_ray.plugins
    import hypothesis.extra.numpy  # noqa: F401
    import mutators
    import numba
    import numba.parfors.parfor_lowering
    import pytest  # noqa: F401

    cosmic_ray.plugins.OPERATOR_PROVIDERS["groundup"] = mutators.Provider()
    numba.njit(lambda x: x + 1)(1.0)  # the first compilation loads Numba's own functions
    gc.freeze()


def start(mutant: Mutant | None, module: str, seconds: int, output: Path) -> int:
    """Fork a process that runs the tests of a mutant (or of the unchanged file), and give its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        where = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(where, 1)
        os.dup2(where, 2)
        change_imports(module, mutant.code() if mutant else (ROOT / module).read_text())
        status = run_tests(module, mutant.function if mutant else "")
        sys.stdout.flush()
    except BaseException:  # a mutant may raise anything while it is imported
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def passed(module: str, path: Path) -> bool:
    """Whether the tests passed on the unchanged file, since it or any test was written."""
    written = [ROOT / module, *ROOT.glob("tests/*.py")]
    return path.exists() and path.stat().st_mtime > max(p.stat().st_mtime for p in written)


NOT_COMPILED = re.compile(r"^E .*(TypingError|LoweringError|Invalid use|SyntaxError)", re.M)


def outcome_of(status: int, text: str) -> str:
    """killed, survived, slow (killed by the clock), not compiled, or why nothing was learned."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return "slow"
    if status == 0:
        return "survived"
    if os.waitstatus_to_exitcode(status) == 4:  # pytest was called wrongly
        return "not run"
    return "not compiled" if NOT_COMPILED.search(text) else "killed"


# -- all of them -------------------------------------------------------------------------------------------------------


def run(jobs: Iterator[tuple[Mutant | None, str, int]], workers: int) -> Iterator[tuple]:
    """Run jobs (mutant, file, seconds of processor time) beside each other; yields job, outcome, output, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        numbers, running = itertools.count(), {}
        try:
            while True:
                for job in itertools.islice(jobs, workers - len(running)):
                    output = Path(folder) / str(next(numbers))
                    running[start(*job, output)] = job, output, time.monotonic()
                if not running:
                    return
                child, status, usage = os.wait4(-1, os.WNOHANG)
                if child in running:
                    job, output, _ = running.pop(child)
                    text = output.read_text(errors="replace")[-20000:]
                    output.unlink()
                    yield job, outcome_of(status, text), text, usage.ru_utime + usage.ru_stime
                else:
                    time.sleep(0.01)
                for child, (job, _, begun) in running.items():
                    if time.monotonic() - begun > 600 + 10 * job[2]:  # waits for something that never comes
                        os.kill(child, signal.SIGKILL)
        finally:
            for child in running:
                os.kill(child, signal.SIGKILL)


def changed(mutant: Mutant) -> str:
    """The changed lines, before → after."""
    import difflib

    lines = [
        line
        for line in difflib.ndiff((ROOT / mutant.module).read_text().splitlines(), mutant.code().splitlines())
        if line[:1] in "+-"
    ]
    before, after = (" ".join(line[2:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return f"`{before}` → `{after}`".replace("|", "\\|")


# -- the table ---------------------------------------------------------------------------------------------------------

ROW = re.compile(r"^\| (autograd/\S+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\S+) \|$", re.M)
SURVIVOR = re.compile(r"^\| (autograd/\S+):(\d+) \| (\w+ \d+) \| (.*?) \| ([^|]*) \|$", re.M)
LIVING = ("survived", "not run")


def write(found: dict[str, list[Mutant]], outcomes: dict[str, str]) -> None:
    """docs/mutation.md: rows of files that were run are replaced, the others and all reasons kept."""
    text = TABLE.read_text() if TABLE.exists() else ""
    rows = {row[0]: [int(n) for n in row[1:7]] + [row[7]] for row in ROW.findall(text)}
    survivors = {(m, key): (line, change, why) for m, line, key, change, why in SURVIVOR.findall(text)}
    reasons = {(m, change): why for (m, _), (_, change, why) in survivors.items()}
    for module, own in found.items():
        tried = Counter(outcomes[m.job] for m in own if m.job in outcomes)
        if not tried:
            continue
        survivors = {k: v for k, v in survivors.items() if k[0] != module}
        for mutant in own:
            if outcomes.get(mutant.job) in LIVING:
                change = changed(mutant)
                survivors[module, mutant.key] = str(mutant.line), change, reasons.get((module, change), "?")
        dead = tried.total() - sum(tried[outcome] for outcome in LIVING)
        row = [len(own), tried.total(), dead, tried["not compiled"], tried["slow"], 0, str(date.today())]
        rows[module] = row
    for module, row in rows.items():
        row[5] = sum(m == module and why.startswith("equivalent") for (m, _), (_, _, why) in survivors.items())
    head, _, rest = text.partition("<!-- table -->")
    tail = rest.partition("<!-- end -->")[2]
    total = [sum(row[i] for row in rows.values()) for i in range(6)]
    lines = ["| file | mutants | tried | killed | of these not compiled | of these by the clock | equivalent | on |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [f"| {module} | {' | '.join(map(str, row))} |" for module, row in sorted(rows.items())]
    lines += [f"| **all** | {' | '.join(f'**{n}**' for n in total)} | |", ""]
    meant = max(1, total[1] - total[5])
    lines += [f"{total[1]} of {total[0]} mutants were tried. Of those that mean something, tests kill "
              f"{100 * total[2] / meant:.1f} %.", "", "## Survivors", ""]  # fmt: skip
    lines += ["| where | mutator | change | why it lives |", "|---|---|---|---|"]
    place = lambda item: (item[0][0], int(item[1][0]), item[0][1])
    lines += [f"| {m}:{line} | {key} | {change} | {why} |"
              for (m, key), (line, change, why) in sorted(survivors.items(), key=place)]  # fmt: skip
    TABLE.write_text(f"{head}<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->" + (tail or "\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="parts of paths, such as softmax.py or ops/ (default: all)")
    parser.add_argument("--each", type=int, default=1, help="mutants of each kind in each function (default: 1)")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--sample", type=int, help="only the first so many of each file")
    parser.add_argument("--again", action="store_true", help="those that survived, for no reason that is written down")
    parser.add_argument("--workers", type=int, default=2, help="mutants that are tried at the same time")
    parser.add_argument("--timeout", type=int, default=150, help="seconds of processor time for one mutant, at least")
    arguments = parser.parse_args()
    chosen = [f for f in files() if not arguments.files or any(part in f for part in arguments.files)]
    if not chosen:
        sys.exit(f"expected parts of paths such as softmax.py or ops/, got {' '.join(arguments.files)}: no such file")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    warm_up()
    RESULTS.mkdir(exist_ok=True)

    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    databases = {module: database(module) for module in chosen}
    found = {module: mutants(module, opened) for module, opened in databases.items()}
    # An outcome of ours is the first line of the output that cosmic-ray keeps.
    outcomes = {job: r.output.partition("\n")[0] for opened in databases.values() for job, r in opened.results}

    waiting = [m for own in found.values() for m in own[: arguments.sample] if arguments.all or m.turn < arguments.each]
    if arguments.again:
        known = {(m, key) for m, _, key, _, why in SURVIVOR.findall(TABLE.read_text()) if why.startswith("equivalent")}
        waiting = [m for own in found.values() for m in own
                   if outcomes.get(m.job) in LIVING and (m.module, m.key) not in known]  # fmt: skip
    else:
        waiting = [m for m in waiting if m.job not in outcomes]
    waiting.sort(key=lambda m: (m.turn, m.chance))

    needed = {module: RESULTS / f"{module.replace('/', '-')}.seconds" for module in {m.module for m in waiting}}
    unchanged = [(None, module, 3600) for module, path in needed.items() if not passed(module, path)]
    for (_, module, _), outcome, text, seconds in run(iter(unchanged), arguments.workers):
        if outcome != "survived":
            sys.exit(f"{module}: its tests must pass before anything is changed:\n{text[-3000:]}")
        needed[module].write_text(str(int(seconds)))
    limits = {module: max(arguments.timeout, 3 * int(path.read_text())) for module, path in needed.items()}
    done, spent = 0, 0.0
    try:
        jobs = ((m, m.module, limits[m.module]) for m in waiting)
        for (mutant, module, _), outcome, text, seconds in run(jobs, arguments.workers):
            outcomes[mutant.job] = outcome
            result = TestOutcome.SURVIVED if outcome in LIVING else TestOutcome.KILLED
            databases[module].set_result(
                mutant.job, WorkResult(WorkerOutcome.NORMAL, f"{outcome}\n{text[-2000:]}", result, None)
            )
            done, spent = done + 1, spent + seconds
            if outcome in LIVING:
                sys.stdout.write(f"{outcome}: {module}:{mutant.line} {mutant.key}: {changed(mutant)}\n")
            if not done % 50:
                sys.stdout.write(f"{done} of {len(waiting)}, {spent / done:.1f} s of processor time each\n")
            sys.stdout.flush()
    finally:
        write(found, outcomes)


if __name__ == "__main__":
    main()
