"""The certificate: every operator, every check, the worst error beside its bound.

    python -m autograd.prove                       certificate.html and certificate.txt, at full size
    python -m autograd.prove --examples 20 --out /tmp/certificate.html

Each operator is proved (see `proof`) on its own samples and on samples drawn from its whole space (see
`testing`). The page works offline; exit code 1 if anything is not proved.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from .op import Op, Sample, registry
from .proof import CHECKS, Finding, prove, refuses
from .testing import samples_of, spaces
from .typeset import page_of

__all__ = ["Certificate", "certify", "html", "text"]

NARROW = ("float32", "bfloat16", "mixed")
COLUMNS = (*(check for check in CHECKS if check not in NARROW), "subgradient", *NARROW, "errors")
ULP = {"value", "float32", "bfloat16", "dot", "linear", "aliased", "mixed", "layout"}  # the others: relative errors
DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "mixed": "both", "errors": "any"}  # else float64
MEANING = {
    "value": "the result is that of NumPy, or of the textbook definition, in units in the last place (ulp)",
    "derivative": "the gradient is the limit of differences, extrapolated to ten digits; the bound is their error bar",
    "float32": "result and gradients in float32 are those of the definition in float64",
    "bfloat16": "and so they are with matrix products in bfloat16, in its units of 2⁻⁸",
    "second": "the gradient's own derivative is the limit of differences, too",
    "complex": "the gradient is Im f(x + ih)/h, with no difference that could cancel",
    "dot": "⟨Ju, v⟩ = ⟨u, Jᵀv⟩: forward and backward derivative are transposes of each other",
    "linear": "the backward pass is linear in dout",
    "mixed": "inputs of different precision: the wider one computes, each gradient has its input's dtype",
    "aliased": "one tensor for two inputs gets the sum of both gradients",
    "layout": "strides, order and read-only memory of the inputs change nothing",
    "untouched": "inputs, result and dout are not written to: the number of arrays that were",
    "subgradient": "where there is no derivative, that is noticed, and the rule gives what is documented",
    "errors": "bad inputs are refused with a reason",
}


INTRODUCTION = """Every operator was tried on its own samples and on inputs drawn from its whole space: shapes that
broadcast, empty and 0-d arrays, slices, reversed and repeated axes, equal indices, large scores. Each cell is the worst
error that was found, the darker the closer to its bound; hover for the bound and the number of cases. A dot: the check
does not apply. Bounds are not chosen: those of differences are their own error bars, and one ulp is what rounding each
step of the definition does to this result at this point. Bars below show how much of the bound an error takes."""


@dataclass
class Certificate:
    """What was found out about one operator."""

    op: Op
    worst: dict[str, Finding] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)
    failure: str = ""

    def add(self, found: dict[str, Finding]) -> None:
        for check, finding in found.items():
            self.cases[check] = self.cases.get(check, 0) + 1
            worst = self.worst.get(check)
            if worst is None or finding.error * worst.bound >= worst.error * finding.bound:
                self.worst[check] = finding


def certify(op: Op, examples: int) -> Certificate:
    """Prove an operator on its samples and on `examples` drawn ones; the first failure is noted and ends
    it.
    """
    result = Certificate(op)

    @seed(0)
    @settings(max_examples=max(1, examples), deadline=None, phases=[Phase.generate], database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(spaces(op))
    def drawn(sample: Sample) -> None:
        result.add(prove(op, sample))

    try:
        for sample in samples_of(op):
            result.add(prove(op, sample))
        for sample in samples_of(op, errors=True):
            refuses(op, sample)
            result.add({"errors": Finding(0, 0)})
        if examples:
            drawn()
    except AssertionError as error:
        result.failure = str(error)
    return result


def not_applicable(op: Op, check: str) -> str:
    """Why an operator has no entry for a check."""
    if check == "complex":
        return "it is not analytic"
    if check == "float32":
        return "it is about dtypes itself"
    if check == "bfloat16":
        return "matmul_precision does not change it"
    if check in ("aliased", "mixed"):
        return "it has no two inputs that could be so"
    if check == "subgradient":
        return "no kinks"
    if check == "errors":
        return "takes every input of its kind"
    return "not reached"


# -- as text -----------------------------------------------------------------------------------------------


def text(certificates: Iterable[Certificate]) -> str:
    """A line for each operator and check: dtype, cases, worst error, its bound."""
    lines = [f"{'operator':22s} {'check':12s} {'dtype':18s} {'cases':>6s} {'worst error':>12s} {'bound':>10s}"]
    lines.append("-" * len(lines[0]))
    for c in certificates:
        for check in COLUMNS:
            if check in c.worst:
                error, bound = c.worst[check]
                lines.append(f"{c.op.name:22s} {check:12s} {DTYPES.get(check, 'float64'):18s} {c.cases[check]:6d} "
                             f"{error:12.2g} {bound:10.2g} {'ulp' if check in ULP else ''}".rstrip())  # fmt: skip
        if c.failure:
            lines.append(f"{c.op.name:22s} NOT PROVED: {c.failure.splitlines()[0]}")
    return "\n".join(lines)


# -- as a page ---------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --page: light-dark(#fff, #14171a); --ink: light-dark(#16191c, #e6e8ea);
  --soft: light-dark(#5c6670, #98a2ac); --line: light-dark(#e3e6e9, #2b3137); --good: light-dark(#2f9e66, #3fb47a);
  --tint: light-dark(#e9f6ef, #1b3227); --deep: light-dark(#a9dcc1, #2c6a4a); --bad: #e5484d }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 84rem; padding: 2rem clamp(1rem, 3vw, 2.5rem) 5rem }
h1 { font-size: 1.9rem; font-weight: 680; margin: 0 0 .2rem } h2 { font-size: 1.3rem; margin: 3.5rem 0 0 }
h3 { font: 600 1.05rem ui-monospace, monospace; margin: 0 } p { max-width: 62rem } .soft, .prose { color: var(--soft) }
a { color: inherit; text-underline-offset: .15em; text-decoration-color: var(--soft) }
.big { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.3rem 0 } .big b { display: block;
  font-size: 1.7rem; font-weight: 680; line-height: 1.2; white-space: nowrap }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th { font-weight: 600; text-align: left } th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--line) }
.wide { overflow-x: auto } .wide th, .wide td { white-space: nowrap }
.matrix td, .matrix th { text-align: center; padding: .14rem .2rem } .matrix th[colspan] { font-weight: 400;
  color: var(--soft); border-bottom: 0 } .matrix th.kind { text-align: left; padding-top: .9rem; color: var(--soft);
  font: 500 13px system-ui, sans-serif !important }
.matrix td:first-child, .matrix th:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); font-family: ui-monospace, monospace; padding-right: .8rem }
.mark { display: block; min-width: 3.3rem; padding: 0 .3rem; border-radius: 4px; font-size: 12px }
.mark sup { font-size: 9px; line-height: 0 } .bad { background: var(--bad); color: #fff } .none { color: var(--soft) }
section { border-top: 1px solid var(--line); padding: 1.3rem 0; display: grid; gap: .3rem 2.5rem;
  grid-template-columns: minmax(0, 1fr) minmax(0, 1.05fr); scroll-margin-top: .5rem }
section > header, section > details, section > pre { grid-column: 1 / -1 } section header p { margin: 0 }
.formula { margin: .35rem 0 .35rem .6rem; font-size: 1.12rem; overflow-x: auto } .formula .prose { font-size: .9rem }
.bar { display: inline-block; width: 7rem; height: .5rem; border-radius: 3px; background: var(--line);
  overflow: hidden }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--good) } .number { text-align: right }
summary { cursor: pointer; color: var(--soft) } dl { display: grid; grid-template-columns: max-content 1fr;
  gap: .15rem 1.2rem; font-size: 14px } dt { font-weight: 600 } dd { margin: 0 }
pre { font-size: 12.5px; line-height: 1.45; padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 6px;
  overflow-x: auto }
@media (max-width: 62rem) { section { grid-template-columns: minmax(0, 1fr) } .bar { width: 4rem } }
"""


