"""The tokenizer from the command line.

    python -m tokenizer train FILES... --vocab-size 8192 --out tokenizer.json
    python -m tokenizer encode --tokenizer tokenizer.json < story.txt > ids.txt
    python -m tokenizer decode --tokenizer tokenizer.json < ids.txt
    python -m tokenizer inspect --tokenizer tokenizer.json story.txt

A tokenizer is a tokenizer.json or its folder; `bytes` names the plain byte tokenizer. "-" is standard input. Exit
code 2 and one line for what the user must mend.
"""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from . import DEFAULT_SPECIAL_TOKENS, PATTERNS, Tokenizer

STDIN = Path("-")
ID = re.compile(rb"-?\d{1,18}")  # what fits into an int64; whether it names a token is seen later
TokenizerPath = Annotated[Path, tyro.conf.arg(metavar="PATH", help="tokenizer.json, its folder, or bytes")]


def train(
    files: Positional[tuple[Path, ...]],
    /,
    out: Path = Path("tokenizer.json"),
    vocab_size: int = 8192,
    pattern: str = "gpt4",
    special_tokens: tuple[str, ...] = DEFAULT_SPECIAL_TOKENS,
    min_count: int = 1,
) -> None:
    """Learn a vocabulary from files and write tokenizer.json.

    Args:
        files: text files, read in blocks; "-" is standard input
        out: where tokenizer.json goes
        vocab_size: number of tokens, the 256 bytes and the special tokens included
        pattern: how text is split: gpt2, gpt4, gpt4o, or a regular expression (files are then read whole)
        special_tokens: tokens that are read as a whole or not at all
        min_count: how often a pair must occur to become a token
    """
    if not files:
        raise ValueError("name at least one file to train on")
    texts: list[Any] = [sys.stdin.buffer if file == STDIN else file for file in files]
    for file in files:
        if file != STDIN:
            file.open("rb").close()  # a missing file is found before the work begins, and so is a missing folder
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {}
        size = None if STDIN in files else sum(file.stat().st_size for file in files)

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or size, amount="")
            bar.update(tasks[what], completed=done, amount=f"{done:,}")

        tokenizer = Tokenizer.train(texts, vocab_size, pattern, special_tokens, min_count, progress)
    if tokenizer.vocab_size < vocab_size:
        print(f"no pair occurs {min_count} times any more: {tokenizer.vocab_size} tokens", file=sys.stderr)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.vocab_size} tokens, hash {tokenizer.hash()[:12]}")


def encode(
    file: Positional[Path] = STDIN,
    /,
    tokenizer: TokenizerPath = Path("tokenizer.json"),
    out: Path | None = None,
    special: Literal["refuse", "allow", "text"] = "refuse",
) -> None:
    """Text to ids: as numbers on standard output, or as an .npy file.

    Args:
        file: the text
        tokenizer: tokenizer.json, its folder, or bytes
        out: write the ids here, as a NumPy array (.npy)
        special: what to do with special tokens in the text: refuse it, allow them, or take them as ordinary text
    """
    policy: dict[str, Any] = {"allowed_special": "all"} if special == "allow" else {}
    if special == "text":
        policy = {"disallowed_special": ()}
    loaded, data = load(tokenizer), read_input(file)
    try:
        ids = loaded.encode(data, **policy)
    except ValueError as error:
        what = str(error).partition(": pass ")[0]
        raise ValueError(f"{what}: pass --special allow to read it as such, or --special text") from None
    if out is not None:
        with out.open("wb") as to:  # NumPy would add .npy to a name without
            np.save(to, ids)
    else:
        write_ids(ids, sys.stdout)


def decode(
    file: Positional[Path] = STDIN,
    /,
    tokenizer: TokenizerPath = Path("tokenizer.json"),
) -> None:
    """Ids to text, byte for byte.

    Args:
        file: ids as numbers separated by white space, or as a NumPy array (.npy)
        tokenizer: tokenizer.json, its folder, or bytes
    """
    data = read_input(file)
    sys.stdout.buffer.write(load(tokenizer).decode_bytes(read_ids(data, file)))


def inspect(
    file: Positional[Path | None] = None,
    /,
    tokenizer: TokenizerPath = Path("tokenizer.json"),
    text: str | None = None,
    longest: int = 20,
    show: int = 2000,
) -> None:
    """What a vocabulary holds, and how it cuts a text.

    Args:
        file: a text to cut; "-" is standard input
        tokenizer: tokenizer.json, its folder, or bytes
        text: a text to cut, given right here
        longest: how many of the longest tokens to list
        show: how many tokens of the text to show in colour
    """
    if file is not None and text is not None:
        raise ValueError("give a file or --text, not both")
    if min(longest, show) < 0:
        raise ValueError(f"--longest and --show count tokens, got {min(longest, show)}")
    loaded = load(tokenizer)
    console = Console()
    describe_vocabulary(console, loaded, longest)
    data = text.encode() if text is not None else read_input(file) if file is not None else None
    if data is not None:
        describe_text(console, loaded, data, show)


