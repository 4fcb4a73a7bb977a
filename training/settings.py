"""Settings: what a run does, in five sections, from three places.

Every setting has a default here, can stand in a TOML file (`--config`), and can be given on the command line
as `--section.field VALUE`. The command line wins over the file, the file over the default. A run keeps its
settings in config.toml; `--resume` starts from those.

A TOML file is turned into the flags it stands for and put in front of the user's own, so that both go through
one parser, and a mistake in either is refused in the same words.
"""

import dataclasses
import json
import re
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data.files import read_bounded
from model.config import GPTConfig
from training import duration
from training.cli import checked_flags, parse
from training.errors import SettingsError, checked, suggestion
from training.tensorboard import require_writer

# The model that `python train.py` trains when told nothing: Llama style, small enough for minutes on two cores.
MODEL_DEFAULTS = {
    "n_layer": 4, "n_head": 4, "n_embd": 192, "block_size": 128,
    "position": "rope", "norm": "rmsnorm", "mlp": "swiglu",
}  # fmt: skip


def _model_section() -> type:
    """GPTConfig's fields as a section of settings, but for vocab_size: that follows from the tokenizer."""
    types = typing.get_type_hints(GPTConfig)
    helps = dict(re.findall(r"^    (\w+) +(\S.*)$", GPTConfig.__doc__ or "", re.MULTILINE))
    return dataclasses.make_dataclass(
        "ModelSettings",
        [
            (f.name, Annotated[types[f.name], tyro.conf.arg(help=helps.get(f.name))],
             field(default=MODEL_DEFAULTS.get(f.name, f.default)))
            for f in fields(GPTConfig) if f.name != "vocab_size"
        ],
        frozen=True,
        namespace={"__module__": __name__},
    )  # fmt: skip


ModelSettings: Any = _model_section()


@dataclass(frozen=True)
class TokenizerSettings:
    kind: Literal["bpe", "bytes"] = "bpe"
    """bpe: byte pair encoding, trained on the corpus | bytes: every byte a token."""
    vocab_size: int = 1024
    """Tokens of a bpe vocabulary: 256 bytes, merges, special tokens."""
    pattern: str = "gpt4"
    """How text is split before merging: gpt2, gpt4, gpt4o or a regular expression."""
    file: str = ""
    """Use this tokenizer.json instead of training one."""


@dataclass(frozen=True)
class DataSettings:
    source: Annotated[str, tyro.conf.arg(aliases=["--data"])] = "builtin"
    """builtin | a file | a folder | a glob | a .jsonl file."""
    val_fraction: float = 0.1
    """The share of the tokens, at the end, that is kept for validation."""
    errors: Literal["strict", "replace", "ignore"] = "strict"
    """Invalid UTF-8: refuse it | put U+FFFD in its place | leave it out."""
    text_field: str = "text"
    """The field of a .jsonl object that holds the text."""
    cache: str = ""
    """Folder for the file of tokens; empty: the run folder."""


