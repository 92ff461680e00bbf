"""axe-core, which judges whether a page can be used by everybody."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import platformdirs
import pytest

AXE_VERSION = "4.10.2"


def axe_source() -> str:
    """Its script, fetched once by npm; the test is skipped where it cannot be had."""
    npm = shutil.which("npm")
    folder = platformdirs.user_cache_path("catalogzero") / f"axe-core-{AXE_VERSION}"
    script = folder / "package" / "axe.min.js"
    if not script.is_file():
        if npm is None:
            pytest.skip("there is no npm to fetch axe-core with")
        folder.mkdir(parents=True, exist_ok=True)
        pack = [npm, "pack", f"axe-core@{AXE_VERSION}", "--pack-destination", str(folder)]
        done = subprocess.run(pack, capture_output=True, text=True, check=False, timeout=50)
        if done.returncode:
            pytest.skip(f"axe-core cannot be fetched: {done.stderr[-200:]}")
        shutil.unpack_archive(folder / f"axe-core-{AXE_VERSION}.tgz", folder, filter="data")
    return script.read_text("utf-8")


def serious_faults(page: Any, script: str, within: str = "document") -> list[tuple[str, str]]:
    """What axe-core finds serious or critical on a page: each fault's name and its first place."""
    page.evaluate(script)
    result = page.evaluate(f"axe.run({within}, {{ resultTypes: ['violations'] }})")
    return [
        (fault["id"], fault["nodes"][0]["html"])
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
