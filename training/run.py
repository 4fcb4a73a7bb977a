"""A run and its folder: what `train.py` leaves behind, and `--resume` and `generate.py` pick up.

    DIR/config.toml        the settings
        tokenizer.json     Hugging Face's format
        tokens/            the corpus as tokens, with its manifest
        checkpoints/       see checkpoint.py
        metrics.jsonl      losses and rates; samples.jsonl: texts; see metrics.py
        bad-steps/         what there is to know about steps whose numbers went wrong; see recovery.py
        report.html        the run on a page, and loss.png; report.json: what it shows beyond the logs
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from data import Corpus
from data.files import flush_folder, held, remove_leftovers, write_whole
from model import GPT, GPTConfig
from nn.optim import Optimizer
from tokenizer import Tokenizer
from training.checkpoint import Checkpoint, Checkpoints, changes
from training.errors import CheckpointError, SettingsError, UserError, checked
from training.settings import Settings, TokenizerSettings, parse_settings, run_to_resume

MAX_TOKENIZER_BYTES = 1 << 26  # a vocabulary of 250,000 takes half of it
# What --resume must leave alone: with another of these it would not be the same run.
FIXED = ("model", "tokenizer", "data.source", "data.val_fraction", "data.errors", "data.text_field")


@dataclass(frozen=True)
class Run:
    """The folder of a run, and the paths in it."""

    folder: Path
    checkpoints: Checkpoints
    resumed: bool

    @classmethod
    @contextlib.contextmanager
    def open(cls, settings: Settings, note: Callable[[str], None] = print) -> Iterator["Run"]:
        """Make the folder of a new run, or open that of an old one with `--resume`, and note the settings in it.

        Inside this context no other process can open it. Raises UserError if one has, the folder holds a run already,
        can't be written, or the settings are of another run.
        """
        if settings.resume:
            folder = run_to_resume(settings.out)
            before = parse_settings(["--config", str(folder / "config.toml")])
            for change in changes(before.sections(), settings.sections()):
                if change.startswith(FIXED):
                    raise SettingsError(
                        f"--resume goes on with the run in {folder}, where {change}; leave that setting out, "
                        f"or start a new run with another --out"
                    )
                note(f"resuming with a changed setting: {change}")
            candidates: Iterable[Path] = [folder]
        else:
            candidates = [Path(settings.out)] if settings.out else _free_folders(Path("runs"), "default")
        with contextlib.ExitStack() as stack:
            folder = _hold_first(stack, candidates)
            if not settings.resume and _holds_run(folder):
                raise SettingsError(
                    f"{folder} holds a run already; go on with it by --resume, or choose another folder with --out"
                )
            checkpoints = Checkpoints(folder / "checkpoints", settings.train.keep_checkpoints, layout)
            try:
                checkpoints.folder.mkdir(exist_ok=True)
                for each in (folder, checkpoints.folder, folder / "tokens", folder / "bad-steps"):
                    remove_leftovers(each)
                write_whole(folder / "config.toml", settings.to_toml())
                flush_folder(folder.parent)
            except OSError as error:
                raise _unwritable(folder, error) from error
            yield cls(folder, checkpoints, settings.resume)

    @property
    def metrics_file(self) -> Path:
        """Losses and rates, a JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        """Texts written while training, a JSON object a line."""
        return self.folder / "samples.jsonl"

    def token_folder(self, cache: str) -> Path:
        """Where the file of tokens is kept: in the run, or where the settings say."""
        return Path(cache) if cache else self.folder / "tokens"

    def tokenizer(self, settings: TokenizerSettings, corpus: Corpus) -> Tokenizer:
        """The tokenizer of the run: read from the folder if it is there, else made and put there.

        Raises UserError where the settings make none.
        """
        path = self.folder / "tokenizer.json"
        with checked():
            if path.exists() and self.resumed:
                return load_tokenizer(path)
            if settings.file:
                tokenizer = Tokenizer.load(settings.file)
            elif settings.kind == "bytes":
                tokenizer = Tokenizer.bytes()
            else:
                texts = (piece.text for piece in corpus.pieces())
                tokenizer = Tokenizer.train(texts, settings.vocab_size, settings.pattern)
            write_whole(path, json.dumps(tokenizer.to_huggingface(), ensure_ascii=False, indent=1) + "\n")
        return tokenizer


