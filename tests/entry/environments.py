"""A client's environment for tests: our own packages are absent, what they need is borrowed.

pip and Python see the libraries of this checkout's environment as installed, so that no index is
asked for them; catalogzero and the catalog's entries have to be installed as a client does it.
"""

from __future__ import annotations

import re
import sysconfig
import venv
from pathlib import Path

OWN = re.compile("_editable_impl_|catalogzero|conductorzero|(file|singer|sql)_processor")


def borrowing_environment(folder: Path) -> Path:
    """Make the environment in a folder; its interpreter."""
    venv.create(folder, with_pip=False)
    shelf = folder / "borrowed"
    shelf.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not OWN.match(path.name):
            (shelf / path.name).symlink_to(path)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "borrowed.pth").write_text(f"{shelf}\n")
    return folder / "bin" / "python"
