"""What a loss is worth: bits per byte that simpler means reach on the same held-out bytes.

    uniform        8 bits: every byte equally likely
    order 0        how often each byte occurs in the training text
    xz -9          the held-out bytes packed by LZMA, which sees nothing but them and has to spell out all it learns
    order 3        how often each byte follows the three before it, in the training text

The byte n-gram models are those of Witten and Bell (1991, "The zero-frequency problem"), interpolated, without a
parameter to tune. With n(c) the times a context c was seen, n(cb) those with byte b after it, and t(c) how many
different bytes came after it:

    p(b | c) = (n(cb) + t(c) · p(b | c without its first byte)) / (n(c) + t(c))         below order 0: 1/256

A context never seen passes the question on to the shorter one. Cost: a sort of the text for each order.
"""

import lzma
import math
from typing import Any

import numpy as np

from data import validation_batches
from tokenizer import Tokenizer

MOST_TRAINING_BYTES = 8 << 20  # the n-grams learn from the last of the training text
BYTES_PER_TRAINING_BYTE = 20  # of memory, at the worst moment
MOST_VALIDATION_BYTES = 1 << 20
ORDERS = (0, 3)


def measure_baselines(
    tokenizer: Tokenizer, lengths: np.ndarray, train_ids: np.ndarray, val_ids: np.ndarray, block_size: int,
    max_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """Bits per byte of the baselines, on the tokens that an evaluation scores, with how many bytes were used.

    lengths      bytes of text behind each id, (V,); special tokens have none
    max_tokens   as for an evaluation: score no more than these; 0: all

    Returns {"xz": …, "order 0": …, "order 3": …, "train_bytes": …, "val_bytes": …, "all_val_bytes": …,
    "val_tokens": …}: at most MOST_VALIDATION_BYTES of the all_val_bytes in val_tokens tokens.
    """
    windows = validation_batches(val_ids, block_size=block_size, batch_size=64, max_tokens=max_tokens or None)
    targets = np.concatenate([targets.reshape(-1) for _, targets in windows])
    all_bytes = int(lengths[targets].sum())
    val = _text(tokenizer, lengths, targets[: _tokens_in(lengths, targets, MOST_VALIDATION_BYTES)])
    recent = train_ids[-MOST_TRAINING_BYTES:]  # tokens are seldom shorter than a byte
    kept = _tokens_in(lengths, recent[::-1], MOST_TRAINING_BYTES)
    train = _text(tokenizer, lengths, recent[len(recent) - kept :])
    return {
        "xz": xz_bits(val.tobytes()),
        **{f"order {order}": ngram_bits(train, val, order) for order in ORDERS},
        "train_bytes": len(train), "val_bytes": len(val), "all_val_bytes": all_bytes, "val_tokens": len(targets),
    }  # fmt: skip


def _tokens_in(lengths: np.ndarray, ids: np.ndarray, most_bytes: int) -> int:
    """How many of the first ids stand for no more than `most_bytes`."""
    return int(np.searchsorted(np.cumsum(lengths[ids]), most_bytes, side="right"))


def _text(tokenizer: Tokenizer, lengths: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The bytes of text behind ids, without those that stand for none: uint8 (N,)."""
    return np.frombuffer(tokenizer.decode_bytes(ids[lengths[ids] > 0]), np.uint8)


def xz_bits(data: bytes) -> float:
    """Bits that `xz -9` needs for each byte of `data`; 8 where there are none.

    Its dictionary of 64 MiB is made no larger than the data, which can't use more: the same bytes for less memory.
    """
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(4096, len(data))}]
    return 8 * len(lzma.compress(data, filters=filters)) / len(data) if data else 8.0


def ngram_bits(train: np.ndarray, test: np.ndarray, order: int) -> float:
    """The mean of −log₂ p over the bytes of `test` (M,) by a model of `train` (N,), both uint8; 8 for no bytes.

    The first bytes of `test` have only those before them in it for a context.
    """
    p = np.full(len(test), 1 / 256)
    for length in range(min(order, len(train) - 1, len(test) - 1) + 1):  # of the context, in bytes
        seen = _grams(train, length)
        seen.sort()  # in place: this is what takes memory
        starts = np.flatnonzero(np.append(True, seen[1:] != seen[:-1]))
        grams, n_gram = seen[starts], np.diff(starts, append=len(seen))
        contexts, first = np.unique(grams >> 8, return_index=True)  # both sorted
        n_context, kinds = np.add.reduceat(n_gram, first), np.diff(first, append=len(grams))
        asked = _grams(test, length)
        gram, gram_seen = _find(grams, asked)
        context, context_seen = _find(contexts, asked >> 8)
        n, t = np.where(gram_seen, n_gram[gram], 0), kinds[context]
        p[length:] = np.where(context_seen, (n + t * p[length:]) / (n_context[context] + t), p[length:])
    return float(-np.log2(p).mean()) if len(test) else 8.0


def _grams(text: np.ndarray, length: int) -> np.ndarray:
    """Every byte of `text` (N,) that has `length` ≤ 3 before it, together with these as one number: (N − length,)."""
    codes = np.zeros(len(text) - length, np.uint32)
    for offset in range(length + 1):
        codes <<= 8
        codes |= text[offset : offset + len(codes)]
    return codes


def _find(keys: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each number asked for stands among the sorted keys, and whether it is there."""
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return places, keys[places] == asked


def nats_per_token(bits_per_byte: float, bytes_per_token: float) -> float:
    """The loss that a model with as many bits per byte would have."""
    return bits_per_byte * math.log(2) * bytes_per_token
