"""Runs of a mortal processor, each in a forked process of its own, without a handler.

    python -m tests.cloud.engine_process FOLDER URL [DATABASE]

The outbox is in `FOLDER/state`, or in a database that instances share. For each line on standard
input it forks one run over all of `FOLDER/exports`, and answers with a line of JSON: the process's
exit status (negative: its signal).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from catalogzero.cloud import engine
from catalogzero.config.settings import RuntimeSettings

from tests.chaos.processors import Mortal
from tests.cloud.site import until


async def run(folder: Path, url: str, database: str | None) -> dict[str, Any]:
    """One run, to its end: all is sent."""
    processor = Mortal(endpoint=url, api_key="test-key", data_roots=[folder / "exports"])
    runtime = RuntimeSettings(
        state_dir=folder / "state",
        state=database,
        instance_id="one" if database else None,
        min_file_age_s=0,
        installation_id="site",
        chunk_bytes=1024,
    )
    processor._attach(runtime=runtime, handler_id="site")
    made: engine.Engine = processor._engine()
    sending = asyncio.create_task(made.main())
    try:
        result = await asyncio.to_thread(processor.process_and_upload, str(folder / "exports"))
        await until(lambda: made.outbox.store.totals().uploads == 0)
        return result
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        made.close()


def main(folder: Path, url: str, database: str | None = None) -> None:
    """Fork a run for each line."""
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = asyncio.run(run(folder, url, database))["status"]
            os._exit(0 if status in {"uploaded", "unchanged"} else 1)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
