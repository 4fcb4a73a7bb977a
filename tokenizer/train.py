"""Learning merges: what `naive.train` defines, in time near-linear in text and vocabulary.

**Counting.** Text is read in blocks and cut into pieces; equal pieces are counted once and from then on stand for all
their occurrences. A megabyte of Shakespeare is 300,000 pieces, of which 15,000 differ.

**Merging.** The different pieces lie one after another in one array, each a doubly linked list of tokens, so joining
two tokens costs a few links. A pair is where its left token is; all places of a pair form a chain, doubly linked too,
so a place can leave it when a neighbour changes. A merge walks the chain of its pair from left to right and touches
nothing else: counts are kept, never taken anew.

**Choosing.** Pairs wait in a heap by (count, largest first; left, right, smallest first). That is the tie rule of
`naive.py`, since tokens are numbered in GPT-2's order of bytes while learning. Only pairs that hold the new token gain
counts, and only in the step that makes it; all others can only lose. So a count in the heap is at most too high: when
an entry comes to the top with a count that is out of date, it sinks to its place.

Cost: 28 bytes of memory for each byte of *different* pieces, 40 for each pair; each place that is merged is touched
once. Nothing depends on the number of threads or the order of a hash table.

Left out: counting on several threads (docs/decisions.md).

The merges are those of Hugging Face's BpeTrainer with `initial_alphabet=ByteLevel.alphabet()` on the same pieces. The
two can differ where special tokens occur in the text: there they are cut up like any text, here they are left out;
and where the text holds characters newer than one's Unicode (pretokenize.py), since then the pieces differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from . import naive, pretokenize
from .jit import inline, kernel
from .merge import GOLDEN, key_hash, piece_key

Progress = Callable[[str, int, int], None]

STEPS = 512  # merges between two reports of progress
FIRST_PAIRS = 1 << 16  # room for pairs, to begin with


def learn(
    texts: pretokenize.Texts,
    n_merges: int,
    pattern: pretokenize.Pattern,
    special_tokens: Collection[str] = (),
    min_count: int = 1,
    progress: Progress | None = None,
) -> np.ndarray:
    """Merges (M, 3) int64: left id, right id, new id; M ≤ n_merges. A byte is its own id, merges count on from 256.

    `progress(what, done, total)` is called now and then: "bytes counted" (total 0: unknown), "merges learned".
    """
    return merge(count(texts, pattern, special_tokens, progress), n_merges, min_count, progress)


# ---- counting ----


class Counts:
    """Pieces and how often each occurred. Up to 31 bytes in a hash table of ours, longer ones in a dict."""

    def __init__(self) -> None:
        self.keys = np.zeros((1 << 12, 4), dtype=np.uint64)
        self.counts = np.zeros(1 << 12, dtype=np.int64)
        self.used = 0
        self.long: Counter[bytes] = Counter()

    def add(self, data: bytes, view: np.ndarray, start: int, ends: np.ndarray) -> None:
        """Count the pieces of `data` that end at `ends`, the first of which begins at byte `start`."""
        long_pieces = np.empty(ends.size, dtype=np.int64)
        piece = 0
        while piece < ends.size:
            first = ends[piece - 1] if piece else start
            piece, self.used, n_long = count_pieces(
                view, first, ends, piece, self.keys, self.counts, self.used, long_pieces
            )
            for i in long_pieces[:n_long].tolist():
                self.long[data[ends[i - 1] if i else start:ends[i]]] += 1
            if 2 * self.used >= len(self.counts):
                keys, counts = self.keys, self.counts
                self.keys = np.zeros((4 * len(keys), 4), dtype=np.uint64)
                self.counts = np.zeros(len(self.keys), dtype=np.int64)
                rehash(keys, counts, self.keys, self.counts)

    def words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pieces end to end, uint8; where each ends, int64; how often it occurred, int64."""
        taken = self.counts > 0
        keys = np.ascontiguousarray(self.keys[taken]).astype("<u8").view(np.uint8).reshape(-1, 32)
        lengths = keys[:, 31].astype(np.int64)
        short = keys[:, :31][np.arange(31) < lengths[:, None]]
        long = np.frombuffer(b"".join(self.long), dtype=np.uint8)
        lengths = np.concatenate([lengths, np.array([len(piece) for piece in self.long], dtype=np.int64)])
        counts = np.concatenate([self.counts[taken], np.array(list(self.long.values()), dtype=np.int64)])
        return np.concatenate([short, long]), np.cumsum(lengths), counts


