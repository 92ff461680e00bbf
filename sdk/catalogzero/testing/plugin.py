"""The pytest plugin of `catalogzero.testing`: makes each check of a contract a test of its own.

Loaded by pytest in every environment that has catalogzero; it imports the suites only where a
contract is collected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from catalogzero.testing.lab import Lab
    from catalogzero.testing.processor_runs import Uploads


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check of the contract that a class subclasses."""
    if "contract_check" not in metafunc.fixturenames or metafunc.cls is None:
        return
    contract: Any = metafunc.cls
    refuse_unknown(contract)
    # How a check that is left out shows in the report.
    skips = {
        name: pytest.mark.skip(reason=f"excluded: {reason}")
        for name, reason in contract.exclude.items()
    }
    parameters = [
        pytest.param(check, id=check.name, marks=skips.get(check.name, ()))
        for check in contract.checks()
    ]
    metafunc.parametrize("contract_check", parameters)


def refuse_unknown(contract: Any) -> None:
    """Every excluded name must be a check, and have a reason."""
    names = {check.name for check in contract.checks()}
    where = contract.__qualname__
    if getattr(contract, "handler_class", None) is None:
        raise pytest.UsageError(f"{where}: set handler_class to the class under examination")
    for name, reason in contract.exclude.items():
        if name not in names:
            raise pytest.UsageError(f"{where}.exclude names {name!r}, which is not a check")
        if not isinstance(reason, str) or not reason.strip():
            raise pytest.UsageError(f"{where}.exclude[{name!r}]: say why it does not hold here")


@pytest.fixture(scope="class")
def contract_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Where the checks of one contract class look at it."""
    from catalogzero.testing.lab import Lab

    with tempfile.TemporaryDirectory(prefix="contract-") as folder:
        yield Lab(request.cls(), Path(folder))


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    """Runs of a processor, with a state folder and a backend of this test alone."""
    from catalogzero.testing.processor_runs import Uploads

    return Uploads(tmp_path / "state")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Report a broken check in its own words; skip one whose recording another check owns."""
    if "contract_check" not in getattr(item, "fixturenames", ()):
        return (yield)
    from catalogzero.testing.lab import BrokenError, UnfinishedError

    try:
        return (yield)
    except (UnfinishedError, BrokenError) as error:
        found = error
    # Outside of `except`, else pytest reports the same again for each error that led to this one.
    if isinstance(found, UnfinishedError):
        pytest.skip(str(found))
    pytest.fail(str(found), pytrace=False)
