"""What a benchmark says: figures with their samples and bars, and what grows with a size.

A benchmark is a module with `measure(**sizes) -> Section`, and its sizes as `FULL` and `QUICK`;
`main` makes a command of it. Medians stand for the samples, which are kept beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured thing.

    Attributes:
        what: What was measured, as a reader of the table knows it.
        samples: One value for each round.
        unit: Of the values; `x` of a ratio, which is taken round by round.
        at_most: The bar of what is better when it is less.
        at_least: The bar of what is better when it is more.
    """

    what: str
    samples: Sequence[float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bar; None without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What something costs at growing sizes.

    Attributes:
        what: What was measured.
        per: What grows: rows, files, queued uploads, handlers, schedules, installations.
        unit: Of the values.
        points: Size and value, in the order of the sizes.
    """

    what: str
    per: str
    unit: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """All that one benchmark says."""

    figures: Sequence[Figure]
    series: Sequence[Series] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For a report that a program reads; medians and bars are worked out."""
        figures = [{**asdict(one), "value": one.value, "met": one.met} for one in self.figures]
        return {"figures": figures, "series": [asdict(one) for one in self.series]}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours by theirs, round by round."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def shown(value: float) -> str:
    """A value with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if value >= 1 else 3}f}"


def bar_of(figure: Figure) -> str:
    """A figure's bar and whether it is met, in words."""
    if figure.met is None:
        return ""
    bar = f"≤ {figure.at_most:g}" if figure.at_most is not None else f"≥ {figure.at_least:g}"
    return f"{bar}: {'met' if figure.met else 'missed'}"


def run(module: ModuleType, **sizes: Any) -> Section:
    """What a benchmark says at some sizes."""
    measure: Callable[..., Section | Awaitable[Section]] = module.measure
    made = measure(**sizes)
    if not inspect.isawaitable(made):
        return made

    async def awaited() -> Section:
        return await made

    return asyncio.run(awaited())


def main(name: str) -> int:
    """Run the benchmark that is the module of that name, as a command; 1 where a bar is missed."""
    module = sys.modules[name]
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smallest sizes")
    parser.add_argument("--json", action="store_true", help="for a program")
    for size, value in module.FULL.items():
        parser.add_argument(f"--{size.replace('_', '-')}", type=type(value), metavar=str(value))
    given = vars(parser.parse_args())
    quick, as_json = given.pop("quick"), given.pop("json")
    sizes = {**(module.QUICK if quick else module.FULL)}
    sizes |= {size: value for size, value in given.items() if value is not None}
    section = run(module, **sizes)
    if as_json:
        print(orjson.dumps(section.as_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        for one in section.figures:
            spread = f"{shown(min(one.samples))} to {shown(max(one.samples))}"
            print(f"{one.what:<64} {shown(one.value):>9} {one.unit:<6} ({spread}) {bar_of(one)}")
        for grows in section.series:
            points = ", ".join(f"{size:,.0f}: {shown(value)}" for size, value in grows.points)
            print(f"{grows.what}, {grows.unit} by {grows.per}: {points}")
    return 1 if any(one.met is False for one in section.figures) else 0
