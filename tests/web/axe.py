"""axe-core, which judges whether a page can be used by who cannot see it, or not well."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import platformdirs
import pytest

AXE_VERSION = "4.10.2"


async def axe_source() -> str:
    """The text of axe-core, fetched once by npm into the user's cache."""
    folder = Path(platformdirs.user_cache_dir("catalogzero-tests")) / f"axe-{AXE_VERSION}"
    script = folder / "package" / "axe.min.js"
    if not script.exists():
        npm, tar = shutil.which("npm"), shutil.which("tar")
        if npm is None or tar is None:
            pytest.skip("axe-core cannot be fetched: npm is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        await _run(npm, "pack", f"axe-core@{AXE_VERSION}", "--pack-destination", str(folder))
        await _run(tar, "-xzf", str(folder / f"axe-core-{AXE_VERSION}.tgz"), "-C", str(folder))
    return script.read_text(encoding="utf-8")


async def _run(*command: str) -> None:
    """Run a command; the test is skipped when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, told = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        await process.communicate()
        pytest.skip("axe-core cannot be fetched: npm does not answer")
    if process.returncode:
        pytest.skip(f"axe-core cannot be fetched: {told.decode(errors='replace')[-200:]}")
