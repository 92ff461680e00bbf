"""The contract suite: a good processor passes, and each seeded fault fails by the check's name."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalogzero.runtime.handler import Handler
from catalogzero.testing import Lab, ProcessorContract
from catalogzero.testing.checks import ContractCheck
from catalogzero.testing.lab import BrokenError, UnfinishedError

from tests.core.nats_servers import need_nats
from tests.testing.mutants import GOOD, MUTANTS, SAMPLE, Mutant, process

CHECKS = {check.name: check for check in ProcessorContract.checks()}
SEEDED = [
    pytest.param(name, mutant, id=f"{name}-{number}")
    for name, mutants in MUTANTS.items()
    for number, mutant in enumerate(mutants)
]
_numbers = itertools.count()


class Bench:
    """Writes mutants as packages, and makes a lab for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lab(self, mutant: Mutant) -> Lab:
        """A lab with the mutant's class."""
        package = f"contract_mutant_{next(_numbers)}"
        there = mutant.write(self.folder, package)
        importlib.invalidate_caches()
        cls: type[Handler] = importlib.import_module(f"{package}.handler").Good
        (there / "catalogzero.toml").write_text(mutant.manifest(cls))
        sample_file = self.folder / "sample.csv"
        sample_file.write_text(SAMPLE)

        class Examined(ProcessorContract):
            handler_class = cls
            sample = sample_file

        place = self.folder / f"lab-{package}"
        place.mkdir()
        return Lab(Examined(), place)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.syspath_prepend(tmp_path)
    yield Bench(tmp_path)
    for name in [name for name in sys.modules if name.startswith("contract_mutant_")]:
        del sys.modules[name]


def broken(check: ContractCheck, lab: Lab) -> str | None:
    """What a check says is broken; None where it holds or cannot be looked at."""
    try:
        check.examine(lab)
    except BrokenError as error:
        return str(error)
    except UnfinishedError:
        return None
    return None


def caught(lab: Lab) -> list[str]:
    """The checks that say that something is broken."""
    return [name for name, check in CHECKS.items() if broken(check, lab)]


def test_every_check_has_a_mutant_that_only_it_catches() -> None:
    assert MUTANTS.keys() == CHECKS.keys()
    assert [name for name, mutants in MUTANTS.items() if not any(m.alone for m in mutants)] == []
    assert sum(map(len, MUTANTS.values())) >= 25


@pytest.mark.parametrize("carrier", ["zeromq", "nats"])
def test_a_good_processor_breaks_no_check(
    bench: Bench, carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if carrier == "nats":
        monkeypatch.setenv("CATALOGZERO_TRANSPORT", need_nats())
        monkeypatch.setenv("CATALOGZERO_HANDLER_ID", f"good-{os.urandom(6).hex()}")
    assert caught(bench.lab(GOOD)) == []


@pytest.mark.parametrize(("name", "mutant"), SEEDED)
def test_a_seeded_fault_is_reported_by_the_check_that_names_it(
    bench: Bench, name: str, mutant: Mutant
) -> None:
    said = broken(CHECKS[name], bench.lab(mutant))

    assert said
    assert said.startswith(f"{name}\n  seen: ")
    assert CHECKS[name].fix in said


def test_a_column_that_is_parsed_is_dropped_as_it_is(bench: Bench) -> None:
    parsed = process("for batch in batches:\n    yield [{'id': int(row['id'])} for row in batch]")

    assert broken(CHECKS["a_dropped_column_does_not_leave"], bench.lab(parsed)) is None


def test_what_is_said_of_a_source_is_true_where_it_reads_no_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "reads_nothing_outside_its_roots"
    of_files, of_none = (broken(CHECKS[name], bench.lab(one)) or "" for one in MUTANTS[name])
    empty = bench.lab(Mutant(body="def read(self, data_source, params):\n    yield []"))
    monkeypatch.setattr(type(empty.contract), "data_source", lambda self, lab: "https://x//orders")
    of_nothing = broken(CHECKS["process_streams"], empty) or ""

    assert "secret.csv, outside of what it may read, was read" in of_files
    assert "secret.csv', which is no name of its source" in of_none
    assert "https://x//orders has no rows to look at" in of_nothing


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "mutant"), SEEDED)
def test_no_other_check_catches_a_fault_that_is_one_check_s_alone(
    bench: Bench, name: str, mutant: Mutant
) -> None:
    """`-rP` prints the matrix: which checks catch which mutant."""
    found = caught(bench.lab(mutant))

    sys.stdout.write(f"{name}: {', '.join(found)}\n")
    assert name in found
    assert found == [name] or not mutant.alone
