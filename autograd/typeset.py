"""Formulas as operators write them, in Unicode, into MathML, which browsers typeset without a script or a
network.

    dx = rstd · (g − mean(g))    →   <math> … </math>

A line is taken for a formula up to where prose begins. Fractions, roots, powers and indices are built;
everything else is identifiers, numbers and operators in a row.
"""

from __future__ import annotations

import re
from html import escape
from itertools import takewhile

__all__ = ["formula", "page_of"]

SUPERSCRIPT = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀᵇˣⁿ", "0123456789+−Tbxn", strict=True))
SUBSCRIPT = dict(zip("₀₁₂₃₄₅₆₇₈₉ᵢⱼₖₙ₊₋", "0123456789ijkn+−", strict=True))
TOKEN = re.compile(
    rf"(?P<up>[{''.join(SUPERSCRIPT)}]+)|(?P<down>[{''.join(SUBSCRIPT)}]+)|(?P<number>\d+(?:\.\d+)?|½)"
    rf"|(?P<name>(?:[A-Za-zα-ωΓ-ΡΤ-Ω∂∞]\u0302?_?)+′?)|(?P<space>\s+)|(?P<other>.)"
)
PROSE = re.compile(
    r",? (?:with|where|along|for|beside|under|and|by|computed|exact|in|on|but|therefore|up|its|read)\b"
    r"| (?:repeated|as|of|over|the)\b"
    r"|\s{3,}|: |, [a-z]{3,} | \((?:at|the|an|a|sums?|summed|equal|over|in|no|one|with) "
)
LINE = re.compile(r"^(out|loss|d[A-Za-z_]|∂|S |P |δ|\w+[₁₂ᵢ]* +=)[^=]{0,30}=")


def page_of(doc: str) -> str:
    """An operator's docstring as HTML: formulas typeset, the rest as text."""
    parts: list[str] = []
    prose: list[str] = []

    def flush() -> None:
        if prose:
            parts.append(f"<p>{_words(' '.join(prose))}</p>")
            prose.clear()

    after_formula = False
    for line in doc.splitlines():
        if LINE.match(line.strip()):
            flush()
            parts.append(f'<div class="formula">{formula(line.strip())}</div>')
            after_formula = True
        elif line.strip() and after_formula:  # its words go on
            parts[-1] = parts[-1].replace("</span></div>", f" {_words(line.strip())}</span></div>")
        elif line.strip():
            prose.append(line.strip())
        else:
            flush()
            after_formula = False
    flush()
    return "\n".join(parts)


def formula(line: str) -> str:
    """One line: MathML up to where prose begins, and the prose."""
    begin = PROSE.search(line, line.find("=") + 1)
    mathematics, rest = (line, "") if begin is None else (line[: begin.start()], line[begin.start() :])
    tokens = [(str(match.lastgroup), match.group()) for match in TOKEN.finditer(mathematics)]
    row = _row(tokens)
    return f'<math display="inline">{row}</math><span class="prose">{_words(rest)}</span>'


def _words(text: str) -> str:
    """Prose, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _row(tokens: list[tuple[str, str]]) -> str:
    """A sequence of tokens as one mrow."""
    out: list[str] = []
    while tokens:
        kind, text = tokens.pop(0)
        if kind == "space":
            operand = bool(out) and not out[-1].endswith("</mo>") and bool(tokens)
            if operand and (tokens[0][0] in ("name", "number") or tokens[0][1] in "(√Σ"):  # a product without a sign
                out.append('<mspace width=".22em"/>')
        elif kind == "up" and out:
            out.append(f"<msup>{out.pop()}{_plain(text, SUPERSCRIPT)}</msup>")
        elif kind == "down" and out:
            out.append(f"<msub>{out.pop()}{_plain(text, SUBSCRIPT)}</msub>")
        elif text == "^" and out and tokens:
            out.append(f"<msup>{out.pop()}{_atom(tokens, bare=True)}</msup>")
        elif text == "/" and out and tokens:
            out.append(f"<mfrac>{_bare(out.pop())}{_scripted(tokens)}</mfrac>")
        elif text == "√" and tokens:
            out.append(f"<msqrt>{_atom(tokens, bare=True)}</msqrt>")
        else:
            tokens.insert(0, (kind, text))
            out.append(_atom(tokens))
    return f"<mrow>{''.join(out)}</mrow>"


def _scripted(tokens: list[tuple[str, str]]) -> str:
    """The denominator of a fraction: an atom, root or sum, with its powers and indices."""
    while tokens[0][0] == "space" and len(tokens) > 1:
        tokens.pop(0)
    if tokens[0][1] == "Σ" and len(tokens) > 1:
        tokens.pop(0)
        return f"<mrow><mo>Σ</mo>{_scripted(tokens)}</mrow>"
    if tokens[0][1] == "√" and len(tokens) > 1:
        tokens.pop(0)
        out = f"<msqrt>{_atom(tokens, bare=True)}</msqrt>"
    else:
        out = _atom(tokens, bare=True)
    while tokens and tokens[0][0] in ("up", "down"):
        kind, text = tokens.pop(0)
        tag, table = ("msup", SUPERSCRIPT) if kind == "up" else ("msub", SUBSCRIPT)
        out = f"<{tag}>{out}{_plain(text, table)}</{tag}>"
    return out


def _atom(tokens: list[tuple[str, str]], bare: bool = False) -> str:
    """The next name, number, operator or group; with `bare`, a group without its parentheses."""
    kind, text = tokens.pop(0)
    if kind == "number":
        return f"<mn>{text}</mn>"
    if kind == "name":
        letter, _, word = text.partition("_")
        if len(letter) == 1 and word:  # W_out
            return f"<msub><mi>{letter}</mi><mi>{escape(word)}</mi></msub>"
        upright = ' mathvariant="normal"' if len(text.replace("\u0302", "")) == 1 and text in "∂∞" else ""
        return f"<mi{upright}>{escape(text)}</mi>"
    if text in "([" and (closing := _closing(tokens, text)) is not None:
        inside = tokens[:closing]
        end = tokens[closing][1]
        del tokens[: closing + 1]
        row = _row(list(inside))
        return row if bare else f"<mrow><mo>{text}</mo>{row}<mo>{end}</mo></mrow>"
    return f"<mo>{escape(text)}</mo>"


def _closing(tokens: list[tuple[str, str]], opening: str) -> int | None:
    depth = 1
    for position, (_, text) in enumerate(tokens):
        depth += (text in "([") - (text in ")]")
        if depth == 0:
            return position
    return None


def _bare(element: str) -> str:
    """A group without its parentheses."""
    if element.startswith("<mrow><mo>(</mo>") and element.endswith("<mo>)</mo></mrow>"):
        return element.removeprefix("<mrow><mo>(</mo>").removesuffix("<mo>)</mo></mrow>")
    return element


def _plain(text: str, table: dict[str, str]) -> str:
    translated = "".join(table[character] for character in text)
    digits = "".join(takewhile(str.isdigit, translated))
    return f"<mn>{digits}</mn>" if digits == translated else f"<mrow>{_row(_tokens(translated))}</mrow>"


def _tokens(text: str) -> list[tuple[str, str]]:
    return [(str(match.lastgroup), match.group()) for match in TOKEN.finditer(text)]
