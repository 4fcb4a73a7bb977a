"""What happens inside the loop of train.py: an update, an evaluation, a sample.

Each is a function of the model and of (seed, step) alone. Dropout's random numbers are seeded anew for every
micro-step and a sample has a seed of its own, so evaluating or sampling more or less often changes no bit of
the training, and a resumed run needs no random state.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import autograd as ag
from data import random_words, training_batch, validation_batches
from model import GPT
from nn import schedule
from nn.optim import AdamW, clip_scale, grad_norm
from tokenizer import Tokenizer
from training.errors import checked
from training.settings import OptimSettings, TrainSettings
from training.signals import StopRequest

# Streams of random words; batches draw from stream 0.
DROPOUT, SAMPLE = 1, 2
LARGEST_NORM = 1e18  # beyond it the optimizer's squares may leave float32
EVALUATION_BATCH_TOKENS = 4096  # a size of its own, so that the loss does not depend on the training batch


@dataclass(frozen=True)
class Update:
    """What an update measured: loss (nats per token) and gradient norm, both from before it."""

    loss: float
    grad_norm: float


class BadStep(Exception):
    """Gradients that must not be used: why, the losses of the step's batches, and the norm."""

    def __init__(self, reason: str, losses: list[float], grad_norm: float) -> None:
        super().__init__(reason)
        self.reason, self.losses, self.grad_norm = reason, losses, grad_norm

    @property
    def loss(self) -> float:
        """The mean over the batches."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Evaluation:
    """The mean loss in nats per token, in bits per byte of text, and over how many tokens."""

    loss: float
    bits_per_byte: float
    tokens: int


def make_optimizer(model: GPT, settings: OptimSettings) -> AdamW:
    """AdamW over a model; norms and biases never decay, embeddings if the settings say so."""
    decayed: list[ag.Tensor] = []
    others: list[ag.Tensor] = []
    for parameter in model.parameters():
        is_table = parameter.array.ndim >= 2 and settings.decay_embeddings
        (decayed if parameter.decay or is_table else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps,
    )  # fmt: skip


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Kernels run on `n` threads (0: all) while inside. Raises SettingsError for more than there can be."""
    before = ag.num_threads()
    with checked():
        ag.set_num_threads(n or before)
    try:
        yield
    finally:
        ag.set_num_threads(before)


def learning_rate(step: int, settings: OptimSettings, steps: int) -> float:
    """The rate for the update from `step` to `step + 1`."""
    warmup_steps = min(settings.warmup_steps, steps - 1)
    if settings.schedule == "constant":
        return schedule.constant(step, max_lr=settings.lr, warmup_steps=warmup_steps)
    if settings.schedule == "wsd":
        return schedule.warmup_stable_decay(
            step, max_lr=settings.lr, min_lr=settings.min_lr, total_steps=steps, warmup_steps=warmup_steps,
            decay_steps=settings.decay_steps or steps // 5,
        )  # fmt: skip
    return schedule.warmup_cosine(
        step, max_lr=settings.lr, min_lr=settings.min_lr, total_steps=steps, warmup_steps=warmup_steps
    )


def not_finite(loss: float, grad_norm: float) -> str | None:
    """What is wrong with a step's numbers, in words; None if nothing is."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if grad_norm > LARGEST_NORM or not math.isfinite(grad_norm):
        return f"the norm of the gradient is {grad_norm}"
    return None


def update(
    model: GPT, optimizer: AdamW, ids: np.ndarray, draw: int, lr: float, clip: float, settings: TrainSettings,
    complaint: Callable[[float, float], str | None] = not_finite,
) -> Update:  # fmt: skip
    """One step of training: gradients over `accumulation` batches, clipped, and the optimizer's move.

    draw        decides the batches and dropout: the number of the step, where none was left out before
    complaint   says what is wrong with (loss, gradient norm), if anything is

    Raises BadStep, before anything is changed, if there is a complaint.
    """
    model.train()
    optimizer.zero_grad()
    losses = []
    for micro_step in range(settings.accumulation):
        loss = batch_loss(model, ids, draw, micro_step, settings)
        losses.append(loss.item())
        (loss / settings.accumulation).backward()
    mean_loss = sum(losses) / len(losses)
    norm = grad_norm(optimizer.parameters())
    if reason := complaint(mean_loss, norm):
        raise BadStep(reason, losses, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step(grad_scale=clip_scale(norm, clip) if clip else 1.0)
    return Update(mean_loss, norm)


def batch(
    ids: np.ndarray, block_size: int, draw: int, micro_step: int, settings: TrainSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (B, T) of a draw."""
    return training_batch(
        ids, block_size=block_size, batch_size=settings.batch_size, seed=settings.seed, step=draw, micro_step=micro_step
    )


def batch_loss(model: GPT, ids: np.ndarray, draw: int, micro_step: int, settings: TrainSettings) -> ag.Tensor:
    """The loss (0-d) of a draw: a function of the weights, the draw and the seed."""
    inputs, targets = batch(ids, model.config.block_size, draw, micro_step, settings)
    (word,) = random_words(1, seed=settings.seed, step=draw, micro_step=micro_step, stream=DROPOUT)
    ag.manual_seed(int(word >> 1))
    _, loss = model(inputs, targets)  # 0-d
    return loss


def evaluate(
    model: GPT, ids: np.ndarray, lengths: np.ndarray, max_tokens: int, stop: StopRequest | None = None
) -> Evaluation | None:
    """The loss over the validation split, each token once; None if a stop was requested meanwhile.

    lengths      bytes of text behind each id, (V,)
    max_tokens   score no more than these, at even distances; 0: all
    """
    model.eval()
    nats, n_tokens, n_bytes = 0.0, 0, 0
    block_size = model.config.block_size
    batch_size = max(1, EVALUATION_BATCH_TOKENS // block_size)
    with ag.no_grad():
        for inputs, targets in validation_batches(
            ids, block_size=block_size, batch_size=batch_size, max_tokens=max_tokens or None
        ):
            if stop:
                return None
            _, loss = model(inputs, targets)
            nats += loss.item() * targets.size
            n_tokens += targets.size
            n_bytes += int(lengths[targets].sum())
    return Evaluation(nats / n_tokens, nats / math.log(2) / max(1, n_bytes), n_tokens)


def write_sample(model: GPT, tokenizer: Tokenizer, step: int, settings: TrainSettings) -> str:
    """Text that goes on from the sample prompt, the prompt included; the same for the same weights and step."""
    model.eval()
    prompt = prompt_ids(tokenizer, settings.sample_prompt)
    (word,) = random_words(1, seed=settings.seed, step=step, stream=SAMPLE)
    ids = model.generate(
        prompt, settings.sample_tokens, temperature=settings.sample_temperature,
        seed=int(word), stop_id=tokenizer.eot_id,
    )  # fmt: skip
    return settings.sample_prompt + tokenizer.decode(_without_stop(ids[len(prompt) :], tokenizer.eot_id))


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The ids of a prompt, special tokens in it read as such; an empty one starts a document (`<|endoftext|>`)."""
    if not prompt and tokenizer.eot_id is not None:
        return np.array([tokenizer.eot_id])
    return tokenizer.encode(prompt, allowed_special="all").astype(np.int64)


def _without_stop(ids: np.ndarray, stop_id: int | None) -> np.ndarray:
    return ids[:-1] if len(ids) and ids[-1] == stop_id else ids
