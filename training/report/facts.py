"""report.json: what a page shows that no log holds.

    model             the configuration's fields
    summary           figures of model, tokenizer and corpus, by name, as text
    flops_per_token   operations to train on a token;  peak_flops: operations a second that this machine reaches
    baselines         see baselines.py
    attention         step, tokens (text), shape (n_layer, n_head, T, T), maps: uint8 of 255 · √weight, packed

All of it can be made again from a run's other files.
"""

import base64
import contextlib
import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data import split
from data.files import read_json, write_whole
from model import GPT
from model.cost import flops_per_token
from model.inspection import attention_weights
from tokenizer import Tokenizer
from training.errors import UserError
from training.report.baselines import measure_baselines
from training.report.record import Record
from training.run import describe, load_for_generation, token_lengths

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


def with_facts(record: Record) -> Record:
    """A record whose missing facts are made again from the run's last checkpoint and its tokens, and kept.

    What can't be (there is no checkpoint, or no tokens) stays missing; so does the machine's peak, which was that of
    the machine that trained.
    """
    facts, folder, settings = dict(record.facts), record.folder, record.settings
    if {"model", "baselines", "attention"} <= facts.keys():
        return record
    try:
        model, tokenizer = load_for_generation(folder, "last")
    except UserError:
        return record
    facts |= {"model": model.config.to_dict(), "flops_per_token": flops_per_token(model.config)}
    if "attention" not in facts and record.samples:
        facts["attention"] = attention_facts(model, tokenizer, **record.samples[-1])
    with contextlib.suppress(OSError, ValueError, KeyError):
        place = Path(settings.data.cache) if settings.data.cache else folder / "tokens"
        manifest = read_json(place / "manifest.json")
        ids = np.memmap(place / "tokens.bin", manifest["dtype"], mode="r", shape=(manifest["tokens"],))
        train_ids, val_ids = split(np.asarray(ids), settings.data.val_fraction)
        facts["summary"] = describe(model, tokenizer, manifest, len(train_ids), len(val_ids))
        facts["baselines"] = measure_baselines(
            tokenizer, token_lengths(tokenizer), train_ids, val_ids, model.config.block_size, settings.train.eval_tokens
        )
    with contextlib.suppress(OSError):
        write_whole(folder / "report.json", json.dumps(facts))
    return dataclasses.replace(record, facts=facts)
