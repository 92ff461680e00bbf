"""Who has which place in the tables of handlers and instances, and what each has to do."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from catalogzero.scheduler import statements
from catalogzero.scheduler.models import KnownHandler, KnownInstance, LostRaceError
from catalogzero.scheduler.schema import executions, instances
from catalogzero.scheduler.statements import Values, row_count


def take_place(
    c: sa.Connection,
    table: sa.Table,
    key: Values,
    row: Values,
    replaces: KnownHandler | KnownInstance | None,
    *,
    anyone: bool,
) -> bool:
    """Write where one is that registers; true when none was known.

    It takes the place of one at the same address, of `replaces`, or of `anyone`.

    Raises:
        LostRaceError: Another one has it, or `replaces` was heard of since it was read.
    """
    known = sa.and_(*(table.c[name] == value for name, value in key.items()))
    free = table.c.address == row["address"]
    if replaces is not None:
        is_silent = table.c.seen_us == replaces.seen_us
        free |= (table.c.address == replaces.address) & is_silent
    change = sa.update(table).where(known if anyone else known & free)
    if row_count(c.execute(change.values(row))):
        return False
    try:
        c.execute(sa.insert(table).values(**key, **row))
    except IntegrityError:
        raise LostRaceError(f"'{key['handler_id']}' was heard of meanwhile") from None
    return True


def with_instances(
    c: sa.Connection, found: list[KnownHandler], counted: sa.ColumnElement[bool]
) -> list[KnownHandler]:
    """The handlers with their instances, and these with the open executions that are counted."""
    if not found:
        return found
    by_id = {one.handler_id: one for one in found}
    mine = sa.select(instances).order_by(instances.c.instance_id)
    if len(by_id) == 1:
        mine = mine.where(instances.c.handler_id == found[0].handler_id)
    known = [KnownInstance(**row) for row in c.execute(mine).mappings()]
    if not known:
        return found
    of = (executions.c.handler_id, executions.c.instance_id)
    # One that is divided goes on without its instance.
    called = (statements.IS_ACTIVE, of[1].is_not(None), executions.c.parts.is_(None))
    busy = sa.select(*of, sa.func.count()).where(*called, counted)
    load = {(row[0], row[1]): int(row[2]) for row in c.execute(busy.group_by(*of))}
    for one in known:
        one.load = load.get((one.handler_id, one.instance_id), 0)
        if handler := by_id.get(one.handler_id):
            handler.instances.append(one)
    return found
