"""The package's own command: the verbs that a client needs, for this entry.

Each verb is `catalogzero`'s own, with this entry as its target: `--help` behind it shows more.
"""

import sys
from importlib.metadata import entry_points, metadata, version

ENTRY = "singer-processor"
VERBS = {
    "run": "serve it until Ctrl-C",
    "check": "look whether everything is ready, and say what to do where it is not",
    "preview": "show what would be sent for a file or --sample, and send nothing",
    "systemd": "print a hardened systemd unit for it",
}


def main() -> None:
    """Entry point of the command."""
    match sys.argv[1:]:
        case [verb, *rest] if verb in VERBS:
            # The command of this environment, in this process.
            (command,) = entry_points(group="console_scripts", name="catalogzero")
            sys.argv = ["catalogzero", verb, ENTRY, *rest]
            command.load()()
        case ["readme"]:
            sys.stdout.write(metadata(ENTRY)["Description"] + "\n")
        case ["--version"]:
            sys.stdout.write(f"{ENTRY} {version(ENTRY)}\n")
        case ["--help" | "-h"]:
            sys.stdout.write(usage())
        case _:
            sys.stderr.write(usage())
            sys.exit(2)


def usage() -> str:
    """What the command does, a line for each verb."""
    lines = [f"  {ENTRY} {verb:<8} {meaning}" for verb, meaning in VERBS.items()]
    more = [f"  {ENTRY} readme   show how to install, configure and run it"]
    return "\n".join(["usage:", *lines, *more, f"  {ENTRY} --version", ""])