def count(
    texts: pretokenize.Texts,
    pattern: pretokenize.Pattern,
    special_tokens: Collection[str] = (),
    progress: Progress | None = None,
) -> Counts:
    """Count the pieces of all texts, read block by block; special tokens are left out."""
    counts = Counts()
    done = 0
    for block in pretokenize.blocks(texts, pattern, special_tokens):
        view = np.frombuffer(block, dtype=np.uint8)
        for start, ends in pretokenize.piece_ends(block, pattern):
            counts.add(block, view, start, ends)
        done += len(block)
        if progress:
            progress("bytes counted", done, 0)
    return counts


@inline
def key_slot(keys, counts, a, b, c, d, mixed):
    """Where the key is, or the free place where it belongs."""
    mask = counts.size - 1
    slot = np.int64(mixed >> np.uint64(20)) & mask
    while counts[slot] != 0 and not (
        keys[slot, 0] == a and keys[slot, 1] == b and keys[slot, 2] == c and keys[slot, 3] == d
    ):
        slot = (slot + 1) & mask
    return slot


@kernel
def count_pieces(data, start, ends, first, keys, counts, used, long_pieces):
    """Count pieces from ends[first] on, until the table is half full. Long ones are listed in `long_pieces`.

    Returns (pieces done, places used, number of long pieces).
    """
    n_long = 0
    for piece in range(first, ends.size):
        end = ends[piece]
        if end - start > 31:
            long_pieces[n_long] = piece
            n_long += 1
            start = end
            continue
        a, b, c, d, mixed = piece_key(data, start, end)
        slot = key_slot(keys, counts, a, b, c, d, mixed)
        if counts[slot] == 0:
            keys[slot, 0], keys[slot, 1], keys[slot, 2], keys[slot, 3] = a, b, c, d
            used += 1
        counts[slot] += 1
        start = end
        if 2 * used >= counts.size:
            return piece + 1, used, n_long
    return ends.size, used, n_long


@kernel
def rehash(old_keys, old_counts, keys, counts):
    """Move all entries to a larger table."""
    for i in range(old_counts.size):
        if old_counts[i] == 0:
            continue
        a, b, c, d = old_keys[i, 0], old_keys[i, 1], old_keys[i, 2], old_keys[i, 3]
        slot = key_slot(keys, counts, a, b, c, d, key_hash(a, b, c, d))
        keys[slot, 0], keys[slot, 1], keys[slot, 2], keys[slot, 3] = a, b, c, d
        counts[slot] = old_counts[i]


# ---- merging ----


def merge(counts: Counts, n_merges: int, min_count: int = 1, progress: Progress | None = None) -> np.ndarray:
    """Merges (M, 3) int64 from counted pieces."""
    data, ends, weights = counts.words()
    if data.size >= 1 << 31:
        raise ValueError(f"{data.size} bytes of different pieces are too many: train on less text, or use a pattern")
    in_order = np.empty(256, dtype=np.int32)
    in_order[naive.BYTES_IN_ORDER] = np.arange(256)
    words = Words.make(in_order[data], ends, weights)

    pairs, used, position = Pairs.make(FIRST_PAIRS), 0, 0
    while position < data.size:
        position, used = collect(words, pairs, used, position)
        pairs = pairs.with_room(used, FIRST_PAIRS)
    queued = fill_heap(pairs, 0, 0, used)

    n_merges = min(n_merges, data.size)  # each joins at least one pair, so there cannot be more
    merges = np.empty((n_merges, 3), dtype=np.int64)
    done, more = 0, True
    while more and done < n_merges:
        pairs = pairs.with_room(used, new_pairs_of_a_step(256 + done))
        stop = min(done + STEPS, n_merges)
        done, used, queued, more = merge_best(words, pairs, used, queued, merges, done, stop, min_count)
        if progress:
            progress("merges learned", done, n_merges)
    merges = merges[:done]
    is_byte = merges < 256
    merges[is_byte] = np.array(naive.BYTES_IN_ORDER)[merges[is_byte]]
    return merges


