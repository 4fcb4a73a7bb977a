"""Errors that are the user's to mend: one line on stderr, no traceback, exit code 2.

Everything raised here says what was expected, what came and what to do. The rooms below raise ValueError for
arguments that make no sense; `checked` marks the stretches of code where such an argument is a setting of the
user, and turns it into a UserError. Elsewhere a ValueError is a bug, and keeps its traceback.
"""

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Iterable, Iterator

from data import CorpusError

EXIT_USER_ERROR = 2
EXIT_TIME_LIMIT = 3  # saved; more is left to do
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it; SIGTERM: 143


class UserError(Exception):
    """Something the user can mend; the message is the line to show."""


class SettingsError(UserError):
    """A flag, a TOML file or a combination of settings that makes no sense."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run."""


class DivergenceError(UserError):
    """Numbers went wrong, and the settings say to stop, or going on did not help."""


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """A ValueError in here comes from a setting: raise it as a UserError."""
    try:
        yield
    except CorpusError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit code 2."""
    try:
        yield
    except (UserError, CorpusError) as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output has gone (`| head`): nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        message = f"{error.filename or 'input/output'}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message += "; make room there, or choose another folder"
    except MemoryError as error:
        message = f"not enough memory ({error or 'none left'}); a smaller model, batch or context takes less"
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    else:
        return
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def suggestion(name: str, known: Iterable[str], dashes: str = "") -> str:
    """`; did you mean X?`, where a known name is near or is the same in another section; else an empty string."""
    known = list(known)
    last = name.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == last] or difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {dashes}{near[0]}?" if near else ""
