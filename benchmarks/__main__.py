"""`python -m benchmarks NAME [arguments]` runs `main` of benchmarks/NAME.py; without a name, lists what there is."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> int:
    """Hand the command line over to the benchmark it names."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted(module.name for module in modules if not module.name.startswith("_"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python -m benchmarks NAME, one of: {', '.join(names)}", file=sys.stderr)
        return 2
    name = sys.argv.pop(1)
    return importlib.import_module(f"benchmarks.{name}").main() or 0


if __name__ == "__main__":
    sys.exit(main())
