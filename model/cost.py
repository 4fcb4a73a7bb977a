"""What a model costs: parameters, floating-point operations and memory, counted from its configuration alone.

**FLOPs.** A matrix product of (M, K) by (K, N) is M·N·K multiply-adds, 2·M·N·K operations. Counted are, for each
token, the products of the blocks, of attention and of the output head; norms, activations and the optimizer are not
(a few percent of the work, bound by memory). So a weight that multiplies costs 2 forward and 4 backward: the "6 per
parameter" of Kaplan et al. 2020 (arXiv:2001.08361, section 2.1), with attention added as by Chowdhery et al. 2022
(PaLM, arXiv:2204.02311, appendix B). Two choices differ between papers, and are made here so that the figure is the
work a trainer cannot avoid:

- the embedding table does not count, since looking up is no product; the head does, tied or not;
- of the attention square only the causal half counts, T(T + 1)/2 pairs, which is what the kernels compute (up to
  the blocks on the diagonal). PaLM and nanoGPT count all T².

The kernels' attention computes the scores anew in its backward pass, 2.5 times the forward work. That is a price paid
for memory, no use of it: as in PaLM's *model* FLOPs utilisation, the backward pass counts twice the forward.

**Memory.** Weights, gradients and AdamW's two moments are float32, in either precision of the products: 16 bytes a
parameter. Activations are the arrays that the forward pass leaves for the backward pass, operator by operator (the
operators say what they save: `autograd/ops/`), and what is alive beside them at the worst moment.
"""

from __future__ import annotations

from dataclasses import dataclass

from autograd.kernels.cross_entropy import CHUNK_BYTES
from autograd.kernels.together import PENDING
from model.config import GPTConfig

__all__ = ["Memory", "flops_per_token", "forward_flops_per_token", "memory", "parameters"]

BYTES = 4  # of a float32


def parameters(config: GPTConfig) -> dict[str, int]:
    """Trainable numbers by part: token_embedding, position_embedding, attention, mlp, norm, head (tied: 0)."""
    return config.parameter_counts()


def flops_per_token(config: GPTConfig, context: int | None = None) -> float:
    """Operations to train on one token, forward and backward.

    context   tokens in a sequence; None: block_size. Attention's share grows with it
    """
    return 3 * forward_flops_per_token(config, context)


def forward_flops_per_token(config: GPTConfig, context: int | None = None) -> float:
    """Operations to score one token, averaged over the positions of a sequence of `context` tokens."""
    return float(config.flops_per_token(context, backward=False))


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs, each kind at its largest.

    parameters    the weights
    gradients     one for each weight
    moments       AdamW's means of gradients and of their squares
    activations   what the forward pass keeps for the backward pass, and what is alive beside it
    peak          the most that is needed at once. Without accumulation this is less than the sum: gradients come
                  while activations go
    """

    parameters: int
    gradients: int
    moments: int
    activations: int
    peak: int


def memory(config: GPTConfig, batch_size: int, accumulation: int = 1, *, narrow: bool = False) -> Memory:
    """The arrays of one training step over `accumulation` batches of `batch_size` sequences of block_size tokens.

    With `narrow`, matrix products are rounded to bfloat16, and what GPT-2's MLP and attention keep is stored so.
    Not counted: the program itself (interpreter, libraries, compiled kernels), the corpus (read from disk as it
    is needed), and what the C library can't use of the gaps between arrays.
    """
    tokens = batch_size * config.block_size
    weights = BYTES * config.num_parameters()
    saved = BYTES * tokens * _saved_per_token(config)
    hidden = BYTES * tokens * config.hidden
    if narrow:
        # Branches that are one operator with norm and sum keep the norm's result narrow, too.
        normed = config.n_embd if config.norm == "layernorm" and not config.dropout else 0
        if config.mlp == "gelu":
            hidden //= 2
            saved -= (2 * hidden + BYTES // 2 * tokens * normed) * config.n_layer
        if config.position != "rope":
            saved -= BYTES // 2 * tokens * (normed + _qkv_width(config) + config.n_embd) * config.n_layer
    head = BYTES * config.vocab_size * config.n_embd  # its gradient is made at the end of the forward pass
    rows = min(tokens, max(16, CHUNK_BYTES // (BYTES * config.vocab_size)))
    logits = BYTES * rows * (config.vocab_size + config.n_embd)
    # The worst moment is the end of the forward pass, or the backward pass through the last MLP; or, as long as there
    # are no gradients to add to, through as many branches as wait together (see `autograd/kernels/together.py`).
    wide = 2 if config.mlp == "gelu" else 3
    later = saved + max(logits, (wide - 1) * hidden + BYTES * tokens * config.n_embd)
    activations = max(later, saved + _waiting(config, tokens, narrow))
    earlier_gradients = weights if accumulation > 1 else 0
    # At the end of the backward pass the table's gradient is added to the head's, and both to that of earlier batches.
    table = head * (config.tie_embeddings + (accumulation > 1))
    peak = 3 * weights + max(head + activations, earlier_gradients + head + later, weights + table)
    return Memory(weights, weights, 2 * weights, activations, peak)


def _waiting(config: GPTConfig, tokens: int, narrow: bool) -> int:
    """Bytes of what the backward passes of branches make before any of it is free again."""
    if config.norm != "layernorm" or config.mlp != "gelu" or config.position == "rope" or config.dropout:
        return 0
    C, H, qkv = config.n_embd, config.hidden, _qkv_width(config)
    between, per_number = BYTES // 2 if narrow else BYTES, tokens * BYTES
    made = owed = per_number * C  # the gradient of the last norm
    for wide, weights in ((H, 2 * H * C), (C + qkv, (C + qkv) * C)) * config.n_layer:
        made += tokens * (between * (wide + C) + BYTES * C) + BYTES * weights
        owed += per_number * (wide + 2 * C) + BYTES * weights  # as if all of it were float32
        if owed > PENDING:
            break
    return made


def _qkv_width(config: GPTConfig) -> int:
    return (config.n_head + 2 * config.kv_heads) * config.head_size


def _saved_per_token(config: GPTConfig) -> int:
    """Numbers that the forward pass leaves for the backward pass, for each token."""
    C, H = config.n_embd, config.n_head
    dropout = config.dropout > 0  # keeps its input, and makes a new array
    statistics = 2 if config.norm == "layernorm" else 1  # of a row: mean, reciprocal of the deviation
    qkv = _qkv_width(config)
    attention = C + qkv * (2 if config.position == "rope" else 1) + C + H  # norm's result, qkv, the heads' result, lse
    mlp = C + config.hidden * (2 if config.mlp == "gelu" else 3)  # norm's result, and around the activation
    residual = C + C * dropout  # the stream after a branch was added; a branch's result
    block = attention + mlp + 2 * (residual + statistics)
    ends = C + C * dropout + C + statistics + C  # the embedding, the last norm's result and its gradient
    return config.n_layer * block + ends
