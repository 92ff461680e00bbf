"""Every benchmark in one run: a report, the tables of docs/performance.md, a plot of what grows.

    python -m benchmarks.suite [--quick] [--only NAME ...] [--report FILE]

Each benchmark runs alone, in a process of its own. All that they say goes into
`build/bench/report.json`; a full run then writes the tables between the markers of
`docs/performance.md`, and the plot beside them. With `--quick` each runs at its smallest, and only
that it ends with results is judged, never a time; nothing in docs/ is written.

Exit code: 1 where a benchmark failed, and in a full run where a bar was missed.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict

import orjson

from benchmarks.report import Figure, Section, Series, bar_of, shown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE, PLOT = DOCS / "performance.md", DOCS / "images" / "growth.svg"
REPORT = ROOT / "build" / "bench" / "report.json"
END = "<!-- /bench -->"
TIMEOUT_S = 900.0


class Said(TypedDict):
    """What one benchmark said, or why it failed."""

    command: str
    duration_s: float
    figures: list[Figure]
    series: list[Series]
    failure: NotRequired[str]


def names() -> list[str]:
    """The benchmarks: the modules that say their sizes."""
    here = Path(__file__).parent
    return sorted(path.stem for path in here.glob("*.py") if "\nFULL = " in path.read_text())


def said_by(name: str, *, quick: bool) -> Said:
    """Run one benchmark."""
    arguments = ["-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    shown_command = " ".join(["python", *arguments])
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *arguments, "--json"],
            cwd=ROOT, capture_output=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip
        output, why = done.stdout, done.stderr.decode().strip()
    except subprocess.TimeoutExpired:
        output, why = b"", f"it did not end within {TIMEOUT_S:.0f} s"
    said: Said = {
        "command": shown_command,
        "duration_s": round(time.monotonic() - begun, 1),
        "figures": [],
        "series": [],
    }
    try:
        found = orjson.loads(output)
    except orjson.JSONDecodeError:
        return {**said, "failure": why[-2_000:] or "it said nothing"}
    figures = [
        Figure(**{key: one[key] for key in ("what", "samples", "unit", "at_most", "at_least")})
        for one in found["figures"]
    ]
    series = [Series(**one) for one in found["series"]]
    odd = [
        one.what for one in figures if not (one.samples and all(map(math.isfinite, one.samples)))
    ]
    if odd or not figures:
        return {**said, "failure": f"no sound value of: {', '.join(odd) or 'anything'}"}
    return {**said, "figures": figures, "series": series}


def table(said: Said, at: str) -> str:
    """One benchmark's table, in Markdown."""
    lines = [
        f"`{said['command']}`, Python {platform.python_version()}, {os.cpu_count()} cores, {at}.",
        "",
        "| | median | lowest to highest | bar |",
        "|---|---|---|---|",
    ]
    for one in said["figures"]:
        spread = f"{shown(min(one.samples))} to {shown(max(one.samples))}"
        value = f"{shown(one.value)} {one.unit}".strip()
        lines.append(f"| {one.what} | {value} | {spread} | {bar_of(one)} |")
    return "\n".join(lines)


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with each table between its markers.

    Raises:
        SystemExit: A benchmark has no place on the page.
    """
    for name, content in tables.items():
        begin = f"<!-- bench: {name} -->\n"
        before, found, rest = page.partition(begin)
        if not found:
            raise SystemExit(f"{PAGE.name} has no `{begin.strip()}` … `{END}`")
        page = f"{before}{begin}{content}\n{rest[rest.index(END) :]}"
    return page


def plot(series: Sequence[Series], path: Path) -> None:
    """What grows, on logarithmic axes: a picture for each thing that does."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "growth", "svg.fonttype": "none"}  # the same picture each time
    from matplotlib import pyplot as plt

    by_size: defaultdict[str, list[Series]] = defaultdict(list)
    for one in series:
        by_size[one.per].append(one)
    _, places = plt.subplots(
        math.ceil(len(by_size) / 2), 2, figsize=(10, 3.2 * math.ceil(len(by_size) / 2)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for place in places.flat[len(by_size) :]:
        place.remove()
    for (per, found), place in zip(by_size.items(), places.flat, strict=False):
        for one in found:
            sizes, values = zip(*one.points, strict=True)
            place.plot(sizes, values, marker="o", label=f"{one.what} ({one.unit})")
        place.set(xscale="symlog", yscale="log", xlabel=per)
        heights = [height for one in found for _, height in one.points]
        place.set_ylim(min(heights) / 3, max(heights) * 3)  # what stays as it is looks level
        place.yaxis.set_major_formatter("{x:g}")
        place.yaxis.set_minor_formatter("")
        place.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, metadata={"Date": None})
    plt.close("all")


def main() -> int:
    """Run them all; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="each at its smallest")
    parser.add_argument("--only", nargs="+", choices=names(), metavar="NAME", default=names())
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE")
    given = parser.parse_args()
    begun, at = time.monotonic(), datetime.now(UTC)
    sections: dict[str, Said] = {}
    for name in given.only:
        print(f"{name:<20}", end="", flush=True)
        said = said_by(name, quick=given.quick)
        if given.quick and "failure" in said:  # the machine may have hurried it, as it does tests
            print(f"once more: {said['failure'].splitlines()[-1]}\n{'':<20}", end="", flush=True)
            said = said_by(name, quick=True)
        sections[name] = said
        bars = [one for one in said["figures"] if one.met is not None]
        met = "" if given.quick else f", {sum(map(_is_met, bars))} of {len(bars)} bars met"
        outcome = "FAILED" if "failure" in said else f"{len(said['figures'])} figures{met}"
        print(f"{said['duration_s']:7.1f} s  {outcome}", flush=True)
    failures = {name: said["failure"] for name, said in sections.items() if "failure" in said}
    missed = [
        (name, one) for name, said in sections.items() for one in said["figures"]
        if one.met is False
    ]  # fmt: skip
    report = {
        "at": at.isoformat(timespec="seconds"),
        "quick": given.quick,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "duration_s": round(time.monotonic() - begun, 1),
        "sections": {
            name: {**said, **Section(figures=said["figures"], series=said["series"]).as_json()}
            for name, said in sections.items()
        },
    }
    given.report.parent.mkdir(parents=True, exist_ok=True)
    given.report.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    for name, why in failures.items():
        print(f"\n{name} failed:\n{why}", file=sys.stderr)
    if given.quick:
        return 1 if failures else 0
    for name, one in missed:
        print(f"missed: {name}: {one.what}: {shown(one.value)} {one.unit}, {bar_of(one)}")
    whole = {name: said for name, said in sections.items() if name not in failures}
    day = f"{at:%Y-%m-%d}"
    PAGE.write_text(
        with_tables(PAGE.read_text(), {name: table(said, day) for name, said in whole.items()})
    )
    if whole.keys() == set(names()):
        plot([one for said in whole.values() for one in said["series"]], PLOT)
    print(f"{report['duration_s']:.0f} s; {given.report} has it all")
    return 1 if failures or missed else 0


def _is_met(figure: Figure) -> bool:
    return figure.met is True


if __name__ == "__main__":
    sys.exit(main())
