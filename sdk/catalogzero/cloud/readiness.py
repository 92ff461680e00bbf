"""What `catalogzero check` looks at for a processor: backend, key, clock, disk, outbox, data.

Reads and asks, changes nothing. What is asked of the backend is `reachability`'s.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from catalogzero.clock import Clock
from catalogzero.cloud.egress import policy_digest
from catalogzero.cloud.encoding import ColumnFilter
from catalogzero.cloud.extras import require_extra
from catalogzero.cloud.outbox.store import RESCUE_FIX, looked_at
from catalogzero.cloud.outbox.stored import SharedStore
from catalogzero.cloud.reachability import Reachability
from catalogzero.cloud.reading.network_mounts import NETWORK_MIN_AGE_S, young_roots
from catalogzero.cloud.reading.records import BadRecords, Found, ReadOptions
from catalogzero.cloud.reading.root_tokens import (
    ROOT_FILE,
    by_hand,
    may_make_token,
    read_token,
)
from catalogzero.cloud.reading.sources import FileItem, Roots
from catalogzero.cloud.rows.batches import rows_of
from catalogzero.cloud.rows.streams import Stream
from catalogzero.cloud.settings import CloudSettings, root_fault
from catalogzero.config.preflight import CHECK_TIMEOUT_S, Check, Finding
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import BadParamsError, CatalogZeroError, ConfigError
from catalogzero.runtime.health import LOW_DISK_BYTES
from catalogzero.sql import DamagedFileError

if TYPE_CHECKING:
    from catalogzero.cloud.singer.tap_catalog import TapStream

SHOWN_LOST = 20
LOOKED_AT_FILES = 50
FILES_WITH_COLUMNS = 10


def preflight(
    settings: CloudSettings,
    runtime: RuntimeSettings,
    *,
    user_agent: str,
    state_dir: Path,
    clock: Clock,
    streams: Sequence[Stream],
    shared: SharedStore | None = None,
) -> list[Check]:
    """The checks of a processor with these settings, which declares these streams."""
    policy = runtime.egress
    asked = Reachability(settings, policy, user_agent, clock, runtime.chunk_bytes)
    look = Readiness(settings, runtime, state_dir, clock, streams, shared)
    checks = [
        Check("backend", asked.backend, "add the host to egress.hosts, or correct `endpoint`"),
        Check("api key", asked.api_key, "see `api_key_file`"),
        Check("clock", asked.clock_skew, "see `endpoint`"),
        Check("disk", look.disk, "set `state_dir` to a disk that answers"),
        Check("outbox", look.outbox, "look at the file that is named, as the user whose it is"),
        Check("egress", look.egress, "write egress rules that name columns of the results"),
    ]
    if settings.ca_file or settings.client_cert_file:
        checks.insert(1, Check("certificates", asked.certificates, "see the file that is named"))
    if (policy.hash or policy.hash_sources) and policy.hash_key_file is None:
        checks.append(Check("hash key", look.hash_key, "set egress.hash_key_file"))
    if runtime.state is not None:
        checks.append(Check("state", look.state, "see that `state` and each data root answer"))
    if settings.data_roots:
        fix = "see that the file system answers: a share that is away holds up every run"
        checks += [Check("data roots", look.data_roots, fix), Check("files", look.files, fix)]
    for name in settings.sources:
        fix = f"correct `query`, or the database URL, of sources.{name}; see that it answers"
        checks.append(Check(f"query {name}", partial(look.query, name), fix))
    for name in settings.taps:
        fix = f"correct taps.{name}, or the file that is named"
        checks.append(Check(f"tap {name}", partial(look.tap, name), fix))
    return checks


@dataclass
class Readiness:
    """What is looked at on this machine, each by a method of its own; a text is what passed."""

    settings: CloudSettings
    runtime: RuntimeSettings
    state_dir: Path
    clock: Clock
    streams: Sequence[Stream]
    shared: SharedStore | None

    def disk(self) -> Finding | str:
        """Room for the outbox."""
        there = self.state_dir
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        found = f"{free / (1 << 30):.1f} GiB free at {there}"
        if free < LOW_DISK_BYTES:
            return Finding("disk", "warn", found, "make room, or set `state_dir` to another disk")
        return found

    def hash_key(self) -> Finding:
        """Kept where a lost state folder does not take it along."""
        found = (
            f"the key of the hashes lies in the state folder ({self.state_dir / 'egress.key'}): if "
            "that is lost, each hash is another one, and every source is sent again beside what it "
            "sent before"
        )
        return Finding("hash key", "warn", found, "set egress.hash_key_file, and back that file up")

    def outbox(self) -> Finding | str:
        """Readable, without dead letters."""
        try:
            with looked_at(self.state_dir, self.clock, self.shared) as store:
                if store is None:
                    return "none yet"
                store.refuse_damaged()
                totals, paused, damage = store.totals(), store.pause(), store.damage()
        except DamagedFileError as error:
            return Finding("outbox", "fail", error.message, RESCUE_FIX)
        if damage is not None:
            lost = damage["lost"]
            named = [f"{one['source'] or 'a source'} ({one['upload_id']})" for one in lost]
            shown = ", ".join(named[:SHOWN_LOST]) or "none"
            found = f"the file was damaged; {len(named)} uploads cannot be read: {shown}"
            fix = f"call their sources again, then remove {damage['file']} from {self.state_dir}"
            return Finding("outbox", "warn", found, fix)
        found = f"{totals.uploads} uploads wait, {totals.dead} were refused"
        if totals.dead or paused:
            fix = "look at `catalogzero outbox list`"
            found = f"{found}; paused: {paused['reason']}" if paused else found
            return Finding("outbox", "warn", found, fix)
        return found

    def egress(self) -> Finding | str:
        """Rules that hold, and no source that left by other ones."""
        policy = self.runtime.egress
        columns = ColumnFilter(policy, b"")
        for name, query in self.settings.sources.items():
            if query.watermark is not None and not columns.in_clear(query.watermark):
                found = f"sources.{name}: its watermark {query.watermark!r} may not leave"
                return Finding("egress", "fail", found, "let the column leave, or drop `watermark`")
        keyed = [*self.streams]
        for name, stream in self._tap_streams():
            if stream.watermark and not columns.in_clear(stream.watermark):
                found = f"taps.{name}: the replication key of stream {stream.name!r} may not leave"
                return Finding("egress", "fail", found, "let the column leave, or read FULL_TABLE")
            if stream.mode == "merge" and not self.streams and stream.key:
                keyed.append(Stream(stream.name, key=stream.key, tombstone=stream.tombstone))
        for fault in filter(None, map(columns.key_fault, keyed)):
            return Finding("egress", "fail", *fault)
        with looked_at(self.state_dir, self.clock, self.shared) as store:
            last_run = store.fact("egress_unmatched") if store else None
            older = store.under_other_policy(policy_digest(policy)) if store else 0
        # The rules of then, as they are now.
        unmatched = [rule for rule in columns.rules if f"{rule[0]}: {rule[1]}" in (last_run or ())]
        where = "in the last run"
        if last_run is None and columns.rules and (seen := set(self._columns())):
            columns([dict.fromkeys(seen)])
            matched = columns.matched()
            unmatched = [rule for rule in columns.rules if f"{rule[0]}: {rule[1]}" not in matched]
            where = "of what the class declares" if self._declared() else "in the sources"
        if unmatched:
            rules = ", ".join(f"{kind}: {name}" for kind, name in unmatched)
            fix = "write the names as the results have them: `catalogzero preview` shows those"
            return Finding("egress", "warn", f"{where} no column matched {rules}", fix)
        if older:
            fix = "call with full: true, to replace what they sent by what may leave now"
            return Finding("egress", "warn", f"{older} sources were sent by another policy", fix)
        return "each rule matches, and every source left by this policy"

    def _declared(self) -> list[str]:
        """The columns of the class's results, as far as it declares them."""
        schemas = [stream.describe().get("schema", {}) for stream in self.streams]
        return [name for schema in schemas for name in schema.get("properties", {})]

    def _columns(self) -> Iterator[str]:
        """The columns that the class declares, else those of the first files and the queries."""
        if self._declared():
            yield from self._declared()
            return
        # What cannot be read is another check's to name.
        for item in islice(self._files(), FILES_WITH_COLUMNS):
            with suppress(CatalogZeroError), item.open(None, BadRecords("skip")) as reading:
                for row in islice(chain.from_iterable(map(rows_of, reading.batches())), 1):
                    yield from map(str, row)
        for name in self.settings.sources:
            with suppress(CatalogZeroError):
                yield from self._columns_of(name)
        for _, stream in self._tap_streams():
            yield from stream.columns

    def data_roots(self) -> Finding | str:
        """There, and readable."""
        for root in self.settings.data_roots:
            if fault := root_fault(root):
                return Finding("data roots", "fail", *fault)
        return ", ".join(map(str, self.settings.data_roots))

    def state(self) -> Finding | str:
        """Whether all hosts see that their data roots are one disk, and wait for their files.

        What the section lacks is named by `Handler._state_faults`, a line each.
        """
        roots = self.settings.data_roots
        faults, missing = list[str](), list[str]()
        for number, root in enumerate(roots):
            try:
                if read_token(root) is None:
                    missing.append(str(root))
                    if not may_make_token(root):
                        faults.append(f"data_roots[{number}]: make its token: {by_hand(root)}")
            except ConfigError as error:
                faults.append(f"data_roots[{number}] {error.message}")
        if faults:
            fix = "make the file on a host that may write there, for every host's user to read"
            return Finding("state", "fail", "; ".join(faults), fix)
        if young := young_roots(self.runtime, roots):
            shown = ", ".join(f"{root} ({kind})" for root, kind in young)
            found = (
                f"min_file_age_s is {self.runtime.min_file_age_s:g}, and other hosts write to "
                f"{shown}: a file may be read before its last bytes are seen here"
            )
            fix = f"leave `min_file_age_s` out: it is {NETWORK_MIN_AGE_S:g} there"
            return Finding("state", "warn", found, fix)
        if missing:
            return f"{ROOT_FILE} is made at the first start in {', '.join(missing)}"
        return (
            "1 data root has its token"
            if len(roots) == 1
            else f"{len(roots)} data roots have theirs"
        )

    def _files(self) -> Iterator[FileItem]:
        """The files of all data roots."""
        options = ReadOptions(
            encoding=self.settings.encoding,
            delimiter=self.settings.delimiter,
            allow_empty=self.settings.allow_empty,
            batch_rows=1,
        )
        for root in self.settings.data_roots:
            with suppress(BadParamsError):  # no file yet, or no folder, as another check says
                yield from Roots([root]).items(str(root), options)

    def files(self) -> Finding | str:
        """The first 64 KiB of the first files can be read by the rules."""
        found, refusals = list[Found](), list[str]()
        for item in islice(self._files(), LOOKED_AT_FILES):
            try:
                found.append(item.look())
            except CatalogZeroError as error:
                refusals.append(error.message)
        if refusals:
            count = len(found) + len(refusals)
            said = f"{len(refusals)} of {count} would be refused: {refusals[0]}"
            return Finding("files", "warn", said, "correct what it names, or move the file away")
        forms = {f"{f.kind} {f.encoding or ''} {f.delimiter or ''}".strip() for f in found}
        return f"{len(found)} looked at: {', '.join(sorted(forms))}"

    def query(self, name: str) -> Finding | str:
        """Its database answers, and has its tables and its watermark's column."""
        columns = self._columns_of(name)
        from catalogzero.cloud.reading.queries import lookback_fault

        source = self.settings.sources[name]
        mark = source.watermark
        if fault := lookback_fault(f"sources.{name}", source, self.streams):
            return Finding(f"query {name}", "fail", *fault)
        if columns and mark is not None and mark not in columns:
            found = f"sources.{name}: its result has no column {mark!r} for `watermark`"
            fix = f"name one of its columns: {', '.join(columns[:SHOWN_LOST])}"
            return Finding(f"query {name}", "fail", found, fix)
        return f"{len(columns)} columns" if columns else "its database answers"

    def tap(self, name: str) -> str:
        """Its files can be used, and what its catalog selects can be read; it is not started."""
        from catalogzero.cloud.singer.tap_catalog import plans_of, read_catalog, selected_streams
        from catalogzero.cloud.singer.tap_process import refuse_unusable

        source = self.settings.taps[name]
        refuse_unusable(source)
        if (path := source.catalog_file) is None:
            return "its streams are those that it discovers"
        plans = plans_of(selected_streams(read_catalog(path), str(path)), self.streams, str(path))
        return ", ".join(f"{plan.stream.name} ({plan.mode})" for plan in plans[:SHOWN_LOST])

    def _tap_streams(self) -> Iterator[tuple[str, TapStream]]:
        """The streams that catalog files select, each with its tap; a fault is a tap's check's."""
        from catalogzero.cloud.singer.tap_catalog import read_catalog, selected_streams

        for name, source in self.settings.taps.items():
            with suppress(CatalogZeroError):
                if (path := source.catalog_file) is not None:
                    streams = selected_streams(read_catalog(path), str(path))
                    yield from ((name, stream) for stream in streams.values())

    def _columns_of(self, name: str) -> list[str]:
        """The columns of a query's result."""
        require_extra("sql")
        from catalogzero.cloud.reading.queries import columns_of

        return columns_of(self.settings.sources[name], f"sources.{name}", CHECK_TIMEOUT_S * 0.8)
