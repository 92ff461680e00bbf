"""A storm: real processes, real kills, and the count of rows at the end.

    python -m tests.chaos.storm --kills 200 --rows 1000000 --seed 7 [--database postgresql://…]

Handler, worker and backend are killed with -9 while runs are under way, at random moments and at
each commit point of the outbox, behind a proxy that faults a part of all requests. Meanwhile the
sources change, come back to older content, and grow; state folders are lost; the clock jumps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from catalogzero import CatalogZeroError, HandlerClient

from tests.chaos.proxy import FaultProxy

FILES = 10
STEPS = ("begin", "add", "seal", "acknowledge", "completing", "done", "missing", "superseded")
SURE_STEPS = STEPS[:6]
COMMIT_POINTS = [f"{step}:{when}" for step in SURE_STEPS for when in ("before", "after")]
VICTIMS = ("worker", "handler", "backend")


@dataclass
class Report:
    """What a storm did, and what was left."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    lost: int = 0
    twice: int = 0
    partial: int = 0

    def landed(self) -> int:
        """Kills that landed inside a run."""
        return sum(self.kills.values())

    def table(self) -> str:
        """The table of hits, and the seed that repeats the run."""
        lines = [f"seed {self.seed}: {self.landed()} kills inside runs, {self.rows} rows"]
        for title, hits in (("kill", self.kills), ("fault", self.faults), ("event", self.events)):
            lines += [f"  {title:<6} {name:<22} {count}" for name, count in sorted(hits.items())]
        lines.append(f"  lost {self.lost}, twice {self.twice}, partial uploads {self.partial}")
        return "\n".join(lines)


