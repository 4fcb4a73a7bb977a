"""Modules: a tree of objects that own parameters.

A `Module` is an ordinary Python object with a `forward` method. Whatever is assigned to it as an attribute is
part of it: a `Parameter` is something to learn, a `Module` is a child, a buffer is a constant that belongs to the
model (a mask, a table). Nothing is registered behind the scenes; to list the parameters is to look at the
attributes, in the order in which they were first assigned.

    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(np.ones(3, np.float32))
        def forward(self, x):
            return x * self.weight

Names and semantics are PyTorch's. Deliberate differences: `state_dict` holds NumPy arrays (read-only views of the
live memory, ready for a file), and `load_state_dict` is all or nothing: it looks at every name and shape before it
writes the first number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from autograd import Tensor
from autograd.kernels.together import postponed
from autograd.tensor import DEVICES, check_device

__all__ = ["Module", "ModuleDict", "ModuleList", "Parameter", "Sequential"]


class Parameter(Tensor):
    """A tensor that a module learns. It requires a gradient unless told otherwise.

    data   array, list or Tensor; copied; lists of floats become float32
    decay  whether weight decay should pull it towards 0. Layers say False for norms, biases and embeddings, whose
           size is not what overfits; see `nn.optim.decay_groups`.
    """

    __slots__ = ("decay",)

    def __init__(self, data: Any, requires_grad: bool = True, *, decay: bool = True) -> None:
        super().__init__(data.array if isinstance(data, Tensor) else data, requires_grad=requires_grad)
        self.decay = decay

    def __deepcopy__(self, memo: dict) -> Parameter:
        copy: Any = super().__deepcopy__(memo)
        copy.decay = self.decay
        return copy

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class HookHandle:
    """What `register_forward_hook` returns: `remove()` takes the hook away again."""

    def __init__(self, hooks: list[Callable], hook: Callable) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        """Take the hook away. Doing it twice is harmless."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


class Module:
    """Base of all layers and models. Subclasses define `forward`; calling the module runs it between its hooks."""

    training: bool = True
    _buffers: dict[str, bool]  # name → is it part of the state_dict
    _forward_hooks: list[Callable] | None = None
    _forward_pre_hooks: list[Callable] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes. Subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(); define what it computes")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with postponed:  # kernels may wait until somebody looks at a result, or this ends
            for hook in self._forward_pre_hooks or ():
                replacement = hook(self, args)
                if replacement is not None:
                    args = replacement if isinstance(replacement, tuple) else (replacement,)
            out = self.forward(*args, **kwargs)
            for hook in self._forward_hooks or ():
                replacement = hook(self, args, out)
                if replacement is not None:
                    out = replacement
            return out

    # The tree

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) for each direct child."""
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Each direct child."""
        for _, child in self.named_children():
            yield child

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) for this module, named `prefix`, and everything below; shared modules once."""
        seen: set[int] = set()
        for name, module in self._walk(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def modules(self) -> Iterator[Module]:
        """This module and everything below it; shared modules once."""
        for _, module in self.named_modules():
            yield module

    def _walk(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def _named_tensors(self, prefix: str, recurse: bool) -> Iterator[tuple[str, Tensor, bool]]:
        """(dotted name, tensor, is it saved) of each parameter and buffer, shared ones as often as they appear."""
        for path, module in self._walk(prefix) if recurse else [(prefix, self)]:
            buffers = module.__dict__.get("_buffers", {})
            for name, value in module.__dict__.items():
                if isinstance(value, Parameter) or (name in buffers and value is not None):
                    yield f"{path}.{name}" if path else name, value, buffers.get(name, True)

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), this module's own first; a shared parameter under its first name only."""
        seen: set[int] = set()
        for name, value, _ in self._named_tensors(prefix, recurse):
            if isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """What there is to learn; a shared parameter once."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of the constants that belong to the model."""
        for name, value, _ in self._named_tensors(prefix, recurse):
            if not isinstance(value, Parameter):
                yield name, value

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The constants that belong to the model."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    # What belongs to it

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Keep a constant as `self.<name>`: converted with the model, and saved with it where `persistent`."""
        self._check_name(name)
        if tensor is not None and not isinstance(tensor, Tensor):
            tensor = Tensor(tensor)
        self.__dict__.setdefault("_buffers", {})[name] = persistent
        setattr(self, name, tensor)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Keep a parameter (or None, to say that there is none) as `self.<name>`."""
        self._check_name(name)
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Keep a child as `self.<name>`; for names that are made by a program."""
        self._check_name(name)
        setattr(self, name, module)

    register_module = add_module

    def _check_name(self, name: str) -> None:
        if not name or "." in name:
            raise KeyError(f'a name within a module must be non-empty and free of ".", got "{name}"')
        if name not in self.__dict__ and hasattr(self, name):
            raise KeyError(f'"{name}" is already an attribute of {type(self).__name__}; choose another name')

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name: `model.get_submodule("blocks.0.attention")`."""
        module = self
        for name in filter(None, target.split(".")):
            child = module.__dict__.get(name)
            if not isinstance(child, Module):
                raise AttributeError(
                    f'{type(module).__name__} has no child "{name}" (in "{target}"); '
                    f"it has: {', '.join(n for n, _ in module.named_children()) or 'none'}"
                )
            module = child
        return module

    # State

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Every parameter and persistent buffer by dotted name, as read-only views of the live arrays.

        The views show later changes; copy what must stay as it is. A shared parameter appears under each name.
        """
        state = {}
        for name, value, saved in self._named_tensors(prefix.rstrip("."), True):
            if saved:
                view = value.array.view()
                view.flags.writeable = False
                state[name] = view
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Copy arrays (or Tensors) into the parameters and buffers of the same name, casting to their dtype.

        Nothing is written unless everything fits. Returns (missing names, unexpected names), both empty where
        `strict`. Raises RuntimeError that lists missing and unexpected names (if strict) and wrong shapes (always).
        """
        own = {name: value for name, value, saved in self._named_tensors("", True) if saved}
        incoming = {k: v.array if isinstance(v, Tensor) else np.asarray(v) for k, v in state_dict.items()}
        missing = [name for name in own if name not in incoming]
        unexpected = [name for name in incoming if name not in own]
        problems = [
            f"{name} has shape {incoming[name].shape}, expected {value.shape}"
            for name, value in own.items()
            if name in incoming and incoming[name].shape != value.shape
        ]
        if strict and missing:
            problems.append(f"missing: {_listing(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected: {_listing(unexpected)}")
        if problems:
            raise RuntimeError(
                f"this state does not fit {type(self).__name__}: {'; '.join(problems)}. "
                "Expected the names and shapes of the model it is loaded into"
                + ("" if strict or not (missing or unexpected) else " (names are free with strict=False)")
            )
        for name, value in own.items():
            if name in incoming:
                value.mutate()[...] = incoming[name]
        return missing, unexpected

    # Switches

    def train(self, mode: bool = True) -> Self:
        """Put this module and everything below in training mode (dropout drops), or out of it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Leave training mode: dropout passes everything."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with `set_to_none=False` fill them with zeros and keep their memory."""
        for parameter in self.parameters():
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.mutate()[...] = 0

    def to(self, dtype: Any) -> Self:
        """Convert every floating-point parameter and buffer, in place: `model.to(np.float64)`. Drops gradients.

        `model.to("cpu")`, as programs for PyTorch say, changes nothing; ValueError for any other device.
        """
        if isinstance(dtype, str) and dtype.partition(":")[0] in DEVICES:
            check_device(dtype)
            return self
        for _, value, _ in self._named_tensors("", True):
            if value.array.dtype.kind == "f" and value.array.dtype != dtype:
                Tensor.__init__(value, value.array, value.requires_grad, dtype)
        return self

    def float(self) -> Self:
        """Convert to float32."""
        return self.to(np.float32)

    def double(self) -> Self:
        """Convert to float64."""
        return self.to(np.float64)

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call `function` on everything below, then on this module; the usual way to initialise."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # Hooks

    @property
    def has_hooks(self) -> bool:
        """Whether any forward hook is registered here."""
        return bool(self._forward_pre_hooks or self._forward_hooks)

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple], Any]) -> HookHandle:
        """Run `hook(module, args)` before each forward; what it returns, if anything, replaces the arguments."""
        if self._forward_pre_hooks is None:
            self._forward_pre_hooks = []
        self._forward_pre_hooks.append(hook)
        return HookHandle(self._forward_pre_hooks, hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple, Any], Any]) -> HookHandle:
        """Run `hook(module, args, out)` after each forward; what it returns, if anything, replaces the output."""
        if self._forward_hooks is None:
            self._forward_hooks = []
        self._forward_hooks.append(hook)
        return HookHandle(self._forward_hooks, hook)

    # How it looks

    def extra_repr(self) -> str:
        """What to show between the parentheses; subclasses override it."""
        return ""

    def __repr__(self) -> str:
        children = self._children_repr()
        extra = self.extra_repr()
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = ([extra] if extra else []) + children
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


    def _children_repr(self) -> list[str]:
        return [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]


