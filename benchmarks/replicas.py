"""Three replicas of a processor against one, over the files of a partitioned run.

    python -m benchmarks.replicas [--quick] [--rounds 2] [--files 8] [--seconds 2.0] [--json]

The processor waits over each file, and uploads what it made of it; its store is in PostgreSQL, its
calls go over ZeroMQ. A scheduler runs it over a folder with a partition: each file is a run of its
own, at whichever replica has a free place. Three replicas get three times as many files. A rate
counts from the moment at which the run is due to its recorded end; one replica and three take
turns, and every file is new.

Bar: three replicas do at least 0.95 times what three times one would.
"""

from __future__ import annotations

import sys
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Figure, Section, main
from benchmarks.scaleout import LEAD_S, REPLICAS, OwnScheduler, moment
from benchmarks.scheduler import POSTGRESQL
from benchmarks.scheduler_twice import process, until
from benchmarks.upload import sink

FULL = {"rounds": 2, "files": 8, "seconds": 2.0, "postgresql": POSTGRESQL}
QUICK = {**FULL, "rounds": 1, "files": 4, "seconds": 0.2}
BUDGET = 0.95


class ReplicatedProcessor(OwnScheduler):
    """Instances of processors, each with a store of its own in the scheduler's database."""

    def __init__(self, undo: ExitStack, postgresql: str) -> None:
        super().__init__(undo, postgresql)
        self._url = undo.enter_context(sink())
        self.data = self.folder / "exports"
        self.data.mkdir()

    def replicate(self, undo: ExitStack, handler_id: str, replicas: int) -> None:
        """Serve a processor in that number of processes, until the scheduler reaches each."""
        section = {
            "handler_id": handler_id,
            "module_path": "benchmarks.peers.upload_processors",
            "class_name": "Waiting",
            "max_concurrent_jobs": 1,  # it has one worker
            "max_queued_jobs": 0,
            "state": self.database,
            "installation_id": handler_id,
            "state_dir": str(self.folder),
            "min_file_age_s": 0,
            "config": {
                "endpoint": self._url,
                "api_key": "benchmark",
                "data_roots": [str(self.data)],
            },
        }
        for number in range(replicas):
            path = self.folder / f"{handler_id}-{number}.yaml"
            sections = [{**section, "instance_id": str(number)}]
            path.write_text(yaml.safe_dump({"scheduler": self.registration, "handlers": sections}))
            command = ("catalogzero", "run", handler_id, "--registry", str(path))
            undo.enter_context(process(*command))
        until(lambda: self.reaches(handler_id) == replicas)

    def reaches(self, handler_id: str) -> int:
        """How many instances of a handler the scheduler reaches."""
        handlers = self.api.get("/api/handlers").json()["handlers"]
        instances = [one["instances"] for one in handlers if one["id"] == handler_id]
        return sum(one["status"] == "Connected" for each in instances for one in each)

    def rate(self, handler_id: str, files: int, seconds: float) -> float:
        """Files a second of one partitioned run over new files."""
        folder = self.data / uuid.uuid4().hex
        folder.mkdir()
        for number in range(files):
            (folder / f"{number}.csv").write_text(f"n\n{number}\n")
        due = datetime.now(UTC) + timedelta(seconds=LEAD_S)
        params = {"data_source": str(folder), "params": {"seconds": seconds}}
        call = {"handler_id": handler_id, "job_method": "process_and_upload", "job_params": params}
        trigger = {"type": "date", "run_date": due.isoformat()}
        body = {**call, "job_id": folder.name, "trigger": trigger, "partition": True}
        self.api.post("/api/schedule", json=body).raise_for_status()
        record = until(lambda: self.record(folder))
        assert record["status"] == "success", record
        return files / (moment(record, "completed_at") - due).total_seconds()

    def record(self, folder: Path) -> dict[str, Any]:
        """The record of a folder's run, once it has ended."""
        found = self.api.get("/api/executions", params={"limit": 100}).json().get("records", ())
        ended = [one for one in found if one["job_id"] == folder.name and one["completed_at"]]
        return ended[0] if ended else {}


def measure(rounds: int, files: int, seconds: float, postgresql: str) -> Section:
    """One replica and three in turns; a first run of each does not count.

    Args:
        rounds: How often each is measured.
        files: How many one replica gets; three get three times as many.
        seconds: How long a file waits.
        postgresql: A server on which databases may be made.
    """
    with ExitStack() as undo:
        site = ReplicatedProcessor(undo, postgresql)
        site.replicate(undo, "alone", 1)
        site.replicate(undo, "crowd", REPLICAS)
        one, three = [], []
        for number in range(rounds + 1):
            alone = site.rate("alone", files, seconds if number else 0.0)
            crowd = site.rate("crowd", REPLICAS * files, seconds if number else 0.0)
            one += [alone] if number else []
            three += [crowd] if number else []
    kind = f"files of {seconds:g} s"
    times = [many / (REPLICAS * few) for few, many in zip(one, three, strict=True)]
    ratio = f"{kind}: {REPLICAS} replicas / {REPLICAS} times one"
    return Section(
        figures=[
            Figure(what=f"{kind}: one replica", samples=one, unit="/s"),
            Figure(what=f"{kind}: {REPLICAS} replicas", samples=three, unit="/s"),
            Figure(what=ratio, samples=times, unit="x", at_least=BUDGET),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(__name__))
