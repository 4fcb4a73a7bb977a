"""From logits to a token: pure functions of arrays and a random generator.

A model gives each token of the vocabulary a score; softmax makes probabilities of the scores. Three knobs shape them
before one token is drawn:

    temperature  divides the scores: below 1 the likely become likelier, 0 always takes the most likely (greedy)
    top_k        keep the k most likely tokens (Fan et al. 2018)
    top_p        keep the fewest most likely tokens whose probabilities add up to p: the nucleus (Holtzman et al. 2020)

They apply in this order, and what they cut has probability 0.
"""

from __future__ import annotations

import numpy as np

__all__ = ["keep_top_k", "keep_top_p", "probabilities", "sample"]


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """logits (..., V), all but the k largest of each row replaced by −inf. Ties with the k-th stay."""
    check_settings(top_k=k)
    V = logits.shape[-1]
    if k >= V:
        return logits
    kth = np.partition(logits, V - k, axis=-1)[..., V - k, None]  # (..., 1)
    return np.where(logits >= kth, logits, -np.inf)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """logits (..., V), all but the nucleus replaced by −inf.

    A token stays if the tokens more likely than it have less than p together, so the most likely one always does.
    """
    check_settings(top_p=p)
    if p == 1:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")  # (..., V), most likely first
    ranked = _softmax(np.take_along_axis(logits, order, -1))
    above = np.cumsum(ranked, axis=-1) - ranked  # what the likelier ones have together
    keep = np.empty(logits.shape, bool)
    np.put_along_axis(keep, order, above < p, -1)
    return np.where(keep, logits, -np.inf)


def probabilities(
    logits: np.ndarray, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """The distribution that `sample` draws from: float64, same shape (..., V), each row adds up to 1.

    temperature 0 puts everything on the most likely token, on the first of them if several are.
    """
    check_settings(temperature, top_k, top_p)
    logits = np.asarray(logits, np.float64)
    if np.isnan(logits).any():
        raise FloatingPointError("the logits hold NaN, so no token can be drawn; were the weights trained to NaN?")
    if temperature == 0:
        return (np.arange(logits.shape[-1]) == logits.argmax(-1)[..., None]).astype(np.float64)
    logits = (logits - logits.max(-1, keepdims=True)) / temperature  # shifted first: a tiny temperature can't overflow
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return _softmax(logits)


def sample(
    logits: np.ndarray,
    generator: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Draw one id per row: logits (..., V) → int64 (...).

    Each row takes one uniform number u from the generator, greedy rows too, and the first token at which the running
    sum of probabilities exceeds u: the inverse of the distribution function.
    """
    p = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    running = np.cumsum(p, axis=-1)
    u = generator.random(p.shape[:-1])[..., None] * running[..., -1:]  # rounding may leave the total just off 1
    return (running > u).argmax(-1).astype(np.int64)


def check_settings(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
    """Refuse settings out of range with a ValueError, before anything is computed."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 (0: the most likely token), got {temperature}")
    if top_k is not None and not (isinstance(top_k, int | np.integer) and top_k >= 1):
        raise ValueError(f"top_k must be at least 1, a whole number, got {top_k}; leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}; leave it out to keep every token")


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
