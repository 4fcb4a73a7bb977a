"""Formulas as operators write them become MathML that says the same."""

import html
import re

import pytest

from autograd import registry
from autograd.typeset import formula, page_of


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("out = y W_outᵀ + b_out", "<msup><msub><mi>W</mi><mi>out</mi></msub>"),
        ("dout_weight = doutᵀ y", "<mi>dout_weight</mi>"),
        ("dx = dout / (2 √x)", "<mfrac>"),
        ("out = x²", "<msup><mi>x</mi>"),
        ("dxᵢ = doutᵢ", "<msub><mi>dx</mi>"),
    ],
)
def test_what_is_built(line, part):
    assert part in formula(line)


PLAIN = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹ᵀᵇˣⁿ₀₁₂₃₄₅₆₇₈₉ᵢⱼₖₙ", "0123456789Tbxn0123456789ijkn")


@pytest.mark.parametrize("name", sorted(registry))
def test_no_letter_of_a_derivation_is_lost(name):
    """Whatever is built of them, its letters and digits are those that were written."""
    letters = lambda text: sorted(re.findall(r"[A-Za-z0-9]", text.translate(PLAIN)))
    page = html.unescape(re.sub(r"<[^>]*>", "", page_of(registry[name].doc)))
    assert letters(page) == letters(registry[name].doc)