@dataclass(frozen=True)
class OptimSettings:
    """AdamW and its schedule."""

    lr: float = 2e-3
    """The highest learning rate, reached after the warm-up."""
    min_lr: float = 2e-4
    """The learning rate at the end."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: along a cosine | stable, then falling | constant."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises."""
    decay_steps: int = 0
    """wsd: the last steps, in which the rate falls; 0: a fifth of all."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.99
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.1
    """Decoupled decay of weight matrices."""
    decay_embeddings: bool = False
    """Decay embedding tables, too (norms and biases never)."""
    clip: float = 1.0
    """The largest norm of the gradient; 0: no limit."""


@dataclass(frozen=True)
class TrainSettings:
    steps: int = 600
    """Updates of the weights."""
    batch_size: int = 16
    """Sequences B in a batch."""
    accumulation: int = 1
    """Batches whose gradients are averaged into one step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights stay float32."""
    seed: int = 1
    """Decides everything random: weights, batches, dropout, samples."""
    eval_interval: int = 200
    """Steps between checkpoints and evaluations; 0: only at the end."""
    eval_tokens: int = 262_144
    """Validation tokens scored at most, at even distances; 0: all."""
    sample_interval: int = 200
    """Steps between sample texts; 0: only at the end."""
    sample_tokens: int = 120
    """Length of a sample."""
    sample_prompt: str = "The "
    """What samples go on from."""
    sample_temperature: float = 0.8
    """Of the samples."""
    layer_interval: int = 20
    """Steps between records of gradients and updates by layer; 0: never."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints stay; the best one always does."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient that is not finite or spikes: stop | leave it out | go back, and leave it out."""
    spike_sigma: float = 0.0
    """A loss or gradient norm this many deviations above the mean of the last 128 steps is a spike; 0: none is."""
    max_bad_steps: int = 5
    """How many bad steps are left out before one beyond them succeeds; with one more the run stops."""
    threads: int = 0
    """Threads of the kernels; 0: all. The result is the same for any number."""


Uniform = tyro.conf.FlagConversionOff  # every setting takes a value, true and false included


@dataclass(frozen=True)
class Settings:
    """Train a GPT on text. Files in configs/ hold ready-made settings."""

    config: str = ""
    """Read settings from this TOML file."""
    out: str = ""
    """The run folder; empty: runs/default, or the next free name after it."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in --out, from its last checkpoint."""
    time_limit: str = ""
    """Stop and save after this time, as in 90s, 30min or 1h30m; empty: no limit."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write event files for TensorBoard into the run folder, too."""
    plan: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train nothing: measure this machine, and say what the run would take."""
    fit: str = ""
    """Train nothing: propose a model for this time, such as 30min or 1h30m, as a TOML file."""
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The settings that were given a value, by the command line or a file."""
    model: Annotated[ModelSettings, Uniform] = field(default_factory=ModelSettings)
    tokenizer: Annotated[TokenizerSettings, Uniform] = field(default_factory=TokenizerSettings)
    data: Annotated[DataSettings, Uniform] = field(default_factory=DataSettings)
    optim: Annotated[OptimSettings, Uniform] = field(default_factory=OptimSettings)
    train: Annotated[TrainSettings, Uniform] = field(default_factory=TrainSettings)

    def gpt_config(self, vocab_size: int = 256) -> GPTConfig:
        """The model's shape over a vocabulary. Raises ValueError where it makes none."""
        return GPTConfig(vocab_size=vocab_size, **dataclasses.asdict(self.model))

    def sections(self) -> dict[str, dict[str, Any]]:
        """The five sections as plain values: what config.toml holds."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}

    def to_toml(self) -> str:
        """The text of config.toml. TOML has no null: settings that are None are left out."""
        return "\n".join(
            f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in values.items() if v is not None)
            for name, values in self.sections().items()
        )


SECTIONS: dict[str, type] = {
    "model": ModelSettings, "tokenizer": TokenizerSettings, "data": DataSettings,
    "optim": OptimSettings, "train": TrainSettings,
}  # fmt: skip
MAX_TOML_BYTES = 1 << 16
# tomllib takes memory with the square of a key's length: 60 kB of "a.a.a." become 3.6 GB. Ours have two parts.
_LONG_KEY = re.compile(r"""(?:\.\s*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')\s*){16}""")
_KEYS = {f"{section}.{f.name}": f for section, kind in SECTIONS.items() for f in fields(kind)}
_BOOLEANS = {key for key, f in _KEYS.items() if isinstance(f.default, bool)}


def toml_value(value: Any) -> str:
    """A value as TOML spells it."""
    # A JSON string without \u escapes is a TOML string; floats and integers are spelled alike.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


def parse_settings(argv: Sequence[str]) -> Settings:
    """The settings that a command line asks for.

    `--help` prints the settings and exits. Raises SettingsError, in one line, for unknown names (with a
    suggestion), values that don't fit, and combinations that make no sense.
    """
    alone = {"config", "out", "resume", "data", "time_limit", "tensorboard", "plan", "fit"}
    flags = checked_flags(argv, {*_KEYS, *alone}, _BOOLEANS)
    first = parse(Settings, flags, "train.py")  # for --config, --out and --resume
    files = [run_to_resume(first.out) / "config.toml"] if first.resume else []
    files += [Path(first.config)] if first.config else []
    behind = [flag for file in files for flag in _flags_of_toml(file)]
    settings = parse(Settings, behind + flags, "train.py") if behind else first
    _check(settings)
    names = {word[2:].partition("=")[0].replace("-", "_") for word in behind + flags if word.startswith("--")}
    if "data" in names:
        names.add("data.source")
    return dataclasses.replace(settings, given=tuple(key for key in _KEYS if key in names))


def run_to_resume(out: str) -> Path:
    """The folder that `--resume` means: --out, or the newest of runs/default…  Raises SettingsError."""
    folder = Path(out) if out else newest_run(Path("runs"), "default*")
    if folder is None or not (folder / "config.toml").is_file():
        where = f"{folder} holds no run (no config.toml)" if folder else "there is no run in runs/"
        raise SettingsError(f"nothing to resume: {where}; name the folder of a run with --out")
    return folder


def newest_run(parent: Path, pattern: str = "*") -> Path | None:
    """The run folder under `parent` in which something was written last."""
    runs = [path.parent for path in parent.glob(f"{pattern}/config.toml")]
    return max(runs, key=lambda run: run.stat().st_mtime, default=None)


def _flags_of_toml(path: Path) -> list[str]:
    """A TOML file as the flags it stands for. Raises SettingsError that names the file and the key."""
    try:
        text = read_bounded(path, MAX_TOML_BYTES).decode("utf-8")
        if _LONG_KEY.search(text):
            raise ValueError("it holds a key of more than 16 parts")
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not TOML: it is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    except RecursionError:
        raise SettingsError(f"{path} is not TOML of settings: it is nested too deeply") from None
    except OSError as error:
        raise SettingsError(f"can't read --config {path}: {error.strerror}") from error
    flags: list[str] = []
    for section, values in content.items():
        if section not in SECTIONS or not isinstance(values, dict):
            hint = suggestion(section, SECTIONS) or f"; there are {', '.join(SECTIONS)}"
            raise SettingsError(f"{path}: [{section}] is no section of settings{hint}")
        for name, value in values.items():
            key = f"{section}.{name}"
            if key not in _KEYS:
                raise SettingsError(f"{path}: there is no setting {key}{suggestion(key, _KEYS)}")
            if not isinstance(value, str | bool | int | float):
                raise SettingsError(f"{path}: {key} must be a single value, got {value}")
            flags.append(f"--{key}={value}")
    return checked_flags(flags, _KEYS, _BOOLEANS)


def _check(settings: Settings) -> None:
    """What types can't say. Raises SettingsError for the first setting that makes no sense."""

    def require(key: str, holds: bool, what: str) -> None:
        section, name = key.split(".")
        if not holds:
            raise SettingsError(f"--{key} must be {what}, got {getattr(getattr(settings, section), name)}")

    if settings.tensorboard:
        require_writer()
    data, optim, train = settings.data, settings.optim, settings.train
    with checked():
        settings.gpt_config()
    require("data.source", bool(data.source), 'a path or "builtin"')
    require("data.val_fraction", 0 < data.val_fraction < 1, "between 0 and 1")
    require("optim.lr", 0 < optim.lr < float("inf"), "above 0")
    require("optim.min_lr", 0 <= optim.min_lr <= optim.lr, f"between 0 and --optim.lr ({optim.lr})")
    require("optim.eps", optim.eps > 0, "above 0")
    for name in ("beta1", "beta2"):
        require(f"optim.{name}", 0 <= getattr(optim, name) < 1, "at least 0 and below 1")
    for name in ("warmup_steps", "decay_steps", "weight_decay", "clip"):
        require(f"optim.{name}", getattr(optim, name) >= 0, "at least 0")
    for name in ("time_limit", "fit"):
        if time := getattr(settings, name):
            try:
                duration.seconds(time)
            except SettingsError as error:
                raise SettingsError(f"--{name.replace('_', '-')}: {error}") from None
    for name in ("steps", "batch_size", "accumulation", "keep_checkpoints", "max_bad_steps"):
        require(f"train.{name}", getattr(train, name) >= 1, "at least 1")
    for name in (
        "seed", "eval_interval", "eval_tokens", "sample_interval", "sample_tokens", "layer_interval", "threads",
        "spike_sigma",
    ):  # fmt: skip
        require(f"train.{name}", getattr(train, name) >= 0, "at least 0")
    require("train.seed", train.seed < 2**63, "below 2**63")
    require("train.sample_temperature", train.sample_temperature >= 0, "at least 0")
