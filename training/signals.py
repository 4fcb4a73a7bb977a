"""Stopping a run without losing anything.

The first SIGINT (Ctrl-C), SIGTERM or SIGHUP (a terminal that closes) asks the loop to save and leave after the step it
is in; whichever comes second ends the process at once, by the system's own hand. A time limit asks in the same way.

Exit codes are the shell's, 128 + the signal's number: 130, 143, 129. That of a time limit is EXIT_TIME_LIMIT.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from training.errors import EXIT_TIME_LIMIT

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopRequest:
    """Whether the run has been asked to stop, and by what. Once true, it stays so."""

    signal_number: int | None = None

    def __init__(self, deadline: float = math.inf) -> None:
        """`deadline`: when to stop, on the clock of time.monotonic()."""
        self.deadline = deadline

    def __bool__(self) -> bool:
        return self.signal_number is not None or time.monotonic() >= self.deadline

    @property
    def reason(self) -> str:
        """In a word or two."""
        return "time limit" if self.signal_number is None else signal.Signals(self.signal_number).name

    @property
    def exit_code(self) -> int:
        """What a process that was asked to stop exits with; 0 where it was not."""
        if self.signal_number is not None:
            return 128 + self.signal_number
        return EXIT_TIME_LIMIT if self else 0


@contextlib.contextmanager
def stop_on_signals(deadline: float = math.inf) -> Iterator[StopRequest]:
    """While inside, the first signal sets the request instead of ending the process.

    A signal that is ignored (nohup, a job in the background of a script) stays ignored.
    """
    request = StopRequest(deadline)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        for each in caught:
            signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # not print, which the signal may have interrupted
            if os.isatty(1):
                os.write(1, b"\x1b[?25h\r\x1b[K")  # shows the cursor: a second signal leaves no time for it
            name = signal.Signals(number).name
            os.write(2, f"{name}: saving after this step; once more ends the run at once\n".encode())

    for number in caught:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number in caught:
            signal.signal(number, before[number] or signal.SIG_DFL)
