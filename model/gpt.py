"""GPT: a decoder-only transformer, from GPT-2 to Llama, on one screen.

Tokens become vectors; each block lets positions exchange information (attention) and then works on each position by
itself (MLP), adding what it finds to the stream of vectors; the last vectors are compared with each token's row in
the head to score what comes next:

    x = token_embedding[idx] (+ position_embedding)          B batch, T time, C channels, V vocabulary
    x = x + attention(norm(x));  x = x + mlp(norm(x))        n_layer times
    logits = norm(x) @ headᵀ

Norms stand before each branch ("pre-norm"), so the stream itself runs from bottom to top undisturbed (Radford et al.
2019; Touvron et al. 2023). Which norm, which MLP and how positions are told is up to `GPTConfig`.
"""

from __future__ import annotations

import math
from os import PathLike
from typing import Any, Self

import numpy as np

import nn
from autograd import Tensor, no_grad
from model.config import GPTConfig
from model.generation import Generation, as_ids
from model.pretrained import read_pretrained, write_pretrained
from nn import functional as F

__all__ = ["GPT", "Block"]


class Block(nn.Module):
    """One layer of the transformer: (B, T, C) → (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = nn.CausalSelfAttention(
            config.n_embd,
            config.n_head,
            config.n_kv_head,
            bias=config.bias,
            dropout=config.dropout,
            rope_theta=config.rope_theta if config.position == "rope" else None,
            block_size=config.block_size,
        )
        self.mlp_norm = make_norm(config)
        self.mlp = (
            nn.MLP(config.n_embd, config.hidden, bias=config.bias, gelu=config.gelu)
            if config.mlp == "gelu"
            else nn.SwiGLU(config.n_embd, config.hidden, bias=config.bias)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: nn.KVCache | None = None) -> Tensor:
        x = nn.residual(x, self.attention_norm, self.attention, self.dropout, cache)  # x + attention(norm(x))
        return nn.residual(x, self.mlp_norm, self.mlp, self.dropout)  # x + mlp(norm(x))


def make_norm(config: GPTConfig) -> nn.Module:
    """The norm that the configuration asks for, over C."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)


class GPT(Generation, nn.Module):
    """The model. Weights begin normal with std 0.02 (residual projections 0.02 / √(2·n_layer)), biases at 0.

    `autograd.manual_seed` fixes them. `generate` and `stream` write text: see `model.generation`.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        with nn.init.skipped():  # once is enough: see _initialise
            self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
            if config.position == "learned":
                self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.norm = make_norm(config)
            if not config.tie_embeddings:
                self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        # Each block adds twice to the stream; this keeps its variance from growing with depth (Radford et al. 2019).
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attention.out.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif len(parameter.shape) == 2:
                nn.init.normal_(parameter, std=0.02)

    @property
    def head_weight(self) -> Tensor:
        """(V, C): one row per token to compare the last vectors with; the token embedding where it is tied."""
        return self.token_embedding.weight if self.config.tie_embeddings else self.head.weight

    def forward(
        self, idx: Any, targets: Any = None, *, with_logits: bool = False, cache: list[nn.KVCache] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Score the next token at every position; returns (logits, loss).

        idx          integers (B, T) or (T,), an ndarray or Tensor
        targets      the ids that should follow, same shape, −100 where there are none; or None
        with_logits  with targets, return the logits too; else they are never held as a whole
        cache        from `make_cache`; idx are then the positions that follow those already in it

        logits (B, T, V) [(T, V) for idx (T,)], or None; loss: mean cross-entropy in nats, 0-d, or None.
        Raises ValueError (IndexError for an id out of range) if idx is no batch of sequences that the model can read.
        """
        if cache is not None:
            if targets is not None:
                raise ValueError("a cache is for writing, where no gradient flows; leave it out to compute a loss")
            with no_grad():
                return self.score(self.hidden(idx, cache)), None  # (B, T, V)
        x = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.score(x), None  # (B, T, V)
        targets = as_ids(targets, "targets")
        if targets.shape != x.shape[:-1]:
            raise ValueError(f"targets must have the shape of idx, {x.shape[:-1]}, got {targets.shape}")
        self._check_range(targets[targets != -100], "targets")
        if not with_logits:
            return None, F.linear_cross_entropy(x, self.head_weight, targets)
        logits = self.score(x)  # (B, T, V)
        rows = logits.reshape((-1, self.config.vocab_size))  # (B·T, V)
        return logits, F.cross_entropy(rows, targets.reshape(-1))

    def score(self, x: Tensor) -> Tensor:
        """Logits of vectors: (..., C) → (..., V)."""
        return F.linear(x, self.head_weight)

    def hidden(self, idx: Any, cache: list[nn.KVCache] | None = None) -> Tensor:
        """The vectors after the last norm: idx (B, T) → (B, T, C), or (T,) → (T, C). Arguments as in `forward`."""
        idx = as_ids(idx, "idx")
        if idx.ndim == 1:
            return self.hidden(idx[None], cache)[0]
        if idx.ndim != 2:
            raise ValueError(f"idx must be (B, T) or (T,), got shape {idx.shape}")
        self._check_range(idx, "idx")
        start = cache[0].length if cache else 0
        T = idx.shape[1]
        if start + T > self.config.block_size:
            raise ValueError(
                f"{start + T} tokens are more than the block_size of {self.config.block_size}; "
                "crop the sequence to its end: idx[:, -block_size:]"
            )
        x = self.token_embedding(idx)  # (B, T, C)
        if self.config.position == "learned":
            x = x + self.position_embedding(np.arange(start, start + T))  # + (T, C)
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, cache[i] if cache else None)
        return self.norm(x)

    def _check_range(self, ids: np.ndarray, name: str) -> None:
        V = self.config.vocab_size
        if ids.size and (ids.min() < 0 or ids.max() >= V):
            raise IndexError(
                f"{name} must be ids from 0 to {V - 1} (vocab_size {V}), got {ids.min()} … {ids.max()}; "
                "do model and tokenizer belong together?"
            )

    @classmethod
    def from_pretrained(cls, folder: str | PathLike, dtype: Any = np.float32) -> Self:
        """A model from a folder with config.json and safetensors: this project's, or Hugging Face's GPT-2 or Llama.

        Weights are converted to `dtype`. Raises FileNotFoundError or ValueError, in one line, for what it can't read.
        """
        config, state = read_pretrained(folder, dtype)
        with nn.init.skipped():
            model = cls(config).to(dtype)
        model.load_state_dict(state)
        return model

    def save_pretrained(self, folder: str | PathLike) -> None:
        """Write config.json and model.safetensors, so that Hugging Face can load them where it has such a model."""
        write_pretrained(folder, self.config, self.state_dict())
