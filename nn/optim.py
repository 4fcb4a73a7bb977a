"""Optimizers: turn gradients into steps.

    SGD     v ← μ v + (1 − τ) g                                  θ ← θ − lr · v
    AdamW   m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²       θ ← θ − lr · (m̂ / (√v̂ + ε) + λ θ)
            m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)                (Kingma & Ba 2015; Loshchilov & Hutter 2019)

AdamW's decay λ is *decoupled*: it shrinks the weights directly rather than through the gradient, which Adam would
rescale. Decay makes sense for matrices that multiply; the size of a norm's scale, a bias or an embedding is not what
overfits. So AdamW, given parameters, sets up two groups, with and without decay (`decay_groups`). Given groups, it
takes them as they are: who writes a group asks for exactly that.

Everything else (param_groups, state_dict, names and defaults) is as in PyTorch. Parameters are only ever written
in place, through `mutate()`, so they may be views of larger buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from autograd import Tensor
from autograd.kernels.optimizer import AdamWSettings, adamw, sum_of_squares
from nn.module import Module

__all__ = ["SGD", "AdamW", "Optimizer", "clip_grad_norm_", "decay_groups", "grad_norm"]

Group = dict[str, Any]
Params = Iterable[Tensor] | Iterable[Group] | Iterable[tuple[str, Tensor]] | Module


def decay_groups(params: Iterable[Tensor] | Module, weight_decay: float) -> list[Group]:
    """Two groups for an optimizer: what decays by `weight_decay`, and what does not (norms, biases, embeddings).

    A parameter tells by its `decay` attribute, which the layer that made it has set. A tied output head is an
    embedding. Empty groups are left out.
    """
    tensors = list(params.parameters() if isinstance(params, Module) else params)
    decayed = [p for p in tensors if getattr(p, "decay", True)]
    others = [p for p in tensors if not getattr(p, "decay", True)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Optimizer:
    """Base of the optimizers: groups of parameters with their settings, and what is remembered for each.

    param_groups   list of dicts: "params" and the settings of the group; schedules write "lr" here
    state          parameter → dict of arrays and numbers
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.param_groups: list[Group] = []
        entries = list(params.parameters() if isinstance(params, Module) else params)
        if not entries:
            raise ValueError("an optimizer needs parameters, got none; was the model built before its parameters?")
        if isinstance(entries[0], dict):
            for group in entries:
                self.add_param_group(group)  # type: ignore[arg-type]
        else:
            self.add_param_group({"params": entries})

    def add_param_group(self, group: Group) -> None:
        """Add {"params": [...], setting: value, …}; settings left out are the defaults."""
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        params = [p[1] if isinstance(p, tuple) else p for p in params]  # named_parameters() gives pairs
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"an optimizer takes Tensors, got {type(p).__name__}")
            if id(p) in known:
                raise ValueError(f"a parameter of shape {p.shape} appears twice; put each into one group, once")
            known.add(id(p))
        for name in group:
            if name != "params" and name not in self.defaults:
                raise ValueError(
                    f'{type(self).__name__} has no setting "{name}"; it has: {", ".join(self.defaults)}'
                )
        full = {**self.defaults, **group, "params": params}
        self._check(full)
        self.param_groups.append(full)

    def _check(self, group: Group) -> None:
        """Refuse settings that make no sense."""
        for name in ("lr", "weight_decay", "eps", "momentum"):
            if name in group and not group[name] >= 0:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 0, got {group[name]}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with `set_to_none=False` fill them with zeros and keep their memory."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p.grad is None:
                    p.grad = None
                else:
                    p.grad.mutate()[...] = 0

    def step(self, *, grad_scale: float = 1.0) -> None:
        """Move every parameter that has a gradient; gradients count multiplied by `grad_scale` (clipping)."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.array, self.state.setdefault(p, {}), group, grad_scale)

    def _update(self, p: Tensor, grad: np.ndarray, state: dict, group: Group, grad_scale: float) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """{"state": {number of the parameter: {name: array or number}}, "param_groups": [settings]}, as in PyTorch.

        Parameters are numbered in the order of the groups. Arrays are the live ones: copy what must not change.
        """
        numbers = {id(p): i for i, p in enumerate(self.parameters())}
        return {
            "state": {numbers[id(p)]: dict(state) for p, state in self.state.items()},
            "param_groups": [
                {**group, "params": [numbers[id(p)] for p in group["params"]]} for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over settings and memory from another optimizer over the same parameters. Arrays are copied.

        Raises ValueError where groups or shapes do not fit; nothing is changed then.
        """
        ours = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in state_dict["param_groups"]]
        if ours != theirs:
            raise ValueError(
                f"this optimizer has groups of {ours} parameters, the state was saved with groups of {theirs}; "
                "build it over the same model"
            )
        params = self.parameters()
        state: dict[Tensor, dict[str, Any]] = {}
        for number, saved in state_dict["state"].items():
            p = params[int(number)]
            for name, value in saved.items():
                if np.ndim(value) and np.shape(value) != p.shape:
                    raise ValueError(
                        f'the saved "{name}" of parameter {number} has shape {np.shape(value)}, expected {p.shape}'
                    )
            state[p] = {
                name: np.array(value, p.array.dtype) if isinstance(value, np.ndarray) else value
                for name, value in saved.items()
            }
        self.state = state
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})

    def parameters(self) -> list[Tensor]:
        """All that this optimizer moves, group by group."""
        return [p for group in self.param_groups for p in group["params"]]

    def __repr__(self) -> str:
        groups = (
            f"  {len(g['params'])} parameters: " + ", ".join(f"{k}={v}" for k, v in g.items() if k != "params")
            for g in self.param_groups
        )
        return f"{type(self).__name__} (\n" + "\n".join(groups) + "\n)"


