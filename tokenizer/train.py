"""Learning merges from text."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from . import naive, pretokenize


def learn(texts, n_merges: int, pattern: str | None, special_tokens, min_count: int) -> list[tuple[int, int, int]]:
    """Merges (left, right, new id), at most `n_merges`."""
    from .bpe import cut_at_special

    counts: Counter[bytes] = Counter()
    for text in [texts] if isinstance(texts, (str, bytes, os.PathLike)) else texts:
        data = Path(text).read_bytes() if isinstance(text, os.PathLike) else pretokenize.to_bytes(text)
        for stretch in cut_at_special(data, special_tokens):
            counts.update(pretokenize.split(stretch, pattern))
    return naive.train(counts, n_merges, min_count)
