"""Neural networks from parts: modules and layers, their functions, initialisers, optimizers and schedules.

Names and semantics are PyTorch's `torch.nn` wherever it has them, so that textbook code runs with its import lines
changed:

    import autograd as torch
    import nn
    from nn import functional as F
"""

from nn import functional, init, optim, schedule
from nn.attention import CausalSelfAttention, KVCache
from nn.layers import (
    GELU,
    MLP,
    Dropout,
    Embedding,
    Identity,
    LayerNorm,
    Linear,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    SwiGLU,
    Tanh,
    residual,
)  # fmt: skip
from nn.module import Module, ModuleDict, ModuleList, Parameter, Sequential
from nn.optim import SGD, AdamW, clip_grad_norm_, decay_groups, grad_norm

__all__ = [
    "GELU", "MLP", "SGD", "AdamW", "CausalSelfAttention", "Dropout", "Embedding", "Identity", "KVCache",
    "LayerNorm", "Linear", "Module", "ModuleDict", "ModuleList", "Parameter", "RMSNorm", "ReLU", "Sequential",
    "SiLU", "Sigmoid", "Softmax", "SwiGLU", "Tanh", "clip_grad_norm_", "decay_groups", "functional",
    "grad_norm", "init", "optim", "residual", "schedule",
]  # fmt: skip
