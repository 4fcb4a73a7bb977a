"""The built-in corpus: English prose that ships with every CPython, so nothing has to be downloaded.

Two sources: `pydoc_data.topics` (the language reference behind `help()`) and the docstrings of the standard
library, read from its source files with `ast`; no module is imported for it. Test packages are left out.

One document per topic and per module, ordered by a hash of its name. Alphabetical order would put every
module after "u" into the validation split, which takes the end of the corpus; hashed, both splits hold a
fair mixture, and the order is the same everywhere. The text itself changes a little with Python's version.
"""

import ast
import functools
import hashlib
import pydoc_data.topics
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


@functools.cache
def builtin_documents() -> tuple[str, ...]:
    """Every document of the built-in corpus, about 2.2 MB of text in all."""
    named = {f"topic {name}": text for name, text in pydoc_data.topics.topics.items()}
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()  # inherited and copied docstrings count once
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if not LEFT_OUT.intersection(relative.parts):
            new = [text for text in dict.fromkeys(_docstrings(path)) if text not in seen]
            seen.update(new)
            named[relative.as_posix()] = "\n\n".join(new)
    order = sorted(named, key=lambda name: hashlib.sha256(name.encode()).digest())
    return tuple(named[name].strip() + "\n" for name in order if named[name].strip())


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a source file in the order in which they stand; none where it does not parse."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own invalid escapes
            tree = ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError, OSError):
        return
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield text
            pending.extend(reversed(node.body))
