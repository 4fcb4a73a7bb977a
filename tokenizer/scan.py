"""The split patterns of GPT-2, GPT-4, GPT-4o and their kin as scanners over UTF-8 bytes.

A regular expression engine tries alternatives and steps back; each of these patterns can be read forward, since the
class of a piece's first one or two characters decides which alternative takes it. All that is needed of a
character is its class:

    OTHER   punctuation, symbols, controls, and every byte that is not UTF-8       [^\\s\\p{L}\\p{N}\\p{M}]
    SPACE   white space but for NEWLINE, which is \\r and \\n                        \\s
    DIGIT   numbers in any script                                                 \\p{N}
    UPPER   upper and title case                                                  [\\p{Lu}\\p{Lt}]
    LOWER   lower case                                                            \\p{Ll}
    LETTER  letters without case                                                  [\\p{Lm}\\p{Lo}]
    MARK    accents and vowel signs                                               \\p{M}

The classes are read once per process from the `regex` package (some 100 ms), so scanner and package agree on the
version of Unicode. Runs of ASCII letters are read eight bytes at a time. Cost: about ten
nanoseconds a piece, 400 MB/s on English.

The end of a text matters (white space there is one piece), so a text must be handed over whole, or cut where
`pretokenize.CUT` says. Many short texts can be handed over as one array with their ends.

Left out here: every other pattern. Those run through `regex` itself.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import regex

from .jit import inline, kernel, load_word, trailing_zeros

OTHER, SPACE, NEWLINE, DIGIT, UPPER, LOWER, LETTER, MARK, END = range(9)
GPT2, GPT4, GPT4_TIKTOKEN, GPT4O, QWEN2, DIGITS_GPT2 = range(6)  # as in pretokenize.SCANNERS

ONES = np.uint64(0x0101010101010101)

_EXPRESSIONS = {
    SPACE: r"\s+", NEWLINE: r"[\r\n]+", DIGIT: r"\p{N}+", UPPER: r"[\p{Lu}\p{Lt}]+", LOWER: r"\p{Ll}+",
    LETTER: r"[\p{Lm}\p{Lo}]+", MARK: r"\p{M}+",
}  # fmt: skip


@cache
def classes() -> np.ndarray:
    """The class of every code point, (0x110000,) uint8."""
    surrogates = "\ufffd" * 0x800  # not characters; never looked up, since they have no UTF-8
    every = "".join(map(chr, range(0xD800))) + surrogates + "".join(map(chr, range(0xE000, 0x110000)))
    table = np.full(0x110000, OTHER, dtype=np.uint8)
    for value, expression in _EXPRESSIONS.items():
        for match in regex.finditer(expression, every):
            table[match.start():match.end()] = value
    return table


@inline
def character(data, i, classes):
    """Class of the character at byte i, and the byte after it. Where it isn't UTF-8, one byte of class OTHER."""
    n = data.size
    if i >= n:
        return END, i
    a = np.int64(data[i])
    if a < 0x80:
        return np.int64(classes[a]), i + 1
    if 0xC2 <= a < 0xE0 and i + 1 < n:
        b = np.int64(data[i + 1])
        if b & 0xC0 == 0x80:
            return np.int64(classes[(a & 0x1F) << 6 | b & 0x3F]), i + 2
    elif 0xE0 <= a < 0xF0 and i + 2 < n:
        b, c = np.int64(data[i + 1]), np.int64(data[i + 2])
        point = (a & 0x0F) << 12 | (b & 0x3F) << 6 | c & 0x3F
        if b & 0xC0 == 0x80 and c & 0xC0 == 0x80 and point >= 0x800 and not 0xD800 <= point < 0xE000:
            return np.int64(classes[point]), i + 3
    elif 0xF0 <= a < 0xF5 and i + 3 < n:
        b, c, d = np.int64(data[i + 1]), np.int64(data[i + 2]), np.int64(data[i + 3])
        point = (a & 0x07) << 18 | (b & 0x3F) << 12 | (c & 0x3F) << 6 | d & 0x3F
        if b & 0xC0 == 0x80 and c & 0xC0 == 0x80 and d & 0xC0 == 0x80 and 0x10000 <= point < 0x110000:
            return np.int64(classes[point]), i + 4
    return OTHER, i + 1


@inline
def ascii_run(data, i, first, fold):
    """The end of the run of 26 ASCII letters from `first` on, eight bytes at a time; `fold` 0x20 takes capitals along.

    In each byte of a word of eight, the top bit of x + (0x80 - first) says that x ≥ first.
    """
    while i + 8 <= data.size:
        word = load_word(data, i, 8)
        x = word & ONES * np.uint64(0x7F) | ONES * np.uint64(fold)
        letters = (x + ONES * np.uint64(0x80 - first)) & ~(x + ONES * np.uint64(0x80 - 26 - first)) & ~word
        others = ~letters & ONES * np.uint64(0x80)
        if others != 0:
            return i + np.int64(trailing_zeros(others) >> np.uint64(3))
        i += 8
    while i < data.size and first <= data[i] | fold < first + 26:
        i += 1
    return i


