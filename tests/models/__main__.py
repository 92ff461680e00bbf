"""Every case of every model, or of those named, with its states and its shortest counterexample.

usage: python -m tests.models [NAME ...]
"""

from __future__ import annotations

import sys
import time

from tests.models.cases import ALL
from tests.models.explore import as_expected, explore


def main() -> int:
    """The exit status is 1 where a case is not as expected."""
    surprises = 0
    for name, case in ALL:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        began = time.process_time()
        found = explore(case, stop=False)
        fine = as_expected(case, found)
        surprises += not fine
        verdict = "breaks" if found.broken else "holds" if found.whole else "capped"
        took = f"{found.states} states, {time.process_time() - began:.1f} s"
        surprise = "" if fine else "   <- NOT AS EXPECTED"
        sys.stdout.write(f"{verdict:6} {name}: {case.name}  ({took}){surprise}\n")
        for rule, steps in found.broken.items():
            sys.stdout.write(f"         {rule}: {'; '.join(steps)}\n")
        sys.stdout.flush()
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
