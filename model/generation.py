"""Writing: draw a token, append it, ask the model again.

The keys and values of the tokens already read are kept in a cache, so each step costs one token instead of all of
them, and gives the same logits as reading everything anew.

What the model can see is its last `block_size` tokens. Once the text is longer, every token has another position than
when it was read, so nothing in the cache holds any more, and each step reads the last block_size tokens afresh. That
is slower, and exactly what the model would have computed without a cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd import Tensor, no_grad
from model.sampling import check_settings, sample
from nn import KVCache

if TYPE_CHECKING:
    from model.config import GPTConfig

__all__ = ["Generation", "as_ids"]


def as_ids(ids: Any, name: str) -> np.ndarray:
    """Token ids as an int64 ndarray, from a list, an ndarray or a Tensor; ValueError for anything but integers."""
    array = ids.array if isinstance(ids, Tensor) else np.asarray(ids)
    if not array.size:
        raise ValueError(f"{name} is empty; expected at least one token")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got an array of {array.dtype}")
    return array.astype(np.int64, copy=False)


class Generation:
    """What lets a model write. It needs `config`, `blocks`, `hidden`, `score`, `head_weight` and `modules`."""

    config: GPTConfig
    blocks: Any
    hidden: Any
    score: Any
    head_weight: Any
    modules: Any
    training: bool

    def make_cache(self, batch: int = 1, capacity: int | None = None) -> list[KVCache]:
        """An empty cache for each block, for `batch` texts of `capacity` positions (None: block_size).

        Hand it to the model together with the tokens that follow what it holds: `gpt(idx, cache=cache)`.
        """
        c = self.config
        shape = (batch, c.kv_heads, capacity or c.block_size, c.head_size)
        return [KVCache(*shape, self.head_weight.dtype) for _ in self.blocks]

    def generate(
        self,
        idx: Any,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_id: int | None = None,
    ) -> np.ndarray:
        """Continue a prompt, or a batch of prompts of one length.

        idx             integers, the prompt (T,) or prompts (B, T), at least one token
        max_new_tokens  how many to add at most
        temperature     below 1 likely tokens become likelier; 0: always the most likely
        top_k, top_p    draw from the k most likely, or the nucleus of probability p, only (`model.sampling`)
        seed            of the random numbers; None: different ones each time
        stop_id         a text ends with the first of these it draws; once all have ended, generation stops, and
                        rows that ended early are filled up with stop_id

        Returns int64 (T + new,) or (B, T + new), prompt included. A prompt longer than block_size is read from its
        last block_size tokens. Raises ValueError (IndexError for ids out of range).
        """
        prompt = as_ids(idx, "the prompt")
        batch = prompt[None] if prompt.ndim == 1 else prompt  # (B, T)
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        columns = self._write(batch, max_new_tokens, settings, seed, stop_id)
        text = np.concatenate([batch, *(column[:, None] for column in columns)], axis=1)  # (B, T + new)
        return text[0] if prompt.ndim == 1 else text

    def stream(
        self,
        idx: Any,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_id: int | None = None,
    ) -> Iterator[int]:
        """`generate` for one prompt (T,), yielding each new id as it is drawn. A stop_id is yielded, and the last."""
        prompt = as_ids(idx, "the prompt")
        if prompt.ndim != 1:
            raise ValueError(f"stream continues one prompt (T,), got shape {prompt.shape}; use generate for several")
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        columns = self._write(prompt[None], max_new_tokens, settings, seed, stop_id)
        return (int(column[0]) for column in columns)

    def _write(
        self, prompt: np.ndarray, max_new_tokens: int, settings: dict, seed: int | None, stop_id: int | None
    ) -> Iterator[np.ndarray]:
        """New ids column by column, each (B,), for a prompt (B, T). Settings are checked before the first."""
        check_settings(**settings)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
        if prompt.ndim != 2:
            raise ValueError(f"a prompt is (T,) or (B, T) with at least one token, got shape {prompt.shape}")
        return self._columns(prompt, max_new_tokens, settings, np.random.default_rng(seed), stop_id)

    def _columns(
        self, prompt: np.ndarray, count: int, settings: dict, generator: np.random.Generator, stop_id: int | None
    ) -> Iterator[np.ndarray]:
        block_size = self.config.block_size
        text = unread = prompt[:, -block_size:]  # (B, at most block_size)
        B, T = text.shape
        cache = self.make_cache(B, min(block_size, T + count))
        ended = np.zeros(B, bool)
        for _ in range(count):
            with self._reading():
                last = self.hidden(unread, cache)[:, -1]  # (B, C)
                logits = self.score(last).array  # (B, V)
            new = sample(logits, generator, **settings)  # (B,)
            if stop_id is not None:
                new[ended] = stop_id
                ended |= new == stop_id
            yield new
            if ended.all():
                return
            unread = new[:, None]  # (B, 1)
            text = np.concatenate([text, unread], axis=1)[:, -block_size:]
            if cache[0].length == block_size:
                cache, unread = self.make_cache(B), text

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """No gradients and no dropout, for one step; between the steps of a stream the model is as it was."""
        training = [module for module in self.modules() if module.training] if self.training else []
        for module in training:
            module.training = False
        try:
            with no_grad():
                yield
        finally:
            for module in training:
                module.training = True
