"""`train.py --plan`: what a run will take of this machine, and what its data is worth, before it begins.

Parameters, FLOPs and memory are counted from the configuration (`model/cost.py`). Speed is measured: a few steps of
the very model, on random tokens, by the functions that train. A model too large for that is cut down first, to fewer
sequences and then to fewer blocks, at two depths, since each block adds the same time; what would not even fit so is
taken at the machine's peak, and called a bound.

How much data a model wants is the rule of Hoffmann et al. 2022 ("Chinchilla", arXiv:2203.15556): with a given amount
of computation the lowest loss comes at about 20 tokens a parameter. Tokens read again are nearly as good as new ones up
to about 4 times (Muennighoff et al. 2023, arXiv:2305.16264).

Nothing is trained and nothing written. The kernels are compiled if they never were.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from autograd import matmul_precision
from autograd.kernels import jit
from data import Corpus, CorpusError
from model import GPT, GPTConfig
from model.cost import Memory, flops_per_token, memory, parameters
from nn.optim import grad_norm
from tokenizer import Tokenizer
from training.duration import spoken
from training.errors import checked
from training.loop import EVALUATION_BATCH_TOKENS, evaluate, make_optimizer, threads, update
from training.machine import available_memory, peak_flops, read_bandwidth, resident_memory
from training.report.baselines import BYTES_PER_TRAINING_BYTE, MOST_TRAINING_BYTES
from training.settings import Settings, TokenizerSettings, TrainSettings

TOKENS_PER_PARAMETER = 20
GOOD_EPOCHS = 4
SAMPLE_BYTES = 4 << 20  # of a large corpus that are read
LONGEST_BATCH_SECONDS = 5.0  # forward and backward, that a plan waits for
SLOW_BATCH_SECONDS = 1.0  # from which on as little as possible is repeated
USUAL_UTILISATION = 0.35  # of the peak; a guess, only to see whether a step would take too long
START_SECONDS = 3.0  # to import the libraries, load the kernels, and draw the report at the end
REPORT_BYTES = 45 << 20  # the libraries that draw the report, and a page while it is made
SPARE = 0.9  # the share of available memory that a measurement may take


@dataclass(frozen=True)
class Text:
    """A corpus as a run will see it.

    exact                all of it was read; else figures are scaled from its first megabytes
    preparation_seconds  to make the tokenizer and turn the text into tokens
    """

    vocab_size: int
    train_tokens: int
    val_tokens: int
    total_bytes: int
    exact: bool
    preparation_seconds: float


@dataclass(frozen=True)
class Speed:
    """What a model takes, in seconds.

    micro        forward and backward of one batch
    move         the gradient's norm and the optimizer's step
    evaluation   a token scored
    sample       a token written
    how          where the figures come from
    """

    micro: float
    move: float
    evaluation: float
    sample: float
    how: str

    def step(self, accumulation: int) -> float:
        """An update of the weights."""
        return accumulation * self.micro + self.move


@dataclass(frozen=True)
class Plan:
    """All that is said of a run. `free` and `program`: bytes of memory available, and taken by this program."""

    settings: Settings
    config: GPTConfig
    text: Text
    memory: Memory
    free: int
    program: int
    speed: Speed
    peak: float

    @property
    def report(self) -> int:
        """Bytes that the report takes beside what training leaves free between two steps."""
        return report_memory(self.settings, self.text, self.memory)

    @property
    def needed(self) -> int:
        """The most bytes of memory that are taken at once, besides the program."""
        return self.memory.peak + self.report

    @property
    def fits(self) -> bool:
        """Whether there is memory for it."""
        return self.needed <= self.free

    @property
    def tokens_per_step(self) -> int:
        train = self.settings.train
        return train.batch_size * train.accumulation * self.config.block_size

    @property
    def tokens(self) -> int:
        """That are read while training."""
        return self.settings.train.steps * self.tokens_per_step

    @property
    def epochs(self) -> float:
        return self.tokens / self.text.train_tokens

    @property
    def step_seconds(self) -> float:
        return self.speed.step(self.settings.train.accumulation)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.step_seconds

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation: the work that the model needs, as a share of what the machine could do."""
        return flops_per_token(self.config) * self.tokens_per_second / self.peak

    @property
    def evaluations(self) -> tuple[int, float]:
        """How many, and the seconds they take."""
        train = self.settings.train
        times = times_due(train.steps, train.eval_interval)
        tokens = min(train.eval_tokens or self.text.val_tokens, self.text.val_tokens)
        return times, times * tokens * self.speed.evaluation

    @property
    def samples(self) -> tuple[int, float]:
        """How many, and the seconds they take."""
        train = self.settings.train
        times = times_due(train.steps, train.sample_interval)
        return times, times * train.sample_tokens * self.speed.sample

    @property
    def seconds(self) -> float:
        """The whole run, from the command to the report."""
        steps = self.settings.train.steps * self.step_seconds
        return START_SECONDS + self.text.preparation_seconds + steps + self.evaluations[1] + self.samples[1]