class SGD(Optimizer):
    """Stochastic gradient descent. `weight_decay` is the classical kind: it adds λ θ to the gradient.

    momentum   μ: how much of the last step is repeated
    dampening  τ: how much of the new gradient is left out of it
    nesterov   look ahead: step by g + μ v
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD: nesterov needs momentum above 0 and dampening 0")
        settings = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, settings | {"weight_decay": weight_decay, "nesterov": nesterov})

    def _update(self, p: Tensor, grad: np.ndarray, state: dict, group: Group, grad_scale: float) -> None:
        if grad_scale != 1.0:
            grad = grad * grad_scale
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * p.array
        if momentum := group["momentum"]:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = np.array(grad)
            else:
                buffer = state["momentum_buffer"]
                buffer *= momentum
                buffer += (1 - group["dampening"]) * grad
            velocity = state["momentum_buffer"]
            grad = grad + momentum * velocity if group["nesterov"] else velocity
        target = p.mutate()
        target -= group["lr"] * grad


class AdamW(Optimizer):
    """Adam with decoupled weight decay, in one pass over memory for all parameters.

    params   parameters or a Module: norms, biases and embeddings do not decay; or groups (dicts), taken as they are
    betas    β₁, β₂: how slowly the means of gradient and squared gradient move
    eps      ε, added to the root
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        entries: Any = list(params.parameters() if isinstance(params, Module) else params)
        if entries and not isinstance(entries[0], dict):
            entries = decay_groups((p[1] if isinstance(p, tuple) else p for p in entries), weight_decay)
        super().__init__(entries, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def _check(self, group: Group) -> None:
        super()._check(group)
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"AdamW: betas must be at least 0 and below 1, got {group['betas']}")

    def step(self, *, grad_scale: float = 1.0) -> None:
        """Move every parameter that has a gradient; gradients count multiplied by `grad_scale` (clipping)."""
        updates = []
        for group in self.param_groups:
            (beta1, beta2), fixed = group["betas"], (group["eps"], group["weight_decay"])
            settings: dict[int, AdamWSettings] = {}  # by the step: parameters mostly have made as many
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state.setdefault(p, {})
                if not state:
                    state.update(step=0, exp_avg=np.zeros_like(p.array), exp_avg_sq=np.zeros_like(p.array))
                step = state["step"] = state["step"] + 1
                if step not in settings:
                    corrections = 1 - beta1**step, 1 - beta2**step
                    settings[step] = AdamWSettings(group["lr"], beta1, beta2, *fixed, *corrections, grad_scale)
                updates.append((p.mutate(), p.grad.array, state["exp_avg"], state["exp_avg_sq"], settings[step]))
        adamw(updates)


def grad_norm(parameters: Iterable[Tensor] | Module) -> float:
    """The length of all gradients taken as one vector: √Σ g², summed in float64 in a fixed order."""
    tensors: Sequence[Tensor] = list(parameters.parameters() if isinstance(parameters, Module) else parameters)
    return math.sqrt(sum_of_squares([p.grad.array for p in tensors if p.grad is not None]))


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Module, max_norm: float, *, error_if_nonfinite: bool = False
) -> float:
    """Shorten all gradients together so that their norm is at most `max_norm`; returns the norm before.

    Raises FloatingPointError where the norm is NaN or infinite and `error_if_nonfinite`; otherwise such gradients
    are scaled like any others. `optimizer.step(grad_scale=…)` clips without a pass of its own.
    """
    tensors = list(
        parameters.parameters()
        if isinstance(parameters, Module)
        else [parameters]
        if isinstance(parameters, Tensor)
        else parameters
    )
    norm = grad_norm(tensors)
    if error_if_nonfinite and not math.isfinite(norm):
        raise FloatingPointError(
            f"the norm of the gradients is {norm}; look for the first bad value with autograd.detect_anomaly()"
        )
    scale = clip_scale(norm, max_norm)
    if scale < 1:
        for p in tensors:
            if p.grad is not None:
                grad = p.grad.mutate()
                grad *= scale
    return norm


def clip_scale(norm: float, max_norm: float) -> float:
    """What to multiply gradients of length `norm` by so that it is at most `max_norm` (PyTorch's formula)."""
    return min(1.0, max_norm / (norm + 1e-6))
