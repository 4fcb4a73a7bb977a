"""report.json: what a page shows that no log holds.

    model             the configuration's fields
    summary           figures of model, tokenizer and corpus, by name, as text
    flops_per_token   operations to train on a token;  peak_flops: operations a second that this machine reaches
    baselines         see baselines.py
    attention         step, tokens (text), shape (n_layer, n_head, T, T), maps: uint8 of 255 · √weight, packed

All of it can be made again from a run's other files.
"""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from model import GPT
from model.inspection import attention_weights
from tokenizer import Tokenizer

MOST_WEIGHTS = 1 << 18  # bytes of attention maps on a page
MOST_TOKENS = 64


def attention_facts(model: GPT, tokenizer: Tokenizer, step: int, text: str) -> dict[str, Any] | None:
    """The attention of every head while the model reads the beginning of a sample; None for an empty one.

    Deep models read fewer tokens, so that all maps together stay small.
    """
    config = model.config
    room = int((MOST_WEIGHTS / (config.n_layer * config.n_head)) ** 0.5)
    ids = tokenizer.encode(text, disallowed_special=())[: max(2, min(MOST_TOKENS, config.block_size, room))]
    if not len(ids):
        return None
    maps = np.round(255 * np.sqrt(attention_weights(model, ids))).astype(np.uint8)
    return {
        "step": step,
        "tokens": [tokenizer.decode([token]) for token in ids.tolist()],
        "shape": list(maps.shape),
        "maps": base64.b64encode(zlib.compress(maps.tobytes())).decode(),
    }


def decode_maps(attention: Mapping[str, Any]) -> np.ndarray:
    """The maps of `attention_facts`: uint8 (n_layer, n_head, T, T), 255 · √weight."""
    packed = zlib.decompress(base64.b64decode(attention["maps"]))
    return np.frombuffer(packed, np.uint8).reshape(attention["shape"])
