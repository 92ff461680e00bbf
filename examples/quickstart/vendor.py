"""The vendor's side: scaffold the package, write its `process`, test it, build it, publish it.

Owns the folder `vendor/` and the index server. Everything goes through the `catalogzero` command
of the checkout's own environment, as a vendor would type it.

Layer: edge.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from examples.quickstart.processes import Processes
from examples.quickstart.stage import Stage

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = "skylark-processor"
COMMAND = Path(sys.executable).with_name("catalogzero")


class Vendor:
    """Skylark Analytics, at work in one folder."""

    def __init__(self, processes: Processes, stage: Stage, folder: Path) -> None:
        self.processes = processes
        self.stage = stage
        self.folder = folder
        self.package = folder / PACKAGE
        self.dist = folder / "dist"
        self.site = folder / "site"

    def scaffold(self) -> None:
        """`catalogzero new`: a package that works before a line is written."""
        self.folder.mkdir(parents=True)
        answers = ("vendor_name=Skylark Analytics", "product_name=Skylark Processor")
        self._catalogzero("new", self.folder, "--no-input", *answers)
        made = [path for path in self.package.rglob("*") if path.is_file()]
        self.stage.fact("vendor.files", len(made), f"{len(made)} files in {PACKAGE}/")

    def edit(self) -> None:
        """One file: what Skylark does with a client's rows."""
        source = HERE / "handler.py"
        shutil.copyfile(source, self.package / "src/skylark_processor/handler.py")
        self.stage.fact("vendor.edited_lines", len(source.read_text().splitlines()))
        self.stage.code(source)

    def test(self) -> None:
        """The package's own tests, the contract suite among them."""
        said = self.processes.run(
            "vendor-tests",
            *(
                sys.executable,
                *["-m", "pytest", "-q", "-p", "no:cacheprovider"],
            ),
            cwd=self.package,
            env={"PYTHONPATH": str(self.package / "src"), "PYTEST_ADDOPTS": ""},
        )
        summary = said.strip().splitlines()[-1].strip("= ")
        self.stage.fact("vendor.tests", summary, summary)

    def build(self) -> None:
        """`catalogzero build`: the wheel, and the conductor's from the checkout."""
        self._catalogzero("build", self.package, "--out", self.dist)
        self._catalogzero("build", ROOT / "catalog/conductor", "--out", self.dist)
        for wheel in self.wheels():
            self.stage.show(wheel.name)

    def wheels(self) -> list[Path]:
        """What the vendor publishes."""
        return sorted(self.dist.glob("*.whl"))

    def publish(self) -> None:
        """`catalogzero catalog build`: a static site that any web server can serve."""
        python = ".".join(map(str, sys.version_info[:2]))
        where = ("--out", self.site, "--python", python)
        self._catalogzero("catalog", "build", *self.wheels(), *where)
        files = sorted(self.site.rglob("*.whl"))
        self.stage.fact("vendor.catalog_wheels", len(files), f"{len(files)} wheels in the index")

    def serve(self, port: int) -> str:
        """Serve the index; its URL for `pip install --index-url`."""
        self.processes.start(
            "index", COMMAND, "catalog", "serve", self.site, "--port", str(port), cwd=self.folder
        )
        return f"http://127.0.0.1:{port}/simple"

    def _catalogzero(self, *arguments: str | Path) -> str:
        name = f"catalogzero-{arguments[0]}"
        return self.processes.run(name, COMMAND, *arguments, cwd=self.folder)
