"""The shape of a model: one frozen record that spans GPT-2 and Llama, and what can be counted from it.

A decoder-only transformer is described by a dozen numbers and a handful of choices:

    choice            GPT-2                      Llama
    position          learned table              rotary embedding (RoPE)
    norm              LayerNorm                  RMSNorm
    mlp               GELU, hidden 4C            SwiGLU, hidden 8C/3
    attention         one k/v head per head      fewer k/v heads than heads (grouped-query)
    bias              everywhere                 nowhere
    output head       tied to the embedding      usually a matrix of its own

They are independent here, so every mixture is a valid model. A record that exists is a record that makes
sense: the constructor refuses the rest with one line that says what came and what to do.
"""

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Position = Literal["learned", "rope"]
Norm = Literal["layernorm", "rmsnorm"]
MLP = Literal["gelu", "swiglu"]
Gelu = Literal["tanh", "exact"]
MAX_BLOCK_SIZE = 1 << 20


def _suggestion(name: Any, known: Iterable[str]) -> str:
    """`'; did you mean "n_layer"?'` for a near miss, else the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else f"; there are: {', '.join(known)}"


@dataclass(frozen=True)
class GPTConfig:
    """What a GPT looks like. The defaults are the preset "tiny" over bytes: a minute on a laptop.

    n_layer        blocks
    n_head         query heads H; the head size D is n_embd / n_head
    n_kv_head      key/value heads K, each serving n_head / n_kv_head query heads; None: as many as n_head
    n_embd         width C
    block_size     the longest sequence, in tokens
    vocab_size     ids 0 … vocab_size − 1
    bias           biases in the linear layers and in LayerNorm (the output head never has one)
    dropout        probability of dropping: embeddings, attention weights, residual branches; 0: off
    position       "learned" table | "rope"
    norm           "layernorm" | "rmsnorm"
    mlp            "gelu" | "swiglu"
    mlp_hidden     hidden width of the MLP; None: 4C for gelu, 8C/3 rounded up to a multiple of 32 for swiglu
    tie_embeddings the output head is the token embedding
    rope_theta     base of the rotary frequencies
    norm_eps       added to the variance (or the mean square) inside the norms
    gelu           "tanh" (GPT-2's approximation) | "exact" (by erf)

    Raises ValueError, in one line, for what makes no model.
    """

    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int | None = None
    n_embd: int = 128
    block_size: int = 64
    vocab_size: int = 256
    bias: bool = False
    dropout: float = 0.0
    position: Position = "learned"
    norm: Norm = "layernorm"
    mlp: MLP = "gelu"
    mlp_hidden: int | None = None
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    gelu: Gelu = "tanh"

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_kv_head", "n_embd", "block_size", "vocab_size", "mlp_hidden"):
            value = getattr(self, name)
            if value is None and name in ("n_kv_head", "mlp_hidden"):
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.block_size > MAX_BLOCK_SIZE:  # a file may say anything, and rotary tables are made of this length
            raise ValueError(f"block_size must be at most {MAX_BLOCK_SIZE:,}, got {self.block_size}")
        for name in ("bias", "tie_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("dropout", "rope_theta", "norm_eps"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name, choices in (("position", Position), ("norm", Norm), ("mlp", MLP), ("gelu", Gelu)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}"
                )

        if self.n_embd % self.n_head:
            down = self.n_embd - self.n_embd % self.n_head
            nearby = f"{down} or {down + self.n_head}" if down else f"{self.n_head}"
            raise ValueError(
                f"n_embd must be divisible by n_head: got n_embd={self.n_embd}, n_head={self.n_head}; "
                f"set n_embd to {nearby}, or change n_head"
            )
        if self.n_head % self.kv_heads:
            divisors = [k for k in range(1, self.n_head + 1) if self.n_head % k == 0]
            raise ValueError(
                f"n_head must be divisible by n_kv_head: got n_head={self.n_head}, "
                f"n_kv_head={self.n_kv_head}; set n_kv_head to one of {', '.join(map(str, divisors))}"
            )
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(
                f"rotary positions turn pairs, so n_embd / n_head must be even: got {self.n_embd} / "
                f"{self.n_head} = {self.head_size}; set n_embd to {self.n_head * (self.head_size + 1)}, "
                'or position to "learned"'
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta must be above 0, got {self.rope_theta}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be above 0, got {self.norm_eps}")

    # What follows from the fields

    @property
    def head_size(self) -> int:
        """D: the width of one head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """K: key/value heads, with None resolved."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def hidden(self) -> int:
        """The hidden width of the MLP, with None resolved."""
        if self.mlp_hidden is not None:
            return self.mlp_hidden
        if self.mlp == "gelu":
            return 4 * self.n_embd
        # SwiGLU has three matrices where GELU has two: 2/3 of 4C keeps the parameter count (Shazeer 2020).
        return -(-8 * self.n_embd // (3 * 32)) * 32

    def parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every parameter of the model, in its order, without making one. Matrices are (out, in)."""
        C, hidden = self.n_embd, self.hidden
        qkv = (self.n_head + 2 * self.kv_heads) * self.head_size

        def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
            yield f"{name}.weight", (outputs, inputs)
            if self.bias:
                yield f"{name}.bias", (outputs,)

        def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
            yield f"{name}.weight", (C,)
            if self.bias and self.norm == "layernorm":
                yield f"{name}.bias", (C,)

        yield "token_embedding.weight", (self.vocab_size, C)
        if self.position == "learned":
            yield "position_embedding.weight", (self.block_size, C)
        for i in range(self.n_layer):
            block = f"blocks.{i}"
            yield from norm(f"{block}.attention_norm")
            yield from linear(f"{block}.attention.qkv", C, qkv)
            yield from linear(f"{block}.attention.out", C, C)
            yield from norm(f"{block}.mlp_norm")
            if self.mlp == "swiglu":
                yield from linear(f"{block}.mlp.gate", C, hidden)
            yield from linear(f"{block}.mlp.up", C, hidden)
            yield from linear(f"{block}.mlp.down", hidden, C)
        yield from norm("norm")
        if not self.tie_embeddings:
            yield "head.weight", (self.vocab_size, C)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part: token_embedding, position_embedding, attention, mlp, norm, head (tied: 0)."""
        parts = ("token_embedding", "position_embedding", "attention", "mlp", "norm", "head")
        counts = dict.fromkeys(parts, 0)
        for name, shape in self.parameter_shapes():
            part = name.split(".")[2 if name.startswith("blocks.") else 0]
            counts["norm" if part.endswith("norm") else part] += math.prod(shape)
        return counts

    def num_parameters(self, embeddings: bool = True) -> int:
        """All trainable numbers; without `embeddings`, leaves out the token and position tables."""
        counts = self.parameter_counts()
        if not embeddings:
            counts = {part: n for part, n in counts.items() if not part.endswith("_embedding")}
        return sum(counts.values())

    def flops_per_token(
        self, context: int | None = None, *, backward: bool = True, causal: bool = True
    ) -> int:
        """Floating-point operations of the matrix products for one token (a multiply-add is two).

        context   tokens in the sequence; None: block_size
        backward  count the backward pass, which costs twice the forward
        causal    count only the half of the attention square that a causal model needs; False counts all
                  of it, as PaLM (Chowdhery et al. 2022, appendix B) and nanoGPT do
        """
        T = self.block_size if context is None else context
        C = self.n_embd
        projections = C * (C + 2 * self.kv_heads * self.head_size) + C * C
        mlp = (2 if self.mlp == "gelu" else 3) * C * self.hidden
        keys_seen = (T + 1) / 2 if causal else T
        attention = 2 * C * keys_seen  # q·k and weights·v, one multiply-add per channel and key
        forward = 2 * (self.n_layer * (projections + mlp + attention) + self.vocab_size * C)
        return round(forward * (3 if backward else 1))

    # To and from plain data

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, in plain types: what goes into TOML and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """The inverse of `to_dict`; fields left out take their default, unknown ones raise ValueError."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f'"{name}" is no field of GPTConfig{_suggestion(name, known)}')
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "GPTConfig":
        """A model of `presets` by name, with fields changed: GPTConfig.preset("tiny", vocab_size=65)."""
        if name not in presets:
            raise ValueError(f'there is no preset "{name}"{_suggestion(name, presets)}')
        return cls.from_dict({**presets[name].to_dict(), **changes})


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> GPTConfig:
    return GPTConfig(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=1024, vocab_size=50257, bias=True
    )


def _llama(n_layer: int, n_head: int, n_embd: int, **changes: Any) -> GPTConfig:
    style = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "vocab_size": 32000}
    return GPTConfig.from_dict({"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, **style, **changes})


# Shapes by name. The vocabulary of the first three is set by the tokenizer (256: bytes); dropout is a matter
# of training, so every preset has 0.
presets: dict[str, GPTConfig] = {
    "tiny": GPTConfig(),  # 0.8M: nanoGPT's recipe for a CPU
    "toy": _llama(4, 4, 128, block_size=64, vocab_size=256),  # 0.8M: the same size in Llama style
    "baby": GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256),  # 10.7M: nanoGPT's "baby GPT"
    # Radford et al. 2019
    "gpt2": _gpt2(12, 12, 768),  # 124M
    "gpt2-medium": _gpt2(24, 16, 1024),  # 350M
    "gpt2-large": _gpt2(36, 20, 1280),  # 774M
    "gpt2-xl": _gpt2(48, 25, 1600),  # 1558M
    # llama2.c's models for TinyStories
    "llama-15m": _llama(6, 6, 288, block_size=256),
    "llama-42m": _llama(8, 8, 512, block_size=1024),
    "llama-110m": _llama(12, 12, 768, block_size=1024),
    "smollm-135m": _llama(
        30, 9, 576, n_kv_head=3, mlp_hidden=1536, block_size=2048, vocab_size=49152
    ),  # Hugging Face 2024
    "tinyllama": _llama(
        22, 32, 2048, n_kv_head=4, mlp_hidden=5632, block_size=2048, tie_embeddings=False
    ),  # Zhang et al. 2024, 1.1B
    "llama-7b": _llama(
        32, 32, 4096, mlp_hidden=11008, block_size=2048, norm_eps=1e-6, tie_embeddings=False
    ),  # Touvron et al. 2023
}
