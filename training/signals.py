"""Stopping a run without losing anything.

The first SIGINT (Ctrl-C) or SIGTERM asks the loop to save and leave after the step it is in; a second one ends
the process at once. Exit codes are the shell's: 128 + the signal's number, so 130 and 143.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Which signal asked the run to stop, if one did."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; 0 where none came."""
        return 128 + self.signal_number if self.signal_number is not None else 0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While inside, SIGINT and SIGTERM set the request instead of ending the process; once."""
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
