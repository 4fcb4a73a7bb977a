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
import os
import platform
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

COLUMNS = (*CHECKS, "subgradient", "errors")
UNITS = {"value": "ulp", "float32": "ulp", "bfloat16": "ulp", "dot": "ulp", "linear": "ulp", "aliased": "ulp", "mixed": "ulp", "layout": "ulp",
         "untouched": "arrays"}  # fmt: skip
DTYPE = {"float32": "float32", "bfloat16": "bfloat16", "mixed": "float32 × float64", "errors": "any"}  # the others: float64
MEANING = {
    "value": "the result is that of NumPy, or of the definition",
    "float32": "result and gradients in float32 are those of the definition in float64",
    "bfloat16": "and with matrix products in bfloat16, in its units",
    "derivative": "the gradient is the limit of differences",
    "complex": "the gradient is Im f(x + ih)/h",
    "second": "so is the gradient of the gradient the limit of differences",
    "dot": "⟨Ju, v⟩ = ⟨u, Jᵀv⟩",
    "linear": "the backward pass is linear in dout",
    "aliased": "one tensor for two inputs gets the sum of both gradients",
    "mixed": "inputs of different precision",
    "layout": "strides and order of the inputs change nothing",
    "untouched": "inputs and dout are not written to",
    "subgradient": "at kinks the rule gives what is documented",
    "errors": "bad inputs are refused with a reason",
}


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
        return "its definition does not hold for complex numbers"
    if check == "float32":
        return "it is about dtypes itself"
    if check == "bfloat16":
        return "it multiplies no matrices"
    if check in ("aliased", "mixed"):
        return "fewer than two inputs that it applies to"
    if check == "subgradient":
        return "no kinks"
    if check == "errors":
        return "takes every input of its kind"
    return "not reached"


# -- as text -----------------------------------------------------------------------------------------------


def text(certificates: Iterable[Certificate]) -> str:
    """A line for each operator and check: dtype, cases, worst error, its bound."""
    lines = [
        f"{'operator':22s} {'check':12s} {'dtype':18s} {'cases':>6s} {'worst error':>12s} {'bound':>10s}"
    ]
    lines.append("-" * len(lines[0]))
    for c in certificates:
        for check in COLUMNS:
            if check in c.worst:
                error, bound = c.worst[check]
                unit = UNITS.get(check, "")
                lines.append(f"{c.op.name:22s} {check:12s} {DTYPE.get(check, 'float64'):18s} {c.cases[check]:6d} "
                             f"{error:12.2g} {bound:10.2g} {unit}")  # fmt: skip
        if c.failure:
            lines.append(f"{c.op.name:22s} NOT PROVED: {c.failure.splitlines()[0]}")
    return "\n".join(lines)


# -- as a page ---------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --soft:
color-mix(in srgb, currentColor 60%, transparent) } body { font: 15px/1.5 system-ui, sans-serif; max-width:
76rem; margin: 2rem auto; padding: 0 1.5rem } h1 { font-weight: 650; margin-bottom: .2rem } h2 { margin: 3rem
0 .4rem; font: 600 1.15rem ui-monospace, monospace } .soft, .prose { color: var(--soft) } a { color: inherit }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums } .wide { overflow-x:
auto } th { font-weight: 600; text-align: left } th, td { padding: .18rem .55rem; border-bottom: 1px solid
var(--line); white-space: nowrap } .matrix td { text-align: center; padding: .1rem .3rem } .matrix
td:first-child { text-align: left; font-family: ui-monospace, monospace } .mark { display: inline-block;
width: 2.6rem; height: 1rem; border-radius: 3px; font-size: 11px; line-height: 1rem; color: #041c10 } .bad {
background: #e5484d; color: white } .none { color: var(--soft) } .bar { display: inline-block; width: 9rem;
height: .55rem; border-radius: 3px; background: var(--line); overflow: hidden } .bar i { display: block;
height: 100%; background: #30a46c } .number { text-align: right } .formula { margin: .25rem 0 .25rem 1.2rem;
font-size: 1.12rem } .formula .prose { font-size: .92rem } pre { font-size: 12.5px; line-height: 1.45;
padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 6px; overflow-x: auto } .big { display:
flex; gap: 2.5rem; margin: 1.2rem 0 1.6rem } .big b { display: block; font-size: 1.7rem; font-weight: 650 }
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


def _used(finding: Finding) -> float:
    """How much of the bound the error takes, on a scale where every factor of ten counts the same."""
    if not finding.error or not finding.bound:
        return 0.0
    return float(np.clip(1 + np.log10(finding.error / finding.bound) / 8, 0.02, 1))