class Storm:
    """One storm in a folder of its own.

    Args:
        folder: For everything: data, state, database, logs.
        kills: How many kills must land inside a run.
        rows: Rows in all sources together.
        seed: Of all dice.
        database: The backend's; by default an SQLite file.
        points: The commit points to kill the worker at, before the random kills.
        mutant: A fault built into the outbox (see `processors.MUTANTS`), to prove the storm.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kills: int,
        rows: int,
        seed: int,
        database: str | None = None,
        points: Sequence[str] = COMMIT_POINTS,
        mutant: str = "",
    ) -> None:
        self._folder, self._kills, self._rows = folder, kills, max(rows // FILES, 1)
        self._dice = random.Random(seed)  # noqa: S311  # dice, to be repeated by their seed
        self._database = database or f"sqlite:///{folder}/backend.db"
        self.report = Report(seed)
        self._contents: dict[str, list[str]] = {}
        self._backend: subprocess.Popen[bytes] | None = None
        self._handler: subprocess.Popen[bytes] | None = None
        self._ports = _free_ports(3)
        self._proxy = FaultProxy(self._ports[0], self._ports[1], 0.25, self._dice)
        self._points = [*points]
        self._mutant = mutant
        self._log = (folder / "processes.log").open("ab")

    async def run(self) -> Report:
        """The whole storm, to the count at the end."""
        data = self._folder / "exports"
        data.mkdir()
        for number in range(FILES):
            self._write(f"f{number}.csv", new=True)
        self._key = self._command("backend", "tenants", "add", "t", "--json", *self._db())["key"]
        proxy = self._proxy
        try:
            async with proxy:
                self._start_backend()
                while self.report.landed() < self._kills:
                    await self._round()
                proxy.rate = 0.0
                await self._rest()
            self._count()
        finally:
            self.report.faults = proxy.hits
            self._stop(self._handler)
            self._stop(self._backend)
            self._log.close()
        return self.report

    async def _round(self) -> None:
        """Change something, begin a run, kill something, start it again."""
        self._start_backend()
        self._start_handler()
        self._change_something()
        victim = "point" if self._points else self._dice.choice(VICTIMS)
        point = self._points.pop(0) if victim == "point" else ""
        if point:
            (self._state / "die_at").write_text(point)
        async with HandlerClient(f"tcp://127.0.0.1:{self._ports[2]}") as client:
            call = asyncio.create_task(self._call(client))
            if point:
                await self._death_at(point, call, client)
            else:
                await self._random_death(victim, call, client)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def _call(self, client: HandlerClient) -> Any:
        """One run over everything."""
        params = {"full": self._dice.random() < 0.2}
        body = {"data_source": str(self._folder / "exports"), "params": params}
        with suppress(CatalogZeroError):
            return await client.call("process_and_upload", body, timeout_s=120)

    async def _death_at(self, point: str, call: asyncio.Task[Any], client: HandlerClient) -> None:
        """Run until the worker has died at a commit point; runs again where none came by."""
        for _ in range(5):
            for _ in range(600):
                if not (self._state / "die_at").exists():
                    self.report.kills[point] += 1
                    return
                if call.done():
                    break
                await asyncio.sleep(0.05)
            self._write(f"f{self._dice.randrange(FILES)}.csv", new=True)
            call = asyncio.create_task(self._call(client))
        raise AssertionError(f"no commit at {point}: see {self._folder}/processes.log")

    async def _random_death(
        self, victim: str, call: asyncio.Task[Any], client: HandlerClient
    ) -> None:
        """Kill something after some requests; it counts when a run was under way."""
        enough = self._proxy.hits.total() + self._dice.randint(1, 30)
        for _ in range(400):
            if self._proxy.hits.total() >= enough or call.done():
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(self._dice.uniform(0.0, 0.2))
        pid = await self._pid(victim, client)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.report.kills[victim] += not call.done()
        if victim == "handler" and self._handler is not None:
            self._handler.wait()
        if victim == "backend" and self._backend is not None:
            self._backend.wait()

    async def _pid(self, victim: str, client: HandlerClient) -> int | None:
        if victim == "handler":
            return self._handler.pid if self._handler else None
        if victim == "backend":
            return self._backend.pid if self._backend else None
        assert self._handler is not None
        children = psutil.Process(self._handler.pid).children()
        return children[0].pid if children else None

    def _change_something(self) -> None:
        """New content, older content, growth; now and then a lost folder or another time."""
        name = f"f{self._dice.randrange(FILES)}.csv"
        roll = self._dice.random()
        if roll < 0.5:
            self._write(name, new=True)
        elif roll < 0.7:
            self.report.events["older content"] += 1
            self._write(name, version=self._dice.randrange(len(self._contents[name])))
        elif roll < 0.85:
            self.report.events["grown file"] += 1
            with (self._folder / "exports" / name).open("a") as file:
                file.write(f"{name}-grown-{self._dice.randrange(1 << 40)}\n")
        if self._dice.random() < 0.1:
            self.report.events["clock jump"] += 1
            (self._state / "clock_offset").write_text(str(self._dice.randint(-7200, 7200)))
        if self._dice.random() < 0.05:
            self.report.events["state folder lost"] += 1
            self._stop(self._handler)
            shutil.rmtree(self._state / "h", ignore_errors=True)
            self._handler = None
            self._start_handler()

    def _write(self, name: str, *, new: bool = False, version: int = 0) -> None:
        """A file of new rows, or of those of an older version."""
        texts = self._contents.setdefault(name, [])
        if new:
            stem = f"{name}-{len(texts)}"
            texts.append("id\n" + "".join(f"{stem}-{n}\n" for n in range(self._rows)))
            version = -1
        path = self._folder / "exports" / name
        part = path.with_suffix(".part")
        part.write_text(texts[version])
        part.rename(path)

    # Processes

    @property
    def _state(self) -> Path:
        folder = self._folder / "state"
        folder.mkdir(exist_ok=True)
        return folder

    def _db(self) -> tuple[str, ...]:
        return ("--database", self._database)

    def _command(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "catalogzero", *arguments]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(made.stdout)

    def _start_backend(self) -> None:
        if self._backend is None or self._backend.poll() is not None:
            self._backend = self._start("backend", "serve", "--port", self._ports[1], *self._db())

    def _start_handler(self) -> None:
        if self._handler is not None and self._handler.poll() is None:
            return
        settings = {
            "state_dir": self._state,
            "installation_id": "site",
            "settle_s": 0,
            "chunk_bytes": 16_384,
            "upload_wait_s": 2,
        }
        config = {
            "endpoint": f"http://127.0.0.1:{self._ports[0]}/v1",
            "api_key": self._key,
            "data_roots": json.dumps([str(self._folder / "exports")]),
        }
        given = [x for k, v in settings.items() for x in ("--set", f"{k}={v}")]
        given += [x for k, v in config.items() for x in ("--config", f"{k}={v}")]
        self._handler = self._start(
            *("run", "tests.chaos.processors:Mortal", "--handler-id", "h", "--scheduler", "none"),
            *("--port", self._ports[2], *given),
        )

    def _start(self, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "catalogzero", *map(str, arguments)]
        environment = {**os.environ, "CHAOS_MUTANT": self._mutant}
        return subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)

    def _stop(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    # The end

    async def _rest(self) -> None:
        """No more faults: runs until all is sent."""
        (self._state / "die_at").unlink(missing_ok=True)
        self._start_backend()
        self._start_handler()
        body = {"data_source": str(self._folder / "exports")}
        deadline = time.monotonic() + 300
        async with HandlerClient(f"tcp://127.0.0.1:{self._ports[2]}") as client:
            while time.monotonic() < deadline:
                with suppress(CatalogZeroError):
                    result = await client.call("process_and_upload", body, timeout_s=120)
                    metrics = await client.call("get_metrics")
                    waiting = (metrics.get("outbox") or {}).get("uploads")
                    if result["status"] == "unchanged" and waiting == 0:
                        return
                await asyncio.sleep(0.5)
        raise AssertionError(f"it does not come to rest: see {self._folder}/processes.log")

    def _count(self) -> None:
        """Compare what is visible with the files as they are."""
        seen: dict[str, Counter[str]] = {}
        with sa.create_engine(self._database, poolclass=sa.NullPool).connect() as db:
            for source, payload in db.execute(
                sa.text("SELECT source, payload FROM visible_records")
            ):
                rows = seen.setdefault(source, Counter())
                rows[json.loads(payload)["id"]] += 1
            broken = sa.text(
                "SELECT COUNT(*) FROM uploads u WHERE u.visible AND u.records <>"
                " (SELECT COUNT(*) FROM records r WHERE r.upload_no = u.upload_no)"
            )
            self.report.partial = int(db.execute(broken).scalar_one())
        for path in sorted((self._folder / "exports").glob("*.csv")):
            there = Counter(path.read_text().split()[1:])
            got = seen.pop(f"exports/{path.name}", Counter())
            self.report.rows += sum(there.values())
            self.report.lost += sum((there - got).values())
            self.report.twice += sum((got - there).values())
        self.report.twice += sum(sum(rows.values()) for rows in seen.values())


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in held]
    for server in held:
        server.close()
    return ports


def main() -> int:
    """Run one storm by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--database")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    storm = Storm(
        folder, kills=given.kills, rows=given.rows, seed=given.seed, database=given.database
    )
    try:
        report = asyncio.run(storm.run())
    finally:
        sys.stdout.write(f"{storm.report.table()}\n  files in {folder}\n")
    return 1 if report.lost or report.twice or report.partial else 0


if __name__ == "__main__":
    sys.exit(main())