class Words(NamedTuple):
    """All different pieces, end to end: one entry a position. -1 stands for none.

    A pair is named by its left position i: `pair_of[i]` is its number, and `chain_next`, `chain_previous` lead to the
    other positions of the same pair. `weights`, one a word, say how often the word occurs.
    """

    tokens: np.ndarray
    following: np.ndarray
    previous: np.ndarray
    word_of: np.ndarray
    pair_of: np.ndarray
    chain_next: np.ndarray
    chain_previous: np.ndarray
    weights: np.ndarray

    @classmethod
    def make(cls, tokens: np.ndarray, ends: np.ndarray, weights: np.ndarray) -> Words:
        """Words that end at `ends`, linked within, with no pair entered yet."""
        following, previous, word_of, pair_of, chain_next, chain_previous = np.empty((6, tokens.size), dtype=np.int32)
        words = cls(tokens, following, previous, word_of, pair_of, chain_next, chain_previous, weights)
        link(words, ends)
        return words


class Pairs(NamedTuple):
    """Every pair met so far, by number: key (left << 32 | right), count, first and last position of its chain.

    `slots` is the hash table from key to number. `heap` and `heap_count` are the queue of pairs to merge.
    """

    key: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    last: np.ndarray
    heap: np.ndarray
    heap_count: np.ndarray
    slots: np.ndarray

    @classmethod
    def make(cls, room: int) -> Pairs:
        """Room for `room` pairs; the hash table is at most half full."""
        key, counts, heap_count = np.empty((3, room), dtype=np.int64)
        first, last, heap = np.empty((3, room), dtype=np.int32)
        slots = np.full(1 << (2 * room).bit_length(), -1, dtype=np.int32)
        return cls(key, counts, first, last, heap, heap_count, slots)

    def with_room(self, used: int, room: int) -> Pairs:
        """These pairs, or a larger copy if fewer than `room` more would fit."""
        if used + room <= self.key.size:
            return self
        larger = Pairs.make(2 * (used + room))
        for old, new in zip(self[:-1], larger[:-1], strict=True):
            new[:old.size] = old
        fill_slots(larger, used)
        return larger


@inline
def new_pairs_of_a_step(new):
    """How many pairs the step that makes token `new` can bring: it on either side of every token, itself included."""
    return 2 * (new + 1)


@inline
def slot_of(pairs, wanted):
    """Where `wanted` is, or the free place where it belongs."""
    mask = pairs.slots.size - 1
    mixed = np.uint64(wanted) * GOLDEN
    slot = np.int64(mixed >> np.uint64(24)) & mask
    while pairs.slots[slot] >= 0 and pairs.key[pairs.slots[slot]] != wanted:
        slot = (slot + 1) & mask
    return slot


@kernel
def fill_slots(pairs, used):
    """Enter the first `used` keys into the hash table."""
    for pair in range(used):
        pairs.slots[slot_of(pairs, pairs.key[pair])] = pair


@kernel
def link(words, ends):
    """Make a list of every word."""
    start = 0
    for word in range(ends.size):
        end = ends[word]
        for i in range(start, end):
            words.following[i] = i + 1 if i + 1 < end else -1
            words.previous[i] = i - 1 if i > start else -1
            words.word_of[i] = word
        start = end


@inline
def enter(words, pairs, used, i, weight):
    """Append position i to the chain of the pair that begins there. Returns the number of pairs known."""
    wanted = np.int64(words.tokens[i]) << 32 | np.int64(words.tokens[words.following[i]])
    slot = slot_of(pairs, wanted)
    pair = np.int64(pairs.slots[slot])
    if pair < 0:
        pair = used
        pairs.slots[slot] = pair
        pairs.key[pair] = wanted
        pairs.counts[pair] = 0
        pairs.first[pair] = pairs.last[pair] = -1
        used += 1
    last = pairs.last[pair]
    pairs.counts[pair] += weight
    pairs.last[pair] = i
    words.pair_of[i] = pair
    words.chain_next[i] = -1
    words.chain_previous[i] = last
    if last >= 0:
        words.chain_next[last] = i
    else:
        pairs.first[pair] = i
    return used


