"""Durations as people write them: 90s, 30min, 2h, 1h30m, 1.5h, 2d."""

import re

from training.errors import SettingsError

UNITS_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "y": 31_557_600}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def seconds(text: str) -> float:
    """What a duration comes to: numbers with units, the largest unit first; s, min (or m), h, d, y.

    Raises SettingsError for anything else, and for nothing at all (0s).
    """
    rest, total, last_unit = text.strip().lower(), 0.0, float("inf")
    while rest:
        part = _PART.match(rest)
        unit = UNITS_SECONDS.get(part[2]) if part else None
        if part is None or unit is None or unit >= last_unit:
            break
        total += float(part[1]) * unit
        rest, last_unit = rest[part.end() :], unit
    if rest or not 0 < total < float("inf"):
        unit_is_missing = re.fullmatch(r"\d+(\.\d+)?", text.strip())
        hint = f": does {text.strip()} mean {text.strip()}min?" if unit_is_missing else ""
        raise SettingsError(f"expected a duration such as 90s, 30min or 1h30m, got {text!r}{hint}")
    return total


def spoken(duration_seconds: float) -> str:
    """A duration in its two largest units, rounded: 45 s, 12 min, 1 h 30 min, 3 d 4 h, 5.5 y."""
    if duration_seconds < 99.5:
        return f"{duration_seconds:.2g} s" if duration_seconds < 9.95 else f"{duration_seconds:.0f} s"
    minutes = round(duration_seconds / 60)
    if minutes < 10:
        whole, rest = divmod(round(duration_seconds), 60)
        return f"{whole} min" + (f" {rest} s" if rest else "")
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    days, hours = divmod(round(duration_seconds / 3600), 24)
    if days < 1000:
        return f"{days} d" + (f" {hours} h" if hours and days < 100 else "")
    return f"{duration_seconds / UNITS_SECONDS['y']:,.1f} y"