def source_of(op: Op) -> tuple[Path, int, str]:
    """The file in which an operator is declared, the line, and the block itself."""
    path = Path(inspect.getfile(op.forward))
    lines = path.read_text(encoding="utf-8").splitlines()
    at = inspect.getsourcelines(op.forward)[1]
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.ClassDef) and node.lineno <= at <= (node.end_lineno or at):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return path, first, "\n".join(lines[first - 1 : node.end_lineno])
    return path, at, inspect.getsource(op.forward)


def _shade(finding: Finding) -> float:
    """How close to its bound an error is, from 0 to 1, on a scale where four factors of ten make the whole."""
    if not finding.error or not finding.bound:
        return 0.0
    return float(np.clip(1 + np.log10(finding.error / finding.bound) / 4, 0.02, 1))


def number(x: float) -> str:
    """0.31, 12 or 3·10⁻¹³, in HTML."""
    if x == 0 or 0.01 <= x < 1000:
        return f"{x:.2g}"
    digits, _, power = f"{x:.0e}".partition("e")
    return f"{digits}·10<sup>{str(int(power)).replace('-', '−')}</sup>"


def _mark(c: Certificate, check: str) -> str:
    if check not in c.worst:
        return f'<span class="none" title="{escape(not_applicable(c.op, check))}">·</span>'
    error, bound = c.worst[check]
    share = f"{100 * _shade(c.worst[check]):.0f}%"
    unit = " ulp" if check in ULP else ""
    title = f"{check}: worst error {error:.3g}{unit}, bound {bound:.3g}{unit}, {c.cases[check]} cases"
    shade = f"background:color-mix(in oklab, var(--deep) {share}, var(--tint))"
    return f'<span class="mark" style="{shade}" title="{title}">{"✓" if check == "errors" else number(error)}</span>'


