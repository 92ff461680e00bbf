"""What instances of one processor need, beside the store that they share.

Owns what is refused where it is missing: settings that no folder can keep in common, and data roots
that are other disks on other hosts. Never opens the store.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from catalogzero.cloud.extras import is_installed, missing_extra
from catalogzero.cloud.outbox.looking import FILE_NAME
from catalogzero.cloud.reading.root_tokens import ROOT_FILE, make_token, read_token
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import CatalogZeroError, ConfigError, text_of
from catalogzero.sql import open_to_read
from catalogzero.wire.messages import JsonObject

if TYPE_CHECKING:
    from catalogzero.cloud.outbox.outbox import Outbox

_UNSENT = "SELECT count(*) FROM uploads WHERE state IN ('sealed', 'completing', 'held', 'dead')"


def state_faults(runtime: RuntimeSettings, folder: Path) -> list[JsonObject]:
    """What a processor's section lacks for the shared store that it names.

    No driver is loaded for it: the handler's own process asks.

    Args:
        runtime: Its section.
        folder: Its state folder.

    Returns:
        Each as `faults_error` takes it; empty where it names none.
    """
    if runtime.state is None:
        return []
    return [{"field": field, "message": text} for field, text in _lacks(runtime, folder)]


def _lacks(runtime: RuntimeSettings, folder: Path) -> Iterator[tuple[str, str]]:
    """Each field at fault, with what is wrong and what to do."""
    if runtime.installation_id is None:
        text = "instances on several hosts have no common folder that could keep one"
        yield "installation_id", f"{text}: name it here, the same for all"
    policy = runtime.egress
    if (policy.hash or policy.hash_sources) and policy.hash_key_file is None:
        yield (
            "egress.hash_key_file",
            "with a key of its own each instance would hash the same value to another one: make "
            "one file (`openssl rand -hex 32`), copy it to each host, and name it here",
        )
    if not is_installed("postgresql"):
        yield "state", missing_extra("postgresql")
    for one in [folder, folder.parent] if runtime.instance_id else [folder]:
        if text := left_behind(one):
            yield "state", text


def left_behind(folder: Path) -> str:
    """What to do about uploads in a folder's own outbox, which nobody would send; empty: no such.

    A processor that was alone is moved to a shared store once it has sent what it had.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return ""
    try:
        with closing(open_to_read(path)) as db:
            [(count,)] = db.execute(_UNSENT).fetchall()
    except (CatalogZeroError, sqlite3.Error) as error:
        return f"whether uploads wait in {path} cannot be read: {text_of(error)}"
    if not count:
        return ""
    return (
        f"{count} uploads in {path} would be left behind: take `state` out, let them be sent "
        "(`catalogzero outbox list`; retry or purge what was refused), then set it again; or move "
        "that file away, to give them up"
    )


def root_faults(outbox: Outbox, roots: Sequence[Path]) -> list[str]:
    """What is wrong with the data roots of an instance, as the shared store knows their tokens.

    A token is made only where no instance has one: a share that is not mounted here is another
    disk, and gets none.

    Args:
        outbox: Whose store is shared.
        roots: As the settings name them.

    Returns:
        A sentence each; empty where this instance reads the same disks as the others.
    """
    tokens, faults = dict[str, str](), list[str]()
    for number, root in enumerate(roots):
        try:
            # Sources are named by a root's last folder name, wherever it is mounted.
            tokens[root.name] = read_token(root) or ""
        except ConfigError as error:
            faults.append(f"data_roots[{number}] {error.message}")
    others = outbox.agree_on_roots(tokens)
    missing = [root for root in roots if tokens.get(root.name) == "" and root.name not in others]
    made = dict[str, str]()
    for root in missing:
        try:
            made[root.name] = make_token(root)
        except ConfigError as error:
            faults.append(f"data_roots[{roots.index(root)}] {error.message}")
    others |= outbox.agree_on_roots(made)
    return [*faults, *_other_disks(roots, others, tokens | made)]


def _other_disks(
    roots: Sequence[Path], others: dict[str, str], tokens: dict[str, str]
) -> Iterator[str]:
    """The sentence of each root that has another token at the other instances."""
    for number, root in enumerate(roots):
        if root.name in others:
            own, theirs = tokens[root.name], others[root.name]
            here = f"its {ROOT_FILE} says {own}" if own else f"it has no {ROOT_FILE}"
            path = quote(str(root / ROOT_FILE))
            yield (
                f"data_roots[{number}] {root} is another disk here than at the other instances: "
                f"{here}, theirs says {theirs}: mount theirs here; where all files were moved to "
                f"this one for good, `echo {theirs} > {path}`"
            )
