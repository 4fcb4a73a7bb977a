"""Weights on disk: config.json and safetensors, in the layouts that Hugging Face's GPT-2 and Llama have.

A model that has the shape of one of the two families is written so that `transformers` loads it, and theirs load
here; any other mixture keeps this project's own names. The differences, all settled by the tables below:

    GPT-2   c_attn, c_fc, c_proj store their matrices (in, out), ours are (out, in): transposed
            it always has biases: a model without is written with zeros
    Llama   q_proj, k_proj and v_proj are apart; ours are one matrix, q rows above k rows above v rows
    both    a tied head is not stored twice

The exact `GPTConfig` goes into config.json as well, under "groundup", which others ignore. Nothing is unpickled.
Sizes, names, shapes and types are compared with the configuration before any weight is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data.files import read_json
from model.config import GPTConfig
from model.stored import MAX_HEADER_BYTES, Stored, read_header

__all__ = ["read_pretrained", "write_pretrained"]

# our layer → theirs (several: rows of ours one after the other)
_GPT2: dict[str, tuple[str, ...]] = {
    "token_embedding": ("wte",),
    "position_embedding": ("wpe",),
    "blocks": ("h",),
    "attention_norm": ("ln_1",),
    "attention.qkv": ("attn.c_attn",),
    "attention.out": ("attn.c_proj",),
    "mlp_norm": ("ln_2",),
    "mlp.up": ("mlp.c_fc",),
    "mlp.down": ("mlp.c_proj",),
    "norm": ("ln_f",),
    "head": ("lm_head",),
}
_LLAMA: dict[str, tuple[str, ...]] = {
    "token_embedding": ("embed_tokens",),
    "blocks": ("layers",),
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate": ("mlp.gate_proj",),
    "mlp.up": ("mlp.up_proj",),
    "mlp.down": ("mlp.down_proj",),
    "norm": ("norm",),
    "head": ("lm_head",),
}
_TABLES = {"gpt2": _GPT2, "llama": _LLAMA}
_PREFIX = {"gpt2": "transformer.", "llama": "model.", "groundup": ""}
# Constants that older files carry along: masks and rotary frequencies, which we compute.
_CONSTANTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def family(config: GPTConfig) -> str:
    """The layout a model is stored in: "gpt2", "llama", or "groundup" for what is neither."""
    choices = (config.position, config.norm, config.mlp)
    if choices == ("learned", "layernorm", "gelu") and config.kv_heads == config.n_head:
        return "gpt2"
    return "llama" if choices == ("rope", "rmsnorm", "swiglu") else "groundup"


def _layout(config: GPTConfig, kind: str) -> Iterator[tuple[str, list[tuple[str, tuple[int, ...]]], bool]]:
    """(our name, [(their name, shape as we store it)], are theirs transposed) of every tensor in a file."""
    if kind == "gpt2":
        config = replace(config, bias=True)
    rows = [n * config.head_size for n in (config.n_head, config.kv_heads, config.kv_heads)]
    for ours, shape in config.parameter_shapes():
        if kind == "groundup":
            yield ours, [(ours, shape)], False
            continue
        table = _TABLES[kind]
        layer, _, ending = ours.rpartition(".")
        lead = ""
        if layer.startswith("blocks."):
            _, number, layer = layer.split(".", 2)
            lead = f"{table['blocks'][0]}.{number}."
        names = [f"{lead}{name}.{ending}" for name in table[layer]]
        parts = rows if len(names) > 1 else [shape[0]]
        transposed = kind == "gpt2" and ending == "weight" and "." in layer
        yield ours, [(name, (n, *shape[1:])) for name, n in zip(names, parts, strict=True)], transposed


# Reading


def read_pretrained(folder: str | PathLike, dtype: Any = np.float32) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """The configuration and the state_dict of a model in `folder`; weights are converted to `dtype`.

    Raises FileNotFoundError for what is missing, ValueError for what does not fit together.
    """
    folder = Path(folder)
    kind, config = _read_config(folder / "config.json")
    tensors = _Tensors(folder, _PREFIX[kind])
    layout = []
    for ours, theirs, transposed in _layout(config, kind):  # stops at the first problem: config.json may say anything
        for name, shape in theirs:
            tensors.expect(name, shape[::-1] if transposed else shape)
        layout.append((ours, [name for name, _ in theirs], transposed))
    tensors.expect_no_others(tied=config.tie_embeddings)

    state = {}
    for ours, names, transposed in layout:
        parts = [tensors.read(name).astype(dtype) for name in names]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if ours.endswith(".bias") and not config.bias:
            if array.any():
                raise ValueError(f"{folder}: {names[0]} is not zero, but config.json says that there are no biases")
            continue
        state[ours] = array.T if transposed else array
    return config, state


def _read_config(path: Path) -> tuple[str, GPTConfig]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a folder with config.json and model.safetensors")
    try:
        values = read_json(path)
        if isinstance(values.get("groundup"), dict):
            config = GPTConfig.from_dict(values["groundup"])
            return family(config), config
        kind = values.get("model_type")
        if kind == "gpt2":
            return kind, _from_gpt2(values)
        if kind == "llama":
            return kind, _from_llama(values)
        raise ValueError(f'model_type must be "gpt2" or "llama", got {kind!r}')
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _refuse_unless(values: Mapping[str, Any], expected: Mapping[str, tuple]) -> None:
    """Settings that would change the computation must be ones that this model computes."""
    for name, accepted in expected.items():
        if name in values and values[name] not in accepted:
            raise ValueError(f"{name}={values[name]!r} is not supported; expected {' or '.join(map(repr, accepted))}")


def _from_gpt2(values: Mapping[str, Any]) -> GPTConfig:
    gelu = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu": "exact"}
    _refuse_unless(
        values,
        {
            "activation_function": tuple(gelu),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    )
    return GPTConfig(
        n_layer=values["n_layer"],
        n_head=values["n_head"],
        n_embd=values["n_embd"],
        block_size=values["n_positions"],
        vocab_size=values["vocab_size"],
        mlp_hidden=values.get("n_inner"),
        bias=True,
        dropout=values.get("resid_pdrop", 0.1),
        tie_embeddings=values.get("tie_word_embeddings", True),
        norm_eps=values.get("layer_norm_epsilon", 1e-5),
        gelu=gelu[values.get("activation_function", "gelu_new")],  # type: ignore[arg-type]
    )


def _from_llama(values: Mapping[str, Any]) -> GPTConfig:
    bias = values.get("attention_bias", False)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    _refuse_unless(values, {"hidden_act": ("silu",), "mlp_bias": (bias,)})
    if not isinstance(rope, dict):
        raise ValueError(f"expected an object for the rope parameters, got {rope!r}")
    _refuse_unless(rope, {"rope_type": ("default",), "type": ("default",)})
    config = GPTConfig(
        n_layer=values["num_hidden_layers"],
        n_head=values["num_attention_heads"],
        n_kv_head=values.get("num_key_value_heads"),
        n_embd=values["hidden_size"],
        block_size=values["max_position_embeddings"],
        vocab_size=values["vocab_size"],
        bias=bias,
        dropout=values.get("attention_dropout", 0.0),
        position="rope",
        norm="rmsnorm",
        mlp="swiglu",
        mlp_hidden=values["intermediate_size"],
        tie_embeddings=values.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta", values.get("rope_theta", 10000.0)),
        norm_eps=values.get("rms_norm_eps", 1e-6),
    )
    _refuse_unless(values, {"head_dim": (None, config.head_size)})
    return config


class _Tensors:
    """What the safetensors files of a folder hold, by name without `prefix`."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.found: dict[str, tuple[Path, str, Stored]] = {}  # name → (its file, name in it, what is said of it)
        self.expected: set[str] = set()
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            pickled = sorted(p.name for p in folder.glob("*.bin"))
            raise FileNotFoundError(
                f"{folder} has no .safetensors file"
                + (f"; {pickled[0]} is a pickle, which can run code and is never read here" if pickled else "")
            )
        index = folder / "model.safetensors.index.json"
        if index.is_file():  # large models come in parts
            try:
                named = set(read_json(index, MAX_HEADER_BYTES)["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f'{index}: expected {{"weight_map": {{name: file}}}}') from None
            files = [file for file in files if file.name in named]
        elif (folder / "model.safetensors").is_file():
            files = [folder / "model.safetensors"]
        for path in files:
            for spelled, stored in read_header(path).items():
                name = spelled.removeprefix(prefix)
                if name in self.found:
                    raise ValueError(f"{folder}: {name} is there twice, in {self.found[name][0].name} and {path.name}")
                self.found[name] = (path, spelled, stored)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Check, by the header alone, that a tensor is there, of this shape, and of floating-point numbers."""
        self.expected.add(name)
        if name not in self.found:
            raise ValueError(f"{self.folder}: the weights lack {name} {shape}, which config.json asks for")
        stored = self.found[name][2]
        if stored.shape != shape:
            raise ValueError(f"{self.folder}: {name} has shape {stored.shape}, config.json asks for {shape}")
        if stored.dtype not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{self.folder}: {name} has type {stored.dtype}, expected F64, F32, F16 or BF16")

    def expect_no_others(self, *, tied: bool) -> None:
        """Refuse weights that the model has no place for: it would compute something else than was trained."""
        others = [name for name in self.found if name not in self.expected and not name.endswith(_CONSTANTS)]
        others = [name for name in others if not (tied and name == "lm_head.weight")]
        if others:
            raise ValueError(f"{self.folder}: the weights hold {others[0]}, which this kind of model does not have")

    def read(self, name: str) -> np.ndarray:
        """One tensor; BF16, which NumPy lacks, becomes float32."""
        path, spelled, stored = self.found[name]
        if stored.dtype == "BF16":
            upper = np.fromfile(path, "<u2", stored.n_bytes // 2, offset=stored.start)
            return (upper.astype(np.uint32) << 16).view(np.float32).reshape(stored.shape)
        try:
            with safe_open(path, "np") as file:
                return file.get_tensor(spelled)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None


# Writing


def write_pretrained(folder: str | PathLike, config: GPTConfig, state: Mapping[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors into `folder` (made if need be), each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = family(config)
    dtype = state["token_embedding.weight"].dtype
    tensors = {}
    for ours, theirs, transposed in _layout(config, kind):
        array = state.get(ours)
        if array is None:  # a bias that the family has and this model has not
            array = np.zeros(theirs[0][1], dtype)
        start = 0
        for name, (rows, *_) in theirs:
            part = array[start : start + rows]
            stored = name if name.startswith("lm_head") else _PREFIX[kind] + name
            tensors[stored] = np.ascontiguousarray(part.T if transposed else part)  # else written wrongly
            start += rows
    described = {"gpt2": _to_gpt2, "llama": _to_llama, "groundup": lambda _: {"model_type": "groundup"}}[kind](config)
    described |= {"dtype": str(dtype), "groundup": config.to_dict()}

    aside = folder / "model.safetensors.tmp"
    save_file(tensors, aside, metadata={"format": "pt"})
    os.replace(aside, folder / "model.safetensors")
    aside = folder / "config.json.tmp"
    aside.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, folder / "config.json")


def _to_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "vocab_size": config.vocab_size,
        "n_inner": config.hidden,
        "activation_function": "gelu_new" if config.gelu == "tanh" else "gelu",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _to_llama(config: GPTConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.block_size,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.dropout,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }
