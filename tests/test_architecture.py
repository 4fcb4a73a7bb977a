"""The house: which room may import from which, and what every public name owes its reader."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["autograd", "nn", "tokenizer", "model", "data", "training"]


def modules():
    for room in ROOMS:
        package = importlib.import_module(room)
        yield package
        for info in pkgutil.walk_packages(package.__path__, f"{room}."):
            if not info.name.endswith("__main__"):
                yield importlib.import_module(info.name)


def test_imports_run_one_way():
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_kernels_and_the_tokenizer_compile():
    """Numba stays behind two doors: everything else sees functions of arrays."""
    for path in [*ROOT.glob("*.py"), *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]:
        if "kernels" not in path.parts and "tokenizer" not in path.parts:
            assert "import numba" not in path.read_text() and "from numba" not in path.read_text(), path


@pytest.mark.parametrize("module", list(modules()), ids=lambda m: m.__name__)
def test_every_module_and_public_name_is_explained(module):
    silent = [] if module.__doc__ else [module.__name__]
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if (inspect.isclass(value) or callable(value)) and not inspect.getdoc(value):
            silent.append(f"{module.__name__}.{name}")
    assert not silent, f"without a docstring: {silent}"


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_method_is_explained(room):
    package = importlib.import_module(room)
    silent = [
        f"{name}.{method}"
        for name in getattr(package, "__all__", ())
        if inspect.isclass(value := getattr(package, name))
        for method in vars(value)
        if not method.startswith("_")
        and inspect.isroutine(function := getattr(value, method))
        and not inspect.getdoc(function)
    ]
    assert not silent, f"without a docstring: {silent}"