def html(certificates: list[Certificate], out: Path) -> str:
    """The certificate as one page that needs nothing else."""
    cases = sum(max(c.cases.values(), default=0) for c in certificates)
    comparisons = sum(sum(c.cases.values()) for c in certificates)
    failed = [c for c in certificates if c.failure]
    legend = "".join(f"<dt>{check}</dt><dd>{escape(meaning)}</dd>" for check, meaning in MEANING.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>groundup: gradients, proven</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f"<h1>Gradients, proven</h1>"
        f'<p class="soft">groundup · {datetime.now():%Y-%m-%d %H:%M} · {platform.machine()} · '
        f"Python {platform.python_version()} · NumPy {np.__version__}</p>"
        f'<div class="big"><span><b>{len(certificates) - len(failed)} of {len(certificates)}</b>operators proved</span>'
        f"<span><b>{cases:,}</b>cases</span><span><b>{comparisons:,}</b>checks</span></div>"
        f"<p>{INTRODUCTION}</p>"
        f"<details><summary>What the checks mean</summary><dl>{legend}</dl></details>"
        f'<div class="wide">{_matrix(certificates)}</div><h2>Derivations and evidence</h2>'
        + "".join(_section(c, out) for c in certificates)
        + "</html>"
    )


def _matrix(certificates: list[Certificate]) -> str:
    """Operators × checks, checks in groups by dtype, operators by the file that they stand in."""
    groups = "".join(
        f'<th colspan="{len(list(group))}">{dtype}</th>'
        for dtype, group in itertools.groupby(COLUMNS, lambda check: DTYPES.get(check, "float64"))
    )
    head = "".join(f'<th title="{escape(MEANING[check])}">{check}</th>' for check in COLUMNS)
    rows = ""
    for module, group in itertools.groupby(certificates, lambda c: c.op.__module__):
        words = sys.modules[module].__doc__ or module
        words = re.split(r"[.:\n]", words)[0]
        rows += f'<tr><th class="kind" colspan="{len(COLUMNS) + 1}">{escape(words)}</th></tr>'
        for c in group:
            cells = "".join(f"<td>{_mark(c, check)}</td>" for check in COLUMNS)
            no = '<td><span class="mark bad">not proved</span></td>' if c.failure else ""
            rows += f'<tr><td><a href="#{c.op.name}">{c.op.name}</a></td>{cells}{no}</tr>'
    return f'<table class="matrix"><tr><th></th>{groups}</tr><tr><th></th>{head}</tr>{rows}</table>'


