"""Batches: stretches of the training split drawn at random, and the validation split from end to end.

A training batch is a pure function of (seed, step, micro-step). The offsets come from Philox, a counter-based
generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the step *is* the counter, so
there is no state to save, and a run that resumes at step 1000 draws what it would have drawn. Only the raw
words of the generator are used; NumPy keeps those the same from release to release.

Validation scores every token once: windows of `block_size` side by side, without overlap, so the loss is an
average over the split and not an estimate from a few batches.

Shapes: B batch, T = block_size. Inputs and targets are int64 (B, T); targets are the inputs one further on.
"""

from collections.abc import Iterator

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]


def split(ids: np.ndarray, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation): views of the tokens before and after the position N·(1 − val_fraction)."""
    if not 0 < val_fraction < 1:
        raise ValueError(f"the validation fraction must lie between 0 and 1, got {val_fraction}")
    cut = int(len(ids) * (1 - val_fraction))
    return ids[:cut], ids[cut:]


def training_batch(
    ids: np.ndarray, *, block_size: int, batch_size: int, seed: int, step: int, micro_step: int = 0
) -> Batch:
    """Inputs and targets (B, T) from random places of `ids` (N,).

    Every offset from 0 to N − T − 1 is equally likely (up to 2⁻⁶⁴·N). Raises ValueError if N ≤ T.
    """
    n_offsets = len(ids) - block_size
    if n_offsets < 1:
        raise ValueError(
            f"a window of {block_size} tokens and their targets takes {block_size + 1} tokens, got {len(ids)}"
        )
    words = random_words(batch_size, seed=seed, step=step, micro_step=micro_step)
    offsets = (words % np.uint64(n_offsets)).astype(np.int64)
    return _windows(ids, offsets, block_size)


def random_words(n: int, *, seed: int, step: int, micro_step: int = 0, stream: int = 0) -> np.ndarray:
    """`n` random words, uint64, of their own for every (seed, step, micro-step, stream)."""
    return np.random.Philox(key=seed, counter=[0, stream, micro_step, step]).random_raw(n)


def validation_batches(
    ids: np.ndarray, *, block_size: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[Batch]:
    """Inputs and targets that cover `ids` (N,) in windows side by side: all but its first token are targets.

    The last window may be shorter. Where that would be more than `max_tokens` targets, full windows are taken
    at even distances instead, the same ones every time.
    """
    n_targets = len(ids) - 1
    n_windows = n_targets // block_size
    chosen, whole = np.arange(n_windows), True
    if max_tokens is not None and n_targets > max_tokens and n_windows:
        count = max(1, max_tokens // block_size)
        chosen, whole = np.arange(count) * n_windows // count, False
    for first in range(0, len(chosen), batch_size):
        starts = chosen[first : first + batch_size] * block_size
        yield _windows(ids, starts, block_size)
    rest = n_targets - n_windows * block_size
    if whole and rest:
        yield _windows(ids, np.array([n_windows * block_size]), rest)


def _windows(ids: np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    windows = ids[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T+1)
    return windows[:, :-1].copy(), windows[:, 1:].copy()
