"""Fewer points, the same picture: long series for a page.

A line over N points that is drawn W pixels wide shows, in each column of pixels, only where it enters, where it
leaves, and how far up and down it goes (Jugel et al. 2014, "M4: a visualization-oriented time series data
aggregation"). So of each stretch four points are kept: the first, the last, the lowest and the highest.
"""

import itertools
import math

import numpy as np

MOST_POINTS = 2000


def thin(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Rising indices of at most `most` of the points (N,), `most` ≥ 4: all where they are few enough.

    First and last are among them, and the lowest and highest of all; NaN is neither low nor high.
    """
    n = len(values)
    if n <= most:
        return np.arange(n)
    edges = np.linspace(0, n, most // 4 + 1).astype(int)
    kept = []
    for start, end in itertools.pairwise(edges):
        stretch = values[start:end]
        low = np.where(np.isnan(stretch), np.inf, stretch).argmin()
        high = np.where(np.isnan(stretch), -np.inf, stretch).argmax()
        kept += [start, start + low, start + high, end - 1]
    return np.unique(kept)


def smooth(values: np.ndarray, share: float = 0.01) -> np.ndarray:
    """An exponential average over about `share` of the series (N,), freed of its bias towards the start.

    What is not finite is passed over; the average stands still meanwhile. NaN before the first finite value.
    """
    keep = 1 - 1 / max(1.0, share * len(values))
    average = weight = 0.0
    out = np.full(len(values), np.nan)
    for i, value in enumerate(values.tolist()):
        if math.isfinite(value):
            average = keep * average + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        if weight:
            out[i] = average / weight
    return out


def thin_list(items: list, most: int) -> list:
    """At most `most` ≥ 2 of a list at even distances, first and last among them."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