@inline
def leave(words, pairs, i, weight):
    """Take position i out of its chain."""
    pair, before, after = words.pair_of[i], words.chain_previous[i], words.chain_next[i]
    pairs.counts[pair] -= weight
    if before >= 0:
        words.chain_next[before] = after
    else:
        pairs.first[pair] = after
    if after >= 0:
        words.chain_previous[after] = before
    else:
        pairs.last[pair] = before


@kernel
def collect(words, pairs, used, position):
    """Enter all positions from `position` on, while there is room for pairs. Returns (next position, pairs known)."""
    while position < words.tokens.size and used < pairs.key.size:
        if words.following[position] >= 0:
            used = enter(words, pairs, used, position, words.weights[words.word_of[position]])
        position += 1
    return position, used


@inline
def is_better(pairs, count_a, a, count_b, b):
    """The rule of choice: larger count, then smaller key."""
    return count_a > count_b or (count_a == count_b and pairs.key[a] < pairs.key[b])


@inline
def sink(pairs, queued, i):
    """Let the entry at i of the heap sink to its place."""
    heap, heap_count = pairs.heap, pairs.heap_count
    pair, n = heap[i], heap_count[i]
    while True:
        child = 2 * i + 1
        if child >= queued:
            break
        other = child + 1
        if other < queued and is_better(pairs, heap_count[other], heap[other], heap_count[child], heap[child]):
            child = other
        if not is_better(pairs, heap_count[child], heap[child], n, pair):
            break
        heap[i], heap_count[i] = heap[child], heap_count[child]
        i = child
    heap[i], heap_count[i] = pair, n


@kernel
def fill_heap(pairs, queued, begin, end):
    """Add the pairs from `begin` to `end`. Returns the size of the heap."""
    heap, heap_count = pairs.heap, pairs.heap_count
    for pair in range(begin, end):
        i = queued
        queued += 1
        while i > 0:
            parent = (i - 1) >> 1
            if not is_better(pairs, pairs.counts[pair], pair, heap_count[parent], heap[parent]):
                break
            heap[i], heap_count[i] = heap[parent], heap_count[parent]
            i = parent
        heap[i], heap_count[i] = pair, pairs.counts[pair]
    return queued


@kernel
def merge_best(words, pairs, used, queued, merges, done, stop, min_count):
    """Learn merges[done:stop], while there is room for the pairs of a step.

    Returns (merges done, pairs known, size of the heap, whether there is more to merge).
    """
    heap, heap_count = pairs.heap, pairs.heap_count
    while done < stop:
        while queued and heap_count[0] != pairs.counts[heap[0]]:
            heap_count[0] = pairs.counts[heap[0]]
            sink(pairs, queued, 0)
        if queued == 0 or heap_count[0] < min_count:
            return done, used, queued, False
        new = 256 + done
        if used + new_pairs_of_a_step(new) > pairs.key.size:
            break
        pair = heap[0]
        queued -= 1
        heap[0], heap_count[0] = heap[queued], heap_count[queued]
        sink(pairs, queued, 0)

        merges[done, 0], merges[done, 1], merges[done, 2] = pairs.key[pair] >> 32, pairs.key[pair] & 0xFFFFFFFF, new
        known = used
        i = np.int64(pairs.first[pair])
        while i >= 0:  # positions i and j become i
            j = words.following[i]
            left, right = words.previous[i], words.following[j]
            weight = words.weights[words.word_of[i]]
            if left >= 0:
                leave(words, pairs, left, weight)
            if right >= 0:
                leave(words, pairs, j, weight)
                words.previous[right] = i
            next_i = words.chain_next[i]  # read now: in "aaa", j has just left this very chain; i enters another below
            words.tokens[i] = new
            words.following[i] = right
            if left >= 0:
                used = enter(words, pairs, used, left, weight)
            if right >= 0:
                used = enter(words, pairs, used, i, weight)
            i = np.int64(next_i)
        pairs.counts[pair] = 0
        pairs.first[pair] = pairs.last[pair] = -1
        queued = fill_heap(pairs, queued, known, used)
        done += 1
    return done, used, queued, True