def training_memory(config: GPTConfig, train: TrainSettings) -> Memory:
    """The arrays of a training step with these settings."""
    return memory(config, train.batch_size, train.accumulation, narrow=train.precision == "bfloat16")


def report_memory(settings: Settings, text: Text, training: Memory) -> int:
    """Bytes for libraries and pages, and for counting n-grams as far as activations, gone by then, leave no room."""
    train_bytes = min(MOST_TRAINING_BYTES, int(text.total_bytes * (1 - settings.data.val_fraction)))
    return REPORT_BYTES + max(0, BYTES_PER_TRAINING_BYTE * train_bytes - training.activations)


def times_due(steps: int, interval: int) -> int:
    """How often something happens that is due every `interval` steps (0: never) and after the last."""
    return -(-steps // interval) if interval else 1


def print_plan(settings: Settings) -> None:
    """Measure, and print the table. Raises UserError for a corpus or settings that make no run."""
    with progress() as say:
        plan = make_plan(settings, say)
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        console.print(table(plan), *remarks(plan), sep="\n")
    else:  # a file or a program reads it: no colours, lines as long as they are
        with (console := Console(highlight=False, markup=False, width=200)).capture() as capture:
            console.print(table(plan))
        lines = [*(line.rstrip() for line in capture.get().splitlines()), *remarks(plan)]
        print("\n".join(lines))


def make_plan(settings: Settings, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Read (some of) the corpus and measure the model that the settings ask for."""
    say("reading the corpus")
    text = look_at(settings)
    with checked():
        config = settings.gpt_config(text.vocab_size)
    with on_this_machine(settings):
        say("measuring the machine")
        program, free = resident_memory(), available_memory()
        peak = peak_flops(settings.train.precision)
        say("running a few steps of the model on random tokens")
        speed = measure(config, settings, free)
    needed = training_memory(config, settings.train)
    return Plan(settings, config, text, needed, free, program, speed, peak)


@contextlib.contextmanager
def on_this_machine(settings: Settings) -> Iterator[None]:
    """Compute as the run will: its precision and its threads."""
    with matmul_precision(settings.train.precision), threads(settings.train.threads):
        yield


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Say on stderr what is going on, and which kernels are being compiled meanwhile; stdout is for the result."""
    console = Console(stderr=True, highlight=False)
    printed = -math.inf

    def compiled(name: str, count: int, seconds: float) -> None:
        nonlocal printed
        text = f"compiling kernels for this processor, once ({count} so far, {seconds:.1f} s)"
        if console.is_terminal:
            status.update(text)
        elif time.perf_counter() - printed > 5:
            printed = time.perf_counter()
            console.print(text)

    with console.status("") as status, jit.compilations(compiled):
        yield status.update if console.is_terminal else console.print


# -- the corpus ----------------------------------------------------------------------------------------------------


def look_at(settings: Settings) -> Text:
    """How many tokens the corpus makes: counted where it is small, scaled from its beginning where not."""
    data = settings.data
    corpus = Corpus(data.source, data.errors, data.text_field)
    began = time.perf_counter()
    with jit.compilations() as compiled, checked():
        texts: list[str] = []
        sample_bytes, documents, exact = 0, 0, False
        for text, ends_document in corpus.pieces():
            if sample_bytes >= SAMPLE_BYTES:
                break
            texts.append(text)
            sample_bytes += len(text.encode())
            documents += ends_document
        else:
            exact = True
        if not sample_bytes:
            raise CorpusError(f"the corpus {corpus.source} is empty; give --data some text")
        tokenizer = _tokenizer(settings.tokenizer, texts)
        tokens = sum(len(tokenizer.encode(text, disallowed_special=())) for text in texts)
    tokens += max(0, documents - 1) if tokenizer.eot_id is not None else 0
    seconds = time.perf_counter() - began - compiled.seconds
    total_bytes = sample_bytes if exact else max(sample_bytes, sum(path.stat().st_size for path in corpus.paths()))
    scale = total_bytes / sample_bytes
    train_tokens = int(tokens * scale * (1 - data.val_fraction))
    val_tokens = int(tokens * scale) - train_tokens
    return Text(tokenizer.vocab_size, train_tokens, val_tokens, total_bytes, exact, seconds * scale)


def _tokenizer(settings: TokenizerSettings, texts: list[str]) -> Tokenizer:
    if settings.file:
        return Tokenizer.load(Path(settings.file))
    if settings.kind == "bytes":
        return Tokenizer.bytes()
    return Tokenizer.train(texts, settings.vocab_size, settings.pattern)


# -- speed ---------------------------------------------------------------------------------------------------------


def measure(config: GPTConfig, settings: Settings, free: int, budget_seconds: float = 4.0) -> Speed:
    """Time the model, or the largest part of it that memory and patience allow.

    free             bytes of memory that may be taken
    budget_seconds   about how long steps are repeated; a large model takes longer
    """
    train = settings.train

    def is_possible(layers: int, batch_size: int) -> bool:
        part = dataclasses.replace(config, n_layer=layers)
        return (
            expected_seconds(part, batch_size, train.precision) <= LONGEST_BATCH_SECONDS
            and memory(part, batch_size, min(2, train.accumulation)).peak <= SPARE * free
        )

    few = max(1, min(train.batch_size, 1024 // config.block_size))  # sequences enough to keep the machine busy
    depths = [config.n_layer, *(layers for layers in (16, 8, 4, 2) if layers < config.n_layer)]
    for batch_size, layers in [(train.batch_size, config.n_layer), *((few, layers) for layers in depths)]:
        if is_possible(layers, batch_size):
            break
    else:
        seconds = USUAL_UTILISATION * expected_seconds(config, train.batch_size, train.precision)
        token = 4 * config.num_parameters() / read_bandwidth()
        return Speed(seconds, 0, seconds / train.batch_size / config.block_size / 3, token, "at best: from its FLOPs")

    at = measure_part(config, settings, layers, batch_size, budget_seconds)
    how = f"measured over {at.how} of this model"
    if layers < config.n_layer:
        shallower = measure_part(config, settings, layers // 2, batch_size, budget_seconds)
        blocks_more = (config.n_layer - layers) / (layers - layers // 2)
        figures = {
            name: getattr(at, name) + blocks_more * (getattr(at, name) - getattr(shallower, name))
            for name in ("micro", "move", "evaluation", "sample")
        }
        at = dataclasses.replace(at, **{name: max(seconds, 0.0) for name, seconds in figures.items()})
        how = f"from steps of {layers} and {layers // 2} of its {config.n_layer} blocks"
    if batch_size < train.batch_size:
        at = dataclasses.replace(at, micro=at.micro * train.batch_size / batch_size)
        how += f", {batch_size} sequence{'s' * (batch_size > 1)} at a time"
    return dataclasses.replace(at, how=how)


def expected_seconds(config: GPTConfig, batch_size: int, precision: str) -> float:
    """A guess at forward and backward of one batch."""
    work = flops_per_token(config) * batch_size * config.block_size
    return work / (USUAL_UTILISATION * peak_flops(precision))


def measure_part(config: GPTConfig, settings: Settings, layers: int, batch_size: int, budget_seconds: float) -> Speed:
    """Build a model with so many blocks and time what a run does with it, by the functions that do it."""
    config = dataclasses.replace(config, n_layer=layers)
    slow = expected_seconds(config, batch_size, settings.train.precision) > SLOW_BATCH_SECONDS
    accumulation = 1 if slow else min(2, settings.train.accumulation)
    train = dataclasses.replace(settings.train, batch_size=batch_size, accumulation=accumulation)
    model = GPT(config)
    optimizer = make_optimizer(model, settings.optim)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, max(20 * config.block_size, EVALUATION_BATCH_TOKENS + 1), np.uint32)
    steps = iter(range(1_000_000))

    def step() -> None:
        update(model, optimizer, ids, next(steps), 0.0, settings.optim.clip, train)

    def move() -> None:
        grad_norm(optimizer.parameters())
        optimizer.step(grad_scale=1.0)

    step()  # the kernels are compiled, the moments come into being
    step_seconds, count = typical_seconds(step, budget_seconds)
    move_seconds, _ = typical_seconds(move, budget_seconds / 10)
    optimizer.zero_grad()

    lengths = np.ones(config.vocab_size, np.int64)
    scored = ids[: (config.block_size if slow else EVALUATION_BATCH_TOKENS) + 1]
    if not slow:
        evaluate(model, scored, lengths, 0)  # touches fresh memory
    evaluation_seconds, _ = typical_seconds(lambda: evaluate(model, scored, lengths, 0), budget_seconds / 10)

    model.eval()
    wanted = min(train.sample_tokens, 1000)
    writing = model.stream(ids[:4].astype(np.int64), wanted + 1, temperature=1.0, seed=0)
    next(writing)
    began, written = time.perf_counter(), 0
    for _ in writing:
        written += 1
        if time.perf_counter() - began > budget_seconds / 2:
            break
    sample_seconds = (time.perf_counter() - began) / max(1, written)
    return Speed(
        (step_seconds - move_seconds) / train.accumulation, move_seconds,
        evaluation_seconds / (len(scored) - 1), sample_seconds, f"{count} steps",
    )  # fmt: skip


def typical_seconds(work: Callable[[], object], budget_seconds: float) -> tuple[float, int]:
    """(the mean time of `work`, how often it was done) over about `budget_seconds`, at least three times unless slow.

    The mean and not the median, as a run pays for every interruption; but the slowest tenth counts as much as what
    comes before it, since one long interruption in a few seconds says little.
    """
    times: list[float] = []
    while sum(times) < budget_seconds or (len(times) < 3 and sum(times) < 4 * budget_seconds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    times.sort()
    return float(np.minimum(times, times[int(0.9 * (len(times) - 1))]).mean()), len(times)


# -- what is shown -------------------------------------------------------------------------------------------------


def table(plan: Plan) -> Table:
    """The plan as a table: what, how much, and where the figure comes from."""
    config, train, text, need, speed = plan.config, plan.settings.train, plan.text, plan.memory, plan.speed
    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(overflow="fold")

    def part(name: str) -> None:
        rows.add_row("")
        rows.add_row(name)

    rows.add_row("model")
    by_part = (f"{name.replace('_', ' ')} {amount(n)}" for name, n in parameters(config).items() if n)
    rows.add_row("  parameters", f"{config.num_parameters():,}", ", ".join(by_part))
    forward = flops_per_token(config) / 3
    rows.add_row("  FLOPs a token", amount(3 * forward), f"to train on; {amount(forward)} to score")

    part("memory")
    rows.add_row("  parameters", size(need.parameters), "float32")
    rows.add_row("  gradients", size(need.gradients), "float32")
    rows.add_row("  AdamW moments", size(need.moments), "float32")
    shape = f"{train.batch_size} sequence{'s' * (train.batch_size > 1)} of {config.block_size} tokens"
    rows.add_row("  activations", size(need.activations), shape)
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    rows.add_row("  report page", size(plan.report), "the libraries that draw it, the baselines it shows")
    rows.add_row("  at most", size(plan.needed), f"at once, of {size(plan.free)} available: {verdict}")
    rows.add_row("  this program", size(plan.program), "besides")

    part("speed")
    rate = plan.tokens_per_second
    rows.add_row("  machine", amount(plan.peak, "FLOP/s"), f"measured with {train.precision} products")
    rows.add_row("  training", f"{rate:,.0f} tokens/s" if rate >= 10 else f"{rate:.2g} tokens/s", speed.how)
    rows.add_row("  utilisation", f"{plan.utilisation:.0%}", "of the machine, by the FLOPs of the model")

    part("time")
    start = START_SECONDS + text.preparation_seconds
    rows.add_row("  to start", spoken(start), "with the tokenizer and the tokens to make, and to end")
    batches = f"{train.accumulation} x " * (train.accumulation > 1) + shape
    rows.add_row(f"  {train.steps:,} steps", spoken(train.steps * plan.step_seconds),
                 f"{spoken_step(plan.step_seconds)} each, of {plan.tokens_per_step:,} tokens ({batches})")  # fmt: skip
    times, seconds = plan.evaluations
    rows.add_row(f"  {times:,} evaluation{'s' * (times > 1)}", spoken(seconds))
    times, seconds = plan.samples
    rows.add_row(f"  {times:,} sample{'s' * (times > 1)}", spoken(seconds))
    rows.add_row("  to finish", spoken(plan.seconds))

    part("data")
    about = "" if text.exact else "about "
    rows.add_row("  corpus", f"{about}{amount(text.train_tokens)} tokens", f"for training, {amount(text.val_tokens)} "
                 f"for validation, of {size(text.total_bytes)} of text")  # fmt: skip
    rows.add_row("  this run reads", f"{amount(plan.tokens)} tokens", f"{plan.epochs:,.1f} epochs, "
                 f"{plan.tokens / config.num_parameters():,.2g} tokens a parameter")  # fmt: skip
    wanted = TOKENS_PER_PARAMETER * config.num_parameters()
    rows.add_row("  Chinchilla", f"{amount(wanted)} tokens", f"{TOKENS_PER_PARAMETER} a parameter: "
                 f"{wanted / text.train_tokens:,.1f} epochs, {spoken(wanted / plan.tokens_per_second)}")  # fmt: skip
    return rows


def remarks(plan: Plan) -> Iterator[str]:
    """What to think of it, a line each."""
    per_parameter = plan.tokens / plan.config.num_parameters()
    yield ""
    if not plan.fits:
        yield (
            f"It does not fit: {size(plan.needed)} are needed at once, {size(plan.free)} are available. Lower "
            f"--train.batch_size (and raise --train.accumulation as much), --model.block_size, or the model."
        )
    if plan.text.train_tokens <= plan.config.block_size or plan.text.val_tokens < 2:
        yield "The text is shorter than a context: train.py will refuse it. Give more, or lower --model.block_size."
    elif plan.epochs > GOOD_EPOCHS:
        yield (
            f"The text is read {plan.epochs:,.0f} times; beyond {GOOD_EPOCHS} times repeats teach less "
            f"and less (Muennighoff et al. 2023): more text helps most, --model.dropout 0.1 or 0.2 a little."
        )
    if per_parameter < TOKENS_PER_PARAMETER / 4:
        yield (
            f"The run is short for this model, {per_parameter:.1f} tokens a parameter: a smaller one might learn more "
            f"in the same time. python train.py --fit {spoken(plan.seconds).replace(' ', '')} proposes one."
        )


def amount(n: float, unit: str = "") -> str:
    """A number in three digits, with a unit if there is one: 950, 1.97 M, 280 GFLOP/s."""
    for factor, prefix, least in ((1e12, "T", 1e12), (1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4)):
        if n >= 0.9995 * least:
            digits = 2 if n < 10 * factor else 1 if n < 100 * factor else 0
            return f"{n / factor:,.{digits}f} {prefix}{unit}"
    return f"{n:,.0f} {unit}".rstrip() if n >= 9.5 else f"{n:.2g} {unit}".rstrip()


def size(n_bytes: float) -> str:
    """Bytes, in three digits: 7.87 MB, 22.8 GB."""
    return amount(n_bytes, "B")


def spoken_step(seconds: float) -> str:
    """The time of a step: 0.8 ms, 209 ms, 4.1 s."""
    if seconds >= 1:
        return spoken(seconds)
    return f"{seconds * 1e3:.{0 if seconds >= 0.0995 else 1}f} ms"
