"""The demo's story, step after step: each one raises where it does not hold.

Owns the order of the steps and what must be true after each.

Layer: edge.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from examples.quickstart import flights
from examples.quickstart.backend import Backend
from examples.quickstart.client import CONDUCTOR, HANDLER, Client, Ports
from examples.quickstart.processes import DemoError, Processes, free_ports
from examples.quickstart.scheduler import Scheduler, answers
from examples.quickstart.stage import Stage
from examples.quickstart.vendor import Vendor

STEPS = 17
MB = 1 << 20
ASLEEP_AT_MOST = 1.05
SHOWN = ("handler_id", "method_name", "status", "started_at", "duration_ms", "attempt_number")
RESULT_SHOWN = ("records", "bad_records", "bytes_sent", "cloud_job_id")
HEALTH_SHOWN = ("client_id", "entry", "version", "state", "status", "last_success_at", "outbox")


class Story:
    """One run of the demo in one folder."""

    def __init__(self, processes: Processes, stage: Stage, folder: Path) -> None:
        self.processes = processes
        self.stage = stage
        self.folder = folder
        self.ports = Ports(*free_ports(7))
        self.vendor = Vendor(processes, stage, folder / "vendor")
        self.client = Client(processes, folder / "client", self.ports)
        self.backend = Backend(processes, folder / "backend")
        self.scheduler = Scheduler(self.ports.scheduler, self.client.data)

    def play(self) -> None:
        """The whole way."""
        self.prepare()
        self.vend()
        self.serve()
        self.run_once()
        self.watch()
        self.fall_asleep()
        self.crash()
        self.recover()

    @property
    def running_at(self) -> str:
        """Where to look while everything is left running."""
        return (
            f"dashboard {self.ports.board}, scheduler {self.ports.scheduler}, "
            f"backend {self.ports.endpoint}; registry file {self.client.registry}"
        )

    def prepare(self) -> None:
        """The client's data, and an independent count of it."""
        with self.stage.step("Fetch the client's data: the flights of 2013 from New York"):
            downloads = self.folder.parent / "downloads"
            raw = flights.fetch(self.processes, downloads, self.client.data)
            self.truth = flights.count(raw)
            self.stage.fact("source.bytes", raw.stat().st_size)
            self.stage.fact("source.rows", self.truth.rows)
            self.stage.fact("source.distance_sum", self.truth.distance)
            self.stage.show(f"{self.truth.rows:,} rows, {raw.stat().st_size / MB:.0f} MiB")

    def vend(self) -> None:
        """From an empty folder to a catalog, and from the catalog to the client's environment."""
        with self.stage.step("Vendor: scaffold the package skylark-processor"):
            self.vendor.scaffold()
        with self.stage.step("Vendor: write `process`, the one method that a vendor must write"):
            self.vendor.edit()
        with self.stage.step("Vendor: run the package's own tests"):
            self.vendor.test()
        with self.stage.step("Vendor: build the wheels"):
            self.vendor.build()
        with self.stage.step("Vendor: publish the catalog, a static index with every dependency"):
            self.vendor.publish()
        with self.stage.step("Client: install from that index, and from nothing else"):
            index = self.vendor.serve(self.ports.index)
            self.processes.wait_for("the index", lambda: answers(f"{index}/"))
            installed = self.client.install(index)
            self.stage.fact("client.packages", installed)
            self.stage.show(f"{len(installed)} packages from {index}")

    def serve(self) -> None:
        """Four processes that find each other."""
        with self.stage.step("Start backend, scheduler, handler and conductor"):
            self.backend.tenant(self.client.key_file)
            self.client.configure()
            self.backend.start(self.ports.backend)
            self.client.start_scheduler()
            self.processes.wait_for("the scheduler", self.scheduler.is_up)
            self.handler = self.client.start(HANDLER)
            self.client.start(CONDUCTOR)
            self.processes.wait_for("the handlers' registration", self.scheduler.connected)
            self.rss_before = self.rss()
            self.stage.fact("memory.rss_before_mb", self.rss_before)
            self.stage.show(f"both handlers are connected; the handler has {self.rss_before} MB")

    def run_once(self) -> None:
        """The schedules of the seed, an execution, and its rows at the backend."""
        with self.stage.step("Schedule over HTTP, and run: 336,776 rows from CSV to the backend"):
            self.stage.fact("schedules", self.scheduler.schedule_all())
            self.first = self.run_processor()
            result = self.first["result"]
            self.stage.fact("execution", self.first)
            shown = {key: self.first[key] for key in SHOWN}
            shown |= {key: result[key] for key in RESULT_SHOWN}
            self.stage.table("the execution's record, and its result", shown)
            self.stage.fact("memory.rss_after_mb", self.rss())
        with self.stage.step("Compare what is stored with an independent count of the raw file"):
            self.assert_exact("stored")
            if result["records"] != self.truth.rows:
                raise DemoError(f"{result['records']} records sent of {self.truth.rows} read")
            self.stage.fact("stored.cloud_job_id", result["cloud_job_id"])
            self.stage.fact("stored.delay_classes", self.backend.classes())
            self.stage.table(
                "delay classes, by SQL at the backend",
                {key: f"{value:,}" for key, value in self.backend.classes().items()},
            )

    def watch(self) -> None:
        """Health at the backend, and the conductor's view."""
        with self.stage.step("The client's health, as the backend sees it"):
            self.scheduler.report_health()
            health = self.processes.wait_for("a health report", self.health_after_upload)
            self.stage.fact("health", health)
            self.stage.table("health", {k: health.get(k) for k in HEALTH_SHOWN})
        with self.stage.step("The conductor's summary, by the executions query"):
            for method in ("collect_metrics", "health_check"):
                record = self.processes.wait_for(
                    method, partial(self.scheduler.last, CONDUCTOR, method)
                )
                summary = record["result"]["summary"]
                self.stage.fact(f"conductor.{method}", summary)
                self.stage.table(method, summary)
            self.stage.show(f"dashboard: {self.ports.board}")
            self.screenshot()

    def fall_asleep(self) -> None:
        """Asleep, as small as before the job and without a child; asking does not wake it."""
        with self.stage.step("The handler falls asleep, and hands its memory back"):
            self.processes.wait_for("sleep", self.is_asleep)
            wakes_before = self.scheduler.metrics()["wakes_total"]
            asleep = self.rss()
            self.stage.fact("memory.rss_asleep_mb", asleep)
            self.stage.table("resident memory of the handler, MB", self.stage.facts["memory"])
            if asleep > self.rss_before * ASLEEP_AT_MOST:
                raise DemoError(f"asleep it has {asleep} MB, and had {self.rss_before} before")
        with self.stage.step("A job wakes it"):
            again = self.run_processor()["result"]["status"]
            # On a slow machine it may have slept, and been woken, before.
            wakes = self.scheduler.metrics()["wakes_total"] - wakes_before
            self.stage.fact("wake.status", again)
            self.stage.fact("wake.wakes_total", wakes)
            self.stage.show(f"the same file again: {again}; woken {wakes} time")
            if (again, wakes) != ("unchanged", 1):
                raise DemoError("one wake, and nothing sent, were to be expected")

    def crash(self) -> None:
        """kill -9 in the middle of a second upload."""
        with self.stage.step("kill -9 in the middle of a second upload (full: true)"):
            self.completed = self.backend.completed()
            self.second = self.scheduler.upload(full=True)
            self.processes.wait_for("a chunk of the second upload", self.backend.open_chunks)
            children = self.handler.children(recursive=True)
            self.processes.kill(HANDLER)
            _, alive = psutil.wait_procs(children, timeout=20)
            if alive:
                raise DemoError(f"the handler's worker outlived it: {alive}")
            chunks = self.backend.open_chunks()
            self.stage.fact("crash.chunks_stored_at_kill", chunks)
            if not chunks or self.backend.completed() != self.completed:
                raise DemoError("the upload was complete before the handler was killed")
            self.stage.show(f"killed with {chunks} of its chunks stored, and none of it visible")
            self.assert_exact("crash.while_down")

    def recover(self) -> None:
        """The handler again; the scheduler sees the job through, and the counts are exact."""
        with self.stage.step("Start it again: the counts are still exact"):
            self.handler = self.client.start(HANDLER)
            ended = partial(self.scheduler.outcome, self.second)
            record = self.processes.wait_for("the end of the execution", ended, timeout_s=180)
            self.stage.fact("crash.execution", record["status"])
            self.stage.show(f"the scheduler recorded: {record['status']}")
            if self.backend.completed() == self.completed:
                self.run_processor(full=True)
            self.assert_exact("crash.after")
            self.stage.fact("crash.completed_uploads", self.backend.completed())

    def sum_up(self) -> None:
        """The figures that matter, in one look."""
        stored, crash = self.stage.facts["stored"], self.stage.facts["crash"]
        memory = self.stage.facts["memory"]
        counts = (self.truth.rows, self.first["result"]["records"], stored["rows"])
        sizes = (memory["rss_before_mb"], memory["rss_after_mb"], memory["rss_asleep_mb"])
        rows = {
            "rows in the file, sent, stored": "  ".join(f"{count:,}" for count in counts),
            "rows stored after kill -9 in mid-upload": f"{crash['after_rows']:,}",
            "memory before the job, after it, asleep": "  ".join(f"{mb} MB" for mb in sizes),
        }
        self.stage.console.print("\nEvery step held.")
        self.stage.rows(rows)

    def is_asleep(self) -> bool:
        """Whether it sleeps, and its worker has ended."""
        asleep = self.scheduler.metrics()["status"] == "sleeping"
        return asleep and not self.handler.children()

    def run_processor(self, **params: Any) -> dict[str, Any]:
        """Run process_and_upload to its end, now; its execution record."""
        job_id = self.scheduler.upload(**params)
        record = self.processes.wait_for(
            "process_and_upload", lambda: self.scheduler.outcome(job_id), timeout_s=180
        )
        if record["status"] != "success":
            raise DemoError(f"process_and_upload: {record}")
        return record

    def health_after_upload(self) -> dict[str, Any] | None:
        """The newest health report, once it reports the upload."""
        report = self.backend.health()
        return report if report and report.get("last_success_at") else None

    def rss(self) -> float:
        """Resident memory of the handler's process in MB, as the system counts it."""
        return round(self.handler.memory_info().rss / MB, 1)

    def assert_exact(self, name: str) -> None:
        """The visible rows and the checksum are those of the raw file.

        Raises:
            DemoError: A row is lost, or there twice.
        """
        stored = self.backend.visible()
        self.stage.fact(f"{name}_rows" if "." in name else f"{name}.rows", stored.rows)
        self.stage.show(
            f"visible rows {stored.rows:,} of {self.truth.rows:,}; "
            f"sum of distance {stored.distance:,} of {self.truth.distance:,}"
        )
        if stored != self.truth:
            raise DemoError(f"stored {stored}, and the raw file has {self.truth}")

    def screenshot(self) -> None:
        """A picture of the dashboard, where Chromium is present."""
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        picture = self.folder / "dashboard.png"
        if not browser:
            self.stage.show("no Chromium here, so no picture of it")
            return
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        self.processes.run(
            "screenshot",
            *(browser, *options, "--window-size=1280,900", f"--screenshot={picture}"),
            *(f"--user-data-dir={self.folder / 'chromium'}", self.ports.board),
            cwd=self.folder,
        )
        self.stage.fact("dashboard.screenshot", picture.name, f"picture: {picture}")
