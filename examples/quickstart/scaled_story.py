"""The scaled demo's story: several of each, one of each killed half-way, and every count exact.

Owns the order of the steps and what must be true after each.

Layer: edge.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from examples.quickstart import flights
from examples.quickstart.processes import DemoError, Processes
from examples.quickstart.scaled_site import INSTANCES, NATS, SERVICES, ScaledSite
from examples.quickstart.stage import Stage

SCALED_STEPS = 10
PARTS, LEAD_S = 24, 3.0
"""How many parts the flights are cut into, and how long ahead the first job is due."""
COUNT_EVERY_S, UPLOAD_EVERY_S = 0.5, 0.75
"""How the jobs of each part follow those before: a little more counts than there are places for."""
FRESH_S = 1.2
"""A count that began so lately is not about to end; each waits for 1.5 s."""
KINDS = ("once", "again")
OPEN = ("running", "retry", "queued")


@dataclass(frozen=True)
class Note:
    """What a run of the census noted: `what` is began or ended, `kind` one of `KINDS`."""

    at: float
    instance: str
    what: str
    kind: str
    part: str
    rows: int = 0
    distance: int = 0


class ScaledStory:
    """One run of the scaled demo in one folder; `undo` is closed once no process is left."""

    def __init__(self, processes: Processes, stage: Stage, folder: Path, undo: ExitStack) -> None:
        self.processes = processes
        self.stage = stage
        self.folder = folder
        self.undo = undo
        self.site = ScaledSite(processes, folder / "site")
        self.parts: list[str] = []
        self.killed: list[str] = []
        self.by_hand: list[str] = []

    def play(self) -> None:
        """The whole way."""
        with self.stage.step("Find NATS and PostgreSQL, and make a database of the demo's own"):
            self.site.open(self.undo)
            self.stage.fact("scaled.database", self.site.database.rpartition("/")[2])
            self.stage.show(f"calls go through {NATS}, all that is stored into {self.database}")
        self.prepare()
        with self.stage.step(f"Start {len(SERVICES)} processes, two or three of each kind"):
            self.site.start_all()
            self.stage.fact("scaled.processes", SERVICES, ", ".join(SERVICES))
        self.schedule()
        self.kill()
        self.go_on()
        self.recover()
        self.repeat()
        self.compare()

    @property
    def database(self) -> str:
        """The name of the demo's own database."""
        return str(self.stage.facts["scaled"]["database"])

    @property
    def running_at(self) -> str:
        """Where to look while everything is left running."""
        urls = " and ".join(one.url for one in self.site.schedulers)
        return f"schedulers {urls}, database {self.database}"

    def prepare(self) -> None:
        """The client's flights, an independent count of them, and the parts."""
        with self.stage.step(f"Fetch the flights of 2013 from New York, and cut them into {PARTS}"):
            downloads = self.folder.parent / "downloads"
            raw = flights.fetch(self.processes, downloads, self.folder / "raw")
            self.truth = flights.count(raw)
            self.parts = cut(raw, self.site.data)
            self.stage.fact("source.rows", self.truth.rows)
            self.stage.fact("source.distance_sum", self.truth.distance)
            self.stage.show(f"{self.truth.rows:,} rows in {len(self.parts)} files")

    def schedule(self) -> None:
        """Three jobs for each part, at one scheduler and the other in turn."""
        count = 3 * PARTS
        with self.stage.step(f"Schedule {count} jobs: count each part twice, and upload it"):
            first = datetime.now(UTC) + timedelta(seconds=LEAD_S)
            for number, part in enumerate(self.parts):
                at = first + timedelta(seconds=number * COUNT_EVERY_S)
                scheduler = self.site.schedulers[number % 2]
                for kind in KINDS:
                    scheduler.add(f"{kind}-{number}", at, self.counting(kind, part))
                at = first + timedelta(seconds=number * UPLOAD_EVERY_S)
                upload = {"data_source": str(self.site.data / part)}
                call = {"handler_id": self.site.processor, "params": upload}
                call |= {"method_name": "process_and_upload"}
                scheduler.add(f"upload-{number}", at, call)
            self.stage.fact("scaled.jobs", count)
            self.stage.show(
                f"{PARTS} may run once only and {PARTS} may be repeated, two due every "
                f"{COUNT_EVERY_S} s; {PARTS} upload, one due every {UPLOAD_EVERY_S} s"
            )

    def kill(self) -> None:
        """kill -9 of an instance amid its runs, one of the processor, a scheduler, a backend."""
        with self.stage.step("Half-way: kill -9 of two instances, a scheduler and a backend"):
            instance = self.processes.wait_for("an instance amid two runs", self.at_work)
            self.killed = [f"census-{instance}", "processor-1", "scheduler-1", "backend-1"]
            for name in self.killed:
                self.processes.kill(name)
            self.killed_at = time.time()
            amid = Counter(note.kind for note in self.open_runs(instance))
            stored = self.site.visible().rows
            self.stage.fact("scaled.killed", self.killed)
            self.stage.fact("scaled.amid_at_kill", dict(amid))
            self.stage.fact("scaled.rows_at_kill", stored)
            self.stage.show(
                f"{', '.join(self.killed)}: {sum(amid.values())} runs cut off ({dict(amid)}), "
                f"{stored:,} rows stored by then"
            )

    def go_on(self) -> None:
        """The other instances, the other scheduler and the other backend go on."""
        with self.stage.step("The others go on without them"):
            before = self.stage.facts["scaled"]["rows_at_kill"]

            def others() -> set[str]:
                later = [note for note in self.notes() if note.at > self.killed_at]
                began = {(note.kind, note.part) for note in later if note.what == "began"}
                ended = [note for note in later if note.what == "ended"]
                return {note.instance for note in ended if (note.kind, note.part) in began}

            self.processes.wait_for("a run that began after the kills", others)
            self.processes.wait_for("more rows", lambda: self.site.visible().rows > before)
            self.stage.show(
                f"instances {', '.join(sorted(others()))} end what came due after the kills, "
                f"{self.site.visible().rows - before:,} rows more are stored"
            )

    def recover(self) -> None:
        """The four again; every job comes to its end, and says what that was."""
        with self.stage.step("Start the four again, as systemd does, and wait for every job"):
            for name in reversed(self.killed):
                self.site.start(name)
            self.records = self.processes.wait_for("the end of every job", self.ended, 120)
            ends = Counter(one["status"] for one in self.records)
            tries = sum(one["attempt_number"] > 1 for one in self.records)
            self.stage.fact("scaled.ends", dict(ends))
            self.stage.fact("scaled.begun_again", tries)
            self.stage.show(f"as the schedulers recorded it: {dict(ends)}; tried again: {tries}")
            bad = [one for one in self.records if one["status"] not in ("success", "lost")]
            repeated = [one for one in self.of("lost") if not one["job_id"].startswith("once")]
            if bad or repeated:
                raise DemoError(f"success, or lost of what may run once only: {bad + repeated}")

    def repeat(self) -> None:
        """What was cut off and may not be repeated is run again by hand, where it left nothing."""
        with self.stage.step("Run by hand what was lost, as nothing may repeat that by itself"):
            ended = {
                note.part for note in self.notes() if (note.what, note.kind) == ("ended", "once")
            }
            for one in self.of("lost"):
                part = self.parts[int(one["job_id"].partition("-")[2])]
                if part not in ended:
                    self.site.schedulers[0].run(self.counting("once", part))
                    self.by_hand.append(part)
            self.stage.fact("scaled.lost", len(self.of("lost")))
            self.stage.fact("scaled.by_hand", self.by_hand)
            self.stage.show(
                f"{len(self.of('lost'))} lost on record, of which {len(self.by_hand)} had left no "
                f"result: {', '.join(self.by_hand) or 'nothing to do'}"
            )

    def compare(self) -> None:
        """By what the handler noted every job once; in PostgreSQL the rows of the raw file."""
        with self.stage.step("Compare with what the handlers noted, and with the raw file"):
            for kind in KINDS:
                self.assert_counted(kind)
            stored = self.processes.wait_for("every upload", self.stored, 120)
            uploads = self.site.completed()
            self.stage.fact("stored.rows", stored.rows)
            self.stage.fact("stored.distance_sum", stored.distance)
            self.stage.fact("stored.uploads", uploads)
            self.stage.fact("stored.bytes_a_row", self.site.bytes_a_row())
            self.stage.show(
                f"visible rows {stored.rows:,} of {self.truth.rows:,}; sum of distance "
                f"{stored.distance:,} of {self.truth.distance:,}; {uploads} uploads"
            )
            if stored != self.truth or uploads != PARTS:
                raise DemoError(f"stored {stored} in {uploads} uploads, the file has {self.truth}")

    def sum_up(self) -> None:
        """The figures that matter, in one look."""
        facts, stored = self.stage.facts["scaled"], self.stage.facts["stored"]
        counted = facts["counted_once_rows"], facts["counted_again_rows"]
        rows = {
            "killed with kill -9": ", ".join(self.killed),
            "jobs, lost on record, tried again": f"{3 * PARTS}  {facts['lost']}  "
            f"{facts['begun_again']}",
            "rows in the file, counted, counted": "  ".join(
                f"{count:,}" for count in (self.truth.rows, *counted)
            ),
            "rows in PostgreSQL": f"{stored['rows']:,}",
        }
        self.stage.console.print("\nEvery step held.")
        self.stage.rows(rows)

    def assert_counted(self, kind: str) -> None:
        """Each part has one result, and no run that may not be repeated began twice.

        Raises:
            DemoError: Names the parts.
        """
        mine = [note for note in self.notes() if note.kind == kind]
        ends = Counter(note.part for note in mine if note.what == "ended")
        begins = Counter(note.part for note in mine if note.what == "began")
        rows = sum(note.rows for note in mine)
        distance = sum(note.distance for note in mine)
        self.stage.fact(f"scaled.counted_{kind}_rows", rows)
        self.stage.show(
            f"{kind}: {len(ends)} parts, {sum(begins.values())} runs began, "
            f"{sum(ends.values())} ended; {rows:,} rows counted"
        )
        wrong = {part: ends[part] for part in self.parts if ends[part] != 1}
        asked = Counter(self.parts) + Counter(self.by_hand)
        twice = [part for part in self.parts if kind == "once" and begins[part] > asked[part]]
        if wrong or twice or flights.Count(rows, distance) != self.truth:
            raise DemoError(f"{kind}: results {wrong}, begun too often {twice}, {rows} rows")

    def counting(self, kind: str, part: str) -> dict[str, Any]:
        """The call that counts a part."""
        call = {"handler_id": self.site.census, "method_name": f"count_{kind}"}
        return {**call, "params": {"part": part}}

    def notes(self) -> list[Note]:
        """What the runs of the census noted, in its order."""
        path = self.site.notes
        lines = path.read_text().splitlines() if path.exists() else []
        return [noted(line) for line in lines]

    def open_runs(self, instance: str) -> list[Note]:
        """The runs of an instance that began there and did not end."""
        mine = [note for note in self.notes() if note.instance == instance]
        ended = {(note.kind, note.part) for note in mine if note.what == "ended"}
        return [note for note in mine if (note.kind, note.part) not in ended]

    def at_work(self) -> str | None:
        """Half-way, an instance amid runs of both kinds, none of which is about to end.

        Should chance give none of them both, one amid a run that may not be repeated will do.
        """
        begun = sum(note.what == "began" for note in self.notes())
        wanted = set(KINDS) if begun < PARTS + 6 else {"once"}
        for instance in INSTANCES if begun >= PARTS else ():
            runs = self.open_runs(instance)
            is_fresh = all(time.time() - one.at < FRESH_S for one in runs)
            if is_fresh and wanted <= {one.kind for one in runs}:
                return instance
        return None

    def ended(self) -> list[dict[str, Any]]:
        """The records of all jobs, once each has ended."""
        found = self.site.schedulers[1].records()
        is_over = len(found) == 3 * PARTS and all(one["status"] not in OPEN for one in found)
        return found if is_over else []

    def of(self, status: str) -> list[dict[str, Any]]:
        """The records with a status."""
        return [one for one in self.records if one["status"] == status]

    def stored(self) -> flights.Count | None:
        """What is visible in PostgreSQL, once it is as many rows as the file has."""
        found = self.site.visible()
        return found if found.rows >= self.truth.rows else None


def cut(raw: Path, data: Path) -> list[str]:
    """Cut a CSV file into parts, in two folders in turn; their names there."""
    with raw.open("rb") as file:
        header, *lines = file.readlines()
    size = -(-len(lines) // PARTS)
    names = list(_names())
    for number, name in enumerate(names):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(header + b"".join(lines[number * size : (number + 1) * size]))
    return names


def _names() -> Iterator[str]:
    """`1/part-00.csv`, `2/part-01.csv` and so on."""
    for number in range(PARTS):
        yield f"{number % 2 + 1}/part-{number:02}.csv"


def noted(line: str) -> Note:
    """A line of the census."""
    at, instance, what, kind, part, *counted = line.split()
    return Note(float(at), instance, what, kind, part, *map(int, counted))
