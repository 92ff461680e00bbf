"""What every handler must do, run against `ConductorZero`: catalogzero's contract suite."""

from __future__ import annotations

from typing import Any

from catalogzero.testing import HandlerContract, Lab

from conductorzero import ConductorZero


class TestConductorZero(HandlerContract):
    """The conductor of an empty fleet."""

    handler_class = ConductorZero

    def config(self, lab: Lab) -> dict[str, Any]:
        """No handlers, and a dashboard on a free port."""
        return {"handler_registry": {}, "dashboard_port": 0}
