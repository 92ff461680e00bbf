"""A Singer tap that says and does what its config lists: the taps of the tests.

Its config: `folder`, which holds `steps.json` (what it does), for `--discover` `discovered.json`,
and takes `seen.json` (what it was given).
A step is a message to write as it is (an object with `type`), a text to write raw, or one of
`{"raw": text, "times": n}`, `{"error": text, "times": n}`, `{"exit": status}`, `{"kill": signal}`,
`{"silent": true}`, `{"deaf": true}` (TERM is not heard), `{"child": file}` (one that is deaf, its
pid in that file), `{"times": n, "each": message}` with `N` for its number.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

DEAF = "import signal, sys; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"


def main() -> None:
    """Be a tap."""
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    config = json.loads(Path(given["--config"]).read_text())
    if "--discover" in sys.argv:
        sys.stdout.write(Path(config["folder"], "discovered.json").read_text())
        return
    state = json.loads(Path(given["--state"]).read_text()) if "--state" in given else None
    seen = {
        "state": state,
        "catalog": json.loads(Path(given["--catalog"]).read_text()),
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "pid": os.getpid(),
    }
    Path(config["folder"], "seen.json").write_text(json.dumps(seen))
    for step in json.loads(Path(config["folder"], "steps.json").read_text()):
        do(step)


def do(step: Any) -> None:
    """One step."""
    match step:
        case {"type": _}:
            sys.stdout.write(json.dumps(step) + "\n")
        case str():
            sys.stdout.write(step)
        case {"times": times, "each": message}:
            for number in range(times):
                sys.stdout.write(json.dumps(message).replace('"N"', str(number)) + "\n")
        case {"raw": text, "times": times}:
            sys.stdout.write(text * times)
        case {"error": text, **more}:
            sys.stderr.write(text * more.get("times", 1))
        case {"deaf": True}:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case {"child": file}:
            child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()  # it is deaf from now on
            Path(file).write_text(str(child.pid))
        case {"exit": status}:
            sys.exit(status)
    sys.stdout.flush()
    match step:
        case {"kill": number}:
            os.kill(os.getpid(), number)
        case {"silent": True}:
            signal.pause()


if __name__ == "__main__":
    main()
