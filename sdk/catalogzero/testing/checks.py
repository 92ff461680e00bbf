"""What a check of a contract is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from catalogzero.entry.class_rules import paragraphs
from catalogzero.errors import place_of
from catalogzero.testing.lab import BrokenError, Lab
from catalogzero.testing.standing_in import in_run

Examine = Callable[[Lab], None]


@dataclass(frozen=True)
class ContractCheck:
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
            UnfinishedError: Another check's failure keeps it from looking.
        """
        try:
            with in_run():  # of a `process` that a check calls itself
                self.look(lab)
        # Not `UnfinishedError`: it passes on, and the check is skipped.
        except (BrokenError, OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
            broken = isinstance(error, BrokenError)
            what = str(error) if broken else f"it raised {error!r}{place_of(error)}"
            raise BrokenError(
                f"{self.name}\n  seen: {what}\n  why:  {self.reason}\n  fix:  {self.fix}"
            ) from error


HANDLER_CHECKS: list[ContractCheck] = []
PROCESSOR_CHECKS: list[ContractCheck] = []


def check(into: list[ContractCheck], look: Examine) -> Examine:
    """Add a check; the paragraphs of its docstring are what holds, the reason and the fix."""
    _, reason, fix = paragraphs(look)
    into.append(ContractCheck(look.__name__, reason, fix, look))
    return look
