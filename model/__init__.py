"""The GPT family: its configuration, the model, how text is drawn from it, and weights on disk.

    from model import GPT, GPTConfig

    gpt = GPT(GPTConfig.preset("tiny", vocab_size=256))
    logits, loss = gpt(idx, targets)        # idx, targets (B, T) integers
    loss.backward()
    text = gpt.generate(prompt, 100, temperature=0.8, top_k=50, seed=1)
"""

from model.config import GPTConfig, presets
from model.gpt import GPT, Block

__all__ = ["GPT", "Block", "GPTConfig", "presets"]