def _mark(c: Certificate, check: str) -> str:
    if check not in c.worst:
        return f'<span class="none" title="{escape(not_applicable(c.op, check))}">·</span>'
    error, bound = c.worst[check]
    shade = 95 - 22 * _used(c.worst[check])
    digits = "0" if not error else f"{error:.0e}".replace("e-0", "e-").replace("e+0", "e")
    title = f"{check}: worst error {error:.3g}, bound {bound:.3g}, {c.cases[check]} cases"
    return (
        f'<span class="mark" style="background:oklch({shade:.0f}% .09 155)" title="{title}">{digits}</span>'
    )


def html(certificates: list[Certificate], out: Path) -> str:
    """The certificate as one page that needs nothing else."""
    cases = sum(max(c.cases.values(), default=0) for c in certificates)
    comparisons = sum(sum(c.cases.values()) for c in certificates)
    failed = [c for c in certificates if c.failure]
    head = "".join(f'<th title="{escape(MEANING[check])}">{check}</th>' for check in COLUMNS)
    rows = "".join(
        f'<tr><td><a href="#{c.op.name}">{c.op.name}</a></td>'
        + "".join(f"<td>{_mark(c, check)}</td>" for check in COLUMNS)
        + (f'<td><span class="mark bad">{"no"}</span></td>' if c.failure else "")
        + "</tr>"
        for c in certificates
    )
    legend = "".join(
        f"<tr><td>{check}</td><td>{escape(meaning)}</td></tr>" for check, meaning in MEANING.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>groundup: gradients, proven</title>'
        f"<style>{STYLE}</style><h1>Gradients, proven</h1>"
        f'<p class="soft">{datetime.now():%Y-%m-%d %H:%M} · {platform.machine()} · '
        f"Python {platform.python_version()} · NumPy "
        f"{np.__version__}</p>"
        f'<div class="big"><span><b>{len(certificates) - len(failed)} / {len(certificates)}</b>operators proved</span>'
        f"<span><b>{cases:,}</b>cases</span><span><b>{comparisons:,}</b>checks</span></div>"
        f"<p>Each cell is the worst error found; hover for its bound and the number of cases. The darker, the closer "
        f"to the bound. A dot: the check does not apply. "
        f"Bars further down are logarithmic: an eighth of their length is a factor of ten.</p>"
        f'<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>{rows}</table></div>'
        f"<details><summary>What the checks mean</summary><table>{legend}</table></details>"
        + "".join(_section(c, out) for c in certificates)
        + "</html>"
    )


def _section(c: Certificate, out: Path) -> str:
    path, line, block = source_of(c.op)
    link = os.path.relpath(path, out.resolve().parent)
    shown = "/".join(path.parts[-3:])
    rows = "".join(
        f"<tr><td>{check}</td><td>{DTYPE.get(check, 'float64')}</td><td class=number>{c.cases[check]}</td>"
        f"<td class=number>{c.worst[check].error:.2g}</td><td class=number>{c.worst[check].bound:.2g} "
        f"{UNITS.get(check, '')}</td>"
        f'<td><span class="bar"><i style="width:{100 * _used(c.worst[check]):.0f}%"></i></span></td></tr>'
        for check in COLUMNS
        if check in c.worst
    )
    kinks = f'<p class="soft">No derivative at {escape(c.op.kinks)}.</p>' if c.op.kinks else ""
    failure = f"<pre>{escape(c.failure)}</pre>" if c.failure else ""
    return (
        f'<h2 id="{c.op.name}">{c.op.name}</h2><p class="soft">{"fused" if c.op.is_fused else "primitive"} · '
        f'<a href="{escape(link)}">{escape(shown)}</a>, line {line}</p>{failure}{page_of(c.op.doc)}{kinks}'
        f"<table><tr><th>check</th><th>dtype</th><th>cases</th><th>worst error</th><th>bound</th><th></th></tr>"
        f"{rows}</table>"
        f"<details><summary>source</summary><pre>{escape(block)}</pre></details>"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m autograd.prove", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--examples", type=int, default=300, help="samples drawn for each operator, besides its own"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("certificate.html"), help="the page; the table goes beside it"
    )
    parser.add_argument("operators", nargs="*", help="names (default: all)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.operators if name not in registry]
    if unknown:
        parser.error(f"there is no operator {unknown[0]!r}; there are: {', '.join(sorted(registry))}")
    certificates = []
    for name in sorted(options.operators or registry):
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
