"""The items of a data_source by name, for a run that is partitioned: listed by the worker's engine.

Never opens an item.
"""

from __future__ import annotations

from collections.abc import Callable

from catalogzero.cloud.counters import ItemList
from catalogzero.cloud.egress import egress_key
from catalogzero.cloud.engine import Engine
from catalogzero.cloud.pipeline import UploadRun
from catalogzero.cloud.reading.authors import RunAuthor
from catalogzero.cloud.settings import Params
from catalogzero.errors import FailedError

REPLY_BYTES = 2_000
"""What a reply has beside the names."""


def list_items(
    author: RunAuthor,
    engine: Engine,
    data_source: str,
    params: Params,
    progress: Callable[..., None],
) -> ItemList:
    """The items of a data_source; what waits of sources that are gone is over, as after a run.

    Raises:
        BadParamsError: The data_source may not or cannot be read.
        FailedError: Another folder has the installation.
        TooLargeError: One reply cannot name all of them.
    """
    identity = author.identity()
    if moved := engine.outbox.moved_text(identity.installation_id):
        raise FailedError(moved)
    run = UploadRun(
        author=author,
        identity=identity,
        outbox=engine.outbox,
        wake=engine.sender.wake,
        wait_ended=engine.sender.wait_ended,
        key=egress_key(author.runtime.egress, author.state_dir),
        folder=author.state_dir,
        progress=progress,
        data_source=data_source,
        params=params,
        chunk_format="ndjson",
        full=False,
        only=None,
    )
    try:
        return run.list_items(author.runtime.max_message_bytes - REPLY_BYTES)
    finally:
        run.seals.close()
