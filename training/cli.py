"""Command lines: from words to a dataclass, with every mistake told in one line.

tyro does the work: flags, types and --help follow from a dataclass. It shows mistakes in boxes of several lines;
here they become a SettingsError, whose message is one.
"""

import contextlib
import io
import re
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import tyro

from training.errors import SettingsError, suggestion

Arguments = TypeVar("Arguments")
# What Python says of a word that is no number, and what a user needs to hear.
PLAINLY = {
    r"invalid literal for int\(\) with base 10: (.*)": r"expected a whole number, got \1",
    r"could not convert string to float: (.*)": r"expected a number, got \1",
}


def parse(kind: type[Arguments], words: Sequence[str], program: str) -> Arguments:
    """The dataclass `kind` filled from the words of a command line; of a flag given twice the last counts.

    `--help` prints and exits. Raises SettingsError for values that don't fit.
    """
    screen = io.StringIO()
    try:
        with contextlib.redirect_stderr(screen):
            return tyro.cli(kind, args=list(words), prog=f"python {program}", use_underscores=True)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        # A box: its heading, then the message, then rules with helpful remarks between them.
        inside = [line.strip("│╭╮╰╯─ \n") for line in screen.getvalue().splitlines()[1:]]
        message = " ".join(inside[: inside.index("") if "" in inside else None])
        for words_of_python, words_for_people in PLAINLY.items():
            message = re.sub(words_of_python, words_for_people, message)
        raise SettingsError(message.removeprefix("Error parsing ").rstrip(".") + "; --help lists all") from None


def checked_flags(words: Sequence[str], known: Collection[str], booleans: Collection[str] = ()) -> list[str]:
    """The words with flags spelled by underscores, and true and false as tyro has them.

    known     the names of all flags, without dashes
    booleans  those among them that take true or false

    Raises SettingsError for any other flag, with the nearest known one.
    """
    flags: list[str] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name not in known and name != "help":
                near = suggestion(name, known, "--")
                raise SettingsError(f"there is no flag --{name}{near or '; --help lists all'}")
            word = f"--{name}{equals}{_boolean(value) if name in booleans else value}"
        elif flags and flags[-1][2:] in booleans:
            word = _boolean(word)
        flags.append(word)
    return flags


def _boolean(value: Any) -> str:
    return str(value).capitalize() if str(value) in ("true", "false") else str(value)
