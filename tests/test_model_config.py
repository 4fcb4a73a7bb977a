"""GPTConfig: what it refuses, what it derives, what it counts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import GPT, GPTConfig, presets


@st.composite
def configs(draw, max_layers=3, max_heads=4, max_vocab=40, **fixed):
    """Any small model of the family."""
    kv_heads = draw(st.integers(1, max_heads))
    heads = kv_heads * draw(st.integers(1, max(1, max_heads // kv_heads)))
    position = draw(st.sampled_from(["learned", "rope"]))
    head_size = draw(st.integers(1, 4)) * (2 if position == "rope" else 1)
    choices = {
        "n_layer": draw(st.integers(1, max_layers)),
        "n_head": heads,
        "n_kv_head": draw(st.sampled_from([kv_heads, None])),
        "n_embd": heads * head_size,
        "block_size": draw(st.integers(1, 12)),
        "vocab_size": draw(st.integers(1, max_vocab)),
        "bias": draw(st.booleans()),
        "position": position,
        "norm": draw(st.sampled_from(["layernorm", "rmsnorm"])),
        "mlp": draw(st.sampled_from(["gelu", "swiglu"])),
        "mlp_hidden": draw(st.one_of(st.none(), st.integers(1, 9))),
        "tie_embeddings": draw(st.booleans()),
        "gelu": draw(st.sampled_from(["tanh", "exact"])),
    }
    return GPTConfig(**{**choices, **fixed})


@given(configs())
def test_dict_round_trip_survives_json(config):
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(configs())
def test_shapes_and_counts_are_those_of_the_model(config):
    parameters = [(name, p.shape) for name, p in GPT(config).named_parameters()]
    assert list(config.parameter_shapes()) == parameters
    assert sum(config.parameter_counts().values()) == config.num_parameters()


def test_known_parameter_counts():
    """GPT-2's sizes as in its paper's errata, llama2.c's and TinyLlama's as published."""
    millions = {
        "tiny": 0.829, "baby": 10.8, "gpt2": 124.4, "gpt2-medium": 354.8, "gpt2-large": 774.0, "gpt2-xl": 1557.6,
        "llama-15m": 15.2, "llama-110m": 109.5, "smollm-135m": 134.5, "tinyllama": 1100.0, "llama-7b": 6738.4,
    }  # fmt: skip
    for name, count in millions.items():
        assert presets[name].num_parameters() / 1e6 == pytest.approx(count, rel=5e-3), name


def test_flops_follow_the_rule_of_six():
    """6 per parameter that multiplies, plus 12·L·C·T for the full attention square (PaLM, appendix B)."""
    for config in presets.values():
        counts = config.parameter_counts()
        multiplying = counts["attention"] + counts["mlp"] + config.vocab_size * config.n_embd
        expected = 6 * multiplying + 12 * config.n_layer * config.n_embd * config.block_size
        assert config.flops_per_token(causal=False) == pytest.approx(expected, rel=2e-3)  # biases do not multiply
        assert config.flops_per_token(causal=True) < config.flops_per_token(causal=False)
        assert 3 * config.flops_per_token(backward=False) == pytest.approx(config.flops_per_token(), rel=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 130, "n_head": 4}, "n_embd=130, n_head=4; set n_embd to 128 or 132"),
        ({"n_head": 4, "n_kv_head": 3}, "set n_kv_head to one of 1, 2, 4"),
        ({"n_head": 2, "n_embd": 6, "position": "rope"}, "must be even: got 6 / 2 = 3"),
        ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
        ({"vocab_size": "65"}, "vocab_size must be a whole number, got '65'"),
        ({"n_layer": True}, "n_layer must be a whole number, got True"),
        ({"bias": "no"}, "bias must be true or false, got 'no'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0"),
        ({"rope_theta": -1.0}, "rope_theta must be above 0"),
        ({"mlp": "relu"}, "mlp must be one of gelu, swiglu, got 'relu'"),
        ({"mlp_hidden": 0}, "mlp_hidden must be at least 1"),
    ],
)
def test_refuses_in_one_line(fields, message):
    with pytest.raises(ValueError) as caught:
        GPTConfig(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match='"n_layers" is no field of GPTConfig; did you mean "n_layer"'):
        GPTConfig.from_dict({"n_layers": 2})
    with pytest.raises(ValueError, match="there are: n_layer, n_head"):
        GPTConfig.from_dict({"zzzz": 2})
    with pytest.raises(ValueError, match='did you mean "gpt2-medium"'):
        GPTConfig.preset("gpt2-midium")


def test_presets_take_changes():
    config = GPTConfig.preset("tiny", vocab_size=65, dropout=0.1)
    assert (config.vocab_size, config.dropout, config.n_embd) == (65, 0.1, 128)
    assert GPTConfig(mlp="swiglu", n_embd=768, n_head=12).hidden == 2048
