"""The page "Test a processor" does what it prints: its files are written, its command is typed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from catalogzero import CloudSettings

PAGE = Path(__file__).parents[2] / "docs/how-to/test-a-processor.md"


def test_the_page_s_tests_pass_as_printed(tmp_path: Path) -> None:
    page = PAGE.read_text()
    prices, orders, of_orders, _, of_a_tap = re.findall(
        r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    files = {"test_prices": prices, "acme_orders": orders, "test_orders": of_orders}
    passing = 4
    if "taps" in CloudSettings.model_fields:
        files["test_tap"], passing = of_a_tap, 5
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    (command,) = re.findall(r"^```sh\n(.*?)\n```", page, re.DOTALL | re.MULTILINE)
    typed = shlex.split(command)
    others = [f"{name}.py" for name in files if name not in ("acme_orders", "test_orders")]

    done = subprocess.run(
        [sys.executable, "-m", *typed, *others],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout
    assert f"{passing} passed" in done.stdout
