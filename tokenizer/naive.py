"""Byte pair encoding as a definition: one page of plain Python, the oracle for everything faster here.

Training starts from the 256 bytes and, again and again, joins the most frequent pair of neighbouring
tokens into a new token. Encoding repeats that history on a new text: of all neighbouring pairs that were
ever joined, join the one that was joined earliest (leftmost first), until none is left.

Ties in training: of equally frequent pairs the one with the smallest (order(left), order(right)) wins, where a
byte's order is its place in GPT-2's byte alphabet (`BYTES_IN_ORDER`) and a merged token's order is its id. This is
the rule of Hugging Face's BpeTrainer with the full byte alphabet, so both learn the same merges in the same order.

Left out here: speed. Training recounts every pair before each merge, encoding rescans the piece after each.
Special tokens and the cutting of text into pieces are the business of other files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

# GPT-2 writes bytes as visible characters: those that are visible already stand for themselves, the others
# follow from U+0100 on. Sorting bytes by that character gives the alphabet's order.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES_IN_ORDER = _VISIBLE + [byte for byte in range(256) if byte not in _VISIBLE]
BYTE_ORDER = {byte: place for place, byte in enumerate(BYTES_IN_ORDER)}

Pair = tuple[int, int]


def train(piece_counts: Mapping[bytes, int], n_merges: int, min_count: int = 1) -> list[tuple[int, int, int]]:
    """Learn up to `n_merges` merges (left id, right id, new id) from pieces and how often each occurs.

    Ids: a byte is its own id, merged tokens count on from 256. Fewer merges come back when no pair occurs
    `min_count` times any more.
    """
    words = [(list(piece), count) for piece, count in piece_counts.items()]
    merges = []
    for new_id in range(256, 256 + n_merges):
        pairs: Counter[Pair] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], order(pair[0]), order(pair[1])), default=None)
        if best is None or pairs[best] < min_count:
            break
        merges.append((*best, new_id))
        words = [(join(word, best, new_id), count) for word, count in words]
    return merges


def order(token: int) -> int:
    """A token's place in the tie rule."""
    return BYTE_ORDER.get(token, token)


def join(word: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace every occurrence of `pair` in `word` by `new_id`, from left to right."""
    out, i = [], 0
    while i < len(word):
        if tuple(word[i:i + 2]) == pair:
            out.append(new_id)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def encode(word: Sequence[int], merges: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """Encode one piece, given as the ids of its bytes; `merges` maps (left, right) to (priority, new id).

    The pair with the lowest priority is joined first, one occurrence at a time, the leftmost of equals.
    """
    word = list(word)
    while True:
        found = [(merges[pair][0], i) for i, pair in enumerate(pairwise(word)) if pair in merges]
        if not found:
            return word
        i = min(found)[1]
        word[i:i + 2] = [merges[word[i], word[i + 1]][1]]
