"""What a check of a contract is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from catalogzero.errors import place_of
from catalogzero.testing.lab import BrokenError, Lab

Examine = Callable[[Lab], None]


@dataclass(frozen=True)
class Check:
    """One demand on a handler.

    Attributes:
        name: How it is called in reports and in `exclude`.
        reason: Why it is demanded, in one line.
        fix: What to do where it does not hold.
    """

    name: str
    reason: str
    fix: str
    look: Examine

    def examine(self, lab: Lab) -> None:
        """Look, and say in a person's words what is wrong.

        Raises:
            BrokenError: It does not hold.
            UnfinishedError: It cannot be looked at.
        """
        try:
            self.look(lab)
        except (BrokenError, OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
            broken = isinstance(error, BrokenError)
            what = str(error) if broken else f"it raised {error!r}{place_of(error)}"
            raise BrokenError(
                f"{self.name}\n  seen: {what}\n  why:  {self.reason}\n  fix:  {self.fix}"
            ) from error


HANDLER_CHECKS: list[Check] = []
PROCESSOR_CHECKS: list[Check] = []


def check(into: list[Check], reason: str, fix: str) -> Callable[[Examine], Examine]:
    """Add a function to a list of checks, under its own name."""

    def add(look: Examine) -> Examine:
        into.append(Check(look.__name__, reason, fix, look))
        return look

    return add
