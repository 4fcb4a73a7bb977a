"""Weights on disk: Hugging Face's models load here, ours load there, and what does not fit is refused."""

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file, save_file
from test_model_config import configs
from test_model_gpt import GPT2, LLAMA, STYLES, build, scramble

from model import GPT


@pytest.fixture(scope="module")
def hf():
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("torch", reason="PyTorch is the oracle here")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")
    transformers.utils.logging.set_verbosity_error()
    return transformers


def their_logits(model, idx):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(idx)).logits.numpy()


def their_models(hf):
    """Tiny random models of both families, with every option that changes what is stored or computed."""
    gpt2 = {"n_layer": 2, "n_head": 3, "n_embd": 24, "n_positions": 16, "vocab_size": 33}
    llama = {
        "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 40, "vocab_size": 33,
        "max_position_embeddings": 16,
    }  # fmt: skip
    end = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    for options in ({}, {"activation_function": "gelu", "n_inner": 20, "layer_norm_epsilon": 1e-3}):
        yield hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2, **options, **end))
    for options in (
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ):
        yield hf.LlamaForCausalLM(hf.LlamaConfig(**llama, **options, **end))


def test_theirs_load_here(hf, tmp_path):
    import torch

    torch.manual_seed(0)
    idx = np.random.default_rng(0).integers(0, 33, (2, 16))
    for i, model in enumerate(their_models(hf)):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.2)
        model.save_pretrained(tmp_path / str(i))
        gpt = GPT.from_pretrained(tmp_path / str(i)).eval()
        np.testing.assert_allclose(gpt(idx)[0].detach().numpy(), their_logits(model, idx), rtol=2e-4, atol=2e-4)


def test_in_parts_and_in_half_precision(hf, tmp_path):
    """Large models come in several files; bfloat16, which NumPy lacks, is read exactly."""
    import torch

    idx = np.random.default_rng(0).integers(0, 33, (1, 16))
    for dtype in (torch.bfloat16, torch.float16):
        for i, model in enumerate(their_models(hf)):
            folder = tmp_path / f"{dtype}-{i}"
            model.to(dtype).save_pretrained(folder, max_shard_size="10KB")
            assert len(list(folder.glob("*.safetensors"))) > 1
            gpt = GPT.from_pretrained(folder).eval()
            theirs = their_logits(model.float(), idx)
            np.testing.assert_allclose(gpt(idx)[0].detach().numpy(), theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("style", ["gpt2", "gpt2 without biases, exact gelu", "llama", "llama, tied"])
def test_ours_load_there(hf, tmp_path, style):
    gpt = scramble(GPT(build(STYLES[style])))
    gpt.save_pretrained(tmp_path)
    model, info = hf.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info["missing_keys"]), info
    assert not any(info["unexpected_keys"]), info
    idx = np.random.default_rng(0).integers(0, 33, (2, 16))
    np.testing.assert_allclose(gpt(idx)[0].detach().numpy(), their_logits(model, idx), rtol=2e-4, atol=2e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs())
def test_round_trip_to_the_bit(tmp_path, config):
    for dtype in (np.float32, np.float64):
        gpt = scramble(GPT(config).to(dtype))
        gpt.save_pretrained(tmp_path)
        back = GPT.from_pretrained(tmp_path, dtype)
        assert back.config == config
        state = gpt.state_dict()
        assert list(back.state_dict()) == list(state)
        for name, value in back.state_dict().items():
            assert value.dtype == dtype
            np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_files_are_contiguous_and_loadable_without_us(tmp_path):
    """safetensors writes non-contiguous arrays wrongly without a word; the transposed ones must have been copied."""
    gpt = scramble(GPT(build(GPT2)))
    gpt.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        stored["transformer.h.1.mlp.c_fc.weight"], gpt.blocks[1].mlp.up.weight.array.T
    )
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def edit_config(folder, remove=(), **changes):
    values = json.loads((folder / "config.json").read_text())
    values.pop("groundup", None)
    values.update(changes)
    for name in remove:
        values.pop(name)
    (folder / "config.json").write_text(json.dumps(values))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def test_older_files_of_gpt2(tmp_path):
    """The published GPT-2 has no "transformer." in its names and carries its masks along; some store a tied head."""
    gpt = scramble(GPT(build(GPT2)))
    gpt.save_pretrained(tmp_path)

    def change(state):
        for name in list(state):
            state[name.removeprefix("transformer.")] = state.pop(name)
        for i in range(2):
            state[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
            state[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
        state["lm_head.weight"] = state["wte.weight"]

    edit_weights(tmp_path, change)
    edit_config(tmp_path)
    back = GPT.from_pretrained(tmp_path)
    for name, value in back.state_dict().items():
        np.testing.assert_array_equal(value, gpt.state_dict()[name], err_msg=name)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: (d / "config.json").unlink(), FileNotFoundError, "config.json does not exist"),
        (lambda d: (d / "config.json").write_text("{"), ValueError, "config.json"),
        (lambda d: (d / "config.json").write_text("[]"), ValueError, "expected an object"),
        (lambda d: (d / "config.json").write_text("[" * 100_000), ValueError, "config.json"),
        (lambda d: (d / "model.safetensors").unlink(), FileNotFoundError, "no .safetensors file"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), FileNotFoundError, "is a pickle"),
        (truncate, ValueError, "damaged or no safetensors"),
        (lambda d: edit_config(d, model_type="mamba"), ValueError, "got 'mamba'"),
        (lambda d: edit_config(d, remove=["hidden_size"]), ValueError, "hidden_size is missing"),
        (lambda d: edit_config(d, hidden_act="relu"), ValueError, "hidden_act='relu' is not supported"),
        (lambda d: edit_config(d, head_dim=7), ValueError, "head_dim=7"),
        (lambda d: edit_config(d, rope_parameters={"rope_type": "llama3"}), ValueError, "rope_type='llama3'"),
        (lambda d: edit_config(d, num_hidden_layers=10**9), ValueError, r"lack layers\.2"),
        (lambda d: edit_config(d, num_hidden_layers=1), ValueError, r"hold layers\.1.*does not have"),
        (lambda d: edit_config(d, hidden_size=10**12), ValueError, "has shape"),
        (lambda d: edit_config(d, num_attention_heads=0), ValueError, "n_head must be at least 1"),
        (lambda d: edit_config(d, hidden_size="wide"), ValueError, "must be a whole number, got 'wide'"),
        (lambda d: edit_config(d, rope_parameters="linear"), ValueError, "rope"),
        (lambda d: edit_config(d, groundup={"n_layers": 2}), ValueError, 'did you mean "n_layer"'),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), ValueError, "index.json"),
        (lambda d: edit_weights(d, lambda s: s.pop(f"{Q}.weight")), ValueError, "lack layers.0.self_attn.q_proj"),
        (lambda d: edit_weights(d, lambda s: s.update({f"{Q}.bias": np.ones(24)})), ValueError, "q_proj.bias"),
        (lambda d: edit_weights(d, lambda s: s.update({f"{Q}.weight": np.ones((24, 24), int)})), ValueError, "I64"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, spoil, error, message):
    scramble(GPT(build(LLAMA))).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message) as caught:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_biases_of_a_model_without_biases(tmp_path):
    GPT(build({})).save_pretrained(tmp_path)

    def change(state):
        state["transformer.h.0.mlp.c_fc.bias"] += 1

    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match="not zero"):
        GPT.from_pretrained(tmp_path)
