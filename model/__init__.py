"""The GPT family: its configuration, the model, how text is drawn from it, and pretrained weights."""

from model.config import GPTConfig, presets

__all__ = ["GPTConfig", "presets"]
