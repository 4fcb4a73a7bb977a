"""The pieces of the loop: what an evaluation means, what accumulation means, how the rate runs."""

import numpy as np
import pytest

import autograd as ag
from data import validation_batches
from model import GPT, GPTConfig
from tokenizer import Tokenizer
from training.loop import evaluate, learning_rate, make_optimizer, update, write_sample
from training.run import optimizer_arrays, token_lengths
from training.settings import OptimSettings, TrainSettings
from training.signals import StopRequest

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=270)
IDS = np.random.default_rng(0).integers(0, 270, 500).astype(np.uint16)


@pytest.fixture
def model():
    ag.manual_seed(1)
    return GPT(CONFIG)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("the cat sat on the mat, the rat at the hat. " * 20, 270)


def test_an_evaluation_is_the_mean_over_every_token_of_the_split(model, tokenizer):
    lengths = token_lengths(tokenizer)
    scored = evaluate(model, IDS, lengths, max_tokens=0)
    nats = n_bytes = 0.0
    for inputs, targets in validation_batches(IDS, block_size=8, batch_size=1):
        logits, _ = model(inputs)
        logits = logits.array.astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats -= np.take_along_axis(log_p, targets[..., None], -1).sum()
        n_bytes += sum(0 if t in tokenizer.special_tokens.values() else len(tokenizer.token_bytes(t))
                       for t in targets.ravel().tolist())  # fmt: skip
    assert scored.tokens == len(IDS) - 1
    assert scored.loss == pytest.approx(nats / (len(IDS) - 1), rel=1e-5)
    assert scored.bits_per_byte == pytest.approx(nats / np.log(2) / n_bytes, rel=1e-5)
    assert evaluate(model, IDS, lengths, max_tokens=100).tokens == 96


def test_an_evaluation_breaks_off_when_asked(model, tokenizer):
    stop = StopRequest()
    stop.signal_number = 15
    assert evaluate(model, IDS, token_lengths(tokenizer), 0, stop) is None


def gradients_after_update(batch_size, accumulation):
    """The gradients that two ways of cutting the same eight sequences leave."""
    ag.manual_seed(1)
    model = GPT(CONFIG)
    settings = TrainSettings(batch_size=batch_size, accumulation=accumulation)
    update(model, make_optimizer(model, OptimSettings()), IDS[:9], 0, 1e-3, 1.0, settings)
    return {name: parameter.grad.array for name, parameter in model.named_parameters()}


def test_accumulated_batches_count_like_one():
    # Nine tokens hold one window of eight, so that every batch, however it is drawn, repeats it.
    whole, parts = gradients_after_update(4, 1), gradients_after_update(1, 4)
    for name, gradient in whole.items():
        np.testing.assert_allclose(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_before_the_update(model, tokenizer):
    settings, optimizer = TrainSettings(batch_size=2), make_optimizer(model, OptimSettings())
    before = evaluate(model, IDS[:9], token_lengths(tokenizer), 0).loss
    assert update(model, optimizer, IDS[:9], 0, 1e-2, 1.0, settings).loss == pytest.approx(before, rel=1e-5)
    assert evaluate(model, IDS[:9], token_lengths(tokenizer), 0).loss < before


@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_what_decays(model, decay_embeddings):
    settings = OptimSettings(weight_decay=0.3, decay_embeddings=decay_embeddings)
    groups = make_optimizer(model, settings).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert {names[id(p)] for group in groups for p in group["params"]} == set(names.values())
    tables = {name for name in names.values() if "embedding" in name}
    assert decayed == {n for n in names.values() if "norm" not in n and (decay_embeddings or n not in tables)}


def test_moments_are_saved_under_the_names_of_their_parameters(model):
    optimizer = make_optimizer(model, OptimSettings())
    update(model, optimizer, IDS, 0, 1e-3, 1.0, TrainSettings(batch_size=2))
    arrays = optimizer_arrays(model, optimizer)
    for name, parameter in model.named_parameters():
        assert arrays[f"{name}:exp_avg"].shape == parameter.shape
        assert arrays[f"{name}:step"] == 1


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_every_schedule_rises_to_the_highest_rate_and_stays_within_bounds(schedule, steps):
    settings = OptimSettings(lr=1.0, min_lr=0.1, warmup_steps=5, schedule=schedule)
    rates = [learning_rate(step, settings, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0
    if steps == 1000:
        assert rates.index(1.0) == 5
        assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1, rel=0.05)


def test_a_sample_is_decided_by_weights_and_step(model, tokenizer):
    settings = TrainSettings(sample_tokens=10, sample_prompt="the ")
    first = write_sample(model, tokenizer, 3, settings)
    np.random.default_rng().random()
    ag.manual_seed(99)
    assert write_sample(model, tokenizer, 3, settings) == first
    assert first.startswith("the ")
    assert any(write_sample(model, tokenizer, step, settings) != first for step in range(4, 9))