def _holds_run(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    return (metrics.is_file() and metrics.stat().st_size > 0) or bool(Checkpoints(folder / "checkpoints").steps())


def _free_folders(parent: Path, name: str) -> Iterator[Path]:
    """Those of `parent/name`, `name-2`, `name-3`, … that hold no run."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return (parent / each for each in names if not _holds_run(parent / each))


def _hold_first(stack: contextlib.ExitStack, candidates: Iterable[Path]) -> Path:
    """Make and hold the first folder that no other process holds, until the stack is closed."""
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder))
            return folder
        except BlockingIOError:
            taken = folder
        except OSError as error:
            raise _unwritable(folder, error) from error
    raise UserError(
        f"another process is training in {taken}; wait until it ends (or stop it: it saves), or choose another folder "
        f"with --out"
    )


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"can't write to the run folder {folder}: {error.strerror}; choose another with --out")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file of reasonable size. Raises FormatError, a ValueError, for anything else; and OSError."""
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_TOKENIZER_BYTES:,}")
    return Tokenizer.load(path)


# What goes into a checkpoint, and back


def optimizer_arrays(model: GPT, optimizer: Optimizer) -> dict[str, np.ndarray]:
    """The optimizer's memory as flat arrays, by the names of the parameters: `norm.weight:exp_avg`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}:{key}": np.asarray(value)
        for parameter, memory in optimizer.state.items()
        for key, value in memory.items()
    }


def layout(state: Mapping[str, Any]) -> dict[str, Iterator[tuple[str, str, tuple[int, ...]]]]:
    """The arrays that a checkpoint with this state must hold: (name, dtype, shape), one by one, for each file."""
    shapes = GPTConfig.from_dict(state["model"]).parameter_shapes

    def moments() -> Iterator[tuple[str, str, tuple[int, ...]]]:
        for name, shape in shapes():
            yield f"{name}:step", "I64", ()
            yield f"{name}:exp_avg", "F32", shape
            yield f"{name}:exp_avg_sq", "F32", shape

    return {
        "model.safetensors": ((name, "F32", shape) for name, shape in shapes()),
        "optimizer.safetensors": moments(),
    }


def restore(checkpoint: Checkpoint, model: GPT, optimizer: Optimizer, belongs_to: dict[str, Any]) -> None:
    """Put a checkpoint's arrays into a model and its optimizer.

    belongs_to   hashes of corpus and tokenizer and the model's shape, as they were put into the state

    Raises CheckpointError if the checkpoint is of another corpus, tokenizer or shape.
    """
    before = {name: checkpoint.state.get(name) for name in belongs_to}
    for change in changes(before, belongs_to):
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} belongs to another run: {change}; "
            f"bring back what has changed, or start a new run with another --out"
        )
    try:
        model.load_state_dict(checkpoint.model())
        memory: dict[str, dict[str, Any]] = {}
        for name, array in checkpoint.optimizer().items():
            parameter, _, key = name.rpartition(":")
            memory.setdefault(parameter, {})[key] = array if array.ndim else array.item()
        numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
        state = {numbers[id(p)]: memory[name] for name, p in model.named_parameters() if name in memory}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint of step {checkpoint.step} does not fit: {error}") from error


def load_for_generation(folder: Path, which: str = "best") -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a run: its "best" checkpoint, its "last", or that of a step.

    Raises UserError where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}; train one with train.py --out {folder}")
    checkpoints = Checkpoints(folder / "checkpoints", layout=layout)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{folder} holds no checkpoint; train.py leaves one there (see --train.eval_interval)")
    step = {"best": checkpoints.best_step() or steps[-1], "last": steps[-1]}.get(which)
    if step is None:
        step = int(which) if which.isdecimal() else -1
    if step not in steps:
        raise UserError(
            f"--checkpoint must be best, last or one of {', '.join(map(str, steps))}, got {which}"
        )
    checkpoint = checkpoints.load(step)
    with checked():
        config = GPTConfig.from_dict(checkpoint.state["model"])
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.hash() != checkpoint.state["tokenizer"]:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} is not the tokenizer that this model was trained with; bring that one back"
        )
    model = GPT(config)
    try:
        model.load_state_dict(checkpoint.model())
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint of step {step} does not fit: {error}") from error
    return model.eval(), tokenizer


def token_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text behind each id, (V,) int64: special tokens stand for none, nor do gaps in the vocabulary."""
    special = set(tokenizer.special_tokens.values())
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    for token in range(tokenizer.vocab_size):
        if token not in special:
            with contextlib.suppress(ValueError):
                lengths[token] = len(tokenizer.token_bytes(token))
    return lengths


def describe(
    model: GPT, tokenizer: Tokenizer, manifest: dict[str, Any], n_train: int, n_val: int
) -> dict[str, str]:
    """The figures of a run that stand above its report."""
    return {
        "Parameters": f"{model.config.num_parameters():,}",
        "Vocabulary": f"{tokenizer.vocab_size:,} ({tokenizer.kind})",
        "Corpus": f"{manifest['bytes']:,} bytes in {manifest['documents']:,} documents",
        "Tokens": f"{n_train:,} for training, {n_val:,} for validation",
    }
