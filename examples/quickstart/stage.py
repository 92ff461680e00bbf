"""What the demo shows: its steps with their times, what each found, and report.json.

Owns the screen and the report; it starts nothing and decides nothing but whether every step held.

Layer: edge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax

MOVING = (TextColumn("     "), SpinnerColumn(), TimeElapsedColumn())


class Stage:
    """The screen and the report of one run."""

    def __init__(self, steps: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.facts: dict[str, Any] = {}
        self._times: list[dict[str, Any]] = []
        self._steps = steps
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step: its title while it works, its time when it held."""
        number = len(self._times) + 1
        began = time.monotonic()
        self.console.print(f"\n[bold cyan]{number:>2}/{self._steps}[/] [bold]{title}[/]")
        record: dict[str, Any] = {"step": title, "held": False}
        self._times.append(record)
        try:
            still = not self.console.is_terminal
            with Progress(*MOVING, console=self.console, transient=True, disable=still) as progress:
                progress.add_task("working")
                yield
            record["held"] = True
        finally:
            record["seconds"] = round(time.monotonic() - began, 2)
        self.console.print(f"      [green]held[/] after {record['seconds']:.1f} s")

    def show(self, text: str) -> None:
        """A line below the step's title."""
        self.console.print(f"      {text}")

    def fact(self, name: str, value: Any, shown: str | None = None) -> None:
        """A figure of the report, `name` or `section.name`; `shown` is its line on the screen."""
        section, _, key = name.rpartition(".")
        (self.facts.setdefault(section, {}) if section else self.facts)[key] = value
        if shown:
            self.show(shown)

    def code(self, path: Path) -> None:
        """A file, as its author sees it."""
        self.console.print(
            Syntax(
                path.read_text(),
                "python",
                line_numbers=True,
                code_width=100,
                background_color="default",
            )
        )

    def table(self, title: str, rows: dict[str, Any]) -> None:
        """Names and values, a line each, below their title."""
        self.show(f"{title}:")
        self.rows(rows)

    def rows(self, rows: dict[str, Any]) -> None:
        """Names and values, a line each."""
        width = max(map(len, rows))
        for name, value in rows.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            self.show(f"{name:<{width}}  {escape(shown)}")

    def write(self, path: Path) -> None:
        """Write report.json: the steps, whether all held, and every figure."""
        report = {
            "held": len(self._times) == self._steps and all(s["held"] for s in self._times),
            "seconds": round(time.monotonic() - self._began, 1),
            "steps": self._times,
            **self.facts,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