# ---- inspect ----


def describe_vocabulary(console: Console, tokenizer: Tokenizer, longest: int) -> None:
    """Size, special tokens, number of tokens by length, the longest tokens."""
    facts = Table.grid(padding=(0, 2))
    patterns = (tokenizer.pattern,) if isinstance(tokenizer.pattern, str) else tokenizer.pattern or ()
    names = {expression: name for name, expression in PATTERNS.items()}
    added = len(tokenizer.vocabulary.added) - len(tokenizer.special_tokens)
    for name, value in {
        "kind": tokenizer.kind,
        "vocabulary": f"{tokenizer.vocab_size:,} tokens, {len(tokenizer.merges):,} merges",
        "pattern": "\n".join(names.get(pattern, pattern) for pattern in patterns) or "none",
        "special tokens": ", ".join(f"{name} {token}" for name, token in tokenizer.special_tokens.items()) or "none",
        "added tokens": f"{added:,}" if added else "none",
        "hash": tokenizer.hash()[:16],
    }.items():
        facts.add_row(Text(name, style="bold"), Text(value))
    console.print(facts)

    tokens = sorted(tokenizer.tokens.values(), key=lambda token: (-len(token), token))
    lengths = Counter(map(len, tokens))
    most = max(lengths.values())
    table = Table(title="Vocabulary by length", title_justify="left", box=None, header_style="bold")
    table.add_column("bytes", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("")
    for length in sorted(lengths):
        bar = Text("█" * max(1, 40 * lengths[length] // most), style="cyan")
        table.add_row(str(length), f"{lengths[length]:,}", bar)
    console.print(table)
    console.print(Text("Longest tokens", style="italic"))
    shown = [Text(visible(token), style=STYLES[i % 2]) for i, token in enumerate(tokens[:longest])]
    console.print(Text("  ").join(shown))


def describe_text(console: Console, tokenizer: Tokenizer, data: bytes, show: int) -> None:
    """Compression, and the text with its tokens in alternating colours; with bars between them where there are none."""
    ids = tokenizer.encode(data, allowed_special="all")
    used = len(np.unique(ids))
    ratio = f", {len(data) / len(ids):.3f} bytes per token" if len(ids) else ""
    console.print(Text("Text", style="italic"))
    console.print(f"{len(data):,} bytes, {len(ids):,} tokens{ratio}, {used:,} different tokens", highlight=False)
    special = set(tokenizer.special_tokens.values())
    bar = "" if console.is_terminal and console.color_system and not console.no_color else "│"
    coloured = Text()
    for i, token in enumerate(ids[:show].tolist()):
        style = "bold white on red" if token in special else STYLES[i % 2]
        shown = visible(tokenizer.token_bytes(token))
        coloured.append(shown, style=style)
        coloured.append(bar)
        coloured.append("\n" * shown.count("⏎"))
    if len(ids) > show:
        coloured.append(f" … {len(ids) - show:,} more", style="dim")
    console.print(coloured)


STYLES = ("black on bright_cyan", "black on bright_yellow")


def visible(token: bytes) -> str:
    """A token in visible characters: line breaks, tabs and bytes that are no whole character as symbols."""
    text = token.decode("utf-8", "backslashreplace")
    named = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
    return "".join(named.get(char) or (char if char.isprintable() else f"\\u{ord(char):04x}") for char in text)


# ---- the edges ----


def load(path: Path) -> Tokenizer:
    """The tokenizer at `path`, or the byte tokenizer."""
    return Tokenizer.bytes() if path == Path("bytes") and not path.exists() else Tokenizer.load(path)


def read_input(path: Path) -> bytes:
    """All of a file, or of standard input."""
    return sys.stdin.buffer.read() if path == STDIN else path.read_bytes()


def read_ids(data: bytes, where: Path) -> np.ndarray:
    """Ids from numbers separated by white space, or from the content of an .npy file."""
    if data.startswith(np.lib.format.MAGIC_PREFIX):
        try:
            return np.load(io.BytesIO(data))
        except (ValueError, EOFError, OverflowError, MemoryError):
            raise ValueError(f"{where}: not a whole NumPy array of numbers") from None
    words = data.split()
    wrong = next((word for word in words if not ID.fullmatch(word)), None)
    if wrong is not None:
        raise ValueError(f"{where}: {wrong[:40]!r} is not an id: expected whole numbers")
    return np.array([int(word) for word in words], dtype=np.int64)


def write_ids(ids: np.ndarray, file: TextIO) -> None:
    """Ids as numbers, in lines of twenty."""
    for i in range(0, len(ids), 20):
        file.write(" ".join(map(str, ids[i:i + 20].tolist())) + "\n")


def main(args: list[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 2 for what the user must mend, 130 after Ctrl-C."""
    commands: dict[str, Callable[..., None]] = {"train": train, "encode": encode, "decode": decode, "inspect": inspect}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, args=args, prog="python -m tokenizer")
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
