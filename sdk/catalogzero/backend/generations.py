"""The backend's generation: which life of its database an answer comes from.

A database that was put back from a backup is given another one by `catalogzero backend restored`;
clients see it in their answers, and compare what they believe with what is there. Every function
takes the connection of a running transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from sqlalchemy import Connection, delete, insert, select

from catalogzero.backend.schema import generations
from catalogzero.protocol.bodies import GENERATION
from catalogzero.protocol.problems import ProblemError


def current(connection: Connection) -> str:
    """The generation."""
    return str(connection.execute(select(generations.c.generation)).scalar_one())


def of(generation: str, own: str) -> str:
    """The generation of an installation, which may have one of its own within the backend's."""
    return sha256(f"{generation}.{own}".encode()).hexdigest()[:32] if own else generation


def renew(connection: Connection) -> str:
    """Begin another generation, and give it."""
    made = uuid.uuid4().hex
    connection.execute(delete(generations))
    connection.execute(insert(generations).values(generation=made))
    return made


@contextmanager
def named(generation: str) -> Iterator[None]:
    """What is answered here is of this generation: a refusal names it too."""
    try:
        yield
    except ProblemError as error:
        error.headers[GENERATION] = generation
        raise
