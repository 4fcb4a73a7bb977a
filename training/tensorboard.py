"""`train.py --tensorboard`: the run's logs once more, as event files for TensorBoard.

    python train.py --tensorboard --out runs/story
    tensorboard --logdir runs

Tags are the split and the name in metrics.jsonl: train/loss, train/lr, train/grad_norm, train/tokens_per_second,
val/loss, val/bits_per_byte, …; samples are texts under `sample`. The files are written by tensorboardX, which needs
neither TensorFlow nor PyTorch.

metrics.jsonl and samples.jsonl are the truth, event files are made from them: whenever a run is opened or goes back to
a checkpoint, those that are there are removed and what the logs hold is written anew. So every step is there once, and
`--tensorboard` can be asked for later. Their clock starts anew, too; TensorBoard's axis "step" is the one to look at.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.errors import SettingsError
from training.metrics import MetricsLog, read_lines

EVENT_FILES = "events.out.tfevents.*"
MISSING = "tensorboardX is not installed"
INSTALL = (
    'python -m pip install tensorboardX, or with all that is needed to look: python -m pip install ".[tensorboard]"'
)


def require_writer() -> None:
    """Raises SettingsError where the package that writes event files is missing."""
    if find_spec("tensorboardX") is None:
        raise SettingsError(f"--tensorboard: {MISSING}; {INSTALL}")


def log_opener(folder: Path, wanted: bool, note: Callable[[str], None]) -> Callable[[Path], MetricsLog]:
    """What opens the logs of a run: plain ones, or such as write event files into `folder`, too.

    wanted   whether that was asked for; a run that has event files goes on with them in any case
    note     told what goes wrong with the logs, and where event files can't go on because the package is missing
    """
    plain = functools.partial(MetricsLog, warn=note)
    has_events = any(folder.glob(EVENT_FILES))
    if not (wanted or has_events):
        return plain
    if not wanted and find_spec("tensorboardX") is None:
        note(f"{MISSING}: the event files for TensorBoard are not continued; {INSTALL}")
        return plain
    require_writer()
    return functools.partial(MirroredLog, warn=note, events=EventFiles(folder))


class EventFiles:
    """The event files of a run: what stands in its `logs`."""

    def __init__(self, folder: Path) -> None:
        self.logs: list[Path] = []
        self._folder = folder
        self._writer: Any = None

    def rewrite(self) -> None:
        """Make them anew from the logs."""
        from tensorboardX import SummaryWriter  # only those who ask for it need to have it

        self.close()
        for file in self._folder.glob(EVENT_FILES):
            file.unlink()
        self._writer = SummaryWriter(str(self._folder))
        for path in self.logs:
            for entry in read_lines(path):
                self.add(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """What stands in one line of a log."""
        step, split = entry["step"], entry.get("split")
        if "text" in entry:
            # A text is read as Markdown: indented, it is shown as it is.
            self._writer.add_text("sample", "\n".join(f"    {line}" for line in entry["text"].splitlines()), step)
        for name, value in entry.items():
            if split and name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class MirroredLog(MetricsLog):
    """A log whose lines, those already there first, also go to event files."""

    def __init__(self, path: Path, warn: Callable[[str], None], events: EventFiles) -> None:
        super().__init__(path, warn)
        self._events = events
        events.logs.append(path)
        events.rewrite()

    def write(self, **entry: Any) -> None:
        super().write(**entry)
        self._events.add(entry)

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._events.rewrite()

    def flush_to_disk(self) -> None:
        super().flush_to_disk()
        self._events.flush()

    def close(self) -> None:
        super().close()
        self._events.close()
