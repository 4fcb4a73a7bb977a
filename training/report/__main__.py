"""Draw pages from run folders.

    python -m training.report runs/default                       its report.html and loss.png anew
    python -m training.report runs/* [--out comparison.html]     several runs side by side

Exit codes: 0 done; 2 something to mend, told in one line.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data.files import write_whole
from training.cli import checked_flags, parse
from training.errors import SettingsError, UserError, one_line_errors
from training.report.facts import with_facts
from training.report.record import read_record

PROGRAM = "-m training.report"


@dataclass(frozen=True)
class Arguments:
    """Draw the page of a run anew, or compare several runs on one page."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders; one: its own page, several: a comparison."""
    out: str = ""
    """The file to write; empty: report.html in the run folder, or comparison.html."""


def main() -> None:
    with one_line_errors("training.report"):
        words = checked_flags(sys.argv[1:], ["out"])
        print(f"report      {draw(parse(Arguments, words, PROGRAM))}")


def draw(arguments: Arguments) -> Path:
    """Write the page that was asked for; returns where it is. Raises UserError for what holds no run."""
    folders = list({Path(run).resolve(): Path(run) for run in arguments.runs}.values())
    if not folders:
        raise SettingsError("expected run folders, got none; python -m training.report runs/default, or runs/*")

    records = [with_facts(record) for record in [read_record(folder) for folder in folders]]

    from training.report.comparison import comparison_page  # Bokeh takes a second to import: mistakes are told before
    from training.report.page import run_page, write_report

    if len(records) == 1 and not arguments.out:
        return write_report(records[0])
    page = Path(arguments.out or "comparison.html")
    if page.is_dir():
        raise UserError(f"--out must be a file, got the folder {page}; name one in it, as {page / 'comparison.html'}")
    write_whole(page, run_page(records[0]) if len(records) == 1 else comparison_page(records))
    return page


if __name__ == "__main__":
    main()
