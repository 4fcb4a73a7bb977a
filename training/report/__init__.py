"""The report: what a run did, on one page that works offline; and several runs side by side.

record.py      a run read from its folder: settings, logs as arrays, samples, facts
facts.py       report.json: what a page shows that no log holds
baselines.py   what a loss is worth: xz and byte n-grams on the same held-out bytes
thinning.py    long series in few points that look the same
charts.py      the charts, by Bokeh
page.py        the page around them;  picture.py: loss.png
comparison.py  several runs on a page
live.py        the page of a run while it trains

python -m training.report runs/default          draw the page of a run anew
python -m training.report runs/*                compare: comparison.html
"""

from training.report.live import Report

__all__ = ["Report"]
