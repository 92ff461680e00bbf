"""Charts of an installation's month as inline SVG, drawn by classes of the style sheet alone.

Owns the drawing: bars and one area, each with its figures as text for who sees no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from catalogzero.backend.hours import Day

WIDTH, HEIGHT = 300, 100


def tone_of(day: Day) -> str:
    """How a day was: the worst that was reported, or nothing."""
    if day.failing:
        return "fail"
    if day.degraded:
        return "warn"
    return "ok" if day.ok or day.uploads else "miss"


def bars(title: str, days: Sequence[Day], values: Sequence[int], note: str) -> str:
    """One bar a day, in the tone of how the day was; a day of nothing is a stub."""
    top, step = max(*values, 1), WIDTH / len(days)
    drawn = []
    for place, (day, value) in enumerate(zip(days, values, strict=True)):
        height = max(HEIGHT * value / top, 3)
        drawn.append(
            f'<rect class="fill {tone_of(day)}" x="{place * step + 1:.1f}"'
            f' y="{HEIGHT - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}"/>'
        )
    return _figure(title, days, top, "".join(drawn), note)


def area(title: str, days: Sequence[Day], values: Sequence[int], note: str) -> str:
    """A line over the days, filled below."""
    top, step = max(*values, 1), WIDTH / max(len(days) - 1, 1)
    points = " ".join(
        f"{place * step:.1f},{HEIGHT - HEIGHT * value / top:.1f}"
        for place, value in enumerate(values)
    )
    drawn = (
        f'<polygon class="area wait" points="0,{HEIGHT} {points} {WIDTH},{HEIGHT}"/>'
        f'<polyline class="line wait" points="{points}"/>'
    )
    return _figure(title, days, top, drawn, note)


def _figure(title: str, days: Sequence[Day], top: int, drawn: str, note: str) -> str:
    grid = "".join(f'<path class="grid" d="M0 {y}H{WIDTH}"/>' for y in (0, HEIGHT // 2, HEIGHT))
    said = f"{title}: {note}, {days[0].day} to {days[-1].day}"
    return (
        f'<figure class="card pad chart" role="group" aria-label="{escape(said)}">'
        f'<figcaption><h3>{escape(title)}</h3><span class="soft small">{escape(note)}</span>'
        f'</figcaption><div class="plot"><div class="y"><span>{top:,}</span><span>0</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'{grid}{drawn}</svg><div class="x"><span>{days[0].day}</span>'
        f"<span>{days[-1].day} UTC</span></div></div></figure>"
    )
