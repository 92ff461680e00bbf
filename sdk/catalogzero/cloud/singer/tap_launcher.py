"""Becomes a tap that dies with the process that started it.

Run by its path as `python -I -S tap_launcher.py <pid of the starter> <command> <arguments>`. It
imports nothing of ours: it takes some milliseconds, and is the tap from then on.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """See above; what the system refuses is said on standard error."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # It may have died before this was set up: then no signal comes.
        if os.getppid() != parent:
            sys.exit(1)
    try:
        os.execv(command[0], command)  # noqa: S606  # the client's own config names it
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()
