"""`train.py --tensorboard`: the run's logs once more, as event files for TensorBoard.

    python train.py --tensorboard --out runs/story
    tensorboard --logdir runs

Tags are the split and the name in metrics.jsonl: train/loss, train/lr, train/grad_norm, train/tokens_per_second,
val/loss, val/bits_per_byte, …; samples are texts under `sample`. The files are written by tensorboardX, which needs
neither TensorFlow nor PyTorch.

metrics.jsonl and samples.jsonl are the truth, event files are made from them: whenever a run is opened, those that are
there are removed and what the logs hold is written anew. So a resumed run has every step once, and `--tensorboard` can
be asked for later. Their clock starts anew, too; TensorBoard's axis "step" is the one to look at.
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
    note     told where a run's event files can't go on, because the package is missing
    """
    old_files = list(folder.glob(EVENT_FILES))
    if not (wanted or old_files):
        return MetricsLog
    if not wanted and find_spec("tensorboardX") is None:
        note(f"{MISSING}: the event files for TensorBoard are not continued; {INSTALL}")
        return MetricsLog
    require_writer()
    from tensorboardX import SummaryWriter  # only those who ask for it need to have it

    for file in old_files:
        file.unlink()
    return functools.partial(MirroredLog, writer=SummaryWriter(str(folder)))


class MirroredLog(MetricsLog):
    """A log whose lines, those already there first, also go to a writer of event files."""

    def __init__(self, path: Path, writer: Any) -> None:
        self._writer = writer
        for entry in read_lines(path):
            self._mirror(entry)
        super().__init__(path)

    def write(self, **entry: Any) -> None:
        super().write(**entry)
        self._mirror(entry)

    def flush_to_disk(self) -> None:
        super().flush_to_disk()
        self._writer.flush()

    def close(self) -> None:
        super().close()
        self._writer.close()

    def _mirror(self, entry: dict[str, Any]) -> None:
        step, split = entry["step"], entry.get("split")
        if "text" in entry:
            # A text is read as Markdown: indented, it is shown as it is.
            self._writer.add_text("sample", "\n".join(f"    {line}" for line in entry["text"].splitlines()), step)
        for name, value in entry.items():
            if split and name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{split}/{name}", value, step)