def _listing(names: list[str], at_most: int = 8) -> str:
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown}, … and {len(names) - at_most} more"


class ModuleList(Module):
    """A list of children, named by their index."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def _children_repr(self) -> list[str]:
        """Neighbours that look the same are shown once: (0-11): 12 x Block(...)."""
        lines, start = [], 0
        for text, run in itertools.groupby(repr(child) for child in self.children()):
            count = len(list(run))
            label = f"({start})" if count == 1 else f"({start}-{start + count - 1})"
            text = text if count == 1 else f"{count} x {text}"
            lines.append(f"{label}: {text}".replace("\n", "\n  "))
            start += count
        return lines

    def append(self, module: Module) -> Self:
        """Add one at the end."""
        setattr(self, str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add several at the end."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int | slice) -> Any:
        modules = list(self.children())
        return type(self)(modules[index]) if isinstance(index, slice) else modules[index]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, str(range(len(self))[index]), module)


class ModuleDict(Module):
    """Children by name."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add or replace several."""
        for name, module in modules.items():
            self[name] = module

    def keys(self) -> list[str]:
        """The names, in order of assignment."""
        return [name for name, _ in self.named_children()]

    def values(self) -> list[Module]:
        """The modules, in order of assignment."""
        return list(self.children())

    def items(self) -> list[tuple[str, Module]]:
        """(name, module) pairs, in order of assignment."""
        return list(self.named_children())

    def __getitem__(self, name: str) -> Module:
        module = self.__dict__.get(name)
        if not isinstance(module, Module):
            raise KeyError(name)
        return module

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __len__(self) -> int:
        return len(self.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()


class Sequential(ModuleList):
    """Modules run one after the other: `Sequential(a, b)(x)` is `b(a(x))`."""

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            super().__init__()
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            super().__init__(modules)  # type: ignore[arg-type]

    _children_repr = Module._children_repr  # its children may have names

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x

    def __getitem__(self, index: int | slice) -> Any:
        modules = list(self.children())
        return Sequential(*modules[index]) if isinstance(index, slice) else modules[index]
