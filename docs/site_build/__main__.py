"""`python -m docs.site_build [FOLDER]`: builds the site; FOLDER is build/docs-site by default."""

import sys
from pathlib import Path

from docs.site_build.build import ROOT, build

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs-site"
    sys.stdout.write(f"{build(folder)}\n")
