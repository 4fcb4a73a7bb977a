"""`train.py --fit 30min`: a model, a context and a batch for this time, this machine's memory and this text.

Time decides how much can be computed, C operations; a model of N parameters then sees about D = C / 6N tokens. A large
one learns more from each token, a small one sees more of them. What comes of it is taken from the scaling law of
Hoffmann et al. 2022 ("Chinchilla", arXiv:2203.15556) in the fit of Besiroglu et al. 2024 (arXiv:2404.10102),

    loss(N, D) = 1.8172 + 482.01 / N^0.3478 + 2085.43 / D^0.3658

whose best N grows as C^0.51, at about 20 tokens a parameter. Text is not endless: D tokens out of U different ones,
read 1 + R times, are worth D' = U + U · 15.4 · (1 − e^(−R/15.4)) new ones (Muennighoff et al. 2023, arXiv:2305.16264).
The law was fitted to models a hundred times larger and to other text. Its numbers mean nothing here, but where
its minimum lies is the best guess there is; the table that is printed shows how flat it is.

Widths go up a ladder; the rate D / time of each is measured, not computed, starting where the law would have it by the
machine's peak and walking downhill. The rest follows from the width by what has become custom:

    blocks         C / 64, at least 4      GPT-2: 12 at 768; the ratio matters little (Kaplan et al. 2020, section 3.2)
    head size      32, from 256 on 64
    context        64 to 1024 tokens, growing with the width, and no more than the text can fill
    learning rate  0.384 / C, at most 3e-3    5e-4 at 768 (Brown et al. 2020, table 2.1: 6e-4), 1e-3 at 384; that it
                                              goes down as 1 / C: Yang et al. 2022, arXiv:2203.03466
    batch          0.292 · C^0.327 tokens (C: operations; DeepSeek-AI 2024, arXiv:2401.02954, section 3.1), but no fewer
                   than 1,000 steps unless the batch is down to 1,024 tokens; above 8,192 by accumulation
    dropout        0.1 where the text is read more than 4 times, 0.2 above 16

A setting that is given on the command line or in a file stays as it is, and the others are chosen around it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from model.cost import flops_per_token
from training.duration import seconds, spoken
from training.errors import SettingsError
from training.machine import available_memory, peak_flops, resident_memory
from training.plan import (
    SPARE,
    START_SECONDS,
    USUAL_UTILISATION,
    Plan,
    Text,
    amount,
    look_at,
    measure,
    on_this_machine,
    progress,
    report_memory,
    size,
    spoken_step,
    training_memory,
)
from training.settings import SECTIONS, Settings, toml_value

WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
CONTEXTS = {0: 64, 128: 128, 256: 256, 640: 512, 1024: 1024}  # from this width on
BUSY_TOKENS = 8192
DROPOUTS = {0: 0.0, 4: 0.1, 16: 0.2}  # from so many epochs on
SHARE_OF_EVALUATIONS = 0.05  # of the time, for evaluations and samples
MOST_EVALUATIONS = 20
CHOSEN = (
    "model.n_layer", "model.n_head", "model.n_embd", "model.block_size", "model.dropout",
    "optim.lr", "optim.min_lr", "optim.warmup_steps",
    "train.steps", "train.batch_size", "train.accumulation", "train.eval_interval", "train.sample_interval",
)  # fmt: skip


def print_proposal(settings: Settings) -> None:
    """Measure, and print a TOML file whose comments say why. Raises UserError where nothing can be proposed."""
    budget_seconds = seconds(settings.fit)
    with progress() as say:
        say("reading the corpus")
        text = look_at(settings)
        with on_this_machine(settings):
            say("measuring the machine")
            peak_flops(settings.train.precision)
            plans = downhill(settings, text, budget_seconds, say)
    best = min(plans, key=loss)
    print("\n".join([*(f"# {line}".rstrip() for line in reasons(best, plans)), *toml(best.settings)]))


def expected_loss(parameters: float, tokens: float, different_tokens: float) -> float:
    """The scaling law at the head of this file, in nats a token of the text it was fitted to."""
    repeats = max(0.0, tokens / different_tokens - 1)
    worth = min(tokens, different_tokens) - different_tokens * 15.387756 * math.expm1(-repeats / 15.387756)
    return 1.8172 + 482.01 / parameters**0.3478 + 2085.43 / worth**0.3658


def loss(plan: Plan) -> float:
    """What the law expects of a planned run."""
    return expected_loss(plan.config.num_parameters(), plan.tokens, plan.text.train_tokens)


# -- the search ----------------------------------------------------------------------------------------------------


def downhill(settings: Settings, text: Text, budget_seconds: float, say: Callable[[str], None]) -> list[Plan]:
    """Measure widths from the likeliest on towards lower losses, until both neighbours of the best are known.

    Returns a plan for each width measured, rising. Raises SettingsError where no model can be trained in the time.
    """
    useful_seconds = budget_seconds - text.preparation_seconds - START_SECONDS
    operations = USUAL_UTILISATION * peak_flops(settings.train.precision) * max(1.0, useful_seconds)
    free = available_memory()
    widths = [settings.model.n_embd] if "model.n_embd" in settings.given else WIDTHS
    ladder = [p for width in widths if (p := propose(settings, text, width, operations, free))]
    ladder = [p for p in ladder if bytes_needed(p, text) <= SPARE * free] or ladder[:1]

    def guess(index: int) -> float:
        config = ladder[index].gpt_config(text.vocab_size)
        return expected_loss(config.num_parameters(), operations / flops_per_token(config), text.train_tokens)

    measured: dict[int, Plan] = {}
    wanted = min(range(len(ladder)), key=guess)
    while wanted not in measured:
        say(f"running a few steps of a model of width {ladder[wanted].model.n_embd}")
        measured[wanted] = filled(ladder[wanted], text, budget_seconds, free)
        best = min(measured, key=lambda index: loss(measured[index]))
        neighbours = [index for index in (best - 1, best + 1) if 0 <= index < len(ladder)]
        wanted = next((index for index in neighbours if index not in measured), best)
    return [measured[index] for index in sorted(measured)]


def propose(settings: Settings, text: Text, width: int, operations: float, free: int) -> Settings | None:
    """The settings for a width and about so many operations, but for the steps; None where they make no model."""
    most_heads = width // (32 if width < 256 else 64)
    kv_heads = settings.model.n_kv_head or 1
    possible = [heads for heads in range(kv_heads, most_heads + 1, kv_heads) if width % (2 * heads) == 0]
    n_head = max(possible, default=settings.model.n_head)
    proposal = changed(settings, model={"n_embd": width, "n_layer": max(4, width // 64), "n_head": n_head})
    try:
        config = proposal.gpt_config(text.vocab_size)
    except ValueError:
        return None
    room = max(8, min(text.train_tokens // 8, text.val_tokens // 2))
    context = min(_at(CONTEXTS, width), 1 << int(math.log2(room)))
    tokens = operations / flops_per_token(config, context)
    lr = float(f"{min(3e-3, 0.384 / width):.1e}")
    dropout = _at(DROPOUTS, tokens / text.train_tokens)
    proposal = changed(proposal, model={"block_size": context, "dropout": dropout}, optim={"lr": lr})
    batch_tokens = max(1024, min(0.292 * operations**0.3271, tokens / 1000))
    # A batch of a few thousand tokens keeps the machine busy; what is more goes into accumulation.
    accumulation = math.ceil(batch_tokens / BUSY_TOKENS)
    batch_size = max(1, round(batch_tokens / accumulation / proposal.model.block_size))
    min_lr = float(f"{proposal.optim.lr / 10:.1e}")
    while True:
        train = {"batch_size": batch_size, "accumulation": accumulation}
        proposal = changed(proposal, train=train, optim={"min_lr": min_lr})
        if batch_size == 1 or bytes_needed(proposal, text) <= SPARE * free:
            return proposal
        batch_size, accumulation = -(-batch_size // 2), accumulation * 2


def _at(table: dict[int, Any], x: float) -> Any:
    """The value of the largest key that x reaches."""
    return table[max(key for key in table if key <= x)]


def bytes_needed(proposal: Settings, text: Text) -> int:
    """Bytes of memory."""
    training = training_memory(proposal.gpt_config(text.vocab_size), proposal.train)
    return training.peak + report_memory(proposal, text, training)


def filled(proposal: Settings, text: Text, budget_seconds: float, free: int) -> Plan:
    """Measure a proposal, and fill the time with steps, evaluations and samples."""
    config, train = proposal.gpt_config(text.vocab_size), proposal.train
    program = resident_memory()
    speed = measure(config, proposal, free, budget_seconds=2.0)
    useful = budget_seconds - START_SECONDS - text.preparation_seconds
    scored = min(train.eval_tokens or text.val_tokens, text.val_tokens)
    pause = scored * speed.evaluation + train.sample_tokens * speed.sample
    times = max(1, min(MOST_EVALUATIONS, int(SHARE_OF_EVALUATIONS * useful / pause)))
    step_seconds = speed.step(train.accumulation)
    steps = int((useful - times * pause) / step_seconds)
    if steps < 10:
        raise SettingsError(
            f"--fit {proposal.fit} is too short: to start and read the corpus takes "
            f"{spoken(START_SECONDS + text.preparation_seconds)}, an evaluation with a sample {spoken(pause)}, "
            f"a step {spoken_step(step_seconds)}; give it more time"
        )
    interval = -(-steps // times)
    proposal = changed(
        proposal,
        train={"steps": steps, "eval_interval": interval, "sample_interval": interval},
        optim={"warmup_steps": max(10, min(200, steps // 20))},
    )
    needed = training_memory(config, proposal.train)
    return Plan(proposal, config, text, needed, free, program, speed, peak_flops(train.precision))


def changed(settings: Settings, **sections: dict[str, Any]) -> Settings:
    """Settings with some replaced, by section and name, but for those that the user gave."""
    return dataclasses.replace(
        settings,
        **{
            section: dataclasses.replace(
                getattr(settings, section),
                **{name: value for name, value in values.items() if f"{section}.{name}" not in settings.given},
            )
            for section, values in sections.items()
        },
    )


# -- what is shown -------------------------------------------------------------------------------------------------


def reasons(best: Plan, plans: list[Plan]) -> list[str]:
    """Why this one: lines for people."""
    settings, text = best.settings, best.text
    train = settings.train
    about = "" if text.exact else "about "
    lines = [
        f"{spoken(seconds(settings.fit))} of this machine ({amount(best.peak, 'FLOP/s')} in {train.precision}, "
        f"{size(best.free)} of memory) and {about}{amount(text.train_tokens)} tokens of text to train on.",
        "",
        f"{'width':>9}{'blocks':>8}{'parameters':>13}{'tokens/s':>11}{'tokens':>11}{'epochs':>9}{'loss':>9}",
    ]
    for plan in plans:
        mark = ">" if plan is best else " "
        lines.append(
            f"{mark} {plan.config.n_embd:>7}{plan.config.n_layer:>8}{amount(plan.config.num_parameters()):>13}"
            f"{plan.tokens_per_second:>11,.0f}{amount(plan.tokens):>11}{plan.epochs:>9.1f}{loss(plan):>9.3f}"
        )
    lines += [
        "",
        "Tokens/s were measured; the loss is that of a scaling law, and good for comparing only",
        "(arXiv:2203.15556 and 2404.10102; what repeated text is worth: 2305.16264; all rules: training/fit.py).",
        "",
        f"{train.steps:,} steps of {spoken_step(best.step_seconds)} with {best.tokens_per_step:,} tokens, "
        f"{best.evaluations[0]} evaluations and samples; {size(best.needed)} of memory.",
    ]
    if best.epochs > 4:
        lines.append(f"The text is read {best.epochs:.0f} times: more text would help most.")
    kept = [key for key in CHOSEN if key in settings.given]
    if kept:
        lines.append(f"As given: {', '.join(kept)}.")
    lines += ["", "Save this as fit.toml, then: python train.py --config fit.toml", ""]
    return lines


def toml(settings: Settings) -> list[str]:
    """The settings that were chosen or given, as lines of TOML."""
    lines = []
    for section in SECTIONS:
        keys = [key for key in dict.fromkeys([*CHOSEN, *settings.given]) if key.startswith(f"{section}.")]
        values = {key.partition(".")[2]: getattr(getattr(settings, section), key.partition(".")[2]) for key in keys}
        if values:
            lines += [f"[{section}]", *(f"{name} = {toml_value(value)}" for name, value in values.items()), ""]
    return lines[:-1]
