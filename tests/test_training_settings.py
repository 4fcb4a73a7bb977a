"""Settings: the command line wins over the file, the file over the default; what is unknown is refused."""

import dataclasses
from pathlib import Path

import pytest

from model import GPTConfig
from training.errors import SettingsError
from training.settings import SECTIONS, Settings, parse_settings


def toml(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    config = toml(tmp_path, '[model]\nn_layer = 2\nn_embd = 64\nbias = true\n[data]\nsource = "a.txt"\n')
    settings = parse_settings(["--model.n-embd", "32", "--config", config, "--optim.lr=1e-2"])
    assert settings.model.n_embd == 32
    assert settings.model.n_layer == 2
    assert settings.model.bias is True
    assert settings.optim.lr == 0.01
    assert settings.data.source == "a.txt"
    assert settings.train == Settings().train
    assert parse_settings(["--config", config, "--data", "b.txt"]).data.source == "b.txt"
    assert parse_settings(["--config", config, "--model.bias", "false"]).model.bias is False


def test_every_field_of_the_model_is_a_setting_but_for_the_vocabulary_which_is_the_tokenizers():
    names = {field.name for field in dataclasses.fields(GPTConfig)}
    assert {field.name for field in dataclasses.fields(Settings().model)} == names - {"vocab_size"}
    assert Settings().gpt_config(vocab_size=1000).vocab_size == 1000


def changed(value):
    """A value of the same type that is not the default (None stands for a whole number)."""
    match value:
        case bool():
            return not value
        case None:
            return 2
        case str():
            return value
        case _:
            return value + 1


def test_config_toml_gives_back_the_settings(tmp_path):
    flags = [
        f"--{section}.{field.name}={changed(getattr(getattr(Settings(), section), field.name))}"
        for section in SECTIONS
        for field in dataclasses.fields(getattr(Settings(), section))
        if field.name not in ("val_fraction", "beta1", "beta2", "dropout", "min_lr", "n_embd", "n_head", "n_kv_head")
    ]
    flags += ["--tokenizer.pattern", 'a "quoted" \\ pattern é\n', "--optim.eps", "1e-12", "--model.n_kv_head", "2"]
    settings = parse_settings(flags)
    assert settings != Settings()
    again = parse_settings(["--config", toml(tmp_path, settings.to_toml())])
    assert again.sections() == settings.sections()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--model.n_layr", "6"], "no flag --model.n_layr; did you mean --model.n_layer?"),
        (["--steps", "6"], "no flag --steps; did you mean --train.steps?"),
        (["--tran.seed=6"], "no flag --tran.seed; did you mean --train.seed?"),
        (["--xyzzy"], "no flag --xyzzy; --help lists all"),
        (["--model.vocab_size", "300"], "no flag --model.vocab_size; did you mean --tokenizer.vocab_size?"),
        (["--model.n_layer", "six"], "--model.n_layer: expected a whole number, got 'six'"),
        (["--optim.lr", "fast"], "--optim.lr: expected a number, got 'fast'"),
        (["--model.n_layer"], "--model.n_layer"),
        (["--model.norm", "batch"], "'batch'.*layernorm"),
        (["--model.bias", "maybe"], "'maybe'"),
        (["stray"], "stray"),
        (["--model.n_embd", "130"], "n_embd must be divisible by n_head: got n_embd=130"),
        (["--train.steps", "0"], "--train.steps must be at least 1, got 0"),
        (["--train.seed", "-1"], "--train.seed must be at least 0, got -1"),
        (["--optim.lr", "nan"], "--optim.lr must be above 0, got nan"),
        (["--optim.min_lr", "1"], "--optim.min_lr must be between 0 and --optim.lr"),
        (["--data", ""], '--data.source must be a path or "builtin"'),
        (["--data.val_fraction", "1"], "--data.val_fraction must be between 0 and 1"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--resume", "--out", "nowhere"], "nothing to resume: nowhere holds no run"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_one_line(flags, complaint):
    with pytest.raises(SettingsError, match=complaint) as caught:
        parse_settings(flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[model]\nn_layr = 6", "run.toml: there is no setting model.n_layr; did you mean model.n_layer?"),
        ("[modle]\nn_layer = 6", r"run.toml: \[modle\] is no section of settings; did you mean model?"),
        ("steps = 6", r"run.toml: \[steps\] is no section"),
        ("model = 6", r"run.toml: \[model\] is no section"),
        ("[model]\nn_layer = [6]", "run.toml: model.n_layer must be a single value"),
        ("[model]\nn_layer = 6.5", "6.5"),
        ("[model\n", "run.toml is not TOML"),
        ("[train]\nsteps = 0", "--train.steps must be at least 1"),
    ],
)
def test_mistakes_in_a_file_are_told_with_its_name(tmp_path, text, complaint):
    with pytest.raises(SettingsError, match=complaint) as caught:
        parse_settings(["--config", toml(tmp_path, text)])
    assert "\n" not in str(caught.value)


CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_the_ready_made_configurations_are_valid(path):
    parse_settings(["--config", str(path)])


@pytest.mark.parametrize("flag", ["--time-limit", "--fit"])
def test_times_are_spelled_with_units(flag):
    assert getattr(parse_settings([flag, "1h30m"]), flag[2:].replace("-", "_")) == "1h30m"
    with pytest.raises(SettingsError, match=f"^{flag}: expected a duration such as 90s, 30min or 1h30m, got '90'"):
        parse_settings([flag, "90"])
