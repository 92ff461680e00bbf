"""Makes the tests' own module of fleets importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