@inline
def run(data, i, classes, members):
    """The end of the run of characters from byte i whose classes are in the bit set `members`."""
    upper, lower = (members >> UPPER) & 1, (members >> LOWER) & 1
    while True:
        if upper and lower:
            i = ascii_run(data, i, 97, 0x20)
        elif lower:
            i = ascii_run(data, i, 97, 0)
        while i < data.size and data[i] < 0x80 and (members >> classes[data[i]]) & 1:
            i += 1
        if i >= data.size or data[i] < 0x80:
            return i
        kind, after = character(data, i, classes)
        if not (members >> kind) & 1:
            return i
        i = after


@inline
def contraction(data, i, any_case):
    """The end of 's, 't, 'm, 'd, 're, 've or 'll at byte i, or i. In any case, ſ (U+017F) is an s too."""
    n = data.size
    if i + 1 >= n or data[i] != 39:
        return i
    fold = 0x20 if any_case else 0
    a = data[i + 1] | fold
    if a == 115 or a == 116 or a == 109 or a == 100:
        return i + 2
    if i + 2 >= n:
        return i
    b = data[i + 2] | fold
    if ((a == 114 or a == 118) and b == 101) or (a == 108 and b == 108):
        return i + 3
    if any_case and data[i + 1] == 0xC5 and data[i + 2] == 0xBF:
        return i + 3
    return i


@inline
def white_space(data, i, classes, pattern):
    r"""The end of a piece of white space from byte i, by  \s*[\r\n]+|\s+(?!\S)|\s+  (GPT-2: without the first).

    Up to the last newline; else all but the last character, which the next piece may want; else that one.
    Where digits are cut out first, white space before one is at an end.
    """
    last = after_newline = i
    end = i
    while True:
        kind, after = character(data, end, classes)
        if kind != SPACE and kind != NEWLINE:
            break
        last = end
        end = after
        if kind == NEWLINE:
            after_newline = after
    if pattern == GPT4_TIKTOKEN and end == data.size:
        return end
    if pattern not in (GPT2, DIGITS_GPT2) and after_newline > i:
        return after_newline
    alone = end == data.size or last == i or (pattern == DIGITS_GPT2 and kind == DIGIT)
    return end if alone else last


@inline
def cased_word(data, i, classes):
    """GPT-4o's words from byte i: capitals, then small letters; caseless letters and marks are both. i if none.

    [\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+
    """
    both = 1 << LETTER | 1 << MARK
    end = after_both = i
    while True:
        kind, after = character(data, end, classes)
        if not ((1 << UPPER | both) >> kind) & 1:
            break
        end = after
        if kind != UPPER:
            after_both = after
    if kind == LOWER:
        return run(data, end, classes, 1 << LOWER | both)
    return after_both  # no small letter follows: the star gives back capitals down to a letter that is both


@inline
def piece_end(data, i, pattern, classes):
    """The end of the piece that begins at byte i."""
    letters = 1 << UPPER | 1 << LOWER | 1 << LETTER
    symbols = 1 << OTHER | 1 << MARK
    kind, after = character(data, i, classes)
    end = i
    gpt2 = pattern in (GPT2, DIGITS_GPT2)

    # contractions, then words: one leading character that is no letter, digit or newline may come along
    if pattern != GPT4O:
        end = contraction(data, i, not gpt2)
        if end > i:
            return end
        if (letters >> kind) & 1:
            return run(data, after, classes, letters)
        if data[i] == 32 or (not gpt2 and kind != DIGIT and kind != NEWLINE):
            end = run(data, after, classes, letters)
            if end > after:
                return end
    else:
        word = end = i
        prefix = (symbols | 1 << SPACE) >> kind & 1
        if prefix:
            word = after
            end = cased_word(data, word, classes)
        if end == word:  # of no avail, or no prefix
            word = i
            end = cased_word(data, word, classes)
        if end == word and prefix:
            word = after
            end = run(data, word, classes, 1 << UPPER)
        if end == word:
            word = i
            end = run(data, word, classes, 1 << UPPER)
        if end > word:
            return contraction(data, end, True)

    # numbers: any length with a leading space for GPT-2, else one digit, or three at most
    if pattern == GPT2:
        start = after if data[i] == 32 else i
        end = run(data, start, classes, 1 << DIGIT)
        if end > start:
            return end
    elif kind == DIGIT:
        for _ in range(0 if pattern in (QWEN2, DIGITS_GPT2) else 2):
            kind, following = character(data, after, classes)
            if kind != DIGIT:
                break
            after = following
        return after

    # symbols, and from GPT-4 on the newlines that follow them
    start = after if data[i] == 32 else i
    end = run(data, start, classes, symbols)
    if end > start:
        if not gpt2:
            while end < data.size and (data[end] == 10 or data[end] == 13 or (pattern == GPT4O and data[end] == 47)):
                end += 1
        return end
    return white_space(data, i, classes, pattern)


@kernel
def scan(data, start, stops, pattern, classes, ends):
    """Fill `ends` with the ends of the pieces from byte `start` on. Returns how many there are.

    `data` holds texts one after another, which end at `stops`, the last at its end.
    """
    text, count = 0, 0
    while stops[text] <= start and text < stops.size - 1:
        text += 1
    while start < data.size and count < ends.size:
        whole = data[:stops[text]]
        while start < whole.size and count < ends.size:
            start = piece_end(whole, start, pattern, classes)
            ends[count] = start
            count += 1
        text += 1
    return count
