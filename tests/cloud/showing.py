"""A processor that shows what its processes have and were given."""

from __future__ import annotations

import sys
from typing import Any

from catalogzero import job

from tests.cloud.processors import Plain


class Showing(Plain):
    """Says what its own process has loaded, and what its worker was given."""

    async def modules(self) -> list[str]:
        """Those of the handler's own process."""
        return list(sys.modules)

    @job(isolate=True)
    def given(self) -> dict[str, Any]:
        """The runtime's settings as the worker has them."""
        state = self.runtime.state
        return {
            "state": state.get_secret_value() if state else None,
            "set": sorted(self.runtime.model_fields_set),
        }
