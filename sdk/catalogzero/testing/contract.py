"""The contract suites: what an author's test file subclasses.

    class TestAcmeProcessor(ProcessorContract):
        handler_class = AcmeProcessor

Each check is a test of its own, over real ZeroMQ and HTTP.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from catalogzero.runtime.handler import Handler
from catalogzero.runtime.launch import sample_of
from catalogzero.testing import handler_checks, processor_checks
from catalogzero.testing.backend import API_KEY
from catalogzero.testing.checks import HANDLER_CHECKS, PROCESSOR_CHECKS, ContractCheck
from catalogzero.testing.lab import Lab
from catalogzero.wire.messages import JsonObject

__all__ = ["HandlerContract", "ProcessorContract", "handler_checks", "processor_checks"]


class HandlerContract:
    """What every handler must do; subclass it in a test file, and name the class.

    Attributes:
        handler_class: The class under examination.
        exclude: Checks left out: name → the reason why it does not hold here.
    """

    handler_class: type[Handler]
    exclude: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def checks(cls) -> list[ContractCheck]:
        """The checks of this contract."""
        return list(HANDLER_CHECKS)

    def config(self, lab: Lab) -> JsonObject:
        """The settings to make the handler with; extend it where the class needs more."""
        return {}

    def test_contract(self, contract_check: ContractCheck, contract_lab: Lab) -> None:
        """One check of the contract."""
        contract_check.examine(contract_lab)


class ProcessorContract(HandlerContract):
    """What every processor must do beside that.

    Attributes:
        sample: A data file; by default the `sample.csv` of the class's package, else the one
            beside the test file or above it.
        params: What `process_and_upload` is called with as its `params`.
    """

    sample: ClassVar[str | Path | None] = None
    params: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def checks(cls) -> list[ContractCheck]:
        """The checks of this contract."""
        return [*HANDLER_CHECKS, *PROCESSOR_CHECKS]

    def config(self, lab: Lab) -> JsonObject:
        """Endpoint, key and data roots; extend it where the class needs more."""
        data = lab.folder / "data"
        data.mkdir(exist_ok=True)
        endpoint = "http://127.0.0.1:9/v1/process"
        return {"endpoint": endpoint, "api_key": API_KEY, "data_roots": [str(data)]}

    def data_source(self, lab: Lab) -> str:
        """What `process_and_upload` is called with: a copy of the sample below the data root."""
        sample = self.sample_path()
        there = lab.folder / "data" / sample.name
        there.parent.mkdir(exist_ok=True)
        if not there.exists():
            shutil.copyfile(sample, there)
        return str(there)

    def sample_path(self) -> Path:
        """The sample file.

        Raises:
            LookupError: There is none.
        """
        if self.sample is not None:
            return Path(self.sample)
        if (own := sample_of(self.handler_class)) is not None:
            return own
        here = Path(inspect.getfile(type(self))).resolve()
        for folder in (here.parent, *here.parents[1:3]):
            if (folder / "sample.csv").is_file():
                return folder / "sample.csv"
        raise LookupError(
            f"no sample.csv beside {self.handler_class.__name__}'s module or {here}: name a file "
            "as `sample` of the class, or override `data_source` for a source that is no file"
        )
