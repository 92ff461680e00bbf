"""The cases of all models, by the name of the model."""

from __future__ import annotations

from tests.models import (
    dead_letters,
    folders,
    keyed,
    keyed_parts,
    partitions,
    parts,
    replicas,
    restored,
    schedules,
    shared_stores,
    streams,
    uploads,
    witness,
)
from tests.models.explore import Case

MODELS = (
    dead_letters,
    folders,
    keyed,
    keyed_parts,
    partitions,
    parts,
    replicas,
    restored,
    schedules,
    shared_stores,
    streams,
    uploads,
    witness,
)
ALL: list[tuple[str, Case]] = [
    (module.__name__.rpartition(".")[2], case) for module in MODELS for case in module.CASES
]
