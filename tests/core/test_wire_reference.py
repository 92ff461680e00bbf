"""The reference of the wire protocol says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from catalogzero import errors
from catalogzero.config.settings import RuntimeSettings
from catalogzero.runtime.controls import Controls
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.methods import CONTROL_METHODS, MAX_FAULTS, control_methods
from catalogzero.wire.messages import decode_reply

PAGE = (Path(__file__).parents[2] / "docs/reference/wire-protocol.md").read_text()
CLIENT_ONLY = "unreachable"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_code_stands_in_the_table_with_whether_it_may_be_retried() -> None:
    told = {code.strip("`"): retryable for code, _, retryable, _ in rows("Errors")}
    raised = {
        code: "yes" if error.retryable else "no"
        for code, error in errors._BY_CODE.items()
        if code != CLIENT_ONLY
    }
    assert told == raised


def test_every_control_method_stands_in_the_table() -> None:
    told = {name for method, *_ in rows("Control methods") for name in re.findall(r"\w+", method)}
    assert told == CONTROL_METHODS
    assert told == {*control_methods(Handler), *control_methods(Controls)}


def test_every_example_is_json_and_the_replies_are_replies() -> None:
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    replies = [decode_reply(json.dumps(e).encode()) for e in examples if "success" in e]
    assert [reply.success for reply in replies] == [True, False]
    assert errors.error_for_code(replies[1].code, "").code == replies[1].code


def test_the_limits_are_those_of_the_code() -> None:
    runtime = RuntimeSettings.model_construct()
    assert f"at most {MAX_FAULTS}" in PAGE
    assert f"`dedupe_window_s` ({runtime.dedupe_window_s:.0f})" in PAGE
    assert f"`early_reply_s` ({runtime.early_reply_s:.0f})" in PAGE
