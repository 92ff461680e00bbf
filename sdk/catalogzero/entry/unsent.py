"""What the handlers of an entry have not sent yet: removing the entry would leave it unsent."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox.stored import SharedStore
from catalogzero.config.registry import Section, load_registry
from catalogzero.config.service_unit import STATE
from catalogzero.config.settings import default_state_dir


@dataclass(frozen=True)
class EntryState:
    """The state folder of one handler, and what of it was not sent.

    Attributes:
        handler_id: The handler's name.
        folder: Its state folder.
        unsent: A line for each upload that the backend has not completed.
    """

    handler_id: str
    folder: Path
    unsent: list[str]


def states_of(registry: Path, entry_id: str) -> list[EntryState]:
    """The state of every handler of an entry that has some here.

    Raises:
        ConfigError: The registry file is wrong, or an outbox is of a newer release.
    """
    sections = load_registry(registry).handlers if registry.is_file() else []
    package = entry_id.replace("-", "_")
    named = (
        one
        for one in sections
        if one.entry == entry_id or (one.module_path or "").split(".")[0] == package
    )
    return [
        EntryState(section.handler_id, folder, _unsent(folder, shared_by(section)))
        for section in named
        for folder in state_folders(section)
        if folder.is_dir()
    ]


def state_folders(section: Section) -> list[Path]:
    """Where the state of a handler may lie, as it is started by hand or by its unit."""
    name, given = section.handler_id, section.runtime.get("state_dir")
    given = os.environ.get("CATALOGZERO_STATE_DIR") or given
    places = [Path(given)] if given else [default_state_dir(), STATE / name]
    return [place / name for place in places]


def shared_by(section: Section) -> SharedStore | None:
    """The store of a section whose handler has instances."""
    given = os.environ.get("CATALOGZERO_STATE") or section.runtime.get("state")
    return SharedStore(str(given), section.handler_id, "") if given else None


def _unsent(folder: Path, shared: SharedStore | None) -> list[str]:
    """The uploads of an outbox that are not completed, a line each."""
    if shared is None and not (folder / "outbox.sqlite").exists():
        return []
    from catalogzero.cloud.outbox.outbox import Outbox

    with closing(Outbox(folder, SystemClock(), shared, repair=False)) as outbox:
        uploads = outbox.store.uploads(("building", "sealed", "completing", "held", "dead"))
        return [f"{one.source}: {one.records} records ({one.state})" for one in uploads]
