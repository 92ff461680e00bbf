"""`make demo`: play the story, keep it running if asked, leave nothing behind.

With `--scale` it is the story of several hosts: two or three of each process, through NATS.

Layer: edge.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich.markup import escape

from examples.quickstart.processes import DemoError, Processes
from examples.quickstart.scaled_story import SCALED_STEPS, ScaledStory
from examples.quickstart.stage import Stage
from examples.quickstart.story import STEPS, Story

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Exit code 0 only if every step held; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave all running until Ctrl-C")
    parser.add_argument("--scale", action="store_true", help="several of each, through NATS")
    parser.add_argument("--into", type=Path, default=ROOT / "build/demo", help="its folder")
    options = parser.parse_args()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    stage = Stage(SCALED_STEPS if options.scale else STEPS)
    try:
        with _alone(options.into):
            return play(stage, options.into, keep=options.keep, scale=options.scale)
    except DemoError as error:
        stage.console.print("\n[bold red]The demo stopped:[/]", escape(str(error)))
        return 1
    except KeyboardInterrupt:
        stage.console.print("\nInterrupted: every process of the demo has been stopped.")
        return 130


def play(stage: Stage, folder: Path, *, keep: bool, scale: bool) -> int:
    """All steps, the report, and the end of every process."""
    story: Story | ScaledStory
    try:
        with ExitStack() as undo, Processes(folder / "logs") as processes:
            if scale:
                story = ScaledStory(processes, stage, folder, undo)
            else:
                story = Story(processes, stage, folder)
            story.play()
            if keep:
                _keep(stage, story)
        with stage.step("Stop every process"):
            if left := processes.left_behind():
                raise DemoError(f"these are still there: {left}")
    finally:
        stage.write(folder / "report.json")
    story.sum_up()
    stage.show(f"all figures: {folder / 'report.json'}")
    return 0


def _keep(stage: Stage, story: Story | ScaledStory) -> None:
    """Wait for Ctrl-C with everything running."""
    stage.console.print(f"\nRunning until Ctrl-C: {story.running_at}")
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        stage.console.print("\nStopping.")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """An empty folder that no other run of the demo uses meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoError(f"another demo runs in {folder}: stop that one first") from None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
