"""Encoding pieces by their merges, compiled.

What happens to a piece, cheapest first:

1. It is looked up in a cache of recent pieces. An entry is one cache line: up to 31 bytes of text, their number, and
   up to 8 ids. Few words make up most of a text, so nearly all pieces end here, after some twenty nanoseconds.
2. Short pieces are merged as the definition says, in arrays: find the best pair, join it, look up its two new
   neighbours. Quadratic in the length, which is at most `SHORT`.
3. Longer pieces are merged through a heap of pairs over a linked list: n log n.
4. What is longer than `WINDOW` is encoded window by window, and the seams between windows are mended where they do
   not hold: linear, in memory of a fixed size that stays in the processor's cache.

Pairs live in an open-addressing hash table: (left, right) → (priority, new id) in one int64 each.

The arrays a thread writes to are in a `Scratch` of its own; the `Tables` are shared and only read. Loops allocate
nothing: one that needs more room returns and says how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .jit import inline, kernel, load_word

SHORT = 40  # bytes
WINDOW = 1024  # bytes
CACHE_BITS = 15  # 2^15 sets of four lines of 64 bytes: 8 MB, touched as needed
CACHE_WAYS = 4
NO_ID = 0xFFFFFFFF
NO_PAIR = np.iinfo(np.int64).max
PADDING = 16  # bytes that `copy_tokens` may read and write beyond the last token
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Tables(NamedTuple):
    """A vocabulary as the loops read it.

    `byte_ids` (256,): id of each byte, -1 where it has none. `pair_keys`, `pair_values`: the hash table of merges.
    Token t is blob[offsets[t]:offsets[t + 1]]. `whole_slots`: the hash table of tokens that stay whole where a piece is
    one; empty where merges decide alone.
    """

    byte_ids: np.ndarray
    pair_keys: np.ndarray
    pair_values: np.ndarray
    blob: np.ndarray
    offsets: np.ndarray
    whole_slots: np.ndarray


class Scratch(NamedTuple):
    """What one thread writes to: the cache of pieces, and room for stretches of up to L bytes."""

    cache: np.ndarray  # (lines, 8) uint64
    ids: np.ndarray  # (L,) int64, as the next four
    values: np.ndarray
    following: np.ndarray
    previous: np.ndarray
    mended: np.ndarray
    heap: np.ndarray  # (2L,) int64

    @classmethod
    def make(cls, length: int = 2 * WINDOW, cache: np.ndarray | None = None) -> Scratch:
        """Room for stretches of up to `length` bytes, with an empty cache or the one given."""
        if cache is None:
            cache = np.zeros((CACHE_WAYS << CACHE_BITS, 8), dtype=np.uint64)  # length 0 matches no piece
        ids, values, following, previous, mended = np.empty((5, length), dtype=np.int64)
        heap = np.empty(2 * length, dtype=np.int64)
        return cls(cache, ids, values, following, previous, mended, heap)


def make_tables(
    tokens: Mapping[int, bytes], merges: np.ndarray, names: Mapping[int, bytes] | None = None, whole: bool = False
) -> Tables:
    """Tables of ordinary tokens, merges (M, 3) and the names of special tokens."""
    everything = {**tokens, **(names or {})}
    lengths = np.zeros(max(everything) + 1, dtype=np.int64)
    lengths[list(everything)] = [len(data) for data in everything.values()]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    blob = np.frombuffer(b"".join([everything[token] for token in sorted(everything)] + [bytes(PADDING)]), np.uint8)
    byte_ids = np.full(256, -1, dtype=np.int64)
    for token, data in tokens.items():
        if len(data) == 1:
            byte_ids[data[0]] = token
    size = 1 << (2 * max(len(tokens), len(merges))).bit_length()  # at most half full
    pair_keys, pair_values = np.full(size, -1, dtype=np.int64), np.empty(size, dtype=np.int64)
    whole_slots = np.full(size if whole else 0, -1, dtype=np.int64)
    tables = Tables(byte_ids, pair_keys, pair_values, blob, offsets, whole_slots)
    fill_pairs(merges, 0, tables)
    if whole:
        fill_whole(np.array(list(tokens)), tables)
    return tables


# ---- pairs ----


@inline
def pair_slot(tables, key):
    """Where `key` is, or the free place where it belongs."""
    mask = tables.pair_keys.size - 1
    mixed = np.uint64(key) * GOLDEN
    slot = np.int64((mixed ^ mixed >> np.uint64(32)) & np.uint64(mask))
    while tables.pair_keys[slot] != key and tables.pair_keys[slot] != -1:
        slot = (slot + 1) & mask
    return slot


@inline
def pair_value(tables, left, right):
    """priority << 32 | new id, or NO_PAIR."""
    slot = pair_slot(tables, left << 32 | right)
    return tables.pair_values[slot] if tables.pair_keys[slot] != -1 else NO_PAIR


@kernel
def fill_pairs(merges, first_priority, tables):
    """Enter merges (M, 3) into the table, which must have room."""
    for i in range(merges.shape[0]):
        key = merges[i, 0] << 32 | merges[i, 1]
        slot = pair_slot(tables, key)
        tables.pair_keys[slot] = key
        tables.pair_values[slot] = (first_priority + i) << 32 | merges[i, 2]


# ---- one piece ----


@inline
def merge_short(n, tables, scratch):
    """Merge scratch.ids[:n] in place. Returns the new n."""
    ids, values = scratch.ids, scratch.values
    for i in range(n - 1):
        values[i] = pair_value(tables, ids[i], ids[i + 1])
    while n > 1:
        best = 0
        for i in range(1, n - 1):
            if values[i] < values[best]:
                best = i
        if values[best] == NO_PAIR:
            break
        ids[best] = values[best] & 0xFFFFFFFF
        n -= 1
        for i in range(best + 1, n):
            ids[i] = ids[i + 1]
            values[i - 1] = values[i]
        if best > 0:
            values[best - 1] = pair_value(tables, ids[best - 1], ids[best])
        if best < n - 1:
            values[best] = pair_value(tables, ids[best], ids[best + 1])
    return n


@inline
def sift_down(heap, size, i):
    """Let heap[i] sink to its place among heap[:size], smallest on top."""
    item = heap[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = item


@inline
def push(heap, size, item):
    """Add to the heap. Returns the new size."""
    i = size
    while i > 0 and heap[(i - 1) >> 1] > item:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = item
    return size + 1


@kernel
def merge_long(n, tables, scratch):
    """As `merge_short`, for any n. `heap` has room for 2n: each merge takes one entry out and puts two in.

    An entry is priority << 32 | position, so the leftmost of equals comes first. One that no longer matches
    values[position] is out of date and skipped.
    """
    ids, values, following, previous = scratch.ids, scratch.values, scratch.following, scratch.previous
    heap = scratch.heap
    size = 0
    for i in range(n):
        following[i] = i + 1
        previous[i] = i - 1
        values[i] = pair_value(tables, ids[i], ids[i + 1]) if i + 1 < n else NO_PAIR
        if values[i] != NO_PAIR:
            heap[size] = values[i] >> 32 << 32 | i
            size += 1
    for i in range(size // 2 - 1, -1, -1):
        sift_down(heap, size, i)

    while size:
        top = heap[0]
        size -= 1
        heap[0] = heap[size]
        sift_down(heap, size, 0)
        i = top & 0xFFFFFFFF
        if values[i] >> 32 != top >> 32 or values[i] == NO_PAIR:
            continue
        j = following[i]
        after, before = following[j], previous[i]
        ids[i] = values[i] & 0xFFFFFFFF
        values[j] = NO_PAIR
        following[i] = after
        values[i] = NO_PAIR
        if after < n:
            previous[after] = i
            values[i] = pair_value(tables, ids[i], ids[after])
            if values[i] != NO_PAIR:
                size = push(heap, size, values[i] >> 32 << 32 | i)
        if before >= 0:
            values[before] = pair_value(tables, ids[before], ids[i])
            if values[before] != NO_PAIR:
                size = push(heap, size, values[before] >> 32 << 32 | before)

    count = i = 0
    while i < n:
        ids[count] = ids[i]
        count += 1
        i = following[i]
    return count


@kernel
def merge_piece(data, start, end, tables, scratch):
    """Encode data[start:end]; ids end up in scratch.ids. Returns how many."""
    for i in range(start, end):
        scratch.ids[i - start] = tables.byte_ids[data[i]]
    if end - start <= SHORT:
        return merge_short(end - start, tables, scratch)
    return merge_long(end - start, tables, scratch)


# ---- one very long piece ----


@inline
def length(tables, token):
    """Of a token, in bytes."""
    return tables.offsets[token + 1] - tables.offsets[token]


@inline
def bytes_of(tokens, begin, end, tables):
    """How many bytes tokens[begin:end] stand for."""
    total = np.int64(0)
    for i in range(begin, end):
        total += length(tables, np.int64(tokens[i]))
    return total


@inline
def seam_holds(data, seam, left, right, tables, scratch):
    """Whether neighbours `left` and `right`, which meet at byte `seam`, stay as they are when encoded by themselves."""
    start = seam - length(tables, left)
    end = seam + length(tables, right)
    return (
        end - start <= scratch.ids.size
        and merge_piece(data, start, end, tables, scratch) == 2
        and scratch.ids[0] == left
    )


@kernel
def merge_windows(data, start, end, tables, scratch, out, n_out):
    """Encode data[start:end] to out[n_out:], window by window. Returns (n_out, 0), or (n_out, room needed).

    The ids of two texts x and y, one after the other, are the ids of xy if the last token of x and the first of y stay
    apart when just their bytes are encoded. Proof: look at the first merge across the seam, of a and b. Until then
    both sides are merged as they would be alone, so a is the end of x's last token, b the beginning of y's first, and
    the same merge happens when just the bytes of these two are encoded.

    Where a seam does not hold, 1, 2, 4, … tokens on either side are encoded anew until the seams at both ends do.
    """
    first = n_out
    position = start  # out[first:n_out] are the ids of data[start:position]
    while position < end:
        stop = min(position + WINDOW, end)
        count = merge_piece(data, position, stop, tables, scratch)
        seam = n_out
        for i in range(count):
            out[n_out + i] = scratch.ids[i]
        n_out += count
        holds = seam == first or seam_holds(
            data, position, np.int64(out[seam - 1]), np.int64(out[seam]), tables, scratch
        )
        reach = 1
        while not holds:
            a, b = max(seam - reach, first), min(seam + reach, n_out)
            begin = position - bytes_of(out, a, seam, tables)
            close = position + bytes_of(out, seam, b, tables)
            if close - begin > scratch.ids.size:
                return first, close - begin
            count = merge_piece(data, begin, close, tables, scratch)
            for i in range(count):
                scratch.mended[i] = scratch.ids[i]
            holds = a == first or seam_holds(
                data, begin, np.int64(out[a - 1]), scratch.mended[0], tables, scratch
            )
            holds = holds and (b == n_out or seam_holds(
                data, close, scratch.mended[count - 1], np.int64(out[b]), tables, scratch
            ))
            reach *= 2
            if holds:
                n_out = replace(out, a, b, n_out, scratch.mended, count)
        position = stop
    return n_out, 0


@inline
def replace(out, a, b, n_out, mended, count):
    """Let out[a:b] of out[:n_out] give way to mended[:count]. Returns the new n_out."""
    shift = count - (b - a)
    if shift <= 0:
        for i in range(b, n_out):
            out[i + shift] = out[i]
    else:
        for i in range(n_out - 1, b - 1, -1):
            out[i + shift] = out[i]
    for i in range(count):
        out[a + i] = mended[i]
    return n_out + shift


# ---- keys: up to 31 bytes and their number in four words ----


@inline
def key_hash(a, b, c, d):
    """64 bits, the upper ones best mixed."""
    mixed = (a ^ d) * GOLDEN
    mixed = (mixed ^ mixed >> np.uint64(29) ^ b) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed ^ mixed >> np.uint64(31) ^ c) * np.uint64(0x94D049BB133111EB)


@inline
def piece_key(data, start, end):
    """Four words that name a piece of 1 to 31 bytes, and their hash."""
    n = end - start
    a = load_word(data, start, n)
    b = c = np.uint64(0)
    d = np.uint64(n) << np.uint64(56)
    if n > 8:
        b = load_word(data, start + 8, n - 8)
        if n > 16:
            c = load_word(data, start + 16, n - 16)
            d |= load_word(data, start + 24, n - 24)
    return a, b, c, d, key_hash(a, b, c, d)


# ---- the cache: sets of four lines of eight words, four of key, four with two ids each ----


@inline
def find_line(cache, line, a, b, c, d):
    """The line with this key in the set that begins at `line`, or -1. What is met again moves towards the front."""
    for way in range(line, line + CACHE_WAYS):
        if cache[way, 0] == a and cache[way, 3] == d and cache[way, 1] == b and cache[way, 2] == c:
            if way == line:
                return way
            for word in range(8):
                cache[way, word], cache[way - 1, word] = cache[way - 1, word], cache[way, word]
            return way - 1
    return np.int64(-1)


@inline
def recall(cache, line, out, n_out):
    """Write the ids of a line to out[n_out:]. Returns the new n_out."""
    for word in range(4, 8):
        low, high = cache[line, word] & np.uint64(NO_ID), cache[line, word] >> np.uint64(32)
        if low == NO_ID:
            break
        out[n_out] = low
        out[n_out + 1] = high  # whether or not it is one: a branch less to guess
        n_out += 1 + np.int64(high != NO_ID)
    return n_out


@inline
def remember(cache, line, a, b, c, d, ids, count):
    """Enter up to eight ids, into a free line of the set or its last, which was met least."""
    way = line
    while way < line + CACHE_WAYS - 1 and cache[way, 3] != 0:
        way += 1
    cache[way, 0], cache[way, 1], cache[way, 2], cache[way, 3] = a, b, c, d
    for i in range(0, 8, 2):
        low = ids[i] if i < count else NO_ID
        high = ids[i + 1] if i + 1 < count else NO_ID
        cache[way, 4 + i // 2] = np.uint64(high) << np.uint64(32) | np.uint64(low)


# ---- many pieces ----


@kernel
def encode_pieces(data, start, ends, first, tables, scratch, out, n_out):
    """Encode the pieces that end at ends[first:], the first of which begins at byte `start`, to out[n_out:].

    `out` has room for an id a byte and one more. Returns (pieces done, n_out, room): room is 0 when all are done, else
    the next piece needs a `Scratch` for stretches of at least `room` bytes.
    """
    cache, ids = scratch.cache, scratch.ids
    for piece in range(first, ends.size):
        end = ends[piece]
        n = end - start
        line = np.int64(-1)
        a = b = c = d = np.uint64(0)
        if n < 32:
            a, b, c, d, mixed = piece_key(data, start, end)
            line = CACHE_WAYS * np.int64(mixed >> np.uint64(64 - CACHE_BITS))
            found = find_line(cache, line, a, b, c, d)
            if found >= 0:
                n_out = recall(cache, found, out, n_out)
                start = end
                continue
        token = whole_piece(data, start, end, tables)
        if token < 0 and n > WINDOW:
            n_out, room = merge_windows(data, start, end, tables, scratch, out, n_out)
            if room:
                return piece, n_out, room
            start = end
            continue
        count = np.int64(1)
        if token >= 0:
            ids[0] = token
        else:
            count = merge_piece(data, start, end, tables, scratch)
        for i in range(count):
            out[n_out + i] = ids[i]
        n_out += count
        if line >= 0 and count <= 8:
            remember(cache, line, a, b, c, d, ids, count)
        start = end
    return ends.size, n_out, 0


# ---- whole pieces (tiktoken and ignore_merges: a piece that is a token needs no merges) ----


@inline
def bytes_hash(data, start, end):
    """FNV-1a."""
    value = np.uint64(0xCBF29CE484222325)
    for i in range(start, end):
        value = (value ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    return value ^ value >> np.uint64(32)


@inline
def whole_piece(data, start, end, tables):
    """The token whose bytes are data[start:end], or -1; always -1 where merges decide alone."""
    if tables.whole_slots.size == 0:
        return np.int64(-1)
    mask = np.uint64(tables.whole_slots.size - 1)
    slot = bytes_hash(data, start, end) & mask
    while tables.whole_slots[slot] >= 0:
        token = tables.whole_slots[slot]
        if length(tables, token) == end - start:
            i = start
            while i < end and tables.blob[tables.offsets[token] + i - start] == data[i]:
                i += 1
            if i == end:
                return token
        slot = (slot + np.uint64(1)) & mask
    return np.int64(-1)


@kernel
def fill_whole(tokens, tables):
    """Enter tokens, given by id, into the table of whole pieces."""
    mask = np.uint64(tables.whole_slots.size - 1)
    for token in tokens:
        slot = bytes_hash(tables.blob, tables.offsets[token], tables.offsets[token + 1]) & mask
        while tables.whole_slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        tables.whole_slots[slot] = token


# ---- decoding, and the merges behind ranks ----


@kernel
def measure(ids, tables):
    """(number of bytes that ids stand for, position of the first that is no token, or -1)."""
    total = 0
    for i in range(ids.size):
        token = np.int64(ids[i])
        if token < 0 or token >= tables.offsets.size - 1 or length(tables, token) == 0:
            return total, i
        total += length(tables, token)
    return total, -1


@kernel
def copy_tokens(ids, tables, out):
    """Write the bytes of every token one after another. `out` has `PADDING` bytes to spare, as the blob has."""
    position = 0
    for token in ids:
        begin, end = tables.offsets[token], tables.offsets[token + 1]
        for i in range(PADDING):  # a fixed number is one vector copy; the next token overwrites what is too much
            out[position + i] = tables.blob[begin + i]
        for i in range(PADDING, end - begin):
            out[position + i] = tables.blob[begin + i]
        position += end - begin


@kernel
def find_merges(order, tables, scratch, merges):
    """For ranked tokens in order of length, the last two tokens that become it, to merges (M, 3): left, right, token.

    left and right are -1 where its bytes do not merge to it. Enters pairs into the table as it goes, by rank.
    """
    for i in range(order.size):
        token = order[i]
        count = merge_piece(tables.blob, tables.offsets[token], tables.offsets[token + 1], tables, scratch)
        merges[i, 0] = merges[i, 1] = -1
        merges[i, 2] = token
        if count == 2:
            merges[i, 0], merges[i, 1] = scratch.ids[0], scratch.ids[1]
            fill_pairs(merges[i:i + 1], token, tables)
