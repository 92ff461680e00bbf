"""What clients hold for acknowledged, against what is here: a restore that nobody announced.

Owns the last number of each installation, and the generation of its own that one is given whose
backend lost what it had acknowledged. Both stay through retention and erasing. Every function takes
the connection of a running transaction, in which the installation's row is locked.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection, Row, exists, select, update

from catalogzero.backend import generations
from catalogzero.backend.schema import installations, uploads
from catalogzero.backend.store import Columns
from catalogzero.protocol.bodies import Acknowledged
from catalogzero.protocol.judging import UploadState
from catalogzero.wire.messages import JsonObject


def heard(
    connection: Connection,
    current: str,
    row: Row[Any],
    shown: Acknowledged | None,
    known: str | None,
) -> str:
    """Hear what a folder holds for acknowledged; the generation of its installation afterwards.

    A number that is not here, or is another upload's, was lost with a restore: the installation
    alone takes a new generation, by which its client compares. Only a folder that knows the present
    one (`known`) counts: another will compare anyhow. `current` is the backend's.
    """
    generation = generations.of(current, row.generation)
    if shown is None or known != generation or _is_here(connection, row, shown):
        return generation
    # one of its own: all other installations go on under the generation that they know
    own = uuid.uuid4().hex
    key = {"tenant_id": row.tenant_id, "installation_id": row.installation_id}
    connection.execute(update(installations).filter_by(**key).values(generation=own))
    return generations.of(current, own)


def next_number(row: Row[Any], upload_id: str) -> Columns:
    """The columns of an installation that say which upload was acknowledged last."""
    return {"last_number": row.last_number + 1, "last_upload_id": upload_id}


def last_of(row: Row[Any]) -> JsonObject | None:
    """What was acknowledged last, as it is reported; None where nothing was."""
    if not row.last_number:
        return None
    return {"number": row.last_number, "upload_id": row.last_upload_id}


def _is_here(connection: Connection, row: Row[Any], shown: Acknowledged) -> bool:
    # above the last one here: a database that is gone acknowledged it
    if shown.number >= row.last_number:
        return (shown.number, shown.upload_id) == (row.last_number, row.last_upload_id)
    ended = exists().where(
        uploads.c.tenant_id == row.tenant_id,
        uploads.c.upload_id == shown.upload_id,
        uploads.c.state != UploadState.OPEN.value,
    )
    return bool(connection.scalar(select(ended)))