def _section(c: Certificate, out: Path) -> str:
    path, line, block = source_of(c.op)
    link = os.path.relpath(path, out.resolve().parent)
    shown = "/".join(path.parts[-3:])
    rows = ""
    for check in COLUMNS[:-1]:
        if check in c.worst:
            error, bound = c.worst[check]
            unit = " ulp" if check in ULP else ""
            rows += (
                f"<tr><td>{check}</td><td>{DTYPES.get(check, 'float64')}</td><td class=number>{c.cases[check]}</td>"
                f"<td class=number>{number(error)}</td><td class=number>{number(bound)}{unit}</td>"
                f'<td><span class="bar"><i style="width:{100 * error / (bound or 1):.1f}%"></i></span></td></tr>'
            )
    missing = [f"{check} ({not_applicable(c.op, check)})" for check in CHECKS if check not in c.worst]
    left_out = f'<p class="soft">Does not apply: {escape(", ".join(missing))}.</p>' if missing else ""
    kinks = f"<p>No derivative at {escape(c.op.kinks)}.</p>" if c.op.kinks else ""
    failure = f"<pre>{escape(c.failure)}</pre>" if c.failure else ""
    return (
        f'<section id="{c.op.name}"><header><h3>{c.op.name}</h3><p class="soft">'
        f'{"fused" if c.op.is_fused else "primitive"} · <a href="{escape(link)}">{escape(shown)}</a>, line {line}</p>'
        f"</header>{failure}<div>{page_of(c.op.doc)}{kinks}</div>"
        f'<div class="wide"><table><tr><th>check</th><th>dtype</th><th>cases</th><th>worst error</th><th>bound</th>'
        f"<th></th></tr>{rows}</table>{left_out}</div>"
        f"<details><summary>source</summary><pre>{escape(block)}</pre></details></section>"
    )


def _place(name: str) -> tuple[int, str]:
    """Operators in the order of the files of `autograd.ops`, arithmetic first."""
    files = ("arithmetic", "elementwise", "selection", "shape", "reduction", "linalg", "normalization", "activation",
             "embedding", "attention", "loss", "randomness")  # fmt: skip
    file = registry[name].__module__.rpartition(".")[2]
    return files.index(file) if file in files else len(files), name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m autograd.prove", description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=300, help="samples drawn for each operator, besides its own")
    parser.add_argument("--out", type=Path, default=Path("certificate.html"), help="the page; the table goes beside it")
    parser.add_argument("operators", nargs="*", help="names (default: all)")
    options = parser.parse_args(arguments)
    if options.examples < 0:
        parser.error(f"--examples: expected 0 or more, got {options.examples}")
    unknown = [name for name in options.operators if name not in registry]
    if unknown:
        parser.error(f"there is no operator {unknown[0]!r}; there are: {', '.join(sorted(registry))}")
    np.seterr(all="ignore")  # the edges of domains are tried, too; what comes out there is checked
    certificates = []
    for name in options.operators or sorted(registry, key=_place):
        c = certify(registry[name], options.examples)
        certificates.append(c)
        state = "NOT PROVED" if c.failure else f"proved on {max(c.cases.values()):4d} cases"
        sys.stdout.write(f"{name:24s}{state}\n")
        sys.stdout.flush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(html(certificates, options.out), encoding="utf-8")
    table = options.out.with_suffix(".txt")
    table.write_text(text(certificates) + "\n", encoding="utf-8")
    failed = [c for c in certificates if c.failure]
    sys.stdout.write(f"\n{len(certificates) - len(failed)} of {len(certificates)} operators proved; "
                     f"see {options.out} and {table}\n")  # fmt: skip
    for c in failed:
        sys.stdout.write(f"\n{c.failure}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
